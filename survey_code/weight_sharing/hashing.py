"""Hashing: ids share rows, and arithmetic on the id says which."""

from __future__ import annotations

import bisect
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
    draw_multipliers,
    table_starts,
    take_digits,
)
from survey_code.spec import TableSpec


class HashedEmbedding(CompressedEmbedding):
    """A few small shared tables, read at digits of the (mixed) id.

    What every method of the family has in common; `HashedLayout` says what the
    index table means.

    Parameters
    ----------
    spec : TableSpec
    index : ndarray of int64, shape (k, 4)
    combine : {"sum", "product", "concat"}
    seed : int or sequence of int
    signs : ndarray of int64, shape (2,), optional
    open_ids : bool, default False

    Raises
    ------
    ValueError
        If `combine` is unknown, or rows cannot be concatenated to the dimension.
    """

    def __init__(
        self,
        spec: TableSpec,
        index: np.ndarray,
        combine: str,
        seed: Any,
        signs: np.ndarray | None = None,
        open_ids: bool = False,
    ) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.combine = combine
        self.open_ids = open_ids
        # Integers, not tensors: reading them must never wait for a GPU.
        self.index = index
        self.signs = signs
        shape = (
            int(index[:, 3].sum()),
            row_width(spec.embedding_dim, len(index), combine),
        )
        std = factor_std(spec.init_std, len(index), combine)
        self.values = nn.Parameter(draw_normal(shape, std, seed))

    def embed(self, ids: Tensor) -> Tensor:
        """Digits, gathers, then sum, product or concatenation."""
        parts = [
            functional.embedding(
                digits + start, self.values, sparse=self.sparse_gradients
            )
            for digits, start in zip(
                take_digits(ids, self.index), table_starts(self.index)
            )
        ]
        if self.combine == "concat":
            rows = torch.cat(parts, dim=-1)
        else:
            rows = parts[0]
            for part in parts[1:]:
                rows = rows + part if self.combine == "sum" else rows * part
        if self.signs is not None:
            rows = rows * choose_signs(ids, self.signs)[..., None].to(rows.dtype)
        return rows

    def freeze(self) -> HashedLayout:
        """The tables, the index and the sign hash."""
        return HashedLayout(
            self.values.detach().cpu().numpy().copy(),
            self.index.copy(),
            self.num_embeddings,
            self.embedding_dim,
            self.combine,
            self.signs,
            self.open_ids,
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


def row_width(dim: int, parts: int, combine: str) -> int:
    """Columns of the shared tables."""
    if combine not in COMBINE:
        raise ValueError(f"combine must be one of {COMBINE}, got {combine!r}")
    if combine != "concat":
        return dim
    if dim % parts:
        raise ValueError(
            f"combine='concat' splits a row over {parts} tables, so embedding_dim "
            f"must be a multiple of {parts}, got {dim}"
        )
    return dim // parts


def factor_std(std: float, parts: int, combine: str) -> float:
    """Spread of each factor for which the composed rows have spread `std`.

    Variances of independent factors add in a sum and multiply in a product.
    Starting the factors of a product at the spread of a sum would leave all
    rows near zero, where their gradients vanish as well.
    """
    if combine == "sum":
        return std / math.sqrt(parts)
    return std ** (1 / parts) if combine == "product" else std


class HashingEmbedding(HashedEmbedding):
    """The hashing trick: id i reads row h(i) of a table with few rows.

    Parameters
    ----------
    spec : TableSpec
    rows : int
        Rows of the shared table.
    signed : bool, default False
        Multiply each row read by a second hash, +1 or -1, so that the inner
        product of two hashed vectors is right on average.
    open_ids : bool, default False
        Serve ids beyond the table too.
    seed : int, default 0

    Notes
    -----
    Weinberger et al., "Feature Hashing for Large Scale Multitask Learning"
    (2009).  One table serves all fields.
    """

    def __init__(
        self,
        spec: TableSpec,
        *,
        rows: int,
        signed: bool = False,
        open_ids: bool = False,
        seed: int = 0,
    ) -> None:
        check_range("rows", rows, 1, 2**31 - 1)
        multipliers = draw_multipliers(np.random.default_rng([seed, 1]), 2)
        index = np.array([[*multipliers[0], 1, rows]], dtype=np.int64)
        signs = multipliers[1] if signed else None
        super().__init__(spec, index, "sum", [seed, 0], signs, open_ids)

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        signed: bool = False,
        open_ids: bool = False,
    ) -> dict[str, Any]:
        """As many rows as the budget holds beside the hash's parameters."""
        row, overhead = 4 * spec.embedding_dim, 48 if signed else 32
        budget = spec.require(ratio, smallest=row + overhead)
        rows = min((budget - overhead) // row, 2**31 - 1)
        return {"rows": rows, "signed": signed, "open_ids": open_ids}


class QuotientRemainderEmbedding(HashedEmbedding):
    """Two small tables, read at the quotient and the remainder of the id.

    No two ids share both digits, so every id keeps a vector of its own.

    Parameters
    ----------
    spec : TableSpec
    modulus : int
        Rows of the remainder table; the quotient table has ceil(n / modulus).
    combine : {"product", "sum", "concat"}
    seed : int, default 0

    Notes
    -----
    Shi et al., "Compositional Embeddings Using Complementary Partitions for
    Memory-Efficient Recommendation Systems" (KDD 2020).
    """

    def __init__(
        self,
        spec: TableSpec,
        *,
        modulus: int,
        combine: str = "product",
        seed: int = 0,
    ) -> None:
        check_range("modulus", modulus, 1, spec.num_embeddings)
        quotients = -(-spec.num_embeddings // modulus)
        index = np.array(
            [[0, 0, modulus, quotients], [0, 0, 1, modulus]], dtype=np.int64
        )
        super().__init__(spec, index, combine, [seed, 0])

    @classmethod
    def plan(
        cls, spec: TableSpec, ratio: float, *, combine: str = "product"
    ) -> dict[str, Any]:
        """The largest remainder table that fits; the smallest pair of tables
        has about 2 sqrt(n) rows.
        """
        n = spec.num_embeddings
        row = 4 * row_width(spec.embedding_dim, 2, combine)
        overhead = 64
        smallest = max(math.isqrt(n - 1) + 1, 1)  # ceil(sqrt(n))

        def rows(modulus: int) -> int:
            return modulus + -(-n // modulus)

        budget = spec.require(ratio, smallest=row * rows(smallest) + overhead)
        # From ceil(sqrt(n)) on, a larger modulus never needs fewer rows.
        moduli = range(smallest, n + 1)
        fitting = bisect.bisect_right(moduli, (budget - overhead) // row, key=rows)
        return {"modulus": moduli[fitting - 1], "combine": combine}
