"""Mixed-precision embeddings: each group of equally frequent ids finds its bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import (
    CompressedEmbedding,
    TrainingStep,
    draw_normal,
    pick_rows,
)
from survey_code.layouts import GroupedLayout, Layout, LevelsLayout
from survey_code.layouts.grouped import remap_bytes
from survey_code.layouts.levels import levels_bytes
from survey_code.layouts.rowwise import centre_of, code_bytes
from survey_code.low_precision.quantization.rounding import quantize_through
from survey_code.low_precision.quantization.writeback import STEP_SHARES
from survey_code.method import Found, Judge, Searched
from survey_code.options import SearchOptions, found, option
from survey_code.order import largest_first
from survey_code.spec import TableSpec

# Bits that a group can find, as in the authors' code.
WIDTHS = (0, 1, 2, 3, 4, 5, 6)

# Mean squared error of a normal number of variance 1 in so many bits, read by the best
# evenly spaced levels (Max, "Quantizing for Minimum Distortion", 1960).
NORMAL_ERRORS = (1.0, 0.3634, 0.1188, 0.03744, 0.01154, 0.003495, 0.001041)

# A price that is to be found begins here, and at most doubles or halves in so many
# steps.
FIRST_PRICE = 1e-3
DOUBLING = 10


class MPEOptions(SearchOptions):
    """Options of `MPE`."""

    rule: str = option(
        "search",
        "who chooses: a search, or how often groups are read, without one",
        choices=("search", "reads"),
    )
    groups: int = option(
        128, "groups of equally many ids, the most frequent together",
        low=1, high=1024, tune=(128, 32, 8),
    )  # fmt: skip
    # The papers' lambda.
    price: float | None = option(
        None, "of an expected bit a number, in units of the loss; None: what makes the "
        "expected bytes meet the budget", low=0,
    )  # fmt: skip
    choice_rate: float = option(
        0.1, "learning rate of the choices, which Adam moves",
        above=0, tune=(0.1, 0.03, 0.3),
    )  # fmt: skip
    step_rate: float = option(
        1.0, "learning rate of the steps over that of the weights", low=0
    )
    assignment: np.ndarray = found("group of each id")
    bits: np.ndarray = found("bits of each group's numbers")


class MixedCost:
    """Bytes of a table whose groups of ids have numbers of different bits.

    Parameters
    ----------
    group : ndarray of int64, shape (ids,)
        Group of each id, none of them empty.
    dim : int
    """

    def __init__(self, group: np.ndarray, dim: int) -> None:
        self.ids, self.rows = len(group), np.bincount(group)
        # Of a row, and of a part's levels, by the bits.
        self.each = np.array([code_bytes(dim, bits) for bits in WIDTHS])
        self.levels = np.array([levels_bytes(0, dim, b) * (b > 0) for b in WIDTHS])
        # Groups of neighbouring ids, and how many such neighbours there are.
        many = len(self.rows)
        pairs, self.times = np.unique(group[:-1] * many + group[1:], return_counts=True)
        self.sides = np.stack(np.divmod(pairs, many))

    def count(self, bits: np.ndarray) -> int:
        """Bytes of the frozen table, for the bits of each group."""
        used = np.unique(bits)
        stored = int((self.rows * self.each[bits]).sum() + self.levels[used].sum())
        return stored + int(self.routes(bits)[len(used)])

    def routes(self, bits: np.ndarray) -> np.ndarray:
        """Bytes that say where an id is, for 0 to 7 parts; int64 (8,).

        Parts that are ranges of ids need no map.  Whether they are tells how often
        neighbours have different bits.
        """
        one, other = bits[self.sides]
        changes = int(self.times[one != other].sum())
        ranges = changes == len(np.unique(bits)) - 1
        parts = range(2, len(WIDTHS) + 1)
        maps = [0 if ranges else remap_bytes(self.ids, n) for n in parts]
        return np.array([0, 0, *(8 * n + more for n, more in zip(parts, maps))])

    def expect(self, chances: Tensor) -> Tensor:
        """Bytes to expect of groups that draw their bits: the file's, exactly, where
        nothing is left to chance.

        In between, a width is taken to be in use or not whichever others are, and
        whether parts are ranges is as for the most probable bits.

        Parameters
        ----------
        chances : Tensor of floats, shape (groups, 7)
            Of each width; they add up to 1 for each group.

        Returns
        -------
        Tensor, a number of the same type
        """
        likely = chances.detach().argmax(1).cpu().numpy()
        each, rows, levels, routes = (
            torch.from_numpy(sizes).to(chances)
            for sizes in (self.each, self.rows, self.levels, self.routes(likely))
        )
        used = 1 - (1 - chances).prod(0)
        # Chances of 0, 1, 2 ... parts.
        parts = chances.new_ones(1)
        for chance in used:
            none, one = parts * (1 - chance), parts * chance
            parts = functional.pad(none, (0, 1)) + functional.pad(one, (1, 0))
        return rows @ chances @ each + used @ levels + parts @ routes


class WidthMixtures(CompressedEmbedding):
    """MPE's search: rows read in all widths at once, mixed by their group's chances.

    Parameters
    ----------
    spec : TableSpec
    options : MPEOptions
    seed : int
    """

    gauges = ("step", "logits")

    group: Tensor

    def __init__(self, spec: TableSpec, options: MPEOptions, seed: int) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        group = group_by_frequency(spec, options.groups)
        self.cost = MixedCost(group, spec.embedding_dim)
        self.register_buffer("group", torch.from_numpy(group), persistent=False)
        shape = (spec.num_embeddings, spec.embedding_dim)
        self.weight = nn.Parameter(draw_normal(shape, spec.init_std, [seed, 0]))
        self.step = nn.Parameter(first_steps(self.weight, WIDTHS[1:]))
        self.logits = nn.Parameter(torch.zeros(len(self.cost.rows), len(WIDTHS)))
        self.chooser = torch.optim.Adam([self.logits], lr=options.choice_rate)
        self.budget, self.step_rate = options.budget, options.step_rate
        self.asked = options.price
        self.price = FIRST_PRICE if options.price is None else options.price

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Weights and steps; the choices have an optimiser of their own."""
        return weights_and_steps(self, learning_rate, self.step_rate)

    def embed(self, ids: Tensor) -> Tensor:
        """Each distinct row once in all widths, mixed."""
        distinct, places = torch.unique(ids, return_inverse=True)
        rows = pick_rows(distinct, self.weight, sparse=self.regime.sparse)
        chances = self.logits.softmax(1)[self.group[distinct]]  # (m, 7)
        mixed = torch.zeros_like(rows)
        for k, bits in enumerate(WIDTHS[1:]):
            reach = centre_of(bits)
            factor = 1 / math.sqrt(max(rows.numel() * reach, 1))
            read = quantize_through(rows, self.step[k], -reach, reach, factor, 0.5)
            mixed = mixed + chances[:, k + 1, None] * read
        return pick_rows(places, mixed)

    def penalty(self) -> Tensor:
        """The price of the bits that a number is expected to take."""
        numbers = self.num_embeddings * self.embedding_dim
        return self.price * 8 / numbers * self.cost.expect(self.logits.softmax(1))

    @torch.no_grad()
    def after_step(self, step: TrainingStep) -> None:
        """Move the choices, and the price if it is to be found."""
        self.step.clamp_(min=1e-8)
        self.chooser.step()
        self.chooser.zero_grad()
        if self.asked is None:
            expected = float(self.cost.expect(self.logits.softmax(1)))
            over = math.log2(expected / self.budget)
            self.price *= 2 ** (min(max(over, -1.0), 1.0) / DOUBLING)


