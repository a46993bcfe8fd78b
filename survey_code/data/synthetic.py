"""Clicks from a known formula, so that the best reachable metrics are known.

Ids follow a Zipf law within each field; a planted factorisation machine gives
each row its log-odds; a coin with that probability decides the click.

Every number is the same on every machine for a seed.  Drawn parameters are
rounded to integers on a grid, so that log-odds are exact sums of integers
whatever the order of summation; probabilities are compared as integers of 32
and 40 bits, where a last-digit difference of `exp` or `pow` cannot be seen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from survey_code.checks import check_number, check_range, check_switch
from survey_code.data.content import choose_stand_ins, mark_fields, plant_content
from survey_code.data.tasks import ClickData, ClickRows, InteractionData, StreamData
from survey_code.order import largest_first

# Factors are multiples of 1/64, so their products, and log-odds, of 1/4096.
FACTOR_GRID = 64
LOGIT_GRID = FACTOR_GRID**2


@dataclass(frozen=True)
class SyntheticSettings:
    """What is drawn.

    Parameters
    ----------
    field_sizes : tuple of int
        Ids of each field that are in use at any time.
    exponent : float
        Of the Zipf law; 0 makes all ids equally likely.
    rows : tuple of int
        Training, validation and test rows; for a stream, rows of each window.
    factors : int
        Length of the teacher's vectors.
    linear_std, factor_std : float
        Spread of the teacher's weights per id, and of its vectors' entries.
    bias : float
        Log-odds of a click where nothing else is known.
    popularity_change : float
        Stream: share of each field's ids that trade popularity ranks, per window.
    new_ids : float
        Stream: share of each field's ids that are replaced by unseen ones, per
        window.
    rotation : float
        Stream: angle in radians by which the teacher turns, per window.
    away : float
        Stream: share of each field's ids that leave, per window, and come back.
    away_windows : int
        Stream: windows after which those that left are back.
    content : float
        Share of the fields, the largest first, whose ids have content vectors; the
        vectors of all other ids are zeros.  0: there is no content.
    content_width : int
        Entries of a content vector.
    content_noise : float
        Spread of the noise in it over that of what it says of the teacher.
    unseen : float
        Share of the ids of each field of 1,000 ids or more that no training row
        shows; validation and test rows are those of the world without it.

    Raises
    ------
    ValueError
        If a size is not a positive integer, or a number is out of its range.
    """

    field_sizes: tuple[int, ...]
    exponent: float
    rows: tuple[int, ...]
    factors: int = 4
    linear_std: float = 0.5
    factor_std: float = 0.5
    bias: float = -1.0
    popularity_change: float = 0.0
    new_ids: float = 0.0
    rotation: float = 0.0
    away: float = 0.0
    away_windows: int = 2
    content: float = 0.0
    content_width: int = 8
    content_noise: float = 0.0
    unseen: float = 0.0

    def __post_init__(self) -> None:
        for name in ("field_sizes", "rows"):
            sizes = np.asarray(getattr(self, name))
            if sizes.dtype.kind not in "iu" or sizes.ndim != 1 or sizes.min() < 1:
                raise ValueError(
                    f"{name} must be positive sizes, got {getattr(self, name)!r}"
                )
            object.__setattr__(self, name, tuple(sizes.tolist()))
        for name in ("factors", "away_windows", "content_width"):
            number = check_range(name, getattr(self, name), 1)
            object.__setattr__(self, name, number)
        for name, low, high in (
            ("exponent", 0, 10),
            ("linear_std", 0, 10),
            ("factor_std", 0, 10),
            ("popularity_change", 0, 1),
            ("new_ids", 0, 1),
            ("away", 0, 1),
            ("content", 0, 1),
            ("content_noise", 0, 100),
            ("unseen", 0, 0.9),
            ("bias", -100, 100),
            ("rotation", -100, 100),
        ):
            # Python's own, as the data set's name and source write them.
            value = check_number(name, getattr(self, name), low, high)
            object.__setattr__(self, name, value)


PRESETS = {
    "small": SyntheticSettings(
        (6000, 4000, 1500, 500, 100, 30, 10, 4), 1.05, (200_000, 40_000, 40_000)
    ),
    "large": SyntheticSettings(
        (1_000_000, 100_000, 10_000, 1000, 100, 10), 1.05, (2_000_000, 100_000, 100_000)
    ),
    "stream": SyntheticSettings(
        (4000, 3000, 1000, 300, 50, 10),
        1.05,
        (30_000,) * 10,
        popularity_change=0.1,
        new_ids=0.05,
        rotation=0.15,
    ),
    # Nothing drifts but who is there.
    "seasons": SyntheticSettings(
        (4000, 3000, 1000, 300, 50, 10), 1.05, (30_000,) * 10, new_ids=0.05, away=0.1
    ),
    # Long, and without drift until that is asked for.  Few ids, read often: what the
    # first windows have taught is about all that there is to learn.
    "drift": SyntheticSettings((1000, 600, 300, 100, 30, 10), 1.05, (100_000,) * 46),
    # As "small"; the four largest fields have content, the three largest unseen ids.
    "content": SyntheticSettings(
        (6000, 4000, 1500, 500, 100, 30, 10, 4),
        1.05,
        (200_000, 40_000, 40_000),
        content=0.5,
        content_noise=0.5,
        unseen=0.1,
    ),
}


def make_clicks(preset: str = "small", *, seed: int = 0, **overrides: Any) -> ClickData:
    """Draw training, validation and test rows of one fixed teacher.

    Parameters
    ----------
    preset : {"small", "large", "content"}
    seed : int, default 0
    **overrides
        Fields of `SyntheticSettings`.

    Returns
    -------
    ClickData
        `best` holds the AUC and log-loss of the true probabilities; `source`
        the settings and the seed.

    Raises
    ------
    ValueError
        If the preset or a setting is unknown or out of range.
    """
    settings = choose_settings(preset, overrides)
    if len(settings.rows) != 3:
        raise ValueError(
            f"rows must be (training, validation, test), got {settings.rows}"
        )
    world = World(settings, windows=1, seed=seed)
    train_count, *counts = settings.rows
    train, _ = world.draw(train_count, world.choose_stand_ins())
    (valid, valid_logits), (test, test_logits) = (world.draw(n) for n in counts)
    return ClickData(
        name_data(preset, seed, overrides),
        world.field_names,
        world.field_starts,
        train,
        valid,
        test,
        source={"seed": seed, **dataclasses.asdict(settings)},
        best={
            "valid": best_metrics(valid, valid_logits),
            "test": best_metrics(test, test_logits),
        },
        content=world.describe_ids(),
    )


def make_stream(
    preset: str = "stream", *, seed: int = 0, **overrides: Any
) -> StreamData:
    """Draw windows of a world that drifts from each to the next.

    Parameters
    ----------
    preset : {"stream", "seasons", "drift"}
    seed : int, default 0
    **overrides
        Fields of `SyntheticSettings`; ``popularity_change``, ``new_ids``,
        ``rotation`` and ``away`` are the four switches of drift, all off at 0.

    Returns
    -------
    StreamData

    Raises
    ------
    ValueError
        If the preset or a setting is unknown or out of range, or is ``unseen``: in a
        stream ids are new with ``new_ids``.
    """
    settings = choose_settings(preset, overrides)
    if settings.unseen:
        raise ValueError(
            f"unseen={settings.unseen} is for training, validation and test rows; in a "
            "stream ids are new with new_ids"
        )
    world = World(settings, windows=len(settings.rows), seed=seed)
    windows, best = [], []
    for count in settings.rows:
        rows, logits = world.draw(count)
        windows.append(rows)
        best.append(best_metrics(rows, logits))
        world.drift()
    return StreamData(
        name_data(preset, seed, overrides),
        world.field_names,
        world.field_starts,
        tuple(windows),
        source={"seed": seed, **dataclasses.asdict(settings)},
        best=tuple(best),
        content=world.describe_ids(),
    )


def name_data(preset: str, seed: int, overrides: dict[str, Any]) -> str:
    """A name that tells data sets apart: results of different ones are different.

    Examples
    --------
    >>> name_data("small", 3, {"exponent": 1.2})
    'synthetic (small, seed=3, exponent=1.2)'
    """
    changed = {"seed": seed, **overrides} if seed else overrides
    return (
        f"synthetic ({', '.join([preset, *(f'{k}={v}' for k, v in changed.items())])})"
    )


def choose_settings(preset: str, overrides: dict[str, Any]) -> SyntheticSettings:
    """A preset's settings with some replaced."""
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; presets: {sorted(PRESETS)}")
    check_settings(SyntheticSettings, overrides)
    return dataclasses.replace(PRESETS[preset], **overrides)


