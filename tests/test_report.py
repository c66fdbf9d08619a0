"""A run folder becomes one self-contained page, whatever the folder lacks and whatever a model wrote into it."""

import base64
import io
import json
import math
import random
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from grit_lite.boxes import PALETTE, Box
from grit_lite.errors import UsageError
from grit_lite.evaluate.summary import summarise
from grit_lite.pages.completions import pieces
from grit_lite.pages.outcomes import examples, outcome
from grit_lite.pages.table import Gap, lines
from grit_lite.pages.wording import duration, number, percent
from grit_lite.recipe import Recipe
from grit_lite.report import write_report
from grit_lite.report.completions import timelines
from grit_lite.report.curves import curves, start_and_end, ticks
from grit_lite.report.evaluation import findings
from grit_lite.run import write_json

QUESTIONS = [
    ("Is the red circle left of the blue square?", "yes", "shapes_relation"),
    ("How many green triangles are there?", "2", "shapes_count"),
    ("What colour is the star?", "purple", "shapes_attribute"),
    ("Is there a yellow square?", "no", "shapes_existence"),
]
BOXES = [[12.0, 30.0, 40.0, 58.0], [64.0, 34.0, 92.0, 62.0]]


def picture() -> Image.Image:
    image = Image.new("RGB", (112, 112), (244, 242, 236))
    pen = ImageDraw.Draw(image)
    pen.ellipse(BOXES[0], fill=(200, 40, 40))
    pen.rectangle(BOXES[1], fill=(40, 70, 200))
    return image


def chain(answer: str) -> str:
    return (
        "<think> the red circle is at [12, 30, 40, 58] and the blue square is at [64, 34, 92, 62] . </think> "
        f"<rethink> so the circle is further left . </rethink> <answer> {answer} </answer>"
    )


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def metrics(steps: int) -> list[dict]:
    draw = random.Random(0)
    rows = []
    for step in range(1, steps + 1):
        gain = 1 / (1 + math.exp(-(step - steps / 3) / 6))
        terms = {
            "tags": gain + draw.gauss(0, 0.05),
            "boxes": 0.5 * gain,
            "answer": 0.6 + 0.2 * gain + draw.gauss(0, 0.1),
        }
        rows.append(
            {
                "step": step,
                "reward": sum(terms.values()),
                **{f"reward/{name}": value for name, value in terms.items()},
                "groups_that_teach": draw.choice([0.25, 0.5, 0.75, 1.0]),
                "valid_format": gain,
                "completion_tokens": 20 + 40 * gain + draw.gauss(0, 2),
                "kl": 0.002 * step + abs(draw.gauss(0, 0.01)),
                "loss": draw.gauss(0, 0.02),
                "grad_norm": abs(draw.gauss(0.4, 0.1)),
                "lr": 2e-3,
            }
        )
    return rows


def sample(step: int, index: int, completion: str) -> dict:
    question, gold, dataset = QUESTIONS[index]
    scores = {"tags": 1.0, "boxes": 0.5, "count": 0.0, "answer": 1.0, "total": 2.5}
    return {
        "step": step,
        "triplet": f"t{index}",
        "image": f"images/t{index}.png",
        "question": question,
        "gold": gold,
        "dataset": dataset,
        "completion": completion,
        "boxes": BOXES if "[" in completion else [],
        "scores": scores,
        "advantage": 0.7,
    }


