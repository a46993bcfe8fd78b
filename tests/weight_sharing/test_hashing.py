"""Hashing: collisions as theory counts them, uniqueness, spread, determinism."""

import copy
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from survey_code import TableSpec
from survey_code.catalog import get_method
from survey_code.embedding import decode_layout
from survey_code.hashes import as_signs, draw_multipliers, hash_steps, mix_ids, mix_many
from survey_code.layouts import HashedLayout
from survey_code.layouts.hashed import (
    choose_signs,
    mixed_index,
    plain_index,
    take_digits,
)
from survey_code.weight_sharing.hashing import HashingTrick, QuotientRemainder

# Ids as they come: in a row, in steps, beyond float32, beyond 32 bits.
ID_SETS = {
    "consecutive": lambda n: np.arange(n),
    "steps of 1000": lambda n: 1000 * np.arange(n),
    "powers of two apart": lambda n: np.arange(n) << 32,
    "around 2**40": lambda n: 2**40 + np.arange(n),
    "scattered": lambda n: np.random.default_rng(0).integers(2**62, size=n),
}


def hash_ids(ids, seed, buckets):
    return take_digits(ids, mixed_index(seed, [buckets]))[0]


def qr(n, modulus, dim=4, **options):
    spec = TableSpec.of_shape(n, dim)
    return QuotientRemainder.make(spec, modulus=modulus, **options)


def every_row(table):
    return table.eval()(torch.arange(table.num_embeddings)).detach().numpy()


# -- collisions --------------------------------------------------------------


@pytest.fixture(params=ID_SETS)
def loads(request):
    """Ids per bucket, (seeds, buckets), of 2,000 ids in 1,500 buckets."""
    ids = ID_SETS[request.param](2000)
    return np.stack(
        [np.bincount(hash_ids(ids, s, 1500), minlength=1500) for s in range(60)]
    )


def test_occupied_buckets_are_b_times_1_minus_1_minus_1_over_b_to_the_n(loads):
    """B (1 - (1 - 1 / B)**n)."""
    predicted = 1500 * (1 - (1 - 1 / 1500) ** 2000)
    assert (loads > 0).sum(1).mean() == pytest.approx(predicted, rel=0.01)


def test_colliding_ids_are_1_minus_1_minus_1_over_b_to_the_n_minus_1(loads):
    """Fraction 1 - (1 - 1 / B)**(n - 1) of the ids shares its bucket."""
    found = (loads * (loads > 1)).sum(1).mean() / 2000
    assert found == pytest.approx(1 - (1 - 1 / 1500) ** 1999, rel=0.01)


def test_colliding_pairs_are_n_choose_2_over_b(loads):
    found = (loads * (loads - 1) / 2).sum(1).mean()
    assert found == pytest.approx(math.comb(2000, 2) / 1500, rel=0.03)


def test_buckets_are_used_evenly(loads):
    """Over seeds, no bucket is preferred: chi-square of the summed loads."""
    expected = loads.sum() / 1500
    chi_square = ((loads.sum(0) - expected) ** 2 / expected).sum()
    # Id 0 always lands in bucket 0, so leave room for it.
    assert chi_square < 1500 + 6 * math.sqrt(2 * 1500) + 60


@pytest.mark.parametrize("ids", ID_SETS.values(), ids=ID_SETS)
def test_birthday(ids):
    """At n = 1.177 sqrt(B) ids, half of all hashes have a collision."""
    buckets = 4001
    chosen = ids(round(1.177 * math.sqrt(buckets)))
    distinct = [len(set(hash_ids(chosen, s, buckets))) for s in range(1000)]
    assert np.mean(np.array(distinct) < len(chosen)) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("buckets", [2, 64, 1000])
def test_any_two_ids_collide_with_probability_1_over_b(buckets):
    rng = np.random.default_rng(1)
    together = 0
    for seed in range(300):
        pairs = rng.integers(2**62, size=(2, 100))
        pairs[1, :50] = pairs[0, :50] + 1  # neighbours, too
        first, second = (hash_ids(part, seed, buckets) for part in pairs)
        together += (first == second).sum()
    expected = 30000 / buckets
    assert together == pytest.approx(expected, abs=5 * math.sqrt(expected))


