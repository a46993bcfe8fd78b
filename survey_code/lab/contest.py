"""A fair comparison: who competes, tuned alike, and judged at the same ratios."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TypeVar

from survey_code.catalog import AFTER, CATALOG, Method, get_method
from survey_code.checks import check_choice
from survey_code.lab.experiment import Data, Experiment, note_failure
from survey_code.lab.records import Course, Records, Wanted
from survey_code.lab.results import Result
from survey_code.lab.task import make_task, open_data
from survey_code.lab.trial import Trial
from survey_code.lab.tuning import TRIALS_EACH, Marks, Way, best_of, mark_of, tune
from survey_code.options import Options, SearchOptions
from survey_code.spec import OutOfReach, TableSpec

T = TypeVar("T")

# Of the full bytes, at which all that can are compared.
RATIOS = (2.0, 4.0, 10.0, 30.0)
SEEDS = (1, 2, 3)
# Settings are chosen at the first ratio, and the best three again at the second.
TUNED_AT, CHECKED_AT, CHECKED = 10.0, 30.0, 3
# Methods of whole columns, like a narrower table.
NARROW = ("low_rank", "mlet")
# Which bits compete, and at which ones methods do that offer more than these.
BITS_ASKED = ("usual", "all")
USUAL_BITS = {
    **dict.fromkeys(("rowwise", "greedy", "lpt", "alpt"), (8, 4, 2)),
    "lsq": (8, 4, 3, 2),
}
# Methods that ask what ids are, which no data set of these records says.
ASK_CONTENT = ("semantic_ids",)


@dataclass(frozen=True)
class Entrant:
    """What competes: a method, and what it is always asked.

    Parameters
    ----------
    name : str
        By which tables name it: the method's key, or more.
    key : str
    asked : tuple of (str, object)
        Options; the others are tuned, planned or as by default.
    ratios : tuple of float, optional
        To be asked for; by default the contest's.
    once : bool
        Whether its options leave one size only: recorded at the highest ratio that
        they reach.
    like : str, optional
        Name of the entrant whose settings it takes; by default its own are tuned.
    rates_of : str, optional
        Name of the entrant whose rates it takes, and tunes its own options alone: what
        is compressed after training is the best table that there is.
    tries : tuple of (str, tuple)
        Values of options that its tuning tries beside those that the method names, or
        in their place; the default first.
    trials : int, default `TRIALS_EACH`
        Of its tuning; others than all have only where a record says so.
    pace : tuple of (str, object)
        Of its experiments, beside the method's options: how it follows a stream.
    """

    name: str
    key: str
    asked: tuple[tuple[str, object], ...] = ()
    ratios: tuple[float, ...] | None = None
    like: str | None = None
    once: bool = False
    rates_of: str | None = None
    tries: tuple[tuple[str, tuple[object, ...]], ...] = ()
    trials: int = TRIALS_EACH
    pace: tuple[tuple[str, object], ...] = ()

    @property
    def tuned(self) -> bool:
        """Whether its own settings are tuned."""
        return self.like is None


@dataclass(frozen=True)
class Contest:
    """A data set, how all are trained on it, and who competes at which ratios.

    Parameters
    ----------
    name : str
        Of the files of its results.
    data : str or data set
    trial : Trial
        Before tuning.
    entrants : tuple of Entrant
    ratios : tuple of float
    seeds : tuple of int
        That are recorded.
    tuned_on : tuple of int
        Seeds of the trials: two where a trial is short, as one seed's best is noise.
    kind : callable
        Makes an experiment, as `Experiment` does.
    elsewhere : tuple of str or data set
        Other data that all are recorded on as well, with the same settings.
    """

    name: str
    data: Data
    trial: Trial
    entrants: tuple[Entrant, ...]
    ratios: tuple[float, ...] = RATIOS
    seeds: tuple[int, ...] = SEEDS
    tuned_on: tuple[int, ...] = (0, 10)
    kind: Callable[..., Experiment] = Experiment
    elsewhere: tuple[Data, ...] = ()
    _reached: dict[tuple[str, float], float | None] = field(
        default_factory=dict, repr=False, compare=False
    )

    @cached_property
    def spec(self) -> TableSpec:
        """The full table."""
        return make_task(open_data(self.data), self.trial, 0).spec

    def named(self, name: str) -> Entrant:
        """An entrant by its name."""
        return next(one for one in self.entrants if one.name == name)

    def pose(self, entrant: Entrant, way: Way, ratio: float, seed: int) -> Experiment:
        """One run of an entrant, trained in a way.

        A search goes on for as long as a table's own schedule.
        """
        options = way.ask(entrant.key, dict(entrant.asked))
        if isinstance(options, SearchOptions) and options.search_epochs is None:
            options = options.replace(search_epochs=self.trial.settings.epochs)
        trial, pace = way.adapt(self.trial), dict(entrant.pace)
        return self.kind(entrant.key, options, self.data, trial, ratio, seed, **pace)

    def plan(self, entrant: Entrant, way: Way, ratio: float) -> Options | None:
        """The options of a run, a plan's included; None where it is out of reach."""
        asked = way.ask(entrant.key, dict(entrant.asked))
        try:
            return get_method(entrant.key).fit_budget(self.spec, ratio, asked)
        except OutOfReach:
            return None

    def reach(self, entrant: Entrant, ratio: float) -> float | None:
        """The ratio to ask for: the one wished, else the highest below it that is in
        reach; None if there is none.
        """
        if (entrant.name, ratio) not in self._reached:
            self._reached[entrant.name, ratio] = self._find_reach(entrant, ratio)
        return self._reached[entrant.name, ratio]

    def _find_reach(self, entrant: Entrant, ratio: float) -> float | None:
        asked = Way().ask(entrant.key, dict(entrant.asked))
        try:
            get_method(entrant.key).fit_budget(self.spec, ratio, asked)
        except OutOfReach as error:
            if error.nearest is None or error.nearest >= ratio:
                return None
            # Rounded down, so that it is in reach.
            return math.floor(100 * error.nearest) / 100
        return ratio


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Parameters
    ----------
    marks, checked : dict
        Of the ways tried at `TUNED_AT`, and of the best of them at `CHECKED_AT`.
    """

    marks: Marks
    checked: Marks

    def way_at(self, ratio: float, fits: Callable[[Way], bool] | None = None) -> Way:
        """How to train for a ratio: the best at the nearer of the two, of those ways
        that can reach it.
        """
        far = ratio > math.sqrt(TUNED_AT * CHECKED_AT)
        checked = {w: mark for w, mark in self.checked.items() if mark > -math.inf}
        for marks in (checked if far else {}, self.marks):
            fitting = {w: m for w, m in marks.items() if fits is None or fits(w)}
            if fitting:
                return best_of(fitting)
        return Way()


def list_courses(
    contest: Contest, records: Records, only: Collection[str] | None = None
) -> list[Course]:
    """All that a contest asks for, or some entrants of it."""
    choices: dict[str, Tuned] = {}
    return [
        enter(contest, entrant, records, choices)
        for entrant in contest.entrants
        if not only or entrant.name in only
    ]


def enter(
    contest: Contest, entrant: Entrant, records: Records, choices: dict[str, Tuned]
) -> Course:
    """An entrant's trials, then what is recorded of it.

    What tuning found is left in `choices`, where others wait for it.
    """
    if entrant.like is not None:
        chosen = yield from await_choice(contest, entrant.like, records, choices)
    else:
        start = None
        if entrant.rates_of is not None:
            rates = yield from await_choice(contest, entrant.rates_of, records, choices)
            start = rates.way_at(1.0)
        chosen = yield from tune_entrant(contest, entrant, start)
        choices[entrant.name] = chosen
    yield [
        Wanted(dataclasses.replace(contest.pose(entrant, way, ratio, seed), data=data))
        for data in (contest.data, *contest.elsewhere)
        for ratio, way in list_runs(contest, entrant, chosen)
        for seed in contest.seeds
    ]


def await_choice(
    contest: Contest, name: str, records: Records, choices: dict[str, Tuned]
) -> Generator[list[Wanted], list[Result], Tuned]:
    """What another entrant's tuning found, once it is there."""
    if name not in choices:
        known = choose_ways(contest, contest.named(name), records)
        if known is not None:
            choices[name] = known
    while name not in choices:
        yield []  # it is being tuned
    return choices[name]


