"""SHAVER: a game is shared out, and what is cut reads the mean of its field."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from small_world import TRIAL, zipf_spec
from torch.nn import functional

from survey_code import TableSpec
from survey_code.catalog import get_method
from survey_code.data.synthetic import make_interactions
from survey_code.embedding import as_float32, decode_layout
from survey_code.lab import run
from survey_code.lab.task import make_task
from survey_code.layouts.sparse import fill_bytes
from survey_code.mixed_dimension.pruning import (
    Leaving,
    Shaver,
    average_fields,
    share_out_game,
    value_entries,
    walk_out,
)

PLAYERS = 6
ORDERS = list(itertools.permutations(range(PLAYERS)))


def draw_game(largest, seed=0):
    """Terms of a game: coalitions of up to so many players, and what each adds."""
    rng = np.random.default_rng(seed)
    return {
        some: rng.normal()
        for size in range(largest + 1)
        for some in itertools.combinations(range(PLAYERS), size)
    }


def worth_of(game):
    def worth(here):
        return sum(term for some, term in game.items() if all(here[list(some)]))

    return worth


def slope_of(game):
    """Of the same terms as products of gates."""

    def slope(gates):
        gates = gates.clone().requires_grad_()
        total = sum(t * gates[list(some)].prod() for some, t in game.items() if some)
        return torch.autograd.grad(total, [gates])[0]

    return slope


def by_formula(worth):
    """Shapley's own: over all coalitions without a player, by their size."""
    values = np.zeros(PLAYERS)
    for player in range(PLAYERS):
        others = [p for p in range(PLAYERS) if p != player]
        for size in range(PLAYERS):
            share = math.factorial(size) * math.factorial(PLAYERS - size - 1)
            for some in itertools.combinations(others, size):
                here = np.zeros(PLAYERS, bool)
                here[list(some)] = True
                before = worth(here)
                here[player] = True
                gain = worth(here) - before
                values[player] += share / math.factorial(PLAYERS) * gain
    return values


# -- the game --------------------------------------------------------------------


@pytest.mark.parametrize("largest", [1, 2, 3, PLAYERS])
def test_all_orders_give_the_shapley_value(largest):
    worth = worth_of(draw_game(largest))
    values = share_out_game(worth, ORDERS)
    np.testing.assert_allclose(values, by_formula(worth), atol=1e-12)
    whole = worth(np.ones(PLAYERS, bool)) - worth(np.zeros(PLAYERS, bool))
    assert values.sum() == pytest.approx(whole)


def test_any_orders_share_out_all_that_is_won():
    worth = worth_of(draw_game(PLAYERS, seed=1))
    whole = worth(np.ones(PLAYERS, bool)) - worth(np.zeros(PLAYERS, bool))
    for orders in (ORDERS[:1], ORDERS[100:107]):
        assert share_out_game(worth, orders).sum() == pytest.approx(whole)
    assert not share_out_game(worth, []).size


def test_a_few_orders_are_right_on_average():
    """Within four standard errors, in each player."""
    worth, rng = worth_of(draw_game(PLAYERS)), np.random.default_rng(0)
    drawn = [
        share_out_game(worth, [rng.permutation(PLAYERS) for _ in range(3)])
        for _ in range(400)
    ]
    error = np.std(drawn, axis=0) / np.sqrt(len(drawn))
    assert (np.abs(np.mean(drawn, axis=0) - by_formula(worth)) < 4 * error).all()


def test_a_step_for_each_player_is_a_walk_of_single_players():
    """Whoever leaves last came first: the same gains, whatever the game."""
    game = draw_game(PLAYERS, seed=2)
    for order in ORDERS[::37]:
        places = torch.tensor(np.argsort(order, kind="stable") / PLAYERS + 0.01)
        gains, last = walk_out(slope_of(game), places, PLAYERS)
        wanted = share_out_game(worth_of(game), [order[::-1]])
        np.testing.assert_allclose(gains.numpy(), wanted, atol=1e-12)
        alone = [game[(player,)] for player in range(PLAYERS)]
        np.testing.assert_allclose(last.numpy(), alone, atol=1e-12)


