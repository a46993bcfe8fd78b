"""Starting the kernels of look-ups and bags, whatever format the rows have."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import TYPE_CHECKING

import numpy as np

from survey_code.kernels.cuda import MODES, GpuArray, Shaped, current_stream, load_cupy
from survey_code.kernels.cuda.formats import (
    DenseFormat,
    Format,
    GeneratorFormat,
    PieceFormat,
    TurnedFormat,
)
from survey_code.kernels.cuda.generate import generate_rows
from survey_code.kernels.cuda.load import ID_TYPES, Kernel, load_kernel
from survey_code.kernels.cuda.place import place_rows

if TYPE_CHECKING:
    from torch import Tensor

SHARING = 64  # threads of a block that share rows
ENOUGH_GROUPS = 8192  # of threads that share rows


# -- what layouts call ---------------------------------------------------------


def read(format: Format, ids: GpuArray, check: bool = True) -> GpuArray:
    """One row per id.

    Parameters
    ----------
    format : Format
    ids : CuPy array of int32 or int64, any shape
    check : bool, default True
        Wait for the kernel and raise for a bad id; without it the row of a bad id is
        not written.

    Returns
    -------
    CuPy array of float32, shape (*ids.shape, dim)
    """
    cupy = load_cupy()
    shape, ids = ids.shape, as_ids(ids).ravel()
    with current_stream():
        out = cupy.empty((ids.size, format.dim), dtype=np.float32)
        flag = cupy.zeros(1, dtype=np.uint32)
        if ids.size:
            start_read(format, ids, out, flag)
        if check:
            raise_if(flag, ids, format.rows)
    return out.reshape(*shape, format.dim)


def pool(
    format: Format,
    ids: GpuArray,
    offsets: Shaped | Tensor | Sequence[int] | None = None,
    weights: GpuArray | None = None,
    mode: str = "sum",
    check: bool = True,
) -> GpuArray:
    """One pooled row per bag; see `survey_code.layouts.Layout.bag`."""
    cupy = load_cupy()
    ids = as_ids(ids)
    with current_stream():
        starts = as_offsets(ids, offsets)
        out = cupy.empty((starts.size, format.dim), dtype=np.float32)
        flag = cupy.zeros(1, dtype=np.uint32)
        if starts.size:
            start_pool(format, ids, starts, weights, mode, out, flag)
        if check:
            raise_if(flag, ids, format.rows)
    return out


def raise_if(flag: GpuArray, ids: GpuArray, rows: int) -> None:
    """Raise what a kernel reported."""
    found = int(flag[0])
    if found & 1:
        low, high = int(ids.min()), int(ids.max())
        raise IndexError(
            f"id {low if low < 0 else high} is out of range for a table of "
            f"{rows} rows (ids are 0 to {rows - 1})"
        )
    if found & 2:
        raise ValueError(
            "offsets must start at 0, never fall, and not exceed the number of "
            f"ids ({ids.size})"
        )


# -- one start for each kind of format -----------------------------------------


@singledispatch
def start_read(format: Format, ids: GpuArray, out: GpuArray, flag: GpuArray) -> None:
    """Start the kernel of a look-up; ids have one axis, at least one of them."""
    kernel, lanes, groups = compose(format, "read_composed", ids)
    # Threads that share rows find up to `lanes` of them at once; fewer where there
    # would be too few groups to keep the whole GPU busy.
    each = min(max(ids.size // ENOUGH_GROUPS, 1), lanes)
    kernel(
        (-(-ids.size // (groups * each)),),
        (lanes, groups),
        (*tell(format, ids), np.int32(each), out, flag),
    )


@singledispatch
def start_pool(
    format: Format,
    ids: GpuArray,
    offsets: GpuArray,
    weights: GpuArray | None,
    mode: str,
    out: GpuArray,
    flag: GpuArray,
) -> None:
    """Start the kernel of a bag; there is at least one."""
    # For short bags, fewer registers and so more threads at once.
    ahead = "1" if ids.size < 4 * offsets.size else ""
    kernel, lanes, bags = compose(format, "pool_composed", ids, ahead)
    how = (*or_null(weights), np.int32(MODES.index(mode)))
    sizes = (offsets, np.int64(offsets.size))
    kernel(
        (-(-offsets.size // bags),),
        (lanes, bags),
        (*tell(format, ids), *sizes, *how, out, flag),
    )


@start_read.register
def _(format: PieceFormat, ids: GpuArray, out: GpuArray, flag: GpuArray) -> None:
    kernel, lanes, rows = choose_piece(format, "read_rows", "single", ids)
    kernel(
        (-(-ids.size // (4 * rows)),), (lanes, rows), (*tell(format, ids), out, flag)
    )


@start_pool.register
def _(
    format: PieceFormat,
    ids: GpuArray,
    offsets: GpuArray,
    weights: GpuArray | None,
    mode: str,
    out: GpuArray,
    flag: GpuArray,
) -> None:
    use = "pooled" if ids.size >= 4 * offsets.size else "short"
    name = "max_rows" if mode == "max" else "pool_rows"
    how = () if mode == "max" else (*or_null(weights), np.int32(mode == "mean"))
    kernel, lanes, bags = choose_piece(format, name, use, ids)
    sizes = (offsets, np.int64(offsets.size))
    kernel(
        (-(-offsets.size // bags),),
        (lanes, bags),
        (*tell(format, ids), *sizes, *how, out, flag),
    )


@start_read.register
def _(format: GeneratorFormat, ids: GpuArray, out: GpuArray, flag: GpuArray) -> None:
    table, places = generate_rows(format, ids, flag)
    start_read(as_table(table), places, out, flag)


@start_pool.register
def _(
    format: GeneratorFormat,
    ids: GpuArray,
    offsets: GpuArray,
    weights: GpuArray | None,
    mode: str,
    out: GpuArray,
    flag: GpuArray,
) -> None:
    table, places = generate_rows(format, ids, flag)
    start_pool(as_table(table), places, offsets, weights, mode, out, flag)


@start_read.register
def _(format: TurnedFormat, ids: GpuArray, out: GpuArray, flag: GpuArray) -> None:
    rows = load_cupy().zeros((ids.size, format.width), dtype=np.float32)
    start_read(format.part, ids, rows, flag)
    out[...] = rows @ format.matrix


@start_pool.register
def _(
    format: TurnedFormat,
    ids: GpuArray,
    offsets: GpuArray,
    weights: GpuArray | None,
    mode: str,
    out: GpuArray,
    flag: GpuArray,
) -> None:
    cupy = load_cupy()
    if mode != "max":
        # A sum of turned rows is the turned sum: one product for a bag.
        rows = cupy.empty((offsets.size, format.width), dtype=np.float32)
        start_pool(format.part, ids, offsets, weights, mode, rows, flag)
        out[...] = rows @ format.matrix
        return
    # The largest entry is another one once the rows are turned.
    table = cupy.zeros((max(ids.size, 1), format.dim), dtype=np.float32)
    if ids.size:
        start_read(format, ids.ravel(), table[: ids.size], flag)
    places = cupy.arange(ids.size, dtype=np.int64)
    start_pool(as_table(table), places, offsets, weights, mode, out, flag)


def as_table(rows: GpuArray) -> DenseFormat:
    """Rows of float32 that were just made."""
    return DenseFormat.of(place_rows(rows))


# -- what the starts share -----------------------------------------------------


def tell(format: Format, ids: GpuArray) -> tuple[Shaped, ...]:
    """What every kernel is told first."""
    sizes = (np.int64(format.rows), np.int32(format.dim))
    return format.arguments, *sizes, ids, np.int64(ids.size)


def or_null(array: GpuArray | None) -> tuple[Shaped]:
    """An array, or the address of none."""
    return (np.uint64(0) if array is None else array,)


def compose(
    format: Format, name: str, ids: GpuArray, ahead: str = ""
) -> tuple[Kernel, int, int]:
    """A kernel, the threads that share a row, and the rows of a block."""
    entries = format.unit()
    form, kind = format.form(entries), ID_TYPES[str(ids.dtype)]
    expression = f"{name}<{form}, {kind}, {ahead or f'{form}::AHEAD'}>"
    kernel = load_kernel("composed.cu", expression, format.source)
    return kernel, *share_threads(format.dim, entries)


def choose_piece(
    format: PieceFormat, name: str, use: str, ids: GpuArray
) -> tuple[Kernel, int, int]:
    """A kernel, the threads that share a row, and the rows of a block."""
    entries, ahead = format.shape(use)
    while entries > format.least and entries // 2 >= format.dim:
        entries //= 2  # a short row needs no more
    expression = f"{name}<{format.piece(entries, ahead)}, {ID_TYPES[str(ids.dtype)]}>"
    kernel = load_kernel("pieces.cu", expression, format.source)
    return kernel, *share_threads(format.dim, entries)


def share_threads(dim: int, entries: int) -> tuple[int, int]:
    """Threads that share a row (a power of two, at most a warp), rows a block."""
    lanes = 1
    while lanes < 32 and lanes * entries < dim:
        lanes *= 2
    return lanes, SHARING // lanes


def as_ids(ids: GpuArray) -> GpuArray:
    """Ids as contiguous int32 or int64."""
    cupy = load_cupy()
    if ids.dtype.kind not in "iu":
        raise ValueError(f"ids must be integers, got dtype {ids.dtype}")
    if ids.size >= 2**31:
        raise ValueError(f"at most 2**31 - 1 ids a call, got {ids.size}")
    if str(ids.dtype) not in ID_TYPES:
        ids = ids.astype(np.int64)
    return cupy.ascontiguousarray(ids)


def as_offsets(
    ids: GpuArray, offsets: Shaped | Tensor | Sequence[int] | None
) -> GpuArray:
    """Where each bag starts, as int64; the kernel checks their order."""
    cupy = load_cupy()
    if offsets is None:
        if ids.ndim != 2:
            raise ValueError(
                f"without offsets, ids must have shape (bags, length), got {ids.shape}"
            )
        return cupy.arange(ids.shape[0], dtype=np.int64) * ids.shape[1]
    if ids.ndim != 1:
        raise ValueError(f"with offsets, ids must have one axis, got shape {ids.shape}")
    starts = cupy.asarray(offsets)
    if starts.ndim != 1 or (starts.size and starts.dtype.kind not in "iu"):
        raise ValueError(
            f"offsets must be integers of shape (bags,), got dtype {starts.dtype} "
            f"and shape {starts.shape}"
        )
    if not starts.size and ids.size:
        raise ValueError(f"{ids.size} ids, but no bag to put them in")
    return cupy.ascontiguousarray(starts.astype(np.int64, copy=False))


def gather_ceiling(table: GpuArray, ids: GpuArray) -> None:
    """Read the rows of bags and do nothing with them: what no kernel can beat.

    Parameters
    ----------
    table : CuPy array of uint8, shape (rows, stride), stride a multiple of 16
    ids : CuPy array of int32 or int64, shape (bags, length)
    """
    cupy = load_cupy()
    bags, length = ids.shape
    words = table.shape[1] // 16
    lanes, rows = share_threads(words, 1)
    kernel = load_kernel("gather.cu", f"gather_rows<{ID_TYPES[str(ids.dtype)]}>")
    out = cupy.empty(bags, dtype=np.uint32)
    kernel(
        (-(-bags // rows),),
        (lanes, rows),
        (table, np.int32(words), ids, np.int64(bags), np.int32(length), out),
    )
