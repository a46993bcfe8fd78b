"""Who stands where over tasks, ratios and seeds, how sure it is, and what it costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from scipy import stats

from survey_code.lab.comparison import compare, draw_curves, main_metric, rank_curves
from survey_code.lab.plots import name_lines
from survey_code.lab.results import Result, group_curves, group_seeds

# Runs of each task, by what it is called.
Contests = Mapping[str, Collection[Result]]
# A line of evidence of `survey_code.lab.measures`.
CostLine = Mapping[str, Any]


def place_methods(
    contests: Contests,
    ratios: Sequence[float] = (2, 4, 10, 30),
    names: Collection[str] | None = None,
) -> pd.DataFrame:
    """The place of each method at each ratio of each task, with each seed.

    Parameters
    ----------
    contests : mapping of str to collection of Result
    ratios : sequence of float
    names : collection of str, optional
        Who is compared, by the name of its curve; by default all that every contest
        has.

    Returns
    -------
    DataFrame
        Indexed by ``key``, columns by ``task``, ``ratio`` and ``seed``; 1 is the best.
        A ratio out of reach counts as in `rank`.
    """
    own = {task: group_curves(runs) for task, runs in contests.items()}
    shared = set.intersection(*({*curves} for curves in own.values())) - {"full"}
    chosen = shared if names is None else shared & {*names}
    places = {}
    for task, curves in own.items():
        runs = [run for name in curves if name in chosen for run in curves[name]]
        for seed in sorted({run.seed for run in runs}):
            drawn = draw_curves(run for run in runs if run.seed == seed)
            for ratio in ratios:
                ranks = rank_curves(drawn, sorted(chosen), ratio)
                places[task, f"{ratio:g}x", seed] = ranks
    table = pd.DataFrame(places).rename_axis("key")
    table.columns.names = ["task", "ratio", "seed"]
    return table.dropna()


def bootstrap_places(
    places: pd.DataFrame, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Mean places, and how far they move when other cells and seeds are drawn.

    Parameters
    ----------
    places : DataFrame
        Of `place_methods`.
    draws : int
        Samples: pairs of task and ratio with replacement, and in each of them seeds
        with replacement, the same for every method.
    level : float
        Share of the samples between ``low`` and ``high``.
    seed : int

    Returns
    -------
    DataFrame
        Indexed by ``key``, the best first: ``mean``, ``low``, ``high``, and ``first``,
        the share of the samples in which nobody's mean is better.
    """
    rng = np.random.default_rng(seed)
    cells = [
        columns.to_numpy(np.float64)  # (methods, seeds)
        for _, columns in places.T.groupby(["task", "ratio"], sort=False)
        for columns in [columns.T]
    ]
    means = np.empty((draws, len(places)))
    for k in range(draws):
        drawn = rng.integers(len(cells), size=len(cells))
        means[k] = np.mean(
            [
                cells[c][:, rng.integers(cells[c].shape[1], size=cells[c].shape[1])]
                .mean(1)
                for c in drawn
            ],
            axis=0,
        )  # fmt: skip
    cut = 50 * (1 - level)
    low, high = np.percentile(means, [cut, 100 - cut], axis=0)
    best = means <= means.min(1, keepdims=True)
    mean = np.mean([cell.mean(1) for cell in cells], axis=0)
    table = pd.DataFrame(
        {"mean": mean, "low": low, "high": high, "first": best.mean(0)},
        index=places.index,
    )
    return table.sort_values("mean", kind="stable")


def find_critical_difference(methods: int, blocks: int, level: float = 0.05) -> float:
    """By how much two mean places must differ not to be chance: Nemenyi's test.

    Parameters
    ----------
    methods : int
        That are ranked, 2 at least.
    blocks : int
        Rankings over which places are averaged.
    level : float

    Notes
    -----
    Demšar, "Statistical Comparisons of Classifiers over Multiple Data Sets" (2006):
    q / sqrt(2) * sqrt(k (k + 1) / (6 N)), q of the studentised range.
    """
    if methods < 2 or blocks < 1:
        raise ValueError(
            f"two methods and one ranking are needed, got {methods} and {blocks}"
        )
    q = float(stats.studentized_range.isf(level, methods, math.inf))
    return q / math.sqrt(2) * math.sqrt(methods * (methods + 1) / (6 * blocks))


