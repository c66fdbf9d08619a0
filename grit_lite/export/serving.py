"""The commands that serve an export, or the adapter of its run, with vLLM.

Options as in vLLM 0.30. `--generation-config vllm` keeps the base model's repetition penalty out: boxes repeat numbers,
and the model was trained without one.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grit_lite.export import Source

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes as the largest rank
_COMMON = ("--limit-mm-per-prompt.image", "1", "--limit-mm-per-prompt.video", "0", "--generation-config", "vllm")


def command(source: "Source", record: Mapping[str, Any], where: str, base: str) -> str:
    """The command that serves an export.

    Args:
        record: what `export.json` says.
        where: what its readers load: a folder or a repository.
        base: what they load the base model from, as a shell reads it.
    """
    if record["format"] == "gguf":
        return with_llama_cpp(where, [name for name in record["files"] if name.endswith(".gguf")])
    if record["format"] == "adapter":
        return with_adapter(source, where, base)
    return shlex.join(["vllm", "serve", where, *_COMMON])


def with_llama_cpp(where: str, files: Sequence[str]) -> str:
    """`llama-mtmd-cli` with the text model and the `mmproj` file, which is the part that sees."""
    model = next((file for file in files if "mmproj" not in file), "MODEL.gguf")
    vision = next((file for file in files if "mmproj" in file), "MMPROJ.gguf")
    return shlex.join(["llama-mtmd-cli", "--model", f"{where}/{model}", "--mmproj", f"{where}/{vision}"])


def with_adapter(source: "Source", where: str, base: str) -> str:
    """`vllm serve` of the base with the adapter beside it, under the run's name."""
    recipe = source.recipe
    rank = next(rank for rank in RANKS if rank >= recipe.lora_rank)
    options = ["--enable-lora", "--lora-modules", f"{source.name}={where}", "--max-lora-rank", str(rank)]
    if "vision" in recipe.lora_parts:
        options.append("--enable-tower-connector-lora")
    if source.spec.family.startswith("qwen"):  # merged weights carry the limit in their processor
        options += ["--mm-processor-kwargs", json.dumps({"max_pixels": recipe.max_pixels})]
    revision = ["--revision", recipe.revision] if recipe.revision else []
    return f"vllm serve {base} {shlex.join([*revision, *options, *_COMMON])}"
