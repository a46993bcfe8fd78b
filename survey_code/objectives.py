"""What a network is to learn: to predict clicks, or to rank items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from survey_code.checks import check_number, check_range
from survey_code.data.tasks import ClickData, ClickRows, InteractionData
from survey_code.embedding import Diverged, Network
from survey_code.metrics import add_up_hits, measure_clicks
from survey_code.models import ClickNetwork, RankingNetwork
from survey_code.ranking import choose_top
from survey_code.sampled_softmax import sampled_softmax
from survey_code.spec import as_integers
from survey_code.training import Batch, TrainingSettings


class ClickObjective:
    """Predict clicks: binary cross-entropy, judged by AUC.

    Parameters
    ----------
    data : ClickData
    settings : TrainingSettings
    """

    monitor = "auc"

    def __init__(self, data: ClickData, settings: TrainingSettings) -> None:
        self.data = data
        self.settings = settings
        self._train = to_device(data.train, settings.device)
        self._valid = to_device(data.valid, settings.device)
        self.steps = -(-len(data.train) // settings.batch_size)

    def batches(self, rng: np.random.Generator) -> Iterator[Batch]:
        """Rows in a fresh random order."""
        yield from split_rows(self._train, self.settings.batch_size, rng)

    def validation_batches(self, rng: np.random.Generator) -> Iterator[Batch]:
        """Validation rows in random order, again and again."""
        if not len(self._valid[1]):
            raise ValueError(f"{self.data.name} has no validation rows to search on")
        while True:
            yield from split_rows(self._valid, self.settings.batch_size, rng)

    def loss(self, network: ClickNetwork, batch: Batch) -> Tensor:
        """Cross-entropy, plus L2 of the vectors read, plus the table's penalty."""
        ids, labels = batch
        vectors = network.read(ids)  # (batch, fields, dim)
        logits = network.score(vectors, ids)
        labels = labels.to(logits.dtype)
        loss = functional.binary_cross_entropy_with_logits(logits, labels)
        if self.settings.l2:
            loss = loss + self.settings.l2 / 2 * vectors.square().sum() / len(ids)
        if self.settings.table_l2:
            loss = loss + self.settings.table_l2 / 2 * squared_length(network)
        return loss + network.table.penalty()

    def row_losses(self, network: ClickNetwork, batch: Batch) -> Tensor:
        """Cross-entropy of each row, shape (batch,)."""
        ids, labels = batch
        logits = network.score(network.read(ids), ids)
        return functional.binary_cross_entropy_with_logits(
            logits, labels.to(logits.dtype), reduction="none"
        )

    def labels(self, batch: Batch) -> Tensor:
        """Whether each row was clicked, shape (batch,)."""
        return batch[1]

    def validate(self, network: ClickNetwork) -> dict[str, float]:
        """AUC and log-loss on the validation rows."""
        return evaluate_clicks(network, self.data.valid, self.settings.device)


def to_device(rows: ClickRows, device: str) -> tuple[Tensor, Tensor]:
    """Ids (rows, fields) and labels (rows,) as tensors on a device."""
    ids = torch.from_numpy(np.array(rows.ids, dtype=np.int64))
    labels = torch.from_numpy(np.array(rows.labels, dtype=np.float32))
    return ids.to(device), labels.to(device)


def split_rows(
    rows: tuple[Tensor, Tensor], batch_size: int, rng: np.random.Generator
) -> Iterator[Batch]:
    """Batches of rows in a random order that is the same on every device."""
    ids, labels = rows
    order = torch.from_numpy(rng.permutation(len(labels))).to(ids.device)
    for chosen in order.split(batch_size):
        yield ids[chosen], labels[chosen]


def squared_length(network: ClickNetwork) -> Tensor:
    """Sum of squares of the whole table and of the weights per id."""
    length = network.table.squared_length()
    if network.first_order is not None:
        length = length + network.first_order.weight.square().sum()
    return length


