"""A method in a contest, read at the ratio that a reader asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from survey_code.advice.evidence import RecordedContest
from survey_code.curves import (
    FALLBACK,
    NEAR,
    Difference,
    Point,
    find_smaller,
    read_point,
)


@dataclass(frozen=True)
class Reading:
    """A curve in a contest at a ratio.

    Parameters
    ----------
    contest : RecordedContest
    point : Point
    how : str
        ``"measured"`` there; ``"read off"`` between two ratios; ``"smaller"``: the
        nearest higher ratio, which is within the budget; ``"beyond"``: read at the
        highest ratio that the contest asked for, which is lower; ``"cannot"``: out of
        the method's reach or not recorded, so that it counts as double hashing.
    """

    contest: RecordedContest
    point: Point
    how: str

    @property
    def own(self) -> bool:
        """Whether it is the method's own."""
        return self.how != "cannot"

    @property
    def gap(self) -> Difference:
        """The method less the full table, over the seeds of both."""
        return self.less(self.contest.full)

    def less(self, other: Point) -> Difference:
        """The method less another point of the same contest."""
        return Difference.between(self.point, other)

    def describe(self, name: str) -> str:
        """The line of evidence: contest, curve, where it was read, what it says."""
        at = " to ".join(f"{ratio:.4g}x" for ratio in self.point.reached)
        said = {
            "measured": "", "read off": ", read off between", "smaller": "",
            "beyond": ", the highest that was asked for",
            "cannot": f", out of reach or not recorded: counts as {FALLBACK}",
        }[self.how]  # fmt: skip
        full = self.contest.full.mean
        told = f"{self.point.describe()}, full {full:.4f}"
        return f"{self.contest.name}, {name}, {at}{said}: {told}"


def find_top(contest: RecordedContest) -> float:
    """The highest ratio that a contest asked for: what the method reached that can
    reach all.
    """
    known = contest.curves.get(FALLBACK)
    if known is not None:
        return known.highest
    return max(curve.highest for curve in contest.curves.values() if curve.points)


def read_at(contest: RecordedContest, name: str, ratio: float) -> Reading | None:
    """A curve at a ratio; None where it counts as something else.

    Beyond all that a contest asked for, it is read where that ends.
    """
    curve = contest.curves.get(name)
    if curve is None or not curve.points:
        return None
    top = find_top(contest)
    at = ratio if ratio <= top * (1 + NEAR) else top
    points = [one.point for one in curve.points]
    found = read_point(points, at)
    if found is not None:
        beyond = at < ratio and max(found.reached) * (1 + NEAR) < ratio
        how = "read off" if found.read_off else "measured"
        return Reading(contest, found, "beyond" if beyond else how)
    smaller = find_smaller(points, at)
    return None if smaller is None else Reading(contest, smaller, "smaller")


def read_everywhere(
    contests: list[RecordedContest], name: str, ratio: float
) -> list[Reading] | None:
    """A curve in each contest; None where it reaches the ratio in none.

    Where it is out of reach in one, it counts as `FALLBACK`; without that, as the worst
    that was recorded.
    """
    found = [read_at(contest, name, ratio) for contest in contests]
    if not any(found):
        return None
    return [own or stand_in(c, ratio) for own, c in zip(found, contests, strict=True)]


def stand_in(contest: RecordedContest, ratio: float) -> Reading:
    """What a method counts as that does not reach a ratio."""
    known = read_at(contest, FALLBACK, ratio)
    if known is None:
        read = (read_at(contest, name, ratio) for name in contest.curves)
        known = min((r for r in read if r), key=lambda reading: reading.point.mean)
    return Reading(contest, known.point, "cannot")


def average_gap(readings: list[Reading]) -> float:
    """The mean gap to the full table over the contests."""
    return math.fsum(reading.gap.mean for reading in readings) / len(readings)


def is_behind(some: list[Reading], best: list[Reading]) -> bool:
    """Whether one is clearly behind another in any contest."""
    leads = (b.less(s.point) for s, b in zip(some, best, strict=True))
    return any(lead.is_clear and lead.mean > 0 for lead in leads)


def nearest_options(
    contests: list[RecordedContest], name: str, ratio: float
) -> list[dict[str, object]]:
    """What tuning found, the nearest first: by the contests' order, then by ratio."""
    found: list[dict[str, object]] = []
    curves = (contest.curves[name] for contest in contests if name in contest.curves)
    for one in (point for curve in curves for point in curve.by_nearness(ratio)):
        if one.options not in found:
            found.append(one.options)
    return found
