"""Train, freeze and evaluate one method inside a byte budget."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from survey_code import catalog
from survey_code.embedding import CompressedEmbedding, FullEmbedding
from survey_code.lab.latency import measure_lookup
from survey_code.lab.memory import measure_training
from survey_code.lab.results import (
    Result,
    append_result,
    find_versions,
    load_results,
    name_device,
    today,
)
from survey_code.lab.task import Task, Trial, default_trial, make_task, open_data
from survey_code.layouts import Layout
from survey_code.training import TrainingSettings

# Full tables trained lately, shared by the methods that compress after training:
# those of three seeds, each without and with the hold-out of a ranking.
_TRAINED: OrderedDict[Any, tuple[Any, float]] = OrderedDict()
_TRAINED_LIMIT = 6


def run(
    method: str,
    data: Any,
    ratio: float = 1.0,
    seed: int = 0,
    *,
    model: str | None = None,
    dim: int | None = None,
    trial: Trial | None = None,
    device: str | None = None,
    measure: bool = True,
    command: str | None = None,
    settings: dict[str, Any] | None = None,
    **options: Any,
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
    model, dim, device, settings : optional
        Network, dimension of the full table, "cpu" or "cuda", and training
        settings by name, where they differ from the data set's trial.
    trial : Trial, optional
        All of these at once, in place of the data set's own.
    measure : bool, default True
        Also measure training memory and look-up time.
    command : str, optional
        What to note as the command; by default this call.
    **options
        The method's own, e.g. ``bits=8`` or ``combine="sum"``.

    Returns
    -------
    Result

    Raises
    ------
    ValueError
        If the method, the data or an option is unknown, or the method cannot
        reach the ratio (the message names the highest it can reach) or does not
        serve the task.
    """
    chosen = catalog.get_method(method)
    data = open_data(data)
    if data.task not in chosen.tasks:
        raise ValueError(
            f"{method} serves {' and '.join(chosen.tasks)} tasks, but {data.name} "
            f"is a {data.task} task"
        )
    trial = adapt_trial(
        trial or default_trial(data, model), model, dim, device, settings
    )
    task = make_task(data, trial, seed)
    asked = chosen.plan(task.spec, ratio, **options)
    planned, search_seconds = search(chosen, task, asked)
    network, layout, trained, seconds = learn(chosen, task, planned)
    validation = task.validate(network, layout)
    final = task.for_testing(network)
    if final is not task:
        network, layout, trained, again = learn(chosen, final, planned)
        seconds = {name: seconds[name] + again[name] for name in seconds}
    test = final.test(network, layout)
    stored = layout.nbytes + task.spec.outside_bytes
    full = task.spec.full_bytes + task.spec.outside_bytes
    memory = (
        measure_training(trained, task.sample_ids(), trial.settings) if measure else {}
    )
    if measure and chosen.stage == catalog.SEARCH:
        memory |= measure_search(chosen, task, asked)
    speed = measure_lookup(layout, [256]).iloc[0] if measure else {}
    return Result(
        key=method,
        # A plan may keep less than it was asked: widths, but not the law they follow.
        options=describe_options({**options, **planned}),
        data=data.name,
        model=trial.model,
        dim=trial.dim,
        seed=int(seed),
        requested_ratio=float(ratio),
        reached_ratio=full / stored,
        bytes={
            "inference": stored,
            **{f"training_{name}": size for name, size in memory.items()},
        },
        validation=validation,
        test=test,
        seconds={"search": search_seconds, **seconds},
        lookup={name: float(speed[name]) for name in speed_columns(speed)},
        settings={
            **trial.describe(),
            "epochs_trained": len(network.history.epochs),
            "best_epoch": network.history.best + 1,
        },
        device=name_device(trial.settings.device),
        date=today(),
        versions=find_versions(),
        command=command or describe_call(method, data.name, ratio, seed, options),
        layout=layout,
    )


def adapt_trial(
    trial: Trial,
    model: str | None,
    dim: int | None,
    device: str | None,
    settings: dict[str, Any] | None,
) -> Trial:
    """A trial with some of its parts replaced."""
    changes = dict(settings or {})
    if device:
        changes["device"] = device
    try:
        adapted = dataclasses.replace(trial.settings, **changes)
    except TypeError as error:
        known = [f.name for f in dataclasses.fields(trial.settings)]
        raise ValueError(
            f"unknown training setting in {sorted(changes)}; settings: {known}"
        ) from error
    return dataclasses.replace(
        trial,
        model=trial.model if model is None else model,
        dim=trial.dim if dim is None else dim,
        settings=adapted,
    )