class MPE(Searched[MPEOptions, WidthMixtures]):
    """Groups of ids with bits of their own, from 0 to 6 (key ``mpe``).

    Ids are grouped by how often they occur, equally many to a group.  The search reads
    a row as a mixture of itself in all widths, with chances that the group learns
    together with weights and steps, from the loss and a price of the expected bits.
    Then each group takes one width, and the table is trained anew, as `LSQ` trains:
    float weights behind codes.  With ``rule="reads"`` there is no search.

    Parameters
    ----------
    spec : TableSpec
    options : MPEOptions
        What the search found.
    seed : int, default 0

    Raises
    ------
    ValueError
        If the groups or their bits are not what they must be.

    Notes
    -----
    Li et al., "Mixed-Precision Embeddings for Large-Scale Recommendation Models"
    (2024), of which we read the abstract and the authors' code.  Theirs divides the
    price of a group's bits by how often the group is read, in a softmax of temperature
    0.003; here all bits have one price, that of the bytes in the file.  It takes for
    each group the largest width whose chance is above a threshold; here all groups take
    about the quantile of their chances at which they fill the budget together.  As in
    the authors' code a width has one step for all groups; levels lie half a step beside
    its multiples, as in `LPT`, instead of having an offset for each column.  Network
    and steps are trained anew as well.  The parts stand in a `GroupedLayout`: its map
    of seven parts takes 3.4 bits an id, where a routed one takes 9.  A GPU reads parts
    of different bits without the one kernel that it has for parts alike.
    """

    gauges = ("step",)

    own: Tensor

    def __init__(self, spec: TableSpec, options: MPEOptions, seed: int = 0) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        own = bits_of_ids(spec, options.assignment, options.bits)
        self.register_buffer("own", torch.from_numpy(own), persistent=False)
        # Bits of the parts of the file: those of the lowest id first.
        bits, first = np.unique(own, return_index=True)
        self.parts: list[int] = bits[np.argsort(first, kind="stable")].tolist()
        self.widths = [bits for bits in self.parts if bits]
        shape = (spec.num_embeddings, spec.embedding_dim)
        self.weight = nn.Parameter(draw_normal(shape, spec.init_std, [seed, 0]))
        self.step = nn.Parameter(first_steps(self.weight, self.widths))
        self.step_rate = options.step_rate

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: MPEOptions) -> Found:
        """The budget, which must hold the most frequent group in one bit."""
        group = group_by_frequency(spec, options.groups)
        cost = MixedCost(group, spec.embedding_dim)
        least = cost.count((np.arange(group.max() + 1) == 0).astype(np.int64))
        budget = spec.require(ratio, smallest=least)
        if cls.searches(options):
            return {"budget": budget}
        # One read more for each id, so that ids that never occur have bits too.
        reads = np.bincount(group, spec.train_counts + 1.0)
        bits = settle_bits(-np.outer(reads, NORMAL_ERRORS), cost, budget)
        return {"budget": budget, "assignment": group, "bits": bits}

    @classmethod
    def searches(cls, options: MPEOptions) -> bool:
        """Unless reads choose: then the squared errors that all of them would meet,
        were rows normal and all of one spread, are the least that fit.
        """
        return options.rule == "search"

    @classmethod
    def settle(
        cls, table: WidthMixtures, judge: Judge, spec: TableSpec, options: MPEOptions
    ) -> Found:
        """The widths that the groups ask for most, as far as the budget goes."""
        chances = table.logits.detach().double().log_softmax(1).cpu().numpy()
        bits = settle_bits(score_widths(chances), table.cost, options.budget)
        return {"assignment": table.group.cpu().numpy(), "bits": bits}

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The weights, and the steps of their widths."""
        return weights_and_steps(self, learning_rate, self.step_rate)

    def embed(self, ids: Tensor) -> Tensor:
        """Rows rounded in their widths; zeros where there are no bits."""
        flat = ids.flatten()
        rows = pick_rows(flat, self.weight, sparse=self.regime.sparse)
        read = torch.zeros_like(rows)
        for k, bits in enumerate(self.widths):
            here = (self.own[flat] == bits).nonzero()[:, 0]
            read = read.index_copy(0, here, self.round(rows[here], k))
        return read.view(*ids.shape, self.embedding_dim)

    def round(self, rows: Tensor, k: int) -> Tensor:
        """Rows of one width, rounded; in use by the layout's own arithmetic."""
        reach = centre_of(self.widths[k])
        if self.training:
            factor = 1 / math.sqrt(max(rows.numel() * reach, 1))
            return quantize_through(rows, self.step[k], -reach, reach, factor, 0.5)
        return (self.encode(rows, k) - reach) * self.step[k]

    def encode(self, rows: Tensor, k: int) -> Tensor:
        """Codes from 0 up of rows of one width, as floats."""
        reach = centre_of(self.widths[k])
        codes = (rows / self.step[k] + reach).round()
        return codes.clamp(0, 2 * reach)

    @torch.no_grad()
    def after_step(self, step: TrainingStep) -> None:
        """Keep the steps positive."""
        self.step.clamp_(min=1e-8)

    @torch.no_grad()
    def freeze(self) -> Layout:
        """Codes of each width in a part of its own, and where an id is."""
        tables: list[np.ndarray | Layout] = []
        for bits in self.parts:
            rows = self.weight[self.own == bits]
            if not bits:
                tables.append(np.zeros((len(rows), 0), np.float32))
                continue
            k = self.widths.index(bits)
            codes = self.encode(rows, k).to(torch.uint8).cpu().numpy()
            levels = torch.arange(2**bits) - centre_of(bits)
            steps = levels * self.step[k].cpu()
            tables.append(LevelsLayout.from_codes(codes, steps.numpy()))
        if len(tables) == 1:
            assert isinstance(tables[0], Layout)
            return tables[0]
        places = np.zeros(len(WIDTHS), np.int64)
        places[self.parts] = np.arange(len(self.parts))
        return GroupedLayout.from_tables(
            tables,
            [None] * len(tables),
            self.embedding_dim,
            places[self.own.cpu().numpy()],
        )


