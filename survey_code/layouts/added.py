"""The added layout: a row is the sum of a row of each part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from survey_code.layouts.layout import IdArray, Layout, N, RowArray, add_up
from survey_code.layouts.nearest import VectorSearch, score_part
from survey_code.layouts.parts import check_layouts, part_work

if TYPE_CHECKING:
    from survey_code.kernels.formats import Format


class AddedLayout(VectorSearch):
    """Layouts of one shape, whose rows are added up in their order.

    Parameters
    ----------
    parts : sequence of Layout
        At least two.

    Raises
    ------
    ValueError
        If their shapes differ.
    """

    name: ClassVar[str] = "added"
    listed: ClassVar[str | None] = "parts"

    parts: Sequence[Layout]

    def __init__(self, parts: Sequence[Layout]) -> None:
        check_layouts("an added layout", parts)
        super().__init__(parts[0].num_embeddings, parts[0].embedding_dim)
        self.parts = list(parts)
        self.validate()

    def check_arrays(self) -> None:
        """Raise ValueError if the parts have other shapes."""
        parts = self.parts
        check_layouts("an added layout", parts)
        shape = (self.num_embeddings, self.embedding_dim)
        shapes = [(part.num_embeddings, part.embedding_dim) for part in parts]
        if any(own != shape for own in shapes):
            raise ValueError(f"all parts must have the shape {shape}, got {shapes}")
        self.open_ids = int(all(part.open_ids for part in parts))

    def bound_rows(self, held: Mapping[str, float]) -> float:
        """The parts' largest numbers, added up."""
        return float(add_up(*held.values()))

    def count_work(self) -> int:
        """All parts' rows."""
        return sum(part_work(part) for part in self.parts) + self.embedding_dim

    def read_rows(self, ids: IdArray) -> RowArray:
        """The parts' rows, added up."""
        rows = self.parts[0].read_rows(ids)
        for part in self.parts[1:]:
            rows = rows + part.read_rows(ids)
        return rows

    def read_scores(self, queries: N, first: int, stop: int) -> N:
        """The parts' scores, added up."""
        scores = score_part(self.parts[0], queries, first, stop)
        for part in self.parts[1:]:
            scores = scores + score_part(part, queries, first, stop)
        return scores

    def describe(self) -> Format | None:
        """The parts' formats."""
        from survey_code.kernels.formats import AddedFormat, describe_all

        formats = describe_all(self.parts)
        return None if formats is None else AddedFormat.of(formats)
