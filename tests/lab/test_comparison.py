"""What records say at a ratio, and which differences are some."""

import math

import numpy as np
import pytest

from survey_code.lab import Result, compare, judge, rank, subtract, tabulate
from survey_code.lab.comparison import Point, draw_curves, main_metric, read_point
from survey_code.lab.results import name_curve


def make(key, ratio, values, reached=None, entrant="", failure=None):
    """A result for each seed."""
    empty = {n: {} for n in ("options", "validation", "seconds", "lookup", "settings")}
    return [
        Result(
            key=key, data="d", model="m", dim=8, seed=seed, requested_ratio=ratio,
            reached_ratio=reached or ratio, bytes={"inference": 1}, device="cpu",
            test={} if failure else {"auc": value}, date="2026-01-01", versions={},
            command="c", entrant=entrant, failure=failure, **empty,
        )
        for seed, value in enumerate(values, 1)
    ]  # fmt: skip


RESULTS = [
    *make("full", 1, [0.9, 0.92, 0.91]),
    *make("double_hashing", 4, [0.80, 0.81, 0.82]),
    *make("double_hashing", 16, [0.70, 0.71, 0.72]),
    *make("rowwise", 4, [0.88, 0.9, 0.89], 4.3, "rowwise, 8 bits"),
    *make("rowwise", 8, [0.86, 0.88, 0.87], 8.0, "rowwise, 4 bits"),
    *make("uniform", 4, [0.85, 0.86, 0.84]),
    *make("uniform", 10, [0.75, 0.76, 0.74], 16.0),
    *make("half", 2, [0.91]),
    *make("half", 10, [0.0], failure="cannot: at most 2x", entrant="half"),
]


def test_a_column_holds_only_what_is_within_a_tenth_of_its_ratio():
    table = tabulate(RESULTS, ratios=(2, 4, 8, 16))
    assert table.columns.tolist() == ["2x", "4x", "8x", "16x"]
    assert table.loc["rowwise"].tolist()[1:] == [
        "0.8900 ± 0.0100", "0.8700 ± 0.0100", "",
    ]  # fmt: skip
    assert table.loc["uniform", "16x"] == "0.7500 ± 0.0100"
    assert table.loc["half"].tolist() == ["0.9100", "", "", ""]


def test_between_two_points_a_value_is_read_off_their_line():
    table = tabulate(RESULTS, ratios=(8.0,))
    assert table.loc["double_hashing", "8x"] == "~0.7600 ± 0.0100"
    point = read_point(draw_curves(RESULTS)["double_hashing"], 4 * math.sqrt(2))
    assert point.mean == pytest.approx(0.785) and point.reached == (4, 16)
    # Beyond the ends nothing is said.
    assert read_point(draw_curves(RESULTS)["double_hashing"], 20) is None
    assert read_point(draw_curves(RESULTS)["double_hashing"], 3) is None


@pytest.mark.parametrize("ratio", [9.0, 10.0, 11.0])
def test_the_nearest_of_several_points_is_taken(ratio):
    points = [Point({1: r}, (r,)) for r in (8.5, 9.2, 10.1, 11.5)]
    want = min((p.reached[0] for p in points), key=lambda r: abs(math.log(r / ratio)))
    assert read_point(points, ratio).reached == (want,)


def test_out_of_reach_is_said():
    table = tabulate(RESULTS)
    assert table.loc["half", "10x"] == "cannot"


def test_bits_are_points_of_one_curve():
    names = {
        "rowwise, 8 bits": "rowwise", "rotated, 1 bits": "rotated", "lsq": "lsq",
        "rowwise, 4 bits a table": "rowwise, a table",
        "hashing, apart": "hashing, apart",
    }  # fmt: skip
    for name, curve in names.items():
        assert name_curve(make("x", 1, [0], entrant=name)[0]) == curve


def test_a_ratio_is_compared_with_the_full_table():
    table = compare(RESULTS, 4)
    assert table.index.tolist() == ["full", "rowwise", "uniform", "double_hashing"]
    assert not table["read_off"].any()
    assert compare(RESULTS, 8)["read_off"].to_dict() == {
        "full": False, "rowwise": False, "uniform": True, "double_hashing": True,
    }  # fmt: skip
    assert math.isnan(compare(RESULTS, 2).loc["half", "deviation"])


