"""The networks, against the formulas they are named after."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from survey_code import FullEmbedding, TableSpec
from survey_code.baselines import UniformEmbedding
from survey_code.graph import SymmetricProduct, normalize_graph
from survey_code.models import (
    CLICK_NETWORKS,
    MatrixFactorization,
    build_click_network,
    build_ranking_network,
    make_linear,
    make_mlp,
)
from survey_code.training import count_parameters
from survey_code.weight_sharing.hashing import HashingTrick

FIELDS, DIM, IDS = 4, 6, 40
SPEC = TableSpec(IDS, DIM, np.array([0, 10, 20, 30, IDS]), np.ones(IDS, np.int64))
ROWS = torch.from_numpy(
    np.random.default_rng(0).integers(0, 10, (7, FIELDS)) + 10 * np.arange(FIELDS)
)


def click_network(name, dim=DIM, **layers):
    spec = TableSpec(IDS, dim, SPEC.field_starts, SPEC.train_counts, init_std=1.0)
    layers = {"hidden": (8, 5), **layers} if name != "fm" else layers
    network = build_click_network(
        name, FullEmbedding(spec, seed=1), FIELDS, 3, **layers
    )
    if network.first_order is not None:  # zero at first: give it something to say
        rng = np.random.default_rng(5)
        drawn = torch.from_numpy(rng.normal(size=(IDS, 1)).astype(np.float32))
        network.first_order.weight.data = drawn
        network.bias.data.fill_(0.25)
    return network.eval()


def slow_fm(network, ids):
    """Bias, weights, and the inner product of each pair of fields."""
    rows = network.table.weight.detach()
    total = network.bias.item() + network.first_order.weight[ids].sum().item()
    for one in range(FIELDS):
        for other in range(one + 1, FIELDS):
            total += torch.dot(rows[ids[one]], rows[ids[other]]).item()
    return total


def mlp_by_hand(layers, vectors):
    """Linear layers with ReLU between; the last one too if it is not the output."""
    linear = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
    for layer in linear:
        vectors = vectors @ layer.weight.T + layer.bias
        if layer.out_features > 1:
            vectors = vectors.clamp(min=0)
    return vectors


# -- clicks -------------------------------------------------------------------


def test_fm_is_the_sum_over_all_pairs_of_fields():
    network = click_network("fm")
    for row, found in zip(ROWS, network(ROWS)):
        assert found.item() == pytest.approx(slow_fm(network, row), rel=1e-5)


def test_deepfm_is_fm_plus_a_perceptron():
    network = click_network("deepfm")
    vectors = network.table.weight[ROWS].flatten(1)
    deep = mlp_by_hand(network.deep, vectors).squeeze(1)
    wanted = torch.tensor([slow_fm(network, row) for row in ROWS]) + deep
    torch.testing.assert_close(network(ROWS), wanted)


@pytest.mark.parametrize("cross_layers", [0, 1, 3])
def test_dcnv2_crosses_as_published(cross_layers):
    """x_{l+1} = x_0 * (W x_l + b) + x_l, beside the perceptron."""
    network = click_network("dcnv2", cross_layers=cross_layers)
    for layer in network.cross:
        torch.nn.init.normal_(layer.bias)
    wanted = []
    for row in ROWS:
        start = network.table.weight[row].flatten().detach().numpy()
        crossed = start.copy()
        for layer in network.cross:
            weight, bias = (w.detach().numpy() for w in (layer.weight, layer.bias))
            crossed = start * (weight @ crossed + bias) + crossed
        deep = mlp_by_hand(network.deep, torch.from_numpy(start)).detach().numpy()
        both = np.concatenate([crossed, deep])
        top = network.top
        wanted.append((top.weight.detach().numpy() @ both + top.bias.item()).item())
    np.testing.assert_allclose(network(ROWS).detach().numpy(), wanted, rtol=1e-4)


def test_dlrm_feeds_each_pair_once():
    network = click_network("dlrm")
    inputs = []
    for row in ROWS:
        rows = network.table.weight[row].detach()
        pairs = [
            torch.dot(rows[one], rows[other])
            for one in range(FIELDS)
            for other in range(one + 1, FIELDS)
        ]
        inputs.append(torch.cat([rows.flatten(), torch.stack(pairs)]))
    wanted = mlp_by_hand(network.deep, torch.stack(inputs)).squeeze(1)
    torch.testing.assert_close(network(ROWS), wanted)


def perceptron(inputs, *widths):
    ends = [inputs, *widths]
    return sum((a + 1) * b for a, b in pairwise(ends))


@pytest.mark.parametrize("dim", [DIM, 3, 1])
def test_parameters_are_as_many_as_the_formula_says(dim):
    """Also where the table is made smaller: the network takes its dimension."""
    width, pairs = FIELDS * dim, FIELDS * (FIELDS - 1) // 2
    expected = {
        "fm": 1 + IDS,
        "deepfm": 1 + IDS + perceptron(width, 8, 5, 1),
        "dcnv2": 2 * width * (width + 1) + perceptron(width, 8, 5) + width + 5 + 1,
        "dlrm": perceptron(width + pairs, 8, 5, 1),
    }
    for name, around in expected.items():
        options = {"cross_layers": 2} if name == "dcnv2" else {}
        network = click_network(name, dim, **options)
        assert count_parameters(network) == IDS * dim + around
        assert network(ROWS).shape == (len(ROWS),)
        assert network.per_id_bytes == (4 * IDS if name in ("fm", "deepfm") else 0)


@pytest.mark.parametrize("name", CLICK_NETWORKS)
def test_a_network_learns_with_a_smaller_dimension(name):
    table = UniformEmbedding.make(SPEC, columns=2)
    network = build_click_network(name, table, FIELDS)
    network(ROWS).sum().backward()
    assert table.weight.grad.shape == (IDS, 2)
    assert torch.isfinite(table.weight.grad).all()


@pytest.mark.parametrize("name", ["deepfm", "dcnv2", "dlrm"])
def test_a_seed_draws_the_same_network_whatever_the_table(name):
    def state(table_seed, seed):
        table = FullEmbedding(SPEC, seed=table_seed)
        network = build_click_network(name, table, FIELDS, seed)
        return {k: v for k, v in network.state_dict().items() if "table" not in k}

    first, same, other = state(1, 3), state(2, 3), state(1, 4)
    torch.manual_seed(1)
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_weights_are_drawn_with_xaviers_spread():
    layer = make_linear(300, 100, np.random.default_rng(0))
    assert layer.weight.std().item() == pytest.approx(np.sqrt(2 / 400), rel=0.02)
    assert layer.bias.abs().max() == 0


def test_the_perceptron_s_layers_are_those_asked_for():
    rng = np.random.default_rng(0)
    layers = make_mlp(6, rng, hidden=(5, 4), output=1, batch_norm=True, dropout=0.2)
    names = [type(layer).__name__ for layer in layers]
    block = ["Linear", "BatchNorm1d", "ReLU", "Dropout"]
    assert names == [*block, *block, "Linear"]
    assert len(make_mlp(6, rng, hidden=())) == 0


@pytest.mark.parametrize("name", ["dcnv2", "deepfm"])
def test_no_hidden_layer_is_no_error(name):
    assert click_network(name, hidden=())(ROWS).shape == (len(ROWS),)


# -- rankings -----------------------------------------------------------------

USERS, ITEMS = 9, 13
PAIRS = np.stack(
    np.divmod(np.random.default_rng(2).choice(USERS * ITEMS, 40, False), ITEMS), 1
) + np.array([0, USERS])


def dense_graph(pairs=PAIRS):
    adjacency = np.zeros((USERS + ITEMS, USERS + ITEMS))
    adjacency[pairs[:, 0], pairs[:, 1]] = 1
    adjacency += adjacency.T
    degrees = np.maximum(adjacency.sum(1), 1)
    return adjacency / np.sqrt(np.outer(degrees, degrees))


def ranking_network(name, **layers):
    spec = TableSpec(
        USERS + ITEMS, 5, [0, USERS, USERS + ITEMS], np.ones(USERS + ITEMS, int),
        init_std=1.0,
    )  # fmt: skip
    table = FullEmbedding(spec, seed=1)
    return build_ranking_network(name, table, USERS, PAIRS, **layers)


def test_the_graph_is_the_normalised_adjacency_matrix():
    found = normalize_graph(PAIRS, USERS + ITEMS).to_dense().numpy()
    np.testing.assert_allclose(found, dense_graph(), rtol=1e-6)
    np.testing.assert_array_equal(found, found.T)


def test_ids_without_neighbours_are_rows_of_zeros():
    pairs = PAIRS[(PAIRS[:, 0] != 3) & (PAIRS[:, 1] != USERS + 2)]
    found = normalize_graph(pairs, USERS + ITEMS).to_dense().numpy()
    np.testing.assert_allclose(found, dense_graph(pairs), rtol=1e-6)
    assert not found[3].any() and not found[:, USERS + 2].any()


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_lightgcn_propagates_as_the_dense_matrix_does(layers):
    network = ranking_network("lightgcn", layers=layers)
    rows = network.table.weight.detach().numpy().astype(np.float64)
    steps = [np.linalg.matrix_power(dense_graph(), k) @ rows for k in range(layers + 1)]
    wanted = np.mean(steps, axis=0)
    users, items = network.represent_all()
    np.testing.assert_allclose(users.detach().numpy(), wanted[:USERS], rtol=1e-4)
    np.testing.assert_allclose(items.detach().numpy(), wanted[USERS:], rtol=1e-4)


def test_lightgcn_s_gradient_is_the_dense_one():
    network = ranking_network("lightgcn", layers=2)
    ids = torch.tensor([0, 3]), torch.tensor([USERS, USERS + 1])
    (users, items), _ = network.represent(*ids)
    (users * items).sum().backward()
    weight = network.table.weight.detach().double().requires_grad_()
    graph = torch.from_numpy(dense_graph())
    spread = (weight + graph @ weight + graph @ graph @ weight) / 3
    (spread[ids[0]] * spread[ids[1]]).sum().backward()
    found = network.table.weight.grad.double()
    torch.testing.assert_close(found, weight.grad, rtol=1e-4, atol=1e-6)


def test_the_symmetric_product_s_gradient_passes_gradcheck():
    graph = normalize_graph(PAIRS, USERS + ITEMS).double()
    rng = np.random.default_rng(0)
    vectors = torch.from_numpy(rng.normal(size=(USERS + ITEMS, 2))).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: SymmetricProduct.apply(graph, x), (vectors,)
    )


@pytest.mark.parametrize("name", ["mf", "lightgcn"])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_batch_reads_what_all_ids_read(name, normalize):
    network = ranking_network(name, normalize=normalize)
    users, items = network.represent_all()
    batch = torch.tensor([2, 2, 5]), torch.tensor([USERS + 4]), torch.tensor([USERS])
    parts, read = network.represent(*batch)
    torch.testing.assert_close(parts[0], users[batch[0]])
    torch.testing.assert_close(parts[1], items[batch[1] - USERS])
    torch.testing.assert_close(parts[2], items[batch[2] - USERS])
    rows = network.table.weight[torch.cat(batch)]
    assert read.item() == pytest.approx(rows.square().sum().item(), rel=1e-5)
    if normalize:
        torch.testing.assert_close(users.norm(dim=1), torch.ones(USERS))


def test_mf_reads_the_rows_themselves():
    network = ranking_network("mf")
    users, items = network.represent_all()
    assert torch.equal(torch.cat([users, items]), network.table.weight)
    assert count_parameters(network) == 5 * (USERS + ITEMS)


def test_the_graph_is_no_part_of_the_state():
    """It is rebuilt from the pairs; a state holds what was learnt."""
    assert list(ranking_network("lightgcn").state_dict()) == ["table.weight"]


# -- names --------------------------------------------------------------------


def test_unknown_networks_are_value_errors():
    table = FullEmbedding(SPEC)
    with pytest.raises(ValueError, match="unknown network 'mf' for clicks; networks"):
        build_click_network("mf", table, FIELDS)
    with pytest.raises(ValueError, match="unknown network 'fm' for top-N; networks"):
        build_ranking_network("fm", table, 3, PAIRS)


def test_an_item_in_a_users_row_is_not_the_user():
    # One shared row for everybody: cosines of 1 with every item would rank nothing,
    # and with some rows an item of the user's own would always come first.
    spec = TableSpec.of_shape(30, 8)
    for shares in (True, False):
        table = HashingTrick.make(spec, rows=4, seed=1)
        table.shares_rows = shares
        network = MatrixFactorization(table, num_users=10, normalize=True)
        users, items = network.represent_all()
        same = table(network.ids)[:10, None].eq(table(network.ids)[None, 10:]).all(2)
        scores = (users @ items.T).detach()
        assert bool((scores[same] > 0.999).all()) != shares
        (some, others), _ = network.represent(network.ids[:3], network.ids[10:14])
        assert torch.equal(some, users[:3]) and torch.equal(others, items[:4])


def test_without_shared_rows_users_are_the_tables_rows():
    table = FullEmbedding(TableSpec.of_shape(30, 8), seed=1)
    users, items = MatrixFactorization(table, num_users=10).represent_all()
    assert torch.equal(torch.cat([users, items]), table(torch.arange(30)))
