"""A benchmark as a declaration: where its rows are, how one becomes a question, how it is scored.

The rows are read without their images first, so that drawing some of them costs little; of those that are drawn the
stored images are read, and only their headers are looked at. Whoever asks the question decodes them.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any, NamedTuple

from grit_lite.boxes import Box, Numbers
from grit_lite.errors import DataError, NotFetched
from grit_lite.evaluate.benchmarks.places import (
    LOCAL,
    ImageFiles,
    Place,
    Repository,
    WebImages,
    copy_at,
    fetched,
    from_base64,
    named_labels,
    open_table,
    stored,
)
from grit_lite.evaluate.question import Question
from grit_lite.triplets.images import ImageFacts, measure, read_bytes
from grit_lite.triplets.rows import shorten
from grit_lite.triplets.sampling import sample

if TYPE_CHECKING:
    from datasets import Dataset

Row = Mapping[str, Any]
Fill = str | Callable[[Row], Any]  # a template of columns, "{question}\nAnswer yes or no.", or a function of the row

DRAW_SEED = 0


class Join(NamedTuple):
    """Images that are in a table of their own: its configuration and files, and which columns have to be equal."""

    configuration: str
    table: str
    key: str  # of the questions
    on: str  # of the images


@dataclass(frozen=True)
class Loaded:
    """Questions, and what a summary has to say of where they are from.

    Attributes:
        revision: the hub's commit; "local" for a copy of one's own.
        available: how many questions there are, of which these were drawn.
        sha256: over the questions and their images.
    """

    questions: list[Question]
    revision: str
    available: int
    sha256: str


class _Spot(NamedTuple):
    """Where a question is: its table, its row there, and its place in a list of that row; and what it is drawn by."""

    configuration: str
    row: int
    element: int | None
    dataset: str
    unit: Any


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A declaration. A text with columns in braces is filled from the row; a function is given the row.

    Args:
        hub: the dataset OWNER/NAME; `revision` its commit where one was seen, else "main".
        table: the files of its rows, with {configuration} and {split}.
        also: other files of the dataset that are needed, as patterns.
        rows: questions as published; 0 where that is not known.
        columns: those that are read. A dataset without one of them is refused.
        optional: columns with further images, which may be missing or empty.
        gold: the answer; empty where it is the first box, as text, in pixels of the upright image.
        each: a column with a list, each element of which makes a question: its values, or itself under the same name.
        keep: whether a row belongs to the benchmark at all.
        image: the columns of the images, in order; or, with `image_file`, none.
        image_file: the name of the image's file, relative to `images_in`, a folder or zip file of the dataset.
        image_address: where an image's file may be asked for, if the dataset itself leaves it with others.
        image_text: the columns hold base64.
        beside: columns that are in a JSON file beside the image's.
        boxes: the boxes of a row, [x1, y1, x2, y2] in pixels of its first image as stored; see `xyxy` and `xywh`.
        part: what a row is reported under.
        cluster: what rows that are drawn together in a bootstrap share; empty for the image's content.
        facts: what the scorer or an aggregate needs besides. Rows with the same "pair" are only drawn together.
        aggregates: names of `aggregates` beside the mean score.
        note: how its numbers differ from those published under its name; empty where nothing is known.
        schema: where the columns were seen, in words.
        verified: whether all of them were seen in the dataset's card, in its rows, or in public code that reads it.
    """

    name: str
    hub: str
    revision: str = "main"
    split: str
    configurations: tuple[str, ...] = ("",)
    table: str = "data/{split}-*"
    also: tuple[str, ...] = ()
    rows: int = 0
    columns: tuple[str, ...]
    optional: tuple[str, ...] = ()
    each: str = ""
    keep: Callable[[Row], bool] | None = None
    image: tuple[str, ...] = ("image",)
    image_file: Fill = ""
    images_in: str = ""
    image_address: Callable[[Row], Sequence[str]] | None = None
    image_text: bool = False
    beside: tuple[str, ...] = ()
    join: Join | None = None
    prompt: Fill
    gold: Fill
    boxes: Callable[[Row], Iterable[Numbers]] | None = None
    part: Fill = ""
    cluster: Fill = ""
    facts: Callable[[Row], dict[str, Any]] | None = None
    scorer: str = "rule"
    aggregates: tuple[str, ...] = ()
    licence: str
    note: str = ""
    schema: str
    verified: bool

    @property
    def caution(self) -> str:
        """What has to be said whenever it is used, in one line; often empty."""
        unseen = f"its columns were never seen in the dataset itself ({self.schema}); look at a few rows."
        said = " ".join(filter(None, (self.note, "" if self.verified else unseen)))
        return said and f"{self.name}: {said}"

    def questions(self, limit: int | None = None, source: str | Path | None = None) -> list[Question]:
        """The questions of `load`."""
        return self.load(limit, source).questions

    def load(self, limit: int | None = None, source: str | Path | None = None) -> Loaded:
        """The questions, those of the hub or of a copy.

        Args:
            limit: at most this many, equally many of each part as far as it has them; always the same ones.
            source: a copy of one's own: the dataset's folder with the hub's names, a folder of `save_to_disk`, or a
                .parquet, .jsonl or .json file.

        Raises:
            DataError: it has other columns, a row cannot be used, or there is no copy where one is named.
            NotFetched: it is not on this machine, and cannot be had now.
        """
        if self.caution:
            print(self.caution, file=sys.stderr)
        place = self.locate(source)
        tables = {name: self._table(place, name) for name in self.configurations}
        spots = [spot for name, table in tables.items() for spot in self._spots(name, table)]
        if not spots:
            raise DataError(f"{self.name} has no questions in {place.path}. Fetch it again.")
        with closing(self._images(place)) as images:
            questions = [self._question(spot, tables[spot.configuration], images) for spot in draw(spots, limit)]
        return Loaded(questions, place.revision, len(spots), digest(questions))

    def locate(self, source: str | Path | None) -> Place:
        """Its files, fetched if no copy is named. Raises as `load`."""
        if source is not None:
            return copy_at(source)
        if not self.hub:
            raise NotFetched(f"{self.name} is not on the hub; give a copy of it with --source.")
        patterns = [self._pattern(self.table, configuration) for configuration in self.configurations]
        joined = [self._pattern(self.join.table, self.join.configuration)] if self.join else []
        return fetched(Repository(self.hub, self.revision), [*patterns, *joined, *self.also])

    def _pattern(self, table: str, configuration: str) -> str:
        return table.format(configuration=configuration, split=self.split)

    def _table(self, place: Place, configuration: str) -> "Dataset":
        table = open_table(place, self._pattern(self.table, configuration), configuration, self.split)
        require_columns(self.name, table.column_names, self.columns, place)
        return table

    def _images(self, place: Place) -> "_Images":
        joined = None
        if self.join:
            pattern = self._pattern(self.join.table, self.join.configuration)
            joined = open_table(place, pattern, self.join.configuration, self.split)
            require_columns(self.name, joined.column_names, (self.join.on, *self.image), place)
        return _Images(self, ImageFiles(place, self.images_in), joined)

    def _spots(self, configuration: str, table: "Dataset") -> Iterator[_Spot]:
        pictures = () if self.image_file else (*self.image, *self.optional)
        light = table.select_columns([name for name in self.columns if name not in pictures])
        for index in range(len(light)):
            with _telling(self, configuration, index):
                spots = self._spots_of(configuration, index, named_labels(table, light[index]))
            yield from spots

    def _spots_of(self, configuration: str, index: int, whole: Row) -> list[_Spot]:
        spots = []
        for element, row in self._elements(configuration, whole):
            if self.keep is None or self.keep(row):
                pair = self.facts(row).get("pair") if self.facts else None
                unit = (configuration, index, element) if pair is None else pair
                spots.append(_Spot(configuration, index, element, fill(self.part, row), unit))
        return spots

    def _elements(self, configuration: str, row: Row) -> Iterator[tuple[int | None, Row]]:
        """The row, or one for each element of the list that it has; each knows its configuration."""
        row = {"configuration": configuration, **row}
        if not self.each:
            yield None, row
            return
        for index, element in enumerate(row[self.each] or ()):
            yield index, {**row, **(element if isinstance(element, Mapping) else {self.each: element})}

    def _question(self, spot: _Spot, table: "Dataset", images: "_Images") -> Question:
        whole = named_labels(table, table[spot.row])
        row = dict(self._elements(spot.configuration, whole))[spot.element]
        with _telling(self, spot.configuration, spot.row):
            row = {**row, **images.beside(row)}
            found = images.of(row)
            facts = measure(read(found[0]))
            boxes = tuple(_upright(self.boxes(row), facts)) if self.boxes else ()
            return Question(
                id=self._id(spot),
                text=_filled(self.prompt, row, "question"),
                gold=_filled(self.gold or (lambda _: _text(boxes)), row, "answer"),
                images=tuple(found),
                size=facts.size,
                scorer=self.scorer,
                dataset=spot.dataset or self.name,
                cluster=fill(self.cluster, row) or facts.sha256[:16],
                boxes=boxes,
                facts=self.facts(row) if self.facts else {},
            )

    def _id(self, spot: _Spot) -> str:
        ends = [spot.configuration, f"{spot.row:05d}", "" if spot.element is None else f"{spot.element:02d}"]
        return "-".join([self.name, *(end for end in ends if end)]).lower()


