"""Searching in codes: the nearest centroids, and scores by table look-up."""

from __future__ import annotations

import numpy as np

from survey_code.kernels.cuda import GpuArray, Shaped, current_stream, load_cupy
from survey_code.kernels.cuda.composed import ComposedRows
from survey_code.kernels.cuda.rows import THREADS, load_kernel
from survey_code.kernels.cuda.scatter import check_file

SHARED_BYTES = 48 * 1024  # that every block may have
WIDEST = 64  # numbers of a point that a thread keeps


def assign_points(points: GpuArray, centroids: GpuArray) -> tuple[GpuArray, GpuArray]:
    """The nearest centroid of each point; of equal ones the first.

    The distances of a point to all centroids are never stored.

    Parameters
    ----------
    points : CuPy array of float32, shape (n, dim)
        dim is at most 64.
    centroids : CuPy array of float32, shape (clusters, dim)

    Returns
    -------
    nearest : CuPy array of int32, shape (n,)
    distances : CuPy array of float32, shape (n,)
        Squared.

    Raises
    ------
    ValueError
        If the shapes do not fit.
    """
    cupy = load_cupy()
    for name, array in (("points", points), ("centroids", centroids)):
        if array.ndim != 2 or array.dtype != np.float32 or not len(array):
            raise ValueError(
                f"{name} must be float32 of shape (n, dim), got {array.dtype} of "
                f"shape {array.shape}"
            )
    dim = points.shape[1]
    if centroids.shape[1] != dim or not 1 <= dim <= WIDEST:
        raise ValueError(
            f"points and centroids need the same width, at most {WIDEST}, got {dim} "
            f"and {centroids.shape[1]}"
        )
    tile = min(len(centroids), SHARED_BYTES // (4 * dim))
    with current_stream():
        points, centroids = map(cupy.ascontiguousarray, (points, centroids))
        nearest = cupy.empty(len(points), dtype=np.int32)
        distances = cupy.empty(len(points), dtype=np.float32)
        kernel = load_kernel("assign.cu", f"assign_points<{dim}>")
        kernel(
            (-(-len(points) // THREADS),), (THREADS,),
            (
                points, np.int64(len(points)), centroids, np.int32(len(centroids)),
                np.int32(tile), nearest, distances,
            ),
            shared_mem=4 * dim * tile,
        )  # fmt: skip
    return nearest, distances


def score_codes(rows: ComposedRows, tables: Shaped, first: int, stop: int) -> GpuArray:
    """Scores of a range of rows, added up from tables.

    Parameters
    ----------
    rows : ComposedRows
        From `survey_code.kernels.cuda.composed.place_codebook`; heads with numbers of their
        own get the score of code 0 everywhere.
    tables : CuPy array of float32, shape (queries, books, codewords of a book)
        Products of each query with each codeword.
    first, stop : int
        Range of ids.

    Returns
    -------
    CuPy array of float32, shape (queries, stop - first)

    Raises
    ------
    ValueError
        If the tables of one query take more than 48 KiB.
    """
    check_file(rows, "codebook.cu")
    cupy = load_cupy()
    queries, books, entries = tables.shape
    if 4 * books * entries > SHARED_BYTES:
        raise ValueError(
            f"the tables of a query take {4 * books * entries:,} bytes; at most "
            f"{SHARED_BYTES:,}"
        )
    count = stop - first
    with current_stream():
        scores = cupy.empty((queries, count), dtype=np.float32)
        kernel = load_kernel("scores.cu", "add_scores")
        kernel(
            (min(-(-count // THREADS), 1024), queries), (THREADS,),
            (
                rows.fields, np.int64(first), np.int64(count),
                cupy.ascontiguousarray(tables), np.int32(entries), scores,
            ),
            shared_mem=4 * books * entries,
        )  # fmt: skip
    return scores
