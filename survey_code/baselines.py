"""The baselines: the full table, and the same table with fewer columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.checks import check_range
from survey_code.embedding import CompressedEmbedding, draw_normal
from survey_code.layouts import DenseLayout, Layout
from survey_code.layouts.layout import as_finite_table
from survey_code.method import AfterTraining, Found, Trained
from survey_code.options import Options, planned
from survey_code.spec import TableSpec


class DenseTable(CompressedEmbedding):
    """Float32 rows, one for each id.

    Parameters
    ----------
    num_embeddings, dim : int
    std : float
        The entries are drawn from N(0, std**2) by a NumPy generator, so that they are
        the same on every machine.
    seed : int
    """

    def __init__(self, num_embeddings: int, dim: int, std: float, seed: int) -> None:
        super().__init__(num_embeddings, dim)
        self.weight = nn.Parameter(draw_normal((num_embeddings, dim), std, seed))

    def embed(self, ids: Tensor) -> Tensor:
        """One row per id."""
        return functional.embedding(ids, self.weight, sparse=self.regime.sparse)

    def freeze(self) -> Layout:
        """The rows, as they are."""
        return DenseLayout.from_weight(self.weight)


class FullOptions(Options):
    """None: the table has one size."""


class FullEmbedding(DenseTable, Trained[FullOptions], AfterTraining[FullOptions]):
    """The uncompressed table: one float32 row per id.  The baseline.

    Parameters
    ----------
    spec : TableSpec
    options : FullOptions, optional
    seed : int, default 0
    """

    def __init__(
        self, spec: TableSpec, options: FullOptions | None = None, seed: int = 0
    ) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim, spec.init_std, seed)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: FullOptions) -> Found:
        """Nothing to choose."""
        spec.require(ratio, smallest=spec.full_bytes)
        return {}

    @classmethod
    def compress(
        cls, weight: np.ndarray, spec: TableSpec, options: FullOptions
    ) -> Layout:
        """The table as it is."""
        return DenseLayout.from_weight(weight)


class UniformOptions(Options):
    """How many columns are kept."""

    columns: int = planned("columns to keep", low=1)


class UniformEmbedding(DenseTable, Trained[UniformOptions]):
    """The same table with fewer columns: what every clever method must beat.

    The network reads vectors of the smaller dimension; nothing projects them up.
    """

    def __init__(self, spec: TableSpec, options: UniformOptions, seed: int = 0) -> None:
        check_range("columns", options.columns, 1, spec.embedding_dim)
        super().__init__(spec.num_embeddings, options.columns, spec.init_std, seed)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: UniformOptions) -> Found:
        """The most columns whose rows fit into the budget."""
        return {"columns": plan_columns(spec, ratio, options.columns)}


def plan_columns(spec: TableSpec, ratio: float, columns: int | None) -> int:
    """The most float32 columns that fit into a budget, or those that were asked for.

    Raises
    ------
    OutOfReach
        If they do not fit.
    """
    column = 4 * spec.num_embeddings
    if columns is not None:
        check_range("columns", columns, 1, spec.embedding_dim)
    budget = spec.require(ratio, smallest=column * (columns or 1))
    return columns or min(budget // column, spec.embedding_dim)


def as_table(weight: Any) -> DenseTable:
    """A dense table that holds the given (n, d) weights."""
    rows = as_finite_table(weight)
    table = DenseTable(0, rows.shape[1], 0.0, 0)
    table.num_embeddings = len(rows)
    table.weight = nn.Parameter(torch.from_numpy(rows.copy()))
    return table
