"""AutoEmb: how popular an id is says how wide its vector should be."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.embedding import TrainingStep, draw_normal
from survey_code.layouts.grouped import MAX_GROUPS
from survey_code.method import Found, Judge, Searched
from survey_code.mixed_dimension.architecture_search.bilevel import ChoiceStep
from survey_code.mixed_dimension.architecture_search.mixed import (
    MixedWidths,
    floor_place,
    mix_overhead,
    require_narrowest,
)
from survey_code.mixed_dimension.grouped import GroupedEmbedding
from survey_code.mixed_dimension.search import WARM_UP, cut_by_frequency, widen_within
from survey_code.mixed_dimension.widths import FLOOR
from survey_code.options import SearchOptions, found, option
from survey_code.spec import TableSpec

# Neurons of the controller.
NEURONS = 16


class AutoEmbOptions(SearchOptions):
    """Options of `AutoEmb`."""

    choice_rate: float = option(
        0.01, "learning rate of the controller, which Adam moves",
        above=0, tune=(0.01, 0.03),
    )  # fmt: skip
    groups: int = option(
        16, "groups of equally popular ids", low=1, high=MAX_GROUPS, tune=(16, 8)
    )
    floor: float = option(
        FLOOR, "least width of a group, as a share of what all could have alike",
        low=0, high=1,
    )  # fmt: skip
    assignment: np.ndarray = found("group of each id")
    widths: np.ndarray = found("width of each group")


class PopularityWidths(MixedWidths):
    """AutoEmb's search: a small network turns popularity into weights of the widths.

    Popularity is counted while the table is trained, so that an id can begin narrow
    and become wide.
    """

    gauges = ("controller",)

    counts: Tensor

    def __init__(self, spec: TableSpec, options: AutoEmbOptions, seed: int) -> None:
        super().__init__(spec, seed)
        counts = torch.zeros(spec.num_embeddings)
        self.register_buffer("counts", counts, persistent=False)
        self.scale = float(np.log1p(max(spec.train_counts.max(), 1)))
        first, last = nn.Linear(1, NEURONS), nn.Linear(NEURONS, len(self.widths))
        self.controller = nn.Sequential(first, nn.Tanh(), last)
        with torch.no_grad():
            first.weight.copy_(draw_normal((NEURONS, 1), 3.0, [seed, 8]))
            first.bias.copy_(draw_normal((NEURONS,), 1.0, [seed, 9]))
            last.weight.zero_()  # all widths alike, to begin with
            last.bias.zero_()
        self.choose = ChoiceStep(
            list(self.controller.parameters()), options.choice_rate
        )
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


class AutoEmb(GroupedEmbedding, Searched[AutoEmbOptions, PopularityWidths]):
    """Popular ids wide, rare ids narrow, as a controller chose (key ``autoemb``).

    Notes
    -----
    Zhao et al., "AutoEmb: Automated Embedding Dimensionality Search in Streaming
    Recommendations" (ICDM 2021).  The paper serves the weighted sum of all widths,
    which is larger than the full table; here each group of equally popular ids then
    gets one width, such that the whole fits the budget.  The candidates pass
    through a matrix and a normalisation, but no tanh, so that what is stored is a
    matrix.
    """

    def __init__(self, spec: TableSpec, options: AutoEmbOptions, seed: int = 0) -> None:
        super().__init__(spec, options.assignment, options.widths, [seed, 0])

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: AutoEmbOptions) -> Found:
        """The budget, which must hold a number for every id."""
        return {"budget": require_narrowest(spec, ratio)}

    @classmethod
    def settle(
        cls, table: PopularityWidths, judge: Judge, spec: TableSpec,
        options: AutoEmbOptions,
    ) -> Found:  # fmt: skip
        """Widths of popularity groups, as wide as the controller's weights ask."""
        group = cut_by_frequency(spec, options.groups)
        scores = group_scores(table, group)
        room = options.budget - mix_overhead(spec)
        first = floor_place(spec, options.floor, room)
        rows, widths = np.bincount(group), np.array(table.widths[first:])
        chosen = widen_within(scores[:, first:], 4 * rows[:, None] * widths, room)
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
