"""The training loop: what it promises to methods, and to readers."""

import numpy as np
import pytest
import torch

from survey_code import CompressedEmbedding, FullEmbedding, TableSpec
from survey_code.adagrad import (
    STATE_LEVELS,
    RowwiseAdagrad,
    RowwiseAdagradInBytes,
    add_in_bytes,
    read_bytes,
)
from survey_code.catalog import get_method
from survey_code.data.tasks import ClickData, ClickRows, InteractionData
from survey_code.embedding import Diverged, Regime, Script
from survey_code.models import build_click_network, build_ranking_network
from survey_code.objectives import ClickObjective, RankingObjective
from survey_code.sampled_softmax import sampled_softmax
from survey_code.training import (
    TrainingSettings,
    make_table_optimizer,
    meter_rows,
    replays,
    train,
)

STARTS = np.array([0, 30, 50])


def click_rows(rng, rows):
    ids = np.stack([rng.integers(30, size=rows), rng.integers(30, 50, size=rows)], 1)
    liked = np.random.default_rng(7).normal(size=50)
    chance = 1 / (1 + np.exp(-2 * liked[ids].sum(1)))
    return ClickRows(ids, (rng.random(rows) < chance).astype(np.float32))


def click_data(rows=600):
    rng = np.random.default_rng(0)
    return ClickData(
        "clicks",
        ("user", "item"),
        STARTS,
        *(click_rows(rng, count) for count in (rows, 300, 300)),
    )


DATA = click_data()
SPEC = DATA.spec(4)


def click_run(table=None, seed=0, network="dcnv2", **settings):
    """A network trained on the small click data, and its history."""
    settings = {"epochs": 3, "batch_size": 64, "learning_rate": 0.01, **settings}
    table = table or FullEmbedding(SPEC, seed=seed)
    layers = {} if network == "fm" else {"hidden": (8,), "dropout": 0.2}
    net = build_click_network(network, table, 2, seed, **layers)
    chosen = TrainingSettings(**settings)
    return net, train(net, ClickObjective(DATA, chosen), chosen, seed)


def same_weights(one, other):
    first, second = one.state_dict(), other.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


# -- the same again ------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer", ["adam", "sgd", "rowwise_adagrad", "rowwise_adagrad_8bit"]
)
def test_a_seed_gives_the_same_weights(optimizer):
    first, history = click_run(seed=1, optimizer=optimizer)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    same, again = click_run(seed=1, optimizer=optimizer)
    other, _ = click_run(seed=2, optimizer=optimizer)
    assert same_weights(first, same) and not same_weights(first, other)
    assert history.epochs == again.epochs and history.best == again.best


