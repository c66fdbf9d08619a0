"""The random models: they load with the real classes, and their logits read everything that stands before them."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.models import (
    configuration,
    published_configuration,
    save_published,
    save_random,
    vision_to_text_flops,
)
from grit_lite import shapes
from grit_lite.backends import Request, open_backend
from grit_lite.recipe import load_recipe

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "internvl")


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return save_random(tmp_path_factory.mktemp(request.param), request.param, "miniature")


@pytest.fixture(scope="module")
def loaded(folder):
    return AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def picture(seed, width=112, height=112):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encode(processor, images, before="Look at", after="What is it?"):
    content = [{"type": "text", "text": before}, *[{"type": "image"}] * len(images), {"type": "text", "text": after}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return processor(images=images, text=[text], return_tensors="pt")


def last_logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits[0, -1]


def differ(left, right):
    return (left - right).abs().max() > 0.1  # the logits' own spread is 1.5


@pytest.mark.parametrize("count", [1, 2])
def test_the_logits_depend_on_every_image_and_on_an_earlier_token(loaded, count):
    model, processor = loaded
    images = [picture(seed) for seed in range(count)]
    logits = last_logits(model, encode(processor, images))
    for k in range(count):
        other = [*images[:k], picture(9), *images[k + 1 :]]
        assert differ(logits, last_logits(model, encode(processor, other)))
    assert differ(logits, last_logits(model, encode(processor, images, before="Look on")))


def test_the_logits_depend_on_where_things_stand(loaded):
    model, processor = loaded
    one, two = picture(0), picture(1)
    assert differ(last_logits(model, encode(processor, [one, two])), last_logits(model, encode(processor, [two, one])))
    turned = one.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert differ(last_logits(model, encode(processor, [one])), last_logits(model, encode(processor, [turned])))


def test_the_images_stand_where_the_content_has_them(loaded):
    _, processor = loaded
    parts = [{"type": "image"}, {"type": "text", "text": "one"}, {"type": "image"}, {"type": "text", "text": "two"}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
    found = re.findall(re.escape(processor.image_token) + "|one|two", text)
    assert found == [processor.image_token, "one", processor.image_token, "two"]


def test_the_same_seed_gives_the_same_weights(folder, loaded, tmp_path):
    def weights(seed):
        saved = save_random(tmp_path / str(seed), loaded[0].config.model_type, "miniature", seed)
        return (saved / "model.safetensors").read_bytes()

    state = torch.get_rng_state()
    first = (folder / "model.safetensors").read_bytes()
    assert first == weights(0)
    assert first != weights(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_backend_opens_it_and_says_when_to_stop(folder):
    backend = open_backend(load_recipe("tiny", [f"model={folder}"]))
    ends = backend.model.generation_config
    assert ends.eos_token_id == backend.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ends.pad_token_id == backend.processor.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert backend.spec.family == backend.model.config.model_type
    assert {parameter.dtype for parameter in backend.model.parameters()} == {torch.float32}
    (answer,) = backend.generate([Request((picture(0),), "What is it?")], max_new_tokens=8)
    assert answer.tokens >= 1


def test_an_internvl_image_is_one_tile_or_several_and_a_thumbnail(tmp_path):
    folder = save_random(tmp_path, "internvl", "miniature")
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    square, wide = picture(0, 56, 56), picture(1, 112, 56)
    for images, tiles in (([square], 1), ([wide], 3), ([wide, square, wide], 7)):
        batch = encode(processor, images)
        assert batch["pixel_values"].shape == (tiles, 3, 56, 56)
        assert (batch["input_ids"] == model.config.image_token_id).sum() == 4 * tiles
    logits = last_logits(model, encode(processor, [wide]))
    for k in range(3):
        batch = encode(processor, [wide])
        batch["pixel_values"][k] = batch["pixel_values"][k].flip(-1)
        assert differ(logits, last_logits(model, batch))


def test_the_window_and_the_deepstack_layers_are_there():
    vision = configuration("qwen2_5_vl", "miniature").vision_config
    assert set(range(vision.depth)) - set(vision.fullatt_block_indexes)
    assert vision.fullatt_block_indexes
    assert len(configuration("qwen3_vl", "miniature").vision_config.deepstack_visual_indexes) == 2


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_the_ratio_of_flops_is_that_of_the_weights_a_token_meets(family):
    config = configuration(family, "middle")
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config).model
    merging = [p.numel() for name, p in model.visual.named_parameters() if "merger" in name and p.ndim > 1]
    patches = [
        p.numel()
        for name, p in model.visual.named_parameters()
        if "merger" not in name and "pos_embed" not in name and p.ndim > 1
    ]
    text = sum(p.numel() for p in model.language_model.layers.parameters() if p.ndim > 1)
    assert vision_to_text_flops(config) == pytest.approx((4 * sum(patches) + sum(merging)) / text)


def test_the_middle_model_has_the_balance_of_the_real_3b():
    real = configuration("qwen2_5_vl", "middle")
    for part, values in (
        (real.vision_config, {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 2048}),
        (real.text_config, {"hidden_size": 2048, "num_hidden_layers": 36, "intermediate_size": 11008}),
        (real.text_config, {"num_attention_heads": 16, "num_key_value_heads": 2}),
    ):
        for name, value in values.items():
            setattr(part, name, value)
    assert vision_to_text_flops(real) == pytest.approx(0.92, abs=0.005)
    assert vision_to_text_flops(configuration("qwen2_5_vl", "middle")) == pytest.approx(0.92, rel=0.05)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_model_of_middle_size_answers_without_ties(family, tmp_path):
    folder = save_random(tmp_path, family, "middle")
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    logits = last_logits(model, encode(processor, [picture(0, 300, 200)]))
    assert logits.shape == (8192,)
    assert torch.diff(logits.topk(2).values).abs() > 1e-4


# What makes a published shape small enough for a test: all but its vocabulary and the width of a head.
SMALL = {
    "Qwen/Qwen2.5-VL-3B-Instruct": (
        {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 1, "num_key_value_heads": 1},
        {"depth": 2, "hidden_size": 64, "intermediate_size": 176, "num_heads": 4, "fullatt_block_indexes": [1]},
    ),
    "Qwen/Qwen3-VL-4B-Instruct": (
        {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 8},
        {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "deepstack_visual_indexes": [0, 1]},
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_model_of_a_published_shape_loads_and_answers(name, tmp_path, monkeypatch):
    shape, (text, vision) = shapes.SHAPES[name], SMALL[name]
    text = {**shape["text_config"], "num_hidden_layers": 2, **text}
    vision = {**shape["vision_config"], **vision, "out_hidden_size": text["hidden_size"]}
    monkeypatch.setitem(shapes.SHAPES, name, {**shape, "text_config": text, "vision_config": vision})
    backend = open_backend(load_recipe("tiny", [f"model={save_published(tmp_path, name)}", "dtype=bfloat16"]))
    assert backend.model.config.get_text_config().vocab_size == 151936
    assert backend.model.lm_head.weight is backend.model.get_input_embeddings().weight
    assert {parameter.dtype for parameter in backend.model.parameters()} == {torch.bfloat16}
    logits = [
        last_logits(backend.model, encode(backend.processor, [picture(seed)]).to(torch.bfloat16)) for seed in (0, 1)
    ]
    assert differ(*logits)
    (answer,) = backend.generate([Request((picture(0),), "What is it?")], max_new_tokens=4)
    assert answer.tokens >= 1


@pytest.mark.parametrize("name", SMALL)
def test_a_published_shape_keeps_all_sizes(name):
    ours, real = published_configuration(name), shapes.published_config(name)
    for part in ("text_config", "vision_config"):
        changed = {
            key for key, value in getattr(real, part).to_dict().items() if getattr(ours, part).to_dict()[key] != value
        }
        assert changed <= {"eos_token_id", "pad_token_id", "bos_token_id"}
    assert ours.tie_word_embeddings == real.tie_word_embeddings


def test_an_unknown_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no published Qwen shape of the name 'OpenGVLab/InternVL3-1B-hf'"):
        save_published(tmp_path, "OpenGVLab/InternVL3-1B-hf")
    with pytest.raises(ValueError, match="no random model 'internvl middle'"):
        save_random(tmp_path, "internvl", "middle")
    assert not list(tmp_path.iterdir())
