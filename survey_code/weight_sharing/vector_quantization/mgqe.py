"""MGQE: frequent ids choose among all codewords, rare ones among the first few."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from survey_code.layouts import CodebookLayout
from survey_code.layouts.codebook import check_bits, codebook_bytes
from survey_code.spec import TableSpec
from survey_code.weight_sharing.vector_quantization.clustering import most_frequent
from survey_code.weight_sharing.vector_quantization.dpq import ProductEmbedding
from survey_code.weight_sharing.vector_quantization.lloyd import plan_books


class GranularEmbedding(ProductEmbedding):
    """Multi-granular quantised embeddings (key ``mgqe``).

    DPQ with codebooks that all ids share, of which rare ids may use only the first
    2**tail_bits codewords: their codes are shorter.

    Parameters
    ----------
    spec : TableSpec
    books, bits : int
        As in `ProductEmbedding`, for the heads.
    tail_bits : int
        Of a code of the other ids, at most `bits`.
    head_share : float, default 0.1
        Share of the ids, the most frequent, that are heads.
    seed : int, default 0
    **rest
        As in `ProductEmbedding`.

    Raises
    ------
    ValueError
        If an option is not one of those.

    Notes
    -----
    Kang et al., "Learning Multi-granular Quantized Embeddings for Large-Vocab
    Categorical Features in Recommender Systems" (WWW 2020), with shared codebooks
    of variable size.
    """

    is_head: Tensor

    def __init__(
        self,
        spec: TableSpec,
        *,
        books: int,
        bits: int,
        tail_bits: int,
        head_share: float = 0.1,
        normalize: bool = False,
        commitment: float = 0.0,
        seed: int = 0,
    ) -> None:
        check_tail(bits, tail_bits, head_share)
        super().__init__(
            spec,
            books=books,
            bits=bits,
            normalize=normalize,
            commitment=commitment,
            seed=seed,
        )
        self.tail_bits = int(tail_bits)
        self.heads = most_frequent(spec.train_counts, count_heads(spec, head_share))
        heads = torch.zeros(spec.num_embeddings, dtype=torch.bool)
        heads[torch.from_numpy(self.heads)] = True
        # The spec says it again: no state dict needs it.
        self.register_buffer("is_head", heads, persistent=False)

    @classmethod
    def plan(  # type: ignore[override]
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        books: int | None = None,
        bits: int | None = None,
        tail_bits: int | None = None,
        head_share: float = 0.1,
        normalize: bool = False,
        commitment: float = 0.0,
    ) -> dict[str, Any]:
        """The most bits per head, with codes of the others up to 2 bits shorter."""
        check_tail(bits or 16, tail_bits or 1, head_share)
        if tail_bits is not None and bits is not None and tail_bits > bits:
            raise ValueError(f"tail_bits must be at most {bits}, got {tail_bits}")
        heads, dim = count_heads(spec, head_share), spec.embedding_dim

        def size(m: int, b: int) -> int:
            short = tail_bits or max(b - 2, 1)
            # A tail with longer codes than the head is no choice at all.
            if short > b:
                return spec.full_bytes * 64
            return codebook_bytes(
                spec.num_embeddings, m, short, m << b, dim // m,
                heads=heads, head_bits=b,
            )  # fmt: skip

        books, bits = plan_books(spec, ratio, size, books=books, bits=bits, top=10)
        return {
            "books": books,
            "bits": bits,
            "tail_bits": tail_bits or max(bits - 2, 1),
            "head_share": head_share,
            "normalize": normalize,
            "commitment": commitment,
        }

    def restrict(self, responses: Tensor, ids: Tensor) -> Tensor:
        """Forbid the later keys to ids that are no heads."""
        late = torch.arange(self.clusters, device=ids.device) >= 1 << self.tail_bits
        forbidden = ~self.is_head[ids][:, None] & late  # (m, K)
        return responses.masked_fill(forbidden, -torch.inf)

    def freeze(self) -> CodebookLayout:
        """Two streams of codes, and the values of both."""
        codes = self.all_codes()
        tail = ~self.is_head.cpu().numpy()
        words = self.values.detach().float().flatten(0, 1).cpu().numpy()
        return CodebookLayout.from_codes(
            codes[tail],
            words.copy(),
            np.arange(self.books) * self.clusters,
            self.embedding_dim,
            self.tail_bits,
            heads=self.heads,
            head_codes=codes[~tail],
            head_bits=self.bits,
        )


def count_heads(spec: TableSpec, head_share: float) -> int:
    """Number of heads, at least one."""
    return max(int(head_share * spec.num_embeddings), 1)


def check_tail(bits: Any, tail_bits: Any, head_share: Any) -> None:
    """Raise ValueError for tails with longer codes than heads, or no share."""
    check_bits("bits", bits)
    check_bits("tail_bits", tail_bits)
    if tail_bits > bits:
        raise ValueError(f"tail_bits must be at most {bits}, got {tail_bits}")
    if not isinstance(head_share, float | int) or not 0 < head_share < 1:
        raise ValueError(f"head_share must be above 0 and below 1, got {head_share!r}")
