"""Learning from a stream: train on window t, test on window t + 1."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pandas as pd

from survey_code.catalog import AFTER, SEARCH, get_method
from survey_code.checks import check_range
from survey_code.data.tasks import ClickData, ClickRows, StreamData, join_rows
from survey_code.embedding import Fitted, as_float32
from survey_code.lab.experiment import Data, Experiment, describe_call
from survey_code.lab.results import Result, describe_machine
from survey_code.lab.task import ClickTask, Learnt
from survey_code.lab.trial import Trial
from survey_code.layouts import Layout
from survey_code.metrics import measure_clicks
from survey_code.objectives import predict_clicks
from survey_code.options import Options
from survey_code.order import most_frequent
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
    refresh : int, optional
        Windows from one refresh to the next, counted from the first test; 0: never.
        It settles anew what reads decide, by those of the last `start` windows: who has
        rows of its own, how wide they are, which codes a row has.  What is compressed
        after training is made anew then, and in between keeps its codes (`refit`); a
        table that learns is built anew, and takes over what it can (`inherit`), before
        it learns from the last of these windows.  None: the former is made anew before
        each test, with the counts of the first windows, and the latter never is.
    """

    start: int = 5
    update_epochs: int = 6
    refresh: int | None = None

    @cached_property
    def stream(self) -> StreamData:
        """The windows.

        Raises
        ------
        ValueError
            If the data set is no stream, or `start` leaves no window to test.
        """
        data = self.open()
        check_range("start", self.start, 1, len(data.windows) - 1)
        check_range("update_epochs", self.update_epochs, 0, 10**6)
        if self.refresh is not None:
            check_range("refresh", self.refresh, 0, 10**6)
        if "ctr" not in get_method(self.method).tasks:
            raise ValueError(
                f"{self.method} does not serve ctr tasks, which streams are"
            )
        return data

    def open(self) -> StreamData:
        """The stream, where it is asked for by its name."""
        return open_stream(self.data)

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
        known: dict[str, object] = {
            "start": self.start,
            "update_epochs": self.update_epochs,
        }
        # Passes of before there were refreshes are asked for as they were.
        return known if self.refresh is None else {**known, "refresh": self.refresh}

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
        return Pass(self, chosen).follow()

    def run(
        self,
        measure: bool = False,
        command: str | None = None,
        test: bool = True,
        timed: bool = False,
    ) -> Result:
        """The pass as a result: the test metrics are means over windows, then one AUC
        a window; `Result.windows` has all that `run_stream` returns.
        """
        start, tested, listed = time.perf_counter(), {}, {}
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
                listed = list_windows(windows)
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
            windows=listed,
            **describe_machine(self.trial.settings.device),
            command=command or describe_call(self),
        )


