"""One experiment: train, freeze and evaluate one method inside a byte budget.

`run`, `sweep`, tuning and the book's records are lists of these.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from survey_code.catalog import SEARCH, get_method
from survey_code.checks import check_number, check_range, check_switch
from survey_code.data.tasks import DataSet, StreamData
from survey_code.lab.latency import measure_lookup
from survey_code.lab.memory import measure_training
from survey_code.lab.results import (
    Result,
    append_result,
    check_writable,
    describe_machine,
    find_results,
)
from survey_code.lab.task import DataTask, Learnt, make_task, open_data
from survey_code.lab.trial import Trial, adapt_trial, default_trial
from survey_code.options import Options
from survey_code.spec import OutOfReach
from survey_code.training import TrainingSettings

Data = str | DataSet | StreamData
# Settings that change no result.
ASIDE = ("device", "progress", "replay", "epochs_trained", "best_epoch", "ended")


@dataclass(frozen=True)
class Experiment:
    """A method, what it is asked, and what it is to learn from.

    Parameters
    ----------
    method : str
        A key of `methods()`.
    options : Options
        What is asked, the defaults for all else.
    data : str or data set
    trial : Trial
    ratio : float, default 1
        Bytes of the full float32 table over the bytes that may be stored.  A
        ceiling: the method takes its largest configuration that fits.
    seed : int, default 0
    """

    method: str
    options: Options
    data: Data
    trial: Trial
    ratio: float = 1.0
    seed: int = 0

    @classmethod
    def of(
        cls,
        method: str,
        data: Data,
        ratio: float = 1.0,
        seed: int = 0,
        *,
        model: str | None = None,
        dim: int | None = None,
        trial: Trial | None = None,
        device: str | None = None,
        settings: dict[str, Any] | None = None,
        **options: object,
    ) -> Experiment:
        """An experiment from what a user names.

        Parameters
        ----------
        method, data, ratio, seed
            Of the experiment.
        model, dim, device, settings : optional
            Network, dimension of the full table, "cpu" or "cuda", and training
            settings by name, where they differ from the data set's trial.
        trial : Trial, optional
            All of these at once, in place of the data set's own.
        **options
            The method's own.

        Raises
        ------
        ValueError
            If the method, the data, a setting or an option is unknown, or an argument
            is not what it must be.
        """
        asked = get_method(method).ask(options)
        seed = check_range("seed", seed, 0, 2**63 - 1)
        ratio = check_number("ratio", ratio, low=1)
        opened = open_data(data)
        if trial is not None and not isinstance(trial, Trial):
            raise ValueError(f"trial must be a Trial, got {trial!r:.80}")
        trial = trial or default_trial(opened, model)
        trial = adapt_trial(trial, model, dim, device, settings)
        return cls(method, asked, opened, trial, ratio, seed)

    def __hash__(self) -> int:
        return hash(self.key)

    @cached_property
    def task(self) -> DataTask:
        """What the method learns from.

        Raises
        ------
        ValueError
            If the method does not serve such a task.
        """
        method, data = get_method(self.method), open_data(self.data)
        if data.task not in method.tasks:
            raise ValueError(
                f"{self.method} serves {' and '.join(method.tasks)} tasks, but "
                f"{data.name} is a {data.task} task"
            )
        return self._open_task(data)

    def _open_task(self, data: DataSet) -> DataTask:
        return make_task(data, self.trial, self.seed)

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: part
            for name, part in vars(self).items()
            if name not in ("task", "stream", "key")
        }

    @property
    def data_name(self) -> str:
        """By which results name the data set."""
        return open_data(self.data).name

    @property
    def asked(self) -> dict[str, object]:
        """All that can be asked for, with the values in force."""
        return self.options.asked()

    @property
    def defaults(self) -> dict[str, object]:
        """What `asked` is where nothing is asked for."""
        return type(self.options)().asked()

    @cached_property
    def key(self) -> str:
        """What makes this experiment this one, as text; the device is no part of it."""
        return make_key(
            self.method,
            self.asked,
            self.data_name,
            self.trial.model,
            self.trial.dim,
            self.ratio,
            self.seed,
            self.trial.describe(),
        )

    def plan(self) -> Options:
        """The options that meet the budget.

        Raises
        ------
        OutOfReach
            If none do; the message names the highest ratio in reach.
        """
        method = get_method(self.method)
        return method.fit_budget(self.task.spec, self.ratio, self.options)

    def reaches(self) -> bool:
        """Whether the method has a configuration inside the budget."""
        try:
            self.plan()
        except OutOfReach:
            return False
        return True

    def run(
        self,
        measure: bool = True,
        command: str | None = None,
        test: bool = True,
        timed: bool = True,
    ) -> Result:
        """Prepare, search, learn, evaluate, measure, report.

        Parameters
        ----------
        measure : bool, default True
            Also measure training memory and look-up time.
        command : str, optional
            What to note as the command; by default the call of `run`.
        test : bool, default True
            Look at the test, for which rankings are trained once more; a trial of a
            setting does not.
        timed : bool, default True
            Of what is measured, look-up time too: runs beside others cannot.
        """
        measure = check_switch("measure", measure)
        method, task, planned = get_method(self.method), self.task, self.plan()
        start = time.perf_counter()
        options = task.search(method, planned)
        searched = time.perf_counter() - start if method.stage == SEARCH else 0.0
        learnt = task.learn(method, options)
        validation = task.validate(learnt.fitted.network, learnt.layout)
        made = [learnt]
        tested: dict[str, float] = {}
        sizes: dict[str, int] = {}
        if test:
            final = task.for_testing(learnt.histories)
            if final is not task:
                made.append(final.learn(method, options))
            tested, sizes = self._look_at_test(final, made[-1])
        measured = self.measure(made[-1], planned, timed) if measure else ({}, {})
        seconds = {"search": searched}
        for name in learnt.seconds:
            seconds[name] = sum(part.seconds[name] for part in made)
        return self.report(
            options, made, validation, tested, sizes, seconds, *measured, command
        )

    def _look_at_test(
        self, final: DataTask, learnt: Learnt
    ) -> tuple[dict[str, float], dict[str, int]]:
        """Test metrics, and bytes of what else was tested than the layout."""
        return final.test(learnt.fitted.network, learnt.layout), {}

    def measure(
        self, learnt: Learnt, planned: Options, timed: bool = True
    ) -> tuple[dict[str, int], dict[str, float]]:
        """Bytes that training takes, the search's too, and times of look-ups."""
        task, method = self.task, get_method(self.method)
        ids, settings = task.sample_ids(), self.trial.settings
        memory = measure_training(learnt.table, ids, settings)
        if method.stage == SEARCH and method.load().searches(planned):
            table = method.load().searching(task.spec, planned, self.seed)
            sizes = measure_training(table, ids, settings)
            memory |= {f"{name}_in_search": size for name, size in sizes.items()}
        if not timed:
            return memory, {}
        speed = measure_lookup(learnt.layout, [256]).iloc[0]
        return memory, {name: float(speed[name]) for name in ("p50_us", "p99_us")}

    def report(
        self,
        options: Options,
        made: Sequence[Learnt],
        validation: dict[str, float],
        test: dict[str, float],
        sizes: dict[str, int],
        seconds: dict[str, float],
        memory: dict[str, int],
        lookup: dict[str, float],
        command: str | None,
    ) -> Result:
        """All that was found, with where it comes from."""
        spec, layout = self.task.spec, made[-1].layout
        seen = sum(one.rows for part in made for one in part.histories)
        stored = layout.nbytes + spec.outside_bytes
        trained = {f"training_{name}": size for name, size in memory.items()}
        return Result(
            key=self.method,
            asked=self.asked,
            options=options.described(),
            data=self.data_name,
            model=self.trial.model,
            dim=self.trial.dim,
            seed=self.seed,
            requested_ratio=float(self.ratio),
            reached_ratio=(spec.full_bytes + spec.outside_bytes) / stored,
            bytes={"inference": stored, **trained, **sizes},
            validation=validation,
            test=test,
            seconds=seconds,
            lookup=lookup,
            settings={
                **self.trial.describe(),
                # The first trainings chose; others repeat them for the test.
                **made[0].told,
            },
            rows={"search": self.task.rows_searched, "train": seen},
            **describe_machine(self.trial.settings.device),
            command=command or describe_call(self),
            layout=layout,
        )

    def matches(self, result: Result) -> bool:
        """Whether a result is this experiment's."""
        # What is cheap to compare first: a record asks this of all pairs.
        if (result.key, result.seed, result.requested_ratio) != (
            self.method,
            self.seed,
            self.ratio,
        ):
            return False
        if result.asked is None:
            return is_earlier_run(self, result)
        # A result of before an option existed had its default.
        asked = {**self.defaults, **result.asked}
        return self.key == key_of(dataclasses.replace(result, asked=asked))


