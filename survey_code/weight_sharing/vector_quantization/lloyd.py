"""Lloyd's algorithm: k codewords for n points, and everything that budgets need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from survey_code.layouts.codebook import check_bits
from survey_code.order import largest_first
from survey_code.spec import TableSpec

# Numbers of a block of distances: 32 MB in float64.
BLOCK = 1 << 22


@dataclass
class Clusters:
    """What `cluster_rows` found.

    Parameters
    ----------
    centroids : ndarray of float64, shape (clusters, dim)
    codes : ndarray of int64, shape (rows,)
        Cluster of each row.
    losses : list of float
        Weighted squared error after each assignment; it never rises.
    """

    centroids: np.ndarray
    codes: np.ndarray
    losses: list[float]


def nearest_rows(
    points: np.ndarray, centroids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    r"""The nearest centroid of each point, and the squared distance to it.

    By :math:`|x - c|^2 = |x|^2 - 2 x \cdot c + |c|^2`; of equals the first.

    Parameters
    ----------
    points : ndarray of float, shape (rows, dim)
    centroids : ndarray of float, shape (clusters, dim)

    Returns
    -------
    codes : ndarray of int64, shape (rows,)
    errors : ndarray of float64, shape (rows,)
    """
    points, centroids = (np.asarray(a, dtype=np.float64) for a in (points, centroids))
    codes = np.empty(len(points), dtype=np.int64)
    errors = np.empty(len(points))
    # Doubling is exact; doing it here saves two passes over the distances.
    lengths, doubled = (centroids**2).sum(axis=1), -2 * centroids
    step = max(BLOCK // len(centroids), 1)
    for start in range(0, len(points), step):
        some = points[start : start + step]
        part = some @ doubled.T  # (step, clusters)
        part += lengths
        codes[start : start + step] = part.argmin(axis=1)
        # Anew from the difference: the sum above loses digits near 0.
        left = some - centroids[codes[start : start + step]]
        errors[start : start + step] = (left**2).sum(axis=1)
    return codes, errors


def average_rows(
    points: np.ndarray, codes: np.ndarray, clusters: int, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean of each cluster's points, 0 where it has none, and its weight.

    Returns
    -------
    means : ndarray of float64, shape (clusters, dim)
    mass : ndarray of float64, shape (clusters,)
    """
    mass = np.bincount(codes, weights=weights, minlength=clusters)
    sums = np.stack(
        [
            np.bincount(codes, weights=weights * column, minlength=clusters)
            for column in points.T
        ],
        axis=1,
    )
    # Dividing by the mass of an empty cluster would fill its row with NaN.
    return sums / np.where(mass > 0, mass, 1)[:, None], mass


def cluster_rows(
    points: np.ndarray,
    clusters: int,
    rng: np.random.Generator,
    *,
    weights: np.ndarray | None = None,
    iterations: int = 25,
    tolerance: float = 1e-3,
) -> Clusters:
    """K-means: assign each point to its nearest centroid, move these to the means.

    Starts from `clusters` points drawn without replacement.  A centroid without
    points moves onto the point with the largest error.

    Parameters
    ----------
    points : ndarray of float, shape (rows, dim)
    clusters : int, 1 to rows
    rng : numpy.random.Generator
    weights : ndarray, shape (rows,), optional
        How much each point counts.
    iterations : int, default 25
        At most; fewer where the loss falls by less than `tolerance` of itself.
    tolerance : float, default 1e-3

    Returns
    -------
    Clusters

    Raises
    ------
    ValueError
        If there are more clusters than points, or none.

    Notes
    -----
    Lloyd, "Least squares quantization in PCM" (1982).

    Examples
    --------
    >>> points = np.array([[0.0], [1.0], [10.0], [11.0]])
    >>> found = cluster_rows(points, 2, np.random.default_rng(0))
    >>> sorted(found.centroids[:, 0].tolist()), found.losses[-1]
    ([0.5, 10.5], 1.0)
    """
    points = np.asarray(points, dtype=np.float64)
    rows = len(points)
    if not isinstance(clusters, int | np.integer) or not 1 <= clusters <= rows:
        raise ValueError(f"clusters must be from 1 to {rows}, got {clusters!r}")
    mass = np.ones(rows) if weights is None else np.asarray(weights, np.float64)
    first = np.sort(rng.choice(rows, clusters, replace=False))
    centroids = points[first]
    codes, errors = nearest_rows(points, centroids)
    losses = [float(mass @ errors)]
    for _ in range(iterations):
        if not losses[-1]:
            break
        centroids, weight = average_rows(points, codes, clusters, mass)
        empty = np.flatnonzero(weight == 0)
        far = largest_first(mass * errors)[: len(empty)]
        centroids[empty] = points[far]
        codes, errors = nearest_rows(points, centroids)
        losses.append(float(mass @ errors))
        if losses[-2] - losses[-1] <= tolerance * losses[-2]:
            break
    return Clusters(centroids, codes, losses)


def count_weights(spec: TableSpec | None, weighted: bool) -> np.ndarray | None:
    """How often each row is read, as weights; 1 for a row that was never seen."""
    if not weighted or spec is None or not spec.train_counts.any():
        return None
    return np.maximum(spec.train_counts, 1).astype(np.float64)


def divisors(dim: int) -> list[int]:
    """Numbers of books whose codewords have whole lengths, the fewest first."""
    return [parts for parts in range(1, dim + 1) if dim % parts == 0]


def check_books(books: Any, dim: int) -> None:
    """Raise ValueError unless rows can be cut into so many parts."""
    if not isinstance(books, int | np.integer) or books < 1 or dim % books:
        raise ValueError(f"books must divide the dimension {dim}, got {books!r}")


def most_bits(rows: int, books: int = 1, top: int = 8) -> int:
    """Bits of a code for which four rows share a codeword, 1 to `top`."""
    return min(max(int(np.log2(max(rows, 1) / 4)), 1), top)


def plan_books(
    spec: TableSpec,
    ratio: float,
    size: Any,
    *,
    books: int | None = None,
    bits: int | None = None,
    choices: list[int] | None = None,
    top: int = 8,
    rows: int | None = None,
    large: bool = False,
) -> tuple[int, int]:
    """Books and bits with the most bits per row inside a budget.

    Of equal ones the fewest books, whose codewords are longest.

    Parameters
    ----------
    spec : TableSpec
    ratio : float
    size : callable
        Bytes of (books, bits).
    books, bits : int, optional
        Where they are given.
    choices : list of int, optional
        Numbers of books to choose from; by default the divisors of the dimension.
    top : int, default 8
        Most bits of a code.
    rows : int, optional
        Rows that share a book, where these are fewer than the table's.
    large : bool, default False
        Prefer the most bits of a *code* instead: large books rather than many.

    Returns
    -------
    books, bits : int
    """
    if books is not None and choices is None:
        check_books(books, spec.embedding_dim)
    if bits is not None:
        check_bits("bits", bits)
    largest = most_bits(rows or spec.num_embeddings, top=top)
    found = [
        (m, b)
        for m in ([books] if books else choices or divisors(spec.embedding_dim))
        for b in ([bits] if bits else range(1, largest + 1))
    ]
    sizes = {pair: size(*pair) for pair in found}
    budget = spec.require(ratio, smallest=min(sizes.values()))
    fitting = [pair for pair in found if sizes[pair] <= budget]
    if large:
        return max(fitting, key=lambda pair: (pair[1], pair[0]))
    return max(fitting, key=lambda pair: (pair[0] * pair[1], -pair[0]))
