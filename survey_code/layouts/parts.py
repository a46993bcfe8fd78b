"""Rows that a layout is made of: an array of numbers, or another layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from survey_code.layouts.layout import (
    IdArray,
    Layout,
    N,
    RowArray,
    StoredArray,
    array_module,
    take_floats,
)

# What holds rows: floats (rows, width), or a layout of that shape.
Rows: TypeAlias = StoredArray | Layout

NUMBERS = (np.float32, np.float16)


def as_vector(part: npt.ArrayLike | Layout) -> Rows:
    """A layout as it is, anything else as an array; see `check_numbers`."""
    return part if isinstance(part, Layout) else np.asarray(part)


def as_rows(part: npt.ArrayLike | Layout) -> Rows:
    """A layout as it is, anything else as an array; or one clear ValueError."""
    if isinstance(part, Layout):
        return part
    rows = np.asarray(part)
    if rows.ndim < 2:
        raise ValueError(f"rows must be an array of two axes or a layout, got {part!r}")
    return rows


def are_first_ids(starts: np.ndarray | None, rows: int) -> bool:
    """Whether these are the first ids of groups of a table of so many rows.

    int64 of shape (groups,), rising from 0.
    """
    return (
        starts is not None
        and starts.dtype == np.int64
        and starts.ndim == 1
        and len(starts) > 0
        and int(starts[0]) == 0
        and int(starts[-1]) < rows
        and bool((starts[1:] > starts[:-1]).all())
    )


def check_layouts(name: str, parts: Sequence[object]) -> None:
    """Raise ValueError unless these are two layouts or more."""
    if len(parts) < 2 or not all(isinstance(part, Layout) for part in parts):
        raise ValueError(f"{name} needs two parts or more, all layouts")


def rows_shape(part: Rows) -> tuple[int, int]:
    """Number of rows, and their width."""
    if isinstance(part, Layout):
        return part.num_embeddings, part.embedding_dim
    return part.shape[0], int(np.prod(part.shape[1:]))


def part_work(part: Rows) -> int:
    """Numbers that are read for one row of a part; see `Layout.count_work`."""
    if isinstance(part, Layout):
        return int(part.row_work or part.embedding_dim)
    return rows_shape(part)[1]


def bound_product(matrix: np.ndarray) -> float:
    """What rows of ones, times a matrix, do not exceed; columns of it may be many."""
    widest = 0.0
    step = max(2**18 // max(len(matrix), 1), 1)
    for first in range(0, matrix.shape[1], step):
        some = np.abs(matrix[:, first : first + step])
        widest = max(widest, float(some.sum(axis=0, dtype=np.float64).max(initial=0)))
    # Sums of products round, each time by half a unit in the last place.
    return widest * (1 + 1e-6 * len(matrix))


def read_part(part: Rows, places: IdArray) -> RowArray:
    """Rows of a part at int64 places: float32, with one more axis than the places."""
    if not isinstance(part, Layout):
        return take_floats(part, places)
    rows = part.read_rows(places.ravel())
    return rows.reshape(*places.shape, part.embedding_dim)


def read_all(part: Rows) -> RowArray:
    """All rows of a part, float32 (rows, width), row after row."""
    if not isinstance(part, Layout):
        return part.astype(np.float32, copy=False)
    xp = array_module(next(iter(part.arrays().values())))
    rows: RowArray = xp.ascontiguousarray(
        part.read_rows(xp.arange(part.num_embeddings))
    )
    return rows


def check_rows(
    name: str, part: Rows | None, shapes: Sequence[tuple[int | None, int]]
) -> None:
    """Raise ValueError unless a part has one of the shapes.

    Parameters
    ----------
    name : str
    part : array of float32 or float16, or layout
    shapes : sequence of (rows, width)
        Rows are None where any number from 1 up will do.
    """
    wanted = " or ".join(
        f"({'rows' if rows is None else rows}, {width})" for rows, width in shapes
    )
    if part is not None and (isinstance(part, Layout) or part.ndim == 2):
        rows, width = rows_shape(part)
        kind = isinstance(part, Layout) or part.dtype in NUMBERS
        if kind and any(
            width == want and (rows == many if many is not None else rows >= 1)
            for many, want in shapes
        ):
            return
    raise ValueError(
        f"{name} must be float32 or float16 of shape {wanted}, or a layout of it"
    )


# -- vectors, which a layout may hold row after row --------------------------------


def vector_room(part: Rows) -> int:
    """Numbers of a vector; of a layout all that its rows have room for."""
    if isinstance(part, Layout):
        return part.num_embeddings * part.embedding_dim
    return int(part.size)


def check_numbers(
    name: str, part: Rows | None, size: int, kinds: Sequence[npt.DTypeLike] = NUMBERS
) -> None:
    """Raise ValueError unless a part holds a vector of so many numbers.

    A layout holds it row after row, in as few rows as there can be: what the last row
    has beyond the vector's end is never read.
    """
    if isinstance(part, Layout):
        rows = max(-(-size // part.embedding_dim), 1)
        if part.num_embeddings != rows:
            raise ValueError(
                f"{name}, {size} numbers, takes {rows} rows of {part.embedding_dim}, "
                f"got a layout of {part.num_embeddings}"
            )
    elif part is None or part.dtype not in kinds or part.shape != (size,):
        known = " or ".join(str(np.dtype(kind)) for kind in kinds)
        raise ValueError(
            f"{name} must be {known} of shape ({size},), or a layout that holds so many"
        )


def read_numbers(part: Rows, places: IdArray) -> RowArray:
    """Numbers of a vector at int64 places of any shape, float32.

    Of a layout each row is read once, however many of its numbers are asked for.
    """
    if not isinstance(part, Layout):
        numbers: RowArray = part[places].astype(np.float32, copy=False)
        return numbers
    xp, wide = array_module(places), part.embedding_dim
    needed, order = xp.unique(places.ravel() // wide, return_inverse=True)
    rows = part.read_rows(needed)
    picked: RowArray = rows[order.ravel(), places.ravel() % wide]
    return picked.reshape(places.shape)


def read_vector(part: Rows, size: int) -> RowArray:
    """The first numbers of a vector, float32 (size,)."""
    return read_all(part).reshape(-1)[:size]


def numbers_work(part: Rows, count: int) -> int:
    """Numbers that are read for so many numbers of a vector, wherever they stand."""
    if not isinstance(part, Layout):
        return count
    return min(count, part.num_embeddings) * part_work(part)


def is_linear(mode: str, weights: N | None) -> bool:
    """Whether rows may be pooled before a product with a matrix: a sum or a mean,
    whose weights are finite, since 0 times infinity must show.
    """
    if mode == "max" or weights is None:
        return mode != "max"
    return bool(array_module(weights).isfinite(weights).all())
