"""The shared-prompt pass against TRL's padded rows: the same log-probabilities, entropies and LoRA gradients."""

import dataclasses

import pytest
import torch
from shared_prompt_cases import (
    CASES,
    ENTROPY,
    FAMILIES,
    GRADIENT,
    LANGUAGE,
    LOGP,
    ONE,
    TEMPERATURE,
    TEXT,
    TWO,
    VISION,
    WIDE,
    Case,
    Pair,
    distance,
    lora_gradient,
    model_folder,
    relative,
)
from torch.autograd.graph import saved_tensors_hooks
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from grit_lite import packing
from grit_lite.packing import PACKED, Schedule, SharedPromptLayout

IN_STAGES = Schedule(staged=True, at_once=3)
SCHEDULES = [PACKED, Schedule(at_once=3), Schedule(staged=True), IN_STAGES]
SHORT = Case((ONE, WIDE), ((3, 6), (1, 4)))
FAR = 100 * LOGP  # what a wrong pass must be off by, to be told from rounding


def named(schedule):
    return f"{'staged' if schedule.staged else 'packed'}-{schedule.at_once}"


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return model_folder(tmp_path_factory, request.param)


@pytest.fixture(scope="module")
def pair(folder):
    return Pair(folder)


@pytest.fixture(scope="module")
def checkpointed(folder):
    return Pair(folder, checkpointing=False)


@pytest.fixture(scope="module")
def seeing(folder):
    """A pair whose adapter is in the vision tower too."""
    return Pair(folder, [*VISION, *LANGUAGE])


def score(pair, case, schedule=PACKED):
    return schedule.score(pair.vlm, pair.groups(case), TEMPERATURE)


def assert_equal(pair, case, schedule):
    logps, entropies, gradient = pair.expected(case)
    our_logps, our_entropies = score(pair, case, schedule)
    assert distance(our_logps, logps) <= LOGP
    assert distance(our_entropies, entropies) <= ENTROPY
    assert relative(lora_gradient(pair.model, our_logps @ case.weights()), gradient) <= GRADIENT


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_gradients_are_those_of_padded_rows(pair, case, schedule):
    assert_equal(pair, case, schedule)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_gradient_checkpointing_changes_nothing(checkpointed, schedule):
    assert_equal(checkpointed, CASES["two prompts"], schedule)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_a_trained_vision_tower_gets_its_gradient(seeing, schedule):
    assert_equal(seeing, CASES["two prompts"], schedule)


def test_a_trained_vision_tower_gets_its_gradient_under_checkpointing(folder):
    pair = Pair(folder, [*VISION, *LANGUAGE], checkpointing=False)
    for schedule in (PACKED, IN_STAGES):
        assert_equal(pair, CASES["two prompts"], schedule)


def test_an_adapter_in_the_vision_tower_alone_can_be_staged_beside_text(folder):
    assert_equal(Pair(folder, VISION), CASES["text beside images"], Schedule(staged=True))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch cannot see the layout's
def test_the_packed_pass_takes_reentrant_checkpointing(folder):
    assert_equal(Pair(folder, checkpointing=True), SHORT, PACKED)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch cannot see the layout's
def test_stages_refuse_reentrant_checkpointing_rather_than_lose_a_gradient(folder):
    pair = Pair(folder, checkpointing=True)
    logps, _ = score(pair, SHORT, Schedule(staged=True))
    with pytest.raises(RuntimeError, match="reentrant gradient checkpointing hides the gradient of the prompt"):
        logps.sum().backward()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_entropies_carry_no_gradient(pair, schedule):
    logps, entropies = score(pair, SHORT, schedule)
    assert (logps.requires_grad, entropies.requires_grad) == (True, False)


@pytest.mark.parametrize("schedule", [PACKED, IN_STAGES], ids=named)
def test_without_the_adapter_the_values_are_those_of_the_model_alone(pair, schedule):
    case = CASES["two prompts"]
    with torch.no_grad(), pair.stock.model.disable_adapter():
        expected, _ = pair.stock.score(case)
    with torch.no_grad(), pair.model.disable_adapter():
        logps, _ = score(pair, case, schedule)
    assert distance(logps, expected) <= LOGP
    assert distance(expected, pair.expected(case)[0]) > FAR


@pytest.mark.parametrize("schedule", [PACKED, IN_STAGES], ids=named)
def test_autocast_is_on_in_every_call_of_the_model(pair, schedule, monkeypatch):
    precise, _ = score(pair, SHORT, schedule)
    on, run = [], pair.vlm.run

    def noted(*arguments, **options):
        on.append(torch.is_autocast_enabled("cpu"))
        return run(*arguments, **options)

    monkeypatch.setattr(pair.vlm, "run", noted)
    coarse, _ = schedule.score(pair.vlm, pair.groups(SHORT), TEMPERATURE, lambda: torch.autocast("cpu"))
    coarse.sum().backward()
    assert on == [True] * (8 if schedule.staged else 1)
    assert 0.2 > distance(coarse, precise) > FAR


# What a wrong pass looks like: each of these must be far from TRL's numbers, or the tests above could not fail.


@pytest.fixture(scope="module", params=FAMILIES[:2])
def qwen(request, tmp_path_factory):
    return Pair(model_folder(tmp_path_factory, request.param))


def test_positions_that_only_count_tokens_are_noticed(qwen):
    def count(prompt):
        return dataclasses.replace(prompt, positions=torch.arange(len(prompt.tokens)).expand(3, -1))

    groups = [(count(prompt), completions) for prompt, completions in qwen.groups(SHORT)]
    assert distance(PACKED.score(qwen.vlm, groups, TEMPERATURE)[0], qwen.expected(SHORT)[0]) > FAR