class _Images:
    """The images of rows, each kept once however many rows have it."""

    def __init__(self, benchmark: Benchmark, files: ImageFiles, joined: "Dataset | None") -> None:
        self.benchmark, self.files, self.joined = benchmark, files, joined
        self.web = WebImages(benchmark.name)
        self._once: dict[bytes, bytes] = {}
        self._places = {}
        if joined is not None and benchmark.join:
            keys = joined.select_columns([benchmark.join.on])[benchmark.join.on]
            self._places = {key: place for place, key in enumerate(keys)}

    def of(self, row: Row) -> list[Path | bytes]:
        """The images of a row: files, or their bytes.

        Raises:
            DataError: there is none, or one cannot be had.
        """
        if self.benchmark.image_file:
            return [self._file(row)]
        holder = self._joined(row) if self.benchmark.join else row
        values = [holder.get(name) for name in (*self.benchmark.image, *self.benchmark.optional)]
        flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
        if not (found := [self._bytes(stored(value)) for value in flat if value is not None]):
            raise DataError("it has no image")
        return found

    def _file(self, row: Row) -> Path | bytes:
        name = fill(self.benchmark.image_file, row)
        if self.benchmark.image_address and self.files.place.revision != LOCAL:
            return self.web.find(name, self.benchmark.image_address(row))
        return self.files.find(name)

    def close(self) -> None:
        self.web.close()

    def beside(self, row: Row) -> dict[str, Any]:
        if not self.benchmark.beside:
            return {}
        values = self.files.beside(fill(self.benchmark.image_file, row))
        if missing := [name for name in self.benchmark.beside if name not in values]:
            raise DataError(f"the annotation of its image has no {missing[0]!r}; it has {', '.join(values)}")
        return {name: values[name] for name in self.benchmark.beside}

    def _joined(self, row: Row) -> Row:
        key = row[self.benchmark.join.key] if self.benchmark.join else None
        if self.joined is None or key not in self._places:
            raise DataError(f"its image {shorten(key)} is not in the table of images")
        return self.joined[self._places[key]]

    def _bytes(self, value: Any) -> Path | bytes:
        if isinstance(value, str):
            value = from_base64(value) if self.benchmark.image_text else self.files.find(value)
        if not isinstance(value, bytes):
            return value
        return self._once.setdefault(sha256(value).digest(), value)


