"""What follows from a GPU, for every kind of GPU."""

import pytest

from grit_lite.errors import ModelError
from grit_lite.machine import Gpu, default_recipe, number_format
from grit_lite.memory import GIB, Device, Plan, model_sizes
from grit_lite.recipe import load_recipe
from grit_lite.shapes import published_config

T4 = Gpu("Tesla T4", 14.6, (7, 5))
V100 = Gpu("Tesla V100-SXM2-32GB", 31.7, (7, 0))
P100 = Gpu("Tesla P100-PCIE-16GB", 15.9, (6, 0))
RTX_2080 = Gpu("NVIDIA GeForce RTX 2080", 7.8, (7, 5))
RTX_3060 = Gpu("NVIDIA GeForce RTX 3060", 11.8, (8, 6))
RTX_4060 = Gpu("NVIDIA GeForce RTX 4060 Laptop GPU", 7.8, (8, 9))
H100 = Gpu("NVIDIA H100 80GB HBM3", 79.2, (9, 0))


@pytest.mark.parametrize(
    ("gpu", "recipe", "reason"),
    [
        (None, "tiny", "PyTorch finds no CUDA device here"),
        (T4, "t4", "Tesla T4 has 15 GiB and no bfloat16"),
        (V100, "t4", "Tesla V100-SXM2-32GB has 32 GiB and no bfloat16"),
        (RTX_3060, "qwen2_5-vl-3b", "NVIDIA GeForce RTX 3060 has 12 GiB and bfloat16"),
        (H100, "qwen2_5-vl-3b", "NVIDIA H100 80GB HBM3 has 79 GiB and bfloat16"),
    ],
)
def test_a_machine_gets_the_best_recipe_that_it_can_carry(gpu, recipe, reason):
    assert default_recipe(gpu) == (recipe, reason)


@pytest.mark.parametrize("gpu", [P100, RTX_2080, RTX_4060])
def test_a_card_that_is_too_small_or_too_old_gets_the_embedded_model_and_hears_what_a_larger_one_wants(gpu):
    recipe, reason = default_recipe(gpu)
    assert recipe == "tiny"
    assert f"{gpu.gib:.0f} GiB" in reason
    assert "11 GiB and compute capability 8.0 (qwen2_5-vl-3b) or 14 GiB and compute capability 7.0 (t4)" in reason


@pytest.mark.parametrize("gpu", [RTX_3060, T4])
def test_what_a_small_card_gets_fits_it_by_estimate_with_a_tenth_to_spare(gpu):
    recipe = load_recipe(default_recipe(gpu)[0])
    room = int(0.9 * gpu.gib * GIB)
    plan = Plan(model_sizes(published_config(recipe.model), recipe), Device("cuda", gpu.name, room, room), "unsloth")
    assert plan.estimate(recipe).total <= room


@pytest.mark.parametrize(
    ("asked", "gpu", "found"),
    [
        ("auto", None, "float32"),
        ("auto", T4, "float16"),
        ("auto", H100, "bfloat16"),
        ("bfloat16", None, "bfloat16"),
        ("bfloat16", RTX_3060, "bfloat16"),
        ("float16", None, "float16"),
        ("float16", H100, "float16"),
        ("float32", T4, "float32"),
    ],
)
def test_the_number_format_follows_the_recipe_then_the_card(asked, gpu, found):
    assert number_format(asked, gpu) == found


@pytest.mark.parametrize("gpu", [T4, V100])
def test_bfloat16_on_a_card_without_it_is_refused_with_the_way_out(gpu):
    with pytest.raises(ModelError, match=f"dtype: bfloat16, which {gpu.name} does not have .*Set dtype=auto"):
        number_format("bfloat16", gpu)
