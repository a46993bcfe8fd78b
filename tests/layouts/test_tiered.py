"""The tiered layout: each id in one tier, and all of it counted."""

import numpy as np
import pytest

from survey_code import compress
from survey_code.layouts import DenseLayout, RowwiseLayout, TieredLayout
from survey_code.layouts.rowwise import row_bytes

DIM = 8
TABLE = np.random.default_rng(0).normal(size=(100, DIM)).astype(np.float32)


def split(*sizes):
    order = np.random.default_rng(1).permutation(100)
    return [np.sort(ids) for ids in np.split(order, np.cumsum(sizes))]


def build(dense, eight, four, two):
    parts = {"values": (dense, TABLE[dense])}
    for bits, ids in ((8, eight), (4, four), (2, two)):
        rows = compress(TABLE, "rowwise", bits=bits).rows[ids]
        parts[f"rows{bits}"] = (ids, rows)
    return TieredLayout.from_parts(DIM, parts)


def test_each_row_is_that_of_its_own_tier():
    ids = split(5, 20, 30)
    layout = build(*ids)
    np.testing.assert_array_equal(layout.lookup(ids[0]), TABLE[ids[0]])
    for bits, some in zip((8, 4, 2), ids[1:]):
        whole = compress(TABLE, "rowwise", bits=bits)
        np.testing.assert_array_equal(layout.lookup(some), whole.lookup(some))
    mixed = np.random.default_rng(2).permutation(100)
    by_one = np.concatenate([layout.lookup([i]) for i in mixed])
    np.testing.assert_array_equal(layout.lookup(mixed), by_one)


def test_rows_and_keys_are_all_counted():
    """Each row's own bytes, and 4 bytes for each id outside the last tier."""
    layout = build(*split(5, 20, 30))
    rows = 5 * 4 * DIM + sum(
        count * row_bytes(DIM, bits) for count, bits in ((20, 8), (30, 4), (45, 2))
    )
    assert layout.nbytes == rows + 4 * 55


def test_empty_tiers_are_left_out():
    dense, none = np.arange(100), np.arange(0)
    layout = build(dense, none, none, none)
    assert set(layout.arrays()) == {"values"} and layout.nbytes == TABLE.nbytes
    assert isinstance(layout.tiers()[0], DenseLayout)
    layout = build(none, none, dense, none)
    assert set(layout.arrays()) == {"rows4"}
    assert isinstance(layout.tiers()[0], RowwiseLayout)


@pytest.mark.parametrize(
    "keys",
    [
        None,
        np.array([1, 0], np.int32),
        np.array([3, 3], np.int32),
        np.array([0, 4], np.int32),
        np.array([-1, 2], np.int32),
        np.array([0, 1], np.int64),
        np.array([0], np.int32),
        np.array([0, 1, 2], np.int32),
    ],
    ids=repr,
)
def test_keys_that_cannot_be_are_value_errors(keys):
    rows = compress(TABLE[:2], "rowwise").rows
    with pytest.raises(ValueError, match="keys"):
        TieredLayout(4, DIM, keys, values=TABLE[:2], rows8=rows)


def test_an_id_in_two_tiers_is_a_value_error():
    keys = np.array([0, 2, 1, 2], np.int32)
    eight, four = (compress(TABLE[:2], "rowwise", bits=bits).rows for bits in (8, 4))
    with pytest.raises(ValueError, match="different ids"):
        TieredLayout(6, DIM, keys, values=TABLE[:2], rows8=eight, rows4=four)


def test_tiers_that_do_not_add_up_are_value_errors():
    with pytest.raises(ValueError, match="add up to 4"):
        TieredLayout(4, DIM, None, values=TABLE[:3])
    with pytest.raises(ValueError, match="needs no keys"):
        TieredLayout(2, DIM, np.array([0], np.int32), values=TABLE[:2])
    with pytest.raises(ValueError, match="unknown tier 'rows3'"):
        TieredLayout(2, DIM, None, rows3=TABLE[:2])
    with pytest.raises(ValueError, match="rows must be uint8"):
        TieredLayout(2, DIM, None, rows4=np.zeros((2, 3), np.uint8))
