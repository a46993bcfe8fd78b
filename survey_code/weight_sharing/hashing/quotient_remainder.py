"""Complementary partitions: digits of which no two ids share all."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.budget import largest_fitting
from survey_code.checks import check_range
from survey_code.embedding import as_float32, draw_normal, pick_rows
from survey_code.layouts.hashed import (
    COMBINE,
    path_parameters,
    plain_index,
    split_paths,
)
from survey_code.method import Found, Trained
from survey_code.options import Options, found, option, planned
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import (
    INDEX_BYTES,
    MOST_ROWS,
    THRESHOLD,
    FieldsEmbedding,
    plan_rows,
    row_width,
)

# Steps in which the share of the ids is chosen that remainders are.
SHARES = 2**20


class QuotientRemainderOptions(Options):
    """Options of `QuotientRemainder`.

    With ``partition="digits"``, table j is read at the j-th digit of the id, written
    with the moduli as mixed radices, lowest first; with ``"remainders"``, at the
    remainder of the id by the j-th modulus, and moduli must be coprime in pairs.

    With ``combine="path"`` the quotient names a row, the remainder a small network
    that the row runs through.

    With ``fields="apart"``, which two digits without a path allow, each field has a
    pair of tables of its own, and fields of up to `threshold` ids keep full rows.
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
    fields: str = planned(
        "whether each field has tables of its own; without being asked, it has where "
        "there are two digits, no path, several fields and room for them",
        otherwise="together", choices=("apart", "together"),
    )  # fmt: skip
    threshold: int = planned(
        "where fields are apart, those of no more ids keep full rows; without being "
        "asked 200, or less where that takes over half of the budget",
        otherwise=0, low=0,
    )  # fmt: skip
    modulus: int | None = found(
        "rows of the remainder table; the quotient table has ceil(n / modulus)", low=1
    )
    moduli: list[int] | None = found("instead of a modulus: rows of each table")
    field_moduli: list[int] | None = found(
        "where fields are apart: the modulus of each, and 0 where rows are full"
    )


class QuotientRemainder(FieldsEmbedding, Trained[QuotientRemainderOptions]):
    """Small tables, read at the quotient and the remainder (``quotient_remainder``).

    No two ids of a table share both digits, so every id keeps a vector of its own.
    The same holds for more than two digits, and for the remainders of moduli that have
    no common factor.

    Raises
    ------
    ValueError
        If moduli are missing, too small to tell all ids apart, or not coprime.

    Notes
    -----
    Shi et al., "Compositional Embeddings Using Complementary Partitions for
    Memory-Efficient Recommendation Systems" (KDD 2020).  Their code, DLRM, keeps full
    rows for fields of up to 200 ids, and divides all others by the same number of
    collisions; here that number follows from the budget.  Factors of a product are
    normal numbers here, and theirs positive uniform ones, so that some of our rows
    begin near zero.
    """

    def __init__(
        self, spec: TableSpec, options: QuotientRemainderOptions, seed: int = 0
    ) -> None:
        index = choose_index(spec, options)
        super().__init__(spec, index, options.combine, [seed, 0])
        if options.combine == "path":
            assert isinstance(index, np.ndarray)  # fields apart have no paths
            if len(index) != 2:
                raise ValueError(f"combine='path' needs two tables, got {len(index)}")
            number, dim = int(index[1, -1]), spec.embedding_dim
            self.paths = nn.Parameter(draw_paths(number, dim, options.hidden, seed))

    @classmethod
    def plan(
        cls, spec: TableSpec, ratio: float, options: QuotientRemainderOptions
    ) -> Found:
        """The largest tables that fit; the smallest pair has about 2 sqrt(n) rows."""
        if options.fields != "together":
            apart = plan_fields(spec, ratio, options)
            if apart:
                return apart
        shape: Found = {"fields": "together", "threshold": options.threshold or 0}
        if options.combine == "path":
            return shape | {"modulus": plan_path(spec, ratio, options)}
        if (options.parts, options.partition) == (2, "digits"):
            return shape | {"modulus": plan_modulus(spec, ratio, options.combine)}
        return shape | {"moduli": plan_moduli(spec, ratio, options)}

    def join(self, ids: Tensor, digits: list[Tensor]) -> Tensor:
        """The rows that digits name, combined, or a row through a path."""
        if self.combine != "path":
            return super().join(ids, digits)
        sparse = self.regime.sparse
        rows = pick_rows(digits[0].flatten(), self.values, sparse=sparse)
        paths = pick_rows(digits[1].flatten(), self.paths, sparse=sparse)
        first, bias, second, shift = split_paths(paths, self.embedding_dim)
        hidden = torch.relu(rows[:, None] @ first + bias)  # (m, 1, hidden)
        out: Tensor = hidden @ second + shift  # (m, 1, dim)
        return out.reshape(*ids.shape, self.embedding_dim)

    def stored(self) -> dict[str, np.ndarray]:
        """The paths, where there are any."""
        return {"paths": as_float32(self.paths)} if self.combine == "path" else {}


