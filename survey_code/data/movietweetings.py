"""MovieTweetings-100K: ratings in time order, for experiments on drift.

Dooms, De Pessemier and Martens (2013); MIT licence.
"""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

import numpy as np

from survey_code.checks import check_range
from survey_code.data.files import DataFile, read_data
from survey_code.data.tasks import ClickRows, InteractionData, StreamData

RATINGS = 100_000
FILE = DataFile(
    "movietweetings_100k",
    "ratings.dat",
    "https://raw.githubusercontent.com/sidooms/MovieTweetings/master/snapshots/100K/ratings.dat",
    {"c0dd868c2632d10002ebc928ddc5345f33adeaa59eca52c2941c26a2c5e36fd6": "published"},
)


def load_movietweetings(windows: int = 10) -> StreamData:
    """Ratings sorted by time and cut into equal windows; liked means 8 or more.

    Ids are numbered by the raw id, not by first appearance, which would tell
    when an id enters.

    Parameters
    ----------
    windows : int, default 10

    Returns
    -------
    StreamData
        Fields user (16,554 ids) and movie (10,506).

    Raises
    ------
    ValueError, FileNotFoundError
        If `windows` is not from 2 to 1,000; and see
        `survey_code.data.files.read_data`.
    """
    windows = check_range("windows", windows, 2, 1000)
    ids, labels, starts, source = read_ratings()
    cuts = np.linspace(0, len(ids), windows + 1).astype(int)
    return StreamData(
        "movietweetings_100k",
        ("user", "movie"),
        starts,
        tuple(
            ClickRows(ids[start:stop], labels[start:stop])
            for start, stop in pairwise(cuts)
        ),
        source=source,
    )


# Shares of the ratings, in time order, that are trained on, and up to which choices
# are made; and how many pairs of the former an id must stand in.
TRAINED, CHOSEN, LEAST_PAIRS = 0.8, 0.9, 2


def load_movietweetings_pairs() -> InteractionData:
    """Who rated which movie, cut in time: the first 80 % of the ratings to learn from,
    the next tenth to choose by, the last one to test.

    A rating of any height is a pair.  Users and movies with fewer than two pairs to
    learn from are left out, again until none is left, and of later pairs those of
    unknown users or movies.

    Returns
    -------
    InteractionData
        7,568 users and 4,594 movies.

    Raises
    ------
    ValueError, FileNotFoundError
        See `survey_code.data.files.read_data`.
    """
    ids, _, starts, source = read_ratings()
    cuts = [int(share * len(ids)) for share in (TRAINED, CHOSEN)]
    train, valid, test = np.split(ids, cuts)
    whole = 0
    while len(train) != whole:
        whole = len(train)
        counts = np.bincount(train.ravel(), minlength=int(starts[-1]))
        train = train[(counts[train] >= LEAST_PAIRS).all(axis=1)]
    # Ids that are left, numbered anew; users stay before movies.
    known = np.unique(train)
    place = np.full(int(starts[-1]), -1)
    place[known] = np.arange(len(known))
    parts = [place[part] for part in (train, valid, test)]
    train, valid, test = (part[(part >= 0).all(axis=1)] for part in parts)
    users = int((known < starts[1]).sum())
    return InteractionData(
        "movietweetings_100k (pairs)", users, len(known) - users, train, valid, test,
        source=source,
    )  # fmt: skip


def read_ratings() -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Ids (ratings, 2) in time order, whether each is liked, where the fields start,
    and where the file is from.
    """
    import pandas as pd

    content, source = read_data(FILE)
    names = ["user", "movie", "rating", "time"]
    # One separator of two colons: read as four columns between empty ones.
    table = pd.read_csv(io.BytesIO(content), sep=":", header=None, usecols=[0, 2, 4, 6])
    table.columns = pd.Index(names)
    if len(table) != RATINGS:
        raise ValueError(f"movietweetings: {len(table)} ratings, expected {RATINGS}")
    table = table.sort_values("time", kind="stable")
    users, user_ids = np.unique(table["user"], return_inverse=True)
    movies, movie_ids = np.unique(table["movie"], return_inverse=True)
    ids = np.stack([user_ids, len(users) + movie_ids], axis=1).astype(np.int64)
    labels = (table["rating"] >= 8).to_numpy(dtype=np.float32)
    starts = np.array([0, len(users), len(users) + len(movies)])
    return ids, labels, starts, {"ratings": source}
