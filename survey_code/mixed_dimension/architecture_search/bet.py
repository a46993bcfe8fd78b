"""BET: draw whole profiles of row lengths that fit the budget, keep the best."""

from __future__ import annotations

import numpy as np

from survey_code.method import Found, Judge, Searched
from survey_code.mixed_dimension.prefix import (
    LengthOptions,
    PrefixEmbedding,
    PrefixSupernet,
    cut_to_budget,
    prefix_bytes,
    smallest_prefix,
)
from survey_code.options import option, planned
from survey_code.order import largest_first
from survey_code.spec import TableSpec

# The curves, and the largest steepness that is drawn for each.
STEEPEST = {"power": 2.0, "exponential": 60.0, "normal": 60.0, "lognormal": 3.0}


class BETOptions(LengthOptions):
    """Options of `BET`."""

    draws: int = option(
        24, "profiles that are tried", low=1, high=10_000, tune=(24, 48)
    )
    finalists: int = option(
        5, "of them, the best in the shared table, that are trained on and judged anew",
        low=1, high=10_000,
    )  # fmt: skip
    apart: bool = planned(
        "whether each field has a curve of its own; by itself where there are two, "
        "users and items",
        otherwise=False,
    )  # fmt: skip


class ProfileSupernet(PrefixSupernet):
    """A full table that is read through a randomly drawn profile at each step.

    Once a profile is settled on, every step reads through that one.
    """

    def __init__(self, spec: TableSpec, options: BETOptions, seed: int) -> None:
        super().__init__(spec, seed)
        self.profiles = draw_profiles(spec, options, np.random.default_rng([seed, 6]))
        self.settled = False

    def advance(self, progress: float) -> None:
        """Another profile."""
        if not self.settled:
            self.set_lengths(self.profiles[self.rng.integers(len(self.profiles))])

    def settle_on(self, profile: np.ndarray) -> None:
        """Read through this profile, in training too."""
        self.settled = True
        self.set_lengths(profile)


class BET(PrefixEmbedding, Searched[BETOptions, ProfileSupernet]):
    """Row lengths from the best of several random profiles (key ``bet``).

    A profile says how long the row of the most, second most ... frequent id is.  It
    falls like one of four curves, for users and items apart, and is scaled until its
    bytes just fit.  The first profile is flat.

    Notes
    -----
    Qu et al., "Budgeted Embedding Table For Recommender Systems" (WSDM 2024).  As in
    the paper, users and items have curves of their own, profiles are judged by the
    metric, and the shared table is trained on for each of the best before they are
    compared.  The paper predicts a profile's quality with a network and draws again
    around the best; here all profiles of one round are judged in the shared table
    itself.  A table of one field, or of more than two, has one curve for all ids
    unless `apart` says otherwise.
    """

    def __init__(self, spec: TableSpec, options: BETOptions, seed: int = 0) -> None:
        super().__init__(spec, options.lengths, seed)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: BETOptions) -> Found:
        """The budget, which must hold a number, and whether fields are apart."""
        apart = options.apart
        if apart is None:
            apart = len(spec.field_starts) == 3
        budget = spec.require(ratio, smallest=smallest_prefix(spec))
        return {"budget": budget, "apart": apart}

    @classmethod
    def settle(
        cls, table: ProfileSupernet, judge: Judge, spec: TableSpec, options: BETOptions
    ) -> Found:
        """The profile of the best validation metric: of all those in the shared
        table, then of the best few after training on through each alone.
        """
        first = []
        for profile in table.profiles:
            table.settle_on(profile)
            first.append(judge.metric())
        finalists = largest_first(np.array(first))[: options.finalists]
        if len(finalists) == 1:
            return {"lengths": table.profiles[finalists[0]]}
        second = []
        for place in finalists:
            table.settle_on(table.profiles[place])
            second.append(judge.metric_after_training())
        return {"lengths": table.profiles[finalists[int(np.argmax(second))]]}


def draw_profiles(
    spec: TableSpec, options: BETOptions, rng: np.random.Generator
) -> list[np.ndarray]:
    """As many profiles as are asked for; the first is flat."""
    flat = cut_profile(spec, options.budget, np.ones(spec.num_embeddings))
    drawn = [
        draw_profile(spec, options.budget, rng, options.apart)
        for _ in range(options.draws - 1)
    ]
    return [flat, *drawn]


def draw_profile(
    spec: TableSpec, budget: int, rng: np.random.Generator, apart: bool = False
) -> np.ndarray:
    """Lengths of all rows: random falling curves, scaled to the budget.

    Parameters
    ----------
    spec : TableSpec
    budget : int
        Bytes that the frozen table may take.
    rng : Generator
    apart : bool, default False
        A curve for each field, over the ranks within it, not one for the table.

    Returns
    -------
    ndarray of int64, shape (num_embeddings,)
        Never longer for a rarer id, of the same field or of the table.
    """
    starts = spec.field_starts if apart else np.array([0, spec.num_embeddings])
    height = np.empty(spec.num_embeddings)
    for start, stop in zip(starts.tolist(), starts[1:].tolist()):
        shape = list(STEEPEST)[rng.integers(len(STEEPEST))]
        curve = draw_curve(shape, rng.uniform(0, STEEPEST[shape]), stop - start)
        height[start + largest_first(spec.train_counts[start:stop])] = curve
    return cut_profile(spec, budget, height)


def cut_profile(spec: TableSpec, budget: int, height: np.ndarray) -> np.ndarray:
    """Lengths in proportion to heights, at most the full one, that just fit.

    Parameters
    ----------
    spec : TableSpec
    budget : int
        In bytes.
    height : ndarray of float, shape (num_embeddings,)
        From 0 to 1, which is the largest.

    Returns
    -------
    ndarray of int64, shape (num_embeddings,)
    """
    dim = spec.embedding_dim

    def scaled(scale: float) -> np.ndarray:
        return np.minimum(scale * height, dim).astype(np.int64)

    # At scale 1 the highest rows have one entry, at the largest all have all.
    if prefix_bytes(scaled(1.0), dim) > budget:
        return cut_to_budget(scaled(1.0), spec.train_counts, budget, dim)
    low, high = 1.0, dim / max(height.min(), 1e-9)
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
