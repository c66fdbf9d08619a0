"""An evaluation: interrupted it goes on, what has changed is asked again, and parts make a whole, to the last byte."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from grit_lite import __version__
from grit_lite.backends import open_backend
from grit_lite.backends.plain import PlainBackend
from grit_lite.cli import main
from grit_lite.errors import Stopped, UsageError
from grit_lite.evaluate import SYSTEMS, Decoding, Shard
from grit_lite.evaluate.rows import scored_by
from grit_lite.evaluate.runner import sampled_by
from grit_lite.evaluating import Wish, evaluate_again, evaluate_model, finished, in_place
from grit_lite.recipe import load_recipe
from grit_lite.run import Run, contents, read_rows
from grit_lite.tiny.build import save_untrained
from grit_lite.tiny.world import make_scene
from grit_lite.training import save_adapter, train

SHORT = ["max_completion_tokens=6", "eval_questions=8"]
FILES = ("shapes.json", "shapes.jsonl")

# The command line, in a process that kills itself after it has kept completions for the n-th time, with half a row
# behind them.
KILLED = textwrap.dedent("""
    import os, signal
    from grit_lite.evaluate.runner import Completions
    add, kept = Completions.add, 0

    def killing(self, completions):
        global kept
        add(self, completions)
        kept += 1
        if kept == int(os.environ["KILL_AT"]):
            with self.path.open("a") as file:
                file.write('{"key": "ab')
            os.kill(os.getpid(), signal.SIGKILL)

    Completions.add = killing
    from grit_lite.cli import main
    main()
""")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp("untrained"))


def make_run(folder, model, strength, *settings):
    """A finished run, its adapter drawn at random instead of trained."""
    recipe = load_recipe("tiny", [f"model={model}", *SHORT, *settings])
    run = Run.create(folder, recipe)
    save_adapter(run, with_adapter(recipe, strength))
    run.finish("done")
    run.close()
    return folder


def with_adapter(recipe, strength):
    backend = open_backend(recipe)
    backend.attach_lora(recipe)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in backend.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=strength, generator=generator)
    backend.model.eval()
    return backend


@pytest.fixture(scope="module")
def first(model, tmp_path_factory):
    """A run that was evaluated without interruption, three questions at a time."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "first", model, 0.1)
    evaluate_again(folder, Wish(batch_size=3))
    return folder


@pytest.fixture(scope="module")
def second(model, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "second", model, 0.2)


@pytest.fixture
def unevaluated(first, tmp_path):
    shutil.copytree(first, tmp_path / "first", ignore=shutil.ignore_patterns("eval"))
    return tmp_path / "first"


def rows(folder, name="shapes"):
    return list(read_rows(folder / "eval" / f"{name}.jsonl"))


def completions(folder):
    return list(read_rows(folder / "eval" / "shapes.completions.jsonl"))


def assert_same(folder, other):
    for name in FILES:
        assert (folder / "eval" / name).read_bytes() == (other / "eval" / name).read_bytes()


def test_rows_hold_what_was_asked_what_was_said_and_every_score(first):
    (row, *_), systems = rows(first), [row["system"] for row in rows(first)[:3]]
    assert systems == list(SYSTEMS)
    assert len(rows(first)) == 24 == len({(row["system"], row["id"]) for row in rows(first)})
    assert row["prompt"].startswith("\nQuestion: ")
    assert (row["scorer"], row["score"], row["correct"], row["draw"]) == ("rule", 0.0, False, 0)
    assert len(row["key"]) == 64
    assert row["cluster"]
    summary = json.loads((first / "eval" / "shapes.json").read_text())
    assert summary["failures"]["tuned"] == {"rows": 8, "without_answer": 8, "unfinished": 8, "not_judged": 0}
    settings = summary["settings"]
    assert {"model", "max_new_tokens", "decoding", "rows_sha256", "scored_by", "revision"} <= settings.keys()
    model = settings["model"]
    assert (model["max_pixels"], model["revision"]) == (load_recipe("tiny").max_pixels, None)
    assert (settings["grit-lite"], settings["source"]) == (__version__, None)
    hashes = [settings["systems"][name]["adapter"] for name in SYSTEMS]
    assert [settings["systems"][name].get("adapter_from") for name in SYSTEMS] == [None, None, "first"]
    assert hashes[:2] == [None, None]
    assert len(hashes[2]) == 64


