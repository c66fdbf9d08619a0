"""How good a tiny model's folder is: `python -m grit_lite.tiny.measure [--folder DIR]`.

Everything is asked of test scenes, through the real processor, chat template and `generate`, 1000 questions a line and
250 on the harder splits. The floors that the shipped weights have to keep are FLOORS; the result is written to
measured.json in the folder.
"""

import argparse
import itertools
import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from grit_lite.answer import GRIT_PROMPT, has_valid_format, parse
from grit_lite.boxes import union_iou
from grit_lite.compat import ensure_torchvision_ops
from grit_lite.tiny import WEIGHTS
from grit_lite.tiny.questions import (
    FARTHEST,
    KINDS,
    Kind,
    Pieces,
    SceneQuestion,
    box_text,
    held_out,
    imagine_relation,
    told_the_other_way,
)
from grit_lite.tiny.world import STYLES, Split

FLOORS = {
    "attribute": 0.97,
    "existence": 0.90,
    "count": 0.90,
    "where_iou": 0.75,
    "told": 0.95,
    "told_turned": 0.95,
    "reading": 0.95,
    "reading_turned": 0.95,
    "relation_told_boxes": 0.90,
    "relation_told_boxes_turned": 0.90,
    "relation_after_turns": 0.90,
    "relation_after_turns_turned": 0.90,
    "chain_relation_after_true_boxes": 0.90,
}
MOST_VALID_FORMAT = 0.10  # greedy, before GRPO-GR: the room that training has to show itself
HARDER: tuple[Split, ...] = ("more", "smaller", "new_pairs")
Turns = Sequence[tuple[str, str]]  # questions with their answers, earlier in the conversation
_READING = 1  # of the random streams of a split: boxes that nobody drew
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
        earlier: Callable[[SceneQuestion], Turns] = lambda _: (),
        opening: Callable[[SceneQuestion], str] = lambda _: "",
        temperature: float = 0.0,
    ) -> list[str]:
        """The completions; `opening` is text that the model is made to begin with, and is part of what is returned."""
        style = "grounded" if grounded else "direct"
        prompts = [self.prompt(q.question, style, earlier(q), image=True) + opening(q) for q in questions]
        most = _CHAIN_TOKENS if grounded else _DIRECT_TOKENS
        said = self._continue(prompts, [q.image for q in questions], temperature, most)
        return [opening(q) + text for q, text in zip(questions, said, strict=True)]

    def read(
        self, told: Sequence[tuple[str, str]], style: Literal["grounded", "direct"], most: int = _CHAIN_TOKENS
    ) -> list[str]:
        """What follows without a picture: a question and the beginning of its answer each."""
        prompts = [self.prompt(question, style, image=False) + opening for question, opening in told]
        return self._continue(prompts, [], 0.0, most)

    @torch.inference_mode()
    def _continue(
        self, prompts: Sequence[str], images: Sequence[Image.Image], temperature: float, most: int
    ) -> list[str]:
        texts = []
        settings = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        for start in range(0, len(prompts), _BATCH):
            batch = slice(start, start + _BATCH)
            inputs = self.processor(
                text=prompts[batch], images=images[batch] or None, padding=True, return_tensors="pt"
            )
            out = self.model.generate(**inputs, **settings, max_new_tokens=most)[:, inputs["input_ids"].shape[1] :]
            texts += self.processor.batch_decode(out, skip_special_tokens=True)
        return texts

    def prompt(self, question: str, style: Literal["grounded", "direct"], earlier: Turns = (), *, image: bool) -> str:
        told = ((GRIT_PROMPT.render(asked, style="direct"), answer) for asked, answer in earlier)
        said = [*itertools.chain(*told), GRIT_PROMPT.render(question, style=style)]
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}]}
            for role, text in zip(itertools.cycle(("user", "assistant")), said, strict=False)
        ]
        if image:
            messages[0]["content"] = [{"type": "image"}, *messages[0]["content"]]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True)


