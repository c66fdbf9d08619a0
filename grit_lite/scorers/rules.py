"""Four rules: does the answer say yes or no, a number, an option or a phrase, and is it the gold's?

Each takes the text inside `<answer>`, never the reasoning, and reads exactly one answer out of it or none: naming
several ("yes or no", "2 or 3") is no answer. So no text is right for two different gold answers of one kind.
"""

import re
from collections.abc import Mapping
from itertools import dropwhile
from string import ascii_uppercase
from typing import Any

from grit_lite.scorers.wording import bare, unified, without_boxes, words_of

NOTHING: Mapping[str, Any] = {}

# yes / no

_SAYS = {
    **dict.fromkeys(("yes", "yeah", "yep", "true", "correct"), True),
    **dict.fromkeys(("no", "nope", "false", "incorrect"), False),
}
# Pairs of words whose first does not answer: "no doubt", "the correct answer is".
_NO_ANSWERS = {
    ("no", "doubt"),
    *((word, noun) for word in ("correct", "true") for noun in ("answer", "option", "choice")),
}


def yes_no(predicted: str | None, gold: str) -> float:
    """1.0 if the answer says the same of yes and no as the gold, else 0.0; "true" is yes and "false" is no.

    The first word decides ("No, it is not."), unless the text takes it back; otherwise the text must say exactly one
    of the two ("The answer is yes"). "I do not know" says neither.
    """
    said = read_yes_no(predicted)
    return float(said is not None and said == read_yes_no(gold))


def read_yes_no(text: str | None) -> bool | None:
    """True for yes, False for no, None for neither or both."""
    written = [word for word in words_of(unified(text)) if word not in {'"', "'"}]
    words = list(dropwhile(lambda word: not word.isalnum(), written))
    if [word for word in words if word.isalnum()] in (["y"], ["n"]):
        return "y" in words
    said = {_SAYS[word] for position, word in enumerate(words) if word in _SAYS and not _is_aside(words, position)}
    leads = bool(words) and words[0] in _SAYS
    hedged = any(_negates(word) for word in words) and not leads
    return said.pop() if len(said) == 1 and not hedged else None


def _is_aside(words: list[str], position: int) -> bool:
    """Whether a word of yes or no is not the answer here: the "no" of "there is no dog", the "true" of "not true"."""
    after = (words[position + 1 : position + 2] or [""])[0]
    if (words[position], after) in _NO_ANSWERS:
        return True
    if position == 0:
        return False
    before = words[position - 1]
    if _negates(before):
        return True
    is_alternative = before in _SAYS or before in {"or", "and", "/", "|"}
    return words[position] == "no" and after.isalnum() and not is_alternative


def _negates(word: str) -> bool:
    return word in {"not", "cannot"} or word.endswith("n't")


# numbers

_ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = [f"{stem}teen" for stem in ("thir", "four", "fif", "six", "seven", "eigh", "nine")]
_SMALL = ["zero", *_ONES, "ten", "eleven", "twelve", *_TEENS]
_TENS = [f"{stem}ty" for stem in ("twen", "thir", "for", "fif", "six", "seven", "eigh", "nine")]
_WORTH: dict[str, int] = {word: worth for worth, word in enumerate(_SMALL)}
_WORTH |= {word: worth for worth, word in zip(range(20, 100, 10), _TENS, strict=True)}
_BELOW_100 = rf"(?:(?:{'|'.join(_TENS)})(?:[\s-](?:{'|'.join(_ONES)})\b)?|{'|'.join(reversed(_SMALL))})"
_SPELT = re.compile(rf"\b(?:{_BELOW_100}|a)\s+hundred\b(?:\s+(?:and\s+)?{_BELOW_100}\b)?|\b{_BELOW_100}\b")
# "one" as a pronoun is no number.
_PRONOUN = re.compile(r"\bno one\b|\bone (?:of|another)\b|\b(?:the|this|that|which|each|every|any|other|another) one\b")
_NOTHING = re.compile(r"\b(?:none|nothing|nobody|no(?! (?:idea|clue|answer|way)))\b")
_WITH_DIGITS = re.compile(r"[+-]?[\w.,]*+")
_ORDINAL_OR_NAME = re.compile(r"[0-9]+(?:st|nd|rd|th)|[^\W0-9].*", re.DOTALL)
# Digits, grouped or not, few enough for a float to be exact; a unit may stick to them ("5cm"), an exponent may not.
_NUMERAL = re.compile(
    r"([+-]?(?:[0-9]{1,3}(?:,[0-9]{3}){1,4}|[0-9]{1,15}|(?=\.))(?:\.[0-9]{1,15})?)(?!e[0-9])[^\W0-9_]{0,4}"
)