class Pass:
    """The way along a stream: a network that learns, and what is deployed of it.

    Parameters
    ----------
    one : StreamExperiment
    chosen : Start
    """

    def __init__(self, one: StreamExperiment, chosen: Start) -> None:
        self.one, self.stream, self.task = one, one.stream, one.task
        self.method, self.options = get_method(one.method), chosen.options
        self.after = self.method.stage == AFTER
        self.fitted = self.learn_first(chosen)
        self.layout: Layout | None = None  # what was deployed last

    def learn_first(self, chosen: Start) -> Fitted:
        """Learn the windows before the first test."""
        task, seed, method = self.task, self.one.seed, self.method
        if chosen.learnt is not None:
            scripts = [history.script for history in chosen.learnt.histories]
            task = ClickTask(task.data, self.one.trial, seed, scripts)
        kind = method.load()
        own = kind.prepare(task.spec, self.options, seed) if self.after else None
        if own is None:
            built = get_method("full") if self.after else method
            own = built.build(task.spec, {} if self.after else self.options, seed)
        fitted: Fitted = own.fit(task)
        return fitted

    def follow(self) -> pd.DataFrame:
        """Test a window, refresh where that is due, learn from it, and on to the next.

        The last one is not learnt from.
        """
        rows = []
        for window in range(self.one.start, len(self.stream.windows)):
            if window > self.one.start:
                if self.is_due(window) and not self.after:
                    self.build_anew(window)
                if self.one.update_epochs:
                    self.update(window - 1)
            before, self.layout = self.layout, self.deploy(window)
            moved = math.nan if before is None else count_delta(before, self.layout)
            rows.append({**self.judge(self.layout, window), "moved": moved})
        return pd.DataFrame(rows).set_index("window")

    def is_due(self, window: int) -> bool:
        """Whether there is a refresh before the test on a window."""
        every = self.one.refresh or 0
        return every > 0 and (window - self.one.start) % every == 0

    def count_lately(self, window: int) -> TableSpec:
        """The table by the reads of as many windows before one as there were first."""
        lately = self.stream.windows[window - self.one.start : window]
        ids = np.concatenate([rows.ids.ravel() for rows in lately])
        counts = np.bincount(ids, minlength=self.stream.num_embeddings)
        return dataclasses.replace(self.task.spec, train_counts=counts)

    def build_anew(self, window: int) -> None:
        """Put a table by the latest counts in the place of the one that has learnt."""
        spec, network = self.count_lately(window), self.fitted.network
        table = self.method.build(spec, self.options, self.one.seed)
        table.to(self.task.device).inherit(network.table)
        network.table = table.eval()

    def deploy(self, window: int) -> Layout:
        """What is tested on a window."""
        table, spec = self.fitted.network.table, self.task.spec
        if not self.after:
            layout: Layout = table.freeze()
            return layout
        if self.one.refresh is not None:
            spec = self.count_lately(window)
            if self.layout is not None and not self.is_due(window):
                rows, kind = as_float32(table.weight), self.method.load()
                kept: Layout = kind.refit(self.layout, rows, spec, self.options)
                return kept
        return self.method.compress(table.weight.detach().cpu(), self.options, spec)

    def judge(self, layout: Layout, window: int) -> dict[str, Any]:
        """A row of `follow`, but for what moved."""
        task, rows = self.task, self.stream.windows[window]
        twin = task.read_through(self.fitted.network, layout)
        logits = predict_clicks(twin, rows, task.device)
        new = shows_new(self.stream, window)
        apart = {"new": new, "known": ~new}
        return {
            "window": window,
            **measure_clicks(rows.labels, logits),
            **{
                f"{metric}_{name}": value
                for name, mask in apart.items()
                for metric, value in measure_some(rows.labels, logits, mask).items()
            },
            "new_ids": float(new.mean()),
            "churn": hot_churn(self.stream, window),
            **count_bytes(layout, task.spec),
        }

    def update(self, window: int) -> None:
        """Learn from a window that was tested."""
        trial, one = self.task.trial, self.one
        settings = dataclasses.replace(trial.settings, epochs=one.update_epochs)
        if waits(one.trial):  # nothing is held out now
            settings = settings.replace(patience=0, schedule="constant")
        rows = gather_windows(self.stream, window, window + 1)
        network = self.fitted.network
        objective = ClickTask(rows, trial, one.seed).build_objective(settings)
        train(network, objective, settings, one.seed + window)
        network.eval()


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
    refresh: int | None = None,
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
    start, update_epochs, refresh : int
        Of `StreamExperiment`.

    Returns
    -------
    DataFrame
        Indexed by ``window``; columns ``auc``, ``log_loss``, the same of rows with an
        id that no earlier window showed (``auc_new``, ``log_loss_new``; NaN where these
        have one kind of label, or there are none) and of the others (``auc_known``,
        ``log_loss_known``); ``new_ids``, the share of the former; ``churn`` (see
        `hot_churn`); what was stored when it was tested: ``bytes``, weights per id
        included, and ``ratio``; and ``moved``, the bytes that bring the layout of the
        window before up to date (`count_delta`; NaN at the first).

    Raises
    ------
    ValueError
        If the data set is no stream, or `start` leaves no window to test.
    """
    stream = open_stream(data)
    asked = Experiment.of(method, stream, ratio, seed, **arguments)
    experiment = StreamExperiment(
        method, asked.options, stream, asked.trial, ratio, seed, start, update_epochs,
        refresh,
    )  # fmt: skip
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
    return float(shows_new(data, window).mean())


def shows_new(data: StreamData, window: int) -> np.ndarray:
    """Whether each row has an id that no earlier window showed, bool (rows,)."""
    return (find_first(data)[data.windows[window].ids] == window).any(axis=1)


@lru_cache(maxsize=2)
def find_first(data: StreamData) -> np.ndarray:
    """The first window that shows each id, int64 (ids,); none: past the last."""
    first = np.full(data.num_embeddings, len(data.windows))
    for window, rows in reversed([*enumerate(data.windows)]):
        first[rows.ids.ravel()] = window
    return first


# Of the ids that a window reads, those that are read most.
HOT_SHARE = 0.1


def hot_churn(data: StreamData, window: int) -> float:
    """Share of a window's hot ids that were not hot in the one before.

    Hot is the tenth of the ids that a window reads which it reads most, rounded up.

    Raises
    ------
    ValueError
        If there is no window before it.
    """
    check_range("window", window, 1, len(data.windows) - 1)
    before, now = (find_hot(data, place) for place in (window - 1, window))
    return float((~np.isin(now, before)).mean())


def find_hot(data: StreamData, window: int) -> np.ndarray:
    """The hot ids of a window, rising; of equals the lower ids."""
    counts = np.bincount(data.windows[window].ids.ravel())
    return most_frequent(counts, math.ceil(HOT_SHARE * np.count_nonzero(counts)))


def measure_some(
    labels: np.ndarray, logits: np.ndarray, mask: np.ndarray
) -> dict[str, float]:
    """`measure_clicks` of some rows; NaN where these have not both kinds of label."""
    labels = labels[mask]
    if len(np.unique(labels)) < 2:
        return {"auc": math.nan, "log_loss": math.nan}
    return measure_clicks(labels, logits[mask])


# Bytes of the number that says which row of an array is another now.
PLACE_BYTES = 4


def count_delta(before: Layout, after: Layout) -> int:
    """Bytes that make one layout of another: of each stored array the rows that differ,
    with their places, or all of it where that is less, or its shape is another.

    A row is an entry of the first axis; of codes that are packed, a word of 32 bits.

    Examples
    --------
    >>> from survey_code.layouts import DenseLayout
    >>> rows = np.zeros((9, 4), np.float32)
    >>> changed = rows.copy()
    >>> changed[3, 1] = 1
    >>> count_delta(DenseLayout(rows), DenseLayout(changed))
    20
    """
    known, moved = before.to_cpu().arrays(), 0
    for name, array in after.to_cpu().arrays().items():
        old = known.get(name)
        alike = old is not None and (old.shape, old.dtype) == (array.shape, array.dtype)
        if old is None or not alike or not array.ndim:
            moved += array.nbytes
            continue
        differs = (old != array).reshape(len(array), -1).any(axis=1)
        row = array.nbytes // max(len(array), 1) + PLACE_BYTES
        moved += min(int(differs.sum()) * row, array.nbytes)
    return moved


def list_windows(windows: pd.DataFrame) -> dict[str, list[float | None]]:
    """What `run_stream` returns, as JSON holds it: NaN is None."""
    listed = windows.reset_index().to_dict("list")
    return {
        str(name): [None if math.isnan(value) else value for value in column]
        for name, column in listed.items()
    }
