"""Binarisation: what one bit per weight must obey, and that each method learns."""

import dataclasses
import math
import tracemalloc
from functools import cache

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.preprocessing import KBinsDiscretizer
from torch.nn.functional import softplus

import survey_code
from survey_code import TableSpec, compress
from survey_code.baselines import FullEmbedding
from survey_code.catalog import get_method
from survey_code.data import load
from survey_code.data.synthetic import make_clicks
from survey_code.data.tasks import InteractionData
from survey_code.embedding import Fitted, History, decode_layout
from survey_code.lab import Trial, default_trial
from survey_code.lab.task import make_task
from survey_code.layouts import BinaryLayout
from survey_code.low_precision.binarization import (
    BCCF,
    CIGAR,
    DCF,
    BiGeaR,
    HashGNN,
    ScaledSign,
    bccf,
    decorrelate,
    descend_bit,
    draw_unobserved,
    fit_scales,
    learn_rotation,
    rerank,
    sign_through,
    split_at_medians,
    split_magnitudes,
    take_signs,
)
from survey_code.metrics import measure_ranking
from survey_code.order import largest_first
from survey_code.ranking import draw_ranks
from survey_code.training import TrainingSettings

pytestmark = pytest.mark.usefixtures("one_thread")

KEYS = ("bccf", "dcf", "cigar", "hashgnn", "bigear")


