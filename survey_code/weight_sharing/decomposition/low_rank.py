"""Low rank: a table is the product of a tall matrix and a flat one."""

from __future__ import annotations

from functools import partial

import numpy as np

from survey_code.checks import check_range
from survey_code.layouts import TensorTrainLayout
from survey_code.layouts.tensor_train import core_shapes
from survey_code.method import AfterTraining, Found, Trained
from survey_code.options import Options, planned
from survey_code.spec import TableSpec
from survey_code.weight_sharing.decomposition.trains import (
    GRAM_NUMBERS,
    TrainEmbedding,
    invert_values,
    leading_vectors,
    plan_rank,
    sum_gram,
)


def low_rank_shapes(rows: int, dim: int, rank: int) -> np.ndarray:
    """Two cores: one with all the digits, one with all the columns."""
    return np.array([[rows, 1, 1, rank, 1], [1, dim, rank, 1, 1]], dtype=np.int64)


def truncate(table: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    r"""The best factors of a rank: :math:`U \sqrt\Sigma` and :math:`\sqrt\Sigma V^T`.

    No product of rank r is nearer to the table in the Frobenius norm; the squared
    distance is the sum of the squared singular values left out.  V and :math:`\Sigma`
    come from the smaller of the two Gram matrices, summed some rows at a time.

    Parameters
    ----------
    table : ndarray of float32, shape (n, d)
    rank : int
        1 to the smaller of n and d.

    Returns
    -------
    left : ndarray of float32, shape (n, rank)
    right : ndarray of float32, shape (rank, d)

    Notes
    -----
    Eckart and Young, "The approximation of one matrix by another of lower rank"
    (Psychometrika 1936).  A Gram matrix has the squares of the singular values, so
    that in float64 what lies below 1e-8 of the largest drowns in rounding and is left
    out.  That matters for a table of columns whose sizes differ by more: the small
    ones read 0, whatever the rank.
    """
    if len(table) < table.shape[1]:
        right, left = truncate(table.T, rank)
        return np.ascontiguousarray(left.T), np.ascontiguousarray(right.T)
    dim = table.shape[1]
    step = max(GRAM_NUMBERS // dim, 1)
    blocks = [table[start : start + step] for start in range(0, len(table), step)]
    values, vectors, _ = leading_vectors(
        sum_gram((block.T for block in blocks), dim), rank
    )
    root = np.sqrt(values)
    weights = vectors * invert_values(root)  # W V is U Sigma
    left = np.concatenate([(block @ weights).astype(np.float32) for block in blocks])
    return left, (root[:, None] * vectors.T).astype(np.float32)


class LowRankOptions(Options):
    """Options of `LowRank`."""

    rank: int | None = planned("length of the short rows; None: half", low=1)


class LowRank(TrainEmbedding, Trained[LowRankOptions], AfterTraining[LowRankOptions]):
    """Rows of length r times one r x d matrix (key ``low_rank``)."""

    def __init__(self, spec: TableSpec, options: LowRankOptions, seed: int = 0) -> None:
        rows, dim = spec.num_embeddings, spec.embedding_dim
        rank = options.rank or max(1, dim // 2)
        check_range("rank", rank, 1, dim)
        super().__init__(spec, low_rank_shapes(rows, dim, rank), seed)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: LowRankOptions) -> Found:
        """The largest rank that fits."""
        rows, dim = spec.num_embeddings, spec.embedding_dim
        if options.rank is not None:
            check_range("rank", options.rank, 1, dim)
        cores = partial(low_rank_shapes, rows, dim)
        rank = plan_rank(spec, ratio, options.rank, lambda r: cores(min(r, dim)))
        return {"rank": rank}

    @classmethod
    def compress(
        cls, weight: np.ndarray, spec: TableSpec, options: LowRankOptions
    ) -> TensorTrainLayout:
        """Truncate an (n, d) table after training."""
        most = min(weight.shape)
        rank = options.rank or max(1, most // 2)
        check_range("rank", rank, 1, most)
        rows, dim = weight.shape
        shapes = low_rank_shapes(rows, dim, rank)
        sizes = core_shapes(shapes)
        cores = [
            np.ascontiguousarray(factor).reshape(size)
            for factor, size in zip(truncate(weight, rank), sizes)
        ]
        return TensorTrainLayout(cores, shapes, rows, dim)
