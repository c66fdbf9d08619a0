"""A conversation at a prompt: questions about an image, one at a time, and a few commands."""

import difflib
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from PIL import Image

from grit_lite.answer import plain
from grit_lite.chat.asking import Reply, Session
from grit_lite.chat.picture import save_as, save_picture
from grit_lite.errors import GritLiteError, UsageError
from grit_lite.triplets.images import open_image

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
HELP = {
    "/image": "/image PATH   ask about another image; dropping the file on the terminal does the same",
    "/save": "/save [PATH]  save the last picture with its boxes, beside the image or as PATH",
    "/base": "/base         switch between the tuned model and the base model it came from",
    "/help": "/help         this list",
    "/quit": "/quit         leave; so does Ctrl-D. Ctrl-C stops an answer",
}


class Photo(NamedTuple):
    """The image that is asked about, and where it lies."""

    path: Path
    image: Image.Image


class Conversation:
    """Reads lines and answers them until the user leaves.

    Args:
        read_line: what `input` is: takes the prompt, returns a line, raises EOFError at the end.
        has_adapter: whether there is a tuned model to switch to and from.
    """

    def __init__(
        self, session: Session, image_path: Path | None, read_line: Callable[[str], str], has_adapter: bool
    ) -> None:
        self.session = session
        self.read_line = read_line
        self.has_adapter = has_adapter
        self.first_image = image_path
        self.photo: Photo | None = None
        self.last: tuple[Photo, Reply] | None = None

    def run(self) -> None:
        self._say("Ask a question about the image. /help lists the commands, Ctrl-D leaves.", "dim")
        if self.first_image is not None:
            self._guarded(lambda path=self.first_image: self._open(path))
        while (line := self._next_line()) not in (None, "/quit"):
            if line:
                self._guarded(lambda line=line: self._handle(line))

    def _next_line(self) -> str | None:
        """The next line; empty after Ctrl-C, None at the end of the input."""
        try:
            return self.read_line("> " if self.photo else "image> ").strip()
        except EOFError:
            self._say("")
            return None
        except KeyboardInterrupt:
            self._say("\nCtrl-D or /quit leaves.", "dim")
            return ""

    def _guarded(self, action: Callable[[], None]) -> None:
        """Whatever goes wrong with one line is said, and the conversation goes on."""
        try:
            action()
        except KeyboardInterrupt:
            self._say("\nStopped.", "yellow")
        except GritLiteError as error:
            self._say(f"error: {error}", "red")

    def _handle(self, line: str) -> None:
        if _is_image_file(line):
            self._open(typed_path(line))
        elif line.startswith("/"):
            command, _, rest = line.partition(" ")
            self._carry_out(command, rest.strip())
        elif self.photo is None:
            self._open(typed_path(line))
        else:
            self.last = (self.photo, self.session.show(self.photo.image, line))

    def _carry_out(self, command: str, rest: str) -> None:
        actions = {"/image": self._use_image, "/save": self._save, "/base": self._toggle_base, "/help": self._help}
        if command not in actions:
            close = difflib.get_close_matches(command, HELP, n=1)
            hint = f"Did you mean {close[0]}? " if close else ""
            raise UsageError(f"There is no command {command}. {hint}/help lists them all.")
        actions[command](rest)

    def _use_image(self, rest: str) -> None:
        if not rest:
            raise UsageError("Say which image: /image PATH.")
        self._open(typed_path(rest))

    def _open(self, path: Path) -> None:
        image = open_image(path)
        self.photo = Photo(path, image)
        self._say(f"{path}: {image.width} × {image.height} pixels", "dim")
        self.session.show_picture(image, (), lambda: image)

    def _save(self, rest: str) -> None:
        if self.last is None:
            raise UsageError("There is no picture to save yet: ask a question first.")
        photo, reply = self.last
        picture = reply.drawn_on(photo.image)
        if rest:
            self._say(f"Picture: {save_as(picture, typed_path(rest))}")
        else:
            self._say(save_picture(picture, photo.path).sentence)

    def _toggle_base(self, rest: str) -> None:
        if not self.has_adapter:
            raise UsageError("There is only the base model here: it was opened without an adapter.")
        self.session = self.session.with_adapter(not self.session.use_adapter)
        self._say(f"The {'tuned' if self.session.use_adapter else 'base'} model answers from here on.")

    def _help(self, rest: str) -> None:
        self._say("\n".join(HELP.values()))
        self._say("Each question stands alone: the model sees the image and that question, nothing said before.")

    def _say(self, message: str, style: str = "") -> None:
        self.session.say(plain(message), style)


def typed_path(text: str) -> Path:
    """The path in what was typed, pasted or dropped: quoted, with escaped blanks, as a file:// address, or bare."""
    if text.startswith("file://"):
        return Path(unquote(urlsplit(text).path))
    as_it_is = os.path.expanduser(text)
    return Path(as_it_is if os.path.exists(as_it_is) else os.path.expanduser(_unquoted(text)))


def _unquoted(text: str) -> str:
    try:
        return " ".join(shlex.split(text))
    except ValueError:  # a quote that is not closed: it belongs to the name
        return text


def _is_image_file(line: str) -> bool:
    path = typed_path(line)
    return path.suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(path)  # False for what cannot be a name at all
