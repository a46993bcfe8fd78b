"""ESAPN: rows grow while the stream flows; a policy says which, and when."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import TrainingStep, as_float32, draw_normal, pick_rows
from survey_code.layouts import GroupedLayout
from survey_code.method import Found, Trained
from survey_code.mixed_dimension.architecture_search.bilevel import step_once
from survey_code.mixed_dimension.architecture_search.mixed import (
    floor_place,
    mix_overhead,
    require_narrowest,
    sort_by,
)
from survey_code.mixed_dimension.grouped import GroupedEmbedding
from survey_code.mixed_dimension.search import powers_up_to
from survey_code.mixed_dimension.widths import FLOOR
from survey_code.options import Options, found, option
from survey_code.order import largest_first
from survey_code.spec import TableSpec

# Neurons of the policy.
HIDDEN = 16

# Largest log-odds: a policy that is certain tries nothing else, and learns no more.
SUREST = 3.0

# In place of a wish that the budget did not grant.
DENIED = -2.0

# An id's usual loss is a running mean over about this many reads.
MEMORY = 5


class ESAPNOptions(Options):
    """Options of `ESAPN`."""

    eager: float = option(
        0.5, "probability of a wish to grow before the policy has learnt anything",
        above=0, below=1, tune=(0.5, 0.2),
    )  # fmt: skip
    policy_rate: float = option(
        0.01, "learning rate of the policy, which Adam moves",
        above=0, tune=(0.01, 0.03),
    )  # fmt: skip
    # A third of the epochs, as searches have; early stopping may then end the rest.
    grown: float = option(
        0.33, "progress of the training at which the whole budget may be in use",
        above=0, high=1, tune=(0.33, 0.8),
    )  # fmt: skip
    floor: float = option(
        FLOOR, "width to begin with, as a share of what all ids could have alike",
        low=0, high=1,
    )  # fmt: skip
    budget: int = found("bytes that the frozen table may take")


class ESAPN(Trained[ESAPNOptions]):
    """Each id begins with the narrowest row and may be enlarged (key ``esapn``).

    A row of width s is mapped up by a chain of matrices, width by width, to the full
    dimension.  Enlarging a row means to pass it through the chain's next matrix: the
    id's vector is the same afterwards, but has more numbers to learn with.

    Before a batch is learnt from, it is a test that tells each id's loss.  An id has
    to decide when it was read once, twice, four times and so on: to grow, or not.
    By how much its usual loss fell since its last decision is that decision's reward.

    Raises
    ------
    ValueError
        If the budget is smaller than the table of the narrowest rows.

    Notes
    -----
    Liu et al., "Automated Embedding Size Search in Deep Recommender Systems" (SIGIR
    2020).  The paper has no budget; here wishes are granted, the most popular ids
    first, as room grows with the progress of the training, and a wish that was not
    granted teaches the policy nothing.  Batch normalisation and
    tanh behind the chain are left out, so that what is stored is a matrix; and the
    rows stand in a table of full size while they grow.
    """

    gauges = ("policy",)

    sizes: Tensor
    counts: Tensor
    usual: Tensor
    past: Tensor

    def __init__(self, spec: TableSpec, options: ESAPNOptions, seed: int = 0) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        n, dim = spec.num_embeddings, spec.embedding_dim
        self.widths, extra = powers_up_to(dim), mix_overhead(spec)
        self.room = options.budget - extra
        if self.room < 4 * n:
            raise ValueError(
                f"budget must be at least {4 * n + extra}, got {options.budget!r}"
            )
        self.weight = nn.Parameter(draw_normal((n, dim), spec.init_std, [seed, 0]))
        self.chain = nn.ParameterList(
            [
                nn.Parameter(draw_link(low, high, [seed, 1, low]))
                for low, high in zip(self.widths, self.widths[1:])
            ]
        )
        self.policy = make_policy(len(self.widths), options.eager, [seed, 2])
        rate = options.policy_rate
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=rate)
        # Afterwards no room is added: what follows is a training like any other.
        self.grown = self.schedule_end = options.grown
        # Place of each id's width in `widths`; how often it was read; its loss.
        self.first = floor_place(spec, options.floor, self.room)
        sizes = torch.full((n,), self.first, dtype=torch.uint8)
        self.register_buffer("sizes", sizes)
        self.register_buffer("counts", torch.zeros(n))
        self.register_buffer("usual", torch.zeros(n))
        # The last decision about each id: count (-1: none yet), size, wish, its
        # probability, and the usual loss at the time.
        self.register_buffer("past", torch.full((n, 5), -1.0))
        self.rng = np.random.default_rng([seed, 5])
        self.progress = 0.0
        self.last_ids: Tensor | None = None

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: ESAPNOptions) -> Found:
        """The budget, up to which rows may grow."""
        return {"budget": require_narrowest(spec, ratio)}

    # -- reading ------------------------------------------------------------

    def projections(self) -> list[Tensor]:
        """From each width to the full dimension: the product of the chain's rest."""
        found = [torch.eye(self.embedding_dim).to(self.weight)]
        for link in reversed(list(self.chain)):
            found.insert(0, link @ found[0])
        return found

    def embed(self, ids: Tensor) -> Tensor:
        """Each row's first numbers, through the rest of the chain."""
        if self.training:
            self.last_ids = ids
        flat = ids.flatten()
        order, counts, back = sort_by(self.sizes[flat].long(), len(self.widths))
        rows = pick_rows(flat[order], self.weight, sparse=self.regime.sparse)
        matrices = self.projections()
        parts = [
            self.widen(own, size, matrices)
            for size, own in enumerate(rows.split(counts))
        ]
        full = torch.cat(parts).index_select(0, back)
        return full.view(*ids.shape, self.embedding_dim)

    def widen(self, rows: Tensor, size: int, matrices: list[Tensor]) -> Tensor:
        """Rows of one size -> full rows.

        In training, the numbers that the next size would add have the gradients they
        would then have, and no effect.  Adam, which divides by past gradients, would
        otherwise take steps of ten times the length when they come into use.
        """
        low = self.widths[size]
        full = rows[:, :low] @ matrices[size]
        if self.training and size + 1 < len(self.widths):
            high = self.widths[size + 1]
            unused = rows[:, low:high] @ matrices[size + 1][low:].detach()
            full = full + (unused - unused.detach())
        return full

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Rows, and the slower chain; the policy learns from rewards."""
        slow = GroupedEmbedding.projection_rate * learning_rate
        return [
            {"params": [self.weight], "lr": learning_rate},
            {"params": list(self.chain), "lr": slow},
        ]

    # -- growing ------------------------------------------------------------

    def advance(self, progress: float) -> None:
        """How far the training is, which says how much room there is."""
        self.progress = max(progress, self.progress)

    def validation_step(self, step: TrainingStep) -> None:
        """The new batch is a test, a lesson for the policy, and a chance to grow."""
        with torch.no_grad():
            losses = step.row_losses()  # (batch,)
        assert self.last_ids is not None
        ids, place = self.last_ids.reshape(len(losses), -1).unique(return_inverse=True)
        reads = torch.bincount(place.flatten(), minlength=len(ids))
        spread = losses[:, None].expand(place.shape).flatten().to(self.usual.dtype)
        sums = torch.zeros_like(self.usual[ids]).index_add_(0, place.flatten(), spread)
        new = self.counts[ids] == 0
        share = torch.where(new, 1.0, 1 / MEMORY)
        self.usual[ids] += share * (sums / reads - self.usual[ids])
        self.counts[ids] += reads.to(self.counts.dtype)
        due = self.counts[ids] >= 2 * self.past[ids, 0]
        self.learn(ids[due])
        self.grow(ids[due])

    def states(self, counts: Tensor, sizes: Tensor) -> Tensor:
        """What the policy sees: (m, 1 + widths)."""
        kind = functional.one_hot(sizes.long(), len(self.widths))
        popularity = torch.log1p(counts)[:, None] / 3
        weight = next(self.policy.parameters())
        return torch.cat([popularity, kind], 1).to(weight.dtype)

    def wishes(self, counts: Tensor, sizes: Tensor) -> Tensor:
        """Log-odds that an id of such a count and size wants to grow: (m,)."""
        odds: Tensor = self.policy(self.states(counts, sizes))[:, 0]
        return SUREST * (odds / SUREST).tanh()

    def learn(self, ids: Tensor) -> None:
        """One step of REINFORCE: by how much each id's usual loss fell."""
        ids = ids[(self.past[ids, 0] >= 0) & (self.past[ids, 2] != DENIED)]
        if len(ids) < 2:
            return
        counts, sizes, wish, chance, before = self.past[ids].unbind(1)
        # A fall counts for more where more reads enjoy it.
        rewards = (before - self.usual[ids]) * (self.counts[ids] - counts).sqrt()
        # What all ids have in common is no one's merit.
        merit = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
        odds = self.wishes(counts, sizes)
        # The derivative of the log-probability by the odds, when it was decided.
        loss = -(merit * (wish - chance)).to(odds.dtype) @ odds / len(odds)
        self.optimizer.zero_grad()
        loss.backward()
        step_once(self.optimizer)

    @torch.no_grad()
    def grow(self, ids: Tensor) -> None:
        """Draw wishes and grant them, the most popular first, as far as room goes."""
        ids = ids[self.sizes[ids] < len(self.widths) - 1]
        if not len(ids):
            return
        odds = self.wishes(self.counts[ids], self.sizes[ids])
        chance = odds.sigmoid()
        wish = torch.from_numpy(self.rng.random(len(ids))).to(odds) < chance
        facts = [self.counts[ids], self.sizes[ids], wish, chance, self.usual[ids]]
        self.past[ids] = torch.stack([v.to(self.past.dtype) for v in facts], 1)
        asking = ids[wish]
        asking = asking[largest_first(self.counts[asking])]
        widths = torch.tensor(self.widths, device=ids.device)
        now = widths[self.sizes[asking].long()]
        price = 4 * (widths[self.sizes[asking].long() + 1] - now)
        spent = 4 * int(widths[self.sizes.long()].sum())
        least = 4 * self.num_embeddings * self.widths[self.first]
        share = min(self.progress / self.grown, 1.0)
        fits = price.cumsum(0) <= least + share * (self.room - least) - spent
        granted, denied = asking[fits], asking[~fits]
        # What was not done has no merit.
        self.past[denied, 2] = DENIED
        before = self.sizes[granted]
        for size, link in enumerate(self.chain):
            own, (low, high) = granted[before == size], link.shape
            self.weight[own, :high] = self.weight[own, :low] @ link
            self.sizes[own] = size + 1

    def freeze(self) -> GroupedLayout:
        """The rows by width, and the matrix of each width."""
        sizes = self.sizes.cpu().numpy()
        used, group = np.unique(sizes, return_inverse=True)
        weight, matrices = as_float32(self.weight), self.projections()
        tables = [weight[group == g, : self.widths[s]] for g, s in enumerate(used)]
        projections = [
            as_float32(matrices[s]) if self.widths[s] < self.embedding_dim else None
            for s in used
        ]
        return GroupedLayout.from_tables(tables, projections, self.embedding_dim, group)


def draw_link(low: int, high: int, seed: list[int]) -> Tensor:
    """A matrix (low, high) of orthogonal rows that keeps the spread of entries."""
    drawn = np.random.default_rng(seed).standard_normal((high, low))
    rows = np.linalg.qr(drawn)[0].T * np.sqrt(high / low)
    return torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32))


def make_policy(widths: int, eager: float, seed: list[int]) -> nn.Sequential:
    """From (popularity, size) to the log-odds of a wish to grow."""
    first, last = nn.Linear(1 + widths, HIDDEN), nn.Linear(HIDDEN, 1)
    with torch.no_grad():
        first.weight.copy_(draw_normal((HIDDEN, 1 + widths), 1.0, [*seed, 0]))
        first.bias.copy_(draw_normal((HIDDEN,), 1.0, [*seed, 1]))
        last.weight.zero_()
        last.bias.fill_(float(np.log(eager / (1 - eager))))
    return nn.Sequential(first, nn.Tanh(), last)
