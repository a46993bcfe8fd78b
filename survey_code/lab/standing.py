"""Where a method stands among all that were recorded, ratio by ratio."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from survey_code.advice.evidence import RecordedContest
from survey_code.curves import FALLBACK, Difference, Point
from survey_code.lab.comparison import Curves, find_point, rank_curves, read_within

# Whom a clever method has to beat, by the names of their curves.
SIMPLE_RIVALS = (
    "uniform",
    "head_only",
    "rowwise",
    "pq",
    "hashing",
    FALLBACK,
    "magnitude, by reads",
)


@dataclass(frozen=True)
class Standing:
    """A method at one ratio, among others.

    Parameters
    ----------
    ratio : float
        Full bytes over stored bytes, as asked for.
    how : str
        ``"measured"`` there; ``"read off"`` between two ratios; ``"smaller"``: the
        nearest higher ratio, which is within the budget; ``"cannot"``: out of reach,
        so that it counts as double hashing.
    point : Point or None
        What it counts as; None where nothing is known.
    rank : float
        1 is the best; those that are equal share the mean of their places.
    rivals : int
        The others, full table aside.
    best : str
        The best of the others; empty where there are none.
    gaps : dict of Difference
        The method less another, by the other's name, over the seeds of both: the best,
        the full table and the simple rivals that are within the budget.  Of a method
        that cannot, none.
    """

    ratio: float
    how: str
    point: Point | None
    rank: float
    rivals: int
    best: str
    gaps: dict[str, Difference] = field(default_factory=dict)

    def describe(self) -> str:
        """The metric in words, marked as tables mark it."""
        if self.how == "cannot" or self.point is None:
            return "cannot"
        said = self.point.describe()
        smaller = f" (at {self.point.reached[0]:.4g}x)"
        return said + smaller * (self.how == "smaller")


def draw_recorded(recorded: RecordedContest | None) -> dict[str, list[Point]]:
    """The curves of a recorded contest; none of none."""
    if recorded is None:
        return {}
    return {
        name: [one.point for one in curve.points]
        for name, curve in recorded.curves.items()
    }


def place_among(
    name: str,
    curves: Curves,
    ratios: Sequence[float],
    names: Collection[str] = (),
    rivals: Sequence[str] = SIMPLE_RIVALS,
) -> list[Standing]:
    """Where one method stands among others.

    Parameters
    ----------
    name : str
        Of its curve.
    curves : mapping of str to sequence of Point
        Of everyone; ``"full"`` is the full table.
    ratios : sequence of float
    names : collection of str
        Those who compete besides, without a single point: they count as double hashing.
    rivals : sequence of str
        With whom it is compared, besides the best and the full table.

    Returns
    -------
    list of Standing
        One for each ratio.
    """
    everyone = [n for n in dict.fromkeys((*curves, *names, name)) if n != "full"]
    return [place_at(name, curves, ratio, everyone, rivals) for ratio in ratios]


def place_at(
    name: str,
    curves: Curves,
    ratio: float,
    everyone: Sequence[str],
    rivals: Sequence[str],
) -> Standing:
    """`place_among` at one ratio."""
    ranks = rank_curves(curves, everyone, ratio)
    others = ranks.drop(name).dropna()
    # Of equal ones the one that is there itself.
    reached = [n for n in others.index if is_within_reach(curves, n, ratio)]
    best = str(others.loc[reached].idxmin()) if reached else ""
    own, how = read_within(curves, name, ratio), tell_how(curves, name, ratio)
    gaps = {}
    if own is not None and how != "cannot":
        for rival in dict.fromkeys((best, "full", *rivals)):
            other = read_within(curves, rival, ratio)
            # Who counts as double hashing is no rival of its own.
            if rival != name and other and is_within_reach(curves, rival, ratio):
                gaps[rival] = Difference.between(own, other)
    return Standing(ratio, how, own, float(ranks[name]), len(everyone) - 1, best, gaps)


def is_within_reach(curves: Curves, name: str, ratio: float) -> bool:
    """Whether a method has a table of its own within the budget."""
    return tell_how(curves, name, ratio) != "cannot"


def tell_how(curves: Curves, name: str, ratio: float) -> str:
    """How a method is read at a ratio; see `Standing`."""
    points = curves.get(name, [])
    found = find_point(curves, name, ratio)
    if found is not None:
        return "read off" if found.read_off else "measured"
    larger = any(point.reached[0] > ratio for point in points)
    return "smaller" if larger else "cannot"


def say_gap(gap: Difference, comparable: bool = True) -> str:
    """A difference in words, and whether it is one.

    Parameters
    ----------
    gap : Difference
    comparable : bool
        Whether both learnt from the same rows; else nothing is called clear.

    Examples
    --------
    >>> say_gap(Difference((0.01, 0.011, 0.012))), say_gap(Difference((0.01,)))
    ('+0.0110 ± 0.0010, clear', '+0.0100, one seed')
    """
    if math.isnan(gap.deviation):
        return f"{gap.mean:+.4f}, one seed"
    said = f"{gap.mean:+.4f} ± {gap.deviation:.4f}"
    if not comparable:
        return said
    few = len(gap.differences) < 3
    verdict = "clear" if gap.is_clear else "too few seeds" if few else "not clear"
    return f"{said}, {verdict}"


def tabulate_places(
    standings: Sequence[Standing],
    metric: str = "metric",
    why: Mapping[float, str] | None = None,
    comparable: bool = True,
) -> pd.DataFrame:
    """Metric, rank and distances to the best and to the full table, as text.

    Parameters
    ----------
    standings : sequence of Standing
    metric : str
        Its name, for the column.
    why : mapping of float to str, optional
        What to say at a ratio that is out of reach; by default "cannot".
    comparable : bool
        As of `say_gap`.

    Returns
    -------
    DataFrame
        Indexed by ``budget``.
    """
    rows = {}
    for one in standings:
        cannot = one.how == "cannot"
        place = f"{one.rank:g} of {one.rivals + 1}"
        rows[f"{one.ratio:g}x"] = {
            metric: (why or {}).get(one.ratio, "cannot") if cannot else one.describe(),
            "rank": f"{place}, counted as {FALLBACK}" if cannot else place,
            "best of the others": one.best,
            "less the best": say_one(one, one.best, comparable),
            "less the full table": say_one(one, "full", comparable),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("budget")


def tabulate_gaps(
    standings: Sequence[Standing],
    rivals: Sequence[str] = SIMPLE_RIVALS,
    comparable: bool = True,
) -> pd.DataFrame:
    """The method less each simple rival, as text, a column a ratio.

    Returns
    -------
    DataFrame
        Indexed by ``less``, the rival.  ``"cannot"`` where the method is out of reach,
        ``"it cannot"`` where the rival is; rivals of whom nothing is known are left
        out.
    """
    known = [name for name in rivals if any(name in one.gaps for one in standings)]
    cells = {
        f"{one.ratio:g}x": [say_one(one, name, comparable) for name in known]
        for one in standings
    }
    return pd.DataFrame(cells, index=pd.Index(known, name="less"))


def say_one(standing: Standing, rival: str, comparable: bool) -> str:
    """One distance in words."""
    if standing.how == "cannot":
        return "cannot"
    gap = standing.gaps.get(rival)
    return "it cannot" if gap is None else say_gap(gap, comparable)
