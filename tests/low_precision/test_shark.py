"""SHARK: priorities, the rows that move by them, and bytes."""

import numpy as np
import pytest
import torch
from torch import nn

from survey_code import FullEmbedding, TableSpec
from survey_code.adagrad import RowwiseAdagrad
from survey_code.catalog import get_method
from survey_code.data.synthetic import make_clicks, make_stream
from survey_code.embedding import Regime, TrainingStep, decode_layout
from survey_code.lab import default_trial, make_task, run_stream
from survey_code.lab.memory import measure_training
from survey_code.low_precision.quantization import SHARK
from survey_code.low_precision.quantization.shark import three_tier_bytes
from survey_code.spec import OutOfReach
from survey_code.training import TrainingSettings

pytestmark = pytest.mark.usefixtures("one_thread")


def spec_of(rows=20, dim=8, std=0.1):
    return TableSpec(rows, dim, [0, rows], np.zeros(rows, np.int64), init_std=std)


def table_of(rows=20, dim=8, full=2, half=6, **options):
    spec = spec_of(rows, dim)
    return SHARK.make(spec, full=full, half=half, **options).train()


def take_step(table, ids, labels=None, learning_rate=0.0):
    """What the training loop does, with a gradient of 1 for every entry read."""
    table.advance(0.0)
    table(ids).sum().backward()
    told = torch.zeros(0) if labels is None else torch.tensor(labels)
    step = TrainingStep(
        lambda: None, lambda: None, nn.Module(), learning_rate, 0.0, labels=lambda: told
    )
    table.after_step(step)


def tiers(table):
    return table.tier_of(table.places).tolist()


# -- priorities ----------------------------------------------------------------


def test_reads_by_clicked_rows_count_more_and_all_decay():
    table = table_of(positive=3.0, period=2, decay=0.5)
    ids = torch.tensor([[4, 5], [4, 6], [4, 4]])
    take_step(table, ids, [1.0, 0.0, 0.0])
    assert table.priority[[4, 5, 6, 7]].tolist() == [3 + 1 + 2, 3, 1, 0]
    take_step(table, ids[1:2], [1.0])  # the second step: a look, and half is forgotten
    assert table.priority[[4, 5, 6]].tolist() == [(6 + 3) / 2, 1.5, (1 + 3) / 2]


@pytest.mark.parametrize("labels", [None, [1.0], [1.0, 0.0, 1.0]])
def test_without_a_label_for_each_row_all_reads_count_alike(labels):
    table = table_of(positive=3.0)
    take_step(table, torch.tensor([[4, 5], [4, 6]]), labels)
    assert table.priority[[4, 5, 6]].tolist() == [2, 1, 1]


def test_reads_of_several_lookups_add_up_and_those_without_a_step_do_not():
    table = table_of(positive=2.0)
    with torch.no_grad():
        table(torch.tensor([3]))
    table.eval()(torch.tensor([3]))
    table.train()(torch.tensor([3]))
    table.advance(0.0)  # no step followed
    table(torch.tensor([7])).sum().backward()
    table(torch.tensor([7, 8])).sum().backward()
    told = torch.tensor([1.0])
    table.after_step(
        TrainingStep(lambda: 0, lambda: 0, nn.Module(), 0.0, 0.0, labels=lambda: told)
    )
    assert table.priority.nonzero()[:, 0].tolist() == [7, 8]
    assert table.priority[[7, 8]].tolist() == [2 + 1, 1]


def test_the_loop_tells_labels():
    data = make_clicks(rows=(64, 10, 10), field_sizes=(20, 10))
    trial = default_trial(data)
    settings = trial.settings.replace(batch_size=64)
    objective = make_task(data, trial, 0).build_objective(settings)
    ids, labels = next(iter(objective.batches(np.random.default_rng(0))))
    assert torch.equal(objective.labels((ids, labels)), labels)
    table = SHARK.make(data.spec(8), full=1, half=2, positive=10.0, period=50)
    make_task(data, trial, 0).train(table)
    read = np.zeros(30)
    np.add.at(read, data.train.ids, 1 + 9 * data.train.labels[:, None])
    np.testing.assert_allclose(table.priority.numpy(), read)


# -- rows that move ---------------------------------------------------------------


def test_the_first_rows_begin_on_top():
    assert tiers(table_of(8, full=2, half=3)) == [0, 0, 1, 1, 1, 2, 2, 2]


def test_rows_move_up_and_down_as_counts_do():
    table = table_of(8, full=1, half=2, period=1, decay=0.5)
    take_step(table, torch.tensor([7, 7, 7, 6, 6, 5]))
    assert tiers(table) == [2, 2, 2, 2, 2, 1, 1, 0]
    take_step(table, torch.tensor([5, 5, 4, 4]))  # 7: 1.5, 6: 1, 5: 2.5, 4: 2
    assert tiers(table) == [2, 2, 2, 2, 1, 0, 2, 1]


def test_of_equals_those_stay_that_are_there():
    table = table_of(8, full=1, half=2, period=1, decay=1.0)
    take_step(table, torch.tensor([5, 6, 7]))
    before = tiers(table)
    assert before[5:] == [0, 1, 1]
    take_step(table, torch.tensor([1, 2, 3]))
    assert tiers(table) == before
    take_step(table, torch.tensor([3]))
    assert tiers(table) == [2, 2, 2, 0, 2, 1, 1, 2]