def chain_opening(question: SceneQuestion) -> str:
    """The beginning of a full chain, up to where the first box is about to be written."""
    if question.kind == "relation":
        first, second = related(question.question)
        return f"<think> I look for the {first} and the {second}. The"
    words = question.question.removeprefix("How many ").split()  # How many red circles are there?
    counted = words[: 2 if words[1].endswith("s") else 1]
    return f"<think> I look for the {' '.join(counted)}. I see"


def related(question: str) -> tuple[str, str]:
    """The two objects of a relation question: Is the red circle left of the blue square?"""
    words = question.removesuffix("?").split()
    return " ".join(words[2:4]), " ".join(words[-2:])


def has_right_names(text: str, question: SceneQuestion) -> bool:
    """Whether every box is labelled, and the conclusion worded, with what the question asks about."""
    answer = parse(text)
    if question.kind != "relation":
        asked = chain_opening(question).removeprefix("<think> I look for the ").partition("s.")[0]
        return all(box.label == asked for box in answer.written) and f" {asked}" in (answer.rethink or "")
    names = related(question.question)
    said = re.findall(r"[Tt]he (\w+ \w+)", answer.rethink or "")
    return tuple(box.label for box in answer.written) == names == tuple(said)


def true_boxes(question: SceneQuestion) -> str:
    """The two boxes of a relation question, as they would be written: the answer is all that is missing."""
    return ", ".join(box_text(box, name) for box, name in zip(question.boxes, related(question.question), strict=True))


def true_sentences(question: SceneQuestion, order: Literal[1, -1] = 1) -> str:
    """Where the two objects of a relation question are, as a chain says it; -1: the second object's box first."""
    named = [*zip(question.boxes, related(question.question), strict=True)][::order]
    return " ".join(f"The {name} is at {box_text(box, name)}." for box, name in named)


def true_turns(question: SceneQuestion, order: Literal[1, -1] = 1) -> Turns:
    """Where the two objects of a relation question are, as earlier turns of a conversation say it."""
    named = [*zip(question.boxes, related(question.question), strict=True)][::order]
    return [(f"Where is the {name}?", box_text(box, name)) for box, name in named]


def true_chain(question: SceneQuestion) -> str:
    """The chain of a relation question up to its last box, with the true boxes."""
    first, second = related(question.question)
    return f"<think> I look for the {first} and the {second}. {true_sentences(question)} </think>"


