"""Candidates of several widths for every id, mixed: the table of two searches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import CompressedEmbedding, draw_normal
from survey_code.spec import TableSpec


class MixedWidths(CompressedEmbedding):
    """Candidates of several widths for every id, mixed with weights.

    Each candidate vector is mapped to the full dimension by a matrix of its group
    and normalised over the batch, so that no width wins by its scale alone.

    Parameters
    ----------
    spec : TableSpec
    widths : tuple of int
    group : ndarray of int64, shape (num_embeddings,)
        Which matrices an id uses.
    seed : int, default 0
    """

    group: Tensor
    owner: Tensor

    def __init__(
        self, spec: TableSpec, widths: tuple[int, ...], group: np.ndarray, seed: int = 0
    ) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.widths, self.groups = widths, int(group.max()) + 1
        self.register_buffer("group", torch.from_numpy(group), persistent=False)
        # All candidates side by side in one table, one matrix row for each column.
        columns = sum(widths)
        shape = (spec.num_embeddings, columns)
        self.weight = nn.Parameter(draw_normal(shape, spec.init_std, [seed, 0]))
        self.mix = nn.Parameter(
            draw_normal((self.groups, columns, spec.embedding_dim), 1.0, [seed, 1])
        )
        owner = torch.repeat_interleave(torch.tensor(widths))  # candidate of a column
        owns = functional.one_hot(owner, len(widths)).to(torch.float32)
        self.register_buffer("owner", owns[..., None], persistent=False)

    def weights_of(self, ids: Tensor, group: Tensor) -> Tensor:
        """Weights of the candidates: ids (m,) of groups (m,) -> (m, candidates)."""
        raise NotImplementedError

    def embed(self, ids: Tensor) -> Tensor:
        """The weighted sum of the candidates."""
        flat = ids.flatten()
        group = self.group[flat]
        weights = self.weights_of(flat, group)
        rows = functional.embedding(flat, self.weight)
        places = split_by(group, self.groups)
        parts = [self.mix_group(rows[p], weights[p], g) for g, p in enumerate(places)]
        order = torch.cat(places)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        mixed = torch.cat(parts).index_select(0, back)
        return mixed.view(*ids.shape, self.embedding_dim)

    def mix_group(self, rows: Tensor, weights: Tensor, group: int) -> Tensor:
        """Candidates of one group's rows, normalised and summed up with weights:
        (m, columns) and (m, candidates) -> (m, dim).
        """
        # A matrix of blocks: each column feeds its candidate only.
        blocks = self.owner.to(rows.dtype) * self.mix[group][:, None]
        found = standardise(rows @ blocks.flatten(1))
        found = found.view(len(rows), len(self.widths), self.embedding_dim)
        return (found * weights[..., None]).sum(1)

    # -- two levels ----------------------------------------------------------

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The candidates and their matrices; the choices are not among them."""
        return [{"params": [self.weight, self.mix], "lr": learning_rate}]


def standardise(rows: Tensor) -> Tensor:
    """Batch normalisation without scale and shift: (m, columns), m rows alike."""
    if len(rows) < 2:
        return rows * 0.0
    return functional.batch_norm(rows, None, None, training=True)


def split_by(group: Tensor, groups: int) -> tuple[Tensor, ...]:
    """Places of the members of each group: (m,) -> one tensor for each group."""
    order = group.argsort(stable=True)
    return order.split(torch.bincount(group, minlength=groups).tolist())
