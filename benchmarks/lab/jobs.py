"""Every missing run of the study in a process of its own, a few at a time, each on one thread."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.lab import ROOT, results
from benchmarks.lab.measuring import Plain, held_out_questions
from benchmarks.lab.one import commit, header, identity
from benchmarks.lab.study import Arm, Study


@dataclass
class Jobs:
    """How the runs of a study are carried out.

    Attributes:
        output: where results.jsonl lies.
        scratch: where run folders, drawn triplets and logs lie; what was killed goes on from there.
        share, split: of the questions.
    """

    study: Study
    study_file: Path
    output: Path
    scratch: Path
    share: float = 1.0
    split: Plain = "test"
    _folder: Path = field(init=False)
    _children: set[subprocess.Popen] = field(default_factory=set)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def run(self, chosen: Sequence[tuple[Arm, int]], at_once: int) -> int:
        """Carry out those of the chosen runs that are missing; how many failed."""
        head = header(self.study, held_out_questions(self.share, self.split))
        results.begin(self.output, head)
        # Adapters that were trained on other weights, or by other code than the row will name, are no part of it.
        self._folder = self.scratch / f"{head['weights_sha256'][:12]}-{commit() or 'unknown'}"
        missing = results.missing(results.read(self.output)[1], self.study, chosen)
        print(f"{len(chosen) - len(missing)} of {len(chosen)} runs are there, {len(missing)} to go.", flush=True)
        began, failed = time.monotonic(), 0
        with ThreadPoolExecutor(at_once) as pool:
            try:
                waiting = {pool.submit(self._one, arm, seed): f"{arm.id} seed {seed}" for arm, seed in missing}
                for number, done in enumerate(as_completed(waiting), start=1):
                    failed += not done.result()
                    outcome = "done" if done.result() else "FAILED"
                    minutes = (time.monotonic() - began) / 60
                    print(f"{number}/{len(missing)} {waiting[done]}: {outcome} ({minutes:.1f} min)", flush=True)
            except BaseException:
                self._stop(pool)
                raise
        return failed

    def _stop(self, pool: ThreadPoolExecutor) -> None:
        """No new run; those that are under way keep a checkpoint and end."""
        self._stopping.set()
        pool.shutdown(wait=False, cancel_futures=True)
        for child in list(self._children):
            child.terminate()

    def _one(self, arm: Arm, seed: int) -> bool:
        """Whether the run has written its row; if not, its failure is one."""
        if self._stopping.is_set():
            return False
        log = self._folder / "logs" / f"{arm.group}-{arm.name}-seed-{seed}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "benchmarks.lab.one", arm.id, str(seed), "--study", self.study_file]
        command += ["--output", self.output, "--scratch", self._folder, "--share", str(self.share)]
        command += ["--split", self.split]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"}
        with log.open("wb") as file:
            # A session of its own: Ctrl-C in a terminal reaches this process, which asks the child to end, once.
            child = subprocess.Popen(
                [*map(str, command)], stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            self._children.add(child)
            if self._stopping.is_set():  # since it was looked at above
                child.terminate()
            code = child.wait()
            self._children.discard(child)
        if code and not self._stopping.is_set():
            error = f"exit code {code}: {_last_line(log)}"
            results.append(self.output, {**identity(self.study, arm, seed), "error": error})
        return code == 0


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it said nothing")[:500]
