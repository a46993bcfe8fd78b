"""Rule-based mixed dimensions: a formula says how wide a group's rows are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from survey_code.embedding import check_range
from survey_code.layouts.grouped import grouped_bytes
from survey_code.mixed_dimension.grouped import GroupedEmbedding
from survey_code.order import largest_first
from survey_code.spec import TableSpec, as_integers

# -- rules -------------------------------------------------------------------


def power_law_widths(
    popularity: Any, alpha: float, base: float, power_of_two: bool = False
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
    popularity = np.asarray(popularity, dtype=np.float64)
    widths = base * (popularity / popularity.max()) ** alpha
    if power_of_two:
        widths = 2.0 ** np.rint(np.log2(np.maximum(widths, 1.0)))
    return np.maximum(np.rint(widths), 1).astype(np.int64)


# Factor and exponent of two rules of thumb, and how they round.
THUMB_RULES: dict[str, tuple[float, float, Callable[..., np.ndarray]]] = {
    "root4": (6.0, 0.25, np.ceil),
    "fastai": (1.6, 0.56, np.rint),
}


def thumb_widths(rows: Any, rule: str = "root4", factor: Any = None) -> np.ndarray:
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
    if rule not in THUMB_RULES:
        raise ValueError(f"rule must be one of {list(THUMB_RULES)}, got {rule!r}")
    usual, exponent, rounded = THUMB_RULES[rule]
    widths = rounded(
        (usual if factor is None else factor)
        * np.asarray(rows, dtype=np.float64) ** exponent
    )
    most = 600 if rule == "fastai" else np.inf
    return np.clip(widths, 1, most).astype(np.int64)


def settle_widths(widths: Any, rows: Any, dim: int) -> np.ndarray:
    """Widths as they are stored: a group whose short rows and projection would take
    no fewer numbers than full rows gets full rows.

    Parameters
    ----------
    widths, rows : arrays of int, shape (groups,)
    dim : int

    Returns
    -------
    ndarray of int64, shape (groups,)

    Examples
    --------
    >>> settle_widths([4, 4, 4], [2, 6, 1000], dim=16)
    array([16,  4,  4])
    """
    widths = np.minimum(np.asarray(widths, dtype=np.int64), dim)
    rows = np.asarray(rows, dtype=np.int64)
    return np.where(widths * (rows + dim) >= rows * dim, dim, widths)


def bisect_path(cost: Callable[[float], int], budget: int) -> float:
    """The first point of a path from 0 to 1, along which costs fall, that is inside
    the budget; `cost(1)` must be.

    Parameters
    ----------
    cost : callable
    budget : int

    Returns
    -------
    float
        To the last bit: the float before it is over the budget, unless it is 0.
    """
    low, high = 0.0, 1.0
    if cost(low) <= budget:
        return low
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return high
        if cost(middle) <= budget:
            high = middle
        else:
            low = middle


def fill_budget(
    widths: np.ndarray,
    order: np.ndarray,
    cost: Callable[[np.ndarray], int],
    budget: int,
    steps: Sequence[int],
) -> np.ndarray:
    """Spend what is left: groups become one step wider while that still fits.

    Parameters
    ----------
    widths : ndarray of int64, shape (groups,)
    order : ndarray of int64, shape (groups,)
        The groups from the widest to the narrowest; none overtakes the one before.
    cost : callable
        Bytes of widths.
    budget : int
    steps : sequence of int
        Widths that there may be, rising.

    Returns
    -------
    ndarray of int64, shape (groups,)
    """
    before = None
    while before is None or (widths != before).any():
        before, limit = widths, steps[-1]
        for g in order:
            wider = [step for step in steps if widths[g] < step <= limit]
            if wider:
                tried = widths.copy()
                tried[g] = wider[0]
                widths = tried if cost(tried) <= budget else widths
            limit = int(widths[g])
    return widths


def plan_widths(
    spec: TableSpec,
    ratio: float,
    rows: Any,
    path: Callable[[float], np.ndarray],
    order: np.ndarray,
    ranges: bool,
    steps: Sequence[int],
) -> list[int]:
    """The widest groups of a rule that fit into a budget.

    Parameters
    ----------
    spec : TableSpec
    ratio : float
    rows : array of int, shape (groups,)
    path : callable
        The rule: widths at each point from 0 to 1, nowhere rising.
    order : ndarray of int64, shape (groups,)
        The groups from the widest to the narrowest.
    ranges : bool
        Whether the groups are ranges of ids, which need no remap.
    steps : sequence of int
        Widths that there may be.

    Returns
    -------
    list of int

    Raises
    ------
    ValueError
        If the widths at 1 are too wide.
    """
    rows, dim = np.asarray(rows, dtype=np.int64), spec.embedding_dim

    def cost(widths: np.ndarray) -> int:
        settled = settle_widths(widths, rows, dim)
        return grouped_bytes(rows.tolist(), settled.tolist(), dim, ranges)

    def point(t: float) -> np.ndarray:
        return np.minimum(path(t), dim)

    budget = spec.require(ratio, smallest=cost(point(1.0)))
    found = point(bisect_path(lambda t: cost(point(t)), budget))
    found = fill_budget(found, np.asarray(order), cost, budget, steps)
    return [int(width) for width in settle_widths(found, rows, dim)]


def law_path(
    popularity: np.ndarray, dim: int, alpha: float | None, power_of_two: bool
) -> Callable[[float], np.ndarray]:
    """The power law from wide to narrow.

    With `alpha`, the factor falls.  Without it, first the exponent rises from 0 to
    1, the most popular group keeping the full width; then this width falls.
    """
    # From here on down, the rarest group falls short of the full width too.
    widest = dim * (popularity.max() / popularity.min()) ** (alpha or 0.0)

    def path(t: float) -> np.ndarray:
        if alpha is not None:
            exponent, base = alpha, widest * (1 - t)
        else:
            exponent, base = min(2 * t, 1.0), dim * min(2 - 2 * t, 1.0)
        return power_law_widths(popularity, exponent, base, power_of_two)

    return path


def allowed_steps(dim: int, power_of_two: bool) -> list[int]:
    """Widths that a rounded rule can give, up to the full one."""
    if not power_of_two:
        return list(range(1, dim + 1))
    return [*(2**k for k in range(dim.bit_length()) if 2**k < dim), dim]


def check_alpha(alpha: Any) -> float | None:
    """An exponent from 0 up, or None."""
    if alpha is None:
        return None
    if not isinstance(alpha, int | float) or not 0 <= alpha < math.inf:
        raise ValueError(f"alpha must be a number from 0 up, got {alpha!r}")
    return float(alpha)


# -- a width per field -------------------------------------------------------


class FieldWidths(GroupedEmbedding):
    """A width for every field.

    Parameters
    ----------
    spec : TableSpec
    widths : sequence of int, one per field
    seed : int, default 0
    """

    def __init__(self, spec: TableSpec, *, widths: Any, seed: int = 0) -> None:
        rows = np.diff(spec.field_starts)
        if len(np.ravel(as_integers(widths, "widths"))) != len(rows):
            raise ValueError(f"widths must be {len(rows)} numbers, got {widths!r}")
        assignment = np.repeat(np.arange(len(rows)), rows)
        super().__init__(spec, assignment, widths, [seed, 0])


class MDEFields(FieldWidths):
    """Fields with many rows get narrow rows: a power law of the number of rows.

    Parameters
    ----------
    spec : TableSpec
    widths : sequence of int, one per field
        From `plan`, or from `power_law_widths` with popularity 1 / rows.
    seed : int, default 0

    Notes
    -----
    Ginart et al., "Mixed Dimension Embeddings with Application to
    Memory-Efficient Recommendation Systems" (2021).
    """

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        alpha: float | None = 0.3,
        power_of_two: bool = False,
    ) -> dict[str, Any]:
        """The greatest factor of the law whose widths fit; with ``alpha=None`` the
        smallest exponent, the smallest field keeping the full width.
        """
        rows = np.diff(spec.field_starts)
        path = law_path(1 / rows, spec.embedding_dim, check_alpha(alpha), power_of_two)
        steps = allowed_steps(spec.embedding_dim, power_of_two)
        order = np.argsort(rows, kind="stable")
        return {"widths": plan_widths(spec, ratio, rows, path, order, True, steps)}


class RuleOfThumb(FieldWidths):
    """Fields with many rows get *wide* rows, as two rules of thumb say.

    Parameters
    ----------
    spec : TableSpec
    widths : sequence of int, one per field
        From `plan`, or from `thumb_widths`.
    seed : int, default 0

    Notes
    -----
    The fourth root of the number of rows, and the rule of the fastai library.
    To meet a budget, the rule's factor changes, and its exponent stays.
    """

    @classmethod
    def plan(
        cls, spec: TableSpec, ratio: float, *, rule: str = "root4"
    ) -> dict[str, Any]:
        """The greatest factor whose widths fit."""
        rows, dim = np.diff(spec.field_starts), spec.embedding_dim

        def path(t: float) -> np.ndarray:
            return thumb_widths(rows, rule, dim * (1 - t))

        steps, order = allowed_steps(dim, False), largest_first(rows)
        return {"widths": plan_widths(spec, ratio, rows, path, order, True, steps)}


# -- a width per block of popularity -----------------------------------------


def rank_by_count(counts: np.ndarray) -> np.ndarray:
    """Ids from the most frequent to the least; of equals, the lower id first."""
    return largest_first(np.asarray(counts))


def cut_by_share(counts: np.ndarray, shares: Any) -> np.ndarray:
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
    return cut_sums(sum_reads(counts), shares)


def sum_reads(counts: np.ndarray) -> np.ndarray:
    """Reads of the most frequent id, of the two most frequent, and so on."""
    sums = np.cumsum(np.sort(np.asarray(counts))[::-1])
    # Where nothing is known, all are alike.
    return sums if sums[-1] else np.arange(1, len(sums) + 1)


def cut_sums(sums: np.ndarray, shares: Any) -> np.ndarray:
    """`cut_by_share` from what `sum_reads` found."""
    n, blocks = len(sums), len(shares) + 1
    # A hair less, for shares that are exact in decimals only.
    cuts = np.searchsorted(sums, np.asarray(shares) * sums[-1] * (1 - 1e-12)) + 1
    place = np.arange(1, blocks)
    # Each border lies behind the one before, while there are rows.
    cuts = np.maximum.accumulate(np.maximum(cuts, place) - place) + place
    cuts = np.clip(cuts, np.minimum(place, n), np.maximum(n - blocks + place, 0))
    return np.diff([0, *np.maximum.accumulate(cuts), n])


class PopularityWidths(GroupedEmbedding):
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
        self, spec: TableSpec, *, sizes: Any, widths: Any, seed: int = 0
    ) -> None:
        sizes = as_integers(sizes, "sizes")
        if sizes.ndim != 1 or (sizes < 0).any() or sizes.sum() != spec.num_embeddings:
            raise ValueError(
                f"sizes must add up to {spec.num_embeddings} rows, got {sizes!r}"
            )
        if np.shape(widths) != sizes.shape:
            raise ValueError(f"widths must be {len(sizes)} numbers, got {widths!r}")
        assignment = np.empty(spec.num_embeddings, dtype=np.int64)
        assignment[rank_by_count(spec.train_counts)] = np.repeat(
            np.arange(len(sizes)), sizes
        )
        super().__init__(spec, assignment, widths, [seed, 0])


class MDEBlocks(PopularityWidths):
    """Rare ids get narrow rows: a power law of how often a block's rows are read.

    Parameters
    ----------
    spec : TableSpec
    sizes, widths : sequences of int
        Rows and width of each block; from `plan`.
    seed : int, default 0

    Notes
    -----
    Ginart et al., "Mixed Dimension Embeddings with Application to
    Memory-Efficient Recommendation Systems" (2021).
    """

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        blocks: int = 8,
        alpha: float | None = 0.3,
        power_of_two: bool = False,
    ) -> dict[str, Any]:
        """Blocks that share the reads evenly, and the greatest factor of the law, or
        with ``alpha=None`` the smallest exponent, whose widths fit.
        """
        check_range("blocks", blocks, 1, 256)
        blocks = min(blocks, spec.num_embeddings)
        shares = np.arange(1, blocks) / blocks
        sizes = cut_by_share(spec.train_counts, shares)
        ranked = spec.train_counts[rank_by_count(spec.train_counts)]
        reads = np.add.reduceat(ranked, np.cumsum(sizes) - sizes)
        # Ids never seen count as seen a little: their width must not be 0.
        popularity = np.maximum(reads, 0.5) / sizes
        path = law_path(
            popularity, spec.embedding_dim, check_alpha(alpha), power_of_two
        )
        steps = allowed_steps(spec.embedding_dim, power_of_two)
        order = largest_first(popularity)
        widths = plan_widths(spec, ratio, sizes, path, order, blocks == 1, steps)
        return {"sizes": sizes.tolist(), "widths": widths}


class CpRec(PopularityWidths):
    """CpRec: blocks of falling popularity, each q times narrower than the one before.

    Parameters
    ----------
    spec : TableSpec
    sizes, widths : sequences of int
        Rows and width of each block; from `plan`.
    seed : int, default 0

    Notes
    -----
    Sun et al., "A Generic Network Compression Framework for Sequential
    Recommender Systems" (SIGIR 2020).  `block_logits` is the same decomposition
    at the output.
    """

    @classmethod
    def plan(
        cls, spec: TableSpec, ratio: float, *, quotient: int = 4, blocks: Any = None
    ) -> dict[str, Any]:
        """Widths d, d/q, d/q**2 and so on, down to 1 unless `blocks` says fewer.

        The first block covers a share s of the reads, the second the same share of
        what is left, and so on; s is as large as the budget allows.
        """
        dim, n = spec.embedding_dim, spec.num_embeddings
        check_range("quotient", quotient, 2, 2**16)
        if blocks is None:
            blocks = 1 + math.ceil(math.log(dim, quotient) - 1e-9)
        check_range("blocks", blocks, 1, 256)
        blocks = min(blocks, n)
        widths = [max(dim // quotient**b, 1) for b in range(blocks)]

        sums = sum_reads(spec.train_counts)

        def sizes(t: float) -> np.ndarray:
            return cut_sums(sums, 1 - t ** np.arange(1, blocks))

        def cost(t: float) -> int:
            return grouped_bytes(sizes(t).tolist(), widths, dim, blocks == 1)

        budget = spec.require(ratio, smallest=cost(1.0))
        return {"sizes": sizes(bisect_path(cost, budget)).tolist(), "widths": widths}


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
