"""The grouped layout: short rows, projections, and who belongs to which group."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from survey_code import compress
from survey_code.bits import count_bits
from survey_code.embedding import decode_layout
from survey_code.layouts import DenseLayout, GroupedLayout, load_layout
from survey_code.layouts.grouped import (
    BLOCK_IDS,
    grouped_bytes,
    pack_assignment,
    remap_bytes,
)

DIM = 6


def build(rows, widths, assignment=None, pad=False, columns=None):
    rng = np.random.default_rng(0)
    tables = [rng.normal(size=size).astype(np.float32) for size in zip(rows, widths)]
    matrices = [
        rng.normal(size=(w, DIM)).astype(np.float32)
        if 0 < w < DIM and not pad
        else None
        for w in widths
    ]
    layout = GroupedLayout.from_tables(tables, matrices, DIM, assignment, columns)
    return layout, tables, matrices


def assign(n, groups, seed=0):
    return np.random.default_rng(seed).integers(groups, size=n)


# -- rows ---------------------------------------------------------------------


def test_a_row_is_its_short_row_times_the_groups_projection():
    """e_i = e'_i P_g, P_g the identity where the widths are equal."""
    assignment = assign(2000, 4)
    widths = [6, 3, 1, 0]
    rows = np.bincount(assignment)
    layout, tables, matrices = build(rows, widths, assignment)
    for g in range(4):
        ids = np.flatnonzero(assignment == g)
        wanted = np.zeros((len(ids), DIM))
        if widths[g]:
            matrix = np.eye(DIM) if matrices[g] is None else matrices[g]
            wanted = tables[g] @ matrix
        np.testing.assert_allclose(layout.lookup(ids), wanted, rtol=1e-4, atol=1e-5)
        assert np.linalg.matrix_rank(layout.lookup(ids)) == widths[g]


def test_ranges_of_ids_need_no_remap():
    rows, widths = [3, 700, 20], [6, 1, 4]
    layout, tables, matrices = build(rows, widths, np.repeat([0, 1, 2], rows))
    assert set(layout.arrays()) == {"0", "1", "2", "groups", "projections"}
    np.testing.assert_array_equal(layout.lookup([0, 1, 2]), tables[0])
    wanted = tables[2] @ matrices[2]
    found = layout.lookup(np.arange(703, 723))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_padding_fills_up_with_zeros_and_columns_say_where():
    layout, tables, _ = build([2, 3], [6, 2], pad=True)
    np.testing.assert_array_equal(layout.lookup([2, 3, 4])[:, :2], tables[1])
    assert not layout.lookup([2, 3, 4])[:, 2:].any()
    columns = [np.arange(6), np.array([5, 1])]
    layout, tables, _ = build([2, 3], [6, 2], pad=True, columns=columns)
    np.testing.assert_array_equal(layout.lookup([2, 3, 4])[:, [5, 1]], tables[1])
    assert not layout.lookup([2, 3, 4])[:, [0, 2, 3, 4]].any()


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("widths", [[6, 2, 1], [6, 6, 0], [4, 4, 4], [0, 0, 1]])
@pytest.mark.parametrize("ranges", [False, True])
def test_bytes_are_known_beforehand(pad, widths, ranges, tmp_path):
    assignment = assign(1500, 3)
    rows = np.bincount(assignment)
    if ranges:
        assignment = np.repeat([0, 1, 2], rows)
    layout, _, _ = build(rows, widths, assignment, pad)
    assert layout.nbytes == grouped_bytes(rows, widths, DIM, ranges, pad)
    layout.save(tmp_path / "table")
    twin = load_layout(tmp_path / "table")
    np.testing.assert_array_equal(decode_layout(twin), decode_layout(layout))


# -- the remap ----------------------------------------------------------------


