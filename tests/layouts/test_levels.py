"""Codes that name levels, what rows multiply them by, and turns by signs."""

import numpy as np
import pytest

from survey_code import compress
from survey_code.bits import pack_codes, unpack_codes
from survey_code.kernels.cpu.codes import decode_levels, unpack_rows
from survey_code.layouts import DenseLayout, LevelsLayout, TurnedLayout
from survey_code.layouts.levels import levels_bytes, read_powers
from survey_code.layouts.turned import mix_rows, read_signs, turn_back

WIDTHS = (1, 2, 3, 5, 7, 8, 9, 16, 23, 24, 64)
FLOAT_MOST = np.finfo(np.float32).max


def draw_codes(rows, dim, bits):
    return np.random.default_rng(dim).integers(
        2**bits, size=(rows, dim), dtype=np.uint8
    )


# -- codes -------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dim", WIDTHS)
def test_codes_of_any_width_are_packed_low_bits_first(bits, dim):
    codes = draw_codes(6, dim, bits)
    packed = pack_codes(codes, bits)
    each = codes[:, :, None] >> np.arange(bits, dtype=np.uint8) & 1
    wanted = np.packbits(each.reshape(6, -1), axis=1, bitorder="little")
    np.testing.assert_array_equal(packed, wanted)
    np.testing.assert_array_equal(unpack_codes(packed, dim, bits), codes)
    np.testing.assert_array_equal(unpack_rows(packed, dim, bits), codes)
    # Bytes behind the codes are left alone.
    longer = np.concatenate([packed, np.full((6, 3), 255, np.uint8)], axis=1)
    np.testing.assert_array_equal(unpack_rows(longer, dim, bits), codes)
    levels = np.random.default_rng(bits).normal(size=2**bits).astype(np.float32)
    np.testing.assert_array_equal(
        decode_levels(longer, dim, bits, levels), levels[codes]
    )


@pytest.mark.parametrize("bits", range(1, 9))
def test_rows_are_levels_times_their_scales(bits):
    codes, rng = draw_codes(9, 11, bits), np.random.default_rng(0)
    levels = rng.normal(size=2**bits).astype(np.float32)
    half = rng.normal(size=9).astype(np.float16)
    powers = rng.integers(100, 150, size=(9, 3)).astype(np.uint8)
    wide = np.repeat(2.0 ** (powers.astype(int) - 127), 4, axis=1)[:, :11]
    for scales, block, factor in (
        (None, 0, 1.0),
        (half, 0, half.astype(np.float32)[:, None]),
        (powers, 4, wide.astype(np.float32)),
    ):
        layout = LevelsLayout.from_codes(codes, levels, scales, block)
        np.testing.assert_array_equal(layout.lookup(range(9)), levels[codes] * factor)
        size = levels_bytes(9, 11, bits, scaled=scales is half, block=block)
        assert layout.nbytes == size and layout.bits == bits


def test_powers_are_those_of_float32():
    stored = np.arange(255, dtype=np.uint8)
    wanted = np.ldexp(1.0, np.arange(-127, 128))
    np.testing.assert_array_equal(read_powers(stored), wanted)


# -- what is refused ---------------------------------------------------------

LEVELS = np.array([-2.0, -1.0, 1.0, 3.0], np.float32)
CODES = np.array([[0, 1, 2, 2], [3, 1, 0, 2], [1, 1, 2, 2]], np.uint8)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf])
def test_scales_that_are_not_finite_are_refused_by_row(scale):
    scales = np.array([1.0, scale, 1.0])
    with pytest.raises(ValueError, match="finite, but that of row 1 is NaN"):
        LevelsLayout.from_codes(CODES, LEVELS, scales)


def test_the_byte_of_no_power_is_refused():
    powers = np.full((3, 2), 127, np.uint8)
    LevelsLayout.from_codes(CODES, LEVELS, powers, block=2)
    powers[2, 1] = 255
    with pytest.raises(ValueError, match="finite, but that of row 2 is NaN"):
        LevelsLayout.from_codes(CODES, LEVELS, powers, block=2)


def test_only_rows_that_leave_float32_are_refused():
    powers = np.full((3, 2), 254, np.uint8)  # 2**127, and 1 is the largest level read
    quiet = np.where(abs(LEVELS[CODES]) > 1, np.uint8(2), CODES)
    layout = LevelsLayout.from_codes(quiet, LEVELS, powers, block=2)
    assert np.isfinite(layout.lookup(range(3))).all()
    assert layout.largest == 2.0**127
    with pytest.raises(ValueError, match="can leave float32"):
        LevelsLayout.from_codes(CODES, LEVELS, powers, block=2)


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": 0},
        {"bits": 9},
        {"bits": 3},
        {"block": -1},
        {"block": 3},  # two blocks, and as many bytes behind the codes as are missing
        {"embedding_dim": 5},
        {"levels": LEVELS.astype(np.float64)},
        {"levels": LEVELS[:3]},
        {"rows": np.zeros((3, 2), np.uint8)},
        {"rows": np.zeros((3, 1), np.int8)},
        {"rows": np.zeros(3, np.uint8)},
        {"rows": np.zeros((3, 4), np.uint8)},
    ],
    ids=repr,
)
def test_what_contradicts_itself_is_refused(changes):
    whole = {
        "rows": np.zeros((3, 1), np.uint8), "levels": LEVELS, "embedding_dim": 4,
        "bits": 2, "block": 0,
    }  # fmt: skip
    LevelsLayout(**whole)
    with pytest.raises(ValueError):
        LevelsLayout(**whole | changes)


