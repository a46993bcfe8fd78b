"""Bags of rows pooled by NumPy: the same digits however the work is cut.

The rows of a bag are added in their order, one after the other.  NumPy is fast where
it adds long arrays, so that bags stand side by side: the first rows of all bags, then
the second rows, and so on.  Ids are few bytes, so they are put in this order before
their rows are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from survey_code.kernels.cpu.rows import take_rows

# Numbers of a chunk, a mebibyte: about what a second-level cache holds.  Chunks of a
# sixteenth take twice as long, in calls of NumPy.
CHUNK_NUMBERS = 2**18
# Rows of a chunk at least, so that calls are few beside rows; and at most, as there
# are ids of 8 bytes beside narrow rows.
LEAST_CHUNK_ROWS, MOST_CHUNK_ROWS = 64, 2**14

# Numbers of a row from which adding row by row is no slower than row beside row.
WIDE = 32

# Which rows: places in an array, or a stretch of it.
Places = np.ndarray | slice


def pool_bags(rows: np.ndarray, starts: np.ndarray, mode: str) -> np.ndarray:
    """Sum, mean or maximum of ``rows[starts[b] : starts[b + 1]]`` for each bag b.

    Parameters
    ----------
    rows : ndarray of float32, shape (m, dim)
    starts : ndarray of int64, shape (bags + 1,)
        Never falling, from 0 to m.
    mode : {"sum", "mean", "max"}

    Returns
    -------
    ndarray of float32, shape (bags, dim)
        Rows are added in their order; an empty bag gives zeros.
    """
    # `take` would copy all rows, once a chunk, if they were not side by side.
    held = np.ascontiguousarray(rows)
    dim, counts = rows.shape[1], starts[1:] - starts[:-1]
    if dim >= WIDE and len(rows) and (counts == counts[0]).all():
        return pool_even(held.reshape(len(counts), -1, dim), mode)

    def fetch(places: Places) -> np.ndarray:
        return held[places] if isinstance(places, slice) else take_rows(held, places)

    return pool_places(fetch, starts, mode, dim)


def pool_chunks(
    read: Callable[[np.ndarray], np.ndarray],
    ids: np.ndarray,
    starts: np.ndarray,
    weights: np.ndarray | None,
    mode: str,
    dim: int,
    chunk: int | None = None,
) -> np.ndarray:
    """Read and pool bags of rows, a chunk of bags at a time.

    Parameters
    ----------
    read : callable
        Rows of ids: int64 (k,) -> float32 (k, dim).  It is called for every chunk,
        with the ids of bags of about equal length, not in the order of `ids`.  What
        it returns is only read, so that it may be a view of stored rows.
    ids : ndarray of int64, shape (m,)
    starts : ndarray of int64, shape (bags + 1,)
        Bag b has the ids from ``starts[b]`` to ``starts[b + 1]``; never falling,
        from 0 to m.
    weights : ndarray of float32, shape (m,), or None
        What the row of each id is multiplied by before it is pooled.
    mode : {"sum", "mean", "max"}
    dim : int
    chunk : int, optional
        Rows that `read` returns at most; by default as many as fit the second-level
        cache.  The digits do not depend on it where `read` gives a row the same
        digits in any company.

    Returns
    -------
    ndarray of float32, shape (bags, dim)
        Rows are added in their order; an empty bag gives zeros.
    """

    def fetch(places: Places) -> np.ndarray:
        rows = read(ids[places])
        return rows if weights is None else rows * weights[places][:, None]

    return pool_places(fetch, starts, mode, dim, chunk)


def pool_places(
    fetch: Callable[[Places], np.ndarray],
    starts: np.ndarray,
    mode: str,
    dim: int,
    chunk: int | None = None,
) -> np.ndarray:
    """Pool the rows that stand at places 0 to m - 1, as `fetch` returns them.

    The longest bags come first, so that those of a chunk are about equally long: over
    all chunks together there are no more steps of unequal bags than a chunk has rows.
    """
    chunk = count_chunk_rows(dim) if chunk is None else chunk
    counts = starts[1:] - starts[:-1]
    pooled = np.zeros((len(counts), dim), dtype=np.float32)
    for bags in split_bags(counts, chunk):
        begin, length = starts[bags], counts[bags]
        if length[0] > chunk:  # the longest, alone
            pooled[bags] = pool_long(fetch, int(begin[0]), int(length[0]), mode, chunk)
        else:
            pooled[bags] = pool_short(fetch, begin, length, mode)
    if mode == "mean":
        pooled /= np.maximum(counts, 1).astype(np.float32)[:, None]
    return pooled


def count_chunk_rows(dim: int) -> int:
    """Rows of a chunk, given their length."""
    return min(max(CHUNK_NUMBERS // dim, LEAST_CHUNK_ROWS), MOST_CHUNK_ROWS)


def split_bags(counts: np.ndarray, chunk: int) -> Iterator[Places]:
    """Bags that are read together: as many rows as a chunk has, or one longer bag.

    Longer bags come before shorter ones, and empty ones not at all.
    """
    most, least = (int(counts.max()), int(counts.min())) if len(counts) else (0, 0)
    if most == least:
        step = max(chunk // max(most, 1), 1)
        for first in range(0, len(counts) if most else 0, step):
            yield slice(first, min(first + step, len(counts)))
        return
    # 16 bits are sorted digit by digit, ten times faster.
    kind = np.uint16 if most < 2**16 else np.int64
    order = np.argsort((most - counts).astype(kind), kind="stable")
    order = order[: np.count_nonzero(counts)]
    ends = np.cumsum(counts[order])
    first = done = 0
    while first < len(order):
        last = int(ends.searchsorted(done + chunk, side="right"))
        last = max(last, first + 1)
        yield order[first:last]
        first, done = last, int(ends[last - 1])


def cut_bags(
    starts: np.ndarray, ids: int, bags: int
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Stretches of bags, with so many ids and bags at most; a longer bag in pieces.

    Parameters
    ----------
    starts : ndarray of int64, shape (all bags + 1,)
    ids, bags : int

    Yields
    ------
    slice, slice, ndarray of int64
        The bags, their ids, and where each bag starts among these and the last ends.
        Sums over the pieces of a bag have to be added.
    """
    first, count = 0, len(starts) - 1
    while first < count:
        begin = int(starts[first])
        last = int(starts.searchsorted(begin + ids, side="right")) - 1
        last = min(max(last, first + 1), first + bags, count)
        end = int(starts[last])
        for place in range(begin, max(end, begin + 1), ids):
            stop = min(place + ids, end)
            inside = starts[first : last + 1].clip(place, stop) - place
            yield slice(first, last), slice(place, stop), inside
        first = last


