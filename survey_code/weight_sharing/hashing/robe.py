"""ROBE: one flat array, read in runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from survey_code.checks import check_range
from survey_code.embedding import as_float32, draw_normal, pick_rows
from survey_code.hashes import draw_multipliers
from survey_code.kernels.cuda import as_cupy
from survey_code.kernels.cuda.scatter import gather_blocks, scatter_blocks
from survey_code.kernels.cuda.tensors import beside, reaches_kernels
from survey_code.layouts.flat import FlatLayout, block_signs, locate_blocks
from survey_code.method import Found, Trained
from survey_code.options import Options, found, option
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import (
    HASH_BYTES,
    MOST_ROWS,
    HashingTable,
    plan_rows,
)

# A kernel adds gradients up in an array as long as the table's.  Where an optimiser
# takes sparse ones, that pays until so many numbers are stored for each one read: on an
# H200 steps of Adagrad were four times as fast at 1, equally fast at 24.
MOST_UNREAD = 16


class ROBEOptions(Options):
    """Options of `ROBE`."""

    block_len: int = option(
        8,
        "numbers that are read in one run; 1 hashes every entry by itself",
        low=1, high=2**16, tune=(8, 4),
    )  # fmt: skip
    signed: bool = option(False, "multiply each block read by a second hash, +1 or -1")
    open_ids: bool = option(False, "serve ids beyond the table too")
    size: int = found("numbers in the array", low=1, high=MOST_ROWS)


class ROBE(HashingTable, Trained[ROBEOptions]):
    """Random offset blocks of one flat array (key ``robe``).

    Two ids that share one block differ in the others.

    Raises
    ------
    ValueError
        If a block does not fit into the array.

    Notes
    -----
    Desai, Chou and Shrivastava, "Random Offset Block Embedding (ROBE) for
    compressed embedding tables in deep learning recommendation systems" (MLSys
    2022).
    """

    hash_names = ("multipliers", "signs")

    steady = True

    def __init__(self, spec: TableSpec, options: ROBEOptions, seed: int = 0) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.block_len, self.open_ids = options.block_len, options.open_ids
        shortest = min(self.block_len, self.embedding_dim)
        check_range("size", options.size, shortest, MOST_ROWS)
        hashes = draw_multipliers(np.random.default_rng([seed, 1]), 2)
        self.multipliers = hashes[0]
        self.signs = hashes[1] if options.signed else None
        # One column, so that sparse gradients have rows to point at.
        drawn = draw_normal((options.size, 1), spec.init_std, [seed, 0])
        self.values = nn.Parameter(drawn)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: ROBEOptions) -> Found:
        """As many numbers as the budget holds beside the hash's parameters."""
        fixed = HASH_BYTES * (1 + options.signed)
        shortest = min(options.block_len, spec.embedding_dim)
        return {"size": plan_rows(spec, ratio, 4, fixed, least=shortest)}

    def places(self, ids: Tensor) -> Tensor:
        """Places in the array of every entry of rows: (m,) -> int64 (m, dim)."""
        blocks = locate_blocks(
            ids, self.multipliers, len(self.values), self.embedding_dim, self.block_len
        )
        runs = [
            start[:, None] + torch.arange(length, device=ids.device)
            for start, length in blocks
        ]
        return torch.cat(runs, dim=1)

    def embed(self, ids: Tensor) -> Tensor:
        """Gather; its gradient adds up wherever runs overlap."""
        flat = ids.flatten()
        if runs_on_gpu(self, flat):
            rows = BlockRows.apply(self.values, flat, self)
        else:
            rows = self.read_runs(flat)
        return rows.reshape(*ids.shape, self.embedding_dim)

    def read_runs(self, ids: Tensor) -> Tensor:
        """Rows by torch alone: int64 (m,) -> (m, dim)."""
        rows = pick_rows(self.places(ids), self.values, sparse=self.regime.sparse)[
            ..., 0
        ]
        if self.signs is None:
            return rows
        blocks = -(-self.embedding_dim // self.block_len)
        signs = torch.stack(block_signs(ids, self.signs, blocks), dim=1)
        every = signs.repeat_interleave(self.block_len, dim=1)
        return rows * every[:, : self.embedding_dim].to(rows.dtype)

    def freeze(self) -> FlatLayout:
        """The array and the hash."""
        return FlatLayout(
            as_float32(self.values)[:, 0],
            self.multipliers.copy(),
            self.num_embeddings,
            self.embedding_dim,
            self.block_len,
            self.signs,
            self.open_ids,
        )


def runs_on_gpu(table: ROBE, ids: Tensor) -> bool:
    """Whether kernels read the table's rows, and bring their gradients back."""
    read = ids.numel() * table.embedding_dim
    unread = len(table.values) > MOST_UNREAD * read
    return (
        read > 0
        and reaches_kernels(table.values)
        and table.values.dtype in (torch.float32, torch.float64)
        and not (table.regime.sparse and unread)
    )


class BlockRows(torch.autograd.Function):
    """Rows of a `ROBE` on a GPU: one kernel gathers them, one adds their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ids: Tensor, table: ROBE) -> Tensor:
        """Rows of ids: values (size, 1), int64 (m,) -> (m, dim)."""
        signs = None if table.signs is None else table.signs.tolist()
        ctx.hash = len(values), table.block_len, table.multipliers.tolist(), signs
        ctx.save_for_backward(ids)
        with beside(values):
            own, places = as_cupy(values[:, 0]), as_cupy(ids)
            rows = gather_blocks(places, own, table.embedding_dim, *ctx.hash[1:])
            return torch.from_dlpack(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of the values, (size, 1)."""
        with beside(gradients):
            places, given = map(as_cupy, (*ctx.saved_tensors, gradients))
            found = torch.from_dlpack(scatter_blocks(places, given, *ctx.hash))
        return found[:, None], None, None
