"""What a method may know: sizes, fields, counts, and what a ratio leaves."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest

from survey_code import TableSpec

STARTS, COUNTS = np.array([0, 2, 5]), np.array([3, 0, 1, 1, 1])


def test_spec_keeps_what_it_is_given():
    spec = TableSpec(5, 4, [0, 2, 5], [3, 0, 1, 1, 1])
    assert spec.full_bytes == 4 * 5 * 4 and spec.init_std == 0.01
    assert spec.field_starts.dtype == spec.train_counts.dtype == np.int64
    np.testing.assert_array_equal(spec.field_starts, STARTS)
    np.testing.assert_array_equal(spec.train_counts, COUNTS)


def test_spec_of_a_shape_knows_nothing_else():
    spec = TableSpec.of_shape(7, 3)
    assert spec.field_starts.tolist() == [0, 7]
    assert spec.train_counts.tolist() == [0] * 7


@pytest.mark.parametrize(
    "arguments",
    [
        (0, 4, [0, 0], []),
        (-5, 4, STARTS, COUNTS),
        (5, 0, STARTS, COUNTS),
        (5, 4.0, STARTS, COUNTS),
        ("5", 4, STARTS, COUNTS),
        (5, 4, [0, 2, 6], COUNTS),
        (5, 4, [1, 5], COUNTS),
        (5, 4, [0, 2, 2, 5], COUNTS),
        (5, 4, [0, 4, 3, 5], COUNTS),
        (5, 4, [5], COUNTS),
        (5, 4, 5, COUNTS),
        (5, 4, STARTS, 3),
        (5, 4, [[0, 5]], COUNTS),
        (5, 4, [0, 2.5, 5], COUNTS),
        (5, 4, None, COUNTS),
        (5, 4, STARTS, COUNTS[:4]),
        (5, 4, STARTS, COUNTS[None]),
        (5, 4, STARTS, -COUNTS),
        (5, 4, STARTS, COUNTS / 2),
        (5, 4, STARTS, [np.nan] * 5),
        (5, 4, STARTS, list("abcde")),
        (True, 4, [0, 1], [0]),
        (5, True, STARTS, COUNTS),
        (5, np.float32(4), STARTS, COUNTS),
        (5, 4, STARTS, np.ones(5, bool)),
        (5, 4, STARTS, np.ma.masked_array(COUNTS, COUNTS == 0)),
        (5, 4, STARTS, [[1], [1, 2]]),
        (5, 4, STARTS, np.full(5, 2**63, np.uint64)),
        (5, 4, STARTS, [2**70] * 5),
        (5, 4, np.array([True, True]), COUNTS),
    ],
)
def test_what_is_no_spec_is_a_value_error(arguments):
    with pytest.raises(ValueError):
        TableSpec(*arguments)


@pytest.mark.parametrize("size", [0, -1, True, 3.0, "3", None])
def test_no_table_without_rows(size):
    with pytest.raises(ValueError, match="num_embeddings must be an integer from 1"):
        TableSpec.of_shape(size, 4)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.uint32, np.int64])
def test_sizes_of_any_integer_type_do_not_overflow(kind):
    """Four bytes a number of such a table are more than its type can count."""
    most = min(int(np.iinfo(kind).max), 2**23)
    spec = TableSpec.of_shape(kind(most), kind(100))
    assert type(spec.num_embeddings) is type(spec.embedding_dim) is int
    assert spec.full_bytes == 4 * most * 100
    assert spec.budget(kind(2)) == 2 * most * 100


def test_facts_of_any_integer_type_are_taken():
    for kind in (np.int8, np.int32, np.uint64):
        pairs = np.array([[0, 3]], kind)
        spec = TableSpec(5, 4, STARTS.astype(kind), COUNTS.astype(kind), pairs)
        for array in (spec.field_starts, spec.train_counts, spec.interactions):
            assert array.dtype == np.int64


@pytest.mark.parametrize(
    ("ratio", "bytes"),
    [(1, 2000), (3, 666), (7.5, 266), (np.float32(4), 500), (np.int64(10), 200),
     (Fraction(5, 2), 800)],
)  # fmt: skip
def test_budget_is_full_bytes_over_ratio_rounded_down(ratio, bytes):
    assert TableSpec.of_shape(50, 10).budget(ratio) == bytes


@pytest.mark.parametrize(
    "ratio",
    [
        0,
        -1,
        0.5,
        0.999,
        math.nan,
        math.inf,
        -math.inf,
        "4",
        None,
        [4],
        4 + 0j,
        True,
        np.bool_(True),
        10**400,
    ],
)
def test_bad_ratios_are_value_errors(ratio):
    with pytest.raises(ValueError, match="ratio must be a number from 1 up"):
        TableSpec.of_shape(50, 10).budget(ratio)


def test_the_ratio_that_require_names_is_in_reach_and_the_highest():
    """Of all sizes of the smallest table: to three decimals, and never above."""
    for rows, dim in ((1, 1), (37, 6), (251, 16), (5000, 16), (10**6, 16)):
        spec = TableSpec.of_shape(rows, dim)
        full = spec.full_bytes
        for smallest in range(1, full + 1, max(1, full // 500)):
            with pytest.raises(ValueError) as error:
                spec.require(2.0 * full, smallest)
            named = re.search(r"highest ratio it can reach is (\S+)$", str(error.value))
            ratio = float(named[1])
            assert spec.require(ratio, smallest) >= smallest
            assert ratio > full / smallest - 0.0021


def test_require_says_when_no_ratio_is_in_reach():
    spec = TableSpec.of_shape(5, 4)
    with pytest.raises(ValueError, match="highest ratio it can reach is below 1"):
        spec.require(1, smallest=81)


def test_weights_outside_the_table_count_on_both_sides_of_a_ratio():
    spec = TableSpec(5, 4, STARTS, COUNTS, outside_bytes=20)
    assert spec.full_bytes == 80
    for ratio, left in ((1, 80), (2, 30), (4, 5), (5, 0), (50, 0)):
        assert spec.budget(ratio) == left
    with pytest.raises(ValueError, match=r"highest ratio it can reach is 3\.846$"):
        spec.require(5, smallest=6)
    assert spec.require(3.846, smallest=6) == 6


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"interactions": np.ones((3, 3), dtype=int)}, "interactions must be pairs"),
        ({"interactions": np.array([[0, -1]])}, "interactions must be pairs"),
        ({"interactions": [[0, 1]]}, "interactions must be pairs"),
        ({"interactions": np.array([[0.5, 1]])}, "interactions must be pairs"),
        ({"interactions": np.array([[0, 99]])}, "interactions must be pairs"),
        ({"init_std": -1.0}, "init_std must be a number above 0, got -1.0"),
        ({"init_std": float("nan")}, "init_std must be a number above 0, got nan"),
        ({"init_std": "0.1"}, "init_std must be a number above 0, got '0.1'"),
        ({"init_std": True}, "init_std must be a number above 0, got True"),
        ({"outside_bytes": -4}, "outside_bytes must be an integer from 0 up, got -4"),
        ({"outside_bytes": 2.5}, "outside_bytes must be an integer from 0 up, got 2.5"),
        ({"outside_bytes": True}, "outside_bytes must be an integer from 0 up"),
    ],
)
def test_what_else_a_spec_holds_is_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        TableSpec(5, 2, np.array([0, 2, 5]), np.zeros(5, dtype=int), **changes)


def test_content_is_a_finite_vector_for_each_id():
    content = np.ones((5, 3), np.float32)
    assert TableSpec(5, 4, STARTS, COUNTS, content=content).content is content
    assert TableSpec(5, 4, STARTS, COUNTS).content is None


BAD_ROW = np.ones((5, 3), np.float32)
BAD_ROW[2, 1] = np.nan


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (np.ones((5, 3)), r"float32 of shape \(5, width\), got float64"),
        (np.ones((4, 3), np.float32), r"got float32 of shape \(4, 3\)"),
        (np.ones((5, 0), np.float32), r"got float32 of shape \(5, 0\)"),
        (np.ones(5, np.float32), r"got float32 of shape \(5,\)"),
        (np.ma.ones((5, 3), dtype=np.float32), "content must be a vector"),
        ([[1.0]] * 5, "got list of shape"),
        ("text", "got str of shape"),
        (BAD_ROW, "content must be finite in float32: row 2"),
    ],
    ids=lambda value: "" if isinstance(value, np.ndarray) else str(value)[:20],
)
def test_what_is_no_content_is_a_value_error(content, said):
    with pytest.raises(ValueError, match=said):
        TableSpec(5, 4, STARTS, COUNTS, content=content)
