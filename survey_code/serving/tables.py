"""Tables in files, some rows of which are read at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from survey_code.checks import check_weight_type
from survey_code.layouts.files import METADATA_KEY, open_regular
from survey_code.layouts.layout import (
    IdArray,
    RowArray,
    as_finite_table,
    check_table_shape,
    read_array,
)
from survey_code.serving.modules import DESCRIPTION

if TYPE_CHECKING:
    from torch import Tensor

# Bytes of a mapped file that may stay in memory before the file is mapped anew.
MAPPED_BYTES = 2**26
# Bytes that may come into memory with a row: its neighbours, up to a large page.
AROUND_BYTES = 2**21


@dataclass(frozen=True)
class Source:
    """An open file's table.

    Parameters
    ----------
    shape : tuple of int
    read : callable
        Its rows in a slice, of whatever type they are; they may be the file's own.
    """

    shape: tuple[int, ...]
    read: Callable[[slice], npt.ArrayLike | Tensor]


class Table:
    """A table of numbers, read as float32, so many rows at a time as are asked for.

    A mapped file's pages stay in memory as long as they are mapped.  So the file is
    opened anew every `MAPPED_BYTES`, and a table takes no more than that.

    Parameters
    ----------
    open_source : callable
        Opens the file.

    Raises
    ------
    ValueError
        If it holds no table: two axes, neither of them empty, of numbers.
    """

    def __init__(self, open_source: Callable[[], Source]) -> None:
        self._open = open_source
        self._source = open_source()
        check_table_shape("weight", self._source.shape)
        first = read_array(self._source.read(slice(0, 0)))
        check_weight_type("weight", first.dtype)
        rows, dim = self._source.shape
        self.shape = rows, dim
        self._row_bytes = dim * first.dtype.itemsize
        self._touched = 0
        # Told of the rows that are read.
        self.watch: Callable[[int], object] | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> RowArray:
        """Rows of a stretch, an array of their own.

        Raises
        ------
        ValueError
            If one holds NaN or infinity, in float32.
        """
        rows = self._read(part, self._row_bytes)
        if self.watch is not None:
            self.watch(len(rows))
        return rows

    def pick(self, ids: IdArray) -> RowArray:
        """Rows of some ids, one by one."""
        rows = np.empty((len(ids), self.shape[1]), dtype=np.float32)
        most = self._row_bytes + AROUND_BYTES
        for place, one in enumerate(ids.tolist()):
            rows[place] = self._read(slice(one, one + 1), most)[0]
        return rows

    def read_whole(self) -> np.ndarray:
        """All rows at once; a mapped file's own where they are float32."""
        return as_finite_table(self._source.read(slice(None)))

    def cut(self, together: int) -> Iterator[tuple[int, RowArray]]:
        """All rows, so many at a time, and which is the first of them."""
        for first in range(0, len(self), together):
            yield first, self[first : first + together]

    def _read(self, part: slice, bytes_a_row: int) -> RowArray:
        """Rows as float32; `bytes_a_row` come into memory for each."""
        with np.errstate(over="ignore"):  # infinity is told of below
            raw = read_array(self._source.read(part))
            rows = np.array(raw, dtype=np.float32, order="C")
        good = np.isfinite(rows).all(axis=1)
        if not good.all():
            raise ValueError(
                f"weight must be finite in float32: row "
                f"{part.start + int(good.argmin())} holds NaN or infinity"
            )
        self._touched += len(rows) * bytes_a_row
        if self._touched > MAPPED_BYTES:
            self._source, self._touched = self._open(), 0
        return rows


def check_output(out: Path, inputs: Sequence[Path]) -> None:
    """Raise ValueError if a file cannot be written, or would replace what is read.

    Before the work, not after it.
    """
    if out.is_dir():
        raise ValueError(f"{out}: a folder, not a file to write")
    if not out.parent.is_dir():
        raise ValueError(f"{out}: no such folder to save into")
    for path in inputs:
        if out.exists() and path.exists() and out.samefile(path):
            raise ValueError(f"{out}: is read from, and would be overwritten")


def open_table(path: str | os.PathLike[str], name: str | None = None) -> Table:
    """A table of a .npy, .npz, .safetensors or .pt file, by its name if it has one.

    Files are mapped into memory where their format allows it, which those of .npz, and
    of torch before 2020, do not.  No code in them is run.

    Raises
    ------
    ValueError
        If the file is none of these or not readable, is a layout of this package
        already, holds no table, or it is not clear which tensor is meant.
    FileNotFoundError
        If there is no such file.
    """
    place = Path(path)
    readers = {
        ".npy": open_npy, ".npz": open_npz, ".safetensors": open_safetensors,
        ".pt": open_torch, ".pth": open_torch,
    }  # fmt: skip
    if place.suffix not in readers:
        known = ", ".join(readers)
        raise ValueError(f"{place}: a table is a file that ends in one of {known}")
    if place.is_dir():
        raise ValueError(f"{place}: a folder, not a file")
    # Whether it is there, a file, and may be read, in one error's words.
    with open_regular(place):
        pass
    return Table(readers[place.suffix](place, name))


