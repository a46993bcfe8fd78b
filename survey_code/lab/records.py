"""The book's recorded results: what a notebook cannot remeasure in a minute.

Each record is a list of runs; `record` makes those that its file lacks, so a
record that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from survey_code.catalog import AFTER, get_method, methods
from survey_code.lab.results import (
    Result,
    append_result,
    find_versions,
    load_results,
    name_device,
    replace_results,
    today,
)
from survey_code.lab.runs import is_run, reaches, run
from survey_code.lab.stream import run_stream
from survey_code.lab.task import TRIALS, Trial, is_ranking, open_data
from survey_code.lab.tuning import TUNING_SEED, name_metric, propose
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
            result, self.method, open_data(self.data).name, self.ratio, self.seed,
            self.trial, self.options,
        )  # fmt: skip

    def reaches(self) -> bool:
        """Whether the method has a configuration inside the budget."""
        return reaches(
            self.method, self.data, self.ratio, trial=self.trial, **self.options
        )

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

    def matches(self, result: Result) -> bool:
        """Whether a result is this pass; streams go by the name they are asked by."""
        return is_run(
            result, self.method, self.data, self.ratio, self.seed, self.trial,
            self.options,
        )  # fmt: skip

    def reaches(self) -> bool:
        """Streams are asked for what they can hold."""
        return True

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


def shorten(trial: Trial, epochs: int, **changes: Any) -> Trial:
    """A trial with fewer epochs, and other settings where they are named."""
    settings = dataclasses.replace(trial.settings, epochs=epochs, **changes)
    return dataclasses.replace(trial, settings=settings)


def gowalla_full(model: str) -> list[Cell]:
    """A network on Gowalla, d = 64, uncompressed."""
    trial = TRIALS["gowalla", model]
    return [Cell("full", "gowalla", 1, seed, trial) for seed in SEEDS]


def gowalla_binarisation() -> list[Cell]:
    """Matrix factorisation, d = 64: one bit per entry, five methods."""
    trial = QUICK_GOWALLA
    asked: list[tuple[str, float, dict[str, Any]]] = [
        ("bigear", 8, {}),
        ("full", 1, {}),
    ]
    asked += [("bccf", 28, {"rule": rule}) for rule in ("median", "sign", "pph", "itq")]
    asked += [("dcf", 28, {}), ("cigar", 28, {})]
    asked += [("hashgnn", 28, {"layers": layers}) for layers in (0, 1)]
    asked += [("rowwise", 3.5, {"bits": 8})]
    asked += [("rowwise", ratio, {"bits": bits}) for ratio, bits in ((7, 4), (12, 2))]
    return [
        Cell(key, "gowalla", ratio, seed, trial, options)
        for key, ratio, options in asked
        for seed in SEEDS
    ]


def gowalla_numbering() -> list[Cell]:
    """Matrix factorisation, d = 64, 10x: rows shared by number, after the ids were
    numbered anew at random.
    """
    return [
        Cell(key, "gowalla-renumbered", 10, seed, QUICK_GOWALLA)
        for key in ("quotient_remainder", "binary_code_hash")
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


def movietweetings_search() -> list[Cell]:
    """FM on MovieTweetings in time order: the searches made for streams.

    Asked for at most half of the table's bytes, weights per id included: with ten
    columns the narrowest rows take a fifth.
    """
    trial = TRIALS["movietweetings", "fm"]
    asked: list[tuple[str, float]] = [("full", 1)]
    asked += [(key, r) for key in ("uniform", "esapn", "autoemb") for r in (2, 3)]
    return [
        StreamCell(key, "movietweetings", ratio, seed, trial)
        for key, ratio in asked
        for seed in SEEDS
    ]


FAMILY_RATIOS = (4, 10, 30)


def compare_category(category: str, data: str, trial: Trial) -> list[Cell]:
    """Every method of a category, and the baselines, at the ratios of the book.

    Ratios out of a method's reach are left out when the record is made.
    """
    baselines = [Cell("full", data, 1, seed, trial) for seed in SEEDS]
    task = "top-n" if is_ranking(trial.model) else "ctr"
    keys = ["uniform"] + [
        m.key for m in methods() if m.category == category and task in m.tasks
    ]
    return baselines + [
        Cell(key, data, ratio, seed, trial)
        for key in keys
        for ratio in FAMILY_RATIOS
        for seed in SEEDS
    ]


def tune_category(category: str, data: str, trial: Trial) -> list[Cell]:
    """Eight trials of each of these methods, one seed, at 10x or near it."""
    cells: list[Cell] = []
    for key in dict.fromkeys(c.method for c in compare_category(category, data, trial)):
        for ratio in (1,) if key == "full" else (10, 4):
            trials = [
                Cell(key, data, ratio, TUNING_SEED, *p) for p in propose(key, trial)
            ]
            if trials[0].reaches():
                cells += trials
                break
    return cells


def apply_tuning(cells: list[Cell], trials: list[Result]) -> list[Cell]:
    """The cells of methods all of whose trials are made, as the best was trained.

    A trial is better by its validation metric.
    """
    best: dict[str, tuple[Trial, dict[str, Any]] | None] = {}
    for cell in cells:
        if cell.method not in best:
            best[cell.method] = choose_best(cell, trials)
    return [
        dataclasses.replace(cell, trial=chosen[0], options=chosen[1])
        for cell in cells
        if (chosen := best[cell.method])
    ]


def choose_best(
    cell: Cell, trials: list[Result]
) -> tuple[Trial, dict[str, Any]] | None:
    """How the best trial of a cell's method was trained; None if one is missing."""
    marks = []
    for proposal in propose(cell.method, cell.trial):
        asked = dataclasses.replace(
            cell, seed=TUNING_SEED, trial=proposal[0], options=proposal[1]
        )
        found = [
            result
            for result in trials
            if result.key == cell.method
            and dataclasses.replace(asked, ratio=result.requested_ratio).matches(result)
        ]
        if not found:
            return None
        validation = found[0].validation
        marks.append((validation[name_metric(validation)], proposal))
    return max(marks, key=lambda mark: mark[0])[1]


