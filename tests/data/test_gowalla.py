"""Gowalla with LightGCN's split."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from survey_code.data import load
from survey_code.data.gowalla import (
    choose_hold_out,
    draw_numbers,
    load_gowalla,
    parse_pairs,
)

USERS, ITEMS = 29_858, 40_981


@pytest.fixture(scope="module")
def gowalla(real_data):
    return load("gowalla")


@pytest.fixture(scope="module")
def whole(real_data):
    return load("gowalla", hold_out=0)


def encode(pairs):
    return pairs[:, 0] * (USERS + ITEMS) + pairs[:, 1]


def test_sizes_are_those_of_the_split(gowalla, whole):
    assert (gowalla.num_users, gowalla.num_items) == (USERS, ITEMS)
    assert gowalla.num_embeddings == 70_839 and gowalla.task == "top-n"
    assert gowalla.field_starts.tolist() == [0, USERS, USERS + ITEMS]
    assert [len(whole.train), len(whole.valid), len(whole.test)] == [
        810_128,
        0,
        217_242,
    ]
    assert len(gowalla.train) + len(gowalla.valid) == 810_128
    assert len(np.unique(whole.test[:, 1])) == 38_546


def test_pairs_per_user_are_those_of_the_split(whole):
    train = np.bincount(whole.train[:, 0], minlength=USERS)
    test = np.bincount(whole.test[:, 0], minlength=USERS)
    assert (train.min(), np.median(train), train.max()) == (8, 16, 811)
    assert (test.min(), np.median(test), test.max()) == (1, 4, 203)


def test_every_id_is_a_user_or_an_item_and_every_item_is_trained(whole):
    for pairs in (whole.train, whole.test):
        assert pairs.dtype == np.int64
        assert pairs[:, 0].min() == 0 and pairs[:, 0].max() == USERS - 1
        assert pairs[:, 1].min() >= USERS and pairs[:, 1].max() < USERS + ITEMS
    assert len(np.unique(whole.train[:, 1])) == ITEMS


def test_no_pair_is_in_two_parts_or_twice_in_one(gowalla, whole):
    parts = [encode(pairs) for pairs in (gowalla.train, gowalla.valid, gowalla.test)]
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together) == 810_128 + 217_242
    np.testing.assert_array_equal(
        np.sort(np.concatenate(parts[:2])), np.sort(encode(whole.train))
    )


def test_a_tenth_of_each_user_s_pairs_is_held_out(gowalla, whole):
    all_pairs, held = (
        np.bincount(pairs[:, 0], minlength=USERS)
        for pairs in (whole.train, gowalla.valid)
    )
    np.testing.assert_array_equal(held, np.rint(0.1 * all_pairs))
    assert held.min() == 1  # every user can be judged


def test_a_spec_knows_the_training_pairs_only(gowalla):
    spec = gowalla.spec(8)
    assert spec.interactions is gowalla.train
    assert spec.train_counts.sum() == 2 * len(gowalla.train)
    assert spec.train_counts[:USERS].sum() == len(gowalla.train)


def test_the_hold_out_depends_on_its_seed_alone():
    users = np.random.default_rng(0).integers(0, 50, 1000)
    first, same, other = (choose_hold_out(users, 0.3, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    counts = np.bincount(users)
    for chosen in (first, other):
        held = np.bincount(users[chosen], minlength=50)
        np.testing.assert_array_equal(held, np.rint(0.3 * counts))


def test_the_hold_out_is_not_the_head_of_each_list():
    users = np.repeat(np.arange(100), 20)
    chosen = choose_hold_out(users, 0.5, seed=0).reshape(100, 20)
    assert (chosen.sum(1) == 10).all()
    assert 25 < chosen.sum(0).min() and chosen.sum(0).max() < 75


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan"), "half", None])
def test_a_bad_share_is_a_value_error(share):
    with pytest.raises(ValueError, match=r"hold_out must be .* got ") as error:
        load_gowalla(hold_out=share)
    assert str(share) in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"0 1 2\n1 3\n", b"0 one two\n", b"\xff\xfe\x00", b"0 1.5\n"],
    ids=["empty", "few", "words", "garbage", "fraction"],
)
def test_text_that_is_not_gowalla_is_a_value_error(content):
    with pytest.raises(ValueError):
        parse_pairs(content, "test")


def test_renumbering_moves_ids_and_nothing_else(gowalla):
    moved = load("gowalla-renumbered")
    assert moved.name != gowalla.name and moved.task == "top-n"
    numbers = draw_numbers(0)
    assert np.array_equal(np.sort(numbers), np.arange(70_839))
    assert numbers[:USERS].max() < USERS
    for part in ("train", "valid", "test"):
        assert np.array_equal(getattr(moved, part), numbers[getattr(gowalla, part)])


def test_neighbours_in_the_published_numbering_share_visitors(gowalla):
    """A numbering is information: see the chapter on hashing."""
    for data, low, high in (
        (gowalla, 1.5, 2.5), (load("gowalla-renumbered"), 0.0, 0.1),
    ):  # fmt: skip
        pairs = data.train - [0, USERS]
        visits = csr_array((np.ones(len(pairs)), pairs.T), shape=(USERS, ITEMS))
        items = visits.tocsc()
        shared = items[:, :-1].multiply(items[:, 1:]).sum() / (ITEMS - 1)
        assert low < shared < high
