"""OptEmbed: drop rows by learned thresholds, evolve the fields' widths."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.embedding import pick_rows
from survey_code.method import Found, Judge, Searched
from survey_code.mixed_dimension.prefix import (
    LengthOptions,
    PrefixEmbedding,
    PrefixSupernet,
    cut_to_budget,
    prefix_mask,
    prefix_overhead,
    smallest_prefix,
)
from survey_code.mixed_dimension.search import fields_of
from survey_code.mixed_dimension.widths import FLOOR
from survey_code.options import option
from survey_code.order import largest_first
from survey_code.spec import TableSpec


class StepThrough(torch.autograd.Function):
    """1 where x > 0, else 0; backward the long-tailed estimator of the slope.

    Its slope is ``2 - 4 |x|`` up to ``|x| = 0.4``, then 0.4 up to ``|x| = 1``,
    then 0.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        """The step."""
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        """The estimator's slope times the gradient."""
        (x,) = ctx.saved_tensors
        return grad * estimate_slope(x)


def estimate_slope(x: Tensor) -> Tensor:
    """The long-tailed estimator of a step's derivative.

    Examples
    --------
    >>> estimate_slope(torch.tensor([0.0, -0.25, 0.7, 1.5])).tolist()
    [2.0, 1.0, 0.4000000059604645, 0.0]
    """
    size = x.abs()
    tail = torch.where(size <= 1, 0.4, 0.0).to(x.dtype)
    return torch.where(size <= 0.4, 2 - 4 * size, tail)


class OptEmbedOptions(LengthOptions):
    """Options of `OptEmbed`."""

    generations: int = option(8, "generations of widths", low=0, high=10_000)
    population: int = option(12, "lists of widths at a time", low=2, high=10_000)
    # Without it the rows of rare ids stay as long as they were drawn, and no
    # threshold finds them.
    decay: float = option(
        1e-4, "weight decay of the searching table", low=0, tune=(1e-4, 0.0, 1e-5)
    )
    pull: float = option(
        1e-3, "factor of the penalty that raises the thresholds",
        above=0, tune=(1e-3, 1e-4),
    )  # fmt: skip
    threshold_rate: float = option(
        0.1, "learning rate of the thresholds, over that of the table", above=0
    )
    floor: float = option(
        FLOOR, "least width of a field, as a share of what all could have alike",
        low=0, high=1,
    )  # fmt: skip


class MaskedSupernet(PrefixSupernet):
    """A full table with a threshold for each field and a random width each time.

    In training, each field of each read has a random width; a row whose entries
    add up, in absolute value, to less than its field's threshold is read as zeros.
    """

    gauges = ("thresholds",)

    field: Tensor

    def __init__(self, spec: TableSpec, options: OptEmbedOptions, seed: int) -> None:
        super().__init__(spec, seed)
        field = torch.from_numpy(fields_of(spec))
        self.register_buffer("field", field, persistent=False)
        self.options, self.seed = options, seed
        self.thresholds = nn.Parameter(torch.zeros(len(spec.field_starts) - 1))

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The table, and the slower thresholds."""
        slow, decay = self.options.threshold_rate, self.options.decay
        return [
            {"params": [self.weight], "lr": learning_rate, "weight_decay": decay},
            {"params": [self.thresholds], "lr": learning_rate * slow},
        ]

    def margin(self, rows: Tensor, ids: Tensor) -> Tensor:
        """By how much each row exceeds its field's threshold."""
        return rows.abs().sum(-1) - self.thresholds[self.field[ids]]

    def embed(self, ids: Tensor) -> Tensor:
        """Full rows behind both masks; in the trial of widths, behind `lengths`."""
        if not self.training:
            return super().embed(ids)
        rows = pick_rows(ids, self.weight)
        drawn = self.rng.integers(1, self.embedding_dim + 1, size=tuple(ids.shape))
        widths = torch.from_numpy(np.asarray(drawn)).to(ids.device)
        kept = StepThrough.apply(self.margin(rows, ids))
        return rows * kept[..., None] * prefix_mask(widths, self.embedding_dim)

    def penalty(self) -> Tensor:
        """What raises the thresholds."""
        return self.options.pull * torch.exp(-self.thresholds).sum()

    @torch.no_grad()
    def all_margins(self) -> np.ndarray:
        """The margin of every row."""
        ids = torch.arange(self.num_embeddings, device=self.weight.device)
        return self.margin(self.weight, ids).cpu().numpy()


class OptEmbed(PrefixEmbedding, Searched[OptEmbedOptions, MaskedSupernet]):
    """Each field its width, and only rows worth a place (key ``optembed``).

    The length found for an id is its field's width, or 0 for a dropped row.

    Notes
    -----
    Lyu et al., "OptEmbed: Learning Optimal Embedding Table for Click-through Rate
    Prediction" (CIKM 2022).  As in the paper, the rows below their thresholds are
    dropped.  So that a budget is met, we take evolved widths as proportions between
    fields and scale them until they fit; only where one column of each row is too
    much, more rows are dropped, those of the smallest margins.
    """

    def __init__(
        self, spec: TableSpec, options: OptEmbedOptions, seed: int = 0
    ) -> None:
        super().__init__(spec, options.lengths, seed)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: OptEmbedOptions) -> Found:
        """The budget, which must hold a number."""
        return {"budget": spec.require(ratio, smallest=smallest_prefix(spec))}

    @classmethod
    def settle(
        cls, table: MaskedSupernet, judge: Judge, spec: TableSpec,
        options: OptEmbedOptions,
    ) -> Found:  # fmt: skip
        """Evolve widths by their validation metric in the supernet."""
        margins = table.all_margins()

        def lengths_of(widths: np.ndarray) -> np.ndarray:
            return scale_lengths(widths, margins, spec, options.budget, options.floor)

        def quality(widths: np.ndarray) -> float:
            table.set_lengths(lengths_of(widths))
            return judge.metric()

        best, _ = evolve(
            quality,
            len(spec.field_starts) - 1,
            spec.embedding_dim,
            generations=options.generations,
            population=options.population,
            seed=table.seed,
        )
        return {"lengths": lengths_of(best)}


