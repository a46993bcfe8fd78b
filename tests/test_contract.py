"""The contract, tried on three sketches of methods as unlike as they come.

Each is the smallest class with the method's characteristic: magnitude pruning
searches and retrains, ALPT trains integers with nothing else behind them, DCF
does not follow gradients at all.  All three go through the real `run`.
"""

from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import survey_code
from survey_code import CompressedEmbedding, FullEmbedding, TableSpec, catalog
from survey_code.baselines import DenseTable
from survey_code.bits import pack_codes, unpack_codes
from survey_code.catalog import DURING, SEARCH, Method
from survey_code.data.tasks import ClickData, ClickRows, InteractionData
from survey_code.embedding import Network, TrainingStep, decode_layout, draw_normal
from survey_code.lab import Trial
from survey_code.lab.task import make_task
from survey_code.layouts import Layout, RowwiseLayout
from survey_code.layouts.rowwise import row_bytes
from survey_code.method import Searched, Trained
from survey_code.options import Options, SearchOptions, found, planned
from survey_code.order import largest_first
from survey_code.training import TrainingSettings, train

pytestmark = pytest.mark.usefixtures("one_thread")

# -- two layouts -------------------------------------------------------------


class SparseSketch(Layout):
    """Kept entries only: values, their columns, and where each row starts."""

    name = "sparse sketch"
    array_names: ClassVar = ("values", "columns", "starts")

    def __init__(self, table, mask):
        super().__init__(*table.shape)
        self.values = table[mask]
        self.columns = np.nonzero(mask)[1].astype(np.uint16)
        self.starts = np.concatenate([[0], np.cumsum(mask.sum(1))]).astype(np.int32)

    @staticmethod
    def bytes(rows, kept):
        return 6 * kept + 4 * (rows + 1)

    def read_rows(self, ids):
        rows = np.zeros((len(ids), self.embedding_dim), np.float32)
        for row, i in zip(rows, ids):
            span = slice(self.starts[i], self.starts[i + 1])
            row[self.columns[span]] = self.values[span]
        return rows


class BinarySketch(Layout):
    """One bit per entry: +1 or -1."""

    name = "binary sketch"
    array_names: ClassVar = ("packed",)

    def __init__(self, codes):
        super().__init__(*codes.shape)
        self.packed = pack_codes((codes > 0).astype(np.uint8), bits=1)

    def read_rows(self, ids):
        bits = unpack_codes(self.packed[ids], self.embedding_dim, 1)
        return 2 * bits.astype(np.float32) - 1


# -- (a) magnitude pruning: search, then retrain -------------------------------


class MagnitudeSketchOptions(SearchOptions):
    kept: int = found("entries to keep")
    mask: np.ndarray = found("which they are")


class MaskedTable(DenseTable):
    """Only the entries under a mask exist."""

    def __init__(self, spec, mask, seed=0):
        super().__init__(spec.num_embeddings, spec.embedding_dim, spec.init_std, seed)
        self.register_buffer("mask", torch.as_tensor(mask))

    def embed(self, ids):
        return super().embed(ids) * self.mask[ids]

    def freeze(self):
        return SparseSketch(self.weight.detach().numpy(), self.mask.numpy())


