"""EVAL: the same questions to the base model and to the tuned one, and how sure the difference is.

Three systems answer every question: the base asked directly, the base under the GRIT prompt, and the tuned model under
the GRIT prompt; a fourth may be another run's. Each completion becomes one row of `eval/<benchmark>.jsonl`; the rows
become the cells and paired differences of `eval/<benchmark>.json`.

`question` and `benchmarks` say what is asked, `runner` asks, `rows` reads and scores what was said, `statistics`
doubts, `summary` puts it together.
"""

import json
import random
from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from grit_lite.backends import Backend, ModelSpec
from grit_lite.errors import UsageError
from grit_lite.evaluate.benchmarks import shapes
from grit_lite.evaluate.question import Question, from_triplet
from grit_lite.evaluate.rows import Row, row, scored_by, short_ending
from grit_lite.evaluate.runner import SYSTEMS, WHOLE, Asked, Asking, Completions, Decoding, Progress, Shard, System
from grit_lite.evaluate.summary import summarise, table
from grit_lite.run import replace_text, write_json

__all__ = [
    "SYSTEMS",
    "WHOLE",
    "Decoding",
    "Evaluation",
    "Question",
    "Shard",
    "System",
    "evaluate",
    "from_triplet",
    "shapes",
    "short_ending",
    "table",
]

EXAMPLES = 24
EXAMPLE_SEED = 0


class _Part(NamedTuple):
    """What one system was asked, and how it reads and writes."""

    system: System
    asked: list[Asked]
    spec: ModelSpec


class Evaluation:
    """One benchmark, asked of one system after the other, into one folder.

    Args:
        benchmark: names the file of completions, which all evaluations of these questions share.
        folder: `eval` of a run folder.
        beside: other such folders, whose completions count as well.
        batch_size: questions that are asked together; halved whenever they do not fit into memory.
        shard: the part of them that this process asks.

    Raises:
        UsageError: two questions have the same id.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        *,
        benchmark: str,
        folder: Path,
        decoding: Decoding,
        batch_size: int = 32,
        shard: Shard = WHOLE,
        beside: Sequence[Path] = (),
    ) -> None:
        if len({question.id for question in questions}) < len(questions):
            raise UsageError(f"The questions of {benchmark} cannot be told apart: two have the same id.")
        self.questions, self.benchmark, self.folder = questions, benchmark, folder
        self.decoding, self.batch_size, self.shard = decoding, batch_size, shard
        self.completions = Completions(folder, benchmark, shard, beside)
        self.settings: dict[str, Any] = {"systems": {}}
        self._parts: dict[str, _Part] = {}

    def ask(self, backend: Backend, systems: Mapping[str, System], progress: Progress) -> None:
        """Ask one model as each of these systems.

        Raises:
            OutOfMemory: not even one question at a time fits.
            UsageError: another process is writing into the folder.
        """
        asking = Asking(backend, self.decoding, self.batch_size)
        with self.completions.writing():
            for name, system in systems.items():
                part = self._parts[name] = _Part(system, asking.prepare(self.questions, system), backend.spec)
                asking.ask(part.asked, system, self.completions, self.shard, lambda *done, of=name: progress(of, *done))
                self.settings["systems"][name] = asking.describe(system)
        if asking.at_once < self.batch_size:
            self.settings["halved_to_batch_size"] = asking.at_once

    def missing(self) -> int:
        """How many completions are not there yet, because they are other processes' to ask."""
        self.completions.read()
        return sum(one.key not in self.completions for part in self._parts.values() for one in part.asked)

    def conclude(
        self,
        name: str,
        systems: Sequence[str],
        settings: Mapping[str, Any] | None = None,
        aggregates: Sequence[Any] = (),
    ) -> dict[str, Any]:
        """The summary, after it and every row were written as `folder`/<name>.json and .jsonl.

        Args:
            name: of the files, and what the tables are called after.
            systems: those that were asked, in the order of the table; the last one is the one in question, the others
                are what it is held against.
            settings: whatever else a reader must know to repeat this.
            aggregates: numbers over many rows that are no mean; see `summarise`.
        """
        rows = {system: self._rows(system) for system in systems}
        asked = {**self._settings(systems), **(settings or {})}
        result = {"benchmark": name, "split": asked.get("split", ""), "n": len(self.questions), "settings": asked}
        result |= summarise(rows, aggregates)
        save_examples(rows, self.questions, self.folder, name)
        by_question = (row for together in zip(*rows.values(), strict=True) for row in together)
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in by_question)
        replace_text(self.folder / f"{name}.jsonl", "".join(lines))
        write_json(self.folder / f"{name}.json", result)
        return result

    def _rows(self, system: str) -> list[Row]:
        part = self._parts[system]
        return [row(system, part.system.style, one, self.completions[one.key], part.spec) for one in part.asked]

    def _settings(self, systems: Sequence[str]) -> dict[str, Any]:
        prompts = self._parts[systems[-1]].spec.prompts
        sampled = self.decoding.temperature > 0
        return {
            "model": self.settings["systems"][systems[-1]]["model"],
            "max_new_tokens": self.decoding.max_new_tokens,
            "decoding": "sampled" if sampled else "greedy",
            **({"temperature": self.decoding.temperature, "draws": self.decoding.draws} if sampled else {}),
            "prompts": {style: getattr(prompts, style) for style in ("direct", "grounded")},
            "rows_sha256": rows_sha256(self.questions),
            "scored_by": scored_by(),
            **self.settings,
        }