def list_runs(
    contest: Contest, entrant: Entrant, chosen: Tuned
) -> Iterator[tuple[float, Way]]:
    """The ratios at which an entrant is recorded, and how it is trained for each."""
    for ratio in list_ratios(contest, entrant):
        fits = partial(fits_ratio, contest, entrant, ratio)
        yield ratio, chosen.way_at(ratio, fits)


def fits_ratio(contest: Contest, entrant: Entrant, ratio: float, way: Way) -> bool:
    """Whether an entrant reaches a ratio with the options of a way."""
    return contest.plan(entrant, way, ratio) is not None


def list_ratios(contest: Contest, entrant: Entrant) -> list[float]:
    """What an entrant is asked for; `list_missed` has what is out of its reach.

    Of ratios for which it would do the same, the highest.
    """
    asked = [r for r in wish(contest, entrant) if contest.reach(entrant, r) == r]
    plans = [contest.plan(entrant, Way(), ratio) for ratio in asked]
    return [r for k, r in enumerate(asked) if plans[k] not in plans[k + 1 :]]


def list_missed(contest: Contest, entrant: Entrant) -> list[float]:
    """The contest's ratios that an entrant cannot reach."""
    return [r for r in wish(contest, entrant) if contest.reach(entrant, r) != r]


def wish(contest: Contest, entrant: Entrant) -> tuple[float, ...]:
    """The ratios at which an entrant would be compared."""
    if entrant.key == "full":
        return (1.0,)
    if not entrant.once:
        return contest.ratios if entrant.ratios is None else entrant.ratios
    highest = contest.reach(entrant, 1e6)
    return () if highest is None else (highest,)


