"""Does the answer depend on the boxes? The question is asked again with what the boxes show, or say, changed.

Images are changed and the question is asked anew: the predicted boxes painted over, against boxes of the same sizes
elsewhere; only the boxes left; nothing left; the image of another question. Or the chain is changed: its boxes get
other numbers, everything behind the last of them is cut off, and the model goes on from there, against going on from
the same chain unchanged. A model that answers from what its boxes show, and reads what it wrote, changes its answer.
Of a question about several images, whose boxes may lie on any of them, all images are changed or none.

`interventions` are the changes themselves, `conditions` make them of an answered question, `numbers` counts.
`correlation` asks whether the text of a chain can be told to belong to its boxes.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from grit_lite.answer import GroundedAnswer, parse
from grit_lite.backends import Backend, Generated, Request
from grit_lite.boxes import Size
from grit_lite.evaluate.faithfulness import correlation
from grit_lite.evaluate.faithfulness.conditions import CONDITIONS, WHOLE_IMAGES, Case, Change, Other
from grit_lite.evaluate.faithfulness.correlation import Reader, by_itself, correlate, without_numbers
from grit_lite.evaluate.faithfulness.numbers import EFFECTS, Reference, summarise
from grit_lite.evaluate.question import Question
from grit_lite.scorers import is_right

__all__ = ["CONDITIONS", "EFFECTS", "faithfulness", "reasoning_correlation", "summarise"]

Row = dict[str, Any]
Ask = Callable[[Question, Sequence[Image.Image], str], Request]  # (question, its images, opening)
# (question, completion, what the model saw of the first image) -> 0 … 1; None where nobody judged it
Score = Callable[[Question, GroundedAnswer, Size], float | None]


def faithfulness(
    backend: Backend,
    questions: Sequence[Question],
    rows: Sequence[Mapping[str, Any]],
    *,
    max_new_tokens: int,
    conditions: Sequence[str] = tuple(CONDITIONS),
    batch_size: int = 32,
    use_adapter: bool = True,
    seed: int = 0,
    reference: Reference | None = None,
    ask: Ask | None = None,
    score: Score = lambda question, read, resized: float(is_right(read.answer, question.gold)),
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[list[Row], dict[str, Any]]:
    """Every row of every condition, and their summary. Decoding is greedy.

    Every draw starts from (seed, question, condition), so that a row depends neither on the order nor on the others.

    Args:
        rows: what the evaluation wrote of one system for each question, in order: `id`, `completion`, `answer`,
            `correct`; and `opening`, where the completion was made to begin with something.
        conditions: names from `CONDITIONS`.
        use_adapter: whether the system has its adapter on.
        reference: of `summarise`.
        ask: how the system is asked; None for its GRIT prompt.
        score: of a completion.
        progress: told ("faithfulness", questions done, questions in all) after each batch.

    Returns:
        (rows, summary): see `summarise`. Besides a row for each condition that applies, each question has one that is
        "unchanged", with what the evaluation found; or, if there was nothing to change, "without_boxes", or
        "nothing_covered", where no box has a pixel of the image.
    """
    asking, found = ask or grounded_asking(backend), []
    for done, cases in _cases(backend, questions, rows, batch_size, seed):
        found += [_row(case, _kind(case)) for case in cases]
        changes = list(_changes([case for case in cases if case.has_boxes], conditions, seed))
        requests = [asking(case.question, new.images, new.opening) for case, _, new in changes]
        options = {"max_new_tokens": max_new_tokens, "use_adapter": use_adapter, "batch_size": batch_size}
        for (case, condition, new), said in zip(changes, backend.generate(requests, **options), strict=True):
            found.append(_changed_row(case, condition, new, said, score))
        if progress:
            progress("faithfulness", done, len(rows))
    return found, summarise(found, reference)


def reasoning_correlation(
    backend: Backend,
    questions: Sequence[Question],
    rows: Sequence[Mapping[str, Any]],
    *,
    reader: Reader | None = None,
    batch_size: int = 8,
    use_adapter: bool = True,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[list[Row], dict[str, Any]]:
    """Every row and the summary of `correlation`, of the questions about one image whose chain has boxes.

    There is none where all questions are about the same image.

    Args:
        reader: who looks at the images; None for the model itself. The others as of `faithfulness`.

    Raises:
        ModelError: the model cannot be its own reader.
    """
    reading, found = reader or by_itself(backend, use_adapter=use_adapter, batch_size=batch_size), []
    for done, cases in _cases(backend, questions, rows, batch_size, seed):
        boxed = [case for case in cases if case.has_boxes and not case.has_several and case.other is not None]
        others = [without_numbers(parse(case.other.row["completion"])) for case in boxed if case.other]
        generators = [_generator(seed, case.question.id, "correlation") for case in boxed]
        found += correlate(boxed, others, reading, generators)
        if progress:
            progress("correlation", done, len(rows))
    return found, correlation.summarise(found)


def _cases(
    backend: Backend, questions: Sequence[Question], rows: Sequence[Mapping[str, Any]], batch_size: int, seed: int
) -> Iterator[tuple[int, list[Case]]]:
    """(rows done after it, cases) of each batch; their images are in memory together."""
    clusters = [question.cluster or question.id for question in questions]
    for start in range(0, len(rows), batch_size):
        cases = []
        for index in range(start, min(start + batch_size, len(rows))):
            found = _other(questions, clusters, index, seed)
            other = None if found is None else Other(questions[found], rows[found])
            cases.append(Case(questions[index], rows[index], backend, clusters[index], other))
        yield start + len(cases), cases


def grounded_asking(backend: Backend) -> Ask:
    """The GRIT prompt of the model."""
    render = backend.spec.prompts.render
    return lambda question, images, opening: Request(tuple(images), render(question.text), opening)


def _changes(cases: Sequence[Case], conditions: Sequence[str], seed: int) -> Iterator[tuple[Case, str, Change]]:
    """One condition after the other, so that what is generated together is about as long."""
    for condition in conditions:
        for case in cases:
            if case.has_several and condition not in WHOLE_IMAGES:
                continue
            change = CONDITIONS[condition](case, _generator(seed, case.question.id, condition))
            if change is not None:
                yield case, condition, change


def _generator(seed: int, *names: str) -> np.random.Generator:
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def _other(questions: Sequence[Question], clusters: Sequence[str], index: int, seed: int) -> int | None:
    """The place of a question about another image, or as many others: the first one behind a random place."""
    first, count = int(_generator(seed, questions[index].id).integers(len(questions))), len(questions[index].images)
    order = (*range(first, len(questions)), *range(first))
    return next((k for k in order if clusters[k] != clusters[index] and len(questions[k].images) == count), None)


def _kind(case: Case) -> str:
    if case.has_boxes:
        return "unchanged"
    return "nothing_covered" if case.answer.chain_boxes else "without_boxes"


def _row(case: Case, condition: str) -> Row:
    return {
        "condition": condition,
        "id": case.question.id,
        "dataset": case.question.dataset,
        "cluster": case.cluster,
        "images": len(case.question.images),
        "gold": case.question.gold,
        "answer": case.row["answer"],
        "correct": _number(case.row["correct"]),
        "flipped": 0.0,
    }


def _changed_row(case: Case, condition: str, change: Change, said: Generated, score: Score) -> Row:
    read = parse(completion := change.opening + said.text)
    return {
        **_row(case, condition),
        "answer": read.answer,
        "correct": _number(score(case.question, read, said.resized)),
        "flipped": float(_plain(read.answer) != _plain(case.row["answer"])),
        "completion": completion,
        "opening": change.opening,
        "boxes": [list(box) for box in change.boxes],
        **({} if change.hid is None else {"hid": change.hid}),
    }


def _number(score: float | None) -> float | None:
    return None if score is None else float(score)


def _plain(answer: str | None) -> str | None:
    """An answer without what does not make another one of it: case, spacing, marks at its ends."""
    return None if answer is None else " ".join(answer.casefold().split()).strip(" .,;:!?\"'*`()[]")
