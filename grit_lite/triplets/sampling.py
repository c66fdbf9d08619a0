"""Which triplets to train on: as many of each dataset, chosen by a seed, the same on every machine."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Protocol, TypeVar

from grit_lite.errors import DataError, UsageError


class OfADataset(Protocol):
    """What can be drawn: a triplet, or a row that will become one."""

    @property
    def dataset(self) -> str: ...


Drawn = TypeVar("Drawn", bound=OfADataset)


def sample(triplets: Sequence[Drawn], n: int | None, seed: int) -> list[Drawn]:
    """`n` of the triplets in their order, equally many of each dataset as far as it has them; all of them for None.

    The choice depends on the seed and on a row's place within its dataset, on nothing else. Of one dataset, a larger
    share contains every smaller one.

    Raises:
        DataError: there are fewer than `n`.
        UsageError: `n` is below 1.
    """
    if n is None:
        return list(triplets)
    if n < 1:
        raise UsageError(f"{n} triplets were asked for; ask for 1 or more.")
    if n > len(triplets):
        raise DataError(
            f"{n} triplets were asked for, but the data has {len(triplets)}. Ask for {len(triplets)} or fewer "
            f"with --triplets, or for all with --set triplets=null."
        )
    places = defaultdict(list)
    for place, triplet in enumerate(triplets):
        places[triplet.dataset].append(place)
    shares = _shares({dataset: len(of_it) for dataset, of_it in places.items()}, n)
    chosen = [place for dataset, share in shares.items() for place in _draw(dataset, places[dataset], share, seed)]
    return [triplets[place] for place in sorted(chosen)]


def _shares(sizes: Mapping[str, int], n: int) -> dict[str, int]:
    """How many to take of each dataset: equal, unless one has fewer; what does not divide goes to the larger ones."""
    shares, left = {}, n
    smallest_first = sorted(sizes, key=lambda dataset: (sizes[dataset], dataset))
    for number, dataset in enumerate(smallest_first):
        shares[dataset] = min(sizes[dataset], left // (len(sizes) - number))
        left -= shares[dataset]
    return shares


def _draw(dataset: str, places: Sequence[int], share: int, seed: int) -> list[int]:
    """A hash orders them, so that no version of a random number generator can change the choice."""

    def rank(index: int) -> bytes:
        return sha256(f"{seed}/{index}/{dataset}".encode()).digest()

    return [places[index] for index in sorted(range(len(places)), key=rank)[:share]]
