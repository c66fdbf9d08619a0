"""What a run needs in memory, estimated before it begins, part by part; and the schedule of a pass that fits.

Weights, adapter and optimizer are counted on a model that is built without memory. What a pass and a rollout keep is
counted tensor by tensor for the Qwen language models, rounded up where a library decides; `benchmarks/README.md` says
how near the measured peaks come. Nothing here has to be loaded or downloaded but a model's configuration.
"""

import re
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
import torch

from grit_lite import processes
from grit_lite.backends import can_stage, model_location
from grit_lite.backends.configuration import read_configuration
from grit_lite.engine import obstacles
from grit_lite.errors import ModelError, OutOfMemory
from grit_lite.families import FAMILIES, Family
from grit_lite.fitting import Changes, as_settings, change_that_fits
from grit_lite.packing import CHUNK, PACKED, Schedule
from grit_lite.recipe import Recipe
from grit_lite.rollout import PREFILL_TOKENS
from grit_lite.shapes import published_config
from grit_lite.vlm import shares_prompts

GIB, MIB = 2**30, 2**20
SHARE = 0.8  # of the free memory that a pass may plan with; the allocator wants the rest
# Of NF4 with double quantisation: half a byte, one byte of scale for 64 weights, four for the scales of 256 such.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
ADAPTER_BYTES = 16  # of a trained weight: itself, its gradient and AdamW's two moments, in float32
OVERHEAD = {"cuda": int(0.6 * GIB), "cpu": int(0.6 * GIB)}  # CUDA's context and kernels; Python with its libraries
TEXT_TOKENS = 256  # of a prompt, beside its image
PATCHES_PER_TOKEN = 4  # every family merges 2 x 2 patches into one image token
LEAST_OF_ESTIMATE = 0.75  # of `pass_bytes`: no measured peak was below


@dataclass(frozen=True)
class Device:
    """Where a run would take place; bytes.

    Attributes:
        free: what other programs leave, and this one with it.
    """

    kind: str
    name: str
    total: int
    free: int

    @property
    def limit(self) -> int:
        """More than this cannot be had: on a CPU what other programs leave, because they will not make room."""
        return self.total if self.kind == "cuda" else self.free

    @property
    def offer(self) -> str:
        """What there is, in words."""
        return f"{gib(self.limit)} that {f'{self.name} has' if self.kind == 'cuda' else 'this machine has free'}"


def gib(size: float) -> str:
    """A number of bytes for people to read."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / MIB:.0f} MiB"


def this_device() -> Device:
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties().total_memory
        # To ask makes the context that `OVERHEAD` counts.
        return Device("cuda", torch.cuda.get_device_name(), total, free_bytes(torch.device("cuda")) + OVERHEAD["cuda"])
    mine = psutil.Process().memory_info().rss
    return Device("cpu", "CPU", psutil.virtual_memory().total, free_bytes(torch.device("cpu")) + mine)


def free_bytes(device: torch.device) -> int:
    """What is left: of the GPU, with what torch holds in reserve, or of this machine."""
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    return psutil.virtual_memory().available


# What a model is


@dataclass(frozen=True)
class ModelSizes:
    """What of a model its memory depends on.

    Attributes:
        packed: parameters that `load_in_4bit` packs.
        other: all others; a head that is tied to the embeddings is not counted twice.
        largest: parameters of the largest packed matrix, which is unpacked whole when it is used.
        lora_width: inputs and outputs of all layers with LoRA: the trained parameters for each rank.
        shares: whether its prompts can be shared.
    """

    config: Any
    packed: int
    other: int
    largest: int
    lora_width: int
    shares: bool

    @property
    def parameters(self) -> int:
        return self.packed + self.other


def model_config(recipe: Recipe) -> Any:
    """The configuration of a recipe's model: of its folder, the hub or its cache, else the published one, or None."""
    from transformers import CONFIG_MAPPING

    location = model_location(recipe.model)
    if Path(location).is_dir() and not any(Path(location).glob("*.safetensors")):
        return None  # of a model without weights nothing is known
    try:
        values = read_configuration(location, recipe.revision)
    except ModelError:  # not here, and the hub is out of reach or says no
        return published_config(recipe.model)
    return CONFIG_MAPPING[values["model_type"]].from_dict(values) if values.get("model_type") in FAMILIES else None


