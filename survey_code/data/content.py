"""What is known of an id before its first click, and ids that training never sees.

Both have generators of their own, so that a world without them stays what it was.
"""

from __future__ import annotations

import math

import numpy as np

# Content is a multiple of 1/64**2: sums of products of integers in units of 1/64.
CONTENT_GRID = 64
# Ids of a field from which on some of them are kept for validation and test.
LARGE_FIELD = 1000


def plant_content(
    rng: np.random.Generator,
    parameters: np.ndarray,
    width: int,
    noise: float,
    spread: float,
) -> np.ndarray:
    """Content vectors: a teacher's parameters, mixed linearly, plus noise.

    Parameters
    ----------
    rng : numpy.random.Generator
    parameters : ndarray of int64, shape (ids, parameters)
        In units of 1/64.
    width : int
        Entries of a vector.
    noise : float
        Spread of the noise over `spread`; without noise the vectors are an exact
        function of the parameters.
    spread : float
        Root mean square of the parameters, which is about that of an entry.

    Returns
    -------
    ndarray of float32, shape (ids, width)
        Multiples of 1/4096: the same digits whatever the order of summation.
    """
    ids, count = parameters.shape
    scale = CONTENT_GRID / math.sqrt(count)
    mixing = np.rint(rng.standard_normal((count, width)) * scale).astype(np.int64)
    drawn = rng.standard_normal((ids, width)) * (noise * spread * CONTENT_GRID**2)
    mixed = parameters @ mixing + np.rint(drawn).astype(np.int64)
    content: np.ndarray = (mixed / CONTENT_GRID**2).astype(np.float32)
    return content


def mark_fields(starts: np.ndarray, share: float) -> np.ndarray:
    """Ids of a share of the fields, rounded up, the largest first: bool (ids,).

    Examples
    --------
    >>> mark_fields(np.array([0, 2, 5, 6]), 0.5)
    array([ True,  True,  True,  True,  True, False])
    """
    sizes = np.diff(starts)
    marked = np.zeros(len(sizes), dtype=bool)
    marked[np.argsort(-sizes, kind="stable")[: math.ceil(share * len(sizes))]] = True
    return np.repeat(marked, sizes)


def choose_stand_ins(
    rng: np.random.Generator, ids_by_rank: list[np.ndarray], ids: int, unseen: float
) -> np.ndarray:
    """The id that training rows show in place of each id, int64 (ids,).

    Of each field of `LARGE_FIELD` ids or more a share is unseen; the next less popular
    id that is seen stands in for each.  All others stand for themselves.

    Parameters
    ----------
    rng : numpy.random.Generator
    ids_by_rank : list of ndarray of int64
        Ids of each field, the most popular first.
    ids : int
        Of all fields together.
    unseen : float
        From 0, below 1.
    """
    stand_ins = np.arange(ids)
    for field in ids_by_rank:
        if len(field) < LARGE_FIELD:
            continue
        kept = rng.choice(len(field), int(len(field) * unseen), replace=False)
        seen = np.setdiff1d(np.arange(len(field)), kept)
        after = np.searchsorted(seen, kept).clip(max=len(seen) - 1)
        stand_ins[field[kept]] = field[seen[after]]
    return stand_ins
