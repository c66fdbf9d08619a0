"""The page's figures, as SVG on a white card, which reads in a light page and in a dark one.

Colours are those of Okabe and Ito, which stay apart for every kind of colour vision; no figure says anything by colour
alone.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.lab.analysis import Interval, Results
from benchmarks.lab.measuring import SAMPLED
from benchmarks.lab.study import ASKED, DEFAULT, DIRECT, DRAWN, Study

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, RED, PINK = "#0072B2", "#D55E00", "#CC79A7"
GREY = "#767676"
_CONDITIONS = {
    "unchanged": "as asked",
    "mask_random": "other places\npainted over",
    "mask_predicted": "its boxes\npainted over",
    "wrong_boxes": "wrong boxes\nin the chain",
    "swapped_boxes": "boxes swapped\nin the chain",
}
_LINES = ((SKY, "-"), (BLACK, "-"), (RED, "--"), (GREEN, ":"), (PINK, "-."))
_SHOWN: Mapping[str, tuple[str, Sequence[str]]] = {
    "relation, right in %": ("correct", ["relation"]),
    "count, right in %": ("correct", ["count"]),
    "samples of valid format in %": ("valid_format", list(SAMPLED)),
}
_FAITHFUL = {"default/tiny": ("GRPO-GR", BLUE, ""), "fine-tuning/chains": ("supervised fine-tuning", ORANGE, "//")}
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "lab",  # the same rows give the same file
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "legend.frameon": False,
}


def write_figures(results: Results, study: Study, folder: Path) -> dict[str, Path]:
    """The figures that the rows allow, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {"curves": curves, "triplets": triplets, "arms": arms, "faithfulness": faithfulness}
    paths = {}
    for name, draw in drawn.items():
        with mpl.rc_context(_STYLE):
            figure = draw(results, study)
            if figure is not None:
                paths[name] = folder / f"{name}.svg"
                figure.savefig(paths[name], format="svg", metadata={"Date": None}, bbox_inches="tight")
    return paths


def by_count(results: Results, study: Study) -> dict[int, str]:
    """The arms of nothing but triplets that each seed draws, by the number of them."""
    drawn = [arm for arm in study.arms() if arm.settings.keys() == {"triplets", "data"} and arm.id in results.rows]
    counts = {arm.settings["triplets"]: arm.id for arm in drawn if arm.settings["data"] == DRAWN}
    return dict(sorted(counts.items()))


def curves(results: Results, study: Study) -> Figure | None:
    """Reward and form over the steps, by the number of triplets: each seed thin, their mean thick."""
    counts = by_count(results, study)
    if not counts:
        return None
    figure = Figure(figsize=(8, 3))
    titles = {"reward": "Mean reward of a step", "valid_format": "Completions of valid format"}
    for axes, (measure, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for (count, arm), (colour, dash) in zip(counts.items(), itertools.cycle(_LINES)):
            rows = [row["train"]["curve"] for row in results.rows[arm]]
            for curve in rows:
                axes.plot(curve["step"], curve[measure], color=colour, alpha=0.25, linewidth=0.7)
            length = min(len(curve["step"]) for curve in rows)
            mean = np.mean([curve[measure][:length] for curve in rows], axis=0)
            label = f"{count} triplets"
            axes.plot(rows[0]["step"][:length], mean, color=colour, linestyle=dash, linewidth=2, label=label)
        axes.set(title=title, xlabel="step", ylim=(0, None))
    figure.axes[0].legend()
    return figure


def triplets(results: Results, study: Study) -> Figure | None:
    """Answers against the number of triplets, above what the untrained model can do."""
    counts = by_count(results, study)
    if not counts:
        return None
    figure = Figure(figsize=(8, 3))
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), ("relation", "count"), strict=True):
        found = [results.values(arm, "correct", [kind]) for arm in counts.values()]
        cells = [values.interval() for values in found]
        means = [100 * cell.value for cell in cells]
        axes.errorbar(list(counts), means, _spread(cells), color=BLUE, marker="D", markersize=5, capsize=3)
        for count, values in zip(counts, found, strict=True):
            axes.plot([count] * len(values.table), 100 * values.by_seed, "o", color=GREY, markersize=3, alpha=0.6)
        _floor(axes, results, kind)
        axes.set_xscale("log")
        axes.set_xticks(list(counts), [str(count) for count in counts])
        axes.minorticks_off()
        axes.set(title=f"{kind} questions, right answers in %", xlabel="triplets", ylim=(0, 102))
        axes.legend(loc="lower center", fontsize=8)
    return figure


