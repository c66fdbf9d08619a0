"""The benchmarks refuse to time what is not equal, and their numbers mean what the tables say. No time is judged."""

import copy
import itertools
import json
import time
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure, passes, rollout, setting, step
from benchmarks.equality import Unequal, close, close_gradients, same_tokens
from benchmarks.setting import Case

CASE = Case(prompt_tokens=60, completion_tokens=6, group=4)
SMALL = ["--quick", "--size", "miniature", "--prompt-tokens", "60", "--completion-tokens", "6", "--group", "4"]
PARTS = {"rollout", "policy_pass", "reference_pass", "step"}


@pytest.fixture(scope="module")
def folder():
    with setting.random_model("miniature") as folder:
        yield folder


@pytest.fixture(scope="module")
def steps(folder):
    return [step.take_step(folder, CASE, step.SIDES[name]) for name in ("stock", "ours")]


def run(program, tmp_path, *options):
    """Its exit code and its JSON."""
    code = program.main([*SMALL, *options, "--json", str(tmp_path / "result.json")])
    return code, json.loads((tmp_path / "result.json").read_text())


def test_a_whole_step_is_reported_with_its_ratios(tmp_path, capsys):
    code, result = run(step, tmp_path, "--no-memory")
    (case,) = result["cases"]
    assert code == 0
    assert result["equal"] is True
    assert {"machine", "date", "versions", "seconds", "model"} < result.keys()
    assert (case["prompt_tokens"], case["completion_tokens"], case["group"]) == (60, 6, 4)
    assert case["ratio"].keys() == case["wall_ratio"].keys() == PARTS
    assert case["peak_ratio"] is None
    assert case["differences"]["loss"] < 1e-5
    assert 0 < case["differences"]["gradient"] < 1e-5
    for side in ("stock", "ours"):
        assert sum(case["seconds"][side].values()) == pytest.approx(case["steps"][side][0])
    assert "P 60, C 6, G 4" in capsys.readouterr().out
    assert "reference pass" in (tmp_path / "result.txt").read_text()


def test_the_sides_are_trl_itself_and_a_subclass_of_it():
    stock, ours = (step.SIDES[name].trainer() for name in ("stock", "ours"))
    assert stock.__module__ == "trl.trainer.grpo_trainer"
    assert ours.__mro__[1] is stock


def test_both_sides_go_through_every_phase(steps):
    for one in steps:
        assert {name for name, seconds in one.clock.seconds.items() if seconds.wall > 0} == set(step.PHASES)


def test_the_policy_of_the_step_is_not_its_reference(steps):
    assert steps[0].loss > 1e-5  # with equal lengths only the KL term is left of the loss


def changed(one, **attributes):
    other = copy.copy(one)
    vars(other).update(attributes)
    return other


def test_steps_that_differ_are_refused_by_the_name_of_what_differs(steps):
    stock, ours = steps
    step.compare(stock, ours)
    with pytest.raises(Unequal, match="sampled rollout: completion 3 differs at token 5"):
        step.compare(stock, changed(ours, completions=[*ours.completions[:3], [*ours.completions[3][:5], 7]]))
    with pytest.raises(Unequal, match=r"loss: .* allowed are 1e-05"):
        step.compare(stock, changed(ours, loss=ours.loss * 1.0001))
    name, gradient = next(iter(ours.gradients.items()))
    with pytest.raises(Unequal, match=f"gradient of {name}"):
        step.compare(stock, changed(ours, gradients={**ours.gradients, name: gradient * 1.0001}))


def test_a_trainer_that_is_not_equal_is_not_timed(tmp_path, monkeypatch, capsys):
    class Wrong(step.SIDES["ours"].trainer()):
        def _get_per_token_logps_and_entropies(self, *args, **options):
            logps, entropies, loss = super()._get_per_token_logps_and_entropies(*args, **options)
            return logps * 1.001, entropies, loss

    monkeypatch.setitem(step.SIDES, "ours", step.Side(lambda: Wrong, {}))
    code, result = run(step, tmp_path)
    assert code == 1
    assert result["equal"] is False
    assert result["cases"] == []
    assert result["difference"].startswith("loss: stock has")
    assert "Not equal, so not timed" in capsys.readouterr().out


def test_a_number_that_is_not_one_is_not_equal():
    assert close("it", torch.zeros(2), torch.zeros(2)) == 0
    for wrong in (float("nan"), float("inf"), 1 + 2e-5):
        with pytest.raises(Unequal):
            close("it", 1.0, wrong)


def test_what_is_missing_is_not_equal():
    with pytest.raises(Unequal, match="differs at token 1"):
        same_tokens("it", [[1, 2]], [[1]])
    with pytest.raises(Unequal, match="stock has 1 completions, ours 0"):
        same_tokens("it", [[1]], [])
    with pytest.raises(Unequal, match="only one side has"):
        close_gradients({"a": torch.ones(1)}, {})


def test_memory_is_measured_in_a_process_of_its_own(folder):
    peaks = step._in_a_process(folder, CASE, "ours, staged")
    assert peaks.keys() == {*PARTS, "before"}
    assert 0 < peaks["policy_pass"] <= peaks["step"] < peaks["before"]


def test_a_peak_is_over_what_was_in_use_and_is_taken_once():
    meter = measure.Meter(torch.device("cpu"))
    block = torch.ones(100 * 2**18)  # 100 MiB
    time.sleep(0.05)  # ten readings
    del block
    assert meter.take() == pytest.approx(100, abs=10)
    assert meter.take() < 20
    meter.close()


