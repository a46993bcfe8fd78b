"""Hashed rows with a few weights per id: hash embeddings and MEmCom."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import check_range
from survey_code.layouts.hashed import take_digits
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import (
    INDEX_BYTES,
    MOST_ROWS,
    HashedEmbedding,
    as_array,
    check_hashes,
    check_share,
    mixed_index,
)


class WeightedEmbedding(HashedEmbedding):
    """The rows that the hashes name, each multiplied by a weight of the id.

    Parameters
    ----------
    spec : TableSpec
    index : ndarray of int64, shape (k, 4)
    entries : int
        Rows of the table of weights; below the number of ids, these are hashed
        to it as well.
    bias : bool
        One more number per entry, added to every column; it starts at 0.
    seed, open_ids, shared
        As in `HashedEmbedding`.
    """

    def __init__(
        self,
        spec: TableSpec,
        index: np.ndarray,
        entries: int,
        bias: bool,
        seed: int,
        *,
        open_ids: bool = False,
        shared: bool = False,
    ) -> None:
        super().__init__(
            spec, index, "sum", [seed, 0], open_ids=open_ids, shared=shared
        )
        hashed = open_ids or entries < spec.num_embeddings
        self.weight_index = mixed_index([seed, 2], [entries]) if hashed else None
        weights = torch.ones(entries, len(index) + bias)
        weights[:, len(index) :] = 0
        self.weights = nn.Parameter(weights)

    def join(self, ids: Tensor, digits: list[Tensor]) -> Tensor:
        """The weighted sum of the rows that digits name."""
        if self.weight_index is not None:
            ids = take_digits(ids, self.weight_index)[0]
        weights = functional.embedding(
            ids, self.weights, sparse=self.sparse_gradients
        )  # (*shape, k or k + 1)
        parts = self.read_parts(ids, digits)
        rows = parts[0] * weights[..., :1]
        for j, part in enumerate(parts[1:], start=1):
            rows = rows + part * weights[..., j : j + 1]
        return rows + weights[..., len(parts) :].sum(-1, keepdim=True)

    def stored(self) -> dict[str, np.ndarray]:
        """The weights, and how they are read."""
        stored = {"weights": as_array(self.weights)}
        if self.weight_index is not None:
            stored["weight_index"] = self.weight_index.copy()
        return stored

    def get_extra_state(self) -> dict[str, Any]:
        """The hash of the weights belongs to the state, too."""
        index = None if self.weight_index is None else self.weight_index.tolist()
        return {**super().get_extra_state(), "weight_index": index}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the hashes of a state dict."""
        super().set_extra_state(state)
        index = state["weight_index"]
        self.weight_index = None if index is None else np.array(index, dtype=np.int64)


class HashEmbeddings(WeightedEmbedding):
    """Rows of one shared table, weighted by the id (``hash_embeddings``).

    Parameters
    ----------
    spec : TableSpec
    rows : int
        Rows of the shared table.
    entries : int
        Rows of the table of weights; with as many as there are ids, each id has
        weights of its own.
    hashes : int, default 2
        Rows that one id reads.
    open_ids : bool, default False
        Serve ids beyond the table too; their weights are hashed.
    seed : int, default 0

    Raises
    ------
    ValueError
        If an option is out of its range.

    Notes
    -----
    Svenstrup, Hansen and Winther, "Hash Embeddings for Efficient Word
    Representations" (NIPS 2017).  Weights start at 1, so that the rows start with
    the spread of the full table's.
    """

    def __init__(
        self,
        spec: TableSpec,
        *,
        rows: int,
        entries: int,
        hashes: int = 2,
        open_ids: bool = False,
        seed: int = 0,
    ) -> None:
        check_range("rows", rows, 1, MOST_ROWS)
        check_range("entries", entries, 1, spec.num_embeddings)
        check_hashes(hashes)
        index = mixed_index([seed, 1], [rows] * hashes)
        super().__init__(
            spec, index, entries, False, seed, open_ids=open_ids, shared=True
        )

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        hashes: int = 2,
        share: float = 0.2,
        open_ids: bool = False,
    ) -> dict[str, Any]:
        """Weights for a `share` of the budget, rows for the rest."""
        check_hashes(hashes)
        check_share("share", share)
        row, entry = 4 * spec.embedding_dim, 4 * hashes
        overhead = INDEX_BYTES * (hashes + 1)
        budget = spec.require(ratio, smallest=row + entry + overhead) - overhead
        entries = min(int(share * budget), budget - row) // entry
        entries = min(max(entries, 1), spec.num_embeddings)
        rows = min((budget - entries * entry) // row, MOST_ROWS)
        return {
            "rows": rows, "entries": entries, "hashes": hashes, "open_ids": open_ids
        }  # fmt: skip


class MEmCom(WeightedEmbedding):
    """A hashed row times a number of the id's own (``memcom``).

    Parameters
    ----------
    spec : TableSpec
    rows : int
        Rows of the shared table.
    bias : bool, default False
        A second number of the id's own, added to every column.
    seed : int, default 0

    Raises
    ------
    ValueError
        If an option is out of its range.

    Notes
    -----
    Pansare et al., "Learning Compressed Embeddings for On-Device Inference"
    (MLSys 2022).  The number starts at 1, the bias at 0.  The paper takes the
    remainder of ids that are sorted by frequency; here ids are mixed first.
    """

    def __init__(
        self, spec: TableSpec, *, rows: int, bias: bool = False, seed: int = 0
    ) -> None:
        check_range("rows", rows, 1, spec.num_embeddings)
        index = mixed_index([seed, 1], [rows])
        super().__init__(spec, index, spec.num_embeddings, bool(bias), seed)

    @classmethod
    def plan(
        cls, spec: TableSpec, ratio: float, *, bias: bool = False
    ) -> dict[str, Any]:
        """As many rows as the budget holds beside one or two numbers per id."""
        row = 4 * spec.embedding_dim
        fixed = INDEX_BYTES + 4 * spec.num_embeddings * (1 + bool(bias))
        budget = spec.require(ratio, smallest=row + fixed)
        rows = min((budget - fixed) // row, spec.num_embeddings)
        return {"rows": rows, "bias": bool(bias)}
