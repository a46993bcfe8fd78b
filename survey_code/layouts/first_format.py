"""Files of the first format, which 0.1.0 wrote: read once, to be written anew.

In the first format layouts held no layouts: rows of some ids' own, tiers of precision,
rotations and cached rows were arrays of the layouts that needed them.  Each becomes
today's layout of the same rows, bit for bit, in no more bytes beside the 8 of each
hash's addend, which is 0.  (Two cases take a few more, and no method wrote either: keys
of tables beyond 2**31 ids, which are int64 now, and a codebook with hashed helpers
whose heads are rows.)

This module, and the command ``survey-code convert``, go with the next minor release.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from survey_code.bits import count_bits, mark_ids, stream_words, unpack_words
from survey_code.layouts import LAYOUTS
from survey_code.layouts.added import AddedLayout
from survey_code.layouts.codebook import COMBINED, CodebookLayout
from survey_code.layouts.dense import DenseLayout
from survey_code.layouts.files import (
    check_hash,
    describe_arrays,
    hash_arrays,
    read_contents,
)
from survey_code.layouts.grouped import BLOCK_WORDS, GroupedLayout, pack_assignment
from survey_code.layouts.hashed import HashedLayout
from survey_code.layouts.layout import Layout, cut
from survey_code.layouts.packed import PackedLayout
from survey_code.layouts.parts import NUMBERS
from survey_code.layouts.routed import RoutedLayout, keep_apart
from survey_code.layouts.rowwise import RowwiseLayout
from survey_code.layouts.tensor_train import TensorTrainLayout, core_shapes
from survey_code.layouts.turned import TurnedLayout

FirstShape: TypeAlias = Mapping[str, int]
FirstArrays: TypeAlias = Mapping[str, np.ndarray]

# Layouts whose arrays and integers are today's.
UNCHANGED = (
    "dense", "rowwise", "binary", "ragged", "sparse", "flat", "generator", "anchors",
)  # fmt: skip
# Layouts with hashes, and the arrays of these: two multipliers, where there are three
# numbers now.
HASHING = ("hashed", "codebook", "flat", "generator")
HASHES = ("index", "weight_index", "multipliers", "signs")
# The arrays of tiers, and the bits of their codes (0: no codes, numbers).
TIERS = {"values": 0, "rows8": 8, "rows4": 4, "rows2": 2}


def convert_file(old: str | os.PathLike[str], new: str | os.PathLike[str]) -> Layout:
    """Read a file of the first format, and write today's.

    Parameters
    ----------
    old, new : path
        May be the same: the old file is read and checked as a whole, and the new one
        written beside its place before it is renamed.

    Returns
    -------
    Layout
        What the new file holds.

    Raises
    ------
    ValueError
        If the old file is damaged, no file of this package, or not of the first
        format.
    FileNotFoundError
        If there is no such file, or no folder to write to.
    """
    name, shape, arrays = read_first_file(old)
    try:
        layout = rebuild_first(name, shape, arrays)
    except ValueError as error:
        raise ValueError(f"{old}: {error}") from error
    layout.save(new)
    return layout


def read_first_file(
    path: str | os.PathLike[str],
) -> tuple[str, dict[str, int], dict[str, np.ndarray]]:
    """Name, integers and arrays of a layout in a file of the first format, checked.

    Raises
    ------
    ValueError
        As `convert_file`.
    """
    contents, arrays = read_contents(path)
    if "parts" in contents:
        raise ValueError(f"{path}: not of the first format, nothing to convert")
    try:
        name, version = contents["layout"], contents["version"]
        shape, stored = dict(contents["shape"]), contents["sha256"]
        if not isinstance(name, str):
            raise TypeError("a name that is no text")
        if any(type(number) is not int for number in [version, *shape.values()]):
            raise TypeError("a number that is no integer")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: the layout's description is damaged") from error
    if version != 1:
        raise ValueError(f"{path}: not of the first format, but of version {version}")
    head = [name, version, shape, describe_arrays(arrays)]
    check_hash(path, hash_arrays(head, arrays), stored)
    return name, shape, arrays


def rebuild_first(name: str, shape: FirstShape, arrays: FirstArrays) -> Layout:
    """Today's layout from the integers and arrays of the first format.

    Raises
    ------
    ValueError
        If the layout is unknown, or its arrays contradict each other.
    """
    if name in HASHING:
        arrays = {key: append_addend(key, array) for key, array in arrays.items()}
    if name in UNCHANGED:
        return LAYOUTS[name].from_file(shape, arrays)
    if name not in REBUILT:
        known = sorted([*UNCHANGED, *REBUILT])
        raise ValueError(f"the first format had no layout {name!r}, but {known}")
    build, names, integers = REBUILT[name]
    needed = {"num_embeddings", "embedding_dim", *integers}
    missing, unknown = needed - set(shape), set(arrays) - set(names)
    if missing or unknown:
        raise ValueError(
            f"a {name} layout lacks {sorted(missing)} and does not know "
            f"{sorted(unknown)}"
        )
    layout = build(shape, arrays)
    found = layout.num_embeddings, layout.embedding_dim
    wanted = shape["num_embeddings"], shape["embedding_dim"]
    if found != wanted:
        raise ValueError(f"the arrays are of a table of shape {found}, not {wanted}")
    return layout


# -- checks ------------------------------------------------------------------------


def need(
    arrays: FirstArrays, name: str, axes: int, kinds: Sequence[type]
) -> np.ndarray:
    """An array that must be there, with so many axes, of one of these types."""
    array = arrays.get(name)
    if array is None or array.ndim != axes or array.dtype not in kinds:
        types = " or ".join(np.dtype(kind).name for kind in kinds)
        raise ValueError(f"{name} must be {types}, with {axes} axes")
    return array


def need_size(name: str, array: np.ndarray, size: int) -> None:
    """Raise ValueError unless an array has so many rows."""
    if len(array) != size:
        raise ValueError(f"{name} must have the length {size}, not {len(array)}")


def need_ids(name: str, ids: np.ndarray, rows: int) -> None:
    """Raise ValueError unless ids rise within a table."""
    if not len(ids) or bool((ids[1:] <= ids[:-1]).any()):
        raise ValueError(f"{name} must be ids that rise")
    if int(ids[0]) < 0 or int(ids[-1]) >= rows:
        raise ValueError(f"{name} must be ids from 0 to {rows - 1}")


def append_addend(name: str, array: np.ndarray) -> np.ndarray:
    """A hash with the addend that it had not: 0, which changes no row."""
    if name not in HASHES:
        return array
    axes, numbers = (2, 4) if name.endswith("index") else (1, 2)
    need({name: array}, name, axes, [np.int64])
    if array.shape[-1] != numbers:
        raise ValueError(f"{name} must have {numbers} columns, not {array.shape[-1]}")
    return np.insert(array, 2, 0, axis=-1)


# -- one function for each layout that has changed ---------------------------------


def rebuild_tiered(shape: FirstShape, arrays: FirstArrays) -> Layout:
    """Tiers are parts; a single one is the layout."""
    rows, dim = shape["num_embeddings"], shape["embedding_dim"]
    parts: list[Layout] = []
    for name, bits in TIERS.items():
        if name in arrays:
            array = arrays[name]
            own = RowwiseLayout(array, dim, bits) if bits else DenseLayout(array)
            parts.append(own)
    if len(parts) < 2:
        if not parts or "keys" in arrays:
            raise ValueError("there must be a tier, and keys for two of them or more")
        return parts[0]
    keys = need(arrays, "keys", 1, [np.int32])
    sizes = [part.num_embeddings for part in parts[:-1]]
    need_size("keys", keys, sum(sizes))
    named = cut(keys, sizes)
    for ids in named:
        need_ids("keys", ids, rows)
    return RoutedLayout.from_ids(parts, named, rows)


def rebuild_grouped(shape: FirstShape, arrays: FirstArrays) -> Layout:
    """One array of numbers becomes a table for each group that has ids."""
    groups = need(arrays, "groups", 2, [np.int32])
    values = need(arrays, "values", 1, [np.float32])
    if groups.shape[1] != 2 or not len(groups) or groups.min() < 0:
        raise ValueError("groups must be sizes from 0 up, of shape (groups, 2)")
    sizes = groups.tolist()
    numbers = [rows * width for rows, width in sizes]
    need_size("values", values, sum(numbers))
    tables = [
        table.reshape(size)
        for table, size in zip(cut(values, numbers), sizes)
        if size[0]
    ]
    dim = shape["embedding_dim"]
    kept = drop_empty_groups(sizes, dim, arrays)
    names = ("projections", "columns", "planes", "before")
    return GroupedLayout(tables, dim, *(kept.get(name) for name in names))


def drop_empty_groups(
    sizes: list[list[int]], dim: int, arrays: FirstArrays
) -> dict[str, np.ndarray]:
    """The arrays of a grouped layout without groups that have no ids."""
    kept = dict(arrays)
    filled = [rows > 0 for rows, _ in sizes]
    if all(filled):
        return kept
    widths = [width for _, width in sizes]
    short = any(0 < width < dim for width, own in zip(widths, filled) if own)
    for name, kind, pieces in (
        ("projections", np.float32, [w * dim * (w < dim) for w in widths]),
        ("columns", np.uint16, widths),
    ):
        if name not in arrays:
            continue
        array = need(arrays, name, 1, [kind])
        need_size(name, array, sum(pieces))
        parts = [part for part, own in zip(cut(array, pieces), filled) if own]
        kept[name] = np.concatenate(parts)
        if not short:
            del kept[name]
    if "planes" in arrays or "before" in arrays:
        groups = read_groups([rows for rows, _ in sizes], arrays)
        numbers = np.cumsum(filled) - 1
        kept["planes"], kept["before"] = pack_assignment(numbers[groups], sum(filled))
    return kept


def read_groups(counts: list[int], arrays: FirstArrays) -> np.ndarray:
    """Group of each id, int64, from `planes` and `before`."""
    planes = need(arrays, "planes", 3, [np.uint64])
    before = need(arrays, "before", 2, [np.uint32])
    if planes.shape[1:] != (count_bits(len(counts)), BLOCK_WORDS):
        raise ValueError(f"planes must be of {len(counts)} groups")
    groups = np.zeros(planes[:, 0].size * 64, dtype=np.int64)
    for p in range(planes.shape[1]):
        groups |= unpack_words(planes[:, p].ravel()).astype(np.int64) << p
    groups = groups[: sum(counts)]
    again = pack_assignment(groups, len(counts))
    if np.bincount(groups, minlength=len(counts)).tolist() != counts or not (
        np.array_equal(planes, again[0]) and np.array_equal(before, again[1])
    ):
        raise ValueError("planes and before do not fit the groups' sizes")
    return groups


def rebuild_hashed(shape: FirstShape, arrays: FirstArrays) -> Layout:
    """Rows of some ids' own, which stood behind the shared ones, are a part."""
    if "keys" not in arrays:
        return HashedLayout.from_file(shape, arrays)
    rows, dim = shape["num_embeddings"], shape["embedding_dim"]
    keys = need(arrays, "keys", 1, [np.int32])
    need_ids("keys", keys, rows)
    index = need(arrays, "index", 2, [np.int64])
    values = need(arrays, "values", 2, [np.float32])
    pieces = len(index) if shape["combine_code"] == 2 else 1  # "concat"
    shared = len(values) - len(keys) * pieces
    if shared < 1 or values.shape[1] * pieces != dim:
        raise ValueError(f"values must be shared rows, and {len(keys)} of {dim}")
    tables = {name: array for name, array in arrays.items() if name != "keys"}
    rest = HashedLayout.from_file(shape, tables | {"values": values[:shared]})
    return keep_apart(rows, keys, values[shared:].reshape(-1, dim), rest)


