"""ROLLOUT: completions sampled with each distinct prompt run once and kept once.

The keys and values of the prompts are computed in one row without padding and stay as they are; what the completions
add goes into a buffer that is allocated once. Every token step then reads each prompt once, however many completions it
has, and a completion that has ended leaves the batch. The tokens are those of the library's `generate`, greedy or
sampled, because random numbers are drawn for all completions, also for those that have left.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import StopStringCriteria

from grit_lite.packing import KeysAndValues, SharedPromptLayout
from grit_lite.vlm import Prompt, VisionLanguageModel

PREFILL_TOKENS = 8192  # prompt tokens that go through the model at the same time


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: 0 is greedy.
        top_k: 0 for the whole vocabulary.
        end_tokens: ids that end a completion.
        suppressed: ids that are never drawn.
        stop_strings: texts that end a completion once it holds one, wholly; needs `tokenizer`.
        elsewhere: how many completions other processes sample at the same time, before and after these in order. Random
            numbers are drawn for them as well, so that the tokens do not depend on the number of processes.
        seeds: of each completion, so that it does not depend on those that are sampled beside it; none to draw from
            torch's generator.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    end_tokens: tuple[int, ...] = ()
    suppressed: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    tokenizer: Any = None
    elsewhere: tuple[int, int] = (0, 0)
    seeds: tuple[int, ...] = ()

    def for_generate(self) -> dict[str, Any]:
        """The same for the library's own `generate`, which serves the families whose prompts cannot be shared."""
        greedy = self.temperature == 0
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": not greedy,
            "temperature": None if greedy else self.temperature,
            "top_k": None if greedy else self.top_k,
            "top_p": None if greedy else self.top_p,
            "eos_token_id": list(self.end_tokens),
            "suppress_tokens": list(self.suppressed) or None,
            "stop_strings": list(self.stop_strings) or None,
            "tokenizer": self.tokenizer,
            "disable_compile": True,
        }


@torch.no_grad()
def sample(
    model: VisionLanguageModel,
    prompts: Sequence[Prompt],
    owners: Sequence[int],
    sampling: Sampling,
    at_once: int | None = None,
) -> list[list[int]]:
    """A completion for each owner, the end token included.

    Args:
        prompts: distinct prompts.
        owners: for each completion, the number of its prompt.
        at_once: how many completions are in memory at the same time; None for all. The tokens are the same, because
            each part begins with the generator in the state in which the first one found it.

    Raises:
        FloatingPointError: the model gave no finite probabilities.
    """
    completions: list[list[int]] = [[] for _ in owners]
    every = range(len(owners))
    for start in every[:: at_once or len(owners)]:
        part = every[start : start + (at_once or len(owners))]
        with nullcontext() if part[-1] == every[-1] else _generator_put_back(model.device):
            for rows, tokens in decode(model, prompts, owners, sampling, part):
                for row, token in zip(rows, tokens, strict=True):
                    completions[row].append(token)
    return completions


def _generator_put_back(device: torch.device) -> AbstractContextManager:
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


@torch.no_grad()
def decode(
    model: VisionLanguageModel,
    prompts: Sequence[Prompt],
    owners: Sequence[int],
    sampling: Sampling,
    part: Sequence[int] | None = None,
) -> Iterator[tuple[list[int], list[int]]]:
    """The same, a step at a time: (rows that are still being written, the token that each of them got).

    Args:
        part: the rows that are written here, drawn as if all were; None for all.
    """
    rows = list(range(len(owners)) if part is None else part)
    draw = Draw(sampling, len(owners), model.device)
    used = sorted({owners[row] for row in rows})
    places = [used.index(owners[row]) for row in rows]
    cache = DecodingCache(prefill(model, [prompts[owner] for owner in used]), places, sampling.max_new_tokens)
    tokens = torch.stack([prompts[owners[row]].tokens[-1] for row in rows])
    positions = torch.stack([prompts[owners[row]].positions[:, -1] for row in rows], dim=1)  # (A, B)
    for _ in range(sampling.max_new_tokens):
        states = model.forward(model.embed(tokens)[:, None], positions[:, :, None], cache)
        tokens, ended, finite = draw(model.head(states[:, 0]).float(), rows)
        # One copy from the device a token, of all that is decided on here.
        drawn, have_ended, are_finite = torch.stack([tokens, ended.long(), finite.long()]).tolist()
        if not all(are_finite):
            raise FloatingPointError("the model gives no finite probabilities any more")
        yield rows, drawn
        staying = [place for place, has_ended in enumerate(have_ended) if not has_ended]
        if not staying:
            return
        cache.advance()
        positions = positions + 1
        if len(staying) < len(rows):
            rows, tokens, positions = [rows[place] for place in staying], tokens[staying], positions[:, staying]
            cache.keep_only(staying)


