"""Rows as they come, before their image is opened: one line of JSONL or one row of a dataset, checked field by field.

A `RawRow` is what was read, a `Row` is what it has to be, a `BadRow` is where and why it is not. Paths of images never
lead out of the folders they are relative to.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints, ValidationError

from grit_lite.answer import plain
from grit_lite.errors import DataError

MAX_LINE_BYTES = 1024 * 1024

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Numbers = Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used; as text, safe for a terminal, it is `file:line: reason`."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return plain(f"{self.file}:{self.line}: {self.reason}")


@dataclass(frozen=True)
class RawRow:
    """What was read, under GRIT's names. Relative image paths are looked for in `roots`, in this order."""

    file: str
    line: int
    values: Mapping[str, Any]
    roots: tuple[Path, ...]

    def bad(self, reason: object) -> BadRow:
        return BadRow(self.file, self.line, str(reason))


class Row(BaseModel):
    """GRIT's schema. Other keys are ignored."""

    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)

    question: Text
    answer: Text | int | FiniteFloat
    image: Text | bytes | Path
    width: FiniteFloat | None = None
    height: FiniteFloat | None = None
    bboxs: list[Numbers] = []
    dataset: Text
    split: Text


FIELDS = tuple(Row.model_fields)
_SYNONYMS = {"boxes": "bboxs", "bboxes": "bboxs"}
_WHAT_IT_IS = {
    "question": 'a text such as "How many dogs are there?"',
    "answer": "a text or a number",
    "image": "the path of an image file, relative to the data",
    "width": "the image's width in pixels, or left out",
    "height": "the image's height in pixels, or left out",
    "bboxs": "[[x1, y1, x2, y2], …] in pixels, or left out",
    "dataset": 'a name such as "tallyqa", or left out',
    "split": 'a name such as "train", or left out',
}


def read_jsonl(path: Path, columns: Mapping[str, str]) -> Iterator[RawRow | BadRow]:
    """Every row of a JSONL file. Blank lines, a byte order mark and Windows line ends are fine.

    Args:
        columns: GRIT's name -> the name in this file, where they differ.

    A row that names no dataset belongs to one called after the file, and a row that names no split to "train".

    Raises:
        DataError: the file cannot be read. What is wrong with a row is its `BadRow`.
    """
    roots = (path.parent, path.parent / "images")
    for number, line in enumerate(_lines(path), start=1):
        try:
            if (values := _parse_line(line)) is not None:
                values = {"dataset": path.stem, "split": "train"} | to_fields(values, columns)
                yield RawRow(str(path), number, values, roots)
        except DataError as error:
            yield BadRow(str(path), number, str(error))


