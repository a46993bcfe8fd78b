"""Row-wise quantisation of a trained table: round between minimum and maximum."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from survey_code.bits import pack_codes
from survey_code.kernels.cpu.rows import cut_rows
from survey_code.layouts import RowwiseLayout
from survey_code.layouts.layout import as_finite_table
from survey_code.layouts.rowwise import (
    BITS,
    PYTORCH_BITS,
    code_bytes,
    pack_rows,
    parameter_type,
    row_bytes,
)
from survey_code.method import AfterTraining, Found
from survey_code.options import Options, option, planned
from survey_code.spec import TableSpec

# float16, which holds scale and bias below 8 bits, ends here.
LARGEST_HALF = 65504.0

# Numbers of a table that are rounded together, so that memory stays small.
ROUNDED_TOGETHER = 2**18

# Codes (rows, dim), scales (rows,) and biases (rows,).
Rounded = tuple[np.ndarray, np.ndarray, np.ndarray]


def quantize_rows(table: np.ndarray, bits: int = 8) -> Rounded:
    r"""Round each row to integers between its own minimum and maximum.

    Row :math:`e` becomes codes :math:`q = \mathrm{round}((e - b) / s)` with bias
    :math:`b = \min e` and scale :math:`s = (\max e - b) / (2^k - 1)` for k bits,
    so that no entry moves by more than :math:`s / 2` (before scale and bias are
    themselves rounded).  Below 8 bits b is rounded to float16 first, and the
    range is taken from the rounded b.  At 8 bits PyTorch, and so this, adds 1e-8 to
    the range that codes are found by: rows with a range of 1e-6 or less are coded too
    coarsely.  A single bit says which of the row's ends is nearer.

    Parameters
    ----------
    table : ndarray of float32, shape (rows, dim)
    bits : {8, 4, 3, 2, 1}

    Returns
    -------
    codes : ndarray of uint8, shape (rows, dim)
    scale, bias : ndarray of float32 (8 bits) or float16 (below), shape (rows,)

    Raises
    ------
    ValueError
        If `table` is not 2-D or not finite, `bits` is another number, a row's scale
        or bias leaves float16 below 8 bits, or what is read leaves float32 at 8.

    Notes
    -----
    At 8, 4 and 2 bits the rule of PyTorch's and FBGEMM's packed rows, byte for byte;
    after Guan et al., "Post-Training 4-bit Quantization on Embedding Tables" (2019).
    """
    table = as_finite_table(table, "table")
    kind = parameter_type(bits)
    # The first of equal minima: NumPy's min() of 0.0 and -0.0 depends on the
    # processor, and so would the file.
    first = table.argmin(axis=1, keepdims=True)
    low = np.take_along_axis(table, first, axis=1)[:, 0]
    high = table.max(axis=1)
    if kind == np.float16:
        return round_to_half(table, low, high, bits)
    with np.errstate(over="ignore"):
        span = high - low
        scale = span / np.float32(255)
        check_read(scale * np.float32(255) + low)
    # The small constant keeps a constant row from dividing by zero.
    inverse = np.float32(255) / (span + np.float32(1e-8))
    codes = np.rint((table - low[:, None]) * inverse[:, None])
    return codes.astype(np.uint8), scale, low


def round_to_half(
    table: np.ndarray, low: np.ndarray, high: np.ndarray, bits: int
) -> Rounded:
    """Codes, scale and bias below 8 bits, with float16 scale and bias."""
    top = np.float32(2**bits - 1)
    bias = round_parameter("biases", low, bits)
    origin = bias.astype(np.float32)
    with np.errstate(over="ignore"):
        scale = round_parameter("scales", (high - origin) / top, bits)
    # A range that underflows float16 leaves scale 0: PyTorch then uses 1.
    scale[scale == 0] = 1
    inverse = np.float32(1) / scale.astype(np.float32)
    codes = np.rint((table - origin[:, None]) * inverse[:, None])
    return np.clip(codes, 0, top).astype(np.uint8), scale, bias


def quantize_symmetric(table: np.ndarray, bits: int = 8) -> Rounded:
    r"""Round each row to integers between -P and P with P = 2**(bits - 1) - 1.

    The step is :math:`s = \max|e| / P`, so that 0 is a code of its own.  Stored
    codes are :math:`\mathrm{round}(e / s) + 2^{k-1}` and the bias is
    :math:`-2^{k-1} s`, which float16 holds exactly where it holds s; the code 0
    is never used.  The bias says nothing that the scale does not: it is the price of
    rows that PyTorch's operators read.

    A single bit leaves no code for 0: it is the sign, and stands for
    :math:`\pm\max|e|`.

    Parameters, returns and errors are those of `quantize_rows`.
    """
    table = as_finite_table(table, "table")
    parameter_type(bits)
    with np.errstate(over="ignore"):
        step = np.abs(table).max(axis=1) / reach_of(bits)
    scale = round_parameter("scales", step, bits)
    if bits > 1:
        # Rows of zeros, or too small for float16: any step gives zeros.
        scale[scale == 0] = 1
    step = scale.astype(np.float32)
    with np.errstate(over="ignore"):
        check_read(step * np.float32(2**bits - 1))
    bias = round_parameter("biases", -middle_of(bits) * step, bits)
    return code_symmetrically(table, step[:, None], bits), scale, bias


def middle_of(bits: int) -> np.float32:
    """Where 0 stands among symmetric codes: at one of them, but for a single bit."""
    return np.float32(2 ** (bits - 1) if bits > 1 else 0.5)


def reach_of(bits: int) -> np.float32:
    """Steps from 0 to the largest symmetric code."""
    return np.float32(2 ** (bits - 1) - 1 if bits > 1 else 0.5)


def code_symmetrically(
    rows: np.ndarray, step: np.ndarray | np.float32, bits: int
) -> np.ndarray:
    """Symmetric codes of rows, uint8 of their shape; signs at 1 bit."""
    if bits == 1:
        return (rows >= 0).astype(np.uint8)
    middle = middle_of(bits)
    codes = np.clip(np.rint(rows / step) + middle, 1, 2 * middle - 1)
    return codes.astype(np.uint8)


def keep_lengths(table: np.ndarray, rounded: Rounded, bits: int) -> Rounded:
    r"""The same codes, with scales and biases by which rows have their old lengths.

    What row e is read as becomes :math:`|e| / |\hat e|` times as long, in its old
    direction: scale and bias are multiplied by that, and rounded to their type.  A row
    that is read as zeros stays so.

    Parameters
    ----------
    table : ndarray of float32, shape (rows, dim)
    rounded : tuple
        Codes, scale and bias of it.
    bits : {8, 4, 3, 2, 1}

    Returns
    -------
    codes : ndarray of uint8, shape (rows, dim)
    scale, bias : ndarray of float32 (8 bits) or float16 (below), shape (rows,)

    Raises
    ------
    ValueError
        If a scale or a bias leaves its type.
    """
    codes, *own = rounded
    scale, bias = (numbers.astype(np.float64) for numbers in own)
    read = codes * scale[:, None] + bias[:, None]
    found = np.linalg.norm(read, axis=1)
    wanted = np.linalg.norm(table.astype(np.float64), axis=1)
    factor = np.where(found > 0, wanted, 1) / np.where(found > 0, found, 1)
    return (
        codes,
        round_parameter("scales", scale * factor, bits),
        round_parameter("biases", bias * factor, bits),
    )


def round_parameter(name: str, values: np.ndarray, bits: int) -> np.ndarray:
    """Scales or biases in their type; raise ValueError where that cannot hold them."""
    with np.errstate(over="ignore"):
        rounded = values.astype(parameter_type(bits))
    if not np.isfinite(rounded).all():
        raise ValueError(
            f"at {bits} bits {name} are stored as {rounded.dtype}, which holds values "
            f"up to {np.finfo(rounded.dtype).max:g}; the table needs "
            f"{np.abs(values).max():.6g}"
        )
    return rounded


def check_read(largest: np.ndarray) -> None:
    """Raise ValueError where what rows are read as would overflow."""
    if not np.isfinite(largest).all():
        raise ValueError("a row's range overflows float32")


def quantize_table(
    table: np.ndarray, bits: int = 8, symmetric: bool = False
) -> Rounded:
    """Round a whole table with one step, stored once in float32.

    The rule is that of `quantize_rows` at 8 bits, or of `quantize_symmetric`.

    Returns
    -------
    codes : ndarray of uint8, shape (rows, dim)
    scale, bias : ndarray of float32, shape (1,)
    """
    table = as_finite_table(table, "table")
    scale, bias = measure_table(table, bits, symmetric)
    codes = round_to_table(table, scale, bias, bits, symmetric)
    return codes, np.array([scale]), np.array([bias])


def measure_table(
    table: np.ndarray, bits: int, symmetric: bool
) -> tuple[np.float32, np.float32]:
    """Scale and bias that a whole table shares."""
    return measure_range(table.min(), table.max(), bits, symmetric)


def measure_range(
    low: np.float32, high: np.float32, bits: int, symmetric: bool
) -> tuple[np.float32, np.float32]:
    """Scale and bias of a table by its least and its largest number."""
    parameter_type(bits)
    top = np.float32(2**bits - 1)
    # Which of 0.0 and -0.0 is the least depends on the processor.
    low = low + np.float32(0)
    with np.errstate(over="ignore", invalid="ignore"):
        if symmetric:
            scale = np.maximum(-low, high) / reach_of(bits)
            bias = -middle_of(bits) * scale
        else:
            bias, scale = low, (high - low) / top
        if not np.isfinite(scale * top + bias):
            raise ValueError("the table's range (max - min) overflows float32")
    return scale, bias


def round_to_table(
    rows: np.ndarray, scale: np.float32, bias: np.float32, bits: int, symmetric: bool
) -> np.ndarray:
    """Codes of rows, uint8 of their shape, by the table's scale and bias."""
    step = max(scale, np.float32(1e-38))
    if symmetric:
        return code_symmetrically(rows, step, bits)
    codes = np.clip(np.rint((rows - bias) / step), 0, np.float32(2**bits - 1))
    return codes.astype(np.uint8)


