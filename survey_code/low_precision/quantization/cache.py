"""A table in few bits, and a float cache of the rows in use."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from survey_code.embedding import check_range, draw_normal
from survey_code.layouts import RowwiseLayout, TieredLayout
from survey_code.layouts.rowwise import BITS, code_bytes, parameter_type, row_bytes
from survey_code.low_precision.quantization.rounding import (
    pack_bits,
    round_stochastically,
    unpack_bits,
)
from survey_code.low_precision.quantization.rowwise import (
    LARGEST_HALF,
    check_choice,
    quantize_rows,
)
from survey_code.low_precision.quantization.writeback import WriteBackEmbedding
from survey_code.order import largest_first
from survey_code.spec import TableSpec

POLICIES = ("lfu", "lru")


class MixedPrecisionCache(WriteBackEmbedding):
    """Row-wise integers behind a set-associative cache of float32 rows.

    Key ``mixed_precision_cache``.  Id i may be cached in the `ways` lines of set
    ``i % sets``.  A row that is cached is trained in float32; when another row
    takes its line, it is rounded back by chance.

    Parameters
    ----------
    spec : TableSpec
    bits : {8, 4, 2}
        Of the rows that are not cached.
    slots : int
        Lines of the cache, 1 to the number of rows; rounded down to whole sets.
    ways : int, default 32
        Lines of a set; all of them make a single set where there are fewer.
    policy : {"lfu", "lru"}
        Which rows of a set stay: those read most often, for which each id of the
        table has a counter, or those read last.
    seed : int, default 0

    Raises
    ------
    ValueError
        If an option is not one of those.

    Notes
    -----
    Yang et al., "Mixed-Precision Embedding Using a Cache" (2020).  Lines change
    hands after a step, for the whole batch at once; they then hold the rows that
    the policy would hold had it followed the look-ups one by one.  The cache
    starts with the first ids of the table.
    """

    rows: Tensor
    keys: Tensor
    lines: Tensor
    uses: Tensor
    counters: Tensor
    clock: Tensor

    def __init__(
        self,
        spec: TableSpec,
        *,
        slots: int,
        bits: int = 8,
        ways: int = 32,
        policy: str = "lfu",
        seed: int = 0,
    ) -> None:
        kind = parameter_type(bits)
        check_range("slots", slots, 1, spec.num_embeddings)
        check_range("ways", ways, 1, 2**31 - 1)
        check_choice("policy", policy, POLICIES)
        super().__init__(spec, seed)
        self.bits, self.policy = int(bits), policy
        self.kind = torch.float32 if kind == np.float32 else torch.float16
        self.ways = min(ways, slots)
        self.sets = slots // self.ways
        slots = self.sets * self.ways
        shape = (spec.num_embeddings, spec.embedding_dim)
        start = draw_normal(shape, spec.init_std, [seed, 0])
        packed = RowwiseLayout.from_codes(*quantize_rows(start.numpy(), bits), bits)
        self.register_buffer("rows", torch.from_numpy(packed.rows))
        # Line w of set s holds id s + w * sets to begin with.
        ids = torch.arange(slots).view(self.ways, self.sets).T.flatten()
        self.register_buffer("keys", ids.to(torch.int32))
        self.register_buffer("lines", start[ids].clone())
        # Reads of each id so far, or when each line was last read.
        if policy == "lfu":
            uses = torch.zeros(spec.num_embeddings, dtype=torch.int32)
        else:
            uses = torch.zeros(slots, dtype=torch.int64)
        self.register_buffer("uses", uses)
        # Look-ups since the last step, in their order, and how many before them.
        self.reads: list[Tensor] = []
        self.register_buffer("clock", torch.ones((), dtype=torch.int64))
        # Look-ups in training, and how many of them found their row cached.
        counters = torch.zeros(2, dtype=torch.int64)
        self.register_buffer("counters", counters, persistent=False)

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        bits: int | None = None,
        fraction: float | None = None,
        ways: int = 32,
        policy: str = "lfu",
    ) -> dict[str, Any]:
        """The most bits that fit beside one cached row (or a `fraction` of the
        rows), and then as many cached rows as the budget holds.
        """
        check_range("ways", ways, 1, 2**31 - 1)
        check_choice("policy", policy, POLICIES)
        n, line = spec.num_embeddings, 4 * spec.embedding_dim + 4
        fewest = 1 if fraction is None else count_slots(n, fraction, ways)
        sizes = {}
        for b in BITS if bits is None else (bits,):
            sizes[b] = n * row_bytes(spec.embedding_dim, b)
            sizes[b] += fewest * (line - row_bytes(spec.embedding_dim, b))
        budget = spec.require(ratio, smallest=min(sizes.values()))
        chosen = max(b for b in sizes if sizes[b] <= budget)
        slots = fewest
        if fraction is None:
            extra = line - row_bytes(spec.embedding_dim, chosen)
            room = (budget - sizes[chosen]) // extra if extra > 0 else n
            slots = min(n, fewest + room)
        return {"bits": chosen, "slots": slots, "ways": ways, "policy": policy}

    @property
    def hit_rate(self) -> float:
        """Share of the look-ups in training that found their row cached."""
        looks, hits = self.counters.tolist()
        return hits / max(looks, 1)

    # -- reading ------------------------------------------------------------

    def embed(self, ids: Tensor) -> Tensor:
        """Rows from the cache or decoded; in training, reads are counted."""
        if self.training and torch.is_grad_enabled():
            self.count(ids.flatten())
        return super().embed(ids)

    def advance(self, progress: float) -> None:
        """Forget look-ups that no step followed."""
        super().advance(progress)
        self.reads.clear()

    def count(self, ids: Tensor) -> None:
        """Note who is read, and whether it was cached."""
        self.counters[0] += len(ids)
        self.counters[1] += (self.find(ids) >= 0).sum()
        if self.policy == "lfu":
            ones = torch.ones_like(ids, dtype=torch.int32)
            self.uses.index_add_(0, ids, ones)
        else:
            self.reads.append(ids)

    def last_reads(self, ids: Tensor) -> Tensor:
        """When each id (rising) was last read; look-ups are numbered in order."""
        reads = torch.cat(self.reads)
        self.reads.clear()
        times = self.clock + torch.arange(len(reads), device=ids.device)
        self.clock += len(reads)
        places = torch.searchsorted(ids, reads).clamp(max=len(ids) - 1)
        asked = ids[places] == reads
        last = torch.zeros_like(ids)
        return last.scatter_reduce_(0, places[asked], times[asked], "amax")

    def find(self, ids: Tensor) -> Tensor:
        """Line of each id, or -1."""
        sets = ids % self.sets
        match = self.keys.view(self.sets, self.ways)[sets] == ids[:, None]
        line = sets * self.ways + match.to(torch.uint8).argmax(1)
        return torch.where(match.any(1), line, -1)

    def load_rows(self, ids: Tensor) -> Tensor:
        """Cached rows as they are, the others decoded."""
        lines = self.find(ids)
        decoded = self.decode(self.rows[ids])
        return torch.where(
            (lines >= 0)[:, None], self.lines[lines.clamp(min=0)], decoded
        )

    def decode(self, packed: Tensor) -> Tensor:
        """Rows of PyTorch's packed form: uint8 (m, bytes) -> float32 (m, dim)."""
        width = code_bytes(self.embedding_dim, self.bits)
        codes = unpack_bits(packed[:, :width], self.embedding_dim, self.bits)
        tail = packed[:, width:].clone(memory_format=torch.contiguous_format)
        scale, bias = tail.view(self.kind).float().split(1, dim=1)
        return codes * scale + bias

    # -- writing ------------------------------------------------------------

    def store_rows(self, ids: Tensor, rows: Tensor) -> None:
        """Cached rows are replaced; the others compete for lines."""
        lines = self.find(ids)
        hit = lines >= 0
        self.lines[lines[hit]] = rows[hit]
        merit = self.uses[ids] if self.policy == "lfu" else self.last_reads(ids)
        if self.policy == "lru":
            self.uses[lines[hit]] = merit[hit]
        if not hit.all():
            self.admit(ids[~hit], rows[~hit], merit[~hit])

    def admit(self, ids: Tensor, rows: Tensor, merit: Tensor) -> None:
        """Rows that were missed take lines from worse ones; losers are rounded.

        As many rows enter a set as leave it, so that both, in the order of their
        sets, pair up.
        """
        lines = self.lines_of(ids)
        stays = self.choose(lines, ids, merit)
        leaving, entering = lines[~stays[: len(lines)]], stays[len(lines) :]
        leaving = leaving[(leaving // self.ways).argsort(stable=True)]
        chosen = entering.nonzero()[:, 0]
        chosen = chosen[(ids[chosen] % self.sets).argsort(stable=True)]
        self.write_back(self.keys[leaving].long(), self.lines[leaving])
        self.write_back(ids[~entering], rows[~entering])
        self.keys[leaving] = ids[chosen].to(torch.int32)
        self.lines[leaving] = rows[chosen]
        if self.policy == "lru":
            self.uses[leaving] = merit[chosen]

    def lines_of(self, ids: Tensor) -> Tensor:
        """All lines of the sets that ids belong to."""
        sets = torch.unique(ids % self.sets)
        ways = torch.arange(self.ways, device=ids.device)
        return (sets[:, None] * self.ways + ways).flatten()

    def choose(self, lines: Tensor, ids: Tensor, merit: Tensor) -> Tensor:
        """Which of cached lines and missed ids are among the best of their set.

        Ties go to what is cached, then to the smaller id.

        Returns
        -------
        Tensor of bool, shape (lines + ids,)
        """
        owners = self.keys[lines].long() if self.policy == "lfu" else lines
        merit = torch.cat([self.uses[owners], merit])
        sets = torch.cat([lines // self.ways, ids % self.sets])
        order = largest_first(merit)
        order = order[sets[order].argsort(stable=True)]
        ordered = sets[order]
        rank = torch.arange(len(order), device=order.device)
        rank -= torch.searchsorted(ordered, ordered)  # place within the set
        stays = torch.empty_like(rank, dtype=torch.bool)
        stays[order] = rank < self.ways
        return stays

    def write_back(self, ids: Tensor, rows: Tensor) -> None:
        """Round rows to integers between their ends, by chance."""
        if self.bits != 8:
            rows = rows.clamp(-LARGEST_HALF, LARGEST_HALF)
        top = 2**self.bits - 1
        bias = rows.amin(1, keepdim=True).to(self.kind)
        scale = ((rows.amax(1, keepdim=True) - bias.float()) / top).to(self.kind)
        scale[scale == 0] = 1  # a constant row: any step will do
        scaled = (rows - bias.float()) / scale.float()
        codes = round_stochastically(scaled, self.rng).clamp(0, top).to(torch.uint8)
        tail = torch.cat([scale, bias], dim=1).view(torch.uint8)
        self.rows[ids] = torch.cat([pack_bits(codes, self.bits), tail], dim=1)

    def freeze(self) -> TieredLayout:
        """Cached rows in float32, the others in few bits."""
        order = self.keys.argsort(stable=True).cpu()
        cached = self.keys.cpu()[order].long().numpy()
        others = np.setdiff1d(np.arange(self.num_embeddings), cached)
        lines = self.lines.cpu()[order].numpy()
        packed = self.rows.cpu().numpy()[others]
        return TieredLayout.from_parts(
            self.embedding_dim,
            {"values": (cached, lines), f"rows{self.bits}": (others, packed)},
        )


def count_slots(rows: int, fraction: Any, ways: int) -> int:
    """Lines of a cache for a fraction of the rows, at least one."""
    if not isinstance(fraction, int | float) or not 0 < fraction <= 1:
        raise ValueError(f"fraction must be a number in (0, 1], got {fraction!r}")
    slots = max(int(fraction * rows), 1)
    return slots // ways * ways if slots >= ways else slots
