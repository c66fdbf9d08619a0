"""Unsloth on a machine without a GPU: what has to be made up for its code to load a model and train it.

Import this before anything of transformers or trl, in a process of its own: Unsloth rewrites both as it is imported.
The package never imports this file; it holds nothing that a user could want.

Made up, and why:

* `UNSLOTH_ALLOW_CPU`: Unsloth's own switch for tests, by which it takes a CPU for a CUDA device. With it `PatchFastRL`,
  which its import calls, leaves TRL's trainers alone; so it is called once more without.
* What `torch.cuda` says of its device: Unsloth asks for name, memory and capability where it loads a model and where it
  chooses how many rows to score at once. It is told of a card with 24 GiB, on which nothing is ever allocated.
* That bitsandbytes is of use: Unsloth looks for its CUDA kernels and would load in 16 bits without a word of error.
* That the CPU has no bfloat16 instructions: bitsandbytes would repack its weights whenever Unsloth turns to inference,
  for good, into a form without gradients.
* No pinned memory: its offloaded checkpointing would ask CUDA for it. Above 2 MiB an offloaded tensor would still go to
  a CUDA stream, so tokens x hidden x 2 bytes must stay below that.
* No torch.compile: the rewritten modules run as the Python they are, because compiling them takes minutes.

Real is everything else: loading, the rewritten attention, MLP, norms and LoRA layers, checkpointing, the trainer that
Unsloth generates from TRL's source, its scorer and its loss. Nothing here says anything about Triton kernels, bfloat16,
speed or memory.
"""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.update(
    CUDA_VISIBLE_DEVICES="",  # these tests are the same where there is a GPU
    UNSLOTH_ALLOW_CPU="1",
    UNSLOTH_COMPILE_DISABLE="1",
    UNSLOTH_DISABLE_PINNED_MEMORY="1",
    UNSLOTH_DISABLE_STATISTICS="1",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)

import torch

_MEMORY = 24 << 30  # bytes
_CARD = SimpleNamespace(name="made up", total_memory=_MEMORY, major=8, minor=0, multi_processor_count=1, gcnArchName="")


def _answer(value: Any, *names: str) -> None:
    for name in names:
        setattr(torch.cuda, name, lambda *_, **__: value)


_answer(_CARD, "get_device_properties")
_answer((8, 0), "get_device_capability")
_answer(_CARD.name, "get_device_name")
_answer((_MEMORY, _MEMORY), "mem_get_info")
_answer(0, "current_device", "memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved")
_answer(None, "synchronize", "empty_cache", "reset_peak_memory_stats", "ipc_collect", "manual_seed_all")

from grit_lite.compat import ensure_torchvision_ops  # noqa: E402

ensure_torchvision_ops()

from bitsandbytes.nn import modules  # noqa: E402
from unsloth import FastVisionModel, PatchFastRL  # noqa: E402
from unsloth.models import loader  # noqa: E402

loader.ALLOW_BITSANDBYTES = True
modules.has_avx512bf16 = lambda: False
os.environ["UNSLOTH_ALLOW_CPU"] = "0"
PatchFastRL()
os.environ["UNSLOTH_ALLOW_CPU"] = "1"


def open_model(folder: Path, checkpointing: bool | str, *, load_in_4bit: bool) -> tuple[Any, Any]:
    """The model of a folder with a fresh LoRA adapter on its language layers, and its processor."""
    model, processor = FastVisionModel.from_pretrained(
        str(folder),
        max_seq_length=1024,
        load_in_4bit=load_in_4bit,
        dtype=torch.float32,
        use_gradient_checkpointing=checkpointing,
        device_map="cpu",
        local_files_only=True,
    )
    model = FastVisionModel.get_peft_model(
        model,
        finetune_vision_layers=False,
        r=8,
        lora_alpha=16,
        lora_dropout=0,
        bias="none",
        use_gradient_checkpointing=checkpointing,
    )
    return model, processor


def trainer_types() -> tuple[type, type]:
    """(GRPOConfig, GRPOTrainer) as trl has them once Unsloth has put its own in their place."""
    from trl import GRPOConfig, GRPOTrainer

    return GRPOConfig, GRPOTrainer
