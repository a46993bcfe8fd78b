"""Files of results, and the runs that they lack: made side by side, and resumed.

Runs are asked for by courses: generators that yield lists of runs, are sent their
results, and go on from there, as a tuning does.  A plain list is a course of one step.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from survey_code.catalog import AFTER, get_method, load_plugin, loaded_plugins, methods
from survey_code.embedding import Diverged
from survey_code.lab.experiment import Experiment, key_of, note_failure
from survey_code.lab.results import Result, append_result, load_results, replace_results
from survey_code.spec import OutOfReach

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized


@dataclass(frozen=True)
class Wanted:
    """A run that a course asks for.

    Parameters
    ----------
    experiment : Experiment
    tests : bool
        Whether the test is looked at; trials of settings do not.
    """

    experiment: Experiment
    tests: bool = True

    @cached_property
    def key(self) -> tuple[str, bool]:
        """By which its result is found."""
        return self.experiment.key, self.tests

    @cached_property
    def shares(self) -> object:
        """The same for runs that share a full table; other runs have their own."""
        one = self.experiment
        after = get_method(one.method).stage == AFTER or one.method == "full"
        # Trials hold dictionaries, which cannot be keys.
        return (one.seed, repr(one.trial), self.tests) if after else self.key


# Runs that share a full table in one process, at most.
MOST_SHARED = 8
# What a group of runs gave, one by one.
Made = list[Result | BaseException]

# An empty list waits for what other courses find.
Course = Generator[list[Wanted], list[Result], None]


class Records:
    """Results by the runs that they are of, and the files that hold them.

    Parameters
    ----------
    runs, trials : Path
        Files of results, which need not exist; of runs that look at the test, and of
        others.
    more : iterable of Path
        Other files of either, only read.
    """

    def __init__(
        self, runs: Path, trials: Path | None = None, more: Iterable[Path] = ()
    ) -> None:
        self.paths = {True: runs, False: trials or runs}
        self.by_key: dict[tuple[str, bool], Result] = {}
        self.earlier: list[Result] = []
        for path in dict.fromkeys((*more, runs, *self.paths.values())):
            for result in load_results(path) if path.exists() else []:
                self.note(result)

    @classmethod
    def of(cls, results: Iterable[Result]) -> Records:
        """Of results that are in no file."""
        records = cls(Path(os.devnull))
        for result in results:
            records.note(result)
        return records

    def note(self, result: Result) -> None:
        """Remember a result."""
        if result.asked is None:  # of before that was recorded
            self.earlier.append(result)
            return
        full = dataclasses.replace(result, asked=complete(result))
        tests = bool(result.test) or result.failure is not None
        self.by_key.setdefault((key_of(full), tests), result)
        if not result.validation:  # a failure is one of both kinds
            self.by_key.setdefault((key_of(full), False), result)

    def find(self, wanted: Wanted) -> Result | None:
        """The result of a run, if it is there."""
        found = self.by_key.get(wanted.key)
        if found is None and self.earlier:
            matching = (r for r in self.earlier if wanted.experiment.matches(r))
            found = next(matching, None)
        return found

    def add(self, result: Result, wanted: Wanted) -> None:
        """Remember a result as it will be when it is read again, and write it down."""
        self.by_key[wanted.key] = result
        self.note(result)
        append_result(self.paths[wanted.tests], result)


def complete(result: Result) -> dict[str, Any]:
    """What was asked of a run; an option that did not exist then had its default."""
    asked = result.asked or {}
    if result.key not in {method.key for method in methods()}:  # no run of a method
        return asked
    return {**get_method(result.key).load().options().asked(), **asked}


@dataclass
class Lane:
    """A course, and the runs that it waits for."""

    course: Course
    wanted: list[Wanted] = field(default_factory=list)
    begun: bool = False
    over: bool = False

    def advance(self, records: Records) -> None:
        """Go on as far as known results lead."""
        while not self.over:
            found = [records.find(wanted) for wanted in self.wanted]
            known = [result for result in found if result is not None]
            if len(known) < len(found):
                return
            try:
                self.wanted = (
                    self.course.send(known) if self.begun else next(self.course)
                )
            except StopIteration:
                self.over, self.wanted = True, []
            self.begun = True
            if not self.wanted:
                return


@dataclass
class Workers:
    """Where runs are made.

    Parameters
    ----------
    device : str
        "cpu" or "cuda".
    jobs : int
        Runs made side by side, each in a process of its own; a GPU serves many.
    gpus : int
        GPUs that the processes are dealt to.
    seconds : float
        After which no run is begun that may take longer than is left, and those that
        do are given up.
    timed : bool
        Whether look-ups are timed too, which wants a machine that does nothing else.
    """

    device: str = "cpu"
    jobs: int = 1
    gpus: int = 1
    seconds: float = float("inf")
    timed: bool = True

    def open(self) -> Executor | None:
        """Processes; None where runs are made one after another, in this one."""
        if self.jobs == 1:
            return None
        # Forked from a process that has read the modules but not touched the GPU.
        # They serve many runs: loading a GPU's libraries takes as long as a short one.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        given = (loaded_plugins(), context.Value("i"), self.gpus)
        return ProcessPoolExecutor(self.jobs, context, start_worker, given)


class Recorder:
    """Follows courses: makes the runs that records lack, several at once.

    Parameters
    ----------
    records : Records
    workers : Workers
    command : str
        What to note as the command.
    """

    def __init__(self, records: Records, workers: Workers, command: str = "") -> None:
        self.records, self.workers, self.command = records, workers, command
        self.began = time.monotonic()
        self.pool: Executor | None = None
        self.flying: dict[Future[Made], list[Wanted]] = {}
        self.interrupted: set[tuple[str, bool]] = set()
        self.given_up: set[tuple[str, bool]] = set()
        self.failed: list[str] = []
        self.times: dict[str, list[tuple[float, float]]] = {}
        for result in records.by_key.values():
            self.note_time(result)

    def note_time(self, result: Result) -> None:
        """How long a method's runs take, of which the longest are begun first."""
        whole, own = sum(result.seconds.values()), result.seconds.get("compress", 0.0)
        self.times.setdefault(result.key, []).append((whole, own))

    def expect(self, group: Sequence[Wanted]) -> float:
        """Seconds that runs may take of which all but the first share its training."""
        each = []
        for wanted in group:
            known = self.times.get(wanted.experiment.method, [(0.0, 0.0)])
            each.append([sum(part) / len(known) for part in zip(*known)])
        return each[0][0] + sum(own for _, own in each[1:])

    def left(self) -> float:
        """Seconds until the end."""
        return self.workers.seconds - (time.monotonic() - self.began)

    def follow(self, courses: Iterable[Course]) -> Iterator[Result]:
        """The results of all runs that are lacking, each written when it is there.

        Where a process dies, killed for its memory perhaps, the runs that it and the
        others of its pool were at are begun once more.

        Raises
        ------
        RuntimeError
            At the end, if runs failed otherwise than by diverging: which, and why.
        """
        lanes = [Lane(course) for course in courses]
        self.pool = self.workers.open()
        try:
            while True:
                for lane in lanes:
                    lane.advance(self.records)
                self.begin(lanes)
                if not self.flying or self.left() <= 0:
                    break
                limit = self.left() if self.left() < 1e9 else None
                ready, _ = wait(self.flying, limit, FIRST_COMPLETED)
                for future in ready:
                    yield from self.land(future)
            for future in [one for one in self.flying if one.done()]:
                yield from self.land(future)
        finally:
            self.close()
        if self.failed:
            raise RuntimeError(f"{len(self.failed)} runs failed: {self.failed}")

    def close(self) -> None:
        """Stop the processes, whatever they are at."""
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()

    def begin(self, lanes: Iterable[Lane]) -> None:
        """Start runs until all processes have one, those that share a table at once."""
        flying = {w.key for group in self.flying.values() for w in group}
        queue: dict[object, list[Wanted]] = {}
        for lane in lanes:
            for wanted in lane.wanted:
                known = self.records.find(wanted) or wanted.key in self.given_up
                if not known and wanted.key not in flying:
                    flying.add(wanted.key)
                    queue.setdefault(wanted.shares, []).append(wanted)
        groups = [
            group[start : start + MOST_SHARED]
            for group in queue.values()
            for start in range(0, len(group), MOST_SHARED)
        ]
        # Longest first; of equal ones seed by seed, as a record that is interrupted
        # should have all methods of the first seed.
        order = sorted(
            groups, key=lambda group: (-self.expect(group), group[0].experiment.seed)
        )
        waiting = deque(order)
        while waiting and len(self.flying) < self.workers.jobs:
            group = waiting.popleft()
            if 1.5 * self.expect(group) > self.left():
                continue
            moved = [
                (move(wanted.experiment, self.workers.device), wanted.tests)
                for wanted in group
            ]
            self.flying[self.start(moved)] = group

    def start(self, group: Sequence[tuple[Experiment, bool]]) -> Future[Made]:
        """Make a group of runs in a process of the pool, or here and now."""
        given = (group, self.command, self.workers.timed)
        if self.pool is None:
            done: Future[Made] = Future()
            done.set_result(make_group(*given))
            return done
        try:
            return self.pool.submit(make_group, *given)
        except BrokenProcessPool:  # one that was killed takes the others along
            self.close()
            self.pool = self.workers.open()
            return self.start(group)

    def land(self, future: Future[Made]) -> Iterator[Result]:
        """Write the results of a group that has ended."""
        group = self.flying.pop(future)
        died = future.exception()
        if isinstance(died, BrokenProcessPool):
            keys = {wanted.key for wanted in group}
            again = keys.isdisjoint(self.interrupted)
            self.interrupted |= keys
            if again:
                return
        made = [died] * len(group) if died else future.result()
        for wanted, result in zip(group, made, strict=True):
            if isinstance(result, Result):
                self.note_time(result)
                self.records.add(result, wanted)
                yield result
                continue
            one = wanted.experiment
            self.failed.append(f"{one.method} {one.ratio:g} {one.seed}: {result!r}")
            self.given_up.add(wanted.key)


