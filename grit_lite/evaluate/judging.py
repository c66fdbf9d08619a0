"""The rows whose scorer is the judge, judged: all of a benchmark together."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grit_lite.errors import DataError
from grit_lite.evaluate.question import Question
from grit_lite.judge import RIGHT_OR_WRONG, RUBRICS, Endpoint, Item, Judge, Rubric, can_rate, rate

Row = dict[str, Any]


def judge_rows(rows: Sequence[Row], judge: Judge | None) -> dict[str, Any]:
    """Give the rows whose `scorer` is "judge" their `score` and `correct`, in place.

    A row is judged by the rubric that its `facts` name, by right_or_wrong where they name none. Its score is in the
    range of the rubric; None, and so is `correct`, where the judge abstains. A row without an answer scores 0, where an
    answer could score more.

    Returns:
        How many rows were for the judge, and how many of them it abstained from; who judged, where that is a model.
        Nothing where no row was.

    Raises:
        DataError: there is no such rubric.
        JudgeError: as `Endpoint.rate`; no row has been changed then, and what was judged is kept.
    """
    mine = [row for row in rows if row["scorer"] == "judge"]
    scores: dict[int, float | None] = {}
    for rubric in dict.fromkeys(_rubric(row) for row in mine):
        together = [row for row in mine if _rubric(row) is rubric]
        scores |= zip(map(id, together), _scores(together, judge, rubric), strict=True)
    for row in mine:
        score = scores[id(row)]
        row["score"] = score
        row["correct"] = None if score is None else score >= _rubric(row).right_from
    facts = judge.facts() if isinstance(judge, Endpoint) else {}
    return {**facts, "rows": len(mine), "abstained_rows": list(scores.values()).count(None)} if mine else {}


def proven_for(judge: Judge | None, questions: Iterable[Question]) -> Judge | None:
    """The judge; an endpoint has passed the canaries of every rubric that these questions name.

    Raises:
        DataError: there is no such rubric.
        JudgeError: it is wrong where right and wrong are plain, or it does not answer.
    """
    for rubric in dict.fromkeys(_rubric_of(question.facts) for question in questions):
        if isinstance(judge, Endpoint):
            judge.prove(rubric)
    return judge


def _rubric(row: Mapping[str, Any]) -> Rubric:
    return _rubric_of(row.get("facts", {}))


def _rubric_of(facts: Mapping[str, Any]) -> Rubric:
    name = facts.get("rubric", RIGHT_OR_WRONG.name)
    if name not in RUBRICS:
        raise DataError(f"There is no rubric {name!r} for a judge. It is one of {', '.join(RUBRICS)}.")
    return RUBRICS[name]


def _scores(rows: Sequence[Row], judge: Judge | None, rubric: Rubric) -> list[float | None]:
    given = iter(rate(judge, [_item(row) for row in rows if row["answer"]], rubric))
    silent = 0.0 if can_rate(judge, rubric) else None
    return [next(given) if row["answer"] else silent for row in rows]


def _item(row: Mapping[str, Any]) -> Item:
    shown = row.get("facts", {}).get("contents", ())
    return Item(row["question"], row["gold"], row["answer"], ", ".join(map(str, shown)))
