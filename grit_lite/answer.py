"""The GRIT prompt, and model text read back into a `GroundedAnswer`.

Model text is hostile data: reading takes time linear in its length, nothing is evaluated, everything past `MAX_CHARS`
is ignored, and nothing in it raises. What counts as a written box is decided here and nowhere else.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

MAX_CHARS = 100_000  # far above any completion length we train or evaluate with
MAX_BOXES = 512  # a completion of 8,000 tokens can hold no more honest boxes than that
LABEL_CHARS = 80

# The wording of UCSB-AI/GRIT (relationReasoningDataset.py and the add_grounded_reasoning_think_rethink setting): the
# text begins with a newline, and Qwen and InternVL get the same instruction.
QUESTION = "\nQuestion: {question}"
INSTRUCTION = (
    " First, think between <think> and </think> while output necessary coordinates needed to answer the question in "
    "JSON with key 'bbox_2d'. Then, based on the thinking contents and coordinates, rethink between <rethink> "
    "</rethink> and then answer the question after <answer>.\n"
)


@dataclass(frozen=True)
class PromptTemplate:
    """What is asked of a model: `grounded` for a chain with boxes, `direct` for the bare answer. Each holds the
    literal `{question}` once; the image goes before the text."""

    grounded: str
    direct: str

    def render(self, question: str, *, style: Literal["grounded", "direct"] = "grounded") -> str:
        """The text of the prompt. A question may contain braces: nothing but `{question}` is replaced."""
        template = self.grounded if style == "grounded" else self.direct
        return template.replace("{question}", question)


GRIT_PROMPT = PromptTemplate(grounded=QUESTION + INSTRUCTION, direct=QUESTION)


@dataclass(frozen=True)
class WrittenBox:
    """A box as the model wrote it, in the model's unit, at `text[start:end]`; the brackets belong to the span."""

    numbers: tuple[float, float, float, float]
    start: int
    end: int
    label: str | None


@dataclass(frozen=True)
class GroundedAnswer:
    """A completion, read.

    `answer` is the last complete `<answer>` (its closing tag is optional at the end of the text); `chain` is the
    reasoning before it, from the end of an echoed prompt on; `think` and `rethink` are the last complete pairs of the
    chain. All three are stripped of blanks, and None where the tags are missing. `written` holds the boxes of the whole
    text, also those that no image could hold.
    """

    text: str
    think: str | None
    rethink: str | None
    answer: str | None
    chain: str
    chain_start: int
    written: tuple[WrittenBox, ...]

    @property
    def boxes(self) -> tuple[tuple[float, float, float, float], ...]:
        """The numbers of every written box, in the order of the text."""
        return tuple(box.numbers for box in self.written)

    @cached_property
    def chain_boxes(self) -> tuple[WrittenBox, ...]:
        """The written boxes of the chain: a box in the answer or in an echoed prompt is not reasoning."""
        end = self.chain_start + len(self.chain)
        return tuple(box for box in self.written if self.chain_start <= box.start and box.end <= end)


def parse(text: str) -> GroundedAnswer:
    """The completion's parts. Linear time; text past `MAX_CHARS` is cut off; never raises."""
    text = text[:MAX_CHARS]
    start = _end_of_echo(text)
    chain_end, answer = _last_answer(text, start)
    chain = text[start:chain_end]
    think, rethink = (_last_pair(chain, tag) for tag in ("think", "rethink"))
    return GroundedAnswer(text, think, rethink, answer, chain, start, tuple(_written_boxes(text)))


def _end_of_echo(text: str) -> int:
    """Where the completion proper begins: after the last repetition of the instruction, whose tags are not its own."""
    instruction = INSTRUCTION.strip()
    echo = text.rfind(instruction)
    return 0 if echo < 0 else echo + len(instruction)


def _last_answer(text: str, start: int) -> tuple[int, str | None]:
    """(where the chain ends, the last complete answer). An opening tag with nothing behind it is not an answer."""
    end = len(text)
    while (opening := text.rfind("<answer>", start, end)) >= 0:
        body = text[opening + len("<answer>") : end]
        closing = body.find("</answer>")
        if closing >= 0:
            return opening, body[:closing].strip()
        if body.strip() and (body := _without_cut_off_tag(body).strip()):
            return opening, body
        end = opening
    return len(text), None


def _without_cut_off_tag(body: str) -> str:
    """Without the beginning of a closing tag at the end of the text, where the completion ran out of tokens."""
    begun = ("</answer>"[:length] for length in range(len("</answer"), 1, -1))
    return next((body.removesuffix(part) for part in begun if body.endswith(part)), body)


def _last_pair(chain: str, tag: str) -> str | None:
    """The text between the last opening tag that has a closing one behind it, and that closing one: of nested pairs
    the inner one."""
    opening = chain.rfind(f"<{tag}>", 0, max(chain.rfind(f"</{tag}>"), 0))
    closing = chain.find(f"</{tag}>", max(opening, 0))
    return chain[opening + len(tag) + 2 : closing].strip() if opening >= 0 else None


def ordered_pairs(answer: GroundedAnswer) -> tuple[bool, bool]:
    """Whether there is (one think pair with text, one rethink pair with text behind it), both before any `<answer>`.

    "One" and "any" hold for the whole completion behind an echoed prompt: text that goes round in circles, or that
    answers before it thinks, has no valid format. The second needs the first: rethinking follows thinking.
    """
    body = answer.text[answer.chain_start :]
    before_answer = len(body.partition("<answer>")[0])
    think_end = _only_pair(body, "think", 0, before_answer)
    if think_end is None:
        return False, False
    return True, _only_pair(body, "rethink", think_end, before_answer) is not None


