"""The shared-prompt trainer on the trainer that Unsloth generates, in Unsloth's modules and under its checkpointing.

`make test-unsloth` runs these. What `worker.py` measures under Unsloth, in a process for each case, is compared with
Unsloth's own padded computation, and with that of transformers and TRL as they come, which is done in this process.
"""

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("unsloth") is None:
    pytest.skip(
        "NOTHING WAS TESTED UNDER UNSLOTH, which is not installed here; `make test-unsloth` does it, in an environment "
        "of its own",
        allow_module_level=True,
    )

import torch
from peft import LoraConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict
from scenario import BETAS, GROUP, QUESTIONS, build_trainer, completions_for, measure, scripted
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig
from trl import GRPOConfig, GRPOTrainer

from benchmarks.models import save_random

pytestmark = pytest.mark.timeout(1200)  # seconds; the first test of a case waits for its worker
# What float32 leaves of equality: log-probabilities absolute, gradients as relative L2 of each matrix.
LOGP, GRADIENT = 5e-6, 1e-5
# What Unsloth quantizes, in the terms of transformers.
NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
    llm_int8_skip_modules=["model.visual", "lm_head"],
)
ATTENTION = {"qwen2_5_vl": "Qwen2_5_VLAttention", "qwen3_vl": "Qwen3VLTextAttention"}
MLP = {"qwen2_5_vl": "Qwen2MLP", "qwen3_vl": "Qwen3VLTextMLP"}


@dataclass(frozen=True)
class Case:
    family: str
    checkpointing: str  # "off" or "unsloth"
    precision: str = "float32"  # or "nf4"


CASES = [
    Case("qwen2_5_vl", "off"),
    Case("qwen2_5_vl", "unsloth"),
    Case("qwen3_vl", "off"),
    Case("qwen3_vl", "unsloth"),
    Case("qwen2_5_vl", "unsloth", "nf4"),
]


@pytest.fixture(scope="session", params=CASES, ids=lambda case: f"{case.family}-{case.checkpointing}-{case.precision}")
def case(request) -> Case:
    return request.param


@pytest.fixture(scope="session")
def model_folder(case, tmp_path_factory) -> Path:
    folder = tmp_path_factory.getbasetemp() / case.family
    return folder if folder.exists() else save_random(folder, case.family, "miniature")


@pytest.fixture(scope="session")
def out(case, model_folder, tmp_path_factory) -> Path:
    """The folder that `worker.py` filled."""
    folder = tmp_path_factory.mktemp("under-unsloth")
    script = Path(__file__).with_name("worker.py")
    run = subprocess.run(
        [sys.executable, script, model_folder, folder, case.checkpointing, case.precision],
        cwd=folder,
        env=os.environ | {"UNSLOTH_COMPILE_LOCATION": str(folder / "compiled")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-6000:]
    return folder


@pytest.fixture(scope="session")
def under_unsloth(out) -> dict[str, Any]:
    return torch.load(out / "results.pt", weights_only=False)


@pytest.fixture(scope="session")
def plain(case, model_folder, out) -> dict[float, Any]:
    """By beta, what TRL's trainer makes of the same batch with a model that Unsloth has never touched."""
    quantization = NF4 if case.precision == "nf4" else None
    return {beta: measure(plain_trainer(model_folder, out, quantization, beta)) for beta in BETAS}


def plain_trainer(model_folder: Path, out: Path, quantization: BitsAndBytesConfig | None, beta: float) -> Any:
    model = AutoModelForImageTextToText.from_pretrained(
        model_folder, dtype=torch.float32, attn_implementation="sdpa", quantization_config=quantization
    )
    processor = AutoProcessor.from_pretrained(model_folder)
    lora = LoraConfig.from_pretrained(str(out / "adapter"))
    lora.inference_mode = False
    model = get_peft_model(model, lora)
    trainer = build_trainer(GRPOConfig, scripted(GRPOTrainer, completions_for(processor)), model, processor, out, beta)
    model.float()  # TRL has made the adapter of a quantized model bfloat16
    # Only now: TRL's reference policy is a copy of the adapter that it is given, Unsloth's is the model without one.
    set_peft_model_state_dict(model, load_peft_weights(str(out / "adapter")))
    return trainer


def assert_equal(measured: dict[str, Any], expected: dict[str, Any]) -> None:
    torch.testing.assert_close(measured["logps"], expected["logps"], atol=LOGP, rtol=0)
    assert measured["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert measured["gradients"].keys() == expected["gradients"].keys()
    errors = {
        name: float((measured["gradients"][name] - gradient).norm() / gradient.norm())
        for name, gradient in expected["gradients"].items()
    }
    assert {name: error for name, error in errors.items() if not error <= GRADIENT} == {}


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("schedule", ["packed", "rows"])
class TestOneRow:
    def test_equals_the_padded_pass_of_transformers(self, under_unsloth, plain, schedule, beta):
        assert_equal(under_unsloth[schedule][beta], plain[beta])

    def test_equals_the_padded_pass_of_unsloth(self, under_unsloth, schedule, beta):
        # Unsloth's loss is TRL's for `dapo`, as long as no token's KL reaches 10, where Unsloth cuts it off.
        assert_equal(under_unsloth[schedule][beta], under_unsloth["stock"][beta])


@pytest.mark.parametrize("beta", BETAS)
class TestStages:
    def test_equal_the_padded_pass_or_are_refused(self, under_unsloth, plain, case, beta):
        staged = under_unsloth["staged"][beta]
        if case.checkpointing == "unsloth":  # it is reentrant, and would lose the gradient of the prompt
            assert "reentrant" in staged
        else:
            assert_equal(staged, plain[beta])


class TestStep:
    def test_changes_every_matrix(self, under_unsloth):
        changed = under_unsloth["step"]["changed"]
        assert len(changed) > 0
        assert all(changed.values()), changed

    def test_keeps_groups_together(self, under_unsloth):
        assert under_unsloth["step"]["micro_batches"] == [[prompt] * GROUP for prompt in range(len(QUESTIONS))]

    def test_ran_the_code_of_unsloth(self, under_unsloth, case):
        ran = under_unsloth["step"]["functions"]
        module = f"unsloth_compiled_module_{case.family}.py"
        linear = "Linear4bit" if case.precision == "nf4" else "Linear"
        expected = {
            (module, f"{ATTENTION[case.family]}.forward"),
            (module, f"{MLP[case.family]}.forward"),
            (f"{linear}_peft_forward.py", "unsloth_forward"),
            ("UnslothGRPOTrainer.py", "_UnslothGRPOTrainer._generate_and_score_completions"),
        }
        assert expected <= ran
        checkpointed = ("gradient_checkpointing.py", "UnslothCheckpointFunction.backward") in ran
        assert checkpointed == (case.checkpointing == "unsloth")
        originals = {(f"modeling_{case.family}.py", f"{name[case.family]}.forward") for name in (ATTENTION, MLP)}
        assert not originals & ran


class TestRollout:
    def test_is_greedy_as_the_original_generate(self, under_unsloth):
        greedy = under_unsloth["greedy"]
        assert greedy["ours"] == greedy["theirs"]
        assert len({tuple(ids) for ids in greedy["ours"]}) == len(QUESTIONS)  # the images and questions matter
