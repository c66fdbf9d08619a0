"""A step that does not fit into memory, on real training: the allocator is the only thing that is made to fail.

It fails where a real one would, inside the forward pass of a layer, when more tokens or rows than allowed go through
it. What must come of it: the same run as on a machine where everything fits, with every change written down.
"""

import contextlib
import json
import sys

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextDecoderLayer

from grit_lite import memory, training
from grit_lite.cli import main
from grit_lite.fitting import halving, is_out_of_memory
from grit_lite.run import METRICS, SAMPLES, read_rows
from grit_lite.tiny.build import save_untrained

REWARD = "def letters(answer, triplet):\n    return len(answer.text) % 5 / 5\n"
SETTINGS = {
    "steps": 4,
    "save_every": 4,
    "prompts_per_step": 2,
    "group_size": 4,
    "completions_per_pass": "null",
    "max_completion_tokens": 8,
    "evaluate": "none",
    "beta": 0.04,
}
CPU_MESSAGE = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"
REFUSALS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.10 GiB free."),
    "cpu": RuntimeError(CPU_MESSAGE),
    "python": MemoryError(),
}


class Allocator:
    """Refuses what is too much, from the moment at which a number of steps is done.

    Args:
        tokens: that may go through a layer with gradient.
        rows: that may go through a layer without.
        after: steps that have to be done before.
        times: how often it refuses; then it grants everything.
    """

    def __init__(self, folder, *, tokens=10**9, rows=10**9, after=0, times=10**9, refusal=REFUSALS["cuda"]):
        self.folder, self.tokens, self.rows, self.after = folder, tokens, rows, after
        self.times, self.refusal = times, refusal

    def __call__(self, module, arguments):
        if not isinstance(module, Qwen3VLTextDecoderLayer):
            return
        states = arguments[0]
        rows, tokens = states.shape[0], states.shape[0] * states.shape[1]
        too_much = tokens > self.tokens if torch.is_grad_enabled() else rows > self.rows
        if too_much and self.times > 0 and len(list(read_rows(self.folder / METRICS))) >= self.after:
            self.times -= 1
            raise self.refusal


@contextlib.contextmanager
def refusing(folder, **limits):
    handle = register_module_forward_pre_hook(Allocator(folder, **limits))
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    (folder / "rewards.py").write_text(REWARD)
    settings = {**SETTINGS, "model": save_untrained(folder / "model")}
    settings["rewards"] = json.dumps({f"{folder / 'rewards.py'}:letters": 1})
    return ["--triplets", "4", *(f"--set={key}={value}" for key, value in settings.items())]


