"""CAFE: hashed rows, and own rows for ids that a sketch finds important."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from survey_code.checks import check_range
from survey_code.embedding import TrainingStep
from survey_code.hashes import draw_multipliers, mix_ids
from survey_code.layouts.hashed import mixed_index
from survey_code.method import Found, Trained
from survey_code.options import Options, found, option
from survey_code.order import largest_first
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import (
    INDEX_BYTES,
    MOST_ROWS,
    HashedEmbedding,
    plan_apart,
)

# Slots of a bucket of the sketch.
SLOTS = 4
NOBODY = 2**31 - 1
# An id takes the row of another only where it received this many times as much.
HOLDING = 2.0


class HotSketch:
    """Who received most of something, in a few slots (of CAFE).

    An id belongs to one bucket of four slots.  Where it has a slot, its score
    grows; else it takes the slot with the smallest score, and inherits that score.
    So a score is never less than what its id received since it came, and never
    more than that plus what was inherited.  Ids with own rows keep their slots.

    Parameters
    ----------
    ids : Tensor of int32, shape (buckets, 4)
        `NOBODY` marks a free slot; changed in place, as are the others.
    scores, inherited : Tensor of float32, shape (buckets, 4)
    multipliers : ndarray of int64, shape (3,)
    """

    def __init__(
        self, ids: Tensor, scores: Tensor, inherited: Tensor, multipliers: np.ndarray
    ) -> None:
        self.ids, self.scores, self.inherited = ids, scores, inherited
        self.multipliers = multipliers

    def buckets_of(self, ids: Tensor) -> Tensor:
        """The bucket of each id."""
        return mix_ids(ids, *self.multipliers.tolist()) % len(self.ids)

    def add(self, ids: Tensor, amounts: Tensor, holders: Tensor | None = None) -> None:
        """Count amounts, int64 and float of shape (m,); all ids are different.

        Newcomers of one bucket come largest first, and no more than four of them: a
        fifth finds no slot in this call, and its amount is not counted.  They take
        no slot of `holders`, unless these have all four.
        """
        buckets = self.buckets_of(ids)
        known = self.ids[buckets] == ids[:, None]  # (m, slots)
        hit = known.any(1)
        slots = known.int().argmax(1)
        amounts = amounts.to(self.scores.dtype)
        self.scores[buckets[hit], slots[hit]] += amounts[hit]
        ids, buckets, amounts = ids[~hit], buckets[~hit], amounts[~hit]
        order = largest_first(amounts)
        order = order[buckets[order].argsort(stable=True)]
        ids, buckets, amounts = ids[order], buckets[order], amounts[order]
        ranks = torch.arange(len(ids), device=ids.device)
        ranks -= torch.searchsorted(buckets, buckets)
        # A holder who is pushed out loses its row, and comes back with nothing to its
        # name: where ids are about equally frequent, a row never stays with anyone.
        held = self.held_by(holders)
        held &= ~held.all(1, keepdim=True)  # or nobody new could ever come
        for rank in range(SLOTS):
            turn = ranks == rank  # at most one of each bucket
            into = buckets[turn]
            slots = self.scores[into].masked_fill(held[into], torch.inf).argmin(1)
            self.ids[into, slots] = ids[turn].to(torch.int32)
            self.inherited[into, slots] = self.scores[into, slots]
            self.scores[into, slots] += amounts[turn]

    def held_by(self, holders: Tensor | None) -> Tensor:
        """Which slots are those of holders, shape (buckets, 4)."""
        if holders is None:
            return torch.zeros_like(self.ids, dtype=torch.bool)
        return torch.isin(self.ids, holders) & (self.ids != NOBODY)

    def largest(self, number: int, holders: Tensor) -> Tensor:
        """The ids that received most for certain, int64 and rising; at most `number`.

        Of each score, only what was not inherited counts, and that of `holders`
        counts several times.
        """
        scores = self.scores - self.inherited
        held = self.held_by(holders)
        scores = torch.where(held, HOLDING * scores, scores).flatten()
        order = largest_first(scores)[:number]
        ids = self.ids.flatten()[order[scores[order] > 0]].long()
        return ids.sort().values


class CAFEOptions(Options):
    """Options of `CAFE`."""

    share: float = option(
        0.5, "share of the budget that own rows get", low=0, high=1, tune=(0.5, 0.2)
    )
    # Where there are few, ids without an own row push each other out before they
    # have earned one.
    slots: int = option(8, "slots of the sketch for each own row", low=1, high=1024)
    period: int = option(
        10, "steps between two assignments of own rows", low=1, high=2**31
    )
    decay: float = option(
        0.98, "what scores are multiplied by at each assignment", low=0, high=1
    )
    rows: int = found("rows of the shared table", low=1, high=MOST_ROWS)
    hot: int = found("own rows", low=0)


class CAFE(HashedEmbedding, Trained[CAFEOptions]):
    """Hashed rows; own rows for what a sketch finds important (key ``cafe``).

    Importance is the length of the gradient that an id receives each time it occurs,
    added up in a sketch while training.  Every `period` steps the ids with the largest
    scores are given own rows, which begin as copies of what they read before; ids that
    fall behind go back to the shared rows.

    Notes
    -----
    Zhang et al., "CAFE: Towards Compact, Adaptive, and Fast Embedding for
    Large-scale Recommendation Models" (SIGMOD 2024).  The paper promotes ids
    beyond a threshold, to be set; here the threshold is the score that fills the own
    rows, and the sketch never forgets who has one.  Their scores, as ours, are
    multiplied by a number below 1 from time to time.  Ids of middling importance,
    which they hash into a second table, are hashed as all others are.
    The sketch, 12 bytes per slot, is needed in training only: it is counted in the
    memory of training, and not in the bytes that are stored.
    """

    hash_names = (*HashedEmbedding.hash_names, "bucket_hash")
    sketch_ids: Tensor
    scores: Tensor
    inherited: Tensor
    hot_ids: Tensor
    hot_rows: Tensor

    def __init__(self, spec: TableSpec, options: CAFEOptions, seed: int = 0) -> None:
        hot = options.hot
        check_range("hot", hot, 0, spec.num_embeddings)
        index = mixed_index([seed, 1], [options.rows])
        # Who has an own row changes, so that the keys are made at the end.
        places = np.arange(hot, dtype=np.int32) if hot else None
        super().__init__(spec, index, "sum", [seed, 0], keys=places)
        self.keys = None
        self.hot, self.period, self.decay = hot, options.period, options.decay
        self.steps_done = 0
        self.bucket_hash = draw_multipliers(np.random.default_rng([seed, 2]), 1)[0]
        buckets = max(options.slots * hot // SLOTS, 1)
        nobody = torch.full((buckets, SLOTS), NOBODY, dtype=torch.int32)
        self.register_buffer("sketch_ids", nobody)
        self.register_buffer("scores", torch.zeros(buckets, SLOTS))
        self.register_buffer("inherited", torch.zeros(buckets, SLOTS))
        # Ids with own rows, rising and filled up with nobody, and their rows.
        self.register_buffer("hot_ids", torch.full((hot,), NOBODY, dtype=torch.int32))
        self.register_buffer("hot_rows", torch.arange(hot, dtype=torch.int32))
        # Ids and lengths of gradients of each look-up since the last step.
        self.batch: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: CAFEOptions) -> Found:
        """Own rows for a share of the budget, shared rows for the rest."""
        row, share = 4 * spec.embedding_dim, options.share
        rows, hot = plan_apart(spec, ratio, row, INDEX_BYTES, share)
        return {"rows": rows, "hot": hot}

    @property
    def sketch(self) -> HotSketch:
        """The sketch, on the table's device."""
        return HotSketch(self.sketch_ids, self.scores, self.inherited, self.bucket_hash)

    def embed(self, ids: Tensor) -> Tensor:
        """Own rows where there are such; in training, gradients are noted."""
        rows = super().embed(ids)
        if self.hot:
            rows = self.prefer_own(ids, rows)
        if self.training and rows.requires_grad:
            flat = ids.flatten()
            rows.register_hook(lambda grad: self.note(flat, grad))
        return rows

    def find_own(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The own row of each id, and whether it has one."""
        places = torch.searchsorted(self.hot_ids, ids.to(torch.int32))
        places = places.clamp(max=self.hot - 1)
        return self.hot_rows[places].long(), self.hot_ids[places] == ids

    def note(self, ids: Tensor, grad: Tensor) -> None:
        """Keep the lengths of a look-up's gradients until the step is done."""
        self.batch.append((ids, grad.detach().reshape(len(ids), -1).norm(dim=1)))

    def advance(self, progress: float) -> None:
        """Forget look-ups that no step followed."""
        self.batch.clear()

    @torch.no_grad()
    def after_step(self, step: TrainingStep) -> None:
        """Count the gradients, and from time to time assign own rows anew."""
        if not self.batch or not self.hot:
            return
        ids = torch.cat([ids for ids, _ in self.batch])
        lengths = torch.cat([length for _, length in self.batch])
        self.batch.clear()
        distinct, places = torch.unique(ids, return_inverse=True)
        # Of each occurrence: gradients of a batch may cancel out where an id matters.
        sums = lengths.new_zeros(len(distinct)).index_add_(0, places, lengths)
        self.sketch.add(distinct, sums, self.hot_ids)
        self.steps_done += 1
        if self.steps_done % self.period == 0:
            self.assign(self.sketch.largest(self.hot, self.hot_ids))
            self.scores *= self.decay
            self.inherited *= self.decay

    def assign(self, wanted: Tensor) -> None:
        """Give own rows to these ids, int64 and rising, and to no others."""
        old = self.hot_ids.long()
        stays = torch.isin(old, wanted)
        entering = wanted[~torch.isin(wanted, old)]
        free = self.hot_rows[~stays].long()[: len(entering)]
        # A copy of what the id read so far.
        copies = super().embed(entering)
        self.values.data[self.shared_rows + free] = copies
        ids = torch.cat([old[stays], entering])
        rows = torch.cat([self.hot_rows[stays].long(), free])
        order = ids.argsort(stable=True)
        left = self.hot_rows[~stays][len(entering) :]
        self.hot_ids.fill_(NOBODY)
        self.hot_ids[: len(ids)] = ids[order].to(torch.int32)
        self.hot_rows.copy_(torch.cat([rows[order].to(torch.int32), left]))

    def own_ids(self) -> np.ndarray:
        """The ids that have own rows now."""
        return self.hot_ids[self.hot_ids != NOBODY].cpu().numpy()

    def stored_values(self) -> Tensor:
        """Shared rows, then own rows in the order of their ids."""
        filled = self.hot_rows[self.hot_ids != NOBODY].long()
        shared, own = self.values[: self.shared_rows], self.values[self.shared_rows :]
        return torch.cat([shared, own[filled]])
