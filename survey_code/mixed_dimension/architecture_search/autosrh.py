"""AutoSrh (DNIS): a soft mask over the columns of each frequency group."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import (
    CompressedEmbedding,
    TrainingStep,
    draw_normal,
    pick_rows,
)
from survey_code.layouts.grouped import MAX_GROUPS, grouped_bytes
from survey_code.method import Found, Judge, Searched
from survey_code.mixed_dimension.architecture_search.bilevel import choice_gradient
from survey_code.mixed_dimension.grouped import GroupedEmbedding
from survey_code.mixed_dimension.search import WARM_UP, cut_by_frequency
from survey_code.options import SearchOptions, found, option
from survey_code.order import largest_first
from survey_code.spec import TableSpec


class AutoSrhOptions(SearchOptions):
    """Options of `AutoSrh`."""

    groups: int = option(
        10, "groups of equally frequent ids",
        low=1, high=MAX_GROUPS, tune=(10, 5, 20),
    )  # fmt: skip
    decay: float = option(
        1e-5, "weight decay of the searching table", low=0, tune=(1e-5, 0.0, 1e-4)
    )
    l1: float = option(
        1e-5, "factor of the sum of all entries of the masks", low=0,
        tune=(1e-5, 0.0, 1e-4),
    )  # fmt: skip
    mask_rate: float = option(
        0.01, "by how much an entry of a mask moves in one step, on average",
        above=0, tune=(0.01, 0.03),
    )  # fmt: skip
    assignment: np.ndarray = found("group of each id")
    kept: np.ndarray = found("whether a group keeps a column, (groups, dim)")


class ColumnMasks(CompressedEmbedding):
    """A full table behind a soft mask of each group: e_i = E_i * mask[group(i)]."""

    gauges = ("mask",)

    group: Tensor

    def __init__(self, spec: TableSpec, options: AutoSrhOptions, seed: int) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        group = cut_by_frequency(spec, options.groups)
        shape = (spec.num_embeddings, spec.embedding_dim)
        self.weight = nn.Parameter(draw_normal(shape, spec.init_std, [seed, 0]))
        self.mask = nn.Parameter(torch.ones(int(group.max()) + 1, spec.embedding_dim))
        self.register_buffer("group", torch.from_numpy(group), persistent=False)
        self.rate, self.decay = options.mask_rate, options.decay
        self.l1 = options.l1

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The table; the masks learn from validation rows."""
        table = [self.weight]
        return [{"params": table, "lr": learning_rate, "weight_decay": self.decay}]

    def embed(self, ids: Tensor) -> Tensor:
        """Rows times their group's mask."""
        rows = pick_rows(ids, self.weight, sparse=self.regime.sparse)
        return rows * pick_rows(self.group[ids], self.mask)

    def validation_step(self, step: TrainingStep) -> None:
        """After the warm-up, each mask moves along its gradient, that of its sum
        included, divided by its mean size.
        """
        if step.progress < WARM_UP:
            return
        found = choice_gradient([self.mask], [], step.loss, step.validation_loss, 0.0)
        # No entry is negative: the derivative of its absolute value is 1.
        slope = found[0] + self.l1
        size = slope.abs().mean(1, keepdim=True).clamp(min=1e-30)
        with torch.no_grad():
            self.mask.sub_(self.rate * slope / size).clamp_(0, 1)

    @torch.no_grad()
    def magnitudes(self) -> np.ndarray:
        """Mean size of the masked entries of each group's columns: (groups, dim)."""
        sums = torch.zeros_like(self.mask).index_add_(0, self.group, self.weight.abs())
        rows = torch.bincount(self.group, minlength=len(self.mask))
        return (self.mask * sums / rows[:, None]).cpu().numpy()


class AutoSrh(GroupedEmbedding, Searched[AutoSrhOptions, ColumnMasks]):
    """Each frequency group keeps columns of its own (key ``autosrh``).

    Parameters
    ----------
    spec : TableSpec
    options : AutoSrhOptions
        The columns that are not kept are zero.
    seed : int, default 0

    Raises
    ------
    ValueError
        If `options.kept` is not bool, or has another shape.

    Notes
    -----
    Cheng, Shen and Huang, "Differentiable Neural Input Search for Recommender
    Systems" (2020); Kong et al., "AutoSrh: An Embedding Dimensionality Search
    Framework for Tabular Data Prediction" (2023).  The papers prune single entries
    of the masked table; here whole columns of a group, so that no entry needs an
    index, and the table is drawn anew.
    """

    def __init__(self, spec: TableSpec, options: AutoSrhOptions, seed: int = 0) -> None:
        kept = np.asarray(options.kept)
        if kept.dtype != bool or kept.shape[1:] != (spec.embedding_dim,):
            raise ValueError(
                f"kept must be bool of shape (groups, {spec.embedding_dim}), got "
                f"{kept.dtype} of shape {kept.shape}"
            )
        super().__init__(spec, options.assignment, kept.sum(1), [seed, 0], pad=True)
        self.columns: list[np.ndarray] = [np.flatnonzero(row) for row in kept]
        # Where each column stands in a short row; behind its end where it does not.
        places = np.where(kept, kept.cumsum(1) - 1, kept.sum(1, keepdims=True))
        self.places: Tensor
        self.register_buffer("places", torch.from_numpy(places), persistent=False)

    def widen(self, short: Tensor, group: int) -> Tensor:
        """Short rows to their group's columns; zeros elsewhere."""
        return functional.pad(short, (0, 1)).index_select(1, self.places[group])

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: AutoSrhOptions) -> Found:
        """The budget, which must hold a column of the smallest group."""
        group = cut_by_frequency(spec, options.groups)
        rows = np.bincount(group)
        one = np.arange(len(rows)) == rows.argmin()
        return {"budget": spec.require(ratio, smallest=column_bytes(group, one, spec))}

    @classmethod
    def settle(
        cls, table: ColumnMasks, judge: Judge, spec: TableSpec, options: AutoSrhOptions
    ) -> Found:
        """The columns of the largest magnitude."""
        magnitudes, group = table.magnitudes(), table.group.cpu().numpy()
        kept = keep_columns(magnitudes, group, spec, options.budget)
        return {"assignment": group, "kept": kept}


def keep_columns(
    magnitudes: np.ndarray, group: np.ndarray, spec: TableSpec, budget: int
) -> np.ndarray:
    """The columns of the largest magnitude that fit, in that order.

    The first column of every group comes before all others, if the budget admits so
    many: ids without columns are all alike.  A column that no longer fits is passed
    over, and smaller ones after it may fit.

    Returns
    -------
    ndarray of bool, shape (groups, dim)
    """
    kept = np.zeros(magnitudes.shape, dtype=bool)
    if column_bytes(group, np.ones(len(kept), np.int64), spec) <= budget:
        magnitudes = magnitudes.copy()
        magnitudes[np.arange(len(kept)), magnitudes.argmax(1)] = np.inf
    order = largest_first(magnitudes, axis=None)
    for g, column in zip(*np.unravel_index(order, kept.shape)):
        kept[g, column] = True
        if column_bytes(group, kept.sum(1), spec) > budget:
            kept[g, column] = False
    return kept


def column_bytes(group: np.ndarray, widths: np.ndarray, spec: TableSpec) -> int:
    """Bytes of the frozen table."""
    rows = np.bincount(group, minlength=len(widths)).tolist()
    ranges = bool((np.diff(group) >= 0).all())
    return grouped_bytes(rows, widths.tolist(), spec.embedding_dim, ranges, pad=True)
