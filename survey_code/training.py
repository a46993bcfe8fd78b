"""One training loop for every method, every network and every task."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.embedding import CompressedEmbedding, TrainingStep

TABLE_OPTIMIZERS = ("adam", "rowwise_adagrad", "sgd")
CHOICES = {
    "optimizer": TABLE_OPTIMIZERS,
    "schedule": ("constant", "linear"),
    "precision": ("float32", "float64"),
}


@dataclass(frozen=True)
class TrainingSettings:
    """How long, how fast and on what a network is trained.

    Parameters
    ----------
    epochs : int
        At most; training stops earlier after `patience` epochs in a row without
        a better validation metric.
    batch_size : int
    learning_rate : float
    optimizer : {"adam", "rowwise_adagrad", "sgd"}
        Of the table.  The network around it always uses Adam.
    table_learning_rate : float, optional
        Of the table, where it differs.
    l2 : float
        Factor of half the squared length of the vectors read in a batch,
        averaged over its rows; the same for every method.
    table_l2 : float
        Factor of half the squared length of the *whole* table and the weights
        per id.  Only for repeating published runs that did so.
    patience : int
        0 trains all epochs and keeps the last.
    decay : float
        The learning rate is multiplied by this after every epoch without a
        better metric.
    schedule : {"constant", "linear"}
        ``"linear"`` lowers the learning rates from epoch to epoch, in a straight
        line that would reach 0 after the last.
    clip_norm : float
        Largest length of the gradient of all weights; 0 leaves it alone.
    evaluate_every : int
        Epochs from one look at validation to the next; `patience` counts looks.
        The last epoch is always looked at.
    precision : {"float32", "float64"}
        Of all weights while they learn; in float64 an experiment has the same
        digits on every processor.  The trained weights are float32 either way.
    device : str
        ``"cpu"`` or ``"cuda"``.
    progress : bool
        Show a progress bar, one step per epoch.
    """

    epochs: int = 20
    batch_size: int = 4096
    learning_rate: float = 1e-3
    optimizer: str = "adam"
    table_learning_rate: float | None = None
    l2: float = 0.0
    table_l2: float = 0.0
    patience: int = 2
    decay: float = 0.1
    schedule: str = "constant"
    clip_norm: float = 0.0
    evaluate_every: int = 1
    precision: str = "float32"
    device: str = "cpu"
    progress: bool = False

    def __post_init__(self) -> None:
        for name, low in (
            ("epochs", 1),
            ("batch_size", 1),
            ("patience", 0),
            ("evaluate_every", 1),
        ):
            count = getattr(self, name)
            if not isinstance(count, int) or count < low:
                raise ValueError(
                    f"{name} must be an integer from {low} up, got {count!r}"
                )
        for name in ("learning_rate", "table_learning_rate"):
            rate = getattr(self, name)
            unset = rate is None and name == "table_learning_rate"
            if not (unset or (is_finite(rate) and rate > 0)):
                raise ValueError(f"{name} must be a positive number, got {rate!r}")
        for name in ("l2", "table_l2", "decay", "clip_norm"):
            factor = getattr(self, name)
            if not (is_finite(factor) and factor >= 0):
                raise ValueError(f"{name} must be a number from 0 up, got {factor!r}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {choices}, got {getattr(self, name)!r}"
                )


def is_finite(value: Any) -> bool:
    """Whether a value is a number, and not NaN or infinite."""
    return isinstance(value, int | float) and math.isfinite(value)


@dataclass
class History:
    """What happened in training.

    Parameters
    ----------
    epochs : list of dict
        ``"train_loss"`` of each epoch, and its validation metrics where it was
        looked at.
    best : int
        Index of the epoch whose weights were kept.
    seconds : float
    """

    epochs: list[dict[str, float]] = field(default_factory=list)
    best: int = 0
    seconds: float = 0.0


class Objective(Protocol):
    """What a network is to learn: batches, their loss, and how good it is."""

    monitor: str
    steps: int

    def batches(self, rng: np.random.Generator) -> Iterable[Any]:
        """One epoch of training batches."""

    def validation_batches(self, rng: np.random.Generator) -> Iterator[Any]:
        """Validation batches without end, for searches on two levels."""

    def loss(self, network: Any, batch: Any) -> Tensor:
        """The loss to be reduced, regularisation included."""

    def validate(self, network: Any) -> dict[str, float]:
        """Validation metrics; `monitor` names the one to raise."""


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


def table_rate(settings: TrainingSettings) -> float:
    """The table's learning rate."""
    return settings.table_learning_rate or settings.learning_rate


