"""Complementary partitions: digits of which no two ids share all."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.budget import largest_fitting
from survey_code.checks import check_range
from survey_code.embedding import as_float32, draw_normal
from survey_code.layouts.hashed import COMBINE, path_parameters, split_paths
from survey_code.method import Found, Trained
from survey_code.options import Options, found, option
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import (
    INDEX_BYTES,
    MOST_ROWS,
    HashedEmbedding,
    plan_rows,
    row_width,
)


class QuotientRemainderOptions(Options):
    """Options of `QuotientRemainder`.

    With ``partition="digits"``, table j is read at the j-th digit of the id, written
    with the moduli as mixed radices, lowest first; with ``"remainders"``, at the
    remainder of the id by the j-th modulus, and moduli must be coprime in pairs.

    With ``combine="path"`` the quotient names a row, the remainder a small network
    that the row runs through.
    """

    combine: str = option(
        "product",
        "how the tables' rows make one",
        choices=COMBINE,
        tune=("product", "sum", "concat"),
    )
    parts: int = option(2, "tables", low=2, high=16)
    partition: str = option(
        "digits", "what tables are read at", choices=("digits", "remainders")
    )
    hidden: int = option(4, "hidden units of a path's network", low=1, high=4096)
    modulus: int | None = found(
        "rows of the remainder table; the quotient table has ceil(n / modulus)", low=1
    )
    moduli: list[int] | None = found("instead of a modulus: rows of each table")


class QuotientRemainder(HashedEmbedding, Trained[QuotientRemainderOptions]):
    """Small tables, read at the quotient and the remainder (``quotient_remainder``).

    No two ids share both digits, so every id keeps a vector of its own.  The same
    holds for more than two digits, and for the remainders of moduli that have no
    common factor.

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
        self, spec: TableSpec, options: QuotientRemainderOptions, seed: int = 0
    ) -> None:
        index = partition_index(spec.num_embeddings, options)
        super().__init__(spec, index, options.combine, [seed, 0])
        if options.combine == "path":
            if len(index) != 2:
                raise ValueError(f"combine='path' needs two tables, got {len(index)}")
            number, dim = int(index[1, 3]), spec.embedding_dim
            self.paths = nn.Parameter(draw_paths(number, dim, options.hidden, seed))

    @classmethod
    def plan(
        cls, spec: TableSpec, ratio: float, options: QuotientRemainderOptions
    ) -> Found:
        """The largest tables that fit; the smallest pair has about 2 sqrt(n) rows."""
        if options.combine == "path":
            return {"modulus": plan_path(spec, ratio, options)}
        if (options.parts, options.partition) == (2, "digits"):
            return {"modulus": plan_modulus(spec, ratio, options.combine)}
        return {"moduli": plan_moduli(spec, ratio, options)}

    def join(self, ids: Tensor, digits: list[Tensor]) -> Tensor:
        """The rows that digits name, combined, or a row through a path."""
        if self.combine != "path":
            return super().join(ids, digits)
        sparse = self.regime.sparse
        rows = functional.embedding(digits[0].flatten(), self.values, sparse=sparse)
        paths = functional.embedding(digits[1].flatten(), self.paths, sparse=sparse)
        first, bias, second, shift = split_paths(paths, self.embedding_dim)
        hidden = torch.relu(rows[:, None] @ first + bias)  # (m, 1, hidden)
        out: Tensor = hidden @ second + shift  # (m, 1, dim)
        return out.reshape(*ids.shape, self.embedding_dim)

    def stored(self) -> dict[str, np.ndarray]:
        """The paths, where there are any."""
        return {"paths": as_float32(self.paths)} if self.combine == "path" else {}


def plan_path(spec: TableSpec, ratio: float, options: QuotientRemainderOptions) -> int:
    """The modulus with which rows and networks are largest."""
    if (options.parts, options.partition) != (2, "digits"):
        raise ValueError(
            "combine='path' is planned for two digits, "
            f"got {options.parts} {options.partition}"
        )
    sizes = path_bytes(spec.num_embeddings, spec.embedding_dim, options.hidden)
    budget = spec.require(ratio, smallest=int(sizes.min()))
    return int(np.where(sizes <= budget, sizes, -1).argmax()) + 1


def plan_modulus(spec: TableSpec, ratio: float, combine: str) -> int:
    """The modulus with which quotients and remainders have most rows."""
    n, row = spec.num_embeddings, 4 * row_width(spec.embedding_dim, 2, combine)

    def size(modulus: int) -> int:
        return row * (modulus + -(-n // modulus)) + 2 * INDEX_BYTES

    # From ceil(sqrt(n)) on, a larger modulus never needs fewer rows.
    smallest = math.isqrt(n - 1) + 1
    budget = spec.require(ratio, smallest=size(smallest))
    return largest_fitting(smallest, n, lambda modulus: size(modulus) <= budget)


def plan_moduli(
    spec: TableSpec, ratio: float, options: QuotientRemainderOptions
) -> list[int]:
    """Several moduli with as many rows as fit."""
    choose = choose_radices if options.partition == "digits" else choose_coprimes
    n, parts = spec.num_embeddings, options.parts
    row = 4 * row_width(spec.embedding_dim, parts, options.combine)
    least = sum(choose(n, parts, 0))
    most = plan_rows(spec, ratio, row, INDEX_BYTES * parts, least)
    return choose(n, parts, most)


def partition_index(ids: int, options: QuotientRemainderOptions) -> np.ndarray:
    """Index table of partitions that tell `ids` ids apart, or a ValueError."""
    modulus, moduli, partition = options.modulus, options.moduli, options.partition
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


def draw_paths(number: int, dim: int, hidden: int, seed: int) -> Tensor:
    """Fresh networks that keep the spread of the rows that run through them."""
    paths = torch.zeros(number, path_parameters(dim, hidden))
    first, _, second, _ = split_paths(paths, dim)
    first.copy_(draw_normal(tuple(first.shape), math.sqrt(2 / dim), [seed, 1, 0]))
    second.copy_(draw_normal(tuple(second.shape), math.sqrt(1 / hidden), [seed, 1, 1]))
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
        moduli = largest_coprimes(larger, parts)
        if sum(chosen) < sum(moduli) <= most:
            chosen = moduli
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
