"""Every question of an evaluation is on one page, whatever a model wrote; a reader finds it by outcome, word or key."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import pytest
from browser import Browser, needs_browser
from PIL import Image

from grit_lite.answer import parse
from grit_lite.boxes import Box
from grit_lite.errors import UsageError
from grit_lite.evaluate.gallery import keep_pictures, write_gallery
from grit_lite.evaluate.gallery.entries import blocks, placed, scores
from grit_lite.evaluate.summary import summarise
from grit_lite.pages.completions import pieces
from grit_lite.pages.table import lines

# Whether (base_direct, base, tuned) are right; the outcome of each against the first is in OUTCOMES.
RIGHT = [(0, 0, 1), (0, 1, 1), (1, 0, 0), (0, 0, 0), (1, 1, 1), (1, 0, 1)]
OUTCOMES = ["fixed", "fixed", "broken", "both_wrong", "both_right", "both_right"]
SYSTEMS = ("base_direct", "base", "tuned")
CHAIN = (
    "<think> the circle is at [10, 20, 30, 40] and the square at [50, 60, 90, 100] </think> "
    "<rethink> so it is left of it </rethink> <answer> yes"
)


def row(system: str, index: int, **other: Any) -> dict[str, Any]:
    tuned, right = system == "tuned", bool(RIGHT[index % 6][SYSTEMS.index(system)] if system in SYSTEMS else 0)
    made = {"system": system, "id": f"q{index}", "dataset": "counting" if index % 2 else "relation"}
    made |= {"question": f"Is circle {index} left of the square?", "gold": "yes", "size": [100, 200]}
    made |= {"completion": CHAIN if tuned else "<think> hm </think> yes", "answer": "yes" if right else "no"}
    made |= {"boxes": [list(box.numbers) for box in parse(CHAIN).written] if tuned else []}
    made |= {"gold_boxes": [[10, 20, 30, 40]], "correct": right, "correct_lenient": right, "valid_format": tuned}
    made |= {"union_iou": index / 10 if tuned else 0.0, "f1": 0.0, "tokens": 40 + index, "finished": True}
    if system == "base_direct":
        made |= {"completion": made["answer"]}
    return made | other


def save(folder: Path, rows: dict[str, list[dict]], **other: Any) -> Path:
    """An evaluation in a folder, as `evaluate` leaves it."""
    folder.mkdir(exist_ok=True)
    n = len(next(iter(rows.values())))
    result = {"benchmark": "mine", "split": "test", "n": n, "settings": {"decoding": "greedy"}}
    result |= summarise(rows) | other
    (folder / "mine.json").write_text(json.dumps(result))
    ordered = [made for together in zip(*rows.values(), strict=True) for made in together]
    (folder / "mine.jsonl").write_text("".join(json.dumps(made) + "\n" for made in ordered))
    return folder


def evaluation(n: int = 6, systems: tuple[str, ...] = SYSTEMS, **other: Any) -> dict[str, list[dict]]:
    return {system: [row(system, index, **other) for index in range(n)] for system in systems}


class Page(HTMLParser):
    """A page taken apart: its elements with attributes, and the text of its scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[tuple[str, str]] = []
        self.text = ""
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        kind = self.tags[-1][0] if self.tags else ""
        if kind in ("script", "style") and data.strip():
            self.inside.append((kind, data))
        else:
            self.text = " ".join((self.text + " " + data).split())

    @property
    def data(self) -> dict[str, Any]:
        """The rows in the page, as strictly as a browser reads them."""
        return json.loads(self.inside[1][1], parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page(folder: Path) -> Page:
    return Page(write_gallery(folder, "mine"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = evaluation()
    keep_pictures(rows, lambda index: [Image.new("RGB", (100, 200), (index, 0, 0))], tmp_path / "eval", "mine")
    return save(tmp_path / "eval", rows)


# --- one file


def test_the_page_needs_no_other_file_and_no_network(folder):
    made = page(folder)
    assert [made.attributes(tag) for tag in ("link", "img", "iframe", "object")] == [[], [], [], []]
    assert [script.get("src") for script in made.attributes("script")] == [None, None]
    assert "href" not in {name for _, attributes in made.tags for name in attributes}
    assert all(address.startswith("data:image/png;base64,") for address in made.data["pictures"])


def test_the_page_allows_its_own_script_and_style_by_their_hashes_and_nothing_else(folder):
    made = page(folder)
    policy = next(meta["content"] for meta in made.attributes("meta") if "http-equiv" in meta)
    (_, style), _, (_, script) = made.inside
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'" for part in (style, script)
    ]
    assert policy == (
        f"default-src 'none'; img-src data:; style-src {hashes[0]}; script-src {hashes[1]}; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def test_the_script_never_makes_elements_of_text(folder):
    script = page(folder).inside[2][1]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(", script)


def test_the_same_rows_give_the_same_page(folder):
    assert write_gallery(folder, "mine").read_bytes() == write_gallery(folder, "mine").read_bytes()


def test_an_evaluation_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(UsageError, match=r"no gallery to make of mine in .*: it has no mine\.json\. Evaluate first"):
        write_gallery(tmp_path, "mine")


# --- what it holds


def test_every_question_is_there_with_what_each_system_made_of_it(folder):
    data = page(folder).data
    assert [entry["id"] for entry in data["entries"]] == [f"q{index}" for index in range(6)]
    assert [[said["correct"] for said in entry["systems"]] for entry in data["entries"]] == [
        [bool(right) for right in case] for case in RIGHT
    ]
    assert [system["title"] for system in data["systems"]] == [
        "base, asked directly",
        "base, GRIT prompt",
        "tuned, GRIT prompt",
    ]


def test_only_a_system_that_never_wrote_a_tag_or_a_box_is_shown_without_picture(folder):
    assert [system["plain"] for system in page(folder).data["systems"]] == [True, False, False]


def test_boxes_are_percent_of_the_picture(folder):
    # the picture has 100 × 200 pixels
    entry = page(folder).data["entries"][0]
    assert entry["systems"][2]["boxes"] == [[10, 10, 20, 10], [50, 30, 40, 20]]
    assert entry["boxes"] == [[10, 10, 20, 10]]


def test_a_box_is_cut_at_the_edge_and_its_corners_are_sorted():
    assert placed(Box(50, 300, -20, 100), (100, 200)) == [0, 50, 50, 50]


def test_a_box_in_the_text_points_to_the_drawn_one(folder):
    written = page(folder).data["entries"][0]["systems"][2]["blocks"][0]["pieces"]
    assert [piece for piece in written if piece[0] == "box"] == [
        ["box", "[10, 20, 30, 40]", 0],
        ["box", "[50, 60, 90, 100]", 1],
    ]


@pytest.mark.parametrize(
    ("completion", "structure"),
    [
        (CHAIN, [("think", True), ("rethink", True), ("answer", False)]),
        ("<think> a", [("think", False)]),
        ("<think> a <rethink> b </rethink> c", [("think", False), ("rethink", True), ("", True)]),
        ("</think> yes", [("", True)]),
        ("", []),
    ],
)
def test_the_tags_of_a_completion_are_its_structure(completion, structure):
    assert [(block["tag"], block["closed"]) for block in blocks(pieces(completion, []))] == structure


def test_a_closing_tag_that_closes_nothing_stays_where_it_was_written():
    (block,) = blocks(pieces("a </think> b", []))
    assert [piece[1] for piece in block["pieces"]] == ["a ", "</think>", " b"]


def test_every_number_of_a_row_is_a_score_but_verdicts_and_what_is_no_number():
    made = {"correct": True, "valid_format": True, "score": 1.0, "union_iou": 0.25, "off_image": 0.5, "tokens": 7}
    assert scores(made) == [("union IoU", 0.25), ("off image", 0.5), ("tokens", 7)]
    assert scores({"f1": math.nan, "a": math.inf, "b": 10**400, "c": None}) == []


def test_systems_have_any_names_and_any_number(tmp_path):
    for systems in (("runs/b",), ("run <a>", "runs/b")):
        made = page(save(tmp_path, evaluation(systems=systems)))
        assert [system["title"] for system in made.data["systems"]] == list(systems)
        assert ("fixed" in [button.get("data-show") for button in made.attributes("button")]) == (len(systems) > 1)


def test_a_row_that_is_missing_or_not_scored_is_said_to_be(folder):
    kept = [json.loads(line) for line in (folder / "mine.jsonl").read_text().splitlines()]
    del kept[2]  # tuned, of q0
    kept[4] |= {"score": None}  # tuned, of q1
    (folder / "mine.jsonl").write_text("".join(json.dumps(made) + "\n" for made in kept))
    made = page(folder)
    assert made.data["entries"][0]["systems"][2] is None
    assert made.data["entries"][1]["systems"][2]["correct"] is None
    assert "Failures of tuned, GRIT prompt: 1 not scored; 1 no row" in made.text


DRAWS = {
    system: [
        row(system, index, draw=draw, correct=system == "tuned" and draw == 1) for index in (0, 1) for draw in range(3)
    ]
    for system in SYSTEMS
}


def test_every_draw_is_an_entry_and_the_page_says_so(tmp_path):
    made = page(save(tmp_path, DRAWS, n=2))
    assert [entry["id"] for entry in made.data["entries"]] == [f"q{k}, draw {n}" for k in (0, 1) for n in (1, 2, 3)]
    assert [entry["systems"][2]["correct"] for entry in made.data["entries"]] == [False, True, False] * 2
    assert "mine: 2 questions, drawn several times" in made.text
    assert "it is draws that are counted and filtered: 6 draws of 2 questions." in made.text
    assert "of 6 draws base, asked directly" in made.text
    assert " draws" not in page(save(tmp_path, evaluation())).text


def test_failures_are_counted_for_every_system(tmp_path):
    rows = evaluation()
    rows["tuned"][0] |= {"answer": None, "finished": False}
    rows["base"][3] |= {"error": "the server said no"}
    made = page(save(tmp_path, rows))
    assert (
        "no answer could be read 0 0 1 cut off at the limit of tokens 0 0 1 not scored 0 0 0 failed 0 1 0" in made.text
    )
    assert made.data["entries"][3]["systems"][1]["error"] == "the server said no"


def test_the_table_and_the_settings_are_on_the_page(tmp_path):
    settings = {"decoding": "greedy", "prompts": {"grounded": "Question: {question}\n think"}, "versions": {"trl": "1"}}
    made = page(save(tmp_path, evaluation(), settings=settings, row_sha256="ab" * 32))
    for said in ("Right answers", "tuned − base, GRIT prompt", "n = 6", "settings: prompts: grounded", "row sha256"):
        assert said in made.text
    assert "Question: {question}\n think" in made.source
    assert "Decoding: greedy." in made.text


def test_a_measure_that_the_table_does_not_know_has_a_line_of_its_own():
    result = {"n": 6, **summarise(evaluation())}
    result["systems"]["tuned"]["mask_effect"] = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 4}
    line = lines(result)[-1]
    assert (line.label, line.note) == ("Mask effect", "n = 4")
    assert line.cells == [("–", ""), ("–", ""), ("0.50", "0.25 – 0.75")]


def test_a_count_that_is_not_that_of_the_line_is_in_the_cell():
    result = {"n": 6, **summarise(evaluation())}
    result["systems"]["base"]["tokens"]["n"] = 5
    tokens = next(line for line in lines(result) if line.label == "Tokens")
    assert tokens.cells[1][1].endswith(", n = 5")


# --- pictures


def test_pictures_are_small_copies_and_a_shared_one_is_kept_once(tmp_path):
    rows = evaluation(4)
    keep_pictures(rows, lambda index: [Image.new("RGB", (1024, 512), (90 * (index // 2), 0, 0))], tmp_path, "mine")
    names = [made["image"] for made in rows["tuned"]]
    assert (names[0], names[2]) == (names[1], names[3])
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == sorted(
        name.removeprefix("images/") for name in set(names)
    )
    with Image.open(tmp_path / names[0]) as kept:
        assert (kept.size, kept.format) == ((512, 256), "JPEG")
    assert len(page(save(tmp_path, rows)).data["pictures"]) == 2


def test_a_drawn_scene_is_kept_exactly(tmp_path):
    rows = evaluation(1)
    scene = Image.effect_noise((112, 112), 50).convert("RGB")
    keep_pictures(rows, lambda index: [scene], tmp_path, "mine")
    with Image.open(tmp_path / rows["tuned"][0]["image"]) as kept:
        assert kept.tobytes() == scene.tobytes()


def test_pictures_past_the_limit_are_left_out_in_turn_and_the_page_says_how_many(tmp_path):
    rows = evaluation(12)
    keep_pictures(rows, lambda index: [Image.effect_noise((100, 200), 9 + index)], tmp_path, "mine", limit=200_000)
    kept = [index for index, made in enumerate(rows["tuned"]) if "image" in made]
    assert 0 < sum(path.stat().st_size for path in (tmp_path / "images").iterdir()) <= 200_000
    assert {OUTCOMES[index % 6] for index in kept} == set(OUTCOMES)
    assert f"The pictures of {12 - len(kept)} questions are not here" in page(save(tmp_path, rows)).text


def test_all_pictures_of_a_question_are_kept_or_none(tmp_path):
    rows = evaluation(2, images=3)
    noise = [Image.frombytes("RGB", (99, 99), Random(seed).randbytes(99 * 99 * 3)) for seed in range(2)]  # 29 kB each
    shared = [Image.new("RGB", (50, 50)), Image.new("RGB", (80, 120))]
    keep_pictures(rows, lambda index: [shared[0], noise[index], shared[1]], tmp_path, "mine", limit=40_000)
    kept = [made for made in rows["tuned"] if "image" in made]
    assert [len(made["more_images"]) for made in kept] == [2]
    data = page(save(tmp_path, rows)).data
    entries = sorted(data["entries"], key=lambda entry: entry["picture"] is None)
    assert [(entry["picture"], entry["more"]) for entry in entries] == [(0, [1, 2]), (None, [None, None])]
    assert data["sizes"] == [[50, 50], [99, 99], [80, 120]]
    assert "images" not in dict(entries[0]["systems"][2]["scores"])


@pytest.mark.parametrize(
    ("other", "more"),
    [
        ({}, []),
        ({"images": 1}, []),
        ({"images": -3}, []),
        ({"images": "2", "more_images": "no"}, []),
        ({"images": 10**9}, [None] * 15),
        ({"images": 3, "more_images": ["../secret.png"]}, [None, None]),
        ({"images": 2, "more_images": [7] * 99}, [None] * 15),
    ],
)
def test_how_many_pictures_a_row_has_is_its_word_within_bounds(tmp_path, other, more):
    assert page(save(tmp_path, evaluation(1, **other))).data["entries"][0]["more"] == more


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/hostname", "images/../../secret.png", "images", "a\0.png", "\ud800", 7, None]
)
def test_only_pictures_of_the_folder_are_opened(folder, name):
    Image.new("RGB", (9, 9)).save(folder.parent / "secret.png")
    made = page(save(folder, evaluation(image=name)))
    assert made.data["pictures"] == []
    assert "The pictures of 6 questions are not here" in made.text


# --- hostile rows

HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 1</script>",
    "<!--<script>",
    "<img src=x onerror=window.hacked=1>",
    "</h3></article><svg onload=window.hacked=1>",
    "'\" autofocus onfocus='window.hacked=1",
    "javascript:window.hacked=1",
    "{{ 7 * 7 }} {% raw %}",
    "]]></style><style>*{display:none}</style>",
    "__proto__",
]


def hostile(folder: Path, words: str) -> Path:
    """An evaluation in which everything says `words`."""
    named = ("run a", f"run {words}")
    rows = {
        system: [
            row(
                system,
                index,
                dataset=words,
                question=words,
                gold=words,
                completion=f"<think>{words}</think>",
                answer=words,
            )
            | {"id": words if index else "q0", "error": words}
            for index in range(2)
        ]
        for system in named
    }
    return save(folder, rows, settings={"decoding": words, words: words})


@pytest.mark.parametrize("words", HOSTILE)
def test_words_of_a_model_stay_words(tmp_path, words):
    honest, made = page(hostile(tmp_path / "a", "plain words")), page(hostile(tmp_path / "b", words))
    assert [(tag, sorted(attributes)) for tag, attributes in made.tags] == [
        (tag, sorted(attributes)) for tag, attributes in honest.tags
    ]
    entry = made.data["entries"][1]
    assert [entry[key] for key in ("id", "dataset", "question", "gold")] == [words] * 4
    assert entry["systems"][1]["blocks"][0]["pieces"] == [["text", words]]


def test_controls_direction_marks_and_lone_surrogates_do_not_reach_the_page(tmp_path):
    made = page(hostile(tmp_path, "a\x1b]8;;http://x\x07b\u202ec\x9b31md\ud800e\u2028"))
    assert made.data["entries"][1]["question"] == "abcd\ufffde"
    assert not re.search(
        "[\x00-\x08\x1b\x9b\u202e\u2028\ud800]", made.source + json.dumps(made.data, ensure_ascii=False)
    )


def test_a_long_completion_is_cut_and_says_how_much_is_missing(tmp_path):
    rows = evaluation(1, completion="[1, 2, 3, 4] " * 8_000, question="x" * 100_000)
    entry = page(save(tmp_path, rows)).data["entries"][0]
    assert entry["systems"][2]["blocks"][-1]["pieces"][-1] == ["tag", " … and 98,000 characters more"]
    assert entry["question"].endswith("xx … and 98,000 characters more")
    assert len(json.dumps(entry)) < 40_000


def test_boxes_written_behind_the_end_of_what_is_shown_are_linked_there(tmp_path):
    text = "<think> [10, 20, 30, 40] " + "so " * 3_000 + "[50, 60, 90, 100] and [50, 60, 90, 100] </think> <answer> yes"
    entry = page(save(tmp_path, evaluation(1, completion=text, boxes=[[10, 20, 30, 40], [50, 60, 90, 100]]))).data
    written = entry["entries"][0]["systems"][2]["blocks"][0]["pieces"]
    assert [piece for piece in written if piece[0] == "box"] == [
        ["box", "[10, 20, 30, 40]", 0],
        ["box", "[50, 60, 90, 100]", 1],
    ]
    assert [piece[1] for piece in written[-3:]] == [" … and 3,086 characters more", ", with ", "[50, 60, 90, 100]"]


def test_a_box_that_the_end_of_what_is_shown_cuts_in_two_is_linked_once():
    text = "x" * 5_995 + " [10, 20, 30, 40] and on"
    shown = pieces(text, [Box(5, 10, 15, 20)])  # of a picture that the model saw at twice its size
    assert [(piece.text, piece.box) for piece in shown[1:]] == [
        (" … and 19 characters more", None),
        (", with ", None),
        ("[10, 20, 30, 40]", 0),
    ]
    assert shown[0].text == text[:6_000]


@pytest.mark.parametrize(
    "boxes",
    [
        [[1, 2, 3]],
        [["a", 1, 2, 3]],
        [[math.nan, 0, 5, 5]],
        [[-math.inf, 0, 5, 5]],
        [[10**400, 0, 5, 5]],
        [None],
        "no",
        7,
    ],
)
def test_boxes_that_are_none_are_not_drawn(tmp_path, boxes):
    entry = page(save(tmp_path, evaluation(1, boxes=boxes, gold_boxes=boxes, size=[0, "x"]))).data["entries"][0]
    assert entry["systems"][2]["boxes"] == entry["boxes"] == []


# --- what a reader does, in a real browser


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


def visible(browser: Browser) -> list[str]:
    """The ids of the questions on the screen's page, in order."""
    return browser.ask("[...document.querySelectorAll('.case .note a')].map((a) => a.textContent)")


def counts(browser: Browser, kind: str) -> dict[str, int]:
    return browser.ask(
        f"Object.fromEntries([...document.querySelectorAll('[data-{kind}]')].filter((b) => !b.hidden)"
        f".map((b) => [b.dataset.{kind}, Number(b.querySelector('b').textContent)]))"
    )


def click(browser: Browser, selector: str) -> None:
    browser.ask(f"document.querySelector({json.dumps(selector)}).click()")


@needs_browser
def test_every_filter_says_how_many_it_would_show_and_shows_them(browser, folder):
    browser.open(write_gallery(folder, "mine"))
    assert counts(browser, "show") == {"all": 6, "fixed": 2, "broken": 1, "both_wrong": 1, "both_right": 2}
    click(browser, "[data-show=fixed]")
    assert visible(browser) == ["q0", "q1"]
    assert browser.ask("document.getElementById('dataset').options[2].textContent") == "relation (1)"
    assert browser.ask("document.getElementById('status').textContent") == "2 of 6 questions"
    click(browser, "#reset")
    assert len(visible(browser)) == 6


@needs_browser
def test_filters_count_draws_where_there_are_several(browser, tmp_path):
    browser.open(write_gallery(save(tmp_path, DRAWS, n=2), "mine"), "#show=fixed")
    assert counts(browser, "show") == {"all": 6, "fixed": 2, "broken": 0, "both_wrong": 4, "both_right": 0}
    assert visible(browser) == ["q0, draw 2", "q1, draw 2"]
    assert browser.ask("document.getElementById('status').textContent") == "2 of 6 draws"
    browser.open(write_gallery(tmp_path, "mine"), "#id=q1%2C+draw+3")
    assert browser.ask("document.activeElement.querySelector('a').textContent") == "q1, draw 3"
    browser.open(tmp_path / "mine.html", "#q1")
    assert browser.ask("document.activeElement.querySelector('a').textContent") == "q1, draw 1"


@needs_browser
def test_beside_another_run_the_page_opens_against_it(browser, tmp_path):
    systems = ("base_direct", "base", "runs/b", "tuned")
    rows = {name: [row(name, index, correct=name == "runs/b") for index in range(2)] for name in systems}
    path = write_gallery(save(tmp_path, rows), "mine")
    browser.open(path)
    assert counts(browser, "show") == {"all": 2, "fixed": 0, "broken": 2, "both_wrong": 0, "both_right": 0}
    assert browser.ask("document.getElementById('against').selectedOptions[0].textContent") == "runs/b"
    browser.open(path, "#against=0&show=both_wrong")
    assert visible(browser) == ["q0", "q1"]
    click(browser, "#reset")
    assert counts(browser, "show")["broken"] == 2


@needs_browser
def test_toggles_are_about_the_last_system(browser, folder):
    rows = evaluation()
    rows["tuned"][1] |= {"valid_format": False}
    rows["tuned"][2] |= {"boxes": []}
    rows["tuned"][3] |= {"finished": False}
    browser.open(write_gallery(save(folder, rows), "mine"))
    assert counts(browser, "toggle") == {"invalid": 1, "empty": 1, "cut": 1}
    for name, found in (("invalid", ["q1"]), ("empty", ["q2"]), ("cut", ["q3"])):
        click(browser, f"[data-toggle={name}]")
        assert visible(browser) == found
        click(browser, f"[data-toggle={name}]")


@needs_browser
@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("#show=both_right", ["q4", "q5"]),
        ("#show=fixed&against=1", ["q0", "q5"]),  # held against the base under the same prompt
        ("#dataset=counting", ["q1", "q3", "q5"]),
        ("#q=CIRCLE%203", ["q3"]),
        ("#q=so+it+is+left", ["q0", "q1", "q2", "q3", "q4", "q5"]),
        ("#sort=best", ["q5", "q4", "q3", "q2", "q1", "q0"]),
        ("#show=nonsense&sort=constructor&against=9&page=-3", ["q0", "q1", "q2", "q3", "q4", "q5"]),
        ("#q=nothing+like+it", []),
    ],
)
def test_the_address_sets_the_filters(browser, folder, address, found):
    browser.open(write_gallery(folder, "mine"), address)
    assert visible(browser) == found


@needs_browser
def test_what_a_reader_chose_is_in_the_address(browser, folder):
    path = write_gallery(folder, "mine")
    browser.open(path)
    click(browser, "[data-show=both_right]")
    browser.ask(
        "((q) => { q.value = 'circle 5'; q.dispatchEvent(new Event('input')); })(document.getElementById('query'))"
    )
    browser.open(path, browser.ask("location.hash"))
    assert visible(browser) == ["q5"]


@needs_browser
def test_keys_go_from_question_to_question_over_pages(browser, tmp_path):
    browser.open(write_gallery(save(tmp_path, evaluation(30)), "mine"), "#id=q24")
    assert visible(browser)[-1] == "q24"
    browser.press("j")
    assert visible(browser)[0] == "q25"
    assert browser.ask("document.activeElement.querySelector('a').textContent") == "q25"
    assert browser.ask("location.hash") == "#page=2&id=q25"
    browser.press("ArrowRight")
    browser.press("k")
    browser.press("ArrowLeft")
    assert browser.ask("document.activeElement.querySelector('a').textContent") == "q24"
    browser.press("/")
    browser.press("j")  # a letter in the search field
    assert browser.ask("document.getElementById('query').value") == "j"


@needs_browser
@pytest.mark.parametrize("address", ["#q28", "#id=q28", "#id=q28&show=broken"])
def test_a_link_to_a_question_shows_it_on_whatever_page_or_filter(browser, tmp_path, address):
    browser.open(write_gallery(save(tmp_path, evaluation(30)), "mine"), address)
    assert browser.ask("document.activeElement.querySelector('a').textContent") == "q28"


@needs_browser
def test_the_link_of_a_question_keeps_filters_order_and_gold_boxes(browser, tmp_path):
    browser.open(write_gallery(save(tmp_path, evaluation(90)), "mine"), "#dataset=relation&sort=best&gold=1&page=2")
    shown = visible(browser)
    click(browser, ".case:nth-child(3) .note a")
    browser.ask("new Promise((done) => setTimeout(done, 50))")  # until the page has heard of it
    assert visible(browser) == shown
    assert browser.ask("document.activeElement.querySelector('a').textContent") == shown[2]
    assert browser.ask("document.getElementById('dataset').value") == "relation"
    assert browser.ask("document.querySelectorAll('.with-gold').length") == 1
    assert browser.ask("location.hash").endswith(f"id={shown[2]}")


@needs_browser
def test_a_box_in_the_text_and_the_one_in_the_picture_are_lit_together(browser, folder):
    browser.open(write_gallery(folder, "mine"), "#id=q0")
    lit = "[...document.querySelectorAll('.lit')].map((node) => [node.tagName, node.dataset.box])"
    assert browser.ask(lit) == []
    browser.ask("document.querySelectorAll('.case mark')[1].focus()")
    assert browser.ask(lit) == [["SPAN", "1"], ["MARK", "1"]]
    over = "new PointerEvent('pointerover', { bubbles: true })"
    browser.ask(f"document.querySelector('.box.b0').dispatchEvent({over}) && null")
    assert browser.ask(lit) == [["SPAN", "0"], ["MARK", "0"]]


@needs_browser
def test_boxes_are_drawn_where_they_belong_in_the_colour_of_the_text(browser, folder):
    browser.open(write_gallery(folder, "mine"), "#id=q0")
    frame, box = (
        browser.ask(f"(({{x, y, width, height}}) => [x, y, width, height])({node}.getBoundingClientRect())")
        for node in ("document.querySelector('.box.b1').parentNode", "document.querySelector('.box.b1')")
    )
    # [50, 60, 90, 100] of 100 × 200 pixels
    share = [(box[0] - frame[0]) / frame[2], (box[1] - frame[1]) / frame[3], box[2] / frame[2], box[3] / frame[3]]
    assert share == pytest.approx([0.5, 0.3, 0.4, 0.2], abs=0.01)
    colour = "getComputedStyle(document.querySelector('{}')).{}"
    assert browser.ask(colour.format(".box.b1", "borderTopColor")) == browser.ask(
        colour.format("mark.b1", "borderBottomColor")
    )


@needs_browser
def test_every_picture_of_a_question_has_its_place_and_boxes_are_on_the_first(browser, tmp_path):
    rows = evaluation(1, images=4)
    keep_pictures(
        rows, lambda index: [Image.new("RGB", (100, 200 + k), (80 * k, 0, 0)) for k in range(3)], tmp_path, "mine"
    )
    browser.open(write_gallery(save(tmp_path, rows), "mine"))
    said = browser.ask("[...document.querySelectorAll('.pictures .note')].map((node) => node.textContent)")
    assert said == [*(f"image {k} of 4" for k in (1, 2, 3)), "image 4 of 4: not kept"]
    heights = browser.ask("[...document.querySelectorAll('.pictures img')].map((node) => node.naturalHeight)")
    assert heights == [200, 201, 202]
    assert browser.ask("document.querySelectorAll('.pictures .box').length") == 0
    first = browser.ask("[...document.querySelectorAll('.row .note')].map((node) => node.textContent)")
    assert first == ["image 1 of 4; all boxes are taken to be on it"] * 2
    assert browser.ask("document.querySelector('.box.b0').parentNode.querySelector('img').naturalHeight") == 200


@needs_browser
def test_gold_boxes_are_shown_when_asked_for(browser, folder):
    browser.open(write_gallery(folder, "mine"))
    shown = "[...document.querySelectorAll('.box.gold')].filter((box) => box.offsetParent).length"
    assert browser.ask(shown) == 0
    click(browser, "#gold")
    assert browser.ask(shown) == 12  # six questions, two systems with pictures


@needs_browser
@pytest.mark.parametrize("systems", [("tuned",), SYSTEMS, ("a", "b", "tuned")])
def test_the_page_fits_a_narrow_screen(browser, tmp_path, systems):
    rows = evaluation(systems=systems, question="w" * 300, gold="v" * 300)
    keep_pictures(rows, lambda index: [Image.new("RGB", (700, 300))], tmp_path, "mine")
    browser.open(write_gallery(save(tmp_path, rows), "mine"), width=400)
    assert browser.ask("document.documentElement.scrollWidth") == 400


@needs_browser
def test_printing_shows_every_question_that_passes_the_filters(browser, tmp_path):
    browser.open(write_gallery(save(tmp_path, evaluation(60)), "mine"), "#dataset=relation&page=2")
    assert visible(browser) == ["q50", "q52", "q54", "q56", "q58"]
    browser.ask("window.dispatchEvent(new Event('beforeprint')) && null")
    assert visible(browser) == [f"q{index}" for index in range(0, 60, 2)]
    browser.ask("window.dispatchEvent(new Event('afterprint')) && null")
    assert len(visible(browser)) == 5


@needs_browser
@pytest.mark.parametrize("words", HOSTILE)
def test_a_browser_runs_nothing_of_what_a_model_wrote(browser, tmp_path, words):
    browser.problems.clear()
    browser.open(write_gallery(hostile(tmp_path, words), "mine"))
    assert browser.ask("window.hacked === undefined")
    assert browser.ask("document.querySelectorAll('.case h3')[1].textContent") == words
    assert browser.problems == []
    click(browser, ".case:last-child .note a")
    assert browser.ask("window.hacked === undefined && document.querySelectorAll('.case').length") == 2