def scale_lengths(
    widths: np.ndarray,
    margins: np.ndarray,
    spec: TableSpec,
    budget: int,
    floor: float = FLOOR,
) -> np.ndarray:
    """Lengths of all rows: the widths in proportion, scaled until they fit.

    Rows below their thresholds have length 0, unless all fit in full width without
    their places.  Only where not even one column of the others fits, the rows of the
    smallest margins go too, and the widths stay as they are.

    Parameters
    ----------
    widths : ndarray of int64, shape (fields,)
        1 to embedding_dim.
    margins : ndarray of float, shape (n,)
    spec : TableSpec
    budget : int
        In bytes.
    floor : float
        Least width of a field, as a share of what all could have alike.

    Returns
    -------
    ndarray of int64, shape (n,)
    """
    field, dim = fields_of(spec), spec.embedding_dim
    groups = min(len(widths), dim) + 1
    numbers = (budget - prefix_overhead(spec, groups)) // 4
    alive = margins > 0
    if dim * alive.sum() <= numbers:
        alive[:] = True
    rows = np.bincount(field[alive], minlength=len(widths))
    if rows.sum() > numbers:
        return cut_to_budget(widths[field], margins, budget, dim)
    alike = min(numbers // max(int(rows.sum()), 1), dim)
    least = max(math.ceil(floor * alike), 1)
    return np.where(alive, scale_widths(widths, rows, numbers, dim, least)[field], 0)


def scale_widths(
    widths: np.ndarray, rows: np.ndarray, numbers: int, dim: int, least: int = 1
) -> np.ndarray:
    """Widths in about the same proportion, such that so many numbers are in use, and
    none below the least unless those do not fit.

    Examples
    --------
    >>> scale_widths(np.array([4, 8]), np.array([10, 10]), 95, dim=16).tolist()
    [3, 6]
    """
    scaled = np.zeros_like(widths)
    field, step = np.divmod(np.arange(len(widths) * dim), dim)
    # The first columns of all, then as a growing scale calls for them.
    scale = np.where(step < least, step / dim**2, 1 + (step + 1) / widths[field])
    for place in np.argsort(scale, kind="stable"):
        f = field[place]
        if scaled[f] == step[place] and rows[f] <= numbers:
            scaled[f] += 1
            numbers -= int(rows[f])
    return scaled


def evolve(
    quality: Callable[[np.ndarray], float],
    genes: int,
    highest: int,
    *,
    generations: int = 8,
    population: int = 12,
    mutation: float = 0.1,
    seed: int = 0,
) -> tuple[np.ndarray, list[float]]:
    """Breed lists of integers from 1 to `highest`; the best always survives.

    The first lists are drawn up to limits that fall from `highest` to 1, so that
    narrow lists are among them too: inside a budget they keep more rows.  Each
    generation keeps the better half, and fills up with children: by turns a mixture
    of two parents, gene by gene, and a copy of one in which each gene is drawn anew
    with probability `mutation`, at least one of them.

    Parameters
    ----------
    quality : callable
        What to raise; asked once for each new list.
    genes, highest : int
    generations, population : int
    mutation : float
    seed : int

    Returns
    -------
    best : ndarray of int64, shape (genes,)
    history : list of float
        The best quality of the first and every later generation; it never falls.
    """
    rng = np.random.default_rng([seed, 7])
    limits = np.geomspace(highest, 1, population).round().astype(np.int64)
    pool = [rng.integers(1, limit + 1, size=genes) for limit in limits]
    pool[0] = np.full(genes, highest)  # the widest, as a start
    marks = [quality(widths) for widths in pool]
    history = [max(marks)]
    parents = max(population // 2, 1)
    for _ in range(generations):
        order = largest_first(np.array(marks))[:parents]
        pool, marks = [pool[k] for k in order], [marks[k] for k in order]
        while len(pool) < population:
            mix = len(pool) % 2 == 1
            pool.append(breed(pool[:parents], mix, highest, mutation, rng))
            marks.append(quality(pool[-1]))
        history.append(max(marks))
    return pool[int(np.argmax(marks))], history


def breed(
    parents: list[np.ndarray],
    mix: bool,
    highest: int,
    mutation: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """A child of two parents, or a copy of one with some genes drawn anew."""
    one, other = (parents[k] for k in rng.integers(len(parents), size=2))
    if mix:
        return np.where(rng.random(len(one)) < 0.5, one, other)
    changed = rng.random(len(one)) < mutation
    changed[rng.integers(len(one))] = True
    return np.where(changed, rng.integers(1, highest + 1, size=len(one)), one)
