"""The model card of an export: a README.md with the hub's metadata, built from what the run folder measured.

Every number comes from a file of the run or from the export's own record. What it says of the run names no path, host
or user of this machine, because a card is made to be published.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from huggingface_hub import ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from grit_lite.answer import plain
from grit_lite.backends import model_location
from grit_lite.boxes import BoxSpace
from grit_lite.export import serving
from grit_lite.pages.table import lines
from grit_lite.report import prose
from grit_lite.report.curves import start_and_end
from grit_lite.report.evaluation import benchmark, findings
from grit_lite.run import METRICS, read_facts, read_rows

if TYPE_CHECKING:
    from grit_lite.export import Source

TAGS = ("grit", "grounded-reasoning", "grpo", "visual-grounding")
_LIBRARY = {"merged": "transformers", "adapter": "peft", "gguf": "gguf"}
_RELATION = {"merged": "finetune", "adapter": "adapter", "gguf": "quantized"}
_TINY_BASE = '"$(python -c "from grit_lite.tiny import WEIGHTS; print(WEIGHTS)")"'
_LICENSE = ("license", "license_name", "license_link")


def write_card(source: "Source", record: Mapping[str, Any], name: str, folder: Path) -> None:
    """Write README.md into an export.

    Args:
        record: what `export.json` says.
        name: of the export, as its readers will load it: a repository, or the folder's own name.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: plain(value) if isinstance(value, str) else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["python"] = repr
    text = environment.get_template("card.md.j2").render(page(source, record, name))
    card = ModelCard(f"---\n{metadata(source, record['format']).to_yaml()}\n---\n\n{text}")
    card.save(folder / "README.md")


def page(source: "Source", record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Everything that the card says, by the names that the template uses."""
    facts = {**read_facts(source.folder), "error": None}  # an error may name folders
    recipe, model = public_recipe(source), public_name(source.recipe.model)
    benchmarks = [benchmark(path) for path in sorted((source.folder / "eval").glob("*.json"))]
    return {
        "name": name,
        "title": prose.title(recipe, facts),
        "opening": prose.opening(recipe, facts, _reward(source.folder)),
        "alert": prose.alert(recipe, facts, sum(1 for _ in read_rows(source.folder / METRICS))),
        "record": record,
        "model": model,
        "is_tiny": source.recipe.model == "tiny",
        "pixels": source.spec.box_space is BoxSpace.RESIZED_PIXELS,
        "prompt": source.spec.prompts.grounded,
        "tokens": source.recipe.max_completion_tokens,
        "tables": [(result, table(result), findings(result)) for result in benchmarks],
        "settings": [(key, value) for key, value, differs, _ in prose.settings(recipe) if differs and key != "name"],
        "data": data_facts(recipe, facts),
        "serve": serving.command(source, record, name, _TINY_BASE if source.recipe.model == "tiny" else model),
        "limits": prose.limits(recipe, benchmarks),
    }


def metadata(source: "Source", form: str) -> ModelCardData:
    """What the hub reads at the head of a card; an entry that is not known is left out."""
    recipe, licence = source.recipe, base_license(source.recipe.model, source.recipe.revision)
    on_hub = _on_hub(recipe.model)
    return ModelCardData(
        base_model=recipe.model if on_hub else None,
        base_model_relation=_RELATION[form] if on_hub else None,
        library_name=_LIBRARY[form],
        pipeline_tag="image-text-to-text",
        datasets=_datasets(recipe.data),
        tags=[*TAGS, "lora"] if form == "adapter" else list(TAGS),
        license=licence.get("license"),
        license_name=licence.get("license_name"),
        license_link=licence.get("license_link"),
    )


def _datasets(data: str) -> list[str] | None:
    """The data set on the hub that a recipe names, if it names one; `hf:NAME:CONFIGURATION` may choose a part."""
    if data == "grit":
        return ["yfan1997/GRIT_data"]
    return [data.split(":")[1]] if data.startswith("hf:") else None


def base_license(model: str, revision: str | None) -> dict[str, str]:
    """The licence that the base model's own card states, in the hub's terms; nothing where it has no card at hand."""
    location = model_location(model)
    path = Path(location) / "README.md"
    if not Path(location).is_dir():
        try:
            path = Path(hf_hub_download(location, "README.md", revision=revision))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
            return {}
    if not path.is_file():
        return {}
    stated = ModelCard.load(path).data.to_dict()
    return {key: str(stated[key]) for key in _LICENSE if stated.get(key)}


def public_name(path_or_name: str) -> str:
    """A model or a data set as strangers may read it: a folder or a file without the way to it."""
    return Path(path_or_name).resolve().name if Path(path_or_name).exists() else path_or_name


def public_recipe(source: "Source") -> dict[str, Any]:
    """The recipe, with no path of this machine in it."""
    values = source.recipe.model_dump(mode="json")
    rewards = values["rewards"]
    if isinstance(rewards, dict):
        rewards = {name.replace("\\", "/").rpartition("/")[2]: weight for name, weight in rewards.items()}
    names = {key: public_name(values[key]) for key in ("model", "data")}
    names["data"] = names["data"] if names["data"].startswith("hf:") else names["data"].rpartition("/")[2]
    return {**values, **names, "rewards": rewards}


def data_facts(recipe: Mapping[str, Any], facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, value) of what the run folder remembers of the training data."""
    data = facts.get("data") or {}
    kinds = ", ".join(f"{count} {name or 'of no named data set'}" for name, count in data.get("by_dataset", {}).items())
    known = {
        "source": recipe["data"],
        "triplets drawn": data.get("triplets"),
        "of rows": data.get("rows"),
        "kinds": kinds or None,
        "bad rows left out": data.get("skipped_bad_rows") or None,
        "sha256 of the source": data.get("sha256"),
    }
    return [(label, str(value)) for label, value in known.items() if value is not None]


def table(result: Mapping[str, Any]) -> list[list[str]]:
    """The rows of an evaluation's table, the headings first: each number with its 95 % interval."""
    systems = list(result["systems"])
    *others, last = (prose.SYSTEMS.get(system, system) for system in systems)
    rows = [["", *others, f"**{last}**", *(f"tuned − {other}" for other in others)]]
    for line in lines(result):
        label = f"· {line.label}" if line.part else line.label
        cells = [_cell(value, interval) for value, interval in line.cells]
        differences = [_cell(gap.value, gap.interval) for gap in line.differences]
        rows.append([f"{label} ({line.note})" if line.note else label, *cells, *differences])
    return [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]


def _cell(value: str, interval: str) -> str:
    return f"{value} ({interval})" if interval else value


def _reward(folder: Path) -> tuple[float, float] | None:
    return start_and_end([row.get("reward") for row in read_rows(folder / METRICS)])


def _on_hub(model: str) -> bool:
    return model != "tiny" and not Path(model).is_dir()
