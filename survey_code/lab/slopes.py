"""Slopes of series that wander: Theil-Sen lines, and intervals that hold for all.

A series is measured window by window, with each of a few seeds, in one and the same
world for all arms.  What happens in a window is felt in the next ones, and by all arms:
blocks of windows are drawn again, not windows, and the same ones for every arm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from survey_code.checks import check_number, check_range


def fit_slopes(series: np.ndarray) -> np.ndarray:
    """The median of the slopes between any two windows: Theil and Sen's slope.

    Parameters
    ----------
    series : ndarray of float, shape (..., windows)

    Returns
    -------
    ndarray of float64, shape (...)
        Change a window.

    Raises
    ------
    ValueError
        If there are fewer than two windows, or a value is not finite.

    Examples
    --------
    >>> fit_slopes(np.array([0.0, 1.0, 2.0, 90.0, 4.0])).item()
    1.0
    """
    values = np.asarray(series, dtype=np.float64)
    if not values.ndim or values.shape[-1] < 2 or not np.isfinite(values).all():
        raise ValueError(
            "a slope needs finite values of two windows at least, got shape "
            f"{values.shape}"
        )
    first, second = np.triu_indices(values.shape[-1], 1)
    rises = values[..., second] - values[..., first]
    slopes: np.ndarray = np.median(rises / (second - first), axis=-1)
    return slopes


@dataclass(frozen=True)
class Slopes:
    """Slopes of several arms, and intervals that hold for all of them at once.

    Parameters
    ----------
    slopes : ndarray of float64, shape (arms,)
    spreads : ndarray of float64, shape (arms,)
        Standard errors.
    critical : float
        Standard errors on either side that an interval reaches.
    """

    slopes: np.ndarray
    spreads: np.ndarray
    critical: float

    @property
    def low(self) -> np.ndarray:
        """Lower ends, shape (arms,)."""
        return self.slopes - self.critical * self.spreads

    @property
    def high(self) -> np.ndarray:
        """Upper ends, shape (arms,)."""
        return self.slopes + self.critical * self.spreads


def bound_slopes(
    series: np.ndarray,
    *,
    level: float = 0.95,
    block: int | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Slopes:
    r"""Theil-Sen slopes of means over seeds, with simultaneous intervals.

    Each draw takes as many seeds as there are, with replacement, and for each of them
    blocks of windows in place of what its own windows are off its line (circular moving
    blocks).  The largest of all arms' deviations, each over its own standard error,
    stays below a quantile in `level` of the draws: this quantile makes the intervals of
    all arms hold at once ("max-t"), and is narrower than Bonferroni's, as arms that are
    subtracted from the same table err together.

    Parameters
    ----------
    series : ndarray of float, shape (arms, seeds, windows)
    level : float, default 0.95
        In how many of the cases all intervals are to hold.
    block : int, optional
        Windows of a block; by default the square root of their number, rounded.
    draws : int, default 1000
    seed : int, default 0

    Notes
    -----
    Sen, "Estimates of the Regression Coefficient Based on Kendall's Tau" (1968);
    Politis and Romano, "A Circular Block-Resampling Procedure for Stationary Data"
    (1992); Romano and Wolf, "Exact and Approximate Stepdown Methods for Multiple
    Hypothesis Testing" (2005), of whose steps this is the first.
    """
    values = check_series(series)
    level = check_number("level", level, above=0, below=1)
    _, seeds, windows = values.shape
    size = round(math.sqrt(windows)) if block is None else block
    size = check_range("block", size, 1, windows)
    found = fit_slopes(values.mean(axis=1))
    drawn = redraw_slopes(values, size, check_range("draws", draws, 2), seed)
    spreads = drawn.std(axis=0, ddof=1)
    # An arm that never errs, as the full table beside itself, is no bound for others.
    errs = spreads > 1e-12 * np.abs(values).max(initial=0)
    if not errs.any():
        return Slopes(found, np.zeros_like(spreads), 0.0)
    off = np.abs(drawn - found)[:, errs] / spreads[errs]
    critical = find_critical(off.max(axis=1), level, seeds)
    return Slopes(found, np.where(errs, spreads, 0.0), critical)


def check_series(series: np.ndarray) -> np.ndarray:
    """Series of arms, seeds and windows as float64, or one clear ValueError."""
    values: np.ndarray = np.asarray(series, dtype=np.float64)
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(
            f"series must have shape (arms, seeds, windows), got {values.shape}"
        )
    return values


def find_critical(largest: np.ndarray, level: float, seeds: int) -> float:
    """How many standard errors an interval reaches.

    Few seeds say little of how much seeds differ: the quantile is taken from a normal
    to a t distribution with twice as many degrees of freedom as there are seeds but
    one.  That number is a choice, checked by simulation: with five seeds, thirty-six
    windows and twelve arms, intervals of level .95 held in .93 to 1.00 of the cases,
    for errors that forget at once or in five windows, and slopes that differ from seed
    to seed not at all, or more than their errors.  Of a single seed, nothing is known
    of others, and the interval is of its world alone.

    Parameters
    ----------
    largest : ndarray of float64, shape (draws,)
        Of all arms' deviations, each over its own standard error.
    level : float
    seeds : int
    """
    critical = float(np.quantile(largest, level))
    if seeds == 1:
        return critical
    return float(stats.t.isf(stats.norm.sf(critical), 2 * (seeds - 1)))


def redraw_slopes(values: np.ndarray, block: int, draws: int, seed: int) -> np.ndarray:
    """Slopes of series that might as well have been, float64 (draws, arms).

    Parameters
    ----------
    values : ndarray of float64, shape (arms, seeds, windows)
    block, draws, seed : int
    """
    rng = np.random.default_rng(seed)
    _, seeds, windows = values.shape
    times = np.arange(windows) - (windows - 1) / 2
    lines = fit_slopes(values)[..., None] * times  # (arms, seeds, windows)
    off = values - lines
    off -= off.mean(axis=-1, keepdims=True)
    blocks = -(-windows // block)
    slopes = np.empty((draws, len(values)))
    for k in range(draws):
        who = rng.integers(seeds, size=(seeds,))
        starts = rng.integers(windows, size=(seeds, blocks, 1))
        when = (starts + np.arange(block)).reshape(seeds, -1)[:, :windows] % windows
        series = lines[:, who] + off[:, who[:, None], when]
        slopes[k] = fit_slopes(series.mean(axis=1))
    return slopes


# Change of AUC over ten windows that is held to matter.
MATTERS = 0.001 / 10


def describe_slope(low: float, high: float, margin: float = MATTERS) -> str:
    """What an interval says of a gap: whether it grows, a window.

    Returns
    -------
    {"decays", "recovers", "holds", "undecided"}
        The gap grows; it shrinks; if it does either, it is by less than the margin;
        none of this is known.

    Examples
    --------
    >>> describe_slope(2e-5, 4e-4), describe_slope(-3e-5, 6e-5)
    ('decays', 'holds')
    """
    if low > 0:
        return "decays"
    if high < 0:
        return "recovers"
    return "holds" if -margin <= low and high <= margin else "undecided"
