"""Arrays on a GPU, laid out for the kernels that read them."""

from __future__ import annotations

from typing import Any

import numpy as np

from survey_code.kernels.cuda import GpuArray, Shaped, is_cupys, load_cupy

SECTOR = 32  # bytes that the memory fetches at least


def round_up(size: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-size // unit) * unit


def choose_stride(used: int) -> int:
    """Bytes from row to row, so that a row touches as few sectors as it can."""
    return round_up(used, SECTOR if used <= SECTOR or used > 2 * SECTOR else 2 * SECTOR)


def address_of(array: Shaped) -> int:
    """Where an array begins; 0 where there is nothing in it."""
    held: Any = array
    told = held.__cuda_array_interface__ if is_cupys(held) else held.__array_interface__
    return int(told["data"][0]) * bool(array.size)


def row_stride(rows: Shaped) -> int:
    """Bytes from row to row of a 2-D array whose rows are whole."""
    held: Any = rows
    return int(held.strides[0])


def place_rows(rows: Shaped) -> Any:
    """Rows on a GPU, each at the beginning of a whole memory sector.

    Parameters
    ----------
    rows : array of NumPy or CuPy, shape (n, width)
        Of any type; uint8 rows are read whole, so that pairs of sectors go together.

    Returns
    -------
    CuPy array of the same shape and type
        The rows themselves where they lie so.  Where rows are padded, a view of the
        first entries of each.
    """
    cupy = load_cupy()
    given: Any = rows
    used = rows.shape[1] * rows.itemsize
    if rows.dtype == np.uint8:
        stride = choose_stride(used)
    else:
        # Bags are read 32 bytes at a time: no piece may reach beyond its row.
        stride = round_up(used, 16 if used <= 16 else SECTOR)
    lies = is_cupys(rows) and given.strides == (stride, rows.itemsize)
    if lies and address_of(rows) % SECTOR == 0:
        return rows
    if stride == used:
        return cupy.array(given, order="C")
    table = cupy.zeros((rows.shape[0], stride // rows.itemsize), dtype=rows.dtype)
    table[:, : rows.shape[1]] = cupy.asarray(rows)
    return table[:, : rows.shape[1]]


def pack_beside(codes: Shaped, tail: Shaped) -> GpuArray:
    """Rows of codes, and what belongs to each behind them, padded.

    Parameters
    ----------
    codes : CuPy array of uint8, shape (n, bytes)
    tail : CuPy array of float32, shape (n, numbers)

    Returns
    -------
    CuPy array of uint8, shape (n, bytes + 4 * numbers)
        A view of padded rows.
    """
    cupy = load_cupy()
    (rows, width), behind = codes.shape, cupy.ascontiguousarray(tail).view(np.uint8)
    used = width + behind.shape[1]
    table = cupy.zeros((rows, choose_stride(used)), dtype=np.uint8)
    table[:, :width] = codes
    table[:, width:used] = behind
    return table[:, :used]


def pad_words(array: Shaped) -> Shaped:
    """A vector of bytes as whole 32-bit words; other vectors as they are."""
    if array.itemsize > 1 or not array.size % 4:
        return array
    whole = load_cupy().zeros(round_up(array.size, 4), dtype=array.dtype)
    whole[: array.size] = array
    return whole
