"""The measurement of a card, on a miniature: what is not equal or does not fit is reported and not timed."""

import json
import subprocess
from dataclasses import replace

import pytest
import torch

from benchmarks import card, card_steps
from benchmarks.card_side import SIDES, Job
from benchmarks.equality import Unequal
from benchmarks.models import save_random
from grit_lite.sharing import share_prompts

QUICK = ["--shapes", "miniature", "--quick"]
PHASES = {"rollout", "reward", "reference", "forward", "backward", "optimizer", "other"}
PARTS = {"rollout", "policy_pass", "reference_pass", "step"}


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    """Two prompts, and micro-batches of half a group."""
    folder = tmp_path_factory.mktemp("card")
    return Job(
        side="trl",
        folder=str(save_random(folder / "model", "qwen2_5_vl", "miniature")),
        dtype="float32",
        load_in_4bit=False,
        prompt_tokens=60,
        completion_tokens=6,
        group=4,
        prompts=2,
        rows=2,
        repeats=1,
        tolerance=0.1,
        card_gib=None,
        answers=str(folder / "answers"),
        is_reference=True,
    )


@pytest.fixture(scope="module")
def reference(job):
    return card_steps.measure(job)


def ours(job, **changes):
    return card_steps.measure(replace(job, side="ours", is_reference=False, **changes))


def run(tmp_path, *options):
    """Its exit code and its JSON."""
    code = card.main([*QUICK, *options, "--json", str(tmp_path / "card.json")])
    return code, json.loads((tmp_path / "card.json").read_text())


def test_sides_are_measured_in_processes_of_their_own_and_not_again(tmp_path, capsys, monkeypatch):
    options = ["--sides", "ours", "trl", "--folder", str(tmp_path / "kept")]
    code, result = run(tmp_path, *options)
    (case,) = result["cases"]
    assert (code, result["equal"]) == (0, True)
    assert {"command", "date", "machine", "threads", "versions", "seconds"} < result.keys()
    assert (case["shape"], case["prompt_tokens"], case["completion_tokens"], case["group"]) == ("miniature", 60, 6, 4)
    assert list(case["sides"]) == ["trl", "ours"]  # stock first, whatever was typed
    assert case["reference"] == "trl"
    for side in case["sides"].values():
        assert (side["status"], side["rows"], len(side["steps"])) == ("timed", 4, 1)
        assert side["seconds"].keys() == side["wall_seconds"].keys() == PHASES | PARTS
        assert side["memory"].keys() == PARTS | {"loaded", "peak", "reserved"}
        assert side["facts"]["backend"] == "plain"
    stock, shared = case["sides"].values()
    assert (stock["facts"]["attention"], shared["facts"]["attention"]) == ("sdpa", "shared_prompt")
    assert all(stock["estimate"][part] > shared["estimate"][part] > 0 for part in ("rollout", "policy_pass"))
    assert all(difference <= 1e-5 for difference in shared["differences"].values())
    assert case["ratio"]["trl"]["ours"] == pytest.approx(stock["seconds"]["step"] / shared["seconds"]["step"])
    assert (tmp_path / "card.txt").read_text() in capsys.readouterr().out

    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a side was measured again"))
    assert run(tmp_path, *options)[1]["cases"] == result["cases"]