@contextmanager
def _telling(benchmark: Benchmark, configuration: str, row: int) -> Iterator[None]:
    """Says which row of which benchmark could not be used."""
    where = f"{benchmark.name}: row {row}{f' of {configuration}' if configuration else ''} cannot be used"
    try:
        yield
    except (DataError, NotFetched) as error:
        raise type(error)(f"{where}: {error}.") from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{where}: it is not as declared ({type(error).__name__}: {error}). Is it another version of the dataset?"
        ) from error


def draw(spots: Sequence[_Spot], limit: int | None) -> list[_Spot]:
    """At most `limit` of them, in their order: whole pairs, equally many of each dataset as far as it has them."""
    if limit is None or limit >= len(spots):
        return list(spots)
    units: dict[Any, list[_Spot]] = {}
    for spot in spots:
        units.setdefault(spot.unit, []).append(spot)
    firsts = [unit[0] for unit in units.values()]
    count = max(1, limit // max(map(len, units.values())))
    return [spot for first in sample(firsts, count, DRAW_SEED) for spot in units[first.unit]]


def require_columns(name: str, found: Sequence[str], needed: Iterable[str], place: Place) -> None:
    """Raises DataError for the first column that is not there."""
    if missing := [column for column in needed if column not in found]:
        raise DataError(
            f"{name} needs the column {missing[0]!r}, which {place.path} does not have; it has {', '.join(found)}. "
            "Is it another version of the dataset?"
        )


def digest(questions: Iterable[Question]) -> str:
    """The SHA-256 of questions and their images: what was asked, not where the files lie."""
    whole = sha256()
    for question in questions:
        what = [question.text, question.gold, question.boxes, question.scorer, question.dataset, dict(question.facts)]
        whole.update(f"{json.dumps([what, question.image_hashes()], sort_keys=True)}\n".encode())
    return whole.hexdigest()


def fill(template: Fill, row: Row) -> str:
    """The text that a template or a function makes of a row.

    Raises:
        DataError: a column of the template is empty.
    """
    if callable(template):
        return str(template(row))
    for _, column, _, _ in Formatter().parse(template):
        if column and not ("" if row[column] is None else str(row[column])).strip():
            raise DataError(f"its {column} is empty")
    return template.format_map(row)


def xyxy(column: str) -> Callable[[Row], Iterable[Numbers]]:
    """Boxes [x1, y1, x2, y2] of a column; one of them may stand without a list around it."""
    return lambda row: [(x1, y1, x2, y2) for x1, y1, x2, y2 in _listed(row[column])]


def xywh(column: str) -> Callable[[Row], Iterable[Numbers]]:
    """Boxes [x, y, width, height] of a column, as COCO has them."""
    return lambda row: [(x, y, x + width, y + height) for x, y, width, height in _listed(row[column])]


def _listed(boxes: Any) -> list[Numbers]:
    boxes = list(boxes or ())
    return [boxes] if boxes and isinstance(boxes[0], (int, float)) else boxes


def _upright(boxes: Iterable[Numbers], facts: ImageFacts) -> Iterator[Box]:
    """Boxes of the picture as stored, cut at its edges, as boxes of the upright one; none without area."""
    width, height = facts.stored
    for x1, y1, x2, y2 in boxes:
        box = Box(max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2))
        if box.x1 < box.x2 and box.y1 < box.y2:
            yield facts.upright_box(box)


def _text(boxes: Sequence[Box]) -> str:
    return f"[{', '.join(f'{side:.2f}' for side in boxes[0])}]" if boxes else ""


def _filled(template: Fill, row: Row, what: str) -> str:
    if not (text := fill(template, row).strip()):
        raise DataError(f"its {what} is empty")
    return text


def read(image: Path | bytes) -> bytes:
    return image if isinstance(image, bytes) else read_bytes(image)
