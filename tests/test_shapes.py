"""The published shapes: each built without memory, and counted."""

import pytest
import torch

from grit_lite.compat import ensure_torchvision_ops
from grit_lite.shapes import SHAPES, published_config

ensure_torchvision_ops()

from transformers import AutoModelForImageTextToText  # noqa: E402

PARAMETERS = {  # what the hub counts in each model's safetensors files
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen3-VL-2B-Instruct": 2_127_532_032,
    "Qwen/Qwen3-VL-4B-Instruct": 4_437_815_808,
    "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
    "OpenGVLab/InternVL3-1B-hf": 938_193_024,
    "OpenGVLab/InternVL3-2B-hf": 2_088_957_440,
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_model_of_the_shape_has_the_published_number_of_parameters(name):
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(published_config(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_a_copy_of_a_model_has_its_shape():
    config = published_config("unsloth/Qwen3-VL-8B-Instruct-unsloth-bnb-4bit")
    assert config.to_dict() == published_config("Qwen/Qwen3-VL-8B-Instruct").to_dict()


def test_a_model_that_is_not_known_has_no_shape():
    assert published_config("nobody/no-model") is None
