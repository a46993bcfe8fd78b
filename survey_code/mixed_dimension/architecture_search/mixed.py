"""Candidates of several widths for every id, mixed: the table of two searches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import CompressedEmbedding, draw_normal, pick_rows
from survey_code.layouts.grouped import grouped_bytes
from survey_code.mixed_dimension.search import fields_of, powers_up_to
from survey_code.spec import TableSpec


class MixedWidths(CompressedEmbedding):
    """Candidates of several widths for every id, mixed with weights.

    The widths are 1, 2, 4 ... up to the full one.  Each candidate vector is mapped to
    the full dimension by a matrix of its field and normalised over the batch, so that
    no width wins by its scale alone.

    Parameters
    ----------
    spec : TableSpec
    seed : int
    """

    group: Tensor
    owner: Tensor

    def __init__(self, spec: TableSpec, seed: int) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.widths = powers_up_to(spec.embedding_dim)
        self.groups = len(spec.field_starts) - 1
        group = torch.from_numpy(fields_of(spec))
        self.register_buffer("group", group, persistent=False)
        # All candidates side by side in one table, one matrix row for each column.
        columns = sum(self.widths)
        shape = (spec.num_embeddings, columns)
        self.weight = nn.Parameter(draw_normal(shape, spec.init_std, [seed, 0]))
        self.mix = nn.Parameter(
            draw_normal((self.groups, columns, spec.embedding_dim), 1.0, [seed, 1])
        )
        owner = torch.repeat_interleave(torch.tensor(self.widths))  # of a column
        owns = functional.one_hot(owner, len(self.widths)).to(torch.float32)
        self.register_buffer("owner", owns, persistent=False)

    def weights_of(self, ids: Tensor, group: Tensor) -> Tensor:
        """Weights of the candidates: ids (m,) of groups (m,) -> (m, candidates)."""
        raise NotImplementedError

    def embed(self, ids: Tensor) -> Tensor:
        """The weighted sum of the candidates, group by group."""
        flat = ids.flatten()
        order, sizes, back = sort_by(self.group[flat], self.groups)
        flat = flat[order]
        rows = pick_rows(flat, self.weight).split(sizes)
        weights = self.weights_of(flat, self.group[flat]).split(sizes)
        parts = [self.mix_group(*both, g) for g, both in enumerate(zip(rows, weights))]
        mixed = torch.cat(parts).index_select(0, back)
        return mixed.view(*ids.shape, self.embedding_dim)

    def mix_group(self, rows: Tensor, weights: Tensor, group: int) -> Tensor:
        """Candidates of one group's rows, normalised and summed up with weights:
        (m, columns) and (m, candidates) -> (m, dim).

        A candidate is a matrix product, so that its mean and spread over the batch
        follow from those of the columns, and no candidate has to be made by itself.
        """
        owner, matrix = self.owner.to(rows.dtype), self.mix[group]
        means = rows.mean(0)
        centred = rows - means
        # Products of columns of one candidate; of a single row, there are none.
        products = centred.T @ centred / max(len(rows), 1) * (owner @ owner.T)
        spread = owner.T @ (matrix * (products @ matrix))  # (candidates, dim)
        matrix = matrix / (owner @ (spread + 1e-5).sqrt())
        return (centred * (weights @ owner.T)) @ matrix

    # -- two levels ----------------------------------------------------------

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The candidates and their matrices; the choices are not among them."""
        return [{"params": [self.weight, self.mix], "lr": learning_rate}]


def sort_by(group: Tensor, groups: int) -> tuple[Tensor, list[int], Tensor]:
    """Places in the order of their groups: the order (m,), the size of each group,
    and where each place went.

    One gather in this order, and its parts: a gather for each group would fill a
    gradient of the whole batch with zeros each time.
    """
    order = group.argsort(stable=True)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return order, torch.bincount(group, minlength=groups).tolist(), back


def require_narrowest(spec: TableSpec, ratio: float) -> int:
    """The budget of a ratio, if it holds a number for every id beside `mix_overhead`.

    Raises
    ------
    OutOfReach
        If it does not.
    """
    return spec.require(ratio, smallest=4 * spec.num_embeddings + mix_overhead(spec))


def mix_overhead(spec: TableSpec) -> int:
    """Bytes besides the numbers, remap included, if rows of every width are in use."""
    widths, rows = powers_up_to(spec.embedding_dim), spec.num_embeddings
    counts = [rows, *[0] * (len(widths) - 1)]
    total = grouped_bytes(counts, widths, spec.embedding_dim, ranges=False)
    return total - 4 * rows * widths[0]


def floor_place(spec: TableSpec, share: float, room: int) -> int:
    """Place, among the powers of two, of the least width that an id may have.

    Parameters
    ----------
    spec : TableSpec
    share : float
        0 to 1, of the width that all ids could have alike.
    room : int
        Bytes for the numbers alone.
    """
    alike = room // (4 * spec.num_embeddings)
    widths = [width for width in powers_up_to(spec.embedding_dim) if width <= alike]
    return sum(width < share * alike for width in widths[:-1])
