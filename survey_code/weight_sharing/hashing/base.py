"""What the hashing methods share: small tables, read at digits of the id."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import CompressedEmbedding, Seed, as_float32, draw_normal
from survey_code.layouts import HashedLayout, Layout
from survey_code.layouts.hashed import (
    choose_signs,
    count_rows,
    table_starts,
    take_digits,
)
from survey_code.layouts.routed import apart_bytes, keep_apart, most_apart
from survey_code.spec import TableSpec

# Bytes that one row of an index table takes, and a pair of multipliers.
INDEX_BYTES, PAIR_BYTES = 32, 16

# Largest number of rows: that of 31 bits.
MOST_ROWS = 2**31 - 1

# Hash functions, at most.
MOST_HASHES = 64


class HashingTable(CompressedEmbedding):
    """A table whose hash belongs to its state: its numbers mean nothing without it.

    Attributes
    ----------
    hash_names : tuple of str
        Attributes that are its hash: arrays of int64, or None.
    """

    hash_names: ClassVar[tuple[str, ...]]

    def get_extra_state(self) -> dict[str, Any]:
        """The hash, as a state dict carries it."""
        hashes = {name: getattr(self, name) for name in self.hash_names}
        return {n: None if h is None else h.tolist() for n, h in hashes.items()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the hash of a state dict."""
        for name in self.hash_names:
            held = state[name]
            setattr(self, name, None if held is None else np.array(held, np.int64))


