"""DPQ: codes that are learned with the network, through a float table of queries."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import CompressedEmbedding, draw_normal
from survey_code.layouts import CodebookLayout
from survey_code.layouts.codebook import check_bits, codebook_bytes
from survey_code.spec import TableSpec
from survey_code.weight_sharing.vector_quantization.lloyd import (
    check_books,
    plan_books,
)

KINDS = ("vq", "sx")

# Share of the running mean and variance that one batch replaces.
MOMENTUM = 0.1


def straight_through(rows: Tensor, queries: Tensor) -> Tensor:
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


class DPQ(CompressedEmbedding):
    r"""Differentiable product quantisation (key ``dpq``).

    A float row of queries is cut into `books` parts; each names one of K keys, and
    what the network reads is that key's value.  With ``kind="vq"`` keys and values
    are the same codewords, the response of key k to query q is
    :math:`-|q - k|^2`, the gradient goes through to the query, and the codewords
    follow the queries by :math:`|v - \mathrm{sg}(q)|^2`.  With ``kind="sx"`` the
    response is :math:`q \cdot k`, and the gradient is that of the softmax of the
    responses times the values.

    The float queries stay until the end of training, so only what is deployed
    becomes smaller.

    Parameters
    ----------
    spec : TableSpec
    books : int
        Parts of a row, a divisor of the dimension.
    bits : int
        Of a code; K is 2**bits.
    kind : {"vq", "sx"}
    normalize : bool, optional
        Batch normalisation of the responses, without scale and offset: a key
        that answers strongly to every query does not take them all.  By default
        for ``"sx"`` only: a normalised distance no longer names the nearest.
    commitment : float, default 0
        Factor of :math:`|q - \mathrm{sg}(v)|^2`, which pulls queries to codewords.
    temperature : float, default 1
        Of the softmax, where ``kind="sx"``.
    seed : int, default 0

    Raises
    ------
    ValueError
        If an option is not one of those.

    Notes
    -----
    Chen, Li and Sun, "Differentiable Product Quantization for End-to-End
    Embedding Compression" (ICML 2020).  Statistics are those of the different
    ids of a batch, each once.
    """

    def __init__(
        self,
        spec: TableSpec,
        *,
        books: int,
        bits: int,
        kind: str = "vq",
        normalize: bool | None = None,
        commitment: float = 0.0,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        check_options(spec, books, bits, kind, commitment, temperature)
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.books, self.bits, self.kind = int(books), int(bits), kind
        self.clusters = 1 << self.bits
        self.width = spec.embedding_dim // self.books
        self.normalize = kind == "sx" if normalize is None else normalize
        self.commitment, self.temperature = commitment, temperature
        rows = (spec.num_embeddings, spec.embedding_dim)
        words = (self.books, self.clusters, self.width)
        self.queries = nn.Parameter(draw_normal(rows, spec.init_std, [seed, 0]))
        self.values = nn.Parameter(draw_normal(words, spec.init_std, [seed, 1]))
        if kind == "sx":
            self.keys = nn.Parameter(draw_normal(words, spec.init_std, [seed, 2]))
        if self.normalize:
            # Parameters without a gradient: in the precision of the others.
            self.mean = fixed(torch.zeros(self.books, 1, self.clusters))
            self.variance = fixed(torch.ones(self.books, 1, self.clusters))
            with torch.no_grad():
                some = np.random.default_rng([seed, 3]).permutation(len(self.queries))
                sample = torch.from_numpy(some[:4096])
                self.update_statistics(self.respond(self.queries[sample]), 1.0)
        self.pending: list[Tensor] = []

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        books: int | None = None,
        bits: int | None = None,
        kind: str = "vq",
        normalize: bool | None = None,
        commitment: float = 0.0,
        temperature: float = 1.0,
    ) -> dict[str, Any]:
        """The most bits per row that fit beside their codewords."""
        rest = {
            "kind": kind,
            "normalize": kind == "sx" if normalize is None else normalize,
            "commitment": commitment,
            "temperature": temperature,
        }
        check_options(spec, 1, 1, kind, commitment, temperature)
        dim = spec.embedding_dim

        def size(m: int, b: int) -> int:
            return codebook_bytes(spec.num_embeddings, m, b, m << b, dim // m)

        books, bits = plan_books(spec, ratio, size, books=books, bits=bits)
        return {"books": books, "bits": bits, **rest}

    # -- codes ----------------------------------------------------------------

    def respond(self, queries: Tensor) -> Tensor:
        """Answer of every key to every query: (m, dim) -> (books, m, K)."""
        parts = queries.unflatten(1, (self.books, self.width)).transpose(0, 1)
        keys = self.values if self.kind == "vq" else self.keys
        if self.kind == "sx":
            return parts @ keys.transpose(1, 2)  # (books, m, K)
        # Half of |q|^2 - |q - k|^2: for one query the same order.
        halves = -keys.square().sum(2)[:, None] / 2  # (books, 1, K)
        if not self.normalize:
            return torch.baddbmm(halves, parts, keys.transpose(1, 2))
        lengths = parts.square().sum(2, keepdim=True) / 2
        return torch.baddbmm(halves - lengths, parts, keys.transpose(1, 2))

    def update_statistics(self, responses: Tensor, share: float) -> None:
        """Move the running mean and variance towards those of a batch."""
        mean = responses.mean(1, keepdim=True)
        variance = responses.var(1, keepdim=True, unbiased=False)
        self.mean.lerp_(mean, share)
        self.variance.lerp_(variance, share)

    def normalize_responses(self, responses: Tensor) -> Tensor:
        """Batch normalisation; in eval mode by the running statistics."""
        if not self.normalize:
            return responses
        mean: Tensor = self.mean
        variance: Tensor = self.variance
        if self.training and responses.shape[1] > 1:
            with torch.no_grad():
                self.update_statistics(responses, MOMENTUM)
            mean = responses.mean(1, keepdim=True)
            variance = responses.var(1, keepdim=True, unbiased=False)
        # Relative, where the usual constant would drown small responses.
        floor = 1e-6 * variance.detach().mean() + 1e-30
        return (responses - mean) / (variance + floor).sqrt()

    def restrict(self, responses: Tensor, ids: Tensor) -> Tensor:
        """Forbid keys to some ids; here all are allowed."""
        return responses

    def choose(self, ids: Tensor) -> Tensor:
        """Codes of ids, int64 (m,) -> (m, books), without gradients."""
        with torch.no_grad():
            responses = self.normalize_responses(self.respond(self.queries[ids]))
            return self.restrict(responses, ids).argmax(2).T

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
        return functional.embedding(places, rows)

    def embed_trained(self, ids: Tensor) -> Tensor:
        """Rows of different ids, with gradients."""
        queries = functional.embedding(ids, self.queries, sparse=self.sparse_gradients)
        if self.kind == "sx":
            return self.mix_values(queries, ids)
        rows = self.decode(self.choose(ids))
        self.pending.append((rows - queries.detach()).square().mean())
        if self.commitment:
            pull = (queries - rows.detach()).square().mean()
            self.pending.append(self.commitment * pull)
        return straight_through(rows, queries)

    def mix_values(self, queries: Tensor, ids: Tensor) -> Tensor:
        """The value of the strongest key, with the gradient of a softmax."""
        responses = self.normalize_responses(self.respond(queries))
        responses = self.restrict(responses, ids)
        shares = (responses / self.temperature).softmax(2)  # (books, m, K)
        chosen = functional.one_hot(responses.argmax(2), self.clusters)
        chosen = straight_through(chosen.to(shares.dtype), shares)
        return (chosen @ self.values).transpose(0, 1).flatten(1)

    def penalty(self) -> Tensor:
        """What pulls codewords to the queries that name them."""
        pending, self.pending = self.pending, []
        return sum(pending, torch.zeros(()))

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
        words = self.values.detach().float().flatten(0, 1).cpu().numpy()
        return CodebookLayout.from_codes(
            self.all_codes(),
            words.copy(),
            np.arange(self.books) * self.clusters,
            self.embedding_dim,
            self.bits,
        )


def fixed(values: Tensor) -> nn.Parameter:
    """A parameter that is not trained."""
    return nn.Parameter(values, requires_grad=False)


def check_options(
    spec: TableSpec, books: Any, bits: Any, kind: str, commitment: Any, warmth: Any
) -> None:
    """Raise ValueError for options that `DPQ` does not know."""
    check_books(books, spec.embedding_dim)
    check_bits("bits", bits)
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    for name, value, low in (
        ("commitment", commitment, 0.0),
        ("temperature", warmth, 1e-6),
    ):
        number = isinstance(value, float | int) and math.isfinite(value)
        if not number or value < low:
            raise ValueError(f"{name} must be a number from {low:g} up, got {value!r}")
