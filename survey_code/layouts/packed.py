"""The packed layout: rows of small integers, each in so many bits.

The integers of all rows form one stream of bits in 32-bit words: integer j of row i
starts at bit ``(i * width + j) * bits`` and is found in at most two neighbouring
words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from survey_code.bits import MOST_BITS, pack_stream, read_stream, stream_words
from survey_code.checks import check_range
from survey_code.kernels.cpu.codes import take_codes
from survey_code.layouts.layout import IdArray, Layout, RowArray, array_module, is_cupys

if TYPE_CHECKING:
    from survey_code.kernels.formats import Format


class PackedLayout(Layout):
    """Integers from 0 to ``2**bits - 1``, packed.

    Parameters
    ----------
    words : ndarray of uint32, shape (stream_words(rows * dim, bits),)
        See `survey_code.bits.pack_stream`.
    num_embeddings, embedding_dim : int
    bits : int
        Of one integer, 1 to 16.

    Raises
    ------
    ValueError
        If the stream has another length.
    """

    name: ClassVar[str] = "packed"
    array_names: ClassVar[tuple[str, ...]] = ("words",)
    shape_names: ClassVar[tuple[str, ...]] = ("num_embeddings", "embedding_dim", "bits")

    words: np.ndarray

    def __init__(
        self, words: np.ndarray, num_embeddings: int, embedding_dim: int, bits: int
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self.words, self.bits = np.asarray(words), int(bits)
        self.validate()

    @classmethod
    def from_integers(cls, integers: np.ndarray, bits: int) -> PackedLayout:
        """Pack integers, shape (rows, dim)."""
        if integers.ndim != 2 or integers.dtype.kind not in "iu":
            raise ValueError(
                f"integers must have two axes, got {integers.dtype} of shape "
                f"{integers.shape}"
            )
        rows, dim = integers.shape
        return cls(pack_stream(integers, bits), rows, dim, bits)

    def check_arrays(self) -> None:
        """Raise ValueError if the stream has another length or type."""
        check_range("bits", self.bits, 1, MOST_BITS)
        count = self.num_embeddings * self.embedding_dim
        shape = (stream_words(count, self.bits),)
        words = self.words
        if words is None or words.dtype != np.uint32 or words.shape != shape:
            raise ValueError(f"words must be uint32 of shape {shape}")

    def bound_rows(self, held: Mapping[str, float]) -> float:
        """The largest integer of so many bits."""
        return float(2**self.bits - 1)

    def read_rows(self, ids: IdArray) -> RowArray:
        """Integers, as numbers; float32 holds them exactly."""
        xp = array_module(ids)
        places = ids[:, None] * self.embedding_dim + xp.arange(self.embedding_dim)
        read = read_stream if is_cupys(ids) else take_codes
        return read(self.words, places, self.bits).astype(np.float32)

    def describe(self) -> Format:
        """The stream, and the bits of an integer."""
        from survey_code.kernels.formats import PackedFormat

        return PackedFormat(
            self.num_embeddings, self.embedding_dim, self.words, self.bits
        )