def choose_tensor(
    path: Path, name: str | None, shapes: Mapping[str, tuple[tuple[int, ...], bool]]
) -> str:
    """The name that is asked for, or of the only table.

    Parameters
    ----------
    path : Path
    name : str or None
    shapes : mapping
        Of each tensor its shape, and whether it holds floating-point numbers.
    """
    tables = sorted(
        n for n, (shape, real) in shapes.items() if len(shape) == 2 and real
    )
    if name is None and len(tables) == 1:
        return tables[0]
    if name not in shapes or name is None:
        found = f"from {tables}" if tables else f"but none is a table: {sorted(shapes)}"
        raise ValueError(f"{path}: name one tensor with --tensor, {found}")
    return name


def read_array_rows(array: np.ndarray | Tensor) -> Source:
    """An array that is held or mapped, as a source of rows."""
    return Source(tuple(array.shape), lambda part: array[part])


def open_npy(path: Path, name: str | None) -> Callable[[], Source]:
    """Opens the array of a .npy file, mapped."""
    if name is not None:
        raise ValueError(f"{path}: a .npy file holds one array; --tensor names none")

    def open_source() -> Source:
        try:
            return read_array_rows(np.lib.format.open_memmap(path, mode="r"))
        except (EOFError, ValueError) as error:
            raise ValueError(
                f"{path}: not a .npy array of numbers ({error})"
            ) from error

    return open_source


def open_npz(path: Path, name: str | None) -> Callable[[], Source]:
    """Reads one array of a .npz file, and keeps it."""
    import zipfile
    import zlib

    try:
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise ValueError("one array, not an archive of them")
            held = {key: archive[key] for key in archive.files if name in (None, key)}
            if not all(isinstance(part, np.ndarray) for part in held.values()):
                raise ValueError("it holds other files")
            known = archive.files
    except (EOFError, OSError, zipfile.BadZipFile, zlib.error, ValueError) as error:
        raise ValueError(f"{path}: not a .npz archive of arrays ({error})") from error
    shapes = {key: (part.shape, part.dtype.kind == "f") for key, part in held.items()}
    # Of those that were not read nothing is known.
    shapes = {**{key: ((0, 0), True) for key in known}, **shapes}
    array = held[choose_tensor(path, name, shapes)]
    return lambda: read_array_rows(array)


def open_safetensors(path: Path, name: str | None) -> Callable[[], Source]:
    """Opens one tensor of a .safetensors file; the others are not read."""
    from safetensors import SafetensorError, safe_open

    def open_source() -> Source:
        try:
            with safe_open(path, "pt") as file:
                refuse_layout(path, METADATA_KEY in (file.metadata() or {}))
                slices = {key: file.get_slice(key) for key in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path}: {error}") from error
        refuse_layout(path, any(map(describes_layout, slices)))
        shapes = {
            key: (tuple(s.get_shape()), s.get_dtype().startswith(("F", "BF")))
            for key, s in slices.items()
        }
        found = choose_tensor(path, name, shapes)
        own, (shape, _) = slices[found], shapes[found]
        return Source(shape, lambda part: own[part])

    return open_source


def open_torch(path: Path, name: str | None) -> Callable[[], Source]:
    """Opens one tensor of a file of `torch.save`: a tensor, or dictionaries of them."""
    import zipfile

    def open_source() -> Source:
        return read_array_rows(choose_held(path, read_torch(path), name))

    if zipfile.is_zipfile(path):  # and mapped
        return open_source
    kept = open_source()
    return lambda: kept


def read_torch(path: Path) -> object:
    """What `torch.save` wrote, if it is tensors alone: no code in the file is run.

    Raises
    ------
    ValueError
        If it is not, or nothing of torch.
    """
    import pickle
    import warnings
    import zipfile

    import torch

    # Files of before 2020 are no archives, and cannot be mapped.
    mapped = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a way to write that is not torch's
            held: object = torch.load(path, "cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: not read, since it holds more than tensors, or nothing that "
            f"torch wrote: save a `state_dict` ({str(error).partition('.')[0]})"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: not a file of tensors ({error})") from error
    return held


def choose_held(path: Path, held: object, name: str | None) -> Tensor:
    """The tensor that is asked for, or the only table, of what torch has read."""
    tensors = dict(list_tensors(held, ""))
    if name is None and list(tensors) == [""]:
        return tensors[""]
    refuse_layout(path, any(map(describes_layout, tensors)))
    shapes = {n: (tuple(t.shape), t.is_floating_point()) for n, t in tensors.items()}
    return tensors[choose_tensor(path, name, shapes)]


def list_tensors(held: object, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested dictionaries, by their names with dots between."""
    import torch

    if isinstance(held, torch.Tensor):
        yield name, held
    elif isinstance(held, Mapping):
        for key, part in held.items():
            yield from list_tensors(part, f"{name}.{key}" if name else str(key))


def describes_layout(name: str) -> bool:
    """Whether a tensor of this name is the description of a `FrozenEmbedding`."""
    return name.rpartition(".")[2] == DESCRIPTION


def refuse_layout(path: Path, is_one: bool) -> None:
    """Raise ValueError for what this package wrote itself."""
    if is_one:
        raise ValueError(
            f"{path}: holds a layout of this package, which is compressed already; "
            "compress the table that it was made from"
        )
