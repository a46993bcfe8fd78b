"""The routed layout: each id in one part, and all of it counted."""

import numpy as np
import pytest
import torch

from survey_code import compress
from survey_code.bits import mark_ids
from survey_code.layouts import (
    AddedLayout,
    AnchorLayout,
    CodebookLayout,
    DenseLayout,
    GroupedLayout,
    HashedLayout,
    PackedLayout,
    RoutedLayout,
    TurnedLayout,
)
from survey_code.layouts.hashed import mixed_index
from survey_code.layouts.routed import (
    apart_bytes,
    keep_apart,
    most_apart,
    routing_bytes,
)
from survey_code.layouts.rowwise import row_bytes

DIM, ROWS = 8, 1000
TABLE = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)


def split(*sizes):
    order = np.random.default_rng(1).permutation(ROWS)
    return [np.sort(ids) for ids in np.split(order, np.cumsum(sizes))]


def build(*ids):
    """The first in full, then in 8, 4 and 2 bits."""
    parts = [DenseLayout(TABLE[ids[0]])]
    parts += [
        compress(TABLE[own], "rowwise", bits=bits)
        for bits, own in zip((8, 4, 2), ids[1:])
    ]
    return RoutedLayout.from_ids(parts, ids[:-1], ROWS)


@pytest.mark.parametrize("sizes", [(5, 20, 30), (50, 200, 300)], ids=repr)
def test_each_row_is_that_of_its_own_part(sizes):
    ids = split(*sizes)
    layout = build(*ids)
    assert ("keys" in layout.arrays()) == (sizes[0] == 5)  # whichever is smaller
    np.testing.assert_array_equal(layout.lookup(ids[0]), TABLE[ids[0]])
    for bits, some in zip((8, 4, 2), ids[1:]):
        whole = compress(TABLE, "rowwise", bits=bits)
        np.testing.assert_array_equal(layout.lookup(some), whole.lookup(some))
    mixed = np.random.default_rng(2).permutation(ROWS)
    by_one = np.concatenate([layout.lookup([i]) for i in mixed])
    np.testing.assert_array_equal(layout.lookup(mixed), by_one)


def test_rows_and_what_says_where_they_are_are_all_counted():
    """Each row's own bytes, and 4 bytes for each named id or 12 for 64 ids."""
    for sizes, routing in (((5, 20, 30), 4 * 55), ((50, 200, 300), 3 * 12 * 16)):
        layout = build(*split(*sizes))
        rows = sizes[0] * 4 * DIM
        for count, bits in zip((*sizes[1:], ROWS - sum(sizes)), (8, 4, 2)):
            rows += count * row_bytes(DIM, bits)
        assert layout.nbytes == rows + routing
        assert routing_bytes(ROWS, sizes) == routing


def test_a_last_part_of_all_ids_is_asked_by_number():
    index = mixed_index(3, [50])
    hashed = HashedLayout(TABLE[:50], index, ROWS, DIM, open_ids=True)
    ids = np.array([3, 17, 999])
    layout = keep_apart(ROWS, ids, -TABLE[ids], hashed)
    np.testing.assert_array_equal(layout.lookup(ids), -TABLE[ids])
    others = np.setdiff1d(np.arange(ROWS), ids)
    np.testing.assert_array_equal(layout.lookup(others), hashed.lookup(others))
    # Ids beyond the table are the last part's.
    beyond = np.array([ROWS, ROWS + 17, 2**62])
    np.testing.assert_array_equal(layout.lookup(beyond), hashed.lookup(beyond))


def test_where_no_ids_are_apart_there_is_nothing_to_route():
    hashed = HashedLayout(TABLE[:50], mixed_index(3, [50]), ROWS, DIM)
    assert keep_apart(ROWS, np.arange(0), TABLE[:0], hashed) is hashed


@pytest.mark.parametrize("row", [4, 64])
@pytest.mark.parametrize("budget", [0, 100, 3000, 64_000])
def test_the_most_rows_apart_are_the_most(row, budget):
    most = most_apart(ROWS, row, budget)
    assert apart_bytes(ROWS, most, row) <= budget
    assert most == ROWS or apart_bytes(ROWS, most + 1, row) > budget


def test_scores_are_those_of_the_rows():
    layout = build(*split(5, 20, 30))
    queries = TABLE[:7]
    wanted = queries @ layout.lookup(np.arange(ROWS)).T
    np.testing.assert_allclose(layout.scores(queries), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        layout.scores(queries, (100, 321)), wanted[:, 100:321], rtol=1e-5, atol=1e-5
    )
    best = layout.topk(queries, 3)
    order = np.argsort(-layout.scores(queries), axis=1, kind="stable")
    np.testing.assert_array_equal(best, order[:, :3])


