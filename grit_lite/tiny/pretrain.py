"""Pre-trains the embedded model: `python -m grit_lite.tiny.pretrain --output DIR`.

STAGES is the recipe. Every step draws its own scenes and questions from (seed, stage, step), and a checkpoint is
written aside and renamed every few minutes, so that a run that was stopped goes on with `--resume` as if it never had
been. Made for one core (set OMP_NUM_THREADS=1) in the background; `--device cuda` works the same.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from grit_lite.tiny.build import build_model, build_tokenizer, save_model
from grit_lite.tiny.learner import (
    BatchedVision,
    Heads,
    Packed,
    answer_loss,
    clip,
    mixed_precision,
    optimizers,
    patch_targets,
    to_patches,
)
from grit_lite.tiny.questions import (
    FARTHEST,
    Asked,
    Kind,
    ask,
    ask_where_all,
    imagine_relation,
    told_the_other_way,
    where_each_is,
)
from grit_lite.tiny.rows import CHAIN_WEIGHTS, Packer, Row, lay_out
from grit_lite.tiny.world import MOST_OBJECTS, Scene, make_scene

GROUNDED_KINDS: dict[Kind, float] = {"relation": 0.5, "count": 0.32, "attribute": 0.09, "existence": 0.09}


@dataclass(frozen=True)
class Stage:
    """One leg of the recipe. The rate is warmed up, then goes in a straight line from the first to the second value."""

    name: str
    steps: int
    batch: int
    rate: tuple[float, float]
    talks: bool = True  # False: only the vision tower learns, from its heads
    looks: bool = True  # False: only the language model learns
    vision_rate: float = 0.4  # of the rate, for the vision tower's matrices
    most_objects: int = MOST_OBJECTS
    full_scenes: float = 1.0  # share of scenes with up to five objects; the others have up to `most_objects`
    direct: tuple[Kind | Literal["where_all"], ...] = (
        "where",
        "where",
        "count",
        "attribute",
        "existence",
        "where_all",
        "relation",
    )
    grounded: float = 1.0  # GRIT-prompted questions a picture, in the mean
    reading: float = 0.0  # share of steps that read relations from imagined boxes, without pictures
    usual: float = 0.5  # share of those that ask for left of or above
    turned: float = 0.0  # share of those, and of told ones, that write the second object's box first
    prompt: Literal["grounded", "direct"] = "direct"  # of the chains that are read
    filler: float = 0.0  # loss weight, in those chains, of what follows from the form
    near: bool = False  # whether boxes that nobody drew are as near to each other as those asked about on pictures
    chains: int = 3  # of each in a row without a picture: chains to read, chains to match, bare comparisons
    turns: int = 0  # in the same row, conversations that told the boxes
    told: float = 0.0  # share of the other steps whose questions about pictures all come with the boxes
    warmup: int = 30


# Once pointing works, what colour and what shape take longest.
LATE_QUESTIONS: tuple[Kind | Literal["where_all"], ...] = (
    "where",
    "count",
    "attribute",
    "attribute",
    "existence",
    "where_all",
    "relation",
)
_late = partial(Stage, batch=16, direct=LATE_QUESTIONS, grounded=2.0, turned=0.5, prompt="grounded")
_last = partial(_late, rate=(1.5e-3, 2e-5), looks=False, filler=0.2, near=True)
STAGES = (
    Stage("see", steps=420, batch=48, rate=(3e-3, 1e-3), talks=False),
    Stage("point", 250, 16, (2.5e-3, 2.5e-3), most_objects=2, full_scenes=0.3, grounded=0.5, reading=0.2, usual=0.85),
    Stage("match", 300, 16, (2.5e-3, 2.5e-3), reading=0.3, usual=0.85),
    Stage("answer", 500, 16, (2.5e-3, 2.5e-3), reading=0.25, turned=0.3),
    Stage("settle", 900, 16, (2.5e-3, 2e-5), direct=LATE_QUESTIONS, grounded=2.0, reading=0.16, turned=0.4),
    # Until here a chain behind the GRIT prompt was read by which box comes first. From here on names decide.
    _late("name", 320, rate=(1.2e-3, 2e-5), reading=0.45),
    # Boxes that someone else told, earlier in the conversation or in the question, are read as well as written ones:
    # first without pictures, where more of them fit into a step.
    Stage("converse", 100, 16, (2.5e-3, 2.5e-3), looks=False, reading=1.0, turned=0.5, prompt="grounded", turns=10),
    _late("tell", 200, rate=(2.5e-3, 2e-5), looks=False, reading=0.4, turns=5, told=0.5),
    # Meanwhile chains had lost some of what they read, most of all their ends behind boxes in the other order.
    _last("recall", 200, reading=0.6, chains=6, turns=1, told=0.4),
    # Of those three, six steps in ten had no picture: where things are and how many had become less certain.
    _last("blend", 300, reading=0.15, chains=4, turns=2, told=0.15),
)
SAVE_SECONDS = 90.0
READING_ROWS = 16  # of a step without pictures
TOLD_QUESTIONS = 4  # a picture, each asked twice
VALIDATION_PICTURES = 48
# Share of the weights from before it learned without looking, which forgets some of what was seen: the last ones are
# averaged with them (arXiv 2109.01903).
KEPT = 0.25


@dataclass
class Learner:
    """Everything that training changes, and what it needs to do so."""

    tokenizer: Any
    model: Any
    heads: Heads
    optimizers: list[torch.optim.Optimizer]
    average: dict[str, Tensor]  # exponential average of the weights, which is what gets saved
    stages: tuple[Stage, ...]
    seed: int
    stage: int = 0  # the number of the current one
    step: int = 0  # within the stage
    updates: int = 0
    seconds: float = 0.0
    begun_with: dict[str, Any] | None = None  # the record of the weights that it began with; None: with none
    kept: dict[str, Tensor] | None = None  # weights from before it learned without looking; None: not yet, or averaged
    kept_share: float | None = None  # of those in the average; None: not averaged


def new_learner(stages: tuple[Stage, ...], seed: int, device: str) -> Learner:
    tokenizer = build_tokenizer()
    model: Any = build_model(tokenizer, seed)
    model.to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = Heads(tokenizer).to(device)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return Learner(tokenizer, model, heads, optimizers(model, heads), average, stages, seed)


def begin_with(learner: Learner, weights: Path, stage: str, kept: Path) -> None:
    """Go on from exported weights, at a stage that does not look: it needs no heads, and they are not exported.

    Args:
        kept: the weights that the last ones are averaged with.
    """
    learner.stage = [one.name for one in learner.stages].index(stage)
    learner.average, learner.kept = (_exported(learner, folder) for folder in (weights, kept))
    learner.model.load_state_dict(learner.average)
    record, other = (json.loads((folder / "pretraining.json").read_text()) for folder in (weights, kept))
    learner.begun_with = {
        **{name: record[name] for name in ("sha256", "seconds", "versions", "begun_with") if record.get(name)},
        "stage": stage,
        "kept_sha256": other["sha256"],
    }


def _exported(learner: Learner, folder: Path) -> dict[str, Tensor]:
    model = type(learner.model).from_pretrained(folder, dtype=torch.float32)
    return {name: value.to(learner.model.device, copy=True) for name, value in model.state_dict().items()}


# --- data


def scenes_of(stage: Stage, first: int, rng: np.random.Generator) -> list[Scene]:
    """The stage's next batch of training scenes; no scene is ever used twice."""
    most = np.where(rng.random(stage.batch) < stage.full_scenes, MOST_OBJECTS, stage.most_objects)
    return [make_scene(first + k, "train", int(most[k])) for k in range(stage.batch)]


