"""How many bytes a table takes: stored, in training at rest, and at the peak."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from survey_code.embedding import CompressedEmbedding, Network, TrainingStep
from survey_code.lab.results import Result
from survey_code.training import TrainingSettings, make_table_optimizer


class MemoryMeter(TorchDispatchMode):
    """Counts the bytes of all tensors that live on the CPU while it is open.

    Every operation's results are noted when they appear, and taken off when
    their storage is freed; two views of one storage count once.

    Attributes
    ----------
    now, peak : int
        Bytes alive, and the most that were alive at once.

    Examples
    --------
    >>> with MemoryMeter() as meter:
    ...     kept = torch.zeros(1000)
    ...     for _ in range(3):
    ...         passing = torch.zeros(500)
    >>> meter.peak
    8000
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: dict[int, int] = {}

    def add(self, *tensors: Tensor) -> None:
        """Count tensors that were there before."""
        for tensor in tensors:
            self._track(tensor)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and note what it made."""
        made = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._track, made)
        return made

    def _track(self, tensor: Tensor) -> None:
        if tensor.is_sparse:
            self._track(tensor._indices())
            self._track(tensor._values())
            return
        if tensor.layout == torch.sparse_csr:
            for part in (tensor.crow_indices(), tensor.col_indices(), tensor.values()):
                self._track(part)
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.now -= self._known.pop(key)


def measure_training(
    table: CompressedEmbedding, ids: Tensor, settings: TrainingSettings
) -> dict[str, int]:
    """Bytes that training a table takes, measured over two steps on a copy.

    Parameters
    ----------
    table : CompressedEmbedding
    ids : Tensor of int64
        One batch.
    settings : TrainingSettings
        Names the optimiser.

    Returns
    -------
    dict
        ``"persistent"``: weights, buffers and optimiser state, which stay from
        step to step.  ``"peak"``: the most bytes alive at once, gradients and
        the vectors read and a step on validation rows included.  The network
        around the table is not counted.
    """
    twin = copy.deepcopy(table).cpu().train()
    optimizer = make_table_optimizer(twin, settings)
    step = pretend(twin, ids, settings)
    searches = type(twin).validation_step is not CompressedEmbedding.validation_step
    if searches:
        twin.advance(1.0)  # some begin late
    with MemoryMeter() as meter:
        meter.add(*twin.parameters(), *twin.buffers())
        for _ in range(2):
            # The second step has the optimiser's state in place.
            meter.peak = meter.now
            if searches:
                twin.validation_step(step)
            if optimizer:
                optimizer.zero_grad(set_to_none=True)
            value = step.loss()
            if value.requires_grad:
                value.backward()
            if optimizer:
                optimizer.step()
            del value
            twin.after_step(step)
    return {"persistent": persistent_bytes(twin, optimizer), "peak": meter.peak}


def pretend(
    table: CompressedEmbedding, ids: Tensor, settings: TrainingSettings
) -> TrainingStep:
    """A step whose loss is the length of the vectors read: no network is needed."""

    def loss() -> Tensor:
        return table.embed(ids).square().sum() + table.penalty()

    def row_losses() -> Tensor:
        return table.embed(ids).square().flatten(1).sum(1)

    rate = settings.learning_rate
    return TrainingStep(loss, loss, Network(table), rate, 0.0, row_losses)


def compare_search_cost(results: Iterable[Result]) -> pd.DataFrame:
    """What searching costs, beside training the full table once.

    Parameters
    ----------
    results : iterable of Result
        Measured ones, on one data set; those of the key ``full`` are the measure.

    Returns
    -------
    DataFrame
        One row for each key: seconds of ``search`` and of ``train``, means over the
        runs, ``times``, their sum over the full table's, and ``memory``, the peak
        bytes of search or training, whichever is larger, over the full table's.

    Raises
    ------
    ValueError
        If no result is the full table's.
    """
    rows = [
        {
            "key": result.key,
            "search": result.seconds["search"],
            "train": result.seconds["train"],
            "peak": max(
                result.bytes.get("training_peak_in_search", 0),
                result.bytes["training_peak"],
            ),
        }
        for result in results
    ]
    if "full" not in {row["key"] for row in rows}:
        raise ValueError("results must hold the key 'full', to compare with")
    table = pd.DataFrame(rows).groupby("key", sort=False).mean()
    full = table.loc["full"]
    table["times"] = (table["search"] + table["train"]) / full["train"]
    table["memory"] = table.pop("peak") / full["peak"]
    return table


def persistent_bytes(
    table: CompressedEmbedding, optimizer: torch.optim.Optimizer | None
) -> int:
    """Bytes of weights, buffers and optimiser state."""
    kept: list[Tensor] = [*table.parameters(), *table.buffers()]
    for state in optimizer.state.values() if optimizer else ():
        # Adam's step counter is one number, not a cost of the table.
        kept += [v for v in state.values() if isinstance(v, Tensor) and v.ndim]
    sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in kept}
    return sum(sizes.values())
