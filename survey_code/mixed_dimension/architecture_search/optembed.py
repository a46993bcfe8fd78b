"""OptEmbed: drop rows by learned thresholds, evolve the fields' widths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import check_range
from survey_code.mixed_dimension.architecture_search.choices import (
    Jury,
    check_positive,
    fields_of,
    search_epochs,
)
from survey_code.mixed_dimension.architecture_search.prefix import (
    PrefixEmbedding,
    PrefixSupernet,
    cut_to_budget,
    prefix_mask,
    prefix_overhead,
    smallest_prefix,
)
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


class MaskedSupernet(PrefixSupernet):
    """A full table with a threshold for each field and a random width each time.

    In training, each field of each read has a random width; a row whose entries
    add up, in absolute value, to less than its field's threshold is read as zeros.

    Parameters
    ----------
    spec : TableSpec
    pull : float
        Factor of the penalty, the sum of exp(-threshold) over the fields.
    threshold_rate : float
        Learning rate of the thresholds, over that of the table.
    decay : float
        Weight decay of the whole table.  Without it the rows of rare ids stay as
        long as they were drawn, and no threshold finds them.
    seed : int
    """

    field: Tensor

    def __init__(
        self,
        spec: TableSpec,
        pull: float,
        threshold_rate: float,
        decay: float,
        seed: int,
    ) -> None:
        super().__init__(spec, seed)
        field = torch.from_numpy(fields_of(spec))
        self.register_buffer("field", field, persistent=False)
        self.pull, self.threshold_rate, self.decay = pull, threshold_rate, decay
        self.thresholds = nn.Parameter(torch.zeros(len(spec.field_starts) - 1))

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The table, and the slower thresholds."""
        slow = learning_rate * self.threshold_rate
        return [
            {
                "params": [self.weight],
                "lr": learning_rate,
                "weight_decay": self.decay,
            },
            {"params": [self.thresholds], "lr": slow},
        ]

    def margin(self, rows: Tensor, ids: Tensor) -> Tensor:
        """By how much each row exceeds its field's threshold."""
        return rows.abs().sum(-1) - self.thresholds[self.field[ids]]

    def embed(self, ids: Tensor) -> Tensor:
        """Full rows behind both masks; in the trial of widths, behind `lengths`."""
        if not self.training:
            return super().embed(ids)
        rows = functional.embedding(ids, self.weight)
        drawn = self.rng.integers(1, self.embedding_dim + 1, size=tuple(ids.shape))
        widths = torch.from_numpy(np.asarray(drawn)).to(ids.device)
        kept = StepThrough.apply(self.margin(rows, ids))
        return rows * kept[..., None] * prefix_mask(widths, self.embedding_dim)

    def penalty(self) -> Tensor:
        """What raises the thresholds."""
        return self.pull * torch.exp(-self.thresholds).sum()

    @torch.no_grad()
    def all_margins(self) -> np.ndarray:
        """The margin of every row."""
        ids = torch.arange(self.num_embeddings, device=self.weight.device)
        return self.margin(self.weight, ids).cpu().numpy()


class OptEmbed(PrefixEmbedding):
    """Each field its width, and only rows worth a place (key ``optembed``).

    Parameters
    ----------
    spec : TableSpec
    lengths : ndarray of int64, shape (num_embeddings,)
        What the search found: the field's width, or 0 for a dropped row.
    seed : int, default 0

    Notes
    -----
    Lyu et al., "OptEmbed: Learning Optimal Embedding Table for Click-through Rate
    Prediction" (CIKM 2022).  As in the paper, the rows below their thresholds are
    dropped.  So that a budget is met, we take evolved widths as proportions between
    fields and scale them until they fit; only where one column of each row is too
    much, more rows are dropped, those of the smallest margins.
    """

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        generations: int = 8,
        population: int = 12,
        pull: float = 1e-3,
        threshold_rate: float = 0.1,
        decay: float = 1e-4,
        search_epochs: int | None = None,
    ) -> dict[str, Any]:
        """The budget, and how long to evolve."""
        check_range("generations", generations, 0, 10_000)
        check_range("population", population, 2, 10_000)
        check_positive(pull=pull, threshold_rate=threshold_rate)
        budget = spec.require(ratio, smallest=smallest_prefix(spec))
        return {
            "budget": budget,
            "generations": generations,
            "population": population,
            "pull": pull,
            "threshold_rate": threshold_rate,
            "decay": decay,
            "search_epochs": search_epochs,
        }

    @classmethod
    def searching(
        cls, spec: TableSpec, options: dict[str, Any], seed: int
    ) -> MaskedSupernet:
        """The table with thresholds and random widths."""
        return MaskedSupernet(
            spec,
            options["pull"],
            options["threshold_rate"],
            options["decay"],
            seed,
        )

    @classmethod
    def search(
        cls, task: Any, spec: TableSpec, options: dict[str, Any], seed: int
    ) -> dict[str, Any]:
        """Train the supernet, then evolve widths by their validation metric in it."""
        table = cls.searching(spec, options, seed)
        network = task.train(table, **search_epochs(task, options["search_epochs"]))
        jury, margins = Jury(task, network), table.all_margins()

        def lengths_of(widths: np.ndarray) -> np.ndarray:
            return lengths_within(widths, margins, spec, options["budget"])

        def quality(widths: np.ndarray) -> float:
            table.set_lengths(lengths_of(widths))
            return jury.metric()

        best, _ = evolve(
            quality,
            len(spec.field_starts) - 1,
            spec.embedding_dim,
            generations=options["generations"],
            population=options["population"],
            seed=seed,
        )
        return {"lengths": lengths_of(best)}


def lengths_within(
    widths: np.ndarray, margins: np.ndarray, spec: TableSpec, budget: int
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
    return np.where(alive, scale_widths(widths, rows, numbers, dim)[field], 0)


def scale_widths(
    widths: np.ndarray, rows: np.ndarray, numbers: int, dim: int
) -> np.ndarray:
    """Widths in about the same proportion, such that so many numbers are in use.

    Examples
    --------
    >>> scale_widths(np.array([4, 8]), np.array([10, 10]), 95, dim=16).tolist()
    [3, 6]
    """
    scaled = np.zeros_like(widths)
    field, step = np.divmod(np.arange(len(widths) * dim), dim)
    # Every first column, then as a growing scale calls for them.
    scale = np.where(step == 0, 0, (step + 1) / widths[field])
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
            one, other = (pool[k] for k in rng.integers(parents, size=2))
            if len(pool) % 2:
                child = np.where(rng.random(genes) < 0.5, one, other)
            else:
                changed = rng.random(genes) < mutation
                changed[rng.integers(genes)] = True
                drawn = rng.integers(1, highest + 1, size=genes)
                child = np.where(changed, drawn, one)  # a copy: the parent lives on
            pool.append(child)
            marks.append(quality(child))
        history.append(max(marks))
    return pool[int(np.argmax(marks))], history
