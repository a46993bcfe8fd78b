"""A table in few bits, and a float cache of the rows in use."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from survey_code.bits import pack_codes, unpack_codes
from survey_code.budget import largest_fitting
from survey_code.checks import check_range
from survey_code.embedding import draw_normal
from survey_code.kernels.cuda.tensors import reaches_kernels
from survey_code.layouts import DenseLayout, Layout, RowwiseLayout
from survey_code.layouts.routed import apart_bytes, keep_apart
from survey_code.layouts.rowwise import PYTORCH_BITS, code_bytes, row_bytes
from survey_code.low_precision.quantization.rounding import round_stochastically
from survey_code.low_precision.quantization.rowwise import (
    LARGEST_HALF,
    plan_bits,
    quantize_rows,
)
from survey_code.low_precision.quantization.writeback import WriteBackEmbedding
from survey_code.method import Found, Trained
from survey_code.options import Options, found, option, planned
from survey_code.order import largest_first
from survey_code.spec import TableSpec

# Type of a row's scale and bias, by the bits of its codes.
TAILS = {8: torch.float32, 4: torch.float16, 2: torch.float16}


class CacheOptions(Options):
    """Options of `MixedPrecisionCache`."""

    bits: int = planned("bits of rows not cached", choices=PYTORCH_BITS, otherwise=8)
    fraction: float | None = option(
        None, "share of the rows to cache; None: as the budget holds", above=0, high=1
    )
    ways: int = option(32, "lines of a set; fewer where the cache is smaller", low=1)
    # By "lfu" each id of the table has a counter.
    policy: str = option(
        "lfu",
        "which rows of a set stay: those read most often, or those read last",
        choices=("lfu", "lru"),
        tune=("lfu", "lru"),
    )
    slots: int = found("lines of the cache, cut to whole sets", low=1)


class MixedPrecisionCache(WriteBackEmbedding, Trained[CacheOptions]):
    """Row-wise integers behind a set-associative cache of float32 rows.

    Key ``mixed_precision_cache``.  Id i may be cached in the `ways` lines of set
    ``i % sets``.  A row that is cached is trained in float32; when another row
    takes its line, it is rounded back by chance.

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

    def __init__(self, spec: TableSpec, options: CacheOptions, seed: int = 0) -> None:
        check_range("slots", options.slots, 1, spec.num_embeddings)
        super().__init__(spec, seed)
        self.bits, self.policy = options.bits, options.policy
        self.ways = min(options.ways, options.slots)
        self.sets = options.slots // self.ways
        slots = self.sets * self.ways
        shape = (spec.num_embeddings, spec.embedding_dim)
        start = draw_normal(shape, spec.init_std, [seed, 0])
        codes = quantize_rows(start.numpy(), self.bits)
        packed = RowwiseLayout.from_codes(*codes, self.bits)
        self.register_buffer("rows", torch.from_numpy(packed.rows))
        # Line w of set s holds id s + w * sets to begin with.
        ids = torch.arange(slots).view(self.ways, self.sets).T.flatten()
        self.register_buffer("keys", ids.to(torch.int32))
        self.register_buffer("lines", start[ids].clone())
        # Reads of each id so far, or when each line was last read.
        if self.policy == "lfu":
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
    def plan(cls, spec: TableSpec, ratio: float, options: CacheOptions) -> Found:
        """The most bits beside one cached row, or the share asked for; then as many
        cached rows as the budget holds.
        """
        slots, budget = count_slots(spec, options), spec.budget(ratio)
        rows, whole = spec.num_embeddings, spec.full_bytes
        # All rows can have a line where these are whole sets.
        all_cached = options.fraction is None and not rows % min(options.ways, rows)
        if all_cached and whole <= budget:
            return {"bits": options.bits or 8, "slots": rows}

        def size(bits: int) -> int:
            beside = tiered_bytes(spec, slots, bits)
            return min(beside, whole) if all_cached else beside

        bits = plan_bits(spec, ratio, options.bits, size)
        if options.fraction is None:
            slots = largest_fitting(
                1, rows, lambda n: tiered_bytes(spec, n, bits) <= budget
            )
        return {"bits": bits, "slots": slots}

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
        decoded = decode_packed(self.rows[ids], self.embedding_dim, self.bits)
        return torch.where(
            (lines >= 0)[:, None], self.lines[lines.clamp(min=0)], decoded
        )

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
        sets = torch.unique(ids % self.sets)
        ways = torch.arange(self.ways, device=ids.device)
        lines = (sets[:, None] * self.ways + ways).flatten()
        # Ties go to what is cached, then to the smaller id.
        owners = self.keys[lines].long() if self.policy == "lfu" else lines
        stays = among_best(
            torch.cat([self.uses[owners], merit]),
            torch.cat([lines // self.ways, ids % self.sets]),
            self.ways,
        )
        leaving, entering = lines[~stays[: len(lines)]], stays[len(lines) :]
        leaving = leaving[(leaving // self.ways).argsort(stable=True)]
        chosen = entering.nonzero()[:, 0]
        chosen = chosen[(ids[chosen] % self.sets).argsort(stable=True)]
        for losers, values in (
            (self.keys[leaving].long(), self.lines[leaving]),
            (ids[~entering], rows[~entering]),
        ):
            self.round_back(losers, values)
        self.keys[leaving] = ids[chosen].to(torch.int32)
        self.lines[leaving] = rows[chosen]
        if self.policy == "lru":
            self.uses[leaving] = merit[chosen]

    def round_back(self, ids: Tensor, rows: Tensor) -> None:
        """Rows that have no line are rounded by chance."""
        if not reaches_kernels(self.rows):
            self.rows[ids] = pack_by_chance(rows, self.bits, self.rng)
            return
        gaps, scale, tail = measure_ends(rows, self.bits)
        self.write_codes(self.rows, ids, gaps, scale, self.bits, 0)
        self.rows[ids, -tail.shape[1] :] = tail

    def freeze(self) -> Layout:
        """Cached rows in float32, the others in few bits."""
        self.refuse_unsound()
        order = self.keys.argsort(stable=True).cpu()
        cached = self.keys.cpu()[order].long().numpy()
        others = np.setdiff1d(np.arange(self.num_embeddings), cached)
        lines = self.lines.cpu()[order].numpy()
        if not len(others):
            return DenseLayout(lines)
        packed = self.rows.cpu().numpy()[others]
        coded = RowwiseLayout(packed, self.embedding_dim, self.bits)
        return keep_apart(self.num_embeddings, cached, lines, coded)


def among_best(merit: Tensor, sets: Tensor, ways: int) -> Tensor:
    """Which candidates are among the `ways` best of their set, bool like `merit`.

    Of equals the first are.
    """
    order = largest_first(merit)
    order = order[sets[order].argsort(stable=True)]
    ordered = sets[order]
    rank = torch.arange(len(order), device=order.device)
    rank -= torch.searchsorted(ordered, ordered)  # place within the set
    stays = torch.empty_like(rank, dtype=torch.bool)
    stays[order] = rank < ways
    return stays


def decode_packed(packed: Tensor, dim: int, bits: int) -> Tensor:
    """Rows of PyTorch's packed form: uint8 (m, bytes) -> float32 (m, dim)."""
    width = code_bytes(dim, bits)
    codes = unpack_codes(packed[:, :width], dim, bits)
    tail = packed[:, width:].clone(memory_format=torch.contiguous_format)
    scale, bias = tail.view(TAILS[bits]).float().split(1, dim=1)
    return codes * scale + bias


def pack_by_chance(rows: Tensor, bits: int, rng: np.random.Generator) -> Tensor:
    """Rows rounded to integers between their ends, by chance; `decode_packed` undoes
    it.
    """
    gaps, scale, tail = measure_ends(rows, bits)
    codes = round_stochastically(gaps / scale, rng).clamp(0, 2**bits - 1)
    return torch.cat([pack_codes(codes.to(torch.uint8), bits), tail], dim=1)


def measure_ends(rows: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """What rows are above their lower end, and their steps.

    Returns
    -------
    gaps : Tensor of float32, shape (m, dim)
    scale : Tensor of float32, shape (m, 1)
    tail : Tensor of uint8, shape (m, bytes)
        Scale and lower end, as they stand behind the codes.
    """
    kind, top = TAILS[bits], 2**bits - 1
    # What float16 must hold are scale and bias; entries beyond are clipped.
    most = LARGEST_HALF if bits != 8 else torch.finfo(kind).max
    bias = rows.amin(1, keepdim=True).clamp(-most, most).to(kind)
    span = rows.amax(1, keepdim=True) - bias.float()
    scale = (span / top).clamp(-most, most).to(kind)
    scale[scale == 0] = 1  # a constant row: any step will do
    tail = torch.cat([scale, bias], dim=1).view(torch.uint8)
    return rows - bias.float(), scale.float(), tail


def tiered_bytes(spec: TableSpec, slots: int, bits: int) -> int:
    """Bytes of a table with so many rows in float32, with their ids."""
    rows, line = spec.num_embeddings, 4 * spec.embedding_dim
    if slots == rows:
        return rows * line
    coded = (rows - slots) * row_bytes(spec.embedding_dim, bits)
    return coded + apart_bytes(rows, slots, line)


def count_slots(spec: TableSpec, options: CacheOptions) -> int:
    """Lines of a cache for the share of the rows that was asked for; at least one."""
    slots = max(int((options.fraction or 0) * spec.num_embeddings), 1)
    return slots - slots % options.ways if slots >= options.ways else slots
