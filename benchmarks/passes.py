"""The pass alone: the log-probabilities of G completions of one prompt, and their gradient.

Stock is TRL's own function, which runs a padded row with prompt and image for each completion. Ours runs the prompt
once, with all completions in one row (packed) or one after the other (staged). Gradient checkpointing is on, as TRL has
it.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from rich.console import Group
from rich.table import Table
from torch import Tensor
from trl import GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]

from benchmarks.equality import close, close_gradients
from benchmarks.measure import interleaved, median, timed
from benchmarks.models import forward_flops_per_token, vision_flops_per_image_token
from benchmarks.setting import SEED, Case, Sides, cases_of, facts, load, parser, report
from grit_lite.packing import PACKED, Schedule

CASES = [Case(*lengths) for lengths in product((300, 700, 1300), (64, 160), (4, 8))]
QUICK = [Case(300, 32, 4)]
SWEEP = {
    "G": [Case(300, 64, group) for group in (2, 4, 8, 16, 32)],
    "P": [Case(tokens, 64, 4) for tokens in (20, 40, 80, 200, 500, 1000, 2000, 4000)],
}
QUICK_SWEEP = {"G": [Case(100, 32, group) for group in (2, 4)], "P": [Case(tokens, 32, 2) for tokens in (20, 200, 400)]}
SHORTEST_FITTED = 200  # prompt tokens; below, what a call costs whatever its length hides how the cost grows
SCHEDULES = {"packed": PACKED, "staged": Schedule(staged=True, at_once=1)}


class Passes(Sides):
    """The same random completions of one prompt, scored by either side."""

    def __init__(self, folder: Path, case: Case, dtype: str = "auto") -> None:
        super().__init__(load(folder, dtype), case)
        self.model = self.backend.model
        self.model.enable_input_require_grads()
        self.model.gradient_checkpointing_enable()
        generator = torch.Generator().manual_seed(SEED)
        shape = (case.group, case.completion_tokens)
        self.completions = torch.randint(100, 800, shape, generator=generator).to(self.model.device)  # words
        self.weights = torch.randn(shape, generator=generator).to(self.model.device)

    def score_stock(self) -> Tensor:
        """(G, C) log-probabilities."""
        rows, length = self.stock(), self.case.completion_tokens
        ids = torch.cat([rows["input_ids"], self.completions], dim=1)
        kinds = torch.nn.functional.pad(rows["mm_token_type_ids"], (0, length))
        trainer: Any = SimpleNamespace(
            temperature=1.0, model_kwarg_keys=["logits_to_keep"], _entropy_bonus_enabled=False
        )
        logps, _, _ = GRPOTrainer._full_logits_logps(
            trainer,
            self.model,
            ids,
            torch.ones_like(ids),
            length,
            compute_entropy=torch.is_grad_enabled(),  # as in the policy pass, and not in the reference pass
            pixel_values=rows["pixel_values"],
            image_grid_thw=rows["image_grid_thw"],
            num_images=[1] * self.case.group,
            mm_token_type_ids=kinds,
        )
        return logps

    def score_ours(self, schedule: Schedule) -> Tensor:
        vlm, prompt = self.ours()
        logps, _ = schedule.score(vlm, [(prompt, list(self.completions))], 1.0)
        return logps.view_as(self.completions)

    def forward(self, score: Callable[[], Tensor]) -> Tensor:
        self.model.eval()
        with torch.no_grad():
            return score()

    def forward_and_backward(self, score: Callable[[], Tensor]) -> Tensor:
        self.model.train().zero_grad()
        logps = score()
        (logps * self.weights).sum().backward()
        return logps.detach()

    def gradients(self) -> dict[str, Tensor]:
        trained = [(name, weight.grad) for name, weight in self.model.named_parameters()]
        return {name: gradient.clone() for name, gradient in trained if gradient is not None}

    @property
    def sides(self) -> dict[str, Callable[[], Tensor]]:
        ours = {name: partial(self.score_ours, schedule) for name, schedule in SCHEDULES.items()}
        return {"stock": self.score_stock, **ours}


def check(passes: Passes) -> dict[str, float]:
    """The largest differences of log-probabilities and gradients, of either schedule; Unequal above rounding."""
    expected = passes.forward_and_backward(passes.score_stock)
    gradients = passes.gradients()
    differences = {"logps": 0.0, "gradient": 0.0}
    for name in SCHEDULES:
        logps = passes.forward_and_backward(passes.sides[name])
        apart = close(f"log-probabilities ({name})", expected, logps), close_gradients(gradients, passes.gradients())
        differences = {key: max(pair) for key, *pair in zip(differences, differences.values(), apart, strict=True)}
    return differences


def measure(folder: Path, case: Case, repeats: int) -> dict[str, Any]:
    differences = check(Passes(folder, case, "float32"))  # and a warm-up
    passes = Passes(folder, case)
    device = passes.model.device
    kinds = {"forward": passes.forward, "forward and backward": passes.forward_and_backward}
    runs = {(kind, name): partial(run, score) for kind, run in kinds.items() for name, score in passes.sides.items()}
    times = interleaved(repeats, {key: lambda run=run: timed(device, run)[1] for key, run in runs.items()})
    seconds = {kind: {name: median(times[kind, name]) for name in passes.sides} for kind in kinds}
    return {
        **facts(case),
        "differences": differences,
        "seconds": {kind: {name: one.cost for name, one in own.items()} for kind, own in seconds.items()},
        "ratio": {
            kind: {name: own["stock"].cost / own[name].cost for name in SCHEDULES} for kind, own in seconds.items()
        },
        "limit": limits(passes),
    }


def limits(passes: Passes) -> dict[str, float]:
    """How many times as much stock computes: in tokens of the language model, and in FLOPs by `flops`."""
    case, config = passes.case, passes.model.get_base_model().config
    prompt, completions = case.prompt_tokens, case.group * case.completion_tokens
    image_tokens = int((passes.batch["input_ids"] == config.image_token_id).sum())
    works = {
        kind: [flops(config, case, image_tokens, times, shared=shared) for shared in (False, True)]
        for kind, times in (("forward", 1), ("forward and backward", 3))
    }
    tokens = (case.group * prompt + completions) / (prompt + completions)
    return {"tokens": tokens, **{kind: stock / ours for kind, (stock, ours) in works.items()}}


def flops(config: Any, case: Case, image_tokens: int, times: int, *, shared: bool) -> float:
    """Of the model's linear layers and the attention that is needed, language and vision; without LoRA's few percent.

    Args:
        times: that the model is gone through: 1 forward; with backward 3, since checkpointing computes forward again
            and the weights themselves, being frozen, get no gradient. Stock goes as often through the vision tower,
            though nothing there is trained: the hook on the embeddings, without which checkpointing would lose the
            gradient, is on the tower's too. Ours goes through it once.
        shared: the prompt once, rather than G times.
    """
    text, prompt, completion = config.text_config, case.prompt_tokens, case.completion_tokens
    copies = 1 if shared else case.group
    tokens = copies * prompt + case.group * completion
    pairs = copies * prompt**2 / 2 + case.group * (prompt * completion + completion**2 / 2)
    attention = 4 * text.num_hidden_layers * text.hidden_size * pairs  # query by key, and weight by value
    head = 2 * text.hidden_size * text.vocab_size * case.group * completion
    language = forward_flops_per_token(config) * tokens + attention + head
    return times * language + (1 if shared else times) * copies * vision_flops(config, image_tokens)


def vision_flops(config: Any, image_tokens: int) -> float:
    """Of one image in the tower of Qwen2.5-VL, most of whose layers look only at windows."""
    vision = config.vision_config
    patches = image_tokens * vision.spatial_merge_size**2
    window = (vision.window_size // vision.patch_size) ** 2
    whole = len(vision.fullatt_block_indexes)
    pairs = patches * (whole * patches + (vision.depth - whole) * min(window, patches))
    return vision_flops_per_image_token(config) * image_tokens + 4 * vision.hidden_size * pairs


def sweep(folder: Path, axes: Mapping[str, Sequence[Case]], repeats: int) -> dict[str, Any]:
    cases = {axis: [measure(folder, case, repeats) for case in along] for axis, along in axes.items()}
    return {
        "cases": [case for along in cases.values() for case in along],
        "exponents": {"G": exponents(cases["G"], "group"), "P": exponents(cases["P"], "prompt_tokens")},
        "pays_from": pays_from(cases["P"]),
    }


def exponents(cases: Sequence[Mapping[str, Any]], axis: str) -> dict[str, float]:
    """The e of cost = constant x axis^e, by least squares of the logarithms."""
    fitted = [case for case in cases if case["prompt_tokens"] >= SHORTEST_FITTED] if axis == "prompt_tokens" else cases
    lengths = np.log([case[axis] for case in fitted])
    costs = {
        name: np.log([case["seconds"]["forward and backward"][name] for case in fitted])
        for name in ("stock", *SCHEDULES)
    }
    return {name: float(np.polyfit(lengths, cost, 1)[0]) for name, cost in costs.items()}


def pays_from(cases: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The smallest P/C from which on a schedule is faster than stock, as far as was measured."""
    smallest: dict[str, float | None] = {}
    for name in SCHEDULES:
        smallest[name] = None
        for case in sorted(cases, key=lambda case: -case["prompt_tokens"]):
            if case["ratio"]["forward and backward"][name] <= 1:
                break
            smallest[name] = case["prompt_tokens"] / case["completion_tokens"]
    return smallest


