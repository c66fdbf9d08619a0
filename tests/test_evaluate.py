"""What three systems said becomes rows, cells and paired differences; the numbers are worked out by hand."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from grit_lite.answer import GRIT_PROMPT
from grit_lite.backends import Generated, ModelSpec, Request, open_backend
from grit_lite.boxes import Box, BoxSpace
from grit_lite.evaluate import aggregates, evaluate, from_triplet, shapes, short_ending, table
from grit_lite.evaluate.question import Question
from grit_lite.evaluate.summary import summarise
from grit_lite.pages.outcomes import examples, outcome
from grit_lite.pages.table import lines, verdict
from grit_lite.recipe import Recipe
from grit_lite.run import read_rows
from grit_lite.tiny.build import save_untrained
from grit_lite.triplets import Triplet

PROMPT = GRIT_PROMPT


class Scripted:
    """A backend whose answers are written down: by the question, by the prompt, and by whether the adapter is on.

    It sees every image at half its size, so a box that is not scaled back ends up in the wrong place.
    """

    name = "scripted"
    spec = ModelSpec("qwen3_vl", BoxSpace.RESIZED_PIXELS, PROMPT)

    def __init__(self, answers: dict[tuple[str, str, bool], str]) -> None:
        self.answers = answers
        self.batches: list[int] = []

    def describe(self) -> dict[str, str]:
        return {"model": "scripted"}

    def fingerprints(self) -> dict[str, str | None]:
        return {"weights": "w", "adapter": "a", "processor": "p"}

    def generate(
        self,
        requests: Sequence[Request],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        use_adapter: bool = True,
        batch_size: int = 32,
        seeds: Sequence[int] | None = None,
    ) -> list[Generated]:
        assert temperature == 0.0
        assert seeds is None
        self.batches.append(len(requests))
        return [self._completion(request, use_adapter) for request in requests]

    def _completion(self, request: Request, use_adapter: bool) -> Generated:
        text = self._said(request.text, use_adapter)
        half = (request.image.width // 2, request.image.height // 2)
        return Generated(text, tokens=len(text.split()), finished=True, resized=half)

    def _said(self, prompt: str, use_adapter: bool) -> str:
        for (question, style, adapter), text in self.answers.items():
            if prompt == PROMPT.render(question, style=style) and adapter == use_adapter:
                return text
        raise AssertionError(f"nobody expected to be asked {prompt!r} with use_adapter={use_adapter}")


def asked(number: int, question: str, answer: str, dataset: str, boxes: tuple[Box, ...] = ()) -> Question:
    image = Image.new("RGB", (100, 80), (number, 0, 0))
    return from_triplet(Triplet(f"t{number}", question, answer, image, (100, 80), boxes, dataset, "test"))


def chain(thought: str, answer: str) -> str:
    return f"<think> {thought} </think> <rethink> so </rethink> <answer> {answer} </answer>"


GOLD = (Box(20, 20, 60, 60),)
QUESTIONS = [
    asked(1, "Is it red?", "yes", "shapes_relation", GOLD),
    asked(2, "How many?", "2", "shapes_count"),
    asked(3, "Is it left?", "no", "shapes_relation", GOLD),
]
# In the model's unit, half pixels: [10, 10, 30, 30] is the gold box, [10, 10, 30, 20] its upper half.
ANSWERS = {
    ("Is it red?", "direct", False): "yes",
    ("How many?", "direct", False): "<answer> 3 </answer>",
    ("Is it left?", "direct", False): "no.",
    ("Is it red?", "grounded", False): "yes",
    ("How many?", "grounded", False): "there are [10, 10, 30, 30] and then more and more of them without an end",
    ("Is it left?", "grounded", False): "<think> no </think>",
    ("Is it red?", "grounded", True): chain("at [10, 10, 30, 30]", "yes"),
    ("How many?", "grounded", True): chain("one here, one there", "2"),
    ("Is it left?", "grounded", True): chain("at [10, 10, 30, 20]", "yes"),
}


@pytest.fixture
def result(tmp_path: Path) -> dict:
    return evaluate(Scripted(ANSWERS), QUESTIONS, benchmark="three", folder=tmp_path / "eval", max_new_tokens=64)


@pytest.fixture
def rows(result: dict, tmp_path: Path) -> dict[tuple[str, str], dict]:
    lines = (tmp_path / "eval" / "three.jsonl").read_text().splitlines()
    return {(row["system"], row["id"]): row for row in map(json.loads, lines)}


def test_every_system_has_a_row_for_every_triplet(rows):
    assert list(rows) == [(system, f"t{number}") for number in (1, 2, 3) for system in ("base_direct", "base", "tuned")]


def test_a_direct_answer_is_the_whole_text_unless_it_is_tagged(rows):
    assert rows["base_direct", "t1"]["answer"] == "yes"
    assert rows["base_direct", "t2"]["answer"] == "3"
    assert [rows["base_direct", id]["correct"] for id in ("t1", "t2", "t3")] == [True, False, True]


def test_without_an_answer_tag_only_the_lenient_score_counts(rows):
    row = rows["base", "t1"]
    assert (row["answer"], row["correct"], row["correct_lenient"]) == (None, False, True)


def test_boxes_are_rows_of_original_pixels(rows):
    assert rows["tuned", "t1"]["boxes"] == [[20, 20, 60, 60]]
    assert rows["tuned", "t1"]["union_iou"] == rows["tuned", "t1"]["f1"] == 1.0
    # 40 × 20 of 40 × 40 pixels
    assert rows["tuned", "t3"]["union_iou"] == 0.5


def test_without_gold_boxes_there_is_no_overlap_and_without_own_boxes_it_is_zero(rows):
    assert rows["tuned", "t2"]["union_iou"] is None
    assert rows["base", "t1"]["union_iou"] == 0.0


def test_accuracy_is_the_share_of_right_answers_in_all_and_by_dataset(result):
    systems = result["systems"]
    assert [systems[name]["accuracy"]["all"]["value"] for name in systems] == pytest.approx([2 / 3, 0, 2 / 3])
    assert systems["tuned"]["accuracy"]["shapes_relation"]["value"] == 0.5
    assert systems["tuned"]["accuracy"]["shapes_count"] == pytest.approx(
        {"value": 1.0, "low": 1 / (1 + 1.959964**2), "high": 1.0, "n": 1}
    )


def test_lenient_accuracy_counts_a_bare_short_answer(result):
    # yes is right; the rambling text and the thought of "no" without an answer behind it are not
    assert result["systems"]["base"]["accuracy_lenient"]["all"]["value"] == pytest.approx(1 / 3)


def test_overlap_is_the_mean_over_triplets_with_gold_boxes(result):
    cell = result["systems"]["tuned"]["union_iou"]
    assert (cell["value"], cell["n"]) == (0.75, 2)


def test_valid_format_is_the_share_with_every_tag(result):
    assert [system["valid_format"]["value"] for system in result["systems"].values()] == [0, 0, 1]


def test_the_tuned_model_is_compared_with_both_bases_on_the_same_rows(result):
    found = {(row["metric"], row["dataset"], row["against"]): row for row in result["paired"]}
    assert {row["of"] for row in result["paired"]} == {"tuned"}
    # against direct: right, wrong -> right, right -> wrong: nothing won in the sum
    assert found["accuracy", "all", "base_direct"]["difference"] == 0
    assert found["accuracy", "all", "base_direct"]["p"] == 1.0
    assert found["accuracy", "all", "base"]["difference"] == pytest.approx(2 / 3)
    assert found["accuracy", "shapes_count", "base_direct"]["difference"] == 1
    assert found["union_iou", "all", "base"]["difference"] == 0.75
    assert found["union_iou", "all", "base"]["n"] == 2
    assert found["valid_format", "all", "base"]["difference"] == 1


def test_the_summary_file_is_what_was_returned(result, tmp_path):
    assert json.loads((tmp_path / "eval" / "three.json").read_text()) == result
    assert result["settings"]["model"] == {"model": "scripted"}
    assert result["settings"]["prompts"] == {"direct": PROMPT.direct, "grounded": PROMPT.grounded}


def test_example_images_lie_beside_the_rows_that_name_them(rows, tmp_path):
    names = {row["image"] for row in rows.values()}
    assert len(names) == 3
    for name in names:
        with Image.open(tmp_path / "eval" / name) as image:
            assert image.size == (100, 80)


def test_the_files_do_not_depend_on_the_batch_size(result, tmp_path):
    backend = Scripted(ANSWERS)
    evaluate(backend, QUESTIONS, benchmark="three", folder=tmp_path / "one", max_new_tokens=64, batch_size=1)
    assert backend.batches == [1] * 9
    for name in ("three.json", "three.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "eval" / name).read_bytes()


def test_progress_is_told_after_every_batch(tmp_path):
    told = []
    evaluate(
        Scripted(ANSWERS),
        QUESTIONS,
        benchmark="three",
        folder=tmp_path,
        systems=("base", "tuned"),
        max_new_tokens=64,
        batch_size=2,
        progress=lambda *step: told.append(step),
    )
    assert told == [("base", 2, 3), ("base", 3, 3), ("tuned", 2, 3), ("tuned", 3, 3)]


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        ("yes", "yes"),
        ("It is a long way.\nred", "red"),
        ("<think> hm </think> <rethink> so </rethink> two circles", "two circles"),
        ("<think> hm </think>", None),
        ("one two three four five six seven", None),
        ("", None),
    ],
)
def test_a_short_last_line_outside_the_tags_is_taken_for_an_answer(text, ending):
    assert short_ending(text) == ending


def test_examples_take_every_outcome_in_turn_while_it_lasts():
    outcomes = ["both_right"] * 16 + ["fixed", "broken", "both_wrong", "both_wrong"]
    assert examples(outcomes, count=4) == examples(outcomes, count=4)
    chosen = examples(outcomes, count=6)
    assert [outcomes[index] for index in chosen] == [
        *("fixed", "broken", "both_wrong", "both_right", "both_wrong", "both_right")
    ]


def test_questions_about_one_image_are_drawn_together():
    # ten images with ten equal rows each: the interval must be that of ten draws, not of a hundred
    right = [float(image % 2) for image in range(10) for _ in range(10)]
    made = {
        system: [row(index, value if system == "tuned" else 0.0) for index, value in enumerate(right)]
        for system in ("base_direct", "tuned")
    }
    alone = summarise(made)["paired"][0]
    for rows in made.values():
        for index, one in enumerate(rows):
            one["cluster"] = str(index // 10)
    together = summarise(made)["paired"][0]
    assert together["high"] - together["low"] > 2.5 * (alone["high"] - alone["low"])


def row(index: int, correct: float) -> dict:
    part = {"correct": bool(correct), "correct_lenient": bool(correct), "valid_format": True}
    part |= {"id": str(index), "answer": "yes", "finished": True}
    return part | {"dataset": "d", "union_iou": None, "f1": None, "tokens": 1}


def test_a_number_that_is_no_mean_has_an_interval_and_a_difference_of_its_own():
    # 40 pairs, both rows of each alike: half of the pairs are right after tuning, a quarter before
    made = {
        system: [{**row(index, (index // 2) % every == 0), "cluster": str(index // 2)} for index in range(80)]
        for system, every in (("base", 4), ("tuned", 2))
    }
    found = summarise(made, aggregates.find(["pairs"]))
    cell = found["systems"]["tuned"]["pair_accuracy"]
    assert (cell["value"], cell["n"]) == (0.5, 40)  # pairs
    assert 0.3 < cell["low"] < 0.4 < 0.6 < cell["high"] < 0.7
    (difference,) = [one for one in found["paired"] if one["metric"] == "pair_accuracy"]
    assert difference["difference"] == 0.25
    assert 0 < difference["low"] < 0.25 < difference["high"] < 0.5


def test_each_draw_has_its_mean_and_the_cell_their_spread():
    made = {"tuned": [{**row(index // 2, index % 2), "draw": index % 2} for index in range(20)]}
    cell = summarise(made)["systems"]["tuned"]["accuracy"]["all"]
    assert (cell["value"], cell["n"], cell["draws"]) == (0.5, 20, [0.0, 1.0])
    assert cell["spread"] == pytest.approx(0.7071, abs=1e-4)
    assert (cell["low"], cell["high"]) == (0.0, 1.0)  # two draws that agree on nothing


def test_a_row_that_was_not_judged_is_counted_and_left_out():
    rows = [row(index, index < 3) for index in range(4)]
    rows[3] |= {"correct": None, "correct_lenient": None, "score": None, "answer": None, "finished": False}
    found = summarise({"base": [row(index, 0) for index in range(4)], "tuned": rows})
    assert found["systems"]["tuned"]["accuracy"]["all"]["n"] == 3
    assert found["failures"]["tuned"] == {"rows": 4, "without_answer": 1, "unfinished": 1, "not_judged": 1}
    wins = next(one for one in found["paired"] if one["metric"] == "accuracy")
    assert (wins["wins"], wins["losses"], wins["ties"], wins["n"]) == (3, 0, 0, 3)
    text = printed({"benchmark": "b", "n": 4, **found})
    assert "tuned: of 4 completions 1 without answer, 1 unfinished, 1 not judged." in " ".join(text.split())


def test_where_a_judge_scores_there_is_no_lenient_measure():
    rows = [{**row(index, index % 2), "correct_lenient": None, "score": float(index % 2)} for index in range(12)]
    found = summarise({"base": rows, "tuned": rows})
    assert "accuracy_lenient" not in found["systems"]["tuned"]
    assert {one["metric"] for one in found["paired"] if "p" in one} == {"accuracy", "valid_format"}
    assert "untagged" not in printed({"benchmark": "b", "n": 12, **found})
    assert "Right answers, leniently" not in [line.label for line in lines({"benchmark": "b", "n": 12, **found})]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [(None, None, "not_scored"), (True, None, "not_scored"), (None, True, "not_scored"), (False, True, "fixed")],
)
def test_what_was_not_scored_is_neither_wrong_nor_broken(before, after, said):
    assert outcome({"base": {"correct": before}, "tuned": {"correct": after}}) == said
    assert outcome({"tuned": {"correct": None}}) == "not_scored"
    assert sorted(examples(["not_scored", "fixed"], count=2)) == [0, 1]


def test_every_p_is_corrected_for_all_that_were_tested():
    made = {"base": [row(index, 0) for index in range(12)], "tuned": [row(index, index < 6) for index in range(12)]}
    paired = [one for one in summarise(made)["paired"] if "p" in one]
    assert len(paired) == 3  # two kinds of accuracy, and the format; the only dataset is not counted again
    assert all(one["p_holm"] == min(1.0, 3 * one["p"]) for one in paired if one["p"] < 0.1)
    assert {one["p"] for one in paired} == {2 / 2**6, 1.0}


def test_the_table_says_that_questions_share_images():
    rows = [{**row(index, index % 2), "cluster": str(index // 4)} for index in range(8)]
    text = printed({"benchmark": "b", "n": 8, **summarise({"base": rows, "tuned": rows})})
    assert "The 8 questions are about 2 images" in text


def test_another_run_stands_in_the_table_by_its_name():
    rows = {name: [row(index, index % 2) for index in range(8)] for name in ("base", "tiny-20260102-030405", "tuned")}
    text = printed({"benchmark": "b", "n": 8, **summarise(rows)})
    assert max(map(len, text.splitlines())) <= 80
    assert "tiny-" in text
    assert "− other" in text


def printed(result: dict) -> str:
    console = Console(width=80, file=io.StringIO())
    console.print(table(result))
    return console.file.getvalue()


def test_the_table_fits_80_columns_and_cuts_nothing(result):
    text = printed(result)
    assert max(map(len, text.splitlines())) <= 80
    assert "…\n" not in text
    for word in ("right answers", "shapes_relation", "valid format", "box overlap", "66.7 %", "0.75"):
        assert word in text


def test_the_table_shows_the_paired_difference_with_its_interval(result):
    line = next(line for line in printed(result).splitlines() if line.strip().startswith("valid format"))
    assert line.split()[-1] == "+100.0"
    assert "n 3" in printed(result)


def test_the_table_has_the_p_and_the_smallest_difference_that_could_be_seen():
    made = {
        name: [row(index, index < most) for index in range(40)] for name, most in (("base_direct", 10), ("tuned", 30))
    }
    found = {"benchmark": "b", "n": 40, **summarise(made)}
    text = printed(found)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("right answers") == 1
    # 20 won of 20 that differ: 2 / 2^20, times two tests and a third without a difference; standard error 8.0 points
    assert "p < 0.001" in text
    assert "min 22.4" in text
    assert "(Holm)" in text


@pytest.mark.parametrize(("won", "said"), [(2, ""), (5, ""), (8, "better"), (-8, "worse")])
def test_what_the_interval_alone_would_show_needs_a_small_p_as_well(won, said):
    ours, theirs = max(won, 0), max(-won, 0)
    made = {
        "base": [row(index, index < theirs) for index in range(40)],
        "tuned": [row(index, index < ours) for index in range(40)],
    }
    one = next(one for one in summarise(made)["paired"] if one["metric"] == "accuracy")
    if abs(won) == 5:
        assert one["low"] > 0
        assert one["p"] > 0.05
    assert verdict(one) == said


def test_a_benchmark_with_one_part_is_counted_once():
    made = {"base": [row(index, 0) for index in range(12)], "tuned": [row(index, 1) for index in range(12)]}
    found = summarise(made)
    assert list(found["systems"]["tuned"]["accuracy"]) == ["all"]
    assert [one["dataset"] for one in found["paired"] if one["metric"] == "accuracy"] == ["all"]


def test_less_of_what_is_made_up_is_better_and_more_of_yes_is_neither():
    row = {"low": 0.1, "high": 0.2}
    assert verdict({**row, "metric": "mmhal_hallucination_rate"}) == "worse"
    assert verdict({**row, "metric": "mmhal_rating"}) == "better"
    assert verdict({**row, "metric": "pope_yes_ratio"}) == ""


def test_the_table_of_one_system_has_no_differences(tmp_path):
    result = evaluate(
        Scripted(ANSWERS), QUESTIONS, benchmark="three", folder=tmp_path, systems=("tuned",), max_new_tokens=64
    )
    assert result["paired"] == []
    assert "66.7 %" in printed(result)


def test_shapes_asks_as_many_questions_of_each_kind_and_none_of_them_twice():
    triplets = shapes(40)
    kinds = ["shapes_relation", "shapes_count", "shapes_attribute", "shapes_existence"]
    assert [row.dataset for row in triplets] == [kind for kind in kinds for _ in range(10)]
    assert len({row.id for row in triplets}) == 40
    assert {row.split for row in triplets} == {"test"}
    assert all(row.boxes for row in triplets if row.dataset == "shapes_relation")


def test_shapes_asks_at_least_one_question_of_each_kind():
    few, more = shapes(1), shapes(8)
    assert len(few) == 4
    assert [row.question for row in few] == [row.question for row in more[::2]]


def test_a_real_model_gets_the_same_files_at_batch_size_1_and_16(tmp_path):
    import torch

    folder = save_untrained(tmp_path / "model")
    recipe = Recipe(model=str(folder), dtype="float32", max_pixels=112 * 112)
    backend = open_backend(recipe)
    backend.attach_lora(recipe)
    with torch.no_grad():  # a fresh adapter changes nothing; this one does
        for name, weight in backend.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    questions = [from_triplet(triplet) for triplet in shapes(8)]
    options = {"benchmark": "shapes", "systems": ("base", "tuned"), "max_new_tokens": 8}
    for size in (1, 16):
        evaluate(backend, questions, folder=tmp_path / str(size), batch_size=size, **options)
    for name in ("shapes.jsonl", "shapes.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "16" / name).read_bytes()
    lines = (tmp_path / "1" / "shapes.jsonl").read_text().splitlines()
    said = {row["completion"] for row in map(json.loads, lines)}
    assert len(said) >= 8  # the model does not say the same to everything, so equality means something


def test_rows_say_how_many_images_a_question_has_and_name_their_pictures(tmp_path):
    one, two = QUESTIONS[0], replace(QUESTIONS[1], images=(*QUESTIONS[1].images, Image.new("RGB", (30, 40))))
    evaluate(Scripted(ANSWERS), [one, two], benchmark="images", folder=tmp_path, max_new_tokens=64)
    first, *_, last = read_rows(tmp_path / "images.jsonl")
    assert (first["images"], "more_images" in first) == (1, False)
    assert (last["images"], len(last["more_images"])) == (2, 1)
    with Image.open(tmp_path / last["more_images"][0]) as kept:
        assert kept.size == (30, 40)