def test_ranking_with_a_seed_gives_the_same_weights():
    rng = np.random.default_rng(0)
    met = rng.choice(20 * 30, 200, replace=False)
    pairs = np.stack([met // 30, 20 + met % 30], 1)
    data = InteractionData("pairs", 20, 30, pairs[:150], pairs[150:], pairs[:0])
    for loss in ("bpr", "softmax"):
        settings = TrainingSettings(epochs=3, batch_size=40, learning_rate=0.05)
        networks = []
        for seed in (1, 1, 2):
            table = FullEmbedding(data.spec(4), seed=0)
            net = build_ranking_network("mf", table, 20, data.train)
            history = train(
                net, RankingObjective(data, settings, loss, negatives=7), settings, seed
            )
            assert set(history.epochs[0]) == {"train_loss", "recall@20", "ndcg@20"}
            networks.append(net)
        assert same_weights(*networks[:2]) and not same_weights(*networks[1:])


def test_training_learns():
    net, history = click_run(epochs=10, patience=0)
    losses = [entry["train_loss"] for entry in history.epochs]
    assert losses[-1] < 0.6 < losses[0]
    assert not net.training and history.seconds > 0


# -- early stopping -------------------------------------------------------------


class Scripted:
    """An objective whose validation metric is written down beforehand."""

    monitor = "auc"
    steps = 2

    def __init__(self, scores):
        self.scores = iter(scores)
        self.states = []

    def batches(self, rng):
        yield from (torch.tensor([0, 1]), torch.tensor([1, 2]))

    def validation_batches(self, rng):
        while True:
            yield torch.tensor([2])

    def loss(self, network, batch):
        return (network.table(batch) - 1).square().mean() + network.table.penalty()

    def validate(self, network):
        self.states.append(network.table.weight.detach().clone())
        return {"auc": next(self.scores)}


class Around(torch.nn.Module):
    def __init__(self, table):
        super().__init__()
        self.table = table


def scripted_run(scores, table=None, **settings):
    table = table or FullEmbedding(TableSpec.of_shape(3, 2))
    network, objective = Around(table), Scripted(scores)
    chosen = TrainingSettings(**{"learning_rate": 0.1, **settings})
    return network, objective, train(network, objective, chosen)


@pytest.mark.parametrize(
    ("scores", "patience", "trained", "best"),
    [
        ([0.5, 0.7, 0.6, 0.65, 0.9], 2, 4, 1),
        ([0.5, 0.7, 0.6, 0.8, 0.7, 0.7], 2, 6, 3),
        ([0.5, 0.6, 0.7, 0.8, 0.9, 0.95], 2, 6, 5),
        ([0.9, 0.9, 0.9, 0.9], 3, 4, 0),
        ([0.9, 0.8], 1, 2, 0),
    ],
)
def test_early_stopping_restores_the_best_epoch(scores, patience, trained, best):
    net, objective, history = scripted_run(scores, epochs=6, patience=patience)
    assert len(history.epochs) == trained and history.best == best
    assert torch.equal(net.table.weight, objective.states[best])
    assert [entry["auc"] for entry in history.epochs] == scores[:trained]


def test_without_patience_all_epochs_are_trained_and_the_last_is_kept():
    _, objective, history = scripted_run([], epochs=5, patience=0)
    assert len(history.epochs) == 5 and history.best == 4 and not objective.states
    assert all(set(entry) == {"train_loss"} for entry in history.epochs)


@pytest.mark.parametrize(
    ("epochs", "every", "looked_at", "scores", "best"),
    [
        (6, 2, [1, 3, 5], [0.5, 0.9, 0.7], 3),
        (7, 3, [2, 5, 6], [0.5, 0.6, 0.7], 6),
        (5, 10, [4], [0.5], 4),
    ],
)
def test_looks_at_validation_are_as_far_apart_as_asked(
    epochs, every, looked_at, scores, best
):
    """And the last epoch is looked at, so that the best is one that was seen."""
    net, objective, history = scripted_run(scores, epochs=epochs, evaluate_every=every)
    found = [k for k, entry in enumerate(history.epochs) if "auc" in entry]
    assert found == looked_at and history.best == best
    kept = objective.states[looked_at.index(best)]
    assert torch.equal(net.table.weight, kept)


def test_the_rate_decays_after_a_miss_and_on_a_line():
    class Watching(FullEmbedding):
        def after_step(self, step):
            rates.append(step.learning_rate)

    def watched(scores, **settings):
        rates.clear()
        scripted_run(scores, Watching(TableSpec.of_shape(3, 2)), epochs=4, **settings)
        return rates[::2]

    rates: list = []
    scores = [0.5, 0.4, 0.6, 0.7]
    assert watched(scores, decay=0.5) == pytest.approx([0.1, 0.1, 0.05, 0.05])
    found = watched([], patience=0, schedule="linear")
    assert found == pytest.approx([0.1, 0.075, 0.05, 0.025])
    found = watched([], patience=0, table_learning_rate=0.4)
    assert found == pytest.approx([0.4] * 4)


# -- a plateau, and a script --------------------------------------------------------


def plateau_run(scores, epochs=2, **settings):
    """The history of a training that a plateau ends, and the rate of each epoch."""
    rates = []

    class Watching(FullEmbedding):
        def after_step(self, step):
            rates.append(step.learning_rate)

    given = {"patience": 2, "decay": 0.3, "drops": 2, **settings}
    _, _, history = scripted_run(
        scores, Watching(TableSpec.of_shape(3, 2)), epochs=epochs, schedule="plateau",
        **given,
    )  # fmt: skip
    return history, rates[::2]


def test_a_plateau_lowers_the_rates_and_ends_the_training():
    scores = [0.5, 0.6, 0.6, 0.55, 0.7, 0.6, 0.6, 0.6, 0.6]
    history, rates = plateau_run(scores)
    assert rates == pytest.approx([0.1] * 4 + [0.03] * 3 + [0.009] * 2)
    assert history.best == 4 and history.ended == "plateau"
    assert history.rates == pytest.approx([1.0] * 4 + [0.3] * 3 + [0.09] * 2)


def test_the_epochs_asked_for_bound_nothing():
    scores = [0.5 + 0.001 * k for k in range(30)] + [0.1] * 6
    for epochs in (1, 2, 20):
        history, _ = plateau_run(scores, epochs=epochs)
        assert len(history.epochs) == 36 and history.best == 29


def test_what_never_stands_still_is_said_to_have_met_the_limit(monkeypatch):
    monkeypatch.setattr("survey_code.training.MOST_EPOCHS", 5)
    history, _ = plateau_run([0.5 + 0.01 * k for k in range(10)], epochs=2)
    assert len(history.epochs) == 10 and history.ended == "limit"


def test_a_gain_within_the_tolerance_counts_as_none_but_is_kept():
    scores = [0.5, 0.5002, 0.5004, 0.3, 0.3]
    history, _ = plateau_run(scores, drops=0, tolerance=0.001)
    assert len(history.epochs) == 3 and history.best == 2
    # Small gains add up.
    scores = [0.5, 0.5003, 0.5006, 0.3, 0.3, 0.3]
    history, _ = plateau_run(scores, drops=0, tolerance=0.001, patience=3)
    assert history.best == 2 and len(history.epochs) == 6


def test_looks_before_a_schedule_has_ended_do_not_count():
    class Late(FullEmbedding):
        schedule_end = 1.0

    _, objective, history = scripted_run(
        [0.9, 0.8, 0.8], Late(TableSpec.of_shape(3, 2)), epochs=4, schedule="plateau",
        patience=1, decay=0.3, drops=1,
    )  # fmt: skip
    assert history.best == 3 and len(objective.states) == 3


def test_progress_stays_at_its_end():
    progress = []

    class Watching(FullEmbedding):
        def advance(self, value):
            progress.append(value)

    scripted_run([0.5] * 5, Watching(TableSpec.of_shape(3, 2)), epochs=2,
                 schedule="plateau", patience=4, drops=0)  # fmt: skip
    assert progress == pytest.approx([0, 1 / 3, 2 / 3, 1] + [1] * 6)


def test_a_script_repeats_steps_and_rates_on_other_rows():
    rates = []

    class Watching(FullEmbedding):
        def advance(self, value):
            progress.append(value)

        def after_step(self, step):
            rates.append(step.learning_rate)

    progress: list = []
    script = Script(((2, 1.0), (2, 1.0), (2, 0.3)), planned=4)
    objective = Scripted([])
    objective.steps = 4  # more rows: an epoch has more steps
    objective.batches = lambda rng: iter([torch.tensor([0, 1])] * 4)
    settings = TrainingSettings(
        learning_rate=0.1, epochs=50, patience=1, schedule="plateau"
    )
    network = Around(Watching(TableSpec.of_shape(3, 2)))
    history = train(network, objective, settings, script=script)
    assert rates == pytest.approx([0.1] * 4 + [0.03] * 2)
    assert progress == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1])
    assert not objective.states and history.rows == 6


