"""Which method to take: the recorded contests read at a reader's ratio.

A candidate is a curve of the contests of the task.  It is read at the ratio on its own
curve of each contest, must have a plan for the table, and must keep to every constraint
whose cost was measured.  Candidates are ranked by the mean over the contests of the gap
to the full table; where one does not reach the ratio, it counts as double hashing does.
As good as the best is what no contest shows clearly behind it, beyond two deviations of
the paired differences over seeds, and what is not far behind it on average: a mean that
is far away and uncertain is no tie.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy.typing as npt

from survey_code.advice.case import Case
from survey_code.advice.costs import (
    Breach,
    find_breaches,
    fits_persistently,
    list_costs,
    say_costs,
)
from survey_code.advice.evidence import (
    Cost,
    Curve,
    Evidence,
    RecordedContest,
    load_evidence,
)
from survey_code.advice.floors import find_floor
from survey_code.advice.plans import (
    CLOSED,
    OPEN_IDS,
    Plan,
    plan_candidate,
    serves_unseen,
)
from survey_code.advice.readings import (
    Reading,
    average_gap,
    find_top,
    is_behind,
    nearest_options,
    read_everywhere,
)
from survey_code.advice.report import (
    Advice,
    Choice,
    say_bytes,
    say_factor,
    say_number,
    say_share,
)
from survey_code.catalog import AFTER, DURING, SEARCH
from survey_code.curves import NEAR

# By how much a mean may be behind the best and still be called as good, in the metric
# of the task.
TOLERANCES = {"ctr": 0.003, "top-n": 0.005}
# The simplest first.
STAGES = (AFTER, DURING, SEARCH)
# Choices, those as good as the best aside; and how many times the rows of the largest
# contest are no extrapolation.
MOST_CHOICES, MUCH_LARGER = 8, 10
# Share of the rows from which a field is no longer one among others.
DOMINANT = 0.9
HOW = {
    AFTER: "compresses the trained table",
    DURING: "is small, or becomes so, while it trains",
    SEARCH: "searches first, then trains anew what it found",
}


def advise(
    rows: int,
    dim: int,
    *,
    budget_bytes: float,
    task: str,
    trained: bool = False,
    training_bytes: float | None = None,
    latency_us: float | None = None,
    device: str = "cpu",
    stream: bool = False,
    unseen: bool = False,
    counts: npt.ArrayLike | None = None,
    field_starts: npt.ArrayLike | None = None,
) -> Advice:
    """Which methods to compress a table with, by what the contests recorded.

    Parameters
    ----------
    rows, dim, budget_bytes
        Shape of the full table of float32; bytes that the compressed one may take.
    task : str
        ``"ctr"`` or ``"top-n"``.
    trained, training_bytes, latency_us, device, stream, unseen, counts, field_starts
        What else is known or must be kept to: see `Case`.

    Returns
    -------
    Advice
        Print it.  What costs were not measured excludes nothing, and is marked.

    Raises
    ------
    ValueError
        If a parameter is not as `Case` says.

    Examples
    --------
    >>> advice = advise(100_000, 64, budget_bytes=3e6, task="ctr", trained=True)
    >>> advice.choices[0].stage
    'after training'
    """
    case = Case(
        rows, dim, budget_bytes, task, trained, training_bytes, latency_us, device,
        stream, unseen, counts, field_starts,
    )  # fmt: skip
    return advise_case(case, load_evidence())


def advise_case(case: Case, evidence: Evidence) -> Advice:
    """`advise` of a case, by other evidence than the package's own."""
    contests, warnings = choose_contests(case, evidence)
    about = (case.ratio, describe_case(case))
    if not contests:
        return Advice(*about, warnings=tuple(warnings))
    warnings += warn_of_distance(case, contests)
    sieve = Sieve(case, contests)
    choices = sieve.choose()
    if sieve.doubtful:
        warnings.append(
            "peaks of training are scaled up from small tables, where a batch weighs "
            "as much as the table: by what they hold between steps, "
            f"{len(sieve.doubtful)} more would fit ({', '.join(sieve.doubtful[:6])})"
        )
    warnings += warn_of_asking(case)
    return Advice(
        *about,
        tuple(choices),
        sieve.excluded,
        describe_nearest(case, contests[0]),
        "" if choices else sieve.describe_miss(),
        tuple(warnings),
    )


