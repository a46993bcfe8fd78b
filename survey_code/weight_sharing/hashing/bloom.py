"""Bloom embeddings: several hashes into one table."""

from __future__ import annotations

from survey_code.layouts.hashed import mixed_index
from survey_code.method import Found, Trained
from survey_code.options import Options, found, option
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import (
    INDEX_BYTES,
    MOST_HASHES,
    MOST_ROWS,
    HashedEmbedding,
    plan_rows,
)


class BloomOptions(Options):
    """Options of `BloomEmbeddings`."""

    hashes: int = option(
        4, "rows that one id reads", low=1, high=MOST_HASHES, tune=(4, 2)
    )
    open_ids: bool = option(False, "serve ids beyond the table too")
    rows: int = found("rows of the table", low=1, high=MOST_ROWS)


class BloomEmbeddings(HashedEmbedding, Trained[BloomOptions]):
    """k hashes into one table, and the sum of the rows they name (``bloom``).

    The set of rows of an id is its code in a Bloom filter: multiplying the code,
    a vector of k ones among zeros, by the table gives this sum.

    Notes
    -----
    Serrà and Karatzoglou, "Getting Deep Recommenders Fit: Bloom Embeddings for
    Sparse Binary Input/Output Networks" (RecSys 2017).  They also code the
    output layer, and score an item by the outputs at its k places; here only the table
    of the input shrinks.
    """

    def __init__(self, spec: TableSpec, options: BloomOptions, seed: int = 0) -> None:
        index = mixed_index([seed, 1], [options.rows] * options.hashes)
        super().__init__(
            spec, index, "sum", [seed, 0], open_ids=options.open_ids, shared=True
        )

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: BloomOptions) -> Found:
        """As many rows as the budget holds beside the hashes' parameters."""
        fixed = INDEX_BYTES * options.hashes
        return {"rows": plan_rows(spec, ratio, 4 * spec.embedding_dim, fixed)}