def pool_short(
    fetch: Callable[[Places], np.ndarray],
    begin: np.ndarray,
    length: np.ndarray,
    mode: str,
) -> np.ndarray:
    """Sums or maxima of bags that are read together, their lengths never rising.

    Parameters
    ----------
    fetch : callable
    begin, length : ndarray of int64, shape (bags,)
        Where each bag starts, and how many rows it has, at least 1.
    mode : str

    Returns
    -------
    ndarray of float32, shape (bags, dim)
    """
    bags, least, most = len(begin), int(length[-1]), int(length[0])
    if most - least > bags:
        return pool_apart(fetch, begin, length, mode)
    places = (begin + np.arange(least)[:, None]).ravel()
    # How many bags still have a row, for each rank that some bags lack.
    still: list[int] = []
    if most > least:
        ranks = np.arange(least, most)
        still = (-length).searchsorted(-ranks).tolist()
        rest = [begin[:some] + rank for rank, some in zip(ranks.tolist(), still)]
        places = np.concatenate([places, *rest])
    rows = fetch(places)
    dim, at = rows.shape[1], least * bags
    side_by_side = rows[:at].reshape(least, bags * dim)
    pooled = reduce_ranks(side_by_side, mode).reshape(bags, dim)
    join = np.maximum if mode == "max" else np.add
    for some in still:
        join(pooled[:some], rows[at : at + some], out=pooled[:some])
        at += some
    return pooled


def pool_apart(
    fetch: Callable[[Places], np.ndarray],
    begin: np.ndarray,
    length: np.ndarray,
    mode: str,
) -> np.ndarray:
    """The same for a few bags of very different lengths: each for itself."""
    ends = np.cumsum(length)
    rows = fetch(np.arange(ends[-1]) + np.repeat(begin - (ends - length), length))
    parts = zip((ends - length).tolist(), ends.tolist())
    return np.stack([reduce_ranks(rows[start:end], mode) for start, end in parts])


def pool_long(
    fetch: Callable[[Places], np.ndarray],
    begin: int,
    length: int,
    mode: str,
    chunk: int,
) -> np.ndarray:
    """Sum or maximum of one bag that is read in pieces, float32 of shape (dim,)."""
    pooled = reduce_ranks(fetch(slice(begin, begin + chunk)), mode)
    for place in range(begin + chunk, begin + length, chunk):
        rows = fetch(slice(place, min(place + chunk, begin + length)))
        pooled = reduce_ranks(np.concatenate([pooled[None], rows]), mode)
    return pooled


def pool_even(rows: np.ndarray, mode: str) -> np.ndarray:
    """Pool equally long bags where they are: (bags, length, dim) -> (bags, dim)."""
    if mode == "max":
        return np.maximum.reduce(rows, axis=1)
    pooled = np.add.reduce(rows, axis=1, initial=-0.0)
    if mode == "mean":
        pooled /= np.float32(rows.shape[1])
    return pooled


def reduce_ranks(rows: np.ndarray, mode: str) -> np.ndarray:
    """Sum or maximum over the first axis, of which there is at least one.

    NumPy adds along the first of two axes in order.  A single column it would add as
    a tree instead, with other digits.  Sums start from -0, which leaves all numbers
    as they are, where +0 would turn -0 into +0.
    """
    if mode == "max":
        return np.maximum.reduce(rows, axis=0)
    if rows.shape[1] == 1:
        return np.add.accumulate(rows, axis=0)[-1]
    return np.add.reduce(np.ascontiguousarray(rows), axis=0, initial=-0.0)
