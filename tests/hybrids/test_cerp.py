"""CERP: pairs of rows, thresholds, the penalty, and the layout within a layout."""

import numpy as np
import pytest
import torch

from survey_code import TableSpec
from survey_code.catalog import get_method
from survey_code.hybrids import CERP, CERPOptions
from survey_code.hybrids.cerp import ThresholdBooks, books_bytes, pair_index
from survey_code.layouts import HashedLayout, SparseLayout
from survey_code.layouts.hashed import take_digits

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = TableSpec.of_shape(100, 6)


def make(rows=12, share=0.4, seed=3, **options):
    mask = np.random.default_rng(seed).random((2 * rows, 6)) < share
    return CERP.make(SPEC, seed=seed, rows=rows, mask=mask, **options)


@pytest.mark.parametrize(("ids", "rows"), [(100, 10), (100, 13), (101, 11), (7, 7)])
def test_no_two_ids_share_both_rows(ids, rows):
    pairs = np.stack(take_digits(np.arange(ids), pair_index(ids, rows)), axis=1)
    assert len(np.unique(pairs, axis=0)) == ids
    assert pairs.max() < rows


def test_codebooks_too_small_for_that_are_a_value_error():
    with pytest.raises(ValueError, match="rows must be at least 11 to tell 101 ids"):
        pair_index(101, 10)
    with pytest.raises(ValueError, match="rows must be at least 10"):
        make(rows=9)


def test_a_row_is_the_sum_of_two_masked_ones():
    table = make()
    values = (table.values * table.mask).detach().numpy()
    ids = np.arange(100)
    wanted = values[ids % 12] + values[12 + ids // 9]  # ceil(100 / 12) = 9
    found = table(torch.from_numpy(ids)).detach().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_what_is_stored_is_a_sparse_layout_within_a_hashed_one():
    table = make()
    layout = table.freeze()
    assert type(layout) is HashedLayout and type(layout.values) is SparseLayout
    assert len(layout.values.values) == int(table.mask.sum())
    assert layout.nbytes == books_bytes(SPEC, 12, int(table.mask.sum()), "float32")
    np.testing.assert_allclose(
        layout.lookup(np.arange(100)),
        table(torch.arange(100)).detach().numpy(),
        rtol=1e-6,
    )


def test_pruned_entries_learn_nothing():
    table = make()
    table.train()(torch.arange(100)).square().sum().backward()
    assert not table.values.grad[~table.mask].any()
    assert table.values.grad[table.mask].all()


def search_table(**options):
    asked = CERPOptions.of("cerp", {"rows": 12, "budget": 2000, **options}, found=True)
    return ThresholdBooks(SPEC, asked, 3)


def test_rows_are_read_behind_their_thresholds():
    table = search_table(start=-2.0)
    threshold = 1 / (1 + np.exp(2.0))
    values = table.values.detach().numpy()
    shrunk = np.sign(values) * np.maximum(np.abs(values) - threshold, 0)
    ids = np.arange(100)
    wanted = shrunk[ids % 12] + shrunk[12 + ids // 9]
    found = table(torch.from_numpy(ids)).detach().numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_the_penalty_pulls_sums_away_from_zero_and_fades():
    table = search_table(pull=2.0, fade=3.0)
    table.train()
    rows = table(torch.arange(100))
    wanted = -2.0 * np.tanh(100 * rows.detach().numpy()) ** 2
    assert float(table.penalty().detach()) == pytest.approx(wanted.mean(), rel=1e-5)
    assert float(table.penalty().detach()) == 0  # nothing was read since
    table(torch.arange(100))
    table.advance(1.0)
    assert float(table.penalty().detach()) == pytest.approx(wanted.mean() / 8, rel=1e-5)
    table.eval()(torch.arange(100))
    assert float(table.penalty().detach()) == 0


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("ratio", [2, 4, 10])
def test_the_plan_has_the_largest_codebooks(density, ratio):
    spec = TableSpec.of_shape(10_000, 8)
    plan = get_method("cerp").plan(spec, ratio, density=density)
    budget, rows = spec.budget(ratio), plan.rows
    assert plan.budget == budget

    def size(rows):
        return books_bytes(spec, rows, int(density * 2 * rows * 8), "float32")

    assert size(rows) <= budget
    assert rows == 10_000 or size(rows + 1) > budget


def test_a_mask_of_another_shape_is_a_value_error():
    for mask in (np.ones((24, 5), bool), np.ones((24, 6)), np.ones(144, bool)):
        with pytest.raises(ValueError, match="mask must be bool of shape"):
            CERP.make(SPEC, rows=12, mask=mask)


def test_a_plan_complains_of_too_few_rows():
    with pytest.raises(ValueError, match="rows must be at least 10 to tell 100 ids"):
        get_method("cerp").plan(SPEC, 2, rows=9)