def test_a_history_knows_the_script_of_what_was_kept():
    history, _ = plateau_run([0.5, 0.6, 0.6, 0.55, 0.7, 0.6, 0.6, 0.6, 0.6])
    script = history.script
    # Three epochs of two steps: it went back to the end of the second.
    assert script.steps == 6 and script.planned == 4
    assert [script.rate_at(step) for step in (0, 3, 4, 5, 99)] == pytest.approx(
        [1, 1, 0.3, 0.3, 0.3]
    )


@pytest.mark.parametrize("optimizer", ["adam", "rowwise_adagrad", "sgd"])
def test_a_plateau_goes_on_from_the_best_weights(optimizer):
    """As if what was learnt since the best look had not been."""
    begun = []

    class Watching(FullEmbedding):
        def advance(self, value):
            begun.append(self.weight.detach().clone())

    # The best is that of the second epoch, and after the two misses the fifth begins.
    scores, given = [0.5, 0.6, 0.5, 0.5, 0.7, 0.1, 0.1], {"optimizer": optimizer}
    net, objective, history = scripted_run(
        scores, Watching(TableSpec.of_shape(3, 2)), schedule="plateau", patience=2,
        drops=1, decay=0.3, **given,
    )  # fmt: skip
    assert torch.equal(begun[8], objective.states[1])
    assert not torch.equal(begun[8], objective.states[3])
    # The optimiser knows what it knew then: a training without the misses is the same.
    script, objective = history.script, Scripted([])
    again = Around(FullEmbedding(TableSpec.of_shape(3, 2)))
    train(again, objective, TrainingSettings(learning_rate=0.1, **given), script=script)
    assert torch.equal(again.table.weight, net.table.weight)


def test_rows_are_counted_as_often_as_they_are_seen():
    with meter_rows() as meter, meter_rows() as inner:
        _, _, history = scripted_run([], epochs=5, patience=0)
    assert history.rows == meter.rows == inner.rows == 5 * 2
    scripted_run([], epochs=5, patience=0)
    assert meter.rows == 10


def test_looks_multiply_in_float32_whatever_training_does():
    flag, seen = torch.backends.cuda.matmul, []

    class Watching(FullEmbedding):
        def after_step(self, step):
            seen.append(flag.allow_tf32)

    class Looking(Scripted):
        def validate(self, network):
            seen.append(flag.allow_tf32)
            return super().validate(network)

    before = flag.allow_tf32
    network = Around(Watching(TableSpec.of_shape(3, 2)))
    settings = TrainingSettings(epochs=1, products="tf32")
    train(network, Looking([0.5]), settings)
    assert seen == [True, True, False] and flag.allow_tf32 == before


def test_divergence_has_an_error_of_its_own():
    with pytest.raises(Diverged, match="training diverged"):
        scripted_run([], epochs=3, patience=0, learning_rate=1e30)


