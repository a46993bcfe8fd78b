"""MLET: train a product of two matrices, store the product."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from survey_code.baselines import plan_columns
from survey_code.checks import check_range
from survey_code.embedding import draw_normal, pick_rows
from survey_code.layouts import DenseLayout
from survey_code.method import Found, Trained
from survey_code.options import Options, planned
from survey_code.spec import TableSpec
from survey_code.weight_sharing.decomposition.low_rank import low_rank_shapes
from survey_code.weight_sharing.decomposition.trains import exact_std

MOST_INSIDE = 2**20


class MLETOptions(Options):
    """Options of `MLET`."""

    columns: int = planned("columns that the network reads", low=1)
    hidden: int = planned(
        "columns inside, no fewer; None: those of the full table",
        low=1, high=MOST_INSIDE, tune=(None, 128),
    )  # fmt: skip


class MLET(Trained[MLETOptions]):
    r"""MLET: rows :math:`W_1[i] W_2`, wider inside than outside (key ``mlet``).

    The product has no more freedom than its own n x d numbers, but it learns in
    other steps: a row that is read moves :math:`W_2`, and with it all rows.  After
    training the product is stored as a table of these columns; until then there
    are n * hidden numbers.

    Notes
    -----
    Ghaemmaghami et al., "Training with Multi-Layer Embeddings for Model Reduction"
    (arXiv 2006.05623).  There each field has matrices of its own; here one outer
    matrix serves all fields.
    """

    steady = True

    def __init__(self, spec: TableSpec, options: MLETOptions, seed: int = 0) -> None:
        rows, dim, hidden = spec.num_embeddings, options.columns, options.hidden
        check_range("columns", dim, 1, spec.embedding_dim)
        check_range("hidden", hidden, dim, MOST_INSIDE)
        super().__init__(rows, dim)
        std = exact_std(low_rank_shapes(rows, dim, hidden), spec.init_std)
        self.inner = nn.Parameter(draw_normal((rows, hidden), std, [seed, 0]))
        self.outer = nn.Parameter(draw_normal((hidden, dim), std, [seed, 1]))

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: MLETOptions) -> Found:
        """The most columns that fit; inside, as many as the full table has."""
        dim = plan_columns(spec, ratio, options.columns)
        hidden = options.hidden or spec.embedding_dim
        check_range("hidden", hidden, dim, MOST_INSIDE)
        return {"columns": dim, "hidden": hidden}

    def embed(self, ids: Tensor) -> Tensor:
        """Rows of the inner matrix, times the outer one."""
        return pick_rows(ids, self.inner) @ self.outer

    @torch.no_grad()
    def freeze(self) -> DenseLayout:
        """The product."""
        return DenseLayout.from_weight((self.inner @ self.outer).float())
