"""Rows as FBGEMM's inference tables take them.

A row of `IntNBitTableBatchedEmbeddingBagsCodegen` has its scale and its bias, float16
each, in front of its codes, low bits first; ours have them behind.  Tables of float32
and float16 have the numbers alone.  Rows are filled up with zeros to a multiple of 16
bytes on a GPU, and stand close together on a processor.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from survey_code.checks import check_choice
from survey_code.kernels.cpu.rows import cut_rows
from survey_code.layouts.dense import DenseLayout
from survey_code.layouts.files import write_atomically
from survey_code.layouts.layout import Layout
from survey_code.layouts.rowwise import (
    PYTORCH_BITS,
    RowwiseLayout,
    centre_of,
    code_bytes,
    parameter_type,
)

# What a row's bytes are a multiple of: on a GPU and on a processor.
ROW_ALIGNMENTS = (16, 1)
# Bytes of the longest row that FBGEMM's kernels for GPUs read.
LONGEST_ROW = {"int2": 1024, "int4": 2048, "int8": 4096, "fp16": 8192, "fp32": 8192}
# Bytes of scale and bias.
HEAD_BYTES = 4
# Bytes of rows that are put together at once.
BYTES_TOGETHER = 2**20


def name_fbgemm_type(layout: Layout) -> str:
    """FBGEMM's name of a table's type: the value of its `SparseType`.

    Raises
    ------
    ValueError
        If no table of FBGEMM holds such rows.
    """
    if isinstance(layout, RowwiseLayout) and layout.bits in PYTORCH_BITS:
        return f"int{layout.bits}"
    if isinstance(layout, DenseLayout):
        names = {np.dtype(np.float32): "fp32", np.dtype(np.float16): "fp16"}
        if layout.values.dtype in names:
            return names[layout.values.dtype]
    kind = getattr(layout, "name", type(layout).__name__)
    if isinstance(layout, DenseLayout):
        kind += " bfloat16"
    if isinstance(layout, RowwiseLayout):
        kind += f" {layout.bits}-bit"
    raise ValueError(
        "FBGEMM's inference tables hold row-wise layouts of 8, 4 or 2 bits and dense "
        f"ones of float32 or float16, not a {kind} layout"
    )


def pack_fbgemm(layout: Layout, row_alignment: int = 16) -> np.ndarray:
    """A layout's rows as FBGEMM's inference tables take them.

    Codes, float32 and float16 are taken over as they are.  So are scales and biases
    that are float16 already: those of each row at 4 and 2 bits.  Scales and biases of
    8 bits, those that rows share, and biases of centred rows (minus half the largest
    code times the scale) are rounded to float16: by one part in 2,048 at most, or by
    3e-8, which is more than that below 6.1e-5.

    Parameters
    ----------
    layout : RowwiseLayout or DenseLayout
    row_alignment : {16, 1}
        What a row's bytes are a multiple of: FBGEMM's own for GPUs, and processors.

    Returns
    -------
    ndarray of uint8, shape (num_embeddings, bytes)
        What ``table.split_embedding_weights(split_scale_shifts=False)[t][0]`` of an
        FBGEMM table is to hold.

    Raises
    ------
    ValueError
        If FBGEMM has no such table: for another layout, codes that do not fill a row's
        last byte, or, aligned for a GPU, a row that is longer than its kernels read;
        or if a scale or bias does not fit float16: above 65504, or a scale that
        would become 0.

    Examples
    --------
    >>> layout = DenseLayout(np.float32([[1, 2], [3, 4]]))
    >>> pack_fbgemm(layout).shape, pack_fbgemm(layout, row_alignment=1).shape
    ((2, 16), (2, 8))
    """
    name = name_fbgemm_type(layout)
    check_choice("row_alignment", row_alignment, ROW_ALIGNMENTS)
    layout = layout.to_cpu()
    rows, dim = layout.num_embeddings, layout.embedding_dim
    head, width, stride = measure_row(name, dim, row_alignment)
    packed = np.zeros((rows, stride), dtype=np.uint8)
    for part in cut_rows(rows, stride, BYTES_TOGETHER):
        if isinstance(layout, RowwiseLayout):
            ids = np.arange(part.start, part.stop)
            packed[part, :head] = round_parameters(layout, ids).view(np.uint8)
            packed[part, head : head + width] = layout.rows[part, :width]
        elif isinstance(layout, DenseLayout):
            values = np.ascontiguousarray(layout.values[part])
            packed[part, :width] = values.view(np.uint8)
    return packed


def measure_row(name: str, dim: int, row_alignment: int) -> tuple[int, int, int]:
    """Bytes in front of a row's numbers, of these, and of all with what fills it up.

    Raises
    ------
    ValueError
        If FBGEMM has no such rows.
    """
    head, bits = 0, int(name.lstrip("intfp"))
    if name.startswith("int"):
        head = HEAD_BYTES
        if dim * bits % 8:
            raise ValueError(
                f"FBGEMM's rows of {name} have a multiple of {8 // bits} columns, "
                f"got {dim}"
            )
    width = dim * bits // 8
    stride = -(-(head + width) // row_alignment) * row_alignment
    if row_alignment > 1 and stride > LONGEST_ROW[name]:
        raise ValueError(
            f"FBGEMM reads rows of {name} of up to {LONGEST_ROW[name]:,} bytes on a "
            f"GPU, got {stride:,} of a dimension of {dim:,}"
        )
    return head, width, stride


def round_parameters(layout: RowwiseLayout, ids: np.ndarray) -> np.ndarray:
    """Scales and biases of rows, float16 of shape (m, 2), or one clear ValueError."""
    width = code_bytes(layout.embedding_dim, layout.bits)
    if layout.parameters is None:
        tail = layout.rows[ids, width:].view(parameter_type(layout.bits))
    elif layout.starts is None:
        tail = layout.parameters.repeat(len(ids), axis=0)
    else:
        tail = layout.parameters[layout.starts.searchsorted(ids, side="right") - 1]
    scale = tail[:, 0].astype(np.float32)
    bias = -np.float32(centre_of(layout.bits)) * scale
    if not layout.centred:
        bias = tail[:, 1].astype(np.float32)
    exact = np.stack([scale, bias], axis=1)
    with np.errstate(over="ignore"):
        rounded: np.ndarray = exact.astype(np.float16)
    lost = np.isinf(rounded)
    lost[:, 0] |= (rounded[:, 0] == 0) & (scale != 0)
    if lost.any():
        row, column = (int(place[0]) for place in np.nonzero(lost))
        raise ValueError(
            f"FBGEMM keeps scales and biases in float16, which does not hold the "
            f"{('scale', 'bias')[column]} {exact[row, column]:.6g} of row "
            f"{int(ids[row])}"
        )
    return rounded


def export_fbgemm(
    layout: Layout, path: str | os.PathLike[str], row_alignment: int = 16
) -> int:
    """Write a layout's rows for an inference table of FBGEMM: a safetensors file.

    It holds one tensor, ``weights``, as `pack_fbgemm` makes it, and says in its
    metadata what a table is made with: ``weights_ty``, ``num_embeddings``,
    ``embedding_dim`` and ``row_alignment``.

    Parameters
    ----------
    layout : RowwiseLayout or DenseLayout
    path : path-like
        What stands there is replaced at once, when all is written.
    row_alignment : {16, 1}

    Returns
    -------
    int
        Bytes of the file.

    Raises
    ------
    ValueError
        As `pack_fbgemm`.
    OSError
        As `survey_code.layouts.files.write_atomically`.
    """
    from safetensors.numpy import save

    weights = pack_fbgemm(layout, row_alignment)
    said = {
        "format": "fbgemm",
        "weights_ty": name_fbgemm_type(layout),
        "num_embeddings": str(layout.num_embeddings),
        "embedding_dim": str(layout.embedding_dim),
        "row_alignment": str(row_alignment),
    }
    contents = save({"weights": weights}, said)
    write_atomically(Path(path), [contents])
    return len(contents)
