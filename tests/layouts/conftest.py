"""One small example of every layout, in every variant that reads differently."""

import dataclasses

import numpy as np
import pytest
import torch
from nestings import draw_levels, draw_nesting, place_ids

from survey_code import TableSpec, compress
from survey_code.layouts import (
    AddedLayout,
    AnchorLayout,
    BinaryLayout,
    DenseLayout,
    GroupedLayout,
    PackedLayout,
    ProbedLayout,
    RaggedLayout,
    RoutedLayout,
    RowwiseLayout,
    SemanticLayout,
    SparseLayout,
    TurnedLayout,
)
from survey_code.layouts.hashed import mixed_index
from survey_code.layouts.routed import keep_apart
from survey_code.weight_sharing.decomposition import STTD, TTRec
from survey_code.weight_sharing.hashing import (
    DHE,
    ROBE,
    BloomEmbeddings,
    DoubleHashing,
    HashEmbeddings,
    HashingTrick,
    MEmCom,
    QuotientRemainder,
)
from survey_code.weight_sharing.vector_quantization import CCE, MGQE, LightRec

ROWS = 11


def draw_table(dim):
    return np.random.default_rng(dim).normal(size=(ROWS, dim)).astype(np.float32)


def hashed(dim=6, **options):
    spec = TableSpec.of_shape(ROWS, dim)
    kind = QuotientRemainder if "modulus" in options else HashingTrick
    return kind.make(spec, seed=3, **options).freeze()


def shared(kind, dim=6, **options):
    counts = np.arange(ROWS)[::-1].copy()
    spec = TableSpec(ROWS, dim, np.array([0, ROWS]), counts)
    return kind.make(spec, seed=3, **options).freeze()


def told(dim=6, **options):
    """A network that reads content, under averages that a batch has moved."""
    spec = dataclasses.replace(TableSpec.of_shape(ROWS, dim), content=draw_table(3))
    table = DHE.make(spec, seed=3, layers=2, normalisation="batch", **options)
    table(torch.arange(5))
    return table.freeze()


def binary(dim, **options):
    return BinaryLayout.from_signs(draw_table(dim), **options)


def draw_groups(dim, bits, starts):
    rng = np.random.default_rng(dim)
    codes = rng.integers(2**bits, size=(ROWS, dim)).astype(np.uint8)
    scale, bias = rng.normal(size=(2, len(starts))).astype(np.float32)
    return RowwiseLayout.from_groups(codes, scale, bias, bits, np.array(starts))


def draw_rounded(dim, bits):
    rng = np.random.default_rng(dim)
    codes = rng.integers(2**bits, size=(ROWS, dim)).astype(np.uint8)
    return RowwiseLayout.from_codes(codes, *rng.normal(size=(2, ROWS)), bits)


def draw_centred(dim, bits, starts=None):
    rng = np.random.default_rng(dim)
    codes = rng.integers(2**bits, size=(ROWS, dim)).astype(np.uint8)
    scale = rng.normal(size=len(starts or codes)).astype(np.float32)
    if starts is None:
        return RowwiseLayout.from_codes(codes, scale, None, bits)
    return RowwiseLayout.from_groups(codes, scale, None, bits, np.array(starts))


def named(dim, bits, scaling="none", block=32):
    return draw_levels(np.random.default_rng(dim), ROWS, dim, bits, scaling, block)


def tiered(dim, format="float32", **tiers):
    """Rows in several precisions: ids of each, "rest" for the others."""
    named = [i for ids in tiers.values() if ids != "rest" for i in ids]
    rest = np.setdiff1d(np.arange(ROWS), named)
    parts = []
    for name, ids in tiers.items():
        rows = draw_table(dim)[rest if isinstance(ids, str) else np.array(ids)]
        if name == "values":
            parts.append(DenseLayout.from_weight(rows, format))
        else:
            parts.append(compress(rows, "rowwise", bits=int(name[4:])))
    ids = [np.array(own) for own in tiers.values() if own != "rest"]
    return RoutedLayout.from_ids(parts, ids, ROWS)


