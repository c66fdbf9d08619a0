"""The recipe carried out from the command line: killed anywhere and resumed, it writes what it would have written."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from grit_lite.cli import main
from grit_lite.run import METRICS, SAMPLES, read_rows
from grit_lite.tiny.build import save_untrained
from grit_lite.tiny.questions import held_out

COMMAND = [sys.executable, "-c", "from grit_lite.cli import main; main()"]

# The command line, in a process that kills itself at the n-th event. Events are every moment at which something has
# just been appended, synced or renamed: between any two of them a real kill leaves the same files.
KILLED = [
    sys.executable,
    "-c",
    textwrap.dedent("""
        import os, signal, sys
        from grit_lite import run
        events, limit = 0, int(os.environ["KILL_AT"])

        def counted(function):
            def wrapper(*args, **kwargs):
                global events
                result = function(*args, **kwargs)
                events += 1
                if events == limit:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result
            return wrapper

        run.Run.append = counted(run.Run.append)
        run._sync = counted(run._sync)
        os.replace = counted(os.replace)
        from grit_lite.cli import main
        try:
            main()
        finally:
            print("EVENTS", events)
    """),
]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp("untrained"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four triplets as a user would bring them: a JSONL file beside its images."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for index, question in enumerate(held_out(["count"], 4, "train")):
        question.image.save(folder / f"{index}.png")
        rows.append({"question": question.question, "answer": question.answer, "image": f"{index}.png"})
    (folder / "triplets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "triplets.jsonl"


@pytest.fixture(scope="module")
def arguments(untrained, data):
    """A run of four short steps with a checkpoint after each second one."""
    settings = {
        "model": untrained,
        "data": data,
        "steps": 4,
        "save_every": 2,
        "prompts_per_step": 2,
        "group_size": 4,
        "max_completion_tokens": 8,
        "evaluate": "none",
    }
    return [
        "train",
        "--recipe",
        "tiny",
        "--triplets",
        "4",
        *(f"--set={key}={value}" for key, value in settings.items()),
    ]


def run_command(command, *arguments, **environment):
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, env={**os.environ, **environment}
    )


def command_here(monkeypatch, *arguments):
    """The exit code of `grit-lite` in this process, which has torch loaded already."""
    monkeypatch.setattr(sys, "argv", ["grit-lite", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code or 0


def resume(folder, monkeypatch):
    assert command_here(monkeypatch, "train", "--resume", "--output", folder) == 0


@pytest.fixture(scope="module")
def uninterrupted(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    done = run_command(KILLED, *arguments, "--output", folder, KILL_AT="-1")
    assert done.returncode == 0, done.stderr
    return folder, int(done.stdout.split("EVENTS")[1])


def test_a_whole_run_leaves_everything_it_promises(uninterrupted):
    folder, _ = uninterrupted
    names = {path.name for path in folder.iterdir()}
    assert names >= {"recipe.yaml", "run.json", METRICS, "timing.jsonl", SAMPLES, "images", "checkpoints", "adapter"}
    assert "report.html" in names
    facts = json.loads((folder / "run.json").read_text())
    assert facts["status"] == "done"
    assert facts["data"]["triplets"] == 4
    assert (folder / "adapter" / "grit_lite.json").is_file()


@pytest.mark.parametrize("share", [0.05, 0.35, 0.55, 0.8])
def test_a_run_killed_anywhere_and_resumed_writes_the_same_rows(uninterrupted, arguments, tmp_path, monkeypatch, share):
    whole, events = uninterrupted
    folder = tmp_path / "run"
    killed = run_command(KILLED, *arguments, "--output", folder, KILL_AT=str(max(1, round(share * events))))
    assert killed.returncode == -signal.SIGKILL
    resume(folder, monkeypatch)
    for name in (METRICS, SAMPLES):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    adapter = "adapter/adapter_model.safetensors"
    assert (folder / adapter).read_bytes() == (whole / adapter).read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_keeps_a_checkpoint_and_resumes_as_if_never_stopped(
    uninterrupted, arguments, tmp_path, monkeypatch, number, code
):
    whole, _ = uninterrupted
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments), "--output", str(folder)], stderr=subprocess.PIPE, text=True
    )
    while not list(read_rows(folder / METRICS)):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate()
    if process.returncode != 0:  # the last step may have been over before the signal came
        assert process.returncode == code, stderr
        assert "go on with: grit-lite train --resume" in stderr
        assert json.loads((folder / "run.json").read_text())["status"] == "stopped"
        resume(folder, monkeypatch)
    assert (folder / METRICS).read_bytes() == (whole / METRICS).read_bytes()


def test_json_output_is_json_on_every_line(arguments, tmp_path):
    done = run_command(COMMAND, *arguments, "--set=steps=1", "--json", "--output", tmp_path / "run")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["step", "done"]
    assert events[-1]["status"] == "done"


def test_bad_rows_stop_training_unless_they_are_to_be_skipped_and_are_counted(
    arguments, data, tmp_path, monkeypatch, capsys
):
    bad = data.parent / "with-bad.jsonl"
    bad.write_text(data.read_text() + '{"question": "no image?", "answer": "1"}\n')
    arguments = [*arguments, f"--set=data={bad}", "--set=steps=1"]
    try:
        assert command_here(monkeypatch, *arguments, "--output", tmp_path / "refused") == 3
        assert f"{bad.name}:5:" in capsys.readouterr().err
        assert command_here(monkeypatch, *arguments, "--bad-rows=skip", "--output", tmp_path / "run") == 0
        assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["skipped_bad_rows"] == 1
    finally:
        bad.unlink()
