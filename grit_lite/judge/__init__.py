"""JUDGE: whether an answer means the same as the gold one, decided by something other than the rules. Off by default.

    none     no judge
    rules    the rules of `scorers` decide in the judge's place: free, offline, always the same
    NAME     a language model at an OpenAI-style endpoint (OPENAI_BASE_URL, OPENAI_API_KEY)

A judge that has no verdict abstains; it never pays a silent zero. `rubrics` is what is asked, `pictures` the
same of a judge that sees, `replies` how what comes back is read, `endpoint` who is asked, `cache` what was said before.
"""

from collections.abc import Callable, Sequence

from grit_lite.judge.endpoint import Endpoint, from_environment, reply
from grit_lite.judge.pictures import WHICH_PICTURE, Pictures, as_sent
from grit_lite.judge.replies import stated_score
from grit_lite.judge.rubrics import MMHAL, RIGHT_OR_WRONG, RUBRICS, Item, Rubric
from grit_lite.recipe import Recipe
from grit_lite.scorers import is_right

__all__ = [
    "MMHAL",
    "RIGHT_OR_WRONG",
    "RUBRICS",
    "WHICH_PICTURE",
    "Endpoint",
    "Item",
    "Judge",
    "Pictures",
    "Rubric",
    "as_sent",
    "by_rules",
    "can_rate",
    "judge_of",
    "open_judge",
    "proven",
    "rate",
    "stated_score",
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


def proven(judge: Judge | None) -> Judge | None:
    """The judge; an endpoint has passed its canaries.

    Raises:
        JudgeError: it is wrong where right and wrong are plain, or it does not answer.
    """
    if isinstance(judge, Endpoint):
        judge.prove()
    return judge


def by_rules(question: str, gold: str, predicted: str) -> str:
    """The reply that a judge would give if it held to the rules of `scorers`."""
    return reply(is_right(predicted, gold))


def can_rate(judge: Judge | None, rubric: Rubric) -> bool:
    """Whether the judge ever has a score in a rubric: the rules know right from wrong, and nothing else."""
    return isinstance(judge, Endpoint) or (judge is not None and rubric is RIGHT_OR_WRONG)


def rate(judge: Judge | None, items: Sequence[Item], rubric: Rubric = RIGHT_OR_WRONG) -> list[float | None]:
    """The judge's score of each answer, in the range of the rubric; None where it abstains, or cannot rate.

    Raises:
        JudgeError: as `Endpoint.rate`.
    """
    if isinstance(judge, Endpoint):
        return judge.rate(items, rubric)
    if judge is None or not can_rate(judge, rubric):
        return [None] * len(items)
    replies = [judge(item.question, item.gold, item.predicted) for item in items]
    return [None if said is None else rubric.read(said) for said in replies]
