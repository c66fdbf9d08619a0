"""Seconds, memory, and the machine they were taken on."""

import ctypes
import datetime
import gc
import os
import platform
import resource
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, TypeVar

import psutil
import torch

MIB = 2**20
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "unsloth", "unsloth_zoo", "triton")
T = TypeVar("T")
Name = TypeVar("Name")


class Seconds(NamedTuple):
    """Time that has passed: what it cost, and by the clock on the wall.

    The cost on a CPU is the user time of the whole process, all threads together: it does not count what other programs
    do meanwhile, nor what the kernel does for page faults. On CUDA it is the time until the device was done.
    """

    cost: float
    wall: float

    @classmethod
    def now(cls, device: torch.device) -> "Seconds":
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            return cls(time.perf_counter(), time.perf_counter())
        return cls(resource.getrusage(resource.RUSAGE_SELF).ru_utime, time.perf_counter())

    def plus(self, other: "Seconds") -> "Seconds":
        return Seconds(self.cost + other.cost, self.wall + other.wall)

    def since(self, other: "Seconds") -> "Seconds":
        return Seconds(self.cost - other.cost, self.wall - other.wall)


ZERO = Seconds(0.0, 0.0)


class Meter:
    """The peak of memory, in MiB above what was in use when it was made.

    On CUDA this is what the allocator counts. On a CPU it is the resident set, read by a thread every 5 ms: a process's
    own record of its peak cannot be reset, and would still hold that of loading the model.

    Attributes:
        reserved: the most that the allocator had reserved of the GPU, in MiB; 0 on a CPU.
    """

    def __init__(self, device: torch.device) -> None:
        gc.collect()
        self.device = device
        self.reserved = 0.0
        self._process = psutil.Process()
        self._highest = 0
        self._stop = threading.Event()
        if device.type == "cpu":
            _give_back_free_memory()
            threading.Thread(target=self._watch, daemon=True).start()
        self.base = self._in_use()
        self.take()

    def take(self) -> float:
        """The peak since the last call."""
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            self.reserved = max(self.reserved, torch.cuda.max_memory_reserved(self.device) / MIB)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            peak, self._highest = max(self._highest, self._in_use()), 0
        return (peak - self.base) / MIB

    def close(self) -> None:
        self._stop.set()

    def _in_use(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return self._process.memory_info().rss

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self._highest = max(self._highest, self._in_use())


def _give_back_free_memory() -> None:
    """What loading freed and the C library kept would otherwise be used, unseen, by what is measured next."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


class Clock:
    """Seconds, and with a meter the peaks, of named phases; what is inside another phase does not count for the outer.

    Attributes:
        seconds: by phase, added up; together they are all the time since the first phase began.
        peaks: by phase, in MiB.
    """

    def __init__(self, device: torch.device, meter: Meter | None = None) -> None:
        self.device, self.meter = device, meter
        self.seconds: defaultdict[str, Seconds] = defaultdict(lambda: ZERO)
        self.peaks: defaultdict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._left: str | None = None
        self._last = ZERO

    def begin(self, name: str) -> None:
        self._charge()
        self._running.append(name)

    def end(self) -> None:
        self._charge()
        self._running.pop()

    @property
    def where(self) -> str | None:
        """The innermost phase that an exception has left, else the one that is running."""
        return self._left or (self._running[-1] if self._running else None)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.begin(name)
        try:
            yield
        except Exception:
            self._left = self._left or name
            raise
        finally:
            self.end()

    def total(self, *phases: str) -> Seconds:
        """Of these phases, or of all."""
        total = ZERO
        for name in phases or list(self.seconds):
            total = total.plus(self.seconds[name])
        return total

    def _charge(self) -> None:
        now = Seconds.now(self.device)
        if self._running:
            name = self._running[-1]
            self.seconds[name] = self.seconds[name].plus(now.since(self._last))
            if self.meter:
                self.peaks[name] = max(self.peaks[name], self.meter.take())
        self._last = now


def timed(device: torch.device, function: Callable[[], T]) -> tuple[T, Seconds]:
    start = Seconds.now(device)
    result = function()
    return result, Seconds.now(device).since(start)


def interleaved(repeats: int, sides: Mapping[Name, Callable[[], T]]) -> dict[Name, list[T]]:
    """What each side returned, one turn after the other, so that a slow minute of the machine slows all of them."""
    results: dict[Name, list[T]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            gc.collect()
            results[name].append(run())
    return results


def median(seconds: Sequence[Seconds]) -> Seconds:
    return Seconds(statistics.median(one.cost for one in seconds), statistics.median(one.wall for one in seconds))


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def circumstances(model: str) -> dict[str, object]:
    """What a number needs beside it: of what, when, on what machine, with which versions, in which unit."""
    on_cuda = device().type == "cuda"
    return {
        "model": model,
        "date": datetime.date.today().isoformat(),
        "machine": f"{cores()}, {torch.cuda.get_device_name() if on_cuda else 'no GPU'}",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES if find_spec(name)},
        "seconds": "until the device is done" if on_cuda else "user CPU, all threads",
    }


def cores() -> str:
    """How many this machine has, and of which processor, as its maker calls it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores of {processor}"
