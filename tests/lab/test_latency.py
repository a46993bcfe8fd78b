"""Look-up times: positive, ordered, of the ids asked for."""

import numpy as np
import pytest

from survey_code.lab import measure_lookup
from survey_code.layouts import DenseLayout


class Counting(DenseLayout):
    """Notes the ids of each call."""

    def lookup(self, ids):
        self.calls.append(np.array(ids))
        return super().lookup(ids)


@pytest.fixture
def layout():
    made = Counting(np.ones((50, 4), np.float32))
    made.calls = []
    return made


def test_percentiles_are_positive_and_ordered(layout):
    found = measure_lookup(layout, batches=(1, 64), calls=30, warm_up=3)
    assert found.index.tolist() == [1, 64] and found.index.name == "batch"
    assert (found > 0).all(axis=None)
    assert (found["p50_us"] <= found["p99_us"]).all()
    rates = found.index / (found["p50_us"] / 1e6)
    np.testing.assert_allclose(found["rows_per_s"], rates)


def test_every_call_reads_fresh_ids_of_the_whole_table(layout):
    measure_lookup(layout, batches=(64,), calls=30, warm_up=3)
    assert [len(ids) for ids in layout.calls] == [64] * 33
    ids = np.stack(layout.calls)
    assert len(np.unique(ids, axis=0)) == 33
    assert ids.min() == 0 and ids.max() == 49


def test_a_seed_gives_the_same_ids(layout):
    measure_lookup(layout, batches=(8,), calls=5, warm_up=1, seed=1)
    measure_lookup(layout, batches=(8,), calls=5, warm_up=1, seed=1)
    measure_lookup(layout, batches=(8,), calls=5, warm_up=1, seed=2)
    first, same, other = np.stack(layout.calls).reshape(3, 6, 8)
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
