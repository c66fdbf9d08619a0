"""2 REWARD: one pure function per term, three presets of terms, and plug-ins.

    grit-paper   the formulas of the paper (arXiv 2505.15879)
    grit-code    the released code (UCSB-AI/GRIT, grpo-gr/rewards.py at 44699c9), per sample, its quirks included
    grit-lite    the paper's intent with the holes closed; the default, and the only one that needs no judge

A term is a number, 0.0 where it does not apply to a row. It is None only when a judge abstains, and so is the total
then. A term sees its own sample and nothing else, so a reward never depends on the rows beside it.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np

from grit_lite.answer import FOUR_INTEGERS, GroundedAnswer, ordered_pairs, parse
from grit_lite.boxes import Size, iou_matrix
from grit_lite.errors import Diverged, GritLiteError, RecipeError
from grit_lite.judge import Endpoint, Item, Judge, stated_score
from grit_lite.recipe import nearest, resolve
from grit_lite.scorers import is_right, number
from grit_lite.triplets import COUNTING, Triplet

Plugin = Callable[[GroundedAnswer, Triplet], float]
Numbers = tuple[float, float, float, float]

JUDGE_CALLS = 3  # per sample, while the reply cannot be read
WHOLE_IMAGE = 0.95  # share of the image from which on a box points at nothing
SAME_BOX = 0.9  # IoU from which on a box is a copy of an earlier one


@dataclass(frozen=True)
class Sample:
    """A completion, read, and what it is measured against.

    Args:
        completion_ids: token ids of the completion, for the repetition term of `grit-code`.
        image_size: (width, height) in the unit that the completion writes boxes in; see `BoxSpace.extent`.
    """

    answer: GroundedAnswer
    question: str
    gold: str
    dataset: str = ""
    completion_ids: Sequence[int] | None = None
    judge: Judge | None = None
    image_size: Size | None = None

    @cached_property
    def valid_boxes(self) -> list[Numbers]:
        return valid_boxes(self.answer, self.image_size)


@dataclass(frozen=True)
class Term:
    """A reward term: its function, and the least and the most it pays."""

    function: Callable[[Sample], float | None]
    low: float
    high: float
    needs_judge: bool = False


# What all presets read


def valid_boxes(answer: GroundedAnswer, image_size: Size | None = None) -> list[Numbers]:
    """The boxes of the chain that could point at something, in the unit written, each once.

    A valid box has its corners in order, lies inside the image (without a size: has no negative number), covers less
    than 95 % of it, and is not a copy (IoU of 0.9 or more) of an earlier valid one. `answer` has already left out
    enumerations, dates and longer lists.
    """
    candidates = [box.numbers for box in answer.chain_boxes if _could_point(box.numbers, image_size)]
    copies = iou_matrix(candidates, candidates) >= SAME_BOX
    kept = np.zeros(len(candidates), dtype=bool)
    for index, copied in enumerate(copies):
        kept[index] = not (copied & kept).any()
    return [box for box, is_kept in zip(candidates, kept, strict=True) if is_kept]


def _could_point(box: Numbers, image_size: Size | None) -> bool:
    x1, y1, x2, y2 = box
    if not (0 <= x1 < x2 and 0 <= y1 < y2):
        return False
    if image_size is None:
        return True
    width, height = image_size
    return x2 <= width and y2 <= height and (x2 - x1) * (y2 - y1) < WHOLE_IMAGE * width * height


def _gold_count(sample: Sample) -> int | None:
    """The gold count of a counting row. None for other rows, and where the reference would raise."""
    if sample.dataset not in COUNTING:
        return None
    try:
        return int(sample.gold)
    except ValueError:
        return None


def _after_answer_tag(sample: Sample) -> str | None:
    """Everything behind the first `<answer>`."""
    _, tag, rest = sample.answer.text.partition("<answer>")
    return rest if tag else None


def _bleu(predicted: str, gold: str) -> float:
    """BLEU-1 with brevity penalty, as nltk has it, of texts reduced to lower-case ASCII letters and digits."""
    from nltk.translate.bleu_score import sentence_bleu

    hypothesis = _plain_words(predicted)
    # One weight for unigrams: with GRIT's (1, 0, 0, 0) the value is the same, and nltk warns about missing bigrams.
    bleu: Any = sentence_bleu([_plain_words(gold)], hypothesis, weights=(1.0,)) if hypothesis else 0.0
    return float(bleu)


def _plain_words(text: str) -> list[str]:
    return re.sub(r"[^a-zA-Z0-9\s]", " ", text).lower().split()


def _ask(
    sample: Sample, predicted: str, read: Callable[[str], float | None], unreadable: float | None = None
) -> float | None:
    """What `read` makes of the judge's reply, asking up to three times while it makes nothing of it.

    None if the judge abstains, `unreadable` after three replies that cannot be read.
    """
    assert sample.judge is not None
    for _ in range(JUDGE_CALLS):
        reply = sample.judge(sample.question, sample.gold, predicted)
        if reply is None:
            return None
        if (given := read(reply)) is not None:
            return given
    return unreadable


def loose_score(reply: str) -> float | None:
    """The number that GRIT's code reads in a judge's reply, or None where it would try again.

    It need not lie in [0, 1]: "10/10" is 1010, "-1" is 1, "The score is: 0.95" is 0.
    """
    window = re.sub(r"[^\w\s.]", "", reply.strip().lower()).split("score")[-1][:5]
    try:
        return float(re.sub(r"[^\d.]", "", window))
    except ValueError:
        return None


def verdict(reply: str) -> float | None:
    """1.0 or 0.0 for right or wrong, or None if the reply says neither plainly.

    What counts is a score in [0, 1] that the reply states as `stated_score` has it; from 0.5 on it means right.
    """
    given = stated_score(reply, highest=1)
    return None if given is None else float(given >= 0.5)


def ask_ahead(
    judge: Judge | None, terms: Iterable[Term], samples: Sequence[Sample], *, more_follow: bool = False
) -> None:
    """Have an endpoint judge together what the terms will ask of it one sample after another.

    `more_follow` and what it raises are those of `Endpoint.rate`.
    """
    if not isinstance(judge, Endpoint):
        return
    items: list[Item] = []
    noting = [replace(sample, judge=lambda *texts: items.append(Item(*texts))) for sample in samples]
    for term in terms:
        for sample in noting:
            term.function(sample)
    judge.ask_ahead(items, more_follow=more_follow)


# grit-paper: section 3 of arXiv 2505.15879


def paper_tags(sample: Sample) -> float:
    """0.5·𝟙[think pair] + 0.5·𝟙[rethink pair], the second behind the first: s_st of arXiv 2505.15879."""
    text = sample.answer.text
    think = _end_of_pair(text, "think", 0)
    rethink = _end_of_pair(text, "rethink", think or 0)
    return 0.5 * (think is not None) + 0.5 * (rethink is not None)


def _end_of_pair(text: str, tag: str, start: int) -> int | None:
    opening = text.find(f"<{tag}>", start)
    closing = text.find(f"</{tag}>", opening) if opening >= 0 else -1
    return closing if closing >= 0 else None


def _paper_boxes(sample: Sample) -> int:
    return len(FOUR_INTEGERS.findall(sample.answer.text.partition("<answer>")[0]))


def paper_boxes(sample: Sample) -> float:
    """0.5·𝟙[at least one box before the answer], a box being any four integers: s_bf of arXiv 2505.15879."""
    return 0.5 * (_paper_boxes(sample) >= 1)


def paper_count(sample: Sample) -> float:
    """0.5·𝟙[number of boxes = gold count] on counting rows: r_count of arXiv 2505.15879."""
    return 0.5 * (_gold_count(sample) == _paper_boxes(sample))


def paper_answer_judge(sample: Sample) -> float | None:
    """The judge's verdict, 0 or 1: s_GPT of arXiv 2505.15879. 0.0 without an answer, None if the judge abstains."""
    predicted = _after_answer_tag(sample)
    if sample.judge is None:
        return None
    return 0.0 if predicted is None else _ask(sample, predicted.partition("</answer>")[0].strip(), verdict)


