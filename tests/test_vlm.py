"""The way of a prompt through a model: the library's tokens, positions and image features, each image seen once."""

from types import SimpleNamespace

import pytest
import torch
from shared_prompt_cases import (
    CASES,
    FAMILIES,
    LANGUAGE,
    LOGP,
    ONE,
    TEMPERATURE,
    TEXT,
    TWO,
    VISION,
    WIDE,
    Ask,
    Case,
    Pair,
    distance,
    lora_gradient,
    model_folder,
)
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from benchmarks.models import configuration
from grit_lite.packing import PACKED, Schedule
from grit_lite.rollout import prefill
from grit_lite.vlm import ATTENTION, VisionLanguageModel, base_model, shares_prompts

ASKS = (WIDE, TEXT, TWO, ONE)


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


# Which models


def test_the_parts_are_found_behind_any_adapter_or_wrapper(pair):
    inner = pair.model.get_base_model()
    for model in (inner, pair.model, SimpleNamespace(module=pair.model)):
        assert shares_prompts(model)
        assert base_model(model) is inner
        found = VisionLanguageModel(model)
        assert (found.backbone, found.head) == (inner.model, inner.lm_head)


def tiny_text(family, **options):
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return AutoConfig.for_model(family, **small, **heads, **options)


def qwen2_vl():
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2}
    return AutoConfig.for_model("qwen2_vl", text_config=tiny_text("qwen2").to_dict(), vision_config=vision)


def smolvlm():
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    return AutoConfig.for_model("smolvlm", text_config=tiny_text("llama").to_dict(), vision_config=vision)


def sliding(family):
    config = configuration(family, "miniature")
    count = config.text_config.num_hidden_layers
    config.text_config.layer_types = ["full_attention"] * (count - 1) + ["sliding_attention"]
    config.text_config.sliding_window = 8
    return config


UNKNOWN = {
    "qwen2_vl": qwen2_vl,
    "smolvlm": smolvlm,
    "sliding qwen2_5_vl": lambda: sliding("qwen2_5_vl"),
    "sliding internvl": lambda: sliding("internvl"),
}


@pytest.mark.parametrize("unknown", UNKNOWN.values(), ids=UNKNOWN)
def test_a_model_for_which_sharing_is_not_known_to_be_exact_is_refused(unknown):
    model = AutoModelForImageTextToText.from_config(unknown())
    assert not shares_prompts(model)
    with pytest.raises(ValueError, match=f"cannot share prompts of a model of the class '{model.config.model_type}'"):
        VisionLanguageModel(model)
    assert model.config.get_text_config()._attn_implementation != ATTENTION


def test_a_language_model_is_not_a_vision_language_model():
    assert not shares_prompts(AutoModelForCausalLM.from_config(tiny_text("qwen2")))


@torch.no_grad()
def test_without_a_layout_the_model_is_the_librarys(pair):
    batch = pair.batch(ASKS)
    mask = batch["attention_mask"].bool()
    assert not mask.all()
    assert torch.equal(pair.model(**batch).logits[mask], pair.stock.model(**batch).logits[mask])


# Prompts


def test_the_tokens_are_the_processors_without_padding(pair):
    batch = pair.batch(ASKS)
    for prompt, ids, mask in zip(pair.prompts(ASKS), batch["input_ids"], batch["attention_mask"], strict=True):
        assert prompt.tokens.tolist() == ids[mask.bool()].tolist()


def test_each_prompt_has_its_own_pixels(pair):
    for ask, prompt in zip(ASKS, pair.prompts(ASKS), strict=True):
        alone = pair.batch([ask])
        names = {"pixel_values", "image_grid_thw"} & set(alone)
        assert set(prompt.pixels) == names
        assert all(torch.equal(prompt.pixels[name], alone[name]) for name in names)


def test_the_fields_of_prompts_are_the_processors_again(pair):
    batch = pair.batch(ASKS)
    fields = pair.vlm.fields(pair.prompts(ASKS))
    kinds = fields.pop("mm_token_type_ids", None)
    assert set(fields) == {"pixel_values", "image_grid_thw"} & set(batch)
    assert all(torch.equal(fields[name], batch[name]) for name in fields)
    assert (kinds is None) == ("image_grid_thw" not in batch)
    for row, own in enumerate(kinds or []):
        assert own == batch["mm_token_type_ids"][row][batch["attention_mask"][row].bool()].tolist()


