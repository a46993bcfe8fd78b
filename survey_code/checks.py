"""One clear error for each kind of wrong value."""

from __future__ import annotations

import math
import os
from numbers import Integral, Real

import numpy as np

# What our own integers and numbers may be at most, and a float still holds.
LARGEST = 1e300
# Integers so short are codes, or the bits of numbers that NumPy has no type for.
CODE_BYTES = 2
# Numbers that are looked at together.
CHECKED = 2**20


def check_range(name: str, value: object, low: int, high: int | None = None) -> int:
    """The value as Python's own integer.

    Raises
    ------
    ValueError
        Unless it is an integer of any type, and no truth value, from low to high.
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)
        if low <= number and (high is None or number <= high):
            return number
    upto = "up" if high is None else f"to {high}"
    raise ValueError(f"{name} must be an integer from {low} {upto}, got {value!r}")


def is_within(
    number: float,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> bool:
    """Whether a number, neither NaN nor infinite, is inside the bounds that there are;
    `above` and `below` are themselves outside.
    """
    return (
        abs(number) < LARGEST
        and (low is None or number >= low)
        and (high is None or number <= high)
        and (above is None or number > above)
        and (below is None or number < below)
    )


def check_number(
    name: str,
    value: object,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """The value as Python's own float.

    Raises
    ------
    ValueError
        Unless it is a number of any type, no truth value, neither NaN nor infinite,
        and inside the bounds that are given.
    """
    try:
        number = math.nan
        if isinstance(value, Real) and not isinstance(value, bool):
            number = float(value)
    except OverflowError:
        number = math.inf
    if not is_within(number, low, high, above, below):
        words = [("from", low), ("above", above), ("to", high), ("below", below)]
        shown = "".join(f" {word} {end:g}" for word, end in words if end is not None)
        if shown and high is None and below is None and above is None:
            shown += " up"
        raise ValueError(f"{name} must be a number{shown}, got {value!r}")
    return number


def check_switch(name: str, value: object) -> bool:
    """The value as True or False; a word is neither.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise ValueError unless `value` is one of the choices."""
    plain = value.item() if isinstance(value, np.generic) else value
    # 1 is no switch and True no number, equal as they are.
    if not any(type(plain) is type(one) and plain == one for one in choices):
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def as_array(name: str, values: object, what: str, kinds: str) -> np.ndarray:
    """An array of numbers of some of NumPy's kinds, which `what` names.

    Raises
    ------
    ValueError
        If the values are none, or are masked: a mask would have no effect.
    """
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"{name} must {what}, got a masked array")
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must {what}: {error}") from error
    if array.dtype.kind not in kinds:
        raise ValueError(f"{name} must {what}, got dtype {array.dtype}")
    return array


def check_labels(labels: np.ndarray) -> None:
    """Raise ValueError unless all labels are 0 or 1; NaN is neither."""
    wrong = labels[(labels != 0) & (labels != 1)]
    if wrong.size:
        raise ValueError(f"labels must be 0 or 1, got {wrong[0]:g}")


def refuse_no_table(name: str, weight: object) -> None:
    """Raise ValueError for what could be read as an array, but is not meant as one.

    A masked array would lose its mask, a layout is compressed already, and the name of
    a file is not what the file holds.
    """
    wrong = None
    if isinstance(weight, str | bytes | os.PathLike):
        wrong = f"got {weight!r}: load the file first"
    elif isinstance(weight, np.ma.MaskedArray):
        wrong = "got a masked array: fill what is masked first, with `filled`"
    elif hasattr(weight, "blueprint"):
        wrong = f"got {weight!r}, which is compressed already: decode its rows first"
    elif hasattr(weight, "state_dict"):
        wrong = f"got a module, {type(weight).__name__}: give its `weight`"
    if wrong:
        raise ValueError(f"{name} must be an array of numbers, {wrong}")


def check_weight_type(name: str, kind: np.dtype[np.generic]) -> None:
    """Raise ValueError unless a type of arrays is one that weights have.

    Bytes and 16-bit integers hold packed codes, this package's own among them, or the
    bits of bfloat16: as numbers they are nonsense that looks like a table.
    """
    if kind.kind not in "fiu":
        raise ValueError(f"{name} must be an array of numbers, got {kind}")
    if kind.kind == "u" or (kind.kind == "i" and kind.itemsize <= CODE_BYTES):
        raise ValueError(
            f"{name} must hold floating-point numbers, got {kind}: packed codes, or "
            "the bits of another type, must be decoded first; numbers that are meant "
            "so must be converted to float32"
        )


def check_finite(name: str, table: np.ndarray) -> None:
    """Raise ValueError if a table holds NaN or infinity; the first such row is named.

    Some rows at a time: a mapped file is not to be read into memory as a whole.
    """
    step = max(1, CHECKED // max(1, table.shape[1]))
    for start in range(0, len(table), step):
        good = np.isfinite(table[start : start + step]).all(axis=1)
        if not good.all():
            raise ValueError(
                f"{name} must be finite in float32: row {start + int(good.argmin())} "
                "holds NaN or infinity"
            )
