"""Layouts within layouts, drawn at random: what each must do is tested on all."""

import numpy as np

from survey_code import compress
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
    RoutedLayout,
    RowwiseLayout,
    SemanticLayout,
    SparseLayout,
    TensorTrainLayout,
    TurnedLayout,
)
from survey_code.layouts.generator import count_weights
from survey_code.layouts.hashed import mixed_index, path_parameters
from survey_code.layouts.probed import find_homes
from survey_code.layouts.routed import keep_apart
from survey_code.layouts.tensor_train import core_shapes
from survey_code.layouts.turned import is_power_of_two


def draw_table(rng, rows, dim):
    return rng.normal(size=(rows, dim)).astype(np.float32)


def divide(rng, dim):
    """A divisor of dim."""
    return int(rng.choice([part for part in range(1, dim + 1) if dim % part == 0]))


def draw_codes(rng, rows, books, bits):
    return rng.integers(2**bits, size=(rows, books))


# -- layouts of arrays; below depth 0 their rows are layouts --------------------


def dense(rng, rows, dim, depth):
    kind = rng.choice(["float32", "float16", "bfloat16"])
    return DenseLayout.from_weight(draw_table(rng, rows, dim), kind)


def rowwise(rng, rows, dim, depth):
    return compress(
        draw_table(rng, rows, dim), "rowwise", bits=int(rng.choice([8, 4, 2]))
    )


def per_group(rng, rows, dim, depth):
    bits = int(rng.choice([8, 4, 3, 2, 1]))
    codes = draw_codes(rng, rows, dim, bits).astype(np.uint8)
    scale, bias = rng.normal(size=(2, 1)).astype(np.float32)
    return RowwiseLayout.from_groups(codes, scale, bias, bits)


