"""Low-precision training: integers are the only copy of the weights.

The papers' levels are whole multiples of the step, 0 among them, of which there is one
more below 0 than above.  Here they lie half a step beside: at 1/2, 3/2, ... steps on
both sides.  A step that reaches the largest entry then leaves no code unused, which at
2 bits makes four levels of three, and at 1 bit leaves a level on both sides of 0.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from survey_code.bits import pack_codes, unpack_codes
from survey_code.embedding import draw_normal
from survey_code.kernels.cuda.tensors import reaches_kernels
from survey_code.layouts import RowwiseLayout
from survey_code.layouts.rowwise import BITS, centre_of, parameter_type
from survey_code.low_precision.quantization.rounding import ROUNDINGS, round_to_whole
from survey_code.low_precision.quantization.rowwise import (
    LARGEST_HALF,
    plan_bits,
    table_bytes,
)
from survey_code.low_precision.quantization.writeback import WriteBackEmbedding
from survey_code.method import Found, Trained
from survey_code.options import Options, option, planned
from survey_code.spec import TableSpec

# With one step for the table, its codes reach so many standard deviations of a
# fresh table.
FRESH_REACH = 6.0

# The smallest step: rows of codes that reach so many standard deviations of a fresh
# table.  A step of 0, or one that float16 makes 0, could not be divided by.
LEAST_REACH = 1e-3
LEAST_HALF = 2.0**-24


class IntegerOptions(Options):
    """What tables of integer codes may be asked."""

    bits: int = planned("bits of a code", choices=BITS, otherwise=8)
    rounding: str = option(
        "stochastic", "how rows are written back after a step", choices=ROUNDINGS
    )


class LPTOptions(IntegerOptions):
    """Options of `LPT`."""

    # A row's step starts at the row's own range and grows when the row outgrows it;
    # the table's never changes.
    per: str = option("row", "who has a step of its own", choices=("row", "table"))


class IntegerEmbedding(WriteBackEmbedding):
    """Integer codes and steps that are the only copy of the weights.

    Code q of row i stands for ``step[i] * (q - reach)``, where the reach is half the
    largest code.

    Parameters
    ----------
    spec : TableSpec
    options : IntegerOptions
    per : {"row", "table"}
        Who has a step of its own.
    seed : int
    """

    codes: Tensor
    step: Tensor

    def __init__(
        self, spec: TableSpec, options: IntegerOptions, per: str, seed: int
    ) -> None:
        super().__init__(spec, seed)
        self.bits, self.rounding, self.per = options.bits, options.rounding, per
        # The largest code above the middle one: 127.5, 7.5, 3.5, 1.5 or 0.5.
        self.reach = centre_of(self.bits)
        self.least_step = LEAST_REACH * spec.init_std / self.reach
        if self.bits != 8:
            self.least_step = max(self.least_step, LEAST_HALF)
        shape = (spec.num_embeddings, spec.embedding_dim)
        start = draw_normal(shape, spec.init_std, [seed, 0])
        self.register_buffer("step", self.first_steps(start, spec.init_std))
        codes = self.encode(start, self.read_steps(slice(None)), "nearest")
        self.register_buffer("codes", pack_codes(codes, self.bits))

    def first_steps(self, start: Tensor, std: float) -> Tensor:
        """Steps of a fresh table, shape (rows, 1) or (1, 1)."""
        if self.per == "table":
            return torch.full((1, 1), FRESH_REACH * std / self.reach)
        return self.fitting_steps(start).clamp(min=self.least_step)

    def fitting_steps(self, rows: Tensor) -> Tensor:
        """Smallest steps that reach every entry: (m, dim) -> (m, 1)."""
        return rows.abs().amax(1, keepdim=True) / self.reach

    def read_steps(self, ids: Tensor | slice) -> Tensor:
        """Steps of rows, (m, 1) or (1, 1), as the layout will hold them."""
        if self.per == "table":
            return self.step
        steps = self.step[ids]
        if self.bits == 8:
            return steps
        # Rows of fewer bits store float16.
        return steps.clamp(max=LARGEST_HALF).half().float()

    def encode(self, rows: Tensor, steps: Tensor, rounding: str) -> Tensor:
        """Codes of rows: float32 (m, dim) -> uint8 (m, dim)."""
        codes = round_to_whole(rows / steps + self.reach, rounding, self.rng)
        return codes.clamp(0, 2**self.bits - 1).to(torch.uint8)

    def load_rows(self, ids: Tensor) -> Tensor:
        """Step times code, in the layout's own arithmetic."""
        codes = unpack_codes(self.codes[ids], self.embedding_dim, self.bits)
        return (codes - self.reach) * self.read_steps(ids)

    def store_rows(self, ids: Tensor, rows: Tensor) -> None:
        """Round rows to codes."""
        self.widen(ids, rows)
        steps = self.read_steps(ids)
        if self.rounding == "stochastic" and reaches_kernels(self.codes):
            above = rows + self.reach * steps  # the lowest level
            self.write_codes(self.codes, ids, above, steps, self.bits, 0)
            return
        self.codes[ids] = pack_codes(self.encode(rows, steps, self.rounding), self.bits)

    def widen(self, ids: Tensor, rows: Tensor) -> None:
        """Give rows that outgrew their step a larger one."""
        if self.per == "row":
            self.step[ids] = torch.maximum(self.step[ids], self.fitting_steps(rows))

    def freeze(self) -> RowwiseLayout:
        """The codes, and each row's step behind them, or the table's."""
        self.refuse_unsound()
        codes = self.codes.cpu().numpy().copy()
        steps = self.read_steps(slice(None)).cpu().numpy()
        if self.per == "table":
            return RowwiseLayout(codes, self.embedding_dim, self.bits, steps.copy())
        tail = steps.astype(parameter_type(self.bits)).view(np.uint8)
        rows = np.concatenate([codes, tail], axis=1)
        return RowwiseLayout(rows, self.embedding_dim, self.bits)


class LPT(IntegerEmbedding, Trained[LPTOptions]):
    """Integer codes and steps that are trained as such (key ``lpt``).

    Notes
    -----
    After Xu et al., "Agile and Accurate CTR Prediction Model Training for
    Massive-Scale Online Advertising Systems" (SIGMOD 2021), and the LPT of Li et
    al. (AAAI 2023); their levels are whole steps, ours lie half a step beside.
    """

    def __init__(self, spec: TableSpec, options: LPTOptions, seed: int = 0) -> None:
        super().__init__(spec, options, options.per, seed)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: LPTOptions) -> Found:
        """The most bits whose rows fit into the budget."""
        size = partial(table_bytes, spec, per=options.per, centred=True)
        return {"bits": plan_bits(spec, ratio, options.bits, size)}