def group_by_frequency(spec: TableSpec, groups: int) -> np.ndarray:
    """Group of each id, int64: 0 for the most frequent, equally many to a group.

    Examples
    --------
    >>> spec = TableSpec.of_table(6, 4, train_counts=[5, 0, 9, 1, 7, 2])
    >>> group_by_frequency(spec, 3)
    array([1, 2, 0, 2, 0, 1])
    """
    ids = spec.num_embeddings
    group = np.empty(ids, np.int64)
    group[largest_first(spec.train_counts)] = np.arange(ids) * min(groups, ids) // ids
    return group


def bits_of_ids(
    spec: TableSpec, assignment: np.ndarray, bits: np.ndarray
) -> np.ndarray:
    """Bits of each id's numbers, int64; or one clear ValueError."""
    group, bits = np.asarray(assignment), np.asarray(bits)
    if group.dtype.kind not in "iu" or group.shape != (spec.num_embeddings,):
        raise ValueError(
            f"assignment must be {spec.num_embeddings} integers, got {group.dtype} of "
            f"shape {group.shape}"
        )
    if bits.dtype.kind not in "iu" or bits.ndim != 1 or not np.isin(bits, WIDTHS).all():
        raise ValueError(f"bits must be some of {WIDTHS}, one per group, got {bits!r}")
    if group.min() < 0 or group.max() >= len(bits):
        raise ValueError(f"assignment must name groups from 0 to {len(bits) - 1}")
    own: np.ndarray = bits[group].astype(np.int64)
    if not own.any():
        raise ValueError("bits are 0 for all ids: some must have a bit")
    return own


