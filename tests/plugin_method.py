"""A method of one file: fewer columns, stored in half precision."""

import numpy as np
from torch import Tensor

from survey_code import Layout, Method, Options, TableSpec, Trained
from survey_code.baselines import DenseTable
from survey_code.layouts import DenseLayout
from survey_code.method import Found
from survey_code.options import option, planned


class ShortHalfOptions(Options):
    """Options of `ShortHalf`."""

    columns: int = planned("columns to keep", low=1)
    gain: float = option(1.0, "of the start's spread", above=0, tune=(1.0, 2.0))


class ShortHalf(DenseTable, Trained[ShortHalfOptions]):
    """Half as many bytes for each of fewer columns."""

    def __init__(self, spec: TableSpec, options: ShortHalfOptions, seed: int = 0):
        std = spec.init_std * options.gain
        super().__init__(spec.num_embeddings, options.columns, std, seed)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: ShortHalfOptions) -> Found:
        """As many columns as fit."""
        column = 2 * spec.num_embeddings
        budget = spec.require(ratio, smallest=column * (options.columns or 1))
        return {"columns": options.columns or min(budget // column, spec.embedding_dim)}

    def embed(self, ids: Tensor) -> Tensor:
        """Rows; in use as they are stored."""
        rows = super().embed(ids)
        return rows if self.training else rows.half().float()

    def freeze(self) -> Layout:
        """The rows in half precision."""
        return DenseLayout(self.weight.detach().cpu().numpy().astype(np.float16))


METHOD = Method(
    "short_half", "Short and half", "mixed dimension", "rule-based", 2026,
    "nobody2026", ("during training",), ("ctr", "top-n"), ShortHalf,
)  # fmt: skip
