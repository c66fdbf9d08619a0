"""ROLLOUT by a vLLM engine, in the place of `rollout`: the same prompts, the same sampling, the same tokens.

vLLM keeps the keys and values of a prompt and shares them among its completions by itself. It computes with kernels of
its own, often in fewer bits than the trainer, so that each token comes with the log-probability it was drawn with: the
trainer compares it with its own and corrects the loss for the difference.

vLLM is imported only where an engine is opened. Its weights may be a second copy, as with `open_llm`, or those of the
training model, as with Unsloth.
"""

import contextlib
import importlib.metadata
import importlib.util
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from PIL import Image

from grit_lite.compat import prepare_vllm
from grit_lite.errors import ModelError
from grit_lite.families import FAMILIES, Family
from grit_lite.recipe import Recipe
from grit_lite.rollout import Sampling

PROCESSED = "processed_logprobs"  # of the distribution that was drawn from, temperature included


def obstacles(recipe: Recipe, family: Family) -> Iterator[str]:
    """What keeps a recipe from being sampled with vLLM, as far as it can be known before a model is loaded."""
    if recipe.prompt_sharing == "none":
        yield "prompt_sharing is none, and grit-lite hands prompts to vLLM only where it shares them"
    if "vision" in recipe.lora_parts:
        yield "lora_parts has vision, and grit-lite samples with vLLM only where the language model alone has LoRA"
    if recipe.top_p < 1 or recipe.top_k:
        yield (
            "top_p or top_k is set: vLLM's log-probabilities are then relative to the tokens that are left, the "
            "trainer's to all, and no correction for the difference would be right"
        )
    if not family.vllm:
        others = " and ".join(one.name for one in FAMILIES.values() if one.vllm)
        yield f"{family.name} models are not sampled with vLLM, only {others}"
    if importlib.util.find_spec("vllm") is None:
        yield "vLLM is not installed here (pip install 'grit-lite[vllm]')"
    elif recipe.load_in_4bit and importlib.util.find_spec("vllm_bnb_plugin") is None:
        yield "vLLM reads 4-bit weights through a plugin that is not installed here (pip install vllm-bnb-plugin)"


@dataclass(frozen=True)
class EnginePrompt:
    """A rendered prompt.

    Attributes:
        tokens: ids as the model reads them, with one image token for each image feature.
        images: in the order of the prompt, as they were before the processor resized them.
    """

    tokens: Sequence[int]
    images: Sequence[Image.Image]


@dataclass(frozen=True)
class Sampled:
    """One completion.

    Attributes:
        tokens: ids, the end token included.
        logps: of each token, the log-probability that it was drawn with, in nats.
    """

    tokens: list[int]
    logps: list[float]


class Engine:
    """A `vllm.LLM` that samples what `rollout.sample` would.

    Args:
        llm: opened with `logprobs_mode="processed_logprobs"`.
        adapter: asked before each sampling for the LoRA request that hands over the adapter as it is now; None where
            the model has none.
        image_token: the id that stands for an image feature.
        image_size: `size` of the trainer's image processor, so that both see an image in as many tokens.
        shared: whether the training model and the engine have one copy of the weights, and the training library knows.

    Raises:
        ModelError: the engine reports other log-probabilities than those that it draws with.
    """

    def __init__(
        self,
        llm: Any,
        adapter: Callable[[], Any],
        *,
        image_token: int,
        image_size: Mapping[str, int],
        shared: bool = False,
    ) -> None:
        self.llm, self.adapter = llm, adapter
        self.image_token, self.image_size = image_token, dict(image_size)
        self.shared = shared
        mode = str(llm.llm_engine.vllm_config.model_config.logprobs_mode)
        if mode != PROCESSED:
            raise ModelError(f"vLLM was opened with logprobs_mode {mode}, not {PROCESSED}. Set vllm=off.")

    def sample(
        self, prompts: Sequence[EnginePrompt], sampling: Sampling, number: int = 1, *, use_adapter: bool = True
    ) -> list[list[Sampled]]:
        """`number` completions of each prompt.

        Seeds that are not given are drawn from torch's generator on the CPU, so that whoever seeds that repeats the
        tokens.

        Raises:
            ModelError: the engine reads a prompt in other tokens than the trainer.
            FloatingPointError: the model gave no finite probabilities.
        """
        seeds = sampling.seeds or [None] * len(prompts)
        settings = [parameters(sampling, number, seed) for seed in seeds]  # before anything else draws
        # Requests that a Ctrl-C left behind: their completions would come with ours.
        while self.llm.llm_engine.has_unfinished_requests():
            self.llm.llm_engine.step()
        outputs = self.llm.generate(
            [self._request(prompt) for prompt in prompts],
            settings,
            lora_request=self.adapter() if use_adapter else None,
            use_tqdm=False,
        )
        for prompt, output in zip(prompts, outputs, strict=True):
            _check_tokens(prompt.tokens, output.prompt_token_ids)
        return [[_sampled(completion) for completion in output.outputs] for output in outputs]

    def _request(self, prompt: EnginePrompt) -> dict[str, Any]:
        request: dict[str, Any] = {"prompt_token_ids": collapse(prompt.tokens, self.image_token)}
        if prompt.images:
            request["multi_modal_data"] = {"image": list(prompt.images)}
            request["mm_processor_kwargs"] = {"size": self.image_size}
        return request


