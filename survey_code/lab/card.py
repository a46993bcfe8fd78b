"""A method's card: where it stands in each contest, what it costs, what it passes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from survey_code.catalog import Method
from survey_code.curves import FALLBACK, Difference, Point
from survey_code.lab.contest import TUNED_AT
from survey_code.lab.promises import Verdict
from survey_code.lab.results import Result, find_versions, name_curve
from survey_code.lab.standing import Standing


@dataclass(frozen=True)
class Entry:
    """A method in one contest.

    Parameters
    ----------
    contest, metric : str
    name : str
        Of its curve.
    data, field_data : str
        What it learnt from, and what the field did; empty where no field is known.
    trials, runs : list of Result
        Its own, and those of rivals that were run beside it; what is out of reach has
        a run that says so.
    costs : list of dict
        As of `measure_costs`, the method's own first.
    curves : dict of list of Point
        Of everyone.
    standings : list of Standing
        One for each of the contest's ratios; none while its runs are not made.
    failed : str
        Why runs are missing; empty where none is.
    """

    contest: str
    metric: str
    name: str
    data: str
    field_data: str
    trials: list[Result]
    runs: list[Result]
    costs: list[dict[str, Any]]
    curves: dict[str, list[Point]]
    standings: list[Standing]
    failed: str = ""

    @property
    def comparable(self) -> bool:
        """Whether the field learnt from the same rows."""
        return self.field_data in ("", self.data)

    @property
    def own(self) -> list[Result]:
        """The method's own runs."""
        return [result for result in self.runs if name_curve(result) == self.name]

    @property
    def cannot(self) -> dict[float, str]:
        """What is out of the method's reach, and up to where it reaches."""
        missed = (result for result in self.own if result.failure)
        return {result.requested_ratio: str(result.failure) for result in missed}


@dataclass(frozen=True)
class Card:
    """A method, its checks, and where it stands.

    Parameters
    ----------
    method : Method
    verdicts : list of Verdict
    entries : list of Entry
        One a contest.
    command : str
    page : Path
        The HTML file, which shows all this; a JSON file of the same name beside it
        holds the numbers.
    """

    method: Method
    verdicts: list[Verdict]
    entries: list[Entry]
    command: str
    page: Path

    @property
    def results(self) -> list[Result]:
        """All trials and runs."""
        return [one for own in self.entries for one in (*own.trials, *own.runs)]

    @property
    def broken(self) -> list[Verdict]:
        """The checks that it did not pass."""
        return [verdict for verdict in self.verdicts if not verdict.kept]

    def describe(self) -> dict[str, Any]:
        """All numbers, as JSON can hold them, with where they come from."""
        made = self.results
        return {
            "key": self.method.key,
            "title": self.method.title,
            "family": self.method.family,
            "stages": list(self.method.stages),
            "checks": [dataclasses.asdict(verdict) for verdict in self.verdicts],
            "contests": [describe_entry(entry) for entry in self.entries],
            "command": self.command,
            "device": ", ".join(sorted({result.device for result in made})),
            "date": max((result.date for result in made), default=""),
            "versions": made[-1].versions if made else find_versions(),
            "seed": sorted({result.seed for result in made}),
        }


def describe_entry(entry: Entry) -> dict[str, Any]:
    """The numbers of one contest."""
    return {
        "contest": entry.contest,
        "metric": entry.metric,
        "data": entry.data,
        "field_data": entry.field_data,
        "trials": len([t for t in entry.trials if name_curve(t) == entry.name]),
        "failed": entry.failed,
        "runs": [describe_run(result) for result in entry.own],
        "standings": [describe_standing(one) for one in entry.standings],
        "costs": entry.costs,
    }


def describe_run(result: Result) -> dict[str, Any]:
    """What a run asked for and came to."""
    names = ("entrant", "seed", "requested_ratio", "reached_ratio", "bytes", "test",
             "options", "rows", "failure")  # fmt: skip
    return {name: getattr(result, name) for name in names}


def describe_standing(one: Standing) -> dict[str, Any]:
    """A place, as numbers."""
    return {
        "ratio": one.ratio,
        "how": one.how,
        "reached": list(one.point.reached) if one.point else [],
        "mean": one.point.mean if one.point else None,
        "rank": one.rank,
        "rivals": one.rivals,
        "best": one.best,
        "gaps": {name: describe_gap(gap) for name, gap in one.gaps.items()},
    }


def describe_gap(gap: Difference) -> dict[str, Any]:
    """A difference, as numbers; of a single seed without a deviation."""
    several = len(gap.differences) > 1
    deviation = gap.deviation if several else None
    return {"mean": gap.mean, "deviation": deviation, "clear": gap.is_clear}


def name_shown(entry: Entry) -> list[str]:
    """The lines that a picture names: the method, double hashing, the best near 10x."""
    near = min(entry.standings, key=lambda one: abs(one.ratio - TUNED_AT))
    found = dict.fromkeys((entry.name, FALLBACK, near.best))
    return [name for name in found if name in entry.curves]
