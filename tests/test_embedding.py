"""The contract's base class, the baselines, and a layout as a torch module."""

import io

import numpy as np
import pytest
import torch

from survey_code import CompressedEmbedding, FullEmbedding, OutOfReach, TableSpec
from survey_code.baselines import UniformEmbedding, as_table, nested_widths
from survey_code.catalog import get_method
from survey_code.checks import check_range
from survey_code.data.synthetic import make_clicks
from survey_code.embedding import TrainingStep, decode_layout, draw_normal
from survey_code.lab import Trial
from survey_code.lab.task import make_task
from survey_code.layouts import DenseLayout, GroupedLayout
from survey_code.training import TrainingSettings

SPEC = TableSpec.of_shape(30, 4)


class Doubling(CompressedEmbedding):
    """The smallest table that fulfils the contract."""

    def embed(self, ids):
        return torch.stack([ids, 2 * ids], dim=-1).float()

    def freeze(self):
        return DenseLayout(self(torch.arange(self.num_embeddings)).numpy())


def test_two_methods_make_a_table():
    table = Doubling(5, 2)
    ids = torch.tensor([[0, 4], [2, 2]])
    np.testing.assert_array_equal(table(ids), table.freeze().lookup(ids))
    assert table.penalty() == 0
    table.advance(0.5)
    table.after_step(None)
    table.validation_step(None)
    assert table.parameter_groups(0.1) == [{"params": [], "lr": 0.1}]


def test_fit_is_the_tasks_usual_training():
    class Task:
        def train(self, table):
            return ("network of", table)

    table = FullEmbedding(SPEC)
    assert table.fit(Task()) == ("network of", table)


def test_the_base_class_is_no_table():
    table = CompressedEmbedding(3, 2)
    for call in (lambda: table(torch.tensor([0])), table.freeze):
        with pytest.raises(NotImplementedError):
            call()


@pytest.mark.parametrize("wrong", [[-1], [30], [2**40], [0, 2**63 - 1]])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_ids_out_of_range_are_index_errors(wrong, kind):
    if kind is torch.int32 and max(wrong) >= 2**31:
        wrong = [2**31 - 1]
    with pytest.raises(IndexError, match="out of range for a table of 30 rows"):
        FullEmbedding(SPEC)(torch.tensor(wrong, dtype=kind))


@pytest.mark.parametrize("kind", [torch.float32, torch.bool, torch.complex64])
def test_ids_that_are_not_integers_are_value_errors(kind):
    with pytest.raises(ValueError, match="ids must be integers"):
        FullEmbedding(SPEC)(torch.zeros(3, dtype=kind))


def test_every_integer_type_reads_the_same():
    table = FullEmbedding(SPEC)
    ids = torch.tensor([[1, 29], [0, 7]])
    for kind in (torch.uint8, torch.int16, torch.int32, torch.int64):
        assert torch.equal(table(ids.to(kind)), table.weight[ids])


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (2, 3, 4)])
def test_forward_keeps_the_shape_of_ids(shape):
    found = FullEmbedding(SPEC)(torch.zeros(shape, dtype=torch.int64))
    assert found.shape == (*shape, 4) and found.dtype == torch.float32


def test_full_table_starts_at_the_specs_spread():
    spec = TableSpec.of_shape(4000, 16)
    assert FullEmbedding(spec).weight.std().item() == pytest.approx(0.01, rel=0.02)


def plan_uniform(ratio, **asked):
    return UniformEmbedding.plan(SPEC, ratio, UniformEmbedding.options(**asked))


def test_uniform_is_a_full_table_with_fewer_columns():
    table = UniformEmbedding.make(SPEC, columns=3)
    assert table.embedding_dim == 3 and table.freeze().nbytes == 4 * 30 * 3
    assert plan_uniform(1) == {"columns": 4}
    assert plan_uniform(1.9) == {"columns": 2}
    assert plan_uniform(2, columns=1) == {"columns": 1}
    with pytest.raises(OutOfReach, match=r"highest ratio it can reach is 2$") as error:
        plan_uniform(3, columns=2)
    assert error.value.nearest == 2.0
    for columns in (0, 2.0, "2", True):
        for call in (plan_uniform, lambda _, **o: UniformEmbedding.make(SPEC, **o)):
            with pytest.raises(ValueError, match="columns must be an integer from 1"):
                call(2, columns=columns)
    with pytest.raises(ValueError, match="columns must be an integer from 1 to 4"):
        plan_uniform(2, columns=5)


# -- one table for many budgets ----------------------------------------------------


def test_nested_widths_double():
    assert [nested_widths(dim) for dim in (1, 2, 3, 8)] == [
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 4, 8],
    ]


def test_a_matryoshka_table_keeps_its_first_columns_and_pads_them():
    """It has all columns while it learns; what is stored are those that are kept."""
    table = UniformEmbedding.make(SPEC, columns=3, matryoshka=True)
    ids = torch.arange(30)
    assert table.embedding_dim == 4 and torch.equal(table(ids), table.weight)
    rows, layout = table.eval()(ids), table.freeze()
    assert torch.equal(rows[:, :3], table.weight[:, :3]) and not rows[:, 3].any()
    np.testing.assert_array_equal(layout.lookup(np.arange(30)), rows.detach().numpy())
    assert layout.nbytes == 4 * 30 * 3 + 2 * 3 + 8
    whole = UniformEmbedding.make(SPEC, columns=4, matryoshka=True).eval()
    assert whole.freeze().nbytes == SPEC.full_bytes
    assert torch.equal(whole(ids), whole.weight)
    assert torch.equal(whole.weight, FullEmbedding(SPEC).weight)


