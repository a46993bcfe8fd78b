"""The turned layout: a row is a row of a part, times a matrix.

A square matrix turns rows, as product quantisation does before it cuts them; another
one makes short rows long.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from survey_code.kernels.cpu.pooling import count_chunk_rows
from survey_code.layouts.layout import (
    IdArray,
    Layout,
    N,
    RowArray,
    add_up,
    array_module,
    is_cupys,
)
from survey_code.layouts.nearest import VectorSearch, score_part
from survey_code.layouts.parts import bound_product, is_linear, part_work

if TYPE_CHECKING:
    from survey_code.kernels.cuda.formats import Format


class TurnedLayout(VectorSearch):
    """A layout, and the matrix that its rows are multiplied by.

    Parameters
    ----------
    part : Layout
        Rows of ``width`` entries.
    matrix : ndarray of float32, shape (width, embedding_dim)

    Raises
    ------
    ValueError
        If the matrix does not fit the rows.
    """

    name: ClassVar[str] = "turned"
    array_names: ClassVar[tuple[str, ...]] = ("part", "matrix")

    part: Layout
    matrix: np.ndarray

    def __init__(self, part: Layout, matrix: np.ndarray) -> None:
        self.part, self.matrix = part, np.asarray(matrix)
        if not isinstance(part, Layout):
            raise ValueError(f"part must be a layout, got {type(part).__name__}")
        if self.matrix.ndim != 2:
            raise ValueError(f"a matrix has two axes, got {self.matrix.shape}")
        super().__init__(part.num_embeddings, self.matrix.shape[1])
        self.validate()

    def check_arrays(self) -> None:
        """Raise ValueError if the matrix does not fit the rows."""
        part, matrix = self.part, self.matrix
        if not isinstance(part, Layout) or part.num_embeddings != self.num_embeddings:
            raise ValueError(f"part must be a layout of {self.num_embeddings} rows")
        shape = (part.embedding_dim, self.embedding_dim)
        if matrix is None or matrix.dtype != np.float32 or matrix.shape != shape:
            raise ValueError(f"matrix must be float32 of shape {shape}")
        self.open_ids = part.open_ids

    def bound_rows(self, held: Mapping[str, float]) -> float:
        """The part's largest number, turned."""
        return float(add_up(held["part"] * bound_product(self.matrix)))

    def count_work(self) -> int:
        """The part's row, and the product."""
        return part_work(self.part) + self.matrix.size

    def turn(self, rows: RowArray) -> RowArray:
        """Rows (m, width) -> (m, embedding_dim)."""
        # Unlike BLAS, einsum gives a row the same digits whatever is read with it.
        turned: RowArray = array_module(rows).einsum("mi,ij->mj", rows, self.matrix)
        return turned

    def read_rows(self, ids: IdArray) -> RowArray:
        """The part's rows, turned."""
        return self.turn(self.part.read_rows(ids))

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
        step = count_chunk_rows(max(self.matrix.shape))
        for first in range(0, len(pooled), step):
            borders = starts[first : first + step + 1]
            some = slice(int(borders[0]), int(borders[-1]))
            factors = None if weights is None else weights[some]
            part = self.part.read_bags(ids[some], borders - borders[0], factors, mode)
            pooled[first : first + step] = self.turn(part)
        return pooled

    def read_scores(self, queries: N, first: int, stop: int) -> N:
        """The part's scores of the queries, turned back."""
        return score_part(self.part, queries @ self.matrix.T, first, stop)

    def describe(self) -> Format | None:
        """The part's format; the product follows it."""
        from survey_code.kernels.cuda.formats import TurnedFormat, describe_rows

        part = describe_rows(self.part)
        return None if part is None else TurnedFormat.of(part, self.matrix)
