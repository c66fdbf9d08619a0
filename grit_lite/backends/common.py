"""What backends on transformers' model classes have in common: everything but how a model is loaded and adapted.

The Unsloth backend imports this file only after Unsloth, which rewrites the libraries that stand below.
"""

import abc
import contextlib
import logging
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from grit_lite.backends import Generated, Request, find_spec, model_location
from grit_lite.backends.identity import fingerprints
from grit_lite.boxes import Size
from grit_lite.compat import ensure_torchvision_ops
from grit_lite.errors import ModelError
from grit_lite.families import FAMILIES, Family
from grit_lite.fitting import is_out_of_memory
from grit_lite.machine import find_gpu, number_format
from grit_lite.recipe import Recipe

ensure_torchvision_ops()
# On a CPU bitsandbytes reports at every start that an optional kernel from a hub is not installed.
logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
# Without a network the hub's client reports each of its retries; the one message at the end is ours.
logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)

from peft import PeftModel  # noqa: E402
from transformers import AutoProcessor, TextStreamer  # noqa: E402
from transformers.utils.logging import disable_progress_bar  # noqa: E402

from grit_lite.engine import Engine, EnginePrompt, engine_version, obstacles  # noqa: E402
from grit_lite.packing import packed  # noqa: E402
from grit_lite.rollout import Sampling, cut_at_end, decode, sample  # noqa: E402
from grit_lite.vlm import Prompt, VisionLanguageModel, shares_prompts  # noqa: E402

disable_progress_bar()  # our own screen says what happens

TEXT_TOKENS = 4096  # of a prompt, generously


