"""DPQ: codes that are learned with the network, through a float table of queries."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import CompressedEmbedding, draw_normal, pick_rows
from survey_code.layouts import CodebookLayout
from survey_code.method import Found, Trained
from survey_code.options import option
from survey_code.spec import TableSpec
from survey_code.weight_sharing.vector_quantization.books import (
    PartOptions,
    check_books,
    copy_words,
    part_choices,
    plan_books,
    product_bytes,
)

# How a key answers a query: by their distance, or by their product.
RESPONSES = ("vq", "sx")

# Share of the running mean and variance that one batch replaces.
MOMENTUM = 0.1


def pass_through(rows: Tensor, queries: Tensor) -> Tensor:
    """`rows` forward; backward, the gradient goes to `queries` unchanged."""
    return queries + (rows - queries).detach()


def count_perplexity(codes: np.ndarray, clusters: int) -> np.ndarray:
    """How many codewords of each book are in use: exp of the codes' entropy.

    Parameters
    ----------
    codes : ndarray of integers, shape (rows, books)
    clusters : int

    Returns
    -------
    ndarray of float64, shape (books,)
        `clusters` where all are used equally, 1 where only one is.

    Examples
    --------
    >>> count_perplexity(np.array([[0, 0], [1, 0]]), 4).tolist()
    [2.0, 1.0]
    """
    found = []
    for column in np.asarray(codes).T:
        share = np.bincount(column, minlength=clusters) / len(column)
        share = share[share > 0]
        found.append(float(np.exp(-(share * np.log(share)).sum())))
    return np.array(found)


class QueryTable(CompressedEmbedding):
    """Float rows that learn, and codewords that are read in their place.

    The float rows, the queries, stay until the end of training, so only what is
    deployed becomes smaller.
    """

    def __init__(self, spec: TableSpec, seed: int) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        rows = (spec.num_embeddings, spec.embedding_dim)
        self.queries = nn.Parameter(draw_normal(rows, spec.init_std, [seed, 0]))
        self.pending: list[Tensor] = []

    def replace(
        self, queries: Tensor, rows: Tensor, pull: float = 1.0, commitment: float = 0.0
    ) -> Tensor:
        """Rows forward, the gradient to the queries; each is pulled to the other."""
        if torch.is_grad_enabled() and len(rows):
            gap = (rows - queries.detach()).square().mean()
            self.pending.append(pull * gap)
            if commitment:
                gap = (queries - rows.detach()).square().mean()
                self.pending.append(commitment * gap)
        return pass_through(rows, queries)

    def penalty(self) -> Tensor:
        """What pulls codewords to the queries that name them."""
        pending, self.pending = self.pending, []
        return sum(pending, torch.zeros(()))


class ResponseNorm(nn.Module):
    """Batch normalisation of responses (books, m, K), without scale and offset.

    A key that answers strongly to every query then does not take them all.
    """

    def __init__(self, books: int, clusters: int) -> None:
        super().__init__()
        # Parameters without a gradient: in the precision of the others.
        zeros, ones = torch.zeros(books, 1, clusters), torch.ones(books, 1, clusters)
        self.mean = nn.Parameter(zeros, requires_grad=False)
        self.variance = nn.Parameter(ones, requires_grad=False)

    @torch.no_grad()
    def follow(self, responses: Tensor, share: float) -> None:
        """Move the running mean and variance towards those of a batch."""
        self.mean.lerp_(responses.mean(1, keepdim=True), share)
        variance = responses.var(1, keepdim=True, unbiased=False)
        self.variance.lerp_(variance, share)

    def forward(self, responses: Tensor) -> Tensor:
        """By the batch's mean and variance; in eval mode by the running ones."""
        mean: Tensor = self.mean
        variance: Tensor = self.variance
        if self.training and responses.shape[1] > 1:
            self.follow(responses, MOMENTUM)
            mean = responses.mean(1, keepdim=True)
            variance = responses.var(1, keepdim=True, unbiased=False)
        # Relative, where the usual constant would drown small responses.
        floor = 1e-6 * variance.detach().mean() + 1e-30
        return (responses - mean) / (variance + floor).sqrt()


