"""The stored form of a table: a few arrays, and how to read a row from them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from operator import is_
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias, TypeVar, overload

import numpy as np
import numpy.typing as npt

from survey_code.checks import (
    check_finite,
    check_switch,
    check_weight_type,
    refuse_no_table,
)
from survey_code.kernels import bags, cuda
from survey_code.kernels.cpu.pooling import CHUNK_NUMBERS, pool_bags, pool_chunks
from survey_code.kernels.cpu.reader import Reader
from survey_code.kernels.cpu.rows import gather_rows, take_rows
from survey_code.kernels.cuda import Check, array_module, is_cupys
from survey_code.layouts.files import Blueprint, write_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from survey_code.kernels.cuda import GpuArray
    from survey_code.kernels.cuda.launch import Launcher
    from survey_code.kernels.formats import Format

# A layout's own code is written for NumPy.  After to_gpu() CuPy's arrays stand where
# NumPy's stood, and run through the same code: `array_module` says whose they are.
StoredArray: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.generic]]
IdArray: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
RowArray: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

# What a look-up is called with; ids of the other kinds are CuPy's arrays and tensors.
Ids: TypeAlias = (
    int | np.integer | Sequence[int] | Sequence[Sequence[int]] | npt.NDArray[np.integer]
)
Offsets: TypeAlias = "Sequence[int] | npt.NDArray[np.integer] | GpuArray | Tensor"
Factors: TypeAlias = (
    "Sequence[float] | Sequence[Sequence[float]] | npt.NDArray[np.number]"
    " | GpuArray | Tensor"
)

# Offsets, weights, mode, padding, and whether the last offset is an end.
BagWords: TypeAlias = "tuple[Offsets | None, Factors | None, str, int | None, bool]"

# Types that rows may have.
OUT_TYPES = "float32", "float16", "bfloat16", "float64"

# What rows are read as, by name or as a dtype of NumPy or torch.
OutType: TypeAlias = "str | np.dtype[np.floating] | type[np.floating] | torch.dtype"

# Arrays or tensors: what comes in is what goes out.
N = TypeVar("N", np.ndarray, "GpuArray")
A = TypeVar("A", np.ndarray, "GpuArray", "Tensor")
L = TypeVar("L", bound="Layout")


# The largest of float32.
LARGEST_FLOAT = float(np.finfo(np.float32).max)
# And the smallest above 0, a denormal number.
SMALLEST_FLOAT = 2.0**-149
# Columns of a row, and numbers read for it, that any layout may have; with arrays of
# more bytes it may have more, so that no small file makes a look-up slow or large.
MOST_COLUMNS, MOST_WORK = 2**16, 2**17
NO_STREAM = nullcontext()
# Numbers of a call for which code is compiled, if there is none yet.
LARGE_CALL = 2**16


class Stored:
    """Named arrays and integers: what a file holds, and what moves to a GPU.

    A subclass names its arrays in `array_names` and its integers in
    `shape_names`, both attributes of the instance.  Where an array holds rows, a
    layout may stand in its place, as `holders` says; `listed` names an attribute that
    is a sequence of such arrays or layouts, whose names are their places: "0", "1" and
    so on.

    Parameters
    ----------
    num_embeddings : int
        Number of ids; ids are ``0 .. num_embeddings - 1``.
    embedding_dim : int
        Length of a row.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 2
    array_names: ClassVar[tuple[str, ...]] = ()
    listed: ClassVar[str | None] = None
    # Of the arrays those that a layout may stand in place of, beside what is listed:
    # rows, or a vector row after row.
    holders: ClassVar[tuple[str, ...]] = ()
    shape_names: ClassVar[tuple[str, ...]] = ("num_embeddings", "embedding_dim")

    # Whether what arrays hold is taken as it is, unread: those of a mapped file.
    trusted: bool = False

    # On a GPU: what starts the kernels that read the rows; None where none does.
    device: Launcher | None = None

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        if num_embeddings < 1 or embedding_dim < 1:
            raise ValueError(
                "a table needs at least one row and one column, got "
                f"num_embeddings={num_embeddings}, embedding_dim={embedding_dim}"
            )
        self.num_embeddings = int(num_embeddings)
        self.embedding_dim = int(embedding_dim)

    def check_arrays(self) -> None:
        """Raise ValueError if arrays and integers contradict each other.

        Where they are trusted, large arrays are not read for it.
        """

    def validate(self) -> None:
        """What every constructor ends with: `check_arrays`, and what all must be."""
        self.check_arrays()

    def held(self) -> dict[str, StoredArray | Layout]:
        """What the layout consists of, by name; what is None is left out."""
        held = {name: getattr(self, name) for name in self.array_names}
        if self.listed is not None:
            held |= {str(j): part for j, part in enumerate(getattr(self, self.listed))}
        return {name: part for name, part in held.items() if part is not None}

    def _hold(self, held: Mapping[str, StoredArray | Layout]) -> None:
        """Take these instead, by name; what is missing is None."""
        for name in self.array_names:
            setattr(self, name, held.get(name))
        if self.listed is not None:
            count = sum(name.isdigit() for name in held)
            setattr(self, self.listed, [held[str(j)] for j in range(count)])

    def arrays(self) -> dict[str, StoredArray]:
        """The stored arrays by name; those of a part follow its name and a slash."""
        found: dict[str, StoredArray] = {}
        for name, part in self.held().items():
            if isinstance(part, Stored):
                found |= {f"{name}/{own}": it for own, it in part.arrays().items()}
            else:
                found[name] = part
        return found

    def shape_integers(self) -> dict[str, int]:
        """The integers that the file's metadata holds."""
        return {name: int(getattr(self, name)) for name in self.shape_names}

    def blueprint(self) -> Blueprint:
        """What a file says beside the arrays: names, versions, integers, parts."""
        return {
            "layout": self.name,
            "version": self.version,
            "shape": self.shape_integers(),
            "parts": {
                name: part.blueprint()
                for name, part in self.held().items()
                if isinstance(part, Stored)
            },
        }

    @property
    def nbytes(self) -> int:
        """Bytes of all stored arrays: the file's size less its header."""
        return sum(int(array.nbytes) for array in self.arrays().values())

    @property
    def on_gpu(self) -> bool:
        """Whether the arrays are CuPy's."""
        return is_on_gpu(self._first_part())

    def _first_part(self) -> StoredArray | Layout:
        """The first of what the layout consists of; every call asks for it."""
        for name in self.array_names:
            part: StoredArray | Layout | None = getattr(self, name)
            if part is not None:
                return part
        return next(iter(self.held().values()))

    @property
    def held_bytes(self) -> int:
        """Bytes in memory: `nbytes`, or more where a GPU pads rows for speed."""
        if not self.on_gpu:
            return self.nbytes
        held = 0 if self.device is None else self.device.format.made
        for array in self.arrays().values():
            padded = array.shape[0] * array.strides[0] if array.ndim else 0
            held += max(int(array.nbytes), padded)
        return held

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file: beside its place first, then renamed."""
        write_file(path, self.blueprint(), self.to_cpu().arrays())

    def _moved(self) -> Self:
        """A copy whose arrays are CuPy's, not yet described to a kernel."""
        return self._twin(
            {
                name: part._moved() if isinstance(part, Stored) else self._move(part)
                for name, part in self.held().items()
            }
        )

    def _move(self, array: StoredArray) -> StoredArray:
        """One array as CuPy's; kernels read it by its address, row after row."""
        cupy = cuda.load_cupy()
        moved: StoredArray = cupy.ascontiguousarray(cupy.asarray(array))
        return moved

    def to_cpu(self) -> Self:
        """A copy whose arrays are NumPy's; the layout itself where they are."""
        if not self.on_gpu:
            return self
        back: Any = {
            name: part.to_cpu() if isinstance(part, Stored) else cuda.copy_back(part)
            for name, part in self.held().items()
        }
        return self._twin(back)

    def __getstate__(self) -> dict[str, Any]:
        # What knows the arrays' addresses is made anew in a copy.
        return {**self.__dict__, "device": None, "reader": None, "edition": 0}

    def _twin(self, held: Mapping[str, StoredArray | Layout]) -> Self:
        """A copy that consists of these instead."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__getstate__())
        twin._hold(held)
        return twin

    @classmethod
    def from_file(
        cls,
        shape: Mapping[str, int],
        held: Mapping[str, StoredArray | Layout],
        trusted: bool = False,
    ) -> Self:
        """Rebuild a layout from its integers, and from what it consists of.

        Where that is trusted, only types and shapes are checked, and nothing is read
        but what is as small as a header; on a GPU nothing is.

        Raises
        ------
        ValueError
            If something is missing or unknown, or contradicts the rest.
        """
        listed = {str(j) for j in range(len(held))} if cls.listed else set()
        missing = set(cls.shape_names) - set(shape)
        unknown = set(held) - set(cls.array_names) - listed
        if missing or unknown:
            raise ValueError(
                f"a {cls.name} layout lacks {sorted(missing)} "
                f"and does not know {sorted(unknown)}"
            )
        if listed and not all(
            str(j) in held for j in range(sum(map(str.isdigit, held)))
        ):
            raise ValueError(f"a {cls.name} layout lacks one of its parts")
        layout = cls.__new__(cls)
        Stored.__init__(layout, shape["num_embeddings"], shape["embedding_dim"])
        for name in cls.shape_names:
            setattr(layout, name, int(shape[name]))
        layout._hold(held)
        layout.trusted = trusted
        if any(is_on_gpu(part) for part in held.values()):
            return layout  # as it was moved there: what checks it is made for NumPy
        try:
            layout.check_arrays() if trusted else layout.validate()
        # A layout where there must be an array, or an array of too few axes.
        except (AttributeError, IndexError, TypeError) as error:
            raise ValueError(
                f"a {cls.name} layout cannot consist of this ({error})"
            ) from error
        return layout

    def __repr__(self) -> str:
        ratio = 4 * self.num_embeddings * self.embedding_dim / self.nbytes
        return (
            f"{type(self).__name__}({self.num_embeddings} x {self.embedding_dim}, "
            f"{self.nbytes:,} bytes, {ratio:.1f}x)"
        )


def is_on_gpu(part: StoredArray | Layout) -> bool:
    """Whether an array is CuPy's, or the arrays of a layout are."""
    return part.on_gpu if isinstance(part, Stored) else is_cupys(part)