def warn_of_asking(case: Case) -> list[str]:
    """What was asked for that the records, or a trained table, say nothing of."""
    warnings = []
    if case.trained and case.training_bytes is not None:
        warnings.append("training_bytes says nothing of a table that is trained")
    if case.opens_ids:
        warnings.append(
            f"contests were run without {OPEN_IDS}: what an unseen id's row is worth "
            "is not recorded"
        )
    elif case.unseen:
        warnings.append(
            "a trained table has no rows for unseen ids: all of them get one, "
            "FrozenEmbedding(..., default_id=...)"
        )
    share = case.largest_field
    if share is not None and share > DOMINANT:
        warnings.append(
            f"extrapolation: one field has {say_share(share)} of the rows; plans are "
            "made for it, but contests are not recorded by the sizes of fields"
        )
    return warnings


def describe_case(case: Case) -> dict[str, object]:
    """What was asked for, as JSON can hold it."""
    fields = (f.name for f in dataclasses.fields(case))
    told = {name: getattr(case, name) for name in fields}
    for name in ("counts", "field_starts"):
        told[name] = told[name] is not None
    return told


def choose_contests(
    case: Case, evidence: Evidence
) -> tuple[list[RecordedContest], list[str]]:
    """The contests to read, the nearest first, and what is to be said of them."""
    known = [own for own in evidence.of_task(case.task) if not own.stream]
    streams = [own for own in evidence.of_task(case.task) if own.stream]
    warnings = []
    if case.stream and streams:
        known = streams
    elif case.stream:
        warnings.append(
            "extrapolation: no contest on a stream is recorded for this task; read off "
            "contests that train once"
        )
    if not known:
        warnings.append(f"no contest of task {case.task} is recorded: nothing to go by")
    return sorted(known, key=case.distance), warnings


@dataclass(frozen=True)
class Candidate:
    """A curve that meets what is known, before it is planned."""

    name: str
    key: str
    stage: str
    readings: list[Reading]
    floor: float | None

    @property
    def gap(self) -> float:
        """To the full table, the mean over the contests."""
        return average_gap(self.readings)


