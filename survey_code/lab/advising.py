"""How good advice is where it was not made: judged on a contest that it did not see."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from survey_code.advice.advise import TOLERANCES, advise_case
from survey_code.advice.case import Case
from survey_code.advice.evidence import Evidence, RecordedContest
from survey_code.advice.readings import average_gap, read_at, stand_in
from survey_code.catalog import AFTER
from survey_code.lab.contest import RATIOS


def judge_advice(
    evidence: Evidence,
    sources: Sequence[str],
    target: str,
    *,
    trained: bool = False,
    ratios: Sequence[float] = RATIOS,
) -> pd.DataFrame:
    """Advice made of some contests for the table of another, judged there.

    Beside it stands always taking the same: the method whose mean gap to the full
    table, over the sources and all ratios, is the smallest.

    Parameters
    ----------
    evidence : Evidence
    sources : sequence of str
        Contests that the advice is made of.
    target : str
        The contest of the same task on which it is judged.
    trained : bool, default False
        Whether only what compresses a trained table may be taken.
    ratios : sequence of float

    Returns
    -------
    DataFrame
        Indexed by ``ratio``: ``best``, the best method of the target; ``advised`` and
        ``winner``, what is taken; ``advised_behind`` and ``winner_behind``, by how much
        these are behind the best there, in the task's metric (where a method does not
        reach the ratio, it counts as double hashing does); ``advised_within`` and
        ``winner_within``, whether that is at most 0.003 AUC or 0.005 recall.

    Raises
    ------
    ValueError
        If the target is among the sources, a contest is not recorded, or the sources
        hold nothing of the target's task.
    """
    known, judged = split_evidence(evidence, sources, target)
    winner = find_winner(known.of_task(judged.task), trained, ratios)
    rows = {}
    for ratio in ratios:
        full = 4 * judged.rows * judged.dim
        case = Case(judged.rows, judged.dim, full / ratio, judged.task, trained)
        choices = advise_case(case, known).choices
        taken = {"advised": choices[0].name if choices else "", "winner": winner}
        rows[ratio] = judge_taken(judged, taken, trained, ratio)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("ratio")


def split_evidence(
    evidence: Evidence, sources: Sequence[str], target: str
) -> tuple[Evidence, RecordedContest]:
    """What is known, and what it is judged on; or one clear ValueError."""
    missing = {*sources, target} - set(evidence.contests)
    if missing or target in sources or not sources:
        raise ValueError(
            "sources and target must be different contests of "
            f"{sorted(evidence.contests)}, got {list(sources)} and {target!r}"
        )
    known, judged = evidence.only(sources), evidence.contests[target]
    if not known.of_task(judged.task):
        raise ValueError(f"{list(sources)} hold no contest of task {judged.task}")
    return known, judged


def judge_taken(
    judged: RecordedContest, taken: dict[str, str], trained: bool, ratio: float
) -> dict[str, object]:
    """A row of `judge_advice`: what is taken, by who takes it."""
    read = {n: read_at(judged, n, ratio) for n in list_names([judged], trained)}
    gaps = {name: own.gap.mean for name, own in read.items() if own is not None}
    best = max(gaps, key=lambda name: gaps[name], default="")
    row: dict[str, object] = {"best": best}
    for who, name in taken.items():
        behind = gaps.get(best, math.nan) - find_gap([judged], name, ratio)
        within = behind <= TOLERANCES[judged.task]
        row |= {who: name, f"{who}_behind": behind, f"{who}_within": within}
    return row


def list_names(contests: Sequence[RecordedContest], trained: bool) -> list[str]:
    """The curves that may be taken."""
    return [
        name
        for contest in contests
        for name, curve in contest.curves.items()
        if name != "full" and (curve.stage == AFTER or not trained)
    ]


def find_gap(contests: Sequence[RecordedContest], name: str, ratio: float) -> float:
    """The mean gap of a curve to the full table; minus infinity of no curve."""
    if not name:
        return -math.inf
    return average_gap(
        [read_at(c, name, ratio) or stand_in(c, ratio) for c in contests]
    )


def find_winner(
    contests: Sequence[RecordedContest], trained: bool, ratios: Sequence[float]
) -> str:
    """The method with the smallest mean gap over contests and ratios, of those that
    reach them all if there are any.
    """
    names = dict.fromkeys(list_names(contests, trained))
    able = [n for n in names if all(read_at(c, n, r) for c in contests for r in ratios)]
    return max(
        able or names, key=lambda n: sum(find_gap(contests, n, r) for r in ratios)
    )
