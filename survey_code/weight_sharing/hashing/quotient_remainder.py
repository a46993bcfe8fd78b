"""Complementary partitions: digits of which no two ids share all."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import check_range, draw_normal
from survey_code.layouts.hashed import COMBINE, path_parameters, split_paths
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import (
    INDEX_BYTES,
    MOST_ROWS,
    HashedEmbedding,
    as_array,
    check_combine,
    row_width,
)

PARTITIONS = ("digits", "remainders")


class QuotientRemainder(HashedEmbedding):
    """Small tables, read at the quotient and the remainder (``quotient_remainder``).

    No two ids share both digits, so every id keeps a vector of its own.  The same
    holds for more than two digits, and for the remainders of moduli that have no
    common factor.

    Parameters
    ----------
    spec : TableSpec
    modulus : int, optional
        Rows of the remainder table; the quotient table has ceil(n / modulus).
    moduli : sequence of int, optional
        Instead of `modulus`: rows of each of several tables.
    partition : {"digits", "remainders"}
        What the moduli mean.  ``"digits"``: table j is read at the j-th digit of
        the id, written with these moduli as mixed radices, lowest first.
        ``"remainders"``: at the remainder of the id by the j-th modulus; they
        must be coprime in pairs.
    combine : {"product", "sum", "concat", "path"}
        ``"path"``: the quotient names a row, the remainder a small network that
        the row runs through.
    hidden : int, default 4
        Hidden units of such a network.
    seed : int, default 0

    Raises
    ------
    ValueError
        If moduli are missing, too small to tell all ids apart, or not coprime.

    Notes
    -----
    Shi et al., "Compositional Embeddings Using Complementary Partitions for
    Memory-Efficient Recommendation Systems" (KDD 2020).
    """

    def __init__(
        self,
        spec: TableSpec,
        *,
        modulus: int | None = None,
        moduli: Sequence[int] | None = None,
        partition: str = "digits",
        combine: str = "product",
        hidden: int = 4,
        seed: int = 0,
    ) -> None:
        index = partition_index(spec.num_embeddings, modulus, moduli, partition)
        super().__init__(spec, index, combine, [seed, 0])
        if combine == "path":
            check_path(len(index), hidden)
            paths = draw_paths(index[1, 3], spec.embedding_dim, hidden, [seed, 1])
            self.paths = nn.Parameter(paths)

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        combine: str = "product",
        parts: int = 2,
        partition: str = "digits",
        hidden: int = 4,
    ) -> dict[str, Any]:
        """The largest tables that fit; the smallest pair has about 2 sqrt(n) rows."""
        check_combine(combine, COMBINE)
        check_partition(partition)
        check_range("parts", parts, 2, 16)
        n, dim = spec.num_embeddings, spec.embedding_dim
        if combine == "path":
            check_path(parts, hidden)
            sizes = path_bytes(n, dim, hidden)
            budget = spec.require(ratio, smallest=int(sizes.min()))
            best = np.where(sizes <= budget, sizes, -1).argmax()
            return {"modulus": int(best) + 1, "combine": combine, "hidden": hidden}
        row = 4 * row_width(dim, parts, combine)
        overhead = INDEX_BYTES * parts
        if (parts, partition) == (2, "digits"):
            smallest = math.isqrt(n - 1) + 1  # ceil(sqrt(n))
            least = smallest + -(-n // smallest)
            budget = spec.require(ratio, smallest=row * least + overhead)
            # From ceil(sqrt(n)) on, a larger modulus never needs fewer rows.
            moduli = range(smallest, n + 1)
            fitting = bisect.bisect_right(
                moduli, (budget - overhead) // row, key=lambda m: m + -(-n // m)
            )
            return {"modulus": moduli[fitting - 1], "combine": combine}
        choose = choose_radices if partition == "digits" else choose_coprimes
        least = sum(choose(n, parts, 0))
        budget = spec.require(ratio, smallest=row * least + overhead)
        return {
            "moduli": choose(n, parts, (budget - overhead) // row),
            "partition": partition,
            "combine": combine,
        }

    def join(self, ids: Tensor, digits: list[Tensor]) -> Tensor:
        """The rows that digits name, combined, or a row through a path."""
        if self.combine != "path":
            return super().join(ids, digits)
        sparse = self.sparse_gradients
        rows = functional.embedding(digits[0].flatten(), self.values, sparse=sparse)
        paths = functional.embedding(digits[1].flatten(), self.paths, sparse=sparse)
        first, bias, second, shift = split_paths(paths, self.embedding_dim)
        hidden = torch.relu(rows[:, None] @ first + bias)  # (m, 1, hidden)
        out: Tensor = hidden @ second + shift  # (m, 1, dim)
        return out.reshape(*ids.shape, self.embedding_dim)

    def stored(self) -> dict[str, np.ndarray]:
        """The paths, where there are any."""
        return {"paths": as_array(self.paths)} if self.combine == "path" else {}


def partition_index(
    ids: int, modulus: int | None, moduli: Sequence[int] | None, partition: str
) -> np.ndarray:
    """Index table of partitions that tell `ids` ids apart, or a ValueError."""
    check_partition(partition)
    if (modulus is None) == (moduli is None):
        raise ValueError("give either modulus or moduli")
    if modulus is not None:
        if partition != "digits":
            raise ValueError(f"modulus belongs to 'digits', got {partition!r}")
        check_range("modulus", modulus, 1, ids)
        quotients = -(-ids // modulus)
        return np.array([[0, 0, modulus, quotients], [0, 0, 1, modulus]])
    rows = [int(m) for m in moduli or ()]
    if len(rows) < 2 or min(rows) < 1 or max(rows) > MOST_ROWS:
        raise ValueError(f"moduli must be two or more sizes from 1 up, got {moduli!r}")
    if math.prod(rows) < ids:
        raise ValueError(
            f"moduli {rows} name {math.prod(rows)} combinations of rows, too few "
            f"to tell {ids} ids apart"
        )
    if partition == "digits":
        # A divisor beyond the ids, all of whose digits are 0, may be large.
        divisors = [min(math.prod(rows[:j]), 2**62) for j in range(len(rows))]
    else:
        if math.lcm(*rows) != math.prod(rows):
            raise ValueError(f"moduli must be coprime in pairs, got {rows}")
        divisors = [1] * len(rows)
    return np.array([[0, 0, *pair] for pair in zip(divisors, rows)], dtype=np.int64)


def check_partition(partition: str) -> None:
    """Raise ValueError for an unknown kind of partition."""
    if partition not in PARTITIONS:
        raise ValueError(f"partition must be one of {PARTITIONS}, got {partition!r}")


def check_path(parts: int, hidden: Any) -> None:
    """Raise ValueError unless a path of so many hidden units can be built."""
    check_range("hidden", hidden, 1, 4096)
    if parts != 2:
        raise ValueError(f"combine='path' needs two partitions, got {parts}")


def draw_paths(number: int, dim: int, hidden: int, seed: Any) -> Tensor:
    """Fresh networks that keep the spread of the rows that run through them."""
    paths = torch.zeros(int(number), path_parameters(dim, hidden))
    first, _, second, _ = split_paths(paths, dim)
    first.copy_(draw_normal(tuple(first.shape), math.sqrt(2 / dim), [*seed, 0]))
    second.copy_(draw_normal(tuple(second.shape), math.sqrt(1 / hidden), [*seed, 1]))
    return paths


def path_bytes(ids: int, dim: int, hidden: int) -> np.ndarray:
    """Bytes for each modulus from 1 to `ids`."""
    moduli = np.arange(1, ids + 1)
    values = dim * -(-ids // moduli) + path_parameters(dim, hidden) * moduli
    return 4 * values + 2 * INDEX_BYTES


def choose_radices(ids: int, parts: int, most: int) -> list[int]:
    """Mixed radices with at most `most` rows in all, as many as fit; the fewest
    that tell all ids apart where these are more.

    The first is the largest, the others are alike.
    """
    first = np.arange(1, ids + 1)
    left = -(-ids // first)  # combinations that the other digits must name
    other = np.floor(left ** (1 / (parts - 1))).astype(np.int64)
    for _ in range(2):  # the root in floating point may be one too small
        other += other ** (parts - 1) < left
    rows = first + (parts - 1) * other
    rows[first < other] = np.iinfo(np.int64).max
    fitting = np.where(rows <= most, rows, 0)
    best = fitting.argmax() if fitting.any() else rows.argmin()
    return [int(first[best])] + [int(other[best])] * (parts - 1)


def choose_coprimes(ids: int, parts: int, most: int) -> list[int]:
    """Coprime moduli of about equal size with at most `most` rows in all; the
    fewest that tell all ids apart where these are more.
    """
    top = parts
    while math.prod(largest_coprimes(top, parts)) < ids:
        top += 1
    chosen = largest_coprimes(top, parts)
    # Beyond n rows in a table, nothing is shared.
    high = min(most // parts + 4 * parts, max(ids, top))
    for larger in range(max(high - 12 * parts, top), high + 1):
        found = largest_coprimes(larger, parts)
        if sum(chosen) < sum(found) <= most:
            chosen = found
    return chosen


def largest_coprimes(top: int, parts: int) -> list[int]:
    """The largest numbers up to `top` that are coprime in pairs, greedily.

    Examples
    --------
    >>> largest_coprimes(10, 3)
    [10, 9, 7]
    """
    chosen: list[int] = []
    for number in range(top, 0, -1):
        if all(math.gcd(number, other) == 1 for other in chosen):
            chosen.append(number)
            if len(chosen) == parts:
                return chosen
    return chosen + [1] * (parts - len(chosen))
