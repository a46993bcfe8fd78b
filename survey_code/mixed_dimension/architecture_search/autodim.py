"""AutoDim: every field tries all widths at once and leans towards one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.embedding import TrainingStep
from survey_code.method import Found, Judge, Searched
from survey_code.mixed_dimension.architecture_search.bilevel import ChoiceStep
from survey_code.mixed_dimension.architecture_search.mixed import MixedWidths
from survey_code.mixed_dimension.grouped import FieldDimensions, field_costs
from survey_code.mixed_dimension.search import choose_within, powers_up_to
from survey_code.mixed_dimension.widths import FLOOR, floor_within
from survey_code.options import SearchOptions, found, option
from survey_code.spec import TableSpec

# The temperature falls in a straight line from 1 to this.
COLDEST = 0.01


class AutoDimOptions(SearchOptions):
    """Options of `AutoDim`."""

    choice_rate: float = option(
        0.02, "learning rate of the choices, which Adam moves",
        above=0, tune=(0.02, 0.05),
    )  # fmt: skip
    order: int = option(1, "of the gradient on two levels", low=1, high=2, tune=(1, 2))
    floor: float = option(
        FLOOR, "least width of a field, as a share of what all could have alike",
        low=0, high=1,
    )  # fmt: skip
    widths: np.ndarray = found("width of each field")


class FieldWidths(MixedWidths):
    """AutoDim's search: one distribution over the widths for each field."""

    gauges = ("logits",)

    noise: Tensor

    def __init__(self, spec: TableSpec, options: AutoDimOptions, seed: int) -> None:
        super().__init__(spec, seed)
        self.temperature = 1.0
        self.logits = nn.Parameter(torch.zeros(self.groups, len(self.widths)))
        self.register_buffer("noise", torch.zeros_like(self.logits), persistent=False)
        self.rng = np.random.default_rng([seed, 5])
        self.choose = ChoiceStep([self.logits], options.choice_rate, options.order)

    def weights_of(self, ids: Tensor, group: Tensor) -> Tensor:
        """The field's sharpened, noisy distribution."""
        logits = self.logits.log_softmax(1) + self.noise.to(self.logits.dtype)
        return (logits / self.temperature).softmax(1)[group]

    def advance(self, progress: float) -> None:
        """A colder temperature and fresh Gumbel noise, the same for all losses of
        the step.
        """
        self.temperature = max(1 - progress, COLDEST)
        noise = torch.from_numpy(self.rng.gumbel(size=tuple(self.logits.shape)))
        self.noise = noise.to(self.logits.device)

    def validation_step(self, step: TrainingStep) -> None:
        """The logits learn from a validation batch."""
        self.choose(step)


class AutoDim(FieldDimensions, Searched[AutoDimOptions, FieldWidths]):
    """Every field its width, and a matrix to the full dimension (key ``autodim``).

    Notes
    -----
    Zhao et al., "AutoDim: Field-aware Embedding Dimension Search in Recommender
    Systems" (WWW 2021).  The paper takes each field's most probable width; here the
    most probable widths that fit the budget together, and no field is narrower than
    half of what all could have alike.
    """

    def __init__(self, spec: TableSpec, options: AutoDimOptions, seed: int = 0) -> None:
        super().__init__(spec, options.widths, seed)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: AutoDimOptions) -> Found:
        """The budget, which must hold the cheapest width of every field."""
        costs = field_costs(spec, powers_up_to(spec.embedding_dim))
        return {"budget": spec.require(ratio, smallest=int(costs.min(axis=1).sum()))}

    @classmethod
    def settle(
        cls, table: FieldWidths, judge: Judge, spec: TableSpec, options: AutoDimOptions
    ) -> Found:
        """The most probable widths that fit the budget, none below the floor."""
        scores = table.logits.detach().log_softmax(1).cpu().numpy()
        least = floor_within(spec, options.floor, options.budget, table.widths)
        first = table.widths.index(least)
        widths = table.widths[first:]
        costs = field_costs(spec, widths)
        chosen = choose_within(scores[:, first:], costs, options.budget)
        return {"widths": np.array(widths)[chosen]}
