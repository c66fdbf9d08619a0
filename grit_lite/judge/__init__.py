"""JUDGE: whether an answer means the same as the gold one, decided by something other than the rules. Off by default.

    none     no judge
    rules    the rules of `scorers` decide in the judge's place: free, offline, always the same
    NAME     a language model at an OpenAI-style endpoint (OPENAI_BASE_URL, OPENAI_API_KEY)

A judge that has no verdict abstains; it never pays a silent zero. `rubrics` is what is asked, `endpoint` who is asked,
`cache` what was answered before.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from grit_lite.errors import DataError
from grit_lite.judge.endpoint import Endpoint, from_environment, reply
from grit_lite.judge.rubrics import MMHAL, RIGHT_OR_WRONG, RUBRICS, Item, Rubric, stated_scores
from grit_lite.recipe import Recipe
from grit_lite.scorers import is_right

__all__ = [
    "MMHAL",
    "RIGHT_OR_WRONG",
    "RUBRICS",
    "Asked",
    "Endpoint",
    "Item",
    "Judge",
    "Rubric",
    "by_rules",
    "judge_of",
    "open_judge",
    "rate",
    "stated_scores",
]

Judge = Callable[[str, str, str], str | None]  # (question, gold, predicted) -> the reply; None: the judge abstains

NONE, RULES = "none", "rules"


def judge_of(recipe: Recipe) -> Judge | None:
    """The judge of a recipe. Raises: as `open_judge`."""
    return open_judge(recipe.judge, budget=recipe.judge_budget, seconds=recipe.judge_seconds)


def open_judge(name: str, *, budget: int | None = None, seconds: float = 60.0) -> Judge | None:
    """The judge that a recipe's `judge` names; None for "none". Nothing is asked of it yet.

    Raises:
        RecipeError: the name is a model's, and the environment names no endpoint.
        JudgeError: the cache of an endpoint's verdicts cannot be used.
    """
    if name == NONE:
        return None
    return by_rules if name == RULES else from_environment(name, budget=budget, seconds=seconds)


def by_rules(question: str, gold: str, predicted: str) -> str:
    """The reply that a judge would give if it held to the rules of `scorers`."""
    return reply(is_right(predicted, gold))


class Asked(NamedTuple):
    """A row of a benchmark whose scorer is the judge.

    Args:
        predicted: the answer; None, where there is none, has the score 0 without being asked.
        facts: of the question: "rubric", the name of one, and "contents", what the image shows.
    """

    question: str
    gold: str
    predicted: str | None
    facts: Mapping[str, Any] = {}


def rate(judge: Judge | None, rows: Sequence[Asked]) -> list[float | None]:
    """The judge's score of each row, in the range of its rubric; None where it abstains, or where there is no judge.

    The rules know right from wrong and abstain from every other rubric.

    Raises:
        DataError: there is no such rubric.
        JudgeError: as `Endpoint.rate`.
    """
    scores: dict[int, float | None] = {}
    for name in dict.fromkeys(_rubric_of(row) for row in rows):
        places = [place for place, row in enumerate(rows) if _rubric_of(row) == name]
        scores |= zip(places, _rate(judge, [rows[place] for place in places], RUBRICS[name]), strict=True)
    return [scores[place] for place in range(len(rows))]


def _rubric_of(row: Asked) -> str:
    name = row.facts.get("rubric", RIGHT_OR_WRONG.name)
    if name not in RUBRICS:
        raise DataError(f"There is no rubric {name!r} for a judge. It is one of {', '.join(RUBRICS)}.")
    return name


def _rate(judge: Judge | None, rows: Sequence[Asked], rubric: Rubric) -> list[float | None]:
    if judge is None:
        return [None] * len(rows)
    answered = [row for row in rows if row.predicted]
    items = [Item(row.question, row.gold, row.predicted or "", _context(row)) for row in answered]
    if isinstance(judge, Endpoint):
        scores = iter(judge.rate(items, rubric))
    else:
        scores = iter([_by_call(judge, item) if rubric is RIGHT_OR_WRONG else None for item in items])
    return [next(scores) if row.predicted else 0.0 for row in rows]


def _by_call(judge: Judge, item: Item) -> float | None:
    said = judge(item.question, item.gold, item.predicted)
    return None if said is None else RIGHT_OR_WRONG.read(said)


def _context(row: Asked) -> str:
    return ", ".join(map(str, row.facts.get("contents", ())))
