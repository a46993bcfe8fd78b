"""Networks that generate rows: averages that are folded in, and content they read."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from survey_code import TableSpec, load_layout
from survey_code.catalog import get_method
from survey_code.data.synthetic import make_clicks
from survey_code.embedding import decode_layout
from survey_code.lab import default_trial, make_task
from survey_code.layouts import DenseLayout, GeneratorLayout
from survey_code.spec import OutOfReach
from survey_code.weight_sharing.hashing import DHE
from survey_code.weight_sharing.hashing.content import content_step, round_content
from survey_code.weight_sharing.hashing.dhe import EPSILON

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = 300
CONTENT = np.random.default_rng(0).normal(2, 3, size=(ROWS, 3)).astype(np.float32)
CONTENT[250:] = 0  # of which nothing is known
PLAIN = TableSpec.of_table(ROWS, 6, np.arange(ROWS), [0, 200, ROWS])
SPEC = dataclasses.replace(PLAIN, content=CONTENT)
IDS = torch.arange(ROWS)


def make(seed=3, **options):
    return DHE.make(SPEC, seed, **{"width": 9, "codes": 10, **options})


def learn(table, steps=5, rate=0.05, dtype=torch.float32):
    """Some steps on batches in which ids occur several times."""
    table.to(dtype).train()
    rng = np.random.default_rng(1)
    mover = torch.optim.Adam(table.parameters(), lr=rate)
    for _ in range(steps):
        batch = torch.from_numpy(rng.integers(0, ROWS, size=(40, 2)) ** 2 // ROWS)
        mover.zero_grad()
        (table(batch) - batch[..., None] / ROWS).square().sum().backward()
        mover.step()
    return table


def rows_of(table):
    return table.eval()(IDS).detach().numpy()


# -- averages -----------------------------------------------------------------------


@pytest.mark.parametrize("content", [0, 4])
@pytest.mark.parametrize("layers", [1, 5])
@pytest.mark.parametrize("activation", ["relu", "mish"])
def test_weights_that_took_averages_in_make_the_same_rows(activation, layers, content):
    table = make(
        normalisation="batch", layers=layers, activation=activation, content=content
    )
    learn(table)
    layout = table.freeze()
    np.testing.assert_allclose(
        decode_layout(layout), rows_of(table), rtol=1e-4, atol=1e-6
    )
    # As many bytes as without averages, and nothing else in the file.
    usual = make(layers=layers, activation=activation, content=content).freeze()
    assert layout.blueprint() == usual.blueprint()
    shapes = [{n: a.shape for n, a in one.arrays().items()} for one in (layout, usual)]
    assert shapes[0] == shapes[1] and layout.nbytes == usual.nbytes


def as_torch_builds(table):
    """The same network of torch's own layers, fresh averages included."""
    modules, layers = [], table.shape["layers"]
    for layer in range(layers + 1):
        matrix, bias = table.weights[2 * layer], table.weights[2 * layer + 1]
        kind = {"dtype": matrix.dtype}
        linear = torch.nn.Linear(*matrix.shape, bias=layer == layers, **kind)
        with torch.no_grad():
            linear.weight.copy_(matrix.T)
        if layer == layers:
            linear.bias.data.copy_(bias)
            modules.append(linear)
            break
        own = table.averages[layer]
        normal = torch.nn.BatchNorm1d(matrix.shape[1], eps=EPSILON, **kind)
        normal.weight.data.copy_(own.scale)
        normal.bias.data.copy_(bias)
        normal.running_mean.copy_(own.mean)
        normal.running_var.copy_(own.variance)
        modules += [linear, normal, torch.nn.Mish()]
    return torch.nn.Sequential(*modules)