def train(monkeypatch, *arguments):
    """The exit code of `grit-lite train`."""
    monkeypatch.setattr(sys, "argv", ["grit-lite", "train", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code or 0


@pytest.fixture(scope="module")
def undisturbed(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert train(monkeypatch, *arguments, "--output", folder) == 0
    assert all(row["grad_norm"] > 0 for row in read_rows(folder / METRICS))
    return folder


def facts(folder):
    return json.loads((folder / "run.json").read_text())


def without_unknown(row):
    return {key: value for key, value in row.items() if value is not None}


def assert_same_run(folder, expected):
    """Equal to rounding: the same completions, and numbers that differ by what another order of additions makes."""
    rows, others = (list(read_rows(each / METRICS)) for each in (folder, expected))
    assert [row["step"] for row in rows] == [row["step"] for row in others] == [1, 2, 3, 4]
    for row, other in zip(rows, others, strict=True):
        assert without_unknown(row) == pytest.approx(without_unknown(other), rel=1e-3, abs=1e-6)
    told, known = ([row["completion"] for row in read_rows(each / SAMPLES)] for each in (folder, expected))
    assert told == known
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()


# A pass of a whole step is a row of 322 tokens: two prompts of 129 without the last token, eight completions of 8. That
# of half a step has 161 tokens, and a stage no more than the 129 of the prompt.
@pytest.mark.parametrize(
    ("limits", "retries", "smaller"),
    [
        ({"tokens": 200}, 1, {"completions_per_pass": 4}),
        (
            {"tokens": 150, "after": 2, "refusal": REFUSALS["cpu"]},
            2,
            {"completions_per_pass": 4, "prompt_sharing": "staged", "completions_at_once": 2},
        ),
        ({"rows": 3, "after": 1}, 2, {"completions_per_rollout": 2}),
    ],
    ids=["pass", "pass of the third step, on a CPU", "rollout of the second step"],
)
def test_what_does_not_fit_is_done_in_smaller_parts_and_comes_to_the_same(
    undisturbed, arguments, tmp_path, monkeypatch, capsys, limits, retries, smaller
):
    folder = tmp_path / "run"
    with refusing(folder, **limits):
        assert train(monkeypatch, *arguments, "--output", folder) == 0
    assert_same_run(folder, undisturbed)
    assert facts(folder)["made_smaller"] == smaller
    step = limits.get("after", 0) + 1
    told = [change for change in facts(folder)["changes"] if change.startswith(f"step {step}: ")]
    assert len(told) == retries
    assert all("did not fit into memory" in change and "for the same update" in change for change in told)
    assert str(limits.get("refusal", REFUSALS["cuda"])) in told[0]
    assert told[0].partition(" (")[0] in capsys.readouterr().err


def test_after_three_retries_it_ends_with_exit_5_and_goes_on_from_the_last_whole_step(
    undisturbed, arguments, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "run"
    with refusing(folder, tokens=100, after=2):
        assert train(monkeypatch, *arguments, "--output", folder) == 5
    said = capsys.readouterr().err
    assert "Step 3: the pass did not fit into memory after 3 retries" in said
    assert "Tried to allocate 2.00 GiB. GPU 0 has 1.10 GiB free." in said
    assert "With --set " in said
    assert "it would need about" in said
    assert "Step 2 is kept. Where there is more memory" in said
    assert f"grit-lite train --resume --output {folder}" in said
    assert facts(folder)["status"] == "failed"
    assert len(facts(folder)["changes"]) == 3
    assert train(monkeypatch, "--resume", "--output", folder) == 0
    assert facts(folder)["schedule"] == {"staged": True, "at_once": 1}
    assert_same_run(folder, undisturbed)


def test_a_step_that_fits_again_gives_the_next_one_its_own_retries(undisturbed, arguments, tmp_path, monkeypatch):
    """Four refusals in all: two of the first step, as its passes, and two of the third, as its rollout."""
    folder = tmp_path / "run"
    with refusing(folder, tokens=100, times=2), refusing(folder, rows=3, after=2):
        assert train(monkeypatch, *arguments, "--output", folder) == 0
    assert_same_run(folder, undisturbed)
    assert len(facts(folder)["changes"]) == 4


def test_an_update_that_does_not_fit_is_not_repeated_on_half_changed_weights(
    undisturbed, arguments, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "run"

    def refuse(optimizer, args, kwargs):
        if len(list(read_rows(folder / METRICS))) == 3:
            raise REFUSALS["cuda"]

    handle = register_optimizer_step_pre_hook(refuse)
    try:
        assert train(monkeypatch, *arguments, "--set=save_every=2", "--output", folder) == 5
    finally:
        handle.remove()
    assert "Step 4: the update did not fit into memory: CUDA out of memory" in capsys.readouterr().err
    assert facts(folder)["changes"] == []
    assert [path.name for path in (folder / "checkpoints").glob("step-*")] == ["step-000002"]
    assert train(monkeypatch, "--resume", "--output", folder) == 0
    assert_same_run(folder, undisturbed)


def test_an_evaluation_asks_fewer_at_the_same_time(undisturbed, arguments, tmp_path, monkeypatch):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    settings = ["--set=steps=1", "--set=evaluate=shapes", "--set=eval_questions=20"]
    assert train(monkeypatch, *arguments, *settings, "--output", whole) == 0
    with refusing(halves, rows=6, after=1):
        assert train(monkeypatch, *arguments, *settings, "--output", halves) == 0
    results = [json.loads((folder / "eval" / "shapes.json").read_text()) for folder in (whole, halves)]
    assert [result["settings"].pop("halved_to_batch_size", None) for result in results] == [None, 4]
    came_from = [result["settings"]["systems"]["tuned"].pop("adapter_from") for result in results]
    assert came_from == ["whole", "halves"]
    assert results[0] == results[1]
    assert (whole / "eval" / "shapes.jsonl").read_bytes() == (halves / "eval" / "shapes.jsonl").read_bytes()


def test_an_evaluation_of_which_no_question_fits_ends_with_exit_5(arguments, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    settings = ["--set=steps=1", "--set=evaluate=shapes", "--set=eval_questions=2"]
    with refusing(folder, rows=0, after=1):
        assert train(monkeypatch, *arguments, *settings, "--output", folder) == 5
    assert "not even one question at a time" in capsys.readouterr().err
    assert (folder / "adapter").is_dir()


def test_a_run_has_the_estimate_of_its_memory_and_the_measured_peak(undisturbed):
    memory = facts(undisturbed)["memory"]
    assert memory["estimate_mib"]["total"] == memory["expected_mib"] < memory["limit_mib"]
    assert memory["measured_mib"] > 100


def test_a_model_that_cannot_fit_is_refused_before_it_is_loaded(arguments, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    monkeypatch.setattr(memory, "this_device", lambda: memory.Device("cpu", "CPU", 2**20, 2**20))
    monkeypatch.setattr(training, "open_backend", lambda *_: pytest.fail("it was loaded"))
    assert train(monkeypatch, *arguments, "--output", folder) == 5
    said = capsys.readouterr().err
    assert "does not fit: its weights, adapter and optimizer need" in said
    assert "of the 1 MiB that this machine has free. No change of the recipe would make it fit" in said
    assert facts(folder)["status"] == "failed"
    assert facts(folder)["memory"]["estimate_mib"]["weights"] > 1


@pytest.mark.parametrize("error", REFUSALS.values(), ids=REFUSALS)
def test_a_failed_allocation_is_known_as_one(error):
    assert is_out_of_memory(error)


def test_another_error_is_not_taken_for_one():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        halving(lambda size: torch.ones(size, 2) @ torch.ones(3, 1), 8)
