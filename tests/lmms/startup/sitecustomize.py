"""Read by every Python process at its start: vLLM looks at model classes in processes of its own."""

from grit_lite.compat import ensure_torchvision_ops

ensure_torchvision_ops()