def find_unbeaten(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Places of those that nobody beats: the more gained, the cheaper they are.

    Parameters
    ----------
    costs, gains : sequence of float
        Of each; NaN is left out.

    Returns
    -------
    list of int
        By rising cost.  Of equal ones the first.

    Examples
    --------
    >>> find_unbeaten([1, 2, 3, 4], [0.5, 0.7, 0.6, 0.9])
    [0, 1, 3]
    """
    pairs = np.array([costs, gains], dtype=np.float64)  # (2, n)
    known = np.flatnonzero(np.isfinite(pairs).all(0))
    order = known[np.lexsort((-pairs[1, known], pairs[0, known]))]
    best, front = -math.inf, []
    for place in order:
        if pairs[1, place] > best:
            best = pairs[1, place]
            front.append(int(place))
    return front


def choose_by_validation(
    runs: Iterable[Result], families: Mapping[str, Collection[str]], ratio: float
) -> dict[str, str]:
    """The method of each family that is best on validation at a ratio.

    Chosen and judged on the same rows, the best of many would look better than it is.

    Parameters
    ----------
    runs : iterable of Result
        Of one task.
    families : mapping of str to collection of str
        Names of curves.
    ratio : float

    Returns
    -------
    dict
        By the family; without those of which nothing reaches the ratio.
    """
    judged = [dataclasses.replace(run, test=run.validation) for run in runs]
    order = compare(judged, ratio).index
    firsts = {
        family: next((name for name in order if name in names), None)
        for family, names in families.items()
    }
    return {family: name for family, name in firsts.items() if name is not None}


def price_methods(
    runs: Iterable[Result],
    costs: Iterable[CostLine],
    span: tuple[float, float] = (8.0, 12.5),
) -> pd.DataFrame:
    """What accuracy costs on one machine, beside the full table.

    Parameters
    ----------
    runs : iterable of Result
        Of one contest, the full table among them.
    costs : iterable of dict
        Lines of `measure_costs` with their ``entrant``, on one machine, that of the
        full table among them.
    span : tuple of float
        Ratios between which a run must lie; of several the nearest to the one whose
        costs were measured.

    Returns
    -------
    DataFrame
        Indexed by the entrant: ``gap``, test metric less the full table's; ``ratio``;
        ``training``, seconds of search, training and compression over those of the
        full table; ``memory``, the peak while training or searching over that of the
        full table; ``lookup``, median microseconds of looking up 256 ids.
    """
    runs, lines = list(runs), {line["entrant"]: line for line in costs}
    groups: dict[str, list[list[Result]]] = {}
    for group in group_seeds(runs).values():
        groups.setdefault(group[0].entrant or group[0].key, []).append(group)
    full = groups["full"][0], lines["full"]
    rows = {"full": price(full, full)}
    for name, line in lines.items():
        reached = line["reached_ratio"]
        inside = [
            group
            for group in groups.get(name, [])
            if span[0] <= group[0].reached_ratio <= span[1]
        ]
        if inside and span[0] <= reached <= span[1]:
            far = [abs(math.log(g[0].reached_ratio / reached)) for g in inside]
            rows[name] = price((inside[far.index(min(far))], line), full)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("entrant")


def price(
    own: tuple[Sequence[Result], CostLine], full: tuple[Sequence[Result], CostLine]
) -> dict[str, float]:
    """A row of `price_methods`, of runs that differ by their seed and their costs."""
    metric = main_metric(own[0])
    return {
        "gap": mean_metric(own[0], metric) - mean_metric(full[0], metric),
        "ratio": own[0][0].reached_ratio,
        "training": count_seconds(*own) / count_seconds(*full),
        "memory": find_peak(own[1]) / find_peak(full[1]),
        "lookup": own[1]["lookup"]["256"][0],
    }


def mean_metric(runs: Sequence[Result], metric: str) -> float:
    """Of a test metric, over seeds."""
    return float(np.mean([run.test[metric] for run in runs]))


def count_seconds(runs: Sequence[Result], line: CostLine) -> float:
    """What search, training and compression take on the machine of a line of costs, for
    the rows that runs see.
    """
    seconds = float(line["compress_s"])
    for stage in ("search", "train"):
        seen = float(np.mean([run.rows[stage] for run in runs]))
        seconds += line[stage]["start_s"] + 1e-6 * line[stage]["us_per_row"] * seen
    return seconds


def find_peak(line: CostLine) -> float:
    """The most bytes that a line of costs saw in use, in training or search."""
    held = line["training_bytes"]
    return float(max(held["peak"], held.get("peak_in_search", 0)))


def plot_intervals(
    table: pd.DataFrame, difference: float | None = None, ax: Axes | None = None
) -> Axes:
    """Mean places as points, their intervals as lines, the best above.

    Parameters
    ----------
    table : DataFrame
        Of `bootstrap_places`.
    difference : float, optional
        Draws in grey who is no further behind the best than that: the critical
        difference.
    ax : Axes, optional

    Returns
    -------
    Axes
    """
    axes = plt.gca() if ax is None else ax
    rows = np.arange(len(table))
    mean, low, high = (table[name].to_numpy() for name in ("mean", "low", "high"))
    if difference is not None:
        axes.axvspan(mean[0], mean[0] + difference, color="0.9", zorder=0)
    axes.hlines(rows, low, high, color="C0", linewidth=1.5)
    axes.plot(mean, rows, "o", color="C0", markersize=4)
    axes.set_yticks(rows, list(table.index), fontsize=8)
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_xlabel("mean place (1 is the best)")
    return axes


def plot_front(costs: pd.Series, gains: pd.Series, ax: Axes | None = None) -> Axes:
    """What is gained over what it costs: all as grey points, the front joined and
    named.

    Parameters
    ----------
    costs, gains : Series
        Indexed by the method; costs, above 0, are drawn on a logarithmic axis.
    ax : Axes, optional

    Returns
    -------
    Axes
    """
    axes = plt.gca() if ax is None else ax
    costs, gains = costs.align(gains, join="inner")
    axes.plot(costs, gains, ".", color="0.75", zorder=1)
    front = find_unbeaten(costs.tolist(), gains.tolist())
    x, y = costs.iloc[front], gains.iloc[front]
    axes.step(x, y, "o-", where="post", color="C0", markersize=4, linewidth=1)
    show_costs(axes, costs)
    name_lines(
        axes, [(x.iloc[k], y.iloc[k], str(n), "C0") for k, n in enumerate(x.index)]
    )
    return axes


def show_costs(axes: Axes, costs: pd.Series) -> None:
    """A logarithmic axis whose labels are plain numbers: powers of two, or of ten where
    those would be many.
    """
    base = 2 if costs.max() < 2**7 * costs.min() else 10
    axes.set_xscale("log", base=base)
    low = np.floor(np.log(costs.min()) / np.log(base))
    high = np.ceil(np.log(costs.max()) / np.log(base))
    ticks = float(base) ** np.arange(low, high + 1)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