def search(
    method: catalog.Method, task: Task, planned: dict[str, Any]
) -> tuple[dict[str, Any], float]:
    """The options to train with, and the seconds that it took to find them."""
    if method.stage != catalog.SEARCH:
        return planned, 0.0
    start = time.perf_counter()
    found = method.search(task, task.spec, planned, task.seed)
    return found, time.perf_counter() - start


def measure_search(
    method: catalog.Method, task: Task, asked: dict[str, Any]
) -> dict[str, int]:
    """Bytes that training takes while the method searches, if it trains then."""
    make = getattr(method.load(), "searching", None)
    if make is None:
        return {}
    table = make(task.spec, asked, task.seed)
    sizes = measure_training(table, task.sample_ids(), task.trial.settings)
    return {f"{name}_in_search": size for name, size in sizes.items()}


def learn(
    method: catalog.Method, task: Task, planned: dict[str, Any]
) -> tuple[Any, Layout, CompressedEmbedding, dict[str, float]]:
    """Network, layout, the table that was trained, seconds."""
    if method.stage == catalog.AFTER or method.key == "full":
        network, train_seconds = train_full(task)
        table = network.table
        start = time.perf_counter()
        layout = method.compress(table.weight.detach().cpu(), planned, task.spec)
    else:
        table = method.load()(task.spec, seed=task.seed, **planned)
        start = time.perf_counter()
        network = table.fit(task)
        train_seconds = time.perf_counter() - start
        start = time.perf_counter()
        layout = table.eval().freeze()
    seconds = {"train": train_seconds, "compress": time.perf_counter() - start}
    return network, layout, table, seconds


def train_full(task: Task) -> tuple[Any, float]:
    """The full table's network for (data, model, seed), trained once and shared."""
    key = (id(task.data), task.data.name, repr(task.trial), task.seed)
    if key not in _TRAINED:
        start = time.perf_counter()
        network = task.train(FullEmbedding(task.spec, seed=task.seed))
        # Keeping the data set keeps its id from being given to another.
        network.trained_on = task.data
        _TRAINED[key] = (network, time.perf_counter() - start)
        while len(_TRAINED) > _TRAINED_LIMIT:
            _TRAINED.popitem(last=False)
    _TRAINED.move_to_end(key)
    return _TRAINED[key]


def run_once(
    out: str | os.PathLike[str],
    method: str,
    data: Any,
    ratio: float = 1.0,
    seed: int = 0,
    **arguments: Any,
) -> Result:
    """`run`, unless a file of results holds this run already; it is added there.

    Parameters
    ----------
    out : path
        A file of results, which need not exist.
    method, data, ratio, seed, **arguments
        Of `run`.

    Returns
    -------
    Result
    """
    data = open_data(data)
    chosen, task, options = prepare(method, data, seed, arguments)
    planned = chosen.plan(task.spec, ratio, **options)
    # What a search will find is not known before it ran; and a plan may keep less
    # than it was asked.
    searches = chosen.stage == catalog.SEARCH
    known = options if searches else describe_options({**options, **planned})
    for result in load_results(out) if Path(out).exists() else []:
        if is_run(result, method, data.name, ratio, seed, task.trial, known):
            return result
    result = run(method, data, ratio, seed, **arguments)
    append_result(out, result)
    return result


def repeat(result: Result, data: Any, **arguments: Any) -> Result:
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
    data = open_data(data)
    if data.name != result.data:
        raise ValueError(f"the result was made on {result.data}, got {data.name}")
    known = [f.name for f in dataclasses.fields(TrainingSettings)]
    settings = {name: result.settings[name] for name in known}
    parts = {
        name: result.settings[name] for name in ("layers", "objective", "init_std")
    }
    settings |= {"device": "cpu", "progress": False}
    trial = Trial(result.model, result.dim, TrainingSettings(**settings), **parts)
    # A plan's width of rows is no option of `run`, whose `dim` is the full table's; the
    # budget leads to the same width again.
    own = [n for n in plan_defaults(result.key) if n in result.options and n != "dim"]
    given: dict[str, Any] = {"seed": result.seed, "trial": trial, **arguments}
    given |= {name: result.options[name] for name in own}
    return run(result.key, data, result.requested_ratio, **given)


