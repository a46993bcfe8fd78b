"""What low rank, tensor trains and semi-tensor products share: a chain of cores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import CompressedEmbedding, draw_normal
from survey_code.layouts import TensorTrainLayout
from survey_code.layouts.tensor_train import core_shapes, multiply_slices
from survey_code.spec import TableSpec

INDEX_BYTES = 40  # of a core's row in `TensorTrainLayout.shapes`


class TrainEmbedding(CompressedEmbedding):
    """A table whose rows are products of slices of cores.

    Parameters
    ----------
    spec : TableSpec
    shapes : ndarray of int64, shape (k, 5)
        As in `TensorTrainLayout`.
    stds : list of float
        Spread of each core's entries at the start.
    seed : int
    """

    def __init__(
        self, spec: TableSpec, shapes: np.ndarray, stds: list[float], seed: int
    ) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.shapes = shapes
        self.rows: list[int] = shapes[:, 0].tolist()
        self.steps: list[int] = shapes[:, 4].tolist()
        self.cores = nn.ParameterList(
            draw_normal(shape, std, [seed, place])
            for place, (shape, std) in enumerate(zip(core_shapes(shapes), stds))
        )

    def embed(self, ids: Tensor) -> Tensor:
        """Digits, slices, products, once for each id that occurs."""
        unique, places = torch.unique(ids, return_inverse=True)
        return functional.embedding(places, self.compose(unique))

    def compose(self, flat: Tensor) -> Tensor:
        """Rows of rising ids: int64 (m,) -> (m, embedding_dim).

        Ids with the same leading digits share the products of these, so that a core
        is multiplied once for each beginning that occurs.
        """
        state: Any = self.cores[0].new_ones(1, 1, 1)
        place = torch.zeros_like(flat)  # of each id's beginning in `state`
        weight = math.prod(self.rows)
        for core, size, step in zip(self.cores, self.rows, self.steps):
            weight //= size
            begins, now = torch.unique_consecutive(flat // weight, return_inverse=True)
            parent = torch.zeros_like(begins)
            parent[now] = place
            # A core without a digit is one matrix for all.
            slices = core if size == 1 else core.index_select(0, begins % size)
            state = multiply_slices(state[parent], slices, step)
            place = now
        rows: Tensor = state.reshape(len(flat), self.embedding_dim)
        return rows

    def freeze(self) -> TensorTrainLayout:
        """The cores."""
        parts = [core.detach().float().cpu().numpy().ravel() for core in self.cores]
        return TensorTrainLayout(
            np.concatenate(parts), self.shapes, self.num_embeddings, self.embedding_dim
        )


def exact_stds(shapes: np.ndarray, std: float) -> list[float]:
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

    Returns
    -------
    list of float, k times the same
    """
    paths = math.prod(left // step for _, _, left, _, step in shapes.tolist())
    each = (std**2 / paths) ** (1 / (2 * len(shapes)))
    return [each] * len(shapes)


def stored_bytes(shapes: np.ndarray) -> int:
    """Bytes of a layout with these cores."""
    entries = sum(math.prod(shape) for shape in core_shapes(shapes))
    return 4 * entries + INDEX_BYTES * len(shapes)


def split_rows(count: int, parts: int) -> list[int]:
    """Sizes near the root of a count, whose product holds it.

    Examples
    --------
    >>> split_rows(1000, 3), split_rows(12_144, 3)
    ([10, 10, 10], [23, 23, 23])
    """
    sizes = []
    for left in range(parts, 0, -1):
        size = max(1, math.ceil(count ** (1 / left) - 1e-9))
        sizes.append(size)
        count = -(-count // size)
    return sizes


def split_columns(count: int, parts: int) -> list[int]:
    """Factors of a count, as even as its primes allow, the larger ones last.

    Examples
    --------
    >>> split_columns(16, 3), split_columns(64, 3), split_columns(7, 3)
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


def largest(low: int, high: int, fits: Any) -> int:
    """The largest whole number from low to high that fits; low must."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
