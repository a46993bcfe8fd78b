"""What every layout promises: bytes, look-up, ids, pooled look-up."""

import copy
import functools
import inspect
import json
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn.functional import embedding_bag

from survey_code import FrozenEmbedding, compress
from survey_code.embedding import decode_layout
from survey_code.layouts import (
    LAYOUTS,
    AddedLayout,
    CodebookLayout,
    DenseLayout,
    GroupedLayout,
    Layout,
    RowwiseLayout,
    rebuild,
)
from survey_code.layouts.layout import as_finite_table


def in_one(name, values):
    """As `pytest.mark.parametrize`, but all values in one test, which is named in the
    error: a test each would be ten thousand, and most of their time pytest's own.
    """

    def wrap(test):
        @functools.wraps(test)
        def run(**given):
            for value in values:
                try:
                    test(**given, **{name: value})
                except BaseException as error:
                    error.add_note(f"with {name} = {value!r}")
                    raise

        held = inspect.signature(test)
        kept = [p for p in held.parameters.values() if p.name != name]
        run.__signature__ = held.replace(parameters=kept)
        return run

    return wrap


def test_every_value_is_tried_and_named():
    tried = []

    @in_one("two", "ab")
    @in_one("one", [1, 2])
    def test(one, two):
        tried.append((one, two))
        assert (one, two) != (2, "b")

    with pytest.raises(AssertionError) as caught:
        test()
    assert tried == [(1, "a"), (2, "a"), (1, "b"), (2, "b")]
    assert caught.value.__notes__ == ["with one = 2", "with two = 'b'"]


fuzz = settings(deadline=None, max_examples=150, derandomize=True, database=None)


def test_every_layout_has_an_example(examples):
    assert {make().name for make in examples.values()} == set(LAYOUTS)


def assert_rows(layout, rows, wanted):
    """The same rows: bit by bit, or up to the rounding of products of matrices.

    A library multiplies one row by other code than many.
    """
    if '"generator"' in json.dumps(layout.blueprint()):  # or holds one
        np.testing.assert_allclose(rows, wanted, rtol=1e-4, atol=1e-6)
    else:
        np.testing.assert_array_equal(rows, wanted)


# -- bytes -------------------------------------------------------------------


def test_nbytes_is_the_sum_of_the_arrays(layout):
    assert layout.nbytes == sum(array.nbytes for array in layout.arrays().values())
    assert f"{layout.nbytes:,} bytes" in repr(layout)


# -- look-up -----------------------------------------------------------------


@in_one("ids", [3, np.int64(3), np.array(3), [0, 10], (1, 2), [], [[1, 2], [3, 4]]])
def test_lookup_keeps_the_shape_of_ids(layout, ids):
    table = decode_layout(layout)
    rows = layout.lookup(ids)
    assert rows.dtype == np.float32
    assert rows.shape == (*np.shape(ids), layout.embedding_dim)
    assert_rows(layout, rows, table[np.asarray(ids, dtype=np.int64)])


@in_one("shape", [(0,), (2, 0), (2, 3, 4)])
@in_one("kind", ["int8", "uint8", "int32", "int64", "uint64"])
def test_lookup_takes_every_integer_type(layout, shape, kind):
    ids = np.random.default_rng(0).integers(layout.num_embeddings, size=shape)
    rows = layout.lookup(ids.astype(kind))
    assert_rows(layout, rows, decode_layout(layout)[ids])


def test_lookup_takes_torch_ids_and_strided_ids(layout):
    table = decode_layout(layout)
    assert_rows(layout, layout.lookup(torch.tensor([2, 1])), table[[2, 1]])
    ids = np.arange(layout.num_embeddings)[::-2]
    assert_rows(layout, layout.lookup(ids), table[ids])


def test_rows_read_are_the_callers_own(layout):
    before = layout.lookup([1])
    layout.lookup([1])[:] = 7
    np.testing.assert_array_equal(layout.lookup([1]), before)


