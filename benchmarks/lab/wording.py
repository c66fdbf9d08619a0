"""Numbers and tables as the page has them, in Markdown."""

from collections.abc import Sequence

from benchmarks.lab.analysis import Interval

NOTHING = "–"
LEAST_P = 0.001


def markdown(titles: Sequence[str], lines: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A table of GitHub's Markdown; so many of its first columns are text, the others are numbers."""
    rule = ["---" if column < texts else "--:" for column in range(len(titles))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, rule, *lines))


def percent(cell: Interval) -> str:
    return f"{100 * cell.value:.1f} ({100 * cell.low:.1f}–{100 * cell.high:.1f})"


def decimals(cell: Interval) -> str:
    """Of an overlap, which is nowhere below 0 or above 1, though an interval by Student's t may be."""
    return f"{cell.value:.2f} ({max(0.0, cell.low):.2f}–{min(1.0, cell.high):.2f})"


def points(cell: Interval) -> str:
    """A difference; one of 0 without an interval is of answers of which none differs."""
    if cell.low == cell.high == 0:
        return "0.0 (none differs)"
    text = f"{100 * cell.value:+.1f} ({100 * cell.low:+.1f} … {100 * cell.high:+.1f})"
    return text.replace("-", "−")


def between(values: Sequence[float]) -> str:
    """The least and the most of them, or the one that they all are."""
    low, high = (f"{value:.1f}" if value % 1 else f"{value:.0f}" for value in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"


def p_value(p: float) -> str:
    return f"{p:.3f}" if p >= LEAST_P else f"< {LEAST_P}"