def paper_answer_bleu(sample: Sample) -> float:
    """0.1·BLEU-1(answer, gold), the closing tag taken away: the second part of r_ans of arXiv 2505.15879."""
    predicted = _after_answer_tag(sample)
    return 0.0 if predicted is None else 0.1 * _bleu(predicted.replace("</answer>", " "), sample.gold)


# grit-code: grpo-gr/rewards.py of UCSB-AI/GRIT at 44699c9


def code_answer_judge(sample: Sample) -> float | None:
    """𝟙[judge's number > 0]; 0.0 for OVDEval rows, without `<answer>`, and after three unreadable replies
    (`gpt_score_reward`; the trainer makes the number binary). None if the judge abstains."""
    predicted = _after_answer_tag(sample)
    if sample.judge is None:
        return None
    if predicted is None or "ovd" in sample.dataset:
        return 0.0
    number_read = _ask(sample, predicted.partition("</answer>")[0].strip(), loose_score, unreadable=0.0)
    return None if number_read is None else float(number_read > 0)


def code_answer_bleu(sample: Sample) -> float:
    """0.1·BLEU-1(all text behind the first `<answer>`, gold); a closing tag counts as a word (`bleu_score_reward`)."""
    predicted = _after_answer_tag(sample)
    return 0.0 if predicted is None else 0.1 * _bleu(predicted, sample.gold)


