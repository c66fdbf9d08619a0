"""What the report says in words: its title, how the run went, what it was made with, and what it does not show."""

from collections.abc import Mapping, Sequence
from typing import Any

from grit_lite.pages.table import SYSTEMS
from grit_lite.pages.wording import duration, number, percent
from grit_lite.recipe import Recipe

Facts = Mapping[str, Any]

_TIMING = {
    "seconds": ("seconds, median", 2),
    "rollout": ("of which generating", 2),
    "reward": ("of which scoring", 3),
    "update": ("of which updating", 2),
    "tokens_per_second": ("tokens per second, generating", 0),
    "memory_mib": ("highest memory, MiB", 0),
}
# Facts of run.json that say who ran it, not how: a report may be put online as it is.
_PRIVATE = ("host", "pid")


def title(recipe: Facts, facts: Facts) -> str:
    model = recipe.get("model", "a model").rstrip("/").rpartition("/")[2]  # neither its owner nor its folder
    return f"Thinking with boxes: {model} on {_triplets(recipe, facts)}"


def _triplets(recipe: Facts, facts: Facts) -> str:
    count = facts.get("data", {}).get("triplets", recipe.get("triplets"))
    return f"{count} triplets" if count else "its triplets"


def opening(recipe: Facts, facts: Facts, reward: tuple[float, float] | None) -> str:
    """What was trained on what, for how long, and what became of the reward."""
    kinds = ", ".join(f"{count} {name}" for name, count in facts.get("data", {}).get("by_dataset", {}).items())
    said = f"GRPO-GR with a rank-{recipe.get('lora_rank', '?')} LoRA, on {_triplets(recipe, facts)}"
    said += f" ({kinds})" if kinds else ""
    said += f": {recipe.get('steps', '?')} steps of {recipe.get('prompts_per_step', '?')} questions"
    said += f" with {recipe.get('group_size', '?')} completions each"
    said += f", {duration(facts['seconds'])} in all." if facts.get("seconds") else "."
    if reward:
        said += f" The mean reward of a completion went from {number(reward[0])} to {number(reward[1])}."
    return said


def alert(recipe: Facts, facts: Facts, steps_done: int) -> str | None:
    """What a reader must know first about a run that did not end well."""
    so_far = f"{steps_done} of {recipe.get('steps', '?')} steps are recorded"
    ends = {
        "running": f"This run is not finished: {so_far}.",
        "stopped": f"This run was stopped: {so_far}.",
        "failed": f"This run failed: {so_far}.",
    }
    said = ends.get(facts.get("status", ""))
    return f"{said} {facts['error']}" if said and facts.get("error") else said


def glance(reward: tuple[float, float] | None, benchmarks: Sequence[Facts]) -> list[dict[str, str]]:
    """Before and after in up to four numbers."""
    items = []
    if reward:
        note = "mean of the first and the last tenth of the steps"
        items.append({"label": "Reward", "before": number(reward[0]), "after": number(reward[1]), "note": note})
    systems = benchmarks[0]["systems"] if benchmarks else {}
    if not SYSTEMS.keys() <= systems.keys():
        return items
    direct, base, tuned = (systems[name] for name in SYSTEMS)
    return [
        *items,
        _item("Valid format", base["valid_format"], tuned["valid_format"], percent, " %"),
        _item("Box overlap (union IoU)", base["union_iou"], tuned["union_iou"], number, ""),
        _item("Right answers", direct["accuracy"]["all"], tuned["accuracy"]["all"], percent, " %"),
    ]


def _item(label: str, before: Facts, after: Facts, form: Any, unit: str) -> dict[str, str]:
    note = f"95 %: {form(after['low'])} – {form(after['high'])}, n = {after['n']}"
    return {"label": label, "before": form(before["value"]), "after": form(after["value"]) + unit, "note": note}


def settings(recipe: Facts) -> list[tuple[str, str, bool, str]]:
    """(key, value, whether it differs from the default, what it means) of everything in the recipe."""
    defaults, fields = Recipe().model_dump(mode="json"), Recipe.model_fields
    return [
        (key, _said(value), key not in fields or value != defaults[key], _meaning(key)) for key, value in recipe.items()
    ]


def _meaning(key: str) -> str:
    return (Recipe.model_fields[key].description or "") if key in Recipe.model_fields else ""


def timing(medians: Mapping[str, float]) -> list[tuple[str, str]]:
    """(label, value) of everything timed; a name that is not known here is shown as it is."""
    named = [(*_TIMING.get(name, (name.replace("_", " "), 2)), value) for name, value in medians.items()]
    return [(label, number(value, decimals)) for label, decimals, value in named]


def provenance(facts: Facts) -> list[tuple[str, str]]:
    """(label, value) of the model, data, versions and machine that run.json remembers."""
    parts = {part: facts.get(part) or {} for part in ("model", "data", "versions", "machine")}
    return [
        (f"{part}: {name.replace('_', ' ')}", _said(value))
        for part, values in parts.items()
        for name, value in (values.items() if isinstance(values, Mapping) else [("name", values)])
        if name not in _PRIVATE
    ]


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_said(inner)}" for name, inner in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(_said, value)) or "–"
    return "–" if value is None else {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def limits(recipe: Facts, benchmarks: Sequence[Facts]) -> list[str]:
    """What the numbers above do not show."""
    said = []
    if recipe.get("model") == "tiny":
        said.append(
            "tiny is a laboratory: a model of a few million parameters in a world of drawn shapes. Nothing here is a "
            "claim about photographs, or about larger models."
        )
    said.append(
        f"This is one run with seed {recipe.get('seed', '?')}. The intervals tell how much the choice of questions "
        "matters, not how much another seed would."
    )
    for benchmark in benchmarks:
        said += _guessing(benchmark)
    if benchmarks:
        said.append(
            "An answer counts as right by rule (yes or no, number, choice, short phrase) on the text of the answer tag "
            "alone; no judge was asked. Box overlap counts every box of the reasoning, valid or not."
        )
    return said


def _guessing(benchmark: Facts) -> list[str]:
    """The datasets on which the tuned model is not shown to do more than guess."""
    cells = dict(list(benchmark["systems"].values())[-1]["accuracy"])
    whole = cells.pop("all")
    known = cells or {benchmark["benchmark"]: whole}
    guesses = {benchmark["benchmark"]: benchmark["guess"]["all"], **benchmark["guess"]}
    unsure = [name for name, cell in known.items() if cell["low"] is not None and cell["low"] <= guesses[name]]
    return [
        f"On {name} the tuned model answers {percent(known[name]['value'])} % right "
        f"({percent(known[name]['low'])} – {percent(known[name]['high'])}). Always giving the most common answer would "
        f"score {percent(guesses[name])} %, so it is not shown to do more than guess."
        for name in unsure
    ]
