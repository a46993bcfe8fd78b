"""CCE: hashed codes first; from time to time, codes by clusters of what was learned."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.embedding import TrainingStep, draw_normal, pick_rows
from survey_code.kernels.cuda.tensors import reaches_kernels
from survey_code.layouts import AddedLayout, CodebookLayout, HashedLayout
from survey_code.layouts.hashed import mixed_index, table_starts, take_digits
from survey_code.method import Found, Trained
from survey_code.options import option, planned
from survey_code.spec import TableSpec
from survey_code.weight_sharing.lloyd import (
    POINTS,
    assigning_on,
    average_rows,
    cluster_rows,
)
from survey_code.weight_sharing.vector_quantization.books import (
    BookOptions,
    as_codes,
    check_books,
    copy_words,
    plan_books,
    product_bytes,
)

# Largest number of helpers of a book: that of 31 bits.
MOST_HELPERS = 2**31 - 1


class CCEOptions(BookOptions):
    """Options of `CCE`."""

    helpers: int | None = planned(
        "helpers of a book; without a budget as many as codewords",
        low=1, high=MOST_HELPERS,
    )  # fmt: skip
    rounds: int | None = option(
        None, "times to cluster; None: after each epoch", low=0, high=1000,
        tune=(None, 1),
    )  # fmt: skip
    schedule_end: float = option(
        0.7, "share of the training after which no round follows",
        above=0, below=1, tune=(0.7, 0.4),
    )  # fmt: skip


def composed_bytes(spec: TableSpec, helpers: int | None, books: int, bits: int) -> int:
    """Bytes with so many helpers, by default as many as codewords.

    Helpers, unlike codewords, come in any number.
    """
    rows = 4 * spec.embedding_dim * (helpers or 1 << bits)
    return product_bytes(spec, books, bits, beside=rows + 40 * books)


class CCE(Trained[CCEOptions]):
    r"""Compositional codes, clustered again while training (key ``cce``).

    Part j of row i is :math:`T_j[c_j(i)] + U_j[h_j(i)]`: a codeword by a stored code
    and a helper by a hash.  The codes begin as hashes, too.  After each epoch, or
    `rounds` times evenly, up to `schedule_end` of the training, k-means clusters the
    parts of all rows: the codes become the clusters, the codewords their centroids,
    every hash is drawn anew, and a helper begins as the mean of what its ids are from
    their centroids.

    Nothing of the size of the full table is trained.

    Notes
    -----
    Tsang and Ahle, "Clustering the Sketch: Dynamic Compression for Embedding
    Tables" (NeurIPS 2023).  A training of one epoch has one round before its end.  The
    authors count no bytes for codes; here they are stored and counted.  Of each
    round's hash there is one only, drawn before its residuals are averaged; a centroid
    without rows moves to the row that is farthest from its own; rows are weighted by
    how often they are read.
    """

    shares_rows = True
    codes: Tensor
    index: Tensor
    done: Tensor

    def __init__(self, spec: TableSpec, options: CCEOptions, seed: int = 0) -> None:
        check_books(options.books, spec.embedding_dim)
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.books, self.bits = options.books, options.bits
        self.clusters = 1 << self.bits
        self.helpers = options.helpers or self.clusters
        self.width = spec.embedding_dim // self.books
        self.rounds, self.schedule_end = options.rounds, options.schedule_end
        self.seed = seed
        self.counts = np.maximum(spec.train_counts, 1).astype(np.float64)
        everyone = np.arange(spec.num_embeddings)
        codes = np.stack(take_digits(everyone, self.draw_index(0, self.clusters)), 1)
        self.register_buffer("codes", as_codes(codes, self.bits))
        first = self.draw_index(1, self.helpers)
        self.register_buffer("index", torch.from_numpy(first))
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))
        # Two parts add up to the spread of the full table.
        rows = (self.books * (self.clusters + self.helpers), self.width)
        std = spec.init_std / np.sqrt(2)
        self.values = nn.Parameter(draw_normal(rows, std, [seed, 0]))

    def draw_index(self, number: int, rows: int) -> np.ndarray:
        """Hashes into `rows` rows, one for each book; see `take_digits`."""
        return mixed_index([self.seed, 1, number], [rows] * self.books)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: CCEOptions) -> Found:
        """Books of the longest codes, of equal ones the most; helpers take the rest."""
        size = partial(composed_bytes, spec, options.helpers)
        books, bits = plan_books(
            spec, ratio, size, options.books, options.bits, top=16,
            choices=[m for m in (1, 2, 4) if spec.embedding_dim % m == 0],
            value=lambda plan: (plan[1], plan[0]),
        )  # fmt: skip
        left = (spec.budget(ratio) - size(books, bits)) // (4 * spec.embedding_dim)
        helpers = options.helpers or (1 << bits) + left
        return {"books": books, "bits": bits, "helpers": helpers}

    # -- rows -----------------------------------------------------------------

    def places(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of `values`: codewords and helpers of ids, both (m, books)."""
        starts = torch.tensor(table_starts(self.index), device=ids.device)
        words = torch.arange(self.books, device=ids.device) * self.clusters
        helpers = torch.stack(take_digits(ids, self.index), 1) + starts
        return self.codes[ids].long() + words, helpers + self.books * self.clusters

    def embed(self, ids: Tensor) -> Tensor:
        """Codewords plus helpers, part by part."""
        sums = None
        for places in self.places(ids.flatten()):
            part = pick_rows(places, self.values, sparse=self.regime.sparse)
            sums = part if sums is None else sums + part
        assert sums is not None
        return sums.reshape(*ids.shape, self.embedding_dim)

    # -- clustering -----------------------------------------------------------

    @torch.no_grad()
    def after_step(self, step: TrainingStep) -> None:
        """Cluster anew where the next round is due."""
        done, rounds = int(self.done), self.rounds
        if rounds is None:
            epochs = self.regime.epochs
            rounds = max(int(self.schedule_end * epochs), 1)
            due = min((done + 1) / epochs, self.schedule_end)
        else:
            due = self.schedule_end * (done + 1) / max(rounds, 1)
        if done < rounds and step.progress >= due:
            self.cluster()

    @torch.no_grad()
    def cluster(self) -> None:
        """One round: codes, codewords, hashes and helpers from the rows' parts."""
        self.done += 1
        number = int(self.done)
        index = torch.from_numpy(self.draw_index(1 + number, self.helpers))
        index = index.to(self.index)
        everyone = torch.arange(self.num_embeddings, device=self.codes.device)
        helpers = [d.cpu().numpy() for d in take_digits(everyone, index)]
        sizes = [self.clusters] * self.books + [self.helpers] * self.books
        words = [part.cpu().double().numpy() for part in self.values.split(sizes)]
        old = self.places(everyone)
        rng = np.random.default_rng([self.seed, 2, number])
        for book in range(self.books):
            # The part's rows, put together one book at a time: (ids, width).
            both = [self.values[places[:, book]] for places in old]
            rows = (both[0] + both[1]).cpu().double().numpy()
            centroids, codes = self.cluster_part(rows, rng)
            words[book][: len(centroids)] = centroids
            left = rows - words[book][codes]
            means, _ = average_rows(left, helpers[book], self.helpers, self.counts)
            words[self.books + book] = means
            self.codes[:, book] = torch.from_numpy(codes).to(self.codes)
        self.index.copy_(index)
        self.values.copy_(torch.from_numpy(np.concatenate(words)).to(self.values))

    def cluster_part(
        self, rows: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Centroids of a sample of rows, and the nearest of each row.

        A table that is trained on a GPU has them found there.
        """
        on_gpu = reaches_kernels(self.values)
        with assigning_on("cuda") if on_gpu else nullcontext():
            found = cluster_rows(
                rows, min(self.clusters, len(rows)), rng, weights=self.counts,
                sample=POINTS,
            )  # fmt: skip
        return found.centroids, found.codes

    def inherit(self, old: Self) -> None:
        """All as it is, and then one round, in which rows weigh by these counts."""
        super().inherit(old)
        self.cluster()

    # -- what is deployed ------------------------------------------------------

    def freeze(self) -> AddedLayout:
        """Codes with their codewords, and the hashed helpers."""
        words, helpers = np.split(copy_words(self.values), [self.books * self.clusters])
        coded = CodebookLayout.from_codes(
            self.codes.cpu().numpy(),
            words.copy(),
            np.arange(self.books) * self.clusters,
            self.embedding_dim,
            self.bits,
        )
        hashed = HashedLayout(
            helpers.copy(),
            self.index.cpu().numpy().copy(),
            self.num_embeddings,
            self.embedding_dim,
            "concat",
        )
        return AddedLayout([coded, hashed])