def test_the_bytes_of_a_matryoshka_table_are_planned():
    assert plan_uniform(1, matryoshka=True) == {"columns": 4}
    assert plan_uniform(1.9, matryoshka=True) == {"columns": 2}
    assert plan_uniform(2, matryoshka=True) == {"columns": 1}  # 12 bytes are missing
    with pytest.raises(OutOfReach, match="highest ratio it can reach is"):
        plan_uniform(4, matryoshka=True)
    with pytest.raises(ValueError, match="columns must be an integer from 1 to 4"):
        plan_uniform(2, matryoshka=True, columns=5)


def test_a_matryoshka_step_adds_up_the_losses_of_its_widths():
    """Squares of what each width reads: those of the first columns count thrice."""
    table = UniformEmbedding.make(SPEC, columns=1, matryoshka=True)
    ids = torch.tensor([3, 7])

    def loss():
        return table(ids).square().sum() + table.penalty()

    assert not table.penalty()  # no step has begun
    zero = torch.zeros(())
    step = TrainingStep(loss, lambda: zero, torch.nn.Module(), 0.1, 0.0)
    table.validation_step(step)
    found = loss()
    parts = [table.weight[ids, :width].square().sum() for width in (1, 2, 4)]
    torch.testing.assert_close(found, torch.stack(parts).sum())
    found.backward()
    times = torch.tensor([3.0, 2.0, 1.0, 1.0])
    torch.testing.assert_close(table.weight.grad[ids], 2 * times * table.weight[ids])
    assert not table.penalty() and torch.equal(table(ids), table.weight[ids])


@pytest.mark.usefixtures("one_thread")
def test_a_prefix_that_was_trained_to_serve_beats_one_that_was_not():
    """One table each, cut at three widths; three seeds, by more than two deviations."""
    data = make_clicks(field_sizes=(300, 200, 50), rows=(40_000, 10_000, 100))
    trial = Trial(
        "dcnv2", 16,
        TrainingSettings(epochs=1, batch_size=256, learning_rate=3e-3,
                         table_learning_rate=2e-2, patience=0, precision="float64"),
        {"hidden": (8,), "cross_layers": 1}, init_std=0.2,
    )  # fmt: skip
    gaps = {width: [] for width in (2, 4, 8)}
    for seed in (1, 2, 3):
        task = make_task(data, trial, seed)
        found = {}
        for key, asked in (("full", {}), ("uniform", {"matryoshka": True})):
            options = get_method(key).plan(task.spec, 1, **asked)
            found[key] = task.learn(get_method(key), options)
        for width, own in gaps.items():
            auc = []
            for learnt in found.values():
                rows = learnt.table.weight[:, :width].detach().numpy()
                cut = GroupedLayout.from_tables([rows], [None], 16)
                auc.append(task.validate(learnt.fitted.network, cut)["auc"])
            own.append(auc[1] - auc[0])
    for own in gaps.values():
        assert np.mean(own) > 2 * np.std(own, ddof=1) and min(own) > 0.01


def test_frozen_rows_do_not_follow_the_table():
    table = FullEmbedding(SPEC)
    layout = table.freeze()
    before = layout.lookup([3])
    with torch.no_grad():
        table.weight.zero_()
    np.testing.assert_array_equal(layout.lookup([3]), before)


def test_as_table_holds_the_weights_and_not_the_array():
    weight = np.arange(6.0).reshape(3, 2)
    table = as_table(weight)
    weight[:] = 0
    np.testing.assert_array_equal(
        decode_layout(table.freeze()), [[0, 1], [2, 3], [4, 5]]
    )
    assert table.weight.requires_grad and table.num_embeddings == 3


@pytest.mark.parametrize("chunk", [1, 7, 30, 1000])
def test_decoding_in_chunks_gives_all_rows(chunk):
    table = FullEmbedding(SPEC)
    found = decode_layout(table.freeze(), chunk)
    np.testing.assert_array_equal(found, table.weight.detach().numpy())


def test_weights_travel_in_a_state_dict():
    source, target = FullEmbedding(SPEC, seed=1), FullEmbedding(SPEC, seed=2)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file))
    assert torch.equal(source.weight, target.weight)


def test_draws_are_numpys():
    """The same numbers on every machine, so pinned here."""
    drawn = draw_normal((2, 2), 0.5, [3, 1])
    wanted = np.random.default_rng([3, 1]).standard_normal((2, 2), np.float32) * 0.5
    np.testing.assert_array_equal(drawn.numpy(), wanted)
    assert FullEmbedding(TableSpec.of_shape(1, 2)).weight.tolist()[0] == pytest.approx(
        [0.01117622, -0.01387125], rel=1e-6
    )


@pytest.mark.parametrize("value", [0, 4, 2.0, "2", None, np.nan])
def test_check_range_wants_an_integer_in_range(value):
    with pytest.raises(ValueError, match="bits must be an integer from 1 to 3"):
        check_range("bits", value, 1, 3)
    check_range("bits", np.int32(2), 1, 3)
