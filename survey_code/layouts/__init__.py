"""STORES: what is deployed, in NumPy; CuPy arrays after ``to_gpu()``."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from survey_code.layouts.added import AddedLayout
from survey_code.layouts.anchors import AnchorLayout
from survey_code.layouts.binary import BinaryLayout
from survey_code.layouts.codebook import CodebookLayout
from survey_code.layouts.dense import DenseLayout
from survey_code.layouts.files import Blueprint, header_bytes, read_file
from survey_code.layouts.flat import FlatLayout
from survey_code.layouts.generator import GeneratorLayout
from survey_code.layouts.grouped import GroupedLayout
from survey_code.layouts.hashed import HashedLayout
from survey_code.layouts.layout import Layout, StoredArray
from survey_code.layouts.levels import LevelsLayout
from survey_code.layouts.packed import PackedLayout
from survey_code.layouts.probed import ProbedLayout
from survey_code.layouts.ragged import RaggedLayout
from survey_code.layouts.routed import RoutedLayout
from survey_code.layouts.rowwise import RowwiseLayout
from survey_code.layouts.semantic import SemanticLayout
from survey_code.layouts.sparse import SparseLayout
from survey_code.layouts.tensor_train import TensorTrainLayout
from survey_code.layouts.turned import TurnedLayout

LAYOUTS: dict[str, type[Layout]] = {
    layout.name: layout
    for layout in (
        DenseLayout,
        RowwiseLayout,
        LevelsLayout,
        BinaryLayout,
        GroupedLayout,
        RaggedLayout,
        SparseLayout,
        HashedLayout,
        SemanticLayout,
        CodebookLayout,
        FlatLayout,
        GeneratorLayout,
        TensorTrainLayout,
        AnchorLayout,
        PackedLayout,
        ProbedLayout,
        RoutedLayout,
        AddedLayout,
        TurnedLayout,
    )
}


def load_layout(
    path: str | os.PathLike[str], mmap: bool = False, check: bool | None = None
) -> Layout:
    """Read a layout that `Layout.save` wrote.

    Parameters
    ----------
    path : path
    mmap : bool, default False
        Map the file instead of reading it: its pages are read when rows are first
        looked up, and shared by all processes that map it.  The arrays are read-only.
        The file may be replaced, as `save` does, but not be changed or cut short.
    check : bool, optional
        Whether the SHA-256 is compared, and all numbers are looked at.  By default
        not for a mapped file, for which the whole of it would be read: **a mapped file
        is trusted**, and only names, types and shapes are checked.

    Raises
    ------
    ValueError
        If the file is cut short, damaged, foreign, or newer than this package.
    FileNotFoundError
        If there is no such file.
    """
    check = not mmap if check is None else check
    blueprint, arrays = read_file(path, mmap, check)
    try:
        return rebuild(blueprint, arrays, trusted=not check)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def rebuild(
    blueprint: Blueprint, arrays: Mapping[str, np.ndarray], trusted: bool = False
) -> Layout:
    """A layout from what a file says of it, and its arrays.

    What is trusted is not looked at, but for its types and shapes.

    Raises
    ------
    ValueError
        If a layout is unknown or newer than this package, or the arrays contradict
        each other.
    """
    name, version = blueprint["layout"], blueprint["version"]
    if name not in LAYOUTS:
        raise ValueError(f"unknown layout {name!r}, known: {sorted(LAYOUTS)}")
    if version != LAYOUTS[name].version:
        raise ValueError(
            f"layout {name!r} has version {version}, this package reads version "
            f"{LAYOUTS[name].version}"
        )
    held: dict[str, StoredArray | Layout] = {}
    below: dict[str, dict[str, np.ndarray]] = {part: {} for part in blueprint["parts"]}
    for key, array in arrays.items():
        part, _, own = key.partition("/")
        if own and part in below:
            below[part][own] = array
        else:
            held[key] = array
    for part, inner in blueprint["parts"].items():
        if part in held:
            raise ValueError(f"{part!r} is both an array and a layout")
        held[part] = rebuild(inner, below[part], trusted)
    return LAYOUTS[name].from_file(blueprint["shape"], held, trusted)


__all__ = [
    "LAYOUTS",
    "AddedLayout",
    "AnchorLayout",
    "BinaryLayout",
    "CodebookLayout",
    "DenseLayout",
    "FlatLayout",
    "GeneratorLayout",
    "GroupedLayout",
    "HashedLayout",
    "Layout",
    "LevelsLayout",
    "PackedLayout",
    "ProbedLayout",
    "RaggedLayout",
    "RoutedLayout",
    "RowwiseLayout",
    "SemanticLayout",
    "SparseLayout",
    "TensorTrainLayout",
    "TurnedLayout",
    "header_bytes",
    "load_layout",
]
