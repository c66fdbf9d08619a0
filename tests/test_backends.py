"""The seam: whatever runs the model keeps the same promises. Real library, random weights of a real class.

`tests/unsloth_on_cpu` runs this file once more, with GRIT_LITE_BACKEND=unsloth.
"""

import json
import os
from dataclasses import replace

import pytest
import torch
from PIL import Image

from grit_lite.answer import GRIT_PROMPT
from grit_lite.backends import Request, model_location, open_backend, read_spec
from grit_lite.boxes import BoxSpace
from grit_lite.errors import ModelError
from grit_lite.families import FAMILIES
from grit_lite.recipe import load_recipe
from grit_lite.tiny.build import save_untrained
from grit_lite.tiny.world import make_scene

NAME = os.environ.get("GRIT_LITE_BACKEND", "plain")


def tiny(model, *settings):
    return load_recipe("tiny", [f"model={model}", f"backend={NAME}", *settings])


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp("untrained"))


@pytest.fixture(scope="module")
def recipe(untrained):
    return tiny(untrained)


@pytest.fixture(scope="module")
def backend(recipe):
    return open_backend(recipe)


@pytest.fixture(scope="module")
def tuned(recipe):
    """A backend whose adapter is as if trained: its B matrices are not zero."""
    backend = open_backend(recipe)
    backend.attach_lora(recipe)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in backend.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3, generator=generator)
    backend.model.eval()
    return backend


def requests(count):
    questions = ["How many?", "Is the red circle left of the blue square?", "What color is the one in the middle?"]
    texts = [GRIT_PROMPT.render(questions[index % 3], style="direct") for index in range(count)]
    return [Request((make_scene(index, "validation").image,), text) for index, text in enumerate(texts)]


def test_each_request_gets_one_completion_in_its_place(backend):
    one_by_one = [backend.generate([request], max_new_tokens=6)[0] for request in requests(5)]
    assert backend.generate(requests(5), max_new_tokens=6, batch_size=2) == one_by_one


def test_greedy_completions_do_not_depend_on_the_batch_size(backend):
    assert backend.generate(requests(7), max_new_tokens=6, batch_size=1) == backend.generate(
        requests(7), max_new_tokens=6, batch_size=16
    )


def test_a_completion_that_reaches_the_limit_is_not_finished(backend):
    completion = backend.generate(requests(1), max_new_tokens=3)[0]
    assert (completion.tokens, completion.finished) == (3, False)


def test_a_streamed_completion_is_the_generated_one(backend):
    request = requests(1)[0]
    assert "".join(backend.stream(request, max_new_tokens=6)) == backend.generate([request], max_new_tokens=6)[0].text


def test_no_request_is_no_completion(backend):
    assert backend.generate([], max_new_tokens=3) == []


def test_vision_tokens_are_never_sampled(backend):
    vocabulary = backend.processor.tokenizer.get_vocab()
    suppressed = backend.suppressed_tokens()
    assert vocabulary["<|image_pad|>"] in suppressed
    backend.model.lm_head.weight.data[suppressed] *= 100  # a model that wants nothing else
    sampled = backend.generate(requests(4), max_new_tokens=20, temperature=2.0)
    assert not any("vision" in completion.text or "image_pad" in completion.text for completion in sampled)
    backend.model.lm_head.weight.data[suppressed] /= 100


def test_the_model_sees_the_size_that_is_reported(backend):
    completion = backend.generate(
        [Request((Image.new("RGB", (300, 150)),), "\nQuestion: How many?")], max_new_tokens=1
    )[0]
    width, height = completion.resized
    assert backend.resized(Image.new("RGB", (300, 150))) == (width, height)
    assert width * height <= 112 * 112
    assert width > height


def test_max_pixels_of_the_recipe_limits_what_the_model_sees(untrained):
    small = open_backend(tiny(untrained, "max_pixels=4096"))
    width, height = small.resized(Image.new("RGB", (112, 112)))
    assert (width, height) == (64, 64)