@in_one(
    "ids",
    [
        [-1],
        -1,
        np.array([0, -5], dtype=np.int32),
        np.array([-(2**63)]),
        np.array([2**63], dtype=np.uint64),
        np.array([2**64 - 1], dtype=np.uint64),
    ],
)
def test_ids_that_no_table_has_are_index_errors(layout, ids):
    with pytest.raises(IndexError, match="out of range"):
        layout.lookup(ids)
    with pytest.raises(IndexError, match="out of range"):
        layout.bag(np.ravel(ids), [0])


@in_one("wrong", [11, 2**31, 2**62, np.int32(11)])
def test_ids_beyond_the_table_are_index_errors_unless_open(layout, wrong):
    if layout.open_ids:
        assert np.isfinite(layout.lookup(wrong)).all()
        return
    with pytest.raises(IndexError, match=f"id {wrong} is out of range"):
        layout.lookup([0, wrong])


@in_one(
    "ids",
    [[0.0], np.zeros(0), [True], ["1"], [None], None, [1 + 0j], [[1], [2, 3]], [2**70]],
)
def test_ids_that_are_not_integers_are_value_errors(layout, ids):
    with pytest.raises(ValueError):
        layout.lookup(ids)


any_array = hnp.arrays(
    dtype=st.one_of(
        hnp.integer_dtypes(endianness="?"),
        hnp.unsigned_integer_dtypes(endianness="?"),
        hnp.floating_dtypes(),
        hnp.boolean_dtypes(),
        hnp.complex_number_dtypes(),
        hnp.datetime64_dtypes(),
        hnp.unicode_string_dtypes(max_len=3),
        hnp.byte_string_dtypes(max_len=3),
        st.just(np.dtype([("a", np.int32)])),
    ),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


@fuzz
@given(ids=any_array)
def test_any_array_of_ids_gives_its_rows_or_a_clear_error(examples_once, ids):
    for layout, table in examples_once:
        try:
            rows = layout.lookup(ids)
        except (IndexError, ValueError):
            continue
        assert ids.dtype.kind in "iu"
        if not layout.open_ids:
            assert_rows(layout, rows, table[ids.astype(np.int64)])


@pytest.fixture(scope="module")
def examples_once(examples):
    layouts = [make() for make in examples.values()]
    return [(layout, decode_layout(layout)) for layout in layouts]


# -- pooled look-up ----------------------------------------------------------

BAGS = {
    "empty bags": [0, 2, 0, 3, 0],
    "one id": [1],
    "only empty bags": [0, 0],
    "one large bag": [40],
    "bags of one": [1, 1, 1],
}


def torch_bag(table, ids, offsets, mode, weights=None):
    ids = torch.as_tensor(np.array(ids, dtype=np.int64))
    if offsets is not None:
        offsets = torch.as_tensor(np.array(offsets, dtype=np.int64))
    weights = None if weights is None else torch.as_tensor(weights)
    table = torch.from_numpy(table)
    pooled = embedding_bag(ids, table, offsets, mode=mode, per_sample_weights=weights)
    return pooled.numpy()


def close(found, wanted):
    assert found.dtype == np.float32
    # Sums of large rows that nearly cancel keep the rounding of the large ones.
    largest = max(1.0, float(np.abs(wanted).max(initial=0)))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6 * largest)


@in_one("kind", [np.int32, np.int64])
@in_one("mode", ["sum", "mean", "max"])
@in_one("lengths", BAGS.values())
def test_bag_is_torchs_embedding_bag(layout, lengths, mode, kind):
    rng = np.random.default_rng(1)
    ids = rng.integers(layout.num_embeddings, size=sum(lengths)).astype(kind)
    offsets = (np.cumsum(lengths) - lengths).astype(kind)
    table = decode_layout(layout)
    close(layout.bag(ids, offsets, mode=mode), torch_bag(table, ids, offsets, mode))
    if mode == "sum":
        weights = rng.normal(size=len(ids)).astype(np.float32)
        wanted = torch_bag(table, ids, offsets, mode, weights)
        close(layout.bag(ids, offsets, weights), wanted)
        close(layout.bag(ids, offsets, weights.astype(np.float64)), wanted)


