"""The grouped layout: groups of rows, each with a width and a projection of its own.

A group of n rows and width w keeps a table of n short rows of w numbers, which may
be a layout of its own.  A short row becomes a full one by the group's projection, a
matrix of (w, embedding_dim); a group as wide as the full row needs none, and a group
of width 0 is all zeros.  Instead of being projected, short rows can be spread over
some of the columns, with zeros in the others.

Where the groups are ranges of ids, as fields are, their sizes say who belongs where.
Otherwise a remap does, in about log2(groups) bits per id instead of a number: see
`pack_assignment`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from survey_code.bits import count_bits, count_ones, pack_words, unpack_words
from survey_code.kernels.cpu.pooling import count_chunk_rows, cut_bags
from survey_code.layouts.layout import (
    IdArray,
    Layout,
    N,
    RowArray,
    add_up,
    array_module,
    cut,
    is_cupys,
    pool_rows,
)
from survey_code.layouts.nearest import VectorSearch
from survey_code.layouts.parts import (
    Rows,
    as_rows,
    bound_product,
    check_rows,
    is_linear,
    part_work,
    read_part,
    rows_shape,
)

if TYPE_CHECKING:
    from survey_code.kernels.formats import Format

# Ids of one block of the remap: eight words of 64 bits, a cache line per bit plane.
BLOCK_WORDS = 8
BLOCK_IDS = 64 * BLOCK_WORDS
MAX_GROUPS = 256


def pack_assignment(
    assignment: np.ndarray, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Who belongs to which group, bit plane by bit plane, with running counts.

    The ids are cut into blocks of 512.  Plane p of a block holds bit p of its ids'
    group numbers; `before` counts, for each block and group, the group's ids in all
    earlier blocks.  The row of an id within its group is that count, plus the
    group's ids that stand before it in its own block.

    Parameters
    ----------
    assignment : ndarray of integers, shape (n,)
        Group of each id, 0 to groups - 1.
    groups : int
        At most 256.

    Returns
    -------
    planes : ndarray of uint64, shape (blocks, bits, 8)
    before : ndarray of uint32, shape (blocks, groups)

    Examples
    --------
    >>> planes, before = pack_assignment(np.array([0, 1, 1, 0, 1]), groups=2)
    >>> bin(planes[0, 0, 0])
    '0b10110'
    """
    codes = np.asarray(assignment).astype(np.uint8)
    blocks, bits = -(-len(codes) // BLOCK_IDS), count_bits(groups)
    padded = np.zeros(blocks * BLOCK_IDS, dtype=np.uint8)
    padded[: len(codes)] = codes
    planes = np.stack([pack_words((padded >> p) & 1) for p in range(bits)])
    planes = planes.reshape(bits, blocks, BLOCK_WORDS).transpose(1, 0, 2)
    flat = np.arange(len(codes)) // BLOCK_IDS * groups + codes
    inside = np.bincount(flat, minlength=blocks * groups).reshape(blocks, groups)
    before = np.cumsum(inside, axis=0) - inside
    return np.ascontiguousarray(planes), before.astype(np.uint32)


def remap_bytes(num_embeddings: int, groups: int) -> int:
    """Bytes of what `pack_assignment` returns."""
    blocks = -(-num_embeddings // BLOCK_IDS)
    return blocks * (8 * BLOCK_WORDS * count_bits(groups) + 4 * groups)


def grouped_bytes(
    rows: Sequence[int],
    widths: Sequence[int],
    dim: int,
    ranges: bool = True,
    pad: bool = False,
) -> int:
    """Bytes of a grouped layout, before there is one.

    Parameters
    ----------
    rows, widths : sequences of int, one per group
    dim : int
    ranges : bool, default True
        Whether the groups are ranges of ids; otherwise there is a remap.
    pad : bool, default False
        Whether short rows are filled up with zeros instead of projected.
    """
    numbers = sum(n * w for n, w in zip(rows, widths, strict=True))
    short = [w for w in widths if 0 < w < dim]
    total = 4 * numbers + 8 * len(widths)
    total += 2 * sum(widths) * bool(short) if pad else 4 * dim * sum(short)
    if not ranges:
        total += remap_bytes(sum(rows), len(rows))
    return int(total)


class GroupedLayout(VectorSearch):
    """Short rows group by group, and what makes them long.

    What is stored says each group's rows and width once more, as `groups`, int32 of
    shape (groups, 2).

    Parameters
    ----------
    tables : sequence of ndarray of float32 or float16, or of layouts
        The short rows of each group, shape (rows, width), in the order of their ids.
    embedding_dim : int
    projections : ndarray of float32, shape (sum of width * embedding_dim,), optional
        Matrices of the groups with 0 < width < embedding_dim, one after another.
    columns : ndarray of uint16, shape (sum of widths,), optional
        Instead of projections: the columns that a group's numbers go to.
    planes : ndarray of uint64, shape (blocks, bits, 8), optional
        From `pack_assignment`; left out where the groups are ranges of ids.
    before : ndarray of uint32, shape (blocks, groups), optional

    Raises
    ------
    ValueError
        If the arrays contradict each other.
    """

    name: ClassVar[str] = "grouped"
    array_names: ClassVar[tuple[str, ...]] = (
        "groups",
        "projections",
        "columns",
        "planes",
        "before",
    )
    listed: ClassVar[str | None] = "tables"

    tables: Sequence[Rows]

    def __init__(
        self,
        tables: Sequence[npt.ArrayLike | Layout],
        embedding_dim: int,
        projections: np.ndarray | None = None,
        columns: np.ndarray | None = None,
        planes: np.ndarray | None = None,
        before: np.ndarray | None = None,
    ) -> None:
        def optional(array: np.ndarray | None) -> np.ndarray | None:
            return None if array is None else np.asarray(array)

        self.tables = [as_rows(table) for table in tables]
        self.groups = np.array(self.sizes(), dtype=np.int32).reshape(-1, 2)
        self.projections = optional(projections)
        self.columns = optional(columns)
        self.planes = optional(planes)
        self.before = optional(before)
        super().__init__(sum(rows for rows, _ in self.sizes()), embedding_dim)
        self.validate()

    @classmethod
    def from_tables(
        cls,
        tables: Sequence[npt.ArrayLike | Layout],
        projections: Sequence[np.ndarray | None],
        embedding_dim: int,
        assignment: np.ndarray | None = None,
        columns: Sequence[np.ndarray] | None = None,
    ) -> GroupedLayout:
        """Put the groups' tables together.

        Parameters
        ----------
        tables : sequence of ndarray or layouts, shapes (rows, width)
            The short rows of each group, in the order of their ids.
        projections : sequence of ndarray, shapes (width, embedding_dim), or None
            None for groups of width 0 or `embedding_dim`.  All None: the short
            rows are filled up with zeros.
        embedding_dim : int
        assignment : ndarray of integers, shape (ids,), optional
            Group of each id; by default the groups are ranges of ids.
        columns : sequence of ndarray of integers, optional
            Where short rows are not projected: the columns of each group's
            numbers; by default the first ones.
        """
        kept = [
            table if isinstance(table, Layout) else np.array(table, dtype=np.float32)
            for table in tables
        ]
        sizes = [rows_shape(table) for table in kept]
        widths = [width for _, width in sizes]
        matrices = [np.ravel(matrix) for matrix in projections if matrix is not None]
        if columns is None and not matrices:
            columns = [np.arange(width) for width in widths]
        if not any(0 < width < embedding_dim for width in widths):
            columns = None
        remap: tuple[np.ndarray | None, np.ndarray | None] = (None, None)
        rows = [rows for rows, _ in sizes]
        if assignment is not None and not is_ranges(assignment, rows):
            remap = pack_assignment(assignment, len(sizes))
        return cls(
            kept,
            embedding_dim,
            join(matrices, np.float32) if matrices else None,
            None if matrices or columns is None else join(columns, np.uint16),
            *remap,
        )

    # -- what is stored ------------------------------------------------------

    def sizes(self) -> list[tuple[int, int]]:
        """Rows and width of each group."""
        return [rows_shape(table) for table in self.tables]

    def matrices(self) -> list[np.ndarray | None]:
        """The projection of each group, shape (width, embedding_dim), or None."""
        if self.projections is None:
            return [None] * len(self.tables)
        dim = self.embedding_dim
        short = [width if width < dim else 0 for _, width in self.sizes()]
        parts = cut(self.projections, [width * dim for width in short])
        return [
            part.reshape(width, dim) if width else None
            for part, width in zip(parts, short)
        ]

    def _places(self) -> list[np.ndarray | None]:
        """The columns of each group's numbers, or None where there are all."""
        if self.columns is None:
            return [None] * len(self.tables)
        return [*cut(self.columns, [width for _, width in self.sizes()])]

    # -- checks --------------------------------------------------------------

    def check_arrays(self) -> None:
        """Raise ValueError if sizes, tables, projections and remap contradict."""
        if not len(self.tables):
            raise ValueError("a grouped layout needs a group")
        dim, sizes = self.embedding_dim, self.sizes()
        groups = self.groups
        if (
            groups is None
            or groups.dtype != np.int32
            or groups.shape != (len(sizes), 2)
        ):
            raise ValueError(f"groups must be int32 of shape {(len(sizes), 2)}")
        if groups.tolist() != [list(size) for size in sizes]:
            raise ValueError(f"groups must be the tables' sizes {sizes}")
        for g, (table, size) in enumerate(zip(self.tables, sizes)):
            check_rows(f"table {g}", table, [size])
        if sum(rows for rows, _ in sizes) != self.num_embeddings:
            raise ValueError(f"groups must hold {self.num_embeddings} rows together")
        widths = [width for _, width in sizes]
        if max(widths) > dim:
            raise ValueError(f"a group is {max(widths)} wide, a full row only {dim}")
        short = [width for width in widths if 0 < width < dim]
        if bool(short) != (self.projections is not None or self.columns is not None):
            raise ValueError("short rows, and only they, need projections or columns")
        if self.projections is not None:
            check_vector("projections", self.projections, sum(short) * dim, np.float32)
        if self.columns is not None:
            if self.projections is not None:
                raise ValueError("projections and columns exclude each other")
            check_vector("columns", self.columns, sum(widths), np.uint16)
            for place in cut(self.columns, widths):
                some = place.tolist()
                if len(set(some)) != len(some) or max(some, default=0) >= dim:
                    raise ValueError("columns must be different columns of a row")
        self._check_remap()

    def _check_remap(self) -> None:
        planes, before = self.planes, self.before
        if planes is None and before is None:
            return
        if planes is None or before is None:
            raise ValueError("planes and before belong together")
        blocks, groups = -(-self.num_embeddings // BLOCK_IDS), len(self.tables)
        shapes = (blocks, count_bits(groups), BLOCK_WORDS), (blocks, groups)
        if planes.dtype != np.uint64 or planes.shape != shapes[0]:
            raise ValueError(f"planes must be uint64 of shape {shapes[0]}")
        if before.dtype != np.uint32 or before.shape != shapes[1]:
            raise ValueError(f"before must be uint32 of shape {shapes[1]}")
        if groups > MAX_GROUPS:
            raise ValueError(f"a remap tells {MAX_GROUPS} groups apart, got {groups}")
        if self.trusted:
            return
        codes = self.read_assignment()
        counts = np.bincount(codes, minlength=groups)
        if (
            len(counts) != groups
            or counts.tolist() != [rows for rows, _ in self.sizes()]
            or (pack_assignment(codes, groups)[1] != before).any()
        ):
            raise ValueError("planes and before do not fit the groups' sizes")

    def read_assignment(self) -> np.ndarray:
        """Group of every id, uint8 (or int64 where groups are ranges of ids)."""
        if self.planes is None:
            rows = [rows for rows, _ in self.sizes()]
            return np.repeat(np.arange(len(rows)), rows)
        codes = np.zeros(len(self.planes) * BLOCK_IDS, dtype=np.uint8)
        for p in range(self.planes.shape[1]):
            codes |= unpack_words(self.planes[:, p].ravel()) << np.uint8(p)
        return codes[: self.num_embeddings]

    def bound_rows(self, held: Mapping[str, float]) -> float:
        """The largest numbers of each group, projected."""
        found = []
        for g, matrix in enumerate(self.matrices()):
            factor = 1.0 if matrix is None else bound_product(matrix)
            found.append(float(add_up(held[str(g)] * factor)))
        return max(found)

    def count_work(self) -> int:
        """A short row, and its projection."""
        return self.embedding_dim + max(
            part_work(table) + (0 if matrix is None else matrix.size)
            for table, matrix in zip(self.tables, self.matrices())
        )

    # -- reading -------------------------------------------------------------

    def describe(self) -> Format | None:
        """Short rows, projected or spread as they are read."""
        from survey_code.kernels.formats import GroupedFormat, describe_all

        tables = describe_all(self.tables)
        if tables is None:
            return None
        return GroupedFormat.of(
            (self.num_embeddings, self.embedding_dim),
            tables,
            self.matrices(),
            [
                None if place is None else np.array(place.tolist(), dtype=np.int64)
                for place in self._places()
            ],
            self.planes,
            self.before,
        )

    def locate(self, ids: IdArray) -> tuple[IdArray, IdArray]:
        """Group, and row within the group, of checked ids; both int64 (m,)."""
        xp = array_module(ids)
        if self.planes is None or self.before is None:
            rows = np.array([count for count, _ in self.sizes()], dtype=np.int64)
            ends = np.cumsum(rows)
            starts = xp.asarray(ends - rows)
            group = xp.searchsorted(xp.asarray(ends), ids, side="right")
            return group, ids - starts[group]
        block, word = ids // BLOCK_IDS, ids // 64 % BLOCK_WORDS
        bit = (ids % 64).astype(np.uint64)
        one = np.uint64(1)
        # Bits of the block's ids that come before this one.
        order = xp.arange(BLOCK_WORDS)[None, :]
        below = ((xp.ones_like(bit) << bit) - one)[:, None]
        every = np.uint64(2**64 - 1)
        same = xp.where(order == word[:, None], below, np.uint64(0))
        same = xp.where(order < word[:, None], every, same)  # (m, 8)
        group = xp.zeros(len(ids), dtype=np.int64)
        each = xp.arange(len(ids))
        for p in range(self.planes.shape[1]):
            plane = self.planes[block, p]  # (m, 8)
            own = (plane[each, word] >> bit) & one
            group |= own.astype(np.int64) << p
            # Keep the ids whose bit p is that of this id.
            same = same & xp.where(own[:, None] == one, plane, ~plane)
        inside = count_ones(xp.ascontiguousarray(same)).sum(axis=1, dtype=np.int64)
        return group, self.before[block, group].astype(np.int64) + inside

    def _members(
        self, groups: IdArray
    ) -> Iterator[tuple[IdArray, Rows, np.ndarray | None, np.ndarray | None]]:
        """For each group with numbers and ids: where these stand in `groups`, rising;
        its table, projection and columns.
        """
        xp = array_module(groups)
        order = xp.argsort(groups, kind="stable")
        borders = xp.searchsorted(groups[order], xp.arange(len(self.tables) + 1))
        ends = borders.tolist()
        parts = zip(self.tables, self.matrices(), self._places())
        for (table, matrix, place), first, last in zip(parts, ends, ends[1:]):
            if last > first and rows_shape(table)[1]:
                yield order[first:last], table, matrix, place

    def _widen(
        self, short: RowArray, matrix: np.ndarray | None, place: np.ndarray | None
    ) -> RowArray:
        """Short rows of one group -> full rows: (m, width) -> (m, embedding_dim).

        Parameters
        ----------
        short : array of float32, shape (m, width)
        matrix, place
            The group's projection and columns, where it has them.
        """
        xp = array_module(short)
        if matrix is not None:
            # Unlike a matrix product of BLAS, einsum gives a row the same digits
            # whatever other rows are read along with it.
            return xp.einsum("mw,wd->md", short, matrix)
        if short.shape[1] == self.embedding_dim:
            return short
        rows = xp.zeros((len(short), self.embedding_dim), dtype=np.float32)
        if place is not None:
            rows[:, place.astype(np.int64)] = short
        return rows

    def read_rows(self, ids: IdArray) -> RowArray:
        """Gather short rows group by group, then project them."""
        xp = array_module(ids)
        full = xp.zeros((len(ids), self.embedding_dim), dtype=np.float32)
        groups, rows = self.locate(ids)
        for here, table, matrix, place in self._members(groups):
            full[here] = self._widen(read_part(table, rows[here]), matrix, place)
        return full

    def read_bags(
        self, ids: IdArray, starts: IdArray, weights: RowArray | None, mode: str
    ) -> RowArray:
        """Pool rows bag by bag; sums and means are taken before the projection.

        Projecting is linear, so that a bag needs one projection per group, however
        many ids it holds.  See `Layout.bag`.
        """
        xp = array_module(ids)
        if not is_linear(mode, weights):
            return super().read_bags(ids, starts, weights, mode)
        if is_cupys(ids):
            pooled = self._pool_groups(ids, starts, weights)
        else:
            # Four chunks: ids are put in the order of their groups once a stretch.
            most = 4 * count_chunk_rows(self.embedding_dim)
            pooled = np.zeros((len(starts) - 1, self.embedding_dim), dtype=np.float32)
            for bags, some, inside in cut_bags(starts, most, most):
                factors = None if weights is None else weights[some]
                pooled[bags] += self._pool_groups(ids[some], inside, factors)
        if mode == "mean":
            pooled /= xp.maximum(xp.diff(starts), 1).astype(np.float32)[:, None]
        return pooled

    def _pool_groups(
        self, ids: IdArray, starts: IdArray, weights: RowArray | None
    ) -> RowArray:
        """Sums of bags, each group's summed before it is projected."""
        xp = array_module(ids)
        pooled = xp.zeros((len(starts) - 1, self.embedding_dim), dtype=np.float32)
        groups, rows = self.locate(ids)
        for here, table, matrix, place in self._members(groups):
            short = read_part(table, rows[here])
            if weights is not None:
                short = short * weights[here][:, None]
            # Ids of this group before each border between bags.
            part = pool_rows(short, xp.searchsorted(here, starts), "sum")
            pooled += self._widen(part, matrix, place)
        return pooled

    def read_scores(self, queries: N, first: int, stop: int) -> N:
        """Group by group (h P^T) W^T: the query is brought down to the group's width
        instead of the rows up to the query's.
        """
        xp = array_module(queries)
        found = xp.zeros((len(queries), stop - first), dtype=np.float32)
        groups, rows = self.locate(xp.arange(first, stop))
        for here, table, matrix, place in self._members(groups):
            if matrix is not None:
                small = queries @ matrix.T
            else:
                small = queries if place is None else queries[:, place.astype(np.int64)]
            found[:, here] = small @ read_part(table, rows[here]).T
        return found


def is_ranges(assignment: np.ndarray, rows: Sequence[int] | np.ndarray) -> bool:
    """Whether the groups are ranges of ids, in their order."""
    return bool(np.array_equal(assignment, np.repeat(np.arange(len(rows)), rows)))


def join(parts: Sequence[np.ndarray], kind: type[np.generic]) -> np.ndarray:
    """Vectors, one after another."""
    whole = np.concatenate([np.zeros(0, kind), *parts])
    return np.ascontiguousarray(whole, dtype=kind)


def check_vector(
    name: str, array: np.ndarray | None, size: int, kind: type[np.generic]
) -> None:
    """Raise ValueError unless an array is a vector of a size and a type."""
    if array is None or array.dtype != kind or array.shape != (size,):
        raise ValueError(f"{name} must be {np.dtype(kind)} of shape ({size},)")
