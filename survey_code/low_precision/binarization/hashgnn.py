"""HashGNN: a sign whose gradient is pretended, led by the real vector."""

from __future__ import annotations

import torch
from torch import Tensor

from survey_code.low_precision.binarization.signs import (
    SignedEmbedding,
    choose_layers,
    sign_bytes,
    take_signs,
)
from survey_code.method import Found, Trained
from survey_code.options import Options, planned
from survey_code.spec import TableSpec


def sign_through(values: Tensor) -> Tensor:
    """Signs forward, the gradient as if nothing had happened backward."""
    return values + (take_signs(values) - values).detach()


class HashGNNOptions(Options):
    """Options of `HashGNN`."""

    layers: int | None = planned(
        "steps over the graph before signs are taken; unless asked, 1 where there is "
        "a graph",
        low=0, high=10, tune=(None, 0),
    )  # fmt: skip


class HashGNN(SignedEmbedding, Trained[HashGNNOptions]):
    r"""HashGNN: a straight-through sign, led by the real vector (key ``hashgnn``).

    A vector spreads over the graph and is bent to :math:`z = \tanh(h)`.  Each
    entry is then its sign with probability p and stays real with 1 - p, and p
    grows from 0 to 1: early on gradients are true, at the end what is trained is
    what is stored.  The sign's own gradient is taken to be 1.

    Notes
    -----
    Tan et al., "Learning to Hash with Graph Neural Networks for Recommender
    Systems" (WWW 2020), with LightGCN's propagation and the task's own loss.
    Their last linear map is left out: it commutes with the propagation, and a
    table times a matrix is again a table.  A coin is tossed for each entry of each
    vector read; their public code tosses one for a whole vector.
    """

    schedule_end = 1.0

    def __init__(self, spec: TableSpec, options: HashGNNOptions, seed: int = 0) -> None:
        super().__init__(spec, options.layers, seed)
        self.share = 0.0

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: HashGNNOptions) -> Found:
        """The one size: a bit per entry, and one scale."""
        spec.require(ratio, smallest=sign_bytes(spec) + 4)
        return {"layers": choose_layers(spec, options.layers, default=1)}

    def advance(self, progress: float) -> None:
        """Let more of the entries be signs."""
        self.share = progress

    def relax(self, latent: Tensor) -> Tensor:
        """Signs for a random share of the entries, the others as they are."""
        real = torch.tanh(latent / self.unit)
        # Drawn from torch's generator, which the training loop seeds, as dropout.
        signed = torch.rand_like(real) < self.share
        return torch.where(signed, sign_through(real), real)
