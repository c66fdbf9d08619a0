"""The bridge as far as it goes without lmms-eval; `tests/lmms` has the rest."""

import importlib.util
from pathlib import Path

import pytest
import yaml
from PIL import Image

import grit_lite
from grit_lite.backends import open_backend
from grit_lite.chat import Chosen, find_model
from grit_lite.cli import main
from grit_lite.errors import DataError, ModelError, UsageError
from grit_lite.evaluate import shapes
from grit_lite.evaluate.question import from_triplet
from grit_lite.lmms.answering import Answering, Asked, missing, not_followed, read_messages
from grit_lite.lmms.identity import check_weights, choose_system, model_args, weights_name
from grit_lite.lmms.tasks import export_task
from grit_lite.recipe import load_recipe
from grit_lite.run import read_rows
from grit_lite.tiny.build import save_untrained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder as far as it is read, with an adapter that does nothing yet."""
    folder = tmp_path_factory.mktemp("runs") / "12345"
    folder.mkdir()
    recipe = load_recipe("tiny")
    backend = open_backend(recipe)
    backend.attach_lora(recipe)
    (folder / "recipe.yaml").write_text(recipe.text())
    backend.save_adapter(folder / "adapter")
    return folder


def message(*parts, role="user"):
    return [{"role": role, "content": list(parts)}]


IMAGE = {"type": "image", "url": Image.new("L", (8, 6))}
TEXT = {"type": "text", "text": "Is it red?\nAnswer the question using a single word or phrase."}


def test_a_tasks_images_come_in_order_and_its_hints_stay():
    second = {"type": "image", "url": Image.new("RGB", (4, 4))}
    asked = read_messages("pope", 3, message(IMAGE, second, TEXT))
    assert [image.size for image in asked.images] == [(8, 6), (4, 4)]
    assert all(image.mode == "RGB" for image in asked.images)
    assert asked.text == TEXT["text"]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (message(TEXT), "has no image"),
        (message({"type": "video", "url": "a.mp4"}, TEXT), "has video in it"),
        (message(TEXT, role="system") + message(IMAGE, TEXT), "not one turn of a user"),
        (message({"type": "image", "url": "there/is/none.png"}, TEXT), "cannot be read"),
    ],
)
def test_what_grit_lite_cannot_be_asked_is_refused(messages, reason):
    with pytest.raises(DataError, match=f"Document 3 of the task pope.*{reason}"):
        read_messages("pope", 3, messages)


def test_full_completions_are_kept_beside_what_is_handed_over(tmp_path):
    backend = open_backend(load_recipe("tiny"))
    file = tmp_path / "lmms" / "rows.jsonl"
    asked = [Asked("pope", number, (row.load_image(),), row.question) for number, row in enumerate(shapes(4))]
    direct = Answering(backend, "base_direct", 48, 2, file)(asked)
    grounded = Answering(backend, "base", 48, 4, file)(asked)
    assert list(read_rows(file)) == direct + grounded
    assert all(row["answer"] == row["completion"].strip() for row in direct)
    assert all(row["answer"] is None for row in grounded if "<answer>" not in row["completion"])
    assert "<rethink>" in grounded[0]["prompt"]
    assert "<rethink>" not in direct[0]["prompt"]


def test_the_arguments_name_the_weights_as_they_are_now(run):
    before, chosen = model_args(str(run)), find_model(str(run))
    assert before == f"run={run},system=tuned,weights={weights_name(chosen)}"
    file = run / "adapter" / "adapter_model.safetensors"
    old = file.read_bytes()
    file.write_bytes(old[:-1] + bytes([old[-1] ^ 1]))
    assert model_args(str(run)) != before
    with pytest.raises(UsageError, match="which are not these"):
        check_weights(chosen, before.rpartition("=")[2])
    file.write_bytes(old)
    check_weights(chosen, before.rpartition("=")[2])


def test_other_settings_and_other_base_weights_have_another_name(tmp_path):
    names = set()
    for seed in (0, 1):
        model = save_untrained(tmp_path / "model", seed)
        for settings in ([], ["max_pixels=4096"], ["max_completion_tokens=7"]):
            recipe = load_recipe("tiny", [f"model={model}", *settings])
            names.add(weights_name(Chosen(recipe, None, str(model), "")))
    assert len(names) == 6
    assert all(name.startswith("w") and len(name) == 17 for name in names)


@pytest.mark.parametrize("module", ["answer.py", "rollout.py", "lmms/answering.py", "evaluate/rows.py"])
def test_other_code_that_samples_or_extracts_answers_has_another_name(module, monkeypatch):
    read, chosen = Path.read_bytes, find_model("tiny")
    before = weights_name(chosen)
    changed = Path(grit_lite.__file__).parent / module
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"# changed" * (path == changed))
    assert weights_name(chosen) != before


def test_what_a_task_wants_and_does_not_get_is_said():
    assert not_followed([{"max_new_tokens": 48, "until": None, "temperature": 0, "num_beams": 1}, {}], 48) == []
    (length,) = not_followed([{"max_new_tokens": 16}, {"max_new_tokens": 8}], 48)
    assert "allow 8, 16 new tokens" in length
    assert "stops at 48" in length
    assert not_followed([{"do_sample": True}], 48) == not_followed([{"num_beams": 3}], 48) != []
    (ends,) = not_followed([{"until": ["\n\n", "ASSISTANT:"]}, {"until": "\n\n"}], 48)
    assert r"end an answer at 'ASSISTANT:', '\n\n' (until)" in ends


def test_nothing_is_said_where_nothing_is_missing():
    whole, empty, cut = (
        {"answer": answer, "finished": finished} for answer, finished in (("yes", True), (None, True), ("no", False))
    )
    assert missing([whole, whole], Path("rows.jsonl")) == ""
    said = missing([whole, empty, cut], Path("rows.jsonl"))
    assert said.startswith("grit_lite: 1 of 3 completions have no answer")
    assert "1 were cut off at the limit" in said
    assert said.endswith("rows.jsonl")


def test_arguments_without_weights_are_refused_with_the_right_ones():
    chosen = find_model("tiny")
    with pytest.raises(UsageError, match=f"add weights={weights_name(chosen)}"):
        check_weights(chosen, None)


@pytest.mark.parametrize(("system", "reason"), [("tuned", "no adapter"), ("best", "no system 'best'")])
def test_a_system_that_cannot_be_had_is_refused(system, reason):
    with pytest.raises(UsageError, match=reason):
        choose_system(find_model("tiny"), system)


def test_a_path_that_lmms_eval_would_misread_is_refused(tmp_path):
    (tmp_path / "a,b").mkdir()
    with pytest.raises(UsageError, match="commas"):
        model_args(str(tmp_path / "a,b"))


def test_the_task_folder_holds_the_questions_and_how_to_ask_them(tmp_path):
    import datasets

    triplets = shapes(8)
    task = export_task([from_triplet(triplet) for triplet in triplets], tmp_path / "tasks", "shapes")
    text = (tmp_path / "tasks" / f"{task}.yaml").read_text()
    declared = yaml.safe_load(text.replace("!function ", ""))
    data = declared["dataset_kwargs"]["data_files"]["test"]
    rows = datasets.load_dataset("parquet", data_files=data, cache_dir=str(tmp_path / "cache"))["train"]
    assert [row["question"] for row in rows] == [triplet.question for triplet in triplets]
    assert [row["images"][0].tobytes() for row in rows] == [triplet.load_image().tobytes() for triplet in triplets]
    assert "{" not in (tmp_path / "tasks" / "README.md").read_text()
    with pytest.raises(UsageError, match="not empty"):
        export_task([], tmp_path / "tasks", "shapes")


def test_the_command_prints_the_arguments_and_nothing_else(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["grit-lite", "lmms", "args", "tiny", "--system", "direct"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out == model_args("tiny", "direct") + "\n"


@pytest.mark.skipif(importlib.util.find_spec("lmms_eval") is not None, reason="lmms-eval is here")
def test_without_lmms_eval_the_model_says_what_to_install():
    with pytest.raises(ModelError, match=r"pip install 'grit-lite\[lmms\]'"):
        importlib.import_module("grit_lite.lmms.model")
