"""What records say: each method at a ratio, and whether a difference is one."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from survey_code.curves import FALLBACK, Difference, Point, find_smaller, read_point
from survey_code.lab.results import Result, group_seeds, name_curve

# The points of each method, by its name.
Curves = Mapping[str, Sequence[Point]]


def draw_curves(
    results: Iterable[Result], metric: str | None = None
) -> dict[str, list[Point]]:
    """The points of each method that were measured, by rising ratio."""
    results = list(results)
    metric = metric or main_metric(results)
    tested = (result for result in results if metric in result.test)
    curves: dict[str, list[Point]] = {}
    for (name, _, _), group in group_seeds(tested).items():
        values = {result.seed: result.test[metric] for result in group}
        reached = float(np.mean([result.reached_ratio for result in group]))
        curves.setdefault(name, []).append(Point(values, (reached,)))
    for points in curves.values():
        points.sort(key=lambda point: point.reached)
    return curves


def summarize_curves(curves: Curves) -> pd.DataFrame:
    """`summarize` of curves that are drawn already, as far as pictures need it.

    Returns
    -------
    DataFrame
        Columns ``key``, ``reached``, ``mean``, ``deviation``; a row for each point.
    """
    rows = [
        (name, point.reached[0], point.mean, point.deviation)
        for name, points in curves.items()
        for point in points
    ]
    return pd.DataFrame(rows, columns=["key", "reached", "mean", "deviation"])


def find_point(curves: Curves, name: str, ratio: float) -> Point | None:
    """`read_point` of a method by its name; of the full table, which stays at 1x, its
    only one.
    """
    points = curves.get(name, [])
    return points[0] if name == "full" and points else read_point(points, ratio)


def compare(
    results: Iterable[Result], ratio: float, metric: str | None = None
) -> pd.DataFrame:
    """Every method at one ratio, the best first.

    Parameters
    ----------
    results : iterable of Result
    ratio : float
        Full bytes over stored bytes.
    metric : str, optional
        Key of `Result.test`; by default `main_metric`.

    Returns
    -------
    DataFrame
        Indexed by ``key``, method or variant: ``mean``, ``deviation`` over seeds (NaN
        of one), ``seeds``, ``read_off``.  The full table, which stays at 1x, is there
        too; methods that do not reach the ratio are not.
    """
    return compare_curves(draw_curves(results, metric), ratio)


def compare_curves(curves: Curves, ratio: float) -> pd.DataFrame:
    """`compare` of curves that are drawn already."""
    rows = {}
    for name in curves:
        point = find_point(curves, name, ratio)
        if point is not None:
            rows[name] = {
                "mean": point.mean,
                "deviation": point.deviation,
                "seeds": len(point.values),
                "read_off": point.read_off,
            }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("key")
    return table.sort_values("mean", ascending=False, kind="stable")


def tabulate(
    results: Iterable[Result],
    metric: str | None = None,
    ratios: Sequence[float] | None = None,
) -> pd.DataFrame:
    """Means over seeds as text, one row a method, one column a ratio.

    Parameters
    ----------
    results : iterable of Result
    metric : str, optional
        Key of `Result.test`; by default `main_metric`.
    ratios : sequence of float, optional
        By default those that were asked for.

    Returns
    -------
    DataFrame
        Indexed by ``key``.  A column holds points within a tenth of its ratio; cells
        read ``"0.9435 ± 0.0011"``, mean and sample deviation, ``"~0.9435 ± 0.0011"``
        where they were read off between two reached points, and ``"cannot"`` out of a
        method's reach.  Sorted by the column that the most methods reach, best first,
        after rows that have no value there.
    """
    results = list(results)
    curves = draw_curves(results, metric)
    if ratios is None:
        asked = {r.requested_ratio for r in results if not r.entrant or not r.failure}
        ratios = sorted(asked)
    missed = {(name_curve(r), r.requested_ratio) for r in results if r.failure}
    cells: dict[str, list[str]] = {}
    marks: dict[str, list[float]] = {}
    for name, points in curves.items():
        found = [read_point(points, ratio) for ratio in ratios]
        cells[name] = [
            "cannot" if point is None and (name, ratio) in missed
            else "" if point is None else point.describe()
            for point, ratio in zip(found, ratios, strict=True)
        ]  # fmt: skip
        marks[name] = [math.nan if p is None else p.mean for p in found]
    columns = [f"{ratio:g}x" for ratio in ratios]
    table = pd.DataFrame.from_dict(cells, orient="index", columns=columns)
    means = pd.DataFrame.from_dict(marks, orient="index", columns=columns)
    reached = means.notna().sum().tolist()
    by = columns[max(k for k, count in enumerate(reached) if count == max(reached))]
    order = means.sort_values(by, ascending=False, na_position="first", kind="stable")
    return table.loc[order.index].rename_axis("key")


def subtract(
    results: Iterable[Result],
    first: str,
    second: str,
    ratio: float,
    metric: str | None = None,
) -> Difference:
    """The first method less the second, at a ratio, over the seeds of both.

    Raises
    ------
    ValueError
        If one of them is not there, or shares no seed with the other.
    """
    results = list(results)
    metric = metric or main_metric(results)
    return subtract_curves(draw_curves(results, metric), first, second, ratio, metric)


def subtract_curves(
    curves: Curves, first: str, second: str, ratio: float, metric: str = "point"
) -> Difference:
    """`subtract` of curves that are drawn already, of a metric by its name."""
    found = []
    for name in (first, second):
        point = find_point(curves, name, ratio)
        if point is None:
            raise ValueError(f"{name} has no {metric} at {ratio:g}x")
        found.append(point)
    difference = Difference.of(*found)
    if not difference.differences:
        raise ValueError(f"{first} and {second} have no seed in common")
    return difference


def rank(
    results: Iterable[Result], ratio: float, metric: str | None = None
) -> pd.Series[float]:
    """The place of each method at a ratio, 1 the best.

    A method that reaches only higher ratios counts by the nearest of them, which is
    within the budget; one that reaches only lower ones is given what `FALLBACK` makes
    of the budget.
    """
    results = list(results)
    names = dict.fromkeys(name_curve(r) for r in results if r.key != "full")
    return rank_curves(draw_curves(results, metric), names, ratio)


def rank_curves(curves: Curves, names: Iterable[str], ratio: float) -> pd.Series[float]:
    """`rank` of some methods, whose curves are drawn already."""
    found = {name: read_within(curves, name, ratio) for name in names}
    means = {n: math.nan if p is None else p.mean for n, p in found.items()}
    marks = pd.Series(means, dtype=float).rename_axis("key")
    return marks.rank(ascending=False, method="average")


def read_within(curves: Curves, name: str, ratio: float) -> Point | None:
    """A method within a budget: at the ratio, or else its nearest smaller table; where
    it reaches neither, what `FALLBACK` makes of the budget, if that is there.
    """
    own = find_point(curves, name, ratio)
    own = own or find_smaller(curves.get(name, []), ratio)
    return own or find_point(curves, FALLBACK, ratio)


def judge(
    contests: Mapping[str, Iterable[Result]],
    names: Collection[str],
    ratios: Sequence[float] = (2, 4, 10, 30),
) -> pd.DataFrame:
    """Which of some methods to take, task by task and ratio by ratio.

    Parameters
    ----------
    contests : mapping of str to iterable of Result
        The runs of each, by what it is called.
    names : collection of str
        Methods or variants; all others that are recorded, but the full table, are
        their rivals.
    ratios : sequence of float

    Returns
    -------
    DataFrame
        Indexed by ``task`` and ``ratio``: the ``best`` of them and its ``mean``,
        those that are ``as good`` (not beyond two deviations of the paired
        differences behind it), the best ``rival``, and by how much the best is
        ``ahead`` of that, in words; empty where nothing reaches the ratio.
    """
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for task, results in contests.items():
        curves = draw_curves(results)
        for ratio in ratios:
            means = compare_curves(curves, ratio)["mean"].drop("full", errors="ignore")
            own = [name for name in means.index if name in names]
            others = [name for name in means.index if name not in names]
            row = dict.fromkeys(("best", "mean", "as good", "rival", "ahead"), "")
            rows[task, f"{ratio:g}x"] = row
            row["rival"] = others[0] if others else ""
            if own:
                best = own[0]
                row |= {"best": best, "mean": f"{means[best]:.4f}"}
                ties = find_ties(curves, own, ratio)
                row["as good"] = ", ".join(ties) or "none"
            if own and others:
                lead = subtract_curves(curves, own[0], others[0], ratio)
                row["ahead"] = lead.describe()
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.rename_axis(["task", "ratio"])


def find_ties(curves: Curves, names: Sequence[str], ratio: float) -> list[str]:
    """Those of some methods that are not clearly behind the first."""
    best, *others = names
    return [
        name
        for name in others
        if not subtract_curves(curves, best, name, ratio).is_clear
    ]


def main_metric(results: Iterable[Result]) -> str:
    """What a task's methods are ranked by: AUC of clicks, Recall@20 of rankings.

    Raises
    ------
    ValueError
        If the results have neither.
    """
    found = {name for result in results for name in result.test}
    for name in ("auc", "recall@20"):
        if name in found:
            return name
    raise ValueError(f"no auc and no recall@20, but {sorted(found)}")
