"""Rule-based mixed dimensions: a formula says how wide a group's rows are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional

from survey_code.checks import check_choice
from survey_code.layouts.grouped import MAX_GROUPS, grouped_bytes
from survey_code.method import Found, Trained
from survey_code.mixed_dimension.grouped import (
    FieldDimensions,
    GroupedEmbedding,
    Integers,
)
from survey_code.mixed_dimension.search import rank_by_frequency
from survey_code.mixed_dimension.widths import bisect_path, plan_widths
from survey_code.options import Options, found, option
from survey_code.order import largest_first
from survey_code.spec import TableSpec, as_integers

# The widest that is told apart, and the smallest power of a popularity: so no factor
# of a steep law overflows, and no width is too large for 64 bits.
MOST, FAINTEST = 2.0**62, 1e-290

# -- rules -------------------------------------------------------------------


def power_law_widths(
    popularity: ArrayLike, alpha: float, base: float, power_of_two: bool = False
) -> np.ndarray:
    r"""Widths that fall with popularity: a power law.

    With :math:`p_g` the chance that one row of group g is read,

    .. math:: d_g = \max(1, \mathrm{round}(b \, (p_g / \max p)^{\alpha})).

    Parameters
    ----------
    popularity : array of float, shape (groups,)
        Reads per row, up to a common factor.  Every sample reads one id of each
        field, so that a field's rows have popularity 1 / rows.
    alpha : float
        0 makes all groups equally wide.  At 1 the widths are proportional to the
        popularity: fields get equally many numbers.
    base : float
        Width of the most popular group.
    power_of_two : bool, default False
        Round the logarithm instead of the width.

    Returns
    -------
    ndarray of int64, shape (groups,)

    Notes
    -----
    Ginart et al., "Mixed Dimension Embeddings with Application to
    Memory-Efficient Recommendation Systems" (2021).

    Examples
    --------
    >>> power_law_widths([1 / 4, 1 / 400, 1 / 40000], alpha=0.5, base=16)
    array([16,  2,  1])
    """
    # What exceeds the dimension is cut later; here it must be a whole number.
    widths = np.clip(base * raise_shares(popularity, alpha), 1.0, MOST)
    if power_of_two:
        widths = 2.0 ** np.rint(np.log2(widths))
    return np.rint(widths).astype(np.int64)


def raise_shares(popularity: ArrayLike, alpha: float) -> np.ndarray:
    """Popularities over the largest, to the power of alpha; at least `FAINTEST`."""
    popularity = np.asarray(popularity, dtype=np.float64)
    powers: np.ndarray = (popularity / popularity.max()) ** alpha
    return np.maximum(powers, FAINTEST)


# Factor and exponent of two rules of thumb, and how they round.
THUMB_RULES: dict[str, tuple[float, float, Callable[..., np.ndarray]]] = {
    "root4": (6.0, 0.25, np.ceil),
    "fastai": (1.6, 0.56, np.rint),
}


def thumb_widths(
    rows: ArrayLike, rule: str = "root4", factor: float | None = None
) -> np.ndarray:
    """Widths that grow with the number of rows: rules of thumb.

    ``"root4"`` is ceil(6 n**(1/4)), ``"fastai"`` min(600, round(1.6 n**0.56)).

    Parameters
    ----------
    rows : array of int, shape (groups,)
    rule : {"root4", "fastai"}
    factor : float, optional
        In place of the rule's own 6 or 1.6.

    Returns
    -------
    ndarray of int64, shape (groups,)

    Raises
    ------
    ValueError
        If the rule is unknown.

    Examples
    --------
    >>> thumb_widths([16, 10_000], "root4"), thumb_widths([16, 10_000], "fastai")
    (array([12, 60]), array([  8, 278]))
    """
    check_choice("rule", rule, tuple(THUMB_RULES))
    usual, exponent, rounded = THUMB_RULES[rule]
    widths = rounded(
        (usual if factor is None else factor)
        * np.asarray(rows, dtype=np.float64) ** exponent
    )
    most = 600 if rule == "fastai" else MOST
    return np.clip(widths, 1, most).astype(np.int64)


class PowerLawOptions(Options):
    """Options of `MDEFields`, and of `MDEBlocks` too."""

    alpha: float | None = option(
        0.3,
        "exponent of the law; None: the smallest that fits",
        low=0,
        high=64,
        tune=(0.3, 0.6),
    )
    power_of_two: bool = option(False, "allow no widths but powers of two")
    fill: bool = option(
        False,
        "widen groups, the widest first, by what the law leaves of the budget",
        tune=(False, True),
    )
    widths: list[int] = found("width of each group")


def plan_law(
    spec: TableSpec,
    ratio: float,
    rows: np.ndarray,
    popularity: np.ndarray,
    law: PowerLawOptions,
    ranges: bool = True,
) -> list[int]:
    """The widest groups of a power law that fit into a budget; see `plan_widths`.

    With an exponent, the law's factor falls, in equal proportions: the factors of a
    steep law lie many powers of ten apart.  Without one, first the exponent rises from
    0 to 1, the most popular group keeping the full width; then this width falls.
    """
    dim = spec.embedding_dim
    # From here on down, the rarest group falls short of the full width too.
    widest = dim / raise_shares(popularity, law.alpha or 0.0).min()

    def path(t: float) -> np.ndarray:
        if law.alpha is not None:
            exponent, base = law.alpha, widest * (2 * widest) ** -t
        else:
            exponent, base = min(2 * t, 1.0), dim * min(2 - 2 * t, 1.0)
        return power_law_widths(popularity, exponent, base, law.power_of_two)

    order = popularity if law.fill else None
    return plan_widths(spec, ratio, rows, path, order, law.power_of_two, ranges)


# -- a width per field -------------------------------------------------------


class MDEFields(FieldDimensions, Trained[PowerLawOptions]):
    """Fields with many rows get narrow rows: a power law of the number of rows.

    Notes
    -----
    Ginart et al., "Mixed Dimension Embeddings with Application to
    Memory-Efficient Recommendation Systems" (2021).  The law's factor is as large as
    the budget allows.  What rounding leaves of the budget is not spent: filled up with
    it, widths would no longer be those of the law, but more alike (`fill`).
    """

    def __init__(
        self, spec: TableSpec, options: PowerLawOptions, seed: int = 0
    ) -> None:
        super().__init__(spec, options.widths, seed)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: PowerLawOptions) -> Found:
        """The greatest factor of the law, or the smallest exponent, that fits."""
        rows = np.diff(spec.field_starts)
        return {"widths": plan_law(spec, ratio, rows, 1 / rows, options)}


class RuleOfThumbOptions(Options):
    """Options of `RuleOfThumb`."""

    rule: str = option(
        "root4", "the rule", choices=tuple(THUMB_RULES), tune=tuple(THUMB_RULES)
    )
    fill: bool = option(
        False,
        "widen fields, the widest first, by what the rule leaves of the budget",
        tune=(False, True),
    )
    widths: list[int] = found("width of each field")


class RuleOfThumb(FieldDimensions, Trained[RuleOfThumbOptions]):
    """Fields with many rows get *wide* rows, as two rules of thumb say.

    Notes
    -----
    The fourth root of the number of rows, and the rule of the fastai library.
    To meet a budget, the rule's factor changes, and its exponent stays.
    """

    def __init__(
        self, spec: TableSpec, options: RuleOfThumbOptions, seed: int = 0
    ) -> None:
        super().__init__(spec, options.widths, seed)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: RuleOfThumbOptions) -> Found:
        """The greatest factor whose widths fit."""
        rows, dim = np.diff(spec.field_starts), spec.embedding_dim

        def path(t: float) -> np.ndarray:
            return thumb_widths(rows, options.rule, dim * (1 - t))

        order = rows if options.fill else None
        return {"widths": plan_widths(spec, ratio, rows, path, order)}


# -- a width per block of popularity -----------------------------------------


def cut_by_share(counts: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Rows of blocks of ids, the most frequent first, that cover shares of all reads.

    Parameters
    ----------
    counts : ndarray of int64, shape (n,)
    shares : sequence of float, shape (blocks - 1,)
        Rising: what the first block covers, the first two blocks, and so on.  The
        last block takes the rest.

    Returns
    -------
    ndarray of int64, shape (blocks,)
        At least one row in each, while there are rows.

    Examples
    --------
    >>> cut_by_share(np.array([1, 60, 10, 20, 9]), [0.6, 0.9])
    array([1, 2, 2])
    """
    return cut_sums(sum_reads(counts), np.asarray(shares))


