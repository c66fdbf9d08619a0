"""A recipe: every setting of a run, flat, checked, and saved beside the results.

Values come from the defaults below, then a YAML file, then `--set key=value`, then named options; a later one wins. A
key that does not exist is an error that names the nearest one that does. The recipe that a run used is written whole
into its folder, so that the folder alone says how it was made.
"""

import difflib
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from grit_lite.errors import RecipeError

# An installed package carries its recipes inside; a checkout has them at the top, where people look for them.
_FOLDERS = (Path(__file__).parent / "_recipes", Path(__file__).parents[1] / "recipes")

LoraPart = Literal["vision", "language", "attention", "mlp"]


def _on_or_off(value: Any) -> Any:
    """YAML reads `on` and `off` as True and False."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class Recipe(BaseModel):
    """Every setting of a run. The defaults are the vetted ones; a recipe file names only what differs, and says why."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    name: str = Field(default="recipe", description="what the run folder is called after")

    model: str = Field(default="tiny", description="'tiny', a folder, or a name on the model hub")
    revision: str | None = Field(default=None, description="the exact version of a model on the hub")
    backend: Literal["auto", "unsloth", "plain"] = Field(
        default="auto", description="auto: Unsloth where there are CUDA and Unsloth, else plain"
    )
    vllm: Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)] = Field(
        default="auto", description="sample with vLLM; auto: where the backend, the model and this machine can"
    )
    vllm_memory_share: float = Field(default=0.5, gt=0, lt=1, description="of the GPU, for vLLM: weights and cache")
    vllm_server: str | None = Field(
        default=None, pattern="^https?://", description="address of a vLLM server that samples, on GPUs of its own"
    )
    load_in_4bit: bool = Field(default=False, description="NF4 weights through bitsandbytes, LoRA on top (QLoRA)")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_pixels: int = Field(
        default=256 * 28 * 28,
        gt=0,
        description="of an image as the model sees it, at most; InternVL: at least one tile",
    )

    lora_rank: int = Field(default=16, gt=0)
    lora_alpha: int = Field(default=32, gt=0)
    lora_parts: tuple[LoraPart, ...] = ("language", "attention", "mlp")

    data: str = Field(default="embedded", description="'embedded', 'grit', a .jsonl file, a folder, or 'hf:NAME'")
    columns: dict[str, str] = Field(default_factory=dict, description="their column names, for 'hf:' data")
    triplets: int | None = Field(default=20, gt=0, description="how many to draw, evenly over kinds; null for all")
    bad_rows: Literal["refuse", "skip"] = "refuse"

    steps: int = Field(default=200, gt=0)
    prompts_per_step: int = Field(default=4, gt=0)
    group_size: int = Field(default=8, gt=1, description="completions of one prompt; one alone has nothing to beat")
    completions_per_pass: int | None = Field(
        default=None, gt=0, description="micro-batch; null for a whole step at once"
    )
    prompt_sharing: Literal["auto", "packed", "staged", "none"] = Field(
        default="auto",
        description="how a pass runs a prompt once: in one row, or in stages (less memory); none: TRL's",
    )
    completions_at_once: int | None = Field(
        default=None, gt=0, description="in one row, or of a prompt in one stage; null: a whole micro-batch, or one"
    )
    completions_per_rollout: int | None = Field(
        default=None, gt=0, description="sampled at the same time; null for a whole step; the tokens are the same"
    )
    max_completion_tokens: int = Field(default=512, gt=0)
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, description="0 samples from the whole vocabulary")

    rewards: str | dict[str, float] = Field(
        default="grit-lite", description="a preset, or terms and plug-ins by weight"
    )
    judge: str = Field(
        default="none",
        min_length=1,
        description="none; rules: those of grit-lite decide; else a model's name at OPENAI_BASE_URL",
    )
    judge_budget: int | None = Field(default=None, gt=0, description="requests to the judge, of one start")
    judge_seconds: float = Field(default=60.0, gt=0, description="for the verdict on one answer, with every retry")
    loss: Literal["grit", "dr_grpo", "dapo", "gspo"] = "grit"
    beta: float = Field(default=0.01, ge=0, description="weight of the KL term against the model without its adapter")
    learning_rate: float = Field(default=1e-5, gt=0)
    lr_schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    gradient_checkpointing: bool = False

    seed: int = Field(default=0, ge=0, lt=2**32)
    save_every: int = Field(default=20, gt=0, description="steps between checkpoints")
    keep_checkpoints: int = Field(default=2, gt=0)
    dead_after: int = Field(default=10, gt=0, description="steps without a group that teaches before the alarm")

    evaluate: str = Field(default="none", description="benchmark at the end of training, by name or file.py:NAME")
    eval_questions: int = Field(default=500, gt=0)

    @model_validator(mode="after")
    def _passes_divide_a_step(self) -> "Recipe":
        total = self.prompts_per_step * self.group_size
        if self.completions_per_pass is not None and total % self.completions_per_pass:
            raise ValueError(
                f"completions_per_pass is {self.completions_per_pass}, which does not divide a step's "
                f"prompts_per_step × group_size = {self.prompts_per_step} × {self.group_size} = {total} completions"
            )
        return self

    @model_validator(mode="after")
    def _server_takes_whole_weights(self) -> "Recipe":
        if self.vllm_server and self.load_in_4bit:
            raise ValueError("vllm_server takes the weights in whole, so it cannot be had with load_in_4bit: true")
        return self

    def of_one(self, processes: int) -> tuple[int, int]:
        """(completions of a step, completions of a pass) that fall to each of several processes.

        Raises:
            RecipeError: a step cannot be divided evenly, with all completions of a prompt in one process.
        """
        if self.prompts_per_step % processes:
            raise RecipeError(
                f"prompts_per_step is {self.prompts_per_step}, and a step's prompts cannot be divided evenly among "
                f"{processes} processes. Set it to a multiple of {processes}, or start another number of processes."
            )
        total = self.prompts_per_step // processes * self.group_size
        at_once = min(self.completions_per_pass or total, total)
        if total % at_once:
            raise RecipeError(
                f"completions_per_pass is {at_once}, which does not divide the {total} completions of a step that "
                f"fall to each of {processes} processes. Set it to a divisor of {total}."
            )
        return total, at_once

    def text(self) -> str:
        """The YAML of a file that is this recipe, every setting named."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def recipe_files() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder else {}


def load_recipe(name_or_file: str, settings: Sequence[str] = (), **options: Any) -> Recipe:
    """The checked recipe.

    Args:
        name_or_file: a recipe that comes with the package, or a path that ends in .yaml or .yml.
        settings: `key=value` texts as typed after `--set`; a value is read as YAML.
        options: named values that win over everything; None means "not given".

    Raises:
        RecipeError: no such recipe, a key that does not exist, or a value that cannot be.
    """
    path = _find(name_or_file)
    values = {"name": path.stem, **_read(path)}
    values |= dict(_parse_setting(text) for text in settings)
    values |= {key: value for key, value in options.items() if value is not None}
    return check(values, source=name_or_file)


def check(values: Mapping[str, Any], *, source: str) -> Recipe:
    """A recipe from plain values; `source` is named in the error message."""
    for key in values:
        if key not in Recipe.model_fields:
            raise RecipeError(f"{source}: there is no recipe key '{key}'.{nearest(key, Recipe.model_fields)}")
    try:
        return Recipe(**values)
    except ValidationError as error:
        problems = "\n".join(f"  {_describe(problem)}" for problem in error.errors())
        raise RecipeError(f"{source}: the recipe cannot be used:\n{problems}") from error


def _describe(problem: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where} = {problem['input']!r}: {message}" if where else message


def _find(name_or_file: str) -> Path:
    if name_or_file.endswith((".yaml", ".yml")):
        path = Path(name_or_file)
        if not path.is_file():
            raise RecipeError(
                f"There is no recipe file {path}. `grit-lite recipes` lists those that come with grit-lite."
            )
        return path
    known = recipe_files()
    if name_or_file not in known:
        raise RecipeError(
            f"There is no recipe '{name_or_file}'.{nearest(name_or_file, known)} Known: {', '.join(known)}. "
            "A file of your own must end in .yaml."
        )
    return known[name_or_file]


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(values or {}, dict):
        raise RecipeError(f"{path} must hold `key: value` lines, not a {type(values).__name__}.")
    return values or {}


def _parse_setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {text!r}: write it as key=value, for example --set learning_rate=2e-5.")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {text!r}: the value is not readable YAML: {error}") from error


def nearest(name: str, known: Mapping[str, Any]) -> str:
    """ " Did you mean 'X'?" for the known name closest to a misspelt one; empty where none is close."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def resolve(reference: str) -> Callable[..., Any]:
    """The function that a recipe names as `package.module:function` or `file.py:function`.

    Raises:
        RecipeError: no such file, module or name, or it is not a function.
    """
    function = named(reference)
    if not callable(function):
        location, _, attribute = reference.rpartition(":")
        raise RecipeError(f"'{reference}': {location} has no function '{attribute}'.")
    return function


def named(reference: str) -> Any:
    """What is named as `package.module:NAME` or `file.py:NAME`; None where the file has no such name.

    Raises:
        RecipeError: no such file or module.
    """
    location, colon, attribute = reference.rpartition(":")
    if not colon or not location or not attribute:
        raise RecipeError(f"'{reference}' names no function: write package.module:function or file.py:function.")
    module = _import_file(Path(location)) if location.endswith(".py") else _import_module(location)
    return getattr(module, attribute, None)


def _import_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise RecipeError(f"There is no module '{name}' to import: {error}.") from error


def _import_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise RecipeError(f"There is no Python file {path}.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
