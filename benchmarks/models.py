"""Random models of the real transformers classes, as folders that `from_pretrained` loads.

A miniature has every part of its family that a forward pass can get wrong (window attention, deepstack, tiles, grouped
queries) and answers in milliseconds. A model of middle size has, for Qwen2.5-VL, the real 3B's balance between vision
and text, so that times on it say where the time of the real one goes. A model of a published shape has every matrix of
the real one, and needs a card.
"""

from pathlib import Path
from typing import Any

import torch

from grit_lite.compat import ensure_torchvision_ops
from grit_lite.shapes import published_config
from grit_lite.tiny.build import build_tokenizer

ensure_torchvision_ops()

import transformers  # noqa: E402
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast  # noqa: E402
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor  # noqa: E402

_GAIN = 1.5  # of every weight matrix: above 1, so that what differs at the input still differs after the last layer
# The same for some 30 layers. 1.5 would make 0.16 nats of bfloat16's rounding there; 1.0 makes 0.02 of it, and 0.2 of
# wrong positions, on 36 layers of width 256.
_DEEP_GAIN = 1.0
_TILE, _TILE_PATCH = 56, 14  # pixels a side of an InternVL tile, and of its patches
_TILE_TOKENS = (_TILE // _TILE_PATCH // 2) ** 2  # the pixel shuffle makes one token of 2 x 2 patches
_INTERNVL_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
_INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_TEXT: dict[tuple[str, str], dict[str, Any]] = {
    ("qwen2_5_vl", "miniature"): {
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    },
    ("qwen2_5_vl", "middle"): {
        "hidden_size": 512,
        "intermediate_size": 2752,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [8, 12, 12]},
        "vocab_size": 8192,
    },
    ("qwen3_vl", "miniature"): {
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,  # heads x head_dim is not hidden_size, as in the real 4B
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
    },
    ("qwen3_vl", "middle"): {
        "hidden_size": 512,
        "intermediate_size": 1920,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5000000.0,
            "mrope_section": [12, 10, 10],
            "mrope_interleaved": True,
        },
        "vocab_size": 8192,
    },
    ("internvl", "miniature"): {
        "model_type": "qwen2",
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
_VISION: dict[tuple[str, str], dict[str, Any]] = {
    ("qwen2_5_vl", "miniature"): {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_heads": 4,
        "window_size": 56,  # pixels; half the real window, so that small pictures have several
        "fullatt_block_indexes": [1],
        "out_hidden_size": 64,
    },
    ("qwen2_5_vl", "middle"): {
        "depth": 3,
        "hidden_size": 320,
        "intermediate_size": 800,  # chosen with `vision_to_text_flops`
        "num_heads": 4,
        "window_size": 112,
        "fullatt_block_indexes": [2],
        "out_hidden_size": 512,
    },
    ("qwen3_vl", "miniature"): {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 4,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
        "out_hidden_size": 64,
    },
    ("qwen3_vl", "middle"): {
        "depth": 4,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_heads": 2,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [1, 2],
        "out_hidden_size": 512,
    },
    ("internvl", "miniature"): {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "attention_bias": True,
        "image_size": _TILE,
        "patch_size": _TILE_PATCH,
        "layer_scale_init_value": 1.0,  # the default of 0.1 would leave the picture's neighbourhoods almost unread
    },
}
_LONGEST = {"miniature": 192 * 192, "middle": 1280 * 32 * 32}  # pixels of a picture, for the Qwen families
_QWEN = ("qwen2_5_vl", "qwen3_vl")


def save_random(folder: Path, family: str, size: str, seed: int = 0) -> Path:
    """The folder, now holding float32 random weights with tokenizer and processor.

    Args:
        family: "qwen2_5_vl", "qwen3_vl" or "internvl".
        size: "miniature" (under a million parameters) or, for the Qwen families, "middle" (some 30 million).
        seed: the same seed gives the same weights.
    """
    folder, config = Path(folder), configuration(family, size)
    processor = _processor(config, _LONGEST.get(size))
    _model(config, seed).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_published(folder: Path, model: str, seed: int = 0) -> Path:
    """The folder, now holding bfloat16 random weights of a published Qwen shape, with a tokenizer of a few words.

    It takes as many bytes as the real model, on the disk and while it is made: on the GPU where there is room, which
    takes seconds, else in the memory of this machine, which takes minutes.

    Args:
        model: the name on the hub, one of `grit_lite.shapes.SHAPES`.
    """
    folder, config = Path(folder), published_configuration(model)
    processor = _processor(config, _LONGEST["middle"])
    place = "cuda" if _fits_on_the_gpu(config) else "cpu"
    _model(config, seed, _DEEP_GAIN, torch.bfloat16, place).save_pretrained(folder, max_shard_size="4GB")
    processor.save_pretrained(folder)
    return folder


def published_configuration(model: str) -> Any:
    """The published shape, but for the ids of special tokens, which are those of the tokenizer of a few words."""
    config = published_config(model)
    if config is None or config.model_type not in _QWEN:
        raise ValueError(f"There is no published Qwen shape of the name '{model}'.")
    tokenizer = _tokenizer(config.model_type)
    for name, value in _vision_tokens(config.model_type, tokenizer).items():
        setattr(config, name, value)
    for name, value in _ends(tokenizer).items():
        setattr(config.text_config, name, value)
    return config


def _fits_on_the_gpu(config: Any) -> bool:
    with torch.device("meta"):
        weights = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).parameters()
    needed = 1.1 * sum(weight.nbytes for weight in weights)
    return torch.cuda.is_available() and needed < torch.cuda.mem_get_info()[0]


