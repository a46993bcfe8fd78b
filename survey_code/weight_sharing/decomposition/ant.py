"""ANT: each row is a sparse, non-negative mixture of anchor vectors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import (
    CompressedEmbedding,
    TrainingStep,
    check_range,
    draw_normal,
)
from survey_code.layouts import AnchorLayout
from survey_code.order import largest_first
from survey_code.spec import TableSpec


class ANT(CompressedEmbedding):
    r"""ANT: rows :math:`t_i A` with :math:`t_i \ge 0` sparse (key ``ant``).

    After each step the mixture is moved towards 0 by the learning rate times
    `sparsity` and cut off at 0, the proximal step of
    :math:`\lambda \lVert T \rVert_1` on :math:`T \ge 0`.  From half of training
    on, only the `entries` largest weights are kept and trained on.  A row read n
    times counts :math:`\sqrt n` times: its squared error is made n times.

    Parameters
    ----------
    spec : TableSpec
    anchors : int
        1 to 65,536.
    entries : int
        Weights that may be stored, for all rows together.
    sparsity : float, default 0.01
        The factor lambda.
    seed : int, default 0

    Notes
    -----
    Liang et al., "Anchor & Transform: Learning Sparse Embeddings for Large
    Vocabularies" (ICLR 2021).  Training keeps the dense mixture of n x anchors
    numbers.  Their Bayesian choice of the number of anchors is left out; to hold a
    byte budget we keep the largest weights.
    """

    kept: Tensor
    importance: Tensor

    schedule_end = 0.5

    def __init__(
        self,
        spec: TableSpec,
        *,
        anchors: int,
        entries: int,
        sparsity: float = 0.01,
        seed: int = 0,
    ) -> None:
        check_range("anchors", anchors, 1, 2**16)
        check_range("entries", entries, 0, spec.num_embeddings * anchors)
        if not 0 <= sparsity < math.inf:
            raise ValueError(f"sparsity must be from 0 up, got {sparsity!r}")
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.entries, self.sparsity = entries, sparsity
        rng = np.random.default_rng([seed, 0])
        shape = (spec.num_embeddings, anchors)
        # Uniform weights u of mean square 1 / anchors: the mixture then has the
        # anchors' own spread.
        drawn = rng.random(shape, dtype=np.float32) * math.sqrt(3 / anchors)
        self.mixture = nn.Parameter(torch.from_numpy(drawn))
        self.anchors = nn.Parameter(
            draw_normal((anchors, spec.embedding_dim), spec.init_std, [seed, 1])
        )
        # The first weights of rows that are hardly ever read are as large as those
        # that were learnt.  The spec says it again: no state dict needs it.
        importance = np.sqrt(np.maximum(spec.train_counts, 1)).astype(np.float32)
        self.register_buffer(
            "importance", torch.from_numpy(importance)[:, None], persistent=False
        )
        self.register_buffer("kept", torch.ones(shape, dtype=torch.bool))

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        anchors: int | None = None,
        sparsity: float = 0.01,
    ) -> dict[str, Any]:
        """As many weights as the budget holds beside anchors and row starts."""
        rows, dim = spec.num_embeddings, spec.embedding_dim
        starts = 4 * (rows + 1)
        count = min(32, max(1, rows // 4)) if anchors is None else anchors
        check_range("anchors", count, 1, 2**16)
        each = 5 if count <= 256 else 6
        budget = spec.require(ratio, smallest=starts + 4 * dim * count + each)
        entries = (budget - starts - 4 * dim * count) // each
        return {
            "anchors": count,
            "entries": min(entries, rows * count),
            "sparsity": sparsity,
        }

    def embed(self, ids: Tensor) -> Tensor:
        """Mixtures of the ids, times the anchors."""
        mixture = self.mixture if self.training else self.stored()
        return functional.embedding(ids, mixture) @ self.anchors

    def stored(self) -> Tensor:
        """The weights that are stored: the largest, until they are chosen for good."""
        kept = self.choose_largest() if bool(self.kept.all()) else self.kept
        return self.mixture.clamp(min=0) * kept

    def advance(self, progress: float) -> None:
        """Nothing but the promise of `schedule_end`: epochs before the weights are
        chosen cannot be the best one.
        """

    @torch.no_grad()
    def after_step(self, step: TrainingStep) -> None:
        """The proximal step; from half of training on, the largest weights only."""
        self.mixture.sub_(step.learning_rate * self.sparsity).clamp_(min=0)
        if step.progress >= self.schedule_end and bool(self.kept.all()):
            self.kept.copy_(self.choose_largest())
        self.mixture.mul_(self.kept)

    def choose_largest(self) -> Tensor:
        """Which weights fit into the budget; of equals, the first ones."""
        weights = (self.mixture * self.importance).ravel()
        order = largest_first(weights)
        chosen = torch.ones_like(self.kept)
        chosen.ravel()[order[self.entries :]] = False
        return chosen

    @torch.no_grad()
    def freeze(self) -> AnchorLayout:
        """The weights above 0, row after row, and the anchors."""
        mixture = self.stored().float().cpu().numpy()
        return AnchorLayout.from_dense(mixture, self.anchors.float().cpu().numpy())
