"""Vector quantisation: Lloyd, products, sums, learned codes; each by its law."""

import itertools
import re

import faiss
import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from survey_code import TableSpec, compress, data
from survey_code.catalog import get_method
from survey_code.embedding import Regime, TrainingStep, decode_layout
from survey_code.spec import OutOfReach
from survey_code.weight_sharing import lloyd
from survey_code.weight_sharing.vector_quantization import (
    CCE,
    DPQ,
    MGQE,
    LightRec,
    RecJPQ,
    cluster_rows,
    count_perplexity,
    nearest_rows,
    quantize_product,
    quantize_residuals,
    rank_into_bins,
)

SPEC = TableSpec.of_shape(400, 8)
IDS = torch.arange(400)
NORMAL = np.random.default_rng(0).normal(size=(2000, 16))
MANY = np.random.default_rng(0).normal(size=(4000, 16)).astype(np.float32)


def fresh():
    return np.random.default_rng(1)


# -- k-means -----------------------------------------------------------------


def test_lloyds_loss_never_rises():
    losses = cluster_rows(NORMAL, 30, fresh(), tolerance=0).losses
    assert len(losses) > 5 and (np.diff(losses) <= 1e-9).all()


def test_lloyd_is_as_good_as_scikit_learns():
    ours = cluster_rows(NORMAL, 64, fresh(), iterations=100, tolerance=0).losses[-1]
    theirs = KMeans(64, init="random", n_init=1, random_state=0).fit(NORMAL).inertia_
    assert ours == pytest.approx(theirs, rel=0.02)


def test_the_nearest_are_those_of_all_distances():
    centroids = NORMAL[:37] + 0.1
    gaps = ((NORMAL[:, None] - centroids) ** 2).sum(2)
    codes, errors = nearest_rows(NORMAL, centroids)
    np.testing.assert_array_equal(codes, gaps.argmin(1))
    np.testing.assert_allclose(errors, gaps.min(1), rtol=1e-12)


def test_energy_splits_at_a_fixed_point():
    # |E|^2 = |E^|^2 + |E - E^|^2 where centroids are the means of their rows.
    found = cluster_rows(NORMAL, 20, fresh(), iterations=500, tolerance=0)
    rows = found.centroids[found.codes]
    whole = (NORMAL**2).sum()
    assert whole == pytest.approx((rows**2).sum() + ((NORMAL - rows) ** 2).sum())


def test_as_many_clusters_as_rows_lose_nothing():
    found = cluster_rows(NORMAL[:50], 50, fresh())
    assert found.losses[-1] == 0


def test_empty_clusters_move_and_leave_no_nan():
    points = np.repeat([[0.0], [1.0], [5.0]], 10, axis=0)
    found = cluster_rows(points, 3, np.random.default_rng(0), tolerance=0)
    assert np.isfinite(found.centroids).all() and found.losses[-1] == 0


def test_weights_count_like_repeated_rows():
    points, counts = NORMAL[:40, :2], np.random.default_rng(2).integers(1, 6, 40)
    first = points[:5]
    repeated = np.repeat(points, counts, axis=0)
    weighted = nearest_rows(points, first)[1] @ counts
    assert weighted == pytest.approx(nearest_rows(repeated, first)[1].sum())


@pytest.mark.parametrize("dim", [1, 3, 64])
@pytest.mark.parametrize("offset, spread", [(0, 1), (1e4, 1), (0, 1e-22), (0, 1e30)])
def test_roundings_choose_no_centroid(dim, offset, spread):
    # Compared in float32, and anew in float64 where that could have erred.
    rng = np.random.default_rng(dim)
    points, centroids = (
        (offset + spread * rng.normal(size=(size, dim))).astype(kind)
        for size, kind in ((3000, np.float32), (50, np.float64))
    )
    gaps = ((points[:, None] - centroids) ** 2).sum(2)
    codes, errors = nearest_rows(points, centroids)
    np.testing.assert_array_equal(codes, gaps.argmin(1))
    np.testing.assert_allclose(errors, gaps.min(1), rtol=1e-12)
    nearest, sure = lloyd.compare_rounded(points, centroids)
    np.testing.assert_array_equal(nearest[sure], gaps.argmin(1)[sure])
    assert sure.mean() > 0.95


