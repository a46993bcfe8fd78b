"""STTD: a tensor train whose products may skip dimensions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from survey_code.embedding import check_range
from survey_code.spec import TableSpec
from survey_code.weight_sharing.decomposition.trains import (
    TrainEmbedding,
    exact_stds,
    largest,
    stored_bytes,
)
from survey_code.weight_sharing.decomposition.tt_rec import train_shapes


def semi_tensor_product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    r"""A product of matrices whose inner dimensions need not agree.

    :math:`A \rtimes B = (I_{t/n} \otimes A)(I_{t/p} \otimes B)` for A of n columns,
    B of p rows and t their least common multiple; where n = p it is the matrix
    product.

    Parameters
    ----------
    left : ndarray, shape (m, n)
    right : ndarray, shape (p, q)

    Returns
    -------
    ndarray, shape (m t / n, q t / p)

    Notes
    -----
    Cheng et al., "An Introduction to Semi-Tensor Product of Matrices" (2012); this
    is the one of its two forms that has the identity on the left.

    Examples
    --------
    >>> semi_tensor_product(np.ones((1, 4)), np.eye(2)).shape
    (1, 4)
    """
    inner = math.lcm(left.shape[1], right.shape[0])
    wide = np.kron(np.eye(inner // left.shape[1]), left)
    tall = np.kron(np.eye(inner // right.shape[0]), right)
    product: np.ndarray = wide @ tall
    return product


class STTD(TrainEmbedding):
    """STTD: cores t times smaller in rank and columns (key ``sttd``).

    Parameters
    ----------
    spec : TableSpec
    rank : int
        Rounded up to a multiple of the step.
    step : int, default 2
        The factor t; 1 is a tensor train.  A core whose columns it does not
        divide keeps the plain product.
    seed : int, default 0

    Notes
    -----
    Xia et al., "On-Device Next-Item Recommendation with Self-Supervised Knowledge
    Distillation" (SIGIR 2022); their distillation is left out.
    """

    def __init__(
        self, spec: TableSpec, *, rank: int, step: int = 2, seed: int = 0
    ) -> None:
        check_range("rank", rank, 1, 2**16)
        check_range("step", step, 1, 64)
        shapes = train_shapes(spec.num_embeddings, spec.embedding_dim, rank, step=step)
        super().__init__(spec, shapes, exact_stds(shapes, spec.init_std), seed)

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        rank: int | None = None,
        step: int = 2,
    ) -> dict[str, Any]:
        """The largest rank that fits."""
        rows, dim = spec.num_embeddings, spec.embedding_dim
        check_range("step", step, 1, 64)

        def size(rank: int) -> int:
            return stored_bytes(train_shapes(rows, dim, rank, step=step))

        if rank is not None:
            check_range("rank", rank, 1, 2**16)
        budget = spec.require(ratio, smallest=size(rank or 1))
        most = int(train_shapes(rows, dim, 2**16, step=step)[:, 3].max())
        return {
            "rank": rank or largest(1, most, lambda r: size(r) <= budget),
            "step": step,
        }
