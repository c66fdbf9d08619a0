"""JUDGE: whether an answer means the same as the gold one, decided by something other than the rules. Off by default.

none     no judge
rules    the rules of `scorers` decide in the judge's place: free, offline, always the same
"""

from collections.abc import Callable

from grit_lite.errors import RecipeError
from grit_lite.scorers import is_right

Judge = Callable[[str, str, str], str | None]  # (question, gold, predicted) -> the reply; None: the judge abstains

NONE, RULES = "none", "rules"


def open_judge(name: str) -> Judge | None:
    """The judge that a recipe's `judge` names; None for "none".

    Raises:
        RecipeError: there is no such judge.
    """
    if name == NONE:
        return None
    if name == RULES:
        return by_rules
    raise RecipeError(f"judge: there is no judge '{name}'. It is none or rules.")


def by_rules(question: str, gold: str, predicted: str) -> str:
    """The reply that a judge would give if it held to the rules of `scorers`."""
    return reply(is_right(predicted, gold))


def reply(score: float) -> str:
    """A verdict in the one form that every reader of replies reads alike."""
    return f'{{"score": {score:g}}}'
