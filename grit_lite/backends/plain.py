"""The plain backend: transformers, PEFT and bitsandbytes as they come, on a CPU or on CUDA."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

# First, because it prepares and silences what the next ones load.
from grit_lite.backends.common import LoadedModel, longest_sequence  # isort: skip

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, set_seed

from grit_lite.engine import AdapterOnDisk, Engine, open_llm
from grit_lite.recipe import Recipe

# The way of an image and the head are small and sensitive.
NOT_IN_4BIT = ["model.visual", "model.vision_tower", "model.multi_modal_projector", "lm_head"]


class PlainBackend(LoadedModel):
    """See `Backend`."""

    name = "plain"
    shares_rollout = True

    def _load_model(self, location: str) -> Any:
        self.shares_rollout = self.recipe.vllm_server is None  # else the server samples
        quantization = None
        if self.recipe.load_in_4bit:
            quantization = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=self.dtype,
                llm_int8_skip_modules=NOT_IN_4BIT,
            )
        return AutoModelForImageTextToText.from_pretrained(
            location,
            revision=self.recipe.revision,
            dtype=self.dtype,
            quantization_config=quantization,
            attn_implementation="sdpa",
            device_map={"": self.device},
        )

    def _engine_obstacles(self) -> Iterator[str]:
        if self.recipe.vllm_server is not None:
            yield "a vLLM server samples"
        if self.recipe.vllm == "auto":
            yield "the plain backend would load the weights a second time for vLLM, and does so only with vllm: on"
        yield from super()._engine_obstacles()

    def _open_engine(self, location: str) -> Engine:
        limit = self.model.config.get_text_config().max_position_embeddings
        size = self.processor.image_processor.size
        llm = open_llm(
            location,
            self.recipe,
            device=self.device.type,
            dtype=self.dtype,
            longest=min(longest_sequence(self.recipe, self.family), limit),
            size=size,
        )
        on_disk = AdapterOnDisk(self._save_for_engine)
        return Engine(
            llm,
            lambda: on_disk() if isinstance(self.model, PeftModel) else None,
            image_token=self.model.config.image_token_id,
            image_size=size,
        )

    def _save_for_engine(self, folder: Path) -> None:
        self.model.save_pretrained(folder, selected_adapters=["default"])

    def attach_lora(self, recipe: Recipe) -> None:
        set_seed(recipe.seed)  # the adapter's initial weights are drawn here
        lora = LoraConfig(
            r=recipe.lora_rank,
            lora_alpha=recipe.lora_alpha,
            lora_dropout=0.0,  # with dropout the completions of a group could not share one pass over their prompt
            bias="none",
            target_modules=self.family.lora_targets(recipe.lora_parts),
            task_type="CAUSAL_LM",
        )
        self.model = get_peft_model(self.model, lora)
        self._find_parts()

    def trainer_types(self) -> tuple[type, type]:
        from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]

        return GRPOConfig, GRPOTrainer
