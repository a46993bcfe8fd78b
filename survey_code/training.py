"""One training loop for every method, every network and every task."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.adagrad import RowwiseAdagrad, RowwiseAdagradInBytes
from survey_code.embedding import (
    CompressedEmbedding,
    Diverged,
    History,
    Network,
    Regime,
    Script,
    TrainingStep,
)
from survey_code.options import Options, option
from survey_code.replay import Batch, RecordedStep, hold_on_gpu, set_rate

N = TypeVar("N", bound=Network, contravariant=True)
M = TypeVar("M", bound=Network)

# Validation batches on which a search compares its choices.
JUDGED = 4
# A training that only a plateau ends goes on for so many times its epochs at most.
MOST_EPOCHS = 40


class TrainingSettings(Options):
    """How long, how fast and on what a network is trained.

    The network around the table always uses Adam.  L2 counts the vectors read in a
    batch, `table_l2` all that the table learns, whether it is read or not.
    The trained weights are float32 in either precision.

    Raises
    ------
    ValueError
        If a setting is not what it must be.
    """

    epochs: int = option(
        20,
        "at most; `patience` may end the training earlier.  Where a plateau ends it: "
        "those over which a table's own schedule runs, and no bound",
        low=1,
    )
    batch_size: int = option(4096, "rows of a step", low=1)
    learning_rate: float = option(1e-3, "of the network, and the table", above=0)
    optimizer: str = option(
        "adam",
        "of the table; that of 8 bits keeps a byte a row",
        choices=("adam", "rowwise_adagrad", "rowwise_adagrad_8bit", "sgd"),
    )
    table_learning_rate: float | None = option(
        None, "of the table, where it differs", above=0
    )
    l2: float = option(
        0.0, "factor of half the mean squared length of a row's vectors", low=0
    )
    table_l2: float = option(
        0.0, "factor of half the squared length of the whole table", low=0
    )
    patience: int = option(
        2, "looks without a better metric that end it; 0 trains all epochs", low=0
    )
    decay: float = option(
        0.1,
        "of the rates, after each look without a better metric; of a plateau, after "
        "`patience` of them",
        low=0,
    )
    schedule: str = option(
        "constant",
        "of the rates over epochs; linear ends at 0; plateau is constant until "
        "`patience` looks bring nothing, then goes on from the best weights at lower "
        "rates, `drops` times, and then ends the training",
        choices=("constant", "linear", "plateau"),
    )
    drops: int = option(3, "times that a plateau lowers the rates", low=0)
    tolerance: float = option(
        0.0,
        "share of the best metric by which a look must be better to count as such",
        low=0,
    )
    clip_norm: float = option(
        0.0, "largest length of the whole gradient; 0 leaves it alone", low=0
    )
    evaluate_every: int = option(
        1, "epochs from one look at validation to the next", low=1
    )
    # In float64 an experiment has the same digits on every processor.
    precision: str = option(
        "float32", "of all weights while they learn", choices=("float32", "float64")
    )
    # Half as long where products take the time, and no other metrics.
    products: str = option(
        "float32",
        "precision of products of matrices while training on a GPU",
        choices=("float32", "tf32"),
    )
    device: str = option("cpu", "cpu or cuda")
    # The same arithmetic, many times faster where the network is small.
    replay: bool = option(True, "on a GPU, record a step once and replay it")
    progress: bool = option(False, "show a progress bar")


class Objective(Protocol[N]):
    """What a network is to learn: batches, their loss, and how good it is.

    A batch is a tuple of tensors.
    """

    monitor: str
    steps: int

    def batches(self, rng: np.random.Generator) -> Iterable[Batch]:
        """One epoch of training batches."""

    def validation_batches(self, rng: np.random.Generator) -> Iterator[Batch]:
        """Validation batches without end, for searches on two levels."""

    def loss(self, network: N, batch: Batch) -> Tensor:
        """The loss to be reduced, regularisation included."""

    def row_losses(self, network: N, batch: Batch) -> Tensor:
        """The loss of each row alone, shape (batch,); none where there are no rows."""

    def labels(self, batch: Batch) -> Tensor:
        """The label of each row, shape (batch,); none where there are no rows."""

    def validate(self, network: N) -> dict[str, float]:
        """Validation metrics; `monitor` names the one to raise."""


def table_rate(settings: TrainingSettings) -> float:
    """The table's learning rate."""
    return settings.table_learning_rate or settings.learning_rate