def test_a_phase_inside_another_does_not_count_for_the_outer(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(measure.time, "perf_counter", lambda: float(next(ticks)))  # every reading a second later
    clock = measure.Clock(torch.device("cpu"))
    with clock.phase("outer"), clock.phase("inner"):
        pass
    assert {name: seconds.wall for name, seconds in clock.seconds.items()} == {"outer": 2, "inner": 1}
    assert clock.total().wall == 3
    assert clock.total("inner").wall == 1


def test_sides_take_turns():
    turns = []
    measure.interleaved(2, {"stock": lambda: turns.append("stock"), "ours": lambda: turns.append("ours")})
    assert turns == ["stock", "ours", "stock", "ours"]


@pytest.mark.parametrize("tokens", [20, 81, 300, 700])
def test_a_prompt_is_as_long_as_asked_for(folder, tokens):
    ids = setting.Sides(setting.load(folder), Case(tokens, 4, 2)).batch["input_ids"]
    assert ids.shape == (1, tokens)


def test_the_stock_side_has_the_attention_it_comes_with(folder):
    sides = setting.Sides(setting.load(folder), CASE)
    attention = sides.backend.model.get_base_model().config.get_text_config()
    sides.ours()
    assert attention._attn_implementation == "shared_prompt"
    sides.stock()
    assert attention._attn_implementation == "sdpa"


def test_both_schedules_of_the_pass_are_reported_beside_the_limits(tmp_path):
    code, result = run(passes, tmp_path)
    (case,) = result["cases"]
    assert code == 0
    assert case["ratio"].keys() == {"forward", "forward and backward"}
    assert case["ratio"]["forward"].keys() == {"packed", "staged"}
    assert case["limit"]["tokens"] == pytest.approx(4 * 66 / (60 + 4 * 6))
    assert case["limit"]["forward"] < case["limit"]["forward and backward"]  # stock goes thrice through the tower


def test_a_pass_that_differs_is_refused(folder, monkeypatch):
    monkeypatch.setitem(passes.SCHEDULES, "packed", SimpleNamespace(score=lambda *args: half(*args)))
    with pytest.raises(Unequal, match=r"log-probabilities \(packed\)"):
        passes.check(passes.Passes(folder, CASE))


def half(model, groups, temperature):
    return passes.PACKED.score(model, groups, 2 * temperature)


def test_the_flops_are_those_of_the_model(folder):
    case = Case(300, 32, 4)
    bench = passes.Passes(folder, case)
    rows = bench.stock()
    bench.model.get_base_model().set_attn_implementation("eager")  # whose products the counter knows
    bench.stock = lambda: rows
    with FlopCounterMode(display=False) as counter, bench.model.disable_adapter():
        bench.forward(bench.score_stock)
    config = bench.model.get_base_model().config
    image_tokens = int((bench.batch["input_ids"] == config.image_token_id).sum())
    text = config.text_config
    hidden_half = 4 * text.num_hidden_layers * text.hidden_size * case.group * 332**2 / 2  # that eager computes too
    expected = passes.flops(config, case, image_tokens, 1, shared=False)
    assert counter.get_total_flops() - hidden_half == pytest.approx(expected, rel=0.001)
    one = Case(300, 32, 1)
    shared, copied = (passes.flops(config, one, image_tokens, 1, shared=shared) for shared in (True, False))
    assert shared == copied


def test_the_exponent_is_that_of_the_cost():
    cases = [
        {
            "prompt_tokens": tokens,
            "seconds": {"forward and backward": {"stock": 5 * tokens**1.5, "packed": tokens, "staged": 7}},
        }
        for tokens in (20, 200, 400, 1600)
    ]
    cases[0]["seconds"]["forward and backward"]["stock"] = 1e9  # too short to be fitted
    fitted = passes.exponents(cases, "prompt_tokens")
    assert fitted == pytest.approx({"stock": 1.5, "packed": 1, "staged": 0}, abs=1e-9)


@pytest.mark.parametrize(
    ("ratios", "expected"), [((0.9, 1.1, 2), 0.5), ((1.2, 0.9, 2), 1.0), ((1.1, 1.2, 1.3), 0.25), ((2, 2, 0.5), None)]
)
def test_sharing_pays_from_where_it_never_loses_again(ratios, expected):
    cases = [
        {
            "prompt_tokens": tokens,
            "completion_tokens": 80,
            "ratio": {"forward and backward": dict.fromkeys(passes.SCHEDULES, ratio)},
        }
        for tokens, ratio in zip((20, 40, 80), ratios, strict=True)
    ]
    assert passes.pays_from(cases) == dict.fromkeys(passes.SCHEDULES, expected)


def test_a_rollout_is_reported_greedy_and_ragged(tmp_path):
    code, result = run(rollout, tmp_path, "--completion-tokens", "24")
    greedy, ragged = result["cases"]
    assert code == 0
    assert greedy["lengths"] == [24] * 4
    assert len(set(ragged["lengths"])) > 1
    assert greedy["ratio"] > 0
    assert greedy["prefill"].keys() == greedy["token_step"].keys() == {"stock", "ours"}


def test_a_rollout_that_differs_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(setting.Sides, "our_rollout", lambda sides, sampling: [[0] * 6] * 4)
    code, result = run(rollout, tmp_path)
    assert code == 1
    assert result["cases"] == []
    assert result["difference"].startswith("rollout (P 60, C 6, G 4): completion 0 differs at token 0")
