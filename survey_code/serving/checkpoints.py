"""The embedding tables of a checkpoint, compressed within one budget: a file each.

Unless someone names them, tables are the weights of modules that are named after
embeddings: 2-D, of floating-point numbers, and called ``user_emb.weight``,
``embeddings.3.weight`` or the like.  Each becomes a file of its layout; one that stays
as it is, a file of its own numbers (of float64, in float32).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from survey_code.catalog import get_method
from survey_code.checks import check_range
from survey_code.layouts.files import open_regular, write_atomically
from survey_code.options import as_plain
from survey_code.serving.many_tables import (
    MEASURED_ROWS,
    USUAL_FORMS,
    BudgetReport,
    Counts,
    Form,
    HeldTable,
    Named,
    compress_tables,
)
from survey_code.serving.models import locate
from survey_code.serving.tables import list_tensors, read_torch

# The weight of a module that is named after embeddings, or whose list or dictionary is:
# ``user_emb.weight``, ``emb_l.3.weight``, ``embedding_bags.item.weight``.
LIKE_TABLES = re.compile(
    r"(^|\.)((\w*embed\w*|(\w+_)?embs?(_\w+)?)(\.\d+)?|embedding_bags\.[^.]+)\.weight$",
    re.IGNORECASE,
)
# Beside the layouts' files.
REPORT_NAME = "report.json"


def compress_checkpoint(
    checkpoint: str | os.PathLike[str] | Mapping[str, object],
    budget_bytes: float | None = None,
    methods: Sequence[Named] = USUAL_FORMS,
    *,
    out: str | os.PathLike[str],
    names: Sequence[str] | None = None,
    ratio: float | None = None,
    counts: Counts | None = None,
    least_rows: int = 1,
    sample: int = MEASURED_ROWS,
    progress: bool = False,
    task: str = "ctr",
) -> BudgetReport:
    """Compress all embedding tables of a checkpoint within one budget.

    Parameters
    ----------
    checkpoint : path or dict of Tensor
        A ``state_dict``, or a file of one: .pt or .pth (only tensors are read, never
        code) or .safetensors.  Names within names are joined by dots.
    out : path
        Folder for ``NAME.safetensors`` of each table and, written last,
        ``report.json``; it is made if need be.
    names : sequence of str, optional
        The tensors that are tables.
    budget_bytes, methods, ratio, counts, least_rows, sample, progress, task
        As for `compress_model`, whose errors these are too; counts go by the tensors'
        names.

    Raises
    ------
    ValueError
        Also if the file is no such checkpoint, or a name is no table in it.
    OSError
        If it cannot be read, or nothing can be written.
    """
    least = check_range("least_rows", least_rows, 1)
    held = choose_tensors(read_checkpoint(checkpoint), names, least)
    folder = check_folder(Path(out))
    report = compress_tables(
        held, budget_bytes, ratio, methods, counts, sample, progress, task
    )
    folder.mkdir(exist_ok=True)
    save_report(report, folder)
    return report


def check_folder(folder: Path) -> Path:
    """A folder to write into, or one that can be made: asked before the work."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: not a folder to write into")
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"{folder.parent}: no such folder to make another in")
    return folder


def read_checkpoint(
    checkpoint: str | os.PathLike[str] | Mapping[str, object],
) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name."""
    if isinstance(checkpoint, Mapping):
        return dict(list_tensors(checkpoint, ""))
    if not isinstance(checkpoint, str | os.PathLike):
        raise ValueError(
            f"a checkpoint is a file or a state_dict, got {type(checkpoint).__name__}"
        )
    path = Path(checkpoint)
    if path.suffix not in (".pt", ".pth", ".safetensors"):
        raise ValueError(
            f"{path}: a checkpoint is a file that ends in .pt, .pth or .safetensors"
        )
    with open_regular(path):  # whether it is there, a file, and may be read
        pass
    if path.suffix != ".safetensors":
        return dict(list_tensors(read_torch(path), ""))
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a file of tensors ({error})") from error


def choose_tensors(
    tensors: Mapping[str, Tensor], names: Sequence[str] | None, least_rows: int
) -> list[HeldTable]:
    """The tables among tensors: those named, or those that look like tables.

    Tensors over the same numbers are one table; one that also goes by a name which is
    no table's is needed as a whole, and stays as it is.
    """
    able = {name: tensor for name, tensor in tensors.items() if is_matrix(tensor)}
    if isinstance(names, str):
        raise ValueError(f"names must be a sequence of names, got {names!r}")
    chosen = [name for name in able if LIKE_TABLES.search(name)]
    if names is not None:
        chosen = list(dict.fromkeys(names))
    wrong = [name for name in chosen if name not in able]
    if wrong or not chosen:
        what = f"{wrong[0]!r} is no table" if wrong else "no tensor is named as a table"
        raise ValueError(
            f"{what}: name some of the 2-D tensors of floating-point numbers, which "
            f"are {', '.join(able) or 'none'}"
        )
    tables: dict[Hashable, HeldTable] = {}
    for name in chosen:
        table = HeldTable([], able[name], own=keep_numbers(able[name]))
        if len(table.weight) < least_rows:
            table.reason = f"it has fewer than {least_rows} rows"
        tables.setdefault(locate(able[name]), table).names.append(name)
    for name in able.keys() - set(chosen):
        if tied := tables.get(locate(able[name])):
            tied.reason = f"tied to {name}, which is no table"
    return list(tables.values())


def is_matrix(tensor: Tensor) -> bool:
    """Whether a tensor can be a table."""
    return tensor.ndim == 2 and tensor.numel() > 0 and tensor.is_floating_point()


def keep_numbers(weight: Tensor) -> Form:
    """The form that holds a table's own numbers."""
    kind = str(weight.dtype).removeprefix("torch.")
    short = kind in ("float16", "bfloat16")
    method = get_method("half" if short else "full")
    return Form(method, method.ask({"dtype": kind} if short else {}))


def save_report(report: BudgetReport, folder: Path) -> None:
    """Write the layouts' files, and then what they are."""
    tables = []
    hidden = {"layout", "names"}
    for line in report.lines:
        assert line.layout is not None
        file = quote(line.name, safe="") + ".safetensors"
        line.layout.save(folder / file)
        said = {name: part for name, part in vars(line).items() if name not in hidden}
        tables.append({"file": file, "names": list(line.names), **said})
    whole = {
        "budget": report.budget, "before": report.before, "after": report.after,
        "error": report.error, "tables": tables,
    }  # fmt: skip
    text = json.dumps(as_plain(whole), indent=1)
    write_atomically(folder / REPORT_NAME, [text.encode()])
