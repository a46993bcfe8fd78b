"""Rows of a served table, replaced where they stand.

Rows are rounded anew: those of `DenseLayout` to the nearest number of its format, those
of `RowwiseLayout` between their own minimum and maximum (`quantize_rows`, also where a
range search, a symmetric range or kept lengths made the others), those of
`BinaryLayout` to signs, each block's scale the mean of its magnitudes.  A
`RoutedLayout` hands rows to the parts that hold them.

All is encoded before anything is written.  `Layout.lookup` and `Layout.bag` of this
very layout, called from other threads of the process meanwhile, see all rows as they
were or all as they are now, never a part of a row; they wait for the writing, which is
a copy of the rows' bytes.  This does not hold for whoever reads in another way: a part
of the layout by itself, a layout that holds this one, a copy that shares its arrays, or
an operator that reads them by their addresses.  Arrays that were handed to the layout's
constructor are the layout's own, and change.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from survey_code.layouts import (
    BinaryLayout,
    DenseLayout,
    Layout,
    RoutedLayout,
    RowwiseLayout,
)
from survey_code.layouts.binary import pack_signs
from survey_code.layouts.layout import IdArray, RowArray, as_finite_table
from survey_code.layouts.rowwise import pack_rows
from survey_code.low_precision.binarization.signs import as_half
from survey_code.low_precision.quantization import quantize_rows

# Of those who change rows, one at a time.
WRITING = threading.Lock()


class Change(NamedTuple):
    """What stands in some rows of an array from now on.

    Parameters
    ----------
    array : ndarray
    places : ndarray of int64, shape (m,)
    values : ndarray, shape (m, ...)
        Of the array's type.
    """

    array: np.ndarray
    places: IdArray
    values: np.ndarray


def update_rows(layout: Layout, ids: npt.ArrayLike, rows: npt.ArrayLike) -> None:
    """Replace rows of a layout in which each row stands alone, in place.

    How they are rounded, and what readers see meanwhile, is told above.

    Parameters
    ----------
    layout : Layout
        On a processor.
    ids : integer array, shape (m,)
        Of an id that stands there twice, the last row counts.
    rows : array of numbers, shape (m, embedding_dim)

    Raises
    ------
    IndexError
        If an id is not in the table.
    ValueError
        If rows of the layout do not stand alone, its arrays are read-only (a mapped
        file) or on a GPU, or the rows are not finite or do not fit.

    Examples
    --------
    >>> layout = DenseLayout(np.zeros((3, 2), np.float32))
    >>> update_rows(layout, [1], [[5, 6]])
    >>> layout.lookup([0, 1]).tolist()
    [[0.0, 0.0], [5.0, 6.0]]
    """
    if layout.on_gpu:
        raise ValueError("rows are updated on a processor: call layout.to_cpu() first")
    wanted = layout.check_ids(np.asarray(ids))
    given = as_finite_table(rows, "rows")
    if wanted.ndim != 1 or given.shape != (len(wanted), layout.embedding_dim):
        raise ValueError(
            f"ids must have one axis, and rows the shape (ids, "
            f"{layout.embedding_dim}), got shapes {wanted.shape} and {given.shape}"
        )
    # Of equal ids the last: neither parts nor NumPy need write in their order.
    own, place = np.unique(wanted[::-1], return_index=True)
    changes = [*list_changes(layout, own, given[::-1][place])]
    for change in changes:
        refuse_fixed(change.array)
    with WRITING:
        layout.edition += 1
        try:
            for array, places, values in changes:
                array[places] = values
        finally:
            layout.edition += 1
        forget_bounds(layout)


def list_changes(layout: Layout, ids: IdArray, rows: RowArray) -> Iterator[Change]:
    """What changes where rows of a layout are replaced.

    Parameters
    ----------
    layout : Layout
    ids : ndarray of int64, shape (m,)
        Checked, each once.
    rows : ndarray of float32, shape (m, embedding_dim)

    Raises
    ------
    ValueError
        If its rows do not stand alone, or the new ones do not fit its format.
    """
    if isinstance(layout, RoutedLayout):
        for part, (places, own) in zip(layout.parts, layout.route(ids)):
            if len(own):
                yield from list_changes(part, own, rows[places])
    elif isinstance(layout, DenseLayout):
        kind = {"f4": "float32", "f2": "float16", "u2": "bfloat16"}
        format = kind[layout.values.dtype.str[1:]]
        yield Change(layout.values, ids, DenseLayout.from_weight(rows, format).values)
    elif isinstance(layout, RowwiseLayout) and stands_alone(layout):
        packed = pack_rows(*quantize_rows(rows, layout.bits), layout.bits)
        yield Change(layout.rows, ids, packed)
    elif isinstance(layout, BinaryLayout) and layout.scales is not None:
        if len(layout.scales) != layout.num_embeddings or layout.levels is not None:
            refuse_dependent(layout)
        yield Change(layout.packed, ids, pack_signs(rows, layout.blocks))
        yield Change(layout.scales, ids, average_blocks(rows, layout.scales))
    else:
        refuse_dependent(layout)


def stands_alone(layout: RowwiseLayout) -> bool:
    """Whether each row has a scale and a bias of its own."""
    return layout.parameters is None and not layout.centred


def average_blocks(rows: RowArray, scales: np.ndarray) -> np.ndarray:
    """Mean magnitudes of the blocks of rows, as a layout stores its scales."""
    parts = np.abs(rows.astype(np.float64)).reshape(len(rows), scales.shape[1], -1)
    means = parts.mean(axis=2).astype(np.float32)
    return as_half(means) if scales.dtype == np.float16 else means


def refuse_dependent(layout: Layout) -> NoReturn:
    """Raise ValueError for a layout in which rows do not stand alone."""
    raise ValueError(
        f"rows of this {layout.name} layout cannot be updated: they share numbers, or "
        "are found by training. Rows stand alone in dense layouts, in row-wise ones "
        "with a scale and a bias a row, in binary ones with scales a row, and in such "
        "parts of routed ones"
    )


def refuse_fixed(array: np.ndarray) -> None:
    """Raise ValueError for an array that cannot be written to where it stands."""
    if not array.flags.writeable:
        raise ValueError(
            "the layout's arrays are read-only, as those of a mapped file are: load "
            "it without mmap=True"
        )
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise ValueError(
            "rows are updated only in arrays without gaps: save and load the layout"
        )


def forget_bounds(layout: Layout) -> None:
    """Let a layout, and its parts, be measured anew where that is asked for."""
    layout.largest = None
    for part in layout.held().values():
        if isinstance(part, Layout):
            forget_bounds(part)