def test_memory_that_runs_out_makes_the_micro_batch_smaller(job, monkeypatch, tmp_path):
    attention = torch.nn.functional.scaled_dot_product_attention

    def limited(query, *args, **options):
        if torch.is_grad_enabled() and query.shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return attention(query, *args, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", limited)
    monkeypatch.setattr(card, "in_a_process", lambda job, path: card_steps.measure(job))
    result = card.fitting(replace(job, prompts=1, answers=str(tmp_path / "answers")), tmp_path)
    assert (result["status"], result["rows"]) == ("timed", 2)
    assert result["too_large"] == [{"rows": 4, "phase": "forward"}]
    note = card._note("trl", result, {"reference": "trl"})
    assert note == "trl: what the others are compared with. Out of memory in the forward with 4 rows."


def test_a_side_that_cannot_be_had_is_named_and_fails(tmp_path, capsys):
    code, result = run(tmp_path, "--sides", "unsloth")
    side = result["cases"][0]["sides"]["unsloth"]
    assert (code, side["status"]) == (1, "failed")
    assert "backend: unsloth, but" in side["reason"]
    assert "unsloth: failed, so not timed" in capsys.readouterr().out


def test_both_sides_compute_the_same_in_micro_batches(job, reference):
    result = ours(job)
    assert (reference["status"], result["status"]) == ("timed", "timed")
    assert set(result["differences"]) == {
        "log-probabilities (policy)",
        "log-probabilities (reference)",
        "loss",
        "gradient",
    }


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("_get_per_token_logps_and_entropies", r"log-probabilities \(policy\): stock has"),
        ("_generate_single_turn", "sampled rollout: completion 0 differs at token 5"),
        ("compute_loss", "loss: stock has"),
    ],
)
def test_a_trainer_that_is_not_equal_is_not_timed(job, reference, monkeypatch, method, reason):
    def spoil(result):
        if method == "compute_loss":
            return result * 1.001
        first, *others = result
        return (first * 1.001 if torch.is_tensor(first) else [[*ids[:5], 7] for ids in first]), *others

    def wrong(base):
        own = getattr(shared := share_prompts(base), method)
        return type("Wrong", (shared,), {method: lambda self, *args, **options: spoil(own(self, *args, **options))})

    monkeypatch.setattr(card_steps, "share_prompts", wrong)
    result = ours(job)
    assert result.keys() == {"status", "reason"}
    assert result["status"] == "not equal"
    with pytest.raises(Unequal, match=reason):
        raise Unequal(result["reason"])


def test_completions_of_other_lengths_are_not_timed(job, reference, monkeypatch):
    def short(base):
        class Short(share_prompts(base)):
            def _generate_single_turn(self, *args, **options):
                tokens, *others = super()._generate_single_turn(*args, **options)
                return [ids[: 5 if self.state.global_step else 6] for ids in tokens], *others

        return Short

    monkeypatch.setattr(card_steps, "share_prompts", short)
    result = ours(job)
    assert result["status"] == "not equal"
    assert result["reason"].startswith("rollout: 8 completions of 5 to 5 tokens, where all sides are to write 8 of 6")


def test_in_half_precision_the_log_probabilities_are_near_or_nothing_is_timed(job, tmp_path):
    half = replace(job, dtype="bfloat16", answers=str(tmp_path / "half"), prompts=1)
    assert card_steps.measure(half)["facts"]["autocast"] == "bfloat16"
    near = ours(half)
    assert 0 < near["differences"]["log-probabilities (policy)"] <= half.tolerance
    assert near["differences"]["gradient"] > 0
    far = ours(half, tolerance=1e-6)
    assert (far["status"], "nats apart, allowed are 1e-06" in far["reason"]) == ("not equal", True)


@pytest.mark.parametrize("phase", ["loading", "rollout"])
def test_memory_that_runs_out_where_a_smaller_micro_batch_does_not_help_ends_the_side(
    job, monkeypatch, tmp_path, phase
):
    def refuse(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16.00 GiB.\nGPU 0 has 80 GiB.")

    where = {"loading": (card_steps, "open_backend"), "rollout": (torch.nn.functional, "scaled_dot_product_attention")}
    monkeypatch.setattr(*where[phase], refuse)
    monkeypatch.setattr(card, "in_a_process", lambda job, path: card_steps.measure(job))
    result = card.fitting(job, tmp_path)
    assert result["status"] == "out of memory"
    assert result["too_large"] == [{"rows": 8, "phase": phase}]
    assert result["reason"] == "CUDA out of memory. Tried to allocate 16.00 GiB."


def test_micro_batches_divide_a_step():
    assert card.micro_batches(8) == [8, 4, 2, 1]
    assert card.micro_batches(18) == [18, 9, 3, 1]


def test_every_stock_side_is_divided_by_every_other():
    seconds = {"trl": 6, "unsloth": 4, "ours": 2}
    sides = {side: {"status": "timed", "seconds": {"step": step}} for side, step in seconds.items()}
    sides["ours-unsloth"] = {"status": "out of memory"}
    assert card.ratios(sides) == {
        "trl": {"trl": 1, "unsloth": 1.5, "ours": 3},
        "unsloth": {"trl": 4 / 6, "unsloth": 1, "ours": 2},
    }
    assert list(SIDES)[:2] == ["trl", "unsloth"]


def test_a_card_cannot_be_made_smaller_where_there_is_none(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        card.parse(["--card-gib", "24"])
    assert "there is no card here" in capsys.readouterr().err