class Layout(Stored):
    """What is deployed: a few arrays, and how a row is read from them.

    A subclass implements `read_rows`.  Everything a user calls is here or in
    `Stored`: `lookup`, `bag`, `save`, `to_gpu` and `nbytes`.

    Parameters
    ----------
    num_embeddings : int
        Number of ids; ids are ``0 .. num_embeddings - 1``.
    embedding_dim : int
        Length of a row.
    """

    # A layout that computes rows (hashed, generator) can serve ids that were
    # never trained; it does so only where its maker asked for it.
    open_ids: int = 0

    # Whether bags are best read by one kernel: not where a product follows the sums.
    describes_bags: ClassVar[bool] = True

    # Arrays of uint16 that are bit patterns of bfloat16.
    patterns: ClassVar[tuple[str, ...]] = ()

    # On a processor: compiled code that reads the rows, once it was asked for; copies
    # ask for it anew.
    reader: Compiled | None = None
    compiles: bool = False

    # Rises by one before rows are changed in place, and by one after: what was read
    # while it was odd, or was another, is read again.
    edition: int = 0

    # What `validate` found: no entry of a row is larger, and no row takes more.
    largest: float | None = None
    row_work: int | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.on_gpu:  # what is copied there has lost its padding
            self.__dict__.update(place_layout(self).__dict__)

    # -- what subclasses say -------------------------------------------------

    def bound_rows(self, held: Mapping[str, float]) -> float:
        """What no entry of a row exceeds, nor a number on the way to it.

        Parameters
        ----------
        held : dict of float
            The largest magnitude in each array of floats, and in the rows of each
            layout, by their names in `held`.

        Returns
        -------
        float
            Infinity where a product or a sum may leave float32; see `add_up`.
        """
        return max(held.values(), default=0.0)

    def count_work(self) -> int:
        """Numbers that are read, multiplied or added for one row, about."""
        return self.embedding_dim

    def read_rows(self, ids: IdArray) -> RowArray:
        """Rows of checked ids: int64 (m,) -> float32 (m, embedding_dim)."""
        raise NotImplementedError

    def read_bags(
        self, ids: IdArray, starts: IdArray, weights: RowArray | None, mode: str
    ) -> RowArray:
        """Rows of checked ids (m,), weighted and pooled, (bags, embedding_dim).

        Bag b has the ids from ``starts[b]`` to ``starts[b + 1]``.
        """
        if not is_cupys(ids):
            dim = self.embedding_dim
            return pool_chunks(self.read_rows, ids, starts, weights, mode, dim)
        rows = self.read_rows(ids)
        if weights is not None:
            rows = rows * weights[:, None]
        return pool_rows(rows, starts, mode)

    def describe(self) -> Format | None:
        """How a kernel finds and decodes a row; the arrays are CuPy's.

        None where no kernel reads this layout: the code for arrays does then.
        """
        return None

    def prepare(self) -> bool:
        """Compile the code that reads the rows now, not at the first large call.

        Returns
        -------
        bool
            Whether there is such code; otherwise NumPy reads the rows.
        """
        return not self.on_gpu and self._find_reader(LARGE_CALL) is not None

    def _find_reader(self, numbers: int) -> Reader | None:
        """Compiled code for a call of so many numbers; None where NumPy serves it.

        It is compiled for large calls, and then serves small ones, too.
        """
        kept = self.reader
        if kept is None or not kept.still_holds(self):
            self.compiles = self.compiles or numbers >= LARGE_CALL
            if not self.compiles:
                return None
            kept = self.reader = Compiled.of(self)
        return kept.reader

    def _read_compiled(self, ids: np.ndarray) -> RowArray | None:
        """Rows of ids of any shape; None without compiled code, or for a bad id."""
        reader = self._find_reader(ids.size * self.embedding_dim)
        if reader is None or ids.dtype.kind not in "iu":
            return None
        rows = reader.read(np.ascontiguousarray(ids, dtype=np.int64).ravel())
        if rows is None or ids.ndim == 1:
            return rows
        return rows.reshape(*ids.shape, self.embedding_dim)

    def validate(self) -> None:
        """Raise ValueError unless the layout is one whose look-ups are safe.

        Arrays and integers agree; stored numbers are finite, and so are the rows that
        they make; rows are as long, and take as much work, as what is stored allows:
        `MOST_COLUMNS` and `MOST_WORK`, or more beside large arrays.
        """
        self.trusted = False
        self.check_arrays()
        if self.on_gpu:
            return
        held = {name: measure(self, name, part) for name, part in self.held().items()}
        with np.errstate(over="ignore", invalid="ignore"):
            self.largest = float(self.bound_rows(held))
        if not self.largest <= LARGEST_FLOAT:
            raise ValueError(
                f"a {self.name} layout of such large numbers can leave float32: its "
                f"rows must be bounded by {LARGEST_FLOAT:.4g}"
            )
        self.row_work = int(self.count_work())
        # Below 1e-38 each step of a row can round by half the smallest float32.
        self.largest += self.row_work * SMALLEST_FLOAT
        stored = self.nbytes
        check_limit(self, "columns", self.embedding_dim, MOST_COLUMNS, 8 * stored)
        check_limit(self, "steps a row", self.row_work, MOST_WORK, 16 * stored)

    # -- what users call -----------------------------------------------------

    def to_gpu(self) -> Self:
        """A copy whose arrays are CuPy's.

        Raises
        ------
        RuntimeError
            If CuPy is not installed or no GPU is present.
        """
        return self if self.on_gpu else place_layout(self)

    @overload
    def lookup(
        self, ids: Ids, check: Check = True, out_dtype: OutType = "float32"
    ) -> RowArray: ...
    @overload
    def lookup(
        self, ids: GpuArray, check: Check = True, out_dtype: OutType = "float32"
    ) -> GpuArray: ...
    @overload
    def lookup(
        self, ids: Tensor, check: Check = True, out_dtype: OutType = "float32"
    ) -> Tensor: ...

    def lookup(
        self,
        ids: Ids | GpuArray | Tensor,
        check: Check = True,
        out_dtype: OutType = "float32",
    ) -> RowArray | GpuArray | Tensor:
        """Read rows.

        Parameters
        ----------
        ids : integer array of any shape
        check : bool or "late", default True
            On a GPU, wait for the kernel and raise for a bad id.  With "late" nothing
            waits, and one of the next such calls raises, or `raise_late`.  With False
            nobody does.  The row of a bad id is 0.
        out_dtype : {"float32", "float16", "bfloat16", "float64"}, or such a dtype
            What the rows are rounded to.  NumPy and CuPy have no bfloat16.

        Returns
        -------
        array of `out_dtype`, shape (*ids.shape, embedding_dim)
            NumPy's, or CuPy's where the layout is on a GPU; a tensor where the ids
            are one.

        Raises
        ------
        IndexError
            If an id is negative or not below `num_embeddings`.
        ValueError
            If ids are not integers.
        TypeError
            If the layout is on a GPU and the ids are not, or the reverse.
        """
        if self.device is not None:
            return self.device.read(ids, check, as_torch_type(out_dtype))
        with self._beside(check):
            rows = self._read_steadily(lambda: self._look_up(ids))
        return as_given(ids, rows, out_dtype)

    def _look_up(self, ids: Ids | GpuArray | Tensor) -> RowArray:
        """`lookup` by compiled code, or by code for arrays."""
        if not self.on_gpu:
            fast = self._read_compiled(as_numpy(ids))
            if fast is not None:
                return fast
        checked = self.check_ids(ids)
        rows = self.read_rows(checked.ravel())
        return rows.reshape(*checked.shape, self.embedding_dim)

    def _beside(self, check: Check) -> AbstractContextManager[object]:
        """On a GPU without a kernel: the stream that torch uses, for CuPy's words.

        Code for arrays always checks ids at once, whatever is allowed.
        """
        bags.refuse_check(check)
        if not self.on_gpu:
            return NO_STREAM
        cuda.refuse_recording(self.name)
        return cuda.current_stream()

    def _read_steadily(self, read: Callable[[], RowArray]) -> RowArray:
        """What was read while no row was being changed; see `edition`."""
        while True:
            before = self.edition
            found = read()
            if before % 2 == 0 and before == self.edition:
                return found
            time.sleep(0)  # let the thread go on that changes rows

    @overload
    def bag(
        self,
        ids: Ids,
        offsets: Offsets | None = None,
        per_sample_weights: Factors | None = None,
        mode: str = "sum",
        padding_idx: int | None = None,
        include_last_offset: bool = False,
        check: Check = True,
        out_dtype: OutType = "float32",
    ) -> RowArray: ...
    @overload
    def bag(
        self,
        ids: GpuArray,
        offsets: Offsets | None = None,
        per_sample_weights: Factors | None = None,
        mode: str = "sum",
        padding_idx: int | None = None,
        include_last_offset: bool = False,
        check: Check = True,
        out_dtype: OutType = "float32",
    ) -> GpuArray: ...
    @overload
    def bag(
        self,
        ids: Tensor,
        offsets: Offsets | None = None,
        per_sample_weights: Factors | None = None,
        mode: str = "sum",
        padding_idx: int | None = None,
        include_last_offset: bool = False,
        check: Check = True,
        out_dtype: OutType = "float32",
    ) -> Tensor: ...

    def bag(
        self,
        ids: Ids | GpuArray | Tensor,
        offsets: Offsets | None = None,
        per_sample_weights: Factors | None = None,
        mode: str = "sum",
        padding_idx: int | None = None,
        include_last_offset: bool = False,
        check: Check = True,
        out_dtype: OutType = "float32",
    ) -> RowArray | GpuArray | Tensor:
        """Read rows and pool them bag by bag, as torch's `embedding_bag` does.

        Parameters
        ----------
        ids : integer array, shape (m,), or (bags, length) without offsets
        offsets : integer array, shape (bags,)
            Where each bag starts, 0 first.  An empty bag gives zeros.
        per_sample_weights : array of numbers, same shape as ids, optional
            Factor of each row; with ``mode="sum"`` only.
        mode : {"sum", "mean", "max"}
        padding_idx : int, optional
            An id that no bag reads; a negative one counts from the table's end.
        include_last_offset : bool, default False
            One more offset says where the last bag ends: at the number of ids.
        check : bool or "late", default True
            As for `lookup`; bad ids add nothing, and a bag of bad offsets is empty.
        out_dtype : {"float32", "float16", "bfloat16", "float64"}, or such a dtype
            What the sums are rounded to.

        Returns
        -------
        array or tensor of `out_dtype`, shape (bags, embedding_dim)
            As from `lookup`.

        Raises
        ------
        IndexError, TypeError, ValueError
            As for `lookup`; also if ids, offsets and weights do not fit together.
        """
        last = check_switch("include_last_offset", include_last_offset)
        padding = find_padding(padding_idx, self)
        if self.device is not None:
            how = (mode, check, padding, last, as_torch_type(out_dtype))
            return self.device.pool(ids, offsets, per_sample_weights, *how)
        asked = (offsets, per_sample_weights, mode, padding, last)
        with self._beside(check):
            pooled = self._read_steadily(lambda: self._pool(ids, asked))
        return as_given(ids, pooled, out_dtype)

    def raise_late(self) -> None:
        """Wait for the GPU, and raise what calls with ``check="late"`` were given.

        Raises
        ------
        IndexError, ValueError
            As these calls would have, had they waited.
        """
        if self.device is not None:
            self.device.wait_late()

    def _pool(self, ids: Ids | GpuArray | Tensor, asked: BagWords) -> RowArray:
        """`bag` by compiled code, or by code for arrays."""
        fast = None if self.on_gpu else self._pool_compiled(as_numpy(ids), *asked)
        if fast is not None:
            return fast
        return self._pool_plainly(self.check_ids(ids), *asked)

    def _pool_plainly(
        self,
        ids: IdArray,
        offsets: Offsets | None,
        factors: Factors | None,
        mode: str,
        padding: int | None,
        last: bool,
    ) -> RowArray:
        """`bag` of checked ids by `read_bags`, without padding."""
        xp = array_module(ids)
        borders = check_offsets(ids, offsets, xp, last)
        weights = check_weights(ids, factors, mode, xp)
        ids, weights = ids.ravel(), None if weights is None else weights.ravel()
        if padding is not None:
            kept: Any = bags.put_padding_last(ids, borders, weights, padding, xp)
            ids, borders, weights = kept
        end = int(borders[-1])
        if weights is not None:
            weights = weights[:end]
        return self.read_bags(ids[:end], borders, weights, mode)

    def _pool_compiled(
        self,
        ids: np.ndarray,
        offsets: Offsets | None,
        factors: Factors | None,
        mode: str,
        padding: int | None = None,
        last: bool = False,
    ) -> RowArray | None:
        """`bag` by compiled code; None without it, or for bad ids or offsets."""
        reader = self._find_reader(ids.size * self.embedding_dim)
        if reader is None or ids.dtype.kind not in "iu":
            return None
        try:
            starts = bags.as_offsets(ids, offsets, np, last)
            weights = check_weights(ids, factors, mode, np)
        except (TypeError, ValueError):  # bad ids are told of first
            return None
        own = np.ascontiguousarray(ids, dtype=np.int64)
        return reader.pool(own, starts, len(starts) - last, weights, mode, padding)

    def check_ids(self, ids: Ids | GpuArray | Tensor) -> IdArray:
        """The ids as an int64 array on the layout's side, or one clear error."""
        # CuPy's arrays pass for NumPy's from here on.
        given: Any = cuda.as_cupy(ids) if self.on_gpu else as_numpy(ids)
        if given.dtype.kind not in "iu":
            raise ValueError(f"ids must be integers, got dtype {given.dtype}")
        if given.size:
            low, high = int(given.min()), int(given.max())
            limit = find_limit(self)
            if low < 0 or high >= limit:
                wrong = low if low < 0 else high
                raise IndexError(
                    f"id {wrong} is out of range for a table of "
                    f"{self.num_embeddings} rows (ids are 0 to {limit - 1})"
                )
        return given.astype(np.int64, copy=False)


