"""Quantisation: each weight becomes a small integer."""

from __future__ import annotations

from typing import Any

import numpy as np

from survey_code.layouts import RowwiseLayout
from survey_code.layouts.layout import as_finite_table
from survey_code.layouts.rowwise import BITS, parameter_type, row_bytes
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
        widest = max(float(-low.min()), float(high.max()))
        if widest > LARGEST_HALF:
            raise ValueError(
                f"at {bits} bits scale and bias are float16, which holds values up "
                f"to {LARGEST_HALF:g}; the table reaches {widest:.6g}"
            )
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


class RowwiseQuantization:
    """Row-wise uniform quantisation of a trained table (key ``rowwise``)."""

    @classmethod
    def plan(
        cls, spec: TableSpec, ratio: float, *, bits: int | None = None
    ) -> dict[str, Any]:
        """The most bits whose rows fit into the budget."""
        choices = BITS if bits is None else (bits,)
        sizes = {
            b: spec.num_embeddings * row_bytes(spec.embedding_dim, b) for b in choices
        }
        budget = spec.require(ratio, smallest=min(sizes.values()))
        return {"bits": max(b for b in choices if sizes[b] <= budget)}

    @classmethod
    def compress(
        cls, weight: Any, *, bits: int = 8, spec: TableSpec | None = None
    ) -> RowwiseLayout:
        """Quantise an (n, d) table into a row-wise layout."""
        return RowwiseLayout.from_codes(
            *quantize_rows(as_finite_table(weight), bits), bits
        )
