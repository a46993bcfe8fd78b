"""ANT: each row is a sparse, non-negative mixture of anchor vectors."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.checks import check_range
from survey_code.embedding import TrainingStep, draw_normal, pick_rows
from survey_code.layouts import AnchorLayout
from survey_code.method import Found, Trained
from survey_code.options import Options, found, option, planned
from survey_code.order import largest_first
from survey_code.spec import TableSpec

MOST_ANCHORS = 2**16


class ANTOptions(Options):
    """Options of `ANT`."""

    sparsity: float = option(0.01, "the factor lambda", low=0, tune=(0.01, 0.03, 0.003))
    anchors: int = planned(
        "vectors that are mixed; None: 32, or fewer for few rows",
        low=1, high=MOST_ANCHORS, tune=(None, 16),
    )  # fmt: skip
    entries: int = found("weights that are stored, for all rows together", low=0)


class ANT(Trained[ANTOptions]):
    r"""ANT: rows :math:`t_i A` with :math:`t_i \ge 0` sparse (key ``ant``).

    After each step the mixture is moved towards 0 by the learning rate times
    `sparsity` and cut off at 0, the proximal step of
    :math:`\lambda \lVert T \rVert_1` on :math:`T \ge 0`.  From half of training
    on, only the `entries` largest weights are kept and trained on.  A row read n
    times counts :math:`\sqrt n` times: its squared error is made n times.

    Notes
    -----
    Liang et al., "Anchor & Transform: Learning Sparse Embeddings for Large
    Vocabularies" (ICLR 2021).  Training keeps the dense mixture of n x anchors
    numbers.  Their Bayesian choice of the number of anchors is left out, and so are
    anchors that begin as frequent or clustered rows: here they begin at random.  To
    hold a byte budget we keep the largest weights.
    """

    # Epochs before the weights are chosen cannot be the best one.
    schedule_end = 0.5
    steady = True

    kept: Tensor
    importance: Tensor

    def __init__(self, spec: TableSpec, options: ANTOptions, seed: int = 0) -> None:
        anchors = options.anchors
        check_range("entries", options.entries, 0, spec.num_embeddings * anchors)
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.entries, self.sparsity = options.entries, options.sparsity
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
    def plan(cls, spec: TableSpec, ratio: float, options: ANTOptions) -> Found:
        """As many weights as the budget holds beside anchors and row starts."""
        rows = spec.num_embeddings
        anchors = options.anchors or min(32, max(1, rows // 4))
        each = 5 if anchors <= 256 else 6
        overhead = 4 * (rows + 1 + spec.embedding_dim * anchors)
        budget = spec.require(ratio, smallest=overhead + each)
        entries = min((budget - overhead) // each, rows * anchors)
        return {"anchors": anchors, "entries": entries}

    def embed(self, ids: Tensor) -> Tensor:
        """Mixtures of the ids, times the anchors."""
        mixture = self.mixture if self.training else self.stored()
        return pick_rows(ids, mixture) @ self.anchors

    def stored(self) -> Tensor:
        """The weights that are stored: the largest, until they are chosen for good."""
        kept = self.choose_largest() if bool(self.kept.all()) else self.kept
        return self.mixture.clamp(min=0) * kept

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