def test_of_equally_near_centroids_the_first_is_named():
    points = np.random.default_rng(0).integers(3, size=(500, 4)).astype(np.float32)
    centroids = np.random.default_rng(1).integers(3, size=(30, 4)) / 2.0
    gaps = ((points[:, None] - centroids) ** 2).sum(2)  # without rounding
    assert (np.sort(gaps)[:, 0] == np.sort(gaps)[:, 1]).any()
    np.testing.assert_array_equal(nearest_rows(points, centroids)[0], gaps.argmin(1))


def test_a_sample_stands_for_all_rows():
    rng = np.random.default_rng(0)
    weights = rng.zipf(1.8, size=5000).clip(max=10**4).astype(np.float64)
    some, counts = lloyd.sample_rows(5000, weights, 800, rng)
    assert len(some) <= 800 and (np.diff(some) > 0).all()
    assert counts.sum() == pytest.approx(weights.sum())
    heavy = weights > weights.sum() / 800
    assert heavy.any() and set(np.flatnonzero(heavy)) <= set(some.tolist())
    np.testing.assert_array_equal(counts[np.isin(some, np.flatnonzero(heavy))],
                                  weights[heavy])  # fmt: skip
    drawn = np.zeros(5000)
    for seed in range(200):
        some, counts = lloyd.sample_rows(
            5000, weights, 800, np.random.default_rng(seed)
        )
        drawn[some] += counts / 200
    light = weights == 1
    assert drawn[light].mean() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("dim", [2, 8, 32])
def test_a_sample_finds_clusters_as_good_as_all_rows(dim):
    points = np.random.default_rng(3).standard_t(5, size=(12_000, dim))
    points = points.astype(np.float32)
    whole, part = [], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        whole.append(cluster_rows(points, 20, rng).losses[-1])
        found = cluster_rows(points, 20, rng, sample=256)
        codes, errors = nearest_rows(points, found.centroids)
        np.testing.assert_array_equal(found.codes, codes)
        assert found.losses[-1] == pytest.approx(errors.sum(), rel=0.1)
        part.append(errors.sum())
    assert np.mean(part) < 1.03 * np.mean(whole)


def test_a_sample_of_few_different_rows_leaves_no_nan():
    points = np.repeat(np.eye(3, dtype=np.float32), 2000, axis=0)
    found = cluster_rows(points, 8, fresh(), sample=64)
    assert np.isfinite(found.centroids).all()
    assert (found.centroids[found.codes] == points).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_rows_to_cluster_are_finite(wrong):
    points = NORMAL.copy()
    points[77, 3] = wrong
    for cluster in (
        lambda: cluster_rows(points, 4, fresh()),
        lambda: quantize_product(points, 4, 4, fresh()),
        lambda: quantize_residuals(points, 2, 4, fresh()),
    ):
        with pytest.raises(ValueError, match="rows to cluster must be finite"):
            cluster()


@pytest.mark.parametrize("clusters", [0, 41, 2.5])
def test_wrong_numbers_of_clusters_are_value_errors(clusters):
    with pytest.raises(ValueError, match="clusters must be an integer from 1 to 40"):
        cluster_rows(NORMAL[:40], clusters, fresh())


# -- products ----------------------------------------------------------------


def test_distortion_falls_with_codewords_and_with_books():
    def distortion(books, clusters):
        return quantize_product(NORMAL, books, clusters, fresh()).losses[-1]

    by_words = [distortion(1, k) for k in (4, 8, 16, 32, 64)]
    by_books = [distortion(m, 16) for m in (1, 2, 4, 8)]
    assert (np.diff(by_words) < 0).all() and (np.diff(by_books) < 0).all()


