"""Zero-collision hashing: ids come and go, and no two that are there share a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.embedding import TrainingStep, as_float32, draw_normal, pick_rows
from survey_code.hashes import draw_multipliers
from survey_code.layouts import Layout, ProbedLayout
from survey_code.layouts.probed import FREE, find_homes, identity_type, probed_bytes
from survey_code.method import Found, Trained
from survey_code.options import Options, found, option
from survey_code.order import largest_first
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import HASH_BYTES, MOST_ROWS, HashingTable

# Slots of a window, at most: all of them are looked at for each id.
MOST_WINDOW = 1024


class ZeroCollisionOptions(Options):
    """Options of `ZeroCollision`."""

    window: int = option(
        16, "slots in which an id may stand", low=1, high=MOST_WINDOW, tune=(16, 64)
    )
    evict: str = option(
        "counts",
        "the coldest by reads, of which old ones count less, or by the last read",
        choices=("counts", "last"),
        tune=("counts", "last"),
    )
    decay: float = option(
        0.99,
        "what counts are multiplied by after each step",
        low=0,
        high=1,
        tune=(0.99, 0.97),
    )
    open_ids: bool = option(False, "serve any id from 0 up, in identities of 8 bytes")
    slots: int = found("rows that ids can have", low=1, high=MOST_ROWS)


class ZeroCollision(HashingTable, Trained[ZeroCollisionOptions]):
    """A row for each id that is there, and never one for two (key ``zero_collision``).

    While training, an id that is read takes a free slot of its window, or that of the
    coldest id there, whose row begins anew.  Who was read in the same step is not
    evicted.  By counts, an id is colder than a newcomer only if its reads, decayed,
    are fewer than the newcomer's in this look-up: one that is read often cannot be
    pushed out by many that are read once.  By the last read, whoever was not read in
    this step can.  An id that finds no slot reads the default row, which learns from
    all that read it.

    Newcomers choose in rounds.  Each asks for the coldest slot of its window; of those
    that ask for the same, the one that was read most gets it, and the others ask again.

    Parameters
    ----------
    spec : TableSpec
    options : ZeroCollisionOptions
    seed : int, default 0

    Notes
    -----
    Zhao et al., "Multi-Probe Zero Collision Hash (MPZCH): Mitigating Embedding
    Collisions and Enhancing Model Freshness in Large-Scale Recommenders" (2026).
    Linear probing, eviction and the reset of reassigned rows are the paper's, of which
    we know the abstract, and its code in TorchRec.  There a window has 128 slots unless
    told otherwise, and ids are evicted by their last read, or some hours after it.
    Counts, the rounds, and a default row that is stored and learns are ours.

    Counts, last reads and marks of renewed rows, 9 bytes per slot, are needed while
    training: they are counted in its memory, and not in the bytes that are stored.
    """

    hash_names = ("numbers",)
    # Ids without a slot read the same row.
    shares_rows = True
    identities: Tensor
    counts: Tensor
    last_read: Tensor
    renewed: Tensor

    def __init__(
        self, spec: TableSpec, options: ZeroCollisionOptions, seed: int = 0
    ) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.slots, self.open_ids = options.slots, options.open_ids
        self.window = min(options.window, options.slots)
        self.by_counts, self.decay = options.evict == "counts", options.decay
        self.std, self.seed = spec.init_std, seed
        self.numbers = draw_multipliers(np.random.default_rng([seed, 1]), 1)[0]
        drawn = draw_normal((self.slots, spec.embedding_dim), self.std, [seed, 0])
        # The last row is the default: one draw, so its spread is made exact.
        signs = np.random.default_rng([seed, 2]).integers(2, size=drawn.shape[1])
        default = torch.from_numpy((2 * signs - 1) * self.std).to(drawn.dtype)
        self.values = nn.Parameter(torch.cat([drawn, default[None]]))
        kind = identity_type(spec.num_embeddings, self.open_ids)
        free = torch.from_numpy(np.full(self.slots, FREE, dtype=kind))
        self.register_buffer("identities", free)
        self.register_buffer("counts", torch.zeros(self.slots))
        never = torch.full((self.slots,), -1, dtype=torch.int32)
        self.register_buffer("last_read", never)
        self.register_buffer("renewed", never > 0, persistent=False)
        self.steps_done = self.draws = 0

    @classmethod
    def plan(
        cls, spec: TableSpec, ratio: float, options: ZeroCollisionOptions
    ) -> Found:
        """As many slots as the budget holds, identities included."""
        row = 4 * spec.embedding_dim
        identity = identity_type(spec.num_embeddings, options.open_ids).itemsize
        budget = spec.require(ratio, smallest=probed_bytes(1, row, identity))
        slots = (budget - row - HASH_BYTES) // (row + identity)
        return {"slots": min(slots, spec.num_embeddings, MOST_ROWS)}

    def get_extra_state(self) -> dict[str, Any]:
        """The hash, and how far reads and draws were counted."""
        own = {"steps_done": self.steps_done, "draws": self.draws}
        return {**super().get_extra_state(), **own}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take these of a state dict."""
        super().set_extra_state(state)
        self.steps_done, self.draws = state["steps_done"], state["draws"]

    def embed(self, ids: Tensor) -> Tensor:
        """The row of each id's slot; in training, ids without one claim it first."""
        places = self.claim(ids) if self.training else self.find(ids)
        return pick_rows(places, self.values, sparse=self.regime.sparse)

    def windows_of(self, ids: Tensor) -> Tensor:
        """The slots in which ids may stand, int64, with one more axis."""
        homes = find_homes(ids, self.numbers, self.slots)
        steps = torch.arange(self.window, device=ids.device)
        return (homes[..., None] + steps) % self.slots

    def find(self, ids: Tensor, windows: Tensor | None = None) -> Tensor:
        """The slot of each id, `slots` where it has none: int64 of the ids' shape."""
        windows = self.windows_of(ids) if windows is None else windows
        held = self.identities[windows] == ids[..., None]
        # -1 becomes the last row.
        return torch.where(held, windows, -1).amax(-1) % (self.slots + 1)

    @torch.no_grad()
    def claim(self, ids: Tensor) -> Tensor:
        """Count reads and let newcomers settle; then the slot of each id."""
        distinct, places, times = torch.unique(
            ids, return_inverse=True, return_counts=True
        )
        times = times.to(self.counts.dtype)
        windows = self.windows_of(distinct)
        slots = self.find(distinct, windows)
        new = slots == self.slots
        self.counts[slots[~new]] += times[~new]
        self.last_read[slots[~new]] = self.steps_done
        self.settle(distinct[new], times[new], windows[new])
        return self.find(distinct, windows)[places]

    def settle(self, ids: Tensor, times: Tensor, windows: Tensor) -> None:
        """Give slots to ids that have none: int64 (m,), their reads, their windows."""
        order = largest_first(times)
        ids, times, windows = ids[order], times[order], windows[order]
        taken = [windows[:0, 0]]
        while len(ids):
            heat, step = self.heat()[windows].min(1)  # the first of equals
            hope = heat < (times if self.by_counts else torch.inf)
            ids, times, windows = ids[hope], times[hope], windows[hope]
            wanted = windows.gather(1, step[hope, None])[:, 0]
            first = mark_first(wanted)
            slots = wanted[first]
            self.identities[slots] = ids[first].to(self.identities.dtype)
            self.counts[slots] = times[first]
            self.last_read[slots] = self.steps_done
            taken.append(slots)
            ids, times, windows = ids[~first], times[~first], windows[~first]
        self._renew(torch.cat(taken))

    def heat(self) -> Tensor:
        """How warm each slot is: free ones least, those of this step beyond reach."""
        warm = (self.counts if self.by_counts else self.last_read).double()
        warm = warm.masked_fill(self.identities == FREE, -1.0)
        return warm.masked_fill(self.last_read == self.steps_done, torch.inf)

    def _renew(self, slots: Tensor) -> None:
        """Draw the rows of these slots anew; all are different."""
        shape = (len(slots), self.embedding_dim)
        rows = draw_normal(shape, self.std, [self.seed, 3, self.draws])
        self.draws += 1
        self.values.data[slots] = rows.to(self.values)
        self.renewed[slots] = True

    def renewed_rows(self) -> list[tuple[nn.Parameter, Tensor]]:
        """The rows of slots that changed hands, for the optimiser to forget."""
        rows = self.renewed.nonzero()[:, 0]
        self.renewed.zero_()
        return [(self.values, rows)]

    @torch.no_grad()
    def after_step(self, step: TrainingStep) -> None:
        """Let counts decay; who was read can be evicted again."""
        self.counts *= self.decay
        self.steps_done += 1

    def freeze(self) -> Layout:
        """Identities, rows and the numbers of the hash."""
        return ProbedLayout(
            self.identities.cpu().numpy().copy(),
            as_float32(self.values),
            self.numbers.copy(),
            self.num_embeddings,
            self.window,
            self.open_ids,
        )


def mark_first(values: Tensor) -> Tensor:
    """Which entries are the first of their value.

    Examples
    --------
    >>> mark_first(torch.tensor([5, 2, 5, 7, 2])).tolist()
    [True, True, False, True, False]
    """
    order = values.argsort(stable=True)
    ordered = values[order]
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    first = torch.empty_like(new)
    first[order] = new
    return first
