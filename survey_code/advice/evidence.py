"""What the book's contests recorded, as far as advice needs it: `evidence.json`.

``python book/evidence.py`` makes the file from ``book/results``.  It stands beside the
package's modules, a curve a line, and is read when advice is first asked for.
"""

from __future__ import annotations

import functools
import gzip
import json
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from survey_code.curves import Point

# Where the file stands; packed once it is large.
PLACES = [
    Path(__file__).parents[1] / name for name in ("evidence.json", "evidence.json.gz")
]
# What the methods of a task are ranked by.
METRICS = {"ctr": "auc", "top-n": "recall@20"}


@dataclass(frozen=True)
class CurvePoint:
    """A method as it was measured at one ratio.

    Parameters
    ----------
    point : Point
        The metric by seed, and the ratio reached.
    options : dict
        To ask for: those that tuning found, where they are not the defaults.
    rows : dict of int
        Training rows seen, a mean over the seeds: ``"search"`` and ``"train"``.
    """

    point: Point
    options: dict[str, Any]
    rows: dict[str, int]


@dataclass(frozen=True)
class Cost:
    """What a method took beside its accuracy, measured alone.

    Parameters
    ----------
    device : str
        ``"cpu"``, one thread, or ``"cuda"``.
    ratio : float
        That was reached.
    training : dict of float
        Bytes in multiples of the full table: ``"persistent"`` and ``"peak"``, the
        larger of search and training.
    us_per_row : dict of float
        Microseconds that a row takes: ``"search"`` and ``"train"``.
    lookup, bag : dict of (float, float)
        Median and 99th percentile of a call in microseconds, by the number of ids.
    moved_per_row : float or None
        Bytes that replacing a row moves; None where all must be sent again.
    """

    device: str
    ratio: float
    training: dict[str, float]
    us_per_row: dict[str, float]
    lookup: dict[int, tuple[float, float]]
    bag: dict[int, tuple[float, float]]
    moved_per_row: float | None


@dataclass(frozen=True)
class Curve:
    """A method or a variant of it in one contest.

    Parameters
    ----------
    name, key : str
    stage : str
        When it compressed there.
    points : tuple of CurvePoint
        By rising ratio.
    cannot : tuple of float
        Ratios that were asked for and are out of its reach.
    costs : tuple of Cost
    """

    name: str
    key: str
    stage: str
    points: tuple[CurvePoint, ...]
    cannot: tuple[float, ...]
    costs: tuple[Cost, ...]

    @property
    def highest(self) -> float:
        """The highest ratio that was measured."""
        return self.points[-1].point.reached[0]

    def by_nearness(self, ratio: float) -> list[CurvePoint]:
        """The points, the nearest to a ratio first."""
        return sorted(
            self.points, key=lambda one: abs(math.log(one.point.reached[0] / ratio))
        )


@dataclass(frozen=True)
class RecordedContest:
    """A contest: its data, and the curves of those who competed.

    Parameters
    ----------
    name, task, data : str
    stream : bool
        Whether all learnt from windows of time, one after another.
    rows, dim, fields : int
        Of the full table.
    skew : float
        Share of the training reads that the busiest 1 % of the ids take.
    curves : dict of Curve
        By name; ``"full"`` is the full table.
    """

    name: str
    task: str
    data: str
    stream: bool
    rows: int
    dim: int
    fields: int
    skew: float
    curves: dict[str, Curve]

    @property
    def metric(self) -> str:
        """What its methods are ranked by."""
        return METRICS[self.task]

    @property
    def full(self) -> Point:
        """The full table."""
        return self.curves["full"].points[0].point


@dataclass(frozen=True)
class Evidence:
    """All contests, by name."""

    contests: dict[str, RecordedContest]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Evidence:
        """The evidence of a file.

        Raises
        ------
        ValueError
            If it is no such file.
        FileNotFoundError
            If it is not there.
        """
        try:
            told = json.loads(read_text(Path(path)))
            found = {name: read_contest(name, own) for name, own in told.items()}
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a file of evidence ({error!r})") from error
        return cls(found)

    def only(self, names: Collection[str]) -> Evidence:
        """That of some contests."""
        return Evidence({n: own for n, own in self.contests.items() if n in names})

    def of_task(self, task: str) -> list[RecordedContest]:
        """The contests of a task."""
        return [own for own in self.contests.values() if own.task == task]


@functools.cache
def load_evidence() -> Evidence:
    """The evidence that comes with the package."""
    return Evidence.read(find_evidence())


def find_evidence() -> Path:
    """The file that comes with the package."""
    return next((place for place in PLACES if place.exists()), PLACES[0])


def read_text(path: Path) -> str:
    """A file's text, whether it is packed or not."""
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode()


def read_contest(name: str, told: Mapping[str, Any]) -> RecordedContest:
    """A contest from what the file says."""
    curves = {curve: read_curve(curve, own) for curve, own in told["curves"].items()}
    facts = {n: told[n] for n in ("task", "data", "stream")}
    size = {n: told[n] for n in ("rows", "dim", "fields", "skew")}
    if facts["task"] not in METRICS or "full" not in curves:
        raise ValueError(f"{name} has no known task or no full table")
    return RecordedContest(name=name, **facts, **size, curves=curves)


def read_curve(name: str, told: Mapping[str, Any]) -> Curve:
    """A curve from what the file says."""
    points = tuple(
        CurvePoint(
            Point({int(s): v for s, v in own["metric"].items()}, (own["ratio"],)),
            own["options"], own["rows"],
        )
        for own in told["points"]
    )  # fmt: skip
    costs = tuple(
        Cost(**{**own, **{call: read_calls(own[call]) for call in ("lookup", "bag")}})
        for own in told["costs"]
    )
    cannot = tuple(told["cannot"])
    return Curve(name, told["key"], told["stage"], points, cannot, costs)


def read_calls(told: Mapping[str, list[float]]) -> dict[int, tuple[float, float]]:
    """Median and 99th percentile by the number of ids."""
    return {int(size): (times[0], times[1]) for size, times in told.items()}
