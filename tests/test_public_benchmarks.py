"""Every declaration on a miniature copy in the hub's own schema, loaded by the real code; and what can go wrong."""

import io
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from datasets import Image as ImageColumn
from datasets import List, Value
from huggingface_hub import constants
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from typer.testing import CliRunner

from grit_lite.cli import app
from grit_lite.errors import DataError, NotFetched, RecipeError, UsageError
from grit_lite.evaluate.benchmarks import SHAPE_KINDS, find, listing, names, shapes
from grit_lite.scorers import SCORERS
from grit_lite.triplets import fetch
from grit_lite.triplets.grit import Sources
from tests.hub_server import COMMIT, running
from tests.miniatures import (
    BLUE,
    MINIATURES,
    NUMBER,
    RED,
    SIZE,
    TEXT,
    Expected,
    encoded,
    json_lines,
    parquet,
    picture,
    write_file,
)

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
    for seen, colour in zip(pictures, wanted.colours, strict=True):
        assert all(abs(a - b) < 8 for a, b in zip(seen.getpixel((5, 5)), colour, strict=True))


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_scenes_are_always_at_hand(name):
    loaded = find(name).load(limit=8)
    assert [question.dataset for question in loaded.questions] == [
        f"shapes_{kind}" for kind in SHAPE_KINDS for _ in range(2)
    ]
    assert all(question.boxes for question in loaded.questions if question.gold not in {"0", "no"})
    assert loaded.sha256 == find(name).load(limit=8).sha256
    with pytest.raises(UsageError, match="drawn here; there is no --source"):
        find(name).load(source="somewhere")


def test_the_splits_of_drawn_scenes_differ():
    assert len({find(name).load(limit=4).sha256 for name in DRAWN}) == len(DRAWN) == 4


def test_fewer_drawn_questions_are_the_ones_that_training_has_always_been_measured_on():
    questions = find("shapes").questions(8)
    assert [question.id for question in questions] == [triplet.id for triplet in shapes(8)]


# what is said of each


def test_a_revision_is_a_commit_or_none_that_was_seen():
    revisions = {benchmark["name"]: benchmark["revision"] for benchmark in listing() if benchmark["hub"]}
    assert all(revision == "main" or re.fullmatch("[0-9a-f]{40}", revision) for revision in revisions.values())
    assert {"refcocog-val", "mmvp", "seed-image"} < {name for name, revision in revisions.items() if revision == "main"}


def test_the_listing_says_where_each_schema_was_seen():
    assert all(entry["schema"] and entry["licence"] and entry["split"] for entry in listing())
    assert {entry["name"] for entry in listing() if not entry["verified"]} == {"mmvp"}


def test_every_scorer_and_aggregate_that_is_named_is_there():
    aggregates = pytest.importorskip("grit_lite.evaluate.aggregates")
    assert {find(name).scorer for name in names()} <= {*SCORERS, "judge"}
    assert all(aggregates.find(find(name).aggregates) for name in ("pope-random", "mme", "mmvp", "cv-bench"))
    assert all(isinstance(aggregates.find(find(name).aggregates), list) for name in names())


@pytest.mark.parametrize("name", [name for name in MINIATURES if name not in {"mmhal", "blink"}])
def test_the_gold_answer_is_right_by_the_benchmarks_own_scorer(name, tmp_path):
    pytest.importorskip("grit_lite.evaluate.aggregates")
    from grit_lite.scorers import score

    MINIATURES[name](tmp_path)
    for question in find(name).questions(source=tmp_path):
        assert score(question.scorer, question.gold, question.gold, question.facts) == 1.0
        assert score(question.scorer, "something else entirely", question.gold, question.facts) == 0.0


def test_an_unverified_benchmark_says_so_in_one_line_whenever_it_is_used(tmp_path, capsys):
    for name in ("mmvp", "countbenchqa"):
        MINIATURES[name](tmp_path / name)
        find(name).questions(source=tmp_path / name)
    assert [line for line in capsys.readouterr().err.splitlines() if "never seen" in line] == [find("mmvp").caution]
    assert "columns were never seen in the dataset itself" in find("mmvp").caution


def test_a_split_that_is_mixed_with_another_says_so_and_counts_no_questions(tmp_path, capsys):
    entries = {entry["name"]: entry for entry in listing() if entry["scorer"] == "box"}
    mixed = {name for name, entry in entries.items() if "two splits together" in (entry["note"] or "")}
    assert mixed == {"refcoco-val", "refcocog-val"} == {name for name, entry in entries.items() if not entry["rows"]}
    # expressions, not objects
    assert (entries["refcoco-testa"]["rows"], entries["refcocog-test"]["rows"]) == (5657, 9602)
    MINIATURES["refcoco-val"](tmp_path)
    find("refcoco-val").questions(source=tmp_path)
    assert "refcoco-val: its file holds two splits together" in capsys.readouterr().err


