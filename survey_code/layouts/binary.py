"""The binary layout: one bit per entry, and the scales that turn it into a number.

A row is cut into blocks of equal width.  Entry j of block k of row i is
``scale[i, k]`` where its bit is 1 and ``-scale[i, k]`` where it is 0.  Two rows
of such codes are compared without decoding: of d bits, those that agree count +1
and those that differ -1, so that the inner product is d - 2 H with H the Hamming
distance, which is an exclusive or and a count of ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, overload

import numpy as np

from survey_code.bits import count_ones, pack_codes, read_packed, unpack_codes
from survey_code.checks import check_finite
from survey_code.kernels.cpu.pooling import CHUNK_NUMBERS
from survey_code.layouts.layout import (
    IdArray,
    Ids,
    Layout,
    RowArray,
    add_up,
    array_module,
)
from survey_code.layouts.nearest import (
    check_candidates,
    check_nearest,
    check_scores,
    search_chunks,
)

if TYPE_CHECKING:
    from survey_code.kernels.cuda import GpuArray
    from survey_code.kernels.formats import Format

# Bytes of a code that the kernel for searching takes.
LONGEST = 64


def pack_signs(values: np.ndarray, blocks: int = 1) -> np.ndarray:
    """One bit per entry, 1 where it is not negative, block by block.

    Parameters
    ----------
    values : ndarray, shape (rows, dim)
        Of numbers, or of truth values, which are the bits themselves.
    blocks : int, default 1
        A divisor of dim.

    Returns
    -------
    ndarray of uint8, shape (rows, blocks, ceil(dim / blocks / 8))
        Low bits first; the last byte of a block is padded with zeros.

    Raises
    ------
    ValueError
        If a number is NaN or infinite: bits would hide it.  If the blocks do not
        divide a row.

    Examples
    --------
    >>> pack_signs(np.array([[0.5, -2.0, 1.0]]))
    array([[[5]]], dtype=uint8)
    """
    rows, dim = values.shape
    if dim % blocks:
        raise ValueError(f"blocks must divide the dimension {dim}, got {blocks}")
    if values.dtype != bool:
        check_finite("a table whose signs are stored", values)
    width = dim // blocks
    packed = np.empty((rows, blocks, -(-width // 8)), dtype=np.uint8)
    step = max(1, CHUNK_NUMBERS // dim)
    for start in range(0, rows, step):
        part = values[start : start + step]
        bits = part if values.dtype == bool else part >= 0
        codes = pack_codes(bits.astype(np.uint8).reshape(-1, width), 1)
        packed[start : start + step] = codes.reshape(len(part), blocks, -1)
    return packed


def hamming_distances(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Bits in which packed codes differ.

    Parameters
    ----------
    queries, candidates : array of uint8, shapes (m, bytes) and (n, bytes)

    Returns
    -------
    array of int32, shape (m, n)
    """
    xp = array_module(queries)
    # Eight bytes at a time where the code is that long.
    word = np.uint64 if queries.shape[1] % 8 == 0 else np.uint8
    left, right = (
        xp.ascontiguousarray(codes).view(word) for codes in (queries, candidates)
    )
    distances = xp.zeros((len(left), len(right)), dtype=np.int32)
    for k in range(left.shape[1]):
        distances += count_ones(left[:, k, None] ^ right[None, :, k])
    return distances


