"""CERP: two shared codebooks, both pruned; rows are sums of what is left of two."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.budget import largest_fitting
from survey_code.embedding import as_float32, pick_rows
from survey_code.layouts import HashedLayout, SparseLayout
from survey_code.layouts.hashed import plain_index, table_starts
from survey_code.layouts.sparse import (
    FORMATS,
    default_block,
    most_entries,
    sparse_bytes,
)
from survey_code.method import Found, Judge, Searched
from survey_code.mixed_dimension.pruning.pep import Thresholded, soft_threshold
from survey_code.mixed_dimension.pruning.tickets import keep_largest
from survey_code.options import SearchOptions, found, option, planned
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import (
    INDEX_BYTES,
    MOST_ROWS,
    HashedEmbedding,
)


class CERPOptions(SearchOptions):
    """Options of `CERP`."""

    rows: int = planned("rows of each codebook", low=1, high=MOST_ROWS)
    density: float = option(
        0.5, "share of the codebooks' entries that is planned to be left",
        above=0, high=1, tune=(0.5, 0.25),
    )  # fmt: skip
    pull: float = option(
        1e-3, "weight of what keeps a pair's entries from vanishing together", low=0
    )
    fade: float = option(10.0, "how often that weight halves in the search", low=0)
    start: float = option(
        -15.0, "first s of the threshold sigmoid(s)", above=-745, below=0
    )
    decay: float = option(
        1e-5, "weight decay of codebooks and s, which moves s up", low=0, below=1
    )
    travel: float = option(20.0, "how far s may go in the search", above=0)
    format: str = option("float32", "of the stored values", choices=FORMATS)
    rewind: bool = option(True, "begin again with the entries of the search's start")
    mask: np.ndarray = found("the entries to train, bool of shape (2 * rows, dim)")


class ThresholdBooks(Thresholded, HashedEmbedding):
    """Two full codebooks behind soft thresholds, which are learnt with them."""

    SHARPNESS = 100.0  # of the step between an entry that is there and one that is not

    def __init__(self, spec: TableSpec, options: CERPOptions, seed: int) -> None:
        index = pair_index(spec.num_embeddings, options.rows)
        super().__init__(spec, index, "sum", [seed, 0])
        self.s = nn.Parameter(torch.full_like(self.values, options.start))
        self.decay, self.travel = options.decay, options.travel
        self.keep = count_left(spec, options.rows, options.budget, options.format)
        self.pull, self.fade = options.pull, options.fade
        self.progress = 0.0
        self.read: list[Tensor] = []

    @property
    def entries(self) -> nn.Parameter:
        """What the thresholds stand before."""
        return self.values

    def read_parts(self, ids: Tensor, digits: list[Tensor]) -> list[Tensor]:
        """A row of each codebook, behind its thresholds."""
        parts = []
        for digit, start in zip(digits, table_starts(self.index)):
            rows = pick_rows(digit + start, self.values)
            s = pick_rows(digit + start, self.s)
            parts.append(soft_threshold(rows, torch.sigmoid(s)))
        return parts

    def embed(self, ids: Tensor) -> Tensor:
        """Sums of two rows."""
        rows = super().embed(ids)
        if self.training:
            self.read.append(rows)
        return rows

    def advance(self, progress: float) -> None:
        """How far the search has come, from 0 to 1."""
        self.progress = progress

    def penalty(self) -> Tensor:
        r"""The fewer entries of a sum vanish, the better: the mean of
        :math:`-\tanh^2(100 e)` over the rows just read, with a weight that fades.
        """
        read, self.read = self.read, []
        if not read:
            return torch.zeros(())
        weight = self.pull * 0.5 ** (self.fade * self.progress)
        there = [torch.tanh(self.SHARPNESS * rows).square().mean() for rows in read]
        return -weight * torch.stack(there).mean()


class CERP(HashedEmbedding, Searched[CERPOptions, ThresholdBooks]):
    r"""Pruned codebooks of which each id adds two rows (key ``cerp``).

    Id i reads row i mod m of the first codebook and row i div ceil(n / m) of the
    second, so that no two ids read the same pair.  The search learns soft thresholds
    with the codebooks, until as many entries are left as the budget pays for; these
    are trained anew.  They are stored as a sparse layout within a hashed one.

    Notes
    -----
    Liang et al., "Learning Compact Compositional Embeddings via Regularized Pruning
    for Recommendation" (ICDM 2023).  We implement the penalty on the rows of a batch,
    and stop the search at the budget.  The penalty's weight halves `fade` times in a
    search of any length (theirs once an epoch), and the thresholds move at a rate set
    by how far s is to go, as in `PEP`.
    """

    mask: Tensor

    def __init__(self, spec: TableSpec, options: CERPOptions, seed: int = 0) -> None:
        index = pair_index(spec.num_embeddings, options.rows)
        super().__init__(spec, index, "sum", [seed, 0 if options.rewind else 9])
        kept, shape = np.asarray(options.mask), tuple(self.values.shape)
        if kept.dtype != bool or kept.shape != shape:
            raise ValueError(
                f"mask must be bool of shape {shape}, got {kept.dtype} of shape "
                f"{kept.shape}"
            )
        self.format = options.format
        self.register_buffer("mask", torch.from_numpy(kept.copy()))
        self.values.data *= self.mask

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: CERPOptions) -> Found:
        """The largest codebooks of which the planned share of entries fits."""

        def size(rows: int, share: float = options.density) -> int:
            kept = max(int(share * 2 * rows * spec.embedding_dim), 1)
            return books_bytes(spec, rows, kept, options.format)

        least = options.rows or math.isqrt(spec.num_embeddings - 1) + 1
        pair_index(spec.num_embeddings, least)  # complains of too few rows
        budget = spec.require(ratio, smallest=size(least, 0.0))
        most = options.rows or spec.num_embeddings
        rows = largest_fitting(least, most, lambda rows: size(rows) <= budget)
        return {"rows": rows, "budget": budget}

    @classmethod
    def settle(
        cls, table: ThresholdBooks, judge: Judge, spec: TableSpec, options: CERPOptions
    ) -> Found:
        """The entries with the largest margins."""
        return {"mask": keep_largest(table.margins(), table.keep).cpu().numpy()}

    def read_parts(self, ids: Tensor, digits: list[Tensor]) -> list[Tensor]:
        """A row of each codebook, with what is not under the mask blanked."""
        places = [d + start for d, start in zip(digits, table_starts(self.index))]
        parts = super().read_parts(ids, digits)
        return [part * self.mask[place] for part, place in zip(parts, places)]

    def freeze(self) -> HashedLayout:
        """The entries under the mask, and how an id finds its two rows."""
        books = SparseLayout.from_dense(
            as_float32(self.values * self.mask), self.format
        )
        shape = (self.num_embeddings, self.embedding_dim)
        return HashedLayout(books, self.index.copy(), *shape, "sum")


def pair_index(ids: int, rows: int) -> np.ndarray:
    """Digits of ids: the remainder by `rows`, and in which of `rows` ranges it lies.

    Raises
    ------
    ValueError
        If two ids would have both in common.
    """
    if rows * rows < ids:
        raise ValueError(
            f"rows must be at least {math.isqrt(ids - 1) + 1} to tell {ids:,} ids "
            f"apart, got {rows}"
        )
    return plain_index([(1, rows), (-(-ids // rows), rows)])


def books_bytes(spec: TableSpec, rows: int, kept: int, format: str) -> int:
    """Bytes of two codebooks of so many rows with `kept` entries together."""
    dim = spec.embedding_dim
    stored = sparse_bytes(kept, 2 * rows, dim, format, default_block(dim))
    return stored + 2 * INDEX_BYTES


def count_left(spec: TableSpec, rows: int, budget: int, format: str) -> int:
    """Entries of two codebooks that a budget pays for."""
    dim = spec.embedding_dim
    left = budget - 2 * INDEX_BYTES
    return most_entries(left, 2 * rows, dim, format, default_block(dim))
