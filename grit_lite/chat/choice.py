"""Which model answers: what the user named, else the newest finished run, else the embedded one."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grit_lite.backends import SPEC_FILE, model_location
from grit_lite.errors import ModelError
from grit_lite.recipe import Recipe, load_recipe, recipe_files
from grit_lite.run import newest_finished


@dataclass(frozen=True)
class Chosen:
    """The model that answers. `name` is what a person calls it; `why` is a sentence to print."""

    recipe: Recipe
    adapter: Path | None
    name: str
    why: str


def find_model(target: str | None) -> Chosen:
    """The model that was asked for: a run folder, an adapter's folder, a model's folder or a model's name.

    None is the newest finished run below `runs/`, else the embedded model as it is before training.

    Raises:
        ModelError: no such model, or a run without an adapter.
    """
    if target is not None:
        return _named_model(target)
    newest = newest_finished()
    if newest is not None:
        return _of_run(newest, f"Using {newest} (newest finished run).")
    why = "Using tiny as it comes: there is no finished run below runs/. Teach it: grit-lite train --triplets 20"
    return Chosen(load_recipe("tiny"), None, "tiny", why)


def _named_model(target: str) -> Chosen:
    folder = Path(target).expanduser()
    if not folder.is_dir() and model_location(target) == target:
        folder = _published(target) or folder
    if (folder / "recipe.yaml").is_file():
        return _of_run(folder, f"Using {folder}.")
    if (folder / "adapter_config.json").is_file():
        return _of_adapter(folder)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(
            f"The folder {folder} holds no model: a run has recipe.yaml, an adapter adapter_config.json, a model "
            "config.json. Give a run folder below runs/, or 'tiny'."
        )
    model = str(folder) if folder.is_dir() else target
    return Chosen(_recipe_of(model), None, target, f"Using {target}, without an adapter.")


def _published(name: str) -> Path | None:
    """The folder of what grit-lite published on the hub under a name, fetched whole; None for any other model.

    Raises:
        ModelError: it is there, and cannot be fetched.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        hf_hub_download(name, SPEC_FILE)
    except (OSError, ValueError):  # no such file, or no way to it; a model that is asked for says more as it is loaded
        return None
    try:
        return Path(snapshot_download(name))
    except OSError as error:
        raise ModelError(f"{name} cannot be fetched from the hub: {error}") from error


def _of_run(folder: Path, why: str) -> Chosen:
    adapter = folder / "adapter"
    if not adapter.is_dir():
        raise ModelError(
            f"The run in {folder} has no adapter yet: it was not trained to its end. "
            f"Finish it: grit-lite train --resume --output {folder}"
        )
    recipe = load_recipe(str(folder / "recipe.yaml")).model_copy(update={"vllm_server": None})  # it served the training
    return Chosen(recipe, adapter, str(folder), why)


def _of_adapter(folder: Path) -> Chosen:
    own, peft = (_read_json(folder / name) for name in (SPEC_FILE, "adapter_config.json"))
    model = own.get("model") or peft.get("base_model_name_or_path")
    if not isinstance(model, str):
        raise ModelError(f'The adapter in {folder} does not name its base model: add "model" to its {SPEC_FILE}.')
    return Chosen(_recipe_of(model), folder, str(folder), f"Using the adapter in {folder} on {model}.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ModelError(f"{path} is not readable JSON: {error}.") from error
    return values if isinstance(values, dict) else {}


def _recipe_of(model: str) -> Recipe:
    """The recipe that trains this model, for how to load it; the defaults where no recipe does."""
    recipes = (load_recipe(name) for name in recipe_files())
    return next((recipe for recipe in recipes if recipe.model == model), Recipe(name="chat", model=model))
