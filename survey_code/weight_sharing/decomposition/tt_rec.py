"""TT-Rec: a table as a train of three cores, and a few frequent rows in full."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.budget import largest_fitting
from survey_code.checks import check_range
from survey_code.embedding import TrainingStep
from survey_code.layouts import Layout, TensorTrainLayout
from survey_code.layouts.routed import apart_bytes, keep_apart, most_apart
from survey_code.method import AfterTraining, Found, Trained
from survey_code.options import Options, option, planned
from survey_code.order import largest_first
from survey_code.spec import TableSpec
from survey_code.weight_sharing.decomposition.trains import (
    MOST_RANK,
    TrainEmbedding,
    plan_rank,
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
    Oseledets, "Tensor-Train Decomposition" (SIAM J. Sci. Comput. 2011).
    """
    rows, columns, left, right, steps = shapes.T.tolist()
    if set(steps) != {1}:
        raise ValueError(f"TT-SVD needs steps of 1, got {steps}")
    padded = np.zeros((math.prod(rows), math.prod(columns)))
    padded[: len(table)] = table
    # (n_1, ..., n_k, d_1, ..., d_k) -> (n_1, d_1, n_2, d_2, ...)
    count = len(rows)
    order = [axis for k in range(count) for axis in (k, count + k)]
    rest = padded.reshape(*rows, *columns).transpose(order).reshape(1, -1)
    cores, lost = [], []
    for n, d, before, after in zip(rows[:-1], columns, left, right):
        unfolded = rest.reshape(before * n * d, -1)
        u, values, v = np.linalg.svd(unfolded, full_matrices=False)
        kept = min(after, len(values))
        lost.append(float((values[kept:] ** 2).sum()))
        core = np.zeros((before * n * d, after))
        core[:, :kept] = u[:, :kept]
        rest = np.zeros((after, v.shape[1]))
        rest[:kept] = values[:kept, None] * v[:kept]
        cores.append(core.reshape(before, n, d, after))
    cores.append(rest.reshape(left[-1], rows[-1], columns[-1], 1))
    return [core.transpose(1, 0, 2, 3).astype(np.float32) for core in cores], lost


class TTRecOptions(Options):
    """Options of `TTRec`."""

    rank: int | None = planned(
        "of both cuts, or what a cut can use; None: cores half as large as the table",
        low=1, high=MOST_RANK,
    )  # fmt: skip
    slots: int = planned("rows kept in full beside the train", otherwise=0, low=0)
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
        """A quarter of the budget for cached rows, and the largest rank beside."""
        shapes = partial(train_shapes, spec.num_embeddings, spec.embedding_dim)
        slots = options.slots
        if slots is None:
            slots = plan_slots(spec, ratio, train_bytes(shapes(options.rank or 1)))
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
        shapes = train_shapes(rows, dim, options.rank or half_rank(spec))
        cores, _ = decompose(weight, shapes)
        train = TensorTrainLayout(
            [np.ascontiguousarray(core) for core in cores], shapes, rows, dim
        )
        ids = np.sort(largest_first(spec.train_counts)[: options.slots])
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
        unique, others = torch.unique(ids[missing], return_inverse=True)
        places[missing] = self.slots + others
        rows = torch.cat([self.cached, self.compose(unique)])
        return functional.embedding(places, rows)

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


def plan_slots(spec: TableSpec, ratio: float, cores: int) -> int:
    """Rows that a quarter of the budget holds, if the cores' bytes leave as much."""
    budget = spec.require(ratio, smallest=cores)
    most = min(budget // 4, budget - cores)
    return most_apart(spec.num_embeddings, 4 * spec.embedding_dim, most)


def half_rank(spec: TableSpec) -> int:
    """The largest rank whose cores take half of the table."""
    half, shape = spec.full_bytes // 2, (spec.num_embeddings, spec.embedding_dim)
    return largest_fitting(
        1, 4096, lambda rank: train_bytes(train_shapes(*shape, rank)) <= half
    )
