"""The shared pass in memory: counted tensor by tensor against the padded computation, and the estimate against both."""

import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from live_bytes import LiveBytes
from PIL import Image

from benchmarks.models import save_random
from grit_lite import memory
from grit_lite.backends import Request, open_backend
from grit_lite.errors import OutOfMemory
from grit_lite.families import FAMILIES
from grit_lite.memory import (
    GIB,
    NF4_BYTES,
    Device,
    Plan,
    fitting_schedule,
    free_bytes,
    model_config,
    model_sizes,
    pass_bytes,
    this_device,
)
from grit_lite.packing import PACKED, Schedule, SharedPromptLayout
from grit_lite.recipe import Recipe, load_recipe, recipe_files
from grit_lite.rollout import Sampling, sample
from grit_lite.shapes import SHAPES, published_config

GROUP, COMPLETION = 8, 12


@pytest.fixture(scope="module", params=[True, False], ids=["checkpointing", "no checkpointing"])
def backend(request, tmp_path_factory):
    folder = save_random(tmp_path_factory.mktemp("model"), "qwen2_5_vl", "miniature")
    recipe = load_recipe("tiny", [f"model={folder}", f"max_pixels={224 * 224}"])
    backend = open_backend(recipe)
    backend.attach_lora(recipe)
    if request.param:
        backend.model.enable_input_require_grads()
        backend.model.gradient_checkpointing_enable()
    backend.model.train()
    return backend


@pytest.fixture(scope="module")
def batch(backend):
    return backend._encode([Request((Image.effect_noise((224, 224), 80).convert("RGB"),), "\nHow many circles?")])


@pytest.fixture(scope="module")
def completions():
    return torch.randint(20, 800, (GROUP, COMPLETION), generator=torch.Generator().manual_seed(0))


def peak_of(log_probabilities):
    with LiveBytes() as counted:
        log_probabilities().sum().backward()
    return counted.peak


def shared(backend, batch, completions, schedule):
    prompt = backend.vlm.prompts(batch["input_ids"].tolist(), [1], batch)[0]
    with torch.no_grad():
        backend.vlm.run(SharedPromptLayout([len(prompt.tokens) - 1]), [prompt])  # the rollout has seen the image before
    return lambda: schedule.score(backend.vlm, [(prompt, list(completions))], 1.0)[0]


def padded(backend, batch, completions):
    """What TRL computes: one row a completion, each with its own copy of the prompt and its image."""
    rows = len(completions)

    def log_probabilities():
        logits = backend.model(
            input_ids=torch.cat([batch["input_ids"].expand(rows, -1), completions], dim=1),
            attention_mask=torch.ones(rows, batch["input_ids"].shape[1] + COMPLETION, dtype=torch.long),
            mm_token_type_ids=torch.nn.functional.pad(batch["mm_token_type_ids"], (0, COMPLETION)).expand(rows, -1),
            pixel_values=batch["pixel_values"].repeat(rows, 1),
            image_grid_thw=batch["image_grid_thw"].repeat(rows, 1),
            logits_to_keep=COMPLETION + 1,
            use_cache=False,
        ).logits[:, :-1]
        return torch.log_softmax(logits, -1).gather(2, completions[:, :, None])

    return log_probabilities


def test_one_packed_row_needs_less_than_half_of_the_padded_rows(backend, batch, completions):
    packed = peak_of(shared(backend, batch, completions, PACKED))
    assert packed < 0.5 * peak_of(padded(backend, batch, completions))


def test_stages_need_no_more_than_one_padded_row(backend, batch, completions):
    staged = peak_of(shared(backend, batch, completions, Schedule(staged=True, at_once=1)))
    assert staged <= peak_of(padded(backend, batch, completions[:1]))


def test_nothing_stays_behind_after_a_pass(backend, batch, completions):
    score = shared(backend, batch, completions, PACKED)
    with LiveBytes() as counted:
        score().sum().backward()
    gradients = sum(p.numel() * 4 for p in backend.model.parameters() if p.requires_grad)
    assert counted.live <= gradients


@pytest.mark.parametrize(("schedule", "at_once"), [(PACKED, 8), (Schedule(True, 1), 1), (Schedule(True, 4), 4)])
def test_the_estimate_is_above_the_peak_and_not_far_above(backend, batch, completions, schedule, at_once):
    peak = peak_of(shared(backend, batch, completions, schedule))
    model = backend.model
    estimate = pass_bytes(
        model.config.get_text_config(),
        1,
        batch["input_ids"].shape[1],
        at_once,
        COMPLETION,
        itemsize=4,
        checkpointing=model.is_gradient_checkpointing,
    )
    assert peak < estimate < 4 * peak


def schedule_for(backend, room):
    sizes = {"rows": 8, "group": 8, "prompt": 1300, "completion": 512}
    config = backend.model.config.get_text_config()
    return fitting_schedule(config, room, **sizes, itemsize=2, checkpointing=True)


def test_the_schedule_is_the_fastest_that_fits(backend):
    def estimate(completions):
        config = backend.model.config.get_text_config()
        return pass_bytes(config, 1, 1300, completions, 512, itemsize=2, checkpointing=True)

    assert schedule_for(backend, room=estimate(8)) == PACKED
    assert schedule_for(backend, room=estimate(8) - 1) == Schedule(staged=True, at_once=7)
    assert schedule_for(backend, room=estimate(3)) == Schedule(staged=True, at_once=3)
    assert schedule_for(backend, room=0) == Schedule(staged=True, at_once=1)


def test_this_machine_has_memory_left():
    assert 2**26 < free_bytes(torch.device("cpu")) < 2**44


# A whole run


