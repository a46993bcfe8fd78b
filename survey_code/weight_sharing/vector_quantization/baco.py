"""BACO: who read what says who shares a row; groups are found before training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from survey_code.bits import MOST_BITS, count_bits
from survey_code.budget import largest_fitting
from survey_code.checks import check_range
from survey_code.embedding import Seed, as_float32, draw_normal, pick_rows
from survey_code.layouts import CodebookLayout
from survey_code.layouts.codebook import codebook_bytes
from survey_code.method import Found, Trained
from survey_code.options import Options, option, planned
from survey_code.order import largest_first
from survey_code.spec import TableSpec
from survey_code.weight_sharing.vector_quantization.books import as_codes
from survey_code.weight_sharing.vector_quantization.recjpq import require_interactions

if TYPE_CHECKING:
    from scipy import sparse

# Links weigh whole numbers of this grid, whose sums are exact: ties are the same on
# every processor.
GRID = 2**20
# Of an id that is in no group yet.
UNPLACED = -1
# Ids whose kin is looked for at once.
IDS_COMPARED = 1024


def weigh_links(pairs: np.ndarray, split: int, rows: int) -> sparse.csr_array:
    r"""The graph of users and items; a link weighs :math:`1 / \sqrt{d_u d_i}`.

    Parameters
    ----------
    pairs : ndarray of int64, shape (m, 2)
        A user's and an item's id; items are numbered from `split` on.
    split, rows : int
        Users, and ids in all.

    Returns
    -------
    sparse array of int64, shape (split, rows - split)
        Weights in parts of 2**-20, rounded.
    """
    from scipy import sparse

    users, items = np.unique(pairs, axis=0).T if len(pairs) else np.zeros((2, 0), int)
    degrees = np.bincount(users, minlength=split), np.bincount(items, minlength=rows)
    weights = GRID / np.sqrt(degrees[0][users] * degrees[1][items].astype(np.float64))
    shape = (split, rows - split)
    whole = np.rint(weights).astype(np.int64)
    return sparse.csr_array((whole, (users, items - split)), shape=shape)


def find_kin(links: sparse.csr_array, most: int) -> sparse.csr_array:
    """The ids of the same side that each one shares most links with.

    Parameters
    ----------
    links : sparse array of int64, shape (ids, others)
    most : int
        Of equally near ones, the first.

    Returns
    -------
    sparse array of int64, shape (ids, ids)
        By row, products of weights, summed over the others that both are linked with.
    """
    from scipy import sparse

    ids, back = links.shape[0], links.T.tocsr()
    columns, values, counts = [], [], []
    for start in range(0, ids, IDS_COMPARED):
        near = links[start : start + IDS_COMPARED] @ back
        near.sort_indices()
        for row, (low, high) in enumerate(itertools.pairwise(near.indptr.tolist())):
            own, weights = near.indices[low:high], near.data[low:high]
            other = own != start + row
            own, weights = own[other], weights[other]
            if len(own) > most:
                edge = np.partition(weights, -most)[-most]
                kept = weights > edge
                kept[np.flatnonzero(weights == edge)[: most - kept.sum()]] = True
                own, weights = own[kept], weights[kept]
            columns.append(own)
            values.append(weights)
            counts.append(len(own))
    starts = np.concatenate([[0], np.cumsum(counts)])
    held = np.concatenate(values), np.concatenate(columns), starts
    return sparse.csr_array(held, shape=(ids, ids))


def settle_ids(
    scores: sparse.csr_array, room: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """A group for each id: the one it scores best with among those with room for it.

    Everybody asks for their best group, which keeps those of the largest scores; the
    others ask for their next one.  It ends as if all pairs of an id and a group were
    gone through from the largest score down.

    Parameters
    ----------
    scores : sparse array of integers, shape (ids, groups)
        Pairs without a score cannot meet.
    room : ndarray of int, shape (groups,)
        Ids that each group can take.
    rng : numpy.random.Generator
        Of equal scores.

    Returns
    -------
    ndarray of int64, shape (ids,)
        -1 for ids that no group with room scores with.
    """
    ids, groups = scores.shape
    which, place = list_wishes(scores, rng)
    asked, ends = scores.indptr[:-1].astype(np.int64), scores.indptr[1:]
    held = np.full(ids, UNPLACED)
    # The last place that a full group keeps: whoever stands behind it need not ask.
    worst = np.where(room > 0, len(place), -1)
    asking = np.arange(ids)
    while len(asking := asking[asked[asking] < ends[asking]]):
        at = asked[asking]
        late = place[at] > worst[which[at]]
        if late.any():
            asked[asking[late]] += 1
            continue
        held[asking] = which[at]
        line = np.flatnonzero(np.isin(held, which[at]))  # of a group that was asked
        line = line[np.lexsort((place[asked[line]], held[line]))]
        sizes = np.bincount(held[line], minlength=groups)
        rank = np.arange(len(line)) - (np.cumsum(sizes) - sizes)[held[line]]
        most = room[held[line]]
        last = line[rank == most - 1]
        worst[held[last]] = place[asked[last]]
        asking = line[rank >= most]
        held[asking] = UNPLACED
        asked[asking] += 1
    return held


def list_wishes(
    scores: sparse.csr_array, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The groups of each id's pairs, the best first, and their places among all pairs.

    The largest score has place 0; equal ones are in a random order.
    """
    scores, pairs = scores.sorted_indices(), len(scores.data)
    order = np.lexsort((rng.permutation(pairs), -scores.data))
    who = np.repeat(np.arange(scores.shape[0]), np.diff(scores.indptr))
    wishes = order[np.argsort(who[order], kind="stable")]
    place = np.empty(pairs, dtype=np.int64)
    place[order] = np.arange(pairs)
    return scores.indices[wishes], place[wishes]


