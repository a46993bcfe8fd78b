"""BET: draw whole profiles of row lengths that fit the budget, keep the best."""

from __future__ import annotations

import numpy as np

from survey_code.method import Found, Judge, Searched
from survey_code.mixed_dimension.prefix import (
    LengthOptions,
    PrefixEmbedding,
    PrefixSupernet,
    prefix_bytes,
    smallest_prefix,
)
from survey_code.mixed_dimension.search import rank_by_frequency
from survey_code.options import option
from survey_code.spec import TableSpec

# The curves, and the largest steepness that is drawn for each.
STEEPEST = {"power": 2.0, "exponential": 60.0, "normal": 60.0, "lognormal": 3.0}


class BETOptions(LengthOptions):
    """Options of `BET`."""

    draws: int = option(
        24, "profiles that are tried", low=1, high=10_000, tune=(24, 48)
    )


class ProfileSupernet(PrefixSupernet):
    """A full table that is read through a randomly drawn profile at each step."""

    def __init__(self, spec: TableSpec, options: BETOptions, seed: int) -> None:
        super().__init__(spec, seed)
        rng = np.random.default_rng([seed, 6])
        draws = range(options.draws)
        self.profiles = [draw_profile(spec, options.budget, rng) for _ in draws]

    def advance(self, progress: float) -> None:
        """Another profile."""
        self.set_lengths(self.profiles[self.rng.integers(len(self.profiles))])


class BET(PrefixEmbedding, Searched[BETOptions, ProfileSupernet]):
    """Row lengths from the best of several random profiles (key ``bet``).

    A profile says how long the row of the most, second most ... frequent id is.
    It falls like one of four curves, and is scaled until its bytes just fit.

    Notes
    -----
    Qu et al., "Budgeted Embedding Table For Recommender Systems" (WSDM 2024).  The
    paper predicts a profile's quality with a network and draws again around the
    best; here every profile of one round is tried in a shared supernet.
    """

    def __init__(self, spec: TableSpec, options: BETOptions, seed: int = 0) -> None:
        super().__init__(spec, options.lengths, seed)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: BETOptions) -> Found:
        """The budget, which must hold a number."""
        return {"budget": spec.require(ratio, smallest=smallest_prefix(spec))}

    @classmethod
    def settle(
        cls, table: ProfileSupernet, judge: Judge, spec: TableSpec, options: BETOptions
    ) -> Found:
        """The profile with the lowest validation loss in the supernet."""
        losses = []
        for profile in table.profiles:
            table.set_lengths(profile)
            losses.append(judge.loss())
        return {"lengths": table.profiles[int(np.argmin(losses))]}


def draw_profile(spec: TableSpec, budget: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths of all rows: a random falling curve, scaled to the budget.

    Parameters
    ----------
    spec : TableSpec
    budget : int
        Bytes that the frozen table may take.
    rng : Generator

    Returns
    -------
    ndarray of int64, shape (num_embeddings,)
        Never longer for a rarer id.
    """
    shape = list(STEEPEST)[rng.integers(len(STEEPEST))]
    curve = draw_curve(shape, rng.uniform(0, STEEPEST[shape]), spec.num_embeddings)
    order, dim = rank_by_frequency(spec), spec.embedding_dim

    def scaled(scale: float) -> np.ndarray:
        lengths = np.empty(len(order), np.int64)
        lengths[order] = np.minimum(scale * curve, dim).astype(np.int64)
        return lengths

    # The largest entry of the curve is 1: scale 1 gives the first row one entry.
    low, high = 1.0, dim / max(curve[-1], 1e-9)
    for _ in range(40):
        middle = float(np.sqrt(low * high))
        fits = prefix_bytes(scaled(middle), dim) <= budget
        low, high = (middle, high) if fits else (low, middle)
    return scaled(low)


def draw_curve(shape: str, steepness: float, rows: int) -> np.ndarray:
    """A falling curve with 1 at its head, shape (rows,); steepness 0 is flat.

    Examples
    --------
    >>> draw_curve("power", 1.0, 4).round(2).tolist()
    [1.0, 0.5, 0.33, 0.25]
    """
    place = np.arange(rows) / rows  # 0 for the most frequent id
    if shape == "power":
        return (np.arange(rows) + 1.0) ** -steepness
    if shape == "exponential":
        return np.exp(-steepness * place)
    if shape == "normal":
        return np.exp(-steepness * place**2)
    return np.exp(-((steepness * np.log1p(np.arange(rows)) / np.log1p(rows)) ** 2))
