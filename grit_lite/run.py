"""RUN: the run folder, which is the interface between training and everything that reads its results.

    recipe.yaml  run.json  metrics.jsonl  timing.jsonl  samples.jsonl
    images/  checkpoints/step-000100/  adapter/  eval/

Nothing here is ever half written where a reader would look: files are replaced whole, rows are appended whole, and a
checkpoint is written aside, synced, hashed and renamed. A process that dies at any instant leaves the newest complete
checkpoint usable. One process at a time owns a folder, by a lock of the operating system that dies with the process.
Where a run has several processes, the first owns the folder, and the others follow it.
"""

import hashlib
import json
import os
import platform
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from grit_lite import processes
from grit_lite.errors import DataError, UsageError
from grit_lite.recipe import Recipe, load_recipe

METRICS, TIMING, SAMPLES = "metrics.jsonl", "timing.jsonl", "samples.jsonl"
MANIFEST = "MANIFEST.json"

_WRITTEN_ABOUT = {".md", ".png", ".html"}  # a model or an adapter, in its folder; nothing that an answer depends on


class Run:
    """One run folder, owned by this process until `close`."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder = folder
        self.recipe = recipe
        self._lock = FileLock(folder / "lock")
        self._acquire()

    @classmethod
    def create(cls, folder: Path, recipe: Recipe) -> "Run":
        """A new run in an empty or new folder.

        Raises:
            UsageError: the folder holds something, or another process is training in it.
        """
        if folder.is_file() or (folder.is_dir() and _holds_something(folder)):
            way_out = "go on with it: --resume" if (folder / "recipe.yaml").is_file() else "empty it yourself"
            raise UsageError(
                f"The folder {folder} is not empty, and grit-lite never writes over results. "
                f"Choose another with --output, or {way_out}."
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            run = cls(folder, recipe)
            replace_text(folder / "recipe.yaml", recipe.text())  # of half a recipe the rest would be defaults
        except OSError as error:
            raise UsageError(
                f"The run folder {folder} cannot be written: {error}. Choose another: --output."
            ) from error
        run._begin()
        return run

    def _begin(self) -> None:
        facts = {
            "status": "running",
            "recipe": self.recipe.name,
            "started": _now(),
            "machine": machine(),
            "changes": [],
        }
        write_json(self.folder / "run.json", facts)

    @classmethod
    def resume(cls, folder: Path) -> "Run":
        """An interrupted run, to be continued by the recipe that it holds.

        Raises:
            UsageError: there is no run in the folder, it is finished, or another process is training in it.
        """
        if not (folder / "recipe.yaml").is_file():
            raise UsageError(f"There is no run to resume in {folder}: it has no recipe.yaml.")
        run = cls(folder, load_recipe(str(folder / "recipe.yaml")))
        if run.facts().get("status") == "done":
            run.close()
            raise UsageError(f"The run in {folder} is done; there is nothing to resume. Start another with --output.")
        shutil.rmtree(run.staging, ignore_errors=True)
        if "started" not in run.facts():  # killed while the folder was being made
            run._begin()
        return run

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            owner = self.facts().get("machine", {})
            raise UsageError(
                f"Another process (pid {owner.get('pid', '?')} on {owner.get('host', '?')}) is training in "
                f"{self.folder}. Wait for it, or choose another folder with --output."
            ) from error

    def close(self) -> None:
        self._lock.release()

    # run.json

    def facts(self) -> dict[str, Any]:
        return read_facts(self.folder)

    def update(self, **facts: Any) -> None:
        """Set top-level entries of run.json."""
        write_json(self.folder / "run.json", {**self.facts(), **facts})

    @property
    def recipe_in_force(self) -> Recipe:
        """The recipe, with what was made smaller because a step did not fit into memory."""
        return self.recipe.model_copy(update=self.facts().get("made_smaller", {}))

    def make_smaller(self, changes: Mapping[str, Any], what: str) -> None:
        """Change values of the recipe for the rest of the run, this process's and any that resumes it."""
        self.update(made_smaller={**self.facts().get("made_smaller", {}), **changes})
        self.changed(what)

    def changed(self, what: str) -> None:
        """Record a change that was made without being asked for."""
        self.update(changes=[*self.facts().get("changes", []), what])

    def finish(self, status: str, **facts: Any) -> None:
        started = datetime.fromisoformat(self.facts()["started"])
        seconds = (datetime.now(UTC) - started).total_seconds()
        self.update(status=status, finished=_now(), seconds=round(seconds, 1), **facts)

    # rows

    def append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to a .jsonl file of the folder; they survive the death of this process from here on."""
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(text)

    def rewind(self, step: int) -> None:
        """Drop the rows of steps after `step`, and whatever a dying process left half written."""
        for name in (METRICS, TIMING, SAMPLES):
            path = self.folder / name
            kept = [row for row in read_rows(path) if row["step"] <= step]
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
            replace_text(path, text)

    # checkpoints

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def staging(self) -> Path:
        """Where a checkpoint is written before it counts."""
        return self.checkpoints / ".staging"

    def commit_checkpoint(self, staged: Path, step: int) -> Path:
        """Make `staged` the complete checkpoint of `step`, and delete checkpoints past the keep limit.

        The rows written so far are synced first, so that a checkpoint never claims a step whose rows could be lost.
        """
        for name in (METRICS, TIMING, SAMPLES):
            if (self.folder / name).is_file():
                _sync(self.folder / name)
        files = sorted(path for path in staged.rglob("*") if path.is_file())
        entries = {str(path.relative_to(staged)): _fingerprint(path) for path in files}
        for path in files:
            _sync(path)
        write_json(staged / MANIFEST, {"step": step, "files": entries})
        final = self.checkpoints / f"step-{step:06d}"
        if final.exists():  # an incomplete one of an earlier try; a complete one would have been resumed from
            shutil.rmtree(final)
        os.replace(staged, final)
        _sync(self.checkpoints)
        for old in sorted(self.checkpoints.glob("step-*"))[: -self.recipe.keep_checkpoints]:
            shutil.rmtree(old)
        return final

    def latest_checkpoint(self) -> tuple[int, Path] | None:
        """(step, folder) of the newest checkpoint that is complete to the last byte."""
        for folder in sorted(self.checkpoints.glob("step-*"), reverse=True):
            if is_complete(folder):
                return int(folder.name.removeprefix("step-")), folder
        return None

    def check_data(self, sha256: str) -> None:
        """Remember the hash of the training data, or refuse to go on with other data than the run began with."""
        known = self.facts().get("data", {}).get("sha256")
        if known not in (None, sha256):
            raise DataError(
                f"The training data changed since this run began (sha256 {known[:12]}… then, {sha256[:12]}… now). "
                "Restore it, or start a new run with --output."
            )


class Follower(Run):
    """The folder of a run as its other processes see it: they read, and the first process writes.

    Raises:
        UsageError: the folder cannot be seen from here.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "recipe.yaml").is_file():
            raise UsageError(f"Process {processes.index()} does not see {folder}. Name a folder on a shared disk.")
        super().__init__(folder, load_recipe(str(folder / "recipe.yaml")))

    def _acquire(self) -> None:
        return

    def update(self, **facts: Any) -> None:
        return

    def finish(self, status: str, **facts: Any) -> None:
        """Say that this process failed alone: the first may be killed, while it waits, before it can say so."""
        if status == "failed":
            Run.update(self, status=status, finished=_now(), error=f"process {processes.index()}: {facts['error']}")

    def append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        return

    def rewind(self, step: int) -> None:
        return


