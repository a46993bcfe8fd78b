"""Lloyd's algorithm: k codewords for n points, and for what they leave."""

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

# Distances held at once: 512 KB in float32, which stay beside the processor.
DISTANCES = 1 << 17
# Points compared at once, where there are so many centroids that it would be fewer.
FEWEST = 64
# Rows whose sums are made at once.
SUMMED = 1 << 14

# Points that k-means sees for each of its centroids: more find hardly better ones.
POINTS = 256
# It begins on a sixteenth of these, or on so many points, with half of its steps; then
# it takes a fifth of them on all, or an eighth where points have one or two numbers.
BEGINS_ON, BEGINNING = 16, 1 << 12
BEGINS_BY, ENDS_BY, ENDS_SHORT_BY = 2, 5, 8
# Books of `quantize_residuals`, at most.
MOST_BOOKS = 16
# Times that points are drawn to begin from, each time far from those drawn before.
DRAWS = 8

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
        Weighted squared error after each assignment; it never rises.  Where k-means
        ran on a sample, it is the sample's, whose weights stand for all rows.
    """

    centroids: np.ndarray
    codes: np.ndarray
    losses: list[float]


def as_points(points: np.ndarray) -> np.ndarray:
    """Points as they are in float32, anything else in float64.

    Raises
    ------
    ValueError
        If one is not finite.
    """
    points = np.asarray(points)
    if points.dtype != np.float32:
        points = points.astype(np.float64, copy=False)
    for start in range(0, len(points), SUMMED):
        if not np.isfinite(points[start : start + SUMMED]).all():
            raise ValueError("rows to cluster must be finite, got NaN or infinity")
    return points


# -- the nearest ------------------------------------------------------------------


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
    codes = assign_rows(points, centroids)
    return codes, measure_errors(points, centroids, codes)


def measure_errors(
    points: np.ndarray, centroids: np.ndarray, codes: np.ndarray
) -> np.ndarray:
    """Squared distance of each point to its centroid, float64 (rows,).

    From the difference: what was compared loses digits near 0.
    """
    centroids = np.asarray(centroids, dtype=np.float64)
    errors = np.empty(len(points))
    for start in range(0, len(points), SUMMED):
        left = points[start : start + SUMMED] - centroids[codes[start : start + SUMMED]]
        errors[start : start + SUMMED] = (left**2).sum(axis=1)
    return errors


def assign_rows(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Numbers of the nearest centroids, int64 of shape (rows,); see `nearest_rows`.

    All are compared in float32; the few points whose choice roundings may have made
    are compared in float64.  What is found does not depend on the processor then,
    though products in float32 do.
    """
    points = np.asarray(points)
    if points.dtype != np.float32:
        points = points.astype(np.float64, copy=False)
    centroids = np.asarray(centroids, dtype=np.float64)
    count, dim = points.shape
    worth = count * len(centroids) >= WORTH and 1 <= dim <= WIDEST
    ask = compare_rounded
    if ASSIGNS_ON.get() == "cuda" and worth:
        ask = assign_on_gpu
    codes = np.empty(count, dtype=np.int64)
    for start in range(0, count, SENT):
        some = points[start : start + SENT]
        own = codes[start : start + SENT]
        own[:], sure = ask(some, centroids)
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


