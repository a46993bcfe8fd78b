r"""Three ways to make a table smaller, alone and together: do they get in each other's
way?

Bits a number, numbers a row, rows of a table: each of the survey's three axes has three
levels here, and all 27 combinations are tested.  Six tables are trained, of each width
with and without shared rows; what comes after training, bits and product codes, is
tested on the same six.  So 27 cells cost 6 trainings a seed.

A cell A+B loses :math:`L(A+B)` of log-loss against the full table.  Had neither part
anything to do with the other, losses would add up; what they do not explain is the
interaction

.. math:: I_{AB} = L(A+B) - L(A) - L(B),

and of three :math:`I_{ABC} = L(ABC) - L(AB) - L(AC) - L(BC) + L(A) + L(B) + L(C)`.
Above 0 the parts get in each other's way.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from scipy import stats

from survey_code.catalog import get_method
from survey_code.curves import Difference, Point, read_point
from survey_code.lab.comparison import draw_curves
from survey_code.lab.contest import Contest, Entrant
from survey_code.lab.experiment import Data
from survey_code.lab.nesting import (
    FormExperiment,
    draw_point,
    list_recorded,
    read_blocks,
)
from survey_code.lab.results import Result, group_seeds
from survey_code.lab.trial import Trial
from survey_code.options import Options

# The levels of each axis, the full table's first.
AXES: dict[str, tuple[str, ...]] = {
    "bits": ("32 bits", "8 bits", "4 bits"),
    "dims": ("full", "mde", "pruned"),
    "sharing": ("none", "quotient_remainder", "pq"),
}
SHAPE = tuple(len(levels) for levels in AXES.values())
# What is trained; codes and bits come after it.
TRAINED_SHARING = AXES["sharing"][:2]
# In the other order at the same bytes: rounded, then shared.
OTHER_ORDERS = {f"pq, {bits}": f"{bits}, pq, {bits}" for bits in AXES["bits"][1:]}
# Options of a base that are tuned, by what has them; those of others are as by default.
KNOBS = {
    "mde": ("alpha",),
    "pruned": ("rewind", "decay"),
    "quotient_remainder": ("combine",),
}
# Methods of two axes, as their papers have them: they are no rivals of one axis.
PUBLISHED_HYBRIDS = ("cerp", "mgqe", "mpe", "shark")
ONE_AXIS = ("low precision", "mixed dimension", "weight sharing")
# What is left of sums of a few numbers that cancel.
CANCELLED = 1e-9


@dataclass(frozen=True)
class Cell:
    """One combination of levels.

    Parameters
    ----------
    bits, dims, sharing : str
        Of `AXES`.
    """

    bits: str = "32 bits"
    dims: str = "full"
    sharing: str = "none"

    @classmethod
    def at(cls, place: Sequence[int]) -> Cell:
        """By the places of its levels."""
        return cls(*(levels[k] for levels, k in zip(AXES.values(), place)))

    @property
    def parts(self) -> list[str]:
        """The levels that are not the full table's."""
        own = dataclasses.asdict(self)
        return [own[axis] for axis, levels in AXES.items() if own[axis] != levels[0]]

    @property
    def name(self) -> str:
        """Its parts, or that it is the full table."""
        return " + ".join(self.parts) or "full"

    @property
    def base(self) -> tuple[str, str]:
        """Width and sharing of the table that is trained for it."""
        trained = self.sharing if self.sharing in TRAINED_SHARING else "none"
        return self.dims, trained

    @property
    def form(self) -> str:
        """What is done with that table after training; nothing is ``""``."""
        steps = ["pq"] * (self.sharing == "pq") + [self.bits] * (self.bits != "32 bits")
        return ", ".join(steps)


# In the order of `AXES`, bits turning slowest.
CELLS = tuple(Cell.at(place) for place in np.ndindex(*SHAPE))


# -- asking for it --------------------------------------------------------------------


def list_base_forms(sharing: str) -> tuple[str, ...]:
    """The forms that a trained table of some sharing is tested in, one a cell, and the
    other orders.
    """
    forms = {cell.form for cell in CELLS if cell.base[1] == sharing} - {""}
    orders = {OTHER_ORDERS[form] for form in forms if form in OTHER_ORDERS}
    return tuple(sorted(forms | orders))


def pose_base(
    method: str,
    options: Options,
    data: Data,
    trial: Trial,
    ratio: float = 1.0,
    seed: int = 0,
) -> FormExperiment:
    """The training of one of the six tables, and all that it is tested in."""
    forms = list_base_forms(str(options.asked()["sharing"]))
    return FormExperiment(method, options, data, trial, ratio, seed, forms)


