"""Training of ROBE: rows of blocks anywhere in an array, and their gradients' way back.

Pure functions of ids, arrays and the hash's numbers; they wait for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from survey_code.kernels.cuda import GpuArray, current_stream, load_cupy
from survey_code.kernels.cuda.load import ID_TYPES, load_kernel
from survey_code.kernels.formats import NO_HASH

NUMBER_TYPES = {"float32": "float", "float64": "double"}
BLOCK_THREADS = 128  # threads of a block


def gather_blocks(
    ids: GpuArray,
    values: GpuArray,
    dim: int,
    block_len: int,
    multipliers: Sequence[int],
    signs: Sequence[int] | None = None,
) -> GpuArray:
    """Rows of a flat array, as `survey_code.layouts.flat` defines them.

    Parameters
    ----------
    ids : CuPy array of int32 or int64, shape (m,)
        From 0 up; they are not checked.
    values : CuPy array of float32 or float64, shape (size,)
    dim, block_len : int
        Numbers of a row, and of a block.
    multipliers : three integers
        Of the hash of id and block.
    signs : three integers, optional
        Of the hash that says by +1 or -1 what a block is multiplied with.

    Returns
    -------
    CuPy array, shape (m, dim), of the values' type

    Raises
    ------
    ValueError
        If a type or a shape is another, or a block does not fit.
    """
    if values.ndim != 1:
        raise ValueError(f"values must have one axis, got shape {values.shape}")
    numbers = (values.size, dim, block_len, multipliers, signs)
    cupy = load_cupy()
    with current_stream():
        rows = cupy.empty((len(ids), dim), dtype=values.dtype)
        run_blocks("gather_blocks", ids, numbers, cupy.ascontiguousarray(values), rows)
    return rows


def scatter_blocks(
    ids: GpuArray,
    gradients: GpuArray,
    size: int,
    block_len: int,
    multipliers: Sequence[int],
    signs: Sequence[int] | None = None,
) -> GpuArray:
    """Gradient of a flat array from the gradients of the rows read from it.

    Sums are made in no fixed order, so that two calls may differ in the last bits.

    Parameters
    ----------
    ids : CuPy array of int32 or int64, shape (m,)
        From 0 up; they are not checked.
    gradients : CuPy array of float32 or float64, shape (m, dim)
    size : int
        Numbers of the array.
    block_len, multipliers, signs
        As for `gather_blocks`.

    Returns
    -------
    CuPy array, shape (size,), of the gradients' type

    Raises
    ------
    ValueError
        If a type or a shape is another, or a block does not fit.
    """
    if gradients.ndim != 2 or len(gradients) != len(ids):
        raise ValueError(
            f"gradients must have a row for each of {len(ids)} ids, got shape "
            f"{gradients.shape}"
        )
    numbers = (size, gradients.shape[1], block_len, multipliers, signs)
    cupy = load_cupy()
    with current_stream():
        found = cupy.zeros(size, dtype=gradients.dtype)
        given = cupy.ascontiguousarray(gradients)
        run_blocks("scatter_blocks", ids, numbers, given, found)
    return found


def run_blocks(
    name: str,
    ids: GpuArray,
    numbers: tuple[int, int, int, Sequence[int], Sequence[int] | None],
    given: GpuArray,
    found: GpuArray,
) -> None:
    """Start one of the kernels above, up to a warp for each row."""
    size, dim, block_len, multipliers, signs = numbers
    kinds = ID_TYPES.get(str(ids.dtype)), NUMBER_TYPES.get(str(given.dtype))
    if ids.ndim != 1 or None in kinds:
        raise ValueError(
            f"ids must be int32 or int64 of one axis, and numbers float32 or float64, "
            f"got {ids.dtype} of shape {ids.shape} and {given.dtype}"
        )
    length = min(block_len, dim)
    places = size - length + 1
    if length < 1 or places < 1:
        raise ValueError(f"a block of {length} does not fit into {size} values")
    if not len(ids):
        return
    lanes = min(1 << (dim - 1).bit_length(), 32)
    kernel = load_kernel("scatter.cu", f"{name}<{', '.join(map(str, kinds))}>")
    kernel(
        (-(-len(ids) * lanes // BLOCK_THREADS),), (lanes, BLOCK_THREADS // lanes),
        (
            load_cupy().ascontiguousarray(ids), np.int64(len(ids)), np.int32(dim),
            np.int32(length), np.uint64(places),
            np.uint64(min(2**64 // places, 2**64 - 1)),  # by which a kernel divides
            *(np.int64(number) for number in (*multipliers, *(signs or NO_HASH))),
            given, found,
        ),
    )  # fmt: skip