def test_no_code_beats_shannons_bound():
    # D(R) >= 2**(-2 R) for entries of variance 1 at R bits each.
    for books, bits in ((2, 4), (4, 4), (8, 6), (16, 2)):
        found = quantize_product(NORMAL, books, 1 << bits, fresh())
        rate = books * bits / 16
        assert found.losses[-1] / NORMAL.size > 0.99 * 2 ** (-2 * rate)


@pytest.mark.parametrize("rotate", [False, True])
def test_products_of_a_sample_are_as_good_as_faisss(rotate):
    table = MANY if rotate else np.concatenate([MANY, -MANY])
    index = faiss.ProductQuantizer(16, 4, 4)
    index.train(table)
    theirs = ((table - index.decode(index.compute_codes(table))) ** 2).sum()
    found = quantize_product(table, 4, 16, fresh(), sample=64, rotate=rotate)
    assert ((table - found.decode()) ** 2).sum() < 1.05 * theirs


def test_heads_are_asked_for_with_counts():
    weight = MANY[:400]
    with pytest.raises(ValueError, match="heads are the most frequent ids: counts"):
        compress(weight, "clustering", heads=5)
    plan = get_method("clustering").plan(TableSpec.of_shape(400, 16), 8)
    assert plan.heads == 0  # nobody knows which


@pytest.mark.parametrize("key", ["pq", "dpq", "mgqe"])
def test_codewords_are_as_long_as_asked(key):
    spec, method = TableSpec.of_shape(4000, 16), get_method(key)
    assert 16 // method.plan(spec, 8).books < 4
    assert 16 // method.plan(spec, 8, width=4).books >= 4
    with pytest.raises(ValueError, match=f"{key}: width must be .* 1 to 16, got 17"):
        method.plan(spec, 8, width=17)
    with pytest.raises(ValueError, match=f"{key}: width must be .* 1 to 2, got 4"):
        method.plan(spec, 8, width=4, books=8)


def test_recjpq_tries_longer_codewords_too(pairs):
    method = get_method("recjpq")
    assert method.load().options.grid() == {"width": (1, 4)}
    assert 32 // method.plan(pairs, 16, width=4).books >= 4


def test_the_error_is_the_sum_over_the_books():
    found = quantize_product(NORMAL, 4, 16, fresh())
    gaps = (NORMAL - found.decode()).reshape(-1, 4, 4)
    assert (gaps**2).sum() == pytest.approx(found.losses[-1])


def test_product_quantisation_is_as_good_as_faisss():
    table = MANY
    index = faiss.ProductQuantizer(16, 4, 6)
    index.train(table)
    theirs = ((table - index.decode(index.compute_codes(table))) ** 2).sum()
    ours = quantize_product(table, 4, 64, fresh()).losses[-1]
    assert ours < 1.05 * theirs


def test_residual_quantisation_is_as_good_as_faisss():
    table = MANY
    index = faiss.ResidualQuantizer(16, 4, 6)
    index.max_beam_size = 1
    index.train(table)
    theirs = ((table - index.decode(index.compute_codes(table))) ** 2).sum()
    ours = quantize_residuals(table, 4, 64, fresh()).losses[-1]
    assert ours < 1.05 * theirs


def test_every_book_of_residuals_lowers_the_error():
    losses = quantize_residuals(NORMAL, 6, 16, fresh()).losses
    assert (np.diff(losses) < 0).all()
    assert losses[0] == pytest.approx((NORMAL**2).sum())


def test_a_rotation_is_orthogonal_and_never_raises_the_error():
    skewed = NORMAL @ np.random.default_rng(3).normal(size=(16, 16))
    plain = quantize_product(skewed, 4, 16, fresh())
    turned = quantize_product(skewed, 4, 16, fresh(), rotate=True)
    assert turned.losses[-1] < 0.99 * plain.losses[-1]
    assert (np.diff(turned.losses) <= 1e-6).all()
    unit = turned.rotation @ turned.rotation.T
    np.testing.assert_allclose(unit, np.eye(16), atol=1e-10)


