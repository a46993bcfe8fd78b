"""Orders that are the same on every machine, also where keys are equal.

A sort that does not promise to keep equal keys in place orders them by whatever the
processor's instructions make easy, which differs between processors.  So every sort
of keys that can tie is stable; a test looks for those that are not.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def largest_first(values: Any, axis: int | None = -1) -> Any:
    """The order that puts the largest value first; equal values stay as they are.

    Parameters
    ----------
    values : array (NumPy or CuPy) or Tensor of numbers
    axis : int or None, default -1
        None: of all values, read row by row.

    Returns
    -------
    array or Tensor of int64, the shape of values (one axis if `axis` is None)

    Examples
    --------
    >>> largest_first(np.array([3, 9, 3, 9]))
    array([1, 3, 0, 2])
    """
    if hasattr(values, "is_cuda"):  # a Tensor; torch is not needed for arrays
        if axis is None:
            values, axis = values.flatten(), 0
        return values.argsort(dim=axis, descending=True, stable=True)
    if values.dtype.kind in "ub":
        values = values.astype(np.int64)  # whose negatives are below 0
    return (-values).argsort(axis=axis, kind="stable")
