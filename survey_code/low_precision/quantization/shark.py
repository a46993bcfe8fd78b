"""Rows in float32, float16 or 8 bits, by how much they have been read lately."""

from __future__ import annotations

import torch
from torch import Tensor

from survey_code.budget import largest_fitting
from survey_code.checks import check_range
from survey_code.embedding import TrainingStep, draw_normal
from survey_code.layouts import DenseLayout, Layout, RoutedLayout, RowwiseLayout
from survey_code.layouts.routed import routing_bytes
from survey_code.layouts.rowwise import centre_of, row_bytes
from survey_code.low_precision.quantization.half import round_to_format
from survey_code.low_precision.quantization.lpt import LEAST_REACH
from survey_code.low_precision.quantization.rounding import round_stochastically
from survey_code.low_precision.quantization.writeback import WriteBackEmbedding
from survey_code.method import Found, Trained
from survey_code.options import Options, found, option
from survey_code.order import largest_first
from survey_code.spec import TableSpec

# The largest code of a row in 8 bits above their middle, 127.5.
REACH = centre_of(8)


class SHARKOptions(Options):
    """Options of `SHARK`."""

    share: float = option(
        0.5, "share of the bytes beyond 8 bits that rows in float32 get",
        low=0, high=1, tune=(0.5, 0.0, 1.0),
    )  # fmt: skip
    positive: float = option(
        4.0, "what a read by a clicked row counts; by another it counts 1",
        low=0, tune=(4.0, 1.0),
    )  # fmt: skip
    period: int = option(10, "steps between two looks at the counts", low=1, high=2**31)
    decay: float = option(
        0.98, "what counts are multiplied by at each look", low=0, high=1,
        tune=(0.98, 0.9, 1.0),
    )  # fmt: skip
    full: int = found("rows in float32", low=0)
    half: int = found("rows in float16", low=0)


