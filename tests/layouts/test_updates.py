"""Rows replaced where they stand: what can be, what they become, and who sees it."""

import threading

import numpy as np
import pytest
import torch

from survey_code import compress, load_layout, update_rows
from survey_code.embedding import decode_layout
from survey_code.layouts import BinaryLayout, DenseLayout, RoutedLayout, RowwiseLayout

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(40, 16)).astype(np.float32)
NEW = 3 * RNG.normal(size=(5, 16)).astype(np.float32)
IDS = np.array([3, 39, 0, 17, 20])


def made(key, **options):
    return lambda table: compress(table, key, **options)


def blocks(table):
    scales = np.abs(table.reshape(-1, 4, 4), dtype=np.float64).mean(axis=2)
    return BinaryLayout.from_signs(table, scales.astype(np.float32), blocks=4)


def routed(table):
    ids = np.array([0, 3, 21])
    others = np.setdiff1d(np.arange(len(table)), ids)
    parts = compress(table[ids], "half"), compress(table[others], "rowwise", bits=4)
    return RoutedLayout.from_ids(parts, [ids], len(table))


# How a layout is made of a table, row by row: then an update is the same as making
# it of the new table.
ALONE = {
    "full": made("full"),
    "float16": made("half"),
    "bfloat16": made("half", dtype="bfloat16"),
    "rowwise 8": made("rowwise", bits=8),
    "rowwise 4": made("rowwise", bits=4),
    "rowwise 2": made("rowwise", bits=2),
    "signs": made("bccf", rule="sign", scale="row"),
    "half scales": made("bccf", rule="sign", scale="row", half=True),
    "blocks": blocks,
    "routed": routed,
}


@pytest.mark.parametrize("make", ALONE.values(), ids=ALONE)
def test_an_update_is_what_the_new_table_would_be(make, tmp_path):
    layout, table = make(TABLE), TABLE.copy()
    before = decode_layout(layout)
    table[IDS] = NEW
    update_rows(layout, IDS, NEW)
    wanted = make(table)
    assert layout.arrays().keys() == wanted.arrays().keys()
    for name, array in wanted.arrays().items():
        np.testing.assert_array_equal(layout.arrays()[name], array)
    others = np.setdiff1d(np.arange(40), IDS)
    np.testing.assert_array_equal(layout.lookup(others), before[others])
    layout.save(tmp_path / "table")
    np.testing.assert_array_equal(
        load_layout(tmp_path / "table").lookup(IDS), layout.lookup(IDS)
    )


@pytest.mark.parametrize("make", ALONE.values(), ids=ALONE)
def test_compiled_code_reads_what_was_updated(make):
    layout = make(TABLE)
    layout.prepare()
    layout.lookup(IDS)
    update_rows(layout, IDS, NEW)
    np.testing.assert_array_equal(layout.lookup(IDS), layout.read_rows(IDS))


def test_of_an_id_twice_the_last_row_counts_whatever_is_given():
    layout = DenseLayout(np.zeros((4, 2), np.float32))
    update_rows(layout, torch.tensor([2, 1, 2]), torch.tensor([[1, 1], [2, 2], [3, 3]]))
    assert layout.lookup([0, 1, 2]).tolist() == [[0, 0], [2, 2], [3, 3]]


DEPENDENT = {
    "table": made("rowwise", per="table"),
    "one scale": made("bccf", rule="sign"),
    "no scale": made("bccf", rule="sign", scale="none"),
    "pph": made("bccf", rule="pph"),
    "pq": made("pq", bits=2),
    "sparse": made("magnitude"),
    "mx4": made("half", dtype="mx4"),
    "centred": lambda table: RowwiseLayout.from_codes(
        np.ones(table.shape, np.uint8), np.ones(len(table)), None, 4
    ),
}


