"""Worlds that drift, arms that refresh, and what is said of their gaps."""

import dataclasses
import pickle
from functools import partial

import numpy as np
import pandas as pd
import pytest

from survey_code import TableSpec
from survey_code.catalog import get_method
from survey_code.data.synthetic import PRESETS, make_stream
from survey_code.lab import drift
from survey_code.lab.contest import arrange, list_courses, list_missed, list_ratios
from survey_code.lab.contests import CONTESTS
from survey_code.lab.drift import (
    ARMS,
    CADENCES,
    DRIFT_CONTESTS,
    DriftExperiment,
    find_gaps,
    judge_gaps,
    name_arm,
    price_refreshes,
    read_windows,
)
from survey_code.lab.records import Recorder, Records, Workers
from survey_code.lab.results import Result, load_results
from survey_code.lab.tuning import Way

TINY = {"rows": (600,) * 5, "field_sizes": (60, 30), "bias": 0.0}


@pytest.fixture
def tiny_worlds(monkeypatch):
    """Worlds of five small windows."""

    def open_tiny(name, seed=0):
        return make_stream("drift", seed=seed, **{**TINY, **drift.WORLDS[name]})

    monkeypatch.setattr(drift, "open_world", open_tiny)


def shrink(contest, *names, **changes):
    """A contest of a few arms and two seeds, trained for a moment."""
    trial = contest.trial.adjust(epochs=1, batch_size=200, patience=1, drops=0)
    arms = tuple(arm for arm in contest.entrants if arm.name in names)
    kind = partial(DriftExperiment, start=2, update_epochs=1)
    return dataclasses.replace(
        contest, trial=trial, entrants=arms, seeds=(1, 2), kind=kind, _reached={},
        **changes,
    )  # fmt: skip


# -- worlds ---------------------------------------------------------------------------


def test_worlds_drift_in_one_way_each():
    """What does not drift stays the same world, as far as its ids allow."""
    drawn = {
        name: make_stream("drift", seed=1, **{**TINY, **drift.WORLDS[name]})
        for name in drift.WORLDS
    }
    still, popular = drawn["drift-none"], drawn["drift-popularity"]
    turned = drawn["drift-rotation"]
    for window in range(5):
        ids = [data.windows[window].ids for data in (still, popular, turned)]
        np.testing.assert_array_equal(ids[0], ids[2])
        assert np.array_equal(ids[0], ids[1]) == (window == 0)
    labels = [data.windows[4].labels for data in (still, turned)]
    assert (labels[0] != labels[1]).any()
    assert drawn["drift-new-ids"].num_embeddings > still.num_embeddings
    assert popular.num_embeddings == still.num_embeddings
    content = drawn["drift-content"].content
    assert content[:60].any(axis=1).all()  # of new ids as well
    with pytest.raises(ValueError, match="unknown world 'drift-away'; worlds: "):
        drift.open_world("drift-away")


def test_no_drift_is_over_before_the_last_window():
    """The full worlds, by their settings."""
    windows = len(PRESETS["drift"].rows)
    tested = windows - drift.START
    assert tested - drift.SETTLING >= 30
    assert (1 - drift.POPULARITY["popularity_change"]) ** tested > 0.1
    assert (1 - drift.NEW_IDS["new_ids"]) ** tested > 0.4
    assert drift.ROTATION["rotation"] * windows < np.pi / 2


def test_each_seed_has_a_world_of_its_own(tiny_worlds):
    contest = shrink(DRIFT_CONTESTS["drift"], "full")
    one, two = (contest.pose(contest.entrants[0], Way(), 1, s) for s in (1, 2))
    assert one.data_name == two.data_name == "drift-all"
    assert not np.array_equal(one.stream.windows[0].ids, two.stream.windows[0].ids)
    again = pickle.loads(pickle.dumps(one))
    assert again.key == one.key and "stream" not in vars(again)


# -- arms -----------------------------------------------------------------------------


