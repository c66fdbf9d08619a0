"""A completion as it streams: safe for a terminal, boxes in the colours of the picture."""

import re

from rich.cells import cell_len
from rich.text import Text

from grit_lite.answer import plain
from grit_lite.screen import coloured

# What may still become a box or a tag. Bounded, so that text which only looks like one is soon let go.
_UNFINISHED = re.compile(r"[\[(][^\])\n]{0,120}\Z|<[/a-z]{0,8}\Z")
_TAG = re.compile(r"</?(?:think|rethink|answer)>")


class StreamedText:
    """A completion's pieces, made safe for a terminal, each box in its colour as soon as it is complete.

    Text that may still turn out to be an escape sequence, a box or a tag is held back until that is known. What comes
    out, joined, is `plain` of all that went in.
    """

    def __init__(self) -> None:
        self._raw = ""  # not yet known to be plain
        self._safe = ""
        self._shown = 0  # characters of the safe text that were given out

    def feed(self, piece: str) -> Text:
        """The next part to print, maybe empty."""
        self._raw += piece
        if plain(self._raw + "x") == plain(self._raw) + "x":  # no escape sequence is open: it would swallow the x
            self._accept()
        held = _UNFINISHED.search(self._safe, self._shown)
        return self._release(held.start() if held else len(self._safe))

    def finish(self) -> Text:
        """What was still held back."""
        self._accept()
        return self._release(len(self._safe))

    def _accept(self) -> None:
        self._safe += plain(self._raw)
        self._raw = ""

    def _release(self, end: int) -> Text:
        start, self._shown = self._shown, end
        new = Text(self._safe[start:end])
        if "]" in new.plain or ")" in new.plain or "}" in new.plain:  # the only places where a box can end
            new = self._in_colour(start, end)
        new.highlight_regex(_TAG, "dim")
        return new

    def _in_colour(self, start: int, end: int) -> Text:
        whole = coloured(self._safe)
        whole.append(self._safe[len(whole) :])  # reading stops at a limit; showing does not
        return whole[start:end]


class WordWrap:
    """Breaks lines between words of a text that comes in parts; a terminal alone would break within them."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.column = 0

    def __call__(self, part: Text) -> Text:
        """The part with line breaks put in."""
        return Text().join(self._placed(word) for word in part.split(" ", include_separator=True))

    def _placed(self, word: Text) -> Text:
        first_line, *others = word.plain.split("\n")
        too_long = self.column + cell_len(first_line.rstrip(" ")) > self.width
        breaks = too_long and self.column > 0
        before = 0 if breaks or others else self.column
        self.column = before + cell_len(others[-1] if others else first_line)
        return Text("\n").append_text(word) if breaks else word