class BinaryLayout(Layout):
    """Packed bits, and optionally scales: per row and block, per block, or levels.

    Parameters
    ----------
    packed : ndarray of uint8, shape (num_embeddings, blocks, bytes)
        From `pack_signs`.
    embedding_dim : int
        Of all blocks together.
    scales : ndarray of float32 or float16, optional
        Shape (num_embeddings, blocks), or (1, blocks) where all rows share them.
        Without scales the entries are +1 and -1.
    magnitudes : ndarray of uint8, shape (ceil(num_embeddings / 4),), optional
        Two more bits per row, four rows to a byte, low bits first, which choose
        one of `levels` to multiply the row by.
    levels : ndarray of float32, shape (4,), optional

    Raises
    ------
    ValueError
        If the shapes contradict each other, or padding bits are not 0.
    """

    name: ClassVar[str] = "binary"
    array_names: ClassVar[tuple[str, ...]] = (
        "packed",
        "scales",
        "magnitudes",
        "levels",
    )

    def __init__(
        self,
        packed: np.ndarray,
        embedding_dim: int,
        scales: np.ndarray | None = None,
        magnitudes: np.ndarray | None = None,
        levels: np.ndarray | None = None,
    ) -> None:
        self.packed = np.asarray(packed)
        self.scales = None if scales is None else np.asarray(scales)
        self.magnitudes = None if magnitudes is None else np.asarray(magnitudes)
        self.levels = None if levels is None else np.asarray(levels)
        super().__init__(len(self.packed) if self.packed.ndim else 0, embedding_dim)
        self.validate()

    @classmethod
    def from_signs(
        cls, values: np.ndarray, scales: np.ndarray | None = None, blocks: int = 1
    ) -> BinaryLayout:
        """Store the signs of a table (rows, dim); 0 counts as positive.

        Raises
        ------
        ValueError
            If the table holds NaN or infinity, which have a sign that says nothing.
        """
        return cls(pack_signs(values, blocks), values.shape[1], scales)

    @property
    def blocks(self) -> int:
        """Blocks of a row, each with a scale of its own."""
        return int(self.packed.shape[1])

    @property
    def width(self) -> int:
        """Bits of a block."""
        return self.embedding_dim // self.blocks

    def check_arrays(self) -> None:
        """Raise ValueError if bits, scales and dimension contradict."""
        packed, rows = self.packed, self.num_embeddings
        if packed is None or packed.dtype != np.uint8 or packed.ndim != 3:
            raise ValueError("packed must be uint8 of shape (rows, blocks, bytes)")
        blocks = packed.shape[1]
        if not blocks or self.embedding_dim % blocks:
            raise ValueError(
                f"{blocks} blocks do not divide a row of {self.embedding_dim} bits"
            )
        expected = (rows, blocks, -(-self.width // 8))
        if packed.shape != expected:
            raise ValueError(f"packed must have shape {expected}, got {packed.shape}")
        # Padding that is not 0 would count as bits that differ.
        padded = self.width % 8 and not self.trusted
        if padded and bool((packed[:, :, -1] >> self.width % 8).any()):
            raise ValueError("the padding bits of packed must be 0")
        if self.scales is not None and (
            self.scales.dtype not in (np.float32, np.float16)
            or self.scales.shape not in ((rows, blocks), (1, blocks))
        ):
            raise ValueError(
                f"scales must be float32 or float16 of shape {(rows, blocks)} "
                f"or {(1, blocks)}"
            )
        self._validate_magnitudes()

    def _validate_magnitudes(self) -> None:
        if (self.magnitudes is None) != (self.levels is None):
            raise ValueError("magnitudes and levels belong together")
        if self.magnitudes is None or self.levels is None:
            return
        expected = (-(-self.num_embeddings // 4),)
        if self.magnitudes.dtype != np.uint8 or self.magnitudes.shape != expected:
            raise ValueError(f"magnitudes must be uint8 of shape {expected}")
        if self.levels.dtype != np.float32 or self.levels.shape != (4,):
            raise ValueError("levels must be float32 of shape (4,)")

    def bound_rows(self, held: Mapping[str, float]) -> float:
        """The largest scale."""
        scale = 1.0 if self.scales is None else held["scales"]
        return float(add_up(scale * held.get("levels", 1.0)))

    def read_rows(self, ids: IdArray) -> RowArray:
        """Unpack the bits to +1 and -1, then multiply by the row's scales."""
        packed = self.packed[ids].reshape(-1, self.packed.shape[2])
        bits = unpack_codes(packed, self.width, 1).astype(np.float32)
        signs = (2 * bits - 1).reshape(len(ids), self.blocks, self.width)
        rows = signs * self._read_scales(ids)[:, :, None]
        return rows.reshape(len(ids), self.embedding_dim)

    def _read_scales(self, ids: IdArray) -> RowArray:
        """Scale of each block of checked ids, float32 of shape (m, blocks)."""
        xp = array_module(ids)
        scales = xp.ones((len(ids), self.blocks), dtype=np.float32)
        if self.scales is not None:
            shared = len(self.scales) != self.num_embeddings
            scales *= self.scales if shared else self.scales[ids]
        if self.magnitudes is not None and self.levels is not None:
            codes = read_packed(self.magnitudes, ids, bits=2)
            scales *= self.levels[codes][:, None]
        return scales

    def describe(self) -> Format | None:
        """Rows of one block as codes 0 and 1 with a scale and a bias.

        An entry is then ``2 s q - s``, which is s or -s exactly; on a processor, where
        scales stay where they are, ``2 s (q - 1/2)``.
        """
        from survey_code.kernels.formats import ApartFormat, DenseFormat, RowwiseFormat

        if self.blocks > 1:
            return None
        xp = array_module(self.packed)
        if xp is np:
            scales = self.scales
            if scales is None or self.levels is not None:
                every = 1 if self.levels is None else self.num_embeddings
                scales = self._read_scales(np.arange(every))
            own, codes = DenseFormat.of(scales), self.packed[:, 0]
            return ApartFormat.of(codes, self.embedding_dim, 1, own, factor=2)
        scale = self._read_scales(xp.arange(self.num_embeddings))  # (n, 1)
        tail = xp.concatenate([2 * scale, -scale], axis=1)
        return RowwiseFormat.beside(self.packed[:, 0], tail, self.embedding_dim, 1)

    # -- search without decoding ---------------------------------------------

    @overload
    def scores(
        self,
        queries: Ids,
        candidates: tuple[int, int] | None = None,
        source: BinaryLayout | None = None,
    ) -> RowArray: ...
    @overload
    def scores(
        self,
        queries: GpuArray,
        candidates: tuple[int, int] | None = None,
        source: BinaryLayout | None = None,
    ) -> GpuArray: ...

    def scores(
        self,
        queries: Ids | GpuArray,
        candidates: tuple[int, int] | None = None,
        source: BinaryLayout | None = None,
    ) -> RowArray | GpuArray:
        """Inner products of rows with rows, by exclusive or and a count of ones.

        Parameters
        ----------
        queries : integer array, shape (m,)
            Ids of the rows to compare.
        candidates : (first, stop), optional
            Range of ids to compare with; by default all rows.
        source : BinaryLayout, optional
            Where the queries are looked up; by default this very layout.

        Returns
        -------
        array of float32, shape (m, stop - first)

        Raises
        ------
        IndexError
            If a query is out of range.
        ValueError
            If the candidates are no range of ids, or the codes of `source` have
            another shape.
        """
        first, stop = check_candidates(candidates, self.num_embeddings)
        source, ids = self._check_queries(queries, source)
        xp = array_module(self.packed)
        left = source._read_scales(ids)
        right = self._read_scales(xp.arange(first, stop))
        total = xp.zeros((len(ids), stop - first), dtype=np.float32)
        for k in range(self.blocks):
            distances = hamming_distances(
                source.packed[ids, k], self.packed[first:stop, k]
            )
            products = (self.width - 2 * distances).astype(np.float32)
            total += products * left[:, k, None] * right[None, :, k]
        return check_scores(total)

    @overload
    def topk(
        self,
        queries: Ids,
        k: int,
        candidates: tuple[int, int] | None = None,
        source: BinaryLayout | None = None,
        chunk: int = 256,
    ) -> IdArray: ...
    @overload
    def topk(
        self,
        queries: GpuArray,
        k: int,
        candidates: tuple[int, int] | None = None,
        source: BinaryLayout | None = None,
        chunk: int = 256,
    ) -> GpuArray: ...

    def topk(
        self,
        queries: Ids | GpuArray,
        k: int,
        candidates: tuple[int, int] | None = None,
        source: BinaryLayout | None = None,
        chunk: int = 256,
    ) -> IdArray | GpuArray:
        """Ids of the k rows with the highest scores, the best first.

        Hamming distances tie often; of equal scores the lower id comes first, on a
        GPU as on a processor.  Where low ids are popular items, that is knowledge
        which the codes do not have: rankings that are measured break ties by
        `draw_ranks` instead.

        Parameters
        ----------
        queries, candidates, source
            As for `scores`.
        k : int
        chunk : int
            Queries scored at once.

        Returns
        -------
        array of int64, shape (m, k)

        Raises
        ------
        ValueError
            If k is not from 1 to the number of candidates.
        """
        first, stop = check_candidates(candidates, self.num_embeddings)
        check_nearest(k, stop - first)
        source, ids = self._check_queries(queries, source)
        if not (self._by_distance() and source._by_distance()):
            return first + search_chunks(
                lambda part: self.scores(part, (first, stop), source), ids, k, chunk
            )
        # Distances alone: products of small scales would tie at 0.
        asked, codes = source.packed[:, 0], self.packed[first:stop, 0]
        if self.on_gpu and codes.shape[1] <= LONGEST:
            from survey_code.kernels.cuda.hamming import nearest_codes

            return first + nearest_codes(asked[ids], codes, k)
        return first + search_chunks(
            lambda part: -hamming_distances(asked[part], codes), ids, k, chunk
        )

    def _check_queries(
        self, queries: Ids | GpuArray, source: BinaryLayout | None
    ) -> tuple[BinaryLayout, IdArray]:
        """Where queries are looked up, and their checked ids."""
        source = self if source is None else source
        if not isinstance(source, BinaryLayout):
            raise ValueError(f"source must be a binary layout, got {source!r:.80}")
        if (source.blocks, source.embedding_dim) != (self.blocks, self.embedding_dim):
            raise ValueError(
                f"queries have {source.embedding_dim} bits in {source.blocks} blocks, "
                f"candidates {self.embedding_dim} in {self.blocks}"
            )
        ids = source.check_ids(queries)
        if ids.ndim != 1:
            raise ValueError(f"queries must have one axis, got shape {ids.shape}")
        return source, ids

    def _by_distance(self) -> bool:
        """Whether all scores are one positive number times d - 2 H."""
        shared = self.scales is None or (
            len(self.scales) == 1 and float(self.scales[0, 0]) > 0
        )
        return self.blocks == 1 and self.magnitudes is None and shared
