"""Bytes of tensors while they live, and of a table in training."""

import pytest
import torch

from survey_code import FullEmbedding, TableSpec
from survey_code.lab import MemoryMeter, measure_training
from survey_code.training import TrainingSettings

ROWS, DIM = 1000, 16
TABLE = 4 * ROWS * DIM


def test_a_tensor_counts_while_it_lives():
    with MemoryMeter() as meter:
        kept = torch.zeros(1000)
        assert meter.now == meter.peak == 4000
        passing = torch.zeros(500, dtype=torch.float64)
        assert meter.now == 8000
        del passing
        assert meter.now == 4000 and meter.peak == 8000
        small = torch.zeros(10)
        assert meter.now == 4040 and meter.peak == 8000
    del kept, small


def test_views_count_once_and_copies_again():
    with MemoryMeter() as meter:
        base = torch.zeros(100, 10)
        views = [base[3], base.T, base.view(-1), base.detach()]
        assert meter.now == 4000
        copy = base.clone()
        assert meter.now == 8000
        base.add_(1)  # in place
        assert meter.now == 8000
        # A view keeps its base's storage alive.
        del base, views[1:]
        assert meter.now == 8000
        del views, copy
        assert meter.now == 0


def test_what_was_there_before_counts_when_added():
    before = torch.zeros(250)
    with MemoryMeter() as meter:
        meter.add(before, before[:3])
        assert meter.now == 1000
        made = before + 1
        assert meter.now == 2000
    del made


def test_sparse_tensors_count_indices_and_values():
    with MemoryMeter() as meter:
        indices = torch.zeros(1, 5, dtype=torch.int64)
        values = torch.zeros(5, 4)
        torch.sparse_coo_tensor(indices, values, (100, 4), check_invariants=True)
        assert meter.now == 5 * 8 + 5 * 4 * 4


def test_nothing_is_counted_outside():
    with MemoryMeter() as meter:
        pass
    kept = torch.zeros(1000)
    assert meter.now == meter.peak == 0
    del kept


@pytest.mark.parametrize(
    ("optimizer", "state"),
    [
        ("sgd", 0),
        ("adam", 2 * TABLE),
        ("rowwise_adagrad", 4 * ROWS),
        ("rowwise_adagrad_8bit", ROWS),
    ],
)
def test_persistent_bytes_are_weights_and_state(optimizer, state):
    table = FullEmbedding(TableSpec.of_shape(ROWS, DIM))
    ids = torch.arange(64).reshape(32, 2)
    settings = TrainingSettings(optimizer=optimizer)
    found = measure_training(table, ids, settings)
    assert found["persistent"] == TABLE + state
    # A dense gradient is as large as the table, a sparse one as the batch.
    gradient = TABLE if optimizer == "adam" else 4 * 64 * DIM
    assert found["peak"] >= found["persistent"] + gradient
    # Temporary copies: no more than a few of the gradient's size.
    assert found["peak"] <= found["persistent"] + 5 * gradient + 10_000 + state


def test_measuring_leaves_the_table_alone():
    table = FullEmbedding(TableSpec.of_shape(ROWS, DIM), seed=2)
    before = table.weight.detach().clone()
    measure_training(table, torch.arange(8), TrainingSettings())
    assert torch.equal(table.weight, before) and table.weight.grad is None
    again = measure_training(table, torch.arange(8), TrainingSettings())
    assert again == measure_training(table, torch.arange(8), TrainingSettings())