def test_a_prompt_may_hold_several_images(backend):
    pictures = [make_scene(index, "validation").image for index in range(3)]
    wide = Image.new("RGB", (300, 150))
    asked = [Request(tuple(pictures), "How many?"), Request((pictures[0],), "How many?"), Request((wide, wide), "Red?")]
    together = backend.generate(asked, max_new_tokens=8)
    assert together == [backend.generate([request], max_new_tokens=8)[0] for request in asked]
    assert [completion.resized for completion in together] == [(112, 112), (112, 112), backend.resized(wide)]
    tokens = [backend.prompt_tokens(request) for request in asked[:2]]
    assert tokens[0] - tokens[1] == 2 * (7 * 7 + 2)  # two more images of 7 x 7 tokens, between two marks each


def test_the_second_image_of_a_prompt_is_looked_at(tuned):
    first, second, third = (make_scene(index, "validation").image for index in range(3))
    texts = [
        tuned.generate([Request((first, other), "How many red circles are there?")], max_new_tokens=16)[0].text
        for other in (second, third, Image.effect_noise((112, 112), 200).convert("RGB"))
    ]
    assert len(set(texts)) > 1


def test_the_base_model_is_the_tuned_one_with_its_adapter_off(backend, tuned):
    off = [completion.text for completion in tuned.generate(requests(3), max_new_tokens=8, use_adapter=False)]
    on = [completion.text for completion in tuned.generate(requests(3), max_new_tokens=8)]
    base = [completion.text for completion in backend.generate(requests(3), max_new_tokens=8)]
    assert off == base
    assert on != base


def test_a_seeded_completion_does_not_depend_on_those_beside_it(backend):
    seeds = [7, 8, 9, 7, 8]
    options = {"max_new_tokens": 8, "temperature": 1.5}
    together = backend.generate(requests(5), seeds=seeds, **options)
    assert together == backend.generate(requests(5), seeds=seeds, batch_size=2, **options)
    alone = [backend.generate([one], seeds=[seed], **options)[0] for one, seed in zip(requests(5), seeds, strict=True)]
    assert together == alone
    again = backend.generate([requests(1)[0]] * 3, seeds=[1, 2, 1], **options)
    assert again[0] == again[2] != again[1]


def test_a_model_whose_prompts_cannot_be_shared_is_seeded_as_well(backend, monkeypatch):
    monkeypatch.setattr(backend, "vlm", None)
    options = {"max_new_tokens": 6, "temperature": 1.5, "seeds": [7, 8, 7]}
    first, second, third = backend.generate([requests(1)[0]] * 3, **options)
    assert first == third != second


def test_a_model_is_known_by_its_weights_its_adapter_and_its_processor(backend, tuned, recipe, untrained, tmp_path):
    bare, adapted = backend.fingerprints(), tuned.fingerprints()
    assert bare["adapter"] is None
    assert {**adapted, "adapter": None} == bare
    tuned.save_adapter(tmp_path / "adapter")
    tuned.generate(requests(2), max_new_tokens=2)
    assert open_backend(recipe, tmp_path / "adapter").fingerprints() == adapted == tuned.fingerprints()
    small = open_backend(tiny(untrained, "max_pixels=4096")).fingerprints()
    assert {name for name in bare if small[name] != bare[name]} == {"processor"}
    weight = backend.model.lm_head.weight.data
    weight[0, 0] += 1
    assert {name for name in bare if backend.fingerprints()[name] != bare[name]} == {"weights"}
    weight[0, 0] -= 1


