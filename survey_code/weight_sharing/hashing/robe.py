"""ROBE: one flat array, read in runs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.checks import check_range
from survey_code.embedding import as_float32, draw_normal
from survey_code.hashes import draw_multipliers
from survey_code.layouts.flat import FlatLayout, block_signs, locate_blocks
from survey_code.method import Found, Trained
from survey_code.options import Options, found, option
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import (
    MOST_ROWS,
    PAIR_BYTES,
    HashingTable,
    plan_rows,
)


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

    def __init__(self, spec: TableSpec, options: ROBEOptions, seed: int = 0) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.block_len, self.open_ids = options.block_len, options.open_ids
        shortest = min(self.block_len, self.embedding_dim)
        check_range("size", options.size, shortest, MOST_ROWS)
        pairs = draw_multipliers(np.random.default_rng([seed, 1]), 2)
        self.multipliers = pairs[0]
        self.signs = pairs[1] if options.signed else None
        # One column, so that sparse gradients have rows to point at.
        drawn = draw_normal((options.size, 1), spec.init_std, [seed, 0])
        self.values = nn.Parameter(drawn)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: ROBEOptions) -> Found:
        """As many numbers as the budget holds beside the hash's parameters."""
        fixed = PAIR_BYTES * (1 + options.signed)
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
        rows = functional.embedding(
            self.places(flat), self.values, sparse=self.regime.sparse
        )[..., 0]  # (m, dim)
        if self.signs is not None:
            blocks = -(-self.embedding_dim // self.block_len)
            signs = torch.stack(block_signs(flat, self.signs, blocks), dim=1)
            every = signs.repeat_interleave(self.block_len, dim=1)
            rows = rows * every[:, : self.embedding_dim].to(rows.dtype)
        return rows.reshape(*ids.shape, self.embedding_dim)

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
