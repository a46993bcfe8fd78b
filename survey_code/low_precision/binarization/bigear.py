"""BiGeaR: codes of every layer of the graph, row scales, and a teacher."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from survey_code.embedding import Fitted
from survey_code.layouts import BinaryLayout
from survey_code.low_precision.binarization.signs import (
    PropagatedEmbedding,
    as_half,
    choose_layers,
    sign_bytes,
    take_signs,
)
from survey_code.method import Found, Task, Trained
from survey_code.options import Options, option, planned
from survey_code.ranking import choose_top
from survey_code.spec import TableSpec


class ScaledSign(torch.autograd.Function):
    r"""mean(\|v\|) sign(v) row by row; backward a bell in place of the sign's jump.

    The derivative of the sign is taken to be
    :math:`c\,a / \sqrt{\pi} \exp(-(a v)^2)`, kept within 1e-8 and 1, and that of
    the mean is left out.  c = 2 makes it the derivative of :math:`\mathrm{erf}(a v)`,
    whose integral is the sign's jump of 2; the authors' code has c = 1.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, sharpness: float, factor: float) -> Tensor:
        """Signs times the row's mean magnitude."""
        ctx.save_for_backward(values)
        ctx.bell = sharpness, factor
        return take_signs(values) * values.abs().mean(-1, keepdim=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """The gradient, weighted by the bell."""
        (values,) = ctx.saved_tensors
        sharpness, factor = ctx.bell
        height = factor * sharpness / math.sqrt(math.pi)
        bell = height * torch.exp(-((sharpness * values) ** 2))
        return grads[0] * bell.clamp(1e-8, 1), None, None


class BiGeaROptions(Options):
    """Options of `BiGeaR`."""

    layers: int | None = planned(
        "the L of the blocks; unless asked, up to 2 where there is a graph",
        low=0, high=10, tune=(None, 0),
    )  # fmt: skip
    half: bool = option(False, "store row scales as float16")
    distillation: float = option(
        1.0, "weight of the teacher's lists in the loss; 0 for none", low=0
    )
    listed: int = option(100, "items in a teacher's list", low=1)
    sharpness: float = option(
        1.0, "how narrow the bell of the sign's gradient is", above=0
    )
    factor: float = option(1.0, "how high that bell is", above=0)


class BiGeaR(PropagatedEmbedding, Trained[BiGeaROptions]):
    r"""BiGeaR: codes of every layer, row scales, and a teacher (key ``bigear``).

    Layer l of the propagation gives a block of codes :math:`q_l = \mathrm{mean}|v_l|
    \, \mathrm{sign}(v_l)`; a row is the concatenation of :math:`w_l q_l` with
    :math:`w_l = (l + 1) / (L + 1)`.  The same table is first trained without signs:
    that is the teacher, from whose weights the codes start, and whose best
    items of each layer they must score high.

    Scales are stored where they say something.  A network that compares rows by
    cosine divides by the scale of a single block again: without layers there is then
    none, and entries are +1 and -1.

    Notes
    -----
    Chen et al., "Learning Binarized Graph Representations with Multi-faceted
    Quantization Reinforcement for Top-K Recommendation" (KDD 2022).  Lists are
    distilled for `USERS` random users a step rather than for the users of the
    batch.
    """

    USERS = 256

    def __init__(self, spec: TableSpec, options: BiGeaROptions, seed: int = 0) -> None:
        super().__init__(spec, choose_layers(spec, options.layers, default=2), seed)
        self.block = spec.embedding_dim
        self.embedding_dim = (self.layers + 1) * self.block
        self.scaled = bool(layer_scale_bytes(spec, self.layers, options.half))
        self.half_scales, self.distillation = options.half, options.distillation
        self.listed = options.listed
        self.sharpness, self.factor = options.sharpness, options.factor
        self.num_users = int(spec.field_starts[1])
        # False while the table is its own teacher.
        self.binary = True
        self.teacher: Tensor | None
        self.register_buffer("teacher", None, persistent=False)
        self._tables: list[Tensor] = []
        with torch.no_grad():
            # Blocks shrink as they spread; rows are to start at the usual spread.
            blocks = [self.encode(t, k) for k, t in enumerate(self.spread())]
            spread = float(torch.stack(blocks).std(correction=0))
            if spread:  # one row of one entry has none
                self.weight.mul_(spec.init_std / spread)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: BiGeaROptions) -> Found:
        """As many layers, up to 2, as the budget holds: each has its own codes."""
        most = choose_layers(spec, options.layers, default=2)
        fewest = 0 if options.layers is None else most
        sizes = {
            layers: (layers + 1) * sign_bytes(spec)
            + layer_scale_bytes(spec, layers, options.half)
            for layers in range(fewest, most + 1)
        }
        budget = spec.require(ratio, smallest=sizes[fewest])
        return {"layers": max(n for n, size in sizes.items() if size <= budget)}

    def fit(self, task: Task) -> Fitted:
        """Train without signs, note each layer's best items, train with signs."""
        self.check_network(task)
        self.binary = False
        teacher = task.train(self)
        self.binary = True
        if task.model == "mf" and self.distillation:
            self.teacher = self.list_items()
        student = task.train(self)
        student.history.seconds += teacher.history.seconds
        return student

    def encode(self, rows: Tensor, layer: int) -> Tensor:
        """One layer's block of rows (..., dim): weighted, and binary or not."""
        weight = (layer + 1) / (self.layers + 1)
        if not self.binary:
            return weight * rows
        if self.training:
            return weight * ScaledSign.apply(rows, self.sharpness, self.factor)
        return take_signs(rows) * self.measure_scales(rows, layer)

    def measure_scales(self, rows: Tensor, layer: int) -> Tensor:
        """What one layer's codes are read with: (..., dim) -> (..., 1)."""
        if not self.scaled:
            return torch.ones_like(rows[..., :1])
        weight = (layer + 1) / (self.layers + 1)
        scales = weight * rows.abs().mean(-1, keepdim=True)
        return scales.half().float() if self.half_scales else scales

    def embed(self, ids: Tensor) -> Tensor:
        """The blocks of all layers, side by side."""
        tables = self.spread()
        if self.training and self.teacher is not None:
            self._tables = tables  # `penalty` reads the same step's layers
        rows = [self.encode(self.gather(t, ids), k) for k, t in enumerate(tables)]
        return torch.cat(rows, dim=-1)

    @torch.no_grad()
    def list_items(self, chunk: int = 1024) -> Tensor:
        """Each user's best items in each layer, int32 (layers + 1, users, listed)."""
        lists = []
        for table in self.spread():
            users, items = table[: self.num_users], table[self.num_users :]
            best = [
                choose_top(part @ items.T, self.listed, part, items)
                for part in users.split(chunk)
            ]
            lists.append(torch.cat(best) + self.num_users)
        return torch.stack(lists).to(torch.int32)

    def penalty(self) -> Tensor:
        r"""The teacher's items must score high: softplus(-score), by rank r
        weighted :math:`\exp(-0.1 r)`.
        """
        tables, self._tables = self._tables, []
        if self.teacher is None or not tables:
            return super().penalty()
        device = self.weight.device
        users = torch.randint(self.num_users, (self.USERS,), device=device)
        ranks = torch.arange(1, self.teacher.shape[2] + 1, device=device)
        loss = torch.zeros((), device=device)
        for k, table in enumerate(tables):
            own = self.encode(self.gather(table, users), k)  # (users, dim)
            listed = self.gather(table, self.teacher[k][users].long())
            scores = torch.einsum("ud,uld->ul", own, self.encode(listed, k))
            loss = (
                loss + (torch.exp(-0.1 * ranks) * functional.softplus(-scores)).mean()
            )
        return self.distillation * loss

    @torch.no_grad()
    def freeze(self) -> BinaryLayout:
        """The signs of every layer, and their scales.

        Raises
        ------
        ValueError
            If the weights are NaN or infinite.
        """
        tables = self.spread()
        if not self.scaled:
            return BinaryLayout.from_signs(tables[0].cpu().numpy())
        scales = [self.measure_scales(t, k) for k, t in enumerate(tables)]
        stored = torch.cat(scales, dim=1).cpu().numpy()
        return BinaryLayout.from_signs(
            torch.cat(tables, dim=1).cpu().numpy(),
            as_half(stored) if self.half_scales else stored.copy(),
            blocks=len(tables),
        )


def layer_scale_bytes(spec: TableSpec, layers: int, half: bool) -> int:
    """Bytes of all scales: one for each layer of a row, if any say something."""
    if spec.cosine and not layers:
        return 0
    return spec.num_embeddings * (layers + 1) * (2 if half else 4)
