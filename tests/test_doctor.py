"""The doctor on this machine: what it says is true, fits 80 columns, and tells no secret."""

import io
import json
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from rich.console import Console

from grit_lite import doctor
from grit_lite.cli import main
from grit_lite.doctor import examine, measured_runs, show
from grit_lite.recipe import recipe_files

ROOT = Path(__file__).parents[1]
CARD = {
    "name": "NVIDIA GeForce RTX 4090",
    "gib": 23.6,
    "free_gib": 22.9,
    "capability": (8, 9),
    "bfloat16": True,
    "cuda": "13.0",
    "driver": "580.65.06",
}


@pytest.fixture(scope="module")
def facts():
    return examine()


def shown(facts, width=80):
    console = Console(file=io.StringIO(), width=width)
    show(facts, console)
    return console.file.getvalue()


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["grit-lite", "doctor", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code or 0, *capsys.readouterr()


def test_every_recipe_is_estimated(facts):
    assert {row["recipe"] for row in facts["memory"]} == set(recipe_files())
    tiny = next(row for row in facts["memory"] if row["recipe"] == "tiny" and row["here"])
    assert tiny["fits"] == "yes"
    assert tiny["total_mib"] > tiny["least_mib"] > 0


def test_it_says_what_train_would_use(facts):
    assert facts["would"]["recipe"] == "tiny" or facts["gpu"]
    assert facts["would"]["backend"] in ("plain", "unsloth")


def test_the_tested_versions_are_those_of_the_constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pins.items() <= doctor.tested_versions().items()
    assert doctor.tested_versions()["unsloth"]


def test_an_installed_package_carries_the_tested_versions():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    packed = [source for source, target in wheel["force-include"].items() if target.startswith("grit_lite/_tested/")]
    assert packed
    assert all((ROOT / source).read_text().count("==") > 1 for source in packed)
    assert {Path(target).parent.name for target in wheel["force-include"].values()} >= {doctor._PACKAGED.name}


def test_a_library_is_held_against_its_tested_version(facts):
    rows = {row["name"]: row for row in facts["libraries"]}
    assert rows["trl"] == {"name": "trl", "here": version("trl"), "tested": doctor.tested_versions()["trl"]}
    assert doctor.library("no-such-library") == {"name": "no-such-library", "here": None, "tested": None}


@pytest.mark.parametrize(
    ("here", "tested", "colour"),
    [("2.13.0+cpu", "2.13.0", "green"), ("2.12.0", "2.13.0", "yellow"), (None, "2.13.0", "bold red")],
)
def test_another_version_than_the_tested_one_stands_out(here, tested, colour):
    assert doctor._version_text({"name": "torch", "here": here, "tested": tested}).style == colour


def test_offline_the_hub_is_not_asked(facts):
    assert facts["hub"]["state"] == "not asked: HF_HUB_OFFLINE is set"


def test_a_hub_out_of_reach_is_said_in_a_moment():
    assert doctor._ask_hub("http://127.0.0.1:9").startswith("does not answer (Connect")


def test_the_token_is_never_shown(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    code, out, err = command(monkeypatch, capsys, "--json", "--recipe", "tiny")
    assert code == 0
    assert json.loads(out)["hub"]["token"] is True
    assert "hf_secret" not in out + err


def test_one_recipe_can_be_asked_about(monkeypatch, capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("model: Qwen/Qwen3-VL-8B-Instruct\nload_in_4bit: true\n")
    code, out, _ = command(monkeypatch, capsys, "--recipe", str(tmp_path / "mine.yaml"))
    assert code == 0
    assert "mine" in out
    assert "internvl3-2b" not in out


def test_a_recipe_that_is_not_there_is_a_usage_error(monkeypatch, capsys):
    code, _, err = command(monkeypatch, capsys, "--recipe", "qwen3-vl")
    assert code == 2
    assert "There is no recipe 'qwen3-vl'" in err


def test_what_is_shown_fits_80_columns_and_has_every_part(facts):
    text = shown({**facts, "gpu": CARD})
    assert max(map(len, text.splitlines())) <= 80
    for part in ("RTX 4090", "compute capability 8.9, bfloat16", "driver 580.65.06", "transformers", "sampler", "at"):
        assert part in " ".join(text.split())


def test_what_does_not_fit_is_shown_with_the_change_that_would(facts):
    row = next(row for row in facts["memory"] if row["recipe"] == "tiny" and row["here"])
    advice = "With --set max_completion_tokens=64 it would need about 0.5 GiB."
    text = shown({**facts, "memory": [{**row, "fits": "no", "advice": advice}]})
    assert f"tiny: {advice}" in text


def test_runs_are_shown_with_estimate_and_measured_peak(tmp_path, facts):
    for name, memory in {"a": {"device": "CPU", "expected_mib": 800, "measured_mib": 720}, "b": {}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"recipe": "tiny", "memory": memory}))
    rows = list(measured_runs(tmp_path))
    assert [(Path(row["run"]).name, row["expected_mib"], row["measured_mib"]) for row in rows] == [("a", 800, 720)]
    assert "0.90" in shown({**facts, "runs": rows})
