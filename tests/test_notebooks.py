"""The notebooks run from top to bottom on the embedded model, and are kept as a stranger should find them."""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from grit_lite import __version__

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def sources(path, kind):
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def test_both_notebooks_are_there():
    assert [path.name for path in NOTEBOOKS] == ["quickstart.ipynb", "your_own_data.ipynb"]


@pytest.mark.timeout(900)  # seconds; half a minute where nothing else runs
@every_notebook
def test_run_all_works_on_the_embedded_model(path, tmp_path, monkeypatch):
    monkeypatch.setenv("STEPS", "2")
    monkeypatch.setenv("QUESTIONS", "4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the kernel starts in another folder
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    if folder := os.environ.get("KEEP_NOTEBOOKS"):  # to be looked at
        nbformat.write(notebook, Path(folder) / path.name)
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pages = [output.data["text/html"] for output in shown if "text/html" in output.get("data", {})]
    assert sum("before" in page and "after" in page and "data:image/png" in page for page in pages) >= 2
    assert any("<iframe srcdoc" in page and "GRPO-GR" in page for page in pages)
    assert not any(output.get("name") == "stderr" and "Traceback" in output.text for output in shown)


@every_notebook
def test_outputs_are_stripped(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@every_notebook
def test_colab_opens_it_with_a_t4(path):
    notebook = nbformat.read(path, as_version=4)
    assert (notebook.metadata["accelerator"], notebook.metadata["colab"]["gpuType"]) == ("GPU", "T4")
    first = notebook.cells[0].source
    assert "https://colab.research.google.com/assets/colab-badge.svg" in first
    assert f"/blob/main/notebooks/{path.name})" in first


@every_notebook
def test_the_install_cell_pins_what_was_tested_and_leaves_torch_alone(path):
    (install,) = (source for source in sources(path, "code") if "pip" in source and "install" in source)
    tested = (ROOT / "constraints.txt").read_text().splitlines()
    pins = re.findall(r'"([a-z]+==[\d.]+)"', install)
    assert len(pins) == 6
    assert set(pins) <= set(tested)
    assert not any(pin.startswith("torch") for pin in pins)
    assert 'for name in ("torch", "torchvision")' in install
    assert f'VERSION = "{__version__}"' in install
    assert not any("git+" in source for source in sources(path, "code"))
