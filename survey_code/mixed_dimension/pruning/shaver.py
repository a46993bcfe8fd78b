"""SHAVER: what each number gives the network, as players share what a game is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.baselines import FullEmbedding
from survey_code.checks import check_range
from survey_code.embedding import (
    CompressedEmbedding,
    Fitted,
    as_float32,
    draw_normal,
    pick_rows,
)
from survey_code.layouts import SparseLayout
from survey_code.layouts.sparse import (
    FORMATS,
    default_block,
    fill_bytes,
    round_values,
    sparse_bytes,
)
from survey_code.method import Found, Judge, Task, Trained
from survey_code.mixed_dimension.pruning.tickets import count_entries, keep_largest
from survey_code.mixed_dimension.search import fields_of
from survey_code.options import Options, option, planned
from survey_code.spec import TableSpec

# What is read in place of an entry that is cut.
FILLS = ("mean", "zero")


# -- how a game is shared out ------------------------------------------------------


def share_out_game(
    worth: Callable[[np.ndarray], float], orders: Iterable[Sequence[int]]
) -> np.ndarray:
    """What each player adds when it comes, averaged over orders of coming.

    Over all orders it is the Shapley value; over some, drawn evenly, an unbiased
    estimate of it.  The values sum to what all players are worth beyond none.

    Parameters
    ----------
    worth : callable
        Of a mask of players, bool of shape (players,): what these are worth.
    orders : iterable of sequence of int
        Each holds every player once.

    Returns
    -------
    ndarray of float64, shape (players,)

    Examples
    --------
    Two gloves make a pair; players 0 and 1 have a left one, player 2 the right one.
    Of six orders, player 2 makes the pair in four.

    >>> import itertools
    >>> def pairs(here):
    ...     return float(here[2] and (here[0] or here[1]))
    >>> 6 * share_out_game(pairs, itertools.permutations(range(3)))
    array([1., 1., 4.])
    """
    gains, count = np.zeros(0), 0
    for order in orders:
        here = np.zeros(len(order), dtype=bool)
        gains = np.zeros(len(order)) if not count else gains
        before = worth(here)
        for player in order:
            here[player] = True
            after = worth(here)
            gains[player] += after - before
            before = after
        count += 1
    return gains / max(count, 1)


def walk_out(
    slope: Callable[[Tensor], Tensor], order: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """What each entry gives by leaving in an order, some at a time, by slopes alone.

    With fewer steps than entries those of a step leave together.  What they give is
    shared by the mean of an entry's slopes before and after: for a game in which any
    two players meet, but no three, this is their Shapley value.

    Parameters
    ----------
    slope : callable
        Of gates from 0 to 1, any shape: the slopes of what they are worth.
    order : Tensor of floats from 0 up to, not including, 1
        Entries leave from the smallest number to the largest.
    steps : int
        In which all leave.

    Returns
    -------
    gains : Tensor of the order's shape and type
    last : Tensor
        The slopes where all have left.
    """
    leaves = (order * steps).long()
    before = slope(torch.ones_like(order))
    gains = torch.zeros_like(order)
    for step in range(steps):
        after = slope((leaves > step).to(order.dtype))
        gains = torch.where(leaves == step, (before + after) / 2, gains)
        before = after
    return gains, before


# -- the network as a game ---------------------------------------------------------


def average_fields(weight: np.ndarray, spec: TableSpec) -> np.ndarray:
    """The mean of each column in each field, rows counted as often as they are read.

    Parameters
    ----------
    weight : ndarray of float32, shape (num_embeddings, dim)
    spec : TableSpec

    Returns
    -------
    ndarray of float32, shape (fields, dim)
    """
    starts = spec.field_starts[:-1]
    reads = spec.train_counts.astype(np.float64)
    # Of a field that is never read, all rows count alike.
    unread = np.add.reduceat(reads, starts) == 0
    reads += np.repeat(unread, np.diff(spec.field_starts))
    sums = np.add.reduceat(weight * reads[:, None], starts, axis=0)
    means: np.ndarray = sums / np.add.reduceat(reads, starts)[:, None]
    return means.astype(np.float32)


class Leaving(CompressedEmbedding):
    """A trained table whose entries can leave: a gate of 1 reads the entry, of 0 the
    fill of its field and column.

    Parameters
    ----------
    weight : Tensor, shape (num_embeddings, dim)
    fills : ndarray of float32, shape (fields, dim)
    spec : TableSpec
    """

    gauges = ("gates",)

    field: Tensor

    def __init__(self, weight: Tensor, fills: np.ndarray, spec: TableSpec) -> None:
        super().__init__(*weight.shape)
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        stand_ins = torch.from_numpy(fills).to(weight.device)
        self.fills = nn.Parameter(stand_ins, requires_grad=False)
        self.gates = nn.Parameter(torch.ones_like(self.weight))
        field = torch.from_numpy(fields_of(spec)).to(weight.device)
        self.register_buffer("field", field, persistent=False)

    def embed(self, ids: Tensor) -> Tensor:
        """Rows, as far as the gates are open."""
        fills = pick_rows(self.field[ids], self.fills)
        gates = pick_rows(ids, self.gates)
        return fills + gates * (pick_rows(ids, self.weight) - fills)


def value_entries(
    table: Leaving, judge: Judge, batches: int, steps: int, seed: int
) -> np.ndarray:
    """An estimate of each entry's Shapley value in the game of the training loss.

    Players are all entries of the table; some of them are worth by how much the loss
    of training batches is lower with them.  Each batch has an order of its own.

    Parameters
    ----------
    table : Leaving
        The table of the network that the judge asks.
    judge : Judge
    batches, steps : int
        Training batches, and steps in which all entries leave.
    seed : int

    Returns
    -------
    ndarray of float32, shape (num_embeddings, dim)
    """
    rng = np.random.default_rng([seed, 5])
    values, count = np.zeros(table.gates.shape), 0
    for loss in judge.training_losses(batches):

        def slope(gates: Tensor, loss: Callable[[], Tensor] = loss) -> Tensor:
            table.gates.data.copy_(gates)
            return -torch.autograd.grad(loss(), [table.gates])[0]

        order = torch.from_numpy(rng.random(values.shape)).to(table.gates)
        values += walk_out(slope, order, steps)[0].cpu().numpy()
        count += 1
    table.gates.data.fill_(1)
    return (values / max(count, 1)).astype(np.float32)


# -- the method --------------------------------------------------------------------


class ShaverOptions(Options):
    """Options of `Shaver`."""

    batches: int = option(
        256, "training batches that entries are valued on, at most an epoch's",
        low=1, high=10_000,
    )  # fmt: skip
    steps: int = option(4, "steps in which all entries leave", low=1, tune=(4, 1))
    fill: str = option(
        "mean", "what a cut entry reads: its field's mean, or zero", choices=FILLS,
        tune=FILLS,
    )  # fmt: skip
    signed: bool = option(
        False, "keep what lowers the loss most; otherwise what changes it most"
    )
    format: str = option("float32", "of the kept values", choices=FORMATS)
    keep: int | None = planned("entries to keep; without a budget all", low=0)


class Shaver(Trained[ShaverOptions]):
    """A trained table, cut once to the entries that give most (key ``shaver``).

    The full table is trained as ever.  Then each of its numbers is a player in a game:
    a set of numbers is worth by how much it lowers the loss of the trained network,
    with the mean of the field in place of all others.  The numbers of the largest
    Shapley values are kept; nothing is trained again, and the same values serve any
    budget.

    Until a network has been asked, the entries farthest from their fills are kept.

    Parameters
    ----------
    spec : TableSpec
    options : ShaverOptions
    seed : int, default 0

    Attributes
    ----------
    values : ndarray of float32, shape (num_embeddings, dim), or None
        The entries' values, once they are known.

    Notes
    -----
    Tran et al., "On-device Content-based Recommendation with Single-shot Embedding
    Pruning: A Cooperative Game Perspective" (WWW 2025).  Its published code takes the
    numbers of each training row out one by one, in a random order of its own, and
    counts by how much that row's loss rises; what is cut reads the mean of its field,
    rows weighted by reads; and it keeps the largest values whatever their sign.  We let
    numbers leave in a few steps, by slopes of the loss of a whole batch: the same
    values but for what three numbers of a step do together, from far fewer passes, and
    for losses that are no sum over rows.
    """

    mask: Tensor | None
    fills: Tensor | None
    field: Tensor

    def __init__(self, spec: TableSpec, options: ShaverOptions, seed: int = 0) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        full = (spec.num_embeddings, spec.embedding_dim)
        self.weight = nn.Parameter(draw_normal(full, spec.init_std, seed))
        self.keep = self.weight.numel() if options.keep is None else options.keep
        check_range("keep", self.keep, 0, self.weight.numel())
        self.spec, self.asked, self.seed = spec, options, seed
        self.values: np.ndarray | None = None
        self.register_buffer("mask", None)
        self.register_buffer("fills", None)
        field = torch.from_numpy(fields_of(spec))
        self.register_buffer("field", field, persistent=False)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: ShaverOptions) -> Found:
        """As many entries as the budget pays for, beside the fills."""
        rows, dim = spec.num_embeddings, spec.embedding_dim
        filled = options.fill != "zero"
        beside = fill_bytes(len(spec.field_starts) - 1, dim) if filled else 0
        if options.keep is not None:
            check_range("keep", options.keep, 0, rows * dim)
        least = 1 if options.keep is None else options.keep
        smallest = sparse_bytes(least, rows, dim, options.format, default_block(dim))
        budget = spec.require(ratio, smallest + beside) - beside
        most = count_entries(spec, budget, options.format)
        return {"keep": most if options.keep is None else options.keep}

    def fit(self, task: Task) -> Fitted:
        """Train the full table, value its entries, and cut it once."""
        fitted = task.train(FullEmbedding(self.spec, seed=self.seed))
        learnt = fitted.network.table.weight
        leaving = Leaving(learnt, self.choose_fills(as_float32(learnt)), self.spec)
        fitted.network.table = leaving
        asked, judge = self.asked, task.judge(fitted.network)
        self.values = value_entries(
            leaving, judge, asked.batches, asked.steps, self.seed
        )
        # The judge asks in the precision of training.
        fitted.network.float()
        self.to(learnt.device)
        self.weight.data = learnt.detach().float()
        self.settle(self.values)
        fitted.network.table = self
        return fitted

    def choose_fills(self, weight: np.ndarray) -> np.ndarray:
        """What stands for the entries that are cut, float32 (fields, dim)."""
        if self.asked.fill == "mean":
            return average_fields(weight, self.spec)
        return np.zeros((len(self.spec.field_starts) - 1, weight.shape[1]), np.float32)

    def settle(self, values: np.ndarray) -> None:
        """Keep the entries of the largest values, of equal ones the first."""
        sizes = torch.from_numpy(values if self.asked.signed else np.abs(values))
        place = self.weight.device
        self.mask = keep_largest(sizes, self.keep).to(place)
        fills = self.choose_fills(as_float32(self.weight))
        self.fills = torch.from_numpy(fills).to(place)

    def deploy(self) -> tuple[Tensor, Tensor]:
        """The entries that are deployed, and what stands for the others."""
        if self.mask is not None and self.fills is not None:
            return self.mask, self.fills
        fills = torch.from_numpy(self.choose_fills(as_float32(self.weight)))
        fills = fills.to(self.weight.device)
        far = (self.weight.detach() - fills[self.field]).abs()
        return keep_largest(far, self.keep), fills

    def embed(self, ids: Tensor) -> Tensor:
        """Rows as they are; in eval mode, what would be deployed now."""
        rows = pick_rows(ids, self.weight, sparse=self.regime.sparse)
        if self.training:
            return rows
        mask, fills = self.deploy()
        if self.asked.format == "float16":
            rows = rows.half().to(rows.dtype)
        return torch.where(mask[ids], rows, fills[self.field[ids]].to(rows.dtype))

    def freeze(self) -> SparseLayout:
        """The entries that are deployed, and the fills of each field."""
        mask, fills = (part.cpu().numpy() for part in self.deploy())
        weight = round_values(as_float32(self.weight), self.asked.format)
        height = default_block(self.embedding_dim)
        if self.asked.fill == "zero":
            return SparseLayout.from_mask(weight, mask, height)
        starts = self.spec.field_starts[:-1] if len(fills) > 1 else None
        return SparseLayout.from_mask(weight, mask, height, fills, starts)
