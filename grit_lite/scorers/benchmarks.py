"""The rules of particular benchmarks: MathVista, ChartQA, GQA, SLAKE, and boxes for referring expressions."""

import math
import re
from collections.abc import Mapping
from string import punctuation
from typing import Any

from grit_lite.answer import parse
from grit_lite.boxes import iou
from grit_lite.scorers.rules import NOTHING, choice, number, phrase, read_number, rule_for, says
from grit_lite.scorers.wording import unified

SAME_BOX = 0.5  # IoU from which on a box is the one referred to
RELAXED = 0.05  # share of the gold number by which a number may be off
_SEPARATOR = re.compile(r"[,;\n]|\band\b")
_QUOTES = "[](){}\"' \n\t"
_NO_PUNCTUATION = str.maketrans("", "", punctuation)


def exact(predicted: str | None, gold: str) -> float:
    """1.0 if both are the same but for case, ASCII punctuation and blanks: exact match, as reported for GQA."""
    said = _plain(predicted)
    return float(bool(said) and said == _plain(gold))


def _plain(text: str | None) -> str:
    return " ".join(unified(text).translate(_NO_PUNCTUATION).split())


def relaxed(predicted: str | None, gold: str) -> float:
    """ChartQA's relaxed accuracy (arXiv 2203.10244, section 5.1): a number may be off by 5 % of the gold one, a
    year too; anything else has to match exactly.

    A number with "%" is a hundredth of one without, as in the released scorers. Around a gold of 0 nothing is near.
    """
    if rule_for(gold) != "number":
        return exact(predicted, gold)
    said, right = _hundredths(predicted), _hundredths(gold)
    if said is None or right is None:
        return 0.0
    return float(abs(said - right) <= RELAXED * abs(right) * (1 + 1e-9))


def _hundredths(text: str | None) -> float | None:
    value = read_number(text)
    return value / 100 if value is not None and "%" in unified(text) else value


def mathvista(predicted: str | None, gold: str, facts: Mapping[str, Any] = NOTHING) -> float:
    """MathVista by the type of the answer (arXiv 2310.02255): equality after normalising, on one answer or none.

    Args:
        gold: the option's text where there are `choices`, else the value.
        facts: `choices`; or `answer_type`, one of "integer", "float" (equal at `precision` decimals), "list" and
            "text".

    Two differences to the released scorer: an answer that is no option is wrong, where theirs takes the option with
    the nearest spelling, even for an empty answer; and 3.7 is no right integer for 3, where theirs cuts decimals off.
    """
    choices = facts.get("choices") or ()
    if choices:
        place = list(choices).index(gold) if gold in choices else None
        return choice(predicted, gold if place is None else chr(ord("A") + place), facts)
    match facts.get("answer_type"):
        case "integer":
            return number(predicted, gold)
        case "float":
            return _equal_at(facts.get("precision"), read_number(predicted), read_number(gold))
        case "list":
            return float(bool(unified(predicted)) and _same_items(_items(predicted), _items(gold)))
    return float(says(predicted, gold))


def _equal_at(precision: float | str | None, said: float | None, right: float | None) -> float:
    if said is None or right is None:
        return 0.0
    decimals = None if precision is None else int(float(precision))
    return float(said == right if decimals is None else round(said, decimals) == round(right, decimals))


def _items(text: str | None) -> list[str]:
    items = (item.strip(_QUOTES) for item in _SEPARATOR.split(unified(text)))
    return [item for item in items if item]


def _same_items(said: list[str], right: list[str]) -> bool:
    return len(said) == len(right) and all(says(ours, theirs) for ours, theirs in zip(said, right, strict=True))


def slake(predicted: str | None, gold: str) -> float:
    """SLAKE (arXiv 2102.09542), OPEN and CLOSED rows alike: the gold answer decides how it is read, and a gold that
    lists several findings ("Liver, Spleen") wants all of them and no other, in any order. Which of the two a row is
    only says where it is reported."""
    findings = _items(gold)
    if len(findings) < 2:
        return float(says(predicted, gold))
    said = _items(predicted)
    if len(said) != len(findings):
        return 0.0
    return float(all(any(phrase(ours, theirs) for ours in said) for theirs in findings))


def box(predicted: str | None, gold: str, facts: Mapping[str, Any] = NOTHING) -> float:
    """1.0 if the box overlaps the gold one by an IoU of at least 0.5: Acc@0.5 of referring expressions.

    Args:
        predicted: an answer whose first box counts, in pixels of the image, unless `facts` has the box. No answer is
            wrong, whatever was boxed on the way.
        gold: "[x1, y1, x2, y2]", in pixels of the image.
        facts: `box`: four numbers in pixels of the image, or None if the model wrote none; see
            `evaluate.grounding.referred_box`.
    """
    said = facts["box"] if "box" in facts else _first_box(predicted)
    right = _first_box(gold)
    if predicted is None or said is None or right is None or not all(math.isfinite(value) for value in said):
        return 0.0
    return float(iou(said, right) >= SAME_BOX)


def _first_box(text: str | None) -> tuple[float, ...] | None:
    return next(iter(parse(text or "").boxes), None)
