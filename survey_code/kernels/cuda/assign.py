"""k-means: the nearest centroid of each point."""

from __future__ import annotations

import numpy as np

from survey_code.kernels.cuda import GpuArray, current_stream, load_cupy
from survey_code.kernels.cuda.load import SHARED_BYTES, THREADS, load_kernel

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
