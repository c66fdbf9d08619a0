"""Faithfulness as a part of an evaluation: of one of its systems, kept and resumed like it, written beside it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from grit_lite.answer import GroundedAnswer
from grit_lite.backends import Backend, Generated, ModelSpec, Request
from grit_lite.boxes import Size
from grit_lite.errors import ModelError, OutOfMemory
from grit_lite.evaluate import Evaluation
from grit_lite.evaluate.faithfulness import faithfulness, reasoning_correlation, summarise
from grit_lite.evaluate.faithfulness.correlation import by_endpoint
from grit_lite.evaluate.question import Question
from grit_lite.evaluate.rows import score_of
from grit_lite.evaluate.runner import SYSTEMS, Asking, Completions, Decoding, Progress, key, within_memory
from grit_lite.judge import Endpoint
from grit_lite.run import replace_text, write_json

Row = Mapping[str, Any]

FOLDER = "faithfulness"  # in `eval`
REFERENCE = "base_direct"  # the base at its best, which boxes are to add to


def examine(
    evaluation: Evaluation,
    backend: Backend,
    name: str,
    system: str,
    progress: Progress,
    most: int | None = None,
    judge: Endpoint | None = None,
) -> dict[str, Any]:
    """The summary of one system's faithfulness, after it and its rows were written as faithfulness/<name>.json(l).

    Besides what `summarise` says, it has the same of each dataset, and the reasoning correlation, whose `reader` says
    which judge it was; None is the model itself.

    Args:
        evaluation: has asked the system, once and greedily, and it is what the backend is now.
        most: how many questions whose answers have boxes; None for all.
        judge: one that sees pictures, to read in the place of the model.

    Raises:
        OutOfMemory: not even one question at a time fits.
        UsageError: another process is writing into the folder.
        JudgeError: as `Endpoint.rate`; what the model said, and what was judged, is kept.
    """
    folder = evaluation.folder / FOLDER
    asking = Asking(backend, Decoding(evaluation.decoding.max_new_tokens), evaluation.batch_size)
    options: dict[str, Any] = {"use_adapter": SYSTEMS[system].use_adapter, "progress": progress}
    rows = evaluation.rows(system)
    chosen = thinned(rows, most)
    asked = [evaluation.questions[index] for index in chosen], [rows[index] for index in chosen]
    completions = Completions(folder, name)
    remembering: Any = Remembering(backend, asking, completions)  # a Backend in all that it does not say itself
    with completions.writing():
        found, summary = faithfulness(
            remembering,
            *asked,
            max_new_tokens=evaluation.decoding.max_new_tokens,
            batch_size=evaluation.batch_size,
            reference=(reference := _reference(evaluation)),
            score=partial(_is_right, backend.spec),
            **options,
        )
        read, correlation = _correlation(remembering, *asked, judge, options)
    settings = {
        **asking.describe(SYSTEMS[system]),
        "max_new_tokens": evaluation.decoding.max_new_tokens,
        "left_out": len(rows) - len(chosen),
        "reference": REFERENCE if reference else None,
    }
    result = {"benchmark": name, "system": system, "settings": settings, **summary, "correlation": correlation}
    result["datasets"] = _by_dataset(found, reference)
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in [*found, *read])
    replace_text(folder / f"{name}.jsonl", "".join(lines))
    write_json(folder / f"{name}.json", result)
    return result


def read_examination(folder: Path, name: str) -> dict[str, Any]:
    """What `examine` has written into `eval`."""
    return json.loads((folder / FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def thinned(rows: Sequence[Row], most: int | None) -> list[int]:
    """The places of at most so many rows with boxes, evenly over all of them, and of every row without."""
    boxed = [index for index, row in enumerate(rows) if row["boxes"]]
    count = len(boxed) if most is None else min(most, len(boxed))
    kept = {boxed[place * len(boxed) // count] for place in range(count)}
    return [index for index, row in enumerate(rows) if index in kept or not row["boxes"]]


class Remembering:
    """A backend that keeps what it said, and asks in smaller parts what does not fit into memory."""

    def __init__(self, backend: Backend, asking: Asking, completions: Completions) -> None:
        self.backend, self.asking, self.completions = backend, asking, completions
        self._read_at_once = asking.batch_size

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def generate(
        self, requests: Sequence[Request], *, max_new_tokens: int, use_adapter: bool, batch_size: int
    ) -> list[Generated]:
        """As a `Backend`; `batch_size` is that of the evaluation, as far as memory allows.

        All are asked where one is not known, because a model may round differently in another batch.
        """
        keys = [self._key(request, use_adapter) for request in requests]
        if any(one not in self.completions for one in keys):
            said = self.asking.generate(requests, max_new_tokens=max_new_tokens, use_adapter=use_adapter)
            self.completions.add(dict(zip(keys, said, strict=True)))
        return [self.completions[one] for one in keys]

    def log_likelihoods(
        self, requests: Sequence[Request], answers: Sequence[str], *, use_adapter: bool = True, batch_size: int = 8
    ) -> list[list[float]]:
        """As a `Backend`, and as `generate`: kept beside the completions, as text."""
        keys = [self._key(request, use_adapter, *answers) for request in requests]
        if any(one not in self.completions for one in keys):
            found, self._read_at_once = within_memory(
                lambda size: self.backend.log_likelihoods(requests, answers, use_adapter=use_adapter, batch_size=size),
                min(batch_size, self._read_at_once),
            )
            said = (
                Generated(json.dumps(numbers), 0, True, request.image.size)
                for numbers, request in zip(found, requests, strict=True)
            )
            self.completions.add(dict(zip(keys, said, strict=True)))
        return [json.loads(self.completions[one].text) for one in keys]

    def _key(self, request: Request, use_adapter: bool, *answers: str) -> str:
        identity = {**self.asking.identity, **({} if use_adapter else {"adapter": None})}
        images = [_hash(image) for image in request.images]
        prompt = "\0".join([request.text, request.opening, *answers])
        return key(identity, prompt, images, self.asking.decoding)


def _hash(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()


def _is_right(spec: ModelSpec, question: Question, read: GroundedAnswer, resized: Size) -> float | None:
    score = score_of(question, read.answer, read, spec, resized)
    return None if score is None else float(score >= 1)


def _reference(evaluation: Evaluation) -> dict[str, float] | None:
    """By id, whether the base was right when it was asked directly; None where it was not asked, or not judged yet."""
    if REFERENCE not in evaluation.asked:
        return None
    right = {row["id"]: row["correct"] for row in evaluation.rows(REFERENCE)}
    return None if None in right.values() else {id: float(value) for id, value in right.items()}


def _correlation(
    backend: Backend,
    questions: Sequence[Question],
    rows: Sequence[Row],
    judge: Endpoint | None,
    options: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    reader = None if judge is None else by_endpoint(judge)
    try:
        found, summary = reasoning_correlation(backend, questions, rows, reader=reader, **options)
    except (ModelError, OutOfMemory) as error:  # the other numbers do not hang on it
        return [], {"obstacle": str(error)}
    return found, {**summary, "reader": None if judge is None else judge.facts()}


def _by_dataset(found: Sequence[Row], reference: Mapping[str, float] | None) -> dict[str, Any]:
    names = sorted({row["dataset"] for row in found})
    return {name: summarise([row for row in found if row["dataset"] == name], reference) for name in names}
