"""Quantisation-aware training: float weights, read through a learned rounding."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from survey_code.embedding import TrainingStep, draw_normal, pick_rows
from survey_code.layouts import RowwiseLayout
from survey_code.layouts.rowwise import BITS
from survey_code.low_precision.quantization.rounding import (
    quantize_through,
    scale_gradient,
)
from survey_code.low_precision.quantization.rowwise import plan_bits, table_bytes
from survey_code.low_precision.quantization.writeback import STEP_SHARES
from survey_code.method import Found, Trained
from survey_code.options import Options, option, planned
from survey_code.spec import TableSpec

# PACT's pull on its clipping levels.
PACT_DECAY = 1e-4


class LSQOptions(Options):
    """Options of `LSQ`."""

    bits: int = planned(
        "bits of a code; a single one has two levels, none of them 0",
        choices=BITS,
        otherwise=8,
    )
    rule: str = option(
        "lsq",
        "what is learnt: the step, the level at which weights are clipped, or the step "
        "and an offset",
        choices=("lsq", "pact", "lsq+"),
    )
    per: str = option("table", "who has a step of its own", choices=("table", "field"))
    # Times the optimiser's `STEP_SHARES`: under Adam, over a fiftieth of it.
    step_rate: float = option(
        1.0,
        "learning rate of the steps over that of the weights",
        low=0,
        tune=(1.0, 5.0, 0.2),
    )


class LSQ(Trained[LSQOptions]):
    """A float table that is read as multiples of a learned step (key ``lsq``).

    With a single bit there is no room for 0: the codes are -1/2 and 1/2, so that the
    step is the gap between two levels.  Gradients are those of the rule; where its
    formulas have the largest code, there is 1, and the first levels lie at plus and
    minus the mean magnitude, where two levels are nearest to the weights.

    The float weights stay until the end of training, so only what is deployed
    becomes smaller.  Both variants are simplified: PACT clips activations, at 0 and
    at its level, and here clips weights on both sides of 0; LSQ+ gives an offset to
    activations alone, and starts from the weights' mean and deviation, while here
    the weights have the offset, from 0, and LSQ's first step.

    Notes
    -----
    Esser et al., "Learned Step Size Quantization" (2020); Choi et al., "PACT:
    Parameterized Clipping Activation for Quantized Neural Networks" (2018);
    Bhalgat et al., "LSQ+: Improving low-bit quantization through learnable
    offsets and better initialization" (2020).
    """

    gauges = ("step", "offset")

    starts: Tensor

    steady = True

    def __init__(self, spec: TableSpec, options: LSQOptions, seed: int = 0) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.bits, self.rule = options.bits, options.rule
        self.step_rate = options.step_rate
        # Smallest and largest code, and by how much codes lie beside whole numbers.
        # PACT's are symmetric, as its clipping is; so is a single bit.
        self.shift = 0.5 if self.bits == 1 else 0.0
        self.high = 2.0 ** (self.bits - 1) - 1 + self.shift
        even = self.rule == "pact" or self.bits == 1
        self.low = -self.high if even else -self.high - 1
        shape = (spec.num_embeddings, spec.embedding_dim)
        self.weight = nn.Parameter(draw_normal(shape, spec.init_std, [seed, 0]))
        by_field = options.per == "field"
        starts = spec.field_starts[:-1].tolist() if by_field else [0]
        # A tensor that no state dict needs: the spec says it again.
        self.register_buffer("starts", torch.tensor(starts), persistent=False)
        self.step = nn.Parameter(self.first_steps())
        if self.rule == "lsq+":
            self.offset = nn.Parameter(torch.zeros_like(self.step))

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: LSQOptions) -> Found:
        """The most bits whose codes fit into the budget beside the steps."""

        def size(bits: int) -> int:
            return table_bytes(spec, bits, options.per)

        return {"bits": plan_bits(spec, ratio, options.bits, size)}

    @property
    def largest(self) -> float:
        """The largest code of LSQ's formulas."""
        return max(self.high, 1.0)

    def first_steps(self) -> Tensor:
        """LSQ's start, 2 mean|w| / sqrt(largest), for each group; shape (groups, 1).

        PACT starts with the same step, that is, with the level `high` times it.
        """
        ends = [*self.starts[1:], self.num_embeddings]
        means = [
            self.weight[start:end].detach().abs().mean()
            for start, end in zip(self.starts, ends, strict=True)
        ]
        return 2 * torch.stack(means)[:, None] / math.sqrt(self.largest)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The weights, and the numbers that say how they are rounded."""
        rate = learning_rate * self.step_rate * STEP_SHARES[self.regime.optimizer]
        own = [p for name, p in self.named_parameters() if name != "weight"]
        return [
            {"params": [self.weight], "lr": learning_rate},
            {"params": own, "lr": rate},
        ]

    def group_of(self, ids: Tensor) -> Tensor:
        """Which step each id uses."""
        if len(self.starts) == 1:
            return torch.zeros_like(ids)
        return torch.bucketize(ids, self.starts, right=True) - 1

    def embed(self, ids: Tensor) -> Tensor:
        """Weights, rounded; in use by the layout's own arithmetic."""
        rows = pick_rows(ids, self.weight, sparse=self.regime.sparse)
        groups = self.group_of(ids)
        if self.training:
            return self.quantize(rows, groups)
        scale, bias = (values[groups] for values in self.scale_and_bias())
        return self.encode(rows, groups) * scale + bias

    def quantize(self, rows: Tensor, groups: Tensor) -> Tensor:
        """Rounded rows, with the gradients of the rule.

        Rows have shape (..., dim), the groups of their ids (...).
        """
        step = pick_rows(groups, self.step)  # (*shape, 1)
        # LSQ's factor, for the weights of a batch that share a step.
        factor = 1 / math.sqrt(max(rows.numel() / len(self.step), 1) * self.largest)
        if self.rule == "pact":
            return clip_through(rows, step * self.high, self.high, self.shift)
        how = step, self.low, self.high, factor, self.shift
        if self.rule == "lsq":
            return quantize_through(rows, *how)
        offset = pick_rows(groups, self.offset)
        offset = scale_gradient(offset, factor)
        return quantize_through(rows - offset, *how) + offset

    def penalty(self) -> Tensor:
        """PACT's decay of the clipping levels."""
        if self.rule != "pact":
            return super().penalty()
        return PACT_DECAY / 2 * (self.step * self.high).square().sum()

    @torch.no_grad()
    def after_step(self, step: TrainingStep) -> None:
        """Keep the steps positive."""
        self.step.clamp_(min=1e-8)

    def encode(self, rows: Tensor, groups: Tensor) -> Tensor:
        """Codes from 0 up of rows, as float32."""
        if self.rule == "lsq+":
            rows = rows - self.offset[groups]
        codes = (rows / self.step[groups]).clamp(self.low, self.high)
        return (codes - self.shift).round() + (self.shift - self.low)

    def scale_and_bias(self) -> tuple[Tensor, Tensor]:
        """What codes from 0 up are multiplied by and added to; (groups, 1) each."""
        bias = self.low * self.step
        return self.step, bias + self.offset if self.rule == "lsq+" else bias

    @torch.no_grad()
    def freeze(self) -> RowwiseLayout:
        """The codes, and a scale and a bias per group."""
        groups = self.group_of(
            torch.arange(self.num_embeddings, device=self.weight.device)
        )
        codes = self.encode(self.weight, groups).to(torch.uint8).cpu().numpy()
        scale, bias = (v[:, 0].cpu().numpy() for v in self.scale_and_bias())
        starts = self.starts.cpu().numpy() if len(scale) > 1 else None
        return RowwiseLayout.from_groups(codes, scale, bias, self.bits, starts)


def clip_through(
    rows: Tensor, level: Tensor, high: float, shift: float = 0.0
) -> Tensor:
    r"""PACT: clip to [-level, level], then round to multiples of level / high, or to
    places that lie so much of one beside them.

    The gradient is that of clipping: a weight inside receives it, one outside
    hands it, with its sign, to the level.
    """
    clipped = torch.minimum(torch.maximum(rows, -level), level)
    step = level.detach() / high
    rounded = ((clipped.detach() / step - shift).round() + shift) * step
    return rounded + (clipped - clipped.detach())