def rebuild_codebook(shape: FirstShape, arrays: FirstArrays) -> Layout:
    """Heads are a part, of the codes or of the rows; helpers are added, and what is
    rotated is turned.
    """
    rows, dim = shape["num_embeddings"], shape["embedding_dim"]
    if not 0 <= shape["combine_code"] < len(COMBINED):
        raise ValueError("combine_code must be 0 or 1")
    combine = COMBINED[shape["combine_code"]]
    firsts, starts = need(arrays, "firsts", 2, [np.int32]), arrays.get("starts")
    words = need(arrays, "codewords", 2, NUMBERS)
    heads, own = read_heads(shape, arrays), None
    if "head_values" in arrays:
        own = need(arrays, "head_values", 2, NUMBERS)
        need_size("head_values", own, len(heads))
        if len(heads) == rows:
            return DenseLayout(own)
    if own is None or "hashed" in arrays:
        codes = rebuild_codes(shape, arrays, heads, firsts.shape[1])
    else:
        codes = PackedLayout(
            need(arrays, "codes", 1, [np.uint32]),
            rows - len(heads),
            firsts.shape[1],
            shape["bits"],
        )
        firsts, starts = renumber_groups(firsts, starts, heads, rows)
    layout: Layout = CodebookLayout(codes, words, firsts, dim, combine, starts)
    if "hashed" in arrays or "index" in arrays:
        layout = AddedLayout([layout, rebuild_helpers(shape, arrays)])
    if "rotation" in arrays:
        layout = TurnedLayout(layout, need(arrays, "rotation", 2, [np.float32]))
    return layout if own is None else keep_apart(rows, heads, own, layout)