# -- optimisers -------------------------------------------------------------------


def test_rowwise_adagrad_is_its_rule():
    """A transcript in NumPy: one running mean square per row."""
    rng = np.random.default_rng(0)
    weight = torch.nn.Parameter(torch.from_numpy(rng.normal(size=(5, 3))))
    wanted, state = weight.detach().numpy().copy(), np.zeros(5)
    optimizer = RowwiseAdagrad([weight], lr=0.1, eps=1e-8)
    for _ in range(4):
        grad = rng.normal(size=(5, 3)) * [[1], [1], [0], [1], [10]]
        weight.grad = torch.from_numpy(grad.copy())
        optimizer.step()
        state += (grad**2).mean(axis=1)
        wanted -= 0.1 * grad / (np.sqrt(state) + 1e-8)[:, None]
    np.testing.assert_allclose(weight.detach().numpy(), wanted, rtol=1e-12)
    np.testing.assert_allclose(optimizer.state[weight]["sum"].numpy(), state)


def test_rowwise_adagrad_takes_vectors_and_single_numbers():
    vector, number = (
        torch.nn.Parameter(torch.ones(shape, dtype=torch.float64)) for shape in (3, ())
    )
    optimizer = RowwiseAdagrad([vector, number], lr=0.1)
    for weight in (vector, number):
        weight.grad = torch.full_like(weight, -2.0)
    optimizer.step()
    np.testing.assert_allclose(vector.detach().numpy(), 1.1)
    assert number.item() == pytest.approx(1.1)


def counted(amounts, rows=4000, seed=0):
    """Codes of many rows to which the same amounts were added one by one."""
    codes, rng = torch.zeros(rows, dtype=torch.uint8), np.random.default_rng(seed)
    for amount in amounts:
        add_in_bytes(codes, ..., torch.full((rows,), amount).double(), rng)
    return codes


def stands_for(codes):
    return read_bytes(codes, torch.zeros(1, dtype=torch.float64)).numpy()


def test_the_levels_of_a_byte_rise_by_a_fifth_of_an_octave():
    assert len(STATE_LEVELS) == 256 and STATE_LEVELS[0] == 0
    np.testing.assert_allclose(STATE_LEVELS[2:] / STATE_LEVELS[1:-1], 2**0.2, rtol=1e-6)
    assert STATE_LEVELS[1] == 2.0**-38 and 7e3 < STATE_LEVELS[-1] < 8e3


@pytest.mark.parametrize("amount", [1e-13, 1e-9, 1e-3, 3.0])
def test_a_state_in_bytes_is_the_sum_on_average_and_mostly_within_a_factor_of_2(amount):
    """Also of amounts far below the gap between two levels, which rounding to the
    nearest would lose.
    """
    ratio = stands_for(counted([amount] * 200)) / (200 * amount)
    assert ratio.mean() == pytest.approx(1, abs=5 * ratio.std() / np.sqrt(len(ratio)))
    if 200 * amount > 100 * STATE_LEVELS[1]:
        assert 0.2 < ratio.std() < 0.3
        assert ((ratio < 0.5) | (ratio > 2)).mean() < 0.01
        assert 0.25 < ratio.min() and ratio.max() < 4


def test_a_state_in_bytes_rises_on_average_at_each_step():
    amounts = np.random.default_rng(0).exponential(1e-4, 60)
    means, codes = [], torch.zeros(20_000, dtype=torch.uint8)
    rng = np.random.default_rng(0)
    for amount in amounts:
        before = stands_for(codes)
        add_in_bytes(codes, ..., torch.full((20_000,), amount).double(), rng)
        moved = stands_for(codes) - before
        assert (moved >= 0).all()  # up or where it was, never down
        means.append((moved.mean() - amount) / (moved.std() / np.sqrt(20_000) + 1e-12))
    assert np.abs(means).max() < 5


def test_no_amount_leaves_every_code_where_it_is():
    codes = torch.arange(256).to(torch.uint8)
    sums = add_in_bytes(codes, ..., torch.zeros(256), np.random.default_rng(0))
    assert codes.tolist() == list(range(256))
    assert torch.equal(sums, torch.from_numpy(STATE_LEVELS))


def test_a_state_in_bytes_ends_at_the_largest_level():
    codes = torch.tensor([0, 250, 255], dtype=torch.uint8)
    for _ in range(3):
        sums = add_in_bytes(
            codes, ..., torch.full((3,), 1e30), np.random.default_rng(0)
        )
    assert codes.tolist() == [255] * 3 and sums.isfinite().all()


def test_the_first_step_is_the_same_with_a_state_in_bytes():
    """It divides by the sum before that is rounded: a row never moves further."""
    moved = []
    for kind in (RowwiseAdagrad, RowwiseAdagradInBytes):
        weight = torch.nn.Parameter(torch.zeros(4, 3))
        optimizer = kind([weight], lr=0.1)
        weight.grad = torch.tensor([[1.0, 2, 3], [1e-9] * 3, [0] * 3, [1e15] * 3])
        optimizer.step()
        moved.append(weight.detach().clone())
    assert torch.equal(*moved)
    assert (moved[0].abs() <= 0.1 * np.sqrt(3)).all()


