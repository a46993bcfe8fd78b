"""Refreshes: what reads decide is settled anew, and what was learnt is taken over."""

import dataclasses

import numpy as np
import pytest
import torch

from survey_code import TableSpec, compress
from survey_code.catalog import get_method
from survey_code.data.synthetic import make_stream
from survey_code.data.tasks import ClickRows, StreamData
from survey_code.embedding import decode_layout
from survey_code.lab import Trial, run_stream
from survey_code.lab.experiment import Experiment
from survey_code.lab.results import Result
from survey_code.lab.stream import (
    StreamExperiment,
    count_delta,
    hot_churn,
    new_share,
    shows_new,
)
from survey_code.layouts import DenseLayout
from survey_code.training import TrainingSettings

TRIAL = Trial(
    "dcnv2", 8,
    TrainingSettings(epochs=1, batch_size=250, learning_rate=0.01, patience=0),
    {"hidden": (8,), "cross_layers": 1}, init_std=0.1,
)  # fmt: skip
IDS = torch.arange(30)


def spec_of(hot):
    """Two fields of 20 and 10 ids; some ids are read often."""
    counts = np.ones(30, np.int64)
    counts[hot] = 50
    return TableSpec.of_table(30, 8, counts, [0, 20, 30])


def rows_of(table):
    with torch.no_grad():
        return table.eval()(IDS).numpy()


def renew(key, options, before, after):
    """A table that has moved from its start, and its heir by other counts."""
    old = get_method(key).build(spec_of(before), options, 3)
    with torch.no_grad():
        for weight in old.parameters():
            weight += torch.randn(
                weight.shape, generator=torch.Generator().manual_seed(1)
            )
    heir = get_method(key).build(spec_of(after), options, 3)
    heir.inherit(old)
    return old, heir


# -- tables that learn ----------------------------------------------------------------

TIERS = {"double_hashing": {"rows": 5, "frequent": 3}, "head_only": {"ids": 3}}


@pytest.mark.parametrize("combine", ["sum", "concat"])
def test_a_newly_hot_id_begins_with_the_shared_row_that_it_read(combine):
    options = {**TIERS["double_hashing"], "combine": combine}
    old, heir = renew("double_hashing", options, [2, 7, 25], [2, 11, 25])
    assert heir.own_ids().tolist() == [2, 11, 25]
    was, now = rows_of(old), rows_of(heir)
    stays = np.setdiff1d(np.arange(30), [7])
    np.testing.assert_array_equal(now[stays], was[stays])
    # Who left reads the shared rows, where nothing of its own is left.
    plain = get_method("double_hashing").build(
        spec_of([0]), {**options, "frequent": 0}, 3
    )
    with torch.no_grad():
        plain.values.copy_(old.values[: old.shared_rows])
    np.testing.assert_array_equal(now[7], rows_of(plain)[7])


def test_rows_of_the_head_change_hands():
    old, heir = renew("head_only", TIERS["head_only"], [2, 7, 25], [2, 11, 25])
    was, now = rows_of(old), rows_of(heir)
    stays = np.setdiff1d(np.arange(30), [7])
    np.testing.assert_array_equal(now[stays], was[stays])
    np.testing.assert_array_equal(now[7], was[8])  # its field's row


@pytest.mark.parametrize("key", ["double_hashing", "head_only"])
def test_a_heir_learns_apart_from_what_it_inherits(key):
    old, heir = renew(key, TIERS[key], [2], [11])
    before = rows_of(old)
    with torch.no_grad():
        for weight in heir.parameters():
            weight += 1
    np.testing.assert_array_equal(rows_of(old), before)


def test_who_changes_its_width_takes_the_nearest_row():
    options = {"sizes": [4, 26], "widths": [8, 3]}
    old, heir = renew("mde_popularity", options, [0, 1, 2, 25], [0, 1, 9, 25])
    was, now = rows_of(old), rows_of(heir)
    stays = np.setdiff1d(np.arange(30), [2])
    # From 3 numbers to 8 nothing is lost, and who stays is not touched.
    np.testing.assert_allclose(now[stays], was[stays], rtol=1e-5, atol=1e-6)
    same = np.setdiff1d(np.arange(30), [2, 9])
    np.testing.assert_array_equal(now[same], was[same])
    # From 8 to 3: what is left over is orthogonal to all that 3 numbers can say.
    matrix = old.projections["1"].detach().numpy()
    np.testing.assert_allclose(matrix @ (was[2] - now[2]), 0, atol=1e-4)