def _only_pair(body: str, tag: str, start: int, end: int) -> int | None:
    """Where the only pair of this tag ends, if it lies within [start, end) and has text in it."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    if body.count(opening) != 1 or body.count(closing) != 1:
        return None
    first, last = body.find(opening, start, end), body.find(closing, start, end)
    has_text = first >= 0 and bool(body[first + len(opening) : max(last, 0)].strip())
    return last + len(closing) if has_text else None


def has_valid_format(answer: GroundedAnswer) -> bool:
    """Whether it is `<think>…</think> … <rethink>…</rethink> … <answer>…`, with text in each of the three."""
    return all(ordered_pairs(answer)) and bool(answer.answer)


# Quantifiers are possessive or bounded, so that no text makes the scanner go back: time is linear. Each alternative
# begins with a literal, also the key, whose word boundary is looked back for: the scanner skips all other text.
_NUMBER = r"([+-]?[0-9]{1,6}+(?:\.[0-9]{1,16}+)?+)"
_FOUR = r"\s*+,\s*+".join([_NUMBER] * 4)
_KEY = r"b(?<!\wb)box_2d(?:_[0-9]{1,4}+)?+[\"']?+\s*+[:=]\s*+[\"']?+"
_BOX = re.compile(
    rf"\[\s*+{_FOUR}\s*+\]|\(\s*+{_FOUR}\s*+\)"  # in brackets
    rf"|{_KEY}{_FOUR}(?!\w|\.[0-9]|\s*+,\s*+[+-]?[0-9])"  # bare under the key, and not the head of a longer list
)
# The reference's own idea of a box, for numbers that are to be like its own: any four integers between commas.
FOUR_INTEGERS = re.compile(r"\b\d++,\s*+\d++,\s*+\d++,\s*+\d++\b")
_EACH_NUMBER = re.compile(_NUMBER)
_QUOTED_LABEL = rf"[\"']label[\"']\s*+:\s*+[\"']([^\"'\n]{{1,{LABEL_CHARS}}}+)[\"']"
_LABEL_AFTER = re.compile(rf"[\"']?\s*+,\s*+{_QUOTED_LABEL}")
_LABEL_BEFORE = re.compile(
    rf"(?:{_QUOTED_LABEL}\s*+,\s*+[\"']bbox_2d[\"']\s*+:\s*+|<ref>([^<\n]{{1,{LABEL_CHARS}}}+)</ref>\s*+<box>\s*+\[?+)\Z"
)
_FULL_WIDTH = {0xFF01 + place: 0x21 + place for place in range(94)}  # ０ ， ： （ ［ as 0 , : ( [, one for one
_LOOK_BACK = LABEL_CHARS + 40  # characters before a box in which its label may stand


def _written_boxes(text: str) -> list[WrittenBox]:
    """At most `MAX_BOXES` boxes: four numbers, separated by commas, in square or in round brackets, or under the key
    `bbox_2d`. A longer or shorter list, an enumeration, a date, a number of more than six digits are not boxes."""
    text = text if text.isascii() else text.translate(_FULL_WIDTH)
    boxes = []
    for found in _BOX.finditer(text):
        numbers = tuple(float(number) for number in found.groups() if number is not None)
        if text[found.start()] == "(" and _is_enumeration(numbers):
            continue
        boxes.append(WrittenBox(numbers, found.start(), found.end(), _label(text, found)))  # pyright: ignore[reportArgumentType]
        if len(boxes) == MAX_BOXES:
            break
    return boxes


def _is_enumeration(numbers: tuple[float, ...]) -> bool:
    """Counting up by one, as in "(1, 2, 3, 4)": prose in round brackets, not a box of two pixels."""
    return all(after - before == 1 for before, after in pairwise(numbers))


def _label(text: str, found: re.Match[str]) -> str | None:
    """What the model calls the box: `"label"` beside it in its JSON object, or InternVL's `<ref>` before it."""
    after = _LABEL_AFTER.match(text, found.end())
    if after:
        return after[1].strip()
    before = _LABEL_BEFORE.search(text[max(0, found.start() - _LOOK_BACK) : found.start()])
    return (before[1] or before[2]).strip() if before else None


def number_spans(text: str, box: WrittenBox) -> list[tuple[int, int]]:
    """Where the four numbers of a box stand in the text that it was read from, as (start, end)."""
    found = [number.span() for number in _EACH_NUMBER.finditer(text, box.start, box.end)]
    return found[-4:]  # its key may hold digits before them


# Escape sequences of a terminal, in their 7-bit (ESC …) and 8-bit (C1) forms: strings (OSC, DCS, SOS, PM, APC) up to
# their end or the end of the line, control sequences (CSI), everything else that begins with ESC.
_ESCAPES = re.compile(
    r"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\n]*+(?:\x07|\x1b\\|\x9c)?+"
    r"|(?:\x1b\[|\x9b)[0-?]*+[ -/]*+[@-~]?+"
    r"|\x1b[ -/]*+[0-~]?+"
)
# C0 but tab and newline, DEL, C1, line and paragraph separators, direction marks and overrides.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_SURROGATES = re.compile(r"[\ud800-\udfff]")


def plain(text: str) -> str:
    """The text without anything that could steer a terminal: safe to print. Lone surrogates become U+FFFD."""
    return _SURROGATES.sub("\ufffd", _CONTROLS.sub("", _ESCAPES.sub("", text)))