def normal(rows, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def signs(values):
    return np.where(values >= 0, 1.0, -1.0)


@pytest.fixture(scope="module")
def pairs():
    """Who likes what follows from the angle between directions in space.

    All lengths are the same, so that no item is much more popular than another.
    """
    rng = np.random.default_rng(0)
    users, items = 300, 200
    sides = rng.normal(size=(users, 3)), rng.normal(size=(items, 3))
    sides = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides]
    taste = 6 * sides[0] @ sides[1].T
    met = np.argwhere(taste + rng.normal(size=taste.shape) > 4)
    rng.shuffle(met)
    met[:, 1] += users
    cut = [len(met) // 5, len(met) // 4]
    test, valid, train = np.split(met, cut)
    return InteractionData("pairs", users, items, train, valid, test)


TRIAL = Trial(
    "mf", 16, TrainingSettings(epochs=10, batch_size=1024, learning_rate=0.04,
                               evaluate_every=5, patience=2, decay=1.0),
    {"normalize": True}, {"loss": "softmax", "negatives": 64}, init_std=0.1,
)  # fmt: skip


@pytest.fixture(scope="module")
def ranked(pairs):
    """What `run` gives for a method on these pairs; run once."""

    @cache
    def run_method(key):
        options = {"listed": 20} if key == "bigear" else {}
        return survey_code.run(key, pairs, 4, trial=TRIAL, seed=1, **options)

    return run_method


@cache
def planted():
    """The book's rankings, all pairs, for as many steps as `run` trains."""
    world = load("synthetic-interactions")
    task = make_task(world, default_trial(world), 1)
    task.train(FullEmbedding(task.spec, seed=1))
    return task.for_testing(task.histories)


def judge_codes(task, key, **options):
    """Test Recall@20 of a method on a task, without a hold-out first."""
    method = get_method(key)
    learnt = task.learn(method, method.plan(task.spec, 25, **options))
    return task.test(learnt.fitted.network, learnt.layout)["recall@20"]


def small_spec(pairs, dim=6, init_std=0.01):
    return pairs.spec(dim, init_std)


def dense_graph(data):
    """D^-1/2 A D^-1/2, entry by entry."""
    adjacency = np.zeros((data.num_embeddings, data.num_embeddings))
    adjacency[data.train[:, 0], data.train[:, 1]] = 1
    adjacency += adjacency.T
    degrees = np.maximum(adjacency.sum(0), 1)
    return adjacency / np.sqrt(degrees[:, None] * degrees)


# -- scales --------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 7, 64])
def test_best_row_scale_is_the_mean_magnitude(dim):
    """a = mean|w|, and |w - a sign(w)|^2 = |w|^2 - d a^2."""
    table = normal(50, dim).astype(np.float64)
    codes = signs(table)
    scale = fit_scales(table, codes, "row").astype(np.float64)
    np.testing.assert_allclose(scale[:, 0], np.abs(table).mean(1), rtol=1e-6)
    fitted = [np.linalg.lstsq(c[:, None], w)[0][0] for c, w in zip(codes, table)]
    np.testing.assert_allclose(scale[:, 0], fitted, rtol=1e-6)
    residual = np.square(table - scale * codes).sum(1)
    wanted = np.square(table).sum(1) - dim * scale[:, 0] ** 2
    np.testing.assert_allclose(residual, wanted, atol=1e-6 * dim)


def test_best_table_scale_is_least_squares_for_any_codes():
    table, codes = normal(40, 9), signs(normal(40, 9, 1) + normal(40, 9))
    scale = fit_scales(table, codes, "table")
    wanted = np.linalg.lstsq(codes.reshape(-1, 1), table.ravel())[0]
    np.testing.assert_allclose(scale.ravel(), wanted, rtol=1e-5)
    assert scale.shape == (1, 1) and fit_scales(table, codes, "none") is None


@pytest.mark.parametrize("dim", [4, 16, 64])
def test_gaussian_rows_lose_1_minus_2_over_pi_times_1_minus_1_over_d(dim):
    """E|w - a b|^2 / E|w|^2 = (1 - 2 / pi)(1 - 1 / d)."""
    rows = 200_000 // dim
    table = normal(rows, dim)
    decoded = fit_scales(table, signs(table), "row") * signs(table)
    error = np.square(decoded - table).sum() / np.square(table).sum()
    assert error == pytest.approx((1 - 2 / np.pi) * (1 - 1 / dim), rel=0.015)


# -- BCCF, PPH, ITQ ------------------------------------------------------------


@pytest.mark.parametrize("rows", [10, 11, 101])
def test_median_threshold_balances_every_bit_of_every_field(rows):
    """|share of ones - 1/2| <= 1 / n, in each field on its own."""
    table = np.concatenate([normal(rows, 6) + 5, normal(3 * rows, 6, 1) - 7])
    starts = np.array([0, rows, 4 * rows])
    layout = compress(table, "bccf", field_starts=starts)
    ones = layout.lookup(np.arange(4 * rows)) > 0
    for first, stop in ((0, rows), (rows, 4 * rows)):
        share = ones[first:stop].mean(axis=0)
        assert (np.abs(share - 0.5) <= 0.5 / (stop - first) + 1e-12).all()
    # Signs alone would give every row of a field the same code.
    assert (np.abs((table[:rows] >= 0).mean(0) - 0.5) > 0.3).all()


def test_median_codes_are_scikit_learns_two_quantile_bins():
    table = normal(100, 8)
    bins = KBinsDiscretizer(
        2, encode="ordinal", strategy="quantile", quantile_method="linear"
    )
    found = compress(table, "bccf", scale="none").lookup(np.arange(100))
    np.testing.assert_array_equal(found, 2 * bins.fit_transform(table) - 1)


@pytest.mark.parametrize("rows", [1, 2, 9, 10, 101])
@pytest.mark.parametrize("kind", ["whole numbers", "constant", "one zero", "huge"])
def test_bits_are_balanced_also_where_ids_tie(rows, kind):
    """Half of each field is 1, and none is 1 that is below one that is 0."""
    table = np.round(normal(2 * rows, 6))
    if kind == "constant":
        table[:] = -0.0
    if kind == "one zero":
        table = np.where(normal(2 * rows, 6, 1) > 0, 0, table)
    if kind == "huge":
        table = np.where(table > 0, 3.4e38, 3.3e38).astype(np.float32)
    upper = split_at_medians(table, np.array([0, rows, 2 * rows]))
    for part in (slice(0, rows), slice(rows, 2 * rows)):
        assert (upper[part].sum(axis=0) == (rows + 1) // 2).all()
        ones = np.where(upper[part], table[part], np.inf).min(axis=0)
        zeros = np.where(upper[part], -np.inf, table[part]).max(axis=0)
        assert (ones >= zeros).all()
    again = split_at_medians(table, np.array([0, rows, 2 * rows]))
    np.testing.assert_array_equal(upper, again)


def test_ties_at_the_median_favour_no_id_and_no_column():
    upper = split_at_medians(np.zeros((400, 64), np.float32), np.array([0, 400]))
    share = upper.mean(axis=1)
    assert 0.2 < share.min() and share.max() < 0.8
    assert abs(share[:200].mean() - share[200:].mean()) < 0.05
    assert len(np.unique(upper, axis=1).T) == 64


@pytest.mark.parametrize("rule", ["median", "sign", "pph", "itq"])
def test_cutting_a_table_takes_less_memory_than_the_table(rule, monkeypatch):
    monkeypatch.setattr(bccf, "NUMBERS_SIGNED", 2**14)
    monkeypatch.setattr(bccf.learn_rotation, "__defaults__", (3,))
    table = normal(40_000, 32)
    tracemalloc.start()
    compress(table, "bccf", rule=rule)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 0.9 * table.nbytes


def test_chunks_change_no_code(monkeypatch):
    table = normal(90, 6)
    rules = ("median", "sign", "pph", "itq")
    whole = [decode_layout(compress(table, "bccf", rule=rule)) for rule in rules]
    monkeypatch.setattr(bccf, "NUMBERS_SIGNED", 50)
    for rule, wanted in zip(rules, whole):
        found = decode_layout(compress(table, "bccf", rule=rule))
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_the_balance_penalty_is_the_squared_length_of_each_fields_mean(pairs):
    spec = small_spec(pairs, init_std=1.0)
    table = BCCF.prepare(spec, get_method("bccf").plan(spec, 20), 3)
    weight = table.weight.detach().numpy()
    means = weight[:300].mean(0), weight[300:].mean(0)
    wanted = 10 * sum(np.square(mean).sum() for mean in means)
    assert table.penalty().item() == pytest.approx(wanted, rel=1e-4)
    plain = survey_code.FullEmbedding(spec, seed=3)
    assert torch.equal(table.weight, plain.weight)


@pytest.mark.parametrize(
    ("options", "balance"),
    [({}, 10), ({"balance": 0.5}, 0.5), ({"balance": 0}, None),
     ({"rule": "sign"}, None), ({"rule": "pph"}, None), ({"rule": "itq"}, None),
     ({"rule": "sign", "balance": 2}, 2)],
    ids=repr,
)  # fmt: skip
def test_the_table_is_balanced_that_is_cut_at_medians(options, balance, pairs):
    spec = small_spec(pairs)
    table = BCCF.prepare(spec, get_method("bccf").plan(spec, 8, **options), 0)
    assert (None if table is None else table.balance) == balance


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rowwise_adagrad"])
def test_the_penalty_balances_the_table(optimizer, pairs):
    """Also rows that the optimiser's batches do not read."""
    settings = TRIAL.settings.replace(
        optimizer=optimizer, epochs=4, patience=0, table_learning_rate=0.1
    )
    task = make_task(pairs, dataclasses.replace(TRIAL, settings=settings), 0)
    method = get_method("bccf")
    off = {}
    # A step of SGD is as small as the gradient, which a row shares with its field.
    strong = 300 if optimizer == "sgd" else 10
    for balance in (0, strong):
        options = method.plan(task.spec, 8, balance=balance)
        weight = task.learn(method, options).table.weight.detach()
        means = torch.stack([part.mean(0) for part in weight.split([300, 200])])
        off[balance] = float(means.square().sum() / weight.square().sum(1).mean())
    assert off[strong] < 0.2 * off[0]


def itq_loss(table, rotation):
    return np.square(signs(table @ rotation) - table @ rotation).sum()


def test_itq_loss_never_rises_and_falls():
    """|B - W R|^2 over the iterations."""
    table = normal(400, 12) @ normal(12, 12, 1)
    losses = [itq_loss(table, learn_rotation(table, steps)) for steps in range(25)]
    assert (np.diff(losses) <= 1e-6 * losses[0]).all()
    assert losses[-1] < losses[0] - 1


def test_an_itq_step_is_scipys_orthogonal_procrustes():
    table = normal(200, 6)
    before = learn_rotation(table, 3)
    wanted, _ = scipy.linalg.orthogonal_procrustes(
        table.astype(np.float64), signs(table @ before)
    )
    np.testing.assert_allclose(learn_rotation(table, 4), wanted, atol=1e-5)


def test_a_rotation_keeps_inner_products():
    """R^T R = I, so (W R)(W R)^T = W W^T."""
    table = normal(60, 10).astype(np.float64)
    rotation = learn_rotation(table)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(10), atol=1e-10)
    turned = table @ rotation
    np.testing.assert_allclose(turned @ turned.T, table @ table.T, atol=1e-9)


def test_pph_stores_two_bits_of_magnitude():
    table = normal(13, 5) * np.exp(normal(13, 1, 1))
    layout = compress(table, "bccf", rule="pph")
    assert layout.nbytes == 13 * 1 + 4 + 16
    rows, lengths = layout.lookup(np.arange(13)), np.abs(table).mean(1)
    np.testing.assert_array_equal(np.sign(rows), np.sign(table))
    levels = np.quantile(lengths, [0.125, 0.375, 0.625, 0.875])
    nearest = levels[np.abs(lengths[:, None] - levels).argmin(1)]
    np.testing.assert_allclose(np.abs(rows), nearest[:, None].repeat(5, 1), rtol=1e-6)


def test_pph_magnitudes_are_four_codes_to_a_byte():
    lengths = np.array([1, 2, 3, 4, 4, 3, 2, 1, 4], np.float32)
    packed, levels = split_magnitudes(lengths)
    assert levels.tolist() == [1, 2, 3, 4]
    assert packed.tolist() == [0b11100100, 0b00011011, 0b11]


@pytest.mark.parametrize(
    ("options", "extra"),
    [
        ({"scale": "none"}, 0),
        ({}, 4),
        ({"half": True}, 2),
        ({"scale": "row"}, 400),
        ({"scale": "row", "half": True}, 200),
        ({"rule": "sign"}, 4),
        ({"rule": "itq"}, 4),
        ({"rule": "pph"}, 25 + 16),
    ],
    ids=repr,
)
def test_bytes_of_two_stage_codes_are_those_planned(options, extra):
    layout = compress(normal(100, 20), "bccf", **options)
    assert layout.nbytes == 100 * 3 + extra
    method, spec = get_method("bccf"), TableSpec.of_shape(100, 20)
    assert method.plan(spec, spec.full_bytes / layout.nbytes, **options)
    with pytest.raises(ValueError, match="highest ratio"):
        method.plan(spec, spec.full_bytes / (layout.nbytes - 1), **options)


@pytest.mark.parametrize(
    "options", [{"rule": "mean"}, {"rule": None}, {"scale": "column"}], ids=repr
)
def test_unknown_rules_and_scales_are_value_errors(options):
    with pytest.raises(ValueError, match="must be one of"):
        compress(normal(5, 4), "bccf", **options)
    with pytest.raises(ValueError, match="must be one of"):
        get_method("bccf").plan(TableSpec.of_shape(5, 4), 2, **options)


def test_scales_beyond_float16_are_a_value_error():
    with pytest.raises(ValueError, match="65504"):
        compress([[1e5, -1e5]], "bccf", rule="itq", half=True)


# -- DCF -----------------------------------------------------------------------


def dcf_problem(seed=0, users=12, items=9, bits=5, count=60):
    rng = np.random.default_rng(seed)
    places = [torch.from_numpy(rng.integers(n, size=count)) for n in (users, items)]
    codes = [
        torch.from_numpy(2 * rng.integers(2, size=(bits, n)) - 1).to(torch.int32)
        for n in (users, items)
    ]
    ratings = torch.from_numpy(bits * (2 * rng.integers(2, size=count) - 1)).int()
    products = (codes[0][:, places[0]] * codes[1][:, places[1]]).sum(0)
    return places, codes, ratings, (ratings - products).int()


@pytest.mark.parametrize("k", range(5))
def test_a_bit_is_set_to_its_exact_minimiser(k):
    """Against trying both values of the bit of every user in turn."""
    places, (own, other), ratings, errors = dcf_problem()
    pull = torch.from_numpy(np.random.default_rng(1).normal(size=12))
    best = descend_bit(own[k], other[k][places[1]], errors, places[0], pull)
    for user in range(12):
        costs = {}
        for value in (-1, 1):
            trial = own.clone()
            trial[k, user] = value
            mine = places[0] == user
            products = (trial[:, user, None] * other[:, places[1][mine]]).sum(0)
            costs[value] = (ratings[mine] - products).square().sum() - 2 * value * (
                pull[user]
            )
        assert int(best[user]) == min(costs, key=costs.get)
    own[k] = best
    wanted = ratings - (own[:, places[0]] * other[:, places[1]]).sum(0)
    assert torch.equal(errors, wanted.int())


def test_a_bit_with_nothing_to_gain_stays():
    places, (own, other), _, errors = dcf_problem(count=0)
    best = descend_bit(own[0], other[0][places[1]], errors, places[0], torch.zeros(12))
    assert torch.equal(best, own[0])


@pytest.mark.parametrize("kind", ["random", "equal columns", "constant"])
def test_decorrelated_codes_are_balanced_and_uncorrelated(kind):
    """1^T X = 0 and X^T X = m I."""
    codes = torch.from_numpy(signs(normal(40, 7))).int()
    if kind == "equal columns":
        codes[:, 3:] = codes[:, :1]
    if kind == "constant":
        codes[:] = 1
    found = decorrelate(codes, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(found.sum(0), 0, atol=1e-8)
    np.testing.assert_allclose(found.T @ found, 40 * np.eye(7), atol=1e-8)


def test_decorrelated_codes_are_the_closest():
    """No other balanced, uncorrelated matrix has a larger tr(B^T X)."""
    codes = signs(normal(40, 7)) * signs(normal(40, 1, 1) + 0.5)
    found = decorrelate(torch.from_numpy(codes), torch.Generator()).numpy()
    centered = codes - codes.mean(0)
    # Nuclear norm: the most that a matrix with orthonormal columns can reach.
    bound = np.sqrt(40) * np.linalg.norm(centered, "nuc")
    assert np.trace(codes.T @ found) == pytest.approx(bound, rel=1e-10)


def test_unobserved_pairs_are_unobserved_and_as_many_per_user(pairs):
    observed = pairs.train - [0, pairs.num_users]
    drawn = draw_unobserved(observed, 300, 200, np.random.default_rng(0))
    known = set(map(tuple, observed.tolist()))
    assert not known & set(map(tuple, drawn.tolist()))
    assert drawn[:, 1].min() == 0 and drawn[:, 1].max() == 199
    np.testing.assert_array_equal(
        np.bincount(drawn[:, 0], minlength=300),
        np.bincount(observed[:, 0], minlength=300),
    )


def test_a_user_who_met_everything_has_no_unobserved_pair():
    observed = np.array([[0, 0], [0, 1], [1, 0]])
    drawn = draw_unobserved(observed, 2, 2, np.random.default_rng(0))
    np.testing.assert_array_equal(drawn, [[1, 1]])


def test_dcf_objective_never_rises_within_a_round(pairs):
    table = DCF.make(small_spec(pairs, 8), rounds=4, balance=5.0)
    codes = table.descend(pairs.train, pairs.num_users)
    assert len(table.objective) == 4
    for steps in table.objective:
        assert (np.diff(steps) <= 1e-6 * abs(steps[0])).all()
    assert table.objective[0][-1] < 0.9 * table.objective[0][0]
    assert all(set(side.unique().tolist()) == {-1, 1} for side in codes)


def test_dcf_objective_is_what_it_says(pairs):
    table = DCF.make(small_spec(pairs, 6), balance=0.3)
    _, codes, _, errors = dcf_problem()
    targets = [torch.randn(side.shape, dtype=torch.float64) for side in codes]
    wanted = errors.double().square().sum() - 0.6 * sum(
        (side.double() * target).sum() for side, target in zip(codes, targets)
    )
    assert table._measure(errors, codes, targets) == pytest.approx(float(wanted))


def test_dcf_is_the_same_twice_and_balance_balances(pairs):
    spec = small_spec(pairs, 8)

    def learnt(balance):
        table = DCF.make(spec, rounds=3, balance=balance, seed=5)
        return table.descend(pairs.train, pairs.num_users)[1]

    assert torch.equal(learnt(0.001), learnt(0.001))
    strong, weak = (learnt(b).float().mean(1).abs().mean() for b in (1e6, 0.0))
    assert strong < weak / 2


def test_dcf_learns_the_tasks_pairs_and_says_how_it_went(pairs):
    task = make_task(pairs, TRIAL, 3)
    table, twin = (DCF.make(task.spec, rounds=2, seed=3) for _ in range(2))
    fitted = table.fit(task)
    assert fitted.network.table is table and not fitted.network.training
    codes = twin.descend(pairs.train, pairs.num_users)
    assert torch.equal(table.codes.int(), torch.cat(codes, dim=1).T)
    # b.d / bits is the prediction in units of the target.
    np.testing.assert_allclose(np.abs(decode_layout(table.freeze())), 0.25)
    losses = [epoch["train_loss"] for epoch in fitted.history.epochs]
    assert losses == [steps[-1] for steps in twin.objective]
    assert fitted.history.best == 1


def test_dcf_wants_more_ids_than_bits(pairs):
    task = make_task(pairs, TRIAL, 0)
    with pytest.raises(ValueError, match="200 bits need more than 200 users"):
        DCF.make(task.spec, bits=200).fit(task)


@pytest.mark.parametrize(
    "options",
    [{"bits": 0}, {"rounds": 0}, {"sweeps": 1.5}, {"balance": -1}, {"balance": "1"}],
    ids=repr,
)
def test_bad_options_of_dcf_are_value_errors(pairs, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        DCF.make(small_spec(pairs), **options)


def test_dcf_takes_more_bits_only_where_asked(pairs):
    method, spec = get_method("dcf"), small_spec(pairs, 16)
    assert method.plan(spec, 1).bits == 16
    options = method.plan(spec, 10, bits=48)
    assert method.build(spec, options).freeze().nbytes == 500 * 6 + 4
    with pytest.raises(ValueError, match="highest ratio"):
        method.plan(spec, 11, bits=48)


# -- gradients through signs ---------------------------------------------------


def test_straight_through_is_the_sign_forward_and_the_identity_backward():
    values = torch.tensor([[0.3, -0.2, 0.0], [2.0, -5.0, 1e-9]], requires_grad=True)
    upstream = torch.from_numpy(normal(2, 3))
    found = sign_through(values)
    np.testing.assert_allclose(found.detach(), signs(values.detach().numpy()))
    found.backward(upstream)
    assert torch.equal(values.grad, upstream)


@pytest.mark.parametrize(("sharpness", "factor"), [(1, 1), (1, 2), (0.5, 2)])
def test_scaled_sign_has_the_bell_as_gradient(sharpness, factor):
    """c a / sqrt(pi) exp(-(a v)^2), kept within 1e-8 and 1."""
    values = torch.linspace(-6, 6, 13).reshape(1, -1).requires_grad_()
    rows = ScaledSign.apply(values, sharpness, factor)
    np.testing.assert_allclose(
        rows.detach(), take_signs(values) * values.detach().abs().mean()
    )
    rows.sum().backward()
    grid = values.detach().numpy()
    bell = factor * sharpness / np.sqrt(np.pi) * np.exp(-((sharpness * grid) ** 2))
    np.testing.assert_allclose(values.grad, np.clip(bell, 1e-8, 1), rtol=1e-5)


@pytest.mark.parametrize("sharpness", [0.3, 0.8])
def test_factor_2_integrates_to_the_signs_jump(sharpness):
    """It is the derivative of erf(a v), which rises by 2; factor 1 by 1."""
    for factor, jump in ((1, 1), (2, 2)):
        grid = torch.linspace(-30, 30, 60001, requires_grad=True)
        ScaledSign.apply(grid[None], sharpness, factor).sum().backward()
        assert torch.trapezoid(grid.grad, grid.detach()) == pytest.approx(
            jump, abs=1e-3
        )


# -- CIGAR ---------------------------------------------------------------------


@pytest.mark.parametrize("beta", [1, 10, 100])
def test_annealed_tanh_nears_the_sign_outside_a_gap(beta):
    """|tanh(beta x) - sign(x)| <= 2 exp(-2 beta eps) for |x| >= eps."""
    table = CIGAR.make(TableSpec.of_shape(4, 4), beta=beta)
    table.advance(1.0)
    gap = 0.05
    values = torch.cat([torch.linspace(-3, -gap, 50), torch.linspace(gap, 3, 50)])
    error = (table.relax(values * table.unit) - take_signs(values)).abs().max()
    assert error <= 2 * math.exp(-2 * beta * gap) + 1e-6
    assert error >= math.exp(-2 * beta * gap) - 1e-6  # the bound is not idle


def test_beta_grows_from_1_to_its_end_as_a_root():
    table = CIGAR.make(TableSpec.of_shape(4, 4), beta=5)
    found = []
    for progress in (0.0, 0.5, 1.0):
        table.advance(progress)
        found.append(float(table.beta))
    np.testing.assert_allclose(found, [1, np.sqrt(13), 5])
    for beta in (0.5, np.nan, np.inf, "10", None):
        with pytest.raises(ValueError, match="beta must be"):
            CIGAR.make(TableSpec.of_shape(4, 4), beta=beta)


def test_small_weights_are_cigars_own_l2():
    """Half the factor times the mean squared length of the rows read."""
    table = CIGAR.make(TableSpec.of_shape(9, 4), l2=0.6).train()
    table(torch.tensor([[2, 2], [7, 0]]))
    rows = table.weight.detach()[[2, 2, 7, 0]]
    assert table.penalty().item() == pytest.approx(0.3 * float((rows**2).sum(1).mean()))
    assert float(table.penalty()) == 0  # no new step, nothing to weigh
    table.eval()(torch.tensor([1]))
    assert float(table.penalty()) == 0
    without = CIGAR.make(TableSpec.of_shape(9, 4), l2=0).train()
    without(torch.tensor([1]))
    assert float(without.penalty()) == 0
    with pytest.raises(ValueError, match="l2 must be"):
        CIGAR.make(TableSpec.of_shape(9, 4), l2=-0.1)


def test_cigar_starts_where_the_tanh_is_straight():
    """Whatever the table's first spread is, and for the steps of many batches."""
    for init_std in (0.01, 0.1):
        spec = TableSpec(50, 8, [0, 50], [1] * 50, init_std=init_std)
        table = CIGAR.make(spec).train()
        bent = table(torch.arange(50)) / table.scale
        np.testing.assert_allclose(bent.detach(), table.weight.detach(), atol=0.03)


def test_cigars_defaults_learn():
    """A beta of 10 as such hardens no weight at once."""
    assert judge_codes(planted(), "cigar") > 0.28


def test_more_candidates_never_find_less():
    """The c nearest codes are among the c + 1 nearest."""
    layout = BinaryLayout.from_signs(normal(70, 16))
    longest = layout.topk(np.arange(20), 50, candidates=(20, 70))
    for count in (1, 5, 20):
        found = layout.topk(np.arange(20), count, candidates=(20, 70))
        np.testing.assert_array_equal(found, longest[:, :count])


def test_reranking_every_item_is_the_exact_ranking():
    queries, items = normal(7, 5), normal(30, 5, 1)
    shuffled = np.random.default_rng(0).permuted(np.tile(np.arange(30), (7, 1)), axis=1)
    wanted = largest_first(queries @ items.T, axis=1)
    np.testing.assert_array_equal(rerank(queries, items, shuffled), wanted)
    few = rerank(queries, items, shuffled[:, :6])
    np.testing.assert_array_equal(np.sort(few), np.sort(shuffled[:, :6]))


# -- HashGNN -------------------------------------------------------------------


def test_guidance_0_is_the_continuous_model_and_1_is_the_codes(pairs):
    table = HashGNN.make(small_spec(pairs), seed=1).train()
    ids = torch.arange(pairs.num_embeddings)
    real = torch.tanh(table.latent() / table.unit) * table.scale
    assert torch.equal(table(ids), real)
    table.advance(1.0)
    np.testing.assert_allclose(
        table(ids).detach(), (take_signs(real) * table.scale).detach(), rtol=1e-6
    )
    table.advance(0.25)
    signed = (table(ids).detach().abs() - table.scale.item()).abs() < 1e-7
    assert signed.float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_guided_gradient_does_not_depend_on_the_draw(pairs):
    """Signs pass the gradient on as the real entries beside them do."""
    grads = []
    for share in (0.0, 1.0):
        table = HashGNN.make(small_spec(pairs), seed=1).train()
        table.advance(share)
        upstream = torch.from_numpy(normal(500, 6))
        (table(torch.arange(500)) * upstream).sum().backward()
        grads.append(table.weight.grad)
    torch.testing.assert_close(*grads)
    assert grads[0].abs().max() > 0


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_hashgnn_codes_are_taken_after_propagation(pairs, layers):
    """The signs of (I + A + ... + A^L) E."""
    table = HashGNN.make(small_spec(pairs), layers=layers, seed=2)
    graph, start = dense_graph(pairs), table.weight.detach().double().numpy()
    total = sum(np.linalg.matrix_power(graph, k) @ start for k in range(layers + 1))
    clear = np.abs(total) > 1e-6 * np.abs(total).max()
    found = decode_layout(table.freeze())
    np.testing.assert_array_equal(np.sign(found)[clear], np.sign(total)[clear])
    assert clear.mean() > 0.99


# -- BiGeaR --------------------------------------------------------------------


@pytest.mark.parametrize("half", [False, True])
def test_bigear_rows_are_weighted_blocks_of_every_layer(pairs, half):
    """Block l is (l + 1) / (L + 1) mean|v_l| sign(v_l), with v_l = A^l E."""
    table = BiGeaR.make(small_spec(pairs), layers=2, half=half, seed=3).eval()
    graph, rows = dense_graph(pairs), table.weight.detach().double().numpy()
    blocks = []
    for layer in range(3):
        scale = (layer + 1) / 3 * np.abs(rows).mean(1, keepdims=True)
        blocks.append(scale * signs(rows))
        rows = graph @ rows
    wanted = np.concatenate(blocks, axis=1)
    layout = table.freeze()
    assert layout.blocks == 3 and layout.nbytes == 500 * 3 * (1 + (2 if half else 4))
    tolerance = 1e-3 if half else 1e-5
    found = decode_layout(layout)
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=1e-7)
    np.testing.assert_array_equal(table(torch.arange(500)).detach(), found)


def test_bigear_takes_as_many_layers_as_fit(pairs):
    method, spec = get_method("bigear"), small_spec(pairs, 64)
    block = 8 + 4
    for layers in (2, 1, 0):
        reached = 256 / ((layers + 1) * block)
        assert method.plan(spec, reached).layers == layers
        assert method.plan(spec, reached * 0.999).layers == layers
    with pytest.raises(ValueError, match=r"highest ratio it can reach is 21\.333"):
        method.plan(spec, 25)
    assert method.plan(spec, 25, half=True).layers == 0
    with pytest.raises(ValueError, match="highest ratio it can reach is 7"):
        method.plan(spec, 10, layers=2)


@pytest.mark.parametrize("half", [False, True])
def test_no_scale_is_stored_that_a_cosine_divides_by_again(half, pairs):
    spec = dataclasses.replace(small_spec(pairs, 16), cosine=True)
    method = get_method("bigear")
    options = method.plan(spec, 32, half=half)
    assert options.layers == 0
    table = method.build(spec, options, 4).eval()
    layout = table.freeze()
    assert layout.scales is None and layout.nbytes == 500 * 2
    found = decode_layout(layout)
    np.testing.assert_array_equal(found, signs(table.weight.detach().numpy()))
    np.testing.assert_array_equal(table(torch.arange(500)).detach(), found)
    # With scales, the same directions.
    twin = method.build(small_spec(pairs, 16), {"layers": 0, "half": half}, 4).eval()
    stored = twin.freeze()
    assert stored.scales.shape == (500, 1)
    rows = decode_layout(stored)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(rows / lengths * 4, found, rtol=1e-5)
    # Between two layers scales do say something.
    for layers in (1, 2):
        built = method.build(spec, {"layers": layers, "half": half}).freeze()
        assert built.scales.shape == (500, layers + 1)
        exact = spec.full_bytes / built.nbytes
        assert method.plan(spec, exact, half=half).layers == layers
        with pytest.raises(ValueError, match="highest ratio"):
            method.plan(spec, exact * 1.001, half=half, layers=layers)


@pytest.mark.parametrize(
    ("model", "normalize", "cosine"),
    [("mf", True, True), ("mf", False, False), ("lightgcn", True, False)],
)
def test_a_task_says_whether_lengths_count(model, normalize, cosine, pairs):
    trial = dataclasses.replace(TRIAL, model=model, layers={"normalize": normalize})
    assert make_task(pairs, trial, 0).spec.cosine is cosine


def test_the_teachers_lists_are_its_best_items_layer_by_layer(pairs):
    table = BiGeaR.make(small_spec(pairs), layers=1, listed=9)
    lists = table.list_items(chunk=70)
    graph, rows = dense_graph(pairs), table.weight.detach().double().numpy()
    for layer in range(2):
        scores = rows[:300] @ rows[300:].T
        found = np.take_along_axis(scores, lists[layer].numpy() - 300, axis=1)
        wanted = -np.sort(-scores, axis=1)[:, :9]
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-9)
        rows = graph @ rows


def test_distillation_is_softplus_weighted_by_rank(pairs):
    """Sum over layers of mean(exp(-0.1 r) softplus(-score)), r from 1."""
    table = BiGeaR.make(small_spec(pairs), layers=1, listed=4, distillation=3.0)
    table.train()
    table.teacher = table.list_items()
    table.USERS = 2000  # every user, many times: compared with the mean of all
    table.weight.data *= 100
    table(torch.tensor([0]))
    found = float(table.penalty().detach())
    rows = [torch.from_numpy(b) for b in np.split(decode_layout(table.freeze()), 2, 1)]
    wanted = 0
    for block, lists in zip(rows, table.teacher):
        scores = torch.einsum("ud,uld->ul", block[:300], block[lists.long()])
        wanted += (torch.exp(-0.1 * torch.arange(1, 5)) * softplus(-scores)).mean()
    assert found == pytest.approx(3 * float(wanted), rel=0.05)
    assert float(table.penalty()) == 0  # no new step, nothing to judge


def test_distillation_reaches_the_weights(pairs):
    table = BiGeaR.make(small_spec(pairs), layers=1, listed=4).train()
    table.teacher = table.list_items()
    before = [float(table.weight.detach().norm())]
    for _ in range(3):
        table(torch.tensor([0]))
        table.zero_grad()
        table.penalty().backward()
        assert table.weight.grad.abs().max() > 0
        table.weight.data -= 10 * table.weight.grad
        before.append(float(table.weight.detach().norm()))
    assert before[-1] > before[0]


class NotedTraining:
    """A task that only notes the state in which a table comes to be trained."""

    def __init__(self, model):
        self.model, self.seen = model, []

    def train(self, table):
        lists = None if table.teacher is None else tuple(table.teacher.shape)
        self.seen.append((table.binary, lists))
        turn = len(self.seen)
        return Fitted(table, History([{}] * 9, best=9 - turn, seconds=turn))


@pytest.mark.parametrize(
    ("model", "options", "lists"),
    [
        ("mf", {"layers": 1, "listed": 7}, (2, 300, 7)),
        ("mf", {"distillation": 0.0}, None),
        ("dcnv2", {"layers": 0}, None),
    ],
)
def test_bigear_is_its_own_teacher_first(pairs, model, options, lists):
    task = NotedTraining(model)
    fitted = BiGeaR.make(small_spec(pairs), **options).fit(task)
    assert task.seen == [(False, None), (True, lists)]
    assert fitted.history.seconds == 3  # of both


@pytest.mark.parametrize(
    "options",
    [{"distillation": -1}, {"sharpness": 0}, {"factor": -2}, {"listed": 0},
     {"layers": 11}, {"layers": -1}],
    ids=repr,
)  # fmt: skip
def test_bad_options_of_bigear_are_value_errors(pairs, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        BiGeaR.make(small_spec(pairs), **options)


# -- numbers that are none --------------------------------------------------------


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("cigar", {}),
        ("hashgnn", {"layers": 0}),
        ("hashgnn", {"layers": 1}),
        ("bigear", {"layers": 0}),
        ("bigear", {"layers": 1, "half": True}),
    ],
    ids=repr,
)
def test_signs_of_nan_and_infinity_are_refused(key, given, wrong, pairs):
    spec = dataclasses.replace(small_spec(pairs), cosine=True)
    table = get_method(key).build(spec, given).eval()
    table.freeze()
    table.weight.data[7, 2] = wrong
    with pytest.raises(ValueError, match=r"weight .* must be finite"):
        table.freeze()


