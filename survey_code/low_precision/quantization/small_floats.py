"""Numbers of 8 and 4 bits with a sign, an exponent and a mantissa of their own.

With so few bits all numbers of a format can be listed, and codes are read by that list.
Their range is short, so that a power of two goes with them: one for the whole table at
8 bits, one for each 32 columns of a row at 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from survey_code.bits import unpack_codes
from survey_code.layouts import LevelsLayout
from survey_code.layouts.levels import POWER_BIAS, levels_bytes
from survey_code.low_precision.quantization.rounding import round_to_whole


@dataclass(frozen=True)
class SmallFormat:
    """A format of at most 8 bits: a sign, then the exponent, then the mantissa.

    Parameters
    ----------
    exponent, mantissa : int
        Bits of each.
    bias : int
        What is taken from the exponent.
    largest : float
        Numbers above are codes of infinity or of no number, and not used.
    block : int
        Columns of a row that share a power of two; 0: the whole table does.
    """

    exponent: int
    mantissa: int
    bias: int
    largest: float
    block: int = 0

    @property
    def bits(self) -> int:
        """Bits of a number, its sign included."""
        return 1 + self.exponent + self.mantissa

    @property
    def reach(self) -> tuple[int, int]:
        """The least and the largest power of two by which float32 still holds it."""
        top = int(np.log2(self.largest))
        return self.bias + self.mantissa - 127, 127 - top


SMALL_FORMATS = {
    "float8_e4m3": SmallFormat(4, 3, bias=7, largest=448.0),
    "float8_e5m2": SmallFormat(5, 2, bias=15, largest=57344.0),
    "mx4": SmallFormat(2, 1, bias=1, largest=6.0, block=32),
}


@cache
def list_small_floats(form: SmallFormat) -> np.ndarray:
    """All numbers of a format by their codes, float32 of shape (2**bits,).

    Codes of infinity and of no number stand for the largest, so that all are finite.

    Examples
    --------
    >>> list_small_floats(SMALL_FORMATS["mx4"])[:8].tolist()
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    """
    codes = np.arange(2 ** (form.bits - 1))
    exponent, fraction = codes >> form.mantissa, codes % 2**form.mantissa
    # Below the smallest exponent, numbers have no leading one, but the same unit.
    lead = np.where(exponent > 0, 2**form.mantissa, 0)
    unit = np.exp2(np.maximum(exponent, 1) - form.bias - form.mantissa)
    half = np.minimum((lead + fraction) * unit, form.largest)
    levels = np.concatenate([half, -half]).astype(np.float32)
    levels.flags.writeable = False
    return levels


def find_powers(rows: Tensor, form: SmallFormat, rounding: str) -> Tensor:
    """The smallest powers of two by which the numbers of each block fit a format.

    Parameters
    ----------
    rows : Tensor of float32, shape (m, dim)
    form : SmallFormat
    rounding : {"stochastic", "nearest"}
        To the nearest, a number may be beyond the largest by half a unit, since the
        next power would round it as far; by chance it may not, to be right on average.

    Returns
    -------
    Tensor of int8, shape (m, blocks), or (1, 1) where all rows share one
    """
    if form.block:
        missing = -rows.shape[1] % form.block
        padded = torch.nn.functional.pad(rows, (0, missing)).abs()
        most = padded.view(len(rows), -1, form.block).amax(2)
    else:
        most = rows.abs().amax().view(1, 1)
    top = 2.0 ** int(np.log2(form.largest))
    allowed = form.largest
    if rounding == "nearest":
        allowed += top * 2.0 ** -(form.mantissa + 1)
    # most = part * 2**power, and part is from 1/2 up to 1.
    part, power = torch.frexp(most)
    over = part * 2 * top > allowed
    power = power - 1 - int(np.log2(top)) + over
    low, high = form.reach
    return power.clamp(low, high).where(most > 0, 0).to(torch.int8)


def two_to(powers: Tensor) -> Tensor:
    """Powers of two from -126 to 127, as a float32 has them in its exponent."""
    return ((powers.to(torch.int32) + 127) << 23).view(torch.float32)


def encode_small_floats(
    rows: Tensor,
    powers: Tensor,
    form: SmallFormat,
    rounding: str,
    rng: np.random.Generator,
) -> Tensor:
    """Codes of rows, each number rounded after it was divided by its power of two.

    Parameters
    ----------
    rows : Tensor of float32, shape (m, dim)
    powers : Tensor of int8, shape (m, blocks) or (1, 1)
        From `find_powers`; what still exceeds the format becomes its largest number.
    form : SmallFormat
    rounding : {"stochastic", "nearest"}
    rng : numpy.random.Generator

    Returns
    -------
    Tensor of uint8, shape (m, dim)
    """
    scaled = rows.float() * two_to(-spread_powers(powers, rows.shape[1], form))
    exponent = (torch.frexp(scaled).exponent - 1).clamp(min=1 - form.bias)
    unit = two_to(exponent - form.mantissa)
    rounded = round_to_whole(scaled / unit, rounding, rng) * unit
    half = torch.from_numpy(list_small_floats(form)[: 2 ** (form.bits - 1)].copy())
    # Of equal numbers the first is found: codes of infinity are not used.
    within = rounded.abs().clamp(max=form.largest)
    codes = torch.searchsorted(half.to(rows.device), within)
    return (codes + torch.signbit(rounded) * len(half)).to(torch.uint8)


def decode_small_floats(
    packed: Tensor, powers: Tensor, form: SmallFormat, dim: int
) -> Tensor:
    """Rows that packed codes stand for: uint8 (m, bytes) -> float32 (m, dim)."""
    levels = torch.from_numpy(list_small_floats(form).copy()).to(packed.device)
    numbers = levels[unpack_codes(packed, dim, form.bits).long()]
    return numbers * two_to(spread_powers(powers, dim, form))


def spread_powers(powers: Tensor, dim: int, form: SmallFormat) -> Tensor:
    """The power of each column, (m, dim), or (1, 1) where all share one."""
    if not form.block:
        return powers
    return powers.repeat_interleave(form.block, dim=1)[:, :dim]


def small_float_bytes(rows: int, dim: int, form: SmallFormat) -> int:
    """Bytes of a table in a format, before there is one; the list of its numbers too.

    Examples
    --------
    >>> small_float_bytes(1000, 64, SMALL_FORMATS["mx4"])
    34064
    """
    return levels_bytes(rows, dim, form.bits, block=form.block)


def store_small_floats(
    packed: np.ndarray, powers: np.ndarray, form: SmallFormat, dim: int
) -> LevelsLayout:
    """A layout of packed codes; the table's own power of two goes into the levels."""
    levels = list_small_floats(form)
    if not form.block:
        scaled = np.ldexp(levels, int(powers[0, 0])).astype(np.float32)
        return LevelsLayout(packed, scaled, dim, form.bits)
    tail = (powers.astype(np.int16) + POWER_BIAS).astype(np.uint8)
    rows = np.concatenate([packed, tail], axis=1)
    return LevelsLayout(rows, levels, dim, form.bits, form.block)
