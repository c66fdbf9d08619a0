"""What this machine has, what a run would use of it and why, and what every recipe needs in memory.

Nothing is loaded, downloaded or changed, and Unsloth is not imported: where that decides, the doctor says "would".
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from grit_lite.backends import expected_choice
from grit_lite.errors import ModelError
from grit_lite.families import FAMILIES
from grit_lite.machine import default_recipe, find_gpu
from grit_lite.recipe import Recipe, load_recipe, recipe_files
from grit_lite.run import machine, read_facts

# An installed package carries the tested versions inside; a checkout has them where `make` reads them.
_PACKAGED, _CHECKOUT = Path(__file__).parent / "_tested", Path(__file__).parents[1]
LIBRARIES = ("torch", "torchvision", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets")
OPTIONAL = ("unsloth", "unsloth_zoo", "vllm", "vllm-bnb-plugin")
HUB_SECONDS = 3  # that the hub has to answer
EXPLANATION = (
    "total: weights, adapter with its optimizer, the larger of pass and rollout, vLLM, and 0.6 for CUDA or the "
    "libraries; at least: what no way to divide a step gets below"
)
ROOMY = 2**50  # bytes: more than any device has
Facts = dict[str, Any]


def examine(recipe: str | None = None) -> Facts:
    """Everything that the doctor knows, for people's tables and for programs.

    Args:
        recipe: a recipe's name or file; None for the one that `train` would begin with, and the memory of all.

    Raises:
        RecipeError: there is no such recipe.
    """
    name, why = (recipe, "asked for") if recipe else default_recipe(find_gpu())
    names = [recipe] if recipe else list(recipe_files())
    return {
        "machine": machine() | {"memory_gib": round(psutil.virtual_memory().total / 2**30, 1)},
        "gpu": gpu(),
        "disk": [free_disk(place, path) for place, path in _places()],
        "hub": hub(),
        "libraries": [library(name) for name in (*LIBRARIES, *OPTIONAL)],
        "would": would(load_recipe(name), why),
        "memory": [row for each in names for row in needs(load_recipe(each))],
        "runs": list(measured_runs()),
    }


# The machine


def gpu() -> Facts | None:
    """The CUDA device; None where PyTorch finds none."""
    if (found := find_gpu()) is None:
        return None
    import torch

    free, _ = torch.cuda.mem_get_info()
    return {
        **asdict(found),
        "free_gib": free / 2**30,
        "bfloat16": found.has_bfloat16,
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return None


def _places() -> list[tuple[str, Path]]:
    from huggingface_hub.constants import HF_HUB_CACHE

    return [("models and data", Path(HF_HUB_CACHE)), ("runs", Path("runs").absolute())]


def free_disk(what: str, path: Path) -> Facts:
    """Of the nearest folder that exists already."""
    there = next(folder for folder in (path, *path.parents) if folder.is_dir())
    return {"what": what, "path": str(path), "free_gib": round(shutil.disk_usage(there).free / 2**30, 1)}


def hub() -> Facts:
    """Whether the model hub answers; whether there is a token, never the token itself."""
    from huggingface_hub import get_token
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    state = "not asked: HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else _ask_hub(ENDPOINT)
    return {"address": ENDPOINT, "state": state, "token": get_token() is not None}


def _ask_hub(address: str) -> str:
    import httpx

    started = time.perf_counter()
    try:
        httpx.head(address, timeout=HUB_SECONDS)
    except httpx.HTTPError as error:
        return f"does not answer ({type(error).__name__})"
    return f"answers, in {time.perf_counter() - started:.1f} s"


def library(name: str) -> Facts:
    """The version that is here and the one that the tests ran with; None for what is not known."""
    try:
        here = version(name)
    except PackageNotFoundError:
        here = None
    return {"name": name, "here": here, "tested": tested_versions().get(name)}


def tested_versions() -> dict[str, str]:
    """The set of versions that the tests ran with, by package."""
    checkout = (_CHECKOUT / "constraints.txt", _CHECKOUT / "tests" / "unsloth_on_cpu" / "constraints.txt")
    files = sorted(_PACKAGED.glob("*.txt")) or checkout
    lines = [line.strip() for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


# What a run would do


def would(recipe: Recipe, why: str) -> Facts:
    """The recipe, backend and sampler that a run would use, each with the reason."""
    try:
        choice = expected_choice(recipe)
        backend, reason = choice.name, choice.reason
    except ModelError as error:
        backend, reason = None, str(error)
    facts = {"recipe": recipe.name, "recipe_reason": why, "backend": backend, "backend_reason": reason}
    return facts | {"vllm_obstacle": _vllm_obstacle(recipe, backend or "plain")}


def _vllm_obstacle(recipe: Recipe, backend: str) -> str | None:
    from grit_lite.memory import this_device, vllm_obstacle

    if (config := _config(recipe)) is None:
        return "its model is not known"
    return vllm_obstacle(recipe, FAMILIES[config.model_type], backend, this_device().kind)


def _config(recipe: Recipe) -> Any:
    """Published shapes first: the doctor should not have to wait for the hub."""
    from grit_lite.memory import model_config
    from grit_lite.shapes import published_config

    return published_config(recipe.model) or model_config(recipe)


def needs(recipe: Recipe) -> Iterator[Facts]:
    """What a recipe needs in memory on this machine; and on a GPU, where this machine has none."""
    from grit_lite.memory import Device, Plan, model_sizes, this_device

    if (config := _config(recipe)) is None:
        return
    sizes, here = model_sizes(config, recipe), this_device()
    devices = [here] if here.kind == "cuda" else [here, Device("cuda", "GPU", ROOMY, ROOMY)]
    for device in devices:
        backend = _backend_here(recipe) if device is here else "unsloth" if recipe.backend != "plain" else "plain"
        yield _need(Plan(sizes, device, backend), recipe)


def _backend_here(recipe: Recipe) -> str:
    from grit_lite.backends import expected_choice

    try:
        return expected_choice(recipe).name
    except ModelError:  # it asks for Unsloth, which is not here: `would` says so
        return "unsloth"


def _need(plan: Any, recipe: Recipe) -> Facts:
    estimate, least, device = plan.estimate(recipe), plan.least(recipe), plan.device
    fits = "no" if least > device.limit else "yes" if estimate.total <= device.free else "perhaps"
    known = device.total < ROOMY
    return {
        "recipe": recipe.name,
        "device": device.name,
        "here": known,
        **{f"{part}_mib": size for part, size in estimate.as_mib().items()},
        "least_mib": round(least / 2**20),
        "limit_mib": round(device.limit / 2**20) if known else None,
        "fits": fits if known else None,
        "advice": plan.advice(recipe) if known and fits != "yes" else None,
    }


def measured_runs(root: Path = Path("runs"), newest: int = 5) -> Iterator[Facts]:
    """Estimate and measured peak of the newest runs that have both."""
    folders = sorted(root.glob("*/run.json"), key=os.path.getmtime, reverse=True)
    known = ((path.parent, read_facts(path.parent)) for path in folders)
    rows = ((folder, facts, facts.get("memory", {})) for folder, facts in known)
    both = [row for row in rows if {"expected_mib", "measured_mib"} <= row[2].keys()]
    for folder, facts, memory in both[:newest]:
        numbers = {name: memory[name] for name in ("device", "expected_mib", "measured_mib")}
        yield {"run": str(folder), "recipe": facts.get("recipe"), **numbers}


# For people


def show(facts: Facts, console: Console) -> None:
    """The same as tables, for 80 columns and more."""
    console.print(_machine_table(facts), "", _library_table(facts["libraries"]), "", _would_table(facts["would"]), "")
    here = [row for row in facts["memory"] if row["here"]]
    elsewhere = [row for row in facts["memory"] if not row["here"]]
    if here:
        console.print(_memory_table(f"Memory on this machine ({here[0]['device']}), estimated, GiB", here))
    for row in here:
        if row["advice"]:
            console.print(Text(f"  {row['recipe']}: {row['advice']}", style="yellow"))
    if elsewhere:
        console.print("", _memory_table("Memory on a GPU with room for the fastest way, estimated, GiB", elsewhere))
    if facts["memory"]:
        console.print(Text(EXPLANATION, style="dim"))
    if facts["runs"]:
        console.print("", _runs_table(facts["runs"]))


def _machine_table(facts: Facts) -> Table:
    grid = _facts_table("Machine")
    here, card = facts["machine"], facts["gpu"]
    grid.add_row("CPU", f"{here['cores']} cores, {here['memory_gib']} GiB, Python {here['python']}, {here['system']}")
    grid.add_row("GPU", _describe_gpu(card) if card else "none that PyTorch finds")
    for disk in facts["disk"]:
        grid.add_row("disk", f"{disk['free_gib']} GiB free for {disk['what']}: {disk['path']}")
    hub = facts["hub"]
    grid.add_row("hub", f"{hub['address']} {hub['state']}; {'a' if hub['token'] else 'no'} token")
    return grid


def _describe_gpu(card: Facts) -> str:
    capability = ".".join(map(str, card["capability"]))
    return (
        f"{card['name']}, {card['gib']:.1f} GiB, {card['free_gib']:.1f} free; compute capability {capability}, "
        f"{'' if card['bfloat16'] else 'no '}bfloat16; CUDA {card['cuda']}, driver {card['driver'] or 'unknown'}"
    )


def _facts_table(title: str) -> Table:
    grid = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 1))
    grid.add_column(style="dim", min_width=8)
    grid.add_column(overflow="fold")
    return grid


def _library_table(rows: list[Facts]) -> Table:
    table = _table("Libraries", "library", "here", "tested")
    for row in rows:
        table.add_row(row["name"], _version_text(row), row["tested"] or "–")
    return table


def _version_text(row: Facts) -> Text:
    """Green as tested, yellow where another version or nothing is there; a build's suffix is no other version."""
    if row["here"] is None:
        return Text("–", style="dim" if row["name"] in OPTIONAL else "bold red")
    as_tested = row["here"].partition("+")[0] == row["tested"]
    return Text(row["here"], style="green" if as_tested or row["tested"] is None else "yellow")


