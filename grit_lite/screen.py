"""What a person watches while a run trains: a live screen in a terminal, plain lines elsewhere, JSON for programs.

All three are told the same things: a step's rows, and notes. Progress goes to stderr, so that stdout stays for results;
only the JSON lines are results themselves.
"""

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from grit_lite import processes
from grit_lite.answer import parse, plain
from grit_lite.boxes import PALETTE

Row = Mapping[str, Any]

_BLOCKS = "▁▂▃▄▅▆▇"  # the full block would touch the curve above
_WIDTH = 24


class Screen(Protocol):
    def __enter__(self) -> "Screen": ...
    def __exit__(self, *_: object) -> None: ...
    def note(self, text: str) -> None:
        """Something worth knowing once."""

    def step(self, metrics: Row, timing: Row, samples: Sequence[Row]) -> None:
        """A step is done."""


def open_screen(title: str, steps: int, *, as_json: bool) -> Screen:
    """The screen that fits where the output goes; of several processes the first has one."""
    if not processes.is_first():
        return Silence()
    if as_json:
        return JsonLines()
    console = Console(stderr=True, highlight=False)
    return LiveScreen(console, title, steps) if console.is_terminal else PlainLines(console, steps)


class Silence:
    """Shows nothing."""

    def __enter__(self) -> "Silence":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def note(self, text: str) -> None:
        return

    def step(self, metrics: Row, timing: Row, samples: Sequence[Row]) -> None:
        return


class JsonLines:
    """One JSON object a line on stdout: {"event": "step", …} and {"event": "note", …}."""

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def note(self, text: str) -> None:
        self._write({"event": "note", "text": text})

    def step(self, metrics: Row, timing: Row, samples: Sequence[Row]) -> None:
        self._write({"event": "step", **metrics, "seconds": timing["seconds"]})

    def _write(self, value: Row) -> None:
        print(json.dumps(value, ensure_ascii=False), file=sys.stdout, flush=True)


class PlainLines:
    """One line a step, for logs, notebooks and continuous integration."""

    def __init__(self, console: Console, steps: int) -> None:
        self.console, self.steps = console, steps

    def __enter__(self) -> "PlainLines":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def note(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)

    def step(self, metrics: Row, timing: Row, samples: Sequence[Row]) -> None:
        terms = "  ".join(f"{name} {_number(value)}" for name, value in _terms(metrics).items())
        self.note(
            f"step {metrics['step']:>{len(str(self.steps))}}/{self.steps}  reward {_number(metrics['reward'])}"
            f"  ({terms})  teach {metrics['groups_that_teach']:.0%}  tokens {metrics['completion_tokens']:.0f}"
            f"  kl {_number(metrics['kl'])}  grad {_number(metrics['grad_norm'])}  {timing['seconds']:.1f} s"
        )


