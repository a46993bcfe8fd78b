"""Any layout once more: its floats rounded, or shared, or one after the other."""

import itertools

import numpy as np
import pytest
from hypothesis import given, strategies as st

from survey_code import compress, load_layout, methods
from survey_code.embedding import decode_layout
from survey_code.hybrids import round_layout, share_layout
from survey_code.hybrids.nested import (
    RoundedRows,
    find_reads,
    read_counts,
    round_stretches,
)
from survey_code.layouts import (
    DenseLayout,
    FlatLayout,
    GroupedLayout,
    HashedLayout,
    RaggedLayout,
    RoutedLayout,
    RowwiseLayout,
    SparseLayout,
    TensorTrainLayout,
)
from survey_code.layouts.hashed import plain_index
from survey_code.layouts.parts import check_numbers, read_numbers, read_vector
from survey_code.layouts.rowwise import BITS
from survey_code.method import AfterTraining

ROWS, DIM = 700, 16


def draw(rows=ROWS, dim=DIM, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def prune(table, share=0.2, seed=1):
    mask = np.random.default_rng(seed).random(table.shape) < share
    return table * mask


def make_train():
    shapes = np.array([[30, 4, 1, 8, 1], [30, 4, 8, 1, 1]])
    rng = np.random.default_rng(2)
    cores = [rng.normal(size=(30, 1, 4, 8)), rng.normal(size=(30, 8, 4, 1))]
    return TensorTrainLayout([c.astype(np.float32) for c in cores], shapes, ROWS, DIM)


def make_grouped():
    tables = [draw(500, 3), draw(180, 8), draw(20, 16)]
    matrices = [draw(3, DIM, 5), draw(8, DIM, 6), None]
    return GroupedLayout.from_tables(tables, matrices, DIM)


# One of each kind that holds floats, large enough for smaller ones to be worth it.
LAYOUTS = {
    "dense": lambda: DenseLayout(draw()),
    "dense-bfloat16": lambda: DenseLayout.from_weight(draw(dim=64), "bfloat16"),
    "narrow": lambda: DenseLayout(draw(dim=3)),
    "grouped": make_grouped,
    "sparse": lambda: SparseLayout.from_dense(prune(draw())),
    "ragged": lambda: RaggedLayout.from_dense(draw(), np.arange(ROWS) % 17),
    "hashed": lambda: HashedLayout(
        draw(60), plain_index([(30, 24), (1, 36)]), ROWS, DIM, "product"
    ),
    "cerp": lambda: HashedLayout(
        SparseLayout.from_dense(prune(draw(60), 0.5)),
        plain_index([(30, 24), (1, 36)]), ROWS, DIM,
    ),
    "codebook": lambda: compress(draw(), "pq", books=4, bits=6),
    "turned": lambda: compress(draw(), "low_rank", rank=4),
    "train": make_train,
    "flat": lambda: FlatLayout(
        draw(50, 40).ravel(), np.array([3, 5, 7]), ROWS, DIM, 8
    ),
    "routed": lambda: RoutedLayout.from_ids(
        [
            DenseLayout(draw(40)),
            HashedLayout(draw(60), plain_index([(11, 60)]), ROWS, DIM),
        ],
        [np.arange(0, 400, 10)], ROWS,
    ),
}  # fmt: skip


@pytest.fixture(params=LAYOUTS, scope="module")
def layout(request):
    return LAYOUTS[request.param]()


def widen(nested, like):
    """A nested layout as `like`, whose arrays hold what is read from its parts."""
    held = {}
    for name, part in like.held().items():
        own = nested.held()[name]
        if isinstance(part, np.ndarray) and not isinstance(own, np.ndarray):
            rows = decode_layout(own)
            held[name] = rows.reshape(-1)[: part.size].reshape(part.shape)
        elif isinstance(part, np.ndarray):
            held[name] = own
        else:
            deeper = not isinstance(part, DenseLayout)
            held[name] = widen(own, part) if deeper else DenseLayout(decode_layout(own))
    return type(like).from_file(like.shape_integers(), held)


FORMS = {
    "8 bits": lambda layout: round_layout(layout, 8),
    "4 bits": lambda layout: round_layout(layout, 4),
    "shared": lambda layout: share_layout(layout, 2, 3),
    "shared, 4 bits": lambda layout: round_layout(share_layout(layout, 2, 3), 4),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_nested_layout_reads_what_its_parts_hold(layout, form):
    """The same look-up, of arrays in whose place its parts' rows are put."""
    nested = FORMS[form](layout)
    if isinstance(layout, DenseLayout):
        wanted = decode_layout(nested)
    else:
        wanted = decode_layout(widen(nested, layout))
    np.testing.assert_array_equal(decode_layout(nested), wanted)
    ids = np.array([[5, 699, 5], [0, 3, 77]])
    np.testing.assert_array_equal(nested.lookup(ids), wanted[ids])
    pooled = nested.bag(ids.ravel(), [0, 2])
    sums = [wanted[ids.ravel()[:2]].sum(0), wanted[ids.ravel()[2:]].sum(0)]
    np.testing.assert_allclose(pooled, sums, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_bytes_are_those_of_the_file_and_it_comes_back(layout, form, tmp_path):
    nested = FORMS[form](layout)
    assert nested.nbytes < layout.nbytes
    nested.save(tmp_path / "nested")
    size = (tmp_path / "nested").stat().st_size
    assert size == 8 + header_of(tmp_path / "nested") + nested.nbytes
    for mapped in (False, True):
        again = load_layout(tmp_path / "nested", mmap=mapped)
        np.testing.assert_array_equal(decode_layout(again), decode_layout(nested))
        assert again.nbytes == nested.nbytes


def header_of(path):
    return int.from_bytes(path.read_bytes()[:8], "little")


def test_the_layout_itself_is_not_changed(layout):
    before = {name: array.copy() for name, array in layout.arrays().items()}
    round_layout(layout, 8)
    share_layout(layout, bits=3)
    for name, array in layout.arrays().items():
        np.testing.assert_array_equal(array, before[name])


def test_the_same_is_made_twice(layout):
    first, second = (share_layout(layout, bits=3, seed=3) for _ in range(2))
    for one, other in zip(first.arrays().values(), second.arrays().values()):
        np.testing.assert_array_equal(one, other)


# -- rounding ------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
def test_a_dense_table_is_rounded_as_the_method_rowwise_does(bits):
    made = round_layout(DenseLayout(draw()), bits)
    wanted = compress(draw(), "rowwise", bits=bits)
    np.testing.assert_array_equal(made.rows, wanted.rows)


@given(
    rows=st.integers(1, 90), dim=st.integers(1, 20), bits=st.sampled_from(BITS),
    scale=st.floats(-4, 4), seed=st.integers(0, 99),
)  # fmt: skip
def test_no_number_moves_by_more_than_half_a_step(rows, dim, bits, scale, seed):
    table = draw(rows, dim, seed) * np.float32(10**scale)
    made = RoundedRows(bits).make(table, None)
    together = 1 if dim >= 16 else -(-64 // dim)
    starts = np.arange(0, rows, together)
    low = np.minimum.reduceat(table.min(1), starts)
    high = np.maximum.reduceat(table.max(1), starts)
    step = ((high - low) / (2**bits - 1))[np.arange(rows) // together, None]
    # Scales and biases of own rows are float16 below 8 bits; else sums round.
    half = dim >= 16 and bits < 8
    slack = (2.0**-10 if half else 1e-6) * np.abs(table).max() * 2
    error = np.abs(decode_layout(made) - table)
    assert (error <= step / 2 * 1.001 + slack).all()


def test_narrow_rows_share_a_scale_with_the_rows_beside_them():
    """By hand: two stretches of two rows; 0..3 in steps of 1, and 10..13."""
    table = np.float32([[0, 3], [1, 2], [10, 13], [12, 11], [5, 5]])
    made = round_stretches(table, 2, 2)
    np.testing.assert_array_equal(decode_layout(made), table)
    assert made.parameters.tolist() == [[1, 0], [1, 10], [0, 5]]
    assert made.starts.tolist() == [0, 2, 4]
    assert round_stretches(table[:2], 2, 2).starts is None


def test_entries_of_a_vector_are_rounded_in_runs():
    table = prune(draw())
    made = round_layout(SparseLayout.from_dense(table), 8)
    kept = made.columns.size
    assert made.values.embedding_dim == 64
    assert made.values.num_embeddings == -(-kept // 64)
    error = np.abs(decode_layout(made) - table)
    assert error.max() <= (table.max() - table.min()) / 255 / 2 * 1.001
    assert (decode_layout(made)[table == 0] == 0).all()


def test_what_all_rows_pass_through_stays():
    grouped = round_layout(make_grouped(), 4)
    np.testing.assert_array_equal(grouped.projections, make_grouped().projections)


@pytest.mark.parametrize("bits", [5, 0, 16, "8", None])
def test_other_bits_are_one_clear_error(bits):
    with pytest.raises(ValueError, match=r"bits must be one of \(8, 4, 3, 2, 1\)"):
        round_layout(DenseLayout(draw()), bits)


def test_a_layout_without_floats_has_nothing_to_round():
    for layout in (
        compress(draw(), "rowwise", bits=8),
        compress(draw(), "bccf"),
        RoutedLayout.from_ids(
            [compress(draw(2), "rowwise"), compress(draw(8), "rowwise")],
            [np.array([0, 4])], 10,
        ),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="holds integers already"):
            round_layout(layout, 4)


def test_what_would_not_be_smaller_stays():
    tiny = DenseLayout(np.float32([[1.0, 2.0]]))
    with pytest.raises(ValueError, match="too few floats"):
        round_layout(tiny, 8)
    mixed = GroupedLayout.from_tables([draw(500), draw(1, 2)], [None, draw(2, 16)], 16)
    made = round_layout(mixed, 8)
    assert isinstance(made.tables[0], RowwiseLayout)
    assert isinstance(made.tables[1], np.ndarray)


def test_what_is_no_layout_is_one_clear_error():
    with pytest.raises(ValueError, match="layout must be a Layout, got ndarray"):
        round_layout(draw(), 8)


def test_ranges_beyond_float32_are_errors():
    large = np.float32([[-3e38] * 3, [3e38] * 3] * 40)
    with pytest.raises(ValueError, match="overflows float32"):
        round_layout(DenseLayout(large), 8)


def after_training():
    """Every method that compresses a table, and its layout of one."""
    kinds = [method for method in methods() if issubclass(method.load(), AfterTraining)]
    return [method.key for method in kinds]


@pytest.mark.parametrize("key", after_training())
def test_what_methods_make_is_rounded_or_says_why_not(key):
    layout = compress(draw(300), key, counts=np.arange(300))
    try:
        made = round_layout(layout, 8)
    except ValueError as error:
        assert "takes fewer bytes" in str(error)
        kinds = {array.dtype.kind for array in layout.arrays().values()}
        assert key in ("full", "half") or "f" not in kinds or layout.name in (
            "rowwise", "binary", "levels", "turned", "codebook",
        )  # fmt: skip
        return
    assert made.nbytes < layout.nbytes
    spread = np.ptp(decode_layout(layout))
    assert np.abs(decode_layout(made) - decode_layout(layout)).max() < 0.2 * spread


# -- sharing -------------------------------------------------------------------


def test_a_dense_table_is_shared_as_the_method_pq_does():
    counts = np.arange(ROWS)
    made = share_layout(DenseLayout(draw()), width=4, bits=5, counts=counts)
    wanted = compress(draw(), "pq", books=4, bits=5, counts=counts)
    np.testing.assert_array_equal(decode_layout(made), decode_layout(wanted))


def test_parts_are_as_wide_as_divides_a_row():
    made = share_layout(make_grouped(), width=2, bits=5)
    widths = [table.width for table in made.tables[:2]]
    assert widths == [1, 2]  # rows of 3, and of 8


def test_few_rows_keep_their_numbers():
    """300 rows of 16 take 19,200 bytes, their codes and 256 codewords 18,820."""
    fields = GroupedLayout([draw(290), draw(300)], 16)
    made = share_layout(fields)
    assert isinstance(made.tables[0], np.ndarray)
    assert made.tables[1].nbytes == 18_820


def test_rows_are_rounded_first_where_that_is_asked_for():
    table = draw()
    rounded = decode_layout(compress(table, "rowwise", bits=4))
    made = share_layout(DenseLayout(table), rounded=4)
    wanted = share_layout(DenseLayout(rounded))
    np.testing.assert_array_equal(decode_layout(made), decode_layout(wanted))
    plain = share_layout(DenseLayout(table))
    assert made.nbytes == plain.nbytes
    assert (decode_layout(made) != decode_layout(plain)).any()


def test_codewords_fit_rows_that_are_read_often():
    table, counts = draw(), np.ones(ROWS, dtype=int)
    counts[:30] = 10_000
    table[:30] += 3
    errors = [
        np.abs(decode_layout(share_layout(made, bits=3, counts=own)) - table)[
            :30
        ].mean()
        for made, own in itertools.product([DenseLayout(table)], [None, counts])
    ]
    assert errors[1] < errors[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width must be"),
        ({"bits": 9}, "bits must be"),
        ({"rounded": 5}, "bits must be one of"),
        ({"seed": -1}, "seed must be"),
        ({"counts": [1, 2]}, "counts must be 700 numbers"),
        ({"counts": np.full(ROWS, -1)}, "from 0 up"),
        ({"counts": np.full(ROWS, 0.5)}, "counts must be integers"),
    ],
)
def test_other_arguments_are_one_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        share_layout(DenseLayout(draw()), **arguments)


def test_reads_of_what_a_layout_holds_add_up():
    """Each read of an id reads as many things as its row is made of."""
    reads = np.arange(1.0, ROWS + 1)
    grouped = make_grouped()
    parts = [find_reads(grouped, str(g), reads) for g in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts), reads)
    hashed = LAYOUTS["hashed"]()
    found = find_reads(hashed, "values", reads)
    assert found.sum() == 2 * reads.sum()
    assert found[24] == reads[::36].sum()  # remainder 0 by 36
    table = prune(draw())
    sparse = SparseLayout.from_dense(table)
    np.testing.assert_array_equal(
        find_reads(sparse, "values", reads), reads[np.nonzero(table)[0]]
    )
    coded = LAYOUTS["codebook"]()
    assert find_reads(coded, "codewords", reads).sum() == 4 * reads.sum()
    routed = LAYOUTS["routed"]()
    np.testing.assert_array_equal(
        find_reads(routed, "0", reads), reads[np.arange(0, 400, 10)]
    )
    assert find_reads(routed, "1", reads)[[0, 1]].tolist() == [0, 2]
    assert read_counts(sparse, np.zeros(ROWS, dtype=int)) is None


# -- vectors that layouts hold ---------------------------------------------------


def test_numbers_of_a_vector_are_read_row_by_row():
    rows = draw(4, 5)
    part = DenseLayout(rows)
    places = np.array([[0, 19], [7, 7]])
    np.testing.assert_array_equal(read_numbers(part, places), rows.ravel()[places])
    np.testing.assert_array_equal(read_vector(part, 17), rows.ravel()[:17])
    check_numbers("values", part, 17)
    for size in (15, 21):
        with pytest.raises(ValueError, match=f"values, {size} numbers, takes"):
            check_numbers("values", part, size)


def test_a_flat_vector_has_no_more_numbers_than_it_had():
    """A hash names places up to its end: 101 is prime, so that rows are of one."""
    made = FlatLayout(draw(101, 1).ravel(), np.array([3, 5, 7]), ROWS, DIM, 8)
    rounded = round_layout(made, 8)
    assert rounded.values.num_embeddings == 101
    error = np.abs(decode_layout(rounded) - decode_layout(made))
    assert 0 < error.max() < 0.02