@torch.no_grad()
def predict_clicks(
    network: Network, rows: ClickRows, device: str = "cpu", chunk: int = 16384
) -> np.ndarray:
    """Logits of rows, shape (rows,), with the network in eval mode."""
    was_training = network.training
    network.eval()
    ids, _ = to_device(rows, device)
    logits = [network(part).cpu() for part in ids.split(chunk)]
    network.train(was_training)
    return torch.cat(logits).numpy()


def evaluate_clicks(
    network: Network, rows: ClickRows, device: str = "cpu"
) -> dict[str, float]:
    """AUC and log-loss of a network on rows."""
    return measure_clicks(rows.labels, predict_clicks(network, rows, device))


def evaluate_apart(
    network: Network,
    rows: ClickRows,
    groups: Mapping[str, np.ndarray],
    device: str = "cpu",
) -> dict[str, dict[str, float]]:
    """AUC and log-loss on groups of rows, by their names.

    Parameters
    ----------
    network : Network
    rows : ClickRows
    groups : dict of ndarray of bool, shape (rows,)
        Which rows belong to each; they may overlap.
    device : str, default "cpu"

    Raises
    ------
    ValueError
        If a mask is not such an array, or a group has only one kind of label.
    """
    for name, mask in groups.items():
        if mask.dtype != bool or mask.shape != rows.labels.shape:
            raise ValueError(
                f"group {name!r} must be a mask of bool, shape {rows.labels.shape}, "
                f"got {mask.dtype} of shape {mask.shape}"
            )
    logits = predict_clicks(network, rows, device)
    return {
        name: measure_clicks(rows.labels[mask], logits[mask])
        for name, mask in groups.items()
    }


