"""DeepLight: prune a little, train on, prune a little more."""

from __future__ import annotations

import math

import torch

from survey_code.embedding import TrainingStep
from survey_code.layouts.sparse import FORMATS
from survey_code.method import Found, Trained
from survey_code.mixed_dimension.pruning.tickets import LargestEntries, plan_entries
from survey_code.options import Options, found, option
from survey_code.spec import TableSpec

DAMPING = 0.99
# Share of the target that a rescaled schedule reaches; the rest is cut at its end.
DONE = 0.999


def scheduled_sparsity(step: float, target: float, constant: float = 100.0) -> float:
    r"""Share of zeros after so many steps: :math:`S (1 - 0.99^{t / u})`.

    Parameters
    ----------
    step : float
    target : float
        The share S at the end.
    constant : float, default 100
        The time constant u, as published.  See `rescale_constant`.

    Examples
    --------
    >>> round(scheduled_sparsity(100, target=1.0), 6)
    0.01
    """
    return target * (1 - DAMPING ** (step / constant))


def rescale_constant(steps: float) -> float:
    """The time constant with which so many steps come to 99.9 % of the target.

    Examples
    --------
    >>> round(rescale_constant(68_732), 2)
    100.0
    """
    return steps * math.log(DAMPING) / math.log(1 - DONE)


class DeepLightOptions(Options):
    """Options of `DeepLight`."""

    every: int = option(10, "steps from one pruning to the next", low=1)
    warm: float = option(
        0.1, "progress of training, 0 to 1, at which pruning begins", low=0, below=1
    )
    # Without it the rows of rare ids stay as large as they were drawn, and no pruning
    # by size finds them.
    decay: float = option(
        1e-5, "weight decay of the table", low=0, below=1, tune=(1e-5, 1e-6, 1e-4)
    )
    end: float = option(
        0.6,
        "progress of training at which the target is reached",
        above=0, high=1, tune=(0.6, 0.3),
    )  # fmt: skip
    constant: float | None = option(
        None,
        "time constant of the schedule in steps, 100 as published; None: such that it "
        "is over at `end`",
        above=0,
    )
    format: str = option("float32", "of the stored values", choices=FORMATS)
    keep: int = found("entries that are not zero at the end", low=0)


class DeepLight(LargestEntries, Trained[DeepLightOptions]):
    """A table whose smallest entries are zeroed while it learns (``deeplight``).

    Zeroed entries keep their gradients: one that grows back in time stays.

    Notes
    -----
    Deng et al., "DeepLight: Deep Lightweight Feature Interactions for Accelerating
    CTR Predictions in Ad Serving" (WSDM 2021).  The schedule is theirs, but its time
    constant follows the length of training (`constant`): theirs takes 68,732 steps to
    come within a thousandth of the target, and what is missing is cut at the end.  They
    prune the network's weights too; we prune the table alone.
    """

    steady = True

    def __init__(
        self, spec: TableSpec, options: DeepLightOptions, seed: int = 0
    ) -> None:
        super().__init__(spec, options, seed)
        if options.warm >= options.end:
            raise ValueError(
                f"warm must be below end, got {options.warm} and {options.end}"
            )
        self.every, self.constant = options.every, options.constant
        self.warm, self.schedule_end = options.warm, options.end
        self.progress, self.steps = 0.0, 0

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: DeepLightOptions) -> Found:
        """As many entries as the budget pays for."""
        return {"keep": plan_entries(spec, ratio, options.format)}

    def sparsity(self) -> float:
        """Share of zeros that the schedule asks for now."""
        target = 1 - self.keep / self.weight.numel()
        length = self.schedule_end - self.warm
        done = self.progress - self.warm
        if self.constant is not None:
            steps = max(done, 0.0) * self.regime.steps
            return scheduled_sparsity(steps, target, self.constant)
        if done >= length:
            return target
        return scheduled_sparsity(max(done, 0.0), target, rescale_constant(length))

    def advance(self, progress: float) -> None:
        """Remember how far training is."""
        self.progress = progress

    @torch.no_grad()
    def after_step(self, step: TrainingStep) -> None:
        """Every few steps, zero the smallest entries."""
        self.steps += 1
        if self.steps % self.every == 0:
            self.prune(self.sparsity())

    @torch.no_grad()
    def prune(self, sparsity: float) -> None:
        """Zero this share of the entries, the smallest first."""
        keep = self.weight.numel() - math.floor(sparsity * self.weight.numel())
        self.weight.mul_(self.largest(keep))
