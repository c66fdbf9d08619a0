"""One whole GRPO step: TRL's own trainer against the same trainer with shared prompts.

Both get the same model, adapter, prompt, seed, configuration and reward, and each time afresh, so that every repetition
is the very same step. Stock Unsloth is in `card`, which has a process for each side, because Unsloth rewrites TRL's
trainer for a whole process.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Group
from rich.table import Table
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]

from benchmarks.equality import close, close_gradients, same_tokens
from benchmarks.measure import MIB, Clock, Meter, Seconds, device, interleaved, median, timed
from benchmarks.setting import (
    SEED,
    Case,
    Sides,
    cases_of,
    endless,
    facts,
    load,
    parser,
    plain_attention,
    question,
    report,
)
from grit_lite.backends.plain import PlainBackend
from grit_lite.packing import Schedule
from grit_lite.sharing import share_prompts

PHASES = ("rollout", "reward", "reference", "forward", "backward", "optimizer", "other")
# The parts whose ratios are reported, and the phases they are made of.
PARTS = {
    "rollout": ("rollout",),
    "policy_pass": ("forward", "backward"),
    "reference_pass": ("reference",),
    "step": PHASES,
}
# The lines of the printed table.
LINES = {
    "rollout": ("rollout",),
    "reference pass": ("reference",),
    "policy pass": ("forward", "backward"),
    "  forward": ("forward",),
    "  backward": ("backward",),
    "reward": ("reward",),
    "optimizer": ("optimizer",),
    "other": ("other",),
    "step": PHASES,
}
CASES = [Case(1300, 160, 8), Case(700, 160, 8)]
QUICK = [Case(300, 32, 4)]


@dataclass(frozen=True)
class Side:
    """A trainer class and how it is used.

    Attributes:
        options: what its constructor takes beside what all get.
        rows: completions of a micro-batch; None for the whole group.
    """

    trainer: Callable[[], type]
    options: Mapping[str, Any]
    rows: int | None = None


SIDES = {
    "stock": Side(lambda: GRPOTrainer, {}),
    "ours": Side(lambda: share_prompts(GRPOTrainer), {}),
    # The least memory that each can do with: stock one row at a time, ours one completion at a time.
    "stock, rows of 1": Side(lambda: GRPOTrainer, {}, rows=1),
    "ours, staged": Side(lambda: share_prompts(GRPOTrainer), {"schedule": Schedule(staged=True, at_once=1)}),
}


class Step:
    """What one step did and what it took.

    Attributes:
        completions: the sampled tokens, in the order of the reward function.
        loss: of the step; with several micro-batches the sum over them.
        gradients: of the adapter, by parameter, before clipping.
        clock: the seconds of each phase, and where memory was measured, the peaks.
    """

    def __init__(self, clock: Clock) -> None:
        self.completions: list[list[int]] = []
        self.loss = 0.0
        self.gradients: dict[str, Tensor] = {}
        self.clock = clock

    def reward(self, completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        """Cheap, and different for each completion of a group."""
        self.completions += [list(ids) for ids in completion_ids]
        return [sum(ids) % 97 / 97 for ids in completion_ids]

    def keep(self, trainer: Any, loss: Tensor) -> None:
        """What a micro-batch has come to: its loss, and the gradient so far."""
        self.loss += float(loss)
        trained = [(name, weight) for name, weight in trainer.model.named_parameters() if weight.grad is not None]
        self.gradients = {name: weight.grad.clone() for name, weight in trained}


def observed(base: type, step: Step) -> type:
    """The trainer class with its methods timed, from the outside and for every base alike."""
    clock = step.clock

    class ObservedTrainer(base):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            backward = self.accelerator.backward
            self.accelerator.backward = in_phase("backward", backward)

        def _get_per_token_logps_and_entropies(self, *args: Any, **options: Any) -> Any:
            with clock.phase("forward" if torch.is_grad_enabled() else "reference"):
                return super()._get_per_token_logps_and_entropies(*args, **options)

        def training_step(self, *args: Any, **options: Any) -> Any:
            loss = super().training_step(*args, **options)
            step.keep(self, loss)
            return loss

    def in_phase(name: str, method: Callable) -> Callable:
        def run(*args: Any, **options: Any) -> Any:
            with clock.phase(name):
                return method(*args, **options)

        return run

    phases = {
        "_tokenize_prompts": "rollout",  # with the images' processing
        "_generate_single_turn": "rollout",
        "_calculate_rewards": "reward",
        "compute_loss": "forward",
    }
    for method, phase in phases.items():
        setattr(ObservedTrainer, method, in_phase(phase, getattr(base, method)))
    return ObservedTrainer


class Boundaries(TrainerCallback):
    """Where the step begins and ends, and the optimizer's part of it."""

    def __init__(self, step: Step, with_memory: bool) -> None:
        self.step, self.with_memory = step, with_memory

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        set_seed(SEED)
        if self.with_memory:
            self.step.clock.meter = Meter(self.step.clock.device)
        self.step.clock.begin("other")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step.clock.begin("optimizer")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step.clock.end()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step.clock.end()