def place_layout(layout: L) -> L:
    """A copy whose arrays lie on a GPU as kernels want them, and what reads it."""
    from survey_code.kernels.cuda.launch import Launcher

    twin = layout._moved()
    array = next(iter(twin.arrays().values()))
    twin.device = Launcher.of(twin.describe(), array)
    return twin


def lay_out(layout: L) -> L:
    """A layout, or a copy whose arrays have no gaps, as kernels read them."""
    held: dict[str, StoredArray | Layout] = {}
    for name, part in layout.held().items():
        if isinstance(part, Layout):
            held[name] = lay_out(part)
        else:
            held[name] = np.require(part, requirements=["C", "A"])
    same = all(map(is_, held.values(), layout.held().values()))
    return layout if same else layout._twin(held)


@dataclass(eq=False)
class Compiled:
    """What reads a layout's rows, and the arrays whose addresses it knows.

    Parameters
    ----------
    reader : Reader or None
        None where no compiled code reads such a layout.
    arrays : list of (part, name, array)
        Attributes of the layout (None) and of its parts, and what they were; a tuple of
        what stood in a list.
    """

    reader: Reader | None
    arrays: list[tuple[Stored | None, str, object]]

    @classmethod
    def of(cls, layout: Layout) -> Compiled:
        """Of a layout on a processor, compiled if need be."""
        format = lay_out(layout).describe() if layout.describes_bags else None
        # Not the layout itself, which would then hold itself in memory.
        known = [
            (None if owner is layout else owner, name, part)
            for owner, name, part in list_attributes(layout)
        ]
        return cls(Reader.of(format), known)

    def still_holds(self, layout: Layout) -> bool:
        """Whether the layout has the same arrays as before; every call asks."""
        for owner, name, part in self.arrays:
            now = getattr(layout if owner is None else owner, name)
            if now is part:
                continue
            if not isinstance(part, tuple) or len(now) != len(part):
                return False
            if not all(map(is_, now, part)):
                return False
        return True


