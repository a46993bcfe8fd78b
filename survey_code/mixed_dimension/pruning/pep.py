"""PEP: a soft threshold that is learnt, and what survives it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import CompressedEmbedding, TrainingStep
from survey_code.layouts.sparse import default_block, most_entries
from survey_code.mixed_dimension.architecture_search.choices import (
    check_positive,
    search_epochs,
)
from survey_code.mixed_dimension.pruning.tickets import (
    TicketEmbedding,
    check_decay,
    draw_original,
    keep_largest,
    plan_entries,
)
from survey_code.spec import TableSpec

GRANULARITIES = ("global", "dimension", "feature", "feature_dimension")


def soft_threshold(values: Tensor, threshold: Tensor) -> Tensor:
    r"""Shrink values towards zero by a threshold t, and stop there.

    The result is :math:`\operatorname{sign}(v) \max(|v| - t, 0)`.

    Examples
    --------
    >>> soft_threshold(torch.tensor([-3.0, 0.5, 2.0]), torch.tensor(1.0)).tolist()
    [-2.0, 0.0, 1.0]
    """
    return values.sign() * (values.abs() - threshold).relu()


class BudgetReached(Exception):
    """Ends a search as soon as few enough entries are left."""


class ThresholdTable(CompressedEmbedding):
    """A full table behind a soft threshold, sigmoid(s), that is learnt with it.

    Parameters
    ----------
    spec : TableSpec
    granularity : {"global", "dimension", "feature", "feature_dimension"}
        Whether all entries share an s, those of a column, of a row, or none.
    start : float
        First value of s.  Below about -88 its sigmoid is 0 in float32, and s learns
        nothing from the loss: only decay moves it.
    decay : float
        Weight decay of table and s.  It is what moves s up from its start.
    travel : float
        How far s may go in the search.
    keep : int
        Entries at which the search ends.
    seed : int
    """

    def __init__(
        self,
        spec: TableSpec,
        granularity: str,
        start: float,
        decay: float,
        travel: float,
        keep: int,
        seed: int,
    ) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.weight = nn.Parameter(draw_original(spec, seed))
        rows = spec.num_embeddings if "feature" in granularity else 1
        columns = spec.embedding_dim if "dimension" in granularity else 1
        self.s = nn.Parameter(torch.full((rows, columns), start))
        self.decay, self.travel, self.keep = decay, travel, keep
        self.steps = 1000  # of the search, which sets it
        self.ends = False  # whether to raise at the budget; the search does

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Table and thresholds; with Adam, s moves by up to one rate a step."""
        pace = self.travel / self.steps
        return [
            {"params": [self.weight], "lr": learning_rate, "weight_decay": self.decay},
            {"params": [self.s], "lr": pace, "weight_decay": self.decay},
        ]

    def embed(self, ids: Tensor) -> Tensor:
        """Rows behind their thresholds."""
        rows = functional.embedding(ids, self.weight)
        s = functional.embedding(ids, self.s) if len(self.s) > 1 else self.s
        return soft_threshold(rows, torch.sigmoid(s))

    @torch.no_grad()
    def margins(self) -> Tensor:
        """By how much each entry exceeds its threshold, (n, dim)."""
        return self.weight.abs() - torch.sigmoid(self.s)

    def after_step(self, step: TrainingStep) -> None:
        """End the search once the budget is reached."""
        if self.ends and int((self.margins() > 0).sum()) <= self.keep:
            raise BudgetReached


class PEP(TicketEmbedding):
    """The entries that survived a learnt soft threshold (key ``pep``).

    Notes
    -----
    Liu et al., "Learnable Embedding Sizes for Recommender Systems" (ICLR 2021).  The
    paper stops when the entries that are left fit a budget, and so does this; if the
    budget is not reached in time, or overshot by the last step, the entries with the
    largest margins fill it.
    """

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        granularity: str = "feature_dimension",
        start: float = -15.0,
        decay: float = 1e-5,
        travel: float = 20.0,
        format: str = "float32",
        rewind: bool = True,
        search_epochs: int | None = None,
    ) -> dict[str, Any]:
        """The budget, and how to search."""
        if granularity not in GRANULARITIES:
            raise ValueError(
                f"granularity must be one of {GRANULARITIES}, got {granularity!r}"
            )
        check_positive(travel=travel)
        if not (isinstance(start, int | float) and -745 < start < 0):
            raise ValueError(f"start must lie between -745 and 0, got {start!r}")
        check_decay(decay)
        plan_entries(spec, ratio, format)
        return {
            "budget": spec.budget(ratio),
            "granularity": granularity,
            "start": float(start),
            "decay": decay,
            "travel": travel,
            "format": format,
            "rewind": rewind,
            "search_epochs": search_epochs,
        }

    @classmethod
    def searching(
        cls, spec: TableSpec, options: dict[str, Any], seed: int
    ) -> ThresholdTable:
        """The table behind thresholds."""
        rows, dim = spec.num_embeddings, spec.embedding_dim
        keep = most_entries(
            options["budget"], rows, dim, options["format"], default_block(dim)
        )
        return ThresholdTable(
            spec,
            options["granularity"],
            options["start"],
            options["decay"],
            options["travel"],
            keep,
            seed,
        )

    @classmethod
    def search(
        cls, task: Any, spec: TableSpec, options: dict[str, Any], seed: int
    ) -> dict[str, Any]:
        """Train until few enough entries are left."""
        table = cls.searching(spec, options, seed)
        epochs = search_epochs(task, options["search_epochs"])
        objective = task.build_objective(task.trial.settings)
        table.steps, table.ends = epochs["epochs"] * objective.steps, True
        try:
            task.train(table, **epochs)
        except BudgetReached:
            pass
        mask = keep_largest(table.margins(), table.keep).cpu().numpy()
        return {"mask": mask, "format": options["format"], "rewind": options["rewind"]}
