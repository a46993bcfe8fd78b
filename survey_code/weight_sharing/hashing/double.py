"""Double hashing, and rows of their own for the most frequent ids."""

from __future__ import annotations

from typing import Any

from survey_code.embedding import check_range
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import (
    INDEX_BYTES,
    MOST_ROWS,
    HashedEmbedding,
    check_combine,
    check_share,
    mixed_index,
    most_frequent,
    row_width,
)


class DoubleHashing(HashedEmbedding):
    """Two hashes into two tables, and own rows for frequent ids (``double_hashing``).

    Two ids share a vector only if both hashes agree.

    Parameters
    ----------
    spec : TableSpec
        Its `train_counts` say which ids are frequent.
    rows : int
        Rows of each of the two shared tables.
    frequent : int, default 0
        Ids, the most frequent ones, that have rows of their own.
    combine : {"sum", "concat"}
    seed : int, default 0

    Raises
    ------
    ValueError
        If an option is out of its range.

    Notes
    -----
    Zhang et al., "Model Size Reduction Using Frequency Based Double Hashing for
    Recommender Systems" (2020).
    """

    def __init__(
        self,
        spec: TableSpec,
        *,
        rows: int,
        frequent: int = 0,
        combine: str = "sum",
        seed: int = 0,
    ) -> None:
        check_combine(combine, ("sum", "concat"))
        check_range("rows", rows, 1, MOST_ROWS)
        check_range("frequent", frequent, 0, spec.num_embeddings)
        keys = most_frequent(spec.train_counts, frequent) if frequent else None
        index = mixed_index([seed, 1], [rows, rows])
        super().__init__(spec, index, combine, [seed, 0], keys=keys)

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        share: float = 0.5,
        combine: str = "sum",
    ) -> dict[str, Any]:
        """Own rows for a `share` of the budget, shared rows for the rest."""
        check_combine(combine, ("sum", "concat"))
        check_share("share", share)
        pair = 2 * 4 * row_width(spec.embedding_dim, 2, combine)
        overhead = 2 * INDEX_BYTES
        budget = spec.require(ratio, smallest=pair + overhead) - overhead
        own = 4 * spec.embedding_dim + 4
        frequent = min(int(share * budget), budget - pair) // own
        frequent = min(frequent, spec.num_embeddings)
        rows = min((budget - frequent * own) // pair, MOST_ROWS)
        return {"rows": rows, "frequent": frequent, "combine": combine}
