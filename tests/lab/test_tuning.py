"""Equal tuning: eight trials for every method, the best by validation."""

import dataclasses
import shutil

import pytest
import records as book

from survey_code import data
from survey_code.catalog import get_method, methods
from survey_code.data.synthetic import make_clicks
from survey_code.lab import Result, Trial, repeat, run
from survey_code.lab.tuning import TRIALS_EACH, apply_tuning, propose
from survey_code.training import TrainingSettings

TRIAL = Trial(
    "dcnv2", 16, TrainingSettings(epochs=1, batch_size=500, patience=0),
    {"hidden": (4,), "cross_layers": 1},
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def tiny_data():
    """Two fields, as the data set called synthetic."""
    tiny = make_clicks(rows=(1000, 300, 300), field_sizes=(400, 30))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda name: tiny)
        for name in ("tuning", "tuned"):
            listed = book.tune_category if name == "tuning" else book.compare_category
            patch.setitem(
                book.RECORDS, f"tiny_{name}",
                lambda listed=listed: [
                    one for one in listed("mixed dimension", "synthetic", TRIAL)
                    if one.method in ("uniform", "mde_popularity") and one.ratio < 30
                ],
            )  # fmt: skip
        yield


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    """The folder of the trials' record, and its results; made once."""
    folder = tmp_path_factory.mktemp("trials")
    return folder, list(book.make("tiny_tuning", folder))


TUNED = [m.key for m in methods() if m.load().options.grid()]


@pytest.mark.parametrize("key", ["full", "robe", *TUNED])
def test_every_method_has_eight_trials_the_defaults_first(key):
    proposals = propose(key, TRIAL)
    assert proposals[0] == (TRIAL, get_method(key).ask({}))
    assert len(proposals) == TRIALS_EACH
    assert len({repr(p) for p in proposals}) == TRIALS_EACH
    assert propose(key, TRIAL) == proposals


@pytest.mark.parametrize("key", TUNED)
def test_values_worth_tuning_are_allowed_and_begin_with_the_default(key):
    kind = get_method(key).load().options
    for name, values in kind.grid().items():
        assert values[0] == getattr(kind(), name) and len(set(values)) > 1
        for value in values:
            assert getattr(kind(**{name: value}), name) == value


def test_methods_without_options_share_their_draws():
    both = [[trial for trial, _ in propose(key, TRIAL)] for key in ("rowwise", "full")]
    assert both[0] == both[1]


def test_trials_are_made_at_ten_or_the_nearest_ratio_in_reach():
    cells = book.tune_category("mixed dimension", "synthetic", TRIAL)
    ratios = {cell.method: cell.ratio for cell in cells}
    assert ratios["full"] == 1 and ratios["uniform"] == 10
    # An assignment for each id: 30x is out of reach, and 10x on so small a table.
    assert {cell.seed for cell in cells} == {0}
    assert len(cells) == TRIALS_EACH * len(ratios)


def test_the_record_is_made_as_the_best_trial_was(trials, tmp_path):
    folder, trials = trials
    shutil.copy(folder / "tiny_tuning.jsonl", tmp_path)
    made = list(book.make("tiny_tuned", tmp_path))
    assert {r.key for r in made} == {"uniform", "mde_popularity"}
    for key in ("uniform", "mde_popularity"):
        mine = [r for r in trials if r.key == key]
        best = max(mine, key=lambda r: r.validation["auc"])
        for result in made:
            if result.key == key:
                assert result.seed in (1, 2, 3)
                assert (
                    result.settings["learning_rate"] == best.settings["learning_rate"]
                )
                assert (
                    result.settings["table_learning_rate"]
                    == best.settings["table_learning_rate"]
                )
    assert list(book.make("tiny_tuned", tmp_path)) == []


def test_the_best_by_validation_wins_whatever_the_test_says(trials):
    trials = [
        dataclasses.replace(
            result, validation={"auc": 0.5 + 0.01 * (place == 3)},
            test={"auc": 0.9 * (place != 3)},
        )
        for place, result in enumerate(trials[1])
        if result.key == "uniform"
    ]  # fmt: skip
    cells = book.RECORDS["tiny_tuned"]()
    chosen = apply_tuning(cells, trials)
    assert {c.method for c in chosen} == {"uniform"}, "untuned methods are left out"
    assert (chosen[0].trial, chosen[0].options) == propose("uniform", TRIAL)[3]


def test_a_missing_trial_leaves_its_method_out(trials):
    trials = [r for r in trials[1] if r.key == "uniform"]
    assert apply_tuning(book.RECORDS["tiny_tuned"](), trials[1:]) == []


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
