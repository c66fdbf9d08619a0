"""What a judge's reply states: one score, or nothing.

A reply is asked for as one JSON object, and servers that take a schema send nothing else. Others send what their model
writes: fenced, thought over, cut off, explained. An abstention costs another request; a number that stood in somebody's
reasoning is a wrong verdict. So an object counts only whole, and prose only where its last line is such a statement
as nobody writes about a score that they do not give.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

READER = 2  # raised whenever a reply may be read as something else than before: old verdicts are not served then
MAX_CHARS = 10_000  # of a reply, without what it thought first


def stated_score(reply: str, highest: int) -> float | None:
    """The one score that a reply states plainly, if it lies in [0, highest]; else None.

    That is `score` of a JSON object that is whole, where there is an object; the number of "Score: 4" or of the like in
    the last line, where no other line states another one; or a number alone. A score out of a number ("10/10", "1 of
    10", "100%"), of another scale ("Score (0-10): 5"), or on a condition ("1 if …") is none.

    Linear in the length of the reply.
    """
    found = _score(reply, highest)
    return found if found is not None and 0 <= found <= highest else None


def stated_choice(reply: str, name: str, choices: Sequence[str]) -> str | None:
    """The one of a few capital letters that a reply states plainly, as `stated_score` states a number; else None.

    That is `name` of a JSON object, or the last line where it is the letter alone, or "Picture: B" for the name.
    """
    text = what_is_said(reply)
    if text is None:
        return None
    if (whole := object_in(text)) is not None:
        value = value_in(whole, name)
        return value if value in choices else None
    lines = [" ".join(_MARKUP.sub(" ", line).split()).lower() for line in text.splitlines() if line.strip("` \t")]
    lead = rf"(?:(?:so|thus|therefore|the|my|final)[ ,:]+)*(?:(?:{name}|answer)(?: is)?)?[ :]*"
    letter = rf"(?:{lead})?[(]?([a-z])[)]?[.!]?"
    stated = [found[1].upper() if (found := re.fullmatch(letter, line)) else None for line in lines]
    return stated[-1] if stated and {*stated} - {None} == {stated[-1]} and stated[-1] in choices else None


def _score(reply: str, highest: int) -> float | None:
    text = what_is_said(reply)
    if text is None:
        return None
    if (whole := object_in(text)) is not None:
        return _as_number(value_in(whole, "score"))
    stated = [_in_prose(line, highest) for line in text.splitlines() if line.strip("` \t")]
    if len(stated) == 1 and stated[0] is None and (bare := _BARE.fullmatch(text)):
        return float(bare[1])
    return stated[-1] if stated and {*stated} - {None} == {stated[-1]} else None


def what_is_said(reply: str) -> str | None:
    """A reply without what was thought first; None where the thought has no end, or the rest is too long to be one."""
    text = reply.strip()
    if not text.startswith("{"):  # which may hold any words
        text = text.rpartition("</think>")[2].strip()
        if "<think>" in text:
            return None
    return text if len(text) <= MAX_CHARS else None


def object_in(text: str) -> str | None:
    """The JSON object that is meant to be a reply, or the end of it: from the first line that begins with `{` on.

    It may be no object at all, cut off or followed by something; None where no line begins so.
    """
    if not text.startswith("{"):
        text = re.sub(r"```(?:json)?", "\n", text)
    begins = re.search(r"^[ \t]*\{", text, re.MULTILINE)
    return text[begins.end() - 1 :].strip() if begins else None


def value_in(text: str, name: str) -> Any:
    """What a JSON object has under a name, in whatever letters; None where it is not whole, or has none or several."""
    if short := re.fullmatch(r"\{\s*([a-z]+)\s*:\s*([^\s{}\"]+)\s*\}", text, re.IGNORECASE):  # GRIT's prompt asks so
        return short[2] if short[1].lower() == name else None
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError):
        return None
    found = [value for key, value in pairs if key.lower() == name]
    return found[0] if len(found) == 1 else None


def _as_number(value: Any) -> float | None:
    """A number, or one in quotes."""
    if isinstance(value, str) and (bare := _NUMBER.fullmatch(value)):
        return float(bare[0])
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


_DIGITS = r"-?[0-9]{1,6}(?:\.[0-9]{1,6})?"
_NUMBER = re.compile(_DIGITS)
_BARE = re.compile(rf"[\s*_`(\[]*({_DIGITS})[\s*_`)\].]*")
_MARKUP = re.compile(r"[*_`#>\"'“”]+|^[-•\s]+")

_LEAD = (
    r"(?:(?:so|thus|therefore|hence|and|the|a|an|my|its|final|overall|i|give|it|this|answer|gets|has|deserves)[\s,:]+)*"
)
_RANGE = r"(?:[(\[]\s*(?:from\s|range:?\s)?\s*([^()\[\]]{1,20}?)\s*[)\]])?"
_LINK = r"\s*(?:[:=→–—]|is\s*:?|of|was)?\s*"
_CLOSE = r"\s*[.!]?\s*"
_ASIDE = r"\(([^()]*)\)"
_REASON = r"(?:(?:[.;,!:–—-]|because|since|as)\s(.*))"
_STATED = re.compile(rf"{_LEAD}score\s*{_RANGE}{_LINK}({_DIGITS})(?:{_CLOSE}|\s*{_ASIDE}{_CLOSE}|\s*{_REASON})")
_BOUNDS = re.compile(r"([0-9]{1,6})\s*(?:[-–—−/,]|to|or|through)\s*([0-9]{1,6})")
# What makes a score a supposition, or one of another scale.
_HEDGE = re.compile(
    r"\b(?:score|if|unless|only|would|could|might|otherwise|or|but|however|except|provided|assuming|scale|range|max"
    r"|maximum|points?|out of|of [0-9]+)\b|[/%]"
)


def _in_prose(line: str, highest: int) -> float | None:
    """The score that a line states, in its only sentence about a score."""
    plain = " ".join(_MARKUP.sub(" ", line.lower()).split())
    before, about, rest = plain.partition("score")
    if not about:
        return None
    opening = max(before.rfind(mark) for mark in (". ", "! ", "? ", "; ")) + 1
    found = _STATED.fullmatch((before[opening:] + about + rest).strip())
    if found is None:
        return None
    bounds, number, aside, reason = found.groups()
    if bounds is not None and not _is_range(bounds, highest):
        return None
    if _HEDGE.search(f"{aside or ''} {reason or ''}") or re.search("[0-9]", reason or ""):
        return None
    return float(number)


def _is_range(text: str, highest: int) -> bool:
    found = _BOUNDS.fullmatch(text)
    return found is not None and (int(found[1]), int(found[2])) == (0, highest)
