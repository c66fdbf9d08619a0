"""An evaluation carried out: questions, judge, the model, the one it is compared with, summaries, in this order."""

import json
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from grit_lite import processes
from grit_lite.backends import Backend, open_backend
from grit_lite.backends.configuration import read_adapter_settings
from grit_lite.errors import Stopped, UsageError
from grit_lite.evaluate import SYSTEMS, WHOLE, Decoding, Evaluation, Shard, System, aggregates, write_gallery
from grit_lite.evaluate.benchmarks import Benchmark, find
from grit_lite.evaluate.faithfulness.examination import examine, read_examination
from grit_lite.evaluate.judging import proven_for
from grit_lite.fitting import free_memory, memory_explained
from grit_lite.judge import WHICH_PICTURE, Endpoint, Judge, judge_of, open_judge
from grit_lite.recipe import Recipe, load_recipe
from grit_lite.report import write_report
from grit_lite.run import contents
from grit_lite.screen import evaluation_progress
from grit_lite.stopping import StopRequest


@dataclass(frozen=True)
class Wish:
    """What `grit-lite eval` was asked for; where nothing was, the recipe decides.

    Attributes:
        questions: how many of each benchmark.
        source: a copy of the benchmark of one's own.
        against: the folder of another run.
        seeds: how often each question is asked, at a temperature; none is once and greedily, or at `temperature`.
        faithfulness: whether to ask as well what the answers of the last system hang on, and
            `faithfulness_questions`, of how many whose answers have boxes; None is all.
        faithfulness_judge: a model that sees which picture a chain belongs to; None is the one that is measured.
    """

    benchmarks: tuple[str, ...] = ()
    questions: int | None = None
    source: Path | None = None
    against: Path | None = None
    seeds: int | None = None
    temperature: float | None = None
    judge: str | None = None
    batch_size: int = 32
    shard: Shard = WHOLE
    faithfulness: bool = False
    faithfulness_questions: int | None = None
    faithfulness_judge: str | None = None

    def decoding(self, recipe: Recipe) -> Decoding:
        """How completions are drawn.

        Raises:
            UsageError: several times at temperature 0, which gives the same each time; or what does not go together
                with faithfulness.
        """
        temperature = (recipe.temperature if self.seeds else 0.0) if self.temperature is None else self.temperature
        if (self.seeds or 1) > 1 and temperature == 0:
            raise UsageError(
                "--seeds at --temperature 0 would ask for the same completion again. Leave one of them out."
            )
        if self.faithfulness and (temperature or self.shard.count > 1):
            raise UsageError(
                "--faithfulness compares greedy answers, in one process. Leave out --seeds, --temperature and --shard."
            )
        return Decoding(recipe.max_completion_tokens, temperature, self.seeds or 1)


