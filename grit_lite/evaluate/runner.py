"""Asking: every question put to every system, once.

A completion is kept in a file as soon as its batch is done, under a key that is a hash of everything it depends on: the
model's weights, adapter, processor and configuration as they are in memory, the code that samples, the rendered prompt,
the images, and how it is decoded. So an evaluation that was interrupted goes on where it was, and one of a model that
has changed asks again, whatever the folder and the names are. Scores are no part of it: they are made anew from the
completions every time, because that takes no time, so that no score is ever older than the code.

Batches are cut from all questions before it is seen which of them are known already, and are asked whole. A model may
round differently in another batch; this way there never is another one, after an interruption or in a shard.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from filelock import FileLock, Timeout

from grit_lite import fitting
from grit_lite.backends import Backend, Generated, Request
from grit_lite.errors import OutOfMemory, UsageError
from grit_lite.evaluate.question import Question
from grit_lite.fitting import halving, is_out_of_memory
from grit_lite.run import read_rows

Result = TypeVar("Result")
Progress = Callable[[str, int, int], None]  # told (system, questions done, questions in all) after each batch

# What else a completion depends on, of what a backend says of itself.
_GENERATOR = ("backend", "device", "dtype", "load_in_4bit", "engine", "versions")

# The code that makes a completion of a prompt and its images; see `sampled_by`.
_SAMPLING = (
    "triplets/images.py",
    "families.py",
    "vlm.py",
    "packing.py",
    "rollout.py",
    "engine.py",
    "backends/common.py",
    "backends/plain.py",
    "backends/unsloth.py",
)


class System(NamedTuple):
    """One way to ask one model: which prompt, and whether the adapter is on."""

    style: Literal["grounded", "direct"]
    use_adapter: bool


SYSTEMS = {
    "base_direct": System("direct", use_adapter=False),
    "base": System("grounded", use_adapter=False),
    "tuned": System("grounded", use_adapter=True),
}


@dataclass(frozen=True)
class Decoding:
    """How completions are drawn: greedily, or `draws` times for each question, each from a seed of its own."""

    max_new_tokens: int
    temperature: float = 0.0
    draws: int = 1


@dataclass(frozen=True)
class Shard:
    """One part of the batches, by its number from 0, of several processes that know nothing of each other."""

    index: int = 0
    count: int = 1

    @classmethod
    def read(cls, text: str) -> "Shard":
        """The shard that a person calls "2/4".

        Raises:
            UsageError: it is not one of 1/n to n/n.
        """
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise UsageError(f"--shard {text}: write it as 1/4, 2/4, 3/4 and 4/4 for four processes.")
        return cls(int(index) - 1, int(count))

    def has(self, batch: int) -> bool:
        return batch % self.count == self.index


WHOLE = Shard()


class Asked(NamedTuple):
    """A question as one system is asked it, for the `draw`-th time; `seed` is what that begins from, None if greedy."""

    question: Question
    draw: int
    prompt: str
    seed: int | None
    key: str


class Completions:
    """What was said, by key, in files beside the results: one for each shard, and those of other folders to read."""

    def __init__(self, folder: Path, benchmark: str, shard: Shard = WHOLE, beside: Sequence[Path] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folders, self.benchmark = (*beside, folder), benchmark
        own = "" if shard.count == 1 else f".{shard.index + 1}of{shard.count}"
        self.path = folder / f"{benchmark}.completions{own}.jsonl"
        self._known: dict[str, Generated] = {}
        self.read()

    def read(self) -> None:
        """Look again at what is in the files; other processes may have written theirs."""
        for folder in self.folders:
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if path.name.startswith(f"{self.benchmark}.completions") and path.suffix == ".jsonl":
                    self._known |= {row.pop("key"): _generated(row) for row in read_rows(path)}

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Generated:
        return self._known[key]

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Own the file until it is closed.

        Raises:
            UsageError: another process does.
        """
        try:
            with FileLock(self.path.with_suffix(".lock"), timeout=0):
                _drop_torn_line(self.path)
                yield
        except Timeout as error:
            raise UsageError(
                f"Another process is evaluating into {self.path.parent}. Wait for it, or divide the work: --shard 1/2 "
                "in one, --shard 2/2 in the other."
            ) from error

    def add(self, completions: Mapping[str, Generated]) -> None:
        """Keep completions; they survive the death of this process, and of the machine, from here on."""
        self._known |= completions
        rows = ({"key": key, **asdict(completion)} for key, completion in completions.items())
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())


def _generated(row: Mapping[str, Any]) -> Generated:
    return Generated(**{**row, "resized": tuple(row["resized"])})


def _drop_torn_line(path: Path) -> None:
    """Cut off what a killed process has left half written: the next row would be written behind it."""
    if path.is_file() and not (data := path.read_bytes()).endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)


