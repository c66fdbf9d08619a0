"""lmms-eval on this machine alone: what has to be set before it is imported. Import this first.

Its data sets are cached in a folder of these tests, and `startup/sitecustomize.py` lets processes import torchvision
beside a CPU build of torch.
"""

import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_CACHE=tempfile.mkdtemp(prefix="grit-lite-lmms-"),
    PYTHONPATH=os.pathsep.join([str(Path(__file__).with_name("startup")), str(ROOT)]),
)
