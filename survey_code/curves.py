"""Accuracy over ratio: points of a method, read at any ratio, and their differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Of the ratio of a column, how far a point in it may be from it.
NEAR = 0.1
# A budget out of reach counts as what this method makes of it, which reaches all.
FALLBACK = "double_hashing"


@dataclass(frozen=True)
class Point:
    """A method at a ratio.

    Parameters
    ----------
    values : dict
        The metric, by seed.
    reached : tuple of float
        The ratio reached; or the two between which the values were read off, on the
        line that joins them over the logarithm of the ratio.
    """

    values: dict[int, float]
    reached: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(np.mean(list(self.values.values())))

    @property
    def deviation(self) -> float:
        """Of a sample of seeds; NaN of a single one."""
        return sample_deviation(list(self.values.values()))

    @property
    def read_off(self) -> bool:
        """Whether nothing was measured there."""
        return len(self.reached) > 1

    def describe(self) -> str:
        """Mean and deviation, marked with a tilde where they were read off."""
        spread = "" if math.isnan(self.deviation) else f" ± {self.deviation:.4f}"
        return f"{'~' * self.read_off}{self.mean:.4f}{spread}"


def read_point(points: Sequence[Point], ratio: float) -> Point | None:
    """A method at a ratio: the nearest point within a tenth of it, else read off
    between the two around it; None where it reaches no such ratio.
    """
    near = [p for p in points if abs(p.reached[0] / ratio - 1) <= NEAR]
    if near:
        return min(near, key=lambda point: abs(math.log(point.reached[0] / ratio)))
    below = [p for p in points if p.reached[0] < ratio]
    above = [p for p in points if p.reached[0] > ratio]
    if not (below and above):
        return None
    low = max(below, key=lambda point: point.reached)
    high = min(above, key=lambda point: point.reached)
    width = math.log(high.reached[0] / low.reached[0])
    share = math.log(ratio / low.reached[0]) / width
    values = {
        seed: value + share * (high.values[seed] - value)
        for seed, value in low.values.items()
        if seed in high.values
    }
    return Point(values, (*low.reached, *high.reached)) if values else None


def find_smaller(points: Sequence[Point], ratio: float) -> Point | None:
    """The nearest point above a ratio: what is smaller is within the budget, too."""
    above = [point for point in points if point.reached[0] > ratio]
    return min(above, key=lambda point: point.reached, default=None)


@dataclass(frozen=True)
class Difference:
    """By how much one method is ahead of another, seed by seed.

    Parameters
    ----------
    differences : tuple of float
        One a seed that both have.
    """

    differences: tuple[float, ...]

    @classmethod
    def of(cls, first: Point, second: Point) -> Difference:
        """The first less the second, over the seeds of both; there may be none."""
        seeds = sorted(first.values.keys() & second.values.keys())
        return cls(tuple(first.values[seed] - second.values[seed] for seed in seeds))

    @classmethod
    def between(cls, first: Point, second: Point) -> Difference:
        """`of`; where no seed is common, the difference of the means."""
        paired = cls.of(first, second)
        return paired if paired.differences else cls((first.mean - second.mean,))

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(np.mean(self.differences))

    @property
    def deviation(self) -> float:
        """Of the paired differences; NaN of a single one."""
        return sample_deviation(self.differences)

    @property
    def is_clear(self) -> bool:
        """Whether it is beyond two deviations of three seeds at least."""
        return len(self.differences) > 2 and abs(self.mean) > 2 * self.deviation

    def describe(self) -> str:
        """In words."""
        figures = f"{self.mean:+.4f} ± {self.deviation:.4f}"
        return figures if self.is_clear else f"{figures}, no difference"


def sample_deviation(values: Sequence[float]) -> float:
    """With n - 1 in the denominator; NaN of a single value.

    Examples
    --------
    >>> sample_deviation([1.0, 3.0]) == 2**0.5, sample_deviation([1.0])
    (True, nan)
    """
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
