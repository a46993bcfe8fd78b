"""MGQE: frequent ids choose among all codewords, rare ones among the first few."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from survey_code.bits import MOST_BITS
from survey_code.layouts import CodebookLayout, Layout, PackedLayout
from survey_code.layouts.routed import keep_apart
from survey_code.method import Found, Trained
from survey_code.options import option, planned
from survey_code.spec import TableSpec
from survey_code.weight_sharing.vector_quantization.books import (
    PartOptions,
    choose_among,
    choose_fitting,
    copy_words,
    most_bits,
    part_choices,
    pick_heads,
    product_bytes,
)
from survey_code.weight_sharing.vector_quantization.dpq import LearnedCodes


class MGQEOptions(PartOptions):
    """Options of `MGQE`; `books` and `bits` are those of the heads."""

    tail_bits: int = planned(
        "bits of a code of the other ids, at most `bits`", low=1, high=MOST_BITS
    )
    normalize: bool = option(False, "batch normalisation of the responses")
    commitment: float = option(
        0.0, "factor of what pulls queries to codewords", low=0, tune=(0.0, 0.25)
    )
    head_share: float = option(
        0.1, "share of the ids that are heads", above=0, below=1, tune=(0.1, 0.3)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tail_bits and self.bits and self.tail_bits > self.bits:
            raise ValueError(
                f"tail_bits must be at most {self.bits}, got {self.tail_bits}"
            )


class MGQE(LearnedCodes, Trained[MGQEOptions]):
    """Multi-granular quantised embeddings (key ``mgqe``).

    DPQ with codebooks that all ids share, of which ids that are no heads, the most
    frequent, may use only the first 2**tail_bits codewords: their codes are shorter.

    Notes
    -----
    Kang et al., "Learning Multi-granular Quantized Embeddings for Large-Vocab
    Categorical Features in Recommender Systems" (WWW 2020), with shared codebooks
    of variable size.
    """

    is_head: Tensor

    def __init__(self, spec: TableSpec, options: MGQEOptions, seed: int = 0) -> None:
        super().__init__(
            spec,
            options.books,
            options.bits,
            seed,
            normalize=options.normalize,
            commitment=options.commitment,
        )
        self.tail_bits = options.tail_bits
        self.heads = pick_heads(spec, count_heads(spec, options.head_share))
        heads = torch.zeros(spec.num_embeddings, dtype=torch.bool)
        heads[torch.from_numpy(self.heads)] = True
        # The spec says it again: no state dict needs it.
        self.register_buffer("is_head", heads, persistent=False)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: MGQEOptions) -> Found:
        """The most bits of codes, of all ids together, that fit beside codewords."""
        heads = count_heads(spec, options.head_share)
        tails = spec.num_embeddings - heads
        choices = part_choices(spec, options.books, options.width)
        sizes = {
            (m, b, t): product_bytes(spec, m, t, heads=heads, head_bits=b)
            for m in choose_among(options.books, choices)
            for b, t in pair_lengths(spec, options)
        }
        found = choose_fitting(
            spec, ratio, sizes,
            lambda plan: (plan[0] * (heads * plan[1] + tails * plan[2]), -plan[0]),
        )  # fmt: skip
        return dict(zip(("books", "bits", "tail_bits"), found))

    def restrict(self, responses: Tensor, ids: Tensor) -> Tensor:
        """Forbid the later keys to ids that are no heads."""
        late = torch.arange(self.clusters, device=ids.device) >= 1 << self.tail_bits
        forbidden = ~self.is_head[ids][:, None] & late  # (m, K)
        return responses.masked_fill(forbidden, -torch.inf)

    def freeze(self) -> CodebookLayout:
        """Codes of two lengths, and the values of both."""
        codes = self.all_codes()
        tail = ~self.is_head.cpu().numpy()
        packed: Layout = PackedLayout.from_integers(codes, self.bits)
        if tail.any():  # a table of one row is all head
            packed = self._pack_apart(codes, tail)
        firsts = np.arange(self.books, dtype=np.int32)[None] * np.int32(self.clusters)
        return CodebookLayout(
            packed, copy_words(self.values), firsts, self.embedding_dim
        )

    def _pack_apart(self, codes: np.ndarray, tail: np.ndarray) -> Layout:
        return keep_apart(
            self.num_embeddings,
            self.heads,
            PackedLayout.from_integers(codes[~tail], self.bits),
            PackedLayout.from_integers(codes[tail], self.tail_bits),
        )


def count_heads(spec: TableSpec, head_share: float) -> int:
    """Number of heads, at least one."""
    return max(int(head_share * spec.num_embeddings), 1)


def pair_lengths(spec: TableSpec, options: MGQEOptions) -> list[tuple[int, int]]:
    """Bits of heads and tail to choose from: the tail's are one or two fewer."""
    longest = max(most_bits(spec.num_embeddings, top=10), options.tail_bits or 1)
    return [
        (bits, tail)
        for bits in choose_among(options.bits, range(1, longest + 1))
        for tail in choose_among(
            options.tail_bits, {max(bits - 2, 1), max(bits - 1, 1)}
        )
        # A tail with longer codes than the head is no choice at all.
        if tail <= bits
    ]
