"""What one system said to one question, read and scored: a row of `eval/<benchmark>.jsonl`."""

import hashlib
from pathlib import Path
from typing import Any

from grit_lite import answer, boxes, scorers
from grit_lite.answer import GroundedAnswer, has_valid_format, parse
from grit_lite.backends import Generated, ModelSpec
from grit_lite.boxes import Box, f1_at, union_iou
from grit_lite.evaluate.question import Question
from grit_lite.evaluate.runner import Asked
from grit_lite.scorers import SCORERS, is_right

Row = dict[str, Any]

# A text without <answer> still counts in `accuracy_lenient` if it ends in a line of at most this many words.
SHORT_ANSWER_WORDS = 6
_TAGS = ("<think>", "</think>", "<rethink>", "</rethink>", "<answer>", "</answer>")


def row(system: str, style: str, asked: Asked, completion: Generated, spec: ModelSpec) -> Row:
    """One row, with every score that the summary is made of. What has no score, because nobody judged it, has None."""
    question, read = asked.question, parse(completion.text)
    found = chain_boxes(read, spec, question, completion)
    predicted = read.answer
    if predicted is None and style == "direct":
        predicted = completion.text.strip()
    lenient = predicted if predicted is not None else short_ending(completion.text)
    score, lenient_score = (_score(question, text) for text in (predicted, lenient))
    return {
        "system": system,
        "id": question.id,
        "dataset": question.dataset,
        "cluster": question.cluster,
        "draw": asked.draw,
        "question": question.text,
        "gold": question.gold,
        "facts": dict(question.facts),
        "size": list(question.size),
        "prompt": asked.prompt,
        "completion": completion.text,
        "answer": predicted,
        "boxes": [list(box) for box in found],
        "scorer": question.scorer,
        "score": score,
        "correct": None if score is None else score >= 1,
        "correct_lenient": None if lenient_score is None else lenient_score >= 1,
        "valid_format": has_valid_format(read),
        "union_iou": union_iou(found, question.boxes) if question.boxes else None,
        "f1": f1_at(found, question.boxes, 0.5) if question.boxes else None,
        "tokens": completion.tokens,
        "finished": completion.finished,
        "key": asked.key,
    }


def _score(question: Question, predicted: str | None) -> float | None:
    if question.scorer == "judge":
        return None
    if question.scorer == "rule":
        return float(is_right(predicted, question.gold))
    return SCORERS[question.scorer](predicted, question.gold)


def chain_boxes(read: GroundedAnswer, spec: ModelSpec, question: Question, completion: Generated) -> list[Box]:
    """Every box of the reasoning in pixels of the original image, good or bad: a bad one is meant to cost."""
    return [
        spec.box_space.to_pixels(box.numbers, original=question.size, resized=completion.resized)
        for box in read.chain_boxes
    ]


def short_ending(text: str) -> str | None:
    """The last line outside any tag if it is short enough to be an answer: what a reader would take for one."""
    for tag in _TAGS:
        text = text.replace(tag, "\n\0")
    last = text.rpartition("\0")[2].strip().rpartition("\n")[2].strip()
    return last if last and len(last.split()) <= SHORT_ANSWER_WORDS else None


def scored_by() -> str:
    """The sha256 of the code that reads and scores completions: two results with the same one can be compared."""
    folders = [Path(module.__file__ or "") for module in (answer, boxes, scorers)]
    files = [Path(__file__), *folders]
    for path in [path for path in folders if path.name == "__init__.py"]:
        files += path.parent.glob("*.py")
    digest = hashlib.sha256()
    for path in sorted(set(files), key=lambda path: (path.parent.name, path.name)):
        digest.update(path.read_bytes())
    return digest.hexdigest()
