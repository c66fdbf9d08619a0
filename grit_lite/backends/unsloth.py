"""The Unsloth backend: its kernels, its checkpointing and the trainer that it derives from TRL's, on CUDA.

The only file that imports Unsloth, and it does so before everything else: Unsloth rewrites transformers, PEFT and TRL
as it is imported. Only `import_libraries` and `open_backend` import this file.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from grit_lite.compat import ensure_torchvision_ops, prepare_vllm

ensure_torchvision_ops()
prepare_vllm()
# Unsloth writes modules that it generates into a folder, and counts its users on the hub; both can be said otherwise.
os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(Path.home() / ".cache" / "grit-lite" / "unsloth"))
os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")

with contextlib.redirect_stdout(sys.stderr):  # stdout is for results, and Unsloth greets
    import unsloth
    from unsloth.save import patch_saving_functions  # pyright: ignore[reportMissingImports]
    from unsloth_zoo.llama_cpp import check_llama_cpp  # pyright: ignore[reportMissingImports]

from bitsandbytes.nn.modules import Linear4bit  # noqa: E402
from peft import PeftModel  # noqa: E402
from unsloth.models.vision import VLLM_SUPPORTED_VLM  # noqa: E402  # pyright: ignore[reportMissingImports]

FastVisionModel: Any = unsloth.FastVisionModel  # pyright: ignore[reportAttributeAccessIssue]  it sees this file

from grit_lite.backends.common import LoadedModel, longest_sequence  # noqa: E402
from grit_lite.engine import Engine, start_explained  # noqa: E402
from grit_lite.errors import ModelError  # noqa: E402
from grit_lite.recipe import Recipe  # noqa: E402


class UnslothBackend(LoadedModel):
    """See `Backend`."""

    name = "unsloth"
    # Unsloth's generation has a static cache and CUDA graphs, which `rollout` would go without.
    shares_rollout = False
    libraries = (*LoadedModel.libraries, "unsloth", "unsloth_zoo")

    def _load_model(self, location: str) -> Any:
        explained = contextlib.nullcontext() if self.engine_obstacle else start_explained()
        with contextlib.redirect_stdout(sys.stderr), explained:
            model, _ = FastVisionModel.from_pretrained(  # its processor is changed by every switch to training
                location,
                revision=self.recipe.revision,
                # Unsloth knows smaller downloads of many models, which have revisions of their own.
                use_exact_model_name=self.recipe.revision is not None,
                max_seq_length=longest_sequence(self.recipe, self.family),
                dtype=self.dtype,
                load_in_4bit=self.recipe.load_in_4bit,
                use_gradient_checkpointing=checkpointing(self.recipe),
                random_state=self.recipe.seed,
                device_map={"": self.device},
                **self._engine_options(),
            )
        self._check_precision(model)
        self._check_engine(model)
        return model

    def _engine_options(self) -> dict[str, Any]:
        if self.engine_obstacle:
            return {"fast_inference": False}
        return {
            "fast_inference": True,
            "gpu_memory_utilization": self.recipe.vllm_memory_share,
            "max_lora_rank": self.recipe.lora_rank,
        }

    def _engine_obstacles(self) -> Iterator[str]:
        yield from super()._engine_obstacles()
        if self.device.type != "cuda":
            yield "PyTorch finds no CUDA device here"
        if self.recipe.revision is not None:
            yield "revision is set, and under Unsloth vLLM loads the newest weights of a model's repository"
        if self.family.model_type not in VLLM_SUPPORTED_VLM:
            yield f"this release of Unsloth opens no engine for {self.family.name} models"

    def _check_engine(self, model: Any) -> None:
        """Unsloth goes on without an engine where it cannot open one."""
        if self.engine_obstacle is None and not hasattr(model, "vllm_engine"):
            self._sample_without_engine("Unsloth opened no engine; what it said about that stands above")

    def _open_engine(self, location: str) -> Engine:
        from unsloth_zoo.vllm_utils import load_lora  # pyright: ignore[reportMissingImports]

        # For the adapter's configuration; its tensors stay where they are.
        folder = TemporaryDirectory(prefix="grit-lite-adapter-")

        def hand_over() -> Any:
            return load_lora(self.model, folder.name, load_tensors=True) if isinstance(self.model, PeftModel) else None

        return Engine(
            self.model.vllm_engine,
            hand_over,
            image_token=self.model.config.image_token_id,
            image_size=self.processor.image_processor.size,
            shared=True,
        )

    def _check_precision(self, model: Any) -> None:
        """Unsloth loads in another precision than it was asked for where it cannot do it, and goes on."""
        # Asked of the layers: a model that shares vLLM's weights is built from them, and says nothing of itself.
        in_4bit = any(isinstance(module, Linear4bit) for module in model.modules())
        if in_4bit != self.recipe.load_in_4bit or model.dtype != self.dtype:
            found = f"{'4-bit' if in_4bit else 'no 4-bit'} weights and {model.dtype}"
            raise ModelError(
                f"Unsloth loaded {self.recipe.model} with {found}, where the recipe says load_in_4bit="
                f"{self.recipe.load_in_4bit} and {self.dtype}. Set load_in_4bit and dtype to what it did, or set "
                "backend=plain."
            )

    def attach_lora(self, recipe: Recipe) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self.model = FastVisionModel.get_peft_model(
                self.model,
                r=recipe.lora_rank,
                lora_alpha=recipe.lora_alpha,
                lora_dropout=0.0,  # with dropout the completions of a group could not share one pass over their prompt
                bias="none",
                # These decide alone; the four below are asked elsewhere.
                target_modules=self.family.lora_targets(recipe.lora_parts),
                finetune_vision_layers="vision" in recipe.lora_parts,
                finetune_language_layers="language" in recipe.lora_parts,
                finetune_attention_modules="attention" in recipe.lora_parts,
                finetune_mlp_modules="mlp" in recipe.lora_parts,
                use_gradient_checkpointing=checkpointing(recipe),
                random_state=recipe.seed,
            )
        self._find_parts()

    def trainer_types(self) -> tuple[type, type]:
        from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]

        if not GRPOTrainer.__name__.startswith("Unsloth"):
            raise ModelError(
                "Unsloth has not put its own trainer in the place of TRL's. The versions of unsloth and trl do not fit "
                "each other: install those of constraints.txt, or set backend=plain."
            )
        return GRPOConfig, GRPOTrainer

    def save_gguf(self, folder: Path, quantization: str) -> None:
        """Write the model with its adapter merged as GGUF files: the language model's, and `mmproj` for what sees.

        Raises:
            ModelError: llama.cpp is missing, or Unsloth could not do it.
        """
        _require_llama_cpp()
        # PEFT has put the adapter on; without this the method would be found on the base, and write that.
        patch_saving_functions(self.model, vision=True)
        merged = folder / "merged"
        try:
            with contextlib.redirect_stdout(sys.stderr):
                written = self.model.save_pretrained_gguf(str(merged), self.processor, quantization_method=quantization)
        except (RuntimeError, ValueError, OSError) as error:
            raise ModelError(f"Unsloth could not write GGUF files of {self.recipe.model}: {error}") from error
        made = Path(written["gguf_directory"])
        for path in made.iterdir():
            path.rename(folder / path.name)
        made.rmdir()
        shutil.rmtree(merged)

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        if not self.model.training:
            yield
            return
        FastVisionModel.for_inference(self.model)
        try:
            yield
        finally:
            FastVisionModel.for_training(self.model)


def _require_llama_cpp() -> None:
    """Unsloth would fetch and build it, and install system packages for that, without being asked to."""
    try:
        check_llama_cpp()
    except RuntimeError as error:
        raise ModelError(
            f"Unsloth converts with llama.cpp, which is missing: {error}. Let Unsloth fetch and build it; it installs "
            'system packages, too: python -c "import unsloth; from unsloth_zoo.llama_cpp import install_llama_cpp; '
            'install_llama_cpp()"'
        ) from error


def checkpointing(recipe: Recipe) -> str | bool:
    """Unsloth's own kind of gradient checkpointing, which keeps what it saves in the memory of the machine."""
    return "unsloth" if recipe.gradient_checkpointing else False