def moves(weight: Tensor) -> bool:
    """Whether an optimiser has anything to do with a parameter."""
    return bool(weight.requires_grad and weight.numel())


def make_table_optimizer(
    table: CompressedEmbedding,
    settings: TrainingSettings,
    steps: int = 1000,
    seed: int = 0,
) -> torch.optim.Optimizer | None:
    """The table's optimiser, or None for a table without parameters.

    The table hears of it, and of the steps to come, before it names its parameters.
    The seed is that of a state that is rounded by chance.
    """
    rate = table_rate(settings)
    # Adam moves every row at every step; the others only the rows read.
    whole = settings.table_l2 or settings.clip_norm
    sparse = settings.optimizer != "adam" and not whole
    regime = Regime(settings.optimizer, sparse, steps, settings.epochs)
    groups = begin_groups(table, regime, rate)
    if sparse and any(group.get("weight_decay") for group in groups):
        # What decays moves without being read, too.
        regime = dataclasses.replace(regime, sparse=False)
        groups = begin_groups(table, regime, rate)
    if not groups:
        return None
    if settings.optimizer == "adam":
        # One kernel per step on a GPU; on the CPU the plain form, whose digits
        # agree between processors.
        return torch.optim.Adam(groups, lr=rate, fused=settings.device == "cuda")
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate)
    if settings.optimizer == "rowwise_adagrad_8bit":
        return RowwiseAdagradInBytes(groups, lr=rate, seed=seed)
    return RowwiseAdagrad(groups, lr=rate)


def begin_groups(
    table: CompressedEmbedding, regime: Regime, rate: float
) -> list[dict[str, Any]]:
    """Tell a table how it is moved; its parameters that can be, in their groups."""
    table.begin(regime)
    # A group of width 0 has a parameter without entries: nothing to move there.
    groups = [
        {**group, "params": [p for p in group["params"] if moves(p)]}
        for group in table.parameter_groups(rate)
    ]
    return [group for group in groups if group["params"]]


def train(
    network: M,
    objective: Objective[M],
    settings: TrainingSettings,
    seed: int = 0,
    script: Script | None = None,
) -> History:
    """Train a network in place and keep the weights of its best epoch.

    Parameters
    ----------
    network : Module with a `table`
    objective : Objective
    settings : TrainingSettings
    seed : int, default 0
        Order of the batches, and dropout.
    script : Script, optional
        Steps and rates of an earlier training, to be made again: no look at
        validation then, and the last weights are kept.

    Returns
    -------
    History

    Raises
    ------
    Diverged
        If the loss becomes NaN or infinite.
    """
    with flushed_denormals(), products_in(settings.products):
        return Trainer(network, objective, settings, seed, script).run()


class RowMeter:
    """Counts the training rows seen in it, each as often as it was."""

    rows = 0


_METERS: list[RowMeter] = []


@contextlib.contextmanager
def meter_rows() -> Iterator[RowMeter]:
    """Count the rows that all trainings in it see; a search makes several."""
    meter = RowMeter()
    _METERS.append(meter)
    try:
        yield meter
    finally:
        _METERS.remove(meter)


