"""AutoEmb: how popular an id is says how wide its vector should be."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.embedding import TrainingStep, check_range, draw_normal
from survey_code.layouts.grouped import grouped_bytes
from survey_code.mixed_dimension.architecture_search.bilevel import ChoiceStep
from survey_code.mixed_dimension.architecture_search.choices import (
    WARM_UP,
    check_positive,
    cut_by_frequency,
    fields_of,
    powers_up_to,
    search_epochs,
    widen_within,
)
from survey_code.mixed_dimension.architecture_search.mixed import MixedWidths
from survey_code.mixed_dimension.grouped import GroupedEmbedding
from survey_code.spec import TableSpec

# Neurons of the controller.
HIDDEN = 16


class PopularityWidths(MixedWidths):
    """AutoEmb's search: a small network turns popularity into weights of the widths.

    Popularity is counted while the table is trained, so that an id can begin narrow
    and become wide.

    Parameters
    ----------
    spec : TableSpec
    widths : tuple of int
    rate : float
        Learning rate of the controller, which Adam moves.
    seed : int
    """

    counts: Tensor

    def __init__(
        self, spec: TableSpec, widths: tuple[int, ...], rate: float, seed: int
    ) -> None:
        super().__init__(spec, widths, fields_of(spec), seed)
        counts = torch.zeros(spec.num_embeddings)
        self.register_buffer("counts", counts, persistent=False)
        self.scale = float(np.log1p(max(spec.train_counts.max(), 1)))
        first, last = nn.Linear(1, HIDDEN), nn.Linear(HIDDEN, len(widths))
        self.controller = nn.Sequential(first, nn.Tanh(), last)
        with torch.no_grad():
            first.weight.copy_(draw_normal((HIDDEN, 1), 3.0, [seed, 8]))
            first.bias.copy_(draw_normal((HIDDEN,), 1.0, [seed, 9]))
            last.weight.zero_()  # all widths alike, to begin with
            last.bias.zero_()
        self.choose = ChoiceStep(list(self.controller.parameters()), rate)
        self.counting = True

    def embed(self, ids: Tensor) -> Tensor:
        """The weighted sum; in training, reads are counted."""
        if self.training and self.counting:
            ones = torch.ones(ids.numel(), device=ids.device)
            self.counts.index_add_(0, ids.flatten(), ones)
        return super().embed(ids)

    def weights_of(self, ids: Tensor, group: Tensor) -> Tensor:
        """What the controller says about each id's popularity."""
        return self.weights_at(self.counts[ids])

    def weights_at(self, counts: Tensor) -> Tensor:
        """Weights of the widths at given counts: (m,) -> (m, widths)."""
        popularity = torch.log1p(counts) / self.scale  # about 0 to 1
        kind = next(self.controller.parameters()).dtype
        weights: Tensor = self.controller(popularity[:, None].to(kind)).softmax(1)
        return weights

    def validation_step(self, step: TrainingStep) -> None:
        """After the warm-up, the controller learns from a validation batch, which is
        not counted.
        """
        if step.progress < WARM_UP:
            return
        self.counting = False
        self.choose(step)
        self.counting = True


class AutoEmb(GroupedEmbedding):
    """Popular ids wide, rare ids narrow, as a controller chose (key ``autoemb``).

    Parameters
    ----------
    spec : TableSpec
    assignment : ndarray of integers, shape (num_embeddings,)
        Group of each id.
    widths : ndarray of integers, shape (groups,)
        What the search found.
    seed : int, default 0

    Notes
    -----
    Zhao et al., "AutoEmb: Automated Embedding Dimensionality Search in Streaming
    Recommendations" (ICDM 2021).  The paper serves the weighted sum of all widths,
    which is larger than the full table; here each group of equally popular ids then
    gets one width, such that the whole fits the budget.  The candidates pass
    through a matrix and a normalisation, but no tanh, so that what is stored is a
    matrix.
    """

    def __init__(
        self, spec: TableSpec, *, assignment: Any, widths: Any, seed: int = 0
    ) -> None:
        super().__init__(spec, assignment, widths, [seed, 0])

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        groups: int = 16,
        choice_rate: float = 0.01,
        search_epochs: int | None = None,
    ) -> dict[str, Any]:
        """The budget, and how to search."""
        check_range("groups", groups, 1, 256)
        check_positive(choice_rate=choice_rate)
        smallest = 4 * spec.num_embeddings + overhead(spec)
        return {
            "budget": spec.require(ratio, smallest=smallest),
            "groups": groups,
            "choice_rate": choice_rate,
            "search_epochs": search_epochs,
        }

    @classmethod
    def searching(
        cls, spec: TableSpec, options: dict[str, Any], seed: int
    ) -> PopularityWidths:
        """The table that mixes all widths."""
        widths = powers_up_to(spec.embedding_dim)
        return PopularityWidths(spec, widths, options["choice_rate"], seed)

    @classmethod
    def search(
        cls, task: Any, spec: TableSpec, options: dict[str, Any], seed: int
    ) -> dict[str, Any]:
        """Widths of popularity groups, as wide as the controller's weights ask."""
        table = cls.searching(spec, options, seed)
        task.train(table, **search_epochs(task, options["search_epochs"]))
        group = cut_by_frequency(spec, options["groups"])
        scores = group_scores(table, group)
        rows, widths = np.bincount(group), np.array(table.widths)
        room = options["budget"] - overhead(spec)
        chosen = widen_within(scores, 4 * rows[:, None] * widths, room)
        # Groups of one width share a matrix.
        used, merged = np.unique(-widths[chosen], return_inverse=True)
        return {"assignment": merged[group], "widths": -used}


@torch.no_grad()
def group_scores(table: PopularityWidths, group: np.ndarray) -> np.ndarray:
    """Mean log-weight of each width over the ids of each group: (groups, widths)."""
    logs = table.weights_at(table.counts).log().cpu().numpy()
    sums = np.zeros((int(group.max()) + 1, logs.shape[1]))
    np.add.at(sums, group, logs)
    return sums / np.bincount(group)[:, None]


def overhead(spec: TableSpec) -> int:
    """Bytes besides the numbers if every width is in use."""
    widths = powers_up_to(spec.embedding_dim)
    counts = [spec.num_embeddings, *[0] * (len(widths) - 1)]
    numbers = 4 * spec.num_embeddings * widths[0]
    return grouped_bytes(counts, widths, spec.embedding_dim, ranges=False) - numbers
