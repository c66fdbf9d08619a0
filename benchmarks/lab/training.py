"""One arm and seed, trained: GRPO-GR through the package's own training, supervised fine-tuning through TRL's.

A run that was killed goes on from its last checkpoint, as `grit-lite train --resume` would.
"""

import hashlib
import json
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.lab.measuring import Style
from benchmarks.lab.study import DRAWN, Arm, Study
from benchmarks.lab.triplets import embedded_with_chains, write_drawn
from grit_lite import training
from grit_lite.backends import open_backend
from grit_lite.recipe import Recipe
from grit_lite.run import METRICS, Run, read_facts, read_rows, write_json
from grit_lite.triplets import load

BLOCK = 5  # steps that one point of a curve is the mean of
CURVES = ("reward", "valid_format", "groups_that_teach", "completion_tokens", "kl")
_COST = "cost.json"


@contextmanager
def cost() -> Iterator[dict[str, float]]:
    """CPU seconds (user and system) of this process and seconds by the clock, known when the block has ended."""
    spent: dict[str, float] = {}
    cpu, clock = _cpu_seconds(), time.monotonic()
    try:
        yield spent
    finally:
        spent |= {"cpu_seconds": round(_cpu_seconds() - cpu, 1), "wall_seconds": round(time.monotonic() - clock, 1)}


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def train(study: Study, arm: Arm, seed: int, scratch: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of the trained adapter, and what a row says of the training.

    Args:
        scratch: where this study's run folders and drawn triplets lie.
    """
    data = None
    if arm.settings.get("data") == DRAWN:
        data = str(write_drawn(scratch / "triplets", arm.settings["triplets"], seed))
    recipe = study.recipe_of(arm, seed, data)
    folder = scratch / arm.group / arm.name / f"seed-{seed}-{_fingerprint(recipe)}"
    if read_facts(folder).get("status") != "done":
        _METHODS[arm.method](recipe, folder)
    return folder / "adapter", _facts(recipe, folder)


def _fingerprint(recipe: Recipe) -> str:
    """Another recipe gets another folder, so that no arm goes on from what it was before it was changed."""
    return hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:8]


def _facts(recipe: Recipe, folder: Path) -> dict[str, Any]:
    facts = read_facts(folder)
    return {
        **_spent(folder),
        "steps": recipe.steps,
        "triplets_sha256": facts["data"]["sha256"],
        "versions": facts["model"]["versions"],
        "curve": curve(folder / METRICS),
    }


def curve(metrics: Path) -> dict[str, list[float | None]]:
    """What changed over the steps: the last step of each block of five, and means over the block."""
    rows = list(read_rows(metrics))
    blocks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    names = [name for name in CURVES if rows and name in rows[0]]
    means = {name: [_mean([row[name] for row in block]) for block in blocks] for name in names}
    return {"step": [block[-1]["step"] for block in blocks], **means}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 4) if known else None


def _spent(folder: Path) -> dict[str, Any]:
    """What training has cost so far. A process that was killed wrote nothing of its part."""
    file = folder / _COST
    return json.loads(file.read_text()) if file.is_file() else {"resumed": (folder / "recipe.yaml").is_file()}


def _reinforce(recipe: Recipe, folder: Path) -> None:
    before, resumed = _spent(folder), (folder / "recipe.yaml").is_file()
    run = Run.resume(folder) if resumed else Run.create(folder, recipe)
    write_json(folder / _COST, {**before, "resumed": resumed})  # so that a kill from here on cannot hide it
    try:
        with cost() as spent:
            training.train(run)
    finally:
        total = {name: round(seconds + before.get(name, 0.0), 1) for name, seconds in spent.items()}
        write_json(folder / _COST, {**total, "resumed": resumed})


def _on_chains(recipe: Recipe, folder: Path) -> None:
    """On full answers, written by rule from the true boxes."""
    _fine_tune(recipe, folder, "grounded", [chain for _, chain in embedded_with_chains()])


def _on_answers(recipe: Recipe, folder: Path) -> None:
    """On bare answers to bare questions."""
    _fine_tune(recipe, folder, "direct", [triplet.answer for triplet in load("embedded").triplets])


def _fine_tune(recipe: Recipe, folder: Path, style: Style, completions: Sequence[str]) -> None:
    """Supervised fine-tuning on a completion of each of the package's triplets: the adapter, rate, schedule, updates
    and prompts a step of the recipe; one completion of each prompt in the place of a group."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

    from grit_lite.trainer import prompt_order

    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder, recipe)  # nothing is resumed: it takes less time than a checkpoint's worth of sampling
    backend: Any = open_backend(recipe)
    backend.attach_lora(recipe)
    loaded = load("embedded")
    order = prompt_order(len(loaded.triplets), recipe.steps * recipe.prompts_per_step, recipe.seed)

    def render(batch: Mapping[str, list[int]]) -> dict[str, list[Any]]:
        chosen = [(loaded.triplets[index], completions[index]) for index in batch["triplet"]]
        asked = [backend.spec.prompts.render(triplet.question, style=style) for triplet, _ in chosen]
        return {
            "prompt": [[{"role": "user", "content": text}] for text in asked],
            "completion": [[{"role": "assistant", "content": text}] for _, text in chosen],
            "images": [[triplet.load_image()] for triplet, _ in chosen],
        }

    rows = Dataset.from_dict({"triplet": order}).with_transform(render)
    config = SFTConfig(
        output_dir=str(folder / "trainer"),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.prompts_per_step,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.lr_schedule,
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim="adamw_torch",
        completion_only_loss=True,
        max_length=None,
        train_sampling_strategy="sequential",  # `prompt_order` is the order
        remove_unused_columns=False,  # the transform makes the columns
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        seed=recipe.seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    with cost() as spent:
        SFTTrainer(model=backend.model, args=config, train_dataset=rows, processing_class=backend.processor).train()
    training.save_adapter(run, backend)
    write_json(folder / _COST, {**spent, "resumed": False})
    write_json(folder / "run.json", {"status": "done", "data": {"sha256": loaded.sha256}, "model": backend.describe()})
    run.close()


_METHODS: dict[str, Callable[[Recipe, Path], None]] = {
    "grpo": _reinforce,
    "sft": _on_chains,
    "sft-direct": _on_answers,
}
