"""AMTL: two small networks read an id's frequency and say how long its row is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import CompressedEmbedding, check_range, draw_normal
from survey_code.layouts import RaggedLayout
from survey_code.layouts.ragged import ragged_bytes
from survey_code.mixed_dimension.architecture_search.choices import (
    check_positive,
    search_epochs,
)
from survey_code.mixed_dimension.grouped import as_array
from survey_code.mixed_dimension.pruning.tickets import PrefixTicket, draw_original
from survey_code.order import largest_first
from survey_code.spec import TableSpec


class TwinMasks(CompressedEmbedding):
    """A full table behind prefix masks that two networks choose.

    Parameters
    ----------
    spec : TableSpec
    hidden : int
        Units of each network's hidden layer.
    rate : float
        Learning rate of the networks.
    price : float
        Factor of the penalty, the mean length of all rows over the full length.
    seed : int
    """

    level: Tensor
    share: Tensor
    frequency: Tensor

    def __init__(
        self, spec: TableSpec, hidden: int, rate: float, price: float, seed: int
    ) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.weight = nn.Parameter(draw_original(spec, seed))
        self.rate, self.price, self.temperature = rate, price, 1.0
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
        self.first = nn.Parameter(draw_normal((2, 2, hidden), 1.0, [seed, 1]))
        last = torch.zeros(2, hidden + 1, spec.embedding_dim + 1)
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


def lengths_within(
    scores: np.ndarray, spec: TableSpec, numbers: int, level: Any = None
) -> np.ndarray:
    r"""Lengths that keep the entries most likely to be kept.

    The soft mask of entry j of an id is :math:`P(\text{length} > j)`, which falls
    along the row: the entries of the largest soft masks in the whole table make
    prefixes.  Of equal ones the first of a row comes first, then the frequent ids'.

    The most probable lengths whose sum fits would be another rule, and a bad one: as
    long as two lengths, none and all, stand out of a flat distribution, it gives each
    id one of these two.

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
    >>> lengths_within(np.log([[0.1, 0.2, 0.7], [0.5, 0.4, 0.1]]), spec, 3).tolist()
    [2, 1]
    """
    n, dim = spec.num_embeddings, spec.embedding_dim
    row = np.arange(n) if level is None else np.asarray(level)
    wanted = (int(row.max()) + 1, dim + 1)
    if scores.shape != wanted or not np.isfinite(scores).all():
        raise ValueError(
            f"scores must be finite, of shape {wanted}, got {scores.dtype} of shape "
            f"{scores.shape}"
        )
    if numbers < 0:
        raise ValueError(f"numbers must be from 0 up, got {numbers}")
    # log P(length <= j), which tells apart what is almost surely kept.
    below = np.logaddexp.accumulate(scores, axis=1)
    below = below[:, :-1] - below[:, -1:]
    counts = np.zeros(len(scores), np.int64)
    np.maximum.at(counts, row, spec.train_counts)
    entry, by_count = np.arange(dim)[None], -counts[:, None]
    keys = [np.broadcast_to(k, below.shape).ravel() for k in (by_count, entry, below)]
    order = np.lexsort(keys)
    ids = np.bincount(row)
    paid = np.cumsum(ids[order // dim]) <= numbers
    # Costs are positive: what is paid for is the beginning of the order.
    taken = order[paid]
    lengths: np.ndarray = np.bincount(taken // dim, minlength=len(ids))[row]
    if len(taken) < len(order):  # the next entry, for some ids of its level
        some = np.flatnonzero(row == order[len(taken)] // dim)
        some = some[largest_first(spec.train_counts[some])]
        lengths[some[: numbers - lengths.sum()]] += 1
    return lengths


class AMTL(PrefixTicket):
    """Rows as long as their frequency deserves (key ``amtl``).

    Parameters
    ----------
    spec : TableSpec
    lengths : ndarray of integers, shape (num_embeddings,)
        What the search found.
    rewind : bool, default True
        Begin with the entries with which the search began.
    seed : int, default 0

    Notes
    -----
    Yan et al., "Learning Effective and Efficient Embedding via an Adaptively-Masked
    Twins-based Layer" (CIKM 2021).  The paper trains once and takes each id's most
    probable length; here, so that a budget is met, the entries of the whole table whose
    soft masks are the largest, and a retraining.
    """

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        hidden: int = 16,
        twin_rate: float = 0.002,
        price: float = 0.01,
        rewind: bool = True,
        search_epochs: int | None = None,
    ) -> dict[str, Any]:
        """The budget, and how to search."""
        check_range("hidden", hidden, 1, 4096)
        check_positive(twin_rate=twin_rate)
        if not (isinstance(price, int | float) and 0 <= price < float("inf")):
            raise ValueError(f"price must be a number from 0 up, got {price!r}")
        rows, dim = spec.num_embeddings, spec.embedding_dim
        return {
            "budget": spec.require(ratio, smallest=ragged_bytes(1, rows, dim)),
            "hidden": hidden,
            "twin_rate": twin_rate,
            "price": price,
            "rewind": rewind,
            "search_epochs": search_epochs,
        }

    @classmethod
    def searching(
        cls, spec: TableSpec, options: dict[str, Any], seed: int
    ) -> TwinMasks:
        """The table behind masks."""
        return TwinMasks(
            spec, options["hidden"], options["twin_rate"], options["price"], seed
        )

    @classmethod
    @torch.no_grad()
    def choose(cls, table: TwinMasks, spec: TableSpec, budget: int) -> np.ndarray:
        """The lengths that keep the largest soft masks."""
        scores = table.logits().log_softmax(1).double().cpu().numpy()
        overhead = ragged_bytes(0, spec.num_embeddings, spec.embedding_dim)
        level = table.level.cpu().numpy()
        return lengths_within(scores, spec, (budget - overhead) // 4, level)

    @classmethod
    def search(
        cls, task: Any, spec: TableSpec, options: dict[str, Any], seed: int
    ) -> dict[str, Any]:
        """Train table and masks together."""
        table = cls.searching(spec, options, seed)
        task.train(table, **search_epochs(task, options["search_epochs"]))
        lengths = cls.choose(table, spec, options["budget"])
        return {"lengths": lengths, "rewind": options["rewind"]}

    def freeze(self) -> RaggedLayout:  # type: ignore[override]
        """The rows one after another, and their lengths."""
        shape = (self.num_embeddings, self.embedding_dim)
        full = np.zeros(shape, dtype=np.float32)
        group, _ = self.locate(torch.arange(self.num_embeddings))
        groups = group.cpu().numpy()
        for g, table in enumerate(self.tables):
            full[groups == g, : table.shape[1]] = as_array(table)
        return RaggedLayout.from_dense(full, np.array(self.widths)[groups])
