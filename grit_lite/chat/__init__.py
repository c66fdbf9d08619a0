"""Ask a trained model about an image and see the boxes: one question, or a conversation at a prompt.

`choice` finds the model, `asking` asks one question, `stream` makes its text safe and coloured as it comes, `picture`
draws, saves and previews, `prompt` is the conversation. The model's text is hostile data until it is plain.
"""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.text import Text

from grit_lite.answer import plain
from grit_lite.backends import open_backend
from grit_lite.chat.asking import Reply, Session, ask
from grit_lite.chat.choice import Chosen, find_model
from grit_lite.chat.picture import pixel_renderable, save_picture
from grit_lite.chat.prompt import Conversation
from grit_lite.errors import Stopped, UsageError
from grit_lite.triplets.images import open_image

__all__ = ["Chosen", "Reply", "Session", "ask", "chat", "chat_loop", "chat_once", "find_model"]


def chat(
    image_path: Path | None,
    question: str | None,
    model: str | None,
    *,
    as_json: bool = False,
    preview: bool = True,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
) -> None:
    """Answer one question, or talk until the user leaves: what `grit-lite chat` does.

    Raises:
        GritLiteError: with the exit code of its kind; what can be checked is checked before the model is loaded.
    """
    _check_request(image_path, question, as_json)
    image = open_image(image_path) if image_path else None
    chosen = find_model(model)
    if preview:
        pixel_renderable()  # now, before the user types
    backend = _open(chosen)
    tokens = max_new_tokens or chosen.recipe.max_completion_tokens
    session = Session(backend, Console(highlight=False), tokens, temperature, preview=preview)
    if question is not None and image_path is not None and image is not None:
        chat_once(session, image_path, image, question, model=chosen.name, as_json=as_json)
    else:
        chat_loop(session, image_path, has_adapter=chosen.adapter is not None)


def _check_request(image_path: Path | None, question: str | None, as_json: bool) -> None:
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if question is None and (as_json or not at_terminal):
        raise UsageError('There is no question to answer. Add --question "…", or run this in a terminal to be asked.')
    if question is not None and not question.strip():
        raise UsageError('The question is empty. Write it out: --question "What is left of the red circle?"')
    if question is not None and image_path is None:
        raise UsageError('There is no image to ask about. Name one: grit-lite chat photo.png --question "…"')


def _open(chosen: Chosen) -> Any:
    stderr = Console(stderr=True, highlight=False)
    stderr.print(Text(plain(chosen.why)), soft_wrap=True)
    with stderr.status(Text(f"Loading {plain(chosen.recipe.model)} …")):
        return open_backend(chosen.recipe, chosen.adapter)


def chat_once(
    session: Session, image_path: Path, image: Image.Image, question: str, *, model: str, as_json: bool = False
) -> None:
    """Answer one question on stdout and save the picture with its boxes; with `as_json`, print one object and no more.

    Raises:
        Stopped: Ctrl-C while the model was writing.
    """
    try:
        reply = session.ask(image, question) if as_json else session.show(image, question)
    except KeyboardInterrupt:
        raise Stopped("Stopped before the answer was complete; no picture was saved.") from None
    saved = save_picture(reply.drawn_on(image), image_path) if reply.boxes else None
    if as_json:
        # Escaped to ASCII: JSON's escapes keep every character and steer no terminal.
        print(json.dumps(as_object(reply, image_path, model, saved.path if saved else None)))
    else:
        session.say(saved.sentence if saved else "The text holds no boxes, so there is no picture to save.")


def as_object(reply: Reply, image_path: Path, model: str, picture: Path | None) -> dict[str, Any]:
    """What `--json` prints. Boxes are in pixels of the image, to a hundredth."""
    return {
        "image": str(image_path),
        "question": reply.question,
        "model": model,
        "completion": reply.completion,
        "think": reply.answer.think,
        "rethink": reply.answer.rethink,
        "answer": reply.answer.answer,
        "boxes": [[round(side, 2) for side in box] for box in reply.boxes],
        "picture": str(picture) if picture else None,
        "seconds": round(reply.seconds, 2),
    }


def chat_loop(
    session: Session, image_path: Path | None, *, has_adapter: bool, read_line: Callable[[str], str] | None = None
) -> None:
    """Talk at a prompt until the user leaves; without an image, ask for one first."""
    Conversation(session, image_path, read_line or terminal_line, has_adapter).run()


def terminal_line(prompt: str) -> str:
    """A line typed at the terminal, with editing and history where the system has them."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  importing it is what gives `input` its editing
    return input(prompt)
