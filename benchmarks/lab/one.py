"""One run of the study, in a process of its own: train, measure, write its row.

python -m benchmarks.lab.one GROUP/ARM SEED
"""

import argparse
import hashlib
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import torch
from PIL import Image

from benchmarks.lab import ROOT, results
from benchmarks.lab.measuring import Asker, Plain, Questions, Style, held_out_questions, measure
from benchmarks.lab.study import ASKED, DIRECT, STUDY, Arm, Study, load_study
from benchmarks.lab.training import cost, train
from benchmarks.lab.triplets import embedded_with_chains
from benchmarks.measure import cores
from grit_lite.answer import GRIT_PROMPT
from grit_lite.backends import model_location, open_backend


def carry_out(
    study: Study, arm: Arm, seed: int, scratch: Path, share: float = 1.0, split: Plain = "test"
) -> results.Row:
    """The row of one run.

    Args:
        share, split: of the questions; as `held_out_questions`.
    """
    began_as, questions = commit(), held_out_questions(share, split)
    adapter, trained = (None, {}) if arm.method in ASKED else train(study, arm, seed, scratch)
    recipe = study.recipe_of(arm, seed, data="embedded")
    backend = open_backend(recipe, adapter)
    versions = backend.describe()["versions"]
    style: Style = "direct" if arm.method in DIRECT else "grounded"
    asker = Asker(backend, style, recipe.max_completion_tokens, *_example(arm))
    with cost() as spent:
        measures, outcomes = measure(asker, questions, report=lambda name: print(f"asking: {name}", flush=True))
    return {
        **identity(study, arm, seed),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": began_as,
        "machine": cores(),
        "threads": torch.get_num_threads(),
        "versions": versions,
        "train": trained,
        "measure": spent,
        "measures": measures,
        "outcomes": outcomes,
    }


def identity(study: Study, arm: Arm, seed: int) -> results.Row:
    """What a row says of which run it is, also where the run has failed."""
    return {
        "arm": arm.id,
        "seed": seed,
        "method": arm.method,
        "settings": dict(arm.settings),
        "recipe": study.recipe_of(arm, seed).model_dump(mode="json"),
    }


def commit() -> str | None:
    """Of the code that runs, with a + where it has been changed since; None where there is no git repository."""
    head = _git("rev-parse", "HEAD")
    return head and head + "+" * bool(_git("status", "--porcelain", "--", "grit_lite", "benchmarks/lab", "recipes"))


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.check_output(["git", "-C", ROOT, *arguments], text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def header(study: Study, questions: Questions) -> results.Row:
    """What all runs of a file have in common."""
    return {
        "weights_sha256": weights_sha256(study),
        "questions_sha256": questions.sha256,
        "scenes": dict(questions.scenes),
    }


def weights_sha256(study: Study) -> str:
    """Of the weights that every arm begins with."""
    arm = next(study.arms())
    digest = hashlib.sha256()
    for path in sorted(Path(model_location(study.recipe_of(arm, 0).model)).glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _example(arm: Arm) -> tuple[str, tuple[Image.Image, ...]]:
    """What stands before every prompt: the first relation triplet with its prompt and its chain, and its picture."""
    if arm.method not in ("one-shot", "one-shot-image"):
        return "", ()
    triplet, chain = embedded_with_chains()[0]
    picture = (triplet.load_image(),) if arm.method == "one-shot-image" else ()
    return f"{GRIT_PROMPT.render(triplet.question)}{chain}\n", picture


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lab.one", description=__doc__)
    parser.add_argument("arm")
    parser.add_argument("seed", type=int)
    parser.add_argument("--study", type=Path, default=STUDY)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--split", choices=get_args(Plain), default="test")
    given: Any = parser.parse_args(arguments)
    study = load_study(given.study)
    arm = next(arm for arm in study.arms() if arm.id == given.arm)
    results.append(given.output, carry_out(study, arm, given.seed, given.scratch, given.share, given.split))


if __name__ == "__main__":
    main()
