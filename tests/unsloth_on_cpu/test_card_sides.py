"""The measurement of a card runs Unsloth's own trainer, which computes what TRL's does, and ours on Unsloth as well."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("unsloth") is None:
    pytest.skip("Unsloth is not installed here: `make test-unsloth`", allow_module_level=True)

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
SIDES = ["trl", "unsloth", "ours", "ours-unsloth", "ours-unsloth-rollout"]


@pytest.mark.timeout(1800)  # seconds
def test_all_sides_are_equal_on_a_miniature(tmp_path):
    environment = {
        **os.environ,
        "UNSLOTH_COMPILE_LOCATION": str(tmp_path / "compiled"),
        "PYTHONPATH": os.pathsep.join(map(str, (HERE / "startup", HERE, ROOT))),
    }
    options = [
        "--shapes",
        "miniature",
        "--quick",
        "--sides",
        *SIDES,
        "--folder",
        tmp_path,
        "--json",
        tmp_path / "x.json",
    ]
    command = [sys.executable, "-m", "benchmarks.card", *options]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, (run.stdout + run.stderr)[-6000:]
    (case,) = json.loads((tmp_path / "x.json").read_text())["cases"]
    backends = {side: result["facts"]["backend"] for side, result in case["sides"].items()}
    assert backends == dict(zip(SIDES, ("plain", "unsloth", "plain", "unsloth", "unsloth"), strict=True))
    for side in SIDES[1:]:
        assert case["sides"][side]["facts"]["autocast"] == "float32"
        assert max(case["sides"][side]["differences"].values()) <= 1e-5
    ran = next(tmp_path.rglob("unsloth-4.log")).read_text()
    assert "Unsloth - 2x faster free finetuning" in ran  # what its own training loop says when it begins