@pytest.mark.parametrize(
    "make",
    [
        lambda w: compress(w, "pq", books=4, bits=5),
        lambda w: compress(w, "pq", books=4, bits=5, rotate=True),
        lambda w: compress(w, "pq", books=2, bits=4, half=True),
        lambda w: compress(
            w, "clustering", clusters=9, heads=20, counts=np.arange(400)
        ),
        lambda w: LightRec.make(SPEC, books=3, bits=4).freeze(),
        lambda w: CCE.make(SPEC, books=2, bits=4).freeze(),
    ],
)
def test_scores_by_table_look_up_are_those_of_decoded_rows(make):
    layout = make(NORMAL[:400, :8].astype(np.float32))
    queries = np.random.default_rng(4).normal(size=(7, 8)).astype(np.float32)
    wanted = queries @ decode_layout(layout).T
    np.testing.assert_allclose(layout.scores(queries), wanted, rtol=1e-4, atol=1e-5)
    best = np.argsort(-layout.scores(queries), axis=1, kind="stable")[:, :10]
    np.testing.assert_array_equal(layout.topk(queries, 10), best)


def test_heads_keep_their_rows_and_fields_their_own_clusters():
    weight = NORMAL[:400, :8].astype(np.float32)
    counts = np.arange(400)[::-1]
    layout = compress(
        weight, "clustering", clusters=8, heads=30, counts=counts,
        field_starts=[0, 150, 400],
    )  # fmt: skip
    rows = decode_layout(layout)
    np.testing.assert_array_equal(rows[:30], weight[:30])
    assert len(np.unique(rows[30:150], axis=0)) == 8
    assert len(np.unique(rows[150:], axis=0)) == 8


# -- rows that are read more count more ----------------------------------------

