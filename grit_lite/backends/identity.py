"""Which model this is: hashes of what it is made of, as it is in memory.

Names do not tell models apart: an adapter is trained anew in the same folder, a name on the hub gets new weights. Nor
do tensors alone: an adapter counts double with twice the `lora_alpha`, and a model with another rope is another one.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from grit_lite.backends.configuration import adapter_settings

# Of a configuration, at any depth: where a model is from and what it is kept in, which differs between machines and is
# said elsewhere (dtype and versions are facts of `describe`); what trainers switch; and tokens, which are listed below.
_NOT_OF_THE_MODEL = {
    *("_name_or_path", "_from_model_config", "transformers_version", "unsloth_version", "dtype", "torch_dtype"),
    *("use_cache", "bos_token_id", "eos_token_id", "pad_token_id"),
}


def fingerprints(
    model: Any, processor: Any, end_tokens: Sequence[int], suppressed: Sequence[int]
) -> dict[str, str | None]:
    """The sha256 of the `weights`, of the `adapter` (None without one), of the `processor`, of the `configuration`.

    The adapter's is of its tensors and of PEFT's settings. The configuration is what the model's class computes by, how
    the library's own generation would sample, and the tokens that end a completion or are never in one. All but the
    adapter's are the same with an adapter on the model as without.
    """
    tensors = model.state_dict()
    adapter = {name for name in tensors if ".lora_" in name}
    return {
        "weights": hash_tensors((_own_name(name), tensors[name]) for name in tensors if name not in adapter),
        "adapter": _hash_adapter(model, {name: tensors[name] for name in adapter}) if adapter else None,
        "processor": _hash_processor(processor),
        "configuration": _hash_json(
            {
                "model": _of_the_model(model.config.to_dict()),
                "generation": _of_the_model(model.generation_config.to_dict()),
                "end_tokens": sorted(end_tokens),
                "suppressed": sorted(suppressed),
            }
        ),
    }


def _hash_adapter(model: Any, tensors: dict[str, Tensor]) -> str:
    settings = {name: adapter_settings(config.to_dict()) for name, config in model.peft_config.items()}
    return _hash_json({"tensors": hash_tensors(tensors.items()), "settings": settings})


def _of_the_model(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    return {str(name): _of_the_model(value) for name, value in values.items() if name not in _NOT_OF_THE_MODEL}


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
    return _hash_json(parts)


def _hash_json(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