def place_others(
    labels: np.ndarray, groups: int, room: int, rng: np.random.Generator
) -> np.ndarray:
    """Put ids that are in no group where there is most room, in a random order."""
    others = rng.permutation(np.flatnonzero(labels == UNPLACED))
    sizes = count_sizes(labels, groups)
    # The free places of all groups, those of the emptiest levels first.
    spare = np.repeat(np.arange(groups), room - sizes)
    level = np.concatenate([np.arange(size, room) for size in sizes.tolist()])
    free = spare[np.argsort(level, kind="stable")]
    placed = labels.copy()
    placed[others] = free[: len(others)]
    return placed


def largest_group(ids: int, groups: int, slack: float) -> int:
    """Most ids of a group, which a little more than the mean.

    Examples
    --------
    >>> largest_group(100, 10, 0.0), largest_group(100, 8, 0.1)
    (10, 14)
    """
    return math.ceil((1 + slack) * ids / groups)


def count_sizes(labels: np.ndarray, groups: int | None = None) -> np.ndarray:
    """Members of each group; by default of as many groups as there are labels."""
    inside = labels[labels != UNPLACED]
    return np.bincount(inside, minlength=len(labels) if groups is None else groups)


def count_members(labels: np.ndarray, groups: int) -> sparse.csr_array:
    """Who belongs where: 1 for an id and its group, (ids, groups)."""
    from scipy import sparse

    inside = np.flatnonzero(labels != UNPLACED)
    ones = np.ones(len(inside), dtype=np.int64)
    shape = (len(labels), groups)
    return sparse.csr_array((ones, (inside, labels[inside])), shape=shape)


def give_up(labels: np.ndarray, shares: np.ndarray, left: int) -> np.ndarray:
    """Labels renamed from 0, of those with the largest shares; the others are nobody's.

    Examples
    --------
    >>> give_up(np.array([2, 0, 1, 2]), np.array([1, 1, 2]), left=2)
    array([ 0,  1, -1,  0])
    """
    renamed = np.full(len(shares) + 1, UNPLACED)
    renamed[largest_first(shares)[:left]] = np.arange(left)
    return renamed[labels]


