"""Who keeps up with a world that drifts: worlds, arms, and what becomes of their gap.

Each world drifts in one way, or in none, or in all of them.  In each an arm is a method
and how it refreshes what reads decide, and all are tuned alike on the first windows of
one more world that drifts in all ways: whoever runs a stream knows its past, and not
what kind of drift is to come.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import pandas as pd

from survey_code.data.synthetic import make_stream
from survey_code.data.tasks import StreamData
from survey_code.lab.contest import Contest, Entrant
from survey_code.lab.contests import CONTESTS, until_plateau
from survey_code.lab.results import Result
from survey_code.lab.slopes import MATTERS, bound_slopes, describe_slope
from survey_code.lab.stream import StreamExperiment
from survey_code.lab.task import cut_stream, make_task
from survey_code.lab.trial import TRIALS
from survey_code.spec import TableSpec

# -- worlds ---------------------------------------------------------------------------

# A window, so that no drift is over before the last one: of the popular ids a sixth are
# where they were, half of the ids are still there, and the teacher has turned by less
# than a right angle, from which on it would come nearer to where it began.
POPULARITY: dict[str, Any] = {"popularity_change": 0.05}
NEW_IDS: dict[str, Any] = {"new_ids": 0.02}
ROTATION: dict[str, Any] = {"rotation": 0.03}
CONTENT: dict[str, Any] = {"content": 0.5, "content_noise": 0.5}

WORLDS: dict[str, dict[str, Any]] = {
    "drift-none": {},
    "drift-popularity": POPULARITY,
    "drift-new-ids": NEW_IDS,
    "drift-rotation": ROTATION,
    "drift-all": POPULARITY | NEW_IDS | ROTATION,
    "drift-content": NEW_IDS | CONTENT,
}
# Of 46 windows; of the other 36, those before the rates are again what they were while
# the first ones were learnt say nothing of drift.
START, SETTLING = 10, 6


@lru_cache(maxsize=2)
def open_world(name: str, seed: int = 0) -> StreamData:
    """One of `WORLDS`, of a seed of its own.

    Raises
    ------
    ValueError
        If there is no such world.
    """
    if name not in WORLDS:
        raise ValueError(f"unknown world {name!r}; worlds: {', '.join(WORLDS)}")
    return make_stream("drift", seed=seed, **WORLDS[name])


@dataclass(frozen=True)
class DriftExperiment(StreamExperiment):
    """A pass over one of `WORLDS`, which its `data` names, drawn anew for each seed.

    So seeds differ in all that is left to chance, and trials are made in a world that
    no test is made in.
    """

    def open(self) -> StreamData:
        """The world of the seed."""
        return open_world(str(self.data), self.seed)


@dataclass(frozen=True)
class DriftContest(Contest):
    """A contest of passes over some of `WORLDS`."""

    @cached_property
    def spec(self) -> TableSpec:
        """The full table of the world that is tuned on."""
        data = cut_stream(open_world(str(self.data)))
        return make_task(data, self.trial, 0).spec


# -- arms -----------------------------------------------------------------------------

# Windows from one refresh to the next; 0: never.
CADENCES = (0, 1, 2, 5, 10)
RATIO = 10.0


def name_arm(name: str, every: int) -> str:
    """An arm that refreshes.

    Examples
    --------
    >>> name_arm("pq", 0), name_arm("pq", 1), name_arm("pq", 5)
    ('pq, frozen', 'pq, every window', 'pq, every 5 windows')
    """
    if not every:
        return f"{name}, frozen"
    return f"{name}, every window" if every == 1 else f"{name}, every {every} windows"


def list_cadences(
    name: str, key: str, cadences: Iterable[int] = (0, 1), rates_of: str | None = None
) -> list[Entrant]:
    """A method that refreshes in several ways, by the settings of one that never does:
    no trial sees more than the first windows.
    """
    frozen = name_arm(name, 0)
    return [
        Entrant(
            name_arm(name, every), key, (), (RATIO,),
            like=frozen if every else None,
            rates_of=None if every else rates_of,
            pace=(("refresh", every),),
        )
        for every in cadences
    ]  # fmt: skip


def list_plain(*keys: str) -> list[Entrant]:
    """Methods that ask no reads, or follow them by themselves."""
    return [Entrant(key, key, (), None if key == "full" else (RATIO,)) for key in keys]


ARMS = (
    *list_plain("full", "hashing", "quotient_remainder"),
    # Rows of their own for the most read ids; the others share by two hashes, or one
    # row a field.
    *list_cadences("tiers", "double_hashing", CADENCES),
    *list_cadences("head only", "head_only"),
    *list_plain("cafe", "zero_collision"),
    # Its coarsest rows have 8 bits: a tenth of the bytes is out of reach.
    Entrant("shark", "shark", (), (2.5,)),
    *list_cadences("pq", "pq", CADENCES, rates_of="full"),
    *list_cadences("cce", "cce"),
    *list_cadences("mde", "mde_popularity"),
    *list_plain("pep"),
    Entrant("alpt, 8 bits", "alpt", (("bits", 8),), once=True),
    *list_plain("tt_rec"),
)
# Which ids share: by chance, by chance but not in all of several rows, by what they
# are, and never while they are there.
COLLISIONS = list_plain("full", "hashing", "unified", "semantic_ids", "zero_collision")

# Steps of 4,096 rows: 25 a window, so that a pass is some 4,000 steps.
TRAINED = until_plateau(TRIALS["synthetic", "dcnv2"].adjust(
    epochs=3, batch_size=4096, patience=2, tolerance=1e-4, learning_rate=6e-3,
    precision="float32", products="tf32",
))  # fmt: skip

DRIFT_CONTESTS: dict[str, Contest] = {
    contest.name: contest
    for contest in (
        DriftContest(
            "drift", "drift-all", TRAINED, ARMS, (RATIO,), (1, 2, 3, 4, 5), (0,),
            partial(DriftExperiment, start=START, update_epochs=1),
            elsewhere=("drift-none", "drift-popularity", "drift-new-ids",
                       "drift-rotation"),
        ),
        DriftContest(
            "collisions", "drift-content", TRAINED, tuple(COLLISIONS), (RATIO,),
            (1, 2, 3, 4, 5), (0,),
            partial(DriftExperiment, start=START, update_epochs=1),
        ),
        dataclasses.replace(
            CONTESTS["stream"], name="movietweetings_windows", entrants=ARMS,
            ratios=(RATIO,), _reached={},
        ),
    )
}  # fmt: skip


# -- what became of them --------------------------------------------------------------


def read_windows(results: Iterable[Result], column: str = "auc") -> pd.DataFrame:
    """What passes report of each window.

    Parameters
    ----------
    results : iterable of Result
        Those without windows are left out.
    column : str
        Of `run_stream`.

    Returns
    -------
    DataFrame
        Indexed by ``world``, ``arm`` and ``seed``, a column for each window; NaN where
        a pass has no number.

    Raises
    ------
    ValueError
        If a pass reports no such column.
    """
    rows: dict[tuple[str, str, int], dict[float | None, float]] = {}
    for result in results:
        if not result.windows:
            continue
        if column not in result.windows:
            raise ValueError(
                f"a pass reports no {column!r}; columns: {sorted(result.windows)}"
            )
        values = (np.nan if v is None else v for v in result.windows[column])
        own = (result.data, result.entrant or result.key, result.seed)
        rows[own] = dict(zip(result.windows["window"], values, strict=True))
    table = pd.DataFrame.from_dict(rows, orient="index", dtype=np.float64)
    table.index = pd.MultiIndex.from_tuples(rows, names=["world", "arm", "seed"])
    return table.rename_axis(columns="window")


def find_gaps(windows: pd.DataFrame, rival: str = "full") -> pd.DataFrame:
    """By how much each arm is behind the full table in the same window of the same
    world: the shape of `read_windows`, without the full table.
    """
    best = windows.xs(rival, level="arm")
    others = windows.drop(index=rival, level="arm")
    keys = others.index.droplevel("arm")
    known = others[keys.isin(best.index)]
    ahead = best.loc[known.index.droplevel("arm")].to_numpy()
    return ahead - known


def judge_gaps(
    gaps: pd.DataFrame,
    *,
    settling: int = SETTLING,
    margin: float = MATTERS,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Whether the gap of each arm grows, by intervals that hold for a world's arms.

    Parameters
    ----------
    gaps : DataFrame
        Of `find_gaps`.  Less those of the world without drift, it tells drift from what
        is still being learnt: ``gaps.loc[[world]] - gaps.loc["drift-none"]``.
    settling : int
        Windows that are left out at the beginning.
    margin : float
        Change a window that does not matter.
    level, seed
        Of `bound_slopes`.

    Returns
    -------
    DataFrame
        Indexed by ``world`` and ``arm``: ``gap``, its mean over windows and seeds;
        ``slope`` a window, ``low`` and ``high``; and what that says (`describe_slope`).

    Raises
    ------
    ValueError
        If arms of a world have not the same seeds.
    """
    parts = {}
    for world, own in gaps.groupby(level="world", sort=False):
        series, arms = stack_seeds(own.iloc[:, settling:])
        found = bound_slopes(series, level=level, seed=seed)
        ends = [*zip(found.low.tolist(), found.high.tolist(), strict=True)]
        parts[world] = pd.DataFrame(
            {
                "gap": series.mean(axis=(1, 2)),
                "slope": found.slopes,
                "low": found.low,
                "high": found.high,
                "says": [describe_slope(low, high, margin) for low, high in ends],
            },
            index=pd.Index(arms, name="arm"),
        )
    return pd.concat(parts, names=["world"])


