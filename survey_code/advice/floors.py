"""What a method holds at least while it trains: its weights, counted on a small table.

Where the costs of a method were not measured, this much is known all the same: what
compresses a trained table trains the full one first, and what learns codes or masks
beside float weights holds these meanwhile.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from survey_code.advice.case import Case
from survey_code.catalog import AFTER, SEARCH, Method, get_method
from survey_code.options import Options
from survey_code.spec import OutOfReach, TableSpec

if TYPE_CHECKING:
    from torch import Tensor

# Rows of the table that is built to be counted.
COUNTED_ROWS = 2048


def find_floor(
    case: Case, key: str, stage: str, asked: Mapping[str, object]
) -> float | None:
    """Weights that training holds at once, in multiples of the full table.

    Without gradients and an optimiser's state, which come on top.

    Parameters
    ----------
    case : Case
    key, stage : str
        Of the method, and when it compresses.
    asked : dict
        Options that tuning found.

    Returns
    -------
    float or None
        None where the method has no such table.

    Examples
    --------
    >>> case = Case(100_000, 16, 640_000, "ctr")
    >>> find_floor(case, "rowwise", "after training", {})
    1.0
    >>> round(find_floor(case, "hashing", "during training", {}), 1)
    0.1
    """
    # Some that compress after training train a full table of their own first.
    if AFTER in (stage, get_method(key).stage):
        return 1.0
    told = json.dumps(asked, sort_keys=True, default=str)
    return count_floor(key, stage, told, case.dim, case.asked)


@functools.lru_cache(maxsize=512)
def count_floor(
    key: str, stage: str, told: str, dim: int, ratio: float
) -> float | None:
    """`find_floor` of a method that trains, its options as JSON."""
    rows = COUNTED_ROWS
    reads = np.maximum(rows // np.arange(1, rows + 1), 1)
    spec = TableSpec.of_table(rows, dim, reads, [0, rows // 2, rows])
    method = get_method(key)
    try:
        options = plan_small(method, spec, ratio, method.ask(json.loads(told)))
        kind = method.load()
        if stage == SEARCH and kind.searches(options):
            made = kind.searching(spec, options, 0)
        else:
            made = method.build(spec, options)
    except ValueError:
        return None
    return sum_bytes((*made.parameters(), *made.buffers())) / spec.full_bytes


def plan_small(
    method: Method, spec: TableSpec, ratio: float, asked: Options
) -> Options:
    """The plan for a ratio, or for the highest in reach."""
    try:
        return method.fit_budget(spec, ratio, asked)
    except OutOfReach as error:
        if error.nearest is None:
            raise
        return method.fit_budget(spec, error.nearest, asked)


def sum_bytes(arrays: Iterable[Tensor]) -> int:
    """Of some tensors, together."""
    return sum(one.numel() * one.element_size() for one in arrays)