# -- signs -------------------------------------------------------------------


def test_signed_hashing_keeps_inner_products_on_average():
    """E = <x, y>, Var = (|x|^2 |y|^2 + <x,y>^2 - 2 sum x_i^2 y_i^2) / m."""
    n, m, seeds = 40, 16, 4000
    x, y = np.random.default_rng(3).normal(size=(2, n))
    y += x / 2
    ids = np.arange(n)
    found = []
    for seed in range(seeds):
        multipliers = draw_multipliers(np.random.default_rng(seed), 2)
        signs = choose_signs(ids, multipliers[1])
        rows = take_digits(ids, np.array([[*multipliers[0], 1, m]]))[0]
        hashed = [np.bincount(rows, signs * v, minlength=m) for v in (x, y)]
        found.append(hashed[0] @ hashed[1])
    exact = x @ y
    variance = (x @ x * (y @ y) + exact**2 - 2 * (x**2 @ y**2)) / m
    assert np.mean(found) == pytest.approx(exact, abs=4 * math.sqrt(variance / seeds))
    assert np.var(found) == pytest.approx(variance, rel=0.12)


def test_unsigned_hashing_is_biased():
    """Without signs all products of two ids that collide add up."""
    n, m = 40, 16
    x = np.ones(n)
    found = [
        np.square(np.bincount(hash_ids(np.arange(n), s, m), x)).sum()
        for s in range(500)
    ]
    assert np.mean(found) == pytest.approx(n + n * (n - 1) / m, rel=0.03)


def test_signs_are_balanced_and_independent_of_the_row():
    multipliers = draw_multipliers(np.random.default_rng(0), 2)
    ids = np.arange(40000)
    signs = choose_signs(ids, multipliers[1])
    assert set(signs) == {-1, 1}
    rows = take_digits(ids, np.array([[*multipliers[0], 1, 8]]))[0]
    for row in range(8):
        assert abs(signs[rows == row].mean()) < 5 / math.sqrt(5000)


def test_signed_table_multiplies_whole_rows():
    spec = TableSpec.of_shape(100, 4)
    signed = HashingTrick.make(spec, rows=10, signed=True, seed=2)
    plain = HashingTrick.make(spec, rows=10, seed=2)
    signs = choose_signs(np.arange(100), signed.signs)
    np.testing.assert_array_equal(every_row(signed), every_row(plain) * signs[:, None])


# -- uniqueness --------------------------------------------------------------


