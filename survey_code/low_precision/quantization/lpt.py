"""Low-precision training: integers are the only copy of the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from survey_code.embedding import draw_normal
from survey_code.layouts import RowwiseLayout
from survey_code.layouts.rowwise import parameter_type
from survey_code.low_precision.quantization.rounding import (
    ROUNDINGS,
    pack_bits,
    round_values,
    unpack_bits,
)
from survey_code.low_precision.quantization.rowwise import (
    LARGEST_HALF,
    PER,
    check_choice,
    plan_bits,
)
from survey_code.low_precision.quantization.writeback import WriteBackEmbedding
from survey_code.spec import TableSpec

# With one step for the table, its codes reach so many standard deviations of a
# fresh table.
REACH = 6.0


class LPT(WriteBackEmbedding):
    """Integer codes and steps that are trained as such (key ``lpt``).

    Code q of row i stands for ``step[i] * (q - 2**(bits - 1))``.

    Parameters
    ----------
    spec : TableSpec
    bits : {8, 4, 2}
    rounding : {"stochastic", "nearest"}
        How rows are written back after a step.
    per : {"row", "table"}
        A step per row, which starts at the row's own range and grows when the
        row outgrows it; or one step for the table, which never changes.
    seed : int, default 0

    Raises
    ------
    ValueError
        If an option is not one of those.

    Notes
    -----
    After Xu et al., "Agile and Accurate CTR Prediction Model Training for
    Massive-Scale Online Advertising Systems" (SIGMOD 2021), and the LPT of Li et
    al. (AAAI 2023).
    """

    codes: Tensor
    step: Tensor

    def __init__(
        self,
        spec: TableSpec,
        *,
        bits: int = 8,
        rounding: str = "stochastic",
        per: str = "row",
        seed: int = 0,
    ) -> None:
        parameter_type(bits)
        check_choice("rounding", rounding, ROUNDINGS)
        check_choice("per", per, PER)
        super().__init__(spec, seed)
        self.bits, self.rounding, self.per = int(bits), rounding, per
        self.middle = 2 ** (self.bits - 1)
        shape = (spec.num_embeddings, spec.embedding_dim)
        start = draw_normal(shape, spec.init_std, [seed, 0])
        self.register_buffer("step", self.first_steps(start, spec.init_std))
        codes = self.encode(start, self.read_steps(slice(None)), "nearest")
        self.register_buffer("codes", pack_bits(codes, self.bits))

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        bits: int | None = None,
        rounding: str = "stochastic",
        per: str = "row",
    ) -> dict[str, Any]:
        """The most bits whose rows fit into the budget."""
        check_choice("rounding", rounding, ROUNDINGS)
        chosen = plan_bits(spec, ratio, bits, per)
        return {"bits": chosen, "rounding": rounding, "per": per}

    def first_steps(self, start: Tensor, std: float) -> Tensor:
        """Steps of a fresh table, shape (rows, 1) or (1, 1)."""
        if self.per == "table":
            return torch.full((1, 1), REACH * std / (self.middle - 1))
        return self.fitting_steps(start).clamp(min=1e-6 * std)

    def fitting_steps(self, rows: Tensor) -> Tensor:
        """Smallest steps that reach every entry: (m, dim) -> (m, 1)."""
        return rows.abs().amax(1, keepdim=True) / (self.middle - 1)

    def read_steps(self, ids: Any) -> Tensor:
        """Steps of rows, (m, 1) or (1, 1), as the layout will hold them."""
        if self.per == "table":
            return self.step
        steps = self.step[ids]
        if self.bits == 8:
            return steps
        # Rows of 4 and 2 bits store float16, also of the bias.
        return steps.clamp(max=LARGEST_HALF / self.middle).half().float()

    def encode(self, rows: Tensor, steps: Tensor, rounding: str) -> Tensor:
        """Codes of rows: float32 (m, dim) -> uint8 (m, dim)."""
        codes = round_values(rows / steps, rounding, self.rng) + self.middle
        return codes.clamp(0, 2 * self.middle - 1).to(torch.uint8)

    def load_rows(self, ids: Tensor) -> Tensor:
        """Step times code, in the layout's own arithmetic."""
        codes = unpack_bits(self.codes[ids], self.embedding_dim, self.bits)
        steps = self.read_steps(ids)
        return codes * steps + (-self.middle * steps)

    def store_rows(self, ids: Tensor, rows: Tensor) -> None:
        """Round rows to codes."""
        self.widen(ids, rows)
        codes = self.encode(rows, self.read_steps(ids), self.rounding)
        self.codes[ids] = pack_bits(codes, self.bits)

    def widen(self, ids: Tensor, rows: Tensor) -> None:
        """Give rows that outgrew their step a larger one."""
        if self.per == "row":
            self.step[ids] = torch.maximum(self.step[ids], self.fitting_steps(rows))

    def freeze(self) -> RowwiseLayout:
        """The codes, and each row's step as scale and bias, or the table's."""
        packed, steps = self.codes.cpu(), self.read_steps(slice(None)).cpu()
        codes = unpack_bits(packed, self.embedding_dim, self.bits).numpy()
        scale = steps.numpy()[:, 0].copy()
        bias = -np.float32(self.middle) * scale
        if self.per == "table":
            return RowwiseLayout.from_groups(codes, scale, bias, self.bits)
        return RowwiseLayout.from_codes(codes, scale, bias, self.bits)
