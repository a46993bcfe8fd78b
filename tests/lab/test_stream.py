"""Streams: each window is a test before it is learnt from."""

import dataclasses

import numpy as np
import pytest

from survey_code import FullEmbedding
from survey_code.data.synthetic import make_clicks, make_stream
from survey_code.lab import Trial, run_stream
from survey_code.lab.experiment import Experiment
from survey_code.lab.stream import StreamExperiment, gather_windows, new_share
from survey_code.lab.task import ClickTask
from survey_code.objectives import evaluate_clicks
from survey_code.training import TrainingSettings

TRIAL = Trial(
    "dcnv2", 8,
    TrainingSettings(epochs=2, batch_size=256, learning_rate=0.01, patience=0),
    {"hidden": (8,), "cross_layers": 1}, init_std=0.1,
)  # fmt: skip


@pytest.fixture(scope="module")
def stream():
    return make_stream(rows=(2000,) * 4, field_sizes=(60, 40), rotation=0.6, bias=0.0)


def test_a_frozen_model_is_one_training_and_tests_of_all_later_windows(stream):
    found = run_stream("full", stream, start=2, update_epochs=0, trial=TRIAL, seed=1)
    assert found.index.tolist() == [2, 3]
    task = ClickTask(gather_windows(stream, 0, 2), TRIAL, 1)
    network = task.train(FullEmbedding(task.spec, seed=1)).network
    for window in (2, 3):
        wanted = evaluate_clicks(network, stream.windows[window])
        assert found.loc[window, "auc"] == pytest.approx(wanted["auc"])
        assert found.loc[window, "log_loss"] == pytest.approx(wanted["log_loss"])


def test_updates_do_not_see_the_window_they_are_tested_on(stream):
    """Two streams that differ in their last window only agree before it."""
    rows = stream.windows[3]
    spoilt = type(rows)(rows.ids, 1 - rows.labels)
    other = type(stream)(
        stream.name, stream.field_names, stream.field_starts,
        (*stream.windows[:3], spoilt),
    )  # fmt: skip
    found, again = (
        run_stream("hashing", data, 2, start=1, update_epochs=1, trial=TRIAL)
        for data in (stream, other)
    )
    columns = ["auc", "log_loss"]
    assert found.loc[[1, 2], columns].equals(again.loc[[1, 2], columns])
    assert found.loc[3, "auc"] == pytest.approx(1 - again.loc[3, "auc"])


def test_learning_on_follows_the_drift(stream):
    frozen, updated = (
        run_stream("full", stream, start=1, update_epochs=epochs, trial=TRIAL)
        for epochs in (0, 3)
    )
    assert updated.loc[3, "auc"] > frozen.loc[3, "auc"] + 0.03
    assert updated.loc[1, "auc"] == frozen.loc[1, "auc"]


@pytest.mark.parametrize("key", ["rowwise", "hashing"])
def test_compressed_bytes_are_inside_the_budget(key, stream):
    found = run_stream(key, stream, 2, start=3, trial=TRIAL)
    full = 4 * 8 * stream.num_embeddings
    assert (found["bytes"] <= full / 2).all()
    np.testing.assert_allclose(found["ratio"], full / found["bytes"])


PLATEAU = {"schedule": "plateau", "patience": 1, "drops": 1, "decay": 0.3}


@pytest.mark.parametrize("key", ["full", "rowwise", "pep"])
def test_a_plateau_is_found_on_the_last_window_before_the_first_test(key, stream):
    """And all of them are then learnt from as long, and at the same rates."""
    settings = TRIAL.settings.replace(**PLATEAU)
    trial = dataclasses.replace(TRIAL, settings=settings)
    ratio = 1 if key == "full" else 2
    asked = Experiment.of(key, stream, ratio, 1, trial=trial)
    one = StreamExperiment(key, asked.options, stream, trial, ratio, 1, 2, 0)
    chosen, tried, tested = one.choose(), one.run(test=False), one.run()
    assert tried.test == {} and tried.validation == tested.validation
    assert tried.settings["ended"] == "plateau" and tried.rows["train"] > 0
    assert sorted(tested.test) == ["auc", "auc@2", "auc@3", "log_loss"]
    if key == "full":
        scripts = [history.script for history in chosen.learnt.histories]
        task = ClickTask(gather_windows(stream, 0, 2), trial, 1, scripts)
        network = task.train(FullEmbedding(task.spec, seed=1)).network
        wanted = evaluate_clicks(network, stream.windows[2])
        assert tested.test["auc@2"] == pytest.approx(wanted["auc"])


def test_newcomers_are_counted_by_row(stream):
    seen = set(stream.windows[0].ids.ravel().tolist())
    rows = stream.windows[1].ids.tolist()
    wanted = np.mean([bool(set(row) - seen) for row in rows])
    assert new_share(stream, 1) == pytest.approx(wanted)
    assert new_share(stream, 0) == 1.0


@pytest.mark.parametrize("start", [0, 4, -1, 2.5, True])
def test_a_start_without_a_test_is_a_value_error(start, stream):
    with pytest.raises(
        ValueError, match=f"start must be an integer from 1 to 3, got {start}"
    ):
        run_stream("full", stream, start=start, trial=TRIAL)


def test_rows_without_time_are_a_value_error():
    data = make_clicks(rows=(100, 100, 100), field_sizes=(20, 10))
    with pytest.raises(ValueError, match="run_stream needs a stream of windows"):
        run_stream("full", data, trial=TRIAL)