WEIGHTED = {
    "pq": {"books": 4, "bits": 4},
    "pq, turned": {"books": 4, "bits": 4, "rotate": True},
    "pq, of a sample": {"books": 4, "bits": 4, "sample": 20},
    "clustering": {"clusters": 30},
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_lower_the_error_of_what_is_read_and_no_other(name):
    """Of three tables each, by more than two deviations."""
    better, worse = [], []
    for seed in (1, 2, 3):
        rng = np.random.default_rng(seed)
        counts = np.floor(3000 / (1 + rng.permutation(900))).astype(np.int64)
        # Rows that are read often are longer, as those of trained tables are.
        table = rng.normal(size=(900, 8)) * (counts / counts.mean())[:, None] ** 0.2
        errors = {}
        for weighted in (True, False):
            asked = {**WEIGHTED[name], "weighted": weighted, "counts": counts}
            layout = compress(table, name.split(",")[0], **asked)
            lost = ((decode_layout(layout) - table) ** 2).sum(axis=1)
            errors[weighted] = np.log([lost @ counts, lost.sum()])
        read, plain = errors[False] - errors[True]
        better.append(read)
        worse.append(-plain)
    for gaps in (better, worse):
        assert np.mean(gaps) > 2 * np.std(gaps, ddof=1)


@pytest.mark.parametrize("name", WEIGHTED)
def test_counts_that_are_not_known_or_all_alike_weigh_nothing(name):
    table, asked = NORMAL[:300, :8], WEIGHTED[name]
    key = name.split(",")[0]
    plain = compress(table, key, weighted=False, **asked)
    same = [compress(table, key, **asked)]
    if "sample" not in asked:  # which rows are drawn follows from their weights
        same.append(compress(table, key, counts=np.full(300, 7), **asked))
    for layout in same:
        np.testing.assert_allclose(
            decode_layout(layout), decode_layout(plain), rtol=1e-5, atol=1e-6
        )


# -- codes that are learned ----------------------------------------------------


def product(kind="vq", **options):
    return DPQ.make(SPEC, books=2, bits=3, kind=kind, **options).train()


def test_dpqs_forward_is_the_nearest_codeword():
    table = product(normalize=False)
    queries = table.queries.detach().numpy().reshape(400, 2, 4)
    words = table.values.detach().numpy()
    parts = [words[j][nearest_rows(queries[:, j], words[j])[0]] for j in range(2)]
    np.testing.assert_allclose(
        table(IDS).detach().numpy(), np.concatenate(parts, 1), atol=1e-8
    )


def test_dpqs_gradient_goes_through_to_the_query():
    # d out / d q is the identity, and nothing reaches the codewords.
    table = product()
    gradient = torch.randn(400, 8)
    (table(IDS) * gradient).sum().backward()
    assert torch.allclose(table.queries.grad, gradient)
    assert table.values.grad is None


def test_dpqs_penalty_moves_codewords_and_never_queries():
    table = product()
    table(IDS)
    table.penalty().backward()
    assert table.values.grad.abs().sum() > 0
    assert table.queries.grad is None


def test_dpqs_commitment_moves_queries():
    table = product(commitment=0.5)
    table(IDS)
    table.penalty().backward()
    assert table.queries.grad.abs().sum() > 0


def test_dpq_sx_has_the_gradient_of_its_softmax():
    table = product("sx", normalize=False, temperature=0.7)
    gradient = torch.randn(400, 8)
    (table(IDS) * gradient).sum().backward()
    found = table.queries.grad.clone()
    queries = table.queries.detach().clone().requires_grad_()
    parts = queries.unflatten(1, (2, 4)).transpose(0, 1)
    shares = (parts @ table.keys.detach().transpose(1, 2) / 0.7).softmax(2)
    soft = (shares @ table.values.detach()).transpose(0, 1).flatten(1)
    (soft * gradient).sum().backward()
    assert torch.allclose(found, queries.grad, atol=1e-7)


def test_normalised_responses_have_mean_0_and_variance_1():
    table = product("sx")
    responses = table.answer(table.queries, IDS)
    assert responses.mean(1).abs().max() < 1e-4
    assert torch.allclose(responses.var(1, unbiased=False), torch.ones(2, 8), atol=1e-3)


def test_perplexity_counts_codewords_in_use():
    codes = np.stack([np.arange(64) % 8, np.zeros(64, int)], 1)
    np.testing.assert_allclose(count_perplexity(codes, 8), [8, 1])


@pytest.mark.parametrize("kind", ["vq", "sx"])
def test_exported_codes_are_those_of_eval_mode(kind):
    table = product(kind)
    for _ in range(5):
        table(IDS)  # moves running statistics
    rows = table.eval()(IDS).detach().numpy()
    np.testing.assert_allclose(decode_layout(table.freeze()), rows, rtol=1e-6)


def test_tails_use_the_first_codewords_only():
    counts = np.arange(400)
    spec = TableSpec(400, 8, [0, 400], counts)
    table = MGQE.make(spec, books=2, bits=5, tail_bits=2, head_share=0.25)
    codes = table.all_codes()
    assert codes[:300].max() < 4 <= codes[300:].max() < 32
    whole = MGQE.make(spec, books=2, bits=5, tail_bits=5)
    plain = DPQ.make(spec, books=2, bits=5, normalize=False)
    np.testing.assert_array_equal(whole.all_codes(), plain.all_codes())


def test_one_row_is_a_head_without_a_tail():
    table = MGQE.make(TableSpec.of_shape(1, 8), books=2, bits=2, tail_bits=1)
    row = table.eval()(torch.tensor([0])).detach().numpy()
    np.testing.assert_array_equal(table.freeze().lookup([0]), row)


def test_a_query_that_is_not_finite_has_no_code():
    for table in (
        product(),
        MGQE.make(SPEC, books=2, bits=3, tail_bits=2),
        LightRec.make(SPEC, books=2, bits=3),
    ):
        with torch.no_grad():
            table.queries[5, 3] = torch.nan
        with pytest.raises(ValueError, match="queries"):
            table.freeze()


def test_lightrec_starts_as_a_table_and_ends_as_sums():
    table = LightRec.make(SPEC, books=3, bits=4).train()
    assert torch.equal(table(IDS), table.queries)
    table.advance(0.4)
    assert not table.begun
    table.advance(0.5)
    assert table.begun
    found = quantize_residuals(
        table.queries.detach().numpy(), 3, 16, np.random.default_rng(2)
    )
    left = (table(IDS) - table.queries).square().sum().item()
    assert left == pytest.approx(found.losses[-1], rel=0.1)
    gradient = torch.randn(400, 8)
    (table(IDS) * gradient).sum().backward()
    assert torch.allclose(table.queries.grad, gradient)


# -- codes from the start ------------------------------------------------------


def test_bins_hold_equally_many():
    codes = rank_into_bins(NORMAL[:, :3], 16)
    for column in codes.T:
        assert np.bincount(column).tolist() == [125] * 16


@pytest.fixture(scope="module")
def pairs():
    return data.load("synthetic-interactions").spec(32, 0.1)


def test_ids_that_are_read_alike_share_more_codes(pairs):
    table = RecJPQ.make(pairs, books=4, bits=4)
    codes = table.codes.numpy().astype(int)[pairs.field_starts[1] :]
    matrix = np.zeros((pairs.field_starts[1], len(codes)))
    matrix[pairs.interactions[:, 0], pairs.interactions[:, 1] - len(matrix)] = 1
    unit = matrix / np.linalg.norm(matrix, axis=0).clip(1)
    alike = unit.T @ unit
    np.fill_diagonal(alike, 0)
    nearest = alike.argmax(1)
    gap = np.abs(codes - codes[nearest]).mean()
    by_chance = np.abs(codes - np.random.default_rng(5).permutation(codes)).mean()
    assert gap < 0.7 * by_chance


def test_recjpq_trains_codewords_only(pairs):
    table = RecJPQ.make(pairs, books=4, bits=4)
    assert [p.shape for p in table.parameters()] == [(2 * 4 * 16, 8)]
    assert sum(b.nbytes for b in table.buffers()) == 4 * pairs.num_embeddings


def test_recjpq_says_what_it_needs():
    with pytest.raises(ValueError, match="interactions of users and items"):
        RecJPQ.make(SPEC, books=2, bits=3)
    with pytest.raises(ValueError, match=r"recjpq: .*interactions of users and items"):
        get_method("recjpq").plan(SPEC, 4)
    assert get_method("recjpq").tasks == ("top-n",)


def test_clustering_again_keeps_the_rows_as_well_as_k_means_can():
    table = CCE.make(SPEC, books=2, bits=5)
    before = table(IDS).detach().numpy().reshape(400, 2, 4)
    table.cluster()
    after = table(IDS).detach().numpy().reshape(400, 2, 4)
    for book in range(2):
        rows = before[:, book].astype(np.float64)
        alone = cluster_rows(rows, 32, fresh()).losses[-1]
        # Helpers make up for a part of what k-means leaves.
        assert ((after[:, book] - rows) ** 2).sum() < 1.05 * alone


def test_clustering_draws_every_hash_once_and_divides_by_no_empty_bucket():
    table = CCE.make(SPEC, books=2, bits=7)  # more buckets than needed
    seen = [table.index.clone()]
    for _ in range(3):
        table.cluster()
        seen.append(table.index.clone())
        assert torch.isfinite(table.values).all()
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(seen))


