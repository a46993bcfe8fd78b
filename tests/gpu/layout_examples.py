"""A layout of every kind, small, with odd sizes among them."""

import dataclasses

import numpy as np
from nestings import draw_levels, draw_nesting, place_ids

from survey_code import TableSpec, compress
from survey_code.layouts import (
    AddedLayout,
    DenseLayout,
    GroupedLayout,
    PackedLayout,
    ProbedLayout,
    RaggedLayout,
    RoutedLayout,
    RowwiseLayout,
    SparseLayout,
    TensorTrainLayout,
    TurnedLayout,
)
from survey_code.layouts.routed import keep_apart
from survey_code.layouts.tensor_train import core_shapes
from survey_code.low_precision.quantization import LSQ, MixedPrecisionCache
from survey_code.mixed_dimension.architecture_search import AutoSrh, AutoSrhOptions
from survey_code.mixed_dimension.grouped import FieldDimensions
from survey_code.mixed_dimension.rule_based import PopularityBlocks
from survey_code.weight_sharing.decomposition import ANT, STTD, TTRec
from survey_code.weight_sharing.hashing import (
    DHE,
    ROBE,
    BloomEmbeddings,
    DoubleHashing,
    HashEmbeddings,
    HashingTrick,
    MEmCom,
    QuotientRemainder,
    SemanticIDs,
    UnifiedEmbedding,
)
from survey_code.weight_sharing.vector_quantization import CCE, MGQE, LightRec

ROWS = 1000
SPEC = TableSpec.of_shape(ROWS, 12)
KNOWN = TableSpec.of_table(ROWS, 12, np.arange(ROWS))  # how often ids occur
FIELDS = TableSpec(ROWS, 11, np.array([0, 1, 400, ROWS]), np.zeros(ROWS, np.int64))
WEIGHT = np.random.default_rng(0).normal(size=(ROWS, 12)).astype(np.float32)
CONTENT = TableSpec(
    ROWS, 12, np.array([0, 1, 400, ROWS]), np.zeros(ROWS, np.int64), content=WEIGHT
)
CONTENT_ONCE = dataclasses.replace(CONTENT, field_starts=np.array([0, ROWS]))


def long_train(steps):
    """A train of more cores than a kernel multiplies; with steps, also a longer one."""
    cores = [(7, 2, 1, 4, 1), (5, 2, 4, 4, steps), (6, 1, 4, 2, 1), (5, 3, 2, 1, 1)]
    if steps > 1:
        cores[2:3] = [(3, 1, 4, 2, 1), (2, 1, 2, 2, 1)]
    shapes = np.array(cores, dtype=np.int64)
    rng = np.random.default_rng(7)
    values = [
        rng.normal(size=shape).astype(np.float32) for shape in core_shapes(shapes)
    ]
    return TensorTrainLayout(values, shapes, ROWS, 12)


def turn_codes(layout):
    """A routed layout whose last part is turned, but not the rows beside it."""
    rng = np.random.default_rng(6)
    basis, _ = np.linalg.qr(rng.normal(size=2 * [layout.embedding_dim]))
    own, codes = layout.parts
    turned = TurnedLayout(codes, basis.astype(np.float32))
    return RoutedLayout.from_ids([own, turned], layout.part_ids(), ROWS)


def fill_gaps(dim, block, starts=None, format=np.float32):
    """Entries of 1 in 5 places, and fills for the others."""
    mask = np.random.default_rng(4).random((ROWS, dim)) < 0.2
    fills = WEIGHT[-1 if starts is None else -len(starts) :, :dim]
    starts = None if starts is None else np.array(starts)
    table = WEIGHT[:, :dim].astype(format)
    return SparseLayout.from_mask(table, mask, block, fills, starts)


def pack_integers(dim, bits):
    """Random integers, each of so many bits."""
    drawn = np.random.default_rng(9).integers(2**bits, size=(ROWS, dim))
    return PackedLayout.from_integers(drawn, bits)


def centre_rows(dim, bits, shared=False):
    """Random codes with a scale and no bias."""
    rng = np.random.default_rng(dim)
    codes = rng.integers(2**bits, size=(ROWS, dim)).astype(np.uint8)
    if shared:
        scale = np.array([0.3], dtype=np.float32)
        return RowwiseLayout.from_groups(codes, scale, None, bits)
    scale = rng.normal(size=ROWS).astype(np.float32)
    return RowwiseLayout.from_codes(codes, scale, None, bits)


