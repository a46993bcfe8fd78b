"""The simplest rivals: rows for the head only, and the most popular."""

import numpy as np
import pytest
import torch

from survey_code import TableSpec
from survey_code.baselines import HeadOnly, Popular
from survey_code.catalog import get_method
from survey_code.data import load
from survey_code.embedding import decode_layout
from survey_code.lab import run
from survey_code.lab.task import make_task
from survey_code.lab.trial import default_trial
from survey_code.objectives import evaluate_ranking

COUNTS = [5, 0, 9, 5, 1, 7, 7, 0]
SPEC = TableSpec(8, 4, [0, 5, 8], COUNTS, init_std=0.1)


def test_the_head_has_rows_of_its_own_and_each_field_one_for_the_rest():
    table = HeadOnly.make(SPEC, ids=4, seed=1)
    rows = decode_layout(table.eval().freeze())
    # Read most: 2, then 5 and 6, then 0 before 3, which is read as often.
    assert table.head.tolist() == [0, 2, 5, 6]
    own, user, item = rows[[0, 2, 5, 6]], rows[1], rows[7]
    assert len(np.unique(np.vstack([own, user, item]), axis=0)) == 6
    for other, shared in ((3, user), (4, user), (7, item)):
        np.testing.assert_array_equal(rows[other], shared)
    with torch.no_grad():
        np.testing.assert_array_equal(table(torch.arange(8)).numpy(), rows)


@pytest.mark.parametrize("ids", [0, 1, 8])
def test_the_head_can_be_nobody_or_everyone(ids):
    table = HeadOnly.make(SPEC, ids=ids)
    rows = decode_layout(table.eval().freeze())
    assert len(np.unique(rows, axis=0)) == {0: 2, 1: 3, 8: 8}[ids]
    with pytest.raises(ValueError, match="ids must be an integer from 0 to 8"):
        HeadOnly.make(SPEC, ids=9)


@pytest.mark.parametrize("ratio", [1.1, 2, 10, 30])
def test_the_head_fills_the_budget(ratio):
    rng = np.random.default_rng(0)
    spec = TableSpec(3000, 16, [0, 2000, 3000], rng.integers(0, 99, 3000))
    options = get_method("head_only").plan(spec, ratio)
    size = HeadOnly(spec, options).eval().freeze().nbytes
    more = options.replace(ids=options.ids + 1)
    assert size <= spec.full_bytes / ratio
    assert HeadOnly(spec, more).eval().freeze().nbytes > spec.full_bytes / ratio


def test_everyone_is_shown_what_most_have_met():
    pairs = load("synthetic-interactions")
    task = make_task(pairs, default_trial(pairs), 0)
    table = Popular(task.spec)
    found = evaluate_ranking(table.fit(task).network, pairs.train, pairs.valid)
    counts = np.bincount(pairs.train[:, 1], minlength=pairs.num_embeddings)
    score = torch.from_numpy(counts[pairs.num_users :].astype(np.float32))

    class ByCount(torch.nn.Module):
        def represent_all(self):
            return torch.ones(pairs.num_users, 1), score[:, None]

    assert found == evaluate_ranking(ByCount(), pairs.train, pairs.valid)


def test_popularity_is_compared_as_it_is():
    pairs = load("synthetic-interactions")
    with pytest.raises(ValueError, match="model must be 'mf', got 'lightgcn'"):
        run("popular", pairs, 4, model="lightgcn", settings={"epochs": 1})
    result = run("popular", pairs, 4, measure=False)
    assert result.rows == {"search": 0, "train": 0} and result.reached_ratio == 16
