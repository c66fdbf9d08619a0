"""What backends on transformers' model classes have in common: everything but how a model is loaded and adapted.

The Unsloth backend imports this file only after Unsloth, which rewrites the libraries that stand below.
"""

import contextlib
import logging
from collections.abc import Generator, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from grit_lite.backends import FAMILIES, Generated, ModelSpec, Request, model_location, read_spec
from grit_lite.boxes import Size
from grit_lite.compat import ensure_torchvision_ops
from grit_lite.errors import ModelError
from grit_lite.recipe import Recipe

ensure_torchvision_ops()
# On a CPU bitsandbytes reports at every start that an optional kernel from a hub is not installed.
logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
# Without a network the hub's client reports each of its retries; the one message at the end is ours.
logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)

from peft import PeftModel  # noqa: E402
from transformers import AutoProcessor, TextStreamer  # noqa: E402
from transformers.utils.logging import disable_progress_bar  # noqa: E402

from grit_lite.rollout import Sampling, cut_at_end, decode, sample  # noqa: E402
from grit_lite.vlm import Prompt, VisionLanguageModel, shares_prompts  # noqa: E402

disable_progress_bar()  # our own screen says what happens

# A sampled vision token would ask for image features that do not exist, and end the next forward pass.
VISION_TOKENS = (
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<IMG_CONTEXT>",
    "<img>",
    "</img>",
)

# The linear layers of the Qwen and InternVL classes, as regular expressions over module names.
_TOWERS = {"language": "language_model", "vision": "visual|vision_tower"}
_LAYERS = {
    "attention": r"(?:self_attn|attn|attention)\.(?:q_proj|k_proj|v_proj|o_proj|qkv|proj|projection_layer)",
    "mlp": r"mlp\.(?:gate_proj|up_proj|down_proj|linear_fc1|linear_fc2|fc1|fc2)",
}


