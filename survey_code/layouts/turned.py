"""The turned layout: a row is a row of a part, times a matrix.

A square matrix turns rows, as product quantisation does before it cuts them; another
one makes short rows long.  The matrix may also be a product of Hadamard's with itself,
whose columns have changed their signs at random each time: these signs are all that is
then stored, a bit for each column and time, and a product takes additions only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from survey_code.bits import unpack_codes
from survey_code.kernels.cpu.pooling import count_chunk_rows
from survey_code.kernels.cpu.rows import BLOCK_NUMBERS, cut_rows
from survey_code.layouts.layout import (
    LARGEST_FLOAT,
    IdArray,
    Layout,
    N,
    RowArray,
    StoredArray,
    add_up,
    array_module,
    is_cupys,
    pool_fast,
    read_fast,
)
from survey_code.layouts.nearest import VectorSearch, score_part
from survey_code.layouts.parts import bound_product, is_linear, part_work

if TYPE_CHECKING:
    from survey_code.kernels.formats import Format


# Columns of the largest matrix that a GPU is given where none is stored.
WIDEST_TURN = 1024


def mix_rows(rows: N) -> N:
    r"""Rows times Hadamard's matrix, over the root of its size: a turn that mixes all.

    :math:`H_1 = 1` and :math:`H_{2n} = \begin{pmatrix} H_n & H_n \\ H_n & -H_n
    \end{pmatrix}`: half of the work is one for all pairs of entries, so that d entries
    take :math:`d \log_2 d` additions.  A second turn undoes the first.

    Parameters
    ----------
    rows : array of floats, shape (m, dim)
        dim a power of two.

    Returns
    -------
    array of floats, shape (m, dim)

    Examples
    --------
    >>> mix_rows(np.array([[3.0, 1.0, 0.0, 0.0]]))
    array([[2., 1., 2., 1.]])
    """
    count, dim = rows.shape
    xp = array_module(rows)
    # Made small first: no sum on the way is larger than the turned numbers can be.
    mixed: N = rows * rows.dtype.type(dim**-0.5)
    width = 1
    while width < dim:
        pairs = mixed.reshape(count, dim // (2 * width), 2, width)
        left, right = pairs[:, :, 0], pairs[:, :, 1]
        mixed = xp.stack([left + right, left - right], 2).reshape(count, dim)
        width *= 2
    return mixed


def read_signs(signs: StoredArray, dim: int) -> RowArray:
    """Signs from their bits, -1 for 1: uint8 (times, bytes) -> float32 (times, dim)."""
    flips: RowArray = 1 - 2 * unpack_codes(signs, dim, 1).astype(np.float32)
    return flips


def turn_back(rows: N, signs: StoredArray) -> N:
    """Rows turned the other way round than by a `TurnedLayout` with these signs."""
    flips: Any = read_signs(signs, rows.shape[1])
    for own in flips[::-1]:
        rows = mix_rows(rows * own)
    return rows


def is_power_of_two(number: int) -> bool:
    """Whether Hadamard's matrix has such a size."""
    return number >= 1 and number & (number - 1) == 0


