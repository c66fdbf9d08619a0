"""The table of families, held to a random miniature of each real class."""

import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from shared_prompt_cases import model_folder

from grit_lite.answer import GRIT_PROMPT
from grit_lite.backends import Request, open_backend
from grit_lite.boxes import smart_resize
from grit_lite.errors import ModelError
from grit_lite.families import FAMILIES
from grit_lite.recipe import load_recipe

THOUSANDTHS = {"qwen3_vl", "internvl"}  # of width and height; Qwen2.5-VL writes pixels of what it sees
TILE = 56  # pixels a side of a tile of the InternVL miniature
SIZES = [(300, 200), (200, 300), (640, 80), (56, 56), (20, 30)]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return model_folder(tmp_path_factory, family.model_type)


@pytest.fixture(scope="module")
def backend(folder):
    return open_backend(recipe_for(folder))


def recipe_for(folder, *settings):
    return load_recipe("tiny", [f"model={folder}", "backend=plain", f"max_pixels={128 * 128}", *settings])


def encode(backend, image):
    return backend._encode([Request((image,), GRIT_PROMPT.render("Where is it?"))])


def linear_layers(model):
    return {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


def targets(backend, *parts):
    """The modules that PEFT would choose."""
    chosen = backend.family.lora_targets(parts)
    return {name for name, _ in backend.model.named_modules() if re.fullmatch(chosen, name)}


# LoRA


def test_a_row_is_found_under_its_own_name(family, backend):
    assert FAMILIES[backend.model.config.model_type] is family is backend.family


@pytest.mark.parametrize("kind", ["attention", "mlp"])
@pytest.mark.parametrize("part", ["language", "vision"])
def test_each_part_and_kind_is_linear_layers_of_that_part_in_every_block(backend, part, kind):
    found = targets(backend, part, kind)
    assert found
    assert found <= linear_layers(backend.model)
    assert all(("language_model" in name) == (part == "language") for name in found)
    assert all(("mlp" in name) == (kind == "mlp") for name in found)
    blocks = {re.search(r"\.(\d+)\.", name)[1] for name in found}
    config = backend.model.config.text_config if part == "language" else backend.model.config.vision_config
    depth = getattr(config, "num_hidden_layers", None) or config.depth
    assert blocks == {str(block) for block in range(depth)}


def test_both_kinds_together_are_every_linear_layer_of_the_blocks(backend):
    layers = linear_layers(backend.model)
    in_blocks = {name for name in layers if re.search(r"\.(?:layers|blocks|layer)\.\d+\.", name)}
    assert targets(backend, "language", "vision", "attention", "mlp") == in_blocks
    language = {name for name in in_blocks if ".language_model." in name}
    assert targets(backend, "language", "attention", "mlp") == language


def test_the_tower_stays_frozen_unless_it_is_asked_for(folder):
    for parts, trained in (("language, attention, mlp", {True}), ("vision, language, mlp", {True, False})):
        recipe = recipe_for(folder, f"lora_parts=[{parts}]")
        backend = open_backend(recipe)
        backend.attach_lora(recipe)
        names = [name for name, parameter in backend.model.named_parameters() if parameter.requires_grad]
        assert {".language_model." in name for name in names} == trained


@pytest.mark.parametrize("parts", [["language"], ["mlp"], ["vision"], []])
def test_lora_on_nothing_is_refused(family, parts):
    with pytest.raises(ModelError, match="name at least one of language and vision, and at least one of attention"):
        family.lora_targets(parts)


def test_in_4bit_the_targets_are_quantised_and_the_way_of_an_image_is_not(folder):
    from bitsandbytes.nn import Linear4bit

    recipe = recipe_for(folder, "load_in_4bit=true")
    backend = open_backend(recipe)
    quantised = {name for name, module in backend.model.named_modules() if isinstance(module, Linear4bit)}
    assert quantised == targets(backend, "language", "attention", "mlp")
    backend.attach_lora(recipe)
    with torch.no_grad():
        assert backend.generate([Request((Image.new("RGB", (64, 64)),), "What?")], max_new_tokens=2)[0].tokens >= 1


# Tokens


def test_every_vision_token_is_in_the_tokenizer_and_is_suppressed(family, backend):
    vocabulary = backend.processor.tokenizer.get_vocab()
    assert set(family.vision_tokens) <= vocabulary.keys()
    assert backend.suppressed_tokens() == [vocabulary[token] for token in family.vision_tokens]


def test_every_token_by_which_the_model_finds_an_image_is_suppressed(backend):
    config = backend.model.config
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    known = {getattr(config, name) for name in names if getattr(config, name, None) is not None}
    known |= set(getattr(backend.processor, "image_token_ids", ()))
    assert known
    assert known <= set(backend.suppressed_tokens())


# Images


def image_tokens(backend, size):
    tokens = encode(backend, Image.new("RGB", size))["input_ids"]
    return int((tokens == backend.model.config.image_token_id).sum())


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("most", [64 * 64, 128 * 128, 160 * 160])
def test_an_image_of_a_qwen_model_is_as_many_tokens_as_its_resized_pixels_are_worth(size, most, tmp_path_factory):
    for name in ("qwen2_5_vl", "qwen3_vl"):
        family = FAMILIES[name]
        backend = open_backend(recipe_for(model_folder(tmp_path_factory, name), f"max_pixels={most}"))
        least = min(4 * family.pixels_per_token, most)
        factor = round(family.pixels_per_token**0.5)
        width, height = smart_resize(size, factor=factor, min_pixels=least, max_pixels=most)
        assert backend.resized(Image.new("RGB", size)) == (width, height)
        assert image_tokens(backend, size) == width * height // family.pixels_per_token


@pytest.mark.parametrize(
    ("tiles", "wide", "square"), [(0.5, 1, 1), (1, 1, 1), (2, 1, 1), (3, 3, 1), (4, 4, 1), (5, 4, 5), (99, 4, 5)]
)
def test_max_pixels_limits_the_tiles_of_an_internvl_image_with_the_small_copy(tiles, wide, square, tmp_path_factory):
    """The miniature's own limit is four tiles and the copy. A square picture of many pixels likes 1 or 2 x 2 tiles."""
    folder = model_folder(tmp_path_factory, "internvl")
    backend = open_backend(recipe_for(folder, f"max_pixels={int(tiles * TILE * TILE)}"))
    per_tile = TILE * TILE // FAMILIES["internvl"].pixels_per_token
    for size, expected in (((640, 200), wide), ((640, 640), square)):
        assert encode(backend, Image.new("RGB", size))["pixel_values"].shape[0] == expected
        assert image_tokens(backend, size) == expected * per_tile


def test_the_limit_of_one_model_is_not_the_limit_of_the_next(family, folder):
    before = image_tokens(open_backend(recipe_for(folder)), (300, 200))
    assert image_tokens(open_backend(recipe_for(folder, f"max_pixels={56 * 56}")), (300, 200)) < before
    assert image_tokens(open_backend(recipe_for(folder)), (300, 200)) == before


def test_no_image_is_more_tokens_than_the_table_says(family, backend):
    most = family.image_tokens(backend.recipe.max_pixels)
    assert all(image_tokens(backend, size) <= most for size in SIZES)


@pytest.mark.parametrize(
    ("name", "max_pixels", "tokens"),
    [
        ("qwen2_5_vl", 256 * 28 * 28, 256),
        ("qwen3_vl", 256 * 32 * 32, 256),
        ("internvl", 3 * 448 * 448, 768),
        ("internvl", 1000, 256),
    ],
)
def test_the_real_models_take_that_many_tokens_for_an_image(name, max_pixels, tokens):
    assert FAMILIES[name].image_tokens(max_pixels) == tokens


# Boxes


def what_the_model_sees(backend, image):
    """(height, width) of brightness: the pixels that reach the tower, put together again; InternVL's small copy."""
    batch = encode(backend, image)
    pixels = batch["pixel_values"]
    if "image_grid_thw" not in batch:
        return pixels[-1].mean(0).numpy()
    _, height, width = batch["image_grid_thw"][0].tolist()
    side = backend.processor.image_processor.patch_size
    patches = pixels.reshape(height // 2, width // 2, 2, 2, 3, -1, side, side)[:, :, :, :, :, 0].mean(4)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(height * side, width * side).numpy()


def test_a_box_that_the_model_writes_where_it_sees_something_is_where_that_is(family, backend):
    original, box = (400, 300), (80, 60, 240, 210)
    image = Image.new("RGB", original, "white")
    ImageDraw.Draw(image).rectangle(box, fill="black")
    seen = what_the_model_sees(backend, image)
    rows, columns = np.nonzero(seen < (seen.min() + seen.max()) / 2)
    written = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=float)
    if family.model_type in THOUSANDTHS:
        written *= np.tile([1000 / seen.shape[1], 1000 / seen.shape[0]], 2)
    resized = backend.resized(image)
    found = family.box_space.to_pixels(written, original=original, resized=resized)
    assert found == pytest.approx(box, abs=1.5 * max(original) / min(seen.shape))
