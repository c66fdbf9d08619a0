"""What a model of real size costs on this card: whole GRPO steps of stock TRL, stock Unsloth and ours.

The models have published shapes, random weights, and are loaded in 4 bits; `miniature` is a tiny one in float32, for
machines without a GPU. Each side runs in a process of its own: same weights, adapter, prompts and lengths.
"""

import argparse
import json
import multiprocessing
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from benchmarks.card_side import SIDES, Job
from benchmarks.measure import circumstances
from benchmarks.models import save_published, save_random
from benchmarks.setting import FAMILY, Case, cases_of, common_parser

SHAPES = {
    "miniature": "",
    "qwen2_5-vl-3b": "Qwen/Qwen2.5-VL-3B-Instruct",
    "qwen2_5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen3-vl-2b": "Qwen/Qwen3-VL-2B-Instruct",
    "qwen3-vl-4b": "Qwen/Qwen3-VL-4B-Instruct",
    "qwen3-vl-8b": "Qwen/Qwen3-VL-8B-Instruct",
}
CASES = [Case(1300, 160, 8)]
QUICK = [Case(60, 6, 4)]
TOLERANCE = 0.1  # nats; see README.md
WHOLE = ("loading", "rollout")  # phases that a smaller micro-batch does not make smaller
_ROOT = Path(__file__).parents[1]


def model_folder(shape: str, folder: Path) -> Path:
    """The random model of a shape, made where it is missing."""
    model = folder / shape / "model"
    if not (model / "preprocessor_config.json").exists() and not (model / "processor_config.json").exists():
        if shape == "miniature":
            return save_random(model, FAMILY, "miniature")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:  # which gives the GPU back
            other.submit(save_published, model, SHAPES[shape]).result()
    return model


def job_for(side: str, shape: str, case: Case, folder: Path, options: argparse.Namespace) -> Job:
    miniature = shape == "miniature"
    return Job(
        side=side,
        folder=str(model_folder(shape, folder)),
        dtype="float32" if miniature else "auto",
        load_in_4bit=not miniature,
        prompt_tokens=case.prompt_tokens,
        completion_tokens=case.completion_tokens,
        group=case.group,
        prompts=options.prompts,
        rows=options.prompts * case.group,
        repeats=options.repeats or (1 if options.quick else 3),
        tolerance=options.tolerance,
        card_gib=options.card_gib,
        answers="",
        is_reference=False,
    )