@pytest.mark.parametrize(
    "epochs, rounds, expected",
    [(6, None, [1, 2, 3, 4]), (2, None, [1]), (1, None, [0.7]), (4, 2, [1.4, 2.8])],
)
def test_cce_clusters_after_each_epoch(epochs, rounds, expected):
    table = CCE.make(SPEC, books=2, bits=3, rounds=rounds)
    table.regime = Regime(epochs=epochs)
    seen = []
    for progress in np.arange(0, 1.001, 0.01):
        before = int(table.done)
        table.after_step(
            TrainingStep(lambda: None, lambda: None, table, 0.1, float(progress))
        )
        if int(table.done) > before:
            seen.append(float(progress) * epochs)
    assert seen == pytest.approx(expected, abs=0.01 * epochs)


def test_cce_trains_far_less_than_a_table():
    table = CCE.make(TableSpec.of_shape(10_000, 16), books=2, bits=6)
    assert sum(p.numel() for p in table.parameters()) == 2 * 2 * 64 * 8


@pytest.mark.parametrize("ratio", [4, 10, 20, 30])
@pytest.mark.parametrize("rows", [12_144, 5382])
@pytest.mark.parametrize("key, most", [("cce", 1.02), ("mgqe", 1.2), ("lightrec", 1.2)])
def test_plans_use_the_budget(key, most, rows, ratio):
    # Powers of two only, CCE took 45x where 30x was asked for, and so did MGQE.
    spec = TableSpec.of_shape(rows, 16)
    method = get_method(key)
    table = method.build(spec, method.plan(spec, ratio), 1)
    reached = spec.full_bytes / table.freeze().nbytes
    assert ratio <= reached <= most * ratio