def test_a_model_is_known_by_what_it_computes_and_where_it_ends_as_well(backend, tuned):
    def changed(model=backend):
        now = model.fingerprints()
        return {name for name in before[model] if now[name] != before[model][name]}

    before = {model: model.fingerprints() for model in (backend, tuned)}
    generation, text = backend.model.generation_config, backend.model.config.get_text_config()
    ends, theta = generation.eos_token_id, text.rope_parameters["rope_theta"]
    generation.eos_token_id = [ends, 5]
    assert changed() == {"configuration"}
    generation.eos_token_id = [ends]
    assert changed() == set()
    generation.eos_token_id = ends
    text.rope_parameters["rope_theta"] = 2 * theta
    assert changed() == {"configuration"}
    text.rope_parameters["rope_theta"] = theta
    backend.model.config._name_or_path, text.use_cache = "elsewhere", not text.use_cache
    assert changed() == set()
    text.use_cache = not text.use_cache
    tuned.model.peft_config["default"].use_rslora = True
    assert changed(tuned) == {"adapter"}
    tuned.model.peft_config["default"].use_rslora = False


def test_another_adapter_can_take_the_place_of_the_one_on_the_model(tuned, recipe, tmp_path):
    backend = open_backend(recipe)
    backend.attach_lora(recipe)
    tuned.save_adapter(tmp_path / "adapter")
    backend.model.eval()
    assert backend.generate(requests(3), max_new_tokens=8) != tuned.generate(requests(3), max_new_tokens=8)
    backend.replace_adapter(tmp_path / "adapter")
    assert backend.generate(requests(3), max_new_tokens=8) == tuned.generate(requests(3), max_new_tokens=8)
    assert backend.fingerprints() == tuned.fingerprints()


def test_a_saved_adapter_comes_back_with_its_prompt_and_box_space(tuned, recipe, tmp_path):
    tuned.save_adapter(tmp_path / "adapter")
    again = open_backend(recipe, tmp_path / "adapter")
    assert again.generate(requests(3), max_new_tokens=8) == tuned.generate(requests(3), max_new_tokens=8)
    assert again.spec == tuned.spec
    assert json.loads((tmp_path / "adapter" / "grit_lite.json").read_text())["model"] == recipe.model