@in_one("mode", ["sum", "mean", "max"])
@in_one("shape", [(4, 3), (1, 1), (3, 0), (0, 2)])
def test_bag_without_offsets_pools_each_row_of_ids(layout, shape, mode):
    rng = np.random.default_rng(2)
    ids = rng.integers(layout.num_embeddings, size=shape)
    found = layout.bag(ids, mode=mode)
    assert found.shape == (shape[0], layout.embedding_dim)
    if ids.size:
        close(found, torch_bag(decode_layout(layout), ids, None, mode))
    else:
        assert not found.any()
    if mode == "sum" and ids.size:
        weights = rng.normal(size=shape).astype(np.float32)
        wanted = torch_bag(decode_layout(layout), ids, None, mode, weights)
        close(layout.bag(ids, per_sample_weights=weights), wanted)


def test_bag_of_no_ids(layout):
    assert layout.bag([], []).shape == (0, layout.embedding_dim)
    assert not layout.bag([], [0, 0]).any()


def test_a_nan_weight_spoils_only_its_own_bag(layout):
    pooled = layout.bag([1, 2, 3], [0, 2], np.array([np.nan, 1, 1], np.float32))
    np.testing.assert_array_equal(
        np.isnan(pooled).all(axis=1), np.isnan(pooled).any(axis=1)
    )
    assert np.isnan(pooled[0]).all() and np.isfinite(pooled[1]).all()


@in_one(
    "arguments",
    [
        {"offsets": [0.0]},
        {"offsets": [1]},
        {"offsets": [-1]},
        {"offsets": [0, 2, 1]},
        {"offsets": [0, 4]},
        {"offsets": np.array([0, 2**64 - 1], dtype=np.uint64)},
        {"offsets": [[0]]},
        {"offsets": []},
        {"offsets": 0},
        {"offsets": ["0"]},
        {"offsets": [True]},
        {"offsets": None},
        {"offsets": [0], "per_sample_weights": [1.0, 2.0]},
        {"offsets": [0], "per_sample_weights": [[1.0, 2.0, 3.0]]},
        {"offsets": [0], "per_sample_weights": ["1", "2", "3"]},
        {"offsets": [0], "per_sample_weights": [True, True, False]},
        {"offsets": [0], "per_sample_weights": [1.0, 2.0, 3.0], "mode": "mean"},
        {"offsets": [0], "per_sample_weights": [1.0, 2.0, 3.0], "mode": "max"},
        {"offsets": [0], "mode": "median"},
        {"offsets": [0], "mode": None},
    ],
)
def test_bad_arguments_of_bag_are_value_errors(layout, arguments):
    with pytest.raises(ValueError):
        layout.bag([1, 2, 3], **arguments)


def test_bag_wants_one_axis_with_offsets_and_two_without(layout):
    with pytest.raises(ValueError, match="one axis"):
        layout.bag([[1, 2]], [0])
    with pytest.raises(ValueError, match="without offsets"):
        layout.bag([[[1]]])


@fuzz
@given(
    lengths=st.lists(st.integers(0, 5), max_size=7),
    mode=st.sampled_from(["sum", "mean", "max"]),
    weighted=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_bags_are_torchs(examples_once, lengths, mode, weighted, seed):
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *lengths[:-1]]) if lengths else np.zeros(0, np.int64)
    layout, table = examples_once[seed % len(examples_once)]
    ids = rng.integers(layout.num_embeddings, size=sum(lengths))
    weights = None
    if weighted and mode == "sum":
        weights = rng.normal(size=len(ids)).astype(np.float32)
    found = layout.bag(ids, offsets, weights, mode)
    assert found.shape == (len(lengths), layout.embedding_dim)
    if lengths:
        close(found, torch_bag(table, ids, offsets, mode, weights))