def test_a_heir_by_other_counts_clusters_once_more():
    old, heir = renew("cce", {"books": 2, "bits": 2, "helpers": 4}, [2], [11])
    assert int(heir.done) == int(old.done) + 1
    assert heir.counts[11] == 50 and heir.counts[2] == 1
    assert (heir.codes != old.codes).any()
    twin = get_method("cce").build(
        spec_of([11]), {"books": 2, "bits": 2, "helpers": 4}, 3
    )
    twin.load_state_dict(old.state_dict())
    twin.cluster()
    np.testing.assert_array_equal(rows_of(heir), rows_of(twin))


@pytest.mark.parametrize(
    ("key", "ratio"),
    [("hashing", 4), ("quotient_remainder", 2), ("tt_rec", 2), ("cafe", 3),
     ("zero_collision", 3), ("shark", 2), ("alpt", 2), ("mgqe", 2), ("unified", 3)],
)  # fmt: skip
def test_where_counts_decide_nothing_all_stays(key, ratio):
    method = get_method(key)
    spec = TableSpec.of_table(300, 8, np.arange(300), [0, 200, 300])
    options = method.plan(spec, ratio)
    old, heir = (method.build(spec, options, 3) for _ in range(2))
    with torch.no_grad():
        for weight in old.parameters():
            weight += 0.5
    heir.inherit(old)
    ids = torch.arange(300)
    with torch.no_grad():
        assert torch.equal(heir.eval()(ids), old.eval()(ids))


# -- codes that stay ------------------------------------------------------------------


@pytest.mark.parametrize("rotate", [False, True])
def test_refitted_codewords_are_means_and_codes_stay(rotate):
    method, spec = get_method("pq"), spec_of([3])
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((30, 8)).astype(np.float32)
    options = method.ask({"books": 2, "bits": 2, "rotate": rotate, "weighted": False})
    before = method.compress(weight, options, spec)
    # Of the same rows, nothing changes but roundings: k-means ended at means, or near.
    moved = (weight + rng.standard_normal((30, 8)) * 0.3).astype(np.float32)
    after = method.load().refit(before, moved, spec, options)
    assert after.blueprint() == before.blueprint()
    names = {n for n, a in after.arrays().items()
             if not np.array_equal(a, before.arrays()[n])}  # fmt: skip
    assert {name.split("/")[-1] for name in names} == {"codewords"}
    # No other codewords are nearer to these rows under these codes.
    best = np.square(moved - decode_layout(after)).sum()
    assert best < np.square(moved - decode_layout(before)).sum()
    coded = after.part if rotate else after
    turned = moved @ after.matrix.T if rotate else moved
    codes = coded.read_codes(np.arange(30))
    for book in range(2):
        for code in set(codes[:, book].tolist()):
            own = turned[codes[:, book] == code, 4 * book : 4 * book + 4]
            np.testing.assert_allclose(
                coded.codewords[4 * book + code], own.mean(0), rtol=1e-5, atol=1e-6
            )


def test_what_has_nothing_to_keep_is_compressed_anew():
    method, spec = get_method("rowwise"), spec_of([3])
    weight = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    options = method.ask({"bits": 4})
    kept = method.load().refit(
        method.compress(weight, options, spec), 2 * weight, spec, options
    )
    wanted = compress(2 * weight, "rowwise", bits=4)
    np.testing.assert_array_equal(decode_layout(kept), decode_layout(wanted))


# -- passes ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stream():
    return make_stream(
        rows=(1500,) * 6, field_sizes=(60, 40), popularity_change=0.5, new_ids=0.1,
        rotation=0.0, bias=0.0,
    )  # fmt: skip


def passes(key, stream, ratio=3, **given):
    return run_stream(
        key, stream, ratio, 1, start=2, update_epochs=1, trial=TRIAL, **given
    )


def test_a_pass_that_never_refreshes_is_the_pass_of_before(stream):
    columns = ["auc", "log_loss", "bytes", "moved"]
    found = passes("double_hashing", stream)[columns]
    assert found.equals(passes("double_hashing", stream, refresh=0)[columns])
    often = passes("double_hashing", stream, refresh=1)[columns]
    assert often.loc[2].iloc[:3].equals(found.loc[2].iloc[:3])
    assert not often.loc[3:].equals(found.loc[3:])
    assert (often["bytes"] == found["bytes"].iloc[0]).all()


def test_a_refresh_is_made_when_it_is_due(stream, monkeypatch):
    due = []
    kind = get_method("double_hashing").load()
    inherit = kind.inherit

    def note(heir, old):
        due.append(heir.own_ids().tolist())
        inherit(heir, old)

    monkeypatch.setattr(kind, "inherit", note)
    passes("double_hashing", stream, refresh=2)
    assert len(due) == 1  # before window 4; the next would be before window 6
    reads = np.concatenate([stream.windows[k].ids.ravel() for k in (2, 3)])
    counts = np.bincount(reads, minlength=stream.num_embeddings)
    busiest = np.sort(np.argsort(-counts, kind="stable")[: len(due[0])])
    assert due[0] == busiest.tolist()


