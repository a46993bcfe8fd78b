"""Fused look-ups: rows are read, decoded and pooled in one kernel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from survey_code.kernels.cuda import GpuArray, Shaped, current_stream, load_cupy
from survey_code.kernels.cuda.load import ID_TYPES, Kernel, load_kernel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

SHARING = 64  # threads of a block that share rows
SECTOR = 32  # bytes that the memory fetches at least


class FusedRows:
    """Rows on a GPU that one kernel finds, decodes and pools.

    A subclass has `dim` and `rows` (ids are below), and starts its kernels.
    """

    dim: int
    rows: int

    def start_read(self, ids: GpuArray, out: GpuArray, flag: GpuArray) -> None:
        """Start the kernel of a look-up; ids have one axis, at least one of them."""
        raise NotImplementedError

    def start_pool(
        self,
        ids: GpuArray,
        offsets: GpuArray,
        weights: GpuArray | None,
        mode: str,
        out: GpuArray,
        flag: GpuArray,
    ) -> None:
        """Start the kernel of a bag; there is at least one."""
        raise NotImplementedError

    @property
    def held_bytes(self) -> int:
        """Bytes that the GPU holds for them, beyond the layout's own arrays."""
        return 0

    @cached_property
    def unread(self) -> GpuArray:
        """Where a kernel reports bad ids that nobody asks about."""
        return load_cupy().zeros(1, dtype=np.uint32)

    def read(self, ids: GpuArray, check: bool = True) -> GpuArray:
        """One row per id.

        Parameters
        ----------
        ids : CuPy array of int32 or int64, any shape
        check : bool, default True
            Wait for the kernel and raise for a bad id; without it the row of a
            bad id is not written.

        Returns
        -------
        CuPy array of float32, shape (*ids.shape, dim)
        """
        cupy = load_cupy()
        shape, ids = ids.shape, as_ids(ids).ravel()
        with current_stream():
            out = cupy.empty((ids.size, self.dim), dtype=np.float32)
            flag = cupy.zeros(1, dtype=np.uint32) if check else self.unread
            if ids.size:
                self.start_read(ids, out, flag)
            if check:
                self.raise_if(flag, ids)
        return out.reshape(*shape, self.dim)

    def pool(
        self,
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
            out = cupy.empty((starts.size, self.dim), dtype=np.float32)
            flag = cupy.zeros(1, dtype=np.uint32) if check else self.unread
            if starts.size:
                self.start_pool(ids, starts, weights, mode, out, flag)
            if check:
                self.raise_if(flag, ids)
        return out

    def raise_if(self, flag: GpuArray, ids: GpuArray) -> None:
        """Raise what a kernel reported."""
        found = int(flag[0])
        if found & 1:
            low, high = int(ids.min()), int(ids.max())
            raise IndexError(
                f"id {low if low < 0 else high} is out of range for a table of "
                f"{self.rows} rows (ids are 0 to {self.rows - 1})"
            )
        if found & 2:
            raise ValueError(
                "offsets must start at 0, never fall, and not exceed the number of "
                f"ids ({ids.size})"
            )


@dataclass
class DeviceRows(FusedRows):
    """A table on a GPU, laid out for its kernels.

    Parameters
    ----------
    table : CuPy array of uint8, shape (rows, stride)
    dim : int
        Entries of a row.
    nbytes : int
        Bytes of the array on disk that these rows were made from.
    file : str
        The ``.cu`` file that reads them.
    format : str
        Its C++ type, ``"Rowwise<4, {}, true, {}>"``, with two numbers left open:
        the entries that a thread reads of a row, and the rows it asks for at once.
    single, short, pooled : tuple of (int, int)
        These two numbers, found by measuring, for look-ups, for bags of fewer than
        four ids on average, and for longer ones.
    parts : tuple of (int, int)
        Columns of `table` that hold the array on disk, (first, last) each.
    kind : dtype
        Of the array on disk.
    """

    table: GpuArray
    dim: int
    nbytes: int
    file: str
    format: str
    single: tuple[int, int]
    short: tuple[int, int]
    pooled: tuple[int, int]
    parts: tuple[tuple[int, int], ...]
    kind: np.dtype
    least: int = 4  # entries that a thread reads of a short row

    def __post_init__(self) -> None:
        self.rows = len(self.table)

    @property
    def held_bytes(self) -> int:
        """Bytes of the table, padding included; it is the layout's own array."""
        return int(self.table.nbytes)

    def get(self) -> np.ndarray:
        """The array on disk again, in NumPy."""
        table = self.table.get()
        stored = [table[:, first:last] for first, last in self.parts]
        return np.ascontiguousarray(np.concatenate(stored, axis=1)).view(self.kind)

    def start_read(self, ids: GpuArray, out: GpuArray, flag: GpuArray) -> None:
        """One row per id."""
        kernel, lanes, rows = self._kernel("read_rows", self.single, ids)
        kernel(
            (-(-ids.size // (4 * rows)),),
            (lanes, rows),
            (*self._arguments(ids), out, flag),
        )

    def start_pool(
        self,
        ids: GpuArray,
        offsets: GpuArray,
        weights: GpuArray | None,
        mode: str,
        out: GpuArray,
        flag: GpuArray,
    ) -> None:
        """One pooled row per bag."""
        long = ids.size >= 4 * offsets.size
        name = "max_rows" if mode == "max" else "pool_rows"
        how: tuple[Shaped | None, ...]
        how = () if mode == "max" else (weights, np.int32(mode == "mean"))
        kernel, lanes, bags = self._kernel(
            name, self.pooled if long else self.short, ids
        )
        kernel(
            (-(-offsets.size // bags),),
            (lanes, bags),
            (
                *self._arguments(ids),
                offsets,
                np.int64(offsets.size),
                *(np.uint64(0) if part is None else part for part in how),
                out,
                flag,
            ),
        )

    def _kernel(
        self, name: str, shape: tuple[int, int], ids: GpuArray
    ) -> tuple[Kernel, int, int]:
        """A kernel, the threads that share a row, and the rows of a block."""
        entries, ahead = shape
        while entries > self.least and entries // 2 >= self.dim:
            entries //= 2  # a short row needs no more
        form = self.format.format(entries, ahead)
        kind = ID_TYPES[str(ids.dtype)]
        kernel = load_kernel(self.file, f"{name}<{form}, {kind}>")
        return kernel, *share_threads(self.dim, entries)

    def _arguments(self, ids: GpuArray) -> tuple[Shaped, ...]:
        rows, stride = self.table.shape
        return (
            self.table,
            np.int32(stride),
            np.int64(rows),
            np.int32(self.dim),
            ids,
            np.int64(ids.size),
        )


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


def round_up(size: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-size // unit) * unit


def choose_stride(used: int) -> int:
    """Bytes from row to row, so that a row touches as few sectors as it can."""
    return round_up(used, SECTOR if used <= SECTOR or used > 2 * SECTOR else 2 * SECTOR)


def place_rowwise(rows: np.ndarray, dim: int, bits: int) -> DeviceRows:
    """Packed rows (codes, then scale and bias) on the GPU.

    Parameters
    ----------
    rows : ndarray of uint8, shape (n, row_bytes)
    dim : int
    bits : {8, 4, 2}
        Scale and bias are float32 at 8 bits, float16 below.
    """
    codes = -(-dim * bits // 8)
    stored = load_cupy().asarray(rows)
    return place_codes(stored[:, :codes], stored[:, codes:], dim, bits)


def place_codes(codes: Shaped, tail: Shaped, dim: int, bits: int) -> DeviceRows:
    """Codes, and each row's scale and bias beside them, on the GPU.

    Parameters
    ----------
    codes : CuPy array of uint8, shape (n, bytes)
    tail : CuPy array of uint8, shape (n, 8) or (n, 4)
        Scale and bias as two float32 or two float16.
    dim : int
    bits : {8, 4, 2, 1}
    """
    cupy = load_cupy()
    (rows, width), size = codes.shape, tail.shape[1]
    start = round_up(width, 16)
    table = cupy.zeros((rows, choose_stride(start + size)), dtype=np.uint8)
    table[:, :width] = codes
    table[:, start : start + size] = tail
    half = "true" if size == 4 else "false"
    pooled = {8: (16, 2), 4: (32, 4), 2: (64, 4), 1: (64, 4)}[bits]
    return DeviceRows(
        table, dim, rows * (width + size), "rowwise.cu",
        f"Rowwise<{bits}, {{}}, {half}, {{}}>",
        (8, 4), (16, 4), pooled,
        ((0, width), (start, start + size)), np.dtype(np.uint8), max(4, 8 // bits),
    )  # fmt: skip


FLOATS = {"float32": "float", "float16": "__half", "uint16": "__nv_bfloat16"}


def place_dense(values: Shaped) -> DeviceRows:
    """Rows of float32, float16 or bfloat16 (as uint16) on the GPU."""
    cupy = load_cupy()
    rows, dim = values.shape
    share = (16 // values.itemsize, 4)
    pooled = (2 * share[0], 4)
    used = dim * values.itemsize
    stored = cupy.asarray(values).view(np.uint8)
    table = stored
    # Bags are read 32 bytes at a time: no piece may reach beyond its row.
    unit = 16 if used <= 16 else SECTOR
    if used % unit:
        table = cupy.zeros((rows, round_up(used, unit)), dtype=np.uint8)
        table[:, :used] = stored
    return DeviceRows(
        table, dim, values.nbytes, "dense.cu",
        f"Dense<{FLOATS[str(values.dtype)]}, {{}}, {{}}>", share, pooled, pooled,
        ((0, used),), values.dtype,
    )  # fmt: skip


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
