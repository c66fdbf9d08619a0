"""GALLERY: every question of an evaluation on one page, with each model's boxes and reasoning, to search and to filter.

`write_gallery` reads `eval/<benchmark>.json`, its rows and their pictures, and nothing else. The page needs no network
and no other file. Its rows lie in it as JSON; `gallery.js` makes elements of them, and sets text only, never markup.
The policy in its head allows this one script and this one style, by their hashes.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from grit_lite.boxes import PALETTE
from grit_lite.errors import UsageError
from grit_lite.evaluate.gallery.entries import entry, text
from grit_lite.evaluate.gallery.pictures import KEPT_BYTES, Album, keep_pictures
from grit_lite.pages import environment
from grit_lite.pages.cases import Asked, together
from grit_lite.pages.outcomes import examples, held_against, is_right, outcome
from grit_lite.pages.table import SYSTEMS, lines
from grit_lite.run import read_rows, replace_text

__all__ = ["keep_pictures", "write_gallery"]

ENTRIES = 5_000  # on one page; a browser holds more, a reader does not
Case = Mapping[str, Mapping[str, Any]]


def write_gallery(folder: Path, benchmark: str) -> Path:
    """The path of `folder`/<benchmark>.html, written from <benchmark>.json, <benchmark>.jsonl and their pictures.

    Args:
        folder: `eval` of a run folder.

    Raises:
        UsageError: the benchmark has no results in the folder.
    """
    summary = folder / f"{benchmark}.json"
    if not summary.is_file():
        raise UsageError(
            f"There is no gallery to make of {benchmark} in {folder}: it has no {summary.name}. Evaluate first: "
            "grit-lite eval RUN"
        )
    result = json.loads(summary.read_text(encoding="utf-8"))
    html = render(result, together(read_rows(folder / f"{benchmark}.jsonl")), folder)
    path = folder / f"{benchmark}.html"
    replace_text(path, html)
    return path


def render(result: Mapping[str, Any], cases: Mapping[Asked, Case], folder: Path) -> str:
    """The page of a summary and the rows of its questions by system.

    Where questions were drawn several times, each draw is an entry of its own.
    """
    systems, album, own = list(result["systems"]), Album(folder), Path(__file__).parent
    draws, questions = len({asked.draw for asked in cases}), len({asked.id for asked in cases})
    entries = [entry(_name(asked, draws), case, systems, album) for asked, case in _chosen(cases)]
    templates = environment(own)
    style = templates.get_template("gallery.css").render(palette=PALETTE)
    script = (own / "gallery.js").read_text(encoding="utf-8")
    return templates.get_template("gallery.html.j2").render(
        benchmark={**result, "lines": lines(result)},
        systems=systems,
        titles=SYSTEMS,
        failures=failures(list(cases.values()), systems),
        datasets=sorted({item["dataset"] for item in entries}),
        without_picture=sum(item["picture"] is None for item in entries),
        asked=len(cases),
        questions=questions,
        noun=(noun := "questions" if draws < 2 else "draws"),
        entries=len(entries),
        kept_mib=KEPT_BYTES // 2**20,
        facts=facts({key: value for key, value in result.items() if key not in ("systems", "paired")}),
        data={
            "systems": [
                {"title": text(SYSTEMS.get(name, name)), "plain": _is_plain(entries, i)}
                for i, name in enumerate(systems)
            ],
            "entries": entries,
            "pictures": album.addresses,
            "sizes": album.sizes,
            "colours": len(PALETTE),
            "noun": noun,
            "against": held_against(systems),
        },
        style=Markup(style),
        script=Markup(script),
        hashes={"style": _hash(style), "script": _hash(script)},
    )


def _name(asked: Asked, draws: int) -> str:
    return asked.id if draws < 2 else f"{asked.id}, draw {asked.draw + 1}"


def _chosen(cases: Mapping[Asked, Case]) -> list[tuple[Asked, Case]]:
    """All, or as many as fit: each outcome in turn, in the order of the file."""
    items = list(cases.items())
    return [items[index] for index in sorted(examples([outcome(case) for _, case in items], ENTRIES))]


def _is_plain(entries: Sequence[Mapping[str, Any]], system: int) -> bool:
    """Whether a system wrote no tag and no box anywhere: one that was asked for the bare answer needs no picture."""
    said = [item["systems"][system] for item in entries if item["systems"][system]]
    return not any(row["boxes"] or any(block["tag"] for block in row["blocks"]) for row in said)


def failures(cases: Sequence[Case], systems: Sequence[str]) -> list[tuple[str, list[int]]]:
    """(what went wrong, how often for each system), over all questions and draws."""
    checks = {
        "no answer could be read": lambda row: row.get("answer") is None,
        "cut off at the limit of tokens": lambda row: row.get("finished") is False,
        "not scored": lambda row: is_right(row) is None,
        "failed": lambda row: bool(row.get("error")),
    }
    counted = [
        (label, [sum(check(case[name]) for case in cases if name in case) for name in systems])
        for label, check in checks.items()
    ]
    return [*counted, ("no row", [sum(name not in case for case in cases) for name in systems])]


def facts(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(name, value) of everything in a nested mapping, the names joined by colons."""
    found = []
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping) and value:
            found += facts(value, f"{name}: ")
        else:
            found.append((name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return found


def _hash(source: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"
