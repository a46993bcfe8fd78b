"""AutoDim: every field tries all widths at once and leans towards one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.embedding import TrainingStep, check_range
from survey_code.layouts.grouped import grouped_bytes
from survey_code.mixed_dimension.architecture_search.bilevel import ChoiceStep
from survey_code.mixed_dimension.architecture_search.choices import (
    check_positive,
    choose_within,
    fields_of,
    powers_up_to,
    search_epochs,
)
from survey_code.mixed_dimension.architecture_search.mixed import MixedWidths
from survey_code.mixed_dimension.grouped import GroupedEmbedding
from survey_code.spec import TableSpec

# The temperature falls in a straight line from 1 to this.
COLDEST = 0.01


class AutoDim(GroupedEmbedding):
    """Every field its width, and a matrix to the full dimension (key ``autodim``).

    Parameters
    ----------
    spec : TableSpec
    widths : ndarray of integers, shape (fields,)
        What the search found.
    seed : int, default 0

    Notes
    -----
    Zhao et al., "AutoDim: Field-aware Embedding Dimension Search in Recommender
    Systems" (WWW 2021).  The paper takes each field's most probable width; here the
    most probable widths *that fit the budget together*.
    """

    def __init__(self, spec: TableSpec, *, widths: Any, seed: int = 0) -> None:
        super().__init__(spec, fields_of(spec), widths, [seed, 0])

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        order: int = 1,
        choice_rate: float = 0.02,
        search_epochs: int | None = None,
    ) -> dict[str, Any]:
        """The budget, and how to search."""
        check_range("order", order, 1, 2)
        check_positive(choice_rate=choice_rate)
        widths = powers_up_to(spec.embedding_dim)
        smallest = int(field_costs(spec, widths).min(axis=1).sum())
        budget = spec.require(ratio, smallest=smallest)
        return {
            "budget": budget,
            "order": order,
            "choice_rate": choice_rate,
            "search_epochs": search_epochs,
        }

    @classmethod
    def searching(
        cls, spec: TableSpec, options: dict[str, Any], seed: int
    ) -> FieldWidths:
        """The table that tries all widths at once."""
        return FieldWidths(
            spec,
            powers_up_to(spec.embedding_dim),
            options["order"],
            options["choice_rate"],
            seed,
        )

    @classmethod
    def search(
        cls, task: Any, spec: TableSpec, options: dict[str, Any], seed: int
    ) -> dict[str, Any]:
        """The most probable widths that fit the budget."""
        table = cls.searching(spec, options, seed)
        task.train(table, **search_epochs(task, options["search_epochs"]))
        scores = table.logits.detach().log_softmax(1).cpu().numpy()
        widths = np.array(table.widths)
        costs = field_costs(spec, table.widths)
        chosen = choose_within(scores, costs, options["budget"])
        return {"widths": widths[chosen]}


def field_costs(spec: TableSpec, widths: tuple[int, ...]) -> np.ndarray:
    """Bytes of each field at each width, its matrix included: (fields, widths)."""
    return np.array(
        [
            [grouped_bytes([rows], [width], spec.embedding_dim) for width in widths]
            for rows in np.diff(spec.field_starts).tolist()
        ]
    )


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
        super().__init__(spec, widths, fields_of(spec), seed)
        self.temperature = 1.0
        self.logits = nn.Parameter(torch.zeros(self.groups, len(widths)))
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