class LoadedModel:
    """A `Backend` but for `attach_lora`, `trainer_types` and the loading itself.

    Args:
        reason: why this backend was chosen, for `describe`.
    """

    name: str
    shares_rollout: bool
    libraries: tuple[str, ...] = ("torch", "transformers", "trl", "peft", "bitsandbytes")

    def __init__(self, recipe: Recipe, adapter: Path | None = None, reason: str = "") -> None:
        self.recipe, self.reason = recipe, reason
        self.device = _device()
        self.dtype = _dtype(recipe.dtype, self.device)
        location = model_location(recipe.model)
        with explained(location):
            self.processor = self._load_processor(location)
            self.model: Any = self._load_model(location)
        # Vision-language configurations keep these in their text part only; the trainer warns where they are missing.
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(self.model.config, name, getattr(self.processor.tokenizer, name))
        self.spec = self._find_spec(location, adapter)
        if adapter is not None:
            self.model = _load_adapter(self.model, adapter)
        self.model.eval()
        self._find_parts()

    def _load_model(self, location: str) -> Any:
        raise NotImplementedError

    def _load_processor(self, location: str) -> Any:
        processor = AutoProcessor.from_pretrained(location, revision=self.recipe.revision)
        processor.tokenizer.padding_side = "left"
        size = processor.image_processor.size
        if "longest_edge" in size:  # the Qwen family states both as a number of pixels
            size["longest_edge"] = min(size["longest_edge"], self.recipe.max_pixels)
            size["shortest_edge"] = min(size["shortest_edge"], size["longest_edge"])
        return processor

    def _find_spec(self, location: str, adapter: Path | None) -> ModelSpec:
        found = (
            (adapter and read_spec(adapter)) or read_spec(Path(location)) or FAMILIES.get(self.model.config.model_type)
        )
        if found is None:
            raise ModelError(
                f"{location} is of the class '{self.model.config.model_type}', which grit-lite does not know how to "
                f"prompt. Known: {', '.join(FAMILIES)}. A grit_lite.json in the model's folder can say how."
            )
        return found

    def _find_parts(self) -> None:
        """After each change of the model, because an adapter changes which parts are trained."""
        self.vlm = VisionLanguageModel(self.model) if shares_prompts(self.model) else None

    def generate(
        self,
        requests: Sequence[Request],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        use_adapter: bool = True,
        batch_size: int = 32,
    ) -> list[Generated]:
        done: list[Generated] = []
        sampling = self._sampling(max_new_tokens, temperature)
        with self._inference(), self._adapter(use_adapter):
            for start in range(0, len(requests), batch_size):
                batch = self._encode(requests[start : start + batch_size])
                done += self._decode(self._sample(batch, sampling), self._seen_sizes(batch, requests[start:]))
        return done

    def stream(
        self, request: Request, *, max_new_tokens: int, temperature: float = 0.0, use_adapter: bool = True
    ) -> Generator[str, None, None]:
        if self.vlm is None:
            limits = {"max_new_tokens": max_new_tokens, "temperature": temperature, "use_adapter": use_adapter}
            yield self.generate([request], **limits)[0].text
            return
        pieces = _Pieces(self.processor.tokenizer, skip_special_tokens=True)
        prompts = self._prompts(self.vlm, self._encode([request]))
        with self._inference(), self._adapter(use_adapter):  # until the reader has all of it, or leaves
            for _, tokens in decode(self.vlm, prompts, [0], self._sampling(max_new_tokens, temperature)):
                pieces.put(torch.tensor(tokens))
                yield from pieces.take()
        pieces.end()
        yield from pieces.take()

    def prompt_tokens(self, request: Request) -> int:
        return self._encode([request])["input_ids"].shape[1]

    def resized(self, image: Image.Image) -> Size:
        batch = self.processor.image_processor(images=[image], return_tensors="pt")
        return self._seen_sizes(batch, [Request(image, "")])[0]

    def save_adapter(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.spec.save(folder, model=self.recipe.model)

    def describe(self) -> dict[str, Any]:
        parameters = list(self.model.parameters())
        return {
            "backend": self.name,
            "backend_reason": self.reason,
            "model": self.recipe.model,
            "family": self.spec.family,
            "box_space": str(self.spec.box_space),
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "dtype": str(self.dtype).removeprefix("torch."),
            "load_in_4bit": self.recipe.load_in_4bit,
            "shares_prompts": self.vlm is not None,
            "shares_rollout": self.vlm is not None and self.shares_rollout,
            "parameters": sum(parameter.numel() for parameter in parameters),
            "trainable": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
            "versions": {name: version(name) for name in self.libraries},
        }

    def suppressed_tokens(self) -> list[int]:
        vocabulary = self.processor.tokenizer.get_vocab()
        return [vocabulary[token] for token in VISION_TOKENS if token in vocabulary]

    def _inference(self) -> contextlib.AbstractContextManager:
        """While it is open, the model is in the state in which it generates."""
        return contextlib.nullcontext()

    def _adapter(self, use_adapter: bool) -> contextlib.AbstractContextManager:
        if use_adapter or not isinstance(self.model, PeftModel):
            return contextlib.nullcontext()
        return self.model.disable_adapter()

    def _encode(self, requests: Sequence[Request]) -> dict[str, torch.Tensor]:
        turns = [{"type": "image"}, {"type": "text"}]
        texts = [
            self.processor.apply_chat_template(
                [{"role": "user", "content": [turns[0], {**turns[1], "text": request.text}]}],
                add_generation_prompt=True,
                tokenize=False,
            )
            for request in requests
        ]
        images = [[request.image] for request in requests]
        # The side is said each time, because a trainer may set another on the tokenizer.
        options = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        return self.processor(images=images, text=texts, **options).to(self.device)

    def _sample(self, batch: dict[str, torch.Tensor], sampling: Sampling) -> list[list[int]]:
        if self.vlm is not None:
            return sample(self.vlm, self._prompts(self.vlm, batch), range(len(batch["input_ids"])), sampling)
        tokens = self.model.generate(**batch, **sampling.for_generate())[:, batch["input_ids"].shape[1] :]
        return cut_at_end(tokens, sampling.end_tokens)

    def _prompts(self, vlm: VisionLanguageModel, batch: dict[str, torch.Tensor]) -> list[Prompt]:
        rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
        tokens = [ids[mask.bool()].tolist() for ids, mask in rows]
        return vlm.prompts(tokens, [1] * len(tokens), batch)

    def _sampling(self, max_new_tokens: int, temperature: float) -> Sampling:
        return Sampling(
            max_new_tokens,
            temperature=temperature,
            end_tokens=self.end_tokens(),
            suppressed=tuple(self.suppressed_tokens()),
        )

    def end_tokens(self) -> tuple[int, ...]:
        """Ids of the tokens that end a completion."""
        ends = self.model.generation_config.eos_token_id
        return tuple(ends) if isinstance(ends, list) else (ends,)

    def _decode(self, completions: Sequence[Sequence[int]], sizes: Sequence[Size]) -> list[Generated]:
        ends = self.end_tokens()
        return [
            Generated(
                self.processor.tokenizer.decode(tokens, skip_special_tokens=True),
                len(tokens),
                bool(tokens) and tokens[-1] in ends,
                size,
            )
            for tokens, size in zip(completions, sizes, strict=False)
        ]

    def _seen_sizes(self, batch: Any, requests: Sequence[Request]) -> list[Size]:
        if "image_grid_thw" not in batch:  # InternVL cuts tiles; its boxes are in 0-1000 whatever the size
            return [request.image.size for request in requests]
        patch = self.processor.image_processor.patch_size
        return [(width * patch, height * patch) for _, height, width in batch["image_grid_thw"].tolist()]


class _Pieces(TextStreamer):
    """Turns tokens into text that no later token can change, piece by piece."""

    def __init__(self, tokenizer: Any, **decode_options: Any) -> None:
        super().__init__(tokenizer, **decode_options)
        self.waiting: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.waiting.append(text)

    def take(self) -> list[str]:
        pieces, self.waiting = self.waiting, []
        return pieces


def lora_targets(recipe: Recipe) -> str:
    """A regular expression, matched against whole module names, for the linear layers that carry LoRA."""
    layers = [_LAYERS[part] for part in recipe.lora_parts if part in _LAYERS]
    towers = [_TOWERS[part] for part in recipe.lora_parts if part in _TOWERS]
    if not layers or not towers:
        raise ModelError(
            f"lora_parts is {list(recipe.lora_parts)}: name at least one of language and vision, and at least one of "
            "attention and mlp."
        )
    return rf".*\.(?:{'|'.join(towers)})\..*\.(?:{'|'.join(layers)})"


def _device() -> torch.device:
    """By its number, because of several processes each has another GPU, and accelerate compares."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _load_adapter(model: Any, adapter: Path) -> Any:
    try:
        return PeftModel.from_pretrained(model, adapter)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"The adapter in {adapter} does not load on this model: {error}") from error


@contextlib.contextmanager
def explained(location: str) -> Iterator[None]:
    """Says in one message what a library reports about a model that cannot be loaded."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        hint = (
            "The folder must hold config.json, *.safetensors and the processor's files."
            if Path(location).is_dir()
            else "Check the name, the network, and HF_HUB_OFFLINE; a model that is not cached needs the hub once."
        )
        raise ModelError(f"The model {location} cannot be loaded: {error}\n{hint}") from error