@pytest.mark.parametrize("sparse", [False, True])
def test_a_state_in_bytes_is_a_byte_a_row_and_stays_where_nothing_is_read(sparse):
    weight = torch.nn.Parameter(torch.ones(6, 3))
    optimizer = RowwiseAdagradInBytes([weight], lr=0.1, seed=1)
    for _ in range(5):
        grad = torch.zeros(6, 3)
        grad[[1, 4]] = 0.5
        weight.grad = grad.to_sparse(1) if sparse else grad
        optimizer.step()
    codes = optimizer.state[weight]["codes"]
    assert codes.dtype == torch.uint8 and codes.shape == (6,)
    assert codes.nonzero()[:, 0].tolist() == [1, 4]
    assert (weight != 1).any(1).nonzero()[:, 0].tolist() == [1, 4]


def test_a_state_in_bytes_takes_vectors_and_single_numbers():
    shapes = (3, ())
    weights = [torch.nn.Parameter(torch.ones(s, dtype=torch.float64)) for s in shapes]
    optimizer = RowwiseAdagradInBytes(weights, lr=0.1)
    for weight in weights:
        weight.grad = torch.full_like(weight, -2.0)
    optimizer.step()
    for weight in weights:
        np.testing.assert_allclose(weight.detach().numpy(), 1.1)


def test_the_seed_of_a_run_is_that_of_its_state_in_bytes():
    tables = {}
    for run, seed in enumerate((3, 3, 4)):
        table = FullEmbedding(TableSpec.of_shape(20, 4), seed=1)
        settings = TrainingSettings(optimizer="rowwise_adagrad_8bit", learning_rate=0.1)
        chosen = make_table_optimizer(table, settings, seed=seed)
        for _ in range(5):
            chosen.zero_grad(set_to_none=True)
            ((table(torch.arange(20)) - 1) ** 2).sum().backward()
            assert table.weight.grad.is_sparse
            chosen.step()
        tables[run] = table.weight.detach()
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])


def stepped(optimizer, sparse, steps=3):
    """A table after some steps with dense or sparse gradients of the same ids."""
    table = FullEmbedding(TableSpec.of_shape(20, 4), seed=1)
    settings = TrainingSettings(optimizer=optimizer, learning_rate=0.1)
    chosen = make_table_optimizer(table, settings)
    table.begin(Regime(optimizer, sparse))
    for step in range(steps):
        chosen.zero_grad(set_to_none=True)
        ids = torch.tensor([3, 3, 7, 11 + step])  # one id twice
        ((table(ids) - 1) ** 2).sum().backward()
        assert table.weight.grad.is_sparse == sparse
        chosen.step()
    return table.weight.detach()


@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad"])
def test_sparse_gradients_train_as_dense_ones_do(optimizer):
    dense, sparse = (stepped(optimizer, kind) for kind in (False, True))
    torch.testing.assert_close(dense, sparse, rtol=1e-6, atol=1e-8)
    start = FullEmbedding(TableSpec.of_shape(20, 4), seed=1).weight
    moved = (sparse != start).any(1).nonzero().squeeze(1).tolist()
    assert moved == [3, 7, 11, 12, 13]


def test_adam_is_torch_s_own():
    weight = torch.nn.Parameter(
        FullEmbedding(TableSpec.of_shape(20, 4), seed=1).weight.detach().clone()
    )
    reference = torch.optim.Adam([weight], lr=0.1)
    for step in range(3):
        reference.zero_grad()
        ((weight[[3, 3, 7, 11 + step]] - 1) ** 2).sum().backward()
        reference.step()
    torch.testing.assert_close(stepped("adam", sparse=False), weight.detach())


@pytest.mark.parametrize(
    ("settings", "sparse"),
    [
        ({"optimizer": "adam"}, False),
        ({"optimizer": "sgd"}, True),
        ({"optimizer": "rowwise_adagrad"}, True),
        ({"optimizer": "rowwise_adagrad_8bit"}, True),
        ({"optimizer": "sgd", "clip_norm": 1.0}, False),
        ({"optimizer": "sgd", "table_l2": 0.1}, False),
    ],
)
def test_gradients_are_sparse_where_the_optimiser_moves_rows_alone(settings, sparse):
    table = FullEmbedding(SPEC)
    make_table_optimizer(table, TrainingSettings(**settings))
    assert table.regime == Regime(settings["optimizer"], sparse, 1000, 20)


