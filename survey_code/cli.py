"""The command line: ``survey-code methods | run | record | compress | inspect``."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DATA_NAMES = (
    "synthetic",
    "synthetic-large",
    "synthetic-stream",
    "frappe",
    "gowalla",
    "gowalla-renumbered",
    "movietweetings",
    "synthetic-interactions",
)
# What `survey-code rates` measures, and by which function of survey_code.lab.
RATES = {
    "rows": "rates.measure_rates",
    "composed": "rates.measure_composed",
    "scans": "rates.measure_scans",
    "writes": "rates.measure_writes",
    "codes": "arithmetic_rates.measure_codes",
    "gradients": "arithmetic_rates.measure_gradients",
    "generator": "arithmetic_rates.measure_generator",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    A mistake in the arguments or the input is one line on standard error and
    status 2, never a traceback.
    """
    parser = make_parser()
    given = parser.parse_args(arguments)
    words = list(sys.argv[1:] if arguments is None else arguments)
    given.words = shlex.join(["survey-code", *words])
    try:
        given.action(given)
    except BrokenPipeError:
        return 0
    except (ValueError, IndexError, OSError, RuntimeError) as error:
        print("survey-code:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


def make_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="survey-code",
        description="Embedding compression in recommender systems, executable.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("methods", help="list the catalogue")
    listing.set_defaults(action=list_methods)

    running = commands.add_parser(
        "run", help="train, freeze and evaluate a method; append to a results file"
    )
    running.add_argument("method", metavar="METHOD")
    running.add_argument("--data", default="synthetic", choices=DATA_NAMES)
    running.add_argument("--model", help="fm, deepfm, dcnv2, dlrm, mf or lightgcn")
    running.add_argument("--ratio", type=float, default=1.0)
    running.add_argument("--dim", type=int, help="dimension of the full table")
    running.add_argument("--seeds", type=int, default=1, help="runs seeds 1 to N")
    running.add_argument("--device", default="cpu")
    running.add_argument(
        "--option",
        "-o",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the method, e.g. bits=4; may be repeated",
    )
    running.add_argument(
        "--set",
        "-s",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="settings",
        help="of the training, e.g. epochs=3; may be repeated",
    )
    running.add_argument(
        "--out",
        type=Path,
        default=Path("results.jsonl"),
        help="results file; runs that it already holds are skipped",
    )
    running.set_defaults(action=run_method)

    recording = commands.add_parser(
        "record", help="make or resume one of the book's recorded results"
    )
    recording.add_argument("name", metavar="NAME")
    recording.add_argument("--device", default="cpu")
    recording.add_argument("--seed", type=int, help="make this seed's runs only")
    recording.add_argument(
        "--method", action="append", help="make this method's runs only; repeatable"
    )
    recording.add_argument(
        "--jobs", type=int, default=1, help="runs made side by side (default: 1)"
    )
    recording.add_argument("--out", type=Path, default=Path("book/results"))
    recording.set_defaults(action=record_results)

    rating = commands.add_parser(
        "rates", help="measure the GPU kernels beside the ceilings of the same run"
    )
    rating.add_argument(
        "what",
        nargs="?",
        default="rows",
        choices=list(RATES),
    )
    rating.add_argument(
        "--kind", action="append", help="of rows or composed, e.g. '4 bits'"
    )
    rating.add_argument("--seed", type=int, default=1)
    rating.add_argument("--out", type=Path, default=Path("book/results/speed"))
    rating.set_defaults(action=measure_gpu)

    compressing = commands.add_parser("compress", help="compress a table of your own")
    compressing.add_argument(
        "table", type=Path, help=".npy, or .safetensors with one 2-D tensor"
    )
    compressing.add_argument("--method", required=True)
    compressing.add_argument("--out", type=Path, required=True)
    compressing.add_argument("--tensor", help="name of the tensor in the file")
    compressing.add_argument(
        "--option", "-o", action="append", default=[], metavar="NAME=VALUE"
    )
    compressing.set_defaults(action=compress_table)

    inspecting = commands.add_parser("inspect", help="say what a file holds")
    inspecting.add_argument("file", type=Path)
    inspecting.set_defaults(action=inspect_file)
    return parser  # fmt: skip


def list_methods(given: argparse.Namespace) -> None:
    """Print the catalogue."""
    from survey_code.catalog import methods

    rows = [("key", "family", "stage", "year", "title")]
    rows += [
        (m.key, m.family, ", ".join(m.stages), str(m.year), m.title) for m in methods()
    ]
    widths = [max(len(row[k]) for row in rows) for k in range(5)]
    for row in rows:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip())


