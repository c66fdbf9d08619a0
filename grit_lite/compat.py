"""What libraries must be told before they are imported: of torchvision, and of vLLM.

The one workaround of this package is for a CUDA build of torchvision, which the registries have, beside a CPU build of
torch. There its C++ part does not load, and its Python part then fails at import because it registers shape functions
for two operators that nobody declared. transformers imports torchvision for its processors. Declaring the two operators
(a schema, no kernel) is all it takes: resizing and normalising are plain torch. Nothing else in this package may depend
on this.
"""

import functools
import os

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_VLLM = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, what it batches together is the same each time
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout is for results
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


@functools.cache  # the returned library must stay alive, and declaring twice raises
def ensure_torchvision_ops() -> object | None:
    """Declare torchvision's two operators where its compiled part cannot load; None where there is nothing to do.

    Call it before anything imports torchvision, that is before transformers.
    """
    import torch

    if torch.version.cuda is not None:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    return library


def prepare_vllm() -> None:
    """Set what vLLM reads from the environment; what a user has set stays."""
    for name, value in _VLLM.items():
        os.environ.setdefault(name, value)
