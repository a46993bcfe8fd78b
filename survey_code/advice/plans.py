"""Whether a method has a plan for a table, and what it must know for it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from survey_code.advice.case import Case
from survey_code.advice.costs import Breach
from survey_code.advice.report import say_number
from survey_code.catalog import AFTER, Method, get_method
from survey_code.options import Options
from survey_code.spec import OutOfReach, TableSpec

# Rows of a table that is compressed to see what a method has to know.
TRIED_ROWS = 64
USES_COUNTS = "was recorded with counts of the ids, which it uses: give them, too"
# The option of methods that have a row for any id, and what the others are.
OPEN_IDS, CLOSED = "open_ids", "has no row for an id that training did not see"


@dataclass(frozen=True)
class Plan:
    """Options that fit, and what has to be told besides.

    Parameters
    ----------
    options : dict
        Ready to be asked for.
    needs, notes : tuple of str
        What it has to be told besides; and what it could be told.
    """

    options: dict[str, Any]
    needs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def plan_candidate(
    case: Case, key: str, stage: str, options: Sequence[dict[str, Any]]
) -> tuple[Plan | None, Breach | None]:
    """The first options for which a method has a plan; else by how much it has none.

    Parameters
    ----------
    case : Case
    key, stage : str
        Of the method, and when it compresses.
    options : sequence of dict
        What tuning found, the best guess first.
    """
    try:
        method = get_method(key)
    except ValueError as error:
        return None, Breach(np.inf, str(error).split(";")[0])
    spec = case.spec_for(stage)
    opened = {OPEN_IDS: True} if case.opens_ids else {}
    reached, why = 0.0, ""
    for found in options or [{}]:
        asked = found | opened
        try:
            chosen, needs = plan_options(method, case, spec, method.ask(asked))
        except OutOfReach as error:
            nearest = error.nearest or 0.5
            if nearest > reached:
                reached, why = nearest, say_reach(error.nearest)
        except ValueError as error:  # such options are not for such a table
            why = why or str(error)
        else:
            return name_options(method, case, spec, asked, chosen, needs), None
    if not reached:
        return None, Breach(np.inf, why)
    return None, Breach(
        case.asked / reached, f"{why}, and {say_number(case.asked)}x is asked"
    )


def name_options(
    method: Method,
    case: Case,
    spec: TableSpec,
    asked: dict[str, Any],
    chosen: Options,
    needs: tuple[str, ...],
) -> Plan:
    """What to ask for: of a method after training, what the plan chose, too."""
    if method.stage != AFTER:
        return Plan(dict(asked), needs)
    notes: tuple[str, ...] = ()
    if not needs and case.counts is None:
        counts = ask_for_counts(method, tuple(asked.items()), case.dim)
        needs = ("counts",) * (counts == "needs")
        notes = (USES_COUNTS,) * (counts == "uses")
    if spec.num_embeddings < case.rows:
        return Plan(dict(asked), (*needs, "a plan of its sizes for all rows"), notes)
    given = chosen.given()
    return Plan({n: given[n] for n in chosen.names() if n in given}, needs, notes)


def serves_unseen(key: str) -> bool:
    """Whether a method can have a row for ids that training did not see."""
    return OPEN_IDS in get_method(key).load().options.names()


def say_reach(nearest: float | None) -> str:
    """How far a method goes."""
    if nearest is None:
        return "has no form as small as this table itself"
    return f"reaches {say_number(nearest)}x for this table"


def plan_options(
    method: Method, case: Case, spec: TableSpec, asked: Options
) -> tuple[Options, tuple[str, ...]]:
    """What a plan chooses, and what it must be told that is not known.

    Raises
    ------
    OutOfReach
        If the method cannot be so small.
    """
    try:
        return method.fit_budget(spec, case.asked, asked), ()
    except OutOfReach:
        raise
    except ValueError as error:
        for name, told in tell_more(case, spec):
            try:
                return method.fit_budget(told, case.asked, asked), (name,)
            except OutOfReach:
                raise
            except ValueError:
                continue
        raise error


def tell_more(case: Case, spec: TableSpec) -> Iterator[tuple[str, TableSpec]]:
    """The table with what a caller did not say, for the sake of a plan."""
    reads = np.broadcast_to(np.int64(1), (spec.num_embeddings,))
    if case.counts is None:
        spec = dataclasses.replace(spec, train_counts=reads)
        yield "counts", spec
    if case.task == "top-n":
        rows = spec.num_embeddings
        starts, pairs = spec.field_starts, np.array([[0, rows - 1]])
        if case.field_starts is None and rows > 1:  # users, and items
            starts = np.array([0, rows // 2, rows])
        yield (
            "interactions",
            dataclasses.replace(spec, interactions=pairs, field_starts=starts),
        )


@functools.lru_cache(maxsize=256)
def ask_for_counts(
    method: Method, asked: tuple[tuple[str, object], ...], dim: int
) -> str:
    """What counts are to a method that compresses: found out with a small table.

    Returns
    -------
    str
        ``"needs"`` where there is no layout without them, ``"uses"`` where it is
        another one, else empty.
    """
    table = np.random.default_rng(0).normal(size=(TRIED_ROWS, dim)).astype(np.float32)
    bare, told = (
        try_small(method, asked, table, counts)
        for counts in (None, np.arange(TRIED_ROWS) ** 2)
    )
    if told is None:
        return ""
    if bare is None:
        return "needs"
    return "" if np.array_equal(bare, told) else "uses"


def try_small(
    method: Method,
    asked: tuple[tuple[str, object], ...],
    table: np.ndarray,
    counts: np.ndarray | None,
) -> np.ndarray | None:
    """The rows that a method makes of a table, half as large or what it can; None where
    it makes none.
    """
    spec, ratio = TableSpec.of_table(len(table), table.shape[1], counts), 2.0
    for _ in range(2):
        try:
            plan = method.plan(spec, ratio, **dict(asked))
            layout = method.compress(table, plan, spec)
            return layout.read_rows(np.arange(len(table)))
        except OutOfReach as error:
            if error.nearest is None:
                break
            ratio = error.nearest
        except ValueError:
            break
    return None
