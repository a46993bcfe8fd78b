"""Codes rounded by chance: NumPy's rule; test_training_kernels.py has the kernel that
repeats it.
"""

import numpy as np
import pytest

from survey_code.kernels.cuda.writeback import draw_key, mix, round_rows

RNG = np.random.default_rng(0)


def decode(codes, bits, steps):
    return (codes.astype(np.float32) - 2 ** (bits - 1)) * steps[:, None]


def test_the_mixture_is_splitmix64():
    """The first two outputs of the published generator for the seed 0."""
    states = np.array([0, 0x9E3779B97F4A7C15], dtype=np.uint64)
    assert mix(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
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


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_what_does_not_fit_becomes_the_last_code(bits):
    rows = np.array([[1e6, -1e6, 0.0]], dtype=np.float32)
    steps = np.ones(1, dtype=np.float32)
    codes = round_rows(rows, np.array([3]), steps, bits, draw_key(0, 0))[0]
    assert codes.tolist() == [2**bits - 1, 0, 2 ** (bits - 1)]


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_code_0_may_stand_for_another_number(bits):
    rows = np.array([[-1.0, 0.0, 1.0, 300.0]], dtype=np.float32)
    how = rows, np.array([3]), np.ones(1, dtype=np.float32), bits, draw_key(0, 0)
    most = 2**bits - 1
    assert round_rows(*how, low=0)[0].tolist() == [0, 0, 1, most]
    assert round_rows(*how, low=-1)[0].tolist() == [0, 1, min(2, most), most]
