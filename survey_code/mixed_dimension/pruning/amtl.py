"""AMTL: two small networks read an id's frequency and say how long its row is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import (
    CompressedEmbedding,
    as_float32,
    draw_normal,
    pick_rows,
)
from survey_code.layouts import RaggedLayout
from survey_code.layouts.ragged import ragged_bytes
from survey_code.method import Found, Judge, Searched
from survey_code.mixed_dimension.prefix import prefix_mask
from survey_code.mixed_dimension.pruning.tickets import (
    PrefixTicket,
    TicketOptions,
    draw_original,
)
from survey_code.mixed_dimension.search import WARM_UP
from survey_code.options import option
from survey_code.order import largest_first
from survey_code.spec import TableSpec

# Progress of the search from which on its masks let through what the budget pays for.
SETTLED = 0.75


class AMTLOptions(TicketOptions):
    """Options of `AMTL`."""

    hidden: int = option(16, "units of each network's hidden layer", low=1, high=4096)
    price: float = option(
        0.01,
        "factor of the penalty, the mean length over the full one",
        low=0, tune=(0.01, 0.1),
    )  # fmt: skip
    # At 0.01 some seeds end far below the others.
    twin_rate: float = option(
        0.002, "learning rate of the two networks", above=0, tune=(0.002, 0.001)
    )


class TwinMasks(CompressedEmbedding):
    """A full table behind prefix masks that two networks choose.

    From `WARM_UP` to `SETTLED` of the search the numbers that all masks together let
    through fall from all to what the budget pays for, so that the rows which are kept
    in the end are those that the search has read.
    """

    gauges = ("first", "last")

    level: Tensor
    ids: Tensor
    frequency: Tensor

    def __init__(self, spec: TableSpec, options: AMTLOptions, seed: int) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.weight = nn.Parameter(draw_original(spec, seed))
        self.rate, self.price = options.twin_rate, options.price
        self.temperature = 1.0
        self.least = min(count_numbers(spec, options.budget), self.weight.numel())
        self.numbers = self.weight.numel()
        # Ids of one count share a mask: the networks see nothing else.
        counts, level, ids = np.unique(
            spec.train_counts, return_inverse=True, return_counts=True
        )
        logs, share = np.log1p(counts), ids / ids.sum()
        middle = (share * logs).sum()
        spread = np.sqrt((share * (logs - middle) ** 2).sum()) or 1.0
        for name, value in (
            ("level", level),
            ("ids", ids),
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
        """Cool down, from 1 to a tenth, and let fewer numbers through."""
        self.temperature = 1 - 0.9 * progress
        done = min(max((progress - WARM_UP) / (SETTLED - WARM_UP), 0.0), 1.0)
        full = self.weight.numel()
        self.numbers = full - int(done * (full - self.least))

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
        logits = self.logits()
        lengths, _ = share_out(logits.detach(), self.ids, self.numbers)
        hard = prefix_mask(lengths, self.embedding_dim).to(logits.dtype)
        return choose_hard(hard, prefix_of((logits / self.temperature).softmax(1)))

    def embed(self, ids: Tensor) -> Tensor:
        """Rows behind the masks of their frequencies."""
        rows = pick_rows(ids, self.weight)
        return rows * pick_rows(self.level[ids], self.masks())

    def penalty(self) -> Tensor:
        """The price of the mean length."""
        soft = self.logits().softmax(1)
        lengths = soft @ torch.arange(soft.shape[1], dtype=soft.dtype).to(soft.device)
        share = (self.ids / self.ids.sum()).to(lengths)
        return self.price * (share @ lengths) / self.embedding_dim


def choose_hard(hard: Tensor, soft: Tensor) -> Tensor:
    """The hard mask, with the gradient of the soft one.

    Examples
    --------
    >>> soft = torch.tensor([0.9, 0.4], requires_grad=True)
    >>> mask = choose_hard(torch.tensor([1.0, 0.0]), soft)
    >>> mask.tolist(), torch.autograd.grad(mask.sum(), soft)[0].tolist()
    ([1.0, 0.0], [1.0, 1.0])
    """
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


def share_out(logits: Tensor, ids: Tensor, numbers: int) -> tuple[Tensor, int]:
    r"""Lengths of the levels that keep the entries most likely to be kept.

    The soft mask of entry j of a level is :math:`P(\text{length} > j)`, which falls
    along the row: the entries of the largest soft masks in the whole table make
    prefixes.  Of equal ones the first of a row comes first, then the last level.  The
    most probable lengths of all whose sum fits would be another rule, and a bad one: as
    long as two lengths, none and all, stand out of a flat distribution, it gives each
    id one of these two.

    Parameters
    ----------
    logits : Tensor, shape (levels, d + 1)
        Log-probabilities, up to a constant of each level, of lengths 0 to d.
    ids : Tensor of int64, shape (levels,)
        Of each level: what an entry of its mask costs.
    numbers : int
        Largest sum of the lengths of all ids.

    Returns
    -------
    lengths : Tensor of int64, shape (levels,)
    next : int
        The level whose next entry is next in the order; -1 if there is none.
    """
    # log P(length <= j), which tells apart what is almost surely kept.
    below = logits.log_softmax(1).logcumsumexp(1)[:, :-1]  # (levels, d)
    by_entry = below.flip(0).T.reshape(-1)
    order = by_entry.argsort(stable=True)
    level = len(ids) - 1 - order % len(ids)
    # Costs are positive: what is paid for is the beginning of the order.
    taken = int((ids[level].cumsum(0) <= numbers).sum())
    lengths = torch.bincount(level[:taken], minlength=len(ids))
    return lengths, int(level[taken]) if taken < len(level) else -1


def keep_likeliest(
    scores: np.ndarray, spec: TableSpec, numbers: int, level: np.ndarray | None = None
) -> np.ndarray:
    """Lengths of the ids by `share_out`; what is left goes to the next level's ids.

    Parameters
    ----------
    scores : ndarray, shape (n, d + 1), or (levels, d + 1)
        Log-probabilities, up to a constant, of length 0 to d of each id or level.
    spec : TableSpec
    numbers : int
        Largest sum of the lengths.
    level : ndarray of integers, shape (n,), optional
        Row of `scores` that each id reads, rising with the ids' counts; by default its
        own.

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
    if numbers < 0:
        raise ValueError(f"numbers must be from 0 up, got {numbers}")
    if level is None:  # each id a level, the most frequent last
        by_count = largest_first(spec.train_counts)[::-1]
        level = np.empty(len(by_count), dtype=np.int64)
        level[by_count] = np.arange(len(by_count))
        if scores.shape[:1] == level.shape:
            scores = scores[by_count]
    check_log_chances(scores, (int(level.max()) + 1, spec.embedding_dim + 1))
    ids = torch.from_numpy(np.bincount(level))
    shared, following = share_out(torch.from_numpy(scores), ids, numbers)
    lengths: np.ndarray = shared.numpy()[level]
    some = np.flatnonzero(level == following)
    some = some[largest_first(spec.train_counts[some])]
    lengths[some[: numbers - lengths.sum()]] += 1
    return lengths


