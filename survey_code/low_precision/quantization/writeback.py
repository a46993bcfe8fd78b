"""Tables in few bits that are trained without a float copy behind them.

A step decodes the rows of its batch, moves them in float32, and rounds them back.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from survey_code.adagrad import add_in_bytes, row_means
from survey_code.embedding import CompressedEmbedding, TrainingStep, pick_rows
from survey_code.kernels.cuda import as_cupy
from survey_code.kernels.cuda.tensors import beside
from survey_code.kernels.cuda.writeback import draw_key, write_rows
from survey_code.spec import TableSpec

# Of Adam, as torch has them.
BETAS = (0.9, 0.999)
EPSILON = 1e-8

# Learning rate of quantisation steps over that of the weights.  Adam moves every
# number by its learning rate, whatever the gradient's scale, so that steps, which
# are far smaller than weights, need a smaller one: 2e-5 beside 1e-3 in ALPT.
STEP_SHARES = {
    "adam": 0.02, "rowwise_adagrad": 1.0, "rowwise_adagrad_8bit": 1.0, "sgd": 1.0,
}  # fmt: skip


class WriteBackEmbedding(CompressedEmbedding):
    """What half, integer and cached tables share: decode, move, write back.

    A subclass says how rows are decoded (`load_rows`) and stored (`store_rows`).
    In training `embed` decodes each row of a batch once, as a small float tensor
    that collects the gradient; `after_step` moves these rows by the rule that the
    training settings name, and stores them.  Rows that a batch does not read stay
    as they are, also under Adam, whose averages then rest as well.  L2 of the
    vectors read counts as usual; that of the whole table (`table_l2`) reaches the rows
    that a step reads, and `clip_norm` none.

    Parameters
    ----------
    spec : TableSpec
    seed : int
        Of the rounding.
    """

    def __init__(self, spec: TableSpec, seed: int) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.seed = seed
        self.rng = np.random.default_rng([seed, 1])
        # Ids and decoded rows of each look-up since the last step.
        self.batch: list[tuple[Tensor, Tensor]] = []
        self.steps_done = 0
        # Whether all rows that were stored so far were finite: codes cannot show it.
        # No buffer, as it is no part of the table; and it waits for no GPU.
        self.sound: Tensor | None = None

    def load_rows(self, ids: Tensor) -> Tensor:
        """Decode rows: int64 (m,) -> float32 (m, dim)."""
        raise NotImplementedError

    def store_rows(self, ids: Tensor, rows: Tensor) -> None:
        """Round rows (m, dim) and keep them; ids are all different."""
        raise NotImplementedError

    def squared_length(self) -> Tensor:
        """Of the rows read in this step, and of what else is learnt."""
        length = super().squared_length()
        for _, rows in self.batch:
            length = length + rows.square().sum()
        return length

    def advance(self, progress: float) -> None:
        """Forget look-ups that no step followed."""
        self.batch.clear()

    def embed(self, ids: Tensor) -> Tensor:
        """Decoded rows; in training each distinct id is decoded once."""
        if not (self.training and torch.is_grad_enabled()):
            rows = self.load_rows(ids.flatten())
            return rows.view(*ids.shape, self.embedding_dim)
        distinct, places = torch.unique(ids, return_inverse=True)
        rows = self.load_rows(distinct).requires_grad_()  # (distinct, dim)
        self.batch.append((distinct, rows))
        return pick_rows(places, rows)

    @torch.no_grad()
    def after_step(self, step: TrainingStep) -> None:
        """Move the rows of the batch and write them back."""
        ids, rows, grads = self.collect()
        if not len(ids):
            return
        self.steps_done += 1
        rows = rows - step.learning_rate * self.direction("rows", ids, grads)
        finite = rows.isfinite().all()
        self.sound = finite if self.sound is None else self.sound & finite
        self.refine(ids, rows, step)
        self.store_rows(ids, rows)

    def refuse_unsound(self) -> None:
        """Raise ValueError if a step has made rows NaN or infinite.

        Rounding turned these into rows like any other.
        """
        if self.sound is not None and not self.sound:
            raise ValueError(
                "a step of training made rows NaN or infinite, and the table cannot "
                "be frozen: it must be finite; did its training diverge?"
            )

    def write_codes(
        self,
        table: Tensor,
        ids: Tensor,
        rows: Tensor,
        steps: Tensor,
        bits: int,
        low: int,
    ) -> None:
        """Round rows by chance and store their codes, by one kernel on a GPU.

        Its coins depend on the seed, the step, the id and the column alone;
        `survey_code.kernels.cuda.writeback.round_rows` repeats it in NumPy.

        Parameters
        ----------
        table : Tensor of uint8, shape (num_embeddings, bytes)
            Packed codes, from the first byte of a row on.
        ids : Tensor of int64, shape (m,), all different
        rows : Tensor of float32, shape (m, dim)
        steps : Tensor of float32, shape (m, 1) or (1, 1)
            Value of one code step.
        bits : {8, 4, 3, 2, 1}
        low : int
            The whole number that code 0 stands for.
        """
        if not len(ids):
            return
        each = steps.expand(len(ids), 1)[:, 0]
        key = draw_key(self.seed, self.steps_done)
        with beside(table):
            write_rows(
                as_cupy(table), as_cupy(ids), as_cupy(rows), as_cupy(each),
                bits, key, low,
            )  # fmt: skip

    def refine(self, ids: Tensor, rows: Tensor, step: TrainingStep) -> None:
        """Work between moving rows and storing them."""

    def collect(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, rows and gradients of the batch; several look-ups add up."""
        read = [
            (ids, rows.detach(), rows.grad)
            for ids, rows in self.batch
            if rows.grad is not None
        ]
        self.batch.clear()
        if not read:
            none = torch.zeros(0, dtype=torch.int64)
            return none, torch.zeros(0), torch.zeros(0)
        if len(read) == 1:
            return read[0]
        every, decoded, gathered = (torch.cat(part) for part in zip(*read))
        ids, places = torch.unique(every, return_inverse=True)
        grads = gathered.new_zeros(len(ids), gathered.shape[1])
        grads.index_add_(0, places, gathered)
        rows = torch.empty_like(grads)
        rows[places] = decoded
        return ids, rows, grads

    # -- what an optimiser would do, for the rows of a batch ------------------

    def direction(self, name: str, ids: Tensor, grads: Tensor) -> Tensor:
        """What a step subtracts for a learning rate of 1, shape of `grads`.

        Parameters
        ----------
        name : str
            Whose state: the optimiser's averages are kept under this name.
        ids : Tensor of int64, shape (m,)
        grads : Tensor of float32, shape (m, width)
        """
        if self.regime.optimizer == "sgd":
            return grads
        if self.regime.optimizer == "adam":
            return self._adam_direction(name, ids, grads)
        total = self._squares(name, grads)
        if total.dtype == torch.uint8:
            sums = add_in_bytes(total, ids, row_means(grads), self.rng)
        else:
            total[ids] += row_means(grads)
            sums = total[ids]
        return grads / (sums.sqrt() + EPSILON)[:, None]

    def _adam_direction(self, name: str, ids: Tensor, grads: Tensor) -> Tensor:
        """Adam's, with averages that move only where a row is read."""
        averages = []
        for beta, kind, new in zip(BETAS, ("mean", "square"), (grads, grads.square())):
            memory = self.memory(f"{name}_{kind}", grads, grads.shape[1:])
            memory[ids] = beta * memory[ids] + (1 - beta) * new
            averages.append(memory[ids] / (1 - beta**self.steps_done))
        mean, square = averages
        return mean / (square.sqrt() + EPSILON)

    def _squares(self, name: str, like: Tensor) -> Tensor:
        """Adagrad's state, a number or a byte per row."""
        in_bytes = self.regime.optimizer == "rowwise_adagrad_8bit"
        kind = torch.uint8 if in_bytes else like.dtype
        return self.memory(f"{name}_squares", like, (), kind)

    def memory(
        self,
        name: str,
        like: Tensor,
        shape: tuple[int, ...],
        kind: torch.dtype | None = None,
    ) -> Tensor:
        """State of the optimiser, made at its first use; not part of the table."""
        if not hasattr(self, name):
            zeros = like.new_zeros(self.num_embeddings, *shape, dtype=kind)
            self.register_buffer(name, zeros, persistent=False)
        found: Tensor = getattr(self, name)
        return found
