"""What one call on a GPU costs at the sizes at which tables are served."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from random_layouts import COMPOSED, random_composed, random_layout
from rates import KINDS, describe_origin
from torch import Tensor
from torch.nn import functional

from survey_code import FrozenEmbedding, FrozenEmbeddingBag
from survey_code.layouts import Layout

ROWS, DIM = 1_000_000, 64
SIZES = ((1, 20), (256, 20), (4_096, 20))  # (bags, ids a bag)
CHECKS = {"unchecked": False, "late": "late", "checked": True}
SEVERAL = 50  # calls in one graph, whose own time is a kernel's


def measure_calls(
    kinds: tuple[str, ...] = (*KINDS, *COMPOSED),
    rows: int = ROWS,
    dim: int = DIM,
    sizes: tuple[tuple[int, int], ...] = SIZES,
    seed: int = 1,
    command: str = "",
) -> Iterator[dict[str, Any]]:
    """Time calls of modules: queued one after another, and waited for one by one.

    Beside each, in the same run, torch's ``embedding_bag`` and ``embedding`` on the
    uncompressed table.  "graph" is a CUDA graph of one call, "kernel" a graph of many,
    by their number: what the GPU itself takes.

    Yields
    ------
    dict
        One line of evidence: ``what``, ``kind``, ``bags``, ``length``,
        ``queued_us`` (best of five means) and ``waited_us``.

    Raises
    ------
    RuntimeError
        If no GPU is present.
    """
    origin = describe_origin(seed, command, rows=rows, dim=dim)
    generator = torch.Generator("cuda").manual_seed(seed)
    table = torch.randn(rows, dim, device="cuda", generator=generator)
    for kind in kinds:
        layout = make_layout(kind, rows, dim, seed).to_gpu()
        for bags, length in sizes:
            ids = torch.randint(
                rows, (bags * length,), device="cuda", generator=generator
            )
            offsets = torch.arange(bags, device="cuda") * length
            for what, call in list_cases(layout, table, ids, offsets).items():
                each = SEVERAL if what.startswith("kernel") else 1
                queued, waited = time_calls(call)
                yield {
                    "what": what,
                    "kind": kind,
                    "bags": bags,
                    "length": length,
                    "queued_us": queued / each,
                    "waited_us": waited / each,
                    **origin,
                }
        del layout


def make_layout(kind: str, rows: int, dim: int, seed: int) -> Layout:
    """A layout of random content, by its kind."""
    if kind in COMPOSED:
        return random_composed(kind, rows, dim, seed)[0]
    return random_layout(kind, rows, dim, seed)


def list_cases(
    layout: Layout, table: Tensor, ids: Tensor, offsets: Tensor
) -> dict[str, Callable[[], object]]:
    """Calls by what they are."""
    cases: dict[str, Callable[[], object]] = {
        "torch bag": lambda: functional.embedding_bag(ids, table, offsets, mode="sum"),
        "torch lookup": lambda: functional.embedding(ids, table),
    }
    for name, check in CHECKS.items():
        bag: Any = FrozenEmbeddingBag(layout, check=check)
        rows: Any = FrozenEmbedding(layout, check=check)
        cases[f"bag, {name}"] = lambda bag=bag: bag(ids, offsets)
        cases[f"lookup, {name}"] = lambda rows=rows: rows(ids)
    half: Any = FrozenEmbeddingBag(layout, out_dtype=torch.bfloat16)
    cases["bag, bfloat16"] = lambda: half(ids, offsets)
    for name in ("torch bag", "bag, late"):
        for what, times in (("graph", 1), ("kernel", SEVERAL)):
            cases[f"{what} of {name}"] = record_calls(cases[name], times)
    return cases


def record_calls(call: Callable[[], object], times: int) -> Callable[[], object]:
    """The replay of a graph of so many calls."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            call()
    return graph.replay


def time_calls(
    call: Callable[[], object], many: int = 200, passes: int = 5
) -> tuple[float, float]:
    """Microseconds a call, queued and waited for; the best pass of each."""
    for _ in range(20):
        call()
    queued, waited = [], []
    for _ in range(passes):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(many):
            call()
        torch.cuda.synchronize()
        queued.append((time.perf_counter() - start) / many * 1e6)
        start = time.perf_counter()
        for _ in range(many // 4):
            call()
            torch.cuda.synchronize()
        waited.append((time.perf_counter() - start) / (many // 4) * 1e6)
    return min(queued), min(waited)
