"""Lists of experiments and the files of their results: what is missing is made.

A list that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from survey_code.catalog import AFTER, get_method, load_plugin, loaded_plugins
from survey_code.lab.experiment import Experiment
from survey_code.lab.results import Result, append_result, load_results, replace_results


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
    known = load_results(path) if path.exists() else []
    lacking = [
        move(one, device)
        for one in experiments
        if not any(one.matches(result) for result in known)
    ]
    # Copies are asked and run: an experiment keeps the task that it opened.
    wanted = [one for one in lacking if dataclasses.replace(one).reaches()]
    # Seed by seed: a record that was interrupted has all methods of the first ones.
    wanted.sort(key=lambda one: one.seed)
    for result in make_groups(group_experiments(wanted), command, jobs):
        append_result(path, result)
        yield result
    if wanted and jobs > 1:
        arrange_record(path, experiments)


def move(experiment: Experiment, device: str) -> Experiment:
    """The experiment on another device."""
    settings = dataclasses.replace(experiment.trial.settings, device=device)
    trial = dataclasses.replace(experiment.trial, settings=settings)
    return dataclasses.replace(experiment, trial=trial)


def arrange_record(path: Path, experiments: Iterable[Experiment]) -> None:
    """Put a file's runs into the order of a list of experiments.

    Runs made side by side end in any order; of a method's trials, readers take the
    first for its defaults.  Runs of no experiment come last.
    """
    results = load_results(path)
    ordered = []
    for one in experiments:
        own = [result for result in results if one.matches(result)]
        ordered += own
        results = [result for result in results if not any(result is o for o in own)]
    replace_results(path, ordered + results)


def group_experiments(experiments: Iterable[Experiment]) -> list[list[Experiment]]:
    """Experiments that share a full table together, each other one alone."""
    groups: dict[object, list[Experiment]] = {}
    for place, one in enumerate(experiments):
        shares = get_method(one.method).stage == AFTER or one.method == "full"
        # Trials hold dictionaries, which cannot be keys.
        key = (one.seed, repr(one.trial)) if shares else place
        groups.setdefault(key, []).append(one)
    return list(groups.values())


def make_groups(
    groups: Sequence[Sequence[Experiment]], command: str, jobs: int
) -> Iterator[Result]:
    """Make groups one after another, or several at once.

    Raises
    ------
    RuntimeError
        At the end, if groups made side by side failed: which, and why.
    """
    if jobs == 1:
        for group in groups:
            for one in group:
                yield dataclasses.replace(one).run(command=command)
        return
    # Forked from a process that has read the modules but not touched the GPU.  They
    # serve many groups: loading a GPU's libraries takes as long as a short run.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    failed = []
    with ProcessPoolExecutor(jobs, context, start_worker, (loaded_plugins(),)) as pool:
        made = {pool.submit(make_group, group, command): group for group in groups}
        for future in as_completed(made):
            if error := future.exception():
                one = made[future][0]
                failed.append(f"{one.method} {one.ratio:g} {one.seed}: {error}")
            else:
                yield from future.result()
    if failed:
        raise RuntimeError(f"{len(failed)} groups of runs failed: {failed}")


def start_worker(plugins: Sequence[str]) -> None:
    """One thread, and the methods that the parent knows."""
    torch.set_num_threads(1)
    for path in plugins:
        load_plugin(path)


def make_group(group: Sequence[Experiment], command: str) -> list[Result]:
    """The results of a group's experiments; layouts stay in the process."""
    results = [one.run(command=command) for one in group]
    return [dataclasses.replace(result, layout=None) for result in results]
