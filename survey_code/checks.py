"""One clear error for each kind of wrong value."""

from __future__ import annotations

import numpy as np


def check_range(name: str, value: int, low: int, high: int) -> None:
    """Raise ValueError unless `value` is an integer from low to high."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        raise ValueError(
            f"{name} must be an integer from {low} to {high}, got {value!r}"
        )


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise ValueError unless `value` is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")
