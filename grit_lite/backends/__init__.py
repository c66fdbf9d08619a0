"""MODEL: the seam between this package and whatever library runs the model.

A backend loads one vision-language model and its processor, attaches a LoRA adapter, generates, saves, and hands out
the trainer classes to build on. Everything above this line of the layer list speaks only this protocol.
"""

import functools
import importlib
import importlib.util
import json
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from PIL import Image

from grit_lite import processes
from grit_lite.answer import PromptTemplate
from grit_lite.backends.configuration import find_family, read_configuration
from grit_lite.boxes import BoxSpace, Size
from grit_lite.errors import ModelError
from grit_lite.families import FAMILIES
from grit_lite.fitting import memory_explained
from grit_lite.recipe import Recipe
from grit_lite.tiny import WEIGHTS

SPEC_FILE = "grit_lite.json"


@dataclass(frozen=True)
class Request:
    """The images of a prompt, in order, and the user text about them, as `PromptTemplate.render` wrote it.

    Boxes are about the first image: `Generated.resized` is its size.

    Attributes:
        opening: what the completion is made to begin with, as if the model had written it; `Generated` is what follows.
    """

    images: tuple[Image.Image, ...]
    text: str
    opening: str = ""

    @property
    def image(self) -> Image.Image:
        """The first one."""
        return self.images[0]


@dataclass(frozen=True)
class Generated:
    """One completion, or what follows its opening.

    Attributes:
        text: without special tokens.
        tokens: how many were generated, the end token included.
        finished: whether it ended by itself, rather than at the limit.
        resized: (width, height) in pixels of the first image as the model saw it.
    """

    text: str
    tokens: int
    finished: bool
    resized: Size