def synthetic_large_weight_sharing() -> list[Cell]:
    """DCN-V2, d = 16, 1.1 million ids, one epoch: how far sharing can go."""
    trial = shorten(TRIALS["synthetic", "dcnv2"], 1, batch_size=4096)
    keys = (
        "hashing", "double_hashing", "hash_embeddings", "quotient_remainder",
        "robe", "dhe", "cafe", "bloom", "binary_code_hash", "tt_rec", "sttd",
    )  # fmt: skip
    asked: list[tuple[str, float, dict[str, Any]]] = [("full", 1, {})]
    asked += [(key, ratio, {}) for key in keys for ratio in (10, 100, 1000)]
    # Two digits end at 500x.
    asked += [("quotient_remainder", 1000, {"parts": 3})]
    return [
        Cell(key, "synthetic-large", ratio, seed, trial, options)
        for key, ratio, options in asked
        for seed in SEEDS
    ]


# Gowalla in a tenth of the time that the full trial takes: smaller batches, fewer
# negatives for each, and a rate that falls to nothing in 30 epochs.
QUICK_GOWALLA = shorten(
    dataclasses.replace(
        TRIALS["gowalla", "mf"], objective={"loss": "softmax", "negatives": 1024}
    ),
    30,
    batch_size=4096,
    learning_rate=5e-3,
    schedule="linear",
    evaluate_every=5,
)


TUNING, TUNED = "_tuning", "_tuned"


def _by_category(category: str) -> dict[str, Callable[[], list[Cell]]]:
    found: dict[str, Callable[[], list[Cell]]] = {}
    for data, trial in (
        ("synthetic", TRIALS["synthetic", "dcnv2"]),
        ("frappe", TRIALS["frappe", "dcnv2"]),
        ("gowalla", QUICK_GOWALLA),
    ):
        name = f"{data}_{category.replace(' ', '_')}"
        found[name] = partial(compare_category, category, data, trial)
        found[name + TUNING] = partial(tune_category, category, data, trial)
        # What `record` replaces by how the best of those trials was trained.
        found[name + TUNED] = found[name]
    return found


