"""STORES: what is deployed, in NumPy; CuPy arrays after ``to_gpu()``."""

from __future__ import annotations

import os

from survey_code.layouts.anchors import AnchorLayout
from survey_code.layouts.binary import BinaryLayout
from survey_code.layouts.codebook import CodebookLayout
from survey_code.layouts.dense import DenseLayout
from survey_code.layouts.files import header_bytes, read_file
from survey_code.layouts.flat import FlatLayout
from survey_code.layouts.generator import GeneratorLayout
from survey_code.layouts.grouped import GroupedLayout
from survey_code.layouts.hashed import HashedLayout
from survey_code.layouts.layout import Layout
from survey_code.layouts.ragged import RaggedLayout
from survey_code.layouts.rowwise import RowwiseLayout
from survey_code.layouts.sparse import SparseLayout
from survey_code.layouts.tensor_train import TensorTrainLayout
from survey_code.layouts.tiered import TieredLayout

LAYOUTS: dict[str, type[Layout]] = {
    layout.name: layout
    for layout in (
        DenseLayout,
        RowwiseLayout,
        TieredLayout,
        BinaryLayout,
        GroupedLayout,
        RaggedLayout,
        SparseLayout,
        HashedLayout,
        CodebookLayout,
        FlatLayout,
        GeneratorLayout,
        TensorTrainLayout,
        AnchorLayout,
    )
}


def load_layout(path: str | os.PathLike[str]) -> Layout:
    """Read a layout that `Layout.save` wrote.

    Raises
    ------
    ValueError
        If the file is cut short, damaged, foreign, or newer than this package.
    FileNotFoundError
        If there is no such file.
    """
    name, version, shape, arrays = read_file(path)
    if name not in LAYOUTS:
        raise ValueError(f"{path}: unknown layout {name!r}, known: {sorted(LAYOUTS)}")
    if version != LAYOUTS[name].version:
        raise ValueError(
            f"{path}: layout {name!r} has version {version}, this package reads "
            f"version {LAYOUTS[name].version}"
        )
    try:
        return LAYOUTS[name].from_file(shape, arrays)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


__all__ = [
    "LAYOUTS",
    "AnchorLayout",
    "BinaryLayout",
    "CodebookLayout",
    "DenseLayout",
    "FlatLayout",
    "GeneratorLayout",
    "GroupedLayout",
    "HashedLayout",
    "Layout",
    "RaggedLayout",
    "RowwiseLayout",
    "SparseLayout",
    "TensorTrainLayout",
    "TieredLayout",
    "header_bytes",
    "load_layout",
]
