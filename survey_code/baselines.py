"""The baselines: the full table, and the same table with fewer columns."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.checks import check_range
from survey_code.embedding import (
    CompressedEmbedding,
    Fitted,
    TrainingStep,
    as_float32,
    draw_normal,
    pick_rows,
)
from survey_code.layouts import DenseLayout, GroupedLayout, HashedLayout, Layout
from survey_code.layouts.grouped import grouped_bytes
from survey_code.layouts.hashed import plain_index
from survey_code.layouts.layout import as_finite_table
from survey_code.layouts.routed import keep_apart, most_apart
from survey_code.method import AfterTraining, Found, Task, Trained
from survey_code.options import Options, option, planned
from survey_code.order import most_frequent
from survey_code.spec import TableSpec

# The hash by which all ids of a field read its only row.
ONE_ROW = plain_index([(1, 1)])


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

    steady = True

    def __init__(self, num_embeddings: int, dim: int, std: float, seed: int) -> None:
        super().__init__(num_embeddings, dim)
        self.weight = nn.Parameter(draw_normal((num_embeddings, dim), std, seed))

    def embed(self, ids: Tensor) -> Tensor:
        """One row per id."""
        return pick_rows(ids, self.weight, sparse=self.regime.sparse)

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
    """How many columns are kept, and of which table."""

    columns: int = planned("columns to keep", low=1)
    matryoshka: bool = option(
        False, "train all columns, so that the first ones serve alone, and keep these"
    )


class UniformEmbedding(DenseTable, Trained[UniformOptions]):
    """The same table with fewer columns: what every clever method must beat.

    The network reads vectors of the smaller dimension; nothing projects them up.

    With `matryoshka` one table serves many budgets.  It has all columns while it
    learns, and each step adds up the losses of all `nested_widths`: with so many of the
    first columns, and zeros in place of the others.  The columns that fit the budget
    are kept; the network reads vectors of the full length, with zeros behind them.

    Notes
    -----
    Kusupati et al., "Matryoshka Representation Learning" (NeurIPS 2022).  They, too,
    add up the losses of widths that double; each width has a head of its own, or the
    first columns of a common one, which is what zeros come to here.
    """

    steady = True

    def __init__(self, spec: TableSpec, options: UniformOptions, seed: int = 0) -> None:
        check_range("columns", options.columns, 1, spec.embedding_dim)
        self.nested = options.matryoshka
        width = spec.embedding_dim if self.nested else options.columns
        super().__init__(spec.num_embeddings, width, spec.init_std, seed)
        self.columns, self.reading = options.columns, width
        self.steady = not self.nested
        self.step: TrainingStep | None = None  # the one that has begun

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: UniformOptions) -> Found:
        """The most columns whose rows fit into the budget."""
        columns, dim = options.columns, spec.embedding_dim
        if not options.matryoshka:
            return {"columns": plan_columns(spec, ratio, columns)}
        if columns is not None:
            check_range("columns", columns, 1, dim)
        kept = range(1, dim + 1) if columns is None else [columns]
        sizes = {width: padded_bytes(spec, width) for width in kept}
        budget = spec.require(ratio, smallest=min(sizes.values()))
        return {"columns": max(w for w, size in sizes.items() if size <= budget)}

    def validation_step(self, step: TrainingStep) -> None:
        """Hear of the step, whose loss is asked for again."""
        self.step = step if self.nested else None

    def penalty(self) -> Tensor:
        """The losses of all widths but the full one, which is the step's own."""
        step, self.step = self.step, None
        if step is None:
            return super().penalty()
        losses = []
        for width in nested_widths(self.embedding_dim)[:-1]:
            self.reading = width
            losses.append(step.loss())
        self.reading = self.embedding_dim
        return torch.stack(losses).sum() if losses else super().penalty()

    def embed(self, ids: Tensor) -> Tensor:
        """One row per id; of a nested one the columns of a width, and zeros."""
        rows = super().embed(ids)
        if not self.nested:
            return rows
        width = self.reading if self.training else self.columns
        return functional.pad(rows[..., :width], (0, self.embedding_dim - width))

    def freeze(self) -> Layout:
        """The columns that are kept."""
        if self.columns == self.weight.shape[1]:
            return super().freeze()
        rows = as_float32(self.weight[:, : self.columns])
        return GroupedLayout.from_tables([rows], [None], self.embedding_dim)


def padded_bytes(spec: TableSpec, columns: int) -> int:
    """Bytes of the first columns of a table, which are read with zeros behind them."""
    if columns == spec.embedding_dim:
        return spec.full_bytes
    return grouped_bytes([spec.num_embeddings], [columns], spec.embedding_dim, pad=True)


def nested_widths(dim: int) -> list[int]:
    """Widths that serve alone: the powers of two, and all columns.

    Examples
    --------
    >>> nested_widths(16), nested_widths(10)
    ([1, 2, 4, 8, 16], [1, 2, 4, 8, 10])
    """
    return [*(1 << power for power in range((dim - 1).bit_length())), dim]


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


class HeadOptions(Options):
    """How many of the ids that are read most have rows of their own."""

    ids: int | None = planned("ids with rows of their own", otherwise=0, low=0)


