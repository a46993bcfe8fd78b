"""Row-wise quantisation of a trained table: round between minimum and maximum."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from survey_code.layouts import RowwiseLayout
from survey_code.layouts.layout import as_finite_table
from survey_code.layouts.rowwise import BITS, code_bytes, parameter_type, row_bytes
from survey_code.method import AfterTraining, Found
from survey_code.options import Options, option, planned
from survey_code.spec import TableSpec

# float16, which holds scale and bias at 4 and 2 bits, ends here.
LARGEST_HALF = 65504.0


def quantize_rows(
    table: np.ndarray, bits: int = 8
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Round each row to integers between its own minimum and maximum.

    Row :math:`e` becomes codes :math:`q = \mathrm{round}((e - b) / s)` with bias
    :math:`b = \min e` and scale :math:`s = (\max e - b) / (2^k - 1)` for k bits,
    so that no entry moves by more than :math:`s / 2` (before scale and bias are
    themselves rounded).  At 4 and 2 bits b is rounded to float16 first, and the
    range is taken from the rounded b.

    Parameters
    ----------
    table : ndarray of float32, shape (rows, dim)
    bits : {8, 4, 2}

    Returns
    -------
    codes : ndarray of uint8, shape (rows, dim)
    scale, bias : ndarray of float32 (8 bits) or float16 (4, 2), shape (rows,)

    Raises
    ------
    ValueError
        If `table` is not 2-D or not finite, `bits` is another number, or a row
        leaves the range of float16 at 4 or 2 bits.

    Notes
    -----
    The rule of PyTorch's and FBGEMM's packed rows, byte for byte; after Guan et
    al., "Post-Training 4-bit Quantization on Embedding Tables" (2019).
    """
    table = as_finite_table(table, "table")
    kind = parameter_type(bits)
    # The first of equal minima: NumPy's min() of 0.0 and -0.0 depends on the
    # processor, and so would the file.
    first = table.argmin(axis=1, keepdims=True)
    low = np.take_along_axis(table, first, axis=1)[:, 0]
    high = table.max(axis=1)
    if kind == np.float16:
        check_half(np.maximum(-low, high), kind, bits)
        return round_to_half(table, low, high, bits)
    with np.errstate(over="ignore"):
        span = high - low
    if not np.isfinite(span).all():
        raise ValueError("a row's range (max - min) overflows float32")
    # The small constant keeps a constant row from dividing by zero.
    inverse = np.float32(255) / (span + np.float32(1e-8))
    codes = np.rint((table - low[:, None]) * inverse[:, None])
    return codes.astype(np.uint8), span / np.float32(255), low


