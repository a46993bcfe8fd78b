"""The row-wise integer layout: codes of 8, 4 or 2 bits, and a scale and a bias a row.

Where rows share their scale and bias, these are stored once and the rows hold codes
only.  Otherwise the rows are, byte for byte, those of PyTorch's
``torch.ops.quantized.embedding_bag_{byte,4bit,2bit}_prepack``: first the codes,
low bits first, then scale and bias (float32 at 8 bits, float16 below).  Where
PyTorch refuses a dimension (odd at 4 bits, not a multiple of 4 at 2 bits), the
last byte of codes is padded with zeros.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from survey_code.bits import pack_codes, unpack_codes
from survey_code.kernels.cpu.codes import decode_rows, split_tail
from survey_code.layouts.layout import (
    IdArray,
    Layout,
    RowArray,
    StoredArray,
    array_module,
    is_cupys,
    take,
)

if TYPE_CHECKING:
    from survey_code.kernels.cuda.formats import Format

BITS = (8, 4, 2)


def code_bytes(dim: int, bits: int) -> int:
    """Bytes of one row's codes."""
    return -(-dim * bits // 8)


def row_bytes(dim: int, bits: int) -> int:
    """Bytes of one row: its codes, its scale and its bias."""
    return code_bytes(dim, bits) + 2 * parameter_type(bits).itemsize


def parameter_type(bits: int) -> np.dtype:
    """Type of scale and bias: float32 at 8 bits, float16 below."""
    if not isinstance(bits, int | np.integer) or bits not in BITS:
        raise ValueError(f"bits must be one of {BITS}, got {bits!r}")
    return np.dtype(np.float32 if bits == 8 else np.float16)


class RowwiseLayout(Layout):
    """Rows of integer codes; a code q of row i stands for scale_i * q + bias_i.

    Parameters
    ----------
    rows : ndarray of uint8, shape (num_embeddings, row_bytes(dim, bits))
        PyTorch's packed rows; without their scale and bias, and so only
        ``code_bytes(dim, bits)`` wide, where there are `parameters`.
    embedding_dim : int
    bits : {8, 4, 2}
    parameters : ndarray of float32, shape (groups, 2), optional
        Scale and bias of each group of rows.
    starts : ndarray of int64, shape (groups,), optional
        First row of each group, rising from 0; left out for a single group.

    Raises
    ------
    ValueError
        If the shapes do not fit the dimension and the bits.
    """

    name: ClassVar[str] = "rowwise"
    array_names: ClassVar[tuple[str, ...]] = ("rows", "parameters", "starts")
    shape_names: ClassVar[tuple[str, ...]] = ("num_embeddings", "embedding_dim", "bits")

    def __init__(
        self,
        rows: np.ndarray,
        embedding_dim: int,
        bits: int,
        parameters: np.ndarray | None = None,
        starts: np.ndarray | None = None,
    ) -> None:
        self.rows = np.asarray(rows)
        self.bits = int(bits)
        self.parameters = None if parameters is None else np.asarray(parameters)
        self.starts = None if starts is None else np.asarray(starts)
        super().__init__(len(self.rows) if self.rows.ndim else 0, embedding_dim)
        self.validate()

    @classmethod
    def from_codes(
        cls, codes: np.ndarray, scale: np.ndarray, bias: np.ndarray, bits: int
    ) -> RowwiseLayout:
        """Pack codes (rows, dim), scale (rows,) and bias (rows,) into rows."""
        kind = parameter_type(bits)
        tail = np.stack([scale, bias], axis=1).astype(kind)  # (rows, 2)
        rows = np.concatenate([pack_codes(codes, bits), tail.view(np.uint8)], axis=1)
        return cls(rows, codes.shape[1], bits)

    @classmethod
    def from_groups(
        cls,
        codes: np.ndarray,
        scale: np.ndarray,
        bias: np.ndarray,
        bits: int,
        starts: np.ndarray | None = None,
    ) -> RowwiseLayout:
        """Pack codes (rows, dim) of groups of rows that share a scale and a bias.

        Parameters
        ----------
        codes : ndarray of uint8, shape (rows, dim)
        scale, bias : ndarray of float32, shape (groups,)
        bits : {8, 4, 2}
        starts : ndarray of int64, shape (groups,), optional
        """
        parameter_type(bits)
        parameters = np.stack([scale, bias], axis=1).astype(np.float32)
        rows = pack_codes(codes, bits)
        return cls(rows, codes.shape[1], bits, parameters, starts)

    def validate(self) -> None:
        """Raise ValueError if the packed rows have another shape or type."""
        parameter_type(self.bits)
        shared = self.parameters is not None
        width = (code_bytes if shared else row_bytes)(self.embedding_dim, self.bits)
        expected = (self.num_embeddings, width)
        if (
            self.rows is None
            or self.rows.shape != expected
            or self.rows.dtype != np.uint8
        ):
            raise ValueError(f"rows must be uint8 of shape {expected}")
        self._validate_groups()

    def _validate_groups(self) -> None:
        parameters, starts = self.parameters, self.starts
        if parameters is None:
            if starts is not None:
                raise ValueError("starts are of no use without parameters")
            return
        if parameters.dtype != np.float32 or parameters.shape[1:] != (2,):
            raise ValueError("parameters must be float32 of shape (groups, 2)")
        if starts is None:
            if len(parameters) != 1:
                raise ValueError(f"{len(parameters)} groups of rows need their starts")
        elif (
            starts.dtype != np.int64
            or starts.shape != parameters.shape[:1]
            or int(starts[0]) != 0
            or int(starts[-1]) >= self.num_embeddings
            or bool((starts[1:] <= starts[:-1]).any())
        ):
            raise ValueError(
                "starts must be int64, one per group, rising from 0 and below "
                f"{self.num_embeddings}"
            )

    def _move(self, array: StoredArray) -> StoredArray:
        """An array on a GPU, rows padded to whole memory sectors."""
        from survey_code.kernels.cuda.place import place_rows

        return place_rows(array) if array is self.rows else super()._move(array)

    def describe(self) -> Format:
        """Codes, and each row's scale and bias beside them."""
        from survey_code.kernels.cuda.formats import RowwiseFormat

        if self.parameters is None:
            half = self.bits < 8
            return RowwiseFormat.of(self.rows, self.embedding_dim, self.bits, half)
        # A fetch brings whole sectors, so that each row may as well have its group's
        # scale and bias beside it.
        xp = array_module(self.rows)
        tail = self.parameters[self._group(xp.arange(self.num_embeddings), xp)]
        return RowwiseFormat.beside(self.rows, tail, self.embedding_dim, self.bits)

    def _parameters(
        self, packed: np.ndarray, ids: IdArray
    ) -> tuple[RowArray, RowArray]:
        """Scale and bias of packed rows, (m, 1), or (1, 1) where all share them."""
        if self.parameters is not None:
            shared = self.parameters
            if self.starts is not None:
                shared = shared[self._group(ids, array_module(ids))]
            return shared[:, :1], shared[:, 1:]
        width, kind = (
            code_bytes(self.embedding_dim, self.bits),
            parameter_type(self.bits),
        )
        if not is_cupys(packed):
            return split_tail(packed, width, kind)
        # A GPU reads numbers only where they are aligned, and one row is contiguous
        # wherever it begins: a copy.
        tail = packed[:, width:].copy().view(kind)
        return tail[:, :1].astype(np.float32), tail[:, 1:].astype(np.float32)

    def _group(self, ids: IdArray, xp: ModuleType) -> IdArray:
        """Group of each row."""
        if self.starts is None:
            return xp.zeros(len(ids), dtype=np.int64)
        return xp.searchsorted(self.starts, ids, side="right") - 1

    def read_rows(self, ids: IdArray) -> RowArray:
        """One multiplication and one addition per entry."""
        packed = take(self.rows, ids)
        scale, bias = self._parameters(packed, ids)
        dim, bits = self.embedding_dim, self.bits
        if not is_cupys(packed):
            return decode_rows(packed, dim, bits, scale, bias)
        codes = unpack_codes(packed[:, : code_bytes(dim, bits)], dim, bits)
        return codes.astype(np.float32) * scale + bias