def model_sizes(config: Any, recipe: Recipe) -> ModelSizes:
    """The sizes of a model with the recipe's LoRA, from the model built without memory."""
    from transformers import AutoModelForImageTextToText
    from transformers.quantizers.quantizers_utils import should_convert_module

    from grit_lite.backends.plain import NOT_IN_4BIT

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    targets = FAMILIES[config.model_type].lora_targets(recipe.lora_parts)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    packed = [layer.weight.numel() for name, layer in layers.items() if should_convert_module(name, NOT_IN_4BIT)]
    adapted = [layer for name, layer in layers.items() if re.fullmatch(targets, name)]
    return ModelSizes(
        config=config,
        packed=sum(packed),
        other=sum(parameter.numel() for parameter in model.parameters()) - sum(packed),
        largest=max(packed, default=0),
        lora_width=sum(layer.in_features + layer.out_features for layer in adapted),
        shares=shares_prompts(model),
    )


# What a run needs


def vllm_obstacle(recipe: Recipe, family: Family, backend: str, device: str) -> str | None:
    """Why vLLM would not sample, as far as it can be told before the backend is opened."""
    here = {
        "the recipe says so": recipe.vllm == "off",
        "a vLLM server samples": recipe.vllm_server is not None,
        "PyTorch finds no CUDA device here": device != "cuda",
        "beside the plain backend only with vllm: on": backend != "unsloth" and recipe.vllm != "on",
    }
    return next(chain((reason for reason, holds in here.items() if holds), obstacles(recipe, family)), None)


@dataclass(frozen=True)
class Estimate:
    """Bytes of the highest use, by part.

    Attributes:
        weights: of the model, with the largest 4-bit matrix unpacked.
        adapter: LoRA, its gradient and the optimizer's moments.
        update: what a pass keeps for its backward pass, above all that.
        rollout: keys, values and logits while completions are sampled; not at the same time as `update`.
        engine: vLLM's, beyond the weights where it shares them.
        overhead: the device's context, or the process without the model.
    """

    weights: int
    adapter: int
    update: int
    rollout: int
    engine: int
    overhead: int

    @property
    def total(self) -> int:
        return self.weights + self.adapter + max(self.update, self.rollout) + self.engine + self.overhead

    def __str__(self) -> str:
        highest = ("pass", self.update) if self.update >= self.rollout else ("rollout", self.rollout)
        parts = [("weights", self.weights), ("adapter", self.adapter), highest, ("vLLM", self.engine)]
        return ", ".join(f"{name} {gib(size)}" for name, size in [*parts, ("overhead", self.overhead)] if size)

    def as_mib(self) -> dict[str, int]:
        return {name: round(size / MIB) for name, size in {**asdict(self), "total": self.total}.items()}


