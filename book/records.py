"""The book's recorded results: what a notebook cannot remeasure in a minute.

    python book/records.py NAME [--device cuda] [--jobs 8] [--seed 1] [--method pep]

NAME is of a list of experiments, of a contest, or of a contest's ``_factorial``, in
which three axes of compression are crossed, or ``_rounded``, in which the tables of all
its methods are rounded.

Makes the runs that ``book/results/NAME.jsonl`` lacks, so that a record which was
interrupted goes on where it stopped.  Each record is a list of experiments, or a
contest: every method tuned alike, in ``NAME_trials.jsonl``, then its runs, in
``NAME_runs.jsonl``.  With ``--out FOLDER`` new lines are written there, and those of
``book/results`` are known; ``--join FOLDER`` takes them over.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from survey_code.catalog import get_method
from survey_code.lab import measures
from survey_code.lab.contest import Contest, Entrant, arrange, list_courses, pose_best
from survey_code.lab.contests import CONTESTS, FEWER_NEGATIVES
from survey_code.lab.drift import DRIFT_CONTESTS
from survey_code.lab.experiment import Experiment
from survey_code.lab.factorial import cross
from survey_code.lab.nesting import FormExperiment
from survey_code.lab.records import Recorder, Records, Workers, record
from survey_code.lab.results import Result, describe_result, is_missed, replace_results
from survey_code.lab.stream import StreamExperiment
from survey_code.lab.trial import TRIALS, Trial
from survey_code.lab.unseen import UnseenExperiment
from survey_code.training import TrainingSettings

RESULTS = Path(__file__).parent / "results"
COSTS = RESULTS / "costs"  # what benchmarks/methods.py measured
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


# Gowalla in a tenth of the time that the full trial takes: smaller batches, fewer
# negatives for each, and a rate that falls to nothing in 30 epochs.
QUICK_GOWALLA = FEWER_NEGATIVES.adjust(
    epochs=30, batch_size=4096, learning_rate=5e-3, schedule="linear", evaluate_every=5
)


# What networks that generate rows can do, tuned as their authors would: twice the
# trials, over depth, normalisation and hashes as well.
WIDE = (
    ("rate", (0.3, 0.1, 1.0, 0.03)),
    ("layers", (1, 2, 3, 5)),
    ("normalisation", ("none", "batch")),
    ("distribution", ("uniform", "gaussian")),
    ("codes", (None, 128, 1024)),
)
TUNED_WIDELY = Entrant("dhe, tuned widely", "dhe", tries=WIDE, trials=32)


def list_depths(*depths: int) -> tuple[Entrant, ...]:
    """Networks of so many hidden layers, with and without averages, each tuned at 10x
    for itself.
    """
    return tuple(
        Entrant(
            f"dhe, {layers} layers, {normalisation}", "dhe",
            (("layers", layers), ("normalisation", normalisation)), (10.0,),
        )
        for layers in depths
        for normalisation in ("none", "batch")
    )  # fmt: skip


# Who meets ids that training never saw; content in four bits counts.
DEPTHS = (("layers", (1, 2, 3, 5)), ("codes", (None, 32, 128)))
NEWCOMERS = (
    Entrant("full", "full"),
    *(
        Entrant(key, key, ratios=(10.0,))
        for key in (
            "hashing", "quotient_remainder", "hash_embeddings", "semantic_ids", "dhe",
        )
    ),
    *(
        Entrant(f"dhe, {name}", "dhe", asked, (10.0,), tries=DEPTHS)
        for name, asked in (
            ("batch", (("normalisation", "batch"),)),
            ("content", (("content", 4),)),
            ("content, batch", (("content", 4), ("normalisation", "batch"))),
        )
    ),
)  # fmt: skip

# Beside the contests whose data and training they share; rivals stand in those.
GENERATION = {
    contest.name: contest
    for contest in (
        Contest(
            "generation_synthetic", "synthetic", CONTESTS["synthetic"].trial,
            (TUNED_WIDELY, *list_depths(1, 3, 5)),
        ),
        Contest(
            "generation_frappe", "frappe", CONTESTS["frappe"].trial,
            (TUNED_WIDELY, *list_depths(1, 5)), tuned_on=(0,),
        ),
        Contest(
            "generation_content", "synthetic-content", CONTESTS["synthetic"].trial,
            NEWCOMERS, ratios=(10.0,), tuned_on=(0,), kind=UnseenExperiment,
        ),
    )
}  # fmt: skip

# Contests that are recorded to the end.
FINISHED: tuple[str, ...] = ("synthetic", "frappe")

RECORDS: dict[str, Callable[[], list[Experiment]]] = {
    "frappe_bars": frappe_bars,
    "gowalla_binarisation": gowalla_binarisation,
    "gowalla_numbering": gowalla_numbering,
    "gowalla_mf": lambda: gowalla_full("mf"),
    "gowalla_lightgcn": lambda: gowalla_full("lightgcn"),
    "movietweetings_drift": movietweetings_drift,
    "movietweetings_search": movietweetings_search,
}


# Contests on whose data three axes are crossed.
CROSSED = ("frappe", "synthetic_large")
FACTORIALS = {
    crossed.name: crossed for crossed in (cross(CONTESTS[name]) for name in CROSSED)
}
ALL_CONTESTS = {**CONTESTS, **DRIFT_CONTESTS, **GENERATION, **FACTORIALS}

# At which tables are rounded, and to what.
ROUNDED_AT, ROUNDED_TO = 10.0, ("8 bits", "4 bits")


def round_entrants(name: str) -> list[Experiment]:
    """All methods of a contest at 10x, or the nearest in their reach, trained with the
    settings that its tuning found, and rounded then: which bear it?

    Methods that it knows by a number of bits hold integers already.
    """
    contest, found = CONTESTS[name], []
    records = open_records(contest)
    for entrant in contest.entrants:
        own = entrant.name == entrant.key and (
            get_method(entrant.key).family != "binarisation"
        )
        one = pose_best(contest, entrant, records, ROUNDED_AT) if own else None
        if one is not None:
            parts = (one.method, one.options, one.data, one.trial, one.ratio)
            found += [FormExperiment(*parts, seed, ROUNDED_TO) for seed in SEEDS]
    return found


# Lists that are made from what contests found, and their data.
FOLLOWING: dict[str, Callable[[], list[Experiment]]] = {
    f"{name}_rounded": lambda name=name: round_entrants(name) for name in CROSSED
}


def list_experiments(name: str) -> list[Experiment]:
    """The experiments of a record.

    Raises
    ------
    ValueError
        If there is no such record.
    """
    lists = {**RECORDS, **FOLLOWING}
    if name not in lists:
        raise ValueError(f"unknown record {name!r}; records: {sorted(lists)}")
    return lists[name]()


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
        for one in list_experiments(name)
        if seed in (None, one.seed) and (not only or one.method in only)
    ]
    command = f"python book/records.py {name} --device {device}"
    return record(wanted, folder / f"{name}.jsonl", device, command, jobs)


def contend(
    contest: Contest,
    folder: Path = RESULTS,
    workers: Workers | None = None,
    only: Collection[str] | None = None,
) -> Iterator[Result]:
    """Make what a contest lacks, or of it some entrants' trials and runs."""
    workers = workers or Workers()
    records = open_records(contest, folder)
    command = f"python book/records.py {contest.name} --device {workers.device}"
    courses = list_courses(contest, records, only)
    yield from Recorder(records, workers, command).follow(courses)


