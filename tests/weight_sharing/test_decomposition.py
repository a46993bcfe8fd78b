"""Decomposition: products of smaller tables, against their algebra and TensorLy."""

import dataclasses
import math

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given, settings, strategies as st
from sklearn.decomposition import TruncatedSVD
from tensorly.decomposition import tensor_train

import survey_code
from survey_code import TableSpec
from survey_code.embedding import TrainingStep, decode_layout
from survey_code.layouts import AnchorLayout, DenseLayout, TensorTrainLayout
from survey_code.layouts.tensor_train import (
    core_shapes,
    merge_cores,
    multiply_slices,
    take_mixed_digits,
)
from survey_code.order import largest_first
from survey_code.weight_sharing.decomposition import (
    ANT,
    MLET,
    STTD,
    LowRank,
    TTRec,
    decompose,
    divide_columns,
    divide_rows,
    semi_tensor_product,
    train_shapes,
    truncate,
)
from survey_code.weight_sharing.decomposition.trains import train_bytes

RNG = np.random.default_rng(0)
SPEC = TableSpec.of_shape(60, 8)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def step_at(table, progress, rate=0.1):
    return TrainingStep(lambda: None, lambda: None, table, rate, progress)


# -- low rank --------------------------------------------------------------


def test_truncation_error_is_the_tail_of_singular_values():
    """Eckart-Young: |W - W_r|^2 = sum of sigma_i^2 over i > r."""
    table = draw(50, 12)
    values = np.linalg.svd(table.astype(np.float64), compute_uv=False)
    for rank in (1, 5, 11):
        left, right = truncate(table, rank)
        error = ((table - left.astype(np.float64) @ right) ** 2).sum()
        assert error == pytest.approx((values[rank:] ** 2).sum(), rel=1e-5)


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1e15, 1e36])
@pytest.mark.parametrize("rows, dim", [(50, 12), (8, 30)])
def test_any_scale_is_truncated_alike(rows, dim, scale):
    table = (draw(rows, dim) * np.float64(scale)).astype(np.float32)
    left, right = truncate(table, 4)
    values = np.linalg.svd(table.astype(np.float64), compute_uv=False)
    error = ((table - left.astype(np.float64) @ right) ** 2).sum()
    assert error == pytest.approx((values[4:] ** 2).sum(), rel=1e-5)
    cores, lost = decompose(table, train_shapes(rows, dim, 2))
    assert all(np.isfinite(core).all() for core in cores)
    assert 0 < sum(lost) < (table.astype(np.float64) ** 2).sum()


def test_a_rank_beyond_the_tables_own_adds_nothing():
    table = draw(50, 3) @ draw(3, 12)
    left, right = truncate(table, 12)
    np.testing.assert_allclose(left @ right, table, rtol=1e-4, atol=1e-5)
    assert (truncate(np.zeros((5, 4), np.float32), 2)[0] == 0).all()


def test_truncation_is_scikit_learns():
    table = draw(50, 12)
    layout = survey_code.compress(table, "low_rank", rank=4)
    svd = TruncatedSVD(4, algorithm="arpack", random_state=0)
    theirs = svd.inverse_transform(svd.fit_transform(table.astype(np.float64)))
    np.testing.assert_allclose(decode_layout(layout), theirs, atol=1e-5)


def test_no_product_of_the_rank_is_nearer():
    table = draw(30, 6)
    left, right = truncate(table, 2)
    best = ((table - left @ right) ** 2).sum()
    for _ in range(20):
        other = (left + 0.05 * draw(30, 2)) @ (right + 0.05 * draw(2, 6))
        assert ((table - other) ** 2).sum() > best


def test_a_low_rank_table_has_the_rank():
    table = LowRank.make(SPEC, rank=3, seed=1)
    assert np.linalg.matrix_rank(decode_layout(table.freeze())) == 3


# -- digits and sizes ------------------------------------------------------


