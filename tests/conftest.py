"""Every test runs offline: a socket to anywhere but this machine is an error, and the hubs are told so."""

import os
import socket

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:  # else each of the workers would start a thread per core
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from browser import CHROMIUM, NO_BROWSER

from grit_lite.compat import ensure_torchvision_ops

ensure_torchvision_ops()


def pytest_configure():
    if CHROMIUM is None and os.environ.get("GRIT_LITE_BROWSER") == "require":
        raise pytest.UsageError(f"GRIT_LITE_BROWSER=require, and there is {NO_BROWSER}. Install chromium.")


def pytest_terminal_summary(terminalreporter):
    left = sum(NO_BROWSER in str(report.longrepr) for report in terminalreporter.stats.get("skipped", []))
    if left:
        terminalreporter.write_line(
            f"NO PAGE WAS OPENED: {NO_BROWSER}, so {left} tests of pages were skipped.", red=True
        )


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    connect = socket.socket.connect

    def refuse(self, address):
        if self.family != socket.AF_UNIX and address[0] not in {"127.0.0.1", "::1", "localhost"}:
            raise AssertionError(f"a test tried to reach {address}; tests run offline")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


# Files of half a minute and more, the longest first: a worker that began one of them last would leave the others idle.
LONGEST = (
    *("test_many.py", "test_training.py", "test_notebooks.py", "test_retrying.py", "test_export.py", "test_runner.py"),
    *("test_sharing.py", "test_card.py", "test_benchmarks.py", "test_trainer.py", "test_tiny.py", "test_rollout.py"),
    *("test_benchmark_models.py", "test_report.py", "test_memory.py", "test_faithfulness.py", "test_evaluating.py"),
    *("test_lab.py", "test_taught_run.py", "test_chat.py"),
)


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):
        places = {name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(item.path.name, len(places)))
