"""MLET: train a product of two matrices, store the product."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import CompressedEmbedding, check_range, draw_normal
from survey_code.layouts import DenseLayout
from survey_code.spec import TableSpec
from survey_code.weight_sharing.decomposition.low_rank import low_rank_shapes
from survey_code.weight_sharing.decomposition.trains import exact_stds


class MLET(CompressedEmbedding):
    r"""MLET: rows :math:`W_1[i] W_2`, wider inside than outside (key ``mlet``).

    The product has no more freedom than its own n x d numbers, but it learns in
    other steps: a row that is read moves :math:`W_2`, and with it all rows.  After
    training the product is stored as a plain table of `dim` columns.

    Parameters
    ----------
    spec : TableSpec
    dim : int
        Columns that the network reads, 1 to spec.embedding_dim.
    hidden : int
        Columns of :math:`W_1`, from dim up; training keeps n * hidden numbers.
    seed : int, default 0

    Notes
    -----
    Ghaemmaghami et al., "Training with Multi-Layer Embeddings for Model Reduction"
    (arXiv 2006.05623).
    """

    def __init__(
        self, spec: TableSpec, *, dim: int, hidden: int, seed: int = 0
    ) -> None:
        check_range("dim", dim, 1, spec.embedding_dim)
        check_range("hidden", hidden, dim, 2**20)
        super().__init__(spec.num_embeddings, dim)
        spec = dataclasses.replace(spec, embedding_dim=dim)
        shapes = low_rank_shapes(spec.num_embeddings, dim, hidden)
        left, right = exact_stds(shapes, spec.init_std)
        self.inner = nn.Parameter(
            draw_normal((spec.num_embeddings, hidden), left, [seed, 0])
        )
        self.outer = nn.Parameter(draw_normal((hidden, dim), right, [seed, 1]))

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        dim: int | None = None,
        hidden: int | None = None,
    ) -> dict[str, Any]:
        """The most columns that fit; inside, as many as the full table has."""
        column = 4 * spec.num_embeddings
        if dim is not None:
            check_range("dim", dim, 1, spec.embedding_dim)
        budget = spec.require(ratio, smallest=column * (dim or 1))
        dim = dim or min(budget // column, spec.embedding_dim)
        if hidden is None:
            hidden = max(spec.embedding_dim, dim)
        check_range("hidden", hidden, dim, 2**20)
        return {"dim": dim, "hidden": hidden}

    def embed(self, ids: Tensor) -> Tensor:
        """Rows of the inner matrix, times the outer one."""
        return functional.embedding(ids, self.inner) @ self.outer

    @torch.no_grad()
    def freeze(self) -> DenseLayout:
        """The product."""
        return DenseLayout.from_weight((self.inner @ self.outer).float())
