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
from survey_code.weight_sharing.vector_quantization.dpq import DPQ
from survey_code.weight_sharing.vector_quantization.lloyd import (
    check_books,
    divisors,
    most_bits,
)


class MGQE(DPQ):
    """Multi-granular quantised embeddings (key ``mgqe``).

    DPQ with codebooks that all ids share, of which rare ids may use only the first
    2**tail_bits codewords: their codes are shorter.

    Parameters
    ----------
    spec : TableSpec
    books, bits : int
        As in `DPQ`, for the heads.
    tail_bits : int
        Of a code of the other ids, at most `bits`.
    head_share : float, default 0.1
        Share of the ids, the most frequent, that are heads.
    seed : int, default 0
    **rest
        As in `DPQ`.

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
        """The most bits of codes, of all ids together, that fit beside their
        codewords, with codes of the tail one or two bits shorter than the heads'.
        """
        check_tail(bits or 16, tail_bits or 1, head_share)
        if tail_bits is not None and bits is not None and tail_bits > bits:
            raise ValueError(f"tail_bits must be at most {bits}, got {tail_bits}")
        rows, dim = spec.num_embeddings, spec.embedding_dim
        if books is not None:
            check_books(books, dim)
        heads = count_heads(spec, head_share)
        longest = max(most_bits(rows, top=10), tail_bits or 1)
        sizes = {
            (m, b, t): codebook_bytes(
                rows, m, t, m << b, dim // m, heads=heads, head_bits=b
            )
            for m in ([books] if books else divisors(dim))
            for b in ([bits] if bits else range(1, longest + 1))
            for t in ([tail_bits] if tail_bits else {max(b - 2, 1), max(b - 1, 1)})
            # A tail with longer codes than the head is no choice at all.
            if t <= b
        }
        budget = spec.require(ratio, smallest=min(sizes.values()))
        # Of equals the fewest books, whose codewords are longest.
        books, bits, tail_bits = max(
            (plan for plan, size in sizes.items() if size <= budget),
            key=lambda p: (p[0] * (heads * p[1] + (rows - heads) * p[2]), -p[0]),
        )
        return {
            "books": books,
            "bits": bits,
            "tail_bits": tail_bits,
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
