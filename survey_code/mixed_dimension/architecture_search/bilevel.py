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
    r"""Gradient of the validation loss with respect to the choices, one for each.

    The first order takes the weights as they are.  The second order asks how the
    weights would follow, by one step of gradient descent

    .. math:: w' = w - \xi \nabla_w L_{train}(w, \alpha),

    and takes the derivative of :math:`L_{valid}(w'(\alpha), \alpha)`.

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
        Length of the move of the weights in `mixed_term`.

    Notes
    -----
    Liu et al., "DARTS: Differentiable Architecture Search" (ICLR 2019), section 2.3.
    """
    if order == 1:
        return dense_gradients(valid_loss(), choices)
    chosen = {id(choice) for choice in choices}
    weights = [w for w in weights if id(w) not in chosen and w.requires_grad]
    start = [w.detach().clone() for w in weights]
    move_weights(weights, start, dense_gradients(train_loss(), weights), -rate)
    found = dense_gradients(valid_loss(), [*choices, *weights])
    outer, inner = found[: len(choices)], found[len(choices) :]
    mixed = mixed_term(choices, weights, start, inner, train_loss, rate, radius)
    return [first - second for first, second in zip(outer, mixed)]


def mixed_term(
    choices: Sequence[Tensor],
    weights: Sequence[Tensor],
    start: Sequence[Tensor],
    along: Sequence[Tensor],
    train_loss: Loss,
    rate: float,
    radius: float,
) -> list[Tensor]:
    """The training loss's matrix of second derivatives, by choices and weights, times
    a vector and a rate: the difference quotient of two gradients.

    The weights end where they were at the start.
    """
    length = float(torch.stack([v.square().sum() for v in along]).sum().sqrt())
    small = radius / length if length > 0 else radius
    ends = []
    for place in (small, -small):
        move_weights(weights, start, along, place)
        ends.append(dense_gradients(train_loss(), choices))
    move_weights(weights, start, along, 0.0)
    return [rate / (2 * small) * (a - b) for a, b in zip(*ends)]


def dense_gradients(loss: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a loss; zeros where a weight plays no part."""
    found = torch.autograd.grad(loss, list(weights), allow_unused=True)
    return [
        torch.zeros_like(w) if g is None else g.to_dense() if g.is_sparse else g
        for w, g in zip(weights, found)
    ]


@torch.no_grad()
def move_weights(
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
