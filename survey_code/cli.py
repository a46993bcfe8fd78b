"""The command line: ``survey-code`` and a command.

``methods``, ``advise``, ``run``, ``card``, ``compress``, ``compress-model``,
``inspect``, ``export`` and ``convert``.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Other modules are imported where they are used: their imports take time, in which a
# user may press Ctrl-C.
if TYPE_CHECKING:
    from survey_code.catalog import Method
    from survey_code.options import Options

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DATA_NAMES = (
    "synthetic",
    "synthetic-large",
    "synthetic-content",
    "synthetic-stream",
    "synthetic-seasons",
    "frappe",
    "gowalla",
    "gowalla-renumbered",
    "movietweetings",
    "movietweetings-pairs",
    "synthetic-interactions",
)


# What a shell expects of a program that Ctrl-C has ended: 128 and the signal's number.
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    A mistake in the arguments or the input is one line on standard error and
    status 2, Ctrl-C one line and status 130; never a traceback.
    """
    try:
        act(arguments)
    except KeyboardInterrupt:
        return complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Who reads has enough, `head` say; nothing more can be written at the end.
        forget_output()
        return 0
    except (ValueError, IndexError, OSError, RuntimeError) as error:
        return complain(str(error) or type(error).__name__)
    except MemoryError as error:
        return complain(f"not enough memory ({error})")
    except ImportError as error:
        return complain(f"a package is missing: {error}")
    except Exception as error:
        return complain(f"an error of its own, {type(error).__name__}: {error}")
    return 0


