"""Learning from a stream: train on window t, test on window t + 1."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd

from survey_code import catalog
from survey_code.data.tasks import ClickData, ClickRows, StreamData, join_rows
from survey_code.embedding import FullEmbedding
from survey_code.lab.runs import adapt_trial, search
from survey_code.lab.task import ClickTask, Trial, default_trial
from survey_code.objectives import evaluate_clicks
from survey_code.training import train


def run_stream(
    method: str,
    data: Any,
    ratio: float = 1.0,
    seed: int = 0,
    *,
    start: int = 5,
    update_epochs: int = 6,
    model: str | None = None,
    trial: Trial | None = None,
    device: str | None = None,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Test a method on each window of a stream, before it learns from it.

    The first `start` windows train a table and a network; then every later
    window is first a test and then, warm-started, `update_epochs` epochs of
    training.  With ``update_epochs=0`` the model stays frozen, so that the
    difference shows the drift.

    Parameters
    ----------
    method : str
        A key of `methods()`; methods that compress after training compress
        anew before each test, and those that search do so in the first `start`
        windows, of which they choose by the last.
    data : str or StreamData
    ratio : float, default 1
    seed : int, default 0
    start : int, default 5
    update_epochs : int, default 6
    model, trial, device, settings : optional
        As for `run`.
    **options
        The method's own.

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
    chosen = catalog.get_method(method)
    if isinstance(data, str):
        from survey_code.data import load

        data = load(data)
    if not isinstance(data, StreamData):
        raise ValueError(f"run_stream needs a stream of windows, got {data!r:.80}")
    if not 1 <= start < len(data.windows):
        raise ValueError(
            f"start must be from 1 to {len(data.windows) - 1}, got {start!r}"
        )
    trial = trial or default_trial(data, model)
    trial = adapt_trial(trial, model, None, device, {"patience": 0, **(settings or {})})
    task = ClickTask(gather_windows(data, 0, start), trial, seed)
    planned = chosen.plan(task.spec, ratio, **options)
    if chosen.stage == catalog.SEARCH:
        held_out = ClickTask(hold_out_last(data, start), trial, seed)
        planned, _ = search(chosen, held_out, planned)
    after = chosen.stage == catalog.AFTER
    table = (
        FullEmbedding(task.spec, seed=seed)
        if after
        else chosen.load()(task.spec, seed=seed, **planned)
    )
    network = table.fit(task)
    rows = []
    for window in range(start, len(data.windows)):
        layout = (
            chosen.compress(table.weight.detach().cpu(), planned, task.spec)
            if after
            else table.freeze()
        )
        twin = task.read_through(network, layout)
        metrics = evaluate_clicks(twin, data.windows[window], trial.settings.device)
        stored = layout.nbytes + task.spec.outside_bytes
        rows.append(
            {
                "window": window,
                **metrics,
                "new_ids": new_share(data, window),
                "bytes": stored,
                "ratio": (task.spec.full_bytes + task.spec.outside_bytes) / stored,
            }
        )
        if update_epochs and window + 1 < len(data.windows):
            update = dataclasses.replace(trial.settings, epochs=update_epochs)
            again = ClickTask(gather_windows(data, window, window + 1), trial, seed)
            train(network, again.build_objective(update), update, seed + window)
            network.eval()
    return pd.DataFrame(rows).set_index("window")


def gather_windows(data: StreamData, start: int, stop: int) -> ClickData:
    """Windows start .. stop - 1 as training rows; nothing to select or test on."""
    rows = join_rows(data.windows[start:stop])
    none = ClickRows(rows.ids[:0], rows.labels[:0])
    return ClickData(
        data.name, data.field_names, data.field_starts, rows, none, none, data.source
    )


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
