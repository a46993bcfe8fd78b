"""Greedy range search: give up the ends of a row's range where that pays."""

from __future__ import annotations

from functools import partial

import numpy as np

from survey_code.layouts import RowwiseLayout
from survey_code.layouts.layout import as_finite_table
from survey_code.layouts.rowwise import BITS, parameter_type
from survey_code.low_precision.quantization.rowwise import (
    Rounded,
    compress_rows,
    plan_bits,
    quantize_rows,
    table_bytes,
)
from survey_code.method import AfterTraining, Found
from survey_code.options import Options, option, planned
from survey_code.spec import TableSpec

# The published search: steps of a 200th of the range, until 84 % of it is left.
STEPS = 200
LEFT = int(STEPS * (1 - np.float32(0.16)))

# Rows that are searched together: their numbers stay in a cache.
SEARCHED_TOGETHER = 512


def find_parameters(
    low: np.ndarray, high: np.ndarray, bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scale and bias, as they are stored, of rows with given ends; shape (rows,).

    Float16 cannot hold all of them: some are infinite.
    """
    kind, top = parameter_type(bits), np.float32(2**bits - 1)
    bias = low.astype(kind)
    scale = ((high - bias.astype(np.float32)) / top).astype(kind)
    # Any step will do for a row without range, or with less than the type holds.
    scale[np.abs(scale.astype(np.float32)) < 1e-38] = 1
    return scale, bias


def round_between(
    table: np.ndarray, low: np.ndarray, high: np.ndarray, bits: int
) -> Rounded:
    """Codes, scale and bias of rows for given ends; what lies outside is clipped.

    Parameters
    ----------
    table : ndarray of float32, shape (rows, dim)
    low, high : ndarray of float32, shape (rows,)
        Values that the lowest and the highest code stand for.
    bits : {8, 4, 3, 2, 1}

    Returns
    -------
    codes : ndarray of uint8, shape (rows, dim)
    scale, bias : ndarray of float32 (8 bits) or float16 (below), shape (rows,)
    """
    scale, bias = find_parameters(low, high, bits)
    inverse = np.float32(1) / scale.astype(np.float32)
    codes = np.rint((table - bias.astype(np.float32)[:, None]) * inverse[:, None])
    return codes.clip(0, 2**bits - 1).astype(np.uint8), scale, bias


def measure_loss(
    columns: np.ndarray, unit: np.ndarray, low: np.ndarray, high: np.ndarray, bits: int
) -> np.ndarray:
    """Euclidean distance of each row from its rounded self, in its unit.

    Parameters
    ----------
    columns : ndarray of float32, shape (dim, rows)
        The table turned over.  Squares are added up column after column: PyTorch's
        order, and so PyTorch's last bit.
    unit : ndarray of float32, shape (rows,)
    low, high, bits
        As for `round_between`.

    Returns
    -------
    ndarray of float32, shape (rows,)
        Infinite where the type of scale and bias cannot hold them.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        scale, bias = (a.astype(np.float32) for a in find_parameters(low, high, bits))
        decoded = columns - bias
        decoded *= np.float32(1) / scale
        np.rint(decoded, out=decoded)
        np.clip(decoded, 0, np.float32(2**bits - 1), out=decoded)
        decoded *= scale
        decoded += bias
        np.subtract(columns, decoded, out=decoded)
        decoded *= unit
        np.square(decoded, out=decoded)
        loss = np.sqrt(decoded.sum(axis=0))
    loss[~np.isfinite(loss)] = np.inf
    return loss


def choose_units(table: np.ndarray) -> np.ndarray:
    """Powers of two that bring rows to about 1, so that no square overflows.

    They change no comparison of losses, for their products are exact.
    """
    exponent = np.frexp(np.abs(table).max(axis=1))[1]
    return np.ldexp(np.float32(1), -exponent.clip(-100, 100))


def search_range(
    table: np.ndarray, bits: int, rule: str = "best"
) -> tuple[np.ndarray, np.ndarray]:
    r"""Move one end of each row inwards, step by step, whichever hurts less.

    A step is a 200th of the row's range, and the search ends when 84 % of the
    range is left, or where a step is too small to move the end in float32.

    Parameters
    ----------
    table : ndarray of float32, shape (rows, dim)
    bits : {8, 4, 3, 2, 1}
    rule : {"best", "pytorch"}
        ``"best"`` keeps the range of smallest loss on the path.  ``"pytorch"``
        keeps the best range whose two successors are both worse, as the
        published code does: at 2 bits the loss often falls all the way, and that
        rule then finds nothing.

    Returns
    -------
    low, high : ndarray of float32, shape (rows,)

    Notes
    -----
    Guan et al., "Post-Training 4-bit Quantization on Embedding Tables" (2019).
    """
    measure = partial(
        measure_loss, np.ascontiguousarray(table.T), choose_units(table), bits=bits
    )
    low, high = table.min(axis=1), table.max(axis=1)
    step = (high - low) / np.float32(STEPS)
    loss = measure(low, high)
    best: tuple[np.ndarray, ...] = (loss, low, high)
    going = low + LEFT * step < high
    while going.any():
        left, right = measure(low + step, high), measure(low, high - step)
        if rule == "pytorch":
            found = going & (loss < left) & (loss < right) & (loss < best[0])
            best = choose(found, (loss, low, high), best)
        raise_low = going & (left < right)
        moved = np.where(raise_low, low + step, low)
        lowered = np.where(going & ~raise_low, high - step, high)
        # A step below half a unit in the last place would be taken for ever.
        going &= (moved != low) | (lowered != high)
        low, high = moved, lowered
        loss = np.where(going, np.minimum(left, right), loss)
        if rule == "best":
            best = choose(loss < best[0], (loss, low, high), best)
        going &= low + LEFT * step < high
    return best[1], best[2]


def choose(
    where: np.ndarray, new: tuple[np.ndarray, ...], old: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, ...]:
    """The new arrays' rows where told, the old ones' elsewhere."""
    return tuple(
        np.where(where[:, None] if a.ndim == 2 else where, a, b)
        for a, b in zip(new, old, strict=True)
    )


def quantize_greedily(table: np.ndarray, bits: int = 4, rule: str = "best") -> Rounded:
    """Codes, scale and bias of each row after the greedy range search.

    Parameters
    ----------
    table : ndarray of float32, shape (rows, dim)
    bits : {8, 4, 3, 2, 1}
    rule : {"best", "pytorch"}
        See `search_range`.

    Returns
    -------
    codes : ndarray of uint8, shape (rows, dim)
    scale, bias : ndarray of float32 (8 bits) or float16 (below), shape (rows,)

    Raises
    ------
    ValueError
        As `quantize_rows`.
    """
    plain = quantize_rows(table, bits)  # complains about tables that cannot be
    table = as_finite_table(table, "table")
    low, high = search_range(table, bits, rule)
    codes, scale, bias = round_between(table, low, high, bits)
    # Rows that the search left alone stay PyTorch's, byte for byte: at 8 bits
    # its plain rule rounds a little differently.
    kept = (low == table.min(axis=1)) & (high == table.max(axis=1))
    codes, scale, bias = choose(kept, plain, (codes, scale, bias))
    return codes, scale, bias


class GreedyOptions(Options):
    """Options of `GreedyQuantization`."""

    bits: int = planned("bits of a code", choices=BITS, otherwise=4)
    rule: str = option(
        "best",
        "which range is kept: the best, or the best whose two successors are worse",
        choices=("best", "pytorch"),
    )
    keep_norms: bool = option(
        False, "read each row with the length that it had; its scale and bias pay"
    )


class GreedyQuantization(AfterTraining[GreedyOptions]):
    """Row-wise quantisation between the ends that a search found (key ``greedy``).

    See `search_range`.  At 1 bit the loss falls all the way, and the search ends with
    84 % of the range, though the best two levels of normal numbers lie further in;
    `keep_norms` brings them nearer.
    """

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: GreedyOptions) -> Found:
        """The most bits whose rows fit into the budget."""
        size = partial(table_bytes, spec)
        return {"bits": plan_bits(spec, ratio, options.bits, size)}

    @classmethod
    def compress(
        cls, weight: np.ndarray, spec: TableSpec, options: GreedyOptions
    ) -> RowwiseLayout:
        """Search and quantise an (n, d) table, some hundred rows at a time."""
        search = partial(quantize_greedily, bits=options.bits, rule=options.rule)
        together = SEARCHED_TOGETHER
        return compress_rows(weight, options.bits, search, together, options.keep_norms)
