"""One measured run, and files of them: a line of JSON each, with provenance."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from survey_code.curves import sample_deviation
from survey_code.layouts import Layout
from survey_code.layouts.files import PIECE_BYTES, lock_file, replace_file

# That are shown one by one where results are described.
MOST_COMMANDS = 8


@dataclass
class Result:
    """What `run` measured.

    Parameters
    ----------
    key : str
        The method's.
    options : dict
        What it was configured with: what was asked, the defaults then in force, and
        what a plan or a search found.
    data, model : str
    dim : int
        Dimension of the full table.
    seed : int
    requested_ratio, reached_ratio : float
        Full bytes over stored bytes: asked for, and got.
    bytes : dict
        ``"inference"`` (what `save` writes, plus the network's weights per id),
        ``"training_persistent"``, ``"training_peak"``.
    validation, test : dict
        Metrics, computed with vectors read from the frozen layout.
    seconds : dict
        ``"search"``, ``"train"``, ``"compress"``.
    lookup : dict
        ``"p50_us"`` and ``"p99_us"`` of 256 ids, on the CPU.
    settings : dict
        How the network was trained, and its layers.
    device, date, command : str
    versions : dict
    asked : dict, optional
        All options that can be asked for, the defaults then in force included, as
        they were before anything was found.  Results made before this was recorded
        have None.
    rows : dict
        Training rows seen, each as often as it was: ``"search"``, ``"train"``.
    failure : str, optional
        Why there are no metrics: the budget is out of reach, or training diverged.
    entrant : str
        As whom it competed in a contest: the key, or more.
    windows : dict of list
        Of a pass over a stream, a number for each tested window, None where there is
        none: the columns of `run_stream`, ``"window"`` among them.  Not written to
        files where it is empty, as it is in passes made before this was recorded.
    layout : Layout
        What is deployed.  Not written to files.
    """

    key: str
    options: dict[str, Any]
    data: str
    model: str
    dim: int
    seed: int
    requested_ratio: float
    reached_ratio: float
    bytes: dict[str, int]
    validation: dict[str, float]
    test: dict[str, float]
    seconds: dict[str, float]
    lookup: dict[str, float]
    settings: dict[str, Any]
    device: str
    date: str
    versions: dict[str, str]
    command: str
    asked: dict[str, Any] | None = None
    rows: dict[str, int] = field(default_factory=dict)
    failure: str | None = None
    entrant: str = ""
    windows: dict[str, list[float | None]] = field(default_factory=dict)
    layout: Layout | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> str:
        """One line of JSON with sorted keys."""
        left_out = {"layout"} if self.windows else {"layout", "windows"}
        names = [f.name for f in dataclasses.fields(self) if f.name not in left_out]
        return json.dumps({n: getattr(self, n) for n in names}, sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> Result:
        """Undo `to_json`.

        Raises
        ------
        ValueError
            If the line is not such a result.
        """
        try:
            result = cls(**json.loads(line))
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a result: {line[:80]!r} ({error})") from error
        parts = (result.options, result.settings, result.test, result.bytes)
        whole = all(isinstance(part, dict) for part in (*parts, result.asked or {}))
        if not (whole and isinstance(result.requested_ratio, int | float)):
            raise ValueError(f"not a result: {line[:80]!r}")
        return result


def append_result(path: str | os.PathLike[str], result: Result) -> None:
    """Add one result to a file of results."""
    append_line(path, result.to_json())


def replace_results(path: str | os.PathLike[str], results: Iterable[Result]) -> None:
    """Write a file of results anew: beside its place first, then renamed."""
    with replace_file(Path(path)) as file:
        file.writelines(f"{result.to_json()}\n".encode() for result in results)


def append_line(path: str | os.PathLike[str], line: str) -> None:
    """Add one line to a file and flush it to the disk.

    Half a line, which a killed process left at the end, is cut off first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        # While it is locked, half a line is none that another process is writing.
        lock_file(file.fileno(), wait=True)
        missing = mend_end(file)
        file.write(missing + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def mend_end(file: BinaryIO) -> bytes:
    """Cut off half a line at the end of a file; what a whole one lacks there."""
    start = end = file.seek(0, os.SEEK_END)
    last = b""
    while start and b"\n" not in last:
        start = max(0, start - PIECE_BYTES)
        file.seek(start)
        last = file.read(end - start)
    last = last.rpartition(b"\n")[2]
    if last and is_cut(last.decode(errors="replace")):
        file.truncate(end - len(last))
        return b""
    return b"\n" if last else b""


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise ValueError if results could not be added to a file, or the file be made."""
    place = Path(path)
    first = next(p for p in (place, *place.absolute().parents) if p.exists())
    fits = first.is_file() if first == place else first.is_dir()
    if not fits or not os.access(first, os.W_OK):
        raise ValueError(f"{path}: results cannot be written there")


def load_results(
    path: str | os.PathLike[str], keys: Collection[str] | None = None
) -> list[Result]:
    """The results of a file; a line that a crash cut short is left out.

    Parameters
    ----------
    path : path
    keys : collection of str, optional
        Only these methods' or variants' results, as `name_curve` names them.

    Raises
    ------
    ValueError
        If a line is whole, but not a result.
    """
    results = find_results(path)
    return [result for result in results if keys is None or name_curve(result) in keys]


def find_results(path: str | os.PathLike[str], key: str = "") -> list[Result]:
    """The results of a file, of those with a key at least; its other lines cost next to
    nothing, where a file is read again for each of its runs.

    Raises
    ------
    ValueError
        As `load_results`, of what is read.
    """
    # As it stands in a line, unless another program writes it otherwise.
    wanted = json.dumps(key) if key and key.isascii() else ""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a file of results ({error})") from error
    results = []
    for number, line in enumerate(lines, 1):
        if wanted in line or line[:1] != "{":
            try:
                results.append(Result.from_json(line))
            except ValueError as error:
                if not is_cut(line):
                    raise ValueError(f"{path}, line {number}: {error}") from error
    return results


def describe_results(results: Sequence[Result]) -> str:
    """Where results come from: how many, devices, seeds, dates, commands.

    Lines of a contest that say what is out of reach are no runs, and counted apart; of
    more than a few commands those that begin alike are counted, too.

    Examples
    --------
    >>> describe_results([])
    'no runs'
    """
    everything = list(results)
    results = [one for one in everything if not is_missed(one)]
    if not results:
        return "no runs"
    devices = Counter(result.device for result in results)
    named = [
        name if len(devices) == 1 else f"{count} on {name}"
        for name, count in devices.most_common()
    ]
    seeds = sorted({result.seed for result in results})
    dates = sorted({result.date for result in results})
    commands = sorted({result.command.split(" --")[0] for result in results})
    missed = len(everything) - len(results)
    parts = [
        f"{len(results)} runs: {', '.join(named)}",
        f"seeds {', '.join(map(str, seeds))}",
        " to ".join(dict.fromkeys((dates[0], dates[-1]))),
        *(commands if len(commands) <= MOST_COMMANDS else count_commands(commands)),
        *([f"{missed} more out of reach"] if missed else []),
    ]
    return "; ".join(parts)


def is_missed(result: Result) -> bool:
    """Whether a result is no run, but the note of a ratio that cannot be reached."""
    return (result.failure or "").startswith("cannot")


def count_commands(commands: Iterable[str]) -> list[str]:
    """How many commands there are by what they begin with: a call, or two words."""
    begun: dict[str, list[str]] = {}
    for command in commands:
        call, bracket, _ = command.partition("(")
        stem = f"{call}(...)" if bracket else " ".join(command.split()[:2]) + " ..."
        begun.setdefault(stem, []).append(command)
    return [
        own[0] if len(own) == 1 else f"{len(own)} commands {stem}"
        for stem, own in begun.items()
    ]


def describe_result(result: Result) -> str:
    """One line on one run."""
    if result.failure is not None:
        return f"{result.key} seed {result.seed}: {result.failure}"
    metrics = ", ".join(
        f"{name} {value:.5f}"
        for name, value in (result.test or result.validation).items()
    )
    return (
        f"{result.key} {result.model} seed {result.seed}: {metrics}, "
        f"{result.bytes['inference']:,} bytes, {result.reached_ratio:.2f}x, "
        f"{result.seconds['train']:.1f} s"
    )


def is_cut(line: str) -> bool:
    """Whether a line is the beginning of a result, or of nothing."""
    try:
        json.loads(line)
    except ValueError:
        return line[:1] in ("", "{")
    return False


def name_curve(result: Result) -> str:
    """The method or variant that a result is a point of, whatever its bits."""
    return strip_bits(result.entrant or result.key)


def strip_bits(name: str) -> str:
    """The curve that an entrant of a contest is a point of.

    Examples
    --------
    >>> strip_bits("rowwise, 4 bits"), strip_bits("rowwise, 4 bits a table")
    ('rowwise', 'rowwise, a table')
    """
    return re.sub(r",? \d+ bits( )?", lambda m: ", " if m[1] else "", name)


def group_seeds(
    results: Iterable[Result],
) -> dict[tuple[str, str, float], list[Result]]:
    """The runs that differ by their seed alone: by curve, entrant and ratio asked for.

    Failures are left out.
    """
    groups: dict[tuple[str, str, float], list[Result]] = {}
    for result in results:
        if result.failure is None:
            own = (name_curve(result), result.entrant, result.requested_ratio)
            groups.setdefault(own, []).append(result)
    return groups


def group_curves(results: Iterable[Result]) -> dict[str, list[Result]]:
    """The results of each curve, what is out of its reach among them."""
    curves: dict[str, list[Result]] = {}
    for result in results:
        curves.setdefault(name_curve(result), []).append(result)
    return curves


def summarize(results: Iterable[Result], metric: str = "auc") -> pd.DataFrame:
    """Mean and deviation over seeds, one row a method and requested ratio.

    Parameters
    ----------
    results : iterable of Result
    metric : str
        Key of `Result.test`.

    Returns
    -------
    DataFrame
        Columns ``key`` (of a contest, the method or variant), ``requested``,
        ``reached``, ``bytes``, ``mean``, ``deviation`` (of a sample, n - 1; NaN of a
        single seed), ``seeds``; in the order of the results.  Failures are left out.
    """
    rows = []
    for (key, _, requested), group in group_seeds(results).items():
        values = [result.test[metric] for result in group]
        rows.append(
            {
                "key": key,
                "requested": requested,
                "reached": float(np.mean([r.reached_ratio for r in group])),
                "bytes": round(np.mean([r.bytes["inference"] for r in group])),
                "mean": float(np.mean(values)),
                "deviation": sample_deviation(values),
                "seeds": len(values),
            }
        )
    return pd.DataFrame(rows)


def find_versions() -> dict[str, str]:
    """Versions of what a number depends on."""
    import torch

    import survey_code

    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "survey_code": survey_code.__version__,
    }


def name_device(device: str) -> str:
    """The processor or the GPU, by name."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"cpu {platform.machine()}, {torch.get_num_threads()} thread(s)"


def describe_machine(device: str) -> dict[str, Any]:
    """Where and when something is measured: device, date, versions."""
    return {
        "device": name_device(device),
        "date": datetime.date.today().isoformat(),
        "versions": find_versions(),
    }