@given(st.integers(1, 10**6), st.integers(2, 5))
def test_row_sizes_hold_all_rows_and_digits_tell_them_apart(count, parts):
    sizes = divide_rows(count, parts)
    assert math.prod(sizes) >= count and len(sizes) == parts
    ids = np.unique(np.linspace(0, count - 1, 50).astype(np.int64))
    digits = take_mixed_digits(ids, sizes)
    weight = [math.prod(sizes[k + 1 :]) for k in range(parts)]
    assert (sum(d * w for d, w in zip(digits, weight)) == ids).all()
    assert all((d >= 0).all() and (d < s).all() for d, s in zip(digits, sizes))


@given(st.integers(1, 5000), st.integers(1, 4))
def test_column_sizes_multiply_to_the_dimension(count, parts):
    sizes = divide_columns(count, parts)
    assert math.prod(sizes) == count and len(sizes) == parts


# -- tensor trains ---------------------------------------------------------


def exact_train(ranks, rows=(3, 4, 5), columns=(2, 2, 2)):
    """A layout with random cores of given ranks."""
    shapes = np.array(
        [[n, c, a, b, 1] for n, c, a, b in zip(rows, columns, [1, *ranks], [*ranks, 1])]
    )
    cores = [draw(n, a, c, b) for n, c, a, b, _ in shapes]
    return TensorTrainLayout(cores, shapes, math.prod(rows), math.prod(columns)), cores


def test_a_row_is_the_product_of_its_slices():
    layout, cores = exact_train((3, 4))
    for i in (0, 7, 33, 59):
        a, b, c = np.unravel_index(i, (3, 4, 5))
        slices = cores[0][a, 0], cores[1][b], cores[2][c, ..., 0]
        slices = [part.astype(np.float64) for part in slices]
        row = np.einsum("xi,iyj,jz->xyz", *slices).ravel()
        # Rounding goes with the terms of a sum, which may cancel out.
        terms = np.einsum("xi,iyj,jz->xyz", *map(np.abs, slices)).ravel()
        found = layout.lookup(np.array([i]))[0]
        assert (np.abs(found - row) <= 1e-6 * terms).all()


def test_tt_svd_recovers_a_table_of_its_ranks():
    layout, _ = exact_train((3, 4))
    table = decode_layout(layout)
    cores, lost = decompose(table, layout.shapes)
    again = TensorTrainLayout(cores, layout.shapes, 60, 8)
    error = np.linalg.norm(decode_layout(again) - table) / np.linalg.norm(table)
    assert error < 1e-6
    assert sum(lost) < 1e-10 * (table.astype(np.float64) ** 2).sum()


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_tt_svd_error_is_the_sum_of_what_each_cut_lost(rank):
    """|W - TT(W)|^2 = sum of the discarded sigma^2 of all cuts, and at most the sum
    of the best errors of the unfoldings.
    """
    table = draw(60, 8)
    shapes = train_shapes(60, 8, rank)
    cores, lost = decompose(table, shapes)
    layout = TensorTrainLayout(cores, shapes, 60, 8)
    error = ((decode_layout(layout).astype(np.float64) - table) ** 2).sum()
    rows, columns = shapes[:, 0], shapes[:, 1]
    padded = np.zeros((rows.prod(), 8))
    padded[:60] = table
    tensor = padded.reshape(*rows, *columns).transpose(0, 3, 1, 4, 2, 5)
    bound = 0.0
    for cut in (1, 2):
        left = int((rows[:cut] * columns[:cut]).prod())
        values = np.linalg.svd(tensor.reshape(left, -1), compute_uv=False)
        bound += (values[shapes[cut, 2] :] ** 2).sum()
    # The padding's rows are part of what is approximated.
    assert error <= sum(lost) * (1 + 1e-5)
    assert sum(lost) <= bound * (1 + 1e-9)


def test_tt_svd_is_tensorlys():
    table = draw(60, 8)
    shapes = np.array([[3, 2, 1, 4, 1], [4, 2, 4, 6, 1], [5, 2, 6, 1, 1]])
    cores, _ = decompose(table, shapes)
    ours = TensorTrainLayout(cores, shapes, 60, 8)
    tensor = table.reshape(3, 4, 5, 2, 2, 2).transpose(0, 3, 1, 4, 2, 5)
    theirs = tensor_train(
        tensorly.tensor(tensor.reshape(6, 8, 10).astype(np.float64)), rank=[1, 4, 6, 1]
    )
    rebuilt = np.asarray(theirs.to_tensor()).reshape(3, 2, 4, 2, 5, 2)
    rebuilt = rebuilt.transpose(0, 2, 4, 1, 3, 5).reshape(60, 8)
    np.testing.assert_allclose(decode_layout(ours), rebuilt, atol=1e-5)


