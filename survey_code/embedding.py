"""The contract: an embedding table that learns, and the network around it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.layouts import Layout

# What NumPy's generators take for a seed.
Seed = int | Sequence[int]


@dataclass
class TrainingStep:
    """What the training loop hands to a table's hooks, once a step.

    Parameters
    ----------
    loss : callable returning a scalar Tensor
        The loss of the batch just used, computed anew with the table as it is.
    validation_loss : callable returning a scalar Tensor
        The loss of the step's validation batch, the same at every call (for
        searches on two levels).
    network : Module
        The whole network, table included.
    learning_rate : float
        The table's learning rate in force.
    progress : float
        0 at the first step of training, 1 at the last.
    row_losses : callable returning a Tensor of shape (batch,)
        The loss of each row of the batch alone, where rows are what the task has
        (clicks); for methods that judge single ids.
    stop : callable
        Ends the training after this step: a search has found what it looked for.
    labels : callable returning a Tensor of shape (batch,)
        1 for each clicked row of the batch, 0 for the others, where rows are what the
        task has; for methods that count reads apart by what became of them.
    """

    loss: Callable[[], Tensor]
    validation_loss: Callable[[], Tensor]
    network: nn.Module
    learning_rate: float
    progress: float
    row_losses: Callable[[], Tensor] = lambda: torch.zeros(0)
    stop: Callable[[], None] = lambda: None
    labels: Callable[[], Tensor] = lambda: torch.zeros(0)


@dataclass(frozen=True)
class Regime:
    """How the training loop moves a table, told before the first step.

    Parameters
    ----------
    optimizer : {"adam", "rowwise_adagrad", "rowwise_adagrad_8bit", "sgd"}
        The rule for rows; a table that moves its rows itself follows it.
    sparse : bool
        Whether the optimiser takes sparse gradients.
    steps : int
        Of the whole training.
    epochs : int
        Into which they fall.
    """

    optimizer: str = "sgd"
    sparse: bool = False
    steps: int = 1000
    epochs: int = 1


class Diverged(ValueError):
    """A training has led to NaN or infinity."""


@dataclass(frozen=True)
class Script:
    """The steps of a training and their rates, to be made again on other rows.

    Parameters
    ----------
    parts : tuple of (int, float)
        Steps, and the factor of the learning rates in them.
    planned : int
        Steps over which a table's own schedule ran.
    """

    parts: tuple[tuple[int, float], ...]
    planned: int

    @property
    def steps(self) -> int:
        """Of all parts."""
        return sum(steps for steps, _ in self.parts)

    def rate_at(self, step: int) -> float:
        """The factor of the rates in a step, counted from 0."""
        for steps, factor in self.parts:
            if step < steps:
                return factor
            step -= steps
        return self.parts[-1][1]


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
    rates : list of float
        Factor of the learning rates in each epoch.
    kept_rates : list of float
        The same of those epochs that led to the weights that were kept: a plateau
        goes back to the best ones before it goes on at lower rates.
    steps, planned : int
        Steps of an epoch, and those over which a table's own schedule runs.
    rows : int
        Training rows seen, each as often as it was.
    ended : {"epochs", "plateau", "limit", "table"}
        By what: all epochs made, no better metric, neither within `MOST_EPOCHS`
        times the epochs, or the table's own wish.
    """

    epochs: list[dict[str, float]] = field(default_factory=list)
    best: int = 0
    seconds: float = 0.0
    rates: list[float] = field(default_factory=list)
    kept_rates: list[float] = field(default_factory=list)
    steps: int = 0
    planned: int = 0
    rows: int = 0
    ended: str = "epochs"

    @property
    def script(self) -> Script:
        """The steps and rates that led to the weights that were kept."""
        return Script(
            tuple((self.steps, rate) for rate in self.kept_rates), self.planned
        )


def refuse_diverged(freeze: Callable[[Any], Layout]) -> Callable[[Any], Layout]:
    """A table's `freeze` that looks at the parameters first.

    What NaN does to signs, codes or the nearest centroid is a row like any other.
    """

    @functools.wraps(freeze)
    def checked(table: nn.Module) -> Layout:
        # Tables that move their rows themselves keep what they learn in buffers.
        for name, weight in (*table.named_parameters(), *table.named_buffers()):
            if not weight.isfinite().all():
                raise Diverged(
                    f"{name} holds NaN or infinity, and cannot be frozen: the table "
                    "must be finite; did its training diverge?"
                )
        return freeze(table)

    return checked


# What a table does within a step, or for it.
IN_A_STEP = {"embed", "penalty", "advance", "validation_step"}


