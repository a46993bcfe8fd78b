"""Times, errors and memory of compression after training, beside faiss and SVDs.

    python benchmarks/compression.py [--rows 200000] [--dim 64] [--sets 3] [--seed 1]

Product codes and clusters stand beside faiss's k-means where it is installed; low rank
beside SciPy's truncated SVD and NumPy's eigenvalues of the Gram matrix, tensor trains
beside the Gram matrices of the same unfoldings.  All run on one thread, in turn; of
each the shortest time of the processor counts.  Errors are mean squares a number; what
Python and NumPy held at most beside the table is given in tables.  What other libraries
hold is not seen.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import time
import tracemalloc
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from survey_code import compress
from survey_code.layouts import Layout
from survey_code.weight_sharing.decomposition import train_shapes

# Books and bits of product codes, clusters, and the rank of a train.
BOOKS, BITS, CLUSTERS, RANK = 32, 8, 256, 64

# A table to decoded rows of some ids.
Read = Callable[[np.ndarray], np.ndarray]


def draw_table(rows: int, dim: int, seed: int) -> np.ndarray:
    """Rows of a few directions and noise, float32; their lengths differ."""
    rng = np.random.default_rng(seed)
    few = rng.standard_normal((rows, dim // 4), dtype=np.float32)
    few *= rng.gamma(2, 0.5, size=(rows, 1)).astype(np.float32)
    noise = rng.standard_normal((rows, dim), dtype=np.float32)
    mixed = rng.standard_normal((dim // 4, dim), dtype=np.float32)
    table: np.ndarray = few @ mixed + 0.3 * noise
    return table


def ours(key: str, **options: Any) -> Callable[[np.ndarray], Read]:
    """A method of this package, as a peer is called."""

    def make(table: np.ndarray) -> Read:
        layout: Layout = compress(table, key, **options)
        return layout.lookup

    return make


def faiss_product(table: np.ndarray) -> Read:
    """The product quantiser of faiss."""
    faiss: Any = importlib.import_module("faiss")
    index = faiss.ProductQuantizer(table.shape[1], BOOKS, BITS)
    index.train(table)
    codes = index.compute_codes(table)
    return lambda ids: index.decode(codes[ids])


def faiss_clusters(table: np.ndarray) -> Read:
    """The k-means of faiss."""
    faiss: Any = importlib.import_module("faiss")
    means = faiss.Kmeans(table.shape[1], CLUSTERS, niter=25)
    means.train(table)
    codes = means.index.search(table, 1)[1][:, 0]
    return lambda ids: means.centroids[codes[ids]]


def scipy_svd(table: np.ndarray) -> Read:
    """SciPy's truncated SVD, of float64."""
    from scipy.sparse.linalg import svds

    rank = table.shape[1] // 2
    left, values, right = svds(table.astype(np.float64), rank, random_state=0)
    return lambda ids: (left[ids] * values) @ right


def gram_svd(table: np.ndarray) -> Read:
    """The eigenvectors of one Gram matrix, the plainest way."""
    whole = table.astype(np.float64)
    vectors = np.linalg.eigh(whole.T @ whole)[1][:, -(table.shape[1] // 2) :]
    short = whole @ vectors
    return lambda ids: short[ids] @ vectors.T


def gram_train(table: np.ndarray) -> Read:
    """The two Gram matrices that a train of three cores is cut by, and the products."""
    sizes = train_shapes(len(table), table.shape[1], RANK)
    rows, columns = sizes[:, 0].tolist(), sizes[:, 1].tolist()
    whole = np.zeros((int(np.prod(rows)), table.shape[1]))
    whole[: len(table)] = table
    cube = whole.reshape(*rows, *columns).transpose(0, 3, 1, 4, 2, 5)
    first = cube.reshape(rows[0] * columns[0], -1)
    one = np.linalg.eigh(first @ first.T)[1][:, -sizes[0, 3] :]
    rest = (one.T @ first).reshape(-1, rows[2] * columns[2])
    two = np.linalg.eigh(rest.T @ rest)[1][:, -sizes[1, 3] :]
    found = one @ (rest @ two @ two.T).reshape(one.shape[1], -1)
    cube = found.reshape(rows[0], columns[0], rows[1], columns[1], rows[2], columns[2])
    again = cube.transpose(0, 2, 4, 1, 3, 5).reshape(-1, table.shape[1])
    return lambda ids: again[ids]


# A row of the table each: what it is, whose, and what is needed for it.
CASES: tuple[tuple[str, str, str | None, Callable[[np.ndarray], Read]], ...] = (
    ("product codes", "ours", None, ours("pq", books=BOOKS, bits=BITS)),
    ("product codes", "faiss", "faiss", faiss_product),
    ("clusters", "ours", None, ours("clustering", clusters=CLUSTERS)),
    ("clusters", "faiss", "faiss", faiss_clusters),
    ("low rank", "ours", None, ours("low_rank")),
    ("low rank", "Gram", None, gram_svd),
    ("low rank", "SciPy", "scipy", scipy_svd),
    ("train", "ours", None, ours("tt_rec", rank=RANK)),
    ("train", "Gram", None, gram_train),
)


def measure_error(table: np.ndarray, read: Read, step: int = 20_000) -> float:
    """Mean squared error a number."""
    total = 0.0
    for start in range(0, len(table), step):
        ids = np.arange(start, min(start + step, len(table)))
        total += float(((table[ids] - read(ids)) ** 2).sum(dtype=np.float64))
    return total / table.size


def measure_peak(table: np.ndarray, make: Callable[[np.ndarray], Read]) -> float:
    """Tables held at most, beside the one that is given."""
    tracemalloc.start()
    make(table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / table.nbytes


def measure_cases(
    table: np.ndarray, sets: int, only: str | None = None
) -> Iterator[dict[str, Any]]:
    """Evidence of each case; the cases take turns."""
    cases = [
        case
        for case in CASES
        if (only is None or case[0] == only)
        and (case[2] is None or importlib.util.find_spec(case[2]))
    ]
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(sets):
        for what, whose, _needed, make in cases:
            begin = time.process_time()
            make(table)
            seconds.setdefault((what, whose), []).append(time.process_time() - begin)
    for what, whose, _needed, make in cases:
        yield {
            "what": what,
            "whose": whose,
            "seconds": min(seconds[what, whose]),
            "error": measure_error(table, make(table)),
            "tables": measure_peak(table, make),
        }


def limit_faiss() -> None:
    """One thread for faiss, whose own pool no other switch reaches."""
    if importlib.util.find_spec("faiss"):
        faiss: Any = importlib.import_module("faiss")
        faiss.omp_set_num_threads(1)


def name_versions() -> str:
    """What was measured with, in a line."""
    names = ("numpy", "scipy", "faiss-cpu", "torch")
    found = {dist.metadata["Name"].lower() for dist in metadata.distributions()}
    return ", ".join(f"{n} {metadata.version(n)}" for n in names if n in found)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--sets", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=sorted({case[0] for case in CASES}))
    asked = parser.parse_args()
    table = draw_table(asked.rows, asked.dim, asked.seed)
    limit_faiss()
    print(f"{asked.rows:,} x {asked.dim}; {name_versions()}")
    print(f"{'what':14}{'whose':8}{'seconds':>9}{'error':>12}{'tables':>8}")
    with threadpool_limits(1):
        for row in measure_cases(table, asked.sets, asked.only):
            print(
                f"{row['what']:14}{row['whose']:8}{row['seconds']:9.2f}"
                f"{row['error']:12.6f}{row['tables']:8.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
