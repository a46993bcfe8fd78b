"""Many tables, each measured in every form; and a report of what was taken.

A *form* is a method with its options, such as ``("rowwise", {"bits": 4})``.  A key
alone stands for every size that the method plans for a table 2, 4, 8, 16 and 32 times
smaller; of a method that knows one size only, for that.

An error is the mean squared distance between a row and what is read in its place, over
all reads.  Without counts each table is taken to be read as often as any other, and so
is each of its rows.  A table without counts beside others that have them is read as
often as these are on average.  Of large tables a sample of rows is measured, in which a
row that is read more often is more likely to be; a method is always given the whole
table, so that bytes are exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor

from survey_code.advice.automatic import AUTO, choose_keys, explain
from survey_code.advice.report import Choice
from survey_code.catalog import AFTER, Method, get_method
from survey_code.checks import check_number, check_range
from survey_code.layouts import Layout
from survey_code.layouts.layout import as_finite_table
from survey_code.options import Options
from survey_code.serving.allocation import Offer, divide_budget
from survey_code.spec import OutOfReach, TableSpec, as_integers
from survey_code.weight_sharing.lloyd import sample_rows

if TYPE_CHECKING:
    import pandas as pd

# A method as users name it: by its key alone, or with options.
Named = str | tuple[str, Mapping[str, object]]
Counts = Mapping[str, npt.ArrayLike]

# What each table is tried in unless someone asks.
USUAL_FORMS: tuple[Named, ...] = (
    ("half", {"dtype": "float16"}),
    ("rowwise", {"bits": 8}),
    ("rowwise", {"bits": 4}),
    ("rowwise", {"bits": 2}),
)
# How many times smaller a method is planned where only its key is given.
SHRINKS = (2, 4, 8, 16, 32)
# Rows of a table whose error is measured, and those that are read together.
MEASURED_ROWS, DECODED = 2**16, 2**12


@dataclass(frozen=True)
class Form:
    """A way to store a table: a method and its options; without one, as it is.

    Parameters
    ----------
    method : Method or None
    asked : Options or None
    """

    method: Method | None = None
    asked: Options | None = None

    def make(self, weight: np.ndarray, spec: TableSpec) -> Layout:
        """The layout of a float32 table; not for a form without a method."""
        assert self.method is not None and self.asked is not None
        return self.method.compress(weight, self.asked, spec)

    def describe(self) -> tuple[str, dict[str, object]]:
        """Key of the method, and options that are not the defaults."""
        if self.method is None or self.asked is None:
            return "as it is", {}
        return self.method.key, self.asked.given()

    def __str__(self) -> str:
        key, options = self.describe()
        return " ".join([key, *(f"{name}={value}" for name, value in options.items())])


@dataclass(eq=False)
class HeldTable:
    """An embedding table, and the names by which it is held.

    Parameters
    ----------
    names : list of str
        Of the modules or tensors that share it; the first one stands for all.
    weight : Tensor of floating-point numbers, shape (rows, dim)
    reason : str or None
        Why it has to stay as it is.
    own : Form
        What it costs nothing to be: as it is, or a layout of its own numbers.
    counts : ndarray of int64, shape (rows,), optional
        How often each row is read.
    """

    names: list[str]
    weight: Tensor
    reason: str | None = None
    own: Form = field(default_factory=Form)
    counts: np.ndarray | None = None

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return self.weight.numel() * self.weight.element_size()

    def as_rows(self) -> np.ndarray:
        """Its numbers in float32, or an error that names it."""
        return as_finite_table(self.weight, self.name)

    def as_spec(self) -> TableSpec:
        """What is known of its reads."""
        rows, dim = self.weight.shape
        return TableSpec.of_table(rows, dim, self.counts)


@dataclass(frozen=True, eq=False)
class TableLine:
    """What became of a table.

    Parameters
    ----------
    name : str
        Of the first module or tensor that holds it.
    rows, dim : int
    before, after : int
        Bytes.
    method : str
        Key of the method, or "as it is".
    options : dict
        Of the method, where they are not the defaults.
    error : float
        Mean squared distance between a row as it was and as it is read now, over the
        reads of the table.
    relative : float
        The same as a share of the rows' mean squared length; 0 for rows of zeros.
    share : float
        Of all reads: what the table's error counts in the sum.
    names : tuple of str
        All that hold it, where it is tied.
    reason : str or None
        Why it had to stay as it is, if it had to.
    refused : dict of str
        Forms that cannot hold it, and why.
    layout : Layout or None
        None where it stays as it is.
    """

    name: str
    rows: int
    dim: int
    before: int
    after: int
    method: str
    options: dict[str, object]
    error: float
    relative: float
    share: float
    names: tuple[str, ...]
    reason: str | None = None
    refused: dict[str, str] = field(default_factory=dict)
    layout: Layout | None = field(default=None, repr=False)

    @property
    def form(self) -> str:
        """Method and options in words."""
        options = (f"{name}={value}" for name, value in self.options.items())
        return " ".join([self.method, *options])


@dataclass(frozen=True, eq=False)
class BudgetReport:
    """What became of all tables; printed, a table of text.

    Parameters
    ----------
    lines : list of TableLine
        In the order in which the tables were found.
    budget : int
        Bytes that all tables together might take.
    chosen : tuple of str
        Where methods were to be chosen: which, and why.
    """

    lines: list[TableLine]
    budget: int
    chosen: tuple[str, ...] = ()

    @property
    def before(self) -> int:
        """Bytes of all tables as they were."""
        return sum(line.before for line in self.lines)

    @property
    def after(self) -> int:
        """Bytes of all tables now, headers of files aside."""
        return sum(line.after for line in self.lines)

    @property
    def error(self) -> float:
        """Mean squared distance over the reads of all tables: what was kept small."""
        return sum(line.share * line.error for line in self.lines)

    def to_frame(self) -> pd.DataFrame:
        """The lines as a table of pandas, without the layouts."""
        import pandas as pd

        hidden = {"layout", "refused"}
        rows = [
            {name: part for name, part in vars(line).items() if name not in hidden}
            for line in self.lines
        ]
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        head = ("table", "rows", "dim", "before", "after", "", "stored as", "error")
        body = [
            (
                line.name, f"{line.rows:,}", str(line.dim), f"{line.before:,}",
                f"{line.after:,}", f"{line.before / line.after:.1f}x", line.form,
                f"{line.relative:.2g}",
            )
            for line in self.lines
        ]  # fmt: skip
        total = (
            "all", "", "", f"{self.before:,}", f"{self.after:,}",
            f"{self.before / self.after:.1f}x", f"budget {self.budget:,} bytes", "",
        )  # fmt: skip
        rows = [head, *body, total]
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ["  ".join(place_cells(row, widths)).rstrip() for row in rows]
        lines.append(
            "(sizes in bytes; errors as shares of the rows' mean squared length)"
        )
        return "\n".join([*lines, *self._tell_apart()])

    def _tell_apart(self) -> Iterable[str]:
        """A line for each fact that has no column."""
        for line in self.lines:
            if len(line.names) > 1:
                yield f"{line.name}: the same table as {', '.join(line.names[1:])}"
            if line.reason:
                yield f"{line.name}: stays as it is: {line.reason}"
            for form, why in line.refused.items():
                yield f"{line.name}: not in {form}: {why}"


def place_cells(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Cells of a line: words to the left, numbers to the right."""
    words = (0, 6)
    return [
        cell.ljust(width) if at in words else cell.rjust(width)
        for at, (cell, width) in enumerate(zip(row, widths))
    ]


