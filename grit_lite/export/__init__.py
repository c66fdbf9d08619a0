"""EXPORT: a finished run becomes a folder that others can load, serve and publish, and that was checked to be the same.

`merging` writes merged weights, `parity` asks the exported model and the run's the same questions, `card` says in a
README.md what was measured, `serving` how to serve it, `hub` publishes. Nothing is ever written over: an export is
written aside and gets its name last, so that a folder of that name is a whole and checked one.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from grit_lite import __version__
from grit_lite.backends import SPEC_FILE, ModelSpec, import_libraries, model_location, open_backend, read_spec
from grit_lite.errors import GritLiteError, ModelError, UsageError
from grit_lite.export import hub, serving
from grit_lite.export.card import public_name, write_card
from grit_lite.export.parity import Parity, answers, compare
from grit_lite.families import FAMILIES, Family
from grit_lite.recipe import Recipe, load_recipe
from grit_lite.run import write_json

Format = Literal["merged", "gguf", "adapter"]
QUESTIONS = 16  # of the check; three models answer them
RECORD = "export.json"


@dataclass(frozen=True)
class Source:
    """The finished run that is exported."""

    folder: Path
    recipe: Recipe
    spec: ModelSpec

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def family(self) -> Family:
        return FAMILIES[self.spec.family]

    @property
    def name(self) -> str:
        return self.folder.resolve().name


@dataclass(frozen=True)
class Wish:
    """What is to be made of it.

    Attributes:
        to: the folder to write; None is `export/FORMAT` in the run folder.
        dtype: of merged weights; "auto" is the recipe's own, else bfloat16.
        quantization: llama.cpp's name of the kind of GGUF file.
        push: owner/name of the repository on the hub to publish to.
        questions: how many the check asks; 0 leaves the check out.
    """

    format: Format = "merged"
    to: Path | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    quantization: str = "q8_0"
    push: str | None = None
    private: bool = False
    questions: int = QUESTIONS


def export(run: Path, wish: Wish, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """What `grit-lite export` does; returns what its `--json` prints.

    Args:
        run: a run folder with a trained adapter.
        say: told in a sentence what is being done.

    Raises:
        UsageError: there is nothing to export, or the target is occupied.
        ModelError: the export does not answer as the run's model does, a library or a token is missing, or the hub
            refuses.
        OutOfMemory: the merge does not fit into this machine.
    """
    source = open_source(run)
    target = wish.to or source.folder / "export" / wish.format
    _refuse_occupied(target)
    if wish.push is not None:
        hub.check_access(wish.push)
    dtype = export_dtype(source.recipe, wish.dtype)
    with _aside(target) as staging:
        _write(source, wish, dtype, staging, say)
        parity = _check(source, wish, dtype, staging, target, say)
        record = _record(source, wish, dtype, parity, staging)
        write_json(staging / RECORD, record)
        write_card(source, record, wish.push or target.resolve().name, staging)
        if target.is_dir():
            target.rmdir()  # it is empty, and not every system renames over an empty folder
        staging.rename(target)
    base = model_location(source.recipe.model)
    result = {"folder": str(target), **record, "serve": serving.command(source, record, str(target), base)}
    if wish.push is not None:
        say(f"Publishing {target} as {wish.push} …")
        result["pushed"] = hub.upload(target, wish.push, private=wish.private)
    return result


def open_source(folder: Path) -> Source:
    """The run in a folder.

    Raises:
        UsageError: there is none, or it has no adapter yet.
        ModelError: its adapter has lost its `grit_lite.json`.
    """
    if not (folder / "recipe.yaml").is_file():
        raise UsageError(f"There is no run to export in {folder}: it has no recipe.yaml. Name a folder of runs/.")
    if not (folder / "adapter" / "adapter_config.json").is_file():
        raise UsageError(
            f"There is nothing to export in {folder}: it has no adapter, so it was not trained to its end. "
            f"Finish it: grit-lite train --resume --output {folder}"
        )
    spec = read_spec(folder / "adapter")
    if spec is None:
        raise ModelError(
            f"The adapter in {folder} has no {SPEC_FILE}, which says how its prompts and boxes are written. Put the "
            "file back from a copy of the run."
        )
    return Source(folder, load_recipe(str(folder / "recipe.yaml")), spec)


def export_dtype(recipe: Recipe, asked: str) -> str:
    """The precision of merged weights: as asked, else as trained where the recipe says so, else bfloat16."""
    if asked != "auto":
        return asked
    return recipe.dtype if recipe.dtype != "auto" else "bfloat16"


def _refuse_occupied(target: Path) -> None:
    for path in (target, unverified(target)):
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise UsageError(
                f"The folder {path} is not empty, and grit-lite never writes over results. Choose another with --to, "
                "or move it away."
            )


def unverified(target: Path) -> Path:
    """Where an export is kept that did not pass its check."""
    return target.with_name(f"{target.name}-unverified")


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A folder beside the target to write in; whatever is still in it at the end, by an error too, is removed."""
    staging = target.with_name(f".{target.name}.exporting")
    try:
        _make(staging)
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _make(staging: Path) -> None:
    try:
        shutil.rmtree(staging, ignore_errors=True)  # of an export that was killed
        staging.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"{staging.parent} cannot be written to: {error}. Choose another folder with --to.") from error