def start_worker(plugins: Sequence[str], counter: Synchronized[int], gpus: int) -> None:
    """One thread, a GPU of its own turn, and the methods that the parent knows."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    with counter.get_lock():
        place, counter.value = counter.value % gpus, counter.value + 1
    if gpus > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(place)
    for path in plugins:
        load_plugin(path)


def end_with_parent() -> None:
    """End this process when its parent has ended, though killed: nobody would hear what
    it finds, and it would wait for more to do, and hold a GPU, for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def make_group(
    group: Sequence[tuple[Experiment, bool]], command: str, timed: bool
) -> Made:
    """The results of runs that share a table; layouts stay in the process.

    A run that fails otherwise than a run may is an error in their place, and costs the
    others nothing.
    """
    made: Made = []
    for one, tests in group:
        try:
            # What is asked and run is a copy: an experiment keeps the task it opened.
            result = dataclasses.replace(one).run(
                measure=tests, command=command or None, test=tests, timed=timed
            )
        except (Diverged, OutOfReach) as error:
            result = note_failure(one, str(error), command or None)
        except Exception as error:
            made.append(RuntimeError(f"{type(error).__name__}: {error}"))
            continue
        made.append(dataclasses.replace(result, layout=None))
    return made


def ask_once(experiments: Iterable[Experiment]) -> Course:
    """A course of one step: all experiments that are in reach."""
    reached = [one for one in experiments if dataclasses.replace(one).reaches()]
    yield [Wanted(one) for one in reached]


