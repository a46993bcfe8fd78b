"""The probed layout: an id's row is the one beside which the id itself stands."""

import numpy as np
import pytest

from survey_code import compress
from survey_code.hashes import mix_ids
from survey_code.layouts import (
    DenseLayout,
    HashedLayout,
    ProbedLayout,
    RoutedLayout,
    load_layout,
)
from survey_code.layouts.hashed import mixed_index
from survey_code.layouts.probed import FREE, find_homes, identity_type, probed_bytes

# The hash of these numbers is a small id itself, so that homes can be counted by hand.
PLAIN = np.array([1, 1, 0])
ROWS, SLOTS, WINDOW, DIM = 100, 8, 3, 2
VALUES = np.arange(2 * (SLOTS + 1), dtype=np.float32).reshape(-1, DIM)


def place(where, kind=np.int32, slots=SLOTS):
    """Identities from slots and ids."""
    identities = np.full(slots, FREE, dtype=kind)
    for slot, one in where.items():
        identities[slot] = one
    return identities


# Homes 2, 2, 7 and 7: 10 stands in its own, 18 one further, 15 in its own, 23 in
# slot 1, the last of its window, round the end of the circle.
BY_HAND = place({2: 10, 3: 18, 7: 15, 1: 23})


def build(identities=BY_HAND, values=VALUES, window=WINDOW, rows=ROWS, **options):
    return ProbedLayout(identities, values, PLAIN, rows, window, **options)


def test_the_hash_of_plain_numbers_is_the_id():
    assert mix_ids(np.arange(100), *PLAIN.tolist()).tolist() == list(range(100))


def test_ids_are_found_by_hand_and_all_others_read_the_default():
    layout = build()
    found = layout.find_slots(np.arange(ROWS))
    assert {10: 2, 18: 3, 15: 7, 23: 1} == {
        int(one): int(found[one]) for one in np.flatnonzero(found < SLOTS)
    }
    np.testing.assert_array_equal(layout.lookup([10, 18, 15, 23]), VALUES[[2, 3, 7, 1]])
    # 2 and 26 have the home of 10; a free slot is nobody's.
    for other in (2, 26, 4, 99):
        np.testing.assert_array_equal(layout.lookup(other), VALUES[SLOTS])


def test_without_a_default_row_other_ids_read_zeros():
    layout = build(values=VALUES[:-1])
    assert not layout.has_default and build().has_default
    np.testing.assert_array_equal(
        layout.lookup([[18, 26], [5, 23]]), [[VALUES[3], [0, 0]], [[0, 0], VALUES[1]]]
    )
    pooled = layout.bag([18, 26, 5], [0, 1])
    np.testing.assert_array_equal(pooled, [VALUES[3], [0, 0]])


def test_open_ids_are_found_whatever_their_number():
    far = 2**62 + 3
    home = int(find_homes(np.array([far]), PLAIN, SLOTS)[0])
    assert home == 1  # as it folds
    layout = build(place({home + 1: far, 5: 12}, np.int64), open_ids=True)
    np.testing.assert_array_equal(layout.lookup([far, 12]), VALUES[[2, 5]])
    np.testing.assert_array_equal(layout.lookup([far + 8]), VALUES[[SLOTS]])
    narrow = build(place({4: 12}), open_ids=True)
    # The low half of a wide id is no id of its own.
    np.testing.assert_array_equal(narrow.lookup([12, 2**32 + 12]), VALUES[[4, SLOTS]])
    with pytest.raises(IndexError):
        build().lookup([far])


def test_two_ids_share_no_row_whatever_the_hash():
    """Random ids of 62 bits in a table that is nearly full."""
    rng = np.random.default_rng(3)
    numbers = np.array([rng.integers(2**62) | 1, rng.integers(2**62) | 1, 7])
    ids = np.unique(rng.integers(2**62, size=400))
    identities = np.full(300, FREE)
    for one, home in zip(ids, find_homes(ids, numbers, 300)):
        reached = (home + np.arange(16)) % 300
        free = reached[identities[reached] == FREE]
        identities[free[:1]] = one
    values = rng.normal(size=(301, 3)).astype(np.float32)
    layout = ProbedLayout(identities, values, numbers, 1000, 16, open_ids=True)
    slots = layout.find_slots(ids)
    named = slots[slots < 300]
    assert len(named) == len(np.unique(named)) == (identities != FREE).sum() > 280
    np.testing.assert_array_equal(identities[named], ids[slots < 300])


