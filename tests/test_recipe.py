"""Recipes: defaults < file < --set < options; a wrong key or value is one clear message."""

import pytest
import yaml

from grit_lite.errors import RecipeError
from grit_lite.recipe import Recipe, load_recipe, recipe_files, resolve


def write(folder, text):
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", recipe_files())
def test_every_recipe_that_we_ship_is_valid_and_short(name):
    assert load_recipe(name).name == name
    assert len(recipe_files()[name].read_text().splitlines()) <= 30


def test_a_recipe_file_is_named_after_itself_and_keeps_the_defaults(tmp_path):
    recipe = load_recipe(write(tmp_path, "steps: 7\n"))
    assert (recipe.name, recipe.steps, recipe.group_size) == ("mine", 7, Recipe().group_size)


def test_set_wins_over_the_file_and_an_option_over_both(tmp_path):
    path = write(tmp_path, "steps: 7\nseed: 1\n")
    assert load_recipe(path, ["steps=8"]).steps == 8
    assert load_recipe(path, ["steps=8"], steps=9).steps == 9
    assert load_recipe(path, steps=None).steps == 7


def test_scientific_notation_is_a_number(tmp_path):
    assert load_recipe(write(tmp_path, "learning_rate: 2e-5\n")).learning_rate == 2e-5
    assert load_recipe("tiny", ["learning_rate=3e-4"]).learning_rate == 3e-4


def test_a_saved_recipe_loads_as_itself(tmp_path):
    recipe = load_recipe("tiny", ["rewards={tags: 0.5, answer: 2}"], triplets=5)
    (tmp_path / "recipe.yaml").write_text(recipe.text())
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe


def test_an_unknown_key_names_the_nearest_one():
    with pytest.raises(RecipeError, match=r"no recipe key 'lerning_rate'. Did you mean 'learning_rate'\?"):
        load_recipe("tiny", ["lerning_rate=1"])


def test_an_unknown_recipe_names_the_nearest_one():
    with pytest.raises(RecipeError, match=r"no recipe 'tinny'. Did you mean 'tiny'\?"):
        load_recipe("tinny")


def test_every_wrong_value_is_named_at_once():
    with pytest.raises(RecipeError, match=r"(?s)steps = 'many'.*group_size = 1: Input should be greater than 1"):
        load_recipe("tiny", ["steps=many", "group_size=1"])


def test_passes_must_divide_a_step():
    with pytest.raises(RecipeError, match=r"completions_per_pass is 7, which does not divide .* 4 × 8 = 32"):
        load_recipe("tiny", ["completions_per_pass=7"])


@pytest.mark.parametrize(
    ("text", "message"),
    [("steps: [", "not readable YAML"), ("- steps", "must hold `key: value` lines, not a list")],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, text))


def test_a_missing_file_is_refused():
    with pytest.raises(RecipeError, match=r"no recipe file nowhere\.yaml"):
        load_recipe("nowhere.yaml")


@pytest.mark.parametrize("text", ["steps", "=3"])
def test_a_setting_is_key_equals_value(text):
    with pytest.raises(RecipeError, match="write it as key=value"):
        load_recipe("tiny", [text])


def test_a_setting_that_is_no_yaml_is_refused():
    with pytest.raises(RecipeError, match="the value is not readable YAML"):
        load_recipe("tiny", ["rewards={"])


def test_an_empty_file_is_the_defaults(tmp_path):
    assert load_recipe(write(tmp_path, "")).steps == Recipe().steps


def test_every_default_survives_its_own_yaml():
    assert Recipe(**yaml.safe_load(yaml.safe_dump(Recipe().model_dump(mode="json")))) == Recipe()


def test_a_function_is_found_in_a_module_and_in_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def double(x):\n    return 2 * x\n")
    assert resolve(f"{path}:double")(4) == 8
    assert resolve("math:sqrt")(9) == 3


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("math", "names no function"),
        ("nowhere_at_all:f", "no module 'nowhere_at_all'"),
        ("missing.py:f", "no Python file missing.py"),
        ("math:pi", "has no function 'pi'"),
        ("math:", "names no function"),
    ],
)
def test_a_reference_to_nothing_says_what_is_missing(reference, message):
    with pytest.raises(RecipeError, match=message):
        resolve(reference)


@pytest.mark.parametrize(("typed", "meant"), [("on", "on"), ("off", "off"), ("auto", "auto"), ("'off'", "off")])
def test_vllm_is_switched_by_words_that_yaml_reads_as_truth_values(typed, meant):
    assert load_recipe("tiny", [f"vllm={typed}"]).vllm == meant


def test_another_word_for_vllm_is_refused():
    with pytest.raises(RecipeError, match="vllm"):
        load_recipe("tiny", ["vllm=1"])
