"""One budget for many tables: what each may take, by what its bytes are worth.

Of each table the lower convex hull of its offers is kept, whose steps are worth less
and less error a byte.  Steps of all tables are taken by their worth, the best first,
until slopes are equal: that is the least error for the bytes that were spent.  What is
left goes to the largest drop that it still pays.

Where one step takes much of the budget, small steps that are worth a little more can
leave too little for it, and slopes alone miss the least error by far.  So all is done
again with each offer of the largest tables held fixed, and the best is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from survey_code.order import largest_first

# The largest tables, of which each offer is tried in turn.
TRIED_TABLES = 16


class Offer(NamedTuple):
    """A form in which a table can be stored.

    Parameters
    ----------
    nbytes : int
    error : float
        What it adds to the whole, from 0 up; the smaller the better.
    """

    nbytes: int
    error: float


def divide_budget(tables: Sequence[Sequence[Offer]], budget: int) -> list[int]:
    """An offer for each table, all within a budget, with little error in sum.

    Parameters
    ----------
    tables : sequence of sequences of Offer
        At least one offer each.
    budget : int
        Bytes of all tables together.

    Returns
    -------
    list of int
        For each table the place of its offer.

    Raises
    ------
    ValueError
        If even the smallest offers exceed the budget.

    Examples
    --------
    >>> flat, steep = [Offer(8, 1.0), Offer(2, 2.0)], [Offer(8, 0.0), Offer(2, 9.0)]
    >>> divide_budget([flat, steep], 10)
    [1, 0]
    """
    smallest = sum(min(offer.nbytes for offer in offers) for offers in tables)
    if smallest > budget:
        raise ValueError(f"a budget must be at least {smallest} bytes, got {budget}")
    useful = [keep_useful(offers) for offers in tables]
    hulls = [keep_hull(offers, places) for offers, places in zip(tables, useful)]
    found = []
    for fixed in list_tries(tables, useful):
        taken = descend(tables, hulls, budget, fixed)
        if taken is not None:
            spend_rest(tables, useful, budget, taken)
            found.append(taken)
    return min(found, key=lambda taken: add_offers(tables, taken)[::-1])


def list_tries(
    tables: Sequence[Sequence[Offer]], useful: Sequence[Sequence[int]]
) -> list[dict[int, int]]:
    """What is held fixed in turn: nothing, and each offer of each of the largest."""
    sizes = [
        [offers[place].nbytes for place in places]
        for offers, places in zip(tables, useful)
    ]
    spread = np.array([max(own) - min(own) for own in sizes])
    largest = [int(at) for at in largest_first(spread)[:TRIED_TABLES] if spread[at]]
    return [{}, *({at: place} for at in largest for place in useful[at])]


def keep_useful(offers: Sequence[Offer]) -> list[int]:
    """The places of the offers that none beats in both, by rising bytes.

    Examples
    --------
    >>> keep_useful([Offer(4, 1.0), Offer(9, 0.5), Offer(5, 2.0), Offer(4, 3.0)])
    [0, 1]
    """
    kept: list[int] = []
    # Equal offers stay in their order: the first is kept.
    for place in sorted(range(len(offers)), key=lambda place: offers[place]):
        if not kept or offers[place].error < offers[kept[-1]].error:
            kept.append(place)
    return kept


def keep_hull(offers: Sequence[Offer], useful: Sequence[int]) -> list[int]:
    """Of useful offers those on the lower convex hull, by rising bytes.

    Examples
    --------
    >>> keep_hull([Offer(1, 9.0), Offer(2, 8.0), Offer(3, 1.0)], [0, 1, 2])
    [0, 2]
    """
    hull: list[int] = []
    for place in useful:
        while len(hull) > 1 and worth(offers, hull[-2], hull[-1]) <= worth(
            offers, hull[-1], place
        ):
            hull.pop()
        hull.append(place)
    return hull


def worth(offers: Sequence[Offer], old: int, new: int) -> float:
    """The drop in error a byte, from an offer to a larger one."""
    drop = offers[old].error - offers[new].error
    return drop / (offers[new].nbytes - offers[old].nbytes)


def add_offers(
    tables: Sequence[Sequence[Offer]], taken: Sequence[int]
) -> tuple[int, float]:
    """Bytes and error of all tables."""
    chosen = [offers[place] for offers, place in zip(tables, taken)]
    return sum(o.nbytes for o in chosen), sum(o.error for o in chosen)


def descend(
    tables: Sequence[Sequence[Offer]],
    hulls: Sequence[Sequence[int]],
    budget: int,
    fixed: dict[int, int],
) -> list[int] | None:
    """Take the steps down the hulls by their worth, as long as they fit.

    None where the fixed offers leave too little for the others.
    """
    taken = [fixed.get(at, hull[0]) for at, hull in enumerate(hulls)]
    left = budget - add_offers(tables, taken)[0]
    if left < 0:
        return None
    steps = [
        (worth(tables[at], old, new), at, old, new)
        for at, hull in enumerate(hulls)
        if at not in fixed
        for old, new in pairwise(hull)
    ]
    # Stable: of a table's own steps, which are worth less and less, none is overtaken.
    for _, at, old, new in sorted(steps, key=lambda step: -step[0]):
        extra = tables[at][new].nbytes - tables[at][old].nbytes
        # Where a step did not fit, those behind it begin at what was not taken.
        if extra <= left and taken[at] == old:
            taken[at], left = new, left - extra
    return taken


def spend_rest(
    tables: Sequence[Sequence[Offer]],
    useful: Sequence[Sequence[int]],
    budget: int,
    taken: list[int],
) -> None:
    """Spend what is left on the largest drop in error that fits, again and again."""
    while True:
        left = budget - add_offers(tables, taken)[0]
        drops = [
            (offers[taken[at]].error - offers[place].error, -at, place)
            for at, offers in enumerate(tables)
            for place in useful[at]
            if offers[place].nbytes - offers[taken[at]].nbytes <= left
        ]
        drop, at, place = max(drops)
        if drop <= 0:
            return
        taken[-at] = place