@pytest.mark.parametrize("key", ["cigar", "hashgnn", "dcf"])
def test_scales_that_are_no_numbers_are_refused(key, pairs):
    method, spec = get_method(key), small_spec(pairs)
    table = method.build(spec, method.plan(spec, 8)).eval()
    table.scale.data[:] = np.nan
    with pytest.raises(ValueError, match=r"scale.* must be finite"):
        table.freeze()


@pytest.mark.parametrize("rule", ["median", "sign", "pph", "itq"])
def test_thresholds_of_nan_are_refused(rule):
    table, method = normal(9, 4), get_method("bccf")
    table[5, 1] = np.nan
    options = method.ask({"rule": rule}).settled()
    for call in (
        lambda: compress(table, "bccf", rule=rule),
        lambda: BCCF.compress(table, TableSpec.of_shape(9, 4), options),
    ):
        with pytest.raises(ValueError, match=r"weight must be finite .* row 5"):
            call()


@pytest.mark.parametrize("rule", ["median", "sign", "pph", "itq"])
def test_finite_tables_have_finite_codes(rule):
    table = normal(9, 40) * np.float32(8e37)
    found = decode_layout(compress(table, "bccf", rule=rule))
    assert np.isfinite(found).all() and np.abs(found).max() > 1e37


# -- graphs --------------------------------------------------------------------


