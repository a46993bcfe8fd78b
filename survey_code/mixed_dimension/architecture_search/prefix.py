"""Rows of different lengths: each id keeps the first entries of its row.

What three of the family's searches retrain (`nis`, `optembed`, `bet`), and the table
in which they try lengths before: one full table, read through prefix masks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import CompressedEmbedding, draw_normal
from survey_code.spec import TableSpec


class PrefixEmbedding(CompressedEmbedding):
    """Row i holds `lengths[i]` numbers; the rest of its vector is zero.

    Parameters
    ----------
    spec : TableSpec
    lengths : array of int, shape (num_embeddings,)
        Entries that each id keeps, 0 to embedding_dim.
    seed : int, default 0

    Raises
    ------
    ValueError
        If `lengths` is not such an array, or keeps nothing at all.
    """

    lengths: Tensor
    starts: Tensor

    def __init__(self, spec: TableSpec, *, lengths: Any, seed: int = 0) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        kept = check_lengths(spec, lengths)
        starts = np.concatenate([[0], np.cumsum(kept)])
        # What an option says, a state dict need not carry.
        self.register_buffer("lengths", torch.from_numpy(kept), persistent=False)
        self.register_buffer("starts", torch.from_numpy(starts), persistent=False)
        shape = (int(starts[-1]), 1)
        self.values = nn.Parameter(draw_normal(shape, spec.init_std, [seed, 0]))

    def embed(self, ids: Tensor) -> Tensor:
        """Gather each row's entries from the one long array, then zeros."""
        columns = torch.arange(self.embedding_dim, device=ids.device)
        kept = columns < self.lengths[ids][..., None]  # (*shape, dim)
        places = torch.where(kept, self.starts[ids][..., None] + columns, 0)
        entries = functional.embedding(
            places, self.values, sparse=self.sparse_gradients
        )
        return entries[..., 0] * kept


class PrefixSupernet(CompressedEmbedding):
    """A full table in which lengths are tried: row i is read through the mask of
    its first `lengths[i]` entries.

    All lengths share the weights, so that one training serves every choice.

    Parameters
    ----------
    spec : TableSpec
    seed : int, default 0
    """

    lengths: Tensor

    def __init__(self, spec: TableSpec, seed: int = 0) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        shape = (spec.num_embeddings, spec.embedding_dim)
        self.weight = nn.Parameter(draw_normal(shape, spec.init_std, [seed, 0]))
        full = torch.full((spec.num_embeddings,), spec.embedding_dim)
        self.register_buffer("lengths", full, persistent=False)
        self.rng = np.random.default_rng([seed, 5])

    def set_lengths(self, lengths: np.ndarray) -> None:
        """Try these from now on."""
        device = self.lengths.device
        self.lengths = torch.from_numpy(np.ascontiguousarray(lengths)).to(device)

    def embed(self, ids: Tensor) -> Tensor:
        """Full rows behind prefix masks."""
        rows = functional.embedding(ids, self.weight, sparse=self.sparse_gradients)
        return rows * prefix_mask(self.lengths[ids], self.embedding_dim)


def prefix_mask(lengths: Tensor, dim: int) -> Tensor:
    """True for the first entries: lengths (*shape) -> bool (*shape, dim).

    Examples
    --------
    >>> prefix_mask(torch.tensor([0, 2]), 3).long().tolist()
    [[0, 0, 0], [1, 1, 0]]
    """
    return torch.arange(dim, device=lengths.device) < lengths[..., None]


def check_lengths(spec: TableSpec, lengths: Any) -> np.ndarray:
    """Lengths as int64, or one clear ValueError."""
    kept = np.asarray(lengths)
    if kept.shape != (spec.num_embeddings,) or kept.dtype.kind not in "iu":
        raise ValueError(
            f"lengths must be {spec.num_embeddings} integers, got dtype {kept.dtype} "
            f"and shape {kept.shape}"
        )
    if kept.min() < 0 or kept.max() > spec.embedding_dim or not kept.any():
        raise ValueError(
            f"lengths must be from 0 to {spec.embedding_dim} and not all 0, got "
            f"{kept.min()} to {kept.max()}"
        )
    return kept.astype(np.int64)
