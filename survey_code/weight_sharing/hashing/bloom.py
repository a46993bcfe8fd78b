"""Bloom embeddings: several hashes into one table."""

from __future__ import annotations

from typing import Any

from survey_code.embedding import check_range
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import (
    INDEX_BYTES,
    MOST_ROWS,
    HashedEmbedding,
    check_hashes,
    mixed_index,
)


class BloomEmbeddings(HashedEmbedding):
    """k hashes into one table, and the sum of the rows they name (``bloom``).

    The set of rows of an id is its code in a Bloom filter: multiplying the code,
    a vector of k ones among zeros, by the table gives this sum.

    Parameters
    ----------
    spec : TableSpec
    rows : int
        Rows of the table.
    hashes : int, default 4
        Rows that one id reads.
    open_ids : bool, default False
        Serve ids beyond the table too.
    seed : int, default 0

    Raises
    ------
    ValueError
        If an option is out of its range.

    Notes
    -----
    Serrà and Karatzoglou, "Getting Deep Recommenders Fit: Bloom Embeddings for
    Sparse Binary Input/Output Networks" (RecSys 2017).  They also code the
    output layer; here it is the table of the input that shrinks.
    """

    def __init__(
        self,
        spec: TableSpec,
        *,
        rows: int,
        hashes: int = 4,
        open_ids: bool = False,
        seed: int = 0,
    ) -> None:
        check_range("rows", rows, 1, MOST_ROWS)
        check_hashes(hashes)
        index = mixed_index([seed, 1], [rows] * hashes)
        super().__init__(spec, index, "sum", [seed, 0], open_ids=open_ids, shared=True)

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        hashes: int = 4,
        open_ids: bool = False,
    ) -> dict[str, Any]:
        """As many rows as the budget holds beside the hashes' parameters."""
        check_hashes(hashes)
        row, overhead = 4 * spec.embedding_dim, INDEX_BYTES * hashes
        budget = spec.require(ratio, smallest=row + overhead)
        rows = min((budget - overhead) // row, MOST_ROWS)
        return {"rows": rows, "hashes": hashes, "open_ids": open_ids}