def check_settings(
    kind: type[SyntheticSettings | InteractionSettings], given: dict[str, Any]
) -> None:
    """Raise ValueError if there is no such setting."""
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(f"unknown setting {unknown[0]!r}; settings: {sorted(known)}")


class World:
    """The teacher, and which ids are popular now.

    Each of the teacher's parameters has two independent draws and turns in
    their plane: after t windows it is ``cos(t a)`` times the first plus
    ``sin(t a)`` times the second, so that its spread stays while its
    correlation with the start falls as ``cos(t a)``.
    """

    def __init__(self, settings: SyntheticSettings, windows: int, seed: int) -> None:
        seed = check_range("seed", seed, 0)
        self.settings = settings
        *children, self._content_seed, self._unseen_seed = np.random.SeedSequence(
            seed
        ).spawn(6)
        parameters, self._ranks, self._drift, self._rows = map(
            np.random.default_rng, children
        )
        replaced = [
            int(size * settings.new_ids) * (windows - 1)
            for size in settings.field_sizes
        ]
        # Of each field: ids of one group that leaves, and comes back, together.
        leaving = [int(size * settings.away) for size in settings.field_sizes]
        away = np.array(leaving) * settings.away_windows
        sizes = np.array(settings.field_sizes) + np.array(replaced) + away
        self.field_starts = np.concatenate([[0], np.cumsum(sizes)])
        self.field_names = tuple(f"field_{k}" for k in range(len(sizes)))
        self.age = 0
        ids = int(self.field_starts[-1])
        self._linear = parameters.standard_normal((2, ids)) * settings.linear_std
        shape = (2, ids, settings.factors)
        self._factors = parameters.standard_normal(shape) * settings.factor_std
        # ids_by_rank[f][k] is the id with popularity rank k; the order is
        # random, so that ids modulo anything give no id a row for itself.
        self.ids_by_rank = []
        self._reserve = []
        # Groups in the order in which they come back; those of the first windows
        # were never there before.
        self._away = []
        for start, size, all_ids, absent in zip(
            self.field_starts, settings.field_sizes, sizes, away
        ):
            order = start + self._ranks.permutation(all_ids)
            self.ids_by_rank.append(order[:size])
            groups = order[size : size + absent].reshape(settings.away_windows, -1)
            self._away.append(list(groups))
            self._reserve.append(order[size + absent :])
        self._thresholds = [
            zipf_thresholds(size, settings.exponent) for size in settings.field_sizes
        ]

    def describe_ids(self) -> np.ndarray | None:
        """Content vectors by the teacher's parameters at the start, float32 of shape
        (ids, width); None without content.
        """
        settings = self.settings
        if not settings.content:
            return None
        linear = turn(self._linear, 0.0, FACTOR_GRID)[:, None]
        parameters = np.concatenate([linear, turn(self._factors, 0.0, FACTOR_GRID)], 1)
        squares = settings.linear_std**2 + settings.factors * settings.factor_std**2
        content = plant_content(
            np.random.default_rng(self._content_seed),
            parameters,
            settings.content_width,
            settings.content_noise,
            math.sqrt(squares / (1 + settings.factors)),
        )
        content[~mark_fields(self.field_starts, settings.content)] = 0
        return content

    def choose_stand_ins(self) -> np.ndarray:
        """The id that training rows show in place of each: its own, unless unseen."""
        rng = np.random.default_rng(self._unseen_seed)
        ids = int(self.field_starts[-1])
        return choose_stand_ins(rng, self.ids_by_rank, ids, self.settings.unseen)

    def draw(
        self, count: int, stand_ins: np.ndarray | None = None
    ) -> tuple[ClickRows, np.ndarray]:
        """Rows, and their true log-odds (float64, exact multiples of 1/4096).

        With `stand_ins`, int64 (ids,), the rows show these in place of the ids.
        """
        columns = [
            ids[np.searchsorted(limits, self._rows.integers(0, 2**40, count), "right")]
            for ids, limits in zip(self.ids_by_rank, self._thresholds)
        ]
        ids = np.stack(columns, axis=1)  # (count, fields)
        if stand_ins is not None:
            ids = stand_ins[ids]
        logits = self.true_logits(ids)
        chance = np.floor(2.0**32 / (1 + np.exp(-logits))).astype(np.int64)
        labels = self._rows.integers(0, 2**32, count) < chance
        return ClickRows(ids, labels.astype(np.float32)), logits

    def true_logits(self, ids: np.ndarray) -> np.ndarray:
        """Log-odds of rows of ids, shape (rows, fields) -> (rows,)."""
        linear = turn(self._linear, self.age * self.settings.rotation, LOGIT_GRID)
        factors = turn(self._factors, self.age * self.settings.rotation, FACTOR_GRID)
        total = np.full(len(ids), round(self.settings.bias * LOGIT_GRID))
        vector_sum = np.zeros((len(ids), self.settings.factors), dtype=np.int64)
        square_sum = np.zeros(len(ids), dtype=np.int64)
        for column in ids.T:
            vectors = factors[column]
            total += linear[column]
            vector_sum += vectors
            square_sum += (vectors**2).sum(axis=1)
        # Half of (square of the sum - sum of the squares) is the sum over pairs,
        # always a whole number.
        total += ((vector_sum**2).sum(axis=1) - square_sum) // 2
        return total / LOGIT_GRID

    def drift(self) -> None:
        """Go on to the next window."""
        self.age += 1
        for field, ids in enumerate(self.ids_by_rank):
            moved = int(len(ids) * self.settings.popularity_change)
            places = self._drift.choice(len(ids), moved, replace=False)
            ids[places] = ids[self._drift.permutation(places)]
            self.let_return(ids, self._away[field])
            fresh = int(len(ids) * self.settings.new_ids)
            if len(self._reserve[field]) >= fresh:
                places = self._drift.choice(len(ids), fresh, replace=False)
                ids[places] = self._reserve[field][:fresh]
                self._reserve[field] = self._reserve[field][fresh:]

    def let_return(self, ids: np.ndarray, away: list[np.ndarray]) -> None:
        """Let a group of a field's ids leave, in place, and the oldest come back.

        Ids of a group keep their order of popularity, so that they come back about as
        popular as they were.
        """
        if len(away[0]):
            places = np.sort(self._drift.choice(len(ids), len(away[0]), replace=False))
            away.append(ids[places])
            ids[places] = away.pop(0)