@contextlib.contextmanager
def products_in(kind: str) -> Iterator[None]:
    """Multiply float32 matrices on a GPU in float32 or in TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


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


class Watch:
    """Follows validation: which look was best, the rates, and when it is enough."""

    def __init__(self, settings: TrainingSettings) -> None:
        self.settings = settings
        self.best = self.counted = -math.inf
        self.misses, self.drops_left = 0, settings.drops
        self.factor = 1.0
        self.ended = self.goes_back = False

    def look(self, metric: float) -> bool:
        """Whether a metric is the best yet; what follows of it is noted."""
        self.goes_back = False
        if metric - self.counted > self.settings.tolerance * abs(metric):
            self.counted, self.misses = metric, 0
        else:
            self._miss()
        better = metric > self.best
        self.best = max(metric, self.best)
        return better

    def _miss(self) -> None:
        self.misses += 1
        waited = self.misses >= self.settings.patience
        if self.settings.schedule != "plateau":
            self.factor *= self.settings.decay
            self.ended = waited
        elif waited:
            self.factor *= self.settings.decay
            self.ended = self.drops_left == 0
            self.goes_back = not self.ended
            self.drops_left, self.misses = self.drops_left - 1, 0


class Trainer(Generic[M]):
    """The loop: epochs of steps, a look at validation, the best weights kept."""

    def __init__(
        self,
        network: M,
        objective: Objective[M],
        settings: TrainingSettings,
        seed: int,
        script: Script | None = None,
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
        self.script = script
        self.steps_done = self.rows_seen = 0
        self.steps_planned = settings.epochs * objective.steps
        if script is not None:
            self.steps_planned = script.planned
        self.stopped = False
        table_optimizer = make_table_optimizer(
            self.table, settings, self.steps_planned, seed
        )
        self.optimizers = [table_optimizer] if table_optimizer else []
        if rest:
            fused = settings.device == "cuda"
            self.optimizers.append(
                torch.optim.Adam(rest, lr=settings.learning_rate, fused=fused)
            )
        self.groups = [g for o in self.optimizers for g in o.param_groups]
        self.first_rates = [group["lr"] for group in self.groups]
        self.learn = self._learn
        if replays(network, settings):
            hold_on_gpu(self.optimizers, settings.device)
            self.learn = RecordedStep(self._learn, network)
        self.rate = table_rate(settings)
        self.factor = 1.0
        self.watch = Watch(settings)
        self.kept: dict[str, Any] | None = None
        self.kept_moments: list[Moments] = []
        self.path: list[float] = []  # rates of the epochs that led to the weights

    def run(self) -> History:
        """All epochs, or until validation stops improving."""
        start = time.perf_counter()
        steps, planned = self.objective.steps, self.steps_planned
        history = History(steps=steps, planned=planned)
        try:
            self._run_epochs(history)
        finally:
            set_precision(self.network, torch.float32)
            self.network.eval()
        history.seconds = time.perf_counter() - start
        history.rows = self.rows_seen
        for meter in _METERS:
            meter.rows += self.rows_seen
        return history

    def _run_epochs(self, history: History) -> None:
        epochs = count_epochs(self.settings, self.script, self.objective.steps)
        for epoch in show_progress(epochs, self.settings):
            self._set_rates(self._choose_factor(epoch))
            entry = {"train_loss": self._run_epoch()}
            history.epochs.append(entry)
            history.rates.append(self.factor)
            self.path.append(self.factor)
            if self.stopped or not self.settings.patience or self.script:
                history.best, history.kept_rates = epoch, list(self.path)
                history.ended = "table" if self.stopped else "epochs"
                if self.stopped:
                    break
            elif self._is_due(epoch, epochs):
                with products_in("float32"):
                    entry.update(self.objective.validate(self.network))
                self._note_look(entry[self.objective.monitor], epoch, history)
                if self.watch.ended:
                    history.ended = "plateau"
                    break
                if self.watch.goes_back:
                    self._go_back(history)
        else:
            if waits_for_plateau(self.settings) and not self.script:
                history.ended = "limit"
        if self.kept is not None:
            self.network.load_state_dict(self.kept)

    def _is_due(self, epoch: int, epochs: int) -> bool:
        """Whether to look at validation after an epoch."""
        last = epoch + 1 == epochs
        return (
            last or (epoch + 1) % self.settings.evaluate_every == 0
        ) and self._settled()

    def _note_look(self, metric: float, epoch: int, history: History) -> None:
        """Keep the weights of the best look."""
        if self.watch.look(metric):
            history.best, history.kept_rates = epoch, list(self.path)
            self.kept = copy.deepcopy(self.network.state_dict())
            if waits_for_plateau(self.settings):
                self.kept_moments = [copy_moments(o) for o in self.optimizers]

    def _go_back(self, history: History) -> None:
        """The weights of the best look, and what the optimisers knew then: lower rates
        would not undo what was learnt too well since.
        """
        if self.kept is None:
            return
        self.network.load_state_dict(self.kept)
        for optimizer, moments in zip(self.optimizers, self.kept_moments, strict=True):
            restore_moments(optimizer, moments)
        self.path = list(history.kept_rates)

    def _run_epoch(self) -> float:
        self.network.train()
        losses: list[Tensor] = []
        for batch in self.objective.batches(self.rng):
            if self.script is not None:
                if self.steps_done == self.script.steps:
                    break
                self._set_rates(self.script.rate_at(self.steps_done))
            losses.append(self._run_step(batch))
            if self.stopped:
                break
        loss = float(torch.stack(losses).mean())
        if not math.isfinite(loss):
            raise Diverged(
                f"training diverged: the loss of an epoch is {loss}; a lower "
                f"learning rate than {self.rate:g} may help"
            )
        return loss

    def _run_step(self, batch: Batch) -> Tensor:
        step = self._describe_step(batch)
        self.table.advance(step.progress)
        self.table.validation_step(step)
        loss = self.learn(batch)
        self.table.after_step(step)
        self.steps_done += 1
        self.rows_seen += batch[0].shape[0] if batch[0].ndim else 1
        return loss

    def _learn(self, batch: Batch) -> Tensor:
        """Loss, gradients and the optimisers' steps."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss = self.objective.loss(self.network, batch)
        loss.backward()
        if self.settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(
                self.network.parameters(), self.settings.clip_norm
            )
        for weight, rows in self.table.renewed_rows():
            forget_rows(self.optimizers, weight, rows)
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.detach()

    def _describe_step(self, batch: Batch) -> TrainingStep:
        """What the table's hooks may ask in this step."""
        drawn: list[Batch] = []

        def validation_loss() -> Tensor:
            if not drawn:  # only now: most methods need none
                drawn.append(next(self.validation))
            return self.objective.loss(self.network, drawn[0])

        def stop() -> None:
            self.stopped = True

        return TrainingStep(
            loss=lambda: self.objective.loss(self.network, batch),
            validation_loss=validation_loss,
            network=self.network,
            learning_rate=self.rate,
            progress=self._progress(self.steps_done),
            row_losses=lambda: self.objective.row_losses(self.network, batch),
            stop=stop,
            labels=lambda: self.objective.labels(batch),
        )

    def _progress(self, step: int) -> float:
        """0 at the first step, 1 at the last that is planned, and after it."""
        return min(step / max(self.steps_planned - 1, 1), 1.0)

    def _settled(self) -> bool:
        """Whether the table's schedule has come to its end: an epoch before that
        is a larger table, and is neither kept nor waited for.
        """
        return self._progress(self.steps_done - 1) >= self.table.schedule_end

    def _choose_factor(self, epoch: int) -> float:
        """The factor of the learning rates in an epoch."""
        if self.script is not None:
            return self.script.rate_at(self.steps_done)
        if self.settings.schedule == "linear":
            return self.watch.factor * (1 - epoch / self.settings.epochs)
        return self.watch.factor

    def _set_rates(self, factor: float) -> None:
        """The learning rates from now on."""
        if factor == self.factor:
            return
        self.factor = factor
        self.rate = table_rate(self.settings) * factor
        for group, first in zip(self.groups, self.first_rates, strict=True):
            set_rate(group, first * factor)


