"""NIS: a policy says how many of the most frequent ids get each block of columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.checks import check_range
from survey_code.embedding import (
    CompressedEmbedding,
    TrainingStep,
    draw_normal,
    pick_rows,
)
from survey_code.method import Found, Judge, Searched
from survey_code.mixed_dimension.architecture_search.bilevel import step_once
from survey_code.mixed_dimension.prefix import (
    LengthOptions,
    PrefixEmbedding,
    prefix_overhead,
)
from survey_code.mixed_dimension.search import WARM_UP, choose_within, rank_by_frequency
from survey_code.options import option
from survey_code.spec import TableSpec

# Architectures that are compared on each validation batch.
TRIED = 4


class NISOptions(LengthOptions):
    """Options of `NIS`."""

    sizes: str = option(
        "multi",
        "whether each column block has a decision of its own, or one is made for all",
        choices=("multi", "single"),
    )
    policy_rate: float = option(
        0.1, "learning rate of the policy, which Adam moves", above=0, tune=(0.1, 0.03)
    )
    price: float = option(
        0.3, "price of as many bytes too many as the budget has",
        above=0, tune=(0.3, 0.1),
    )  # fmt: skip
    columns: int = option(4, "column blocks", low=1, tune=(4, 16))
    draws: int = option(
        24, "architectures from the policy, of which the metric chooses in the end",
        low=1, high=10_000,
    )  # fmt: skip


def cut_blocks(spec: TableSpec, columns: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """The table in blocks: rows by frequency, each end 1.4 times the last one's.

    Returns
    -------
    block : ndarray of int64, shape (num_embeddings,)
        Row block of each id, 0 for the most frequent.
    parts : list of ndarray
        Columns of each column block.
    """
    n = spec.num_embeddings
    ends = np.unique(np.ceil(n * 2.0 ** -(np.arange(16) / 2)).astype(np.int64))
    block = np.empty(n, dtype=np.int64)
    block[rank_by_frequency(spec)] = np.searchsorted(ends, np.arange(n), side="right")
    parts = np.array_split(np.arange(spec.embedding_dim), columns)
    return block, [part for part in parts if len(part)]


def list_candidates(blocks: int, parts: list[np.ndarray], sizes: str) -> np.ndarray:
    """What each candidate of each decision keeps.

    ``"multi"``: for each column block, how many row blocks keep it.  ``"single"``:
    one decision, how many row blocks keep how many column blocks.

    Returns
    -------
    ndarray of bool, shape (decisions, candidates, blocks, dim)
    """
    dim = sum(len(part) for part in parts)
    reach = np.arange(blocks) < np.arange(blocks + 1)[:, None]  # (candidates, blocks)
    if sizes == "multi":
        owns = np.stack([np.isin(np.arange(dim), part) for part in parts])
        return reach[None, :, :, None] & owns[:, None, None, :]
    ends = np.cumsum([len(part) for part in parts])
    wide = np.arange(dim) < ends[:, None]  # (widths, dim)
    both = reach[1:, None, :, None] & wide[None, :, None, :]
    return both.reshape(1, -1, blocks, dim)


def reinforce(logits: Tensor, picks: Tensor, rewards: Tensor) -> Tensor:
    """Estimate of the gradient of the mean reward, from a few draws.

    The baseline of each draw is the mean reward of the *other* draws, which does not
    depend on it: the estimate stays right on average.

    Parameters
    ----------
    logits : Tensor, shape (decisions, candidates)
    picks : Tensor of int64, shape (draws, decisions)
    rewards : Tensor, shape (draws,)
        Of at least two draws.

    Returns
    -------
    Tensor, shape of `logits`
    """
    draws = len(rewards)
    advantage = (rewards - rewards.mean()) * draws / (draws - 1)
    score = functional.one_hot(picks, logits.shape[1]) - logits.softmax(1)
    return (advantage[:, None, None] * score).mean(0)


class BlockSupernet(CompressedEmbedding):
    """A full table, read through the blocks that a policy keeps.

    Each step trains the table under one drawn architecture, and moves the policy by
    the rewards of a few more on a validation batch.
    """

    gauges = ("logits",)

    def __init__(self, spec: TableSpec, options: NISOptions, seed: int) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        block, parts = cut_blocks(spec, options.columns)
        self.block: Tensor
        self.kept: Tensor
        self.register_buffer("block", torch.from_numpy(block), persistent=False)
        rows = np.bincount(block)
        self.candidates = list_candidates(len(rows), parts, options.sizes)
        # Bytes of each candidate: (decisions, candidates).
        self.costs = 4 * np.einsum("kcbd,b->kc", self.candidates, rows)
        self.room = options.budget - block_overhead(spec, options)
        self.price = options.price
        shape = (spec.num_embeddings, spec.embedding_dim)
        self.weight = nn.Parameter(draw_normal(shape, spec.init_std, [seed, 0]))
        self.logits = nn.Parameter(torch.zeros(self.costs.shape))
        self.policy_optimizer = torch.optim.Adam([self.logits], lr=options.policy_rate)
        kept = torch.ones(len(rows), spec.embedding_dim)
        self.register_buffer("kept", kept, persistent=False)
        self.rng = np.random.default_rng([seed, 5])
        self.warm = False

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The table; the policy learns from rewards."""
        return [{"params": [self.weight], "lr": learning_rate}]

    def embed(self, ids: Tensor) -> Tensor:
        """Rows without the blocks that are not kept."""
        rows = pick_rows(ids, self.weight, sparse=self.regime.sparse)
        kept = self.kept[self.block[ids]]
        return rows * kept.to(rows.dtype)

    def draw(self) -> np.ndarray:
        """One candidate of each decision, from the policy: shape (decisions,)."""
        logits = self.logits.detach().cpu().numpy()
        return (logits + self.rng.gumbel(size=logits.shape)).argmax(1)

    def keep(self, picks: np.ndarray) -> None:
        """Read through these candidates' blocks from now on."""
        chosen = self.candidates[np.arange(len(picks)), picks].any(0)
        self.kept = torch.from_numpy(chosen.astype(np.float32)).to(self.block.device)

    def advance(self, progress: float) -> None:
        """After the warm-up, another architecture."""
        self.warm = progress >= WARM_UP
        if self.warm:
            self.keep(self.draw())

    def propose(self, draws: int) -> list[np.ndarray]:
        """Different choices that fit the budget, at most so many.

        The first is the most probable one; more and more noise leads from there to
        one of which the policy knows nothing.
        """
        scores = self.logits.detach().log_softmax(1).cpu().numpy()
        found: dict[bytes, np.ndarray] = {}
        for share in np.linspace(0, 1, draws):
            noise = self.rng.gumbel(size=scores.shape)
            mixed = (1 - share) * scores + share * noise
            picks = choose_within(mixed, self.costs, self.room)
            found.setdefault(picks.tobytes(), picks)
        return list(found.values())

    @torch.no_grad()
    def validation_step(self, step: TrainingStep) -> None:
        """The policy learns from rewards on one validation batch."""
        if not self.warm:
            return
        current, picks = self.kept, [self.draw() for _ in range(TRIED)]
        rewards = []
        for pick in picks:
            self.keep(pick)
            rewards.append(-float(step.validation_loss()) - self.overspent(pick))
        self.kept = current
        like = self.logits
        self.logits.grad = -reinforce(
            like,
            torch.from_numpy(np.stack(picks)).to(like.device),
            torch.tensor(rewards, dtype=like.dtype, device=like.device),
        )
        step_once(self.policy_optimizer)

    def overspent(self, picks: np.ndarray) -> float:
        """Price of the bytes beyond the budget."""
        cost = self.costs[np.arange(len(picks)), picks].sum()
        return float(self.price * max(0.0, cost / self.room - 1))