def tune_entrant(
    contest: Contest, entrant: Entrant, start: Way | None = None
) -> Generator[list[Wanted], list[Result], Tuned]:
    """The trials of an entrant, and the best ones again at the second ratio."""
    marks: Marks = {}
    near = tuning_ratio(contest, entrant, TUNED_AT)
    if near is None:
        return Tuned({}, {})
    told = (dict(entrant.asked), start, dict(entrant.tries), entrant.trials)
    tries = tune(entrant.key, contest.trial, *told)
    ways = next(tries)
    while ways:
        found = yield from try_ways(contest, entrant, ways, near)
        marks.update(zip(ways, found, strict=True))
        try:
            ways = tries.send(found)
        except StopIteration:
            ways = []
    far = tuning_ratio(contest, entrant, CHECKED_AT)
    if far is None or far <= near or same_plan(contest, entrant, near, far):
        return Tuned(marks, {})
    best = sorted(marks, key=marks.__getitem__, reverse=True)[:CHECKED]
    found = yield from try_ways(contest, entrant, best, far)
    return Tuned(marks, dict(zip(best, found, strict=True)))


def same_plan(contest: Contest, entrant: Entrant, near: float, far: float) -> bool:
    """Whether an entrant would do the same for two ratios."""
    plans = [contest.plan(entrant, Way(), ratio) for ratio in (near, far)]
    return plans[0] == plans[1]


def tuning_ratio(contest: Contest, entrant: Entrant, ratio: float) -> float | None:
    """The ratio at which an entrant is tuned: of its own the nearest; else the wished,
    or the highest in reach.
    """
    if entrant.key == "full":
        return 1.0
    if entrant.ratios:
        reached = [r for r in entrant.ratios if contest.reach(entrant, r) == r]
        return min(reached, key=lambda own: abs(math.log(own / ratio)), default=None)
    return contest.reach(entrant, ratio)