def grouped(dim, widths, assignment=None, rows=None, **options):
    """Groups of given widths; `project=True` draws their projections."""
    if assignment is not None:
        rows = np.bincount(assignment, minlength=len(widths))
    rng = np.random.default_rng(dim)
    tables = [rng.normal(size=(n, w)) for n, w in zip(rows, widths)]
    project = options.pop("project", False)
    matrices = [
        rng.normal(size=(w, dim)) if project and 0 < w < dim else None for w in widths
    ]
    return GroupedLayout.from_tables(tables, matrices, dim, assignment, **options)


def probed(slots=5, window=3, kind=np.int32, default=True, **options):
    """As many ids as find a place in their windows."""
    rng = np.random.default_rng(slots)
    identities, numbers = place_ids(rng, rng.permutation(ROWS), slots, window, kind)
    values = rng.normal(size=(slots + default, 6)).astype(np.float32)
    return ProbedLayout(identities, values, numbers, ROWS, window, **options)


MIXED = np.array([2, 0, 0, 1, 2, 1, 1, 0, 2, 2, 2])


def train(**options):
    table = TTRec.make(TableSpec.of_shape(ROWS, 6), seed=3, **options)
    if options.get("slots"):
        table(torch.tensor([3, 3, 8, 1]))
        table.fill_cache()
    return table.freeze()


def anchored(count):
    mixture = draw_table(count).clip(min=0.3) - np.float32(0.3)
    return AnchorLayout.from_dense(mixture, draw_table(5)[:count])


def sparse(dim, share, **options):
    weight = draw_table(dim)
    weight[np.random.default_rng(1).random(weight.shape) >= share] = 0
    return SparseLayout.from_dense(weight, **options)


def filled(dim, starts=None, **options):
    """Some entries of a table, and a row of fills for the others of each group."""
    mask = np.random.default_rng(2).random((ROWS, dim)) < 0.4
    fills = draw_table(dim)[: 1 if starts is None else len(starts)]
    starts = None if starts is None else np.array(starts)
    return SparseLayout.from_mask(draw_table(dim), mask, 2, fills, starts)


def hold_vector(layout, name, width):
    """The layout with a vector rounded to 8 bits, in rows of a width."""
    vector = layout.held()[name]
    rows = np.pad(vector, (0, -len(vector) % width), mode="edge").reshape(-1, width)
    held = {**layout.held(), name: compress(rows, "rowwise", bits=8)}
    return type(layout).from_file(layout.shape_integers(), held)


def semantic(grams, sizes, dim=6, **options):
    """Two codes of two bits, and stretches of them that name rows."""
    codes = PackedLayout.from_integers(np.arange(2 * ROWS).reshape(ROWS, 2) % 4, 2)
    rows = max(sizes) if options.get("shared") else sum(sizes)
    width = dim // len(grams) if options.get("combine") == "concat" else dim
    values, index = draw_table(width)[:rows], mixed_index(3, sizes)
    return SemanticLayout(codes, values, index, np.uint8(grams), dim, **options)


def ragged(dim, **options):
    lengths = np.arange(ROWS) * 5 % (dim + 1)
    return RaggedLayout.from_dense(draw_table(dim), lengths, **options)


