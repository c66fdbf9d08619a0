"""EVAL: the same questions to the base model and to the tuned one, and how sure the difference is.

Three systems answer every triplet greedily: the base asked directly, the base under the GRIT prompt, and the tuned
model under the GRIT prompt. Each completion becomes one row of `eval/<benchmark>.jsonl`; `summary` turns the rows into
the cells and paired differences of `eval/<benchmark>.json`. `benchmarks` asks, `statistics` doubts.
"""

import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image

from grit_lite.answer import GroundedAnswer, has_valid_format, parse
from grit_lite.backends import Backend, Generated, Request
from grit_lite.boxes import Box, f1_at, union_iou
from grit_lite.errors import OutOfMemory
from grit_lite.evaluate.benchmarks import shapes
from grit_lite.evaluate.gallery import keep_pictures, write_gallery
from grit_lite.evaluate.summary import summarise, table
from grit_lite.fitting import halving, is_out_of_memory
from grit_lite.run import replace_text, write_json
from grit_lite.scorers import is_right
from grit_lite.triplets import Triplet

__all__ = ["SYSTEMS", "evaluate", "shapes", "table", "write_gallery"]

Row = dict[str, Any]

# A text without <answer> still counts in `accuracy_lenient` if it ends in a line of at most this many words.
SHORT_ANSWER_WORDS = 6
_TAGS = ("<think>", "</think>", "<rethink>", "</rethink>", "<answer>", "</answer>")


class System(NamedTuple):
    """One way to ask one model: which prompt, and whether the adapter is on."""

    style: Literal["grounded", "direct"]
    use_adapter: bool


SYSTEMS = {
    "base_direct": System("direct", use_adapter=False),
    "base": System("grounded", use_adapter=False),
    "tuned": System("grounded", use_adapter=True),
}


def evaluate(
    backend: Backend,
    triplets: Sequence[Triplet],
    *,
    benchmark: str,
    folder: Path,
    systems: Sequence[str] = ("base_direct", "base", "tuned"),
    max_new_tokens: int,
    batch_size: int = 32,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """The summary of a benchmark, after it and every row were written as `folder`/<benchmark>.json and .jsonl.

    Decoding is greedy, so the numbers do not depend on `batch_size`, which is halved whenever it does not fit into
    memory; only then the summary has what it came to.

    Args:
        folder: `eval` of a run folder; small copies of the images go to `folder`/images (`gallery.keep_pictures`).
        systems: names from `SYSTEMS`; the last one is the one in question, the others are what it is held against.
        settings: whatever else a reader must know to repeat this; goes into the summary as it is.
        progress: told (system, triplets done, triplets in all) after each batch.

    Raises:
        OutOfMemory: not even one question at a time fits.
    """
    asking = _Asking(backend, max_new_tokens, batch_size)
    rows = {system: list(_rows(asking, triplets, system, progress)) for system in systems}
    settings = {
        "model": backend.describe(),
        "max_new_tokens": max_new_tokens,
        "decoding": "greedy",
        "prompts": {style: getattr(backend.spec.prompts, style) for style in ("direct", "grounded")},
        **({} if asking.batch_size == batch_size else {"halved_to_batch_size": asking.batch_size}),
        **(settings or {}),
    }
    result = {"benchmark": benchmark, "split": "+".join(sorted({triplet.split for triplet in triplets}))}
    result |= {"n": len(triplets), "settings": settings}
    result |= summarise(rows, clusters=[_image_key(triplet) for triplet in triplets])
    keep_pictures(rows, lambda index: triplets[index].load_image(), folder, benchmark)
    by_triplet = (row for together in zip(*rows.values(), strict=True) for row in together)
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in by_triplet)
    replace_text(folder / f"{benchmark}.jsonl", "".join(lines))
    write_json(folder / f"{benchmark}.json", result)
    return result


class _Asking:
    """Questions to one model, as many at the same time as memory allows."""

    def __init__(self, backend: Backend, max_new_tokens: int, batch_size: int) -> None:
        self.backend, self.max_new_tokens, self.batch_size = backend, max_new_tokens, batch_size

    def __call__(self, requests: Sequence[Request], *, use_adapter: bool) -> list[Generated]:
        options = {"max_new_tokens": self.max_new_tokens, "use_adapter": use_adapter}
        try:
            generated, self.batch_size = halving(
                lambda size: self.backend.generate(requests, batch_size=size, **options), self.batch_size
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(
                f"The evaluation did not fit into memory, not even one question at a time: {error}\nEnd other programs "
                "that use this memory, or lower max_pixels or max_completion_tokens in the recipe."
            ) from error
        return generated


def _rows(
    asking: _Asking,
    triplets: Sequence[Triplet],
    system: str,
    progress: Callable[[str, int, int], None] | None,
) -> Iterator[Row]:
    style, use_adapter = SYSTEMS[system]
    batch_size = asking.batch_size
    for start in range(0, len(triplets), batch_size):
        batch = triplets[start : start + batch_size]
        texts = [asking.backend.spec.prompts.render(triplet.question, style=style) for triplet in batch]
        requests = [Request((triplet.load_image(),), text) for triplet, text in zip(batch, texts, strict=True)]
        for triplet, completion in zip(batch, asking(requests, use_adapter=use_adapter), strict=True):
            yield _row(system, triplet, completion, asking.backend)
        if progress:
            progress(system, start + len(batch), len(triplets))


def _row(system: str, triplet: Triplet, completion: Generated, backend: Backend) -> Row:
    """One system's completion for one triplet, with every score that the summary is made of."""
    answer = parse(completion.text)
    boxes = _chain_boxes(answer, backend, triplet, completion)
    predicted = answer.answer
    if predicted is None and SYSTEMS[system].style == "direct":
        predicted = completion.text.strip()
    lenient = predicted if predicted is not None else short_ending(completion.text)
    return {
        "system": system,
        "id": triplet.id,
        "dataset": triplet.dataset,
        "question": triplet.question,
        "gold": triplet.answer,
        "size": list(triplet.size),
        "completion": completion.text,
        "answer": predicted,
        "boxes": [list(box) for box in boxes],
        "gold_boxes": [list(box) for box in triplet.boxes],
        "correct": is_right(predicted, triplet.answer),
        "correct_lenient": is_right(lenient, triplet.answer),
        "valid_format": has_valid_format(answer),
        "union_iou": union_iou(boxes, triplet.boxes) if triplet.boxes else None,
        "f1": f1_at(boxes, triplet.boxes, 0.5) if triplet.boxes else None,
        "tokens": completion.tokens,
        "finished": completion.finished,
    }


def _chain_boxes(answer: GroundedAnswer, backend: Backend, triplet: Triplet, completion: Generated) -> list[Box]:
    """Every box of the reasoning in pixels of the original image, good or bad: a bad one is meant to cost."""
    space = backend.spec.box_space
    return [
        space.to_pixels(box.numbers, original=triplet.size, resized=completion.resized) for box in answer.chain_boxes
    ]


def short_ending(text: str) -> str | None:
    """The last line outside any tag if it is short enough to be an answer: what a reader would take for one."""
    for tag in _TAGS:
        text = text.replace(tag, "\n\0")
    last = text.rpartition("\0")[2].strip().rpartition("\n")[2].strip()
    return last if last and len(last.split()) <= SHORT_ANSWER_WORDS else None


def _image_key(triplet: Triplet) -> Hashable:
    """Equal for questions about the same image: drawn scenes, too, are asked about more than once."""
    image = triplet.image
    return image.tobytes() if isinstance(image, Image.Image) else image
