"""MPE: groups, expected bytes, the search and what it settles on."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from survey_code import TableSpec
from survey_code.catalog import get_method
from survey_code.data.synthetic import make_clicks
from survey_code.embedding import Regime, TrainingStep, decode_layout
from survey_code.lab import Trial, make_task
from survey_code.layouts.grouped import remap_bytes
from survey_code.low_precision.quantization import MPE
from survey_code.low_precision.quantization.mpe import (
    DOUBLING,
    FIRST_PRICE,
    NORMAL_ERRORS,
    WIDTHS,
    MixedCost,
    MPEOptions,
    choose_at_a_price,
    group_by_frequency,
    score_widths,
    settle_bits,
)
from survey_code.training import TrainingSettings

pytestmark = pytest.mark.usefixtures("one_thread")


def spec_of(counts, dim=8, std=0.1):
    return TableSpec.of_table(len(counts), dim, train_counts=counts)


def mixed(rows=12, dim=8, bits=(4, 2, 0), order=None, seed=0):
    """A table of equal groups with these bits, ids in the order of frequency or not."""
    assignment = np.arange(rows) * len(bits) // rows
    if order is not None:
        assignment = assignment[order]
    return MPE.make(
        TableSpec.of_shape(rows, dim), seed, assignment=assignment, bits=np.array(bits)
    )


def one_hot(bits):
    return torch.eye(len(WIDTHS), dtype=torch.float64)[torch.as_tensor(bits)]


# -- groups --------------------------------------------------------------------


def test_groups_hold_equally_many_ids_the_most_frequent_first():
    counts = np.random.default_rng(0).integers(0, 50, size=1003)
    group = group_by_frequency(spec_of(counts), 10)
    assert set(np.bincount(group)) == {100, 101}
    for one, other in itertools.pairwise(range(10)):
        assert counts[group == one].min() >= counts[group == other].max()
    assert group_by_frequency(spec_of(counts[:4]), 10).max() == 3


# -- bytes ---------------------------------------------------------------------


def test_three_groups_by_hand():
    """512 ids each with 4, 2 and 0 bits at d = 16; two bits an id say which."""
    group = np.arange(1536) % 3
    cost = MixedCost(group, 16)
    codes = 512 * (8 + 4 + 0)
    levels = 4 * (16 + 4)
    route = 3 * 8 + 3 * (2 * 64 + 3 * 4)
    assert cost.count(np.array([4, 2, 0])) == codes + levels + route == 6668
    in_order = MixedCost(np.sort(group), 16)
    assert in_order.count(np.array([4, 2, 0])) == codes + levels + 3 * 8
    assert in_order.count(np.array([4, 0, 4])) == 512 * 16 + 64 + 16 + remap_bytes(
        1536, 2
    )


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("dim", [1, 5, 16])
@pytest.mark.parametrize("groups", [1, 2, 3, 20])
def test_what_is_expected_of_settled_groups_is_the_file(groups, dim, shuffled):
    rng = np.random.default_rng(0)
    for _ in range(12):
        rows = int(rng.integers(groups, 1200))
        bits = rng.choice(rng.choice(WIDTHS, 3), groups)
        if not bits.any():
            continue
        order = rng.permutation(rows) if shuffled else None
        table = mixed(rows, dim, bits, order)
        assignment = np.arange(rows) * groups // rows
        cost = MixedCost(assignment if order is None else assignment[order], dim)
        expected = cost.expect(one_hot(bits))
        assert table.freeze().nbytes == cost.count(bits) == expected.item()


def test_in_between_the_expected_bytes_are_a_mean():
    """Codes and levels of independent draws exactly, and the map's size nearly."""
    rng = np.random.default_rng(0)
    cost = MixedCost(rng.permutation(600) * 3 // 600, 16)
    chances = rng.dirichlet(np.ones(7), size=3)
    mean = 0.0
    for bits in itertools.product(WIDTHS, repeat=3):
        chance = chances[np.arange(3), bits].prod()
        # All ids without bits are one part whose only cost is its size.
        mean += chance * cost.count(np.array(bits))
    found = cost.expect(torch.from_numpy(chances)).item()
    assert found == pytest.approx(mean, rel=0.02)


def test_the_gradient_of_the_price_is_that_of_the_bytes():
    rng = np.random.default_rng(1)
    cost = MixedCost(rng.permutation(50) * 4 // 50, 8)
    logits = torch.from_numpy(rng.normal(size=(4, 7))).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cost.expect(x.softmax(1)), logits)


def test_rows_without_bits_are_zeros_and_cost_a_place_in_the_map():
    table = mixed(1024, 16, (3, 0), np.random.default_rng(0).permutation(1024)).eval()
    layout = table.freeze()
    rows = decode_layout(layout)
    none = table.own.numpy() == 0
    assert none.sum() == 512 and not rows[none].any() and rows[~none].all()
    assert layout.nbytes == 512 * 6 + 4 * 8 + 16 + remap_bytes(1024, 2)


# -- the table -----------------------------------------------------------------------


def test_levels_lie_half_a_step_beside_and_one_bit_is_the_mean():
    table = mixed(600, 16, (1, 3, 6)).eval()
    rows = table(torch.arange(600)).detach()
    for k, bits in enumerate(table.widths):
        own = rows[table.own == bits] / table.step[k].detach()
        reach = (2**bits - 1) / 2
        codes = own + reach
        assert torch.allclose(codes, codes.round(), atol=1e-4)
        # LSQ's first step leaves out the ends of the widest.
        assert own.abs().max() <= reach
        assert len(codes.round().unique()) >= min(2**bits, 20)
    mean = table.weight.abs().mean()
    assert torch.allclose(rows[table.own == 1].abs(), mean, rtol=1e-5)


def test_training_reads_what_is_deployed():
    table = mixed(90, 8, (1, 2, 3, 4, 5, 6, 0))
    ids = torch.arange(90).view(9, 10)
    torch.testing.assert_close(table.train()(ids), table.eval()(ids))


def test_gradients_reach_rows_with_bits_and_their_steps():
    table = mixed(9, 8, (2, 0, 5)).train()
    (table(torch.tensor([0, 4, 7])) * torch.rand(3, 8)).sum().backward()
    assert table.weight.grad.any(1).nonzero()[:, 0].tolist() == [0, 7]
    assert (table.step.grad != 0).all()
    table.zero_grad()
    table(torch.tensor([0, 4])).sum().backward()
    assert (table.step.grad[:, 0] != 0).tolist() == [True, False]


def test_steps_stay_positive_and_have_a_rate_of_their_own():
    table = mixed()
    table.begin(Regime("adam"))
    rates = [group["lr"] for group in table.parameter_groups(0.1)]
    assert rates == pytest.approx([0.1, 0.1 * 0.02])
    table.step.data.fill_(-1.0)
    step = TrainingStep(lambda: None, lambda: None, nn.Module(), 0.1, 0.0)
    table.after_step(step)
    assert (table.step > 0).all()


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"assignment": np.zeros(5, int)}, "assignment must be 6 integers"),
        ({"assignment": np.zeros(6)}, "assignment must be 6 integers"),
        ({"assignment": np.array([0, 1, 2, 3, 0, 0])}, "groups from 0 to 2"),
        ({"assignment": np.array([0, -1, 2, 0, 0, 0])}, "groups from 0 to 2"),
        ({"bits": np.array([1, 7, 2])}, "bits must be some of"),
        ({"bits": np.array([1.0, 2.0, 2.0])}, "bits must be some of"),
        ({"bits": np.array([0, 0, 0])}, "0 for all ids"),
    ],
)
def test_what_was_found_is_checked(found, said):
    given = {"assignment": np.array([0, 0, 1, 1, 2, 2]), "bits": np.array([4, 2, 0])}
    with pytest.raises(ValueError, match=said):
        MPE.make(TableSpec.of_shape(6, 4), **{**given, **found})