class LiveScreen:
    """Small curves of every reward term, what the step cost, and one completion with its boxes."""

    def __init__(self, console: Console, title: str, steps: int) -> None:
        self.console, self.title, self.steps = console, title, steps
        self.history: list[Row] = []
        self.timing: Row = {}
        self.sample: Row | None = None
        self.notes: list[str] = []
        self.started = time.monotonic()
        self.first_step = 1
        self.live = Live(console=console, get_renderable=self.render, refresh_per_second=2, transient=False)

    def __enter__(self) -> "LiveScreen":
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def note(self, text: str) -> None:
        self.notes.append(plain(text))
        self.live.refresh()

    def step(self, metrics: Row, timing: Row, samples: Sequence[Row]) -> None:
        if not self.history:  # the first step counts the start-up of the libraries; the estimate begins after it
            self.started, self.first_step = time.monotonic(), metrics["step"]
        self.history.append(metrics)
        self.timing = timing
        self.sample = max(samples, key=lambda row: row["scores"]["total"] or 0.0)
        self.live.refresh()

    def render(self) -> RenderableType:
        parts: list[RenderableType] = [self._headline()]
        if self.history:
            parts.append(self._curves())
        if self.sample:
            parts.append(
                Panel(_sample(self.sample), title="best completion of the step", title_align="left", border_style="dim")
            )
        parts += [Text(note, style="yellow") for note in self.notes[-4:]]
        return Group(*parts)

    def _headline(self) -> Text:
        step = self.history[-1]["step"] if self.history else 0
        done = "█" * round(_WIDTH * step / self.steps)
        line = Text.assemble((self.title, "bold"), "  ", (done, "green"), ("░" * (_WIDTH - len(done)), "dim"))
        return line.append(f"  step {step}/{self.steps}{self._remaining(step)}")

    def _remaining(self, step: int) -> str:
        if step <= self.first_step:
            return "  starting…" if not self.history else ""
        seconds = (time.monotonic() - self.started) / (step - self.first_step) * (self.steps - step)
        return f"  about {seconds // 60:.0f} min {seconds % 60:02.0f} s left" if step < self.steps else "  done"

    def _curves(self) -> Table:
        table = Table.grid(padding=(0, 2))
        last = self.history[-1]
        rows = [("reward", "reward"), *((f"  {name}", f"reward/{name}") for name in _terms(last))]
        rows += [("groups that teach", "groups_that_teach"), ("valid format", "valid_format")]
        costs = [("completion tokens", "completion_tokens"), ("KL", "kl"), ("gradient norm", "grad_norm")]
        left, right = Table.grid(padding=(0, 1)), Table.grid(padding=(0, 1))
        for label, key in rows:
            left.add_row(label, sparkline([row[key] for row in self.history]), _number(last[key]))
        for label, key in costs:
            right.add_row(label, sparkline([row[key] for row in self.history], _WIDTH // 2), _number(last[key]))
        right.add_row("tokens/s", "", f"{self.timing['tokens_per_second']:.0f}")
        right.add_row("seconds a step", "", f"{self.timing['seconds']:.1f}")
        right.add_row("peak memory", "", f"{self.timing['memory_mib']:,.0f} MiB")
        table.add_row(left, right)
        return table


@contextlib.contextmanager
def evaluation_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each system while it is evaluated; told (system, done, in all). Silent where stderr is no terminal."""
    console = Console(stderr=True, highlight=False)
    shown = console.is_terminal and processes.is_first()
    what = TextColumn("evaluating {task.description:<18}", markup=False)
    columns = (what, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars: dict[str, TaskID] = {}
    with Progress(*columns, console=console, disable=not shown) as progress:

        def advance(system: str, done: int, total: int) -> None:
            if system not in bars:
                bars[system] = progress.add_task(plain(system), total=total)
            progress.update(bars[system], completed=done)

        yield advance


def sparkline(values: Sequence[float | None], width: int = _WIDTH) -> Text:
    """The last values as blocks, from zero (or the lowest, if negative) to the highest; a gap for what is unknown."""
    shown = _thin(values, width)
    known = [value for value in shown if value is not None]
    low, high = min([0.0, *known]), max([0.0, *known])
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return Text("".join(" " if v is None else _BLOCKS[round((v - low) * scale)] for v in shown), style="cyan")


def _thin(values: Sequence[float | None], width: int) -> list[float | None]:
    """The whole history in at most `width` values: the mean of each stretch."""
    if len(values) <= width:
        return list(values)
    edges = [round(index * len(values) / width) for index in range(width + 1)]
    stretches = [[v for v in values[a:b] if v is not None] for a, b in itertools.pairwise(edges)]
    return [sum(stretch) / len(stretch) if stretch else None for stretch in stretches]


def coloured(completion: str) -> Text:
    """A completion, safe for a terminal, each box in the colour that the drawn image gives it and numbered alike."""
    answer = parse(plain(completion))
    text = Text(answer.text)
    for index, box in enumerate(answer.written):
        red, green, blue = PALETTE[index % len(PALETTE)]
        text.stylize(f"bold rgb({red},{green},{blue})", box.start, box.end)
    return text


def _sample(sample: Row) -> Text:
    scores = "  ".join(f"{name} {_number(value)}" for name, value in sample["scores"].items())
    question = Text.assemble(plain(sample["question"]), ("   gold: ", "dim"), plain(sample["gold"]))
    return Text("\n").join([question, coloured(sample["completion"]), Text(scores, style="dim")])


def _terms(metrics: Row) -> dict[str, float | None]:
    return {key.removeprefix("reward/"): value for key, value in metrics.items() if key.startswith("reward/")}


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
