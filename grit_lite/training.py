"""The recipe carried out: data, model, training, evaluation, report, in this order."""

import shutil
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from grit_lite import __version__, processes
from grit_lite.backends import Backend, can_stage, import_libraries, open_backend
from grit_lite.errors import Elsewhere, GritLiteError, JudgeError, ModelError, OutOfMemory, Stopped, UsageError
from grit_lite.evaluate import SYSTEMS, WHOLE, Decoding, Evaluation, Shard, System, aggregates, write_gallery
from grit_lite.evaluate.benchmarks import Benchmark, find
from grit_lite.evaluate.faithfulness.examination import examine, read_examination
from grit_lite.evaluate.judging import proven_for
from grit_lite.fitting import RETRIES, Changes, Failure, free_memory, is_out_of_memory, smaller_parts
from grit_lite.judge import WHICH_PICTURE, Endpoint, Judge, judge_of, open_judge
from grit_lite.recipe import Recipe, load_recipe
from grit_lite.report import write_report
from grit_lite.rewards import Scorer, build_scorer
from grit_lite.run import Run
from grit_lite.screen import Screen, evaluation_progress, open_screen
from grit_lite.triplets import Loaded, Triplet, accept, load, sample

if TYPE_CHECKING:
    from grit_lite.memory import Plan


def train(run: Run, *, as_json: bool = False) -> dict[str, Any] | None:
    """Carry out the recipe of a new or interrupted run.

    Returns:
        What `grit-lite train --json` prints last: the folder, the last step's metrics, and the evaluation. None in all
        processes but the first.

    Raises:
        GritLiteError: with the exit code of its kind; `run.json` says how the run ended in every case.
    """
    recipe = run.recipe
    stop = StopRequest()
    try:
        with stop:
            return _carry_out(run, stop, as_json)
    except KeyboardInterrupt:
        error = stopped(run, stop.signal_number or signal.SIGINT)
        run.finish("stopped", error=str(error))
        raise processes.known_to_all(error) from None
    except Elsewhere:
        raise
    except GritLiteError as error:
        run.finish("stopped" if isinstance(error, Stopped) else "failed", error=str(error))
        raise
    except Exception as error:
        if processes.tells_of_a_loss(error):
            raise lost(run, error) from error
        if is_out_of_memory(error):
            run.finish("failed", error=str(error))
            raise OutOfMemory(
                f"{recipe.model} did not fit into memory: {error}\n`grit-lite doctor` estimates what each recipe "
                "needs. Set load_in_4bit=true, take a smaller model, or end other programs that use this memory."
            ) from error
        run.finish("failed", error=f"{type(error).__name__}: {error}")  # a bug of ours or of a library
        raise
    finally:
        run.close()


def _carry_out(run: Run, stop: "StopRequest", as_json: bool) -> dict[str, Any] | None:
    recipe = run.recipe
    run.update(status="running", processes=processes.count())
    judge = processes.together(lambda: proven(judge_of(recipe)))
    triplets, plan, backend = processes.together(lambda: prepare(run))
    run.update(versions={"grit-lite": __version__}, model=backend.describe())
    with open_screen(f"grit-lite {recipe.name}", recipe.steps, as_json=as_json) as screen:
        optimise(run, backend, triplets, build_scorer(recipe.rewards, judge), screen, stop, plan)
    remember_peak(run)
    if stop.signal_number is not None:
        raise processes.known_to_all(stopped(run, stop.signal_number))
    processes.part()
    if not processes.is_first():
        return None
    save_adapter(run, backend)
    result = None
    if recipe.evaluate != "none":
        result = measure(run.folder, recipe, backend, between_batches=stop.interrupt_if_asked)
    run.finish("done")
    write_report(run.folder)
    return {"folder": str(run.folder), "status": "done", "evaluation": result}


def proven(judge: Judge | None) -> Judge | None:
    """The judge; an endpoint has passed its canaries.

    Raises:
        JudgeError: it is wrong where right and wrong are plain, or it does not answer.
    """
    if isinstance(judge, Endpoint):
        judge.prove()
    return judge