def compress_tables(
    tables: Sequence[HeldTable],
    budget_bytes: float | None,
    ratio: float | None,
    methods: Sequence[Named],
    counts: Counts | None,
    sample: int,
    progress: bool,
    task: str,
) -> BudgetReport:
    """Measure all tables in all forms, divide the budget, make the layouts.

    Parameters and errors are those of `compress_model`.
    """
    budget = find_budget(tables, budget_bytes, ratio)
    take_counts(tables, counts)
    chosen: dict[str, Choice] = {}
    if methods == AUTO:
        chosen = choose_forms(tables, task)
        methods = tuple(chosen)
    asked = [check_form(named) for named in check_methods(methods)]
    check_range("sample", sample, 1)
    lines = [Measured(table, asked, sample) for table in tables]
    for one in show_tables(lines, progress):
        one.measure()
    refuse_useless(lines, asked)
    shares = weigh_tables(tables)
    offers = [
        [Offer(o.nbytes, share * o.error) for o in one.offers.values()]
        for one, share in zip(lines, shares)
    ]
    require_budget(sum(min(offers_)[0] for offers_ in offers), tables, budget)
    taken = divide_budget(offers, budget)
    forms = [list(one.offers)[place] for one, place in zip(lines, taken)]
    return BudgetReport(
        [one.settle(form, s) for one, form, s in zip(lines, forms, shares)],
        budget,
        tuple(explain(choice) for choice in chosen.values()),
    )


