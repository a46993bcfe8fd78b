"""Fields whose tables are small along two axes at once: narrow or pruned, and shared.

The survey names three things that a table can be made smaller by: fewer bits a number,
fewer numbers a row, and fewer rows.  They do not exclude each other.  Here one trained
table has the second and the third, each alone or both, so that what they do together
can be compared with what each does alone; bits come after training, by
`survey_code.hybrids.nested`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.embedding import as_float32, draw_normal, pick_rows
from survey_code.layouts import (
    DenseLayout,
    GroupedLayout,
    HashedLayout,
    Layout,
    SparseLayout,
)
from survey_code.layouts.grouped import grouped_bytes
from survey_code.layouts.hashed import count_rows, table_starts, take_digits
from survey_code.layouts.layout import cut
from survey_code.layouts.sparse import default_block, sparse_bytes
from survey_code.method import Found, Judge, Searched
from survey_code.mixed_dimension.grouped import FieldDimensions
from survey_code.mixed_dimension.pruning.tickets import keep_largest
from survey_code.mixed_dimension.rule_based import PowerLawOptions, plan_law
from survey_code.options import SearchOptions, found, option
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import INDEX_BYTES, factor_std, join_parts
from survey_code.weight_sharing.hashing.quotient_remainder import (
    QuotientRemainderOptions,
    check_sizes,
    plan_fields,
    quotient_index,
)

NARROWED_BY = ("full", "mde", "pruned")
SHARED_BY = ("none", "quotient_remainder")


class NestedOptions(SearchOptions):
    """Options of `NestedFields`."""

    dims: str = option("full", "what rows are made smaller by", choices=NARROWED_BY)
    sharing: str = option("none", "what shares rows", choices=SHARED_BY)
    strength: float = option(
        4.0, "how many times smaller narrow rows, or shared ones, make it alone", low=1
    )
    kept: float = option(
        0.2, "share of the entries that pruning keeps", above=0, high=1
    )
    alpha: float = option(
        0.3, "exponent of the law of widths", low=0, high=64, tune=(0.3, 0.6)
    )
    combine: str = option(
        "product", "how two shared rows make one", choices=("product", "sum"),
        tune=("product", "sum"),
    )  # fmt: skip
    rewind: bool = option(
        False, "train what is kept from the first draw on", tune=(False, True)
    )
    decay: float = option(
        1e-5, "weight decay of the tables before the cut",
        low=0, below=1, tune=(1e-5, 0.0, 1e-4),
    )  # fmt: skip
    widths: list[int] = found("width of each field")
    moduli: list[int] = found("modulus of each field, 0 where its rows are not shared")
    mask: np.ndarray | None = found("the entries to train again, bool, all in a row")
    learnt: np.ndarray | None = found("where they begin, if not as first drawn")


class SearchedFields(FieldDimensions):
    """A table for each field: of any width, of all its rows or of two small ones.

    What is pruned decays while it learns, until it is known what is kept.
    """

    mask: Tensor | None

    steady = True

    def __init__(self, spec: TableSpec, options: NestedOptions, seed: int = 0) -> None:
        super().__init__(spec, options.widths, seed)
        self.combine, self.kept = options.combine, options.kept
        self.ids = np.diff(spec.field_starts).tolist()
        self.indices = field_indices(spec, options.moduli)
        for g, index in enumerate(self.indices):
            if index is not None:
                shape = (count_rows(index), self.widths[g])
                std = factor_std(spec.init_std, len(index), options.combine)
                self.tables[g] = nn.Parameter(draw_normal(shape, std, [seed, 0, g]))
        self.prunes = options.dims == "pruned"
        self.decay = options.decay if self.prunes and options.mask is None else 0.0
        # Of each table, one after another.
        self.sizes = [table.numel() for table in self.tables]
        self.register_buffer("mask", None)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Those of groups; before the cut tables decay."""
        tables, projections = super().parameter_groups(learning_rate)
        return [{**tables, "weight_decay": self.decay}, projections]

    def read(self, group: int, rows: Tensor) -> Tensor:
        """Short rows of a field: as they are, or put together from two."""
        index = self.indices[group]
        if index is None:
            return self.pick(group, rows)
        starts = table_starts(index)
        digits = take_digits(rows, index)
        parts = [self.pick(group, digit + at) for digit, at in zip(digits, starts)]
        return join_parts(parts, self.combine)

    def pick(self, group: int, places: Tensor) -> Tensor:
        """Rows of a field's table, what is not under the mask blanked."""
        table = self.tables[group]
        rows = pick_rows(places, table, sparse=self.regime.sparse)
        if self.mask is None:
            return rows
        first = sum(self.sizes[:group])
        mask = self.mask[first : first + self.sizes[group]].view(table.shape)
        return rows * mask[places]

    @torch.no_grad()
    def largest(self) -> np.ndarray:
        """The largest entries: bool, (entries of all tables,).

        Factors of rows are of another size than rows: the same share of each is kept.
        """
        shared = np.repeat([own is not None for own in self.indices], self.sizes)
        entries = torch.cat([table.detach().flatten() for table in self.tables]).cpu()
        mask = np.zeros(len(shared), dtype=bool)
        for kind in (shared, ~shared):
            most = count_kept(int(kind.sum()), self.kept)
            mask[kind] = keep_largest(entries[torch.from_numpy(kind)].abs(), most)
        return mask

    def entries(self) -> np.ndarray:
        """All tables as float32, one after another."""
        return np.concatenate([as_float32(table).ravel() for table in self.tables])

    def freeze(self) -> Layout:
        """One table where all rows are of one length and nobody's share; else each
        field's rows, or what they are put together from, and projections.
        """
        entries = self.entries()
        if self.prunes:
            kept = self.largest() if self.mask is None else self.mask.cpu().numpy()
            entries *= kept
        if is_one_table(self.widths, self.embedding_dim, self.indices):
            rows = entries.reshape(-1, self.embedding_dim)
            return SparseLayout.from_dense(rows) if self.prunes else DenseLayout(rows)
        tables = [
            freeze_field(part.reshape(table.shape), index, rows, self)
            for part, table, index, rows in zip(
                cut(entries, self.sizes), self.tables, self.indices, self.ids
            )
        ]
        matrices = {g: as_float32(matrix) for g, matrix in self.projections.items()}
        return GroupedLayout.from_tables(
            tables,
            [matrices.get(str(g)) for g in range(len(self.widths))],
            self.embedding_dim,
        )