class Sieve:
    """The curves of some contests, and what becomes of each.

    Parameters
    ----------
    case : Case
    contests : list of RecordedContest
        The nearest first.
    """

    def __init__(self, case: Case, contests: list[RecordedContest]) -> None:
        self.case, self.contests = case, contests
        self.excluded: dict[str, str] = {}
        self.misses: dict[str, list[Breach]] = {}
        self.doubtful: list[str] = []  # that only a peak in training leaves out

    def choose(self) -> list[Choice]:
        """What is left, in the order in which it is to be taken."""
        ranked = sorted(self._sift(), key=lambda one: -one.gap)
        if self.case.ratio <= 1:  # nothing is as good as what it is compared with
            ranked.sort(key=lambda one: one.name != "full")
        planned: list[tuple[Candidate, Plan, bool]] = []
        for one in ranked:
            if planned and planned[0][0].name == "full":
                self.excluded[one.name] = "the full table fits the budget"
                continue
            good = not planned or self._is_as_good(one, planned[0][0])
            if good or len(planned) < MOST_CHOICES:
                plan = self._plan(one, [(c, p) for c, p, _ in planned])
                if plan is not None:
                    planned.append((one, plan, good))
            else:
                behind = planned[0][0].gap - one.gap
                self.excluded[one.name] = (
                    f"behind {planned[0][0].name} by {behind:.4f} on average"
                )
        if not planned:
            return []
        best = planned[0][0]
        # By the sorts' stability the rank decides within a stage.
        planned.sort(key=lambda own: place_in_order(own[0], own[2]))
        return [self._describe(one, plan, good, best) for one, plan, good in planned]

    def _sift(self) -> Iterator[Candidate]:
        """Curves that have a reading and break no constraint whose cost is known."""
        for name in dict.fromkeys(n for c in self.contests for n in c.curves):
            curve = next(c.curves[name] for c in self.contests if name in c.curves)
            if name == "full" and self.case.ratio > 1:
                continue
            if self.case.trained and curve.stage != AFTER and name != "full":
                self.excluded[name] = f"{curve.stage}: the table is trained already"
                continue
            readings = (
                [Reading(c, c.full, "measured") for c in self.contests]
                if name == "full"
                else read_everywhere(self.contests, name, self.case.asked)
            )
            if readings is None:
                self.excluded[name] = say_unreached(self.contests, name)
                continue
            if self.case.opens_ids and not serves_unseen(curve.key):
                self.excluded[name] = CLOSED
                continue
            costs = list_costs(self.contests, name)
            floor = self._floor(curve, costs)
            breaches = find_breaches(self.case, costs, floor)
            if breaches:
                self.misses[name] = breaches
                self.excluded[name] = breaches[0].words
                if fits_persistently(self.case, costs) and len(breaches) == 1:
                    self.doubtful.append(name)
                continue
            yield Candidate(name, curve.key, curve.stage, readings, floor)

    def _floor(self, curve: Curve, costs: list[Cost]) -> float | None:
        """What training holds at least, where there is a limit and no measurement."""
        if costs or self.case.training_bytes is None or self.case.trained:
            return None
        asked = nearest_options(self.contests, curve.name, self.case.asked)
        return find_floor(self.case, curve.key, curve.stage, asked[0] if asked else {})

    def _is_as_good(self, one: Candidate, best: Candidate) -> bool:
        close = best.gap - one.gap <= TOLERANCES[self.case.task]
        return close and not is_behind(one.readings, best.readings)

    def _plan(
        self, one: Candidate, before: list[tuple[Candidate, Plan]]
    ) -> Plan | None:
        """A plan for the table; None, and why, where there is none or it is known."""
        asked = nearest_options(self.contests, one.name, self.case.asked)
        plan, breach = plan_candidate(self.case, one.key, one.stage, asked)
        if breach is not None:
            self.misses[one.name] = [breach]
            self.excluded[one.name] = breach.words
        if plan is None:
            self.excluded.setdefault(one.name, "has no plan for this table")
            return None
        for other, known in before:
            points = [r.point for r in one.readings] == [
                r.point for r in other.readings
            ]
            if points and (other.key, known.options) == (one.key, plan.options):
                self.excluded[one.name] = f"the same as {other.name}"
                return None
        return plan

    def _describe(
        self, one: Candidate, plan: Plan, good: bool, best: Candidate
    ) -> Choice:
        costs = say_costs(self.case, self.contests, one.name)
        if one.floor is not None:
            costs["weights_bytes"] = round(one.floor * self.case.full_bytes)
        differences = {r.contest.name: r.gap for r in one.readings}
        return Choice(
            name=one.name,
            key=one.key,
            stage=one.stage,
            options=plan.options,
            as_good=good,
            gap=one.gap,
            gaps={
                name: (gap.mean, None if math.isnan(gap.deviation) else gap.deviation)
                for name, gap in differences.items()
            },
            reached={r.contest.name: r.point.reached for r in one.readings if r.own},
            costs=costs,
            needs=plan.needs,
            reasons=tuple(self._reason(one, plan, good, best, costs)),
            evidence=tuple(r.describe(one.name) for r in one.readings),
        )

    def _reason(
        self,
        one: Candidate,
        plan: Plan,
        good: bool,
        best: Candidate,
        costs: dict[str, object],
    ) -> Iterator[str]:
        """Why it stands where it does."""
        gap = f"{one.gap:+.4f} {self.contests[0].metric} to the full table on average"
        if one.name == "full":
            yield "the full table fits the budget as it is"
        elif one.name == best.name:
            yield f"the best of what keeps to all that is known: {gap}"
        elif good:
            yield f"{gap}, not clearly behind {best.name} ({best.gap:+.4f})"
        else:
            yield f"{gap}, behind {best.name} ({best.gap:+.4f})"
        if one.name != "full":
            again = self.case.stream and one.stage != DURING
            yield HOW[one.stage] + "; on a stream, again for each window" * again
        for need in plan.needs:
            yield f"needs {need}"
        yield from plan.notes
        if self.case.training_bytes is not None and not self.case.trained:
            yield say_training(costs, self.case.training_bytes)
        if self.case.latency_us is not None:
            times = costs.get("lookup_us")
            yield (
                f"256 ids take {times[1]:.0f} us (p99) on {self.case.device}, of "
                f"{self.case.latency_us:g}"
                if isinstance(times, tuple)
                else f"look-ups not measured on {self.case.device}"
            )

    def describe_miss(self) -> str:
        """What comes nearest to meeting all constraints, and what it breaks."""
        if not self.misses:
            return ""
        worst = {n: max(own, key=lambda b: b.factor) for n, own in self.misses.items()}
        name = min(worst, key=lambda one: worst[one].factor)
        return f"{name} comes nearest: {worst[name].words}"


