"""The hashing methods one by one: their formulas, their special cases, their traps."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from survey_code import TableSpec
from survey_code.catalog import get_method
from survey_code.data.synthetic import make_clicks
from survey_code.embedding import TrainingStep, decode_layout
from survey_code.hashes import as_signs, mix_many
from survey_code.lab.memory import measure_training
from survey_code.lab.task import make_task
from survey_code.lab.trial import TRIALS
from survey_code.layouts import (
    DenseLayout,
    FlatLayout,
    GeneratorLayout,
    HashedLayout,
    RoutedLayout,
    flat,
    load_layout,
)
from survey_code.layouts.flat import locate_blocks
from survey_code.layouts.generator import BUCKETS, count_weights, hash_many
from survey_code.layouts.hashed import mixed_index, take_digits
from survey_code.order import largest_first
from survey_code.training import TrainingSettings
from survey_code.weight_sharing.hashing import (
    CAFE,
    DHE,
    ROBE,
    BinaryCodeHash,
    BloomEmbeddings,
    DoubleHashing,
    HashEmbeddings,
    HashingTrick,
    MEmCom,
    QuotientRemainder,
)
from survey_code.weight_sharing.hashing.binary_code import bit_blocks
from survey_code.weight_sharing.hashing.cafe import NOBODY, HotSketch
from survey_code.weight_sharing.hashing.quotient_remainder import (
    choose_coprimes,
    choose_radices,
)

SPEC = TableSpec.of_shape(500, 6)


def counted(n, dim=4, seed=0):
    """A spec whose counts are a permutation of 1 .. n."""
    counts = 1 + np.random.default_rng(seed).permutation(n)
    return TableSpec(n, dim, [0, n], counts)


def every_row(table):
    return table.eval()(torch.arange(table.num_embeddings)).detach().numpy()


def values_of(table):
    return table.values.detach().numpy()


def reads(table, ids, gradient=1.0):
    """Gradient of `values` after reading ids."""
    table.train().zero_grad()
    (table(torch.as_tensor(ids)) * gradient).sum().backward()
    return table.values.grad


# -- double hashing -----------------------------------------------------------


@pytest.mark.parametrize(("n", "buckets"), [(2000, 30), (5000, 200)])
def test_distinct_pairs_are_b2_times_1_minus_1_minus_1_over_b2_to_the_n(n, buckets):
    """B**2 (1 - (1 - 1 / B**2)**n)."""
    found = []
    for seed in range(20):
        first, second = take_digits(np.arange(n), mixed_index(seed, [buckets] * 2))
        found.append(len(np.unique(first * buckets + second)))
    predicted = buckets**2 * (1 - (1 - buckets**-2) ** n)
    assert np.mean(found) == pytest.approx(predicted, rel=0.01)


@pytest.mark.parametrize("combine", ["sum", "concat"])
def test_frequent_ids_share_with_nobody(combine):
    spec = counted(200)
    table = DoubleHashing.make(spec, rows=10, frequent=30, combine=combine, seed=1)
    keys = table.keys.numpy()
    assert set(spec.train_counts[keys]) == set(range(171, 201))
    others = np.setdiff1d(np.arange(200), keys)
    own = 20 + (2 if combine == "concat" else 1) * 30
    assert len(table.values) == own
    touched = (reads(table, others) != 0).any(1).numpy()
    assert not touched[20:].any()
    for place, key in enumerate(keys.tolist()):
        touched = np.flatnonzero((reads(table, [key]) != 0).any(1).numpy())
        parts = 2 if combine == "concat" else 1
        np.testing.assert_array_equal(touched, 20 + parts * place + np.arange(parts))


def test_of_equally_frequent_ids_the_lower_have_rows_of_their_own():
    spec = TableSpec(6, 4, [0, 6], np.array([1, 5, 2, 5, 2, 2]))
    table = DoubleHashing.make(spec, rows=3, frequent=4)
    assert table.keys.tolist() == [1, 2, 3, 4]
    assert DoubleHashing.make(spec, rows=3).keys is None


@pytest.mark.parametrize("combine", ["sum", "concat"])
def test_double_hashing_reads_what_its_formula_says(combine):
    table = DoubleHashing.make(
        counted(100), rows=9, frequent=10, combine=combine, seed=2
    )
    digits = np.stack(take_digits(np.arange(100), table.index))
    values, keys = values_of(table), table.keys.tolist()
    for i, row in enumerate(every_row(table)):
        if i in keys:
            wanted = values[18:].reshape(10, 4)[keys.index(i)]
        else:
            first, second = values[digits[0, i]], values[9 + digits[1, i]]
            wanted = first + second if combine == "sum" else [*first, *second]
        np.testing.assert_allclose(row, wanted, rtol=1e-6)


def test_keys_are_counted_and_the_share_is_kept():
    spec = counted(1000, 8)
    for share in (0.0, 0.5, 1.0):
        planned = get_method("double_hashing").plan(spec, 8, share=share)
        layout = DoubleHashing(spec, planned).freeze()
        rows, frequent = planned.rows, planned.frequent
        # An id takes 4 bytes, or all ids together a bit each and 16 counts of 4.
        apart = 32 * frequent + min(4 * frequent, 16 * (8 + 4))
        assert layout.nbytes == 32 * 2 * rows + apart + 80
        assert apart == pytest.approx(share * 4000, abs=160)
        assert isinstance(layout, RoutedLayout) == (share > 0)


# -- Bloom --------------------------------------------------------------------


def test_bloom_codes_have_no_false_negatives_and_the_known_false_positives():
    """False positive rate (1 - exp(-k n / m))**k."""
    n, m, probes = 300, 2000, 20000
    for k in (1, 3, 5):
        rates = []
        for seed in range(10):
            index = mixed_index(seed, [m] * k)
            bits = np.zeros(m, dtype=bool)
            inside = take_digits(np.arange(n), index)
            bits[np.concatenate(inside)] = True
            assert all(bits[digit].all() for digit in inside)
            outside = take_digits(np.arange(n, n + probes), index)
            rates.append(np.logical_and.reduce([bits[d] for d in outside]).mean())
        predicted = (1 - math.exp(-k * n / m)) ** k
        assert np.mean(rates) == pytest.approx(predicted, rel=0.12)


def test_the_best_number_of_hashes_is_m_over_n_times_ln_2():
    n, m = 100, 800
    rates = {k: (1 - math.exp(-k * n / m)) ** k for k in range(1, 20)}
    assert abs(min(rates, key=rates.get) - m / n * math.log(2)) < 1


def test_bloom_rows_are_bags_of_the_code():
    table = BloomEmbeddings.make(SPEC, rows=50, hashes=4, seed=3)
    bags = torch.from_numpy(np.stack(take_digits(np.arange(500), table.index), 1))
    wanted = functional.embedding_bag(bags, table.values, mode="sum")
    np.testing.assert_allclose(every_row(table), wanted.detach(), rtol=1e-5, atol=1e-8)
    assert len(table.values) == 50


def test_one_hash_is_the_hashing_trick():
    wanted = every_row(HashingTrick.make(SPEC, rows=40, seed=4))
    for table in (
        BloomEmbeddings.make(SPEC, rows=40, hashes=1, seed=4),
        HashEmbeddings.make(SPEC, rows=40, entries=500, hashes=1, seed=4),
        MEmCom.make(SPEC, rows=40, seed=4),
    ):
        np.testing.assert_array_equal(every_row(table), wanted)


# -- weights of the id's own ---------------------------------------------------


def spread_weights(table, seed=0):
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        shape = tuple(table.weights.shape)
        table.weights.copy_(torch.from_numpy(rng.normal(size=shape)))
    return table


@pytest.mark.parametrize("entries", [500, 90])
def test_hash_embeddings_are_weighted_bags(entries):
    table = spread_weights(
        HashEmbeddings.make(SPEC, rows=30, entries=entries, hashes=3)
    )
    ids = np.arange(500)
    bags = torch.from_numpy(np.stack(take_digits(ids, table.index), 1))
    own = ids if entries == 500 else take_digits(ids, table.weight_index)[0]
    wanted = functional.embedding_bag(
        bags, table.values, mode="sum", per_sample_weights=table.weights[own]
    )
    np.testing.assert_allclose(every_row(table), wanted.detach(), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(
        decode_layout(table.freeze()), wanted.detach(), rtol=1e-4, atol=1e-7
    )


def test_ids_that_share_all_rows_are_told_apart_by_their_weights():
    table = HashEmbeddings.make(SPEC, rows=3, entries=500, hashes=2)
    digits = np.stack(take_digits(np.arange(500), table.index), 1)
    same = np.flatnonzero((digits == digits[7]).all(1))
    assert len(same) > 10
    rows = every_row(table)[same]
    assert (rows == rows[0]).all()
    rows = every_row(spread_weights(table))[same]
    assert len(np.unique(rows.round(7), axis=0)) == len(same)


def test_memcom_rows_of_one_bucket_are_collinear():
    table = spread_weights(MEmCom.make(SPEC, rows=20))
    buckets, rows = take_digits(np.arange(500), table.index)[0], every_row(table)
    for bucket in range(20):
        assert np.linalg.matrix_rank(rows[buckets == bucket], tol=1e-6) <= 1
    shifted = spread_weights(MEmCom.make(SPEC, rows=20, bias=True))
    inside = every_row(shifted)[buckets == buckets[0]]
    assert np.linalg.matrix_rank(inside, tol=1e-5) == 2


def test_memcom_gradient_of_a_multiplier_is_the_inner_product():
    """dL/dv_i = <dL/de, U[h(i)]>."""
    table = spread_weights(MEmCom.make(SPEC, rows=20, bias=True)).train()
    gradient = torch.from_numpy(np.random.default_rng(1).normal(size=6)).float()
    (table(torch.tensor([11])) * gradient).sum().backward()
    row = values_of(table)[take_digits(np.array([11]), table.index)[0][0]]
    grad = table.weights.grad[11]
    assert grad[0].item() == pytest.approx(float(gradient.numpy() @ row), rel=1e-5)
    assert grad[1].item() == pytest.approx(gradient.sum().item(), rel=1e-5)


def test_memcom_never_compresses_beyond_the_dimension():
    """4 n bytes of multipliers are a floor: ratio < d."""
    spec = TableSpec.of_shape(100_000, 16)
    plan = get_method("memcom").plan
    plan(spec, 15.9)
    for bias, ceiling in ((False, 16), (True, 8)):
        with pytest.raises(ValueError, match="highest ratio it can reach") as error:
            plan(spec, 16, bias=bias)
        assert float(str(error.value).split()[-1]) == pytest.approx(ceiling, abs=0.01)


def test_weights_are_counted():
    layout = HashEmbeddings.make(SPEC, rows=9, entries=500).freeze()
    assert layout.nbytes == 4 * (9 * 6 + 500 * 2) + 2 * 40
    layout = HashEmbeddings.make(SPEC, rows=9, entries=70).freeze()
    assert layout.nbytes == 4 * (9 * 6 + 70 * 2) + 3 * 40
    assert MEmCom.make(SPEC, rows=9).freeze().nbytes == 4 * (9 * 6 + 500) + 40


# -- complementary partitions --------------------------------------------------


def index_of(n, **options):
    spec = TableSpec.of_shape(n, 4)
    return QuotientRemainder.make(spec, combine="sum", **options).index


def are_unique(n, index):
    digits = np.stack(take_digits(np.arange(n), index), axis=1)
    assert (digits.max(0) < index[:, -1]).all()
    return len(np.unique(digits, axis=0)) == n


@pytest.mark.parametrize("n", [1, 2, 7, 60, 1000])
@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("partition", ["digits", "remainders"])
def test_planned_partitions_tell_all_ids_apart(n, parts, partition):
    choose = choose_radices if partition == "digits" else choose_coprimes
    for most in (0, 50, 200):
        moduli = choose(n, parts, most)
        assert len(moduli) == parts and math.prod(moduli) >= n
        assert are_unique(n, index_of(n, moduli=moduli, partition=partition))
        if most >= sum(choose(n, parts, 0)):
            assert sum(moduli) <= most


def test_the_fewest_rows_are_about_k_times_the_kth_root():
    n = 1_000_000
    for parts in (2, 3, 4):
        least = parts * n ** (1 / parts)
        assert least <= sum(choose_radices(n, parts, 0)) < 1.02 * least + parts
        assert least <= sum(choose_coprimes(n, parts, 0)) < 1.1 * least + 8 * parts


def test_two_radices_are_quotient_and_remainder():
    index = index_of(100, moduli=[12, 9])
    np.testing.assert_array_equal(
        take_digits(np.arange(100), index), [np.arange(100) % 12, np.arange(100) // 12]
    )


def test_chinese_remainders():
    index = index_of(60, moduli=[3, 4, 5], partition="remainders")
    digits = take_digits(np.array([52]), index)
    assert [int(d[0]) for d in digits] == [52 % 3, 52 % 4, 52 % 5]
    with pytest.raises(ValueError, match="coprime in pairs"):
        index_of(60, moduli=[4, 6, 5], partition="remainders")


def test_a_path_is_a_small_network_of_the_remainder():
    spec = TableSpec.of_shape(50, 6)
    table = QuotientRemainder.make(spec, modulus=7, combine="path", hidden=3)
    with torch.no_grad():
        table.paths += torch.linspace(-0.1, 0.1, table.paths.shape[1])
    values, paths = values_of(table), table.paths.detach().numpy()
    assert paths.shape == (7, 3 * 13 + 6) and values.shape == (8, 6)
    for i, row in enumerate(every_row(table)):
        own = paths[i % 7]
        hidden = np.maximum(values[i // 7] @ own[:18].reshape(6, 3) + own[18:21], 0)
        wanted = hidden @ own[21:39].reshape(3, 6) + own[39:]
        np.testing.assert_allclose(row, wanted, rtol=1e-4, atol=1e-7)
    layout = table.freeze()
    np.testing.assert_allclose(
        decode_layout(layout), every_row(table), rtol=1e-4, atol=1e-7
    )
    assert layout.nbytes == 4 * (8 * 6 + 7 * 45) + 80


@pytest.mark.parametrize(
    "options",
    [
        {"combine": "path"},
        {"combine": "path", "hidden": 8},
        {"combine": "concat"},
        {"combine": "concat", "parts": 4},
        {"combine": "sum", "parts": 3},
        {"combine": "product", "parts": 3, "partition": "remainders"},
    ],
    ids=str,
)
def test_every_partition_fits_its_budget_and_starts_like_the_full_table(
    options, tmp_path
):
    spec = TableSpec.of_shape(40_000, 16)
    for ratio in (4, 20):
        planned = get_method("quotient_remainder").plan(spec, ratio, **options)
        table = QuotientRemainder(spec, planned, seed=1)
        layout = table.freeze()
        assert 0.5 * spec.budget(ratio) < layout.nbytes <= spec.budget(ratio)
        rows = every_row(table)
        assert rows.std() == pytest.approx(0.01, rel=0.25)
        layout.save(tmp_path / "table.safetensors")
        again = load_layout(tmp_path / "table.safetensors")
        np.testing.assert_allclose(decode_layout(again), rows, rtol=1e-4, atol=1e-7)


# -- binary codes --------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 255, 256, 257, 3000])
def test_bit_blocks_are_unique_and_at_most_ceil_t_over_l_tables_of_2_to_the_l(n):
    """ceil(t / l) tables of at most 2**l rows, and no two ids share all blocks."""
    t = max((n - 1).bit_length(), 1)
    for bits in range(1, t + 1):
        index = bit_blocks(n, bits)
        assert are_unique(n, index)
        assert len(index) == -(-t // bits)
        assert index[:, -1].sum() <= -(-t // bits) * 2**bits


def test_a_binary_code_is_a_mixed_radix_with_powers_of_two():
    by_bits = BinaryCodeHash.make(SPEC, bits=3, seed=1)
    radices = [8, 8, 8]
    by_radix = QuotientRemainder.make(SPEC, moduli=radices, combine="sum", seed=1)
    np.testing.assert_array_equal(by_bits.index, by_radix.index)
    np.testing.assert_array_equal(every_row(by_bits), every_row(by_radix))


# -- ROBE ----------------------------------------------------------------------


@pytest.mark.parametrize("block_len", [1, 3, 4, 6, 50])
@pytest.mark.parametrize("signed", [False, True])
def test_robe_gather_and_scatter_are_adjoint(block_len, signed):
    """<y, G(M)> = <G^T(y), M>."""
    table = ROBE.make(SPEC, size=97, block_len=block_len, signed=signed, seed=2)
    y = torch.from_numpy(np.random.default_rng(0).normal(size=(500, 6))).float()
    rows = table(torch.arange(500))
    rows.backward(y)
    left = (y * rows).sum().item()
    right = (table.values.grad * table.values).sum().item()
    assert left == pytest.approx(right, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("block_len", [1, 4, 6])
def test_robe_blocks_are_runs_of_the_array(block_len):
    table = ROBE.make(SPEC, size=97, block_len=block_len, seed=2)
    flat, rows = values_of(table)[:, 0], every_row(table)
    starts = locate_blocks(np.arange(500), table.multipliers, 97, 6, block_len)
    assert [length for _, length in starts] == {
        1: [1] * 6, 4: [4, 2], 6: [6]
    }[block_len]  # fmt: skip
    for block, (start, length) in enumerate(starts):
        assert start.min() >= 0 and start.max() + block_len <= 97
        for i in (0, 17, 499):
            wanted = flat[start[i] : start[i] + length]
            at = block * block_len
            np.testing.assert_array_equal(rows[i, at : at + length], wanted)


def test_robe_entries_are_used_evenly():
    table = ROBE.make(SPEC, size=100, block_len=1)
    starts = locate_blocks(np.arange(50_000), table.multipliers, 100, 4, 1)
    loads = np.bincount(np.concatenate([s for s, _ in starts]), minlength=100)
    assert loads.std() < 4 * math.sqrt(2000)


def test_robe_ids_rarely_share_all_blocks():
    """A pair shares one block with 1/m, and two with 1/m**2."""
    table = ROBE.make(SPEC, size=50, block_len=3)
    (first, _), (second, _) = locate_blocks(
        np.arange(3000), table.multipliers, 50, 6, 3
    )
    pairs = len(np.unique(first * 50 + second))
    predicted = 48**2 * (1 - (1 - 48**-2) ** 3000)
    assert pairs == pytest.approx(predicted, rel=0.04)


def test_robe_bytes():
    assert ROBE.make(SPEC, size=97).freeze().nbytes == 4 * 97 + 24
    assert ROBE.make(SPEC, size=97, signed=True).freeze().nbytes == 4 * 97 + 48


# -- DHE -----------------------------------------------------------------------


def test_dhe_codes_are_uniform_and_distinct():
    """C(n, 2) / m**k pairs of ids agree in k codes: with k = 2, none expected."""
    numbers = DHE.make(SPEC, width=2, codes=2).multipliers
    n = 50_000
    first, second = hash_many(np.arange(n), numbers, 2)
    assert len(np.unique(first * BUCKETS + second)) == n
    # One code alone: the birthday.
    distinct = BUCKETS * (1 - (1 - 1 / BUCKETS) ** n)
    for code in (first, second):
        assert len(np.unique(code)) == pytest.approx(distinct, rel=0.005)
        # Kolmogorov and Smirnov, 1 in a million by chance.
        gap = np.abs(np.sort(code) / BUCKETS - (np.arange(n) + 0.5) / n).max()
        assert gap < 2.7 / math.sqrt(n)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(n)


@pytest.mark.parametrize("distribution", ["uniform", "gaussian"])
def test_dhe_inputs_have_the_distribution_asked_for(distribution):
    table = DHE.make(SPEC, width=2, codes=8, distribution=distribution)
    ids = np.arange(20_000)
    codes = table.encode(torch.from_numpy(ids)).numpy()
    np.testing.assert_allclose(codes, table.freeze().encode(ids), atol=1e-5)
    variance = 1 / 3 if distribution == "uniform" else 1.0
    np.testing.assert_allclose(codes.mean(0), 0, atol=0.04)
    np.testing.assert_allclose(codes.var(0), variance, rtol=0.05)
    if distribution == "uniform":
        assert codes.min() >= -1 and codes.max() <= 1
    else:
        assert (np.abs(codes) < 1).mean() == pytest.approx(0.6827, abs=0.01)
    correlation = np.corrcoef(codes.T) - np.eye(8)
    assert np.abs(correlation).max() < 0.04


@pytest.mark.parametrize("activation", ["relu", "mish"])
@pytest.mark.parametrize("layers", [1, 3])
def test_dhe_is_the_network_that_torch_builds(activation, layers):
    table = DHE.make(
        SPEC, width=9, codes=10, layers=layers, activation=activation, seed=3
    )
    kinds = {"relu": torch.nn.ReLU, "mish": torch.nn.Mish}
    modules, sizes = [], [10] + [9] * layers + [6]
    for layer in range(layers + 1):
        linear = torch.nn.Linear(sizes[layer], sizes[layer + 1])
        with torch.no_grad():
            linear.weight.copy_(table.weights[2 * layer].T)
            linear.bias.copy_(table.weights[2 * layer + 1])
        modules += [linear] + [kinds[activation]()] * (layer < layers)
    ids = torch.arange(500)
    wanted = torch.nn.Sequential(*modules)(table.encode(ids)).detach()
    np.testing.assert_allclose(every_row(table), wanted, rtol=1e-4, atol=1e-7)
    layout = table.freeze()
    np.testing.assert_allclose(decode_layout(layout), wanted, rtol=1e-4, atol=1e-7)
    weights = count_weights(10, 9, layers, 6)
    assert weights == 10 * 9 + 9 + (layers - 1) * 90 + 9 * 6 + 6
    assert layout.nbytes == 4 * weights + 24


def test_dhe_moves_all_rows_at_once():
    table = DHE.make(SPEC, width=8, codes=8)
    before = every_row(table)
    optimizer = torch.optim.SGD(table.parameters(), lr=1.0)
    table.train()(torch.tensor([3])).square().sum().backward()
    optimizer.step()
    assert (every_row(table) != before).any(1).mean() > 0.99


# -- large and unseen ids ------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (BloomEmbeddings, {"rows": 20}),
        (HashEmbeddings, {"rows": 20, "entries": 50}),
        (HashEmbeddings, {"rows": 20, "entries": 500}),
        (ROBE, {"size": 60}),
        (DHE, {"width": 4, "codes": 6}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_open_tables_serve_large_ids_exactly(kind, options):
    """Trap: products of 32-bit integers overflow, and float32 ends at 2**24."""
    table = kind.make(SPEC, open_ids=True, seed=1, **options).eval()
    ids = np.array([0, 499, 500, 2**24 + 1, 2**31, 2**53 + 1, 2**62, 2**63 - 1])
    rows = table(torch.from_numpy(ids)).detach().numpy()
    np.testing.assert_allclose(table.freeze().lookup(ids), rows, rtol=1e-4, atol=1e-7)
    assert np.isfinite(rows).all() and len(np.unique(rows, axis=0)) >= 6
    near = table(torch.arange(2**60, 2**60 + 64)).detach()
    assert len(np.unique(near.numpy(), axis=0)) > 10
    with pytest.raises(IndexError):
        table(torch.tensor([-1]))
    with pytest.raises(IndexError):
        kind.make(SPEC, **options)(torch.tensor([500]))


# -- fields apart --------------------------------------------------------------

FIELDS = TableSpec.of_table(1000, 6, field_starts=[0, 30, 32, 532, 1000])


@pytest.mark.parametrize("combine", ["sum", "product", "concat"])
def test_fields_apart_are_tables_of_their_own(combine):
    """As DLRM: quotient and remainder within a field; small fields have full rows."""
    options = {"fields": "apart", "field_moduli": [0, 0, 100, 40], "combine": combine}
    table, width = QuotientRemainder.make(FIELDS, seed=4, **options), 6
    values = table.values.detach().numpy()
    join = {"sum": np.add, "product": np.multiply}.get(
        combine, lambda one, other: np.concatenate([one, other])
    )
    width = 3 if combine == "concat" else 6
    full = values[5 + 100 + 12 + 40 :].reshape(-1, 6)
    # Rows: 5 quotients and 100 remainders, 12 quotients and 40 remainders, then full.
    wanted = list(full)
    wanted += [join(values[i // 100], values[5 + i % 100]) for i in range(500)]
    wanted += [join(values[105 + i // 40], values[117 + i % 40]) for i in range(468)]
    np.testing.assert_allclose(every_row(table), wanted, rtol=1e-6)
    layout = table.freeze()
    np.testing.assert_allclose(decode_layout(layout), wanted, rtol=1e-6)
    assert layout.nbytes == 4 * (width * 157 + 32 * 6) + 4 * 40 + 8 * 4
    other = QuotientRemainder.make(FIELDS, seed=5, **options)
    other.load_state_dict(table.state_dict())
    np.testing.assert_array_equal(every_row(other), every_row(table))


def test_full_rows_start_with_the_spread_of_a_table():
    options = {"fields": "apart", "field_moduli": [0, 0, 100, 40]}
    found = [
        every_row(QuotientRemainder.make(FIELDS, seed, **options)) for seed in range(9)
    ]
    assert np.std([rows[:32] for rows in found]) == pytest.approx(0.01, rel=0.1)
    assert np.std([rows[32:] for rows in found]) == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("key", ["quotient_remainder", "hashing"])
@pytest.mark.parametrize("ratio", [1, 2, 3.5, 5])
def test_plans_of_fields_apart_use_their_budget(key, ratio):
    method = get_method(key)
    options = method.plan(FIELDS, ratio, fields="apart")
    layout = method.build(FIELDS, options, seed=0).freeze()
    budget = FIELDS.budget(ratio)
    # Four remainders of each large field at most are left, or one row.
    assert budget - 2 * 2 * 24 < layout.nbytes <= budget


def test_who_is_full_follows_the_threshold():
    plan = get_method("quotient_remainder").plan
    assert plan(FIELDS, 2).field_moduli[:2] == [0, 0]
    assert plan(FIELDS, 2).threshold == 200
    few = plan(FIELDS, 2, threshold=29)
    assert few.field_moduli[0] > 0 and few.field_moduli[1] == 0  # a pair takes more
    tight = plan(FIELDS, 9)  # rows of 30 ids would take over half of it
    assert tight.fields == "together" or tight.threshold < 30
    assert plan(FIELDS, 12).fields == "together"
    with pytest.raises(ValueError, match="highest ratio it can reach"):
        plan(FIELDS, 12, fields="apart")
    with pytest.raises(ValueError, match="two digits without a path"):
        plan(FIELDS, 2, fields="apart", parts=3)
    assert plan(FIELDS, 2, parts=3).fields == "together"
    assert plan(TableSpec.of_shape(500, 6), 2).fields == "together"


def test_hashing_apart_never_shares_a_row_between_fields():
    table = HashingTrick.make(FIELDS, rows=40, fields="apart", signed=True)
    rows = np.abs(every_row(table))
    cuts = np.split(rows, [30, 32, 532])
    seen = [{row.tobytes() for row in own} for own in cuts]
    assert sum(map(len, seen)) == len(set().union(*seen)) <= 40
    # Two full rows; of the other 38, one each, and 35 in proportion to 30, 500, 468.
    assert [len(own) for own in seen] == [2, 2, 18, 18]
    more = HashingTrick.make(FIELDS, rows=70, fields="apart")
    assert len({row.tobytes() for row in every_row(more)[:32]}) == 32
    np.testing.assert_array_equal(decode_layout(table.freeze()), every_row(table))


# -- CAFE ----------------------------------------------------------------------


def make_sketch(buckets):
    ids = torch.full((buckets, 4), NOBODY, dtype=torch.int32)
    scores, inherited = torch.zeros(2, buckets, 4)
    return HotSketch(ids, scores, inherited, np.array([2**40 + 1, 2**33 + 3, 0]))


def test_the_sketch_is_space_saving_bucket_by_bucket():
    """Against the same rule, written for one id at a time."""
    rng = np.random.default_rng(0)
    sketch, buckets = make_sketch(5), [{} for _ in range(5)]
    for _ in range(600):
        new = int(rng.zipf(1.3) % 60)
        amount = float(np.float32(rng.random()))
        place = int(sketch.buckets_of(torch.tensor([new]))[0])
        sketch.add(torch.tensor([new]), torch.tensor([amount]))
        slots = buckets[place]
        if new in slots or len(slots) < 4:
            slots[new] = np.float32(slots.get(new, 0) + np.float32(amount))
        else:
            least = min(slots, key=slots.get)
            slots[new] = np.float32(slots.pop(least) + np.float32(amount))
    for place, slots in enumerate(buckets):
        kept = sketch.ids[place] != NOBODY
        found = dict(
            zip(
                sketch.ids[place][kept].tolist(),
                sketch.scores[place][kept].tolist(),
                strict=True,
            )
        )
        assert found == pytest.approx(slots, rel=1e-5)


def test_the_sketch_never_underestimates_who_stayed():
    """score - inherited <= true <= score for ids that were never evicted."""
    rng = np.random.default_rng(1)
    sketch, true = make_sketch(25), np.zeros(5000)
    stayed = np.zeros(5000, dtype=bool)
    for step in range(200):
        ids, counts = np.unique(rng.zipf(1.3, 300) % 5000, return_counts=True)
        sketch.add(torch.from_numpy(ids), torch.from_numpy(counts))
        true[ids] += counts
        held = np.isin(np.arange(5000), sketch.ids.flatten().numpy())
        stayed = held if step == 0 else stayed & held
    scores = dict(
        zip(
            sketch.ids.flatten().tolist(), sketch.scores.flatten().tolist(), strict=True
        )
    )
    assert stayed.sum() > 10
    names = sketch.ids.flatten().tolist()
    certain = dict(
        zip(names, (sketch.scores - sketch.inherited).flatten().tolist(), strict=True)
    )
    for i in np.flatnonzero(stayed):
        assert certain[int(i)] <= true[i] <= scores[int(i)]
    top = largest_first(true)[:25]
    assert (
        len(set(sketch.largest(25, sketch.ids[:0]).tolist()) & set(top.tolist())) >= 17
    )


def cafe_step(table, ids, gradient):
    """One step without an optimiser: read, note the gradients, count."""
    rows = table.train()(torch.as_tensor(ids))
    (rows * torch.as_tensor(gradient, dtype=torch.float32)[:, None]).sum().backward()
    table.after_step(TrainingStep(lambda: rows.sum(), lambda: rows.sum(), table, 1, 0))


def test_who_receives_large_gradients_gets_a_row_and_may_lose_it():
    table = CAFE.make(SPEC, rows=10, hot=4, slots=2, period=1, decay=0.5, seed=1)
    before = every_row(table)
    ids = np.arange(40)
    large = np.isin(ids, [3, 9, 20]) * 10 + 0.01
    cafe_step(table, ids, large)
    assert {3, 9, 20} < set(table.hot_ids.tolist())
    # Promotion copies the shared row: no vector changes.
    np.testing.assert_array_equal(every_row(table), before)
    place = table.find_own(torch.tensor([9]))[0][0] + 10
    with torch.no_grad():
        table.values[place] = 7.0
    assert (every_row(table)[9] == 7).all()
    changed = (every_row(table) != before).any(1)
    assert changed.sum() == 1
    layout = table.freeze()
    np.testing.assert_array_equal(decode_layout(layout), every_row(table))
    assert layout.keys.tolist() == sorted(table.hot_ids.tolist())
    assert layout.nbytes == 4 * (10 + 4) * 6 + 4 * 4 + 40
    for _ in range(12):  # others now: 9 falls behind and reads its shared row
        cafe_step(table, [30, 31, 32, 33], [10.0] * 4)
    assert {30, 31, 32, 33} == set(table.hot_ids.tolist())
    assert 9 not in table.hot_ids
    np.testing.assert_array_equal(every_row(table)[9], before[9])


def test_who_holds_a_row_is_not_pushed_out_of_the_sketch():
    sketch = make_sketch(1)
    holders = torch.tensor([3, 9], dtype=torch.int32)
    sketch.add(holders.long(), torch.tensor([2.0, 1.0]))
    for new in range(100, 160):  # each once, and together far more than 9 received
        sketch.add(torch.tensor([new]), torch.tensor([1.0]), holders)
    assert {3, 9} < set(sketch.ids.flatten().tolist())
    everyone = sketch.ids.flatten()
    sketch.add(torch.tensor([7]), torch.tensor([5.0]), everyone)
    assert 7 in sketch.ids  # where all slots are held, the smallest is taken


def test_own_rows_keep_their_owners_where_ids_are_about_equally_frequent():
    """As on Frappe, where a row changed hands every 150 steps (here 247 times)."""
    rng = np.random.default_rng(0)
    table = CAFE.make(SPEC, rows=10, hot=12, period=5)
    moved = 0
    for _ in range(300):
        ids = np.unique(rng.integers(0, 500, 200))
        before = set(table.hot_ids.tolist())
        cafe_step(table, ids, np.where(ids < 12, 4.0, 1.0))
        moved += len(before - set(table.hot_ids.tolist()) - {NOBODY})
    assert moved <= 2 * table.hot
    assert (table.hot_ids < 12).sum() >= 6


def test_cafe_counts_the_length_of_each_occurrences_gradient():
    """Gradients that cancel out in a batch count all the same."""
    table = CAFE.make(SPEC, rows=10, hot=8, period=100)
    cafe_step(table, [5, 5, 6], [3.0, -1.0, 1.0])
    scores = dict(
        zip(table.sketch_ids.flatten().tolist(), table.scores.flatten().tolist())
    )
    assert scores[5] == pytest.approx(4 * math.sqrt(6))
    assert scores[6] == pytest.approx(math.sqrt(6))


def test_the_sketch_is_counted_in_the_memory_of_training():
    settings, ids = TrainingSettings(), torch.arange(20)
    with_sketch = CAFE.make(SPEC, rows=10, hot=8, slots=8)
    persistent = measure_training(with_sketch, ids, settings)["persistent"]
    rows = sum(value.nbytes for value in with_sketch.parameters())
    without = CAFE.make(SPEC, rows=18, hot=0)
    least = measure_training(without, ids, settings)["persistent"]
    bucket = 4 * 12  # four slots: an id, a score and what it inherited
    assert rows == sum(value.nbytes for value in without.parameters())
    assert persistent - least == (8 * 8 // 4 - 1) * bucket + 8 * (4 + 4)


def test_cafe_without_own_rows_is_the_hashing_trick():
    table = CAFE.make(SPEC, rows=30, hot=0, seed=5)
    cafe_step(table, [1, 2], [1.0, 1.0])
    np.testing.assert_array_equal(
        every_row(table), every_row(HashingTrick.make(SPEC, rows=30, seed=5))
    )


def test_cafe_finds_the_frequent_ids_and_its_layout_agrees_after_training():
    data = make_clicks(rows=(20_000, 1000, 1000))
    task = make_task(data, TRIALS["synthetic", "dcnv2"], 1)
    planned = get_method("cafe").plan(task.spec, 10)
    table = CAFE(task.spec, planned, seed=1)
    task.train(table)
    found = table.hot_ids.long().numpy()
    assert len(np.unique(found)) == planned.hot and (np.diff(found) > 0).all()
    assert sorted(table.hot_rows.tolist()) == list(range(planned.hot))
    counts = task.spec.train_counts
    assert counts[found].mean() > 5 * counts.mean()
    layout = table.freeze()
    np.testing.assert_array_equal(decode_layout(layout), every_row(table))
    assert layout.nbytes <= task.spec.budget(10)
    other = CAFE(task.spec, planned, seed=2)
    other.load_state_dict(table.state_dict())
    np.testing.assert_array_equal(every_row(other), every_row(table))
    ids = torch.arange(task.spec.num_embeddings)
    assert torch.equal(other.sketch.buckets_of(ids), table.sketch.buckets_of(ids))


# -- bad input -----------------------------------------------------------------

ONES = np.ones((3, 5), np.float32)
INDEX = np.array([[1, 1, 1, 1, 3]])
HASH = np.ones(3, np.int64)


def route(ids, kind=np.int32):
    """A hashed table, and rows of their own for some ids."""
    parts = [DenseLayout(ONES[: len(ids)]), HashedLayout(ONES, INDEX, 10, 5)]
    return RoutedLayout(parts, 10, np.array(ids, kind))


@pytest.mark.parametrize(
    ("make", "words", "options"),
    [
        (DoubleHashing, "rows must be", {"rows": 0}),
        (DoubleHashing, "frequent must be .* to 10", {"rows": 2, "frequent": 11}),
        (DoubleHashing, "combine must be", {"rows": 2, "combine": "product"}),
        (BloomEmbeddings, "hashes must be .* to 64", {"rows": 2, "hashes": 0}),
        (HashEmbeddings, "entries must be .* to 10", {"rows": 2, "entries": 11}),
        (HashEmbeddings, "entries is not set", {"rows": 2}),
        (MEmCom, "rows must be .* to 10", {"rows": 11}),
        (QuotientRemainder, "either modulus or moduli", {}),
        (QuotientRemainder, "either modulus", {"modulus": 2, "moduli": [2, 5]}),
        (QuotientRemainder, "too few", {"moduli": [3, 3]}),
        (QuotientRemainder, "two or more sizes", {"moduli": [10]}),
        (QuotientRemainder, r"moduli\[0\] must be", {"moduli": [0, 10]}),
        (QuotientRemainder, r"moduli\[1\] must be .* '5'", {"moduli": [2, "5"]}),
        (QuotientRemainder, r"moduli\[0\] must be .* 2.0", {"moduli": [2.0, 5.0]}),
        (QuotientRemainder, r"moduli\[0\] must be .* True", {"moduli": [True, 10]}),
        (QuotientRemainder, "moduli must be a list of integers", {"moduli": "25"}),
        (QuotientRemainder, "moduli must be a list of integers", {"moduli": 25}),
        (QuotientRemainder, "moduli must be a list of int", {"moduli": {2: 5}}),
        (
            QuotientRemainder,
            "moduli belong to fields='together'",
            {"modulus": 3, "fields": "apart"},
        ),
        (
            QuotientRemainder,
            "a field that shares rows",
            {"field_moduli": [0], "fields": "apart"},
        ),
        (
            QuotientRemainder,
            "a modulus for each of 1 fields",
            {"field_moduli": [2, 2], "fields": "apart"},
        ),
        (
            QuotientRemainder,
            "field_moduli belong to fields='apart'",
            {"modulus": 3, "field_moduli": [2]},
        ),
        (
            HashingTrick,
            "open_ids=False",
            {"rows": 3, "fields": "apart", "open_ids": True},
        ),
        (QuotientRemainder, "partition must", {"moduli": [2, 5], "partition": "magic"}),
        (
            QuotientRemainder,
            "belongs to 'digits'",
            {"modulus": 2, "partition": "remainders"},
        ),
        (
            QuotientRemainder,
            "needs two tables, got 3",
            {"moduli": [2, 2, 3], "combine": "path"},
        ),
        (
            QuotientRemainder,
            "hidden must be",
            {"modulus": 2, "combine": "path", "hidden": 0},
        ),
        (BinaryCodeHash, "bits must be .* to 31", {"bits": 0}),
        (BinaryCodeHash, "combine must be", {"bits": 2, "combine": "path"}),
        (ROBE, "size must be .* from 5", {"size": 4, "block_len": 5}),
        (ROBE, "block_len must be", {"size": 10, "block_len": 0}),
        (DHE, "width must be", {"width": 0, "codes": 2}),
        (DHE, "come in pairs", {"width": 2, "codes": 3, "distribution": "gaussian"}),
        (DHE, "activation must be", {"width": 2, "codes": 2, "activation": "tanh"}),
        (DHE, "rate must be a number above 0", {"width": 2, "codes": 2, "rate": 0}),
        (CAFE, "hot must be .* to 10", {"rows": 2, "hot": 11}),
        (CAFE, "decay must be a number from 0 to 1", {"rows": 2, "hot": 1, "decay": 2}),
    ],
)
def test_a_table_that_cannot_be_is_a_value_error(make, words, options):
    with pytest.raises(ValueError, match=words):
        make.make(TableSpec.of_shape(10, 5), **options)


@pytest.mark.parametrize(
    ("key", "words", "options"),
    [
        ("double_hashing", "share must be a number from 0 to 1", {"share": 1.5}),
        ("double_hashing", "multiple of 2, got 5", {"combine": "concat"}),
        ("hash_embeddings", "share must be a number", {"share": "half"}),
        ("quotient_remainder", "parts must be .* from 2 to 16", {"parts": 1}),
        ("quotient_remainder", "got 3 digits", {"parts": 3, "combine": "path"}),
        ("dhe", "come in pairs", {"codes": 3, "distribution": "gaussian"}),
    ],
)
def test_a_plan_that_cannot_be_is_a_value_error(key, words, options):
    with pytest.raises(ValueError, match=f"^{key}: .*{words}"):
        get_method(key).plan(TableSpec.of_shape(10, 5), 1, **options)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: HashedLayout(ONES, INDEX, 10, 5, "path"), "paths belong to"),
        (
            lambda: HashedLayout(
                ONES, INDEX, 10, 5, weights=np.ones((9, 1), np.float32)
            ),
            r"weights must be float32 or float16 of shape \(10, 1\) or \(10, 2\)",
        ),
        (
            lambda: HashedLayout(ONES, INDEX, 10, 5, weight_index=INDEX),
            "belongs to weights",
        ),
        (lambda: route([4, 2]), "keys must rise"),
        (lambda: route([4, 4]), "keys must rise"),
        (lambda: route([10]), "different ids from 0 to 9"),
        (lambda: route([-1]), "different ids from 0 to 9"),
        (lambda: route([4], np.int64), "keys must be int32"),
        (
            lambda: HashedLayout(DenseLayout(ONES[:1]), INDEX, 10, 5),
            r"values must be .* of shape \(3, 5\), or a layout of it",
        ),
        (
            lambda: HashedLayout(DenseLayout(ONES[:, :4]), INDEX, 10, 5),
            r"values must be .* of shape \(3, 5\), or a layout of it",
        ),
        (lambda: FlatLayout(ONES[0], np.ones(3), 10, 5, 5), "multipliers must be"),
        (lambda: FlatLayout(ONES[0], HASH[:2], 10, 5, 5), "and an addend"),
        (
            lambda: FlatLayout(ONES[0], HASH, 10, 5, 5, HASH[:2]),
            "signs must be two multipliers and an addend",
        ),
        (lambda: HashedLayout(ONES, INDEX[:, 1:], 10, 5), "an addend"),
        (lambda: FlatLayout(ONES[0], HASH, 10, 5, 5, open_ids=2), "open_ids must be"),
        (lambda: HashedLayout(ONES, INDEX, 10, 5, open_ids="no"), "open_ids must be"),
        (lambda: HashedLayout(ONES, INDEX, 10, 5, shared=-1), "shared must be"),
        (lambda: HashedLayout(ONES, INDEX, 2**63, 5), "num_embeddings must be"),
        (
            lambda: HashedLayout(ONES, INDEX, 10, 5, signs=HASH[:2]),
            "signs must be two multipliers and an addend",
        ),
        (lambda: FlatLayout(ONES[0], HASH, 10, 6, 6), "does not fit into 5 values"),
        (
            lambda: GeneratorLayout(ONES[0], HASH, 10, 5, codes=2, width=2, layers=1),
            "values must be float32 of shape",
        ),
        (
            lambda: GeneratorLayout(
                ONES[0], HASH, 10, 5, codes=3, width=2, layers=1,
                distribution="gaussian",
            ),
            "come in pairs",
        ),
        (
            lambda: GeneratorLayout(ONES[0], HASH, 10, 5, codes=0, width=2, layers=1),
            "codes must be an integer from 1 to 65536",
        ),
    ],
)  # fmt: skip
def test_a_layout_that_cannot_be_is_a_value_error(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("signed", [False, True])
def test_a_row_of_very_many_blocks_is_read_at_once(signed, monkeypatch):
    """As block after block; a small file of it must not take minutes."""
    monkeypatch.setattr(flat, "BLOCKS_AT_ONCE", 1000)
    values = np.random.default_rng(0).normal(size=90).astype(np.float32)
    numbers, other = np.array([3, 5, 7]), np.array([21, 9, 4])
    signs = other if signed else None
    layout = FlatLayout(values, numbers, 2**62, 1001, 2, signs)
    ids = np.array([0, 9, 2**40])
    row = np.empty((3, 1002), np.float32)
    mixed = zip(mix_many(ids, numbers, 501), mix_many(ids, other, 501))
    for block, (one, sign) in enumerate(mixed):
        entries = values[(one % 89)[:, None] + np.arange(2)]
        factors = as_signs(sign)[:, None] if signed else 1
        row[:, 2 * block : 2 * block + 2] = entries * factors
    np.testing.assert_array_equal(layout.lookup(ids), row[:, :-1])
    assert layout.lookup(np.zeros(0, np.int64)).shape == (0, 1001)
    with pytest.raises(ValueError, match="columns"):
        FlatLayout(values, numbers, 10, 2**20, 2)