def turn(draws: np.ndarray, angle: float, grid: int) -> np.ndarray:
    """Parameters after turning by an angle, as integers in units of 1/grid."""
    turned = math.cos(angle) * draws[0] + math.sin(angle) * draws[1]
    return np.rint(turned * grid).astype(np.int64)


def zipf_thresholds(size: int, exponent: float) -> np.ndarray:
    """Upper ends of the ranks' shares of 0 .. 2**40, shape (size,)."""
    mass = np.arange(1, size + 1, dtype=np.float64) ** -exponent
    total = np.cumsum(mass)
    limits = np.rint(total / total[-1] * 2**40).astype(np.int64)
    limits[-1] = 2**40
    return limits


def best_metrics(
    rows: ClickRows, logits: Sequence[float] | np.ndarray
) -> dict[str, float]:
    """AUC and log-loss of the true probabilities: nothing can do better, but for
    the luck of the draw.
    """
    from survey_code.metrics import measure_clicks

    return measure_clicks(rows.labels, np.asarray(logits))


@dataclass(frozen=True)
class InteractionSettings:
    """What is drawn for a top-N task.

    Parameters
    ----------
    num_users, num_items : int
    per_user : tuple of int
        Fewest and most items that a user meets.
    factors : int
        Length of the teacher's vectors.
    exponent : float
        Of the items' popularity, a Zipf law.
    factor_std : float
        Spread of the teacher's entries: how much taste outweighs popularity.
    held_out : float
        Share of a user's items in the validation part, and again in the test.
    content : bool
        Whether users and items have content vectors.
    content_width : int
        Entries of a content vector.
    content_noise : float
        Spread of the noise in it over that of what it says of the teacher.

    Raises
    ------
    ValueError
        If a number is out of its range.
    """

    num_users: int = 1500
    num_items: int = 1000
    per_user: tuple[int, int] = (30, 60)
    factors: int = 4
    exponent: float = 0.5
    factor_std: float = 1.5
    held_out: float = 0.1
    content: bool = False
    content_width: int = 8
    content_noise: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (
            ("num_users", 100_000),
            ("num_items", 100_000),
            ("factors", 1000),
            ("content_width", 1000),
        ):
            size = check_range(name, getattr(self, name), 1, most)
            object.__setattr__(self, name, size)
        try:
            few, many = self.per_user
        except (TypeError, ValueError):
            raise ValueError(
                f"per_user must be two numbers of items, got {self.per_user!r}"
            ) from None
        few = check_range("fewest items per user", few, 1, self.num_items)
        many = check_range("most items per user", many, few, self.num_items)
        object.__setattr__(self, "per_user", (few, many))
        for name, high in (
            ("exponent", 10),
            ("factor_std", 10),
            ("held_out", 0.5),
            ("content_noise", 100),
        ):
            number = check_number(name, getattr(self, name), 0, high)
            object.__setattr__(self, name, number)
        object.__setattr__(self, "content", check_switch("content", self.content))


