"""Layouts within layouts: a trained layout, its numbers in few bits, or shared.

What is deployed are arrays of integers, which say where to read, and arrays of floats,
which are read: rows of tables, slices of cores, codewords, entries that were kept.  In
place of floats there may stand a layout of them.  So any layout can be compressed once
more, whatever method it came from: `round_layout` rounds its floats to integers, and
`share_layout` has them share codewords; one after the other, in either order.

Numbers that all rows pass through stay as they are: projections, rotations, fills and
levels.  They are few, and an error in one of them is an error in every row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial, singledispatch
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from survey_code.checks import as_array, check_range
from survey_code.layouts import (
    AddedLayout,
    CodebookLayout,
    DenseLayout,
    FlatLayout,
    GroupedLayout,
    HashedLayout,
    Layout,
    RoutedLayout,
    RowwiseLayout,
    SparseLayout,
    TurnedLayout,
)
from survey_code.layouts.hashed import table_starts, take_digits
from survey_code.layouts.layout import RowArray, StoredArray, take_floats
from survey_code.layouts.parts import NUMBERS, read_all, rows_shape
from survey_code.layouts.rowwise import parameter_type
from survey_code.low_precision.quantization.rowwise import (
    ROUNDED_TOGETHER,
    compress_rows,
    quantize_rows,
)
from survey_code.weight_sharing.lloyd import POINTS
from survey_code.weight_sharing.vector_quantization.books import divisors
from survey_code.weight_sharing.vector_quantization.pq import (
    freeze_product,
    quantize_product,
)

P = TypeVar("P", StoredArray, Layout)

# Rows of fewer numbers than this share a scale and a bias with others.
NARROW_ROW = 16
# Numbers that then share them, and entries of a vector that do.
TOGETHER_ROUNDED = 64

# How often each row of something is read, float64 (rows,); None where nobody knows.
Reads = npt.NDArray[np.float64] | None


class RowForm(Protocol):
    """What floats are turned into."""

    @property
    def run(self) -> int:
        """Numbers of a vector that make a row."""

    def make(self, rows: RowArray, reads: Reads) -> Layout:
        """A layout of rows (n, width), each read so often."""


# -- rounding -------------------------------------------------------------------------


def round_layout(layout: Layout, bits: int) -> Layout:
    r"""A layout whose floats are integers of few bits.

    Each row is rounded between its minimum and its maximum, as the method ``rowwise``
    does it: no number moves by more than half a step, and with k bits a step is
    :math:`(\max - \min) / (2^k - 1)`.  Rows of fewer than `NARROW_ROW` numbers, whose
    own scale would take more than they do, share one with the rows beside them, and so
    do the entries of vectors: `TOGETHER_ROUNDED` numbers each.  What would not be
    smaller for it stays as it is; so do integers.

    Parameters
    ----------
    layout : Layout
        On a processor; it is not changed.
    bits : {8, 4, 3, 2, 1}

    Returns
    -------
    Layout
        Of the same rows, up to rounding.  Its `nbytes` are those that it saves.

    Raises
    ------
    ValueError
        If `bits` is another number, no float of the layout would be smaller, or a
        scale leaves float16 below 8 bits.

    Examples
    --------
    >>> rows = np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 16)
    >>> shared = HashedLayout(rows, np.array([[0, 0, 0, 1, 4]]), 100, 16)
    >>> round_layout(shared, 8)
    HashedLayout(100 x 16, 136 bytes, 47.1x)
    """
    parameter_type(bits)
    return nest(layout, RoundedRows(bits), f"{bits} bits")


@dataclass(frozen=True)
class RoundedRows:
    """Integers of so many bits."""

    bits: int
    run: int = TOGETHER_ROUNDED

    def make(self, rows: RowArray, reads: Reads) -> RowwiseLayout:
        """Each row by its own scale and bias, or narrow rows together."""
        width = rows.shape[1]
        if width < NARROW_ROW:
            return round_stretches(rows, self.bits, -(-TOGETHER_ROUNDED // width))
        quantize = partial(quantize_rows, bits=self.bits)
        return compress_rows(rows, self.bits, quantize, ROUNDED_TOGETHER // width)


def round_stretches(table: RowArray, bits: int, together: int) -> RowwiseLayout:
    """Rows that share a scale and a bias with those beside them.

    Parameters
    ----------
    table : ndarray of float32, shape (rows, width)
    bits : {8, 4, 3, 2, 1}
    together : int
        Rows of a stretch; the last one may be shorter.

    Raises
    ------
    ValueError
        If the range of a stretch leaves float32.
    """
    starts = np.arange(0, len(table), together)
    # Which of 0.0 and -0.0 is the least depends on the processor.
    low = np.minimum.reduceat(table.min(axis=1), starts) + np.float32(0)
    high = np.maximum.reduceat(table.max(axis=1), starts)
    top = np.float32(2**bits - 1)
    with np.errstate(over="ignore", invalid="ignore"):
        scale = (high - low) / top
        if not np.isfinite(scale * top + low).all():
            raise ValueError("the range (max - min) of some rows overflows float32")
    own = np.arange(len(table)) // together
    step = np.maximum(scale, np.float32(1e-38))[own, None]
    codes = np.clip(np.rint((table - low[own, None]) / step), 0, top).astype(np.uint8)
    several = starts if len(starts) > 1 else None
    return RowwiseLayout.from_groups(codes, scale, low, bits, several)


# -- sharing --------------------------------------------------------------------------


def share_layout(
    layout: Layout,
    width: int = 2,
    bits: int = 8,
    *,
    counts: npt.ArrayLike | None = None,
    rounded: int | None = None,
    seed: int = 0,
) -> Layout:
    """A layout whose floats are codes of shared codewords: product quantisation.

    Rows are cut into parts of `width` numbers, or of the most that divide their length,
    and each part is replaced by one of ``2**bits`` codewords.  Vectors are cut
    likewise, and have one book.  What would not be smaller for it stays as it is: at 8
    bits a table of a few hundred rows, which are less than their codewords.

    Parameters
    ----------
    layout : Layout
        On a processor; it is not changed.
    width : int, default 2
        Numbers of a codeword.
    bits : int, 1 to 8
        Of a code.
    counts : array of integers, shape (num_embeddings,), optional
        How often each id is read: errors count as often, as far as it can be told
        which numbers belong to an id.
    rounded : {8, 4, 3, 2, 1}, optional
        Codewords are found for rows that were rounded to so many bits before.
    seed : int, default 0
        Of the codewords that k-means begins with.

    Raises
    ------
    ValueError
        If an argument is out of its range, or no float would be smaller.

    Examples
    --------
    >>> rows = np.random.default_rng(0).normal(size=(4096, 16)).astype(np.float32)
    >>> coded = share_layout(DenseLayout(rows), width=4)
    >>> coded.nbytes, round_layout(coded, 8).nbytes  # codes and codewords
    (32788, 21524)
    """
    check_range("width", width, 1)
    check_range("bits", bits, 1, 8)
    if rounded is not None:
        parameter_type(rounded)
    form = SharedRows(width, bits, rounded, check_range("seed", seed, 0))
    return nest(layout, form, "codewords", read_counts(layout, counts))


def read_counts(layout: Layout, counts: npt.ArrayLike | None) -> Reads:
    """Reads of each id, at least one of each; None where nothing is known."""
    if counts is None:
        return None
    given = as_array("counts", counts, "be integers", "iu")
    if given.shape != (layout.num_embeddings,) or (given < 0).any():
        raise ValueError(
            f"counts must be {layout.num_embeddings} numbers from 0 up, got shape "
            f"{given.shape}"
        )
    return np.maximum(given, 1).astype(np.float64) if given.any() else None


@dataclass(frozen=True)
class SharedRows:
    """Codes of codewords; the arguments are those of `share_layout`."""

    run: int
    bits: int
    rounded: int | None
    seed: int

    def make(self, rows: RowArray, reads: Reads) -> Layout:
        """Each part of a row by its nearest codeword."""
        if self.rounded is not None:
            rows = read_all(RoundedRows(self.rounded).make(rows, reads))
        width = max(part for part in divisors(rows.shape[1]) if part <= self.run)
        found = quantize_product(
            rows,
            rows.shape[1] // width,
            min(1 << self.bits, len(rows)),
            np.random.default_rng(self.seed),
            weights=reads,
            sample=POINTS,
        )
        return freeze_product(found, self.bits, half=False)


# -- layouts of layouts ---------------------------------------------------------------


def nest(layout: Layout, form: RowForm, what: str, reads: Reads = None) -> Layout:
    """A layout with all its floats in a form; or one clear ValueError."""
    if not isinstance(layout, Layout):
        raise ValueError(f"layout must be a Layout, got {type(layout).__name__}")
    if layout.on_gpu:
        raise ValueError("the layout is on a GPU: call layout.to_cpu() first")
    made = reform(layout, form, reads)
    if made is layout:
        raise ValueError(
            f"no float of a {layout.name} layout of {layout.nbytes:,} bytes takes "
            f"fewer bytes as {what}: it holds integers already, or too few floats"
        )
    return made


def reform(layout: Layout, form: RowForm, reads: Reads) -> Layout:
    """The layout with those floats in a form that are smaller in it; the layout itself
    where none are.
    """
    if isinstance(layout, DenseLayout):
        rows = layout.read_rows(every(layout.num_embeddings))
        return smaller(layout, form.make(rows, reads))
    held: dict[str, StoredArray | Layout] = {}
    for name, part in layout.held().items():
        if isinstance(part, Layout):
            held[name] = reform(part, form, share_reads(layout, name, reads))
        elif holds_floats(layout, name, part):
            own = share_reads(layout, name, reads)
            held[name] = smaller(part, make_part(layout, part, form, own))
        else:
            held[name] = part
    if all(held[name] is part for name, part in layout.held().items()):
        return layout
    return type(layout).from_file(layout.shape_integers(), held)


def smaller(part: P, made: Layout) -> P | Layout:
    """What was made of a part, where that takes fewer bytes."""
    return made if made.nbytes < part.nbytes else part


def holds_floats(layout: Layout, name: str, part: StoredArray) -> bool:
    """Whether these are floats in whose place a layout may stand."""
    listed = layout.listed is not None and name.isdigit()
    return bool(
        (listed or name in layout.holders) and part.dtype in NUMBERS and part.size
    )


def make_part(layout: Layout, part: StoredArray, form: RowForm, reads: Reads) -> Layout:
    """An array of a layout in a form: its rows, or a vector cut into some."""
    if part.ndim > 1:
        count, width = rows_shape(part)
        return form.make(take_floats(part.reshape(count, width), every(count)), reads)
    numbers, width = part.astype(np.float32), min(form.run, part.size)
    if isinstance(layout, FlatLayout):
        # Its hash names places up to the vector's end: no row may reach beyond it.
        width = max(own for own in divisors(part.size) if own <= width)
    missing = -part.size % width
    # The last number again: it widens no range.
    rows = np.pad(numbers, (0, missing), mode="edge").reshape(-1, width)
    if reads is not None:
        reads = np.pad(reads, (0, missing)).reshape(-1, width).sum(axis=1)
    return form.make(rows, reads)


def every(count: int) -> npt.NDArray[np.int64]:
    """All places."""
    return np.arange(count)


# -- who is read how often ------------------------------------------------------------


def share_reads(layout: Layout, name: str, reads: Reads) -> Reads:
    """Reads of the rows, or the entries, that a layout holds by a name."""
    return None if reads is None else find_reads(layout, name, reads)


@singledispatch
def find_reads(layout: Layout, name: str, reads: npt.NDArray[np.float64]) -> Reads:
    """`share_reads`, by the kind of the layout: where it cannot be told, None."""
    return None


@find_reads.register(AddedLayout)
@find_reads.register(TurnedLayout)
def keep_reads(layout: Layout, name: str, reads: npt.NDArray[np.float64]) -> Reads:
    """Each part has a row for every id."""
    return reads


@find_reads.register
def split_reads(
    layout: GroupedLayout, name: str, reads: npt.NDArray[np.float64]
) -> Reads:
    """Of the ids of a group."""
    if not name.isdigit():
        return None
    return reads[layout.read_assignment() == int(name)]


@find_reads.register
def route_reads(
    layout: RoutedLayout, name: str, reads: npt.NDArray[np.float64]
) -> Reads:
    """Of the ids of a part; of the last one those of no other."""
    named = layout.part_ids()
    if int(name) < len(named):
        return reads[named[int(name)]]
    others = np.ones(len(reads), dtype=bool)
    others[np.concatenate(named)] = False
    return np.where(others, reads, 0.0) if layout.by_number else reads[others]


@find_reads.register
def add_reads(layout: HashedLayout, name: str, reads: npt.NDArray[np.float64]) -> Reads:
    """Of all ids whose digits name a row."""
    if name != "values" or layout.combine == "path":
        return None
    ids = every(layout.num_embeddings)
    found = np.zeros(layout.shared_rows)
    starts = table_starts(layout.index, bool(layout.shared))
    for digit, start in zip(take_digits(ids, layout.index), starts):
        found += np.bincount(digit + start, reads, len(found))
    return found


@find_reads.register
def read_entries(
    layout: SparseLayout, name: str, reads: npt.NDArray[np.float64]
) -> Reads:
    """Of the rows that entries belong to."""
    places = every(len(layout.columns))
    blocks = np.searchsorted(layout.offsets, places, side="right") - 1
    inside = layout.columns.astype(np.int64) // layout.embedding_dim
    return reads[blocks * layout.block_rows + inside]


@find_reads.register
def count_codewords(
    layout: CodebookLayout, name: str, reads: npt.NDArray[np.float64]
) -> Reads:
    """Of the ids whose codes name a codeword."""
    if name != "codewords":
        return None
    codes = layout.find_codewords(every(layout.num_embeddings))
    words = rows_shape(layout.codewords)[0]
    weights = np.repeat(reads, layout.books)
    return np.bincount(codes.ravel(), weights, words).astype(np.float64)
