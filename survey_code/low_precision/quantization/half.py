"""Half precision: 16 bits per weight, also while training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from survey_code.embedding import draw_normal
from survey_code.kernels.cpu.rows import cut_rows
from survey_code.layouts import DenseLayout
from survey_code.layouts.dense import TOGETHER, refuse_beyond
from survey_code.low_precision.quantization.rounding import ROUNDINGS, round_to_whole
from survey_code.low_precision.quantization.writeback import WriteBackEmbedding
from survey_code.method import AfterTraining, Found, Trained
from survey_code.options import Options, option, planned
from survey_code.spec import TableSpec

# Stored digits of the mantissa, and the exponent below which numbers of a format
# share one unit.  (bfloat16 would go on to -126; no embedding is that small, and
# the unit itself must stay a normal float32.)
HALF_FORMATS = {"float16": (10, -14), "bfloat16": (7, -100)}

# NumPy's type for the bits of a format.
BITS_OF = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(np.uint16)}


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
    digits, lowest = HALF_FORMATS[dtype]
    kind = getattr(torch, dtype)
    exponent = (torch.frexp(values).exponent - 1).clamp(min=lowest)
    unit = torch.ldexp(torch.ones_like(values), exponent - digits)
    rounded = round_to_whole(values / unit, rounding, rng) * unit
    largest = torch.finfo(kind).max
    return rounded.clamp(-largest, largest).to(kind)


class HalfOptions(Options):
    """Options of `HalfPrecision`."""

    dtype: str = option("float16", "the 16 bits' format", choices=tuple(HALF_FORMATS))
    # How rows are written back after a step.  To the nearest, updates smaller than half
    # a unit are lost; by chance, they count on average.
    rounding: str | None = planned(
        "unless asked, by chance, and a table compressed without a plan to the nearest",
        choices=ROUNDINGS,
    )


class HalfPrecision(
    WriteBackEmbedding, Trained[HalfOptions], AfterTraining[HalfOptions]
):
    """A table of 16-bit numbers that is trained as such (key ``half``).

    Notes
    -----
    Zhang, Yang and Yuen, "Training with Low-Precision Embedding Tables" (2018).
    """

    values: Tensor

    def __init__(self, spec: TableSpec, options: HalfOptions, seed: int = 0) -> None:
        super().__init__(spec, seed)
        self.dtype, self.rounding = options.dtype, options.rounding or "stochastic"
        shape = (spec.num_embeddings, spec.embedding_dim)
        start = draw_normal(shape, spec.init_std, [seed, 0])
        self.register_buffer("values", start.to(getattr(torch, self.dtype)))

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: HalfOptions) -> Found:
        """The table has one size: half of the full one's."""
        spec.require(ratio, smallest=spec.full_bytes // 2)
        return {"rounding": options.rounding or "stochastic"}

    @classmethod
    def compress(
        cls, weight: np.ndarray, spec: TableSpec, options: HalfOptions
    ) -> DenseLayout:
        """A trained table in 16 bits; rounding by chance, it is always the same.

        Numbers beyond the format are a ValueError: they cannot be rounded up or down
        by chance.
        """
        if options.rounding != "stochastic":
            return DenseLayout.from_weight(weight, options.dtype)
        rng, dtype = np.random.default_rng(0), options.dtype
        largest = torch.finfo(getattr(torch, dtype)).max
        values = np.empty(weight.shape, dtype=BITS_OF[dtype])
        count, dim = weight.shape
        for part in cut_rows(count, dim, TOGETHER):
            rows = torch.from_numpy(weight[part].copy())
            refuse_beyond(dtype, largest, float(rows.abs().max()))
            rounded = round_to_format(rows, dtype, "stochastic", rng)
            values[part] = rounded.view(torch.int16).numpy().view(values.dtype)
        return DenseLayout(values)

    def load_rows(self, ids: Tensor) -> Tensor:
        """Widen rows to float32."""
        return self.values[ids].float()

    def store_rows(self, ids: Tensor, rows: Tensor) -> None:
        """Round rows to 16 bits."""
        self.values[ids] = round_to_format(rows, self.dtype, self.rounding, self.rng)

    def freeze(self) -> DenseLayout:
        """The table as it is."""
        self.refuse_unsound()
        return DenseLayout.from_weight(self.values, self.dtype)
