"""OptFS: a gate for each id, which hardens while it is learnt."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.embedding import CompressedEmbedding, TrainingStep, pick_rows
from survey_code.method import Found, Judge, Searched
from survey_code.mixed_dimension.prefix import cut_to_budget, smallest_prefix
from survey_code.mixed_dimension.pruning.tickets import (
    PrefixTicket,
    TicketOptions,
    draw_original,
)
from survey_code.options import found, option
from survey_code.spec import TableSpec


class OptFSOptions(TicketOptions):
    """Options of `OptFS`."""

    start: float = option(0.5, "first value of the gates' w", above=0, high=700)
    hardness: float = option(
        100.0, "what the gates' tau grows to, in equal factors", low=1, high=1e6
    )
    price: float = option(
        1e-4, "factor of the penalty, the sum of all gates", above=0, tune=(1e-4, 1e-5)
    )
    travel: float = option(
        2.0, "how far w may go in the search", above=0, tune=(2.0, 5.0)
    )
    rewind_epoch: int = option(
        1,
        "epochs of the search after which the entries are kept, to begin again with; "
        "0: those of its start",
        low=0,
    )
    kept: np.ndarray | None = found("the entries to begin again with")


class GatedRows(CompressedEmbedding):
    r"""A full table with a gate for each id: sigmoid(tau w) / sigmoid(w_0)."""

    gauges = ("gates",)

    def __init__(self, spec: TableSpec, options: OptFSOptions, seed: int) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.weight = nn.Parameter(draw_original(spec, seed))
        self.gates = nn.Parameter(torch.full((spec.num_embeddings, 1), options.start))
        self.start, self.hardness = options.start, options.hardness
        self.travel, self.price = options.travel, options.price
        self.tau = 1.0
        self.rewind, self.rewind_epoch = options.rewind, options.rewind_epoch
        self.steps, self.kept = 0, self.weight.detach().clone()

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Table and gates; with Adam, w moves by up to one rate a step."""
        return [
            {"params": [self.weight], "lr": learning_rate},
            {"params": [self.gates], "lr": self.travel / self.regime.steps},
        ]

    def advance(self, progress: float) -> None:
        """Harden."""
        self.tau = float(self.hardness**progress)

    @torch.no_grad()
    def after_step(self, step: TrainingStep) -> None:
        """Keep the entries after the epoch that is rewound to, or the last one."""
        self.steps += 1
        epochs = min(self.rewind_epoch, self.regime.epochs)
        if (
            self.rewind
            and self.steps == epochs * self.regime.steps // self.regime.epochs
        ):
            self.kept = self.weight.detach().clone()

    def embed(self, ids: Tensor) -> Tensor:
        """Gated rows; in eval mode the gates are steps."""
        rows = pick_rows(ids, self.weight)
        w = pick_rows(ids, self.gates)
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


class OptFS(PrefixTicket, Searched[OptFSOptions, GatedRows]):
    """Full rows for the ids whose gates stay open, zeros for the others (``optfs``).

    Notes
    -----
    Lyu et al., "Optimizing Feature Set for Click-Through Rate Prediction" (WWW 2023).
    The paper keeps the ids with w > 0, however many; here those of the largest w that
    fit the budget.  As there, the rows that are trained again begin as they stood after
    an early epoch of the search (`rewind_epoch`), and as they are read behind an open
    gate, divided by sigmoid(w_0).  The network begins afresh; theirs is rewound too.
    """

    def __init__(self, spec: TableSpec, options: OptFSOptions, seed: int = 0) -> None:
        super().__init__(spec, options.lengths, options.rewind, seed, options.kept)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: OptFSOptions) -> Found:
        """The budget, which must hold a row."""
        return {"budget": spec.require(ratio, smallest=smallest_row(spec))}

    @classmethod
    def settle(
        cls, table: GatedRows, judge: Judge, spec: TableSpec, options: OptFSOptions
    ) -> Found:
        """The largest gates that fit."""
        w, dim = table.gates.detach()[:, 0].cpu().numpy(), spec.embedding_dim
        lengths = cut_to_budget(np.full(len(w), dim), w, options.budget, dim)
        if not options.rewind:
            return {"lengths": lengths}
        read = open_gates(torch.ones(()), None, options.start).to(table.kept)
        return {"lengths": lengths, "kept": (table.kept * read).float().cpu().numpy()}


def smallest_row(spec: TableSpec) -> int:
    """Bytes where a single id keeps its row."""
    return smallest_prefix(spec) + 4 * (spec.embedding_dim - 1)
