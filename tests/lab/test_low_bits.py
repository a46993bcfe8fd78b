"""The best rounding at so many bits a number, on results made by hand."""

import math

import pytest

from survey_code.lab import Result, judge_bits
from survey_code.lab.low_bits import list_low_precision


def make(entrant, ratio, values, validation=None, key=None):
    """A result for each seed, which saw 10 rows in training."""
    empty = {n: {} for n in ("options", "seconds", "lookup", "settings")}
    marks = values if validation is None else validation
    return [
        Result(
            key=key or entrant.partition(",")[0], entrant=entrant, data="d", model="m",
            dim=8, seed=seed, requested_ratio=ratio, reached_ratio=ratio,
            bytes={"inference": 1}, device="cpu", test={"auc": value},
            date="2026-01-01", versions={}, validation={"auc": mark}, command="c",
            failure=None, rows={"search": 0.0, "train": 10.0}, **empty,
        )
        for seed, (value, mark) in enumerate(zip(values, marks, strict=True), 1)
    ]  # fmt: skip


# At 4 bits: greedy at 8.4x, near 8x, is 0.01 ahead of rotated there, seed by seed.
# At 2: rotated at 16x; greedy between 8.4x and 32x, halfway on the logarithm of 16.4x.
# At 1: only greedy.  At 3: rowwise at 10.7x; the others are read off.
RUNS = [
    *make("full", 1, [0.90, 0.91, 0.92]),
    *make("greedy, 4 bits", 8.4, [0.88, 0.89, 0.90]),
    *make("greedy, 1 bits", 32, [0.80, 0.81, 0.82]),
    *make("rotated, 4 bits", 8, [0.87, 0.88, 0.89], [0.99, 0.99, 0.99]),
    *make("rotated, 2 bits", 16, [0.86, 0.87, 0.89]),
    *make("rowwise, 3 bits", 32 / 3, [0.85, 0.95, 0.92]),
    *make("pq", 8, [0.99, 0.99, 0.99]),
]


def test_each_number_of_bits_has_its_best_and_its_margin():
    table = judge_bits({"clicks": RUNS})
    assert table.index.tolist() == [("clicks", bits) for bits in (1, 2, 3, 4)]
    four = table.loc[("clicks", 4)]
    assert (four["best"], four["next"], four["mean"]) == ("greedy", "rotated", "0.8900")
    assert four["margin"] == "+0.0100 ± 0.0000" and four["clear"]
    assert four["to full"] == "-0.0200 ± 0.0000" and four["as good"] == ""
    assert four["chosen"] == "rotated"  # whose validation says more than its test
    two = table.loc[("clicks", 2)]
    assert (two["best"], two["next"]) == ("rotated", "greedy")
    assert two["mean"] == "0.8733" and two["clear"]
    one = table.loc[("clicks", 1)]
    assert (one["best"], one["next"], one["margin"]) == ("greedy", "", "")
    assert not one["clear"]


def test_what_was_read_off_and_what_is_no_difference_is_said():
    three = judge_bits({"clicks": RUNS}, bits=(3,)).loc[("clicks", 3)]
    assert (three["best"], three["mean"]) == ("rowwise", "0.9067")
    assert three["margin"].endswith("no difference") and not three["clear"]
    assert sorted(three["as good"].split(", ")) == ["greedy", "rotated"]
    without = [run for run in RUNS if run.key != "rowwise"]
    three = judge_bits({"clicks": without}, bits=(3,)).loc[("clicks", 3)]
    assert three["mean"].startswith("~0.8")


def test_the_rivals_are_those_of_low_precision_unless_others_are_named():
    assert list_low_precision(RUNS) == ["greedy", "rotated", "rowwise"]
    table = judge_bits({"clicks": RUNS}, (4,), ["pq", "greedy"])
    assert table.loc[("clicks", 4), "best"] == "pq"
    assert table.loc[("clicks", 4), "next"] == "greedy"


def test_tasks_stand_below_each_other_and_what_nobody_reaches_is_empty():
    table = judge_bits({"a": RUNS, "b": RUNS[:6]}, bits=(0.5, 4))
    assert table.index.tolist() == [("a", 0.5), ("a", 4), ("b", 0.5), ("b", 4)]
    for task in "ab":
        row = table.loc[(task, 0.5)]
        assert row["best"] == row["mean"] == row["margin"] == row["chosen"] == ""
        assert not row["clear"]
    alone = table.loc[("b", 4)]
    assert alone["best"] == "greedy" and alone["next"] == ""


def line(entrant, ratio, seconds, peak):
    """What was measured of one entrant, whose training takes so long a row."""
    train = {"start_s": 1.0, "us_per_row": 1e6 * seconds}
    return {
        "entrant": entrant, "reached_ratio": ratio, "train": train, "search": train,
        "compress_s": 2.0, "training_bytes": {"peak": peak},
        "lookup": {"256": [peak, 9]},
    }  # fmt: skip


def test_costs_are_those_of_the_best_where_they_were_measured_near():
    lines = [line("full", 1, 1, 4), line("greedy, 4 bits", 8.4, 2, 2)]
    table = judge_bits({"a": RUNS, "b": RUNS}, (4, 1), costs={"a": lines})
    # 2 s of compression, 1 s of each of two starts, 10 rows at 2 or at 1 s.
    assert table.loc[("a", 4), "training"] == pytest.approx(24 / 14)
    assert table.loc[("a", 4), "memory"] == 0.5 and table.loc[("a", 4), "lookup"] == 2
    for cell in (("a", 1), ("b", 4)):
        assert math.isnan(table.loc[cell, "training"])
