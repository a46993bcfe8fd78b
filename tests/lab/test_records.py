"""Recorded results: a record goes on where it stopped."""

import dataclasses
import pickle

import pytest
import records as book

from survey_code import data
from survey_code.data.synthetic import make_clicks
from survey_code.lab import Trial, load_results
from survey_code.lab.records import arrange_record, group_experiments, make_groups
from survey_code.lab.results import replace_results
from survey_code.training import TrainingSettings

TRIAL = Trial(
    "dcnv2", 8, TrainingSettings(epochs=1, batch_size=500, patience=0),
    {"hidden": (4,), "cross_layers": 1},
)  # fmt: skip
LIST = [
    book.ask(method, "synthetic", ratio, seed, TRIAL, options)
    for method, ratio, options in (
        ("full", 1, {}),
        ("rowwise", 1, {"bits": 8}),
        ("rowwise", 1, {"bits": 4}),
    )
    for seed in (1, 2)
]


@pytest.fixture(autouse=True)
def tiny_record(monkeypatch):
    """A data set for six small runs, which the book's list "tiny" asks for."""
    tiny = make_clicks(rows=(1000, 300, 300), field_sizes=(40, 30))
    other = dataclasses.replace(tiny, name="another")
    monkeypatch.setattr(
        data, "load", lambda name: tiny if name == "synthetic" else other
    )
    monkeypatch.setitem(book.RECORDS, "tiny", lambda: LIST)


def runs_of(results):
    return [(r.key, r.options.get("bits"), r.seed) for r in results]


def test_a_record_makes_what_its_file_lacks(tmp_path):
    made = list(book.make("tiny", tmp_path, seed=2))
    assert runs_of(made) == [("full", None, 2), ("rowwise", 8, 2), ("rowwise", 4, 2)]
    made = list(book.make("tiny", tmp_path))
    assert runs_of(made) == [("full", None, 1), ("rowwise", 8, 1), ("rowwise", 4, 1)]
    assert list(book.make("tiny", tmp_path)) == []
    results = load_results(tmp_path / "tiny.jsonl")
    assert len(results) == 6
    assert results[0].command == "python book/records.py tiny --device cpu"


def test_runs_made_in_any_order_stand_in_the_records_order(tmp_path):
    made = list(book.make("tiny", tmp_path, seed=2)) + list(book.make("tiny", tmp_path))
    path = tmp_path / "tiny.jsonl"
    other = dataclasses.replace(made[0], key="hashing")
    replace_results(path, [other, *reversed(made)])
    arrange_record(path, LIST)
    arranged = load_results(path)
    assert runs_of(arranged[:-1]) == [
        (one.method, one.options.asked().get("bits"), one.seed) for one in LIST
    ]
    assert arranged[-1].key == "hashing"
    assert list(book.make("tiny", tmp_path)) == []


def test_a_result_is_written_before_the_next_run_starts(tmp_path):
    for count, _ in enumerate(book.make("tiny", tmp_path), 1):
        assert len(load_results(tmp_path / "tiny.jsonl")) == count
        if count == 2:
            break
    assert len(list(book.make("tiny", tmp_path))) == 4


def test_runs_side_by_side_give_the_same_results():
    tiny = make_clicks(rows=(1000, 300, 300), field_sizes=(40, 30))
    groups = group_experiments(dataclasses.replace(one, data=tiny) for one in LIST)
    assert [len(group) for group in groups] == [3, 3]  # a seed's share its table
    alone = {(*runs_of([r])[0],): r.test for r in make_groups(groups, "", 1)}
    beside = {(*runs_of([r])[0],): r.test for r in make_groups(groups, "", 2)}
    assert alone == beside and len(alone) == 6


def test_an_experiment_travels_without_what_it_opened():
    one = dataclasses.replace(LIST[0], data=data.load("synthetic"))
    alone = len(pickle.dumps(one))
    assert one.task.spec.num_embeddings == 70
    assert len(pickle.dumps(one)) == alone


def test_runs_are_made_seed_by_seed(monkeypatch, tmp_path):
    apart = [
        book.ask(key, "synthetic", 2, seed, TRIAL)
        for key in ("hashing", "uniform")
        for seed in (1, 2)
    ]
    monkeypatch.setitem(book.RECORDS, "tiny", lambda: apart)
    made = [(r.key, r.seed) for r in book.make("tiny", tmp_path)]
    assert made == [("hashing", 1), ("uniform", 1), ("hashing", 2), ("uniform", 2)]


def test_experiments_out_of_reach_are_left_out(monkeypatch, tmp_path):
    far = dataclasses.replace(LIST[-1], ratio=1000)
    monkeypatch.setitem(book.RECORDS, "tiny", lambda: [far])
    assert list(book.make("tiny", tmp_path)) == []


def test_an_experiment_knows_its_result(tmp_path):
    (result,) = list(book.make("tiny", tmp_path, seed=1))[:1]
    (one,) = (one for one in LIST if one.matches(result))
    assert one is LIST[0]
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
        {"options": book.ask("rowwise", "synthetic", 1, 1, TRIAL, {"bits": 4}).options},
    ):
        assert not dataclasses.replace(one, **changes).matches(result)


def test_every_record_names_runs_that_differ():
    for name, listed in book.RECORDS.items():
        if name.endswith(book.TUNING):
            continue  # these look at the data: see test_tuning.py
        keys = [one.key for one in listed()]
        assert keys and len(set(keys)) == len(keys), name


def test_an_unknown_record_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match="unknown record 'all'; records: "):
        next(book.make("all", tmp_path))


@pytest.mark.parametrize("name", ["movietweetings_drift", "movietweetings_search"])
def test_a_stream_finds_its_recorded_passes(name):
    recorded = load_results(book.RESULTS / f"{name}.jsonl")
    for result in recorded:
        assert sum(one.matches(result) for one in book.RECORDS[name]()) == 1
