"""One question about one image, and what is printed of the reply."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from PIL import Image
from rich.console import Console
from rich.text import Text

from grit_lite.answer import GroundedAnswer, parse, plain
from grit_lite.backends import Backend, Request
from grit_lite.boxes import PALETTE, Box, Size, draw
from grit_lite.chat.picture import show_preview
from grit_lite.chat.stream import StreamedText, WordWrap
from grit_lite.errors import UsageError


@dataclass(frozen=True)
class Reply:
    """What came back. `boxes` are in pixels of the original image, one for each of `answer.written`, in its order.

    Attributes:
        resized: (width, height) in pixels of the image as the model saw it.
    """

    question: str
    completion: str
    answer: GroundedAnswer
    boxes: tuple[Box, ...]
    resized: Size
    seconds: float

    def drawn_on(self, image: Image.Image) -> Image.Image:
        """The image with the boxes, numbered and coloured as in the text."""
        return draw(image, self.boxes, [written.label or "" for written in self.answer.written])


def ask(
    backend: Backend,
    image: Image.Image,
    question: str,
    *,
    use_adapter: bool = True,
    max_new_tokens: int,
    temperature: float = 0.0,
    on_text: Callable[[str], None] | None = None,
) -> Reply:
    """The model's reply to one question about one image; `on_text` gets the raw pieces of its text as they come.

    Raises:
        UsageError: the question holds one of the model's own control tokens.
    """
    _refuse_control_tokens(backend, question)
    request = Request((image,), backend.spec.prompts.render(question))
    started = time.monotonic()
    pieces = []
    stream = backend.stream(request, max_new_tokens=max_new_tokens, temperature=temperature, use_adapter=use_adapter)
    # Closing it when reading is interrupted stops the model, which would otherwise go on writing unread.
    with closing(stream):  # pyright: ignore[reportArgumentType]  the stream of every backend is a generator
        for piece in stream:
            pieces.append(piece)
            if on_text:
                on_text(piece)
    seconds = time.monotonic() - started
    answer, resized = parse("".join(pieces)), backend.resized(image)
    boxes = (backend.spec.box_space.to_pixels(box, original=image.size, resized=resized) for box in answer.boxes)
    return Reply(question, "".join(pieces), answer, tuple(boxes), resized, seconds)


def _refuse_control_tokens(backend: Backend, question: str) -> None:
    for token in backend.processor.tokenizer.all_special_tokens:
        if token in question:
            raise UsageError(f"The question holds {token}, which only the program may write. Leave it out.")


@dataclass(frozen=True)
class Session:
    """What every question of a chat shares: the model, how it writes, and where its words go."""

    backend: Backend
    console: Console
    max_new_tokens: int
    temperature: float = 0.0
    use_adapter: bool = True
    preview: bool = True

    def with_adapter(self, use_adapter: bool) -> "Session":
        return replace(self, use_adapter=use_adapter)

    def ask(self, image: Image.Image, question: str, on_text: Callable[[str], None] | None = None) -> Reply:
        return ask(
            self.backend,
            image,
            question,
            use_adapter=self.use_adapter,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            on_text=on_text,
        )

    def show(self, image: Image.Image, question: str) -> Reply:
        """The reply, its text printed as it comes, then its answer and boxes, and if there are any, the picture."""
        text = StreamedText()
        wrap = WordWrap(self.console.width) if self.console.is_terminal else lambda part: part
        reply = self.ask(image, question, lambda piece: self._print(wrap(text.feed(piece))))
        self._print(wrap(text.finish()))
        self.console.print("\n")
        self.console.print(summary(reply, image.size), soft_wrap=True)
        if reply.boxes:
            self.show_picture(image, reply.boxes, lambda: reply.drawn_on(image))
        return reply

    def show_picture(self, image: Image.Image, boxes: Sequence[Box], drawn: Callable[[], Image.Image]) -> None:
        if self.preview:
            show_preview(self.console, image, boxes, drawn)

    def say(self, message: str, style: str = "") -> None:
        self.console.print(Text(plain(message), style=style), soft_wrap=True)

    def _print(self, text: Text) -> None:
        self.console.print(text, end="", soft_wrap=True)


def summary(reply: Reply, size: Size) -> Text:
    """The answer, then a line for each box: its number in the picture, its label, its place in pixels of the image."""
    lines = [_answer_line(reply.answer)]
    for index, (written, box) in enumerate(zip(reply.answer.written, reply.boxes, strict=True)):
        red, green, blue = PALETTE[index % len(PALETTE)]
        number = (f" {index + 1} ", f"bold white on rgb({red},{green},{blue})")
        place = f"x {box.x1:.0f} to {box.x2:.0f}, y {box.y1:.0f} to {box.y2:.0f}"
        place += "" if _is_in_sight(box, size) else " (outside the image)"
        lines.append(Text.assemble(number, f" {plain(written.label or 'box')}  ", (place, "dim")))
    return Text("\n").join(lines)


def _answer_line(answer: GroundedAnswer) -> Text:
    if answer.answer is None:
        return Text("The model wrote no <answer>.", style="yellow")
    return Text.assemble(("Answer: ", "dim"), (" ".join(plain(answer.answer).split()), "bold"))


def _is_in_sight(box: Box, size: Size) -> bool:
    (left, right), (top, bottom) = sorted((box.x1, box.x2)), sorted((box.y1, box.y2))
    return left < size[0] and right > 0 and top < size[1] and bottom > 0
