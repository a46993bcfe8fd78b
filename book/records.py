"""The book's recorded results: what a notebook cannot remeasure in a minute.

    python book/records.py NAME [--device cuda] [--jobs 8] [--seed 1] [--method pep]

Makes the runs that ``book/results/NAME.jsonl`` lacks, so that a record which was
interrupted goes on where it stopped.  Each record is a list of experiments.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from survey_code.catalog import get_method, methods
from survey_code.lab.experiment import Experiment
from survey_code.lab.records import record
from survey_code.lab.results import Result, describe_result, load_results
from survey_code.lab.stream import StreamExperiment
from survey_code.lab.trial import TRIALS, Trial, is_ranking
from survey_code.lab.tuning import TUNING_SEED, apply_tuning, propose
from survey_code.training import TrainingSettings

RESULTS = Path(__file__).parent / "results"
SEEDS = (1, 2, 3)


def ask(
    key: str,
    data: str,
    ratio: float,
    seed: int,
    trial: Trial,
    options: dict[str, Any] | None = None,
) -> Experiment:
    """An experiment, options by name."""
    return Experiment(key, get_method(key).ask(options or {}), data, trial, ratio, seed)


def follow(
    key: str, ratio: float, seed: int, update_epochs: int = 6
) -> StreamExperiment:
    """A pass over MovieTweetings, FM."""
    return StreamExperiment(
        key, get_method(key).ask({}), "movietweetings",
        TRIALS["movietweetings", "fm"], ratio, seed, update_epochs=update_epochs,
    )  # fmt: skip


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


def frappe_bars() -> list[Experiment]:
    """FM and DeepFM on Frappe_x1 as BARS trains them."""
    return [
        ask("full", "frappe", 1, seed, trial)
        for trial in BARS_TRIALS.values()
        for seed in SEEDS
    ]


def frappe_first() -> list[Experiment]:
    """DCN-V2, d = 16: the full table against the first four compressed ones."""
    trial = TRIALS["frappe", "dcnv2"]
    experiments = [ask("full", "frappe", 1, seed, trial) for seed in SEEDS]
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
    return experiments + [
        ask(key, "frappe", ratio, seed, trial, options)
        for key, ratio, options in asked
        for seed in SEEDS
    ]


def frappe_low_precision() -> list[Experiment]:
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
        ask(key, "frappe", ratio, seed, trial, options)
        for key, ratio, options in asked
        for seed in SEEDS
    ]


def shorten(trial: Trial, epochs: int, **changes: Any) -> Trial:
    """A trial with fewer epochs, and other settings where they are named."""
    settings = dataclasses.replace(trial.settings, epochs=epochs, **changes)
    return dataclasses.replace(trial, settings=settings)


def gowalla_full(model: str) -> list[Experiment]:
    """A network on Gowalla, d = 64, uncompressed."""
    trial = TRIALS["gowalla", model]
    return [ask("full", "gowalla", 1, seed, trial) for seed in SEEDS]


def gowalla_binarisation() -> list[Experiment]:
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
        ask(key, "gowalla", ratio, seed, trial, options)
        for key, ratio, options in asked
        for seed in SEEDS
    ]


def gowalla_numbering() -> list[Experiment]:
    """Matrix factorisation, d = 64, 10x: rows shared by number, after the ids were
    numbered anew at random.
    """
    return [
        ask(key, "gowalla-renumbered", 10, seed, QUICK_GOWALLA)
        for key in ("quotient_remainder", "binary_code_hash")
        for seed in SEEDS
    ]


def movietweetings_drift() -> list[Experiment]:
    """FM on MovieTweetings: frozen after five windows, or updated after each."""
    return [
        follow("full", 1, seed, update_epochs=epochs)
        for epochs in (0, 6)
        for seed in SEEDS
    ]


def movietweetings_search() -> list[Experiment]:
    """FM on MovieTweetings in time order: the searches made for streams.

    Asked for at most half of the table's bytes, weights per id included: with ten
    columns the narrowest rows take a fifth.
    """
    asked: list[tuple[str, float]] = [("full", 1)]
    asked += [(key, r) for key in ("uniform", "esapn", "autoemb") for r in (2, 3)]
    return [follow(key, ratio, seed) for key, ratio in asked for seed in SEEDS]


FAMILY_RATIOS = (4, 10, 30)
# Methods that ask what ids are, which no data set of these records says.
ASK_CONTENT = ("semantic_ids",)


def compare_category(category: str, data: str, trial: Trial) -> list[Experiment]:
    """Every method of a category, and the baselines, at the ratios of the book.

    Ratios out of a method's reach are left out when the record is made.
    """
    baselines = [ask("full", data, 1, seed, trial) for seed in SEEDS]
    task = "top-n" if is_ranking(trial.model) else "ctr"
    keys = ["uniform"] + [
        m.key
        for m in methods()
        if m.category == category and task in m.tasks and m.key not in ASK_CONTENT
    ]
    return baselines + [
        ask(key, data, ratio, seed, trial)
        for key in keys
        for ratio in FAMILY_RATIOS
        for seed in SEEDS
    ]


def tune_category(category: str, data: str, trial: Trial) -> list[Experiment]:
    """Eight trials of each of these methods, one seed, at 10x or near it."""
    experiments: list[Experiment] = []
    for key in dict.fromkeys(c.method for c in compare_category(category, data, trial)):
        for ratio in (1,) if key == "full" else (10, 4):
            trials = [
                Experiment(key, options, data, changed, ratio, TUNING_SEED)
                for changed, options in propose(key, trial)
            ]
            if trials[0].reaches():
                experiments += trials
                break
    return experiments


def synthetic_large_weight_sharing() -> list[Experiment]:
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
        ask(key, "synthetic-large", ratio, seed, trial, options)
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


def _by_category(category: str) -> dict[str, Callable[[], list[Experiment]]]:
    found: dict[str, Callable[[], list[Experiment]]] = {}
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


RECORDS: dict[str, Callable[[], list[Experiment]]] = {
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


def list_experiments(name: str, folder: Path = RESULTS) -> list[Experiment]:
    """The experiments of a record; of a tuned one, as its trials say.

    Raises
    ------
    ValueError
        If there is no such record.
    """
    if name not in RECORDS:
        raise ValueError(f"unknown record {name!r}; records: {sorted(RECORDS)}")
    experiments = RECORDS[name]()
    if name.endswith(TUNED):
        trials = load_results(folder / f"{name.removesuffix(TUNED)}{TUNING}.jsonl")
        return apply_tuning(experiments, trials)
    return experiments


def make(
    name: str,
    folder: Path = RESULTS,
    device: str = "cpu",
    seed: int | None = None,
    only: Iterable[str] | None = None,
    jobs: int = 1,
) -> Iterator[Result]:
    """Make what a record lacks, or of it one seed's or some methods' runs."""
    wanted = [
        one
        for one in list_experiments(name, folder)
        if seed in (None, one.seed) and (not only or one.method in only)
    ]
    command = f"python book/records.py {name} --device {device}"
    return record(wanted, folder / f"{name}.jsonl", device, command, jobs)


def main() -> None:
    """Make or resume a record, a line of text for each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", metavar="NAME", choices=sorted(RECORDS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, help="make this seed's runs only")
    parser.add_argument("--method", action="append", help="this method's runs only")
    parser.add_argument("--jobs", type=int, default=1, help="runs made side by side")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    for result in make(
        given.name, given.out, given.device, given.seed, given.method, given.jobs
    ):
        print(describe_result(result), flush=True)


if __name__ == "__main__":
    sys.exit(main())