def try_ways(
    contest: Contest, entrant: Entrant, ways: Sequence[Way], ratio: float
) -> Generator[list[Wanted], list[Result], list[float]]:
    """The marks of ways at a ratio, means over the seeds that are tuned on."""
    seeds = contest.tuned_on
    results = yield [
        Wanted(contest.pose(entrant, way, ratio, seed), tests=False)
        for way in ways
        for seed in seeds
    ]
    marks = [mark_of(result) for result in results]
    starts = range(0, len(marks), len(seeds))
    return [sum(marks[start : start + len(seeds)]) / len(seeds) for start in starts]


def arrange(contest: Contest, records: Records) -> tuple[list[Result], list[Result]]:
    """A contest's trials and runs, entrant by entrant, as far as they are made.

    A run that serves two entrants is there for both; a ratio out of reach has a line
    that says so, without a seed's metrics.
    """
    trials: list[Result] = []
    runs: list[Result] = []
    choices: dict[str, Tuned] = {}
    for entrant in contest.entrants:
        steps: list[tuple[list[Wanted], list[Result]]] = []
        replay(enter(contest, entrant, records, choices), records, steps)
        for wanted, made in steps:
            pile = runs if wanted[0].tests else trials
            pile += [dataclasses.replace(r, entrant=entrant.name) for r in made]
        for ratio in list_missed(contest, entrant):
            one = contest.pose(entrant, Way(), ratio, contest.seeds[0])
            nearest = contest.reach(entrant, ratio)
            why = "cannot" if nearest is None else f"cannot: at most {nearest:g}x"
            runs.append(
                dataclasses.replace(note_failure(one, why), entrant=entrant.name)
            )
    return trials, runs


def replay(
    course: Generator[list[Wanted], list[Result], T],
    records: Records,
    steps: list[tuple[list[Wanted], list[Result]]],
) -> T | None:
    """Follow a course as far as known results lead: what it returns in the end, None
    where a result is missing.  What it asked for and was sent is added to `steps`.
    """
    try:
        wanted = next(course)
        while wanted:
            found = [records.find(one) for one in wanted]
            known = [result for result in found if result is not None]
            steps.append((wanted, known))
            if len(known) < len(found):
                return None
            wanted = course.send(known)
    except StopIteration as end:
        value: T = end.value
        return value
    return None


def choose_ways(contest: Contest, entrant: Entrant, records: Records) -> Tuned | None:
    """What an entrant's tuning found; None while a trial is missing."""
    start = None
    if entrant.rates_of is not None:
        rates = choose_ways(contest, contest.named(entrant.rates_of), records)
        if rates is None:
            return None
        start = rates.way_at(1.0)
    return replay(tune_entrant(contest, entrant, start), records, [])


def pose_best(
    contest: Contest, entrant: Entrant, records: Records, ratio: float
) -> Experiment | None:
    """An entrant's run at the ratio nearest in its reach, of the first seed, with the
    settings that its tuning found, or the base's while that is not made; None where
    nothing is in reach.
    """
    near = tuning_ratio(contest, entrant, ratio)
    if near is None:
        return None
    source = contest.named(entrant.like) if entrant.like else entrant
    found = choose_ways(contest, source, records)
    way = Way() if found is None else found.way_at(near)
    return contest.pose(entrant, way, near, contest.seeds[0])


