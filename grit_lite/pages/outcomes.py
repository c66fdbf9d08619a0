"""What became of a question between two systems, and which questions stand for the others."""

import random
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from grit_lite.pages.table import SYSTEMS

OUTCOMES = ("fixed", "broken", "both_wrong", "both_right")
EXAMPLE_SEED = 0


def outcome(case: Mapping[str, Mapping[str, Any]]) -> str:
    """One of `OUTCOMES` for the rows of one question by system: the last one, and what it is `held_against`."""
    systems, rows = list(case), list(case.values())
    before = rows[held_against(systems)] if len(systems) > 1 else {"correct": False}
    after = rows[-1]
    return {
        (False, True): "fixed",
        (True, False): "broken",
        (False, False): "both_wrong",
        (True, True): "both_right",
    }[bool(before["correct"]), bool(after["correct"])]


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
