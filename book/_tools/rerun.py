"""Make recorded runs again, and compare their digits.

    python book/_tools/rerun.py [--rows 20] [--seed 1] [--most-seconds 120]

Draws rows from all of ``book/results``, family by family in turn, among those that were
made on a processor in float64 and took no longer than this; makes each anew as it was
asked for; and prints whether validation and test metrics are the recorded numbers: to
the last bit, or to six digits (an AUC of another version of torch may differ in the
ninth, where two scores were all but equal).  Leaves with status 1 if any is neither.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from survey_code.catalog import methods
from survey_code.data import LOADERS, load
from survey_code.lab import Result, load_results, repeat
from survey_code.lab.task import open_data

RESULTS = Path(__file__).parents[1] / "results"


def list_rows(most_seconds: float) -> Iterator[tuple[str, Result]]:
    """Each recorded row that a processor gives again, with its file's name."""
    known = {method.key for method in methods()}
    for path in sorted(RESULTS.glob("**/*.jsonl")):
        if path.parent.name == "speed":
            continue
        for row in load_results(path):
            quick = sum(row.seconds.values()) <= most_seconds and row.validation
            exact = row.settings.get("precision") == "float64"
            here = row.device.startswith("cpu") and row.data.startswith("synthetic")
            if row.key in known and quick and exact and here:
                yield path.stem, row


def draw_rows(
    rows: list[tuple[str, Result]], number: int, seed: int
) -> list[tuple[str, Result]]:
    """As many from each family as from any other, in a random order of its rows."""
    families = {method.key: method.family for method in methods()}
    rng = np.random.default_rng(seed)
    piles: dict[str, list[tuple[str, Result]]] = {}
    for place in rng.permutation(len(rows)):
        name, row = rows[place]
        piles.setdefault(families[row.key], []).append((name, row))
    drawn: list[tuple[str, Result]] = []
    while len(drawn) < number and any(piles.values()):
        for family in sorted(piles):
            if piles[family] and len(drawn) < number:
                drawn.append(piles[family].pop())
    return drawn


def compare(row: Result, again: Result) -> str:
    """Whether two runs have the same metrics."""
    pairs = [
        (found, other[name])
        for part, other in ((row.test, again.test), (row.validation, again.validation))
        for name, found in part.items()
    ]
    if all(found == other for found, other in pairs):
        return "same"
    near = all(abs(found - other) < 1e-6 for found, other in pairs)
    return "to six digits" if near else "OTHER"


def main() -> int:
    """Draw, make again, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--most-seconds", type=float, default=120)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sets = {}
    for name in LOADERS:
        if name.startswith("synthetic"):
            data = open_data(load(name))
            sets[data.name] = data
    rows = [r for r in list_rows(given.most_seconds) if r[1].data in sets]
    print(f"{len(rows)} rows could be drawn; seed {given.seed}")
    wrong = 0
    for name, row in draw_rows(rows, given.rows, given.seed):
        again = repeat(row, sets[row.data], measure=False)
        said = compare(row, again)
        wrong += said == "OTHER"
        metric = next(iter(row.test))
        print(
            f"{said:14}{row.key:22}{row.requested_ratio:>5g}x seed {row.seed} "
            f"{metric} {row.test[metric]!r} {again.test[metric]!r} "
            f"({name}, {row.date}, torch {row.versions['torch']})",
            flush=True,
        )
    print(f"{wrong} differ")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
