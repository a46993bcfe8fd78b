"""Rows of layouts as nodes: one function for each kind writes what reads its rows.

Each takes checked ids, int64 of shape (m,), and gives float32 of shape (m, dim), by the
steps of the layout's own `read_rows`.  What stands where a layout holds rows is read
by `gather_rows_of`, so that layouts within layouts need nothing more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial, singledispatch
from typing import NoReturn

import numpy as np

from survey_code.hashes import GOLDEN
from survey_code.layouts import (
    AddedLayout,
    AnchorLayout,
    BinaryLayout,
    CodebookLayout,
    DenseLayout,
    FlatLayout,
    GroupedLayout,
    HashedLayout,
    Layout,
    LevelsLayout,
    PackedLayout,
    ProbedLayout,
    RaggedLayout,
    RoutedLayout,
    RowwiseLayout,
    SemanticLayout,
    SparseLayout,
    TensorTrainLayout,
    TurnedLayout,
)
from survey_code.layouts.grouped import BLOCK_IDS, BLOCK_WORDS
from survey_code.layouts.hashed import count_hidden, table_starts
from survey_code.layouts.layout import cut
from survey_code.layouts.levels import read_powers
from survey_code.layouts.parts import Rows, rows_shape, vector_room
from survey_code.layouts.ragged import BLOCK
from survey_code.layouts.rowwise import centre_of, code_bytes, parameter_type
from survey_code.layouts.turned import mix_rows, read_signs
from survey_code.serving.nodes import Value

# Sorted numbers that an id is compared with one by one, and not in a binary search.
MOST_COMPARED = 64
# Where the only row of an array stands.
NOWHERE = np.zeros(1, dtype=np.int64)
# Sides of Hadamard's matrix that one node multiplies by.
MOST_MIXED = 8


@singledispatch
def emit(layout: Layout, ids: Value) -> Value:
    """Nodes that read a layout's rows.

    Parameters
    ----------
    layout : Layout
        Its arrays are NumPy's.
    ids : Value
        int64 of shape (m,), all of them ids of the layout.

    Returns
    -------
    Value
        float32 of shape (m, embedding_dim).

    Raises
    ------
    ValueError
        If there is no export of such a layout.
    """
    refuse_export(layout)


def refuse_export(layout: Layout) -> NoReturn:
    """Raise the ValueError of a layout that no function here reads."""
    known = sorted(kind.name for kind in emit.registry if kind is not object)
    raise ValueError(
        f"a {layout.name} layout has no ONNX export; these have, also within each "
        f"other: {', '.join(known)}"
    )


def check_exportable(layout: Layout) -> None:
    """Raise ValueError unless a layout and all within it have an export.

    A class that derives from one of them may read its rows in another way.
    """
    if type(layout) not in emit.registry:
        refuse_export(layout)
    for part in layout.held().values():
        if isinstance(part, Layout):
            check_exportable(part)


# -- steps that layouts share ---------------------------------------------------------


def gather_floats(array: np.ndarray, places: Value) -> Value:
    """Rows of float32 or float16 at places, as float32."""
    rows = places.graph.add("Gather", array, places)
    return rows if array.dtype == np.float32 else rows.to(np.float32)


def gather_integers(array: np.ndarray, places: Value) -> Value:
    """Rows of integers at places, as int64."""
    rows = places.graph.add("Gather", array, places)
    return rows if array.dtype == np.int64 else rows.to(np.int64)


def gather_rows_of(part: Rows, places: Value) -> Value:
    """Rows of an array or a layout, at int64 places of any shape: (places, width)."""
    flat = places.reshape(-1)
    return emit(part, flat) if isinstance(part, Layout) else gather_floats(part, flat)


def gather_numbers_of(part: Rows, places: Value, *shape: int) -> Value:
    """Numbers of a vector, or of a layout that holds it row after row, at int64 places
    of this shape, whose first side is -1.
    """
    if not isinstance(part, Layout):
        return gather_floats(part, places)
    flat, wide = places.reshape(-1), part.embedding_dim
    columns = (flat % wide).reshape(-1, 1)
    rows = emit(part, flat // wide)
    return places.graph.add("GatherElements", rows, columns, axis=1).reshape(*shape)


def emit_zeros(ids: Value, dim: int) -> Value:
    """Rows of zeros."""
    graph = ids.graph
    shape = graph.join([graph.add("Shape", ids), graph.store(np.array([dim]))], 0)
    return graph.add("ConstantOfShape", shape)


def find_rank(ids: Value, rising: np.ndarray) -> Value:
    """How many of these numbers, which rise, are below each id: int64 (m,)."""
    graph, many = ids.graph, len(rising)
    if not many:
        return ids * 0
    numbers = graph.store(rising)
    if many <= MOST_COMPARED:
        below = numbers.to(np.int64) < ids.reshape(-1, 1)
        return below.to(np.int64).reduce("Sum")
    steps = 2 ** np.arange(many.bit_length())[::-1]

    def advance(turn: Value, low: Value) -> Value:
        high = (low + graph.add("Gather", steps, turn)).at_most(many)
        last = graph.add("Gather", numbers, high - 1).to(np.int64)
        return (last < ids).where(high, low)

    return graph.repeat(len(steps), ids * 0, advance)


def find_group(ids: Value, starts: np.ndarray) -> Value:
    """The group of each id, by the first ids of groups."""
    return find_rank(ids, starts[1:] - 1)


def swap(values: Value) -> Value:
    """(m, a, b) -> (m, b, a)."""
    return values.graph.add("Transpose", values, perm=[0, 2, 1])


def emit_codes(packed: Value, dim: int, bits: int) -> Value:
    """Codes of packed rows, low bits first: uint8 (m, bytes) -> uint8 (m, dim)."""
    if bits == 8:
        return packed
    width, each = code_bytes(dim, bits), 8 // bits
    if 8 % bits:
        return emit_across(packed, dim, bits)
    # Whole rows of bytes are shifted alike: three times as fast as byte by byte.
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(-1, 1)
    parts = (packed.reshape(-1, 1, width) >> shifts) & np.uint8(2**bits - 1)
    codes = swap(parts).reshape(-1, width * each)
    return codes if width * each == dim else codes.cut(0, dim)


def emit_across(packed: Value, dim: int, bits: int) -> Value:
    """`emit_codes` of 3, 5, 6 or 7 bits: a code lies in two neighbouring bytes."""
    graph, last = packed.graph, code_bytes(dim, bits) - 1
    first = graph.count(dim) * bits
    byte, wide = first // 8, packed.to(np.uint32)
    low = graph.add("Gather", wide, byte, axis=1)
    high = graph.add("Gather", wide, (byte + 1).at_most(last), axis=1)
    pair = high * np.uint32(2**8) | low
    shifted = pair >> (first % 8).to(np.uint32)
    return (shifted & np.uint32(2**bits - 1)).to(np.uint8)


def emit_mixture(ids: Value, numbers: np.ndarray) -> Value:
    """Mixtures of int64 of any shape, by `survey_code.hashes.mix_ids`.

    Parameters
    ----------
    ids : Value
    numbers : ndarray of int64, shape (3,), or (3, k) for the last axis of the ids
    """
    first, second, addend = numbers.view(np.uint64)
    mixed = ids.to(np.uint64) * first + addend
    # A division by a power of two is a shift, and takes fewer bytes of a file.
    mixed = (mixed ^ (mixed // np.uint64(2**32))) * second
    mixed = mixed ^ (mixed // np.uint64(2**29))
    return (mixed & np.uint64(2**63 - 1)).to(np.int64)


def find_digits(keys: Value, index: np.ndarray) -> Value:
    """Rows that an index table names: int64 (m, k) of keys (m, 1) or (m, k)."""
    *numbers, divisors, moduli = index.T
    mixed = keys
    if numbers[0].any():
        mixed = emit_mixture(keys, np.ascontiguousarray(index.T[:3]))
        if not numbers[0].all():
            mixed = keys.graph.store(numbers[0] != 0).where(mixed, keys)
    if (divisors != 1).any():
        mixed = mixed // divisors
    return mixed % moduli


def as_floats(bits: Value) -> Value:
    """+1 for 0 and -1 for 1, float32."""
    return (bits * -2 + 1).to(np.float32)


def combine(rows: Value, count: int, width: int, how: str) -> Value:
    """Rows (m * count, width) -> (m, ...), side by side, or as a sum or a product."""
    if count == 1:
        return rows
    if how == "concat":
        return rows.reshape(-1, count * width)
    return rows.reshape(-1, count, width).reduce(how)


def popcount(words: Value) -> Value:
    """Ones in each uint64."""
    two, four, eight = (
        np.uint64((2**64 - 1) // mask) for mask in (2**1 + 1, 2**2 + 1, 2**4 + 1)
    )
    words = words - (words // np.uint64(2) & two)
    words = (words & four) + (words // np.uint64(4) & four)
    words = words + words // np.uint64(16) & eight
    # The product's highest byte is the sum of all bytes.
    return words * np.uint64((2**64 - 1) // 255) // np.uint64(2**56)


def gather_apart(
    ids: Value,
    dim: int,
    pieces: Sequence[tuple[Value, Value, Callable[[Value], Value]]],
) -> Value:
    """Rows of several parts, each put where its ids stand; zeros elsewhere.

    Parameters
    ----------
    ids : Value
    dim : int
    pieces : sequence of (Value, Value, callable)
        Whether an id is the part's (m,), its row there (m,), and what reads such rows.
    """
    graph, zeros = ids.graph, emit_zeros(ids, dim)
    order = graph.add("Range", 0, graph.add("Size", ids), 1)
    where, rows = [], []
    for mine, places, read in pieces:
        where.append(graph.add("Compress", order, mine, axis=0))
        rows.append(read(graph.add("Compress", places, mine, axis=0)))
    index = graph.join(where, 0).reshape(-1, 1)
    return graph.add("ScatterND", zeros, index, graph.join(rows, 0))


# -- rows of numbers and codes --------------------------------------------------------


@emit.register
def emit_dense(layout: DenseLayout, ids: Value) -> Value:
    """Gather, then widen."""
    values = layout.values
    if values.dtype != np.uint16:
        return gather_floats(values, ids)
    table = ids.graph.store(values, "BFLOAT16")
    return ids.graph.add("Gather", table, ids).to(np.float32)


@emit.register
def emit_rowwise(layout: RowwiseLayout, ids: Value) -> Value:
    """Codes apart from scales and biases, which are stored in their own type."""
    dim, bits = layout.embedding_dim, layout.bits
    width = code_bytes(dim, bits)
    packed = ids.graph.add("Gather", layout.rows[:, :width], ids)
    numbers = emit_codes(packed, dim, bits).to(np.float32)
    tail, places = layout.parameters, ids
    if tail is None:
        tail = layout.rows[:, width:].copy().view(parameter_type(bits))
    elif layout.starts is None:
        places = ids.graph.store(NOWHERE)
    else:
        places = find_group(ids, layout.starts)
    scale = gather_floats(tail[:, :1], places)
    if layout.centred:
        return (numbers - centre_of(bits)) * scale
    return numbers * scale + gather_floats(tail[:, 1:], places)


@emit.register
def emit_levels(layout: LevelsLayout, ids: Value) -> Value:
    """One number of a table for each code, and one multiplication."""
    dim, width, graph = layout.embedding_dim, layout.width, ids.graph
    packed = graph.add("Gather", layout.rows[:, :width], ids)
    codes = emit_codes(packed, dim, layout.bits).to(np.int64)
    rows = graph.add("Gather", layout.levels, codes)
    tail = layout.rows[:, width:]
    if layout.scaled:
        return rows * gather_floats(tail.copy().view(np.float16), ids)
    if not layout.block:
        return rows
    least = int(tail.min())
    powers = read_powers(np.arange(least, int(tail.max()) + 1, dtype=np.uint8))
    scales = graph.add("Gather", powers, gather_integers(tail, ids) - least)
    block = graph.count(dim) // layout.columns_a_block
    return rows * graph.add("Gather", scales, block, axis=1)


@emit.register
def emit_binary(layout: BinaryLayout, ids: Value) -> Value:
    """Bits as +1 and -1, times the scales of their blocks."""
    dim, blocks, width = layout.embedding_dim, layout.blocks, layout.width
    graph = ids.graph
    packed = graph.add("Gather", layout.packed, ids)
    packed = packed.reshape(-1, layout.packed.shape[2])
    rows = emit_codes(packed, width, 1).to(np.float32) * 2.0 - 1.0
    scales = layout.scales
    if scales is not None:
        shared = len(scales) != layout.num_embeddings
        own = gather_floats(scales, graph.store(NOWHERE) if shared else ids)
        own = graph.add("Unsqueeze", own, np.array([2]))
        rows = (rows.reshape(-1, blocks, width) * own).reshape(-1, dim)
    elif blocks > 1:
        rows = rows.reshape(-1, dim)
    if layout.magnitudes is None or layout.levels is None:
        return rows
    shifts = (ids % 4 * 2).to(np.uint8)
    chosen = graph.add("Gather", layout.magnitudes, ids // 4) >> shifts
    level = graph.add("Gather", layout.levels, (chosen & np.uint8(3)).to(np.int64))
    return rows * level.reshape(-1, 1)


@emit.register
def emit_packed(layout: PackedLayout, ids: Value) -> Value:
    """Integers of a stream of bits, as numbers."""
    dim, bits, graph = layout.embedding_dim, layout.bits, ids.graph
    if bits in (8, 16):  # the stream is an array of them
        each = np.ascontiguousarray(layout.words).view(f"u{bits // 8}")
        rows = each[: layout.num_embeddings * dim].reshape(-1, dim)
        return graph.add("Gather", rows, ids).to(np.float32)
    first = (ids.reshape(-1, 1) * dim + graph.count(dim)) * bits
    word, words = first // 32, graph.store(layout.words)
    low, high = (
        graph.add("Gather", words, place).to(np.uint64) for place in (word, word + 1)
    )
    pair = high * np.uint64(2**32) | low
    codes = (pair >> (first % 32).to(np.uint64)) & np.uint64(2**bits - 1)
    return codes.to(np.float32)


# -- rows that are shared -------------------------------------------------------------


@emit.register
def emit_hashed(layout: HashedLayout, ids: Value) -> Value:
    """Digits and gathers, combined; then signs."""
    dim, tables = layout.embedding_dim, len(layout.index)
    index = [layout.index]
    if layout.weight_index is not None:
        index.append(layout.weight_index)
    if layout.signs is not None:  # their bit is a digit, too
        index.append(np.array([[*layout.signs.tolist(), 2**31, 2]]))
    every = find_digits(ids.reshape(-1, 1), np.concatenate(index))
    digits = every if len(index) == 1 else every.cut(0, tables)
    if layout.paths is not None:
        rows = emit_path(layout, digits)
    else:
        starts = table_starts(layout.index, bool(layout.shared))
        places = digits + np.array(starts) if any(starts) else digits
        rows = gather_rows_of(layout.values, places)
        if layout.weights is None:
            how = {"sum": "Sum", "product": "Prod"}.get(layout.combine, "concat")
            rows = combine(rows, tables, dim // layout.parts, how)
        elif layout.weight_index is None:
            rows = weigh(layout, rows, ids)
        else:
            rows = weigh(layout, rows, every.cut(tables, tables + 1))
    if layout.signs is None:
        return rows
    last = sum(map(len, index))
    return rows * as_floats(every.cut(last - 1, last))


def weigh(layout: HashedLayout, rows: Value, places: Value) -> Value:
    """Rows (m * k, dim) times the weights at places, added up; and a bias."""
    assert layout.weights is not None
    tables, dim = len(layout.index), layout.embedding_dim
    weights = gather_rows_of(layout.weights, places)
    columns = rows_shape(layout.weights)[1]
    own = weights if columns == tables else weights.cut(0, tables)
    total = combine(rows * own.reshape(-1, 1), tables, dim, "Sum")
    return total if columns == tables else total + weights.cut(tables, columns)


def emit_path(layout: HashedLayout, digits: Value) -> Value:
    """Rows through the network that the second digit names; see `split_paths`."""
    assert layout.paths is not None
    dim, graph = layout.embedding_dim, digits.graph
    rows = gather_rows_of(layout.values, digits.cut(0, 1)).reshape(-1, 1, dim)
    paths = gather_rows_of(layout.paths, digits.cut(1, 2))
    hidden = count_hidden(rows_shape(layout.paths)[1], dim)
    sizes = np.array([dim * hidden, hidden, hidden * dim, dim])
    shapes = ((dim, hidden), (1, hidden), (hidden, dim), (1, dim))
    ends = np.cumsum(sizes).tolist()
    first, bias, second, shift = (
        paths.cut(start, stop).reshape(-1, *shape)
        for start, stop, shape in zip([0, *ends], ends, shapes)
    )
    inside = graph.add("Relu", rows @ first + bias)
    return (inside @ second + shift).reshape(-1, dim)


@emit.register
def emit_semantic(layout: SemanticLayout, ids: Value) -> Value:
    """Codes, n-grams, their hashes; then the rows, added or side by side."""
    codes, dim = layout.codes, layout.embedding_dim
    bits, levels = codes.bits, codes.embedding_dim
    factors = 2 ** (bits * np.arange(levels))
    joined = (emit(codes, ids).to(np.int64) * factors).reduce("Sum")
    firsts, lasts = layout.grams.astype(np.int64).T
    sizes = 2 ** (bits * (lasts - firsts))
    grams = joined.reshape(-1, 1) // 2 ** (bits * firsts) % sizes
    if layout.starts is not None:
        grams = grams + find_group(ids, layout.starts).reshape(-1, 1) * sizes
    places = find_digits(grams, layout.index)
    starts = table_starts(layout.index, bool(layout.shared))
    if any(starts):
        places = places + np.array(starts)
    count, how = len(starts), "Sum" if layout.combine == "sum" else "concat"
    width = dim if how == "Sum" else dim // count
    return combine(gather_rows_of(layout.values, places), count, width, how)


@emit.register
def emit_codebook(layout: CodebookLayout, ids: Value) -> Value:
    """Codes, codewords, then concatenation or sum."""
    codes = emit(layout.codes, ids).to(np.int64)
    if layout.starts is None:
        firsts = gather_integers(layout.firsts, ids.graph.store(NOWHERE))
    else:
        firsts = gather_integers(layout.firsts, find_group(ids, layout.starts))
    rows = gather_rows_of(layout.codewords, codes + firsts)
    how = "Sum" if layout.combine == "sum" else "concat"
    return combine(rows, layout.books, layout.width, how)


@emit.register
def emit_flat(layout: FlatLayout, ids: Value) -> Value:
    """The runs that the blocks' starts name, side by side."""
    graph, dim = ids.graph, layout.embedding_dim
    length = min(layout.block_len, dim)
    blocks = -(-dim // length)
    steps = graph.count(blocks).to(np.uint64) * np.uint64(GOLDEN % 2**64)
    keys = ids.reshape(-1, 1).to(np.uint64) + steps
    starts = emit_mixture(keys, layout.multipliers) % (
        vector_room(layout.values) - length + 1
    )
    places = starts.reshape(-1, blocks, 1) + graph.count(length)
    runs = gather_numbers_of(layout.values, places, -1, blocks, length)
    if layout.signs is not None:
        bits = emit_mixture(keys, layout.signs) // 2**31 % 2
        runs = runs * as_floats(bits).reshape(-1, blocks, 1)
    rows = runs.reshape(-1, blocks * length)
    return rows if blocks * length == dim else rows.cut(0, dim)


@emit.register
def emit_probed(layout: ProbedLayout, ids: Value) -> Value:
    """Rows of the slots in which ids stand."""
    graph, slots = ids.graph, layout.slots
    homes = emit_mixture(ids, layout.numbers) % slots
    window = (homes.reshape(-1, 1) + graph.count(layout.window)) % slots
    same = gather_integers(layout.identities, window).equals(ids.reshape(-1, 1))
    found = same.where(window, -1).reduce("Max")
    known = found >= 0
    if layout.has_default:
        return gather_rows_of(layout.values, known.where(found, slots))
    rows = gather_rows_of(layout.values, known.where(found, 0))
    return known.reshape(-1, 1).where(rows, 0.0)


# -- rows of which parts are kept -----------------------------------------------------


@emit.register
def emit_ragged(layout: RaggedLayout, ids: Value) -> Value:
    """As many entries as a row has, and zeros."""
    graph, dim = ids.graph, layout.embedding_dim
    kept = vector_room(layout.values)
    if not kept:
        return emit_zeros(ids, dim)
    lengths = graph.store(layout.lengths)
    wide, block = ids.reshape(-1, 1), ids // BLOCK
    near = block.reshape(-1, 1) * BLOCK + graph.count(BLOCK)
    inside = near.at_most(layout.num_embeddings - 1)
    sizes = graph.add("Gather", lengths, inside).to(np.int64)
    before = (near < wide).where(sizes, 0).reduce("Sum")
    first = gather_integers(layout.starts, block) + before
    order = graph.count(dim)
    places = (first.reshape(-1, 1) + order).at_most(kept - 1)
    own = graph.add("Gather", lengths, wide).to(np.int64)
    values = gather_numbers_of(layout.values, places, -1, dim)
    return (order < own).where(values, 0.0)


@emit.register
def emit_sparse(layout: SparseLayout, ids: Value) -> Value:
    """All entries of a row's block, those of other rows put into one more column."""
    graph, dim, kept = ids.graph, layout.embedding_dim, len(layout.columns)
    rows = emit_zeros(ids, dim)
    if layout.fills is not None:
        group = ids * 0
        if layout.starts is not None:
            group = find_group(ids, layout.starts)
        rows = gather_floats(layout.fills, group)
    if not kept:
        return rows
    height, offsets = layout.block_rows, graph.store(layout.offsets)
    block = ids.reshape(-1, 1) // height
    low, high = (
        graph.add("Gather", offsets, place).to(np.int64) for place in (block, block + 1)
    )
    longest = int(np.diff(layout.offsets.astype(np.int64)).max())
    places = low + graph.count(longest)
    safe = places.at_most(kept - 1)
    columns = gather_integers(layout.columns, safe)
    inside = (columns // dim).equals(ids.reshape(-1, 1) % height)
    inside = graph.add("And", inside, places < high)
    columns = inside.where(columns % dim, dim)
    wide = graph.add("Pad", rows, np.array([0, 0, 0, 1]))
    values = gather_numbers_of(layout.values, safe, -1, longest)
    return graph.add("ScatterElements", wide, columns, values, axis=1).cut(0, dim)


@emit.register
def emit_anchors(layout: AnchorLayout, ids: Value) -> Value:
    """The anchors of a row's entries, weighted and added up."""
    graph, dim, kept = ids.graph, layout.embedding_dim, len(layout.columns)
    if not kept:
        return emit_zeros(ids, dim)
    offsets, wide = graph.store(layout.offsets), ids.reshape(-1, 1)
    low, high = (
        graph.add("Gather", offsets, place).to(np.int64) for place in (wide, wide + 1)
    )
    longest = int(np.diff(layout.offsets.astype(np.int64)).max())
    places = low + graph.count(longest)
    safe = places.at_most(kept - 1)
    found = gather_numbers_of(layout.weights, safe, -1, longest)
    weights = (places < high).where(found, 0.0)
    rows = gather_rows_of(layout.anchors, gather_integers(layout.columns, safe))
    mixed = weights.reshape(-1, 1, longest) @ rows.reshape(-1, longest, dim)
    return mixed.reshape(-1, dim)


# -- rows that are products -----------------------------------------------------------


@emit.register
def emit_tensor_train(layout: TensorTrainLayout, ids: Value) -> Value:
    """Digits, slices, products."""
    state, wide, weight = None, 1, math.prod(layout.shapes[:, 0].tolist())
    for core, (rows, columns, left, right, step) in zip(
        layout.cores, layout.shapes.tolist()
    ):
        weight //= rows
        digits = ids if weight == 1 else ids // weight
        inner, width = left // step, columns // step * right
        if rows == 1 and state is not None:
            digits = ids.graph.store(NOWHERE)  # one matrix for all
        elif state is not None:
            digits = digits % rows
        part = core if isinstance(core, Layout) else core.reshape(rows, -1)
        slices = gather_rows_of(part, digits).reshape(-1, inner, width)
        if state is not None:
            slices = state.reshape(-1, wide * step, inner) @ slices
        wide *= columns
        state = slices.reshape(-1, wide, right)
    assert state is not None  # there is a core
    return state.reshape(-1, layout.embedding_dim)


@emit.register
def emit_turned(layout: TurnedLayout, ids: Value) -> Value:
    """The part's rows, times the matrix."""
    rows = emit(layout.part, ids)
    if layout.signs is None:
        assert layout.matrix is not None
        return rows @ layout.matrix
    for flips in read_signs(layout.signs, layout.embedding_dim):
        rows = mix_columns(rows, layout.embedding_dim) * flips
    return rows


def mix_columns(rows: Value, dim: int) -> Value:
    """`mix_rows` of so many columns, by a small matrix at a time.

    Hadamard's matrix is a product of small ones, each along an axis of its own.
    """
    left = dim
    while left > 1:
        side = min(left, MOST_MIXED)
        small = mix_rows(np.eye(side, dtype=np.float32))
        # The axis that is mixed last goes first, and the next one stands last.
        rows = rows.reshape(-1, dim // side, side) @ small
        rows = swap(rows)
        left //= side
    return rows.reshape(-1, dim)


# -- layouts of layouts ---------------------------------------------------------------


@emit.register
def emit_added(layout: AddedLayout, ids: Value) -> Value:
    """The parts' rows, added up in their order."""
    rows = emit(layout.parts[0], ids)
    for part in layout.parts[1:]:
        rows = rows + emit(part, ids)
    return rows


@emit.register
def emit_routed(layout: RoutedLayout, ids: Value) -> Value:
    """Each part's rows, put where its ids stand."""
    graph, pieces = ids.graph, []
    others, below = None, ids * 0
    find = find_listed if layout.marks is None else find_marked
    for part, (mine, rank) in zip(layout.parts, find(layout, ids)):
        pieces.append((mine, rank, partial(emit, part)))
        left = graph.add("Not", mine)
        others = left if others is None else graph.add("And", others, left)
        below = below + rank
    assert others is not None  # there are two parts or more
    places = ids if layout.by_number else ids - below
    pieces.append((others, places, partial(emit, layout.parts[-1])))
    return gather_apart(ids, layout.embedding_dim, pieces)


def find_listed(layout: RoutedLayout, ids: Value) -> Iterator[tuple[Value, Value]]:
    """For each part but the last whether it lists an id, and how many of its ids are
    below it.
    """
    for keys in layout.part_ids():
        rank = find_rank(ids, keys)
        place = rank.at_most(len(keys) - 1)
        yield gather_integers(keys, place).equals(ids), rank


def find_marked(layout: RoutedLayout, ids: Value) -> Iterator[tuple[Value, Value]]:
    """`find_listed` of marked ids; of all parts at once, a column each."""
    assert layout.marks is not None and layout.ranks is not None
    graph, inside, one = ids.graph, ids, np.uint64(1)
    if layout.open_ids:  # what a last part takes beyond the table is not named
        inside = ids.at_most(layout.num_embeddings - 1)
    word, place = inside // 64, (inside % 64).to(np.uint64)
    bit = graph.add("BitShift", one, place, direction="LEFT").reshape(-1, 1)
    marks = graph.add("Gather", layout.marks.T, word)
    named = (marks & bit).to(bool)
    if layout.open_ids:
        named = graph.add("And", named, inside.equals(ids).reshape(-1, 1))
    rank = gather_integers(layout.ranks.T, word)
    rank = rank + popcount(marks & (bit - one)).to(np.int64)
    for part in range(len(layout.marks)):
        mine, own = (graph.add("Gather", it, part, axis=1) for it in (named, rank))
        yield mine, own


@emit.register
def emit_grouped(layout: GroupedLayout, ids: Value) -> Value:
    """Short rows group by group, made long."""
    if layout.planes is None or layout.before is None:
        ends = np.cumsum([rows for rows, _ in layout.sizes()])
        starts = np.concatenate([[0], ends[:-1]])
        group = find_group(ids, starts)
        row = ids - ids.graph.add("Gather", starts, group)
    else:
        group, row = find_assigned(layout.planes, layout.before, ids)
    widths = [width for _, width in layout.sizes()]
    places: Sequence[np.ndarray | None] = [None] * len(widths)
    if layout.columns is not None:
        places = cut(layout.columns, widths)
    dim, pieces = layout.embedding_dim, []
    for g, widened in enumerate(zip(layout.tables, layout.matrices(), places)):
        if widths[g]:
            pieces.append((group.equals(g), row, partial(emit_group, *widened, dim)))
    return gather_apart(ids, dim, pieces) if pieces else emit_zeros(ids, dim)


def emit_group(
    table: Rows, matrix: np.ndarray | None, columns: np.ndarray | None, dim: int,
    places: Value,
) -> Value:  # fmt: skip
    """Rows of one group, projected or put into some of the columns."""
    rows, graph = gather_rows_of(table, places), places.graph
    if matrix is not None:
        return rows @ matrix
    if columns is None or len(columns) == dim:
        return rows
    # Exact: each column is a number, or a sum of zeros.
    own = graph.store(columns).to(np.int64).reshape(-1, 1)
    return rows @ own.equals(graph.count(dim)).to(np.float32)


def find_assigned(
    planes: np.ndarray, before: np.ndarray, ids: Value
) -> tuple[Value, Value]:
    """Group, and row within the group, of ids: `GroupedLayout.locate` of a remap."""
    graph, one = ids.graph, np.uint64(1)
    planes = planes.transpose(0, 2, 1)  # (blocks, words, bits)
    bits = planes.shape[2]
    block, word = ids // BLOCK_IDS, ids % BLOCK_IDS // 64
    place = (ids % 64).to(np.uint64).reshape(-1, 1)
    bit = graph.add("BitShift", one, place, direction="LEFT")
    words = graph.add("Gather", planes, block)
    # The id's own words, (m, bits), and of these its own bits.
    own = graph.add("GatherND", words, word.reshape(-1, 1), batch_dims=1)
    own = (own & bit).to(bool)
    group = (own.to(np.int64) * 2 ** np.arange(bits)).reduce("Sum")
    # Bits of ids of other groups are those that differ in a plane.
    every = own.where(-1, 0).to(np.uint64)
    differ = words ^ every.reshape(-1, 1, bits)
    others = graph.add("Gather", differ, 0, axis=2)
    for plane in range(1, bits):
        others = others | graph.add("Gather", differ, plane, axis=2)
    # Those of the block's ids that come before this one.
    order, wide = graph.count(BLOCK_WORDS), word.reshape(-1, 1)
    lower = (bit - one).to(np.int64)
    same = (order < wide).where(-1, order.equals(wide).where(lower, 0))
    same = same.to(np.uint64) & graph.add("BitwiseNot", others)
    place = block * before.shape[1] + group
    inside = popcount(same).to(np.int64).reduce("Sum")
    return group, gather_integers(before.ravel(), place) + inside
