"""STTD: a tensor train whose products may skip dimensions."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from survey_code.method import Found, Trained
from survey_code.options import Options, option, planned
from survey_code.spec import TableSpec
from survey_code.weight_sharing.decomposition.trains import (
    MOST_RANK,
    TrainEmbedding,
    plan_rank,
    train_shapes,
)


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


class STTDOptions(Options):
    """Options of `STTD`."""

    rank: int = planned(
        "of all cuts, rounded up to a multiple of the step", low=1, high=MOST_RANK
    )
    # A core whose columns the step does not divide keeps the plain product.
    step: int = option(
        2, "the factor t; 1 is a tensor train", low=1, high=64, tune=(2, 1, 4)
    )


class STTD(TrainEmbedding, Trained[STTDOptions]):
    """STTD: cores t times smaller in rank and columns (key ``sttd``).

    Notes
    -----
    Xia et al., "On-Device Next-Item Recommendation with Self-Supervised Knowledge
    Distillation" (SIGIR 2022).  Their self-supervised distillation is left out, and
    the train stands for any table, not for the items of a sequence model alone.
    """

    def __init__(self, spec: TableSpec, options: STTDOptions, seed: int = 0) -> None:
        rows, dim = spec.num_embeddings, spec.embedding_dim
        shapes = train_shapes(rows, dim, options.rank, step=options.step)
        super().__init__(spec, shapes, seed)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: STTDOptions) -> Found:
        """The largest rank that fits."""
        rows, dim = spec.num_embeddings, spec.embedding_dim
        shapes = partial(train_shapes, rows, dim, step=options.step)
        return {"rank": plan_rank(spec, ratio, options.rank, shapes)}