@pytest.mark.parametrize(
    "key, given",
    [
        ("pq", {"books": 2, "bits": 4, "rotate": True, "half": True}),
        ("dpq", {"books": 4, "bits": 3, "kind": "sx"}),
        ("mgqe", {"books": 2, "bits": 5, "tail_bits": 2, "head_share": 0.3}),
        ("lightrec", {"books": 3, "bits": 4}),
        ("cce", {"books": 2, "bits": 3, "helpers": 11}),
        ("clustering", {"clusters": 9, "heads": 20, "half": True}),
    ],
)
def test_the_smallest_table_is_as_small_as_the_plan_says(key, given):
    # Whatever is asked for stays, and what it takes is known before it is made.
    spec, method = TableSpec(400, 8, [0, 150, 400], np.arange(400)), get_method(key)
    with pytest.raises(OutOfReach) as error:
        method.plan(spec, 1e9, **given)
    said = re.search(r"smallest such table takes ([0-9,]+):", str(error.value))[1]
    size = int(said.replace(",", ""))
    options = method.plan(spec, spec.full_bytes / size, **given)
    assert {name: getattr(options, name) for name in given} == given
    if method.stage == "after training":
        layout = method.compress(NORMAL[:400, :8], options, spec)
    else:
        layout = method.build(spec, options, 1).freeze()
    assert layout.nbytes == size


def test_tails_have_no_longer_codes_than_heads():
    with pytest.raises(ValueError, match="mgqe: tail_bits must be at most 3, got 4"):
        get_method("mgqe").plan(SPEC, 2, bits=3, tail_bits=4)


@pytest.mark.parametrize("key", ["pq", "dpq", "mgqe", "cce"])
def test_books_divide_the_dimension(key):
    with pytest.raises(ValueError, match=f"{key}: books must divide the dimension 8"):
        get_method(key).plan(SPEC, 2, books=3)
    with pytest.raises(ValueError, match=f"{key}: books must be an integer from 1 up"):
        get_method(key).plan(SPEC, 2, books=0)


def test_clustering_says_how_many_rows_it_has():
    with pytest.raises(ValueError, match="heads must be an integer from 0 to 400"):
        get_method("clustering").plan(SPEC, 2, heads=401)
    with pytest.raises(ValueError, match="heads must be an integer from 0 to 400"):
        compress(NORMAL[:400], "clustering", heads=401)


def test_a_round_keeps_the_number_of_helpers():
    table = CCE.make(SPEC, books=2, bits=3, helpers=21, seed=1)
    table.cluster()
    assert table.values.shape == (2 * (8 + 21), 4)
    assert (table.index[:, -1] == 21).all()
    rows = table(IDS).detach().numpy()
    np.testing.assert_allclose(table.freeze().lookup(IDS.numpy()), rows, rtol=1e-6)


@pytest.mark.parametrize("rows", [2, 50, 300, 1000])
@pytest.mark.parametrize("dim", [1, 2])
def test_lightrec_starts_small_where_all_queries_choose_alike(rows, dim):
    """Codewords were multiplied further and further, since no sum ever differed."""
    spec = TableSpec.of_shape(rows, dim)
    for books, bits in ((1, 1), (2, 3), (3, 5)):
        table = LightRec.make(spec, seed=1, books=books, bits=bits)
        assert table.codewords.abs().max() < 50 * spec.init_std
        assert np.isfinite(table.eval().freeze().lookup(np.arange(rows))).all()
