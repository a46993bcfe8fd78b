"""CIGAR: codes that harden while they are trained."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from survey_code.low_precision.binarization.signs import SignedEmbedding, sign_bytes
from survey_code.method import Found, Trained
from survey_code.options import Options, option
from survey_code.order import largest_first
from survey_code.spec import TableSpec


class CIGAROptions(Options):
    """Options of `CIGAR`."""

    # Steepness starts at 1, with weights in units of three times their first spread,
    # and grows as the root of progress, as in HashNet.
    beta: float = option(10.0, "steepness of the tanh at the end", low=1, high=1e6)


class CIGAR(SignedEmbedding, Trained[CIGAROptions]):
    r"""CIGAR: codes :math:`\tanh(\beta w)` that harden to signs (key ``cigar``).

    The codes find candidates by Hamming distance (`BinaryLayout.topk`); `rerank`
    orders these by a real-valued model, whose table comes on top of the bytes
    counted here.

    Notes
    -----
    Kang and McAuley, "Candidate Generation with Binary Codes for Large-Scale
    Top-N Recommendation" (CIKM 2019).  We implement the codes as
    :math:`h = \tanh(\beta w)`, :math:`\beta = \sqrt{1 + (\beta_1^2 - 1) t}`, under
    the task's loss; their sampling of candidates for the second model is left out.
    """

    schedule_end = 1.0

    def __init__(self, spec: TableSpec, options: CIGAROptions, seed: int = 0) -> None:
        super().__init__(spec, layers=0, seed=seed)
        self.unit = 3 * spec.init_std
        self.last_beta = options.beta
        self.beta = 1.0

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: CIGAROptions) -> Found:
        """The one size: a bit per entry, and one scale."""
        spec.require(ratio, smallest=sign_bytes(spec) + 4)
        return {}

    def advance(self, progress: float) -> None:
        """Make the tanh steeper."""
        self.beta = math.sqrt(1 + (self.last_beta**2 - 1) * progress)

    def relax(self, latent: Tensor) -> Tensor:
        """tanh, as steep as it is by now."""
        return torch.tanh(self.beta * latent / self.unit)


def rerank(
    queries: np.ndarray, items: np.ndarray, candidates: np.ndarray
) -> np.ndarray:
    """Order candidates by the inner products of real vectors.

    Parameters
    ----------
    queries : ndarray of float32, shape (m, dim)
    items : ndarray of float32, shape (n, dim)
    candidates : ndarray of int64, shape (m, c)
        Rows of `items`, for each query.

    Returns
    -------
    ndarray of int64, shape (m, c)
        The candidates, best first; of equals, the one that came first.
    """
    scores = np.einsum("md,mcd->mc", queries, items[candidates])
    order = largest_first(scores, axis=1)
    return np.take_along_axis(candidates, order, axis=1)