def is_run(
    result: Result,
    method: str,
    data: str,
    ratio: float,
    seed: int,
    trial: Trial,
    options: dict[str, Any],
) -> bool:
    """Whether a result is this run, on the data set of this name.

    An option that was not asked for has its default; what a plan or a search chose
    is not compared.
    """
    if (result.key, result.data, result.requested_ratio, result.seed) != (
        method, data, float(ratio), seed
    ):  # fmt: skip
        return False
    result = Result.from_json(result.to_json())  # as a file holds it
    # A result made before a setting existed had its default.
    before = {f.name: f.default for f in dataclasses.fields(trial.settings)}
    found = {**before, **result.settings}
    wanted = json.loads(json.dumps(trial.describe()))
    same_settings = all(
        found.get(name) == value
        for name, value in wanted.items()
        if name not in ("device", "progress")
    )
    asked = {**plan_defaults(method), **json.loads(json.dumps(options))}
    return (
        same_settings
        and all(
            result.options.get(name, plan_defaults(method).get(name)) == value
            for name, value in asked.items()
            if value is not None
        )
        and (result.model, result.dim) == (trial.model, trial.dim)
    )


def plan_defaults(method: str) -> dict[str, Any]:
    """What a method's `plan` takes for options that nobody names; None: it chooses."""
    parameters = inspect.signature(catalog.get_method(method).load().plan).parameters
    return {p.name: p.default for p in parameters.values() if p.kind is p.KEYWORD_ONLY}


def sweep(
    methods: Iterable[str],
    data: Any,
    ratios: Sequence[float],
    seeds: Sequence[int] = (1, 2, 3),
    *,
    out: str | os.PathLike[str] | None = None,
    **arguments: Any,
) -> list[Result]:
    """`run` every method at every ratio it can reach, for every seed.

    Ratios out of a method's reach are left out, never replaced.  With `out`, each
    result is added to that file, and runs that it holds are not made again.
    """
    results = []
    for method in methods:
        asked = [1.0] if method == "full" else list(ratios)
        for ratio in asked:
            if method == "full" or reaches(method, data, ratio, **arguments):
                for seed in seeds:
                    given = (method, data, ratio, seed)
                    results.append(
                        run(*given, **arguments)
                        if out is None
                        else run_once(out, *given, **arguments)
                    )
    return results


def reaches(method: str, data: Any, ratio: float, **arguments: Any) -> bool:
    """Whether a method has a configuration inside the budget."""
    chosen, task, options = prepare(method, open_data(data), 0, arguments)
    try:
        chosen.plan(task.spec, ratio, **options)
    except ValueError as error:
        if "highest ratio it can reach" in str(error):
            return False
        raise
    return True


def prepare(
    method: str, data: Any, seed: int, arguments: dict[str, Any]
) -> tuple[catalog.Method, Task, dict[str, Any]]:
    """Method, task and the method's own options, from the arguments of `run`."""
    options = dict(arguments)
    names = ("trial", "model", "dim", "device", "settings", "measure", "command")
    trial, model, dim, device, settings, *_ = (options.pop(n, None) for n in names)
    trial = adapt_trial(
        trial or default_trial(data, model), model, dim, device, settings
    )
    return catalog.get_method(method), make_task(data, trial, seed), options


def describe_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options as JSON can hold them: arrays by their shape."""
    return {name: as_plain(value) for name, value in options.items()}


def as_plain(value: Any) -> Any:
    """As JSON can hold it: NumPy's numbers as Python's own, short arrays as lists,
    long ones as their shape and the beginning of their SHA-256.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {name: as_plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(part) for part in value]
    if not isinstance(value, np.ndarray):
        return value
    if value.size <= 64:
        return value.tolist()
    digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    return f"array{value.shape} {digest[:16]}"


def describe_call(
    method: str, data: str, ratio: float, seed: int, options: dict[str, Any]
) -> str:
    """The call as Python text."""
    shown = "".join(f", {name}={value!r}" for name, value in options.items())
    return f"survey_code.run({method!r}, {data!r}, ratio={ratio:g}, seed={seed}{shown})"


def speed_columns(speed: Any) -> list[str]:
    """The columns of `measure_lookup` that a result keeps."""
    return [name for name in ("p50_us", "p99_us") if name in speed]
