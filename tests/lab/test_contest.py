"""A fair comparison: everyone tuned alike, and judged at the same ratios."""

import dataclasses
import math

import pytest
import records as book

from survey_code import data
from survey_code.data.synthetic import make_clicks
from survey_code.lab import Trial, load_results
from survey_code.lab.contest import (
    Contest,
    Entrant,
    Tuned,
    arrange,
    choose_ways,
    list_courses,
    list_entrants,
    list_missed,
    list_ratios,
    list_widths,
    same_plan,
    tuning_ratio,
)
from survey_code.lab.records import Recorder, Records, Workers
from survey_code.lab.tuning import TRIALS_EACH, Way
from survey_code.training import TrainingSettings

TRIAL = Trial(
    "dcnv2", 8,
    TrainingSettings(epochs=1, batch_size=500, patience=1, schedule="plateau",
                     learning_rate=0.01, drops=0),
    {"hidden": (4,), "cross_layers": 1},
)  # fmt: skip
ENTRANTS = (
    Entrant("full", "full"),
    Entrant("uniform", "uniform", ratios=(2.0, 8.0)),
    Entrant("rowwise, 8 bits", "rowwise", (("bits", 8),), once=True, rates_of="full"),
    Entrant("hashing", "hashing"),
    Entrant("hashing, fields apart", "hashing", (("fields", "apart"),), like="hashing"),
)
CONTEST = Contest("tiny", "tiny", TRIAL, ENTRANTS, (2.0, 400.0), tuned_on=(0, 10))


@pytest.fixture(autouse=True, scope="module")
def tiny_data():
    tiny = make_clicks(rows=(1000, 300, 300), field_sizes=(300, 30))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda name: tiny)
        yield


def compete(folder, only=None, seconds=float("inf")):
    records = Records(folder / "runs", folder / "trials")
    courses = list_courses(CONTEST, records, only)
    return records, list(Recorder(records, Workers(seconds=seconds)).follow(courses))


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contest")
    compete(folder)
    return folder


def test_every_entrant_has_its_trials_and_its_runs(held):
    trials, runs = arrange(CONTEST, Records(held / "runs", held / "trials"))
    tuned = [one.name for one in ENTRANTS if one.tuned]
    counts = {name: [t for t in trials if t.entrant == name] for name in tuned}
    assert set(counts) == {trial.entrant for trial in trials}
    for name, own in counts.items():
        first = {t.requested_ratio for t in own}
        near = [t for t in own if t.requested_ratio == min(first)]
        options = name.startswith("rowwise")
        assert len(near) == 2 * (2 if options else TRIALS_EACH), name
        assert {t.seed for t in own} == {0, 10}
        assert not any(t.test for t in own)
    seeds = {}
    for run in runs:
        if run.failure is None:
            seeds.setdefault((run.entrant, run.requested_ratio), []).append(run.seed)
    assert set(map(tuple, seeds.values())) == {(1, 2, 3)}
    assert {name for name, _ in seeds} == {one.name for one in ENTRANTS}


def test_what_is_out_of_reach_is_said(held):
    _, runs = arrange(CONTEST, Records(held / "runs", held / "trials"))
    missed = {(r.entrant, r.requested_ratio): r.failure for r in runs if r.failure}
    assert set(missed) == {("hashing", 400.0), ("hashing, fields apart", 400.0)}
    assert all(why.startswith("cannot: at most ") for why in missed.values())


def test_runs_are_trained_as_the_best_trials_were(held):
    records = Records(held / "runs", held / "trials")
    _, runs = arrange(CONTEST, records)
    full = choose_ways(CONTEST, CONTEST.named("full"), records)
    wanted = full.way_at(1.0).adapt(TRIAL).settings
    for run in runs:
        if run.entrant in ("full", "rowwise, 8 bits"):
            found = run.settings["table_learning_rate"]
            assert found == wanted.table_learning_rate
    means = {way: mark for way, mark in full.marks.items()}
    assert max(means.values()) == full.marks[full.way_at(1.0)]


def test_a_contest_goes_on_where_it_stopped(tmp_path, held):
    compete(tmp_path, only=("full",))
    lines = (tmp_path / "trials").read_text().splitlines(keepends=True)
    assert len(lines) == 2 * TRIALS_EACH
    (tmp_path / "trials").write_text("".join(lines[:7]))
    (tmp_path / "runs").unlink()
    _, again = compete(tmp_path, only=("full",))
    assert len(again) == len(lines) - 7 + 3
    whole = {r.to_json() for r in load_results(held / "runs") if r.key == "full"}
    found = load_results(tmp_path / "runs")
    assert [r.test for r in found] == [
        r.test for r in load_results(held / "runs") if r.key == "full"
    ]
    assert len(whole) == 3
    assert compete(tmp_path, only=("full",))[1] == []


def test_what_takes_anothers_settings_waits_for_them(tmp_path):
    _, made = compete(tmp_path, only=("rowwise, 8 bits",))
    assert made == []


def test_arranged_files_are_read_as_the_same(tmp_path, held):
    records = Records(held / "runs", held / "trials")
    trials, runs = arrange(CONTEST, records)
    for name, listed in (("trials", trials), ("runs", runs)):
        text = "".join(f"{result.to_json()}\n" for result in listed)
        (tmp_path / name).write_text(text)
    assert compete(tmp_path)[1] == []
    again = arrange(CONTEST, Records(tmp_path / "runs", tmp_path / "trials"))
    for old, new in zip((trials, runs), again, strict=True):
        assert [dataclasses.replace(r, date="") for r in new] == [
            dataclasses.replace(r, date="") for r in old
        ]


