"""The nearest binary codes, by counting distances instead of sorting them."""

from __future__ import annotations

import numpy as np

from survey_code.kernels.cuda import GpuArray, Shaped, current_stream, load_cupy
from survey_code.kernels.cuda.load import THREADS, load_kernel

QUERIES = 16  # that share one pass over the codes, as in hamming.cu
BLOCKS = 1056  # 8 for each of 132 multiprocessors
CHUNK = 4096  # queries a call of the kernels
MOST_WORDS = 8  # bins of longer codes do not fit into shared memory


def as_words(codes: Shaped) -> GpuArray:
    """Packed codes as whole 64-bit words: uint8 (n, bytes) -> uint64 (n, words)."""
    cupy = load_cupy()
    words = -(-codes.shape[1] // 8)
    if codes.shape[1] % 8:
        padded = cupy.zeros((codes.shape[0], 8 * words), dtype=np.uint8)
        padded[:, : codes.shape[1]] = codes
        codes = padded
    return cupy.ascontiguousarray(codes).view(np.uint64)


def nearest_codes(queries: Shaped, codes: Shaped, k: int) -> GpuArray:
    """The k codes with the fewest differing bits, for each query.

    Parameters
    ----------
    queries, codes : CuPy arrays of uint8, shapes (m, bytes) and (n, bytes)
        At most 64 bytes; n below 2**31.
    k : int
        1 to n.

    Returns
    -------
    CuPy array of int64, shape (m, k)
        The nearest first; of equal distances the lower row first.

    Raises
    ------
    ValueError
        If codes are longer than 64 bytes.
    """
    cupy = load_cupy()
    with current_stream():
        asked, stored = as_words(queries), as_words(codes)
        if stored.shape[1] > MOST_WORDS:
            raise ValueError(
                f"codes must have at most {64 * MOST_WORDS} bits, got "
                f"{64 * stored.shape[1]}"
            )
        best = cupy.empty((len(asked), k), dtype=np.int64)
        for start in range(0, len(asked), CHUNK):
            part = cupy.ascontiguousarray(asked[start : start + CHUNK])
            best[start : start + CHUNK] = _nearest(part, stored, k)
    return best


def _nearest(queries: GpuArray, codes: GpuArray, k: int) -> GpuArray:
    cupy = load_cupy()
    (rows, words), count = codes.shape, len(queries)
    grid = (min(BLOCKS, -(-rows // THREADS)), -(-count // QUERIES))
    arguments = (codes, np.int64(rows), queries, np.int32(count))
    counts = cupy.zeros((count, 64 * words + 1), dtype=np.uint32)
    load_kernel("hamming.cu", f"count_distances<{words}>")(
        grid, (THREADS,), (*arguments, counts)
    )
    within = cupy.cumsum(counts.astype(np.int64), axis=1)
    bounds = (within < k).sum(axis=1).astype(np.int32)  # where the k-th lies
    room = int(cupy.take_along_axis(within, bounds[:, None].astype(np.int64), 1).max())
    # Queries in parts, so that many ties do not fill the memory.
    best = cupy.empty((count, k), dtype=np.int64)
    each = max(QUERIES, 2**27 // room // QUERIES * QUERIES)
    for start in range(0, count, each):
        own = queries[start : start + each]
        keys = cupy.full((len(own), room), 2**64 - 1, dtype=np.uint64)
        found = cupy.zeros(len(own), dtype=np.uint32)
        load_kernel("hamming.cu", f"gather_within<{words}>")(
            (grid[0], -(-len(own) // QUERIES)),
            (THREADS,),
            (
                codes,
                np.int64(rows),
                own,
                np.int32(len(own)),
                bounds[start : start + each],
                found,
                np.int64(room),
                keys,
            ),
        )
        chosen = cupy.sort(keys, axis=1)[:, :k]
        best[start : start + each] = (chosen & np.uint64(2**40 - 1)).astype(np.int64)
    return best
