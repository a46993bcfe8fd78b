"""The sparse layout: the entries that are not zero, and where they stand.

Compressed sparse rows, with two freedoms.  An offset may serve a block of rows instead
of one: a column index of 8 bits tells 256 places apart, so that 16 rows of 16
entries can share an offset, and a row costs a quarter byte instead of four.  And an
entry that is left out need not be zero: each group of ids, a field say, may have a row
of fills that stand in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from survey_code.layouts.layout import (
    IdArray,
    Layout,
    RowArray,
    array_module,
    as_finite_table,
)
from survey_code.layouts.parts import (
    Rows,
    are_first_ids,
    as_vector,
    check_numbers,
    numbers_work,
    read_numbers,
)

if TYPE_CHECKING:
    from torch import Tensor

    from survey_code.kernels.formats import Format

FORMATS = ("float32", "float16")
# Entries that are looked at together.
NUMBERS_JOINED = 2**20
OFFSET_BYTES = 4


def default_block(dim: int) -> int:
    """Rows that share an offset: as many as 8 bits can tell apart, at least one.

    Examples
    --------
    >>> default_block(16), default_block(64), default_block(300)
    (16, 4, 1)
    """
    return max(256 // dim, 1)


def column_type(places: int) -> np.dtype:
    """The smallest unsigned integers that number so many places of a block."""
    if places > 65_536:
        raise ValueError(f"a block holds at most 65,536 entries, got {places:,}")
    return np.dtype(np.uint8 if places <= 256 else np.uint16)


def entry_bytes(dim: int, format: str = "float32", block_rows: int = 1) -> int:
    """Bytes of one kept entry: its value and its column index."""
    check_format(format)
    return np.dtype(format).itemsize + column_type(dim * block_rows).itemsize


def sparse_bytes(
    kept: int, rows: int, dim: int, format: str = "float32", block_rows: int = 1
) -> int:
    """Bytes of a sparse layout with so many entries, before there is one.

    Examples
    --------
    >>> sparse_bytes(kept=100, rows=32, dim=16)
    632
    >>> sparse_bytes(kept=100, rows=32, dim=16, block_rows=16)
    512
    """
    offsets = -(-rows // block_rows) + 1
    return kept * entry_bytes(dim, format, block_rows) + OFFSET_BYTES * offsets


def fill_bytes(groups: int, dim: int) -> int:
    """Bytes of the fills of so many groups, and of where these begin.

    Examples
    --------
    >>> fill_bytes(1, dim=16), fill_bytes(3, dim=16)
    (64, 216)
    """
    return 4 * groups * dim + 8 * groups * (groups > 1)


def most_entries(
    budget: int, rows: int, dim: int, format: str = "float32", block_rows: int = 1
) -> int:
    """How many entries fit into a budget of bytes; at most all, below 0 none."""
    left = budget - sparse_bytes(0, rows, dim, format, block_rows)
    return min(left // entry_bytes(dim, format, block_rows), rows * dim)


def check_format(format: str) -> None:
    """Raise ValueError for a format that is not in `FORMATS`."""
    if format not in FORMATS:
        raise ValueError(f"format must be one of {FORMATS}, got {format!r}")


def round_values(values: np.ndarray, format: str) -> np.ndarray:
    """Values in a format, or ValueError where float16 cannot hold one."""
    check_format(format)
    with np.errstate(over="ignore"):
        rounded: np.ndarray = values.astype(format)
    if np.isinf(rounded).any():
        raise ValueError(
            f"float16 holds values up to 65504, got {np.abs(values).max():.6g}"
        )
    return rounded


def search_blocks(
    columns: np.ndarray, low: IdArray, high: IdArray, wanted: IdArray
) -> IdArray:
    """First place in columns[low:high], which rise, that is not below `wanted`.

    One binary search per id, all at once.
    """
    if not len(columns):
        return low
    longest = int((high - low).max()) if len(low) else 0
    for _ in range(longest.bit_length()):
        middle = (low + high) // 2
        # Where low = high the search is over; the clip keeps the read in range.
        below = columns[middle.clip(max=len(columns) - 1)] < wanted
        below &= low < high
        xp = array_module(low)
        low = xp.where(below, middle + 1, low)
        high = xp.where(below, high, middle)
    return low


class SparseLayout(Layout):
    """Values that are not zero, their columns, and where each block of rows starts.

    Parameters
    ----------
    values : ndarray of float32 or float16, shape (kept,), or layout
        A layout holds them row after row; see `check_numbers`.
    columns : ndarray of uint8 or uint16, shape (kept,)
        Place in the block: row within the block times `embedding_dim`, plus the
        column; rising within a block.
    offsets : ndarray of uint32, shape (blocks + 1,)
        Where each block starts in `values`, and at the end their number.
    num_embeddings, embedding_dim : int
    block_rows : int, default 1
        Rows of a block; 1 is the usual CSR.
    fills : ndarray of float32, shape (groups, embedding_dim), optional
        What is read where nothing is kept; without it, zeros.
    starts : ndarray of int64, shape (groups,), optional
        First id of each group, rising from 0; left out for a single group.

    Raises
    ------
    ValueError
        If the arrays contradict each other.
    """

    name: ClassVar[str] = "sparse"
    array_names: ClassVar[tuple[str, ...]] = (
        "values",
        "columns",
        "offsets",
        "fills",
        "starts",
    )
    holders: ClassVar[tuple[str, ...]] = ("values",)
    shape_names: ClassVar[tuple[str, ...]] = (
        "num_embeddings",
        "embedding_dim",
        "block_rows",
    )

    values: Rows

    def __init__(
        self,
        values: npt.ArrayLike | Layout,
        columns: np.ndarray,
        offsets: np.ndarray,
        num_embeddings: int,
        embedding_dim: int,
        block_rows: int = 1,
        fills: np.ndarray | None = None,
        starts: np.ndarray | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self.values = as_vector(values)
        self.columns = np.asarray(columns)
        self.offsets = np.asarray(offsets)
        self.block_rows = int(block_rows)
        self.fills = None if fills is None else np.asarray(fills)
        self.starts = None if starts is None else np.asarray(starts)
        self.validate()

    @classmethod
    def from_dense(
        cls,
        weight: npt.ArrayLike | Tensor,
        format: str = "float32",
        block_rows: int | None = None,
    ) -> SparseLayout:
        """Keep what is not zero.

        Parameters
        ----------
        weight : array or tensor, shape (n, dim)
        format : {"float32", "float16"}
        block_rows : int, optional
            By default `default_block(dim)`.

        Examples
        --------
        >>> layout = SparseLayout.from_dense([[0, 2, 0], [3, 0, 4]], block_rows=1)
        >>> layout.values.tolist(), layout.columns.tolist(), layout.offsets.tolist()
        ([2.0, 3.0, 4.0], [1, 0, 2], [0, 1, 3])
        """
        table = as_finite_table(weight)
        rows, dim = table.shape
        height = default_block(dim) if block_rows is None else check_block(block_rows)
        # Whole blocks at a time: their places take twice the bytes of their numbers.
        step = height * max(NUMBERS_JOINED // (height * dim), 1)
        parts = [
            cls.from_part(table[start : start + step], format, height)
            for start in range(0, rows, step)
        ]
        return cls.join(parts)

    @classmethod
    def from_part(cls, table: np.ndarray, format: str, height: int) -> SparseLayout:
        """`from_dense` of a few float32 rows."""
        table = round_values(table, format)
        return cls.from_mask(table, table != 0, height)

    @classmethod
    def from_mask(
        cls,
        table: np.ndarray,
        mask: np.ndarray,
        height: int,
        fills: np.ndarray | None = None,
        starts: np.ndarray | None = None,
    ) -> SparseLayout:
        """Keep the entries under a mask, whatever they are.

        Parameters
        ----------
        table : ndarray of float32 or float16, shape (n, dim)
        mask : ndarray of bool, shape (n, dim)
        height : int
            Rows of a block.
        fills, starts : ndarray, optional
            What stands for all others: the class's own arguments.

        Examples
        --------
        >>> rows = np.float32([[0, 2], [3, 4]])
        >>> kept, fills = rows == [[0, 0], [3, 4]], np.float32([[7, 2]])
        >>> SparseLayout.from_mask(rows, kept, 1, fills).lookup([0, 1]).tolist()
        [[0.0, 2.0], [3.0, 4.0]]
        """
        rows, dim = table.shape
        # Row-major order is the order of blocks, and of places within a block.
        places = np.flatnonzero(mask)
        width = height * dim
        kind = column_type(width)
        counts = np.bincount(places // width, minlength=-(-rows // height))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32)
        values, columns = table.ravel()[places], (places % width).astype(kind)
        return cls(values, columns, offsets, rows, dim, height, fills, starts)

    @classmethod
    def join(cls, parts: Sequence[SparseLayout]) -> SparseLayout:
        """Rows of several layouts, one after another; all but the last hold whole
        blocks.

        Raises
        ------
        ValueError
            If there are more entries than offsets can count.
        """
        last = parts[-1]
        kept = sum(len(part.columns) for part in parts)
        check_kept(kept)
        if len(parts) == 1:
            return last
        ends, before = [np.zeros(1, np.uint32)], 0
        for part in parts:
            ends.append(part.offsets[1:] + np.uint32(before))
            before += len(part.columns)
        rows = sum(part.num_embeddings for part in parts)
        values = np.concatenate([part.arrays()["values"] for part in parts])
        columns = np.concatenate([part.columns for part in parts])
        shape = rows, last.embedding_dim, last.block_rows
        return cls(values, columns, np.concatenate(ends), *shape)

    def check_arrays(self) -> None:
        """Raise ValueError if values, columns and offsets contradict each other."""
        check_block(self.block_rows)
        values, columns, offsets = self.values, self.columns, self.offsets
        width = self.block_rows * self.embedding_dim
        kind = column_type(width)
        if columns is None or columns.dtype != kind or columns.ndim != 1:
            raise ValueError(f"columns must be {kind} of shape (kept,)")
        kept = len(columns)
        check_numbers("values", values, kept)
        blocks = -(-self.num_embeddings // self.block_rows)
        if (
            offsets is None
            or offsets.dtype != np.uint32
            or offsets.shape != (blocks + 1,)
            or int(offsets[0]) != 0
            or int(offsets[-1]) != kept
            or (not self.trusted and bool((offsets[1:] < offsets[:-1]).any()))
        ):
            raise ValueError(
                f"offsets must be {blocks + 1} numbers of uint32 that rise from 0 to "
                f"{kept}"
            )
        self._check_fills()
        if not self.trusted:
            self._check_columns(width)

    def _check_columns(self, width: int) -> None:
        """Places rise within each block, and lie in the table."""
        xp, last = array_module(self.columns), -1
        for start in range(0, len(self.columns), NUMBERS_JOINED):
            some = self.columns[start : start + NUMBERS_JOINED]
            order = xp.arange(start, start + len(some))
            block = xp.searchsorted(self.offsets, order, side="right") - 1
            place = block * width + some
            rising = int(place[0]) > last and bool((place[1:] > place[:-1]).all())
            last = int(place[-1])
            if not rising or bool((some >= width).any()):
                last = self.num_embeddings * self.embedding_dim
            if last >= self.num_embeddings * self.embedding_dim:
                raise ValueError(
                    "columns must rise within each block and lie in the table"
                )

    def _check_fills(self) -> None:
        fills, starts, dim = self.fills, self.starts, self.embedding_dim
        if fills is None and starts is None:
            return
        if (
            fills is None
            or fills.dtype != np.float32
            or fills.ndim != 2
            or fills.shape[1] != dim
            or not len(fills)
        ):
            raise ValueError(f"fills must be float32 of shape (groups, {dim})")
        if len(fills) == 1 and starts is None:
            return
        if (
            starts is None
            or starts.shape != (len(fills),)
            or len(starts) < 2
            or not are_first_ids(starts, self.num_embeddings)
        ):
            raise ValueError(
                f"starts must be {len(fills)} int64 ids that rise from 0, and none for "
                "a single group"
            )

    @property
    def density(self) -> float:
        """Share of the table's entries that is kept."""
        return len(self.columns) / (self.num_embeddings * self.embedding_dim)

    def count_work(self) -> int:
        """Each entry of a row, wherever it stands."""
        return numbers_work(self.values, self.embedding_dim)

    def describe(self) -> Format | None:
        """Entries of a row, found in its block."""
        from survey_code.kernels.formats import SparseFormat

        if isinstance(self.values, Layout):
            return None
        shape = (self.num_embeddings, self.embedding_dim)
        return SparseFormat(
            *shape, self.values, self.columns, self.offsets, self.block_rows,
            self.fills, self.starts, 0 if self.fills is None else len(self.fills),
        )  # fmt: skip

    def locate(self, ids: IdArray) -> tuple[IdArray, IdArray]:
        """First and last-plus-one place of each row in `values`; int64 (m,)."""
        block, row = ids // self.block_rows, ids % self.block_rows
        low = self.offsets[block].astype(np.int64)
        high = self.offsets[block + 1].astype(np.int64)
        if self.block_rows == 1:
            return low, high
        first = row * self.embedding_dim
        start = search_blocks(self.columns, low, high, first)
        return start, search_blocks(
            self.columns, start, high, first + self.embedding_dim
        )

    def read_rows(self, ids: IdArray) -> RowArray:
        """Find each row's entries, then scatter them into zeros, or into fills."""
        xp = array_module(ids)
        rows = self._read_fills(ids)
        start, stop = self.locate(ids)
        ends = xp.cumsum(stop - start)
        kept = int(ends[-1]) if len(ids) else 0
        if kept:
            order = xp.arange(kept)
            owner = xp.searchsorted(ends, order, side="right")
            place = stop[owner] - ends[owner] + order
            column = self.columns[place].astype(np.int64) % self.embedding_dim
            rows[owner, column] = read_numbers(self.values, place)
        return rows

    def _read_fills(self, ids: IdArray) -> RowArray:
        """Rows of which nothing is kept, to be written to; float32 (m, dim)."""
        xp = array_module(ids)
        if self.fills is None:
            zeros: RowArray = xp.zeros((len(ids), self.embedding_dim), np.float32)
            return zeros
        groups = xp.zeros(len(ids), dtype=np.int64)
        if self.starts is not None:
            groups = xp.searchsorted(self.starts, ids, side="right") - 1
        rows: RowArray = self.fills[groups]
        return rows


def check_kept(kept: int) -> None:
    """Raise ValueError for more entries than offsets can count."""
    if kept >= 2**32:
        raise ValueError(f"at most 2**32 - 1 entries can be kept, got {kept:,}")


def check_block(block_rows: int) -> int:
    """Rows of a block, or one clear ValueError."""
    if not isinstance(block_rows, int | np.integer) or block_rows < 1:
        raise ValueError(f"block_rows must be an integer from 1 up, got {block_rows!r}")
    return int(block_rows)
