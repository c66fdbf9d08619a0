"""The command line: every mistake is one message, the right exit code, and no traceback."""

import json
import struct
import sys
import zlib

import pytest

from benchmarks.models import configuration
from grit_lite.cli import main
from grit_lite.machine import default_recipe, find_gpu
from grit_lite.recipe import Recipe
from grit_lite.run import Run


@pytest.fixture
def cli(monkeypatch, capsys):
    """Runs a command line in this process; returns (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["grit-lite", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def refused(outcome, code, *parts):
    """The command ended with `code` and one message that holds all parts."""
    got, out, err = outcome
    assert got == code, err
    assert "Traceback" not in err
    for part in parts:
        assert part in " ".join(err.split()), err
    return out


def test_help_names_every_command(cli):
    code, out, _ = cli("--help")
    assert code == 0
    for command in ("train", "eval", "chat", "report", "rewards", "data", "recipes"):
        assert command in out


@pytest.mark.parametrize(
    "command",
    ["train", "eval", "chat", "report", "rewards", "recipes", ("data", "check"), ("data", "fetch")],
    ids=str,
)
def test_every_command_explains_itself(cli, command):
    words = (command,) if isinstance(command, str) else command
    code, out, _ = cli(*words, "--help")
    assert code == 0
    assert "Usage: grit-lite" in out


def test_the_version_is_printed(cli):
    assert cli("--version")[1].startswith("grit-lite ")


def test_a_misspelt_command_names_the_right_one(cli):
    refused(cli("trian"), 2, "Did you mean 'train'?")


def test_an_unknown_option_is_a_usage_error(cli):
    refused(cli("train", "--tripletts", "20"), 2, "No such option")


def test_an_unknown_recipe_key_names_the_nearest_one(cli):
    refused(cli("train", "--set", "lerning_rate=1"), 2, "no recipe key 'lerning_rate'", "'learning_rate'")


def test_a_dry_run_prints_the_whole_recipe_and_starts_nothing(cli, tmp_path):
    code, out, _ = cli("train", "--triplets", "7", "--dry-run", "--json", "--output", tmp_path / "run")
    assert code == 0
    assert json.loads(out)["triplets"] == 7
    assert not (tmp_path / "run").exists()


def test_without_a_recipe_the_machine_chooses_and_says_which_and_why(cli):
    name, why = default_recipe(find_gpu())
    code, out, err = cli("train", "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["name"] == name
    assert f"Recipe: {name}, because none was named with --recipe and {why}." in " ".join(err.split())


@pytest.mark.parametrize(
    ("setting", "code", "message"),
    [
        ("model=tinny", 4, "no model 'tinny'"),
        ("rewards=grit-lit", 2, "no reward preset 'grit-lit'. Did you mean 'grit-lite'?"),
        ("rewards=grit-paper", 2, "needs a judge, and none is configured. Name one: judge=rules"),
        ("judge=''", 2, "judge = '': String should have at least 1 character"),
        ("rewards={missing.py:f: 1}", 2, "no Python file missing.py"),
    ],
)
def test_a_name_that_does_not_exist_is_refused_before_there_is_a_run(cli, tmp_path, setting, code, message):
    refused(cli("train", "--recipe", "tiny", "--set", setting, "--output", tmp_path / "run"), code, message)
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_not_cached_offline_says_so_before_there_is_a_run(cli, tmp_path):
    outcome = cli("train", "--recipe", "tiny", "--set", "model=nobody/nothing", "--output", tmp_path / "run")
    refused(outcome, 4, "nobody/nothing is not on this machine", "HF_HUB_OFFLINE")
    assert not (tmp_path / "run").exists()


def test_a_model_that_does_not_load_says_so_and_the_run_says_it_failed(cli, tmp_path):
    configuration("qwen3_vl", "miniature").save_pretrained(tmp_path / "model")  # and no weights beside it
    outcome = cli("train", "--recipe", "tiny", "--set", f"model={tmp_path / 'model'}", "--output", tmp_path / "run")
    refused(outcome, 4, "cannot be loaded", "the processor's files")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def test_an_occupied_folder_is_refused(cli, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    refused(cli("train", "--recipe", "tiny", "--output", tmp_path), 2, "not empty", "--output")


def test_a_second_training_in_a_folder_is_refused(cli, tmp_path):
    run = Run.create(tmp_path / "run", Recipe())
    try:
        refused(cli("train", "--resume", "--output", tmp_path / "run"), 2, "Another process (pid")
    finally:
        run.close()


def test_resuming_needs_a_folder_and_nothing_else(cli, tmp_path):
    refused(cli("train", "--resume"), 2, "--resume needs the folder")
    for option in (["--triplets", "5"], ["--dry-run"], ["--bad-rows", "skip"], ["--set", "steps=3"]):
        refused(cli("train", "--resume", "--output", tmp_path, *option), 2, "it takes --output and --json only")
    refused(cli("train", "--resume", "--output", tmp_path), 2, "no run to resume")


def test_asking_for_more_triplets_than_there_are_says_how_many_there_are(cli, tmp_path):
    refused(cli("train", "--recipe", "tiny", "--triplets", "999", "--output", tmp_path / "run"), 3, "20")


def test_a_run_without_an_adapter_cannot_be_evaluated(cli, tmp_path):
    refused(cli("eval", tmp_path), 2, "nothing to evaluate")


def test_what_cannot_be_evaluated_is_said_before_a_model_is_loaded(cli, tmp_path):
    refused(cli("eval"), 2, "a run folder, or with --model a model")
    refused(cli("eval", tmp_path, "--model", "tiny"), 2, "a run folder, or with --model a model")
    refused(cli("eval", "--model", "tiny", "--compare", tmp_path), 2, "a model has none")
    refused(cli("eval", tmp_path, "--source", tmp_path), 2, "name it, and it alone, with --benchmark")
    refused(cli("eval", tmp_path, "--shard", "3/2"), 2, "write it as 1/4")
    refused(cli("eval", "--model", "tiny", "--benchmark", "shape"), 2, "no benchmark 'shape'", "'shapes'")
    refused(cli("eval", "--model", "tiny", "--seeds", "3", "--temperature", "0"), 2, "again. Leave one")


def test_a_benchmark_that_does_not_exist_is_refused_before_there_is_a_run(cli, tmp_path):
    outcome = cli("train", "--recipe", "tiny", "--set", "evaluate=shape", "--output", tmp_path / "run")
    refused(outcome, 2, "no benchmark 'shape'")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run_has_no_report(cli, tmp_path):
    refused(cli("report", tmp_path), 2, "not a run folder")


def test_bad_rows_are_listed_by_file_and_line(cli, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "how many?"\n{"question": "how many?", "answer": "1", "image": "gone.png"}\n')
    out = refused(cli("data", "check", path), 3, "2 of 2 rows are bad")
    assert f"{path}:1" in out
    assert f"{path}:2" in out
    assert "gone.png" in out


def test_data_with_other_column_names_can_be_checked(cli, tmp_path):
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "mine.jsonl").write_text('{"q": "how many?", "answer": "1", "image": "a.png"}\n')
    assert cli("data", "check", tmp_path / "mine.jsonl", "--column", "question=q")[0] == 0
    assert 'no "question"' in refused(cli("data", "check", tmp_path / "mine.jsonl"), 3, "1 of 1 rows are bad")
    refused(cli("data", "check", tmp_path / "mine.jsonl", "--column", "question"), 2, "field=name")


def test_a_hub_source_without_a_name_is_refused(cli):
    refused(cli("data", "check", "hf:"), 3, "hf: names no dataset")


def test_the_embedded_triplets_are_all_good(cli):
    code, out, _ = cli("data", "check", "embedded", "--json")
    assert code == 0
    assert json.loads(out)["good"] == 20
    assert json.loads(out)["bad"] == []


def png_header(width, height):
    """A PNG that declares a size and holds no pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.png", None, "missing.png"),
        ("text.png", b"not an image at all", "text.png"),
        ("corrupt.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF" + b"\x00" * 40, "corrupt.jpg"),
        ("huge.png", png_header(30_000, 30_000), "30"),
    ],
)
def test_an_image_that_cannot_be_used_is_refused_before_the_model_is_loaded(cli, tmp_path, name, content, reason):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    refused(cli("chat", tmp_path / name, "--question", "How many?"), 3, reason)