def picture_row(packer: Packer, stage: Stage, scene: Scene, rng: np.random.Generator) -> Row:
    row = packer.image_row()
    for kind in stage.direct:
        asked = ask_where_all(rng, scene.objects) if kind == "where_all" else ask(kind, rng, scene)
        if asked is not None:
            packer.ask_directly(row, asked)
    for _ in range(int(stage.grounded + rng.random())):
        packer.ask_grounded(row, _grounded(rng, scene), rng)
    return row


def told_row(packer: Packer, stage: Stage, scene: Scene, rng: np.random.Generator) -> Row:
    """Relations of the scene with the boxes in the context: told by the question, and by earlier turns."""
    row = packer.image_row()
    for _ in range(TOLD_QUESTIONS):
        asked = ask("relation", rng, scene)
        if asked is not None:
            told = told_the_other_way(asked) if rng.random() < stage.turned else asked
            packer.ask_to_compare(row, told)
            packer.ask_in_turns(row, where_each_is(rng, told), told)
    return row


def _grounded(rng: np.random.Generator, scene: Scene) -> Asked:
    """A question of the GRIT-prompted mixture; a kind that the scene does not allow is drawn again."""
    while True:
        kind = list(GROUNDED_KINDS)[int(rng.choice(len(GROUNDED_KINDS), p=list(GROUNDED_KINDS.values())))]
        asked = ask(kind, rng, scene)
        if asked is not None:
            return asked


