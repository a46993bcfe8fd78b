"""The sparse and the ragged layout: what is stored, and what it takes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from survey_code.embedding import decode_layout
from survey_code.layouts import RaggedLayout, SparseLayout, load_layout
from survey_code.layouts.ragged import ragged_bytes
from survey_code.layouts.sparse import (
    default_block,
    fill_bytes,
    most_entries,
    search_blocks,
    sparse_bytes,
)


def draw(rows, dim, share, seed=0):
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(rows, dim)).astype(np.float32)
    table[rng.random(table.shape) >= share] = 0
    return table


# -- sparse -------------------------------------------------------------------


@settings(deadline=None, max_examples=60, derandomize=True, database=None)
@given(
    rows=st.integers(1, 70),
    dim=st.sampled_from([1, 3, 16, 64, 255, 256, 257]),
    block=st.sampled_from([None, 1, 2, 16]),
    share=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_is_not_zero_comes_back(rows, dim, block, share, seed):
    table = draw(rows, dim, share, seed)
    layout = SparseLayout.from_dense(table, block_rows=block)
    np.testing.assert_array_equal(decode_layout(layout), table)
    assert len(layout.values) == np.count_nonzero(table)
    height = block or default_block(dim)
    assert layout.nbytes == sparse_bytes(
        len(layout.values), rows, dim, block_rows=height
    )
    assert layout.columns.dtype == (np.uint8 if height * dim <= 256 else np.uint16)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_one_row_a_block_is_the_usual_csr():
    """Independent: torch's compressed sparse rows."""
    table = draw(200, 16, 0.2)
    layout = SparseLayout.from_dense(table, block_rows=1)
    wanted = torch.from_numpy(table).to_sparse_csr()
    np.testing.assert_array_equal(layout.offsets, wanted.crow_indices())
    np.testing.assert_array_equal(layout.columns, wanted.col_indices())
    np.testing.assert_array_equal(layout.values, wanted.values())


@pytest.mark.parametrize("block", [1, 16])
def test_bags_are_products_with_a_sparse_matrix(block):
    """Independent: scipy's product of two sparse matrices."""
    scipy = pytest.importorskip("scipy.sparse")
    table = draw(100, 16, 0.3)
    layout = SparseLayout.from_dense(table, block_rows=block)
    rng = np.random.default_rng(1)
    ids, offsets = rng.integers(100, size=50), np.array([0, 7, 7, 30])
    weights = rng.normal(size=50).astype(np.float32)
    bags = np.repeat(np.arange(4), [7, 0, 23, 20])
    reads = scipy.csr_matrix((weights, (bags, ids)), shape=(4, 100))
    wanted = (reads @ scipy.csr_matrix(table)).toarray()
    np.testing.assert_allclose(layout.bag(ids, offsets, weights), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("dim", "block", "per_row"), [(16, 1, 4), (16, 16, 0.25), (64, 4, 1)]
)
def test_an_offset_costs_four_bytes_a_block(dim, block, per_row):
    """k entries of n rows: 5 k + 4 (n / R + 1) bytes."""
    n, k = 3200, 1000
    assert sparse_bytes(k, n, dim, block_rows=block) == 5 * k + per_row * n + 4
    assert sparse_bytes(k, n, dim, "float16", block) == 3 * k + per_row * n + 4


@pytest.mark.parametrize("format", ["float32", "float16"])
@pytest.mark.parametrize("budget", [60, 100, 1000, 10**6])
def test_the_most_entries_fill_the_budget(format, budget):
    k = most_entries(budget, 50, 16, format, 16)
    assert sparse_bytes(k, 50, 16, format, 16) <= budget
    assert k == 50 * 16 or sparse_bytes(k + 1, 50, 16, format, 16) > budget
    assert most_entries(10, 50, 16) < 0


def test_half_values_are_rounded_and_small_ones_vanish():
    table = np.array([[0.1, 1e-9], [0, 65504]], np.float32)
    layout = SparseLayout.from_dense(table, "float16")
    assert layout.values.tolist() == np.float16([0.1, 65504]).tolist()
    with pytest.raises(ValueError, match="float16 holds values up to 65504"):
        SparseLayout.from_dense(table * 2, "float16")


