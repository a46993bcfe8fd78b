"""TT-Rec: a table as a train of three cores, and a few frequent rows in full."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import TrainingStep, check_range
from survey_code.layouts import TensorTrainLayout
from survey_code.layouts.layout import as_finite_table
from survey_code.order import largest_first
from survey_code.spec import TableSpec
from survey_code.weight_sharing.decomposition.trains import (
    TrainEmbedding,
    exact_stds,
    largest,
    split_columns,
    split_rows,
    stored_bytes,
)

INITS = ("exact", "published")


def train_shapes(
    rows: int, dim: int, rank: int, cores: int = 3, step: int = 1
) -> np.ndarray:
    """Sizes of a train: rows and columns split evenly, all ranks alike.

    A rank larger than what its side of the train can use is cut to that.  With a
    step t > 1, ranks are rounded up to multiples of t, and so must be the columns
    of all cores but the first.

    Returns
    -------
    ndarray of int64, shape (cores, 5)
    """
    row_sizes = split_rows(rows, cores)
    column_sizes = split_columns(dim, cores)
    steps = [1] + [step if c % step == 0 else 1 for c in column_sizes[1:]]
    entries = [r * c for r, c in zip(row_sizes, column_sizes)]
    ranks = [1]
    for place in range(1, cores):
        most = min(math.prod(entries[:place]), math.prod(entries[place:]))
        cut = min(rank, most)
        ranks.append(-(-cut // steps[place]) * steps[place])
    ranks.append(1)
    table = zip(row_sizes, column_sizes, ranks[:-1], ranks[1:], steps)
    return np.array(list(table), dtype=np.int64)


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


class TTRec(TrainEmbedding):
    r"""TT-Rec: rows are products of three small slices (key ``tt_rec``).

    Parameters
    ----------
    spec : TableSpec
    rank : int
        Of both cuts, or what the cut can use.
    slots : int, default 0
        Rows that are kept in full beside the train: the most read ones after the
        first tenth of training, which start from their products and then learn
        alone (the paper's cache, filled once).
    init : {"exact", "published"}
        ``"exact"`` gives the composed entries the spread of the full table's;
        ``"published"`` draws the cores by the paper's rule, normal numbers outside
        of two deviations, scaled to (1 / (3 n))^(1/6) -- so that only the
        shape of the product's distribution is right, not its variance.
    seed : int, default 0

    Notes
    -----
    Yin et al., "TT-Rec: Tensor Train Compression for Deep Learning Recommendation
    Models" (MLSys 2021).
    """

    FILL_AT = schedule_end = 0.1

    def __init__(
        self,
        spec: TableSpec,
        *,
        rank: int,
        slots: int = 0,
        init: str = "exact",
        seed: int = 0,
    ) -> None:
        check_range("rank", rank, 1, 2**16)
        check_range("slots", slots, 0, spec.num_embeddings)
        if init not in INITS:
            raise ValueError(f"init must be one of {INITS}, got {init!r}")
        shapes = train_shapes(spec.num_embeddings, spec.embedding_dim, rank)
        super().__init__(spec, shapes, exact_stds(shapes, spec.init_std), seed)
        if init == "published":
            self._draw_published(np.random.default_rng([seed, 9]))
        self.slots = slots
        if slots:
            self.reads: Tensor
            self.cached_ids: Tensor
            self.register_buffer("reads", torch.zeros(spec.num_embeddings))
            # The row of `cached` that holds an id; -1: none.
            self.register_buffer(
                "cached_ids", torch.full((spec.num_embeddings,), -1, dtype=torch.int64)
            )
            self.cached = nn.Parameter(torch.zeros(slots, spec.embedding_dim))

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
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        rank: int | None = None,
        slots: int | None = None,
        init: str = "exact",
    ) -> dict[str, Any]:
        """A quarter of the budget for cached rows, and the largest rank beside."""
        rows, dim = spec.num_embeddings, spec.embedding_dim
        held = 4 * dim + 8
        if slots is None:
            smallest = stored_bytes(train_shapes(rows, dim, rank or 1))
            budget = spec.require(ratio, smallest=smallest)
            slots = min(budget // 4, budget - smallest) // held
            slots = min(slots, rows)
        check_range("slots", slots, 0, rows)
        if init not in INITS:
            raise ValueError(f"init must be one of {INITS}, got {init!r}")
        cached = slots * held

        def size(rank: int) -> int:
            return stored_bytes(train_shapes(rows, dim, rank)) + cached

        if rank is not None:
            check_range("rank", rank, 1, 2**16)
        budget = spec.require(ratio, smallest=size(rank or 1))
        most = int(train_shapes(rows, dim, 2**16)[:, 3].max())
        rank = rank or largest(1, most, lambda r: size(r) <= budget)
        return {"rank": rank, "slots": slots, "init": init}

    @classmethod
    def compress(
        cls,
        weight: Any,
        *,
        rank: int | None = None,
        slots: int = 0,
        init: str = "exact",
        spec: TableSpec | None = None,
    ) -> TensorTrainLayout:
        """TT-SVD of an (n, d) table; `slots` of the most frequent rows in full.

        The rank is by default the largest whose cores take half of the table.

        Raises
        ------
        ValueError
            If an option is out of range or the table is not 2-D and finite.
        """
        table = as_finite_table(weight)
        rows, dim = table.shape
        if rank is None:
            half = table.nbytes // 2
            rank = largest(
                1, 4096, lambda r: stored_bytes(train_shapes(rows, dim, r)) <= half
            )
        check_range("rank", rank, 1, 2**16)
        check_range("slots", slots, 0, rows)
        shapes = train_shapes(rows, dim, rank)
        cores, _ = decompose(table, shapes)
        ids = held = None
        if slots:
            counts = np.zeros(len(table)) if spec is None else spec.train_counts
            ids = np.sort(largest_first(counts)[:slots])
            held = table[ids]
        flat = np.concatenate([core.ravel() for core in cores])
        return TensorTrainLayout(flat, shapes, rows, dim, ids, held)

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

    def advance(self, progress: float) -> None:
        """Nothing but the promise of `schedule_end`: epochs before the cache is full
        cannot be the best one.
        """

    def after_step(self, step: TrainingStep) -> None:
        """Fill the cache, once."""
        if not self.slots or step.progress < self.FILL_AT:
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

    def freeze(self) -> TensorTrainLayout:
        """The cores, and the cached rows with their ids."""
        layout = super().freeze()
        if not self.slots:
            return layout
        ids = torch.nonzero(self.cached_ids >= 0).ravel().cpu().numpy()
        if not len(ids):
            return layout
        rows = self.cached.detach().float().cpu().numpy()
        return TensorTrainLayout(
            layout.values,
            layout.shapes,
            self.num_embeddings,
            self.embedding_dim,
            ids,
            rows[: len(ids)].copy(),
        )
