"""What to make smaller, and in which order; on real training it is tested in `test_retrying.py`."""

import pytest

from grit_lite.fitting import Failure, as_settings, change_that_fits, halving, smaller_parts
from grit_lite.recipe import Recipe

RECIPE = Recipe(prompts_per_step=4, group_size=8)


def ladder(recipe, phase="pass", shares=True, stages=True, own_rollout=True):
    """Every change until there is no smaller part."""
    changes, steps = {}, []
    while changes is not None and len(steps) < 20:
        recipe = recipe.model_copy(update=changes)
        staged = recipe.completions_at_once or 1 if recipe.prompt_sharing == "staged" else None
        failure = Failure(1, phase, "", staged)
        changes = smaller_parts(recipe, failure, shares=shares, stages=stages, own_rollout=own_rollout)
        steps.append(changes)
    return steps[:-1]


def test_a_pass_is_halved_down_to_a_group_and_then_run_in_stages():
    assert ladder(RECIPE) == [
        {"completions_per_pass": 16},
        {"completions_per_pass": 8},
        {"prompt_sharing": "staged", "completions_at_once": 4},
        {"prompt_sharing": "staged", "completions_at_once": 2},
        {"prompt_sharing": "staged", "completions_at_once": 1},
    ]


def test_where_prompts_are_not_shared_a_pass_is_halved_down_to_one_row():
    rows = [change["completions_per_pass"] for change in ladder(RECIPE, shares=False)]
    assert rows == [16, 8, 4, 2, 1]


def test_every_pass_divides_a_step():
    recipe = Recipe(prompts_per_step=3, group_size=6)
    rows = [change["completions_per_pass"] for change in ladder(recipe, shares=False)]
    assert rows == [9, 3, 1]


def test_a_rollout_is_halved_in_whole_groups_as_long_as_there_are_several():
    recipe = Recipe(prompts_per_step=3, group_size=8)
    rows = [change["completions_per_rollout"] for change in ladder(recipe, "rollout")]
    assert rows == [8, 4, 2, 1]


@pytest.mark.parametrize("phase", ["starting", "update"])
def test_what_is_not_divided_has_no_smaller_part(phase):
    assert ladder(RECIPE, phase) == []


def test_a_librarys_own_rollout_has_no_smaller_part():
    assert ladder(RECIPE, "rollout", own_rollout=False) == []


def change(need, limit, recipe=RECIPE, **machine):
    return change_that_fits(
        recipe, need, limit, **{"shares": True, "stages": True, "cuda": True, "vllm": False, **machine}
    )


def test_a_pass_that_cannot_go_in_stages_is_halved_below_a_group():
    """So it is through Unsloth's checkpointing."""
    steps = ladder(RECIPE, stages=False)
    assert [list(step) for step in steps] == [["completions_per_pass"]] * 5
    assert steps[-1] == {"completions_per_pass": 1}


def test_stages_are_not_advised_where_a_pass_cannot_go_in_them():
    def need(recipe):
        return 10 if recipe.prompt_sharing == "staged" else 20

    assert change(need, 10) is not None
    assert change(need, 10, stages=False) is None


def test_the_mildest_change_that_is_enough_is_taken():
    assert change(lambda recipe: recipe.completions_per_pass or 32, 10) == {"completions_per_pass": 8}
    assert change(lambda recipe: recipe.max_completion_tokens, 300) == {"max_completion_tokens": 256}


def test_a_change_that_costs_nothing_comes_before_one_that_does():
    def need(recipe):
        return 10 - 5 * recipe.gradient_checkpointing - 8 * recipe.load_in_4bit

    assert change(need, 6) == {"gradient_checkpointing": True}
    assert change(need, 3) == {"load_in_4bit": True}


def test_changes_go_together_where_one_is_not_enough_and_only_those_that_help():
    def need(recipe):
        return 10 - 3 * recipe.gradient_checkpointing - 3 * recipe.load_in_4bit

    assert change(need, 5) == {"gradient_checkpointing": True, "load_in_4bit": True}
    assert change(need, 3) is None


def test_what_this_machine_has_not_is_not_offered():
    assert change(lambda recipe: 10 - 8 * recipe.load_in_4bit, 5, cuda=False) is None
    assert change(lambda recipe: 10 * (recipe.vllm != "off"), 5) is None
    assert change(lambda recipe: 10 * (recipe.vllm != "off"), 5, vllm=True) == {"vllm": "off"}


def test_a_change_is_named_as_it_is_typed():
    changes = {"load_in_4bit": True, "max_pixels": 50176}
    assert as_settings(changes) == "--set load_in_4bit=true --set max_pixels=50176"


def test_halving_stops_at_the_first_size_that_fits():
    tried = []

    def fits_three(size):
        tried.append(size)
        if size > 3:
            raise MemoryError
        return "done"

    assert halving(fits_three, 32) == ("done", 2)
    assert tried == [32, 16, 8, 4, 2]
    with pytest.raises(MemoryError):
        halving(lambda size: fits_three(size + 3), 8)