def _would_table(facts: Facts) -> Table:
    grid = _facts_table("grit-lite train would use")
    grid.add_row("recipe", f"{facts['recipe']}: {facts['recipe_reason']}")
    grid.add_row("backend", f"{facts['backend'] or 'none'}: {facts['backend_reason']}")
    obstacle = facts["vllm_obstacle"]
    grid.add_row("sampler", f"not vLLM: {obstacle}" if obstacle else "vLLM: nothing is in its way")
    return grid


def _memory_table(title: str, rows: list[Facts]) -> Table:
    parts = ("weights", "adapter", "update", "rollout", "engine", "total", "least")
    shown = [part for part in parts if any(row[f"{part}_mib"] for row in rows)]
    names = [{"update": "pass", "engine": "vLLM", "least": "at least"}.get(part, part) for part in shown]
    table = _table(title, "recipe", *names, *(["fits"] if rows[0]["here"] else []))
    for row in rows:
        cells = [f"{row[f'{part}_mib'] / 1024:.1f}" for part in shown]
        table.add_row(row["recipe"], *cells, *([_fits_text(row["fits"])] if row["here"] else []))
    return table


def _fits_text(fits: str) -> Text:
    return Text(fits, style={"yes": "green", "perhaps": "yellow", "no": "red"}[fits])


def _runs_table(rows: list[Facts]) -> Table:
    table = _table("Runs here, MiB", "run", "estimated", "measured", "measured / estimated")
    for row in rows:
        share = row["measured_mib"] / row["expected_mib"]
        table.add_row(row["run"], f"{row['expected_mib']:,}", f"{row['measured_mib']:,}", f"{share:.2f}")
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1)
    )
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right")
    return table
