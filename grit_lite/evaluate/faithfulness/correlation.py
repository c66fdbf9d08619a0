"""Which of two images carries the boxes that the chain speaks of? GRIT's vision-language reasoning correlation.

GRIT (arXiv 2505.15879, section 4) draws the boxes of a chain on one copy of the image and as many random boxes on
another, hides the coordinates in the text, and asks GPT-4o which copy the text describes, three times over. Here:

- the other boxes are of the same sizes, where they overlap the real ones least: neither size nor number tells;
- each pair is shown in both orders, and what counts is in which of them the first image is preferred more: a reader
  with a liking for one place is not misled by it, and one that knows nothing else scores a half, not by luck;
- the same is asked with the text of another chain: boxes on things look unlike boxes on nothing, so that a reader may
  find the right image without the text, and only the difference is owed to what the text says;
- the reader is the model itself, by how much likelier one answer is than the other, or a judge that says A or B, to
  whom the text is data like everything else that a judge is shown;
- intervals are over images instead of a deviation over repetitions.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from grit_lite.answer import GroundedAnswer, plain
from grit_lite.backends import Backend, Request
from grit_lite.boxes import draw
from grit_lite.evaluate.faithfulness.conditions import Case
from grit_lite.evaluate.faithfulness.interventions import cover_elsewhere, distinct, with_numbers
from grit_lite.evaluate.statistics import mean_interval, paired_difference
from grit_lite.judge import WHICH_PICTURE, Endpoint, Pictures, as_sent

Row = dict[str, Any]
Pair = tuple[tuple[Image.Image, Image.Image], str]  # two images and the text of a chain
# For each pair, how far the first image is preferred to the second, below 0 if it is not; None where nothing was said.
Reader = Callable[[Sequence[Pair]], list[float | None]]

ANSWERS = ("A", "B")
PLACES = ("as_first", "as_second", "other_as_first", "other_as_second")
HIDDEN = "…"
QUESTION = (
    "Both images show the same scene, each with boxes drawn on it. In one of them the boxes mark what this text speaks "
    "of; its coordinates are left out:\n\n{text}\n\n"
    "Which image is it? Answer A for the first image or B for the second."
)


def without_numbers(answer: GroundedAnswer) -> str:
    """The chain with the numbers of its boxes hidden, safe to show."""
    end = answer.chain_start + len(answer.chain)
    hidden = with_numbers(answer.text[:end], answer.chain_boxes, [[HIDDEN] * 4 for _ in answer.chain_boxes])
    return plain(hidden[answer.chain_start :]).strip()


def correlate(
    cases: Sequence[Case], others: Sequence[str], reader: Reader, generators: Sequence[np.random.Generator]
) -> list[Row]:
    """A row for each case.

    Its `as_first` and `as_second` are how far the first image was preferred when the right one stood in that place, and
    `points` 1 if further as first, 0 if less far, 0.5 if neither; nothing said is no preference. `other_as_first`,
    `other_as_second` and `other_points` are those with another text.

    Args:
        others: for each case, the text of another chain.
        generators: for each case, what the places of its other boxes are drawn from.
    """
    pairs: list[Pair] = []
    for case, other, generator in zip(cases, others, generators, strict=True):
        right = draw(case.image, distinct(case.boxes, case.image.size))
        wrong = draw(case.image, cover_elsewhere(case.boxes, case.image.size, generator))
        for text in (without_numbers(case.answer), other):
            pairs += [((right, wrong), text), ((wrong, right), text)]
    said = reader(pairs)
    return [_row(case, said[4 * k : 4 * k + 4]) for k, case in enumerate(cases)]


def _row(case: Case, said: Sequence[float | None]) -> Row:
    return {
        "condition": "correlation",
        "id": case.question.id,
        "dataset": case.question.dataset,
        "cluster": case.cluster,
        **dict(zip(PLACES, said, strict=True)),
        "points": _points(*said[:2]),
        "other_points": _points(*said[2:]),
    }


def _points(as_first: float | None, as_second: float | None) -> float:
    gap = (as_first or 0.0) - (as_second or 0.0)
    return 0.5 + 0.5 * float(np.sign(gap))


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """`correlation`: the mean of points, a half by chance; `other_text`: that with the text of another chain;
    `difference`: the first minus the second, paired; each with its 95 % interval over images. `ties`: how many
    questions were worth half a point; `unanswered`: how many of the readings named no image."""
    points, others = ([row[name] for row in rows] for name in ("points", "other_points"))
    clusters = [row["cluster"] for row in rows]
    return {
        "correlation": mean_interval(points, clusters)._asdict(),
        "other_text": mean_interval(others, clusters)._asdict(),
        "difference": paired_difference(points, others, clusters)._asdict(),
        "ties": points.count(0.5),
        "unanswered": sum(row[place] is None for row in rows for place in PLACES),
    }


def by_itself(backend: Backend, *, use_adapter: bool = True, batch_size: int = 8) -> Reader:
    """The model as its own reader: log p(A) - log p(B), in nats."""
    special = backend.processor.tokenizer.all_special_tokens

    def read(pairs: Sequence[Pair]) -> list[float | None]:
        requests = [Request(tuple(images), _spelt_out(special, _asked(text))) for images, text in pairs]
        found = backend.log_likelihoods(requests, ANSWERS, use_adapter=use_adapter, batch_size=batch_size)
        return [first - second for first, second in found]

    return read


def by_judge(judge: Callable[[Sequence[Image.Image], str], str | None]) -> Reader:
    """A judge that answers "A" or "B"; anything else is no answer. It is asked once for each pair."""
    worth: dict[str, float] = {"A": 1.0, "B": -1.0}

    def read(pairs: Sequence[Pair]) -> list[float | None]:
        said = (judge(images, _asked(text)) or "" for images, text in pairs)
        return [worth.get(one.strip().rstrip(".").upper()) for one in said]

    return read


def by_endpoint(judge: Endpoint) -> Reader:
    """A judge that sees pictures, asked about several pairs at the same time.

    Raises, when it reads:
        JudgeError: as `Endpoint.rate`.
    """

    def read(pairs: Sequence[Pair]) -> list[float | None]:
        sent = {id(image): as_sent(image) for images, _ in pairs for image in images}
        items = [Pictures(sent[id(first)], sent[id(second)], text) for (first, second), text in pairs]
        scores = judge.rate(items, WHICH_PICTURE, more_follow=True)
        return [None if score is None else 2 * score - 1 for score in scores]

    return read


def _asked(text: str) -> str:
    return QUESTION.replace("{text}", text)


def _spelt_out(special: Sequence[str], text: str) -> str:
    """The text with a blank in every special token that a model has spelt: in a prompt they would be what they say."""
    for token in special:
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
