"""How many rows a second a GPU reads, beside what it could read at best."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from survey_code.lab.results import find_versions, name_device, today
from survey_code.layouts import DenseLayout, Layout, RowwiseLayout
from survey_code.layouts.rowwise import code_bytes, parameter_type

ROWS, DIM = 20_000_000, 64
# (bags, ids a bag): pooled reads, and one id a bag.
SHAPES = ((65_536, 32), (1_048_576, 1))
SETS = 12  # of ids; together far larger than the second-level cache


def random_layout(kind: str, rows: int, dim: int, seed: int) -> Layout:
    """A layout of random content, made without a float32 table in between.

    Parameters
    ----------
    kind : {"8 bits", "4 bits", "2 bits", "float16", "float32"}
    rows, dim, seed : int
    """
    rng = np.random.default_rng(seed)
    if kind.startswith("float"):
        values = rng.random((rows, dim), dtype=np.float32)
        return DenseLayout(values.astype(kind, copy=False))
    bits = int(kind.split()[0])
    width, parameters = code_bytes(dim, bits), parameter_type(bits)
    codes = np.frombuffer(rng.bytes(rows * width), np.uint8).reshape(rows, width)
    tail = rng.random((rows, 2), dtype=np.float32).astype(parameters)
    packed = np.concatenate([codes, tail.view(np.uint8)], axis=1)
    return RowwiseLayout(packed, dim, bits)


def measure_rates(
    kinds: tuple[str, ...] = ("8 bits", "4 bits", "2 bits", "float16", "float32"),
    rows: int = ROWS,
    dim: int = DIM,
    shapes: tuple[tuple[int, int], ...] = SHAPES,
    seed: int = 1,
    command: str = "",
) -> Iterator[dict[str, Any]]:
    """Time pooled look-ups on uniform random ids, fresh for every call.

    Each kind is measured through `Layout.bag` without the check of ids (nothing
    waits), and beside it, in the same run, the plain gather of rows of the same
    stride; float32 also through torch's ``embedding_bag``.

    Yields
    ------
    dict
        One line of evidence: ``what``, ``kind``, ``bags``, ``length``, ``ids``
        (their type), ``rows_per_s`` (median call), ``slowest_rows_per_s`` (99th
        percentile), ``stride``, and where it comes from.

    Raises
    ------
    RuntimeError
        If no GPU is present.
    """
    from survey_code.gpu import load_cupy
    from survey_code.gpu.rows import gather_ceiling

    cupy = load_cupy()
    origin = {
        "command": command,
        "date": today(),
        "device": name_device("cuda"),
        "seed": seed,
        "versions": {**find_versions(), "cupy": cupy.__version__},
        "rows": rows,
        "dim": dim,
    }
    for kind in kinds:
        layout = random_layout(kind, rows, dim, seed)
        device = layout.to_gpu()
        del layout
        table = device.fused.table
        for bags, length in shapes:
            ids = draw_ids(cupy, rows, bags, length, seed)
            offsets = cupy.arange(bags, dtype=np.int64) * length
            cases: dict[str, Callable[[Any], Any]] = {
                "bag": partial(read_bags, device, offsets),
                "gather": partial(gather_ceiling, table),
            }
            if length == 1:
                cases["lookup"] = partial(device.lookup, check=False)
            if kind == "float32":
                cases["torch"] = torch_bag(table, dim, offsets)
            for what, call in cases.items():
                seconds = time_events(call, ids)
                yield {
                    "what": what,
                    "kind": kind,
                    "bags": bags,
                    "length": length,
                    "ids": str(ids.dtype),
                    "stride": int(table.shape[1]),
                    "held_bytes": int(table.nbytes),
                    "rows_per_s": bags * length / float(np.median(seconds)),
                    "slowest_rows_per_s": bags
                    * length
                    / float(np.percentile(seconds, 99)),
                    **origin,
                }
        del device, table, cases
        cupy.get_default_memory_pool().free_all_blocks()


def read_bags(layout: Layout, offsets: Any, ids: Any) -> Any:
    """One timed call: bags of ids, shape (bags, length), without a check."""
    return layout.bag(ids.ravel(), offsets, check=False)


def draw_ids(cupy: Any, rows: int, bags: int, length: int, seed: int) -> Any:
    """Uniform ids of several calls, int64, shape (sets, bags, length)."""
    rng = cupy.random.default_rng(seed)
    return rng.integers(0, rows, size=(SETS, bags, length), dtype=np.int64)


def torch_bag(table: Any, dim: int, offsets: Any) -> Callable[[Any], Any]:
    """The float32 bag of torch over the same table."""
    import torch
    from torch.nn import functional

    weight = torch.from_dlpack(table.view(np.float32)[:, :dim])
    starts = torch.from_dlpack(offsets)
    return lambda x: functional.embedding_bag(
        torch.from_dlpack(x.ravel()), weight, starts, mode="sum"
    )


def time_events(call: Callable[[Any], Any], ids: Any, repeats: int = 3) -> list[float]:
    """Seconds of each call on the device, every set of ids `repeats` times.

    A short sleep is queued first, so that the device never waits for Python
    between the two events.
    """
    import torch

    for k in range(3):
        call(ids[k])
    seconds = []
    for k in range(repeats * len(ids)):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(1_000_000)
        first.record()
        call(ids[k % len(ids)])
        last.record()
        last.synchronize()
        seconds.append(first.elapsed_time(last) / 1e3)
    return seconds
