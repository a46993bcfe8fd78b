"""What a method costs beside its accuracy, measured alone on a machine.

The contests' runs stand side by side on a GPU, so that their seconds say little.  Here
each entrant trains alone for a few epochs, twice: what the longer training takes more,
over the rows that it sees more, is what a row costs, and a contest's rows seen are what
a whole run does.  What comes out is served through `FrozenEmbedding` and
`FrozenEmbeddingBag`.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from survey_code.catalog import get_method
from survey_code.data.tasks import ClickData, ClickRows, InteractionData
from survey_code.lab.experiment import Experiment
from survey_code.lab.latency import time_calls
from survey_code.lab.results import append_line, describe_machine, is_cut
from survey_code.lab.task import Learnt, open_data
from survey_code.layouts import Layout
from survey_code.options import SearchOptions
from survey_code.serving.modules import FrozenEmbedding, FrozenEmbeddingBag
from survey_code.serving.updates import list_changes

# Epochs of the two trainings that are compared, and of one before them, in which what
# is loaded and compiled once counts for nobody; and steps of an epoch at most.
EPOCHS, FIRST, STEPS = (1, 3), 2, 50
# Ids of a call, and how many of them a bag holds.
SIZES, BAG = (1, 256, 8192), 16
CALLS, WARM_UP = 200, 30


@dataclasses.dataclass(frozen=True)
class ShortTraining:
    """One short training.

    Parameters
    ----------
    seconds, rows : dict
        Of ``"search"`` and ``"train"``.
    """

    learnt: Learnt
    seconds: dict[str, float]
    rows: dict[str, int]


def measure_costs(experiment: Experiment, command: str = "") -> dict[str, Any]:
    """Seconds, bytes and times of calls of one method, on the trial's device.

    Parameters
    ----------
    experiment : Experiment
        A run of a contest; its first rows are learnt from.
    command : str
        What the line of evidence says it comes from.

    Returns
    -------
    dict
        ``train`` and ``search``: ``start_s`` and ``us_per_row``; ``compress_s``;
        ``training_bytes``: ``persistent``, ``peak``, and those ``_in_search``;
        ``stored_bytes``, and ``held_bytes`` while it is served; ``moved_per_row``, the
        bytes that replacing one row moves, None where all must be sent again;
        ``lookup`` and ``bag``: ``[p50, p99]`` in microseconds by the number of ids;
        and where it comes from.
    """
    short = [shorten(experiment, epochs) for epochs in EPOCHS]
    train_short(shorten(experiment, FIRST))
    first, last = (train_short(one) for one in short)
    memory, _ = short[-1].measure(last.learnt, short[-1].plan(), timed=False)
    device = experiment.trial.settings.device
    spec, layout = experiment.task.spec, last.learnt.layout
    outside = spec.outside_bytes
    return {
        "method": experiment.method,
        "options": experiment.options.given(),
        "data": experiment.data_name,
        "requested_ratio": float(experiment.ratio),
        "reached_ratio": (spec.full_bytes + outside) / (layout.nbytes + outside),
        "search": split_seconds("search", first, last),
        "train": split_seconds("train", first, last),
        "compress_s": last.learnt.seconds["compress"],
        **measure_serving(layout, device),
        "training_bytes": memory,
        **describe_machine(device),
        "command": command,
    }


def note_costs(
    path: Path, entrant: str, experiment: Experiment, asked: float, command: str
) -> dict[str, Any]:
    """`measure_costs` of an entrant of a contest, and add the line to a file.

    Parameters
    ----------
    path : Path
    entrant : str
    experiment : Experiment
        Its run, at the ratio nearest in its reach to the one asked for.
    asked : float
    command : str

    Returns
    -------
    dict
        The line: with ``entrant``, ``where`` (the device), ``asked_ratio``, ``seed``.
    """
    told = {
        "entrant": entrant,
        "where": experiment.trial.settings.device,
        "asked_ratio": asked,
        "seed": experiment.seed,
    }
    line = told | measure_costs(experiment, command)
    append_line(path, json.dumps(line, sort_keys=True))
    return line


def read_costs(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of costs, half a line left out; none of a file that is not
    there.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines() if not is_cut(line)]


def shorten(experiment: Experiment, epochs: int) -> Experiment:
    """The same on its first rows, for so many epochs, however good it gets."""
    trial = experiment.trial.adjust(epochs=epochs, patience=0, schedule="constant")
    most = STEPS * trial.settings.batch_size
    data = open_data(experiment.data)
    if isinstance(data, ClickData):
        few = ClickRows(data.train.ids[:most], data.train.labels[:most])
        data = dataclasses.replace(data, train=few)
    elif isinstance(data, InteractionData):
        data = dataclasses.replace(data, train=data.train[:most])
    options = experiment.options
    if isinstance(options, SearchOptions):
        options = options.replace(search_epochs=epochs)
    return dataclasses.replace(experiment, options=options, data=data, trial=trial)


def train_short(experiment: Experiment) -> ShortTraining:
    """Search and learn, as a run does, but without a look at anything."""
    task, method = experiment.task, get_method(experiment.method)
    start = time.perf_counter()
    options = task.search(method, experiment.plan())
    searched = time.perf_counter() - start
    learnt = task.learn(method, options)
    seconds = {"search": searched, "train": learnt.seconds["train"]}
    rows = {
        "search": task.rows_searched,
        "train": sum(history.rows for history in learnt.histories),
    }
    return ShortTraining(learnt, seconds, rows)


def split_seconds(
    name: str, first: ShortTraining, last: ShortTraining
) -> dict[str, float]:
    """What a training takes to start, and what each row takes."""
    rows = last.rows[name] - first.rows[name]
    seconds = last.seconds[name] - first.seconds[name]
    each = max(seconds, 0.0) / rows if rows else 0.0
    start = first.seconds[name] - each * first.rows[name]
    return {"start_s": max(start, 0.0), "us_per_row": 1e6 * each}


def measure_serving(layout: Layout, device: str) -> dict[str, Any]:
    """What a layout takes where it is served: bytes, times of calls, and what a
    refresh moves.

    Returns
    -------
    dict
        ``stored_bytes``, ``held_bytes``, ``moved_per_row``, ``lookup`` and ``bag``, as
        of `measure_costs`.
    """
    lookup = FrozenEmbedding(layout).to(device)
    bag = FrozenEmbeddingBag(layout, mode="sum").to(device)
    return {
        "stored_bytes": layout.nbytes,
        "held_bytes": lookup.layout.held_bytes,
        "moved_per_row": count_moved(layout),
        "lookup": time_module(lookup, layout.num_embeddings, device),
        "bag": time_module(bag, layout.num_embeddings, device),
    }


def count_moved(layout: Layout) -> float | None:
    """Bytes that replacing one row moves, a mean over 100 of them; None where rows do
    not stand alone, so that all must be sent again.
    """
    ids = np.linspace(0, layout.num_embeddings - 1, 100).astype(np.int64)
    ids = np.unique(ids)
    rows = np.ones((len(ids), layout.embedding_dim), np.float32)
    try:
        changes = [*list_changes(layout, ids, rows)]
    except ValueError:
        return None
    return sum(change.values.nbytes for change in changes) / len(ids)


def time_module(
    module: nn.Module, num_ids: int, device: str
) -> dict[str, tuple[float, float]]:
    """Median and 99th percentile of calls, in microseconds, by the number of ids.

    Each call has ids of its own and is waited for; bags hold `BAG` ids at most.
    """
    rng = np.random.default_rng(0)
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    times = {}
    for size in SIZES:
        drawn = rng.integers(0, num_ids, (CALLS + WARM_UP, size))
        more: list[torch.Tensor] = []
        if isinstance(module, FrozenEmbeddingBag):
            more.append(torch.arange(0, size, BAG, device=device))
        given = [(ids, *more) for ids in torch.from_numpy(drawn).to(device)]
        with torch.no_grad():
            times[str(size)] = time_calls(
                lambda one: module(*one), given, wait, WARM_UP
            )
    return times