class HeadOnly(Trained[HeadOptions]):
    """Full rows for the ids that are read most, and one row a field for all others.

    The simplest way to spend bytes where reads are; what shares or shrinks the rows of
    rare ids must beat it.  Of ids that are read equally often, those of low numbers
    come first.

    Parameters
    ----------
    spec : TableSpec
        Its counts say who is read most.
    options : HeadOptions
    seed : int, default 0
    """

    steady = True
    rows: Tensor
    head: Tensor

    def __init__(self, spec: TableSpec, options: HeadOptions, seed: int = 0) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        fields = len(spec.field_starts) - 1
        ids = check_range("ids", options.ids, 0, spec.num_embeddings)
        head = most_frequent(spec.train_counts, ids)
        rows = len(head) + np.repeat(np.arange(fields), np.diff(spec.field_starts))
        rows[head] = np.arange(len(head))
        self.field_starts = spec.field_starts
        self.register_buffer("rows", torch.from_numpy(rows.astype(np.int64)))
        self.register_buffer("head", torch.from_numpy(head))
        shape = (len(head) + fields, spec.embedding_dim)
        self.weight = nn.Parameter(draw_normal(shape, spec.init_std, seed))

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: HeadOptions) -> Found:
        """As many rows as the budget holds beside the fields'."""
        own = 4 * spec.embedding_dim
        fixed = shared_bytes(spec)
        budget = spec.require(ratio, smallest=fixed) - fixed
        most = most_apart(spec.num_embeddings, own, budget)
        return {"ids": most if options.ids is None else options.ids}

    def embed(self, ids: Tensor) -> Tensor:
        """An id's own row, or its field's."""
        places = self.rows[ids]
        return pick_rows(places, self.weight, sparse=self.regime.sparse)

    @torch.no_grad()
    def inherit(self, old: Self) -> None:
        """The fields' rows as they are; the head's as their ids read them before."""
        own, shared = self.weight.split([len(self.head), len(self.field_starts) - 1])
        own.copy_(old.embed(self.head))
        shared.copy_(old.weight[len(old.head) :])

    def freeze(self) -> Layout:
        """The head's rows apart, and a row for each field."""
        weight, head = as_float32(self.weight), self.head.cpu().numpy()
        own, shared = np.split(weight, [len(head)])
        rest = share_by_field(shared, self.field_starts)
        return keep_apart(self.num_embeddings, head, own.copy(), rest)


def shared_bytes(spec: TableSpec) -> int:
    """Bytes of a layout of one row a field, in which each field says its rows."""
    fields = len(spec.field_starts) - 1
    row = 4 * spec.embedding_dim + ONE_ROW.nbytes
    return fields * (row + grouped_bytes([0], [0], spec.embedding_dim))


def share_by_field(rows: np.ndarray, field_starts: np.ndarray) -> Layout:
    """A layout of one row a field: float32 (fields, dim)."""
    dim = rows.shape[1]
    tables: list[np.ndarray | Layout] = [
        HashedLayout(row[None].copy(), ONE_ROW.copy(), int(size), dim, "sum")
        for row, size in zip(rows, np.diff(field_starts), strict=True)
    ]
    return GroupedLayout(tables, dim)


class PopularOptions(Options):
    """None: the counts say all."""


class Popular(Trained[PopularOptions]):
    """Everyone is shown the items that most have met; nothing is learnt.

    All users have the vector (1, 0), and items lie on the unit circle, the nearer to
    it the more pairs they stand in.

    Parameters
    ----------
    spec : TableSpec
        Its counts say how popular items are.
    options : PopularOptions, optional
    seed : int, default 0
        Not used.
    """

    learns_by_gradient = False
    rows: Tensor

    def __init__(
        self, spec: TableSpec, options: PopularOptions | None = None, seed: int = 0
    ) -> None:
        super().__init__(spec.num_embeddings, 2)
        counts = spec.train_counts[spec.field_starts[-2] :]
        kinds, place = np.unique(counts, return_inverse=True)
        nearness = (place + 1) / (len(kinds) + 1)
        rows = np.zeros((spec.num_embeddings, 2), np.float32)
        rows[:, 0] = 1
        rows[-len(counts) :] = np.stack([nearness, np.sqrt(1 - nearness**2)], axis=1)
        self.register_buffer("rows", torch.from_numpy(rows))

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: PopularOptions) -> Found:
        """Nothing to choose."""
        spec.require(ratio, smallest=8 * spec.num_embeddings)
        return {}

    def fit(self, task: Task) -> Fitted:
        """Put the network around the counts."""
        if task.model != "mf":
            raise ValueError(
                "popularity is compared as it is: model must be 'mf', got "
                f"{task.model!r}"
            )
        return task.surround(self)

    def embed(self, ids: Tensor) -> Tensor:
        """Where an id lies on the circle."""
        return self.rows[ids]

    def freeze(self) -> Layout:
        """Two columns."""
        return DenseLayout.from_weight(self.rows)


def as_table(weight: Any) -> DenseTable:
    """A dense table that holds the given (n, d) weights."""
    rows = as_finite_table(weight)
    table = DenseTable(0, rows.shape[1], 0.0, 0)
    table.num_embeddings = len(rows)
    table.weight = nn.Parameter(torch.from_numpy(rows.copy()))
    return table
