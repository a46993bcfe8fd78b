"""The codebook layout: a row is a few small integers that name shared codewords.

The codes of all rows form one stream of bits in 32-bit words: code j of row i
starts at bit ``(i * books + j) * bits`` and is found in at most two neighbouring
words.  Codewords of all books stand below one another; ``firsts`` says where each
book begins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from survey_code.bits import (
    MOST_BITS,
    find_marks,
    mark_ids,
    pack_stream,
    read_stream,
    stream_words,
    unpack_words,
)
from survey_code.checks import check_range
from survey_code.layouts.hashed import table_starts, take_digits
from survey_code.layouts.layout import IdArray, Layout, N, RowArray, array_module
from survey_code.layouts.nearest import check_candidates, check_nearest, choose_nearest

if TYPE_CHECKING:
    from survey_code.kernels.cuda.rows import FusedRows

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
    heads: int = 0,
    head_bits: int = 0,
    head_width: int = 0,
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
    heads : int, default 0
        Ids that are stored apart, with codes of `head_bits` or as
        `head_width` numbers.
    number : {4, 2}
        Bytes of a number.
    """
    size = 4 * stream_words((rows - heads) * books, bits)
    size += codewords * width * number + 4 * groups * books
    if groups > 1:
        size += 8 * groups
    if heads:
        size += 12 * -(-rows // 64) + heads * head_width * number
        if head_bits:
            size += 4 * stream_words(heads * books, head_bits)
    return size


class CodebookLayout(Layout):
    """Codes, codebooks, and how the codewords of a row combine.

    Parameters
    ----------
    codes : ndarray of uint32
        Stream of the codes of all ids that are no heads, id after id; see
        `pack_stream`.
    codewords : ndarray of float32 or float16, shape (codewords, width)
        ``width`` is `embedding_dim` where codewords are added, and
        ``embedding_dim / books`` where they are put side by side.
    firsts : ndarray of int32, shape (groups, books)
        Row of `codewords` at which each book starts.
    num_embeddings, embedding_dim, bits : int
        ``bits`` of one code, 1 to 16.
    combine : {"concat", "sum"}
    starts : ndarray of int64, shape (groups,), optional
        First id of each group, rising from 0; left out for a single group.
    rotation : ndarray of float32, shape (dim, dim), optional
        Rows are multiplied by it, once decoded.
    marks, ranks : ndarray of uint64 and uint32, optional
        Which ids are heads; see `mark_ids`.
    head_codes : ndarray of uint32, optional
        Stream of the heads' codes, each of `head_bits` bits, for the same books.
    head_values : ndarray of float32 or float16, shape (heads, dim), optional
        Rows of the heads, where these have no codes.
    hashed : ndarray of float32, shape (rows, width), optional
        For ``combine="concat"``: one small table per book, below one another, whose
        rows are added to the codewords.
    index : ndarray of int64, shape (books, 4), optional
        How an id picks a row of each; see `survey_code.layouts.hashed`.

    Raises
    ------
    ValueError
        If the arrays contradict each other, or a code names no codeword.
    """

    name: ClassVar[str] = "codebook"
    array_names: ClassVar[tuple[str, ...]] = (
        "codes",
        "codewords",
        "firsts",
        "starts",
        "rotation",
        "marks",
        "ranks",
        "head_codes",
        "head_values",
        "hashed",
        "index",
    )
    shape_names: ClassVar[tuple[str, ...]] = (
        "num_embeddings",
        "embedding_dim",
        "bits",
        "head_bits",
        "combine_code",
    )

    codes: np.ndarray
    codewords: np.ndarray
    firsts: np.ndarray
    starts: np.ndarray | None
    rotation: np.ndarray | None
    marks: np.ndarray | None
    ranks: np.ndarray | None
    head_codes: np.ndarray | None
    head_values: np.ndarray | None
    hashed: np.ndarray | None
    index: np.ndarray | None

    def __init__(
        self,
        codes: np.ndarray,
        codewords: np.ndarray,
        firsts: np.ndarray,
        num_embeddings: int,
        embedding_dim: int,
        bits: int,
        combine: str = "concat",
        *,
        head_bits: int = 0,
        **optional: np.ndarray | None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        if combine not in COMBINED:
            raise ValueError(f"combine must be one of {COMBINED}, got {combine!r}")
        self.combine_code = COMBINED.index(combine)
        self.bits, self.head_bits = int(bits), int(head_bits)
        self.codes = np.asarray(codes)
        self.codewords = np.asarray(codewords)
        self.firsts = np.asarray(firsts)
        unknown = sorted(set(optional) - set(self.array_names[3:]))
        if unknown:
            raise ValueError(f"unknown array {unknown[0]!r}")
        for name in self.array_names[3:]:
            array = optional.get(name)
            setattr(self, name, None if array is None else np.asarray(array))
        self.validate()

    @classmethod
    def from_codes(
        cls,
        codes: np.ndarray,
        codewords: np.ndarray,
        firsts: np.ndarray,
        embedding_dim: int,
        bits: int,
        combine: str = "concat",
        *,
        heads: np.ndarray | None = None,
        head_codes: np.ndarray | None = None,
        head_bits: int = 0,
        head_values: np.ndarray | None = None,
        **optional: np.ndarray | None,
    ) -> CodebookLayout:
        """Pack codes, shape (rows, books), and heads, which are rising ids."""
        rows = len(codes)
        if heads is not None and len(heads):
            rows += len(heads)
            marks, ranks = mark_ids(heads, rows)
            optional |= {"marks": marks, "ranks": ranks, "head_values": head_values}
            if head_codes is not None:
                optional["head_codes"] = pack_stream(head_codes, head_bits)
        else:
            head_bits = 0
        firsts = np.atleast_2d(np.asarray(firsts, dtype=np.int32))
        stream = pack_stream(codes, bits)
        return cls(
            stream,
            np.ascontiguousarray(codewords),
            firsts,
            rows,
            embedding_dim,
            bits,
            combine,
            head_bits=head_bits,
            **optional,
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

    def validate(self) -> None:
        """Raise ValueError if the arrays contradict each other."""
        check_range("bits", self.bits, 1, MOST_BITS)
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
        words = self.codewords
        if (
            words is None
            or words.dtype not in (np.float32, np.float16)
            or words.ndim != 2
            or words.shape[1] != self.width
            or not len(words)
        ):
            raise ValueError(
                f"codewords must be float32 or float16 of shape (codewords, "
                f"{self.width})"
            )
        if firsts.min() < 0 or firsts.max() >= len(words):
            raise ValueError(f"firsts must be from 0 to {len(words) - 1}")
        self._validate_groups()
        self._validate_rotation()
        heads = self._validate_heads()
        check_stream("codes", self.codes, (self.num_embeddings - heads), self)
        self._validate_hashed()
        self._validate_codes()

    def _validate_groups(self) -> None:
        groups, starts = len(self.firsts), self.starts
        if groups == 1:
            if starts is not None:
                raise ValueError("a single group needs no starts")
            return
        if (
            starts is None
            or starts.dtype != np.int64
            or starts.shape != (groups,)
            or starts[0] != 0
            or bool((starts[1:] <= starts[:-1]).any())
            or starts[-1] >= self.num_embeddings
        ):
            raise ValueError(f"starts must be {groups} int64 ids that rise from 0")

    def _validate_rotation(self) -> None:
        shape = (self.embedding_dim, self.embedding_dim)
        if self.rotation is not None and (
            self.rotation.dtype != np.float32 or self.rotation.shape != shape
        ):
            raise ValueError(f"rotation must be float32 of shape {shape}")

    def _validate_heads(self) -> int:
        """The number of heads."""
        given = [self.head_codes is not None, self.head_values is not None]
        if self.marks is None:
            if any(given) or self.ranks is not None or self.head_bits:
                raise ValueError("heads need marks")
            return 0
        words = -(-self.num_embeddings // 64)
        if self.marks.dtype != np.uint64 or self.marks.shape != (words,):
            raise ValueError(f"marks must be uint64 of shape {(words,)}")
        bits = unpack_words(self.marks)
        if bits[self.num_embeddings :].any():
            raise ValueError("marks beyond the last id must be 0")
        heads = np.flatnonzero(bits)
        _, ranks = mark_ids(heads, self.num_embeddings)
        if self.ranks is None or not (
            self.ranks.dtype == np.uint32 and np.array_equal(self.ranks, ranks)
        ):
            raise ValueError("ranks must count the marks below each word")
        if sum(given) != 1:
            raise ValueError("heads need either codes or values")
        if self.head_codes is not None:
            check_range("head_bits", self.head_bits, 1, MOST_BITS)
            check_stream("head_codes", self.head_codes, len(heads), self)
        values = self.head_values
        if values is not None:
            shape = (len(heads), self.embedding_dim)
            if values.dtype not in (np.float32, np.float16) or values.shape != shape:
                raise ValueError(
                    f"head_values must be float32 or float16 of shape {shape}"
                )
        return len(heads)

    def _validate_hashed(self) -> None:
        hashed, index = self.hashed, self.index
        if (hashed is None) != (index is None):
            raise ValueError("hashed and index belong together")
        if hashed is None or index is None:
            return
        if (
            self.combine != "concat"
            or index.dtype != np.int64
            or index.shape != (self.books, 4)
            or (index[:, 2:] < 1).any()
        ):
            raise ValueError(
                "index must be int64 of shape (books, 4), with divisors and moduli "
                "from 1 up, and combine 'concat'"
            )
        shape = (sum(index[:, 3].tolist()), self.width)
        if hashed.dtype != np.float32 or hashed.shape != shape:
            raise ValueError(f"hashed must be float32 of shape {shape}")

    def _validate_codes(self, chunk: int = 1 << 18) -> None:
        """No code names a codeword beyond the last one."""
        for start in range(0, self.num_embeddings, chunk):
            stop = min(start + chunk, self.num_embeddings)
            ids, codes = self.read_codes(np.arange(start, stop))
            if ids.size and int(self._add_firsts(ids, codes).max()) >= len(
                self.codewords
            ):
                raise ValueError("a code names no codeword")

    # -- look-up --------------------------------------------------------------

    def find_heads(self, ids: IdArray) -> tuple[np.ndarray, IdArray]:
        """Whether each id is a head, and its place among heads or the others."""
        xp = array_module(ids)
        if self.marks is None or self.ranks is None:
            return xp.zeros(len(ids), dtype=bool), ids
        head, rank = find_marks(self.marks, self.ranks, ids)
        return head, xp.where(head, rank, ids - rank)

    def read_codes(self, ids: IdArray) -> tuple[IdArray, IdArray]:
        """Of checked ids those that have codes, and their codes (m, books)."""
        xp = array_module(ids)
        head, places = self.find_heads(ids)
        if self.head_values is not None:
            ids, places = ids[~head], places[~head]
        places = places[:, None] * self.books + xp.arange(self.books)
        if self.head_codes is None:
            return ids, read_stream(self.codes, places, self.bits)
        codes = xp.empty(places.shape, dtype=np.int64)
        codes[head] = read_stream(self.head_codes, places[head], self.head_bits)
        codes[~head] = read_stream(self.codes, places[~head], self.bits)
        return ids, codes

    def _add_firsts(self, ids: IdArray, codes: IdArray) -> IdArray:
        """Rows of `codewords` that the codes of ids name."""
        if self.starts is None:
            return codes + self.firsts[0]
        xp = array_module(ids)
        groups = xp.searchsorted(self.starts, ids, side="right") - 1
        return codes + self.firsts[groups]

    def _find_hashed(self, ids: IdArray) -> list[IdArray]:
        """Rows of `hashed` that ids pick, book by book."""
        if self.index is None:
            return []
        digits = take_digits(ids, self.index)
        return [own + start for own, start in zip(digits, table_starts(self.index))]

    def fuse(self) -> FusedRows:
        """Codes, codewords and hashed rows in one kernel; a rotation after it."""
        from survey_code.kernels.cuda.composed import place_codebook
        from survey_code.kernels.cuda.multiplied import TurnedRows

        heads = self.head_values
        if self.rotation is not None and heads is not None:
            # Heads are stored as they are: what the rotation then makes of these.
            xp = array_module(heads)
            turned = xp.linalg.solve(
                self.rotation.astype(np.float64).T, heads.astype(np.float64).T
            )
            heads = turned.T.astype(np.float32)
        rows = place_codebook(
            (self.num_embeddings, self.embedding_dim),
            self.combine,
            self.codes,
            self.bits,
            self.codewords,
            self.firsts,
            starts=self.starts,
            marks=self.marks,
            ranks=self.ranks,
            head_codes=self.head_codes,
            head_bits=self.head_bits,
            head_values=heads,
            hashed=self.hashed,
            index=None if self.index is None else self.index.tolist(),
        )
        return rows if self.rotation is None else TurnedRows(rows, self.rotation)

    def read_rows(self, ids: IdArray) -> RowArray:
        """Codes, codewords, then concatenation or sum."""
        xp = array_module(ids)
        if self.head_values is None:
            return self._decode(*self.read_codes(ids))
        rows = xp.empty((len(ids), self.embedding_dim), dtype=np.float32)
        head, places = self.find_heads(ids)
        rows[head] = self.head_values[places[head]]
        rows[~head] = self._decode(*self.read_codes(ids))
        return rows

    def _decode(self, ids: IdArray, codes: IdArray) -> RowArray:
        parts = self.codewords[self._add_firsts(ids, codes)].astype(np.float32)
        if self.hashed is not None:
            for j, places in enumerate(self._find_hashed(ids)):
                parts[:, j] += self.hashed[places]
        if self.combine == "concat":
            rows = parts.reshape(len(ids), self.embedding_dim)
        else:
            rows = parts[:, 0]
            for j in range(1, self.books):
                rows = rows + parts[:, j]
        if self.rotation is None:
            return rows
        # Unlike BLAS, einsum gives a row the same digits whatever is read with it.
        return array_module(rows).einsum("mi,ij->mj", rows, self.rotation)

    # -- search without decoding ----------------------------------------------

    def scores(self, queries: N, candidates: tuple[int, int] | None = None) -> N:
        """Inner products of vectors with rows, by table look-up.

        The products of a query with all codewords form a table of ``books x K``
        numbers; the score of a row is the sum of ``books`` of them.

        Parameters
        ----------
        queries : array of float, shape (m, embedding_dim)
        candidates : (first, stop), optional
            Range of ids to compare with; by default all rows.

        Returns
        -------
        array of float32, shape (m, stop - first)

        Raises
        ------
        ValueError
            If the queries have another shape, or the candidates are no range of
            ids.
        """
        first, stop = check_candidates(candidates, self.num_embeddings)
        queries = self._check_queries(queries)
        turned = queries if self.rotation is None else queries @ self.rotation.T
        if self._fits_shared_memory():
            return self._score_fused(turned, first, stop)
        xp = array_module(self.codes)
        total = xp.zeros((len(queries), stop - first), dtype=np.float32)
        everyone = xp.arange(first, stop)
        ids, codes = self.read_codes(everyone)
        tables = self._score_codewords(turned)
        places = ids - first
        summed = xp.zeros((len(queries), len(ids)), dtype=np.float32)
        rows = self._add_firsts(ids, codes)
        for j, table in enumerate(tables):
            summed += table[:, rows[:, j]]
        if self.hashed is not None:
            for j, own in enumerate(self._find_hashed(ids)):
                table = self._part(turned, j) @ self.hashed.T
                summed += table[:, own]
        total[:, places] = summed
        if self.head_values is not None:
            head, ranks = self.find_heads(everyone)
            values = self.head_values[ranks[head]].astype(np.float32)
            total[:, xp.flatnonzero(head)] = queries @ values.T
        return total

    def _fits_shared_memory(self) -> bool:
        """Whether one kernel adds up scores: on a GPU, books of one size, no heads
        with rows, no hashed rows, and tables of a query that fit beside a processor.
        """
        words, books = len(self.codewords), self.books
        evenly = np.arange(books) * (words // books)
        return (
            self.device is not None
            and self.head_values is None
            and self.hashed is None
            and self.firsts.shape[0] == 1
            and self.firsts[0].tolist() == evenly.tolist()
            and 4 * words <= 48 * 1024
        )

    def _score_fused(self, queries: N, first: int, stop: int) -> N:
        """Scores by `survey_code.kernels.cuda.scores.score_codes`."""
        from survey_code.kernels.cuda.scores import score_codes

        size = len(self.codewords) // self.books
        words = self.codewords.astype(np.float32).reshape(self.books, size, -1)
        parts = [self._part(queries, j) @ words[j].T for j in range(self.books)]
        tables = array_module(queries).stack(parts, axis=1)  # (m, books, K)
        rows: Any = getattr(self.device, "unturned", self.device)
        scores: Any = score_codes(rows, tables, first, stop)
        return scores

    def _part(self, queries: N, j: int) -> N:
        """The part of each query that meets codewords of book j."""
        if self.combine == "sum":
            return queries
        return queries[:, j * self.width : (j + 1) * self.width]

    def _score_codewords(self, queries: N) -> list[N]:
        """For each book the products of queries with all codewords (m, codewords)."""
        words = self.codewords.astype(np.float32)
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

    def topk(
        self,
        queries: N,
        k: int,
        candidates: tuple[int, int] | None = None,
        chunk: int = 256,
    ) -> N:
        """Ids of the k rows with the highest scores, the best first.

        Of equal scores the lower id comes first.

        Parameters
        ----------
        queries, candidates
            As for `scores`.
        k : int
        chunk : int
            Queries scored at once.

        Returns
        -------
        array of int64, shape (m, k)

        Raises
        ------
        ValueError
            If k is not from 1 to the number of candidates.
        """
        first, stop = check_candidates(candidates, self.num_embeddings)
        check_nearest(k, stop - first)
        queries = self._check_queries(queries)
        best = array_module(self.codes).empty((len(queries), k), dtype=np.int64)
        for start in range(0, len(queries), chunk):
            part = self.scores(queries[start : start + chunk], (first, stop))
            best[start : start + chunk] = first + choose_nearest(part, k)
        return best

    def _check_queries(self, queries: N) -> N:
        given = array_module(self.codes).asarray(queries)
        if (
            given.ndim != 2
            or given.shape[1] != self.embedding_dim
            or given.dtype.kind != "f"
        ):
            raise ValueError(
                f"queries must be vectors of shape (m, {self.embedding_dim}), got "
                f"dtype {given.dtype} and shape {given.shape}"
            )
        return given.astype(np.float32, copy=False)


def check_stream(
    name: str, words: np.ndarray | None, rows: int, layout: CodebookLayout
) -> None:
    """Raise ValueError unless a stream holds the codes of so many rows."""
    bits = layout.bits if name == "codes" else layout.head_bits
    shape = (stream_words(rows * layout.books, bits),)
    if words is None or words.dtype != np.uint32 or words.shape != shape:
        raise ValueError(f"{name} must be uint32 of shape {shape}")
