"""Rows that a network computes from hashes: cuBLAS's products, and what stands between.

One kernel makes the network's input, another one follows each product.
"""

from __future__ import annotations

import numpy as np

from survey_code.kernels.cuda import GpuArray, Shaped, load_cupy
from survey_code.kernels.cuda.load import ID_TYPES, THREADS, load_kernel
from survey_code.kernels.formats import GeneratorFormat

AT_ONCE = 1 << 16  # ids whose signals are in memory at the same time


def generate_rows(
    format: GeneratorFormat, ids: GpuArray, flag: GpuArray
) -> tuple[GpuArray, GpuArray]:
    """The distinct rows of a call, each computed once; to find them, the call waits.

    Returns
    -------
    table : CuPy array of float32, shape (distinct ids, dim)
    places : CuPy array of int64, shape (m,)
        The row of the table for each id.
    """
    cupy = load_cupy()
    distinct, places = cupy.unique(ids, return_inverse=True)
    table = cupy.zeros((max(distinct.size, 1), format.dim), dtype=np.float32)
    for start in range(0, distinct.size, AT_ONCE):
        part = distinct[start : start + AT_ONCE]
        signals = encode_ids(format, part, flag)
        for number, (matrix, bias) in enumerate(format.layers, start=1):
            signals = signals @ matrix
            last = number == len(format.layers)
            add_bias(signals, bias, "nothing" if last else format.activation)
        table[start : start + AT_ONCE] = signals
    return table, places.ravel()


def encode_ids(format: GeneratorFormat, ids: GpuArray, flag: GpuArray) -> GpuArray:
    """The network's input, float32 of shape (m, codes)."""
    signals = load_cupy().empty((ids.size, format.codes), dtype=np.float32)
    form = f"{str(format.normal).lower()}, {ID_TYPES[str(ids.dtype)]}"
    kernel = load_kernel("generator.cu", f"make_codes<{form}>")
    threads = signals.size // (2 if format.normal else 1)
    numbers = [np.uint64(number % 2**64) for number in format.multipliers]
    kernel(
        (-(-threads // THREADS),), (THREADS,),
        (
            ids, np.int64(ids.size), np.int64(format.rows), *numbers,
            np.int32(format.codes), signals, flag,
        ),
    )  # fmt: skip
    return signals


def add_bias(signals: GpuArray, bias: Shaped, activation: str) -> None:
    """What follows a product, in place."""
    kernel = load_kernel("generator.cu", f"add_bias<{activation.upper()}>")
    kernel(
        (-(-signals.size // THREADS),), (THREADS,),
        (signals, bias, np.int64(signals.size), np.int32(signals.shape[1])),
    )  # fmt: skip