def test_differences_are_paired_by_seed():
    found = subtract(RESULTS, "rowwise", "uniform", 4)
    assert found.differences == pytest.approx((0.03, 0.04, 0.05))
    assert found.mean == pytest.approx(0.04) and found.deviation == pytest.approx(0.01)
    assert found.is_clear and "no difference" not in found.describe()
    level = subtract(RESULTS, "full", "rowwise", 4)
    assert level.differences == pytest.approx((0.02, 0.02, 0.02)) and level.is_clear
    # A single seed decides nothing.
    one = subtract([*RESULTS, *make("pq", 4, [0.1])], "uniform", "pq", 4)
    assert math.isnan(one.deviation) and not one.is_clear
    assert "no difference" in one.describe()


@pytest.mark.parametrize("ahead, clear", [(0.0021, True), (0.0019, False)])
def test_a_difference_is_beyond_two_deviations(ahead, clear):
    pairs = np.array([-0.001, 0.0, 0.001]) + ahead
    both = [*make("a", 4, 0.5 + pairs), *make("b", 4, [0.5] * 3)]
    assert subtract(both, "a", "b", 4).is_clear is clear
    assert subtract(both, "b", "a", 4).is_clear is clear


def test_what_cannot_be_compared_is_an_error():
    with pytest.raises(ValueError, match="half has no auc at 10x"):
        subtract(RESULTS, "uniform", "half", 10)
    with pytest.raises(ValueError, match="nobody has no auc at 4x"):
        subtract(RESULTS, "nobody", "uniform", 4)


def test_what_fits_a_budget_with_room_to_spare_counts_by_what_it_does():
    results = [
        *make("cigar", 30, [0.26], 32.0),
        *make("double_hashing", 10, [0.05]),
        *make("hashing", 10, [0.04]),
        *make("uniform", 10, [0.1]),
        *make("half", 2, [0.9]),
    ]
    assert rank(results, 10).to_dict() == {
        "cigar": 1, "uniform": 2, "double_hashing": 3.5, "half": 3.5, "hashing": 5,
    }  # fmt: skip


def test_ranks_give_those_that_cannot_what_double_hashing_makes_of_it():
    places = rank(RESULTS, 16)
    assert places.to_dict() == {
        "uniform": 1.0, "double_hashing": 3.0, "rowwise": 3.0, "half": 3.0,
    }  # fmt: skip


def test_the_best_of_some_is_told_with_its_equals_and_its_rival():
    table = judge({"clicks": RESULTS}, ("uniform", "double_hashing"), (4, 8, 30))
    assert table.loc["clicks", "4x"].to_dict() == {
        "best": "uniform", "mean": "0.8500", "as good": "none", "rival": "rowwise",
        "ahead": "-0.0400 ± 0.0100",
    }  # fmt: skip
    assert table.loc["clicks", "8x"]["ahead"] == "-0.0700 ± 0.0100"
    # Nothing reaches 30x; and one seed is no difference.
    assert table.loc["clicks", "30x"].tolist() == [""] * 5
    close = judge({"clicks": RESULTS}, ("half",), (2,)).loc["clicks", "2x"]
    assert (close["best"], close["rival"], close["ahead"]) == ("half", "", "")


def test_what_is_not_clearly_behind_is_as_good():
    pairs = np.array([-0.001, 0.0, 0.001])
    runs = [
        *make("pq", 4, [0.5] * 3), *make("dpq", 4, 0.4999 + pairs),
        *make("mgqe", 4, 0.49 + pairs), *make("full", 1, [0.6] * 3),
    ]  # fmt: skip
    row = judge({"clicks": runs}, ("pq", "dpq", "mgqe"), (4,)).loc["clicks", "4x"]
    assert (row["best"], row["as good"], row["rival"]) == ("pq", "dpq", "")


def test_a_task_is_judged_by_its_own_metric():
    assert main_metric(make("pq", 4, [0.5])) == "auc"
    lists = make("pq", 4, [0.5])
    lists[0].test.clear()
    lists[0].test["recall@20"] = 0.1
    assert main_metric(lists) == "recall@20"
    lists[0].test.clear()
    with pytest.raises(ValueError, match="no auc and no recall@20"):
        main_metric(lists)
