"""Binary code hashing: the bits of the id, block by block."""

from __future__ import annotations

from typing import Any

import numpy as np

from survey_code.embedding import check_range
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import (
    INDEX_BYTES,
    HashedEmbedding,
    check_combine,
    row_width,
)


class BinaryCodeHash(HashedEmbedding):
    """Tables read at blocks of the id's bits (``binary_code_hash``).

    The blocks together are the id, so that no two ids share them all.

    Parameters
    ----------
    spec : TableSpec
    bits : int
        Bits of a block; its table has at most 2**bits rows.
    combine : {"sum", "product", "concat"}
    seed : int, default 0

    Raises
    ------
    ValueError
        If an option is out of its range.

    Notes
    -----
    Yan et al., "Binary Code based Hash Embedding for Web-scale Applications"
    (CIKM 2021).  They hash features to a code first; ids that are numbered from
    0 are their own shortest code.  Blocks are of consecutive bits.
    """

    def __init__(
        self, spec: TableSpec, *, bits: int, combine: str = "sum", seed: int = 0
    ) -> None:
        check_range("bits", bits, 1, 31)
        check_combine(combine)
        super().__init__(
            spec, bit_blocks(spec.num_embeddings, bits), combine, [seed, 0]
        )

    @classmethod
    def plan(
        cls, spec: TableSpec, ratio: float, *, combine: str = "sum"
    ) -> dict[str, Any]:
        """The block length whose tables fill the budget best."""
        check_combine(combine)
        longest = max((spec.num_embeddings - 1).bit_length(), 1)
        sizes = {}
        for bits in range(1, min(longest, 31) + 1):
            index = bit_blocks(spec.num_embeddings, bits)
            if combine == "concat" and spec.embedding_dim % len(index):
                continue
            row = 4 * row_width(spec.embedding_dim, len(index), combine)
            rows = sum(index[:, 3].tolist())
            sizes[bits] = row * rows + INDEX_BYTES * len(index)
        budget = spec.require(ratio, smallest=min(sizes.values()))
        fitting = {bits: size for bits, size in sizes.items() if size <= budget}
        # Of equals the longest block: fewer rows to read.
        bits = max(fitting, key=lambda bits: (fitting[bits], bits))
        return {"bits": bits, "combine": combine}


def bit_blocks(ids: int, bits: int) -> np.ndarray:
    """Index table of the blocks of `bits` bits, the lowest first.

    The last block has only the rows that ids below `ids` name.

    Examples
    --------
    >>> bit_blocks(600, 4)[:, 2:]  # divisor and modulus of each block
    array([[  1,  16],
           [ 16,  16],
           [256,   3]])
    """
    rows: list[list[int]] = []
    divisor = 1
    while divisor < ids or not rows:
        rows.append([0, 0, divisor, min(1 << bits, -(-ids // divisor))])
        divisor <<= bits
    return np.array(rows, dtype=np.int64)
