"""AutoDim: every field tries all widths at once and leans towards one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.embedding import TrainingStep
from survey_code.mixed_dimension.architecture_search.bilevel import ChoiceStep
from survey_code.mixed_dimension.architecture_search.choices import (
    choose_within,
    powers_up_to,
    search_epochs,
)
from survey_code.mixed_dimension.architecture_search.mixed import MixedWidths
from survey_code.spec import TableSpec

# The temperature falls in a straight line from 1 to this.
COLDEST = 0.01


class FieldWidths(MixedWidths):
    """AutoDim's search: one distribution over the widths for each field.

    Parameters
    ----------
    spec : TableSpec
    widths : tuple of int
    order : {1, 2}
        Of the gradient on two levels.
    rate : float
        Learning rate of the distributions, whose logits Adam moves.
    seed : int
    """

    noise: Tensor

    def __init__(
        self, spec: TableSpec, widths: tuple[int, ...], order: int, rate: float,
        seed: int,
    ) -> None:  # fmt: skip
        fields = np.diff(spec.field_starts)
        super().__init__(spec, widths, np.repeat(np.arange(len(fields)), fields), seed)
        self.temperature = 1.0
        self.logits = nn.Parameter(torch.zeros(len(fields), len(widths)))
        self.register_buffer("noise", torch.zeros_like(self.logits), persistent=False)
        self.rng = np.random.default_rng([seed, 5])
        self.choose = ChoiceStep([self.logits], rate, order)

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