def first_steps(weight: Tensor, widths: Sequence[int]) -> Tensor:
    """LSQ's start, 2 mean|w| / sqrt(2**(bits - 1)), for each width; shape (widths, 1).

    One bit is then read as plus or minus the mean.
    """
    halves = torch.tensor([2.0 ** (bits - 1) for bits in widths])
    return 2 * weight.detach().abs().mean() / halves.sqrt()[:, None]


def weights_and_steps(
    table: WidthMixtures | MPE, learning_rate: float, step_rate: float
) -> list[dict[str, Any]]:
    """Groups of an optimiser: weights, and steps at a rate of their own."""
    rate = learning_rate * step_rate * STEP_SHARES[table.regime.optimizer]
    return [
        {"params": [table.weight], "lr": learning_rate},
        {"params": [table.step], "lr": rate},
    ]


def score_widths(chances: np.ndarray) -> np.ndarray:
    """What widths are worth to groups: each bit more as much as it is asked for, by the
    logarithm of the odds that a group has so many bits or more.

    So the best width is the median, and where a budget is less or more than all these
    take, groups take about the same quantile: chances of single widths say nothing
    about those in between.

    Parameters
    ----------
    chances : ndarray of float64, shape (groups, 7)
        Their logarithms.

    Returns
    -------
    ndarray of float64, shape (groups, 7)

    Examples
    --------
    >>> chances = np.array([[0.1, 0.2, 0.6, 0.05, 0.03, 0.01, 0.01]])
    >>> score_widths(np.log(chances)).round(1)
    array([[  0. ,   2.2,   3. ,   0.8,  -2.1,  -6. , -10.6]])
    """
    fewer = np.logaddexp.accumulate(chances, axis=1)[:, :-1]
    more = np.logaddexp.accumulate(chances[:, ::-1], axis=1)[:, -2::-1]
    return np.cumsum(np.pad(more - fewer, ((0, 0), (1, 0))), axis=1)