def list_entrants(task: str, dim: int, bits: str = "usual") -> tuple[Entrant, ...]:
    """Everyone who competes on a task: all methods, the rivals that are always there,
    and low precision at each number of bits.

    Parameters
    ----------
    task : str
    dim : int
        Columns of the full table.
    bits : {"usual", "all"}
        Of low precision: those of `USUAL_BITS`, or all that a method offers.

    Raises
    ------
    ValueError
        For another word.
    """
    check_choice("bits", bits, BITS_ASKED)
    entrants = [
        entrant
        for method in CATALOG
        if task in method.tasks and method.key not in ASK_CONTENT
        for entrant in list_own_entrants(method, dim, bits)
    ]
    rules = [
        Entrant(f"bccf, {rule}", "bccf", (("rule", rule),), like="bccf", once=True)
        # Rows that were rotated are no vectors that a network knows.
        for rule in ("sign", "pph", *(("itq",) if task == "top-n" else ()))
    ]
    nested = Entrant(
        "uniform, nested", "uniform", (("matryoshka", True),), list_widths(dim)
    )
    return (*entrants, *rules, nested, *list_shared_bits(bits), *RIVALS)


def list_own_entrants(method: Method, dim: int, bits: str = "usual") -> list[Entrant]:
    """As whom a method competes: once, or for each number of bits."""
    key, rates_of = method.key, "full" if takes_full_table(method) else None
    named: list[tuple[str, tuple[tuple[str, object], ...]]] = [(key, ())]
    if counts := list_bits(key, bits):
        # One size for each number of bits, each tuned for itself.
        named = [(f"{key}, {count} bits", (("bits", count),)) for count in counts]
    return [
        Entrant(
            name, key, asked, list_own_ratios(key, dim),
            once=bool(counts) or key == "popular", rates_of=rates_of,
        )
        for name, asked in named
    ]  # fmt: skip


def takes_full_table(method: Method) -> bool:
    """Whether a method compresses the full table after its training."""
    kind = method.load()
    return method.stage == AFTER and "prepare" not in vars(kind)


def list_own_ratios(key: str, dim: int) -> tuple[float, ...] | None:
    """The ratios of whole numbers of columns, for what has no sizes in between."""
    if key == "uniform":
        return list_widths(dim)
    # A little is needed beside the columns.
    return tuple(0.99 * r for r in list_widths(dim)) if key in NARROW else None


def list_widths(dim: int) -> tuple[float, ...]:
    """Ratios of the numbers of columns on both sides of each of the contest's."""
    widths = {
        width
        for ratio in RATIOS
        for width in (math.floor(dim / ratio), math.ceil(dim / ratio))
        if width
    }
    return tuple(dim / width for width in sorted(widths, reverse=True))


def list_bits(key: str, bits: str = "usual") -> tuple[int, ...]:
    """The numbers of bits at which a quantisation competes, by what is asked."""
    method = get_method(key)
    # A cache of full rows beside rounded ones has any size.
    if method.family != "quantisation" or key == "mixed_precision_cache":
        return ()
    if "bits" not in method.load().options.names():
        return ()
    allowed: tuple[int, ...] = method.load().options.rules["bits"].choices
    return allowed if bits == "all" else USUAL_BITS.get(key, allowed)


def list_shared_bits(bits: str = "usual") -> list[Entrant]:
    """Rounding with one scale for the table, at each number of bits."""
    return [
        Entrant(
            f"rowwise, {count} bits a table", "rowwise",
            (("bits", count), ("per", "table")), once=True, rates_of="full",
        )
        for count in list_bits("rowwise", bits)
    ]  # fmt: skip


# Variants that stand beside a method, so that nobody wins for want of a simple rival.
RIVALS = (
    Entrant("hashing, fields apart", "hashing", (("fields", "apart"),), None,
            "hashing"),
    Entrant("hashing, fields together", "hashing", (("fields", "together"),), None,
            "hashing"),
    *(
        Entrant(f"magnitude, {name}", "magnitude", tuple(asked.items()), None,
                "magnitude")
        for name, asked in {
            "plain": {"by_reads": False, "rewind": False},
            "only cut": {"by_reads": False, "rewind": False, "retrain": False},
            "by reads": {"by_reads": True, "rewind": False},
            "by reads, rewound": {"by_reads": True, "rewind": True},
        }.items()
    ),
)  # fmt: skip
