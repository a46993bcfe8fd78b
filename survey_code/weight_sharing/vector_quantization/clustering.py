"""Clustering: similar rows of a field become one row, frequent ids keep theirs."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from survey_code.embedding import check_range
from survey_code.layouts import CodebookLayout
from survey_code.layouts.codebook import MOST_BITS, codebook_bytes
from survey_code.layouts.layout import as_finite_table
from survey_code.order import largest_first
from survey_code.spec import TableSpec
from survey_code.weight_sharing.vector_quantization.lloyd import (
    cluster_rows,
    count_weights,
)
from survey_code.weight_sharing.vector_quantization.pq import as_numbers


def most_frequent(counts: np.ndarray, heads: int) -> np.ndarray:
    """The ids that occur most often, rising; of equals the lower ids."""
    order = largest_first(counts)[:heads]
    return np.sort(order)


def field_sizes(spec: TableSpec, heads: np.ndarray) -> np.ndarray:
    """Ids of each field that are no heads."""
    fields = np.searchsorted(spec.field_starts, heads, side="right") - 1
    inside = np.bincount(fields, minlength=len(spec.field_starts) - 1)
    sizes: np.ndarray = np.diff(spec.field_starts) - inside
    return sizes


def code_bits(clusters: int) -> int:
    """Bits of a code for so many clusters, at least 1."""
    return max(int(clusters - 1).bit_length(), 1)


class SAEC:
    """One codeword for a cluster of similar rows (key ``clustering``).

    K-means runs in each field alone, with at most `clusters` clusters a field:
    fields with fewer ids lose nothing.  The `heads` most frequent ids of the
    table keep their rows.

    Options: ``clusters``, ``heads``, ``head_share`` (of the budget, when planning),
    ``weighted`` (rows count as often as they occur in training), ``half``.

    Notes
    -----
    Wu et al., "Saec: Similarity-Aware Embedding Compression in Recommendation
    Systems" (2019): clusters of similar rows within a field.  Heads, and the split
    of the budget between them and the clusters, are ours.
    """

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        clusters: int | None = None,
        heads: int | None = None,
        head_share: float = 0.25,
        weighted: bool = True,
        half: bool = False,
    ) -> dict[str, Any]:
        """The most clusters beside heads that take `head_share` of the budget."""
        largest = int(np.diff(spec.field_starts).max())
        check_options(spec.num_embeddings, clusters, heads, head_share)
        number = 2 if half else 4

        def size(most: int, private: int) -> int:
            sizes = field_sizes(spec, most_frequent(spec.train_counts, private))
            return layout_bytes(spec, sizes, most, private, number)

        least = clusters or 1
        budget = spec.require(ratio, smallest=size(least, heads or 0))
        private = heads
        if private is None:
            # Whole rows, as far as the smallest codebook leaves room for them.
            wanted = int(head_share * budget) // (spec.embedding_dim * number)
            private = min(wanted, spec.num_embeddings // 2)
            while private and size(least, private) > budget:
                private //= 2
        most = clusters or last_fitting(
            range(1, min(largest, 1 << MOST_BITS) + 1),
            lambda many: size(many, private) <= budget,
        )
        return {
            "clusters": most,
            "heads": private,
            "weighted": weighted,
            "half": half,
        }

    @classmethod
    def compress(
        cls,
        weight: Any,
        *,
        clusters: int | None = None,
        heads: int = 0,
        weighted: bool = True,
        half: bool = False,
        spec: TableSpec | None = None,
    ) -> CodebookLayout:
        """Cluster the rows of an (n, d) table.

        Parameters
        ----------
        weight : array or tensor, shape (n, d)
        clusters : int, optional
            At most so many in each field; by default 256, or a quarter of its ids.
        heads : int, default 0
            Ids that keep their rows: the most frequent, by the counts of `spec`.
        weighted, half : bool
        spec : TableSpec, optional
            Its fields are clustered each alone.

        Raises
        ------
        ValueError
            If an option does not fit, or the table is not 2-D and finite.
        """
        table = as_finite_table(weight)
        rows, dim = table.shape
        spec = spec or TableSpec.of_shape(rows, dim)
        check_options(rows, clusters, heads, 0.0)
        private = most_frequent(spec.train_counts, heads)
        weights = count_weights(spec, weighted)
        rng = np.random.default_rng(0)
        codes = np.zeros(rows, dtype=np.int64)
        codewords, firsts, total = [], [], 0
        tail = np.ones(rows, dtype=bool)
        tail[private] = False
        for start, stop in itertools.pairwise(spec.field_starts.tolist()):
            ids = start + np.flatnonzero(tail[start:stop])
            firsts.append(total)
            if not len(ids):
                continue
            most = clusters or min(256, -(-len(ids) // 4))
            found = cluster_rows(
                table[ids],
                min(most, len(ids)),
                rng,
                weights=None if weights is None else weights[ids],
            )
            codes[ids] = found.codes
            codewords.append(found.centroids)
            total += len(found.centroids)
        words = np.concatenate(codewords) if total else np.zeros((1, dim))
        groups = len(firsts)
        return CodebookLayout.from_codes(
            codes[tail][:, None],
            as_numbers(words, half),
            np.minimum(firsts, len(words) - 1)[:, None],
            dim,
            code_bits(int(codes.max()) + 1),
            starts=spec.field_starts[:-1].copy() if groups > 1 else None,
            heads=private,
            head_values=as_numbers(table[private], half),
        )


def layout_bytes(
    spec: TableSpec, sizes: np.ndarray, most: int, heads: int, number: int
) -> int:
    """Bytes with at most `most` clusters for each of the fields' `sizes`."""
    clusters = np.minimum(sizes, most)
    return codebook_bytes(
        spec.num_embeddings,
        1,
        code_bits(int(clusters.max())),
        max(int(clusters.sum()), 1),
        spec.embedding_dim,
        groups=len(sizes),
        heads=heads,
        head_width=spec.embedding_dim,
        number=number,
    )


def last_fitting(choices: range, fits: Any) -> int:
    """The last of rising choices that fits; all before it fit, the first always."""
    low, high = 0, len(choices) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(choices[middle]) else (low, middle - 1)
    return choices[low]


def check_options(rows: int, clusters: Any, heads: Any, head_share: Any) -> None:
    """Raise ValueError for numbers that no table can have."""
    if clusters is not None:
        check_range("clusters", clusters, 1, 1 << MOST_BITS)
    if heads is not None:
        check_range("heads", heads, 0, rows)
    if not isinstance(head_share, float | int) or not 0 <= head_share < 1:
        raise ValueError(
            f"head_share must be from 0 up and below 1, got {head_share!r}"
        )
