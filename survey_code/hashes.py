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
    """Random numbers of so many hashes, for `mix_ids`: int64 of shape (count, 3).

    Two odd multipliers, and an addend.
    """
    drawn = rng.integers(0, 2**64, size=(count, 3), dtype=np.uint64)
    return (drawn | np.array([1, 1, 0], dtype=np.uint64)).view(np.int64)


def mix_ids(ids: A, first: int | A, second: int | A, addend: int | A) -> A:
    """Scatter ids over 0 .. 2**63 - 1: multiply, add, fold, multiply, fold.

    To fold is to shift and xor.  Without the addend, id 0 would be hashed to 0
    whatever the multipliers are.

    Parameters
    ----------
    ids : integer array or tensor of int64
    first, second : odd integers of int64
    addend : integer of int64
        Each a number, or an array or tensor with one for each id.

    Returns
    -------
    array or tensor of int64, same shape, not negative
    """
    mixed = ids * first + addend
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
    """Several mixtures of ids by one hash's numbers, each of the ids' shape."""
    numbers = multipliers.tolist()
    for step in hash_steps(count).tolist():
        yield mix_ids(ids + step, *numbers)


def check_hash_numbers(name: str, numbers: np.ndarray | None) -> None:
    """Raise ValueError unless these are the numbers of a hash, as `mix_ids` takes
    them; files of the second format before 0.2.0 had two.
    """
    if numbers is None or numbers.dtype != np.int64 or numbers.shape != (3,):
        raise ValueError(f"{name} must be two multipliers and an addend, int64 (3,)")


def as_signs(mixed: A) -> A:
    """+1 or -1 for each mixed id, as int64: by its bit 31."""
    return 1 - 2 * ((mixed >> 31) & 1)
