"""What rounding a trained table costs, by rule and by bits: errors, bytes, accuracy.

    python benchmarks/rounding.py --data frappe gowalla synthetic --seeds 1 2 3
        [--device cuda] [--only rotated] [--out FILE]

Trains the full table once for each data set and seed, as the book's records of methods
do (``book/records.py``), and compresses it by each rule at all the bits that it offers.
A line a layout is added to ``book/results/rounding.jsonl``: a result, whose ``test``
holds beside the task's metrics

``squared_error``
    the sum of squared errors of all numbers over the sum of their squares;
``product_error``
    the same of inner products: of random users with random items where the task ranks,
    of random pairs of rows elsewhere;
``product_slope``
    what is read of an inner product on average, as a share of it: 1 without a bias.

The ratio that was asked for is 32 over the bits.  Lines that the file holds are not
made again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from survey_code.catalog import get_method
from survey_code.data import load
from survey_code.embedding import Fitted, decode_layout
from survey_code.lab import (
    DataTask,
    Experiment,
    Result,
    Trial,
    default_trial,
    load_results,
)
from survey_code.lab.experiment import key_of, note
from survey_code.lab.results import append_result, describe_result
from survey_code.options import Options

BOOK = Path(__file__).parents[1] / "book"
sys.path.insert(0, str(BOOK))
from records import QUICK_GOWALLA  # noqa: E402 - the folder is no package

RESULTS = BOOK / "results" / "rounding.jsonl"
PAIRS = 100_000  # of rows, whose inner products are compared


@dataclass(frozen=True)
class Rule:
    """A way to round a table.

    Parameters
    ----------
    name : str
        By which its results are found: a method, and what is special.
    method : str
        Its key.
    asked : dict
        Options beside the bits.
    bits : tuple of int
        Bits of a code; those of a format where `asked` names one.
    """

    name: str
    method: str
    asked: dict[str, object]
    bits: tuple[int, ...]

    def configure(self, bits: int, seed: int) -> Options:
        """The method's options, with so many bits; each seed has another turn."""
        asked = dict(self.asked)
        if "dtype" not in asked and self.method != "full":
            asked["bits"] = bits
        if self.method == "rotated":
            asked["draw"] = seed
        return get_method(self.method).ask(asked).settled()


ALL_BITS = tuple(range(8, 0, -1))
FEW_BITS = (8, 4, 3, 2, 1)
KEPT = {"keep_norms": True}
FORMATS = {"float16": 16, "bfloat16": 16, "float8_e4m3": 8, "float8_e5m2": 8, "mx4": 4}
RULES: tuple[Rule, ...] = (
    Rule("full", "full", {}, (32,)),
    *(Rule(f"half, {name}", "half", {"dtype": name}, (bits,))
      for name, bits in FORMATS.items()),
    Rule("rowwise", "rowwise", {}, FEW_BITS),
    Rule("rowwise, norms kept", "rowwise", KEPT, FEW_BITS),
    Rule("rowwise, symmetric", "rowwise", {"symmetric": True}, FEW_BITS),
    Rule("rowwise, symmetric, norms kept", "rowwise", {"symmetric": True, **KEPT},
         FEW_BITS),
    Rule("rowwise, per table", "rowwise", {"per": "table"}, FEW_BITS),
    Rule("greedy", "greedy", {}, FEW_BITS),
    Rule("greedy, norms kept", "greedy", KEPT, FEW_BITS),
    Rule("rotated", "rotated", {}, ALL_BITS),
    Rule("rotated, stretched", "rotated", {"stretch": True}, ALL_BITS),
    Rule("rotated, unbiased", "rotated", {"unbiased": True}, ALL_BITS),
    Rule("rotated, not turned", "rotated", {"rotate": False}, ALL_BITS),
)  # fmt: skip


def draw_pairs(starts: np.ndarray, ranks: bool) -> tuple[np.ndarray, np.ndarray]:
    """Two rows of each of `PAIRS` pairs, never a row with itself.

    Parameters
    ----------
    starts : ndarray of int64, shape (fields + 1,)
        Of a ranking's users and items.
    ranks : bool
        Whether pairs are of a user and an item.
    """
    rng, rows = np.random.default_rng(0), int(starts[-1])
    if ranks:
        split = int(starts[1])
        return rng.integers(split, size=PAIRS), rng.integers(split, rows, size=PAIRS)
    first = rng.integers(rows, size=PAIRS)
    return first, (first + rng.integers(1, rows, size=PAIRS)) % rows