def count_epochs(settings: TrainingSettings, script: Script | None, steps: int) -> int:
    """Epochs of so many steps that are made at most."""
    if script is not None:
        return -(-script.steps // steps)
    return settings.epochs * (MOST_EPOCHS if waits_for_plateau(settings) else 1)


def waits_for_plateau(settings: TrainingSettings) -> bool:
    """Whether validation alone ends the training."""
    return settings.schedule == "plateau" and settings.patience > 0


# What an optimiser keeps for each parameter, by name.
Moments = dict[Tensor, dict[str, Any]]


def copy_moments(optimizer: torch.optim.Optimizer) -> Moments:
    """What an optimiser knows of its parameters."""
    return {
        weight: {
            name: kept.clone() if isinstance(kept, Tensor) else kept
            for name, kept in state.items()
        }
        for weight, state in optimizer.state.items()
    }


def restore_moments(optimizer: torch.optim.Optimizer, moments: Moments) -> None:
    """Let it know that again, in the same memory: a recorded step reads it there."""
    for weight, state in optimizer.state.items():
        for name, kept in moments.get(weight, {}).items():
            if isinstance(kept, Tensor):
                state[name].copy_(kept)
            else:
                state[name] = kept


def forget_rows(
    optimizers: Iterable[torch.optim.Optimizer], weight: nn.Parameter, rows: Tensor
) -> None:
    """Set to 0 what optimisers keep for some rows of a parameter.

    Adam's count of steps is that of the whole parameter, and stays: it treats such a
    row as it does one that was never read.
    """
    for optimizer in optimizers:
        for kept in optimizer.state.get(weight, {}).values():
            if isinstance(kept, Tensor) and kept.shape[:1] == weight.shape[:1]:
                kept[rows] = 0


def replays(network: Network, settings: TrainingSettings) -> bool:
    """Whether a step can be recorded: on a GPU, of a table whose steps are alike, and
    by Adam, which moves every row; without sparse matrices, which have no address.
    """
    on_gpu = torch.device(settings.device).type == "cuda"
    tables = (t for t in network.modules() if isinstance(t, CompressedEmbedding))
    alike = all(part.steady for part in tables)
    alike &= all(held.layout == torch.strided for held in network.buffers())
    return on_gpu and settings.replay and settings.optimizer == "adam" and alike


def set_precision(network: Network, kind: torch.dtype) -> None:
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


def show_progress(epochs: int, settings: TrainingSettings) -> Iterable[int]:
    """The epochs, behind a progress bar where one is asked for."""
    if not settings.progress:
        return range(epochs)
    from tqdm.auto import tqdm

    return tqdm(range(epochs), unit="epoch", desc="training")


class Jury(Generic[M]):
    """Judges the choices of a search by a network that it has trained.

    Parameters
    ----------
    network : Network
        Trained, with the table that tries the choices.
    objective : Objective
    settings : TrainingSettings
    seed : int
        Of the batches.
    """

    def __init__(
        self, network: M, objective: Objective[M], settings: TrainingSettings, seed: int
    ) -> None:
        self.network, self.objective, self.settings = network, objective, settings
        self.precision, self.seed = getattr(torch, settings.precision), seed
        self.batches: list[Batch] = []

    def prepare(self) -> None:
        """The network in the precision of training, in which all is judged: a close
        call must not depend on the processor.
        """
        set_precision(self.network.eval(), self.precision)

    @torch.no_grad()
    def loss(self) -> float:
        """Mean loss on the same four validation batches, with the table as it is."""
        self.prepare()
        if not self.batches:
            rng = np.random.default_rng(self.seed)
            drawn = self.objective.validation_batches(rng)
            self.batches = [next(drawn) for _ in range(JUDGED)]
        losses = [self.objective.loss(self.network, batch) for batch in self.batches]
        return float(torch.stack(losses).mean())

    def metric(self) -> float:
        """AUC or Recall@20 on all validation rows, with the table as it is.

        It asks for the order alone.  Cosines of rows that are read in part are larger
        than they should be, and by their loss nothing at all may seem better.
        """
        self.prepare()
        return float(self.objective.validate(self.network)[self.objective.monitor])

    def metric_after_training(self) -> float:
        """`metric` once the network has trained on for all epochs of the settings,
        after which all weights are as they were.
        """
        kept = copy.deepcopy(self.network.state_dict())
        settings = self.settings.replace(patience=0)
        train(self.network, self.objective, settings, self.seed)
        found = self.metric()
        self.network.load_state_dict(kept)
        return found

    def gradients(self, weights: list[Tensor], batches: int) -> list[Tensor]:
        """Gradients of the mean loss of the first few training batches."""
        losses = [loss() for loss in self.training_losses(batches)]
        return list(torch.autograd.grad(torch.stack(losses).mean(), weights))

    def training_losses(self, batches: int) -> Iterator[Callable[[], Tensor]]:
        """The loss of each of the first few training batches, to be asked for."""
        self.prepare()
        drawn = self.objective.batches(np.random.default_rng([self.seed, 6]))
        for batch, _ in zip(drawn, range(batches)):
            yield functools.partial(self.objective.loss, self.network, batch)


def count_parameters(network: nn.Module) -> int:
    """Number of trainable weights."""
    return sum(weight.numel() for weight in network.parameters())
