"""Fused look-ups of rows that several arrays make together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from survey_code.gpu import load_cupy
from survey_code.gpu.rows import (
    ID_TYPES,
    FusedRows,
    load_kernel,
    round_up,
    share_threads,
)

MODES = {"sum": 0, "mean": 1, "max": 2}
OPEN = 2**63 - 1  # ids of a layout that serves any
ENOUGH_GROUPS = 8192  # of threads that share rows
FEW_BLOCKS = 8  # of a row, that are found at once
NUMBERS = {
    "float32": "float", "float16": "__half", "uint8": "unsigned char",
    "uint16": "unsigned short", "int32": "int", "int64": "long long",
}  # fmt: skip


@dataclass
class ComposedRows(FusedRows):
    """Rows on a GPU, and the kernel that puts them together.

    Parameters
    ----------
    rows, dim : int
    file : str
        The ``.cu`` file that reads them.
    format : str
        Its C++ type, with the entries that a thread reads of a row left open:
        ``"Hashed<{}, 2, 0>"``.
    entries : int
        These entries.
    fields : CuPy array of int64
        Addresses and sizes; the file says in which order.
    kept : tuple of arrays
        What the addresses point to.
    made : int, default 0
        Bytes of those arrays that the layout itself does not have.
    """

    rows: int
    dim: int
    file: str
    format: str
    entries: int
    fields: Any
    kept: tuple[Any, ...]
    made: int = 0

    @property
    def held_bytes(self) -> int:
        """Bytes beyond the layout's own arrays."""
        return int(self.fields.nbytes) + self.made

    def start_read(self, ids: Any, out: Any, flag: Any) -> None:
        """One row per id."""
        kernel, lanes, groups = self.kernel("read_composed", ids)
        # Threads that share rows find up to `lanes` of them at once; fewer where
        # there would be too few groups to keep the whole GPU busy.
        each = min(max(ids.size // ENOUGH_GROUPS, 1), lanes)
        kernel(
            (-(-ids.size // (groups * each)),),
            (lanes, groups),
            (*self.arguments(ids), np.int32(each), out, flag),
        )

    def start_pool(
        self, ids: Any, offsets: Any, weights: Any, mode: str, out: Any, flag: Any
    ) -> None:
        """One pooled row per bag."""
        # For short bags, fewer registers and so more threads at once.
        ahead = "1" if ids.size < 4 * offsets.size else ""
        kernel, lanes, bags = self.kernel("pool_composed", ids, ahead)
        how = (np.uint64(0) if weights is None else weights, np.int32(MODES[mode]))
        kernel(
            (-(-offsets.size // bags),),
            (lanes, bags),
            (*self.arguments(ids), offsets, np.int64(offsets.size), *how, out, flag),
        )

    def kernel(self, name: str, ids: Any, ahead: str = "") -> tuple[Any, int, int]:
        """A kernel, the threads that share a row, and the rows of a block."""
        form, kind = self.format.format(self.entries), ID_TYPES[str(ids.dtype)]
        ahead = ahead or f"{form}::AHEAD"
        kernel = load_kernel(self.file, f"{name}<{form}, {kind}, {ahead}>")
        return kernel, *share_threads(self.dim, self.entries)

    def arguments(self, ids: Any) -> tuple[Any, ...]:
        """What every kernel is told first."""
        sizes = (np.int64(self.rows), np.int32(self.dim), ids, np.int64(ids.size))
        return self.fields, *sizes


def compose(
    file: str,
    form: str,
    entries: int,
    shape: tuple[int, int],
    fields: Sequence[Any],
    made: int = 0,
) -> ComposedRows:
    """Rows of a shape from their fields: arrays, integers, or None for 0."""
    cupy = load_cupy()
    arrays = [
        cupy.ascontiguousarray(value) if hasattr(value, "dtype") else None
        for value in fields
    ]
    numbers = [
        wrap(value or 0)
        if array is None
        else array.__cuda_array_interface__["data"][0] * bool(array.size)
        for value, array in zip(fields, arrays)
    ]
    listed = cupy.asarray(np.array(numbers, dtype=np.int64))
    kept = tuple(array for array in arrays if array is not None)
    return ComposedRows(*shape, file, form, entries, listed, kept, made)


def wrap(number: int) -> int:
    """An integer below 2**64 as the int64 of the same bits."""
    return (int(number) + 2**63) % 2**64 - 2**63


def invert(number: int) -> int:
    """floor(2**64 / number), by which a kernel divides; the largest there is for 1."""
    return min(2**64 // int(number), 2**64 - 1)


def choose_entries(*widths: int) -> int:
    """Entries that a thread reads at once: 4, 2 or 1, and all widths a multiple."""
    return next(e for e in (4, 2, 1) if not any(width % e for width in widths))


def digit_fields(index_row: Sequence[int]) -> list[int]:
    """Six fields of a digit: multipliers, divisor, modulus, and their inverses."""
    first, second, divisor, modulus = index_row
    return [first, second, divisor, invert(divisor), modulus, invert(modulus)]


def place_hashed(
    shape: tuple[int, int],
    combine: str,
    values: Any,
    index: Sequence[Sequence[int]],
    starts: Sequence[int],
    own_row: int,
    *,
    signs: Sequence[int] | None = None,
    weights: Any = None,
    weight_index: Sequence[int] | None = None,
    keys: Any = None,
) -> ComposedRows:
    """Rows of a few tables, named by digits of the id; see `HashedLayout`.

    Parameters
    ----------
    shape : (ids, dim)
    combine : {"sum", "product", "concat"}
    values, weights, keys : CuPy arrays
    index, weight_index, signs : lists of integers
    starts : first row of each table in `values`
    own_row : first row of the ids in `keys`
    """
    fields = [
        values, own_row, *(signs or (0, 0)), weights,
        0 if weights is None else weights.shape[1],
        keys, 0 if keys is None else keys.size,
        # A modulus of 0: an id's weights stand in the row of its own number.
        *([0] * 6 if weight_index is None else digit_fields(weight_index)),
    ]  # fmt: skip
    for row, start in zip(index, starts):
        fields += [*digit_fields(row), start]
    code = ("sum", "product", "concat").index(combine)
    own = str(keys is not None).lower()
    form = f"Hashed<{{}}, {len(index)}, {code}, {own}>"
    entries = choose_entries(values.shape[1], shape[1])
    return compose("hashed.cu", form, entries, shape, fields)


def place_flat(
    shape: tuple[int, int],
    values: Any,
    block_len: int,
    multipliers: Sequence[int],
    signs: Sequence[int] | None,
) -> ComposedRows:
    """Blocks of rows anywhere in one array; see `FlatLayout`."""
    length = min(block_len, shape[1])
    places = values.size - length + 1
    fields = [values, places, invert(places), length, *multipliers, *(signs or (0, 0))]
    blocks = -(-shape[1] // length)
    few = blocks <= FEW_BLOCKS and values.size < 2**32
    form = f"FewBlocks<{{}}, {blocks}>" if few else "Flat<{}>"
    return compose("flat.cu", form, choose_entries(length), shape, fields)


def place_paths(
    shape: tuple[int, int],
    values: Any,
    paths: Any,
    index: Sequence[Sequence[int]],
    hidden: int,
) -> ComposedRows:
    """Rows through small networks; see `HashedLayout`.

    Parameters
    ----------
    shape : (ids, dim)
    values, paths : CuPy arrays of float32
        The rows, and a network in each row.
    index : lists of integers
        Which row, and which network.
    hidden : int
        Units of a network.
    """
    fields = [values, paths, paths.shape[1]]
    for row in index:
        fields += [*digit_fields(row), 0]
    form = f"Path<{{}}, {hidden}>"
    return compose("hashed.cu", form, choose_entries(shape[1]), shape, fields)


def place_tensor_train(
    shape: tuple[int, int],
    cores: Sequence[Any],
    steps: Sequence[int],
    cached_ids: Any = None,
    cached_rows: Any = None,
) -> ComposedRows:
    """Up to three cores of shape (rows, left / step, columns / step, right).

    Where the second core's right rank, and each part of it that meets the third core,
    are multiples of 4, four entries are read at once.
    """
    cupy = load_cupy()
    ones = cupy.ones((1, 1, 1, 1), dtype=np.float32)
    # Each core in an array of its own begins at a multiple of 16 bytes.
    padded = [ones] * (3 - len(cores)) + [core.copy() for core in cores]
    ranks = padded[1].shape[3], padded[2].shape[1]
    aligned = str(not any(rank % 4 for rank in ranks)).lower()
    fields: list[Any] = []
    for core, step in zip(padded, [1] * (3 - len(cores)) + list(steps)):
        rows, left, columns, right = core.shape
        fields += [core, rows, columns, left, right, step]
    fields += [cached_rows, cached_ids, 0 if cached_ids is None else cached_ids.size]
    key = "int" if cached_ids is None else NUMBERS[str(cached_ids.dtype)]
    entries = choose_entries(padded[2].shape[2])
    form = f"TensorTrain<{{}}, {key}, {aligned}>"
    made = sum(core.nbytes for core in padded)
    return compose("tensor_train.cu", form, entries, shape, fields, made)


def place_ragged(
    shape: tuple[int, int], values: Any, lengths: Any, starts: Any
) -> ComposedRows:
    """Prefixes of rows; see `RaggedLayout`."""
    kinds = f"{NUMBERS[str(values.dtype)]}, {NUMBERS[str(lengths.dtype)]}"
    made = 0
    if lengths.itemsize == 1 and lengths.size % 4:
        # Lengths of a byte are read four at a time.
        whole = load_cupy().zeros(round_up(lengths.size, 4), dtype=lengths.dtype)
        whole[: lengths.size] = lengths
        lengths, made = whole, whole.nbytes
    return compose(
        "ragged.cu", f"Ragged<{{}}, {kinds}>", choose_entries(shape[1]), shape,
        [values, lengths, starts], made,
    )  # fmt: skip


def place_sparse(
    shape: tuple[int, int], values: Any, columns: Any, offsets: Any, block_rows: int
) -> ComposedRows:
    """Entries that are not zero; see `SparseLayout`."""
    kinds = f"{NUMBERS[str(values.dtype)]}, {NUMBERS[str(columns.dtype)]}"
    return compose(
        "ragged.cu", f"Sparse<{{}}, {kinds}>", choose_entries(shape[1]), shape,
        [values, columns, offsets, block_rows],
    )  # fmt: skip


def place_anchors(
    shape: tuple[int, int], anchors: Any, weights: Any, columns: Any, offsets: Any
) -> ComposedRows:
    """Weighted sums of anchors; see `AnchorLayout`."""
    kind = NUMBERS[str(columns.dtype)]
    return compose(
        "ragged.cu", f"Anchors<{{}}, {kind}>", choose_entries(shape[1]), shape,
        [anchors, weights, columns, offsets],
    )  # fmt: skip


def place_grouped(
    shape: tuple[int, int],
    values: Any,
    sizes: Sequence[tuple[int, int]],
    projections: Sequence[Any],
    columns: Sequence[Any],
    planes: Any = None,
    before: Any = None,
) -> ComposedRows:
    """Short rows, projected or spread; see `GroupedLayout`.

    Parameters
    ----------
    shape : (ids, dim)
    values : CuPy array of float32
    sizes : rows and width of each group
    projections : CuPy arrays, shapes (width, dim), or None
    columns : NumPy arrays of the columns of each group's numbers, or None
    planes, before : CuPy arrays, or None where groups are ranges of ids
    """
    cupy = load_cupy()
    fields = [
        values, planes, 0 if planes is None else planes.shape[1], before, len(sizes),
    ]  # fmt: skip
    number = row = 0
    for (rows, width), projection, column in zip(sizes, projections, columns):
        places = None
        if column is not None and 0 < width < shape[1]:
            places = np.full(shape[1], -1, dtype=np.int16)
            places[column] = np.arange(width)
            places = cupy.asarray(places)
        fields += [number, width, projection, places, row]
        number, row = number + rows * width, row + rows
    return compose("grouped.cu", "Grouped<{}>", choose_entries(shape[1]), shape, fields)


def place_codebook(
    shape: tuple[int, int],
    combine: str,
    codes: Any,
    bits: int,
    codewords: Any,
    firsts: Any,
    *,
    starts: Any = None,
    marks: Any = None,
    ranks: Any = None,
    head_codes: Any = None,
    head_bits: int = 0,
    head_values: Any = None,
    hashed: Any = None,
    index: Sequence[Sequence[int]] | None = None,
) -> ComposedRows:
    """Rows that are named by codes; see `CodebookLayout`."""
    groups, books = firsts.shape
    if head_values is not None:
        head_values = head_values.astype(codewords.dtype, copy=False)
    width = codewords.shape[1]
    fields = [
        codes, bits, codewords, books, width, firsts, groups, starts, marks, ranks,
        head_codes, head_bits, head_values, hashed,
    ]  # fmt: skip
    start = 0
    for row in index or ():
        fields += [*digit_fields(row), start]
        start += row[3]
    kind = NUMBERS[str(codewords.dtype)]
    how = "SIDE" if hashed is None else "HELPED"
    how = "ADDED" if combine == "sum" else how
    return compose(
        "codebook.cu", f"Codebook<{{}}, {kind}, {how}>",
        choose_entries(width, shape[1]), shape, fields,
    )  # fmt: skip


# How a tier's entries are stored, by the dtype of its array: see tiered.cu.
STORED = {"float32": 32, "float16": 16, "uint16": 17}


def place_tiered(
    shape: tuple[int, int], tiers: Sequence[tuple[Any, int]], keys: Sequence[Any]
) -> ComposedRows:
    """Rows in tables of different precision; see `TieredLayout`.

    Parameters
    ----------
    shape : (ids, dim)
    tiers : pairs of a CuPy array and the bits of its codes, 0 for plain numbers
    keys : CuPy arrays
        Ids of each tier but the last, rising.
    """
    marked = [mark_ids(own, shape[0]) for own in keys]
    fields: list[Any] = [len(tiers)]
    for (rows, bits), (marks, before) in zip(tiers, [*marked, (None, None)]):
        stored = bits or STORED[str(rows.dtype)]
        fields += [rows, stored, rows.shape[1] * rows.itemsize, marks, before]
    made = sum(marks.nbytes + before.nbytes for marks, before in marked)
    entries = choose_entries(shape[1])
    sizes = [shape[1] * (bits or 8) // 8 for _, bits in tiers]
    sizes += [rows.shape[1] * rows.itemsize for rows, _ in tiers]
    whole = str(entries == 4 and not any(size % 4 for size in sizes)).lower()
    form = f"Tiered<{{}}, {whole}>"
    return compose("tiered.cu", form, entries, shape, fields, made)


def mark_ids(ids: Any, rows: int) -> tuple[Any, Any]:
    """A bit for each row, set for the ids; and the ids below every 64 rows.

    Returns
    -------
    marks : CuPy array of uint64, shape (ceil(rows / 64),)
    before : CuPy array of uint32, the same shape
    """
    cupy = load_cupy()
    words = -(-rows // 64)
    bits = cupy.zeros(64 * words, dtype=np.uint8)
    bits[ids] = 1
    counts = bits.reshape(words, 64).sum(axis=1, dtype=np.uint32)
    before = cupy.cumsum(counts, dtype=np.uint32) - counts
    marks = cupy.packbits(bits, bitorder="little").view(np.uint64)
    return marks, before
