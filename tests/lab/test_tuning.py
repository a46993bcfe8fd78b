"""Equal tuning: the same grid and as many trials for every method."""

import dataclasses
import math

import pytest

from survey_code import data
from survey_code.catalog import get_method, methods
from survey_code.data.synthetic import make_clicks
from survey_code.lab import Result, Trial, repeat, run
from survey_code.lab.tuning import (
    KEPT_FOR_OPTIONS,
    RATE_GRID,
    TRIALS_EACH,
    Way,
    best_of,
    tunable,
    tune,
)
from survey_code.training import TrainingSettings

TRIAL = Trial(
    "dcnv2", 16, TrainingSettings(epochs=1, batch_size=500, patience=0, l2=0.1),
    {"hidden": (4,), "cross_layers": 1},
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def tiny_data():
    """Two fields, as the data set called synthetic."""
    tiny = make_clicks(rows=(1000, 300, 300), field_sizes=(400, 30))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda name: tiny)
        yield


def tune_by(key, judge, asked=(), trial=TRIAL, **further):
    """The marks of all trials of a method, and the sizes of what was asked at once."""
    marks, sizes = {}, []
    tries = tune(key, trial, dict(asked), **further)
    ways = next(tries)
    while ways:
        sizes.append(len(ways))
        found = [judge(way) for way in ways]
        marks.update(zip(ways, found, strict=True))
        try:
            ways = tries.send(found)
        except StopIteration:
            break
    return marks, sizes


def peak(**best):
    """A judge for whom some factors are the best, and options of the second kind."""

    def judge(way):
        away = sum(abs(math.log(way.factor(n) / f)) for n, f in best.items())
        return -away - 0.01 * sum(value is None for _, value in way.options)

    return judge


TUNED = [m.key for m in methods() if m.load().options.grid()]


@pytest.mark.parametrize("key", ["full", "robe", *TUNED])
def test_every_method_has_as_many_trials_the_defaults_first(key):
    marks, _ = tune_by(key, peak(table_learning_rate=1.0))
    ways = list(marks)
    assert ways[0] == Way() and ways[0].ask(key, {}) == get_method(key).ask({})
    assert len(ways) == TRIALS_EACH == 16
    trained = {(repr(w.adapt(TRIAL)), repr(w.ask(key, {}).asked())) for w in ways}
    assert len(trained) == TRIALS_EACH
    assert tune_by(key, peak(table_learning_rate=1.0))[0] == marks


@pytest.mark.parametrize("best", [0.002, 0.02, 0.25, 1.0, 4.0, 30.0, 300.0])
@pytest.mark.parametrize("key", ["full", "cigar", "tt_rec"])
def test_the_grid_grows_until_the_best_rate_stands_inside(key, best):
    marks, _ = tune_by(key, peak(table_learning_rate=best))
    tried = {way.factor("table_learning_rate") for way in marks}
    assert set(RATE_GRID["table_learning_rate"][0]) <= tried
    chosen = best_of(marks).factor("table_learning_rate")
    assert min(tried) < chosen < max(tried)
    # Far away the grid is coarser.
    near = 2 if 1 / 32 < best < 32 else 4
    assert abs(math.log(chosen / best)) < math.log(near)


def test_all_methods_try_the_same_rates_first():
    judge = peak(table_learning_rate=3.0, learning_rate=0.5)
    grids = []
    for key in ("full", "hashing", "nis", "rowwise"):
        marks, _ = tune_by(key, judge)
        ways = [way for way in marks if not way.options]
        grids.append([way.factors for way in ways[:9]])
    assert all(grid == grids[0] for grid in grids)


def test_without_options_all_trials_go_to_the_rates():
    marks, _ = tune_by("full", peak(table_learning_rate=1.4))
    assert not any(way.options for way in marks)
    drawn = [way for way in marks if len(way.factors) == 3]
    assert len(drawn) >= 5


def test_options_that_are_always_asked_are_not_tuned():
    marks, _ = tune_by("hashing", peak(table_learning_rate=1.0), {"fields": "apart"})
    assert not any(way.options for way in marks)
    way = Way(options=(("fields", "together"),))
    assert way.ask("hashing", {"fields": "apart"}).fields == "apart"


def test_further_options_can_be_tried_in_more_trials():
    """Beside what the method names, or in its place; never what is always asked."""
    tries = {
        "layers": (1, 3, 5),
        "normalisation": ("none", "batch"),
        "codes": (None, 9),
    }
    marks, _ = tune_by(
        "dhe", peak(table_learning_rate=2.0), {"normalisation": "batch"},
        tries=tries, trials=32,
    )  # fmt: skip
    assert len(marks) == 32
    found = {}
    for way in marks:
        for name, value in way.options:
            found.setdefault(name, set()).add(value)
    rates = set(get_method("dhe").load().options.grid()["rate"])
    assert found == {"layers": {3, 5}, "codes": {9}, "rate": rates - {0.3}}
    # Without them all is as it was, to the last trial.
    same = tune_by("dhe", peak(table_learning_rate=2.0), tries={}, trials=TRIALS_EACH)
    assert same == tune_by("dhe", peak(table_learning_rate=2.0))