def test_arms_are_methods_and_how_they_refresh():
    names = [arm.name for arm in ARMS]
    assert len(set(names)) == len(names)
    for arm in ARMS:
        assert get_method(arm.key).ask(dict(arm.asked))
        assert arm.like is None or arm.like in names
        assert arm.rates_of is None or arm.rates_of in names
    tiers = [arm for arm in ARMS if arm.key == "double_hashing"]
    assert [dict(arm.pace)["refresh"] for arm in tiers] == [*CADENCES]
    assert {arm.like for arm in tiers} == {None, "tiers, frozen"}


def test_all_arms_are_in_reach_where_they_are_asked_for():
    contest = dataclasses.replace(DRIFT_CONTESTS["drift"], _reached={})
    vars(contest)["spec"] = small_spec()
    for arm in contest.entrants:
        assert list_missed(contest, arm) == [], arm.name
        assert len(list_ratios(contest, arm)) == 1, arm.name


def small_spec():
    """The table of the world that is tuned on, without its rows."""
    sizes = [size + 45 * int(size * 0.02) for size in (1000, 600, 300, 100, 30, 10)]
    counts = np.arange(sum(sizes))[::-1]
    return TableSpec.of_table(sum(sizes), 16, counts, [0, *np.cumsum(sizes)])


def test_a_contest_is_followed_and_resumed(tiny_worlds, tmp_path):
    """Tuned in one world, recorded in all, and settings shared between cadences."""
    contest = shrink(
        DRIFT_CONTESTS["drift"], "full", "head only, frozen",
        "head only, every window", elsewhere=("drift-popularity",), ratios=(4.0,),
    )  # fmt: skip
    arms = tuple(
        dataclasses.replace(arm, ratios=None if arm.key == "full" else (4.0,), trials=2)
        for arm in contest.entrants
    )
    object.__setattr__(contest, "entrants", arms)
    paths = tmp_path / "runs", tmp_path / "trials"
    records = Records(*paths)
    made = list(Recorder(records, Workers()).follow(list_courses(contest, records)))
    runs, trials = load_results(paths[0]), load_results(paths[1])
    assert len(trials) == 2 * 2 and {t.data for t in trials} == {"drift-all"}
    assert {t.seed for t in trials} == {0}
    assert len(runs) == 3 * 2 * 2 and len(made) == len(runs) + len(trials)
    assert {r.data for r in runs} == {"drift-all", "drift-popularity"}
    again = Records(*paths)
    assert not list(Recorder(again, Workers()).follow(list_courses(contest, again)))
    _, arranged = arrange(contest, again)
    table = read_windows(arranged)
    assert table.shape == (12, 3) and table.columns.tolist() == [2, 3, 4]
    gaps = find_gaps(table)
    assert not gaps.isna().any(axis=None)
    told = judge_gaps(gaps, settling=0)
    assert told.index.names == ["world", "arm"] and len(told) == 4
    assert told["says"].isin(["decays", "recovers", "holds", "undecided"]).all()
    moved = read_windows(arranged, "moved")
    prices = price_refreshes(gaps, moved, "head only", (0, 1), settling=1)
    assert prices.loc[("drift-all", 1), "lost"] == 0
    assert (prices["moved"] > 0).all()


def test_movietweetings_is_followed_as_in_its_own_contest():
    contest, own = DRIFT_CONTESTS["movietweetings_windows"], CONTESTS["stream"]
    assert (contest.data, contest.trial, contest.kind) == (
        own.data, own.trial, own.kind,
    )  # fmt: skip
    assert contest._reached is not own._reached


# -- what became of them --------------------------------------------------------------


def made_up(world, arm, seed, **columns):
    """A pass of which only the windows are told."""
    windows = {"window": [10, 11, 12], **columns}
    empty = {n: {} for n in ("options", "bytes", "validation", "test", "seconds",
                             "lookup", "settings", "versions")}  # fmt: skip
    return Result(
        key=arm, data=world, model="", dim=1, seed=seed, requested_ratio=1.0,
        reached_ratio=1.0, device="", date="", command="", entrant=arm,
        windows=windows, **empty,
    )  # fmt: skip


