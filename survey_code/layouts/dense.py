"""The dense layout: one number per entry, in 32 or 16 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from survey_code.checks import check_choice
from survey_code.kernels.cpu.rows import cut_rows
from survey_code.layouts.layout import (
    IdArray,
    Layout,
    RowArray,
    StoredArray,
    as_finite_table,
    take_floats,
)

if TYPE_CHECKING:
    from torch import Tensor

    from survey_code.kernels.formats import Format

DENSE_FORMATS = ("float32", "float16", "bfloat16")
LARGEST_BFLOAT16 = (2 - 2.0**-7) * 2.0**127

# Numbers that are rounded together, so that memory stays small.
TOGETHER = 2**18


class DenseLayout(Layout):
    """A table of float32, float16 or bfloat16 entries.

    Parameters
    ----------
    values : ndarray, shape (num_embeddings, embedding_dim)
        float32, float16, or uint16 holding bfloat16 bit patterns (NumPy has no
        bfloat16).

    Raises
    ------
    ValueError
        If `values` is not such an array.
    """

    name: ClassVar[str] = "dense"
    array_names: ClassVar[tuple[str, ...]] = ("values",)
    patterns: ClassVar[tuple[str, ...]] = ("values",)

    def __init__(self, values: np.ndarray) -> None:
        self.values = np.asarray(values)
        super().__init__(*self.values.shape if self.values.ndim == 2 else (0, 0))
        self.validate()

    @classmethod
    def from_weight(
        cls, weight: npt.ArrayLike | Tensor, format: str = "float32"
    ) -> DenseLayout:
        """Store a table in one of `DENSE_FORMATS`, rounded to nearest even.

        Raises
        ------
        ValueError
            If the table is not 2-D and finite, the format is unknown, or a
            value is too large for the format.
        """
        table = as_finite_table(weight)
        check_choice("format", format, DENSE_FORMATS)
        if format == "float32":
            return cls(table.copy())
        shorten = round_to_bfloat16 if format == "bfloat16" else round_to_float16
        kind = np.uint16 if format == "bfloat16" else np.float16
        values = np.empty(table.shape, dtype=kind)
        rows, dim = table.shape
        for part in cut_rows(rows, dim, TOGETHER):
            values[part] = shorten(table[part])
        return cls(values)

    def check_arrays(self) -> None:
        """Raise ValueError if the array is not the table it should be."""
        expected = (self.num_embeddings, self.embedding_dim)
        if (
            self.values is None
            or self.values.shape != expected
            or self.values.dtype not in (np.float32, np.float16, np.uint16)
        ):
            raise ValueError(
                f"values must be float32, float16 or uint16 of shape {expected}"
            )

    def _move(self, array: StoredArray) -> StoredArray:
        """The rows on a GPU, padded to whole memory sectors."""
        from survey_code.kernels.cuda.place import place_rows

        return place_rows(array)

    def describe(self) -> Format:
        """Rows of numbers."""
        from survey_code.kernels.formats import DenseFormat

        return DenseFormat.of(self.values)

    def read_rows(self, ids: IdArray) -> RowArray:
        """Gather, then widen to float32."""
        return take_floats(self.values, ids)


def round_to_float16(table: np.ndarray) -> np.ndarray:
    """float32 values rounded to nearest, ties to even; ValueError for larger ones."""
    with np.errstate(over="ignore"):
        half: np.ndarray = table.astype(np.float16)
    if np.isinf(half).any():
        refuse_beyond("float16", 65504.0, float(np.abs(table).max()))
    return half


def refuse_beyond(format: str, largest: float, value: float) -> None:
    """Raise ValueError if a value is larger than a format's largest."""
    if value > largest:
        raise ValueError(f"{format} holds values up to {largest:.5g}, got {value:.6g}")


def round_to_bfloat16(table: np.ndarray) -> np.ndarray:
    """Bit patterns (uint16) of float32 values rounded to nearest, ties to even.

    bfloat16 is the upper half of a float32; adding just under half of the kept
    part's last bit, plus that bit itself, makes truncation round to even.
    """
    bits = table.view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    upper: np.ndarray = (rounded >> 16).astype(np.uint16)
    if ((upper & 0x7F80) == 0x7F80).any():
        refuse_beyond("bfloat16", LARGEST_BFLOAT16, float(np.abs(table).max()))
    return upper
