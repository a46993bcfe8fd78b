"""Adaptive low-precision training: the steps are learned beside the integers.

The steps' gradient runs the network a second time: where it has batch norm or
dropout, running means move twice a step, and another mask is drawn.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from survey_code.adagrad import read_bytes
from survey_code.embedding import TrainingStep, pick_rows
from survey_code.low_precision.quantization.lpt import IntegerEmbedding, IntegerOptions
from survey_code.low_precision.quantization.rounding import quantize_through
from survey_code.low_precision.quantization.rowwise import plan_bits, table_bytes
from survey_code.low_precision.quantization.writeback import EPSILON, STEP_SHARES
from survey_code.method import Found, Trained
from survey_code.options import option
from survey_code.spec import TableSpec

# Reach of a fresh row's codes over its largest entry, chosen on validation.
ROOM = 1.5


class ALPTOptions(IntegerOptions):
    """Options of `ALPT`."""

    # Times the optimiser's `STEP_SHARES`: under Adam, over a fiftieth of it.
    step_rate: float = option(
        1.0, "learning rate of the steps over that of the weights",
        low=0, tune=(1.0, 5.0, 0.2),
    )  # fmt: skip


class ALPT(IntegerEmbedding, Trained[ALPTOptions]):
    """Integer codes, and a learned step per row (key ``alpt``).

    Each step of training has two phases: move the weights with the steps fixed;
    then, with the new weights held, take the loss once more through rounding and
    move the steps down its gradient.  After that the weights are written back.

    Notes
    -----
    Li et al., "Adaptive Low-Precision Training for Embeddings in Click-Through
    Rate Prediction" (AAAI 2023), algorithm 1; its levels are whole steps, ours lie
    half a step beside, and no step falls below a floor.
    """

    def __init__(self, spec: TableSpec, options: ALPTOptions, seed: int = 0) -> None:
        super().__init__(spec, options, "row", seed)
        self.step_rate = options.step_rate
        # Ids, moved rows and their steps, while the steps are learned.
        self.trial: tuple[Tensor, Tensor, Tensor] | None = None

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: ALPTOptions) -> Found:
        """The most bits whose rows fit into the budget."""
        size = partial(table_bytes, spec, centred=True)
        return {"bits": plan_bits(spec, ratio, options.bits, size)}

    def first_steps(self, start: Tensor, std: float) -> Tensor:
        """Steps that reach somewhat beyond a fresh row: learning widens slowly."""
        return ROOM * super().first_steps(start, std)

    def embed(self, ids: Tensor) -> Tensor:
        """Decoded rows; in the second phase the moved rows, rounded."""
        if self.trial is None:
            return super().embed(ids)
        distinct, rows, steps = self.trial
        rounded = quantize_through(rows, steps, -self.reach, self.reach, shift=0.5)
        return pick_rows(torch.searchsorted(distinct, ids), rounded)

    def refine(self, ids: Tensor, rows: Tensor, step: TrainingStep) -> None:
        """The second phase: move the steps of the rows read."""
        grads = self.step_gradient(ids, rows, step)
        steps = self.step[ids]
        rate = step.learning_rate * self.step_rate * STEP_SHARES[self.regime.optimizer]
        moved = steps - rate * self.step_direction(ids, grads)
        # No step turns negative: it at most halves, and not below the floor.
        self.step[ids] = torch.maximum(moved, (steps / 2).clamp(min=self.least_step))

    def step_gradient(self, ids: Tensor, rows: Tensor, step: TrainingStep) -> Tensor:
        """Scaled gradient of the loss by the steps of rows, shape (m, 1).

        The scale is 1 / sqrt(N q) for the N weights of the batch and the largest
        code q.
        """
        steps = self.read_steps(ids).clone().requires_grad_()
        self.trial = ids, rows, steps
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(step.loss(), steps)
        self.trial = None
        return gradient / math.sqrt(rows.numel() * self.reach)

    def step_direction(self, ids: Tensor, grads: Tensor) -> Tensor:
        """The optimiser's rule; Adagrad's divisor is that of the row itself."""
        if self.regime.optimizer in ("adam", "sgd"):
            return self.direction("steps", ids, grads)
        total = self._squares("rows", grads)[ids]
        if total.dtype == torch.uint8:
            # A row that was read may have been rounded to a sum of 0.
            total = read_bytes(total.clamp(min=1), grads)
        return grads / (total.sqrt() + EPSILON)[:, None]

    def widen(self, ids: Tensor, rows: Tensor) -> None:
        """Steps grow by learning only: what lies beyond the range is clipped."""