def settle_bits(scores: np.ndarray, cost: MixedCost, budget: int) -> np.ndarray:
    """Bits of each group: the best total score of what fits a budget, nearly, then
    widened until no group can have more.

    Which widths occur at all decides what a part's levels and the map of the parts
    cost: each set of widths is tried.

    Parameters
    ----------
    scores : ndarray of float64, shape (groups, 7)
        Of `WIDTHS`, which add up over groups.
    cost : MixedCost
    budget : int

    Returns
    -------
    ndarray of int64, shape (groups,)
    """
    best, found = -np.inf, np.zeros(len(scores), np.int64)
    for number in range(1, len(WIDTHS) + 1):
        for chosen in combinations(WIDTHS, number):
            bits = choose_at_a_price(scores, cost, np.array(chosen), budget)
            if bits is not None:
                total = np.take_along_axis(scores, bits[:, None], 1).sum()
                if total > best:
                    best, found = total, bits
    return widen_bits(found, scores, cost, budget)


def choose_at_a_price(
    scores: np.ndarray, cost: MixedCost, allowed: np.ndarray, budget: int
) -> np.ndarray | None:
    """Of some widths the best for each group at the lowest price of a byte at which
    all fit; None if they do at none.
    """
    each = cost.rows[:, None] * cost.each[allowed]  # (groups, widths)

    def choose(price: float) -> np.ndarray:
        bits: np.ndarray = allowed[(scores[:, allowed] - price * each).argmax(1)]
        return bits

    # At the higher price no score is worth a byte.
    low, high = 0.0, float(np.ptp(scores, axis=1).max()) + 1
    if cost.count(choose(low)) <= budget:
        return choose(low)
    if cost.count(choose(high)) > budget:
        return None
    for _ in range(50):
        middle = (low + high) / 2
        if cost.count(choose(middle)) <= budget:
            high = middle
        else:
            low = middle
    return choose(high)


def widen_bits(
    bits: np.ndarray, scores: np.ndarray, cost: MixedCost, budget: int
) -> np.ndarray:
    """Spend what is left of a budget, where a byte loses the least score."""
    bits, groups = bits.copy(), np.arange(len(bits))
    while True:
        more = cost.each - cost.each[bits][:, None]  # bytes of a row, (groups, 7)
        lost = scores[groups, bits][:, None] - scores
        price = lost / np.maximum(more * cost.rows[:, None], 1)
        wider = np.flatnonzero(np.arange(len(WIDTHS)) > bits[:, None])
        for place in wider[np.argsort(price.ravel()[wider], kind="stable")]:
            group, width = divmod(int(place), len(WIDTHS))
            tried = bits.copy()
            tried[group] = width
            if cost.count(tried) <= budget:
                bits = tried
                break
        else:
            return bits
