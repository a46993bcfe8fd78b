"""Adagrad with one number per row, as embedding tables are trained in production.

The number can be kept in a byte: a whole number that names one of 256 levels, each a
little larger than the one before.  A gradient's square is as a rule far smaller than
the gap to the next level, and would be lost by rounding to the nearest.  Rounded by
chance it counts on average, as events do in a register of a few bits (Morris,
"Counting Large Numbers of Events in Small Registers", 1978).
"""

from __future__ import annotations

from types import EllipsisType
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Levels of a state in 8 bits: 0, and 255 from 2**-38 (4e-12) to 2**12.8 (7e3), five an
# octave.  Finer ones would deviate less, and reach less far.
LEVELS_PER_OCTAVE = 5
LOWEST_OCTAVE = -38
# Float32 hides the last digit of a power, which depends on the processor.
_RISING = np.exp2(np.arange(255) / LEVELS_PER_OCTAVE + LOWEST_OCTAVE)
STATE_LEVELS = np.append(0.0, _RISING).astype(np.float32)


class RowwiseAdagrad(torch.optim.Optimizer):
    """Adagrad that keeps one number per row instead of one per weight.

    The state of row i is the running sum of the mean squared gradient of its
    entries; a vector counts as rows of one entry, a single number as one row.
    Takes dense and sparse gradients; of a group with a ``weight_decay``, as torch's
    optimisers know it, dense ones only.

    Parameters
    ----------
    params : iterable
    lr : float
    eps : float, default 1e-8
    """

    def __init__(self, params: Any, lr: float, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                grad = weight.grad
                if grad is None:
                    continue
                if decay := group.get("weight_decay", 0.0):
                    if grad.is_sparse:
                        raise ValueError("weight_decay needs dense gradients")
                    grad = grad + decay * weight
                self._update(weight, grad, group["lr"], group["eps"])

    def _update(self, weight: Tensor, grad: Tensor, lr: float, eps: float) -> None:
        if grad.is_sparse:
            grad = grad.coalesce()
            rows, values = grad.indices()[0], grad.values()
            scale = lr / (self.add(weight, rows, row_means(values)).sqrt() + eps)
            weight.index_add_(0, rows, -values * widen(scale, values))
        else:
            scale = lr / (self.add(weight, ..., row_means(grad)).sqrt() + eps)
            weight -= grad * widen(scale, grad)

    def add(
        self, weight: Tensor, rows: Tensor | EllipsisType, squares: Tensor
    ) -> Tensor:
        """Add to the state of some rows of a weight, all different; their new state.

        Parameters
        ----------
        weight : Tensor, shape (n, ...)
        rows : Tensor of int64, shape (m,), or ... for all
        squares : Tensor, shape (m,)
        """
        state = self.state[weight]
        if not state:
            state["sum"] = weight.new_zeros(weight.shape[:1])
        state["sum"][rows] += squares
        found: Tensor = state["sum"][rows]
        return found


class RowwiseAdagradInBytes(RowwiseAdagrad):
    """Row-wise Adagrad whose state takes one byte per row.

    A step divides by the sum as it is before it is rounded, so that no row moves
    further in a step than with the state in floats: a row that was never read has the
    state 0.

    The state is a walk by chance.  Its mean is the sum in floats; after many small
    steps it deviates by 27 % of the sum, and one row in a hundred or fewer is off by
    more than a factor of 2 (so its rate by more than 1.4).

    Parameters
    ----------
    params, lr, eps
        As for `RowwiseAdagrad`.
    seed : int, default 0
        Of the rounding.
    """

    def __init__(
        self, params: Any, lr: float, eps: float = 1e-8, seed: int = 0
    ) -> None:
        super().__init__(params, lr, eps)
        self.rng = np.random.default_rng([seed, 7])

    def add(
        self, weight: Tensor, rows: Tensor | EllipsisType, squares: Tensor
    ) -> Tensor:
        """Add to the state of some rows, and round it by chance."""
        state = self.state[weight]
        if not state:
            state["codes"] = weight.new_zeros(weight.shape[:1], dtype=torch.uint8)
        return add_in_bytes(state["codes"], rows, squares, self.rng)


def add_in_bytes(
    codes: Tensor,
    rows: Tensor | EllipsisType,
    amounts: Tensor,
    rng: np.random.Generator,
) -> Tensor:
    """Add to numbers that are kept as codes of `STATE_LEVELS`, rounded by chance.

    Parameters
    ----------
    codes : Tensor of uint8, shape (n,)
        Changed in place.
    rows : Tensor of int64, shape (m,), all different, or ... for all
    amounts : Tensor of floats from 0 up, shape (m,)
    rng : numpy.random.Generator

    Returns
    -------
    Tensor of floats, shape (m,)
        The sums before they were rounded.

    Examples
    --------
    >>> codes, rng = torch.zeros(2000, dtype=torch.uint8), np.random.default_rng(0)
    >>> for _ in range(100):
    ...     sums = add_in_bytes(codes, ..., torch.full((2000,), 0.01), rng)
    >>> bool(abs(sums.mean() - 1) < 0.02)
    True
    """
    levels = torch.from_numpy(STATE_LEVELS).to(amounts)
    sums = read_bytes(codes[rows], amounts) + amounts
    below = torch.bucketize(sums, levels, right=True) - 1
    below = below.clamp(max=len(levels) - 2)
    low, high = levels[below], levels[below + 1]
    up = draw_uniform(sums, rng) * (high - low) < sums - low
    codes[rows] = (below + up).to(torch.uint8)
    return sums


def read_bytes(codes: Tensor, like: Tensor) -> Tensor:
    """The numbers that codes of `STATE_LEVELS` stand for, in another tensor's type."""
    return torch.from_numpy(STATE_LEVELS).to(like)[codes.long()]


def draw_uniform(like: Tensor, rng: np.random.Generator) -> Tensor:
    """Uniform numbers in [0, 1), shaped and placed like a tensor."""
    if like.is_cuda:
        generator = torch.Generator(like.device).manual_seed(int(rng.integers(2**62)))
        return torch.rand(like.shape, generator=generator, device=like.device)
    return torch.from_numpy(rng.random(tuple(like.shape), dtype=np.float32))


def row_means(grad: Tensor) -> Tensor:
    """Mean of the squares of each row, shape (rows,)."""
    return grad.square().flatten(1).mean(1) if grad.ndim > 1 else grad.square()


def widen(scale: Tensor, like: Tensor) -> Tensor:
    """A number per row, shaped to multiply whole rows."""
    return scale.reshape(scale.shape + (1,) * (like.ndim - scale.ndim))
