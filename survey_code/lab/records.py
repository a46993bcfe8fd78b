"""The book's recorded results: what a notebook cannot remeasure in a minute.

Each record is a list of runs; `record` makes those that its file lacks, so a
record that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from survey_code.lab.results import (
    Result,
    append_result,
    find_versions,
    load_results,
    name_device,
    today,
)
from survey_code.lab.runs import is_run, run
from survey_code.lab.stream import run_stream
from survey_code.lab.task import TRIALS, Trial
from survey_code.training import TrainingSettings

SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Cell:
    """One run of a record: the arguments of `run`."""

    method: str
    data: str
    ratio: float
    seed: int
    trial: Trial
    options: dict[str, Any] = field(default_factory=dict)

    def matches(self, result: Result) -> bool:
        """Whether a result is this run."""
        return is_run(
            result, self.method, self.data, self.ratio, self.seed, self.trial,
            self.options,
        )  # fmt: skip

    def make(self, device: str, command: str) -> Result:
        """Run it."""
        return run(
            self.method,
            self.data,
            self.ratio,
            self.seed,
            trial=self.trial,
            device=device,
            command=command,
            **self.options,
        )


class StreamCell(Cell):
    """One pass over a stream: the arguments of `run_stream`."""

    def make(self, device: str, command: str) -> Result:
        """Run it; the test metrics are means over windows, then one AUC a window."""
        start = time.perf_counter()
        windows = run_stream(
            self.method,
            self.data,
            self.ratio,
            self.seed,
            trial=self.trial,
            device=device,
            **self.options,
        )
        by_window = {f"auc@{window}": auc for window, auc in windows["auc"].items()}
        means = windows[["auc", "log_loss"]].mean()
        return Result(
            key=self.method,
            options=dict(self.options),
            data=self.data,
            model=self.trial.model,
            dim=self.trial.dim,
            seed=self.seed,
            requested_ratio=float(self.ratio),
            reached_ratio=float(windows["ratio"].iloc[-1]),
            bytes={"inference": int(windows["bytes"].iloc[-1])},
            validation={},
            test={**means.to_dict(), **by_window},
            seconds={"train": time.perf_counter() - start},
            lookup={},
            settings=self.trial.describe(),
            device=name_device(device),
            date=today(),
            versions=find_versions(),
            command=command,
        )


# The settings of the BARS benchmark for Frappe_x1, as its logs give them.
BARS_SETTINGS = TrainingSettings(
    epochs=100, batch_size=4096, learning_rate=1e-3, clip_norm=10.0
)
BARS_TRIALS = {
    "fm": Trial(
        "fm", 10, dataclasses.replace(BARS_SETTINGS, table_l2=5e-6), {}, init_std=1e-4
    ),
    "deepfm": Trial(
        "deepfm",
        10,
        dataclasses.replace(BARS_SETTINGS, table_l2=0.05),
        {"hidden": (400, 400, 400), "batch_norm": True, "dropout": 0.2},
        init_std=1e-4,
    ),
}


def frappe_bars() -> list[Cell]:
    """FM and DeepFM on Frappe_x1 as BARS trains them."""
    return [
        Cell("full", "frappe", 1, seed, trial)
        for trial in BARS_TRIALS.values()
        for seed in SEEDS
    ]


def frappe_first() -> list[Cell]:
    """DCN-V2, d = 16: the full table against the first four compressed ones."""
    trial = TRIALS["frappe", "dcnv2"]
    cells = [Cell("full", "frappe", 1, seed, trial) for seed in SEEDS]
    asked = [
        ("rowwise", 2.6, {"bits": 8}),
        ("rowwise", 4, {}),
        ("rowwise", 8, {"bits": 2}),
        *(
            (key, ratio, {})
            for key in ("uniform", "hashing", "quotient_remainder")
            for ratio in (2.6, 4, 10, 30)
            if (key, ratio) != ("uniform", 30)
        ),
    ]
    return cells + [
        Cell(key, "frappe", ratio, seed, trial, options)
        for key, ratio, options in asked
        for seed in SEEDS
    ]


def frappe_low_precision() -> list[Cell]:
    """DCN-V2, d = 16: one bit to sixteen, rounded after or during training.

    All methods train with the settings that were found for the full table.
    """
    trial = TRIALS["frappe", "dcnv2"]
    # Ratios just below what a bit width reaches: rows with a scale and a bias of
    # their own, and codes alone.
    by_row, by_code = {8: 2.6, 4: 5.3, 2: 8}, {8: 3.9, 4: 7.9, 2: 15.9}
    asked: list[tuple[str, float, dict[str, Any]]] = [("full", 1, {}), ("half", 2, {})]
    for bits in (8, 4, 2):
        asked += [
            ("rowwise", by_row[bits], {"bits": bits}),
            ("greedy", by_row[bits], {"bits": bits}),
            ("alpt", by_row[bits], {"bits": bits}),
            ("lpt", by_row[bits], {"bits": bits, "rounding": "stochastic"}),
            ("lpt", by_row[bits], {"bits": bits, "rounding": "nearest"}),
            ("lsq", by_code[bits], {"bits": bits}),
        ]
    asked += [("mixed_precision_cache", ratio, {}) for ratio in (2.6, 5)]
    asked += [("bccf", 30, {}), ("hashgnn", 30, {}), ("bigear", 10, {})]
    return [
        Cell(key, "frappe", ratio, seed, trial, options)
        for key, ratio, options in asked
        for seed in SEEDS
    ]


def shorten(trial: Trial, epochs: int) -> Trial:
    """A trial with fewer epochs."""
    settings = dataclasses.replace(trial.settings, epochs=epochs)
    return dataclasses.replace(trial, settings=settings)


def gowalla_full(model: str) -> list[Cell]:
    """A network on Gowalla, d = 64, uncompressed."""
    trial = TRIALS["gowalla", model]
    return [Cell("full", "gowalla", 1, seed, trial) for seed in SEEDS]


def gowalla_binarisation() -> list[Cell]:
    """Matrix factorisation, d = 64: one bit per entry, five methods.

    All train with the settings that were found for the full table, for 100 epochs
    at most: methods with a schedule go through all of them, twice.
    """
    trial = shorten(TRIALS["gowalla", "mf"], 100)
    asked: list[tuple[str, float, dict[str, Any]]] = [("full", 1, {})]
    asked += [("bccf", 28, {"rule": rule}) for rule in ("median", "sign", "pph", "itq")]
    asked += [(key, 28, {}) for key in ("dcf", "cigar", "hashgnn")]
    asked += [("hashgnn", 28, {"layers": 0}), ("bigear", 8, {}), ("rowwise", 3.6, {})]
    asked += [("rowwise", ratio, {"bits": bits}) for ratio, bits in ((7, 4), (12, 2))]
    return [
        Cell(key, "gowalla", ratio, seed, trial, options)
        for key, ratio, options in asked
        for seed in SEEDS
    ]


def movietweetings_drift() -> list[Cell]:
    """FM on MovieTweetings: frozen after five windows, or updated after each."""
    trial = TRIALS["movietweetings", "fm"]
    return [
        StreamCell("full", "movietweetings", 1, seed, trial, {"update_epochs": epochs})
        for epochs in (0, 6)
        for seed in SEEDS
    ]


RECORDS: dict[str, Callable[[], list[Cell]]] = {
    "frappe_bars": frappe_bars,
    "frappe_first": frappe_first,
    "frappe_low_precision": frappe_low_precision,
    "gowalla_binarisation": gowalla_binarisation,
    "gowalla_mf": lambda: gowalla_full("mf"),
    "gowalla_lightgcn": lambda: gowalla_full("lightgcn"),
    "movietweetings_drift": movietweetings_drift,
}


def record(
    name: str,
    folder: str | os.PathLike[str] = "book/results",
    device: str = "cpu",
    seed: int | None = None,
    methods: Sequence[str] | None = None,
) -> Iterator[Result]:
    """Make the runs of a record that its file lacks, one after another.

    Parameters
    ----------
    name : str
        A key of `RECORDS`.
    folder : path
        Where the file ``NAME.jsonl`` lies.
    device : str
    seed : int, optional
    methods : sequence of str, optional
        Make the runs of this seed or these methods only, so that several
        processes can share a record.

    Yields
    ------
    Result
        Each new run, already written to the file.

    Raises
    ------
    ValueError
        If there is no such record.
    """
    if name not in RECORDS:
        raise ValueError(f"unknown record {name!r}; records: {sorted(RECORDS)}")
    path = Path(folder) / f"{name}.jsonl"
    known = load_results(path) if path.exists() else []
    # Runs of one seed stay together, so that they share its full table.
    for cell in sorted(RECORDS[name](), key=lambda cell: cell.seed):
        if seed not in (None, cell.seed) or cell.method not in (
            methods or [cell.method]
        ):
            continue
        if any(cell.matches(result) for result in known):
            continue
        result = cell.make(
            device, f"survey-code record {name} --device {device} --seed {cell.seed}"
        )
        append_result(path, result)
        yield result