def test_pope_says_that_it_is_stricter_than_its_authors():
    from grit_lite.scorers import score

    assert score("yes_no", "There is no dog in the image.", "no") == 0.0  # no to them
    assert score("yes_no", "A dog lies there.", "yes") == 0.0  # yes to them
    assert "one that says neither is wrong" in find("pope-adversarial").caution


# copies of one's own


@pytest.mark.parametrize("form", ["disk", "dictionary", "parquet", "jsonl", "json", "named after the split"])
def test_a_copy_may_have_any_form_of_table(form, tmp_path):
    from datasets import Dataset, DatasetDict, Features

    row = {"image": picture(RED), "question": "How many vases?", "number": 5}
    features = Features({"image": ImageColumn(), "question": Value("string"), "number": Value("int32")})
    table = Dataset.from_list([row], features=features)
    plain = {**row, "image": "red.jpg"}
    source = tmp_path / "copy"
    source.mkdir()
    match form:
        case "disk":
            table.save_to_disk(source)
        case "dictionary":
            DatasetDict({"test": table, "train": table}).save_to_disk(source)
        case "parquet":
            table.to_parquet(source := source / "anything.parquet")
        case "named after the split":
            table.to_parquet(source / "test-0.parquet")
            (source / "train-0.parquet").write_bytes(b"not read")
        case "jsonl":
            json_lines(source := source / "rows.jsonl", [plain])
        case "json":
            write_file(source := source / "rows.json", json.dumps([plain]).encode())
    write_file(tmp_path / "copy" / "red.jpg", encoded(RED))
    loaded = find("countbenchqa").load(source=source)
    assert [question.gold for question in loaded.questions] == ["5"]
    assert loaded.revision == "local"
    assert loaded.questions[0].load_images()[0].size == SIZE


def test_a_copy_of_questions_and_images_in_two_tables_may_be_folders_of_save_to_disk(tmp_path):
    from datasets import load_dataset

    MINIATURES["gqa"](tmp_path / "hub")
    for file in (tmp_path / "hub").rglob("*.parquet"):
        load_dataset("parquet", data_files=str(file), split="train").save_to_disk(tmp_path / "copy" / file.parent.name)
    hub, copy = (find("gqa").load(source=tmp_path / name) for name in ("hub", "copy"))
    assert hub.sha256 == copy.sha256


def test_class_labels_are_read_by_their_names(tmp_path):
    from datasets import ClassLabel

    rows = [{"image": picture(RED), "question": "Is it red?", "answer": 1}]
    features = {"image": ImageColumn(), "question": Value("string"), "answer": ClassLabel(names=["no", "yes"])}
    parquet(tmp_path / "test.parquet", features, rows)
    assert find("vqa-rad").questions(source=tmp_path)[0].gold == "yes"


# images and boxes


def lying() -> bytes:
    """A picture that is to be turned by 90 degrees, clockwise."""
    stream, turned = io.BytesIO(), Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    picture(RED).save(stream, "JPEG", exif=turned)
    return stream.getvalue()


def test_boxes_and_size_are_those_of_the_upright_image(tmp_path):
    MINIATURES["vstar"](tmp_path)
    write_file(tmp_path / "direct_attributes/sa_4690.jpg", lying())
    (question,) = find("vstar").questions(source=tmp_path)
    assert question.size == (40, 60)
    assert [tuple(box) for box in question.boxes] == [(40 - 16, 5, 40 - 6, 25)]
    assert question.load_images()[0].size == (40, 60)


@pytest.mark.parametrize(("name", "height"), [("refcoco-val", 15), ("grit-ovd-position", 14.5)])
def test_the_box_that_is_the_answer_is_that_of_the_upright_image(name, height, tmp_path):
    MINIATURES[name](tmp_path)
    if name == "refcoco-val":
        row = {"image": {"bytes": lying()}, "answer": ["left dog"], "bbox": [10, 5, 20, 15], "file_name": "1.jpg"}
        features = {"image": ImageColumn(), "answer": List(Value("string")), "bbox": List(Value("float32"))}
        parquet(tmp_path / "data/val-00000-of-00001.parquet", {**features, "file_name": Value("string")}, [row])
    else:
        write_file(tmp_path / "ovd/3.jpg", lying())
    (question,) = find(name).questions(source=tmp_path)
    box = question.boxes[0]
    assert box.x2 - box.x1 == pytest.approx(height)  # before it was turned
    assert question.gold == f"[{', '.join(f'{side:.2f}' for side in box)}]"


