"""Scores of all rows that codes name, by table look-up."""

from __future__ import annotations

import numpy as np

from survey_code.kernels.cuda import GpuArray, Shaped, current_stream, load_cupy
from survey_code.kernels.cuda.load import SHARED_BYTES, THREADS, load_kernel
from survey_code.kernels.formats import Format


def score_codes(codes: Format, tables: Shaped, first: int, stop: int) -> GpuArray:
    """Scores of a range of rows, added up from tables.

    Parameters
    ----------
    codes : Format
        Of packed integers, perhaps routed.
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
        kernel = load_kernel("scores.cu", f"add_scores<{codes.form(1)}>", codes.source)
        kernel(
            (min(-(-count // THREADS), 1024), queries), (THREADS,),
            (
                codes.arguments, np.int32(books), np.int64(first), np.int64(count),
                cupy.ascontiguousarray(tables), np.int32(entries), scores,
            ),
            shared_mem=4 * books * entries,
        )  # fmt: skip
    return scores
