"""What an answer says without how it is dressed: LaTeX, markdown, HTML, JSON, escapes and invisible marks taken off.

Texts are cut to nothing above `MAX_CHARS`, and every pattern is linear, so a scorer costs at most a fixed time.
"""

import html
import json
import re
import unicodedata
from functools import lru_cache
from typing import Any

from grit_lite.answer import parse, plain

MAX_CHARS = 2000  # a longer text is an essay, not an answer

# Soft hyphen, zero-width blanks and joiners, byte order mark, variation selectors; direction marks go with `plain`.
_INVISIBLE = re.compile(r"[\u00ad\u200b-\u200d\u2060\ufeff\ufe00-\ufe0f]")
_FENCE = re.compile(r"```(?:(?:json|text|txt|plaintext|markdown|md|html|xml|latex|python)(?=\s))?", re.IGNORECASE)
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,200}+>|<\|[^|<>]{1,40}+\|>")  # HTML, and the special tokens of chat templates
_LATEX = re.compile(
    r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|operatorname)\s{0,4}\{|\\[,;:! ]|\\(?:quad|left|right)\b"
)
_EMPHASIS = re.compile(r"[*`$]+|(?<![^\W_])_+|_+(?![^\W_])")
# cm², cm^2: a power that belongs to a unit is no number by itself.
_POWER_OF_UNIT = re.compile(
    r"(?<![^\W\d_])([cdkm]?m|ft|in|inch|inches|units?|yd|mi|sq)\}?(?:[²³]|\^\{?[23]\}?)", re.IGNORECASE
)
_GROUPING = re.compile(r"(?<=[0-9])(?:[\u00a0\u2009\u202f]|\{,\})(?=[0-9]{3}(?![0-9]))")  # 12 000 with a thin space
_NO_BLANKS_BETWEEN = re.compile(r"([\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af])")  # words of these scripts stick together
_BOXED = "\\boxed{"


@lru_cache(maxsize=512)  # a gold answer is asked for several times, and at most 1 MB is kept
def bare(text: str | None) -> str:
    """The text undressed, its compatibility forms (full width) as plain ones; empty if there is none or too much."""
    if not text or len(text) > MAX_CHARS:
        return ""
    text = _INVISIBLE.sub("", plain(text))
    text = _boxed(_json_answer(_FENCE.sub(" ", text).strip()))
    text = _TAG.sub(" ", html.unescape(text))
    text = _LATEX.sub(" ", _GROUPING.sub(",", text)).replace("−", "-")
    text = _EMPHASIS.sub(" ", _POWER_OF_UNIT.sub(r"\1", text))
    return _NO_BLANKS_BETWEEN.sub(r" \1 ", unicodedata.normalize("NFKC", text)).replace("’", "'").strip()


def unified(text: str | None) -> str:
    """`bare`, in lower case."""
    return bare(text).casefold()


def without_boxes(text: str | None) -> str:
    """The text without the boxes in it, unless there is nothing else: coordinates are no count and no name."""
    if not text or len(text) > MAX_CHARS:
        return ""
    if text.count(",") + text.count("，") < 3:
        return text  # no box can be in it
    rest, end = [], 0
    for box in parse(text).written:
        rest.append(text[end : box.start])
        end = box.end
    left = " ".join([*rest, text[end:]])
    return left if any(map(str.isalnum, left)) else text


def words_of(text: str) -> list[str]:
    """Words with their apostrophes, and every other mark that is not blank by itself."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*+|[^\w\s]|_", text)


def _json_answer(text: str) -> str:
    """The value of "answer" if the text is a JSON object that has one, or the only string or number in a JSON list."""
    if not text.startswith(("{", "[", '"')):
        return text
    try:
        return _said_in_json(json.loads(text), text)
    except (ValueError, RecursionError):
        return text


def _said_in_json(value: Any, text: str) -> str:
    if isinstance(value, dict):
        named = [value[key] for key in value if key.casefold() in ("answer", "final_answer")]
        value = named[0] if len(named) == 1 else None
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, str | int | float) else text


def _boxed(text: str) -> str:
    r"""What stands in the only `\boxed{…}`: by convention the answer, whatever stands around it."""
    if text.count(_BOXED) != 1:
        return text.replace(_BOXED, " ")
    start = text.index(_BOXED) + len(_BOXED)
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end]
    return text[start:]
