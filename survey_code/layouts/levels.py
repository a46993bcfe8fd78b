"""The levels layout: codes that name the numbers of one small table.

The numbers that a code can stand for need not be evenly spaced: they are listed, all
2**bits of them, once for the whole table.  What a row multiplies them by is nothing, a
float16 of its own behind its codes, or, for each block of its columns, a power of two
in a byte, as the formats called MX have it: byte e stands for ``2.0**(e - 127)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from survey_code.bits import pack_codes, unpack_codes
from survey_code.checks import check_range
from survey_code.kernels.cpu.codes import decode_levels
from survey_code.kernels.cpu.rows import cut_rows
from survey_code.layouts.layout import (
    LARGEST_FLOAT,
    IdArray,
    Layout,
    RowArray,
    StoredArray,
    array_module,
    is_cupys,
    take,
)
from survey_code.layouts.rowwise import code_bytes

if TYPE_CHECKING:
    from survey_code.kernels.formats import Format

# Bits of the longest code.
MOST_LEVEL_BITS = 8
# What byte 0 stands for is 2 to the power of minus this.
POWER_BIAS = 127
# The byte of no power: not a number in MX.
NO_POWER = 255
# Rows whose scales are looked at together.
CHECKED_TOGETHER = 2**16


def block_count(dim: int, block: int) -> int:
    """Blocks of a row, the last of which may be shorter; none of width 0."""
    return -(-dim // block) if block else 0


def levels_bytes(
    rows: int, dim: int, bits: int, scaled: bool = False, block: int = 0
) -> int:
    """Bytes of a table, before there is a layout.

    Parameters
    ----------
    rows, dim, bits : int
    scaled : bool, default False
        Whether each row has a float16 to multiply it by.
    block : int, default 0
        Or a power of two for so many columns of a row.

    Examples
    --------
    >>> levels_bytes(100, 16, 3, scaled=True), levels_bytes(100, 64, 4, block=32)
    (832, 3464)
    """
    tail = block_count(dim, block) or 2 * scaled
    return rows * (code_bytes(dim, bits) + tail) + 4 * 2**bits


def read_powers(stored: StoredArray) -> RowArray:
    """The powers of two that bytes stand for, float32 of their shape."""
    xp = array_module(stored)
    wide = stored.astype(np.uint32)
    # A float32 has this exponent; its smallest power of two is half of a normal one.
    powers: RowArray = xp.where(wide == 0, 1 << 22, wide << 23).astype(np.uint32)
    return powers.view(np.float32)


class LevelsLayout(Layout):
    """Rows of codes; code q of row i stands for ``scale_i * levels[q]``.

    Parameters
    ----------
    rows : ndarray of uint8, shape (num_embeddings, bytes)
        Codes, low bits first, as `pack_codes` has them; behind those of each row its
        scale, 2 bytes of float16, or the bytes of its blocks, or nothing.
    levels : ndarray of float32, shape (2**bits,)
    embedding_dim : int
    bits : int, 1 to 8
    block : int, default 0
        Columns that share a power of two; 0 where there are none.

    Raises
    ------
    ValueError
        If the shapes do not fit the dimension and the bits, or a scale is not finite.
    """

    name: ClassVar[str] = "levels"
    array_names: ClassVar[tuple[str, ...]] = ("rows", "levels")
    shape_names: ClassVar[tuple[str, ...]] = (
        "num_embeddings",
        "embedding_dim",
        "bits",
        "block",
    )

    rows: np.ndarray
    levels: np.ndarray

    def __init__(
        self,
        rows: np.ndarray,
        levels: np.ndarray,
        embedding_dim: int,
        bits: int,
        block: int = 0,
    ) -> None:
        self.rows, self.levels = np.asarray(rows), np.asarray(levels)
        self.bits, self.block = int(bits), int(block)
        super().__init__(len(self.rows) if self.rows.ndim else 0, embedding_dim)
        self.validate()

    @classmethod
    def from_codes(
        cls,
        codes: np.ndarray,
        levels: np.ndarray,
        scales: np.ndarray | None = None,
        block: int = 0,
    ) -> LevelsLayout:
        """Pack codes and scales.

        Parameters
        ----------
        codes : ndarray of uint8, shape (rows, dim)
        levels : ndarray of floats, shape (2**bits,)
        scales : ndarray, optional
            Floats of shape (rows,), or with blocks uint8 of shape (rows, blocks).
        block : int, default 0

        Examples
        --------
        >>> levels = np.array([-1.5, -0.5, 0.5, 1.5])
        >>> codes = np.array([[0, 3, 2], [1, 1, 2]], dtype=np.uint8)
        >>> LevelsLayout.from_codes(codes, levels, np.array([2.0, 10.0])).lookup(0)
        array([-3.,  3.,  1.], dtype=float32)
        """
        bits = len(levels).bit_length() - 1
        check_range("bits of the levels", bits, 1, MOST_LEVEL_BITS)
        parts = [pack_codes(codes, bits)]
        if scales is not None:
            tail = scales if block else scales.astype(np.float16)[:, None]
            parts.append(np.ascontiguousarray(tail).view(np.uint8))
        rows = np.concatenate(parts, axis=1)
        return cls(rows, levels.astype(np.float32), codes.shape[1], bits, block)

    # -- checks ---------------------------------------------------------------

    @property
    def width(self) -> int:
        """Bytes of a row's codes, behind which its scale begins."""
        return code_bytes(self.embedding_dim, self.bits)

    @property
    def scaled(self) -> bool:
        """Whether rows have a scale each."""
        return not self.block and self.rows.shape[1] > self.width

    def check_arrays(self) -> None:
        """Raise ValueError if rows, levels and integers contradict each other."""
        check_range("bits", self.bits, 1, MOST_LEVEL_BITS)
        check_range("block", self.block, 0)
        levels, rows = self.levels, self.rows
        if (
            levels is None
            or levels.dtype != np.float32
            or levels.shape != (2**self.bits,)
        ):
            raise ValueError(f"levels must be float32 of shape {(2**self.bits,)}")
        tails = (block_count(self.embedding_dim, self.block),) if self.block else (0, 2)
        allowed = [(self.num_embeddings, self.width + tail) for tail in tails]
        if rows is None or rows.dtype != np.uint8 or rows.shape not in allowed:
            shown = " or, scaled, ".join(map(str, allowed))
            raise ValueError(f"rows must be uint8 of shape {shown}")

    def bound_rows(self, held: Mapping[str, float]) -> float:
        """The largest level and the largest scale; rows themselves if need be."""
        most = held["levels"]
        if not (self.block or self.scaled):
            return most
        largest = 0.0
        for part in cut_rows(self.num_embeddings, 1, CHECKED_TOGETHER):
            scales = np.abs(self._read_scales(self.rows[part]))
            odd = ~np.isfinite(scales).all(axis=1)
            if odd.any():
                raise ValueError(
                    f"levels layout: scales must be finite, but that of row "
                    f"{part.start + int(odd.argmax())} is NaN or infinite"
                )
            reach = most * scales.max(axis=1).astype(np.float64)
            large = reach > LARGEST_FLOAT
            if large.any():  # codes need not name the largest level
                ids = np.arange(part.start, part.stop)[large]
                with np.errstate(over="ignore", invalid="ignore"):
                    found = float(np.abs(self.read_rows(ids)).max())
                if not found <= LARGEST_FLOAT:
                    return np.inf
                reach[large] = found
            largest = max(largest, float(reach.max()))
        return largest

    # -- look-up --------------------------------------------------------------

    def _move(self, array: StoredArray) -> StoredArray:
        """An array on a GPU, rows padded to whole memory sectors."""
        from survey_code.kernels.cuda.place import place_rows

        return place_rows(array) if array is self.rows else super()._move(array)

    def describe(self) -> Format:
        """Codes with what a row multiplies them by, and the levels."""
        from survey_code.kernels.formats import LevelsFormat

        scaling = 2 if self.block else int(self.scaled)
        shape, block = (self.embedding_dim, self.bits), self.columns_a_block
        return LevelsFormat.of(self.rows, self.levels, *shape, scaling, block)

    @property
    def columns_a_block(self) -> int:
        """Columns of a row that share a power: a block may be longer than a row."""
        return min(self.block, self.embedding_dim)

    def _read_scales(self, packed: StoredArray) -> RowArray:
        """Scales of packed rows: float32 (m, 1), or (m, blocks)."""
        tail = packed[:, self.width :]
        if self.block:
            return read_powers(tail)
        # Numbers are read only where they are aligned, and side by side: a copy.
        scales: RowArray = tail.copy().view(np.float16).astype(np.float32)
        return scales

    def read_rows(self, ids: IdArray) -> RowArray:
        """One number of a table for each code, and one multiplication."""
        packed = take(self.rows, ids)
        dim, bits = self.embedding_dim, self.bits
        if is_cupys(packed):
            codes = unpack_codes(packed[:, : self.width], dim, bits)
            rows: RowArray = self.levels[codes]
        else:
            rows = decode_levels(packed, dim, bits, self.levels)
        if self.block:
            scales = self._read_scales(packed)
            rows *= scales.repeat(self.columns_a_block, axis=1)[:, :dim]
        elif self.scaled:
            rows *= self._read_scales(packed)
        return rows