def test_where_two_players_meet_but_no_three_one_step_is_exact():
    game = draw_game(2, seed=3)
    gains, _ = walk_out(slope_of(game), torch.zeros(PLAYERS, dtype=torch.float64), 1)
    np.testing.assert_allclose(gains.numpy(), by_formula(worth_of(game)), atol=1e-12)


def test_more_steps_come_nearer_where_three_players_meet():
    game, errors = draw_game(PLAYERS, seed=4), []
    wanted = by_formula(worth_of(game))
    for steps in (1, 2, 8):
        rng = np.random.default_rng(0)
        found = [
            walk_out(slope_of(game), torch.from_numpy(rng.random(PLAYERS)), steps)[0]
            for _ in range(300)
        ]
        errors.append(np.abs(torch.stack(found).mean(0).numpy() - wanted).max())
    assert errors[0] > errors[1] > errors[2]


# -- the network as a game -------------------------------------------------------


def test_fills_are_means_of_what_is_read():
    weight = np.float32([[1, 2], [3, 4], [5, 6], [9, 0]])
    spec = TableSpec(4, 2, [0, 2, 4], [3, 1, 0, 0])
    means = average_fields(weight, spec)
    np.testing.assert_array_equal(means, [[1.5, 2.5], [7, 3]])


@pytest.fixture(scope="module")
def played(data):
    """A trained network whose table can be taken apart, and its judge."""
    settings = TRIAL.settings.replace(epochs=4, table_learning_rate=0.02)
    task = make_task(data, dataclasses.replace(TRIAL, settings=settings), seed=1)
    table = get_method("full").build(task.spec, {}, 1)
    network = task.train(table).network
    rows = table.weight.detach()
    fills = average_fields(as_float32(rows), task.spec)
    network.table = Leaving(rows, fills, task.spec)
    return network, task.judge(network)


def test_leaving_is_reading_the_fill(played, task):
    table = played[0].table
    ids = torch.tensor([[0, 1000], [1409, 3]])
    rows, fills = table.weight[ids], table.fills[table.field[ids]]
    torch.testing.assert_close(table(ids), rows)
    table.gates.data[1000] = 0
    wanted = rows.clone()
    wanted[0, 1] = fills[0, 1]
    torch.testing.assert_close(table(ids), wanted)
    table.gates.data.fill_(1)


def test_what_is_shared_out_is_what_the_table_is_worth(played):
    """The loss without the table, less the loss with it, but for the last percent."""
    network, judge = played
    values = value_entries(network.table, judge, batches=3, steps=32, seed=0)
    lost = []
    for loss in judge.training_losses(3):
        network.table.gates.data.fill_(0)
        lost.append(loss().item())
        network.table.gates.data.fill_(1)
        lost[-1] -= loss().item()
    assert values.sum() == pytest.approx(np.mean(lost), rel=0.02)
    # What no batch reads plays no part.
    read = np.zeros(len(values), bool)
    for loss in judge.training_losses(3):
        read[np.unique(loss.args[1][0].numpy())] = True
    assert not values[~read].any() and values[read].any()


