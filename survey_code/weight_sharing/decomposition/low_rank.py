"""Low rank: a table is the product of a tall matrix and a flat one."""

from __future__ import annotations

from typing import Any

import numpy as np

from survey_code.embedding import check_range
from survey_code.layouts import TensorTrainLayout
from survey_code.layouts.layout import as_finite_table
from survey_code.spec import TableSpec
from survey_code.weight_sharing.decomposition.trains import (
    TrainEmbedding,
    exact_stds,
    largest,
    stored_bytes,
)


def low_rank_shapes(rows: int, dim: int, rank: int) -> np.ndarray:
    """Two cores: one with all the digits, one with all the columns."""
    return np.array([[rows, 1, 1, rank, 1], [1, dim, rank, 1, 1]], dtype=np.int64)


def truncate(table: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    r"""The best factors of a rank: :math:`U \sqrt\Sigma` and :math:`\sqrt\Sigma V^T`.

    No product of rank r is nearer to the table in the Frobenius norm; the squared
    distance is the sum of the squared singular values left out.

    Parameters
    ----------
    table : ndarray of float32, shape (n, d)
    rank : int

    Returns
    -------
    left : ndarray of float32, shape (n, rank)
    right : ndarray of float32, shape (rank, d)

    Notes
    -----
    Eckart and Young, "The approximation of one matrix by another of lower rank"
    (Psychometrika 1936).
    """
    left, values, right = np.linalg.svd(table.astype(np.float64), full_matrices=False)
    root = np.sqrt(values[:rank])
    return (
        (left[:, :rank] * root).astype(np.float32),
        (root[:, None] * right[:rank]).astype(np.float32),
    )


class LowRank(TrainEmbedding):
    """Rows of length r times one r x d matrix (key ``low_rank``).

    Parameters
    ----------
    spec : TableSpec
    rank : int
        1 to embedding_dim.
    seed : int, default 0
    """

    def __init__(self, spec: TableSpec, *, rank: int, seed: int = 0) -> None:
        check_range("rank", rank, 1, spec.embedding_dim)
        shapes = low_rank_shapes(spec.num_embeddings, spec.embedding_dim, rank)
        super().__init__(spec, shapes, exact_stds(shapes, spec.init_std), seed)

    @classmethod
    def plan(
        cls, spec: TableSpec, ratio: float, *, rank: int | None = None
    ) -> dict[str, Any]:
        """The largest rank that fits."""
        rows, dim = spec.num_embeddings, spec.embedding_dim

        def size(rank: int) -> int:
            return stored_bytes(low_rank_shapes(rows, dim, rank))

        if rank is not None:
            check_range("rank", rank, 1, dim)
        budget = spec.require(ratio, smallest=size(rank or 1))
        return {"rank": rank or largest(1, dim, lambda r: size(r) <= budget)}

    @classmethod
    def compress(
        cls, weight: Any, *, rank: int | None = None, spec: TableSpec | None = None
    ) -> TensorTrainLayout:
        """Truncate an (n, d) table after training, by default to half its columns.

        Raises
        ------
        ValueError
            If the rank is not 1 to min(n, d) or the table is not 2-D and finite.
        """
        table = as_finite_table(weight)
        rank = max(1, min(table.shape) // 2) if rank is None else rank
        check_range("rank", rank, 1, min(table.shape))
        factors = [factor.ravel() for factor in truncate(table, rank)]
        rows, dim = table.shape
        shapes = low_rank_shapes(rows, dim, rank)
        return TensorTrainLayout(np.concatenate(factors), shapes, rows, dim)
