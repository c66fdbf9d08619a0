"""The run folder: nothing half written, nothing written over, one owner."""

import json
import subprocess
import sys
import textwrap

import pytest

from grit_lite.errors import DataError, UsageError
from grit_lite.recipe import Recipe
from grit_lite.run import (
    MANIFEST,
    METRICS,
    Run,
    is_complete,
    new_folder,
    newest_finished,
    read_facts,
    read_rows,
    write_json,
)


@pytest.fixture
def run(tmp_path):
    run = Run.create(tmp_path / "run", Recipe(keep_checkpoints=2))
    yield run
    run.close()


def staged_checkpoint(run, step, text="weights"):
    folder = run.staging / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "adapter.bin").write_text(text)
    return folder


def test_a_new_run_says_what_it_is_and_that_it_runs(run):
    assert run.facts()["status"] == "running"
    assert run.facts()["changes"] == []
    assert (run.folder / "recipe.yaml").is_file()


def test_an_occupied_folder_is_refused_and_the_way_out_named(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"not empty.*Choose another with --output, or empty it yourself"):
        Run.create(tmp_path, Recipe())
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_with_a_run_in_it_names_resume(run):
    run.append(METRICS, [{"step": 1}])
    run.close()
    with pytest.raises(UsageError, match="go on with it: --resume"):
        Run.create(run.folder, Recipe())


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UsageError, match="not empty"):
        Run.create(tmp_path / "run", Recipe())


def test_a_run_that_failed_before_its_first_step_may_be_started_anew(run):
    run.finish("failed", error="no such data")
    run.close()
    again = Run.create(run.folder, Recipe(steps=7))
    assert again.recipe.steps == 7
    assert "error" not in again.facts()
    again.close()