def number(predicted: str | None, gold: str) -> float:
    """1.0 if the answer names exactly one number and it is the gold's; in digits ("3.", "1,000", "-2.5") or words.

    "none", "nobody" or "no dogs" say 0 where no number is named.
    """
    said = read_number(predicted)
    return float(said is not None and said == read_number(gold))


def read_number(text: str | None) -> float | None:
    """The only number that the text names, the coordinates of boxes left out; None if it names none or several."""
    text = unified(without_boxes(text))
    numerals = _numerals(text)
    if numerals is None:
        return None
    named = numerals | {_spelt_out(words) for words in _SPELT.findall(_PRONOUN.sub(" ", text))}
    if not named and _NOTHING.search(text):
        return 0.0
    return named.pop() if len(named) == 1 else None


def _numerals(text: str) -> set[float] | None:
    """The numbers written in digits; None if something with digits is neither a number, nor an ordinal, nor a name."""
    tokens = [token.rstrip(".,") for token in _WITH_DIGITS.findall(text) if any(c.isdigit() for c in token)]
    found = [_NUMERAL.fullmatch(token) for token in tokens if not _ORDINAL_OR_NAME.fullmatch(token)]
    if not all(found):
        return None
    return {float(numeral[1].replace(",", "")) for numeral in found if numeral}


def _spelt_out(words: str) -> float:
    """ "twenty-one" is 21, "one hundred and five" is 105."""
    total = 0
    for word in re.split(r"[\s-]+", words):
        total = max(total, 1) * 100 if word == "hundred" else total + _WORTH.get(word, 0)
    return float(total)


# choices

_LETTER_ALONE = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
# An "A" before a word is the article, unless the word goes on about the option.
_NOT_ARTICLE = r"(?!(?<=[Aa])\s+(?!(?:or|and|nor|is|was|because)\b)[a-z])"
_LETTER_MARKED = re.compile(
    r"\(([A-Za-z])\)|(?:^|\s)([A-Za-z])(?=[.):](?:\s|$))"
    rf"|\b(?i:option|choice|answer(?:\s+is)?:?)\s+([A-Za-z])\b(?!'){_NOT_ARTICLE}"
)
_LABEL = re.compile(
    r"\W*(?:(?:the )?(?:option|choice|answer)(?: is)?:?\s+)?\(?([A-Za-z])(?:\)|\b)[\W_]*(?=\w)", re.IGNORECASE
)
_CAPITAL = re.compile(rf"(?<![\w'-])([A-Z])(?![\w'-]){_NOT_ARTICLE}")


def choice(predicted: str | None, gold: str, facts: Mapping[str, Any] = NOTHING) -> float:
    """1.0 if the answer names exactly one option and it is the gold's: "B", "(b)", "B.", "Answer: B", "B: a dog".

    Where `facts["choices"]` has the options' texts, in the order of their letters, the text of one option names it as
    well ("a dog"); a letter beside the text of another option is no answer. Without them the letter alone decides. The
    article of "A dog" is no option, and an option is never guessed from a text that is merely near to it.

    Args:
        gold: a letter, or, where `choices` are known, the text of one.
    """
    options = dict(zip(ascii_uppercase, facts.get("choices") or (), strict=False))
    said = _option(predicted, options)
    return float(said is not None and said == _option(gold, options))


def _letter_of(text: str | None, options: Mapping[str, str]) -> str | None:
    """The letter of the only option that the text says."""
    said = [letter for letter, option in options.items() if says(text, option)]
    return said[0] if len(said) == 1 else None


def _option(text: str | None, options: Mapping[str, str]) -> str | None:
    text = bare(text)
    if not options or _LETTER_ALONE.fullmatch(text):
        return _only_letter(text)
    labelled = _LABEL.match(text)
    if labelled and says(text[labelled.end() :], options.get(labelled[1].upper(), "")):
        return labelled[1].upper()
    said = _letter_of(text, options)
    if said is None:
        return _only_letter(text)
    return said if _marked_letters(text) <= {said} else None


