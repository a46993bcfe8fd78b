"""Searching a layout for the rows with the highest scores."""

from __future__ import annotations

import numpy as np

from survey_code.layouts.layout import N, array_module
from survey_code.order import largest_first


def check_candidates(candidates: tuple[int, int] | None, rows: int) -> tuple[int, int]:
    """A range of ids, all of them by default, or one clear ValueError."""
    first, stop = (0, rows) if candidates is None else candidates
    whole = int(first) == first and int(stop) == stop
    if not (whole and 0 <= first < stop <= rows):
        raise ValueError(
            f"candidates must be a range of ids within 0 to {rows}, got {candidates!r}"
        )
    return int(first), int(stop)


def check_nearest(k: int, count: int) -> None:
    """Raise ValueError unless k of so many candidates can be found."""
    if not isinstance(k, int | np.integer) or not 1 <= k <= count:
        raise ValueError(f"k must be from 1 to {count}, got {k!r}")


def choose_nearest(scores: N, k: int) -> N:
    """Columns of the k largest scores of each row; of equals, the first columns."""
    xp = array_module(scores)
    if k == scores.shape[1]:
        return largest_first(scores, axis=1)
    # The k-th largest score; of the columns that tie with it only as many as fit.
    bound = -xp.partition(-scores, k - 1, axis=1)[:, k - 1 : k]
    above, tied = scores > bound, scores == bound
    room = k - above.sum(axis=1, keepdims=True)
    chosen = above | (tied & (xp.cumsum(tied, axis=1) <= room))
    columns = xp.nonzero(chosen)[1].reshape(-1, k)  # ascending in each row
    order = largest_first(xp.take_along_axis(scores, columns, axis=1), axis=1)
    return xp.take_along_axis(columns, order, axis=1)