def round_to_half(
    table: np.ndarray, low: np.ndarray, high: np.ndarray, bits: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scale and bias at 4 or 2 bits, with float16 scale and bias."""
    top = np.float32(2**bits - 1)
    bias = low.astype(np.float16)
    origin = bias.astype(np.float32)
    span = high - origin
    scale = (span / top).astype(np.float16)
    # A range that underflows float16 leaves scale 0: PyTorch then uses 1.
    scale[scale == 0] = 1
    inverse = np.float32(1) / scale.astype(np.float32)
    codes = np.rint((table - origin[:, None]) * inverse[:, None])
    return np.clip(codes, 0, top).astype(np.uint8), scale, bias


def quantize_symmetric(
    table: np.ndarray, bits: int = 8
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Round each row to integers between -P and P with P = 2**(bits - 1) - 1.

    The step is :math:`s = \max|e| / P`, so that 0 is a code of its own.  Stored
    codes are :math:`\mathrm{round}(e / s) + 2^{k-1}` and the bias is
    :math:`-2^{k-1} s`, which float16 holds exactly where it holds s; the code 0
    is never used.

    Parameters, returns and errors are those of `quantize_rows`.
    """
    table = as_finite_table(table, "table")
    kind = parameter_type(bits)
    middle = np.float32(2 ** (bits - 1))
    largest = np.abs(table).max(axis=1)
    with np.errstate(over="ignore"):
        check_half(largest / (middle - 1) * middle, kind, bits)
    scale = (largest / (middle - 1)).astype(kind)
    # Rows of zeros, or too small for float16: any step gives zeros.
    scale[scale == 0] = 1
    step = scale.astype(np.float32)
    codes = np.rint(table / step[:, None])
    codes = np.clip(codes, 1 - middle, middle - 1) + middle
    return codes.astype(np.uint8), scale, (-middle * step).astype(kind)


def check_half(largest: np.ndarray, kind: np.dtype, bits: int) -> None:
    """Raise ValueError where scale or bias would have to exceed their type."""
    if kind == np.float32 and not np.isfinite(largest).all():
        raise ValueError("a row's range overflows float32")
    if kind == np.float16 and largest.max() > LARGEST_HALF:
        raise ValueError(
            f"at {bits} bits scale and bias are float16, which holds values up to "
            f"{LARGEST_HALF:g}; the table reaches {largest.max():.6g}"
        )


def quantize_table(
    table: np.ndarray, bits: int = 8, symmetric: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Round a whole table with one step, stored once in float32.

    The rule is that of `quantize_rows` at 8 bits, or of `quantize_symmetric`.

    Returns
    -------
    codes : ndarray of uint8, shape (rows, dim)
    scale, bias : ndarray of float32, shape (1,)
    """
    table = as_finite_table(table, "table")
    parameter_type(bits)
    middle = np.float32(2 ** (bits - 1))
    top = np.float32(2**bits - 1)
    with np.errstate(over="ignore"):
        if symmetric:
            scale = np.abs(table).max() / (middle - 1)
            bias = -middle * scale
        else:
            bias = table.min()
            scale = (table.max() - bias) / top
        if not np.isfinite(scale * top):
            raise ValueError("the table's range (max - min) overflows float32")
    origin = np.float32(0) if symmetric else bias
    codes = np.rint((table - origin) / max(scale, np.float32(1e-38)))
    codes = np.clip(codes + middle, 1, top) if symmetric else np.clip(codes, 0, top)
    return codes.astype(np.uint8), np.array([scale]), np.array([bias])


class RowwiseOptions(Options):
    """Options of `RowwiseQuantization`."""

    bits: int = planned("bits of a code", choices=BITS, otherwise=8)
    symmetric: bool = option(False, "the same range on both sides of 0")
    per: str = option(
        "row", "who has a scale and a bias of its own", choices=("row", "table")
    )


class RowwiseQuantization(AfterTraining[RowwiseOptions]):
    """Uniform quantisation of a trained table, row by row (key ``rowwise``).

    A scale and a bias per table instead of per row are stored only once.
    """

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: RowwiseOptions) -> Found:
        """The most bits whose rows fit into the budget."""
        size = partial(table_bytes, spec, per=options.per)
        return {"bits": plan_bits(spec, ratio, options.bits, size)}

    @classmethod
    def compress(
        cls, weight: np.ndarray, spec: TableSpec, options: RowwiseOptions
    ) -> RowwiseLayout:
        """Quantise an (n, d) table into a row-wise layout."""
        if options.per == "table":
            return RowwiseLayout.from_groups(
                *quantize_table(weight, options.bits, options.symmetric), options.bits
            )
        quantize = quantize_symmetric if options.symmetric else quantize_rows
        return RowwiseLayout.from_codes(*quantize(weight, options.bits), options.bits)


def plan_bits(
    spec: TableSpec, ratio: float, bits: int | None, size: Callable[[int], int]
) -> int:
    """The most bits that fit into a budget, or the bits that were asked for.

    Parameters
    ----------
    spec : TableSpec
    ratio : float
    bits : int, optional
    size : callable
        Bytes of a table with so many bits.
    """
    choices = BITS if bits is None else (bits,)
    sizes = {b: size(b) for b in choices}
    budget = spec.require(ratio, smallest=min(sizes.values()))
    return max(b for b in choices if sizes[b] <= budget)


def table_bytes(spec: TableSpec, bits: int, per: str = "row") -> int:
    """Bytes of a row-wise layout with a scale and a bias per row, field or table."""
    if per == "row":
        return spec.num_embeddings * row_bytes(spec.embedding_dim, bits)
    groups = len(spec.field_starts) - 1 if per == "field" else 1
    # Several groups also store where they start.
    parameters = groups * (16 if groups > 1 else 8)
    return spec.num_embeddings * code_bytes(spec.embedding_dim, bits) + parameters
