"""Orders that are the same on every machine, also where keys are equal.

A sort that does not promise to keep equal keys in place orders them by whatever the
processor's instructions make easy, which differs between processors.  So every sort
of keys that can tie is stable; a test looks for those that are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, overload

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from survey_code.kernels.cuda import GpuArray

N = TypeVar("N", np.ndarray, "GpuArray")


@overload
def largest_first(values: N, axis: int | None = -1) -> N: ...
@overload
def largest_first(values: Tensor, axis: int | None = -1) -> Tensor: ...


def largest_first(
    values: np.ndarray | GpuArray | Tensor, axis: int | None = -1
) -> np.ndarray | GpuArray | Tensor:
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
    if hasattr(values, "is_cuda"):  # torch is not needed for arrays
        from torch import Tensor

        assert isinstance(values, Tensor)
        if axis is None:
            values, axis = values.flatten(), 0
        return values.argsort(dim=axis, descending=True, stable=True)
    if values.dtype.kind in "ub":
        values = values.astype(np.int64)  # whose negatives are below 0
    return (-values).argsort(axis=axis, kind="stable")


def most_frequent(counts: np.ndarray, number: int) -> np.ndarray:
    """The ids with the largest counts, rising; of equals the lower ids.

    Examples
    --------
    >>> most_frequent(np.array([3, 9, 3, 9]), 3)
    array([0, 1, 3])
    """
    if counts.strides == (0,):  # one number that stands for all: nothing to sort
        return np.arange(min(number, len(counts)))
    return np.sort(largest_first(counts)[:number])
