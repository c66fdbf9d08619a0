"""Rows of an evaluation as the gallery's script needs them: one entry per question and draw, numbers and plain text.

Everything that a row says is somebody else's: texts lose what could steer a reader's eye or terminal, boxes are cut at
the picture's edge, and a number that is none is left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from grit_lite.answer import plain
from grit_lite.boxes import Box
from grit_lite.evaluate.gallery.pictures import Album
from grit_lite.pages.completions import FAR, Piece, drawable, pieces, stated_size
from grit_lite.pages.outcomes import is_right

Row = Mapping[str, Any]

TEXT_LIMIT = 2_000  # characters of a question, an answer or a name; a completion has its own limit
IMAGE_LIMIT = 16  # of a question; no benchmark has more
_LABELS = {
    "union_iou": "union IoU",
    "union_iou_released": "released script",
    "f1": "F1@0.5",
    "matched_iou": "matched IoU",
    "n_boxes": "boxes",
    "off_image_rate": "off the image",
    "disordered_rate": "corners out of order",
}
# Numbers of a row that say the same as its verdict, or nothing to a reader.
_NO_SCORES = ("correct", "correct_lenient", "valid_format", "finished", "score", "draw", "images")


def entry(name: str, case: Mapping[str, Row], systems: Sequence[str], album: Album) -> dict[str, Any]:
    """One question, under a name of its own, with what every system made of it; null for a system that has no row."""
    first = next(iter(case.values()))
    size = stated_size(first.get("size")) or (1, 1)  # a square where a row does not say
    return {
        "id": text(name),
        "dataset": text(first.get("dataset")),
        "question": text(first.get("question")),
        "gold": text(first.get("gold")),
        "boxes": [placed(box, size) for box in drawable(first.get("gold_boxes"))],
        "picture": album.place(first.get("image")),
        "more": [album.place(name) for name in _more(first)],
        "size": size,
        "systems": [_said(case[system], size) if system in case else None for system in systems],
    }


def _more(row: Row) -> list[Any]:
    """What a row calls the pictures of its further images; None for one that it does not name."""
    named, count = row.get("more_images"), row.get("images")
    names = named[: IMAGE_LIMIT - 1] if isinstance(named, list) else []
    unnamed = count - 1 - len(names) if isinstance(count, int) else 0
    return [*names, *[None] * min(unnamed, IMAGE_LIMIT - 1 - len(names))]


def _said(row: Row, size: Sequence[float]) -> dict[str, Any]:
    boxes = drawable(row.get("boxes"))
    completion = row.get("completion")
    completion = completion if isinstance(completion, str) else ""
    return {
        "correct": is_right(row),
        "lenient": bool(row.get("correct_lenient")),
        "valid": bool(row.get("valid_format")),
        "cut": row.get("finished") is False,
        "answer": None if row.get("answer") is None else text(row["answer"]),
        "error": text(row["error"]) if row.get("error") else None,
        "boxes": [placed(box, size) for box in boxes],
        "blocks": blocks(pieces(completion, boxes)),
        "scores": (measured := scores(row)),
        "overlap": dict(measured).get(_LABELS["union_iou"]),
        "tokens": dict(measured).get("tokens"),
    }


def text(value: Any) -> str:
    """A value as text without controls and not too long."""
    said = plain(str(value)) if value is not None else ""
    return said if len(said) <= TEXT_LIMIT else f"{said[:TEXT_LIMIT]} … and {len(said) - TEXT_LIMIT:,} characters more"


def scores(row: Row) -> list[tuple[str, float]]:
    """(name that a reader sees, value) of every number of a row that measures something, in the order of the row."""
    numbers = {
        key: value
        for key, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key not in _NO_SCORES
    }
    return [
        (text(_LABELS.get(key, key.replace("_", " "))), round(value, 4))
        for key, value in numbers.items()
        if abs(value) < FAR
    ]


def placed(box: Box, size: Sequence[float]) -> list[float]:
    """[left, top, width, height] in percent of the picture, corners sorted, cut at its edge."""
    across = sorted(min(max(100 * x / size[0], 0.0), 100.0) for x in (box.x1, box.x2))
    down = sorted(min(max(100 * y / size[1], 0.0), 100.0) for y in (box.y1, box.y2))
    sides = (across[0], down[0], across[1] - across[0], down[1] - down[0])
    return [round(side, 3) for side in sides]


def blocks(cut: Sequence[Piece]) -> list[dict[str, Any]]:
    """The pieces of a completion by the tag that they stand in: {"tag": "think", "closed": true, "pieces": […]}.

    Text outside every tag has the tag "". A closing tag that closes nothing stays where it was written, as a piece.
    """
    made = [_block("")]
    for piece in cut:
        name = piece.text.strip("</>")
        if piece.kind != "tag" or piece.text not in (f"<{name}>", f"</{name}>"):
            made[-1]["pieces"].append(_written(piece))
        elif not piece.text.startswith("</"):
            made.append(_block(name))
        elif made[-1]["tag"] == name:
            made[-1]["closed"] = True
            made.append(_block(""))
        else:
            made[-1]["pieces"].append(_written(piece))
    return [block for block in made if block["tag"] or any(piece[1].strip() for piece in block["pieces"])]


def _block(tag: str) -> dict[str, Any]:
    return {"tag": tag, "closed": tag == "", "pieces": []}


def _written(piece: Piece) -> list[Any]:
    return [piece.kind, piece.text] if piece.box is None else [piece.kind, piece.text, piece.box]