def test_gaps_by_hand():
    passes = [
        made_up("a", "full", 1, auc=[0.8, 0.8, 0.9]),
        made_up("a", "tiers, frozen", 1, auc=[0.7, 0.6, 0.6]),
        made_up("a", "full", 2, auc=[0.5, 0.5, 0.5]),
        made_up("a", "tiers, frozen", 2, auc=[0.5, None, 0.25]),
        made_up("a", "tiers, frozen", 3, auc=[0.5, 0.5, 0.5]),  # nothing beside it
        made_up("b", "full", 1, auc=[0.5, 0.5, 0.5]),
        made_up("b", "tiers, frozen", 1, auc=[0.75, 0.5, 0.5]),
        dataclasses.replace(made_up("b", "other", 1, auc=[1, 1, 1]), windows={}),
    ]
    gaps = find_gaps(read_windows(passes))
    assert gaps.index.tolist() == [
        ("a", "tiers, frozen", 1), ("a", "tiers, frozen", 2), ("b", "tiers, frozen", 1),
    ]  # fmt: skip
    np.testing.assert_allclose(
        gaps.to_numpy(), [[0.1, 0.2, 0.3], [0, np.nan, 0.25], [-0.25, 0, 0]], atol=1e-12
    )
    with pytest.raises(ValueError, match="a pass reports no 'churn'; columns: "):
        read_windows(passes, "churn")


def test_arms_of_other_seeds_are_a_value_error():
    index = pd.MultiIndex.from_tuples(
        [("a", "x", 1), ("a", "x", 2), ("a", "y", 1)], names=["world", "arm", "seed"]
    )
    gaps = pd.DataFrame(np.zeros((3, 5)), index=index)
    with pytest.raises(
        ValueError, match=r"the same seeds, got \[1, 2\] and, of y, \[1"
    ):
        judge_gaps(gaps, settling=0)


def test_a_gap_that_grows_decays_in_its_own_world_only():
    rng = np.random.default_rng(0)
    rows = {}
    for world in ("still", "moving"):
        for seed in (1, 2, 3, 4):
            noise = 1e-3 * rng.standard_normal((2, 36))
            grows = 1e-3 * np.arange(36) * (world == "moving")
            rows[world, "frozen", seed] = noise[0] + grows
            rows[world, "fresh", seed] = noise[1]
    gaps = pd.DataFrame(rows).T
    gaps.index.names = ["world", "arm", "seed"]
    told = judge_gaps(gaps)["says"]
    assert told["moving", "frozen"] == "decays"
    assert told["still", "frozen"] != "decays" and told["moving", "fresh"] != "decays"
    # Less what goes on without drift, it is the same.
    beyond = gaps.loc[["moving"]] - gaps.loc["still"]
    assert judge_gaps(beyond)["says"]["moving", "frozen"] == "decays"


def test_prices_by_hand():
    passes = []
    for every, (auc, moved) in {0: (0.5, 10), 1: (0.7, 100), 5: (0.6, 40)}.items():
        arm = name_arm("pq", every)
        passes.append(
            made_up("a", arm, 1, auc=[auc] * 3, moved=[None, moved, moved + 2])
        )
    passes.append(made_up("a", "full", 1, auc=[0.75] * 3, moved=[None, 1, 1]))
    gaps, moved = find_gaps(read_windows(passes)), read_windows(passes, "moved")
    table = price_refreshes(gaps, moved, "pq", (0, 1, 5), settling=1)
    assert table.index.tolist() == [("a", 0), ("a", 1), ("a", 5)]
    np.testing.assert_allclose(table["lost"], [0.2, 0, 0.1], atol=1e-12)
    np.testing.assert_allclose(table["gap"], [0.25, 0.05, 0.15], atol=1e-12)
    assert table["moved"].tolist() == [11, 101, 41]
    assert table["deviation"].isna().all()
