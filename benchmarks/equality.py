"""Nothing is timed before it is known to be equal; what is not is named, with the numbers of both sides."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

CLOSE = 1e-5  # relative; what float32 loses by another order of summation is an order of magnitude less


class Unequal(Exception):
    """Stock and ours do not compute the same."""


def same_tokens(what: str, stock: Sequence[Sequence[int]], ours: Sequence[Sequence[int]]) -> None:
    if len(stock) != len(ours):
        raise Unequal(f"{what}: stock has {len(stock)} completions, ours {len(ours)}")
    for row, (theirs, mine) in enumerate(zip(stock, ours, strict=True)):
        if list(theirs) != list(mine):
            at = next((i for i, (a, b) in enumerate(zip(theirs, mine, strict=False)) if a != b), None)
            at = min(len(theirs), len(mine)) if at is None else at
            after = f"stock goes on with {list(theirs[at : at + 3])}, ours with {list(mine[at : at + 3])}"
            raise Unequal(f"{what}: completion {row} differs at token {at}: {after}")


def close(what: str, stock: float | Tensor, ours: float | Tensor, *, within: float = CLOSE) -> float:
    """How far the two are apart, relative to stock, in the L2 norm; a NaN is close to nothing."""
    theirs, mine = torch.as_tensor(stock).double(), torch.as_tensor(ours).double()
    difference = apart(theirs, mine)
    if not difference <= within:
        sizes = f"stock has {float(theirs.norm()):.9g}, ours {float(mine.norm()):.9g}"
        raise Unequal(f"{what}: {sizes}; the relative difference is {difference:.1e}, allowed are {within:.0e}")
    return difference


def apart(stock: Tensor, ours: Tensor) -> float:
    """The relative difference in the L2 norm, of two tensors of any precision."""
    theirs, mine = stock.double(), ours.double()
    return 0.0 if torch.equal(theirs, mine) else float((theirs - mine).norm() / theirs.norm())


def close_gradients(stock: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> float:
    """The largest difference of any parameter's gradient."""
    if stock.keys() != ours.keys():
        raise Unequal(f"gradients: only one side has {sorted(stock.keys() ^ ours.keys())[:3]}")
    return max(close(f"gradient of {name}", stock[name], ours[name]) for name in stock)
