"""What is asked: each benchmark is a declaration that becomes questions.

`benchmark` is what a declaration says, `places` where its files are; `drawn`, `grit` and `public` are the declarations.
A benchmark of one's own is one more of them, in a file: "my_benchmark.py:NAME".
"""

from typing import Any

from grit_lite.errors import UsageError
from grit_lite.evaluate.benchmarks.benchmark import Benchmark, Join, Loaded, xywh, xyxy
from grit_lite.evaluate.benchmarks.drawn import DRAWN, SHAPE_KINDS, shapes
from grit_lite.evaluate.benchmarks.grit import GRIT
from grit_lite.evaluate.benchmarks.public import PUBLIC
from grit_lite.recipe import named, nearest

__all__ = ["SHAPE_KINDS", "Benchmark", "Join", "Loaded", "find", "listing", "names", "shapes", "xywh", "xyxy"]

_REGISTERED = {benchmark.name: benchmark for benchmark in (*DRAWN, *GRIT, *PUBLIC)}


def names() -> list[str]:
    """The benchmarks that come with grit-lite."""
    return list(_REGISTERED)


def find(name: str) -> Benchmark:
    """A benchmark by its name, or one of one's own as "file.py:NAME".

    Raises:
        UsageError: there is none, or what is named is something else.
        RecipeError: there is no such file or name.
    """
    if name in _REGISTERED:
        return _REGISTERED[name]
    if ":" not in name:
        raise UsageError(
            f"There is no benchmark '{name}'.{nearest(name, _REGISTERED)} grit-lite benchmarks lists them; one of your "
            "own is named as file.py:NAME."
        )
    benchmark = named(name)
    if not isinstance(benchmark, Benchmark):
        raise UsageError(f"'{name}' is a {type(benchmark).__name__}, not a Benchmark.")
    return benchmark


def listing() -> list[dict[str, Any]]:
    """What a person chooses by, one entry for each registered benchmark."""
    return [
        {
            "name": benchmark.name,
            "rows": benchmark.rows or None,
            "scorer": benchmark.scorer,
            "verified": benchmark.verified,
            "licence": benchmark.licence,
            "hub": benchmark.hub or None,
            "revision": benchmark.revision if benchmark.hub else None,
            "split": benchmark.split,
            "note": benchmark.note or None,
            "schema": benchmark.schema,
        }
        for benchmark in _REGISTERED.values()
    ]
