"""Unified embedding: one table, short rows side by side."""

import numpy as np
import pytest
import torch

from survey_code import TableSpec
from survey_code.catalog import get_method
from survey_code.layouts.hashed import take_digits
from survey_code.weight_sharing.hashing import HashingTrick, UnifiedEmbedding

# Three fields of one size: value v of each is id v, 3000 + v, 6000 + v.
SIZE = 3000
FIELDS = TableSpec.of_table(3 * SIZE, 16, None, [0, SIZE, 2 * SIZE, 3 * SIZE])


def test_a_row_is_short_rows_of_one_table_side_by_side():
    table = UnifiedEmbedding.make(FIELDS, reads=4, rows=50, seed=3)
    layout = table.freeze()
    assert layout.values.shape == (50, 4) and layout.shared
    ids = np.array([0, 17, 8999])
    places = take_digits(ids, layout.index)
    wanted = np.concatenate([layout.values[place] for place in places], axis=1)
    np.testing.assert_array_equal(layout.lookup(ids), wanted)
    assert table(torch.from_numpy(ids)).detach().numpy() == pytest.approx(wanted)


def test_with_one_row_it_is_the_hashing_trick():
    one = UnifiedEmbedding.make(FIELDS, reads=1, rows=70, seed=4).freeze()
    other = HashingTrick.make(FIELDS, rows=70, seed=4).freeze()
    everyone = np.arange(3 * SIZE)
    np.testing.assert_array_equal(one.lookup(everyone), other.lookup(everyone))


def test_of_equal_bytes_there_are_as_many_times_the_rows():
    planned = {
        reads: get_method("unified").plan(FIELDS, 10, reads=reads).rows
        for reads in (1, 2, 4)
    }
    assert planned[2] == pytest.approx(2 * planned[1], rel=0.01)
    assert planned[4] == pytest.approx(4 * planned[1], rel=0.01)


@pytest.mark.parametrize(("dim", "reads"), [(16, 4), (6, 3), (10, 2), (7, 1), (1, 1)])
def test_unasked_as_many_rows_as_divide_the_dimension(dim, reads):
    spec = TableSpec.of_shape(500, dim)
    assert get_method("unified").plan(spec, 2).reads == reads


def test_rows_that_do_not_divide_the_dimension_are_a_value_error():
    with pytest.raises(ValueError, match=r"unified: combine='concat' .* of 3, got 16"):
        get_method("unified").plan(FIELDS, 4, reads=3)


def count_meetings(rows, seeds=30):
    """How many pairs of ids read one row: within fields, between them, and the pairs
    of equal values in two fields; each over its expectation by chance.
    """
    met = np.zeros(3)
    for seed in range(seeds):
        index = UnifiedEmbedding.make(FIELDS, reads=1, rows=rows, seed=seed).index
        place = take_digits(np.arange(3 * SIZE), index)[0].reshape(3, SIZE)
        loads = np.stack([np.bincount(own, minlength=rows) for own in place])
        met[0] += (loads * (loads - 1) // 2).sum()
        met[1] += loads[0] @ loads[1] + loads[0] @ loads[2] + loads[1] @ loads[2]
        met[2] += (place[0] == place[1]).sum() + (place[1] == place[2]).sum()
    pairs = np.array([3 * SIZE * (SIZE - 1) / 2, 3 * SIZE**2, 2 * SIZE])
    return met / (seeds * pairs / rows)


def test_ids_of_two_fields_meet_no_more_often_than_by_chance():
    """Equal values of two fields, and any two ids; 1 is what chance would do."""
    within, between, equal = count_meetings(rows=200)
    assert within == pytest.approx(1, abs=0.02)
    assert between == pytest.approx(1, abs=0.02)
    # 6,000 pairs over 200 rows, 30 hashes: 900 meetings, give or take 30.
    assert equal == pytest.approx(1, abs=0.15)


def test_each_field_has_the_multipliers_of_all_and_an_addend_of_its_own():
    """What the notes say: value v of a field is hashed by a v + (a start + c)."""
    index = UnifiedEmbedding.make(FIELDS, reads=2, rows=90, seed=5).index
    values = np.arange(SIZE)
    for field in range(3):
        moved = index.copy()
        with np.errstate(over="ignore"):
            moved[:, 2] += index[:, 0] * (field * SIZE)
        for one, other in zip(
            take_digits(values, moved), take_digits(values + field * SIZE, index)
        ):
            np.testing.assert_array_equal(one, other)


def test_two_hashes_of_an_id_are_two():
    index = UnifiedEmbedding.make(FIELDS, reads=2, rows=100, seed=6).index
    one, other = take_digits(np.arange(3 * SIZE), index)
    assert (one == other).mean() == pytest.approx(0.01, abs=0.005)