def draw_rounded(dim, bits, starts=None):
    """Random codes, each with a scale and a bias of its row or of its group's."""
    rng = np.random.default_rng(dim)
    codes = rng.integers(2**bits, size=(ROWS, dim)).astype(np.uint8)
    count = ROWS if starts is None else len(starts)
    scale, bias = rng.normal(size=(2, count)).astype(np.float32)
    if starts is None:
        return RowwiseLayout.from_codes(codes, scale, bias, bits)
    own = np.array(starts) if len(starts) > 1 else None
    return RowwiseLayout.from_groups(codes, scale, bias, bits, own)


def probe(slots, window, kind=np.int32, default=True, **options):
    """Ids in slots, those of whose window is full left out."""
    rng = np.random.default_rng(slots)
    ids = rng.permutation(ROWS)
    if options.get("open_ids"):
        ids[::2] += 2**62
    identities, numbers = place_ids(rng, ids, slots, window, kind)
    values = rng.normal(size=(slots + default, 12)).astype(np.float32)
    return ProbedLayout(identities, values, numbers, ROWS, window, **options)


def name_levels(dim, bits, scaling="none", block=32):
    """Random codes and levels."""
    rng = np.random.default_rng(bits)
    return draw_levels(rng, ROWS, dim, bits, scaling, block)


def round_rows(part, bits):
    """An array's rows in few bits."""
    return compress(part.reshape(len(part), -1), "rowwise", bits=bits)


def with_rows(name, attribute, bits=None, kept=None):
    """An example, with a layout where it holds rows."""
    layout = EXAMPLES[name]()
    rows = getattr(layout, attribute)
    if kept is not None:
        mask = np.random.default_rng(8).random(rows.shape) < kept
        setattr(layout, attribute, SparseLayout.from_dense(rows * mask))
    else:
        setattr(layout, attribute, round_rows(rows, bits))
    layout.validate()
    return layout