@pytest.mark.parametrize("make", DEPENDENT.values(), ids=DEPENDENT)
def test_rows_that_share_are_refused_by_name(make):
    layout = make(TABLE)
    with pytest.raises(ValueError, match=rf"{layout.name} layout cannot be updated"):
        update_rows(layout, IDS, NEW)


def test_only_the_parts_that_hold_the_ids_must_allow_it():
    heads = np.array([0, 3])
    parts = DenseLayout(TABLE[heads].copy()), compress(TABLE[2:], "pq", bits=2)
    layout = RoutedLayout.from_ids(parts, [heads], 40)
    update_rows(layout, heads, NEW[:2])
    np.testing.assert_array_equal(layout.lookup(heads), NEW[:2])
    with pytest.raises(ValueError, match="codebook layout cannot be updated"):
        update_rows(layout, [3, 4], NEW[:2])
    np.testing.assert_array_equal(layout.lookup(heads), NEW[:2])


def test_what_is_wrong_is_told_and_nothing_changes():
    layout = compress(TABLE, "half")
    before = decode_layout(layout)
    for ids, rows, error, said in [
        ([40, 0], NEW[:2], IndexError, "id 40 is out of range"),
        ([-1, 0], NEW[:2], IndexError, "id -1"),
        ([0.5, 1], NEW[:2], ValueError, "ids must be integers"),
        ([0, 1], NEW[:3], ValueError, r"got shapes \(2,\) and \(3, 16\)"),
        ([0, 1], NEW[:2, :4], ValueError, r"\(2, 4\)"),
        ([[0, 1]], NEW[:2], ValueError, "one axis"),
        ([0, 1], np.full((2, 16), np.nan), ValueError, "finite"),
        ([0, 1], np.full((2, 16), 1e6), ValueError, "float16 holds values"),
        ([0], ["a"], ValueError, "rows must be an array of numbers"),
    ]:
        with pytest.raises(error, match=said):
            update_rows(layout, ids, rows)
    np.testing.assert_array_equal(decode_layout(layout), before)


def test_arrays_that_cannot_be_written_are_refused(tmp_path):
    compress(TABLE, "rowwise").save(tmp_path / "table")
    with pytest.raises(ValueError, match="without mmap=True"):
        update_rows(load_layout(tmp_path / "table", mmap=True), IDS, NEW)
    with pytest.raises(ValueError, match="without gaps"):
        update_rows(DenseLayout(np.asfortranarray(TABLE)), IDS, NEW)


def test_the_bound_of_an_updated_part_is_found_anew():
    part = DenseLayout(TABLE.copy())
    update_rows(part, [1], np.full((1, 16), 3e38))
    other = DenseLayout(np.zeros((2, 16), np.float32))
    outer = RoutedLayout.from_ids([other, part], [np.array([0, 1])], 42)
    assert outer.largest >= 3e38


@pytest.mark.parametrize("key", ["full", "rowwise", "bccf"])
def test_readers_never_see_a_part_of_a_row(key):
    """Rows are all the one number or all the other; wide ones take long to copy."""
    options = {"bccf": {"rule": "sign", "scale": "row"}}.get(key, {})
    low, high = (np.full((2, 40_000), x, np.float32) for x in (-1, 2))
    layout = compress(low.copy(), key, **options)
    done, torn = threading.Event(), []

    def look():
        while not done.is_set():
            rows = layout.lookup([0, 1]), layout.bag([0, 1], [0, 1])
            torn.extend(set(np.unique(part)) for part in rows if np.ptp(part))

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    for turn in range(200):
        update_rows(layout, [0, 1], high if turn % 2 == 0 else low)
    done.set()
    for reader in readers:
        reader.join()
    assert not torn
    np.testing.assert_array_equal(layout.lookup([1]), low[:1])
    assert layout.edition == 400


def test_a_copy_is_not_caught_in_the_middle_of_an_update():
    import copy

    layout = compress(TABLE, "full")
    layout.edition = 3
    assert copy.deepcopy(layout).lookup([0]).shape == (1, 16)
