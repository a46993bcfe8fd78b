"""Times of pooled look-ups on a processor, beside torch's of the same run.

    python benchmarks/cpu.py [--kind rowwise4] [--sets 9] [--seed 1] [--out FOLDER]

Each kind of layout is measured through `Layout.bag`, on one thread unless more are
asked for; torch's ``embedding_bag`` of the uncompressed table, and of 8, 4 and 2 bits,
stand beside it.  With ``--out``, a line of evidence each is added to ``cpu.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from random_layouts import COMPOSED, random_composed, random_layout
from threadpoolctl import threadpool_limits
from torch.nn import functional

from survey_code.lab.results import append_line, describe_machine
from survey_code.layouts import Layout

ROWS, DIM = 1_000_000, 64
BAGS, LENGTH = 4096, 20
REPEATS = 9

# A kind of layout, and what `random_layouts` calls it.
KINDS = {
    "dense": "float32",
    "rowwise8": "8 bits",
    "rowwise4": "4 bits",
    "rowwise2": "2 bits",
    "hashed": "hashing",
    "codebook": "product codes",
    "sparse": "sparse",
    "grouped": "grouped",
    "ragged": "ragged",
    "train": "tensor train",
    "anchors": "anchors",
}

# torch's rows of so many bits: how they are packed, and how bags of them are read.
QUANTIZED = {
    8: ("embedding_bag_byte_prepack", "embedding_bag_byte_rowwise_offsets"),
    4: ("embedding_bag_4bit_prepack", "embedding_bag_4bit_rowwise_offsets"),
    2: ("embedding_bag_2bit_prepack", "embedding_bag_2bit_rowwise_offsets"),
}

# One timed call: ids (bags * length,) and offsets (bags,) to pooled rows.
Bag = Callable[[np.ndarray, np.ndarray], Any]


def measure_bags(
    kinds: Sequence[str] = tuple(KINDS),
    sets: int = REPEATS,
    threads: int = 1,
    seed: int = 1,
    command: str = "",
) -> Iterator[dict[str, Any]]:
    """Time pooled look-ups of uniform random ids, here and in torch.

    Parameters
    ----------
    kinds : sequence of str
        Keys of `KINDS`.
    sets : int
        Calls take so many sets of ids in turn: 1 reads the same rows in each call,
        which the processor's caches may then hold.
    threads, seed : int
    command : str
        What the lines of evidence say they come from.

    Yields
    ------
    dict
        ``what`` ("bag" or "torch"), ``kind``, ``seconds`` (the fastest call),
        ``median_seconds``, and where it comes from.
    """
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, ROWS, size=(sets, BAGS * LENGTH), dtype=np.int64)
    offsets = np.arange(BAGS, dtype=np.int64) * LENGTH
    torch.set_num_threads(threads)
    with threadpool_limits(threads):
        for what, kind, make in list_cases(kinds, seed):
            call, nbytes = make()
            seconds = time_calls(call, ids, offsets)
            yield {
                "what": what,
                "kind": kind,
                "bags": BAGS,
                "length": LENGTH,
                "rows": ROWS,
                "dim": DIM,
                "sets": sets,
                "calls": len(seconds),
                "held_bytes": nbytes,
                "seconds": min(seconds),
                "median_seconds": float(np.median(seconds)),
                "command": command,
                "seed": seed,
                **describe_machine("cpu"),
                "processor": name_processor(),
            }
            del call


def list_cases(
    kinds: Sequence[str], seed: int
) -> Iterator[tuple[str, str, Callable[[], tuple[Bag, int]]]]:
    """What is measured: torch's four, then the layouts; each made when its turn is."""
    yield "torch", "dense", partial(torch_dense, seed)
    for bits in QUANTIZED:
        yield "torch", f"rowwise{bits}", partial(torch_quantized, bits, seed)
    for kind in kinds:
        yield "bag", kind, partial(own_bag, kind, seed)


def own_bag(kind: str, seed: int) -> tuple[Bag, int]:
    """A layout's own call, and the bytes that it holds."""
    name = KINDS[kind]
    layout: Layout
    if name in COMPOSED:
        layout, _ = random_composed(name, ROWS, DIM, seed)
    else:
        layout = random_layout(name, ROWS, DIM, seed)
    return layout.bag, layout.held_bytes


def torch_dense(seed: int) -> tuple[Bag, int]:
    """The float32 bag of torch."""
    weight = random_weight(seed)

    def call(ids: np.ndarray, offsets: np.ndarray) -> torch.Tensor:
        moved = torch.from_numpy(ids), torch.from_numpy(offsets)
        return functional.embedding_bag(moved[0], weight, moved[1], mode="sum")

    return call, weight.nbytes


def torch_quantized(bits: int, seed: int) -> tuple[Bag, int]:
    """The bag of torch over rows of 8, 4 or 2 bits."""
    pack, read = (getattr(torch.ops.quantized, name) for name in QUANTIZED[bits])
    packed = pack(random_weight(seed))

    def call(ids: np.ndarray, offsets: np.ndarray) -> torch.Tensor:
        return read(packed, torch.from_numpy(ids), torch.from_numpy(offsets))

    return call, packed.nbytes


def random_weight(seed: int) -> torch.Tensor:
    """An uncompressed table, float32 of shape (ROWS, DIM)."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.random((ROWS, DIM), dtype=np.float32))


def time_calls(call: Bag, ids: np.ndarray, offsets: np.ndarray) -> list[float]:
    """Seconds of each of `REPEATS` calls, after two that are not counted."""
    seconds = []
    for k in range(-2, REPEATS):
        start = time.perf_counter()
        call(ids[k % len(ids)], offsets)
        if k >= 0:
            seconds.append(time.perf_counter() - start)
    return seconds


def name_processor() -> str:
    """The processor's model where Linux tells it, else an empty text."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    names = (line.partition(":")[2] for line in lines if line.startswith("model name"))
    return next(names, "").strip()


def describe_time(line: dict[str, Any]) -> str:
    """One line on one measured time."""
    rate = line["bags"] * line["length"] / line["seconds"] / 1e6
    return (
        f"{line['what']:5} {line['kind']:9} {line['seconds'] * 1e3:8.2f} ms "
        f"(median {line['median_seconds'] * 1e3:.2f}), {rate:6.1f} million rows/s"
    )


def main() -> None:
    """Measure, print, and note where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", action="append", choices=list(KINDS))
    parser.add_argument("--sets", type=int, default=REPEATS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a folder for cpu.jsonl")
    given = parser.parse_args()
    command = (
        f"python benchmarks/cpu.py --sets {given.sets} "
        f"--threads {given.threads} --seed {given.seed}"
    )
    kinds = tuple(given.kind or KINDS)
    for line in measure_bags(kinds, given.sets, given.threads, given.seed, command):
        if given.out:
            append_line(given.out / "cpu.jsonl", json.dumps(line, sort_keys=True))
        print(describe_time(line), flush=True)


if __name__ == "__main__":
    main()
