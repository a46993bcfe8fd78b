"""How many rows a second a GPU reads, beside what it could read at best."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from random_layouts import COMPOSED, random_composed, random_layout

from survey_code.lab.results import describe_machine
from survey_code.layouts import Layout

ROWS, DIM = 20_000_000, 64
# (bags, ids a bag): pooled reads, and one id a bag.
SHAPES = ((65_536, 32), (1_048_576, 1))
KINDS = ("8 bits", "4 bits", "2 bits", "1 bit", "float16", "float32")
SETS = 12  # of ids; together far larger than the second-level cache


def measure_rates(
    kinds: tuple[str, ...] = KINDS,
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
    from survey_code.kernels.cuda import load_cupy
    from survey_code.kernels.cuda.launch import gather_ceiling

    cupy = load_cupy()
    origin = describe_origin(seed, command, rows=rows, dim=dim)
    for kind in kinds:
        layout = random_layout(kind, rows, dim, seed)
        device = layout.to_gpu()
        del layout
        fused: Any = device.device.format
        table = whole_rows(fused.table)
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


def whole_rows(table: Any) -> Any:
    """The rows that a layout reads the first entries of, padding included.

    Parameters
    ----------
    table : CuPy array, shape (rows, width)
        As a format holds it: perhaps a view of padded rows.

    Returns
    -------
    CuPy array of uint8, shape (rows, stride)
    """
    held = table if table.base is None else table.base
    return held.view(np.uint8).reshape(len(held), -1)


def measure_composed(
    kinds: tuple[str, ...] = tuple(COMPOSED),
    rows: int = ROWS,
    dim: int = DIM,
    shapes: tuple[tuple[int, int], ...] = SHAPES,
    seed: int = 1,
    command: str = "",
) -> Iterator[dict[str, Any]]:
    """Time look-ups of layouts whose rows several arrays make together.

    Beside each, in the same run: the plain gather of as many bytes as one look-up
    touches (whole sectors of 32), from an array as large as the layout; and torch's
    ``embedding_bag`` on the uncompressed table.

    Yields
    ------
    dict
        As `measure_rates`; ``touched`` are a look-up's bytes.
    """
    from survey_code.kernels.cuda import load_cupy
    from survey_code.kernels.cuda.launch import gather_ceiling

    cupy = load_cupy()
    origin = describe_origin(seed, command, rows=rows, dim=dim)
    plain = cupy.random.default_rng(seed).random((rows, dim), dtype=np.float32)
    for kind in kinds:
        layout, touched = random_composed(kind, rows, dim, seed)
        device = layout.to_gpu()
        del layout
        stride = -(-touched // 32) * 32
        least = max(device.nbytes // stride, 1)
        table = cupy.zeros((least, stride), dtype=np.uint8)
        for bags, length in shapes:
            offsets = cupy.arange(bags, dtype=np.int64) * length
            ids = draw_ids(cupy, rows, bags, length, seed)
            cases: dict[str, tuple[Callable[[Any], Any], Any]] = {
                "bag": (partial(read_bags, device, offsets), ids),
                "gather": (partial(gather_ceiling, table), ids % least),
                "torch": (torch_bag(plain.view(np.uint8), dim, offsets), ids),
            }
            if length == 1:
                cases["lookup"] = (partial(device.lookup, check=False), ids)
            for what, (call, own) in cases.items():
                seconds = time_events(call, own)
                yield {
                    "what": what,
                    "kind": kind,
                    "bags": bags,
                    "length": length,
                    "ids": str(own.dtype),
                    "touched": touched,
                    "held_bytes": int(device.held_bytes),
                    "rows_per_s": bags * length / float(np.median(seconds)),
                    **origin,
                }
        del device, table, cases
        cupy.get_default_memory_pool().free_all_blocks()


def describe_origin(seed: int, command: str, **sizes: int) -> dict[str, Any]:
    """Where a line of evidence comes from."""
    from survey_code.kernels.cuda import load_cupy

    machine = describe_machine("cuda")
    machine["versions"]["cupy"] = load_cupy().__version__
    return {"command": command, "seed": seed, **machine, **sizes}


def measure_scans(
    rows: int = ROWS, bits: int = 64, k: int = 100, seed: int = 1, command: str = ""
) -> Iterator[dict[str, Any]]:
    """Time the search for the k nearest of all codes, for 1 to 4,096 queries.

    Beside it, in the same run: a copy of the codes from memory to memory, whose
    bytes read are the least that a search must read.

    Yields
    ------
    dict
        ``queries_per_s``, ``codes_per_s`` (pairs of a query and a code), and
        ``copy_bytes_per_s``, bytes read and written.
    """
    from survey_code.kernels.cuda import load_cupy
    from survey_code.kernels.cuda.hamming import nearest_codes

    cupy = load_cupy()
    rng = cupy.random.default_rng(seed)
    codes = rng.integers(0, 256, size=(rows, bits // 8), dtype=np.uint8)
    copies = [codes.copy() for _ in range(4)]
    target = cupy.empty_like(codes)
    copying = time_events(lambda part: cupy.copyto(target, part), copies)
    for count in (1, 16, 256, 4096):
        queries = rng.integers(0, 256, size=(8, count, bits // 8), dtype=np.uint8)
        search = partial(nearest_codes, codes=codes, k=k)
        seconds = float(np.median(time_events(search, queries)))
        yield {
            "what": "nearest",
            "queries": count,
            "k": k,
            "bits": bits,
            "queries_per_s": count / seconds,
            "codes_per_s": count * rows / seconds,
            "copy_bytes_per_s": 2 * codes.nbytes / float(np.median(copying)),
            **describe_origin(seed, command, rows=rows),
        }


def measure_writes(
    rows: int = ROWS, dim: int = DIM, batch: int = 2**20, seed: int = 1,
    command: str = "",
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Time rounding by chance and writing back, for a batch of random rows.

    Beside it, in the same run: the same rows stored as they are, in float32.

    Yields
    ------
    dict
        ``rows_per_s``, and ``rows_stored_per_s`` of the plain store.
    """
    from survey_code.kernels.cuda import load_cupy
    from survey_code.kernels.cuda.writeback import draw_key, write_rows

    cupy = load_cupy()
    rng = cupy.random.default_rng(seed)
    drawn = np.random.default_rng(seed).permutation(rows)[: 4 * batch]
    ids = cupy.asarray(drawn.reshape(4, batch))
    values = rng.standard_normal((batch, dim), dtype=np.float32)
    steps = rng.random(batch, dtype=np.float32) + np.float32(0.01)
    plain = cupy.zeros((rows, dim), dtype=np.float32)

    def store(own: Any) -> None:
        plain[own] = values

    stored = batch / float(np.median(time_events(store, ids)))
    for bits in (8, 4, 2):
        table = cupy.zeros((rows, dim * bits // 8), dtype=np.uint8)

        def write(own: Any, table: Any = table, bits: int = bits) -> None:
            write_rows(table, own, values, steps, bits, draw_key(seed, 1))

        yield {
            "what": "write back",
            "kind": f"{bits} bits",
            "batch": batch,
            "rows_per_s": batch / float(np.median(time_events(write, ids))),
            "rows_stored_per_s": stored,
            **describe_origin(seed, command, rows=rows, dim=dim),
        }


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
