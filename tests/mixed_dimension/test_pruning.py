"""Pruning: what is kept, when, and what the searches leave to be retrained."""

import dataclasses
import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from small_world import TRIAL, zipf_spec

from survey_code import TableSpec, compress
from survey_code.catalog import get_method, methods
from survey_code.data.synthetic import make_clicks
from survey_code.embedding import Regime, TrainingStep, decode_layout
from survey_code.lab import run
from survey_code.lab.task import make_task
from survey_code.layouts import SparseLayout, sparse
from survey_code.layouts.sparse import default_block, sparse_bytes
from survey_code.mixed_dimension.grouped import field_costs
from survey_code.mixed_dimension.prefix import cut_to_budget
from survey_code.mixed_dimension.pruning import (
    AMTL,
    PEP,
    AMTLOptions,
    DeepLight,
    GatedColumns,
    GatedRows,
    OptFS,
    OptFSOptions,
    PEPOptions,
    PrefixTicket,
    SSEDSOptions,
    ThresholdTable,
    TicketEmbedding,
    TwinMasks,
    column_saliencies,
    count_numbers,
    draw_original,
    keep_largest,
    keep_likeliest,
    magnitude,
    open_gates,
    plan_entries,
    prefix_of,
    rescale_constant,
    scheduled_sparsity,
    soft_threshold,
    widths_within,
)
from survey_code.mixed_dimension.pruning.pep import GRANULARITIES
from survey_code.mixed_dimension.widths import floor_within
from survey_code.training import Jury

FAMILY = [m.key for m in methods() if m.family == "pruning"]


def a_step(progress):
    zero = torch.zeros(())
    return TrainingStep(
        lambda: zero, lambda: zero, torch.nn.Linear(1, 1), 0.1, progress
    )


# -- every method of the family ------------------------------------------------


@pytest.mark.parametrize("key", FAMILY)
@pytest.mark.parametrize("ratio", [2, 5])
def test_what_is_found_fits_the_budget_and_nearly_fills_it(key, ratio, data):
    result = run(key, data, ratio, seed=1, trial=TRIAL, measure=False)
    # A column of a field is a large step; the others spend what they have.
    slack = 1.3 if key == "sseds" else 1.05
    assert ratio <= result.reached_ratio < slack * ratio


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("magnitude", {"format": "int8"}),
        ("magnitude", {"decay": 1}),
        ("magnitude", {"retrain": "no"}),
        ("deeplight", {"constant": 0}),
        ("sseds", {"floor": 1.5}),
        ("optfs", {"rewind_epoch": -1}),
        ("deeplight", {"format": "int8"}),
        ("deeplight", {"every": 0}),
        ("deeplight", {"decay": 1}),
        ("deeplight", {"warm": 1}),
        ("deeplight", {"end": 0}),
        ("pep", {"granularity": "row"}),
        ("pep", {"start": 0.5}),
        ("pep", {"start": -800}),
        ("pep", {"decay": -1}),
        ("pep", {"travel": 0}),
        ("pep", {"search_epochs": 0}),
        ("sseds", {"batches": 0}),
        ("sseds", {"batches": 10_001}),
        ("amtl", {"hidden": 0}),
        ("amtl", {"price": -1}),
        ("amtl", {"twin_rate": 0}),
        ("optfs", {"hardness": 0.5}),
        ("optfs", {"travel": 0}),
        ("optfs", {"start": -1}),
        ("optfs", {"price": 0}),
        ("shaver", {"batches": 0}),
        ("shaver", {"steps": 0}),
        ("shaver", {"fill": "median"}),
        ("shaver", {"signed": 1}),
        ("shaver", {"format": "int8"}),
    ],
)
def test_wrong_options_are_value_errors(key, wrong, task):
    with pytest.raises(ValueError, match=f"{key}: {next(iter(wrong))} must be"):
        get_method(key).plan(task.spec, 2, **wrong)


@pytest.mark.parametrize("key", ["magnitude", "deeplight", "pep", "optfs", "shaver"])
def test_a_hundredfold_is_in_reach_where_rows_can_be_dropped(key):
    get_method(key).plan(zipf_spec(20_000), 100)