def test_bytes_are_known_before_there_is_a_layout(tmp_path):
    for kind, default in ((np.int32, True), (np.int64, False)):
        layout = build(place({2: 10}, kind), VALUES[: SLOTS + default])
        row, identity = 4 * DIM, np.dtype(kind).itemsize
        assert layout.nbytes == probed_bytes(SLOTS, row, identity, default)
    layout.save(tmp_path / "probed.safetensors")
    again = load_layout(tmp_path / "probed.safetensors")
    assert again.window == WINDOW and again.nbytes == layout.nbytes


def test_identities_are_as_narrow_as_the_ids_allow():
    assert identity_type(2**31) == np.int32 and identity_type(2**31 + 1) == np.int64
    assert identity_type(10, open_ids=True) == np.int64


def test_rows_may_be_a_layout():
    rows = np.random.default_rng(0).normal(size=(SLOTS + 1, 8)).astype(np.float32)
    rounded = compress(rows, "rowwise", bits=8)
    layout = build(values=rounded)
    np.testing.assert_array_equal(layout.lookup([23, 5]), rounded.lookup([1, SLOTS]))
    # A layout of any id where the slots are fewer: they are what counts.
    hashed = HashedLayout(rows[:3], mixed_index(1, [3]), SLOTS, 8, open_ids=True)
    layout = build(values=hashed)
    assert not layout.has_default
    np.testing.assert_array_equal(layout.lookup([23]), hashed.lookup([1]))
    assert not layout.lookup([5]).any()


def test_it_is_a_part_of_other_layouts():
    ids = np.array([10, 50])
    layout = RoutedLayout.from_ids([DenseLayout(-VALUES[:2]), build()], [ids], ROWS)
    np.testing.assert_array_equal(layout.lookup([10, 18]), [-VALUES[0], VALUES[3]])


# -- what cannot be ----------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({2: 10, 3: 10}, "id 10 is stored twice"),
        ({5: 10}, "id 10 is stored in slot 5, outside its window of 3"),
        ({1: 10}, "id 10 is stored in slot 1, outside its window"),
        ({2: 23}, "id 23 is stored in slot 2, outside its window"),
        ({4: 100}, "ids of a table of 100 rows, got 100"),
        ({4: -2}, "ids of a table of 100 rows, got -2"),
    ],
    ids=repr,
)
def test_an_id_in_two_slots_or_beside_its_window_is_a_value_error(where, said):
    with pytest.raises(ValueError, match=said):
        build(place(where))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"identities": BY_HAND.astype(np.int16)}, "identities must be int32 or int64"),
        ({"identities": BY_HAND[None]}, "identities must be int32 or int64"),
        ({"identities": BY_HAND[:0]}, "identities must be int32 or int64"),
        ({"values": VALUES[:-2]}, "values must be"),
        ({"values": np.vstack([VALUES, VALUES])}, "values must be"),
        ({"values": VALUES.astype(int)}, "values must be"),
        ({"values": VALUES[0]}, "rows must be an array of two axes"),
        ({"values": np.where(VALUES == 3, np.nan, VALUES)}, "must be finite"),
        ({"window": 0}, "window must be an integer from 1"),
        ({"window": 9}, "window must be an integer from 1 to 8, got 9"),
        ({"window": 1.5}, "window must be an integer"),
        ({"window": True}, "window must be an integer"),
        ({"rows": 0}, "at least one row"),
        ({"open_ids": 2}, "open_ids must be"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_parts_that_contradict_each_other_are_value_errors(changes, said):
    with pytest.raises(ValueError, match=said):
        build(**changes)


@pytest.mark.parametrize("numbers", [PLAIN[:2], PLAIN.astype(np.int32), None])
def test_what_is_no_hash_is_a_value_error(numbers):
    with pytest.raises(ValueError, match="numbers must be two multipliers"):
        ProbedLayout(BY_HAND, VALUES, numbers, ROWS, WINDOW)