# -- what cannot be ----------------------------------------------------------


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
    parts = [DenseLayout(TABLE[:2]), compress(TABLE[:2], "rowwise")]
    with pytest.raises(ValueError, match=r"keys|marks must|named ids"):
        RoutedLayout(parts, 4, keys)


def test_marks_that_cannot_be_are_value_errors():
    parts = [DenseLayout(TABLE[:2]), DenseLayout(TABLE[:98])]
    marks, ranks = (array[None] for array in mark_ids(np.array([3, 70]), 100))
    RoutedLayout(parts, 100, marks=marks, ranks=ranks)
    for wrong in (
        marks[:, :1],
        marks[0],
        marks.astype(np.int64),
        0 * marks,
        marks << 40,
    ):
        with pytest.raises(ValueError, match=r"marks|named ids"):
            RoutedLayout(parts, 100, marks=wrong, ranks=ranks)
    for wrong in (None, ranks + np.uint32(1), ranks.astype(np.int32)):
        with pytest.raises(ValueError, match="ranks must count"):
            RoutedLayout(parts, 100, marks=marks, ranks=wrong)
    keys = np.array([3, 70], np.int32)
    with pytest.raises(ValueError, match="exclude each other"):
        RoutedLayout(parts, 100, keys, marks, ranks)


def test_an_id_in_two_parts_is_a_value_error():
    parts = [DenseLayout(TABLE[:2])] * 3
    with pytest.raises(ValueError, match="different ids"):
        RoutedLayout(parts, 6, np.array([0, 2, 1, 2], np.int32))


def test_parts_that_do_not_add_up_are_value_errors():
    keys = np.array([0, 1], np.int32)
    two, three = DenseLayout(TABLE[:2]), DenseLayout(TABLE[:3])
    with pytest.raises(ValueError, match="the last must have 2, or all 4"):
        RoutedLayout([two, three], 4, keys)
    with pytest.raises(ValueError, match="two parts or more"):
        RoutedLayout([two], 2)
    with pytest.raises(ValueError, match="two parts or more"):
        RoutedLayout([], 2)
    with pytest.raises(ValueError, match="all layouts"):
        RoutedLayout([two, TABLE[:2]], 4, keys)
    with pytest.raises(ValueError, match="rows have"):
        RoutedLayout([two, DenseLayout(TABLE[:2, :3])], 4, keys)


@pytest.mark.parametrize("count", [3, 600])  # listed, and marked
@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda ids: ids[::-1], "must rise"),
        (lambda ids: np.append(ids[:-1], ids[0]), "must rise"),
        (lambda ids: np.append(ids[:-1], ROWS), "from 0 to 999, got 1000"),
        (lambda ids: np.append(ids[:-1], 2**32 + 5), "from 0 to 999, got 4294967301"),
        (lambda ids: ids - 5, "from 0 to 999, got -"),
        (lambda ids: ids + 0.5, "must be integers"),
        (lambda ids: ids > 3, "must be integers"),
        (lambda ids: ids.astype(str), "must be integers"),
        (lambda ids: ids[:, None], "along one axis"),
    ],
)
def test_ids_that_cannot_be_are_value_errors_however_they_are_stored(
    count, spoil, match
):
    ids = np.arange(3, 3 + count)
    others = np.setdiff1d(np.arange(ROWS), ids)
    keep_apart(ROWS, ids, TABLE[ids], DenseLayout(TABLE[others]))
    with pytest.raises(ValueError, match=match):
        keep_apart(ROWS, spoil(ids), TABLE[ids], DenseLayout(TABLE[others]))


def test_what_is_no_layout_is_a_value_error():
    two = DenseLayout(TABLE[:2])
    for make in (
        lambda: RoutedLayout.from_ids([two, two], [], 4),
        lambda: RoutedLayout.from_ids([None, two], [np.array([0, 1])], 4),
        lambda: AddedLayout([None, two]),
        lambda: AddedLayout([two, TABLE[:2]]),
        lambda: TurnedLayout(TABLE[:2], TABLE[:8]),
        lambda: CodebookLayout(None, TABLE[:8], [[0]], 8),
        lambda: GroupedLayout([None], 2),
        lambda: HashedLayout(None, mixed_index(3, [50]), ROWS, DIM),
        lambda: AnchorLayout(TABLE[:2], [1.0], [0], None),
        lambda: PackedLayout.from_integers(np.array([[1.5]]), 4),
    ):
        with pytest.raises(ValueError):
            make()


def test_queries_that_are_no_numbers_are_value_errors():
    layout = AddedLayout([DenseLayout(TABLE)] * 2)
    for wrong in (np.nan, np.inf):
        queries = TABLE[:3].copy()
        queries[0, 0] = wrong
        with pytest.raises(ValueError, match="finite"):
            layout.topk(queries, 3)


# -- searches ----------------------------------------------------------------