def make_interactions(*, seed: int = 0, **overrides: Any) -> InteractionData:
    """Draw which user meets which item, from a planted matrix factorisation.

    A user meets items one after another, each with a probability proportional to
    the exponential of popularity plus taste among those that are left: the items
    with the largest sums of log-odds and Gumbel noise.

    Parameters
    ----------
    seed : int, default 0
    **overrides
        Fields of `InteractionSettings`.

    Returns
    -------
    InteractionData
        `source` holds the settings and the seed.

    Raises
    ------
    ValueError
        If a setting is unknown or out of range.

    Examples
    --------
    >>> data = make_interactions(num_users=50, num_items=40, per_user=(5, 10))
    >>> data.num_users, data.num_items, data.train.shape[1]
    (50, 40, 2)
    """
    check_settings(InteractionSettings, overrides)
    settings = InteractionSettings(**overrides)
    rng = np.random.default_rng([check_range("seed", seed, 0), 7])
    users, items = settings.num_users, settings.num_items
    scores = draw_tastes(rng, settings)  # (users, items), in units of 1/4096
    noise = -np.log(-np.log(rng.integers(1, 2**32, size=scores.shape) / 2.0**32))
    order = largest_first(scores + np.rint(noise * LOGIT_GRID), axis=1)
    counts = rng.integers(settings.per_user[0], settings.per_user[1] + 1, size=users)
    met = np.arange(items) < counts[:, None]  # (users, items): a prefix of each order
    pairs = np.stack([np.repeat(np.arange(users), counts), users + order[met]], 1)
    changed = {"seed": seed, **overrides} if seed else overrides
    named = "".join(f", {name}={value}" for name, value in changed.items())
    train, test, valid = split_pairs(rng, pairs, counts, settings.held_out)
    return InteractionData(
        f"synthetic interactions ({users} x {items}{named})",
        *(users, items, train, valid, test),
        source={"seed": seed, **dataclasses.asdict(settings)},
        content=describe_parties(settings, seed) if settings.content else None,
    )


