"""PEP: a soft threshold that is learnt, and what survives it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.embedding import CompressedEmbedding, TrainingStep, pick_rows
from survey_code.layouts.sparse import FORMATS
from survey_code.method import Found, Judge, Searched
from survey_code.mixed_dimension.pruning.tickets import (
    TicketEmbedding,
    count_entries,
    draw_original,
    keep_largest,
    plan_entries,
)
from survey_code.options import SearchOptions, found, option
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


class PEPOptions(SearchOptions):
    """Options of `PEP`."""

    granularity: str = option(
        "feature_dimension",
        "whether all entries share a threshold, those of a column, of a row, or none",
        choices=GRANULARITIES,
    )
    # Below about -88 the sigmoid of s is 0 in float32, and s learns nothing from the
    # loss: only decay moves it.
    start: float = option(
        -15.0, "first s of the threshold sigmoid(s)", above=-745, below=0
    )
    decay: float = option(
        1e-5,
        "weight decay of table and s, which moves s up from its start",
        low=0, below=1, tune=(1e-5, 1e-6, 1e-4),
    )  # fmt: skip
    travel: float = option(
        20.0, "how far s may go in the search", above=0, tune=(20.0, 17.0)
    )
    format: str = option("float32", "of the stored values", choices=FORMATS)
    rewind: bool = option(True, "begin again with the entries of the search's start")
    mask: np.ndarray = found("the entries to train, bool of the table's shape")


class Thresholded(CompressedEmbedding):
    """Entries behind soft thresholds sigmoid(s), learnt with them until few are left.

    A subclass has the parameters `entries` and `s`, of shapes that fit.

    Attributes
    ----------
    decay : float
        Weight decay of both, which moves s up.
    travel : float
        How far s may go in the search.
    keep : int
        Entries at which the search ends.
    """

    gauges = ("s",)

    s: nn.Parameter
    decay: float
    travel: float
    keep: int

    @property
    def entries(self) -> nn.Parameter:
        """What the thresholds stand before."""
        raise NotImplementedError

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Entries and thresholds; with Adam, s moves by up to one rate a step."""
        pace, decay = self.travel / self.regime.steps, self.decay
        return [
            {"params": [self.entries], "lr": learning_rate, "weight_decay": decay},
            {"params": [self.s], "lr": pace, "weight_decay": decay},
        ]

    @torch.no_grad()
    def margins(self) -> Tensor:
        """By how much each entry exceeds its threshold, the entries' shape."""
        return self.entries.abs() - torch.sigmoid(self.s)

    def after_step(self, step: TrainingStep) -> None:
        """End the search once the budget is reached."""
        if int((self.margins() > 0).sum()) <= self.keep:
            step.stop()


class ThresholdTable(Thresholded):
    """A full table behind soft thresholds."""

    steady = True

    def __init__(self, spec: TableSpec, options: PEPOptions, seed: int) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.weight = nn.Parameter(draw_original(spec, seed))
        rows = spec.num_embeddings if "feature" in options.granularity else 1
        columns = spec.embedding_dim if "dimension" in options.granularity else 1
        self.s = nn.Parameter(torch.full((rows, columns), options.start))
        self.decay, self.travel = options.decay, options.travel
        self.keep = count_entries(spec, options.budget, options.format)

    @property
    def entries(self) -> nn.Parameter:
        """The table."""
        return self.weight

    def embed(self, ids: Tensor) -> Tensor:
        """Rows behind their thresholds."""
        rows = pick_rows(ids, self.weight)
        s = pick_rows(ids, self.s) if len(self.s) > 1 else self.s
        return soft_threshold(rows, torch.sigmoid(s))


class PEP(TicketEmbedding, Searched[PEPOptions, ThresholdTable]):
    """The entries that survived a learnt soft threshold (key ``pep``).

    Notes
    -----
    Liu et al., "Learnable Embedding Sizes for Recommender Systems" (ICLR 2021).  The
    paper stops when the entries that are left fit a budget, and so does this; if the
    budget is not reached in time, or overshot by the last step, the entries with the
    largest margins fill it.  The thresholds have a rate of their own, set by how far s
    is to go (`travel`); in the paper all weights share one.
    """

    def __init__(self, spec: TableSpec, options: PEPOptions, seed: int = 0) -> None:
        super().__init__(spec, options.mask, options.format, options.rewind, seed)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: PEPOptions) -> Found:
        """The budget, which must hold an entry."""
        plan_entries(spec, ratio, options.format)
        return {"budget": spec.budget(ratio)}

    @classmethod
    def settle(
        cls, table: ThresholdTable, judge: Judge, spec: TableSpec, options: PEPOptions
    ) -> Found:
        """The entries with the largest margins."""
        return {"mask": keep_largest(table.margins(), table.keep).cpu().numpy()}
