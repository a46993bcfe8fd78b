"""Equal keys come in the same order on every machine."""

from __future__ import annotations

from pathlib import Path

import checks
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from survey_code.order import largest_first, most_frequent
from survey_code.ranking import choose_top, take_from_blocks

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    path.relative_to(ROOT).as_posix()
    for folder in ("survey_code", "tests", "book/_tools")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


# -- the lint ---------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_sorts_keep_equal_keys_in_place(name):
    source = (ROOT / name).read_text(encoding="utf-8")
    assert checks.unstable_sorts(source) == []


@pytest.mark.parametrize(
    "line",
    [
        "order = np.argsort(-counts)",
        "order = counts.argsort()",
        'order = np.argsort(counts, kind="quicksort")',
        "best = np.argpartition(-scores, 20)[:20]",
        "best = scores.topk(20).indices",
        "values, best = torch.topk(scores, 20)",
        "best = scores.sort(descending=True)[1]",
        'table = table.sort_values("mean", ascending=False)',
    ],
)
def test_the_lint_finds_sorts_that_may_differ(line):
    assert [at for at, _ in checks.unstable_sorts(f"import numpy as np\n{line}")] == [2]


@pytest.mark.parametrize(
    "line",
    [
        'order = np.argsort(-counts, kind="stable")',
        "order = counts.argsort(descending=True, stable=True)",
        "values = np.sort(counts)[::-1]",
        "least = scores.topk(20).values[:, -1]",
        'table = table.sort_values("mean", kind="stable")',
        "best = keys.topk(k).indices  # no ties: a key holds its own number",
        "found = layout.topk(queries, 20)",
    ],
)
def test_the_lint_leaves_others_alone(line):
    assert checks.unstable_sorts(line) == []


# -- largest first ----------------------------------------------------------------


@given(
    st.lists(st.integers(0, 5), max_size=40),
    st.sampled_from(["int64", "int32", "uint8", "uint32", "float32", "float64"]),
)
def test_largest_first_is_pythons_sorted(values, kind):
    wanted = sorted(range(len(values)), key=lambda k: -values[k])
    array = np.array(values, dtype=kind)
    assert largest_first(array).tolist() == wanted
    if kind != "uint32":
        assert largest_first(torch.from_numpy(array)).tolist() == wanted


def test_largest_first_takes_an_axis_or_none():
    table = np.array([[1, 2, 1], [2, 2, 0]])
    for given_ in (table, torch.from_numpy(table)):
        assert largest_first(given_).tolist() == [[1, 0, 2], [0, 1, 2]]
        assert largest_first(given_, axis=0).tolist() == [[1, 0, 0], [0, 1, 1]]
        assert largest_first(given_, axis=None).tolist() == [1, 3, 4, 0, 2, 5]


# -- the items of the highest scores --------------------------------------------------


def draw_vectors(kind=torch.float64, signs=False, seed=0):
    rng = np.random.default_rng(seed)
    made = [torch.from_numpy(rng.normal(size=(n, 48))).to(kind) for n in (30, 400)]
    return [torch.sign(m) / 48**0.5 if signs else m for m in made]


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 20, 400, 500])
def test_different_scores_come_as_sorting_has_them(kind, k):
    users, items = draw_vectors(kind)
    wanted = largest_first(users @ items.T)[:, :k]
    if kind == torch.float32:  # some pairs are equal but for rounding
        users, items = users.double(), items.double()
    found = choose_top(users @ items.T, k, users, items)
    assert found.shape == (30, min(k, 400))
    assert (found == wanted).double().mean() > 0.99


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_rounding_does_not_order_equal_scores(kind):
    """Codes of +1 and -1: columns in another order round otherwise."""
    users, items = draw_vectors(kind, signs=True)
    found = choose_top(users @ items.T, 20, users, items)
    turned = torch.from_numpy(np.random.default_rng(1).permutation(48))
    users, items = users[:, turned].contiguous(), items[:, turned].contiguous()
    assert torch.equal(choose_top(users @ items.T, 20, users, items), found)


def test_equal_items_come_in_an_order_that_their_numbers_do_not_decide():
    users, items = torch.ones(3, 4), torch.ones(400, 4)
    found = choose_top(users @ items.T, 400, users, items)
    assert torch.equal(found[0], found[2])
    assert sorted(found[0].tolist()) == list(range(400))
    # Of 400 places a random order keeps about one.
    assert (found[0] == torch.arange(400)).sum() < 10
    assert abs(found[0][:100].double().mean() - 199.5) < 60


def test_an_item_left_out_comes_last():
    users, items = draw_vectors()
    scores = users @ items.T
    scores[:, 5:] = -torch.inf
    found = choose_top(scores, 20, users, items)
    assert (found[:, :5] < 5).all() and (found[:, 5:] >= 5).all()


def test_users_of_very_different_lengths_are_ranked_alike():
    users, items = draw_vectors()
    long = users * torch.logspace(-30, 30, 30, dtype=users.dtype)[:, None]
    found = choose_top(long @ items.T, 20, long, items)
    assert torch.equal(found, choose_top(users @ items.T, 20, users, items))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_vector_of_zeros_ranks_items_as_equal(kind):
    """Also in training, where numbers below the normal ones are taken as 0."""
    users, items = draw_vectors(kind)
    none = torch.zeros_like(users)
    wanted = choose_top(torch.ones(30, 400, dtype=kind), 20, users, items)
    for flushed in (False, True):
        torch.set_flush_denormal(flushed)
        try:
            found = choose_top(none @ items.T, 20, none, items)
        finally:
            torch.set_flush_denormal(False)
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("count", [1, 63, 64, 640, 641, 4000, 6400])
@pytest.mark.parametrize("wide", [1, 28, 60])
@pytest.mark.parametrize("kinds", [3, 10**6])
def test_blocks_hold_the_largest_scores(count, wide, kinds):
    rng = np.random.default_rng(count)
    scores = torch.from_numpy(rng.integers(0, kinds, (7, count)).astype(np.float32))
    scores[0] = torch.finfo(torch.float32).min  # all left out
    wide = min(wide, count)
    values, columns = take_from_blocks(scores, wide)
    assert torch.equal(values, scores.topk(wide).values)
    assert torch.equal(scores.gather(1, columns), values)
    assert all(len(set(row)) == wide for row in columns.tolist())


def test_one_number_for_all_is_not_sorted():
    alike = np.broadcast_to(np.int64(7), (2**40,))  # sorted, it would take terabytes
    assert most_frequent(alike, 3).tolist() == [0, 1, 2]
    assert most_frequent(alike[:2], 3).tolist() == [0, 1]