def test_quotient_and_remainder_are_never_both_shared():
    """(i // m, i mod m) is injective, for every n and every modulus."""
    for n in range(1, 130):
        ids = np.arange(n)
        for modulus in range(1, n + 1):
            quotient, remainder = take_digits(ids, qr(n, modulus).index)
            assert quotient.max() < -(-n // modulus) and remainder.max() < modulus
            assert len(set(zip(quotient.tolist(), remainder.tolist()))) == n


@pytest.mark.parametrize("base", [2**24, 2**31, 2**53, 2**61])
def test_digits_of_large_ids_are_exact(base):
    """Trap: a quotient in float32 is wrong beyond 2**24."""
    modulus = 1009
    ids = base + np.arange(5000)
    index = plain_index([(modulus, 2**62), (1, modulus)])
    wanted = [[int(i) // modulus for i in ids], [int(i) % modulus for i in ids]]
    np.testing.assert_array_equal(take_digits(ids, index), wanted)
    found = take_digits(torch.from_numpy(ids), index)
    np.testing.assert_array_equal(torch.stack(found).numpy(), wanted)
    in_float32 = (torch.from_numpy(ids).float() / modulus).long().numpy()
    assert (in_float32 != wanted[0]).any()


def test_sums_of_quotient_and_remainder_have_rank_below_q_plus_r():
    """rank(E) <= Q + R - 1 for sums; products can have full rank."""
    rank = {
        combine: np.linalg.matrix_rank(every_row(qr(60, 6, 40, combine=combine)))
        for combine in ("sum", "product")
    }
    assert rank["sum"] == 10 + 6 - 1
    assert rank["product"] > 10 + 6 - 1


def test_concatenated_rows_are_the_two_rows_side_by_side():
    table = qr(20, 4, 6, combine="concat")
    assert table.values.shape == (5 + 4, 3)
    rows = table.values.detach().numpy()
    np.testing.assert_array_equal(every_row(table)[11], [*rows[11 // 4], *rows[5 + 3]])


@pytest.mark.parametrize("combine", ["sum", "product", "concat"])
def test_quotient_remainder_reads_what_its_formula_says(combine):
    table = qr(50, 7, 4, combine=combine)
    values = table.values.detach().numpy()
    quotients = -(-50 // 7)
    join = {"sum": np.add, "product": np.multiply}.get(
        combine, lambda q, r: np.concatenate([q, r])
    )
    wanted = [join(values[i // 7], values[quotients + i % 7]) for i in range(50)]
    np.testing.assert_allclose(every_row(table), wanted, rtol=1e-6)


def test_bags_of_products_are_not_products_of_bags():
    """Trap: (sum q) * (sum r) is not sum (q * r)."""
    table = qr(50, 7, 4)
    layout, ids = table.freeze(), np.array([3, 17, 42])
    right = layout.lookup(ids).sum(axis=0)
    np.testing.assert_allclose(layout.bag(ids, [0])[0], right, rtol=1e-5)
    values = table.values.detach().numpy()
    quotients = -(-50 // 7)
    wrong = values[ids // 7].sum(0) * values[quotients + ids % 7].sum(0)
    assert np.abs(wrong - right).max() > 0.1 * np.abs(right).max()


# -- a fresh table -----------------------------------------------------------


@pytest.mark.parametrize("std", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("combine", ["sum", "product", "concat"])
def test_composed_rows_start_like_the_full_table(combine, std):
    """Traps: factors all positive, or so small that their product is dead."""
    starts = TableSpec.of_shape(40000, 16)
    spec = TableSpec(40000, 16, starts.field_starts, starts.train_counts, init_std=std)
    rows = every_row(QuotientRemainder.make(spec, modulus=200, combine=combine, seed=1))
    assert rows.std() == pytest.approx(std, rel=0.04)
    assert abs(rows.mean()) < 0.05 * std
    assert np.linalg.norm(rows, axis=1).mean() == pytest.approx(4 * std, rel=0.12)


def test_hashed_rows_start_like_the_full_table():
    rows = every_row(HashingTrick.make(TableSpec.of_shape(9000, 16), rows=3000))
    assert rows.std() == pytest.approx(0.01, rel=0.02)


def test_another_seed_is_another_hash():
    spec = TableSpec.of_shape(1000, 2)
    first, second = (HashingTrick.make(spec, rows=50, seed=s) for s in (0, 1))
    assert not np.array_equal(
        take_digits(np.arange(1000), first.index)[0],
        take_digits(np.arange(1000), second.index)[0],
    )


FINGERPRINT = """
import hashlib
from survey_code import TableSpec
from survey_code.weight_sharing.hashing import *
from survey_code.embedding import decode_layout
spec = TableSpec.of_shape(300, 6)
tables = [HashingTrick.make(spec, rows=40, signed=True, seed=5),
          QuotientRemainder.make(spec, modulus=20, seed=5)]
print([hashlib.sha256(decode_layout(t.freeze()).tobytes()).hexdigest() for t in tables])
"""


def test_every_process_draws_the_same_tables(capsys):
    exec(FINGERPRINT, {})
    here = capsys.readouterr().out
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # not this one's
    there = subprocess.run(
        [sys.executable, "-c", FINGERPRINT],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert here == there and len(there) > 128


# -- the hash itself ---------------------------------------------------------


def mix_exactly(value, first, second, addend):
    """`mix_ids` in Python's integers, which never overflow."""
    first, second, addend = (number % 2**64 for number in (first, second, addend))
    value = (value * first + addend) % 2**64
    value ^= value >> 32
    value = value * second % 2**64
    value ^= (value >> 29) & 0x7FFFFFFFF
    return value % 2**63


@pytest.mark.parametrize("seed", range(4))
def test_torch_and_numpy_hash_alike_and_exactly(seed):
    rng = np.random.default_rng(seed)
    numbers = draw_multipliers(rng, 1)[0].tolist()
    assert numbers[0] % 2 == 1 and numbers[1] % 2 == 1
    ids = np.concatenate(
        [np.arange(50), 2**24 + np.arange(50), rng.integers(2**62, size=300), [2**62]]
    )
    found = mix_ids(ids, *numbers)
    assert (found >= 0).all()
    np.testing.assert_array_equal(found, [mix_exactly(int(i), *numbers) for i in ids])
    np.testing.assert_array_equal(
        mix_ids(torch.from_numpy(ids), *numbers).numpy(), found
    )
    signs = draw_multipliers(rng, 1)[0]
    np.testing.assert_array_equal(
        choose_signs(torch.from_numpy(ids), signs).numpy(), choose_signs(ids, signs)
    )
    np.testing.assert_array_equal(
        choose_signs(ids, signs), as_signs(mix_ids(ids, *signs.tolist()))
    )


def test_each_further_hash_adds_the_golden_constant_once_more():
    numbers = draw_multipliers(np.random.default_rng(9), 1)[0]
    ids = np.array([0, 1, 499, 2**31, 2**62, 2**63 - 1])
    exact = numbers.tolist()
    wanted = [
        [mix_exactly(int(i) + j * 0x9E3779B97F4A7C15, *exact) for i in ids]
        for j in range(40)
    ]
    np.testing.assert_array_equal(list(mix_many(ids, numbers, 40)), wanted)
    found = list(mix_many(torch.from_numpy(ids), numbers, 40))
    np.testing.assert_array_equal(torch.stack(found).numpy(), wanted)
    every = mix_ids(ids[:, None] + hash_steps(40), *exact)
    np.testing.assert_array_equal(every.T, wanted)


@pytest.mark.parametrize("wanted", [0, 1, 7, 2**32, 2**62])
def test_a_single_id_falls_into_all_buckets_over_the_seeds(wanted):
    """Without an addend, id 0 was hashed to 0 by every seed."""
    seeds, buckets = 4000, 16
    numbers = draw_multipliers(np.random.default_rng(5), seeds)
    ids = np.array([wanted])
    mixed = np.array([mix_ids(ids, *one)[0] for one in numbers.tolist()])
    counts = np.bincount(mixed % buckets, minlength=buckets)
    # Chi-square of 15 degrees of freedom: 45 is passed by one draw in 12,000.
    assert (np.square(counts - seeds / buckets) / (seeds / buckets)).sum() < 45
    assert abs(as_signs(mixed).sum()) < 4 * math.sqrt(seeds)


# -- open ids, state, bytes --------------------------------------------------


def test_open_tables_serve_ids_that_were_never_counted():
    spec = TableSpec.of_shape(100, 4)
    table = HashingTrick.make(spec, rows=10, open_ids=True)
    ids = np.array([5, 100, 2**31, 2**62, 2**63 - 1])
    np.testing.assert_array_equal(
        table(torch.from_numpy(ids)).detach().numpy(), table.freeze().lookup(ids)
    )
    with pytest.raises(IndexError):
        table(torch.tensor([-1]))
    closed = HashingTrick.make(spec, rows=10)
    for read in (lambda ids: closed(torch.tensor(ids)), closed.freeze().lookup):
        with pytest.raises(IndexError, match="id 100 is out of range"):
            read([100])


@pytest.mark.parametrize(
    ("make", "options", "others"),
    [
        (HashingTrick, {"rows": 20}, [{"seed": 1}, {"seed": 2}]),
        (HashingTrick, {"rows": 20, "signed": True}, [{"seed": 1}, {"seed": 2}]),
        # Both have 25 rows, split 5 + 20 and 20 + 5.
        (QuotientRemainder, {}, [{"modulus": 20}, {"modulus": 5}]),
    ],
    ids=["rows", "signed", "modulus"],
)
def test_a_state_dict_carries_the_hash(make, options, others):
    spec = TableSpec.of_shape(100, 4)
    source, target = (make.make(spec, **options, **other) for other in others)
    wanted = every_row(source)
    assert not np.array_equal(every_row(target), wanted)
    target.load_state_dict(copy.deepcopy(source.state_dict()))
    np.testing.assert_array_equal(every_row(target), wanted)
    np.testing.assert_allclose(decode_layout(target.freeze()), wanted, rtol=1e-6)


def test_hash_parameters_are_counted():
    spec = TableSpec.of_shape(100, 4)
    for signed, parameters in ((False, 40), (True, 64)):
        layout = HashingTrick.make(spec, rows=10, signed=signed).freeze()
        assert layout.nbytes == 10 * 4 * 4 + parameters
    assert qr(100, 10).freeze().nbytes == 20 * 4 * 4 + 80


@pytest.mark.parametrize("n", [1, 2, 3, 5, 37, 100, 101, 1000])
@pytest.mark.parametrize("combine", ["sum", "concat"])
def test_quotient_remainder_plan_is_the_best_of_all_moduli(n, combine):
    spec = TableSpec.of_shape(n, 8)
    method = get_method("quotient_remainder")
    width = 8 if combine == "sum" else 4
    sizes = {m: 4 * width * (m + -(-n // m)) + 80 for m in range(1, n + 1)}
    for ratio in (1, 1.5, 2, 4, 10, 30):
        fitting = [size for size in sizes.values() if size <= spec.budget(ratio)]
        if not fitting:
            with pytest.raises(ValueError, match="highest ratio it can reach"):
                method.plan(spec, ratio, combine=combine)
            continue
        planned = method.plan(spec, ratio, combine=combine)
        assert sizes[planned.modulus] == max(fitting)


@pytest.mark.parametrize("signed", [False, True])
def test_hashing_plan_leaves_no_room_for_another_row(signed):
    spec = TableSpec.of_shape(1000, 8)
    for ratio in (1, 3, 7.5, 30):
        planned = get_method("hashing").plan(spec, ratio, signed=signed)
        assert planned.signed == signed
        layout = HashingTrick(spec, planned).freeze()
        assert layout.nbytes <= spec.budget(ratio) < layout.nbytes + 4 * 8


ROWS = np.ones((2, 5), np.float32)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda spec: HashingTrick.make(spec), "rows is not set"),
        (lambda spec: HashingTrick.make(spec, rows=0), "rows must be .* from 1 to"),
        (lambda spec: HashingTrick.make(spec, rows=2.0), "rows must be an integer"),
        (lambda spec: HashingTrick.make(spec, rows=2, sign=1), "no option 'sign'"),
        (lambda spec: qr(10, 0, 5), "modulus must be an integer from 1 up"),
        (lambda spec: qr(10, 11, 5), "modulus must be an integer from 1 to 10"),
        (lambda spec: qr(10, 3, 5, combine="mean"), "combine must be one of"),
        (lambda spec: qr(10, 3, 5, combine="concat"), "multiple of 2, got 5"),
        (lambda spec: HashedLayout(ROWS, [[1, 1, 1]], 10, 5), "index must be"),
        (lambda spec: HashedLayout(ROWS, [[1, 1, 1, 1, 0]], 10, 5), "moduli from 1 up"),
        (
            lambda spec: HashedLayout(ROWS.astype(float), [[1, 1, 1, 1, 2]], 10, 5),
            "values must be float32",
        ),
        (
            lambda spec: HashedLayout(
                np.ones((3, 5), np.float32), [[1, 1, 1, 1, 2]], 10, 5
            ),
            r"values must be float32 or float16 of shape \(2, 5\)",
        ),
        (
            lambda spec: HashedLayout(ROWS, [[1, 1, 1, 1, 2]], 10, 5, signs=[3]),
            "signs must be two multipliers and an addend",
        ),
    ],
)
def test_what_cannot_be_is_a_value_error(make, words):
    with pytest.raises(ValueError, match=words):
        make(TableSpec.of_shape(10, 5))
