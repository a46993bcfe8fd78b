"""BACO: ids that share links share rows, and no group is much larger than another."""

import numpy as np
import pytest
import torch
from scipy import sparse

from survey_code import TableSpec
from survey_code.catalog import get_method
from survey_code.data.synthetic import make_interactions
from survey_code.embedding import decode_layout
from survey_code.lab import run
from survey_code.weight_sharing.vector_quantization import (
    BACO,
    find_kin,
    group_kin,
    group_pairs,
    settle_ids,
    weigh_links,
)
from survey_code.weight_sharing.vector_quantization.baco import (
    GRID,
    give_up,
    largest_group,
    place_others,
    share_groups,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def draw_blocks(blocks=6, users=20, items=10, inside=0.6, outside=0.02, seed=0):
    """Pairs within blocks of users and items, a few across; ids in a random order."""
    rng = np.random.default_rng(seed)
    own = rng.permutation(np.repeat(np.arange(blocks), users))
    theirs = rng.permutation(np.repeat(np.arange(blocks), items))
    chance = np.where(own[:, None] == theirs, inside, outside)
    pairs = np.stack(np.nonzero(rng.random(chance.shape) < chance), axis=1)
    return pairs + np.array([0, len(own)]), own, theirs


def draw_links(users, items, share, seed=0):
    rng = np.random.default_rng(seed)
    pairs = np.stack(np.nonzero(rng.random((users, items)) < share), axis=1)
    return weigh_links(pairs + np.array([0, users]), users, users + items)


def spec_of(pairs, users, rows, dim=4):
    counts = np.bincount(pairs.ravel(), minlength=rows)
    return TableSpec(rows, dim, [0, users, rows], counts, pairs)


# -- links -----------------------------------------------------------------------


def test_links_weigh_less_the_more_there_are():
    """Users 0 and 1, items 2 to 4; item 3 is read by both.  A pair counts once."""
    pairs = np.array([[0, 2], [0, 3], [1, 3], [0, 3]])
    links = weigh_links(pairs, 2, 5).toarray() / GRID
    wanted = [[1 / np.sqrt(2), 1 / 2, 0], [0, 1 / np.sqrt(2), 0]]
    np.testing.assert_allclose(links, wanted, atol=2 / GRID)
    assert weigh_links(pairs[:0], 2, 5).shape == (2, 3)


@pytest.mark.parametrize("most", [1, 3, 50])
def test_kin_are_the_nearest_of_ones_own_side(most):
    """Independent: rows of the dense product, sorted one by one."""
    links = draw_links(40, 25, 0.2)
    whole = links.toarray() @ links.toarray().T
    np.fill_diagonal(whole, 0)
    found = find_kin(links, most).toarray()
    for row, own in enumerate(whole):
        kept = np.argsort(-own, kind="stable")[:most]
        wanted = np.zeros_like(own)
        wanted[kept] = own[kept]
        np.testing.assert_array_equal(found[row], wanted)


# -- who settles where -----------------------------------------------------------


def settle_one_by_one(scores, room):
    """All pairs from the largest score down; there must be no equal ones."""
    labels, sizes = np.full(scores.shape[0], -1), np.zeros(scores.shape[1], int)
    for place in np.argsort(-scores, axis=None, kind="stable"):
        who, which = divmod(int(place), scores.shape[1])
        if scores[who, which] and labels[who] < 0 and sizes[which] < room[which]:
            labels[who] = which
            sizes[which] += 1
    return labels


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("room", [1, 3, 8, 100])
def test_settling_is_going_through_all_pairs_from_the_best(seed, room):
    rng = np.random.default_rng(seed)
    scores = rng.permutation(60 * 9).reshape(60, 9) + 1
    scores *= rng.random(scores.shape) < rng.choice([0.1, 0.5, 1.0])
    rooms = np.full(9, room)
    rooms[seed] = 0  # a group that can take nobody
    found = settle_ids(sparse.csr_array(scores), rooms, rng)
    np.testing.assert_array_equal(found, settle_one_by_one(scores, rooms))


def test_equal_scores_are_drawn_by_the_seed():
    scores = sparse.csr_array(np.ones((12, 4), np.int64))
    room = np.full(4, 3)
    found = [settle_ids(scores, room, np.random.default_rng(s)) for s in (0, 0, 1)]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    assert np.bincount(found[0]).tolist() == [3, 3, 3, 3]


def test_those_without_a_group_go_where_there_is_room():
    labels = np.array([0, 0, 1, -1, -1, -1])
    placed = place_others(labels, 3, 2, np.random.default_rng(0))
    assert placed[:3].tolist() == [0, 0, 1]
    assert np.bincount(placed, minlength=3).tolist() == [2, 2, 2]


def test_the_smallest_labels_are_given_up():
    labels = np.array([3, 1, 1, 0, 3, 3])
    assert give_up(labels, np.bincount(labels), 2).tolist() == [0, 1, 1, -1, 0, 0]


# -- groups ----------------------------------------------------------------------


@pytest.mark.parametrize("slack", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("groups", [1, 2, 7, 30, 40])
def test_no_group_is_larger_than_the_balance_allows(groups, slack):
    """Some users and items have no links at all, and get a group too."""
    links = draw_links(70, 40, 0.05)
    links = sparse.csr_array(links.multiply(np.arange(70)[:, None] % 9 > 0))
    assert (np.diff(links.indptr) == 0).any()
    sides = [
        group_kin(find_kin(side, 20), groups, slack, 2, 0)
        for side in (links, links.T.tocsr())
    ]
    for found in (sides, group_pairs(links, groups, slack, 2, 0)):
        for labels, ids in zip(found, links.shape, strict=True):
            assert labels.shape == (ids,) and labels.min() >= 0
            sizes = np.bincount(labels, minlength=groups)
            assert len(sizes) == groups
            assert sizes.max() <= largest_group(ids, groups, slack)


def count_found(found, planted):
    """Planted groups that are exactly one of those found."""
    return sum(
        np.array_equal(np.flatnonzero(planted == own), np.flatnonzero(found == group))
        for own in np.unique(planted)
        for group in [found[planted == own][0]]
    )


@pytest.mark.parametrize("paired", [False, True])
def test_planted_blocks_are_found(paired):
    """Nearly all, in twenty worlds."""
    found = together = 0
    for seed in range(20):
        pairs, users, items = draw_blocks(items=20, seed=seed)
        spec = spec_of(pairs, 120, 240)
        codes = BACO.make(spec, seed, groups=12, paired=paired).codes[:, 0].numpy()
        found += count_found(codes[:120], users) + count_found(codes[120:], items)
        together += count_found(codes, np.concatenate([users, items]))
    assert found >= 0.95 * 20 * 12
    if paired:  # a block's users and items carry the same label
        assert together >= 0.95 * 20 * 6


@pytest.mark.parametrize("paired", [False, True])
def test_groups_finer_than_the_blocks_stay_inside_them(paired):
    pairs, users, items = draw_blocks(users=40, items=40, outside=0.01)
    spec = spec_of(pairs, 240, 480)
    codes = BACO.make(spec, groups=48, paired=paired).codes[:, 0].numpy()
    for own, planted in ((codes[:240], users), (codes[240:], items)):
        pure = [np.bincount(planted[own == group]).max() for group in np.unique(own)]
        assert sum(pure) > 0.95 * len(own)


def test_two_that_are_alike_come_together():
    """Users 0 and 1 read items 3 and 4, user 2 reads 4 and 5."""
    pairs = np.array([[0, 3], [0, 4], [1, 3], [1, 4], [2, 4], [2, 5]])
    spec = spec_of(pairs, 3, 6)
    for seed in range(8):
        codes = BACO.make(spec, seed, groups=4, rounds=9).codes[:, 0].tolist()
        assert codes[0] == codes[1] != codes[2]
        assert codes[3] == codes[4] != codes[5]


def test_without_links_groups_are_drawn_evenly():
    spec = spec_of(np.zeros((0, 2), np.int64), 30, 50)
    table = BACO.make(spec, groups=10, slack=0.0)
    assert table.sizes == (6, 4)
    codes = table.codes[:, 0].numpy()
    assert np.bincount(codes[:30]).tolist() == [5] * 6
    assert np.bincount(codes[30:]).tolist() == [5] * 4


# -- the table -------------------------------------------------------------------


@pytest.mark.parametrize("paired", [False, True])
def test_a_group_shares_a_row_and_its_bytes_are_counted(paired):
    pairs, *_ = draw_blocks()
    spec = spec_of(pairs, 120, 180)
    table = BACO.make(spec, groups=21, paired=paired).eval()
    rows = decode_layout(table.freeze())
    codes = table.codes[:, 0].numpy() + table.sizes[0] * (np.arange(180) >= 120)
    np.testing.assert_array_equal(rows, table.rows.detach().numpy()[codes])
    assert len(np.unique(rows, axis=0)) == len(np.unique(codes))
    stored = 4 * table.rows.numel() + table.freeze().codes.nbytes + 2 * 4 + 2 * 8
    assert table.freeze().nbytes == stored


@pytest.mark.parametrize("ratio", [2, 5, 12])
@pytest.mark.parametrize("paired", [False, True])
def test_a_plan_takes_the_most_groups_that_fit(ratio, paired):
    pairs, *_ = draw_blocks()
    spec = spec_of(pairs, 120, 180, dim=32)
    method = get_method("baco")
    groups = method.plan(spec, ratio, paired=paired).groups
    sizes = [
        BACO.make(spec, groups=more, paired=paired).freeze().nbytes
        for more in (groups, groups + 2)
    ]
    assert sizes[0] <= spec.budget(ratio) < sizes[1]


def test_users_and_items_have_groups_in_proportion():
    spec = spec_of(draw_blocks()[0], 120, 180)
    assert share_groups(spec, 30, False) == (20, 10)
    assert share_groups(spec, 180, False) == (120, 60)
    assert share_groups(spec, 2, False) == (1, 1)
    assert share_groups(spec, 120, True) == (60, 60)
    for groups, paired in ((181, False), (121, True), (1, False)):
        with pytest.raises(ValueError, match="groups must be"):
            share_groups(spec, groups, paired)


def test_other_seeds_break_ties_otherwise():
    spec = spec_of(draw_blocks(inside=1, outside=1)[0], 120, 180)
    codes = [BACO.make(spec, seed, groups=40).codes for seed in (0, 0, 1)]
    assert torch.equal(codes[0], codes[1]) and not torch.equal(codes[0], codes[2])


def test_a_spec_without_interactions_is_refused():
    spec = TableSpec.of_shape(20, 4)
    for call in (
        lambda: get_method("baco").plan(spec, 2),
        lambda: BACO.make(spec, groups=4),
    ):
        with pytest.raises(ValueError, match="interactions of users and items"):
            call()


def test_groups_by_links_beat_groups_by_hash():
    """At the same bytes; three seeds, and the margin is many deviations."""
    data = make_interactions(num_users=300, num_items=200, per_user=(15, 25))
    found = {
        key: [
            run(key, data, 8, seed, measure=False).validation["recall@20"]
            for seed in (1, 2, 3)
        ]
        for key in ("baco", "hashing")
    }
    gap = np.mean(found["baco"]) - np.mean(found["hashing"])
    assert gap > 2 * np.hypot(*[np.std(own, ddof=1) for own in found.values()])