def evaluate(
    backend: Backend,
    questions: Sequence[Question],
    *,
    benchmark: str,
    folder: Path,
    systems: Sequence[str] = tuple(SYSTEMS),
    max_new_tokens: int,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The summary of one model asked greedily as some of `SYSTEMS`; see `Evaluation`.

    The numbers do not depend on `batch_size`.
    """
    evaluation = Evaluation(
        questions, benchmark=benchmark, folder=folder, decoding=Decoding(max_new_tokens), batch_size=batch_size
    )
    evaluation.ask(backend, {name: SYSTEMS[name] for name in systems}, progress or _tell_nobody)
    return evaluation.conclude(benchmark, systems)


def _tell_nobody(system: str, done: int, total: int) -> None:
    return


def rows_sha256(questions: Sequence[Question]) -> str:
    """The sha256 of all that the questions hold, in order, with the bytes of their images."""
    digest = sha256()
    for question in questions:
        parts = [question.id, question.text, question.gold, question.scorer, question.dataset, question.cluster]
        parts += [question.image_hashes(), question.boxes, dict(question.facts)]
        digest.update(json.dumps(parts, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def save_examples(rows: Mapping[str, list[Row]], questions: Sequence[Question], folder: Path, name: str) -> None:
    """Save the images of a few questions and name them in their rows."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    draws = len(next(iter(rows.values()))) // len(questions)
    firsts = {system: together[::draws] for system, together in rows.items()}
    systems = list(rows)
    for index in examples(firsts[systems[0]], firsts[systems[-1]]):
        path = images / f"{name}-{index:05d}.png"
        questions[index].load_images()[0].save(path)
        for together in rows.values():
            for one in together[index * draws : (index + 1) * draws]:
                one["image"] = path.relative_to(folder).as_posix()


def examples(before: Sequence[Row], after: Sequence[Row], count: int = EXAMPLES) -> list[int]:
    """Which rows to show, drawn with a fixed seed: fixed, broken, both wrong, both right, in turn while they last."""
    order = list(range(len(before)))
    random.Random(EXAMPLE_SEED).shuffle(order)
    outcomes = [(False, True), (True, False), (False, False), (True, True)]
    right = [(bool(one["correct"]), bool(other["correct"])) for one, other in zip(before, after, strict=True)]
    piles = [[i for i in order if right[i] == outcome] for outcome in outcomes]
    turns = (pile[turn] for turn in range(len(order)) for pile in piles if turn < len(pile))
    return sorted(islice(turns, count))