@settings(deadline=None, max_examples=60, derandomize=True, database=None)
@given(
    n=st.sampled_from([1, 2, 63, 64, 65, 511, 512, 513, 1024, 1500]),
    groups=st.sampled_from([2, 3, 4, 5, 8, 9, 200, 256]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_remap_is_a_bijection_to_groups_and_rows(n, groups, seed):
    """Invariant 60: every place of every group belongs to one id."""
    assignment = assign(n, groups, seed)
    counts = np.bincount(assignment, minlength=groups)
    layout, _, _ = build(counts, [DIM] * groups, assignment)
    group, row = layout.locate(np.arange(n))
    np.testing.assert_array_equal(group, assignment)
    np.testing.assert_array_equal(layout.read_assignment(), assignment)
    for g in range(groups):  # in the order of the ids
        np.testing.assert_array_equal(row[assignment == g], np.arange(counts[g]))


def test_the_remap_takes_bits_not_numbers():
    """ceil(log2 G) bits an id and 4 G bytes for every 512 ids."""
    n, groups = 100 * BLOCK_IDS, 4
    planes, before = pack_assignment(assign(n, groups), groups)
    assert planes.nbytes + before.nbytes == remap_bytes(n, groups)
    assert planes.nbytes == n * 2 // 8 and before.nbytes == n * 4 * groups // 512
    assert remap_bytes(n, groups) < 0.3 * n
    assert [count_bits(g) for g in (1, 2, 3, 4, 5, 256)] == [1, 1, 2, 2, 3, 8]


# -- pooled look-up -----------------------------------------------------------


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_bag_is_pooled_before_it_is_projected(mode, monkeypatch):
    """sum_i w_i (e'_i P) = (sum_i w_i e'_i) P: one projection per bag and group."""
    assignment = assign(1000, 3)
    layout, _, _ = build(np.bincount(assignment), [6, 3, 1], assignment)
    ids = np.random.default_rng(1).integers(1000, size=300)
    offsets = np.array([0, 10, 10, 290])
    projected = []
    widen = GroupedLayout._widen
    monkeypatch.setattr(
        GroupedLayout,
        "_widen",
        lambda self, short, *how: (
            projected.append(len(short)) or widen(self, short, *how)
        ),
    )
    found = layout.bag(ids, offsets, mode=mode)
    assert projected == [4, 4, 4] if mode != "max" else sum(projected) == 300
    rows = layout.lookup(ids)
    for b, (start, stop) in enumerate(zip(offsets, [10, 10, 290, 300])):
        wanted = np.zeros(DIM)
        if stop > start:
            wanted = getattr(rows[start:stop], mode)(axis=0)
        np.testing.assert_allclose(found[b], wanted, rtol=1e-4, atol=1e-5)


def test_scores_are_inner_products_with_the_rows():
    """(h P^T) W^T = h (W P)^T, group by group."""
    queries = np.random.default_rng(2).normal(size=(5, DIM)).astype(np.float32)
    assignment = assign(1000, 3)
    rows = np.bincount(assignment)
    for pad in (False, True):
        layout, _, _ = build(rows, [6, 3, 0], assignment, pad)
        wanted = queries @ decode_layout(layout).T
        np.testing.assert_allclose(layout.scores(queries), wanted, atol=1e-4)
    with pytest.raises(ValueError, match=r"queries must be vectors of shape \(m, 6\)"):
        layout.scores(queries[:, :5])


# -- what cannot be -----------------------------------------------------------

TABLES = [np.zeros((2, 6), np.float32), np.zeros((3, 2), np.float32)]
GROUPS = np.array([[2, 6], [3, 2]], np.int32)
WIDE = np.array([[2, 7], [3, 2]], np.int32)
FEWER = np.array([[2, 6], [2, 2]], np.int32)
PROJECTION = np.zeros(12, np.float32)
COLUMNS = np.arange(8, dtype=np.uint16) % 6
PLANES, BEFORE = pack_assignment(np.array([0, 1, 1, 0, 1]), 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"1": TABLES[1][:2]}, "groups must be the tables' sizes"),
        ({"1": TABLES[1][:, :, None]}, "table 1 must be float32"),
        ({"1": TABLES[1].astype(np.float64)}, "table 1 must be float32"),
        ({"1": None}, "groups must be int32"),
        ({"0": None}, "lacks one of its parts"),
        ({"0": None, "1": None}, "needs a group"),
        ({"2": TABLES[1][:0], "groups": np.array([[2, 6], [3, 2], [0, 2]])}, "int32"),
        ({"groups": None}, "groups must be int32"),
        ({"groups": GROUPS.astype(np.int64)}, "groups must be int32"),
        ({"groups": GROUPS[:0]}, "groups must be int32"),
        ({"groups": -GROUPS}, "groups must be the tables' sizes"),
        ({"groups": np.array([[2, 7], [3, 2]], np.int32)}, "the tables' sizes"),
        ({"0": np.zeros((2, 7), np.float32), "groups": WIDE}, "7 wide"),
        ({"1": TABLES[1][:2], "groups": FEWER}, "hold 5 rows together"),
        ({"projections": None}, "need projections or columns"),
        ({"projections": PROJECTION[:6]}, "projections must be float32"),
        ({"columns": COLUMNS}, "exclude each other"),
        ({"projections": None, "columns": COLUMNS[:7]}, "columns must be uint16"),
        ({"projections": None, "columns": COLUMNS * 0}, "different columns"),
        ({"projections": None, "columns": COLUMNS + np.uint16(2)}, "different columns"),
        ({"planes": PLANES}, "belong together"),
        ({"planes": PLANES[:, :0], "before": BEFORE}, "planes must be uint64"),
        ({"planes": PLANES, "before": BEFORE[:, :1]}, "before must be uint32"),
        ({"planes": ~PLANES, "before": BEFORE}, "do not fit"),
        ({"planes": PLANES, "before": BEFORE + np.uint32(1)}, "do not fit"),
    ],
)
def test_arrays_that_contradict_each_other_are_value_errors(changes, message):
    held = {"0": TABLES[0], "1": TABLES[1], "groups": GROUPS, "projections": PROJECTION}
    shape = {"num_embeddings": 5, "embedding_dim": DIM}
    assert GroupedLayout.from_file(shape, held).nbytes == 4 * 18 + 4 * 4 + 4 * 12
    held = {k: array for k, array in {**held, **changes}.items() if array is not None}
    with pytest.raises(ValueError, match=message):
        GroupedLayout.from_file(shape, held)


