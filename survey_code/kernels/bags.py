"""What bags are given, checked on either side: modes, weights, and where bags begin."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np

from survey_code.kernels.cuda import MODES, GpuArray, Shaped

if TYPE_CHECKING:
    from torch import Tensor

N = TypeVar("N", np.ndarray, "GpuArray")


def as_view(given: object) -> np.ndarray | None:
    """NumPy's view of a plain tensor on the processor, in the shortest time; an array
    as it is; None of anything else.
    """
    view: np.ndarray
    if type(given) is np.ndarray:
        view = given
        return view
    held: Any = given
    torch = sys.modules.get("torch")
    if torch is None or type(given) is not torch.Tensor or not held.is_cpu:
        return None
    try:
        view = held.numpy()
    except (TypeError, RuntimeError):  # of a type that NumPy lacks, or with a gradient
        if held.requires_grad or not held.is_neg():
            return None
        view = held.resolve_neg().numpy()
    return view


def make_array(
    name: str, given: object, xp: ModuleType, wanted: str = "numbers"
) -> np.ndarray:
    """An array of NumPy or CuPy, or one clear ValueError."""
    refuse_masked(name, given)
    try:
        array: np.ndarray = xp.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be an array of {wanted}: {error}") from error
    return array


def refuse_check(check: object) -> None:
    """Raise ValueError for what says neither whether nor when errors are raised."""
    late = isinstance(check, str) and check == "late"
    if not late and check is not True and check is not False:
        raise ValueError(f"check must be True, False or 'late', got {check!r}")


def refuse_masked(name: str, given: object) -> None:
    """Raise ValueError for an array of NumPy with a mask, which would be dropped."""
    if isinstance(given, np.ma.MaskedArray):
        raise ValueError(
            f"{name} must not be a masked array: its mask would have no effect"
        )


def as_offsets(
    ids: N,
    offsets: Shaped | Tensor | Sequence[int] | None,
    xp: ModuleType,
    include_last_offset: bool = False,
) -> N:
    """Where each bag starts, as int64, their order unchecked.

    Parameters
    ----------
    ids : array of integers, one axis, or (bags, length) without offsets
    offsets : array of integers, shape (bags,), or (bags + 1,)
    xp : module
        NumPy or CuPy.
    include_last_offset : bool, default False
        Whether the end of the last bag follows; there is one more then.
    """
    if offsets is None:
        check_bags(ids.shape, None, include_last_offset)
        return xp.arange(ids.shape[0], dtype=np.int64) * ids.shape[1]
    starts: Any = as_view(offsets) if xp is np else None
    if starts is None:
        starts = make_array("offsets", offsets, xp, "integers")
    if starts.ndim != 1 or (starts.size and starts.dtype.kind not in "iu"):
        raise_offsets(str(starts.dtype), starts.shape)
    check_bags(ids.shape, starts.size, include_last_offset)
    return xp.ascontiguousarray(starts.astype(np.int64, copy=False))


def raise_offsets(kind: str, shape: tuple[int, ...]) -> NoReturn:
    """Raise ValueError for what no offsets are."""
    raise ValueError(
        f"offsets must be integers of shape (bags,), got dtype {kind} and shape {shape}"
    )


def raise_weights(
    wanted: tuple[int, ...], kind: str, shape: tuple[int, ...]
) -> NoReturn:
    """Raise ValueError for what no weights of such ids are."""
    raise ValueError(
        f"per_sample_weights must be numbers of the ids' shape {wanted}, "
        f"got dtype {kind} and shape {shape}"
    )


def refuse_bfloat16(kind: str) -> None:
    """Raise ValueError for what arrays of NumPy and CuPy cannot hold."""
    if kind == "bfloat16":
        raise ValueError("bfloat16 is a type of torch: ids must be a tensor for it")


def check_mode(mode: str, weighted: bool) -> None:
    """Raise ValueError for an unknown mode, or one that takes no weights."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    if weighted and mode != "sum":
        raise ValueError(f"per_sample_weights need mode='sum', got mode={mode!r}")


def check_bags(shape: Sequence[int], offsets: int | None, last: bool) -> None:
    """Raise ValueError unless ids of a shape and so many offsets, or none, are bags."""
    shape = tuple(shape)
    if offsets is None:
        if len(shape) != 2:
            raise ValueError(
                f"without offsets, ids must have shape (bags, length), got {shape}"
            )
        if last:
            raise ValueError("include_last_offset=True needs offsets")
        return
    if len(shape) != 1:
        raise ValueError(f"with offsets, ids must have one axis, got shape {shape}")
    if not offsets and last:
        raise ValueError("include_last_offset=True needs one offset or more, got none")
    if not offsets and shape[0]:
        raise ValueError(f"{shape[0]} ids, but no bag to put them in")


def check_order(starts: N, size: int, xp: ModuleType) -> None:
    """Raise ValueError unless offsets start at 0, never fall, and end by `size`."""
    if not starts.size:
        return
    falls = bool((xp.diff(starts) < 0).any())
    if falls or int(starts[0]) != 0 or int(starts[-1]) > size:
        raise ValueError(
            "offsets must start at 0, never fall, and not exceed the number of "
            f"ids ({size}), got {starts[:8]}"
        )


def check_end(borders: object, size: int) -> None:
    """Raise ValueError unless the last bag ends where the ids do."""
    held: Any = borders
    end = int(held[-1])
    if end != size:
        raise ValueError(
            f"with include_last_offset=True the last offset must be the number of ids "
            f"({size}), got {end}"
        )


def put_padding_last(
    ids: N, borders: N, weights: N | None, padding: int, xp: ModuleType
) -> tuple[N, N, N | None]:
    """Ids that are not padding, in their order, and behind them the others.

    Nothing here waits for a GPU.

    Parameters
    ----------
    ids : array of integers, shape (m,)
    borders : array of int64, shape (bags + 1,)
        Where each bag starts, and where the last one ends.
    weights : array of float32, shape (m,), or None
    padding : int
        The id to be left out.
    xp : module

    Returns
    -------
    ids, borders, weights
        The last border is the number of ids that are left in bags.
    """
    padded: Any = ids == padding
    order = padded.astype(np.uint8).argsort(kind="stable")
    below = xp.zeros(ids.size + 1, dtype=np.int64)
    below[1:] = xp.cumsum(~padded, dtype=np.int64)
    return ids[order], below[borders], None if weights is None else weights[order]
