"""The routed layout: some ids are stored apart, each part in a layout of its own.

Popular ids can have rows of their own beside rows that many share, or rows in more
bits than others.  Each part but the last names its ids; the last holds all others.
The named ids are listed, 4 bytes each, or marked, with a bit for every id and a count
for every 64: whichever is smaller.  Within a part, ids stand in their order.  Only a
last part as large as the whole table, such as one that hashes, is asked for an id by
its own number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from survey_code.bits import find_marks, mark_ids, unpack_words
from survey_code.budget import largest_fitting
from survey_code.kernels import cuda
from survey_code.layouts.dense import DenseLayout
from survey_code.layouts.layout import IdArray, Layout, N, RowArray, array_module, cut
from survey_code.layouts.nearest import VectorSearch, score_part
from survey_code.layouts.parts import check_layouts, part_work

if TYPE_CHECKING:
    from survey_code.kernels.formats import Format


def key_type(rows: int) -> np.dtype:
    """Integers that hold the ids of a table of so many rows."""
    return np.dtype(np.int32 if rows <= 2**31 else np.int64)


def routing_bytes(rows: int, named: Sequence[int]) -> int:
    """Bytes that say which part holds an id, before there is a layout.

    Parameters
    ----------
    rows : int
        Ids of the whole table.
    named : sequence of int
        Ids of each part but the last.

    Examples
    --------
    >>> routing_bytes(640, [10]), routing_bytes(640, [500])
    (40, 120)
    """
    named = [count for count in named if count]
    listed = key_type(rows).itemsize * sum(named)
    return min(listed, 12 * -(-rows // 64) * len(named))


def apart_bytes(rows: int, count: int, row: int) -> int:
    """Bytes of the rows of so many ids that are stored apart, `row` bytes each."""
    return count * row + routing_bytes(rows, [count])


def most_apart(rows: int, row: int, budget: int) -> int:
    """How many ids can have rows of `row` bytes apart, within a budget from 0 up.

    Examples
    --------
    >>> most_apart(640, row=16, budget=100)
    5
    """
    return largest_fitting(0, rows, lambda n: apart_bytes(rows, n, row) <= budget)


def check_named(ids: np.ndarray, rows: int) -> np.ndarray:
    """Ids of a part, before they are listed or marked; or one clear ValueError."""
    given = np.asarray(ids)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise ValueError(
            f"ids of a part must be integers along one axis, got {given.dtype} of "
            f"shape {given.shape}"
        )
    wrong = given[(given < 0) | (given >= rows)]
    if len(wrong):
        raise ValueError(f"the named ids must be from 0 to {rows - 1}, got {wrong[0]}")
    named = given.astype(np.int64)
    if bool((named[1:] <= named[:-1]).any()):
        raise ValueError("the ids of a part must rise, each once")
    return named


class RoutedLayout(VectorSearch):
    """Layouts, and which of them holds an id.

    Parameters
    ----------
    parts : sequence of Layout
        At least two; all but the last hold the ids that are named for them.
    num_embeddings : int
    keys : ndarray of int32 (int64 beyond 2**31 ids), shape (named ids,), optional
        Ids of each part but the last, part after part, rising within each.
    marks : ndarray of uint64, shape (parts - 1, words), optional
        Instead of keys: a bit for each id, low bits first, 1 for the part's own.
    ranks : ndarray of uint32, shape (parts - 1, words), optional
        With marks: how many marks stand below each word.

    Raises
    ------
    ValueError
        If the parts do not hold each id once.
    """

    name: ClassVar[str] = "routed"
    array_names: ClassVar[tuple[str, ...]] = ("keys", "marks", "ranks")
    listed: ClassVar[str | None] = "parts"

    parts: Sequence[Layout]

    def __init__(
        self,
        parts: Sequence[Layout],
        num_embeddings: int,
        keys: np.ndarray | None = None,
        marks: np.ndarray | None = None,
        ranks: np.ndarray | None = None,
    ) -> None:
        check_layouts("a routed layout", parts)
        super().__init__(num_embeddings, parts[0].embedding_dim)
        self.parts = list(parts)
        self.keys = None if keys is None else np.asarray(keys)
        self.marks = None if marks is None else np.asarray(marks)
        self.ranks = None if ranks is None else np.asarray(ranks)
        self.validate()

    @classmethod
    def from_ids(
        cls, parts: Sequence[Layout], ids: Sequence[np.ndarray], num_embeddings: int
    ) -> RoutedLayout:
        """Put parts together.

        Parameters
        ----------
        parts : sequence of Layout
        ids : sequence of ndarray of integers
            Ids of each part but the last, each rising.
        num_embeddings : int

        Raises
        ------
        ValueError
            If ids are not integers of the table, each once and rising in its part,
            or do not fit the parts.
        """
        named = [check_named(own, num_embeddings) for own in ids]
        if len(named) != len(parts) - 1 or not named:
            raise ValueError(
                f"{len(parts)} parts need the ids of all but the last, got {len(named)}"
            )
        kind = key_type(num_embeddings)
        sizes = [len(own) for own in named]
        listed = kind.itemsize * sum(sizes)
        if listed <= routing_bytes(num_embeddings, sizes):
            keys = np.concatenate([own.astype(kind) for own in named])
            return cls(parts, num_embeddings, keys)
        marked = [mark_ids(own, num_embeddings) for own in named]
        marks, ranks = (np.stack(array) for array in zip(*marked))
        return cls(parts, num_embeddings, None, marks, ranks)

    # -- checks ---------------------------------------------------------------

    @property
    def by_number(self) -> bool:
        """Whether the last part is asked for ids by their own numbers."""
        return self.parts[-1].num_embeddings == self.num_embeddings

    def part_ids(self) -> list[IdArray]:
        """Ids of each part but the last, rising."""
        if self.keys is not None:
            return cut(self.keys, [part.num_embeddings for part in self.parts[:-1]])
        marks = [] if self.marks is None else list(self.marks)
        return [np.flatnonzero(unpack_words(row)) for row in marks]

    def check_arrays(self) -> None:
        """Raise ValueError if parts, keys and marks contradict each other."""
        parts = self.parts
        check_layouts("a routed layout", parts)
        dims = {part.embedding_dim for part in parts}
        if dims != {self.embedding_dim}:
            raise ValueError(
                f"the parts' rows have {sorted(dims)} entries, not {self.embedding_dim}"
            )
        sizes = [part.num_embeddings for part in parts]
        others = self.num_embeddings - sum(sizes[:-1])
        if sizes[-1] not in (others, self.num_embeddings):
            raise ValueError(
                f"the parts hold {sizes} rows; the last must have {others}, or all "
                f"{self.num_embeddings}"
            )
        self._validate_ids(sizes[:-1])
        self.open_ids = parts[-1].open_ids if self.by_number else 0

    def _validate_ids(self, sizes: list[int]) -> None:
        """Each named id is named once, in its order."""
        rows, kind = self.num_embeddings, key_type(self.num_embeddings)
        if self.keys is not None:
            if self.marks is not None or self.ranks is not None:
                raise ValueError("keys and marks exclude each other")
            if self.keys.dtype != kind or self.keys.shape != (sum(sizes),):
                raise ValueError(f"keys must be {kind} of shape {(sum(sizes),)}")
        else:
            shape = (len(sizes), -(-rows // 64))
            if (
                self.marks is None
                or self.marks.dtype != np.uint64
                or self.marks.shape != shape
            ):
                raise ValueError(f"marks must be uint64 of shape {shape}")
        if self.trusted:
            self._check_ranks()
            return
        named = self.part_ids()
        if [len(ids) for ids in named] != sizes:
            raise ValueError(f"marks must name {sizes} ids")
        ordered = np.sort(np.concatenate(named))
        if any(bool((ids[1:] <= ids[:-1]).any()) for ids in named):
            raise ValueError("keys must rise within each part")
        if (
            int(ordered[0]) < 0
            or int(ordered[-1]) >= rows
            or bool((ordered[1:] == ordered[:-1]).any())
        ):
            raise ValueError(
                f"the named ids must be different ids from 0 to {rows - 1}"
            )
        self._check_ranks(named)

    def _check_ranks(self, named: Sequence[IdArray] | None = None) -> None:
        """With marks there are ranks of their shape, those of the named ids."""
        if self.marks is None:
            return
        ranks = self.ranks
        fits = ranks is not None and ranks.dtype == np.uint32
        if fits and ranks is not None and ranks.shape == self.marks.shape:
            if named is None:
                return
            wanted = [mark_ids(ids, self.num_embeddings)[1] for ids in named]
            if np.array_equal(ranks, np.stack(wanted)):
                return
        raise ValueError("ranks must count the marks below each word")

    def count_work(self) -> int:
        """A row of a part, and the search for it."""
        return max(part_work(part) for part in self.parts) + len(self.parts)

    # -- look-up --------------------------------------------------------------

    def find(self, ids: IdArray, part: int) -> tuple[np.ndarray, IdArray]:
        """Whether a part names each id, and how many of the part's are below it."""
        xp = array_module(ids)
        if self.keys is None:
            assert self.marks is not None and self.ranks is not None
            # Ids that a last part takes beyond the table are not named.
            inside = xp.minimum(ids, self.num_embeddings - 1)
            named, below = find_marks(self.marks[part], self.ranks[part], inside)
            return named & (ids == inside), below
        keys = self.part_ids()[part]
        # In the keys' own type: others would be widened for each search.
        sought = xp.minimum(ids, np.iinfo(keys.dtype).max).astype(keys.dtype)
        below = xp.searchsorted(keys, sought)
        return keys[xp.minimum(below, len(keys) - 1)] == ids, below

    def route(self, ids: IdArray) -> list[tuple[IdArray, IdArray]]:
        """For each part which of the ids it holds, and their places in it.

        Parameters
        ----------
        ids : array of int64, shape (m,)

        Returns
        -------
        list of (array of int64, array of int64)
            Positions in `ids`, rising; rows of the part.
        """
        xp = array_module(ids)
        left, below = xp.arange(len(ids)), xp.zeros(len(ids), dtype=np.int64)
        routes = []
        for part in range(len(self.parts) - 1):
            named, rank = self.find(ids[left], part)
            routes.append((left[named], rank[named]))
            left, below = left[~named], (below + rank)[~named]
        routes.append((left, ids[left] if self.by_number else ids[left] - below))
        return routes

    def read_rows(self, ids: IdArray) -> RowArray:
        """Each part's rows, put where its ids stand."""
        xp = array_module(ids)
        rows = xp.empty((len(ids), self.embedding_dim), dtype=np.float32)
        for part, (places, own) in zip(self.parts, self.route(ids)):
            if len(places):
                rows[places] = part.read_rows(own)
        return rows

    def read_scores(self, queries: N, first: int, stop: int) -> N:
        """Each part's scores, put where its ids stand."""
        xp = array_module(queries)
        scores = xp.empty((len(queries), stop - first), dtype=np.float32)
        for part, (places, own) in zip(self.parts, self.route(xp.arange(first, stop))):
            if len(places):
                # Rows of a part rise with the ids: they are a range of its own.
                ends = int(own[0]), int(own[-1]) + 1
                found = score_part(part, queries, *ends)
                scores[:, places] = found[:, own - ends[0]]
        return scores

    def describe(self) -> Format | None:
        """The parts' formats, and a bit for each id that says where it stands."""
        from survey_code.kernels.formats import RoutedFormat, describe_all

        formats = describe_all(self.parts)
        if formats is None:
            return None
        xp = array_module(next(iter(self.arrays().values())))
        marks, ranks, made = self.marks, self.ranks, 0
        if marks is None or ranks is None:
            named = [cuda.copy_back(ids) for ids in self.part_ids()]
            marked = [mark_ids(ids, self.num_embeddings) for ids in named]
            marks, ranks = (xp.asarray(np.stack(array)) for array in zip(*marked))
            made = marks.nbytes + ranks.nbytes
        return RoutedFormat.of(
            formats, [*marks], [*ranks], self.num_embeddings, self.open_ids, made
        )


def keep_apart(
    rows: int, ids: np.ndarray, own: np.ndarray | Layout, others: Layout
) -> Layout:
    """Rows of their own for some ids of a table.

    Parameters
    ----------
    rows : int
        Ids of the table.
    ids : ndarray of integers, rising
    own : ndarray of floats, shape (ids, dim), or layout
        Their rows, in their order.
    others : Layout
        The rows of all other ids, in their order; or of all ids, by their numbers.

    Returns
    -------
    Layout
        `others` itself where no ids have rows of their own.
    """
    if not len(ids):
        return others
    part = own if isinstance(own, Layout) else DenseLayout(own)
    return RoutedLayout.from_ids([part, others], [ids], rows)