def open_records(contest: Contest, folder: Path = RESULTS) -> Records:
    """The results of a contest: those of a folder, and those of the book."""
    names = [f"{contest.name}_{part}.jsonl" for part in ("runs", "trials")]
    runs, trials = (folder / name for name in names)
    return Records(runs, trials, more=[RESULTS / name for name in names])


def read_costs(name: str, folder: Path = COSTS) -> list[dict[str, Any]]:
    """What was measured of a contest's methods beside accuracy; nothing, perhaps."""
    return measures.read_costs(folder / f"{name}.jsonl")


def join(contest: Contest, folder: Path, forget: bool = False) -> tuple[int, int]:
    """Take a folder's lines over into the book's, in order; the trials and runs.

    Raises
    ------
    ValueError
        If lines would be lost, as of a contest that was changed, unless they are to
        be forgotten.
    """
    records = open_records(contest, folder)
    trials, runs = arrange(contest, records)
    placed = Records.of([*trials, *runs])
    unplaced = (records.by_key[k] for k in records.by_key.keys() - placed.by_key.keys())
    lost = sum(not is_missed(result) for result in unplaced)
    if lost and not forget:
        raise ValueError(
            f"{lost} lines belong to no run that {contest.name} asks for now, or to "
            "one whose turn has not come; --forget leaves them out"
        )
    replace_results(RESULTS / f"{contest.name}_trials.jsonl", trials)
    replace_results(RESULTS / f"{contest.name}_runs.jsonl", runs)
    return len(trials), len(runs)


def main() -> None:
    """Make or resume a record, a line of text for each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = sorted([*RECORDS, *FOLLOWING, *ALL_CONTESTS])
    parser.add_argument("name", metavar="NAME", choices=names)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, help="make this seed's runs only")
    parser.add_argument("--method", action="append", help="this method's runs only")
    parser.add_argument("--jobs", type=int, default=1, help="runs made side by side")
    parser.add_argument("--gpus", type=int, default=1, help="that they are dealt to")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--join", type=Path, help="take this folder's lines over")
    parser.add_argument("--forget", action="store_true", help="lines nobody asks for")
    given = parser.parse_args()
    if given.name in RECORDS or given.name in FOLLOWING:
        made = make(
            given.name, given.out, given.device, given.seed, given.method, given.jobs
        )
    elif given.join:
        print(*join(ALL_CONTESTS[given.name], given.join, given.forget))
        return
    else:
        timed = given.jobs == 1
        workers = Workers(given.device, given.jobs, given.gpus, given.seconds, timed)
        made = contend(ALL_CONTESTS[given.name], given.out, workers, given.method)
    for result in made:
        print(describe_result(result), flush=True)


if __name__ == "__main__":
    sys.exit(main())