def test_averages_are_torch_s_own():
    """Rows, gradients and running averages of torch's layers, on distinct ids."""
    table = learn(make(normalisation="batch", layers=3), dtype=torch.float64)
    table.zero_grad()
    twin = as_torch_builds(table).train()
    batch = torch.tensor([[7, 3, 7, 7], [250, 9, 3, 7]])
    rows = table.train()(batch)
    distinct = torch.tensor([3, 7, 9, 250])
    wanted = twin(table.encode(distinct))[torch.searchsorted(distinct, batch)]
    torch.testing.assert_close(rows, wanted)
    rows.square().sum().backward()
    wanted.square().sum().backward()
    for layer, own in enumerate(table.averages):
        linear, normal = twin[3 * layer], twin[3 * layer + 1]
        torch.testing.assert_close(own.mean, normal.running_mean)
        torch.testing.assert_close(own.variance, normal.running_var)
        torch.testing.assert_close(own.scale.grad, normal.weight.grad)
        torch.testing.assert_close(table.weights[2 * layer].grad, linear.weight.grad.T)
        torch.testing.assert_close(table.weights[2 * layer + 1].grad, normal.bias.grad)
    again = twin.eval()(table.encode(IDS)).detach().numpy()
    np.testing.assert_allclose(rows_of(table), again, rtol=1e-9)


def test_an_id_counts_once_in_a_batch():
    one, other = (make(normalisation="batch").train() for _ in range(2))
    one(torch.tensor([4, 8, 15]))
    other(torch.tensor([15, 8, 8, 8, 4, 8, 15]))
    torch.testing.assert_close(one.averages[0].mean, other.averages[0].mean)
    torch.testing.assert_close(one.averages[0].variance, other.averages[0].variance)


def test_a_batch_of_one_id_reads_what_all_batches_left():
    table = learn(make(normalisation="batch", layers=2))
    before = table.averages[0].mean.clone()
    alone = table.train()(torch.tensor([5, 5])).detach().numpy()
    assert (table.averages[0].mean == before).all()
    np.testing.assert_allclose(alone[0], rows_of(table)[5], rtol=1e-5)
    lonely = DHE.make(
        TableSpec.of_shape(1, 4), width=3, codes=4, normalisation="batch"
    ).freeze()
    assert np.isfinite(lonely.lookup([0])).all()


def test_weights_alone_may_learn_in_float64():
    """The training loop leaves a table's buffers as they are."""
    table = make(normalisation="batch", layers=2, content=4)
    for weight in table.parameters():
        weight.data = weight.data.double()
    table.train()(IDS).square().sum().backward()
    assert table.averages[0].mean.dtype == torch.float32
    rows = rows_of(table)
    assert rows.dtype == np.float64
    np.testing.assert_allclose(
        decode_layout(table.freeze()), rows, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("layers", [1, 3, 5])
@pytest.mark.parametrize("distribution", ["uniform", "gaussian"])
def test_deep_networks_begin_as_tables_do(distribution, layers):
    """Rows of the spread that a table's have, most of it between ids: with averages
    at any depth as much as at two.
    """
    spec = TableSpec.of_shape(2000, 16)
    apart = {}
    for normalisation in ("none", "batch"):
        table = DHE.make(
            spec, width=40, codes=80, layers=layers, distribution=distribution,
            normalisation=normalisation,
        )  # fmt: skip
        rows = table.eval()(torch.arange(2000)).detach().numpy()
        assert rows.std() == pytest.approx(spec.init_std, rel=0.05)
        apart[normalisation] = (rows - rows.mean(0)).std() / rows.std()
    assert apart["batch"] > 0.9 and apart["none"] > 0.75
    assert layers == 1 or apart["batch"] > apart["none"]


def test_averages_travel_with_the_state_and_are_no_weights():
    table = learn(make(normalisation="batch", layers=2))
    fresh = make(seed=9, normalisation="batch", layers=2)
    fresh.load_state_dict(table.state_dict())
    np.testing.assert_array_equal(rows_of(fresh), rows_of(table))
    learnt = sum(float(w.detach().square().sum()) for w in table.weights)
    assert table.squared_length().item() == pytest.approx(learnt, rel=1e-5)


def test_without_new_options_a_table_is_what_it_was():
    table = make()
    assert set(table.state_dict()) == {
        *(f"weights.{j}" for j in range(4)), "_extra_state"
    }  # fmt: skip
    assert set(table.freeze().arrays()) == {"values", "multipliers"}


# -- content ------------------------------------------------------------------------


def test_codes_of_content_by_hand():
    """Mean 2 and spread 1; a step is 2 spreads, and codes stand for -3, -1, 1, 3."""
    content = np.array([[1, 2], [3, 2], [0, 0]], np.float32)
    assert round_content(content, bits=2).tolist() == [[1, 2], [2, 2], [2, 2]]
    assert content_step(2) == 2
    far = np.array([[0, 1]] * 50 + [[1000, 1]], np.float32)
    assert round_content(far, bits=4)[-1].tolist() == [15, 8]


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**32), st.sampled_from([2, 4, 8]), st.floats(-50, 50),
    st.floats(0.01, 50),
)  # fmt: skip
def test_content_is_as_near_as_codes_come(seed, bits, mean, spread):
    content = np.random.default_rng(seed).normal(mean, spread, size=(60, 2))
    content = content.astype(np.float32)
    codes = round_content(content, bits)
    numbers = (codes - (2**bits - 1) / 2) * float(content_step(bits))
    wide = content.astype(np.float64)
    wanted = ((wide - wide.mean(0)) / wide.std(0)).clip(-3, 3)
    assert np.abs(numbers - wanted).max() <= float(content_step(bits)) / 2 + 1e-6


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("normalisation", ["none", "batch"])
def test_a_table_with_content_is_served_as_it_learnt(bits, normalisation, tmp_path):
    table = learn(make(content=bits, normalisation=normalisation, layers=2))
    layout = table.freeze()
    np.testing.assert_allclose(
        decode_layout(layout), rows_of(table), rtol=1e-4, atol=1e-6
    )
    told = layout.content.lookup(IDS.numpy())
    # At the start content weighs as much as all hashes together.
    rough = 0.4 if bits == 2 else 0.05
    assert told[:250].var(0).sum() == pytest.approx(10 / 3, rel=rough)
    np.testing.assert_array_equal(told, table.read_content(IDS).numpy())
    assert set(layout.arrays()) == {
        "values", "multipliers", "content/rows", "content/parameters"
    }  # fmt: skip
    layout.save(tmp_path / "table")
    again = load_layout(tmp_path / "table")
    np.testing.assert_array_equal(decode_layout(again), decode_layout(layout))
    assert again.nbytes == layout.nbytes and again.told == 3
    # The largest number that a row may hold.
    assert np.abs(decode_layout(layout)).max() <= layout.largest


