"""vLLM on a machine without a GPU: what has to be set before it is imported.

Import this before vllm. The package never imports this file. Set, and why:

* One GiB for keys and values, and threads where the operating system puts them: vLLM would take half the memory, and
  bind to cores that other processes may be on.
* No torch.compile: vLLM compiles a small part of its sampler, which takes longer on a CPU than all these tests.
* `sitecustomize.py` on the path of child processes, which look at model classes and would not import torchvision.

Real is everything else: loading, prompts and images, scheduling, the prefix cache, attention and LoRA layers, sampling.
Nothing here says anything about CUDA kernels, CUDA graphs, bitsandbytes weights, speed or memory.
"""

import os
from pathlib import Path

CHILDREN = Path(__file__).with_name("children")
ROOT = Path(__file__).parents[2]

os.environ.update(
    HF_HUB_OFFLINE="1",
    TORCHDYNAMO_DISABLE="1",
    VLLM_CPU_KVCACHE_SPACE="1",  # GiB
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    PYTHONPATH=os.pathsep.join([str(CHILDREN), str(ROOT), os.environ.get("PYTHONPATH", "")]),
)