class RankingObjective:
    """Rank the items a user met above others: BPR or sampled softmax.

    An epoch goes once over the training pairs in random order; or, as LightGCN's
    authors do, draws as many users, all alike, and for each one of its items.
    Negative items are drawn uniformly from all items; few of them are positives by
    chance (on Gowalla 1 in 1,500).

    Parameters
    ----------
    data : InteractionData
    settings : TrainingSettings
    loss : {"bpr", "softmax"}
        BPR compares each positive with one negative of its own; sampled softmax
        with `negatives` that all rows of a batch share.
    negatives : int
    temperature : float
        Scores are divided by it in the softmax.
    draws : {"pairs", "users"}
        What an epoch draws alike.

    Raises
    ------
    ValueError
        If the loss or what is drawn is unknown, or a number is out of its range.
    """

    monitor = "recall@20"

    def __init__(
        self,
        data: InteractionData,
        settings: TrainingSettings,
        loss: str = "bpr",
        negatives: int = 4096,
        temperature: float = 0.1,
        draws: str = "pairs",
    ) -> None:
        if loss not in ("bpr", "softmax"):
            raise ValueError(f"loss must be 'bpr' or 'softmax', got {loss!r}")
        if draws not in ("pairs", "users"):
            raise ValueError(f"draws must be 'pairs' or 'users', got {draws!r}")
        self.data = data
        self.settings = settings
        self.kind = loss
        self.negatives = check_range("negatives", negatives, 1)
        self.temperature = check_number("temperature", temperature, above=0)
        # Where each user's pairs begin, who has some, and how many, once sorted.
        self._users: tuple[np.ndarray, np.ndarray] | None = None
        pairs = np.array(data.train)
        if draws == "users":
            pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
            _, first, count = np.unique(
                pairs[:, 0], return_index=True, return_counts=True
            )
            self._users = first, count
        self._pairs = torch.from_numpy(pairs).to(settings.device)
        self._lists: tuple[PairLists, PairLists] | None = None
        self.steps = -(-len(data.train) // settings.batch_size)

    def batches(self, rng: np.random.Generator) -> Iterator[Batch]:
        """Users, positive items and negative items, all as ids."""
        device, size = self._pairs.device, self.settings.batch_size
        order = torch.from_numpy(self._draw_pairs(rng)).to(device)
        # A whole epoch's negatives at once: a transfer a step would keep a GPU
        # waiting longer than the step takes.
        shape = len(order) if self.kind == "bpr" else (self.steps, self.negatives)
        drawn = self._draw_items(rng, shape)
        negatives = drawn.split(size) if self.kind == "bpr" else drawn
        for chosen, others in zip(order.split(size), negatives, strict=True):
            users, positives = self._pairs[chosen].unbind(1)
            yield users, positives, others

    def validation_batches(self, rng: np.random.Generator) -> Iterator[Batch]:
        """Held-out pairs in random order, again and again."""
        held_out = torch.from_numpy(np.array(self.data.valid)).to(self._pairs.device)
        while True:
            chosen = rng.integers(len(held_out), size=self.settings.batch_size)
            users, positives = held_out[torch.from_numpy(chosen)].unbind(1)
            drawn = len(chosen) if self.kind == "bpr" else self.negatives
            yield users, positives, self._draw_items(rng, drawn)

    def _draw_pairs(self, rng: np.random.Generator) -> np.ndarray:
        """Places of an epoch's pairs."""
        if self._users is None:
            return rng.permutation(len(self._pairs))
        first, count = self._users
        users = rng.integers(len(first), size=len(self._pairs))
        places: np.ndarray = first[users] + rng.integers(count[users])
        return places

    def _draw_items(
        self, rng: np.random.Generator, shape: int | tuple[int, ...]
    ) -> Tensor:
        """Uniform item ids."""
        drawn = rng.integers(self.data.num_users, self.data.num_embeddings, size=shape)
        return torch.from_numpy(drawn).to(self._pairs.device)

    def loss(self, network: RankingNetwork, batch: Batch) -> Tensor:
        """BPR or softmax, plus L2 of the vectors read, plus the table's penalty."""
        (users, positives, negatives), read = network.represent(*batch)
        if self.kind == "bpr":
            good, others = (users * positives).sum(1), (users * negatives).sum(1)
            loss = functional.softplus(others - good).mean()
        else:
            loss = sampled_softmax(users, positives, negatives, self.temperature)
        if self.settings.l2:
            loss = loss + self.settings.l2 / 2 * read / len(users)
        if self.settings.table_l2:
            length = network.table.squared_length()
            loss = loss + self.settings.table_l2 / 2 * length
        return loss + network.table.penalty()

    def row_losses(self, network: RankingNetwork, batch: Batch) -> Tensor:
        """None: a pair is judged among others."""
        return torch.zeros(0)

    def labels(self, batch: Batch) -> Tensor:
        """None: a batch has no rows that are clicked or not."""
        return torch.zeros(0)

    def validate(self, network: RankingNetwork) -> dict[str, float]:
        """Recall@20 and NDCG@20 on the held-out pairs."""
        if self._lists is None:
            sizes = (self.data.num_users, self.data.num_items)
            self._lists = list_pairs(
                self.data.train, self.data.valid, *sizes, self._pairs.device
            )
        return rank_all(*represent_all(network), *self._lists)


# Scores of a batch of users, ranked on a processor: 4 MB of float32.
CACHED_SCORES = 2**20


@torch.no_grad()
def evaluate_ranking(
    network: RankingNetwork,
    seen: np.ndarray,
    held_out: np.ndarray,
    k: int = 20,
    chunk: int | None = None,
) -> dict[str, float]:
    """Rank all items for every user, the seen ones left out; ties in random order.

    Parameters
    ----------
    network : RankingNetwork
    seen, held_out : ndarray of int64, shape (pairs, 2)
        Pairs to mask, and pairs to find again.
    k : int, default 20
    chunk : int, optional
        Users per batch; by default as the cache has room for, on a GPU 2,048.

    Returns
    -------
    dict
        ``"recall@k"`` and ``"ndcg@k"``, means over users with held-out items.

    Raises
    ------
    ValueError
        If nobody has a held-out item, or pairs are not such integers.  If a vector is
        not finite: a diverged run must not look like a weak one.
    IndexError
        If a pair is not one of a user and an item.
    """
    users, items = represent_all(network)
    lists = list_pairs(seen, held_out, len(users), len(items), users.device)
    return rank_all(users, items, *lists, k, chunk)


@torch.no_grad()
def represent_all(network: RankingNetwork) -> tuple[Tensor, Tensor]:
    """Finite vectors of all users and of all items, of the network in eval mode."""
    was_training = network.training
    network.eval()
    users, items = network.represent_all()
    network.train(was_training)
    refuse_infinite(users, items)
    return users, items


def rank_all(
    users: Tensor,
    items: Tensor,
    masked: PairLists,
    wanted: PairLists,
    k: int = 20,
    chunk: int | None = None,
) -> dict[str, float]:
    """`evaluate_ranking` of vectors, and of pairs that are sorted by user already."""
    k = check_range("k", k, 1)
    if chunk is None:
        chunk = max(1, CACHED_SCORES // len(items)) if users.is_cpu else 2048
    check_range("chunk", chunk, 1)
    totals: dict[str, float] = {}
    for start in range(0, len(users), chunk):
        span = (start, min(start + chunk, len(users)))
        for name, value in rank_some(users, items, span, masked, wanted, k).items():
            totals[name] = totals.get(name, 0.0) + value
    if not (found := totals.pop("users")):
        raise ValueError("no user has a held-out item to find again")
    return {name: value / found for name, value in totals.items()}


def refuse_infinite(users: Tensor, items: Tensor) -> None:
    """Raise Diverged where a vector is NaN or infinite."""
    if not all(vectors.isfinite().all() for vectors in (users, items)):
        raise Diverged("vectors of users or items are NaN or infinite")


def list_pairs(
    seen: np.ndarray, held_out: np.ndarray, users: int, items: int, device: torch.device
) -> tuple[PairLists, PairLists]:
    """The two kinds of pairs of `evaluate_ranking`, checked, as lists of each user."""
    again = drop_repeats(check_pairs_of("held_out", held_out, users, items))
    masked = PairLists(check_pairs_of("seen", seen, users, items), users, device)
    return masked, PairLists(again, users, device)


def check_pairs_of(name: str, pairs: np.ndarray, users: int, items: int) -> np.ndarray:
    """Pairs of a user and an item, as int64; or the errors of `evaluate_ranking`."""
    given = as_integers(pairs, name) if len(pairs) else np.zeros((0, 2), np.int64)
    if given.ndim != 2 or given.shape[1] != 2:
        raise ValueError(f"{name} must have shape (pairs, 2), got {given.shape}")
    ends = ((0, users, "user"), (users, users + items, "item"))
    for column, (low, high, what) in zip(given.T, ends, strict=True):
        # A number below its field's would be read from the end of it.
        wrong = column[(column < low) | (column >= high)]
        if wrong.size:
            raise IndexError(
                f"{name}: {what} ids are from {low} to {high - 1}, got {wrong[0]}"
            )
    return given


def drop_repeats(pairs: np.ndarray) -> np.ndarray:
    """Each pair once: an item that is held out twice can be found but once."""
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    pairs = pairs[order]
    new = np.ones(len(pairs), dtype=bool)
    new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return pairs[new]


def rank_some(
    users: Tensor,
    items: Tensor,
    span: tuple[int, int],
    masked: PairLists,
    wanted: PairLists,
    k: int,
) -> dict[str, float]:
    """Sums of the metrics over the users of a span, and how many they are."""
    own = users[slice(*span)]
    scores = own @ items.T  # (chunk, items)
    scores[masked.between(*span)] = -torch.inf
    relevant = torch.zeros_like(scores, dtype=torch.bool)
    relevant[wanted.between(*span)] = True
    chosen = choose_top(scores, k, own, items)
    return add_up_hits(chosen, relevant, wanted.counts[slice(*span)], k)


class PairLists:
    """Pairs sorted by user, so that those of a range of users are a slice."""

    def __init__(self, pairs: np.ndarray, num_users: int, device: torch.device) -> None:
        order = np.argsort(pairs[:, 0], kind="stable")
        users, items = pairs[order, 0], pairs[order, 1] - num_users
        counts = np.bincount(users, minlength=num_users)
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.counts = torch.from_numpy(counts).to(device)
        self.users = torch.from_numpy(users).to(device)
        self.items = torch.from_numpy(items).to(device)

    def between(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Row (from `start`) and column of each pair of users start .. stop - 1."""
        first, last = self.starts[start], self.starts[stop]
        return self.users[first:last] - start, self.items[first:last]