EXAMPLES = {
    "float32": lambda: DenseLayout.from_weight(WEIGHT),
    "float16": lambda: DenseLayout.from_weight(WEIGHT, "float16"),
    "bfloat16": lambda: DenseLayout.from_weight(WEIGHT, "bfloat16"),
    "8 bits": lambda: compress(WEIGHT, "rowwise", bits=8),
    "4 bits, odd": lambda: compress(WEIGHT[:, :11], "rowwise", bits=4),
    "2 bits, odd": lambda: compress(WEIGHT[:, :11], "rowwise", bits=2),
    "3 bits": lambda: draw_rounded(12, 3),
    "3 bits, odd": lambda: draw_rounded(11, 3),
    "3 bits, wide": lambda: draw_rounded(84, 3),
    "1 bit, odd": lambda: draw_rounded(11, 1),
    "8 bits, per table": lambda: compress(WEIGHT, "rowwise", per="table"),
    "8 bits, centred": lambda: centre_rows(12, 8),
    "8 bits, centred, odd": lambda: centre_rows(11, 8),
    "4 bits, centred": lambda: centre_rows(12, 4),
    "4 bits, centred, odd": lambda: centre_rows(9, 4),
    "2 bits, centred, odd": lambda: centre_rows(11, 2),
    "3 bits, centred": lambda: centre_rows(10, 3),
    "3 bits, centred, odd": lambda: centre_rows(9, 3),
    "1 bit, centred": lambda: centre_rows(12, 1),
    "3 bits, centred, per table": lambda: centre_rows(11, 3, shared=True),
    "3 bits, per field": lambda: draw_rounded(6, 3, starts=[0, 1, 400]),
    "1 bit, per table": lambda: draw_rounded(7, 1, starts=[0]),
    "4 bits, centred, per table": lambda: centre_rows(11, 4, shared=True),
    "4 bits, per field": lambda: LSQ.make(FIELDS, bits=4, per="field").freeze(),
    **{
        f"levels, {bits} bits, {scaling}": lambda bits=bits, scaling=scaling: (
            name_levels(12, bits, scaling, block=4)
        )
        for bits, scaling in zip(range(1, 9), 3 * ("row", "none", "block"))
    },
    "levels, 3 bits, odd": lambda: name_levels(11, 3, "row"),
    "levels, 7 bits, two at once": lambda: name_levels(10, 7, "row"),
    "levels, whole sectors": lambda: name_levels(64, 4),
    "levels, long": lambda: name_levels(100, 5, "block"),
    "levels, odd blocks": lambda: name_levels(12, 4, "block", block=5),
    "levels, turned": lambda: TurnedLayout(
        name_levels(16, 2, "row"), signs=np.array([[0x93, 0x0F]], np.uint8)
    ),
    "levels, turned, apart": lambda: keep_apart(
        ROWS,
        np.arange(0, 90, 3),
        np.tile(WEIGHT[:30], 2)[:, :16],
        TurnedLayout(
            name_levels(16, 3, "row"),
            signs=np.array([[0x31, 0xA0], [0x0B, 0x7C]], np.uint8),
        ),
    ),
    "tiered": lambda: MixedPrecisionCache.make(SPEC, slots=64, bits=4).freeze(),
    "binary": lambda: compress(WEIGHT, "bccf"),
    "binary, row scales": lambda: compress(WEIGHT[:, :11], "bccf", scale="row"),
    "binary, magnitudes": lambda: compress(WEIGHT, "bccf", rule="pph"),
    "grouped, ranges": lambda: FieldDimensions(FIELDS, widths=[11, 3, 1]).freeze(),
    "grouped, remap": lambda: PopularityBlocks(
        SPEC, sizes=[100, 400, 500], widths=[12, 5, 0]
    ).freeze(),
    "grouped, columns": lambda: AutoSrh(
        SPEC,
        AutoSrhOptions(
            assignment=np.arange(ROWS) % 3,
            kept=np.random.default_rng(5).random((3, 12)) < 0.4,
        ),
    ).freeze(),
    "semi-tensor train": lambda: STTD.make(SPEC, rank=4, step=2).freeze(),
    "low rank": lambda: compress(WEIGHT, "low_rank", rank=3),
    "tensor train": lambda: TTRec.make(SPEC, rank=4).freeze(),
    "tensor train, four cores": lambda: long_train(steps=1),
    "semi-tensor train, five cores": lambda: long_train(steps=2),
    "tensor train, cached": lambda: compress(
        WEIGHT, "tt_rec", counts=np.arange(ROWS), rank=4, slots=50
    ),
    "anchors": lambda: ANT.make(SPEC, anchors=9, entries=2000).freeze(),
    "codes": lambda: compress(WEIGHT, "pq", books=4, bits=5),
    "codes, half": lambda: compress(WEIGHT, "pq", books=6, bits=3, half=True),
    "codes, turned": lambda: compress(WEIGHT, "pq", books=4, bits=5, rotate=True),
    "codes and rows, turned": lambda: turn_codes(EXAMPLES["codes and rows"]()),
    "codes and rows": lambda: compress(
        WEIGHT,
        "clustering",
        counts=np.arange(ROWS),
        field_starts=[0, 300, ROWS],
        clusters=50,
        heads=70,
    ),
    "codes, two lengths": lambda: MGQE.make(
        SPEC, books=3, bits=6, tail_bits=4
    ).freeze(),
    "added codes": lambda: LightRec.make(SPEC, books=3, bits=5).freeze(),
    "codes and helpers": lambda: CCE.make(SPEC, books=2, bits=5).freeze(),
    "ragged": lambda: RaggedLayout.from_dense(WEIGHT, np.arange(ROWS) % 13),
    "ragged, half": lambda: RaggedLayout.from_dense(
        WEIGHT[:, :7], np.arange(ROWS) % 8, "float16"
    ),
    "sparse": lambda: SparseLayout.from_dense(WEIGHT * (WEIGHT > 0.8), block_rows=1),
    "sparse, blocks": lambda: SparseLayout.from_dense(
        WEIGHT * (WEIGHT > 0.8), "float16", block_rows=16
    ),
    "sparse, fills": lambda: fill_gaps(12, block=16),
    "sparse, fills of groups": lambda: fill_gaps(11, 1, [0, 7, 999], np.float16),
    "signed": lambda: HashingTrick.make(SPEC, rows=90, signed=True).freeze(),
    "open": lambda: HashingTrick.make(SPEC, rows=90, open_ids=True).freeze(),
    **{
        combine: lambda combine=combine: QuotientRemainder.make(
            SPEC, modulus=30, combine=combine
        ).freeze()
        for combine in ("sum", "product", "concat")
    },
    "path": lambda: QuotientRemainder.make(SPEC, modulus=30, combine="path").freeze(),
    "semantic": lambda: SemanticIDs.make(CONTENT, rows=60).freeze(),
    "semantic, a table each": lambda: SemanticIDs.make(
        CONTENT, rows=60, levels=2, bits=5, tables="each", grams="levels"
    ).freeze(),
    "semantic, side by side": lambda: SemanticIDs.make(
        CONTENT, rows=60, levels=4, combine="concat"
    ).freeze(),
    "semantic, one field": lambda: SemanticIDs.make(
        CONTENT_ONCE, rows=60, grams="whole"
    ).freeze(),
    "unified": lambda: UnifiedEmbedding.make(SPEC, rows=90, reads=4).freeze(),
    "one table": lambda: BloomEmbeddings.make(SPEC, rows=40).freeze(),
    "six hashes": lambda: BloomEmbeddings.make(SPEC, rows=40, hashes=6).freeze(),
    "own rows": lambda: DoubleHashing.make(KNOWN, rows=40, frequent=60).freeze(),
    "weights": lambda: HashEmbeddings.make(SPEC, rows=40, entries=300).freeze(),
    "weight and bias": lambda: MEmCom.make(SPEC, rows=40, bias=True).freeze(),
    "flat": lambda: ROBE.make(SPEC, size=300, signed=True).freeze(),
    "flat, entry by entry": lambda: ROBE.make(SPEC, size=300, block_len=1).freeze(),
    # Arrays with nothing in them: what a kernel must then not read.
    "codes, rows alone": lambda: compress(
        WEIGHT, "clustering", counts=np.arange(ROWS), clusters=5, heads=ROWS
    ),
    "ragged, nothing": lambda: RaggedLayout.from_dense(WEIGHT, np.zeros(ROWS, int)),
    "sparse, nothing": lambda: SparseLayout.from_dense(0 * WEIGHT, block_rows=16),
    "anchors, nothing": lambda: ANT.make(SPEC, anchors=9, entries=0).freeze(),
    "grouped, nothing": lambda: PopularityBlocks(
        SPEC, sizes=[100, 900], widths=[0, 0]
    ).freeze(),
    "grouped, one group with numbers": lambda: FieldDimensions(
        FIELDS, widths=[0, 3, 0]
    ).freeze(),
    "own rows, all": lambda: DoubleHashing.make(KNOWN, rows=40, frequent=ROWS).freeze(),
    "own rows, none": lambda: DoubleHashing.make(SPEC, rows=40, frequent=0).freeze(),
    "packed": lambda: pack_integers(12, 5),
    "packed, 16 bits, odd": lambda: pack_integers(11, 16),
    "generator": lambda: DHE.make(SPEC, width=20, codes=24).freeze(),
    "generator, normal": lambda: DHE.make(
        SPEC, width=20, codes=24, distribution="gaussian"
    ).freeze(),
    "generator, content": lambda: DHE.make(
        CONTENT, width=20, codes=24, layers=3, normalisation="batch", content=4
    ).freeze(),
    "probed": lambda: probe(150, 8),
    "probed, zeros": lambda: probe(151, 3, default=False),
    "probed, open": lambda: probe(97, 5, np.int64, open_ids=True),
    # Layouts within layouts.
    "probed, int8": lambda: with_rows("probed", "values", bits=8),
    "int8 codewords": lambda: with_rows("codes", "codewords", bits=8),
    "int4 hash table": lambda: with_rows("concat", "values", bits=4),
    "sparse hash table": lambda: with_rows("six hashes", "values", kept=0.3),
    "int8 weights": lambda: with_rows("weights", "weights", bits=8),
    "int4 cores": lambda: TensorTrainLayout(
        [round_rows(core, 4) for core in EXAMPLES["tensor train"]().cores],
        EXAMPLES["tensor train"]().shapes,
        ROWS,
        12,
    ),
    "int8 groups": lambda: GroupedLayout.from_tables(
        [round_rows(table, 8) for table in EXAMPLES["grouped, ranges"]().tables],
        EXAMPLES["grouped, ranges"]().matrices(),
        11,
    ),
    "groups of two kinds": lambda: QuotientRemainder.make(
        FIELDS, fields="apart", threshold=50, field_moduli=[0, 20, 30]
    ).freeze(),
    "groups of four kinds": lambda: GroupedLayout.from_tables(
        [
            name_levels(12, 3, "row"),
            WEIGHT[:200],
            np.zeros((150, 0), np.float32),
            BloomEmbeddings.make(SPEC, rows=40).freeze(),
            compress(WEIGHT[:50], "rowwise", bits=4),
        ],
        [None] * 5,
        12,
        np.random.default_rng(8).permutation(
            np.repeat(np.arange(5), [ROWS, 200, 150, ROWS, 50])
        ),
    ),
    "int8 anchors": lambda: with_rows("anchors", "anchors", bits=8),
    "three precisions": lambda: RoutedLayout.from_ids(
        [
            DenseLayout(WEIGHT[:20]),
            compress(WEIGHT[20:200], "rowwise", bits=8),
            compress(WEIGHT[200:], "rowwise", bits=4),
        ],
        [np.arange(5, 105, 5), np.arange(110, 290)],
        ROWS,
    ),
    "open, own rows": lambda: keep_apart(
        ROWS, np.arange(0, 90, 3), WEIGHT[:30], EXAMPLES["open"]()
    ),
    "sum of three": lambda: AddedLayout(
        [EXAMPLES[name]() for name in ("codes", "8 bits", "float16")]
    ),
    **{
        f"nesting {seed}": lambda seed=seed: draw_nesting(seed)
        for seed in range(100, 125)
    },
}
