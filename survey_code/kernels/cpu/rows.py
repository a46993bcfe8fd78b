"""Rows of a table gathered by NumPy, as float32."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Protocol

import numpy as np

# Numbers that are widened together: their indices, 8 bytes each, stay in a cache.
BLOCK_NUMBERS = 2**16


class NumberRows(Protocol):
    """A table whose rows are read in stretches: an array, or what reads a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


def cut_rows(rows: int, dim: int, numbers: int) -> Iterator[slice]:
    """Stretches of so many rows, of about so many numbers each."""
    step = max(numbers // dim, 1)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def take_rows(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Gather rows and widen them to float32, which every stored number is exactly.

    Parameters
    ----------
    values : ndarray of float32, float16 or uint16, shape (rows, dim)
        uint16 are bit patterns of bfloat16.
    ids : ndarray of int64, shape (m,)
        Checked: not negative, and below the number of rows.

    Returns
    -------
    ndarray of float32, shape (m, dim)
        An array of its own.

    Raises
    ------
    IndexError
        If an id is not below the number of rows.
    """
    rows = gather_rows(values, ids)
    if rows.dtype == np.uint16:
        return widen_bfloat16(rows)
    if rows.dtype == np.float16:
        return widen_float16(rows)
    return rows


def gather_rows(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Rows as they are stored: ``values[ids]``, three times as fast.

    `take` copies the whole table first where its rows are not side by side.
    """
    if values.flags.c_contiguous and values.flags.aligned:
        return np.asarray(values).take(ids, axis=0)  # also of a mapped file
    return values[ids]


def widen_bfloat16(patterns: np.ndarray) -> np.ndarray:
    """float32 whose upper halves are these bits: uint16 of any shape."""
    words = patterns.astype(np.uint32)
    words <<= 16
    return words.view(np.float32)


def widen_float16(rows: np.ndarray) -> np.ndarray:
    """float16 (m, dim) as float32, looked up: twice as fast as `astype`."""
    wide = np.empty(rows.shape, dtype=np.float32)
    for part in cut_rows(len(rows), rows.shape[1], BLOCK_NUMBERS):
        places = rows[part].view(np.uint16).astype(np.intp)
        # No place is out of range, and "clip" is the mode that writes into `out`.
        list_float16().take(places, out=wide[part], mode="clip")
    return wide


@cache
def list_float16() -> np.ndarray:
    """All 65,536 numbers of float16 by their bits, as float32."""
    return np.arange(2**16).astype(np.uint16).view(np.float16).astype(np.float32)
