"""Lottery tickets: the table as it was first drawn, without what a search pruned."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import CompressedEmbedding, draw_normal
from survey_code.layouts import SparseLayout
from survey_code.layouts.sparse import default_block, most_entries, sparse_bytes
from survey_code.mixed_dimension.prefix import LengthOptions, PrefixEmbedding
from survey_code.options import option
from survey_code.spec import TableSpec


def draw_original(spec: TableSpec, seed: int) -> Tensor:
    """The entries with which a search begins, and its ticket again, (n, dim)."""
    shape = (spec.num_embeddings, spec.embedding_dim)
    return draw_normal(shape, spec.init_std, [seed, 0])


def plan_entries(spec: TableSpec, ratio: float, format: str = "float32") -> int:
    """How many single entries a budget pays for, with their places.

    Parameters
    ----------
    spec : TableSpec
    ratio : float
    format : {"float32", "float16"}
        Of the values.

    Raises
    ------
    ValueError
        If not even one fits.
    """
    rows, dim = spec.num_embeddings, spec.embedding_dim
    smallest = sparse_bytes(1, rows, dim, format, default_block(dim))
    return count_entries(spec, spec.require(ratio, smallest), format)


def count_entries(spec: TableSpec, budget: int, format: str = "float32") -> int:
    """Single entries that fit into so many bytes, with their places."""
    rows, dim = spec.num_embeddings, spec.embedding_dim
    return most_entries(budget, rows, dim, format, default_block(dim))


def keep_largest(scores: Tensor, keep: int) -> Tensor:
    """True for the largest scores; of equal ones, the first.

    Parameters
    ----------
    scores : Tensor, any shape
    keep : int
        How many, 0 or more; all where there are fewer scores.

    Examples
    --------
    >>> keep_largest(torch.tensor([2.0, 5.0, 2.0, 1.0]), 2).tolist()
    [True, True, False, False]
    """
    if keep >= scores.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    if keep < 1:
        return torch.zeros_like(scores, dtype=torch.bool)
    flat = scores.reshape(-1)
    edge = flat.kthvalue(flat.numel() - keep + 1).values  # the smallest kept
    kept = flat > edge
    ties = flat == edge
    missing = keep - kept.sum()
    return (kept | (ties & (ties.cumsum(0) <= missing))).reshape(scores.shape)


class TicketEmbedding(CompressedEmbedding):
    """A table in which only the entries under a mask exist; the others are zero.

    Parameters
    ----------
    spec : TableSpec
    mask : ndarray of bool, shape (num_embeddings, embedding_dim)
        The entries to train.
    format : {"float32", "float16"}
        Of the stored values.
    rewind : bool, default True
        Begin with the entries of `draw_original`, as the search did; otherwise
        with others.
    seed : int, default 0

    Raises
    ------
    ValueError
        If the mask is not such an array.
    """

    mask: Tensor

    def __init__(
        self,
        spec: TableSpec,
        mask: np.ndarray,
        format: str = "float32",
        rewind: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        kept = np.asarray(mask)
        shape = (spec.num_embeddings, spec.embedding_dim)
        if kept.dtype != bool or kept.shape != shape:
            raise ValueError(
                f"mask must be bool of shape {shape}, got {kept.dtype} of shape "
                f"{kept.shape}"
            )
        self.format = format
        self.register_buffer("mask", torch.from_numpy(kept.copy()))
        if rewind:
            weight = draw_original(spec, seed)
        else:
            weight = draw_normal(shape, spec.init_std, [seed, 9])
        self.weight = nn.Parameter(weight * self.mask)

    def embed(self, ids: Tensor) -> Tensor:
        """Rows with what is not under the mask blanked."""
        rows = functional.embedding(ids, self.weight, sparse=self.regime.sparse)
        return rows * self.mask[ids]

    def freeze(self) -> SparseLayout:
        """The entries under the mask."""
        weight = (self.weight * self.mask).detach().float()
        return SparseLayout.from_dense(weight, self.format)


class TicketOptions(LengthOptions):
    """Of a search that finds a length for every row of a ticket."""

    rewind: bool = option(True, "begin again with the entries of the search's start")


class PrefixTicket(PrefixEmbedding):
    """Rows of different lengths that begin as the search's rows did.

    Parameters
    ----------
    spec : TableSpec
    lengths : ndarray of integers, shape (num_embeddings,)
        Entries that each id keeps, 0 to embedding_dim.
    rewind : bool, default True
        Begin with the entries of `draw_original`, as the search did; otherwise
        with others.
    seed : int, default 0
    """

    def __init__(
        self, spec: TableSpec, lengths: np.ndarray, rewind: bool = True, seed: int = 0
    ) -> None:
        super().__init__(spec, lengths, seed)
        if rewind:
            group, _ = self.locate(torch.arange(self.num_embeddings))
            original = draw_original(spec, seed)
            for g, table in enumerate(self.tables):
                table.data = original[group == g, : table.shape[1]].clone()
