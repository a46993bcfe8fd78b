"""The hash of the package: ids scattered over 63 bits, for NumPy, CuPy and torch alike.

Multiplication wraps around at 64 bits, which all three do for int64, so that any id
below 2**63 is hashed exactly: a hash modulo a prime below the range of the ids would
make some ids collide by construction.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from survey_code.kernels.cuda import GpuArray

A = TypeVar("A", np.ndarray, "GpuArray", "Tensor")

# An odd constant near 2**64 over the golden ratio, as a signed number: what is added
# to an id for each further hash, so that pairs of id and number differ.
GOLDEN = 0x9E3779B97F4A7C15 - 2**64


def draw_multipliers(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random odd int64 multipliers, shape (count, 2), for `mix_ids`."""
    drawn = rng.integers(0, 2**64, size=(count, 2), dtype=np.uint64)
    return (drawn | np.uint64(1)).view(np.int64)


def mix_ids(ids: A, multiplier: int, second: int) -> A:
    """Scatter ids over 0 .. 2**63 - 1 by two rounds of multiply, shift, xor.

    Parameters
    ----------
    ids : integer array or tensor of int64
    multiplier, second : odd integers of int64

    Returns
    -------
    array or tensor of int64, same shape, not negative
    """
    mixed = ids * multiplier
    # Shifting a negative int64 copies its sign; the mask undoes that.
    mixed = mixed ^ ((mixed >> 32) & 0xFFFFFFFF)
    mixed = mixed * second
    mixed = mixed ^ ((mixed >> 29) & 0x7FFFFFFFF)
    return mixed & 0x7FFFFFFFFFFFFFFF


def hash_steps(count: int) -> np.ndarray:
    """What is added to an id for each of several hashes: int64 of shape (count,)."""
    steps = np.arange(count, dtype=np.uint64) * np.uint64(GOLDEN % 2**64)
    return steps.view(np.int64)


def mix_many(ids: A, multipliers: np.ndarray, count: int) -> Iterator[A]:
    """Several mixtures of ids by one pair of multipliers, each of the ids' shape."""
    first, second = multipliers.tolist()
    for step in hash_steps(count).tolist():
        yield mix_ids(ids + step, first, second)


def as_signs(mixed: A) -> A:
    """+1 or -1 for each mixed id, as int64: by its bit 31."""
    return 1 - 2 * ((mixed >> 31) & 1)
