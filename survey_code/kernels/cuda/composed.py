"""Fused look-ups of rows that several arrays make together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from survey_code.kernels.cuda import MODES, GpuArray, Shaped, load_cupy
from survey_code.kernels.cuda.load import ID_TYPES, Kernel, load_kernel
from survey_code.kernels.cuda.rows import FusedRows, round_up, share_threads

OPEN = 2**63 - 1  # ids of a layout that serves any
ENOUGH_GROUPS = 8192  # of threads that share rows
FEW_BLOCKS = 8  # of a row, that are found at once
NUMBERS = {
    "float32": "float", "float16": "__half", "uint8": "unsigned char",
    "uint16": "unsigned short", "int32": "int", "int64": "long long",
}  # fmt: skip


# What a kernel is told: an array, a number, or None for 0.
Field: TypeAlias = Shaped | int | None


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
    fields: GpuArray
    kept: tuple[GpuArray, ...]
    made: int = 0

    @property
    def held_bytes(self) -> int:
        """Bytes beyond the layout's own arrays."""
        return int(self.fields.nbytes) + self.made

    def start_read(self, ids: GpuArray, out: GpuArray, flag: GpuArray) -> None:
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
        self,
        ids: GpuArray,
        offsets: GpuArray,
        weights: GpuArray | None,
        mode: str,
        out: GpuArray,
        flag: GpuArray,
    ) -> None:
        """One pooled row per bag."""
        # For short bags, fewer registers and so more threads at once.
        ahead = "1" if ids.size < 4 * offsets.size else ""
        kernel, lanes, bags = self.kernel("pool_composed", ids, ahead)
        how = (
            np.uint64(0) if weights is None else weights,
            np.int32(MODES.index(mode)),
        )
        kernel(
            (-(-offsets.size // bags),),
            (lanes, bags),
            (*self.arguments(ids), offsets, np.int64(offsets.size), *how, out, flag),
        )

    def kernel(
        self, name: str, ids: GpuArray, ahead: str = ""
    ) -> tuple[Kernel, int, int]:
        """A kernel, the threads that share a row, and the rows of a block."""
        form, kind = self.format.format(self.entries), ID_TYPES[str(ids.dtype)]
        ahead = ahead or f"{form}::AHEAD"
        kernel = load_kernel(self.file, f"{name}<{form}, {kind}, {ahead}>")
        return kernel, *share_threads(self.dim, self.entries)

    def arguments(self, ids: GpuArray) -> tuple[Shaped, ...]:
        """What every kernel is told first."""
        sizes = (np.int64(self.rows), np.int32(self.dim), ids, np.int64(ids.size))
        return self.fields, *sizes


def compose(
    file: str,
    form: str,
    entries: int,
    shape: tuple[int, int],
    fields: Sequence[Field],
    made: int = 0,
) -> ComposedRows:
    """Rows of a shape from their fields: arrays, integers, or None for 0."""
    cupy = load_cupy()
    kept, numbers = [], []
    for value in fields:
        if value is None or isinstance(value, int):
            numbers.append(wrap(value or 0))
            continue
        array = cupy.ascontiguousarray(value)
        kept.append(array)
        address = array.__cuda_array_interface__["data"][0]
        numbers.append(address * bool(array.size))
    listed = cupy.asarray(np.array(numbers, dtype=np.int64))
    return ComposedRows(*shape, file, form, entries, listed, tuple(kept), made)


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
    values: Shaped,
    index: Sequence[Sequence[int]],
    starts: Sequence[int],
    own_row: int,
    *,
    signs: Sequence[int] | None = None,
    weights: Shaped | None = None,
    weight_index: Sequence[int] | None = None,
    keys: Shaped | None = None,
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
    fields: list[Field] = [
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
    values: Shaped,
    block_len: int,
    multipliers: Sequence[int],
    signs: Sequence[int] | None,
) -> ComposedRows:
    """Blocks of rows anywhere in one array; see `FlatLayout`."""
    length = min(block_len, shape[1])
    places = values.size - length + 1
    fields: list[Field] = [
        values,
        places,
        invert(places),
        length,
        *multipliers,
        *(signs or (0, 0)),
    ]
    blocks = -(-shape[1] // length)
    few = blocks <= FEW_BLOCKS and values.size < 2**32
    form = f"FewBlocks<{{}}, {blocks}>" if few else "Flat<{}>"
    return compose("flat.cu", form, choose_entries(length), shape, fields)


def place_paths(
    shape: tuple[int, int],
    values: Shaped,
    paths: Shaped,
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
    fields: list[Field] = [values, paths, paths.shape[1]]
    for row in index:
        fields += [*digit_fields(row), 0]
    form = f"Path<{{}}, {hidden}>"
    return compose("hashed.cu", form, choose_entries(shape[1]), shape, fields)


def place_tensor_train(
    shape: tuple[int, int],
    cores: Sequence[Shaped],
    steps: Sequence[int],
    cached_ids: Shaped | None = None,
    cached_rows: Shaped | None = None,
) -> ComposedRows:
    """Up to three cores of shape (rows, left / step, columns / step, right).

    Where the second core's right rank, and each part of it that meets the third core,
    are multiples of 4, four entries are read at once.
    """
    cupy = load_cupy()
    ones = cupy.ones((1, 1, 1, 1), dtype=np.float32)
    # Each core in an array of its own begins at a multiple of 16 bytes.
    padded = [ones] * (3 - len(cores)) + [cupy.array(core) for core in cores]
    ranks = padded[1].shape[3], padded[2].shape[1]
    aligned = str(not any(rank % 4 for rank in ranks)).lower()
    fields: list[Field] = []
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
    shape: tuple[int, int], values: Shaped, lengths: Shaped, starts: Shaped
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
    shape: tuple[int, int],
    values: Shaped,
    columns: Shaped,
    offsets: Shaped,
    block_rows: int,
) -> ComposedRows:
    """Entries that are not zero; see `SparseLayout`."""
    kinds = f"{NUMBERS[str(values.dtype)]}, {NUMBERS[str(columns.dtype)]}"
    return compose(
        "ragged.cu", f"Sparse<{{}}, {kinds}>", choose_entries(shape[1]), shape,
        [values, columns, offsets, block_rows],
    )  # fmt: skip


def place_anchors(
    shape: tuple[int, int],
    anchors: Shaped,
    weights: Shaped,
    columns: Shaped,
    offsets: Shaped,
) -> ComposedRows:
    """Weighted sums of anchors; see `AnchorLayout`."""
    kind = NUMBERS[str(columns.dtype)]
    return compose(
        "ragged.cu", f"Anchors<{{}}, {kind}>", choose_entries(shape[1]), shape,
        [anchors, weights, columns, offsets],
    )  # fmt: skip


def place_grouped(
    shape: tuple[int, int],
    values: Shaped,
    sizes: Sequence[tuple[int, int]],
    projections: Sequence[Shaped | None],
    columns: Sequence[np.ndarray | None],
    planes: Shaped | None = None,
    before: Shaped | None = None,
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
    fields: list[Field] = [
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
    codes: Shaped,
    bits: int,
    codewords: Shaped,
    firsts: Shaped,
    *,
    starts: Shaped | None = None,
    marks: Shaped | None = None,
    ranks: Shaped | None = None,
    head_codes: Shaped | None = None,
    head_bits: int = 0,
    head_values: Shaped | None = None,
    hashed: Shaped | None = None,
    index: Sequence[Sequence[int]] | None = None,
) -> ComposedRows:
    """Rows that are named by codes; see `CodebookLayout`."""
    groups, books = firsts.shape
    if head_values is not None:
        head_values = load_cupy().asarray(head_values, dtype=codewords.dtype)
    width = codewords.shape[1]
    fields: list[Field] = [
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
    shape: tuple[int, int],
    tiers: Sequence[tuple[Shaped, int]],
    marked: Sequence[tuple[Shaped, Shaped]],
) -> ComposedRows:
    """Rows in tables of different precision; see `TieredLayout`.

    Parameters
    ----------
    shape : (ids, dim)
    tiers : pairs of a CuPy array and the bits of its codes, 0 for plain numbers
    marked : pairs of CuPy arrays
        For each tier but the last a bit for each id, 1 for its own, and how many of
        them are below every 64 ids.
    """
    fields: list[Field] = [len(tiers)]
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