def note_failure(one: Experiment, why: str, command: str | None = None) -> Result:
    """What is noted in place of metrics where there are none, and why."""
    empty: dict[str, Any] = {
        part: {} for part in ("validation", "test", "seconds", "lookup", "bytes")
    }
    return Result(
        key=one.method,
        asked=one.asked,
        options=one.options.described(),
        data=one.data_name,
        model=one.trial.model,
        dim=one.trial.dim,
        seed=one.seed,
        requested_ratio=float(one.ratio),
        reached_ratio=1.0,
        settings=one.trial.describe(),
        **describe_machine(one.trial.settings.device),
        command=command or describe_call(one),
        failure=why,
        **empty,
    )


def describe_call(experiment: Experiment) -> str:
    """The call of `run` as Python text."""
    given = experiment.options.given().items()
    shown = "".join(f", {name}={value!r}" for name, value in given)
    where = f"ratio={experiment.ratio:g}, seed={experiment.seed}"
    data = experiment.data_name
    return f"survey_code.run({experiment.method!r}, {data!r}, {where}{shown})"


def make_key(
    method: str,
    asked: dict[str, object],
    data: str,
    model: str,
    dim: int,
    ratio: float,
    seed: int,
    trial: dict[str, Any],
) -> str:
    """One line of JSON of all that decides a result."""
    # A result of before a setting existed had its default.
    known = {f.name: f.default for f in dataclasses.fields(TrainingSettings)}
    settings = {**known, **trial}
    settings = {n: value for n, value in settings.items() if n not in ASIDE}
    parts = (method, asked, data, model, dim, float(ratio), seed, settings)
    return json.dumps(parts, sort_keys=True, default=np.ndarray.tolist)