def arms(results: Results, study: Study) -> Figure | None:
    """Every trained arm, group under group, beside the default arm: greedy answers, and the form of samples."""
    listed = [arm.id for arm in study.arms() if arm.id in results.rows and arm.method not in ASKED]
    if DEFAULT not in results.rows or len(listed) < 2:
        return None
    figure = Figure(figsize=(9, 0.6 + 0.24 * len(listed)))
    places = -np.arange(len(listed))
    for axes, (title, of) in zip(figure.subplots(1, 3, sharey=True), _SHOWN.items(), strict=True):
        found = [results.values(arm, *of).interval() for arm in listed]
        default = results.values(DEFAULT, *of).interval()
        axes.axvspan(100 * default.low, 100 * default.high, color=SKY, alpha=0.25, linewidth=0)
        axes.axvline(100 * default.value, color=BLUE, linewidth=1)
        for place, arm, cell in zip(places, listed, found, strict=True):
            if of[0] == "valid_format" and results.method(arm) in DIRECT:
                continue  # it is not asked for the form
            colour, marker = (BLUE, "D") if arm == DEFAULT else (BLACK, "o")
            axes.plot([100 * cell.low, 100 * cell.high], [place, place], color=colour, linewidth=1.2)
            axes.plot(100 * cell.value, place, color=colour, marker=marker, markersize=4)
        axes.set(title=title)
        axes.set_yticks(places, listed)
        axes.grid(axis="x", color="#e5e5e5", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure


def faithfulness(results: Results, study: Study) -> Figure | None:
    """Answers about relations with the boxes taken away or made wrong: reinforced, and fine-tuned beside it."""
    shown = {arm: style for arm, style in _FAITHFUL.items() if arm in results.rows}
    if not shown:
        return None
    figure = Figure(figsize=(8, 3))
    axes = figure.subplots()
    width = 0.8 / len(shown)
    for number, (arm, (label, colour, hatch)) in enumerate(shown.items()):
        cells = [results.faithful(arm, condition).interval() for condition in _CONDITIONS]
        places = np.arange(len(cells)) + (number - (len(shown) - 1) / 2) * width
        heights = [100 * cell.value for cell in cells]
        axes.bar(places, heights, 0.92 * width, color=colour, hatch=hatch, edgecolor="white", label=label)
        axes.errorbar(places, heights, _spread(cells), fmt="none", ecolor=BLACK, elinewidth=1, capsize=2)
    _floor(axes, results, "relation")
    axes.set_xticks(range(len(_CONDITIONS)), list(_CONDITIONS.values()))
    axes.set(title="relation questions, right answers in %", ylim=(0, 102))
    axes.legend(loc="upper right")
    return figure


def _floor(axes: Any, results: Results, kind: str) -> None:
    """A dashed line at what the untrained model reaches with its best prompt."""
    if not results.untrained():
        return
    best = results.best_untrained(kind)
    value = 100 * results.values(best, "correct_lenient", [kind]).mean
    label = f"untrained at its best ({results.method(best)}): {value:.0f} %"
    axes.axhline(value, color=RED, linestyle="--", linewidth=1, label=label)


def _spread(cells: Iterable[Interval]) -> np.ndarray:
    """(2, cells) in percent: how far each interval reaches below and above its value."""
    return 100 * np.array([(cell.value - cell.low, cell.high - cell.value) for cell in cells]).T
