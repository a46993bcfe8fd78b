"""AMTL: two small networks read an id's frequency and say how long its row is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import CompressedEmbedding, as_float32, draw_normal
from survey_code.layouts import RaggedLayout
from survey_code.layouts.ragged import ragged_bytes
from survey_code.method import Found, Judge, Searched
from survey_code.mixed_dimension.pruning.tickets import (
    PrefixTicket,
    TicketOptions,
    draw_original,
)
from survey_code.options import option
from survey_code.order import largest_first
from survey_code.spec import TableSpec


class AMTLOptions(TicketOptions):
    """Options of `AMTL`."""

    hidden: int = option(16, "units of each network's hidden layer", low=1, high=4096)
    price: float = option(
        0.01,
        "factor of the penalty, the mean length over the full one",
        low=0, tune=(0.01, 0.1),
    )  # fmt: skip
    twin_rate: float = option(
        0.002, "learning rate of the two networks", above=0, tune=(0.002, 0.01)
    )


class TwinMasks(CompressedEmbedding):
    """A full table behind prefix masks that two networks choose."""

    level: Tensor
    share: Tensor
    frequency: Tensor

    def __init__(self, spec: TableSpec, options: AMTLOptions, seed: int) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.weight = nn.Parameter(draw_original(spec, seed))
        self.rate, self.price = options.twin_rate, options.price
        self.temperature = 1.0
        # Ids of one count share a mask: the networks see nothing else.
        counts, level, rows = np.unique(
            spec.train_counts, return_inverse=True, return_counts=True
        )
        logs, share = np.log1p(counts), rows / rows.sum()
        middle = (share * logs).sum()
        spread = np.sqrt((share * (logs - middle) ** 2).sum()) or 1.0
        for name, value in (
            ("level", level),
            ("share", share),
            ("frequency", (logs - middle) / spread),
        ):
            self.register_buffer(name, torch.from_numpy(value), persistent=False)
        # Both networks side by side; the second layer starts at "full length".
        self.first = nn.Parameter(draw_normal((2, 2, options.hidden), 1.0, [seed, 1]))
        last = torch.zeros(2, options.hidden + 1, spec.embedding_dim + 1)
        last[:, -1, -1] = 1.0
        self.last = nn.Parameter(last)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The table, and the networks."""
        return [
            {"params": [self.weight], "lr": learning_rate},
            {"params": [self.first, self.last], "lr": self.rate},
        ]

    def advance(self, progress: float) -> None:
        """Cool down, from 1 to a tenth."""
        self.temperature = 1 - 0.9 * progress

    def logits(self) -> Tensor:
        """Of every length, for every frequency: (levels, dim + 1)."""
        x = self.frequency.to(self.first.dtype)
        ones = torch.ones_like(x)
        hidden = (torch.stack([x, ones], 1) @ self.first).relu()  # (2, levels, hidden)
        padded = functional.pad(hidden, (0, 1), value=1.0)
        frequent, rare = padded @ self.last
        gate = torch.sigmoid(x)[:, None]
        return gate * frequent + (1 - gate) * rare

    def masks(self) -> Tensor:
        """The prefix mask of every frequency: (levels, dim)."""
        return prefix_of(choose_hard(self.logits() / self.temperature))

    def embed(self, ids: Tensor) -> Tensor:
        """Rows behind the masks of their frequencies."""
        rows = functional.embedding(ids, self.weight)
        return rows * functional.embedding(self.level[ids], self.masks())

    def penalty(self) -> Tensor:
        """The price of the mean length."""
        soft = self.logits().softmax(1)
        lengths = soft @ torch.arange(soft.shape[1], dtype=soft.dtype).to(soft.device)
        return self.price * (self.share @ lengths.to(self.share)) / self.embedding_dim


def choose_hard(logits: Tensor) -> Tensor:
    """One-hot of the largest logit, with the gradient of the softmax.

    Examples
    --------
    >>> choose_hard(torch.tensor([1.0, 3.0, 2.0])).tolist()
    [0.0, 1.0, 0.0]
    """
    soft = logits.softmax(-1)
    hard = functional.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
    return hard + (soft - soft.detach())


def prefix_of(choice: Tensor) -> Tensor:
    """Mask of a (soft) choice among lengths 0 to d: (..., d + 1) -> (..., d).

    Entry j is kept by all lengths above j.

    Examples
    --------
    >>> prefix_of(torch.tensor([0.0, 0.0, 1.0, 0.0])).tolist()
    [1.0, 1.0, 0.0]
    """
    return choice.flip(-1).cumsum(-1).flip(-1)[..., 1:]


