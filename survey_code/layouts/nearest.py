"""Searching a layout for the rows with the highest scores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from survey_code.checks import check_range
from survey_code.kernels.bags import refuse_masked
from survey_code.layouts.layout import Layout, N, array_module, widen_tensor
from survey_code.order import largest_first

MOST_NUMBERS = 1 << 22  # of decoded rows at a time: 16 MiB


class VectorSearch(Layout):
    """A layout whose rows are compared with vectors, without making the rows.

    A subclass implements `read_scores`.
    """

    def read_scores(self, queries: N, first: int, stop: int) -> N:
        """Inner products of checked vectors (m, dim) with a range of rows."""
        raise NotImplementedError

    def scores(self, queries: N, candidates: tuple[int, int] | None = None) -> N:
        """Inner products of vectors with rows.

        Parameters
        ----------
        queries : array of float, shape (m, embedding_dim)
        candidates : (first, stop), optional
            Range of ids to compare with; by default all rows.

        Returns
        -------
        array of float32, shape (m, stop - first)

        Raises
        ------
        ValueError
            If the queries have another shape or are not finite, the candidates are
            no range of ids, or a score leaves float32.
        """
        first, stop = check_candidates(candidates, self.num_embeddings)
        queries = self._check_queries(queries)
        return check_scores(self.read_scores(queries, first, stop))

    def topk(
        self,
        queries: N,
        k: int,
        candidates: tuple[int, int] | None = None,
        chunk: int = 256,
    ) -> N:
        """Ids of the k rows with the highest scores, the best first.

        Of equal scores the lower id comes first.

        Parameters
        ----------
        queries, candidates
            As for `scores`.
        k : int
            From 1 to the number of candidates.
        chunk : int
            Queries scored at once, from 1 up.

        Returns
        -------
        array of int64, shape (m, k)

        Raises
        ------
        ValueError
            As for `scores`, or for another k or chunk.
        """
        first, stop = check_candidates(candidates, self.num_embeddings)
        check_nearest(k, stop - first)
        queries = self._check_queries(queries)
        return first + search_chunks(
            lambda part: self.read_scores(part, first, stop), queries, k, chunk
        )

    def _check_queries(self, queries: N) -> N:
        xp = array_module(next(iter(self.arrays().values())))
        refuse_masked("queries", queries)
        given = xp.asarray(widen_tensor(queries))
        if (
            given.ndim != 2
            or given.shape[1] != self.embedding_dim
            or given.dtype.kind != "f"
        ):
            raise ValueError(
                f"queries must be vectors of shape (m, {self.embedding_dim}), got "
                f"dtype {given.dtype} and shape {given.shape}"
            )
        with np.errstate(over="ignore"):  # infinity is reported below
            vectors = given.astype(np.float32, copy=False)
        if not bool(xp.isfinite(vectors).all()):
            raise ValueError("queries must be finite in float32")
        return vectors


def score_part(part: Layout, queries: N, first: int, stop: int) -> N:
    """Scores of a range of rows of any layout, shape (m, stop - first)."""
    if isinstance(part, VectorSearch):
        return part.read_scores(queries, first, stop)
    xp = array_module(queries)
    scores = xp.empty((len(queries), stop - first), dtype=np.float32)
    chunk = max(MOST_NUMBERS // part.embedding_dim, 1)
    for start in range(first, stop, chunk):
        end = min(start + chunk, stop)
        rows = part.read_rows(xp.arange(start, end))
        scores[:, start - first : end - first] = queries @ rows.T
    return scores


def search_chunks(score: Callable[[N], N], queries: N, k: int, chunk: int) -> N:
    """Columns of the k largest scores of each query, so many queries at a time."""
    check_range("chunk", chunk, 1)
    best = array_module(queries).empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), chunk):
        scores = check_scores(score(queries[start : start + chunk]))
        best[start : start + chunk] = choose_nearest(scores, k)
    return best


def check_scores(scores: N) -> N:
    """Scores as they are, or ValueError where products of large numbers overflowed."""
    if not bool(array_module(scores).isfinite(scores).all()):
        raise ValueError(
            "queries are too large: a score is beyond float32, or a step on its way"
        )
    return scores


def check_candidates(candidates: tuple[int, int] | None, rows: int) -> tuple[int, int]:
    """A range of ids, all of them by default, or one clear ValueError."""
    if candidates is None:
        return 0, rows
    wrong = ValueError(
        f"candidates must be a range of ids, two integers within 0 to {rows}, got "
        f"{candidates!r}"
    )
    try:
        first, stop = candidates
    except (TypeError, ValueError):
        raise wrong from None
    for end in (first, stop):
        if not isinstance(end, int | np.integer) or isinstance(end, bool):
            raise wrong
    if not 0 <= first < stop <= rows:
        raise wrong
    return int(first), int(stop)


def check_nearest(k: int, count: int) -> None:
    """Raise ValueError unless k of so many candidates can be found."""
    whole = isinstance(k, int | np.integer) and not isinstance(k, bool)
    if not whole or not 1 <= k <= count:
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