def micro_batches(total: int) -> list[int]:
    """Divisors of a step's completions, each at most half of the one before."""
    sizes = [total]
    while sizes[-1] > 1:
        sizes.append(next(rows for rows in range(sizes[-1] // 2, 0, -1) if total % rows == 0))
    return sizes


def fitting(job: Job, folder: Path) -> dict[str, Any]:
    """What became of the side with the largest micro-batch that fits, and where memory ran out with larger ones."""
    too_large: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    for rows in micro_batches(job.total):
        result = in_a_process(replace(job, rows=rows), folder / f"{job.side}-{rows}.json")
        if result["status"] != "out of memory":
            break
        too_large.append({"rows": rows, "phase": result["phase"]})
        if result["phase"] in WHOLE:
            break
    return {**result, "too_large": too_large}


def in_a_process(job: Job, path: Path) -> dict[str, Any]:
    """What became of it; the same as before if the folder knows the very same job, and it did not fail."""
    written, log = path.with_suffix(".result.json"), path.with_suffix(".log")
    if path.exists() and written.exists() and json.loads(path.read_text()) == asdict(job):
        known = json.loads(written.read_text())
        if known["status"] != "failed":
            return known
    written.unlink(missing_ok=True)
    job.save(path)
    with log.open("w") as output:
        command = [sys.executable, "-m", "benchmarks.card_side", str(path)]
        # Everything is in the folder; without a network Unsloth would otherwise wait for the hub.
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        ended = subprocess.run(command, cwd=_ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    if written.exists():
        return json.loads(written.read_text())
    last = log.read_text().splitlines()[-1:]
    return {"status": "failed", "reason": f"it ended with {ended.returncode}: {''.join(last)} (all of it: {log})"}


def measure(shape: str, case: Case, folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The case as the JSON states it, again and again as its sides get done."""
    work = folder / shape / str(case).replace(", ", "-").replace(" ", "")
    work.mkdir(parents=True, exist_ok=True)
    done: dict[str, Any] = {}
    facts = {"shape": shape, **asdict(case), "prompts": options.prompts, "tolerance": options.tolerance}
    reference = None
    for side in [side for side in SIDES if side in options.sides]:
        job = job_for(side, shape, case, folder, options)
        answers = str(work / f"{reference or side}.answers")
        done[side] = fitting(replace(job, answers=answers, is_reference=reference is None), work)
        if reference is None and done[side]["status"] == "timed":
            reference = side
        yield facts | {"reference": reference, "sides": done, "ratio": ratios(done)}


def ratios(sides: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By stock side, how many times as long as each other side it takes for a step."""
    steps = {side: result["seconds"]["step"] for side, result in sides.items() if result["status"] == "timed"}
    stock = [side for side in steps if not SIDES[side].shared]
    return {one: {side: steps[one] / own for side, own in steps.items()} for one in stock}


def show(case: Mapping[str, Any]) -> Group:
    """The tables of one case, from what the JSON holds and nothing else."""
    sides = case["sides"]
    timed = {side: result for side, result in sides.items() if result["status"] == "timed"}
    notes = [Text(_note(side, result, case)) for side, result in sides.items()]  # no markup: messages of libraries
    return Group(_time_table(case, timed), _memory_table(timed), *notes, "") if timed else Group(*notes, "")


def _time_table(case: Mapping[str, Any], timed: Mapping[str, Any]) -> Table:
    lengths = f"P {case['prompt_tokens']}, C {case['completion_tokens']}, G {case['group']}"
    steps = len(next(iter(timed.values()))["steps"])
    title = f"{case['shape']}: {case['prompts']} × {lengths}; seconds, medians of {steps} steps"
    table = Table("side", title=title, title_justify="left")
    names = ("micro-batch", "rollout", "tokens / s", "reference pass", "policy pass", "rest", "step")
    for name in (*names, *(f"{stock} / it" for stock in case["ratio"])):
        table.add_column(name, justify="right")
    tokens = case["prompts"] * case["group"] * case["completion_tokens"]
    for side, result in timed.items():
        seconds = result["seconds"]
        parts = [seconds[part] for part in ("rollout", "reference_pass", "policy_pass")]
        rest = sum(seconds[phase] for phase in ("reward", "optimizer", "other"))
        numbers = [parts[0], *parts[1:], rest, seconds["step"]]
        cells = [f"{number:.2f}" for number in numbers]
        cells.insert(1, f"{tokens / parts[0]:.0f}")
        table.add_row(side, str(result["rows"]), *cells, *(f"{own[side]:.2f}" for own in case["ratio"].values()))
    return table


def _memory_table(timed: Mapping[str, Any]) -> Table:
    title = "Memory, MiB: of the process, then above the loaded model; estimates are those of grit_lite.memory"
    table = Table("side", title=title, title_justify="left")
    estimated = ("peak", "rollout", "policy_pass")
    for name in ("loaded", "peak", "estimate", "reserved", "rollout", "estimate", "policy pass", "estimate"):
        table.add_column(name, justify="right")
    table.add_column("reference pass", justify="right")
    for side, result in timed.items():
        memory = result["memory"]
        peak, rollout, update = ((memory[name], result["estimate"][name]) for name in estimated)
        values = [memory["loaded"], *peak, memory["reserved"], *rollout, *update, memory["reference_pass"]]
        table.add_row(side, *("" if value is None else f"{value:.0f}" for value in values))
    return table


def _note(side: str, result: Mapping[str, Any], case: Mapping[str, Any]) -> str:
    """What the tables do not say of a side."""
    tried = "".join(f" Out of memory in the {one['phase']} with {one['rows']} rows." for one in result["too_large"])
    if result["status"] == "out of memory":
        return f"{side}: out of memory.{tried}"
    if result["status"] != "timed":
        return f"{side}: {result['status']}, so not timed. {result['reason']}"
    if result["differences"] is None:
        return f"{side}: what the others are compared with.{tried}"
    differences = ", ".join(f"{name} {value:.1e}" for name, value in result["differences"].items())
    return f"{side}: differs from {case['reference']} by: {differences} ({result['facts']['autocast']}).{tried}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    options = common_parser("card", __doc__)
    options.add_argument("--shapes", nargs="+", choices=SHAPES, metavar="SHAPE", help=", ".join(SHAPES))
    options.add_argument("--sides", nargs="+", choices=SIDES, metavar="SIDE", help=", ".join(SIDES))
    options.add_argument("--prompts", type=int, default=1, help="distinct prompts of a step")
    options.add_argument("--folder", type=Path, help="keep models and results there, and run nothing that it has")
    options.add_argument("--card-gib", type=float, help="imitate a card with so much memory")
    options.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help="nats between log-probabilities that are not in float32"
    )
    chosen = options.parse_args(arguments)
    on_cuda = torch.cuda.is_available()
    if chosen.card_gib and not on_cuda:
        options.error("--card-gib: there is no card here")
    chosen.shapes = chosen.shapes or (["qwen2_5-vl-3b"] if on_cuda else ["miniature"])
    chosen.sides = chosen.sides or [side for side in SIDES if on_cuda or SIDES[side].backend == "plain"]
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parse(arguments)
    console = Console(width=None if Console().is_terminal else 160, record=True)
    command = shlex.join(["python", "-m", "benchmarks.card", *(sys.argv[1:] if arguments is None else arguments)])
    result: dict[str, Any] = {"equal": True, "cases": [], "command": command, **circumstances("random, by shape")}
    console.print(*(f"{key}: {result[key]}" for key in ("command", *circumstances(""))), sep="\n", markup=False)
    with nullcontext(chosen.folder) if chosen.folder else tempfile.TemporaryDirectory() as folder:
        for shape in chosen.shapes:
            for case in cases_of(chosen, QUICK if chosen.quick else CASES):
                _run(shape, case, Path(folder).resolve(), chosen, result)
                console.print(show(result["cases"][-1]))
    if chosen.json:
        chosen.json.with_suffix(".txt").write_text(console.export_text())
    return 0 if result["equal"] and not _failed(result) else 1


def _run(shape: str, case: Case, folder: Path, chosen: argparse.Namespace, result: dict[str, Any]) -> None:
    """Adds the case to the result, and writes it side by side, so that a run that is cut short leaves what it had."""
    cases = result["cases"]
    for known in measure(shape, case, folder, chosen):
        result["cases"] = [*cases, known]
        result["equal"] &= all(side["status"] != "not equal" for side in known["sides"].values())
        side, outcome = list(known["sides"].items())[-1]
        print(f"{shape}, {case}: {side} is {outcome['status']}", file=sys.stderr, flush=True)
        if chosen.json:
            chosen.json.write_text(json.dumps(result, indent=1) + "\n")


def _failed(result: Mapping[str, Any]) -> bool:
    return any(side["status"] == "failed" for case in result["cases"] for side in case["sides"].values())


if __name__ == "__main__":
    sys.exit(main())
