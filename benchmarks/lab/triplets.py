"""More triplets than the twenty of the package, drawn by a seed: 5 are the first ones of 20, 20 of 50, 50 of 200."""

from itertools import chain
from pathlib import Path

from grit_lite.errors import DataError
from grit_lite.tiny.examples import Example, twenty, write_examples
from grit_lite.tiny.rows import full_chain
from grit_lite.triplets import Triplet, load

_FIRST = 1000  # of the seeds of blocks, far from that of the package's twenty; a seed has room for 2,000 triplets
_BLOCKS = 100


def draw(count: int, seed: int) -> list[Example]:
    """Counting and relation questions in turn, in blocks of twenty that are made as the package's twenty are."""
    blocks = [twenty(_FIRST + _BLOCKS * seed + block) for block in range(-(-count // 20))]
    return list(chain.from_iterable(map(_in_turn, blocks)))[:count]


def _in_turn(block: list[Example]) -> list[Example]:
    kinds = [[example for example in block if example.kind == kind] for kind in ("count", "relation")]
    return list(chain.from_iterable(zip(*kinds, strict=True)))


def write_drawn(folder: Path, count: int, seed: int) -> Path:
    """The JSONL file of the triplets that a seed draws, below `folder`."""
    return write_examples(folder / f"{count}-seed-{seed}" / "triplets.jsonl", draw(count, seed))


def embedded_with_chains() -> list[tuple[Triplet, str]]:
    """The package's twenty triplets, each with a full answer written by rule from its true boxes.

    Raises:
        DataError: the package's triplets are not those that its generator makes.
    """
    triplets, examples = load("embedded").triplets, twenty()
    if [triplet.question for triplet in triplets] != [example.asked.question for example in examples]:
        raise DataError("The embedded triplets are not what their generator makes: python -m grit_lite.tiny.examples")
    chains = ["".join(text for text, _ in full_chain(example.asked)) for example in examples]
    return list(zip(triplets, chains, strict=True))
