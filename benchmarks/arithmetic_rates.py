"""Rates of the kernels that compute more than they read.

Scores by table look-up, the nearest centroids, gradients that are added up, and rows
that a network makes; each beside what another way, or the arithmetic alone, reaches
in the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from random_layouts import random_generator, random_products
from rates import DIM, ROWS, SETS, describe_origin, time_events

from survey_code.layouts.generator import count_weights
from survey_code.spec import TableSpec

Calls = Mapping[str, Callable[[Any], Any]]


def measure_codes(
    rows: int = ROWS, dim: int = DIM, seed: int = 1, command: str = ""
) -> Iterator[dict[str, Any]]:
    """Time scores in product codes, and the assignment of points to centroids.

    Beside the scores: the product of the queries with the full table, by cuBLAS; and
    a copy that moves as many bytes as must be read and written.  Beside the
    assignment: products in parts, then the smallest distance of each row, by torch;
    and a product of matrices with as many multiplications, without anything else.

    Yields
    ------
    dict
        One line of evidence: ``kind``, ``what``, and ``per_s``, pairs of a query and
        a row (or of a point and a centroid) a second.

    Raises
    ------
    RuntimeError
        If no GPU is present.
    """
    from survey_code.kernels.cuda import load_cupy
    from survey_code.kernels.cuda.assign import assign_points

    cupy = load_cupy()
    origin = describe_origin(seed, command)
    rng = cupy.random.default_rng(seed)
    device: Any = random_products(np.random.default_rng(seed), rows, dim)[0].to_gpu()
    table = rng.random((rows, dim), dtype=np.float32)
    for count in (1, 16, 64):
        queries = rng.standard_normal((SETS, count, dim), dtype=np.float32)
        moved = (device.codes.nbytes + 4 * count * rows) // 2
        calls: Calls = {
            "kernel": device.scores,
            "full table": partial(multiply_by, table.T),
            "copy": partial(copy_bytes, *cupy.zeros((2, moved), dtype=np.uint8)),
        }
        size = {"rows": rows, "dim": dim, "queries": count}
        yield from measure_calls(
            "scores", calls, queries, count * rows, {**size, **origin}
        )
    for width, clusters in ((8, 256), (16, 4096)):
        points = rng.standard_normal((3, rows // 10, width), dtype=np.float32)
        centroids = rng.standard_normal((clusters, width), dtype=np.float32)
        calls = {
            "kernel": partial(assign_points, centroids=centroids),
            "torch": partial(assign_by_products, centroids),
            "product": partial(multiply_parts, centroids.T),
        }
        size = {"rows": rows // 10, "dim": width, "clusters": clusters}
        yield from measure_calls(
            "assignment", calls, points, rows // 10 * clusters, {**size, **origin}
        )


def measure_gradients(
    rows: int = ROWS // 10, dim: int = DIM, batch: int = 2**18, seed: int = 1,
    command: str = "",
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Time the way back of ROBE, for a batch of random rows.

    Beside it: the way there and back through the table, as training goes it, by
    kernels and by torch alone; and torch's sum of as many full rows into a table of
    their own.

    Yields
    ------
    dict
        As `measure_codes`; ``per_s`` are rows.
    """
    import torch

    from survey_code.kernels.cuda import load_cupy
    from survey_code.kernels.cuda.scatter import scatter_blocks
    from survey_code.weight_sharing.hashing import ROBE

    cupy = load_cupy()
    origin = describe_origin(seed, command, rows=rows, dim=dim, batch=batch)
    drawn = cupy.random.default_rng(seed)
    ids = drawn.integers(0, rows, size=(SETS, batch), dtype=np.int64)
    gradients = drawn.standard_normal((batch, dim), dtype=np.float32)
    full = torch.zeros(rows, dim, device="cuda")
    table = ROBE.make(TableSpec.of_shape(rows, dim), size=rows // 10 * dim).cuda()
    numbers = len(table.values), table.block_len, table.multipliers.tolist()

    def add_rows(own: Any) -> None:
        full.index_add_(0, torch.from_dlpack(own), torch.from_dlpack(gradients))

    def go_back(read: Callable[[Any], Any], own: Any) -> None:
        found = read(torch.from_dlpack(own))
        torch.autograd.grad(found, table.values, torch.from_dlpack(gradients))

    def go_forth(read: Callable[[Any], Any], own: Any) -> None:
        read(torch.from_dlpack(own))

    calls: Calls = {
        "kernel": lambda own: scatter_blocks(own, gradients, *numbers),
        "kernels, both ways": partial(go_back, table.embed),
        "autograd, both ways": partial(go_back, table.read_runs),
        "autograd, forth": partial(go_forth, table.read_runs),
        "full rows": add_rows,
    }
    yield from measure_calls("ROBE", calls, ids, batch, origin)


def measure_generator(
    rows: int = ROWS, dim: int = DIM, batch: int = 2**18, seed: int = 1,
    command: str = "",
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Time rows that a network makes of hashes, for a batch of random ids.

    Beside it: the network's products alone; the code for arrays, without our kernels;
    and torch's look-up of as many rows in the full table.

    Yields
    ------
    dict
        As `measure_codes`; ``per_s`` are rows, and ``multiplications`` those of one.
    """
    import torch

    from survey_code.kernels.cuda import load_cupy

    cupy = load_cupy()
    drawn = cupy.random.default_rng(seed)
    ids = drawn.integers(0, rows, size=(SETS, batch), dtype=np.int64)
    full = torch.rand(rows, dim, device="cuda")
    for codes, width in ((64, 128), (1024, 1024)):
        layout = random_generator(rows, dim, codes, width, seed)
        device = layout.to_gpu()
        fused: Any = device.device.format
        layers = fused.layers
        signals = drawn.standard_normal((batch, codes), dtype=np.float32)

        def multiply(_: Any, signals: Any = signals, layers: Any = layers) -> None:
            for matrix, _bias in layers:
                signals = signals @ matrix

        calls: Calls = {
            "kernels": partial(device.lookup, check=False),
            "arrays": device.read_rows,
            "products": multiply,
            "full table": lambda own: full[torch.from_dlpack(own)],
        }
        origin = describe_origin(
            seed, command, rows=rows, dim=dim, batch=batch, codes=codes, width=width,
            multiplications=count_weights(codes, width, layout.layers, dim),
        )  # fmt: skip
        yield from measure_calls("generator", calls, ids, batch, origin)


def measure_calls(
    kind: str, calls: Calls, inputs: Any, units: int, origin: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """A line for each way of doing the same: units a second of the median call."""
    for what, call in calls.items():
        seconds = float(np.median(time_events(call, inputs)))
        yield {"kind": kind, "what": what, "per_s": units / seconds, **origin}


def assign_by_products(centroids: Any, points: Any, part: int = 1 << 16) -> Any:
    """The nearest centroids by torch: squared distances in parts, then the least."""
    import torch

    found, points = torch.from_dlpack(centroids), torch.from_dlpack(points)
    lengths = (found**2).sum(dim=1)
    return [
        torch.addmm(lengths, own, found.T, alpha=-2).argmin(dim=1)
        for own in points.split(part)
    ]


def multiply_by(matrix: Any, vectors: Any) -> Any:
    """One product."""
    return vectors @ matrix


def multiply_parts(matrix: Any, vectors: Any, part: int = 1 << 16) -> None:
    """The same, part by part; nothing is kept."""
    for start in range(0, len(vectors), part):
        multiply_by(matrix, vectors[start : start + part])


def copy_bytes(target: Any, source: Any, _: Any) -> None:
    """Move bytes from memory to memory, whatever is asked."""
    target[...] = source