def choose_forms(tables: Sequence[HeldTable], task: str) -> dict[str, Choice]:
    """Methods by key that `advise` takes for the largest table, at all usual sizes.

    Raises
    ------
    ValueError
        If there are none.
    """
    free = [table for table in tables if table.reason is None]
    if not free:
        return {}
    largest = max(free, key=lambda table: table.nbytes)
    rows, dim = largest.weight.shape
    return choose_keys(rows, dim, SHRINKS, task, largest.counts)


class Measured:
    """A table in its forms: their bytes, and how far they move the rows that are read.

    Parameters
    ----------
    table : HeldTable
    asked : list of (Method, Options or None)
    sample : int
        Rows that are measured, at most.
    """

    def __init__(
        self, table: HeldTable, asked: list[tuple[Method, Options | None]], sample: int
    ) -> None:
        self.table, self.spec = table, table.as_spec()
        self.asked = asked if table.reason is None else []
        self.some, self.mass = choose_rows(self.spec, sample)
        self.offers: dict[Form, Offer] = {}
        self.refused: dict[Form, str] = {}
        self.length = 0.0  # the mean square of the rows, once they were looked at

    def measure(self) -> None:
        """Make a layout of each form, and keep its bytes and its error alone."""
        own = self.table.own
        if own.method is None:
            self.offers[own] = Offer(self.table.nbytes, 0.0)
        forms = dict.fromkeys([own, *list_forms(self.asked, self.spec)])
        todo = [form for form in forms if form not in self.offers]
        if not todo:
            return
        weight = self.table.as_rows()
        self.length = self._average(weight, None)
        for form in todo:
            try:
                layout = form.make(weight, self.spec)
            except ValueError as error:
                self.refused[form] = str(error)
                continue
            self.offers[form] = Offer(layout.nbytes, self._average(weight, layout))

    def _average(self, weight: np.ndarray, layout: Layout | None) -> float:
        """Mean squared distance between rows and a layout's; without one, from 0."""
        total = 0.0
        for start in range(0, len(self.some), DECODED):
            ids = self.some[start : start + DECODED]
            rows = weight[ids].astype(np.float64)
            if layout is not None:
                rows -= layout.read_rows(ids)
            total += float(self.mass[start : start + DECODED] @ (rows**2).sum(axis=1))
        return total / float(self.mass.sum())

    def settle(self, form: Form, share: float) -> TableLine:
        """The line of the form that was chosen, with its layout."""
        table, offer = self.table, self.offers[form]
        layout = None
        if form.method is not None:
            layout = form.make(table.as_rows(), self.spec)
            if layout.nbytes != offer.nbytes:
                raise RuntimeError(
                    f"{table.name}: {form} made {offer.nbytes:,} bytes, and then "
                    f"{layout.nbytes:,}: a method must make the same each time"
                )
        relative = offer.error / self.length if self.length else 0.0
        refused = {str(other): why for other, why in self.refused.items()}
        rows, dim = table.weight.shape
        return TableLine(
            table.name, rows, dim, table.nbytes, offer.nbytes, *form.describe(),
            offer.error, relative, share, tuple(table.names), table.reason, refused,
            layout,
        )  # fmt: skip


def find_budget(
    tables: Sequence[HeldTable], budget_bytes: float | None, ratio: float | None
) -> int:
    """Bytes of all tables, by either of the two ways to say them."""
    if (budget_bytes is None) == (ratio is None):
        raise ValueError(
            "say either budget_bytes or ratio, got "
            f"budget_bytes={budget_bytes!r} and ratio={ratio!r}"
        )
    if ratio is None:
        return int(check_number("budget_bytes", budget_bytes, low=0))
    before = sum(table.nbytes for table in tables)
    return int(before / check_number("ratio", ratio, low=1))


def require_budget(smallest: int, tables: Sequence[HeldTable], budget: int) -> None:
    """Raise OutOfReach where the smallest forms of all tables exceed the budget."""
    if smallest <= budget:
        return
    before = sum(table.nbytes for table in tables)
    reach = 1000 * before // smallest  # rounded down, so that it can be asked for
    while reach > 1000 and int(before / (reach / 1000)) < smallest:
        reach -= 1
    nearest = reach / 1000 if reach >= 1000 else None
    raise OutOfReach(
        f"{budget:,} bytes are asked for, but the smallest forms of all tables take "
        f"{smallest:,}: the highest ratio they can reach is "
        + ("below 1" if nearest is None else f"{nearest:.15g}"),
        nearest,
    )


def check_methods(methods: Sequence[Named]) -> Sequence[Named]:
    """The methods, if they are a list of them."""
    if isinstance(methods, str) or not isinstance(methods, Sequence):
        raise ValueError(
            "methods must be a sequence of keys, or of keys and options, or "
            f"{AUTO!r}, got {methods!r}"
        )
    return methods