def prepare_data(run: Run) -> list[Triplet]:
    """The triplets of the recipe, checked and drawn; the run folder remembers them, with small copies of images."""
    recipe = run.recipe
    loaded = load(recipe.data, columns=recipe.columns or None, draw=(recipe.triplets, recipe.seed))
    good = accept(loaded, recipe.bad_rows)
    chosen = sample(good, recipe.triplets, recipe.seed)
    run.check_data(loaded.sha256)
    run.update(data=describe_data(recipe, loaded, chosen))
    if processes.is_first():
        (run.folder / "images").mkdir(exist_ok=True)
        for triplet in chosen:
            save_thumbnail(triplet, run.folder / "images" / f"{triplet.id}.png")
    return chosen


def prepare(run: Run) -> tuple[list[Triplet], "Plan | None", Backend]:
    """The triplets, what the run needs in memory, and the model with an adapter to train."""
    triplets = prepare_data(run)
    plan = plan_memory(run, triplets)
    backend = open_backend(run.recipe)
    backend.attach_lora(run.recipe)
    return triplets, plan, backend


def describe_data(recipe: Recipe, loaded: Loaded, chosen: Sequence[Triplet]) -> dict[str, Any]:
    kinds = {dataset: sum(row.dataset == dataset for row in chosen) for dataset in sorted({r.dataset for r in chosen})}
    return {
        "source": recipe.data,
        "sha256": loaded.sha256,
        "rows": loaded.rows,
        "skipped_bad_rows": len(loaded.bad_rows),
        "triplets": len(chosen),
        "by_dataset": kinds,
    }


def save_thumbnail(triplet: Triplet, path: Path, longest: int = 512) -> None:
    """What the report shows; boxes are drawn on it by ratio, so its size is free."""
    image = triplet.load_image()
    image.thumbnail((longest, longest))
    image.save(path)


def plan_memory(run: Run, triplets: Sequence[Triplet]) -> "Plan | None":
    """Estimate what the run needs, say and write it down; None where nothing is known of the model yet.

    Raises:
        OutOfMemory: what it is certain to need is more than there is.
    """
    backend = import_libraries(run.recipe).name
    # Only now: what it imports, Unsloth has to rewrite first.
    from grit_lite.memory import Plan, model_config, model_sizes, this_device

    recipe = run.recipe_in_force
    if (config := model_config(recipe)) is None:
        return None
    largest = max(triplet.size[0] * triplet.size[1] for triplet in triplets)
    plan = Plan(model_sizes(config, recipe), this_device(), backend, largest)
    run.update(memory={**run.facts().get("memory", {}), **plan.as_facts(recipe)})
    verdict = plan.verdict(recipe)
    if processes.is_first():
        print(f"Memory: {verdict}", file=sys.stderr)
    return plan


def remember_peak(run: Run) -> None:
    """Write the highest use of memory beside its estimate."""
    from grit_lite.trainer import peak_memory_mib

    memory = run.facts().get("memory", {})
    run.update(memory={**memory, "measured_mib": max(round(peak_memory_mib()), memory.get("measured_mib", 0))})


def optimise(
    run: Run,
    backend: Backend,
    triplets: Sequence[Triplet],
    scorer: Scorer,
    screen: Screen,
    stop: "StopRequest",
    plan: "Plan | None" = None,
) -> None:
    """Train from the newest complete checkpoint, or from the start, to the last step or a stop.

    A step that does not fit into memory is tried again in smaller parts.

    Raises:
        OutOfMemory: it did not fit after every retry.
        JudgeError: the judge fails too often; the last whole step is kept.
    """
    # Only now: what they import, Unsloth has to rewrite first, and it has been imported by `open_backend`.
    from grit_lite.trainer import build_trainer
    from grit_lite.vlm import shares_prompts

    alarms = [DeadSignalAlarm(run.recipe.dead_after), SamplerGapAlarm()]
    tally = JudgeTally(run, scorer.judge)

    def on_step(metrics: dict[str, Any], timing: dict[str, Any], samples: list[dict[str, Any]]) -> None:
        screen.step(metrics, timing, samples)
        tally.write()
        for advice in filter(None, [alarm.after(metrics) for alarm in alarms]):
            run.changed(f"step {metrics['step']}: alarm: {advice}")
            screen.note(advice)

    if not shares_prompts(backend.model):
        screen.note("The prompts of this model family cannot be shared: every completion runs its own, as in TRL.")
    if run.recipe.vllm == "auto" and run.recipe.vllm_server is None and backend.engine_obstacle:
        screen.note(f"Sampling without vLLM: {backend.engine_obstacle}.")
    retries = Retries(run, backend, plan)

    def trainer() -> Any:
        return build_trainer(
            backend,
            run.recipe_in_force,
            triplets,
            run,
            scorer,
            on_step=on_step,
            stop_requested=stop.is_asked,
        )

    try:
        while failure := attempt(trainer(), run, screen):
            screen.note(retries.after(failure))
    finally:
        tally.write()


