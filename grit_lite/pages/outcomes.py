"""What became of a question between two systems, and which questions stand for the others."""

import random
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from grit_lite.pages.table import SYSTEMS

OUTCOMES = ("fixed", "broken", "both_wrong", "both_right", "not_scored")
EXAMPLE_SEED = 0


def outcome(case: Mapping[str, Mapping[str, Any]]) -> str:
    """One of `OUTCOMES` for the rows of one question by system: the last one, and what it is `held_against`.

    Where one of the two was not scored, nothing is known of either: it is neither fixed nor broken.
    """
    systems, rows = list(case), list(case.values())
    before = rows[held_against(systems)] if len(systems) > 1 else {"correct": False}
    after = rows[-1]
    if is_right(before) is None or is_right(after) is None:
        return "not_scored"
    return {
        (False, True): "fixed",
        (True, False): "broken",
        (False, False): "both_wrong",
        (True, True): "both_right",
    }[bool(is_right(before)), bool(is_right(after))]


def is_right(row: Mapping[str, Any]) -> bool | None:
    """Whether a row is right; None where nobody scored it."""
    unscored = row.get("correct") is None or ("score" in row and row["score"] is None)
    return None if unscored else bool(row["correct"])


def held_against(systems: Sequence[str]) -> int:
    """The place of what the last system is held against: another run where there is one, else the first system."""
    return next((place for place, name in enumerate(systems[:-1]) if name not in SYSTEMS), 0)


def examples(outcomes: Sequence[str], count: int) -> list[int]:
    """Indices of up to `count` questions, drawn with a fixed seed from each of `OUTCOMES` in turn while they last."""
    order = list(range(len(outcomes)))
    random.Random(EXAMPLE_SEED).shuffle(order)
    piles = [[index for index in order if outcomes[index] == kind] for kind in OUTCOMES]
    turns = (pile[turn] for turn in range(len(order)) for pile in piles if turn < len(pile))
    return list(islice(turns, count))
