"""The vLLM engine where there is no vLLM: who gets one, who is refused, and what it is asked for.

`tests/vllm_on_cpu` samples with a real one.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.models import save_random
from grit_lite.backends import open_backend
from grit_lite.engine import Engine, collapse, obstacles, open_llm
from grit_lite.errors import ModelError
from grit_lite.families import FAMILIES
from grit_lite.recipe import load_recipe
from grit_lite.tiny.build import save_untrained

WITHOUT = pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp("untrained"))


def recipe(model, *settings):
    return load_recipe("tiny", [f"model={model}", *settings])


def reasons(*settings, family="qwen3_vl"):
    return list(obstacles(recipe("tiny", *settings), FAMILIES[family]))


@WITHOUT
def test_vllm_that_is_not_installed_is_named_with_its_installation():
    assert reasons() == ["vLLM is not installed here (pip install 'grit-lite[vllm]')"]


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("prompt_sharing=none", "prompt_sharing is none"),
        ("lora_parts=[vision, language, attention]", "lora_parts has vision"),
        ("top_p=0.9", "top_p or top_k is set"),
        ("top_k=50", "top_p or top_k is set"),
    ],
)
def test_a_setting_that_does_not_go_with_vllm_is_named(setting, reason):
    assert reasons(setting)[0].startswith(reason)


def test_a_family_whose_prompts_vllm_does_not_rebuild_is_named():
    assert reasons(family="internvl")[0].startswith("InternVL3 (-hf) models are not sampled with vLLM")


@WITHOUT
def test_asking_for_vllm_in_vain_is_an_error_that_says_why_and_what_to_do(untrained):
    with pytest.raises(ModelError, match=r"says vllm: on, but vLLM is not installed here .* set vllm=off") as raised:
        open_backend(recipe(untrained, "vllm=on"))
    assert raised.value.exit_code == 4


def test_internvl_is_refused(tmp_path):
    folder = save_random(tmp_path / "internvl", "internvl", "miniature")
    with pytest.raises(ModelError, match="vllm: on, but InternVL3"):
        open_backend(recipe(folder, "vllm=on"))


@WITHOUT
def test_the_command_ends_with_the_exit_code_of_a_missing_package(untrained, tmp_path):
    settings = ["--set", f"model={untrained}", "--set", "vllm=on"]
    command = [str(Path(sys.executable).with_name("grit-lite")), "train", "--recipe", "tiny", *settings]
    done = subprocess.run([*command, "--output", str(tmp_path / "run")], capture_output=True, text=True)
    assert done.returncode == 4
    assert "vLLM is not installed here" in done.stderr


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("vllm=off", "the recipe says vllm: off"),
        (
            "vllm=auto",
            "the plain backend would load the weights a second time for vLLM, and does so only with vllm: on",
        ),
    ],
)
def test_no_engine_has_a_reason_that_is_described(untrained, setting, reason):
    backend = open_backend(recipe(untrained, setting))
    facts = backend.describe()
    assert backend.engine is None
    assert (facts["engine"], facts["engine_obstacle"], facts["shares_rollout"]) == (None, reason, True)


def test_each_image_keeps_one_of_its_tokens():
    assert collapse([1, 9, 9, 9, 2, 9, 3, 9, 9], 9) == [1, 9, 2, 9, 3, 9]
    assert collapse([9, 9, 1, 1, 2], 9) == [9, 1, 1, 2]
    assert collapse([1, 2], 9) == [1, 2]


def test_an_engine_that_reports_other_log_probabilities_is_refused():
    config = SimpleNamespace(model_config=SimpleNamespace(logprobs_mode="raw_logprobs"))
    llm = SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=config))
    with pytest.raises(ModelError, match="logprobs_mode raw_logprobs, not processed_logprobs"):
        Engine(llm, lambda: None, image_token=1, image_size={})


@pytest.fixture
def forget_vllm():
    """What stands in the place of vLLM is not there for other tests."""
    yield
    for name in ("vllm", "vllm.platforms"):
        sys.modules.pop(name, None)


def start(monkeypatch, tmp_path, code, platform=""):
    """`open_llm` with a package in the place of vLLM."""
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text(code)
    (tmp_path / "vllm" / "platforms.py").write_text(platform)
    monkeypatch.syspath_prepend(tmp_path)
    import torch

    open_llm("model", recipe("tiny"), device="cpu", dtype=torch.float32, longest=10, size={})


@WITHOUT
@pytest.mark.usefixtures("forget_vllm")
def test_a_vllm_that_does_not_import_is_refused_in_its_own_words(monkeypatch, tmp_path):
    with pytest.raises(ModelError, match=r"vLLM does not start \(OSError: no driver\)\. .* set vllm=off"):
        start(monkeypatch, tmp_path, "raise OSError('no driver')")


@WITHOUT
@pytest.mark.usefixtures("forget_vllm")
def test_a_vllm_that_was_built_for_another_device_is_refused(monkeypatch, tmp_path):
    platform = "from types import SimpleNamespace\ncurrent_platform = SimpleNamespace(device_type='cuda')"
    with pytest.raises(ModelError, match="it was built for cuda, and the model is on cpu"):
        start(monkeypatch, tmp_path, "LLM = None", platform)
