"""The flat layout: one array of numbers for all rows, read in runs.

A row is cut into blocks.  A hash of id and block says where in the array the block
begins; the runs of different blocks overlap as chance will have it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from survey_code.hashes import as_signs, mix_many
from survey_code.layouts.layout import A, IdArray, Layout, RowArray, array_module

if TYPE_CHECKING:
    from survey_code.kernels.cuda.formats import Format


def locate_blocks(
    ids: A, multipliers: np.ndarray, size: int, dim: int, block_len: int
) -> list[tuple[A, int]]:
    """Where the blocks of rows begin in an array of `size` numbers, and their length.

    Parameters
    ----------
    ids : array or tensor of int64, shape (m,)
    multipliers : ndarray of int64, shape (2,)
    size, dim, block_len : int

    Returns
    -------
    list of (array of int64, shape (m,); int)
    """
    starts = size - min(block_len, dim) + 1
    mixed = mix_many(ids, multipliers, -(-dim // block_len))
    return [
        (one % starts, min(block_len, dim - block * block_len))
        for block, one in enumerate(mixed)
    ]


def block_signs(ids: A, signs: np.ndarray, blocks: int) -> list[A]:
    """+1 or -1 for each id and block, as int64."""
    return [as_signs(mixed) for mixed in mix_many(ids, signs, blocks)]


class FlatLayout(Layout):
    """One array, and the hash that says where each block of a row begins.

    Parameters
    ----------
    values : ndarray of float32, shape (size,)
    multipliers : ndarray of int64, shape (2,)
        Of the hash of id and block.
    num_embeddings, embedding_dim : int
    block_len : int
        Numbers of a block; the last block of a row can be shorter.
    signs : ndarray of int64, shape (2,), optional
        Multipliers of a second hash; each block is multiplied by +1 or -1.
    open_ids : bool, default False
        Serve any id from 0 up.

    Raises
    ------
    ValueError
        If a block does not fit into the array, or an array is not what it should
        be.
    """

    name: ClassVar[str] = "flat"
    array_names: ClassVar[tuple[str, ...]] = ("values", "multipliers", "signs")
    shape_names: ClassVar[tuple[str, ...]] = (
        "num_embeddings",
        "embedding_dim",
        "block_len",
        "open_ids",
    )

    def __init__(
        self,
        values: np.ndarray,
        multipliers: np.ndarray,
        num_embeddings: int,
        embedding_dim: int,
        block_len: int,
        signs: np.ndarray | None = None,
        open_ids: bool = False,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self.values = np.asarray(values)
        self.multipliers = np.asarray(multipliers)
        self.signs = None if signs is None else np.asarray(signs)
        self.block_len = int(block_len)
        self.open_ids = int(open_ids)
        self.validate()

    def validate(self) -> None:
        """Raise ValueError if a block does not fit, or an array is wrong."""
        for name, pair in (("multipliers", self.multipliers), ("signs", self.signs)):
            if pair is None and name == "signs":
                continue
            if pair is None or pair.dtype != np.int64 or pair.shape != (2,):
                raise ValueError(f"{name} must be int64 of shape (2,)")
        if self.block_len < 1:
            raise ValueError(f"block_len must be from 1 up, got {self.block_len}")
        values = self.values
        if values is None or values.dtype != np.float32 or values.ndim != 1:
            raise ValueError("values must be float32 of shape (size,)")
        if len(values) < min(self.block_len, self.embedding_dim):
            raise ValueError(
                f"a block of {self.block_len} does not fit into {len(values)} values"
            )

    def describe(self) -> Format:
        """Blocks of a row, each read where it begins."""
        from survey_code.kernels.cuda.formats import OPEN, FlatFormat

        return FlatFormat.of(
            (OPEN if self.open_ids else self.num_embeddings, self.embedding_dim),
            self.values,
            self.block_len,
            self.multipliers.tolist(),
            None if self.signs is None else self.signs.tolist(),
        )

    def read_rows(self, ids: IdArray) -> RowArray:
        """The runs that the blocks' starts name, side by side."""
        xp = array_module(ids)
        rows = xp.empty((len(ids), self.embedding_dim), dtype=np.float32)
        blocks = locate_blocks(
            ids, self.multipliers, len(self.values), self.embedding_dim, self.block_len
        )
        signs = (
            None if self.signs is None else block_signs(ids, self.signs, len(blocks))
        )
        for block, (starts, length) in enumerate(blocks):
            part = self.values[starts[:, None] + xp.arange(length)]  # (m, length)
            if signs is not None:
                part = part * signs[block][:, None].astype(np.float32)
            at = block * self.block_len
            rows[:, at : at + length] = part
        return rows