def keep_likeliest(
    scores: np.ndarray, spec: TableSpec, numbers: int, level: np.ndarray | None = None
) -> np.ndarray:
    r"""Lengths that keep the entries most likely to be kept.

    The soft mask of entry j of an id is :math:`P(\text{length} > j)`, which falls
    along the row: the entries of the largest soft masks in the whole table make
    prefixes.  Of equal ones the first of a row comes first, then the frequent ids'.

    Parameters
    ----------
    scores : ndarray, shape (n, d + 1), or (levels, d + 1)
        Log-probabilities, up to a constant, of length 0 to d of each id or level.
    spec : TableSpec
    numbers : int
        Largest sum of the lengths.
    level : ndarray of integers, shape (n,), optional
        Row of `scores` that each id reads; by default its own.

    Returns
    -------
    ndarray of int64, shape (n,)

    Raises
    ------
    ValueError
        If the scores have another shape or are not finite, or `numbers` is negative.

    Examples
    --------
    >>> spec = TableSpec(2, 2, [0, 2], [9, 1])
    >>> keep_likeliest(np.log([[0.1, 0.2, 0.7], [0.5, 0.4, 0.1]]), spec, 3).tolist()
    [2, 1]
    """
    row = np.arange(spec.num_embeddings) if level is None else level
    order, dim = order_entries(scores, spec, row), spec.embedding_dim
    if numbers < 0:
        raise ValueError(f"numbers must be from 0 up, got {numbers}")
    ids = np.bincount(row)
    # Costs are positive: what is paid for is the beginning of the order.
    taken = order[np.cumsum(ids[order // dim]) <= numbers]
    lengths: np.ndarray = np.bincount(taken // dim, minlength=len(ids))[row]
    if len(taken) < len(order):  # the next entry, for some ids of its level
        some = np.flatnonzero(row == order[len(taken)] // dim)
        some = some[largest_first(spec.train_counts[some])]
        lengths[some[: numbers - lengths.sum()]] += 1
    return lengths


def order_entries(scores: np.ndarray, spec: TableSpec, row: np.ndarray) -> np.ndarray:
    """Places of all entries, (levels * d,), those of the largest soft masks first.

    The most probable lengths of all whose sum fits would be another rule, and a bad
    one: as long as two lengths, none and all, stand out of a flat distribution, it
    gives each id one of these two.
    """
    wanted = (int(row.max()) + 1, spec.embedding_dim + 1)
    if scores.shape != wanted or not np.isfinite(scores).all():
        raise ValueError(
            f"scores must be finite, of shape {wanted}, got {scores.dtype} of shape "
            f"{scores.shape}"
        )
    # log P(length <= j), which tells apart what is almost surely kept.
    below = np.logaddexp.accumulate(scores, axis=1)
    below = below[:, :-1] - below[:, -1:]
    counts = np.zeros(len(scores), np.int64)
    np.maximum.at(counts, row, spec.train_counts)
    entry, by_count = np.arange(spec.embedding_dim)[None], -counts[:, None]
    keys = [np.broadcast_to(k, below.shape).ravel() for k in (by_count, entry, below)]
    return np.lexsort(keys)


class AMTL(PrefixTicket, Searched[AMTLOptions, TwinMasks]):
    """Rows as long as their frequency deserves (key ``amtl``).

    Notes
    -----
    Yan et al., "Learning Effective and Efficient Embedding via an Adaptively-Masked
    Twins-based Layer" (CIKM 2021).  The paper trains once and takes each id's most
    probable length; here, so that a budget is met, the entries of the whole table whose
    soft masks are the largest, and a retraining.
    """

    def __init__(self, spec: TableSpec, options: AMTLOptions, seed: int = 0) -> None:
        super().__init__(spec, options.lengths, options.rewind, seed)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: AMTLOptions) -> Found:
        """The budget, which must hold a number."""
        smallest = ragged_bytes(1, spec.num_embeddings, spec.embedding_dim)
        return {"budget": spec.require(ratio, smallest=smallest)}

    @classmethod
    @torch.no_grad()
    def settle(
        cls, table: TwinMasks, judge: Judge, spec: TableSpec, options: AMTLOptions
    ) -> Found:
        """The lengths that keep the largest soft masks."""
        scores = table.logits().log_softmax(1).double().cpu().numpy()
        overhead = ragged_bytes(0, spec.num_embeddings, spec.embedding_dim)
        numbers = (options.budget - overhead) // 4
        level = table.level.cpu().numpy()
        return {"lengths": keep_likeliest(scores, spec, numbers, level)}

    def freeze(self) -> RaggedLayout:  # type: ignore[override]
        """The rows one after another, and their lengths."""
        shape = (self.num_embeddings, self.embedding_dim)
        full = np.zeros(shape, dtype=np.float32)
        group, _ = self.locate(torch.arange(self.num_embeddings))
        groups = group.cpu().numpy()
        for g, table in enumerate(self.tables):
            full[groups == g, : table.shape[1]] = as_float32(table)
        return RaggedLayout.from_dense(full, np.array(self.widths)[groups])
