"""Starting the kernels of look-ups and bags, whatever format the rows have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from survey_code.kernels.cuda import MODES, GpuArray, Shaped, current_stream, load_cupy
from survey_code.kernels.cuda.generate import generate_rows
from survey_code.kernels.cuda.load import ID_TYPES, Kernel, load_kernel
from survey_code.kernels.cuda.place import place_rows
from survey_code.kernels.formats import (
    DenseFormat,
    Format,
    GeneratorFormat,
    PieceFormat,
    TurnedFormat,
)

if TYPE_CHECKING:
    from torch import Tensor

N = TypeVar("N", np.ndarray, "GpuArray")

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
            start_read(format, Call(ids, out, flag))
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
    padding: int | None = None,
    include_last_offset: bool = False,
) -> GpuArray:
    """One pooled row per bag; see `survey_code.layouts.Layout.bag`."""
    cupy = load_cupy()
    ids = as_ids(ids)
    with current_stream():
        starts = as_offsets(ids, offsets, cupy, include_last_offset)
        if include_last_offset:
            if check:
                check_end(starts, ids.size)
            starts = starts[:-1]
        bags = starts.size
        if padding is not None:
            if check:  # before places among other ids are made of them
                check_order(starts, ids.size, cupy)
            ids, weights = ids.ravel(), None if weights is None else weights.ravel()
            end = cupy.full(1, ids.size, dtype=np.int64)
            starts = cupy.concatenate([starts, end])
            ids, starts, weights = put_padding_last(ids, starts, weights, padding, cupy)
            starts = cut_rest(starts, ids.size, cupy)
        out = cupy.empty((starts.size, format.dim), dtype=np.float32)
        flag = cupy.zeros(1, dtype=np.uint32)
        if starts.size:
            start_pool(format, Call(ids, out, flag, starts, weights, mode))
        if check:
            raise_if(flag, ids, format.rows)
    return out[:bags]


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


@dataclass
class Call:
    """What a kernel is called with, beside a format.

    Parameters
    ----------
    ids : CuPy array of int32 or int64, one axis, or (bags, length)
    out : CuPy array of float32, shape (ids or bags, dim)
    flag : CuPy array of uint32, shape (1,)
        Where kernels report what is wrong.
    offsets : CuPy array of int64, shape (bags,), optional
        Of bags.
    weights : CuPy array of float32, as many as ids, optional
    mode : {"sum", "mean", "max"}
    """

    ids: GpuArray
    out: GpuArray
    flag: GpuArray
    offsets: GpuArray | None = None
    weights: GpuArray | None = None
    mode: str = "sum"

    def ids_of(self, format: Format) -> tuple[Shaped, ...]:
        """What every kernel is told first: the format, and its ids."""
        sizes = (np.int64(format.rows), np.int32(format.dim))
        return format.arguments, *sizes, self.ids, np.int64(self.ids.size)

    def bags(self) -> tuple[GpuArray, int]:
        """Where bags begin, and how many there are."""
        assert self.offsets is not None
        return self.offsets, self.offsets.size

    def factors(self) -> tuple[Shaped]:
        """The weights, or the address of none."""
        return (np.uint64(0) if self.weights is None else self.weights,)


@singledispatch
def start_read(format: Format, call: Call) -> None:
    """Start the kernel of a look-up; ids have one axis, at least one of them."""
    kernel, lanes, groups = compose(format, "read_composed", call.ids, format.single)
    # Threads that share rows find up to `lanes` of them at once; fewer where there
    # would be too few groups to keep the whole GPU busy.
    each = min(max(call.ids.size // ENOUGH_GROUPS, 1), lanes)
    kernel(
        (-(-call.ids.size // (groups * each)),),
        (lanes, groups),
        (*call.ids_of(format), np.int32(each), call.out, call.flag),
    )


@singledispatch
def start_pool(format: Format, call: Call) -> None:
    """Start the kernel of a bag; there is at least one."""
    count = call.bags()[1]
    # For short bags, fewer registers and so more threads at once.
    ahead = "1" if call.ids.size < 4 * count else ""
    kernel, lanes, bags = compose(format, "pool_composed", call.ids, ahead)
    how = (*call.factors(), np.int32(MODES.index(call.mode)))
    start_bags(kernel, lanes, bags, format, call, how)


def start_bags(
    kernel: Kernel,
    lanes: int,
    bags: int,
    format: Format,
    call: Call,
    how: tuple[Shaped, ...],
) -> None:
    """Start a kernel of bags: `lanes` threads a bag, so many bags a block."""
    offsets, count = call.bags()
    kernel(
        (-(-count // bags),),
        (lanes, bags),
        (*call.ids_of(format), offsets, np.int64(count), *how, call.out, call.flag),
    )


@start_read.register
def _(format: PieceFormat, call: Call) -> None:
    kernel, lanes, rows = choose_piece(format, "read_rows", "single", call.ids)
    blocks = -(-call.ids.size // (4 * rows))
    kernel((blocks,), (lanes, rows), (*call.ids_of(format), call.out, call.flag))


@start_pool.register
def _(format: PieceFormat, call: Call) -> None:
    use = "pooled" if call.ids.size >= 4 * call.bags()[1] else "short"
    largest = call.mode == "max"
    name = "max_rows" if largest else "pool_rows"
    how = () if largest else (*call.factors(), np.int32(call.mode == "mean"))
    start_bags(*choose_piece(format, name, use, call.ids), format, call, how)


@start_read.register
def _(format: GeneratorFormat, call: Call) -> None:
    table, places = generate_rows(format, call.ids, call.flag)
    start_read(hold_rows(table), replace(call, ids=places))


@start_pool.register
def _(format: GeneratorFormat, call: Call) -> None:
    table, places = generate_rows(format, call.ids, call.flag)
    start_pool(hold_rows(table), replace(call, ids=places))


@start_read.register
def _(format: TurnedFormat, call: Call) -> None:
    cupy = load_cupy()
    rows = cupy.empty((call.ids.size, format.width), dtype=np.float32)
    start_read(format.part, replace(call, out=rows))
    cupy.matmul(rows, format.matrix, out=call.out)


@start_pool.register
def _(format: TurnedFormat, call: Call) -> None:
    cupy = load_cupy()
    if call.mode != "max":
        # A sum of turned rows is the turned sum: one product for a bag.
        rows = cupy.empty((call.bags()[1], format.width), dtype=np.float32)
        start_pool(format.part, replace(call, out=rows))
        cupy.matmul(rows, format.matrix, out=call.out)
        return
    # The largest entry is another one once the rows are turned.
    count = call.ids.size
    table = cupy.zeros((max(count, 1), format.dim), dtype=np.float32)
    if count:
        start_read(format, replace(call, ids=call.ids.ravel(), out=table[:count]))
    places = cupy.arange(count, dtype=np.int64)
    start_pool(hold_rows(table), replace(call, ids=places))


def hold_rows(rows: GpuArray) -> DenseFormat:
    """Rows of float32 that were just made."""
    return DenseFormat.of(place_rows(rows))


# -- what the starts share -----------------------------------------------------


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


# -- bags, on either side ------------------------------------------------------


def refuse_masked(name: str, given: object) -> None:
    """Raise ValueError for an array of NumPy with a mask, which would be dropped."""
    if isinstance(given, np.ma.MaskedArray):
        raise ValueError(
            f"{name} must not be a masked array: its mask would have no effect"
        )


def as_offsets(
    ids: N,
    offsets: Shaped | Tensor | Sequence[int] | None,
    xp: ModuleType,
    include_last_offset: bool = False,
) -> N:
    """Where each bag starts, as int64, their order unchecked.

    Parameters
    ----------
    ids : array of integers, one axis, or (bags, length) without offsets
    offsets : array of integers, shape (bags,), or (bags + 1,)
    xp : module
        NumPy or CuPy.
    include_last_offset : bool, default False
        Whether the end of the last bag follows; there is one more then.
    """
    if offsets is None:
        if ids.ndim != 2:
            raise ValueError(
                f"without offsets, ids must have shape (bags, length), got {ids.shape}"
            )
        if include_last_offset:
            raise ValueError("include_last_offset=True needs offsets")
        return xp.arange(ids.shape[0], dtype=np.int64) * ids.shape[1]
    if ids.ndim != 1:
        raise ValueError(f"with offsets, ids must have one axis, got shape {ids.shape}")
    refuse_masked("offsets", offsets)
    starts = xp.asarray(offsets)
    if starts.ndim != 1 or (starts.size and starts.dtype.kind not in "iu"):
        raise ValueError(
            f"offsets must be integers of shape (bags,), got dtype {starts.dtype} "
            f"and shape {starts.shape}"
        )
    if not starts.size and include_last_offset:
        raise ValueError("include_last_offset=True needs one offset or more, got none")
    if not starts.size and ids.size:
        raise ValueError(f"{ids.size} ids, but no bag to put them in")
    return xp.ascontiguousarray(starts.astype(np.int64, copy=False))


def check_order(starts: N, size: int, xp: ModuleType) -> None:
    """Raise ValueError unless offsets start at 0, never fall, and end by `size`."""
    if not starts.size:
        return
    falls = bool((xp.diff(starts) < 0).any())
    if falls or int(starts[0]) != 0 or int(starts[-1]) > size:
        raise ValueError(
            "offsets must start at 0, never fall, and not exceed the number of "
            f"ids ({size}), got {starts[:8]}"
        )


def check_end(borders: Shaped, size: int) -> None:
    """Raise ValueError unless the last bag ends where the ids do."""
    held: Any = borders
    end = int(held[-1])
    if end != size:
        raise ValueError(
            f"with include_last_offset=True the last offset must be the number of ids "
            f"({size}), got {end}"
        )


def put_padding_last(
    ids: N, borders: N, weights: N | None, padding: int, xp: ModuleType
) -> tuple[N, N, N | None]:
    """Ids that are not padding, in their order, and behind them the others.

    Nothing here waits for a GPU.

    Parameters
    ----------
    ids : array of integers, shape (m,)
    borders : array of int64, shape (bags + 1,)
        Where each bag starts, and where the last one ends.
    weights : array of float32, shape (m,), or None
    padding : int
        The id to be left out.
    xp : module

    Returns
    -------
    ids, borders, weights
        The last border is the number of ids that are left in bags.
    """
    padded: Any = ids == padding
    order = padded.astype(np.uint8).argsort(kind="stable")
    below = xp.zeros(ids.size + 1, dtype=np.int64)
    below[1:] = xp.cumsum(~padded, dtype=np.int64)
    return ids[order], below[borders], None if weights is None else weights[order]


def cut_rest(borders: GpuArray, size: int, xp: ModuleType) -> GpuArray:
    """More bags, for the padding behind the last: a kernel gives each id to a bag.

    There are so many that no group of threads reads all of them.
    """
    pieces = size // SHARING + 1
    end = borders[-1:]
    rest = end + (size - end) * xp.arange(1, pieces, dtype=np.int64) // pieces
    return xp.concatenate([borders, rest])


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