def moves(weight: Tensor) -> bool:
    """Whether an optimiser has anything to do with a parameter."""
    return bool(weight.requires_grad and weight.numel())


def make_table_optimizer(
    table: CompressedEmbedding, settings: TrainingSettings
) -> torch.optim.Optimizer | None:
    """The table's optimiser, or None for a table without parameters."""
    rate = table_rate(settings)
    parts = [p for p in table.modules() if isinstance(p, CompressedEmbedding)]
    for part in parts:  # a table may hold others
        part.row_optimizer = settings.optimizer
    # A group of width 0 has a parameter without entries: nothing to move there.
    groups = [
        {**group, "params": [p for p in group["params"] if moves(p)]}
        for group in table.parameter_groups(rate)
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        return None
    # Adam moves every row at every step; the other two only the rows read.
    whole = settings.table_l2 or settings.clip_norm
    for part in parts:
        part.sparse_gradients = settings.optimizer != "adam" and not whole
    if settings.optimizer == "adam":
        # One kernel per step on a GPU; on the CPU the plain form, whose digits
        # agree between processors.
        return torch.optim.Adam(groups, lr=rate, fused=settings.device == "cuda")
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate)
    return RowwiseAdagrad(groups, lr=rate)


def train(
    network: Any, objective: Objective, settings: TrainingSettings, seed: int = 0
) -> History:
    """Train a network in place and keep the weights of its best epoch.

    Parameters
    ----------
    network : Module with a `table`
    objective : Objective
    settings : TrainingSettings
    seed : int, default 0
        Order of the batches, and dropout.

    Returns
    -------
    History

    Raises
    ------
    ValueError
        If the loss becomes NaN or infinite.
    """
    with flushed_denormals():
        return Trainer(network, objective, settings, seed).run()


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """Take numbers below 1e-38 as 0.

    Adam's averages of rows that are no longer read shrink into the denormal
    numbers, with which processors compute up to a hundred times slower.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


class Trainer:
    """The loop: epochs of steps, a look at validation, the best weights kept."""

    def __init__(
        self, network: Any, objective: Objective, settings: TrainingSettings, seed: int
    ) -> None:
        self.network = network.to(settings.device)
        set_precision(self.network, getattr(torch, settings.precision))
        self.table: CompressedEmbedding = network.table
        self.objective = objective
        self.settings = settings
        self.rng = np.random.default_rng([seed, 3])
        self.validation = objective.validation_batches(np.random.default_rng([seed, 4]))
        torch.manual_seed(seed)
        own = {id(parameter) for parameter in self.table.parameters()}
        rest = [p for p in network.parameters() if id(p) not in own]
        table_optimizer = make_table_optimizer(self.table, settings)
        self.optimizers = [table_optimizer] if table_optimizer else []
        if rest:
            fused = settings.device == "cuda"
            self.optimizers.append(
                torch.optim.Adam(rest, lr=settings.learning_rate, fused=fused)
            )
        self.groups = [g for o in self.optimizers for g in o.param_groups]
        self.first_rates = [group["lr"] for group in self.groups]
        self.rate = table_rate(settings)
        self.decayed = 1.0
        self.searches = overrides(self.table, "validation_step")
        scheduled = overrides(self.table, "advance")
        self.settled_at = self.table.schedule_end if scheduled else 0.0
        self.steps_done = 0
        self.steps_planned = settings.epochs * objective.steps

    def run(self) -> History:
        """All epochs, or until validation stops improving."""
        start = time.perf_counter()
        self.table.checks_ids = False
        try:
            history = self._run_epochs()
        finally:
            self.table.checks_ids = True
            set_precision(self.network, torch.float32)
            self.network.eval()
        history.seconds = time.perf_counter() - start
        return history

    def _run_epochs(self) -> History:
        history = History()
        best, misses, kept = -np.inf, 0, None
        for epoch in show_progress(self.settings):
            self._set_rates(epoch)
            entry = {"train_loss": self._run_epoch()}
            history.epochs.append(entry)
            if not self.settings.patience:
                history.best = epoch
                continue
            last = epoch + 1 == self.settings.epochs
            due = last or (epoch + 1) % self.settings.evaluate_every == 0
            if not (due and self._settled()):
                continue
            entry.update(self.objective.validate(self.network))
            if entry[self.objective.monitor] > best:
                best, misses, history.best = entry[self.objective.monitor], 0, epoch
                # Where the last epoch is the best, there is nothing to restore.
                kept = None if last else copy.deepcopy(self.network.state_dict())
                continue
            misses += 1
            self.decayed *= self.settings.decay
            if misses >= self.settings.patience:
                break
        if kept is not None:
            self.network.load_state_dict(kept)
        return history

    def _run_epoch(self) -> float:
        self.network.train()
        losses = [self._run_step(batch) for batch in self.objective.batches(self.rng)]
        loss = float(torch.stack(losses).mean())
        if not math.isfinite(loss):
            raise ValueError(
                f"training diverged: the loss of an epoch is {loss}; a lower "
                f"learning rate than {self.rate:g} may help"
            )
        return loss

    def _run_step(self, batch: Any) -> Tensor:
        progress = self._progress(self.steps_done)
        self.table.advance(progress)
        drawn: list[Any] = []

        def validation_loss() -> Tensor:
            if not drawn:  # only now: most methods need none
                drawn.append(next(self.validation))
            return self.objective.loss(self.network, drawn[0])

        step = TrainingStep(
            loss=lambda: self.objective.loss(self.network, batch),
            validation_loss=validation_loss,
            network=self.network,
            learning_rate=self.rate,
            progress=progress,
        )
        if hasattr(self.objective, "row_losses"):
            rows = self.objective.row_losses
            step.row_losses = lambda: rows(self.network, batch)
        if self.searches:
            self.table.validation_step(step)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss = step.loss()
        loss.backward()
        if self.settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(
                self.network.parameters(), self.settings.clip_norm
            )
        for optimizer in self.optimizers:
            optimizer.step()
        self.table.after_step(step)
        self.steps_done += 1
        return loss.detach()

    def _progress(self, step: int) -> float:
        """0 at the first step, 1 at the last."""
        return step / max(self.steps_planned - 1, 1)

    def _settled(self) -> bool:
        """Whether the table's schedule has come to its end: an epoch before that
        is a larger table, and is neither kept nor waited for.
        """
        return self._progress(self.steps_done - 1) >= self.settled_at

    def _set_rates(self, epoch: int) -> None:
        """The learning rates of an epoch."""
        factor = self.decayed
        if self.settings.schedule == "linear":
            factor *= 1 - epoch / self.settings.epochs
        self.rate = table_rate(self.settings) * factor
        for group, first in zip(self.groups, self.first_rates, strict=True):
            group["lr"] = first * factor


def set_precision(network: Any, kind: torch.dtype) -> None:
    """Make all weights float32 or float64, and the network's own buffers.

    A table's buffers stay: what it keeps in few bits, it keeps so on purpose.
    """
    floats = (torch.float32, torch.float64)
    for weight in network.parameters():
        if weight.dtype in floats:
            weight.data = weight.data.to(kind)
    kept = set(network.table.modules())
    for module in set(network.modules()) - kept:
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.dtype in floats:
                setattr(module, name, buffer.to(kind))


def overrides(table: CompressedEmbedding, hook: str) -> bool:
    """Whether a table's class has its own version of a hook."""
    own: Callable[..., Any] = getattr(type(table), hook)
    return own is not getattr(CompressedEmbedding, hook)


def show_progress(settings: TrainingSettings) -> Iterable[int]:
    """The epochs, behind a progress bar where one is asked for."""
    if not settings.progress:
        return range(settings.epochs)
    from tqdm.auto import tqdm

    return tqdm(range(settings.epochs), unit="epoch", desc="training")


def count_parameters(network: nn.Module) -> int:
    """Number of trainable weights."""
    return sum(weight.numel() for weight in network.parameters())
