"""The recipe carried out: data, model, training, evaluation, report, in this order."""

import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from grit_lite import __version__
from grit_lite.backends import Backend, open_backend
from grit_lite.errors import GritLiteError, OutOfMemory, Stopped, UsageError
from grit_lite.evaluate import evaluate, shapes
from grit_lite.recipe import Recipe, load_recipe
from grit_lite.report import write_report
from grit_lite.rewards import build_scorer
from grit_lite.run import Run
from grit_lite.screen import Screen, evaluation_progress, open_screen
from grit_lite.triplets import Loaded, Triplet, accept, load, sample


def train(run: Run, *, as_json: bool = False) -> dict[str, Any]:
    """Carry out the recipe of a new or interrupted run.

    Returns:
        What `grit-lite train --json` prints last: the folder, the last step's metrics, and the evaluation.

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
        raise error from None
    except torch.OutOfMemoryError as error:
        run.finish("failed", error=str(error))
        raise OutOfMemory(
            f"The step did not fit into memory: {error}\nSet completions_per_pass to a smaller divisor of "
            f"{recipe.prompts_per_step * recipe.group_size}, or lower max_completion_tokens or max_pixels, "
            f"and go on with --resume."
        ) from error
    except GritLiteError as error:
        run.finish("stopped" if isinstance(error, Stopped) else "failed", error=str(error))
        raise
    except Exception as error:  # a bug of ours or of a library: the folder says so, and the command line reports it
        run.finish("failed", error=f"{type(error).__name__}: {error}")
        raise
    finally:
        run.close()


def _carry_out(run: Run, stop: "StopRequest", as_json: bool) -> dict[str, Any]:
    recipe = run.recipe
    triplets = prepare_data(run)
    backend = open_backend(recipe)
    backend.attach_lora(recipe)
    run.update(status="running", versions={"grit-lite": __version__}, model=backend.describe())
    with open_screen(f"grit-lite {recipe.name}", recipe.steps, as_json=as_json) as screen:
        optimise(run, backend, triplets, screen, stop)
    if stop.signal_number is not None:
        raise stopped(run, stop.signal_number)
    save_adapter(run, backend)
    result = None
    if recipe.evaluate != "none":
        result = measure(run.folder, recipe, backend, between_batches=stop.interrupt_if_asked)
    run.finish("done")
    write_report(run.folder)
    return {"folder": str(run.folder), "status": "done", "evaluation": result}


def prepare_data(run: Run) -> list[Triplet]:
    """The triplets of the recipe, checked and drawn; the run folder remembers them, with small copies of images."""
    recipe = run.recipe
    loaded = load(recipe.data, columns=recipe.columns or None)
    good = accept(loaded, recipe.bad_rows)
    chosen = sample(good, recipe.triplets, recipe.seed)
    run.check_data(loaded.sha256)
    run.update(data=describe_data(recipe, loaded, chosen))
    (run.folder / "images").mkdir(exist_ok=True)
    for triplet in chosen:
        save_thumbnail(triplet, run.folder / "images" / f"{triplet.id}.png")
    return chosen


def describe_data(recipe: Recipe, loaded: Loaded, chosen: Sequence[Triplet]) -> dict[str, Any]:
    kinds = {dataset: sum(row.dataset == dataset for row in chosen) for dataset in sorted({r.dataset for r in chosen})}
    return {
        "source": recipe.data,
        "sha256": loaded.sha256,
        "rows": len(loaded.triplets),
        "skipped_bad_rows": len(loaded.bad_rows),
        "triplets": len(chosen),
        "by_dataset": kinds,
    }


def save_thumbnail(triplet: Triplet, path: Path, longest: int = 512) -> None:
    """What the report shows; boxes are drawn on it by ratio, so its size is free."""
    image = triplet.load_image()
    image.thumbnail((longest, longest))
    image.save(path)


def optimise(run: Run, backend: Backend, triplets: Sequence[Triplet], screen: Screen, stop: "StopRequest") -> None:
    """Train from the newest complete checkpoint, or from the start, to the last step or a stop."""
    # Only now: what they import, Unsloth has to rewrite first, and it has been imported by `open_backend`.
    from grit_lite.trainer import build_trainer
    from grit_lite.vlm import shares_prompts

    alarms = [DeadSignalAlarm(run.recipe.dead_after), SamplerGapAlarm()]

    def on_step(metrics: dict[str, Any], timing: dict[str, Any], samples: list[dict[str, Any]]) -> None:
        screen.step(metrics, timing, samples)
        for advice in filter(None, [alarm.after(metrics) for alarm in alarms]):
            run.changed(f"step {metrics['step']}: alarm: {advice}")
            screen.note(advice)

    scorer = build_scorer(run.recipe.rewards)
    trainer = build_trainer(
        backend,
        run.recipe,
        triplets,
        run,
        scorer,
        on_step=on_step,
        stop_requested=lambda: stop.signal_number is not None,
    )
    if not shares_prompts(backend.model):
        screen.note("The prompts of this model family cannot be shared: every completion runs its own, as in TRL.")
    if run.recipe.vllm == "auto" and backend.engine_obstacle:
        screen.note(f"Sampling without vLLM: {backend.engine_obstacle}.")
    checkpoint = run.latest_checkpoint()
    step, folder = checkpoint or (0, None)
    run.rewind(step)
    if checkpoint:
        screen.note(f"Resuming after step {step}.")
    trainer.train(resume_from_checkpoint=str(folder) if folder else None)


def save_adapter(run: Run, backend: Backend) -> None:
    """Write the adapter aside and rename it, so that a folder called `adapter` is always a whole one."""
    final, aside = run.folder / "adapter", run.folder / ".adapter.new"
    backend.save_adapter(aside)
    if final.exists():  # a run that was stopped during its evaluation has written it before
        shutil.rmtree(final)
    aside.rename(final)


def measure(
    folder: Path,
    recipe: Recipe,
    backend: Backend,
    questions: int | None = None,
    between_batches: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Base beside tuned on held-out drawn scenes, into `eval/` of the run folder."""
    with evaluation_progress() as show:

        def progress(system: str, done: int, total: int) -> None:
            show(system, done, total)
            between_batches()

        return evaluate(
            backend,
            shapes(questions or recipe.eval_questions),
            benchmark="shapes",
            folder=folder / "eval",
            max_new_tokens=recipe.max_completion_tokens,
            progress=progress,
        )


def evaluate_again(folder: Path, questions: int | None = None) -> dict[str, Any]:
    """What `grit-lite eval` does: measure a finished run, and write its report anew.

    Raises:
        UsageError: there is no trained adapter in the folder.
    """
    if not (folder / "adapter").is_dir():
        raise UsageError(f"There is nothing to evaluate in {folder}: it has no adapter. Train one: grit-lite train")
    recipe = load_recipe(str(folder / "recipe.yaml"))
    result = measure(folder, recipe, open_backend(recipe, folder / "adapter"), questions)
    write_report(folder)
    return result


def stopped(run: Run, number: int) -> Stopped:
    checkpoint = run.latest_checkpoint()
    kept = f"The checkpoint of step {checkpoint[0]} is kept" if checkpoint else "No checkpoint had been written yet"
    return Stopped(
        f"Stopped by {signal.Signals(number).name}. {kept}; go on with: grit-lite train --resume --output {run.folder}",
        number,
    )


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

    def interrupt_if_asked(self) -> None:
        """What has no steps to finish stops here."""
        if self.signal_number is not None:
            raise KeyboardInterrupt

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            raise KeyboardInterrupt
        self.signal_number = number