def _write(source: Source, wish: Wish, dtype: str, staging: Path, say: Callable[[str], None]) -> None:
    if wish.format == "adapter":
        say("Copying the adapter …")
        _write_adapter(source, staging)
    elif wish.format == "gguf":
        _write_gguf(source, wish.quantization, staging, say)
    else:
        from grit_lite.export.merging import write_merged

        say(f"Merging the adapter into {source.recipe.model} in {dtype}, on the CPU …")
        write_merged(source.recipe, source.family, source.adapter, staging, dtype)
    source.spec.save(staging, model=public_name(source.recipe.model))


def _write_adapter(source: Source, staging: Path) -> None:
    """The adapter as PEFT loads it, with the processor that goes with it, and no path of this machine in it."""
    from grit_lite.export.merging import write_processor

    config = json.loads((source.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    write_json(
        staging / "adapter_config.json",
        {**config, "base_model_name_or_path": public_name(source.recipe.model)},
    )
    shutil.copy2(source.adapter / "adapter_model.safetensors", staging)
    write_processor(source.recipe, source.family, staging)


def _write_gguf(source: Source, quantization: str, staging: Path, say: Callable[[str], None]) -> None:
    recipe = source.recipe.model_copy(update={"backend": "auto", "vllm": "off", "vllm_server": None})
    choice = import_libraries(recipe)
    if choice.name != "unsloth":
        raise ModelError(_no_gguf(source, choice.reason))
    say(f"Unsloth converts {recipe.model} to GGUF ({quantization}) …")
    backend: Any = open_backend(recipe, source.adapter)
    backend.save_gguf(staging, quantization)


def _no_gguf(source: Source, reason: str) -> str:
    merged = source.folder / "export" / "merged"
    return (
        f"GGUF files are written through Unsloth, and {reason}. Export merged weights instead, and convert them with "
        "llama.cpp, the image part on its own:\n"
        f"  grit-lite export {source.folder}\n"
        f"  python llama.cpp/convert_hf_to_gguf.py {merged} --outfile {source.name}.gguf\n"
        f"  python llama.cpp/convert_hf_to_gguf.py {merged} --mmproj --outfile mmproj-{source.name}.gguf"
    )


def _check(
    source: Source, wish: Wish, dtype: str, staging: Path, target: Path, say: Callable[[str], None]
) -> Parity | None:
    """How the export compares with the run's model; None where it is not asked, or cannot be, as of GGUF.

    Raises:
        ModelError: it does not answer as the run's model does; the files are kept under another name.
    """
    if wish.questions == 0 or wish.format == "gguf":
        return None
    say(f"Checking: {wish.questions} questions to the base, to the run's model and to the export …")
    try:
        parity = _compare(source, wish, dtype, staging)
        parity.require()
    except GritLiteError as error:
        staging.rename(unverified(target))
        raise type(error)(f"{error}\nThe files are kept in {unverified(target)}.") from error
    return parity


def _compare(source: Source, wish: Wish, dtype: str, staging: Path) -> Parity:
    # The plain backend for all three: a difference is then one of weights, not of libraries.
    trained = source.recipe.model_copy(update={"backend": "plain", "vllm": "off", "vllm_server": None})
    base, tuned = answers(trained, source.adapter, wish.questions, adapter_on=(False, True))
    if wish.format == "adapter":
        (exported,) = answers(trained, staging, wish.questions, adapter_on=(True,))
    else:
        (exported,) = answers(_merged_recipe(trained, staging, dtype), None, wish.questions, adapter_on=(True,))
    exact = wish.format == "adapter" or (dtype == trained.dtype == "float32" and not trained.load_in_4bit)
    return compare(base, tuned, exported, exact=exact)


def _merged_recipe(trained: Recipe, folder: Path, dtype: str) -> Recipe:
    """How the merged folder is loaded; a CPU computes 16-bit weights in float32, which is faster and changes none."""
    loaded_as = "float32" if dtype == "float32" else "auto"
    return trained.model_copy(
        update={"model": str(folder), "revision": None, "load_in_4bit": False, "dtype": loaded_as}
    )


def _record(source: Source, wish: Wish, dtype: str, parity: Parity | None, staging: Path) -> dict[str, Any]:
    """What `export.json` says: nothing of this machine, because it travels with the files."""
    return {
        "format": wish.format,
        "run": source.name,
        "model": public_name(source.recipe.model),
        "revision": source.recipe.revision,
        "precision": {"merged": dtype, "gguf": wish.quantization, "adapter": "float32"}[wish.format],
        "parity": {**asdict(parity), "said": parity.sentence()} if parity else None,
        "warnings": parity.warnings() if parity else [_UNCHECKED[wish.format == "gguf"]],
        "files": {path.name: path.stat().st_size for path in sorted(staging.iterdir())},  # bytes
        "versions": {"grit-lite": __version__, **{name: version(name) for name in ("torch", "transformers", "peft")}},
    }


_UNCHECKED = {
    False: "Nobody has checked that this export answers as the run's model does: the check was left out.",
    True: "Nobody has checked that the GGUF files answer as the run's model does: grit-lite cannot run them.",
}
