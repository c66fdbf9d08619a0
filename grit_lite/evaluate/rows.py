"""What one system said to one question, read and scored: a row of `eval/<benchmark>.jsonl`."""

import hashlib
from pathlib import Path
from typing import Any

from grit_lite import answer, boxes, scorers
from grit_lite.answer import GroundedAnswer, has_valid_format, parse
from grit_lite.backends import Generated, ModelSpec
from grit_lite.boxes import Numbers, Size
from grit_lite.evaluate.grounding import grounding, referred, referred_box, released_union_iou
from grit_lite.evaluate.question import Question
from grit_lite.evaluate.runner import Asked

Row = dict[str, Any]

# A text without <answer> still counts in `accuracy_lenient` if it ends in a line of at most this many words.
SHORT_ANSWER_WORDS = 6
_TAGS = ("<think>", "</think>", "<rethink>", "</rethink>", "<answer>", "</answer>")


def row(system: str, style: str, asked: Asked, completion: Generated, spec: ModelSpec) -> Row:
    """One row, with every score that the summary is made of. What has no score, because nobody judged it, has None."""
    question, read = asked.question, parse(completion.text)
    sizes = {"original": question.size, "resized": completion.resized}
    written = pointed_at(question, read)
    found = [spec.box_space.to_pixels(box, **sizes) for box in written]
    predicted = read.answer
    if predicted is None and style == "direct":
        predicted = completion.text.strip()
    lenient = predicted if predicted is not None else short_ending(completion.text)
    score, lenient_score = (score_of(question, text, read, spec, completion.resized) for text in (predicted, lenient))
    return {
        "system": system,
        "id": question.id,
        "dataset": question.dataset,
        "cluster": question.cluster,
        "draw": asked.draw,
        "question": question.text,
        "gold": question.gold,
        "facts": dict(question.facts),
        "images": len(question.images),
        "size": list(question.size),
        "prompt": asked.prompt,
        "completion": completion.text,
        "answer": predicted,
        "boxes": [list(box) for box in found],
        "gold_boxes": [list(box) for box in question.boxes],
        "scorer": question.scorer,
        "score": score,
        "correct": None if score is None else score >= 1,
        "correct_lenient": None if lenient_score is None else lenient_score >= 1,
        "valid_format": has_valid_format(read),
        **grounding(written, question.boxes, spec.box_space, **sizes),
        "union_iou_released": released_union_iou(completion.text, question.boxes, spec.box_space, question.size),
        "tokens": completion.tokens,
        "finished": completion.finished,
        "key": asked.key,
    }


def pointed_at(question: Question, read: GroundedAnswer) -> list[Numbers]:
    """The boxes that are held against the gold ones, as the model wrote them, good or bad: a bad one is meant to cost.

    Those of the reasoning; where a box is what was asked for, also the one that answers, unless it is one of them.
    """
    written: list[Numbers] = [box.numbers for box in read.chain_boxes]
    answered = referred(read) if question.scorer == "box" else None
    return written if answered is None or answered in written else [*written, answered]


def score_of(
    question: Question, said: str | None, read: GroundedAnswer, spec: ModelSpec, resized: Size
) -> float | None:
    """What an answer is worth, from 0 to 1; None where that is for a judge to say.

    Args:
        said: what is taken for the answer of `read`; None if there is none.
        resized: (width, height) of what the model saw, which the unit of its boxes may depend on.
    """
    if question.scorer == "judge":
        return None
    facts = question.facts
    if question.scorer == "box":
        facts = {**facts, "box": referred_box(read, spec.box_space, question.size, resized, said)}
    return scorers.score(question.scorer, said, question.gold, facts)


def short_ending(text: str) -> str | None:
    """The last line outside any tag if it is short enough to be an answer: what a reader would take for one."""
    for tag in _TAGS:
        text = text.replace(tag, "\n\0")
    last = text.rpartition("\0")[2].strip().rpartition("\n")[2].strip()
    return last if last and len(last.split()) <= SHORT_ANSWER_WORDS else None


def scored_by() -> str:
    """The sha256 of the code that reads and scores completions: two results with the same one can be compared."""
    package, here = Path(scorers.__file__).parent, Path(__file__)
    modules = [Path(str(module.__file__)) for module in (answer, boxes)]
    files = [*modules, *sorted(package.glob("*.py")), here, here.with_name("grounding.py")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