def test_content_in_an_array_is_read_as_it_is():
    table = make(content=8)
    layout = table.freeze()
    dense = GeneratorLayout(
        layout.values, layout.multipliers, ROWS, 6, **table.shape, activation="mish",
        content=layout.content.lookup(IDS.numpy()),
    )  # fmt: skip
    np.testing.assert_allclose(decode_layout(dense), decode_layout(layout), rtol=1e-5)
    assert dense.nbytes - layout.nbytes == 4 * 3 * ROWS - 3 * ROWS - 4


def test_ids_differ_by_their_hashes_and_by_their_content():
    table = make(content=4)
    rows = rows_of(table)
    assert len(np.unique(rows[250:], axis=0)) == 50  # of no content
    codes = table.shape["codes"]
    with torch.no_grad():
        table.weights[0][:codes] = 0
    told = np.unique(table.content.numpy(), axis=0)
    assert len(np.unique(rows_of(table).round(7), axis=0)) == len(told) > 100


def test_what_one_id_learns_serves_an_unseen_id_of_its_content():
    """Hashes alone carry nothing from one id to another."""
    content = np.repeat(np.eye(3, dtype=np.float32), 100, axis=0)
    spec = dataclasses.replace(PLAIN, content=content)
    moved = {}
    for bits in (0, 4):
        table = DHE.make(spec, 1, width=30, codes=30, content=bits)
        before = rows_of(table)
        mover = torch.optim.Adam(table.train().parameters(), lr=0.01)
        wanted = torch.tensor([1.0, -1.0, 0.0])[torch.arange(300) // 100][:, None]
        seen = torch.arange(0, 300, 2)
        for _ in range(100):
            mover.zero_grad()
            (table(seen) - wanted[seen]).square().mean().backward()
            mover.step()
        moved[bits] = (rows_of(table) - before)[1::2].mean(axis=1)
    own = np.repeat([1.0, -1.0, 0.0], 50)
    assert np.corrcoef(moved[4], own)[0, 1] > 0.9
    assert abs(np.corrcoef(moved[0], own)[0, 1]) < 0.3


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_content_counts_in_the_budget(bits):
    spec = make_clicks("content", rows=(2000, 10, 10)).spec(16)
    method, ratio = get_method("dhe"), 7
    planned = method.plan(spec, ratio, content=bits)
    layout = method.build(spec, planned).freeze()
    stored = spec.num_embeddings * bits + 4  # eight entries an id
    assert layout.content.nbytes == stored
    weights = (planned.codes + 8 + 1 + 16) * planned.width + 16
    assert layout.nbytes == stored + 4 * weights + 24 <= spec.budget(ratio)
    wider = planned.replace(width=planned.width + 1, codes=planned.codes + 8)
    assert method.build(spec, wider).freeze().nbytes > spec.budget(ratio)
    with pytest.raises(OutOfReach) as found:
        method.plan(spec, 64 / bits, content=bits)
    reached = method.plan(spec, found.value.nearest, content=bits)
    assert reached.width == 1


def test_on_rows_with_unseen_ids_content_is_ahead():
    sizes = {"field_sizes": (1500, 1000, 40, 10), "rows": (20_000, 500, 6000)}
    data = make_clicks("content", **sizes, seed=3)
    trial = default_trial(data).adjust(epochs=3, table_learning_rate=0.04)
    found = {}
    for bits in (0, 4):
        task = make_task(data, trial, 0)
        method = get_method("dhe")
        planned = method.plan(task.spec, 6, content=bits, codes=32)
        learnt = task.learn(method, planned)
        found[bits] = task.test_apart(learnt.fitted.network, learnt.layout)
    lead = {g: found[4][g]["auc"] - found[0][g]["auc"] for g in found[4]}
    assert lead["unseen"] > 0.03 and lead["seen"] > 0.01


# -- what cannot be -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"normalisation": "layer"}, r"normalisation must be one of .*got 'layer'"),
        ({"content": 5}, r"content must be one of \(0, 8, 4, 3, 2, 1\), got 5"),
        ({"content": True}, r"content must be one of"),
        ({"content": 4, "open_ids": True}, "open_ids must be False, got True"),
        ({"layers": 0}, "layers must be an integer from 1"),
    ],
)
def test_options_that_cannot_be_are_a_value_error(options, said):
    with pytest.raises(ValueError, match=said):
        make(**options)


