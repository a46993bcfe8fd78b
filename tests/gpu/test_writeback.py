"""Codes rounded by chance: NumPy's rule, and the kernel that repeats it."""

import numpy as np
import pytest

from survey_code.bits import pack_codes
from survey_code.kernels.cuda import load_cupy
from survey_code.kernels.cuda.writeback import draw_key, mix, round_rows, write_rows

try:
    load_cupy()
    HAS_GPU = True
except RuntimeError:
    HAS_GPU = False
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="no GPU, or no CuPy")
RNG = np.random.default_rng(0)


def decode(codes, bits, steps):
    return (codes.astype(np.float32) - 2 ** (bits - 1)) * steps[:, None]


def test_the_mixture_is_splitmix64():
    """The first two outputs of the published generator for the seed 0."""
    states = np.array([0, 0x9E3779B97F4A7C15], dtype=np.uint64)
    assert mix(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_rounding_is_right_on_average(bits):
    """E Q(x) = x and Var Q(x) = s^2 f (1 - f)."""
    value = np.float32(0.37)
    rows, ids = np.full((50_000, 3), value), np.arange(50_000)
    steps = np.full(50_000, 0.5, dtype=np.float32)
    read = decode(round_rows(rows, ids, steps, bits, draw_key(1, 7)), bits, steps)
    share = 0.37 / 0.5
    assert read.mean() == pytest.approx(0.37, abs=4 * 0.25 / 150_000**0.5)
    assert read.var() == pytest.approx(0.25 * share * (1 - share), rel=0.03)


def test_a_coin_depends_on_seed_step_row_and_column_alone():
    rows = RNG.normal(size=(100, 8)).astype(np.float32)
    ids, steps = RNG.permutation(1000)[:100], np.full(100, 0.3, dtype=np.float32)
    first = round_rows(rows, ids, steps, 4, draw_key(1, 7))
    order = RNG.permutation(100)
    again = round_rows(rows[order], ids[order], steps, 4, draw_key(1, 7))
    assert (again == first[order]).all()
    for seed, step in ((1, 8), (2, 7)):
        assert (round_rows(rows, ids, steps, 4, draw_key(seed, step)) != first).any()


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_what_does_not_fit_becomes_the_last_code(bits):
    rows = np.array([[1e6, -1e6, 0.0]], dtype=np.float32)
    steps = np.ones(1, dtype=np.float32)
    codes = round_rows(rows, np.array([3]), steps, bits, draw_key(0, 0))[0]
    assert codes.tolist() == [2**bits - 1, 0, 2 ** (bits - 1)]


@needs_gpu
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("dim", [1, 3, 8, 13, 64, 257])
def test_the_kernel_stores_numpys_codes(bits, dim):
    cupy = load_cupy()
    width = -(-dim * bits // 8)
    table = RNG.integers(0, 256, size=(500, width + 5)).astype(np.uint8)
    ids = RNG.permutation(500)[:200]
    rows = RNG.normal(size=(200, dim)).astype(np.float32)
    steps = RNG.uniform(0.01, 1, size=200).astype(np.float32)
    key = draw_key(3, 11)
    device = cupy.asarray(table)
    write_rows(device, *map(cupy.asarray, (ids, rows, steps)), bits, key)
    expected = table.copy()
    codes = round_rows(rows, ids, steps, bits, key)
    expected[ids, :width] = pack_codes(codes, bits)
    assert (device.get() == expected).all()


@needs_gpu
def test_bad_shapes_are_value_errors():
    cupy = load_cupy()
    table, ids = cupy.zeros((5, 4), np.uint8), cupy.arange(2)
    rows, steps = cupy.zeros((2, 8), np.float32), cupy.ones(2, np.float32)
    with pytest.raises(ValueError, match="bits must be 8, 4 or 2, got 3"):
        write_rows(table, ids, rows, steps, 3, draw_key(0, 0))
    with pytest.raises(ValueError, match="a uint8 table of at least 8 bytes"):
        write_rows(table, ids, rows, steps, 8, draw_key(0, 0))
