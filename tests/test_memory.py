"""The shared pass in memory: counted tensor by tensor against the padded computation, and the estimate against both."""

import pytest
import torch
from live_bytes import LiveBytes
from PIL import Image

from benchmarks.models import save_random
from grit_lite.backends import Request, open_backend
from grit_lite.memory import fitting_schedule, free_bytes, pass_bytes
from grit_lite.packing import PACKED, Schedule, SharedPromptLayout
from grit_lite.recipe import load_recipe

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
    return backend._encode([Request(Image.effect_noise((224, 224), 80).convert("RGB"), "\nHow many circles?")])


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
