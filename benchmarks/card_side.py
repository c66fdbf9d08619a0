"""One side of `benchmarks.card`, in a process of its own: `python -m benchmarks.card_side JOB.json`.

Unsloth rewrites transformers and TRL for a whole process, and a peak of memory is that of a whole process. So nothing
here imports either of them before the backend of the side has been chosen.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from grit_lite.backends import import_libraries
from grit_lite.errors import ModelError
from grit_lite.recipe import Recipe, load_recipe

LARGEST = 4096 * 32 * 32  # pixels of a picture; a longer prompt than asked for by any measurement


@dataclass(frozen=True)
class Side:
    """A trainer and the library that runs the model.

    Attributes:
        shared: with this package's pass, rather than the trainer's own.
        shares_rollout: with this package's rollout, rather than the library's own generation.
    """

    backend: Literal["plain", "unsloth"]
    shared: bool
    shares_rollout: bool = False


# Stock first: the first one that is measured is what the others are compared with.
SIDES = {
    "trl": Side("plain", shared=False),
    "unsloth": Side("unsloth", shared=False),
    "ours": Side("plain", shared=True, shares_rollout=True),
    "ours-unsloth": Side("unsloth", shared=True),
    "ours-unsloth-rollout": Side("unsloth", shared=True, shares_rollout=True),
}


@dataclass(frozen=True)
class Job:
    """One side of one case.

    Attributes:
        side: a name in `SIDES`.
        folder: of the model.
        prompts: distinct prompts of a step, `prompt_tokens` each, with `group` completions each.
        rows: completions of a micro-batch.
        repeats: steps that are timed.
        tolerance: of log-probabilities, where both sides do not compute in float32; in nats, root mean square.
        card_gib: memory of the card to be imitated; None for the card as it is.
        answers: where this side writes what it computed, or finds what the side computed that it is compared with.
        is_reference: which of the two.
    """

    side: str
    folder: str
    dtype: str
    load_in_4bit: bool
    prompt_tokens: int
    completion_tokens: int
    group: int
    prompts: int
    rows: int
    repeats: int
    tolerance: float
    card_gib: float | None
    answers: str
    is_reference: bool

    @property
    def total(self) -> int:
        """Completions of a step."""
        return self.prompts * self.group

    def recipe(self) -> Recipe:
        settings = {
            "model": self.folder,
            "backend": SIDES[self.side].backend,
            "vllm": "off",
            "dtype": self.dtype,
            "load_in_4bit": self.load_in_4bit,
            "max_pixels": LARGEST,
            "max_completion_tokens": self.completion_tokens,
            "group_size": self.group,
            "prompts_per_step": self.prompts,
            "completions_per_pass": self.rows,
            "gradient_checkpointing": True,
        }
        return load_recipe("tiny", [f"{name}={json.dumps(value)}" for name, value in settings.items()])

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))


def run(job: Job) -> dict[str, Any]:
    """What became of it: its `status`, and the numbers or the reason."""
    try:
        import_libraries(job.recipe())
        from benchmarks.card_steps import measure

        return measure(job)
    except ModelError as error:
        return {"status": "failed", "reason": str(error)}


def main(arguments: Sequence[str]) -> None:
    path = Path(arguments[0])
    result = run(Job(**json.loads(path.read_text())))
    path.with_suffix(".result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
