"""Clustering: similar rows of a field become one row, frequent ids keep theirs."""

from __future__ import annotations

import itertools

import numpy as np

from survey_code.bits import MOST_BITS, count_bits
from survey_code.budget import largest_fitting, require_counts
from survey_code.checks import check_range
from survey_code.layouts import CodebookLayout, DenseLayout, Layout
from survey_code.layouts.codebook import codebook_bytes
from survey_code.layouts.routed import keep_apart, routing_bytes
from survey_code.method import AfterTraining, Found
from survey_code.options import Options, option, planned
from survey_code.spec import TableSpec
from survey_code.weight_sharing.lloyd import POINTS, cluster_rows, count_reads
from survey_code.weight_sharing.vector_quantization.books import as_numbers, pick_heads


class SAECOptions(Options):
    """Options of `SAEC`."""

    clusters: int | None = planned(
        "at most so many in each field; without a budget 256, or a quarter of its ids",
        low=1, high=1 << MOST_BITS,
    )  # fmt: skip
    heads: int = planned("frequent ids that keep their rows", otherwise=0, low=0)
    head_share: float = option(
        0.25, "of the budget, for heads", low=0, below=1, tune=(0.25, 0.0, 0.5)
    )
    weighted: bool = option(
        True,
        "rows count as often as they occur in training, where that is known",
        tune=(True, False),
    )
    half: bool = option(False, "store float16 numbers")
    sample: int = option(POINTS, "rows seen for each cluster; 0: all rows", low=0)


class SAEC(AfterTraining[SAECOptions]):
    """One codeword for a cluster of similar rows (key ``clustering``).

    K-means runs in each field alone, so that fields with fewer ids than clusters lose
    nothing.  The most frequent ids of the table, its heads, keep their rows.

    Notes
    -----
    Wu et al., "Saec: Similarity-Aware Embedding Compression in Recommendation
    Systems" (2019): clusters of similar rows within a field.  Heads, and the split
    of the budget between them and the clusters, are ours.
    """

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: SAECOptions) -> Found:
        """The most clusters beside heads that take `head_share` of the budget."""
        heads, budget = plan_heads(spec, ratio, options), spec.budget(ratio)

        tails = count_tails(spec, pick_heads(spec, heads))

        def fits(clusters: int) -> bool:
            return clustered_bytes(spec, clusters, heads, options.half, tails) <= budget

        largest = min(int(np.diff(spec.field_starts).max()), 1 << MOST_BITS)
        most = options.clusters or largest_fitting(1, largest, fits)
        return {"clusters": most, "heads": heads}

    @classmethod
    def compress(
        cls, weight: np.ndarray, spec: TableSpec, options: SAECOptions
    ) -> Layout:
        """Cluster the rows of each field that are no heads."""
        check_range("heads", options.heads, 0, len(weight))
        if options.heads:
            require_counts("heads", spec.train_counts)
        heads = pick_heads(spec, options.heads)
        tail = np.ones(len(weight), dtype=bool)
        tail[heads] = False
        own = as_numbers(weight[heads], options.half)
        if not tail.any():
            return DenseLayout(own)
        codes, words, firsts = cluster_fields(weight, tail, spec, options)
        tails = count_tails(spec, heads)
        starts = np.cumsum(tails) - tails  # of the fields, among the tail
        filled = tails > 0
        clustered = CodebookLayout.from_codes(
            codes[tail][:, None],
            as_numbers(words, options.half),
            firsts[filled, None],
            weight.shape[1],
            count_bits(int(codes.max()) + 1),
            starts=starts[filled] if filled.sum() > 1 else None,
        )
        return keep_apart(len(weight), heads, own, clustered)


def count_tails(spec: TableSpec, heads: np.ndarray) -> np.ndarray:
    """Ids of each field that are no heads."""
    fields = np.searchsorted(spec.field_starts, heads, side="right") - 1
    sizes = np.diff(spec.field_starts)
    return sizes - np.bincount(fields, minlength=len(sizes))


def plan_heads(spec: TableSpec, ratio: float, options: SAECOptions) -> int:
    """Ids that keep their rows, as far as the smallest codebook leaves room.

    Raises
    ------
    OutOfReach
        If not even those that were asked for have room.
    """
    check_range("heads", options.heads or 0, 0, spec.num_embeddings)

    def size(heads: int) -> int:
        return clustered_bytes(spec, options.clusters or 1, heads, options.half)

    budget = spec.require(ratio, smallest=size(options.heads or 0))
    if options.heads is not None or not spec.train_counts.any():
        return options.heads or 0
    row = spec.embedding_dim * (2 if options.half else 4)
    heads = min(int(options.head_share * budget) // row, spec.num_embeddings // 2)
    while heads and size(heads) > budget:
        heads //= 2
    return heads


def clustered_bytes(
    spec: TableSpec, most: int, heads: int, half: bool, tails: np.ndarray | None = None
) -> int:
    """Bytes with at most `most` clusters in each field, beside the heads.

    `tails` are the fields' other ids, counted anew where they are not given.
    """
    if tails is None:
        tails = count_tails(spec, pick_heads(spec, heads))
    clusters = np.minimum(tails, most)
    number, groups = 2 if half else 4, max(int((tails > 0).sum()), 1)
    size = codebook_bytes(
        spec.num_embeddings - heads, 1, count_bits(int(clusters.max())),
        max(int(clusters.sum()), 1), spec.embedding_dim, groups=groups,
        number=number,
    )  # fmt: skip
    own = heads * spec.embedding_dim * number
    return size + own + routing_bytes(spec.num_embeddings, [heads])


def cluster_fields(
    table: np.ndarray, tail: np.ndarray, spec: TableSpec, options: SAECOptions
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clusters of each field's rows in the tail.

    Parameters
    ----------
    table : ndarray of float32, shape (rows, dim)
    tail : ndarray of bool, shape (rows,)
        Which rows to cluster.
    spec : TableSpec
    options : SAECOptions

    Returns
    -------
    codes : ndarray of int64, shape (rows,)
        Cluster of each row within its field; 0 outside the tail.
    words : ndarray of float64, shape (clusters of all fields, dim)
        At least one.
    firsts : ndarray of int64, shape (fields,)
        Where the clusters of each field begin.
    """
    weights, rng = count_reads(spec, options.weighted), np.random.default_rng(0)
    codes = np.zeros(len(table), dtype=np.int64)
    words: list[np.ndarray] = []
    firsts: list[int] = []
    for start, stop in itertools.pairwise(spec.field_starts.tolist()):
        ids = start + np.flatnonzero(tail[start:stop])
        firsts.append(sum(len(part) for part in words))
        if not len(ids):
            continue
        most = options.clusters or min(256, -(-len(ids) // 4))
        own = None if weights is None else weights[ids]
        whole = len(ids) == stop - start  # then nothing is copied
        found = cluster_rows(
            table[start:stop] if whole else table[ids], min(most, len(ids)), rng,
            weights=own, sample=options.sample,
        )  # fmt: skip
        codes[ids] = found.codes
        words.append(found.centroids)
    every = np.concatenate(words) if words else np.zeros((1, table.shape[1]))
    return codes, every, np.minimum(firsts, len(every) - 1)
