"""Half precision and less: floats of 16, 8 or 4 bits, also while training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from survey_code.bits import pack_codes
from survey_code.embedding import draw_normal
from survey_code.kernels.cpu.rows import NumberRows, cut_rows
from survey_code.layouts import DenseLayout, LevelsLayout
from survey_code.layouts.dense import TOGETHER, refuse_beyond
from survey_code.low_precision.quantization.rounding import ROUNDINGS, round_to_whole
from survey_code.low_precision.quantization.small_floats import (
    SMALL_FORMATS,
    SmallFormat,
    decode_small_floats,
    encode_small_floats,
    find_powers,
    small_float_bytes,
    store_small_floats,
)
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

    dtype: str = option(
        "float16",
        "the numbers' format: 16 bits, 8, or 4 with a power of two for each 32 columns",
        choices=(*HALF_FORMATS, *SMALL_FORMATS),
    )
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

    Or of numbers of 8 or 4 bits, which are codes of a short list: ``float8_e4m3`` and
    ``float8_e5m2`` with one power of two for the whole table, which costs nothing, as
    it is multiplied into the list; ``mx4`` with one for each 32 columns of a row.

    Notes
    -----
    Zhang, Yang and Yuen, "Training with Low-Precision Embedding Tables" (2018), for 16
    bits.  The formats of 8 and 4 bits are those of the Open Compute Project's
    Microscaling Formats (2023).  There a block's power of two follows from its largest
    number's exponent alone, and numbers between 6 and 8 units become 6; here it is the
    smallest power by which nothing is cut by more than rounding would, or by chance
    nothing at all.
    """

    values: Tensor
    codes: Tensor
    powers: Tensor

    def __init__(self, spec: TableSpec, options: HalfOptions, seed: int = 0) -> None:
        super().__init__(spec, seed)
        self.dtype, self.rounding = options.dtype, options.rounding or "stochastic"
        shape = (spec.num_embeddings, spec.embedding_dim)
        start = draw_normal(shape, spec.init_std, [seed, 0])
        self.form = SMALL_FORMATS.get(self.dtype)
        if self.form is None:
            self.register_buffer("values", start.to(getattr(torch, self.dtype)))
            return
        packed, powers = shorten_rows(start, self.form, "nearest", self.rng)
        self.register_buffer("codes", packed)
        self.register_buffer("powers", powers)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: HalfOptions) -> Found:
        """The table has one size: half of the full one's, or what its bits take."""
        size = spec.full_bytes // 2
        if options.dtype in SMALL_FORMATS:
            shape, form = (spec.num_embeddings, spec.embedding_dim), options.dtype
            size = small_float_bytes(*shape, SMALL_FORMATS[form])
        spec.require(ratio, smallest=size)
        return {"rounding": options.rounding or "stochastic"}

    @classmethod
    def compress(
        cls, weight: np.ndarray, spec: TableSpec, options: HalfOptions
    ) -> DenseLayout | LevelsLayout:
        """A trained table in few bits; rounding by chance, it is always the same.

        Numbers beyond a format of 16 bits are a ValueError: they cannot be rounded up
        or down by chance.
        """
        rounding = options.rounding or "nearest"
        if options.dtype in SMALL_FORMATS:
            return compress_small(weight, SMALL_FORMATS[options.dtype], rounding)
        if rounding != "stochastic":
            return DenseLayout.from_weight(weight, options.dtype)
        return round_by_chance(weight, options.dtype, np.random.default_rng(0))

    def load_rows(self, ids: Tensor) -> Tensor:
        """Widen rows to float32."""
        if self.form is None:
            return self.values[ids].float()
        powers = self.powers[ids] if self.form.block else self.powers
        dim = self.embedding_dim
        return decode_small_floats(self.codes[ids], powers, self.form, dim)

    def store_rows(self, ids: Tensor, rows: Tensor) -> None:
        """Round rows to their few bits."""
        if self.form is None:
            rounded = round_to_format(rows, self.dtype, self.rounding, self.rng)
            self.values[ids] = rounded
            return
        powers = find_powers(rows, self.form, self.rounding)
        if self.form.block:
            self.powers[ids] = powers
        else:
            powers = self.widen_range(powers)
        codes = encode_small_floats(rows, powers, self.form, self.rounding, self.rng)
        self.codes[ids] = pack_codes(codes, self.form.bits)

    def widen_range(self, needed: Tensor) -> Tensor:
        """The table's power of two, once it is as large as rows need it.

        If it grows, all rows are stored anew: only the smallest numbers lose by it.
        """
        assert self.form is not None
        if bool((needed > self.powers).any()):
            for part in cut_rows(self.num_embeddings, self.embedding_dim, TOGETHER):
                shape = self.form, self.embedding_dim
                rows = decode_small_floats(self.codes[part], self.powers, *shape)
                codes = encode_small_floats(
                    rows, needed, self.form, self.rounding, self.rng
                )
                self.codes[part] = pack_codes(codes, self.form.bits)
            self.powers.copy_(needed)
        return self.powers

    def freeze(self) -> DenseLayout | LevelsLayout:
        """The table as it is."""
        self.refuse_unsound()
        if self.form is None:
            return DenseLayout.from_weight(self.values, self.dtype)
        packed, powers = (part.cpu().numpy() for part in (self.codes, self.powers))
        return store_small_floats(packed, powers, self.form, self.embedding_dim)