def compress_rows(
    weight: np.ndarray,
    bits: int,
    quantize: Callable[[np.ndarray], Rounded],
    together: int,
    keep_norms: bool = False,
) -> RowwiseLayout:
    """A layout of rounded rows, so many of them at a time; with their old lengths where
    that is asked.

    Memory grows by little more than the layout: `weight` may be a mapped file.
    """
    count, dim = weight.shape
    rows = np.empty((count, row_bytes(dim, bits)), dtype=np.uint8)
    for part in cut_rows(count, 1, max(together, 1)):
        rounded = quantize(weight[part])
        if keep_norms:
            rounded = keep_lengths(weight[part], rounded, bits)
        rows[part] = pack_rows(*rounded, bits)
    return RowwiseLayout(rows, dim, bits)


def round_together(weight: np.ndarray, bits: int, symmetric: bool) -> RowwiseLayout:
    """A layout of rows that share one scale and bias, some rows at a time."""
    shared = measure_table(weight, bits, symmetric)
    return round_by(weight, shared, bits, symmetric)


def round_by(
    weight: np.ndarray,
    shared: tuple[np.float32, np.float32],
    bits: int,
    symmetric: bool,
) -> RowwiseLayout:
    """A layout of rows by a scale and a bias that they share."""
    count, dim = weight.shape
    rows = np.empty((count, code_bytes(dim, bits)), dtype=np.uint8)
    for part in cut_rows(count, dim, ROUNDED_TOGETHER):
        codes = round_to_table(weight[part], *shared, bits, symmetric)
        rows[part] = pack_codes(codes, bits)
    return RowwiseLayout(rows, dim, bits, np.array([shared], dtype=np.float32))


