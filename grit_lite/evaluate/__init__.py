"""EVAL: the same questions to the base model and to the tuned one, and how sure the difference is.

Three systems answer every question: the base asked directly, the base under the GRIT prompt, and the tuned model under
the GRIT prompt; a fourth may be another run's. Each completion becomes one row of `eval/<benchmark>.jsonl`; the rows
become the cells and paired differences of `eval/<benchmark>.json`.

`question` and `benchmarks` say what is asked, `runner` asks, `rows` reads and scores what was said, `statistics`
doubts, `summary` puts it together. `faithfulness` asks again what the answers hang on.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from grit_lite import __version__
from grit_lite.backends import Backend, ModelSpec
from grit_lite.errors import UsageError
from grit_lite.evaluate.aggregates import Aggregate
from grit_lite.evaluate.benchmarks import shapes
from grit_lite.evaluate.gallery import keep_pictures, write_gallery
from grit_lite.evaluate.judging import judge_rows
from grit_lite.evaluate.question import Question, from_triplet
from grit_lite.evaluate.rows import Row, row, scored_by, short_ending
from grit_lite.evaluate.runner import (
    SYSTEMS,
    WHOLE,
    Asked,
    Asking,
    Completions,
    Decoding,
    Progress,
    Shard,
    System,
    sampled_by,
)
from grit_lite.evaluate.summary import summarise, table
from grit_lite.judge import Judge
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
    "write_gallery",
]


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

    def ask(
        self, backend: Backend, systems: Mapping[str, System], progress: Progress, adapter_from: str | None = None
    ) -> None:
        """Ask one model as each of these systems.

        Args:
            adapter_from: what a reader knows the adapter's run by.

        Raises:
            OutOfMemory: not even one question at a time fits.
            UsageError: another process is writing into the folder.
        """
        asking = Asking(backend, self.decoding, self.batch_size)
        with self.completions.writing():
            for name, system in systems.items():
                part = self._parts[name] = _Part(system, asking.prepare(self.questions, system), backend.spec)
                asking.ask(part.asked, system, self.completions, self.shard, lambda *done, of=name: progress(of, *done))
                origin = {"adapter_from": adapter_from} if system.use_adapter else {}
                self.settings["systems"][name] = {**asking.describe(system), **origin}
        if asking.at_once < self.batch_size:
            self.settings["halved_to_batch_size"] = asking.at_once

    @property
    def asked(self) -> list[str]:
        """The systems that were asked, in order."""
        return list(self._parts)

    def missing(self) -> int:
        """How many completions are not there yet, because they are other processes' to ask."""
        self.completions.read()
        return sum(one.key not in self.completions for part in self._parts.values() for one in part.asked)

    def conclude(
        self,
        name: str,
        systems: Sequence[str],
        settings: Mapping[str, Any] | None = None,
        aggregates: Sequence[Aggregate] = (),
        judge: Judge | None = None,
    ) -> dict[str, Any]:
        """The summary, after it and every row were written as `folder`/<name>.json and .jsonl.

        Small copies of the images go to `folder`/images.

        Args:
            name: of the files, and what the tables are called after.
            systems: those that were asked, in the order of the table; the last one is the one in question, the others
                are what it is held against.
            settings: whatever else a reader must know to repeat this.
            aggregates: numbers over many rows that are no mean.
            judge: scores the rows whose scorer it is; None leaves them without a score.

        Raises:
            JudgeError: the judge fails too often.
        """
        rows = {system: self.rows(system) for system in systems}
        judged = judge_rows([row for together in rows.values() for row in together], judge)
        asked = {**self._settings(systems), **({"judge": judged} if judged else {}), **(settings or {})}
        result = {"benchmark": name, "split": asked.get("split", ""), "n": len(self.questions), "settings": asked}
        result |= summarise(rows, aggregates)
        keep_pictures(rows, self._images, self.folder, name)
        by_question = (row for together in zip(*rows.values(), strict=True) for row in together)
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in by_question)
        replace_text(self.folder / f"{name}.jsonl", "".join(lines))
        write_json(self.folder / f"{name}.json", result)
        return result

    def _images(self, row: int) -> list[Image.Image]:
        return self.questions[row // self.decoding.draws].load_images()

    def rows(self, system: str) -> list[Row]:
        """What a system that was asked said, read and scored; nothing is judged yet."""
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
            "grit-lite": __version__,
            "sampled_by": sampled_by(),
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