def test_pixels_may_come_as_the_processor_gives_them_to_trl(pair):
    """Of InternVL, a list of tiles."""
    turns = [ask.conversation() for ask in ASKS]
    for (turn,), ask in zip(turns, ASKS, strict=True):
        turn["content"] = [*({"type": "image", "image": image} for image in ask.images()), turn["content"][-1]]
    fields = pair.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)
    ours = pair.vlm.prompts(fields["input_ids"], [len(ask.sizes) for ask in ASKS], fields)
    for prompt, expected in zip(ours, pair.prompts(ASKS), strict=True):
        assert torch.equal(prompt.tokens, expected.tokens)
        assert set(prompt.pixels) == set(expected.pixels)
        assert all(torch.equal(prompt.pixels[name], expected.pixels[name]) for name in prompt.pixels)


def test_a_prompt_without_a_token_before_its_last_is_refused(pair):
    with pytest.raises(ValueError, match="at least two tokens"):
        pair.vlm.prompts([[300, 301], [300]], [0, 0], {})


@pytest.mark.parametrize("ask", ASKS, ids=["one", "none", "two", "square"])
def test_positions_are_the_librarys_for_the_prompt_and_what_follows(pair, ask):
    (prompt,) = pair.prompts([ask])
    batch, steps = pair.batch([ask]), 5
    tokens = torch.cat([batch["input_ids"], torch.full((1, steps), 300)], dim=1)
    expected = torch.arange(tokens.shape[1])[None]
    if hasattr(pair.vlm.backbone, "get_rope_index"):
        kinds = torch.cat([batch["mm_token_type_ids"], torch.zeros(1, steps, dtype=torch.long)], dim=1)
        grid = batch.get("image_grid_thw")
        library = pair.stock.model.get_base_model().model
        expected = library.get_rope_index(tokens, mm_token_type_ids=kinds, image_grid_thw=grid)[0][:, 0]
    assert torch.equal(prompt.positions, expected[:, :-steps])
    following = prompt.positions[:, -1:] + 1 + torch.arange(steps)
    assert torch.equal(following.expand(len(expected), -1), expected[:, -steps:])


# Images


@pytest.fixture
def seen(monkeypatch):
    """Counts the pictures that go through the tower of a pair's model, and whether a gradient could come back."""

    def watch(vlm):
        calls, look = [], vlm.backbone.get_image_features

        def counted(pixel_values, **fields):
            calls.append((len(pixel_values), torch.is_grad_enabled()))
            return look(pixel_values, **fields)

        monkeypatch.setattr(vlm.backbone, "get_image_features", counted)
        return calls

    return watch


@torch.no_grad()
def test_the_features_are_the_librarys(pair):
    prompts = pair.prompts(ASKS)
    prefill(pair.vlm, prompts)
    for ask, prompt in zip(ASKS, prompts, strict=True):
        if not ask.sizes:
            assert prompt.features is None
            continue
        batch = pair.batch([ask])
        pixels = {name: batch[name] for name in ("pixel_values", "image_grid_thw") if name in batch}
        output = pair.stock.model.get_base_model().model.get_image_features(**pixels)
        pooled = output.pooler_output
        pooled = torch.cat(pooled) if isinstance(pooled, (tuple, list)) else pooled.flatten(0, 1)
        expected = [pooled, *(getattr(output, "deepstack_features", None) or [])]
        for ours, stock in zip(prompt.features, expected, strict=True):
            assert distance(ours, stock) <= LOGP


def test_deepstack_has_features_of_its_own_for_some_layers(pair):
    prompts = pair.prompts([ONE])
    prefill(pair.vlm, prompts)
    assert len(prompts[0].features) == (3 if base_model(pair.model).config.model_type == "qwen3_vl" else 1)


