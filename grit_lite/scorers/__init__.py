"""Is this answer right? One pure function per kind of answer, shared by rewards and evaluation.

A scorer takes the answer as it was parsed (None if there is none) and the gold answer, and gives 1.0 or 0.0; some take
facts about the question besides. None of them raises on any text of a model, and each takes a fixed time at most.
"""

from collections.abc import Callable, Mapping
from typing import Any

from grit_lite.errors import RecipeError
from grit_lite.recipe import nearest
from grit_lite.scorers.benchmarks import box, exact, mathvista, relaxed, slake
from grit_lite.scorers.rules import NOTHING, RULES, choice, number, phrase, read_number, read_yes_no, rule_for, yes_no
from grit_lite.scorers.wording import MAX_CHARS

__all__ = [
    "MAX_CHARS",
    "SCORERS",
    "box",
    "choice",
    "exact",
    "is_right",
    "mathvista",
    "number",
    "phrase",
    "read_number",
    "read_yes_no",
    "relaxed",
    "rule_for",
    "score",
    "slake",
    "yes_no",
]


def rule(predicted: str | None, gold: str, facts: Mapping[str, Any] = NOTHING) -> float:
    """The rule that the gold answer calls for; `facts["choices"]` are the options where it is a letter."""
    name = rule_for(gold)
    return choice(predicted, gold, facts) if name == "choice" else RULES[name](predicted, gold)


def is_right(predicted: str | None, gold: str) -> bool:
    """Whether the answer is right by the rule that its gold answer calls for; a gold may list its aliases with "|"."""
    return score("rule", predicted, gold) == 1.0


# Each can be called as (predicted, gold); those of _WITH_FACTS take facts as a third.
SCORERS: dict[str, Callable[..., float]] = {
    **RULES,
    "rule": rule,
    "exact": exact,
    "relaxed": relaxed,
    "mathvista": mathvista,
    "slake": slake,
    "box": box,
}
_WITH_FACTS = frozenset({"choice", "rule", "mathvista", "box"})


def score(name: str, predicted: str | None, gold: str, facts: Mapping[str, Any] = NOTHING) -> float:
    """What the scorer of this name gives: 1.0 if the answer is right for one of the golds between "|", else 0.0.

    A gold that is itself one of the choices is one gold, whatever is in it: "|x|" does not list aliases.

    Args:
        facts: what the question brings besides its gold answer: `choices`, `answer_type`, `precision`, `box`.

    Raises:
        RecipeError: there is no such scorer.
    """
    if name not in SCORERS:
        raise RecipeError(f"There is no scorer '{name}'.{nearest(name, SCORERS)} The scorers are {', '.join(SCORERS)}.")
    more = (facts,) if name in _WITH_FACTS else ()
    golds = [gold] if gold in (facts.get("choices") or ()) else gold.split("|")
    return max(SCORERS[name](predicted, alias, *more) for alias in golds)