def reading_row(packer: Packer, stage: Stage, rng: np.random.Generator) -> Row:
    row, read = packer.text_row(), partial(packer.ask_to_read, style=stage.prompt, filler=stage.filler)
    for ask_to in (read, packer.ask_to_match, packer.ask_to_compare) * stage.chains:
        ask_to(row, _imagined(stage, rng))
    for _ in range(stage.turns):
        asked = _imagined(stage, rng)
        packer.ask_in_turns(row, where_each_is(rng, asked), asked)
    return row


def _imagined(stage: Stage, rng: np.random.Generator) -> Asked:
    farthest = FARTHEST if stage.near else math.inf
    asked = imagine_relation(rng, int(rng.integers(2)), stage.usual, farthest)
    return told_the_other_way(asked) if rng.random() < stage.turned else asked


def on_device(arrays: dict[str, np.ndarray], device: str) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def scene_tensors(scenes: list[Scene], device: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Patches (B, 196, 192) and what each patch shows."""
    patches = to_patches(np.stack([np.asarray(scene.image) for scene in scenes]))
    targets = [patch_targets(scene) for scene in scenes]
    stacked = {name: np.stack([target[name] for target in targets]) for name in targets[0]}
    return torch.from_numpy(patches).to(device), on_device(stacked, device)


# --- steps


def train_step(learner: Learner, packer: Packer) -> dict[str, float]:
    """One update; what it draws depends only on (seed, stage, step)."""
    stage = learner.stages[learner.stage]
    rng = np.random.default_rng([learner.seed, learner.stage, learner.step])
    reads = stage.talks and rng.random() < stage.reading
    with mixed_precision(learner.model.device.type):
        losses = _reading_losses(learner, packer, stage, rng) if reads else _picture_losses(learner, packer, stage, rng)
    total = torch.stack(list(losses.values())).sum()
    for optimizer in learner.optimizers:
        optimizer.zero_grad(set_to_none=True)
    total.backward()
    norm = clip([*learner.model.parameters(), *learner.heads.parameters()])
    _update(learner, rate_at(stage, learner.step), stage.vision_rate)
    return {"grad_norm": norm, **{name: float(loss.detach()) for name, loss in losses.items()}}


def _picture_losses(learner: Learner, packer: Packer, stage: Stage, rng: np.random.Generator) -> dict[str, Tensor]:
    device = learner.model.device.type
    earlier = sum(done.steps * done.batch for done in learner.stages[: learner.stage])
    scenes = scenes_of(stage, earlier + learner.step * stage.batch, rng)
    patches, targets = scene_tensors(scenes, device)
    with torch.set_grad_enabled(stage.looks):
        features, tokens = BatchedVision(learner.model)(patches)
    losses = {}
    if stage.looks:
        seen, _ = learner.heads(features, tokens, targets, learner.model.get_input_embeddings().weight)
        losses["seen"] = 0.3 * seen if stage.talks else seen
    if stage.talks:
        row_of = told_row if stage.told and rng.random() < stage.told else picture_row
        rows = lay_out([row_of(packer, stage, scene, rng) for scene in scenes])
        numbers = learner.heads.get_buffer("numbers")
        losses["said"], _ = answer_loss(learner.model, Packed.on(device, rows), tokens, numbers)
    return losses


def _reading_losses(learner: Learner, packer: Packer, stage: Stage, rng: np.random.Generator) -> dict[str, Tensor]:
    rows = lay_out([reading_row(packer, stage, rng) for _ in range(READING_ROWS)])
    batch = Packed.on(learner.model.device.type, rows)
    return {"read": answer_loss(learner.model, batch, None, learner.heads.get_buffer("numbers"))[0]}


def rate_at(stage: Stage, step: int) -> float:
    start, end = stage.rate
    return min(1.0, (step + 1) / stage.warmup) * (start + (end - start) * step / stage.steps)


def _update(learner: Learner, rate: float, vision_rate: float) -> None:
    for optimizer in learner.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"] * (vision_rate if group["sees"] else 1.0)
        optimizer.step()
    learner.updates += 1
    keep = min(0.99, learner.updates / (learner.updates + 10))
    state = learner.model.state_dict()
    with torch.no_grad():
        for name, value in learner.average.items():
            value.lerp_(state[name], 1 - keep)


# --- validation


@torch.no_grad()
def validate(learner: Learner, packer: Packer) -> dict[str, float]:
    """How the averaged weights do on validation scenes, teacher-forced; shares of right answers, boxes as IoU."""
    with averaged(learner), mixed_precision(learner.model.device.type):
        seen, read = _validate_pictures(learner, packer), _validate_reading(learner, packer)
        return {**seen, **{f"read_{name}": value for name, value in read.items()}}


def _validate_pictures(learner: Learner, packer: Packer) -> dict[str, float]:
    device = learner.model.device.type
    scenes = [make_scene(k, "validation") for k in range(VALIDATION_PICTURES)]
    patches, targets = scene_tensors(scenes, device)
    features, tokens = BatchedVision(learner.model)(patches)
    seen: dict[str, float] = {}
    if learner.begun_with is None:  # else the heads have learned nothing
        _, seen = learner.heads(features, tokens, targets, learner.model.get_input_embeddings().weight)
    plan = Stage("validate", 1, VALIDATION_PICTURES, (0, 0), grounded=1.0, turned=0.5)
    found = {}
    for row_of in (told_row, picture_row):  # the loss that is kept is that of the second
        rows = [row_of(packer, plan, scene, np.random.default_rng(k)) for k, scene in enumerate(scenes)]
        found |= _judge(learner, rows, tokens)
    return {**seen, **found}


def _validate_reading(learner: Learner, packer: Packer) -> dict[str, float]:
    rng, plan = np.random.default_rng(0), Stage("validate", 1, 1, (0, 0), turned=0.5, prompt="grounded", turns=3)
    return _judge(learner, [reading_row(packer, plan, rng) for _ in range(READING_ROWS)], None)


def _judge(learner: Learner, rows: list[Row], tokens: Tensor | None) -> dict[str, float]:
    batch = Packed.on(learner.model.device.type, lay_out(rows))
    loss, likely = answer_loss(learner.model, batch, tokens, learner.heads.get_buffer("numbers"))
    value = {int(token): number for number, token in enumerate(learner.heads.get_buffer("numbers"))}
    found: dict[str, list[float]] = {"loss": [float(loss)]}
    for row, guesses in zip(rows, likely.split([len(row.ids) for row in rows]), strict=True):
        for mark, start, end in row.marks:
            for name, right in _graded(row, mark, start, end, guesses.tolist(), value):
                found.setdefault(name, []).append(right)
    return {name: round(float(np.mean(values)), 3) for name, values in found.items()}


def _graded(
    row: Row, mark: str, start: int, end: int, guesses: list[int], value: dict[int, int]
) -> Iterator[tuple[str, float]]:
    """Shares of right verdicts and boxes of one answer; the first verdict of a chain is what it concludes."""
    if mark == "style":
        return
    labels = row.labels
    is_chain = mark.startswith(("chain", "reading", "matching"))
    first = start if is_chain else start - 1  # a direct answer's first token is predicted by the question's last
    verdicts = [at for at in range(first, end) if row.weights[at] == CHAIN_WEIGHTS["verdict"]]
    if verdicts:
        if is_chain:
            if verdicts[:-1]:
                yield f"{mark}_concluded", float(all(labels[at] == guesses[at] for at in verdicts[:-1]))
            yield f"{mark}_answer", float(labels[verdicts[-1]] == guesses[verdicts[-1]])
        else:
            yield mark, float(all(labels[at] == guesses[at] for at in verdicts))
    at = [at for at in range(first, end) if row.coordinates[at] and row.weights[at] > 0]
    for k in range(0, len(at) - 3, 4):
        boxes = [[value.get(side[i], 0) for i in at[k : k + 4]] for side in (labels, guesses)]
        yield ("chain_iou" if is_chain else "where_iou"), _iou(boxes[0], boxes[1])


def _iou(a: list[int], b: list[int]) -> float:
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [max(0, box[2] - box[0]) * max(0, box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height or 1)


def keep(learner: Learner) -> None:
    """Hold on to the weights as they are when looking ends."""
    if learner.kept is None and not learner.stages[learner.stage].looks:
        learner.kept = {name: value.clone() for name, value in learner.average.items()}


def average_with_kept(learner: Learner) -> None:
    assert learner.kept is not None
    for name, value in learner.average.items():
        value.lerp_(learner.kept[name], KEPT)
    learner.kept, learner.kept_share = None, KEPT


@contextlib.contextmanager
def averaged(learner: Learner) -> Iterator[None]:
    """Within the block the model has its averaged weights."""
    own = {name: value.clone() for name, value in learner.model.state_dict().items()}
    learner.model.load_state_dict(learner.average)
    try:
        yield
    finally:
        learner.model.load_state_dict(own)


# --- keeping


_SAVED = ("average", "kept", "kept_share", "stage", "step", "updates", "seconds", "begun_with")


def save_checkpoint(learner: Learner, folder: Path) -> None:
    state = {
        "model": learner.model.state_dict(),
        "heads": learner.heads.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in learner.optimizers],
        **{name: getattr(learner, name) for name in _SAVED},
    }
    aside = folder / "checkpoint.pt.part"
    torch.save(state, aside)
    os.replace(aside, folder / "checkpoint.pt")


def load_checkpoint(learner: Learner, folder: Path) -> None:
    state = torch.load(folder / "checkpoint.pt", weights_only=True, map_location=learner.model.device)
    learner.model.load_state_dict(state["model"])
    learner.heads.load_state_dict(state["heads"])
    for optimizer, kept in zip(learner.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    for name in _SAVED:
        setattr(learner, name, state[name])


def export(learner: Learner, folder: Path) -> Path:
    """The folder, now holding the averaged weights like any other model, and pretraining.json: what made them."""
    model = build_model(learner.tokenizer)
    model.load_state_dict(learner.average)
    save_model(folder, model, learner.tokenizer)
    record = {
        "sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "seed": learner.seed,
        "seconds": round(learner.seconds),
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy", "pillow")},
        "stages": [asdict(stage) for stage in learner.stages],
        "kept_share": learner.kept_share,
        "begun_with": learner.begun_with,
    }
    (folder / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")
    return folder


# --- the run


def pretrain(
    output: Path,
    *,
    stages: tuple[Stage, ...] = STAGES,
    seed: int = 0,
    resume: bool = False,
    minutes: float | None = None,
    device: str = "cpu",
    weights: Path | None = None,
    begin_at: str | None = None,
    kept: Path | None = None,
) -> Learner:
    """Carry out the stages; stops early, with a checkpoint, once `minutes` have passed (after one step at least).

    With `weights` and `begin_at` only the stages from that one on, beginning with the weights of that folder; the last
    ones are averaged with them, or with those of the folder `kept`.
    """
    output.mkdir(parents=True, exist_ok=True)
    learner = new_learner(stages, seed, device)
    if weights is not None and begin_at is not None:
        begin_with(learner, weights, begin_at, kept or weights)
    if resume and (output / "checkpoint.pt").exists():
        load_checkpoint(learner, output)
    packer, clock = Packer(learner.tokenizer), Clock(learner.seconds, minutes)
    while learner.stage < len(stages) and not clock.is_over():
        keep(learner)
        stage, row = stages[learner.stage].name, train_step(learner, packer)
        learner.step += 1
        learner.seconds = clock.seconds()
        stage_is_done = learner.step == stages[learner.stage].steps
        if stage_is_done or clock.is_over() or clock.is_time_to_save():
            log(output, {"stage": stage, "step": learner.step, **row, **validate(learner, packer)})
            if stage_is_done:
                learner.stage, learner.step = learner.stage + 1, 0
            if learner.stage == len(stages) and learner.kept is not None:
                average_with_kept(learner)
                log(output, {"stage": "average", **validate(learner, packer)})
            save_checkpoint(learner, output)
    return learner


class Clock:
    """Seconds of training, those before a resume included, and when to save and to stop."""

    def __init__(self, before: float, minutes: float | None) -> None:
        self.before, self.minutes = before, minutes
        self.began = self.saved = time.monotonic()
        self.has_begun = False

    def seconds(self) -> float:
        self.has_begun = True
        return self.before + time.monotonic() - self.began

    def is_over(self) -> bool:
        return self.has_begun and self.minutes is not None and time.monotonic() - self.began >= self.minutes * 60

    def is_time_to_save(self) -> bool:
        if time.monotonic() - self.saved < SAVE_SECONDS:
            return False
        self.saved = time.monotonic()
        return True


def log(output: Path, row: dict[str, Any]) -> None:
    line = json.dumps({name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()})
    with (output / "pretrain.jsonl").open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)


def main(arguments: Sequence[str] | None = None, stages: tuple[Stage, ...] = STAGES) -> None:
    parser = argparse.ArgumentParser(prog="python -m grit_lite.tiny.pretrain", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoint, log and weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint, if there is one")
    parser.add_argument("--minutes", type=float, help="stop, with a checkpoint, after this long")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--weights", type=Path, help="begin with the weights of this folder; needs --begin-at")
    late = [stage.name for stage in stages if not stage.looks]
    parser.add_argument("--begin-at", choices=late, help="the first stage to carry out; needs --weights")
    parser.add_argument("--kept", type=Path, help="folder of weights to average with; if not given, that of --weights")
    given = vars(parser.parse_args(arguments))
    if (given["weights"] is None) != (given["begin_at"] is None):
        parser.error("--weights and --begin-at need each other")
    if given["kept"] is not None and given["weights"] is None:
        parser.error("--kept needs --weights")
    learner = pretrain(stages=stages, **given)
    print(export(learner, given["output"] / "weights"))


if __name__ == "__main__":
    main()