def check_form(named: Named) -> tuple[Method, Options | None]:
    """A method, and what is asked of it; None where only its key is given.

    Raises
    ------
    ValueError
        If there is no such method or option, or it does not compress after training.
    """
    pair = (named, None) if isinstance(named, str) else named
    if (
        not isinstance(pair, tuple | list)
        or len(pair) != 2
        or not isinstance(pair[0], str)
    ):
        raise ValueError(
            'each of methods must be a key, or a pair like ("rowwise", {"bits": 4}), '
            f"got {named!r}"
        )
    key, options = pair
    method = get_method(key)
    if AFTER not in method.stages:
        raise ValueError(
            f"{key} does not compress {AFTER}, only {' or '.join(method.stages)}"
        )
    return method, None if options is None else method.ask(options)


def list_forms(
    asked: Iterable[tuple[Method, Options | None]], spec: TableSpec
) -> list[Form]:
    """The forms of a table: of a key alone, each size that its plan chooses."""
    forms: dict[Form, None] = {}
    for method, options in asked:
        if options is not None:
            forms[Form(method, options)] = None
            continue
        plans = dict.fromkeys(plan_form(method, spec, shrink) for shrink in SHRINKS)
        plans.pop(None, None)
        if len(plans) < 2:  # of one size: as without a budget
            plans = {method.ask({}): None}
        forms |= {Form(method, plan): None for plan in plans}
    return list(forms)


def plan_form(method: Method, spec: TableSpec, shrink: float) -> Options | None:
    """What a method chooses for a table so many times smaller, or as near as it gets.

    None where it cannot say.
    """
    asked: float | None = shrink
    for _ in range(2):
        if asked is None:
            break
        try:
            return method.plan(spec, asked)
        except OutOfReach as error:
            asked = error.nearest
        except ValueError:  # it needs what is not known of this table
            break
    return None


def show_tables(measured: list[Measured], progress: bool) -> Iterable[Measured]:
    """What is to be measured, behind a progress bar where one is asked for."""
    if not progress:
        return measured
    from tqdm.auto import tqdm

    return tqdm(measured, unit="table", desc="measuring")


def refuse_useless(
    measured: Iterable[Measured], asked: Iterable[tuple[Method, Options | None]]
) -> None:
    """Raise ValueError for a method with options that no table at all can take."""
    tried = [one for one in measured if one.table.reason is None]
    for method, options in asked:
        form = Form(method, options)
        if options is None or not tried or any(form in one.offers for one in tried):
            continue
        name, why = tried[0].table.name, tried[0].refused[form]
        raise ValueError(f"no table can be stored in {form}; {name}: {why}")


def take_counts(tables: Sequence[HeldTable], counts: Counts | None) -> None:
    """Give each table its counts; those of tied ones are added up.

    Raises
    ------
    ValueError
        If a name is no table's, or counts are not one number a row, from 0 up.
    """
    owners = {name: table for table in tables for name in table.names}
    if counts is not None and not isinstance(counts, Mapping):
        raise ValueError(
            "counts must be a dictionary of arrays by the tables' names, got "
            f"{type(counts).__name__}"
        )
    for name, given in (counts or {}).items():
        if name not in owners:
            raise ValueError(
                f"counts of {name!r}, which is no table; tables: {', '.join(owners)}"
            )
        table = owners[name]
        own, rows = as_integers(given, f"counts of {name}"), len(table.weight)
        if own.shape != (rows,) or own.min() < 0:
            raise ValueError(
                f"counts of {name} must be {rows} numbers from 0 up, got shape "
                f"{own.shape}" + (f" from {own.min()} up" if own.size else "")
            )
        table.counts = own if table.counts is None else table.counts + own


def weigh_tables(tables: Sequence[HeldTable]) -> list[float]:
    """The share of each table in all reads.

    Tables without counts are read as often as the others are on average: where there
    are no counts at all, each as often as any other.
    """
    known = [float(t.counts.sum()) for t in tables if t.counts is not None]
    usual = sum(known) / len(known) if sum(known) else 1.0
    reads = [usual if t.counts is None else float(t.counts.sum()) for t in tables]
    if not sum(reads):
        raise ValueError("counts of all tables are 0: some row must have been read")
    return [read / sum(reads) for read in reads]


def choose_rows(spec: TableSpec, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that stand for all reads of a table, and how much each counts."""
    counts = spec.train_counts
    read = np.flatnonzero(counts) if counts.any() else np.arange(len(counts))
    mass = counts[read].astype(np.float64) if counts.any() else np.ones(len(read))
    if len(read) <= most:
        return read, mass
    some, own = sample_rows(len(read), mass, most, np.random.default_rng(0))
    return read[some], own
