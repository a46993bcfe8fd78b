"""Rounding in torch: up or down by chance, and through gradients."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from survey_code.adagrad import draw_uniform

ROUNDINGS = ("stochastic", "nearest")


def round_stochastically(values: Tensor, rng: np.random.Generator) -> Tensor:
    """Round each number down or up, up with the probability of its fraction.

    The mean of many roundings is the number itself: 2.3 becomes 3 in three of
    ten cases and 2 in the others.  The variance is f (1 - f) for a fraction f.

    Parameters
    ----------
    values : Tensor of float32, any shape
    rng : numpy.random.Generator

    Returns
    -------
    Tensor of float32, same shape
        Whole numbers.
    """
    low = values.floor()
    return low + (draw_uniform(values, rng) < values - low)


def round_to_whole(values: Tensor, rounding: str, rng: np.random.Generator) -> Tensor:
    """Whole numbers near the values, by one of `ROUNDINGS`."""
    if rounding == "nearest":
        return values.round()
    return round_stochastically(values, rng)


def round_through(values: Tensor) -> Tensor:
    """Nearest whole numbers, whose gradient is taken to be 1 (straight-through)."""
    return values.round().detach() + (values - values.detach())


def scale_gradient(values: Tensor, factor: float) -> Tensor:
    """The values themselves, with their gradient multiplied by a factor."""
    return values.detach() + factor * (values - values.detach())


def quantize_through(
    weight: Tensor,
    step: Tensor,
    low: float,
    high: float,
    factor: float = 1.0,
    shift: float = 0.0,
) -> Tensor:
    r"""Round weights to multiples of a step, with gradients for both.

    :math:`\hat w = s\,\mathrm{round}(\mathrm{clip}(w / s, l, h))`.  Weights inside
    the range receive the gradient of :math:`\hat w`, those outside none; that of
    the step is :math:`\mathrm{round}(w / s) - w / s` inside and l or h outside,
    times `factor`.

    Parameters
    ----------
    weight : Tensor of float32
    step : Tensor of float32, broadcast against `weight`
        Positive.
    low, high : float
        Smallest and largest code: whole numbers, plus the shift.
    factor : float, default 1
        1 / sqrt(N high) for N weights that share a step, so that the step moves
        in proportion to the weights.
    shift : float, default 0
        By which codes lie beside whole numbers; with 1/2 none is 0.

    Returns
    -------
    Tensor of float32, shape of `weight`

    Notes
    -----
    Esser et al., "Learned Step Size Quantization" (ICLR 2020), equations 1-5.
    """
    step = scale_gradient(step, factor)
    codes = round_through((weight / step).clamp(low, high) - shift) + shift
    return codes * step