def configuration(family: str, size: str) -> Any:
    """The transformers configuration of one random model."""
    if (family, size) not in _TEXT:
        known = ", ".join(" ".join(pair) for pair in _TEXT)
        raise ValueError(f"There is no random model '{family} {size}'. Known: {known}.")
    tokenizer = _tokenizer(family)
    # untied: with a tied head a random model repeats its last token, and then every greedy answer is alike
    text = {"vocab_size": -(-len(tokenizer) // 16) * 16, **_ends(tokenizer), "tie_word_embeddings": False}
    return AutoConfig.for_model(
        family,
        text_config={**text, **_TEXT[family, size]},
        vision_config=dict(_VISION[family, size]),
        tie_word_embeddings=False,
        **_vision_tokens(family, tokenizer),
    )


def vision_to_text_flops(config: Any) -> float:
    """FLOPs of the vision tower per image token, divided by those of the language model per token; 0.92 for the 3B."""
    return vision_flops_per_image_token(config) / forward_flops_per_token(config)


def forward_flops_per_token(config: Any) -> int:
    """FLOPs of the language model's linear layers for one token, without the head.

    Neither this nor `vision_flops_per_image_token` counts attention scores, which depend on the length.
    """
    text = config.text_config
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    attention = 2 * text.hidden_size * head_dim * (text.num_attention_heads + text.num_key_value_heads)
    mlp = 3 * text.hidden_size * text.intermediate_size
    return 2 * text.num_hidden_layers * (attention + mlp)


def vision_flops_per_image_token(config: Any) -> int:
    """FLOPs of a Qwen vision tower's linear layers for the patches of one image token, mergers included."""
    vision = config.vision_config
    patches, hidden = vision.spatial_merge_size**2, vision.hidden_size
    mlp_matrices = {"qwen2_5_vl": 3, "qwen3_vl": 2}[config.model_type]  # only the first is gated
    block = 4 * hidden**2 + mlp_matrices * hidden * vision.intermediate_size
    embed = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2 * hidden
    merger = patches * hidden * (patches * hidden + vision.out_hidden_size)
    mergers = 1 + len(getattr(vision, "deepstack_visual_indexes", ()))
    return 2 * (patches * (embed + vision.depth * block) + mergers * merger)


def _model(config: Any, seed: int, gain: float = _GAIN, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
        _draw(model, gain)
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    return model.eval()


@torch.no_grad()
def _draw(model: torch.nn.Module, gain: float) -> None:
    """Weights that carry every input to the logits, where the library's own would drown it.

    Biases and norms are moved off zero and one too: a forward pass that forgets them must not go unnoticed.
    """
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        else:  # (outputs, inputs, ...), or (1, positions, features) of a table of positions
            parameter.normal_(std=gain / parameter.squeeze(0)[0].numel() ** 0.5)


def _tokenizer(family: str) -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer()
    if family != "internvl":
        return tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=tokenizer.model_max_length,
        chat_template=_INTERNVL_TEMPLATE,
        extra_special_tokens=_INTERNVL_TOKENS,
    )


def _ends(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}


def _vision_tokens(family: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The ids by which a configuration knows where its images are."""
    vocabulary = tokenizer.get_vocab()
    if family == "internvl":
        return {"image_token_id": vocabulary["<IMG_CONTEXT>"], "image_seq_length": _TILE_TOKENS}
    names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    return {f"{name}_token_id": vocabulary[f"<|{token}|>"] for name, token in names.items()}


def _processor(config: Any, longest: int | None) -> Any:
    return _internvl_processor() if config.model_type == "internvl" else _qwen_processor(config, longest)


def _internvl_processor() -> Any:
    tile = {"height": _TILE, "width": _TILE}
    tokenizer = _tokenizer("internvl")
    return transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=tile, min_patches=1, max_patches=4),
        tokenizer=tokenizer,
        video_processor=transformers.InternVLVideoProcessor(size=tile),
        image_seq_length=_TILE_TOKENS,
        chat_template=tokenizer.chat_template,
    )


def _qwen_processor(config: Any, longest: int | None) -> Any:
    tokenizer, vision = _tokenizer(config.model_type), config.vision_config
    settings = {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "size": {"shortest_edge": 4 * (2 * vision.patch_size) ** 2, "longest_edge": longest},
    }
    if config.model_type == "qwen3_vl":
        settings |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        kind, video = transformers.Qwen3VLProcessor, transformers.Qwen3VLVideoProcessor
    else:
        kind, video = transformers.Qwen2_5_VLProcessor, Qwen2VLVideoProcessor
    return kind(
        image_processor=transformers.Qwen2VLImageProcessor(**settings),
        tokenizer=tokenizer,
        video_processor=video(**settings),
        chat_template=tokenizer.chat_template,
    )