def measure_errors(
    table: np.ndarray, read: np.ndarray, pairs: tuple[np.ndarray, np.ndarray]
) -> dict[str, float]:
    """Errors of numbers and of inner products, and the slope of these.

    Parameters
    ----------
    table, read : ndarray of float32, shape (rows, dim)
        As trained, and as a layout has it.
    pairs : two ndarrays of int64, shape (pairs,)
    """
    wide, found = table.astype(np.float64), read.astype(np.float64)
    wanted, products = (
        np.einsum("pi,pi->p", rows[pairs[0]], rows[pairs[1]]) for rows in (wide, found)
    )
    return {
        "squared_error": float(((found - wide) ** 2).sum() / (wide**2).sum()),
        "product_error": float(((products - wanted) ** 2).sum() / (wanted**2).sum()),
        "product_slope": float((products * wanted).sum() / (wanted**2).sum()),
    }


def train_once(experiment: Experiment) -> tuple[DataTask, Fitted, float]:
    """The task that is tested, and the full table's network in it.

    A ranking is trained twice: once for the number of epochs, then on all pairs.
    """
    fitted, first = experiment.task.train_full()
    task = experiment.task.for_testing(fitted.history)
    if task is experiment.task:
        return task, fitted, first
    fitted, second = task.train_full()
    return task, fitted, first + second


def measure_rules(
    data: str, seed: int, device: str, rules: Sequence[Rule], done: set[str]
) -> Iterator[Result]:
    """A result for each rule and number of bits that is not done."""
    trial = move_trial(data, device)
    experiment = Experiment.of("full", data, seed=seed, trial=trial)
    asked = [(rule, bits) for rule in rules for bits in rule.bits]
    missing = [
        one for one in asked if key_of(note_rule(experiment, *one, {})) not in done
    ]
    if not missing:
        return
    task, fitted, seconds = train_once(experiment)
    table = fitted.network.table.weight.detach().cpu().float().numpy()
    pairs = draw_pairs(task.spec.field_starts, task.data.task == "top-n")
    command = f"python benchmarks/rounding.py --data {data} --seeds {seed}"
    for rule, bits in missing:
        options, start = rule.configure(bits, seed), time.perf_counter()
        layout = get_method(rule.method).compress(table, options, task.spec)
        spent = {"train": seconds, "compress": time.perf_counter() - start}
        errors = measure_errors(table, decode_layout(layout), pairs)
        stored = layout.nbytes + task.spec.outside_bytes
        parts = {
            "test": {**task.test(fitted.network, layout), **errors},
            "bytes": {"inference": stored},
            "reached_ratio": (task.spec.full_bytes + task.spec.outside_bytes) / stored,
            "seconds": {"search": 0.0, **spent},
        }
        made = note_rule(experiment, rule, bits, parts)
        yield replace(made, command=f"{command} --device {device}")


def move_trial(data: str, device: str) -> Trial:
    """How the records train on a data set, on a device."""
    trial = QUICK_GOWALLA if data == "gowalla" else default_trial(load(data))
    return replace(trial, settings=trial.settings.replace(device=device))


def note_rule(
    experiment: Experiment, rule: Rule, bits: int, parts: dict[str, Any]
) -> Result:
    """A result by a rule's name."""
    options = rule.configure(bits, experiment.seed)
    return note(
        rule.name, experiment.data_name, 32 / bits, experiment.seed,
        {"options": options.described(), **parts}, experiment.trial, options.asked(),
    )  # fmt: skip


def complete_asked(result: Result) -> Result:
    """A result with all that its method can be asked: what did not exist when it was
    made had its default.
    """
    methods = {rule.name: rule.method for rule in RULES}
    if result.key not in methods:
        return result
    defaults = get_method(methods[result.key]).load().options().asked()
    return replace(result, asked={**defaults, **(result.asked or {})})


def main() -> None:
    """Train, round, note and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", nargs="+", default=["synthetic"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--only", nargs="+", choices=[rule.name for rule in RULES], metavar="RULE"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    rules = [rule for rule in RULES if not given.only or rule.name in given.only]
    for data in given.data:
        for seed in given.seeds:
            held = load_results(given.out) if given.out.exists() else []
            done = {key_of(complete_asked(result)) for result in held}
            for result in measure_rules(data, seed, given.device, rules, done):
                append_result(given.out, result)
                print(describe_result(result), flush=True)


if __name__ == "__main__":
    main()