def compare_rounded(
    points: np.ndarray, centroids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    r"""The nearest by :math:`|x - c|^2 - |x|^2` in float32, and whether it is sure.

    Points and centroids are scaled by a power of two and moved by the centroids' mean
    first, so that neither their size nor what they have in common costs digits.  The
    choice is sure if the second nearest is farther by more than roundings can be: each
    of two scores is a sum of dim + 1 products, of rounded factors, and off by at most
    :math:`(d + 4) u (2 |x| |c| + |c|^2)` with u half a unit in the last place.
    """
    count, dim = points.shape
    _, exponent = np.frexp(np.abs(centroids).max(initial=0))
    scale = points.dtype.type(2.0 ** -float(np.clip(exponent, -120, 120)))
    center = (centroids * scale).mean(axis=0).astype(points.dtype)
    words = centroids * scale - center
    lengths = (words**2).sum(axis=1)
    reach = float(np.sqrt(lengths.max()))
    factors = np.concatenate([-2 * words.T, lengths[None]]).astype(np.float32)
    slack = 2.02 * (dim + 4) * 2.0**-24 * reach

    nearest, sure = np.empty(count, dtype=np.int64), np.empty(count, dtype=bool)
    # Column by column: what is done to short rows one by one takes longer.
    part = np.ones((dim + 1, min(SUMMED, count)), dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # NaN is not sure
        for start in range(0, count, SUMMED):
            some = points[start : start + SUMMED].T * scale
            own = part[:, : some.shape[1]]
            np.subtract(some, center[:, None], out=own[:dim], casting="same_kind")
            first, gaps = find_least(own.T, factors)
            far = np.sqrt(np.einsum("ij,ij->j", own[:dim], own[:dim]))
            nearest[start : start + SUMMED] = first
            sure[start : start + SUMMED] = gaps > slack * (2 * far + reach) + 1e-30
    return nearest, sure


def find_least(
    points: np.ndarray, factors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Place of the least of a point's products, and by how much the next is larger.

    Parameters
    ----------
    points : ndarray of float32, shape (rows, dim)
    factors : ndarray of float32, shape (dim, clusters)

    Returns
    -------
    places : ndarray of int64, shape (rows,)
    gaps : ndarray of float32, shape (rows,)
    """
    count, clusters = len(points), factors.shape[1]
    step = max(DISTANCES // clusters, FEWEST)
    scores = np.empty((min(step, count), clusters), dtype=np.float32)
    begins = np.arange(len(scores)) * clusters
    places, gaps = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.float32)
    for start in range(0, count, step):
        some = points[start : start + step]
        own = scores[: len(some)]
        np.matmul(some, factors, out=own)
        first = own.argmin(axis=1)
        flat, at = own.reshape(-1), begins[: len(some)] + first
        least = flat[at]
        flat[at] = np.inf
        second = flat[begins[: len(some)] + own.argmin(axis=1)]
        places[start : start + step] = first
        np.subtract(second, least, out=gaps[start : start + step])
    return places, gaps


def compare_products(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    r"""The nearest by :math:`|x - c|^2 - |x|^2` in float64, in blocks.

    Of those that roundings cannot tell apart it is the first, on every processor.
    """
    codes = np.empty(len(points), dtype=np.int64)
    center = centroids.mean(axis=0)
    centroids = centroids - center
    # Doubling is exact; doing it here saves two passes over the distances.
    lengths, doubled = (centroids**2).sum(axis=1), -2 * centroids
    reach = float(np.sqrt(lengths.max()))
    slack = 2.02 * (points.shape[1] + 4) * 2.0**-53 * reach
    step = max(DISTANCES // len(centroids), FEWEST)
    for start in range(0, len(points), step):
        some = points[start : start + step] - center
        part = some @ doubled.T  # (step, clusters)
        part += lengths
        far = np.sqrt((some**2).sum(axis=1))
        most = part.min(axis=1) + slack * (2 * far + reach)
        codes[start : start + step] = (part <= most[:, None]).argmax(axis=1)
    return codes


# -- the means --------------------------------------------------------------------


def sum_rows(
    points: np.ndarray, codes: np.ndarray, clusters: int, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted sum of each cluster's points, and its weight.

    Returns
    -------
    sums : ndarray of float64, shape (clusters, dim)
    mass : ndarray of float64, shape (clusters,)
    """
    dim = points.shape[1]
    sums = np.zeros((dim, clusters))
    step = max(SUMMED, clusters)
    for start in range(0, len(points), step):
        own = codes[start : start + step]
        columns = points[start : start + step].T.astype(np.float64, order="C")
        if weights is not None:
            columns *= weights[start : start + step]
        for place, column in enumerate(columns):
            sums[place] += np.bincount(own, weights=column, minlength=clusters)
    mass = np.bincount(codes, weights=weights, minlength=clusters)
    return sums.T, mass.astype(np.float64)


def average_rows(
    points: np.ndarray,
    codes: np.ndarray,
    clusters: int,
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean of each cluster's points, 0 where it has none, and its weight.

    Returns
    -------
    means : ndarray of float64, shape (clusters, dim)
    mass : ndarray of float64, shape (clusters,)
    """
    sums, mass = sum_rows(points, codes, clusters, weights)
    # Dividing by the mass of an empty cluster would fill its row with NaN.
    return sums / np.where(mass > 0, mass, 1)[:, None], mass


def move_centroids(
    points: np.ndarray, found: Clusters, weights: np.ndarray | None
) -> np.ndarray:
    """The means of the clusters; an empty one takes the point of the largest error."""
    clusters = len(found.centroids)
    centroids, mass = average_rows(points, found.codes, clusters, weights)
    empty = np.flatnonzero(mass == 0)
    if len(empty):
        errors = measure_errors(points, found.centroids, found.codes)
        worst = largest_first(errors if weights is None else weights * errors)
        centroids[empty] = points[worst[: len(empty)]]
    return centroids


def total_error(
    points: np.ndarray, found: Clusters, weights: np.ndarray | None
) -> float:
    """Squared errors of all points, weighted and added up."""
    errors = measure_errors(points, found.centroids, found.codes)
    return float(errors.sum() if weights is None else weights @ errors)


# -- k-means ----------------------------------------------------------------------


def cluster_rows(
    points: np.ndarray,
    clusters: int,
    rng: np.random.Generator,
    *,
    weights: np.ndarray | None = None,
    iterations: int = 25,
    tolerance: float = 1e-3,
    sample: int = 0,
) -> Clusters:
    """K-means: assign each point to its nearest centroid, move these to the means.

    Parameters
    ----------
    points : ndarray of float, shape (rows, dim)
    clusters : int
        1 to rows.
    rng : numpy.random.Generator
    weights : ndarray, shape (rows,), optional
        How much each point counts.
    iterations : int, default 25
    tolerance : float, default 0.001
        It ends where the loss falls by less than this share of itself.
    sample : int, default 0
        Points seen for each cluster: see `sample_clusters`.  0: all, from the start.

    Raises
    ------
    ValueError
        If there are more clusters than points, or none, or a point is not finite.

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
    points = as_points(points)
    check_range("clusters", clusters, 1, len(points))
    mass = None if weights is None else weights.astype(np.float64)
    if sample:
        steps = sample, iterations, tolerance
        return sample_clusters(points, mass, clusters, rng, *steps)
    begun = draw_evenly(points, clusters, rng)
    return settle_clusters(points, mass, begun, iterations, tolerance)


def sample_clusters(
    points: np.ndarray,
    mass: np.ndarray | None,
    clusters: int,
    rng: np.random.Generator,
    sample: int,
    iterations: int,
    tolerance: float,
) -> Clusters:
    """Clusters of a sample, drawn by `sample_rows`; other points are only assigned.

    K-means begins on a part of it with half of the steps, twice: from points drawn
    evenly, and from points far apart.  From the better of the two it takes a few steps
    on the whole sample.  Points far apart are the better start in short rows, most of
    all where some are far outside; in long ones, and with few clusters, points drawn
    evenly may be.
    """
    seen, own = draw_points(points, mass, sample * clusters, rng)
    size = max(sample * clusters // BEGINS_ON, BEGINNING)
    some, counts = draw_points(seen, own, size, rng)
    begins = (
        spread_points(some, counts, clusters, rng),
        draw_evenly(some, clusters, rng),
    )
    steps = max(iterations // BEGINS_BY, 1)
    begun = [settle_clusters(some, counts, one, steps, tolerance) for one in begins]
    best = min(begun, key=lambda found: found.losses[-1]).centroids
    ends_by = ENDS_SHORT_BY if points.shape[1] <= 2 else ENDS_BY
    steps = max(iterations // ends_by, 1)
    found = settle_clusters(seen, own, best, steps, tolerance)
    if len(seen) < len(points):
        found.codes = assign_rows(points, found.centroids)
    return found


def draw_evenly(
    points: np.ndarray, clusters: int, rng: np.random.Generator
) -> np.ndarray:
    """Points to begin from, all as likely, float64 (clusters, dim)."""
    first = np.sort(rng.choice(len(points), clusters, replace=False))
    return points[first].astype(np.float64)


def settle_clusters(
    points: np.ndarray,
    mass: np.ndarray | None,
    begun: np.ndarray,
    iterations: int,
    tolerance: float,
) -> Clusters:
    """Lloyd's steps on all of some points, from the centroids they are `begun` with."""
    found = Clusters(begun, assign_rows(points, begun), [])
    found.losses.append(total_error(points, found, mass))
    while len(found.losses) <= iterations and found.losses[-1]:
        found.centroids = move_centroids(points, found, mass)
        found.codes = assign_rows(points, found.centroids)
        found.losses.append(total_error(points, found, mass))
        if found.losses[-2] - found.losses[-1] <= tolerance * found.losses[-2]:
            break
    return found


def spread_points(
    points: np.ndarray, mass: np.ndarray | None, clusters: int, rng: np.random.Generator
) -> np.ndarray:
    """Points to begin from, float64 (clusters, dim): the likelier the more they err.

    The first is drawn evenly.  Then, a few times, points are drawn by their weight
    times a power of their squared distance to the nearest of those drawn before: 1 for
    points of one or two numbers, 4 / (dim + 2) for longer ones, among which the power
    1 gave too many centroids to the few points far outside.

    Notes
    -----
    Bahmani et al., "Scalable K-Means++" (VLDB 2012), whose last step, k-means++ among
    more points than are needed, is left out: exactly as many are drawn.
    """
    drawn = points[[int(rng.integers(len(points)))]].astype(np.float64)
    errors = measure_errors(points, drawn, np.zeros(len(points), dtype=np.int64))
    share, power = -(-clusters // DRAWS), min(4 / (points.shape[1] + 2), 1)
    while len(drawn) < clusters:
        size = min(share, clusters - len(drawn))
        chances = errors if power == 1 else errors**power
        ends = np.cumsum(chances if mass is None else mass * chances)
        if not ends[-1]:  # all are drawn: what follows is empty, and stays so
            return np.concatenate([drawn, points[: clusters - len(drawn)]])
        places = draw_places(ends, size, rng)
        more = points[places].astype(np.float64)
        np.minimum(errors, nearest_rows(points, more)[1], out=errors)
        drawn = np.concatenate([drawn, more])
    return drawn


def draw_places(ends: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """At most so many places, rising, each drawn as often as its weight says.

    `ends` are sums of weights.  The draws are equally far apart, from a random start:
    what weighs less than that is drawn once at most.
    """
    draws = (rng.random() + np.arange(size)) * (ends[-1] / size)
    places = np.searchsorted(ends, draws, side="right")
    return np.unique(places.clip(max=len(ends) - 1))


def draw_points(
    points: np.ndarray, mass: np.ndarray | None, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
    """At most so many points, and what each counts: all, or those of `sample_rows`."""
    if len(points) <= size:
        return points, mass
    some, counts = sample_rows(len(points), mass, size, rng)
    return points[some], counts


def sample_rows(
    rows: int, weights: np.ndarray | None, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that stand for all, and how much each counts then.

    Without weights all are as likely.  With weights a row is drawn as often as it
    weighs, at most once: rows heavier than the distance between two draws are all
    there and keep their weights; the others share the rest of the weight evenly.

    Returns
    -------
    some : ndarray of int64, shape (at most size,)
        Rising.
    counts : ndarray of float64, of the same shape
        Their sum is the weight of all rows, or their number.
    """
    if weights is None:
        some = np.sort(rng.choice(rows, size, replace=False))
        return some, np.full(size, rows / size)
    order = largest_first(weights)
    sums = np.cumsum(weights[order])
    left = sums[-1] - np.concatenate([[0.0], sums[: size - 1]])
    # The first place from which on no row weighs a share of what is left.
    heavy = int((weights[order[:size]] * (size - np.arange(size)) < left).argmax())
    lighter = np.sort(order[heavy:])
    ends = np.cumsum(weights[lighter])
    drawn = lighter[draw_places(ends, size - heavy, rng)]
    share = ends[-1] / len(drawn)
    some = np.concatenate([order[:heavy], drawn])
    counts = np.concatenate([weights[order[:heavy]], np.full(len(drawn), share)])
    rising = np.argsort(some, kind="stable")
    return some[rising], counts[rising]


def count_reads(spec: TableSpec, weighted: bool) -> np.ndarray | None:
    """How often each row is read, as weights; 1 for a row that was never seen."""
    if not weighted or not spec.train_counts.any():
        return None
    return np.maximum(spec.train_counts, 1).astype(np.float64)


# -- what is left ------------------------------------------------------------------


@dataclass
class ResidualCodes:
    """What `quantize_residuals` found.

    Parameters
    ----------
    codes : ndarray of int64, shape (rows, books)
    codewords : ndarray of float64, shape (books, K, dim)
    losses : list of float
        Squared error of the table with 0, 1, 2, ... books; it never rises.
    """

    codes: np.ndarray
    codewords: np.ndarray
    losses: list[float]

    def decode(self) -> np.ndarray:
        """The rows that the codes stand for, float64 (rows, dim)."""
        books = np.arange(len(self.codewords))
        rows: np.ndarray = self.codewords[books, self.codes].sum(axis=1)
        return rows


def quantize_residuals(
    table: np.ndarray,
    books: int,
    clusters: int,
    rng: np.random.Generator,
    sample: int = 0,
) -> ResidualCodes:
    """Quantise rows, then what is left of them, and so on: one book each time.

    Parameters
    ----------
    table : ndarray of float, shape (rows, dim)
    books : int
    clusters : int
        Codewords of each book, 1 to rows.
    rng : numpy.random.Generator
    sample : int, default 0
        As for `cluster_rows`.

    Returns
    -------
    ResidualCodes

    Notes
    -----
    Juang and Gray, "Multiple stage vector quantization for speech coding" (1982).

    Examples
    --------
    >>> table = np.array([[0.0], [1.0], [10.0], [11.0]])
    >>> found = quantize_residuals(table, 2, 2, np.random.default_rng(0))
    >>> found.losses[1:], found.decode().ravel().tolist()
    ([1.0, 0.0], [0.0, 1.0, 10.0, 11.0])
    """
    check_range("books", books, 1, MOST_BOOKS)
    left = np.array(table, dtype=np.float64)
    codes, codewords, losses = [], [], [float((left**2).sum())]
    for _ in range(books):
        found = cluster_rows(left, clusters, rng, sample=sample)
        codes.append(found.codes)
        codewords.append(found.centroids)
        left -= found.centroids[found.codes]
        losses.append(float((left**2).sum()))
    return ResidualCodes(np.stack(codes, 1), np.stack(codewords), losses)