class NestedFields(SearchedFields, Searched[NestedOptions, SearchedFields]):
    """Narrow or pruned rows, shared ones, or both (``nested``, which no list has).

    Narrow rows are those of `MDEFields`, shared ones those of `QuotientRemainder` with
    fields apart, and pruned are all tables as `MagnitudePruning` does it: trained with
    decay, cut to the largest entries, and trained again.  Both at once are the same
    widths and the same moduli: each field has two small tables of narrow rows, and the
    row that they make is projected.

    Notes
    -----
    No method of a paper, but the cells of an experiment; for each axis alone see the
    classes named above, whose rows and bytes these are.
    """

    def __init__(self, spec: TableSpec, options: NestedOptions, seed: int = 0) -> None:
        super().__init__(spec, options, seed)
        if options.mask is None:
            return
        mask = np.asarray(options.mask)
        if mask.dtype != bool or mask.shape != (sum(self.sizes),):
            raise ValueError(
                f"mask must be bool of shape {(sum(self.sizes),)}, got {mask.dtype} of "
                f"shape {mask.shape}"
            )
        self.mask = torch.from_numpy(mask.copy())
        begin = self.entries() if options.learnt is None else options.learnt
        for table, part in zip(self.tables, cut(begin * mask, self.sizes)):
            table.data = torch.from_numpy(part.reshape(table.shape).copy())

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: NestedOptions) -> Found:
        """Widths and moduli by `strength` alone; the budget must hold them."""
        sizes, dim = np.diff(spec.field_starts), spec.embedding_dim
        widths, moduli = [dim] * len(sizes), [0] * len(sizes)
        if options.dims == "mde":
            law = PowerLawOptions(alpha=options.alpha)
            widths = plan_law(spec, options.strength, sizes, 1 / sizes, law)
        if options.sharing == "quotient_remainder":
            asked = QuotientRemainderOptions(fields="apart", combine=options.combine)
            planned: Any = plan_fields(spec, options.strength, asked)["field_moduli"]
            moduli = planned
        kept = options.kept if options.dims == "pruned" else None
        spec.require(ratio, smallest=fields_bytes(spec, widths, moduli, kept))
        return {"widths": widths, "moduli": moduli, "budget": spec.budget(ratio)}

    @classmethod
    def searches(cls, options: NestedOptions) -> bool:
        """Only for what is to be kept."""
        return options.dims == "pruned"

    @classmethod
    def settle(
        cls,
        table: SearchedFields,
        judge: Judge,
        spec: TableSpec,
        options: NestedOptions,
    ) -> Found:
        """The largest entries of the trained tables, and their values."""
        mask = table.largest()
        learnt = None if options.rewind else table.entries()
        return {"mask": mask, "learnt": learnt}