def _only_letter(text: str | None) -> str | None:
    text = bare(text)
    alone = _LETTER_ALONE.fullmatch(text)
    if alone:
        return alone[1].upper()
    capitals = {letter for letter in _CAPITAL.findall(text) if letter != "I"}
    named = _marked_letters(text) | capitals
    return named.pop() if len(named) == 1 else None


def _marked_letters(text: str) -> set[str]:
    return {letter.upper() for found in _LETTER_MARKED.findall(text) for letter in found if letter}


# phrases

_ARTICLES = frozenset({"a", "an", "the"})
_LEAD_IN = re.compile(
    r"(?:(?:so|therefore|hence),?\s+)?(?:(?:the\s+)?(?:final\s+|correct\s+)?answer(?:\s+is|\s*:)|it\s+is|it's|this\s+is|that\s+is|"
    r"that's|there\s+is|there's|there\s+are|they\s+are|they're)\s*:?\s+"
)
_SAME = {
    "tv": "television",
    "gray": "grey",
    "couch": "sofa",
    "bike": "bicycle",
    "motorbike": "motorcycle",
    "plane": "airplane",
    "aeroplane": "airplane",
    "fridge": "refrigerator",
    "cellphone": "phone",
    "people": "person",
    "men": "man",
    "women": "woman",
    "children": "child",
    "feet": "foot",
    "teeth": "tooth",
    "mice": "mouse",
    "geese": "goose",
    "sheep": "sheep",
    "knives": "knife",
    "leaves": "leaf",
}
_SAME |= {word: str(worth) for word, worth in _WORTH.items()}
_NO_PLURAL = frozenset({"news", "glasses"})  # not more of "new" or of "glass"


def phrase(predicted: str | None, gold: str) -> float:
    """1.0 if both are the same phrase but for case, punctuation, articles, plurals, number words, a few everyday
    synonyms ("tv", "television") and a lead-in ("It is …"); a gold may list its aliases with "|"."""
    said = _phrase(predicted)
    return float(bool(said) and any(_are_the_same(said, _phrase(alias)) for alias in gold.split("|")))


def _phrase(text: str | None) -> list[str]:
    text = unified(without_boxes(text))
    lead_in = _LEAD_IN.match(text)
    words = [word for word in words_of(text[lead_in.end() if lead_in else 0 :]) if word[0].isalnum()]
    return [word.removesuffix("'s") for word in words if word not in _ARTICLES]


def _are_the_same(a: list[str], b: list[str]) -> bool:
    return len(a) == len(b) and all(_forms(ours) & _forms(theirs) for ours, theirs in zip(a, b, strict=True))


def _forms(word: str) -> set[str]:
    """The word and what it could be the plural of, synonyms under one name. Short words and "-ss" are no plurals."""
    forms = {word}
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss") and word not in _NO_PLURAL:
        forms |= {
            word[:-1],
            *([word[:-2]] if word.endswith("es") else []),
            *([word[:-3] + "y"] if word.endswith("ies") else []),
        }
    return {_SAME.get(form, form) for form in forms}


# whichever the gold calls for

_NUMBER_ALONE = re.compile(rf"{_NUMERAL.pattern}|{_SPELT.pattern}")


def rule_for(gold: str) -> str:
    """The name of the rule that a gold answer calls for: "yes_no", "number", "choice" or "phrase"."""
    words = [word for word in words_of(unified(gold)) if word.isalnum()]
    if words in (["yes"], ["no"], ["true"], ["false"]):
        return "yes_no"
    if _NUMBER_ALONE.fullmatch(unified(gold).strip(" \n.$€£%#°")) and read_number(gold) is not None:
        return "number"
    return "choice" if _LETTER_ALONE.fullmatch(gold.strip()) else "phrase"


def says(predicted: str | None, text: str) -> bool:
    """Whether the answer says what this text says, by the rule that the text calls for."""
    return RULES[rule_for(text)](predicted, text) == 1.0


RULES = {"yes_no": yes_no, "number": number, "choice": choice, "phrase": phrase}
