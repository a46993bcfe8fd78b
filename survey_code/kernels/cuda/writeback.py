"""Rows rounded by chance and written back as packed codes, and NumPy's same."""

from __future__ import annotations

import numpy as np

from survey_code.kernels.cuda import GpuArray, current_stream, load_cupy
from survey_code.kernels.cuda.load import THREADS, load_kernel


def mix(keys: np.ndarray) -> np.ndarray:
    """A mixture of 64 bits (splitmix64); uint64 in, uint64 out."""
    with np.errstate(over="ignore"):
        keys = keys + np.uint64(0x9E3779B97F4A7C15)
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return keys ^ (keys >> np.uint64(31))


def draw_key(seed: int, step: int) -> np.uint64:
    """One key for all coins of a training step."""
    both = mix(np.array([seed], dtype=np.uint64)) ^ np.uint64(step)
    return np.uint64(mix(both)[0])


def lowest_code(bits: int) -> int:
    """What code 0 stands for where codes reach as far down as up."""
    return -(2 ** (bits - 1))


def round_rows(
    rows: np.ndarray,
    ids: np.ndarray,
    steps: np.ndarray,
    bits: int,
    key: np.uint64,
    low: int | None = None,
) -> np.ndarray:
    """Codes of rows, as `write_rows` packs and stores them; in NumPy.

    The code of an entry is ``floor(x / s + u) - low``, cut to 0 and ``2**bits - 1``,
    with a number u from 0 to 1 that depends on the key, the row's id and the column
    alone.

    Parameters
    ----------
    rows : ndarray of float32, shape (m, dim)
    ids : ndarray of int64, shape (m,)
    steps : ndarray of float32, shape (m,)
    bits : {8, 4, 3, 2, 1}
    key : uint64
        From `draw_key`.
    low : int, optional
        The whole number that code 0 stands for; by default ``-2**(bits - 1)``.

    Returns
    -------
    ndarray of uint8, shape (m, dim)
    """
    low = lowest_code(bits) if low is None else low
    columns = np.arange(rows.shape[1], dtype=np.uint64)
    places = (ids.astype(np.uint64) << np.uint64(20))[:, None] | columns
    coins = (mix(key ^ mix(places)) >> np.uint64(40)).astype(np.float32) * np.float32(
        2.0**-24
    )
    scaled = rows / steps[:, None]
    below = np.floor(scaled)
    codes: np.ndarray = below + (coins < scaled - below) - low
    return codes.clip(0, 2**bits - 1).astype(np.uint8)


def write_rows(
    table: GpuArray,
    ids: GpuArray,
    rows: GpuArray,
    steps: GpuArray,
    bits: int,
    key: np.uint64,
    low: int | None = None,
) -> None:
    """Round rows by chance and store their codes, on a GPU.

    Parameters
    ----------
    table : CuPy array of uint8, shape (n, bytes)
        Changed in place; the rows of `ids`, their first ``ceil(dim * bits / 8)``
        bytes.
    ids : CuPy array of int64, shape (m,), all different, below n
    rows : CuPy array of float32, shape (m, dim)
    steps : CuPy array of float32, shape (m,)
        Value of one code step.
    bits : {8, 4, 3, 2, 1}
    key : uint64
        From `draw_key`.
    low : int, optional
        The whole number that code 0 stands for; by default ``-2**(bits - 1)``.

    Raises
    ------
    ValueError
        If shapes or types are others, or `bits` is unknown.
    """
    cupy = load_cupy()
    width = check_write(table, ids, rows, steps, bits)
    count, dim = rows.shape
    if not count:
        return
    with current_stream():
        values, places, scales = map(cupy.ascontiguousarray, (rows, ids, steps))
        load_kernel("writeback.cu", f"write_rows<{bits}>")(
            (-(-count * width // THREADS),), (THREADS,),
            (
                values, np.int64(count), np.int32(dim), places, scales,
                np.int32(lowest_code(bits) if low is None else low), np.uint64(key),
                table, np.int32(table.shape[1]),
            ),
        )  # fmt: skip


def check_write(
    table: GpuArray, ids: GpuArray, rows: GpuArray, steps: GpuArray, bits: int
) -> int:
    """Bytes of a row's codes; raise ValueError for what `write_rows` cannot take."""
    count, dim = rows.shape
    width = -(-dim * bits // 8)
    if bits not in (8, 4, 3, 2, 1):
        raise ValueError(f"bits must be 8, 4, 3, 2 or 1, got {bits!r}")
    if (
        (table.dtype, ids.dtype, rows.dtype, steps.dtype)
        != (np.uint8, np.int64, np.float32, np.float32)
        or ids.shape != (count,)
        or steps.shape != (count,)
        or table.shape[1] < width
        or dim >= 2**20
    ):
        raise ValueError(
            f"rows {rows.shape} need int64 ids and float32 steps of shape ({count},) "
            f"and a uint8 table of at least {width} bytes a row, got ids {ids.shape}, "
            f"steps {steps.shape}, table {table.shape}"
        )
    return width
