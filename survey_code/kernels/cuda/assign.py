"""k-means: the nearest centroid of each point."""

from __future__ import annotations

import numpy as np

from survey_code.kernels.cuda import GpuArray, current_stream, load_cupy
from survey_code.kernels.cuda.load import SHARED_BYTES, THREADS, load_kernel

WIDEST = 64  # numbers of a point that a thread keeps


def assign_points(points: GpuArray, centroids: GpuArray) -> tuple[GpuArray, GpuArray]:
    """The nearest centroid of each point, in float32.

    The distances of a point to all centroids are never stored.  A choice is sure if
    the second nearest is farther by more than all roundings together can amount to;
    the others are left to a more exact way.

    Parameters
    ----------
    points : CuPy array of float32, shape (n, dim)
        dim is at most 64.
    centroids : CuPy array of float32, shape (clusters, dim)

    Returns
    -------
    nearest : CuPy array of int32, shape (n,)
        Of equal ones the first.
    sure : CuPy array of bool, shape (n,)
        Whether the choice is right for the numbers that `points` and `centroids` were
        rounded from, too.

    Raises
    ------
    ValueError
        If the shapes do not fit.
    """
    cupy = load_cupy()
    dim = check_points(points, centroids)
    tile = min(len(centroids), SHARED_BYTES // (4 * dim))
    with current_stream():
        points, centroids = map(cupy.ascontiguousarray, (points, centroids))
        nearest = cupy.empty(len(points), dtype=np.int32)
        sure = cupy.empty(len(points), dtype=np.bool_)
        longest = cupy.sqrt(cupy.square(centroids).sum(axis=1).max(keepdims=True))
        kernel = load_kernel("assign.cu", f"assign_points<{dim}>")
        kernel(
            (-(-len(points) // THREADS),), (THREADS,),
            (
                points, np.int64(len(points)), centroids, np.int32(len(centroids)),
                np.int32(tile), longest, nearest, sure,
            ),
            shared_mem=4 * dim * tile,
        )  # fmt: skip
    return nearest, sure


def check_points(points: GpuArray, centroids: GpuArray) -> int:
    """The points' width; raise ValueError for what `assign_points` cannot take."""
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
    return dim
