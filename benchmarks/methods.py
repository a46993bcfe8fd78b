"""What every method of a contest costs beside its accuracy, each measured alone.

    python benchmarks/methods.py CONTEST [--device cuda] [--ratio 10] [--out FOLDER]

Each entrant is asked for the ratio that is nearest in its reach, with the settings that
tuning found where they are recorded, and the base's where not.  Adds a line of evidence
each to ``CONTEST.jsonl``; entrants that it holds for this device are left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book"))

import records as book  # noqa: E402

from survey_code.lab.contest import Contest, pose_best  # noqa: E402
from survey_code.lab.experiment import Experiment  # noqa: E402
from survey_code.lab.measures import note_costs  # noqa: E402
from survey_code.lab.records import move  # noqa: E402


def list_runs(
    contest: Contest, ratio: float, device: str
) -> Iterator[tuple[str, Experiment]]:
    """Each entrant's run at the ratio nearest in its reach."""
    records = book.open_records(contest)
    for entrant in contest.entrants:
        run = pose_best(contest, entrant, records, ratio)
        if run is not None:
            yield entrant.name, move(run, device)


def measure(
    contest: Contest, ratio: float, device: str, out: Path, command: str
) -> Iterator[dict[str, Any]]:
    """Measure who is missing in a file of costs, and add them."""
    place, known = out / f"{contest.name}.jsonl", book.read_costs(contest.name, out)
    done = {(line["entrant"], line["where"], line["asked_ratio"]) for line in known}
    for name, run in list_runs(contest, ratio, device):
        if (name, device, ratio) in done:
            continue
        yield note_costs(place, name, run, ratio, command)


def main() -> None:
    """Measure, note and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contest", choices=sorted(book.CONTESTS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ratio", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=book.COSTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    command = f"python benchmarks/methods.py {given.contest} --device {given.device}"
    contest = book.CONTESTS[given.contest]
    for line in measure(contest, given.ratio, given.device, given.out, command):
        train, few = line["train"]["us_per_row"], line["lookup"]["256"][0]
        shown = f"{train:7.2f} us a row trained, {few:6.0f} us for 256 ids"
        print(f"{line['entrant']:30} {line['reached_ratio']:6.2f}x {shown}", flush=True)


if __name__ == "__main__":
    main()
