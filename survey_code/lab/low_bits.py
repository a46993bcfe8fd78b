"""Which rounding is best with 1, 2, 3 or 4 bits a number, task by task.

A budget of b bits a number counts all that is stored: a scale of 16 bits in a row of
16 numbers is one bit of each of them.  So methods are compared at the ratio 32 / b, and
not at equal codes: where a method reaches no ratio within a tenth of that, it is read
off its own curve, between its sizes on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import pandas as pd

from survey_code.catalog import CATALOG
from survey_code.curves import NEAR
from survey_code.lab.comparison import (
    Curves,
    compare_curves,
    draw_curves,
    find_ties,
    subtract_curves,
)
from survey_code.lab.places import (
    Contests,
    CostLine,
    choose_by_validation,
    price_methods,
)
from survey_code.lab.results import Result, name_curve, strip_bits

# Of a number of the full table.
FULL_BITS = 32
# What is read off a table of costs, beside the full table's.
PRICES = ("training", "memory", "lookup")


def list_low_precision(runs: Iterable[Result]) -> list[str]:
    """The curves of methods of low precision, whatever their bits."""
    keys = {m.key for m in CATALOG if m.category == "low precision"}
    return sorted({name_curve(run) for run in runs if run.key in keys})


def judge_bits(
    contests: Contests,
    bits: Sequence[float] = (1, 2, 3, 4),
    names: Collection[str] | None = None,
    costs: Mapping[str, Iterable[CostLine]] | None = None,
) -> pd.DataFrame:
    """The best method at each number of bits, and by how much it is ahead.

    Parameters
    ----------
    contests : mapping of str to collection of Result
        Runs of each task, by what it is called.
    bits : sequence of float
        Stored for each number of the full table, all included.
    names : collection of str, optional
        Who is compared, by the names of curves; by default all methods of low
        precision.
    costs : mapping of str to iterable of dict, optional
        Lines of `survey_code.lab.measures` of each task, as `price_methods` takes them.

    Returns
    -------
    DataFrame
        Indexed by ``task`` and ``bits``.  ``best`` and its ``mean``, with a tilde where
        it was read off; ``to full``, what it is ahead of the full table by; ``next``,
        ``margin``, and whether that is ``clear`` (beyond two deviations of the paired
        differences, of three seeds at least); ``as good``, all that are not clearly
        behind; ``chosen``, the best by validation, as a best of many, judged by what
        chose it, looks better than it is.  With costs also ``training``, ``memory`` and
        ``lookup`` of the best, as `price_methods` has them; NaN where they were not
        measured near.  Texts are empty where nothing reaches the bits.

    Examples
    --------
    >>> judge_bits({}).columns.tolist()
    ['best', 'mean', 'to full', 'next', 'margin', 'clear', 'as good', 'chosen']
    """
    rows: dict[tuple[str, float], dict[str, object]] = {}
    for task, runs in contests.items():
        curves = draw_curves(runs)
        own = list_low_precision(runs) if names is None else names
        for count, ratio in ((count, FULL_BITS / count) for count in bits):
            row = rows[task, count] = judge_ratio(curves, own, ratio)
            row["chosen"] = choose_by_validation(runs, {"": own}, ratio).get("", "")
            if costs is not None:
                row |= find_prices(runs, costs.get(task, ()), row["best"], ratio)
    columns = [*EMPTY, "chosen", *(PRICES if costs is not None else ())]
    index = pd.MultiIndex.from_tuples(list(rows), names=["task", "bits"])
    return pd.DataFrame(list(rows.values()), index=index, columns=columns)


EMPTY: dict[str, object] = {
    "best": "", "mean": "", "to full": "", "next": "", "margin": "", "clear": False,
    "as good": "",
}  # fmt: skip


def judge_ratio(
    curves: Curves, names: Collection[str], ratio: float
) -> dict[str, object]:
    """A row of `judge_bits`, as far as accuracy says it."""
    table = compare_curves(curves, ratio)
    order = [name for name in table.index if name in names]
    if not order:
        return dict(EMPTY)
    best, row = order[0], dict(EMPTY)
    tilde = "~" * bool(table["read_off"][best])
    row |= {"best": best, "mean": f"{tilde}{table['mean'][best]:.4f}"}
    if "full" in curves:
        row["to full"] = subtract_curves(curves, best, "full", ratio).describe()
    if len(order) > 1:
        lead = subtract_curves(curves, best, order[1], ratio)
        row |= {"next": order[1], "margin": lead.describe(), "clear": lead.is_clear}
        row["as good"] = ", ".join(find_ties(curves, order, ratio))
    return row


def find_prices(
    runs: Collection[Result], lines: Iterable[CostLine], best: object, ratio: float
) -> dict[str, float]:
    """What the best costs near a ratio, beside the full table; NaN where nobody
    measured it.
    """
    held = list(lines)
    unknown = dict.fromkeys(PRICES, math.nan)
    if not any(line["entrant"] == "full" for line in held):
        return unknown
    table = price_methods(runs, held, (ratio * (1 - NEAR), ratio * (1 + NEAR)))
    own = [name for name in table.index if strip_bits(str(name)) == best]
    if not own:
        return unknown
    far = [abs(math.log(table["ratio"][name] / ratio)) for name in own]
    nearest = own[far.index(min(far))]
    return {price: float(table[price][nearest]) for price in PRICES}
