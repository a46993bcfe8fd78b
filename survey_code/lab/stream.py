"""Learning from a stream: train on window t, test on window t + 1."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from survey_code.catalog import AFTER, SEARCH, get_method
from survey_code.checks import check_range
from survey_code.data.tasks import ClickData, ClickRows, StreamData, join_rows
from survey_code.embedding import Fitted
from survey_code.lab.experiment import Data, Experiment, describe_call
from survey_code.lab.results import Result, describe_machine
from survey_code.lab.task import ClickTask, Learnt
from survey_code.lab.trial import Trial
from survey_code.layouts import Layout
from survey_code.objectives import evaluate_clicks
from survey_code.options import Options
from survey_code.spec import TableSpec
from survey_code.training import meter_rows, train


@dataclass(frozen=True)
class Start:
    """What the first windows of a stream decided.

    Parameters
    ----------
    options : Options
        Planned, and searched for.
    learnt : Learnt, optional
        What was trained until a plateau, while the last window was held out.
    validation : dict
        Its metrics there.
    """

    options: Options
    learnt: Learnt | None = None
    validation: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StreamExperiment(Experiment):
    """A method on a stream: each window is a test before it is learnt from.

    The first `start` windows train a table and a network; then every later window is
    first a test and then, warm-started, `update_epochs` epochs of training.  Methods
    that compress after training compress anew before each test, and those that
    search do so in the first `start` windows, of which they choose by the last.

    Where a plateau is to end the training, that window finds it, too: all `start`
    windows are then learnt from anew, for as many steps and at the same rates.

    Parameters
    ----------
    start, update_epochs : int
    """

    start: int = 5
    update_epochs: int = 6

    @cached_property
    def stream(self) -> StreamData:
        """The windows.

        Raises
        ------
        ValueError
            If the data set is no stream, or `start` leaves no window to test.
        """
        data = open_stream(self.data)
        check_range("start", self.start, 1, len(data.windows) - 1)
        check_range("update_epochs", self.update_epochs, 0, 10**6)
        if "ctr" not in get_method(self.method).tasks:
            raise ValueError(
                f"{self.method} does not serve ctr tasks, which streams are"
            )
        return data

    @cached_property
    def task(self) -> ClickTask:
        """The windows before the first test."""
        trial = self.trial.adjust(patience=0)
        return ClickTask(gather_windows(self.stream, 0, self.start), trial, self.seed)

    @property
    def data_name(self) -> str:
        """Streams go by the name that they are asked by."""
        return self.data if isinstance(self.data, str) else self.data.name

    @property
    def asked(self) -> dict[str, object]:
        """The method's options, and how the stream is followed."""
        return {**self.options.asked(), **self.pace}

    @property
    def pace(self) -> dict[str, object]:
        """How the stream is followed."""
        return {"start": self.start, "update_epochs": self.update_epochs}

    @property
    def defaults(self) -> dict[str, object]:
        """What `asked` is where nothing is asked for."""
        pace = {f.name: f.default for f in dataclasses.fields(StreamExperiment)}
        return {
            **super().defaults,
            **{name: pace[name] for name in ("start", "update_epochs")},
        }

    def reaches(self) -> bool:
        """Streams are asked for what they can hold."""
        return True

    def choose(self) -> Start:
        """What the first windows decide, of which the last is held out for it."""
        method, options = get_method(self.method), self.plan()
        if not waits(self.trial) and method.stage != SEARCH:
            return Start(options)
        trial = self.trial if waits(self.trial) else self.task.trial
        task = ClickTask(hold_out_last(self.stream, self.start), trial, self.seed)
        options = task.search(method, options)
        if not waits(self.trial):
            return Start(options)
        learnt = task.learn(method, options)
        validation = task.validate(learnt.fitted.network, learnt.layout)
        return Start(options, learnt, validation)

    def go_on(self, chosen: Start) -> pd.DataFrame:
        """Learn the first windows and test the others one after another; see
        `run_stream`.
        """
        method, task, options = get_method(self.method), self.task, chosen.options
        if chosen.learnt is not None:
            scripts = [history.script for history in chosen.learnt.histories]
            task = ClickTask(task.data, self.trial, self.seed, scripts)
        after = method.stage == AFTER
        own = method.load().prepare(task.spec, options, self.seed) if after else None
        kind = get_method("full") if after else method
        table = own or kind.build(task.spec, {} if after else options, self.seed)
        fitted: Fitted = table.fit(task)
        rows = []
        for window in range(self.start, len(self.stream.windows)):
            layout = (
                method.compress(table.weight.detach().cpu(), options, task.spec)
                if after
                else table.freeze()
            )
            rows.append(self.judge(fitted, layout, window))
            if self.update_epochs and window + 1 < len(self.stream.windows):
                self.update(fitted, window)
        return pd.DataFrame(rows).set_index("window")

    def judge(self, fitted: Fitted, layout: Layout, window: int) -> dict[str, Any]:
        """One row of `go_on`."""
        task, rows = self.task, self.stream.windows[window]
        twin = task.read_through(fitted.network, layout)
        return {
            "window": window,
            **evaluate_clicks(twin, rows, task.device),
            "new_ids": new_share(self.stream, window),
            **count_bytes(layout, task.spec),
        }

    def update(self, fitted: Fitted, window: int) -> None:
        """Learn from a window that was tested."""
        trial = self.task.trial
        settings = dataclasses.replace(trial.settings, epochs=self.update_epochs)
        if waits(self.trial):  # nothing is held out now
            settings = settings.replace(patience=0, schedule="constant")
        rows = gather_windows(self.stream, window, window + 1)
        objective = ClickTask(rows, trial, self.seed).build_objective(settings)
        train(fitted.network, objective, settings, self.seed + window)
        fitted.network.eval()

    def run(
        self,
        measure: bool = False,
        command: str | None = None,
        test: bool = True,
        timed: bool = False,
    ) -> Result:
        """The pass as a result: the test metrics are means over windows, then one AUC
        a window.
        """
        start, tested = time.perf_counter(), {}
        with meter_rows() as meter:
            chosen = self.choose()
            sizes = (
                count_bytes(chosen.learnt.layout, self.task.spec)
                if chosen.learnt
                else {}
            )
            if test:
                windows = self.go_on(chosen)
                sizes = windows.iloc[-1]
                tested = windows[["auc", "log_loss"]].mean().to_dict()
                tested |= {f"auc@{t}": auc for t, auc in windows["auc"].items()}
        return Result(
            key=self.method,
            asked=self.asked,
            options={**chosen.options.described(), **self.pace},
            data=self.data_name,
            model=self.trial.model,
            dim=self.trial.dim,
            seed=self.seed,
            requested_ratio=float(self.ratio),
            reached_ratio=float(sizes.get("ratio", 1.0)),
            bytes={"inference": int(sizes.get("bytes", 0))},
            validation=chosen.validation,
            test=tested,
            seconds={"train": time.perf_counter() - start},
            lookup={},
            settings={
                **self.trial.describe(),
                **(chosen.learnt.told if chosen.learnt else {}),
            },
            rows={"train": meter.rows},
            **describe_machine(self.trial.settings.device),
            command=command or describe_call(self),
        )


