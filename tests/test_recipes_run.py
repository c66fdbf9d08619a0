"""Every recipe that comes with the package takes a step, as it is, on a miniature of its own family."""

import json
from pathlib import Path

import pytest
import yaml
from shared_prompt_cases import model_folder

from grit_lite.errors import RecipeError
from grit_lite.recipe import Recipe, load_recipe, recipe_files
from grit_lite.rewards import build_scorer
from grit_lite.run import METRICS, Run, read_rows
from grit_lite.tiny.build import save_untrained
from grit_lite.training import train

FAMILY = {"Qwen/Qwen2.5-VL": "qwen2_5_vl", "Qwen/Qwen3-VL": "qwen3_vl", "OpenGVLab/InternVL3": "internvl"}
RECIPES = recipe_files()
# A machine that stands in for the recipe's, the embedded data for its own, and less of everything that costs time.
SMALL = {
    "backend": "plain",
    "vllm": "off",
    "dtype": "float32",
    "data": "embedded",
    "steps": 1,
    "prompts_per_step": 2,
    "max_completion_tokens": 6,
    "completions_per_pass": "null",
    "evaluate": "none",
}


def family(recipe):
    return next((family for start, family in FAMILY.items() if recipe.model.startswith(start)), None)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_a_step_on_a_miniature_of_its_family(name, tmp_path, tmp_path_factory):
    asked = load_recipe(name)
    kind = family(asked)
    model = model_folder(tmp_path_factory, kind) if kind else save_untrained(tmp_path / "tiny")
    settings = {**SMALL, "model": model}
    if asked.rewards == "grit-paper":
        settings["judge"] = "rules"
    recipe = load_recipe(name, [f"{key}={value}" for key, value in settings.items()])
    outcome = train(Run.create(tmp_path / "run", recipe))
    assert outcome["status"] == "done"
    facts = json.loads((tmp_path / "run" / "run.json").read_text())["model"]
    assert facts["family"] == (kind or "qwen3_vl")
    assert (facts["load_in_4bit"], facts["shares_prompts"]) == (asked.load_in_4bit, True)
    (row,) = read_rows(tmp_path / "run" / METRICS)
    assert row["step"] == 1
    assert row["reward"] is not None
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("path", RECIPES.values(), ids=list(RECIPES))
def test_every_value_of_a_recipe_differs_from_the_default_and_says_why(path: Path):
    first, *lines = path.read_text().splitlines()
    assert first.startswith("# ")
    assert all(line.startswith("#") or "  # " in line for line in lines)
    values = yaml.safe_load(path.read_text())
    same = [key for key, value in values.items() if key != "model" and value == Recipe.model_fields[key].default]
    assert not same


def test_the_papers_recipe_is_the_papers_and_says_that_it_needs_a_judge():
    recipe = load_recipe("paper")
    assert (recipe.learning_rate, recipe.lr_schedule, recipe.group_size) == (2e-6, "cosine", 4)
    assert (recipe.beta, recipe.temperature, recipe.steps, recipe.rewards) == (0.01, 0.9, 200, "grit-paper")
    with pytest.raises(RecipeError, match="needs a judge, and none is configured"):
        build_scorer(recipe.rewards)


def test_the_t4_gets_what_a_t4_can():
    recipe = load_recipe("t4")
    assert (recipe.dtype, recipe.vllm, recipe.load_in_4bit) == ("float16", "off", True)


@pytest.mark.parametrize("name", RECIPES)
def test_a_pass_of_a_recipe_is_of_whole_groups(name):
    """Unsloth changes a micro-batch that is not, and a group that is cut is not shared whole."""
    recipe = load_recipe(name)
    assert recipe.completions_per_pass is not None
    assert recipe.completions_per_pass % recipe.group_size == 0