@dataclass(frozen=True)
class Plan:
    """A model on a device, about which recipes can be asked what they need.

    Attributes:
        backend: the one that recipes get; only the plain one samples with `rollout`, and only Unsloth shares the
            weights with vLLM.
        largest_image: pixels of the largest image; None where only the recipe's limit is known.
    """

    sizes: ModelSizes
    device: Device
    backend: str
    largest_image: int | None = None

    def estimate(self, recipe: Recipe) -> Estimate:
        """What the recipe needs."""
        sizes, device, vllm = self.sizes, self.device, self.samples_with_vllm(recipe)
        itemsize = activation_bytes(recipe, device)
        weights, adapter = weight_bytes(sizes, recipe, itemsize), adapter_bytes(sizes, recipe)
        overhead = OVERHEAD[device.kind]
        engine = int(recipe.vllm_memory_share * device.total) if vllm else 0
        if self.backend == "unsloth":
            engine = max(0, engine - weights)
        room = int(SHARE * max(0, device.free - weights - adapter - engine - overhead))
        room = room if can_stage(self.backend, recipe) else None
        image = self._image_tokens(recipe)
        shared, elsewhere = sizes.shares and self.backend == "plain", vllm or recipe.vllm_server is not None
        return Estimate(
            weights=weights,
            adapter=adapter,
            update=_update_bytes(sizes, recipe, image, itemsize, room),
            rollout=0 if elsewhere else rollout_bytes(sizes.config, recipe, image, itemsize, shared=shared),
            engine=engine,
            overhead=overhead,
        )

    def least(self, recipe: Recipe) -> int:
        """Bytes that no schedule gets below: weights, adapter, optimizer, and the pass of one short completion.

        Whatever is not certain is left out: a recipe that needs more than the device has is certain not to fit, and one
        that needs less may or may not.
        """
        itemsize = activation_bytes(recipe, self.device)
        options = {"itemsize": itemsize, "checkpointing": recipe.gradient_checkpointing}
        smallest = pass_bytes(self.sizes.config.get_text_config(), 1, self._image_tokens(recipe), 1, 1, **options)
        held = weight_bytes(self.sizes, recipe, itemsize) + adapter_bytes(self.sizes, recipe)
        return held + int(LEAST_OF_ESTIMATE * smallest)

    def as_facts(self, recipe: Recipe) -> dict[str, Any]:
        """For run.json; `expected_mib` is what a measured peak is to be held against, which on a GPU has no context."""
        estimate = self.estimate(recipe)
        expected = estimate.total - (estimate.overhead if self.device.kind == "cuda" else 0)
        return {
            "device": self.device.name,
            "limit_mib": round(self.device.limit / MIB),
            "estimate_mib": estimate.as_mib(),
            "expected_mib": round(expected / MIB),
        }

    def verdict(self, recipe: Recipe) -> str:
        """What the recipe needs and whether it fits, in a line; with advice where it may not.

        Raises:
            OutOfMemory: it is certain not to fit.
        """
        estimate, device = self.estimate(recipe), self.device
        if (least := self.least(recipe)) > device.limit:
            raise OutOfMemory(
                f"{recipe.model} does not fit: its weights, adapter and optimizer need at least {gib(least)} of the "
                f"{device.offer}. {self.advice(recipe)}"
            )
        line = f"about {gib(estimate.total)} of the {device.offer}: {estimate}"
        return line if estimate.total <= device.free else f"{line}. That may not fit. {self.advice(recipe)}"

    def advice(self, recipe: Recipe, *, after_failure: bool = False) -> str:
        """The smallest change of the recipe that would fit; after a failure, with a fifth less for pass and rollout."""
        limit, estimate = self.device.free, self.estimate(recipe)
        if after_failure:
            limit = min(limit, estimate.total - max(estimate.update, estimate.rollout) // 5)
        if (changes := self.change_that_fits(recipe, limit)) is None:
            return "No change of the recipe would make it fit; take a smaller model."
        total = self.estimate(recipe.model_copy(update=changes)).total
        return f"With {as_settings(changes)} it would need about {gib(total)}."

    def _image_tokens(self, recipe: Recipe) -> int:
        pixels = min(recipe.max_pixels, self.largest_image or recipe.max_pixels)
        return FAMILIES[self.sizes.config.model_type].image_tokens(pixels)

    def samples_with_vllm(self, recipe: Recipe) -> bool:
        family = FAMILIES[self.sizes.config.model_type]
        return vllm_obstacle(recipe, family, self.backend, self.device.kind) is None

    def change_that_fits(self, recipe: Recipe, limit: int) -> Changes | None:
        """The smallest change of the recipe with which its estimate is at most `limit` bytes; None where none is."""
        return change_that_fits(
            recipe,
            lambda changed: self.estimate(changed).total,
            limit,
            shares=self.sizes.shares and recipe.prompt_sharing != "none",
            stages=self.backend != "unsloth",  # whose checkpointing may be among the changes
            cuda=self.device.kind == "cuda",
            vllm=self.samples_with_vllm(recipe),
        )


def activation_bytes(recipe: Recipe, device: Device) -> int:
    """Bytes of an activation, and of a weight that is not packed."""
    if recipe.dtype == "auto":
        return 2 if device.kind == "cuda" else 4
    return getattr(torch, recipe.dtype).itemsize


def weight_bytes(sizes: ModelSizes, recipe: Recipe, itemsize: int) -> int:
    in_4bit = recipe.load_in_4bit or getattr(sizes.config, "quantization_config", None) is not None
    if not in_4bit:
        return sizes.parameters * itemsize
    return int(sizes.packed * NF4_BYTES) + (sizes.other + sizes.largest) * itemsize


def adapter_bytes(sizes: ModelSizes, recipe: Recipe) -> int:
    return sizes.lora_width * recipe.lora_rank * ADAPTER_BYTES


def _update_bytes(sizes: ModelSizes, recipe: Recipe, image: int, itemsize: int, room: int | None) -> int:
    prompt = image + TEXT_TOKENS
    rows, group = completions_per_pass(recipe), recipe.group_size
    lengths = {"prompt": prompt, "completion": recipe.max_completion_tokens}
    options = {"itemsize": itemsize, "checkpointing": recipe.gradient_checkpointing}
    text = sizes.config.get_text_config()
    prompts, at_once = -(-rows // group), rows
    if not sizes.shares or recipe.prompt_sharing == "none":
        prompts = rows
    elif (schedule := _schedule(text, recipe, room, rows=rows, **lengths, **options)).staged:
        prompts, at_once = 1, schedule.at_once or 1
    update = pass_bytes(text, prompts, prompt, at_once, recipe.max_completion_tokens, **options)
    if "vision" in recipe.lora_parts:
        update += _tower_bytes(sizes.config, prompts * image, itemsize, kept=True)
    return update


def _schedule(config: Any, recipe: Recipe, room: int | None, *, rows: int, **sizes: Any) -> Schedule:
    """As the trainer chooses it; `room` is None where a pass cannot go in stages."""
    if recipe.prompt_sharing != "auto" or room is None:
        return Schedule(recipe.prompt_sharing == "staged", recipe.completions_at_once)
    return fitting_schedule(config, room, rows, recipe.group_size, **sizes)


def completions_per_step(recipe: Recipe) -> int:
    """Those of this process."""
    return recipe.prompts_per_step * recipe.group_size // processes.count()


def completions_per_pass(recipe: Recipe) -> int:
    most = completions_per_step(recipe)
    return min(recipe.completions_per_pass or most, most)


def rollout_bytes(
    config: Any, recipe: Recipe, image: int, itemsize: int, *, shared: bool, text_tokens: int = TEXT_TOKENS
) -> int:
    """Estimated peak of a rollout, above the weights, in bytes.

    Args:
        image: tokens of the image of each prompt; `text_tokens` are the others.
        itemsize: bytes of an activation.
        shared: of our rollout, which keeps a prompt once; else of a library's, which keeps it for each completion.
    """
    prompt = image + text_tokens
    text = config.get_text_config()
    rows = completions_per_step(recipe)
    if shared:
        rows = min(rows, recipe.completions_per_rollout or rows)
    prompts = -(-rows // recipe.group_size)
    keys, _ = _widths(text)
    token = 2 * text.num_hidden_layers * keys * itemsize
    # Our rollout holds the prompts twice for a moment, while it brings them to one length.
    cache = (2 * prompts if shared else rows) * prompt * token + rows * recipe.max_completion_tokens * token
    first = _layer_bytes(text, min(PREFILL_TOKENS, prompts * prompt), itemsize)
    tower = _tower_bytes(config, prompts * image, itemsize, kept=False)
    logits = 6 * rows * text.vocab_size * 4  # of a token: logits, warped, probabilities, noise
    return cache + max(first, tower, logits)


def pass_bytes(
    config: Any, prompts: int, prompt: int, completions: int, completion: int, *, itemsize: int, checkpointing: bool
) -> int:
    """Estimated peak of forward and backward of one pass, above the weights, in bytes.

    It counts what the layers of the Qwen language models keep for the backward pass with LoRA on all their linear
    layers. Measured peaks of a middle-size model lie at 0.75 to 1.0 of it (benchmarks/README.md).

    Args:
        config: of the language model.
        prompts: how many prompts are in the graph at the same time, `prompt` tokens each.
        completions: how many completions are, `completion` tokens each.
        itemsize: bytes of an activation.
        checkpointing: whether a layer's activations are computed anew in the backward pass.
    """
    tokens = prompts * prompt + completions * completion
    # Each completion has its own copy of the keys and values before it: as they are, and repeated for the query heads.
    copies = completions * (prompt + completion) * 2 * sum(_widths(config))
    layer = _layer_bytes(config, tokens, itemsize) + itemsize * copies
    kept = itemsize * tokens * config.hidden_size if checkpointing else layer
    at_work = 1.8 * layer if checkpointing else layer
    logits = 5 * min(CHUNK, completions * completion) * config.vocab_size * 4
    return int(config.num_hidden_layers * kept + at_work + logits)


def _layer_bytes(config: Any, tokens: int, itemsize: int) -> int:
    """What one layer of a language model makes of so many tokens; its norms are computed in float32."""
    keys, queries = _widths(config)
    made = 6 * config.hidden_size + 4 * queries + 4 * keys + 4 * config.intermediate_size
    return tokens * (itemsize * made + 2 * config.hidden_size * 4)


def _widths(config: Any) -> tuple[int, int]:
    """Of all keys of a token, and of all its queries."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_key_value_heads * head, config.num_attention_heads * head


def _tower_bytes(config: Any, tokens: int, itemsize: int, *, kept: bool) -> int:
    """Of the vision tower on images of so many tokens: of all its layers for a backward pass, or of those at work."""
    vision = config.vision_config
    layers = getattr(vision, "depth", None) or vision.num_hidden_layers
    made = 10 * vision.hidden_size + 4 * vision.intermediate_size
    layer = PATCHES_PER_TOKEN * tokens * (itemsize * made + 2 * vision.hidden_size * 4)
    return layer * (layers if kept else 2)


def fitting_schedule(
    config: Any, room: int, rows: int, group: int, prompt: int, completion: int, *, itemsize: int, checkpointing: bool
) -> Schedule:
    """The fastest schedule whose estimate fits: one packed row, else stages of as many completions as possible.

    Args:
        room: bytes that may be used.
        rows: completions of a micro-batch, of groups of `group`.
        prompt: tokens of the longest prompt.
        completion: tokens of the longest completion.
    """
    options = {"itemsize": itemsize, "checkpointing": checkpointing}
    if pass_bytes(config, -(-rows // group), prompt, rows, completion, **options) <= room:
        return PACKED
    fits = [n for n in range(2, group) if pass_bytes(config, 1, prompt, n, completion, **options) <= room]
    return Schedule(staged=True, at_once=max(fits, default=1))