class LoadedModel(abc.ABC):
    """A `Backend` but for `attach_lora`, `trainer_types` and the loading itself.

    Args:
        reason: why this backend was chosen, for `describe`.
    """

    name: str
    shares_rollout: bool
    engine_obstacle: str | None = None
    libraries: tuple[str, ...] = ("torch", "transformers", "trl", "peft", "bitsandbytes")

    def __init__(self, recipe: Recipe, adapter: Path | None = None, reason: str = "") -> None:
        self.recipe, self.reason = recipe, reason
        self.device = _device()
        self.dtype: torch.dtype = getattr(torch, number_format(recipe.dtype, find_gpu()))
        location = model_location(recipe.model)
        self.spec = find_spec(recipe, adapter)  # first: what cannot be used is refused before gigabytes are read
        self.family = FAMILIES[self.spec.family]
        with explained(location):
            self.processor = self._load_processor(location)
            self._find_engine_obstacle()
            self.model: Any = self._load_model(location)
        # Vision-language configurations keep these in their text part only; the trainer warns where they are missing.
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(self.model.config, name, getattr(self.processor.tokenizer, name))
        if adapter is not None:
            self.model = _load_adapter(self.model, adapter)
        self.model.eval()
        self._find_parts()
        self.engine: Any = None if self.engine_obstacle else self._open_engine(location)

    @abc.abstractmethod
    def _load_model(self, location: str) -> Any: ...

    @abc.abstractmethod
    def _open_engine(self, location: str) -> Engine: ...

    def _find_engine_obstacle(self) -> None:
        """Decide, before weights are loaded, whether vLLM is to sample.

        Raises:
            ModelError: the recipe asks for vLLM, and it cannot be had.
        """
        if self.recipe.vllm == "off":
            self.engine_obstacle = "the recipe says vllm: off"
        elif obstacle := next(self._engine_obstacles(), None):
            self._sample_without_engine(obstacle)

    def _engine_obstacles(self) -> Iterator[str]:
        yield from obstacles(self.recipe, self.family)

    def _sample_without_engine(self, obstacle: str) -> None:
        if self.recipe.vllm == "on":
            raise ModelError(
                f"The recipe says vllm: on, but {obstacle}. Remedy that, or set vllm=off to sample without it."
            )
        self.engine_obstacle = obstacle

    def _load_processor(self, location: str) -> Any:
        return load_processor(location, self.recipe, self.family)

    def _find_parts(self) -> None:
        """After each change of the model, because an adapter changes which parts are trained."""
        self.vlm = VisionLanguageModel(self.model) if shares_prompts(self.model) else None

    def generate(
        self,
        requests: Sequence[Request],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        use_adapter: bool = True,
        batch_size: int = 32,
        seeds: Sequence[int] | None = None,
    ) -> list[Generated]:
        done: dict[int, Generated] = {}
        sampling = self._sampling(max_new_tokens, temperature)
        with self._inference(), self._adapter(use_adapter):
            # The library's own `generate` draws a batch from one generator.
            for places in self._batches(requests, 1 if seeds and self.vlm is None else batch_size):
                part = [requests[place] for place in places]
                batch = self._encode(part)
                drawn = replace(sampling, seeds=tuple(seeds[place] for place in places)) if seeds else sampling
                completions = self._complete(batch, part, drawn, use_adapter=use_adapter)
                done |= zip(places, self._decode(completions, self._seen_sizes(batch, part)), strict=True)
        return [done[place] for place in range(len(requests))]

    def _batches(self, requests: Sequence[Request], size: int) -> Iterator[list[int]]:
        """The places of the requests of each batch; what the engine samples is never in one with what it cannot."""
        for by_engine in (True, False):
            places = [place for place, one in enumerate(requests) if self._goes_to_engine(one) == by_engine]
            yield from (places[start : start + size] for start in range(0, len(places), size))

    def _goes_to_engine(self, request: Request) -> bool:
        """Ours and Unsloth's are opened for prompts of one image."""
        return self.engine is not None and len(request.images) == 1

    def _complete(
        self, batch: dict[str, torch.Tensor], part: Sequence[Request], sampling: Sampling, *, use_adapter: bool
    ) -> list[list[int]]:
        if not self._goes_to_engine(part[0]):
            return self._sample(batch, part, sampling)
        prompts = [EnginePrompt(ids, one.images) for ids, one in zip(_unpadded(batch), part, strict=True)]
        groups = self.engine.sample(prompts, sampling, use_adapter=use_adapter)
        return [completion.tokens for (completion,) in groups]

    def stream(
        self, request: Request, *, max_new_tokens: int, temperature: float = 0.0, use_adapter: bool = True
    ) -> Generator[str, None, None]:
        if self.vlm is None or self.engine is not None:
            limits = {"max_new_tokens": max_new_tokens, "temperature": temperature, "use_adapter": use_adapter}
            yield self.generate([request], **limits)[0].text
            return
        pieces = _Pieces(self.processor.tokenizer, skip_special_tokens=True)
        prompts = self._prompts(self.vlm, self._encode([request]), [request])
        with self._inference(), self._adapter(use_adapter):  # until the reader has all of it, or leaves
            for _, tokens in decode(self.vlm, prompts, [0], self._sampling(max_new_tokens, temperature)):
                pieces.put(torch.tensor(tokens))
                yield from pieces.take()
        pieces.end()
        yield from pieces.take()

    @torch.no_grad()
    def log_likelihoods(
        self, requests: Sequence[Request], answers: Sequence[str], *, use_adapter: bool = True, batch_size: int = 8
    ) -> list[list[float]]:
        if self.vlm is None:
            raise ModelError(f"{self.recipe.model} cannot score texts: its prompts cannot be shared.")
        texts, found = [text.to(self.device) for text in self._tokens(answers)], []
        with self._inference(), self._adapter(use_adapter):
            for start in range(0, len(requests), batch_size):
                part = requests[start : start + batch_size]
                prompts = self._prompts(self.vlm, self._encode(part), part)
                logps, _ = packed(self.vlm, [(prompt, texts) for prompt in prompts], 1.0)
                sums = [own.sum().item() for own in logps.split([len(text) for text in texts] * len(part))]
                found += [sums[first : first + len(texts)] for first in range(0, len(sums), len(texts))]
        return found

    def prompt_tokens(self, request: Request) -> int:
        return self._encode([request])["input_ids"].shape[1]

    def resized(self, image: Image.Image) -> Size:
        batch = self.processor.image_processor(images=[image], return_tensors="pt")
        return self._seen_sizes(batch, [Request((image,), "")])[0]

    def save_adapter(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.spec.save(folder, model=self.recipe.model)

    def replace_adapter(self, folder: Path) -> None:
        self.spec = find_spec(self.recipe, folder)
        with _explained_adapter(folder):
            self.model.load_adapter(folder, "default", torch_device=str(self.device))

    def fingerprints(self) -> dict[str, str | None]:
        return fingerprints(self.model, self.processor, self.end_tokens(), self.suppressed_tokens())

    def describe(self) -> dict[str, Any]:
        parameters = list(self.model.parameters())
        return {
            "backend": self.name,
            "backend_reason": self.reason,
            "model": self.recipe.model,
            "revision": getattr(self.model.config, "_commit_hash", None) or self.recipe.revision,
            "family": self.spec.family,
            "box_space": str(self.spec.box_space),
            "max_pixels": self.recipe.max_pixels,
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "dtype": str(self.dtype).removeprefix("torch."),
            "load_in_4bit": self.recipe.load_in_4bit,
            "shares_prompts": self.vlm is not None,
            "shares_rollout": self.vlm is not None and self.shares_rollout and self.engine is None,
            "engine": engine_version() if self.engine else None,
            "engine_obstacle": self.engine_obstacle,
            "parameters": sum(parameter.numel() for parameter in parameters),
            "trainable": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
            "versions": {name: version(name) for name in self.libraries},
        }

    def suppressed_tokens(self) -> list[int]:
        vocabulary = self.processor.tokenizer.get_vocab()
        return [vocabulary[token] for token in self.family.vision_tokens if token in vocabulary]

    def _inference(self) -> contextlib.AbstractContextManager:
        """While it is open, the model is in the state in which it generates."""
        return contextlib.nullcontext()

    def _adapter(self, use_adapter: bool) -> contextlib.AbstractContextManager:
        if use_adapter or not isinstance(self.model, PeftModel):
            return contextlib.nullcontext()
        return self.model.disable_adapter()

    def _encode(self, requests: Sequence[Request]) -> dict[str, torch.Tensor]:
        texts = [
            self.processor.apply_chat_template(
                [{"role": "user", "content": [*({"type": "image"} for _ in one.images), _text(one.text)]}],
                add_generation_prompt=True,
                tokenize=False,
            )
            for one in requests
        ]
        images = [list(one.images) for one in requests]
        # The side is said each time, because a trainer may set another on the tokenizer.
        options = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        batch = self.processor(images=images, text=texts, **options)
        if any(request.opening for request in requests):
            self._put_behind(batch, [request.opening for request in requests])
        return batch.to(self.device)

    def _put_behind(self, batch: Any, openings: Sequence[str]) -> None:
        """Add the tokens of the openings to the prompts of a batch, padded anew."""
        tokens = self._tokens(openings)
        added = {"input_ids": tokens, "attention_mask": map(torch.ones_like, tokens)}
        added["mm_token_type_ids"] = map(torch.zeros_like, tokens)  # text
        is_prompt, padding = batch["attention_mask"].bool(), {"input_ids": self.processor.tokenizer.pad_token_id}
        for name in batch.keys() & added.keys():
            rows = zip(batch[name], is_prompt, added[name], strict=True)
            longer = [torch.cat([row[mask], more]) for row, mask, more in rows]
            batch[name] = pad_sequence(longer, True, padding.get(name, 0), "left")

    def _tokens(self, texts: Sequence[str]) -> list[torch.Tensor]:
        """(C,) ids of each text as a completion, which begins where its prompt ends, so that it is tokenised by itself.

        No special tokens are made of it: what a model wrote in plain letters stays plain letters.
        """
        plain = {"add_special_tokens": False, "split_special_tokens": True}
        ids = self.processor.tokenizer(list(texts), **plain).input_ids
        return [torch.tensor(one, dtype=torch.long) for one in ids]

    def _sample(self, batch: dict[str, torch.Tensor], part: Sequence[Request], sampling: Sampling) -> list[list[int]]:
        if self.vlm is not None:
            return sample(self.vlm, self._prompts(self.vlm, batch, part), range(len(part)), sampling)
        with _seeded(sampling.seeds):
            tokens = self.model.generate(**batch, **sampling.for_generate())[:, batch["input_ids"].shape[1] :]
        return cut_at_end(tokens, sampling.end_tokens)

    def _prompts(
        self, vlm: VisionLanguageModel, batch: dict[str, torch.Tensor], requests: Sequence[Request]
    ) -> list[Prompt]:
        return vlm.prompts(_unpadded(batch), [len(request.images) for request in requests], batch)

    def _sampling(self, max_new_tokens: int, temperature: float) -> Sampling:
        return Sampling(
            max_new_tokens,
            temperature=temperature,
            end_tokens=self.end_tokens(),
            suppressed=tuple(self.suppressed_tokens()),
        )

    def end_tokens(self) -> tuple[int, ...]:
        """Ids of the tokens that end a completion."""
        ends = self.model.generation_config.eos_token_id
        return tuple(ends) if isinstance(ends, list) else (ends,)

    def _decode(self, completions: Sequence[Sequence[int]], sizes: Sequence[Size]) -> list[Generated]:
        ends = self.end_tokens()
        return [
            Generated(
                self.processor.tokenizer.decode(tokens, skip_special_tokens=True),
                len(tokens),
                bool(tokens) and tokens[-1] in ends,
                size,
            )
            for tokens, size in zip(completions, sizes, strict=False)
        ]

    def _seen_sizes(self, batch: Any, requests: Sequence[Request]) -> list[Size]:
        if "image_grid_thw" not in batch:  # InternVL cuts tiles; its boxes are in 0-1000 whatever the size
            return [request.image.size for request in requests]
        patch = self.processor.image_processor.patch_size
        grids = batch["image_grid_thw"].tolist()  # of all images, one after the other
        firsts = accumulate((len(request.images) for request in requests), initial=0)
        seen = [grids[first] for first, _ in zip(firsts, requests, strict=False)]
        return [(width * patch, height * patch) for _, height, width in seen]


@contextlib.contextmanager
def _seeded(seeds: Sequence[int]) -> Iterator[None]:
    """While it is open, torch draws from the first of the seeds, if there is one."""
    if not seeds:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seeds[0])
        yield


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _unpadded(batch: dict[str, torch.Tensor]) -> list[list[int]]:
    rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return [ids[mask.bool()].tolist() for ids, mask in rows]