def measure(folder: Path, per_kind: int = 1000, split: Split = "test") -> dict:
    """Shares of right answers (strict text equality), mean union IoU in pixels, and shares of valid GRIT format."""
    torch.manual_seed(0)
    ask, found = Asker(folder), {}
    questions: dict[Kind, list[SceneQuestion]] = {kind: held_out([kind], per_kind, split) for kind in KINDS}
    for kind in ("attribute", "count", "existence", "relation"):
        found[kind] = _share_right(ask(questions[kind]), questions[kind])
    where = ask(questions["where"])
    found["where_iou"] = _mean_iou(where, questions["where"])
    found["where_iou_above_half"] = _share(
        _iou(text, q) > 0.5 for text, q in zip(where, questions["where"], strict=True)
    )
    found |= _measure_reading(ask, per_kind, split)
    found |= _measure_true_boxes(ask, questions["relation"])
    found |= _measure_chains(ask, questions)
    found |= _measure_format(ask, [*questions["relation"], *questions["count"]])
    for harder in HARDER:
        found |= {
            f"{harder}_{name}": value for name, value in _measure_harder(ask, harder, max(1, per_kind // 4)).items()
        }
    return {name: round(value, 3) for name, value in found.items()}


def _measure_reading(ask: Asker, count: int, split: Split) -> dict[str, float]:
    """Relations read from boxes without a picture; `turned`: the second object's box is written first.

    `told` is the bare answer to a question that tells the boxes itself, `reading` what a begun chain comes to. The
    boxes are as near to each other as those that are asked about on pictures, so that one of them alone tells little.
    """
    rng, found = np.random.default_rng([STYLES[split].stream, _READING]), {}
    asked = [imagine_relation(rng, int(rng.integers(2)), farthest=FARTHEST) for _ in range(count)]
    for name, these in (("", asked), ("_turned", [told_the_other_way(one) for one in asked])):
        told = ask.read([(_telling(one.found, one.question), "") for one in these], "direct", most=1)
        found[f"told{name}"] = _share(said == one.answer for said, one in zip(told, these, strict=True))
        begun = [f"<think>{_text(one.sought)}{_text(one.found)} </think> <rethink>" for one in these]
        chains = ask.read([(one.question, opening) for one, opening in zip(these, begun, strict=True)], "grounded")
        found[f"reading{name}"] = _share(parse(t).answer == one.answer for t, one in zip(chains, these, strict=True))
    return found


def _text(pieces: Pieces) -> str:
    return "".join(text for text, _ in pieces)


def _telling(found: Pieces, question: str) -> str:
    return f"{_text(found).strip()} {question}"


def _measure_true_boxes(ask: Asker, relations: Sequence[SceneQuestion]) -> dict[str, float]:
    """Relations on pictures with the true boxes in the context.

    The question or the turns before it tell them, in either order, or they stand in a begun GRIT chain, or bare.
    """
    found: dict[str, float] = {}
    orders: dict[str, Literal[1, -1]] = {"": 1, "_turned": -1}
    for name, order in orders.items():
        told = ask([replace(q, question=f"{true_sentences(q, order)} {q.question}") for q in relations])
        turns = ask(relations, earlier=partial(true_turns, order=order))
        found[f"relation_told_boxes{name}"] = _share_right(told, relations)
        found[f"relation_after_turns{name}"] = _share_right(turns, relations)
    chains = ask(relations, grounded=True, opening=true_chain)
    bare = ask(relations, grounded=True, opening=true_boxes)
    found["chain_relation_after_true_boxes"] = _share(
        parse(text).answer == q.answer for text, q in zip(chains, relations, strict=True)
    )
    found["relation_after_bare_boxes"] = _share(t.split()[-1] == q.answer for t, q in zip(bare, relations, strict=True))
    return found


def _measure_harder(ask: Asker, split: Split, per_kind: int) -> dict[str, float]:
    """What the scenes that pre-training never saw cost: asked directly, and in a begun chain."""
    found = {}
    for kind in ("relation", "count"):
        questions = held_out([kind], per_kind, split)
        found[kind] = _share_right(ask(questions), questions)
        chains = ask(questions, grounded=True, opening=chain_opening)
        found[f"chain_{kind}"] = _share(parse(t).answer == q.answer for t, q in zip(chains, questions, strict=True))
        found[f"chain_{kind}_iou"] = _mean_iou(chains, questions)
    return found


def _measure_chains(ask: Asker, questions: dict[Kind, list[SceneQuestion]]) -> dict[str, float]:
    """What follows when the chain is begun for the model: answers and boxes of the reasoning."""
    found = {}
    for kind in ("relation", "count"):
        texts = ask(questions[kind], grounded=True, opening=chain_opening)
        found[f"chain_{kind}"] = _share(
            parse(text).answer == q.answer for text, q in zip(texts, questions[kind], strict=True)
        )
        found[f"chain_{kind}_iou"] = _mean_iou(texts, questions[kind])
        found[f"chain_{kind}_names"] = _share(
            has_right_names(text, q) for text, q in zip(texts, questions[kind], strict=True)
        )
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


def _share_right(texts: Sequence[str], questions: Sequence[SceneQuestion]) -> float:
    """The share of direct answers that are the right word, and nothing else."""
    return _share(text.strip() == q.answer for text, q in zip(texts, questions, strict=True))


def _share(hits: Iterable[bool]) -> float:
    hits = list(hits)
    return sum(hits) / len(hits)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m grit_lite.tiny.measure", description=__doc__)
    parser.add_argument("--folder", type=Path, default=WEIGHTS)
    parser.add_argument("--per-kind", type=int, default=1000)
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