def split_pairs(
    rng: np.random.Generator, pairs: np.ndarray, counts: np.ndarray, held_out: float
) -> list[np.ndarray]:
    """Training, test and validation pairs: a share of each user's to test and as many
    to validate, at random.
    """
    # A place within its user, in random order, says which part a pair is in.
    shuffled = np.lexsort((rng.permutation(len(pairs)), pairs[:, 0]))
    place = np.arange(len(pairs)) - np.repeat(np.cumsum(counts) - counts, counts)
    held = np.floor(held_out * counts).astype(np.int64)[pairs[:, 0]]
    part = (place < held).astype(int) + (place < 2 * held)  # 2: valid, 1: test
    pairs = pairs[shuffled]
    return [np.ascontiguousarray(pairs[part == k]) for k in range(3)]


def draw_tastes(rng: np.random.Generator, settings: InteractionSettings) -> np.ndarray:
    """Log-odds of every user and item in units of 1/4096, int64 (users, items)."""
    user_factors, item_factors, popularity = draw_teacher(rng, settings)
    tastes: np.ndarray = user_factors @ item_factors.T + popularity
    return tastes


def draw_teacher(
    rng: np.random.Generator, settings: InteractionSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors of users and of items in units of 1/64, int64 (users, factors) and
    (items, factors), and the items' popularity in units of 1/4096, int64 (items,).
    """
    user_factors, item_factors = (
        np.rint(
            rng.standard_normal((size, settings.factors))
            * settings.factor_std
            / settings.factors**0.25
            * FACTOR_GRID
        ).astype(np.int64)
        for size in (settings.num_users, settings.num_items)
    )
    ranks = rng.permutation(settings.num_items)
    popularity = np.rint(-settings.exponent * np.log1p(ranks) * LOGIT_GRID)
    return user_factors, item_factors, popularity.astype(np.int64)


def describe_parties(settings: InteractionSettings, seed: int) -> np.ndarray:
    """Content vectors of users, then items, float32 (ids, width), by the teacher's
    vectors and, of items, their popularity.
    """
    teacher = draw_teacher(np.random.default_rng([seed, 7]), settings)
    user_factors, item_factors, popularity = teacher
    vectors = np.concatenate([user_factors, item_factors])
    ranked = np.concatenate([np.zeros(len(user_factors)), popularity / FACTOR_GRID])
    parameters = np.column_stack([np.rint(ranked).astype(np.int64), vectors])
    spread = settings.factor_std / settings.factors**0.25
    return plant_content(
        np.random.default_rng([seed, 8]),
        parameters,
        settings.content_width,
        settings.content_noise,
        spread,
    )