def is_one_table(
    widths: Sequence[int], dim: int, shared: Sequence[object | None]
) -> bool:
    """Whether fields of these widths, and what shares their rows, are one table."""
    return all(own is None for own in shared) and min(widths) == dim


def field_indices(spec: TableSpec, moduli: object) -> list[np.ndarray | None]:
    """Index table of each field, None where its rows are not shared."""
    sizes = np.diff(spec.field_starts).tolist()
    given = check_sizes("moduli", moduli, 0)
    if len(given) != len(sizes) or any(m > n for m, n in zip(given, sizes)):
        raise ValueError(
            f"moduli must be {len(sizes)} numbers, each up to its field's ids {sizes}, "
            f"got {given}"
        )
    return [quotient_index(m, n) if m else None for m, n in zip(given, sizes)]


def freeze_field(
    table: np.ndarray, index: np.ndarray | None, rows: int, fields: SearchedFields
) -> np.ndarray | Layout:
    """What a field of so many rows stores, from its table."""
    stored = SparseLayout.from_dense(table) if fields.prunes else table
    if index is None:
        return stored
    return HashedLayout(stored, index.copy(), rows, table.shape[1], fields.combine)


def count_kept(entries: int, share: float) -> int:
    """Entries that are kept of so many, one at least."""
    return max(int(share * entries), 1) if entries else 0


def fields_bytes(
    spec: TableSpec, widths: list[int], moduli: list[int], kept: float | None
) -> int:
    """About the bytes of the frozen table, exact where nothing is pruned.

    Parameters
    ----------
    spec : TableSpec
    widths, moduli : list of int, one per field
    kept : float, optional
        Share of the entries that pruning keeps.
    """
    sizes, dim = np.diff(spec.field_starts).tolist(), spec.embedding_dim
    rows = [m + -(-n // m) if m else n for n, m in zip(sizes, moduli)]
    if is_one_table(widths, dim, [m or None for m in moduli]):
        rows, widths, total = [spec.num_embeddings], [dim], spec.full_bytes
    else:
        total = grouped_bytes(rows, widths, dim)
        total += 2 * INDEX_BYTES * sum(m > 0 for m in moduli)
    if kept is None:
        return total
    for count, width in zip(rows, widths):
        entries = count_kept(count * width, kept)
        total -= 4 * count * width
        total += sparse_bytes(entries, count, width, block_rows=default_block(width))
    return total