def code_answer_tag(sample: Sample) -> float:
    """0.5·(𝟙[`<answer>` occurs] + 𝟙[it occurs once])/2 (`answer_format_reward`)."""
    times = sample.answer.text.count("<answer>")
    return 0.25 * (times >= 1) + 0.25 * (times == 1)


PAD_ID = 151643  # of Qwen's tokenizer, written into the reference
GRAM = 8  # words or tokens that must repeat


def code_repetition(sample: Sample) -> float:
    """0.5·(share of token 8-grams unlike the next − share of word 8-grams like the next) (`repetitive_reward`).

    Fewer than 8 words, or fewer than 16 ids before the first pad id, earn the full 0.5. The word share divides by
    n − 8 where only n − 15 pairs can match. Without ids the token share is taken as 1.
    """
    words = sample.answer.text.split()
    ids = _before_padding(sample.completion_ids)
    if len(words) < GRAM or (ids is not None and len(ids) < 2 * GRAM):
        return 0.5
    repeated_words = _repeats(words) / max(1, len(words) - GRAM)
    repeated_ids = _repeats(ids) / (len(ids) - 2 * GRAM + 1) if ids else 0.0
    return 0.5 * (1.0 - repeated_ids - repeated_words)


def _before_padding(completion_ids: Sequence[int] | None) -> list[int] | None:
    if completion_ids is None:
        return None
    ids = [int(token) for token in completion_ids]
    return ids[: ids.index(PAD_ID)] if PAD_ID in ids else ids


def _repeats(items: Sequence[Any]) -> int:
    """How often 8 neighbours are followed by the same 8."""
    return sum(items[at : at + GRAM] == items[at + GRAM : at + 2 * GRAM] for at in range(len(items) - 2 * GRAM + 1))


def code_boxes_and_count(sample: Sample) -> float:
    """On the text before the first `<rethink>`, 0.0 without one: 0.5·𝟙[boxes ≥ 1] + 1.0·𝟙[boxes = gold count]
    on counting rows; a box is any four integers
    (`grounded_region_specific_thinking_format_reward_think_rethink`).

    The reference asks the first row of a batch whether it counts, and raises on a gold count that is not an integer;
    here each row is asked, and such a row gets no bonus.
    """
    before, tag, _ = sample.answer.text.partition("<rethink>")
    if not tag:
        return 0.0
    found = len(FOUR_INTEGERS.findall(before))
    return 0.5 * (found >= 1) + 1.0 * (found == _gold_count(sample))


def code_think_tags(sample: Sample) -> float:
    """0.1 per tag found in order, each sought behind the last place of the one before, and 0.1 more if all four are
    there and the last think body is of 2 characters and 2 pieces between blanks (`think_and_rethink_format_reward`)."""
    text = rest = sample.answer.text
    found = 0
    for tag in ("<think>", "</think>", "<rethink>", "</rethink>"):
        if tag in rest:
            found += 1
            rest = rest[rest.rfind(tag) + len(tag) :]
    body = text[text.rfind("<think>") + len("<think>") :].partition("</think>")[0].strip()
    is_said = len(body) >= 2 and " " in re.sub(r"[^a-zA-Z0-9\s]", " ", body)
    return 0.1 * (found + (found == 4 and is_said))


# grit-lite


def tags(sample: Sample) -> float:
    """0.5 for one `<think>…</think>`, 0.5 more for one `<rethink>…</rethink>` behind it, each with text in it, before
    the answer: the paper's s_st, where repeated, empty or misplaced tags earn nothing."""
    return 0.5 * sum(ordered_pairs(sample.answer))


def boxes(sample: Sample) -> float:
    """0.5 if the chain holds at least one valid box (`valid_boxes`): the paper's s_bf, with boxes that can point."""
    return 0.5 * bool(sample.valid_boxes)


