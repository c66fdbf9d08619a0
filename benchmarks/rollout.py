"""The rollout alone: G completions of one prompt, by the library's `generate` and with the prompt run and kept once.

Greedy and of exactly C tokens; and, as completions are, of different lengths.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.equality import same_tokens
from benchmarks.measure import Seconds, interleaved, median, timed
from benchmarks.setting import Case, Sides, cases_of, endless, facts, load, parser, report
from grit_lite.rollout import Sampling

CASES = [Case(*lengths) for lengths in product((300, 700, 1300), (64, 160), (4, 8))]
QUICK = [Case(300, 32, 4)]


def measure(folder: Path, case: Case, repeats: int, *, ragged: bool) -> dict[str, Any]:
    """One line of the table; a ragged one is sampled, since all greedy completions of a prompt are the same."""
    checked = Sides(load(folder, "float32"), case)
    sampling = until_ends(checked) if ragged else checked.sampling()
    stock, ours = checked.stock_rollout(sampling), checked.our_rollout(sampling)  # and a warm-up
    same_tokens(f"rollout ({case})", stock, ours)
    sides = Sides(load(folder), case)
    whole = both(sides, sampling, repeats)
    first = both(sides, sides.sampling(max_new_tokens=1), repeats)
    steps = max(map(len, ours)) - 1
    return {
        **facts(case),
        "ragged": ragged,
        "lengths": [len(tokens) for tokens in ours],
        "seconds": {name: one.cost for name, one in whole.items()},
        "wall_seconds": {name: one.wall for name, one in whole.items()},
        "prefill": {name: one.cost for name, one in first.items()},
        "token_step": {name: (whole[name].cost - first[name].cost) / steps for name in whole},
        "ratio": whole["stock"].cost / whole["ours"].cost,
        "wall_ratio": whole["stock"].wall / whole["ours"].wall,
    }


def until_ends(sides: Sides) -> Sampling:
    """Completions that end after half of C tokens, more or less: every so-manieth token is an end token."""
    config = sides.backend.model.get_base_model().config.text_config
    every = max(2, sides.case.completion_tokens // 2)
    ends = set(range(0, config.vocab_size, every)) - set(endless(sides.backend))
    return sides.sampling(temperature=1.0, end_tokens=tuple(sorted(ends)))


def both(sides: Sides, sampling: Sampling, repeats: int) -> dict[str, Seconds]:
    device = sides.backend.model.device
    runs = {"stock": partial(sides.stock_rollout, sampling), "ours": partial(sides.our_rollout, sampling)}
    times = interleaved(repeats, {name: lambda run=run: timed(device, run)[1] for name, run in runs.items()})
    return {name: median(own) for name, own in times.items()}


def show(result: Mapping[str, Any]) -> Table:
    title = "The rollout alone; the first token stands for the prefill, and the others for the decoding, step by step"
    table = Table(title=title, title_justify="left")
    for name in ("P", "C", "G", "stock, s", "ours, s", "ratio", "wall ratio"):
        table.add_column(name, justify="right")
    for name in ("prefill: stock, s", "ours, s", "ratio", "a step: stock, ms", "ours, ms", "ratio"):
        table.add_column(name, justify="right")
    for case in result["cases"]:
        table.add_row(*_cells(case))
    return table


def _cells(case: Mapping[str, Any]) -> list[str]:
    lengths, prefill, step = case["lengths"], case["prefill"], case["token_step"]
    completion = f"{min(lengths)} to {max(lengths)}" if case["ragged"] else str(case["completion_tokens"])
    numbers = [
        *(case["seconds"]["stock"], case["seconds"]["ours"], case["ratio"], case["wall_ratio"]),
        *(prefill["stock"], prefill["ours"], prefill["stock"] / prefill["ours"]),
        *(1000 * step["stock"], 1000 * step["ours"], step["stock"] / step["ours"]),
    ]
    return [str(case["prompt_tokens"]), completion, str(case["group"]), *(f"{number:.2f}" for number in numbers)]


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parser("rollout", __doc__).parse_args(arguments)
    repeats = chosen.repeats or (1 if chosen.quick else 3)
    cases = cases_of(chosen, QUICK if chosen.quick else CASES)
    lines = [(case, False) for case in cases] + [(cases[-1], True)]
    return report(
        chosen,
        lambda folder: {"cases": [measure(folder, case, repeats, ragged=ragged) for case, ragged in lines]},
        show,
    )


if __name__ == "__main__":
    sys.exit(main())
