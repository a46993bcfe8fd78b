"""Binary code hashing: the bits of the id, block by block."""

from __future__ import annotations

import numpy as np

from survey_code.layouts.hashed import plain_index
from survey_code.method import Found, Trained
from survey_code.options import Options, found, option
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import (
    INDEX_BYTES,
    HashedEmbedding,
    row_width,
)

# Of a block, at most.
MOST_BLOCK_BITS = 31


class BinaryCodeOptions(Options):
    """Options of `BinaryCodeHash`."""

    combine: str = option(
        "sum",
        "how the blocks' rows make one",
        choices=("sum", "product", "concat"),
        tune=("sum", "concat"),
    )
    bits: int = found("bits of a block", low=1, high=MOST_BLOCK_BITS)


class BinaryCodeHash(HashedEmbedding, Trained[BinaryCodeOptions]):
    """Tables read at blocks of the id's bits (``binary_code_hash``).

    The blocks together are the id, so that no two ids share them all.  The table of
    a block has at most 2**bits rows.

    Notes
    -----
    Yan et al., "Binary Code based Hash Embedding for Web-scale Applications"
    (CIKM 2021).  They hash features to a code first; ids that are numbered from
    0 are their own shortest code.  Blocks are of consecutive bits, each with a table of
    its own; their other ways, blocks of bits that stand apart and one table that blocks
    share, are left out.
    """

    def __init__(
        self, spec: TableSpec, options: BinaryCodeOptions, seed: int = 0
    ) -> None:
        index = bit_blocks(spec.num_embeddings, options.bits)
        super().__init__(spec, index, options.combine, [seed, 0])

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: BinaryCodeOptions) -> Found:
        """The block length whose tables fill the budget best."""
        sizes = block_sizes(spec, options.combine)
        budget = spec.require(ratio, smallest=min(sizes.values()))
        # Of equals the longest block: fewer rows to read.
        _, bits = max((size, b) for b, size in sizes.items() if size <= budget)
        return {"bits": bits}


def block_sizes(spec: TableSpec, combine: str) -> dict[int, int]:
    """Bytes of the tables for each block length whose rows can be put together."""
    longest = max((spec.num_embeddings - 1).bit_length(), 1)
    sizes = {}
    for bits in range(1, min(longest, MOST_BLOCK_BITS) + 1):
        index = bit_blocks(spec.num_embeddings, bits)
        if combine == "concat" and spec.embedding_dim % len(index):
            continue
        row = 4 * row_width(spec.embedding_dim, len(index), combine)
        sizes[bits] = row * sum(index[:, -1].tolist()) + INDEX_BYTES * len(index)
    return sizes


def bit_blocks(ids: int, bits: int) -> np.ndarray:
    """Index table of the blocks of `bits` bits, the lowest first.

    The last block has only the rows that ids below `ids` name.

    Examples
    --------
    >>> bit_blocks(600, 4)[:, 3:]  # divisor and modulus of each block
    array([[  1,  16],
           [ 16,  16],
           [256,   3]])
    """
    digits: list[tuple[int, int]] = []
    divisor = 1
    while divisor < ids or not digits:
        digits.append((divisor, min(1 << bits, -(-ids // divisor))))
        divisor <<= bits
    return plain_index(digits)
