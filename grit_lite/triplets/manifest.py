"""What was fetched from the network: each file of a data folder with its SHA-256, its size and where it came from.

A file is written aside and renamed, then noted in `manifest.jsonl`, one line of JSON each; the last line of a file
counts. So whatever stops a download, a file is whole and noted, or it is fetched again. Nothing is synced to the disk:
a file that a power cut damaged no longer has the hash that was noted.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grit_lite.errors import NotFetched

MANIFEST = "manifest.jsonl"


def data_folder() -> Path:
    """Where fetched data lies: $GRIT_LITE_DATA, else grit-lite/data in $XDG_CACHE_HOME or ~/.cache."""
    if named := os.environ.get("GRIT_LITE_DATA"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "grit-lite" / "data"


class Manifest:
    """The manifest of one folder; `folder` need not exist yet. Files are named relative to it, with slashes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries = {entry["file"]: entry for entry in _entries(folder / MANIFEST)}

    def notes(self, file: str) -> bool:
        """Whether the file was fetched once, whatever became of it."""
        return file in self._entries

    def holds(self, file: str) -> bool:
        """Whether the file is there as it was fetched."""
        path, entry = self.folder / file, self._entries.get(file)
        if entry is None or not path.is_file() or path.stat().st_size != entry["bytes"]:
            return False
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == entry["sha256"]

    def add(self, file: str, data: bytes, source: str) -> None:
        """Write a file and note it.

        Raises:
            NotFetched: it cannot be written.
        """
        entry = {"file": file, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "source": source}
        path = self.folder / file
        aside = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(data)
            os.replace(aside, path)
            _append(self.folder / MANIFEST, json.dumps(entry, ensure_ascii=False))
        except OSError as error:
            raise NotFetched(
                f"{path} cannot be written ({error.strerror or error}). Free disk space, correct the permissions, or "
                "name another folder in GRIT_LITE_DATA; the same command goes on."
            ) from error
        self._entries[file] = entry


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """The entries that can be read. A line that was cut off belongs to a file that is then fetched again."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            entry = json.loads(line)
            yield {name: entry[name] for name in ("file", "sha256", "bytes", "source")}
        except (ValueError, KeyError, TypeError):
            continue


def _append(path: Path, line: str) -> None:
    """One line at the end, on a line of its own even after one that was cut off."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read() == b"\n" else f"\n{line}"
        file.write(f"{line}\n".encode())
