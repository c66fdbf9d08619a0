"""PASS: the completions of a prompt scored together, with the prompt run once.

One row without padding holds prompts and all that follows them: `[p1 | p2 | … | c11 | … | c1G | c21 | …]`. A
completion attends to its own prompt and to itself, and its positions go on where its prompt's end. The result is that
of a padded row for each completion, at the price of one prompt instead of G.

Two schedules, equal in value and gradient. `packed` keeps the whole row for the backward pass. `staged` keeps nothing:
its backward runs the prompt once, then its completions a few at a time against the prompt's keys and values, then
backward through the prompt once, and so needs no more memory than the prompt and those few.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from grit_lite.vlm import Prompt, VisionLanguageModel

CHUNK = 512  # completion tokens whose logits exist at the same time
Group = tuple[Prompt, Sequence[Tensor]]  # a prompt and its completions, (C,) token ids each, of any lengths
KeysAndValues = tuple[Tensor, Tensor]  # (1, H', P - 1, D) each, of one layer


@dataclass(frozen=True)
class Schedule:
    """How a pass goes over the completions of its prompts.

    Attributes:
        staged: keep nothing for the backward pass but build it again, `at_once` completions after another.
        at_once: completions of one row, or of one stage; None for all of a micro-batch, or one in stages.
    """

    staged: bool = False
    at_once: int | None = None

    def score(
        self,
        model: VisionLanguageModel,
        groups: Sequence[Group],
        temperature: float,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> tuple[Tensor, Tensor]:
        """(N,) log-probabilities and (N,) entropies in nats of all completion tokens, one group after the other."""
        with autocast():
            if self.staged:
                return staged(model, groups, temperature, at_once=self.at_once or 1, autocast=autocast)
            scored = [packed(model, row, temperature) for row in _rows(groups, self.at_once)]
        return torch.cat([logps for logps, _ in scored]), torch.cat([entropies for _, entropies in scored])


PACKED = Schedule()


def _rows(groups: Sequence[Group], at_once: int | None) -> list[Sequence[Group]]:
    """Rows of at most `at_once` completions; a larger group is divided, and its prompt stands in each of its rows."""
    if at_once is None:
        return [groups]
    parts = [(prompt, part) for prompt, completions in groups for part in _parts(completions, at_once)]
    rows: list[list[Group]] = [[]]
    for prompt, part in parts:
        if rows[-1] and sum(len(other) for _, other in rows[-1]) + len(part) > at_once:
            rows.append([])
        rows[-1].append((prompt, part))
    return rows  # pyright: ignore[reportReturnType]


class SharedPromptLayout:
    """Who sees whom in a row of prompts and followers.

    Args:
        prompts: the lengths of the prompts in the row.
        followers: (number of its prompt, length) of each follower.
        memory: where the prompts do not stand in the row, the keys and values of each, by layer.

    Attributes:
        memory: the keys and values of each prompt, by layer: those given, or those of the row, if it was to keep them.
    """

    def __init__(
        self,
        prompts: Sequence[int],
        followers: Sequence[tuple[int, int]] = (),
        memory: dict[int, list[KeysAndValues]] | None = None,
        *,
        keep: bool = False,
    ) -> None:
        self.lengths = [*prompts, *(length for _, length in followers)]
        self.prompts, self.owners = len(prompts), [owner for owner, _ in followers]
        self.memory = memory or {}
        self.keep = keep
        self._masks: dict[tuple[int, int], Tensor] = {}

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        parts = list(zip(*(states.split(self.lengths, dim=2) for states in (query, key, value)), strict=True))
        memory = self.memory.get(module.layer_idx)
        if memory is None:
            memory = [(keys, values) for _, keys, values in parts[: self.prompts]]
            if self.keep:
                self.memory[module.layer_idx] = memory
        seen = [sdpa_attention_forward(module, q, k, v, None, scaling=scaling)[0] for q, k, v in parts[: self.prompts]]
        for owner, (queries, own_keys, own_values) in zip(self.owners, parts[self.prompts :], strict=True):
            keys = torch.cat([memory[owner][0], own_keys], dim=2)
            values = torch.cat([memory[owner][1], own_values], dim=2)
            mask = self._mask(queries.shape[2], keys.shape[2], query.device)
            seen.append(sdpa_attention_forward(module, queries, keys, values, mask, scaling=scaling)[0])
        return torch.cat(seen, dim=1)

    def _mask(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """(queries, keys): the last query sees all keys, each one before it one fewer."""
        if (queries, keys) not in self._masks:
            full = torch.ones(queries, keys, dtype=torch.bool, device=device)
            self._masks[queries, keys] = full.tril(keys - queries)
        return self._masks[queries, keys]


def score(
    head: Callable[[Tensor], Tensor], states: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of tokens, without all logits at once: each chunk's are computed anew backward.

    Args:
        head: the output embeddings: (N, hidden) -> (N, V).
        states: (N, hidden) hidden states that predict the targets.
        targets: (N,) token ids.
        temperature: divides the logits, as in sampling.

    Returns:
        (N,) log-probability of each target, and (N,) entropy in nats, without gradient, of what it was drawn from.
    """

    def chunk(states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(states).float() / temperature
        normalizer = logits.logsumexp(-1)
        with torch.no_grad():
            entropy = normalizer - (torch.softmax(logits, -1) * logits).sum(-1)
        return logits.gather(1, targets[:, None])[:, 0] - normalizer, entropy

    pieces = zip(states.split(CHUNK), targets.split(CHUNK), strict=True)
    if torch.is_grad_enabled():
        scored = [checkpoint(chunk, *piece, use_reentrant=False) for piece in pieces]
    else:
        scored = [chunk(*piece) for piece in pieces]
    return torch.cat([logps for logps, _ in scored]), torch.cat([entropies for _, entropies in scored])


def packed(model: VisionLanguageModel, groups: Sequence[Group], temperature: float) -> tuple[Tensor, Tensor]:
    """What `Schedule.score` returns, from one row with all of it."""
    followers = [(prompt, _follow(prompt, ids)) for prompt, completions in groups for ids in completions]
    owners = [number for number, (_, completions) in enumerate(groups) for _ in completions]
    prompts = [prompt for prompt, _ in groups]
    lengths = [(owner, len(ids)) for owner, (_, ids) in zip(owners, followers, strict=True)]
    layout = SharedPromptLayout([len(prompt.tokens) - 1 for prompt in prompts], lengths)
    states = model.run(layout, prompts, followers)
    return score(model.head, states, _targets(groups), temperature)


def staged(
    model: VisionLanguageModel,
    groups: Sequence[Group],
    temperature: float,
    *,
    at_once: int,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> tuple[Tensor, Tensor]:
    """As `packed`, with no more of it in memory than one prompt and `at_once` of its completions.

    The gradient reaches the parameters directly, when backward is called on what depends on the result. Entropies carry
    no gradient. Gradient checkpointing, where it is on, must not be of the reentrant kind.
    """
    if not torch.is_grad_enabled():
        return _in_stages(model, groups, temperature, at_once)
    anchor = next(parameter for parameter in model.backbone.parameters() if parameter.requires_grad)
    return _Staged.apply(anchor, model, groups, temperature, at_once, autocast)  # pyright: ignore[reportReturnType]


class _Staged(torch.autograd.Function):
    """Forward keeps no graph; backward builds it again, a stage at a time. The anchor only makes autograd call it."""

    @staticmethod
    def forward(ctx: Any, _: Tensor, model: Any, groups: Any, temperature: float, at_once: int, autocast: Any) -> Any:
        ctx.arguments = model, groups, temperature, at_once, autocast
        logps, entropies = _in_stages(model, groups, temperature, at_once)
        ctx.mark_non_differentiable(entropies)
        return logps, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        model, groups, temperature, at_once, autocast = ctx.arguments
        remaining = gradients[0]
        for group in groups:
            with torch.enable_grad(), autocast():
                remaining = _backward_through(model, group, temperature, at_once, remaining)
        return None, None, None, None, None, None


def _in_stages(
    model: VisionLanguageModel, groups: Sequence[Group], temperature: float, at_once: int
) -> tuple[Tensor, Tensor]:
    scored = []
    for prompt, completions in groups:
        memory, _ = _remember(model, prompt)
        scored += [_stage(model, prompt, part, memory, temperature) for part in _parts(completions, at_once)]
    return torch.cat([logps for logps, _ in scored]), torch.cat([entropies for _, entropies in scored])


def _backward_through(
    model: VisionLanguageModel, group: Group, temperature: float, at_once: int, gradient: Tensor
) -> Tensor:
    """Backward through one group; returns the gradient that is left for the groups after it."""
    prompt, completions = group
    memory, is_trained = _remember(model, prompt)
    tensors = [tensor for layer in memory.values() for pair in layer for tensor in pair]
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    pairs = iter(zip(leaves[::2], leaves[1::2], strict=True))
    detached = {layer: [next(pairs)] for layer in memory}
    for part in _parts(completions, at_once):
        logps, _ = _stage(model, prompt, part, detached, temperature)
        torch.autograd.backward(logps, gradient[: len(logps)])
        gradient = gradient[len(logps) :]
    reached = [pair for pair in zip(tensors, leaves, strict=True) if pair[0].requires_grad]  # not so in the first layer
    if is_trained and not reached:
        raise RuntimeError("reentrant gradient checkpointing hides the gradient of the prompt; use the packed schedule")
    if reached:
        torch.autograd.backward([tensor for tensor, _ in reached], [leaf.grad for _, leaf in reached])
    return gradient


def _remember(model: VisionLanguageModel, prompt: Prompt) -> tuple[dict[int, list[KeysAndValues]], bool]:
    """The keys and values of the prompt, and whether a trained parameter had a part in them."""
    layout = SharedPromptLayout([len(prompt.tokens) - 1], keep=True)
    states = model.run(layout, [prompt])
    return layout.memory, states.requires_grad


def _stage(
    model: VisionLanguageModel, prompt: Prompt, part: Sequence[Tensor], memory: Any, temperature: float
) -> tuple[Tensor, Tensor]:
    layout = SharedPromptLayout([], [(0, len(ids)) for ids in part], memory)
    states = model.run(layout, followers=[(prompt, _follow(prompt, ids)) for ids in part])
    return score(model.head, states, torch.cat(list(part)), temperature)


def _parts(completions: Sequence[Tensor], at_once: int) -> list[Sequence[Tensor]]:
    return [completions[start : start + at_once] for start in range(0, len(completions), at_once)]


def _follow(prompt: Prompt, completion: Tensor) -> Tensor:
    """What stands in the row for a completion: the tokens that predict it, beginning with the prompt's last."""
    return torch.cat([prompt.tokens[-1:], completion[:-1]])


def _targets(groups: Sequence[Group]) -> Tensor:
    return torch.cat([ids for _, completions in groups for ids in completions])
