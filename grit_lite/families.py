"""What differs between model families, in one table; how a prompt goes through a model of each is in `vlm.py`.

A family is a class of transformers, known by the `model_type` of its configuration.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from grit_lite.answer import GRIT_PROMPT, PromptTemplate
from grit_lite.boxes import BoxSpace
from grit_lite.errors import ModelError


@dataclass(frozen=True)
class Family:
    """How the models of one class read images and questions, and write boxes.

    Attributes:
        model_type: of the configuration.
        name: what people call it.
        example: a model of it on the hub.
        box_space: the unit of its boxes.
        prompts: what it is asked.
        pixels_per_token: of an image as the model sees it.
        least_pixels: of any image as the model sees it, however small the limit.
        limit_images: makes an image processor keep to a number of pixels.
        lora: the linear layers that may carry LoRA: part of the model -> kind of layer -> a regular expression for what
            follows "model." in a module's name.
        vision_tokens: those that stand for images; a sampled one would ask for features that do not exist, and end the
            next pass.
        vllm: whether vLLM rebuilds its prompts token by token from one image token and the image, and Unsloth opens an
            engine for it (`VLLM_SUPPORTED_VLM` in unsloth/models/vision.py).
    """

    model_type: str
    name: str
    example: str
    box_space: BoxSpace
    prompts: PromptTemplate
    pixels_per_token: int
    least_pixels: int
    limit_images: Callable[[Any, int], None]
    lora: Mapping[str, Mapping[str, str]]
    vision_tokens: tuple[str, ...]
    vllm: bool

    def image_tokens(self, max_pixels: int) -> int:
        """The most tokens that an image becomes under this limit, where no side is many times the other."""
        return max(max_pixels, self.least_pixels) // self.pixels_per_token

    def lora_targets(self, parts: Collection[str]) -> str:
        """A regular expression, matched against whole module names, for the linear layers that carry LoRA.

        Args:
            parts: of the model ("language", "vision") and kinds of layers ("attention", "mlp").

        Raises:
            ModelError: no part of the model, or no kind of layer, is among them.
        """
        layers = [
            layer
            for part, kinds in self.lora.items()
            for kind, layer in kinds.items()
            if part in parts and kind in parts
        ]
        if not layers:
            raise ModelError(
                f"lora_parts is {list(parts)}: name at least one of language and vision, and at least one of attention "
                "and mlp."
            )
        return rf"(?:.*\.)?model\.(?:{'|'.join(layers)})"


def limit_pixels(image_processor: Any, most: int) -> None:
    """The Qwen families scale an image; their processors state both limits of its area in pixels."""
    size = image_processor.size
    size["longest_edge"] = min(size["longest_edge"], most)
    size["shortest_edge"] = min(size["shortest_edge"], size["longest_edge"])


def limit_tiles(image_processor: Any, most: int) -> None:
    """InternVL cuts an image into square tiles of one size, and adds a small copy of the whole where there are several.

    The copy counts, because it costs as much as a tile; one tile there is always.
    """
    seen = most // (image_processor.size["height"] * image_processor.size["width"])
    image_processor.max_patches = min(image_processor.max_patches, max(1, seen - 1))
    image_processor.min_patches = min(image_processor.min_patches, image_processor.max_patches)


_LANGUAGE = {
    "attention": r"language_model\.layers\.\d+\.self_attn\.[qkvo]_proj",
    "mlp": r"language_model\.layers\.\d+\.mlp\.(?:gate|up|down)_proj",
}
_QWEN_VISION_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")

_QWEN2_5_VL = Family(
    model_type="qwen2_5_vl",
    name="Qwen2.5-VL",
    example="Qwen/Qwen2.5-VL-3B-Instruct",
    box_space=BoxSpace.RESIZED_PIXELS,
    prompts=GRIT_PROMPT,
    pixels_per_token=28 * 28,  # patches of 14 x 14, two by two
    least_pixels=28 * 28,
    limit_images=limit_pixels,
    lora={
        "language": _LANGUAGE,
        "vision": {
            "attention": r"visual\.blocks\.\d+\.attn\.(?:qkv|proj)",
            "mlp": r"visual\.blocks\.\d+\.mlp\.(?:gate|up|down)_proj",
        },
    },
    vision_tokens=_QWEN_VISION_TOKENS,
    vllm=True,
)
_QWEN3_VL = Family(
    model_type="qwen3_vl",
    name="Qwen3-VL",
    example="Qwen/Qwen3-VL-4B-Instruct",
    box_space=BoxSpace.NORM1000,
    prompts=GRIT_PROMPT,
    pixels_per_token=32 * 32,  # patches of 16 x 16, two by two
    least_pixels=32 * 32,
    limit_images=limit_pixels,
    lora={
        "language": _LANGUAGE,
        "vision": {
            "attention": r"visual\.blocks\.\d+\.attn\.(?:qkv|proj)",
            "mlp": r"visual\.blocks\.\d+\.mlp\.linear_fc[12]",
        },
    },
    vision_tokens=_QWEN_VISION_TOKENS,
    vllm=True,
)
_INTERNVL = Family(
    model_type="internvl",
    name="InternVL3 (-hf)",
    example="OpenGVLab/InternVL3-2B-hf",
    box_space=BoxSpace.NORM1000,
    prompts=GRIT_PROMPT,
    pixels_per_token=28 * 28,  # patches of 14 x 14, two by two
    least_pixels=448 * 448,  # a tile
    limit_images=limit_tiles,
    lora={
        "language": _LANGUAGE,
        "vision": {
            "attention": r"vision_tower\.encoder\.layer\.\d+\.attention\.(?:[qkv]_proj|projection_layer)",
            "mlp": r"vision_tower\.encoder\.layer\.\d+\.mlp\.fc[12]",
        },
    },
    vision_tokens=("<IMG_CONTEXT>", "<img>", "</img>"),
    vllm=False,
)

FAMILIES: dict[str, Family] = {family.model_type: family for family in (_QWEN2_5_VL, _QWEN3_VL, _INTERNVL)}