@in_one("kind", [np.float16, np.float64, torch.bfloat16])
def test_weights_of_other_types_are_those_of_float32(layout, kind):
    numbers = np.array([0.5, -2.0, 0.25])  # that all types hold
    weights = (
        torch.from_numpy(numbers).to(kind) if kind == torch.bfloat16
        else numbers.astype(kind)
    )  # fmt: skip
    np.testing.assert_array_equal(
        layout.bag([1, 2, 3], [0, 2], weights),
        layout.bag([1, 2, 3], [0, 2], numbers.astype(np.float32)),
    )


def test_tensors_come_out_where_tensors_go_in(layout):
    ids = torch.tensor([1, 2, 3])
    rows, pooled = layout.lookup(ids), layout.bag(ids, torch.tensor([0, 2]))
    assert rows.dtype == pooled.dtype == torch.float32
    np.testing.assert_array_equal(rows.numpy(), layout.lookup([1, 2, 3]))
    np.testing.assert_array_equal(pooled.numpy(), layout.bag([1, 2, 3], [0, 2]))


def test_bags_hold_no_more_than_a_few_chunks_of_rows(layout):
    """Beside what is returned, and some integers for each id."""
    rng = np.random.default_rng(0)
    for lengths in ([100] * 2000, [200_000]):
        ids = rng.integers(layout.num_embeddings, size=sum(lengths))
        offsets = np.cumsum(lengths) - lengths
        tracemalloc.start()
        pooled = layout.bag(ids, offsets)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < pooled.nbytes + 3 * ids.nbytes + 2**24


# -- numbers that cannot be --------------------------------------------------

FLOAT_MOST = np.finfo(np.float32).max


def changed(layout, name, value, place=-1):
    """The layout anew, one number of an array changed."""
    arrays = {key: array.copy() for key, array in layout.arrays().items()}
    flat = arrays[name].reshape(-1)
    flat[place] = value
    return rebuild(layout.blueprint(), arrays)


@in_one("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_named(layout, value):
    for name, array in layout.arrays().items():
        if array.dtype.kind == "f" and array.size:
            for place in (0, -1):
                with pytest.raises(ValueError, match="NaN or infinite") as error:
                    changed(layout, name, value, place)
                at = np.unravel_index(place % array.size, array.shape)
                own = name.rpartition("/")[2]
                assert f"{own}{[int(i) for i in at]}" in str(error.value)


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0x7F81])
def test_bit_patterns_of_no_finite_bfloat16_are_refused(bits):
    values = np.full((3, 4), 0x3F80, np.uint16)
    values[2, 1] = bits
    with pytest.raises(ValueError, match=r"values\[2, 1\] is NaN or infinite"):
        DenseLayout(values)


def test_a_large_table_is_looked_at_in_chunks():
    values = np.ones((2**15, 64), np.float32)
    for stored in (values, np.asfortranarray(values), values[::-1]):
        DenseLayout(stored)
        tracemalloc.start()
        DenseLayout(stored)
        assert tracemalloc.get_traced_memory()[1] < 2**21
        tracemalloc.stop()
    for order in "CF":
        values = np.ones((2**15, 64), np.float32, order)
        values[20_000, 63] = np.nan
        with pytest.raises(ValueError, match=r"values\[20000, 63\]"):
            DenseLayout(values)


@pytest.mark.parametrize("value", [FLOAT_MOST, -FLOAT_MOST])
def test_the_largest_numbers_are_kept_where_rows_are_stored(value):
    layout = DenseLayout(np.full((2, 2), value, np.float32))
    assert layout.largest == FLOAT_MOST
    assert (layout.lookup([0, 1]) == value).all()
    zeros = np.zeros((2, 2), np.float32)
    assert AddedLayout([DenseLayout(zeros), DenseLayout(zeros + 7)]).largest >= 7
    with pytest.raises(ValueError, match="can leave float32"):
        AddedLayout([layout, layout])


