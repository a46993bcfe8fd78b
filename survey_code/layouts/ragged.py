"""The ragged layout: each row keeps a prefix of its entries; the rest reads as zero.

A row begins where the rows before it end.  An offset for every 32 rows and a length
for every row say where that is, in 1.1 bytes a row instead of 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
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
    as_vector,
    check_numbers,
    numbers_work,
    read_numbers,
    vector_room,
)
from survey_code.layouts.sparse import check_format, round_values

if TYPE_CHECKING:
    from torch import Tensor

    from survey_code.kernels.formats import Format

# Rows that share an offset; their lengths are one sector of a GPU's memory.
BLOCK = 32


def length_type(dim: int) -> np.dtype:
    """The smallest unsigned integers that hold 0 to dim."""
    if dim > 65_535:
        raise ValueError(f"a row holds at most 65,535 entries, got {dim:,}")
    return np.dtype(np.uint8 if dim < 256 else np.uint16)


def ragged_bytes(kept: int, rows: int, dim: int, format: str = "float32") -> int:
    """Bytes of a ragged layout with so many entries, before there is one.

    Examples
    --------
    >>> ragged_bytes(kept=100, rows=64, dim=16)
    472
    """
    check_format(format)
    offsets = 4 * -(-rows // BLOCK)
    return kept * np.dtype(format).itemsize + rows * length_type(dim).itemsize + offsets


class RaggedLayout(Layout):
    """Prefixes of rows, one after another.

    Parameters
    ----------
    values : ndarray of float32 or float16, shape (sum of lengths,), or layout
        A layout holds them row after row; see `check_numbers`.
    lengths : ndarray of uint8 or uint16, shape (num_embeddings,)
        Entries of each row, 0 to `embedding_dim`.
    starts : ndarray of uint32, shape (blocks,)
        Where the first of every 32 rows starts in `values`.
    embedding_dim : int

    Raises
    ------
    ValueError
        If the arrays contradict each other.
    """

    name: ClassVar[str] = "ragged"
    array_names: ClassVar[tuple[str, ...]] = ("values", "lengths", "starts")
    holders: ClassVar[tuple[str, ...]] = ("values",)

    values: Rows

    def __init__(
        self,
        values: npt.ArrayLike | Layout,
        lengths: np.ndarray,
        starts: np.ndarray,
        embedding_dim: int,
    ) -> None:
        self.values = as_vector(values)
        self.lengths = np.asarray(lengths)
        self.starts = np.asarray(starts)
        super().__init__(self.lengths.size, embedding_dim)
        self.validate()

    @classmethod
    def from_dense(
        cls,
        weight: npt.ArrayLike | Tensor,
        lengths: Sequence[int] | npt.NDArray[np.integer],
        format: str = "float32",
    ) -> RaggedLayout:
        """Keep the first `lengths[i]` entries of row i.

        Parameters
        ----------
        weight : array or tensor, shape (n, dim)
        lengths : array of integers, shape (n,)
        format : {"float32", "float16"}

        Examples
        --------
        >>> layout = RaggedLayout.from_dense([[1, 2, 3], [4, 5, 6]], [0, 2])
        >>> layout.values.tolist(), layout.lookup([1]).tolist()
        ([4.0, 5.0], [[4.0, 5.0, 0.0]])
        """
        table = as_finite_table(weight)
        rows, dim = table.shape
        kept = np.asarray(lengths)
        if kept.shape != (rows,) or kept.dtype.kind not in "iu":
            raise ValueError(
                f"lengths must be {rows} integers, got dtype {kept.dtype} and shape "
                f"{kept.shape}"
            )
        if kept.min() < 0 or kept.max() > dim:
            raise ValueError(
                f"lengths must be from 0 to {dim}, got {kept.min()} to {kept.max()}"
            )
        kept = kept.astype(length_type(dim))
        values = round_values(table[np.arange(dim) < kept[:, None]], format)
        return cls(values, kept, block_starts(kept), dim)

    def check_arrays(self) -> None:
        """Raise ValueError if values, lengths and starts contradict each other."""
        values, lengths, starts = self.values, self.lengths, self.starts
        kind = length_type(self.embedding_dim)
        if (
            lengths is None
            or lengths.dtype != kind
            or lengths.shape != (self.num_embeddings,)
            or (not self.trusted and int(lengths.max()) > self.embedding_dim)
        ):
            raise ValueError(
                f"lengths must be {kind} of shape ({self.num_embeddings},), each up to "
                f"{self.embedding_dim}"
            )
        if self.trusted and values is not None:
            total = vector_room(values)
        else:
            total = int(lengths.sum(dtype=np.int64))
        check_numbers("values", values, total)
        if (
            starts is None
            or starts.dtype != np.uint32
            or starts.shape != (-(-self.num_embeddings // BLOCK),)
            or not (self.trusted or self._starts_fit())
        ):
            raise ValueError("starts must be uint32, the sum of all lengths before")

    def _starts_fit(self) -> bool:
        """Whether the starts are the sums of all lengths before."""
        wanted = block_starts(self.lengths, array_module(self.lengths))
        return bool((self.starts == wanted).all())

    def count_work(self) -> int:
        """Each entry of a row, wherever it stands."""
        return numbers_work(self.values, self.embedding_dim)

    def describe(self) -> Format | None:
        """Prefixes, found from the lengths of the rows before."""
        from survey_code.kernels.formats import RaggedFormat

        if isinstance(self.values, Layout):
            return None
        shape = (self.num_embeddings, self.embedding_dim)
        return RaggedFormat.of(shape, self.values, self.lengths, self.starts)

    def locate(self, ids: IdArray) -> IdArray:
        """Place of each row's first entry: the block's, plus the rows between."""
        xp = array_module(ids)
        block = ids // BLOCK
        near = block[:, None] * BLOCK + xp.arange(BLOCK)  # (m, 32)
        before = near < ids[:, None]
        sizes = self.lengths[near.clip(max=self.num_embeddings - 1)]
        inside = (sizes * before).sum(axis=1, dtype=np.int64)
        return self.starts[block].astype(np.int64) + inside

    def read_rows(self, ids: IdArray) -> RowArray:
        """Gather embedding_dim entries from each row's first, and blank the tail."""
        xp = array_module(ids)
        most = vector_room(self.values)
        if not most:
            return xp.zeros((len(ids), self.embedding_dim), dtype=np.float32)
        order = xp.arange(self.embedding_dim)
        place = self.locate(ids)[:, None] + order
        rows = read_numbers(self.values, place.clip(max=most - 1))
        inside = order < self.lengths[ids][:, None]
        return xp.where(inside, rows, np.float32(0))


def block_starts(lengths: np.ndarray, xp: ModuleType = np) -> np.ndarray:
    """Where the first of every `BLOCK` rows starts, uint32."""
    ends = xp.cumsum(lengths, dtype=np.int64)
    if int(ends[-1]) >= 2**32:
        raise ValueError(
            f"at most 2**32 - 1 entries can be kept, got {int(ends[-1]):,}"
        )
    starts = (ends - lengths)[::BLOCK]
    return starts.astype(np.uint32)
