"""The widest groups that a budget admits, along a rule's path from wide to narrow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from survey_code.layouts.grouped import grouped_bytes
from survey_code.mixed_dimension.search import powers_up_to
from survey_code.order import largest_first
from survey_code.spec import TableSpec


def settle_widths(widths: ArrayLike, rows: ArrayLike, dim: int) -> np.ndarray:
    """Widths as they are stored: a group whose short rows and projection would take
    no fewer numbers than full rows gets full rows.

    Parameters
    ----------
    widths, rows : arrays of int, shape (groups,)
    dim : int

    Returns
    -------
    ndarray of int64, shape (groups,)

    Examples
    --------
    >>> settle_widths([4, 4, 4], [2, 6, 1000], dim=16)
    array([16,  4,  4])
    """
    widths = np.minimum(np.asarray(widths, dtype=np.int64), dim)
    rows = np.asarray(rows, dtype=np.int64)
    return np.where(widths * (rows + dim) >= rows * dim, dim, widths)


def bisect_path(cost: Callable[[float], int], budget: int) -> float:
    """The first point of a path from 0 to 1, along which costs fall, that is inside
    the budget; `cost(1)` must be.

    Parameters
    ----------
    cost : callable
    budget : int

    Returns
    -------
    float
        To the last bit: the float before it is over the budget, unless it is 0.
    """
    low, high = 0.0, 1.0
    if cost(low) <= budget:
        return low
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return high
        if cost(middle) <= budget:
            high = middle
        else:
            low = middle


def fill_budget(
    widths: np.ndarray,
    order: np.ndarray,
    cost: Callable[[np.ndarray], int],
    budget: int,
    steps: Sequence[int],
) -> np.ndarray:
    """Spend what is left: groups become one step wider while that still fits.

    Parameters
    ----------
    widths : ndarray of int64, shape (groups,)
    order : ndarray of int64, shape (groups,)
        The groups from the widest to the narrowest; none overtakes the one before.
    cost : callable
        Bytes of widths.
    budget : int
    steps : sequence of int
        Widths that there may be, rising.

    Returns
    -------
    ndarray of int64, shape (groups,)
    """
    before = None
    while before is None or (widths != before).any():
        before, limit = widths, steps[-1]
        for g in order:
            wider = [step for step in steps if widths[g] < step <= limit]
            if wider:
                tried = widths.copy()
                tried[g] = wider[0]
                widths = tried if cost(tried) <= budget else widths
            limit = int(widths[g])
    return widths


def plan_widths(
    spec: TableSpec,
    ratio: float,
    rows: np.ndarray,
    rank: np.ndarray,
    path: Callable[[float], np.ndarray],
    power_of_two: bool = False,
    ranges: bool = True,
) -> list[int]:
    """The widest groups of a rule that fit into a budget.

    Parameters
    ----------
    spec : TableSpec
    ratio : float
    rows : ndarray of int, shape (groups,)
    rank : ndarray of numbers, shape (groups,)
        The larger, the wider the group.
    path : callable
        The rule: widths at each point from 0 to 1, nowhere rising.
    power_of_two : bool, default False
        Whether there may be no other widths.
    ranges : bool, default True
        Whether the groups are ranges of ids, which need no remap.

    Returns
    -------
    list of int

    Raises
    ------
    OutOfReach
        If the widths at 1 are too wide.
    """
    dim = spec.embedding_dim

    def cost(widths: np.ndarray) -> int:
        settled = settle_widths(widths, rows, dim)
        return grouped_bytes(rows.tolist(), settled.tolist(), dim, ranges)

    def point(t: float) -> np.ndarray:
        return np.minimum(path(t), dim)

    budget = spec.require(ratio, smallest=cost(point(1.0)))
    widths = point(bisect_path(lambda t: cost(point(t)), budget))
    steps = powers_up_to(dim) if power_of_two else range(1, dim + 1)
    widths = fill_budget(widths, largest_first(rank), cost, budget, steps)
    return [int(width) for width in settle_widths(widths, rows, dim)]
