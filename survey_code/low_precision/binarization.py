"""Binarisation: each weight becomes one bit.

Three ways to get there: train real numbers and threshold them (`MedianCodes`),
search among the codes themselves (`DiscreteFiltering`), or train through a smooth
or pretended sign (`AnnealedCodes`, `GuidedCodes`, `LayerwiseCodes`).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import CompressedEmbedding, check_range, draw_normal
from survey_code.layouts import BinaryLayout
from survey_code.layouts.binary import pack_signs
from survey_code.layouts.layout import as_finite_table
from survey_code.models import graph_arrays, make_csr, propagate_layers
from survey_code.spec import TableSpec
from survey_code.training import History

RULES = ("median", "pph", "itq")
SCALES = ("none", "table", "row")


def code_bytes(spec: TableSpec, bits: int | None = None) -> int:
    """Bytes of all rows' codes, each padded to whole bytes."""
    return spec.num_embeddings * (-(-(bits or spec.embedding_dim) // 8))


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


# -- BCCF, PPH, ITQ: train, then threshold --------------------------------------


def center_at_median(table: np.ndarray, field_starts: np.ndarray) -> np.ndarray:
    """Subtract from each column its median, field by field.

    The signs of what is left split each column in half: every bit is 1 for as
    many ids as it is 0, and so says as much as a bit can.

    Parameters
    ----------
    table : ndarray of float32, shape (rows, dim)
    field_starts : ndarray of int64, shape (fields + 1,)

    Returns
    -------
    ndarray of float32, shape (rows, dim)

    Notes
    -----
    Zhou and Zha, "Learning Binary Codes for Collaborative Filtering" (KDD 2012).
    """
    centered = np.empty_like(table)
    for first, stop in itertools.pairwise(field_starts.tolist()):
        field = table[first:stop]
        centered[first:stop] = field - np.median(field, axis=0)
    return centered


def learn_rotation(table: np.ndarray, iterations: int = 50) -> np.ndarray:
    r"""A rotation after which rounding to signs loses little.

    Alternately the best codes for the rotation, :math:`B = \mathrm{sign}(W R)`,
    and the best rotation for the codes, :math:`R = U V^T` with
    :math:`U \Sigma V^T = W^T B`; neither step raises :math:`\|B - W R\|^2`.

    Parameters
    ----------
    table : ndarray of float32, shape (rows, dim)
    iterations : int, default 50

    Returns
    -------
    ndarray of float64, shape (dim, dim)
        Orthogonal: inner products of rows stay what they were.

    Notes
    -----
    Gong and Lazebnik, "Iterative Quantization" (CVPR 2011), started from a fixed
    random rotation; without their projection on principal components, because
    the number of bits is the dimension.
    """
    dim = table.shape[1]
    start = np.random.default_rng(0).normal(size=(dim, dim))
    rotation = np.linalg.qr(start).Q
    for _ in range(iterations):
        codes = np.where(table @ rotation >= 0, 1.0, -1.0)  # (rows, dim)
        left, _, right = np.linalg.svd(table.T @ codes)
        rotation = left @ right
    return rotation


def fit_scales(table: np.ndarray, codes: np.ndarray, scale: str) -> np.ndarray | None:
    """The scales that bring codes of +1 and -1 closest to a table.

    For one row the error ``|w - a b|^2`` is least at ``a = mean(w * b)``, which is
    ``mean(|w|)`` where b is the sign of w; for the table at the mean over it.

    Returns
    -------
    ndarray of float32, shape (rows, 1) or (1, 1), or None for ``scale="none"``
    """
    check_choice("scale", scale, SCALES)
    if scale == "none":
        return None
    products = table.astype(np.float64) * codes
    axis = None if scale == "table" else 1
    scales: np.ndarray = products.mean(axis=axis, keepdims=True).astype(np.float32)
    return scales


def split_magnitudes(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two bits for each row's magnitude: the nearest of four levels.

    The levels are the 1/8, 3/8, 5/8 and 7/8 quantiles, the middles of quarters.

    Parameters
    ----------
    lengths : ndarray of float32, shape (rows,)

    Returns
    -------
    packed : ndarray of uint8, shape (ceil(rows / 4),)
    levels : ndarray of float32, shape (4,)
    """
    levels = np.quantile(lengths, np.arange(1, 8, 2) / 8).astype(np.float32)
    codes = np.abs(lengths[:, None] - levels).argmin(axis=1).astype(np.uint8)
    padded = np.zeros(-(-len(codes) // 4) * 4, dtype=np.uint8)
    padded[: len(codes)] = codes
    spread = padded.reshape(-1, 4) << np.array([0, 2, 4, 6], dtype=np.uint8)
    return np.bitwise_or.reduce(spread, axis=1), levels


def as_half(scales: np.ndarray) -> np.ndarray:
    """Scales as float16, or a ValueError where they do not fit."""
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(f"float16 holds scales up to 65504, got {scales.max():.6g}")
    return half


class MedianCodes:
    """Two stages: a trained table, then one bit per entry (key ``bccf``).

    ``rule="median"`` (BCCF) thresholds each column at its median, field by field.
    ``rule="itq"`` rotates the table first and takes signs; rows read are those of
    the rotated table, so this is for networks that compare vectors.
    ``rule="pph"`` takes signs, the direction of a row, and two more bits for its
    magnitude.

    Notes
    -----
    Zhou and Zha (KDD 2012); Gong and Lazebnik (CVPR 2011); Zhang et al.,
    "Preference Preserving Hashing for Efficient Recommendation" (SIGIR 2014).
    BCCF's balance penalty and PPH's constant norm act in training; here the table
    is the one that the usual loop trains, compared by cosine on top-N data, which
    is PPH's constant norm.
    """

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        rule: str = "median",
        scale: str = "table",
        half: bool = False,
    ) -> dict[str, Any]:
        """The one size: a bit per entry, and the scales."""
        check_choice("rule", rule, RULES)
        check_choice("scale", scale, SCALES)
        rows, number = spec.num_embeddings, 2 if half else 4
        extra = {"none": 0, "table": number, "row": rows * number}[scale]
        if rule == "pph":
            extra = -(-rows // 4) + 16
        spec.require(ratio, smallest=code_bytes(spec) + extra)
        return {"rule": rule, "scale": scale, "half": half}

    @classmethod
    def compress(
        cls,
        weight: Any,
        *,
        rule: str = "median",
        scale: str = "table",
        half: bool = False,
        spec: TableSpec | None = None,
    ) -> BinaryLayout:
        """Binarise an (n, d) table.

        Parameters
        ----------
        weight : array or tensor, shape (n, d)
        rule : {"median", "pph", "itq"}
        scale : {"none", "table", "row"}
            What the codes are multiplied by when rows are read; ``rule="pph"``
            has its own four levels instead.
        half : bool, default False
            Store scales as float16.
        spec : TableSpec, optional
            Its fields each have their own medians.

        Raises
        ------
        ValueError
            If an option is unknown or the table is not 2-D and finite.
        """
        check_choice("rule", rule, RULES)
        table = as_finite_table(weight)
        if rule == "pph":
            magnitudes, levels = split_magnitudes(np.abs(table).mean(axis=1))
            packed = pack_signs(table)
            return BinaryLayout(packed, table.shape[1], None, magnitudes, levels)
        if rule == "itq":
            values = table = (table @ learn_rotation(table)).astype(np.float32)
        else:
            starts = np.array([0, len(table)]) if spec is None else spec.field_starts
            values = center_at_median(table, starts)
        scales = fit_scales(table, np.where(values >= 0, 1.0, -1.0), scale)
        if half and scales is not None:
            scales = as_half(scales)
        return BinaryLayout.from_signs(values, scales)


# -- DCF: search among the codes -------------------------------------------------


def descend_bit(
    own: Tensor, column: Tensor, errors: Tensor, places: Tensor, pull: Tensor
) -> Tensor:
    r"""The best value of one bit of every user, all other bits held still.

    With :math:`e_{ij} = S_{ij} - b_i \cdot d_j`, bit k of user i becomes the sign of
    :math:`\sum_j d_{jk} (e_{ij} + b_{ik} d_{jk}) + \alpha x_{ik}`, and stays where
    that is 0.  Users do not meet in the sum, so all move at once.  Items move in
    the same way, with the roles exchanged.

    Parameters
    ----------
    own : Tensor of int32, shape (users,)
        This bit of every user, +1 or -1.
    column : Tensor of int32, shape (pairs,)
        The same bit of each pair's item.
    errors : Tensor of int32, shape (pairs,)
        Brought up to date in place.
    places : Tensor of int64, shape (pairs,)
        Each pair's user.
    pull : Tensor of float64, shape (users,)
        This column of alpha X.

    Returns
    -------
    Tensor of int32, shape (users,)

    Notes
    -----
    Zhang et al., "Discrete Collaborative Filtering" (SIGIR 2016), equation of the
    B-subproblem.  Errors are integers: their sums are the same in any order.
    """
    without = errors + own[places] * column  # (pairs,)
    gain = pull + torch.zeros_like(own).index_add_(0, places, column * without)
    best = torch.where(gain == 0, own, torch.where(gain > 0, 1, -1).to(own.dtype))
    errors -= (best - own)[places] * column
    return best


def decorrelate(codes: Tensor, generator: torch.Generator) -> Tensor:
    r"""The balanced, uncorrelated real matrix closest to codes.

    Maximises :math:`\mathrm{tr}(B^T X)` under :math:`1^T X = 0` and
    :math:`X^T X = m I`: with the centred codes :math:`P \Sigma Q^T`,
    :math:`X = \sqrt{m} P Q^T`.  Directions in which the codes do not vary are
    filled at random.

    Parameters
    ----------
    codes : Tensor, shape (m, bits), m > bits
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    Tensor of float64, shape (m, bits)
    """
    m = len(codes)
    centered = codes.double() - codes.double().mean(0)
    left, sizes, right = torch.linalg.svd(centered, full_matrices=False)
    empty = sizes <= 1e-9 * max(float(sizes[0]), 1.0)
    constant = torch.full((m, 1), m**-0.5, dtype=left.dtype, device=left.device)
    taken = torch.cat([constant, left[:, ~empty]], dim=1)
    drawn = torch.randn(m, int(empty.sum()), generator=generator, dtype=left.dtype)
    basis = torch.linalg.qr(torch.cat([taken, drawn.to(left.device)], dim=1)).Q
    left[:, empty] = basis[:, taken.shape[1] :]
    return m**0.5 * left @ right


def spectral_codes(
    pairs: np.ndarray, num_users: int, num_ids: int, bits: int, seed: int, device: str
) -> list[Tensor]:
    """Signs of real vectors that vary slowly over the graph: a start for DCF.

    The leading eigenvectors of the normalised adjacency matrix, by subspace
    iteration, turned at random so that all bits weigh the same.

    Returns
    -------
    list of two Tensors of int32, shapes (bits, users) and (bits, items)
    """
    starts, columns, values = graph_arrays(pairs, num_ids)
    graph = make_csr(starts, columns, values).to(device)
    vectors = draw_normal((num_ids, bits), 1.0, [seed, 2]).to(device)
    for _ in range(20):
        # Adding the vectors themselves keeps negative eigenvalues in their place.
        vectors = torch.linalg.qr(graph @ vectors + vectors).Q
    turn = torch.linalg.qr(draw_normal((bits, bits), 1.0, [seed, 3])).Q
    vectors = vectors @ turn.to(device)
    parts = vectors[:num_users], vectors[num_users:]
    return [
        torch.where(part >= part.median(0).values, 1, -1).T.to(torch.int32).contiguous()
        for part in parts
    ]


def draw_unobserved(
    pairs: np.ndarray, num_users: int, num_items: int, rng: np.random.Generator
) -> np.ndarray:
    """One item that the user has not met, for each observed pair.

    Parameters
    ----------
    pairs : ndarray of int64, shape (pairs, 2)
        Users and items, both counted from 0.

    Returns
    -------
    ndarray of int64, shape (at most pairs, 2)
        Pairs of users who have met nearly everything are left out after ten draws.
    """
    known = np.sort(pairs[:, 0] * num_items + pairs[:, 1])
    drawn = pairs[:, 0] * num_items + rng.integers(num_items, size=len(pairs))
    for _ in range(10):
        met = known[np.searchsorted(known, drawn).clip(max=len(known) - 1)] == drawn
        again = rng.integers(num_items, size=int(met.sum()))
        drawn[met] = pairs[met, 0] * num_items + again
    met = known[np.searchsorted(known, drawn).clip(max=len(known) - 1)] == drawn
    return np.stack(np.divmod(drawn[~met], num_items), axis=1)


class DiscreteFiltering(CompressedEmbedding):
    r"""DCF: codes found by coordinate descent, bit after bit (key ``dcf``).

    Minimises :math:`\sum (S_{ij} - b_i \cdot d_j)^2 - 2 \alpha \mathrm{tr}(B^T X)
    - 2 \alpha \mathrm{tr}(D^T Y)`, where X and Y are balanced and uncorrelated.
    An observed pair has S = r, an unobserved one -r (r bits); as many unobserved
    pairs as observed ones are drawn anew each round.

    Parameters
    ----------
    spec : TableSpec
    bits : int, optional
        Length of a code; by default the embedding dimension.
    rounds : int, default 20
    sweeps : int, default 3
        At most, over the bits of users and then of items, in a round.
    balance : float, default 0.001
        The factor alpha.
    seed : int, default 0

    Notes
    -----
    Zhang et al., "Discrete Collaborative Filtering" (SIGIR 2016).  Their start is
    a real-valued solution of the same problem; here it is a spectral one.  The
    objective falls within a round, and changes with the drawn pairs between two.
    """

    def __init__(
        self,
        spec: TableSpec,
        *,
        bits: int | None = None,
        rounds: int = 20,
        sweeps: int = 3,
        balance: float = 1e-3,
        seed: int = 0,
    ) -> None:
        bits = spec.embedding_dim if bits is None else bits
        check_range("bits", bits, 1, 32 * spec.embedding_dim)
        check_range("rounds", rounds, 1, 10**6)
        check_range("sweeps", sweeps, 1, 10**6)
        if not balance >= 0:
            raise ValueError(f"balance must be a number from 0 up, got {balance!r}")
        super().__init__(spec.num_embeddings, bits)
        self.rounds, self.sweeps, self.balance = rounds, sweeps, balance
        self.seed = seed
        self.spec = spec
        self.codes: Tensor
        self.scale: Tensor
        drawn = np.random.default_rng([seed, 0]).integers(
            2, size=(spec.num_embeddings, bits)
        )
        self.register_buffer("codes", torch.from_numpy(2 * drawn - 1).to(torch.int8))
        self.register_buffer("scale", torch.full((1, 1), spec.init_std))
        # The objective after each step of each round.
        self.objective: list[list[float]] = []

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        bits: int | None = None,
        rounds: int = 20,
        sweeps: int = 3,
        balance: float = 1e-3,
    ) -> dict[str, Any]:
        """Codes of `bits` bits; more are taken only where they are asked for."""
        bits = spec.embedding_dim if bits is None else bits
        check_range("bits", bits, 1, 32 * spec.embedding_dim)
        spec.require(ratio, smallest=code_bytes(spec, bits) + 4)
        return {"bits": bits, "rounds": rounds, "sweeps": sweeps, "balance": balance}

    def fit(self, task: Any) -> Any:
        """Coordinate descent over users and items in turn."""
        device = task.trial.settings.device
        users = task.data.num_users
        if min(users, self.num_embeddings - users) <= self.embedding_dim:
            raise ValueError(
                f"{self.embedding_dim} bits need more than {self.embedding_dim} users "
                f"and items, got {users} and {self.num_embeddings - users}"
            )
        codes = self.descend(task.data.train, users, device)
        self.to(device)
        self.codes.copy_(torch.cat(codes, dim=1).T)
        # a^2 b.d is then the prediction in units of the target r.
        self.scale.fill_(self.embedding_dim**-0.5)
        network = task.build_network(self).to(device).eval()
        losses = [{"train_loss": steps[-1]} for steps in self.objective]
        network.history = History(epochs=losses, best=len(losses) - 1)
        return network

    def descend(
        self, pairs: np.ndarray, num_users: int, device: str = "cpu"
    ) -> list[Tensor]:
        """Codes of users and items, int32 of shapes (bits, users), (bits, items)."""
        codes = spectral_codes(
            pairs, num_users, self.num_embeddings, self.embedding_dim, self.seed, device
        )
        rng = np.random.default_rng([self.seed, 1])
        generator = torch.Generator().manual_seed(self.seed)
        observed = pairs - [0, num_users]
        targets = [decorrelate(side.T, generator).T for side in codes]
        self.objective = []
        for _ in range(self.rounds):
            unobserved = draw_unobserved(
                observed, num_users, self.num_embeddings - num_users, rng
            )
            places, errors = self._compare(observed, unobserved, codes)
            steps = [self._measure(errors, codes, targets)]
            for own, other in ((0, 1), (1, 0)):
                for _ in range(self.sweeps):
                    flips = self._sweep(own, other, codes, targets, places, errors)
                    steps.append(self._measure(errors, codes, targets))
                    if not flips:
                        break
            targets = [decorrelate(side.T, generator).T for side in codes]
            steps.append(self._measure(errors, codes, targets))
            self.objective.append(steps)
        return codes

    def _compare(
        self, observed: np.ndarray, unobserved: np.ndarray, codes: list[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Users and items of all pairs, and the errors of their products."""
        device, bits = codes[0].device, self.embedding_dim
        pairs = torch.from_numpy(np.concatenate([observed, unobserved])).to(device)
        places = [pairs[:, side].contiguous() for side in (0, 1)]
        errors = torch.full((len(pairs),), bits, dtype=torch.int32, device=device)
        errors[len(observed) :] = -bits
        for k in range(bits):
            errors -= codes[0][k][places[0]] * codes[1][k][places[1]]
        return places, errors

    def _sweep(
        self,
        own: int,
        other: int,
        codes: list[Tensor],
        targets: list[Tensor],
        places: list[Tensor],
        errors: Tensor,
    ) -> int:
        """Every bit of one side once; returns how many flipped."""
        flips = codes[own].new_zeros(())
        for k in range(self.embedding_dim):
            column = codes[other][k][places[other]]
            pull = self.balance * targets[own][k]
            best = descend_bit(codes[own][k], column, errors, places[own], pull)
            flips += (best != codes[own][k]).sum()
            codes[own][k] = best
        return int(flips)

    def _measure(
        self, errors: Tensor, codes: list[Tensor], targets: list[Tensor]
    ) -> float:
        """The objective."""
        fit = errors.double().square().sum()
        for side, target in zip(codes, targets):
            fit -= 2 * self.balance * (side * target).sum()
        return float(fit)

    def embed(self, ids: Tensor) -> Tensor:
        """Codes times the scale."""
        return self.codes[ids].float() * self.scale

    def freeze(self) -> BinaryLayout:
        """The codes, and one scale."""
        return BinaryLayout.from_signs(
            self.codes.cpu().numpy(), self.scale.cpu().numpy().copy()
        )


# -- CIGAR, HashGNN, BiGeaR: train through a sign -----------------------------------


def take_signs(values: Tensor) -> Tensor:
    """+1 where a value is not negative, else -1."""
    return torch.where(values >= 0, 1.0, -1.0)


def straight_through(values: Tensor) -> Tensor:
    """Signs forward, the gradient as if nothing had happened backward."""
    return values + (take_signs(values) - values).detach()


class PropagatedEmbedding(CompressedEmbedding):
    """A trained table whose rows may spread over the graph before they are read.

    Parameters
    ----------
    spec : TableSpec
        Its interactions are the graph.
    layers : int, optional
        Steps over the graph; 0 reads the rows themselves.  By default 1 where
        there are interactions, else 0.
    seed : int

    Raises
    ------
    ValueError
        If there are layers but no interactions.
    """

    def __init__(self, spec: TableSpec, layers: int | None, seed: int) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.layers = choose_layers(spec, layers, default=1)
        self.starts: Tensor
        self.columns: Tensor
        self.edges: Tensor
        if self.layers:
            assert spec.interactions is not None
            parts = graph_arrays(spec.interactions, spec.num_embeddings)
            for name, part in zip(("starts", "columns", "edges"), parts):
                self.register_buffer(name, part, persistent=False)
        shape = (spec.num_embeddings, spec.embedding_dim)
        self.weight = nn.Parameter(draw_normal(shape, spec.init_std, [seed, 0]))

    def spread(self) -> list[Tensor]:
        """The table, and what it becomes layer by layer."""
        if not self.layers:
            return [self.weight]
        graph = make_csr(self.starts, self.columns, self.edges, check=False)
        return propagate_layers(graph, self.weight, self.layers)

    def gather(self, table: Tensor, ids: Tensor) -> Tensor:
        """Rows of a table; sparse gradients only where it is the weight itself."""
        sparse = self.sparse_gradients and table is self.weight
        return functional.embedding(ids, table, sparse=sparse)

    def fit(self, task: Any) -> Any:
        """Train in the usual loop."""
        self.check_network(task)
        return task.train(self)

    def check_network(self, task: Any) -> None:
        """Codes are taken after propagation: the network must not propagate again."""
        if self.layers and task.trial.model != "mf":
            raise ValueError(
                f"the codes of a table with layers={self.layers} are taken after "
                f"propagation and compared as they are: model must be 'mf', got "
                f"{task.trial.model!r}"
            )


def choose_layers(spec: TableSpec, layers: int | None, default: int) -> int:
    """Layers asked for, or the default where there is a graph."""
    if layers is None:
        return 0 if spec.interactions is None else default
    check_range("layers", layers, 0, 10)
    if layers and spec.interactions is None:
        raise ValueError(
            f"layers={layers} need the interactions of a top-N task, which the spec "
            "does not have"
        )
    return layers


class SignedEmbedding(PropagatedEmbedding):
    """Real weights in training, their signs and one learnt scale in use.

    A subclass says in `relax` what stands for the sign while training.
    """

    def __init__(self, spec: TableSpec, layers: int | None, seed: int) -> None:
        super().__init__(spec, layers, seed)
        # Weights are measured in this unit where a function bends them.
        self.unit = spec.init_std
        self.scale = nn.Parameter(torch.full((1, 1), spec.init_std))

    def latent(self) -> Tensor:
        """The real table whose signs are the codes: the mean over the layers."""
        tables = self.spread()
        return tables[0] if len(tables) == 1 else torch.stack(tables).mean(0)

    def relax(self, latent: Tensor) -> Tensor:
        """What stands for the sign in training, between -1 and 1."""
        raise NotImplementedError

    def embed(self, ids: Tensor) -> Tensor:
        """The scale times signs, or times what stands for them."""
        rows = self.gather(self.latent(), ids)
        return self.scale * (self.relax(rows) if self.training else take_signs(rows))

    @torch.no_grad()
    def freeze(self) -> BinaryLayout:
        """The signs, taken after propagation, and the scale."""
        return BinaryLayout.from_signs(
            self.latent().cpu().numpy(), self.scale.cpu().numpy().copy()
        )


class AnnealedCodes(SignedEmbedding):
    r"""CIGAR: codes :math:`\tanh(\beta w)` that harden to signs (key ``cigar``).

    The codes find candidates by Hamming distance (`BinaryLayout.topk`); `rerank`
    orders these by a real-valued model, whose table comes on top of the bytes
    counted here.

    Parameters
    ----------
    spec : TableSpec
    beta : float, default 10
        Steepness at the end.  It starts at 1, with weights in units of their
        spread, and grows as the root of progress, as in HashNet.
    seed : int, default 0

    Notes
    -----
    Kang and McAuley, "Candidate Generation with Binary Codes for Large-Scale
    Top-N Recommendation" (CIKM 2019).  We implement the codes as
    :math:`h = \tanh(\beta w)`, :math:`\beta = \sqrt{1 + (\beta_1^2 - 1) t}`, under
    the task's loss; their sampling of candidates for the second model is left out.
    """

    def __init__(self, spec: TableSpec, *, beta: float = 10.0, seed: int = 0) -> None:
        super().__init__(spec, layers=0, seed=seed)
        if not 1 <= beta < math.inf:
            raise ValueError(f"beta must be a number from 1 up, got {beta!r}")
        self.last_beta = beta
        self.beta = 1.0

    @classmethod
    def plan(
        cls, spec: TableSpec, ratio: float, *, beta: float = 10.0
    ) -> dict[str, Any]:
        """The one size: a bit per entry, and one scale."""
        spec.require(ratio, smallest=code_bytes(spec) + 4)
        return {"beta": beta}

    def advance(self, progress: float) -> None:
        """Make the tanh steeper."""
        self.beta = math.sqrt(1 + (self.last_beta**2 - 1) * progress)

    def relax(self, latent: Tensor) -> Tensor:
        """tanh, as steep as it is by now."""
        return torch.tanh(self.beta * latent / self.unit)


def rerank(queries: np.ndarray, items: np.ndarray, candidates: np.ndarray) -> Any:
    """Order candidates by the inner products of real vectors.

    Parameters
    ----------
    queries : ndarray of float32, shape (m, dim)
    items : ndarray of float32, shape (n, dim)
    candidates : ndarray of int64, shape (m, c)
        Rows of `items`, for each query.

    Returns
    -------
    ndarray of int64, shape (m, c)
        The candidates, best first; of equals, the one that came first.
    """
    scores = np.einsum("md,mcd->mc", queries, items[candidates])
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(candidates, order, axis=1)


class GuidedCodes(SignedEmbedding):
    r"""HashGNN: a straight-through sign, led by the real vector (key ``hashgnn``).

    A vector spreads over the graph and is bent to :math:`z = \tanh(h)`.  Each
    entry is then its sign with probability p and stays real with 1 - p, and p
    grows from 0 to 1: early on gradients are true, at the end what is trained is
    what is stored.  The sign's own gradient is taken to be 1.

    Parameters
    ----------
    spec : TableSpec
    layers : int, optional
        By default 1 where there are interactions, else 0.
    seed : int, default 0

    Notes
    -----
    Tan et al., "Learning to Hash with Graph Neural Networks for Recommender
    Systems" (WWW 2020), with LightGCN's propagation and the task's own loss.
    Their last linear map is left out: it commutes with the propagation, and a
    table times a matrix is again a table.
    """

    def __init__(
        self, spec: TableSpec, *, layers: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(spec, layers, seed)
        self.share = 0.0

    @classmethod
    def plan(
        cls, spec: TableSpec, ratio: float, *, layers: int | None = None
    ) -> dict[str, Any]:
        """The one size: a bit per entry, and one scale."""
        spec.require(ratio, smallest=code_bytes(spec) + 4)
        return {"layers": choose_layers(spec, layers, default=1)}

    def advance(self, progress: float) -> None:
        """Let more of the entries be signs."""
        self.share = progress

    def relax(self, latent: Tensor) -> Tensor:
        """Signs for a random share of the entries, the others as they are."""
        real = torch.tanh(latent / self.unit)
        # Drawn from torch's generator, which the training loop seeds, as dropout.
        signed = torch.rand_like(real) < self.share
        return torch.where(signed, straight_through(real), real)


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


class LayerwiseCodes(PropagatedEmbedding):
    r"""BiGeaR: codes of every layer, row scales, and a teacher (key ``bigear``).

    Layer l of the propagation gives a block of codes :math:`q_l = \mathrm{mean}|v_l|
    \, \mathrm{sign}(v_l)`; a row is the concatenation of :math:`w_l q_l` with
    :math:`w_l = (l + 1) / (L + 1)`.  The same table is first trained without signs:
    that is the teacher, from whose weights the codes start, and whose best
    items of each layer they must score high.

    Parameters
    ----------
    spec : TableSpec
    layers : int, optional
        The L above; by default 2 where there are interactions, else 0.
    half : bool, default False
        Store row scales as float16 rather than float32.
    distillation : float, default 1
        Weight of the teacher's lists in the loss; 0 for none.
    listed : int, default 100
        Items in a teacher's list.
    sharpness, factor : float, default 1
        Of the gradient of the sign, see `ScaledSign`.
    seed : int, default 0

    Notes
    -----
    Chen et al., "Learning Binarized Graph Representations with Multi-faceted
    Quantization Reinforcement for Top-K Recommendation" (KDD 2022).  Lists are
    distilled for `USERS` random users a step rather than for the users of the
    batch.
    """

    USERS = 256

    def __init__(
        self,
        spec: TableSpec,
        *,
        layers: int | None = None,
        half: bool = False,
        distillation: float = 1.0,
        listed: int = 100,
        sharpness: float = 1.0,
        factor: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(spec, choose_layers(spec, layers, default=2), seed)
        if not (distillation >= 0 and sharpness > 0 and factor > 0):
            raise ValueError(
                "distillation must not be negative, sharpness and factor must be "
                f"positive, got {distillation!r}, {sharpness!r} and {factor!r}"
            )
        check_range("listed", listed, 1, 2**31 - 1)
        self.block = spec.embedding_dim
        self.embedding_dim = (self.layers + 1) * self.block
        self.half_scales, self.distillation = half, distillation
        self.listed, self.sharpness, self.factor = listed, sharpness, factor
        self.num_users = int(spec.field_starts[1])
        # False while the table is its own teacher.
        self.binary = True
        self.teacher: Tensor | None
        self.register_buffer("teacher", None, persistent=False)
        self._tables: list[Tensor] = []
        with torch.no_grad():
            # Blocks shrink as they spread; rows are to start at the usual spread.
            blocks = [self.encode(t, k) for k, t in enumerate(self.spread())]
            self.weight.mul_(spec.init_std / torch.stack(blocks).std(correction=0))

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        layers: int | None = None,
        half: bool = False,
        distillation: float = 1.0,
        listed: int = 100,
        sharpness: float = 1.0,
        factor: float = 1.0,
    ) -> dict[str, Any]:
        """As many layers, up to 2, as the budget holds: each has its own codes."""
        block = code_bytes(spec) + spec.num_embeddings * (2 if half else 4)
        most = choose_layers(spec, layers, default=2)
        fewest = 0 if layers is None else most
        budget = spec.require(ratio, smallest=(fewest + 1) * block)
        return {
            "layers": min(most, budget // block - 1),
            "half": half,
            "distillation": distillation,
            "listed": listed,
            "sharpness": sharpness,
            "factor": factor,
        }

    def fit(self, task: Any) -> Any:
        """Train without signs, note each layer's best items, train with signs."""
        self.check_network(task)
        self.binary = False
        teacher = task.train(self)
        self.binary = True
        if task.trial.model == "mf" and self.distillation:
            self.teacher = self.list_items()
        student = task.train(self)
        # A second training, on all pairs, needs enough epochs for both.
        student.history.best = max(teacher.history.best, student.history.best)
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
        """What is stored beside one layer's codes: (..., dim) -> (..., 1)."""
        weight = (layer + 1) / (self.layers + 1)
        scales = weight * rows.abs().mean(-1, keepdim=True)
        return scales.half().float() if self.half_scales else scales

    def embed(self, ids: Tensor) -> Tensor:
        """The blocks of all layers, side by side."""
        tables = self.spread()
        if self.training and self.binary:
            self._tables = tables  # `penalty` reads the same step's layers
        rows = [self.encode(self.gather(t, ids), k) for k, t in enumerate(tables)]
        return torch.cat(rows, dim=-1)

    @torch.no_grad()
    def list_items(self, chunk: int = 1024) -> Tensor:
        """Each user's best items in each layer, int32 (layers + 1, users, listed)."""
        lists = []
        for table in self.spread():
            users, items = table[: self.num_users], table[self.num_users :]
            count = min(self.listed, len(items))
            best = [(part @ items.T).topk(count).indices for part in users.split(chunk)]
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
        """The signs of every layer, and their scales."""
        tables = self.spread()
        scales = [self.measure_scales(t, k) for k, t in enumerate(tables)]
        stored = torch.cat(scales, dim=1).cpu().numpy()
        return BinaryLayout.from_signs(
            torch.cat(tables, dim=1).cpu().numpy(),
            as_half(stored) if self.half_scales else stored.copy(),
            blocks=len(tables),
        )
