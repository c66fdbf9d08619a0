"""What a reader is shown of a run that writes boxes: the printed table of faithfulness, the gallery, the report."""

import re
from statistics import mean

import pytest
from browser import Browser, needs_browser
from taught import Writer
from typer.testing import CliRunner

from grit_lite.cli import app
from grit_lite.evaluate.faithfulness import CONDITIONS
from grit_lite.pages.faithfulness import LABELS, UNCHANGED
from grit_lite.run import Run, read_rows

QUESTIONS = 12
CONTROLS = {"mask_predicted": "mask_random", "wrong_boxes": "same_boxes", "swapped_boxes": "same_boxes"}
LINE = re.compile(r"^ +(\S.*?) {2,}(\d+) +([\d.]+) +([\d.]+|–) +([+−]?[\d.]+|–) *$", re.MULTILINE)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run whose adapter was taught to write chains, and what `grit-lite eval` printed of it."""
    folder = tmp_path_factory.mktemp("runs") / "taught"
    made = Run.create(folder, Writer.recipe)
    Writer().save_run(folder)
    made.finish("done")
    made.close()
    done = CliRunner().invoke(app, ["eval", str(folder), "--questions", str(QUESTIONS), "--faithfulness"])
    assert done.exit_code == 0, done.output
    return folder, done.stdout


@pytest.fixture(scope="module")
def examined(run):
    return list(read_rows(run[0] / "eval" / "faithfulness" / "shapes.jsonl"))


def percent(value, sign=""):
    return f"{100 * value:{sign}.1f}".replace("-", "−")


def line(label, found, name, dataset=None):
    """A row of the table, worked out from the rows of the file."""
    part = [row for row in found if dataset in (None, row["dataset"])]
    own, control = ({row["id"]: row for row in part if row["condition"] == of} for of in (name, CONTROLS.get(name)))
    above = [row["flipped"] - control[id]["flipped"] for id, row in own.items() if id in control]
    right, flipped = (percent(mean(row[key] for row in own.values())) for key in ("correct", "flipped"))
    return (label, str(len(own)), right, flipped, percent(mean(above), "+") if above else "–")


def table(found):
    """Every row: nothing changed, each condition, and where it has a control, each dataset of it."""
    unchanged = line(UNCHANGED, found, "unchanged")
    rows = [(*unchanged[:3], "–", "–")]
    for name in CONDITIONS:
        rows.append(line(LABELS[name], found, name))
        of = sorted({row["dataset"] for row in found if row["condition"] == name})
        rows += [line(dataset, found, name, dataset) for dataset in of if name in CONTROLS]
    return rows


def test_every_row_of_the_table_is_printed_with_the_numbers_of_the_file(run, examined):
    printed = LINE.findall(run[1].partition("does the answer of tuned depend on its boxes?")[2])
    assert printed == table(examined)
    assert {label for label, *_ in printed} >= {UNCHANGED, *LABELS.values()}
    boxed = sum(row["condition"] == "unchanged" for row in examined)
    assert boxed >= QUESTIONS // 2
    said = " ".join(run[1].split())
    assert f"Of {QUESTIONS} questions, {QUESTIONS - boxed} were answered without a box and stay out." in said
    assert "hid almost nothing" not in said
    assert "Reasoning correlation, with the model as its own reader: 0." in said


def test_a_model_that_reads_its_boxes_is_seen_to(examined):
    numbers = {label: tuple(cells) for label, *cells in table(examined) if label in LABELS.values()}
    assert numbers[LABELS["same_boxes"]][2] == "0.0"  # it says the same again
    assert float(numbers[LABELS["mask_predicted"]][3]) > 30  # above what is painted over elsewhere
    assert float(numbers[LABELS["blank"]][2]) > 50


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


@needs_browser
def test_its_gallery_shows_every_box_that_it_wrote(run, browser):
    rows = list(read_rows(run[0] / "eval" / "shapes.jsonl"))
    tuned = {row["id"]: row for row in rows if row["system"] == "tuned"}
    browser.open(run[0] / "eval" / "shapes.html")
    shown = browser.ask(
        "Object.fromEntries([...document.querySelectorAll('.case')].map((one) => ["
        "one.querySelector('.note a').textContent,"
        "one.querySelectorAll('figure:last-child .box[data-box]').length]))"
    )
    assert shown == {id: len({tuple(box) for box in row["boxes"]}) for id, row in tuned.items()}
    assert sum(shown.values()) >= QUESTIONS
    assert browser.ask("[...document.images].every((image) => image.src.startsWith('data:image/png;base64,'))")
    right = sum(row["correct"] for row in tuned.values())
    assert browser.ask("document.querySelectorAll('figure:last-child figcaption .good').length") == right
    browser.ask("document.querySelector('figure:last-child mark[data-box]').focus()")
    assert browser.ask("[...document.querySelectorAll('.lit')].map((one) => one.tagName)") == ["SPAN", "MARK"]
    assert browser.problems == []


@needs_browser
def test_its_report_has_the_same_table(run, examined, browser):
    browser.open(run[0] / "report.html")
    name = "(one) => one.firstChild.textContent.trim() || one.querySelector('b').textContent"
    cells = browser.ask(
        "((heading) => [...heading.parentNode.querySelectorAll('table')].at(-1))"
        "([...document.querySelectorAll('h3')].find((one) => one.textContent.startsWith('Does the answer')))"
        f".querySelectorAll('tbody tr').values().toArray().map((row) => [({name})(row.querySelector('th')),"
        " row.querySelector('th small').textContent.replace('n = ', ''),"
        " ...[...row.querySelectorAll('td b')].map((one) => one.textContent)])"
    )
    assert [tuple(row) for row in cells] == table(examined)