def show(result: Mapping[str, Any]) -> Group:
    table = Table(title="The pass alone: seconds, ratios, and what the ratios could be", title_justify="left")
    for name in ("P", "C", "G", "stock, s", "packed, s", "ratio", "staged", "token limit", "FLOP limit"):
        table.add_column(name, justify="right")
    for name in ("forward: stock, s", "packed, s", "ratio", "FLOP limit"):
        table.add_column(name, justify="right")
    for case in result["cases"]:
        table.add_row(*_cells(case))
    return Group(table, *_findings(result))


def _cells(case: Mapping[str, Any]) -> list[str]:
    both, forward = "forward and backward", "forward"
    seconds, ratio, limit = case["seconds"], case["ratio"], case["limit"]
    numbers = [
        *(seconds[both]["stock"], seconds[both]["packed"], ratio[both]["packed"], ratio[both]["staged"]),
        *(limit["tokens"], limit[both]),
        *(seconds[forward]["stock"], seconds[forward]["packed"], ratio[forward]["packed"], limit[forward]),
    ]
    lengths = [str(case[key]) for key in ("prompt_tokens", "completion_tokens", "group")]
    return [*lengths, *(f"{number:.2f}" for number in numbers)]


def _findings(result: Mapping[str, Any]) -> list[str]:
    worst = {name: max(case["differences"][name] for case in result["cases"]) for name in ("logps", "gradient")}
    lines = ["Largest relative differences: " + ", ".join(f"{name} {value:.0e}" for name, value in worst.items()) + "."]
    for axis, own in result.get("exponents", {}).items():
        lines.append(
            f"Cost grows with {axis} to the power " + ", ".join(f"{e:.2f} ({name})" for name, e in own.items())
        )
    for name, ratio in result.get("pays_from", {}).items():
        lines.append(
            f"{name} is faster from P/C = {ratio:.3g} on, of what was measured" if ratio else f"{name} never is faster"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser("passes", __doc__)
    options.add_argument("--sweep", action="store_true", help="how the cost grows with G and P, and where packing pays")
    chosen = options.parse_args(arguments)
    repeats = chosen.repeats or (1 if chosen.quick else 3)
    if chosen.sweep:
        axes = QUICK_SWEEP if chosen.quick else SWEEP
        return report(chosen, lambda folder: sweep(folder, axes, repeats), show)
    cases = cases_of(chosen, QUICK if chosen.quick else CASES)
    return report(chosen, lambda folder: {"cases": [measure(folder, case, repeats) for case in cases]}, show)


if __name__ == "__main__":
    sys.exit(main())
