"""Double hashing, and rows of their own for the most frequent ids."""

from __future__ import annotations

import numpy as np

from survey_code.checks import check_range
from survey_code.layouts.hashed import mixed_index
from survey_code.method import Found, Trained
from survey_code.options import Options, found, option
from survey_code.order import most_frequent
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import (
    INDEX_BYTES,
    MOST_ROWS,
    HashedEmbedding,
    check_counted,
    plan_apart,
    row_width,
)


class DoubleHashingOptions(Options):
    """Options of `DoubleHashing`."""

    combine: str = option(
        "sum",
        "how the two rows make one",
        choices=("sum", "concat"),
        tune=("sum", "concat"),
    )
    share: float = option(
        0.5, "share of the budget that the frequent ids' rows get", low=0, high=1
    )
    rows: int = found("rows of each of the two tables", low=1, high=MOST_ROWS)
    frequent: int = found("ids with rows of their own", otherwise=0, low=0)


class DoubleHashing(HashedEmbedding, Trained[DoubleHashingOptions]):
    """Two hashes into two tables, and own rows for frequent ids (``double_hashing``).

    Two ids share a vector only if both hashes agree.

    Parameters
    ----------
    spec : TableSpec
        Its `train_counts` say which ids are frequent.
    options : DoubleHashingOptions
    seed : int, default 0

    Notes
    -----
    Zhang et al., "Model Size Reduction Using Frequency Based Double Hashing for
    Recommender Systems" (2020).
    """

    def __init__(
        self, spec: TableSpec, options: DoubleHashingOptions, seed: int = 0
    ) -> None:
        check_range("frequent", options.frequent, 0, spec.num_embeddings)
        check_counted("frequent", options.frequent, spec)
        keys = most_frequent(spec.train_counts, options.frequent).astype(np.int32)
        index = mixed_index([seed, 1], [options.rows] * 2)
        super().__init__(
            spec, index, options.combine, [seed, 0], keys=keys if len(keys) else None
        )

    @classmethod
    def plan(
        cls, spec: TableSpec, ratio: float, options: DoubleHashingOptions
    ) -> Found:
        """Own rows for a share of the budget, shared rows for the rest."""
        pair = 2 * 4 * row_width(spec.embedding_dim, 2, options.combine)
        check_counted("share", options.share, spec)
        rows, frequent = plan_apart(spec, ratio, pair, 2 * INDEX_BYTES, options.share)
        return {"rows": rows, "frequent": frequent}