class CompressedEmbedding(nn.Module):
    """An embedding table that can be trained, and then frozen into a layout.

    A subclass implements `embed` and `freeze`; the other methods are hooks that
    the training loop calls, and do nothing where a method does not need them.

    Parameters
    ----------
    num_embeddings : int
        Number of ids; ids are ``0 .. num_embeddings - 1``.
    embedding_dim : int
        Length of the vector that `forward` returns for one id.
    """

    # Serve any id from 0 up (tables that compute their rows can).
    open_ids: bool = False
    # Whether unrelated ids, a user and an item say, may be given the same rows.
    shares_rows: bool = False
    # Whether each step of training does the same with other ids: it then reads no
    # Python number that changes, asks no tensor for one, and draws by torch alone.  A
    # GPU records such a step once and replays it.  A class that writes one of
    # `IN_A_STEP` anew says so for itself.
    steady: bool = False
    # Progress at which the schedule of `advance` is over, 0 where there is none.
    # Only epochs that end there or later can be the best one.
    schedule_end: float = 0.0
    # Parameters that are no weights, by name, but gates, thresholds or steps: L2 of the
    # whole table would choose in their place.
    gauges: tuple[str, ...] = ()
    # What the training loop said in `begin`.
    regime: Regime = Regime()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own = vars(cls)
        if "freeze" in own:
            setattr(cls, "freeze", refuse_diverged(own["freeze"]))  # noqa: B010
        if "steady" not in own and IN_A_STEP & set(own):
            cls.steady = False

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.num_embeddings = int(num_embeddings)
        self.embedding_dim = int(embedding_dim)

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors of ids.

        Parameters
        ----------
        ids : Tensor of int64 or int32, any shape

        Returns
        -------
        Tensor of float32, shape (*ids.shape, embedding_dim)

        Raises
        ------
        IndexError
            If an id is negative or not below `num_embeddings`.
        ValueError
            If ids are not integers.
        """
        return self.embed(self.check_ids(ids))

    if TYPE_CHECKING:  # nn.Module's own says Any

        def __call__(self, ids: Tensor) -> Tensor:
            """`forward`."""

    def check_ids(self, ids: Tensor) -> Tensor:
        """The ids as int64, or one clear error."""
        ids = torch.as_tensor(ids)
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise ValueError(f"ids must be integers, got dtype {ids.dtype}")
        ids = ids.to(torch.int64)
        if ids.numel():
            low, high = (int(bound) for bound in torch.aminmax(ids))
            beyond = not self.open_ids and high >= self.num_embeddings
            if low < 0 or beyond:
                raise IndexError(
                    f"id {low if low < 0 else high} is out of range for a table of "
                    f"{self.num_embeddings} rows"
                )
        return ids

    def embed(self, ids: Tensor) -> Tensor:
        """Vectors of checked ids: int64 (*shape) -> float32 (*shape, dim)."""
        raise NotImplementedError

    def freeze(self) -> Layout:
        """What is deployed; its look-up equals `forward` in eval mode.

        Raises
        ------
        ValueError
            If a parameter is NaN or infinite; this is checked for every subclass.
        """
        raise NotImplementedError

    # -- hooks of the training loop -----------------------------------------

    def begin(self, regime: Regime) -> None:
        """Hear how this table, and those inside it, are going to be moved."""
        for part in self.modules():
            if isinstance(part, CompressedEmbedding):
                part.regime = regime

    def penalty(self) -> Tensor:
        """A scalar that is added to the loss; 0 where the method has none."""
        return torch.zeros(())

    def squared_length(self) -> Tensor:
        """Sum of squares of all weights that are learnt here, without the `gauges`:
        what `table_l2` counts.
        """
        learnt = [
            weight.square().sum()
            for name, weight in self.named_parameters()
            if name.split(".")[0] not in self.gauges
        ]
        return torch.stack(learnt).sum() if learnt else torch.zeros(())

    def advance(self, progress: float) -> None:
        """Move schedules on (temperature, pruning rate); 0 <= progress <= 1."""

    def after_step(self, step: TrainingStep) -> None:
        """Work after the optimiser's step: proximal steps, integer write-back,
        re-clustering, promotion.
        """

    def renewed_rows(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Rows that began anew since this was last asked: parameters, and row numbers.

        The loop asks before the optimiser's step, which then moves them as it does
        rows that were never read.
        """
        return []

    def validation_step(self, step: TrainingStep) -> None:
        """One step of a search that learns from validation batches.

        A validation batch is drawn only where its loss is asked for.
        """

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The table's parameters as the optimiser wants them; a group may carry
        its own ``"lr"``.
        """
        return [{"params": list(self.parameters()), "lr": learning_rate}]


class Network(nn.Module):
    """A network around a table, which it reads vectors from.

    Parameters
    ----------
    table : CompressedEmbedding
    """

    def __init__(self, table: CompressedEmbedding) -> None:
        super().__init__()
        self.table = table


@dataclass(frozen=True)
class Fitted:
    """A network that has learnt, table included, and how its training went."""

    network: Any
    history: History


def decode_layout(layout: Layout, chunk: int = 65536) -> np.ndarray:
    """All rows of a layout, shape (num_embeddings, embedding_dim), float32."""
    layout = layout.to_cpu()
    table = np.empty((layout.num_embeddings, layout.embedding_dim), np.float32)
    for start in range(0, len(table), chunk):
        stop = min(start + chunk, len(table))
        table[start:stop] = layout.lookup(np.arange(start, stop))
    return table


def pick_rows(ids: Tensor, weight: Tensor, sparse: bool = False) -> Tensor:
    """Rows of a weight, a row for each id: the shape of the ids and an axis of columns.

    As torch's `embedding`, whose gradient on a GPU sorts the ids first, so that sums
    have an order; for a batch of some thousand ids that takes longer than the step's
    other kernels together, and here they are added as they come.
    """
    if sparse or not weight.is_cuda:
        return functional.embedding(ids, weight, sparse=sparse)
    return weight.index_select(0, ids.flatten()).view(*ids.shape, *weight.shape[1:])


def draw_normal(shape: tuple[int, ...], std: float, seed: Seed) -> Tensor:
    """Normal numbers of NumPy's generator: torch's own differ between CPU types."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal(shape, dtype=np.float32) * np.float32(std)
    return torch.from_numpy(drawn)


def as_float32(weight: Tensor) -> np.ndarray:
    """A copy of a parameter as NumPy's float32."""
    array: np.ndarray = weight.detach().cpu().to(torch.float32).numpy().copy()
    return array