@dataclass(frozen=True)
class ModelSpec:
    """How a model reads questions and writes boxes; travels as `grit_lite.json` beside weights and adapters."""

    family: str
    box_space: BoxSpace
    prompts: PromptTemplate

    def save(self, folder: Path, **extra: Any) -> None:
        prompt = {"grounded": self.prompts.grounded, "direct": self.prompts.direct}
        values = {"family": self.family, "box_space": str(self.box_space), "prompt": prompt, **extra}
        (folder / SPEC_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


class Backend(Protocol):
    """One loaded model. `spec` says how it reads and writes; `model` and `processor` are the library's own objects."""

    name: str
    shares_rollout: bool  # whether training samples with `rollout`, rather than with the library's own generation
    spec: ModelSpec
    model: Any
    processor: Any
    engine: Any  # an `Engine`, where vLLM samples in the place of both; else None
    engine_obstacle: str | None  # why there is none

    def attach_lora(self, recipe: Recipe) -> None:
        """Put a fresh, seeded, trainable adapter on the model."""

    def trainer_types(self) -> tuple[type, type]:
        """(GRPOConfig, GRPOTrainer), looked up after loading because some libraries rebind them."""
        ...

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
        """One completion for each request, in order.

        Args:
            temperature: 0 is greedy.
            seeds: one for each request, of which alone its completion is drawn, whatever else is in the batch. None
                draws from torch's generator.
        """
        ...

    def stream(
        self, request: Request, *, max_new_tokens: int, temperature: float = 0.0, use_adapter: bool = True
    ) -> Generator[str, None, None]:
        """The pieces of one completion, as they come; closing it stops the model."""
        ...

    def log_likelihoods(
        self, requests: Sequence[Request], answers: Sequence[str], *, use_adapter: bool = True, batch_size: int = 8
    ) -> list[list[float]]:
        """For each request, the log-probability in nats of each of these texts as what follows it; its end not counted.

        Raises:
            ModelError: the model is of a family whose prompts cannot be shared.
        """
        ...

    def prompt_tokens(self, request: Request) -> int:
        """How many tokens the request is, its images included."""
        ...

    def resized(self, image: Image.Image) -> Size:
        """(width, height) in pixels of `image` as the model sees it."""
        ...

    def suppressed_tokens(self) -> list[int]:
        """Ids of the tokens that must never be sampled."""
        ...

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter in PEFT's format, with its `grit_lite.json`."""

    def replace_adapter(self, folder: Path) -> None:
        """Put a trained adapter of the same shape and settings in the place of the one that is on the model."""

    def fingerprints(self) -> dict[str, str | None]:
        """The sha256 of `weights`, `adapter` (None without one), `processor` and `configuration`, as in memory."""
        ...

    def describe(self) -> dict[str, Any]:
        """Plain facts for `run.json`: model and revision (None in a folder), device, dtype, parameters, versions."""
        ...


@dataclass(frozen=True)
class Choice:
    """Which backend a recipe gets, and why."""

    name: Literal["unsloth", "plain"]
    reason: str


def import_libraries(recipe: Recipe) -> Choice:
    """Choose the backend of a recipe and import its libraries.

    Unsloth rewrites transformers, PEFT and TRL as it is imported. A command calls this before it imports any module of
    ours that needs them, so that nothing keeps what Unsloth replaces.

    Raises:
        ModelError: the recipe asks for Unsloth, or for a vLLM server, and this machine cannot have it.
    """
    if recipe.vllm_server and (missing := server_obstacle()):
        raise ModelError(f"The recipe names a vLLM server, but {missing}. Remedy that, or set vllm_server=null.")
    return _choose(recipe, unsloth_obstacle)


def expected_choice(recipe: Recipe) -> Choice:
    """What `import_libraries` would choose, as far as it can be told without importing Unsloth.

    Raises:
        ModelError: the recipe asks for Unsloth and this machine cannot have it.
    """
    return _choose(recipe, missing_for_unsloth)


def _choose(recipe: Recipe, find_obstacle: Callable[[], str | None]) -> Choice:
    if recipe.backend == "plain":
        return Choice("plain", "the recipe asks for it")
    obstacle = _beyond_unsloth(recipe) or find_obstacle()
    if obstacle is None:
        return Choice(
            "unsloth", "the recipe asks for it" if recipe.backend == "unsloth" else "CUDA and Unsloth are here"
        )
    if recipe.backend == "unsloth":
        raise ModelError(
            f"The recipe asks for backend: unsloth, but {obstacle}. Remedy that, or set backend=auto or backend=plain."
        )
    return Choice("plain", obstacle)


def can_stage(backend: str, recipe: Recipe) -> bool:
    """Whether a pass can go in stages: not through Unsloth's checkpointing, which is of the reentrant kind."""
    return backend != "unsloth" or not recipe.gradient_checkpointing


def _beyond_unsloth(recipe: Recipe) -> str | None:
    """What the run wants that Unsloth does not do."""
    if processes.count() > 1:
        return f"the run has several processes ({processes.count()}), and Unsloth trains in one"
    return "only the plain backend samples with a vLLM server" if recipe.vllm_server else None


def server_obstacle() -> str | None:
    """Why this machine cannot train with a vLLM server; None where it can."""
    import torch

    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device here, and the weights go to the server from one GPU to another"
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed here, whose code also sends the weights (pip install vllm)"
    return None


def missing_for_unsloth() -> str | None:
    """What Unsloth needs and is not here; None where there is nothing but importing it left to try."""
    import torch

    # The variable is Unsloth's own switch, with which its tests run it on a CPU.
    if not torch.cuda.is_available() and os.environ.get("UNSLOTH_ALLOW_CPU") != "1":
        return "PyTorch finds no CUDA device here"
    if importlib.util.find_spec("unsloth") is None:
        return "Unsloth is not installed here (pip install 'grit-lite[gpu]')"
    return None


@functools.cache  # a failed import must not be tried twice in a process
def unsloth_obstacle() -> str | None:
    """Why Unsloth cannot be used here; None where it can be, and then it has been imported."""
    if missing := missing_for_unsloth():
        return missing
    try:
        importlib.import_module("grit_lite.backends.unsloth")
    except Exception as error:  # noqa: BLE001  it runs the code of a dozen libraries
        return f"Unsloth cannot be imported here ({type(error).__name__}: {error})"
    return None


def open_backend(recipe: Recipe, adapter: Path | None = None) -> Backend:
    """The model of a recipe, loaded; with a trained adapter on it where one is given.

    Raises:
        ModelError: the model is nowhere to be found, or cannot be loaded on this machine.
        OutOfMemory: it does not fit into what memory is free.
    """
    choice = import_libraries(recipe)
    with memory_explained(recipe.model):
        return _class_of(choice)(recipe, adapter, choice.reason)


def _class_of(choice: Choice) -> Callable[[Recipe, Path | None, str], Backend]:
    if choice.name == "unsloth":
        from grit_lite.backends.unsloth import UnslothBackend

        return UnslothBackend
    from grit_lite.backends.plain import PlainBackend

    return PlainBackend


def verify_arguments(trainer: Any, expected: Mapping[str, Any]) -> None:
    """Hold a constructed trainer to the arguments that it was given; some libraries change a few without a word.

    Raises:
        ModelError: an argument is another one by now, in the trainer's `args` or in its own attribute of that name.
    """
    changed = [
        f"{name}: {given!r} became {found!r}"
        for name, given in expected.items()
        for found in _held(trainer, name, given)
        if found != given
    ]
    if changed:
        raise ModelError(
            f"The training library did not keep to the recipe: {'; '.join(changed)}. Set the recipe to values that it "
            "keeps, or set backend=plain."
        )


def _held(trainer: Any, name: str, given: Any) -> list[Any]:
    """What the trainer holds of an argument: in its `args`, and what it copied from there."""
    held = [getattr(trainer.args, name)]
    if given is not None and name in vars(trainer):  # a None stands for what the trainer works out
        held.append(vars(trainer)[name])
    return [_in_terms_of(given, value) for value in held]


def _in_terms_of(given: Any, value: Any) -> Any:
    """What a library makes of an argument that it keeps: of "none" an empty list, of options more options."""
    if isinstance(given, Mapping) and isinstance(value, Mapping):
        return {name: value.get(name) for name in given}
    return given if given == "none" and value == [] else value


def model_location(model: str) -> str:
    """What `from_pretrained` is to be asked for.

    Raises:
        ModelError: the name is neither 'tiny', nor a folder, nor of the form owner/name.
    """
    if model == "tiny":
        return str(WEIGHTS)
    if Path(model).is_dir():
        return model
    if model.count("/") != 1 or model.startswith((".", "/", "~")) or model.endswith("/"):
        raise ModelError(
            f"There is no model '{model}': it is not 'tiny', no folder of that name exists here, and a name on the "
            "model hub looks like owner/name, for example Qwen/Qwen2.5-VL-3B-Instruct."
        )
    return model


def find_spec(recipe: Recipe, adapter: Path | None = None) -> ModelSpec:
    """How the model of a recipe reads and writes: what the adapter says, else the model's folder, else its family.

    Raises:
        ModelError: the model is not there, it may not be had, or it is of an unknown family and does not say.
    """
    location = model_location(recipe.model)
    said = (adapter and read_spec(adapter)) or read_spec(Path(location))
    if said is not None:
        read_configuration(location, recipe.revision)
        return said
    family = find_family(location, recipe.revision)
    return ModelSpec(family.model_type, family.box_space, family.prompts)


def read_spec(folder: Path) -> ModelSpec | None:
    """The model spec that a folder carries, or None where it carries none.

    Raises:
        ModelError: the file is there and cannot be used.
    """
    path = folder / SPEC_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["family"] not in FAMILIES:
            raise ValueError(f"its family is none of {', '.join(FAMILIES)}")
        prompts = PromptTemplate(**values["prompt"])
        return ModelSpec(values["family"], BoxSpace(values["box_space"]), prompts)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path} is not a usable model spec: {error!r}. Delete it to use the family's default."
        ) from error
