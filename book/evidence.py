"""What the package knows of its own contests: ``survey_code/evidence.json``.

    python book/evidence.py [--look] [--costs FOLDER]

Made from ``book/results/CONTEST_runs.jsonl`` of each contest in `records.FINISHED`, and
from ``book/results/costs/CONTEST.jsonl`` where that exists.  How many ids and fields a
data set has, and how its reads are spread, is kept from the file as it was; what it
does not say, and with ``--look`` everything, is read from the data.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import records

from survey_code.advice.case import measure_skew
from survey_code.advice.evidence import METRICS, PLACES, find_evidence, read_text
from survey_code.catalog import AFTER, DURING, get_method
from survey_code.lab.comparison import main_metric
from survey_code.lab.contest import Contest
from survey_code.lab.experiment import Experiment
from survey_code.lab.results import (
    Result,
    group_curves,
    group_seeds,
    load_results,
    strip_bits,
)
from survey_code.layouts.files import replace_file
from survey_code.options import Options
from survey_code.spec import TableSpec

# Bytes of a file that is not packed.
LARGE = 300_000
# What a result says of a contest's data, and only the data says.
FACTS = ("data", "rows", "dim", "fields", "skew")

Told = dict[str, Any]


def gather(
    names: Collection[str],
    folder: Path = records.RESULTS,
    costs: Path = records.COSTS,
    known: Mapping[str, Told] | None = None,
) -> dict[str, Told]:
    """The evidence of some contests.

    Parameters
    ----------
    names : collection of str
        Of `records.CONTESTS`.
    folder, costs : path
        Of ``NAME_runs.jsonl``, and of ``NAME.jsonl`` with what was measured beside.
    known : dict, optional
        The evidence as it was, of which facts about the data are kept.

    Raises
    ------
    FileNotFoundError
        If a contest has no runs, or its data is neither known nor at hand.
    """
    return {
        name: describe_contest(
            records.CONTESTS[name],
            load_results(folder / f"{name}_runs.jsonl"),
            records.read_costs(name, costs),
            (known or {}).get(name, {}),
        )
        for name in names
    }


def describe_contest(
    contest: Contest, results: Sequence[Result], costs: Sequence[Told], known: Told
) -> Told:
    """A contest as the file tells it."""
    metric = main_metric(results)
    full = next(r.bytes["inference"] for r in results if r.key == "full")
    spent: dict[str, list[Told]] = defaultdict(list)
    for line in costs:
        spent[strip_bits(line["entrant"])].append(describe_cost(line, full))
    return {
        "task": next(task for task, name in METRICS.items() if name == metric),
        "stream": contest.kind is not Experiment,
        **describe_data(contest, results[0].data, known),
        "curves": {
            name: describe_curve(own, metric, spent[name])
            for name, own in group_curves(results).items()
        },
    }


def describe_data(contest: Contest, data: str, known: Told) -> Told:
    """Ids, fields and reads of a contest's data."""
    if known.get("data") == data and known.get("dim") == contest.trial.dim:
        return {name: known[name] for name in FACTS}
    try:
        spec = contest.spec
    except OSError as error:
        raise FileNotFoundError(
            f"{contest.name}: {find_evidence().name} does not say how its data is, "
            f"which is not at hand: {error}"
        ) from error
    return {
        "data": data,
        "rows": spec.num_embeddings,
        "dim": spec.embedding_dim,
        "fields": len(spec.field_starts) - 1,
        "skew": round(measure_skew(spec.train_counts), 4),
    }


def describe_curve(results: Sequence[Result], metric: str, costs: list[Told]) -> Told:
    """A method or variant as the file tells it."""
    points = [describe_point(own, metric) for own in group_seeds(results).values()]
    missed = {r.requested_ratio for r in results if r.failure}
    return {
        "key": results[0].key,
        "stage": find_stage(results[0]),
        "points": sorted(points, key=lambda point: float(point["ratio"])),
        "cannot": sorted(missed),
        "costs": sorted(costs, key=lambda cost: (cost["device"], cost["ratio"])),
    }


