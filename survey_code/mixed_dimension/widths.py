"""The widest groups that a budget admits, along a rule's path from wide to narrow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from survey_code.layouts.grouped import grouped_bytes
from survey_code.mixed_dimension.grouped import field_costs
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
    path: Callable[[float], np.ndarray],
    fill: np.ndarray | None = None,
    power_of_two: bool = False,
    ranges: bool = True,
) -> list[int]:
    """The widest groups of a rule that fit into a budget.

    Parameters
    ----------
    spec : TableSpec
    ratio : float
    rows : ndarray of int, shape (groups,)
    path : callable
        The rule: widths at each point from 0 to 1, nowhere rising.
    fill : ndarray of numbers, shape (groups,), optional
        The larger, the wider the group: groups are then widened past the rule, by what
        it leaves of the budget (`fill_budget`).
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
    if fill is not None:
        steps = powers_up_to(dim) if power_of_two else range(1, dim + 1)
        widths = fill_budget(widths, largest_first(fill), cost, budget, steps)
    return [int(width) for width in settle_widths(widths, rows, dim)]


# Of the width that all fields could have alike, what a search leaves each field.
FLOOR = 0.5


def floor_within(
    spec: TableSpec, share: float, budget: int, widths: Sequence[int] | None = None
) -> int:
    """The least width of a field in a search: a share of what all could have alike.

    Without it a search by field may leave the items of a ranking one column: their
    vectors are multiples of one another, and every user gets one of two rankings.

    Parameters
    ----------
    spec : TableSpec
    share : float
        0 to 1: from none to what all fields could have alike; `FLOOR` by default.
    budget : int
        In bytes.
    widths : sequence of int, optional
        Widths that there may be, rising; by default all from 0 to the dimension.

    Returns
    -------
    int
        One of the widths, rounded up where the budget pays for it in all fields; the
        smallest of them where it pays for none.

    Examples
    --------
    >>> spec = TableSpec(1000, 64, [0, 600, 1000], [0] * 1000)
    >>> [floor_within(spec, share, spec.budget(8)) for share in (0, 0.5, 1)]
    [0, 4, 7]
    >>> floor_within(spec, 0.5, spec.budget(8), powers_up_to(64))
    4
    """
    dim = spec.embedding_dim
    allowed = np.asarray(range(dim + 1) if widths is None else widths)
    fits = field_costs(spec, tuple(range(dim + 1))).sum(axis=0) <= budget
    fits[0] = True  # fields without a width are dropped, if the budget says so
    reached = allowed[fits[allowed]]
    enough = reached[reached >= share * np.flatnonzero(fits).max()]
    chosen = enough[:1] if len(enough) else reached[-1:]
    return int(chosen[0] if len(chosen) else allowed[0])
