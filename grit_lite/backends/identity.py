"""Which model this is: hashes of what it is made of, as it is in memory.

Names do not tell models apart: an adapter is trained anew in the same folder, a name on the hub gets new weights.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def fingerprints(model: Any, processor: Any) -> dict[str, str | None]:
    """The sha256 of the `weights`, of the `adapter` (None without one) and of the `processor`.

    The weights of a model have the same hash with an adapter on it as without.
    """
    tensors = model.state_dict()
    adapter = {name for name in tensors if ".lora_" in name}
    return {
        "weights": hash_tensors((_own_name(name), tensors[name]) for name in tensors if name not in adapter),
        "adapter": hash_tensors((name, tensors[name]) for name in adapter) if adapter else None,
        "processor": _hash_processor(processor),
    }


def _own_name(name: str) -> str:
    """The name that a tensor of the model has without PEFT's wrapping."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def hash_tensors(named: Iterable[tuple[str, Tensor]]) -> str:
    """The sha256 of tensors with their names, types and shapes, in whatever order they come."""
    digest = hashlib.sha256()
    for name, tensor in sorted(named, key=lambda pair: pair[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(content)  # pyright: ignore[reportArgumentType]  an array is a buffer
    return digest.hexdigest()


def _hash_processor(processor: Any) -> str:
    tokenizer = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    for last_call in ("padding", "truncation"):
        tokenizer.pop(last_call, None)
    parts = {
        "tokenizer": tokenizer,
        "template": processor.chat_template or processor.tokenizer.chat_template,
        "images": processor.image_processor.to_dict(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
