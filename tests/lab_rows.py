"""Rows of the laboratory as runs would leave them, made up: each arm right with a chance of its own."""

import zlib
from types import SimpleNamespace

import numpy as np

from benchmarks.lab.measuring import CHANGES, SAMPLED, packed
from benchmarks.lab.one import identity
from benchmarks.lab.study import ASKED, DIRECT, Study

KINDS = ("relation", "count", "attribute", "existence", *SAMPLED)


def header(n: int, sets=KINDS) -> dict:
    return {"weights_sha256": "0" * 64, "questions_sha256": "1" * 64, "scenes": {name: list(range(n)) for name in sets}}


def made_up(study: Study, n: int, sets=KINDS, chance=lambda arm: 0.9) -> list[dict]:
    """A row for every run of the study about n questions of each set."""
    return [_row(study, arm, seed, n, sets, chance(arm)) for arm, seed in study.jobs()]


def _row(study, arm, seed, n, sets, chance) -> dict:
    rng = np.random.default_rng([seed, zlib.crc32(arm.id.encode())])
    asked = arm.method in ASKED
    outcomes = {name: packed([_outcome(rng, chance, k, asked) for k in range(n)]) for name in sets}
    if arm.method not in DIRECT:
        again = n // 2  # of the relation questions
        right = np.array([rng.random(again) < share for share in (chance, chance, chance / 2, chance / 2, 1 - chance)])
        names = ("unchanged", "mask_random", "mask_predicted", "wrong_boxes", "swapped_boxes")
        assert {*names[1:]} == {*CHANGES}
        kept = {name: bits(values) for name, values in zip(names, right, strict=True)}
        answered = {name: bits(np.ones(again)) for name in names}
        boxed = bits(np.full(again, not asked))
        outcomes["faithfulness"] = {"n": again, **kept, "applies": boxed, "answered": answered}
    return {
        **identity(study, arm, seed),
        "date": "2026-01-02T03:04:05+00:00",
        "commit": "c0ffee",
        "machine": "2 cores of a machine",
        "threads": 1,
        "versions": {"torch": "2.13.0"},
        "train": {} if asked else _training(rng),
        "measure": {"cpu_seconds": 50.0, "wall_seconds": 60.0},
        "measures": {},
        "outcomes": outcomes,
    }


def _outcome(rng, chance, number, asked) -> SimpleNamespace:
    boxed = number % 5 > 0
    iou = float(rng.beta(8, 2)) if boxed and not asked else 0.0
    return SimpleNamespace(
        correct=(right := rng.random() < chance) and not asked,  # the untrained model writes no tags
        correct_lenient=right,
        valid_format=not asked,
        tokens=60,
        iou=iou if boxed else None,
        f1=float(iou > 0.5) if boxed else None,
    )


def _training(rng) -> dict:
    steps = list(range(5, 61, 5))
    rising = np.linspace(0.1, 1, len(steps)) + rng.normal(0, 0.05, len(steps))
    curve = {"step": steps, "reward": (2.4 * rising).tolist(), "valid_format": rising.clip(0, 1).tolist()}
    curve["groups_that_teach"] = (1 - rising / 2).tolist()
    return {"cpu_seconds": 77.0, "wall_seconds": 80.0, "resumed": False, "steps": 60, "curve": curve}


def bits(values) -> str:
    from benchmarks.lab.measuring import pack_bits

    return pack_bits(np.asarray(values, dtype=bool))
