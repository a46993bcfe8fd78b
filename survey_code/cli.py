"""The command line: ``survey-code methods | run | compress | inspect | convert``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from survey_code.catalog import Method, get_method, load_plugin, methods
from survey_code.options import Options

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

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
        for path in getattr(given, "plugin", []):
            load_plugin(path)
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
    for describe in (
        parse_methods,
        parse_run,
        parse_compress,
        parse_inspect,
        parse_convert,
    ):
        describe(commands)
    return parser


def parse_methods(commands: Commands) -> None:
    """``methods [KEY]``."""
    listing = commands.add_parser("methods", help="list the catalogue, or a method")
    listing.add_argument(
        "method", nargs="?", metavar="METHOD", help="show its options instead"
    )
    add_plugin(listing)
    listing.set_defaults(action=list_methods)


def parse_run(commands: Commands) -> None:
    """``run METHOD ...``."""
    running = commands.add_parser("run", help="train, freeze and evaluate a method")
    running.add_argument("method", metavar="METHOD")
    running.add_argument("--data", default="synthetic", choices=DATA_NAMES)
    running.add_argument("--model", help="fm, deepfm, dcnv2, dlrm, mf or lightgcn")
    running.add_argument("--ratio", type=float, default=1.0)
    running.add_argument("--dim", type=int, help="dimension of the full table")
    running.add_argument("--seeds", type=int, default=1, help="runs seeds 1 to N")
    running.add_argument("--device", default="cpu")
    add_words(running, "--option", "-o", "of the method, e.g. bits=4")
    add_words(running, "--set", "-s", "of the training, e.g. epochs=3")
    running.add_argument(
        "--out",
        type=Path,
        help="results file to add to; runs that it holds are skipped",
    )
    add_plugin(running)
    running.set_defaults(action=run_method)


def parse_compress(commands: Commands) -> None:
    """``compress TABLE ...``."""
    compressing = commands.add_parser("compress", help="compress a table of your own")
    compressing.add_argument(
        "table", type=Path, help=".npy, or .safetensors with one 2-D tensor"
    )
    compressing.add_argument("--method", required=True)
    compressing.add_argument("--out", type=Path, required=True)
    compressing.add_argument("--tensor", help="name of the tensor in the file")
    add_words(compressing, "--option", "-o", "of the method, e.g. bits=4")
    add_plugin(compressing)
    compressing.set_defaults(action=compress_table)


def parse_inspect(commands: Commands) -> None:
    """``inspect FILE``."""
    inspecting = commands.add_parser("inspect", help="say what a file holds")
    inspecting.add_argument("file", type=Path)
    inspecting.set_defaults(action=inspect_file)


def parse_convert(commands: Commands) -> None:
    """``convert OLD NEW``."""
    converting = commands.add_parser(
        "convert", help="rewrite a file of version 0.1.0, which is read no longer"
    )
    converting.add_argument("old", type=Path, metavar="OLD")
    converting.add_argument(
        "new",
        type=Path,
        metavar="NEW",
        help="may be OLD: what is there is replaced at once, when all is written",
    )
    converting.set_defaults(action=convert_layout)


def add_words(parser: argparse.ArgumentParser, *names: str) -> None:
    """An argument NAME=VALUE that may be repeated; the last of `names` is its help."""
    *flags, words = names
    parser.add_argument(
        *flags, action="append", default=[], metavar="NAME=VALUE",
        help=f"{words}; may be repeated",
    )  # fmt: skip


def add_plugin(parser: argparse.ArgumentParser) -> None:
    """``--plugin FILE``."""
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="a Python file that defines methods; may be repeated",
    )


def list_methods(given: argparse.Namespace) -> None:
    """Print the catalogue, or the options of a method."""
    if given.method is not None:
        return describe_method(get_method(given.method))
    print_table(
        ("key", "family", "stage", "year", "title"),
        [(m.key, m.family, ", ".join(m.stages), m.year, m.title) for m in methods()],
    )


def describe_method(method: Method) -> None:
    """Print what a method is, and its options, one a line."""
    print(
        f"{method.title} ({method.citation}): {method.family}, "
        f"{' or '.join(method.stages)}"
    )
    options = method.load().options.describe()
    if options:
        print_table(("option", "type", "default", "allowed", "what"), options)


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows in columns."""
    lines = [[*map(str, row)] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip())


def run_method(given: argparse.Namespace) -> None:
    """Run a method for each seed, print mean and deviation; add to a file if asked."""
    from survey_code.lab.experiment import run, run_once
    from survey_code.lab.results import describe_result, summarize
    from survey_code.training import TrainingSettings

    if given.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {given.seeds}")
    arguments: dict[str, Any] = {
        "model": given.model,
        "dim": given.dim,
        "device": given.device,
        "settings": TrainingSettings.parse(split_words(given.set)),
        **get_method(given.method).ask(parse_options(given)).given(),
    }
    results = []
    for seed in range(1, given.seeds + 1):
        asked: Any = (given.method, given.data, given.ratio, seed)
        arguments["command"] = f"{given.words}  # seed {seed}"
        results.append(
            run_once(given.out, *asked, **arguments)
            if given.out
            else run(*asked, **arguments)
        )
        print(describe_result(results[-1]))
    metric = next(iter(results[0].test))
    row = summarize(results, metric).iloc[0]
    where = f"; {given.out}" if given.out else ""
    print(
        f"test {metric}: mean {row['mean']:.5f}, deviation {row['deviation']:.5f}, "
        f"{row['seeds']} seed(s){where}"
    )


def compress_table(given: argparse.Namespace) -> None:
    """Compress a table from a file into a file."""
    method = get_method(given.method)
    asked = method.ask(parse_options(given))
    layout = method.compress(read_table(given.table, given.tensor), asked)
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


def convert_layout(given: argparse.Namespace) -> None:
    """Write a file of the first format anew, in today's."""
    from survey_code.layouts.first_format import convert_file

    print(f"{given.new}: {convert_file(given.old, given.new)!r}")


def parse_options(given: argparse.Namespace) -> dict[str, object]:
    """The method's options, of their own types: ``symmetric=false`` is False."""
    kind: type[Options] = get_method(given.method).load().options
    return kind.parse(split_words(given.option))


def split_words(pairs: Sequence[str]) -> dict[str, str]:
    """``["bits=4", "a=b=c"]`` -> ``{"bits": "4", "a": "b=c"}``."""
    words = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"an option is NAME=VALUE, got {pair!r}")
        words[name] = text
    return words


if __name__ == "__main__":
    sys.exit(main())