@pytest.mark.parametrize("key", ["hashgnn", "bigear"])
def test_layers_need_a_graph(key):
    method, spec = get_method(key), TableSpec.of_shape(30, 8)
    assert method.plan(spec, 2).layers == 0
    for call in (method.build, lambda s, options: method.plan(s, 1, **options)):
        with pytest.raises(ValueError, match="layers=1 need the interactions"):
            call(spec, {"layers": 1})


@pytest.mark.parametrize("key", ["hashgnn", "bigear"])
def test_codes_after_propagation_do_not_propagate_again(key, pairs):
    with pytest.raises(ValueError, match="model must be 'mf', got 'lightgcn'"):
        survey_code.run(key, pairs, 2, model="lightgcn", measure=False)


@pytest.mark.parametrize(
    ("key", "end"), [("cigar", 1), ("hashgnn", 1), ("bigear", 0), ("dcf", 0)]
)
def test_codes_that_harden_wait_for_the_end_of_their_schedule(key, end, pairs):
    """An epoch before is another, softer table."""
    method, spec = get_method(key), small_spec(pairs)
    table = method.build(spec, method.plan(spec, 2))
    assert table.schedule_end == end
    values = torch.linspace(-1, 1, 8) * spec.init_std
    if end:
        table.advance(1.0)
        hard = table.relax(values)
        table.advance(0.0)
        assert (table.relax(values).abs() < hard.abs()).all()


