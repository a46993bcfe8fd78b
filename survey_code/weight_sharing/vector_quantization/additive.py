"""LightRec: a row is the sum of one codeword from each of several books."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import CompressedEmbedding, check_range, draw_normal
from survey_code.layouts import CodebookLayout
from survey_code.layouts.codebook import check_bits, codebook_bytes
from survey_code.spec import TableSpec
from survey_code.weight_sharing.vector_quantization.dpq import straight_through
from survey_code.weight_sharing.vector_quantization.lloyd import (
    cluster_rows,
    plan_books,
)

MOST_BOOKS = 16
# Rows from which books are begun: k-means on more finds hardly better ones.
SAMPLE = 50_000


@dataclass
class ResidualCodes:
    """What `quantize_residuals` found.

    Parameters
    ----------
    codes : ndarray of int64, shape (rows, books)
    codewords : ndarray of float64, shape (books, K, dim)
    losses : list of float
        Squared error of the table with 0, 1, 2, ... books; it never rises.
    """

    codes: np.ndarray
    codewords: np.ndarray
    losses: list[float]

    def decode(self) -> np.ndarray:
        """The rows that the codes stand for, float64 (rows, dim)."""
        books = np.arange(len(self.codewords))
        rows: np.ndarray = self.codewords[books, self.codes].sum(axis=1)
        return rows


def quantize_residuals(
    table: np.ndarray, books: int, clusters: int, rng: np.random.Generator
) -> ResidualCodes:
    """Quantise rows, then what is left of them, and so on: one book each time.

    Parameters
    ----------
    table : ndarray of float, shape (rows, dim)
    books : int
    clusters : int
        Codewords of each book, 1 to rows.
    rng : numpy.random.Generator

    Returns
    -------
    ResidualCodes

    Notes
    -----
    Juang and Gray, "Multiple stage vector quantization for speech coding" (1982).

    Examples
    --------
    >>> table = np.array([[0.0], [1.0], [10.0], [11.0]])
    >>> found = quantize_residuals(table, 2, 2, np.random.default_rng(0))
    >>> found.losses[1:], found.decode().ravel().tolist()
    ([1.0, 0.0], [0.0, 1.0, 10.0, 11.0])
    """
    check_range("books", books, 1, MOST_BOOKS)
    left = np.array(table, dtype=np.float64)
    codes, codewords, losses = [], [], [float((left**2).sum())]
    for _ in range(books):
        found = cluster_rows(left, clusters, rng)
        codes.append(found.codes)
        codewords.append(found.centroids)
        left -= found.centroids[found.codes]
        losses.append(float((left**2).sum()))
    return ResidualCodes(np.stack(codes, 1), np.stack(codewords), losses)


class LightRec(CompressedEmbedding):
    r"""Additive codes, learned with the network (key ``lightrec``).

    Row i is :math:`\sum_b C_b[c_b(i)]`, with whole rows as codewords.  For the
    first `warm_up` of the training a float table of queries is trained as usual;
    then residual quantisation of it begins the books.  From there on a query's
    codes are chosen book by book, each the codeword nearest to what is left; the
    gradient goes through to the query, and the codewords follow the queries by
    :math:`|\sum_b C_b[c_b] - \mathrm{sg}(q)|^2`.

    The float queries stay until the end of training, so only what is deployed
    becomes smaller.

    Parameters
    ----------
    spec : TableSpec
    books : int, 1 to 16
    bits : int
        Of a code; a book has 2**bits codewords.
    warm_up : float, default 0.5
        Share of the training with float rows.
    pull : float, default 1
        Factor of what pulls codewords to queries.
    seed : int, default 0

    Raises
    ------
    ValueError
        If an option is out of its range.

    Notes
    -----
    Lian et al., "LightRec: A Memory and Search-Efficient Recommender System"
    (WWW 2020).  The paper chooses codes by a learned similarity through a softmax
    and also distils a teacher's scores; here the nearest codeword is chosen, from
    books that begin as residual quantisation.
    """

    begun: Tensor

    def __init__(
        self,
        spec: TableSpec,
        *,
        books: int,
        bits: int,
        warm_up: float = 0.5,
        pull: float = 1.0,
        seed: int = 0,
    ) -> None:
        check_additive(books, bits, warm_up, pull)
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.books, self.bits, self.clusters = int(books), int(bits), 1 << int(bits)
        self.schedule_end, self.pull, self.seed = float(warm_up), float(pull), seed
        rows = (spec.num_embeddings, spec.embedding_dim)
        words = (self.books, self.clusters, spec.embedding_dim)
        self.queries = nn.Parameter(draw_normal(rows, spec.init_std, [seed, 0]))
        self.codewords = nn.Parameter(draw_normal(words, spec.init_std, [seed, 1]))
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))
        self.pending: list[Tensor] = []
        self._spread_codewords(spec.init_std)

    @torch.no_grad()
    def _spread_codewords(self, std: float) -> None:
        """Give sums of the chosen codewords the spread of the table."""
        sample = self.queries[:1000]
        for _ in range(5):  # the choice depends a little on the scale
            found = self.decode(self.choose(sample)).std(unbiased=False)
            self.codewords.mul_(std / found.clamp(min=1e-30))

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        books: int | None = None,
        bits: int | None = None,
        warm_up: float = 0.5,
        pull: float = 1.0,
    ) -> dict[str, Any]:
        """The most bits per row that fit beside their codewords."""
        check_additive(books or 1, bits or 1, warm_up, pull)
        dim = spec.embedding_dim

        def size(m: int, b: int) -> int:
            return codebook_bytes(spec.num_embeddings, m, b, m << b, dim)

        books, bits = plan_books(
            spec, ratio, size, books=books, bits=bits,
            choices=list(range(1, MOST_BOOKS + 1)), top=10,
        )  # fmt: skip
        return {"books": books, "bits": bits, "warm_up": warm_up, "pull": pull}

    # -- codes ----------------------------------------------------------------

    @torch.no_grad()
    def choose(self, queries: Tensor) -> Tensor:
        """Codes of queries, (m, dim) -> (m, books): each the nearest to the rest."""
        left, codes = queries.detach(), []
        for words in self.codewords:  # (K, dim)
            halves = -words.square().sum(1) / 2
            codes.append(torch.addmm(halves, left, words.T).argmax(1))
            left = left - words[codes[-1]]
        return torch.stack(codes, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Sums of the codewords that codes name: (m, books) -> (m, dim)."""
        rows = self.codewords[0, codes[:, 0]]
        for book in range(1, self.books):
            rows = rows + self.codewords[book, codes[:, book]]
        return rows

    def embed(self, ids: Tensor) -> Tensor:
        """Float rows first; later sums of codewords, with the queries' gradient."""
        different, places = torch.unique(ids, return_inverse=True)
        queries = functional.embedding(
            different, self.queries, sparse=self.sparse_gradients
        )
        if not self.training:
            return functional.embedding(places, self.decode(self.choose(queries)))
        if not bool(self.begun):
            return functional.embedding(places, queries)
        rows = self.decode(self.choose(queries))
        if torch.is_grad_enabled() and len(rows):
            gap = (rows - queries.detach()).square().mean()
            self.pending.append(self.pull * gap)
        return functional.embedding(places, straight_through(rows, queries))

    def penalty(self) -> Tensor:
        """What pulls codewords to the queries that name them."""
        pending, self.pending = self.pending, []
        return sum(pending, torch.zeros(()))

    @torch.no_grad()
    def advance(self, progress: float) -> None:
        """After the warm-up, begin the books with the queries' residuals."""
        self.pending.clear()
        if bool(self.begun) or progress < self.schedule_end:
            return
        rng = np.random.default_rng([self.seed, 2])
        rows = len(self.queries)
        some = np.sort(rng.choice(rows, min(rows, SAMPLE), replace=False))
        table = self.queries.detach().cpu().double().numpy()[some]
        found = quantize_residuals(
            table, self.books, min(self.clusters, len(some)), rng
        )
        words = torch.from_numpy(found.codewords).to(self.codewords)
        self.codewords[:, : words.shape[1]] = words
        self.begun.fill_(True)

    def freeze(self, chunk: int = 16384) -> CodebookLayout:
        """Codes and codewords."""
        codes = torch.cat([self.choose(part) for part in self.queries.split(chunk)])
        words = self.codewords.detach().float().flatten(0, 1).cpu().numpy()
        return CodebookLayout.from_codes(
            codes.cpu().numpy(),
            words.copy(),
            np.arange(self.books) * self.clusters,
            self.embedding_dim,
            self.bits,
            "sum",
        )


def check_additive(books: Any, bits: Any, warm_up: Any, pull: Any) -> None:
    """Raise ValueError for options that `LightRec` does not know."""
    check_range("books", books, 1, MOST_BOOKS)
    check_bits("bits", bits)
    if not isinstance(warm_up, float | int) or not 0 <= warm_up < 1:
        raise ValueError(f"warm_up must be from 0 up and below 1, got {warm_up!r}")
    if not isinstance(pull, float | int) or not 0 < pull < np.inf:
        raise ValueError(f"pull must be a positive number, got {pull!r}")