def plan_of(recipe, gib, kind="cuda"):
    config = published_config(recipe.model) or model_config(recipe)
    return Plan(model_sizes(config, recipe), Device(kind, "card", int(gib * GIB), int(gib * GIB)), "plain")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sizes_are_those_of_the_loaded_model_with_its_adapter(family, tmp_path):
    parts = "lora_parts=[language,attention,mlp]"
    recipe = load_recipe("tiny", [f"model={save_random(tmp_path, family, 'miniature')}", "vllm=off", parts])
    sizes = model_sizes(model_config(recipe), recipe)
    backend = open_backend(recipe)
    assert sizes.parameters == backend.describe()["parameters"]
    backend.attach_lora(recipe)
    assert sizes.lora_width * recipe.lora_rank == backend.describe()["trainable"]
    assert sizes.shares


def test_a_packed_weight_is_as_large_as_bitsandbytes_makes_it():
    packed, state = quantize_4bit(torch.randn(1024, 1024), quant_type="nf4", compress_statistics=True)
    held = [packed, state.absmax, state.state2.absmax]
    assert sum(tensor.nbytes for tensor in held) == 1024 * 1024 * NF4_BYTES


def test_what_4_bit_packs_is_what_the_backend_packs(tmp_path):
    import bitsandbytes

    folder = save_random(tmp_path, "qwen3_vl", "miniature")
    recipe = load_recipe("tiny", [f"model={folder}", "load_in_4bit=true"])
    modules = open_backend(recipe).model.modules()
    layers = [module for module in modules if isinstance(module, bitsandbytes.nn.Linear4bit)]
    sizes = model_sizes(model_config(recipe), recipe)
    assert sizes.packed == sum(layer.in_features * layer.out_features for layer in layers)
    assert sizes.largest == max(layer.in_features * layer.out_features for layer in layers)


@pytest.mark.parametrize("at_once", [8, 2])
def test_the_estimate_of_a_rollout_is_above_the_peak_and_not_far_above(backend, batch, at_once):
    settings = ["prompts_per_step=1", "group_size=8", "max_completion_tokens=96", f"completions_per_rollout={at_once}"]
    recipe = load_recipe("tiny", [*settings, "completions_per_pass=8"])
    prompt = backend.vlm.prompts(batch["input_ids"].tolist(), [1], batch)
    with LiveBytes() as counted:
        sample(backend.vlm, prompt, [0] * 8, Sampling(96, temperature=1.0), at_once)
    image = int((batch["input_ids"] == backend.vlm.image_token).sum())
    text = batch["input_ids"].shape[1] - image
    estimate = memory.rollout_bytes(backend.model.config, recipe, image, 4, shared=True, text_tokens=text)
    assert counted.peak < estimate < 4 * counted.peak


@pytest.mark.parametrize("name", sorted(recipe_files()))
def test_every_recipe_has_an_estimate_and_its_least_is_less(name):
    recipe = load_recipe(name)
    for gib in (8, 16, 24, 80):
        plan = plan_of(recipe, gib)
        estimate = plan.estimate(recipe)
        assert 0 < plan.least(recipe) < estimate.total < 40 * GIB
        assert estimate.weights < 12 * GIB


def test_what_cannot_fit_is_refused_with_the_numbers_and_the_change_that_would():
    recipe = Recipe(model="Qwen/Qwen2.5-VL-7B-Instruct", gradient_checkpointing=True)
    refusal = r"need at least 16\.\d GiB of the 15\.0 GiB that card has\. With --set load_in_4bit=true it would need"
    with pytest.raises(OutOfMemory, match=refusal):
        plan_of(recipe, 15).verdict(recipe)


def test_what_may_not_fit_is_not_refused_but_said():
    recipe = Recipe(model="Qwen/Qwen2.5-VL-3B-Instruct", load_in_4bit=True, prompt_sharing="packed")
    verdict = plan_of(recipe, 15).verdict(recipe)
    assert "That may not fit. With --set completions_per_pass=" in verdict
    assert "That may not fit" not in plan_of(recipe, 1000).verdict(recipe)


@pytest.mark.parametrize("model", SHAPES)
def test_the_change_that_is_named_fits_and_is_the_mildest_of_its_kind(model):
    recipe = Recipe(model=model, prompt_sharing="packed")
    plan = plan_of(recipe, 16)
    changes = plan.change_that_fits(recipe, plan.device.free)
    assert changes
    assert plan.estimate(recipe.model_copy(update=changes)).total <= plan.device.free
    for key in changes:
        others = {name: value for name, value in changes.items() if name != key}
        assert plan.estimate(recipe.model_copy(update=others)).total > plan.device.free


def test_where_nothing_helps_a_smaller_model_is_the_advice():
    recipe = Recipe(model="Qwen/Qwen2.5-VL-7B-Instruct")
    with pytest.raises(OutOfMemory, match="No change of the recipe would make it fit; take a smaller model"):
        plan_of(recipe, 4).verdict(recipe)


def test_vllm_counts_its_share_once_where_it_shares_the_weights(monkeypatch):
    monkeypatch.setattr(memory, "obstacles", lambda recipe, family: iter(()))
    recipe = Recipe(model="Qwen/Qwen2.5-VL-3B-Instruct", load_in_4bit=True, vllm="on", vllm_memory_share=0.5)
    plain = plan_of(recipe, 24)
    shared = Plan(plain.sizes, plain.device, "unsloth")
    assert plain.estimate(recipe).engine == 12 * GIB
    assert shared.estimate(recipe).engine == 12 * GIB - shared.estimate(recipe).weights
    assert shared.estimate(recipe.model_copy(update={"vllm": "off"})).engine == 0


def test_a_machine_counts_what_this_process_holds_as_free_for_it():
    device = this_device()
    assert device.kind == "cuda" or free_bytes(torch.device("cpu")) < device.free <= device.total