def key_of(result: Result) -> str:
    """The key of the experiment that a result is of."""
    return make_key(
        result.key,
        result.asked or {},
        result.data,
        result.model,
        result.dim,
        result.requested_ratio,
        result.seed,
        result.settings,
    )


def is_earlier_run(experiment: Experiment, result: Result) -> bool:
    """Whether a result of before what was asked was recorded is of an experiment.

    An option that its line lacks had its default; what a plan or a search chose is
    not compared.
    """
    defaults = experiment.defaults
    wanted = experiment.asked
    same = all(
        result.options.get(name, defaults[name]) == value
        for name, value in wanted.items()
        if value is not None
    )
    like = dataclasses.replace(result, asked=wanted)
    return same and experiment.key == key_of(like)


def run(
    method: str,
    data: Data,
    ratio: float = 1.0,
    seed: int = 0,
    *,
    measure: bool = True,
    command: str | None = None,
    **arguments: Any,
) -> Result:
    """Train, freeze and evaluate one method inside a byte budget.

    Parameters
    ----------
    method : str
        A key of `methods()`.
    data : str or data set
        A name that `survey_code.data.load` knows, or a data set of your own.
    ratio : float, default 1
        Bytes of the full float32 table over the bytes that may be stored.  A
        ceiling: the method takes its largest configuration that fits.
    seed : int, default 0
    measure : bool, default True
        Also measure training memory and look-up time.
    command : str, optional
        What to note as the command; by default this call.
    **arguments
        Of `Experiment.of`: ``model``, ``dim``, ``device`` and ``settings`` where they
        differ from the data set's trial, or a ``trial``; and the method's own
        options, e.g. ``bits=8`` or ``combine="sum"``.

    Returns
    -------
    Result

    Raises
    ------
    OutOfReach
        If the method cannot reach the ratio (the message names the highest it can).
    ValueError
        If the method, the data or an option is unknown, or the method does not
        serve the task.
    """
    return Experiment.of(method, data, ratio, seed, **arguments).run(measure, command)