def list_attributes(layout: Stored) -> Iterator[tuple[Stored, str, object]]:
    """The attributes that hold a layout's arrays and parts, and those of its parts."""
    for name in layout.array_names:
        yield layout, name, getattr(layout, name)
    if layout.listed is not None:
        yield layout, layout.listed, tuple(getattr(layout, layout.listed))
    for part in layout.held().values():
        if isinstance(part, Stored):
            yield from list_attributes(part)


def read_fast(layout: Layout, ids: IdArray) -> RowArray:
    """`Layout.read_rows` of checked ids, by compiled code where there is some."""
    rows = None if is_cupys(ids) else layout._read_compiled(ids)
    return layout.read_rows(ids) if rows is None else rows


def pool_fast(
    layout: Layout, ids: IdArray, starts: IdArray, weights: RowArray | None, mode: str
) -> RowArray:
    """`Layout.read_bags`, by compiled code where there is some."""
    pooled = None
    if not is_cupys(ids):
        pooled = layout._pool_compiled(ids, starts, weights, mode, last=True)
    return layout.read_bags(ids, starts, weights, mode) if pooled is None else pooled


def measure(layout: Layout, name: str, part: StoredArray | Layout) -> float:
    """The largest magnitude in what a layout holds by a name; 0 for integers.

    Raises
    ------
    ValueError
        If a number is NaN or infinite: which array, and where.
    """
    if isinstance(part, Layout):
        if part.largest is None:  # of a class that does not validate itself
            part.validate()
        return float(part.largest or 0)
    patterns = name in layout.patterns and part.dtype == np.uint16
    if part.dtype.kind != "f" and not patterns:
        return 0.0
    largest = 0.0
    for chunk in split_array(part):
        most = find_largest(chunk, patterns)
        if not most < np.inf:
            raise ValueError(
                f"{layout.name} layout: the numbers of {name} must be finite, but "
                f"{name}{find_first_odd(part, patterns)} is NaN or infinite"
            )
        largest = max(largest, most)
    return largest


