"""Layouts of random content, as large as one likes, for measuring their speed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from survey_code import compress
from survey_code.bits import stream_words
from survey_code.hashes import draw_multipliers
from survey_code.layouts import (
    AddedLayout,
    AnchorLayout,
    BinaryLayout,
    CodebookLayout,
    DenseLayout,
    FlatLayout,
    GeneratorLayout,
    GroupedLayout,
    HashedLayout,
    Layout,
    LevelsLayout,
    PackedLayout,
    ProbedLayout,
    RaggedLayout,
    RowwiseLayout,
    SemanticLayout,
    SparseLayout,
    TensorTrainLayout,
    TurnedLayout,
)
from survey_code.layouts.generator import count_weights
from survey_code.layouts.hashed import mixed_index, path_parameters
from survey_code.layouts.ragged import BLOCK as ROWS_A_START
from survey_code.layouts.routed import keep_apart
from survey_code.layouts.rowwise import code_bytes, parameter_type
from survey_code.layouts.tensor_train import core_shapes


def random_layout(kind: str, rows: int, dim: int, seed: int) -> Layout:
    """A layout of random content, made without a float32 table in between.

    Parameters
    ----------
    kind : {"8 bits", "4 bits", "2 bits", "1 bit", "float16", "float32"}
        Codes have a scale for each row.
    rows, dim, seed : int
    """
    rng = np.random.default_rng(seed)
    if kind.startswith("float"):
        values = rng.random((rows, dim), dtype=np.float32)
        return DenseLayout(values.astype(kind, copy=False))
    bits = int(kind.split()[0])
    if bits == 1:
        codes = np.frombuffer(rng.bytes(rows * dim // 8), np.uint8)
        scales = rng.random((rows, 1), dtype=np.float32)
        return BinaryLayout(codes.reshape(rows, 1, dim // 8), dim, scales)
    width, parameters = code_bytes(dim, bits), parameter_type(bits)
    codes = np.frombuffer(rng.bytes(rows * width), np.uint8).reshape(rows, width)
    tail = rng.random((rows, 2), dtype=np.float32).astype(parameters)
    packed = np.concatenate([codes, tail.view(np.uint8)], axis=1)
    return RowwiseLayout(packed, dim, bits)


def random_hashed(rng: np.random.Generator, rows: int, dim: int) -> tuple[Layout, int]:
    """One table of a tenth of the rows."""
    index = mixed_index(rng, [rows // 10])
    values = rng.random((rows // 10, dim), dtype=np.float32)
    return HashedLayout(values, index, rows, dim), 4 * dim


def random_probed(rng: np.random.Generator, rows: int, dim: int) -> tuple[Layout, int]:
    """A row of float16 for every id, in the third slot of its window of 16: where it is
    found on average in a table that is four fifths full.
    """
    # The hash of these numbers is the id itself, up to 2**29.
    numbers = np.array([1, 1, 0], dtype=np.int64)
    identities = np.roll(np.arange(rows, dtype=np.int32), 2)
    values = rng.random((rows, dim), dtype=np.float32).astype(np.float16)
    return ProbedLayout(identities, values, numbers, rows, 16), 2 * dim + 3 * 4


def random_semantic(
    rng: np.random.Generator, rows: int, dim: int
) -> tuple[Layout, int]:
    """Three codes of 8 bits, whose prefixes share a table of a tenth of the rows."""
    stream = np.frombuffer(rng.bytes(4 * stream_words(3 * rows, 8)), np.uint32)
    index = mixed_index(rng, [rows // 10] * 3)
    values = rng.random((rows // 10, dim), dtype=np.float32)
    grams = np.array([[0, 1], [0, 2], [0, 3]], dtype=np.uint8)
    codes = PackedLayout(stream, rows, 3, 8)
    made = SemanticLayout(codes, values, index, grams, dim, shared=True)
    return made, 3 * 4 * dim + 3


def random_quotients(
    rng: np.random.Generator, rows: int, dim: int
) -> tuple[Layout, int]:
    """Quotient and remainder: two tables, a tenth of the rows together."""
    modulus = rows // 10
    index = np.array([[0, 0, 0, 1, modulus], [0, 0, 0, modulus, 10]], dtype=np.int64)
    values = rng.random((modulus + 10, dim), dtype=np.float32)
    return HashedLayout(values, index, rows, dim, "product"), 4 * dim


def random_paths(rng: np.random.Generator, rows: int, dim: int) -> tuple[Layout, int]:
    """A row of a tenth of the rows, through one of ten networks of 16 units."""
    quotients = rows // 10
    index = np.array([[0, 0, 0, 10, quotients], [0, 0, 0, 1, 10]], dtype=np.int64)
    values = rng.random((quotients, dim), dtype=np.float32)
    paths = rng.random((10, path_parameters(dim, 16)), dtype=np.float32)
    layout = HashedLayout(values, index, rows, dim, "path", paths=paths)
    return layout, 4 * dim


def random_tiers(rng: np.random.Generator, rows: int, dim: int) -> tuple[Layout, int]:
    """One row in twenty in float32, the others in 4 bits."""
    wide = np.flatnonzero(rng.random(rows) < 0.05)
    narrow = np.setdiff1d(np.arange(rows), wide, assume_unique=True)
    values = rng.random((len(wide), dim), dtype=np.float32)
    packed = random_layout("4 bits", len(narrow), dim, 1)
    # A word of bits, the ids before it, and a row.
    row = packed.nbytes // packed.num_embeddings
    touched = 8 + 4 + round(0.05 * 4 * dim + 0.95 * row)
    return keep_apart(rows, wide, values, packed), touched


def random_flat(rng: np.random.Generator, rows: int, dim: int) -> tuple[Layout, int]:
    """ROBE, blocks of 16 numbers in an array of a tenth of the table."""
    values = rng.random(rows // 10 * dim, dtype=np.float32)
    return FlatLayout(values, draw_multipliers(rng, 1)[0], rows, dim, 16), 4 * dim


def random_train(rng: np.random.Generator, rows: int, dim: int) -> tuple[Layout, int]:
    """Three cores of rank 16."""
    side, columns = round(rows ** (1 / 3)) + 1, round(dim ** (1 / 3))
    shapes = np.array(
        [
            [side, columns, 1, 16, 1],
            [side, columns, 16, 16, 1],
            [side, dim // columns**2, 16, 1, 1],
        ],
        dtype=np.int64,
    )
    cores = [rng.random(shape, dtype=np.float32) for shape in core_shapes(shapes)]
    touched = 4 * int(shapes[:, 1:4].prod(axis=1).sum())
    return TensorTrainLayout(cores, shapes, rows, dim), touched


def random_anchors(rng: np.random.Generator, rows: int, dim: int) -> tuple[Layout, int]:
    """Four of 256 anchors for each row."""
    layout = AnchorLayout(
        rng.random((256, dim), dtype=np.float32),
        rng.random(4 * rows, dtype=np.float32),
        np.frombuffer(rng.bytes(4 * rows), np.uint8),
        np.arange(0, 4 * rows + 1, 4, dtype=np.uint32),
    )
    return layout, 4 * 5 + 8


def random_groups(rng: np.random.Generator, rows: int, dim: int) -> tuple[Layout, int]:
    """Three groups, scattered over the ids: widths 64, 8 and 1, with projections."""
    assignment = rng.choice(3, size=rows, p=(0.05, 0.45, 0.5)).astype(np.uint8)
    widths = (dim, 8, 1)
    layout = GroupedLayout.from_tables(
        [
            rng.random((int((assignment == g).sum()), width), dtype=np.float32)
            for g, width in enumerate(widths)
        ],
        [None, *(rng.random((w, dim), dtype=np.float32) for w in widths[1:])],
        dim,
        assignment,
    )
    return layout, round(4 * (0.05 * dim + 0.45 * 8 + 0.5)) + 2 * 64 + 4


def random_prefixes(
    rng: np.random.Generator, rows: int, dim: int
) -> tuple[Layout, int]:
    """Prefixes of 0 to 16 numbers."""
    lengths = rng.integers(0, 17, size=rows, dtype=np.uint8)
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = (ends - lengths)[::ROWS_A_START].astype(np.uint32)
    values = rng.random(int(ends[-1]), dtype=np.float32)
    # Half of a block's lengths, a start, and eight numbers.
    return RaggedLayout(values, lengths, starts, dim), 16 + 4 + 4 * 8


def random_entries(rng: np.random.Generator, rows: int, dim: int) -> tuple[Layout, int]:
    """Four of the numbers of each row, each with its column."""
    columns = np.sort(rng.integers(0, dim // 4, size=(rows, 4), dtype=np.uint8), axis=1)
    columns += np.arange(4, dtype=np.uint8) * np.uint8(dim // 4)
    layout = SparseLayout(
        rng.random(4 * rows, dtype=np.float32),
        columns.ravel(),
        np.arange(0, 4 * rows + 1, 4, dtype=np.uint32),
        rows,
        dim,
    )
    return layout, 2 * 4 + 4 * 5


def random_products(
    rng: np.random.Generator, rows: int, dim: int
) -> tuple[CodebookLayout, int]:
    """Product codes: 8 parts of 256 codewords."""
    words = rng.random((8 * 256, dim // 8), dtype=np.float32)
    return name_by_codes(rng, rows, dim, words)


def name_by_codes(
    rng: np.random.Generator, rows: int, dim: int, words: np.ndarray | Layout
) -> tuple[CodebookLayout, int]:
    """Random codes of 8 bits for 8 parts, each of 256 of these codewords."""
    stream = np.frombuffer(rng.bytes(4 * stream_words(8 * rows, 8)), np.uint32)
    codes = PackedLayout(stream, rows, 8, 8)
    firsts = np.arange(0, 8 * 256, 256, dtype=np.int32)[None]
    return CodebookLayout(codes, words, firsts, dim), 8


def random_small_words(
    rng: np.random.Generator, rows: int, dim: int
) -> tuple[CodebookLayout, int]:
    """The same, and the codewords' own numbers in 8 bits."""
    words = rng.random((8 * 256, dim // 8), dtype=np.float32)
    return name_by_codes(rng, rows, dim, compress(words, "rowwise"))


def random_turned(rng: np.random.Generator, rows: int, dim: int) -> tuple[Layout, int]:
    """Product codes, and each row multiplied by a matrix."""
    layout, touched = random_products(rng, rows, dim)
    return TurnedLayout(layout, rng.random((dim, dim), dtype=np.float32)), touched


def random_levels(rng: np.random.Generator, rows: int, dim: int) -> tuple[Layout, int]:
    """Codes of 3 bits that name levels, and a float16 for each row."""
    width = code_bytes(dim, 3)
    codes = np.frombuffer(rng.bytes(rows * width), np.uint8).reshape(rows, width)
    scales = rng.random((rows, 1), dtype=np.float32).astype(np.float16)
    packed = np.concatenate([codes, scales.view(np.uint8)], axis=1)
    levels = np.sort(rng.standard_normal(8, dtype=np.float32))
    return LevelsLayout(packed, levels, dim, 3), width + 2


def random_turned_levels(
    rng: np.random.Generator, rows: int, dim: int
) -> tuple[Layout, int]:
    """The same, turned by signs; dim is a power of two."""
    layout, touched = random_levels(rng, rows, dim)
    signs = rng.integers(256, size=(1, -(-dim // 8))).astype(np.uint8)
    return TurnedLayout(layout, signs=signs), touched


def random_helped(rng: np.random.Generator, rows: int, dim: int) -> tuple[Layout, int]:
    """Product codes, with a hashed row of 256 added to each codeword."""
    layout, touched = random_products(rng, rows, dim)
    helpers = rng.random((8 * 256, dim // 8), dtype=np.float32)
    index = mixed_index(rng, [256] * 8)
    hashed = HashedLayout(helpers, index, rows, dim, "concat")
    return AddedLayout([layout, hashed]), touched


def random_small_table(
    rng: np.random.Generator, rows: int, dim: int
) -> tuple[Layout, int]:
    """One shared table of a tenth of the rows, in 4 bits."""
    index = mixed_index(rng, [rows // 10])
    table = random_layout("4 bits", rows // 10, dim, int(rng.integers(2**31)))
    return HashedLayout(table, index, rows, dim), dim // 2 + 4


def random_apart(rng: np.random.Generator, rows: int, dim: int) -> tuple[Layout, int]:
    """A shared table of a tenth of the rows; a hundredth of the ids have their own."""
    shared, touched = random_hashed(rng, rows, dim)
    ids = np.sort(rng.choice(rows, rows // 100, replace=False))
    own = rng.random((len(ids), dim), dtype=np.float32)
    return keep_apart(rows, ids, own, shared), touched + 12


def random_generator(
    rows: int, dim: int, codes: int, width: int, seed: int
) -> GeneratorLayout:
    """A network of two hidden layers."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal(count_weights(codes, width, 2, dim), dtype=np.float32)
    return GeneratorLayout(
        weights / np.float32(width**0.5), draw_multipliers(rng, 1)[0], rows, dim,
        codes=codes, width=width, layers=2,
    )  # fmt: skip


# A kind, and how to make it: a layout, and the bytes that one look-up touches.
COMPOSED: dict[str, Callable[[np.random.Generator, int, int], tuple[Layout, int]]] = {
    "hashing": random_hashed,
    "probed": random_probed,
    "quotient-remainder": random_quotients,
    "semantic": random_semantic,
    "path": random_paths,
    "ROBE": random_flat,
    "tensor train": random_train,
    "anchors": random_anchors,
    "grouped": random_groups,
    "ragged": random_prefixes,
    "sparse": random_entries,
    "tiers": random_tiers,
    "product codes": random_products,
    "turned codes": random_turned,
    "levels": random_levels,
    "turned levels": random_turned_levels,
    "codes and helpers": random_helped,
    "int8 codewords": random_small_words,
    "int4 hash table": random_small_table,
    "own rows": random_apart,
}


def random_composed(kind: str, rows: int, dim: int, seed: int) -> tuple[Layout, int]:
    """A layout that puts rows together, and the bytes that one look-up touches.

    Parameters
    ----------
    kind : str
        A key of `COMPOSED`.
    rows, dim, seed : int
    """
    return COMPOSED[kind](np.random.default_rng(seed), rows, dim)