def test_an_adapter_with_the_wrong_shapes_is_refused(tuned, recipe, tmp_path):
    tuned.save_adapter(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 16', '"r": 8'))
    with pytest.raises(ModelError, match="does not load on this model"):
        open_backend(recipe, tmp_path / "adapter")


def test_the_spec_in_the_folder_wins_over_the_family(backend):
    assert backend.spec.box_space is BoxSpace.RESIZED_PIXELS
    assert FAMILIES["qwen3_vl"].box_space is BoxSpace.NORM1000


def test_a_folder_without_a_spec_has_none(tmp_path):
    assert read_spec(tmp_path) is None


@pytest.mark.parametrize("text", ["{", '{"family": "qwen3_vl"}', '{"family": "x", "box_space": "miles", "prompt": {}}'])
def test_a_broken_spec_is_named(tmp_path, text):
    (tmp_path / "grit_lite.json").write_text(text)
    with pytest.raises(ModelError, match=r"grit_lite\.json is not a usable model spec"):
        read_spec(tmp_path)


def test_an_empty_folder_is_not_a_model(tmp_path):
    with pytest.raises(ModelError, match="cannot be loaded"):
        open_backend(tiny(tmp_path))


@pytest.mark.parametrize("name", ["tinny", "../up", "a/b/c", "owner/", "~/model"])
def test_a_name_that_cannot_be_a_model_is_refused(name):
    with pytest.raises(ModelError, match="There is no model"):
        model_location(name)


def test_a_hub_name_is_passed_on():
    assert model_location("Qwen/Qwen2.5-VL-3B-Instruct") == "Qwen/Qwen2.5-VL-3B-Instruct"


def test_lora_goes_where_the_recipe_says(recipe, untrained):
    vision = tiny(untrained, "lora_parts=[vision, attention]")
    backend = open_backend(vision)
    backend.attach_lora(vision)
    trainable = [name for name, parameter in backend.model.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all(".visual." in name and ".attn." in name for name in trainable)


def test_the_same_seed_draws_the_same_adapter(recipe):
    first, second = open_backend(recipe), open_backend(recipe)
    first.attach_lora(recipe)
    second.attach_lora(recipe)
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_description_is_plain_facts(backend):
    facts = backend.describe()
    assert (facts["backend"], facts["backend_reason"]) == (NAME, "the recipe asks for it")
    assert facts["parameters"] == 2_648_064
    assert json.loads(json.dumps(facts)) == facts


def test_a_completion_goes_on_from_its_own_beginning(backend):
    asked = requests(8)
    whole = backend.generate(asked, max_new_tokens=12)
    tokenizer = backend.processor.tokenizer
    for tokens in (1, 5, 9):
        # What a random model writes may be no text, which does not come back as the tokens that it was.
        kept = [one for one in range(8) if _comes_back(tokenizer, whole[one].text)]
        openings = [tokenizer.decode(_tokens(tokenizer, whole[one].text)[:tokens]) for one in kept]
        begun = [replace(asked[one], opening=opening) for one, opening in zip(kept, openings, strict=True)]
        rest = backend.generate(begun, max_new_tokens=12 - tokens)
        assert [o + g.text for o, g in zip(openings, rest, strict=True)] == [whole[one].text for one in kept]
        assert len(kept) > 3


def _tokens(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


def _comes_back(tokenizer, text):
    return "\ufffd" not in text and len(_tokens(tokenizer, text)) == 12


def test_openings_of_different_lengths_and_none_stand_in_one_batch(backend):
    asked = [replace(one, opening="the red circle " * index) for index, one in enumerate(requests(4))]
    alone = [backend.generate([one], max_new_tokens=6)[0] for one in asked]
    assert backend.generate(asked, max_new_tokens=6) == alone
    assert alone[1] != backend.generate([replace(asked[1], opening="")], max_new_tokens=6)[0]


def test_the_librarys_own_generation_begins_with_the_opening_too(backend, monkeypatch):
    asked = [replace(one, opening="the red circle " * index) for index, one in enumerate(requests(4))]
    shared = backend.generate(asked, max_new_tokens=6)
    monkeypatch.setattr(backend, "vlm", None)
    assert backend.generate(asked, max_new_tokens=6) == shared


def test_what_stands_in_an_opening_is_never_a_special_token(backend):
    spelt = replace(requests(1)[0], opening="<|image_pad|> <|im_end|>")
    batch = backend._encode([spelt])
    special = backend.processor.tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|im_end|>"])
    plain = backend._encode(requests(1))
    for token in special:
        assert (batch["input_ids"] == token).sum() == (plain["input_ids"] == token).sum()
    assert backend.generate([spelt], max_new_tokens=3)[0].tokens == 3


def test_a_text_is_as_likely_as_the_library_says(backend):
    request, answers = requests(1)[0], ["yes", "the red circle", "7"]
    batch = backend._encode([request])
    for answer, found in zip(answers, backend.log_likelihoods([request], answers)[0], strict=True):
        whole = backend._encode([replace(request, opening=answer)])
        with torch.no_grad():
            logps = backend.model(**whole).logits[0].float().log_softmax(-1)
        ids = whole["input_ids"][0]
        start = batch["input_ids"].shape[1]
        assert found == pytest.approx(sum(logps[k - 1, ids[k]].item() for k in range(start, len(ids))), abs=1e-4)
    many = backend.log_likelihoods(requests(5), answers, batch_size=2)
    for one, own in zip(requests(5), many, strict=True):
        assert own == pytest.approx(backend.log_likelihoods([one], answers)[0], abs=1e-4)


def test_a_model_whose_prompts_cannot_be_shared_scores_no_texts(backend, monkeypatch):
    monkeypatch.setattr(backend, "vlm", None)
    with pytest.raises(ModelError, match="cannot score texts"):
        backend.log_likelihoods(requests(1), ["yes"])
