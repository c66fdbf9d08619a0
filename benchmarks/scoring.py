"""How long scoring takes: many completions, and long texts that were made to be slow to read.

Scoring is what an evaluation does with each completion: reading it, the terms of grit-lite, the scorer, and the numbers
of its boxes. The exit code is 1 if a limit is missed. Seconds are of the processor, so that other programs matter
little; run it with OMP_NUM_THREADS=1.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from grit_lite.answer import parse
from grit_lite.boxes import BoxSpace
from grit_lite.evaluate.grounding import grounding, referred_box, released_union_iou
from grit_lite.rewards import DEFAULT_PRESET, Sample, preset_terms
from grit_lite.scorers import MAX_CHARS, SCORERS, score
from grit_lite.scorers.wording import bare

COMPLETIONS, SECONDS = 10_000, 5.0
CHUNK = 500
KIBIBYTES, MILLISECONDS = (16, 32, 64), 50.0
TIMES_AS_LONG = 2.5  # for twice the text, on average; linear is 2, quadratic 4
SIZE, SEEN = (640, 480), (504, 364)
GOLD_BOXES = ((320.0, 240.0, 640.0, 480.0), (10.0, 20.0, 110.0, 220.0))
GOLDS = {
    "number": "3",
    "yes_no": "yes",
    "choice": "B",
    "phrase": "red kite",
    "mathvista": "1.45",
    "slake": "liver, heart",
}


class Row(NamedTuple):
    """A completion, the scorer that is asked about it, and its gold answer."""

    completion: str
    scorer: str
    gold: str


def score_row(row: Row) -> dict[str, Any]:
    """Every number of one completion, of which nothing was seen before."""
    bare.cache_clear()
    answer = parse(row.completion)
    sample = Sample(answer, "How many kites?", row.gold, "tallyqa", image_size=SEEN)
    space = BoxSpace.RESIZED_PIXELS
    facts = {"box": referred_box(answer, space, SIZE, SEEN), "answer_type": "float", "precision": 2}
    return {
        **{name: term.function(sample) for name, term in preset_terms(DEFAULT_PRESET).items()},
        **grounding([box.numbers for box in answer.chain_boxes], GOLD_BOXES, space, SIZE, SEEN),
        "union_iou_released": released_union_iou(row.completion, GOLD_BOXES, space, SIZE),
        "score": score(row.scorer, answer.answer, row.gold, facts),
    }


ANSWERS = {
    "number": ("3", "three kites", "There are 3.", "\\boxed{3}", "2 or 3", "12"),
    "yes_no": ("yes", "No, it is not.", "**Yes**", "yes or no", '{"answer": "yes"}'),
    "choice": ("B", "(b) a dog", "The answer is B", "A or B", "a dog"),
    "phrase": ("red kite", "It is a red kite.", "a blue kite", "\\text{red kite}", "kites"),
    "mathvista": ("1.449", "1.4 cm²", "$1.45$", "about one"),
    "slake": ("heart and liver", "Liver.", "liver, heart, lung"),
}


def ordinary(count: int, seed: int = 0) -> list[Row]:
    """Completions in GRIT's form, of 60 to 250 words with up to six boxes, with answers of every kind."""
    draw = random.Random(seed)
    return [_ordinary(draw, draw.choice(list(GOLDS))) for _ in range(count)]


WORDS = ("the", "kite", "is", "above", "a", "dog", "near", "some", "trees", "and", "left", "of", "it", "two", "more")


def _ordinary(draw: random.Random, scorer: str) -> Row:
    boxes = [
        [x := draw.randrange(400), y := draw.randrange(300), x + draw.randrange(9, 99), y + 50]
        for _ in range(draw.randrange(7))
    ]
    told = [json.dumps({"bbox_2d": box, "label": draw.choice(WORDS)}) for box in boxes]
    think = [*draw.choices(WORDS, k=draw.randrange(30, 150)), *told]
    draw.shuffle(think)
    rethink = " ".join(draw.choices(WORDS, k=draw.randrange(30, 100)))
    answer = draw.choice(ANSWERS[scorer])
    text = f"<think> {' '.join(think)} </think>\n<rethink> {rethink} </rethink>\n<answer> {answer}"
    return Row(text, scorer, GOLDS[scorer])