@pytest.mark.parametrize(
    ("tries", "said"),
    [
        (
            {"layers": (3, 1)},
            r"of layers the first must be its default, 1, got \(3, 1\)",
        ),
        ({"layers": ()}, "the first must be its default, 1"),
        ({"layers": (1, 0)}, "layers must be an integer from 1"),
        ({"depth": (1, 2)}, "dhe has no option 'depth'"),
    ],
)
def test_values_that_cannot_be_tried_are_a_value_error(tries, said):
    with pytest.raises(ValueError, match=said):
        next(tune("dhe", TRIAL, {}, tries=tries))


def test_a_setting_that_is_zero_stays_zero():
    trial = dataclasses.replace(TRIAL, settings=TRIAL.settings.replace(l2=0.0))
    assert set(tunable(trial)) == {"table_learning_rate", "learning_rate"}
    marks, _ = tune_by("full", peak(table_learning_rate=1.0), trial=trial)
    assert {way.adapt(trial).settings.l2 for way in marks} == {0.0}
    # Cosines have no network around them.
    assert set(tunable(dataclasses.replace(trial, model="mf"))) == {
        "table_learning_rate"
    }


def test_failures_are_never_the_best():
    def judge(way):
        wild = way.factor("table_learning_rate") > 1
        return -math.inf if wild else way.factor("table_learning_rate")

    marks, _ = tune_by("full", judge)
    assert best_of(marks).factor("table_learning_rate") == 1.0
    assert len(marks) == TRIALS_EACH
    assert len(tune_by("tt_rec", lambda way: -math.inf)[0]) == TRIALS_EACH


def test_factors_multiply_the_trials_settings():
    way = Way().scale("l2", 3.0).scale("table_learning_rate", 0.5)
    settings = way.adapt(TRIAL).settings
    assert settings.l2 == pytest.approx(0.3)
    assert settings.table_learning_rate == pytest.approx(0.0005)
    assert settings.learning_rate == TRIAL.settings.learning_rate
    assert way.scale("l2", 1.0).scale("table_learning_rate", 1.0) == Way()


def test_the_tables_rate_does_not_follow_the_networks():
    assert TRIAL.settings.table_learning_rate is None
    settings = Way().scale("learning_rate", 2.0).adapt(TRIAL).settings
    assert settings.learning_rate == pytest.approx(0.002)
    assert settings.table_learning_rate == pytest.approx(0.001)
    marks, _ = tune_by("tt_rec", peak(table_learning_rate=1.0, learning_rate=2.0))
    assert best_of(marks).factor("learning_rate") == 2.0


@pytest.mark.parametrize("rate", [1e-9, 1.0, 1e9])
def test_options_have_trials_left_however_far_the_grid_grows(rate):
    marks, _ = tune_by("tt_rec", peak(table_learning_rate=rate))
    assert sum(bool(way.options) for way in marks) >= 4
    drawn = list(marks)[TRIALS_EACH - KEPT_FOR_OPTIONS :]
    assert len(marks) == TRIALS_EACH and len(drawn) == KEPT_FOR_OPTIONS


def test_what_takes_anothers_rates_tunes_its_own_options_alone():
    start = Way().scale("table_learning_rate", 4.0).scale("l2", 3.0)
    tries, marks = tune("rowwise", TRIAL, {"bits": 4}, start), {}
    ways = next(tries)
    assert ways == [start]
    with pytest.raises(StopIteration):
        while True:
            marks.update(dict.fromkeys(ways, 0.5))
            ways = tries.send([0.5] * len(ways))
    assert {way.factors for way in marks} == {start.factors}
    assert 1 < len(marks) <= TRIALS_EACH
    assert any(way.options for way in marks)


@pytest.mark.parametrize("key", TUNED)
def test_values_worth_tuning_are_allowed_and_begin_with_the_default(key):
    kind = get_method(key).load().options
    for name, values in kind.grid().items():
        assert values[0] == getattr(kind(), name) and len(set(values)) > 1
        for value in values:
            assert getattr(kind(**{name: value}), name) == value


def test_a_recorded_run_can_be_repeated(tmp_path):
    for method, options in (
        ("mde_popularity", {"alpha": 0.6}),
        ("robe", {}),
        ("uniform", {}),
    ):
        result = run(method, "synthetic", 4, 1, trial=TRIAL, measure=False, **options)
        line = Result.from_json(result.to_json())
        assert repeat(line, "synthetic", measure=False).test == result.test
        assert repeat(line, "synthetic", measure=False, seed=2).test != result.test
    other = dataclasses.replace(line, data="another")
    with pytest.raises(ValueError, match="the result was made on another"):
        repeat(other, "synthetic")
