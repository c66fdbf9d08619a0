"""What to change so that a run fits into memory: by estimate before it begins, and after a step did not fit.

A step that did not fit is tried again from the last whole one, in smaller parts of the same update: fewer completions
in a pass with as many more passes, then stages, or fewer completions sampled at the same time. What a step draws
depends on (seed, step) alone, so the second try is the step that the first would have been.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from grit_lite.errors import OutOfMemory
from grit_lite.recipe import Recipe

FEWEST_TOKENS, FEWEST_PIXELS = 128, 64 * 28 * 28  # below these a completion, or an image, is of no use

Result = TypeVar("Result")
Changes = dict[str, Any]  # values of a recipe, by key


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on whatever device."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and (
        should_reduce_batch_size(error) or "CUBLAS_STATUS_ALLOC_FAILED" in str(error)
    )


@contextmanager
def memory_explained(model: str) -> Iterator[None]:
    """Says in one message, with its exit code, that what is done with a model did not fit.

    Raises:
        OutOfMemory: an allocation failed.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"{model} did not fit into memory: {error}\n`grit-lite doctor` estimates what each recipe needs. Set "
            "load_in_4bit=true, take a smaller model, or end other programs that use this memory."
        ) from error


def free_memory() -> None:
    """Give back what nothing refers to any more; call it when no exception holds the frames of what failed."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


def halving(function: Callable[[int], Result], size: int) -> tuple[Result, int]:
    """What `function(size)` returns, tried with half the size whenever that does not fit, and the size that did.

    Raises:
        the error of the last try, where not even a size of 1 fits.
    """
    while True:
        try:
            return function(size), size
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        free_memory()
        size //= 2


# Before a run


def change_that_fits(
    recipe: Recipe, need: Callable[[Recipe], int], limit: int, *, shares: bool, stages: bool, cuda: bool, vllm: bool
) -> Changes | None:
    """The smallest change of a recipe that brings what it needs below a limit; None where none does.

    One change alone where one is enough, else as few as possible together.

    Args:
        need: bytes that a recipe needs.
        shares: whether the prompts of the model can be shared.
        stages: whether a pass can then go in stages.
        cuda: whether it runs on a GPU, where weights can be packed to save memory.
        vllm: whether vLLM would sample.
    """
    kinds = [list(kind) for kind in _changes(recipe, shares=shares, stages=stages, cuda=cuda, vllm=vllm)]

    def fits(changes: Changes) -> bool:
        return need(recipe.model_copy(update=changes)) <= limit

    single = next((change for kind in kinds for change in kind if fits(change)), None)
    if single is not None:
        return single
    together: Changes = {}
    for strongest in (kind[-1] for kind in kinds if kind):
        together |= strongest
        if fits(together):
            return _without_idle(together, fits)
    return None


def _without_idle(changes: Changes, fits: Callable[[Changes], bool]) -> Changes:
    for key in list(changes):
        fewer = {other: value for other, value in changes.items() if other != key}
        if fits(fewer):
            changes = fewer
    return changes


def _changes(recipe: Recipe, *, shares: bool, stages: bool, cuda: bool, vllm: bool) -> Iterator[Iterator[Changes]]:
    """Kinds of change, those first that cost least; in each kind the mildest first."""
    total, group = recipe.prompts_per_step * recipe.group_size, recipe.group_size
    per_pass = recipe.completions_per_pass or total
    if recipe.prompt_sharing != "staged":
        yield ({"completions_per_pass": n} for n in range(per_pass - 1, 0, -1) if total % n == 0)
    if shares and stages:
        most = (recipe.completions_at_once or group) if recipe.prompt_sharing == "staged" else group
        yield ({"prompt_sharing": "staged", "completions_at_once": n} for n in _halves(most, 1))
    if shares:
        yield ({"completions_per_rollout": n} for n in _halves(recipe.completions_per_rollout or total, 1))
    if not recipe.gradient_checkpointing:
        yield iter([{"gradient_checkpointing": True}])
    if vllm:
        yield iter([{"vllm": "off"}])
    if cuda and not recipe.load_in_4bit:
        yield iter([{"load_in_4bit": True}])
    yield ({"max_completion_tokens": n} for n in _halves(recipe.max_completion_tokens, FEWEST_TOKENS))
    yield ({"max_pixels": n} for n in _halves(recipe.max_pixels, FEWEST_PIXELS))


def _halves(value: int, least: int) -> Iterator[int]:
    """A half, a quarter and so on of a value, as long as they are not below the least."""
    while (value := value // 2) >= least:
        yield value


def as_settings(changes: Changes) -> str:
    """As they are typed on the command line."""
    return " ".join(f"--set {key}={str(value).lower()}" for key, value in changes.items())


# After a step did not fit


@dataclass(frozen=True)
class Failure:
    """A step that did not fit.

    Attributes:
        phase: "starting", "rollout", "pass" or "update".
        said: what the allocator said of it.
        staged: whether its pass was in stages, of how many completions; None for one row, or where nothing is shared.
    """

    step: int
    phase: str
    said: str
    staged: int | None = None


def smaller_parts(recipe: Recipe, failure: Failure, *, shares: bool, stages: bool, own_rollout: bool) -> Changes | None:
    """What the next try does differently, with the same update; None where there is no smaller part.

    Args:
        recipe: as it was when the step failed.
        shares: whether the prompts of the model are shared.
        stages: whether a pass can then go in stages.
        own_rollout: whether completions are sampled with `rollout`, which can be divided.
    """
    total, group = recipe.prompts_per_step * recipe.group_size, recipe.group_size
    if failure.phase == "rollout":
        rows = recipe.completions_per_rollout or total
        return {"completions_per_rollout": _half_of_whole_groups(rows, group)} if own_rollout and rows > 1 else None
    if failure.phase != "pass":
        return None
    rows = recipe.completions_per_pass or total
    if failure.staged is not None:
        return {"prompt_sharing": "staged", "completions_at_once": failure.staged // 2} if failure.staged > 1 else None
    if shares and stages and 1 < rows <= group:
        return {"prompt_sharing": "staged", "completions_at_once": rows // 2}
    return {"completions_per_pass": _half_divisor(rows, total)} if rows > 1 else None


def _half_of_whole_groups(rows: int, group: int) -> int:
    """Half of the rows; a group whose prompt is run once is better not divided."""
    half = rows // 2
    return half - half % group if half > group else half


def _half_divisor(rows: int, total: int) -> int:
    """The largest part of at most half the rows that divides a step."""
    return next(n for n in range(rows // 2, 0, -1) if total % n == 0)
