"""What judges have said, kept for good: a verdict that was paid for once is not asked for again.

One SQLite table of hashes and scores, in which neither questions nor answers can be read. Several threads and several
processes may use the same file; each verdict is written as soon as it is known.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from grit_lite.errors import JudgeError


def cache_file() -> Path:
    """grit-lite/judge.sqlite in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "grit-lite" / "judge.sqlite"


class Cache:
    """Scores by key.

    Raises:
        JudgeError: the file cannot be used; every method may find that out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, score REAL, at REAL)")

    def get(self, key: str) -> float | None:
        with self._lock, self._explained():
            row = self._database.execute("SELECT score FROM scores WHERE key = ?", (key,)).fetchone()
        return row and row[0]

    def put(self, key: str, score: float) -> None:
        with self._lock, self._explained():
            self._database.execute("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", (key, score, time.time()))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise JudgeError(
                f"The file of judged answers, {self.path}, cannot be used: {error}. Move it away, or set "
                "XDG_CACHE_HOME to a folder on a disk of this machine."
            ) from error