def test_what_would_do_the_same_for_two_ratios_is_asked_for_the_higher():
    # One bit a column, whatever is asked for.
    wide = dataclasses.replace(CONTEST, ratios=(2.0, 4.0, 10.0, 30.0))
    assert list_ratios(wide, Entrant("bccf", "bccf")) == [30.0]
    assert list_ratios(wide, Entrant("hashing", "hashing")) == list(wide.ratios)
    # Nor is it checked at a ratio at which it was tuned.
    assert same_plan(wide, Entrant("bccf", "bccf"), 10.0, 30.0)


def test_a_way_is_one_that_reaches_the_ratio():
    best, other = Way(options=(("a", 1),)), Way(options=(("a", 2),))
    choice = Tuned({best: 0.9, other: 0.8}, {best: -math.inf, other: -math.inf})
    assert choice.way_at(10.0) == choice.way_at(30.0) == best
    assert choice.way_at(30.0, lambda way: way == other) == other
    assert choice.way_at(10.0, lambda way: False) == Way()
    assert Tuned({best: 0.9, other: 0.8}, {other: 0.5}).way_at(30.0) == other


def test_whole_columns_are_tuned_where_they_are_nearest():
    entrant = Entrant("uniform", "uniform", ratios=(2.0, 4.0, 8.0))
    assert tuning_ratio(CONTEST, entrant, 10.0) == 8.0
    assert tuning_ratio(CONTEST, entrant, 3.0) == 4.0


def test_what_is_rounded_after_training_takes_the_full_tables_rates(held):
    records = Records(held / "runs", held / "trials")
    full = choose_ways(CONTEST, CONTEST.named("full"), records).way_at(1.0)
    own = choose_ways(CONTEST, CONTEST.named("rowwise, 8 bits"), records)
    assert {way.factors for way in own.marks} == {full.factors}
    assert any(way.options for way in own.marks)


def test_lines_are_not_lost_where_files_are_joined(tmp_path, held, monkeypatch):
    folder, books = tmp_path / "new", tmp_path / "book"
    monkeypatch.setattr(book, "RESULTS", books)
    books.mkdir(), folder.mkdir()
    for name in ("runs", "trials"):
        text = (held / name).read_text()
        (books / f"tiny_{name}.jsonl").write_text(text)
    trials = (books / "tiny_trials.jsonl").read_text().splitlines(keepends=True)
    assert book.join(CONTEST, folder)[0] >= len(trials)
    whole = (books / "tiny_trials.jsonl").read_text()
    (books / "tiny_trials.jsonl").write_text("".join(whole.splitlines(True)[1:]))
    with pytest.raises(ValueError, match="lines belong to no run that tiny asks for"):
        book.join(CONTEST, folder)
    other = dataclasses.replace(CONTEST, entrants=ENTRANTS[1:2])
    book.join(other, folder, forget=True)
    assert len((books / "tiny_trials.jsonl").read_text().splitlines()) < len(trials)


def test_ratios_are_the_contests_or_an_entrants_own():
    assert list_ratios(CONTEST, CONTEST.named("full")) == [1.0]
    assert list_ratios(CONTEST, CONTEST.named("uniform")) == [2.0, 8.0]
    (once,) = list_ratios(CONTEST, CONTEST.named("rowwise, 8 bits"))
    assert 1.9 < once < 2.1
    assert list_missed(CONTEST, CONTEST.named("hashing")) == [400.0]


@pytest.mark.parametrize("task", ["ctr", "top-n"])
def test_the_simple_rivals_are_always_there(task):
    names = [one.name for one in list_entrants(task, 64)]
    assert len(set(names)) == len(names)
    rivals = {
        "full", "uniform", "head_only", "low_rank", "rowwise, 8 bits",
        "rowwise, 4 bits", "rowwise, 2 bits", "rowwise, 4 bits a table", "pq",
        "double_hashing", "magnitude, by reads", "magnitude, only cut",
        "hashing, fields apart",
    }  # fmt: skip
    assert rivals | ({"popular"} if task == "top-n" else set()) <= set(names)
    for one in list_entrants(task, 64):
        assert one.like is None or one.like in names


LOW = ("rowwise", "greedy", "rotated", "lsq", "lpt", "alpt")


def test_low_precision_competes_at_the_usual_bits_or_at_all():
    usual, every = (
        [one for one in list_entrants("ctr", 16, **asked) if one.key in LOW]
        for asked in ({}, {"bits": "all"})
    )
    wanted = [f"{key}, {bits} bits" for key in LOW for bits in (8, 4, 2)]
    wanted += [f"rowwise, {bits} bits a table" for bits in (8, 4, 2)]
    more = ["lsq, 3 bits", *(f"rotated, {bits} bits" for bits in (7, 6, 5, 3, 1))]
    assert {one.name for one in usual} == {*wanted, *more}
    fine = [key for key in LOW if key not in ("rotated", "lsq")]
    more = [f"{key}, {bits} bits" for key in fine for bits in (3, 1)]
    more += ["lsq, 1 bits", "rowwise, 3 bits a table", "rowwise, 1 bits a table"]
    assert {one.name for one in every} - {one.name for one in usual} == {*more}
    assert [one for one in every if one in usual] == usual
    assert all(one.once for one in every)
    for name in ("full", "mpe", "mixed_precision_cache"):
        assert [one.name for one in list_entrants("ctr", 16, "all")].count(name) == 1
    with pytest.raises(ValueError, match=r"bits must be one of \('usual', 'all'\)"):
        list_entrants("ctr", 16, bits="fine")


def test_plain_tables_stand_on_both_sides_of_each_ratio():
    assert list_widths(64) == (2.0, 4.0, 64 / 7, 64 / 6, 64 / 3, 32.0)
    assert list_widths(16) == (2.0, 4.0, 8.0, 16.0)