def run_once(
    out: str | os.PathLike[str],
    method: str,
    data: Data,
    ratio: float = 1.0,
    seed: int = 0,
    *,
    measure: bool = True,
    command: str | None = None,
    **arguments: Any,
) -> Result:
    """`run`, unless a file of results holds this run already; it is added there.

    Parameters
    ----------
    out : path
        A file of results, which need not exist.
    method, data, ratio, seed, measure, command, **arguments
        Of `run`.

    Returns
    -------
    Result
    """
    measure = check_switch("measure", measure)
    experiment = Experiment.of(method, data, ratio, seed, **arguments)
    planned = experiment.plan().described()
    check_writable(out)  # before a training, not after it
    for result in find_results(out, method) if Path(out).exists() else []:
        complete = bool(result.lookup) or not measure
        if complete and experiment.matches(result) and agrees(result, planned):
            return result
    result = experiment.run(measure, command)
    append_result(out, result)
    return result


def agrees(result: Result, planned: dict[str, object]) -> bool:
    """Whether a result of before what was asked was recorded is of such a plan."""
    return result.asked is not None or all(
        result.options.get(name, value) == value for name, value in planned.items()
    )


def recall(
    out: str | os.PathLike[str],
    key: str,
    data: str | DataSet | StreamData,
    ratio: float,
    seed: int,
    make: Callable[[], dict[str, Any]],
    trial: Trial,
    **asked: object,
) -> Result:
    """A measurement that is no `run`, as a file holds it; where it is missing, made
    and added there.

    Parameters
    ----------
    out : path
    key : str
        Its name.
    data : str or data set
    ratio, seed
        What was asked for.
    make : callable
        Returns the parts of the result that it measured, such as ``"test"``,
        ``"options"``, ``"bytes"`` or ``"reached_ratio"``.
    trial : Trial
        How anything was trained.
    **asked
        What else it was asked, for another measurement by the same name.
    """
    name = data if isinstance(data, str) else data.name
    wanted = (name, trial.model, trial.dim, float(ratio), seed, trial.describe())
    for result in find_results(out, key) if Path(out).exists() else []:
        if (result.key, result.seed, result.data) != (key, seed, name):
            continue
        noted = result.asked
        if noted is None:  # made before what was asked was recorded
            noted = {n: result.options.get(n, v) for n, v in asked.items()}
        like = dataclasses.replace(result, asked=noted)
        if key_of(like) == make_key(key, asked, *wanted):
            return result
    result = note(key, name, ratio, seed, make(), trial, asked)
    append_result(out, result)
    return result


def note(
    key: str,
    data: str,
    ratio: float,
    seed: int,
    parts: dict[str, Any],
    trial: Trial,
    asked: dict[str, object],
) -> Result:
    """A result that has these parts only."""
    empty: dict[str, Any] = {
        part: {} for part in ("options", "bytes", "validation", "test", "seconds")
    }
    return Result(
        key=key,
        asked=asked,
        data=data,
        model=trial.model,
        dim=trial.dim,
        seed=seed,
        requested_ratio=float(ratio),
        settings=trial.describe(),
        command=f"recall(..., {key!r}, {data!r}, {ratio}, {seed}, ...)",
        **{"reached_ratio": 1.0, "lookup": {}, **empty, **parts},
        **describe_machine(trial.settings.device),
    )