def test_frozen_codes_move_less_and_fresh_ones_follow_the_counts(stream):
    asked = {"books": 4, "bits": 3}
    frozen, fresh, old = (
        passes("pq", stream, refresh=refresh, **asked) for refresh in (0, 1, None)
    )
    words = 4 * 4 * 2 * 8  # books, bytes, numbers of a codeword, codewords
    assert (frozen["moved"].iloc[1:] <= words).all()
    assert (frozen["moved"].iloc[1:] > 0).all()
    assert (fresh["moved"].iloc[1:] > words).all()
    assert fresh["auc"].iloc[0] == frozen["auc"].iloc[0] == old["auc"].iloc[0]


def test_rows_with_new_ids_are_told_apart(stream):
    found = passes("full", stream, 1)
    for window in found.index:
        seen = np.concatenate([w.ids.ravel() for w in stream.windows[:window]])
        new = ~np.isin(stream.windows[window].ids, seen).all(1)
        np.testing.assert_array_equal(shows_new(stream, window), new)
        assert found.loc[window, "new_ids"] == pytest.approx(new.mean())
        # Log-loss is a mean over rows.
        both = found.loc[window]
        mean = new.mean() * both["log_loss_new"]
        mean += (1 - new.mean()) * both["log_loss_known"]
        assert both["log_loss"] == pytest.approx(mean)
    assert new_share(stream, 0) == 1.0


def test_without_new_ids_their_metrics_are_missing():
    data = make_stream(
        rows=(800,) * 3, field_sizes=(9, 5), popularity_change=0, new_ids=0, rotation=0
    )
    asked = Experiment.of("full", data, 1, 1, trial=TRIAL)
    one = StreamExperiment("full", asked.options, data, TRIAL, 1, 1, 1, 1)
    result = one.run()
    assert result.windows["window"] == [1, 2]
    assert result.windows["auc_new"] == [None, None]
    assert result.windows["moved"][0] is None
    assert result.windows["auc"] == [result.test["auc@1"], result.test["auc@2"]]
    again = Result.from_json(result.to_json())
    assert again.windows == result.windows and one.matches(again)
    # A line of before is read, and written, as it was.
    line = dataclasses.replace(result, windows={}).to_json()
    assert "windows" not in line
    assert Result.from_json(line).to_json() == line


def test_how_often_is_part_of_what_is_asked(stream):
    asked = Experiment.of("pq", stream, 3, 1, trial=TRIAL)
    one, two, three = (
        StreamExperiment("pq", asked.options, stream, TRIAL, 3, 1, 2, 1, refresh)
        for refresh in (None, 0, 5)
    )
    assert len({one.key, two.key, three.key}) == 3
    assert "refresh" not in one.asked and three.asked["refresh"] == 5


@pytest.mark.parametrize("refresh", [-1, 1.5, True, "often"])
def test_a_refresh_is_a_number_of_windows(refresh, stream):
    with pytest.raises(ValueError, match="refresh must be an integer from 0"):
        passes("pq", stream, refresh=refresh)


# -- what is counted ------------------------------------------------------------------


def test_churn_by_hand():
    def window(*counts):
        ids = np.repeat(np.arange(len(counts)), counts)[:, None]
        return ClickRows(ids, np.zeros(len(ids), np.float32))

    # Of 20 ids that are read, 2 are hot.
    plain = [1] * 20
    one, two, three = plain.copy(), plain.copy(), plain.copy()
    one[3] = one[5] = two[3] = two[6] = three[0] = three[1] = 9
    data = StreamData(
        "by hand", ("only",), np.array([0, 20]),
        tuple(window(*counts) for counts in (one, two, three)),
    )  # fmt: skip
    assert hot_churn(data, 1) == 0.5
    assert hot_churn(data, 2) == 1.0
    with pytest.raises(ValueError, match="window must be an integer from 1 to 2"):
        hot_churn(data, 0)


def test_moved_bytes_by_hand():
    rows = np.zeros((10, 4), np.float32)
    changed = rows.copy()
    changed[[2, 7], 0] = 1
    one, two = DenseLayout(rows), DenseLayout(changed)
    assert count_delta(one, one) == 0
    assert count_delta(one, two) == 2 * (16 + 4)
    assert count_delta(one, DenseLayout(rows + 1)) == 160  # the whole is less
    assert count_delta(one, DenseLayout(rows[:5])) == 80  # another shape
    half = DenseLayout.from_weight(changed, "float16")
    assert count_delta(one, half) == half.nbytes
