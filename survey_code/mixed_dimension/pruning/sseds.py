"""SSEDS: one backward pass says which columns of which field matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.embedding import CompressedEmbedding, pick_rows
from survey_code.method import Found, Judge, Searched
from survey_code.mixed_dimension.grouped import FieldDimensions, field_costs
from survey_code.mixed_dimension.pruning.tickets import draw_original
from survey_code.mixed_dimension.search import fields_of
from survey_code.mixed_dimension.widths import FLOOR, floor_within
from survey_code.options import SearchOptions, found, option
from survey_code.order import largest_first
from survey_code.spec import TableSpec


class SSEDSOptions(SearchOptions):
    """Options of `SSEDS`."""

    batches: int = option(
        8, "training batches whose gradients are averaged", low=1, high=10_000
    )
    floor: float = option(
        FLOOR,
        "least width of a field, a share of what all could have alike; 0: none",
        low=0, high=1, tune=(FLOOR, 0.0),
    )  # fmt: skip
    widths: np.ndarray = found("columns of each field")


class GatedColumns(CompressedEmbedding):
    """A full table with a gate, always 1, before each column of each field.

    Nothing moves the gates; their gradient is what is wanted.

    Parameters
    ----------
    spec : TableSpec
    seed : int
    """

    gauges = ("gates",)

    field: Tensor

    steady = True

    def __init__(self, spec: TableSpec, options: SSEDSOptions, seed: int) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.weight = nn.Parameter(draw_original(spec, seed))
        field = torch.from_numpy(fields_of(spec))
        self.register_buffer("field", field, persistent=False)
        fields = len(spec.field_starts) - 1
        self.gates = nn.Parameter(torch.ones(fields, spec.embedding_dim))
        self.gated = False  # the plain table, until saliencies are asked for

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The table alone."""
        return [{"params": [self.weight], "lr": learning_rate}]

    def embed(self, ids: Tensor) -> Tensor:
        """Rows, times gates of 1 once saliencies are asked for."""
        rows = pick_rows(ids, self.weight, sparse=self.regime.sparse)
        if self.gated:
            rows = rows * pick_rows(self.field[ids], self.gates)
        return rows


def column_saliencies(table: GatedColumns, judge: Judge, batches: int) -> np.ndarray:
    """How much the loss would feel each column of each field.

    Parameters
    ----------
    table : GatedColumns
        The table of the network that the judge asks.
    judge : Judge
    batches : int
        Training batches, the gradients of whose losses are averaged.

    Returns
    -------
    ndarray of float, shape (fields, dim)
        Absolute values of the gates' gradients, divided by their sum.
    """
    table.gated = True
    try:
        (slope,) = judge.gradients([table.gates], batches)
    finally:
        table.gated = False
    size = slope.abs()
    return np.asarray((size / size.sum().clamp(min=1e-300)).cpu())


def widths_within(
    saliency: np.ndarray, spec: TableSpec, budget: int, floor: float = FLOOR
) -> np.ndarray:
    """Columns of each field: the most salient for the rows of their field that fit.

    The best columns of every field come before all others, as many as `floor_within`
    says: of a field without columns the network learns nothing, and one column of the
    items gives a ranking two orders.  A column that no longer fits is passed over, and
    cheaper ones after it may fit.

    Parameters
    ----------
    saliency : ndarray, shape (fields, dim)
    spec : TableSpec
    budget : int
        In bytes.
    floor : float, default 0.5
        Least width of a field, a share of what all could have alike.

    Returns
    -------
    ndarray of int64, shape (fields,)

    Raises
    ------
    ValueError
        If the saliencies have another shape or are not finite, or the budget does not
        even pay for fields without columns.
    """
    fields, dim = len(spec.field_starts) - 1, spec.embedding_dim
    if saliency.shape != (fields, dim) or not np.isfinite(saliency).all():
        raise ValueError(
            f"saliency must be finite, of shape {(fields, dim)}, got "
            f"{saliency.dtype} of shape {saliency.shape}"
        )
    costs = field_costs(spec, tuple(range(dim + 1)))  # (fields, dim + 1)
    widths = np.zeros(fields, dtype=np.int64)
    spent = int(costs[:, 0].sum())
    if budget < spent:
        raise ValueError(f"budget must be at least {spent} bytes, got {budget}")
    worth = saliency / np.diff(spec.field_starts)[:, None]
    least = floor_within(spec, floor, budget)
    np.put_along_axis(worth, largest_first(worth)[:, :least], np.inf, axis=1)
    for place in largest_first(worth, axis=None).tolist():
        field = place // dim
        more = int(costs[field, widths[field] + 1] - costs[field, widths[field]])
        if spent + more <= budget:
            widths[field] += 1
            spent += more
    return widths


class SSEDS(FieldDimensions, Searched[SSEDSOptions, GatedColumns]):
    """Each field its most salient columns, and a matrix back (key ``sseds``).

    Notes
    -----
    Qu et al., "Single-Shot Embedding Dimension Search in Recommender System" (SIGIR
    2022).  We divide a column's saliency by the rows of its field, since a column of a
    large field costs more, leave every field half the width that all could have alike
    (`floor`; the paper has no such bound), and average the gradient of a few batches.
    Only the number of columns survives the search, not which: the slim fields are drawn
    anew.
    """

    def __init__(self, spec: TableSpec, options: SSEDSOptions, seed: int = 0) -> None:
        super().__init__(spec, options.widths, seed)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: SSEDSOptions) -> Found:
        """The budget, which must hold one column of some field."""
        costs = field_costs(spec, (0, 1))
        smallest = int(costs[:, 0].sum() + (costs[:, 1] - costs[:, 0]).min())
        return {"budget": spec.require(ratio, smallest=smallest)}

    @classmethod
    def settle(
        cls, table: GatedColumns, judge: Judge, spec: TableSpec, options: SSEDSOptions
    ) -> Found:
        """Ask once what the columns of the trained table are worth."""
        saliency = column_saliencies(table, judge, options.batches)
        floor = options.floor
        return {"widths": widths_within(saliency, spec, options.budget, floor)}
