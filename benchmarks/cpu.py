"""Times of pooled look-ups on a processor, beside torch's of the same run.

    python benchmarks/cpu.py [--kind rowwise4] [--sets 9] [--seed 1] [--out FOLDER]

Each kind of layout is measured through `FrozenEmbeddingBag`, on one thread unless more
are asked for; torch's ``embedding_bag`` of the uncompressed table, and of 8, 4 and 2
bits, stand beside it.  So are single look-ups of a few ids, through `FrozenEmbedding`
and torch's ``embedding``.  With ``--out``, a line of evidence each is added to
``cpu.jsonl``.  ``SURVEY_CODE_KERNELS=numpy`` measures what NumPy makes of it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from random_layouts import COMPOSED, random_composed, random_generator, random_layout
from threadpoolctl import threadpool_limits
from torch.nn import functional

from survey_code import FrozenEmbedding, FrozenEmbeddingBag
from survey_code.lab.results import append_line, describe_machine
from survey_code.layouts import Layout

ROWS, DIM = 1_000_000, 64
BAGS, LENGTH = 4096, 20
REPEATS = 9

# A kind of layout, and what `random_layouts` calls it.
NAMES = {"hashing": "hashed", "product codes": "codebook", "tensor train": "train"}
KINDS = {
    "dense": "float32",
    "half": "float16",
    "rowwise8": "8 bits",
    "rowwise4": "4 bits",
    "rowwise2": "2 bits",
    "binary": "1 bit",
    **{NAMES.get(name, name): name for name in COMPOSED},
    "generator": "generator",
}
# Ids of a single look-up.
FEW = (1, 256)
LOOKUPS = 300

# torch's rows of so many bits: how they are packed, and how bags of them are read.
QUANTIZED = {
    8: ("embedding_bag_byte_prepack", "embedding_bag_byte_rowwise_offsets"),
    4: ("embedding_bag_4bit_prepack", "embedding_bag_4bit_rowwise_offsets"),
    2: ("embedding_bag_2bit_prepack", "embedding_bag_2bit_rowwise_offsets"),
}

# One timed call: ids (bags * length,) and offsets (bags,) to pooled rows.
Bag = Callable[[np.ndarray, np.ndarray], Any]
# And one look-up.
Lookup = Callable[[torch.Tensor], torch.Tensor]
Case = tuple[Bag, Lookup | None, int]


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
    told = {
        "rows": ROWS, "dim": DIM, "threads": threads, "command": command, "seed": seed,
        "kernels": os.environ.get("SURVEY_CODE_KERNELS", "compiled"),
        **describe_machine("cpu"), "processor": name_processor(),
    }  # fmt: skip
    with threadpool_limits(threads):
        for what, kind, make in list_cases(kinds, seed):
            call, lookup, nbytes = make()
            seconds = time_calls(call, ids, offsets)
            line = {"what": what, "kind": kind, "held_bytes": nbytes, "sets": sets}
            yield told | line | summarise(seconds) | {"bags": BAGS, "length": LENGTH}
            for few in FEW if lookup else ():
                seconds = time_lookups(lookup, rng.integers(0, ROWS, (LOOKUPS, few)))
                line["what"] = f"{what} lookup"
                yield told | line | summarise(seconds) | {"bags": few, "length": 1}
            del call, lookup


def summarise(seconds: list[float]) -> dict[str, Any]:
    """The fastest call, the one in the middle, and one in a hundred."""
    middle, slow = np.percentile(seconds, (50, 99))
    return {
        "calls": len(seconds), "seconds": min(seconds),
        "median_seconds": float(middle), "p99_seconds": float(slow),
    }  # fmt: skip


def list_cases(
    kinds: Sequence[str], seed: int
) -> Iterator[tuple[str, str, Callable[[], Case]]]:
    """What is measured: torch's four, then the layouts; each made when its turn is."""
    yield "torch", "dense", partial(torch_dense, seed)
    for bits in QUANTIZED:
        yield "torch", f"rowwise{bits}", partial(torch_quantized, bits, seed)
    for kind in kinds:
        yield "bag", kind, partial(own_bag, kind, seed)


def own_bag(kind: str, seed: int) -> Case:
    """A layout's modules, and the bytes that it holds."""
    name = KINDS[kind]
    layout: Layout
    if name in COMPOSED:
        layout, _ = random_composed(name, ROWS, DIM, seed)
    elif name == "generator":
        layout = random_generator(ROWS, DIM, 32, 64, seed)
    else:
        layout = random_layout(name, ROWS, DIM, seed)
    bag, table = FrozenEmbeddingBag(layout), FrozenEmbedding(layout)

    def call(ids: np.ndarray, offsets: np.ndarray) -> torch.Tensor:
        return bag(torch.from_numpy(ids), torch.from_numpy(offsets))

    return call, table, layout.held_bytes


def torch_dense(seed: int) -> Case:
    """The float32 bag of torch."""
    weight = random_weight(seed)

    def call(ids: np.ndarray, offsets: np.ndarray) -> torch.Tensor:
        moved = torch.from_numpy(ids), torch.from_numpy(offsets)
        return functional.embedding_bag(moved[0], weight, moved[1], mode="sum")

    return call, lambda ids: functional.embedding(ids, weight), weight.nbytes


def torch_quantized(bits: int, seed: int) -> Case:
    """The bag of torch over rows of 8, 4 or 2 bits."""
    pack, read = (getattr(torch.ops.quantized, name) for name in QUANTIZED[bits])
    packed = pack(random_weight(seed))

    def call(ids: np.ndarray, offsets: np.ndarray) -> torch.Tensor:
        return read(packed, torch.from_numpy(ids), torch.from_numpy(offsets))

    return call, None, packed.nbytes


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


def time_lookups(lookup: Lookup, ids: np.ndarray) -> list[float]:
    """Seconds of look-ups of a few ids each, after some that are not counted."""
    sets = [torch.from_numpy(own) for own in ids]
    seconds = []
    for own in sets[:20] + sets:
        start = time.perf_counter()
        lookup(own)
        seconds.append(time.perf_counter() - start)
    return seconds[20:]


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
    unit, factor = ("us", 1e6) if "lookup" in line["what"] else ("ms", 1e3)
    least, middle, slow = (
        line[name] * factor for name in ("seconds", "median_seconds", "p99_seconds")
    )
    return (
        f"{line['what']:12} {line['kind']:18} {line['bags']:5} x {line['length']:2} "
        f"{least:8.2f} {unit} (median {middle:.2f}, 99 % {slow:.2f}), "
        f"{rate:6.1f} million rows/s"
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