def attempt(trainer: Any, run: Run, screen: Screen) -> Failure | None:
    """Go on to the last step or a stop; or say what did not fit into memory, with the last whole step kept."""
    checkpoint = run.latest_checkpoint()
    step, folder = checkpoint or (0, None)
    run.rewind(step)
    if checkpoint:
        screen.note(f"Resuming after step {step}.")
    try:
        trainer.train(resume_from_checkpoint=str(folder) if folder else None)
        return None
    except JudgeError as error:
        raise unjudged(run, trainer, error) from error
    except (RuntimeError, MemoryError) as error:
        if trainer.accelerator.num_processes > 1 or not is_out_of_memory(error):
            raise
        failure = trainer.failure(str(error))
    free_memory()  # only now, because the exception held the frames of the step
    trainer.keep_last_step()
    return failure


def unjudged(run: Run, trainer: Any, error: JudgeError) -> JudgeError:
    """The error of a judge, with what is kept and how to go on."""
    if trainer.accelerator.num_processes == 1:  # several would have to write it together
        trainer.keep_last_step()
    checkpoint = run.latest_checkpoint()
    kept = f"Step {checkpoint[0]} is kept" if checkpoint else "No step had been taken yet"
    return JudgeError(f"{error}\n{kept}; go on with: grit-lite train --resume --output {run.folder}")


class JudgeTally:
    """What an endpoint was asked, in run.json, added to what it was asked before the run was interrupted.

    Of several processes, it is what the first has asked.
    """

    def __init__(self, run: Run, judge: Judge | None) -> None:
        self.run, self.judge = run, judge
        self.before = run.facts().get("judge", {})

    def write(self) -> None:
        if isinstance(self.judge, Endpoint):
            facts = self.judge.facts()
            counted = {name: facts[name] + self.before.get(name, 0) for name in self.judge.counts}
            self.run.update(judge=facts | counted)


class Retries:
    """At most three of one step, each in smaller parts of the same update than the one before it."""

    def __init__(self, run: Run, backend: Backend, plan: "Plan | None") -> None:
        self.run, self.backend, self.plan = run, backend, plan
        self.step = self.count = 0

    def after(self, failure: Failure) -> str:
        """What the next try does differently, now in force and in run.json.

        Raises:
            OutOfMemory: there is no smaller part, or the step has had its retries.
        """
        self.count = self.count + 1 if failure.step == self.step else 1
        self.step = failure.step
        recipe = self.run.recipe_in_force
        changes = self._smaller_parts(recipe, failure)
        if changes is None or self.count > RETRIES:
            raise OutOfMemory(self._explain(failure, recipe))
        smaller = ", ".join(f"{key} {getattr(recipe, key) or 'all'} → {value}" for key, value in changes.items())
        what = f"step {failure.step}: the {failure.phase} did not fit into memory; {smaller}, for the same update"
        self.run.make_smaller(changes, f"{what} ({failure.said})")
        return what

    def _smaller_parts(self, recipe: Recipe, failure: Failure) -> Changes | None:
        from grit_lite.vlm import shares_prompts

        shares = recipe.prompt_sharing != "none" and shares_prompts(self.backend.model)
        own_rollout = shares and self.backend.shares_rollout and self.backend.engine is None
        return smaller_parts(
            recipe,
            failure,
            shares=shares,
            stages=can_stage(self.backend.name, recipe),
            own_rollout=own_rollout and recipe.vllm_server is None,
        )

    def _explain(self, failure: Failure, recipe: Recipe) -> str:
        tries = f" after {self.count - 1} retries in smaller parts" if self.count > 1 else ""
        checkpoint = self.run.latest_checkpoint()
        kept = f"Step {checkpoint[0]} is kept. " if checkpoint else ""
        return (
            f"Step {failure.step}: the {failure.phase} did not fit into memory{tries}: {failure.said}\n"
            f"{self._advice(recipe)}\n{kept}Where there is more memory, or once other programs have left it, go on "
            f"with: grit-lite train --resume --output {self.run.folder}"
        )

    def _advice(self, recipe: Recipe) -> str:
        if self.plan is None:
            return "Start again with a lower max_completion_tokens or max_pixels, or with a smaller model."
        return self.plan.advice(recipe, after_failure=True)


