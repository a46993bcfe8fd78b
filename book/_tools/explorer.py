"""The data of the explorer page, from the recorded contests.

    python book/_tools/explorer.py OUT

Copies the page to OUT and writes what it shows beside it, as a script: a page that is
opened from a folder may not read other files.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from toc import ROOT

sys.path.insert(0, str(ROOT / "book"))

import records as book
from evidence import describe_cost, find_stage

from survey_code.catalog import AFTER, DURING, SEARCH, get_method, methods
from survey_code.lab.results import Result, group_curves, group_seeds, strip_bits

TITLES = {
    "synthetic": "Clicks, synthetic",
    "synthetic_large": "Clicks, synthetic large",
    "frappe": "Clicks, Frappe",
    "gowalla": "Rankings, Gowalla",
    "movietweetings": "Rankings, MovieTweetings",
    "stream": "Clicks in time order, MovieTweetings",
}
SHOWN_METRICS = ("auc", "log_loss", "recall@20", "ndcg@20")
SHOWN_SETTINGS = (
    "table_learning_rate", "learning_rate", "l2", "table_l2", "epochs_trained",
    "best_epoch",
)  # fmt: skip


def describe_contest(name: str) -> dict[str, Any]:
    """What the page shows of one contest."""
    path = book.RESULTS / f"{name}_runs.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    numbered = [
        (number, Result.from_json(line)) for number, line in enumerate(lines, 1)
    ]
    results = [result for _, result in numbered]
    places = {id(result): number for number, result in numbered}
    tested = [result for result in results if result.failure is None]
    full = next(result for result in tested if result.key == "full")
    costs = find_costs(name, full.bytes["inference"])
    return {
        "name": name,
        "title": TITLES.get(name, name),
        "file": f"book/results/{path.name}",
        "network": full.model,
        "dim": full.dim,
        "full_bytes": full.bytes["inference"],
        "metrics": [metric for metric in SHOWN_METRICS if metric in full.test],
        "methods": [
            describe_curve(curve, own, places, costs.get(curve, {}))
            for curve, own in group_curves(results).items()
        ],
    }


def describe_curve(
    curve: str, results: list[Result], places: dict[int, int], costs: dict[str, float]
) -> dict[str, Any]:
    """One method or variant: its points, and what it cannot reach."""
    method = get_method(results[0].key)
    points = [describe_point(group, places) for group in group_seeds(results).values()]
    return {
        "name": curve,
        "key": method.key,
        "title": method.title,
        "family": method.family,
        "stage": find_stage(results[0]),
        "cost": costs,
        "cannot": sorted({r.requested_ratio for r in results if r.failure}),
        "points": sorted(points, key=lambda point: point["reached"]),
    }


def describe_point(group: list[Result], places: dict[int, int]) -> dict[str, Any]:
    """The seeds of a method at a ratio."""
    first = group[0]
    seen = [sum(result.rows.values()) for result in group]
    return {
        "asked": first.requested_ratio,
        "reached": round(sum(r.reached_ratio for r in group) / len(group), 4),
        "bytes": first.bytes["inference"],
        "rows": round(sum(seen) / len(seen)),
        "options": first.asked,
        "settings": {k: first.settings.get(k) for k in SHOWN_SETTINGS},
        "command": first.command,
        "date": first.date,
        "device": first.device,
        "runs": [
            {
                "seed": result.seed,
                "line": places[id(result)],
                "values": {k: round(result.test[k], 6) for k in SHOWN_METRICS
                           if k in result.test},
            }
            for result in sorted(group, key=lambda result: result.seed)
        ],
    }  # fmt: skip


def find_costs(name: str, full_bytes: int) -> dict[str, dict[str, float]]:
    """What each curve costs on a processor, where that was measured."""
    found: dict[str, dict[str, float]] = {}
    for line in book.read_costs(name):
        cost = describe_cost(line, full_bytes)
        if cost["device"] == "cpu":
            found[strip_bits(line["entrant"])] = {
                "us_per_row": cost["us_per_row"]["train"],
                "peak": cost["training"]["peak"],
                "lookup": cost["lookup"]["256"][0],
            }
    return found


def describe_all() -> dict[str, Any]:
    """All that the page shows."""
    return {
        "families": list(dict.fromkeys(method.family for method in methods())),
        "stages": [AFTER, DURING, SEARCH],
        "contests": [describe_contest(name) for name in book.FINISHED],
    }


def write_explorer(folder: Path) -> None:
    """The page and its data in a folder."""
    shutil.copytree(ROOT / "book" / "explorer", folder, dirs_exist_ok=True)
    text = json.dumps(describe_all(), separators=(",", ":"), sort_keys=True)
    (folder / "data.js").write_text(f"window.EXPLORER = {text};\n", encoding="utf-8")


if __name__ == "__main__":
    write_explorer(Path(sys.argv[1]))