def test_clipping_bounds_the_gradient_s_length():
    class Watching(FullEmbedding):
        def after_step(self, step):
            lengths.append(self.weight.grad.norm().item())

    lengths: list = []
    spec = TableSpec.of_shape(3, 2)
    scripted_run([], Watching(spec), epochs=2, patience=0, clip_norm=0.01)
    assert lengths == pytest.approx([0.01] * 4, rel=1e-3)


# -- hooks --------------------------------------------------------------------------


class Recording(FullEmbedding):
    """Notes which hook was called when."""

    def __init__(self, spec, **options):
        super().__init__(spec, **options)
        self.calls = []
        self.steps = []

    def penalty(self):
        self.calls.append("penalty")
        return 0.5 * self.weight.abs().sum()

    def advance(self, progress):
        self.calls.append(("advance", progress))

    def after_step(self, step):
        self.calls.append("after_step")
        self.steps.append(step)


class Searching(Recording):
    def validation_step(self, step):
        self.calls.append("validation_step")
        self.found = step.validation_loss().item()


SMALL = TableSpec.of_shape(3, 2)


def test_hooks_are_called_once_a_step_in_order():
    table = Recording(SMALL)
    scripted_run([], table, epochs=3, patience=0)
    one = ["advance", "penalty", "after_step"]
    names = [call[0] if isinstance(call, tuple) else call for call in table.calls]
    assert names == 6 * one
    progress = [call[1] for call in table.calls if isinstance(call, tuple)]
    assert progress == pytest.approx(np.linspace(0, 1, 6))
    assert [step.progress for step in table.steps] == progress


def test_the_validation_step_comes_before_the_training_step():
    table = Searching(SMALL)
    scripted_run([], table, epochs=1, patience=0)
    names = [call[0] if isinstance(call, tuple) else call for call in table.calls]
    one = ["advance", "validation_step", "penalty", "penalty", "after_step"]
    assert names == 2 * one  # the penalty is part of the validation loss, too
    assert table.found > 0


def test_validation_batches_are_drawn_only_for_tables_that_search():
    drawn = []

    class Counting(Scripted):
        def validation_batches(self, rng):
            while True:
                drawn.append(1)
                yield torch.tensor([2])

    settings = TrainingSettings(epochs=2, patience=0)
    for kind, wanted in ((Recording, 0), (Searching, 4)):
        drawn.clear()
        train(Around(kind(SMALL)), Counting([]), settings)
        assert len(drawn) == wanted


def test_the_penalty_is_part_of_the_loss():
    """Its gradient, the sign of each entry, reaches rows no batch reads."""

    class Third(Scripted):
        def batches(self, rng):
            yield torch.tensor([0])

        steps = 1

    table = Recording(SMALL)
    before = table.weight.detach().clone()
    settings = TrainingSettings(
        epochs=1, patience=0, optimizer="sgd", learning_rate=1e-4
    )
    train(Around(table), Third([]), settings)
    moved = (table.weight.detach() - before)[2]
    torch.testing.assert_close(moved, -1e-4 * 0.5 * before[2].sign(), rtol=1e-2, atol=0)


def test_the_loss_that_a_hook_gets_is_that_of_the_table_as_it_is():
    found = []

    class Asking(FullEmbedding):
        def after_step(self, step):
            self.weight.data.fill_(1.0)
            found.append(step.loss().item())
            assert step.network.table is self

    scripted_run([], Asking(SMALL), epochs=1, patience=0)
    assert found == [0.0, 0.0]


def test_a_group_may_have_its_own_rate():
    class Slow(FullEmbedding):
        def __init__(self, spec):
            super().__init__(spec)
            self.gain = torch.nn.Parameter(torch.ones(()))

        def embed(self, ids):
            return self.gain * super().embed(ids)

        def parameter_groups(self, learning_rate):
            given.append(learning_rate)
            return [
                {"params": [self.weight]},
                {"params": [self.gain], "lr": 0.01 * learning_rate},
            ]

    given: list = []
    table = Slow(SMALL)
    before = table.weight.detach().clone()
    scripted_run([], table, epochs=1, patience=0, learning_rate=0.5,
                 table_learning_rate=0.1)  # fmt: skip
    assert given == [0.1]
    # Adam's first steps are as long as the rate, whatever the gradient.
    assert (table.weight - before).abs().max().item() == pytest.approx(0.2, rel=0.1)
    assert abs(table.gain.item() - 1) <= 2.1e-3


def test_a_table_without_parameters_is_trained_by_its_hooks_alone():
    class Fixed(CompressedEmbedding):
        def embed(self, ids):
            return torch.ones(*ids.shape, 4)

    table = Fixed(50, 4)
    net, history = click_run(table)
    assert make_table_optimizer(table, TrainingSettings()) is None
    assert len(history.epochs) == 3 and not list(net.table.parameters())


def test_frozen_parameters_stay():
    table = FullEmbedding(SPEC)
    table.weight.requires_grad_(False)
    before = table.weight.clone()
    click_run(table)
    assert torch.equal(table.weight, before)


