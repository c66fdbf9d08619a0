"""Every declaration on a miniature copy in the hub's own schema, loaded by the real code; and what a user can do wrong."""

import io

import pytest
from miniatures import MINIATURES, SIZE, Expected
from PIL import Image

from grit_lite.evaluate.benchmarks import find, names

DRAWN = [name for name in names() if name.startswith("shapes")]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets-cache"))


def test_every_declaration_has_a_miniature():
    assert {*MINIATURES, *DRAWN} == {*names()}


@pytest.mark.parametrize("name", MINIATURES)
def test_a_declaration_makes_the_questions_of_a_copy_in_the_hubs_schema(name, tmp_path):
    folder = tmp_path / "copy"
    expected = MINIATURES[name](folder)
    benchmark = find(name)
    questions = benchmark.questions(source=folder)
    assert len(questions) == len(expected)
    assert len({question.id for question in questions}) == len(questions)
    for question, wanted in zip(questions, expected, strict=True):
        check(question, wanted, benchmark)


def check(question, wanted: Expected, benchmark) -> None:
    assert (question.text, question.gold, question.dataset) == (wanted.text, wanted.gold, wanted.dataset)
    assert question.scorer == benchmark.scorer
    assert question.size == SIZE
    assert [tuple(box) for box in question.boxes] == [pytest.approx(box) for box in wanted.boxes]
    assert question.facts == wanted.facts
    assert question.cluster == (wanted.cluster or question.image_hashes()[0][:16])
    pictures = question.load_images()
    assert len(pictures) == len(wanted.colours)
    for picture, colour in zip(pictures, wanted.colours, strict=True):
        assert all(abs(a - b) < 8 for a, b in zip(picture.getpixel((5, 5)), colour, strict=True))
