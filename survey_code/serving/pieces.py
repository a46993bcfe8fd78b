"""How methods make a layout of some rows at a time.

Each stretch of rows becomes a layout of its own, by the method's code for tables.
Put one after another, the arrays that belong to rows are those of the whole table;
all others are the same in every piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np

from survey_code.bits import count_bits, stream_words
from survey_code.catalog import Method
from survey_code.layouts import BinaryLayout, CodebookLayout, Layout, SparseLayout
from survey_code.layouts.dense import TOGETHER
from survey_code.layouts.files import Blueprint
from survey_code.layouts.layout import RowArray
from survey_code.layouts.sparse import check_kept
from survey_code.low_precision.binarization import BCCFOptions
from survey_code.low_precision.binarization.bccf import fit_shared_scale, take_bits
from survey_code.low_precision.binarization.signs import as_half
from survey_code.low_precision.quantization import HalfOptions, RowwiseOptions
from survey_code.low_precision.quantization.half import (
    code_table,
    round_by_chance,
    share_power,
)
from survey_code.low_precision.quantization.rowwise import measure_range, round_by
from survey_code.low_precision.quantization.small_floats import SMALL_FORMATS
from survey_code.mixed_dimension.pruning import MagnitudeOptions
from survey_code.mixed_dimension.pruning.magnitude import Cut, plan_cut
from survey_code.options import Options
from survey_code.serving.tables import Table
from survey_code.spec import TableSpec
from survey_code.weight_sharing.lloyd import (
    assign_rows,
    cluster_rows,
    count_reads,
    sample_rows,
)
from survey_code.weight_sharing.vector_quantization import PQOptions, SAECOptions
from survey_code.weight_sharing.vector_quantization.books import as_numbers
from survey_code.weight_sharing.vector_quantization.pq import (
    choose_product,
    encode_rows,
    freeze_product,
    quantize_product,
)

# Numbers that are encoded together.
PIECE_NUMBERS = 2**20
# Rows whose codes, of any number of bits, fill whole words.
WHOLE_WORDS = 32

# Makes a layout of some rows, the first of which is told.
Encode: TypeAlias = Callable[[RowArray, int], Layout]


class Piece(NamedTuple):
    """A part of an array.

    Parameters
    ----------
    name : str
        The array's, as `Layout.arrays` has it.
    start : int
        Where the part begins, along the first axis.
    values : ndarray
    """

    name: str
    start: int
    values: np.ndarray


def promise(shape: tuple[int, ...], kind: np.dtype[np.generic]) -> np.ndarray:
    """What has the shape, the type and the `nbytes` of an array, and no memory."""
    return np.broadcast_to(np.zeros((), kind), shape)


@dataclass
class Pieces:
    """A layout that is made some rows at a time.

    Parameters
    ----------
    encode : callable
        Called for one stretch of rows after another, for each once.
    together : int
        Rows of a stretch.
    joined : tuple of str
        Arrays that belong to rows; the others are those of every piece.
    """

    encode: Encode
    together: int
    joined: tuple[str, ...]

    def promise_arrays(self, piece: Layout, rows: int) -> dict[str, np.ndarray]:
        """All arrays by name; of those that are joined only what `promise` gives."""
        arrays = dict(piece.arrays())
        for name in self.joined:
            arrays[name] = promise((rows, *arrays[name].shape[1:]), arrays[name].dtype)
        return arrays

    def split(self, piece: Layout, first: int, last: bool) -> Iterator[Piece]:
        """What a stretch of rows, perhaps the last one, adds to joined arrays."""
        arrays = piece.arrays()
        for name in self.joined:
            yield Piece(name, first, arrays[name])


@dataclass
class CodedPieces(Pieces):
    """Codes that follow each other bit by bit, of stretches that fill whole words.

    Parameters
    ----------
    bits : int
        Of a row.
    """

    bits: int

    def promise_arrays(self, piece: Layout, rows: int) -> dict[str, np.ndarray]:
        """The words of all codes."""
        arrays = dict(piece.arrays())
        for name in self.joined:
            arrays[name] = promise((stream_words(rows, self.bits),), arrays[name].dtype)
        return arrays

    def split(self, piece: Layout, first: int, last: bool) -> Iterator[Piece]:
        """The words of some codes; the one behind them stands at the end alone."""
        start = first * self.bits // 32
        for name in self.joined:
            words = piece.arrays()[name]
            yield Piece(name, start, words if last else words[:-1])


@dataclass
class SparsePieces(Pieces):
    """Entries that are not zero, of which there are so many in each stretch.

    Parameters
    ----------
    kept : int
        Entries of all stretches.
    """

    kept: int
    before: int = 0

    def promise_arrays(self, piece: Layout, rows: int) -> dict[str, np.ndarray]:
        """Values and columns of all entries, and an offset for each block."""
        arrays = dict(piece.arrays())
        assert isinstance(piece, SparseLayout)
        blocks = -(-rows // piece.block_rows)
        sizes = {"values": self.kept, "columns": self.kept, "offsets": blocks + 1}
        return {
            name: promise((sizes[name],), array.dtype) for name, array in arrays.items()
        }

    def split(self, piece: Layout, first: int, last: bool) -> Iterator[Piece]:
        """Entries behind those before; offsets count these, too."""
        assert isinstance(piece, SparseLayout)
        yield Piece("values", self.before, piece.arrays()["values"])
        yield Piece("columns", self.before, piece.columns)
        offsets = piece.offsets + np.uint32(self.before)
        yield Piece("offsets", first // piece.block_rows, offsets)
        self.before += len(piece.columns)


def describe_whole(piece: Layout, rows: int) -> Blueprint:
    """The blueprint of a layout, made from that of some of its rows."""
    whole = piece.blueprint()
    parts = [whole]
    for part in parts:
        part["shape"]["num_embeddings"] = rows
        parts += part["parts"].values()
    return whole


# -- methods -------------------------------------------------------------------------


def plan_pieces(
    method: Method, table: Table, spec: TableSpec, options: Options
) -> Pieces | None:
    """How a method makes its layout in pieces; None where it needs the whole table.

    What it must know of all rows first is found in passes over the table, or from a
    sample of it.
    """
    plan = PLANS.get(method.key)
    return plan(method, table, spec, options) if plan is not None else None


def cut_plainly(
    method: Method, table: Table, options: Options, joined: tuple[str, ...]
) -> Pieces:
    """Rows that have nothing in common: the method's own code for each stretch."""

    def encode(rows: RowArray, first: int) -> Layout:
        return method.compress(rows, options)

    return Pieces(encode, max(PIECE_NUMBERS // table.shape[1], 1), joined)


def cut_full(method: Method, table: Table, spec: TableSpec, options: Options) -> Pieces:
    """Numbers as they are."""
    return cut_plainly(method, table, options, ("values",))


def cut_half(
    method: Method, table: Table, spec: TableSpec, options: HalfOptions
) -> Pieces:
    """Numbers of 16 bits or less; by chance, drawn from one generator for all."""
    rng, rounding = np.random.default_rng(0), options.rounding or "nearest"
    together = max(TOGETHER // table.shape[1], 1)
    if options.dtype in SMALL_FORMATS:
        form = SMALL_FORMATS[options.dtype]
        shared = share_power(table, form, rounding)
        return Pieces(
            lambda rows, first: code_table(rows, form, rounding, shared, rng),
            together, ("rows",),
        )  # fmt: skip
    if rounding == "nearest":
        return cut_plainly(method, table, options, ("values",))
    return Pieces(
        lambda rows, first: round_by_chance(rows, options.dtype, rng),
        together, ("values",),
    )  # fmt: skip


def cut_rowwise(
    method: Method, table: Table, spec: TableSpec, options: RowwiseOptions
) -> Pieces:
    """Rows of codes, whose range is their own, or the table's."""
    pieces = cut_plainly(method, table, options, ("rows",))
    if options.per == "row":
        return pieces
    ends = [(rows.min(), rows.max()) for _, rows in table.cut(pieces.together)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    shared = measure_range(low, high, options.bits, options.symmetric)
    return replace(
        pieces,
        encode=lambda rows, first: round_by(
            rows, shared, options.bits, options.symmetric
        ),
    )


def cut_greedy(
    method: Method, table: Table, spec: TableSpec, options: Options
) -> Pieces:
    """Rows of codes, each in the range that was found for it."""
    return cut_plainly(method, table, options, ("rows",))


def cut_signs(
    method: Method, table: Table, spec: TableSpec, options: BCCFOptions
) -> Pieces | None:
    """Signs, with a scale a row or one for all; medians and turns need all rows."""
    if options.rule != "sign":
        return None
    if options.scale != "table":
        joined = ("packed", "scales") if options.scale == "row" else ("packed",)
        return cut_plainly(method, table, options, joined)
    scales = fit_shared_scale(table)
    shared = as_half(scales) if options.half else scales
    return Pieces(
        lambda rows, first: BinaryLayout.from_signs(take_bits(rows), shared),
        max(PIECE_NUMBERS // table.shape[1], 1), ("packed",),
    )  # fmt: skip


def cut_magnitude(
    method: Method, table: Table, spec: TableSpec, options: MagnitudeOptions
) -> Pieces:
    """The largest entries: two passes find the least of them, one counts them."""
    cut, together = plan_cut(table, spec, options)

    def keep(rows: RowArray, first: int, cut: Cut = cut) -> SparseLayout:
        return SparseLayout.from_dense(cut.keep(rows, first), options.format)

    counted = replace(cut)
    kept = sum(
        len(keep(rows, first, counted).columns) for first, rows in table.cut(together)
    )
    check_kept(kept)
    return SparsePieces(keep, together, ("values", "columns", "offsets"), kept)


def cut_product(
    method: Method, table: Table, spec: TableSpec, options: PQOptions
) -> Pieces | None:
    """Codes by books that are found in a sample; None where it is to be all rows."""
    books, bits = choose_product(spec, options)
    clusters = min(1 << bits, len(table))
    if not options.sample:
        return None
    rng = np.random.default_rng(0)
    reads = count_reads(spec, options.weighted)
    seen, counts = draw_rows(table, reads, options.sample * clusters, rng)
    found = quantize_product(
        seen, books, clusters, rng, weights=counts, rotate=options.rotate,
        sample=options.sample,
    )  # fmt: skip

    def encode(rows: RowArray, first: int) -> Layout:
        coded = replace(found, codes=encode_rows(rows, found))
        return freeze_product(coded, bits, options.half)

    words = "codes/words" if found.rotation is None else "part/codes/words"
    return CodedPieces(encode, whole_words(table), (words,), books * bits)


def cut_clusters(
    method: Method, table: Table, spec: TableSpec, options: SAECOptions
) -> Pieces | None:
    """Clusters that are found in a sample; None for heads, and for several fields."""
    if not options.sample or options.heads or len(spec.field_starts) > 2:
        return None
    rng, rows = np.random.default_rng(0), len(table)
    most = min(options.clusters or min(256, -(-rows // 4)), rows)
    reads = count_reads(spec, options.weighted)
    seen, counts = draw_rows(table, reads, options.sample * most, rng)
    found = cluster_rows(seen, most, rng, weights=counts, sample=options.sample)
    words, together = as_numbers(found.centroids, options.half), whole_words(table)
    top = int(found.codes.max())
    if top < most - 1 and len(seen) < rows:  # perhaps other rows need a longer code
        stretches = table.cut(together)
        top = max(int(assign_rows(own, found.centroids).max()) for _, own in stretches)
    bits = count_bits(top + 1)

    def encode(rows: RowArray, first: int) -> Layout:
        codes = assign_rows(rows, found.centroids)[:, None]
        return CodebookLayout.from_codes(codes, words, [[0]], table.shape[1], bits)

    return CodedPieces(encode, together, ("codes/words",), bits)


def draw_rows(
    table: Table, weights: np.ndarray | None, size: int, rng: np.random.Generator
) -> tuple[RowArray, np.ndarray | None]:
    """`draw_points` of a table in a file."""
    if len(table) <= size:
        return table[0 : len(table)], weights
    some, counts = sample_rows(len(table), weights, size, rng)
    return table.pick(some), counts


def whole_words(table: Table) -> int:
    """Rows of a stretch whose codes fill whole words."""
    return max(PIECE_NUMBERS // table.shape[1] // WHOLE_WORDS, 1) * WHOLE_WORDS


PLANS: dict[str, Callable[..., Pieces | None]] = {
    "full": cut_full,
    "half": cut_half,
    "rowwise": cut_rowwise,
    "greedy": cut_greedy,
    "bccf": cut_signs,
    "magnitude": cut_magnitude,
    "pq": cut_product,
    "clustering": cut_clusters,
}
