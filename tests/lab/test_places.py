"""Places of methods over tasks, ratios and seeds, their intervals, and their costs."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from scipy import stats

from survey_code.lab import (
    Result,
    bootstrap_places,
    choose_by_validation,
    find_critical_difference,
    find_unbeaten,
    place_methods,
    plot_front,
    plot_intervals,
    price_methods,
)


def make(key, ratio, values, validation=None, failure=None):
    """A result for each seed, which saw 10 rows in training."""
    empty = {n: {} for n in ("options", "seconds", "lookup", "settings")}
    return [
        Result(
            key=key, data="d", model="m", dim=8, seed=seed, requested_ratio=ratio,
            reached_ratio=ratio, bytes={"inference": 1}, device="cpu",
            test={} if failure else {"auc": value}, date="2026-01-01", versions={},
            validation={"auc": value if validation is None else validation},
            command="c", failure=failure, rows={"search": 5.0, "train": 10.0}, **empty,
        )
        for seed, value in enumerate(values, 1)
    ]  # fmt: skip


FIRST = [
    *make("full", 1, [0.9, 0.9, 0.9]),
    *make("pq", 4, [0.8, 0.7, 0.8]),
    *make("lsq", 4, [0.7, 0.8, 0.7]),
    *make("double_hashing", 4, [0.5, 0.5, 0.5]),
    *make("half", 4, [0.0], failure="cannot: at most 2x"),
]
SECOND = [
    *make("pq", 4, [0.6, 0.6, 0.6]),
    *make("lsq", 4, [0.8, 0.8, 0.8]),
    *make("double_hashing", 4, [0.5, 0.5, 0.5]),
    *make("half", 4, [0.0], failure="cannot: at most 2x"),
    *make("ant", 4, [0.7, 0.7, 0.7]),
]
CONTESTS = {"a": FIRST, "b": SECOND}


def test_places_are_of_each_task_ratio_and_seed():
    places = place_methods(CONTESTS, (4,))
    assert places.columns.tolist() == [(t, "4x", s) for t in "ab" for s in (1, 2, 3)]
    assert places.loc["pq"].tolist() == [1, 2, 1, 2, 2, 2]
    assert places.loc["lsq"].tolist() == [2, 1, 2, 1, 1, 1]
    # What one cannot reach counts as double hashing; only one contest has "ant".
    assert places.loc["half"].tolist() == places.loc["double_hashing"].tolist()
    assert "ant" not in places.index and "full" not in places.index


def test_some_can_be_compared_alone():
    places = place_methods(CONTESTS, (4,), ["pq", "double_hashing", "ant"])
    assert sorted(places.index) == ["double_hashing", "pq"]
    assert places.loc["pq"].tolist() == [1] * 6


def test_intervals_come_from_other_cells_and_other_seeds():
    places = place_methods(CONTESTS, (4,))
    table = bootstrap_places(places, draws=500)
    assert table.index[0] == "lsq"
    assert table.loc["lsq", "mean"] == pytest.approx((5 / 3 + 1) / 2)
    assert table.loc["lsq", "low"] == 1 and table.loc["lsq", "high"] <= 2
    assert table.loc["double_hashing", ["low", "high"]].tolist() == [3.5, 3.5]
    assert 0.5 < table.loc["lsq", "first"] < 1 and table.loc["half", "first"] == 0
    same = bootstrap_places(places, draws=500)
    pd.testing.assert_frame_equal(table, same)
    # A wider share is a wider interval.
    narrow = bootstrap_places(places, draws=500, level=0.2)
    assert (narrow["high"] - narrow["low"] <= table["high"] - table["low"]).all()


def test_the_critical_difference_is_that_of_the_table():
    # Demšar (2006), table 5: q of 0.05 for ten classifiers is 3.164.
    wanted = 3.164 * math.sqrt(10 * 11 / (6 * 14))
    assert find_critical_difference(10, 14) == pytest.approx(wanted, rel=1e-3)
    # Two methods: a sign test's normal limit.
    two = stats.norm.isf(0.025) * math.sqrt(2 * 3 / (6 * 25))
    assert find_critical_difference(2, 25) == pytest.approx(two, rel=1e-4)
    for methods, blocks in ((1, 3), (3, 0)):
        with pytest.raises(ValueError, match=f"got {methods} and {blocks}"):
            find_critical_difference(methods, blocks)


def test_nobody_beats_a_front():
    rng = np.random.default_rng(0)
    costs, gains = rng.integers(1, 20, (2, 60)).astype(float)
    gains[3] = np.nan
    front = find_unbeaten(costs, gains)
    for own in range(60):
        better = (costs <= costs[own]) & (gains >= gains[own])
        better &= (costs < costs[own]) | (gains > gains[own])
        first = not any(
            costs[k] == costs[own] and gains[k] == gains[own] for k in range(own)
        )
        stays = not better.any() and first and not math.isnan(gains[own])
        assert (own in front) == stays
    assert find_unbeaten([], []) == []


def test_families_are_chosen_on_validation_rows():
    runs = [
        *make("pq", 4, [0.9, 0.9], validation=0.5),
        *make("dpq", 4, [0.1, 0.1], validation=0.6),
        *make("half", 2, [0.1, 0.1], validation=0.6),
    ]
    families = {"codes": ["pq", "dpq"], "rounding": ["half"]}
    assert choose_by_validation(runs, families, 4) == {"codes": "dpq"}


def line(entrant, ratio, microseconds, peak):
    """What was measured of one entrant."""
    train = {"start_s": 1.0, "us_per_row": 1e6 * microseconds}
    return {
        "entrant": entrant, "reached_ratio": ratio, "train": train, "search": train,
        "compress_s": 2.0, "training_bytes": {"peak": peak, "peak_in_search": 3},
        "lookup": {"256": [peak, 9]},
    }  # fmt: skip


def test_prices_are_beside_the_full_tables():
    runs = [*make("full", 1, [0.9]), *make("pq", 10, [0.8]), *make("lsq", 30, [0.8])]
    lines = [line("full", 1, 1, 4), line("pq", 10.2, 2, 2), line("lsq", 30, 1, 1)]
    table = price_methods(runs, lines)
    assert table.index.tolist() == ["full", "pq"]
    assert table.loc["pq", "gap"] == pytest.approx(-0.1)
    # 2 s of compression, 1 s of each start, 15 rows at 1 or 2 s each.
    assert table.loc["pq", "training"] == pytest.approx(34 / 19)
    assert table.loc["pq", "memory"] == 3 / 4 and table.loc["pq", "lookup"] == 2


def test_pictures_say_what_the_tables_do():
    table = bootstrap_places(place_methods(CONTESTS, (4,)), draws=20)
    axes = plot_intervals(table, 1.0, plt.subplots()[1])
    assert [t.get_text() for t in axes.get_yticklabels()] == table.index.tolist()
    costs = pd.Series({"a": 1.0, "b": 2.0, "c": 3.0})
    axes = plot_front(costs, pd.Series({"a": 0.1, "b": 0.0, "c": 0.2}))
    assert [t.get_text() for t in axes.texts] == ["a", "c"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "2", "4"]
    wide = plot_front(costs**6, costs, plt.subplots()[1])
    assert [t.get_text() for t in wide.get_xticklabels()][:2] == ["1", "10"]
    plt.close("all")
