"""What methods cost beside their accuracy."""

import numpy as np
import pytest

from survey_code import compress
from survey_code.data.synthetic import make_clicks
from survey_code.lab.experiment import Experiment
from survey_code.lab.measures import (
    EPOCHS,
    SIZES,
    STEPS,
    ShortTraining,
    count_moved,
    measure_costs,
    note_costs,
    read_costs,
    shorten,
    split_seconds,
    train_short,
)
from survey_code.layouts import DenseLayout

SETTINGS = {"batch_size": 64, "epochs": 5}


@pytest.fixture(scope="module")
def data():
    return make_clicks("small", rows=(3000, 500, 500))


def ask(method, data, ratio=1.0, **options):
    return Experiment.of(method, data, ratio, 1, settings=SETTINGS, **options)


def test_short_trainings_see_as_many_rows_as_they_say(data):
    for epochs in EPOCHS:
        short = train_short(shorten(ask("hashing", data, 4), epochs))
        assert short.rows["train"] == epochs * min(STEPS * 64, len(data.train))
        assert short.rows["search"] == 0


def test_a_search_is_measured_apart(data):
    experiment = ask("pep", data, 4)
    rows = [train_short(shorten(experiment, epochs)).rows for epochs in EPOCHS]
    assert 0 < rows[0]["search"] < rows[1]["search"]
    costs = measure_costs(experiment)
    assert set(costs["search"]) == set(costs["train"]) == {"start_s", "us_per_row"}
    assert "persistent_in_search" in costs["training_bytes"]


def test_costs_are_those_of_the_layout(data):
    costs = measure_costs(ask("full", data), "a command")
    cells = 4 * data.num_embeddings
    dim = costs["stored_bytes"] // cells
    assert costs["stored_bytes"] == costs["held_bytes"] == cells * dim
    assert costs["moved_per_row"] == 4 * dim
    assert costs["training_bytes"]["persistent"] == 3 * costs["stored_bytes"]
    assert list(costs["lookup"]) == [str(size) for size in SIZES] == list(costs["bag"])
    assert all(0 < p50 <= p99 for p50, p99 in costs["bag"].values())
    assert costs["command"] == "a command" and costs["device"].startswith("cpu")


def test_what_a_row_costs_is_the_slope():
    def short(seconds, rows):
        return ShortTraining(None, {"train": seconds}, {"train": rows})

    found = split_seconds("train", short(3.0, 100), short(7.0, 300))
    assert found == pytest.approx({"start_s": 1.0, "us_per_row": 2e4})
    # A method that sees no rows costs what it costs.
    found = split_seconds("train", short(3.0, 0), short(5.0, 0))
    assert found == {"start_s": 3.0, "us_per_row": 0.0}


def test_rows_that_stand_alone_move_alone():
    weight = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    assert count_moved(DenseLayout(weight)) == 32
    rounded = compress(weight, "rowwise", bits=4)
    assert count_moved(rounded) == rounded.nbytes / 500
    assert count_moved(compress(weight, "pq")) is None


def test_costs_are_lines_of_a_file_of_which_half_a_line_is_none(data, tmp_path):
    path = tmp_path / "costs" / "small.jsonl"
    assert read_costs(path) == []
    line = note_costs(path, "uniform, mine", ask("uniform", data, 2), 10.0, "here")
    with path.open("a") as file:
        file.write('{"entrant": "ha')
    (found,) = read_costs(path)
    assert found["entrant"] == "uniform, mine" and found["where"] == "cpu"
    assert (found["asked_ratio"], found["seed"], found["command"]) == (10.0, 1, "here")
    assert found["stored_bytes"] == line["stored_bytes"]
    again = note_costs(path, "other", ask("uniform", data, 2), 10.0, "here")
    assert [one["entrant"] for one in read_costs(path)] == ["uniform, mine", "other"]
    assert again["data"] == line["data"]