def evaluation_rows(n: int) -> dict[str, list[dict]]:
    draw = random.Random(1)
    rows: dict[str, list[dict]] = {"base_direct": [], "base": [], "tuned": []}
    right = {"base_direct": 0.82, "base": 0.3, "tuned": 0.85}
    for index in range(n):
        question, gold, dataset = QUESTIONS[index % 4]
        gold = draw.choice([gold, "3"])
        for system, part in rows.items():
            tuned, correct = system == "tuned", draw.random() < right[system]
            answer = gold if correct else "blue"
            row = {"system": system, "id": f"q{index}", "dataset": dataset, "question": question, "gold": gold}
            row |= {"size": [112, 112], "completion": chain(answer) if tuned else answer, "answer": answer}
            row |= {"boxes": BOXES if tuned else [], "correct": correct, "correct_lenient": correct}
            row |= {"valid_format": tuned, "union_iou": draw.betavariate(4, 2) if tuned else 0.0}
            row |= {"f1": float(draw.random() < 0.7) if tuned else 0.0, "tokens": 50 if tuned else 3, "finished": True}
            part.append(row)
    outcomes = [
        outcome({"before": before, "after": after})
        for before, after in zip(rows["base_direct"], rows["tuned"], strict=True)
    ]
    for index in examples(outcomes, count=12):
        for part in rows.values():
            part[index]["image"] = f"images/shapes-{index}.png"
    return rows


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished run: 60 steps, four triplets, an evaluation of 80 questions."""
    folder = tmp_path / "tiny-20260101-120000"
    (folder / "images").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(Recipe(name="tiny", steps=60, learning_rate=2e-3).text())
    data = {"source": "embedded", "sha256": "ab" * 32, "triplets": 20}
    data["by_dataset"] = {"shapes_count": 10, "shapes_relation": 10}
    facts = {"status": "done", "recipe": "tiny", "seconds": 372.0, "data": data, "changes": []}
    facts |= {"machine": {"host": "my-laptop", "pid": 4242, "system": "Linux", "python": "3.11.9", "cores": 2}}
    write_json(folder / "run.json", facts | {"versions": {"grit-lite": "0.1.0"}, "model": {"device": "cpu"}})
    write_lines(folder / "metrics.jsonl", metrics(60))
    timing = {
        "seconds": 5.1,
        "rollout": 3.0,
        "reward": 0.01,
        "update": 2.1,
        "tokens_per_second": 420,
        "memory_mib": 900,
    }
    write_lines(folder / "timing.jsonl", [{"step": step, **timing} for step in range(1, 61)])
    texts = {1: "it is at 12 30 and so on", 30: chain("no"), 60: chain("yes")}
    write_lines(folder / "samples.jsonl", [sample(step, i, text) for step, text in texts.items() for i in range(4)])
    for index in range(4):
        picture().save(folder / "images" / f"t{index}.png")
    rows = evaluation_rows(80)
    result = {"benchmark": "shapes", "split": "test", "n": 80, "settings": {"max_new_tokens": 128}}
    (folder / "eval" / "images").mkdir(parents=True)
    write_json(folder / "eval" / "shapes.json", result | summarise(rows))
    write_lines(
        folder / "eval" / "shapes.jsonl", [row for together in zip(*rows.values(), strict=True) for row in together]
    )
    for name in {row["image"] for row in rows["tuned"] if "image" in row}:
        picture().save(folder / "eval" / name)
    return folder


class Page(HTMLParser):
    """The parsed page: every tag with its attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def replace_samples(run: Path, completion: str, **other: Any) -> None:
    write_lines(run / "samples.jsonl", [sample(1, 0, completion) | other])


# --- one file


def test_the_page_needs_no_other_file_no_network_and_no_script(run):
    page = read(run)
    assert page.all("script") == page.all("link") == page.all("iframe") == page.all("object") == []
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert all(link["href"].startswith("#") for link in page.all("a"))
    assert "url(" not in (run / "report.html").read_text()
    assert "@import" not in (run / "report.html").read_text()


def test_the_page_forbids_the_browser_everything_but_its_own_style_and_pictures(run):
    policies = [
        meta["content"] for meta in read(run).all("meta") if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    ]


def test_every_link_leads_somewhere_on_the_page(run):
    page = read(run)
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {link["href"].removeprefix("#") for link in page.all("a")} <= ids
    assert {label["for"] for label in page.all("label")} <= ids


def test_a_right_answer_without_its_tag_is_not_called_wrong(run):
    path = run / "eval" / "shapes.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [row | {"correct": False, "correct_lenient": row["system"] == "base"} for row in rows]
    write_lines(path, kept)
    text = read(run).text
    assert text.count("right, untagged") == 12
    assert text.count("GRIT prompt wrong") == 12  # the tuned ones
    assert text.count("”, wrong") == 12  # the base asked directly


def test_what_nobody_scored_is_called_so_and_counted(run):
    path = run / "eval" / "shapes.jsonl"
    write_lines(
        path, [json.loads(line) | {"correct": None, "correct_lenient": None} for line in path.read_text().splitlines()]
    )
    text = read(run).text
    assert "0 were right and 0 wrong both times; 80 were not scored" in text
    assert text.count("GRIT prompt not scored") == 24


