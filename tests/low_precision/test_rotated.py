"""Turned rows: levels, errors, the search for a stretch, inner products on average."""

import math

import numpy as np
import pytest
import torch

from survey_code import TableSpec, compress
from survey_code.embedding import decode_layout
from survey_code.layouts import LevelsLayout, TurnedLayout
from survey_code.layouts.turned import turn_back
from survey_code.low_precision.quantization import (
    RotatedOptions,
    RotatedQuantization,
    code_rows,
    find_distortion,
    find_levels,
    search_stretch,
)
from survey_code.low_precision.quantization.rotated import (
    count_times,
    draw_turn,
    rotated_bytes,
    round_to_levels,
    turn_rows,
)
from survey_code.spec import OutOfReach

BITS = tuple(range(1, 9))


def normal(rows, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def heavy(rows, dim, seed=0):
    drawn = np.random.default_rng(seed).standard_t(3, size=(rows, dim))
    return drawn.astype(np.float32)


def relative_errors(table, layout):
    """Squared error of each row over its squared length."""
    read, wide = decode_layout(layout).astype(np.float64), table.astype(np.float64)
    return ((read - wide) ** 2).sum(1) / (wide**2).sum(1)


# -- levels ------------------------------------------------------------------

# As printed by Max (1960), who rounded them to four digits.
KNOWN = {
    1: ([0.7980], 0.3634),
    2: ([0.4528, 1.510], 0.1175),
    3: ([0.2451, 0.7560, 1.344, 2.152], 0.03454),
    4: ([0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733], 0.009497),
}


@pytest.mark.parametrize("bits", KNOWN)
def test_levels_are_maxs(bits):
    half, distortion = KNOWN[bits]
    found = find_levels(bits)
    np.testing.assert_allclose(found[2 ** (bits - 1) :], half, rtol=5e-4)
    np.testing.assert_array_equal(found, -found[::-1])
    assert find_distortion(bits) == pytest.approx(distortion, rel=6e-4)


@pytest.mark.parametrize("bits", BITS)
def test_each_level_is_the_mean_of_what_is_rounded_to_it(bits):
    """By sums over a fine grid, and so that no other levels have less error."""
    levels = find_levels(bits)
    assert (np.diff(levels) > 0).all()
    points = np.linspace(-9, 9, 900_001)
    mass = np.exp(-(points**2) / 2)
    mass /= mass.sum()
    codes = round_to_levels(points, levels)
    means = np.bincount(codes, mass * points) / np.bincount(codes, mass)
    np.testing.assert_allclose(means, levels, rtol=2e-4, atol=2e-5)
    error = mass @ (points - levels[codes]) ** 2
    assert error == pytest.approx(find_distortion(bits), rel=1e-4)


@pytest.mark.parametrize("bits", BITS)
def test_a_normal_table_has_the_error_of_its_levels(bits):
    """With lengths that are the root of dim for sure, and not the nearest ones."""
    rows = np.random.default_rng(bits).normal(size=(4000, 64))
    levels = find_levels(bits)
    errors = (levels[round_to_levels(rows, levels)] - rows) ** 2
    deviation = errors.std() / math.sqrt(errors.size)
    assert abs(errors.mean() - find_distortion(bits)) < 4 * deviation


@pytest.mark.parametrize("bits", (1, 2, 3, 4))
def test_rows_of_many_columns_come_close_to_that_error(bits):
    errors = relative_errors(normal(600, 1024), compress(normal(600, 1024), "rotated",
                                                         bits=bits))  # fmt: skip
    assert errors.mean() == pytest.approx(find_distortion(bits), rel=0.02)


# -- turns -------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2, 3, 6, 8, 15, 16, 64, 100])
@pytest.mark.parametrize("unbiased", [False, True])
def test_turns_are_orthonormal_and_turned_back(dim, unbiased):
    matrix, signs = draw_turn(dim, 0, unbiased)
    times = {False: {1: 1, 2: 1, 8: 1, 16: 1, 64: 1}, True: {16: 2, 64: 2}}
    assert count_times(dim, unbiased) == times[unbiased].get(dim, 0)
    assert (0 if signs is None else len(signs)) == count_times(dim, unbiased)
    rows = np.random.default_rng(0).normal(size=(9, dim))
    turned = turn_rows(rows, matrix, signs)
    np.testing.assert_allclose(
        np.linalg.norm(turned, axis=1), np.linalg.norm(rows, axis=1), rtol=1e-5
    )
    coded = LevelsLayout.from_codes(np.zeros((9, dim), np.uint8), np.ones(2))
    layout = TurnedLayout(coded, matrix, signs)
    np.testing.assert_allclose(turned @ layout.full_matrix(), rows, atol=1e-5)
    others = [draw_turn(dim, draw, unbiased)[signs is not None] for draw in range(9)]
    np.testing.assert_array_equal(others[0], matrix if signs is None else signs)
    assert any(not np.array_equal(other, others[0]) for other in others)


def test_a_large_entry_is_spread_evenly_by_one_turn_of_signs():
    """And so read better than after two, which leave a normal row."""
    table = heavy(3000, 64)
    once, twice = (draw_turn(64, 0, unbiased) for unbiased in (False, True))
    spike = turn_rows(np.eye(64)[:1], *once)
    np.testing.assert_allclose(np.abs(spike), 1 / 8, rtol=1e-12)
    found = []
    for turn in (once, twice):
        rows = turn_rows(table.astype(np.float64), *turn)
        codes, lengths = code_rows(rows, 2)
        read = find_levels(2)[codes] / 8 * lengths[:, None]
        found.append((((read - rows) ** 2).sum(1) / (rows**2).sum(1)).mean())
    assert found[0] < 0.97 * found[1]
    assert found[1] == pytest.approx(0.113, abs=0.001)


def test_all_turns_by_a_matrix_are_equally_likely():
    """A fixed row is turned into every direction: no mean, and the same spread."""
    row = np.array([[3.0, 1.0, 0.0]])
    row /= np.linalg.norm(row)
    turned = np.concatenate(
        [turn_rows(row, *draw_turn(3, draw)) for draw in range(4000)]
    )
    assert np.abs(turned.mean(0)).max() < 4 / math.sqrt(3 * 4000)
    np.testing.assert_allclose(turned.T @ turned / 4000, np.eye(3) / 3, atol=0.025)
    # Coordinates of a sphere's points are uniform in three dimensions.
    shares = np.histogram(turned, bins=8, range=(-1, 1))[0] / turned.size
    np.testing.assert_allclose(shares, 1 / 8, atol=0.02)


# -- the search for a stretch ------------------------------------------------


def cosines(rows, read):
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(read, axis=1)
    return (rows * read).sum(1) / lengths


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dim", [1, 2, 5, 16])
def test_no_stretch_has_a_larger_cosine_than_the_one_that_is_found(bits, dim):
    rows = heavy(60, dim).astype(np.float64)
    rows /= np.sqrt((rows**2).mean(1, keepdims=True))
    levels = find_levels(bits)
    found = cosines(rows, levels[search_stretch(rows, levels)])
    for stretch in (1.0, *np.geomspace(0.05, 20, 200)):
        tried = cosines(rows, levels[round_to_levels(rows * stretch, levels)])
        assert (found >= tried - 1e-12).all()


def test_the_search_finds_the_best_of_all_codes_that_a_line_passes():
    """At 2 bits and two columns, by hand: (1, 3) is read best by small and large."""
    levels = find_levels(2)
    low, high = levels[2:]
    codes = search_stretch(np.array([[0.5, 1.5], [-1.5, 0.5], [1.0, 1.0]]), levels)
    np.testing.assert_array_equal(codes[:2], [[2, 3], [0, 2]])
    assert codes[2, 0] == codes[2, 1]
    assert low / high == pytest.approx(0.2998, abs=1e-4)


@pytest.mark.parametrize("draw", [normal, heavy])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_stretching_never_raises_the_error_of_a_row(draw, bits):
    table = draw(300, 16)
    plain = relative_errors(table, compress(table, "rotated", bits=bits))
    best = relative_errors(table, compress(table, "rotated", bits=bits, stretch=True))
    assert (best <= plain + 1e-6).all()
    assert best.mean() < 0.97 * plain.mean()


# -- lengths -----------------------------------------------------------------


@pytest.mark.parametrize("stretch", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_lengths_are_nearest_or_keep_the_product_with_the_row(bits, stretch):
    rows = heavy(50, 16).astype(np.float64)
    levels = find_levels(bits) / 4
    codes, nearest = code_rows(rows, bits, stretch)
    same, right = code_rows(rows, bits, stretch, unbiased=True)
    np.testing.assert_array_equal(codes, same)
    read = levels[codes]
    for factor in (0.999, 1.001):
        best = ((rows - nearest[:, None] * read) ** 2).sum(1)
        assert (best < ((rows - factor * nearest[:, None] * read) ** 2).sum(1)).all()
    products = (rows * read * right[:, None]).sum(1)
    np.testing.assert_allclose(products, (rows**2).sum(1), rtol=1e-12)


@pytest.mark.parametrize("dim", [6, 8, 16, 64])
@pytest.mark.parametrize(("bits", "stretch"), [(1, False), (2, False), (2, True)])
def test_inner_products_are_right_on_average_over_turns(dim, bits, stretch):
    """With the unbiased lengths; with the nearest ones they are too small."""
    rng = np.random.default_rng(dim)
    rows = rng.standard_t(3, size=(4, dim))
    rows[0] = np.eye(dim)[0]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    other = rng.normal(size=dim) / math.sqrt(dim) + rows
    wanted, products = (rows * other).sum(1), {True: [], False: []}
    levels = find_levels(bits) / math.sqrt(dim)
    for draw in range(1500):
        turn = draw_turn(dim, draw, unbiased=True)
        # A turn keeps inner products: the other vector is turned as well.
        turned, across = turn_rows(rows, *turn), turn_rows(other, *turn)
        for unbiased, found in products.items():
            codes, lengths = code_rows(turned, bits, stretch, unbiased)
            read = levels[codes] * lengths[:, None]
            found.append((read * across).sum(1))
    means = np.mean(products[True], axis=0)
    deviations = np.std(products[True], axis=0) / math.sqrt(1500)
    assert (np.abs(means - wanted) < 4 * deviations + 1e-9).all()
    short = np.mean(products[False], axis=0) - wanted
    assert (short < -5 * deviations).sum() >= 3


def test_the_layout_reads_what_the_codes_say():
    """Lengths rounded to float16, and nothing else."""
    for dim in (6, 16):
        table = heavy(40, dim)
        layout = compress(table, "rotated", bits=3, unbiased=True, draw=5)
        turn = draw_turn(dim, 5, unbiased=True)
        turned = turn_rows(table.astype(np.float64), *turn)
        codes, lengths = code_rows(turned, 3, unbiased=True)
        read = find_levels(3)[codes] / math.sqrt(dim) * lengths[:, None]
        wanted = read @ layout.full_matrix()
        largest = np.abs(wanted).max(1, keepdims=True)
        assert (np.abs(decode_layout(layout) - wanted) < 2**-10 * largest).all()


def test_a_turned_query_scores_rows_without_turning_them_back():
    table = heavy(50, 16)
    layout = compress(table, "rotated", bits=4)
    queries = normal(3, 16)
    wanted = queries @ decode_layout(layout).T
    np.testing.assert_allclose(layout.scores(queries), wanted, atol=1e-4)
    turned = turn_back(queries, layout.signs)
    codes = decode_layout(layout.part)
    np.testing.assert_allclose(turned @ codes.T, wanted, atol=1e-4)


# -- tables ------------------------------------------------------------------


def test_turning_pays_for_heavy_tails_and_not_for_normal_rows():
    wide, short = heavy(4000, 64), normal(4000, 16)
    found = {}
    for name, table in (("wide", wide), ("short", short)):
        for key, options in {
            "rowwise": {}, "greedy": {}, "rotated": {}, "as they are": {"rotate": False}
        }.items():  # fmt: skip
            method = "rotated" if options else key
            layout = compress(table, method, bits=2, **options)
            errors = relative_errors(table, layout)
            found[name, key] = errors.mean(), layout.nbytes
    assert found["wide", "rowwise"][0] == pytest.approx(0.371, abs=0.01)
    assert found["wide", "greedy"][0] == pytest.approx(0.220, abs=0.01)
    assert found["wide", "rotated"][0] == pytest.approx(0.108, abs=0.002)
    assert found["wide", "rotated"][1] < found["wide", "rowwise"][1]
    assert found["wide", "as they are"][0] > 1.8 * found["wide", "rotated"][0]
    plain, turned = found["short", "as they are"][0], found["short", "rotated"][0]
    assert plain == pytest.approx(turned, rel=0.02)
    assert found["short", "greedy"][0] < 0.8 * turned


@pytest.mark.parametrize("dim", [1, 2, 3, 7, 16, 24])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    "options", [{}, {"rotate": False}, {"stretch": True}, {"unbiased": True}], ids=str
)
def test_bytes_are_counted_before_there_is_a_layout(dim, bits, options):
    layout = compress(normal(20, dim), "rotated", bits=bits, **options)
    options = {name: value for name, value in options.items() if name != "stretch"}
    assert layout.nbytes == rotated_bytes(20, dim, bits, **options)


@pytest.mark.parametrize("dim", [1, 2, 5, 8, 16])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_rows_of_any_length_are_read(dim, bits):
    """Zeros, denormals, large and small rows; d = 1; no power of two."""
    base = normal(12, dim) + 0.1
    for factor in (0.0, 1e-40, 1e-30, 1e-6, 1.0, 1e4, 1e20, 1e37):
        table = base * np.float32(factor)
        rows = decode_layout(compress(table, "rotated", bits=bits))
        if not factor:
            assert not rows.any()
            continue
        errors = np.abs(rows.astype(np.float64) - table) / factor
        # One column alone has no direction to lose: its lengths are rounded.
        most = 2.0**-8 if dim == 1 else 3 * find_distortion(bits) ** 0.5
        assert errors.max() < most * np.linalg.norm(base, axis=1).max()
    mixed = base.copy()
    mixed[3], mixed[7] = 0, 1e-44
    rows = decode_layout(compress(mixed, "rotated", bits=bits))
    assert not rows[3].any() and np.abs(rows[7]).max() < 1e-4


@pytest.mark.parametrize("factor", [1e38, 3e38])
def test_rows_near_the_end_of_float32_are_read_or_refused(factor):
    refused = 0
    for dim in (1, 2, 4, 8, 16, 64):
        table = np.clip(normal(20, dim), -1, 1) * np.float32(factor)
        for options in ({}, {"unbiased": True}, {"stretch": True}):
            try:
                layout = compress(table, "rotated", bits=2, **options)
            except ValueError as error:
                assert "can leave float32" in str(error) and dim > 1
                refused += 1
                continue
            rows = decode_layout(layout)
            assert np.isfinite(rows).all()
            assert np.abs(rows).max() <= layout.largest
            assert not options or relative_errors(table, layout).mean() < 0.2
    assert refused < (7 if factor == 1e38 else 18)


def test_memory_stays_small_whatever_rows_are_together(monkeypatch):
    """Rows are turned in pieces, which is not to be seen."""
    from survey_code.low_precision.quantization import rotated

    table = heavy(101, 16)
    wanted = [compress(table, "rotated", bits=3, stretch=s) for s in (False, True)]
    monkeypatch.setattr(rotated, "TURNED_TOGETHER", 7 * 16)
    monkeypatch.setattr(rotated, "SEARCHED_NUMBERS", 100)
    for stretch, layout in enumerate(wanted):
        again = compress(table, "rotated", bits=3, stretch=bool(stretch))
        np.testing.assert_array_equal(again.part.rows, layout.part.rows)


# -- plans -------------------------------------------------------------------


def plan(rows, dim, ratio, **given):
    options = RotatedOptions(**given)
    spec = TableSpec.of_shape(rows, dim)
    return RotatedQuantization.plan(spec, ratio, options)["bits"]


def test_a_plan_takes_the_most_bits_that_fit():
    full = 4 * 10_000 * 64
    for bits in BITS:
        ratio = full / rotated_bytes(10_000, 64, bits)
        assert plan(10_000, 64, ratio * 0.9999) == bits
        if bits > 1:
            assert plan(10_000, 64, ratio * 1.0001) == bits - 1
    with pytest.raises(OutOfReach):
        plan(10_000, 64, ratio=26)
    assert plan(10_000, 64, ratio=4, bits=2) == 2
    # A matrix is bytes as well.
    assert plan(500, 60, ratio=5) < plan(500, 60, ratio=5, rotate=False)


def test_another_draw_is_another_turn():
    table = heavy(30, 16)
    one, other = (compress(table, "rotated", bits=2, draw=d) for d in (0, 1))
    assert not np.array_equal(one.signs, other.signs)
    assert not np.array_equal(decode_layout(one), decode_layout(other))
    again = compress(torch.from_numpy(table), "rotated", bits=2)
    np.testing.assert_array_equal(decode_layout(one), decode_layout(again))
