"""Lottery tickets: the table as it was first drawn, without what a search pruned."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.checks import check_range
from survey_code.embedding import CompressedEmbedding, draw_normal, pick_rows
from survey_code.layouts import SparseLayout
from survey_code.layouts.sparse import default_block, most_entries, sparse_bytes
from survey_code.mixed_dimension.prefix import LengthOptions, PrefixEmbedding
from survey_code.options import option
from survey_code.spec import TableSpec


def draw_original(spec: TableSpec, seed: int) -> Tensor:
    """The entries with which a search begins, and its ticket again, (n, dim)."""
    shape = (spec.num_embeddings, spec.embedding_dim)
    return draw_normal(shape, spec.init_std, [seed, 0])


def plan_entries(
    spec: TableSpec, ratio: float, format: str = "float32", keep: int | None = None
) -> int:
    """How many single entries a budget pays for, with their places.

    Parameters
    ----------
    spec : TableSpec
    ratio : float
    format : {"float32", "float16"}
        Of the values.
    keep : int, optional
        So many and no more, if they fit.

    Raises
    ------
    ValueError
        If not even one fits, or not as many as were asked for.
    """
    rows, dim = spec.num_embeddings, spec.embedding_dim
    if keep is not None:
        check_range("keep", keep, 0, rows * dim)
    least = 1 if keep is None else keep
    smallest = sparse_bytes(least, rows, dim, format, default_block(dim))
    most = count_entries(spec, spec.require(ratio, smallest), format)
    return most if keep is None else keep


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

    Raises
    ------
    ValueError
        If a score is NaN.

    Examples
    --------
    >>> keep_largest(torch.tensor([2.0, 5.0, 2.0, 1.0]), 2).tolist()
    [True, True, False, False]
    """
    if bool(torch.isnan(scores).any()):
        raise ValueError("the entries to choose from hold NaN: training diverged")
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


def check_mask(spec: TableSpec, mask: np.ndarray) -> np.ndarray:
    """A copy of a mask of a table's entries, or one clear ValueError."""
    kept = np.asarray(mask)
    shape = (spec.num_embeddings, spec.embedding_dim)
    if kept.dtype != bool or kept.shape != shape:
        raise ValueError(
            f"mask must be bool of shape {shape}, got {kept.dtype} of shape "
            f"{kept.shape}"
        )
    return kept.copy()


class CutOptions(Protocol):
    """What `LargestEntries` reads of a method's options."""

    @property
    def keep(self) -> int | None: ...  # noqa: D102
    @property
    def decay(self) -> float: ...  # noqa: D102
    @property
    def format(self) -> str: ...  # noqa: D102


def start_rows(spec: TableSpec, rows: np.ndarray) -> Tensor:
    """A copy of rows to begin with, or one clear ValueError."""
    given, shape = np.asarray(rows), (spec.num_embeddings, spec.embedding_dim)
    if given.dtype.kind != "f" or given.shape != shape:
        raise ValueError(
            f"the rows to begin with must be floats of shape {shape}, got "
            f"{given.dtype} of shape {given.shape}"
        )
    return torch.from_numpy(given.astype(np.float32))


def as_stored(rows: Tensor, format: str) -> Tensor:
    """Rows as a layout of a format reads them."""
    return rows.half().to(rows) if format == "float16" else rows


class LargestEntries(CompressedEmbedding):
    """A full table that decays while it learns, and deploys its largest entries.

    Parameters
    ----------
    spec : TableSpec
    options : Options
        With `keep`, `decay` and `format`, and `by_reads` where entries may be weighted.
    seed : int, default 0

    Attributes
    ----------
    mask : Tensor of bool, optional
        The only entries that exist, once that is settled.
    """

    mask: Tensor | None

    steady = True

    def __init__(self, spec: TableSpec, options: CutOptions, seed: int = 0) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.weight = nn.Parameter(draw_original(spec, seed))
        self.register_buffer("mask", None)
        full = self.weight.numel()
        self.keep = full if options.keep is None else options.keep
        check_range("keep", self.keep, 0, full)
        self.decay, self.format = options.decay, options.format
        reads = getattr(options, "by_reads", False)
        roots = np.sqrt(spec.train_counts)[:, None] if reads else None
        self.roots = None if roots is None else torch.from_numpy(roots)
        self.deployed: tuple[tuple[int, int], Tensor] | None = None

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The table, with its decay."""
        table = [self.weight]
        return [{"params": table, "lr": learning_rate, "weight_decay": self.decay}]

    @torch.no_grad()
    def largest(self, keep: int) -> Tensor:
        """Where so many of the largest entries are, of equal ones the first."""
        sizes = self.weight.abs()
        if self.roots is not None:
            sizes *= self.roots.to(sizes)
        return keep_largest(sizes, keep)

    def final_mask(self) -> Tensor:
        """The entries that are deployed."""
        return self.largest(self.keep) if self.mask is None else self.mask

    def embed(self, ids: Tensor) -> Tensor:
        """Rows as they are; in eval mode, what would be deployed now."""
        rows = pick_rows(ids, self.weight, sparse=self.regime.sparse)
        rows = rows if self.training else as_stored(rows, self.format)
        if self.mask is not None:
            return rows * self.mask[ids]
        if self.training:
            self.deployed = None
            return rows
        # The mask takes a pass over the table: once, until the weight changes.
        version = (self.weight._version, self.weight.data_ptr())
        if self.deployed is None or self.deployed[0] != version:
            self.deployed = version, self.final_mask()
        return rows * self.deployed[1][ids]

    def freeze(self) -> SparseLayout:
        """The entries that are deployed."""
        weight = (self.weight * self.final_mask()).detach().float()
        return SparseLayout.from_dense(weight, self.format)


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

    steady = True

    def __init__(
        self,
        spec: TableSpec,
        mask: np.ndarray,
        format: str = "float32",
        rewind: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.format = format
        self.register_buffer("mask", torch.from_numpy(check_mask(spec, mask)))
        if rewind:
            weight = draw_original(spec, seed)
        else:
            weight = draw_normal(tuple(self.mask.shape), spec.init_std, [seed, 9])
        self.weight = nn.Parameter(weight * self.mask)

    def embed(self, ids: Tensor) -> Tensor:
        """Rows with what is not under the mask blanked."""
        rows = pick_rows(ids, self.weight, sparse=self.regime.sparse)
        rows = rows if self.training else as_stored(rows, self.format)
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
    kept : ndarray of float32, shape (num_embeddings, embedding_dim), optional
        Begin with these instead of `draw_original`, if at all.

    Raises
    ------
    ValueError
        If `kept` has another shape.
    """

    def __init__(
        self,
        spec: TableSpec,
        lengths: np.ndarray,
        rewind: bool = True,
        seed: int = 0,
        kept: np.ndarray | None = None,
    ) -> None:
        super().__init__(spec, lengths, seed)
        if rewind:
            group, _ = self.locate(torch.arange(self.num_embeddings))
            original = (
                draw_original(spec, seed) if kept is None else start_rows(spec, kept)
            )
            for g, table in enumerate(self.tables):
                table.data = original[group == g, : table.shape[1]].clone()
