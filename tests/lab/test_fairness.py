"""What makes the book's comparisons fair, read off their recorded lines."""

import math
from collections import defaultdict

import pytest
import records as book

from survey_code.catalog import get_method
from survey_code.lab import load_results
from survey_code.lab.contest import CHECKED, list_missed, list_ratios
from survey_code.lab.tuning import RATE_GRID, TRIALS_EACH, mark_of, tunable

pytestmark = pytest.mark.parametrize("name", book.FINISHED)


def read(name, part):
    return load_results(book.RESULTS / f"{name}_{part}.jsonl")


def way_of(result):
    """How a run was trained, as far as it is tuned."""
    settings = result.settings
    rate = settings["table_learning_rate"] or settings["learning_rate"]
    options = sorted((k, str(v)) for k, v in result.asked.items())
    tuned = (settings[name] for name in ("learning_rate", "l2", "table_l2"))
    return rate, *tuned, tuple(options)


def tuned_of(name):
    """Of each tuned entrant, the marks of its ways near 10x and near 30x."""
    contest = book.CONTESTS[name]
    lines = defaultdict(lambda: defaultdict(dict))
    for result in read(name, "trials"):
        ratio = result.requested_ratio
        lines[result.entrant, ratio][way_of(result)][result.seed] = mark_of(result)
    found = {}
    for entrant in contest.entrants:
        ratios = sorted(ratio for own, ratio in lines if own == entrant.name)
        if entrant.tuned:
            found[entrant.name] = [
                {way: sum(marks.values()) / len(contest.tuned_on)
                 for way, marks in lines[entrant.name, ratio].items()
                 if set(marks) == set(contest.tuned_on)}
                for ratio in ratios
            ]  # fmt: skip
    return found


def tunes_rates(entrant):
    """Whether its rates are its own, and there are some."""
    learns = get_method(entrant.key).load().learns_by_gradient
    return learns and entrant.rates_of is None


def count_options(entrant):
    """Ways to ask a method, the full table's rates given; at most all trials."""
    grid = get_method(entrant.key).load().options.grid()
    own = [
        len(values) for name, values in grid.items() if name not in dict(entrant.asked)
    ]
    return min(math.prod(own), TRIALS_EACH)


def test_everyone_has_as_many_trials_over_the_same_grid(name):
    contest = book.CONTESTS[name]
    base = tunable(contest.trial)["table_learning_rate"]
    for entrant, marks in tuned_of(name).items():
        near = marks[0]
        if not tunes_rates(contest.named(entrant)):
            assert len(near) == count_options(contest.named(entrant)), entrant
            continue
        assert len(near) == TRIALS_EACH, entrant
        rates = {rate / base for rate, *_ in near}
        for factor in RATE_GRID["table_learning_rate"][0]:
            assert any(math.isclose(factor, rate) for rate in rates), entrant
        assert all(len(far) == CHECKED for far in marks[1:]), entrant


def test_nobodys_best_rate_stands_at_an_edge(name):
    contest = book.CONTESTS[name]
    for entrant, marks in tuned_of(name).items():
        if tunes_rates(contest.named(entrant)):
            rates = [rate for rate, *_ in marks[0]]
            best = max(marks[0], key=marks[0].__getitem__)[0]
            assert min(rates) < best < max(rates), entrant


def test_nobody_was_stopped_by_a_bound(name):
    for result in (*read(name, "trials"), *read(name, "runs")):
        if result.failure is None:
            assert result.settings["ended"] != "limit", result.entrant
            assert result.settings["schedule"] == "plateau"


def test_trials_do_not_know_the_test_and_runs_do(name):
    assert not any(result.test for result in read(name, "trials"))
    for result in read(name, "runs"):
        assert bool(result.test) == (result.failure is None)


def read_points(name):
    """Of each entrant and ratio, the seeds and the ratio reached; and what cannot."""
    seeds, reached, missed = defaultdict(set), {}, set()
    for result in read(name, "runs"):
        point = (result.entrant, result.requested_ratio)
        if result.failure and result.failure.startswith("cannot"):
            missed.add(point)
        else:
            assert result.failure is None, point
            seeds[point].add(result.seed)
            reached[point] = result.reached_ratio
    return seeds, reached, missed


def test_everyone_has_all_seeds_at_each_ratio_or_cannot(name):
    contest = book.CONTESTS[name]
    seeds, reached, missed = read_points(name)
    assert all(own == set(contest.seeds) for own in seeds.values())
    assert not missed & set(seeds)
    for entrant in contest.entrants:
        own = [value for (one, _), value in reached.items() if one == entrant.name]
        assert own, entrant
        alone = entrant.once or entrant.key == "full"
        ratios = () if alone else entrant.ratios or contest.ratios
        for ratio in ratios:
            point = (entrant.name, ratio)
            # Of ratios for which it does the same, the highest is recorded.
            assert point in seeds or point in missed or max(own) >= ratio, point


# Recorded when 3 bits were stored as 4, at 8x; they wait to be made again.
EARLIER = ("lsq, 3 bits",)


def test_what_is_recorded_is_what_was_asked_for(name):
    contest = book.CONTESTS[name]
    if contest.data != "synthetic":
        pytest.skip("its data set has to be fetched to plan on")
    seeds, _, missed = read_points(name)
    for entrant in contest.entrants:
        if entrant.name in EARLIER:
            continue
        recorded, cannot = list_ratios(contest, entrant), list_missed(contest, entrant)
        assert {r for name, r in seeds if name == entrant.name} == set(recorded)
        assert {r for name, r in missed if name == entrant.name} == set(cannot)


def test_runs_are_trained_as_their_best_trials_were(name):
    contest, tuned = book.CONTESTS[name], tuned_of(name)
    for result in read(name, "runs"):
        entrant = contest.named(result.entrant)
        if result.failure is None and entrant.tuned:
            marks = [ways for ways in tuned[entrant.name] if ways]
            ways = {max(own, key=own.__getitem__) for own in marks}
            assert way_of(result) in ways, result.entrant
