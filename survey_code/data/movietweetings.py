"""MovieTweetings-100K: ratings in time order, for experiments on drift.

Dooms, De Pessemier and Martens (2013); MIT licence.
"""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np

from survey_code.checks import check_range
from survey_code.data.files import DataFile, read_data
from survey_code.data.tasks import ClickRows, StreamData

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
    import pandas as pd

    windows = check_range("windows", windows, 2, 1000)
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
    cuts = np.linspace(0, len(ids), windows + 1).astype(int)
    return StreamData(
        "movietweetings_100k",
        ("user", "movie"),
        np.array([0, len(users), len(users) + len(movies)]),
        tuple(
            ClickRows(ids[start:stop], labels[start:stop])
            for start, stop in pairwise(cuts)
        ),
        source={"ratings": source},
    )