def load_processor(location: str, recipe: Recipe, family: Family) -> Any:
    """The processor of a model, which shows it images of at most `max_pixels` of the recipe."""
    processor = AutoProcessor.from_pretrained(location, revision=recipe.revision)
    processor.tokenizer.padding_side = "left"
    family.limit_images(processor.image_processor, recipe.max_pixels)
    return processor


class _Pieces(TextStreamer):
    """Turns tokens into text that no later token can change, piece by piece."""

    def __init__(self, tokenizer: Any, **decode_options: Any) -> None:
        super().__init__(tokenizer, **decode_options)
        self.waiting: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.waiting.append(text)

    def take(self) -> list[str]:
        pieces, self.waiting = self.waiting, []
        return pieces


def longest_sequence(recipe: Recipe, family: Family) -> int:
    """Tokens of the longest prompt with a completion, generously."""
    return family.image_tokens(recipe.max_pixels) + TEXT_TOKENS + recipe.max_completion_tokens


def _device() -> torch.device:
    """By its number, because of several processes each has another GPU, and accelerate compares."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _load_adapter(model: Any, adapter: Path) -> Any:
    with _explained_adapter(adapter):
        return PeftModel.from_pretrained(model, adapter)


@contextlib.contextmanager
def _explained_adapter(adapter: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"The adapter in {adapter} does not load on this model: {error}") from error


@contextlib.contextmanager
def explained(location: str) -> Iterator[None]:
    """Says in one message what a library reports about a model that cannot be loaded."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        hint = (
            "The folder must hold config.json, *.safetensors and the processor's files."
            if Path(location).is_dir()
            else "Check the name, the network, and HF_HUB_OFFLINE; a model that is not cached needs the hub once."
        )
        raise ModelError(f"The model {location} cannot be loaded: {error}\n{hint}") from error
