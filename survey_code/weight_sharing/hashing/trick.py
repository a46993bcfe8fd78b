"""The hashing trick: one hash, one row."""

from __future__ import annotations

from typing import Any

import numpy as np

from survey_code.embedding import check_range
from survey_code.layouts.hashed import draw_multipliers
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import MOST_ROWS, HashedEmbedding


class HashingTrick(HashedEmbedding):
    """The hashing trick: id i reads row h(i) of a table with few rows.

    Parameters
    ----------
    spec : TableSpec
    rows : int
        Rows of the shared table.
    signed : bool, default False
        Multiply each row read by a second hash, +1 or -1, so that the inner
        product of two hashed vectors is right on average.
    open_ids : bool, default False
        Serve ids beyond the table too.
    seed : int, default 0

    Notes
    -----
    Weinberger et al., "Feature Hashing for Large Scale Multitask Learning"
    (2009).  One table serves all fields.
    """

    def __init__(
        self,
        spec: TableSpec,
        *,
        rows: int,
        signed: bool = False,
        open_ids: bool = False,
        seed: int = 0,
    ) -> None:
        check_range("rows", rows, 1, MOST_ROWS)
        multipliers = draw_multipliers(np.random.default_rng([seed, 1]), 2)
        index = np.array([[*multipliers[0], 1, rows]], dtype=np.int64)
        signs = multipliers[1] if signed else None
        super().__init__(spec, index, "sum", [seed, 0], signs, open_ids)

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        signed: bool = False,
        open_ids: bool = False,
    ) -> dict[str, Any]:
        """As many rows as the budget holds beside the hash's parameters."""
        row, overhead = 4 * spec.embedding_dim, 48 if signed else 32
        budget = spec.require(ratio, smallest=row + overhead)
        rows = min((budget - overhead) // row, MOST_ROWS)
        return {"rows": rows, "signed": signed, "open_ids": open_ids}
