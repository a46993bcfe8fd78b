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
    check_range,
    draw_normal,
)
from survey_code.layouts import GroupedLayout
from survey_code.layouts.grouped import grouped_bytes
from survey_code.mixed_dimension.architecture_search.bilevel import choice_gradient
from survey_code.mixed_dimension.architecture_search.choices import (
    WARM_UP,
    check_positive,
    cut_by_frequency,
    search_epochs,
)
from survey_code.mixed_dimension.grouped import GroupedEmbedding, as_array
from survey_code.order import largest_first
from survey_code.spec import TableSpec


class ColumnMasks(CompressedEmbedding):
    """A full table behind a soft mask of each group: e_i = E_i * mask[group(i)].

    Parameters
    ----------
    spec : TableSpec
    group : ndarray of int64, shape (num_embeddings,)
    rate : float
        By how much an entry of a mask moves in one step, on average.
    decay : float
        Weight decay of the table.
    seed : int
    """

    group: Tensor

    def __init__(
        self, spec: TableSpec, group: np.ndarray, rate: float, decay: float, seed: int
    ) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        shape = (spec.num_embeddings, spec.embedding_dim)
        self.weight = nn.Parameter(draw_normal(shape, spec.init_std, [seed, 0]))
        self.mask = nn.Parameter(torch.ones(int(group.max()) + 1, spec.embedding_dim))
        self.register_buffer("group", torch.from_numpy(group), persistent=False)
        self.rate, self.decay = rate, decay

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The table; the masks learn from validation rows."""
        table = [self.weight]
        return [{"params": table, "lr": learning_rate, "weight_decay": self.decay}]

    def embed(self, ids: Tensor) -> Tensor:
        """Rows times their group's mask."""
        rows = functional.embedding(ids, self.weight, sparse=self.sparse_gradients)
        return rows * functional.embedding(self.group[ids], self.mask)

    def validation_step(self, step: TrainingStep) -> None:
        """After the warm-up, each mask moves along its gradient, divided by its
        mean size.
        """
        if step.progress < WARM_UP:
            return
        found = choice_gradient([self.mask], [], step.loss, step.validation_loss, 0.0)
        size = found[0].abs().mean(1, keepdim=True).clamp(min=1e-30)
        with torch.no_grad():
            self.mask.sub_(self.rate * found[0] / size).clamp_(0, 1)

    @torch.no_grad()
    def magnitudes(self) -> np.ndarray:
        """Mean size of the masked entries of each group's columns: (groups, dim)."""
        sums = torch.zeros_like(self.mask).index_add_(0, self.group, self.weight.abs())
        rows = torch.bincount(self.group, minlength=len(self.mask))
        return (self.mask * sums / rows[:, None]).cpu().numpy()


class AutoSrh(GroupedEmbedding):
    """Each frequency group keeps columns of its own (key ``autosrh``).

    Parameters
    ----------
    spec : TableSpec
    assignment : ndarray of integers, shape (num_embeddings,)
        Group of each id.
    kept : ndarray of bool, shape (groups, embedding_dim)
        What the search found: the columns of each group; the others are zero.
    seed : int, default 0

    Raises
    ------
    ValueError
        If `kept` is not such an array.

    Notes
    -----
    Cheng, Shen and Huang, "Differentiable Neural Input Search for Recommender
    Systems" (2020); Kong et al., "AutoSrh: An Embedding Dimensionality Search
    Framework for Tabular Data Prediction" (2023).  The papers prune single entries
    of the masked table; here whole columns of a group, so that no entry needs an
    index.
    """

    def __init__(
        self, spec: TableSpec, *, assignment: Any, kept: Any, seed: int = 0
    ) -> None:
        kept = np.asarray(kept)
        if kept.dtype != bool or kept.shape[1:] != (spec.embedding_dim,):
            raise ValueError(
                f"kept must be bool of shape (groups, {spec.embedding_dim}), got "
                f"{kept.dtype} of shape {kept.shape}"
            )
        super().__init__(spec, assignment, kept.sum(1), [seed, 0], pad=True)
        self.columns = [np.flatnonzero(row) for row in kept]

    def widen(self, short: Tensor, group: int) -> Tensor:
        """Short rows to their group's columns; zeros elsewhere."""
        places = torch.from_numpy(self.columns[group]).to(short.device)
        full = short.new_zeros(len(short), self.embedding_dim)
        return full.index_copy(1, places, short)

    def freeze(self) -> GroupedLayout:
        """The short rows, and the columns they belong to."""
        return GroupedLayout.from_tables(
            [as_array(table) for table in self.tables],
            [None] * len(self.widths),
            self.embedding_dim,
            None if self.group_of is None else self.group_of.cpu().numpy(),
            self.columns,
        )

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        groups: int = 10,
        mask_rate: float = 0.01,
        decay: float = 1e-5,
        search_epochs: int | None = None,
    ) -> dict[str, Any]:
        """The budget, and how to search."""
        check_range("groups", groups, 1, 256)
        check_positive(mask_rate=mask_rate)
        group = cut_by_frequency(spec, groups)
        rows = np.bincount(group)
        widths = np.zeros_like(rows)
        widths[rows.argmin()] = 1
        budget = spec.require(ratio, smallest=column_bytes(group, widths, spec))
        return {
            "budget": budget,
            "groups": groups,
            "mask_rate": mask_rate,
            "decay": decay,
            "search_epochs": search_epochs,
        }

    @classmethod
    def searching(
        cls, spec: TableSpec, options: dict[str, Any], seed: int
    ) -> ColumnMasks:
        """The table behind soft masks."""
        group = cut_by_frequency(spec, options["groups"])
        return ColumnMasks(spec, group, options["mask_rate"], options["decay"], seed)

    @classmethod
    def search(
        cls, task: Any, spec: TableSpec, options: dict[str, Any], seed: int
    ) -> dict[str, Any]:
        """Train table and masks; keep the columns of the largest magnitude."""
        table = cls.searching(spec, options, seed)
        task.train(table, **search_epochs(task, options["search_epochs"]))
        group = table.group.cpu().numpy()
        kept = keep_columns(table.magnitudes(), group, spec, options["budget"])
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