def test_a_box_is_cut_at_the_edge_and_left_out_where_nothing_remains(tmp_path):
    MINIATURES["vstar"](tmp_path)
    annotation = {"bbox": [[-5, 10, 20, 100], [70, 0, 5, 5]]}
    write_file(tmp_path / "direct_attributes/sa_4690.json", json.dumps(annotation).encode())
    (question,) = find("vstar").questions(source=tmp_path)
    assert [tuple(box) for box in question.boxes] == [(0, 10, 15, 40)]


def test_images_are_kept_once_and_not_decoded(tmp_path, monkeypatch):
    MINIATURES["pope-random"](tmp_path)
    decoded = []
    monkeypatch.setattr(ImageFile, "load", lambda image: decoded.append(image))
    first, second = find("pope-random").questions(source=tmp_path)
    assert first.images[0] is second.images[0]
    assert not decoded


def test_an_image_in_an_archive_may_have_been_unpacked(tmp_path):
    MINIATURES["slake"](tmp_path)
    write_file(tmp_path / "imgs/xmlab1/source.jpg", encoded(BLUE))
    (tmp_path / "imgs.zip").unlink()
    assert find("slake").questions(source=tmp_path)[0].images == (tmp_path / "imgs/xmlab1/source.jpg",)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/etc/hostname", "is an absolute path"),
        ("../secret.jpg", "leads out of its folder"),
        ("a/../../secret.jpg", "leads out of its folder"),
        ("http://a.org/1.jpg", "there is no image"),
        ("", "its image is empty"),
    ],
)
def test_a_row_names_no_file_outside_its_folder(name, said, tmp_path):
    MINIATURES["vstar"](tmp_path / "copy")
    write_file(tmp_path / "secret.jpg", encoded(RED))
    row = {"image": name, "text": "?", "category": "direct_attributes", "label": "A", "question_id": "0"}
    json_lines(tmp_path / "copy/test_questions.jsonl", [row])
    with pytest.raises(DataError, match=f"vstar: row 0 cannot be used: .*{said}"):
        find("vstar").questions(source=tmp_path / "copy")


# drawing some of them


def test_a_limit_draws_evenly_over_the_parts_and_always_the_same(tmp_path):
    rows = [
        {"image": picture(RED), "question": f"Number {place}?", "answer": "yes" if place < 90 else "liver"}
        for place in range(100)
    ]
    parquet(tmp_path / "test.parquet", {"image": ImageColumn(), **dict.fromkeys(("question", "answer"), TEXT)}, rows)
    benchmark = find("vqa-rad")
    loaded = benchmark.load(limit=10, source=tmp_path)
    assert Counter(question.dataset for question in loaded.questions) == {"closed": 5, "open": 5}
    assert loaded.available == 100
    assert loaded.sha256 == benchmark.load(limit=10, source=tmp_path).sha256
    assert {question.id for question in loaded.questions} < {
        question.id for question in benchmark.questions(limit=20, source=tmp_path)
    }
    assert len(benchmark.questions(limit=1000, source=tmp_path)) == 100


def test_pairs_are_drawn_whole(tmp_path):
    features = {"Index": NUMBER, "Question": TEXT, "Options": TEXT, "Correct Answer": TEXT, "image": ImageColumn()}
    row = {"Question": "Open?", "Options": "(a) Yes (b) No", "Correct Answer": "(a)", "image": picture(RED)}
    parquet(tmp_path / "train.parquet", features, [{**row, "Index": index} for index in range(1, 21)])
    drawn = find("mmvp").questions(limit=7, source=tmp_path)
    assert set(Counter(question.facts["pair"] for question in drawn).values()) == {2}
    assert len(drawn) == 6


def test_the_hash_is_of_what_was_asked_and_seen(tmp_path):
    hashes = set()
    for colour, answer in ((RED, "14"), (RED, "15"), (BLUE, "14")):
        features = {"type": TEXT, "question": TEXT, "answer": TEXT, "image": ImageColumn()}
        row = {"type": "human_test", "question": "How tall?", "answer": answer, "image": picture(colour)}
        folder = tmp_path / f"{answer}-{colour[0]}"
        parquet(folder / "test.parquet", features, [row])
        hashes.add(find("chartqa").load(source=folder).sha256)
    assert len(hashes) == 3