def shorten_rows(
    rows: Tensor, form: SmallFormat, rounding: str, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Packed codes (m, bytes) and powers of two of rows (m, dim), all at once."""
    powers = find_powers(rows, form, rounding)
    codes = encode_small_floats(rows, powers, form, rounding, rng)
    return pack_codes(codes, form.bits), powers


def round_by_chance(
    weight: np.ndarray, dtype: str, rng: np.random.Generator
) -> DenseLayout:
    """A table in a format of 16 bits, numbers rounded up or down by chance."""
    largest = torch.finfo(getattr(torch, dtype)).max
    values = np.empty(weight.shape, dtype=BITS_OF[dtype])
    count, dim = weight.shape
    for part in cut_rows(count, dim, TOGETHER):
        rows = torch.from_numpy(weight[part].copy())
        refuse_beyond(dtype, largest, float(rows.abs().max()))
        rounded = round_to_format(rows, dtype, "stochastic", rng)
        values[part] = rounded.view(torch.int16).numpy().view(values.dtype)
    return DenseLayout(values)


def compress_small(
    weight: np.ndarray, form: SmallFormat, rounding: str
) -> LevelsLayout:
    """A table in a format of 8 or 4 bits, some rows at a time."""
    shared = share_power(weight, form, rounding)
    return code_table(weight, form, rounding, shared, np.random.default_rng(0))


def share_power(weight: NumberRows, form: SmallFormat, rounding: str) -> Tensor | None:
    """The power of two that a whole table shares; None where its blocks have theirs."""
    if form.block:
        return None
    count, dim = weight.shape
    largest = max(
        float(np.abs(weight[part]).max()) for part in cut_rows(count, dim, TOGETHER)
    )
    return find_powers(torch.tensor([[largest]]), form, rounding)


def code_table(
    weight: np.ndarray,
    form: SmallFormat,
    rounding: str,
    shared: Tensor | None,
    rng: np.random.Generator,
) -> LevelsLayout:
    """A table's codes by the power that it shares, or by those of its blocks."""
    (count, dim), packed, powers = weight.shape, [], []
    for part in cut_rows(count, dim, TOGETHER):
        rows = torch.from_numpy(weight[part].copy())
        own = find_powers(rows, form, rounding) if shared is None else shared
        codes = encode_small_floats(rows, own, form, rounding, rng)
        packed.append(pack_codes(codes, form.bits).numpy())
        powers.append(own.numpy())
    return store_small_floats(np.concatenate(packed), np.concatenate(powers), form, dim)