class LearnedCodes(QueryTable):
    r"""Queries cut into parts; each names one of K keys, whose value is read.

    With ``kind="vq"`` keys and values are the same codewords, the response of key k to
    query q is :math:`-|q - k|^2`, the gradient goes through to the query, and the
    codewords follow the queries by :math:`|v - \mathrm{sg}(q)|^2`.  With ``kind="sx"``
    the response is :math:`q \cdot k`, and the gradient is that of the softmax of the
    responses times the values.

    Parameters
    ----------
    spec : TableSpec
    books : int
        Parts of a row, a divisor of the dimension.
    bits : int
        Of a code; K is 2**bits.
    seed : int
    kind : {"vq", "sx"}
    normalize : bool
        Batch normalisation of the responses.
    commitment : float
        Factor of :math:`|q - \mathrm{sg}(v)|^2`, which pulls queries to codewords.
    temperature : float
        Of the softmax, where ``kind="sx"``.

    Raises
    ------
    ValueError
        If rows cannot be cut into so many parts.
    """

    def __init__(
        self,
        spec: TableSpec,
        books: int,
        bits: int,
        seed: int,
        *,
        kind: str = "vq",
        normalize: bool = False,
        commitment: float = 0.0,
        temperature: float = 1.0,
    ) -> None:
        check_books(books, spec.embedding_dim)
        super().__init__(spec, seed)
        self.books, self.bits, self.clusters = books, bits, 1 << bits
        self.width = spec.embedding_dim // books
        self.kind, self.commitment, self.temperature = kind, commitment, temperature
        words = (books, self.clusters, self.width)
        self.values = nn.Parameter(draw_normal(words, spec.init_std, [seed, 1]))
        if kind == "sx":
            self.keys = nn.Parameter(draw_normal(words, spec.init_std, [seed, 2]))
        self.norm = ResponseNorm(books, self.clusters) if normalize else None
        if self.norm is not None:
            some = np.random.default_rng([seed, 3]).permutation(len(self.queries))
            sample = torch.from_numpy(some[:4096])
            self.norm.follow(self.respond(self.queries[sample]), 1.0)

    # -- codes ----------------------------------------------------------------

    def respond(self, queries: Tensor) -> Tensor:
        """Answer of every key to every query: (m, dim) -> (books, m, K)."""
        parts = queries.unflatten(1, (self.books, self.width)).transpose(0, 1)
        keys = self.values if self.kind == "vq" else self.keys
        if self.kind == "sx":
            return parts @ keys.transpose(1, 2)  # (books, m, K)
        # Half of |q|^2 - |q - k|^2: for one query the same order.
        halves = -keys.square().sum(2)[:, None] / 2  # (books, 1, K)
        if self.norm is not None:
            halves = halves - parts.square().sum(2, keepdim=True) / 2
        return torch.baddbmm(halves, parts, keys.transpose(1, 2))

    def restrict(self, responses: Tensor, ids: Tensor) -> Tensor:
        """Forbid keys to some ids; here all are allowed."""
        return responses

    def answer(self, queries: Tensor, ids: Tensor) -> Tensor:
        """Normalised responses of the keys that each id may name, (books, m, K)."""
        responses = self.respond(queries)
        if self.norm is not None:
            responses = self.norm(responses)
        return self.restrict(responses, ids)

    @torch.no_grad()
    def choose(self, ids: Tensor) -> Tensor:
        """Codes of ids, int64 (m,) -> (m, books), without gradients."""
        return self.answer(self.queries[ids], ids).argmax(2).T

    def decode(self, codes: Tensor) -> Tensor:
        """Values that codes name: (m, books) -> (m, dim)."""
        books = torch.arange(self.books, device=codes.device)
        return self.values[books, codes].flatten(1)

    def embed(self, ids: Tensor) -> Tensor:
        """The chosen values; gradients as if the choice were smooth."""
        different, places = torch.unique(ids, return_inverse=True)
        if self.training and torch.is_grad_enabled() and ids.numel():
            rows = self.embed_trained(different)
        else:
            rows = self.decode(self.choose(different))
        return pick_rows(places, rows)

    def embed_trained(self, ids: Tensor) -> Tensor:
        """Rows of different ids, with gradients."""
        queries = pick_rows(ids, self.queries, sparse=self.regime.sparse)
        if self.kind == "sx":
            return self.mix_values(queries, ids)
        rows = self.decode(self.choose(ids))
        return self.replace(queries, rows, commitment=self.commitment)

    def mix_values(self, queries: Tensor, ids: Tensor) -> Tensor:
        """The value of the strongest key, with the gradient of a softmax."""
        responses = self.answer(queries, ids)
        shares = (responses / self.temperature).softmax(2)  # (books, m, K)
        chosen = functional.one_hot(responses.argmax(2), self.clusters)
        chosen = pass_through(chosen.to(shares.dtype), shares)
        return (chosen @ self.values).transpose(0, 1).flatten(1)

    # -- what is deployed ------------------------------------------------------

    def all_codes(self, chunk: int = 16384) -> np.ndarray:
        """Codes of all ids, int64 (num_embeddings, books)."""
        was_training = self.training
        self.eval()
        device = self.queries.device
        parts = [
            self.choose(ids).cpu()
            for ids in torch.arange(self.num_embeddings, device=device).split(chunk)
        ]
        self.train(was_training)
        return torch.cat(parts).numpy()

    def freeze(self) -> CodebookLayout:
        """Codes and values."""
        return CodebookLayout.from_codes(
            self.all_codes(),
            copy_words(self.values),
            np.arange(self.books) * self.clusters,
            self.embedding_dim,
            self.bits,
        )


