"""Magnitude pruning: after training, keep the largest entries."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from survey_code.embedding import check_range
from survey_code.layouts import SparseLayout
from survey_code.layouts.layout import as_finite_table
from survey_code.mixed_dimension.pruning.tickets import keep_largest, plan_entries
from survey_code.spec import TableSpec

# Share of the entries that is kept unless a caller says how many.
SHARE = 0.25


class MagnitudePruning:
    """Set all but the largest entries of a trained table to zero.

    Of all tables with so many entries that are not zero, the result is the nearest
    to the given one, in the sum of squared differences.

    Notes
    -----
    Han et al., "Learning both Weights and Connections for Efficient Neural
    Networks" (NIPS 2015).
    """

    @classmethod
    def plan(
        cls, spec: TableSpec, ratio: float, *, format: str = "float32"
    ) -> dict[str, Any]:
        """As many entries as the budget pays for."""
        return {"keep": plan_entries(spec, ratio, format), "format": format}

    @classmethod
    def compress(
        cls,
        weight: Any,
        *,
        keep: int | None = None,
        format: str = "float32",
        spec: TableSpec | None = None,
    ) -> SparseLayout:
        """Keep the largest entries, of equal ones the first.

        Parameters
        ----------
        weight : array or tensor, shape (n, dim)
        keep : int, optional
            How many; by default a quarter.
        format : {"float32", "float16"}
            Of the kept values.

        Raises
        ------
        ValueError
            If the table is not 2-D and finite, or an option is out of range.
        """
        table = as_finite_table(weight)
        keep = int(SHARE * table.size) if keep is None else keep
        check_range("keep", keep, 0, table.size)
        kept = keep_largest(torch.from_numpy(np.abs(table)), keep).numpy()
        return SparseLayout.from_dense(np.where(kept, table, 0), format)