# the hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine that has one dataset, as a miniature."""
    with running() as server:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield server


def publish(server, name: str, folder) -> list[Expected]:
    expected = MINIATURES[name](folder)
    server.files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return expected


@pytest.mark.parametrize("name", [name for name in MINIATURES if not name.startswith(("grit-", "vsr"))])
def test_the_same_from_the_hub(name, hub, tmp_path):
    expected = publish(hub, name, tmp_path / "published")
    benchmark = find(name)
    loaded = benchmark.load()
    for question, wanted in zip(loaded.questions, expected, strict=True):
        check(question, wanted, benchmark)
    assert loaded.revision == (COMMIT if benchmark.revision == "main" else benchmark.revision)
    assert loaded.sha256 == benchmark.load(source=tmp_path / "published").sha256


def test_only_the_files_of_a_benchmark_are_fetched(hub, tmp_path):
    publish(hub, "pope-random", tmp_path / "published")
    hub.files["README.md"] = b"# POPE"
    find("pope-random").load()
    fetched = [path.name for path in (tmp_path / "hub").rglob("*.*") if path.is_symlink()]
    assert fetched == ["random-00000-of-00001.parquet"]


def test_what_was_fetched_is_there_without_a_network(hub, tmp_path, monkeypatch):
    publish(hub, "vstar", tmp_path / "published")
    online = find("vstar").load()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find("vstar").load().sha256 == online.sha256


def test_without_a_network_it_says_how_to_fetch_it_and_exits_with_4(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NotFetched) as raised:
        find("mmstar").load()
    assert raised.value.exit_code == 4
    message = str(raised.value)
    assert "'Lin-Chen/MMStar' is not on this machine, and the hub cannot be reached" in message
    assert (
        "hf download Lin-Chen/MMStar --repo-type dataset --revision bc98d668301da7b14f648724866e57302778ab27 "
        "--local-dir FOLDER, and give --source FOLDER"
    ) in message


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ((403, "GatedRepo"), "accept its conditions at https://huggingface.co/datasets/Lin-Chen/MMStar and log in"),
        ((401, "RepoNotFound"), "The hub has no dataset Lin-Chen/MMStar, or does not open it to you"),
        ((404, "RevisionNotFound"), "has no revision bc98d668301da7b14f648724866e57302778ab27 any more"),
        ((500, ""), "the hub cannot be reached"),
    ],
)
def test_a_hub_that_refuses_is_one_message_with_what_to_do(refusal, said, hub):
    hub.refuse_reading = refusal
    with pytest.raises(NotFetched, match=said) as raised:
        find("mmstar").load()
    assert "--source" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_images_that_a_dataset_leaves_with_their_host_are_fetched_once(hub, tmp_path, monkeypatch, capsys):
    expected = publish(hub, "vsr", tmp_path / "published")
    hub.files["val2017/000000017697.jpg"] = hub.files.pop("images/000000017697.jpg")
    coco = f"{hub.address}/coco/resolve/any"
    monkeypatch.setattr(fetch, "SOURCES", Sources(coco=coco, trusted=frozenset({hub.address})))
    monkeypatch.setenv("GRIT_LITE_DATA", str(tmp_path / "data"))
    for question, wanted in zip(find("vsr").questions(), expected, strict=True):
        check(question, wanted, find("vsr"))
    assert f"Images are fetched into {tmp_path / 'data' / 'vsr'}, once." in capsys.readouterr().err
    del hub.files["val2017/000000017697.jpg"]
    assert len(find("vsr").questions()) == 2
    (tmp_path / "data/vsr/000000017697.jpg").unlink()
    with pytest.raises(DataError, match=r"vsr: row 0 cannot be used: .*train2017/000000017697.jpg: HTTP 404"):
        find("vsr").questions()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        NotFetched,
        match=r"vsr: row 0 cannot be used: .*17697.jpg' has not been fetched, and HF_HUB_OFFLINE is set",
    ):
        find("vsr").questions()


# what can be wrong with a copy


