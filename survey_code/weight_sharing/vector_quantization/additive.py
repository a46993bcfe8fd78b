"""LightRec: a row is the sum of one codeword from each of several books."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.embedding import draw_normal, pick_rows
from survey_code.layouts import CodebookLayout
from survey_code.layouts.codebook import codebook_bytes
from survey_code.method import Found, Trained
from survey_code.options import option, planned
from survey_code.spec import TableSpec
from survey_code.weight_sharing.lloyd import MOST_BOOKS, quantize_residuals
from survey_code.weight_sharing.vector_quantization.books import (
    BookOptions,
    copy_words,
    plan_books,
)
from survey_code.weight_sharing.vector_quantization.dpq import QueryTable

# Rows from which books are begun: k-means on more finds hardly better ones.
FIRST_ROWS = 50_000


def additive_bytes(spec: TableSpec, books: int, bits: int) -> int:
    """Bytes of codes, and of codewords as long as a row."""
    codewords = books << bits
    return codebook_bytes(
        spec.num_embeddings, books, bits, codewords, spec.embedding_dim
    )


class LightRecOptions(BookOptions):
    """Options of `LightRec`."""

    books: int = planned("codes of a row", low=1, high=MOST_BOOKS)
    warm_up: float = option(
        0.5, "share of the training with float rows", low=0, below=1, tune=(0.5, 0.3)
    )
    pull: float = option(1.0, "factor of what pulls codewords to queries", above=0)


class LightRec(QueryTable, Trained[LightRecOptions]):
    r"""Additive codes, learned with the network (key ``lightrec``).

    Row i is :math:`\sum_b C_b[c_b(i)]`, with whole rows as codewords.  For the
    first `warm_up` of the training a float table of queries is trained as usual;
    then residual quantisation of it begins the books.  From there on a query's
    codes are chosen book by book, each the codeword nearest to what is left; the
    gradient goes through to the query, and the codewords follow the queries by
    :math:`|\sum_b C_b[c_b] - \mathrm{sg}(q)|^2`.

    Notes
    -----
    Lian et al., "LightRec: A Memory and Search-Efficient Recommender System"
    (WWW 2020).  The paper chooses codes by a learned similarity through a softmax
    and also distils a teacher's scores; here the nearest codeword is chosen, from
    books that begin as residual quantisation.  The paper codes items; here users are
    coded alike.
    """

    begun: Tensor

    def __init__(
        self, spec: TableSpec, options: LightRecOptions, seed: int = 0
    ) -> None:
        super().__init__(spec, seed)
        self.books, self.bits = options.books, options.bits
        self.clusters = 1 << options.bits
        self.schedule_end, self.pull, self.seed = options.warm_up, options.pull, seed
        words = (self.books, self.clusters, spec.embedding_dim)
        self.codewords = nn.Parameter(draw_normal(words, spec.init_std, [seed, 1]))
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))
        self._spread_codewords(spec.init_std)

    @torch.no_grad()
    def _spread_codewords(self, std: float) -> None:
        """Give sums of the chosen codewords the spread of the table."""
        sample = self.queries[:1000]
        for _ in range(5):  # the choice depends a little on the scale
            found = self.decode(self.choose(sample)).std(unbiased=False)
            # Where all choose the same sum, no factor can spread the sums.
            if found > 0.1 * self.codewords.std(unbiased=False):
                self.codewords.mul_(std / found)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: LightRecOptions) -> Found:
        """The most bits per row that fit beside their codewords."""
        books, bits = plan_books(
            spec, ratio, partial(additive_bytes, spec), options.books, options.bits,
            choices=range(1, MOST_BOOKS + 1), top=10,
        )  # fmt: skip
        return {"books": books, "bits": bits}

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
        queries = pick_rows(different, self.queries, sparse=self.regime.sparse)
        if not self.training:
            return pick_rows(places, self.decode(self.choose(queries)))
        if not bool(self.begun):
            return pick_rows(places, queries)
        rows = self.replace(queries, self.decode(self.choose(queries)), self.pull)
        return pick_rows(places, rows)

    @torch.no_grad()
    def advance(self, progress: float) -> None:
        """After the warm-up, begin the books with the queries' residuals."""
        self.pending.clear()
        if bool(self.begun) or progress < self.schedule_end:
            return
        rng = np.random.default_rng([self.seed, 2])
        rows = len(self.queries)
        some = np.sort(rng.choice(rows, min(rows, FIRST_ROWS), replace=False))
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
        return CodebookLayout.from_codes(
            codes.cpu().numpy(),
            copy_words(self.codewords),
            np.arange(self.books) * self.clusters,
            self.embedding_dim,
            self.bits,
            "sum",
        )