def test_inserting_a_matrix_and_its_inverse_changes_nothing():
    """Gauge freedom: G1 M and M^-1 G2 give the same rows."""
    layout, cores = exact_train((3, 4))
    turn = np.linalg.qr(draw(3, 3))[0] * 2
    first = cores[0] @ turn
    second = np.einsum("ij,njcr->nicr", np.linalg.inv(turn), cores[1])
    moved = [core.astype(np.float32) for core in (first, second, cores[2])]
    turned = TensorTrainLayout(moved, layout.shapes, 60, 8)
    np.testing.assert_allclose(decode_layout(turned), decode_layout(layout), atol=1e-4)


def test_composed_entries_start_at_the_full_tables_spread():
    """Var = r1 r2 sigma^6 for three cores."""
    spec = TableSpec.of_shape(8000, 64)
    for kind, options in (
        (TTRec, {"rank": 8}),
        (STTD, {"rank": 8}),
        (STTD, {"rank": 8, "step": 4}),
        (LowRank, {"rank": 8}),
        (MLET, {"columns": 32, "hidden": 64}),
    ):
        spreads = [
            decode_layout(kind.make(spec, seed=seed, **options).freeze()).std()
            for seed in range(4)
        ]
        assert np.mean(spreads) == pytest.approx(spec.init_std, rel=0.08), kind


def test_the_published_start_has_another_variance():
    spec = TableSpec.of_shape(8000, 64)
    table = TTRec.make(spec, rank=8, init="published", seed=0)
    drawn = table.cores[1].detach().abs() / (1 / math.sqrt(3 * 8000)) ** (1 / 3)
    assert drawn.min() > 2 - 1e-5  # only what lies beyond two deviations
    variance = decode_layout(table.freeze()).var()
    assert variance > 1000 / (3 * 8000)