def cut_at_end(tokens: Tensor, end_tokens: Sequence[int]) -> list[list[int]]:
    """What `generate` returned, (B, C), without the padding behind the first end token of each row."""
    is_end = torch.isin(tokens, torch.tensor(end_tokens, device=tokens.device))
    lengths = torch.where(is_end.any(1), is_end.int().argmax(1) + 1, tokens.shape[1])
    return [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]


def prefill(model: VisionLanguageModel, prompts: Sequence[Prompt]) -> dict[int, list[KeysAndValues]]:
    """The keys and values of all tokens but the last of each prompt: by layer, a pair of (1, H', P - 1, D) a prompt."""
    memory: dict[int, list[KeysAndValues]] = {}
    for part in _in_parts(prompts):
        layout = SharedPromptLayout([len(prompt.tokens) - 1 for prompt in part], keep=True)
        model.run(layout, part)
        for layer, pairs in layout.memory.items():
            memory.setdefault(layer, []).extend(pairs)
    return memory


def _in_parts(prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
    part: list[Prompt] = []
    for prompt in prompts:
        if part and sum(len(one.tokens) for one in (*part, prompt)) > PREFILL_TOKENS:
            yield part
            part = []
        part.append(prompt)
    yield part


class DecodingCache:
    """The layout of a token step: each row sees its prompt, kept once, and what it has written itself.

    Args:
        memory: of `prefill`.
        owners: for each row, the number of its prompt.
        room: the most tokens that a row will write.

    Attributes:
        length: tokens that every row has written before this step.
        prompts: keys and values of the prompts, (U, H', longest P - 1, D) each, by layer.
        written: keys and values of the rows' own tokens, (rows at the start, H', room, D) each, by layer.
    """

    def __init__(self, memory: dict[int, list[KeysAndValues]], owners: Sequence[int], room: int) -> None:
        self.length = 0
        self.prompts = {layer: [_pad(column) for column in zip(*pairs, strict=True)] for layer, pairs in memory.items()}
        keys = self.prompts[0][0]
        lengths = torch.tensor([keys.shape[2] for keys, _ in memory[0]])
        self.padding = (torch.arange(keys.shape[2]) >= lengths[:, None])[:, None, None].to(keys.device)
        shape = (len(owners), keys.shape[1], room, keys.shape[3])
        self.written = {layer: [keys.new_empty(shape), keys.new_empty(shape)] for layer in memory}
        self._arrange(torch.tensor(owners))

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        rows, heads, _, width = query.shape
        own = [buffer[:rows, :, : self.length + 1] for buffer in self.written[module.layer_idx]]
        for buffer, new in zip(own, (key, value), strict=True):
            buffer[:, :, -1] = new[:, :, 0]
        grouped = query.view(rows, key.shape[1], -1, width) * scaling  # (B, H', heads of a key head, D)
        keys, values = self.prompts[module.layer_idx]
        mine, my_total = _attend(grouped, own[0], own[1])
        theirs, their_total = _attend(self._to_table(grouped), keys, values, self.padding)
        # The softmax over both is a mixture of the two, each weighted by its share of the sum.
        share = torch.sigmoid(self._to_rows(their_total) - my_total)
        return torch.lerp(mine, self._to_rows(theirs), share).reshape(rows, 1, heads, width).to(value.dtype)

    def advance(self) -> None:
        """Go on to the next token."""
        self.length += 1

    def keep_only(self, places: Sequence[int]) -> None:
        """Forget all rows but those at these places."""
        for buffer in (buffer for pair in self.written.values() for buffer in pair):
            buffer[: len(places), :, : self.length] = buffer[places, :, : self.length]
        self._arrange(self.owners[places])

    def _arrange(self, owners: Tensor) -> None:
        """Forget prompts without rows, and give each row a place in a table of (prompt, place)."""
        used, self.owners = owners.unique(return_inverse=True)
        if len(used) < len(self.padding):
            used = used.to(self.padding.device)
            self.padding = self.padding[used]
            self.prompts = {layer: [states[used] for states in pair] for layer, pair in self.prompts.items()}
        ranks = (self.owners[:, None] == self.owners).tril(-1).sum(1)  # how many rows of its prompt stand before it
        self.places = int(ranks.max()) + 1
        self.slots = (self.owners * self.places + ranks).to(self.padding.device)

    def _to_table(self, rows: Tensor) -> Tensor:
        """(B, H', N, D) -> (U, H', places x N, D), so that one product serves all rows of a prompt."""
        table = rows.new_zeros(len(self.padding) * self.places, *rows.shape[1:])
        table[self.slots] = rows
        return table.unflatten(0, (-1, self.places)).transpose(1, 2).flatten(2, 3)

    def _to_rows(self, table: Tensor) -> Tensor:
        return table.unflatten(2, (self.places, -1)).transpose(1, 2).flatten(0, 1)[self.slots]


def _attend(query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(B, H', N, D) of attention, and (B, H', N, 1): the logarithm of what its softmax divided by; both float32."""
    scores = (query @ keys.transpose(2, 3)).float()
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    total = scores.logsumexp(-1, keepdim=True)
    return ((scores - total).exp().to(values.dtype) @ values).float(), total


def _pad(states: Sequence[Tensor]) -> Tensor:
    """(1, H', P, D) of different P -> (U, H', longest P, D)."""
    longest = max(one.shape[2] for one in states)
    return torch.cat([torch.nn.functional.pad(one, (0, 0, 0, longest - one.shape[2])) for one in states])


class Draw:
    """The next token of each row, by the library's own warpers, and whether the row has ended with it."""

    def __init__(self, sampling: Sampling, rows: int, device: torch.device) -> None:
        self.greedy, self.rows, self.elsewhere = sampling.temperature == 0, rows, sampling.elsewhere
        self.own = [torch.Generator(device).manual_seed(seed) for seed in sampling.seeds]
        self.warp = LogitsProcessorList()
        if sampling.suppressed:
            self.warp.append(SuppressTokensLogitsProcessor(list(sampling.suppressed), device=str(device)))
        if not self.greedy:
            self.warp.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                self.warp.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self.warp.append(TopPLogitsWarper(sampling.top_p))
        self.end_tokens = torch.tensor(sampling.end_tokens, dtype=torch.long, device=device)
        self.stop = None
        if sampling.stop_strings:
            self.stop = StopStringCriteria(sampling.tokenizer, list(sampling.stop_strings))
        self.history = torch.empty(rows, 0, dtype=torch.long, device=device)

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """(B,) tokens, (B,) whether each ends its row, (B,) whether there was a distribution to draw it from.

        Args:
            logits: (B, V) float32.
            rows: which of all rows these are.
        """
        tokens = self._draw(logits, rows)
        return tokens, self._ended(tokens, rows), logits.amax(-1).isfinite()

    def _draw(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        scores: Any = self.warp(self.history[rows], logits)  # pyright: ignore[reportArgumentType]
        if self.greedy:
            return scores.argmax(-1)
        # This is how torch.multinomial draws one token.
        return (torch.softmax(scores, -1) / self._noise(logits, rows)).argmax(-1)

    def _noise(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        if self.own:
            one = torch.empty_like(logits[0])
            return torch.stack([one.exponential_(generator=self.own[row]).clone() for row in rows])
        # With numbers for all rows, also for those that have left, what a row gets does not depend on when the others
        # end, and is what `generate` would draw.
        before, after = self.elsewhere
        noise = torch.empty(before + self.rows + after, logits.shape[1], device=logits.device).exponential_()
        return noise[before:][rows]

    def _ended(self, tokens: Tensor, rows: Sequence[int]) -> Tensor:
        ended = torch.isin(tokens, self.end_tokens)
        if self.stop is not None:
            column = tokens.new_zeros(self.rows, 1)
            column[rows] = tokens[:, None]
            self.history = torch.cat([self.history, column], dim=1)
            ended |= self.stop(self.history[rows], None)  # pyright: ignore[reportArgumentType]  it reads no scores
        return ended
