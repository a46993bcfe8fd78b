"""What a reader has and wants: the table, the bytes, and what must be kept to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from survey_code.advice.evidence import METRICS, RecordedContest
from survey_code.catalog import AFTER
from survey_code.checks import check_choice, check_number, check_range, check_switch
from survey_code.spec import TableSpec

# Where costs are measured.
DEVICES = ("cpu", "cuda")
# Rows that methods are planned for, at most: those that train hold arrays of all ids.
TRAINED_ROWS, COMPRESSED_ROWS = 2**24, 2**28


@dataclass(frozen=True, eq=False)
class Case:
    """A table, and what it has to become.

    Parameters
    ----------
    rows, dim : int
        Of the full table of float32.
    budget_bytes : float
        What the compressed table may take.
    task : str
        ``"ctr"`` or ``"top-n"``.
    trained : bool, default False
        Whether the table is trained already: only what compresses such a table is
        left.
    training_bytes : float, optional
        What training may take at its peak, the optimiser's state included; says
        nothing of a table that is trained.
    latency_us : float, optional
        What the 99th percentile of look-ups of 256 ids may take, in microseconds.
    device : str, default "cpu"
        Where rows are read: ``"cpu"``, one thread, or ``"cuda"``.
    stream : bool, default False
        Whether training goes on, window after window.
    unseen : bool, default False
        Whether ids are read that training never saw: what trains must have a row for
        them too.  Of a trained table they all get one, `default_id`'s.
    counts : array of int, shape (rows,), optional
        How often each id is read.
    field_starts : array of int, optional
        First id of each field, then `rows`.

    Raises
    ------
    ValueError
        If one of them is not what it must be.
    """

    rows: int
    dim: int
    budget_bytes: float
    task: str
    trained: bool = False
    training_bytes: float | None = None
    latency_us: float | None = None
    device: str = "cpu"
    stream: bool = False
    unseen: bool = False
    counts: npt.ArrayLike | None = None
    field_starts: npt.ArrayLike | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "dim"):
            object.__setattr__(self, name, check_range(name, getattr(self, name), 1))
        for name in ("budget_bytes", "training_bytes", "latency_us"):
            value = getattr(self, name)
            if value is not None or name == "budget_bytes":
                object.__setattr__(self, name, check_number(name, value, above=0))
        check_choice("task", self.task, tuple(METRICS))
        check_choice("device", self.device, DEVICES)
        for name in ("trained", "stream", "unseen"):
            object.__setattr__(self, name, check_switch(name, getattr(self, name)))
        if self.counts is not None or self.field_starts is not None:
            self.spec_of(self.rows)  # whether they fit the table

    @property
    def full_bytes(self) -> int:
        """Bytes of the float32 table."""
        return 4 * self.rows * self.dim

    @property
    def ratio(self) -> float:
        """How many times smaller the table must be; below 1 it fits as it is."""
        return self.full_bytes / self.budget_bytes

    @property
    def asked(self) -> float:
        """The ratio that methods are asked for: 1 at least, and rounded so that what
        fills the budget to the last byte fits.
        """
        ratio = max(self.ratio, 1.0)
        short = int(self.full_bytes / ratio) < min(
            int(self.budget_bytes), self.full_bytes
        )
        return math.nextafter(ratio, 1.0) if short else ratio

    @cached_property
    def whole(self) -> TableSpec:
        """The very table."""
        return self.spec_of(self.rows)

    def spec_for(self, stage: str) -> TableSpec:
        """What methods of a stage are planned for: of a very long table about whose ids
        nothing is known, one of fewer rows.
        """
        most = COMPRESSED_ROWS if stage == AFTER else TRAINED_ROWS
        known = self.counts is not None or self.field_starts is not None
        if known or self.rows <= most:
            return self.whole
        return self.spec_of(most)

    def spec_of(self, rows: int, reads: int = 0) -> TableSpec:
        """The table with so many rows, each read so often where counts are unknown."""
        counts = self.counts
        if counts is None:
            # A number that stands for all rows: nothing is held for each of them.
            counts = np.broadcast_to(np.int64(reads), (rows,))
        return TableSpec.of_table(rows, self.dim, counts, self.field_starts)

    @property
    def opens_ids(self) -> bool:
        """Whether a method must have rows for ids that training did not see."""
        return self.unseen and not self.trained

    @property
    def largest_field(self) -> float | None:
        """Share of the rows that the largest field has, if the fields are known."""
        if self.field_starts is None:
            return None
        return float(np.diff(self.whole.field_starts).max() / self.rows)

    @property
    def skew(self) -> float | None:
        """Share of the reads that the busiest 1 % of the ids take, if it is known."""
        if self.counts is None:
            return None
        counts = self.whole.train_counts
        return measure_skew(counts) if counts.any() else None

    def distances(self, contest: RecordedContest) -> dict[str, float]:
        """How many times a contest's rows, dimension and, if known, skew."""
        found = {"rows": self.rows / contest.rows, "dimension": self.dim / contest.dim}
        if self.skew:
            found["skew"] = self.skew / contest.skew
        return found

    def distance(self, contest: RecordedContest) -> float:
        """How far a contest is: the sum of the distances' logarithms."""
        return float(sum(abs(np.log(f)) for f in self.distances(contest).values()))


def measure_skew(counts: np.ndarray) -> float:
    """The share of all reads that the busiest 1 % of the ids take; some are read."""
    busiest = -(-len(counts) // 100)
    return float(np.sort(counts)[::-1][:busiest].sum() / counts.sum())