def act(arguments: Sequence[str] | None) -> None:
    """Read the words, load the plug-ins, run the command, write all that it said."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Names of files need not be text that can be written.
            stream.reconfigure(errors="backslashreplace")
    given = make_parser().parse_args(arguments)
    words = list(sys.argv[1:] if arguments is None else arguments)
    given.words = shlex.join(["survey-code", *words])
    if getattr(given, "plugin", []):
        from survey_code.catalog import load_plugin

        for path in given.plugin:
            load_plugin(path)
    given.action(given)
    if sys.stdout is not None:
        sys.stdout.flush()  # a full disk is an error now, not after the last line


def complain(what: str, status: int = 2) -> int:
    """Say in one line on standard error what is wrong."""
    print("survey-code:", " ".join(what.split()), file=sys.stderr)
    return status


def forget_output() -> None:
    """Let what is still to be written to standard output go nowhere."""
    try:
        place = sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, place)
    os.close(nowhere)


def make_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="survey-code",
        description="Embedding compression in recommender systems, executable.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for describe in (
        parse_methods,
        parse_advise,
        parse_run,
        parse_card,
        parse_compress,
        parse_compress_model,
        parse_inspect,
        parse_export,
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


def parse_advise(commands: Commands) -> None:
    """``advise ROWS DIM ...``."""
    advising = commands.add_parser(
        "advise",
        help="say which methods to take, by the book's records",
        description="Read the contests of the book at the ratio asked for, and say "
        "which methods to take, why, and how far the evidence is from your case. "
        "Nothing is advised that breaks a limit whose cost was measured.",
    )
    advising.add_argument("rows", type=int, metavar="ROWS")
    advising.add_argument("dim", type=int, metavar="DIM")
    size = advising.add_mutually_exclusive_group(required=True)
    size.add_argument("--budget", help="bytes of the table, such as 2GB or 64MiB")
    size.add_argument("--ratio", type=float, help="bytes before to bytes after")
    add_task(advising)
    advising.add_argument(
        "--trained", action="store_true", help="the table is trained already"
    )
    advising.add_argument(
        "--training-bytes", metavar="SIZE", help="what training may take, such as 8GB"
    )
    advising.add_argument(
        "--latency-us", type=float, metavar="US", help="p99 of looking up 256 ids"
    )
    advising.add_argument("--device", default="cpu", help="of look-ups: cpu or cuda")
    advising.add_argument(
        "--stream", action="store_true", help="training goes on, window after window"
    )
    advising.add_argument(
        "--unseen", action="store_true", help="ids are read that training never saw"
    )
    advising.add_argument(
        "--field-rows", metavar="N,N,...", help="rows of each field, ROWS together"
    )
    advising.add_argument("--json", action="store_true", help="print JSON")
    advising.set_defaults(action=advise_table)


def add_task(parser: argparse.ArgumentParser) -> None:
    """``--task``."""
    parser.add_argument(
        "--task", help="ctr or top-n, whose records are read (default: ctr)"
    )


def choose_task(given: argparse.Namespace) -> str:
    """The task that was named, or the usual one, which is then said."""
    if given.task is None:
        print("survey-code: no --task: going by the records of ctr", file=sys.stderr)
    return given.task or "ctr"


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


def parse_card(commands: Commands) -> None:
    """``card --plugin FILE``."""
    carding = commands.add_parser(
        "card",
        help="tune a method of yours, and place it among the book's",
        description="Put the methods of a plug-in through contests of the book: the "
        "same trials, ratios and seeds as everyone had. Writes OUT/KEY.html, with its "
        "points among the recorded ones, its rank, bytes, costs and checks. A command "
        "that was interrupted goes on where it stopped when it is given again.",
    )
    carding.add_argument("--method", metavar="KEY", help="of several, this one only")
    carding.add_argument(
        "--contest",
        action="append",
        metavar="NAME",
        help="may be repeated (default: synthetic and frappe; its data must be there)",
    )
    carding.add_argument(
        "--rival",
        action="append",
        default=[],
        metavar="NAME",
        help="one of the contest, to be tuned and run beside it; may be repeated",
    )
    carding.add_argument("--device", default="cpu")
    carding.add_argument(
        "--jobs", type=int, default=1, help="runs made side by side (default: 1)"
    )
    carding.add_argument(
        "--out", type=Path, default=Path("cards"), metavar="FOLDER", help="(cards)"
    )
    add_plugin(carding)
    carding.set_defaults(action=write_cards)


def parse_compress(commands: Commands) -> None:
    """``compress TABLE ...``."""
    compressing = commands.add_parser("compress", help="compress a table of your own")
    compressing.add_argument(
        "table",
        type=Path,
        help=".npy, or .npz, .safetensors or .pt with one 2-D tensor (of a .pt only "
        "tensors are read, never code); it may be larger than memory",
    )
    compressing.add_argument(
        "--method", required=True, help="a key, or auto: what advise takes"
    )
    compressing.add_argument(
        "--ratio", type=float, help="of --method auto: bytes before to bytes after"
    )
    add_task(compressing)
    compressing.add_argument("--out", type=Path, required=True)
    compressing.add_argument("--tensor", help="name of the tensor in the file")
    add_words(compressing, "--option", "-o", "of the method, e.g. bits=4")
    compressing.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="draw how the rows' errors are distributed, as .png or .svg",
    )
    add_plugin(compressing)
    compressing.set_defaults(action=compress_table)


def parse_compress_model(commands: Commands) -> None:
    """``compress-model CHECKPOINT ...``."""
    compressing = commands.add_parser(
        "compress-model", help="compress all tables of a checkpoint within one budget"
    )
    compressing.add_argument(
        "checkpoint",
        type=Path,
        help=".pt or .safetensors (of a .pt only tensors are read, never code)",
    )
    size = compressing.add_mutually_exclusive_group(required=True)
    size.add_argument("--budget", help="of all tables, such as 100MB or 64MiB")
    size.add_argument(
        "--ratio", type=float, help="bytes of all tables, before to after"
    )
    compressing.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    compressing.add_argument(
        "--tensor",
        action="append",
        metavar="NAME",
        help="a table; may be repeated; otherwise what is named after embeddings",
    )
    compressing.add_argument(
        "--method", choices=("auto",), help="try what advise takes, not the usual forms"
    )
    add_task(compressing)
    compressing.set_defaults(action=compress_tensors)


def parse_inspect(commands: Commands) -> None:
    """``inspect FILE``."""
    inspecting = commands.add_parser("inspect", help="say what a file holds")
    inspecting.add_argument("file", type=Path)
    inspecting.set_defaults(action=inspect_file)


def parse_export(commands: Commands) -> None:
    """``export FILE --to TARGET``."""
    exporting = commands.add_parser(
        "export",
        help="write a layout as ONNX, or as rows for FBGEMM",
        description="Write a file of `survey-code compress` as other programs read "
        "it. onnx: a graph of standard nodes, opset 18, from ids (int64, any number of "
        "them) to rows (float32); it has the file's arrays as they are. fbgemm: the "
        "rows of an inference table, in a safetensors file with the one tensor "
        "`weights`; row-wise and dense layouts only, scales and biases in float16.",
    )
    exporting.add_argument("file", type=Path)
    exporting.add_argument(
        "--to",
        required=True,
        metavar="TARGET",
        help="a file that ends in .onnx; or onnx or fbgemm, and the file after --out",
    )
    exporting.add_argument("--out", type=Path, help="the file, where --to names none")
    exporting.add_argument(
        "--row-alignment",
        type=int,
        choices=(16, 1),
        help="fbgemm: what the bytes of a row are a multiple of, 16 (as on a GPU, the "
        "default) or 1 (as on a processor)",
    )
    exporting.set_defaults(action=export_layout)


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
    from survey_code.catalog import get_method, methods

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


def advise_table(given: argparse.Namespace) -> None:
    """Print what to take for a table."""
    from survey_code.advice.advise import advise
    from survey_code.checks import check_number

    if given.budget is not None:
        budget = float(parse_size(given.budget))
    else:
        budget = 4 * given.rows * given.dim / check_number("--ratio", given.ratio, 1)
    training = given.training_bytes
    advice = advise(
        given.rows,
        given.dim,
        budget_bytes=budget,
        task=choose_task(given),
        trained=given.trained,
        training_bytes=None if training is None else parse_size(training),
        latency_us=given.latency_us,
        device=given.device,
        stream=given.stream,
        unseen=given.unseen,
        field_starts=read_fields(given.field_rows),
    )
    print(advice.to_json() if given.json else advice)


def read_fields(told: str | None) -> list[int] | None:
    """First id of each field, from the fields' rows with commas between."""
    if told is None:
        return None
    try:
        return [0, *itertools.accumulate(map(int, told.split(",")))]
    except ValueError:
        raise ValueError(
            f"--field-rows must be numbers with commas between, got {told!r}"
        ) from None


