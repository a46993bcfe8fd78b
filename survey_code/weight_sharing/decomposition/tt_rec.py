"""TT-Rec: a table as a train of three cores, and a few frequent rows in full."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.budget import largest_fitting, require_counts
from survey_code.checks import check_range
from survey_code.embedding import TrainingStep, pick_rows
from survey_code.layouts import Layout, TensorTrainLayout
from survey_code.layouts.routed import apart_bytes, keep_apart, most_apart
from survey_code.method import AfterTraining, Found, Trained
from survey_code.options import Options, option, planned
from survey_code.order import largest_first, most_frequent
from survey_code.replay import is_recording
from survey_code.spec import TableSpec
from survey_code.weight_sharing.decomposition.trains import (
    GRAM_NUMBERS,
    MOST_RANK,
    TrainEmbedding,
    invert_values,
    leading_vectors,
    plan_rank,
    sum_gram,
    train_bytes,
    train_shapes,
)

INITS = ("exact", "published")


def decompose(
    table: np.ndarray, shapes: np.ndarray
) -> tuple[list[np.ndarray], list[float]]:
    """TT-SVD: split off one core after another by a truncated SVD.

    Parameters
    ----------
    table : ndarray of float32, shape (n, d)
        Rows are padded with zeros to the product of the row sizes.
    shapes : ndarray of int64, shape (k, 5)
        All steps 1.

    Returns
    -------
    cores : list of ndarray of float32, shapes (rows, left, columns, right)
    lost : list of float
        For each cut, the sum of the squared singular values left out; their sum
        bounds the squared error from above, and for exact arithmetic equals it.

    Notes
    -----
    Oseledets, "Tensor-Train Decomposition" (SIAM J. Sci. Comput. 2011).  The singular
    vectors of a cut come from its smaller Gram matrix, summed in float64 block by
    block, as in `truncate`; what is left for the next cut is kept in float32.
    """
    rows, columns, left, right, steps = shapes.T.tolist()
    if set(steps) != {1}:
        raise ValueError(f"TT-SVD needs steps of 1, got {steps}")
    # Numbers near 1: a singular value must fit float32 where a table's largest does.
    _, power = np.frexp(np.abs(table).max(initial=0))
    shares = [int(power) // len(rows)] * len(rows)
    shares[-1] += int(power) - sum(shares)
    rest = pad_rows(table, math.prod(rows), -int(power))
    cores, lost = [], []
    for n, d, after in zip(rows[:-1], columns, right):
        core, rest, left_out = split_core(rest, n, d, after)
        cores.append(core)
        lost.append(math.ldexp(left_out, 2 * int(power)))
    cores.append(rest.reshape(left[-1], rows[-1], columns[-1], 1))
    return [
        np.ldexp(core.transpose(1, 0, 2, 3), share, dtype=np.float32)
        for core, share in zip(cores, shares)
    ], lost


def pad_rows(table: np.ndarray, rows: int, power: int) -> np.ndarray:
    """A table times a power of two, and zeros below it, float32 (1, rows, dim)."""
    padded = np.zeros((1, rows, table.shape[1]), dtype=np.float32)
    np.ldexp(table, power, out=padded[0, : len(table)], casting="same_kind")
    return padded


def split_core(
    rest: np.ndarray, rows: int, columns: int, rank: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """The next core, and what is left for those after it.

    Parameters
    ----------
    rest : ndarray of float32, shape (left, rows * more rows, columns * more columns)
    rows, columns, rank : int
        Of the core; fewer singular values than `rank` are filled up with zeros.

    Returns
    -------
    core : ndarray of float32, shape (left, rows, columns, rank)
        Its columns are singular vectors.
    rest : ndarray of float32, shape (rank, more rows, more columns)
    lost : float
        Sum of the squared singular values left out.
    """
    left, many, wide = rest.shape
    grid = rest.reshape(left * rows, many // rows, columns, wide // columns)
    split = split_short if grid[:, 0, :, 0].size <= grid[0, :, 0].size else split_tall
    core, after, lost = split(grid, rank)
    return core.reshape(left, rows, columns, rank), after, lost


def split_short(grid: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, float]:
    """`split_core` of fewer rows (the first and third axes) than columns."""
    before, more, columns, thin = grid.shape
    tall, kept = before * columns, min(rank, before * columns)
    step = max(GRAM_NUMBERS // (tall * thin), 1)

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, more, step):
            yield grid[:, start : start + step].swapaxes(1, 2).reshape(tall, -1)

    _, vectors, lost = leading_vectors(sum_gram(blocks(), tall), kept)
    core = np.zeros((tall, rank), dtype=np.float32)
    core[:, :kept] = vectors
    after = np.zeros((rank, more, thin), dtype=np.float32)
    turned = core[:, :kept].T.copy()
    for start, block in zip(range(0, more, step), blocks()):
        found = (turned @ block).reshape(kept, -1, thin)
        after[:kept, start : start + step] = found
    return core, after, lost


def split_tall(grid: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, float]:
    """`split_core` of more rows (the first and third axes) than columns."""
    before, more, columns, thin = grid.shape
    flat, kept = more * thin, min(rank, more * thin)
    step = max(GRAM_NUMBERS // (columns * flat), 1)

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, before, step):
            yield grid[start : start + step].swapaxes(1, 2).reshape(-1, flat)

    gram = sum_gram((block.T for block in blocks()), flat)
    values, vectors, lost = leading_vectors(gram, kept)
    core = np.zeros((before * columns, rank), dtype=np.float32)
    weights = (vectors * invert_values(values)).astype(np.float32)
    for start, block in zip(range(0, before, step), blocks()):
        first = start * columns
        core[first : first + len(block), :kept] = block @ weights
    after = np.zeros((rank, more, thin), dtype=np.float32)
    after[:kept] = (values[:, None] * vectors.T).reshape(kept, more, thin)
    return core, after, lost


class TTRecOptions(Options):
    """Options of `TTRec`."""

    rank: int | None = planned(
        "of both cuts, or what a cut can use; None: cores half as large as the table",
        low=1, high=MOST_RANK,
    )  # fmt: skip
    slots: int = planned("rows kept in full beside the train", otherwise=0, low=0)
    slot_share: float = option(
        0.25, "of the budget, for rows kept in full", low=0, below=1,
        tune=(0.25, 0.5, 0.0),
    )  # fmt: skip
    init: str = option(
        "exact",
        "composed entries spread as the full table's, or cores drawn as published",
        choices=INITS, tune=INITS,
    )  # fmt: skip


class TTRec(TrainEmbedding, Trained[TTRecOptions], AfterTraining[TTRecOptions]):
    r"""TT-Rec: rows are products of three small slices (key ``tt_rec``).

    Slots are for the most read rows after the first tenth of training, which start
    from their products and then learn alone (the paper's cache, filled once).  The
    published start draws normal numbers outside of two deviations, scaled to
    (1 / (3 n))^(1/6) -- so that only the shape of the product's distribution is
    right, not its variance.

    Notes
    -----
    Yin et al., "TT-Rec: Tensor Train Compression for Deep Learning Recommendation
    Models" (MLSys 2021).
    """

    # Epochs before the cache is filled cannot be the best one.
    schedule_end = 0.1
    steady = True

    def __init__(self, spec: TableSpec, options: TTRecOptions, seed: int = 0) -> None:
        rows, dim, slots = spec.num_embeddings, spec.embedding_dim, options.slots
        check_range("slots", slots, 0, rows)
        rank = options.rank or half_rank(spec)
        super().__init__(spec, train_shapes(rows, dim, rank), seed)
        if options.init == "published":
            self._draw_published(np.random.default_rng([seed, 9]))
        self.slots = slots
        if slots:
            self.reads: Tensor
            self.cached_ids: Tensor
            self.register_buffer("reads", torch.zeros(rows))
            # The row of `cached` that holds an id; -1: none.
            nowhere = torch.full((rows,), -1, dtype=torch.int64)
            self.register_buffer("cached_ids", nowhere)
            self.cached = nn.Parameter(torch.zeros(slots, dim))

    def _draw_published(self, rng: np.random.Generator) -> None:
        scale = (1 / math.sqrt(3 * self.num_embeddings)) ** (1 / len(self.cores))
        for core in self.cores:
            # What lies beyond two deviations, by inverting the normal's tail.
            tail = 0.5 * math.erfc(2 / math.sqrt(2))
            drawn = rng.random(core.shape) * 2 * tail
            side = np.where(drawn < tail, drawn, 2 * tail - drawn)
            sizes = -torch.special.ndtri(torch.from_numpy(side.clip(1e-300)))
            signs = torch.from_numpy(np.where(drawn < tail, -1.0, 1.0))
            core.data.copy_(sizes * signs * scale)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: TTRecOptions) -> Found:
        """A share of the budget for cached rows, and the largest rank beside."""
        shapes = partial(train_shapes, spec.num_embeddings, spec.embedding_dim)
        slots = options.slots
        if slots is None:
            cores = train_bytes(shapes(options.rank or 1))
            slots = plan_slots(spec, ratio, cores, options.slot_share)
        check_range("slots", slots, 0, spec.num_embeddings)
        beside = apart_bytes(spec.num_embeddings, slots, 4 * spec.embedding_dim)
        rank = plan_rank(spec, ratio, options.rank, shapes, beside)
        return {"rank": rank, "slots": slots}

    @classmethod
    def compress(
        cls, weight: np.ndarray, spec: TableSpec, options: TTRecOptions
    ) -> Layout:
        """TT-SVD of an (n, d) table; `slots` of the most frequent rows in full."""
        rows, dim = weight.shape
        check_range("slots", options.slots, 0, rows)
        if options.slots:
            require_counts("slots", spec.train_counts)
        if options.init != INITS[0]:
            raise ValueError(
                f"init is how training starts; after training it is {INITS[0]!r}, "
                f"got {options.init!r}"
            )
        shapes = train_shapes(rows, dim, options.rank or half_rank(spec))
        cores, _ = decompose(weight, shapes)
        train = TensorTrainLayout(
            [np.ascontiguousarray(core) for core in cores], shapes, rows, dim
        )
        ids = most_frequent(spec.train_counts, options.slots)
        return keep_apart(rows, ids, weight[ids], train)

    def embed(self, ids: Tensor) -> Tensor:
        """Cached rows, and products for all other ids."""
        if not self.slots:
            return super().embed(ids)
        if self.training:
            flat = ids.reshape(-1)
            ones = torch.ones_like(flat, dtype=self.reads.dtype)
            self.reads.index_add_(0, flat, ones)
        places = self.cached_ids[ids]
        missing = places < 0
        if is_recording():
            own = pick_rows(places.clamp(min=0), self.cached)
            return torch.where(missing[..., None], super().embed(ids), own)
        unique, others = torch.unique(ids[missing], return_inverse=True)
        places[missing] = self.slots + others
        rows = torch.cat([self.cached, self.compose(unique)])
        return pick_rows(places, rows)

    def after_step(self, step: TrainingStep) -> None:
        """Fill the cache, once."""
        if not self.slots or step.progress < self.schedule_end:
            return
        if not bool((self.cached_ids >= 0).any()):
            self.fill_cache()

    @torch.no_grad()
    def fill_cache(self) -> None:
        """Give the most read rows places of their own."""
        busiest = largest_first(self.reads)[: self.slots]
        busiest = busiest.sort().values
        rows = super().embed(busiest)
        self.cached.copy_(rows)
        places = torch.arange(self.slots, device=busiest.device)
        self.cached_ids[busiest] = places

    def freeze(self) -> Layout:
        """The cores; the cached rows apart."""
        train = super().freeze()
        if not self.slots:
            return train
        ids = torch.nonzero(self.cached_ids >= 0).ravel().cpu().numpy()
        rows = self.cached.detach().float().cpu().numpy()[: len(ids)].copy()
        return keep_apart(self.num_embeddings, ids, rows, train)


def plan_slots(spec: TableSpec, ratio: float, cores: int, share: float) -> int:
    """Rows that a share of the budget holds, if the cores' bytes leave as much."""
    budget = spec.require(ratio, smallest=cores)
    most = min(int(share * budget), budget - cores)
    return most_apart(spec.num_embeddings, 4 * spec.embedding_dim, most)


def half_rank(spec: TableSpec) -> int:
    """The largest rank whose cores take half of the table."""
    half, shape = spec.full_bytes // 2, (spec.num_embeddings, spec.embedding_dim)
    return largest_fitting(
        1, 4096, lambda rank: train_bytes(train_shapes(*shape, rank)) <= half
    )