def test_gradients_of_the_cores_are_finite_differences():
    table = TTRec.make(TableSpec.of_shape(20, 8), rank=3, seed=1).double()
    ids = torch.tensor([[3, 7], [19, 3]])
    weights = torch.randn(2, 2, 8, dtype=torch.float64)
    (table(ids) * weights).sum().backward()
    for core in table.cores:
        flat, grad = core.data.view(-1), core.grad.view(-1)
        for place in (0, len(flat) // 2, len(flat) - 1):
            before = flat[place].item()
            values = []
            for change in (1e-6, -1e-6):
                flat[place] = before + change
                values.append((table(ids) * weights).sum().item())
            flat[place] = before
            expected = (values[0] - values[1]) / 2e-6
            assert grad[place].item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_the_cache_holds_the_most_read_rows_and_they_learn_alone():
    table = TTRec.make(SPEC, rank=2, slots=4, seed=1)
    ids = torch.tensor([5] * 9 + [7] * 8 + [1] * 7 + [3] * 6 + [2] * 5)
    table.train()(ids)
    before = table(torch.arange(60)).detach()
    table.after_step(step_at(table, 0.05))
    assert (table.cached_ids < 0).all()  # not before a tenth of training
    table.after_step(step_at(table, 0.2))
    assert torch.nonzero(table.cached_ids >= 0).ravel().tolist() == [1, 3, 5, 7]
    torch.testing.assert_close(table(torch.arange(60)).detach(), before)
    with torch.no_grad():
        table.cached += 1
    moved = (table(torch.arange(60)).detach() - before).abs().sum(1) > 0
    assert torch.nonzero(moved).ravel().tolist() == [1, 3, 5, 7]
    layout = table.eval().freeze()
    np.testing.assert_allclose(
        decode_layout(layout), table(torch.arange(60)).detach().numpy(), atol=1e-6
    )


def test_cached_rows_ask_for_no_product():
    table = TTRec.make(SPEC, rank=2, slots=60, seed=1)
    table.train()(torch.arange(60))
    table.after_step(step_at(table, 0.2))
    (table(torch.tensor([[3, 7], [59, 3]])) ** 2).sum().backward()
    assert all(core.grad is None or not core.grad.any() for core in table.cores)
    assert torch.nonzero(table.cached.grad.any(1)).ravel().tolist() == [3, 7, 59]


def test_beginnings_that_ids_share_are_multiplied_once():
    """Rows of a batch are those of the layout, whatever digits the ids share."""
    table = TTRec.make(TableSpec.of_shape(60, 8), rank=3, seed=1)
    layout = table.freeze()
    for ids in ([0], [0, 1, 2, 3], [0, 20, 40], [7, 7, 59, 7], list(range(60))):
        np.testing.assert_allclose(
            table(torch.tensor(ids)).detach(), layout.lookup(np.array(ids)), atol=1e-6
        )


def test_rows_kept_in_full_after_training_are_exact():
    weight = draw(60, 8)
    counts = RNG.permutation(60)
    layout = survey_code.compress(weight, "tt_rec", rank=2, slots=10, counts=counts)
    busiest = largest_first(counts)[:10]
    assert (layout.lookup(busiest) == weight[busiest]).all()


@pytest.mark.parametrize("ratio", [2, 3, 5])
def test_a_low_rank_plan_is_the_largest_rank_inside_the_budget(ratio):
    spec = TableSpec.of_shape(3000, 16)
    rank = LowRank.plan(spec, ratio, LowRank.options())["rank"]
    sizes = [LowRank.make(spec, rank=r).freeze().nbytes for r in (rank, rank + 1)]
    assert sizes[0] <= spec.budget(ratio) < sizes[1]


@pytest.mark.parametrize("key, kind", [("low_rank", LowRank), ("tt_rec", TTRec)])
def test_without_a_budget_the_cores_take_half_of_the_table(key, kind):
    spec = TableSpec.of_shape(3000, 16)
    trained = kind.make(spec).freeze()
    after = survey_code.compress(draw(3000, 16), key)
    assert after.nbytes == trained.nbytes
    assert 0.45 * spec.full_bytes < after.nbytes < 0.51 * spec.full_bytes


@pytest.mark.parametrize("ratio", [2, 3])
def test_the_plan_is_the_largest_train_inside_the_budget(ratio):
    spec = TableSpec.of_shape(3000, 16)
    for kind in (TTRec, STTD):
        held = {"slots": 0} if kind is TTRec else {}
        asked = kind.options(**held)
        options = asked.replace(**kind.plan(spec, ratio, asked))
        size = kind(spec, options).freeze().nbytes
        assert size <= spec.budget(ratio)
        larger = kind(spec, options.replace(rank=options.rank + 1)).freeze().nbytes
        assert larger > spec.budget(ratio) or larger == size


def test_a_share_of_the_budget_keeps_rows_in_full():
    spec = TableSpec.of_shape(3000, 16)
    slots = [
        TTRec.plan(spec, 8, TTRec.options(slot_share=share))["slots"]
        for share in (0.0, 0.25, 0.5)
    ]
    assert slots[0] == 0 < slots[1] < slots[2]
    assert slots[2] <= 0.5 * spec.budget(8) / 64


@pytest.mark.parametrize(
    "options, message",
    [
        ({"slots": 5}, "slots are the most frequent ids: counts must be given"),
        ({"init": "nonsense"}, "init must be one of"),
        ({"init": "published"}, "after training it is 'exact', got 'published'"),
    ],
)
def test_what_has_no_meaning_after_training_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        survey_code.compress(draw(60, 8), "tt_rec", **options)


def test_rows_are_read_few_at_a_time(monkeypatch):
    layout, _ = exact_train((3, 4))
    ids = RNG.integers(60, size=100)
    whole = layout.lookup(ids)
    sizes = []
    read = TensorTrainLayout._read_some
    monkeypatch.setattr(
        TensorTrainLayout,
        "_read_some",
        lambda self, some: sizes.append(len(some)) or read(self, some),
    )
    monkeypatch.setattr(
        "survey_code.layouts.tensor_train.READ_NUMBERS", 7 * layout._most
    )
    np.testing.assert_array_equal(layout.lookup(ids), whole)
    assert max(sizes) == 7 and sum(sizes) == 100


# -- semi-tensor product ---------------------------------------------------


def test_semi_tensor_product_is_the_matrix_product_where_sizes_agree():
    a, b = RNG.normal(size=(2, 3)), RNG.normal(size=(3, 4))
    assert (semi_tensor_product(a, b) == a @ b).all()


@settings(max_examples=30)
@given(*(st.integers(1, 4) for _ in range(6)))
def test_semi_tensor_product_is_associative_and_bilinear(m, n, p, q, r, s):
    rng = np.random.default_rng(m + 10 * n + 100 * p)
    a, b, c = (rng.normal(size=size) for size in ((m, n), (p, q), (r, s)))
    left = semi_tensor_product(semi_tensor_product(a, b), c)
    right = semi_tensor_product(a, semi_tensor_product(b, c))
    np.testing.assert_allclose(left, right, atol=1e-10)
    d = rng.normal(size=(p, q))
    np.testing.assert_allclose(
        semi_tensor_product(a, b + 2 * d),
        semi_tensor_product(a, b) + 2 * semi_tensor_product(a, d),
        atol=1e-10,
    )


def test_transposed_semi_tensor_products_swap():
    """(A x B)^T = B^T x A^T."""
    a, b = RNG.normal(size=(3, 4)), RNG.normal(size=(2, 5))
    np.testing.assert_allclose(
        semi_tensor_product(a, b).T, semi_tensor_product(b.T, a.T), atol=1e-12
    )


def test_a_step_of_a_core_is_a_semi_tensor_product():
    state, core = RNG.normal(size=(3, 4)), RNG.normal(size=(2, 5))
    ours = multiply_slices(state[None], core[None, :, :, None], step=2)[0, :, 0]
    np.testing.assert_allclose(
        ours, semi_tensor_product(state, core).ravel(), atol=1e-12
    )


def test_a_step_saves_its_square():
    train = train_bytes(train_shapes(4096, 64, 16))
    semi = train_bytes(train_shapes(4096, 64, 16, step=2))
    middle = 16 * 16 * 4 * 16 * 4  # rows x left x columns x right, in bytes
    assert train - semi >= 0.7 * middle


# -- MLET ------------------------------------------------------------------


def test_collapsing_changes_no_vector():
    table = MLET.make(SPEC, columns=5, hidden=12, seed=2)
    ids = torch.arange(60)
    np.testing.assert_allclose(
        decode_layout(table.freeze()), table(ids).detach().numpy(), rtol=1e-5, atol=1e-8
    )


def test_a_step_on_one_row_moves_all_rows():
    table = MLET.make(SPEC, columns=4, hidden=8, seed=0)
    before = table(torch.arange(60)).detach()
    optimizer = torch.optim.SGD(table.parameters(), lr=1.0)
    table(torch.tensor([3])).sum().backward()
    optimizer.step()
    moved = (table(torch.arange(60)).detach() - before).abs().sum(1)
    assert (moved > 0).all() and moved.argmax() == 3


# -- ANT -------------------------------------------------------------------


def test_the_proximal_step_is_that_of_the_l1_norm_on_positive_numbers():
    """relu(t - eta lambda) minimises (x - t)^2 / 2 + eta lambda x over x >= 0."""
    table = ANT.make(SPEC, anchors=4, entries=240, sparsity=0.5, seed=0)
    with torch.no_grad():
        table.mixture.copy_(torch.linspace(-0.2, 0.6, 240).view(60, 4))
    before = table.mixture.detach().clone()
    table.after_step(step_at(table, 0.0, rate=0.2))
    grid = torch.linspace(0, 1, 2001)
    cost = (grid - before.ravel()[:, None]) ** 2 / 2 + 0.1 * grid
    best = grid[cost.argmin(1)].view(60, 4)
    torch.testing.assert_close(table.mixture.detach(), best, atol=6e-4, rtol=0)


def test_more_sparsity_leaves_fewer_weights():
    spec = TableSpec.of_shape(200, 8)
    kept = []
    for sparsity in (0.0, 0.05, 0.5):
        table = ANT.make(spec, anchors=8, entries=1600, sparsity=sparsity, seed=0)
        for progress in np.linspace(0, 0.4, 20):
            table.after_step(step_at(table, progress))
        kept.append(len(table.freeze().weights))
    assert kept[0] > kept[1] > kept[2] >= 0


def test_the_budget_of_weights_is_kept_by_the_largest():
    table = ANT.make(SPEC, anchors=6, entries=50, sparsity=0.0, seed=0)
    before = table.mixture.detach().clone()
    table.after_step(step_at(table, 0.5))
    layout = table.freeze()
    assert len(layout.weights) == 50
    assert layout.weights.min() >= np.sort(before.numpy().ravel())[-50]
    with torch.no_grad():
        table.mixture += 1  # what was cut off stays off
    table.after_step(step_at(table, 0.6))
    assert len(table.freeze().weights) == 50


def test_weights_of_rows_that_are_read_often_are_kept():
    counts = np.where(np.arange(60) < 10, 900, 1)
    spec = dataclasses.replace(TableSpec.of_shape(60, 8), train_counts=counts)
    table = ANT.make(spec, anchors=4, entries=40, seed=1)
    with torch.no_grad():  # learnt weights no larger than those of untouched rows
        table.mixture.fill_(0.4)
        table.mixture[:10] = 0.3
    kept = table.choose_largest()
    assert kept[:10].all() and not kept[10:].any()


def test_one_weight_of_one_for_each_row_is_a_clustering():
    anchors, cluster = draw(5, 8), RNG.integers(5, size=60)
    mixture = np.eye(5, dtype=np.float32)[cluster]
    layout = AnchorLayout.from_dense(mixture, anchors)
    assert (decode_layout(layout) == anchors[cluster]).all()


def test_rows_without_weights_are_zeros():
    mixture = np.zeros((4, 3), dtype=np.float32)
    mixture[2, 1] = 2
    layout = AnchorLayout.from_dense(mixture, draw(3, 5))
    rows = layout.lookup(np.array([0, 2, 2, 3]))
    assert not rows[[0, 3]].any() and (rows[1] == rows[2]).all() and rows[1].any()


# -- errors ----------------------------------------------------------------


@pytest.mark.parametrize(
    "key, options, message",
    [
        ("low_rank", {"rank": 9}, "rank must be an integer from 1 to 8, got 9"),
        ("low_rank", {"rank": 0}, "rank must be an integer from 1 up, got 0"),
        ("tt_rec", {"rank": 0}, "rank must be an integer from 1 to 65536, got 0"),
        ("tt_rec", {"rank": 2, "slots": 61}, "slots must be an integer from 0 to 60"),
    ],
)
def test_bad_options_of_compress_are_value_errors(key, options, message):
    with pytest.raises(ValueError, match=message):
        survey_code.compress(draw(60, 8), key, **options)


@pytest.mark.parametrize(
    "kind, options, message",
    [
        (LowRank, {"rank": 9}, "rank must be an integer from 1 to 8, got 9"),
        (TTRec, {"rank": 2, "init": "zero"}, "init must be one of"),
        (TTRec, {"rank": 2, "slots": 61}, "slots must be an integer from 0 to 60"),
        (STTD, {}, "rank is not set"),
        (STTD, {"rank": 2, "step": 0}, "step must be an integer from 1"),
        (
            MLET,
            {"columns": 9, "hidden": 9},
            "columns must be an integer from 1 to 8, got 9",
        ),
        (MLET, {"columns": 4, "hidden": 3}, "hidden must be an integer from 4"),
        (ANT, {"anchors": 0, "entries": 1}, "anchors must be an integer"),
        (ANT, {"anchors": 2, "entries": 121}, "entries must be .* 0 to 120, got 121"),
        (
            ANT,
            {"anchors": 2, "entries": 1, "sparsity": -1},
            "sparsity must be a number from 0 up, got -1",
        ),
    ],
)
def test_bad_options_of_tables_are_value_errors(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind.make(SPEC, **options)


SHAPES = np.array([[3, 2, 1, 3, 1], [4, 2, 3, 4, 1], [5, 2, 4, 1, 1]])
CORES = [draw(*shape) for shape in core_shapes(SHAPES)]


@pytest.mark.parametrize(
    "cores, shapes, message",
    [
        (CORES, np.array([[60, 8, 1, 2, 1]]), "do not make a table"),
        (CORES, SHAPES - [[1, 0, 0, 0, 0]], "do not make a table of 60 x 8"),
        (CORES, SHAPES * [[1, 1, 1, 1, 2]], "do not make a table"),
        (CORES, SHAPES * [[1, 1, 1, 1, 0]], "sizes from 1 up"),
        (CORES, SHAPES[:0], "needs a core"),
        (CORES, SHAPES[:, :4], r"shapes must be int64 of shape \(cores, 5\)"),
        (CORES, SHAPES.astype(np.int32), "shapes must be int64"),
        (CORES[:2], SHAPES, "shapes are of 3 cores, not 2"),
        ([*CORES, CORES[0]], SHAPES, "shapes are of 3 cores, not 4"),
        ([CORES[0], CORES[1][:-1], CORES[2]], SHAPES, "core 1 must be float32"),
        ([CORES[0], CORES[1].reshape(4, -1), CORES[2]], SHAPES, "core 1 must be"),
        ([CORES[0].astype(np.float64), *CORES[1:]], SHAPES, "core 0 must be float32"),
        (
            [*CORES[:2], DenseLayout(CORES[2].reshape(4, 10))],
            SHAPES,
            r"or a layout of shape \(5, 8\)",
        ),
    ],
)
def test_contradicting_cores_are_value_errors(cores, shapes, message):
    assert TensorTrainLayout(CORES, SHAPES, 60, 8).num_embeddings == 60
    with pytest.raises(ValueError, match=message):
        TensorTrainLayout(cores, shapes, 60, 8)


def test_a_core_may_be_a_layout_of_its_slices():
    layout, cores = exact_train((3, 4))
    flat = [core.reshape(len(core), -1) for core in cores]
    ids = np.arange(60)
    same = TensorTrainLayout([DenseLayout(c) for c in flat], layout.shapes, 60, 8)
    np.testing.assert_array_equal(same.lookup(ids), layout.lookup(ids))
    assert same.nbytes == layout.nbytes
    rounded = [survey_code.compress(core, "rowwise", bits=8) for core in flat]
    nested = TensorTrainLayout(rounded, layout.shapes, 60, 8)
    read = [
        part.lookup(np.arange(len(core))).reshape(core.shape)
        for part, core in zip(rounded, cores)
    ]
    wanted = TensorTrainLayout(read, layout.shapes, 60, 8)
    np.testing.assert_array_equal(nested.lookup(ids), wanted.lookup(ids))
    half = [core.astype(np.float16) for core in cores]
    wanted = [core.astype(np.float32) for core in half]
    np.testing.assert_array_equal(
        TensorTrainLayout(half, layout.shapes, 60, 8).lookup(ids),
        TensorTrainLayout(wanted, layout.shapes, 60, 8).lookup(ids),
    )


@pytest.mark.parametrize("most", [1, 2, 3])
def test_merged_cores_are_the_same_train(most):
    shapes = [(3, 2, 1, 4, 1), (5, 2, 4, 6, 2), (2, 1, 6, 2, 1), (4, 3, 2, 1, 1)]
    shapes = np.array(shapes, dtype=np.int64)
    layout = TensorTrainLayout([draw(*s) for s in core_shapes(shapes)], shapes, 120, 12)
    cores, steps = merge_cores(layout.decoded_cores(), [1, 2, 1, 1], most)
    assert len(cores) == len(steps) == most
    state = np.ones((120, 1, 1), dtype=np.float32)
    digits = take_mixed_digits(np.arange(120), [len(core) for core in cores])
    for own, core, step in zip(digits, cores, steps, strict=True):
        state = multiply_slices(state, core[own], step)
    wanted = layout.lookup(np.arange(120))
    np.testing.assert_allclose(state[:, :, 0], wanted, rtol=1e-4, atol=1e-5)
