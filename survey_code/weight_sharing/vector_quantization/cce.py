"""CCE: hashed codes first; from time to time, codes by clusters of what was learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import (
    CompressedEmbedding,
    TrainingStep,
    check_range,
    draw_normal,
)
from survey_code.layouts import CodebookLayout
from survey_code.layouts.codebook import check_bits, codebook_bytes
from survey_code.layouts.hashed import draw_multipliers, table_starts, take_digits
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import MOST_ROWS
from survey_code.weight_sharing.vector_quantization.lloyd import (
    average_rows,
    check_books,
    cluster_rows,
    nearest_rows,
    plan_books,
)

# Points of k-means for each of its centroids; the other rows are only assigned.
POINTS = 256


class CCE(CompressedEmbedding):
    r"""Compositional codes, clustered again while training (key ``cce``).

    Part j of row i is :math:`T_j[c_j(i)] + U_j[h_j(i)]`: a codeword by a stored code
    and a helper by a hash.  The codes begin as hashes, too.  `rounds` times, evenly
    over the first part of the training, k-means clusters the parts of all rows: the
    codes become the clusters, the codewords their centroids, every hash is drawn
    anew, and a helper begins as the mean of what its ids are from their centroids.

    Nothing of the size of the full table is trained.

    Parameters
    ----------
    spec : TableSpec
    books : int
        Parts of a row, a divisor of the dimension.
    bits : int
        Of a code; a book has 2**bits codewords.
    helpers : int, optional
        Of a book; by default as many as codewords.
    rounds : int, default 2
    schedule_end : float, default 0.7
        Share of the training after which no round follows.
    seed : int, default 0

    Raises
    ------
    ValueError
        If an option is out of its range.

    Notes
    -----
    Tsang and Ahle, "Clustering the Sketch: Dynamic Compression for Embedding
    Tables" (NeurIPS 2023).  Of each round's hash there is one only, drawn before
    its residuals are averaged; a centroid without rows moves to the row that is
    farthest from its own; rows are weighted by how often they are read.
    """

    shares_rows = True
    codes: Tensor
    index: Tensor
    done: Tensor

    def __init__(
        self,
        spec: TableSpec,
        *,
        books: int,
        bits: int,
        helpers: int | None = None,
        rounds: int = 2,
        schedule_end: float = 0.7,
        seed: int = 0,
    ) -> None:
        check_books(books, spec.embedding_dim)
        check_bits("bits", bits)
        helpers = 1 << bits if helpers is None else helpers
        check_range("helpers", helpers, 1, MOST_ROWS)
        check_rounds(rounds, schedule_end)
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.books, self.bits, self.clusters = int(books), int(bits), 1 << int(bits)
        self.helpers = int(helpers)
        self.width = spec.embedding_dim // self.books
        self.rounds, self.schedule_end, self.seed = rounds, float(schedule_end), seed
        self.counts = np.maximum(spec.train_counts, 1).astype(np.float64)
        kind = np.uint8 if bits <= 8 else np.int32
        everyone = np.arange(spec.num_embeddings)
        codes = np.stack(take_digits(everyone, self.draw_index(0, self.clusters)), 1)
        self.register_buffer("codes", torch.from_numpy(codes.astype(kind)))
        first = self.draw_index(1, self.helpers)
        self.register_buffer("index", torch.from_numpy(first))
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))
        # Two parts add up to the spread of the full table.
        rows = (self.books * (self.clusters + self.helpers), self.width)
        std = spec.init_std / np.sqrt(2)
        self.values = nn.Parameter(draw_normal(rows, std, [seed, 0]))

    def draw_index(self, number: int, rows: int) -> np.ndarray:
        """Hashes into `rows` rows, one for each book; see `take_digits`."""
        rng = np.random.default_rng([self.seed, 1, number])
        pairs = draw_multipliers(rng, self.books)
        rest = np.full((self.books, 2), (1, rows))
        return np.concatenate([pairs, rest], axis=1).astype(np.int64)

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        books: int | None = None,
        bits: int | None = None,
        helpers: int | None = None,
        rounds: int = 2,
        schedule_end: float = 0.7,
    ) -> dict[str, Any]:
        """Books of the longest codes with as many helpers as codewords, at least;
        of equal ones the most.  Helpers, unlike codewords, come in any number, and
        take what is left of the budget.
        """
        check_rounds(rounds, schedule_end)
        if helpers is not None:
            check_range("helpers", helpers, 1, MOST_ROWS)
        dim = spec.embedding_dim

        def size(m: int, b: int) -> int:
            codes = codebook_bytes(spec.num_embeddings, m, b, m << b, dim // m)
            return codes + 4 * dim * (helpers or 1 << b) + 32 * m

        books, bits = plan_books(
            spec, ratio, size, books=books, bits=bits, top=16, large=True,
            choices=None if books else [m for m in (1, 2, 4) if dim % m == 0],
        )  # fmt: skip
        if helpers is None:
            left = spec.budget(ratio) - size(books, bits)
            helpers = (1 << bits) + left // (4 * dim)
        return {
            "books": books, "bits": bits, "helpers": helpers,
            "rounds": rounds, "schedule_end": schedule_end,
        }  # fmt: skip

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
            part = functional.embedding(
                places, self.values, sparse=self.sparse_gradients
            )
            sums = part if sums is None else sums + part
        assert sums is not None
        return sums.reshape(*ids.shape, self.embedding_dim)

    # -- clustering -----------------------------------------------------------

    def advance(self, progress: float) -> None:
        """Nothing moves but by rounds; these follow a step."""

    @torch.no_grad()
    def after_step(self, step: TrainingStep) -> None:
        """Cluster anew where the next round is due."""
        done = int(self.done)
        if done < self.rounds:
            due = self.schedule_end * (done + 1) / self.rounds
            if step.progress >= due:
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
        """Centroids of a sample of rows, and the nearest of each row."""
        size = min(POINTS * self.clusters, len(rows))
        some = np.sort(rng.choice(len(rows), size, replace=False))
        found = cluster_rows(
            rows[some], min(self.clusters, size), rng, weights=self.counts[some]
        )
        return found.centroids, nearest_rows(rows, found.centroids)[0]

    # -- what is deployed ------------------------------------------------------

    def freeze(self) -> CodebookLayout:
        """Codes, codewords, helpers, and the helpers' hashes."""
        values = self.values.detach().float().cpu().numpy()
        words, helpers = np.split(values, [self.books * self.clusters])
        return CodebookLayout.from_codes(
            self.codes.cpu().numpy(),
            words.copy(),
            np.arange(self.books) * self.clusters,
            self.embedding_dim,
            self.bits,
            hashed=helpers.copy(),
            index=self.index.cpu().numpy().copy(),
        )


def check_rounds(rounds: Any, schedule_end: Any) -> None:
    """Raise ValueError unless rounds can be spread over the training."""
    check_range("rounds", rounds, 0, 1000)
    if not isinstance(schedule_end, float | int) or not 0 < schedule_end < 1:
        raise ValueError(f"schedule_end must lie between 0 and 1, got {schedule_end!r}")
