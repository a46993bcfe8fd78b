"""Rows of different lengths: each id keeps the first entries of its row.

What three of the family's searches retrain (`nis`, `optembed`, `bet`), and the table
in which they try lengths before: one full table, read through prefix masks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.budget import largest_fitting
from survey_code.embedding import CompressedEmbedding, draw_normal, pick_rows
from survey_code.layouts.grouped import grouped_bytes, remap_bytes
from survey_code.mixed_dimension.grouped import GroupedEmbedding
from survey_code.options import SearchOptions, found
from survey_code.order import largest_first
from survey_code.spec import TableSpec


class LengthOptions(SearchOptions):
    """Of a search that finds a length for every row."""

    lengths: np.ndarray = found("entries that each id keeps")


class PrefixEmbedding(GroupedEmbedding):
    """Row i holds `lengths[i]` numbers; the rest of its vector is zero.

    Parameters
    ----------
    spec : TableSpec
    lengths : ndarray of integers, shape (num_embeddings,)
        Entries that each id keeps, 0 to embedding_dim.
    seed : int, default 0

    Raises
    ------
    ValueError
        If `lengths` is not such an array, or keeps nothing at all.
    """

    def __init__(self, spec: TableSpec, lengths: np.ndarray, seed: int = 0) -> None:
        kept = check_lengths(spec, lengths)
        # Ids of one length are one group, the longest first.
        widths, groups = np.unique(-kept, return_inverse=True)
        super().__init__(spec, groups, -widths, [seed, 0], pad=True)


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
        rows = pick_rows(ids, self.weight, sparse=self.regime.sparse)
        return rows * prefix_mask(self.lengths[ids], self.embedding_dim)


def prefix_mask(lengths: Tensor, dim: int) -> Tensor:
    """True for the first entries: lengths of any shape -> bool with one more axis.

    Examples
    --------
    >>> prefix_mask(torch.tensor([0, 2]), 3).long().tolist()
    [[0, 0, 0], [1, 1, 0]]
    """
    return torch.arange(dim, device=lengths.device) < lengths[..., None]


def prefix_bytes(lengths: np.ndarray, dim: int) -> int:
    """Bytes of a frozen `PrefixEmbedding`."""
    rows = np.bincount(lengths)[::-1]
    widths = np.flatnonzero(rows)
    # Lengths that fall from id to id need no remap.
    ranges = bool((np.diff(lengths) <= 0).all())
    return grouped_bytes(
        rows[widths].tolist(), (len(rows) - 1 - widths).tolist(), dim, ranges, pad=True
    )


def prefix_overhead(spec: TableSpec, groups: int) -> int:
    """Bytes besides the numbers, at most, of rows of so many different lengths."""
    dim = spec.embedding_dim
    return 8 * groups + 2 * dim * groups + remap_bytes(spec.num_embeddings, groups)


def smallest_prefix(spec: TableSpec) -> int:
    """Bytes where a single id keeps a single number."""
    rows = [n for n in (1, spec.num_embeddings - 1) if n]
    widths = [1, 0][: len(rows)]
    return grouped_bytes(rows, widths, spec.embedding_dim, len(rows) == 1, pad=True)


def cut_to_budget(
    lengths: np.ndarray, margins: np.ndarray, budget: int, dim: int
) -> np.ndarray:
    """Lengths with 0 for all rows but those of the largest margins that fit.

    Parameters
    ----------
    lengths : ndarray of int64, shape (n,)
        Lengths of the rows that are kept.
    margins : ndarray of float, shape (n,)
        What a row is worth; equal ones stay in the ids' order.
    budget : int
        At least the bytes of a single number.
    dim : int

    Returns
    -------
    ndarray of int64, shape (n,)

    Raises
    ------
    ValueError
        If a margin is NaN.

    Examples
    --------
    >>> kept = cut_to_budget(np.full(100, 2), np.arange(100), 500, dim=4)
    >>> int((kept > 0).sum()), kept[-3:].tolist()
    (51, [2, 2, 2])
    """
    if np.isnan(margins).any():
        raise ValueError("margins hold NaN: training diverged")
    if prefix_bytes(lengths, dim) <= budget:
        return lengths
    order = largest_first(margins)

    def cut(rows: int) -> np.ndarray:
        kept = np.zeros_like(lengths)
        kept[order[:rows]] = lengths[order[:rows]]
        return kept

    if prefix_bytes(cut(1), dim) > budget:
        return np.minimum(cut(1), 1)
    return cut(
        largest_fitting(1, len(order), lambda n: prefix_bytes(cut(n), dim) <= budget)
    )


def check_lengths(spec: TableSpec, lengths: np.ndarray) -> np.ndarray:
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