def count(sample: Sample) -> float:
    """0.5 on counting rows if the number of valid distinct boxes is the gold count and above 0: the paper's r_count
    without its price for pointing at nothing."""
    if sample.dataset not in COUNTING:
        return 0.0
    found = len(sample.valid_boxes)
    return 0.5 * (found > 0 and number(str(found), sample.gold) == 1.0)


def answer(sample: Sample) -> float | None:
    """1.0 if the answer is right by the rules of `scorers`, else what the judge says, 0 or 1, if there is one.

    0.0 without an answer; None if the judge abstains. The paper's s_GPT, decided by rules where rules suffice.
    """
    predicted = sample.answer.answer
    if not predicted:
        return 0.0
    if is_right(predicted, sample.gold):
        return 1.0
    return 0.0 if sample.judge is None else _ask(sample, predicted, verdict)


# Presets. Every term has weight 1, as in the reference.

PRESETS: dict[str, dict[str, Term]] = {
    "grit-paper": {
        "tags": Term(paper_tags, 0.0, 1.0),
        "boxes": Term(paper_boxes, 0.0, 0.5),
        "count": Term(paper_count, 0.0, 0.5),
        "answer_judge": Term(paper_answer_judge, 0.0, 1.0, needs_judge=True),
        "answer_bleu": Term(paper_answer_bleu, 0.0, 0.1),
    },
    "grit-code": {
        "answer_judge": Term(code_answer_judge, 0.0, 1.0, needs_judge=True),
        "answer_bleu": Term(code_answer_bleu, 0.0, 0.1),
        "answer_tag": Term(code_answer_tag, 0.0, 0.5),
        "repetition": Term(code_repetition, -0.5, 0.5),
        "boxes_and_count": Term(code_boxes_and_count, 0.0, 1.5),
        "think_tags": Term(code_think_tags, 0.0, 0.5),
    },
    "grit-lite": {
        "tags": Term(tags, 0.0, 1.0),
        "boxes": Term(boxes, 0.0, 0.5),
        "count": Term(count, 0.0, 0.5),
        "answer": Term(answer, 0.0, 1.0),
    },
}
DEFAULT_PRESET = "grit-lite"


def preset_terms(preset: str) -> dict[str, Term]:
    """The terms of a preset by name.

    Raises:
        RecipeError: there is no such preset.
    """
    if preset not in PRESETS:
        raise RecipeError(f"There is no reward preset '{preset}'.{nearest(preset, PRESETS)} {_known_presets()}")
    return PRESETS[preset]


def _known_presets() -> str:
    return f"The presets are {', '.join(PRESETS)}; single terms and plug-ins go into a mapping with a weight each."


def score(
    completion: str,
    *,
    question: str,
    answer: str,
    dataset: str = "",
    preset: str = DEFAULT_PRESET,
    completion_ids: Sequence[int] | None = None,
    judge: Judge | None = None,
    image_size: Size | None = None,
) -> dict[str, float | None]:
    """What a preset pays for a completion: one entry per term, and "total", their sum.

    Args:
        answer: the gold answer.
        judge: (question, gold, predicted) -> the judge's raw reply, called up to three times, or None where it
            abstains. Without one, a term that needs a judge is None, and so is the total.
        image_size: (width, height) in the unit the completion writes: resized pixels, or (1000, 1000).

    Raises:
        RecipeError: there is no such preset.
    """
    sample = Sample(parse(completion), question, str(answer), dataset, completion_ids, judge, image_size)
    values = {name: term.function(sample) for name, term in preset_terms(preset).items()}
    return values | {"total": _total(values, dict.fromkeys(values, 1.0))}


