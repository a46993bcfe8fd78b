"""What low rank, tensor trains and semi-tensor products share: a chain of cores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.budget import largest_fitting
from survey_code.embedding import CompressedEmbedding, draw_normal, pick_rows
from survey_code.layouts import Layout, TensorTrainLayout
from survey_code.layouts.tensor_train import core_shapes, multiply_slices
from survey_code.replay import each_once, is_recording
from survey_code.spec import TableSpec

CORE_BYTES = 40  # of a core's row in `TensorTrainLayout.shapes`

MOST_RANK = 2**16

# Numbers of a table that are taken in float64 together: 8 MB.
GRAM_NUMBERS = 1 << 20
# Singular values below this share of the largest are rounding, squared as they are.
LEAST = 1e-8


class TrainEmbedding(CompressedEmbedding):
    """A table whose rows are products of slices of cores.

    Parameters
    ----------
    spec : TableSpec
    shapes : ndarray of int64, shape (k, 5)
        As in `TensorTrainLayout`.
    seed : int
    """

    steady = True

    def __init__(self, spec: TableSpec, shapes: np.ndarray, seed: int) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.shapes = shapes
        self.rows: list[int] = shapes[:, 0].tolist()
        self.steps: list[int] = shapes[:, 4].tolist()
        std = exact_std(shapes, spec.init_std)
        self.cores = nn.ParameterList(
            draw_normal(shape, std, [seed, place])
            for place, shape in enumerate(core_shapes(shapes))
        )

    def embed(self, ids: Tensor) -> Tensor:
        """Digits, slices, products, once for each id that occurs."""
        different, places = each_once(ids)
        return pick_rows(places, self.compose(different))

    def compose(self, flat: Tensor) -> Tensor:
        """Rows of rising ids: int64 (m,) -> (m, embedding_dim).

        Ids with the same leading digits share the products of these, so that a core
        is multiplied once for each beginning that occurs.
        """
        state: Tensor = self.cores[0].new_ones(1, 1, 1)
        place = torch.zeros_like(flat)  # of each id's beginning in `state`
        weight = math.prod(self.rows)
        for core, size, step in zip(self.cores, self.rows, self.steps):
            weight //= size
            begins, now = share_beginnings(flat // weight)
            parent = torch.zeros_like(begins)
            parent[now] = place
            # A core without a digit is one matrix for all.
            slices = core if size == 1 else core.index_select(0, begins % size)
            state = multiply_slices(state[parent], slices, step)
            place = now
        return state.reshape(len(flat), self.embedding_dim)

    def freeze(self) -> Layout:
        """The cores."""
        cores = [core.detach().float().cpu().numpy().copy() for core in self.cores]
        return TensorTrainLayout(
            cores, self.shapes, self.num_embeddings, self.embedding_dim
        )


def share_beginnings(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """The different beginnings of rising ids, and which of them each id has; while a
    step is recorded, one for each id.
    """
    if is_recording():
        return numbers, torch.arange(len(numbers), device=numbers.device)
    begins, now = torch.unique_consecutive(numbers, return_inverse=True)
    return begins, now


def exact_std(shapes: np.ndarray, std: float) -> float:
    r"""One spread for all cores, for which composed entries have spread `std`.

    An entry is a sum of as many products of k independent entries as there are
    paths through the ranks, so that its variance is
    :math:`\prod_j (r_j / t_{j+1}) \, \sigma^{2k}` with the ranks r between cores
    and the steps t, which thin the paths out.

    Parameters
    ----------
    shapes : ndarray of int64, shape (k, 5)
    std : float
        Wanted.
    """
    paths = math.prod(left // step for _, _, left, _, step in shapes.tolist())
    return float((std**2 / paths) ** (1 / (2 * len(shapes))))


def train_shapes(
    rows: int, dim: int, rank: int, cores: int = 3, step: int = 1
) -> np.ndarray:
    """Sizes of a train: rows and columns split evenly, all ranks alike.

    A rank larger than what its side of the train can use is cut to that.  With a
    step t > 1, ranks are rounded up to multiples of t, and so must be the columns
    of all cores but the first.

    Returns
    -------
    ndarray of int64, shape (cores, 5)
    """
    row_sizes = divide_rows(rows, cores)
    column_sizes = divide_columns(dim, cores)
    steps = [1] + [step if c % step == 0 else 1 for c in column_sizes[1:]]
    entries = [r * c for r, c in zip(row_sizes, column_sizes)]
    ranks = [1]
    for place in range(1, cores):
        most = min(math.prod(entries[:place]), math.prod(entries[place:]))
        cut = min(rank, most)
        ranks.append(-(-cut // steps[place]) * steps[place])
    ranks.append(1)
    table = zip(row_sizes, column_sizes, ranks[:-1], ranks[1:], steps)
    return np.array(list(table), dtype=np.int64)


def train_bytes(shapes: np.ndarray) -> int:
    """Bytes of a layout with these cores."""
    entries = sum(math.prod(shape) for shape in core_shapes(shapes))
    return 4 * entries + CORE_BYTES * len(shapes)


def plan_rank(
    spec: TableSpec,
    ratio: float,
    rank: int | None,
    shapes: Callable[[int], np.ndarray],
    beside: int = 0,
) -> int:
    """The largest rank whose cores fit into a budget, or the rank that was asked for.

    Parameters
    ----------
    spec : TableSpec
    ratio : float
    rank : int, optional
    shapes : callable
        Sizes of the cores of a rank.
    beside : int, default 0
        Bytes of what is stored beside the cores.

    Raises
    ------
    OutOfReach
        If they do not fit.
    """

    def size(rank: int) -> int:
        return beside + train_bytes(shapes(rank))

    budget = spec.require(ratio, smallest=size(rank or 1))
    most = int(shapes(MOST_RANK)[:, 3].max())
    return rank or largest_fitting(1, most, lambda r: size(r) <= budget)


def divide_rows(count: int, parts: int) -> list[int]:
    """Sizes near the root of a count, whose product holds it.

    Examples
    --------
    >>> divide_rows(1000, 3), divide_rows(12_144, 3)
    ([10, 10, 10], [23, 23, 23])
    """
    sizes = []
    for left in range(parts, 0, -1):
        size = max(1, math.ceil(count ** (1 / left) - 1e-9))
        sizes.append(size)
        count = -(-count // size)
    return sizes


def divide_columns(count: int, parts: int) -> list[int]:
    """Factors of a count, as even as its primes allow, the larger ones last.

    Examples
    --------
    >>> divide_columns(16, 3), divide_columns(64, 3), divide_columns(7, 3)
    ([2, 2, 4], [4, 4, 4], [1, 1, 7])
    """
    sizes = [1] * parts
    rest, prime = count, 2
    primes = []
    while rest > 1:
        if rest % prime:
            prime += 1
        else:
            primes.append(prime)
            rest //= prime
    for prime in reversed(primes):
        sizes[sizes.index(min(sizes))] *= prime
    return sorted(sizes)


# -- leading singular vectors, by way of a Gram matrix -----------------------------


def sum_gram(blocks: Iterable[np.ndarray], size: int) -> np.ndarray:
    """Sum of B B^T over blocks of columns, float64 (size, size)."""
    total = np.zeros((size, size))
    for block in blocks:
        block = block.astype(np.float64)
        total += block @ block.T
    return total


def leading_vectors(
    gram: np.ndarray, rank: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """The singular values and vectors that a Gram matrix has, the largest first.

    Returns
    -------
    values : ndarray of float64, shape (rank,)
        Singular values; 0 for what is rounding.
    vectors : ndarray of float64, shape (size, rank)
        Of each, the largest entry is positive; 0 where the value is.
    lost : float
        Sum of the squares of the other singular values.
    """
    squares, vectors = np.linalg.eigh(gram)
    squares, vectors = squares[::-1].clip(min=0), vectors[:, ::-1]
    values, vectors = np.sqrt(squares[:rank]), vectors[:, :rank]
    kept = values > LEAST * values[0]
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.where(vectors[largest, np.arange(len(values))] < 0, -1.0, 1.0)
    lost = float(squares[rank:].sum())
    return np.where(kept, values, 0.0), vectors * signs * kept, lost


def invert_values(values: np.ndarray) -> np.ndarray:
    """1 over each value, and 0 for 0."""
    return np.where(values > 0, 1 / np.where(values > 0, values, 1), 0.0)
