"""The contract: an embedding table that learns, and the network around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

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
    """

    loss: Callable[[], Tensor]
    validation_loss: Callable[[], Tensor]
    network: nn.Module
    learning_rate: float
    progress: float
    row_losses: Callable[[], Tensor] = lambda: torch.zeros(0)
    stop: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Regime:
    """How the training loop moves a table, told before the first step.

    Parameters
    ----------
    optimizer : {"adam", "rowwise_adagrad", "sgd"}
        The rule for rows; a table that moves its rows itself follows it.
    sparse : bool
        Whether the optimiser takes sparse gradients.
    steps : int
        Of the whole training.
    """

    optimizer: str = "sgd"
    sparse: bool = False
    steps: int = 1000


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
    # Progress at which the schedule of `advance` is over, 0 where there is none.
    # Only epochs that end there or later can be the best one.
    schedule_end: float = 0.0
    # What the training loop said in `begin`.
    regime: Regime = Regime()

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
        """What is deployed; its look-up equals `forward` in eval mode."""
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

    def advance(self, progress: float) -> None:
        """Move schedules on (temperature, pruning rate); 0 <= progress <= 1."""

    def after_step(self, step: TrainingStep) -> None:
        """Work after the optimiser's step: proximal steps, integer write-back,
        re-clustering, promotion.
        """

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


class FrozenEmbedding(CompressedEmbedding):
    """A layout behind the same call: a table that is read but not trained.

    Parameters
    ----------
    layout : Layout
        A layout on the CPU takes CPU ids; after ``to_gpu()`` it takes CUDA ids.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout.num_embeddings, layout.embedding_dim)
        self.layout = layout

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors read from the layout, without gradients; ids as for any table."""
        return self.embed(torch.as_tensor(ids))

    def embed(self, ids: Tensor) -> Tensor:
        """The layout's look-up, which checks the ids."""
        if ids.is_cuda:
            return torch.from_dlpack(self.layout.lookup(ids))
        return torch.from_numpy(self.layout.lookup(ids.numpy()))

    def freeze(self) -> Layout:
        """The layout itself."""
        return self.layout


def decode_layout(layout: Layout, chunk: int = 65536) -> np.ndarray:
    """All rows of a layout, shape (num_embeddings, embedding_dim), float32."""
    layout = layout.to_cpu()
    table = np.empty((layout.num_embeddings, layout.embedding_dim), np.float32)
    for start in range(0, len(table), chunk):
        stop = min(start + chunk, len(table))
        table[start:stop] = layout.lookup(np.arange(start, stop))
    return table


def draw_normal(shape: tuple[int, ...], std: float, seed: Seed) -> Tensor:
    """Normal numbers of NumPy's generator: torch's own differ between CPU types."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal(shape, dtype=np.float32) * np.float32(std)
    return torch.from_numpy(drawn)


def as_float32(weight: Tensor) -> np.ndarray:
    """A copy of a parameter as NumPy's float32."""
    array: np.ndarray = weight.detach().cpu().to(torch.float32).numpy().copy()
    return array
