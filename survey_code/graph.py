"""The graph of users and items: its normalised matrix, and walks along its edges."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor


def propagate_layers(graph: Tensor, vectors: Tensor, layers: int) -> list[Tensor]:
    """The vectors and what they become layer by layer, `layers` + 1 tensors.

    Parameters
    ----------
    graph : sparse Tensor, shape (ids, ids)
        From `normalize_graph`.
    vectors : Tensor of float32, shape (ids, dim)
    layers : int
    """
    reached = [vectors]
    for _ in range(layers):
        reached.append(SymmetricProduct.apply(graph, reached[-1]))
    return reached


class SymmetricProduct(torch.autograd.Function):
    """A symmetric sparse matrix times a dense one.

    Its gradient is the same product again.  torch does not know the symmetry and
    would transpose, and sort, the matrix at every step.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, vectors: Tensor) -> Tensor:
        """``matrix @ vectors``."""
        ctx.matrix = matrix
        return matrix @ vectors

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        """``matrix @ grad``, because the matrix is its own transpose."""
        return None, ctx.matrix @ grads[0]


def normalize_graph(pairs: np.ndarray, num_ids: int) -> Tensor:
    """The symmetric adjacency matrix with 1 / sqrt(degree degree'), as CSR."""
    return make_csr(*graph_arrays(pairs, num_ids))


def graph_arrays(pairs: np.ndarray, num_ids: int) -> tuple[Tensor, Tensor, Tensor]:
    """The arrays of `normalize_graph`'s matrix: row starts, columns, values."""
    edges = np.concatenate([pairs, pairs[:, ::-1]])  # both directions
    degrees = np.bincount(edges[:, 0], minlength=num_ids)
    order = np.lexsort((edges[:, 1], edges[:, 0]))
    rows, columns = edges[order].T
    values = 1 / np.sqrt(degrees[rows] * degrees[columns].astype(np.float64))
    return (
        torch.from_numpy(np.concatenate([[0], np.cumsum(degrees)])),
        torch.from_numpy(np.ascontiguousarray(columns)),
        torch.from_numpy(values.astype(np.float32)),
    )


def make_csr(
    starts: Tensor, columns: Tensor, values: Tensor, check: bool = True
) -> Tensor:
    """A square sparse matrix from its arrays; checking them waits for a GPU."""
    size = len(starts) - 1
    with warnings.catch_warnings():
        # torch says once a process that compressed rows are "beta", and that it
        # checks no invariants unless asked: nothing to act on.
        warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)")
        return torch.sparse_csr_tensor(
            starts, columns, values, (size, size), check_invariants=check
        )