class SHARK(WriteBackEmbedding, Trained[SHARKOptions]):
    """Three precisions, and rows that move between them (key ``shark``).

    A row's priority is a decaying count of its reads, in which those by clicked rows
    count more.  Every `period` steps the `full` rows of the highest priority are those
    in float32, the next `half` those in float16, and all others have 8 bits and a step.
    A row that moves down is rounded by chance; nothing keeps what it was.

    Where a task has no labels, as rankings have none, all reads count alike.

    Notes
    -----
    The half of Zhang et al., "SHARK: A Lightweight Model Compression Approach for
    Large-scale Recommender Systems" (CIKM 2023), that rounds rows; the other half,
    which drops whole fields by what a permutation of them costs, is left out.  Of this
    half we know that positive and negative reads have factors of their own, that
    priorities decay with time, and that thresholds on them separate the formats: the
    rule above is how we implement it.  The thresholds are the quantiles that fill the
    budget.  Counts decay at each look, not at each step.  The first rows of the table
    begin as the most read ones.
    """

    rows_full: Tensor
    rows_half: Tensor
    codes: Tensor
    step: Tensor
    places: Tensor
    priority: Tensor

    def __init__(self, spec: TableSpec, options: SHARKOptions, seed: int = 0) -> None:
        rows, dim = spec.num_embeddings, spec.embedding_dim
        full = check_range("full", options.full, 0, rows)
        half = check_range("half", options.half, 0, rows - full)
        super().__init__(spec, seed)
        self.positive, self.period = options.positive, options.period
        self.decay = options.decay
        self.least_step = LEAST_REACH * spec.init_std / REACH
        # Ends of the three ranges of places.
        self.ends = (full, full + half, rows)
        low = rows - full - half
        for name, shape, kind in (
            ("rows_full", (full, dim), torch.float32),
            ("rows_half", (half, dim), torch.float16),
            ("codes", (low, dim), torch.uint8),
            ("step", (low, 1), torch.float32),
            ("priority", (rows,), torch.float32),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=kind))
        # Which place of the three ranges a row has.
        self.register_buffer("places", torch.arange(rows, dtype=torch.int32))
        # Ids of each look-up since the last step.
        self.reads: list[Tensor] = []
        start = draw_normal((rows, dim), spec.init_std, [seed, 0])
        self.store_rows(torch.arange(rows), start)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: SHARKOptions) -> Found:
        """As many rows in float32 as their share of the bytes beyond 8 bits pays for;
        then as many in float16 as fit, and if all do, more in float32.
        """
        rows = spec.num_embeddings
        least = three_tier_bytes(spec, 0, 0)
        # Rows of one or two numbers are smaller in float16.
        smallest = min(least, three_tier_bytes(spec, 0, rows))
        budget = spec.require(ratio, smallest)
        if three_tier_bytes(spec, rows, 0) <= budget:
            return {"full": rows, "half": 0}

        full = 0
        if least <= budget:
            limit = least + options.share * (budget - least)
            full = largest_fitting(
                0, rows - 1, lambda n: three_tier_bytes(spec, n, 0) <= limit
            )
            if three_tier_bytes(spec, full, rows - full) > budget:
                half = largest_fitting(
                    0, rows - full - 1,
                    lambda n: three_tier_bytes(spec, full, n) <= budget,
                )  # fmt: skip
                return {"full": full, "half": half}
        full = largest_fitting(
            full, rows - 1, lambda n: three_tier_bytes(spec, n, rows - n) <= budget
        )
        return {"full": full, "half": rows - full}

    # -- reading and writing -----------------------------------------------------

    def tier_of(self, places: Tensor) -> Tensor:
        """0 for places of float32, 1 for float16, 2 for 8 bits."""
        return (places >= self.ends[0]).long() + (places >= self.ends[1])

    def split(self, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each tier, where its ids stand among these, and their rows in it."""
        places = self.places[ids].long()
        tiers = self.tier_of(places)
        starts = (0, *self.ends[:2])
        return [
            (here, places[here] - start)
            for tier, start in enumerate(starts)
            for here in [(tiers == tier).nonzero()[:, 0]]
        ]

    def load_rows(self, ids: Tensor) -> Tensor:
        """Each row in the arithmetic of its tier."""
        (full, own), (half, halves), (low, codes) = self.split(ids)
        rows = self.step.new_empty(len(ids), self.embedding_dim)
        rows[full] = self.rows_full[own]
        rows[half] = self.rows_half[halves].float()
        rows[low] = (self.codes[codes] - REACH) * self.step[codes]
        return rows

    def store_rows(self, ids: Tensor, rows: Tensor) -> None:
        """Round rows by chance, unless they are in float32."""
        (full, own), (half, halves), (low, codes) = self.split(ids)
        self.rows_full[own] = rows[full]
        self.rows_half[halves] = round_to_format(
            rows[half], "float16", "stochastic", self.rng
        )
        # The step that just reaches the row's largest entry.
        steps = rows[low].abs().amax(1, keepdim=True) / REACH
        steps = steps.clamp(min=self.least_step)
        levels = round_stochastically(rows[low] / steps + REACH, self.rng)
        self.codes[codes] = levels.clamp(0, 2 * REACH).to(torch.uint8)
        self.step[codes] = steps

    # -- who is where --------------------------------------------------------------

    def embed(self, ids: Tensor) -> Tensor:
        """Rows, decoded; in training, reads are noted."""
        if self.training and torch.is_grad_enabled():
            self.reads.append(ids)
        return super().embed(ids)

    def advance(self, progress: float) -> None:
        """Forget look-ups that no step followed."""
        super().advance(progress)
        self.reads.clear()

    @torch.no_grad()
    def after_step(self, step: TrainingStep) -> None:
        """Write rows back, count the reads, and from time to time move rows."""
        done, reads = self.steps_done, self.reads
        super().after_step(step)
        self.reads = []
        if self.steps_done == done:
            return
        labels = step.labels()
        for ids in reads:
            self.count(ids, labels)
        if self.steps_done % self.period == 0:
            self.move_rows()
            self.priority *= self.decay

    def count(self, ids: Tensor, labels: Tensor) -> None:
        """Add reads to the priorities.

        Parameters
        ----------
        ids : Tensor of int64, shape (batch, ...)
        labels : Tensor, shape (batch,)
            1 where a row was clicked; of another length, all reads count 1.
        """
        weights = torch.ones_like(ids, dtype=self.priority.dtype)
        if ids.shape[:1] == labels.shape:
            factors = torch.where(labels > 0.5, self.positive, 1.0).to(weights)
            weights *= factors.view(-1, *[1] * (ids.ndim - 1))
        self.priority.index_add_(0, ids.flatten(), weights.flatten())

    def move_rows(self) -> None:
        """Give the rows of the highest priority the finest formats.

        Of equals those stay that are there, then the lower place.  As many rows enter a
        tier as leave it: the ones take the places of the others.
        """
        now = self.places.long()
        by_place = now.argsort()  # no ties: places are all different
        ranked = by_place[largest_first(self.priority[by_place])]
        wanted = torch.empty_like(now)
        wanted[ranked] = self.tier_of(torch.arange(len(now), device=now.device))
        tiers = self.tier_of(now)
        moving = (wanted != tiers).nonzero()[:, 0]
        if not len(moving):
            return
        rows = self.load_rows(moving)
        for tier in range(len(self.ends)):
            entering = moving[wanted[moving] == tier]
            left = now[moving[tiers[moving] == tier]]
            self.places[entering] = left.to(self.places.dtype)
        self.store_rows(moving, rows)

    def freeze(self) -> Layout:
        """Each tier in its format, and who is in which."""
        self.refuse_unsound()
        count = self.num_embeddings
        every = torch.arange(count, device=self.places.device)
        parts: list[Layout] = []
        named = []
        for tier, (ids, rows) in enumerate(self.split(every)):
            if not len(ids):
                continue
            named.append(ids.cpu().numpy())
            if tier == 2:
                codes, step = self.codes[rows], self.step[rows][:, 0]
                scales = step.cpu().numpy()
                parts.append(
                    RowwiseLayout.from_codes(codes.cpu().numpy(), scales, None, 8)
                )
            else:
                held = (self.rows_full, self.rows_half)[tier][rows]
                kind = ("float32", "float16")[tier]
                parts.append(DenseLayout.from_weight(held, kind))
        if len(parts) == 1:
            return parts[0]
        return RoutedLayout.from_ids(parts, named[:-1], count)


def three_tier_bytes(spec: TableSpec, full: int, half: int) -> int:
    """Bytes of a table with so many rows in float32 and float16, the others in 8 bits,
    and of what says which is which.
    """
    rows, dim = spec.num_embeddings, spec.embedding_dim
    low = rows - full - half
    named = [count for count in (full, half, low) if count][:-1]
    stored = 4 * dim * full + 2 * dim * half + row_bytes(dim, 8, centred=True) * low
    return stored + routing_bytes(rows, named)