def test_ids_are_checked_again_after_training():
    net, _ = click_run()
    with pytest.raises(IndexError):
        net.table(torch.tensor([50]))


# -- losses ---------------------------------------------------------------------


def click_loss(network="dcnv2", **settings):
    net = build_click_network(network, FullEmbedding(SPEC, seed=1), 2)
    objective = ClickObjective(DATA, TrainingSettings(**settings))
    batch = next(objective.batches(np.random.default_rng(0)))
    return net, batch, objective.loss(net, batch)


def test_the_loss_of_clicks_is_cross_entropy():
    net, (ids, labels), loss = click_loss()
    chance = torch.sigmoid(net(ids))
    wanted = -(labels * chance.log() + (1 - labels) * (1 - chance).log()).mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_l2_is_of_the_vectors_read_in_the_batch():
    net, (ids, _), plain = click_loss(batch_size=32)
    _, _, loss = click_loss(batch_size=32, l2=5.0)
    rows = net.table.weight.detach().numpy()
    wanted = 5.0 / 2 * sum((rows[i] ** 2).sum() for i in ids.flatten()) / 32
    assert (loss - plain).item() == pytest.approx(wanted, rel=1e-4)
    loss.backward()


def test_l2_of_the_whole_table_takes_the_weights_per_id_along():
    for network in ("dcnv2", "fm"):
        net, _, plain = click_loss(network)
        _, _, loss = click_loss(network, table_l2=3.0)
        wanted = 1.5 * net.table.weight.square().sum().item()
        assert (loss - plain).item() == pytest.approx(wanted, rel=1e-3)


def test_l2_of_the_whole_table_reaches_the_rows_that_integers_read():
    spec = TableSpec(10, 4, [0, 4, 10], np.ones(10, int), init_std=1.0)
    table = get_method("lpt").build(spec, get_method("lpt").plan(spec, 2))
    assert table.squared_length() == 0
    rows = table(torch.tensor([[1, 7], [1, 2]]))
    read = table.squared_length()
    wanted = sum(rows[place].square().sum() for place in ((0, 0), (0, 1), (1, 1)))
    assert read.item() == pytest.approx(wanted.item(), rel=1e-6)
    (slope,) = torch.autograd.grad(read / 2, [table.batch[0][1]])
    assert torch.equal(slope, table.batch[0][1])


@pytest.mark.parametrize("loss", ["bpr", "softmax"])
def test_ranking_losses_are_their_formulas(loss):
    pairs = np.stack([np.arange(8) % 4, 4 + np.arange(8) % 6], 1)
    data = InteractionData("pairs", 4, 6, pairs, pairs[:0], pairs[:0])
    settings = TrainingSettings(batch_size=8, l2=2.0)
    objective = RankingObjective(data, settings, loss, negatives=3, temperature=0.5)
    spec = TableSpec(10, 3, [0, 4, 10], np.ones(10, int), init_std=1.0)
    net = build_ranking_network("mf", FullEmbedding(spec), 4, pairs)
    users, good, bad = batch = next(objective.batches(np.random.default_rng(0)))
    rows = net.table.weight.detach().numpy().astype(np.float64)
    terms = []
    for place, (user, item) in enumerate(zip(users, good)):
        score = rows[user] @ rows[item]
        if loss == "bpr":
            terms.append(np.log1p(np.exp(rows[user] @ rows[bad[place]] - score)))
        else:
            others = np.exp(rows[bad] @ rows[user] / 0.5).sum()
            own = np.exp(score / 0.5)
            terms.append(-np.log(own / (own + others)))
    read = np.concatenate([rows[part] for part in batch])
    wanted = np.mean(terms) + 2.0 / 2 * (read**2).sum() / 8
    assert objective.loss(net, batch).item() == pytest.approx(wanted, rel=1e-5)
    assert (bad >= 4).all() and (bad < 10).all()
    assert len(bad) == (8 if loss == "bpr" else 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 700, 1031])
def test_softmax_in_parts_is_the_whole(dtype, size, monkeypatch):
    """Loss and gradients of parts (the last one short) are those of autograd."""
    torch.manual_seed(0)
    parts = [torch.randn(n, 6, dtype=dtype) for n in (size, size, 50)]
    found = []
    for limit in (10**9, 50 * 256):
        monkeypatch.setattr("survey_code.sampled_softmax.PART", limit)
        inputs = [part.clone().requires_grad_() for part in parts]
        # What follows the loss scales its gradients.
        loss = 3 * sampled_softmax(*inputs, 0.5)
        found.append([loss, *torch.autograd.grad(loss, inputs)])
    for whole, cut in zip(*found):
        torch.testing.assert_close(cut, whole)


