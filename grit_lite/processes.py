"""One run in several processes, one for each GPU, as `accelerate launch` or `torchrun` starts them.

The first process owns the run folder and the screen, the others compute. What could end one of them alone is told to
all, because a process would wait in vain for one that is gone. A run in one process asks nobody, and imports nothing.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from grit_lite.errors import Elsewhere, GritLiteError, ModelError

PATIENCE = timedelta(minutes=30)  # a process that has waited for another for so long fails

T = TypeVar("T")


def count() -> int:
    """How many processes the run has."""
    return int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else 1


def index() -> int:
    """Which of them this is, from 0."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def is_first() -> bool:
    return index() == 0


def join() -> None:
    """Meet the other processes, before anything else is asked of them, and take the GPU of this one.

    Raises:
        ModelError: the launcher wants the model divided, or there are more processes on this machine than GPUs.
    """
    if count() == 1:
        return
    for divides in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{divides}", "false").lower() == "true":
            raise ModelError(
                f"The launcher is set to divide the model ({divides}), and grit-lite keeps a whole one in each: "
                "start it with accelerate launch --multi_gpu, or answer accelerate config anew."
            )
    import torch
    from accelerate import PartialState

    gpus, here = torch.cuda.device_count(), int(os.environ["LOCAL_WORLD_SIZE"])
    if 0 < gpus < here:
        raise ModelError(f"{here} processes were started on a machine with {gpus} GPUs. Use --num_processes {gpus}.")
    if not gpus:
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # else it is cpu:0, to which no checkpoint can be loaded
    PartialState(cpu=not gpus, timeout=PATIENCE)


def part() -> None:
    """Take leave of the other processes, at the same point in all of them; each may go on alone, or end."""
    if count() > 1:
        from torch.distributed import destroy_process_group

        destroy_process_group()


def gathered(rows: list[T]) -> list[T]:
    """The rows of all processes, those of the first process first. Every process has to ask."""
    if count() == 1:
        return rows
    from accelerate.utils import gather_object

    return gather_object(rows)


def together(work: Callable[[], T]) -> T:
    """What `work` returns. Where it fails in one process, it fails in all, and the first that failed says why."""
    if count() == 1:
        return work()
    result: Any = None
    error: Exception | None = None
    try:
        result = work()
    except Exception as caught:  # noqa: BLE001  raised below, or in another process
        error = caught
    codes = gathered([None if error is None else getattr(error, "exit_code", 1)])
    failed = [place for place, code in enumerate(codes) if code is not None]
    if failed and error is not None and failed[0] == index():
        raise error
    if failed:
        raise Elsewhere(codes[failed[0]] or 1)
    return result


def tells_of_a_loss(error: Exception) -> bool:
    """Whether an error says that another process does not answer any more; those of gloo have no class of their own."""
    if count() == 1:
        return False
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error)


def known_to_all(error: GritLiteError) -> GritLiteError:
    """What to raise where every process meets the same error: the first says it, the others end with its code."""
    return error if is_first() else Elsewhere(error.exit_code)