def test_without_content_one_error_says_what_is_needed():
    for call in (
        lambda: get_method("dhe").plan(PLAIN, 2, content=4),
        lambda: DHE.make(PLAIN, width=2, codes=2, content=4),
    ):
        with pytest.raises(ValueError, match=r"TableSpec\(content=\.\.\.\)"):
            call()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (np.ones((9, 3), np.float32), r"content must be .* of shape \(10, 3\)"),
        (np.ones((10, 3)), "content must be float32 or float16"),
        (np.ones(10, np.float32), "an array of two axes or a layout"),
        (np.full((10, 3), np.nan, np.float32), "numbers of content must be finite"),
        (DenseLayout(np.ones((10, 2), np.float32)), "values must be float32 of shape"),
    ],
)
def test_a_layout_whose_content_does_not_fit_is_a_value_error(content, said):
    values = np.zeros((4 + 3) * 2 + 2 + 2 * 5 + 5, np.float32)
    shape = {"codes": 4, "width": 2, "layers": 1}
    numbers = np.array([3, 5, 7])
    with pytest.raises(ValueError, match=said):
        GeneratorLayout(values, numbers, 10, 5, **shape, content=content)


def test_a_layout_of_open_ids_has_no_content():
    values = np.zeros((4 + 3) * 2 + 2 + 2 * 5 + 5, np.float32)
    shape = {"codes": 4, "width": 2, "layers": 1}
    numbers, content = np.array([3, 5, 7]), np.ones((10, 3), np.float32)
    with pytest.raises(ValueError, match="open_ids must be False"):
        GeneratorLayout(values, numbers, 10, 5, **shape, content=content, open_ids=True)