# -- turns by signs ----------------------------------------------------------


def hadamard(dim):
    if dim == 1:
        return np.ones((1, 1))
    half = hadamard(dim // 2)
    return np.block([[half, half], [half, -half]])


@pytest.mark.parametrize("dim", [1, 2, 4, 16, 128])
def test_rows_are_mixed_by_hadamards_matrix(dim):
    rows = np.random.default_rng(dim).normal(size=(7, dim))
    wanted = rows @ hadamard(dim) / np.sqrt(dim)
    np.testing.assert_allclose(mix_rows(rows), wanted, atol=1e-12)
    np.testing.assert_allclose(mix_rows(mix_rows(rows)), rows, atol=1e-12)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("dim", [1, 4, 16, 32])
def test_signs_are_the_matrix_that_they_stand_for(times, dim):
    rng = np.random.default_rng(dim)
    signs = rng.integers(256, size=(times, -(-dim // 8))).astype(np.uint8)
    table = rng.normal(size=(20, dim)).astype(np.float32)
    layout = TurnedLayout(DenseLayout(table), signs=signs)
    matrix = np.eye(dim)
    for flips in read_signs(signs, dim):
        matrix = matrix @ hadamard(dim) / np.sqrt(dim) * flips
    np.testing.assert_allclose(layout.full_matrix(), matrix, atol=1e-6)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(dim), atol=1e-6)
    rows = layout.lookup(range(20))
    np.testing.assert_allclose(rows, table @ matrix, atol=1e-5)
    np.testing.assert_allclose(turn_back(rows, signs), table, atol=1e-5)
    queries = rng.normal(size=(5, dim)).astype(np.float32)
    np.testing.assert_allclose(layout.scores(queries), queries @ rows.T, atol=1e-4)
    like = TurnedLayout(DenseLayout(table), layout.full_matrix())
    ids, offsets = [3, 4, 19, 0], [0, 1, 1]
    np.testing.assert_allclose(
        layout.bag(ids, offsets), like.bag(ids, offsets), atol=1e-4
    )
    assert layout.nbytes == table.nbytes + signs.nbytes


def test_one_row_has_the_same_digits_alone_and_among_others():
    table = np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32)
    layout = TurnedLayout(DenseLayout(table), signs=np.full((2, 8), 0x5A, np.uint8))
    rows = layout.lookup(range(300))
    for one in (0, 7, 299):
        np.testing.assert_array_equal(layout.lookup(one), rows[one])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "one of them"),
        ({"matrix": np.eye(6, dtype=np.float32), "signs": np.zeros((1, 1), np.uint8)},
         "one of them"),
        ({"signs": np.zeros((1, 1), np.uint8)}, "a power of two of entries"),
    ],
)  # fmt: skip
def test_rows_are_turned_in_one_way(given, said):
    part = DenseLayout(np.ones((3, 6), np.float32))
    with pytest.raises(ValueError, match=said):
        TurnedLayout(part, **given)


@pytest.mark.parametrize(
    "signs",
    [np.zeros(1, np.uint8), np.zeros((3, 1), np.uint8), np.zeros((1, 2), np.uint8),
     np.zeros((1, 1), np.int8)],
)  # fmt: skip
def test_signs_are_bits_for_each_column(signs):
    with pytest.raises(ValueError, match=r"signs must be uint8 of shape \(1 or 2, 1\)"):
        TurnedLayout(DenseLayout(np.ones((3, 8), np.float32)), signs=signs)


@pytest.mark.parametrize("way", ["signs", "matrix"])
def test_large_rows_are_turned_if_they_stay_inside_float32(way):
    """Not by the bound of the largest number, but of each row."""
    signs = np.array([[0x6C, 0x15]], np.uint8)
    table = np.zeros((2, 16), np.float32)
    table[0, 3] = FLOAT_MOST / 2
    given = {"signs": signs}
    if way == "matrix":
        turned = TurnedLayout(DenseLayout(table[:, :16] * 0), signs=signs)
        given = {"matrix": turned.full_matrix()}
    layout = TurnedLayout(DenseLayout(table), **given)
    rows = layout.lookup([0, 1])
    assert np.isfinite(rows).all() and abs(rows).max() <= layout.largest <= FLOAT_MOST
    with pytest.raises(ValueError, match="can leave float32"):
        TurnedLayout(DenseLayout(np.full_like(table, FLOAT_MOST / 2)), **given)


def test_a_block_far_longer_than_a_row_costs_nothing():
    """Its length stands in a file, where anything can stand."""
    layout = compress(np.eye(5, 8, dtype=np.float32), "half", dtype="mx4")
    shape = layout.blueprint()["shape"]
    for block in (32, 10**6, 2**62):
        held = layout.from_file({**shape, "block": block}, layout.held())
        rows = held.lookup(np.arange(5))
        np.testing.assert_array_equal(rows, layout.lookup(np.arange(5)))