def read_heads(shape: FirstShape, arrays: FirstArrays) -> np.ndarray:
    """Ids that `marks` marks, rising."""
    rows = shape["num_embeddings"]
    given = sum(name in arrays for name in ("head_codes", "head_values"))
    if "marks" not in arrays:
        if given or "ranks" in arrays or shape["head_bits"]:
            raise ValueError("heads need marks")
        return np.zeros(0, dtype=np.int64)
    marks = need(arrays, "marks", 1, [np.uint64])
    need_size("marks", marks, -(-rows // 64))
    heads = np.flatnonzero(unpack_words(marks))
    if len(heads) and int(heads[-1]) >= rows:
        raise ValueError("marks beyond the last id must be 0")
    ranks = need(arrays, "ranks", 1, [np.uint32])
    if not np.array_equal(ranks, mark_ids(heads, rows)[1]):
        raise ValueError("ranks must count the marks below each word")
    if given != 1:
        raise ValueError("heads need either codes or values")
    return heads


def rebuild_codes(
    shape: FirstShape, arrays: FirstArrays, heads: np.ndarray, books: int
) -> Layout:
    """The codes of all ids."""
    rows, bits = shape["num_embeddings"], shape["head_bits"]
    parts: list[Layout] = []
    if len(heads) < rows:
        stream = need(arrays, "codes", 1, [np.uint32])
        parts.append(PackedLayout(stream, rows - len(heads), books, shape["bits"]))
    if len(heads):
        if "head_codes" in arrays:
            stream = need(arrays, "head_codes", 1, [np.uint32])
        else:
            # Heads are rows, and helpers ask for ids by number: all must have codes,
            # though nothing reads those of the heads.
            bits = 1
            stream = np.zeros(stream_words(len(heads) * books, 1), dtype=np.uint32)
        parts.insert(0, PackedLayout(stream, len(heads), books, bits))
    return parts[0] if len(parts) == 1 else RoutedLayout.from_ids(parts, [heads], rows)


def rebuild_helpers(shape: FirstShape, arrays: FirstArrays) -> Layout:
    """The hashed rows that are added to codewords."""
    index = need(arrays, "index", 2, [np.int64])
    if COMBINED[shape["combine_code"]] != "concat":
        raise ValueError("helpers need combine 'concat'")
    need_size("index", index, arrays["firsts"].shape[1])
    return HashedLayout(
        need(arrays, "hashed", 2, [np.float32]),
        index,
        shape["num_embeddings"],
        shape["embedding_dim"],
        "concat",
    )


def renumber_groups(
    firsts: np.ndarray, starts: np.ndarray | None, heads: np.ndarray, rows: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Books and first ids of the groups, once the heads are taken out of them.

    Groups of heads alone are left out.
    """
    if starts is None:
        return firsts, None
    if starts.dtype != np.int64 or starts.shape != firsts.shape[:1]:
        raise ValueError(f"starts must be {len(firsts)} int64 ids")
    need_ids("starts", starts, rows)
    if starts[0]:
        raise ValueError("starts must begin with 0")
    first = starts - np.searchsorted(heads, starts)
    filled = np.diff(first, append=rows - len(heads)) > 0
    return firsts[filled], first[filled] if filled.sum() > 1 else None


def rebuild_train(shape: FirstShape, arrays: FirstArrays) -> Layout:
    """One array of numbers becomes a list of cores, and cached rows a part."""
    rows = shape["num_embeddings"]
    values = need(arrays, "values", 1, [np.float32])
    shapes = need(arrays, "shapes", 2, [np.int64])
    if shapes.shape[1] != 5 or not shapes.size or shapes.min() < 1:
        raise ValueError("shapes must be sizes from 1 up, of shape (cores, 5)")
    expected = core_shapes(shapes)
    sizes = [math.prod(core) for core in expected]
    need_size("values", values, sum(sizes))
    cores = [core.reshape(own) for core, own in zip(cut(values, sizes), expected)]
    layout = TensorTrainLayout(cores, shapes, rows, shape["embedding_dim"])
    if "cached_ids" not in arrays and "cached_rows" not in arrays:
        return layout
    ids = need(arrays, "cached_ids", 1, [np.int32, np.int64])
    need_ids("cached_ids", ids, rows)
    own = need(arrays, "cached_rows", 2, [np.float32])
    need_size("cached_rows", own, len(ids))
    return keep_apart(rows, ids, own, layout)


Rebuild: TypeAlias = Callable[[FirstShape, FirstArrays], Layout]

# How each is rebuilt; its arrays; its integers, beside the two that all have.
REBUILT: dict[str, tuple[Rebuild, tuple[str, ...], tuple[str, ...]]] = {
    "tiered": (rebuild_tiered, ("keys", *TIERS), ()),
    "grouped": (
        rebuild_grouped,
        ("values", "groups", "projections", "columns", "planes", "before"),
        (),
    ),
    "hashed": (
        rebuild_hashed,
        ("values", "index", "signs", "weights", "weight_index", "keys", "paths"),
        ("combine_code", "open_ids", "shared"),
    ),
    "codebook": (
        rebuild_codebook,
        ("codes", "codewords", "firsts", "starts", "rotation", "marks", "ranks",
         "head_codes", "head_values", "hashed", "index"),
        ("bits", "head_bits", "combine_code"),
    ),
    "tensor_train": (
        rebuild_train, ("values", "shapes", "cached_ids", "cached_rows"), (),
    ),
}  # fmt: skip