def test_a_missing_column_is_named_with_what_was_found(tmp_path):
    features = {"image": ImageColumn(), "query": TEXT, "answer": TEXT}
    parquet(tmp_path / "test.parquet", features, [{"image": picture(RED), "query": "?", "answer": "no"}])
    message = r"vqa-rad needs the column 'question', which .* does not have; it has image, query, answer\."
    with pytest.raises(DataError, match=message):
        find("vqa-rad").load(source=tmp_path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"answer": ""}, "vqa-rad: row 1 cannot be used: its answer is empty"),
        ({"question": " "}, "vqa-rad: row 1 cannot be used: its question is empty"),
        ({"question": None}, "vqa-rad: row 1 cannot be used: its question is empty"),
        ({"image": None}, "vqa-rad: row 1 cannot be used: it has no image"),
        ({"image": {"bytes": b"GIF89a", "path": None}}, "row 1 cannot be used: it is not a JPEG, PNG or WebP image"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(row, said, tmp_path):
    good = {"image": {"bytes": encoded(RED), "path": None}, "question": "Is it?", "answer": "no"}
    features = {"image": {"bytes": Value("binary"), "path": TEXT}, "question": TEXT, "answer": TEXT}
    parquet(tmp_path / "test.parquet", features, [good, good | row])
    with pytest.raises(DataError, match=said):
        find("vqa-rad").load(source=tmp_path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, r"has no data/test-\*, and no table named after the split 'test'; it has no table"),
        ({"train.jsonl": b"{}", "dev.jsonl": b"{}"}, "it has dev.jsonl, train.jsonl"),
        ({"test.parquet": b"PAR1 but broken"}, "cannot be read as a table"),
        ({"test.jsonl": b'{"image": '}, "cannot be read as a table"),
    ],
)
def test_a_folder_without_a_table_says_what_it_has(files, said, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        find("vqa-rad").load(source=tmp_path)


def test_a_source_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"There is nothing at .*nowhere \(--source\)"):
        find("vqa-rad").load(source=tmp_path / "nowhere")


def test_grits_sets_say_how_to_fetch_them(tmp_path, monkeypatch):
    monkeypatch.setenv("GRIT_LITE_DATA", str(tmp_path))
    with pytest.raises(NotFetched, match="grit-lite data fetch grit --split val"):
        find("grit-vsr").load()
    with pytest.raises(NotFetched, match=r"hf download yfan1997/GRIT_data mme_val.jsonl .* into FOLDER/mme"):
        find("grit-mme").load()
    with pytest.raises(DataError, match=r"there is no mme_val.jsonl in .*hf download"):
        find("grit-mme").load(source=tmp_path)
    MINIATURES["grit-vsr"](tmp_path / "grit")
    assert [question.gold for question in find("grit-vsr").questions()] == ["tv"]
    write_file(tmp_path / "grit/vsr_val.jsonl", b'{"question": "?"}\n')
    with pytest.raises(DataError, match=r'vsr_val.jsonl:1: no "answer"; add a text or a number'):
        find("grit-vsr").load()


# names, and benchmarks of one's own


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(
        UsageError, match=r"There is no benchmark 'pope-adverserial'. Did you mean 'pope-adversarial'\?"
    ):
        find("pope-adverserial")


def test_the_worked_example_is_a_benchmark_of_ones_own(tmp_path):
    example = Path(__file__).parents[1] / "docs/own_benchmark.py"
    row = {"photo": "12.jpg", "asked": "How many cars are parked?", "truth": 4, "camera": "north"}
    json_lines(tmp_path / "parking.jsonl", [row | {"cars": [[10, 20, 30, 10]]}])
    write_file(tmp_path / "12.jpg", encoded(RED))
    (question,) = find(f"{example}:PARKING").questions(source=tmp_path)
    asked = "How many cars are parked?\nAnswer with a single number."
    assert (question.text, question.gold, question.dataset, question.scorer) == (asked, "4", "north", "number")
    assert [tuple(box) for box in question.boxes] == [(10, 20, 40, 30)]
    with pytest.raises(NotFetched, match="parking is not on the hub; give a copy of it with --source"):
        find(f"{example}:PARKING").questions()
    assert len(example.read_text().partition('"""\n\n')[2].splitlines()) < 30


def test_what_is_no_benchmark_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text("THING = 3\n")
    with pytest.raises(UsageError, match="is a int, not a Benchmark"):
        find(f"{tmp_path / 'mine.py'}:THING")
    with pytest.raises(RecipeError, match="There is no Python file"):
        find(f"{tmp_path / 'other.py'}:THING")


# the command


def test_the_list_fits_into_80_columns_and_names_all(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = CliRunner().invoke(app, ["benchmarks"])
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    for name in names():
        assert sum(line.split()[:1] == [name] for line in lines) == 1


def test_the_list_for_programs():
    done = CliRunner().invoke(app, ["benchmarks", "--json"])
    assert json.loads(done.stdout) == listing()