def test_an_unknown_chat_model_is_refused(cli, tmp_path):
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    refused(cli("chat", tmp_path / "a.png", "-q", "How many?", "--model", "tinny"), 4, "no model 'tinny'")


def test_a_bug_of_ours_is_one_line_and_exit_code_one(cli, monkeypatch):
    monkeypatch.setattr("grit_lite.cli.recipe_files", lambda: 1 / 0)
    refused(cli("recipes"), 1, "ZeroDivisionError", "bug in grit-lite", "--debug")


def test_an_error_brings_no_escapes_to_the_terminal(cli):
    _, _, err = cli("chat", "\x1b]52;c;aGk=\x07gone.png", "-q", "How many?")
    assert "gone.png" in err
    assert "\x1b]52" not in err


def test_debug_shows_the_traceback_wherever_it_is_typed(cli, monkeypatch):
    monkeypatch.setattr("grit_lite.cli.recipe_files", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli("recipes", "--debug")


def test_completions_are_scored_and_the_attacks_shown(cli, tmp_path):
    path = tmp_path / "completions.jsonl"
    row = {"completion": "<answer> 2", "question": "How many?", "answer": "2", "dataset": "tallyqa"}
    path.write_text(json.dumps(row) + "\n")
    code, out, _ = cli("rewards", path)
    assert code == 0
    assert "grit-lite on 1 completions" in out
    assert "box spam" in out
    scored = json.loads(cli("rewards", path, "--json")[1])
    assert scored["means"]["answer"] == 1.0
    judged = cli("rewards", path, "--preset", "grit-paper", "--judge", "rules", "--json")[1]
    assert json.loads(judged)["means"]["answer_judge"] == 1.0
    refused(cli("rewards", path, "--preset", "grit-lit"), 2, "grit-lite")
    refused(cli("rewards", tmp_path / "gone.jsonl"), 3, "gone.jsonl")


def test_every_recipe_is_listed(cli):
    assert set(json.loads(cli("recipes", "--json")[1])) >= {"tiny"}
