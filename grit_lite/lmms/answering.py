"""A task's messages become our prompt; a completion becomes the answer to hand over, and a row of a file of ours."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from grit_lite.answer import GroundedAnswer, has_valid_format, parse, plain
from grit_lite.backends import Backend, Generated, Request
from grit_lite.errors import DataError, OutOfMemory
from grit_lite.evaluate import SYSTEMS
from grit_lite.fitting import halving, is_out_of_memory

Row = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """One document of a task: its images in order, upright RGB, and the text that the task wrote about them."""

    task: str
    document: int | str
    images: tuple[Image.Image, ...]
    text: str


def read_messages(task: str, document: int | str, messages: Sequence[Mapping[str, Any]]) -> Asked:
    """What a task asks in its messages: `role`, and a `content` of parts with a `type`.

    Images come first, as in every prompt of ours; the texts follow as the task wrote them, hints included.

    Raises:
        DataError: it is no single turn of a user with text and at least one image.
    """
    where = f"Document {document} of the task {task}"
    if [message["role"] for message in messages] != ["user"]:
        raise DataError(f"{where} is not one turn of a user. Choose tasks of a single question, without examples.")
    parts = messages[0]["content"]
    if strange := sorted({part["type"] for part in parts} - {"text", "image"}):
        raise DataError(f"{where} has {', '.join(strange)} in it. grit_lite is asked about images only.")
    images = tuple(_upright(part["url"], where) for part in parts if part["type"] == "image")
    if not images:
        raise DataError(f"{where} has no image. grit_lite is asked about images only.")
    return Asked(task, document, images, "\n".join(part["text"] for part in parts if part["type"] == "text"))


def _upright(image: Any, where: str) -> Image.Image:
    try:
        opened = image if isinstance(image, Image.Image) else Image.open(image)
        return ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, AttributeError) as error:
        raise DataError(f"{where} has an image that cannot be read: {error}") from error


def not_followed(wanted: Sequence[Mapping[str, Any]], limit: int) -> list[str]:
    """What the tasks want of generation and do not get, a sentence or two each.

    Args:
        wanted: their `generation_kwargs`.
        limit: tokens of a completion here.
    """
    said = []
    if lengths := {length for one in wanted if (length := one.get("max_new_tokens")) not in (None, limit)}:
        said.append(
            f"The tasks allow {', '.join(map(str, sorted(lengths)))} new tokens, which is about a bare answer. "
            f"grit_lite writes its reasoning before it and stops at {limit}: max_new_tokens in --model_args."
        )
    if any(one.get("do_sample") or one.get("temperature") or (one.get("num_beams") or 1) > 1 for one in wanted):
        said.append("The tasks ask for sampling or beams. grit_lite decodes greedily.")
    if ends := sorted({plain(repr(end)) for one in wanted for end in _texts(one.get("until"))}):
        said.append(
            f"The tasks end an answer at {', '.join(ends)} (until), which may stand in the midst of reasoning. "
            "grit_lite ends where the model does, and hands over the whole of what it wrote in <answer>."
        )
    return said


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def missing(rows: Sequence[Row], completions: Path) -> str:
    """What is missing in rows, where something is."""
    empty, cut = sum(not row["answer"] for row in rows), sum(not row["finished"] for row in rows)
    if not empty and not cut:
        return ""
    return (
        f"grit_lite: {empty} of {len(rows)} completions have no answer, and an empty one was handed over; {cut} were "
        f"cut off at the limit. All of them, with prompts and boxes: {plain(str(completions))}"
    )


class Answering:
    """One system of one model, asked in batches.

    Args:
        system: a name of `evaluate.SYSTEMS`.
        batch_size: halved whenever it does not fit into memory; the answers are the same.
        completions: a .jsonl file that gets a row for each completion.
    """

    def __init__(self, backend: Backend, system: str, max_new_tokens: int, batch_size: int, completions: Path) -> None:
        self.backend, self.system, self.completions = backend, system, completions
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        completions.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, batch: Sequence[Asked]) -> list[Row]:
        """The rows of a batch, already in the file; `answer` is what is to be handed over, or None.

        Raises:
            OutOfMemory: not even one question at a time fits.
        """
        style = SYSTEMS[self.system].style
        requests = [Request(one.images, self.backend.spec.prompts.render(one.text, style=style)) for one in batch]
        generated = self._generate(requests)
        rows = [self._row(*three) for three in zip(batch, requests, generated, strict=True)]
        with self.completions.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        return rows

    def _generate(self, requests: Sequence[Request]) -> list[Generated]:
        options = {"max_new_tokens": self.max_new_tokens, "use_adapter": SYSTEMS[self.system].use_adapter}
        try:
            generated, self.batch_size = halving(
                lambda size: self.backend.generate(requests, batch_size=size, **options), self.batch_size
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(f"Not even one question at a time fits into memory: {error}") from error
        return generated

    def _row(self, asked: Asked, request: Request, completion: Generated) -> Row:
        answer = parse(completion.text)
        return {
            "system": self.system,
            "task": asked.task,
            "document": asked.document,
            "question": asked.text,
            "prompt": request.text,
            "images": len(asked.images),
            "size": list(request.image.size),
            "completion": completion.text,
            "answer": self._handed_over(answer),
            "boxes": self._boxes(answer, request, completion),
            "valid_format": has_valid_format(answer),
            "tokens": completion.tokens,
            "finished": completion.finished,
        }

    def _handed_over(self, answer: GroundedAnswer) -> str | None:
        """What stands in `<answer>`; a system that is asked directly need not write the tag."""
        if answer.answer is None and SYSTEMS[self.system].style == "direct":
            return answer.text.strip()
        return answer.answer

    def _boxes(self, answer: GroundedAnswer, request: Request, completion: Generated) -> list[list[float]]:
        """The boxes of the reasoning in pixels of the first image."""
        space, size = self.backend.spec.box_space, request.image.size
        return [
            list(space.to_pixels(box.numbers, original=size, resized=completion.resized)) for box in answer.chain_boxes
        ]