RECORDS: dict[str, Callable[[], list[Cell]]] = {
    **_by_category("low precision"),
    "frappe_bars": frappe_bars,
    "frappe_first": frappe_first,
    "frappe_low_precision": frappe_low_precision,  # by bits, not by ratio
    "gowalla_binarisation": gowalla_binarisation,
    "gowalla_numbering": gowalla_numbering,
    "gowalla_mf": lambda: gowalla_full("mf"),
    "gowalla_lightgcn": lambda: gowalla_full("lightgcn"),
    "movietweetings_drift": movietweetings_drift,
    "synthetic_large_weight_sharing": synthetic_large_weight_sharing,
    "movietweetings_search": movietweetings_search,
    **_by_category("mixed dimension"),
    **_by_category("weight sharing"),
}


def record(
    name: str,
    folder: str | os.PathLike[str] = "book/results",
    device: str = "cpu",
    seed: int | None = None,
    methods: Sequence[str] | None = None,
    jobs: int = 1,
) -> Iterator[Result]:
    """Make the runs of a record that its file lacks.

    Parameters
    ----------
    name : str
        A key of `RECORDS`.
    folder : path
        Where the file ``NAME.jsonl`` lies.
    device : str
    seed : int, optional
    methods : sequence of str, optional
        Make the runs of this seed or these methods only.
    jobs : int, default 1
        Runs made side by side, each in a process of its own; a GPU serves many.

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
    cells = RECORDS[name]()
    if name.endswith(TUNED):
        trials = Path(folder) / f"{name.removesuffix(TUNED)}{TUNING}.jsonl"
        cells = apply_tuning(cells, load_results(trials))
    wanted = [
        cell
        for cell in cells
        if seed in (None, cell.seed)
        and cell.method in (methods or [cell.method])
        and not any(cell.matches(result) for result in known)
        and cell.reaches()
    ]
    # Seed by seed: a record that was interrupted has all methods of the first ones.
    wanted.sort(key=lambda cell: cell.seed)
    command = f"survey-code record {name} --device {device}"
    for result in make_cells(group_cells(wanted), device, command, jobs):
        append_result(path, result)
        yield result
    if wanted and jobs > 1:
        arrange_record(path, cells)


def arrange_record(path: Path, cells: Sequence[Cell]) -> None:
    """Put a file's runs into the order of the record's cells.

    Runs made side by side end in any order; of a method's trials, readers take the
    first for its defaults.  Runs of no cell come last.
    """
    results = load_results(path)
    ordered = []
    for cell in cells:
        own = [
            result
            for result in results
            if (result.key, result.seed, result.requested_ratio)
            == (cell.method, cell.seed, cell.ratio)
            and cell.matches(result)
        ]
        ordered += own
        results = [result for result in results if not any(result is o for o in own)]
    replace_results(path, ordered + results)


def group_cells(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells that share a full table together, each other cell alone."""
    groups: dict[Any, list[Cell]] = {}
    for place, cell in enumerate(cells):
        shares = AFTER in get_method(cell.method).stages[:1] or cell.method == "full"
        # Trials hold dictionaries, which cannot be keys.
        key = (cell.seed, repr(cell.trial)) if shares else place
        groups.setdefault(key, []).append(cell)
    return list(groups.values())


def make_cells(
    groups: list[list[Cell]], device: str, command: str, jobs: int
) -> Iterator[Result]:
    """Make groups one after another, or several at once."""
    if jobs == 1:
        for group in groups:
            for cell in group:
                yield cell.make(device, command)
        return
    # Forked from a process that has read the modules but not touched the GPU.  They
    # serve many groups: loading a GPU's libraries takes as long as a short run.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    failed = []
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,)) as pool:
        made = {pool.submit(make_group, g, device, command): g for g in groups}
        for future in as_completed(made):
            if error := future.exception():
                cell = made[future][0]
                failed.append(f"{cell.method} {cell.ratio:g} {cell.seed}: {error}")
            else:
                yield from future.result()
    if failed:
        raise RuntimeError(f"{len(failed)} groups of runs failed: {failed}")


def make_group(group: list[Cell], device: str, command: str) -> list[Result]:
    """The results of a group's cells; layouts stay in the process."""
    results = [cell.make(device, command) for cell in group]
    return [dataclasses.replace(result, layout=None) for result in results]
