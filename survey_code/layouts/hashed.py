"""The hashed layout: an id is turned into a few row numbers of small shared tables.

Every scheme of the hashing family reads rows in the same three steps:

1. mix the id's bits (or not), 2. take a digit ``(mixed // divisor) % modulus``,
3. combine the rows that the digits name.

The hashing trick mixes and takes one digit; quotient-remainder takes two digits
of the plain id; double hashing takes two digits of two mixtures.
"""

from __future__ import annotations

import itertools
from typing import ClassVar

import numpy as np

from survey_code.layouts.layout import Array, Layout, array_module

COMBINE = ("sum", "product", "concat")


def mix_ids(ids: Array, multiplier: Array, second: Array) -> Array:
    """Scatter ids over 0 .. 2**63 - 1 by two rounds of multiply, shift, xor.

    Multiplication wraps around at 64 bits, which NumPy, CuPy and torch all do
    for int64, so that any id below 2**63 is hashed exactly: a hash modulo a
    prime below the range of the ids would make some ids collide by construction.

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


def draw_multipliers(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random odd int64 multipliers, shape (count, 2), for `mix_ids`."""
    drawn = rng.integers(0, 2**64, size=(count, 2), dtype=np.uint64)
    return (drawn | np.uint64(1)).view(np.int64)


def take_digits(ids: Array, index: Array) -> list[Array]:
    """Row numbers that an index table names, one array of ids' shape per row.

    Parameters
    ----------
    ids : array or tensor of int64
    index : array of int64, shape (k, 4)
        Columns: two multipliers (both 0: the id is not mixed), divisor, modulus.
    """
    digits = []
    for first, second, divisor, modulus in index.tolist():
        mixed = mix_ids(ids, first, second) if first else ids
        digits.append((mixed // divisor) % modulus)
    return digits


def table_starts(index: Array) -> list[int]:
    """Row of `values` at which each of the k tables starts."""
    return [0, *itertools.accumulate(row[3] for row in index.tolist()[:-1])]


def choose_signs(ids: Array, signs: Array) -> Array:
    """+1 or -1 of each id from one more hash, as int64: its bit 31."""
    first, second = signs.tolist()
    return 1 - 2 * ((mix_ids(ids, first, second) >> 31) & 1)


class HashedLayout(Layout):
    """k small tables, how an id picks a row of each, how the rows combine.

    Parameters
    ----------
    values : ndarray of float32, shape (all rows, width)
        The k tables below one another; table j has ``index[j, 3]`` rows.
        ``width`` is `embedding_dim`, or a k-th of it where rows are concatenated.
    index : ndarray of int64, shape (k, 4)
        See `take_digits`.
    num_embeddings, embedding_dim : int
    combine : {"sum", "product", "concat"}
    signs : ndarray of int64, shape (2,), optional
        Multipliers of a sign hash; each row read is multiplied by +1 or -1.
    open_ids : bool, default False
        Serve any id from 0 up, also those from `num_embeddings` on.

    Raises
    ------
    ValueError
        If the shapes contradict each other.
    """

    name: ClassVar[str] = "hashed"
    array_names: ClassVar[tuple[str, ...]] = ("values", "index", "signs")
    shape_names: ClassVar[tuple[str, ...]] = (
        "num_embeddings",
        "embedding_dim",
        "combine_code",
        "open_ids",
    )

    def __init__(
        self,
        values: np.ndarray,
        index: np.ndarray,
        num_embeddings: int,
        embedding_dim: int,
        combine: str = "sum",
        signs: np.ndarray | None = None,
        open_ids: bool = False,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        if combine not in COMBINE:
            raise ValueError(f"combine must be one of {COMBINE}, got {combine!r}")
        self.values = np.asarray(values)
        self.index = np.asarray(index)
        self.signs = None if signs is None else np.asarray(signs)
        self.combine_code = COMBINE.index(combine)
        self.open_ids = int(open_ids)
        self.validate()

    @property
    def combine(self) -> str:
        """How the rows combine: "sum", "product" or "concat"."""
        return COMBINE[self.combine_code]

    def validate(self) -> None:
        """Raise ValueError if tables, index and dimension contradict."""
        index, values = self.index, self.values
        if (
            index is None
            or index.dtype != np.int64
            or index.ndim != 2
            or index.shape[1] != 4
        ):
            raise ValueError("index must be int64 of shape (tables, 4)")
        if not len(index) or (index[:, 2:] < 1).any():
            raise ValueError("index needs a table, and divisors and moduli from 1 up")
        if not 0 <= self.combine_code < len(COMBINE):
            raise ValueError(f"combine_code must be 0 to 2, got {self.combine_code}")
        parts = len(index) if self.combine == "concat" else 1
        # Python's integers: a sum of int64 could wrap around.
        expected = (sum(index[:, 3].tolist()), self.embedding_dim // parts)
        if (
            values is None
            or values.dtype != np.float32
            or values.shape != expected
            or self.embedding_dim % parts
        ):
            raise ValueError(f"values must be float32 of shape {expected}")
        if self.signs is not None and (
            self.signs.dtype != np.int64 or self.signs.shape != (2,)
        ):
            raise ValueError("signs must be int64 of shape (2,)")

    def read_rows(self, ids: Array) -> Array:
        """Digits, gathers, then sum, product or concatenation."""
        xp = array_module(ids)
        parts = [
            self.values[digits + start]
            for digits, start in zip(
                take_digits(ids, self.index), table_starts(self.index)
            )
        ]
        if self.combine == "concat":
            rows = xp.concatenate(parts, axis=1)
        else:
            rows = parts[0]
            for part in parts[1:]:
                rows = rows + part if self.combine == "sum" else rows * part
        if self.signs is not None:
            rows = rows * choose_signs(ids, self.signs)[:, None].astype(np.float32)
        return rows