def sum_reads(counts: np.ndarray) -> np.ndarray:
    """Reads of the most frequent id, of the two most frequent, and so on."""
    sums = np.cumsum(np.sort(np.asarray(counts))[::-1])
    # Where nothing is known, all are alike.
    return sums if sums[-1] else np.arange(1, len(sums) + 1)


def cut_sums(sums: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """`cut_by_share` from what `sum_reads` found."""
    n, blocks = len(sums), len(shares) + 1
    # A hair less, for shares that are exact in decimals only.
    cuts = np.searchsorted(sums, shares * sums[-1] * (1 - 1e-12)) + 1
    place = np.arange(1, blocks)
    # Each border lies behind the one before, while there are rows.
    cuts = np.maximum.accumulate(np.maximum(cuts, place) - place) + place
    cuts = np.clip(cuts, np.minimum(place, n), np.maximum(n - blocks + place, 0))
    return np.diff([0, *np.maximum.accumulate(cuts), n])


def cut_evenly(counts: np.ndarray, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of falling popularity that share the reads evenly.

    Returns
    -------
    sizes : ndarray of int64, shape (blocks,)
    popularity : ndarray of float64, shape (blocks,)
        Reads of a row.
    """
    blocks = min(blocks, len(counts))
    sizes = cut_sums(sum_reads(counts), np.arange(1, blocks) / blocks)
    ranked = counts[largest_first(counts)]
    reads = np.add.reduceat(ranked, np.cumsum(sizes) - sizes)
    # Ids never seen count as seen a little: their width must not be 0.
    return sizes, np.maximum(reads, 0.5) / sizes


class PopularityBlocks(GroupedEmbedding):
    """A width for every block of ids, the most frequent ids in the first block.

    Parameters
    ----------
    spec : TableSpec
    sizes : sequence of int
        Rows of each block.
    widths : sequence of int
        Of each block.
    seed : int, default 0

    Raises
    ------
    ValueError
        If the sizes do not add up to the table.
    """

    def __init__(
        self, spec: TableSpec, sizes: Integers, widths: Integers, seed: int = 0
    ) -> None:
        rows = as_integers(sizes, "sizes")
        if rows.ndim != 1 or (rows < 0).any() or rows.sum() != spec.num_embeddings:
            raise ValueError(
                f"sizes must add up to {spec.num_embeddings} rows, got {sizes!r}"
            )
        if np.shape(widths) != rows.shape:
            raise ValueError(f"widths must be {len(rows)} numbers, got {widths!r}")
        assignment = np.empty(spec.num_embeddings, dtype=np.int64)
        assignment[rank_by_frequency(spec)] = np.repeat(np.arange(len(rows)), rows)
        super().__init__(spec, assignment, widths, [seed, 0])


class MDEBlocksOptions(PowerLawOptions):
    """Options of `MDEBlocks`."""

    blocks: int = option(8, "blocks of ids", low=1, high=MAX_GROUPS, tune=(8, 4))
    sizes: list[int] = found("rows of each block")


class MDEBlocks(PopularityBlocks, Trained[MDEBlocksOptions]):
    """Rare ids get narrow rows: a power law of how often a block's rows are read.

    Notes
    -----
    Ginart et al., "Mixed Dimension Embeddings with Application to
    Memory-Efficient Recommendation Systems" (2021).
    """

    def __init__(
        self, spec: TableSpec, options: MDEBlocksOptions, seed: int = 0
    ) -> None:
        super().__init__(spec, options.sizes, options.widths, seed)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: MDEBlocksOptions) -> Found:
        """The greatest factor of the law, or the smallest exponent, that fits."""
        sizes, popularity = cut_evenly(spec.train_counts, options.blocks)
        ranges = len(sizes) == 1
        widths = plan_law(spec, ratio, sizes, popularity, options, ranges)
        return {"sizes": sizes.tolist(), "widths": widths}


class CpRecOptions(Options):
    """Options of `CpRec`."""

    quotient: int = option(
        4, "how many times narrower the next block is", low=2, high=2**16, tune=(4, 2)
    )
    blocks: int | None = option(
        None, "blocks of ids; None: down to width 1", low=1, high=MAX_GROUPS
    )
    sizes: list[int] = found("rows of each block")
    widths: list[int] = found("width of each block")


class CpRec(PopularityBlocks, Trained[CpRecOptions]):
    """CpRec: blocks of falling popularity, each q times narrower than the one before.

    The first block covers a share s of the reads, the second the same share of what
    is left, and so on; s is as large as the budget allows.

    Notes
    -----
    Sun et al., "A Generic Network Compression Framework for Sequential
    Recommender Systems" (SIGIR 2020).  `block_logits` is the same decomposition
    at the output.
    """

    def __init__(self, spec: TableSpec, options: CpRecOptions, seed: int = 0) -> None:
        super().__init__(spec, options.sizes, options.widths, seed)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: CpRecOptions) -> Found:
        """Widths d, d/q, d/q**2 and so on, and the greatest share that fits."""
        dim, q = spec.embedding_dim, options.quotient
        blocks = options.blocks or 1 + math.ceil(math.log(dim, q) - 1e-9)
        widths = [max(dim // q**b, 1) for b in range(min(blocks, spec.num_embeddings))]
        return {"sizes": plan_sizes(spec, ratio, widths), "widths": widths}


def plan_sizes(spec: TableSpec, ratio: float, widths: Sequence[int]) -> list[int]:
    """Rows of blocks of given widths, of which each covers the same share of the reads
    that those before it leave: the greatest share that fits.
    """
    sums, blocks = sum_reads(spec.train_counts), len(widths)

    def sizes(t: float) -> list[int]:
        return cut_sums(sums, 1 - t ** np.arange(1, blocks)).tolist()

    def cost(t: float) -> int:
        return grouped_bytes(sizes(t), widths, spec.embedding_dim, blocks == 1)

    budget = spec.require(ratio, smallest=cost(1.0))
    return sizes(bisect_path(cost, budget))


# -- the output --------------------------------------------------------------


def block_logits(table: GroupedEmbedding, queries: Tensor) -> Tensor:
    """Inner products of full vectors with all rows, block by block.

    Of a block with short rows W and projection P the products are (h P^T) W^T: the
    query is brought down to the block's width, and no full row is ever made.

    Parameters
    ----------
    table : GroupedEmbedding
    queries : Tensor of float, shape (m, embedding_dim)

    Returns
    -------
    Tensor of float, shape (m, num_embeddings), in the order of the ids
    """
    parts = []
    for g, short in enumerate(table.tables):
        if str(g) in table.projections:
            small = queries @ table.projections[str(g)].T  # (m, width)
        else:
            small = queries[:, : short.shape[1]]
        parts.append(small @ short.T)  # (m, rows)
    ids = torch.arange(table.num_embeddings, device=queries.device)
    groups, rows = table.locate(ids)
    ends = torch.cumsum(torch.bincount(groups, minlength=len(table.tables)), dim=0)
    places = rows + functional.pad(ends[:-1], (1, 0))[groups]
    return torch.cat(parts, dim=1).index_select(1, places)


def block_log_softmax(table: GroupedEmbedding, queries: Tensor) -> Tensor:
    """Logarithms of the softmax over all rows, shape (m, num_embeddings).

    Nothing is approximated: it is the softmax of `block_logits`, and so that of the
    full rows.
    """
    return functional.log_softmax(block_logits(table, queries), dim=1)