class HashedEmbedding(HashingTable):
    """A few small shared tables, read at digits of the (mixed) id.

    What every method of the family has in common; `HashedLayout` says what the
    arguments mean.

    Parameters
    ----------
    spec : TableSpec
    index : ndarray of int64, shape (k, 4)
    combine : {"sum", "product", "concat", "path"}
    seed : int or sequence of int
    signs : ndarray of int64, shape (2,), optional
    open_ids : bool, default False
    shared : bool, default False
    keys : ndarray of int32, shape (own rows,), optional

    Raises
    ------
    ValueError
        If rows cannot be concatenated to the dimension.
    """

    hash_names: ClassVar[tuple[str, ...]] = ("index", "signs")
    shares_rows = True
    keys: Tensor | None

    def __init__(
        self,
        spec: TableSpec,
        index: np.ndarray,
        combine: str,
        seed: Seed,
        signs: np.ndarray | None = None,
        open_ids: bool = False,
        *,
        shared: bool = False,
        keys: np.ndarray | None = None,
    ) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.combine = combine
        self.open_ids = open_ids
        self.shared = shared
        # Integers, not tensors: reading them must never wait for a GPU.
        self.index = index
        self.signs = signs
        width = row_width(spec.embedding_dim, len(index), combine)
        tables = index[:1] if combine == "path" else index
        self.shared_rows = count_rows(tables, shared)
        std = factor_std(spec.init_std, len(index), combine)
        values = draw_normal((self.shared_rows, width), std, seed)
        if keys is not None:
            own = (len(keys) * spec.embedding_dim // width, width)
            drawn = draw_normal(own, spec.init_std, [*np.atleast_1d(seed), 7])
            values = torch.cat([values, drawn])
        self.values = nn.Parameter(values)
        self.register_buffer("keys", None if keys is None else torch.from_numpy(keys))

    def embed(self, ids: Tensor) -> Tensor:
        """Digits and gathers, combined; then signs and the ids' own rows."""
        rows = self.join(ids, take_digits(ids, self.index))
        if self.signs is not None:
            rows = rows * choose_signs(ids, self.signs)[..., None].to(rows.dtype)
        return rows if self.keys is None else self.prefer_own(ids, rows)

    def join(self, ids: Tensor, digits: list[Tensor]) -> Tensor:
        """The rows that digits name, as a sum, a product or side by side."""
        parts = self.read_parts(ids, digits)
        if self.combine == "concat":
            return torch.cat(parts, dim=-1)
        rows = parts[0]
        for part in parts[1:]:
            rows = rows + part if self.combine == "sum" else rows * part
        return rows

    def read_parts(self, ids: Tensor, digits: list[Tensor]) -> list[Tensor]:
        """One row of each table: the shape of the ids with an axis of the width."""
        starts = table_starts(self.index, self.shared)
        return [
            functional.embedding(digit + start, self.values, sparse=self.regime.sparse)
            for digit, start in zip(digits, starts)
        ]

    def prefer_own(self, ids: Tensor, rows: Tensor) -> Tensor:
        """The ids' own rows where they have one, else `rows`."""
        places, found = self.find_own(ids)
        parts = rows.shape[-1] // self.values.shape[1]
        own = [
            functional.embedding(
                self.shared_rows + parts * places + part,
                self.values,
                sparse=self.regime.sparse,
            )
            for part in range(parts)
        ]
        return torch.where(found[..., None], torch.cat(own, dim=-1), rows)

    def find_own(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Place of each id's own row, and whether it has one."""
        assert self.keys is not None
        places = torch.searchsorted(self.keys, ids.to(self.keys.dtype))
        places = places.clamp(max=len(self.keys) - 1)
        return places, self.keys[places] == ids

    def stored_values(self) -> Tensor:
        """Shared rows, then the ids' own, in the order of their ids."""
        return self.values

    def own_ids(self) -> np.ndarray:
        """The ids with rows of their own, rising."""
        return np.zeros(0, np.int32) if self.keys is None else self.keys.cpu().numpy()

    def stored(self) -> dict[str, np.ndarray]:
        """Further arrays of the layout, by the names of its arguments."""
        return {}

    def freeze(self) -> Layout:
        """The tables, the index and what else the look-up needs; own rows apart."""
        values = as_float32(self.stored_values())
        shared, own = np.split(values, [self.shared_rows])
        hashed = HashedLayout(
            shared.copy(),
            self.index.copy(),
            self.num_embeddings,
            self.embedding_dim,
            self.combine,
            self.signs,
            self.open_ids,
            shared=self.shared,
            **self.stored(),
        )
        rows = own.reshape(-1, self.embedding_dim).copy()
        return keep_apart(self.num_embeddings, self.own_ids(), rows, hashed)


def row_width(dim: int, parts: int, combine: str) -> int:
    """Columns of the shared tables."""
    if combine != "concat":
        return dim
    if dim % parts:
        raise ValueError(
            f"combine='concat' splits a row over {parts} tables, so embedding_dim "
            f"must be a multiple of {parts}, got {dim}"
        )
    return dim // parts


def plan_rows(
    spec: TableSpec,
    ratio: float,
    row: int,
    fixed: int,
    least: int = 1,
    most: int = MOST_ROWS,
) -> int:
    """Rows that a budget holds beside a number of fixed bytes.

    Raises
    ------
    OutOfReach
        If these are fewer than `least`.
    """
    budget = spec.require(ratio, smallest=least * row + fixed)
    return min((budget - fixed) // row, most)


def plan_shares(
    spec: TableSpec,
    ratio: float,
    row: int,
    fixed: int,
    own: int,
    share: float,
    least: int = 0,
) -> tuple[int, int]:
    """Shared rows, and how many entries of `own` bytes a `share` of the budget holds.

    Raises
    ------
    OutOfReach
        If there is no room for a row and `least` entries.
    """
    budget = spec.require(ratio, smallest=row + least * own + fixed) - fixed
    entries = min(int(share * budget), budget - row) // own
    entries = min(max(entries, least), spec.num_embeddings)
    return min((budget - entries * own) // row, MOST_ROWS), entries


def plan_apart(
    spec: TableSpec, ratio: float, row: int, fixed: int, share: float
) -> tuple[int, int]:
    """Shared rows of `row` bytes, and ids whose rows a `share` of the budget holds.

    Raises
    ------
    OutOfReach
        If there is no room for a shared row.
    """
    budget = spec.require(ratio, smallest=row + fixed) - fixed
    rows, own = spec.num_embeddings, 4 * spec.embedding_dim
    ids = most_apart(rows, own, min(int(share * budget), budget - row))
    return min((budget - apart_bytes(rows, ids, own)) // row, MOST_ROWS), ids


def factor_std(std: float, parts: int, combine: str) -> float:
    """Spread of each factor for which the composed rows have spread `std`.

    Variances of independent factors add in a sum and multiply in a product.
    Starting the factors of a product at the spread of a sum would leave all
    rows near zero, where their gradients vanish as well.
    """
    if combine == "sum":
        return std / math.sqrt(parts)
    return std ** (1 / parts) if combine == "product" else std