def test_an_evaluation_killed_in_the_middle_goes_on_and_leaves_the_same_files(first, unevaluated):
    command = [sys.executable, "-c", KILLED, "eval", str(unevaluated), "--batch-size", "3"]
    killed = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "KILL_AT": "5"})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    kept = len(completions(unevaluated))
    assert 0 < kept < 24
    assert not (unevaluated / "eval" / "shapes.json").exists()
    (summary,) = evaluate_again(unevaluated, Wish(batch_size=3))
    assert summary["n"] == 8
    assert_same(unevaluated, first)
    assert [row["key"] for row in completions(unevaluated)] == [row["key"] for row in completions(first)]


def test_a_signal_keeps_what_was_asked_and_the_same_command_goes_on_from_there(first, unevaluated, monkeypatch):
    arguments = ["eval", str(unevaluated), "--batch-size", "1"]  # so that 23 batches are left after the first
    command = [sys.executable, "-m", "grit_lite", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not completions(unevaluated):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate()
    assert process.returncode == 143, stderr
    assert "Stopped by SIGTERM. What was asked is kept: the same command goes on from there." in stderr
    assert not (unevaluated / "eval" / "shapes.json").exists()
    kept, everything = completions(unevaluated), completions(first)
    assert 0 < len(kept) < len(everything)

    asked, generate = [], PlainBackend.generate

    def counted(self, requests, **options):
        asked.extend(requests)
        return generate(self, requests, **options)

    monkeypatch.setattr(PlainBackend, "generate", counted)
    monkeypatch.setattr(sys, "argv", ["grit-lite", *arguments])  # in this process, which has torch loaded already
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert len(asked) == len(everything) - len(kept)
    assert completions(unevaluated) == everything
    assert_same(unevaluated, first)


def test_what_is_known_is_not_asked_again(first, unevaluated, monkeypatch):
    shutil.copytree(first / "eval", unevaluated / "eval")
    for name in FILES:
        (unevaluated / "eval" / name).unlink()
    monkeypatch.setattr("grit_lite.backends.plain.PlainBackend.generate", lambda *_, **__: pytest.fail("asked again"))
    evaluate_again(unevaluated, Wish(batch_size=3))
    assert_same(unevaluated, first)


def test_a_changed_adapter_in_the_same_folder_is_asked_again(first, second, unevaluated):
    shutil.copytree(first / "eval", unevaluated / "eval")
    shutil.copytree(second / "adapter", unevaluated / "adapter", dirs_exist_ok=True)
    evaluate_again(unevaluated, Wish(batch_size=3))
    before, after = ({(r["system"], r["id"]): r for r in rows(folder)} for folder in (first, unevaluated))
    assert {system for (system, id), row in after.items() if row["key"] != before[system, id]["key"]} == {"tuned"}
    assert len(completions(unevaluated)) == 24 + 8
    fresh = unevaluated.parent / "fresh"
    shutil.copytree(unevaluated, fresh, ignore=shutil.ignore_patterns("eval"))
    evaluate_again(fresh, Wish(batch_size=3))
    assert rows(fresh) == rows(unevaluated)
    assert [row["completion"] for row in after.values()] != [row["completion"] for row in before.values()]


def test_an_adapter_of_the_same_tensors_that_counts_for_more_is_another_one(first, unevaluated):
    shutil.copytree(first / "eval", unevaluated / "eval")
    config = unevaluated / "adapter" / "adapter_config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "lora_alpha": 8 * settings["lora_alpha"]}))
    (summary,) = evaluate_again(unevaluated, Wish(batch_size=3))
    before, after = ({(r["system"], r["id"]): r for r in rows(folder)} for folder in (first, unevaluated))
    assert {system for (system, id), row in after.items() if row["key"] != before[system, id]["key"]} == {"tuned"}
    assert any(row["completion"] != before[place]["completion"] for place, row in after.items())
    earlier = json.loads((first / "eval" / "shapes.json").read_text())
    hashes = [one["settings"]["systems"]["tuned"]["adapter"] for one in (earlier, summary)]
    assert hashes[0] != hashes[1]


def test_a_run_whose_adapter_counts_for_more_does_not_borrow_the_model(first, second, unevaluated, tmp_path):
    louder = tmp_path / "louder"
    shutil.copytree(first, louder, ignore=shutil.ignore_patterns("eval"))
    config = louder / "adapter" / "adapter_config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "lora_alpha": 8 * settings["lora_alpha"]}))
    recipe = finished(first)
    assert in_place(recipe, finished(second), first / "adapter", second / "adapter")
    assert not in_place(recipe, finished(louder), first / "adapter", louder / "adapter")
    evaluate_again(unevaluated, Wish(against=louder, batch_size=3))
    beside = [row["completion"] for row in rows(unevaluated, "shapes-vs-louder") if row["system"] == "louder"]
    evaluate_again(louder, Wish(batch_size=3))
    assert beside == [row["completion"] for row in rows(louder) if row["system"] == "tuned"]


def test_what_other_code_has_sampled_is_asked_again(first, unevaluated, monkeypatch):
    shutil.copytree(first / "eval", unevaluated / "eval")
    monkeypatch.setattr("grit_lite.evaluate.runner.sampled_by", lambda: "other code")
    evaluate_again(unevaluated, Wish(batch_size=3))
    assert len(completions(unevaluated)) == 24 + 24


def test_parts_asked_by_several_processes_are_the_whole(first, unevaluated):
    assert evaluate_again(unevaluated, Wish(batch_size=3, shard=Shard.read("2/2"))) == []
    assert not (unevaluated / "eval" / "shapes.json").exists()
    (summary,) = evaluate_again(unevaluated, Wish(batch_size=3, shard=Shard.read("1/2")))
    assert summary["n"] == 8
    assert_same(unevaluated, first)
    halves = [read_rows(unevaluated / "eval" / f"shapes.completions.{part}of2.jsonl") for part in (1, 2)]
    assert [len(list(half)) for half in halves] == [15, 9]


def test_two_runs_stand_in_one_table(first, second, unevaluated):
    (summary,) = evaluate_again(unevaluated, Wish(against=second, batch_size=3))
    assert list(summary["systems"]) == ["base_direct", "base", "second", "tuned"]
    assert {(row["of"], row["against"]) for row in summary["paired"]} >= {("tuned", "second")}
    assert summary["settings"]["systems"]["second"]["adapter_from"] == "second"
    evaluate_again(second, Wish(batch_size=3))
    own = {row["id"]: row["completion"] for row in rows(second) if row["system"] == "tuned"}
    beside = {
        row["id"]: row["completion"] for row in rows(unevaluated, "shapes-vs-second") if row["system"] == "second"
    }
    assert own == beside
    tuned = [row["completion"] for row in rows(first) if row["system"] == "tuned"]
    assert tuned == [row["completion"] for row in rows(unevaluated, "shapes-vs-second") if row["system"] == "tuned"]
    assert not (unevaluated / "eval" / "shapes.json").exists()


def test_a_run_of_another_model_is_opened_by_itself(model, second, unevaluated, tmp_path):
    smaller = make_run(tmp_path / "smaller", model, 0.1, "max_pixels=4096")
    (summary,) = evaluate_again(unevaluated, Wish(against=smaller))
    systems = summary["settings"]["systems"]
    assert systems["smaller"]["processor"] != systems["tuned"]["processor"]
    assert systems["smaller"]["model"]["max_pixels"] == 4096 != systems["tuned"]["model"]["max_pixels"]
    evaluate_again(smaller, Wish())
    own = {row["id"]: row["completion"] for row in rows(smaller) if row["system"] == "tuned"}
    named = [row for row in rows(unevaluated, "shapes-vs-smaller") if row["system"] == "smaller"]
    assert own == {row["id"]: row["completion"] for row in named}


def test_a_copy_of_ones_own_and_an_adapter_outside_a_run_are_named(first, tmp_path):
    shutil.copytree(first / "adapter", tmp_path / "published")
    make_scene(0, "validation").image.save(tmp_path / "a.png")
    row = {"photo": "a.png", "asked": "How many?", "truth": 1, "cars": [], "camera": "north"}
    (tmp_path / "parking.jsonl").write_text(json.dumps(row) + "\n")
    wish = Wish((f"{Path(__file__).parents[1] / 'docs/own_benchmark.py'}:PARKING",), source=tmp_path)
    (summary,) = evaluate_model(tmp_path / "out", finished(first), tmp_path / "published", wish)
    assert (summary["settings"]["source"], summary["settings"]["revision"]) == (str(tmp_path), "local")
    assert summary["settings"]["systems"]["tuned"]["adapter_from"] == "published"


@pytest.mark.parametrize(
    ("refused", "error"),
    [
        (1, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")),
        (1, RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")),
        (2, MemoryError()),
    ],
)
def test_a_model_that_does_not_fit_as_it_is_opened_ends_with_exit_5(
    unevaluated, model, tmp_path, monkeypatch, capsys, refused, error
):
    """The second model that is opened is that of the other run."""
    load, opened = PlainBackend._load_model, []

    def loading(backend, location):
        opened.append(location)
        if len(opened) == refused:
            raise error
        return load(backend, location)

    other = make_run(tmp_path / "other", model, 0.1, "max_pixels=4096")
    monkeypatch.setattr(PlainBackend, "_load_model", loading)
    monkeypatch.setattr(sys, "argv", ["grit-lite", "eval", str(unevaluated), "--compare", str(other)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 5
    assert "did not fit into memory" in capsys.readouterr().err


def test_a_signal_while_results_are_summed_up_ends_at_once_with_what_was_asked_kept(first, unevaluated, monkeypatch):
    shutil.copytree(first / "eval", unevaluated / "eval")

    def conclude(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it went on")

    monkeypatch.setattr("grit_lite.evaluating.conclude", conclude)
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("nobody heard it"))
    try:
        with pytest.raises(Stopped, match=r"Stopped by SIGTERM\. What was asked is kept") as stopped:
            evaluate_again(unevaluated, Wish(batch_size=3))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.exit_code == 143


def test_two_runs_of_one_name_are_compared_in_files_of_their_own(first, second, unevaluated, tmp_path):
    namesakes = [tmp_path / parent / "run1" for parent in ("a", "b")]
    for run, namesake in zip((first, second), namesakes, strict=True):
        shutil.copytree(run, namesake, ignore=shutil.ignore_patterns("eval"))

    def compared():
        return {path.name: path.read_bytes() for path in (unevaluated / "eval").glob("shapes-vs-*.json*")}

    for namesake in namesakes:
        (summary,) = evaluate_again(unevaluated, Wish(against=namesake, batch_size=3))
    both, other = compared(), contents(namesakes[1] / "adapter")
    assert summary["settings"]["against"] == {"run": "run1", "adapter": other}
    name = f"shapes-vs-run1-{other[:8]}"
    assert both.keys() == {"shapes-vs-run1.json", "shapes-vs-run1.jsonl", f"{name}.json", f"{name}.jsonl"}
    for namesake in namesakes:
        evaluate_again(unevaluated, Wish(against=namesake, batch_size=3))
        assert compared() == both


def test_what_was_asked_at_the_end_of_training_is_not_asked_again(model, tmp_path, monkeypatch):
    settings = [f"model={model}", *SHORT, "evaluate=shapes", "steps=1", "triplets=2", "prompts_per_step=1"]
    train(Run.create(tmp_path / "run", load_recipe("tiny", settings)))
    monkeypatch.setattr("grit_lite.backends.plain.PlainBackend.generate", lambda *_, **__: pytest.fail("asked again"))
    evaluate_again(tmp_path / "run", Wish())


def test_sampled_answers_are_repeated_whatever_the_batch(unevaluated):
    (summary,) = evaluate_again(unevaluated, Wish(seeds=2, temperature=1.5, batch_size=5))
    sampled = rows(unevaluated, "shapes-sampled")
    assert [row["draw"] for row in sampled[:6]] == [0, 0, 0, 1, 1, 1]
    drawn = {(row["id"], row["system"], row["draw"]): row["completion"] for row in sampled}
    assert any(drawn[id, system, 0] != drawn[id, system, 1] for id, system, _ in drawn)
    shutil.rmtree(unevaluated / "eval")
    evaluate_again(unevaluated, Wish(seeds=2, temperature=1.5, batch_size=16))
    assert rows(unevaluated, "shapes-sampled") == sampled
    cell = summary["systems"]["tuned"]["tokens"]
    assert (cell["n"], len(cell["draws"]), summary["n"]) == (16, 2, 8)
    assert summary["settings"]["temperature"] == 1.5


def test_seeds_without_a_temperature_take_the_recipes(first):
    recipe = load_recipe("tiny", ["temperature=0.7"])
    assert Wish(seeds=3).decoding(recipe) == Decoding(recipe.max_completion_tokens, 0.7, 3)
    assert Wish().decoding(recipe) == Decoding(recipe.max_completion_tokens)
    assert Wish(temperature=0.3).decoding(recipe) == Decoding(recipe.max_completion_tokens, 0.3, 1)
    with pytest.raises(UsageError, match="--seeds at --temperature 0"):
        Wish(seeds=2, temperature=0.0).decoding(recipe)


def test_faithfulness_is_asked_greedily_and_in_one_process():
    recipe = load_recipe("tiny")
    assert Wish(faithfulness=True).decoding(recipe).temperature == 0
    for wish in (Wish(faithfulness=True, seeds=2), Wish(faithfulness=True, shard=Shard.read("1/2"))):
        with pytest.raises(UsageError, match="--faithfulness compares greedy answers"):
            wish.decoding(recipe)


def test_a_summary_names_the_code_that_sampled_and_scored_it(first):
    summary = json.loads((first / "eval" / "shapes.json").read_text())
    assert summary["settings"]["scored_by"] == scored_by()
    assert summary["settings"]["sampled_by"] == sampled_by()
    assert Path(scored_by.__globals__["__file__"]).name == "rows.py"
