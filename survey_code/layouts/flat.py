"""The flat layout: one array of numbers for all rows, read in runs.

A row is cut into blocks.  A hash of id and block says where in the array the block
begins; the runs of different blocks overlap as chance will have it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from survey_code.hashes import (
    as_signs,
    check_hash_numbers,
    hash_steps,
    mix_ids,
    mix_many,
)
from survey_code.layouts.hashed import as_flag, check_served
from survey_code.layouts.layout import A, IdArray, Layout, RowArray, array_module
from survey_code.layouts.parts import (
    Rows,
    as_vector,
    check_numbers,
    numbers_work,
    read_numbers,
    vector_room,
)

if TYPE_CHECKING:
    from survey_code.kernels.formats import Format

# Numbers that are read together.
BLOCKS_AT_ONCE = 2**18


def locate_blocks(
    ids: A, multipliers: np.ndarray, size: int, dim: int, block_len: int
) -> list[tuple[A, int]]:
    """Where the blocks of rows begin in an array of `size` numbers, and their length.

    Parameters
    ----------
    ids : array or tensor of int64, shape (m,)
    multipliers : ndarray of int64, shape (3,)
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
    values : ndarray of float32, shape (size,), or layout
        A layout holds them row after row, and no more: its last row is full.
    multipliers : ndarray of int64, shape (3,)
        The numbers of the hash of id and block.
    num_embeddings, embedding_dim : int
    block_len : int
        Numbers of a block; the last block of a row can be shorter.
    signs : ndarray of int64, shape (3,), optional
        The numbers of a second hash; each block is multiplied by +1 or -1.
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
    holders: ClassVar[tuple[str, ...]] = ("values",)
    shape_names: ClassVar[tuple[str, ...]] = (
        "num_embeddings",
        "embedding_dim",
        "block_len",
        "open_ids",
    )

    values: Rows

    def __init__(
        self,
        values: npt.ArrayLike | Layout,
        multipliers: np.ndarray,
        num_embeddings: int,
        embedding_dim: int,
        block_len: int,
        signs: np.ndarray | None = None,
        open_ids: bool = False,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self.values = as_vector(values)
        self.multipliers = np.asarray(multipliers)
        self.signs = None if signs is None else np.asarray(signs)
        self.block_len = int(block_len)
        self.open_ids = as_flag("open_ids", open_ids)
        self.validate()

    def check_arrays(self) -> None:
        """Raise ValueError if a block does not fit, or an array is wrong."""
        check_served(self.num_embeddings, self.open_ids)
        check_hash_numbers("multipliers", self.multipliers)
        if self.signs is not None:
            check_hash_numbers("signs", self.signs)
        if self.block_len < 1:
            raise ValueError(f"block_len must be from 1 up, got {self.block_len}")
        values = self.values
        if values is None:
            raise ValueError("values must be float32 of shape (size,)")
        check_numbers("values", values, vector_room(values), [np.float32])
        if vector_room(values) < min(self.block_len, self.embedding_dim):
            raise ValueError(
                f"a block of {self.block_len} does not fit into "
                f"{vector_room(values)} values"
            )

    def count_work(self) -> int:
        """Each number of a row, wherever it stands."""
        return numbers_work(self.values, self.embedding_dim)

    def describe(self) -> Format | None:
        """Blocks of a row, each read where it begins."""
        from survey_code.kernels.formats import OPEN, FlatFormat

        if isinstance(self.values, Layout):
            return None
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
        dim, numbers = self.embedding_dim, self.multipliers.tolist()
        rows = xp.empty((len(ids), dim), dtype=np.float32)
        length = min(self.block_len, dim)
        places, within = vector_room(self.values) - length + 1, xp.arange(length)
        steps = xp.asarray(hash_steps(-(-dim // length)))
        # Many short blocks are located together, but not all where there are very many.
        count = max(BLOCKS_AT_ONCE // max(len(ids) * length, 1), 1)
        for first in range(0, len(steps), count):
            shifted = ids[:, None] + steps[first : first + count]  # (m, blocks)
            starts = mix_ids(shifted, *numbers) % places
            # (m, blocks, length)
            runs = read_numbers(self.values, starts[:, :, None] + within)
            if self.signs is not None:
                signs = as_signs(mix_ids(shifted, *self.signs.tolist()))
                runs = runs * signs[:, :, None].astype(np.float32)
            at = first * length
            end = min(at + runs.shape[1] * length, dim)
            flat = runs.reshape(len(ids), runs.shape[1] * length)
            rows[:, at:end] = flat[:, : end - at]
        return rows
