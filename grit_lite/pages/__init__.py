"""PAGES: what every HTML page of grit-lite shares: its look, its words for numbers, and how foreign text gets into it.

All text passes `plain` and jinja2's escaping on its way into a page, because questions, answers and completions are
other people's words.
"""

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from grit_lite.answer import plain
from grit_lite.pages.wording import number


def environment(folder: Path) -> jinja2.Environment:
    """Templates of `folder` and the shared ones of this package; `{{ text }}` is escaped and freed of controls."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_without_controls,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["number"] = number
    return made


def _without_controls(value: Any) -> Any:
    # A Markup is the output of one of the template's own macros, whose parts came through here already.
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value