def test_a_row_on_its_way_up_is_what_it_was_and_down_it_is_rounded_by_chance():
    table = table_of(300, 16, full=100, half=100, period=1)
    before, old = table.load_rows(torch.arange(300)), np.array(tiers(table))
    table.priority.copy_(torch.from_numpy(np.random.default_rng(0).random(300)))
    table.move_rows()
    after, new = table.load_rows(torch.arange(300)), np.array(tiers(table))
    error = (after - before).abs().amax(1).numpy()
    assert np.bincount(new).tolist() == [100, 100, 100]
    assert np.array_equal(np.sort(table.places.numpy()), np.arange(300))
    assert not error[(new == old) | (new == 0)].any()
    step = before.abs().amax(1).numpy() / 127.5
    assert (error[new == 1] <= 2.0**-11).all()  # rows of float16 below 1
    assert error[(new == 2) & (old < 2)].all() and (error <= step * 1.01).all()
    mean = (after - before)[(new == 2) & (old < 2)].mean().item()
    assert abs(mean) < 5 * step.mean() / 2 / np.sqrt(
        16 * ((new == 2) & (old < 2)).sum()
    )


def test_only_rows_that_are_read_or_move_change():
    table = table_of(period=100)
    before = decode_layout(table.freeze())
    take_step(table, torch.tensor([[1, 4], [4, 17]]), learning_rate=1.0)
    moved = np.abs(decode_layout(table.eval().freeze()) - before).max(axis=1)
    assert np.flatnonzero(moved).tolist() == [1, 4, 17]


def test_all_rows_in_float32_train_as_floats_do():
    table, full = table_of(20, 8, full=20, half=0), FullEmbedding(spec_of()).train()
    table.begin(Regime("rowwise_adagrad"))
    full.weight.data.copy_(table.rows_full)
    optimizer = RowwiseAdagrad([full.weight], lr=0.1)
    for k in range(20):
        ids = torch.from_numpy(np.random.default_rng(k).integers(20, size=(5, 3)))
        take_step(table, ids, learning_rate=0.1)
        optimizer.zero_grad()
        full(ids).sum().backward()
        optimizer.step()
    torch.testing.assert_close(table.load_rows(torch.arange(20)), full.weight.data)


# -- bytes ---------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 3, 16])
@pytest.mark.parametrize("rows", [5, 700])
def test_the_files_bytes_are_as_planned(rows, dim):
    rng = np.random.default_rng(0)
    ends = [(0, 0), (0, rows), (rows, 0), (1, 0), (0, 1), (2, rows - 2), (1, 1)]
    ends += [tuple(np.sort(rng.integers(rows + 1, size=2)).tolist()) for _ in range(5)]
    for full, half in ends:
        half = min(half, rows - full)
        table = SHARK.make(spec_of(rows, dim), full=full, half=half)
        table.priority.copy_(torch.from_numpy(rng.random(rows)))
        table.move_rows()
        planned = three_tier_bytes(spec_of(rows, dim), full, half)
        assert table.freeze().nbytes == planned


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dim", [1, 3, 5, 16])
def test_a_plan_is_the_largest_of_its_kind(dim, share):
    spec, method = spec_of(500, dim), get_method("shark")
    for ratio in (1.0, 1.3, 1.9, 2.0, 2.01, 2.4, 2.8, 3.2):
        try:
            plan = method.plan(spec, ratio, share=share)
        except OutOfReach:
            continue
        full, half = plan.full, plan.half
        budget = spec.budget(ratio)
        assert three_tier_bytes(spec, full, half) <= budget
        larger = []
        if full + half < 500:
            larger.append((full, half + 1))
        elif half:
            larger.append((full + 1, half - 1))
        for sizes in larger:
            assert three_tier_bytes(spec, *sizes) > budget


def test_shares_are_of_the_bytes_beyond_8_bits():
    """At d = 16 a row takes 64, 32 or 20 bytes."""
    spec, method = spec_of(6400, 16), get_method("shark")
    none, some, all_ = (
        method.plan(spec, 2.5, share=share) for share in (0.0, 0.5, 1.0)
    )
    beyond = 6400 * (25.6 - 20)
    assert none.full == 0 and none.half == (beyond - 1200) // 12
    assert some.full == (beyond / 2 - 1200) // 44
    # A bit for each id and a count for every 64, of each of two parts.
    assert some.half == (beyond - 44 * some.full - 2400) // 12
    assert all_.half == 0 and all_.full == (beyond - 1200) // 44


@pytest.mark.parametrize(
    ("optimizer", "state"),
    [("sgd", 0), ("rowwise_adagrad", 4), ("rowwise_adagrad_8bit", 1), ("adam", 128)],
)
def test_training_keeps_the_tiers_and_eight_bytes_a_row(optimizer, state):
    """A priority and a place of 4 bytes each are needed in training only."""
    table = table_of(1000, 16, full=100, half=200)
    settings = TrainingSettings(optimizer=optimizer)
    size = measure_training(table, torch.arange(50).view(10, 5), settings)
    stored = 100 * 64 + 200 * 32 + 700 * 20
    assert size["persistent"] == stored + 1000 * (8 + state)


# -- in the lab ----------------------------------------------------------------------


def test_a_stream_moves_rows():
    stream = make_stream(field_sizes=(60, 40), rows=(300,) * 4, new_ids=0.1, away=0.2)
    seen = run_stream("shark", stream, 2.5, start=1, update_epochs=1)
    assert seen["auc"].notna().all() and (seen["ratio"] >= 2.5).all()