class DPQOptions(PartOptions):
    """Options of `DPQ`."""

    kind: str = option(
        "vq", "response by distance or by product", choices=RESPONSES, tune=("vq", "sx")
    )
    # A normalised distance no longer names the nearest.
    normalize: bool | None = option(
        None, "batch normalisation of the responses; None: of products, not of "
        "distances", tune=(None, True),
    )  # fmt: skip
    commitment: float = option(
        0.0, "factor of what pulls queries to codewords", low=0, tune=(0.0, 0.25)
    )
    temperature: float = option(1.0, "of the softmax of kind sx", low=1e-6)


class DPQ(LearnedCodes, Trained[DPQOptions]):
    """Differentiable product quantisation (key ``dpq``): see `LearnedCodes`.

    Notes
    -----
    Chen, Li and Sun, "Differentiable Product Quantization for End-to-End
    Embedding Compression" (ICML 2020).  Their code normalises the responses of both
    kinds over a batch; here those of kind "vq" only if asked, since a distance that is
    normalised no longer names the nearest codeword.  Statistics are those of the
    different ids of a batch, each once.
    """

    def __init__(self, spec: TableSpec, options: DPQOptions, seed: int = 0) -> None:
        asked = options.normalize
        super().__init__(
            spec,
            options.books,
            options.bits,
            seed,
            kind=options.kind,
            normalize=options.kind == "sx" if asked is None else asked,
            commitment=options.commitment,
            temperature=options.temperature,
        )

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: DPQOptions) -> Found:
        """The most bits per row that fit beside their codewords."""
        size = partial(product_bytes, spec)
        books, bits = plan_books(
            spec, ratio, size, options.books, options.bits,
            choices=part_choices(spec, options.books, options.width),
        )  # fmt: skip
        return {"books": books, "bits": bits}
