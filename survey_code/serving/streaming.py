"""Tables larger than memory: a file compressed into a file, some rows at a time.

The new file is, byte for byte, what ``compress(...).save(out)`` writes of the same
table, also where k-means sees a sample: it draws the same one.

Memory grows by less than 256 MB, beside counts that are given and that sample (`sample`
rows for each codeword, 65,536 of them unless asked for others), for the methods
``full``, ``half``, ``rowwise``, ``greedy``, ``magnitude``, ``bccf`` with
``rule="sign"``, ``pq``, and ``clustering`` without heads in one field.  All others, and
tables in .npz files and in column order, are read into memory as a whole.

Arrays are written where they will stand, into a part file beside the target,
``.survey_code-*.part``; then their SHA-256 is put into the header, and the part takes
the target's place.  What a killed run leaves is removed by the next one that writes
into the folder.  It is not resumed: what was found about all rows would have to be kept
with it, and reading them is most of the work.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from survey_code.catalog import AFTER, Method, get_method
from survey_code.layouts import load_layout
from survey_code.layouts.files import (
    Stretch,
    check_blueprint,
    hash_file,
    make_header,
    place_arrays,
    replace_file,
    split_bytes,
    write_atomically,
)
from survey_code.options import Options
from survey_code.serving.pieces import Piece, Pieces, describe_whole, plan_pieces
from survey_code.serving.tables import Table, check_output, open_table
from survey_code.spec import TableSpec

# Rows whose errors are measured, and numbers of all of them, at most.
MEASURED_ROWS, MEASURED_NUMBERS = 1000, 2**22
# Rows that are read before the file is mapped anew.
MAPPED_ROWS = 16
QUANTILES = (0.5, 0.9, 0.99, 1.0)
PICTURES = (".png", ".svg")
# Stands in the header while the arrays are written.
NO_DIGEST = "0" * 64


@dataclass(frozen=True, eq=False)
class FileReport:
    """What came of compressing a file.

    Parameters
    ----------
    out : Path
    layout : str
        What was written, in words.
    num_embeddings, embedding_dim : int
    nbytes : int
        Of the layout; its file has a header besides.
    errors : ndarray of float64, shape (rows,)
        Relative errors of up to 1,000 rows drawn evenly, rising: the length of the
        difference by the length of the row.  Rows of zeros have none.
    in_pieces : bool
        Whether the method worked on some rows at a time.
    seconds : float
    """

    out: Path
    layout: str
    num_embeddings: int
    embedding_dim: int
    nbytes: int
    errors: np.ndarray
    in_pieces: bool
    seconds: float

    @property
    def ratio(self) -> float:
        """Bytes of the table in float32, by those of the layout."""
        return 4 * self.num_embeddings * self.embedding_dim / self.nbytes

    def error_quantiles(self) -> dict[float, float]:
        """Relative errors that so large a share of the rows does not exceed."""
        if not len(self.errors):
            return dict.fromkeys(QUANTILES, 0.0)
        found = np.quantile(self.errors, QUANTILES).tolist()
        return dict(zip(QUANTILES, found, strict=True))

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Draw how the errors are distributed, as a .png or .svg file.

        Raises
        ------
        ValueError
            If the file's name ends in something else.
        """
        from matplotlib.figure import Figure

        place = check_picture(Path(path))
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        axes = figure.subplots()
        axes.hist(self.errors, bins=min(max(len(self.errors) // 20, 1), 50))
        axes.set_xlabel("relative error of a row")
        axes.set_ylabel(f"rows, of {len(self.errors):,} drawn")
        axes.set_title(self.layout, fontsize="medium")
        drawn = io.BytesIO()
        figure.savefig(drawn, format=place.suffix[1:])
        write_atomically(place, [drawn.getvalue()])

    def __str__(self) -> str:
        full = 4 * self.num_embeddings * self.embedding_dim
        errors = ", ".join(
            f"{error:.4g} ({share:.0%})"
            for share, error in self.error_quantiles().items()
        )
        return (
            f"{self.out}: {self.layout}\n"
            f"bytes       {self.nbytes:,} of {full:,} ({self.ratio:.2f}x)\n"
            f"errors      at most {errors} of the rows\n"
            f"seconds     {self.seconds:.1f} ({full / self.seconds / 1e6:.0f} MB/s), "
            + ("in pieces" if self.in_pieces else "with the whole table in memory")
        )


def compress_file(
    table: str | os.PathLike[str],
    method: str,
    out: str | os.PathLike[str],
    *,
    tensor: str | None = None,
    counts: npt.ArrayLike | None = None,
    field_starts: npt.ArrayLike | None = None,
    progress: bool | None = None,
    **options: object,
) -> FileReport:
    """Compress a table in a file into a file, which may both be larger than memory.

    Parameters
    ----------
    table : path
        A .npy, .npz, .safetensors, .pt or .pth file; only tensors are read, no code.
    method : str
        Key of a method that works after training; see above which need little memory.
    out : path
        The file to write: beside its place, then renamed.
    tensor : str, optional
        Which one, of a file that holds several tables.
    counts, field_starts : array of int, optional
        As for `survey_code.compress`.
    progress : bool, optional
        Whether a bar counts the rows that are read; by default on a terminal only.
    **options
        The method's own, e.g. ``bits=4``.

    Returns
    -------
    FileReport

    Raises
    ------
    ValueError
        As for `survey_code.compress`; if the file holds no table, or a layout of this
        package, which is compressed already; if `out` is the table itself.
    FileNotFoundError
        If there is no such table, or no folder for `out`.
    """
    begun, place = time.perf_counter(), Path(out)
    check_output(place, [Path(table)])
    how = get_method(method)
    how.require_stage(AFTER)
    asked = how.ask(options)
    rows = open_table(table, tensor)
    spec = TableSpec.of_table(*rows.shape, counts, field_starts)
    return write_table(rows, how, asked, spec, place, progress, begun)


def write_table(
    table: Table,
    method: Method,
    asked: Options,
    spec: TableSpec,
    out: Path,
    progress: bool | None,
    begun: float,
) -> FileReport:
    """`compress_file` of what was checked, which `begun` at a time of `perf_counter`.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table, out = f"{folder}/emb.npy", f"{folder}/emb.safetensors"
    ...     np.save(table, np.eye(64, dtype=np.float32))
    ...     report = compress_file(table, "rowwise", out, bits=4)
    >>> report.nbytes, round(report.ratio, 2), report.in_pieces
    (2304, 7.11, True)
    """
    with count_rows_read(table, progress) as expect:
        pieces = plan_pieces(method, table, spec, asked.settled())
        expect(len(table))
        if pieces is None:
            method.compress(table.read_whole(), asked, spec).save(out)
        else:
            write_pieces(out, table, pieces)
    layout = load_layout(out, mmap=True)
    errors = measure_rows(table, out)
    return FileReport(
        out, repr(layout), *table.shape, layout.nbytes, errors, pieces is not None,
        time.perf_counter() - begun,
    )  # fmt: skip


@contextmanager
def count_rows_read(
    table: Table, progress: bool | None
) -> Iterator[Callable[[int], None]]:
    """A bar that counts the rows that are read; told how many are still to come."""
    from tqdm import tqdm

    hidden = None if progress is None else not progress
    with tqdm(unit=" rows", unit_scale=True, disable=hidden, leave=False) as bar:

        def expect(rows: int) -> None:
            bar.total = bar.n + rows
            bar.refresh()

        table.watch = bar.update
        try:
            yield expect
        finally:
            table.watch = None


def write_pieces(out: Path, table: Table, pieces: Pieces) -> None:
    """Encode a table stretch by stretch, and write what is made where it will stand.

    Raises
    ------
    ValueError
        If rows are not finite, or do not fit the method's format.
    OSError
        As `replace_file`.
    """
    stretches = table.cut(pieces.together)
    _, rows = next(stretches)
    piece = pieces.encode(rows, 0)
    blueprint = check_blueprint(describe_whole(piece, len(table)))
    arrays = pieces.promise_arrays(piece, len(table))
    places = place_arrays(arrays)
    header = make_header(places, blueprint, NO_DIGEST)
    with replace_file(out) as file:
        writer = Writer(file, len(header), {one.name: one for one in places})
        for name in arrays.keys() - set(pieces.joined):
            writer.write(Piece(name, 0, arrays[name]))
        writer.write(*pieces.split(piece, 0, len(rows) == len(table)))
        for first, rows in stretches:
            piece = pieces.encode(rows, first)
            last = first + len(rows) == len(table)
            writer.write(*pieces.split(piece, first, last))
        digest = hash_file(file, len(header), blueprint, places)
        file.seek(0)
        file.write(make_header(places, blueprint, digest))


@dataclass
class Writer:
    """Writes parts of arrays where they stand in a file.

    Parameters
    ----------
    file : binary file
    length : int
        Bytes of its header.
    places : dict of Stretch
        The arrays, by their names.
    """

    file: BinaryIO
    length: int
    places: dict[str, Stretch]

    def write(self, *pieces: Piece) -> None:
        """Write each where it belongs, in any order."""
        for name, start, values in pieces:
            place = self.places[name]
            row = place.nbytes // max(place.shape[0], 1)
            self.file.seek(self.length + place.start + start * row)
            for part in split_bytes(values):
                self.file.write(part)


def measure_rows(table: Table, out: Path) -> np.ndarray:
    """Relative errors of some rows, rising; see `FileReport`."""
    rows, dim = table.shape
    count = min(rows, MEASURED_ROWS, max(MEASURED_NUMBERS // dim, 1))
    drawn = np.random.default_rng(0).choice(rows, count, replace=False)
    ids = np.sort(drawn)  # no ties: each row is drawn once
    given = table.pick(ids).astype(np.float64)
    lengths = np.linalg.norm(given, axis=1)
    read = [
        # Pages stay in memory as long as they are mapped.
        load_layout(out, mmap=True).read_rows(ids[start : start + MAPPED_ROWS])
        for start in range(0, count, MAPPED_ROWS)
    ]
    differences = np.linalg.norm(np.concatenate(read) - given, axis=1)
    some = lengths > 0
    errors: np.ndarray = np.sort(differences[some] / lengths[some], kind="stable")
    return errors


def check_picture(path: Path) -> Path:
    """The path, or ValueError for one of no picture that can be drawn."""
    if path.suffix not in PICTURES:
        raise ValueError(
            f"{path}: a picture is a file that ends in one of {', '.join(PICTURES)}"
        )
    return path