def run_method(given: argparse.Namespace) -> None:
    """Run a method for each seed, append the results, print mean and deviation."""
    from survey_code.lab import summarize
    from survey_code.lab.runs import run_once

    if given.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {given.seeds}")
    results = []
    for seed in range(1, given.seeds + 1):
        result = run_once(
            given.out, given.method, given.data, given.ratio, seed,
            model=given.model, dim=given.dim, device=given.device,
            command=f"{given.words}  # seed {seed}",
            settings=parse_options(given.settings), **parse_options(given.option),
        )  # fmt: skip
        results.append(result)
        print(describe_result(result))
    metric = next(iter(results[0].test))
    row = summarize(results, metric).iloc[0]
    print(
        f"test {metric}: mean {row['mean']:.5f}, deviation {row['deviation']:.5f}, "
        f"{row['seeds']} seed(s); {given.out}"
    )


def record_results(given: argparse.Namespace) -> None:
    """Make one of the book's recorded results, from where it was left."""
    from survey_code.lab import record

    made = record(
        given.name, given.out, given.device, given.seed, given.method, given.jobs
    )
    for result in made:
        print(describe_result(result), flush=True)


def measure_gpu(given: argparse.Namespace) -> None:
    """Measure reading, searching or writing on the GPU, a line of evidence each."""
    from survey_code.lab.results import append_line

    command = f"survey-code rates {given.what} --seed {given.seed}"
    options: dict[str, Any] = {"seed": given.seed, "command": command}
    if given.kind:
        if given.what not in ("rows", "composed"):
            raise ValueError(f"--kind is of rows and composed, not of {given.what}")
        options["kinds"] = tuple(given.kind)
    module, name = RATES[given.what].split(".")
    measure = getattr(importlib.import_module(f"survey_code.lab.{module}"), name)
    for line in measure(**options):
        append_line(given.out / f"{given.what}.jsonl", json.dumps(line, sort_keys=True))
        print(describe_rate(line), flush=True)


def describe_rate(line: dict[str, Any]) -> str:
    """One line on one measured rate."""
    if "per_s" in line:
        rate = line["per_s"] / 1e9
        return f"{line['kind']:12} {line['what']:20} {rate:9.4f} billion/s"
    if "queries" in line:
        return (
            f"{line['queries']:>5,} queries: {line['codes_per_s'] / 1e9:7.1f} "
            "billion codes/s"
        )
    size = f" {line['bags']:>9,} x {line['length']:<2}" if "bags" in line else ""
    rate = line["rows_per_s"] / 1e9
    return f"{line['kind']:8} {line['what']:6}{size} {rate:6.2f} billion rows/s"


def describe_result(result: Any) -> str:
    """One line on one run."""
    metrics = ", ".join(f"{name} {value:.5f}" for name, value in result.test.items())
    return (
        f"{result.key} {result.model} seed {result.seed}: {metrics}, "
        f"{result.bytes['inference']:,} bytes, {result.reached_ratio:.2f}x, "
        f"{result.seconds['train']:.1f} s"
    )


def compress_table(given: argparse.Namespace) -> None:
    """Compress a table from a file into a file."""
    from survey_code.catalog import compress

    table = read_table(given.table, given.tensor)
    layout = compress(table, given.method, **parse_options(given.option))
    layout.save(given.out)
    print(f"{given.out}: {layout!r}")


def read_table(path: Path, name: str | None = None) -> Any:
    """A 2-D array from a .npy or .safetensors file.

    Raises
    ------
    ValueError
        If the file is neither, or it is not clear which tensor is meant.
    """
    import numpy as np

    if path.suffix == ".npy":
        try:
            return np.load(path, allow_pickle=False)
        except (EOFError, ValueError) as error:
            raise ValueError(f"{path}: not a .npy array ({error})") from error
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: a table is a .npy or a .safetensors file")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: {error}") from error
    candidates = sorted(key for key, t in tensors.items() if t.ndim == 2)
    if name is None and len(candidates) == 1:
        name = candidates[0]
    if name not in tensors:
        raise ValueError(f"{path}: name one tensor with --tensor, from {candidates}")
    return tensors[name]


def inspect_file(given: argparse.Namespace) -> None:
    """Print layout, shape, bytes and arrays of a file."""
    from survey_code.layouts import header_bytes, load_layout

    layout = load_layout(given.file)
    full = 4 * layout.num_embeddings * layout.embedding_dim
    print(f"layout      {layout.name}, version {layout.version}")
    print(f"table       {layout.num_embeddings} x {layout.embedding_dim} float32")
    print(f"bytes       {layout.nbytes:,} of {full:,} ({full / layout.nbytes:.2f}x)")
    print(f"header      {header_bytes(given.file):,} bytes")
    for name, array in sorted(layout.arrays().items()):
        print(f"array       {name}: {array.dtype} {tuple(array.shape)}")


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """``["bits=4", "combine=sum"]`` -> ``{"bits": 4, "combine": "sum"}``."""
    options = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"an option is NAME=VALUE, got {pair!r}")
        try:
            options[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[name] = text
    return options


if __name__ == "__main__":
    sys.exit(main())