class NIS(PrefixEmbedding, Searched[NISOptions, BlockSupernet]):
    """Blocks of columns for the most frequent ids only (key ``nis``).

    The length found for a rarer id is never longer.

    Notes
    -----
    Joglekar et al., "Neural Input Search for Large Scale Recommendation Models" (KDD
    2020).  The paper projects each block to the full dimension; here a block fills
    its own columns.  The paper rewards the policy with the metric; here it learns
    from the validation loss, batch by batch, and the metric on all validation rows
    chooses among architectures drawn from it.
    """

    def __init__(self, spec: TableSpec, options: NISOptions, seed: int = 0) -> None:
        super().__init__(spec, options.lengths, seed)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: NISOptions) -> Found:
        """The budget, which must hold the smallest block."""
        check_range("columns", options.columns, 1, spec.embedding_dim)
        block, parts = cut_blocks(spec, options.columns)
        width = len(parts[-1] if options.sizes == "multi" else parts[0])
        smallest = 4 * int((block == 0).sum()) * width + block_overhead(spec, options)
        return {"budget": spec.require(ratio, smallest=smallest)}

    @classmethod
    def settle(
        cls, table: BlockSupernet, judge: Judge, spec: TableSpec, options: NISOptions
    ) -> Found:
        """Of architectures that fit the budget, the one of the best metric."""
        picks = table.propose(options.draws)
        if len(picks) > 1:
            marks = []
            for pick in picks:
                table.keep(pick)
                marks.append(judge.metric())
            picks = [picks[int(np.argmax(marks))]]
        table.keep(picks[0])
        # A row stores its kept columns as a prefix: the table is drawn anew, and the
        # columns of a fresh table are alike.
        widths = table.kept.sum(1).cpu().numpy().astype(np.int64)
        return {"lengths": widths[table.block.cpu().numpy()]}


def block_overhead(spec: TableSpec, options: NISOptions) -> int:
    """Bytes besides the numbers, at most: there are as many lengths as column blocks,
    and 0.
    """
    return prefix_overhead(spec, options.columns + 1)
