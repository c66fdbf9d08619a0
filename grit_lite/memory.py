"""What a pass needs in memory, estimated before the first one, and the schedule that fits."""

from typing import Any

import psutil
import torch

from grit_lite.packing import CHUNK, PACKED, Schedule

SHARE = 0.8  # of the free memory that a pass may plan with; the allocator wants the rest


def free_bytes(device: torch.device) -> int:
    """What is left: of the GPU, with what torch holds in reserve, or of this machine."""
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    return psutil.virtual_memory().available


def pass_bytes(
    config: Any, prompts: int, prompt: int, completions: int, completion: int, *, itemsize: int, checkpointing: bool
) -> int:
    """Estimated peak of forward and backward of one pass, above the weights, in bytes.

    It counts what the layers of the Qwen language models keep for the backward pass with LoRA on all their linear
    layers. Measured peaks of a middle-size model lie at 0.75 to 1.0 of it (benchmarks/README.md).

    Args:
        config: of the language model.
        prompts: how many prompts are in the graph at the same time, `prompt` tokens each.
        completions: how many completions are, `completion` tokens each.
        itemsize: bytes of an activation.
        checkpointing: whether a layer's activations are computed anew in the backward pass.
    """
    tokens = prompts * prompt + completions * completion
    norms = 2 * tokens * config.hidden_size * 4  # computed in float32 whatever the activations are
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys, queries = config.num_key_value_heads * head, config.num_attention_heads * head
    layer = tokens * (6 * config.hidden_size + 4 * queries + 4 * keys + 4 * config.intermediate_size)
    # Each completion has its own copy of the keys and values before it: as they are, and repeated for the query heads.
    layer += completions * (prompt + completion) * 2 * (keys + queries)
    layer = itemsize * layer + norms
    kept = itemsize * tokens * config.hidden_size if checkpointing else layer
    at_work = 1.8 * layer if checkpointing else layer
    logits = 5 * min(CHUNK, completions * completion) * config.vocab_size * 4
    return int(config.num_hidden_layers * kept + at_work + logits)


def fitting_schedule(
    config: Any, room: int, rows: int, group: int, prompt: int, completion: int, *, itemsize: int, checkpointing: bool
) -> Schedule:
    """The fastest schedule whose estimate fits: one packed row, else stages of as many completions as possible.

    Args:
        room: bytes that may be used.
        rows: completions of a micro-batch, of groups of `group`.
        prompt: tokens of the longest prompt.
        completion: tokens of the longest completion.
    """
    options = {"itemsize": itemsize, "checkpointing": checkpointing}
    if pass_bytes(config, -(-rows // group), prompt, rows, completion, **options) <= room:
        return PACKED
    fits = [n for n in range(2, group) if pass_bytes(config, 1, prompt, n, completion, **options) <= room]
    return Schedule(staged=True, at_once=max(fits, default=1))