# -- learning ------------------------------------------------------------------


def rank_all(data, users, items):
    """Recall@20 and NDCG@20 of any vectors, known pairs left out."""
    scores = torch.from_numpy(users @ items.T)
    known = np.concatenate([data.train, data.valid])
    scores[known[:, 0], known[:, 1] - data.num_users] = -torch.inf
    wanted = torch.zeros(scores.shape, dtype=torch.bool)
    wanted[data.test[:, 0], data.test[:, 1] - data.num_users] = True
    mixed = draw_ranks(data.num_items, scores.device).argsort(stable=True)
    best = mixed[largest_first(scores[:, mixed])[:, :20]]
    totals = measure_ranking(best, wanted, wanted.sum(1), 20)
    found = totals.pop("users")
    return {name: float(value) / float(found) for name, value in totals.items()}


@pytest.mark.parametrize("key", KEYS)
def test_codes_rank_far_better_than_popularity_and_chance(key, pairs, ranked):
    known = np.concatenate([pairs.train, pairs.valid])
    counts = np.bincount(known[:, 1] - 300, minlength=200)[:, None]
    popular = rank_all(pairs, np.ones((300, 1)), counts.astype(float))
    chance = rank_all(pairs, normal(300, 9), normal(200, 9, 1))
    result = ranked(key)
    for name in ("recall@20", "ndcg@20"):
        assert result.test[name] > 1.25 * max(popular[name], chance[name])
    assert result.reached_ratio >= 4
    assert result.bytes["training_persistent"] > 0


