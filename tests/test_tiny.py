"""The embedded model: its world is exact, its questions are true, its folder loads like any other model's."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from grit_lite.answer import GRIT_PROMPT, has_valid_format, parse
from grit_lite.boxes import Box
from grit_lite.tiny import TRIPLETS, WEIGHTS, examples, questions
from grit_lite.tiny.questions import KINDS, OPPOSITE, ask, box_text, held_out, middle
from grit_lite.tiny.world import COLORS, NEW_PAIRS, SHAPES, SIDE, STYLES, Scene, Shape, make_scene

SCENES = [make_scene(index, "validation") for index in range(60)]
RED, BLUE = Shape("red", "circle", Box(10, 20, 30, 40)), Shape("blue", "square", Box(25, 60, 45, 80))


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(list(seed) or 0)


# --- world


def test_a_box_is_the_tight_extent_of_the_drawn_pixels():
    for scene in SCENES:
        for number, shape in enumerate(scene.objects, start=1):
            rows, columns = np.nonzero(scene.mask == number)
            assert shape.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_an_object_shows_its_color_inside_its_box():
    scene = next(scene for scene in SCENES if any(o.color == "red" for o in scene.objects))
    number, shape = next((k, o) for k, o in enumerate(scene.objects, start=1) if o.color == "red")
    red, green, blue = np.asarray(scene.image)[scene.mask == number].mean(0)
    assert red > 2 * green, shape
    assert red > 2 * blue, shape


def test_objects_never_overlap_and_stay_inside():
    for scene in SCENES:
        assert 1 <= len(scene.objects) <= 5
        for k, a in enumerate(scene.objects):
            assert a.box.x1 >= 0
            assert a.box.y1 >= 0
            assert max(a.box.x2, a.box.y2) <= SIDE
            for b in scene.objects[k + 1 :]:
                apart = (a.box.x2 <= b.box.x1, b.box.x2 <= a.box.x1, a.box.y2 <= b.box.y1, b.box.y2 <= a.box.y1)
                assert any(apart), (a, b)


def test_a_scene_is_the_same_every_time_and_differs_from_every_other():
    assert make_scene(7, "train").image.tobytes() == make_scene(7, "train").image.tobytes()
    hashes = [
        hashlib.sha256(make_scene(index, split).image.tobytes()).hexdigest()  # pyright: ignore[reportArgumentType]
        for split in STYLES
        for index in range(100)
    ]
    assert len(set(hashes)) == 100 * len(STYLES)


def test_the_curriculum_draws_no_more_objects_than_asked_for():
    assert max(len(make_scene(index, "train", 2).objects) for index in range(40)) == 2


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_pretraining_never_sees_a_new_pair_in_a_picture_or_a_word(split):
    words = {f" {color} {shape}" for color, shape in NEW_PAIRS}
    for index in range(150):
        scene = make_scene(index, split)
        assert not any((o.color, o.shape) in NEW_PAIRS for o in scene.objects)
        asked = [ask(kind, rng(index), scene) for kind in KINDS]
        texts = [text for one in asked if one for text in (one.question, one.answer, *one.labels)]
        imagined = questions.imagine_relation(rng(index), axis=0).question
        assert not any(word in f" {text}" for word in words for text in (*texts, imagined))


def test_each_harder_split_is_harder_in_its_own_way():
    drawn = {split: [make_scene(index, split) for index in range(60)] for split in ("test", "more", "smaller")}
    across = {
        split: [max(o.box.x2 - o.box.x1, o.box.y2 - o.box.y1) for s in scenes for o in s.objects]
        for split, scenes in drawn.items()
    }
    assert max(across["smaller"]) < min(across["test"])
    assert {len(scene.objects) for scene in drawn["more"]} >= {6, 7, 8}
    assert max(len(scene.objects) for scene in drawn["test"]) == 5


@pytest.mark.parametrize("split", ["more", "smaller", "new_pairs"])
def test_questions_on_a_harder_split_are_about_what_makes_it_harder(split):
    for question in held_out(("relation", "count"), 25, split):
        new = [f"{color} {shape}" for color, shape in NEW_PAIRS]
        if split == "new_pairs":
            assert question.boxes
            assert question.kind == "count" or any(name in question.question for name in new)
        if split == "more" and "objects" in question.question and "any objects are" in question.question:
            assert int(question.answer) >= 6


# --- questions


def covered(scene: Scene, label: str) -> list[Shape]:
    """Objects by a reading of the label that the generator does not share."""
    label = label.removesuffix("s")
    words = [word for word in label.split() if word != "object"]
    return [o for o in scene.objects if all(word in (o.color, o.shape) for word in words)]


def asked_about(kind: questions.Kind) -> list[tuple[Scene, questions.Asked]]:
    pairs = ((scene, ask(kind, rng(index), scene)) for index, scene in enumerate(SCENES))
    return [(scene, asked) for scene, asked in pairs if asked is not None]


def test_a_relation_answer_follows_from_the_middles_of_the_boxes():
    pairs = asked_about("relation")
    assert len(pairs) > 5
    for scene, asked in pairs:
        words = asked.question.removesuffix("?").replace(" to the", "").split()
        (a,), (b,) = covered(scene, " ".join(words[2:4])), covered(scene, " ".join(words[-2:]))
        (ax, ay), (bx, by) = middle(a.box), middle(b.box)
        holds = {"left": ax < bx, "right": ax > bx, "above": ay < by, "below": ay > by}[words[4]]
        assert asked.answer == ("yes" if holds else "no"), asked.question
        assert asked.boxes == (a.box, b.box)


def test_a_relation_is_true_by_hand():
    assert questions.true_relation(RED.box, BLUE.box, axis=0) == "left of"  # 20 < 35
    assert questions.true_relation(BLUE.box, RED.box, axis=0) == "right of"
    assert questions.true_relation(RED.box, BLUE.box, axis=1) == "above"  # 30 < 70
    assert questions.true_relation(BLUE.box, RED.box, axis=1) == "below"


def test_a_count_is_the_number_of_objects_of_the_class_and_of_boxes():
    for scene, asked in asked_about("count"):
        label = asked.question.removeprefix("How many ").split(" are ")[0].split(" do ")[0]
        assert asked.answer == str(len(covered(scene, label))) == str(len(asked.boxes)), asked.question


def test_an_attribute_is_that_of_the_only_object_it_can_mean():
    for scene, asked in asked_about("attribute"):
        (thing,) = covered(scene, asked.question.removesuffix("?").split(" is the ")[1])
        assert asked.answer == (thing.color if "What color" in asked.question else thing.shape)
        assert asked.boxes == (thing.box,)


def test_existence_is_yes_exactly_where_there_is_one():
    answers = []
    for scene, asked in asked_about("existence"):
        name = asked.question.removeprefix("Is there a ").removesuffix("?")
        assert (asked.answer == "yes") == bool(covered(scene, name)) == bool(asked.boxes)
        answers.append(asked.answer)
    assert {"yes", "no"} == set(answers)


def test_where_is_answered_by_the_box_of_the_only_object_it_can_mean():
    for scene, asked in asked_about("where"):
        (label,) = asked.labels
        (thing,) = covered(scene, label)
        assert asked.answer == box_text(thing.box, label)
        assert parse(asked.answer).boxes == (thing.box,)


def test_where_all_lists_every_object_from_left_to_right():
    scene = Scene(SCENES[0].image, (BLUE, RED), SCENES[0].mask)
    listed = [questions.ask_where_all(rng(k), scene.objects) for k in range(30)]
    both = next(asked for asked in listed if asked is not None and asked.labels == ("object", "object"))
    assert both.question == "Find all the objects."
    assert both.boxes == (RED.box, BLUE.box)


def test_an_imagined_relation_is_true_of_its_boxes():
    for k in range(50):
        asked = questions.imagine_relation(rng(k), axis=k % 2)
        true = questions.true_relation(asked.boxes[0], asked.boxes[1], axis=k % 2)
        words = true if asked.answer == "yes" else OPPOSITE[true]
        assert words.split()[0] in asked.question.split()


def test_told_the_other_way_the_boxes_change_places_and_nothing_else_does():
    asked = questions.imagine_relation(rng(3), axis=1)
    turned = questions.told_the_other_way(asked)
    first, second = (questions.box_text(box, name) for box, name in zip(asked.boxes, asked.labels, strict=True))
    told, other = ("".join(text for text, _ in one.found) for one in (asked, turned))
    assert told.index(first) < told.index(second)
    assert other.index(second) < other.index(first)
    assert (turned.question, turned.answer, turned.sought, turned.concluded) == (
        asked.question,
        asked.answer,
        asked.sought,
        asked.concluded,
    )


def test_held_out_questions_are_the_same_every_time():
    first, second = (held_out(["count", "where"], 5) for _ in range(2))
    assert [(q.question, q.answer, q.boxes) for q in first] == [(q.question, q.answer, q.boxes) for q in second]
    assert [q.kind for q in first] == ["count"] * 5 + ["where"] * 5


def test_one_object_alone_does_not_tell_a_relation():
    held = held_out(["relation"], 300)
    rule, yes = [], []
    for question in held:
        word = next(word for word in ("left", "right", "above", "below") if f" {word} " in question.question)
        place = middle(question.boxes[0])[word in ("above", "below")]
        rule.append(((place < SIDE / 2) == (word in ("left", "above"))) == (question.answer == "yes"))
        yes.append(question.answer == "yes")
    assert np.mean(rule) < 0.68  # 0.62 in the long run, and a standard error of 0.03 here
    assert 0.42 < np.mean(yes) < 0.58


# --- embedded triplets


def test_the_embedded_triplets_are_ten_relations_and_ten_counts_that_the_script_makes(tmp_path):
    rows = [json.loads(line) for line in TRIPLETS.read_text().splitlines()]
    assert [row["dataset"] for row in rows] == ["shapes_relation"] * 10 + ["shapes_count"] * 10
    assert sorted(row["answer"] for row in rows[10:]) == sorted("01234" * 2)
    made = examples.write_triplets(tmp_path / "triplets.jsonl")
    assert made.read_text() == TRIPLETS.read_text()
    for row in rows:
        assert (tmp_path / row["image"]).read_bytes() == (TRIPLETS.parent / row["image"]).read_bytes()


# --- tokenizer, processor, folder


@pytest.fixture(scope="module")
def tokenizer():
    from grit_lite.tiny.build import build_tokenizer

    return build_tokenizer()


def test_a_tokenizer_that_learns_its_words_again_is_the_same(tokenizer):
    from grit_lite.tiny import build

    build._words.cache_clear()
    assert build.build_tokenizer().backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Path:
    from grit_lite.tiny.build import save_untrained

    return save_untrained(tmp_path_factory.mktemp("untrained"))


@pytest.fixture(scope="module")
def processor(untrained):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(untrained)


def test_every_number_up_to_255_is_one_token(tokenizer):
    assert [number for number in range(256) if len(tokenizer(str(number))["input_ids"]) != 1] == []


def test_a_box_is_twelve_tokens(tokenizer):
    assert len(tokenizer(box_text(Box(3, 14, 110, 112), "red circle"))["input_ids"]) == 12


@pytest.mark.parametrize(
    "text", ["<think> I see {x}. </think>", "zebra 日本 300 007", '{"bbox_2d": [1, 2]}', " \n\n a"]
)
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_two_builds_from_one_seed_are_equal_and_from_two_seeds_are_not(untrained, tmp_path):
    from grit_lite.tiny.build import save_untrained

    weights = [
        (folder / "model.safetensors").read_bytes()
        for folder in (untrained, save_untrained(tmp_path / "0"), save_untrained(tmp_path / "1", seed=1))
    ]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_the_folder_says_that_boxes_are_pixels_of_the_resized_picture(untrained):
    said = json.loads((untrained / "grit_lite.json").read_text())
    assert said["family"] == "qwen3_vl"
    assert said["box_space"] == "resized_pixels"
    assert said["prompt"]["direct"] == "\nQuestion: {question}"
    assert said["prompt"]["grounded"] == GRIT_PROMPT.grounded


def test_the_prompt_is_one_user_turn_with_the_picture_first(processor):
    content = [{"type": "image"}, {"type": "text", "text": "\nQuestion: Why?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    assert prompt == f"<|im_start|>user\n{picture}\nQuestion: Why?<|im_end|>\n<|im_start|>assistant\n"


# --- training rows


def test_the_styles_share_out_all_answers_and_only_full_ones_are_valid_often():
    from grit_lite.tiny.rows import STYLES, styled

    asked = questions.relation(rng(1), RED, BLUE, true="left of", asked="right of")
    valid = {name for name in STYLES if has_valid_format(parse("".join(text for text, _ in styled(asked, name))))}
    assert sum(STYLES.values()) == pytest.approx(1.0)
    assert valid == {"full", "no_boxes"}
    assert sum(STYLES[name] for name in valid) <= 0.2


def test_a_full_chain_reads_as_the_answer_it_is():
    from grit_lite.tiny.rows import full_chain

    asked = questions.relation(rng(1), RED, BLUE, true="left of", asked="right of")
    read = parse("".join(text for text, _ in full_chain(asked)))
    assert read.boxes == (RED.box, BLUE.box)
    assert read.rethink == "The red circle is left of the blue square."
    assert read.answer == "no"


def test_a_chain_gives_no_weight_to_what_decides_the_form(tokenizer):
    from grit_lite.tiny.rows import CHAIN_WEIGHTS, Packer, full_chain

    packer, row = Packer(tokenizer), Packer(tokenizer).image_row()
    chain = full_chain(questions.relation(rng(1), RED, BLUE, true="left of", asked="right of"))
    packer.ask(row, "\nQuestion: ?", [("chain", chain, CHAIN_WEIGHTS)])
    weighed = tokenizer.decode([t for t, w in zip(row.labels, row.weights, strict=True) if w > 0])
    assert "<" not in weighed.replace("<|im_end|>", "")
    assert "10, 20, 30, 40" in weighed
    assert " left of" in weighed


def test_a_conversation_is_measured_in_the_words_it_was_trained_on(tokenizer, untrained):
    from grit_lite.tiny.measure import Asker, true_turns
    from grit_lite.tiny.rows import Packer

    asked = questions.relation(rng(1), RED, BLUE, true="left of", asked="right of")
    earlier = questions.where_each_is(rng(9), asked)
    packer, row = Packer(tokenizer), Packer(tokenizer).image_row()
    packer.ask_in_turns(row, earlier, asked)
    trained_on = tokenizer.decode(row.ids).replace("<|image_pad|>" * 49, "<|image_pad|>")

    turns = [(one.question, one.answer) for one in earlier]
    assert trained_on == Asker(untrained).prompt(asked.question, "direct", turns, image=True) + "no"
    assert [tokenizer.decode([label]) for label, w in zip(row.labels, row.weights, strict=True) if w > 0] == ["no"]
    question = questions.SceneQuestion(asked.question, "no", "relation", asked.boxes, SCENES[0].image)
    assert [answer for _, answer in true_turns(question)] == [answer for _, answer in turns]
    assert [answer for _, answer in true_turns(question, -1)] == [answer for _, answer in turns[::-1]]


@pytest.mark.parametrize("turn", [lambda asked: asked, questions.told_the_other_way])
def test_a_chain_that_is_read_weighs_how_it_ends_and_none_of_the_boxes(tokenizer, turn):
    from grit_lite.tiny.rows import Packer

    asked = turn(questions.relation(rng(1), RED, BLUE, true="left of", asked="right of"))
    packer, row = Packer(tokenizer), Packer(tokenizer).text_row()
    packer.ask_to_read(row, asked, "grounded", filler=0.2)
    weighed = [(tokenizer.decode([label]), w) for label, w in zip(row.labels, row.weights, strict=True) if w > 0]
    assert not any(text.strip().isdigit() for text, _ in weighed)
    assert [text for text, _ in weighed][-4:] == [" square", ".", " no", "<|im_end|>"]
    assert dict(weighed)["."] == dict(weighed)["<|im_end|>"] == 0.2


def test_told_the_other_way_names_the_second_object_first():
    asked = questions.relation(rng(1), RED, BLUE, true="left of", asked="right of")
    turned = questions.told_the_other_way(asked)
    assert (turned.question, turned.answer) == (asked.question, asked.answer)
    assert "".join(text for text, _ in turned.found).startswith(" The blue square is at")
    assert [one.boxes for one in questions.where_each_is(rng(1), turned)] == [(BLUE.box,), (RED.box,)]
    assert [one.labels for one in questions.where_each_is(rng(1), turned)] == [("blue square",), ("red circle",)]


@pytest.mark.parametrize("row_of", ["picture_row", "told_row"])
def test_a_packed_row_computes_what_the_model_computes_for_each_answer_alone(row_of, tokenizer, processor):
    """Pixels, token ids, positions (get_rope_index) and hidden states are those of the ordinary path."""
    import torch

    from grit_lite.tiny import pretrain
    from grit_lite.tiny.build import build_model
    from grit_lite.tiny.learner import BatchedVision, Packed, hidden_states, to_patches
    from grit_lite.tiny.rows import Packer, lay_out

    model, packer, scene = build_model(tokenizer), Packer(tokenizer), SCENES[3]
    row = getattr(pretrain, row_of)(packer, pretrain.Stage("test", 1, 1, (0, 0), turned=0.5), scene, rng(5))
    patches = torch.from_numpy(to_patches(np.asarray(scene.image)[None]))
    segments, parents = np.array(row.segments), np.array(row.parents)
    assert row.marks
    with torch.no_grad():
        packed = hidden_states(model, Packed.on("cpu", lay_out([row])), BatchedVision(model)(patches)[1])
        for _, first, _ in row.marks:
            seen = np.flatnonzero(np.isin(segments, [0, segments[first], parents[first]]))
            ids = [row.ids[at] for at in seen]
            text = tokenizer.decode(ids).replace("<|image_pad|>" * 49, "<|image_pad|>")
            inputs = processor(text=[text], images=[scene.image], return_tensors="pt")
            assert inputs["input_ids"][0].tolist() == ids
            torch.testing.assert_close(inputs["pixel_values"], patches[0], atol=1e-6, rtol=0)
            positions, _ = model.model.get_rope_index(
                inputs["input_ids"], inputs["mm_token_type_ids"], inputs["image_grid_thw"]
            )
            assert (positions[:, 0].numpy() == np.concatenate(row.positions, axis=1)[:, seen]).all()
            alone = model.model(**inputs).last_hidden_state[0]
            torch.testing.assert_close(packed[seen], alone, atol=2e-5, rtol=0)


def test_being_off_by_one_pixel_costs_less_than_being_off_by_twenty():
    import torch

    from grit_lite.tiny.learner import soft_number_loss

    logits = torch.full((3, 113), -9.0)
    for row, guess in enumerate((50, 51, 70)):
        logits[row, guess] = 0.0
    exact, near, far = soft_number_loss(logits, torch.tensor([50, 50, 50])).tolist()
    assert exact < near < far


def test_orthogonalised_matrices_have_nearly_orthonormal_rows():
    import torch

    from grit_lite.tiny.learner import orthogonalised

    values = torch.linalg.svdvals(orthogonalised(torch.randn(2, 16, 48, generator=torch.manual_seed(0))))
    assert values.min() > 0.5
    assert values.max() < 1.5


@pytest.mark.parametrize("multiplies_bfloat16", [True, False])
def test_a_processor_that_would_emulate_bfloat16_computes_in_float32(monkeypatch, multiplies_bfloat16):
    import torch

    from grit_lite.tiny.learner import mixed_precision, orthogonalised, quick_dtype

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: multiplies_bfloat16)
    with mixed_precision("cpu"):
        out = torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2))
    assert out.dtype == quick_dtype("cpu") == (torch.bfloat16 if multiplies_bfloat16 else torch.float32)
    assert quick_dtype("cuda") is torch.bfloat16
    rows = orthogonalised(torch.randn(1, 8, 16, generator=torch.manual_seed(0)))
    assert torch.equal(rows, rows.bfloat16().float()) is multiplies_bfloat16


# --- pre-training


@pytest.fixture
def few(monkeypatch):
    """Little is validated, and little read in a step."""
    from grit_lite.tiny import pretrain

    monkeypatch.setattr(pretrain, "VALIDATION_PICTURES", 2)
    monkeypatch.setattr(pretrain, "READING_ROWS", 2)


def small_stages():
    from grit_lite.tiny.pretrain import Stage

    return (
        Stage("see", steps=1, batch=2, rate=(1e-3, 1e-3), talks=False),
        Stage("talk", steps=2, batch=2, rate=(1e-3, 0.0), most_objects=2, full_scenes=0.5, reading=0.4),
    )


def test_a_pretraining_that_was_stopped_ends_where_an_uninterrupted_one_ends(few, tmp_path):
    import torch

    from grit_lite.tiny.pretrain import pretrain

    whole = pretrain(tmp_path / "whole", stages=small_stages())
    for _ in range(3):  # no minutes: one step each
        parts = pretrain(tmp_path / "parts", resume=True, minutes=0, stages=small_stages())
    assert (parts.stage, parts.updates) == (whole.stage, whole.updates) == (2, 3)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, parts.model.state_dict()[name]), name
        assert torch.equal(whole.average[name], parts.average[name]), name


def test_pretraining_leaves_a_folder_that_loads_and_says_what_made_it(few, tmp_path, capsys):
    from transformers import AutoModelForImageTextToText

    from grit_lite.tiny import pretrain

    pretrain.main(["--output", str(tmp_path), "--minutes", "0"], stages=small_stages())
    weights = tmp_path / "weights"
    assert capsys.readouterr().out.splitlines()[-1] == str(weights)
    said = json.loads((weights / "pretraining.json").read_text())
    assert [stage["name"] for stage in said["stages"]] == ["see", "talk"]
    assert said["sha256"] == hashlib.sha256((weights / "model.safetensors").read_bytes()).hexdigest()
    assert sum(p.numel() for p in AutoModelForImageTextToText.from_pretrained(weights).parameters()) == 2_648_064


def test_a_stage_that_does_not_look_begins_with_a_folder_of_weights_and_leaves_the_vision_tower(few, tmp_path):
    import torch
    from transformers import AutoModelForImageTextToText

    from grit_lite.tiny import pretrain

    stages = (*small_stages(), without_looking())
    pretrain.main(
        ["--output", str(tmp_path), "--weights", str(WEIGHTS), "--begin-at", "tell", "--minutes", "0"], stages=stages
    )
    assert json.loads((tmp_path / "weights" / "pretraining.json").read_text())["kept_share"] is None
    pretrain.main(["--output", str(tmp_path), "--resume"], stages=stages)
    before, after = (
        AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (WEIGHTS, tmp_path / "weights")
    )
    assert all(torch.equal(before[name], value) for name, value in after.items() if ".visual." in name)
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    record, begun = (
        json.loads((folder / "pretraining.json").read_text()) for folder in (tmp_path / "weights", WEIGHTS)
    )
    assert record["begun_with"]["sha256"] == record["begun_with"]["kept_sha256"] == begun["sha256"]
    assert (record["begun_with"]["stage"], record["kept_share"]) == ("tell", pretrain.KEPT)
    rows = (tmp_path / "pretrain.jsonl").read_text().splitlines()
    assert [json.loads(row)["stage"] for row in rows] == ["tell", "tell", "average"]


def without_looking():
    from grit_lite.tiny.pretrain import Stage

    return Stage("tell", 2, 2, (1e-3, 1e-3), looks=False, told=1.0, turns=1, reading=0.5)


def test_what_is_learned_without_looking_is_averaged_with_what_was_there_before(few, tmp_path, monkeypatch):
    import torch

    from grit_lite.tiny import pretrain

    stages, average = (*small_stages(), without_looking()), {}
    for kept in (0.0, 0.4, 1.0):
        monkeypatch.setattr(pretrain, "KEPT", kept)
        average[kept] = pretrain.pretrain(tmp_path / str(kept), stages=stages).average
    before = pretrain.pretrain(tmp_path / "before", stages=small_stages()).average
    expected = {name: value.lerp(before[name], 0.4) for name, value in average[0.0].items()}
    assert all(torch.equal(average[0.4][name], value) for name, value in expected.items())
    assert all(torch.equal(average[1.0][name], value) for name, value in before.items())
    assert any(not torch.equal(average[0.0][name], value) for name, value in before.items())


def test_weights_may_be_averaged_with_those_of_another_folder(few, tmp_path, monkeypatch):
    import torch
    from transformers import AutoModelForImageTextToText

    from grit_lite.tiny import pretrain

    other = pretrain.export(pretrain.new_learner(small_stages(), 7, "cpu"), tmp_path / "other")
    monkeypatch.setattr(pretrain, "KEPT", 1.0)
    begun = {"stages": (*small_stages(), without_looking()), "weights": WEIGHTS, "begin_at": "tell", "kept": other}
    pretrain.pretrain(tmp_path / "run", **begun, minutes=0)
    learner = pretrain.pretrain(tmp_path / "run", stages=begun["stages"], resume=True)
    record, average = learner.begun_with, learner.average
    assert record["kept_sha256"] == json.loads((other / "pretraining.json").read_text())["sha256"]
    saved = AutoModelForImageTextToText.from_pretrained(other, dtype=torch.float32).state_dict()
    assert all(torch.equal(average[name], value) for name, value in saved.items())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--weights", str(WEIGHTS)], "--weights and --begin-at need each other"),
        (["--begin-at", "blend"], "--weights and --begin-at need each other"),
        (["--weights", str(WEIGHTS), "--begin-at", "settle"], "invalid choice: 'settle'"),
        (["--kept", str(WEIGHTS)], "--kept needs --weights"),
    ],
)
def test_weights_to_begin_with_need_a_stage_to_begin_at_that_does_not_look(given, said, tmp_path, capsys):
    from grit_lite.tiny import pretrain

    with pytest.raises(SystemExit):
        pretrain.main(["--output", str(tmp_path), *given])
    assert said in capsys.readouterr().err


# --- the shipped weights


def test_the_shipped_weights_are_small_and_are_the_recorded_ones():
    weights = (WEIGHTS / "model.safetensors").read_bytes()
    assert len(weights) <= 10_000_000
    assert json.loads((WEIGHTS / "pretraining.json").read_text())["sha256"] == hashlib.sha256(weights).hexdigest()


def test_the_shipped_weights_say_that_they_were_made_by_the_recipe_as_it_is():
    from dataclasses import asdict

    from grit_lite.tiny.pretrain import KEPT, STAGES

    record = json.loads((WEIGHTS / "pretraining.json").read_text())
    assert record["stages"] == json.loads(json.dumps([asdict(stage) for stage in STAGES]))
    assert record["kept_share"] == KEPT


def test_the_shipped_tokenizer_is_the_one_that_is_built(tokenizer):
    from transformers import AutoTokenizer

    shipped = AutoTokenizer.from_pretrained(WEIGHTS)
    assert shipped.get_vocab() == tokenizer.get_vocab()


def test_the_shipped_weights_keep_their_floors():
    from grit_lite.tiny.measure import FLOORS, MOST_VALID_FORMAT

    measured = json.loads((WEIGHTS / "measured.json").read_text())
    assert measured["questions_per_kind"] == 1000
    assert all(measured[name] >= floor for name, floor in FLOORS.items())
    assert measured["valid_format_greedy"] <= MOST_VALID_FORMAT


def test_the_readme_of_the_weights_says_what_was_measured():
    measured = json.loads((WEIGHTS / "measured.json").read_text())
    names = ("attribute", "count", "existence", "where_iou", "where_iou_above_half", "relation")
    names += ("told", "told_turned", "reading", "reading_turned", "relation_told_boxes", "relation_told_boxes_turned")
    names += ("relation_after_turns", "relation_after_turns_turned", "chain_relation_after_true_boxes")
    names += ("relation_after_bare_boxes", "chain_relation", "chain_relation_names", "chain_relation_iou")
    names += ("chain_count", "chain_count_names", "chain_count_iou", "valid_format_greedy", "valid_format_sampled")
    harder = ("chain_relation", "chain_relation_iou", "count", "chain_count")
    on_harder = (f"{split}_{name}" for split in ("more", "smaller", "new_pairs") for name in harder)
    told = (*names, "full_chain_sampled", *on_harder)
    tables = (WEIGHTS / "README.md").read_text().partition("**Measured**")[2].partition("Relation answers")[0]
    assert re.findall(r"\d\.\d{3}", tables) == [f"{measured[name]:.3f}" for name in told]


def test_the_shipped_weights_do_as_measured_on_a_handful(capsys):
    from grit_lite.tiny import measure

    measure.main(["--per-kind", "12", "--split", "validation"])
    found = json.loads(capsys.readouterr().out)
    assert found["attribute"] >= 0.7
    assert found["count"] >= 0.7
    assert found["where_iou"] >= 0.6
    assert found["chain_relation"] >= 0.6
    assert found["valid_format_greedy"] <= 0.2


def test_the_shipped_weights_load_in_four_bits():
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["model.visual", "lm_head"]
    )
    model = AutoModelForImageTextToText.from_pretrained(WEIGHTS, quantization_config=config)
    four_bit = [name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"]
    assert len(four_bit) == 4 * 7  # of each of four layers: q, k, v, o, gate, up, down
    assert all("language_model" in name for name in four_bit)


def test_a_chain_is_begun_with_what_the_question_asks_about():
    from grit_lite.tiny.measure import chain_opening

    image = SCENES[0].image
    said = [
        chain_opening(questions.SceneQuestion(question, "", kind, (), image))
        for question, kind in (
            ("Is the red circle to the left of the blue square?", "relation"),
            ("How many red circles are there?", "count"),
            ("How many objects do you see?", "count"),
        )
    ]
    assert said == [
        "<think> I look for the red circle and the blue square. The",
        "<think> I look for the red circles. I see",
        "<think> I look for the objects. I see",
    ]


def test_kinds_are_the_five_that_are_documented():
    assert KINDS == ("relation", "count", "attribute", "existence", "where")
    assert len(COLORS) == 6
    assert len(SHAPES) == 3