class RowwiseOptions(Options):
    """Options of `RowwiseQuantization`."""

    bits: int = planned("bits of a code", choices=BITS, otherwise=8)
    symmetric: bool = option(
        False, "the same range on both sides of 0", tune=(False, True)
    )
    per: str = option(
        "row", "who has a scale and a bias of its own", choices=("row", "table")
    )
    keep_norms: bool = option(
        False, "read each row with the length that it had; its scale and bias pay"
    )


class RowwiseQuantization(AfterTraining[RowwiseOptions]):
    """Uniform quantisation of a trained table, row by row (key ``rowwise``).

    A scale and a bias per table instead of per row are stored only once; lengths of
    rows cannot be kept by them.
    """

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: RowwiseOptions) -> Found:
        """The most bits whose rows fit into the budget."""
        refuse_shared_norms(options)
        size = partial(table_bytes, spec, per=options.per)
        return {"bits": plan_bits(spec, ratio, options.bits, size)}

    @classmethod
    def compress(
        cls, weight: np.ndarray, spec: TableSpec, options: RowwiseOptions
    ) -> RowwiseLayout:
        """Quantise an (n, d) table into a row-wise layout."""
        refuse_shared_norms(options)
        if options.per == "table":
            return round_together(weight, options.bits, options.symmetric)
        rule = quantize_symmetric if options.symmetric else quantize_rows
        quantize = partial(rule, bits=options.bits)
        together = ROUNDED_TOGETHER // spec.embedding_dim
        return compress_rows(
            weight, options.bits, quantize, together, options.keep_norms
        )


def refuse_shared_norms(options: RowwiseOptions) -> None:
    """Raise ValueError where lengths are to be kept by a scale that rows share."""
    if options.keep_norms and options.per != "row":
        raise ValueError(
            f"keep_norms needs a scale for each row, but per is {options.per!r}"
        )


def plan_bits(
    spec: TableSpec,
    ratio: float,
    bits: int | None,
    size: Callable[[int], int],
    choices: tuple[int, ...] = PYTORCH_BITS,
) -> int:
    """The most bits that fit into a budget, or the bits that were asked for.

    Parameters
    ----------
    spec : TableSpec
    ratio : float
    bits : int, optional
    size : callable
        Bytes of a table with so many bits.
    choices : tuple of int
        What is chosen among where nobody asks: PyTorch's bits, unless told otherwise.
    """
    sizes = {b: size(b) for b in (choices if bits is None else (bits,))}
    budget = spec.require(ratio, smallest=min(sizes.values()))
    return max(b for b in sizes if sizes[b] <= budget)


def table_bytes(
    spec: TableSpec, bits: int, per: str = "row", centred: bool = False
) -> int:
    """Bytes of a row-wise layout with a scale and a bias per row, field or table.

    Centred, there is no bias.
    """
    if per == "row":
        return spec.num_embeddings * row_bytes(spec.embedding_dim, bits, centred)
    groups = len(spec.field_starts) - 1 if per == "field" else 1
    # Several groups also store where they start.
    parameters = groups * ((16 if groups > 1 else 8) - 4 * centred)
    return spec.num_embeddings * code_bytes(spec.embedding_dim, bits) + parameters