def measure(
    folder: Path, recipe: Recipe, backend: Backend, between_batches: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Base beside tuned on the benchmark of the recipe, into `eval/` of the run folder."""
    evaluations = begin(folder, recipe, Wish())
    judge = judge_for(evaluations, recipe)
    ask(evaluations, backend, SYSTEMS, between_batches, folder / "adapter")
    return conclude(evaluations, list(SYSTEMS), judge)[0]


def evaluate_again(folder: Path, wish: Wish) -> list[dict[str, Any]]:
    """What `grit-lite eval` does: measure a finished run, and write its report anew.

    Returns:
        The summary of each benchmark; none in all processes but the first, and none where this is a shard and others
        have not asked theirs yet.

    Raises:
        UsageError: there is no trained adapter in the folder, or in that of the other run.
        Stopped: by a signal; what was asked is kept.
    """
    recipe, other = finished(folder), finished(wish.against) if wish.against else None
    results = evaluate_model(folder, recipe, folder / "adapter", wish, other)
    if results:
        write_report(folder)
    return results


def finished(folder: Path) -> Recipe:
    """The recipe of a run that has an adapter.

    Raises:
        UsageError: it has none.
    """
    if not (folder / "adapter").is_dir():
        raise UsageError(f"There is nothing to evaluate in {folder}: it has no adapter. Train one: grit-lite train")
    return load_recipe(str(folder / "recipe.yaml")).model_copy(update={"vllm_server": None})  # it served the training


def evaluate_model(
    folder: Path, recipe: Recipe, adapter: Path | None, wish: Wish, other: Recipe | None = None
) -> list[dict[str, Any]]:
    """Measure a model into `eval/` of a folder, and return as `evaluate_again`.

    Args:
        adapter: None for a model as it comes, which is asked directly and under the GRIT prompt.
        other: the recipe of `wish.against`.
    """
    evaluations = begin(folder, recipe, wish)
    judge = judge_for(evaluations, recipe if wish.judge is None else recipe.model_copy(update={"judge": wish.judge}))
    reader = reader_for(wish, recipe)
    stop = StopRequest()

    def asking() -> list[str]:
        with memory_explained(recipe.model):
            return ask_all(evaluations, recipe, adapter, wish, other, stop.interrupt_if_asked, reader)

    try:
        with stop:
            systems = processes.together(asking)
            if not _is_to_conclude(evaluations, folder):
                return []
            stop.interrupt_from_here_on()
            results = conclude(evaluations, systems, judge)
    except KeyboardInterrupt:
        number = stop.signal_number or signal.SIGINT
        said = f"Stopped by {signal.Signals(number).name}. What was asked is kept: the same command goes on from there."
        raise processes.known_to_all(Stopped(said, number)) from None
    if wish.faithfulness:
        return [result | {"faithfulness": read_examination(folder / "eval", result["benchmark"])} for result in results]
    return results


def _is_to_conclude(evaluations: Sequence["Begun"], folder: Path) -> bool:
    """Whether it is this process that sums up: it takes leave of the others, and all that was to be asked is there."""
    processes.part()
    if not processes.is_first():
        return False
    missing = any(begun.evaluation.missing() for begun in evaluations)
    if missing and processes.count() > 1:
        raise UsageError(f"The first process does not see what others wrote to {folder}. Use a shared disk.")
    return not missing


class Begun(NamedTuple):
    """An evaluation, and what its files and its summary say of it."""

    evaluation: Evaluation
    name: str
    settings: dict[str, Any]
    aggregates: Sequence[aggregates.Aggregate]


def begin(folder: Path, recipe: Recipe, wish: Wish) -> list[Begun]:
    """The benchmarks, loaded.

    Raises:
        UsageError: there is no such benchmark.
        NotFetched, DataError: its data cannot be had, or cannot be used.
    """
    names = wish.benchmarks or ("shapes" if recipe.evaluate == "none" else recipe.evaluate,)
    return [_begin(folder, recipe, wish, find(name)) for name in names]


def _begin(folder: Path, recipe: Recipe, wish: Wish, benchmark: Benchmark) -> Begun:
    decoding, against = wish.decoding(recipe), wish.against
    loaded = benchmark.load(wish.questions or recipe.eval_questions, wish.source)
    evaluation = Evaluation(
        loaded.questions,
        benchmark=benchmark.name,
        folder=folder / "eval",
        decoding=decoding,
        batch_size=wish.batch_size,
        shard=wish.shard,
        beside=[against / "eval"] if against else [],
    )
    sampled = "sampled" if decoding.temperature else ""
    settings = {
        **{name: getattr(benchmark, name) for name in ("hub", "split", "licence", "verified", "caution")},
        "revision": loaded.revision,
        "source": None if wish.source is None else str(wish.source),
        "available": loaded.available,
        "rows_sha256": loaded.sha256,
    }
    name = "-".join(filter(None, (benchmark.name, sampled)))
    if against:
        settings["against"] = {"run": name_of(against), "adapter": contents(against / "adapter")}
        name = _name_beside(folder / "eval", f"{name}-vs-{name_of(against)}", settings["against"]["adapter"])
    return Begun(evaluation, name, settings, aggregates.find(benchmark.aggregates))


def _name_beside(folder: Path, name: str, adapter: str) -> str:
    """The name of a comparison: that of the other run; and the hash of its adapter where that is taken by a namesake's.

    A comparison is written over by one with the same adapter alone.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        return name
    taken = json.loads(path.read_text(encoding="utf-8"))["settings"].get("against")
    return name if taken and taken["adapter"] == adapter else f"{name}-{adapter[:8]}"


def judge_for(evaluations: Sequence[Begun], recipe: Recipe) -> Judge | None:
    """The judge of the recipe, where a question is for one; an endpoint has passed the canaries of what they ask of it.

    Raises:
        JudgeError: it is wrong where right and wrong are plain, or it does not answer.
    """
    asked = (question for begun in evaluations for question in begun.evaluation.questions)
    judged = [question for question in asked if question.scorer == "judge"]
    return proven_for(judge_of(recipe), judged) if judged else None


def reader_for(wish: Wish, recipe: Recipe) -> Endpoint | None:
    """The judge that says which picture a chain belongs to, once it has shown that it sees; None for the model itself.

    Raises:
        UsageError: it is no model.
        JudgeError: it does not see what is plain to see, or it does not answer.
    """
    if wish.faithfulness_judge is None:
        return None
    judge = open_judge(wish.faithfulness_judge, budget=recipe.judge_budget, seconds=recipe.judge_seconds)
    if not isinstance(judge, Endpoint):
        raise UsageError(
            f"--faithfulness-judge {wish.faithfulness_judge} sees no pictures. Name a model at OPENAI_BASE_URL that "
            "does; or leave it out, and the model that is measured reads by itself."
        )
    judge.prove(WHICH_PICTURE)
    return judge


def ask_all(
    evaluations: Sequence[Begun],
    recipe: Recipe,
    adapter: Path | None,
    wish: Wish,
    other: Recipe | None,
    between_batches: Callable[[], None],
    reader: Endpoint | None = None,
) -> list[str]:
    """Ask the model, then that of the other run where there is one; the systems in the order of the table."""
    asked = {name: system for name, system in SYSTEMS.items() if adapter or not system.use_adapter}
    backend = open_backend(recipe, adapter)
    ask(evaluations, backend, asked, between_batches, adapter)
    if wish.faithfulness:
        examine_all(evaluations, backend, list(asked)[-1], wish.faithfulness_questions, between_batches, reader)
    if (against := wish.against) is None or other is None:
        return list(asked)
    if adapter and in_place(recipe, other, adapter, against / "adapter"):
        backend.replace_adapter(against / "adapter")
    else:
        del backend
        free_memory()  # the other model needs the room
        backend = open_backend(other, against / "adapter")
    ask(evaluations, backend, {name_of(against): SYSTEMS["tuned"]}, between_batches, against / "adapter")
    *before, last = asked
    return [*before, name_of(against), last]


def ask(
    evaluations: Sequence[Begun],
    backend: Backend,
    systems: Mapping[str, System],
    between_batches: Callable[[], None] = lambda: None,
    adapter: Path | None = None,
) -> None:
    """Ask one model all that there is to ask it; `adapter` is where the one that is on it is from."""
    adapter_from = origin(adapter) if adapter else None
    with evaluation_progress() as show:
        for begun in evaluations:

            def progress(system: str, done: int, total: int, of: str = begun.name) -> None:
                show(f"{of} {system}", done, total)
                between_batches()

            begun.evaluation.ask(backend, systems, progress, adapter_from)


def examine_all(
    evaluations: Sequence[Begun],
    backend: Backend,
    system: str,
    most: int | None,
    between_batches: Callable[[], None],
    reader: Endpoint | None = None,
) -> None:
    """Ask one system of the model what its answers hang on, in every benchmark."""
    with evaluation_progress() as show:
        for begun in evaluations:

            def progress(what: str, done: int, total: int, of: str = begun.name) -> None:
                show(f"{of} {what}", done, total)
                between_batches()

            examine(begun.evaluation, backend, begun.name, system, progress, most, reader)


# What two runs must have in common for one to lend the other its model.
_OF_THE_MODEL = ("model", "revision", "backend", "vllm", "load_in_4bit", "dtype", "max_pixels")


def in_place(recipe: Recipe, other: Recipe, adapter: Path, other_adapter: Path) -> bool:
    """Whether the adapter of the other run fits on the model of this one as it is.

    The adapters say it themselves: what their tensors are worth, and where they belong, is not in the tensors.
    """
    alike = read_adapter_settings(adapter) == read_adapter_settings(other_adapter)
    return alike and all(getattr(recipe, key) == getattr(other, key) for key in _OF_THE_MODEL)


def conclude(evaluations: Sequence[Begun], systems: Sequence[str], judge: Judge | None) -> list[dict[str, Any]]:
    """The summaries, written into the run folder with a gallery each.

    Raises:
        JudgeError: the judge fails too often; its verdicts are kept.
    """
    return [_conclude(begun, systems, judge) for begun in evaluations]


def _conclude(begun: Begun, systems: Sequence[str], judge: Judge | None) -> dict[str, Any]:
    evaluation = begun.evaluation
    result = evaluation.conclude(begun.name, systems, begun.settings, begun.aggregates, judge)
    write_gallery(evaluation.folder, begun.name)
    return result


def origin(adapter: Path) -> str:
    """What a reader knows an adapter by: the name of its run, else of its own folder."""
    folder = adapter.resolve()
    return (folder.parent if folder.name == "adapter" else folder).name


def name_of(run: Path) -> str:
    """What another run is called in a table."""
    name = run.resolve().name
    return f"run {name}" if name in SYSTEMS else name