def test_every_kind_of_example_that_is_there_can_be_chosen(run):
    html = write_report(run).read_text()
    shown = set(re.findall(r'class="case (\w+)"', html))
    assert shown == {"fixed", "broken", "both_wrong", "both_right"}
    assert set(re.findall(r'id="show-0-(\w+)"', html)) == {"all", *shown}
    assert all(f"#show-0-{outcome}:checked ~ .case:not(.{outcome})" in html for outcome in shown)


def test_the_same_folder_gives_the_same_page(run):
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_the_page_opens_and_closes_its_elements_in_order(run):
    open_tags: list[str] = []

    class Nesting(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in {"meta", "img", "input", "br"} and not self.get_starttag_text().endswith("/>"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

        def handle_startendtag(self, tag, attrs):
            pass

    Nesting().feed(write_report(run).read_text())
    assert open_tags == []


def test_the_page_leads_to_the_gallery_that_lies_beside_the_rows(run):
    assert "All 80 questions" not in read(run).text
    (run / "eval" / "shapes.html").write_text("")
    page = read(run)
    assert "eval/shapes.html" in [link["href"] for link in page.all("a")]
    assert "All 80 questions with their pictures" in page.text


def test_of_many_kept_pictures_the_page_shows_24_and_every_outcome(run):
    path = run / "eval" / "shapes.jsonl"
    write_lines(path, [json.loads(line) | {"image": "images/shapes-0.png"} for line in path.read_text().splitlines()])
    html = write_report(run).read_text()
    shown = re.findall(r'class="case (\w+)"', html)
    assert (len(shown), set(shown)) == (24, {"fixed", "broken", "both_wrong", "both_right"})


def test_every_draw_of_a_question_counts(run):
    path = run / "eval" / "shapes.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    numbers = [int(row["id"][1:]) for row in rows]
    drawn = [row | {"id": f"q{k % 40}", "draw": k // 40} for row, k in zip(rows, numbers, strict=True)]
    write_lines(path, drawn)
    write_json(path.with_suffix(".json"), json.loads(path.with_suffix(".json").read_text()) | {"n": 40})
    said = read(run).text
    assert "Of the 80 draws of the 40 questions of shapes, tuning fixed" in said
    assert sum(map(int, re.findall(r"fixed (\d+) and broke (\d+).*?; (\d+) were right and (\d+)", said)[0])) == 80
    assert "· draw 2" in said


def test_an_example_about_several_images_says_that_it_shows_the_first(run):
    path = run / "eval" / "shapes.jsonl"
    write_lines(path, [json.loads(line) | {"more_images": ["a", "b"]} for line in path.read_text().splitlines()])
    assert "· the first of 3 images" in read(run).text


def test_beside_another_run_examples_are_held_against_it(run):
    path = run / "eval" / "shapes.json"
    rows = evaluation_rows(80)
    compared = {"base_direct": rows["base_direct"], "other": rows["tuned"], "tuned": rows["tuned"]}
    named = [row | {"system": system} for system, part in compared.items() for row in part]
    write_lines(path.with_suffix(".jsonl"), named)
    write_json(path, json.loads(path.read_text()) | summarise(compared))
    assert "tuning fixed 0 and broke 0, counted against other;" in read(run).text


# --- what it says


def test_the_page_says_what_was_trained_and_what_came_out(run):
    text = read(run).text
    assert "Thinking with boxes: tiny on 20 triplets" in text
    assert "60 steps of 4 questions with 8 completions each, 6 min 12 s in all" in text
    assert "On 80 held-out questions, 100.0 % of the tuned model’s completions have the full format" in text
    assert "95 % interval" in text


@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-VL-3B-Instruct", "/home/me/models/Qwen2.5-VL-3B-Instruct/"])
def test_the_title_names_the_model_without_its_owner_or_folder(run, model):
    (run / "recipe.yaml").write_text(Recipe(model=model).text())
    assert "Thinking with boxes: Qwen2.5-VL-3B-Instruct on 20 triplets" in read(run).text


def test_the_page_can_be_put_online_without_naming_the_machine(run):
    html = write_report(run).read_text()
    assert "my-laptop" not in html
    assert "4242" not in html
    assert str(run.parent) not in html


def test_settings_that_differ_from_the_defaults_stand_out(run):
    html = write_report(run).read_text()
    changed = re.findall(r'class="changed"><dt[^>]*>(\w+)</dt><dd>([^<]*)</dd>', html)
    assert changed == [("name", "tiny"), ("steps", "60"), ("learning_rate", "0.002")]


def test_the_gallery_shows_a_triplet_early_midway_and_late(run):
    text = read(run).text
    assert text.count("step 1 ") == text.count("step 30 ") == text.count("step 60 ") == 4


def test_the_page_gives_the_commands_the_versions_and_the_data_that_repeat_it(run):
    text = read(run).text
    for part in (f"grit-lite train --recipe {run.name}/recipe.yaml", "versions: grit-lite 0.1.0", "ab" * 32, "seed 0"):
        assert part in text


def test_a_dataset_at_the_level_of_guessing_is_named(run):
    path = run / "eval" / "shapes.json"
    result = json.loads(path.read_text())
    # half of the gold answers are "yes"
    result["systems"]["tuned"]["accuracy"]["shapes_relation"] = {"value": 0.55, "low": 0.4, "high": 0.7, "n": 20}
    path.write_text(json.dumps(result))
    assert "On shapes_relation the tuned model answers 55.0 % right (40.0 – 70.0). Always giving" in read(run).text


# --- what is missing


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no run to report on .* Name a folder of runs/"):
        write_report(tmp_path)


def test_a_run_without_evaluation_says_so(run):
    shutil.rmtree(run / "eval")
    text = read(run).text
    assert f"This run has not been evaluated. grit-lite eval {run.name}" in text
    assert "0.63 →" in text


def test_a_run_that_has_only_begun_has_a_page(run):
    for path in run.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_json(run / "run.json", {"status": "running"})
    text = read(run).text
    assert "This run is not finished: 0 of ? steps are recorded." in text
    assert "No step has been recorded" in text
    assert "samples.jsonl holds no completions yet" in text
    assert "There is no recipe.yaml" in text


@pytest.mark.parametrize(("status", "said"), [("failed", "This run failed"), ("stopped", "This run was stopped")])
def test_a_run_that_did_not_end_well_says_how_far_it_came_and_why(run, status, said):
    write_json(run / "run.json", {"status": status, "error": "the gradient is <not> finite"})
    assert f"{said}: 60 of 60 steps are recorded. the gradient is <not> finite" in read(run).text


def test_a_torn_last_line_is_not_a_row(run):
    whole = read(run).text
    for name in ("metrics.jsonl", "timing.jsonl", "samples.jsonl", "eval/shapes.jsonl"):
        with (run / name).open("a") as file:
            file.write('{"step": 61, "rewa')
    assert read(run).text == whole


def test_a_picture_that_is_gone_or_damaged_is_said_to_be(run):
    (run / "images" / "t0.png").unlink()
    (run / "images" / "t1.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    assert read(run).text.count("The picture is not in the run folder.") == 6


# --- hostile rows


@pytest.mark.parametrize(
    "words",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "</p></figure></section><svg onload=alert(1)>",
        "'\" onmouseover='alert(1)",
        "{{ 7 * 7 }} {% raw %}",
        "--></style><style>*{display:none}</style>",
    ],
)
def test_words_of_a_model_stay_words(run, words):
    honest = [(tag, sorted(attributes)) for tag, attributes in one_sample(run, "plain words", words="plain words").tags]
    page = one_sample(run, words, words=words)
    assert [(tag, sorted(attributes)) for tag, attributes in page.tags] == honest
    assert " ".join(words.split()) in page.text


def one_sample(run: Path, completion: str, words: str) -> Page:
    """The page of a run whose every text says `words`."""
    replace_samples(run, completion, question=words, gold=words, dataset=words, boxes=[])
    facts = {"status": "failed", "error": words, "changes": [words], "versions": {words: words}}
    (run / "run.json").write_text(json.dumps(facts))
    return read(run)


def test_controls_and_direction_marks_of_a_model_do_not_reach_the_page(run):
    words = "a\x1b]8;;http://x\x07b\u202ec\x9b31md\ud800e"
    one_sample(run, words, words)
    html = (run / "report.html").read_text()
    # completion, question twice (heading and picture), answer, dataset, error, change; the version's name and number
    assert html.count("abcd\ufffde") == 9
    assert not set("\x1b\x07\u202e\x9b") & set(html)


def test_a_megabyte_of_text_is_cut_and_says_how_much_is_missing(run):
    before = len(write_report(run).read_text())
    replace_samples(run, "[1, 2, 3, 4] " * 80_000)
    started = time.process_time()
    page = read(run)
    assert time.process_time() - started < 10
    assert len((run / "report.html").read_text()) < before
    assert "and 1,034,000 characters more" in page.text


@pytest.mark.parametrize(
    "boxes",
    [[[1, 2, 3]], [["a", 1, 2, 3]], [[math.nan, 0, 5, 5]], [[-1e9, -1e9, 1e9, 1e9]], [None], 7 * [[9, 9, 9, 9]]],
)
def test_boxes_that_are_none_do_not_stop_the_report(run, boxes):
    replace_samples(run, chain("yes"), boxes=boxes)
    assert len(read(run).all("img")) == 1 + 24


@pytest.mark.parametrize("size", [None, [], [112], [0, 0], ["112", "112"], [[112], 112], {"width": 112}, math.inf])
def test_a_size_that_is_none_does_not_stop_the_report(run, size):
    replace_samples(run, chain("yes"), size=size)
    assert len(read(run).all("img")) == 1 + 24


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/hostname", "images/../../secret.png", None, 7, ["t0.png"], "images"]
)
def test_only_pictures_of_the_run_folder_are_opened(run, name):
    picture().save(run.parent / "secret.png")
    replace_samples(run, "x", image=name)
    assert "The picture is not in the run folder." in read(run).text


# --- completions and pictures


def test_a_box_in_the_text_has_the_number_of_the_drawn_one():
    # the model wrote halves of pixels, the second box is not drawn, the third copies the first
    text = "[0, 0, 0, 0] at [5, 5, 10, 20] or [0, 0, 90, 90] , no [5, 5, 10, 20] and [20, 10, 30, 20]"
    drawn = [Box(10, 10, 20, 40), Box(40, 20, 60, 40)]
    boxes = [(piece.text, piece.box) for piece in pieces(text, drawn) if piece.kind == "box"]
    assert boxes == [
        ("[0, 0, 0, 0]", None),
        ("[5, 5, 10, 20]", 0),
        ("[0, 0, 90, 90]", None),
        ("[5, 5, 10, 20]", 0),
        ("[20, 10, 30, 20]", 1),
    ]


def test_the_pieces_of_a_completion_are_the_completion():
    text = chain("yes")
    cut = pieces(text, [])
    assert "".join(piece.text for piece in cut) == text
    assert [piece.text for piece in cut if piece.kind == "tag"][:2] == ["<think>", "</think>"]


def test_a_box_is_drawn_in_the_colour_that_marks_it_in_the_text(run):
    page = read(run)
    uris = [image["src"] for image in page.all("img")]
    drawn = {Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB").tobytes() for uri in uris}
    assert any(bytes(PALETTE[0]) * 3 in data and bytes(PALETTE[1]) * 3 in data for data in drawn)
    assert {mark["class"] for mark in page.all("mark")} == {"b0", "b1"}
    red, green, blue = PALETTE[1]
    assert f".b1 {{ --box: rgb({red}, {green}, {blue}); }}" in (run / "report.html").read_text()


def test_boxes_are_drawn_where_they_belong_on_a_smaller_copy(run):
    # the original is 1120 pixels wide, the copy 112: a box over the left half stays over the left half
    replace_samples(run, "x", boxes=[[0, 0, 560, 1120]], size=[1120, 1120])
    uri = read(run).all("img")[0]["src"]
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")
    row = [image.getpixel((x, image.height // 2)) for x in range(image.width)]
    columns = [x for x, colour in enumerate(row) if colour == PALETTE[0]]
    assert max(columns) == pytest.approx(image.width / 2, abs=4)


def test_of_a_group_the_first_completion_is_shown():
    rows = [sample(step, 0, f"{step} {nth}") for step in (1, 2, 3) for nth in ("first", "second")]
    assert [row["completion"] for row in timelines(rows)[0]] == ["1 first", "2 first", "3 first"]


def test_timelines_prefer_long_spans_and_every_dataset():
    rows = [sample(step, 0, "x") | {"triplet": f"a{i}"} for i in range(9) for step in (1, 50)]
    rows += [sample(step, 1, "x") for step in (10, 11)]
    assert {line[0]["dataset"] for line in timelines(rows)} == {"shapes_relation", "shapes_count"}
    assert len(timelines(rows)) == 4


# --- curves


def test_ticks_are_round_and_inside_the_range():
    assert ticks(0, 1, 4) == [0, 0.5, 1]
    assert ticks(0, 60, 5) == [0, 20, 40, 60]
    assert ticks(-0.05, 0.05, 4) == [-0.05, 0, 0.05]


def test_a_curve_rises_from_left_to_right_where_the_numbers_do():
    # 320 x 176 units, 38 left, 8 right, 8 above, 22 below; the range is 0 to 1.05
    (curve,) = curves([{"step": 1, "reward": 0.0}, {"step": 3, "reward": 1.0}])["reward"]
    assert curve.raw == "M38.0 154.0h0L312.0 15.0"


def test_a_curve_lifts_the_pen_where_a_value_is_missing():
    rows = [{"step": step, "reward": value} for step, value in enumerate([1.0, None, math.nan, 1.0, 1.0], 1)]
    assert curves(rows)["reward"][0].raw.count("M") == 2


def test_a_column_without_numbers_has_no_curve():
    drawn = curves(
        [{"step": 1, "reward": 1.0, "kl": None, "lr": 0.1, "mine": 2.0}, {"step": 2, "reward": 1.0, "lr": 0.1}]
    )
    assert [curve.title for curve in drawn["reward"] + drawn["training"]] == ["Total reward", "mine"]


def test_a_long_run_is_thinned_to_a_readable_number_of_points():
    (curve,) = curves([{"step": step, "reward": 1.0} for step in range(1, 5001)])["reward"]
    assert curve.raw.count("L") + 1 <= 400


def test_start_and_end_are_the_means_of_the_first_and_last_tenth():
    values = [0.0] * 5 + [1.0] * 5 + [None] + [5.0] * 80 + [2.0] * 5 + [4.0] * 5
    assert start_and_end(values) == (0.5, 3.0)
    assert start_and_end([None]) is None


# --- words and numbers


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (372, "6 min 12 s"), (7500, "2 h 05 min")]
)
def test_durations_are_said_as_people_say_them(seconds, said):
    assert duration(seconds) == said


def test_numbers_have_a_true_minus_sign_and_unknown_ones_a_dash():
    assert (percent(0.825), percent(-0.02, "+"), percent(None)) == ("82.5", "−2.0", "–")
    assert (number(-0.5), number(1.25, 1, "+"), number(None)) == ("−0.50", "+1.2", "–")


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.01, 0.1, "shown to help"), (-0.1, -0.01, "shown to harm"), (-0.1, 0.1, "no difference is shown")],
)
def test_a_difference_is_claimed_only_if_its_interval_leaves_zero_out(low, high, said):
    result = {"n": 8, **summarise(evaluation_rows(8))}
    row = next(row for row in result["paired"] if (row["metric"], row["against"]) == ("accuracy", "base_direct"))
    row |= {"low": low, "high": high, "p_holm": 0.012}
    assert said in findings(result)[2]
    assert "p 0.012" in findings(result)[2]
    row["p_holm"] = 0.06
    assert "no difference is shown" in findings(result)[2]


def test_format_and_boxes_are_not_held_against_a_direct_question():
    result = {"n": 16, **summarise(evaluation_rows(16))}
    line = next(line for line in lines(result) if line.label == "Valid format")
    assert (line.cells[0], line.differences[0]) == (("–", ""), Gap("–"))
    assert line.cells[2][0] == "100.0"
    assert line.differences[1].verdict == "better"


def test_a_difference_on_few_questions_is_shown_without_an_interval():
    result = {"n": 8, **summarise(evaluation_rows(8))}
    gap = next(line for line in lines(result) if line.label == "Valid format").differences[1]
    assert (gap.value, gap.interval, gap.verdict) == ("+100.0", "no interval", "")
    assert gap.tested.startswith("p 0.")


def test_an_evaluation_of_one_system_has_no_findings():
    rows = {"tuned": evaluation_rows(8)["tuned"]}
    assert findings({"n": 8, **summarise(rows)}) == []
