"""The hashing trick: one hash, one row."""

from __future__ import annotations

import numpy as np

from survey_code.budget import largest_fitting
from survey_code.layouts.hashed import mixed_index
from survey_code.method import Found, Trained
from survey_code.options import Options, found, option
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import (
    HASH_BYTES,
    INDEX_BYTES,
    MOST_ROWS,
    THRESHOLD,
    FieldsEmbedding,
    plan_rows,
)


class HashingOptions(Options):
    """Options of `HashingTrick`."""

    signed: bool = option(False, "multiply each row read by a second hash, +1 or -1")
    open_ids: bool = option(False, "serve ids beyond the table too")
    fields: str = option(
        "together",
        "one table for all fields, or one for each, in proportion to its ids; small "
        "fields then have full rows",
        choices=("together", "apart"),
        tune=("together", "apart"),
    )
    rows: int = found("rows of the shared table", low=1, high=MOST_ROWS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.open_ids and self.fields == "apart":
            raise ValueError("fields='apart' needs ids of a field, so open_ids=False")


class HashingTrick(FieldsEmbedding, Trained[HashingOptions]):
    """The hashing trick: id i reads row h(i) of a table with few rows.

    With signs, the inner product of two hashed vectors is right on average.

    Notes
    -----
    Weinberger et al., "Feature Hashing for Large Scale Multitask Learning"
    (2009).  One table serves all fields, as in the paper; with tables apart, no user
    reads the row of an item, and fields of few ids keep full rows.
    """

    def __init__(self, spec: TableSpec, options: HashingOptions, seed: int = 0) -> None:
        index, second = mixed_index([seed, 1], [options.rows] * 2)[:, None]
        signs = second[0, :3] if options.signed else None
        tables: np.ndarray | list[np.ndarray | None] = index
        if options.fields == "apart":
            shares = share_rows(options.rows, np.diff(spec.field_starts).tolist())
            hashes = mixed_index([seed, 1], [share or 1 for share in shares])
            tables = [row[None] if n else None for row, n in zip(hashes, shares)]
        super().__init__(spec, tables, "sum", [seed, 0], signs, options.open_ids)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: HashingOptions) -> Found:
        """As many rows as the budget holds beside the hash's parameters."""
        row, hashes = 4 * spec.embedding_dim, INDEX_BYTES + HASH_BYTES * options.signed
        if options.fields == "together":
            return {"rows": plan_rows(spec, ratio, row, hashes)}
        sizes = np.diff(spec.field_starts).tolist()
        # Every field has a size, and a hash unless its rows are full.
        fixed = len(sizes) * (8 + hashes)
        rows = plan_rows(spec, ratio, row, fixed, least=len(sizes))
        full = share_rows(rows, sizes).count(0)
        return {"rows": min(rows + full * hashes // row, spec.num_embeddings)}


def share_rows(rows: int, sizes: list[int]) -> list[int]:
    """Rows for fields of so many ids: the others in proportion, and one at least,
    where small fields have full rows, which 0 stands for.

    Small are fields of up to `THRESHOLD` ids, or of fewer where all full rows would
    be over half of the rows.

    Examples
    --------
    >>> share_rows(20, [100, 5, 300])
    [4, 0, 11]
    """
    if rows < len(sizes):
        raise ValueError(
            f"rows must be one for each of {len(sizes)} fields, got {rows}"
        )

    def count_full(threshold: int) -> int:
        return sum(n for n in sizes if n <= threshold)

    def fits(threshold: int) -> bool:
        shared = sum(n > threshold for n in sizes)
        return (
            2 * count_full(threshold) <= rows and count_full(threshold) + shared <= rows
        )

    small = largest_fitting(0, THRESHOLD, fits)
    shared = [n for n in sizes if n > small]
    left, whole = rows - count_full(small) - len(shared), sum(shared)
    ends = [left * sum(shared[: f + 1]) // whole for f in range(len(shared))]
    parts = iter(1 + end - start for start, end in zip([0, *ends], ends))
    return [next(parts) if n > small else 0 for n in sizes]
