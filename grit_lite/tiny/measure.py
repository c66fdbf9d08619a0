"""How good a tiny model's folder is: `python -m grit_lite.tiny.measure [--folder DIR]`.

Everything is asked of test scenes, through the real processor, chat template and `generate`, 500 questions a line. The
floors that the shipped weights have to keep are FLOORS; the result is written to measured.json in the folder.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from grit_lite.answer import GRIT_PROMPT, has_valid_format, parse
from grit_lite.boxes import union_iou
from grit_lite.compat import ensure_torchvision_ops
from grit_lite.tiny import WEIGHTS
from grit_lite.tiny.questions import KINDS, Kind, SceneQuestion, held_out
from grit_lite.tiny.world import Split

FLOORS = {"attribute": 0.90, "count": 0.80, "where_iou": 0.60}
MOST_VALID_FORMAT = 0.20  # greedy, before GRPO-GR: the room that training has to show itself
_BATCH = 50
_DIRECT_TOKENS, _CHAIN_TOKENS = 90, 160


class Asker:
    """A loaded model that answers batches of scene questions."""

    def __init__(self, folder: Path) -> None:
        ensure_torchvision_ops()
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.processor = AutoProcessor.from_pretrained(folder)
        self.model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()

    def __call__(
        self,
        questions: Sequence[SceneQuestion],
        *,
        grounded: bool = False,
        opening: Callable[[SceneQuestion], str] | None = None,
        temperature: float = 0.0,
    ) -> list[str]:
        """The completions; `opening` is text that the model is made to begin with, and is part of what is returned."""
        texts = []
        for start in range(0, len(questions), _BATCH):
            texts += self._batch(questions[start : start + _BATCH], grounded, opening, temperature)
        return texts

    @torch.inference_mode()
    def _batch(
        self,
        questions: Sequence[SceneQuestion],
        grounded: bool,
        opening: Callable[[SceneQuestion], str] | None,
        temperature: float,
    ) -> list[str]:
        openings = [opening(question) if opening else "" for question in questions]
        prompts = [
            self._prompt(question, grounded) + begun for question, begun in zip(questions, openings, strict=True)
        ]
        images = [question.image for question in questions]
        inputs = self.processor(text=prompts, images=images, padding=True, return_tensors="pt")
        settings = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        most = _CHAIN_TOKENS if grounded else _DIRECT_TOKENS
        out = self.model.generate(**inputs, **settings, max_new_tokens=most)[:, inputs["input_ids"].shape[1] :]
        said = self.processor.batch_decode(out, skip_special_tokens=True)
        return [begun + text for begun, text in zip(openings, said, strict=True)]

    def _prompt(self, question: SceneQuestion, grounded: bool) -> str:
        text = GRIT_PROMPT.render(question.question, style="grounded" if grounded else "direct")
        content = [{"type": "image"}, {"type": "text", "text": text}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def chain_opening(question: SceneQuestion) -> str:
    """The beginning of a full chain, up to where the first box is about to be written."""
    if question.kind == "relation":  # Is the red circle left of the blue square?
        words = question.question.removesuffix("?").split()
        return f"<think> I look for the {' '.join(words[2:4])} and the {' '.join(words[-2:])}. The"
    words = question.question.removeprefix("How many ").split()  # How many red circles are there?
    counted = words[: 2 if words[1].endswith("s") else 1]
    return f"<think> I look for the {' '.join(counted)}. I see"


def measure(folder: Path, per_kind: int = 500, split: Split = "test") -> dict:
    """Shares of right answers (strict text equality), mean union IoU in pixels, and shares of valid GRIT format."""
    torch.manual_seed(0)
    ask, found = Asker(folder), {}
    questions: dict[Kind, list[SceneQuestion]] = {kind: held_out([kind], per_kind, split) for kind in KINDS}
    for kind in ("attribute", "count", "existence", "relation"):
        answers = ask(questions[kind])
        found[kind] = _share(text.strip() == q.answer for text, q in zip(answers, questions[kind], strict=True))
    where = ask(questions["where"])
    found["where_iou"] = _mean_iou(where, questions["where"])
    found["where_iou_above_half"] = _share(
        _iou(text, q) > 0.5 for text, q in zip(where, questions["where"], strict=True)
    )
    found |= _measure_chains(ask, questions)
    found |= _measure_format(ask, [*questions["relation"], *questions["count"]])
    return {name: round(value, 3) for name, value in found.items()}


def _measure_chains(ask: Asker, questions: dict[Kind, list[SceneQuestion]]) -> dict[str, float]:
    """What follows when the chain is begun for the model: answers and boxes of the reasoning."""
    found = {}
    for kind in ("relation", "count"):
        texts = ask(questions[kind], grounded=True, opening=chain_opening)
        found[f"chain_{kind}"] = _share(
            parse(text).answer == q.answer for text, q in zip(texts, questions[kind], strict=True)
        )
        found[f"chain_{kind}_iou"] = _mean_iou(texts, questions[kind])
        found[f"chain_{kind}_valid_format"] = _share(has_valid_format(parse(text)) for text in texts)
    return found


def _measure_format(ask: Asker, questions: Sequence[SceneQuestion]) -> dict[str, float]:
    """How the model answers under the GRIT prompt when nothing is forced, greedy and sampled."""
    found = {}
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        texts = ask(questions, grounded=True, temperature=temperature)
        found[f"valid_format_{name}"] = _share(has_valid_format(parse(text)) for text in texts)
        read = [parse(text) for text in texts]
        found[f"full_chain_{name}"] = _share(has_valid_format(one) and len(one.boxes) > 0 for one in read)
        found[f"answer_{name}"] = _share(_final(text) == q.answer for text, q in zip(texts, questions, strict=True))
    return found


def _final(text: str) -> str:
    """The answer after its tag, else the last word: what an answer in a wrong form comes to."""
    answer = parse(text).answer
    return answer if answer is not None else (text.split() or [""])[-1]


def _iou(text: str, question: SceneQuestion) -> float:
    written = parse(text).boxes
    return union_iou(written, question.boxes) if written else 0.0


def _mean_iou(texts: Sequence[str], questions: Sequence[SceneQuestion]) -> float:
    """Over the questions that have boxes."""
    values = [_iou(text, q) for text, q in zip(texts, questions, strict=True) if q.boxes]
    return sum(values) / len(values)


def _share(hits: Iterable[bool]) -> float:
    hits = list(hits)
    return sum(hits) / len(hits)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m grit_lite.tiny.measure", description=__doc__)
    parser.add_argument("--folder", type=Path, default=WEIGHTS)
    parser.add_argument("--per-kind", type=int, default=500)
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    given = parser.parse_args(arguments)
    began = time.monotonic()
    found = measure(given.folder, given.per_kind, given.split)
    row = {"split": given.split, "questions_per_kind": given.per_kind, **found}
    if given.split == "test":
        (given.folder / "measured.json").write_text(json.dumps(row, indent=2) + "\n")
    print(json.dumps({**row, "seconds": round(time.monotonic() - began)}, indent=2))


if __name__ == "__main__":
    main()
