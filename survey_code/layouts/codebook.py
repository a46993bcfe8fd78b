"""The codebook layout: a row is a few small integers that name shared codewords.

The codes of all rows are a table of small integers, `survey_code.layouts.packed`, or
two of them where some ids have longer codes.  Codewords of all books stand below one
another; ``firsts`` says where each book begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from survey_code.bits import stream_words
from survey_code.checks import check_choice
from survey_code.layouts.layout import (
    IdArray,
    Layout,
    N,
    RowArray,
    add_up,
    array_module,
    is_cupys,
)
from survey_code.layouts.nearest import VectorSearch
from survey_code.layouts.packed import PackedLayout
from survey_code.layouts.parts import (
    Rows,
    are_first_ids,
    as_rows,
    check_rows,
    part_work,
    read_all,
    read_part,
    rows_shape,
)
from survey_code.layouts.routed import RoutedLayout

if TYPE_CHECKING:
    from survey_code.kernels.formats import Format

# Codewords side by side, or added.
COMBINED = ("concat", "sum")


def codebook_bytes(
    rows: int,
    books: int,
    bits: int,
    codewords: int,
    width: int,
    *,
    groups: int = 1,
    number: int = 4,
) -> int:
    """Bytes of a codebook layout.

    Parameters
    ----------
    rows, books, bits : int
        Ids, codes of one id, bits of one code.
    codewords, width : int
        Codewords of all books together, numbers of one codeword.
    groups : int, default 1
        Ranges of ids with codebooks of their own.
    number : {4, 2}
        Bytes of a number.
    """
    size = 4 * stream_words(rows * books, bits)
    size += codewords * width * number + 4 * groups * books
    return size + 8 * groups * (groups > 1)


class CodebookLayout(VectorSearch):
    """Codes, codebooks, and how the codewords of a row combine.

    Parameters
    ----------
    codes : PackedLayout, or RoutedLayout of such
        The codes of each id, one for each book.
    codewords : ndarray of float32 or float16, or layout, shape (codewords, width)
        ``width`` is `embedding_dim` where codewords are added, and
        ``embedding_dim / books`` where they are put side by side.
    firsts : ndarray of int32, shape (groups, books)
        Row of `codewords` at which each book starts.
    embedding_dim : int
    combine : {"concat", "sum"}
    starts : ndarray of int64, shape (groups,), optional
        First id of each group, rising from 0; left out for a single group.

    Raises
    ------
    ValueError
        If the arrays contradict each other, or a code names no codeword.
    """

    name: ClassVar[str] = "codebook"
    array_names: ClassVar[tuple[str, ...]] = ("codes", "codewords", "firsts", "starts")
    holders: ClassVar[tuple[str, ...]] = ("codewords",)
    shape_names: ClassVar[tuple[str, ...]] = (
        "num_embeddings",
        "embedding_dim",
        "combine_code",
    )

    codes: Layout
    codewords: Rows
    firsts: np.ndarray
    starts: np.ndarray | None

    def __init__(
        self,
        codes: Layout,
        codewords: npt.ArrayLike | Layout,
        firsts: np.ndarray,
        embedding_dim: int,
        combine: str = "concat",
        starts: np.ndarray | None = None,
    ) -> None:
        if not isinstance(codes, Layout):
            raise ValueError(f"codes must be a layout, got {type(codes).__name__}")
        super().__init__(codes.num_embeddings, embedding_dim)
        check_choice("combine", combine, COMBINED)
        self.combine_code = COMBINED.index(combine)
        self.codes, self.codewords = codes, as_rows(codewords)
        self.firsts = np.asarray(firsts)
        self.starts = None if starts is None else np.asarray(starts)
        self.validate()

    @classmethod
    def from_codes(
        cls,
        codes: np.ndarray,
        codewords: npt.ArrayLike | Layout,
        firsts: npt.ArrayLike,
        embedding_dim: int,
        bits: int,
        combine: str = "concat",
        starts: np.ndarray | None = None,
    ) -> CodebookLayout:
        """Pack codes, shape (rows, books), each of so many bits."""
        return cls(
            PackedLayout.from_integers(codes, bits),
            codewords,
            np.atleast_2d(np.asarray(firsts, dtype=np.int32)),
            embedding_dim,
            combine,
            starts,
        )

    @property
    def combine(self) -> str:
        """How codewords combine: "concat" or "sum"."""
        return COMBINED[self.combine_code]

    @property
    def books(self) -> int:
        """Codes of one row."""
        return int(self.firsts.shape[1])

    @property
    def width(self) -> int:
        """Numbers of one codeword."""
        parts = self.books if self.combine == "concat" else 1
        return self.embedding_dim // parts

    # -- checks ---------------------------------------------------------------

    def check_arrays(self) -> None:
        """Raise ValueError if the arrays contradict each other."""
        if not 0 <= self.combine_code < len(COMBINED):
            raise ValueError(f"combine_code must be 0 or 1, got {self.combine_code}")
        firsts = self.firsts
        if firsts is None or firsts.dtype != np.int32 or firsts.ndim != 2:
            raise ValueError("firsts must be int32 of shape (groups, books)")
        if not firsts.size:
            raise ValueError("firsts needs a group and a book")
        if self.combine == "concat" and self.embedding_dim % self.books:
            raise ValueError(
                f"{self.books} books do not divide a row of {self.embedding_dim}"
            )
        check_rows("codewords", self.codewords, [(None, self.width)])
        words = rows_shape(self.codewords)[0]
        if firsts.min() < 0 or firsts.max() >= words:
            raise ValueError(f"firsts must be from 0 to {words - 1}")
        self._validate_groups()
        self._validate_codes(words)

    def _validate_groups(self) -> None:
        groups, starts = len(self.firsts), self.starts
        if groups == 1:
            if starts is not None:
                raise ValueError("a single group needs no starts")
            return
        if (
            starts is None
            or starts.shape != (groups,)
            or not are_first_ids(starts, self.num_embeddings)
        ):
            raise ValueError(f"starts must be {groups} int64 ids that rise from 0")

    def _validate_codes(self, words: int, chunk: int = 1 << 18) -> None:
        """There are codes for each id, and none beyond the last codeword."""
        shape = (self.num_embeddings, self.books)
        if not holds_integers(self.codes) or rows_shape(self.codes) != shape:
            raise ValueError(
                f"codes must be a layout of packed integers of shape {shape}"
            )
        if self.trusted:
            return
        chunk = max(chunk // self.books, 1)
        for start in range(0, self.num_embeddings, chunk):
            ids = np.arange(start, min(start + chunk, self.num_embeddings))
            if int(self.find_codewords(ids).max()) >= words:
                raise ValueError("a code names no codeword")

    def bound_rows(self, held: Mapping[str, float]) -> float:
        """The largest codeword, as often as there are codewords to be added."""
        added = self.books if self.combine == "sum" else 1
        return float(add_up(*[held["codewords"]] * added))

    def count_work(self) -> int:
        """The codes, and the codewords that they name."""
        return part_work(self.codes) + self.books * part_work(self.codewords)

    # -- look-up --------------------------------------------------------------

    def read_codes(self, ids: IdArray) -> IdArray:
        """Codes of checked ids, int64 (m, books)."""
        return self.codes.read_rows(ids).astype(np.int64)

    def find_codewords(self, ids: IdArray) -> IdArray:
        """Rows of `codewords` that the codes of ids name, int64 (m, books)."""
        codes = self.read_codes(ids)
        if self.starts is None:
            return codes + self.firsts[0]
        xp = array_module(ids)
        groups = xp.searchsorted(self.starts, ids, side="right") - 1
        return codes + self.firsts[groups]

    def read_rows(self, ids: IdArray) -> RowArray:
        """Codes, codewords, then concatenation or sum."""
        parts = read_part(self.codewords, self.find_codewords(ids))
        if self.combine == "concat":
            return parts.reshape(len(ids), self.embedding_dim)
        rows = parts[:, 0]
        for j in range(1, self.books):
            rows = rows + parts[:, j]
        return rows

    def describe(self) -> Format | None:
        """Codes and codewords in one kernel."""
        from survey_code.kernels.formats import CodebookFormat, describe_rows

        codes, words = describe_rows(self.codes), describe_rows(self.codewords)
        if codes is None or words is None:
            return None
        return CodebookFormat.of(
            codes, words, self.firsts, self.starts, self.embedding_dim, self.combine
        )

    # -- search without decoding ----------------------------------------------

    def read_scores(self, queries: N, first: int, stop: int) -> N:
        """Inner products of vectors with rows, by table look-up.

        The products of a query with all codewords form a table of ``books x K``
        numbers; the score of a row is the sum of ``books`` of them.
        """
        if self._fits_shared_memory():
            return self._score_fused(queries, first, stop)
        xp = array_module(queries)
        rows = self.find_codewords(xp.arange(first, stop))
        scores = xp.zeros((len(queries), stop - first), dtype=np.float32)
        for j, table in enumerate(self._score_codewords(queries)):
            scores += table[:, rows[:, j]]
        return scores

    def _fits_shared_memory(self) -> bool:
        """Whether one kernel adds up scores: on a GPU, books of one size, and tables
        of a query that fit beside a processor.
        """
        words, books = rows_shape(self.codewords)[0], self.books
        evenly = np.arange(books) * (words // books)
        return (
            is_cupys(self.firsts)
            and self.firsts.shape[0] == 1
            and self.firsts[0].tolist() == evenly.tolist()
            and 4 * words <= 48 * 1024
        )

    def _score_fused(self, queries: N, first: int, stop: int) -> N:
        """Scores by `survey_code.kernels.cuda.scores.score_codes`."""
        from survey_code.kernels.cuda.scores import score_codes

        words = read_all(self.codewords).reshape(self.books, -1, self.width)
        parts = [self._part(queries, j) @ words[j].T for j in range(self.books)]
        tables = array_module(queries).stack(parts, axis=1)  # (m, books, K)
        codes: Any = self.codes.describe()
        scores: Any = score_codes(codes, tables, first, stop)
        return scores

    def _part(self, queries: N, j: int) -> N:
        """The part of each query that meets codewords of book j."""
        if self.combine == "sum":
            return queries
        return queries[:, j * self.width : (j + 1) * self.width]

    def _score_codewords(self, queries: N) -> list[N]:
        """For each book the products of queries with all codewords (m, codewords)."""
        words = read_all(self.codewords)
        if self.combine == "sum":
            return [queries @ words.T] * self.books
        xp = array_module(words)
        # Only a book's own codewords are ever read: leave the others out.
        firsts: list[int] = np.unique(self.firsts.tolist()).tolist()
        ends = dict(zip(firsts, [*firsts[1:], len(words)]))
        tables = []
        for j in range(self.books):
            table = xp.zeros((len(queries), len(words)), dtype=np.float32)
            for start in set(self.firsts[:, j].tolist()):
                own = words[start : ends[start]]
                table[:, start : ends[start]] = self._part(queries, j) @ own.T
            tables.append(table)
        return tables


def holds_integers(part: Layout) -> bool:
    """Whether a layout's rows are packed integers."""
    if isinstance(part, RoutedLayout):
        return all(holds_integers(own) for own in part.parts)
    return isinstance(part, PackedLayout)
