"""Equal tuning: the same grid of rates and the same number of trials for every method.

First the table's learning rate, over the same factors of the data set's own and on
until the best stands inside; then the network's rate and L2 alike; then the method's
own options, by a tree-structured Parzen estimator, until all trials are used.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
import zlib
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from survey_code.catalog import get_method
from survey_code.lab.results import Result
from survey_code.lab.trial import Trial
from survey_code.options import Options

if TYPE_CHECKING:
    import optuna

TRIALS_EACH = 16
# Of the trial's own value, for every method; and the factor by which a grid grows
# while the best value stands at its edge.
RATE_GRID: dict[str, tuple[tuple[float, ...], float]] = {
    "table_learning_rate": ((1.0, 0.5, 2.0, 0.25, 4.0), 2.0),
    "learning_rate": ((1.0, 0.5, 2.0), 2.0),
    "l2": ((1.0, 1 / 3, 3.0), 3.0),
    "table_l2": ((1.0, 1 / 3, 3.0), 3.0),
}
# Times that a grid grows by its factor; from then on by the factor's square.
SLOW_GROWTHS = 3
# That the grids leave, of so many, to a method's own options, if it has any.
KEPT_FOR_OPTIONS = 6
# Trials that are drawn before the marks of the first of them are heard.
DRAWN_AT_ONCE = 3
# Draws until nothing new is expected.
MOST_DRAWS = 300


@dataclass(frozen=True)
class Way:
    """One way to train a method.

    Parameters
    ----------
    factors : tuple of (str, float)
        Of the trial's settings, in the order of `RATE_GRID`; of others it is 1.
    options : tuple of (str, object)
        The method's own, where they are not what it is always asked.
    """

    factors: tuple[tuple[str, float], ...] = ()
    options: tuple[tuple[str, object], ...] = ()

    def factor(self, name: str) -> float:
        """Of a setting."""
        return dict(self.factors).get(name, 1.0)

    def scale(self, name: str, factor: float) -> Way:
        """The same with another factor of a setting."""
        factors = {**dict(self.factors), name: factor}
        kept = {n: factors[n] for n in RATE_GRID if factors.get(n, 1.0) != 1.0}
        return dataclasses.replace(self, factors=tuple(kept.items()))

    def adapt(self, trial: Trial) -> Trial:
        """The trial with its settings multiplied."""
        # All of them, as the table's rate would follow the network's if it were left
        # out.
        changes: dict[str, Any] = {
            name: value * self.factor(name) for name, value in tunable(trial).items()
        }
        return trial.adjust(**changes)

    def ask(self, key: str, asked: Mapping[str, object]) -> Options:
        """A method's options: what it is always asked, and this way's own."""
        return get_method(key).ask({**dict(self.options), **asked})


# How good each way is, in the order in which they were tried.
Marks = dict[Way, float]
Tries = Generator[list[Way], list[float], None]


def tunable(trial: Trial) -> dict[str, float]:
    """The settings that are tuned, and their values; one that is 0 stays 0."""
    settings = trial.settings
    rate = settings.table_learning_rate or settings.learning_rate
    found = {
        "table_learning_rate": rate,
        # Cosines of vectors have no network around them.
        "learning_rate": 0.0 if trial.model == "mf" else settings.learning_rate,
        "l2": settings.l2,
        "table_l2": settings.table_l2,
    }
    return {name: value for name, value in found.items() if value}


def tune(
    key: str,
    trial: Trial,
    asked: Mapping[str, object],
    start: Way | None = None,
    tries: Mapping[str, tuple[object, ...]] | None = None,
    trials: int = TRIALS_EACH,
) -> Tries:
    """Ways to try, a few at a time; their marks are sent back, -inf for a failure.

    Parameters
    ----------
    key : str
        The method's.
    trial : Trial
        What the factors are of.
    asked : dict
        Options that the method is always asked: they are not tuned.
    start : Way, optional
        Whose rates it takes: its own options alone are tuned then.
    tries : dict of tuple, optional
        As `list_knobs` takes them.
    trials : int, default `TRIALS_EACH`

    Yields
    ------
    list of Way
        So many in all, the same again for the same marks; fewer of a method that has
        no rates to tune, and fewer options.
    """
    marks: Marks = {}
    kind = get_method(key).load()
    base = tunable(trial) if kind.learns_by_gradient and start is None else {}
    knobs = list_knobs(key, asked, tries or {})
    yield from look_up([start or Way()], marks, trials)
    most = trials - KEPT_FOR_OPTIONS * trials // TRIALS_EACH * bool(knobs)
    for name in base:
        yield from climb(name, marks, most)
    near = best_of(marks)
    while len(marks) < trials:
        left = min(trials - len(marks), DRAWN_AT_ONCE)
        ways = draw_ways(key, near, marks, knobs, list(base), left)
        if not ways:
            return  # there are no more
        yield from look_up(ways, marks, trials)


def list_knobs(
    key: str, asked: Mapping[str, object], tries: Mapping[str, tuple[object, ...]]
) -> dict[str, tuple[Any, ...]]:
    """The options that are tuned, and their values; none that is always asked.

    Parameters
    ----------
    key : str
        The method's, which names options worth tuning.
    asked : dict
    tries : dict of tuple
        Values of options that are tried beside those, or in their place; the default
        first.

    Raises
    ------
    ValueError
        If the default is not the first, or a value is out of its range.
    """
    method = get_method(key)
    usual = method.ask({}).asked()
    for name, values in tries.items():
        for value in values:
            method.ask({name: value})
        if not values or values[0] != usual[name]:
            raise ValueError(
                f"{key}: of the values to try of {name} the first must be its default, "
                f"{usual[name]!r}, got {values}"
            )
    rules = {**method.load().options.grid(), **tries}
    return {name: values for name, values in rules.items() if name not in asked}


def look_up(ways: list[Way], marks: Marks, most: int) -> Tries:
    """Ask for the marks of ways that were not tried, while trials are left."""
    fresh = [way for way in dict.fromkeys(ways) if way not in marks]
    fresh = fresh[: max(most - len(marks), 0)]
    if fresh:
        found = yield fresh
        marks.update(zip(fresh, found, strict=True))


def best_of(marks: Marks) -> Way:
    """The way of the highest mark, of equal ones the first."""
    return max(marks, key=marks.__getitem__)


def climb(name: str, marks: Marks, most: int) -> Tries:
    """Try one setting's grid around the best way, and on where the best is its edge,
    until so many trials are used; faster where it is far away.
    """
    factors, growth = RATE_GRID[name]
    start = best_of(marks) if marks else Way()
    tried = {factor: start.scale(name, factor) for factor in factors}
    yield from look_up(list(tried.values()), marks, most)
    while len(marks) < most:
        known = {factor: marks[way] for factor, way in tried.items() if way in marks}
        best = max(known, key=known.__getitem__)
        if min(known) < best < max(known):
            return
        step = growth if len(tried) < len(factors) + SLOW_GROWTHS else growth**2
        further = best * step if best == max(known) else best / step
        tried[further] = start.scale(name, further)
        yield from look_up([tried[further]], marks, most)


def draw_ways(
    key: str,
    near: Way,
    marks: Marks,
    knobs: Mapping[str, tuple[Any, ...]],
    settings: list[str],
    count: int,
) -> list[Way]:
    """Ways worth trying next: options and the table's rate, or all rates of a method
    that has no options to try, near the best of the grids.
    """
    with warnings.catch_warnings():
        # Of progress bars that this notebook cannot show, and nobody asked for.
        warnings.simplefilter("ignore")
        import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rates = settings[:1] if knobs else settings
    space: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.CategoricalDistribution(values)
        for name, values in knobs.items()
    }
    for name in rates:
        # The neighbours on the grid were tried: the best stays inside it.
        growth = RATE_GRID[name][1] * 0.999
        low, high = near.factor(name) / growth, near.factor(name) * growth
        space[f"* {name}"] = optuna.distributions.FloatDistribution(low, high, log=True)
    seed = zlib.crc32(f"{key} {len(marks)}".encode())
    sampler = optuna.samplers.TPESampler(n_startup_trials=5, seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for way, mark in marks.items():
        known = describe(way, knobs, rates)
        inside = all(space[name]._contains(space[name].to_internal_repr(v))
                     for name, v in known.items())  # fmt: skip
        if inside and math.isfinite(mark):
            study.add_trial(
                optuna.create_trial(params=known, distributions=space, value=mark)
            )
    drawn = (study.ask(space).params for _ in range(MOST_DRAWS if space else 0))
    return list(itertools.islice(new_ways(near, drawn, knobs, marks), count))


def describe(
    way: Way, knobs: Mapping[str, tuple[Any, ...]], rates: list[str]
) -> dict[str, Any]:
    """A way as a point of the space that is drawn from."""
    own = dict(way.options)
    point: dict[str, Any] = {n: own.get(n, values[0]) for n, values in knobs.items()}
    return point | {f"* {name}": way.factor(name) for name in rates}


def new_ways(
    near: Way,
    drawn: Iterator[dict[str, Any]],
    knobs: Mapping[str, tuple[Any, ...]],
    marks: Marks,
) -> Iterator[Way]:
    """The ways of drawn points, each that is new once."""
    seen = set(marks)
    for point in drawn:
        way = near
        for name, value in point.items():
            if name.startswith("* "):
                way = way.scale(name[2:], float(f"{value:.3g}"))
        own = {n: point[n] for n, values in knobs.items() if point[n] != values[0]}
        way = dataclasses.replace(way, options=tuple(own.items()))
        if way not in seen:
            seen.add(way)
            yield way


def name_metric(metrics: Mapping[str, float]) -> str:
    """The metric that decides: AUC for clicks, Recall@20 for rankings."""
    return "auc" if "auc" in metrics else "recall@20"


def mark_of(result: Result) -> float:
    """By which a trial is chosen: its validation metric; -inf if it failed."""
    if result.failure is not None:
        return -math.inf
    return result.validation[name_metric(result.validation)]
