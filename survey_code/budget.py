"""The largest that fits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def largest_fitting(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest number from low to high that fits; `low` is known to.

    What is larger than a number that does not fit must not fit either.

    Examples
    --------
    >>> largest_fitting(1, 100, lambda n: n * n <= 50)
    7
    """
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def require_counts(name: str, counts: np.ndarray) -> None:
    """Raise ValueError unless it is known how often ids occur."""
    if not counts.any():
        raise ValueError(f"{name} are the most frequent ids: counts must be given")