class Asking:
    """Questions to one model, as many at the same time as memory allows.

    Attributes:
        batch_size: the questions of a batch; `at_once` of them go through the model together, fewer where not all fit.
    """

    def __init__(self, backend: Backend, decoding: Decoding, batch_size: int) -> None:
        self.backend, self.decoding = backend, decoding
        self.batch_size = self.at_once = batch_size
        # How much of it could be trained changes when an adapter is switched off and on, and nothing else does.
        self.said = {name: fact for name, fact in backend.describe().items() if name != "trainable"}
        self.fingerprints = backend.fingerprints()
        generator = {name: self.said.get(name) for name in _GENERATOR}
        self.identity = {**self.fingerprints, "generator": generator, "sampled_by": sampled_by()}

    def prepare(self, questions: Sequence[Question], system: System) -> list[Asked]:
        """Every question as it will be asked, in order, its draws one after the other."""
        render = self.backend.spec.prompts.render
        prompts = [render(question.text, style=system.style) for question in questions]
        hashes = [question.image_hashes() for question in questions]
        identity = {**self.identity, **({} if system.use_adapter else {"adapter": None})}
        asked = []
        for (question, prompt, images), draw in product(
            zip(questions, prompts, hashes, strict=True), range(self.decoding.draws)
        ):
            begins = seed(question, draw) if self.decoding.temperature else None
            asked.append(Asked(question, draw, prompt, begins, key(identity, prompt, images, self.decoding, begins)))
        return asked

    def ask(
        self,
        asked: Sequence[Asked],
        system: System,
        completions: Completions,
        shard: Shard,
        progress: Callable[[int, int], None],
    ) -> None:
        """Put what is not known yet of a shard into `completions`.

        Raises:
            OutOfMemory: not even one question at a time fits.
        """
        starts = range(0, len(asked), self.batch_size)
        batches = [asked[start : start + self.batch_size] for number, start in enumerate(starts) if shard.has(number)]
        done, total = 0, sum(map(len, batches))
        for batch in batches:
            if any(one.key not in completions for one in batch):
                said = self._generate(batch, system)
                completions.add({one.key: completion for one, completion in zip(batch, said, strict=True)})
            done += len(batch)
            progress(done, total)

    def describe(self, system: System) -> dict[str, Any]:
        """Which model, by its hashes, and which prompt."""
        without = {} if system.use_adapter else {"adapter": None}
        prompt = getattr(self.backend.spec.prompts, system.style)
        return {"model": self.said, **self.fingerprints, **without, "prompt": prompt}

    def _generate(self, batch: Sequence[Asked], system: System) -> list[Generated]:
        requests = [Request(tuple(one.question.load_images()), one.prompt) for one in batch]
        return self.generate(
            requests,
            max_new_tokens=self.decoding.max_new_tokens,
            use_adapter=system.use_adapter,
            temperature=self.decoding.temperature,
            seeds=[one.seed for one in batch if one.seed is not None] or None,
        )

    def generate(self, requests: Sequence[Request], **options: Any) -> list[Generated]:
        """As the backend generates, in batches that fit into memory.

        Raises:
            OutOfMemory: not even one question at a time fits.
        """
        generated, self.at_once = within_memory(
            lambda size: self.backend.generate(requests, batch_size=size, **options), self.at_once
        )
        return generated


def within_memory(ask: Callable[[int], Result], at_once: int) -> tuple[Result, int]:
    """What `ask` returns, told how many questions to ask at a time, halved until they fit, and how many did.

    Raises:
        OutOfMemory: not even one question at a time fits.
    """
    try:
        return halving(ask, at_once)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"The evaluation did not fit into memory, not even one question at a time: {error}\nEnd other programs "
            "that use this memory, or lower max_pixels or max_completion_tokens in the recipe."
        ) from error


def key(
    identity: Mapping[str, Any], prompt: str, images: Sequence[str], decoding: Decoding, seed: int | None = None
) -> str:
    """The sha256 of all that a completion depends on.

    Questions that ask the same of the same images share a greedy completion; a sampled one begins from its own seed.
    """
    parts = {"model": identity, "prompt": prompt, "images": images, "decoding": asdict(decoding), "seed": seed}
    del parts["decoding"]["draws"]  # how many others there are is all the same to it
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def seed(question: Question, draw: int) -> int:
    """What a draw of a question begins from; the same for every system, so that they differ in nothing else."""
    digest = hashlib.sha256(f"{question.id} {draw}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def sampled_by() -> str:
    """The sha256 of the code of ours that makes a completion of a prompt and its images.

    It stands in the keys in the place of a version of this package, which stays the same while somebody works on that
    code, and changes with releases that sample as before. An edit that changes no completion asks again: that costs
    time, and is never wrong. The libraries are in the keys by their versions.
    """
    package = Path(str(fitting.__file__)).parent
    return hashlib.sha256(b"".join((package / name).read_bytes() for name in _SAMPLING)).hexdigest()
