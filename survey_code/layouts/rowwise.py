"""The row-wise integer layout: codes of few bits, and a scale and a bias a row.

Codes have 8, 4, 3, 2 or 1 bits.  Where rows share their scale and bias, these are
stored once and the rows hold codes only.  Otherwise they stand behind the codes of each
row: float32 at 8 bits, float16 below.  Low bits come first, and the last byte of codes
is padded with zeros; codes of 3 bits may begin in one byte and end in the next.

At 8, 4 and 2 bits these are, byte for byte, the rows of PyTorch's
``torch.ops.quantized.embedding_bag_{byte,4bit,2bit}_prepack``, wherever PyTorch takes
the dimension (even at 4 bits, a multiple of 4 at 2 bits).

Centred rows have a scale and no bias, which is half as much beside the codes: code q
stands for ``scale * (q - (2**bits - 1) / 2)``, so that as many codes are positive as
negative, and none is 0.  PyTorch has no such rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from survey_code.bits import pack_codes, unpack_codes
from survey_code.kernels.cpu.codes import decode_rows, split_tail
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
from survey_code.layouts.parts import are_first_ids

if TYPE_CHECKING:
    from survey_code.kernels.formats import Format

# Bits of a code; and those of PyTorch's rows, among which plans choose.
BITS = (8, 4, 3, 2, 1)
PYTORCH_BITS = (8, 4, 2)


def code_bytes(dim: int, bits: int) -> int:
    """Bytes of one row's codes."""
    return -(-dim * bits // 8)


def row_bytes(dim: int, bits: int, centred: bool = False) -> int:
    """Bytes of one row: its codes, its scale and, unless it is centred, its bias."""
    return code_bytes(dim, bits) + (2 - centred) * parameter_type(bits).itemsize


def centre_of(bits: int) -> float:
    """What codes have in their middle; float32 holds it, and all gaps, exactly."""
    return (2**bits - 1) / 2


def parameter_type(bits: int) -> np.dtype:
    """Type of scale and bias: float32 at 8 bits, float16 below."""
    if not isinstance(bits, int | np.integer) or bits not in BITS:
        raise ValueError(f"bits must be one of {BITS}, got {bits!r}")
    return np.dtype(np.float32 if bits == 8 else np.float16)


def pack_rows(
    codes: np.ndarray, scale: np.ndarray, bias: np.ndarray | None, bits: int
) -> np.ndarray:
    """Rows of bytes: codes (rows, dim), scale (rows,), and bias (rows,) or None.

    Returns
    -------
    ndarray of uint8, shape (rows, row_bytes(dim, bits, bias is None))
    """
    kind = parameter_type(bits)
    own = [scale] if bias is None else [scale, bias]
    tail = np.stack(own, axis=1).astype(kind)  # (rows, 1 or 2)
    return np.concatenate([pack_codes(codes, bits), tail.view(np.uint8)], axis=1)


class RowwiseLayout(Layout):
    """Rows of integer codes; a code q of row i stands for scale_i * q + bias_i.

    Of centred rows it stands for scale_i * (q - c) with c half the largest code.

    Parameters
    ----------
    rows : ndarray of uint8, shape (num_embeddings, row_bytes(dim, bits, centred))
        PyTorch's packed rows, or centred ones, as their width tells; without scale
        and bias, and so only ``code_bytes(dim, bits)`` wide, where there are
        `parameters`.
    embedding_dim : int
    bits : {8, 4, 3, 2, 1}
    parameters : ndarray of float32, shape (groups, 2) or (groups, 1), optional
        Scale and bias of each group of rows; the scale alone of centred ones.
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
        cls, codes: np.ndarray, scale: np.ndarray, bias: np.ndarray | None, bits: int
    ) -> RowwiseLayout:
        """Pack codes (rows, dim), scale (rows,) and bias (rows,) into rows.

        Without a bias the rows are centred.
        """
        return cls(pack_rows(codes, scale, bias, bits), codes.shape[1], bits)

    @classmethod
    def from_groups(
        cls,
        codes: np.ndarray,
        scale: np.ndarray,
        bias: np.ndarray | None,
        bits: int,
        starts: np.ndarray | None = None,
    ) -> RowwiseLayout:
        """Pack codes (rows, dim) of groups of rows that share a scale and a bias.

        Parameters
        ----------
        codes : ndarray of uint8, shape (rows, dim)
        scale, bias : ndarray of float32, shape (groups,)
            Without a bias the rows are centred.
        bits : {8, 4, 3, 2, 1}
        starts : ndarray of int64, shape (groups,), optional
        """
        parameter_type(bits)
        own = [scale] if bias is None else [scale, bias]
        parameters = np.stack(own, axis=1).astype(np.float32)
        rows = pack_codes(codes, bits)
        return cls(rows, codes.shape[1], bits, parameters, starts)

    def check_arrays(self) -> None:
        """Raise ValueError if the packed rows have another shape or type."""
        parameter_type(self.bits)
        shape = self.embedding_dim, self.bits
        widths = [row_bytes(*shape), row_bytes(*shape, centred=True)]
        if self.parameters is not None:
            widths = [code_bytes(*shape)]
        allowed = [(self.num_embeddings, width) for width in widths]
        rows = self.rows
        if rows is None or rows.shape not in allowed or rows.dtype != np.uint8:
            shown = " or, centred, ".join(map(str, allowed))
            raise ValueError(f"rows must be uint8 of shape {shown}")
        self._validate_groups()

    def _validate_groups(self) -> None:
        parameters, starts = self.parameters, self.starts
        if parameters is None:
            if starts is not None:
                raise ValueError("starts are of no use without parameters")
            return
        if parameters.dtype != np.float32 or parameters.shape[1:] not in ((1,), (2,)):
            raise ValueError(
                "parameters must be float32 of shape (groups, 2) or, centred, "
                "(groups, 1)"
            )
        if starts is None:
            if len(parameters) != 1:
                raise ValueError(f"{len(parameters)} groups of rows need their starts")
        elif starts.shape != parameters.shape[:1] or not are_first_ids(
            starts, self.num_embeddings
        ):
            raise ValueError(
                "starts must be int64, one per group, rising from 0 and below "
                f"{self.num_embeddings}"
            )

    def bound_rows(self, held: Mapping[str, float]) -> float:
        """The largest and the least code, scaled; the codes themselves if need be."""
        largest, step, near = 0.0, 2**16, LARGEST_FLOAT * (1 - 2.0**-20)
        for start in range(0, self.num_embeddings, step):
            ids = np.arange(start, min(start + step, self.num_embeddings))
            scale, own = self._parameters(self.rows[ids[0] : ids[-1] + 1], ids)
            bias = -centre_of(self.bits) * scale.astype(np.float64)
            if own is not None:
                bias = own.astype(np.float64)
            odd = ~np.isfinite(scale + 0 * bias)
            if odd.any():
                raise ValueError(
                    f"rowwise layout: scales and biases must be finite, but those of "
                    f"row {ids[0] + int(odd.argmax())} are NaN or infinite"
                )
            top = scale.astype(np.float64) * (2**self.bits - 1)
            most = np.maximum(np.maximum(abs(top), abs(top + bias)), abs(bias))
            large = np.broadcast_to(most > near, (len(ids), 1))[:, 0]
            if large.any():
                # Codes need not reach the largest.
                with np.errstate(over="ignore", invalid="ignore"):
                    decoded = np.abs(self.read_rows(ids[large]))
                largest = max(largest, float(decoded.max()))
                if not largest <= LARGEST_FLOAT:
                    return np.inf
                most = most[most <= near]
            largest = max(largest, float(most.max(initial=0)))
        return largest

    def _move(self, array: StoredArray) -> StoredArray:
        """An array on a GPU, rows padded to whole memory sectors."""
        from survey_code.kernels.cuda.place import place_rows

        return place_rows(array) if array is self.rows else super()._move(array)

    @property
    def centred(self) -> bool:
        """Whether rows have a scale and no bias."""
        if self.parameters is not None:
            return self.parameters.shape[1] == 1
        width = row_bytes(self.embedding_dim, self.bits, centred=True)
        return self.rows.shape[1] == width

    def describe(self) -> Format:
        """Codes, and each row's scale and bias beside them."""
        from survey_code.kernels.formats import ApartFormat, DenseFormat, choose_coded

        shape = self.embedding_dim, self.bits
        kind = choose_coded(self.bits)
        if self.parameters is None:
            return kind.of(self.rows, *shape, self.bits < 8, self.centred)
        if not is_cupys(self.rows):
            own = DenseFormat.of(self.parameters)
            return ApartFormat.of(self.rows, *shape, own, self.starts)
        # A fetch brings whole sectors, so that each row may as well have its group's
        # scale and bias beside it.
        xp = array_module(self.rows)
        tail = self.parameters[self._group(xp.arange(self.num_embeddings), xp)]
        return kind.beside(self.rows, tail, *shape)

    def _parameters(
        self, packed: np.ndarray, ids: IdArray
    ) -> tuple[RowArray, RowArray | None]:
        """Scale and bias of packed rows, (m, 1), or (1, 1) where all share them.

        Centred rows have no bias.
        """
        if self.parameters is not None:
            shared = self.parameters
            if self.starts is not None:
                shared = shared[self._group(ids, array_module(ids))]
            return shared[:, :1], None if self.centred else shared[:, 1:]
        width, kind = (
            code_bytes(self.embedding_dim, self.bits),
            parameter_type(self.bits),
        )
        if not is_cupys(packed):
            return split_tail(packed, width, kind)
        # A GPU reads numbers only where they are aligned, and one row is contiguous
        # wherever it begins: a copy.
        tail = packed[:, width:].copy().view(kind).astype(np.float32)
        return tail[:, :1], None if self.centred else tail[:, 1:]

    def _group(self, ids: IdArray, xp: ModuleType) -> IdArray:
        """Group of each row."""
        if self.starts is None:
            return xp.zeros(len(ids), dtype=np.int64)
        return xp.searchsorted(self.starts, ids, side="right") - 1

    def read_rows(self, ids: IdArray) -> RowArray:
        """One multiplication and one addition per entry, the addition first where
        rows are centred.
        """
        packed = take(self.rows, ids)
        scale, bias = self._parameters(packed, ids)
        dim, bits = self.embedding_dim, self.bits
        if not is_cupys(packed):
            return decode_rows(packed, dim, bits, scale, bias)
        codes = unpack_codes(packed[:, : code_bytes(dim, bits)], dim, bits)
        numbers = codes.astype(np.float32)
        if bias is None:
            return (numbers - np.float32(centre_of(bits))) * scale
        return numbers * scale + bias