def describe_point(results: Sequence[Result], metric: str) -> Told:
    """The seeds of one ratio."""
    reached = np.mean([result.reached_ratio for result in results])
    rows = {
        name: round(np.mean([result.rows.get(name, 0) for result in results]))
        for name in ("search", "train")
    }
    return {
        "ratio": round(float(reached), 4),
        "metric": {str(r.seed): round(r.test[metric], 6) for r in results},
        "options": asked_of(results[0]).given(),
        "rows": rows,
    }


def asked_of(result: Result) -> Options:
    """What was asked of a method, without how a stream is followed."""
    kind: type[Options] = get_method(result.key).load().options
    asked = result.options if result.asked is None else result.asked
    return kind.of(result.key, {n: v for n, v in asked.items() if n in kind.names()})


def find_stage(result: Result) -> str:
    """When a method compressed: what trains a table of its own first, and not the full
    table that all others share, works during training.
    """
    method = get_method(result.key)
    if method.stage != AFTER:
        return method.stage
    kind, asked = method.load(), asked_of(result)
    found = {n: v for n, v in result.options.items() if n in kind.options.rules}
    options = kind.options.of(result.key, found) if found else asked
    own = kind.prepare(TableSpec.of_shape(8, 8), options, 0)
    return AFTER if own is None else DURING


def describe_cost(line: Told, full: int) -> Told:
    """A line of costs; bytes of training in multiples of the full table."""
    taken = line["training_bytes"]
    training = {
        name: max(taken[name], taken.get(f"{name}_in_search", 0)) / full
        for name in ("persistent", "peak")
    }
    return {
        "device": line["where"].split(":")[0],
        "ratio": round(line["reached_ratio"], 4),
        "training": {name: round(size, 3) for name, size in training.items()},
        "us_per_row": {n: round(line[n]["us_per_row"], 3) for n in ("search", "train")},
        "lookup": round_calls(line["lookup"]),
        "bag": round_calls(line["bag"]),
        "moved_per_row": line["moved_per_row"],
    }


def round_calls(calls: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Times of calls to a tenth of a microsecond."""
    return {size: [round(t, 1) for t in times] for size, times in calls.items()}


def write_out(told: Mapping[str, Told]) -> str:
    """The file's text: a curve a line, so that changes can be read."""
    parts = []
    for name, contest in told.items():
        facts = {n: own for n, own in contest.items() if n != "curves"}
        head = json.dumps(facts, sort_keys=True)[:-1]
        lines = [
            f"{json.dumps(curve)}: {json.dumps(own, sort_keys=True)}"
            for curve, own in contest["curves"].items()
        ]
        joined = ",\n".join(lines)
        parts.append(f'{json.dumps(name)}: {head}, "curves": {{\n{joined}\n}}}}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def save(text: str, places: Sequence[Path] = PLACES) -> Path:
    """Write the file, packed if it is large; beside its place first, then renamed."""
    content = text.encode()
    plain, packed = places
    large = len(content) > LARGE
    place, other = (packed, plain) if large else (plain, packed)
    with replace_file(place) as file:
        file.write(gzip.compress(content, mtime=0) if large else content)
    other.unlink(missing_ok=True)
    return place


def main() -> None:
    """Make the file anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--look", action="store_true", help="read the data anew")
    parser.add_argument("--costs", type=Path, default=records.COSTS)
    given = parser.parse_args()
    place = find_evidence()
    known = json.loads(read_text(place)) if place.exists() and not given.look else {}
    text = write_out(gather(records.FINISHED, costs=given.costs, known=known))
    place = save(text)
    print(
        f"{place.name}: {place.stat().st_size:,} bytes, {', '.join(records.FINISHED)}"
    )


if __name__ == "__main__":
    main()