def save_adapter(run: Run, backend: Backend) -> None:
    """Write the adapter aside and rename it, so that a folder called `adapter` is always a whole one."""
    final, aside = run.folder / "adapter", run.folder / ".adapter.new"
    backend.save_adapter(aside)
    if final.exists():  # a run that was stopped during its evaluation has written it before
        shutil.rmtree(final)
    aside.rename(final)


def measure(
    folder: Path, recipe: Recipe, backend: Backend, between_batches: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Base beside tuned on the benchmark of the recipe, into `eval/` of the run folder."""
    evaluations = begin(folder, recipe, Wish())
    judge = judge_for(evaluations, recipe)
    ask(evaluations, backend, SYSTEMS, between_batches)
    return conclude(evaluations, list(SYSTEMS), judge)[0]


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


class Begun(NamedTuple):
    """An evaluation, and what its files and its summary say of it."""

    evaluation: Evaluation
    name: str
    settings: dict[str, Any]
    aggregates: Sequence[aggregates.Aggregate]


def begin(folder: Path, recipe: Recipe, wish: Wish) -> list[Begun]:
    """The benchmarks, loaded.

    Raises:
        UsageError, DataError: there is no such benchmark, or it cannot be had.
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
    sampled, compared = ("sampled" if decoding.temperature else ""), (f"vs-{name_of(against)}" if against else "")
    settings = {
        **{name: getattr(benchmark, name) for name in ("hub", "split", "licence", "verified")},
        "revision": loaded.revision,
        "available": loaded.available,
        "rows_sha256": loaded.sha256,
    }
    name = "-".join(filter(None, (benchmark.name, sampled, compared)))
    return Begun(evaluation, name, settings, aggregates.find(benchmark.aggregates))


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


def ask(
    evaluations: Sequence[Begun],
    backend: Backend,
    systems: Mapping[str, System],
    between_batches: Callable[[], None] = lambda: None,
) -> None:
    """Ask one model all that there is to ask it."""
    with evaluation_progress() as show:
        for begun in evaluations:

            def progress(system: str, done: int, total: int, of: str = begun.name) -> None:
                show(f"{of} {system}", done, total)
                between_batches()

            begun.evaluation.ask(backend, systems, progress)


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
    try:
        with stop:
            systems = processes.together(
                lambda: ask_all(evaluations, recipe, adapter, wish, other, stop.interrupt_if_asked, reader)
            )
    except KeyboardInterrupt:
        number = stop.signal_number or signal.SIGINT
        said = f"Stopped by {signal.Signals(number).name}. What was asked is kept: the same command goes on from there."
        raise processes.known_to_all(Stopped(said, number)) from None
    processes.part()
    if not processes.is_first():
        return []
    if any(begun.evaluation.missing() for begun in evaluations):
        if processes.count() > 1:
            raise UsageError(f"The first process does not see what others wrote to {folder}. Use a shared disk.")
        return []
    results = conclude(evaluations, systems, judge)
    if wish.faithfulness:
        return [result | {"faithfulness": read_examination(folder / "eval", result["benchmark"])} for result in results]
    return results


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
    ask(evaluations, backend, asked, between_batches)
    if wish.faithfulness:
        examine_all(evaluations, backend, list(asked)[-1], wish.faithfulness_questions, between_batches, reader)
    if (against := wish.against) is None or other is None:
        return list(asked)
    if in_place(recipe, other):
        backend.replace_adapter(against / "adapter")
    else:
        del backend
        free_memory()  # the other model needs the room
        backend = open_backend(other, against / "adapter")
    ask(evaluations, backend, {name_of(against): SYSTEMS["tuned"]}, between_batches)
    *before, last = asked
    return [*before, name_of(against), last]


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


def finished(folder: Path) -> Recipe:
    """The recipe of a run that has an adapter.

    Raises:
        UsageError: it has none.
    """
    if not (folder / "adapter").is_dir():
        raise UsageError(f"There is nothing to evaluate in {folder}: it has no adapter. Train one: grit-lite train")
    return load_recipe(str(folder / "recipe.yaml")).model_copy(update={"vllm_server": None})  # it served the training


# What two runs must have in common for one to lend the other its model.
_OF_THE_MODEL = ("model", "revision", "backend", "vllm", "load_in_4bit", "dtype", "max_pixels")
_OF_THE_ADAPTER = ("lora_rank", "lora_alpha", "lora_parts")


def in_place(recipe: Recipe, other: Recipe) -> bool:
    """Whether the adapter of the other run fits on the model of this one as it is."""
    return all(getattr(recipe, key) == getattr(other, key) for key in (*_OF_THE_MODEL, *_OF_THE_ADAPTER))


def name_of(run: Path) -> str:
    """What another run is called in a table."""
    name = run.resolve().name
    return f"run {name}" if name in SYSTEMS else name


def stopped(run: Run, number: int) -> Stopped:
    checkpoint = run.latest_checkpoint()
    kept = f"The checkpoint of step {checkpoint[0]} is kept" if checkpoint else "No checkpoint had been written yet"
    return Stopped(
        f"Stopped by {signal.Signals(number).name}. {kept}; go on with: grit-lite train --resume --output {run.folder}",
        number,
    )


def lost(run: Run, error: Exception) -> GritLiteError:
    """What to say where another process of the run does not answer any more."""
    if run.facts().get("status") == "failed":
        return Elsewhere(1)  # it has said why
    loss = ModelError(
        "Another process of the run ended without a word, or did not answer for too long; the launcher may know more. "
        f"Go on with: grit-lite train --resume --output {run.folder}, started as before.\n({error})"
    )
    run.finish("failed", error=str(loss))
    return loss


class DeadSignalAlarm:
    """Says, once each time it happens, that the rewards have stopped telling completions apart."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.dead_steps = 0

    def after(self, metrics: dict[str, Any]) -> str | None:
        self.dead_steps = self.dead_steps + 1 if metrics["groups_that_teach"] == 0 else 0
        if self.dead_steps != self.patience:
            return None
        level = "zero" if not metrics["reward"] else f"{metrics['reward']:.2f}"
        return (
            f"No group has varied for {self.patience} steps (mean reward {level}), so nothing is being learned. "
            "Look at samples.jsonl. If every reward is low, raise temperature or group_size, or begin with easier "
            "triplets; if every reward is high, training is finished."
        )


class SamplerGapAlarm:
    """Says, once, that the sampler draws from another distribution than the one that is trained.

    Bfloat16 alone makes vLLM and a trainer differ by 0.03 to 0.05 nats a token (root mean square; huggingface/trl
    issue 6789, ServiceNow/Fast-LLM pull request 525; 0.01 in the mean on the embedded model). Twice that is not
    rounding: other weights, or an old adapter.
    """

    threshold = 0.1  # nats

    def __init__(self) -> None:
        self.has_spoken = False

    def after(self, metrics: dict[str, Any]) -> str | None:
        gap = metrics["sampler_gap"]
        if gap is None or gap <= self.threshold or self.has_spoken:
            return None
        self.has_spoken = True
        return (
            f"vLLM draws tokens with log-probabilities {gap:.2f} nats away from the trainer's, where rounding explains "
            f"no more than {self.threshold}. Completions that this makes unlikely ones are left out of the loss. If it "
            "goes on, set vllm=off."
        )


class StopRequest:
    """The first Ctrl-C or SIGTERM asks for a stop after the step; a second one interrupts at once.

    Attributes:
        signal_number: the first signal received, or None.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses to set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def is_asked(self) -> bool:
        """Whether any process of the run has received a signal; all of them know of it from then on."""
        if number := max(processes.gathered([self.signal_number or 0])):
            self.signal_number = number
        return bool(number)

    def interrupt_if_asked(self) -> None:
        """What has no steps to finish stops here."""
        if self.signal_number is not None:
            raise KeyboardInterrupt

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            raise KeyboardInterrupt
        self.signal_number = number
