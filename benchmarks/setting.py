"""What the benchmarks run on: a random model, a prompt of a given length, and the two ways to roll it out."""

import argparse
import itertools
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console, ConsoleRenderable
from torch import Tensor
from transformers.utils import logging

from benchmarks.equality import Unequal
from benchmarks.measure import circumstances
from benchmarks.models import save_random
from grit_lite.backends import Request, open_backend
from grit_lite.backends.plain import PlainBackend
from grit_lite.recipe import load_recipe
from grit_lite.rollout import Sampling, cut_at_end, sample
from grit_lite.vlm import Prompt, VisionLanguageModel

FAMILY = "qwen2_5_vl"
SEED = 0
_PIXELS = 28  # a side of an image token
LARGEST = 4096 * _PIXELS**2  # pixels of a picture; the processor's own limit would stop at some 1600 tokens
_WORDS = (" red", " circles", " are", " there", " in", " the", " image", " a")  # one token each
_AROUND = 12  # tokens of the chat template, those around the image included


@dataclass(frozen=True)
class Case:
    """P tokens of one prompt with its image, and G completions of C tokens each."""

    prompt_tokens: int
    completion_tokens: int
    group: int

    def __str__(self) -> str:
        return f"P {self.prompt_tokens}, C {self.completion_tokens}, G {self.group}"


def question(tokens: int, number: int = 0, pixels: int = _PIXELS) -> Request:
    """An image and a text that make a prompt of exactly so many tokens, most of them the image's.

    Args:
        number: another number is another image.
        pixels: a side of an image token.
    """
    if tokens < 20:
        raise ValueError("a prompt with an image has at least 20 tokens")
    side = max(2, math.isqrt(tokens - 40 if tokens > 80 else 4))
    shape = (side * pixels, side * pixels, 3)
    noise = np.random.default_rng(SEED + number).integers(0, 256, shape, dtype=np.uint8)
    words = itertools.islice(itertools.cycle(_WORDS), tokens - _AROUND - side**2)
    return Request((Image.fromarray(noise),), "".join(words))


@contextmanager
def random_model(size: str) -> Iterator[Path]:
    """The folder of a random model of that size, until the block ends."""
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        yield save_random(Path(folder), FAMILY, size, SEED)


def load(folder: Path, dtype: str = "auto") -> PlainBackend:
    """The model with LoRA on its language part, as it would be after some training: B is not zero."""
    settings = [f"model={folder}", f"max_pixels={LARGEST}", f"dtype={dtype}"]
    recipe = load_recipe("tiny", settings)
    backend: Any = open_backend(recipe)
    backend.processor.image_processor.size["longest_edge"] = LARGEST
    backend.attach_lora(recipe)
    torch.manual_seed(SEED)
    for name, parameter in backend.model.named_parameters():
        parameter.data = parameter.data.clone()  # loaded weights are mapped from their file, and read on first use
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return backend


def endless(backend: PlainBackend) -> list[int]:
    """The ids that must not be drawn if every completion is to have all its tokens."""
    return [*backend.suppressed_tokens(), *backend.end_tokens()]


class Sides:
    """One prompt as stock libraries run it, G times, and as ours do, once."""

    def __init__(self, backend: PlainBackend, case: Case) -> None:
        self.backend, self.case = backend, case
        self.batch = dict(backend._encode([question(case.prompt_tokens)]))

    def stock(self) -> dict[str, Tensor]:
        """The prompt in G rows, as a trainer hands it on; the patches of their images stand one after the other."""
        plain_attention(self.backend)
        group = self.case.group
        return {name: value.repeat(group, *[1] * (value.ndim - 1)) for name, value in self.batch.items()}

    def ours(self) -> tuple[VisionLanguageModel, Prompt]:
        """The prompt once, its image not yet looked at."""
        vlm = VisionLanguageModel(self.backend.model)
        return vlm, vlm.prompts([self.batch["input_ids"][0].tolist()], [1], self.batch)[0]

    def sampling(self, **options: Any) -> Sampling:
        """Greedy and of exactly C tokens, but for what the options say."""
        defaults = {"max_new_tokens": self.case.completion_tokens, "suppressed": tuple(endless(self.backend))}
        return Sampling(**{**defaults, **options})

    @torch.no_grad()
    def stock_rollout(self, sampling: Sampling) -> list[list[int]]:
        """(G completions) of the library's `generate`."""
        torch.manual_seed(SEED)
        ends = {"eos_token_id": list(sampling.end_tokens) or None}
        tokens = self.backend.model.generate(**self.stock(), **{**sampling.for_generate(), **ends})
        return cut_at_end(tokens[:, self.batch["input_ids"].shape[1] :], sampling.end_tokens)

    def our_rollout(self, sampling: Sampling) -> list[list[int]]:
        torch.manual_seed(SEED)
        vlm, prompt = self.ours()
        return sample(vlm, [prompt], [0] * self.case.group, sampling)


def plain_attention(backend: PlainBackend) -> None:
    """Stock runs without the attention function that a model gets when its prompts are to be shared."""
    config = backend.model.get_base_model().config
    config.get_text_config()._attn_implementation = config._attn_implementation


def parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """The options of the programs that run one random model in this process."""
    options = common_parser(module, description)
    options.add_argument("--size", choices=("middle", "miniature"), default="middle", help="of the random model")
    return options


def common_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """The options that all programs have."""
    options = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=description)
    options.add_argument("--quick", action="store_true", help="one small case: does everything work?")
    options.add_argument(
        "--json", type=Path, metavar="FILE", help="write the numbers there, and the tables beside it as .txt"
    )
    options.add_argument("--repeats", type=int, help="runs of each side, of which the median counts")
    for name, meaning in (("prompt", "P"), ("completion", "C")):
        options.add_argument(f"--{name}-tokens", type=int, nargs="+", metavar=meaning)
    options.add_argument("--group", type=int, nargs="+", metavar="G", help="completions of one prompt")
    return options


def cases_of(options: argparse.Namespace, default: Sequence[Case]) -> list[Case]:
    """All combinations of the given lengths; what is not given is as in the default."""
    lengths = (
        options.prompt_tokens or dict.fromkeys(case.prompt_tokens for case in default),
        options.completion_tokens or dict.fromkeys(case.completion_tokens for case in default),
        options.group or dict.fromkeys(case.group for case in default),
    )
    return list(itertools.starmap(Case, itertools.product(*lengths)))


def facts(case: Case) -> dict[str, Any]:
    """The case as the JSON states it."""
    return asdict(case)


def report(
    options: argparse.Namespace, measure: Callable[[Path], Mapping[str, Any]], show: Callable[[Any], ConsoleRenderable]
) -> int:
    """Measure, print, write; the exit code."""
    console = Console(width=None if Console().is_terminal else 140, record=True)
    result: dict[str, Any] = {"equal": True, "cases": [], **circumstances(f"random {FAMILY}, {options.size}")}
    with random_model(options.size) as folder:
        try:
            result |= measure(folder)
        except Unequal as difference:
            result |= {"equal": False, "difference": str(difference)}
            console.print(f"Not equal, so not timed. {difference}", style="bold red", markup=False)
        else:
            console.print(*(f"{key}: {result[key]}" for key in circumstances("")), sep="\n", markup=False)
            console.print(show(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
        options.json.with_suffix(".txt").write_text(console.export_text())
    return 0 if result["equal"] else 1
