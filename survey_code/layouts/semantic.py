"""The semantic layout: an id's codes are cut into n-grams, whose hashes name rows.

Each id has a few small codes, which are stored: `survey_code.layouts.packed`.  A
stretch of them, the first two say, is a number; with the number of the id's field it
is hashed into a table.  Ids whose codes agree on a stretch read the same row there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from survey_code.bits import stream_words
from survey_code.checks import check_choice, check_range
from survey_code.layouts.hashed import (
    as_flag,
    check_index,
    count_rows,
    table_starts,
    take_digits,
)
from survey_code.layouts.layout import (
    A,
    IdArray,
    Layout,
    RowArray,
    add_up,
    array_module,
)
from survey_code.layouts.packed import PackedLayout
from survey_code.layouts.parts import (
    Rows,
    are_first_ids,
    as_rows,
    check_rows,
    part_work,
    read_part,
)

if TYPE_CHECKING:
    from survey_code.kernels.formats import Format

# How the rows of n-grams make one.
JOINED = ("sum", "concat")
# Bits of all codes of an id together, and of the number of its field.
MOST_CODE_BITS, MOST_FIELD_BITS = 48, 14


def semantic_bytes(rows: int, levels: int, bits: int, grams: int, fields: int) -> int:
    """Bytes of a semantic layout without its tables.

    Parameters
    ----------
    rows, levels, bits : int
        Ids, codes of one id, bits of one code.
    grams, fields : int
        Rows that an id reads; fields that are told apart.
    """
    size = 4 * stream_words(rows * levels, bits) + (40 + 2) * grams
    return size + 8 * fields * (fields > 1)


def join_codes(codes: A, bits: int) -> A:
    """One number of the codes of each id, the first in the lowest bits.

    Parameters
    ----------
    codes : array or tensor of int64, shape (m, levels)
    bits : int

    Returns
    -------
    array or tensor of int64, shape (m,)

    Examples
    --------
    >>> join_codes(np.array([[3, 1], [0, 2]]), bits=4)
    array([19, 32])
    """
    joined = codes[:, 0]
    for level in range(1, codes.shape[1]):
        joined = joined | codes[:, level] << bits * level
    return joined


def take_gram(joined: A, fields: A | None, first: int, last: int, bits: int) -> A:
    """The number of codes `first` to `last - 1`, and of the field above them.

    Parameters
    ----------
    joined : array or tensor of int64, shape (m,)
        From `join_codes`.
    fields : array or tensor of int64, shape (m,), or None for a single field
    first, last, bits : int

    Examples
    --------
    >>> take_gram(np.array([0x321]), np.array([7]), 0, 2, bits=4) == 0x721
    array([ True])
    """
    length = bits * (last - first)
    gram = joined >> bits * first & (1 << length) - 1
    return gram if fields is None else gram | fields << length


class SemanticLayout(Layout):
    """Codes, tables, and which stretches of the codes read them.

    Parameters
    ----------
    codes : PackedLayout
        The codes of each id, one for each level.
    values : ndarray of float32 or float16, or layout, shape (all rows, width)
        The tables of the n-grams below one another, or one table for all.  ``width``
        is `embedding_dim`, or a part of it where rows are put side by side.
    index : ndarray of int64, shape (grams, 5)
        How each n-gram's number is hashed; see `survey_code.layouts.hashed`.
    grams : ndarray of uint8, shape (grams, 2)
        First code of each n-gram, and the one after its last.
    embedding_dim : int
    combine : {"sum", "concat"}
    shared : bool, default False
        All n-grams read rows of one table.
    starts : ndarray of int64, shape (fields,), optional
        First id of each field, rising from 0; left out for a single field.

    Raises
    ------
    ValueError
        If the arrays contradict each other.
    """

    name: ClassVar[str] = "semantic"
    array_names: ClassVar[tuple[str, ...]] = (
        "codes",
        "values",
        "index",
        "grams",
        "starts",
    )
    holders: ClassVar[tuple[str, ...]] = ("values",)
    shape_names: ClassVar[tuple[str, ...]] = (
        "num_embeddings",
        "embedding_dim",
        "combine_code",
        "shared",
    )

    codes: PackedLayout
    values: Rows
    index: np.ndarray
    grams: np.ndarray
    starts: np.ndarray | None

    def __init__(
        self,
        codes: PackedLayout,
        values: npt.ArrayLike | Layout,
        index: np.ndarray,
        grams: np.ndarray,
        embedding_dim: int,
        combine: str = "sum",
        shared: bool = False,
        starts: np.ndarray | None = None,
    ) -> None:
        super().__init__(codes.num_embeddings, embedding_dim)
        check_choice("combine", combine, JOINED)
        self.codes = codes
        self.values = as_rows(values)
        self.index, self.grams = np.asarray(index), np.asarray(grams)
        self.starts = None if starts is None else np.asarray(starts)
        self.combine_code = JOINED.index(combine)
        self.shared = as_flag("shared", shared)
        self.validate()

    @property
    def combine(self) -> str:
        """How rows combine: "sum" or "concat"."""
        return JOINED[self.combine_code]

    @property
    def spans(self) -> Sequence[tuple[int, int]]:
        """First code of each n-gram, and the one after its last."""
        return [(int(first), int(last)) for first, last in self.grams.tolist()]

    # -- checks ---------------------------------------------------------------

    def check_arrays(self) -> None:
        """Raise ValueError if the arrays contradict each other."""
        check_range("combine_code", self.combine_code, 0, len(JOINED) - 1)
        check_range("shared", self.shared, 0, 1)
        codes = self.codes
        if not isinstance(codes, PackedLayout):
            raise ValueError("codes must be a layout of packed integers")
        if codes.num_embeddings != self.num_embeddings:
            raise ValueError(
                f"codes must be of {self.num_embeddings} ids, got those of "
                f"{codes.num_embeddings}"
            )
        if codes.embedding_dim * codes.bits > MOST_CODE_BITS:
            raise ValueError(
                f"codes of an id may have {MOST_CODE_BITS} bits, got "
                f"{codes.embedding_dim} of {codes.bits}"
            )
        check_index("index", self.index)
        self._validate_grams(codes.embedding_dim)
        self._validate_starts()
        parts = len(self.index) if self.combine == "concat" else 1
        if self.embedding_dim % parts:
            raise ValueError(
                f"{parts} rows cannot be put together to {self.embedding_dim}"
            )
        rows = count_rows(self.index, bool(self.shared))
        check_rows("values", self.values, [(rows, self.embedding_dim // parts)])

    def _validate_grams(self, levels: int) -> None:
        grams = self.grams
        shape = (len(self.index), 2)
        if grams is None or grams.dtype != np.uint8 or grams.shape != shape:
            raise ValueError(f"grams must be uint8 of shape {shape}")
        if (grams[:, 0] >= grams[:, 1]).any() or grams.max() > levels:
            raise ValueError(
                f"grams must be stretches of {levels} codes, got {grams.tolist()[:8]}"
            )

    def _validate_starts(self) -> None:
        starts = self.starts
        if starts is None:
            return
        few = 1 < starts.size <= 1 << MOST_FIELD_BITS
        if not few or not are_first_ids(starts, self.num_embeddings):
            raise ValueError(
                "starts must be int64 ids that rise from 0, of 2 fields or more"
            )

    def bound_rows(self, held: Mapping[str, float]) -> float:
        """The largest number, as often as rows are added."""
        added = len(self.index) if self.combine == "sum" else 1
        return float(add_up(*[held["values"]] * added))

    def count_work(self) -> int:
        """The codes, and the rows that their n-grams name."""
        return part_work(self.codes) + len(self.index) * (1 + part_work(self.values))

    # -- look-up --------------------------------------------------------------

    def find_rows(self, ids: IdArray) -> list[IdArray]:
        """Rows of `values` that each n-gram of checked ids names: int64 (m,) each."""
        codes = self.codes
        joined = join_codes(codes.read_rows(ids).astype(np.int64), codes.bits)
        fields = None
        if self.starts is not None:
            xp = array_module(ids)
            fields = xp.searchsorted(self.starts, ids, side="right") - 1
        starts = table_starts(self.index, bool(self.shared))
        return [
            take_digits(take_gram(joined, fields, *span, codes.bits), how[None])[0]
            + start
            for span, how, start in zip(self.spans, self.index, starts)
        ]

    def read_rows(self, ids: IdArray) -> RowArray:
        """Codes, n-grams, their hashes; then the rows, added or side by side."""
        parts = [read_part(self.values, rows) for rows in self.find_rows(ids)]
        if self.combine == "concat":
            joined: RowArray = array_module(ids).concatenate(parts, axis=1)
            return joined
        rows = parts[0]
        for part in parts[1:]:
            rows = rows + part
        return rows

    def describe(self) -> Format | None:
        """Codes, n-grams and tables in one kernel."""
        from survey_code.kernels.formats import SemanticFormat, describe_rows

        codes, values = describe_rows(self.codes), describe_rows(self.values)
        if codes is None or values is None:
            return None
        return SemanticFormat.of(
            self.embedding_dim,
            codes,
            values,
            self.index.tolist(),
            table_starts(self.index, bool(self.shared)),
            self.spans,
            self.codes.bits,
            self.starts,
            self.combine,
        )