def split_array(array: np.ndarray) -> Iterator[np.ndarray]:
    """An array in pieces of about `CHUNK_NUMBERS`, along its first axis; views."""
    if array.flags.c_contiguous:
        array = array.reshape(-1)
    step = max(CHUNK_NUMBERS // max(array[:1].size, 1), 1)
    for start in range(0, len(array) if array.size else 0, step):
        yield array[start : start + step]


def find_largest(numbers: np.ndarray, patterns: bool) -> float:
    """The largest magnitude of some numbers, infinity or NaN where one is not finite.

    The exponent and mantissa of 16 bits order numbers as their magnitudes do.
    """
    if numbers.dtype.itemsize != 2:
        return float(np.maximum(numbers.max(), -numbers.min()))
    bits = (numbers.view(np.uint16) & np.uint16(0x7FFF)).max()
    wide = np.array([bits], dtype=np.uint16)
    if patterns:
        return float((wide.astype(np.uint32) << 16).view(np.float32)[0])
    return float(wide.view(np.float16)[0])


def find_first_odd(array: np.ndarray, patterns: bool) -> list[int]:
    """Where the first number that is not finite stands, row by row."""
    if patterns:
        odd = (array & 0x7F80) == 0x7F80
    else:
        odd = ~np.isfinite(array)
    place = np.unravel_index(int(odd.ravel().argmax()), array.shape)
    return [int(index) for index in place]


def add_up(*terms: float | np.ndarray) -> Any:
    """The sum of bounds, infinite where it leaves float32.

    A little more than the sum of two or more: each addition rounds.
    """
    total: Any = np.sum([np.asarray(term, dtype=np.float64) for term in terms], axis=0)
    if len(terms) > 1:
        total = total * (1 + 2.0**-20 * len(terms))
    return np.where(total <= LARGEST_FLOAT, total, np.inf)[()]


def check_limit(
    layout: Layout, what: str, number: int, least: int, stored: int
) -> None:
    """Raise ValueError for more than what is stored allows."""
    if number > max(least, stored):
        raise ValueError(
            f"a {layout.name} layout of {layout.nbytes:,} bytes may have "
            f"{max(least, stored):,} {what}, got {number:,}"
        )


def as_numpy(ids: npt.ArrayLike | GpuArray | Tensor) -> np.ndarray:
    """Ids as a NumPy array; an empty list is an empty integer array."""
    found = bags.as_view(ids)
    if found is not None:
        return found
    if hasattr(ids, "__cuda_array_interface__"):
        raise TypeError(
            "ids are on a GPU but the layout is not: call layout.to_gpu() "
            "or move the ids to the CPU"
        )
    array = bags.make_array("ids", ids, np, "integers")
    if array.size == 0 and isinstance(ids, list | tuple):
        array = array.astype(np.int64)
    return array


def read_array(weight: npt.ArrayLike | Tensor) -> np.ndarray:
    """NumPy's array of anything that can be one."""
    if not hasattr(weight, "detach"):
        return np.asarray(weight)
    # A torch tensor, perhaps on a GPU, perhaps one whose signs are still to be turned.
    held = weight.detach().cpu().resolve_neg()
    # NumPy has no bfloat16.
    return np.asarray((held.float() if held.is_floating_point() else held).numpy())


def as_finite_table(weight: npt.ArrayLike | Tensor, name: str = "weight") -> np.ndarray:
    """A 2-D float32 table without NaN or infinity, or one clear ValueError."""
    refuse_no_table(name, weight)
    try:
        given = read_array(weight)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be an array of numbers: {error}") from error
    check_weight_type(name, given.dtype)
    check_table_shape(name, given.shape)
    with np.errstate(over="ignore"):  # infinity is reported below
        table = np.ascontiguousarray(given, dtype=np.float32)
    check_finite(name, table)
    return table


def check_table_shape(name: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless an array of this shape is a table with a row."""
    if len(shape) != 2 or 0 in shape:
        raise ValueError(
            f"{name} must be 2-D with at least one row and one column, "
            f"got shape {shape}"
        )


def cut(vector: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Pieces of these sizes, one after another; views."""
    ends = np.cumsum(sizes, dtype=np.int64).tolist()
    return [vector[start:stop] for start, stop in zip([0, *ends], ends)]


def check_offsets(
    ids: IdArray,
    offsets: Offsets | None,
    xp: ModuleType,
    include_last_offset: bool = False,
) -> IdArray:
    """Bag borders, shape (bags + 1,): where each starts, and where the last ends."""
    borders = bags.as_offsets(ids, offsets, xp, include_last_offset)
    if not include_last_offset:
        end = xp.full(1, ids.size, dtype=np.int64)
        borders = xp.concatenate([borders, end])
    bags.check_order(borders, ids.size, xp)
    bags.check_end(borders, ids.size)
    return borders


def find_limit(layout: Layout) -> int:
    """Ids of a layout are below it."""
    return 2**63 if layout.open_ids else layout.num_embeddings


def find_padding(padding_idx: object, layout: Layout) -> int | None:
    """The id that bags of a layout leave out, or None; a negative one counts from the
    end.
    """
    rows, limit = layout.num_embeddings, find_limit(layout)
    if padding_idx is None:
        return None
    if isinstance(padding_idx, bool) or not isinstance(padding_idx, int | np.integer):
        raise ValueError(f"padding_idx must be an integer, got {padding_idx!r}")
    padding = int(padding_idx)
    if not -rows <= padding < limit:
        raise ValueError(
            f"padding_idx must be from {-rows} to {limit - 1}, got {padding_idx}"
        )
    return padding + rows if padding < 0 else padding


def check_weights(
    ids: N, weights: Factors | None, mode: str, xp: ModuleType
) -> N | None:
    """The per-sample weights as float32, or None."""
    bags.check_mode(mode, weights is not None)
    if weights is None:
        return None
    given: Any = bags.make_array("per_sample_weights", widen_tensor(weights), xp)
    if given.dtype.name == "bfloat16":  # of the package ml_dtypes
        given = given.astype(np.float32)
    if given.shape != ids.shape or given.dtype.kind not in "fiu":
        bags.raise_weights(ids.shape, str(given.dtype), given.shape)
    # Kernels read them by their address: side by side, whatever view was given.
    with np.errstate(over="ignore"):  # beyond float32 they are infinite, as in torch
        return xp.ascontiguousarray(given.astype(np.float32, copy=False))


def widen_tensor(given: object) -> Any:
    """A tensor that an array can be made of; anything else as it is.

    One that wants a gradient is no array, nor is one of bfloat16, nor one whose signs
    are still to be turned.
    """
    if not hasattr(given, "detach"):
        return given
    held: Any = given.detach().resolve_neg()
    return held.float() if held.is_floating_point() and held.itemsize < 4 else held


def as_given(ids: object, found: RowArray | GpuArray, out_dtype: OutType) -> Any:
    """What was read: a tensor where the ids are one, beside them."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(ids, torch.Tensor):
        rows = torch.from_dlpack(found) if is_cupys(found) else torch.from_numpy(found)
        wanted = as_torch_type(out_dtype)
        return rows if wanted is torch.float32 else rows.to(wanted)
    if out_dtype == "float32":
        return found
    kind = name_type(out_dtype)
    bags.refuse_bfloat16(kind)
    with np.errstate(over="ignore"):  # beyond float16 they are infinite, as in torch
        return found.astype(kind, copy=False)


def name_type(out_dtype: OutType) -> str:
    """One of `OUT_TYPES`."""
    # The types of NumPy have names of their own.
    name = str(getattr(out_dtype, "__name__", out_dtype))
    if name.removeprefix("torch.") not in OUT_TYPES:
        raise ValueError(
            f"out_dtype must be one of {', '.join(OUT_TYPES)}, got {out_dtype!r}"
        )
    return name.removeprefix("torch.")


def as_torch_type(out_dtype: OutType) -> torch.dtype:
    """The dtype of torch."""
    wanted: Any = out_dtype
    try:
        return find_torch_type(wanted)
    except TypeError:  # of what cannot be kept, a list for one
        name_type(out_dtype)
        raise


@cache
def find_torch_type(out_dtype: OutType) -> torch.dtype:
    """The same, found once for each."""
    import torch

    found: torch.dtype = getattr(torch, name_type(out_dtype))
    return found


def take(array: np.ndarray, places: IdArray) -> np.ndarray:
    """Rows of an array as they are stored, by their numbers."""
    return array[places] if is_cupys(array) else gather_rows(array, places)


def take_floats(array: StoredArray, places: IdArray) -> RowArray:
    """Rows of float32, float16 or bfloat16 (as uint16), widened to float32."""
    if not is_cupys(array):
        return take_rows(array, places)
    rows = array[places]
    if rows.dtype == np.uint16:
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.astype(np.float32, copy=False)


def pool_rows(rows: RowArray, starts: IdArray, mode: str) -> RowArray:
    """Sum, mean or maximum of rows[starts[b]:starts[b+1]] for each bag b."""
    if not is_cupys(rows):
        return pool_bags(rows, starts, mode)
    xp = array_module(rows)
    counts = xp.diff(starts)
    pooled = xp.zeros((len(counts), rows.shape[1]), dtype=np.float32)
    bags = xp.repeat(xp.arange(len(counts)), [int(c) for c in counts.tolist()])
    if mode == "max":
        pooled[counts > 0] = -np.inf
        xp.maximum.at(pooled, bags, rows)
    else:
        xp.add.at(pooled, bags, rows)
    if mode == "mean":
        pooled /= xp.maximum(counts, 1).astype(np.float32)[:, None]
    return pooled