@pytest.mark.parametrize(
    "schedule", [PACKED, Schedule(at_once=1), Schedule(staged=True)], ids=["packed", "rows", "staged"]
)
def test_a_frozen_tower_sees_every_picture_once(checkpointed, seen, schedule):
    calls = seen(checkpointed.vlm)
    case = CASES["text beside images"]
    groups = checkpointed.groups(case)
    pixels = sum(len(prompt.pixels["pixel_values"]) for prompt, _ in groups if prompt.pixels)
    prefill(checkpointed.vlm, [prompt for prompt, _ in groups])
    for _ in range(2):
        logps, _ = schedule.score(checkpointed.vlm, groups, TEMPERATURE)
        lora_gradient(checkpointed.model, logps.sum())
    assert calls == [(pixels, False)]
    assert not any(prompt.pixels for prompt, _ in groups)
    assert not any(level.requires_grad for prompt, _ in groups for level in prompt.features or [])


def test_a_picture_that_is_new_is_seen_beside_one_that_is_not(pair, seen):
    calls = seen(pair.vlm)
    first, second = pair.prompts([ONE, TWO])
    case = Case((ONE, TWO), ((3,), (4,)))
    alone, both = [list(zip(some, case.completions(), strict=False)) for some in ([first], [first, second])]
    counts = [len(prompt.pixels["pixel_values"]) for prompt in (first, second)]
    PACKED.score(pair.vlm, alone, TEMPERATURE)
    logps, _ = PACKED.score(pair.vlm, both, TEMPERATURE)
    assert [count for count, _ in calls] == counts
    assert distance(logps, pair.expected(case)[0]) <= LOGP


def test_a_tower_in_training_sees_pictures_anew(seeing, seen):
    calls = seen(seeing.vlm)
    groups = seeing.groups(CASES["two prompts"])
    pixels = sum(len(prompt.pixels["pixel_values"]) for prompt, _ in groups)
    for _ in range(2):
        PACKED.score(seeing.vlm, groups, TEMPERATURE)
    assert calls == [(pixels, True)] * 2
    assert all(prompt.pixels and prompt.features is None for prompt, _ in groups)


def test_what_a_changed_tower_sees_is_not_what_it_saw(folder):
    seeing = Pair(folder, [*VISION, *LANGUAGE])
    case = CASES["two prompts"]
    groups = seeing.groups(case)
    before, _ = PACKED.score(seeing.vlm, groups, TEMPERATURE)
    for model in (seeing.model, seeing.stock.model):
        for name, parameter in model.named_parameters():
            if "lora_B" in name and "language_model" not in name:
                parameter.data.neg_()
    after, _ = PACKED.score(seeing.vlm, groups, TEMPERATURE)
    assert distance(after, seeing.expected(case)[0]) <= LOGP
    assert distance(after, before) > 100 * LOGP


def test_what_a_tower_sees_without_its_adapter_is_not_kept(seeing):
    case = CASES["two prompts"]
    groups = seeing.groups(case)
    with torch.no_grad(), seeing.model.disable_adapter():
        PACKED.score(seeing.vlm, groups, TEMPERATURE)
    assert distance(PACKED.score(seeing.vlm, groups, TEMPERATURE)[0], seeing.expected(case)[0]) <= LOGP


def test_a_word_for_an_image_in_a_completion_takes_no_features(pair):
    case = Case((ONE,), ((5, 5, 5),))
    expected = pair.expected(case)[0].view(3, 5)
    ((prompt, completions),) = pair.groups(case)
    for completion in completions:
        completion[2] = pair.vlm.image_token
    ours = PACKED.score(pair.vlm, [(prompt, completions)], TEMPERATURE)[0].view(3, 5)
    assert distance(ours[:, :2], expected[:, :2]) <= LOGP
    assert distance(ours[:, 3:], expected[:, 3:]) > 100 * LOGP


def test_two_prompts_that_swap_their_pictures_are_noticed(pair):
    one, other = Ask(ONE.question, ONE.sizes, seed=1), Ask(ONE.question, ONE.sizes, seed=2)
    case = Case((one, other), ((4, 4), (4, 4)))
    completions = case.completions()
    groups = list(zip(pair.prompts([other, one]), completions, strict=True))
    assert distance(PACKED.score(pair.vlm, groups, TEMPERATURE)[0], pair.expected(case)[0]) > 100 * LOGP