def test_a_run_killed_while_its_recipe_was_written_has_none_and_may_be_started_anew(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            Run.create(tmp_path / "run", Recipe(steps=7))
    assert not (tmp_path / "run" / "recipe.yaml").exists()
    again = Run.create(tmp_path / "run", Recipe(steps=8))
    assert "steps: 8" in (again.folder / "recipe.yaml").read_text()
    again.close()


def test_a_run_killed_while_its_folder_was_made_can_be_resumed_and_finished(run):
    run.close()
    (run.folder / "run.json").unlink()
    resumed = Run.resume(run.folder)
    resumed.finish("done")
    assert resumed.facts()["status"] == "done"
    resumed.close()


def test_a_line_that_is_not_json_is_named(run):
    run.append(METRICS, [{"step": 1}])
    (run.folder / METRICS).write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: not JSON"):
        list(read_rows(run.folder / METRICS))


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot be written.*Choose another: --output"):
        Run.create(tmp_path / "file" / "run", Recipe())


def test_a_second_process_in_the_same_folder_is_refused_with_the_pid_of_the_first(run):
    code = f"""
        from pathlib import Path
        from grit_lite.run import Run
        Run.resume(Path({str(run.folder)!r}))
    """
    other = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert f"Another process (pid {run.facts()['machine']['pid']} on" in other.stderr


def test_the_lock_of_a_dead_process_holds_nobody(tmp_path):
    code = f"""
        import os
        from pathlib import Path
        from grit_lite.recipe import Recipe
        from grit_lite.run import Run
        Run.create(Path({str(tmp_path / "run")!r}), Recipe(steps=3))
        os._exit(137)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)])
    run = Run.resume(tmp_path / "run")
    assert run.recipe.steps == 3
    run.close()


def test_a_finished_run_is_not_resumed(run):
    run.finish("done")
    run.close()
    with pytest.raises(UsageError, match="is done; there is nothing to resume"):
        Run.resume(run.folder)


def test_a_folder_without_a_run_is_not_resumed(tmp_path):
    with pytest.raises(UsageError, match="no run to resume"):
        Run.resume(tmp_path)


def test_a_change_is_recorded_after_those_before_it(run):
    run.changed("first")
    run.changed("second")
    assert run.facts()["changes"] == ["first", "second"]


def test_finishing_states_the_duration(run):
    run.finish("stopped", error="why")
    facts = run.facts()
    assert facts["status"] == "stopped"
    assert facts["error"] == "why"
    assert facts["seconds"] >= 0


def test_rows_come_back_as_written(run):
    run.append(METRICS, [{"step": 1, "text": "Füße 日本"}, {"step": 2, "text": ""}])
    assert [row["text"] for row in read_rows(run.folder / METRICS)] == ["Füße 日本", ""]


def test_a_number_that_is_not_finite_never_reaches_a_file(run):
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.append(METRICS, [{"step": 1, "loss": float("nan")}])
    assert list(read_rows(run.folder / METRICS)) == []


def test_a_last_line_torn_at_any_byte_is_not_a_row(run):
    run.append(METRICS, [{"step": 1}, {"step": 2}])
    whole = (run.folder / METRICS).read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole)):
        (run.folder / METRICS).write_bytes(whole[:length])
        assert [row["step"] for row in read_rows(run.folder / METRICS)] == [1]


def test_rewinding_drops_later_rows_and_a_torn_line(run):
    run.append(METRICS, [{"step": step} for step in (1, 2, 3)])
    with (run.folder / METRICS).open("a") as file:
        file.write('{"step": 4, "rew')
    run.rewind(2)
    assert [row["step"] for row in read_rows(run.folder / METRICS)] == [1, 2]
    run.append(METRICS, [{"step": 3}])
    assert [row["step"] for row in read_rows(run.folder / METRICS)] == [1, 2, 3]


def test_a_committed_checkpoint_is_complete_and_the_latest(run):
    final = run.commit_checkpoint(staged_checkpoint(run, 10), 10)
    assert final.name == "step-000010"
    assert is_complete(final)
    assert run.latest_checkpoint() == (10, final)


def test_a_checkpoint_with_one_byte_changed_is_passed_over(run):
    older = run.commit_checkpoint(staged_checkpoint(run, 10), 10)
    newer = run.commit_checkpoint(staged_checkpoint(run, 20), 20)
    (newer / "adapter.bin").write_text("weightz")
    assert run.latest_checkpoint() == (10, older)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_checkpoint_with_a_damaged_manifest_is_passed_over(run, text):
    final = run.commit_checkpoint(staged_checkpoint(run, 10), 10)
    (final / MANIFEST).write_text(text)
    assert run.latest_checkpoint() is None


@pytest.mark.parametrize("lost", ["adapter.bin", MANIFEST])
def test_a_checkpoint_with_a_lost_file_is_passed_over(run, lost):
    final = run.commit_checkpoint(staged_checkpoint(run, 10), 10)
    (final / lost).unlink()
    assert run.latest_checkpoint() is None


def test_only_the_newest_checkpoints_are_kept(run):
    for step in (10, 20, 30):
        run.commit_checkpoint(staged_checkpoint(run, step), step)
    assert [path.name for path in sorted(run.checkpoints.glob("step-*"))] == ["step-000020", "step-000030"]


def test_an_incomplete_checkpoint_of_the_same_step_is_replaced(run):
    final = run.commit_checkpoint(staged_checkpoint(run, 10, "old"), 10)
    (final / MANIFEST).unlink()
    run.commit_checkpoint(staged_checkpoint(run, 10, "new"), 10)
    assert (final / "adapter.bin").read_text() == "new"
    assert is_complete(final)


def test_resuming_clears_what_a_dying_process_had_staged(run):
    staged_checkpoint(run, 10)
    run.close()
    resumed = Run.resume(run.folder)
    assert not resumed.staging.exists()
    resumed.close()


def test_other_data_than_the_run_began_with_is_refused(run):
    run.check_data("a" * 64)
    run.update(data={"sha256": "a" * 64})
    run.check_data("a" * 64)
    with pytest.raises(DataError, match="training data changed since this run began"):
        run.check_data("b" * 64)


def test_the_newest_finished_run_is_the_one_that_finished_last(tmp_path):
    for name, finished in (("a", "2026-01-02"), ("b", "2026-01-03"), ("c", "2026-01-01")):
        (tmp_path / name / "adapter").mkdir(parents=True)
        write_json(tmp_path / name / "run.json", {"finished": finished})
    (tmp_path / "d").mkdir()
    write_json(tmp_path / "d" / "run.json", {"finished": "2026-01-09"})  # no adapter
    assert newest_finished(tmp_path) == tmp_path / "b"
    assert newest_finished(tmp_path / "d") is None


@pytest.mark.parametrize(("text", "finished"), [("[1]", None), ("{}", None)])
def test_a_run_that_never_said_when_it_finished_is_still_a_run(tmp_path, text, finished):
    (tmp_path / "a" / "adapter").mkdir(parents=True)
    (tmp_path / "a" / "run.json").write_text(text)
    assert read_facts(tmp_path / "a").get("finished") is finished
    assert newest_finished(tmp_path) == tmp_path / "a"


def test_facts_that_are_not_json_are_named(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run\.json is not readable JSON"):
        read_facts(tmp_path)


def test_a_folder_is_called_after_recipe_and_time():
    name = new_folder(Recipe(name="tiny")).name
    assert name.startswith("tiny-20")
    assert len(name) == len("tiny-20260102-030405")


def test_a_file_is_replaced_whole(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    write_json(tmp_path / "x.json", {"a": 2})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