# -- settling ------------------------------------------------------------------------


def drawn_scores(groups, seed, spread=1.0):
    scores = spread * np.random.default_rng(seed).normal(size=(groups, 7))
    return np.log(np.exp(scores) / np.exp(scores).sum(1, keepdims=True))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dim", [2, 16])
def test_the_settled_table_is_inside_the_budget_and_none_could_be_wider(seed, dim):
    rng = np.random.default_rng(seed)
    cost = MixedCost(rng.permutation(2000) * 9 // 2000, dim)
    scores = drawn_scores(9, seed)
    least = min(cost.count(np.eye(9, dtype=int)[g]) for g in range(9))
    for budget in np.geomspace(least, 1.1 * cost.count(np.full(9, 6)), 8).astype(int):
        bits = settle_bits(scores, cost, int(budget))
        assert cost.count(bits) <= budget and bits.any()
        for group in range(9):
            for wider in range(bits[group] + 1, 7):
                other = bits.copy()
                other[group] = wider
                assert cost.count(other) > budget


@pytest.mark.parametrize("seed", range(4))
def test_before_it_is_widened_a_choice_is_nearly_the_most_probable(seed):
    """Against all 343 choices of three groups: best of those that cost no more."""
    cost = MixedCost(np.random.default_rng(seed).permutation(900) * 3 // 900, 16)
    scores = drawn_scores(3, seed)
    every = [np.array(bits) for bits in itertools.product(WIDTHS, repeat=3)]
    totals = np.array([scores[np.arange(3), bits].sum() for bits in every])
    sizes = np.array([cost.count(bits) for bits in every])
    for chosen in ((0, 2, 4), WIDTHS):
        allowed = np.array(chosen)
        for budget in (4000, 6000, 8000):
            bits = choose_at_a_price(scores, cost, allowed, budget)
            own = [np.isin(bits_, allowed).all() for bits_ in every]
            smaller = np.array(own) & (sizes <= cost.count(bits))
            found = scores[np.arange(3), bits].sum()
            assert cost.count(bits) <= budget
            assert found >= totals[smaller].max() - 1e-9 - (len(chosen) == 7)


def test_the_most_probable_widths_are_kept_where_they_fill_the_budget():
    scores = drawn_scores(20, 0, spread=4.0)
    cost = MixedCost(np.random.default_rng(0).permutation(999) * 20 // 999, 16)
    likely = scores.argmax(1)
    assert np.array_equal(settle_bits(scores, cost, cost.count(likely)), likely)


def test_few_widths_are_chosen_where_the_map_costs_more_than_they_gain():
    """Scores that hardly differ: a file of one part has no map."""
    scores = np.log(np.full((6, 7), 1 / 7))
    scores[:, 2] += 1e-6
    cost = MixedCost(np.random.default_rng(0).permutation(600) * 6 // 600, 16)
    alike = np.full(6, 2)
    assert np.array_equal(settle_bits(scores, cost, cost.count(alike)), alike)


def test_a_width_is_worth_as_much_as_it_is_asked_for():
    """By the odds that a group has so many bits or more: the best is the median."""
    rng = np.random.default_rng(0)
    chances = rng.dirichlet(np.ones(7), size=200)
    scores = score_widths(np.log(chances))
    more = np.cumsum(chances[:, ::-1], axis=1)[:, -2::-1]  # of 1 bit, of 2 ...
    np.testing.assert_allclose(np.diff(scores), np.log(more / (1 - more)), atol=1e-9)
    assert np.array_equal(scores.argmax(1), (more >= 0.5).sum(1))
    assert (np.diff(scores, n=2) < 0).all()  # no width is passed over on the way


def test_reads_alone_give_a_bit_more_for_about_three_times_as_many_of_them():
    """A bit more leaves about a third of the error."""
    for factor, apart in ((9.6, 2), (3.1, 1)):
        counts = np.repeat((1000 * factor ** np.arange(3)).astype(int), 500)
        spec = spec_of(counts, dim=16)
        cost = MixedCost(group_by_frequency(spec, 3), 16)
        wanted = np.array([2 * apart, apart, 0]) + 1
        ratio = spec.full_bytes / (cost.count(wanted) + 0.5)
        plan = get_method("mpe").plan(spec, ratio, rule="reads", groups=3)
        assert plan.bits.tolist() == wanted.tolist()
        assert not MPE.searches(plan) and MPE.searches(MPEOptions())
        assert MPE(spec, plan).freeze().nbytes == cost.count(wanted)


@pytest.mark.parametrize("bits", range(1, 7))
def test_the_errors_of_normal_numbers_are_those_of_the_best_even_levels(bits):
    drawn = np.random.default_rng(0).normal(size=200_000)
    reach, errors = (2**bits - 1) / 2, []
    for step in np.geomspace(0.05, 2, 60):
        codes = np.clip(np.floor(drawn / step) + 0.5, -reach, reach)
        errors.append(((codes * step - drawn) ** 2).mean())
    assert min(errors) == pytest.approx(NORMAL_ERRORS[bits], rel=0.04)


# -- the search ----------------------------------------------------------------------

TRIAL = Trial(
    "dcnv2", 8,
    TrainingSettings(epochs=1, batch_size=128, learning_rate=3e-3,
                     table_learning_rate=2e-2, patience=0, precision="float64"),
    {"hidden": (8,), "cross_layers": 1}, init_std=0.2,
)  # fmt: skip


@pytest.fixture(scope="module")
def task():
    data = make_clicks(rows=(16_000, 500, 500), field_sizes=(300, 100))
    return make_task(data, TRIAL, 0)


def search(task, **asked):
    asked = {"groups": 8, "choice_rate": 0.3, **asked}
    options = get_method("mpe").plan(task.spec, 20.0, **asked)
    table = MPE.searching(task.spec, options, 0)
    task.train(table, patience=0)
    return table, options


def test_the_price_follows_the_expected_bytes(task):
    options = get_method("mpe").plan(task.spec, 10.0)
    step = TrainingStep(lambda: None, lambda: None, nn.Module(), 0.1, 0.0)
    for budget, doubled in ((1, 1), (10**9, -1)):
        table = MPE.searching(task.spec, options.replace(budget=budget), 0)
        for _ in range(DOUBLING):
            table.after_step(step)
        assert table.price == pytest.approx(FIRST_PRICE * 2.0**doubled)
        fixed = MPE.searching(task.spec, options.replace(budget=budget, price=0.3), 0)
        fixed.after_step(step)
        assert fixed.price == 0.3


def test_a_high_price_leaves_no_bits_and_none_leaves_many(task):
    bits = {}
    for price in (0.0, 100.0):
        table, _ = search(task, price=price)
        chances = table.logits.detach().softmax(1)
        bits[price] = (chances @ torch.arange(7.0)).mean().item()
    assert bits[100.0] < 0.5 < 3 < bits[0.0]


def test_frequent_groups_find_more_bits(task):
    table, options = search(task)
    found = MPE.settle(table, None, task.spec, options)
    bits = found["bits"]
    assert bits[:2].mean() >= bits[4:].mean() + 0.5 and bits[0] == bits.max()
    assert np.array_equal(found["assignment"], group_by_frequency(task.spec, 8))
    layout = MPE(task.spec, options.replace(**found)).freeze()
    assert layout.nbytes == table.cost.count(bits) <= options.budget


def test_the_penalty_is_the_price_of_the_expected_bits_of_a_number():
    spec = spec_of(np.arange(40))
    options = MPEOptions(groups=5, price=0.5).replace(budget=500)
    table = MPE.searching(spec, options, 0)
    table.logits.data += 1e3 * one_hot([0, 1, 2, 3, 4]).float()
    wanted = 0.5 * 8 * table.cost.count(np.arange(5)) / (40 * 8)
    assert table.penalty().item() == pytest.approx(wanted)


def test_a_settled_mixture_reads_as_its_width():
    """With all chance on one width a row of the search is what LSQ would read."""
    spec = spec_of(np.arange(40))
    options = MPEOptions(groups=2).replace(budget=500)
    table = MPE.searching(spec, options, 0)
    table.logits.data += 1e3 * one_hot([0, 1]).float().flip(1)  # 6 and 5 bits
    rows, group = table(torch.arange(40)).detach(), table.group
    for g, k in ((0, 5), (1, 4)):
        codes = rows[group == g] / table.step[k].detach() + (2 ** (k + 1) - 1) / 2
        torch.testing.assert_close(codes, codes.round(), atol=1e-3, rtol=0)