def plan_fields(
    spec: TableSpec, ratio: float, options: QuotientRemainderOptions
) -> Found:
    """Moduli of the fields: each field's ids over the same number, as small as fits.

    Returns
    -------
    dict
        Empty where nobody asked for fields apart, and they cannot be or do not fit.

    Raises
    ------
    ValueError
        If they were asked for, and there are more digits or paths.
    OutOfReach
        If they were asked for, and do not fit.
    """
    sizes = np.diff(spec.field_starts).tolist()
    single = (options.parts, options.partition) != (2, "digits")
    if options.fields is None and (
        single or options.combine == "path" or len(sizes) == 1
    ):
        return {}
    if single or options.combine == "path":
        raise ValueError("fields='apart' is for two digits without a path")
    row, part = (
        4 * spec.embedding_dim,
        4 * row_width(spec.embedding_dim, 2, options.combine),
    )

    def count(threshold: int, share: int) -> int:
        moduli = field_moduli(sizes, threshold, share, row, part)
        return 8 * len(sizes) + sum(
            field_bytes(n, modulus, row, part) for n, modulus in zip(sizes, moduli)
        )

    budget, least = spec.budget(ratio), options.threshold or 0
    if options.fields is None and count(least, 0) > budget:
        return {}
    budget = spec.require(ratio, smallest=count(least, 0))
    threshold = options.threshold
    if threshold is None:
        threshold = largest_fitting(
            0, THRESHOLD,
            lambda t: count(t, 0) <= budget
            and 2 * row * sum(n for n in sizes if n <= t) <= budget,
        )  # fmt: skip
    share = largest_fitting(0, SHARES, lambda k: count(threshold, k) <= budget)
    moduli = field_moduli(sizes, threshold, share, row, part)
    return {"fields": "apart", "threshold": threshold, "field_moduli": moduli}


def field_moduli(
    sizes: list[int], threshold: int, share: int, row: int, part: int
) -> list[int]:
    """Moduli of fields of so many ids: 0 for full rows, else `share` of `SHARES` of
    the ids, and no less than their root.

    Full are also those whose tables would take no fewer bytes.
    """
    moduli = []
    for n in sizes:
        least = math.isqrt(n - 1) + 1
        shared = n > threshold and field_bytes(n, least, row, part) < row * n
        moduli.append(max(least, n * share // SHARES) if shared else 0)
    return moduli


def field_bytes(ids: int, modulus: int, row: int, part: int) -> int:
    """Bytes of a field: full rows of `row` bytes, or two tables of `part` each."""
    if not modulus:
        return row * ids
    return part * (modulus + -(-ids // modulus)) + 2 * INDEX_BYTES


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


def choose_index(
    spec: TableSpec, options: QuotientRemainderOptions
) -> np.ndarray | list[np.ndarray | None]:
    """Index table of all ids, or of each field, with None for full rows."""
    if options.fields != "apart":
        if options.field_moduli is not None:
            raise ValueError("field_moduli belong to fields='apart'")
        return partition_index(spec.num_embeddings, options)
    if options.modulus is not None or options.moduli is not None:
        raise ValueError("modulus and moduli belong to fields='together'")
    sizes = np.diff(spec.field_starts).tolist()
    moduli = check_sizes("field_moduli", options.field_moduli, 0)
    if len(moduli) != len(sizes) or options.combine == "path":
        raise ValueError(
            f"field_moduli must be a modulus for each of {len(sizes)} fields, without "
            f"paths, got {len(moduli)}, combine={options.combine!r}"
        )
    return [
        quotient_index(check_range("field_moduli", modulus, 1, n), n)
        if modulus
        else None
        for modulus, n in zip(moduli, sizes)
    ]


def check_sizes(name: str, given: object, low: int) -> list[int]:
    """Integers as a list of Python's own, or one clear ValueError."""
    if not isinstance(given, list | tuple | np.ndarray):
        raise ValueError(f"{name} must be a list of integers, got {given!r}")
    return [check_range(f"{name}[{j}]", size, low) for j, size in enumerate(given)]


def quotient_index(modulus: int, ids: int) -> np.ndarray:
    """Index table of quotients and remainders."""
    return plain_index([(modulus, -(-ids // modulus)), (1, modulus)])


def partition_index(ids: int, options: QuotientRemainderOptions) -> np.ndarray:
    """Index table of partitions that tell `ids` ids apart, or a ValueError."""
    modulus, moduli, partition = options.modulus, options.moduli, options.partition
    if (modulus is None) == (moduli is None):
        raise ValueError("give either modulus or moduli")
    if modulus is not None:
        if partition != "digits":
            raise ValueError(f"modulus belongs to 'digits', got {partition!r}")
        check_range("modulus", modulus, 1, ids)
        return quotient_index(modulus, ids)
    rows = check_sizes("moduli", moduli, 1)
    if len(rows) < 2 or max(rows) > MOST_ROWS:
        raise ValueError(
            f"moduli must be two or more sizes from 1 to {MOST_ROWS}, got {moduli!r}"
        )
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
    return plain_index(list(zip(divisors, rows)))


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
