"""The turned layout: a row is a row of a part, times a matrix.

A square matrix turns rows, as product quantisation does before it cuts them; another
one makes short rows long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from survey_code.layouts.layout import IdArray, Layout, N, RowArray, array_module
from survey_code.layouts.nearest import VectorSearch, score_part
from survey_code.layouts.parts import is_linear

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

    def validate(self) -> None:
        """Raise ValueError if the matrix does not fit the rows."""
        part, matrix = self.part, self.matrix
        if not isinstance(part, Layout) or part.num_embeddings != self.num_embeddings:
            raise ValueError(f"part must be a layout of {self.num_embeddings} rows")
        shape = (part.embedding_dim, self.embedding_dim)
        if matrix is None or matrix.dtype != np.float32 or matrix.shape != shape:
            raise ValueError(f"matrix must be float32 of shape {shape}")
        self.open_ids = part.open_ids

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
        return self.turn(self.part.read_bags(ids, starts, weights, mode))

    def read_scores(self, queries: N, first: int, stop: int) -> N:
        """The part's scores of the queries, turned back."""
        return score_part(self.part, queries @ self.matrix.T, first, stop)

    def describe(self) -> Format | None:
        """The part's format; the product follows it."""
        from survey_code.kernels.cuda.formats import TurnedFormat, describe_rows

        part = describe_rows(self.part)
        return None if part is None else TurnedFormat.of(part, self.matrix)