def test_the_layout_itself_ranks_as_the_network_does(pairs, ranked):
    """Codes compared by Hamming distance alone give the metrics reported."""
    result = ranked("hashgnn")
    scores = result.layout.scores(np.arange(300), candidates=(300, 500))
    found = rank_all(pairs, scores.astype(np.float64), np.eye(200))
    assert found["recall@20"] == pytest.approx(result.test["recall@20"], abs=0.01)


def test_bccfs_penalty_makes_medians_as_good_as_signs():
    """Without it the bits are those of another table, shifted by the medians."""
    task, method = planted(), get_method("bccf")
    learnt = task.learn(method, method.plan(task.spec, 25))
    signed = method.compress(learnt.table.weight, {"rule": "sign"}, task.spec)
    balanced, same = (
        task.test(learnt.fitted.network, layout)["recall@20"]
        for layout in (learnt.layout, signed)
    )
    assert balanced > same - 0.01
    assert balanced > judge_codes(task, "bccf", balance=0) + 0.04
    # A table that may lean towards popular items still has something more to say.
    assert balanced > judge_codes(task, "bccf", rule="sign") - 0.02


@pytest.fixture(scope="module")
def clicks():
    return make_clicks("small", rows=(60_000, 10_000, 10_000))


@pytest.mark.parametrize("key", ["bccf", "hashgnn", "bigear"])
def test_click_models_run_on_codes(key, clicks):
    given = {"measure": False, "settings": {"precision": "float32"}}
    full = survey_code.run("full", clicks, **given)
    result = survey_code.run(key, clicks, 8, **given)
    if key == "bigear":  # its teacher's epochs come on top of the table's own
        assert result.test["auc"] > 0.75
    else:
        assert 0.55 < result.test["auc"] < full.test["auc"]
    assert isinstance(result.layout, BinaryLayout)


def test_bigear_of_one_number_starts_finite():
    table = BiGeaR.make(TableSpec.of_shape(1, 1), layers=0).eval()
    assert np.isfinite(table.freeze().lookup(np.array([0]))).all()
