"""DeepLight: prune a little, train on, prune a little more."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import CompressedEmbedding, TrainingStep, check_range
from survey_code.layouts import SparseLayout
from survey_code.layouts.sparse import check_format
from survey_code.mixed_dimension.pruning.tickets import (
    check_decay,
    draw_original,
    keep_largest,
    plan_entries,
)
from survey_code.spec import TableSpec

DAMPING = 0.99
# Share of the target that a rescaled schedule reaches; the rest is cut at its end.
REACH = 0.999


def scheduled_sparsity(step: float, target: float, constant: float = 100.0) -> float:
    r"""Share of zeros after so many steps: :math:`S (1 - 0.99^{t / u})`.

    Parameters
    ----------
    step : float
    target : float
        The share S at the end.
    constant : float, default 100
        The time constant u, as published.  See `rescale_constant`.

    Examples
    --------
    >>> round(scheduled_sparsity(100, target=1.0), 6)
    0.01
    """
    return target * (1 - DAMPING ** (step / constant))


def rescale_constant(steps: float) -> float:
    """The time constant with which so many steps come to 99.9 % of the target.

    Examples
    --------
    >>> round(rescale_constant(68_732), 2)
    100.0
    """
    return steps * math.log(DAMPING) / math.log(1 - REACH)


class DeepLight(CompressedEmbedding):
    """A table whose smallest entries are zeroed while it learns (``deeplight``).

    Zeroed entries keep their gradients: one that grows back in time stays.

    Parameters
    ----------
    spec : TableSpec
    keep : int
        Entries that are not zero at the end.
    format : {"float32", "float16"}
        Of the stored values.
    every : int, default 10
        Steps from one pruning to the next.
    warm, end : float
        Progress of training, 0 to 1, at which pruning begins, and at which the
        target is reached.
    decay : float, default 1e-5
        Weight decay of the whole table.  Without it the rows of rare ids stay as
        large as they were drawn, and no pruning by size finds them.
    seed : int, default 0

    Notes
    -----
    Deng et al., "DeepLight: Deep Lightweight Feature Interactions for Accelerating
    CTR Predictions in Ad Serving" (WSDM 2021).  The schedule is theirs, but its time
    constant follows the length of training, so that the target is reached.
    """

    def __init__(
        self,
        spec: TableSpec,
        *,
        keep: int,
        format: str = "float32",
        every: int = 10,
        warm: float = 0.1,
        end: float = 0.6,
        decay: float = 1e-5,
        seed: int = 0,
    ) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.weight = nn.Parameter(draw_original(spec, seed))
        check_range("keep", keep, 0, self.weight.numel())
        check_range("every", every, 1, 2**31 - 1)
        check_format(format)
        if not 0 <= warm < end <= 1:
            raise ValueError(f"need 0 <= warm < end <= 1, got {warm!r} and {end!r}")
        check_decay(decay)
        self.keep, self.format, self.every, self.decay = keep, format, every, decay
        self.warm, self.schedule_end = warm, end
        self.progress, self.steps = 0.0, 0
        self.deployed: tuple[tuple[int, int], Tensor] | None = None

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        format: str = "float32",
        every: int = 10,
        warm: float = 0.1,
        end: float = 0.6,
        decay: float = 1e-5,
    ) -> dict[str, Any]:
        """As many entries as the budget pays for, and when to prune."""
        return {
            "keep": plan_entries(spec, ratio, format),
            "format": format,
            "every": every,
            "warm": warm,
            "end": end,
            "decay": decay,
        }

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The table, with its decay."""
        table = [self.weight]
        return [{"params": table, "lr": learning_rate, "weight_decay": self.decay}]

    def sparsity(self) -> float:
        """Share of zeros that the schedule asks for now."""
        target = 1 - self.keep / self.weight.numel()
        length = self.schedule_end - self.warm
        done = self.progress - self.warm
        if done >= length:
            return target
        return scheduled_sparsity(max(done, 0.0), target, rescale_constant(length))

    def advance(self, progress: float) -> None:
        """Remember how far training is."""
        self.progress = progress

    @torch.no_grad()
    def after_step(self, step: TrainingStep) -> None:
        """Every few steps, zero the smallest entries."""
        self.steps += 1
        if self.steps % self.every == 0:
            self.prune(self.sparsity())

    @torch.no_grad()
    def prune(self, sparsity: float) -> None:
        """Zero this share of the entries, the smallest first."""
        keep = self.weight.numel() - math.floor(sparsity * self.weight.numel())
        self.weight.mul_(keep_largest(self.weight.abs(), keep))

    def final_mask(self) -> Tensor:
        """The entries that are deployed."""
        return keep_largest(self.weight.detach().abs(), self.keep)

    def embed(self, ids: Tensor) -> Tensor:
        """Rows as they are; in eval mode, what would be deployed now."""
        rows = functional.embedding(ids, self.weight, sparse=self.sparse_gradients)
        if self.training:
            self.deployed = None
            return rows
        # The mask takes a pass over the table: once, until the weight changes.
        version = (self.weight._version, self.weight.data_ptr())
        if self.deployed is None or self.deployed[0] != version:
            self.deployed = version, self.final_mask()
        return rows * self.deployed[1][ids]

    def freeze(self) -> SparseLayout:
        """The largest entries."""
        weight = (self.weight * self.final_mask()).detach().float()
        return SparseLayout.from_dense(weight, self.format)
