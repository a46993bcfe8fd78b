"""ROBE: one flat array, read in runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import CompressedEmbedding, check_range, draw_normal
from survey_code.layouts.flat import FlatLayout, block_signs, locate_blocks
from survey_code.layouts.hashed import draw_multipliers
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import MOST_ROWS, PAIR_BYTES, as_array


class ROBE(CompressedEmbedding):
    """Random offset blocks of one flat array (key ``robe``).

    Two ids that share one block differ in the others.

    Parameters
    ----------
    spec : TableSpec
    size : int
        Numbers in the array.
    block_len : int, default 8
        Numbers that are read in one run; 1 hashes every entry by itself.
    signed : bool, default False
        Multiply each block read by a second hash, +1 or -1.
    open_ids : bool, default False
        Serve ids beyond the table too.
    seed : int, default 0

    Raises
    ------
    ValueError
        If an option is out of its range, or a block does not fit into the array.

    Notes
    -----
    Desai, Chou and Shrivastava, "Random Offset Block Embedding (ROBE) for
    compressed embedding tables in deep learning recommendation systems" (MLSys
    2022).
    """

    def __init__(
        self,
        spec: TableSpec,
        *,
        size: int,
        block_len: int = 8,
        signed: bool = False,
        open_ids: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        check_range("block_len", block_len, 1, 2**16)
        check_range("size", size, min(block_len, spec.embedding_dim), MOST_ROWS)
        pairs = draw_multipliers(np.random.default_rng([seed, 1]), 2)
        self.multipliers, self.block_len = pairs[0], block_len
        self.signs = pairs[1] if signed else None
        self.open_ids = open_ids
        # One column, so that sparse gradients have rows to point at.
        self.values = nn.Parameter(draw_normal((size, 1), spec.init_std, [seed, 0]))

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        block_len: int = 8,
        signed: bool = False,
        open_ids: bool = False,
    ) -> dict[str, Any]:
        """As many numbers as the budget holds beside the hash's parameters."""
        check_range("block_len", block_len, 1, 2**16)
        overhead = PAIR_BYTES * (1 + bool(signed))
        shortest = 4 * min(block_len, spec.embedding_dim)
        budget = spec.require(ratio, smallest=shortest + overhead)
        return {
            "size": min((budget - overhead) // 4, MOST_ROWS),
            "block_len": block_len,
            "signed": bool(signed),
            "open_ids": open_ids,
        }

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
            self.places(flat), self.values, sparse=self.sparse_gradients
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
            as_array(self.values)[:, 0],
            self.multipliers.copy(),
            self.num_embeddings,
            self.embedding_dim,
            self.block_len,
            self.signs,
            self.open_ids,
        )

    def get_extra_state(self) -> dict[str, Any]:
        """The hash, without which the array means nothing."""
        signs = None if self.signs is None else self.signs.tolist()
        return {"multipliers": self.multipliers.tolist(), "signs": signs}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the hash of a state dict."""
        self.multipliers = np.array(state["multipliers"], dtype=np.int64)
        signs = state["signs"]
        self.signs = None if signs is None else np.array(signs, dtype=np.int64)