def take_step(folder: Path, case: Case, side: Side, *, dtype: str = "auto", with_memory: bool = False) -> Step:
    """A model from the folder, a trainer on it, and its first step."""
    backend = load(folder, dtype)
    plain_attention(backend)
    step = Step(Clock(device()))
    with tempfile.TemporaryDirectory() as output:
        trainer = observed(side.trainer(), step)(
            model=backend.model,
            args=configuration(backend, case, side.rows or case.group, output),
            reward_funcs=[step.reward],
            train_dataset=dataset(case),
            processing_class=backend.processor,
            **side.options,
        )
        # TRL keeps a copy of an adapter that is already there as the reference; here it is the model without any.
        trainer.model.delete_adapter("ref")
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Boundaries(step, with_memory))
        trainer.train()
    return step


def configuration(backend: PlainBackend, case: Case, rows: int, output: str) -> GRPOConfig:
    """TRL's defaults, but for what defines the case."""
    on_cuda = device().type == "cuda"
    return GRPOConfig(
        output_dir=output,
        max_steps=1,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=case.group // rows,
        num_generations=case.group,
        max_completion_length=case.completion_tokens,
        generation_kwargs={"suppress_tokens": endless(backend)},
        beta=0.04,
        temperature=1.0,
        seed=SEED,
        bf16=on_cuda and backend.model.dtype is torch.bfloat16,
        use_cpu=not on_cuda,
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def dataset(case: Case) -> Dataset:
    request = question(case.prompt_tokens)
    turn = {"role": "user", "content": request.text}
    return Dataset.from_dict({"prompt": [[turn]], "image": [request.image]})


def check(folder: Path, case: Case) -> dict[str, float]:
    """How far apart the two are in float32, in which they must agree.

    Raises:
        Unequal: further than rounding.
    """
    stock, ours = (take_step(folder, case, SIDES[name], dtype="float32") for name in ("stock", "ours"))
    return compare(stock, ours)


def compare(stock: Step, ours: Step) -> dict[str, float]:
    same_tokens("sampled rollout", stock.completions, ours.completions)
    return {
        "loss": close("loss", stock.loss, ours.loss),
        "gradient": close_gradients(stock.gradients, ours.gradients),
    }


def greedy(folder: Path, case: Case) -> float:
    """The ratio of one greedy rollout of each side, whose tokens must be the same."""
    sides = Sides(load(folder, "float32"), case)
    stock, theirs = timed(device(), lambda: sides.stock_rollout(sides.sampling()))
    ours, mine = timed(device(), lambda: sides.our_rollout(sides.sampling()))
    same_tokens("greedy rollout", stock, ours)
    return theirs.cost / mine.cost


def measure(folder: Path, case: Case, repeats: int, with_memory: bool) -> dict[str, Any]:
    differences = check(folder, case)  # and a warm-up
    result = {
        **facts(case),
        "differences": differences,
        "greedy_rollout_ratio": greedy(folder, case),
    }
    runs = {name: lambda side=SIDES[name]: take_step(folder, case, side).clock for name in ("stock", "ours")}
    if device().type == "cuda":
        interleaved(1, runs)  # the check was in another precision
    result |= summary(interleaved(repeats, runs))
    return result | (memory(folder, case) if with_memory else {"peak_ratio": None})


def summary(clocks: Mapping[str, Sequence[Clock]]) -> dict[str, Any]:
    """Medians, and ratios of medians: how many times as long stock takes."""
    parts: dict[str, dict[str, Seconds]] = {
        side: {part: median([clock.total(*phases) for clock in runs]) for part, phases in PARTS.items()}
        for side, runs in clocks.items()
    }
    pairs = {part: (parts["stock"][part], parts["ours"][part]) for part in PARTS}
    phases = {
        side: {phase: median([clock.seconds[phase] for clock in runs]) for phase in PHASES}
        for side, runs in clocks.items()
    }
    return {
        "ratio": {part: stock.cost / ours.cost for part, (stock, ours) in pairs.items()},
        "wall_ratio": {part: stock.wall / ours.wall for part, (stock, ours) in pairs.items()},
        "seconds": {side: {name: one.cost for name, one in own.items()} for side, own in phases.items()},
        "wall_seconds": {side: {name: one.wall for name, one in own.items()} for side, own in phases.items()},
        "steps": {side: [clock.total().cost for clock in runs] for side, runs in clocks.items()},
        "wall_steps": {side: [clock.total().wall for clock in runs] for side, runs in clocks.items()},
    }


def memory(folder: Path, case: Case) -> dict[str, Any]:
    """Peaks of one step, each in a process of its own: a process keeps what an earlier step has freed."""
    peaks = {name: _in_a_process(folder, case, name) for name in SIDES}
    return {
        "peak_mib": peaks,
        "peak_ratio": peaks["ours"]["step"] / peaks["stock"]["step"],
        "peak_ratio_smallest": peaks["ours, staged"]["step"] / peaks["stock, rows of 1"]["step"],
    }


def _in_a_process(folder: Path, case: Case, side: str) -> dict[str, float]:
    numbers = map(str, (case.prompt_tokens, case.completion_tokens, case.group))
    command = [sys.executable, "-m", "benchmarks.step", "--peaks-of", side, str(folder), *numbers]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def peaks(folder: Path, case: Case, side: str) -> dict[str, float]:
    """MiB above what the process held when the step began: imports, the model, the trainer."""
    clock = take_step(folder, case, SIDES[side], with_memory=True).clock
    meter: Any = clock.meter
    by_part = {part: max(clock.peaks[phase] for phase in phases) for part, phases in PARTS.items()}
    return {**by_part, "before": meter.base / MIB}


def show(result: Mapping[str, Any]) -> Group:
    """The tables, from what the JSON holds and nothing else."""
    return Group(*(part for case in result["cases"] for part in _case_tables(case)))


def _case_tables(case: Mapping[str, Any]) -> Iterator[Table | str]:
    yield _time_table(case)
    apart = ", ".join(f"{name} {value:.0e}" for name, value in case["differences"].items())
    yield f"Same tokens, greedy and sampled; relative differences: {apart}."
    yield f"Greedy rollout (one run): {case['greedy_rollout_ratio']:.2f} times as fast."
    if case["peak_ratio"]:
        yield _memory_table(case)


def _time_table(case: Mapping[str, Any]) -> Table:
    title = f"P {case['prompt_tokens']}, C {case['completion_tokens']}, G {case['group']}"
    table = Table("phase", title=f"{title}: medians of {len(case['steps']['stock'])} steps", title_justify="left")
    for unit in ("s", "wall s"):
        for name in (f"stock, {unit}", f"ours, {unit}", "ratio"):
            table.add_column(name, justify="right")
    for name, phases in LINES.items():
        cells = []
        for clock in ("", "wall_"):
            stock, ours = (_median_of(case, clock, side, phases) for side in ("stock", "ours"))
            cells += [f"{stock:.2f}", f"{ours:.2f}", f"{stock / ours:.2f}" if ours else ""]
        table.add_row(name, *cells)
    return table


def _median_of(case: Mapping[str, Any], clock: str, side: str, phases: Sequence[str]) -> float:
    """Seconds of phases; of the whole step its own median, which is not the sum of theirs."""
    if phases == PHASES:
        return statistics.median(case[f"{clock}steps"][side])
    return sum(case[f"{clock}seconds"][side][phase] for phase in phases)


def _memory_table(case: Mapping[str, Any]) -> Table:
    table = Table("peak MiB above the loaded model", title="Memory", title_justify="left")
    parts = ("rollout", "reference_pass", "policy_pass", "step")
    for part in parts:
        table.add_column(part.replace("_", " "), justify="right")
    for name, peaks in case["peak_mib"].items():
        table.add_row(name, *(f"{peaks[part]:.0f}" for part in parts))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser("step", __doc__)
    options.add_argument("--no-memory", action="store_true", help="do not measure peaks, which takes four processes")
    options.add_argument("--peaks-of", nargs=5, help=argparse.SUPPRESS)
    chosen = options.parse_args(arguments)
    if chosen.peaks_of:
        side, folder, *numbers = chosen.peaks_of
        print(json.dumps(peaks(Path(folder), Case(*map(int, numbers)), side)))
        return 0
    repeats = chosen.repeats or (1 if chosen.quick else 5)
    cases = cases_of(chosen, QUICK if chosen.quick else CASES)
    return report(
        chosen,
        lambda folder: {"cases": [measure(folder, case, repeats, not chosen.no_memory) for case in cases]},
        show,
    )


if __name__ == "__main__":
    sys.exit(main())
