"""The Unsloth backend keeps the promises of every backend, and some of its own, on Unsloth's real code.

Each file runs in a pytest of its own, because Unsloth rewrites transformers and TRL for the whole process.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("unsloth") is None:
    pytest.skip("Unsloth is not installed here: `make test-unsloth`", allow_module_level=True)

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(1800)  # seconds
@pytest.mark.parametrize("file", ["tests/test_backends.py", "tests/unsloth_on_cpu/promises.py"])
def test_all_promises_are_kept(file, tmp_path):
    environment = {
        **os.environ,
        "GRIT_LITE_BACKEND": "unsloth",
        "UNSLOTH_COMPILE_LOCATION": str(tmp_path / "compiled"),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(ROOT)]),
    }
    # The arrangement is a plugin so that Unsloth is there before any test file imports what it rewrites.
    options = ["-p", "arrangement", "-p", "no:cacheprovider", "--config-file", ROOT / "pyproject.toml"]
    command = [sys.executable, "-m", "pytest", *options, "--rootdir", ROOT, ROOT / file]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, (run.stdout + run.stderr)[-6000:]
    assert " passed" in run.stdout
