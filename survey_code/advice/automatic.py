"""A method chosen for a table that is trained already: ``--method auto``."""

from __future__ import annotations

from collections.abc import Iterable

import numpy.typing as npt

from survey_code.advice.advise import advise_case
from survey_code.advice.case import Case
from survey_code.advice.evidence import load_evidence
from survey_code.advice.report import Choice
from survey_code.checks import check_number

# What stands in the place of a method's key.
AUTO = "auto"


def choose_method(
    rows: int, dim: int, ratio: float, task: str, counts: npt.ArrayLike | None = None
) -> Choice:
    """The first choice of `advise` for a trained table that needs nothing more.

    Parameters
    ----------
    rows, dim : int
    ratio : float
        Bytes of the float32 table over those that may be stored.
    task : str
        ``"ctr"`` or ``"top-n"``.
    counts : array of int, shape (rows,), optional
        How often each row is read.

    Raises
    ------
    ValueError
        If an argument is not as above, or nothing that is recorded fits.
    """
    asked = check_number("ratio", ratio, low=1)
    case = Case(rows, dim, 4 * rows * dim / asked, task, trained=True, counts=counts)
    advice = advise_case(case, load_evidence())
    able = [choice for choice in advice.choices if not choice.needs]
    if not able:
        why = "; ".join(
            [f"{one.name} needs {' and '.join(one.needs)}" for one in advice.choices]
            or [advice.nearest_miss, *advice.warnings]
        )
        raise ValueError(
            f"nothing that is recorded makes a {rows} x {dim} table {asked:g} times "
            f"smaller for {task}: {why}"
        )
    return able[0]


def choose_keys(
    rows: int,
    dim: int,
    ratios: Iterable[float],
    task: str,
    counts: npt.ArrayLike | None = None,
) -> dict[str, Choice]:
    """The methods that are chosen for some ratios, by key, each with its first choice.

    Parameters
    ----------
    rows, dim, task, counts
        As for `choose_method`.
    ratios : iterable of float

    Raises
    ------
    ValueError
        If there is no method for any of the ratios.
    """
    found: dict[str, Choice] = {}
    errors = []
    for ratio in ratios:
        try:
            choice = choose_method(rows, dim, ratio, task, counts)
        except ValueError as error:
            errors.append(error)
        else:
            found.setdefault(choice.key, choice)
    if not found:
        raise errors[0]
    return found


def explain(choice: Choice) -> str:
    """Which method was chosen, and why, in one line."""
    why, evidence = "; ".join(choice.reasons), "; ".join(choice.evidence)
    return f"{choice.describe()}: {why} ({evidence})"