def to_fields(values: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A row's values under GRIT's names; what is null counts as not given.

    Raises:
        DataError: two names of one field are both used.
    """
    fields = {}
    for name, value in values.items():
        field = field_of(name, columns)
        if field is None or value is None:
            continue
        if field in fields:
            raise DataError(f'there are several keys for "{field}", one of them "{name}"; keep one')
        fields[field] = value
    return fields


def check_row(raw: RawRow, columns: Mapping[str, str]) -> Row:
    """The row with every field of the right type.

    Raises:
        DataError: all that is wrong with it, and what each field has to be.
    """
    try:
        return Row(**raw.values)
    except ValidationError as error:
        wrong = dict.fromkeys(str(problem["loc"][0]) for problem in error.errors())
        raise DataError("; ".join(_describe(field, raw.values, columns) for field in wrong)) from error


def image_path(name: str, roots: tuple[Path, ...]) -> Path:
    """The file that a row's `image` names.

    Raises:
        DataError: it is not relative, leads out of its folder, or is not there.
    """
    _refuse_foreign_path(name)
    if not roots:
        raise DataError(f"image {shorten(name)} is only a path; download the dataset and give its folder")
    for root in roots:
        path = image_inside(name, root)
        if os.path.exists(path):  # unlike Path.exists it does not raise on a name too long for the disk
            return path
    raise DataError(
        f"there is no image {shorten(name)} in {' or '.join(map(str, roots))}; put it there or correct the path"
    )


def image_inside(name: str, root: Path) -> Path:
    """Where a row's `image` would lie in a folder, whether it is there or not.

    Raises:
        DataError: it is not relative, or leads out of the folder.
    """
    _refuse_foreign_path(name)
    try:
        path = (root / name).resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError is how Python 3.11 reports a loop of links
        raise DataError(f"image {shorten(name)} cannot be followed ({error})") from error
    if not path.is_relative_to(root.resolve()):
        raise DataError(f"image {shorten(name)} is a link that leads out of {root}; put the image itself there")
    return path


def row_id(raw: RawRow) -> str:
    """A name of the row that is the same every time, safe as a file name: its file's name and its line."""
    stem = Path(raw.file).stem
    safe = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_-") else "-" for letter in stem)
    safe = safe.lower()[:40]
    if safe != stem:  # two names may become one; and on some systems "A" and "a" are one file
        safe = f"{safe}-{sha256(stem.encode(errors='surrogateescape')).hexdigest()[:6]}"
    return f"{safe}-{raw.line:05d}"


def shorten(value: object) -> str:
    """A value as it can be shown inside a message: no line breaks, no terminal escapes, at most 60 characters."""
    text = ascii(value) if isinstance(value, bytes) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of at most `MAX_LINE_BYTES` + 1 bytes; what a longer one has beyond that is passed over."""
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                yield line
                while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Check its permissions.") from error


def _parse_line(line: bytes) -> dict[str, Any] | None:
    """The object on a line; None where the line is blank."""
    if len(line) > MAX_LINE_BYTES:
        raise DataError(f"the line is longer than {MAX_LINE_BYTES:,} bytes; a row names its image by path")
    text = _decode(line)
    if not text.strip():
        return None
    try:
        values = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON at column {error.colno}: {error.msg}. Write one object {{…}} per line") from error
    except ValueError as error:  # Python reads no integer of more than 4,300 digits
        raise DataError("a number in it has thousands of digits") from error
    except RecursionError as error:
        raise DataError("not a row: its brackets are nested too deeply") from error
    if not isinstance(values, dict):
        raise DataError(f"a row is one JSON object {{…}} per line; this is {shorten(values)}")
    return values


def _decode(line: bytes) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte, column = line[error.start], error.start + 1
        raise DataError(f"not UTF-8 (byte 0x{byte:02x} at column {column}); save the file as UTF-8") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"the key {shorten(twice)} is there twice; keep one")
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise DataError(f"{name} is not a number that JSON has; write a finite one or leave the key out")


def _finite(text: str) -> float:
    if (value := float(text)) in (float("inf"), float("-inf")):
        raise DataError(f"{shorten(text)} is too large for a number")
    return value


def field_of(name: str, columns: Mapping[str, str]) -> str | None:
    """GRIT's name of a key; None for a key that is not read."""
    for field, column in columns.items():
        if name == column:
            return field
    field = _SYNONYMS.get(name, name)
    return field if field in FIELDS and field not in columns else None


def _describe(field: str, values: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    name, what = columns.get(field, field), _WHAT_IT_IS[field]
    if field not in values:
        return f'no "{name}"; add {what}'
    return f'"{name}" is {shorten(values[field])}; it has to be {what}'


def _refuse_foreign_path(name: str) -> None:
    windows = PureWindowsPath(name)
    if "://" in name:
        raise DataError(f"image {shorten(name)} is an address; download it and give the path of the file")
    if name.startswith("/") or windows.drive or windows.root:
        raise DataError(f"image {shorten(name)} is an absolute path; give one relative to the data")
    if "\\" in name or not name.isprintable():
        raise DataError(f"image {shorten(name)} has a backslash or an unprintable letter; write folders as a/b.png")
    if ".." in windows.parts:
        raise DataError(f"image {shorten(name)} leads out of its folder; put the image beside the data")
