"""Every test runs offline: a socket to anywhere but this machine is an error, and the hubs are told so."""

import os
import socket

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest

from grit_lite.compat import ensure_torchvision_ops

ensure_torchvision_ops()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    connect = socket.socket.connect

    def refuse(self, address):
        if self.family != socket.AF_UNIX and address[0] not in {"127.0.0.1", "::1", "localhost"}:
            raise AssertionError(f"a test tried to reach {address}; tests run offline")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)
