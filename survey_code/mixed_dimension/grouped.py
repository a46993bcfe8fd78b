"""What methods with one width per group of ids train: short rows and projections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import CompressedEmbedding, Seed, as_float32, pick_rows
from survey_code.layouts import GroupedLayout, Layout
from survey_code.layouts.grouped import MAX_GROUPS, grouped_bytes, is_ranges
from survey_code.mixed_dimension.search import fields_of
from survey_code.replay import is_recording
from survey_code.spec import TableSpec, as_integers

Integers = Sequence[int] | np.ndarray


class GroupedEmbedding(CompressedEmbedding):
    """Short rows, group by group, and a projection for each group.

    Parameters
    ----------
    spec : TableSpec
    assignment : ndarray of integers, shape (num_embeddings,)
        Group of each id, 0 to groups - 1.
    widths : sequence of int, one per group
        Numbers of a row, 0 (all zeros) to spec.embedding_dim (no projection).
    seed : int or sequence of int
    pad : bool, default False
        Fill short rows up with zeros instead of projecting them.

    Raises
    ------
    ValueError
        If an id has no group, or a width is not from 0 to spec.embedding_dim.
    """

    # Learning rate of the projections, in units of the short rows'.
    projection_rate: float = 0.1
    # Where short rows are not projected: each group's columns, if not the first.
    columns: list[np.ndarray] | None = None

    steady = True

    def __init__(
        self,
        spec: TableSpec,
        assignment: np.ndarray,
        widths: Integers,
        seed: Seed,
        pad: bool = False,
    ) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.widths = check_widths(widths, spec.embedding_dim)
        assignment = check_assignment(assignment, spec.num_embeddings, len(self.widths))
        rows = np.bincount(assignment, minlength=len(self.widths))
        rng = np.random.default_rng(seed)
        shapes = [(int(n), width) for n, width in zip(rows, self.widths)]
        self.tables = nn.ParameterList(
            [nn.Parameter(draw(rng, shape, spec.init_std)) for shape in shapes]
        )
        short = [g for g, w in enumerate(self.widths) if 0 < w < spec.embedding_dim]
        if pad or not short:
            short, basis = [], np.zeros((0, 0))
        else:
            basis = draw_basis(rng, spec.embedding_dim)
        self.projections = nn.ParameterDict(
            {
                str(g): nn.Parameter(start_projection(basis, self.widths[g]))
                for g in short
            }
        )
        self.starts: Tensor | None
        self.group_of: Tensor | None
        self.row_of: Tensor | None
        places: dict[str, np.ndarray] = {}
        if is_ranges(assignment, rows):
            places["starts"] = np.cumsum(rows) - rows
        else:
            places["group_of"] = assignment.astype(np.uint8)
            places["row_of"] = count_within(assignment).astype(np.int32)
        for name in ("starts", "group_of", "row_of"):
            held = torch.from_numpy(places[name]) if name in places else None
            self.register_buffer(name, held)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Projections move more slowly: every row of a group feels their steps."""
        slow = self.projection_rate * learning_rate
        return [
            {"params": list(self.tables), "lr": learning_rate},
            {"params": list(self.projections.values()), "lr": slow},
        ]

    def locate(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Group, and row within the group, of flat ids."""
        if self.starts is not None:
            # Of empty groups, the last one that starts here or before.
            group = torch.bucketize(ids, self.starts, right=True) - 1
            return group, ids - self.starts[group]
        assert self.group_of is not None and self.row_of is not None
        return self.group_of[ids].long(), self.row_of[ids].long()

    def embed(self, ids: Tensor) -> Tensor:
        """Sort the ids by group, then one gather and one projection per group."""
        groups, rows = self.locate(ids.reshape(-1))
        if is_recording():
            return self.mask_groups(groups, rows).view(*ids.shape, self.embedding_dim)
        order = torch.argsort(groups, stable=True)
        counts = torch.bincount(groups, minlength=len(self.widths))
        parts = [
            self.widen(self.read(g, mine), g)
            for g, mine in enumerate(rows[order].split(counts.tolist()))
        ]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        # A gather whose gradient is a gather too, since every place is read once.
        full = torch.cat(parts).index_select(0, back)
        return full.reshape(*ids.shape, self.embedding_dim)

    def mask_groups(self, groups: Tensor, rows: Tensor) -> Tensor:
        """Full rows of flat ids, every group asked for every id: more work, but of a
        shape that is known before.
        """
        full = []
        for group in range(len(self.widths)):
            mine = groups == group
            if len(self.tables[group]):
                read = self.widen(self.read(group, torch.where(mine, rows, 0)), group)
                full.append(read * mine[:, None])
        return torch.stack(full).sum(0)

    def read(self, group: int, rows: Tensor) -> Tensor:
        """Short rows of one group: int64 (m,) -> (m, width)."""
        table = self.tables[group]
        if not self.widths[group]:
            # Nothing to read; torch's backward kernel would write there on a GPU.
            return table.new_empty(len(rows), 0)
        return pick_rows(rows, table, sparse=self.regime.sparse)

    def widen(self, short: Tensor, group: int) -> Tensor:
        """Short rows of one group -> full rows: (m, width) -> (m, embedding_dim)."""
        if str(group) in self.projections:
            return short @ self.projections[str(group)]
        return functional.pad(short, (0, self.embedding_dim - short.shape[1]))

    @torch.no_grad()
    def inherit(self, old: Self) -> None:
        """Projections as they are; of who changes groups, the nearest short row."""
        self.projections.load_state_dict(old.projections.state_dict())
        device = next(self.parameters()).device
        ids = torch.arange(self.num_embeddings, device=device)
        groups, rows = self.locate(ids)
        before, places = old.locate(ids)
        for group, table in enumerate(self.tables):
            mine = groups == group
            table[rows[mine]] = self.shorten(old.embed(ids[mine]), group)
            stays = mine & (before == group)
            table[rows[stays]] = old.tables[group][places[stays]]

    def shorten(self, full: Tensor, group: int) -> Tensor:
        """Short rows of one group that `widen` makes most like full ones."""
        if str(group) in self.projections:
            return full @ torch.linalg.pinv(self.projections[str(group)])
        return full[:, : self.widths[group]]

    def freeze(self) -> Layout:
        """The short rows, what makes them long, and who belongs to which group."""
        matrices = {g: as_float32(matrix) for g, matrix in self.projections.items()}
        return GroupedLayout.from_tables(
            [as_float32(table) for table in self.tables],
            [matrices.get(str(g)) for g in range(len(self.widths))],
            self.embedding_dim,
            None if self.group_of is None else self.group_of.cpu().numpy(),
            self.columns,
        )


class FieldDimensions(GroupedEmbedding):
    """A width for every field.

    Parameters
    ----------
    spec : TableSpec
    widths : sequence of int, one per field
    seed : int, default 0
    """

    def __init__(self, spec: TableSpec, widths: Integers, seed: int = 0) -> None:
        fields = len(spec.field_starts) - 1
        if np.size(as_integers(widths, "widths")) != fields:
            raise ValueError(f"widths must be {fields} numbers, got {widths!r}")
        super().__init__(spec, fields_of(spec), widths, [seed, 0])


def count_within(assignment: np.ndarray) -> np.ndarray:
    """How many ids of the same group stand before each id."""
    order = np.argsort(assignment, kind="stable")
    rows = np.bincount(assignment)
    within = np.empty(len(assignment), dtype=np.int64)
    within[order] = np.arange(len(assignment)) - np.repeat(np.cumsum(rows) - rows, rows)
    return within


def draw(rng: np.random.Generator, shape: tuple[int, ...], std: float) -> Tensor:
    """Normal numbers of a generator, float32."""
    return torch.from_numpy(rng.standard_normal(shape, np.float32) * np.float32(std))


def draw_basis(rng: np.random.Generator, dim: int) -> np.ndarray:
    """A random orthogonal matrix (dim, dim); its rows are directions."""
    basis, triangle = np.linalg.qr(rng.standard_normal((dim, dim)))
    # Signs that do not depend on how the factors were found.
    return np.asarray((basis * np.sign(np.diag(triangle))).T)


def start_projection(basis: np.ndarray, width: int) -> Tensor:
    """The first directions of a basis as a projection, shape (width, dim).

    All groups begin in the same space, so that inner products between their rows
    mean something from the start.  The factor sqrt(dim / width) keeps the spread:
    a short row of independent entries with variance v becomes a row whose entries
    have variance v on average.
    """
    scale = np.sqrt(len(basis) / width)
    return torch.from_numpy((scale * basis[:width]).astype(np.float32))


def check_widths(widths: Integers, dim: int) -> list[int]:
    """Widths as Python's integers, or one clear ValueError."""
    array = as_integers(widths, "widths")
    if array.ndim != 1 or not len(array) or array.min() < 0 or array.max() > dim:
        raise ValueError(f"widths must be numbers from 0 to {dim}, got {widths!r}")
    return [int(width) for width in array]


def check_assignment(assignment: np.ndarray, rows: int, groups: int) -> np.ndarray:
    """Group of each id as int64, or one clear ValueError."""
    array = as_integers(assignment, "assignment")
    if array.shape != (rows,) or array.min() < 0 or array.max() >= groups:
        raise ValueError(
            f"assignment must be {rows} numbers from 0 to {groups - 1}, "
            f"got shape {array.shape}"
        )
    if groups > MAX_GROUPS and (np.diff(array) < 0).any():
        raise ValueError(f"at most {MAX_GROUPS} groups can be told apart by a remap")
    return array


def field_costs(spec: TableSpec, widths: tuple[int, ...]) -> np.ndarray:
    """Bytes of each field at each width, its matrix included: (fields, widths)."""
    return np.array(
        [
            [grouped_bytes([rows], [width], spec.embedding_dim) for width in widths]
            for rows in np.diff(spec.field_starts).tolist()
        ]
    )
