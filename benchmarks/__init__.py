"""Speed measurements, and the random models that they and the tests run."""

import logging

from grit_lite.compat import ensure_torchvision_ops

# before any of the modules here imports transformers, and with it these two
ensure_torchvision_ops()
logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
