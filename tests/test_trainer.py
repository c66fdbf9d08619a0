"""GRPO-GR on the real trainer and a real (random) model: the loss is the paper's, and every random draw is replayed."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from grit_lite import trainer, vlm
from grit_lite.backends import Request, open_backend
from grit_lite.errors import Diverged
from grit_lite.packing import Schedule
from grit_lite.recipe import load_recipe
from grit_lite.run import METRICS, SAMPLES, Run, read_rows
from grit_lite.tiny.build import save_untrained
from grit_lite.tiny.questions import held_out
from grit_lite.trainer import (
    LOSSES,
    build_trainer,
    choose_schedule,
    longest_prompt,
    metrics_row,
    prompt_dataset,
    prompt_order,
)
from grit_lite.triplets import from_scene_question

VECTORS = json.loads((Path(__file__).parent / "data" / "reward_vectors.json").read_text())


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp("untrained"))


def small_recipe(untrained, *settings):
    small = ["steps=2", "prompts_per_step=2", "group_size=4", "max_completion_tokens=8", "save_every=1"]
    return load_recipe("tiny", [f"model={untrained}", *small, *settings])


def triplets(count=4):
    return [from_scene_question(question, index) for index, question in enumerate(held_out(["count"], count, "train"))]


def by_length(text, triplet, *, completion_ids, image_size):
    return {"letters": len(text) % 5 / 5, "total": len(text) % 5 / 5 + sum(completion_ids) % 7 / 7}


class Setup:
    """A trainer in a run folder, and what it reported after each step."""

    def __init__(self, folder, recipe, scorer=by_length, stop_after=None):
        self.run = Run.create(folder, recipe)
        self.backend = open_backend(recipe)
        self.backend.attach_lora(recipe)
        self.steps = []
        self.trainer = build_trainer(
            self.backend,
            recipe,
            triplets(),
            self.run,
            scorer,
            on_step=lambda metrics, timing, samples: self.steps.append((metrics, timing, samples)),
            stop_requested=lambda: stop_after is not None and len(self.steps) >= stop_after,
        )

    def lora(self):
        return {name: value.clone() for name, value in self.backend.model.named_parameters() if value.requires_grad}


def test_every_triplet_comes_once_before_any_comes_twice():
    order = prompt_order(5, 12, seed=3)
    assert sorted(order[:5]) == sorted(order[5:10]) == [0, 1, 2, 3, 4]
    assert len(order) == 12
    assert order[:5] != order[5:10]


def test_the_order_depends_on_the_seed_alone():
    assert prompt_order(20, 100, seed=1) == prompt_order(20, 100, seed=1)
    assert prompt_order(20, 100, seed=1) != prompt_order(20, 100, seed=2)
    assert prompt_order(20, 40, seed=1) == prompt_order(20, 100, seed=1)[:40]


def test_the_model_is_not_pickled_to_name_the_dataset(untrained):
    class Backend:
        spec = open_backend(small_recipe(untrained)).spec

        def __reduce_ex__(self, protocol):
            pickled.append(self)
            return Backend, ()

    pickled = []
    rows = prompt_dataset(triplets(), Backend(), small_recipe(untrained))
    assert len(rows) == 4
    assert "\nQuestion: " in rows[0]["prompt"][0]["content"]
    assert pickled == []


def sample(total, advantage, **terms):
    row = {"valid_format": total > 1, "tokens": 10, "advantage": advantage}
    return {**row, "scores": {**terms, "total": total}}


def test_a_row_of_metrics_is_the_mean_over_the_samples():
    samples = [
        sample(2.0, 0.7, tags=1.0),
        sample(1.0, -0.7, tags=0.5),
        sample(0.0, 0.0, tags=0.0),
        sample(0.0, 0.0, tags=0.0),
    ]
    logs = {"loss": 0.1, "grad_norm": 0.2, "learning_rate": 1e-3, "kl": 0.3}
    assert metrics_row(7, samples, logs, group=2, sampler_gap=0.01) == {
        "step": 7,
        "reward": 0.75,  # (2 + 1 + 0 + 0) / 4
        "reward/tags": 0.375,
        "groups_that_teach": 0.5,  # the second group has no advantage
        "valid_format": 0.25,
        "completion_tokens": 10.0,
        "kl": 0.3,
        "sampler_gap": 0.01,
        "loss": 0.1,
        "grad_norm": 0.2,
        "lr": 1e-3,
    }


def test_an_abstaining_judge_is_left_out_of_the_means():
    samples = [sample(2.0, 0.0, judge=1.0), {**sample(2.0, 0.0, judge=None), "scores": {"judge": None, "total": None}}]
    logs = {"loss": 0.0, "grad_norm": 0.0, "learning_rate": 0.0}
    row = metrics_row(1, samples, logs, group=2)
    assert (row["reward"], row["reward/judge"], row["kl"]) == (2.0, 1.0, None)


@pytest.fixture(scope="module")
def setup(untrained, tmp_path_factory):
    """Two steps of training, shared by the tests that only look."""
    made = Setup(tmp_path_factory.mktemp("runs") / "run", small_recipe(untrained))
    made.before = made.lora()
    made.trainer.train()
    yield made
    made.run.close()


def test_training_changes_the_adapter_and_nothing_else(setup):
    after = setup.lora()
    assert len(after) == 56  # 4 layers × 7 linears × (A, B)
    assert all(not torch.equal(setup.before[name], after[name]) for name in after if "lora_B" in name)
    assert not any("visual" in name for name in after)


def test_each_step_writes_its_rows_and_reports_them(setup):
    rows = list(read_rows(setup.run.folder / METRICS))
    assert rows == [metrics for metrics, _, _ in setup.steps]
    assert [row["step"] for row in rows] == [1, 2]
    assert [row["step"] for row in read_rows(setup.run.folder / SAMPLES)] == [1] * 8 + [2] * 8


def test_no_second_adapter_is_kept_for_the_reference(setup):
    assert list(setup.backend.model.peft_config) == ["default"]


def test_the_first_step_has_no_divergence_from_the_reference(setup):
    assert setup.steps[0][0]["kl"] == 0.0
    assert setup.steps[1][0]["kl"] > 0.0


def test_a_checkpoint_holds_no_pickled_arguments(setup):
    _, folder = setup.run.latest_checkpoint()
    assert not (folder / "training_args.bin").exists()


def test_the_advantages_are_those_of_the_released_code(untrained, tmp_path):
    for index, vector in enumerate(VECTORS["advantages"]):
        totals = itertools.cycle(vector["rewards"])
        setup = Setup(
            tmp_path / str(index),
            small_recipe(untrained, "steps=1"),
            scorer=lambda *_, totals=totals, **__: {"total": next(totals)},
        )
        setup.trainer.train()
        advantages = [row["advantage"] for row in setup.steps[0][2][:4]]
        assert advantages == pytest.approx(vector["adv_code_eps1e4"], abs=1e-4)


def test_a_sample_whose_judge_abstained_is_out_of_its_group(untrained, tmp_path):
    totals = itertools.cycle([2.0, None, 1.0, 0.0])
    setup = Setup(tmp_path / "run", small_recipe(untrained, "steps=1"), scorer=lambda *_, **__: {"total": next(totals)})
    setup.trainer.train()
    # mean 1 and unbiased deviation 1 of the three that were scored
    advantages = [row["advantage"] for row in setup.steps[0][2][:4]]
    assert advantages == pytest.approx([1.0, 0.0, 0.0, -1.0], abs=2e-4)


def test_the_grit_loss_is_the_papers_in_value_and_gradient(untrained, tmp_path):
    vector = VECTORS["loss"]
    setup = Setup(tmp_path / "run", small_recipe(untrained, "loss=grit", f"beta={vector['beta']}"))
    policy = torch.tensor(vector["policy_logp"], requires_grad=True)
    trainer = setup.trainer
    trainer.current_gradient_accumulation_steps = 1
    # TRL's own loss on the vector's log-probabilities instead of a model's
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (policy, torch.zeros_like(policy), None)
    ids = torch.ones(2, 4, dtype=torch.long)
    loss = trainer._compute_loss(
        trainer.model,
        {
            "prompt_ids": ids,
            "prompt_mask": ids,
            "completion_ids": ids,
            "completion_mask": torch.tensor(vector["mask"]),
            "advantages": torch.tensor(vector["advantages"]),
            "ref_per_token_logps": torch.tensor(vector["ref_logp"]),
            "num_items_in_batch": torch.tensor(7.0),
        },
    )
    loss.backward()
    assert loss.item() == pytest.approx(vector["loss"], abs=1e-6)
    assert torch.allclose(policy.grad, torch.tensor(vector["grad_wrt_policy_logp"]), atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_preset_takes_a_step(untrained, tmp_path, loss):
    setup = Setup(tmp_path / "run", small_recipe(untrained, f"loss={loss}", "steps=1"))
    setup.trainer.train()
    assert setup.steps[0][0]["grad_norm"] > 0


def test_accumulated_passes_give_the_step_of_one_pass(untrained, tmp_path):
    whole = Setup(tmp_path / "whole", small_recipe(untrained, "steps=1"))
    parts = Setup(tmp_path / "parts", small_recipe(untrained, "steps=1", "completions_per_pass=2"))
    whole.trainer.train()
    parts.trainer.train()
    assert parts.steps[0][0]["grad_norm"] == pytest.approx(whole.steps[0][0]["grad_norm"], rel=1e-4)
    assert [row["completion"] for row in parts.steps[0][2]] == [row["completion"] for row in whole.steps[0][2]]


def test_a_stop_request_ends_after_the_step_with_a_checkpoint(untrained, tmp_path):
    setup = Setup(tmp_path / "run", small_recipe(untrained, "steps=5", "save_every=5"), stop_after=2)
    setup.trainer.train()
    assert setup.run.latest_checkpoint()[0] == len(setup.steps) == 3  # asked during step 3, as after any step


def test_a_gradient_that_is_not_finite_stops_before_the_update_and_keeps_the_batch(untrained, tmp_path):
    setup = Setup(tmp_path / "run", small_recipe(untrained))
    before = setup.lora()
    poisoned = next(p for p in setup.backend.model.parameters() if p.requires_grad)
    poisoned.register_hook(lambda gradient: torch.full_like(gradient, float("nan")))
    with pytest.raises(Diverged, match=r"Step 1: the gradient is not finite; no update.*diverged-step-000001\.json"):
        setup.trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in setup.lora().items())
    assert len(json.loads((setup.run.folder / "diverged-step-000001.json").read_text())["samples"]) == 8
    assert setup.run.latest_checkpoint() is None


def spoil_the_first_gradient(setup):
    """The first backward pass of all overflows."""
    calls = []
    poisoned = next(p for p in setup.backend.model.parameters() if p.requires_grad)

    def overflow(gradient):
        calls.append(1)
        return torch.full_like(gradient, float("inf")) if len(calls) == 1 else gradient

    poisoned.register_hook(overflow)


def test_an_overflow_of_float16_leaves_out_one_update_and_training_goes_on(untrained, tmp_path):
    setup = Setup(tmp_path / "run", small_recipe(untrained))
    setup.trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)  # accelerate makes one on CUDA
    spoil_the_first_gradient(setup)
    before = setup.lora()
    setup.trainer.train()
    first, second = (metrics for metrics, _, _ in setup.steps)
    assert (first["grad_norm"], setup.trainer.accelerator.scaler.get_scale()) == (None, 2.0)
    assert second["grad_norm"] > 0
    checkpoint = load_file(setup.run.folder / "checkpoints" / "step-000001" / "adapter_model.safetensors")
    assert all(torch.equal(value, before[saved_name(name)]) for name, value in checkpoint.items())
    assert any(not torch.equal(value, before[name]) for name, value in setup.lora().items())


def test_an_overflow_that_no_scale_cures_ends_the_run_as_diverged(untrained, tmp_path):
    setup = Setup(tmp_path / "run", small_recipe(untrained))
    setup.trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    spoil_the_first_gradient(setup)
    with pytest.raises(Diverged, match="Step 1: the gradient is not finite"):
        setup.trainer.train()


def saved_name(name):
    """PEFT leaves the adapter's own name out of its files."""
    return name.replace(".weight", ".default.weight")