def group_kin(
    kin: sparse.csr_array, groups: int, slack: float, rounds: int, seed: Seed
) -> np.ndarray:
    """Groups of one side: ids take the label that weighs most among their kin.

    It begins with a label for each id.  Then the labels with the fewest members are
    given up, half of all at a time, until there are as many as groups; meanwhile no
    label may have more than its share of ids, and a little more.  Half of the ids
    choose at a time, or two that are alike would change their labels for ever.

    Parameters
    ----------
    kin : sparse array of int64, shape (ids, ids)
        Of `find_kin`.
    groups : int
        1 to the number of ids.
    slack : float
        A group has at most ``ceil((1 + slack) * ids / groups)`` ids.
    rounds : int
        Times that all choose before labels are given up again, and at the end.
    seed : int or sequence of int
        Of ties, and of where ids go that have no links.

    Returns
    -------
    ndarray of int64, shape (ids,)
    """
    ids, rng = kin.shape[0], np.random.default_rng(seed)
    check_range("groups", groups, 1, ids)
    labels, count = np.arange(ids), ids
    while count > groups:
        count = max(groups, count // 2)
        labels = give_up(labels, count_sizes(labels), count)
        most = largest_group(ids, count, slack)
        for part in halve(ids, rounds, rng):
            members = count_members(labels, count)
            # Their own label weighs next to nothing: a place to stay, if need be.
            heard = kin[part] @ members + members[part]
            labels[part] = UNPLACED
            room = most - count_sizes(labels, count)
            labels[part] = settle_ids(heard, room, rng)
    return place_others(labels, groups, largest_group(ids, groups, slack), rng)


def halve(ids: int, times: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Half of the ids, then the others, in new halves each time."""
    for _ in range(times):
        order = rng.permutation(ids)
        yield np.sort(order[: ids // 2])
        yield np.sort(order[ids // 2 :])


def group_pairs(
    links: sparse.csr_array, groups: int, slack: float, rounds: int, seed: Seed
) -> tuple[np.ndarray, np.ndarray]:
    """Groups of users and of items in pairs: co-clusters, whose links are inside.

    As `group_kin`, but labels go to and fro along the links: users take the label that
    weighs most among their items, items that of their users.

    Parameters
    ----------
    links : sparse array of int64, shape (users, items)
        Of `weigh_links`.
    groups : int
        Of users, and as many of items; 1 to the smaller of both numbers.
    slack, rounds, seed
        Of `group_kin`.

    Returns
    -------
    users, items : ndarray of int64, shapes (users,), (items,)
    """
    check_range("groups", groups, 1, min(links.shape))
    rng, turned = np.random.default_rng(seed), links.shape[0] < links.shape[1]
    # From the many to the few, who begin with labels of their own.
    forth = links.T.tocsr() if turned else links
    back = forth.T.tocsr()
    many, few = forth.shape
    labels, count, others = np.arange(few), few, np.full(many, UNPLACED)
    while True:
        room = [np.full(count, largest_group(n, count, slack)) for n in (many, few)]
        for _ in range(rounds):
            others = settle_ids(forth @ count_members(labels, count), room[0], rng)
            labels = settle_ids(back @ count_members(others, count), room[1], rng)
        if count == groups:
            break
        shares = count_sizes(others, count) / many + count_sizes(labels, count) / few
        count = max(groups, count // 2)
        labels = give_up(labels, shares, count)
    others = place_others(others, groups, room[0][0], rng)
    labels = place_others(labels, groups, room[1][0], rng)
    return (labels, others) if turned else (others, labels)


class BACOOptions(Options):
    """Options of `BACO`."""

    groups: int = planned("groups of users and of items together", low=2)
    slack: float = option(
        0.1, "how much larger than the mean a group may be", low=0, tune=(0.1, 1.0)
    )
    paired: bool = option(
        False, "a label for users and items alike, who hear one another; otherwise "
        "users hear users, and items items",
    )  # fmt: skip
    kin: int = option(50, "ids that each one hears, where not paired", low=1)
    rounds: int = option(
        2,
        "times that all hear one another before labels are given up",
        low=1,
        high=1000,
    )


class BACO(Trained[BACOOptions]):
    """A row for each group of users or items who share their links (key ``baco``).

    Groups come from the training pairs alone, before anything is trained, and none is
    much larger than another; what is trained is a row for each.  Users share rows with
    users, items with items.

    Parameters
    ----------
    spec : TableSpec
        Of a top-N task.
    options : BACOOptions
    seed : int, default 0

    Raises
    ------
    ValueError
        If the spec has no interactions.

    Notes
    -----
    After Jiang, Yang and Wu, "Balanced Co-Clustering of Users and Items for Embedding
    Table Compression in Recommender Systems" (2026), of which we read the abstract: an
    objective of links inside co-clusters and of balanced volumes, weights of users and
    items, a solver by label propagation, and second clusters of users.  We implement
    it as label propagation with room for so many ids in a group, over links with the
    weights of LightGCN; ids hear those of their own side with whom they share links,
    and only with `paired` those they are linked to.  There are no second clusters.
    """

    steady = True
    codes: Tensor

    def __init__(self, spec: TableSpec, options: BACOOptions, seed: int = 0) -> None:
        require_interactions(spec)
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.split = int(spec.field_starts[1])
        self.sizes = share_groups(spec, options.groups, options.paired)
        self.bits = count_bits(max(self.sizes))
        codes = np.concatenate(find_groups(spec, options, self.sizes, seed))
        self.register_buffer("codes", as_codes(codes[:, None], self.bits))
        rows = (sum(self.sizes), spec.embedding_dim)
        self.rows = nn.Parameter(draw_normal(rows, spec.init_std, [seed, 0]))

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: BACOOptions) -> Found:
        """The most groups whose rows fit beside the ids' codes."""
        require_interactions(spec)

        def size(groups: int) -> int:
            return grouped_rows(spec, share_groups(spec, groups, options.paired))

        budget = spec.require(ratio, smallest=size(options.groups or 2))
        most = sum(most_groups(spec, options.paired))
        fitting = largest_fitting(2, most, lambda groups: size(groups) <= budget)
        return {"groups": options.groups or fitting}

    def embed(self, ids: Tensor) -> Tensor:
        """The row of each id's group."""
        places = self.codes[ids, 0].long() + self.sizes[0] * (ids >= self.split)
        return pick_rows(places, self.rows, sparse=self.regime.sparse)

    def freeze(self) -> CodebookLayout:
        """The group of each id, and a row for each group."""
        return CodebookLayout.from_codes(
            self.codes.cpu().numpy(),
            as_float32(self.rows),
            [[0], [self.sizes[0]]],
            self.embedding_dim,
            self.bits,
            starts=np.array([0, self.split]),
        )


def find_groups(
    spec: TableSpec, options: BACOOptions, sizes: tuple[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Groups of users and of items, as many as `sizes` says."""
    pairs = require_interactions(spec)
    links = weigh_links(pairs, int(spec.field_starts[1]), spec.num_embeddings)
    slack, rounds = options.slack, options.rounds
    if options.paired:
        return group_pairs(links, sizes[0], slack, rounds, [seed, 1])
    users, items = (
        group_kin(find_kin(side, options.kin), groups, slack, rounds, [seed, number])
        for number, side, groups in zip((1, 2), (links, links.T.tocsr()), sizes)
    )
    return users, items


def most_groups(spec: TableSpec, paired: bool) -> tuple[int, int]:
    """Groups of users and of items at most: as many as ids, of the fewer if paired."""
    users, items = np.diff(spec.field_starts).tolist()
    if paired:
        users = items = min(users, items)
    return min(users, 1 << MOST_BITS), min(items, 1 << MOST_BITS)


def share_groups(spec: TableSpec, groups: int, paired: bool) -> tuple[int, int]:
    """How many of so many groups are of users, and of items: in proportion to them.

    Raises
    ------
    ValueError
        If there are more than ids, or fewer than one for each.
    """
    most = most_groups(spec, paired)
    check_range("groups", groups, 2, sum(most))
    if paired:
        return groups // 2, groups // 2
    users = min(max(groups * most[0] // sum(most), 1), groups - 1)
    return users, groups - users


def grouped_rows(spec: TableSpec, sizes: tuple[int, int]) -> int:
    """Bytes of the codes of all ids, and of rows for so many groups of each field."""
    rows, bits = spec.num_embeddings, count_bits(max(sizes))
    return codebook_bytes(rows, 1, bits, sum(sizes), spec.embedding_dim, groups=2)
