"""Ids that training never saw, and what a row costs in arithmetic."""

import dataclasses
import pickle

import numpy as np
import pytest
import records as book

from survey_code import TableSpec, layouts
from survey_code.catalog import get_method
from survey_code.data.synthetic import make_clicks
from survey_code.lab import (
    Contest,
    Entrant,
    Trial,
    UnseenExperiment,
    count_multiply_adds,
    fill_unseen,
    load_results,
    make_task,
    tabulate,
)
from survey_code.lab.contest import (
    CHECKED,
    arrange,
    list_courses,
    list_missed,
    list_ratios,
    tuning_ratio,
)
from survey_code.lab.experiment import key_of
from survey_code.lab.records import Recorder, Records, Workers
from survey_code.layouts import AddedLayout, DenseLayout, RowwiseLayout, TurnedLayout
from survey_code.training import TrainingSettings
from survey_code.weight_sharing import hashing

pytestmark = pytest.mark.usefixtures("one_thread")

TRIAL = Trial(
    "dcnv2", 8, TrainingSettings(epochs=1, batch_size=500, patience=0),
    {"hidden": (4,), "cross_layers": 1},
)  # fmt: skip


@pytest.fixture(scope="module")
def told():
    """A world with unseen ids, and content."""
    sizes = {"field_sizes": (1200, 1000, 30), "rows": (3000, 300, 1500)}
    return make_clicks("content", **sizes)


# -- the mean row -------------------------------------------------------------------


def test_unseen_ids_have_the_mean_row_of_their_field_by_reads():
    rows = np.array([[1, 0], [4, 3], [9, 9], [7, 7], [5, 1], [1, 5]], np.float32)
    spec = TableSpec.of_table(6, 2, [2, 1, 0, 0, 0, 0], [0, 3, 4, 6])
    filled = fill_unseen(DenseLayout(rows), spec).lookup(np.arange(6))
    # (2 * (1, 0) + (4, 3)) / 3; and fields of which nothing was read.
    wanted = [[1, 0], [4, 3], [2, 1], [7, 7], [3, 3], [3, 3]]
    np.testing.assert_array_equal(filled, np.array(wanted, np.float32))


def test_where_all_ids_were_seen_nothing_changes():
    rows = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    spec = TableSpec.of_table(9, 3, np.arange(1, 10))
    same = fill_unseen(DenseLayout(rows), spec)
    np.testing.assert_array_equal(same.lookup(np.arange(9)), rows)


def test_a_layout_of_another_table_is_a_value_error():
    with pytest.raises(ValueError, match=r"table of 9 x 3, got a layout of 8 x 3"):
        fill_unseen(DenseLayout(np.ones((8, 3), np.float32)), TableSpec.of_shape(9, 3))


# -- experiments --------------------------------------------------------------------


def pose(data, key="dhe", ratio=4.0, **asked):
    return UnseenExperiment(key, get_method(key).ask(asked), data, TRIAL, ratio, 1)


def test_an_experiment_tells_unseen_ids_apart(told):
    one = pose(told, content=4)
    result = one.run(measure=False)
    task = make_task(told, TRIAL, 1)
    method = get_method("dhe")
    learnt = task.learn(method, method.plan(task.spec, 4.0, content=4))
    network = learnt.fitted.network
    apart = task.test_apart(network, learnt.layout)
    mean = task.test_apart(network, fill_unseen(learnt.layout, task.spec))
    assert result.test == {
        **task.test(network, learnt.layout),
        "auc_seen": apart["seen"]["auc"],
        "auc_unseen": apart["unseen"]["auc"],
        "auc_unseen_mean": mean["unseen"]["auc"],
    }
    assert one.matches(result) and key_of(result) == one.key
    assert pickle.loads(pickle.dumps(one)).key == one.key


def test_trials_do_not_look_at_the_test(told):
    assert pose(told).run(measure=False, test=False).test == {}


def test_rows_without_unseen_ids_and_rankings_are_a_value_error(told, pairs):
    known = dataclasses.replace(told, test=told.train)
    with pytest.raises(ValueError, match="were seen in training"):
        pose(known).run(measure=False)
    with pytest.raises(ValueError, match="looked at in clicks, not in pairs"):
        pose(pairs).run(measure=False)


def test_a_contest_of_such_experiments_is_recorded_and_shown(told, tmp_path):
    """Entrants that try few trials; tables of each metric of the test."""
    entrants = (
        Entrant("hashing", "hashing", ratios=(4.0,), trials=2),
        Entrant("dhe, content", "dhe", (("content", 4),), (4.0,),
                tries=(("layers", (1, 2)),), trials=3),
    )  # fmt: skip
    contest = Contest(
        "new", told, TRIAL, entrants, (4.0,), (1, 2), (0,), kind=UnseenExperiment
    )
    records = Records(tmp_path / "runs", tmp_path / "trials")
    made = list(Recorder(records, Workers()).follow(list_courses(contest, records)))
    assert len(made) == 2 + 3 + 2 * 2
    runs = load_results(tmp_path / "runs")
    _, arranged = arrange(contest, records)
    assert {run.entrant for run in arranged} == {"hashing", "dhe, content"}
    for metric in ("auc", "auc_seen", "auc_unseen", "auc_unseen_mean"):
        shown = tabulate(arranged, metric)
        assert shown.shape == (2, 1) and all(metric in run.test for run in runs)
    # What is known is not made again.
    again = Records(tmp_path / "runs", tmp_path / "trials")
    assert not list(Recorder(again, Workers()).follow(list_courses(contest, again)))