# -- the largest entries ---------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_keep_largest_is_a_stable_sort(seed):
    """The k largest; of equal ones the first."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, size=(7, 5)).astype(float)
    for keep in (0, 1, 4, 17, 34, 35, 99):
        wanted = np.zeros(35, bool)
        wanted[np.argsort(-scores, axis=None, kind="stable")[:keep]] = True
        found = keep_largest(torch.from_numpy(scores), keep).numpy()
        np.testing.assert_array_equal(found.ravel(), wanted)


@pytest.mark.parametrize("keep", range(7))
def test_magnitude_pruning_is_the_nearest_sparse_table(keep):
    """min ||W - W'||_F over all W' with k entries: tried one by one."""
    weight = np.random.default_rng(keep).normal(size=(2, 3)).astype(np.float32)
    layout = compress(weight, "magnitude", keep=keep)
    error = np.square(decode_layout(layout) - weight).sum()
    best = min(
        np.square(np.delete(weight.ravel(), list(kept))).sum()
        for kept in itertools.combinations(range(6), keep)
    )
    assert error == pytest.approx(best, rel=1e-5)
    assert len(layout.values) == keep


@pytest.mark.parametrize("format", ["float32", "float16"])
@pytest.mark.parametrize("ratio", [1.3, 4, 10, 30])
def test_one_more_entry_would_not_fit(format, ratio):
    spec = zipf_spec()
    keep = plan_entries(spec, ratio, format)
    block = default_block(16)
    sizes = [sparse_bytes(k, 3000, 16, format, block) for k in (keep, keep + 1)]
    assert sizes[0] <= spec.budget(ratio)
    assert keep == 3000 * 16 or spec.budget(ratio) < sizes[1]


def test_halves_keep_more_entries_for_the_same_bytes():
    spec = zipf_spec()
    assert plan_entries(spec, 10, "float16") > 1.6 * plan_entries(spec, 10)


@pytest.mark.parametrize("chunk", [2000, 2**20])
@pytest.mark.parametrize("dim", [1, 5, 64, 300])
def test_a_table_cut_in_parts_is_cut_as_a_whole(dim, chunk, monkeypatch):
    """With many equal entries, zeros among them, and rows that count for more."""
    monkeypatch.setattr(magnitude, "NUMBERS_CUT", chunk)
    monkeypatch.setattr(sparse, "NUMBERS_JOINED", chunk)
    rng = np.random.default_rng(dim)
    weight = rng.normal(size=(203, dim)).astype(np.float32).round(1)
    counts = rng.integers(0, 4, 203)
    for keep in (0, 1, 77, weight.size // 2, weight.size):
        for reads in (False, True):
            asked = {"counts": counts, "by_reads": True} if reads else {}
            layout = compress(weight, "magnitude", keep=min(keep, weight.size), **asked)
            sizes = np.abs(weight)
            if reads:
                sizes *= np.sqrt(counts / counts.max()).astype(np.float32)[:, None]
            kept = keep_largest(torch.from_numpy(sizes), keep).numpy()
            found = decode_layout(layout)
            np.testing.assert_array_equal(found, np.where(kept, weight, 0))
            offsets = SparseLayout.from_dense(found).offsets
            np.testing.assert_array_equal(layout.offsets, offsets)


def test_cutting_a_table_takes_little_more_than_the_table():
    weight = np.random.default_rng(0).normal(size=(150_000, 16)).astype(np.float32)
    compress(weight[:100], "magnitude")
    tracemalloc.start()
    layout = compress(weight, "magnitude")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    passing = 64 * magnitude.NUMBERS_CUT  # of one part, whatever the table's size
    assert peak < 3 * layout.nbytes + passing


def test_what_is_read_is_nearest_where_rows_are_weighted_by_reads():
    """min sum of reads * (w - w')**2 over all W' with k entries."""
    weight = np.random.default_rng(3).normal(size=(3, 2)).astype(np.float32)
    counts = np.array([1, 50, 7])
    layout = compress(weight, "magnitude", keep=3, by_reads=True, counts=counts)
    lost = counts[:, None] * np.square(decode_layout(layout) - weight)
    each = np.sort((counts[:, None] * np.square(weight)).ravel())
    assert lost.sum() == pytest.approx(each[:3].sum(), rel=1e-5)
    with pytest.raises(ValueError, match="by_reads needs the counts"):
        compress(weight, "magnitude", keep=3, by_reads=True)


@pytest.mark.parametrize("by_reads", [False, True])
def test_magnitude_trains_the_largest_entries_again(by_reads, task):
    """The mask is the search's; its entries begin as they were left, or drawn."""
    method, budget = get_method("magnitude"), task.spec.budget(5)
    for rewind in (False, True):
        asked = method.plan(task.spec, 5, rewind=rewind, by_reads=by_reads)
        found = task.search(method, asked)
        assert found.mask.sum() == plan_entries(task.spec, 5) == asked.keep
        table = method.build(task.spec, found, 1)
        rows = table(torch.arange(task.spec.num_embeddings)).detach().numpy()
        begin = draw_original(task.spec, 1).numpy() if rewind else found.learnt
        np.testing.assert_array_equal(rows, np.where(found.mask, begin, 0))
        assert (found.learnt is None) == rewind
        assert table.parameter_groups(0.1)[0]["weight_decay"] == 0
        layout = table.eval().freeze()
        assert layout.nbytes <= budget
        np.testing.assert_array_equal(decode_layout(layout), rows)


def test_magnitude_without_retraining_is_a_cut_at_the_end(task):
    method = get_method("magnitude")
    asked = method.plan(task.spec, 5, retrain=False, decay=1e-4)
    assert task.search(method, asked) is asked
    learnt = task.learn(method, asked)
    weight = learnt.table.weight.detach().float().numpy()
    cut = compress(weight, "magnitude", keep=asked.keep)
    np.testing.assert_array_equal(decode_layout(cut), decode_layout(learnt.layout))


def test_decay_makes_the_rows_of_rare_ids_small(task):
    method = get_method("magnitude")
    seldom = np.argsort(task.spec.train_counts, kind="stable")[:100]
    sizes = []
    for decay in (0.0, 1e-2):
        asked = method.plan(task.spec, 2, retrain=False, decay=decay)
        sizes.append(task.learn(method, asked).table.weight.detach()[seldom].abs())
    assert sizes[1].mean() < 0.95 * sizes[0].mean()


def test_entries_that_are_nan_are_not_chosen_from():
    scores = torch.tensor([[1.0, float("nan")], [2.0, 3.0]])
    for keep in (0, 2, 4):
        with pytest.raises(ValueError, match="NaN"):
            keep_largest(scores, keep)
    with pytest.raises(ValueError, match="NaN"):
        cut_to_budget(np.full(2, 4), np.array([1.0, np.nan]), 100, 4)


@pytest.mark.parametrize("key", ["pep", "amtl", "optfs", "magnitude", "sseds"])
def test_a_search_that_found_nan_is_a_value_error(key, task):
    method = get_method(key)
    asked = method.plan(task.spec, 5)
    table = method.load().searching(task.spec, asked, 0)
    for parameter in table.parameters():
        parameter.data.fill_(np.nan)
    network = task.build_network(table)
    objective = task.build_objective(TRIAL.settings)
    judge = Jury(network, objective, TRIAL.settings, seed=1)
    with pytest.raises(ValueError, match=r"NaN|finite"):
        method.load().settle(table, judge, task.spec, asked)


@pytest.mark.parametrize("keep", [-1, 1.5, 33])
def test_a_wrong_number_to_keep_is_a_value_error(keep):
    with pytest.raises(ValueError, match="keep"):
        compress(np.ones((4, 8)), "magnitude", keep=keep)


# -- DeepLight ---------------------------------------------------------------------


def test_the_schedule_is_the_published_formula():
    """S_t = S (1 - 0.99**(t / 100)): slow, 68,732 steps to come within 0.001."""
    for step in (0, 100, 1000, 3000):
        formula = 0.8 * (1 - 0.99 ** (step / 100))
        assert scheduled_sparsity(step, 0.8) == pytest.approx(formula, abs=1e-12)
    assert scheduled_sparsity(68_731, 1.0) < 0.999 <= scheduled_sparsity(68_732, 1.0)
    constant = rescale_constant(500)
    assert scheduled_sparsity(500, 0.8, constant) == pytest.approx(0.8 * 0.999)


def test_the_table_is_as_sparse_as_the_schedule_says():
    spec = zipf_spec()
    table = DeepLight.make(spec, keep=4800, every=1, warm=0.1, end=0.6)
    total = 3000 * 16
    for progress in (0.0, 0.1, 0.2, 0.35, 0.59, 0.6, 1.0):
        table.advance(progress)
        table.after_step(a_step(progress))
        target = 0.9 * (
            1
            if progress >= 0.6
            else 1 - 0.001 ** (max(progress - 0.1, 0) / 0.5)  # the rescaled formula
        )
        zeros = int((table.weight == 0).sum())
        assert zeros / total == pytest.approx(target, abs=1e-4)
    assert total - zeros == 4800 == len(table.freeze().values)


def test_the_published_time_constant_leaves_most_to_the_last_cut():
    table = DeepLight.make(zipf_spec(), keep=4800, every=1, constant=100.0)
    table.begin(Regime(steps=1000))
    for progress in (0.3, 1.0):
        table.advance(progress)
        table.after_step(a_step(progress))
        zeros = int((table.weight == 0).sum())
        steps = 1000 * (progress - 0.1)
        wanted = scheduled_sparsity(steps, 0.9) * 3000 * 16
        assert zeros == pytest.approx(wanted, abs=2) and zeros < 0.1 * 3000 * 16
    assert len(table.freeze().values) == 4800


def test_a_zeroed_entry_may_grow_back():
    table = DeepLight.make(zipf_spec(), keep=100, every=1)
    table.advance(1.0)
    table.after_step(a_step(1.0))
    dead = int((table.weight.abs().sum(1) == 0).nonzero()[0])
    table.train()(torch.tensor([dead])).sum().backward()
    assert (table.weight.grad[dead] == 1).all()


def test_pruning_waits_its_steps():
    table = DeepLight.make(zipf_spec(), keep=100, every=3)
    table.advance(1.0)
    zeros = []
    for _ in range(3):
        table.after_step(a_step(1.0))
        zeros.append(int((table.weight == 0).sum()))
    assert zeros[:2] == [0, 0] and zeros[2] == 3000 * 16 - 100


def test_evaluation_reads_what_would_be_deployed_now():
    """Also after each kind of change of the weight."""
    table, ids = DeepLight.make(zipf_spec(90, 4), keep=50), torch.arange(90)
    other = DeepLight.make(zipf_spec(90, 4), keep=50, seed=3)

    def train():
        table.train()(ids).square().sum().backward()
        torch.optim.Adam(table.parameters(), lr=0.1, fused=True).step()

    changes = [
        lambda: None,
        train,
        lambda: table.load_state_dict(other.state_dict()),
        lambda: table.prune(0.9),
        lambda: table.double(),
    ]
    for change in changes:
        change()
        read = table.eval()(ids)
        np.testing.assert_array_equal(read.detach(), decode_layout(table.freeze()))
        assert int((read != 0).sum()) <= 50


def test_the_mask_is_found_once_for_a_weight(monkeypatch):
    table, calls = DeepLight.make(zipf_spec(90, 4), keep=50).eval(), []
    own = table.final_mask
    monkeypatch.setattr(table, "final_mask", lambda: (calls.append(1), own())[1])
    for _ in range(3):
        table(torch.arange(5))
    assert len(calls) == 1


def test_pruning_that_ends_before_it_begins_is_a_value_error():
    with pytest.raises(ValueError, match=r"warm must be below end, got 0.5 and 0.5"):
        DeepLight.make(zipf_spec(90, 4), keep=50, warm=0.5, end=0.5)


# -- PEP -----------------------------------------------------------------------------


def test_the_soft_threshold_is_the_prox_of_the_absolute_value():
    """argmin_x (x - v)**2 / 2 + t |x|, on a fine grid."""
    grid = np.linspace(-4, 4, 80_001)
    for v in (-2.5, -0.3, 0.0, 0.7, 3.1):
        for t in (0.0, 0.5, 1.2):
            best = grid[np.argmin((grid - v) ** 2 / 2 + t * abs(grid))]
            found = soft_threshold(torch.tensor(v), torch.tensor(t)).item()
            assert found == pytest.approx(best, abs=1e-4)


def test_the_gradient_of_the_threshold():
    """d v' / d s = -sign(v) g'(s) where v survives, 0 elsewhere."""
    v = torch.tensor([-2.0, 0.1, 3.0], dtype=torch.float64)
    s = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    slope = torch.sigmoid(s).item() * (1 - torch.sigmoid(s).item())
    for k, wanted in enumerate((slope, 0.0, -slope)):
        kept = soft_threshold(v, torch.sigmoid(s))[k]
        (found,) = torch.autograd.grad(kept, [s])
        assert found.item() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_four_granularities(granularity):
    options = PEPOptions(granularity=granularity, budget=300)
    table = ThresholdTable(zipf_spec(90, 4), options, 0)
    shapes = {
        "global": (1, 1), "dimension": (1, 4), "feature": (90, 1),
        "feature_dimension": (90, 4),
    }  # fmt: skip
    assert tuple(table.s.shape) == shapes[granularity]
    left = []
    for s in (-15.0, -3.0, -2.0, 0.0, 3.0):
        table.s.data.fill_(s)
        ids = torch.tensor([[3, 0], [89, 3]])
        rows = soft_threshold(table.weight[ids], torch.sigmoid(torch.tensor(s)))
        assert torch.allclose(table(ids), rows)
        left.append(int((table.margins() > 0).sum()))
    assert left == sorted(left, reverse=True)  # sparsity does not fall with s


def test_a_threshold_that_starts_at_minus_150_cannot_learn():
    """sigmoid(-150) is 7e-66, which float32 does not hold: no gradient at all."""
    for start, learns in ((-150.0, False), (-15.0, True)):
        s = torch.tensor(start, requires_grad=True)
        soft_threshold(torch.tensor([1.0, -2.0]), torch.sigmoid(s))[0].backward()
        assert bool(s.grad != 0) == learns


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_mask_is_exactly_as_large_as_the_budget_pays_for(granularity, task):
    method = get_method("pep")
    asked = method.plan(task.spec, 5, granularity=granularity)
    found = task.search(method, asked)
    assert found.mask.sum() == plan_entries(task.spec, 5)


def test_the_search_ends_at_the_budget(task, monkeypatch):
    method = get_method("pep")
    asked = method.plan(task.spec, 5, travel=100.0)
    left, searching = [], PEP.searching

    def watched(*given):
        table = searching(*given)
        own = table.after_step

        def after_step(step):
            left.append(int((table.margins() > 0).sum()))
            own(step)

        table.after_step = after_step
        return table

    monkeypatch.setattr(PEP, "searching", watched)
    task.search(method, asked)
    keep = plan_entries(task.spec, 5)
    assert 0 < len(left) < 8  # of 16 steps
    assert left[-1] <= keep < min(left[:-1])


# -- SSEDS ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_saliency_identity(count, task):
    """dL / d gate[f, j] = sum over the batch of dL / d e[f, j] * e[f, j]."""
    table = GatedColumns(task.spec, SSEDSOptions(), 1)
    network = task.build_network(table).double()
    objective = task.build_objective(TRIAL.settings)
    judge = Jury(network, objective, TRIAL.settings, seed=1)
    found = column_saliencies(table, judge, count)
    assert not table.gated and found.shape == (4, 8)
    assert found.sum() == pytest.approx(1) and (found >= 0).all()
    drawn = objective.batches(np.random.default_rng([1, 6]))
    batches = [batch for batch, _ in zip(drawn, range(count))]
    assert len(batches) == count

    def mean_loss():
        return sum(objective.loss(network, batch) for batch in batches) / count

    held, read = [], table.embed
    table.embed = lambda ids: (held.append(read(ids)), held[-1])[1]
    slopes = torch.autograd.grad(mean_loss(), held)
    terms = [(slope * rows).sum(0) for slope, rows in zip(slopes, held)]
    identity = sum(terms).abs().detach().numpy()
    np.testing.assert_allclose(found, identity / identity.sum(), rtol=1e-9)
    # and finite differences of one gate
    table.gated, sizes = True, []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            table.gates[2, 3] = 1 + step
            sizes.append(float(mean_loss()))
    quotient = abs(sizes[0] - sizes[1]) / 2e-5
    assert quotient == pytest.approx(identity[2, 3], rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ratio", [2, 5, 20])
def test_widths_fit_the_budget(seed, ratio):
    rng = np.random.default_rng(seed)
    spec = TableSpec(4000, 16, [0, 3000, 3900, 3990, 4000], np.zeros(4000, np.int64))
    widths = widths_within(rng.random((4, 16)), spec, spec.budget(ratio))
    costs = field_costs(spec, tuple(range(17)))
    spent = costs[np.arange(4), widths].sum()
    assert spent <= spec.budget(ratio)
    for f in range(4):  # no field has room for a column more
        if widths[f] < 16:
            more = costs[f, widths[f] + 1] - costs[f, widths[f]]
            assert spent + more > spec.budget(ratio)


@pytest.mark.parametrize("ratio", [2, 5, 10])
def test_no_field_is_left_without_columns_while_the_budget_admits_one_of_each(ratio):
    starts = [0, 3000, 3900, 3990, 4000]
    spec = TableSpec(4000, 16, starts, np.zeros(4000, np.int64))
    saliency = np.full((4, 16), 1e-9)
    saliency[2] = 1.0  # small, and dearer than all others together
    assert widths_within(saliency, spec, spec.budget(ratio)).min() >= 1
    # Of less than one number for each row, the largest field has none.
    assert widths_within(saliency, spec, spec.budget(30))[0] == 0


@pytest.mark.parametrize("ratio", [4, 8])
@pytest.mark.parametrize("floor", [0.0, 0.5, 1.0])
def test_the_floor_keeps_the_best_columns_of_every_field(ratio, floor):
    """Of a ranking whose users alone are salient."""
    spec = TableSpec(5000, 64, [0, 2000, 5000], np.zeros(5000, np.int64))
    saliency = np.ones((2, 64))
    saliency[1] = 1e-9
    widths = widths_within(saliency, spec, spec.budget(ratio), floor)
    least = floor_within(spec, floor, spec.budget(ratio))
    assert least == {0.0: 0, 0.5: 32 // ratio, 1.0: 64 // ratio - 1}[floor]
    assert widths.min() == least and widths[0] > least
    assert field_costs(spec, tuple(widths.tolist())).trace() <= spec.budget(ratio)


@pytest.mark.parametrize(
    ("saliency", "budget", "name"),
    [
        (np.ones((3, 16)), 10_000, "saliency"),
        (np.ones((2, 8)), 10_000, "saliency"),
        (np.where(np.eye(2, 16) > 0, np.nan, 1), 10_000, "saliency"),
        (np.ones((2, 16)), 1, "budget"),
    ],
)
def test_wrong_saliencies_and_budgets_are_value_errors(saliency, budget, name):
    with pytest.raises(ValueError, match=name):
        widths_within(saliency, zipf_spec(), budget)


# -- AMTL ----------------------------------------------------------------------------


def test_masks_are_prefixes_and_the_gradient_is_the_soft_one():
    table = TwinMasks(zipf_spec(), AMTLOptions(hidden=8, budget=60_000), 0)
    table.last.data = torch.randn(
        table.last.shape, generator=torch.Generator().manual_seed(0)
    )
    table.advance(1.0)
    masks = table.masks()
    hard = masks.detach().round()
    assert torch.allclose(masks.detach(), hard, atol=1e-6)
    assert (hard[:, 1:] <= hard[:, :-1]).all() and len(hard.sum(1).unique()) > 1
    weight = torch.randn(hard.shape, generator=torch.Generator().manual_seed(1))
    soft = prefix_of((table.logits() / table.temperature).softmax(-1))
    wanted = torch.autograd.grad((soft * weight).sum(), [table.last, table.first])
    found = torch.autograd.grad((masks * weight).sum(), [table.last, table.first])
    for ours, exact in zip(found, wanted):
        torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("ratio", [2, 5, 20])
def test_the_search_reads_what_it_will_keep(ratio):
    """At the end the masks let through what the budget pays for, up to one level."""
    spec = zipf_spec()
    options = get_method("amtl").plan(spec, ratio)
    table = TwinMasks(spec, options, 0)
    table.last.data = torch.randn(
        table.last.shape, generator=torch.Generator().manual_seed(0)
    )
    read = []
    for progress in (0.0, 0.25, 0.5, 0.75, 1.0):
        table.advance(progress)
        lengths = table.masks().detach().round().sum(1)[table.level]
        read.append(int(lengths.sum()))
    assert read[0] == read[1] == 3000 * 16 and read[1] > read[2] > read[3] == read[4]
    kept = AMTL.settle(table, None, spec, options)["lengths"]
    fewest = lengths.numpy().astype(int)
    assert kept.sum() == count_numbers(spec, options.budget) >= read[-1]
    assert ((kept == fewest) | (kept == fewest + 1)).all()
    assert len(np.unique(table.level[kept > fewest])) <= 1


def test_prefix_of_is_a_product_with_a_triangle():
    choice = torch.rand(6, 5)
    lengths, entries = torch.arange(5)[:, None], torch.arange(4)
    triangle = (entries < lengths).float()  # length c keeps the entries below c
    assert torch.allclose(prefix_of(choice), choice @ triangle)


@pytest.mark.parametrize("seed", range(8))
def test_lengths_spend_the_numbers_and_no_more(seed):
    rng = np.random.default_rng(seed)
    spec = zipf_spec(500, 6, seed)
    scores = np.log(rng.dirichlet(np.ones(7), size=500))
    for numbers in (0, 1, 77, 1500, 2999, 3000):
        lengths = keep_likeliest(scores, spec, numbers)
        assert lengths.min() >= 0 and lengths.max() <= 6
        assert lengths.sum() == numbers


def test_ids_of_one_level_share_their_scores():
    rng = np.random.default_rng(0)
    spec = zipf_spec(500, 6)
    level = np.unique(spec.train_counts, return_inverse=True)[1]
    scores = np.log(rng.dirichlet(np.ones(7), size=level.max() + 1))
    for numbers in (0, 1, 77, 1500, 2999, 3000):
        np.testing.assert_array_equal(
            keep_likeliest(scores, spec, numbers, level),
            keep_likeliest(scores[level], spec, numbers),
        )


@pytest.mark.parametrize(
    ("scores", "numbers", "name"),
    [
        (np.zeros((500, 7)), -1, "numbers"),
        (np.zeros((499, 7)), 9, "scores"),
        (np.zeros((500, 6)), 9, "scores"),
        (np.full((500, 7), -np.inf), 9, "scores"),
    ],
)
def test_wrong_scores_and_numbers_are_value_errors(scores, numbers, name):
    with pytest.raises(ValueError, match=name):
        keep_likeliest(scores, zipf_spec(500, 6), numbers)


def test_lengths_keep_the_largest_soft_masks():
    """Against a sort of all soft masks of a table."""
    rng = np.random.default_rng(0)
    spec = TableSpec(40, 5, [0, 40], np.arange(40))
    scores = np.log(rng.dirichlet(np.ones(6), size=40))
    soft = prefix_of(torch.from_numpy(scores).exp()).numpy()
    for numbers in (1, 20, 77, 199):
        largest = np.sort(soft, axis=None)[-numbers:]
        kept = np.arange(5) < keep_likeliest(scores, spec, numbers)[:, None]
        np.testing.assert_array_equal(np.sort(soft[kept]), largest)


@pytest.mark.parametrize("numbers", [500, 1250, 3000, 4000])
def test_masks_that_have_learnt_nothing_drop_no_row(numbers):
    """Of the most probable lengths that fit, most would be 0 or all."""
    spec = zipf_spec(500, 8)
    table = TwinMasks(spec, AMTLOptions(budget=9999), seed=0)
    scores = table.logits().detach().double().numpy()
    lengths = keep_likeliest(scores, spec, numbers, table.level.numpy())
    assert lengths.sum() == numbers and np.ptp(lengths) <= 1


def test_frequent_ids_get_longer_rows():
    method = get_method("amtl")
    data = make_clicks(field_sizes=(900, 400, 100, 10), rows=(40_000, 1000, 1000))
    settings = dataclasses.replace(TRIAL.settings, table_learning_rate=0.02)
    task = make_task(data, dataclasses.replace(TRIAL, settings=settings), seed=1)
    asked = method.plan(task.spec, 4, twin_rate=0.01, search_epochs=2)
    counts, lengths = task.spec.train_counts, task.search(method, asked).lengths
    often = np.argsort(-counts, kind="stable")[:100]
    assert lengths[often].mean() > 1.5 * lengths.mean()


# -- OptFS ---------------------------------------------------------------------------


def test_gates_harden_to_a_step():
    """sigmoid(tau w) / sigmoid(w0) -> 1[w > 0] / sigmoid(w0)."""
    w = torch.tensor([-1.0, -0.01, 0.01, 1.0], dtype=torch.float64)
    step = open_gates(w, None, 0.5)
    scale = 1 / (1 / (1 + np.exp(-0.5)))
    assert step.tolist() == pytest.approx([0, 0, scale, scale])
    gaps = [abs(open_gates(w, tau, 0.5) - step).max() for tau in (1.0, 1e2, 1e4)]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-12
    assert open_gates(w.new_tensor([0.5]), 1.0, 0.5).item() == pytest.approx(1)


def test_the_ticket_reads_rows_or_zeros():
    spec = zipf_spec(50, 4)
    table = GatedRows(spec, OptFSOptions(start=0.5, hardness=100), 3)
    assert torch.allclose(table.train()(torch.arange(50)), table.weight)
    table.gates.data[::2] = -0.2
    rows = table.eval()(torch.arange(50))
    assert (rows[::2] == 0).all()
    scale = torch.sigmoid(torch.tensor(0.5))
    assert torch.allclose(rows[1::2], table.weight[1::2] / scale)
    for progress, tau in ((0, 1.0), (0.5, 10.0), (1, 100.0)):
        table.advance(progress)
        assert table.tau == pytest.approx(tau)


@pytest.mark.parametrize("epoch", [0, 1, 2, 9])
def test_rows_begin_again_as_they_stood_after_an_epoch(epoch, task, monkeypatch):
    """Behind an open gate; an epoch that never came is the last."""
    method, seen, searching = get_method("optfs"), [], OptFS.searching
    asked = method.plan(task.spec, 5, rewind_epoch=epoch, search_epochs=3)

    def watched(*given):
        table = searching(*given)
        seen.append(table.weight.detach().clone())
        own = table.after_step

        def after_step(step):
            own(step)
            seen.append(table.weight.detach().clone())

        table.after_step = after_step
        return table

    monkeypatch.setattr(OptFS, "searching", watched)
    found = task.search(method, asked)
    steps = (len(seen) - 1) // 3
    wanted = seen[min(epoch, 3) * steps].numpy() / torch.sigmoid(torch.tensor(0.5))
    np.testing.assert_allclose(found.kept, wanted, rtol=1e-5)
    monkeypatch.undo()
    rows = decode_layout(method.build(task.spec, found, 1).freeze())
    kept = found.lengths == 8
    np.testing.assert_array_equal(rows[kept], found.kept[kept])
    asked = method.plan(task.spec, 5, rewind=False, search_epochs=1)
    assert task.search(method, asked).kept is None


def test_rows_to_begin_with_of_another_shape_are_a_value_error():
    spec, lengths = zipf_spec(50, 4), np.full(50, 2)
    for kept in (np.zeros((50, 3)), np.zeros((50, 4), np.int64)):
        with pytest.raises(ValueError, match="rows to begin with must be floats"):
            PrefixTicket(spec, lengths, kept=kept)


def test_rows_without_a_gate_that_opens_are_exactly_zero(task):
    method = get_method("optfs")
    found = task.search(method, method.plan(task.spec, 5))
    assert set(np.unique(found.lengths)) == {0, 8}
    rows = decode_layout(method.build(task.spec, found, 1).freeze())
    np.testing.assert_array_equal((rows != 0).all(1), found.lengths == 8)
    np.testing.assert_array_equal((rows == 0).all(1), found.lengths == 0)


# -- tickets -------------------------------------------------------------------------


def test_a_ticket_is_the_original_draw_under_its_mask():
    spec = zipf_spec(200, 8)
    rng = np.random.default_rng(0)
    mask, lengths = rng.random((200, 8)) < 0.3, rng.integers(0, 9, size=200)
    prefix = np.arange(8) < lengths[:, None]
    original = draw_original(spec, 5).numpy()
    ids = torch.arange(200)
    for table, kept in (
        (TicketEmbedding(spec, mask, seed=5), mask),
        (PrefixTicket(spec, lengths, seed=5), prefix),
    ):
        rows = table(ids).detach().numpy()
        np.testing.assert_array_equal(rows, np.where(kept, original, 0))
    for table in (
        TicketEmbedding(spec, mask, rewind=False, seed=5),
        PrefixTicket(spec, lengths, rewind=False, seed=5),
    ):
        same = table(ids).detach().numpy() == original
        assert same.mean() < 0.01


def test_only_the_mask_learns():
    spec = zipf_spec(200, 8)
    mask = np.random.default_rng(0).random((200, 8)) < 0.3
    table = TicketEmbedding(spec, mask)
    table(torch.arange(200)).square().sum().backward()
    np.testing.assert_array_equal((table.weight.grad != 0).numpy(), mask)


@pytest.mark.parametrize("mask", [np.ones((200, 8)), np.ones((8, 200), bool)])
def test_a_wrong_mask_is_a_value_error(mask):
    with pytest.raises(ValueError, match="mask"):
        TicketEmbedding(zipf_spec(200, 8), mask)


@pytest.mark.parametrize("key", ["deeplight", "magnitude", "pep"])
def test_entries_in_halves_are_read_as_they_are_stored(key):
    """In use, that is, which decides on the epoch that is kept."""
    spec, method = zipf_spec(), get_method(key)
    asked = method.plan(spec, 8, format="float16")
    if key == "pep":
        asked = asked.replace(mask=np.ones((3000, 16), bool))
    table = method.build(spec, asked).eval()
    layout = table.freeze()
    assert "float16" in {str(array.dtype) for array in layout.arrays().values()}
    rows = table(torch.arange(3000)).detach().numpy()
    np.testing.assert_array_equal(rows, layout.lookup(np.arange(3000)))
