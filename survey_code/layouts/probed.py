"""The probed layout: an id's row lies where the id itself stands, in a short window.

A hash names the first slot of an id's window, the slots after it follow in a circle,
and the id is stored in one of them or in none.  So two ids never share a row by
accident: what is compared is the id, not its hash.  An id that is not found reads the
default row, or zeros.

All slots of the window are looked at.  Where a search ends at the first free slot, as
it does in most tables with linear probing, no id can be taken out without a mark in
its place; here it can.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from survey_code.checks import check_range
from survey_code.hashes import check_hash_numbers, mix_ids
from survey_code.layouts.hashed import as_flag, check_served
from survey_code.layouts.layout import A, IdArray, Layout, RowArray, array_module
from survey_code.layouts.parts import (
    Rows,
    as_rows,
    check_rows,
    part_work,
    read_part,
    rows_shape,
)
from survey_code.layouts.routed import key_type

if TYPE_CHECKING:
    from survey_code.kernels.formats import Format

# What stands in a slot that no id has.
FREE = -1
# Bytes of the numbers of the hash.
_NUMBERS = 24


def identity_type(rows: int, open_ids: bool = False) -> np.dtype:
    """Integers that hold the ids of a table of so many rows, or any id from 0 up."""
    return np.dtype(np.int64) if open_ids else key_type(rows)


def probed_bytes(slots: int, row: int, identity: int, default: bool = True) -> int:
    """Bytes of a probed layout, before there is one.

    Parameters
    ----------
    slots : int
    row, identity : int
        Bytes of a row, and of an identity: 4 or 8.
    default : bool, default True
        Whether a row is stored for ids that are not found.

    Examples
    --------
    >>> probed_bytes(100, row=64, identity=4)
    6888
    """
    return slots * (row + identity) + (row if default else 0) + _NUMBERS


def find_homes(ids: A, numbers: np.ndarray, slots: int) -> A:
    """The first slot of each id's window, int64 of the ids' shape."""
    return mix_ids(ids, *numbers.tolist()) % slots


class ProbedLayout(Layout):
    """Rows in slots, and in each slot the id whose row it is.

    Parameters
    ----------
    identities : ndarray of int32 or int64, shape (slots,)
        The id of each slot, `FREE` where there is none.
    values : ndarray of float32 or float16, or layout
        A row for each slot, shape (slots, dim); with one more, the last is read by
        ids that are not found, which otherwise read zeros.
    numbers : ndarray of int64, shape (3,)
        Of the hash that names the first slot of a window; see `mix_ids`.
    num_embeddings : int
    window : int
        Slots in which an id may stand: the one that its hash names, and those that
        follow; slot 0 follows the last.
    open_ids : bool, default False
        Serve any id from 0 up, also those from `num_embeddings` on.  Identities of
        int32 find those below 2**31 only.

    Raises
    ------
    ValueError
        If the shapes contradict each other, an id is stored twice, or outside its
        window, or is none that the table serves.
    """

    name: ClassVar[str] = "probed"
    array_names: ClassVar[tuple[str, ...]] = ("identities", "values", "numbers")
    holders: ClassVar[tuple[str, ...]] = ("values",)
    shape_names: ClassVar[tuple[str, ...]] = (
        "num_embeddings",
        "embedding_dim",
        "window",
        "open_ids",
    )

    values: Rows

    def __init__(
        self,
        identities: np.ndarray,
        values: npt.ArrayLike | Layout,
        numbers: np.ndarray,
        num_embeddings: int,
        window: int,
        open_ids: bool = False,
    ) -> None:
        self.values = as_rows(values)
        super().__init__(num_embeddings, rows_shape(self.values)[1])
        self.identities = np.asarray(identities)
        self.numbers = np.asarray(numbers)
        self.window = check_range("window", window, 1)
        self.open_ids = as_flag("open_ids", open_ids)
        self.validate()

    @property
    def slots(self) -> int:
        """Rows that ids can have."""
        return len(self.identities)

    @property
    def has_default(self) -> bool:
        """Whether a row is stored for ids that are not found."""
        return rows_shape(self.values)[0] > self.slots

    def check_arrays(self) -> None:
        """Raise ValueError if identities, rows and window contradict each other."""
        check_served(self.num_embeddings, self.open_ids)
        check_hash_numbers("numbers", self.numbers)
        held = self.identities
        if held.dtype not in (np.int32, np.int64) or held.ndim != 1 or not len(held):
            raise ValueError(
                "identities must be int32 or int64 of shape (slots,), got "
                f"{held.dtype} of shape {held.shape}"
            )
        check_range("window", self.window, 1, self.slots)
        dim = self.embedding_dim
        check_rows("values", self.values, [(self.slots, dim), (self.slots + 1, dim)])
        if not self.trusted:
            self._validate_identities()

    def _validate_identities(self) -> None:
        """Each id stands in one slot, of its own window."""
        xp = array_module(self.identities)
        (taken,) = xp.nonzero(self.identities != FREE)
        ids = self.identities[taken].astype(np.int64)
        wrong = ids < 0
        if not self.open_ids:
            wrong |= ids >= self.num_embeddings
        if bool(wrong.any()):
            raise ValueError(
                f"identities must be {FREE} or ids of a table of "
                f"{self.num_embeddings} rows, got {int(ids[wrong][0])}"
            )
        ordered = xp.sort(ids)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            raise ValueError(f"id {int(twice[0])} is stored twice")
        steps = (taken - find_homes(ids, self.numbers, self.slots)) % self.slots
        outside = steps >= self.window
        if bool(outside.any()):
            place = int(taken[outside][0])
            raise ValueError(
                f"id {int(ids[outside][0])} is stored in slot {place}, outside its "
                f"window of {self.window}"
            )

    def count_work(self) -> int:
        """The window, and a row."""
        return self.window + part_work(self.values)

    def find_slots(self, ids: IdArray) -> IdArray:
        """The slot of each id, int64 of the ids' shape; `slots` where it has none."""
        xp = array_module(ids)
        homes = find_homes(ids, self.numbers, self.slots)
        found = xp.full(ids.shape, self.slots, dtype=np.int64)
        for step in range(self.window):
            slot = (homes + step) % self.slots
            found = xp.where(self.identities[slot] == ids, slot, found)
        return found

    def read_rows(self, ids: IdArray) -> RowArray:
        """Rows of the slots in which ids stand."""
        slots = self.find_slots(ids)
        if self.has_default:
            return read_part(self.values, slots)
        known = slots < self.slots
        # Slot 0 is as good as any: what is read there is not used.
        rows = read_part(self.values, slots * known)
        rows[~known] = 0
        return rows

    def describe(self) -> Format | None:
        """The window and the rows' own format."""
        from survey_code.kernels.formats import OPEN, ProbedFormat, describe_rows

        values = describe_rows(self.values)
        if values is None:
            return None
        shape = (OPEN if self.open_ids else self.num_embeddings, self.embedding_dim)
        numbers = self.numbers.tolist()
        return ProbedFormat.of(
            shape, self.identities, values, numbers, self.window, self.has_default
        )
