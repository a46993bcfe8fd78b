"""Hashed rows with a few weights per id: hash embeddings and MEmCom."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.checks import check_range
from survey_code.embedding import as_float32, pick_rows
from survey_code.layouts.hashed import mixed_index, take_digits
from survey_code.method import Found, Trained
from survey_code.options import Options, found, option
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import (
    INDEX_BYTES,
    MOST_HASHES,
    MOST_ROWS,
    HashedEmbedding,
    plan_rows,
    plan_shares,
)


class WeightedEmbedding(HashedEmbedding):
    """The rows that the hashes name, each multiplied by a weight of the id.

    Parameters
    ----------
    spec : TableSpec
    index : ndarray of int64, shape (k, 5)
    entries : int
        Rows of the table of weights; below the number of ids, these are hashed
        to it as well.
    bias : bool
        One more number per entry, added to every column; it starts at 0.
    seed, open_ids, shared
        As in `HashedEmbedding`.
    """

    hash_names = (*HashedEmbedding.hash_names, "weight_index")

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
        weights = pick_rows(
            ids, self.weights, sparse=self.regime.sparse
        )  # (*shape, k or k + 1)
        parts = self.read_parts(ids, digits)
        rows = parts[0] * weights[..., :1]
        for j, part in enumerate(parts[1:], start=1):
            rows = rows + part * weights[..., j : j + 1]
        return rows + weights[..., len(parts) :].sum(-1, keepdim=True)

    def stored(self) -> dict[str, np.ndarray]:
        """The weights, and how they are read."""
        stored = {"weights": as_float32(self.weights)}
        if self.weight_index is not None:
            stored["weight_index"] = self.weight_index.copy()
        return stored


class HashEmbeddingsOptions(Options):
    """Options of `HashEmbeddings`."""

    hashes: int = option(2, "rows that one id reads", low=1, high=MOST_HASHES)
    share: float = option(
        0.2,
        "share of the budget that the weights get",
        low=0, high=1, tune=(0.2, 0.4),
    )  # fmt: skip
    open_ids: bool = option(
        False, "serve ids beyond the table too; their weights are hashed"
    )
    rows: int = found("rows of the shared table", low=1, high=MOST_ROWS)
    entries: int = found("rows of the table of weights", low=1)


class HashEmbeddings(WeightedEmbedding, Trained[HashEmbeddingsOptions]):
    """Rows of one shared table, weighted by the id (``hash_embeddings``).

    With as many rows of weights as there are ids, each id has weights of its own.

    Notes
    -----
    Svenstrup, Hansen and Winther, "Hash Embeddings for Efficient Word
    Representations" (NIPS 2017).  Weights start at 1, so that the rows start with
    the spread of the full table's; theirs are drawn near zero.  Their vectors may also
    carry the weights as further columns, which is left out.
    """

    def __init__(
        self, spec: TableSpec, options: HashEmbeddingsOptions, seed: int = 0
    ) -> None:
        check_range("entries", options.entries, 1, spec.num_embeddings)
        index = mixed_index([seed, 1], [options.rows] * options.hashes)
        is_open = options.open_ids
        super().__init__(
            spec, index, options.entries, False, seed, open_ids=is_open, shared=True
        )

    @classmethod
    def plan(
        cls, spec: TableSpec, ratio: float, options: HashEmbeddingsOptions
    ) -> Found:
        """Weights for a share of the budget, rows for the rest."""
        row, entry = 4 * spec.embedding_dim, 4 * options.hashes
        fixed, share = INDEX_BYTES * (options.hashes + 1), options.share
        rows, entries = plan_shares(spec, ratio, row, fixed, entry, share, least=1)
        return {"rows": rows, "entries": entries}


class MEmComOptions(Options):
    """Options of `MEmCom`."""

    bias: bool = option(
        False, "a second number for each id, added to every column", tune=(False, True)
    )
    rows: int = found("rows of the shared table", low=1)


class MEmCom(WeightedEmbedding, Trained[MEmComOptions]):
    """A hashed row times a number of the id's own (``memcom``).

    Notes
    -----
    Pansare et al., "Learning Compressed Embeddings for On-Device Inference"
    (MLSys 2022).  The number starts at 1, the bias at 0.  The paper takes the
    remainder of ids that are sorted by frequency; here ids are mixed first.
    """

    def __init__(self, spec: TableSpec, options: MEmComOptions, seed: int = 0) -> None:
        check_range("rows", options.rows, 1, spec.num_embeddings)
        index = mixed_index([seed, 1], [options.rows])
        super().__init__(spec, index, spec.num_embeddings, options.bias, seed)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: MEmComOptions) -> Found:
        """As many rows as the budget holds beside one or two numbers per id."""
        row, most = 4 * spec.embedding_dim, spec.num_embeddings
        fixed = INDEX_BYTES + 4 * most * (1 + options.bias)
        return {"rows": plan_rows(spec, ratio, row, fixed, most=most)}