def searched():
    rng = np.random.default_rng(3)
    parts = [DenseLayout(rng.normal(size=(n, 4)).astype(np.float32)) for n in (3, 9)]
    return RoutedLayout.from_ids(parts, [np.array([1, 5, 6])], 12)


ONE = np.ones((1, 4), np.float32)
WRONG_SEARCHES = {
    "k of 0": ({"k": 0}, "k must be from 1 to 12, got 0"),
    "k below 0": ({"k": -1}, "k must be from 1 to 12"),
    "k beyond": ({"k": 13}, "k must be from 1 to 12"),
    "k beyond the candidates": (
        {"k": 3, "candidates": (4, 6)},
        "k must be from 1 to 2",
    ),
    "k of truth": ({"k": True}, "k must be"),
    "k of a fraction": ({"k": 2.0}, "k must be"),
    "k of nothing": ({"k": None}, "k must be"),
    "chunk of 0": ({"chunk": 0}, "chunk must be an integer from 1 up, got 0"),
    "chunk below 0": ({"chunk": -1}, "chunk must be an integer from 1 up"),
    "chunk of a fraction": ({"chunk": 1.5}, "chunk must be an integer"),
    "chunk of truth": ({"chunk": True}, "chunk must be an integer"),
    "no candidates": ({"candidates": (4, 4)}, "candidates must be a range"),
    "candidates back": ({"candidates": (6, 4)}, "candidates must be a range"),
    "candidates beyond": ({"candidates": (0, 13)}, "candidates must be a range"),
    "candidates before": ({"candidates": (-1, 3)}, "candidates must be a range"),
    "candidates of fractions": (
        {"candidates": (0.0, 3.0)},
        "candidates must be a range",
    ),
    "candidates without end": (
        {"candidates": (0, np.inf)},
        "candidates must be a range",
    ),
    "candidates of nothing": ({"candidates": (None, 3)}, "candidates must be a range"),
    "candidates of text": ({"candidates": ("0", "3")}, "candidates must be a range"),
    "candidates of truth": (
        {"candidates": (False, True)},
        "candidates must be a range",
    ),
    "one candidate": ({"candidates": 3}, "candidates must be a range"),
    "three candidates": ({"candidates": (0, 1, 2)}, "candidates must be a range"),
    "one axis": ({"queries": ONE[0]}, r"queries must be vectors of shape \(m, 4\)"),
    "three axes": ({"queries": ONE[None]}, "queries must be vectors"),
    "one column": ({"queries": ONE[:, :1]}, "queries must be vectors"),
    "columns of rows": ({"queries": ONE.T}, "queries must be vectors"),
    "integers": ({"queries": ONE.astype(int)}, "queries must be vectors"),
    "complex": ({"queries": ONE + 0j}, "queries must be vectors"),
    "truth values": ({"queries": ONE > 0}, "queries must be vectors"),
    "text": ({"queries": np.array([["a"] * 4])}, "queries must be vectors"),
    "NaN": ({"queries": ONE * np.nan}, "queries must be finite"),
    "infinity": ({"queries": -ONE * np.inf}, "queries must be finite"),
    "beyond float32": (
        {"queries": ONE.astype(float) * 1e300},
        "queries must be finite",
    ),
    "products beyond float32": (
        {"queries": ONE * np.float32(3e38)},
        "queries are too large",
    ),
    "masked": ({"queries": np.ma.masked_array(ONE)}, "queries must not be a masked"),
}


@pytest.mark.parametrize("search", WRONG_SEARCHES.values(), ids=WRONG_SEARCHES)
def test_a_search_that_cannot_be_is_one_value_error(search):
    arguments, words = search
    queries = arguments.get("queries", ONE)
    with pytest.raises(ValueError, match=words), np.errstate(all="ignore"):
        searched().topk(**{"queries": queries, "k": 1, **arguments})
    if not {"k", "chunk"} & set(arguments):
        with pytest.raises(ValueError, match=words), np.errstate(all="ignore"):
            searched().scores(queries, arguments.get("candidates"))


@pytest.mark.parametrize("kind", [np.float16, np.float64, "tensor", "gradient"])
def test_queries_of_any_floats_find_the_same(kind):
    layout, rng = searched(), np.random.default_rng(4)
    queries = rng.integers(-3, 4, size=(5, 4)).astype(np.float32)
    if isinstance(kind, str):
        given = torch.from_numpy(queries).requires_grad_(kind == "gradient")
    else:
        given = queries.astype(kind)
    wanted = layout.topk(queries, 3, candidates=(1, 11))
    np.testing.assert_array_equal(layout.topk(given, 3, (1, 11), chunk=2), wanted)
    assert layout.topk(queries[:0], 2).shape == (0, 2)
    assert layout.topk(queries, np.int32(12)).shape == (5, 12)
