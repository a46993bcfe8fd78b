"""What searches share: order by frequency, and choices inside a budget."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from survey_code.order import largest_first
from survey_code.spec import TableSpec

# Choices are combined exactly as long as no more than this many stay in the race.
WIDEST_FRONT = 20_000

# Share of a search in which the table is trained alone: choices between vectors that
# have learnt nothing yet fall on those that disturb least, and are hard to undo.
WARM_UP = 0.25


def fields_of(spec: TableSpec) -> np.ndarray:
    """Field of each id."""
    sizes = np.diff(spec.field_starts)
    return np.repeat(np.arange(len(sizes)), sizes)


def rank_by_frequency(spec: TableSpec) -> np.ndarray:
    """Ids from the most to the least frequent; equal counts in the ids' order."""
    return largest_first(spec.train_counts)


def cut_by_frequency(spec: TableSpec, groups: int) -> np.ndarray:
    """Group of each id: 0 for the most frequent, equal shares of the *reads*.

    Returns
    -------
    ndarray of int64, shape (num_embeddings,)
        No group is empty as long as there are as many ids as groups.
    """
    order = rank_by_frequency(spec)
    # One read more for each id, so that ids that never occur have a place too.
    reads = np.cumsum(spec.train_counts[order] + 1.0)
    groups = min(groups, len(order))
    ends = np.searchsorted(reads, reads[-1] * np.arange(1, groups) / groups)
    # At least one id to each group, and one left for each that follows.
    step = np.arange(groups - 1)
    ends = np.maximum.accumulate(np.maximum(ends - step, 1)) + step
    ends = np.minimum(ends, len(order) - groups + 1 + step)
    group = np.empty(len(order), dtype=np.int64)
    group[order] = np.searchsorted(ends, np.arange(len(order)), side="right")
    return group


def choose_within(scores: ArrayLike, costs: ArrayLike, budget: int) -> np.ndarray:
    """One candidate per group: the best total score whose total cost fits.

    Groups are added one after another; of the partial choices only those stay
    that no cheaper one beats.  What the best choice leaves of the budget then goes
    to the enlargements that lose the least score per unit of cost.

    Parameters
    ----------
    scores : array, shape (groups, candidates)
        Log-probabilities, say, which add up over independent groups.
    costs : array of int, shape (groups, candidates)
    budget : int

    Returns
    -------
    ndarray of int64, shape (groups,)

    Raises
    ------
    ValueError
        If even the cheapest choice costs more than the budget.

    Examples
    --------
    >>> choose_within([[1, 2], [5, 9]], [[1, 4], [1, 4]], budget=5).tolist()
    [0, 1]
    """
    scores, costs = np.asarray(scores, float), np.asarray(costs, np.int64)
    later = np.append(np.cumsum(costs.min(axis=1)[::-1])[::-1], 0)
    check_cheapest(later[0], budget)
    spent, gained = np.zeros(1, np.int64), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for group, (score, cost) in enumerate(zip(scores, costs)):
        total = (spent[:, None] + cost).ravel()
        value = (gained[:, None] + score).ravel()
        kept = find_front(total, value, budget - later[group + 1])
        steps.append((kept // len(cost), kept % len(cost)))
        spent, gained = total[kept], value[kept]
    chosen = np.empty(len(costs), np.int64)
    place = len(spent) - 1  # the last of a front has the highest score
    for group in range(len(costs) - 1, -1, -1):
        before, candidates = steps[group]
        chosen[group] = candidates[place]
        place = before[place]
    return fill_up(chosen, scores, costs, budget)


def find_front(total: np.ndarray, value: np.ndarray, budget: int) -> np.ndarray:
    """Places of the choices that fit and that no cheaper one beats, cheapest first."""
    fits = np.flatnonzero(total <= budget)
    order = fits[np.lexsort((-value[fits], total[fits]))]
    # Dearer choices stay only where they are better than all before.
    best = np.maximum.accumulate(value[order])
    kept: np.ndarray = order[np.append(True, best[1:] > best[:-1])]
    if len(kept) > WIDEST_FRONT:
        # The cheapest stays, and so does the best.
        picked = np.linspace(0, len(kept) - 1, WIDEST_FRONT).round()
        kept = kept[picked.astype(np.int64)]
    return kept


def check_cheapest(cost: int, budget: int) -> None:
    """Raise ValueError if even the cheapest choice costs more than the budget."""
    if cost > budget:
        raise ValueError(
            f"the cheapest choice costs {cost:,}, more than the budget {budget:,}"
        )


def widen_within(scores: ArrayLike, costs: ArrayLike, budget: int) -> np.ndarray:
    """One candidate per group, from distributions over candidates that grow.

    A group asks for the step from candidate k - 1 to k with the probability of k or
    more.  The steps that are asked for most are taken first; one that no longer fits
    is passed over.  So all groups take about the same quantile of their distribution,
    where the most probable choice of all says nothing about those in between.

    Parameters
    ----------
    scores : array, shape (groups, candidates)
        Log-probabilities, up to a constant of each group.
    costs : array of int, shape (groups, candidates)
        Growing along each group.
    budget : int

    Returns
    -------
    ndarray of int64, shape (groups,)

    Raises
    ------
    ValueError
        If even the cheapest choice costs more than the budget.

    Examples
    --------
    >>> halves = np.log([[0.1, 0.2, 0.7], [0.7, 0.2, 0.1]])
    >>> widen_within(halves, [[1, 2, 4], [1, 2, 4]], budget=5).tolist()
    [2, 0]
    """
    scores, costs = np.asarray(scores, float), np.asarray(costs, np.int64)
    chosen, spent = np.zeros(len(costs), np.int64), int(costs[:, 0].sum())
    check_cheapest(spent, budget)
    below = np.logaddexp.accumulate(scores, axis=1)
    below = below[:, :-1] - below[:, -1:]  # log of the probability of fewer
    # Of equal ones the earlier step, then the earlier group.
    groups, steps = np.divmod(np.arange(below.size), below.shape[1])
    for place in np.lexsort((groups, steps, below.ravel())):
        group, step = groups[place], steps[place]
        more = int(costs[group, step + 1] - costs[group, step])
        if chosen[group] == step and spent + more <= budget:
            chosen[group] += 1
            spent += more
    return chosen


def fill_up(
    chosen: np.ndarray, scores: np.ndarray, costs: np.ndarray, budget: int
) -> np.ndarray:
    """Spend what a choice leaves of the budget, at the least loss of score."""
    chosen, rows = chosen.copy(), np.arange(len(costs))
    while True:
        extra = costs - costs[rows, chosen][:, None]
        left = budget - costs[rows, chosen].sum()
        lost = scores[rows, chosen][:, None] - scores
        price = np.where((extra > 0) & (extra <= left), lost / extra.clip(1), np.inf)
        group, candidate = np.unravel_index(int(price.argmin()), price.shape)
        if not np.isfinite(price[group, candidate]):
            return chosen
        chosen[group] = candidate


def powers_up_to(dim: int) -> tuple[int, ...]:
    """1, 2, 4, 8 ... below `dim`, and `dim`.

    Examples
    --------
    >>> powers_up_to(10)
    (1, 2, 4, 8, 10)
    """
    return (*(1 << k for k in range(dim.bit_length()) if 1 << k < dim), dim)