def open_together(open_run: Callable[[], Run]) -> Run:
    """The run that the first process opens, for every process of it."""
    own = processes.together(lambda: open_run() if processes.is_first() else None)
    folder: Any = processes.gathered([own and own.folder])[0]
    return processes.together(lambda: own or Follower(folder))


def _holds_something(folder: Path) -> bool:
    """Whether there is more in a folder than a run leaves that failed before its first step."""
    found = (path.name for path in folder.iterdir())
    return any(name not in {"lock", "recipe.yaml", "run.json", "images"} and not _is_aside(name) for name in found)


def _is_aside(name: str) -> bool:
    """Whether a file is what `replace_text` has left where it was killed."""
    return name.startswith(".") and name.endswith(".new")


def new_folder(recipe: Recipe, root: Path = Path("runs")) -> Path:
    return root / f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}"


def newest_finished(root: Path = Path("runs")) -> Path | None:
    """The run folder below `root` that was finished last and has an adapter."""
    done = [path.parent for path in root.glob("*/run.json") if (path.parent / "adapter").is_dir()]
    return max(done, key=lambda folder: read_facts(folder).get("finished", ""), default=None)


def read_facts(folder: Path) -> dict[str, Any]:
    """What run.json says; nothing where there is none.

    Raises:
        DataError: somebody edited it into something else.
    """
    path = folder / "run.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise DataError(f"{path} is not readable JSON: {error}. Restore it, or move the folder away.") from error
    return facts if isinstance(facts, dict) else {}


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .jsonl file; a torn last line, as a killed process leaves it, is not a row.

    Raises:
        DataError: a whole line is not JSON, so something other than grit-lite wrote it.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n") and line.strip():
                yield _row(path, number, line)


def _row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}:{number}: not JSON: {error}. Take the line out, or restore the file.") from error


def is_complete(checkpoint: Path) -> bool:
    """Whether every file of the manifest is there with the size and hash it was written with."""
    try:
        entries = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    paths = {name: checkpoint / name for name in entries}
    return all(path.is_file() and _fingerprint(path) == entries[name] for name, path in paths.items())


def write_json(path: Path, value: Any) -> None:
    replace_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Replace a whole file: a reader sees the old text or the new one, never a part."""
    aside = path.with_name(f".{path.name}.{processes.index()}.new")
    aside.write_text(text, encoding="utf-8")
    _sync(aside)
    os.replace(aside, path)


def contents(folder: Path) -> str:
    """The sha256 of the files of a model's or an adapter's folder, with their names."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file() and path.suffix not in _WRITTEN_ABOUT):
        with path.open("rb") as file:
            digest.update(f"{path.name}\n".encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def machine() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
