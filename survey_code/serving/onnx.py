"""Layouts as ONNX files: a graph of standard nodes from ids to rows.

The graph reads rows as the layout does.  It holds the stored arrays byte for byte, in
their own types; what they stand for is computed for the rows that are asked for.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from survey_code.layouts.files import write_atomically
from survey_code.layouts.layout import Layout
from survey_code.serving.nodes import IR_VERSION, OPSET, Nodes, Value
from survey_code.serving.rows import NOWHERE, check_exportable, emit

# A file is one message of protobuf, which has less than 2 GiB; nodes take a little.
MOST_STORED_BYTES = 2**31 - 2**20


def export_onnx(layout: Layout, path: str | os.PathLike[str]) -> int:
    """Write a layout as an ONNX file.

    The graph has one input and one output, and nodes of the standard operators only
    (opset 18).

    - ``ids``: int64 of shape (count,), as many as there are.
    - ``rows``: float32 of shape (count, embedding_dim).

    Rows are those of `Layout.lookup`: bit for bit where they are gathered and decoded;
    where numbers are added up or multiplied by matrices, the last digits can differ,
    since a runtime may add in another order.

    A negative id, or one from `num_embeddings` on unless the layout serves those, is an
    error when the graph is run: it becomes an index outside of an array, which ONNX
    calls an error.  onnxruntime says so on a processor; on other devices a runtime may
    not look.

    Parameters
    ----------
    layout : Layout
    path : path-like
        What stands there is replaced at once, when all is written.

    Returns
    -------
    int
        Bytes of the file: `Layout.nbytes`, and about 1 kB of nodes; up to 3 kB where
        groups or parts of a table are routed, and about 1 kB for each layout inside.

    Raises
    ------
    ValueError
        If there is no export of such a layout, or of one inside it, or the file would
        be larger than a file of ONNX can be, 2 GiB.
    ImportError
        If the package onnx is not installed.
    OSError
        As `survey_code.layouts.files.write_atomically`.
    """
    if not isinstance(layout, Layout):
        raise ValueError(f"layout must be a Layout, got {type(layout).__name__}")
    check_exportable(layout)
    if layout.nbytes > MOST_STORED_BYTES:
        raise ValueError(
            f"an ONNX file holds at most 2 GiB, this layout has {layout.nbytes:,} bytes"
        )
    contents = build_model(layout.to_cpu())
    write_atomically(Path(path), [contents])
    return len(contents)


def build_model(layout: Layout) -> bytes:
    """The contents of `export_onnx`'s file."""
    try:
        from onnx import TensorProto
        from onnx.helper import (
            make_graph,
            make_model,
            make_node,
            make_opsetid,
            make_tensor_value_info,
        )
    except ImportError as error:
        raise ImportError(
            "an ONNX file is written by the package onnx: pip install "
            "'survey-code[onnx]'"
        ) from error
    graph = Nodes()
    rows = emit(layout, guard(Value(graph, "ids"), layout))
    graph.open[-1].append(make_node("Identity", [rows.name], ["rows"]))
    dim = layout.embedding_dim
    model = make_model(
        make_graph(
            graph.open[-1],
            layout.name,
            [make_tensor_value_info("ids", TensorProto.INT64, ["count"])],
            [make_tensor_value_info("rows", TensorProto.FLOAT, ["count", dim])],
            graph.arrays,
        ),
        opset_imports=[make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="survey-code",
    )
    contents: bytes = model.SerializeToString(deterministic=True)
    return contents


def guard(ids: Value, layout: Layout) -> Value:
    """The ids; an error where one is bad.

    Gather reads a negative index from the end, and what computes its rows reads some
    row for any id.  So each id gets a zero added, from place 0 of an array of one
    number; a bad one asks for place 1, where there is none.
    """
    limit = 2**63 if layout.open_ids else layout.num_embeddings
    bad = ids.to(np.uint64) >= np.uint64(limit)  # where negative ones are large
    return ids + ids.graph.add("Gather", NOWHERE, bad.to(np.int64))