def test_weights_that_a_step_has_ruined_end_the_run_as_diverged(untrained, tmp_path):
    setup = Setup(tmp_path / "run", small_recipe(untrained, "learning_rate=1e30"))
    with pytest.raises(Diverged, match=r"infinite or NaN|no finite probabilities|gradient is not finite"):
        setup.trainer.train()
    assert list(setup.run.folder.glob("diverged-step-*.json"))


def test_a_large_seed_is_a_seed(untrained, tmp_path):
    Setup(tmp_path / "run", small_recipe(untrained, "seed=20260101", "steps=1")).trainer.train()


def test_a_nan_reward_never_becomes_a_step(untrained, tmp_path):
    setup = Setup(tmp_path / "run", small_recipe(untrained), scorer=lambda *_, **__: {"total": float("inf")})
    with pytest.raises((Diverged, ValueError)):
        setup.trainer.train()
    assert list(read_rows(setup.run.folder / METRICS)) == []


def test_the_same_seed_gives_the_same_run_twice(setup, untrained, tmp_path):
    again = Setup(tmp_path / "again", small_recipe(untrained))
    again.trainer.train()
    assert [metrics for metrics, _, _ in again.steps] == [metrics for metrics, _, _ in setup.steps]


def test_another_seed_gives_another_run(setup, untrained, tmp_path):
    other = Setup(tmp_path / "other", small_recipe(untrained, "seed=1", "steps=1"))
    other.trainer.train()
    assert [row["completion"] for row in other.steps[0][2]] != [row["completion"] for row in setup.steps[0][2]]