def run_method(given: argparse.Namespace) -> None:
    """Run a method for each seed, print mean and deviation; add to a file if asked."""
    from survey_code.catalog import get_method
    from survey_code.lab.experiment import run, run_once
    from survey_code.lab.results import describe_result, summarize
    from survey_code.training import TrainingSettings

    if given.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {given.seeds}")
    for path in given.plugin:
        if given.out and given.out.exists() and given.out.samefile(path):
            raise ValueError(f"{given.out}: is read from, and would be written to")
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


def write_cards(given: argparse.Namespace) -> None:
    """Make the card of each method that was named, a line for each run."""
    from survey_code.lab.newcomer import USUAL_CONTESTS, make_card

    for key in name_newcomers(given):
        card = make_card(
            key,
            given.contest or USUAL_CONTESTS,
            given.out,
            rivals=given.rival,
            device=given.device,
            jobs=given.jobs,
            command=given.words,
            tell=lambda line: print(line, flush=True),
        )
        failed = [entry.contest for entry in card.entries if entry.failed]
        print(f"{card.page}: the card of {key}")
        if failed:
            raise RuntimeError(
                f"not all runs of {' and '.join(failed)} could be made; {card.page} "
                "says why, and the same command tries them again"
            )


def name_newcomers(given: argparse.Namespace) -> list[str]:
    """The keys of the plug-ins' methods, or the one that was named."""
    from survey_code.catalog import load_plugin

    keys = [method.key for path in given.plugin for method in load_plugin(path)]
    if not keys and given.method is None:
        raise ValueError("a card is of a method of yours: --plugin names its file")
    if given.method is None:
        return list(dict.fromkeys(keys))
    if keys and given.method not in keys:
        files = ", ".join(map(str, given.plugin))
        raise ValueError(
            f"--method {given.method} is not in {files}, which defines "
            f"{', '.join(keys)}"
        )
    return [given.method]


def compress_table(given: argparse.Namespace) -> None:
    """Compress a table from a file into a file, and say what came of it."""
    from survey_code.catalog import get_method
    from survey_code.serving.streaming import check_picture, compress_file
    from survey_code.serving.tables import check_output

    # Before the work, not after it.
    check_output(given.out, [given.table, *given.plugin])
    if given.picture is not None:
        check_picture(given.picture)
        check_output(given.picture, [given.table, given.out, *given.plugin])
    if given.method == "auto":
        method, asked = choose_for_file(given)
    else:
        if given.ratio is not None or given.task is not None:
            raise ValueError("--ratio and --task are of --method auto")
        method, asked = given.method, parse_options(given)
        get_method(method).ask(asked)
    report = compress_file(given.table, method, given.out, tensor=given.tensor, **asked)
    print(report)
    if given.picture is not None:
        report.draw(given.picture)


