"""The one workaround of this package: a CUDA build of torchvision beside a CPU build of torch.

The registries' torchvision is built for CUDA. Beside a CPU torch its C++ part does not load, and its Python part then
fails at import because it registers shape functions for two operators that nobody declared. transformers imports
torchvision for its processors. Declaring the two operators (a schema, no kernel) is all it takes: resizing and
normalising are plain torch. Nothing else in this package may depend on this.
"""

import functools

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
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
