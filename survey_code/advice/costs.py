"""What a method is known to cost, for a reader's table, and what that breaks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from survey_code.advice.case import Case
from survey_code.advice.evidence import Cost, RecordedContest
from survey_code.advice.report import say_bytes, say_number

# Ids of the call that a limit is about.
CALL = 256


@dataclass(frozen=True)
class Breach:
    """A constraint that is not met.

    Parameters
    ----------
    factor : float
        How many times what is allowed is needed.
    words : str
    """

    factor: float
    words: str


def list_costs(contests: Sequence[RecordedContest], name: str) -> list[Cost]:
    """The costs of a curve in contests, in their order."""
    known = (contest.curves.get(name) for contest in contests)
    return [cost for curve in known if curve is not None for cost in curve.costs]


def nearest_cost(
    costs: Sequence[Cost], ratio: float, device: str | None = None
) -> Cost | None:
    """What was measured at the nearest ratio, on a device or any; the first of equals.

    Bytes of training are the same on all devices; times are not.
    """
    able = [cost for cost in costs if device in (None, cost.device)]
    return min(able, key=lambda c: abs(math.log(c.ratio / ratio)), default=None)


def find_breaches(
    case: Case, costs: Sequence[Cost], floor: float | None = None
) -> list[Breach]:
    """The constraints that a method's known costs do not keep to.

    Bytes of training are taken to grow with the full table, as they do where gradients
    are dense; a call's own part of them, which does not, is counted as well.  Where
    they were not measured, `floor` counts: what is held at least, in multiples of the
    full table.
    """
    found = []
    trained = nearest_cost(costs, case.asked)
    if case.training_bytes is not None and not case.trained:
        taken, words = 0.0, "training takes"
        if trained is not None:
            taken, words = trained.training["peak"], "training peaks at"
        elif floor is not None:
            taken, words = floor, "training holds, in weights alone,"
        taken *= case.full_bytes
        said = f"{words} {say_bytes(taken)}"
        found += compare_cost(taken, case.training_bytes, said, say_bytes)
    served = nearest_cost(costs, case.asked, case.device)
    if case.latency_us is not None and served is not None:
        slowest = served.lookup[CALL][1]
        said = f"{CALL} ids take {say_number(slowest)} us (p99) on {case.device}"
        found += compare_cost(slowest, case.latency_us, said, say_number)
    return found


def fits_persistently(case: Case, costs: Sequence[Cost]) -> bool:
    """Whether what a method holds between steps keeps to the limit that its peak, which
    has a batch's own bytes in it, does not.
    """
    cost = nearest_cost(costs, case.asked)
    if cost is None or case.training_bytes is None or case.trained:
        return False
    held, peak = (
        cost.training[name] * case.full_bytes for name in ("persistent", "peak")
    )
    return held <= case.training_bytes < peak


def compare_cost(
    taken: float, allowed: float, words: str, say: Callable[[float], str]
) -> list[Breach]:
    """A breach, if more is taken than is allowed."""
    if taken <= allowed:
        return []
    factor = taken / allowed
    allowance = f"{say_number(factor)} times the {say(allowed)} that are allowed"
    return [Breach(factor, f"{words}, {allowance}")]


def say_costs(
    case: Case, contests: Sequence[RecordedContest], name: str
) -> dict[str, object]:
    """`Choice.costs` of a curve."""
    told: dict[str, object] = {}
    costs = list_costs(contests, name)
    trained = nearest_cost(costs, case.asked)
    if trained is not None:
        told["persistent_bytes"] = round(
            trained.training["persistent"] * case.full_bytes
        )
        told["training_bytes"] = round(trained.training["peak"] * case.full_bytes)
        told["us_per_row"] = trained.us_per_row["train"]
        told["search_us_per_row"] = trained.us_per_row["search"]
        told["moved_per_row"] = trained.moved_per_row
    served = nearest_cost(costs, case.asked, case.device)
    if served is not None:
        told["lookup_us"], told["bag_us"] = served.lookup[CALL], served.bag[CALL]
    told["rows_seen"] = {
        contest.name: dict(contest.curves[name].by_nearness(case.asked)[0].rows)
        for contest in contests
        if name in contest.curves and contest.curves[name].points
    }
    return told