# -- arithmetic ---------------------------------------------------------------------


SPEC = TableSpec.of_table(600, 12, np.arange(600), [0, 250, 600])
COUNTED = {
    "one table": (hashing.HashingTrick, {"rows": 9}, 0),
    "signed": (hashing.HashingTrick, {"rows": 9, "signed": True}, 12),
    "three sums": (hashing.BloomEmbeddings, {"rows": 9, "hashes": 3}, 24),
    "weighted": (hashing.HashEmbeddings, {"rows": 9, "entries": 20, "hashes": 3}, 36),
    "product": (hashing.QuotientRemainder, {"modulus": 20}, 12),
    "side by side": (hashing.QuotientRemainder,
                     {"modulus": 20, "combine": "concat"}, 0),
    "paths": (hashing.QuotientRemainder,
              {"modulus": 20, "combine": "path", "hidden": 4}, 2 * 12 * 4),
    "own rows": (hashing.DoubleHashing, {"rows": 9, "frequent": 5}, 12),
    "runs": (hashing.ROBE, {"size": 40}, 0),
    "slots": (hashing.ZeroCollision, {"slots": 90}, 0),
    "network": (hashing.DHE, {"width": 5, "codes": 7}, 5 * (7 + 12)),
    "deep": (hashing.DHE, {"width": 5, "codes": 7, "layers": 3,
                           "normalisation": "batch"}, 5 * (7 + 5 + 5 + 12)),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTED)
def test_multiply_adds_by_hand(name):
    kind, options, wanted = COUNTED[name]
    layout = kind.make(SPEC, 0, **options).freeze()
    assert count_multiply_adds(layout) == wanted
    assert wanted <= layout.row_work + layout.embedding_dim


def test_multiply_adds_of_layouts_within_layouts():
    content = np.ones((600, 4), np.float32)
    spec = dataclasses.replace(SPEC, content=content)
    table = hashing.DHE.make(spec, 0, width=5, codes=7, content=4).freeze()
    # The network reads 11 numbers, of which 4 were decoded.
    assert count_multiply_adds(table) == 5 * (7 + 4 + 12) + 4
    codes = np.ones((600, 4), np.uint8)
    one = np.ones(1, np.float32)
    short = RowwiseLayout.from_groups(codes, one, one, 4)
    turned = TurnedLayout(short, np.ones((4, 12), np.float32))
    assert count_multiply_adds(turned) == 4 + 4 * 12
    hashed = hashing.BloomEmbeddings.make(spec, 0, rows=9, hashes=2).freeze()
    both = AddedLayout([turned, hashed])
    assert count_multiply_adds(both) == 4 + 48 + 12 + 12
    semantic = hashing.SemanticIDs.make(spec, rows=20, levels=3).freeze()
    assert count_multiply_adds(semantic) == 2 * 12


def test_what_nobody_counted_is_a_value_error():
    binary = layouts.BinaryLayout.from_signs(np.ones((4, 8)))
    with pytest.raises(ValueError, match="of a binary layout are not counted"):
        count_multiply_adds(binary)


# -- the record ---------------------------------------------------------------------


def stand_in(contest):
    """A contest on data that need not be fetched."""
    if contest.data != "frappe":
        return contest
    return dataclasses.replace(contest, data="synthetic", _reached={})


@pytest.mark.parametrize("name", book.GENERATION)
def test_the_record_of_generation_can_be_made(name):
    contest = stand_in(book.GENERATION[name])
    names = [entrant.name for entrant in contest.entrants]
    assert len(set(names)) == len(names)
    for entrant in contest.entrants:
        assert list_ratios(contest, entrant) and not list_missed(contest, entrant)
        assert tuning_ratio(contest, entrant, 10.0) == (
            1.0 if entrant.key == "full" else 10.0
        )


def test_the_record_of_generation_is_no_larger_than_it_says():
    """Runs and trials, those at the second ratio included."""
    made = 0
    for contest in map(stand_in, book.GENERATION.values()):
        tuned, seeds = len(contest.tuned_on), len(contest.seeds)
        for entrant in contest.entrants:
            # Whose ratios are its own are not tried again at another.
            checked = 0 if entrant.ratios or entrant.key == "full" else CHECKED
            made += tuned * (entrant.trials + checked)
            made += seeds * len(list_ratios(contest, entrant))
    assert made < 600