def take_out_one_by_one(network, batch, rng):
    """The published way: each row's numbers leave in an order of its own."""
    ids, labels = batch
    table, (count, fields) = network.table, ids.shape
    dim = table.embedding_dim
    values = np.zeros(table.weight.shape)
    with torch.no_grad():
        rows, fills = table.weight[ids], table.fills[table.field[ids]]
        here = torch.ones(count, fields * dim, dtype=torch.bool)
        orders = rng.permuted(np.tile(np.arange(fields * dim), (count, 1)), axis=1)

        def losses():
            vectors = torch.where(here.view(rows.shape), rows, fills)
            logits = network.score(vectors, ids)
            return functional.binary_cross_entropy_with_logits(
                logits, labels.to(logits.dtype), reduction="none"
            ).numpy()

        before = losses()
        for place in orders.T:
            here[np.arange(count), place] = False
            after = losses()
            where = ids.numpy()[np.arange(count), place // dim], place % dim
            np.add.at(values, where, after - before)
            before = after
    return values / count


def test_slopes_of_batches_find_what_rows_one_by_one_find(played):
    """Two estimates of the same values, by other orders and other means."""
    network, judge = played
    rng, first, second = np.random.default_rng(0), 0, 0
    for _ in range(20):
        first = first + value_entries(
            network.table, judge, 1, 16, int(rng.integers(2**32))
        )
        batch = next(judge.training_losses(1)).args[1]
        second = second + take_out_one_by_one(network, batch, rng)
    first, second = first / 20, second / 20
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.97
    assert first.sum() == pytest.approx(second.sum(), rel=0.03)


# -- the method ------------------------------------------------------------------


def test_the_table_is_the_full_table_cut_once(task):
    """Kept entries as they were trained, the others as their field's mean."""
    method = get_method("shaver")
    full = task.learn(get_method("full"), get_method("full").plan(task.spec, 1))
    weight = full.table.weight.detach().numpy()
    asked = method.plan(task.spec, 5)
    learnt = task.learn(method, asked)
    assert learnt.fitted.history.epochs == full.fitted.history.epochs
    sizes = np.abs(learnt.table.values).ravel()
    kept = np.zeros(sizes.size, bool)
    kept[np.argsort(-sizes, kind="stable")[: asked.keep]] = True
    fills = average_fields(weight, task.spec)
    fills = np.repeat(fills, np.diff(task.spec.field_starts), axis=0)
    wanted = np.where(kept.reshape(weight.shape), weight, fills)
    np.testing.assert_array_equal(decode_layout(learnt.layout), wanted)
    rows = learnt.table(torch.arange(len(weight))).detach().numpy()
    np.testing.assert_array_equal(rows, wanted)


def test_the_same_values_serve_any_budget(task):
    """What a small budget keeps, a larger one keeps too; nothing is trained again."""
    method, kept = get_method("shaver"), []
    for ratio in (20, 5):
        table = task.learn(method, method.plan(task.spec, ratio)).table
        kept.append((table.mask.numpy(), table.values))
    np.testing.assert_array_equal(kept[0][1], kept[1][1])
    assert (kept[0][0] <= kept[1][0]).all() and kept[0][0].sum() < kept[1][0].sum()


@pytest.mark.parametrize("format", ["float32", "float16"])
@pytest.mark.parametrize("fill", ["mean", "zero"])
@pytest.mark.parametrize("ratio", [2, 10, 90])
def test_fills_are_paid_for(ratio, fill, format):
    spec = zipf_spec()
    asked = get_method("shaver").plan(spec, ratio, fill=fill, format=format)
    layout = Shaver(spec, asked).eval().freeze()
    assert spec.budget(ratio) - 8 < layout.nbytes <= spec.budget(ratio)
    more = get_method("shaver").plan(spec, ratio, fill="zero", format=format).keep
    cost = 5 if format == "float32" else 3
    beside = fill_bytes(2, 16) if fill == "mean" else 0
    assert abs(cost * (more - asked.keep) - beside) < cost


def test_signs_tell_what_helps_from_what_harms():
    spec = TableSpec.of_shape(2, 2)
    values = np.float32([[3, -4], [1, -2]])
    for signed, wanted in ((False, [[1, 1], [0, 0]]), (True, [[1, 0], [1, 0]])):
        table = Shaver.make(spec, keep=2, signed=signed)
        table.settle(values)
        np.testing.assert_array_equal(table.mask.numpy(), wanted)


def test_without_a_network_the_farthest_from_the_fills_are_kept():
    spec = TableSpec(4, 1, [0, 3, 4], [1, 1, 1, 1])
    table = Shaver.make(spec, keep=2).eval()
    table.weight.data = torch.tensor([[10.0], [10], [13], [-5]])
    # 13 lies two from the mean, 11; of the two that lie one from it, the first.
    np.testing.assert_array_equal(decode_layout(table.freeze())[:, 0], [10, 11, 13, -5])


def test_without_a_budget_nothing_is_cut():
    spec = zipf_spec(50)
    table = Shaver.make(spec).eval()
    found = decode_layout(table.freeze())
    np.testing.assert_array_equal(found, as_float32(table.weight))


@pytest.mark.parametrize("model", ["mf", "lightgcn"])
def test_rankings_are_games_too(model):
    data = make_interactions(num_users=60, num_items=40, per_user=(5, 10))
    result = run(
        "shaver", data, 4, model=model, measure=False, batches=4, settings={"epochs": 2}
    )
    assert 4 <= result.reached_ratio < 4.3 and result.validation["recall@20"] > 0
