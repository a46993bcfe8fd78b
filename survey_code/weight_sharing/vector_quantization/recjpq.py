"""RecJPQ: codes from who read what, before training; only codewords are trained."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.embedding import draw_normal, pick_rows
from survey_code.layouts import CodebookLayout
from survey_code.method import Found, Trained
from survey_code.options import option
from survey_code.spec import TableSpec
from survey_code.weight_sharing.vector_quantization.books import (
    PartOptions,
    as_codes,
    check_books,
    copy_words,
    part_choices,
    plan_books,
    product_bytes,
)

NOISE = 1e-5  # of a component's spread, which separates equal values


def rank_into_bins(values: np.ndarray, bins: int) -> np.ndarray:
    """Bins of equal size, by rank: (n, components) -> codes of the same shape.

    Examples
    --------
    >>> rank_into_bins(np.array([[0.1], [7.0], [0.3], [0.2]]), 2).ravel().tolist()
    [0, 1, 1, 0]
    """
    ranks = values.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    codes: np.ndarray = ranks * bins // len(values)
    return codes


def factor_interactions(
    pairs: np.ndarray, split: int, rows: int, parts: int
) -> tuple[np.ndarray, np.ndarray]:
    """The leading singular vectors of the matrix of users and items.

    Parameters
    ----------
    pairs : ndarray of int64, shape (m, 2)
        A user's and an item's id; items are numbered from `split` on.
    split, rows : int
        Users, and ids in all.
    parts : int
        How many singular vectors.

    Returns
    -------
    users, items : ndarray of float64, shapes (split, parts), (rows - split, parts)
        The largest singular value first; of each pair of vectors the sign is that
        for which the item's largest entry is positive.
    """
    from scipy import sparse
    from scipy.sparse.linalg import svds

    shape = (split, rows - split)
    matrix = sparse.csr_array(
        (np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1] - split)), shape=shape
    )
    if parts >= min(shape):
        left, _, right = np.linalg.svd(matrix.toarray(), full_matrices=False)
        left, right = left[:, :parts], right[:parts]
    else:
        # A fixed start: the same vectors each time.
        left, _, right = svds(matrix, parts, v0=np.ones(min(shape)))
        left, right = left[:, ::-1], right[::-1]
    items = right.T
    largest = np.abs(items).argmax(axis=0)
    signs = np.where(items[largest, np.arange(items.shape[1])] < 0, -1.0, 1.0)
    return left * signs, items * signs


def require_interactions(spec: TableSpec) -> np.ndarray:
    """The training pairs of a top-N task.

    Raises
    ------
    ValueError
        If the spec has none, or not two fields.
    """
    if spec.interactions is None or len(spec.field_starts) != 3:
        raise ValueError(
            "codes come from the interactions of users and items, which the spec "
            "of this task does not have"
        )
    return spec.interactions


def code_interactions(spec: TableSpec, books: int, bits: int, seed: int) -> np.ndarray:
    """Codes of users and of items from the interactions, int64 (ids, books).

    Book j is the j-th singular vector, cut into bins of equally many ids.

    Raises
    ------
    ValueError
        If the spec has no interactions, or not two fields.
    """
    pairs = require_interactions(spec)
    split, rows = int(spec.field_starts[1]), spec.num_embeddings
    factors = factor_interactions(pairs, split, rows, books)
    rng = np.random.default_rng([seed, 1])
    codes = []
    for vectors in factors:
        spread = NOISE * vectors.std(axis=0) * rng.standard_normal(vectors.shape)
        found = rank_into_bins(vectors + spread, 1 << bits)
        # Where there are fewer singular vectors than books, the last ones repeat.
        codes.append(found[:, np.arange(books) % found.shape[1]])
    return np.concatenate(codes)


class RecJPQOptions(PartOptions):
    """Options of `RecJPQ`."""

    # Many narrow books store most bits; fewer, longer codewords may still learn more.
    width: int = option(1, "numbers of a codeword at least", low=1, tune=(1, 4))


class RecJPQ(Trained[RecJPQOptions]):
    """Product codes from the interactions, fixed from the start (key ``recjpq``).

    Users and items have books of their own.  Similar ids share codewords because
    they share singular vectors; what is trained are the codewords alone, so that
    training takes as little memory as serving.

    Parameters
    ----------
    spec : TableSpec
        Of a top-N task.
    options : RecJPQOptions
    seed : int, default 0

    Raises
    ------
    ValueError
        If the spec has no interactions.

    Notes
    -----
    Petrov and Macdonald, "RecJPQ: Training Large-Catalogue Sequential
    Recommenders" (WSDM 2024), with the codes by singular vectors.  The paper
    codes the items of a sequence model; here users are coded alike.
    """

    codes: Tensor

    steady = True

    def __init__(self, spec: TableSpec, options: RecJPQOptions, seed: int = 0) -> None:
        check_books(options.books, spec.embedding_dim)
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.books, self.bits = options.books, options.bits
        self.split = int(spec.field_starts[1])
        codes = code_interactions(spec, self.books, self.bits, seed)
        self.register_buffer("codes", as_codes(codes, self.bits))
        words = (2 * self.books << self.bits, spec.embedding_dim // self.books)
        self.codewords = nn.Parameter(draw_normal(words, spec.init_std, [seed, 0]))

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: RecJPQOptions) -> Found:
        """The most bits per row that fit beside the codewords of both fields."""
        require_interactions(spec)
        fewest = int(np.diff(spec.field_starts).min())
        books, bits = plan_books(
            spec, ratio, partial(product_bytes, spec, groups=2),
            options.books, options.bits, rows=fewest,
            choices=part_choices(spec, options.books, options.width, fewest),
        )  # fmt: skip
        return {"books": books, "bits": bits}

    def embed(self, ids: Tensor) -> Tensor:
        """The codewords that the codes name, side by side."""
        flat = ids.flatten()
        group = (flat >= self.split).long()[:, None]
        books = torch.arange(self.books, device=ids.device)
        places = ((group * self.books + books) << self.bits) + self.codes[flat].long()
        parts = pick_rows(places, self.codewords, sparse=self.regime.sparse)
        return parts.reshape(*ids.shape, self.embedding_dim)

    def freeze(self) -> CodebookLayout:
        """Codes, and the codewords of both fields."""
        starts = np.arange(2 * self.books).reshape(2, self.books) << self.bits
        return CodebookLayout.from_codes(
            self.codes.cpu().numpy(),
            copy_words(self.codewords),
            starts,
            self.embedding_dim,
            self.bits,
            starts=np.array([0, self.split]),
        )
