"""What the hashing methods share: small tables, read at digits of the id."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.embedding import (
    CompressedEmbedding,
    Seed,
    as_float32,
    draw_normal,
    pick_rows,
)
from survey_code.hashes import mix_ids
from survey_code.layouts import GroupedLayout, HashedLayout, Layout
from survey_code.layouts.hashed import (
    choose_signs,
    count_rows,
    plain_index,
    table_starts,
    take_digits,
)
from survey_code.layouts.routed import apart_bytes, keep_apart, most_apart
from survey_code.spec import TableSpec

# Bytes that one row of an index table takes, and the numbers of a hash.
INDEX_BYTES, HASH_BYTES = 40, 24

# Largest number of rows: that of 31 bits.
MOST_ROWS = 2**31 - 1

# Fields of up to so many ids keep full rows where fields are apart, as in DLRM.
THRESHOLD = 200

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
    index : ndarray of int64, shape (k, 5)
    combine : {"sum", "product", "concat", "path"}
    seed : int or sequence of int
    signs : ndarray of int64, shape (3,), optional
    open_ids : bool, default False
    shared : bool, default False
    keys : ndarray of int32, shape (own rows,), optional
        Ids with rows of their own, rising.
    parts : int, optional
        Rows that an id reads, where these are not as many as `index` has.

    Raises
    ------
    ValueError
        If rows cannot be concatenated to the dimension.
    """

    hash_names: ClassVar[tuple[str, ...]] = ("index", "signs")
    shares_rows = True
    steady = True
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
        parts: int | None = None,
    ) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        parts = len(index) if parts is None else parts
        self.combine = combine
        self.open_ids = open_ids
        self.shared = shared
        # Integers, not tensors: reading them must never wait for a GPU.
        self.index = index
        self.signs = signs
        width = row_width(spec.embedding_dim, parts, combine)
        tables = index[:1] if combine == "path" else index
        self.shared_rows = count_rows(tables, shared)
        std = factor_std(spec.init_std, parts, combine)
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
        return join_parts(self.read_parts(ids, digits), self.combine)

    def read_parts(self, ids: Tensor, digits: list[Tensor]) -> list[Tensor]:
        """One row of each table: the shape of the ids with an axis of the width."""
        starts = table_starts(self.index, self.shared)
        return [
            pick_rows(digit + start, self.values, sparse=self.regime.sparse)
            for digit, start in zip(digits, starts)
        ]

    def prefer_own(self, ids: Tensor, rows: Tensor) -> Tensor:
        """The ids' own rows where they have one, else `rows`."""
        places, found = self.find_own(ids)
        parts = rows.shape[-1] // self.values.shape[1]
        own = [
            pick_rows(
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

    @torch.no_grad()
    def inherit(self, old: Self) -> None:
        """Shared rows as they are; own rows as their ids read them in the old table."""
        keys = self.keys
        state = old.state_dict()
        self.load_state_dict(state if keys is None else {**state, "keys": keys})
        if keys is not None:
            own = old.embed(keys.long())
            self.values[self.shared_rows :] = own.view(-1, self.values.shape[1])

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


class FieldsEmbedding(HashedEmbedding):
    """Shared tables for all fields together, or for each field apart.

    Parameters
    ----------
    spec : TableSpec
    index : ndarray of int64, shape (k, 5), or list of such and of None
        As in `HashedEmbedding`; or the index of each field, which is read at ids
        numbered from the field's first one, and None for a field of full rows.
    combine, seed, signs, open_ids
        As in `HashedEmbedding`.

    Raises
    ------
    ValueError
        If each field has tables of its own and any id is to be served, or no field
        shares rows.
    """

    # Where fields are apart: index, first rows and first ids of each field.
    hashes: Tensor | None
    firsts: Tensor
    field_starts: Tensor

    steady = True

    def __init__(
        self,
        spec: TableSpec,
        index: np.ndarray | list[np.ndarray | None],
        combine: str,
        seed: Seed,
        signs: np.ndarray | None = None,
        open_ids: bool = False,
    ) -> None:
        if isinstance(index, np.ndarray):
            super().__init__(spec, index, combine, seed, signs, open_ids)
            self.hashes = None
            return
        shared = [own for own in index if own is not None]
        if open_ids or not shared:
            raise ValueError(
                "fields='apart' needs ids of a field, so open_ids=False, and a field "
                "that shares rows"
            )
        parts = len(shared[0])
        tables = np.concatenate(shared)
        keys = full_ids(spec, [own is None for own in index])
        super().__init__(spec, tables, combine, seed, signs, keys=keys, parts=parts)
        # A user and an item cannot be given the same row.
        self.shares_rows = False
        # What a field of full rows reads besides is not used.
        unused = plain_index([(1, 1)] * parts)
        hashes = np.stack([unused if own is None else own for own in index])
        starts = iter(np.reshape(table_starts(tables), (-1, parts)))
        firsts = [[0] * parts if own is None else next(starts) for own in index]
        self.register_buffer("hashes", torch.from_numpy(hashes))
        self.register_buffer("firsts", torch.tensor(np.array(firsts)))
        self.register_buffer("field_starts", torch.tensor(spec.field_starts))

    def embed(self, ids: Tensor) -> Tensor:
        """As without fields; else the tables of each id's field."""
        if self.hashes is None:
            return super().embed(ids)
        wide = ids.long()
        fields = torch.bucketize(wide, self.field_starts[1:], right=True)
        own = wide - self.field_starts[fields]
        rows = self.join(own, self.field_rows(own, fields))
        if self.signs is not None:
            rows = rows * choose_signs(own, self.signs)[..., None].to(rows.dtype)
        return rows if self.keys is None else self.prefer_own(ids, rows)

    def field_rows(self, own: Tensor, fields: Tensor) -> list[Tensor]:
        """Rows of `values` that ids of fields read: k tensors of int64."""
        assert self.hashes is not None
        rows = []
        for part in range(self.hashes.shape[1]):
            first, second, addend, divisor, modulus = self.hashes[fields, part].unbind(
                -1
            )
            mixed = torch.where(first != 0, mix_ids(own, first, second, addend), own)
            rows.append(mixed // divisor % modulus + self.firsts[fields, part])
        return rows

    def read_parts(self, ids: Tensor, digits: list[Tensor]) -> list[Tensor]:
        """One row of each table; where fields are apart, digits name rows."""
        if self.hashes is None:
            return super().read_parts(ids, digits)
        sparse = self.regime.sparse
        return [pick_rows(row, self.values, sparse=sparse) for row in digits]

    def freeze(self) -> Layout:
        """As without fields; else a layout for each field."""
        if self.hashes is None:
            return super().freeze()
        values, dim = as_float32(self.stored_values()), self.embedding_dim
        shared, own = np.split(values, [self.shared_rows])
        sizes = np.diff(self.field_starts.cpu().numpy()).tolist()
        full = iter(own.reshape(-1, dim))
        keys, starts = set(self.own_ids().tolist()), self.field_starts.tolist()
        tables: list[np.ndarray | Layout] = []
        for start, size, index, first in zip(
            starts, sizes, self.hashes.cpu().numpy(), self.firsts[:, 0].tolist()
        ):
            if start in keys:
                tables.append(np.stack([next(full) for _ in range(size)]))
                continue
            rows = shared[first : first + count_rows(index)].copy()
            hashed = HashedLayout(
                rows, index.copy(), size, dim, self.combine, self.signs
            )
            tables.append(hashed)
        return GroupedLayout(tables, dim)


def full_ids(spec: TableSpec, full: Sequence[bool]) -> np.ndarray | None:
    """Ids of those fields that have full rows; None where no field has."""
    members = np.repeat(full, np.diff(spec.field_starts))
    return np.flatnonzero(members).astype(np.int32) if any(full) else None


def join_parts(parts: Sequence[Tensor], combine: str) -> Tensor:
    """Rows of one shape as a sum, a product or side by side."""
    if combine == "concat":
        return torch.cat(list(parts), dim=-1)
    rows = parts[0]
    for part in parts[1:]:
        rows = rows + part if combine == "sum" else rows * part
    return rows


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


def check_counted(name: str, value: float, spec: TableSpec) -> None:
    """Raise ValueError where ids are to be chosen by counts that the spec has not."""
    if value and not spec.train_counts.any():
        raise ValueError(
            f"{name}={value!r} chooses ids by how often they occur in training, but "
            f"all train_counts are 0: give counts, or {name}=0"
        )


def factor_std(std: float, parts: int, combine: str) -> float:
    """Spread of each factor for which the composed rows have spread `std`.

    Variances of independent factors add in a sum and multiply in a product.
    Starting the factors of a product at the spread of a sum would leave all
    rows near zero, where their gradients vanish as well.
    """
    if combine == "sum":
        return std / math.sqrt(parts)
    return std ** (1 / parts) if combine == "product" else std
