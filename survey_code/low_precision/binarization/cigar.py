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

    # From 1 it grows as the root of progress, as the authors' does: theirs comes to
    # sqrt(91) after 10 epochs, to 31 after 100.
    beta: float = option(
        10.0,
        "steepness of the tanh at the end",
        low=1, high=1e6, tune=(10.0, 3.0, 30.0),
    )  # fmt: skip
    l2: float = option(
        0.2,
        "factor of half the mean squared length of the rows read, before the tanh",
        low=0, tune=(0.2, 0.0, 0.5),
    )  # fmt: skip


class CIGAR(SignedEmbedding, Trained[CIGAROptions]):
    r"""CIGAR: codes :math:`\tanh(\beta w)` that harden to signs (key ``cigar``).

    Weights are kept small: an entry for which :math:`\beta |w|` is far above 1 is a
    sign already, and has no gradient left to change it.

    The codes find candidates by Hamming distance (`BinaryLayout.topk`); `rerank`
    orders these by a real-valued model, whose table comes on top of the bytes
    counted here.

    Notes
    -----
    Kang and McAuley, "Candidate Generation with Binary Codes for Large-Scale
    Top-N Recommendation" (CIKM 2019).  We implement the codes as
    :math:`h = \tanh(\beta w)`, :math:`\beta = \sqrt{1 + (\beta_1^2 - 1) t}` with
    :math:`\beta_1` at the end of training, t = 1, under the task's loss.  Theirs is
    :math:`\sqrt{1 + 10 (n - 1)}` in epoch n of any number, and steps from epoch to
    epoch.  The L2 is that of their example too, .1 for the user and the item of a pair.
    Their sampling of candidates for the second model is left out.
    """

    schedule_end = 1.0
    steady = True
    beta: Tensor

    def __init__(self, spec: TableSpec, options: CIGAROptions, seed: int = 0) -> None:
        super().__init__(spec, layers=0, seed=seed)
        # Steps of the optimiser are thus small beside 1, where the tanh bends: at a
        # unit of the first spread a step or two would take an entry to its end.
        self.unit = 1.0
        self.last_beta, self.l2 = options.beta, options.l2
        # A tensor, so that a recorded step sees it move; of float64, which is exact.
        self.register_buffer("beta", torch.ones((), dtype=torch.float64))
        self._squares: Tensor | None = None

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: CIGAROptions) -> Found:
        """The one size: a bit per entry, and one scale."""
        spec.require(ratio, smallest=sign_bytes(spec) + 4)
        return {}

    def advance(self, progress: float) -> None:
        """Make the tanh steeper."""
        self.beta.fill_(math.sqrt(1 + (self.last_beta**2 - 1) * progress))

    def relax(self, latent: Tensor) -> Tensor:
        """tanh, as steep as it is by now."""
        values = latent / self.unit
        if self.training and self.l2:
            self._squares = values.square().sum(-1).mean()  # `penalty` reads it
        return torch.tanh(self.beta * values)

    def penalty(self) -> Tensor:
        """Half the mean squared length of the rows that this step read, weighted."""
        squares, self._squares = self._squares, None
        return super().penalty() if squares is None else self.l2 / 2 * squares


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