EXAMPLES = {
    "tensor-train": lambda: train(rank=3),
    "tensor-train-cached": lambda: train(rank=2, slots=3),
    "semi-tensor-train": lambda: STTD.make(
        TableSpec.of_shape(ROWS, 8), rank=2, seed=1
    ).freeze(),
    "low-rank": lambda: compress(draw_table(7), "low_rank", rank=2),
    "anchors": lambda: anchored(4),
    "dense-float32": lambda: DenseLayout.from_weight(draw_table(5)),
    "dense-float16": lambda: DenseLayout.from_weight(draw_table(3), "float16"),
    "dense-bfloat16": lambda: DenseLayout.from_weight(draw_table(4), "bfloat16"),
    "rowwise-8": lambda: compress(draw_table(7), "rowwise", bits=8),
    "rowwise-4-odd": lambda: compress(draw_table(5), "rowwise", bits=4),
    "rowwise-2-odd": lambda: compress(draw_table(7), "rowwise", bits=2),
    "rowwise-3-odd": lambda: draw_rounded(5, bits=3),
    "rowwise-1-odd": lambda: draw_rounded(9, bits=1),
    "rowwise-per-table": lambda: compress(draw_table(5), "rowwise", per="table"),
    "rowwise-centred": lambda: draw_centred(5, bits=8),
    "rowwise-centred-4-odd": lambda: draw_centred(7, bits=4),
    "rowwise-centred-groups": lambda: draw_centred(5, bits=2, starts=[0, 3, 10]),
    "rowwise-centred-3": lambda: draw_centred(8, bits=3),
    "rowwise-centred-1-groups": lambda: draw_centred(5, bits=1, starts=[0, 3, 10]),
    "rowwise-groups-3": lambda: draw_groups(7, bits=3, starts=[0, 3, 10]),
    "rowwise-groups": lambda: draw_groups(5, bits=4, starts=[0, 3, 10]),
    "levels": lambda: named(5, bits=4),
    "levels-8": lambda: named(3, bits=5),
    "levels-row": lambda: named(7, bits=3, scaling="row"),
    "levels-row-1": lambda: named(9, bits=1, scaling="row"),
    "levels-blocks": lambda: named(6, bits=4, scaling="block", block=4),
    "levels-one-block": lambda: named(5, bits=2, scaling="block"),
    "tiered": lambda: tiered(5, values=[2, 9], rows8=[0, 3, 10], rows4="rest"),
    "tiered-two": lambda: tiered(4, values=[0], rows2="rest"),
    "tiered-half": lambda: tiered(3, values=[10], rows8="rest", format="float16"),
    "routed-marks": lambda: RoutedLayout(
        [DenseLayout(draw_table(4)[:2]), DenseLayout(draw_table(4)[2:])],
        ROWS,
        marks=np.array([[0b10010]], np.uint64),
        ranks=np.zeros((1, 1), np.uint32),
    ),
    "routed-by-number": lambda: keep_apart(
        ROWS, np.array([0, 10]), draw_table(6)[:2], hashed(rows=4, open_ids=True)
    ),
    "packed": lambda: PackedLayout.from_integers(np.arange(33).reshape(11, 3) % 8, 3),
    "added": lambda: AddedLayout([DenseLayout(draw_table(6)), hashed(rows=4)]),
    "turned": lambda: TurnedLayout(hashed(rows=4), draw_table(8)[:6]),
    "turned-signs": lambda: TurnedLayout(
        named(16, bits=2, scaling="row"), signs=np.array([[0x93, 0x0F]], np.uint8)
    ),
    **{
        f"nesting-{seed}": lambda seed=seed: draw_nesting(seed, rows=ROWS)
        for seed in range(200, 206)
    },
    "binary": lambda: binary(5),
    "binary-scale": lambda: binary(8, scales=np.full((1, 1), 0.3, np.float32)),
    "binary-row-scales": lambda: binary(6, scales=draw_table(1).astype(np.float16)),
    "binary-blocks": lambda: binary(6, scales=draw_table(3), blocks=3),
    "binary-magnitudes": lambda: compress(draw_table(9), "bccf", rule="pph"),
    "grouped-fields": lambda: grouped(5, [5, 2, 1], rows=[2, 3, 6], project=True),
    "grouped-one": lambda: grouped(6, [2], rows=[11], project=True),
    "grouped-remap": lambda: grouped(5, [5, 3, 1], MIXED, project=True),
    "grouped-zeros": lambda: grouped(4, [0, 4, 0], MIXED),
    "grouped-padded": lambda: grouped(6, [6, 0, 2], MIXED),
    "grouped-columns": lambda: grouped(
        4, [1, 2], rows=[5, 6], columns=[np.array([3]), np.array([2, 0])]
    ),
    "sparse": lambda: sparse(16, 0.2),
    "sparse-rows": lambda: sparse(5, 0.5, block_rows=1),
    "sparse-half": lambda: sparse(7, 0.3, format="float16", block_rows=3),
    "sparse-wide": lambda: sparse(300, 0.1),
    "sparse-empty": lambda: sparse(4, 0.0),
    "sparse-fills": lambda: filled(5),
    "sparse-fills-groups": lambda: filled(6, starts=[0, 3, 10]),
    "ragged": lambda: ragged(6),
    "ragged-half": lambda: ragged(3, format="float16"),
    "ragged-empty": lambda: RaggedLayout.from_dense(draw_table(2), [0] * ROWS),
    "hashed": lambda: hashed(rows=4),
    "hashed-signed": lambda: hashed(rows=4, signed=True),
    "hashed-open": lambda: hashed(rows=4, open_ids=True),
    "hashed-sum": lambda: hashed(modulus=4, combine="sum"),
    "hashed-product": lambda: hashed(modulus=4, combine="product"),
    "hashed-concat": lambda: hashed(modulus=4, combine="concat"),
    "hashed-path": lambda: hashed(modulus=4, combine="path", hidden=3),
    "hashed-one-table": lambda: shared(BloomEmbeddings, rows=5, hashes=3),
    "hashed-keys": lambda: shared(DoubleHashing, rows=4, frequent=3),
    "hashed-keys-concat": lambda: shared(
        DoubleHashing, rows=4, frequent=3, combine="concat"
    ),
    "hashed-weights": lambda: shared(HashEmbeddings, rows=4, entries=11),
    "hashed-weights-open": lambda: shared(
        HashEmbeddings, rows=4, entries=7, open_ids=True
    ),
    "hashed-bias": lambda: shared(MEmCom, rows=4, bias=True),
    "probed": lambda: probed(),
    "probed-zeros": lambda: probed(default=False, window=1),
    "probed-open": lambda: probed(kind=np.int64, open_ids=True),
    "codebook": lambda: compress(draw_table(6), "pq", books=3, bits=2),
    "codebook-half": lambda: compress(draw_table(4), "pq", books=2, bits=3, half=True),
    "codebook-turned": lambda: compress(
        draw_table(4), "pq", books=2, bits=2, rotate=True
    ),
    "codebook-groups": lambda: compress(
        draw_table(5), "clustering", clusters=2, field_starts=[0, 4, 11]
    ),
    "codebook-heads": lambda: compress(
        draw_table(5), "clustering", clusters=3, heads=2, counts=np.arange(11)
    ),
    "codebook-head-codes": lambda: shared(
        MGQE, books=2, bits=3, tail_bits=1, head_share=0.3
    ),
    "codebook-sum": lambda: shared(LightRec, books=3, bits=2),
    "codebook-hashed": lambda: shared(CCE, books=2, bits=2),
    "semantic": lambda: semantic([[0, 1], [0, 2]], [4, 5]),
    "semantic-one-table": lambda: semantic([[0, 1], [1, 2]], [7, 7], shared=True),
    "semantic-concat": lambda: semantic(
        [[0, 1], [0, 2]], [3, 4], combine="concat", starts=np.array([0, 2, 7])
    ),
    "flat": lambda: shared(ROBE, size=20, block_len=4),
    "flat-signed": lambda: shared(ROBE, size=20, block_len=1, signed=True),
    "flat-open": lambda: shared(ROBE, size=20, open_ids=True, block_len=9),
    # Vectors in runs of a few numbers, which a layout of their own holds.
    "sparse-nested": lambda: hold_vector(sparse(7, 0.5), "values", 5),
    "sparse-fills-nested": lambda: hold_vector(filled(6, starts=[0, 3]), "values", 4),
    "ragged-nested": lambda: hold_vector(ragged(5), "values", 8),
    "flat-nested": lambda: hold_vector(
        shared(ROBE, size=20, block_len=3, signed=True), "values", 4
    ),
    "anchors-nested": lambda: hold_vector(anchored(4), "weights", 3),
    "generator-nested": lambda: hold_vector(shared(DHE, width=5, codes=8), "values", 9),
    "generator": lambda: shared(DHE, width=5, codes=8),
    "generator-open": lambda: shared(
        DHE,
        width=5,
        codes=8,
        layers=1,
        activation="relu",
        distribution="gaussian",
        open_ids=True,
    ),
    "generator-told": lambda: told(width=5, codes=8, content=4),
}


@pytest.fixture(params=EXAMPLES, scope="module")
def layout(request):
    """Every example in turn; the tests of a module read the same one."""
    made = EXAMPLES[request.param]()
    for array in made.arrays().values():
        array.flags.writeable = False
    return made


@pytest.fixture(scope="session")
def examples():
    """All examples by name, each made anew when called."""
    return EXAMPLES