def stack_seeds(gaps: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    """The gaps of a world, float64 (arms, seeds, windows), and the arms' names."""
    named = {str(arm): own.droplevel(["world", "arm"]).sort_index(kind="stable")
             for arm, own in gaps.groupby(level="arm", sort=False)}  # fmt: skip
    seeds = {arm: own.index.tolist() for arm, own in named.items()}
    first = next(iter(seeds.values()))
    other = next((arm for arm, own in seeds.items() if own != first), None)
    if other is not None:
        raise ValueError(
            f"all arms must have the same seeds, got {first} and, of {other}, "
            f"{seeds[other]}"
        )
    series = np.stack([own.to_numpy(np.float64) for own in named.values()])
    return series, list(named)


def price_refreshes(
    gaps: pd.DataFrame,
    moved: pd.DataFrame,
    name: str,
    cadences: Sequence[int] = CADENCES,
    *,
    settling: int = SETTLING,
) -> pd.DataFrame:
    """What seldom refreshes cost in accuracy, and spare in bytes.

    Parameters
    ----------
    gaps, moved : DataFrame
        Of `find_gaps`, and of `read_windows` with ``"moved"``.
    name : str
        Of arms by `name_arm`.
    cadences : sequence of int
        1 among them.
    settling : int
        Windows that are left out at the beginning.

    Returns
    -------
    DataFrame
        Indexed by ``world`` and ``every``, windows from one refresh to the next, 0:
        never.  ``gap``: mean over windows and seeds; ``lost``: by how much it is larger
        than that of a refresh every window; ``deviation`` of that over seeds, NaN of
        one; ``moved``: bytes a window.
    """
    rows = {}
    for world in dict.fromkeys(gaps.index.get_level_values("world")):
        own, bytes_ = (pick_arms(part, world, name, cadences) for part in (gaps, moved))
        known = {every: part.iloc[:, settling:].mean(axis=1) for every, part in own}
        for every, part in bytes_:
            lost = known[every] - known[1]
            rows[world, every] = {
                "gap": float(known[every].mean()),
                "lost": float(lost.mean()),
                "deviation": float(lost.std()),
                "moved": float(np.nanmean(part.iloc[:, settling:].to_numpy())),
            }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.rename_axis(["world", "every"])


def pick_arms(
    windows: pd.DataFrame, world: str, name: str, cadences: Sequence[int]
) -> list[tuple[int, pd.DataFrame]]:
    """The passes of a world that refresh in several ways, a row for each seed."""
    levels = ["world", "arm"]
    return [
        (every, windows.xs((world, name_arm(name, every)), level=levels))
        for every in cadences
    ]
