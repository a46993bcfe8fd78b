"""Learning on two levels: weights on training rows, choices on validation rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from survey_code.embedding import TrainingStep

Loss = Callable[[], Tensor]


def choice_gradient(
    choices: Sequence[Tensor],
    weights: Sequence[Tensor],
    train_loss: Loss,
    valid_loss: Loss,
    rate: float,
    order: int = 1,
    radius: float = 0.01,
) -> list[Tensor]:
    r"""Gradient of the validation loss with respect to the choices.

    The first order takes the weights as they are.  The second order asks how the
    weights would follow, by one step of gradient descent

    .. math:: w' = w - \xi \nabla_w L_{train}(w, \alpha),

    and takes the derivative of :math:`L_{valid}(w'(\alpha), \alpha)`.  Its second
    term, a matrix of second derivatives times a vector, is a difference quotient of
    two gradients.

    Parameters
    ----------
    choices : sequence of Tensor
        The architecture's parameters.
    weights : sequence of Tensor
        All other parameters; they are moved and put back.
    train_loss, valid_loss : callable returning a scalar Tensor
        Computed anew with weights and choices as they are at the call.
    rate : float
        The step's length :math:`\xi`.
    order : {1, 2}
    radius : float, default 0.01
        Length of the move of the weights in the difference quotient.

    Returns
    -------
    list of Tensor
        One gradient for each of the choices.

    Notes
    -----
    Liu et al., "DARTS: Differentiable Architecture Search" (ICLR 2019), section 2.3.
    """
    if order == 1:
        return dense_gradients(valid_loss(), choices)
    chosen = {id(choice) for choice in choices}
    weights = [w for w in weights if id(w) not in chosen and w.requires_grad]
    before = [w.detach().clone() for w in weights]
    step = dense_gradients(train_loss(), weights)
    move(weights, before, step, -rate)
    found = dense_gradients(valid_loss(), [*choices, *weights])
    outer, inner = found[: len(choices)], found[len(choices) :]
    length = torch.stack([v.square().sum() for v in inner]).sum().sqrt()
    small = radius / float(length) if float(length) > 0 else radius
    ends = []
    for sign in (1, -1):
        move(weights, before, inner, sign * small)
        ends.append(dense_gradients(train_loss(), choices))
    move(weights, before, inner, 0.0)
    factor = rate / (2 * small)
    return [v - factor * (a - b) for v, a, b in zip(outer, *ends)]


def dense_gradients(loss: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a loss; zeros where a weight plays no part."""
    found = torch.autograd.grad(loss, list(weights), allow_unused=True)
    return [
        torch.zeros_like(w) if g is None else g.to_dense() if g.is_sparse else g
        for w, g in zip(weights, found)
    ]


@torch.no_grad()
def move(
    weights: Sequence[Tensor],
    before: Sequence[Tensor],
    along: Sequence[Tensor],
    length: float,
) -> None:
    """Put weights where they were, plus a multiple of a direction."""
    for weight, start, direction in zip(weights, before, along):
        weight.copy_(start + length * direction if length else start)


class ChoiceStep:
    """One step of Adam for the choices, once a training step.

    Parameters
    ----------
    choices : list of Tensor
    rate : float
    order : {1, 2}
        Of the gradient.
    """

    def __init__(self, choices: list[Tensor], rate: float, order: int = 1) -> None:
        self.choices, self.order = choices, order
        self.optimizer = torch.optim.Adam(choices, lr=rate)

    def __call__(self, step: TrainingStep) -> None:
        """Move the choices."""
        gradients = choice_gradient(
            self.choices,
            list(step.network.parameters()),
            step.loss,
            step.validation_loss,
            step.learning_rate,
            self.order,
        )
        for choice, gradient in zip(self.choices, gradients):
            choice.grad = gradient
        step_once(self.optimizer)


def step_once(optimizer: torch.optim.Optimizer) -> None:
    """One step of an optimiser whose weights may have changed their precision."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.ndim:
                state[name] = value.to(weight)
    optimizer.step()
    optimizer.zero_grad()
