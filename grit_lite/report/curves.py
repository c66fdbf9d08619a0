"""The curves of a run: every column of its metrics as SVG path data with round ticks. The template draws them."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

CURVE_POINTS = 400
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 320.0, 176.0, 38.0, 8.0, 8.0, 22.0  # SVG units

_TITLES = {
    "reward": ("Total reward", "mean over the completions of a step"),
    "groups_that_teach": ("Groups that teach", "share of groups with differing rewards"),
    "valid_format": ("Valid format", "share of completions with every tag in its place"),
    "completion_tokens": ("Completion length", "tokens, mean"),
    "kl": ("KL to the base", "per token, k3 estimate"),
    "sampler_gap": ("Gap to the sampler", "nats a token between the trainer and vLLM, before the loss is corrected"),
    "loss": ("Loss", "its level says little in GRPO; its jumps say something"),
    "grad_norm": ("Gradient norm", "before clipping"),
    "lr": ("Learning rate", ""),
}
_SHARES = ("groups_that_teach", "valid_format")


@dataclass(frozen=True)
class Curve:
    """A curve in SVG units: path data, ticks as (place, label), and the means of its first and last tenth."""

    title: str
    note: str
    raw: str
    smooth: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    start: str
    end: str


def curves(metrics: Sequence[Row]) -> dict[str, list[Curve]]:
    """A curve for every column of the metrics that holds numbers: rewards first, then the rest of the training."""
    columns = list(dict.fromkeys(name for row in metrics for name in row if name != "step"))
    drawn = {name: curve for name in columns if (curve := _curve(name, metrics)) is not None}
    reward = [name for name in drawn if name == "reward" or name.startswith("reward/")]
    order = [name for name in _TITLES if name in drawn and name not in reward]
    order += [name for name in drawn if name not in order and name not in reward]
    return {"reward": [drawn[name] for name in reward], "training": [drawn[name] for name in order]}


def _curve(name: str, metrics: Sequence[Row]) -> Curve | None:
    points = _thinned([(row["step"], _finite(row.get(name))) for row in metrics])
    values = [value for _, value in points if value is not None]
    if not values or (name == "lr" and min(values) == max(values)):  # a constant rate is a setting, not a curve
        return None
    low, high = (0.0, 1.0) if name in _SHARES else _range(values)
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)

    def place(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        y = TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return x, y

    title, note = _TITLES.get(name, (name.removeprefix("reward/"), ""))
    start, end = start_and_end(values) or (0.0, 0.0)
    return Curve(
        title=title,
        note=note,
        raw=_path([None if value is None else place(step, value) for step, value in points]),
        smooth=_path([None if value is None else place(step, value) for step, value in _smoothed(points)]),
        x_ticks=[(place(tick, low)[0], f"{tick:g}") for tick in ticks(first, last, 5) if tick == round(tick)],
        y_ticks=[(place(first, tick)[1], f"{tick:g}".replace("-", "−")) for tick in ticks(low, high, 4)],
        start=f"{start:.3g}".replace("-", "−"),
        end=f"{end:.3g}".replace("-", "−"),
    )


Points = Sequence[tuple[float, float | None]]


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From zero, or the lowest if that is negative, to the highest, with a little room; never empty."""
    low, high = min(0.0, *values), max(0.0, *values)
    room = 0.05 * (high - low)
    return (low - room if low else 0.0), (high + room if high or low else 1.0)


def _thinned(points: Points) -> Points:
    """At most `CURVE_POINTS` points: the mean of each stretch of steps."""
    length = math.ceil(len(points) / CURVE_POINTS) or 1
    stretches = [points[start : start + length] for start in range(0, len(points), length)]
    return [(stretch[0][0], _mean([value for _, value in stretch])) for stretch in stretches]


def _smoothed(points: Points) -> Points:
    """A running mean over about a tenth of the points; nothing where there are too few to smooth."""
    reach = len(points) // 20
    if reach == 0:
        return []
    windows = [points[max(0, i - reach) : i + reach + 1] for i in range(len(points))]
    return [(step, _mean([v for _, v in window])) for (step, _), window in zip(points, windows, strict=True)]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _path(places: Sequence[tuple[float, float] | None]) -> str:
    """SVG path data that lifts the pen at a gap; a point alone becomes a dot."""
    pieces, pen_down = [], False
    for place in places:
        if place is not None:
            x, y = place
            pieces.append(f"L{x:.1f} {y:.1f}" if pen_down else f"M{x:.1f} {y:.1f}h0")
        pen_down = place is not None
    return "".join(pieces)


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) from low to high."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough * 0.999)
    return [round(index * step, 12) for index in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def start_and_end(values: Sequence[float | None]) -> tuple[float, float] | None:
    """The means of the first and of the last tenth of the known values."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    tenth = max(1, len(known) // 10)
    return (statistics.fmean(known[:tenth]), statistics.fmean(known[-tenth:])) if known else None
