"""The anchor layout: each row is a sparse mixture of a few anchor vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from survey_code.layouts.layout import (
    IdArray,
    Layout,
    RowArray,
    add_up,
    array_module,
    pool_rows,
)
from survey_code.layouts.parts import (
    Rows,
    as_rows,
    as_vector,
    check_numbers,
    check_rows,
    numbers_work,
    part_work,
    read_numbers,
    read_part,
    rows_shape,
)

if TYPE_CHECKING:
    from survey_code.kernels.formats import Format


class AnchorLayout(Layout):
    """``row = sum of weight * anchor`` over the entries that are stored for it.

    Parameters
    ----------
    anchors : ndarray of float32 or float16, or layout, shape (a, embedding_dim)
    weights : ndarray of float32, shape (entries,), or layout
        Row after row; a layout holds them so, too.
    columns : ndarray of uint8 or uint16, shape (entries,)
        Each entry's anchor.
    offsets : ndarray of uint32, shape (num_embeddings + 1,)
        Where each row's entries start; the number of entries at the end.

    Raises
    ------
    ValueError
        If the shapes contradict each other.
    """

    name: ClassVar[str] = "anchors"
    array_names: ClassVar[tuple[str, ...]] = (
        "anchors",
        "weights",
        "columns",
        "offsets",
    )
    holders: ClassVar[tuple[str, ...]] = ("anchors", "weights")

    weights: Rows

    def __init__(
        self,
        anchors: npt.ArrayLike | Layout,
        weights: npt.ArrayLike | Layout,
        columns: np.ndarray,
        offsets: np.ndarray,
    ) -> None:
        self.anchors: Rows = as_rows(anchors)
        if np.ndim(offsets) != 1:
            raise ValueError(f"offsets have one axis, got {offsets!r}")
        super().__init__(len(offsets) - 1, rows_shape(self.anchors)[1])
        self.weights = as_vector(weights)
        self.columns = np.ascontiguousarray(columns)
        self.offsets = np.ascontiguousarray(offsets)
        self.validate()

    @classmethod
    def from_dense(cls, mixture: np.ndarray, anchors: np.ndarray) -> AnchorLayout:
        """Keep the entries of a mixture (rows, a) that are not 0."""
        rows, columns = np.nonzero(mixture)
        counts = np.bincount(rows, minlength=len(mixture))
        kind = np.uint8 if len(anchors) <= 256 else np.uint16
        return cls(
            np.array(anchors, dtype=np.float32),
            mixture[rows, columns].astype(np.float32, copy=False),
            columns.astype(kind),
            np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32),
        )

    def check_arrays(self) -> None:
        """Raise ValueError if entries, rows and anchors contradict."""
        offsets, columns = self.offsets, self.columns
        check_rows("anchors", self.anchors, [(None, self.embedding_dim)])
        anchors = rows_shape(self.anchors)[0]
        if anchors > 2**16:
            raise ValueError(f"there can be 65,536 anchors, got {anchors:,}")
        if (
            columns is None
            or columns.dtype not in (np.uint8, np.uint16)
            or columns.ndim != 1
            or (len(columns) and not self.trusted and int(columns.max()) >= anchors)
        ):
            raise ValueError(
                f"columns must be uint8 or uint16 numbers of {anchors} anchors, "
                "one for each float32 weight"
            )
        entries = len(columns)
        check_numbers("weights", self.weights, entries, [np.float32])
        if (
            offsets is None
            or offsets.dtype != np.uint32
            or offsets.shape != (self.num_embeddings + 1,)
            or offsets[0] != 0
            or offsets[-1] != entries
            or (not self.trusted and (offsets[1:] < offsets[:-1]).any())
        ):
            raise ValueError(
                f"offsets must be uint32, rising from 0 to {entries}, "
                f"for {self.num_embeddings} rows"
            )

    def _longest(self) -> int:
        return int(np.diff(self.offsets.astype(np.int64)).max())

    def bound_rows(self, held: Mapping[str, float]) -> float:
        """The largest weight times the largest anchor, for the longest row."""
        longest, one = self._longest(), add_up(held["weights"] * held["anchors"])
        return float(add_up(longest * one * (1 + 1e-2))) if longest else 0.0

    def count_work(self) -> int:
        """The anchors of the longest row."""
        longest = self._longest()
        work = longest * part_work(self.anchors) + self.embedding_dim
        return work + numbers_work(self.weights, longest)

    def describe(self) -> Format | None:
        """Each row's entries, and the anchors they name."""
        from survey_code.kernels.formats import AnchorFormat, describe_rows

        anchors = describe_rows(self.anchors)
        if anchors is None or isinstance(self.weights, Layout):
            return None
        shape = (self.num_embeddings, self.embedding_dim)
        return AnchorFormat(*shape, anchors, self.weights, self.columns, self.offsets)

    def read_rows(self, ids: IdArray) -> RowArray:
        """Weight the anchors of each row's entries, and add them up."""
        xp = array_module(ids)
        starts = self.offsets[ids].astype(np.int64)
        counts = self.offsets[ids + 1].astype(np.int64) - starts
        ends = xp.cumsum(counts)
        entries = int(ends[-1]) if len(ids) else 0
        # Entry e belongs to the first row that ends after it.
        row = xp.searchsorted(ends, xp.arange(entries), side="right")
        place = xp.arange(entries) - (ends - counts)[row] + starts[row]
        anchors = read_part(self.anchors, self.columns[place].astype(np.int64))
        parts = anchors * read_numbers(self.weights, place)[:, None]
        bounds = xp.concatenate([xp.zeros(1, dtype=np.int64), ends])
        return pool_rows(parts, bounds, "sum")
