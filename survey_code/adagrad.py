"""Adagrad with one number per row, as embedding tables are trained in production."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RowwiseAdagrad(torch.optim.Optimizer):
    """Adagrad that keeps one number per row instead of one per weight.

    The state of row i is the running sum of the mean squared gradient of its
    entries; a vector counts as rows of one entry, a single number as one row.
    Takes dense and sparse gradients.

    Parameters
    ----------
    params : iterable
    lr : float
    eps : float, default 1e-8
    """

    def __init__(self, params: Any, lr: float, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group["lr"], group["eps"])

    def _update(self, weight: Tensor, grad: Tensor, lr: float, eps: float) -> None:
        state = self.state[weight]
        if not state:
            state["sum"] = weight.new_zeros(weight.shape[:1])
        if grad.is_sparse:
            grad = grad.coalesce()
            rows, values = grad.indices()[0], grad.values()
            state["sum"].index_add_(0, rows, row_means(values))
            scale = lr / (state["sum"][rows].sqrt() + eps)
            weight.index_add_(0, rows, -values * widen(scale, values))
        else:
            state["sum"] += row_means(grad)
            scale = lr / (state["sum"].sqrt() + eps)
            weight -= grad * widen(scale, grad)


def row_means(grad: Tensor) -> Tensor:
    """Mean of the squares of each row, shape (rows,)."""
    return grad.square().flatten(1).mean(1) if grad.ndim > 1 else grad.square()


def widen(scale: Tensor, like: Tensor) -> Tensor:
    """A number per row, shaped to multiply whole rows."""
    return scale.reshape(scale.shape + (1,) * (like.ndim - scale.ndim))