def draw_levels(rng, rows, dim, bits, scaling, block=32):
    """Random codes that name random levels, with the scales that are asked for."""
    codes = draw_codes(rng, rows, dim, bits).astype(np.uint8)
    table = rng.normal(size=2**bits)
    if scaling == "block":
        powers = rng.integers(125, 130, size=(rows, -(-dim // block)))
        return LevelsLayout.from_codes(codes, table, powers.astype(np.uint8), block)
    scales = rng.normal(size=rows) if scaling == "row" else None
    return LevelsLayout.from_codes(codes, table, scales)


def levels(rng, rows, dim, depth):
    bits, scaling = int(rng.integers(1, 9)), rng.choice(["none", "row", "block"])
    return draw_levels(rng, rows, dim, bits, scaling, int(rng.choice([1, 2, 4, 32])))


def binary(rng, rows, dim, depth):
    scales = rng.random((rows, 1)).astype(np.float32) if rng.random() < 0.5 else None
    return BinaryLayout.from_signs(draw_table(rng, rows, dim), scales)


def sparse(rng, rows, dim, depth):
    table = draw_table(rng, rows, dim) * (rng.random((rows, dim)) < 0.4)
    block = int(rng.choice([1, 3]))
    if rng.random() < 0.3:
        groups = int(rng.integers(1, min(rows, 3) + 1))
        starts = np.arange(groups) if groups > 1 else None
        fills = draw_table(rng, groups, dim)
        return SparseLayout.from_mask(table, table != 0, block, fills, starts)
    return SparseLayout.from_dense(table, rng.choice(["float32", "float16"]), block)


def ragged(rng, rows, dim, depth):
    lengths = rng.integers(dim + 1, size=rows)
    return RaggedLayout.from_dense(draw_table(rng, rows, dim), lengths)


def flat(rng, rows, dim, depth):
    values = rng.normal(size=dim + 40).astype(np.float32)
    numbers, signs = draw_multipliers(rng, 2)
    length = int(rng.integers(1, dim + 1))
    return FlatLayout(values, numbers, rows, dim, length, signs)


def generator(rng, rows, dim, depth):
    sizes = {"codes": 4, "width": 3, "layers": 1}
    values = rng.normal(size=count_weights(dim=dim, **sizes)).astype(np.float32)
    numbers = draw_multipliers(rng, 1)[0]
    return GeneratorLayout(values, numbers, rows, dim, **sizes)


def hashed(rng, rows, dim, depth):
    combine = str(rng.choice(["sum", "product", "concat", "path"]))
    tables = 2 if combine == "path" or (combine == "concat" and dim % 2 == 0) else 1
    if combine == "sum":
        tables = int(rng.integers(1, 4))
    sizes = rng.integers(2, 9, size=tables).tolist()
    index = mixed_index(rng, sizes)
    width = dim // tables if combine == "concat" else dim
    kept = sizes[0] if combine == "path" else sum(sizes)
    optional = {}
    if combine == "path":
        optional["paths"] = part(rng, sizes[1], path_parameters(dim, 3), 0)
    if combine == "sum" and rng.random() < 0.5:
        columns = tables + int(rng.integers(2))
        optional["weights"] = part(rng, rows, columns, depth - 1)
    signs = None
    if rng.random() < 0.5 and combine != "path":
        signs = draw_multipliers(rng, 1)[0]
    values = part(rng, kept, width, depth - 1)
    return HashedLayout(values, index, rows, dim, combine, signs, **optional)


def place_ids(rng, ids, slots, window, kind=np.int32):
    """Identities of a probed layout, each id in its window if there is room, and the
    numbers of their hash.
    """
    numbers = draw_multipliers(rng, 1)[0]
    identities = np.full(slots, -1, dtype=kind)
    for one, home in zip(ids, find_homes(ids, numbers, slots)):
        reached = (home + np.arange(window)) % slots
        free = reached[identities[reached] == -1]
        if len(free):
            identities[free[0]] = one
    return identities, numbers


def probed(rng, rows, dim, depth):
    slots = int(rng.integers(1, 20))
    window = int(rng.integers(1, min(slots, 5) + 1))
    kind = rng.choice([np.int32, np.int64])
    identities, numbers = place_ids(rng, rng.permutation(rows), slots, window, kind)
    values = part(rng, slots + int(rng.integers(2)), dim, depth - 1)
    return ProbedLayout(identities, values, numbers, rows, window)


def codebook(rng, rows, dim, depth):
    combine = str(rng.choice(["concat", "sum"]))
    books = divide(rng, dim) if combine == "concat" else int(rng.integers(1, 4))
    width = dim // books if combine == "concat" else dim
    bits = int(rng.integers(1, 6))
    codes = PackedLayout.from_integers(draw_codes(rng, rows, books, bits), bits)
    if rows > 4 and rng.random() < 0.5:
        ids = np.sort(rng.choice(rows, rows // 3, replace=False))
        longer = draw_codes(rng, len(ids), books, bits)
        others = draw_codes(rng, rows - len(ids), books, bits)
        codes = keep_apart(
            rows, ids, PackedLayout.from_integers(longer, bits + 1),
            PackedLayout.from_integers(others, bits),
        )  # fmt: skip
    words = part(rng, books << bits, width, depth - 1)
    firsts = (np.arange(books, dtype=np.int32) << bits)[None]
    return CodebookLayout(codes, words, firsts, dim, combine)


def semantic(rng, rows, dim, depth):
    levels, bits = int(rng.integers(1, 4)), int(rng.integers(1, 6))
    codes = PackedLayout.from_integers(draw_codes(rng, rows, levels, bits), bits)
    combine = str(rng.choice(["sum", "concat"]))
    count = int(rng.integers(1, 4)) if combine == "sum" else 1 + (dim % 2 == 0)
    ends = np.sort(rng.integers(0, levels, size=(count, 2)), axis=1)
    ends[:, 1] += 1
    grams = ends.astype(np.uint8)
    shared = bool(rng.random() < 0.5)
    sizes = [5] * count if shared else rng.integers(2, 9, size=count).tolist()
    index = mixed_index(rng, sizes)
    starts = np.array([0, rows // 2]) if rows > 2 and rng.random() < 0.5 else None
    kept = sizes[0] if shared else sum(sizes)
    width = dim // count if combine == "concat" else dim
    values = part(rng, kept, width, depth - 1)
    return SemanticLayout(codes, values, index, grams, dim, combine, shared, starts)


def anchors(rng, rows, dim, depth):
    mixture = draw_table(rng, rows, 5).clip(min=0.3) - np.float32(0.3)
    made = AnchorLayout.from_dense(mixture, draw_table(rng, 5, dim))
    anchors = part(rng, 5, dim, depth - 1)
    return AnchorLayout(anchors, made.weights, made.columns, made.offsets)


def tensor_train(rng, rows, dim, depth):
    last = divide(rng, dim)
    side = int(np.ceil(np.sqrt(rows)))
    shapes = np.array([[side, dim // last, 1, 3, 1], [side, last, 3, 1, 1]])
    cores = []
    for shape in core_shapes(shapes):
        core = part(rng, shape[0], int(np.prod(shape[1:])), depth - 1)
        cores.append(core if isinstance(core, Layout) else core.reshape(shape))
    return TensorTrainLayout(cores, shapes, rows, dim)


def grouped(rng, rows, dim, depth):
    count = int(rng.integers(1, min(rows, 3) + 1))
    widths = rng.integers(1, dim + 1, size=count).tolist()
    assignment = rng.permutation(np.arange(rows) % count)
    if rng.random() < 0.5:
        assignment = np.sort(assignment)
    tables = [
        part(rng, int((assignment == g).sum()), width, depth - 1)
        for g, width in enumerate(widths)
    ]
    matrices = [draw_table(rng, w, dim) if w < dim else None for w in widths]
    return GroupedLayout.from_tables(tables, matrices, dim, assignment)


# -- layouts of layouts ----------------------------------------------------------


def routed(rng, rows, dim, depth):
    count = int(rng.integers(1, 3)) if rows > 4 else 1
    order = rng.permutation(rows)
    named = [np.sort(ids) for ids in np.array_split(order[: rows // 2], count)]
    parts = [draw(rng, len(ids), dim, depth - 1) for ids in named]
    others = rows if rng.random() < 0.4 else rows - rows // 2
    parts.append(draw(rng, others, dim, depth - 1))
    return RoutedLayout.from_ids(parts, named, rows)


def added(rng, rows, dim, depth):
    count = int(rng.integers(2, 4))
    return AddedLayout([draw(rng, rows, dim, depth - 1) for _ in range(count)])


def turned(rng, rows, dim, depth):
    if is_power_of_two(dim) and rng.random() < 0.5:
        times = int(rng.integers(1, 3))
        signs = rng.integers(256, size=(times, -(-dim // 8))).astype(np.uint8)
        return TurnedLayout(draw(rng, rows, dim, depth - 1), signs=signs)
    width = int(rng.integers(1, dim + 3))
    matrix = draw_table(rng, width, dim) / np.float32(np.sqrt(width))
    return TurnedLayout(draw(rng, rows, width, depth - 1), matrix)


LEAVES = (
    dense, rowwise, per_group, levels, binary, sparse, ragged, flat, generator,
)  # fmt: skip
HOLDERS = (
    hashed, probed, semantic, codebook, anchors, tensor_train, grouped, routed, added,
    turned,
)  # fmt: skip


def draw(rng, rows, dim, depth):
    """A random layout; at depth 0 one of arrays alone, with depths one that holds."""
    kinds = HOLDERS if depth > 0 else LEAVES
    if rows == 1:
        kinds = [kind for kind in kinds if kind is not routed]
    return kinds[rng.integers(len(kinds))](rng, rows, dim, depth)


def part(rng, rows, width, depth):
    """What stands where a layout holds rows: an array at the bottom, else a layout."""
    if depth < 0:
        table = draw_table(rng, rows, width)
        return table.astype(np.float16) if rng.random() < 0.2 else table
    return draw(rng, rows, width, depth)


def draw_nesting(seed, depth=2, rows=None):
    """A random layout with so many layouts inside each other below it."""
    rng = np.random.default_rng(seed)
    drawn, dim = int(rng.integers(8, 90)), int(rng.choice([1, 3, 4, 6, 8, 12]))
    return draw(rng, rows or drawn, dim, depth)
