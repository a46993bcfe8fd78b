"""The dense layout: one number per entry, in 32 or 16 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from survey_code.checks import check_choice
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

    from survey_code.kernels.cuda.formats import Format

DENSE_FORMATS = ("float32", "float16", "bfloat16")


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
        if format == "bfloat16":
            return cls(round_to_bfloat16(table))
        with np.errstate(over="ignore"):
            half = table.astype(np.float16)
        if np.isinf(half).any():
            raise ValueError(
                f"float16 holds values up to 65504, got {np.abs(table).max():.6g}"
            )
        return cls(half)

    def validate(self) -> None:
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
        from survey_code.kernels.cuda.formats import DenseFormat

        return DenseFormat.of(self.values)

    def read_rows(self, ids: IdArray) -> RowArray:
        """Gather, then widen to float32."""
        return take_floats(self.values, ids)


def round_to_bfloat16(table: np.ndarray) -> np.ndarray:
    """Bit patterns (uint16) of float32 values rounded to nearest, ties to even.

    bfloat16 is the upper half of a float32; adding just under half of the kept
    part's last bit, plus that bit itself, makes truncation round to even.
    """
    bits = table.view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    upper: np.ndarray = (rounded >> 16).astype(np.uint16)
    if ((upper & 0x7F80) == 0x7F80).any():
        raise ValueError(
            f"bfloat16 holds values up to 3.3895e38, got {np.abs(table).max():.6g}"
        )
    return upper