def _repeated(piece: str) -> Callable[[int], str]:
    return lambda length: (piece * (length // len(piece) + 1))[:length]


def _nested(opening: str, closing: str) -> Callable[[int], str]:
    return lambda length: _repeated(opening)(length // 2) + _repeated(closing)(length - length // 2)


def _boxes(length: int) -> str:
    """Boxes that are all different, none a copy of another."""
    draw = random.Random(length)
    pieces = (
        f"[{draw.randrange(90)}, {draw.randrange(90)}, {draw.randrange(99, 504)}, {draw.randrange(99, 364)}]"
        for _ in range(length // 12)
    )
    return "".join(pieces).ljust(length)[:length]


# Each makes a text of so many characters.
HOSTILE: dict[str, Callable[[int], str]] = {
    "opening tags": _repeated("<think><rethink><answer>"),
    "answers, never closed": lambda length: ("<answer> " * (length // 9)).ljust(length),
    "closing tags": _repeated("</answer></rethink></think>"),
    "half a closing tag": _repeated("</ans"),
    "pairs of tags": _repeated("<think>a</think><rethink>b</rethink><answer>c</answer>"),
    "HTML": _repeated("<b title='"),
    "square brackets": _repeated("["),
    "nested brackets": _nested("[", "]"),
    "nested braces": _nested('{"answer":', "}"),
    "boxed, nested": _nested("\\boxed{", "}"),
    "boxes": _boxes,
    "the same box": _repeated("[10, 20, 110, 220] "),
    "boxes in full width": _repeated("［１０，２０，１１０，２２０］"),
    "almost boxes": _repeated("[10, 20, 110, "),
    "a box of blanks": lambda length: "[10," + " " * (length - 4),
    "digits with commas": _repeated("1,"),
    "grouped digits": _repeated("1,000,"),
    "digits": _repeated("9"),
    "keys": _repeated('"bbox_2d": '),
    "almost JSON": _repeated('{"bbox_2d": [1, 2, 3, 4}, "label": "'),
    "labels": _repeated('[1, 2, 30, 40], "label": "'),
    "a long word": _repeated("x"),
    "words with apostrophes": _repeated("x'"),
    "hyphens": _repeated("twenty-"),
    "yes no": _repeated("yes no "),
    "number words": _repeated("one hundred and "),
    "options": _repeated("(A) B. "),
    "blanks": _repeated(" "),
    "line breaks": _repeated("\n"),
    "underscores": _repeated("_*`"),
    "code fences": _repeated("```json\n"),
    "terminal escapes": _repeated("\x1b]0;"),
    "invisible marks": _repeated("\u200b\u202e"),
    "entities": _repeated("&lt;"),
}
PLACES: dict[str, Callable[[str], str]] = {
    "alone": lambda text: text,
    "while thinking": lambda text: f"<think>{text}</think><rethink>so</rethink><answer>3",
    "as the answer": lambda text: f"<think>a</think><rethink>so</rethink><answer>{text}",
}


def milliseconds(work: Callable[[], Any], repeats: int) -> float:
    """The least of several, of processor time."""
    best = float("inf")
    for _ in range(repeats):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return 1000 * best


def _hostile_times(make: Callable[[int], str], wrap: Callable[[str], str], repeats: int) -> list[float]:
    times = []
    for kibibytes in KIBIBYTES:
        row = Row(wrap(make(kibibytes * 1024)), "number", "3")
        times.append(milliseconds(lambda row=row: score_row(row), repeats))
    return times


def _per_doubling(times: Sequence[float]) -> float:
    """By what the time is multiplied when the text is twice as long."""
    return (times[-1] / times[0]) ** (1 / (len(times) - 1))


def _verdict(good: bool) -> str:
    return "yes" if good else "[red]no[/]"


def hostile_table(repeats: int) -> tuple[Table, bool]:
    """A line for each text and place with its milliseconds, and whether all limits are kept."""
    table = Table(
        "text", "where", *(f"{size} KiB" for size in KIBIBYTES), "doubling", "within limits", title="milliseconds"
    )
    kept = True
    for name, make in HOSTILE.items():
        for place, wrap in PLACES.items():
            times = _hostile_times(make, wrap, repeats)
            ratio = _per_doubling(times)
            good = times[-1] < MILLISECONDS and ratio < TIMES_AS_LONG
            kept &= good
            table.add_row(name, place, *(f"{value:.1f}" for value in (*times, ratio)), _verdict(good))
    return table, kept


def answers_table(repeats: int) -> tuple[Table, bool]:
    """The slowest completion for each scorer, its answer among answers of the greatest length that is read at all."""
    table = Table("scorer", "slowest text", "ms", "within limits", title=f"answers of {MAX_CHARS} characters")
    kept = True
    for name in SCORERS:
        rows = {text: Row(f"<answer>{make(MAX_CHARS)}", name, GOLDS.get(name, "3")) for text, make in HOSTILE.items()}
        times = {text: milliseconds(lambda row=row: score_row(row), repeats) for text, row in rows.items()}
        slowest = max(times, key=times.__getitem__)
        good = times[slowest] < MILLISECONDS
        kept &= good
        table.add_row(name, slowest, f"{times[slowest]:.1f}", _verdict(good))
    return table, kept


def ordinary_table(count: int, repeats: int) -> tuple[Table, bool]:
    """Seconds for so many ordinary completions, held against the limit in proportion; the least of several for each
    chunk of them."""
    rows = ordinary(count)
    score_row(rows[0])  # imports
    chunks = [rows[start : start + CHUNK] for start in range(0, count, CHUNK)]
    seconds = sum(milliseconds(lambda chunk=chunk: list(map(score_row, chunk)), repeats) for chunk in chunks) / 1000
    limit = SECONDS * count / COMPLETIONS
    table = Table("completions", "seconds", "limit", "per completion, ms", "within limits")
    good = seconds < limit
    table.add_row(str(count), f"{seconds:.2f}", f"{limit:.2f}", f"{1000 * seconds / count:.3f}", _verdict(good))
    return table, good


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 0 if every limit is kept, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=__doc__)
    parser.add_argument("--completions", type=int, default=COMPLETIONS, help="how many ordinary ones")
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement; the least time counts")
    options = parser.parse_args(arguments)
    tables = [
        ordinary_table(options.completions, options.repeats),
        answers_table(options.repeats),
        hostile_table(options.repeats),
    ]
    console = Console(width=100)
    for table, _ in tables:
        console.print(table)
    return 0 if all(kept for _, kept in tables) else 1


if __name__ == "__main__":
    sys.exit(main())
