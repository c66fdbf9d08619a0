"""The study file: groups of arms, each arm the settings in which it differs from one recipe, with its reason."""

import fnmatch
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmarks.lab import ROOT
from grit_lite.errors import RecipeError, UsageError
from grit_lite.recipe import Recipe, load_recipe

STUDY = ROOT / "recipes" / "lab" / "study.yaml"
DEFAULT = "default/tiny"
ASKED = ("direct", "grounded", "one-shot", "one-shot-image")  # methods that train nothing
FINE_TUNED = ("sft", "sft-direct")  # on chains written by rule; on bare answers
METHODS = ("grpo", *FINE_TUNED, *ASKED)
DIRECT = ("direct", "sft-direct")  # methods whose model is asked without the GRIT prompt
DRAWN = "drawn"


@dataclass(frozen=True)
class Arm:
    """One way to train, or to ask without training.

    Attributes:
        settings: what differs from the study's recipe.
        seeds: which runs there are.
    """

    group: str
    name: str
    method: str
    settings: Mapping[str, Any]
    why: str
    seeds: tuple[int, ...]

    @property
    def id(self) -> str:
        return f"{self.group}/{self.name}"


@dataclass(frozen=True)
class Group:
    """Arms that answer one question.

    Attributes:
        against: the arm that they are held against, which stands first in their tables.
        against_is: what that arm is called among them; None where it has no name of its own there.
    """

    name: str
    question: str
    against: str
    against_is: str | None
    arms: tuple[Arm, ...]


@dataclass(frozen=True)
class Study:
    """Groups in the order of what they decide."""

    recipe: str
    groups: tuple[Group, ...]

    def arms(self) -> Iterator[Arm]:
        for group in self.groups:
            yield from group.arms

    def held_against(self) -> dict[str, str]:
        """By trained arm, the one that it is compared with."""
        trained = [(group, arm) for group in self.groups for arm in group.arms if arm.method not in ASKED]
        return {arm.id: group.against for group, arm in trained if arm.id != group.against}

    def jobs(self, only: Sequence[str] = (), seeds: Sequence[int] | None = None) -> list[tuple[Arm, int]]:
        """(arm, seed) of every run, by group, then seed, then arm, so that each arm of a group has its first early.

        Args:
            only: groups, or GROUP/ARM; `*` stands for anything. Empty: all.

        Raises:
            UsageError: a name of `only` is in no study.
        """
        for wanted in only:
            if not any(_is_meant(arm, wanted) for arm in self.arms()):
                known = ", ".join(arm.id for arm in self.arms())
                raise UsageError(f"--only {wanted}: the study has no such group or arm. It has {known}.")
        kept = [
            (arm, seed)
            for group in self.groups
            for seed in sorted({seed for arm in group.arms for seed in arm.seeds})
            for arm in group.arms
            if seed in arm.seeds
        ]
        kept = [(arm, seed) for arm, seed in kept if not only or any(_is_meant(arm, wanted) for wanted in only)]
        return [(arm, seed) for arm, seed in kept if seeds is None or seed in seeds or arm.method in ASKED]

    def recipe_of(self, arm: Arm, seed: int, data: str | None = None) -> Recipe:
        """The recipe of one run.

        Args:
            data: where the triplets lie that the arm's seed has drawn.

        Raises:
            RecipeError: the arm has a key or a value that cannot be.
        """
        settings = dict(arm.settings)
        if settings.get("data") == DRAWN:
            settings["data"] = data or DRAWN
        fixed = {"name": f"{arm.group}-{arm.name}", "seed": seed, "evaluate": "none"}
        return load_recipe(self.recipe, [f"{key}={json.dumps(value)}" for key, value in {**settings, **fixed}.items()])


def _is_meant(arm: Arm, wanted: str) -> bool:
    return fnmatch.fnmatchcase(arm.id, wanted) or fnmatch.fnmatchcase(arm.group, wanted)


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid")

    question: str
    against: str = DEFAULT
    against_is: str | None = None
    seeds: int = Field(gt=0)
    arms: dict[str, dict[str, Any]]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    recipe: str
    groups: dict[str, _Group]


def load_study(path: Path = STUDY) -> Study:
    """The study of a file.

    Raises:
        RecipeError: it is not readable, or an arm has no reason, an unknown method, or settings that cannot be.
    """
    try:
        file = _File(**yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, TypeError, ValidationError) as error:
        raise RecipeError(f"{path} is no study: {error}") from error
    groups = [
        Group(
            name, group.question, group.against, group.against_is, tuple(_arm(path, name, group, a) for a in group.arms)
        )
        for name, group in file.groups.items()
    ]
    study = Study(file.recipe, tuple(groups))
    known = {arm.id for arm in study.arms()} | {DEFAULT}
    if lost := [group for group in groups if group.against not in known]:
        raise RecipeError(f"{path}: {lost[0].name} is held against {lost[0].against}, which is no arm of the study.")
    for arm in study.arms():
        study.recipe_of(arm, seed=0)
    return study


def _arm(path: Path, group: str, said: _Group, name: str) -> Arm:
    settings = dict(said.arms[name])
    method, why = settings.pop("method", "grpo"), settings.pop("why", None)
    if not why:
        raise RecipeError(f"{path}: {group}/{name} says no `why`. Give its reason in a few words.")
    if method not in METHODS:
        raise RecipeError(f"{path}: {group}/{name} has the method {method!r}. Methods are {', '.join(METHODS)}.")
    if method in FINE_TUNED and {"data", "triplets"} & settings.keys():
        raise RecipeError(f"{path}: {group}/{name} is fine-tuned on the package's triplets, and can have no others.")
    if settings.get("data") == DRAWN and not isinstance(settings.get("triplets"), int):
        raise RecipeError(f"{path}: {group}/{name} draws its data, so it must say how many `triplets`.")
    return Arm(group, name, method, settings, why, tuple(range(said.seeds)))
