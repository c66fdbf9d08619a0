"""BRIDGE: lmms-eval asks its benchmarks of a model of ours, and is handed the extracted answer only.

Its scorers read the whole text that a model writes, and misread a chain with boxes: a coordinate as a count, a letter
of the reasoning as a choice. So `answering` keeps the full completions in a file of ours and hands over what stands in
`<answer>`; `identity` makes lmms-eval's cache of responses know weights by more than the name of their folder; `tasks`
writes a task folder of drawn scenes. Only `model` imports lmms-eval, and only lmms-eval imports `model`.
"""

from typing import Any


def manifest() -> Any:
    """What the entry point in lmms-eval's group `lmms_eval.models` returns: the model `grit_lite`."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    return ModelManifest(model_id="grit_lite", chat_class_path="grit_lite.lmms.model.GritLite")