def test_four_bit_weights_train_too(untrained, tmp_path):
    import bitsandbytes

    setup = Setup(tmp_path / "run", small_recipe(untrained, "load_in_4bit=true", "steps=1"))
    layers = [m for m in setup.backend.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 28  # every linear of the language model's layers
    before = setup.lora()
    setup.trainer.train()
    changed = [name for name, value in setup.lora().items() if not torch.equal(value, before[name])]
    assert changed
    assert setup.steps[0][0]["grad_norm"] > 0


def test_small_updates_of_an_adapter_on_four_bit_weights_do_not_round_away(untrained, tmp_path):
    setup = Setup(tmp_path / "run", small_recipe(untrained, "load_in_4bit=true", "steps=1"))
    assert {value.dtype for value in setup.lora().values()} == {torch.float32}


@pytest.mark.parametrize("setting", ["staged", "packed", "none"])
def test_every_way_to_share_a_prompt_takes_the_same_step(setup, untrained, tmp_path, setting):
    same = ["prompt_sharing=" + setting, "steps=1", "completions_per_pass=4"]
    other = Setup(tmp_path / "run", small_recipe(untrained, *same))
    other.trainer.train()
    (metrics, _, samples), (expected, _, expected_samples) = other.steps[0], setup.steps[0]
    assert [row["completion"] for row in samples] == [row["completion"] for row in expected_samples]
    assert metrics["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)


def test_a_row_that_fits_is_packed_and_said_to_be(setup):
    assert setup.run.facts()["schedule"] == {"staged": False, "at_once": None}


def test_a_row_that_does_not_fit_is_run_in_stages_and_a_resumed_run_keeps_to_them(untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "free_bytes", lambda device: 0)
    recipe = small_recipe(untrained, "steps=1")
    first = Setup(tmp_path / "run", recipe)
    assert first.trainer.schedule == Schedule(staged=True, at_once=1)
    assert "staged, 1 at once, because one packed row would not fit" in first.run.facts()["changes"][0]
    first.run.close()
    monkeypatch.undo()
    backend = open_backend(recipe)
    assert choose_schedule(backend, recipe, triplets(), Run.resume(tmp_path / "run")) == first.trainer.schedule


def test_the_longest_prompt_is_the_one_with_the_largest_image_or_the_longest_question(untrained):
    backend = open_backend(small_recipe(untrained))
    rows = triplets(3)
    wordy = dataclasses.replace(rows[1], question="How many red circles are there? " * 9)
    assert longest_prompt(backend, [rows[0], wordy, rows[2]]) > longest_prompt(backend, rows) + 50


def test_a_family_that_is_not_known_takes_the_same_step_as_trl_takes_it(setup, untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(vlm, "FAMILIES", ())
    other = Setup(tmp_path / "run", small_recipe(untrained, "steps=1"))
    assert not hasattr(other.trainer, "vlm")
    other.trainer.train()
    assert [row["completion"] for row in other.steps[0][2]] == [row["completion"] for row in setup.steps[0][2]]
    assert other.steps[0][0]["grad_norm"] == pytest.approx(setup.steps[0][0]["grad_norm"], rel=1e-4)


def test_a_family_that_is_not_known_is_asked_through_the_librarys_generate(untrained, tmp_path, monkeypatch):
    known = open_backend(small_recipe(untrained))
    monkeypatch.setattr(vlm, "FAMILIES", ())
    unknown = open_backend(small_recipe(untrained))
    assert unknown.vlm is None
    requests = [Request((row.load_image(),), known.spec.prompts.render(row.question)) for row in triplets(3)]
    expected = known.generate(requests, max_new_tokens=9)
    assert unknown.generate(requests, max_new_tokens=9) == expected
    assert "".join(unknown.stream(requests[0], max_new_tokens=9)) == expected[0].text