def test_rows_of_large_numbers_are_finite_or_refused(layout):
    """However large its numbers, a layout's rows are within its bound."""
    ids = np.arange(layout.num_embeddings)
    for name, array in layout.arrays().items():
        if array.dtype.kind != "f":
            continue
        most = np.finfo(array.dtype).max
        for factor in (1.0, -1.0, 0.4, 1e-3, 1e-19):
            arrays = layout.arrays() | {name: np.full_like(array, most * factor)}
            try:
                made = rebuild(layout.blueprint(), arrays)
            except ValueError as error:
                assert "can leave float32" in str(error)
                continue
            with np.errstate(over="raise", invalid="raise"):
                rows = made.lookup(ids)
            assert np.abs(rows).max() <= made.largest <= FLOAT_MOST
    assert np.abs(layout.lookup(ids)).max() <= layout.largest


@pytest.mark.parametrize("scale", [np.nan, np.inf, 3e38])
def test_scales_of_rows_are_finite_and_so_are_their_products(scale):
    codes = np.full((3, 4), 255, np.uint8)
    scales = np.array([1, scale, 1], np.float32)
    for bias in (0, -3e38):
        with pytest.raises(
            ValueError, match=r"finite, but those of row 1|leave float32"
        ):
            RowwiseLayout.from_codes(codes, scales, np.full(3, bias, np.float32), 8)
    # Codes that do not reach so far are no fault.
    if np.isfinite(scale):
        codes[1] = 1
        made = RowwiseLayout.from_codes(codes, scales, np.zeros(3, np.float32), 8)
        assert np.isfinite(made.lookup([0, 1, 2])).all()


# -- rows longer than what is stored -----------------------------------------


def many_books(width, depth):
    """Codewords of codewords: a row of ``width ** depth`` numbers."""
    words = np.ones((1, 1), np.float32)
    for level in range(1, depth + 1):
        codes = np.zeros((1, width), np.uint8)
        words = CodebookLayout.from_codes(
            codes, words, np.zeros((1, width), np.int32), width**level, 1
        )
    return words


def many_sums(width, depth):
    """Sums of sums: ``width ** depth`` numbers are added for one."""
    words = np.ones((1, 1), np.float32)
    for _ in range(depth):
        codes = np.zeros((1, width), np.uint8)
        words = CodebookLayout.from_codes(
            codes, words, np.zeros((1, width), np.int32), 1, 1, "sum"
        )
    return words


def zeros_of(dim):
    """Rows of zeros, of which nothing is stored."""
    return GroupedLayout([np.zeros((5, 0), np.float32)], dim)


def test_small_files_have_no_long_rows():
    assert many_books(40, 2).lookup([0]).shape == (1, 1600)
    assert zeros_of(65_536).lookup([4]).shape == (1, 65_536)
    for make in (lambda: many_books(40, 4), lambda: zeros_of(65_537)):
        with pytest.raises(ValueError, match="may have 65,536 columns"):
            make()
    wide = DenseLayout(np.ones((1, 70_000), np.float32))  # all of it stored
    assert wide.lookup([0]).shape == (1, 70_000)


def test_small_files_have_no_rows_of_much_work():
    assert many_sums(40, 3).lookup([0]).tolist() == [[64_000]]
    with pytest.raises(ValueError, match="may have 131,072 steps a row"):
        many_sums(40, 4)
    ones = DenseLayout(np.ones((1, 1), np.float32))
    assert ones.row_work == 1


# -- tables that cannot be ---------------------------------------------------

