"""Rates of the GPU kernels beside the ceilings of the same run.

    python benchmarks/gpu.py WHAT [--kind "4 bits"] [--seed 1] [--out FOLDER]

Measures reading, searching, writing or arithmetic on the GPU of this machine, and adds
a line of evidence each to ``WHAT.jsonl``.  Needs CuPy and a CUDA GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import arithmetic_rates
import calls
import rates

from survey_code.lab.results import append_line

RATES: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "rows": rates.measure_rates,
    "composed": rates.measure_composed,
    "calls": calls.measure_calls,
    "scans": rates.measure_scans,
    "writes": rates.measure_writes,
    "codes": arithmetic_rates.measure_codes,
    "gradients": arithmetic_rates.measure_gradients,
    "generator": arithmetic_rates.measure_generator,
}
SPEED = Path(__file__).parents[1] / "book" / "results" / "speed"


def main() -> None:
    """Measure, note and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=list(RATES))
    parser.add_argument(
        "--kind", action="append", help="of rows, composed or calls, e.g. '4 bits'"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=SPEED)
    given = parser.parse_args()
    options: dict[str, Any] = {"seed": given.seed}
    if given.kind:
        if given.what not in ("rows", "composed", "calls"):
            parser.error(f"--kind is of rows, composed, calls, not of {given.what}")
        options["kinds"] = tuple(given.kind)
    command = f"python benchmarks/gpu.py {given.what} --seed {given.seed}"
    for line in RATES[given.what](**options, command=command):
        append_line(given.out / f"{given.what}.jsonl", json.dumps(line, sort_keys=True))
        print(describe_rate(line), flush=True)


def describe_rate(line: dict[str, Any]) -> str:
    """One line on one measured rate."""
    if "per_s" in line:
        rate = line["per_s"] / 1e9
        return f"{line['kind']:12} {line['what']:20} {rate:9.4f} billion/s"
    if "queued_us" in line:
        return (
            f"{line['kind']:10} {line['bags']:>5,} x {line['length']} {line['what']:20}"
            f" {line['queued_us']:7.1f} us queued, {line['waited_us']:7.1f} waited"
        )
    if "queries" in line:
        return (
            f"{line['queries']:>5,} queries: {line['codes_per_s'] / 1e9:7.1f} "
            "billion codes/s"
        )
    size = f" {line['bags']:>9,} x {line['length']:<2}" if "bags" in line else ""
    rate = line["rows_per_s"] / 1e9
    return f"{line['kind']:8} {line['what']:6}{size} {rate:6.2f} billion rows/s"


if __name__ == "__main__":
    sys.exit(main())
