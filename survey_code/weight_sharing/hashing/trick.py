"""The hashing trick: one hash, one row."""

from __future__ import annotations

from survey_code.layouts.hashed import mixed_index
from survey_code.method import Found, Trained
from survey_code.options import Options, found, option
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import (
    INDEX_BYTES,
    MOST_ROWS,
    PAIR_BYTES,
    HashedEmbedding,
    plan_rows,
)


class HashingOptions(Options):
    """Options of `HashingTrick`."""

    signed: bool = option(False, "multiply each row read by a second hash, +1 or -1")
    open_ids: bool = option(False, "serve ids beyond the table too")
    rows: int = found("rows of the shared table", low=1, high=MOST_ROWS)


class HashingTrick(HashedEmbedding, Trained[HashingOptions]):
    """The hashing trick: id i reads row h(i) of a table with few rows.

    With signs, the inner product of two hashed vectors is right on average.

    Notes
    -----
    Weinberger et al., "Feature Hashing for Large Scale Multitask Learning"
    (2009).  One table serves all fields.
    """

    def __init__(self, spec: TableSpec, options: HashingOptions, seed: int = 0) -> None:
        index, second = mixed_index([seed, 1], [options.rows] * 2)[:, None]
        signs = second[0, :2] if options.signed else None
        super().__init__(spec, index, "sum", [seed, 0], signs, options.open_ids)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: HashingOptions) -> Found:
        """As many rows as the budget holds beside the hash's parameters."""
        fixed = INDEX_BYTES + PAIR_BYTES * options.signed
        return {"rows": plan_rows(spec, ratio, 4 * spec.embedding_dim, fixed)}