def list_bases() -> tuple[Entrant, ...]:
    """The six tables that are trained, each with the options that are tuned of it."""
    defaults = get_method("nested").ask({}).asked()
    entrants = []
    for dims, sharing in itertools.product(AXES["dims"], TRAINED_SHARING):
        own = {*KNOBS.get(dims, ()), *KNOBS.get(sharing, ())}
        others = itertools.chain.from_iterable(KNOBS.values())
        asked = {name: defaults[name] for name in others if name not in own}
        asked |= {"dims": dims, "sharing": sharing}
        name = Cell(dims=dims, sharing=sharing).name
        entrants.append(Entrant(name, "nested", tuple(asked.items()), (1.0,)))
    return tuple(entrants)


def cross(contest: Contest) -> Contest:
    """The factorial on a contest's data, trained and tuned as its entrants are."""
    return dataclasses.replace(
        contest,
        name=f"{contest.name}_factorial",
        entrants=list_bases(),
        ratios=(1.0,),
        kind=pose_base,
        _reached={},
    )


# -- what was found -------------------------------------------------------------------


def find_bases(results: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    """The runs of each base, by width and sharing, those of one seed at one place.

    Raises
    ------
    ValueError
        If a base, or one of its seeds, is not there.
    """
    bases: dict[tuple[str, str], dict[int, Result]] = {}
    for result in results:
        if result.key == "nested" and result.asked and result.failure is None:
            own = (str(result.asked["dims"]), str(result.asked["sharing"]))
            bases.setdefault(own, {})[result.seed] = result
    seeds = sorted({seed for runs in bases.values() for seed in runs})
    for base in itertools.product(AXES["dims"], TRAINED_SHARING):
        missing = set(seeds) - bases.get(base, {}).keys() if seeds else {"all"}
        if missing:
            raise ValueError(
                f"no run of dims={base[0]}, sharing={base[1]} with seeds "
                f"{sorted(map(str, missing))}"
            )
    return {base: [runs[seed] for seed in seeds] for base, runs in bases.items()}


def gather_losses(results: Iterable[Result]) -> np.ndarray:
    """Test log-losses, float64 of shape (bits, dims, sharing, seeds, blocks).

    The first three axes are those of `AXES`; blocks are stretches of test rows, the
    same for all.

    Raises
    ------
    ValueError
        If a run or a form of it is not there.
    """
    bases = find_bases(results)
    losses = [
        [read_blocks(run, cell.form) for run in bases[cell.base]] for cell in CELLS
    ]
    found = np.array(losses)
    return found.reshape(*SHAPE, *found.shape[1:])


def draw_cells(results: Iterable[Result], metric: str) -> dict[Cell, Point]:
    """Each cell's ratio, and its metric by seed."""
    bases = find_bases(results)
    return {cell: draw_point(bases[cell.base], metric, cell.form) for cell in CELLS}


def interact(losses: np.ndarray) -> np.ndarray:
    """Main effects and interactions of all orders.

    Along each of the first three axes the first level is subtracted from the others.
    What is left where one place is not 0 is a loss against the full table; where two
    are not, the interaction of two parts; where none is 0, that of three.

    Parameters
    ----------
    losses : ndarray of float, shape (bits, dims, sharing, ...)

    Returns
    -------
    ndarray of float, same shape

    Examples
    --------
    >>> bits, dims = np.array([0.0, 1.0]), np.array([0.0, 5.0])
    >>> losses = 3 + bits[:, None, None] + dims[:, None]
    >>> losses[1, 1] += 0.25
    >>> interact(losses)[:, :, 0].tolist()
    [[3.0, 5.0], [1.0, 0.25]]
    """
    effects = np.array(losses, dtype=np.float64)
    for axis in range(len(AXES)):
        levels = np.moveaxis(effects, axis, 0)
        levels[1:] -= levels[:1]
    return effects


def estimate(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """A mean, and how far it may be off: half of its interval.

    Values vary with the seed and with the test rows.  The variance of the mean is that
    of the seeds' means plus that of the blocks' means, a little more than it is, with
    as many degrees of freedom as Welch and Satterthwaite count; the interval is
    Student's.

    Parameters
    ----------
    values : ndarray of float, shape (seeds, blocks)
    level : float
        Share of such intervals that hold the mean.

    Returns
    -------
    mean, half : float
        The half is NaN of a single seed or block.
    """
    means = [values.mean(axis=1), values.mean(axis=0)]
    if min(map(len, means)) < 2:
        return float(values.mean()), math.nan
    parts = [own.var(ddof=1) / len(own) for own in means]
    total = sum(parts)
    if not total:
        return float(values.mean()), 0.0
    free = total**2 / sum(v**2 / (len(m) - 1) for v, m in zip(parts, means))
    quantile = stats.t.ppf((1 + level) / 2, free)
    return float(values.mean()), float(quantile * math.sqrt(total))


def judge_effect(mean: float, half: float) -> str:
    """What an interaction says of its parts; nothing of a single seed.

    Examples
    --------
    >>> judge_effect(0.01, 0.02), judge_effect(0.05, 0.02), judge_effect(-0.05, 0.02)
    ('additive', 'worse than additive', 'better than additive')
    """
    if math.isnan(half):
        return "unknown"
    if abs(mean) <= max(half, CANCELLED):
        return "additive"
    return "worse than additive" if mean > 0 else "better than additive"


def tabulate_effects(losses: np.ndarray, level: float = 0.95) -> pd.DataFrame:
    """Effects of all cells but the full table.

    Parameters
    ----------
    losses : ndarray of float, shape (bits, dims, sharing, seeds, blocks)
        Of `gather_losses`.
    level : float
        Of the intervals; see `estimate`.

    Returns
    -------
    DataFrame
        Indexed by ``cell``, fewer parts first: ``order``, the number of its parts;
        ``loss``, what it loses against the full table; ``alone``, what its parts lose,
        each alone, in sum; ``effect``, with ``low`` and ``high``: of one part its loss,
        of more the interaction; and in words, of two or three, what that ``says``.
    """
    effects = interact(losses)
    rows = {}
    places = list(np.ndindex(*SHAPE))
    for place in sorted(places, key=np.count_nonzero)[1:]:
        cell, order = Cell.at(place), int(np.count_nonzero(place))
        mean, half = estimate(effects[place], level)
        rows[cell.name] = {
            "order": order,
            "loss": float((losses[place] - losses[0, 0, 0]).mean()),
            "alone": sum(float(effects[one].mean()) for one in split_place(place)),
            "effect": mean,
            "low": mean - half,
            "high": mean + half,
            "says": judge_effect(mean, half) if order > 1 else "",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("cell")


def split_place(place: Sequence[int]) -> list[tuple[int, ...]]:
    """The places of a cell's parts, each alone.

    Examples
    --------
    >>> split_place((2, 0, 1))
    [(2, 0, 0), (0, 0, 1)]
    """
    return [
        tuple(k if axis == own else 0 for axis in range(len(place)))
        for own, k in enumerate(place)
        if k
    ]


def tabulate_ratios(results: Iterable[Result]) -> pd.DataFrame:
    """Whether ratios multiply.

    Returns
    -------
    DataFrame
        Indexed by ``cell``, of two parts or three: the ``ratio`` reached; the
        ``product`` of what its parts reach, each alone; and the ``share`` of it that
        is reached, on a logarithmic scale.
    """
    points = draw_cells(results, "log_loss")
    rows = {}
    for place in sorted(np.ndindex(*SHAPE), key=np.count_nonzero):
        if np.count_nonzero(place) > 1:
            cell = Cell.at(place)
            ratio = points[cell].reached[0]
            alone = [points[Cell.at(one)].reached[0] for one in split_place(place)]
            product = math.prod(alone)
            rows[cell.name] = {
                "ratio": ratio,
                "product": product,
                "share": math.log(ratio) / math.log(product),
            }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("cell")


def compare_orders(results: Iterable[Result], level: float = 0.95) -> pd.DataFrame:
    """Round then share, less share then round: the same bytes in another order.

    Returns
    -------
    DataFrame
        Indexed by ``dims`` and ``bits``: the ``difference`` in log-loss, above 0 where
        rounding first is worse, with ``low`` and ``high``.
    """
    bases, rows = find_bases(results), {}
    for dims, (form, other) in itertools.product(AXES["dims"], OTHER_ORDERS.items()):
        runs = bases[dims, "none"]
        first, second = (
            np.array([read_blocks(run, own) for run in runs]) for own in (other, form)
        )
        mean, half = estimate(first - second, level)
        rows[dims, form.removeprefix("pq, ")] = {
            "difference": mean,
            "low": mean - half,
            "high": mean + half,
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.rename_axis(["dims", "bits"])


# -- beside one axis ------------------------------------------------------------------


def compare_at_equal_bytes(
    results: Iterable[Result],
    contest: Iterable[Result],
    rounded: Iterable[Result] = (),
    metric: str = "auc",
) -> pd.DataFrame:
    """Hybrids beside the best method of a single axis that takes as many bytes.

    Parameters
    ----------
    results : iterable of Result
        Of the factorial.
    contest : iterable of Result
        The runs of a contest on the same data: its methods of one axis are the rivals,
        read off their curves at the hybrid's ratio; the hybrids that were published
        are compared, too.
    rounded : iterable of Result
        Of `FormExperiment`: further hybrids are what they make of methods whose axis is
        not bits, 4-bit cores of a train for one.
    metric : {"auc", "log_loss"}

    Returns
    -------
    DataFrame
        Indexed by ``hybrid``, by rising ratio: ``ratio``, ``mean``, the best ``rival``
        there and its mean ``beside`` it; by how much the hybrid is ``ahead``, seed by
        seed, and whether that is ``clear``.  A hybrid beyond all rivals' curves has
        none.
    """
    runs = [run for run in contest if run.failure is None]
    rivals = draw_curves((r for r in runs if is_one_axis(r.key)), metric)
    own = draw_curves((r for r in runs if r.key in PUBLISHED_HYBRIDS), metric)
    hybrids = [(n, point) for n, points in own.items() for point in points]
    hybrids += list_rounded(rounded, metric)
    hybrids += [
        (cell.name, point)
        for cell, point in draw_cells(results, metric).items()
        if len(cell.parts) > 1
    ]
    hybrids.sort(key=lambda pair: pair[1].reached)
    rows = [{"hybrid": n, **set_beside(p, rivals, metric)} for n, p in hybrids]
    return pd.DataFrame(rows).set_index("hybrid")


def set_beside(
    point: Point, rivals: Mapping[str, Sequence[Point]], metric: str
) -> dict[str, Any]:
    """A row of `compare_at_equal_bytes`."""
    best, beside = find_rival(rivals, point.reached[0], metric)
    row: dict[str, Any] = {
        "ratio": point.reached[0], "mean": point.mean, "rival": best,
        "beside": math.nan, "ahead": math.nan, "clear": False,
    }  # fmt: skip
    if beside is None:
        return row
    lead = Difference.between(point, beside)
    ahead = lead.mean if metric == "auc" else -lead.mean
    return row | {"beside": beside.mean, "ahead": ahead, "clear": lead.is_clear}


def list_rounded(results: Iterable[Result], metric: str) -> list[tuple[str, Point]]:
    """The forms of methods that have another axis than bits, by name."""
    return [
        (f"{name}, {form}", draw_point(group, metric, form))
        for (name, _, _), group in group_seeds(results).items()
        if get_method(group[0].key).category not in ("baseline", ONE_AXIS[0])
        or group[0].key == "head_only"
        for form in list_recorded(group[0])
    ]


def is_one_axis(key: str) -> bool:
    """Whether a method makes a table smaller along one of the three axes alone."""
    return key not in PUBLISHED_HYBRIDS and get_method(key).category in ONE_AXIS


def find_rival(
    curves: Mapping[str, Sequence[Point]], ratio: float, metric: str
) -> tuple[str, Point | None]:
    """Who is best at a ratio, and what is read off there; nobody, perhaps."""
    found = {name: read_point(points, ratio) for name, points in curves.items()}
    there = {name: point for name, point in found.items() if point is not None}
    if not there:
        return "", None
    choose: Callable[..., str] = max if metric == "auc" else min
    best = choose(there, key=lambda name: there[name].mean)
    return best, there[best]


# -- a picture ------------------------------------------------------------------------

VERDICT_COLORS = {
    "worse than additive": "C3",
    "better than additive": "C2",
    "additive": "C0",
    "unknown": "0.5",
}


def plot_interactions(
    table: pd.DataFrame, ax: Axes | None = None, order: int = 2
) -> Axes:
    """What combinations lose, beside what their parts lose in sum: a row each.

    A hollow mark is the sum, of three parts with the interactions of their pairs; a
    full one is what the combination loses, in the colour of the verdict; the line
    through it is the interval of the interaction.

    Parameters
    ----------
    table : DataFrame
        Of `tabulate_effects`.
    ax : Axes, optional
    order : {2, 3}
        Parts of the combinations that are drawn.

    Returns
    -------
    Axes
    """
    axes = plt.gca() if ax is None else ax
    drawn = table[table["order"] == order]
    for row, (_, one) in enumerate(drawn.iterrows()):
        color, sums = VERDICT_COLORS[one["says"]], one["loss"] - one["effect"]
        axes.hlines(row, sums + one["low"], sums + one["high"], color, linewidth=1.5)
        axes.plot(one["loss"], row, "o", color=color, markersize=5, label=one["says"])
        axes.plot(sums, row, "o", color="0.3", markersize=7, markerfacecolor="none",
                  label="parts in sum")  # fmt: skip
    axes.axvline(0, color="0.85", zorder=0)
    axes.set_yticks(np.arange(len(drawn)), list(drawn.index), fontsize=8)
    axes.set_ylim(len(drawn) - 0.5, -0.5)
    axes.set_xlabel("log-loss above the full table's")
    shown = dict(zip(*reversed(axes.get_legend_handles_labels())))
    axes.legend(list(shown.values()), list(shown), fontsize=7.5)
    return axes
