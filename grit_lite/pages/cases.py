"""The rows of an evaluation by what was asked: a question, and which time it was asked."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

Row = Mapping[str, Any]


class Asked(NamedTuple):
    """A question by its id, and the number of its draw, from 0."""

    id: str
    draw: int


def together(rows: Iterable[Row]) -> dict[Asked, dict[str, Row]]:
    """The rows of each draw of each question by system; in the order of the file."""
    cases: dict[Asked, dict[str, Row]] = {}
    for row in rows:
        draw = row.get("draw")
        asked = Asked(str(row.get("id")), draw if isinstance(draw, int) else 0)
        cases.setdefault(asked, {})[str(row.get("system"))] = row
    return cases
