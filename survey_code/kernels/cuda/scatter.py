"""The way back: gradients of rows, added up where the rows were read.

Sums are made in no fixed order, so that two calls may differ in the last bits.
"""

from __future__ import annotations

import numpy as np

from survey_code.kernels.cuda import GpuArray, current_stream, load_cupy
from survey_code.kernels.cuda.composed import ComposedRows
from survey_code.kernels.cuda.load import ID_TYPES, load_kernel
from survey_code.kernels.cuda.rows import FusedRows, as_ids


def scatter_blocks(rows: ComposedRows, ids: GpuArray, gradients: GpuArray) -> GpuArray:
    """Gradient of a flat layout's array from the gradients of rows.

    Parameters
    ----------
    rows : ComposedRows
        From `survey_code.kernels.cuda.composed.place_flat`.
    ids : CuPy array of int32 or int64, shape (m,)
    gradients : CuPy array of float32, shape (m, dim)

    Returns
    -------
    CuPy array of float32, as long as the layout's array

    Raises
    ------
    IndexError
        If an id is out of range.
    ValueError
        If the shapes do not fit, or the rows are not those of a flat layout.
    """
    check_file(rows, "flat.cu")
    out = load_cupy().zeros(rows.kept[0].shape, dtype=np.float32)
    scatter(rows, "scatter_blocks", ids, gradients, (out,))
    return out


def scatter_cores(
    rows: ComposedRows, ids: GpuArray, gradients: GpuArray
) -> list[GpuArray]:
    """Gradients of a tensor train's three cores from the gradients of rows.

    Parameters
    ----------
    rows : ComposedRows
        From `place_tensor_train`, without cached rows and
        with steps of 1.
    ids : CuPy array of int32 or int64, shape (m,)
    gradients : CuPy array of float32, shape (m, dim)

    Returns
    -------
    list of three CuPy arrays of float32, of the cores' shapes

    Raises
    ------
    IndexError
        If an id is out of range.
    ValueError
        If the shapes do not fit, or the rows are not those of such a train.
    """
    check_file(rows, "tensor_train.cu")
    if len(rows.kept) != 3:
        raise ValueError("rows must be those of a tensor train without cached rows")
    cupy = load_cupy()
    out = [cupy.zeros(core.shape, dtype=np.float32) for core in rows.kept]
    scatter(rows, "scatter_cores", ids, gradients, tuple(out))
    return out


def check_file(rows: FusedRows, file: str) -> None:
    """Raise ValueError unless rows are read by this file's kernels."""
    found = getattr(rows, "file", type(rows).__name__)
    if found != file:
        raise ValueError(f"rows must be read by {file}, got {found}")


def scatter(
    rows: ComposedRows,
    name: str,
    ids: GpuArray,
    gradients: GpuArray,
    out: tuple[GpuArray, ...],
) -> None:
    """Start one of the kernels above, a warp for each row, and check its ids."""
    cupy = load_cupy()
    ids = as_ids(ids).ravel()
    if gradients.shape != (ids.size, rows.dim) or gradients.dtype != np.float32:
        raise ValueError(
            f"gradients must be float32 of shape {(ids.size, rows.dim)}, got "
            f"{gradients.dtype} of shape {gradients.shape}"
        )
    if not ids.size:
        return
    with current_stream():
        flag = cupy.zeros(1, dtype=np.uint32)
        kernel = load_kernel(rows.file, f"{name}<{ID_TYPES[str(ids.dtype)]}>")
        given = cupy.ascontiguousarray(gradients)
        kernel((-(-ids.size // 4),), (32, 4), (*rows.arguments(ids), given, *out, flag))
        rows.raise_if(flag, ids)
