"""Lloyd's algorithm: k codewords for n points."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np

from survey_code.checks import check_range
from survey_code.kernels.cuda import current_stream, load_cupy
from survey_code.kernels.cuda.assign import WIDEST, assign_points
from survey_code.order import largest_first
from survey_code.spec import TableSpec

# Distances held at once: 32 MB in float64.
DISTANCES = 1 << 22

# Distances from which on a GPU is worth the way there, a tenth of a second of one core;
# and points that are sent at once.
WORTH = 1 << 24
SENT = 1 << 22

# Where the nearest centroids are looked for; see `assigning_on`.
ASSIGNS_ON = ContextVar("ASSIGNS_ON", default="cpu")


@contextmanager
def assigning_on(device: str) -> Iterator[None]:
    """Within this block, k-means looks for nearest centroids on the CPU or on a GPU.

    What it finds is the same.  The GPU compares in float32, and says of each point
    whether roundings may have chosen its centroid; these few points are compared in
    float64, on the CPU.  Small work, and points of more than 64 numbers, stay there.

    Parameters
    ----------
    device : {"cpu", "cuda"}

    Raises
    ------
    RuntimeError
        If CuPy is not installed, or no GPU is present.
    """
    if device == "cuda":
        load_cupy()
    elif device != "cpu":
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")
    before = ASSIGNS_ON.set(device)
    try:
        yield
    finally:
        ASSIGNS_ON.reset(before)


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
    codes = assign_rows(points, centroids)
    errors = np.empty(len(points))
    step = max(DISTANCES // len(centroids), 1)
    for start in range(0, len(points), step):
        # Anew from the difference: what was compared loses digits near 0.
        left = points[start : start + step] - centroids[codes[start : start + step]]
        errors[start : start + step] = (left**2).sum(axis=1)
    return codes, errors


def assign_rows(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Numbers of the nearest centroids, int64 of shape (rows,); see `nearest_rows`."""
    count, dim = points.shape
    worth = count * len(centroids) >= WORTH and 1 <= dim <= WIDEST
    if ASSIGNS_ON.get() == "cpu" or not worth:
        return compare_products(points, centroids)
    codes = np.empty(count, dtype=np.int64)
    for start in range(0, count, SENT):
        some = points[start : start + SENT]
        own = codes[start : start + SENT]
        own[:], sure = assign_on_gpu(some, centroids)
        if not sure.all():
            own[~sure] = compare_products(some[~sure], centroids)
    return codes


def assign_on_gpu(
    points: np.ndarray, centroids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest by distances in float32, and whether they are so for sure."""
    cupy = load_cupy()
    with np.errstate(over="ignore"):  # what becomes infinite is not sure
        points, centroids = (a.astype(np.float32) for a in (points, centroids))
    with current_stream():
        found = assign_points(cupy.asarray(points), cupy.asarray(centroids))
        nearest, sure = (part.get() for part in found)
    return nearest, sure


def compare_products(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    r"""The nearest by :math:`|x - c|^2 - |x|^2`, for float64 points, in blocks."""
    codes = np.empty(len(points), dtype=np.int64)
    # Doubling is exact; doing it here saves two passes over the distances.
    lengths, doubled = (centroids**2).sum(axis=1), -2 * centroids
    step = max(DISTANCES // len(centroids), 1)
    for start in range(0, len(points), step):
        part = points[start : start + step] @ doubled.T  # (step, clusters)
        part += lengths
        codes[start : start + step] = part.argmin(axis=1)
    return codes


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


def move_centroids(
    points: np.ndarray, found: Clusters, errors: np.ndarray, mass: np.ndarray
) -> np.ndarray:
    """The means of the clusters; an empty one takes the point of the largest error."""
    clusters = len(found.centroids)
    centroids, weight = average_rows(points, found.codes, clusters, mass)
    empty = np.flatnonzero(weight == 0)
    centroids[empty] = points[largest_first(mass * errors)[: len(empty)]]
    return centroids


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

    Starts from points drawn without replacement, and ends where the loss falls by
    less than `tolerance` of itself.  `weights` say how much each point counts.

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
    check_range("clusters", clusters, 1, len(points))
    mass = np.ones(len(points)) if weights is None else weights.astype(np.float64)
    first = np.sort(rng.choice(len(points), clusters, replace=False))
    codes, errors = nearest_rows(points, points[first])
    found = Clusters(points[first], codes, [float(mass @ errors)])
    while len(found.losses) <= iterations and found.losses[-1]:
        found.centroids = move_centroids(points, found, errors, mass)
        found.codes, errors = nearest_rows(points, found.centroids)
        found.losses.append(float(mass @ errors))
        if found.losses[-2] - found.losses[-1] <= tolerance * found.losses[-2]:
            break
    return found


def count_reads(spec: TableSpec, weighted: bool) -> np.ndarray | None:
    """How often each row is read, as weights; 1 for a row that was never seen."""
    if not weighted or not spec.train_counts.any():
        return None
    return np.maximum(spec.train_counts, 1).astype(np.float64)
