"""Magnitude pruning: after training, keep the largest entries."""

from __future__ import annotations

import numpy as np
import torch

from survey_code.checks import check_range
from survey_code.layouts import SparseLayout
from survey_code.layouts.sparse import FORMATS
from survey_code.method import AfterTraining, Found
from survey_code.mixed_dimension.pruning.tickets import keep_largest, plan_entries
from survey_code.options import Options, found, option
from survey_code.spec import TableSpec

# Share of the entries that is kept where there is no budget.
SHARE = 0.25


class MagnitudeOptions(Options):
    """Options of `MagnitudePruning`."""

    format: str = option("float32", "of the kept values", choices=FORMATS)
    keep: int | None = found("entries to keep; None: a quarter", low=0)


class MagnitudePruning(AfterTraining[MagnitudeOptions]):
    """Set all but the largest entries of a trained table to zero.

    Of all tables with so many entries that are not zero, the result is the nearest
    to the given one, in the sum of squared differences.

    Notes
    -----
    Han et al., "Learning both Weights and Connections for Efficient Neural
    Networks" (NIPS 2015).
    """

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: MagnitudeOptions) -> Found:
        """As many entries as the budget pays for."""
        return {"keep": plan_entries(spec, ratio, options.format)}

    @classmethod
    def compress(
        cls, weight: np.ndarray, spec: TableSpec, options: MagnitudeOptions
    ) -> SparseLayout:
        """Keep the largest entries, of equal ones the first."""
        size = weight.size
        keep = int(SHARE * size) if options.keep is None else options.keep
        check_range("keep", keep, 0, size)
        kept = keep_largest(torch.from_numpy(np.abs(weight)), keep).numpy()
        return SparseLayout.from_dense(np.where(kept, weight, 0), options.format)