WRONG_TABLES = {
    "NaN": [[1.0, np.nan]],
    "infinite": [[np.inf]],
    "too large for float32": np.array([[1e300]]),
    "no rows": np.zeros((0, 4)),
    "no columns": np.zeros((4, 0)),
    "one axis": np.zeros(4),
    "three axes": np.zeros((2, 2, 2)),
    "a number": 1.0,
    "nothing": None,
    "text": np.array([["1", "2"]]),
    "a word": "weight",
    "bytes": np.array([[b"1"]]),
    "objects": np.array([[1.0, 2.0]], dtype=object),
    "complex": np.array([[1 + 1j]]),
    "truth values": np.array([[True]]),
    "dates": np.array([["2020-01-01"]], dtype="datetime64[D]"),
    "ragged": [[1.0], [1.0, 2.0]],
    "a set": {1.0},
    "complex tensor": torch.ones(2, 2, dtype=torch.complex64),
    "sparse tensor": torch.eye(2).to_sparse(),
    "tensor of truth values": torch.ones(2, 2, dtype=torch.bool),
}


@pytest.mark.parametrize("weight", WRONG_TABLES.values(), ids=WRONG_TABLES)
def test_what_is_not_a_finite_table_is_a_value_error(weight):
    with pytest.raises(ValueError, match="weight must be"):
        as_finite_table(weight)


@pytest.mark.parametrize(
    "weight",
    [
        [[1, 2]],
        np.array([[1, 2]], dtype=np.int64),
        np.array([[1, 2]], dtype=">f8"),
        np.asfortranarray(np.array([[1.0, 2.0]])),
        torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16),
        torch.nn.Parameter(torch.tensor([[1.0, 2.0]])),
        torch.tensor([[1.0], [2.0]]).T,
    ],
    ids=repr,
)
def test_any_table_of_numbers_is_taken(weight):
    table = as_finite_table(weight)
    assert table.dtype == np.float32 and table.flags.c_contiguous
    np.testing.assert_array_equal(table, [[1, 2]])


@fuzz
@given(
    weight=any_array,
    method=st.sampled_from(["full", "rowwise"]),
    bits=st.sampled_from([8, 4, 2, 3, 0, -1, 4.0, "4", None, True]),
)
def test_compress_gives_a_layout_or_a_value_error(weight, method, bits):
    options = {"bits": bits} if method == "rowwise" else {}
    try:
        layout = compress(weight, method, **options)
    except ValueError:
        return
    assert isinstance(layout, Layout) and weight.ndim == 2
    assert np.isfinite(decode_layout(layout)).all()


# -- copies ------------------------------------------------------------------


def test_frozen_embedding_reads_the_layout(layout):
    table = FrozenEmbedding(layout)
    ids = torch.tensor([[0, 1], [10, 3]], dtype=torch.int32)
    assert table(ids).dtype == torch.float32
    np.testing.assert_array_equal(table(ids).numpy(), layout.lookup(ids.numpy()))
    assert table.freeze() is layout
    with pytest.raises(IndexError):
        table(torch.tensor([-1]))
    with pytest.raises(ValueError):
        table(torch.tensor([0.5]))


def test_to_cpu_is_the_layout_itself_and_deepcopy_reads_the_same(layout):
    assert layout.to_cpu() is layout and not layout.on_gpu
    twin = copy.deepcopy(layout)
    np.testing.assert_array_equal(decode_layout(twin), decode_layout(layout))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is present")
def test_to_gpu_without_a_gpu_says_so(layout):
    with pytest.raises(RuntimeError, match="the GPU look-up needs"):
        layout.to_gpu()


def test_weights_may_be_views_and_may_want_gradients():
    layout = DenseLayout.from_weight(np.eye(4, dtype=np.float32))
    wide = torch.arange(8.0).requires_grad_()
    pooled = layout.bag(np.array([[0, 1, 2, 3]]), per_sample_weights=wide[None, ::2])
    assert pooled.tolist() == [[0, 2, 4, 6]]
