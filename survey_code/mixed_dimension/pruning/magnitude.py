"""Magnitude pruning: keep the largest entries, and train what is left again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from survey_code.checks import check_range
from survey_code.kernels.cpu.rows import NumberRows
from survey_code.layouts import SparseLayout
from survey_code.layouts.sparse import FORMATS, default_block
from survey_code.method import AfterTraining, Found, Judge, Searched
from survey_code.mixed_dimension.pruning.tickets import (
    LargestEntries,
    check_mask,
    plan_entries,
    start_rows,
)
from survey_code.options import SearchOptions, found, option, planned
from survey_code.spec import TableSpec

# Share of the entries that is kept where there is no budget.
SHARE = 0.25
# Numbers of a given table that are looked at together.
NUMBERS_CUT = 2**20
# Bits of a float32 that are counted in one pass.
HALF = 16


class MagnitudeOptions(SearchOptions):
    """Options of `MagnitudePruning`."""

    retrain: bool = option(
        True, "train, cut and train again; otherwise train once and cut at the end"
    )
    rewind: bool = option(
        False,
        "train again from the first entries, not from those that are left",
        tune=(False, True),
    )
    # Without it the rows of rare ids stay as large as they were drawn, and are kept.
    decay: float = option(
        1e-5,
        "weight decay of the table before the cut",
        low=0, below=1, tune=(1e-5, 0.0, 1e-4),
    )  # fmt: skip
    by_reads: bool = option(
        False,
        "weigh an entry's square by how often its row is read",
        tune=(False, True),
    )
    format: str = option("float32", "of the kept values", choices=FORMATS)
    keep: int | None = planned("entries to keep; without a budget a quarter", low=0)
    mask: np.ndarray | None = found("the entries to train again, bool")
    learnt: np.ndarray | None = found("where they begin, if not as first drawn")


class MagnitudePruning(
    LargestEntries,
    Searched[MagnitudeOptions, LargestEntries],
    AfterTraining[MagnitudeOptions],
):
    """All but the largest entries of a trained table are zero (key ``magnitude``).

    A first training says which entries are the largest.  They alone are trained again,
    in a fresh network.  A table of one's own is only cut.  Of all tables with so many
    entries that are not zero, a cut leaves the nearest to the given one, in the sum of
    squared differences; with `by_reads`, of the differences in what training reads.

    Notes
    -----
    Han et al., "Learning both Weights and Connections for Efficient Neural
    Networks" (NIPS 2015), who decay the weights, cut, and train on from the weights
    that are left (``rewind=False``), in the same network and several times by turns;
    we cut the table once.  Beginning again with the first draw is from Frankle and
    Carbin, "The Lottery Ticket Hypothesis" (ICLR 2019).
    """

    def __init__(
        self, spec: TableSpec, options: MagnitudeOptions, seed: int = 0
    ) -> None:
        super().__init__(spec, options, seed)
        if options.mask is not None:
            self.mask = torch.from_numpy(check_mask(spec, options.mask))
            if options.learnt is not None:
                self.weight.data = start_rows(spec, options.learnt)
            self.weight.data *= self.mask
            self.decay = 0.0

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: MagnitudeOptions) -> Found:
        """As many entries as the budget pays for."""
        keep = plan_entries(spec, ratio, options.format, options.keep)
        return {"keep": keep, "budget": spec.budget(ratio)}

    @classmethod
    def searches(cls, options: MagnitudeOptions) -> bool:
        """Only to train again."""
        return options.retrain

    @classmethod
    def settle(
        cls,
        table: LargestEntries,
        judge: Judge,
        spec: TableSpec,
        options: MagnitudeOptions,
    ) -> Found:
        """The largest entries of the trained table, and their values."""
        mask = table.final_mask()
        if options.rewind:
            return {"mask": mask.cpu().numpy()}
        learnt = (table.weight * mask).detach().float().cpu().numpy()
        return {"mask": mask.cpu().numpy(), "learnt": learnt}

    @classmethod
    def compress(
        cls, weight: np.ndarray, spec: TableSpec, options: MagnitudeOptions
    ) -> SparseLayout:
        """Keep the largest entries, of equal ones the first.

        Raises
        ------
        ValueError
            If rows are to be weighted by reads, and it is not said how often they are.
        """
        cut, step = plan_cut(weight, spec, options)
        parts = []
        for start in range(0, len(weight), step):
            kept = cut.keep(weight[start : start + step], start)
            parts.append(SparseLayout.from_dense(kept, options.format))
        return SparseLayout.join(parts)


@dataclass
class Cut:
    """Which entries of a table are kept: those above an edge, and some on it.

    Parameters
    ----------
    edge : float32
        The smallest score that is kept.
    equal : int
        How many more entries of this score are, the first ones.
    factors : ndarray of float32, shape (n,), optional
        Of `read_factors`.
    """

    edge: np.float32
    equal: int
    factors: np.ndarray | None

    def keep(self, part: np.ndarray, start: int) -> np.ndarray:
        """Some rows, the first of which is `start`, zero where they are cut.

        Parts are to be given in their order, each once.
        """
        scores = score_rows(part, start, self.factors)
        kept, ties = scores > self.edge, np.flatnonzero(scores == self.edge)
        kept.reshape(-1)[ties[: self.equal]] = True
        self.equal -= len(ties[: self.equal])
        return np.where(kept, part, np.float32(0))


def plan_cut(
    weight: NumberRows, spec: TableSpec, options: MagnitudeOptions
) -> tuple[Cut, int]:
    """How a table is cut, and rows of a part: whole blocks, to be put together.

    Raises
    ------
    ValueError
        If rows are to be weighted by reads, and it is not said how often they are.
    """
    size, dim = weight.shape[0] * weight.shape[1], weight.shape[1]
    keep = int(SHARE * size) if options.keep is None else options.keep
    check_range("keep", keep, 0, size)
    factors = None
    if options.by_reads:
        if not spec.train_counts.any():
            raise ValueError("by_reads needs the counts of the ids, got none")
        factors = read_factors(spec)
    block = default_block(dim)
    step = block * max(NUMBERS_CUT // (block * dim), 1)
    return Cut(*find_edge(weight, keep, step, factors), factors), step


def read_factors(spec: TableSpec) -> np.ndarray:
    """What the entries of each row count for, float32 (n,): the root of its reads."""
    roots: np.ndarray = np.sqrt(spec.train_counts).astype(np.float32)
    return roots


def score_rows(part: np.ndarray, start: int, factors: np.ndarray | None) -> np.ndarray:
    """Sizes of the entries of some rows, the first of which is `start`; float32."""
    scores: np.ndarray = np.abs(part)
    if factors is not None:
        scores *= factors[start : start + len(part), None] / factors.max()
    return scores


def find_edge(
    weight: NumberRows, keep: int, step: int, factors: np.ndarray | None = None
) -> tuple[np.float32, int]:
    """The smallest score that is kept, and how many of its equals are.

    The bits of floats that are not negative are in their order as integers: two passes
    over some rows at a time count the upper bits and, where the edge lies, the lower,
    and no score is held longer.

    Parameters
    ----------
    weight : ndarray of float32, shape (n, d), finite
    keep : int
    step : int
        Rows of a part.
    factors : ndarray of float32, shape (n,), optional
        Of `read_factors`.

    Examples
    --------
    >>> find_edge(np.float32([[1, -3], [2, 3], [2, 2]]), 4, step=2)
    (np.float32(2.0), 2)
    """
    if not keep:
        return np.float32(np.inf), 0
    prefix: int | None = None
    left = keep
    for shift in (HALF, 0):
        counts = np.zeros(2**HALF, dtype=np.int64)
        for start in range(0, len(weight), step):
            scores = score_rows(weight[start : start + step], start, factors)
            bits = scores.reshape(-1).view(np.uint32)
            if prefix is not None:
                bits = bits[bits >> np.uint32(HALF) == prefix]
            digits = (bits >> np.uint32(shift)) & np.uint32(2**HALF - 1)
            counts += np.bincount(digits, minlength=2**HALF)
        above = np.cumsum(counts[::-1])  # of the largest digits
        place = int(np.searchsorted(above, left))
        digit = len(counts) - 1 - place
        left -= int(above[place - 1]) if place else 0
        prefix = (0 if prefix is None else prefix << HALF) | digit
    return np.uint32(prefix or 0).view(np.float32), left
