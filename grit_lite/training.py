"""The recipe carried out: data, model, training, evaluation, report, in this order."""

import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grit_lite import __version__, processes
from grit_lite.alarms import DeadSignalAlarm, SamplerGapAlarm
from grit_lite.backends import Backend, import_libraries, open_backend
from grit_lite.errors import Elsewhere, GritLiteError, JudgeError, ModelError, Stopped
from grit_lite.evaluating import measure
from grit_lite.fitting import Failure, free_memory, is_out_of_memory, memory_explained
from grit_lite.judge import Endpoint, Judge, judge_of, proven
from grit_lite.recipe import Recipe
from grit_lite.report import write_report
from grit_lite.retrying import Retries
from grit_lite.rewards import Scorer, build_scorer
from grit_lite.run import Run
from grit_lite.screen import Screen, open_screen
from grit_lite.stopping import StopRequest
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
    stop = StopRequest()
    try:
        with stop, memory_explained(run.recipe.model):
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
        run.finish("failed", error=f"{type(error).__name__}: {error}")  # a bug of ours or of a library
        raise
    finally:
        run.close()


def _carry_out(run: Run, stop: StopRequest, as_json: bool) -> dict[str, Any] | None:
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


def prepare(run: Run) -> tuple[list[Triplet], "Plan | None", Backend]:
    """The triplets, what the run needs in memory, and the model with an adapter to train."""
    triplets = prepare_data(run)
    plan = plan_memory(run, triplets)
    backend = open_backend(run.recipe)
    backend.attach_lora(run.recipe)
    return triplets, plan, backend


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


def optimise(
    run: Run,
    backend: Backend,
    triplets: Sequence[Triplet],
    scorer: Scorer,
    screen: Screen,
    stop: StopRequest,
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


def remember_peak(run: Run) -> None:
    """Write the highest use of memory beside its estimate."""
    from grit_lite.trainer import peak_memory_mib

    memory = run.facts().get("memory", {})
    run.update(memory={**memory, "measured_mib": max(round(peak_memory_mib()), memory.get("measured_mib", 0))})


def save_adapter(run: Run, backend: Backend) -> None:
    """Write the adapter aside and rename it, so that a folder called `adapter` is always a whole one."""
    final, aside = run.folder / "adapter", run.folder / ".adapter.new"
    backend.save_adapter(aside)
    if final.exists():  # a run that was stopped during its evaluation has written it before
        shutil.rmtree(final)
    aside.rename(final)


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
