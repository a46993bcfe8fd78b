"""Half precision: 16 bits per weight, also while training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from survey_code.embedding import draw_normal
from survey_code.layouts import DenseLayout
from survey_code.layouts.layout import as_finite_table
from survey_code.low_precision.quantization.rounding import ROUNDINGS, round_values
from survey_code.low_precision.quantization.rowwise import check_choice
from survey_code.low_precision.quantization.writeback import WriteBackEmbedding
from survey_code.spec import TableSpec

# Stored digits of the mantissa, and the exponent below which numbers of a format
# share one unit.  (bfloat16 would go on to -126; no embedding is that small, and
# the unit itself must stay a normal float32.)
FORMATS = {"float16": (10, -14), "bfloat16": (7, -100)}


def round_to_format(
    values: Tensor, dtype: str, rounding: str, rng: np.random.Generator
) -> Tensor:
    """Round float32 to float16 or bfloat16, by chance or to the nearest.

    The unit of the last place is a power of two that follows from each number's
    exponent; in these units rounding is rounding to whole numbers.

    Parameters
    ----------
    values : Tensor of float32
    dtype : {"float16", "bfloat16"}
    rounding : {"stochastic", "nearest"}
    rng : numpy.random.Generator

    Returns
    -------
    Tensor of that dtype, same shape
        What exceeds the format becomes its largest number.
    """
    digits, lowest = FORMATS[dtype]
    kind = getattr(torch, dtype)
    exponent = (torch.frexp(values).exponent - 1).clamp(min=lowest)
    unit = torch.ldexp(torch.ones_like(values), exponent - digits)
    rounded = round_values(values / unit, rounding, rng) * unit
    largest = torch.finfo(kind).max
    return rounded.clamp(-largest, largest).to(kind)


class HalfPrecision(WriteBackEmbedding):
    """A table of 16-bit numbers that is trained as such (key ``half``).

    Parameters
    ----------
    spec : TableSpec
    dtype : {"float16", "bfloat16"}
    rounding : {"stochastic", "nearest"}
        How rows are written back after a step.  To the nearest, updates smaller
        than half a unit are lost; by chance, they count on average.
    seed : int, default 0

    Raises
    ------
    ValueError
        If `dtype` or `rounding` is unknown.

    Notes
    -----
    Zhang, Yang and Yuen, "Training with Low-Precision Embedding Tables" (2018).
    """

    values: Tensor

    def __init__(
        self,
        spec: TableSpec,
        *,
        dtype: str = "float16",
        rounding: str = "stochastic",
        seed: int = 0,
    ) -> None:
        check_choice("dtype", dtype, tuple(FORMATS))
        check_choice("rounding", rounding, ROUNDINGS)
        super().__init__(spec, seed)
        self.dtype, self.rounding = dtype, rounding
        shape = (spec.num_embeddings, spec.embedding_dim)
        start = draw_normal(shape, spec.init_std, [seed, 0])
        self.register_buffer("values", start.to(getattr(torch, dtype)))

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        dtype: str = "float16",
        rounding: str = "stochastic",
    ) -> dict[str, Any]:
        """The table has one size: half of the full one's."""
        check_choice("dtype", dtype, tuple(FORMATS))
        check_choice("rounding", rounding, ROUNDINGS)
        spec.require(ratio, smallest=spec.full_bytes // 2)
        return {"dtype": dtype, "rounding": rounding}

    @classmethod
    def compress(
        cls,
        weight: Any,
        *,
        dtype: str = "float16",
        rounding: str = "nearest",
        spec: TableSpec | None = None,
    ) -> DenseLayout:
        """A trained table in 16 bits; rounding by chance, it is always the same."""
        check_choice("dtype", dtype, tuple(FORMATS))
        check_choice("rounding", rounding, ROUNDINGS)
        table = as_finite_table(weight)
        if rounding == "stochastic":
            rng = np.random.default_rng(0)
            rounded = round_to_format(torch.from_numpy(table), dtype, rounding, rng)
            return DenseLayout.from_weight(rounded, dtype)
        return DenseLayout.from_weight(table, dtype)

    def load_rows(self, ids: Tensor) -> Tensor:
        """Widen rows to float32."""
        return self.values[ids].float()

    def store_rows(self, ids: Tensor, rows: Tensor) -> None:
        """Round rows to 16 bits."""
        self.values[ids] = round_to_format(rows, self.dtype, self.rounding, self.rng)

    def freeze(self) -> DenseLayout:
        """The table as it is."""
        return DenseLayout.from_weight(self.values, self.dtype)