@pytest.mark.parametrize(
    ("tables", "projections", "message"),
    [
        ([], None, "needs a group|at least one row"),
        ([TABLES[0], TABLES[1]], None, "need projections or columns"),
        ([TABLES[0]], PROJECTION, "need projections or columns"),
        ([TABLES[0], TABLES[1].astype(np.float64)], PROJECTION, "table 1 must be"),
        ([np.zeros((2, 7), np.float32)], None, "7 wide"),
    ],
)
def test_tables_that_cannot_be_are_value_errors(tables, projections, message):
    with pytest.raises(ValueError, match=message):
        GroupedLayout(tables, DIM, projections)


def test_a_groups_short_rows_may_be_a_layout():
    """They are read, pooled and projected like an array of the same rows."""
    assignment = assign(1000, 3)
    layout, tables, matrices = build(np.bincount(assignment), [6, 3, 1], assignment)
    parts = [DenseLayout(table) for table in tables]
    nested = GroupedLayout.from_tables(parts, matrices, DIM, assignment)
    assert nested.nbytes == layout.nbytes
    ids = np.random.default_rng(1).integers(1000, size=300)
    np.testing.assert_array_equal(nested.lookup(ids), layout.lookup(ids))
    offsets = [0, 10, 10, 290]
    np.testing.assert_array_equal(nested.bag(ids, offsets), layout.bag(ids, offsets))
    queries = tables[0][:5]
    np.testing.assert_array_equal(nested.scores(queries), layout.scores(queries))
    rounded = [compress(table, "rowwise", bits=8) for table in tables]
    nested = GroupedLayout.from_tables(rounded, matrices, DIM, assignment)
    own = [part.lookup(np.arange(len(table))) for part, table in zip(rounded, tables)]
    wanted = GroupedLayout.from_tables(own, matrices, DIM, assignment)
    np.testing.assert_array_equal(nested.lookup(ids), wanted.lookup(ids))