def sweep(
    methods: Iterable[str],
    data: Data,
    ratios: Sequence[float],
    seeds: Sequence[int] = (1, 2, 3),
    *,
    out: str | os.PathLike[str] | None = None,
    measure: bool = True,
    **arguments: Any,
) -> list[Result]:
    """`run` every method at every ratio it can reach, for every seed.

    Ratios out of a method's reach are left out, never replaced.  With `out`, each
    result is added to that file, and runs that it holds are not made again.
    """
    lists = {"methods": methods, "ratios": ratios, "seeds": seeds}
    for name, listed in lists.items():
        if isinstance(listed, str) or not isinstance(listed, Iterable):
            raise ValueError(f"{name} must be a list, got {listed!r}")
    measure = check_switch("measure", measure)
    results = []
    for method in methods:
        for ratio in [1.0] if method == "full" else list(ratios):
            if method == "full" or reaches(method, data, ratio, **arguments):
                for seed in seeds:
                    given: Any = (method, data, ratio, seed)
                    results.append(
                        run(*given, measure=measure, **arguments)
                        if out is None
                        else run_once(out, *given, measure=measure, **arguments)
                    )
    return results


def reaches(method: str, data: Data, ratio: float, **arguments: Any) -> bool:
    """Whether a method has a configuration inside the budget."""
    return Experiment.of(method, data, ratio, **arguments).reaches()


def repeat(result: Result, data: Data, **arguments: Any) -> Result:
    """Make a recorded run again, trained as it was then.

    Parameters
    ----------
    result : Result
        For example a line of the book's records.
    data : str or data set
        What it was made on.
    **arguments
        Of `run`, where they are to differ: ``seed=4``, ``device="cuda"``.

    Returns
    -------
    Result
        On the CPU and in float64 the same metrics, on any processor.

    Raises
    ------
    ValueError
        If the data set is not the result's.
    """
    if not isinstance(result, Result):
        raise ValueError(f"result must be a Result, got {result!r:.80}")
    if "update_epochs" in (result.asked or result.options):
        raise ValueError("the result is of a pass over a stream: see run_stream")
    data = open_data(data)
    if data.name != result.data:
        raise ValueError(f"the result was made on {result.data}, got {data.name}")
    given: dict[str, Any] = {"seed": result.seed, "trial": trial_of(result)}
    given |= asked_of(result, data, given["trial"])
    return run(result.key, data, result.requested_ratio, **{**given, **arguments})


def trial_of(result: Result) -> Trial:
    """How a recorded run was trained; on the CPU."""
    known = [f.name for f in dataclasses.fields(TrainingSettings)]
    settings = {n: result.settings[n] for n in known if n in result.settings}
    settings |= {"device": "cpu", "progress": False}
    parts = {n: result.settings[n] for n in ("layers", "objective", "init_std")}
    return Trial(result.model, result.dim, TrainingSettings(**settings), **parts)


def asked_of(result: Result, data: DataSet, trial: Trial) -> dict[str, object]:
    """The options that a recorded run was asked for.

    Of a run of before they were recorded, those that it was configured with, but not
    what its plan chooses again when it is not told.
    """
    if result.asked is not None:
        return {
            name: value for name, value in result.asked.items() if value is not None
        }
    rules = get_method(result.key).load().options.rules
    known = {n: v for n, v in result.options.items() if n in rules}
    asked = {n: v for n, v in known.items() if not rules[n].planned}
    again = Experiment.of(
        result.key, data, result.requested_ratio, result.seed, trial=trial, **asked
    )
    planned = again.plan().described()
    told = {n: v for n, v in known.items() if not rules[n].found}
    return asked if all(planned.get(n, v) == v for n, v in told.items()) else told