def test_a_completion_that_starts_at_another_position_is_noticed(pair):
    def restart(prompt):
        return dataclasses.replace(
            prompt, positions=torch.cat([prompt.positions[:, :-1], torch.zeros_like(prompt.positions[:, -1:])], 1)
        )

    groups = [(restart(prompt), completions) for prompt, completions in pair.groups(SHORT)]
    assert distance(PACKED.score(pair.vlm, groups, TEMPERATURE)[0], pair.expected(SHORT)[0]) > FAR


class Leaking(SharedPromptLayout):
    """Everything before is seen, other completions too."""

    def attend(self, module, query, key, value, scaling):
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling)[0]


def test_a_completion_that_sees_another_is_noticed(pair, monkeypatch):
    case = CASES["ragged"]
    logps = pair.expected(case)[0]
    monkeypatch.setattr(packing, "SharedPromptLayout", Leaking)
    leaking, _ = score(pair, case)
    first = case.lengths[0][0]
    assert distance(leaking[:first], logps[:first]) <= LOGP  # the first completion has no other before it
    assert all(
        distance(*rows) > FAR
        for rows in zip(leaking[first:].split([20, 1, 4]), logps[first:].split([20, 1, 4]), strict=True)
    )


def test_the_wrong_image_for_one_completion_is_noticed(pair):
    case = CASES["uniform"]
    logps = pair.expected(case)[0].view(4, 5)
    ((prompt, completions),) = pair.groups(case)
    other = dataclasses.replace(ONE, seed=1)
    (wrong,) = pair.prompts([other])
    groups = [(prompt, completions[:3]), (wrong, completions[3:])]
    ours = PACKED.score(pair.vlm, groups, TEMPERATURE)[0].view(4, 5)
    assert distance(ours[:3], logps[:3]) <= LOGP
    assert (ours[3] - logps[3]).abs().min() > FAR


def test_another_temperature_is_noticed(pair):
    logps, _ = PACKED.score(pair.vlm, pair.groups(SHORT), 1.0)
    assert distance(logps, pair.expected(SHORT)[0]) > FAR


# The logits of many tokens at a time


@pytest.mark.parametrize("schedule", [PACKED, IN_STAGES], ids=named)
def test_chunks_of_any_size_give_the_same(pair, schedule, monkeypatch):
    monkeypatch.setattr(packing, "CHUNK", 7)  # 14 tokens are two whole chunks, 31 are four and a rest
    for lengths in ((7,), (3, 11), (6, 20, 1, 4)):
        assert_equal(pair, Case((ONE,), (lengths,)), schedule)


class Saved:
    """The shapes of all tensors that autograd keeps for a backward pass, while this is open; not those of weights."""

    def __init__(self, model):
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.shapes = []
        self.hooks = saved_tensors_hooks(self._note, lambda tensor: tensor)

    def _note(self, tensor):
        if tensor.untyped_storage().data_ptr() not in self.weights:
            self.shapes.append(tuple(tensor.shape))
        return tensor

    def __enter__(self):
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)


def rows_of_logits(saved, vocabulary):
    return sum(torch.Size(shape).numel() // vocabulary for shape in saved.shapes if shape and shape[-1] == vocabulary)


@pytest.mark.parametrize("schedule", [PACKED, IN_STAGES], ids=named)
def test_the_logits_of_more_than_a_chunk_are_never_kept(pair, schedule, monkeypatch):
    monkeypatch.setattr(packing, "CHUNK", 7)
    vocabulary = pair.vlm.head.out_features
    with Saved(pair.model) as ours:
        logps, _ = score(pair, CASES["ragged"], schedule)
        logps.sum().backward()
    with Saved(pair.stock.model) as stock:
        pair.stock.score(CASES["ragged"])[0].sum().backward()
    assert rows_of_logits(ours, vocabulary) <= 7
    assert rows_of_logits(stock, vocabulary) >= 31  # all tokens


def test_stages_keep_nothing_until_backward(pair):
    with Saved(pair.model) as staged:
        score(pair, CASES["ragged"], Schedule(staged=True))
    with Saved(pair.model) as packed:
        score(pair, CASES["ragged"], PACKED)
    assert staged.shapes == []
    assert packed.shapes


@pytest.fixture
def runs(pair, monkeypatch):
    """For each call of the language model: how many prompts stood in its row, and how many followers."""
    calls, run = [], pair.vlm.run

    def counted(layout, prompts=(), followers=()):
        calls.append((len(prompts), len(followers)))
        return run(layout, prompts, followers)

    monkeypatch.setattr(pair.vlm, "run", counted)
    return calls


@pytest.mark.parametrize(
    ("schedule", "forward", "backward"),
    [
        (PACKED, [(2, 8)], []),
        (Schedule(at_once=3), [(1, 3), (1, 1), (1, 3), (1, 1)], []),
        (Schedule(at_once=4), [(1, 4), (1, 4)], []),
        (Schedule(at_once=6), [(1, 4), (1, 4)], []),
        (Schedule(at_once=8), [(2, 8)], []),
        (Schedule(staged=True), *[2 * [(1, 0), *4 * [(0, 1)]]] * 2),
        (Schedule(staged=True, at_once=3), *[2 * [(1, 0), (0, 3), (0, 1)]] * 2),
    ],
    ids=lambda value: named(value) if isinstance(value, Schedule) else "",
)
def test_no_row_holds_more_than_its_schedule_says(pair, runs, schedule, forward, backward):
    logps, _ = score(pair, CASES["two prompts"], schedule)
    assert runs == forward
    logps.sum().backward()
    assert runs == forward + backward


def test_prompts_of_few_completions_share_a_row(pair, runs):
    score(pair, Case((ONE, TEXT, TWO), ((3,), (4,), (2, 5))), Schedule(at_once=2))
    assert runs == [(2, 2), (1, 2)]
