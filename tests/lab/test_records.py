"""Recorded results: a record goes on where it stopped."""

import dataclasses
import pickle
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest
import records as book

from survey_code import data
from survey_code.catalog import get_method
from survey_code.data.synthetic import make_clicks
from survey_code.lab import Trial, load_results
from survey_code.lab.experiment import note_failure
from survey_code.lab.records import (
    Recorder,
    Records,
    Wanted,
    Workers,
    arrange_record,
    ask_once,
)
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


def test_a_record_that_lacks_its_order_alone_is_put_into_it(tmp_path):
    """Who made the last run was killed before that was done."""
    list(book.make("tiny", tmp_path))
    path = tmp_path / "tiny.jsonl"
    arranged = load_results(path)
    assert [one.matches(result) for one, result in zip(LIST, arranged)] == [True] * 6
    replace_results(path, reversed(arranged))
    assert list(book.make("tiny", tmp_path)) == []
    assert load_results(path) == arranged
    before = path.stat()
    assert list(book.make("tiny", tmp_path)) == []
    assert path.stat().st_ino == before.st_ino  # in order, it is not written again


def test_a_result_is_written_before_the_next_run_starts(tmp_path):
    for count, _ in enumerate(book.make("tiny", tmp_path), 1):
        assert len(load_results(tmp_path / "tiny.jsonl")) == count
        if count == 2:
            break
    assert len(list(book.make("tiny", tmp_path))) == 4


def course(experiments, log=()):
    """A course that asks for all, then for none."""
    found = yield [Wanted(one) for one in experiments]
    log.append(found) if isinstance(log, list) else None


def follow(experiments, path, jobs=1, **given):
    recorder = Recorder(Records(path), Workers(jobs=jobs, **given))
    return recorder, list(recorder.follow([course(experiments)]))


def test_runs_side_by_side_give_the_same_results(tmp_path):
    tiny = make_clicks(rows=(1000, 300, 300), field_sizes=(40, 30))
    listed = [dataclasses.replace(one, data=tiny) for one in LIST]
    assert len({repr(Wanted(one).shares) for one in listed}) == 2  # a table a seed
    _, alone = follow(listed, tmp_path / "alone")
    _, beside = follow(listed, tmp_path / "beside", jobs=2)
    tests = [{runs_of([r])[0]: r.test for r in made} for made in (alone, beside)]
    assert tests[0] == tests[1] and len(alone) == len(beside) == 6


def test_a_course_is_sent_what_it_asked_for(tmp_path):
    heard = []
    for _ in range(2):  # the second time from the file
        recorder = Recorder(Records(tmp_path / "runs"), Workers())
        list(recorder.follow([course(LIST[:2], heard)]))
    assert runs_of(heard[0]) == runs_of(heard[1]) == runs_of(heard[0])
    assert [result.seed for result in heard[0]] == [1, 2]


def test_trials_do_not_look_at_the_test(tmp_path):
    def trial():
        yield [Wanted(LIST[0], tests=False)]
        yield [Wanted(LIST[0])]

    records = Records(tmp_path / "runs", tmp_path / "trials")
    made = list(Recorder(records, Workers()).follow([trial()]))
    assert [bool(result.test) for result in made] == [False, True]
    assert made[0].validation == made[1].validation
    assert len(load_results(tmp_path / "trials")) == 1
    # Read again, each is found as what it is.
    again = Records(tmp_path / "runs", tmp_path / "trials")
    assert again.find(Wanted(LIST[0], False)).test == {}
    assert again.find(Wanted(LIST[0])).test == made[1].test


def test_no_run_is_begun_that_would_end_too_late(tmp_path):
    recorder, made = follow(LIST, tmp_path / "runs", seconds=0.0)
    assert made == [] and not recorder.failed


def test_a_run_that_diverges_is_a_result_and_others_are_an_error(tmp_path, monkeypatch):
    settings = dataclasses.replace(
        TRIAL.settings, learning_rate=1e30, table_learning_rate=1e30
    )
    wild = dataclasses.replace(
        LIST[0], trial=dataclasses.replace(TRIAL, settings=settings)
    )
    _, made = follow([wild], tmp_path / "runs")
    assert "NaN" in made[0].failure or "diverged" in made[0].failure
    assert made[0].test == made[0].validation == {}
    assert follow([wild], tmp_path / "runs")[1] == []  # known by now
    monkeypatch.setattr(book.Experiment, "plan", lambda one: 1 / 0)
    with pytest.raises(RuntimeError, match=r"1 runs failed: .*ZeroDivisionError"):
        follow([LIST[0]], tmp_path / "runs")


