"""Which backend a recipe gets, what is imported for it and when, and trainers that keep to their arguments."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from grit_lite.backends import Choice, import_libraries, open_backend, verify_arguments
from grit_lite.errors import ModelError
from grit_lite.recipe import load_recipe
from grit_lite.tiny.build import save_untrained

CHOOSE = """
import json, sys
from grit_lite.backends import import_libraries
from grit_lite.errors import ModelError
from grit_lite.recipe import load_recipe
try:
    choice = import_libraries(load_recipe("tiny", ["backend=" + sys.argv[1]]))
    print(json.dumps([choice.name, choice.reason]))
except ModelError as error:
    print(json.dumps(["error", str(error)]))
"""
# An installed Unsloth that says which of the libraries that it rewrites were there before it, and breaks.
BROKEN = """
import sys
raise ImportError("before me: " + str(sorted({"transformers", "peft", "trl"} & set(sys.modules))))
"""


def choose(backend, *, path="", **environment):
    """(name or "error", reason) in a process of its own, which sees no GPU."""
    paths = os.pathsep.join([str(path), *(part for part in sys.path if part)])
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths, **environment}
    command = [sys.executable, "-c", CHOOSE, backend]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture
def broken_unsloth(tmp_path):
    (tmp_path / "unsloth").mkdir()
    (tmp_path / "unsloth" / "__init__.py").write_text(BROKEN)
    return tmp_path


def test_a_recipe_may_ask_for_the_plain_backend():
    assert import_libraries(load_recipe("tiny", ["backend=plain"])) == Choice("plain", "the recipe asks for it")


def test_auto_is_plain_without_a_gpu_and_says_so():
    assert choose("auto", UNSLOTH_ALLOW_CPU="0") == ["plain", "PyTorch finds no CUDA device here"]


def test_unsloth_without_a_gpu_is_refused_with_the_way_out():
    name, message = choose("unsloth", UNSLOTH_ALLOW_CPU="0")
    assert name == "error"
    assert "asks for backend: unsloth, but PyTorch finds no CUDA device here" in message
    assert "set backend=auto or backend=plain" in message


@pytest.mark.skipif(importlib.util.find_spec("unsloth") is not None, reason="Unsloth is installed here")
def test_unsloth_that_is_not_installed_is_named_with_its_installation():
    assert choose("auto", UNSLOTH_ALLOW_CPU="1") == [
        "plain",
        "Unsloth is not installed here (pip install 'grit-lite[gpu]')",
    ]


def test_auto_is_plain_where_unsloth_does_not_import(broken_unsloth):
    name, reason = choose("auto", path=broken_unsloth, UNSLOTH_ALLOW_CPU="1")
    assert name == "plain"
    assert reason.startswith("Unsloth cannot be imported here (ImportError: before me")


def test_unsloth_that_does_not_import_is_refused_with_its_reason(broken_unsloth):
    name, message = choose("unsloth", path=broken_unsloth, UNSLOTH_ALLOW_CPU="1")
    assert name == "error"
    assert "ImportError: before me" in message


def test_nothing_that_unsloth_rewrites_is_imported_before_it(broken_unsloth):
    assert "before me: []" in choose("auto", path=broken_unsloth, UNSLOTH_ALLOW_CPU="1")[1]


@pytest.mark.skipif(importlib.util.find_spec("unsloth") is not None, reason="Unsloth is installed here")
def test_the_command_ends_with_the_exit_code_of_a_missing_machine(tmp_path):
    options = ["--recipe", "tiny", "--set", "backend=unsloth", "--output", str(tmp_path / "run")]
    command = [str(Path(sys.executable).with_name("grit-lite")), "train", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 4
    assert "asks for backend: unsloth, but" in done.stderr


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return load_recipe("tiny", [f"model={save_untrained(tmp_path_factory.mktemp('untrained'))}", "backend=plain"])


@pytest.fixture(scope="module")
def backend(recipe):
    backend = open_backend(recipe)
    backend.attach_lora(recipe)
    return backend


def test_the_choice_and_its_reason_are_described(backend):
    facts = backend.describe()
    assert (facts["backend"], facts["backend_reason"]) == ("plain", "the recipe asks for it")
    assert facts["shares_rollout"] is True


ARGUMENTS = {
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "beta": 0.1,
    "epsilon": 0.2,
    "epsilon_high": None,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "optim": "adamw_torch",
    "loss_type": "dapo",
    "report_to": "none",
    "generation_kwargs": {"suppress_tokens": [1, 2]},
    "use_cpu": True,
    "bf16": False,
}


@pytest.fixture(scope="module")
def trainer(backend, tmp_path_factory):
    from datasets import Dataset

    config_type, trainer_type = backend.trainer_types()
    return trainer_type(
        model=backend.model,
        args=config_type(output_dir=str(tmp_path_factory.mktemp("out")), **ARGUMENTS),
        reward_funcs=[lambda completions, **_: [0.0] * len(completions)],
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "x"}]}]),
        processing_class=backend.processor,
    )


def test_a_trainer_that_keeps_its_arguments_passes(trainer):
    verify_arguments(trainer, ARGUMENTS)


def test_a_changed_argument_is_named_with_both_values(trainer, monkeypatch):
    monkeypatch.setattr(trainer.args, "learning_rate", 5e-5)
    with pytest.raises(ModelError, match=r"learning_rate: 0\.001 became 5e-05"):
        verify_arguments(trainer, ARGUMENTS)


def test_an_option_that_is_lost_on_the_way_is_named(trainer, monkeypatch):
    monkeypatch.setitem(trainer.generation_kwargs, "suppress_tokens", None)
    with pytest.raises(ModelError, match=r"generation_kwargs: .*\[1, 2\].* became .*None"):
        verify_arguments(trainer, ARGUMENTS)


def test_a_value_that_the_trainer_copied_is_held_to_it_as_well(trainer, monkeypatch):
    monkeypatch.setattr(trainer, "beta", 0.0)
    with pytest.raises(ModelError, match=r"beta: 0\.1 became 0\.0"):
        verify_arguments(trainer, ARGUMENTS)
