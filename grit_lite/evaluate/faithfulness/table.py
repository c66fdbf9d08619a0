"""Faithfulness in a terminal of 80 columns."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from grit_lite.answer import plain
from grit_lite.pages.faithfulness import lines, sentences


def table(result: Mapping[str, Any]) -> Table:
    """What `examine` returns, each number over its 95 % interval."""
    title = f"{plain(result['benchmark'])}: does the answer of {plain(result['system'])} depend on its boxes?"
    grid = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD)
    grid.caption, grid.caption_justify = escape(plain("\n".join(sentences(result)))), "left"
    grid.add_column("", overflow="fold")
    for heading in ("n", "right", "another\nanswer", "above\ncontrol"):
        grid.add_column(heading, justify="right")
    for line in lines(result):
        numbers = (line.right, line.flipped, line.effect)
        cells = (f"{value}\n[dim]{interval.replace(' ', '')}[/]" for value, interval in numbers)
        grid.add_row(escape(plain(line.label)), str(line.n), *cells)
    return grid
