"""The adapter merged into the base model's own 16-bit weights, on the CPU, which most often has the larger memory.

The base is loaded as it was published, not in the 4 bits that it may have been trained in: quantizing is a loss that a
merge need not keep.
"""

import shutil
from pathlib import Path
from typing import Any

# First, because it prepares and silences what the next ones load.
from grit_lite.backends.common import explained, load_processor  # isort: skip

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForImageTextToText

from grit_lite.backends import model_location
from grit_lite.errors import ModelError, OutOfMemory
from grit_lite.families import Family
from grit_lite.memory import free_bytes
from grit_lite.recipe import Recipe

GB = 1e9


def write_merged(recipe: Recipe, family: Family, adapter: Path, folder: Path, dtype: str) -> None:
    """Write the merged model, its processor and its generation settings into `folder`.

    Raises:
        ModelError: the base or the adapter cannot be loaded, a merged weight is not a number, or the disk is too small.
        OutOfMemory: the weights do not fit into the memory of this machine.
    """
    location = model_location(recipe.model)
    with explained(location):
        check_room(weight_bytes(location, recipe.revision, dtype), folder)
        model = _load(location, recipe.revision, dtype)
    model = _merge(model, adapter)
    processor = write_processor(recipe, family, folder)
    vocabulary = processor.tokenizer.get_vocab()
    # As in training: such a token would ask for an image that is not there.
    model.generation_config.suppress_tokens = [
        vocabulary[token] for token in family.vision_tokens if token in vocabulary
    ]
    model.save_pretrained(folder)


def write_processor(recipe: Recipe, family: Family, folder: Path) -> Any:
    """Write the processor, with the recipe's limit of pixels and the chat template, and return it."""
    location = model_location(recipe.model)
    with explained(location):
        processor = load_processor(location, recipe, family)
    processor.save_pretrained(folder)
    return processor


def weight_bytes(location: str, revision: str | None, dtype: str) -> int:
    """Bytes of all weights of a model in this precision, from its configuration alone."""
    config = AutoConfig.from_pretrained(location, revision=revision)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    return model.num_parameters() * getattr(torch, dtype).itemsize


def check_room(needed: int, folder: Path) -> None:
    """Refuse before the first byte what memory or disk cannot hold.

    Raises:
        OutOfMemory: the memory.
        ModelError: the disk.
    """
    free, disk = free_bytes(torch.device("cpu")), shutil.disk_usage(folder).free
    if needed > free:
        raise OutOfMemory(
            f"Merging needs {needed / GB:.1f} GB of memory for the weights, and {free / GB:.1f} GB are free. Close "
            "what you can, export on a machine with more, or export the adapter alone: --format adapter."
        )
    if needed > disk:
        raise ModelError(
            f"The merged weights are {needed / GB:.1f} GB, and {disk / GB:.1f} GB are free on the disk of "
            f"{folder.parent}. Choose a folder on another with --to, or export the adapter alone: --format adapter."
        )


def _load(location: str, revision: str | None, dtype: str) -> Any:
    return AutoModelForImageTextToText.from_pretrained(location, revision=revision, dtype=getattr(torch, dtype))


def _merge(model: Any, adapter: Path) -> Any:
    try:
        # safe_merge refuses weights that are not finite. The adapter's part is computed in float32, then rounded.
        return PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"The adapter in {adapter} cannot be merged: {error}") from error
