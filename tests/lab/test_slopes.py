"""Slopes and intervals, beside SciPy's and in worlds whose slopes are known."""

import numpy as np
import pytest
from scipy import stats

from survey_code.lab.slopes import MATTERS, bound_slopes, describe_slope, fit_slopes

ARMS, SEEDS, WINDOWS = 6, 5, 36


@pytest.mark.parametrize("seed", range(5))
def test_slopes_are_scipy_s(seed):
    series = np.random.default_rng(seed).standard_normal((3, 17)).cumsum(1)
    wanted = [stats.theilslopes(row).slope for row in series]
    np.testing.assert_allclose(fit_slopes(series), wanted, rtol=1e-12)


def test_slopes_follow_lines_and_do_not_mind_a_few_strays():
    line = 3.0 - 0.25 * np.arange(20)
    assert fit_slopes(line) == -0.25
    line[[3, 11, 12]] = 1e6
    assert fit_slopes(line) == -0.25
    series = np.random.default_rng(0).standard_normal((2, 9))
    np.testing.assert_allclose(fit_slopes(7 - 2 * series), -2 * fit_slopes(series))


@pytest.mark.parametrize(
    "series", [np.zeros(1), np.float64(3), np.array([0.0, np.nan]), np.zeros((2, 0))]
)
def test_what_has_no_slope_is_a_value_error(series):
    with pytest.raises(ValueError, match="a slope needs finite values of two windows"):
        fit_slopes(series)


def draw_gaps(rng, memory=0.0, differ=0.0, arms=ARMS, seeds=SEEDS):
    """Gaps without a slope: own noise and that of the table they are all behind, each
    remembering its last value; seeds may have slopes of their own.
    """
    noise = rng.standard_normal((arms + 1, seeds, WINDOWS + 40))
    for window in range(1, noise.shape[-1]):
        noise[..., window] += memory * noise[..., window - 1]
    noise = noise[..., 40:]
    own = differ * rng.standard_normal((arms, seeds, 1)) * np.arange(WINDOWS)
    return noise[:arms] + noise[arms] + own


@pytest.mark.parametrize(
    ("memory", "differ"), [(0.0, 0.0), (0.5, 0.0), (0.8, 0.0), (0.0, 0.03)]
)
def test_intervals_hold_for_all_arms_about_as_often_as_they_say(memory, differ):
    rng, held, cases = np.random.default_rng(7), 0, 50
    for case in range(cases):
        gaps = draw_gaps(rng, memory, differ)
        found = bound_slopes(gaps, draws=100, seed=case)
        held += bool(((found.low <= 0) & (found.high >= 0)).all())
    # Of 50 cases at .95, fewer than 43 would be a chance of one in a hundred.
    assert held >= 43


def test_an_interval_for_all_is_wider_than_for_one_and_narrower_than_bonferroni():
    gaps = draw_gaps(np.random.default_rng(0), arms=10)
    alone = [bound_slopes(gaps[k : k + 1], draws=300).critical for k in range(10)]
    together = bound_slopes(gaps, draws=300)
    bonferroni = stats.t.isf(0.025 / 10, 2 * (SEEDS - 1))
    assert max(alone) < together.critical < 1.1 * bonferroni
    # Ten times the same arm is one arm.
    same = bound_slopes(np.repeat(gaps[:1], 10, axis=0), draws=300)
    assert same.critical == pytest.approx(alone[0])


def test_a_planted_slope_is_found():
    gaps = draw_gaps(np.random.default_rng(3), memory=0.5)
    gaps[2] += 0.2 * np.arange(WINDOWS)
    gaps[4] -= 0.2 * np.arange(WINDOWS)
    found = bound_slopes(gaps, seed=1)
    says = [
        describe_slope(low, high, 0.2)
        for low, high in zip(found.low, found.high, strict=True)
    ]
    assert says == ["holds", "holds", "decays", "holds", "recovers", "holds"]
    assert found.low[2] < 0.2 < found.high[2]


def test_intervals_are_the_same_for_a_seed_and_scale_with_the_series():
    gaps = draw_gaps(np.random.default_rng(0))
    one, two = bound_slopes(gaps, seed=4), bound_slopes(gaps, seed=4)
    np.testing.assert_array_equal(one.low, two.low)
    scaled = bound_slopes(1e-3 * gaps + 5, seed=4)
    np.testing.assert_allclose(scaled.high, 1e-3 * one.high, rtol=1e-6)


def test_what_never_errs_is_no_bound_for_others():
    gaps = draw_gaps(np.random.default_rng(0))
    alone = bound_slopes(gaps)
    beside = bound_slopes(np.concatenate([gaps, np.zeros_like(gaps[:1])]))
    assert beside.spreads[-1] == beside.slopes[-1] == 0
    assert beside.critical == alone.critical
    assert bound_slopes(np.zeros((2, 3, 9))).critical == 0


def test_a_single_seed_is_of_its_world_alone():
    gaps = draw_gaps(np.random.default_rng(0), seeds=1)
    found = bound_slopes(gaps)
    assert 1.9 < found.critical < 3.5


def test_slopes_in_words():
    low, high = -0.5 * MATTERS, 0.5 * MATTERS
    assert describe_slope(low, high) == "holds"
    assert describe_slope(low, 2 * MATTERS) == "undecided"
    assert describe_slope(0.1 * MATTERS, high) == "decays"
    assert describe_slope(-3 * MATTERS, 0.1 * low) == "recovers"


@pytest.mark.parametrize(
    ("given", "message"),
    [({"series": np.zeros((2, 5))}, r"series must have shape \(arms, seeds, windows\)"),
     ({"block": 0}, "block must be an integer from 1 to 36"),
     ({"level": 1.0}, "level must be"), ({"draws": 1}, "draws must be")],
)  # fmt: skip
def test_bad_input_is_a_value_error(given, message):
    gaps = draw_gaps(np.random.default_rng(0))
    with pytest.raises(ValueError, match=message):
        bound_slopes(**{"series": gaps, **given})