class MagnitudeSketch(MaskedTable, Searched[MagnitudeSketchOptions, FullEmbedding]):
    """Train, keep the largest entries, train those again from their start."""

    def __init__(self, spec, options, seed=0):
        super().__init__(spec, options.mask, seed)

    @classmethod
    def plan(cls, spec, ratio, options):
        rows = spec.num_embeddings
        budget = spec.require(ratio, SparseSketch.bytes(rows, 1))
        kept = min((budget - SparseSketch.bytes(rows, 0)) // 6, spec.full_bytes // 4)
        return {"kept": kept, "budget": budget}

    @classmethod
    def searching(cls, spec, options, seed):
        return FullEmbedding(spec, seed=seed)

    @classmethod
    def settle(cls, table, judge, spec, options):
        weight = table.weight.detach()
        order = weight.abs().flatten().argsort(descending=True, stable=True)
        mask = torch.zeros(weight.numel(), dtype=torch.bool)
        mask[order[: options.kept]] = True
        return {"mask": mask.view(weight.shape).numpy()}


# -- (b) ALPT: the integers are the only copy of the weights -------------------


class RoundToStep(torch.autograd.Function):
    """s * round(w / s), with LSQ's gradient of the step: round(w / s) - w / s."""

    @staticmethod
    def forward(ctx, weight, step):
        ctx.save_for_backward(weight / step)
        return (weight / step).round().clamp(-128, 127) * step

    @staticmethod
    def backward(ctx, grad):
        (scaled,) = ctx.saved_tensors
        by_step = (scaled.round() - scaled).where(
            scaled.abs() <= 127, scaled.clamp(-128, 127)
        )
        return None, (grad * by_step).sum(-1, keepdim=True)


class NoOptions(Options):
    """The sketches of the other two have none, or one that their plan chooses."""


class AlptSketch(Trained[NoOptions]):
    """uint8 codes and a learned step per row; no float copy of the table."""

    def __init__(self, spec, options=None, seed=0):
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        shape = (spec.num_embeddings, spec.embedding_dim)
        start = draw_normal(shape, spec.init_std, [seed, 0])
        step = torch.full((shape[0], 1), 6 * spec.init_std / 255)
        self.register_buffer("codes", (start / step + 128).round().to(torch.uint8))
        self.step = nn.Parameter(step)
        self.rng = np.random.default_rng([seed, 1])
        self.read = []  # (ids, leaf) of each look-up of this step
        self.trial = None  # ids and their updated rows, while the step size learns

    @classmethod
    def plan(cls, spec, ratio, options):
        spec.require(ratio, spec.num_embeddings * row_bytes(spec.embedding_dim, 8))
        return {}

    def parameter_groups(self, learning_rate):
        return []  # after_step moves everything

    def advance(self, progress):
        self.read.clear()

    def dequantize(self, ids):
        # The layout's own arithmetic, code * scale + bias, so that both agree.
        step = self.step.detach()[ids]
        return self.codes[ids] * step + (-128 * step)

    def embed(self, ids):
        if self.trial is not None:
            touched, rows = self.trial
            places = torch.searchsorted(touched, ids)
            return RoundToStep.apply(rows[places], self.step[ids])
        if not (self.training and torch.is_grad_enabled()):
            return self.dequantize(ids)
        leaf = self.dequantize(ids).requires_grad_()
        self.read.append((ids, leaf))
        return leaf

    def after_step(self, step):
        touched = torch.unique(torch.cat([ids.flatten() for ids, _ in self.read]))
        rows = self.dequantize(touched)
        for ids, leaf in self.read:
            if leaf.grad is not None:
                places = torch.searchsorted(touched, ids.flatten())
                rows.index_add_(
                    0, places, leaf.grad.flatten(0, -2), alpha=-step.learning_rate
                )
        self.read.clear()
        self.trial = touched, rows
        (grad,) = torch.autograd.grad(step.loss(), self.step)
        self.trial = None
        scale = 1 / np.sqrt(rows.numel() * 127)
        with torch.no_grad():
            self.step -= step.learning_rate * scale * grad
            self.step.clamp_(min=1e-8)
        self.codes[touched] = self.round_randomly(rows / self.step.detach()[touched])

    def round_randomly(self, scaled):
        noise = torch.from_numpy(self.rng.random(scaled.shape, dtype=np.float32))
        return (scaled + noise + 128).floor().clamp(0, 255).to(torch.uint8)

    def freeze(self):
        step = self.step.detach().numpy()[:, 0]
        return RowwiseLayout.from_codes(self.codes.numpy(), step, -128 * step, 8)


# -- (c) DCF: bits found by coordinate descent --------------------------------


class DcfSketchOptions(Options):
    bits: int = planned("of a code", low=1)


class DcfSketch(Trained[DcfSketchOptions]):
    """Codes of +1 and -1 whose products fit a 0/1 matrix; no gradients."""

    def __init__(self, spec, options, seed=0):
        bits = options.bits
        self.pairs, self.users = spec.interactions, int(spec.field_starts[1])
        super().__init__(spec.num_embeddings, bits)
        signs = np.random.default_rng(seed).integers(
            2, size=(spec.num_embeddings, bits)
        )
        self.register_buffer("codes", torch.from_numpy(2 * signs - 1).to(torch.int8))
        self.objective = []

    @classmethod
    def plan(cls, spec, ratio, options):
        rows = spec.num_embeddings
        budget = spec.require(ratio, smallest=rows)
        return {"bits": min(8 * (budget // rows), 32 * spec.embedding_dim)}

    def fit(self, task):
        codes = self.codes.numpy().astype(np.float64)
        users, items = np.split(codes, [self.users])
        wanted = -np.ones((len(users), len(items)))
        wanted[self.pairs[:, 0], self.pairs[:, 1] - len(users)] = 1
        wanted *= self.embedding_dim / 2
        for _ in range(3):
            for own, other, target in (
                (users, items, wanted),
                (items, users, wanted.T),
            ):
                descend(own, other, target)
                self.objective.append(np.square(wanted - users @ items.T).sum())
        self.codes.copy_(torch.from_numpy(np.concatenate([users, items])))
        return task.surround(self)

    def embed(self, ids):
        return self.codes[ids].float()

    def freeze(self):
        return BinarySketch(self.codes.numpy())


def descend(own, other, target):
    """Set one bit column of `own` after another to its best value."""
    for k in range(own.shape[1]):
        rest = target - own @ other.T + np.outer(own[:, k], other[:, k])
        gain = rest @ other[:, k]
        own[gain != 0, k] = np.sign(gain[gain != 0])


# -- tasks -------------------------------------------------------------------

CLICKS = Trial(
    "dcnv2", 8, TrainingSettings(epochs=3, batch_size=64, learning_rate=5e-3),
    {"hidden": (8,), "cross_layers": 1},
)  # fmt: skip
RANKING = Trial("mf", 4, TrainingSettings(epochs=2, batch_size=256))


def click_rows(rng, rows):
    ids = np.stack([rng.integers(30, size=rows), 30 + rng.integers(20, size=rows)], 1)
    liked = np.random.default_rng(7).normal(size=50)
    chance = 1 / (1 + np.exp(-2 * liked[ids].sum(1)))
    return ClickRows(ids, (rng.random(rows) < chance).astype(np.float32))


@pytest.fixture(scope="module")
def clicks():
    rng = np.random.default_rng(0)
    parts = [click_rows(rng, rows) for rows in (1500, 400, 400)]
    return ClickData("clicks", ("user", "item"), np.array([0, 30, 50]), *parts)


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    taste = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 30))
    met = np.argwhere(taste + rng.normal(size=taste.shape) > 1.5)
    rng.shuffle(met)
    met[:, 1] += 40
    test, valid, train_part = np.split(met, [80, 120])
    return InteractionData("pairs", 40, 30, train_part, valid, test)


# -- the sketches as methods of the catalogue ----------------------------------


def sketch(key, kind, *stages, task):
    return Method(
        key, "Sketch", "low precision", "quantisation", 2020, "sketch2020",
        stages, (task,), kind,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def sketches(monkeypatch):
    monkeypatch.setattr(catalog, "_ADDED", {})
    for method in (
        sketch("magnitude_sketch", MagnitudeSketch, SEARCH, task="ctr"),
        sketch("alpt_sketch", AlptSketch, DURING, task="ctr"),
        sketch("dcf_sketch", DcfSketch, DURING, task="top-n"),
    ):
        catalog.add_method(method)


def step_of(loss, learning_rate=0.1):
    return TrainingStep(loss, loss, Network(None), learning_rate, 0.0)


# -- (a) -----------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [2, 4])
def test_magnitude_keeps_the_largest_inside_the_budget(clicks, ratio):
    result = survey_code.run("magnitude_sketch", clicks, ratio, trial=CLICKS, seed=1)
    assert result.reached_ratio >= ratio > 0.97 * result.reached_ratio
    assert result.validation["auc"] > 0.7
    assert "mask" in result.options


def test_magnitude_retrains_from_the_same_start(clicks):
    task = make_task(clicks, CLICKS, 1)
    method = catalog.get_method("magnitude_sketch")
    options = task.search(method, method.plan(task.spec, 4))
    table, again = (method.build(task.spec, options, 1) for _ in range(2))
    start = FullEmbedding(task.spec, seed=1).weight
    assert torch.equal(table.weight, start)
    table.fit(task)
    assert not torch.equal(table.weight, start)
    assert torch.equal(again.weight, start)
    rows = decode_layout(table.eval().freeze())
    assert (rows[~options.mask] == 0).all() and (rows[options.mask] != 0).all()
    np.testing.assert_array_equal(table(torch.arange(50)).detach().numpy(), rows)


# -- (b) -----------------------------------------------------------------------


def test_alpt_learns_with_integers_alone(clicks):
    result = survey_code.run("alpt_sketch", clicks, 2, trial=CLICKS, seed=1,
                             settings={"learning_rate": 0.02})  # fmt: skip
    assert result.validation["auc"] > 0.7
    assert isinstance(result.layout, RowwiseLayout)
    # 8 codes and a float32 step per row; no float table, no optimiser state.
    assert result.bytes["training_persistent"] == 50 * (8 + 4)
    # A symmetric code needs no bias, but PyTorch's rows store one.
    assert result.layout.nbytes == 50 * (8 + 4 + 4)


def alpt(rows=6, dim=64, seed=0):
    return AlptSketch(TableSpec.of_shape(rows, dim), seed=seed).train()


def test_alpt_agrees_with_its_layout():
    table = alpt().eval()
    found = table.freeze().lookup(np.arange(6))
    np.testing.assert_allclose(table(torch.arange(6)).numpy(), found, rtol=1e-6)


def test_alpt_moves_only_rows_that_were_read():
    table, ids = alpt(), torch.tensor([[1, 4], [4, 1]])
    before, steps = table.codes.clone(), table.step.detach().clone()

    def loss():
        return (table(ids) - 1).square().sum()

    loss().backward()
    table.after_step(step_of(loss))
    changed = (table.codes != before).any(1)
    assert changed.tolist() == [i in (1, 4) for i in range(6)]
    assert ((table.step != steps)[:, 0] <= changed).all()
    assert (table.step != steps)[[1, 4]].any() and not table.read


def test_alpt_writes_back_without_bias():
    """E round(w / s) = w / s: steps far below s / 2 are not lost."""
    table = alpt(rows=1, dim=20000)
    step = float(table.step.detach())
    before = table.eval()(torch.tensor([0])).mean().item()
    table.train()

    def loss():  # the gradient is 1 everywhere
        return table(torch.tensor([0])).sum()

    for _ in range(10):
        loss().backward()
        table.step.data.fill_(step)
        table.after_step(step_of(loss, learning_rate=0.05 * step))
        table.step.data.fill_(step)
    moved = table.eval()(torch.tensor([0])).mean().item() - before
    assert moved == pytest.approx(-10 * 0.05 * step, rel=0.1)


def test_alpt_sums_the_gradients_of_all_its_lookups():
    """A loss may read the table several times, and an id several times."""
    table = alpt()
    table.codes.fill_(128)
    ids = (torch.tensor([2, 2]), torch.tensor([2]))

    def loss():
        return -sum(table(part).sum() for part in ids)

    loss().backward()
    table.after_step(step_of(loss, learning_rate=float(table.step[0, 0].detach())))
    # Three steps; what rounding by chance adds is less than one.
    assert ((table.codes[2].int() - (128 + 3)).abs() <= 1).all()
    assert table.codes[2].float().mean().item() == pytest.approx(128 + 3, abs=0.1)
    assert (table.codes[[0, 1, 3, 4, 5]] == 128).all()


def test_alpts_step_gradient_is_lsqs():
    """torch's own rounding with a learnable scale, an independent implementation."""
    weight = torch.tensor([[0.31, -0.2, 0.04], [0.9, 7.0, -3.0]])
    step = torch.tensor([[0.1], [0.02]], requires_grad=True)
    RoundToStep.apply(weight, step).sum().backward()
    for row, own, grad in zip(weight, step.detach(), step.grad, strict=True):
        scale = own.clone().requires_grad_()
        zero = torch.zeros(1)
        torch._fake_quantize_learnable_per_tensor_affine(
            row, scale, zero, -128, 127, 1.0
        ).sum().backward()
        # torch takes the lowest code, -128, as the end below.
        assert grad.item() == pytest.approx(scale.grad.item(), abs=1e-4)


# -- (c) -----------------------------------------------------------------------


def test_dcf_runs_without_gradients(pairs):
    result = survey_code.run("dcf_sketch", pairs, 8, trial=RANKING, seed=1)
    assert result.reached_ratio == 8 and result.layout.embedding_dim == 16
    full = survey_code.run("full", pairs, trial=RANKING, seed=1)
    assert result.test["recall@20"] > 0.9 * full.test["recall@20"]


def test_dcfs_objective_never_rises(pairs):
    task = make_task(pairs, RANKING, 0)
    table = DcfSketch.make(task.spec, bits=16)
    assert table.fit(task).network.table is table
    assert (np.diff(table.objective) <= 1e-9).all()
    assert table.objective[-1] < 0.9 * table.objective[0]
    assert set(np.unique(decode_layout(table.freeze()))) == {-1, 1}


# -- schedules -----------------------------------------------------------------


class GradualSketch(MaskedTable):
    """Prunes while it trains: within its budget only once progress is 1."""

    schedule_end = 1.0

    def __init__(self, spec, kept, seed=0):
        full = np.ones((spec.num_embeddings, spec.embedding_dim), dtype=bool)
        super().__init__(spec, full, seed)
        self.kept = kept

    def advance(self, progress):
        share = 1 - (1 - self.kept / self.weight.numel()) * progress
        order = largest_first(self.weight.detach().abs(), axis=None)
        self.mask.zero_()
        self.mask.view(-1)[order[: round(share * self.weight.numel())]] = True


class FallingObjective:
    """Judged best in its first epoch."""

    monitor = "quality"
    steps = 4

    def __init__(self):
        self.looks = 0

    def batches(self, rng):
        return [torch.arange(10)] * self.steps

    def validation_batches(self, rng):
        return iter(())

    def loss(self, network, batch):
        return network.table(batch).square().sum()

    def validate(self, network):
        self.looks += 1
        return {"quality": -self.looks}


def train_sketch(table, **settings):
    network = Network(table)
    train(network, FallingObjective(), TrainingSettings(epochs=3, **settings))
    return table


@pytest.mark.parametrize("patience", [0, 1, 10])
def test_a_schedule_ends_inside_the_budget(patience):
    """Early stopping and "keep the best epoch" must not undo a schedule."""
    table = GradualSketch(TableSpec.of_shape(10, 4), kept=8)
    assert train_sketch(table, patience=patience).mask.sum() == 8


def test_epochs_after_a_schedules_end_compete():
    table = GradualSketch(TableSpec.of_shape(10, 4), kept=8)
    table.schedule_end = 0.6
    table.advance = lambda progress: GradualSketch.advance(
        table, min(progress / 0.6, 1.0)
    )
    network, objective = Network(table), FallingObjective()
    judged = []
    validate = objective.validate
    objective.validate = lambda network: (
        judged.append(table.weight.detach().clone()) or validate(network)
    )
    history = train(network, objective, TrainingSettings(epochs=3, patience=10))
    assert history.best == 1 and objective.looks == 2
    assert table.mask.sum() == 8
    # What is kept is what was judged best, not where the training ended.
    assert torch.equal(table.weight, judged[0]) and not torch.equal(*judged)


def test_after_step_is_told_the_tables_own_learning_rate():
    class Listening(FullEmbedding):
        def after_step(self, step):
            self.heard = step.learning_rate

    table = Listening(TableSpec.of_shape(10, 4))
    train_sketch(table, table_learning_rate=0.5, patience=0)
    assert table.heard == 0.5


def test_a_search_is_not_repeated_to_retrain_on_all_pairs(pairs, monkeypatch):
    """The second training takes the options that the search found."""
    catalog.add_method(sketch("pairs_sketch", MagnitudeSketch, SEARCH, task="top-n"))
    searched, made = [], []
    settle, start = MagnitudeSketch.settle, MagnitudeSketch.__init__

    def count(cls, *arguments):
        searched.append(settle(*arguments))
        return searched[-1]

    def note(table, spec, options, seed=0):
        made.append(options.mask)
        start(table, spec, options, seed)

    monkeypatch.setattr(MagnitudeSketch, "settle", classmethod(count))
    monkeypatch.setattr(MagnitudeSketch, "__init__", note)
    result = survey_code.run("pairs_sketch", pairs, 2, trial=RANKING, measure=False)
    assert result.reached_ratio >= 2
    assert len(searched) == 1 and len(made) == 2
    assert made[0] is made[1] is searched[0]["mask"]


def test_tables_inside_a_table_hear_of_sparse_gradients():
    class Two(CompressedEmbedding):
        def __init__(self):
            super().__init__(10, 4)
            self.inner = FullEmbedding(TableSpec.of_shape(10, 4))

        def embed(self, ids):
            return self.inner(ids)

    table = train_sketch(Two(), optimizer="sgd", patience=0)
    assert table.regime.sparse and table.inner.regime.sparse


def test_row_wise_adagrad_takes_a_single_number():
    """A learned threshold or temperature has no rows."""

    class Scaled(FullEmbedding):
        def __init__(self, spec):
            super().__init__(spec)
            self.scale = nn.Parameter(torch.tensor(1.0))

        def embed(self, ids):
            return self.scale * super().embed(ids)

    table = Scaled(TableSpec.of_shape(10, 4))
    assert train_sketch(table, optimizer="rowwise_adagrad", patience=0).scale != 1