class TurnedLayout(VectorSearch):
    """A layout, and the matrix that its rows are multiplied by.

    Parameters
    ----------
    part : Layout
        Rows of ``width`` entries.
    matrix : ndarray of float32, shape (width, embedding_dim), optional
    signs : ndarray of uint8, shape (times, ceil(width / 8)), optional
        Instead of a matrix: rows are turned by `mix_rows`, then those columns change
        their signs whose bit is 1, low bits first; and so on.  The width is a power of
        two.

    Raises
    ------
    ValueError
        If the matrix or the signs do not fit the rows.
    """

    name: ClassVar[str] = "turned"
    describes_bags: ClassVar[bool] = False
    array_names: ClassVar[tuple[str, ...]] = ("part", "matrix", "signs")

    part: Layout
    matrix: np.ndarray | None
    signs: np.ndarray | None

    def __init__(
        self,
        part: Layout,
        matrix: np.ndarray | None = None,
        signs: np.ndarray | None = None,
    ) -> None:
        self.part = part
        self.matrix = None if matrix is None else np.asarray(matrix)
        self.signs = None if signs is None else np.asarray(signs)
        if not isinstance(part, Layout):
            raise ValueError(f"part must be a layout, got {type(part).__name__}")
        if self.matrix is not None and self.matrix.ndim != 2:
            raise ValueError(f"a matrix has two axes, got {self.matrix.shape}")
        width = part.embedding_dim if self.matrix is None else self.matrix.shape[1]
        super().__init__(part.num_embeddings, width)
        self.validate()

    def check_arrays(self) -> None:
        """Raise ValueError if the matrix or the signs do not fit the rows."""
        part, matrix, signs = self.part, self.matrix, self.signs
        if not isinstance(part, Layout) or part.num_embeddings != self.num_embeddings:
            raise ValueError(f"part must be a layout of {self.num_embeddings} rows")
        shape = (part.embedding_dim, self.embedding_dim)
        if (matrix is None) == (signs is None):
            raise ValueError("rows are turned by a matrix or by signs, one of them")
        if matrix is not None and (matrix.dtype != np.float32 or matrix.shape != shape):
            raise ValueError(f"matrix must be float32 of shape {shape}")
        if signs is not None:
            if shape[0] != shape[1] or not is_power_of_two(shape[0]):
                raise ValueError(
                    f"signs turn rows of a power of two of entries into as many, not "
                    f"{shape[0]} into {shape[1]}"
                )
            count = -(-shape[0] // 8)
            if signs.dtype != np.uint8 or signs.shape not in ((1, count), (2, count)):
                raise ValueError(f"signs must be uint8 of shape (1 or 2, {count})")
        self.open_ids = part.open_ids

    def bound_rows(self, held: Mapping[str, float]) -> float:
        """The part's largest number, turned; the rows themselves if need be."""
        bound = float(add_up(held["part"] * self._bound_ones()))
        if bound <= LARGEST_FLOAT:
            return bound
        # Not all numbers of a row are the largest.
        width, largest = self.part.embedding_dim, 0.0
        for part in cut_rows(self.num_embeddings, width, BLOCK_NUMBERS):
            rows = np.abs(self.part.read_rows(np.arange(part.start, part.stop)))
            if self.matrix is None:  # turns keep a row's length
                sums = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1))
            else:
                sums = rows.astype(np.float64) @ np.abs(self.matrix)
            largest = max(largest, float(sums.max()) * (1 + 1e-6 * width))
        return float(add_up(largest))

    def _bound_ones(self) -> float:
        """What rows of ones do not exceed once they are turned."""
        if self.matrix is not None:
            return bound_product(self.matrix)
        return float(self.embedding_dim**0.5 * (1 + 1e-6 * self.embedding_dim))

    def count_work(self) -> int:
        """The part's row, and the product."""
        if self.matrix is not None:
            return part_work(self.part) + self.matrix.size
        dim, times = self.embedding_dim, 1 if self.signs is None else len(self.signs)
        return part_work(self.part) + times * dim * dim.bit_length()

    def full_matrix(self) -> RowArray:
        """The matrix, float32 (width, embedding_dim), also where it is not stored."""
        if self.matrix is not None:
            return self.matrix
        assert self.signs is not None
        xp = array_module(self.signs)
        return self.turn(xp.eye(self.embedding_dim, dtype=np.float32))

    def turn(self, rows: RowArray) -> RowArray:
        """Rows (m, width) -> (m, embedding_dim)."""
        if self.signs is not None:
            for flips in read_signs(self.signs, self.embedding_dim):
                rows = mix_rows(rows) * flips
            return rows
        # Unlike BLAS, einsum gives a row the same digits whatever is read with it.
        turned: RowArray = array_module(rows).einsum("mi,ij->mj", rows, self.matrix)
        return turned

    def read_rows(self, ids: IdArray) -> RowArray:
        """The part's rows, turned."""
        return self.turn(read_fast(self.part, ids))

    def read_bags(
        self, ids: IdArray, starts: IdArray, weights: RowArray | None, mode: str
    ) -> RowArray:
        """The part's bags, turned where the mode allows it.  See `Layout.bag`.

        A sum of turned rows is the turned sum: a bag then costs one product.
        """
        if not is_linear(mode, weights):
            return super().read_bags(ids, starts, weights, mode)
        if is_cupys(ids):
            return self.turn(self.part.read_bags(ids, starts, weights, mode))
        pooled = np.empty((len(starts) - 1, self.embedding_dim), dtype=np.float32)
        step = count_chunk_rows(max(self.part.embedding_dim, self.embedding_dim))
        for first in range(0, len(pooled), step):
            borders = starts[first : first + step + 1]
            some = slice(int(borders[0]), int(borders[-1]))
            factors = None if weights is None else weights[some]
            part = pool_fast(self.part, ids[some], borders - borders[0], factors, mode)
            pooled[first : first + step] = self.turn(part)
        return pooled

    def read_scores(self, queries: N, first: int, stop: int) -> N:
        """The part's scores of the queries, turned back."""
        if self.signs is not None:
            back = turn_back(queries, self.signs)
        else:
            assert self.matrix is not None
            back = queries @ self.matrix.T
        return score_part(self.part, back, first, stop)

    def describe(self) -> Format | None:
        """The part's format; the product follows it."""
        from survey_code.kernels.formats import TurnedFormat, describe_rows

        part = describe_rows(self.part)
        if part is None or (self.matrix is None and self.embedding_dim > WIDEST_TURN):
            return None
        return TurnedFormat.of(part, self.full_matrix(), made=self.matrix is None)