def check_log_chances(scores: np.ndarray, wanted: tuple[int, int]) -> None:
    """Raise ValueError unless scores are finite and of this shape."""
    if scores.shape != wanted or not np.isfinite(scores).all():
        raise ValueError(
            f"scores must be finite, of shape {wanted}, got {scores.dtype} of shape "
            f"{scores.shape}"
        )


def count_numbers(spec: TableSpec, budget: int) -> int:
    """Numbers that a budget pays for, besides the lengths of the rows."""
    overhead = ragged_bytes(0, spec.num_embeddings, spec.embedding_dim)
    return max((budget - overhead) // 4, 0)


class AMTL(PrefixTicket, Searched[AMTLOptions, TwinMasks]):
    """Rows as long as their frequency deserves (key ``amtl``).

    Notes
    -----
    Yan et al., "Learning Effective and Efficient Embedding via an Adaptively-Masked
    Twins-based Layer" (CIKM 2021).  The paper trains once, reads every id through the
    mask of its most probable length, and has no budget.  Here the search reads the
    entries of the whole table whose soft masks are the largest, as many as a falling
    number admits, which ends at the budget; then the rows are trained anew.
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
        scores = table.logits().double().cpu().numpy()
        numbers, level = count_numbers(spec, options.budget), table.level.cpu().numpy()
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
