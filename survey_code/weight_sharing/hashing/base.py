"""What the hashing methods share: small tables, read at digits of the id."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import CompressedEmbedding, check_range, draw_normal
from survey_code.layouts import HashedLayout
from survey_code.layouts.hashed import (
    COMBINE,
    choose_signs,
    count_rows,
    draw_multipliers,
    table_starts,
    take_digits,
)
from survey_code.order import largest_first
from survey_code.spec import TableSpec

# Bytes that one row of an index table takes, and a pair of multipliers.
INDEX_BYTES, PAIR_BYTES = 32, 16

# Largest number of rows: that of 31 bits.
MOST_ROWS = 2**31 - 1

JOINS = ("sum", "product", "concat")


class HashedEmbedding(CompressedEmbedding):
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
        If `combine` is unknown, or rows cannot be concatenated to the dimension.
    """

    shares_rows = True
    keys: Tensor | None

    def __init__(
        self,
        spec: TableSpec,
        index: np.ndarray,
        combine: str,
        seed: Any,
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
            functional.embedding(
                digit + start, self.values, sparse=self.sparse_gradients
            )
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
                sparse=self.sparse_gradients,
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

    def stored(self) -> dict[str, np.ndarray]:
        """Further arrays of the layout, by the names of its arguments."""
        return {} if self.keys is None else {"keys": self.keys.cpu().numpy().copy()}

    def freeze(self) -> HashedLayout:
        """The tables, the index and what else the look-up needs."""
        return HashedLayout(
            as_array(self.stored_values()),
            self.index.copy(),
            self.num_embeddings,
            self.embedding_dim,
            self.combine,
            self.signs,
            self.open_ids,
            shared=self.shared,
            **self.stored(),
        )

    def get_extra_state(self) -> dict[str, Any]:
        """The hash, which a state dict must carry: the rows mean nothing without."""
        signs = None if self.signs is None else self.signs.tolist()
        return {"index": self.index.tolist(), "signs": signs}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the hash of a state dict."""
        self.index = np.array(state["index"], dtype=np.int64)
        signs = state["signs"]
        self.signs = None if signs is None else np.array(signs, dtype=np.int64)


def as_array(weight: Tensor) -> np.ndarray:
    """A copy of a parameter as NumPy's float32."""
    array: np.ndarray = weight.detach().cpu().to(torch.float32).numpy().copy()
    return array


def mixed_index(seed: Any, moduli: list[int]) -> np.ndarray:
    """Index table of independent hashes, one for each modulus."""
    multipliers = draw_multipliers(np.random.default_rng(seed), len(moduli))
    rows = [[*pair, 1, size] for pair, size in zip(multipliers.tolist(), moduli)]
    return np.array(rows, dtype=np.int64)


def row_width(dim: int, parts: int, combine: str) -> int:
    """Columns of the shared tables."""
    check_combine(combine, COMBINE)
    if combine != "concat":
        return dim
    if dim % parts:
        raise ValueError(
            f"combine='concat' splits a row over {parts} tables, so embedding_dim "
            f"must be a multiple of {parts}, got {dim}"
        )
    return dim // parts


def check_combine(combine: Any, choices: tuple[str, ...] = JOINS) -> None:
    """Raise ValueError unless rows can be combined so."""
    if combine not in choices:
        raise ValueError(f"combine must be one of {choices}, got {combine!r}")


def check_share(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a number from 0 to 1."""
    if not isinstance(value, int | float | np.floating) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {value!r}")


def check_hashes(hashes: Any) -> None:
    """Raise ValueError unless this is a number of hash functions."""
    check_range("hashes", hashes, 1, 64)


def most_frequent(counts: np.ndarray, number: int) -> np.ndarray:
    """The ids with the largest counts, rising, as int32; ties by number."""
    order = largest_first(counts)[:number]
    return np.sort(order).astype(np.int32)


def factor_std(std: float, parts: int, combine: str) -> float:
    """Spread of each factor for which the composed rows have spread `std`.

    Variances of independent factors add in a sum and multiply in a product.
    Starting the factors of a product at the spread of a sum would leave all
    rows near zero, where their gradients vanish as well.
    """
    if combine == "sum":
        return std / math.sqrt(parts)
    return std ** (1 / parts) if combine == "product" else std