def waits(trial: Trial) -> bool:
    """Whether a plateau ends the training."""
    return trial.settings.schedule == "plateau"


def count_bytes(layout: Layout, spec: TableSpec) -> dict[str, float]:
    """What is stored, weights per id included, and the ratio that this is."""
    stored = layout.nbytes + spec.outside_bytes
    return {"bytes": stored, "ratio": (spec.full_bytes + spec.outside_bytes) / stored}


def run_stream(
    method: str,
    data: str | StreamData,
    ratio: float = 1.0,
    seed: int = 0,
    *,
    start: int = 5,
    update_epochs: int = 6,
    **arguments: Any,
) -> pd.DataFrame:
    """Test a method on each window of a stream, before it learns from it.

    With ``update_epochs=0`` the model stays frozen, so that the difference shows the
    drift.

    Parameters
    ----------
    method, ratio, seed, **arguments
        As for `run`.
    data : str or StreamData
    start, update_epochs : int
        Of `StreamExperiment`.

    Returns
    -------
    DataFrame
        Indexed by ``window``; columns ``auc``, ``log_loss``, ``new_ids`` (the
        share of rows with an id that no earlier window showed), and what was
        stored when it was tested: ``bytes``, weights per id included, and
        ``ratio``.

    Raises
    ------
    ValueError
        If the data set is no stream, or `start` leaves no window to test.
    """
    stream = open_stream(data)
    asked = Experiment.of(method, stream, ratio, seed, **arguments)
    experiment = StreamExperiment(
        method, asked.options, stream, asked.trial, ratio, seed, start, update_epochs
    )
    return experiment.go_on(experiment.choose())


def open_stream(data: Data) -> StreamData:
    """A stream by its name, or as given.

    Raises
    ------
    ValueError
        If the data set is no stream.
    """
    found: Data = data
    if isinstance(data, str):
        from survey_code.data import load

        found = load(data)
    if not isinstance(found, StreamData):
        raise ValueError(f"run_stream needs a stream of windows, got {found!r:.80}")
    return found


def gather_windows(data: StreamData, start: int, stop: int) -> ClickData:
    """Windows start .. stop - 1 as training rows; nothing to select or test on."""
    rows = join_rows(data.windows[start:stop])
    none = ClickRows(rows.ids[:0], rows.labels[:0])
    return ClickData(
        data.name, data.field_names, data.field_starts, rows, none, none, data.source,
        content=data.content,
    )  # fmt: skip


def hold_out_last(data: StreamData, stop: int) -> ClickData:
    """Windows 0 .. stop - 1, the last of them to choose by."""
    known = gather_windows(data, 0, max(stop - 1, 1))
    return dataclasses.replace(known, valid=data.windows[stop - 1])


def new_share(data: StreamData, window: int) -> float:
    """Share of a window's rows with an id that no earlier window showed."""
    seen = np.zeros(data.num_embeddings, dtype=bool)
    for earlier in data.windows[:window]:
        seen[earlier.ids.ravel()] = True
    return float((~seen[data.windows[window].ids]).any(axis=1).mean())