def test_softmax_in_parts_is_used_where_scores_are_many():
    users, negatives = torch.ones(1024, 2), torch.ones(129, 2)
    few = sampled_softmax(users.requires_grad_(), users, negatives[:128], 1.0)
    many = sampled_softmax(users, users, negatives, 1.0)
    assert "SoftmaxInParts" not in few.grad_fn.name()
    assert "SoftmaxInParts" in many.grad_fn.name()


def test_softmax_in_parts_does_not_overflow():
    users = torch.full((3000, 1), 1e2)
    loss = sampled_softmax(users, torch.ones(3000, 1), torch.ones(100, 1), 0.1)
    assert loss.item() == pytest.approx(np.log(101), rel=1e-5)


def test_an_epoch_goes_once_over_every_row():
    objective = ClickObjective(DATA, TrainingSettings(batch_size=64))
    batches = list(objective.batches(np.random.default_rng(0)))
    assert len(batches) == objective.steps == 10
    ids = torch.cat([ids for ids, _ in batches]).numpy()
    order = np.lexsort(ids.T), np.lexsort(DATA.train.ids.T)
    np.testing.assert_array_equal(ids[order[0]], DATA.train.ids[order[1]])
    assert (ids != DATA.train.ids).any()


# -- what goes wrong ----------------------------------------------------------------


class Spoilt(Scripted):
    def __init__(self, value):
        super().__init__([0.5] * 9)
        self.value = value

    def loss(self, network, batch):
        return super().loss(network, batch) * self.value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("patience", [0, 2])
def test_a_loss_that_is_no_number_is_a_clear_error(value, patience):
    settings = TrainingSettings(epochs=2, patience=patience)
    with pytest.raises(ValueError, match=r"training diverged: .* (nan|inf);"):
        train(Around(FullEmbedding(SMALL)), Spoilt(value), settings)


def test_a_rate_far_too_high_is_a_clear_error():
    with pytest.raises(ValueError, match=r"training diverged|NaN or infinite"):
        click_run(network="fm", optimizer="sgd", learning_rate=1e12, epochs=20)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", 2.5),
        ("epochs", "many"),
        ("batch_size", 0),
        ("patience", -1),
        ("evaluate_every", 0),
        ("learning_rate", 0),
        ("learning_rate", -1e-3),
        ("learning_rate", float("nan")),
        ("learning_rate", None),
        ("table_learning_rate", 0),
        ("l2", -1),
        ("table_l2", float("inf")),
        ("decay", -0.1),
        ("clip_norm", "short"),
        ("optimizer", "lion"),
        ("schedule", "cosine"),
    ],
)
def test_bad_settings_are_named_with_their_value(name, value):
    with pytest.raises(ValueError, match=name) as error:
        TrainingSettings(**{name: value})
    assert str(value) in str(error.value)


def test_an_unknown_ranking_loss_is_a_value_error():
    pairs = np.array([[0, 1]])
    data = InteractionData("pairs", 1, 1, pairs, pairs, pairs)
    with pytest.raises(ValueError, match="loss must be 'bpr' or 'softmax', got 'hinge"):
        RankingObjective(data, TrainingSettings(), "hinge")
    with pytest.raises(ValueError, match="draws must be 'pairs' or 'users', got 'it"):
        RankingObjective(data, TrainingSettings(), draws="items")


def test_users_are_drawn_alike_however_many_items_they_met():
    items = [[2], [2, 3, 4, 5, 6], [], [3, 6]]
    pairs = np.array([[u, 2 + i] for u, own in enumerate(items) for i in own])
    rng = np.random.default_rng(0)
    data = InteractionData("pairs", 4, 8, rng.permutation(pairs), pairs[:0], pairs[:0])
    settings = TrainingSettings(batch_size=3)
    objective = RankingObjective(data, settings, draws="users")
    drawn = np.concatenate(
        [
            torch.stack(batch[:2], 1).numpy()
            for _ in range(600)
            for batch in objective.batches(rng)
        ]
    )
    assert len(drawn) == 600 * len(pairs)
    kinds, counts = np.unique(drawn, axis=0, return_counts=True)
    assert kinds.tolist() == sorted(pairs.tolist())
    wanted = [len(drawn) / 3 / len(items[user]) for user, _ in kinds]
    np.testing.assert_allclose(counts, wanted, rtol=0.15)


@pytest.mark.parametrize("model, recorded", [("mf", True), ("lightgcn", False)])
def test_a_graph_of_neighbours_is_not_recorded(model, recorded):
    """A sparse matrix has no address by which a recording would know it."""
    pairs = np.stack([np.arange(8) % 4, 4 + np.arange(8) % 6], 1)
    table = FullEmbedding(TableSpec(10, 3, [0, 4, 10], np.ones(10, int), init_std=1.0))
    network = build_ranking_network(model, table, 4, pairs)
    assert replays(network, TrainingSettings(device="cuda")) is recorded
    assert not replays(network, TrainingSettings(device="cpu"))
