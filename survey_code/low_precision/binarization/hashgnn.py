"""HashGNN: a sign whose gradient is pretended, led by the real vector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from survey_code.low_precision.binarization.signs import (
    SignedEmbedding,
    choose_layers,
    code_bytes,
    take_signs,
)
from survey_code.spec import TableSpec


def straight_through(values: Tensor) -> Tensor:
    """Signs forward, the gradient as if nothing had happened backward."""
    return values + (take_signs(values) - values).detach()


class HashGNN(SignedEmbedding):
    r"""HashGNN: a straight-through sign, led by the real vector (key ``hashgnn``).

    A vector spreads over the graph and is bent to :math:`z = \tanh(h)`.  Each
    entry is then its sign with probability p and stays real with 1 - p, and p
    grows from 0 to 1: early on gradients are true, at the end what is trained is
    what is stored.  The sign's own gradient is taken to be 1.

    Parameters
    ----------
    spec : TableSpec
    layers : int, optional
        By default 1 where there are interactions, else 0.
    seed : int, default 0

    Notes
    -----
    Tan et al., "Learning to Hash with Graph Neural Networks for Recommender
    Systems" (WWW 2020), with LightGCN's propagation and the task's own loss.
    Their last linear map is left out: it commutes with the propagation, and a
    table times a matrix is again a table.
    """

    def __init__(
        self, spec: TableSpec, *, layers: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(spec, layers, seed)
        self.share = 0.0

    @classmethod
    def plan(
        cls, spec: TableSpec, ratio: float, *, layers: int | None = None
    ) -> dict[str, Any]:
        """The one size: a bit per entry, and one scale."""
        spec.require(ratio, smallest=code_bytes(spec) + 4)
        return {"layers": choose_layers(spec, layers, default=1)}

    def advance(self, progress: float) -> None:
        """Let more of the entries be signs."""
        self.share = progress

    def relax(self, latent: Tensor) -> Tensor:
        """Signs for a random share of the entries, the others as they are."""
        real = torch.tanh(latent / self.unit)
        # Drawn from torch's generator, which the training loop seeds, as dropout.
        signed = torch.rand_like(real) < self.share
        return torch.where(signed, straight_through(real), real)
