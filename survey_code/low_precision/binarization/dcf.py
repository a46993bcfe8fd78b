"""DCF: search among the codes themselves."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from survey_code.checks import check_range
from survey_code.embedding import Fitted, History, draw_normal
from survey_code.graph import graph_arrays, make_csr
from survey_code.layouts import BinaryLayout
from survey_code.low_precision.binarization.signs import sign_bytes
from survey_code.method import Found, Task, Trained
from survey_code.options import Options, option, planned
from survey_code.spec import TableSpec


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
    # On the processor: where codes are equal, a GPU's routines give up or give NaN.
    exact = codes.double().cpu()
    # Few columns: a small decomposition after one of Gram and Schmidt's.
    frame, small = torch.linalg.qr(exact - exact.mean(0))
    left, sizes, right = torch.linalg.svd(small)
    left = frame @ left
    empty = sizes <= 1e-9 * max(float(sizes[0]), 1.0)
    constant = torch.full((m, 1), m**-0.5, dtype=left.dtype)
    taken = torch.cat([constant, left[:, ~empty]], dim=1)
    drawn = torch.randn(m, int(empty.sum()), generator=generator, dtype=left.dtype)
    basis = torch.linalg.qr(torch.cat([taken, drawn], dim=1)).Q
    left[:, empty] = basis[:, taken.shape[1] :]
    return (m**0.5 * left @ right).to(codes.device)


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


class DCFOptions(Options):
    """Options of `DCF`."""

    bits: int | None = planned(
        "length of a code; unless asked, the embedding dimension", low=1
    )
    rounds: int = option(
        20, "rounds, each with unobserved pairs of its own", low=1, tune=(20, 10, 40)
    )
    sweeps: int = option(
        3,
        "sweeps over the bits of users, then of items, in a round; at most",
        low=1,
        tune=(3, 5),
    )
    balance: float = option(
        1e-3, "the factor alpha of balanced bits", low=0, tune=(1e-3, 1e-4, 1e-2, 0.1)
    )


class DCF(Trained[DCFOptions]):
    r"""DCF: codes found by coordinate descent, bit after bit (key ``dcf``).

    Minimises :math:`\sum (S_{ij} - b_i \cdot d_j)^2 - 2 \alpha \mathrm{tr}(B^T X)
    - 2 \alpha \mathrm{tr}(D^T Y)`, where X and Y are balanced and uncorrelated.
    An observed pair has S = r, an unobserved one -r (r bits); as many unobserved
    pairs as observed ones are drawn anew each round.

    Notes
    -----
    Zhang et al., "Discrete Collaborative Filtering" (SIGIR 2016).  They learn from
    ratings, scaled to -r to r, and draw no pairs; each side has a factor alpha of its
    own, and there are up to 50 rounds of 5 sweeps.  Their start is a real-valued
    solution of the same problem; here it is a spectral one.  The objective falls
    within a round, and changes with the drawn pairs between two.
    """

    learns_by_gradient = False

    def __init__(self, spec: TableSpec, options: DCFOptions, seed: int = 0) -> None:
        bits = choose_bits(spec, options.bits)
        super().__init__(spec.num_embeddings, bits)
        self.rounds, self.sweeps = options.rounds, options.sweeps
        self.balance, self.seed = options.balance, seed
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
    def plan(cls, spec: TableSpec, ratio: float, options: DCFOptions) -> Found:
        """A bit for each entry; more are taken only where they are asked for."""
        bits = choose_bits(spec, options.bits)
        spec.require(ratio, smallest=sign_bytes(spec, bits) + 4)
        return {"bits": bits}

    def fit(self, task: Task) -> Fitted:
        """Coordinate descent over users and items in turn."""
        users, pairs = int(task.spec.field_starts[1]), task.spec.interactions
        assert pairs is not None
        if min(users, self.num_embeddings - users) <= self.embedding_dim:
            raise ValueError(
                f"{self.embedding_dim} bits need more than {self.embedding_dim} users "
                f"and items, got {users} and {self.num_embeddings - users}"
            )
        codes = self.descend(pairs, users, task.device)
        self.codes.copy_(torch.cat(codes, dim=1).T)
        # a^2 b.d is then the prediction in units of the target r.
        self.scale.fill_(self.embedding_dim**-0.5)
        losses = [{"train_loss": steps[-1]} for steps in self.objective]
        history = History(epochs=losses, best=len(losses) - 1)
        return Fitted(task.surround(self).network, history)

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


def choose_bits(spec: TableSpec, bits: int | None) -> int:
    """The bits that were asked for, or the embedding dimension."""
    bits = spec.embedding_dim if bits is None else bits
    check_range("bits", bits, 1, 32 * spec.embedding_dim)
    return bits
