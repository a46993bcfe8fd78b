"""OptFS: a gate for each id, which hardens while it is learnt."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import CompressedEmbedding
from survey_code.mixed_dimension.architecture_search.choices import (
    check_positive,
    search_epochs,
)
from survey_code.mixed_dimension.architecture_search.prefix import (
    cut_to_budget,
    smallest_prefix,
)
from survey_code.mixed_dimension.pruning.tickets import PrefixTicket, draw_original
from survey_code.spec import TableSpec


class GatedRows(CompressedEmbedding):
    r"""A full table with a gate for each id: sigmoid(tau w) / sigmoid(w_0).

    Parameters
    ----------
    spec : TableSpec
    start : float
        First value of w.
    hardness : float
        What tau grows to, in equal factors.
    travel : float
        How far w may go in the search.
    price : float
        Factor of the penalty, the sum of all gates.
    seed : int
    """

    def __init__(
        self,
        spec: TableSpec,
        start: float,
        hardness: float,
        travel: float,
        price: float,
        seed: int,
    ) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.weight = nn.Parameter(draw_original(spec, seed))
        self.gates = nn.Parameter(torch.full((spec.num_embeddings, 1), start))
        self.start, self.hardness = start, hardness
        self.travel, self.price = travel, price
        self.steps = 1000  # of the search, which sets it
        self.tau = 1.0

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Table and gates; with Adam, w moves by up to one rate a step."""
        return [
            {"params": [self.weight], "lr": learning_rate},
            {"params": [self.gates], "lr": self.travel / self.steps},
        ]

    def advance(self, progress: float) -> None:
        """Harden."""
        self.tau = float(self.hardness**progress)

    def embed(self, ids: Tensor) -> Tensor:
        """Gated rows; in eval mode the gates are steps."""
        rows = functional.embedding(ids, self.weight)
        w = functional.embedding(ids, self.gates)
        return rows * open_gates(w, self.tau if self.training else None, self.start)

    def penalty(self) -> Tensor:
        """The price of the open gates."""
        return self.price * torch.sigmoid(self.tau * self.gates).sum()


def open_gates(w: Tensor, tau: float | None, start: float) -> Tensor:
    """sigmoid(tau w) / sigmoid(start), or its limit for large tau, a step.

    Examples
    --------
    >>> open_gates(torch.tensor([-1.0, 2.0]), None, 0.0).tolist()
    [0.0, 2.0]
    """
    scale = torch.sigmoid(torch.tensor(start, dtype=w.dtype, device=w.device))
    soft = (w > 0).to(w.dtype) if tau is None else torch.sigmoid(tau * w)
    return soft / scale


class OptFS(PrefixTicket):
    """Full rows for the ids whose gates stay open, zeros for the others (``optfs``).

    Parameters
    ----------
    spec : TableSpec
    lengths : ndarray of integers, shape (num_embeddings,)
        What the search found: embedding_dim or 0.
    rewind : bool, default True
        Begin with the entries with which the search began.
    seed : int, default 0

    Notes
    -----
    Lyu et al., "Optimizing Feature Set for Click-Through Rate Prediction" (WWW 2023).
    The paper keeps the ids with w > 0, however many, and rewinds to an early epoch;
    here the largest w that fit the budget, from the very start.
    """

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        start: float = 0.5,
        hardness: float = 100.0,
        travel: float = 2.0,
        price: float = 1e-4,
        rewind: bool = True,
        search_epochs: int | None = None,
    ) -> dict[str, Any]:
        """The budget, and how to search."""
        check_positive(start=start, travel=travel, price=price)
        if not (isinstance(hardness, int | float) and 1 <= hardness <= 1e6):
            raise ValueError(f"hardness must be from 1 to 1e6, got {hardness!r}")
        return {
            "budget": spec.require(ratio, smallest=smallest_row(spec)),
            "start": float(start),
            "hardness": float(hardness),
            "travel": travel,
            "price": price,
            "rewind": rewind,
            "search_epochs": search_epochs,
        }

    @classmethod
    def searching(
        cls, spec: TableSpec, options: dict[str, Any], seed: int
    ) -> GatedRows:
        """The table behind soft gates."""
        return GatedRows(
            spec,
            options["start"],
            options["hardness"],
            options["travel"],
            options["price"],
            seed,
        )

    @classmethod
    def search(
        cls, task: Any, spec: TableSpec, options: dict[str, Any], seed: int
    ) -> dict[str, Any]:
        """Train table and gates together; keep the largest gates that fit."""
        table = cls.searching(spec, options, seed)
        epochs = search_epochs(task, options["search_epochs"])
        objective = task.build_objective(task.trial.settings)
        table.steps = epochs["epochs"] * objective.steps
        task.train(table, **epochs)
        w = table.gates.detach()[:, 0].cpu().numpy()
        full = np.full(len(w), spec.embedding_dim)
        lengths = cut_to_budget(full, w, options["budget"], spec.embedding_dim)
        return {"lengths": lengths, "rewind": options["rewind"]}


def smallest_row(spec: TableSpec) -> int:
    """Bytes where a single id keeps its row."""
    return smallest_prefix(spec) + 4 * (spec.embedding_dim - 1)
