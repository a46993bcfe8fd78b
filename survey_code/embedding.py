"""The contract: an embedding table that learns, and the uncompressed baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.layouts import DenseLayout, Layout
from survey_code.layouts.layout import as_finite_table
from survey_code.spec import TableSpec


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
    """

    loss: Callable[[], Tensor]
    validation_loss: Callable[[], Tensor]
    network: nn.Module
    learning_rate: float
    progress: float
    row_losses: Callable[[], Tensor] = lambda: torch.zeros(0)


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
    # The training loop checks a data set once and then turns this off: on a GPU
    # each check would wait for the device.
    checks_ids: bool = True
    # Progress at which the schedule of `advance` is over.  Only epochs that end
    # there or later can be the best one.
    schedule_end: float = 1.0
    # Set by the training loop where the optimiser takes sparse gradients.
    sparse_gradients: bool = False
    # Set by the training loop, for tables that move their rows themselves in
    # `after_step`: the rule that the optimiser would follow.
    row_optimizer: str = "sgd"

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
        ids = self.check_ids(ids) if self.checks_ids else ids.to(torch.int64)
        return self.embed(ids)

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

        The loop draws validation batches only for tables that override this.
        """

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The table's parameters as the optimiser wants them; a group may carry
        its own ``"lr"``.
        """
        return [{"params": list(self.parameters()), "lr": learning_rate}]

    def fit(self, task: Any) -> Any:
        """Learn from a task; methods that are not trained by gradients override
        this.  `task.train(table)` runs the usual loop and returns the network.
        """
        return task.train(self)


class FullEmbedding(CompressedEmbedding):
    """The uncompressed table: one float32 row per id.  The baseline.

    Parameters
    ----------
    spec : TableSpec
    seed : int, default 0
        The entries are drawn from N(0, spec.init_std**2) by a NumPy generator,
        so that they are the same on every machine.
    """

    def __init__(self, spec: TableSpec, *, seed: int = 0) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        shape = (spec.num_embeddings, spec.embedding_dim)
        self.weight = nn.Parameter(draw_normal(shape, spec.init_std, seed))

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float) -> dict[str, Any]:
        """No options: the table has one size."""
        spec.require(ratio, smallest=spec.full_bytes)
        return {}

    @classmethod
    def compress(cls, weight: Any, *, spec: TableSpec | None = None) -> Layout:
        """The table as it is."""
        return DenseLayout.from_weight(weight)

    def embed(self, ids: Tensor) -> Tensor:
        """One row per id."""
        return functional.embedding(ids, self.weight, sparse=self.sparse_gradients)

    def freeze(self) -> Layout:
        """The rows, as they are."""
        return DenseLayout.from_weight(self.weight)


class UniformEmbedding(FullEmbedding):
    """The same table with fewer columns: what every clever method must beat.

    The network reads vectors of the smaller dimension; nothing projects them up.

    Parameters
    ----------
    spec : TableSpec
    dim : int
        Columns to keep, 1 to spec.embedding_dim.
    seed : int, default 0
    """

    def __init__(self, spec: TableSpec, *, dim: int, seed: int = 0) -> None:
        check_range("dim", dim, 1, spec.embedding_dim)
        super().__init__(replace(spec, embedding_dim=dim), seed=seed)

    @classmethod
    def plan(
        cls, spec: TableSpec, ratio: float, *, dim: int | None = None
    ) -> dict[str, Any]:
        """The most columns whose rows fit into the budget."""
        column = 4 * spec.num_embeddings
        if dim is not None:
            check_range("dim", dim, 1, spec.embedding_dim)
        budget = spec.require(ratio, smallest=column * (dim or 1))
        return {"dim": dim or min(budget // column, spec.embedding_dim)}


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
        ids = torch.as_tensor(ids)
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


def as_table(weight: Any) -> FullEmbedding:
    """A full table that holds the given (n, d) weights."""
    rows = as_finite_table(weight)
    table = FullEmbedding.__new__(FullEmbedding)
    CompressedEmbedding.__init__(table, *rows.shape)
    table.weight = nn.Parameter(torch.from_numpy(rows.copy()))
    return table


def draw_normal(shape: tuple[int, ...], std: float, seed: Any) -> Tensor:
    """Normal numbers of NumPy's generator: torch's own differ between CPU types."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal(shape, dtype=np.float32) * np.float32(std)
    return torch.from_numpy(drawn)


def check_range(name: str, value: Any, low: int, high: int) -> None:
    """Raise ValueError unless `value` is an integer from low to high."""
    if not isinstance(value, int | np.integer) or not low <= value <= high:
        raise ValueError(
            f"{name} must be an integer from {low} to {high}, got {value!r}"
        )