def collapse(tokens: Sequence[int], image_token: int) -> list[int]:
    """One image token for each image: vLLM puts in as many as the image needs, also beside those already there."""
    before = [None, *tokens]
    return [token for token, last in zip(tokens, before, strict=False) if token != image_token or last != image_token]


def parameters(sampling: Sampling, number: int, seed: int | None = None) -> Any:
    """vLLM's `SamplingParams` for the completions of one prompt, with this seed or one of their own."""
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

    if seed is None and sampling.temperature:
        seed = int(torch.randint(2**62, ()))
    return SamplingParams(
        n=number,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_new_tokens,
        # Each completion of a prompt gets this seed plus its own number.
        seed=seed if sampling.temperature else None,
        ignore_eos=True,  # `end_tokens` is the whole list
        stop_token_ids=list(sampling.end_tokens),
        stop=list(sampling.stop_strings) or None,
        include_stop_str_in_output=True,
        detokenize=bool(sampling.stop_strings),
        skip_special_tokens=False,
        logit_bias=dict.fromkeys(sampling.suppressed, -math.inf) or None,
        logprobs=0,  # of the drawn token alone
    )


def _check_tokens(expected: Sequence[int], found: Sequence[int]) -> None:
    if list(found) != list(expected):
        raise ModelError(
            f"vLLM reads a prompt in {len(found)} tokens that the trainer reads in {len(expected)}: the two prepare "
            "images differently. Install the versions of constraints.txt, or set vllm=off."
        )


def _sampled(completion: Any) -> Sampled:
    tokens = list(completion.token_ids)
    logps = [step[token].logprob for token, step in zip(tokens, completion.logprobs, strict=True)]
    if not all(map(math.isfinite, logps)):
        raise FloatingPointError("the model gives no finite probabilities any more")
    return Sampled(tokens, logps)


class AdapterOnDisk:
    """Hands an adapter over through a folder, under a new name each time.

    vLLM keeps adapters by their number, and what it remembers of prompts by the adapter's name.

    Args:
        save: writes the adapter as it is now into a folder, in PEFT's format.
    """

    def __init__(self, save: Callable[[Path], None]) -> None:
        self.save = save
        self.folder = tempfile.TemporaryDirectory(prefix="grit-lite-adapter-")
        self.number = 0

    def __call__(self) -> Any:
        from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

        shutil.rmtree(self._path, ignore_errors=True)  # vLLM has read it
        self.number += 1
        self.save(self._path)
        return LoRARequest(self._path.name, self.number, str(self._path))

    @property
    def _path(self) -> Path:
        return Path(self.folder.name) / f"adapter-{self.number}"


def open_llm(location: str, recipe: Recipe, *, device: str, dtype: torch.dtype, longest: int, size: Any) -> Any:
    """A `vllm.LLM` with weights of its own, for one adapter.

    Args:
        device: "cuda" or "cpu", where it must run.
        longest: tokens of the longest prompt with its completion.
        size: of the trainer's image processor.

    Raises:
        ModelError: vLLM does not start, in its own words.
    """
    prepare_vllm()
    with start_explained():
        from vllm import LLM  # pyright: ignore[reportMissingImports]
        from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

        if current_platform.device_type != device:
            built = current_platform.device_type or "no device of this machine"
            raise RuntimeError(f"it was built for {built}, and the model is on {device}")
        return LLM(
            model=location,
            revision=recipe.revision,
            dtype=str(dtype).removeprefix("torch."),
            quantization="bitsandbytes" if recipe.load_in_4bit else None,
            max_model_len=longest,
            max_num_seqs=min(recipe.prompts_per_step * recipe.group_size, 256),
            gpu_memory_utilization=recipe.vllm_memory_share,
            enable_lora=True,
            max_lora_rank=served_rank(recipe.lora_rank),
            limit_mm_per_prompt={"image": 1, "video": 0},
            mm_processor_kwargs={"size": dict(size)},
            logprobs_mode=PROCESSED,
            enforce_eager=device == "cpu",  # compiling for a CPU takes longer than what is sampled there
            seed=recipe.seed,
        )


@contextlib.contextmanager
def start_explained() -> Iterator[None]:
    """Says in one message what comes up while vLLM starts."""
    try:
        yield
    except (torch.OutOfMemoryError, ModelError):
        raise
    except Exception as error:  # it runs the code of a dozen libraries
        raise ModelError(
            f"vLLM does not start ({type(error).__name__}: {error}). Change vllm_memory_share, or set vllm=off to "
            "sample without it."
        ) from error


def served_rank(rank: int) -> int:
    """The smallest rank of adapters that vLLM can be opened for and that holds `rank`.

    Raises:
        ValueError: vLLM serves no adapter of so high a rank.
    """
    from vllm.config.lora import MaxLoRARanks  # pyright: ignore[reportMissingImports]

    fitting = [served for served in get_args(MaxLoRARanks) if served >= rank]
    if not fitting:
        raise ValueError(f"lora_rank is {rank}, and the highest that vLLM serves is {max(get_args(MaxLoRARanks))}")
    return min(fitting)


def engine_version() -> str:
    """ "vllm 0.30.0", by the name that the installed distribution has."""
    names = importlib.metadata.packages_distributions().get("vllm", ["vllm"])
    return f"{names[0]} {importlib.metadata.version(names[0])}"