@settings(deadline=None, max_examples=40, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_searches_side_by_side_are_searches_one_by_one(seed):
    rng = np.random.default_rng(seed)
    borders = np.sort(rng.integers(0, 40, size=12))
    parts = [np.unique(rng.integers(256, size=n)) for n in np.diff(borders)]
    columns = np.concatenate(parts).astype(np.uint8)
    ends = np.cumsum([len(part) for part in parts])
    wanted = rng.integers(257, size=len(parts))
    low = ends - [len(part) for part in parts]
    found = search_blocks(columns, low, ends, wanted)
    one_by_one = [np.searchsorted(p, w) for p, w in zip(parts, wanted)]
    np.testing.assert_array_equal(found - low, one_by_one)


@settings(deadline=None, max_examples=60, derandomize=True, database=None)
@given(
    rows=st.integers(2, 70),
    dim=st.sampled_from([1, 3, 16, 257]),
    block=st.sampled_from([1, 2, 16]),
    groups=st.integers(1, 4),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_is_not_kept_is_its_groups_fill(rows, dim, block, groups, share, seed):
    """Kept zeros are zeros; the bytes are counted, and the file has them."""
    rng = np.random.default_rng(seed)
    table, mask = draw(rows, dim, 0.7, seed), rng.random((rows, dim)) < share
    more = rng.choice(np.arange(1, rows), min(groups, rows) - 1, replace=False)
    starts = np.concatenate([[0], np.sort(more)]).astype(np.int64)
    fills = rng.normal(size=(len(starts), dim)).astype(np.float32)
    given = starts if len(starts) > 1 else None
    layout = SparseLayout.from_mask(table, mask, block, fills, given)
    group = (np.arange(rows)[:, None] >= starts).sum(axis=1) - 1
    wanted = np.where(mask, table, fills[group])
    np.testing.assert_array_equal(decode_layout(layout), wanted)
    plain = sparse_bytes(int(mask.sum()), rows, dim, block_rows=block)
    assert layout.nbytes == plain + fill_bytes(len(starts), dim)


FILLS, STARTS = np.ones((2, 3), np.float32), np.array([0, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fills": FILLS.astype(np.float16)}, "fills must be float32 of shape"),
        ({"fills": FILLS[:, :2]}, r"of shape \(groups, 3\)"),
        ({"fills": FILLS[:0]}, "fills must be float32 of shape"),
        ({"fills": FILLS[0]}, "fills must be float32 of shape"),
        ({"fills": None}, "fills must be float32 of shape"),
        ({"starts": None}, "starts must be 2 int64 ids"),
        ({"starts": STARTS.astype(np.int32)}, "starts must be 2 int64 ids"),
        ({"starts": STARTS + 1}, "starts must be 2 int64 ids that rise from 0"),
        ({"starts": STARTS * 0}, "starts must be 2 int64 ids that rise from 0"),
        ({"starts": STARTS * 2}, "starts must be 2 int64 ids that rise from 0"),
        ({"fills": FILLS[:1], "starts": STARTS[:1]}, "none for a single group"),
    ],
)
def test_fills_that_contradict_the_table_are_errors(changes, message):
    arrays = {"fills": FILLS, "starts": STARTS, **changes}
    with pytest.raises(ValueError, match=message):
        SparseLayout(VALUES, COLUMNS, OFFSETS, 2, 3, **arrays)


VALUES = np.array([1, 2, 3], np.float32)
COLUMNS = np.array([1, 0, 2], np.uint8)
OFFSETS = np.array([0, 1, 3], np.uint32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": VALUES.astype(np.float64)}, "values must be float32 or"),
        ({"values": VALUES[:, None]}, "values must be float32 or"),
        ({"values": VALUES[:2]}, "values must be .* of shape"),
        ({"columns": COLUMNS[:2]}, "of shape .2,., or a layout"),
        ({"columns": COLUMNS[:, None]}, "columns must be uint8 of shape"),
        ({"columns": COLUMNS.astype(np.int64)}, "columns must be uint8"),
        ({"columns": COLUMNS + np.uint8(1)}, "columns must rise"),
        ({"columns": np.array([1, 2, 0], np.uint8)}, "columns must rise"),
        ({"columns": np.array([1, 2, 2], np.uint8)}, "columns must rise"),
        ({"offsets": OFFSETS.astype(np.int32)}, "offsets must be 3 numbers"),
        ({"offsets": OFFSETS[:2]}, "offsets must be 3 numbers"),
        ({"offsets": OFFSETS[[0, 2, 1]]}, "offsets must be 3 numbers"),
        ({"offsets": OFFSETS + np.uint32(1)}, "offsets must be 3 numbers"),
        ({"block_rows": 0}, "block_rows must be an integer from 1"),
        ({"block_rows": 2}, "offsets must be 2 numbers"),
        ({"block_rows": 30_000}, "at most 65,536 entries"),
    ],
)
def test_sparse_arrays_that_contradict_each_other_are_errors(changes, message):
    arrays = {"values": VALUES, "columns": COLUMNS, "offsets": OFFSETS, **changes}
    with pytest.raises(ValueError, match=message):
        SparseLayout(num_embeddings=2, embedding_dim=3, **arrays)


def test_entries_beyond_the_last_row_are_errors():
    """Three rows in blocks of two: the last block has one row."""
    offsets, columns = np.array([0, 0, 1], np.uint32), np.array([3], np.uint8)
    with pytest.raises(ValueError, match="lie in the table"):
        SparseLayout(VALUES[:1], columns, offsets, 3, 3, 2)


# -- ragged -------------------------------------------------------------------


@settings(deadline=None, max_examples=40, derandomize=True, database=None)
@given(
    rows=st.integers(1, 100),
    dim=st.sampled_from([1, 3, 16, 255, 256]),
    half=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_prefixes_come_back_and_the_rest_is_zero(rows, dim, half, seed):
    """Invariant 50: row i has at most lengths[i] entries, the first ones."""
    rng = np.random.default_rng(seed)
    table, lengths = draw(rows, dim, 1.0, seed), rng.integers(dim + 1, size=rows)
    format = "float16" if half else "float32"
    layout = RaggedLayout.from_dense(table, lengths, format)
    wanted = table.astype(format) * (np.arange(dim) < lengths[:, None])
    np.testing.assert_array_equal(decode_layout(layout), wanted)
    assert layout.nbytes == ragged_bytes(lengths.sum(), rows, dim, format)


def test_files_of_both_read_alike(tmp_path):
    table = draw(70, 16, 0.3)
    for layout in (
        SparseLayout.from_dense(table),
        RaggedLayout.from_dense(table, np.arange(70) % 17),
    ):
        layout.save(tmp_path / "table")
        twin = load_layout(tmp_path / "table")
        np.testing.assert_array_equal(decode_layout(twin), decode_layout(layout))
        assert twin.nbytes == layout.nbytes


def test_a_row_costs_its_entries_one_byte_and_an_eighth():
    """4 sum d_i + n + 4 ceil(n / 32) bytes."""
    assert ragged_bytes(1000, 3200, 16) == 4000 + 1.125 * 3200
    assert ragged_bytes(1000, 3200, 256) == 4000 + 2.125 * 3200


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([1, 2], "lengths must be 3 integers"),
        ([1.0, 2, 3], "lengths must be 3 integers"),
        ([-1, 2, 3], "from 0 to 4"),
        ([1, 2, 5], "from 0 to 4"),
    ],
)
def test_wrong_lengths_are_errors(lengths, message):
    with pytest.raises(ValueError, match=message):
        RaggedLayout.from_dense(np.ones((3, 4)), lengths)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": VALUES[:2]}, r"values must be .* of shape \(3,\)"),
        ({"values": VALUES.astype(np.int32)}, "values must be float32 or"),
        ({"lengths": np.array([1, 2], np.int64)}, "lengths must be uint8"),
        ({"lengths": np.array([0, 5], np.uint8)}, "each up to 4"),
        ({"starts": np.array([1], np.uint32)}, "starts must be uint32"),
        ({"starts": np.array([0], np.int32)}, "starts must be uint32"),
        ({"starts": np.array([0, 0], np.uint32)}, "starts must be uint32"),
    ],
)
def test_ragged_arrays_that_contradict_each_other_are_errors(changes, message):
    arrays = {
        "values": VALUES,
        "lengths": np.array([1, 2], np.uint8),
        "starts": np.array([0], np.uint32),
        **changes,
    }
    with pytest.raises(ValueError, match=message):
        RaggedLayout(embedding_dim=4, **arrays)