def test_one_that_fails_costs_those_that_share_its_table_nothing(tmp_path, monkeypatch):
    full = dataclasses.replace(
        LIST[0], method="full", options=get_method("full").ask({}), ratio=1
    )
    broken = dataclasses.replace(
        full, method="pq", options=get_method("pq").ask({}), ratio=4
    )

    def fail(weight, spec, options):
        raise IndexError("out of codes")

    monkeypatch.setattr(get_method("pq").load(), "compress", fail)
    recorder = Recorder(Records(tmp_path / "runs"), Workers())
    with pytest.raises(RuntimeError, match=r"1 runs failed: .*pq 4 1.*out of codes"):
        list(recorder.follow([ask_once([broken, full])]))
    assert [result.key for result in load_results(tmp_path / "runs")] == ["full"]


def test_what_is_done_when_time_is_up_is_written(tmp_path):
    """Also what ended while another result was being written."""
    done = [Future(), Future()]
    for future, one in zip(done, LIST[:2]):
        future.set_result([dataclasses.replace(one).run(measure=False)])
    recorder = Recorder(Records(tmp_path / "runs"), Workers(seconds=1))
    recorder.began -= 10
    recorder.flying = {f: [Wanted(o)] for f, o in zip(done, LIST[:2])}
    assert len(list(recorder.follow([]))) == 2
    assert len(load_results(tmp_path / "runs")) == 2


def test_a_run_whose_process_died_is_begun_once_more(tmp_path):
    recorder = Recorder(Records(tmp_path / "runs"), Workers())
    for times in (0, 1):
        future = Future()
        future.set_exception(BrokenProcessPool("killed"))
        recorder.flying = {future: [Wanted(LIST[0])]}
        assert list(recorder.land(future)) == []
        assert len(recorder.failed) == len(recorder.given_up) == times
    with pytest.raises(RuntimeError, match=r"1 runs failed: .*full 1 1: .*killed"):
        list(recorder.follow([]))


def test_a_failure_is_known_as_it_will_be_when_it_is_read_again(tmp_path):
    """Of a trial it is one of the run, too: whoever is killed asks for no more."""
    for tests in (True, False):
        records = Records(tmp_path / f"runs{tests}", tmp_path / f"trials{tests}")
        records.add(note_failure(LIST[0], "diverged"), Wanted(LIST[0], tests))
        again = Records(records.paths[True], records.paths[False])
        for either in (True, False):
            found = [one.find(Wanted(LIST[0], either)) for one in (records, again)]
            assert [one and one.failure for one in found] == ["diverged"] * 2


def test_an_experiment_travels_without_what_it_opened():
    one = dataclasses.replace(LIST[0], data=data.load("synthetic"))
    alone = len(pickle.dumps(one))
    assert one.task.spec.num_embeddings == 70
    assert len(pickle.dumps(one)) == alone


def test_runs_are_made_seed_by_seed_the_longest_first(monkeypatch, tmp_path):
    apart = [
        book.ask(key, "synthetic", 2, seed, TRIAL)
        for key in ("hashing", "uniform")
        for seed in (1, 2)
    ]
    recorder = Recorder(Records(tmp_path / "runs"), Workers())
    monkeypatch.setattr(recorder, "note_time", lambda result: None)
    made = [(r.key, r.seed) for r in recorder.follow([course(apart)])]
    assert made == [("hashing", 1), ("uniform", 1), ("hashing", 2), ("uniform", 2)]
    (tmp_path / "runs").unlink()
    recorder.records = Records(tmp_path / "runs")
    recorder.times = {"hashing": [(1.0, 0.0)], "uniform": [(2.0, 0.0)]}
    made = [(r.key, r.seed) for r in recorder.follow([course(apart)])]
    assert made == [("uniform", 1), ("uniform", 2), ("hashing", 1), ("hashing", 2)]


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