def say_training(costs: dict[str, object], allowed: float) -> str:
    """What training takes of what it may."""
    for name, words, rest in (
        ("training_bytes", "training peaks at", ""),
        ("weights_bytes", "training holds weights of",
         "; gradients and the optimiser's state, not measured, come on top"),
    ):  # fmt: skip
        if name in costs:
            taken = say_bytes(float(str(costs[name])))
            return f"{words} {taken} of {say_bytes(allowed)}{rest}"
    return "training memory not measured"


def place_in_order(one: Candidate, good: bool) -> tuple[bool, int]:
    """Those as good as the best first, and of them the simplest."""
    return not good, STAGES.index(one.stage) if good else 0


def say_unreached(contests: Sequence[RecordedContest], name: str) -> str:
    """Why a curve has no reading."""
    reached = [
        c.curves[name].highest
        for c in contests
        if name in c.curves and c.curves[name].points
    ]
    if not reached:
        return "never reached a ratio"
    return f"at most {max(reached):.3g}x is recorded"


def describe_nearest(case: Case, contest: RecordedContest) -> str:
    """The nearest contest, and how far it is."""
    far = case.distances(contest)
    parts = [
        f"this table has {say_factor(far['rows'])} rows",
        f"a dimension {say_factor(far['dimension'], 'as large', 'smaller')}"
        if abs(far["dimension"] - 1) >= 0.05
        else "the same dimension",
    ]
    if case.largest_field is not None:
        fields = len(case.whole.field_starts) - 1
        parts.append(f"{fields} fields, the largest of {say_share(case.largest_field)}")
    if case.skew is not None:
        parts.append(f"{case.skew:.0%} of the reads on 1 % of the ids")
    return (
        f"{contest.name}, {contest.rows:,} x {contest.dim}, {contest.fields} fields, "
        f"{contest.skew:.0%} of the reads on 1 % of the ids: {', '.join(parts)}"
    )


def warn_of_distance(case: Case, contests: Sequence[RecordedContest]) -> list[str]:
    """What lies outside of all that was recorded."""
    warnings = []
    rows, dims = max(c.rows for c in contests), sorted({c.dim for c in contests})
    if case.rows > MUCH_LARGER * rows:
        warnings.append(
            f"extrapolation: {case.rows:,} rows are {case.rows / rows:,.0f} times the "
            f"largest table recorded ({rows:,})"
        )
    smallest = min(c.rows for c in contests)
    if case.rows * MUCH_LARGER < smallest:
        warnings.append(
            f"extrapolation: {case.rows:,} rows are {say_number(smallest / case.rows)} "
            f"times fewer than the smallest table recorded ({smallest:,}): what a "
            "method stores once weighs more"
        )
    if not dims[0] <= case.dim <= dims[-1]:
        shown = " to ".join(str(d) for d in dict.fromkeys((dims[0], dims[-1])))
        warnings.append(
            f"extrapolation: dimension {case.dim}, and {shown} is recorded; at another "
            "one the same ratio leaves other codes"
        )
    short = {c.name: find_top(c) for c in contests}
    short = {n: top for n, top in short.items() if case.ratio > top * (1 + NEAR)}
    if short:
        shown = ", ".join(f"{name} {top:.3g}x" for name, top in short.items())
        warnings.append(
            f"extrapolation: {say_number(case.ratio)}x is beyond what is recorded, and "
            f"read at its end: {shown}"
        )
    devices = {
        k.device for c in contests for own in c.curves.values() for k in own.costs
    }
    if case.device not in devices:
        shown = ", ".join(sorted(devices))
        warnings.append(
            f"times of look-ups are recorded on {shown}, not on {case.device}"
            if devices
            else "no times of look-ups are recorded yet"
        )
    planned = case.spec_for(AFTER if case.trained else DURING).num_embeddings
    if planned < case.rows:
        warnings.append(f"plans were made for {planned:,} of the rows")
    if len(contests) == 1:
        warnings.append(f"a single contest is recorded: {contests[0].name}")
    return warnings