def choose_for_file(given: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The method that the records speak for, and its options; which is said."""
    from survey_code.advice.automatic import choose_method, explain
    from survey_code.serving.tables import open_table

    if given.ratio is None or given.option:
        raise ValueError("--method auto takes --ratio, and no --option")
    shape = open_table(given.table, given.tensor).shape
    choice = choose_method(*shape, given.ratio, choose_task(given))
    print(f"survey-code: auto takes {explain(choice)}", file=sys.stderr)
    return choice.key, choice.options


def compress_tensors(given: argparse.Namespace) -> None:
    """Compress the tables of a checkpoint into a folder."""
    from survey_code.serving.checkpoints import compress_checkpoint
    from survey_code.serving.many_tables import USUAL_FORMS

    if given.method is None and given.task is not None:
        raise ValueError("--task is of --method auto")
    budget = None if given.budget is None else parse_size(given.budget)
    report = compress_checkpoint(
        given.checkpoint,
        budget,
        given.method or USUAL_FORMS,
        out=given.out,
        names=given.tensor,
        ratio=given.ratio,
        progress=sys.stderr.isatty(),
        task="ctr" if given.method is None else choose_task(given),
    )
    for why in report.chosen:
        print(f"survey-code: auto tries {why}", file=sys.stderr)
    print(report)


def parse_size(words: str) -> int:
    """Bytes in words.

    Examples
    --------
    >>> parse_size("1.5MB"), parse_size("64 KiB"), parse_size("300")
    (1500000, 65536, 300)
    """
    found = re.fullmatch(r"(\d+\.?\d*) *(?:([kmgt]?)(i?)b)?", words.strip().lower())
    if found is None:
        raise ValueError(f"a size is a number and a unit, like 100MB, got {words!r}")
    number, unit, binary = found.groups()
    base = 1024 if binary else 1000
    return int(float(number) * base ** " kmgt".index(unit or " "))


def inspect_file(given: argparse.Namespace) -> None:
    """Print layout, shape, bytes and arrays of a file."""
    from survey_code.layouts import header_bytes
    from survey_code.layouts.files import inspect_arrays

    said, arrays = inspect_arrays(given.file)
    rows, dim = said["shape"]["num_embeddings"], said["shape"]["embedding_dim"]
    full, stored = 4 * rows * dim, sum(array.nbytes for array in arrays)
    print(f"layout      {said['layout']}, version {said['version']}")
    print(f"table       {rows} x {dim} float32")
    print(f"bytes       {stored:,} of {full:,} ({full / stored:.2f}x)")
    print(f"header      {header_bytes(given.file):,} bytes")
    for array in arrays:
        print(f"array       {array.name}: {array.kind} {array.shape}")


def export_layout(given: argparse.Namespace) -> None:
    """Write a layout as another program reads it."""
    from survey_code.layouts import load_layout
    from survey_code.serving.tables import check_output

    format, out = choose_target(given.to, given.out)
    if format == "onnx" and given.row_alignment is not None:
        raise ValueError("--row-alignment is of --to fbgemm")
    check_output(out, [given.file])
    layout = load_layout(given.file)
    if format == "onnx":
        from survey_code.serving.onnx import export_onnx

        written = export_onnx(layout, out)
    else:
        from survey_code.serving.fbgemm import export_fbgemm

        written = export_fbgemm(layout, out, given.row_alignment or 16)
    rows, dim = layout.num_embeddings, layout.embedding_dim
    print(f"{out}: {format}, {rows} x {dim}, {written:,} bytes")


def choose_target(target: str, out: Path | None) -> tuple[str, Path]:
    """The format and the file that ``--to`` and ``--out`` name.

    Raises
    ------
    ValueError
        Unless one of them names a file, and `target` a format.
    """
    if target in ("onnx", "fbgemm"):
        if out is None:
            raise ValueError(f"--to {target} needs --out and a file")
        return target, out
    if not target.endswith(".onnx"):
        raise ValueError(
            "--to names a file that ends in .onnx, or a format, onnx or fbgemm, with "
            f"--out, got {target!r}"
        )
    if out is not None:
        raise ValueError(f"--to {target} and --out {out} both name a file")
    return "onnx", Path(target)


def convert_layout(given: argparse.Namespace) -> None:
    """Write a file of the first format anew, in today's."""
    from survey_code.layouts.first_format import convert_file

    print(f"{given.new}: {convert_file(given.old, given.new)!r}")


def parse_options(given: argparse.Namespace) -> dict[str, object]:
    """The method's options, of their own types: ``symmetric=false`` is False."""
    from survey_code.catalog import get_method

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
