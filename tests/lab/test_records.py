"""Recorded results: a record goes on where it stopped."""

import dataclasses
from pathlib import Path

import pytest

from survey_code import data
from survey_code.data.synthetic import make_clicks
from survey_code.lab import Trial, load_results, record
from survey_code.lab.records import (
    RECORDS,
    Cell,
    arrange_record,
    group_cells,
    make_cells,
)
from survey_code.lab.results import replace_results
from survey_code.training import TrainingSettings

TRIAL = Trial(
    "dcnv2", 8, TrainingSettings(epochs=1, batch_size=500, patience=0),
    {"hidden": (4,), "cross_layers": 1},
)  # fmt: skip
CELLS = [
    Cell(method, "synthetic", ratio, seed, TRIAL, options)
    for method, ratio, options in (
        ("full", 1, {}),
        ("rowwise", 1, {"bits": 8}),
        ("rowwise", 1, {"bits": 4}),
    )
    for seed in (1, 2)
]


@pytest.fixture(autouse=True)
def tiny_record(monkeypatch):
    """A record of six small runs."""
    tiny = make_clicks(rows=(1000, 300, 300), field_sizes=(40, 30))
    other = dataclasses.replace(tiny, name="another")
    monkeypatch.setattr(
        data, "load", lambda name: tiny if name == "synthetic" else other
    )
    monkeypatch.setitem(RECORDS, "tiny", lambda: CELLS)


def runs_of(results):
    return [(r.key, r.options.get("bits"), r.seed) for r in results]


def test_a_record_makes_what_its_file_lacks(tmp_path):
    made = list(record("tiny", tmp_path, seed=2))
    assert runs_of(made) == [("full", None, 2), ("rowwise", 8, 2), ("rowwise", 4, 2)]
    made = list(record("tiny", tmp_path))
    assert runs_of(made) == [("full", None, 1), ("rowwise", 8, 1), ("rowwise", 4, 1)]
    assert list(record("tiny", tmp_path)) == []
    results = load_results(tmp_path / "tiny.jsonl")
    assert len(results) == 6
    assert results[0].command == "survey-code record tiny --device cpu"


def test_runs_made_in_any_order_stand_in_the_records_order(tmp_path):
    made = list(record("tiny", tmp_path, seed=2)) + list(record("tiny", tmp_path))
    path = tmp_path / "tiny.jsonl"
    other = dataclasses.replace(made[0], key="hashing")
    replace_results(path, [other, *reversed(made)])
    arrange_record(path, CELLS)
    arranged = load_results(path)
    assert runs_of(arranged[:-1]) == [
        (c.method, c.options.get("bits"), c.seed) for c in CELLS
    ]
    assert arranged[-1].key == "hashing"
    assert list(record("tiny", tmp_path)) == []


def test_a_result_is_written_before_the_next_run_starts(tmp_path):
    for count, _ in enumerate(record("tiny", tmp_path), 1):
        assert len(load_results(tmp_path / "tiny.jsonl")) == count
        if count == 2:
            break
    assert len(list(record("tiny", tmp_path))) == 4


def test_runs_side_by_side_give_the_same_results():
    tiny = make_clicks(rows=(1000, 300, 300), field_sizes=(40, 30))
    cells = [dataclasses.replace(cell, data=tiny) for cell in CELLS]
    groups = group_cells(cells)
    assert [len(group) for group in groups] == [3, 3]  # a seed's share its table
    alone = {(*runs_of([r])[0],): r.test for r in make_cells(groups, "cpu", "", 1)}
    beside = {(*runs_of([r])[0],): r.test for r in make_cells(groups, "cpu", "", 2)}
    assert alone == beside and len(alone) == 6


def test_runs_are_made_seed_by_seed(monkeypatch, tmp_path):
    apart = [
        Cell(key, "synthetic", 2, seed, TRIAL)
        for key in ("hashing", "uniform")
        for seed in (1, 2)
    ]
    monkeypatch.setitem(RECORDS, "tiny", lambda: apart)
    made = [(r.key, r.seed) for r in record("tiny", tmp_path)]
    assert made == [("hashing", 1), ("uniform", 1), ("hashing", 2), ("uniform", 2)]


def test_cells_out_of_reach_are_left_out(monkeypatch, tmp_path):
    far = dataclasses.replace(CELLS[-1], ratio=1000)
    monkeypatch.setitem(RECORDS, "tiny", lambda: [far])
    assert list(record("tiny", tmp_path)) == []


def test_a_cell_knows_its_result(tmp_path):
    (result,) = list(record("tiny", tmp_path, seed=1))[:1]
    (cell,) = (c for c in CELLS if c.matches(result))
    assert cell is CELLS[0]
    longer = dataclasses.replace(TRIAL.settings, epochs=2)
    wider = {"hidden": (5,), "cross_layers": 1}
    for changes in (
        {"seed": 2},
        {"ratio": 2},
        {"method": "rowwise"},
        {"data": "frappe"},
        {"trial": dataclasses.replace(TRIAL, dim=4)},
        {"trial": dataclasses.replace(TRIAL, model="dlrm")},
        {"trial": dataclasses.replace(TRIAL, settings=longer)},
        {"trial": dataclasses.replace(TRIAL, layers=wider)},
        {"trial": dataclasses.replace(TRIAL, init_std=0.5)},
        {"options": {"bits": 4}},
    ):
        assert not dataclasses.replace(cell, **changes).matches(result)


def test_every_record_names_runs_that_differ():
    for name, cells in RECORDS.items():
        if name.endswith("_tuning"):
            continue  # these look at the data: see test_tuning.py
        made = cells()
        keys = [(c.method, c.ratio, c.seed, c.options, repr(c.trial)) for c in made]
        assert made and all(keys.count(key) == 1 for key in keys)


def test_an_unknown_record_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match="unknown record 'all'; records: "):
        next(record("all", tmp_path))


@pytest.mark.parametrize("name", ["movietweetings_drift", "movietweetings_search"])
def test_a_stream_finds_its_recorded_passes(name):
    folder = Path(__file__).parents[2] / "book" / "results"
    recorded = load_results(folder / f"{name}.jsonl")
    for result in recorded:
        assert sum(cell.matches(result) for cell in RECORDS[name]()) == 1
