"""Unified embedding: one table for all fields, several short rows side by side."""

from __future__ import annotations

from survey_code.layouts.hashed import mixed_index
from survey_code.method import Found, Trained
from survey_code.options import Options, found, option, planned
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import (
    INDEX_BYTES,
    MOST_HASHES,
    MOST_ROWS,
    HashedEmbedding,
    plan_rows,
    row_width,
)

# Rows side by side unless asked, where they divide an embedding's length.
USUAL_READS = 4


class UnifiedOptions(Options):
    """Options of `UnifiedEmbedding`."""

    reads: int = planned(
        "rows that stand side by side, a divisor of the dimension; None: 4, or the "
        "next fewer that divide it",
        low=1, high=MOST_HASHES, tune=(None, 2, 8),
    )  # fmt: skip
    open_ids: bool = option(False, "serve ids beyond the table too")
    rows: int = found("rows of the table", low=1, high=MOST_ROWS)


class UnifiedEmbedding(HashedEmbedding, Trained[UnifiedOptions]):
    """One table for all fields, read at k hashes, side by side (key ``unified``).

    Row i is k rows of a k-th of its length each, one behind the other, all of the same
    table.  With one row it is the hashing trick.

    Raises
    ------
    ValueError
        If the dimension is no multiple of k.

    Notes
    -----
    Coleman et al., "Unified Embedding: Battle-Tested Feature Representations for
    Web-Scale ML Systems" (NeurIPS 2023), whose name for fields that share one table is
    feature multiplexing.  There each field hashes the numbers of its own values, by
    functions of its own.  Here ids are numbered over all fields, and a hash first
    multiplies: value v of the field that begins at id s is hashed from a (s + v) + c =
    a v + (a s + c), so that each field has the multipliers of all, and an addend of
    its own.  The paper lets a field read more or fewer rows, by its importance, and so
    have a longer or shorter embedding; here all embeddings have one length, and all
    fields read as many rows.
    """

    def __init__(self, spec: TableSpec, options: UnifiedOptions, seed: int = 0) -> None:
        index = mixed_index([seed, 1], [options.rows] * options.reads)
        super().__init__(
            spec, index, "concat", [seed, 0], open_ids=options.open_ids, shared=True
        )

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: UnifiedOptions) -> Found:
        """As many short rows as the budget holds beside the hashes' parameters."""
        dim, most = spec.embedding_dim, options.reads
        if most is None:
            most = max(k for k in range(1, USUAL_READS + 1) if dim % k == 0)
        width = row_width(dim, most, "concat")
        rows = plan_rows(spec, ratio, 4 * width, INDEX_BYTES * most)
        return {"reads": most, "rows": rows}