def _total(values: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    known = [weights[name] * value for name, value in values.items() if value is not None]
    return math.fsum(known) if len(known) == len(values) else None


# A recipe's rewards


def load_plugin(reference: str) -> Plugin:
    """The function `(GroundedAnswer, Triplet) -> float` named as `package.module:function` or `file.py:function`; a
    file is sought from the current folder.

    Raises:
        RecipeError: there is no such file, module or function, or loading it fails.
    """
    try:
        return resolve(reference)
    except GritLiteError:
        raise
    except Exception as error:  # somebody else's module: whatever it raises is a fact about the recipe
        raise RecipeError(
            f"The reward plug-in '{reference}' could not be loaded: {type(error).__name__}: {error}. Correct its file."
        ) from error


@dataclass(frozen=True)
class Scorer:
    """What a recipe pays: preset terms and plug-ins by name, with a weight each.

    Called with a completion and its triplet, it gives every term as it is, without its weight, and "total", the
    weighted sum: None if a judge abstains.
    """

    terms: Mapping[str, Term | Plugin]
    weights: Mapping[str, float]
    judge: Judge | None = None

    def ask_ahead(self, completions: Sequence[str], triplets: Sequence[Triplet]) -> None:
        """Have the judge see all completions of a step at the same time, where it can, before each is scored.

        Raises:
            JudgeError: as `Endpoint.rate`, of one step of many.
        """
        pairs = zip(completions, triplets, strict=True)
        samples = [Sample(parse(text), row.question, row.answer, row.dataset) for text, row in pairs]
        terms = [term for term in self.terms.values() if isinstance(term, Term)]
        ask_ahead(self.judge, terms, samples, more_follow=True)

    def __call__(
        self,
        completion: str,
        triplet: Triplet,
        *,
        completion_ids: Sequence[int] | None = None,
        image_size: Size | None = None,
    ) -> dict[str, float | None]:
        """One entry per term, and "total".

        Raises:
            Diverged: a term is NaN or infinite.
            RecipeError: a plug-in raises, or gives something that is not a number.
        """
        parsed = parse(completion)
        sample = Sample(
            parsed, triplet.question, triplet.answer, triplet.dataset, completion_ids, self.judge, image_size
        )
        values = {
            name: term.function(sample) if isinstance(term, Term) else _call_plugin(name, term, parsed, triplet)
            for name, term in self.terms.items()
        }
        return values | {"total": _total(values, self.weights)}


def _call_plugin(name: str, plugin: Plugin, parsed: GroundedAnswer, triplet: Triplet) -> float:
    where = f"The reward plug-in '{name}', on triplet '{triplet.id}',"
    try:
        value = plugin(parsed, triplet)
    except Exception as error:  # somebody else's function: a raise is a bug there, never a reward
        raise RecipeError(f"{where} raised {type(error).__name__}: {error}. Correct the plug-in.") from error
    if not isinstance(value, Real):
        raise RecipeError(f"{where} gave {value!r}, a {type(value).__name__}. It must give a number.")
    if not math.isfinite(value):
        raise Diverged(f"{where} gave {value}. It must give a finite number; the run stops before it is learned from.")
    return float(value)


def build_scorer(rewards: str | Mapping[str, float], judge: Judge | None = None) -> Scorer:
    """The scorer of a recipe's `rewards`.

    Args:
        rewards: a preset's name; or terms by weight. A term is one of `grit-lite` ("answer"), one of any preset
            ("grit-code/repetition"), or a plug-in ("file.py:function", "package.module:function").

    Raises:
        RecipeError: an unknown name, a weight that is no finite number, or a term that needs a judge without one.
    """
    if isinstance(rewards, str):
        found: dict[str, Term | Plugin] = dict(preset_terms(rewards))
        weights = dict.fromkeys(found, 1.0)
    else:
        found = {name: _find_term(name) for name in rewards}
        weights = {name: _weight(name, weight) for name, weight in rewards.items()}
    if not found:
        raise RecipeError("rewards is empty: name a preset, or at least one term with its weight.")
    judged = [name for name, term in found.items() if isinstance(term, Term) and term.needs_judge]
    if judged and judge is None:
        raise RecipeError(
            f"rewards: {rewards!r} has the term {judged[0]}, which needs a judge, and none is configured. Name one: "
            "judge=rules (--set judge=rules; --judge rules of `grit-lite rewards`), where the rules of grit-lite "
            "decide, or the name of a model at an OpenAI-style endpoint (OPENAI_BASE_URL, OPENAI_API_KEY). Or use the "
            f"preset {DEFAULT_PRESET}, which needs no judge."
        )
    return Scorer(found, weights, judge)


def _find_term(name: str) -> Term | Plugin:
    if ":" in name:
        return load_plugin(name)
    preset, slash, term = name.rpartition("/")
    terms = preset_terms(preset if slash else DEFAULT_PRESET)
    if term not in terms:
        raise RecipeError(
            f"rewards: there is no term '{name}'.{nearest(term, terms)} {preset or DEFAULT_PRESET} has "
            f"{', '.join(terms)}; a term of another preset is written preset/term, a plug-in file.py:function."
        )
    return terms[term]


def _weight(name: str, weight: object) -> float:
    if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight):
        raise RecipeError(f"rewards: the weight of '{name}' is {weight!r}. Give a finite number, such as 1.0.")
    return float(weight)
