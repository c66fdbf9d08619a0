"""The published shapes of the models that the recipes name: their sizes without their weights.

For what must be known of a model before it is downloaded, such as the memory that it will need, and for random models
of real size. The numbers are those of each model's public config.json; a test builds every one without memory and
compares its number of parameters with the published one.
"""

import copy
from typing import Any

_QWEN2_5_ROPE = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]}
_QWEN3_ROPE = {
    "rope_type": "default",
    "rope_theta": 5000000.0,
    "mrope_section": [24, 20, 20],
    "mrope_interleaved": True,
}
_INTERNVL_ROPE = {"rope_type": "dynamic", "rope_theta": 1000000.0, "factor": 2.0}
_QWEN_TOKENS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
_ENDS = {"bos_token_id": 151643, "eos_token_id": 151645, "pad_token_id": 151643}


def _qwen2_5_vl(*, tied: bool, **text: int) -> dict[str, Any]:
    return {
        "model_type": "qwen2_5_vl",
        "text_config": {
            **text,
            **_ENDS,
            "rope_parameters": _QWEN2_5_ROPE,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 128000,
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "out_hidden_size": text["hidden_size"],
        },
        "tie_word_embeddings": tied,
        **_QWEN_TOKENS,
    }


def _qwen3_vl(*, tied: bool, vision: dict[str, Any], **text: int) -> dict[str, Any]:
    return {
        "model_type": "qwen3_vl",
        "text_config": {
            "vocab_size": 151936,
            "head_dim": 128,
            **text,
            **_ENDS,
            "rope_parameters": _QWEN3_ROPE,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 262144,
        },
        "vision_config": {
            "num_heads": 16,
            "patch_size": 16,
            "num_position_embeddings": 2304,
            "out_hidden_size": text["hidden_size"],
            **vision,
        },
        "tie_word_embeddings": tied,
        **_QWEN_TOKENS,
    }


def _internvl3(**text: int) -> dict[str, Any]:
    return {
        "model_type": "internvl",
        "text_config": {
            "model_type": "qwen2",
            "vocab_size": 151674,
            **text,
            **_ENDS,
            "rope_parameters": _INTERNVL_ROPE,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": False,
        },
        "vision_config": {
            "num_hidden_layers": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "attention_bias": True,
            "image_size": 448,
            "patch_size": 14,
        },
        "image_token_id": 151667,
        "image_seq_length": 256,
        "tie_word_embeddings": False,
    }


_SMALL_EYE = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
_LARGE_EYE = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}

# Keyword arguments of transformers' configuration classes, by the model's name on the hub.
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen2_5_vl(
        tied=True,
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": _qwen2_5_vl(
        tied=False,
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
    ),
    "Qwen/Qwen3-VL-2B-Instruct": _qwen3_vl(
        tied=True,
        vision=_SMALL_EYE,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
    ),
    "Qwen/Qwen3-VL-4B-Instruct": _qwen3_vl(
        tied=True,
        vision=_SMALL_EYE,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
    "Qwen/Qwen3-VL-8B-Instruct": _qwen3_vl(
        tied=False,
        vision=_LARGE_EYE,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
    "OpenGVLab/InternVL3-1B-hf": _internvl3(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
    ),
    "OpenGVLab/InternVL3-2B-hf": _internvl3(
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
    ),
}


def published_config(model: str) -> Any:
    """The transformers configuration of a model by its name on the hub, without the hub; None where it is not known.

    Another owner's copy of a model, and one with a suffix such as `-bnb-4bit`, has the model's shape.
    """
    from transformers import AutoConfig

    last = model.rpartition("/")[2]
    known = (name for name in SHAPES if last.startswith(name.rpartition("/")[2]))
    if (name := next(known, None)) is None:
        return None
    shape = copy.deepcopy(SHAPES[name])
    return AutoConfig.for_model(shape.pop("model_type"), **shape)
