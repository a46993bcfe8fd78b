"""Look-ups and bags by compiled code, whatever format the rows have."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

import numpy as np

from survey_code.kernels.cpu.compile import Library, allow_kernels, load_library
from survey_code.kernels.cuda import MODES
from survey_code.kernels.formats import PROCESSOR, Format, address_of, narrow

# Numbers of a call that one thread reads before another is asked: about 0.2 ms.
LEAST_NUMBERS = 2**18


@dataclass(eq=False)
class Reader:
    """What reads the rows of one layout on a processor.

    Parameters
    ----------
    format : Format
        Of arrays of NumPy, which it keeps.
    library : library
        The compiled functions.
    """

    format: Format
    library: Library
    fields: np.ndarray = field(init=False)
    told: tuple[int, int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.fields = np.array(self.format.arguments["numbers"], dtype=np.int64)
        self.told = address_of(self.fields), self.format.rows, self.format.dim

    @classmethod
    def of(cls, format: Format | None) -> Reader | None:
        """A reader of a format; None where no compiled code reads it."""
        if format is None or not format.composes or not allow_kernels():
            return None
        among = [e for e in PROCESSOR if e <= format.widest]
        form = format.form(format.unit(narrow(among, format.dim)))
        library = load_library(form, format.source)
        return None if library is None else cls(format, library)

    def read(self, ids: np.ndarray) -> np.ndarray | None:
        """One row per id.

        Parameters
        ----------
        ids : ndarray of int64, shape (m,), contiguous

        Returns
        -------
        ndarray of float32, shape (m, dim), or None
            None for an id out of range.
        """
        count, (fields, rows, dim) = len(ids), self.told
        out = np.empty((count, dim), dtype=np.float32)
        flag, source, target = ctypes.c_uint32(), find_start(ids), find_start(out)

        def work(first: int, last: int) -> None:
            self.library.read(
                fields, rows, dim, source + 8 * first, last - first,
                target + 4 * dim * first, ctypes.byref(flag),
            )  # fmt: skip

        share(work, count, count * dim)
        return None if flag.value else out

    def pool(
        self,
        ids: np.ndarray,
        offsets: np.ndarray,
        bags: int,
        weights: np.ndarray | None,
        mode: str,
        padding: int | None,
    ) -> np.ndarray | None:
        """One pooled row per bag; see `survey_code.layouts.Layout.bag`.

        Parameters
        ----------
        ids : ndarray of int64, contiguous
        offsets : ndarray of int64, shape (bags,) or (bags + 1,), contiguous
        bags : int
        weights : ndarray of float32, contiguous, as many as ids, or None
        mode : {"sum", "mean", "max"}
        padding : int or None

        Returns
        -------
        ndarray of float32, shape (bags, dim), or None
            None for an id out of range, or offsets that contradict the ids.
        """
        if len(offsets) > bags and offsets[-1] != ids.size:
            return None
        dim = self.format.dim
        out = np.empty((bags, dim), dtype=np.float32)
        flag, target = ctypes.c_uint32(), find_start(out)
        factors = 0 if weights is None else find_start(weights)
        head = (*self.told, find_start(ids), ids.size, find_start(offsets))
        how = factors, MODES.index(mode), -1 if padding is None else padding

        def work(first: int, last: int) -> None:
            self.library.pool(
                *head, len(offsets), first, last, *how, target + 4 * dim * first,
                ctypes.byref(flag),
            )  # fmt: skip

        share(work, bags, ids.size * dim)
        return None if flag.value else out


def find_start(array: np.ndarray) -> int:
    """The address of an array; a call asks for four, so it is the cheapest way."""
    start: int = array.__array_interface__["data"][0]
    return start


def split(count: int, numbers: int) -> list[tuple[int, int]]:
    """Stretches of rows or bags, one for each thread that is worth its while."""
    pieces = max(min(count_threads(), numbers // LEAST_NUMBERS), 1)
    borders = [count * piece // pieces for piece in range(pieces + 1)]
    return list(pairwise(borders))


def count_threads() -> int:
    """As many as torch uses; without torch, as the process may have."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return int(torch.get_num_threads())
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit():
        return int(asked)
    # Not every system tells.
    known = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


@cache
def open_pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process; a copy of the process has none of them."""
    return ThreadPoolExecutor(os.cpu_count(), "survey_code")


def share(work: Callable[[int, int], None], count: int, numbers: int) -> None:
    """Do all rows or bags: the first stretch here, others beside it where each of them
    has numbers enough to be worth a thread.
    """
    if numbers < 2 * LEAST_NUMBERS:
        work(0, count)
        return
    first, *rest = split(count, numbers)
    others = [open_pool(os.getpid()).submit(work, *one) for one in rest]
    work(*first)
    for other in others:
        other.result()