def record(
    experiments: Iterable[Experiment],
    path: Path,
    device: str = "cpu",
    command: str = "",
    jobs: int = 1,
) -> Iterator[Result]:
    """Make the runs that a file lacks.

    Parameters
    ----------
    experiments : iterable of Experiment
        Those out of reach are left out.
    path : Path
        The file of results; it need not exist.
    device : str
    command : str
        What to note as the command.
    jobs : int, default 1
        Runs made side by side, each in a process of its own; a GPU serves many.

    Yields
    ------
    Result
        Each new run, already written to the file.
    """
    experiments = list(experiments)
    recorder = Recorder(Records(path), Workers(device, jobs), command)
    yield from recorder.follow([ask_once(experiments)])
    # Also where nothing was lacking: what was made last was perhaps killed here.
    arrange_record(path, experiments)


def move(experiment: Experiment, device: str) -> Experiment:
    """The experiment on another device."""
    return dataclasses.replace(experiment, trial=experiment.trial.adjust(device=device))


def arrange_record(path: Path, experiments: Iterable[Experiment]) -> None:
    """Put a file's runs into the order of a list of experiments, unless they are in it.

    The longest are begun first, and made side by side they end in any order.  Runs of
    no experiment come last.
    """
    found = load_results(path) if path.exists() else []
    others = list(found)
    ordered: list[Result] = []
    for one in experiments:
        own = [result for result in others if one.matches(result)]
        ordered += own
        others = [result for result in others if not any(result is o for o in own)]
    places = {id(result): place for place, result in enumerate(found)}
    if ordered != sorted(ordered, key=lambda result: places[id(result)]):
        replace_results(path, ordered + others)
