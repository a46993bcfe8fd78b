"""MovieTweetings-100K in time order."""

import gzip

import numpy as np
import pytest

from survey_code.data import load
from survey_code.data.movietweetings import load_movietweetings

USERS, MOVIES = 16_554, 10_506


@pytest.fixture(scope="module")
def stream(real_data):
    return load("movietweetings")


@pytest.fixture(scope="module")
def ratings(real_data):
    """The file, parsed line by line: user, movie, rating, time."""
    (path,) = (real_data / "movietweetings_100k").glob("ratings.dat*")
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    return np.array([line.split(b"::") for line in content.splitlines()]).astype(int)


def test_windows_and_ids_are_as_published(stream):
    assert [len(window) for window in stream.windows] == [10_000] * 10
    assert stream.field_names == ("user", "movie")
    assert stream.field_starts.tolist() == [0, USERS, USERS + MOVIES]
    assert stream.num_embeddings == USERS + MOVIES and stream.task == "ctr"
    assert stream.source["ratings"]["edition"] == "published"


def test_rows_are_in_time_order_and_ties_keep_the_files_order(stream, ratings):
    ordered = ratings[np.argsort(ratings[:, 3], kind="stable")]
    assert (np.diff(ordered[:, 3]) >= 0).all()
    ids = np.concatenate([window.ids for window in stream.windows])
    labels = np.concatenate([window.labels for window in stream.windows])
    users, movies = np.unique(ratings[:, 0]), np.unique(ratings[:, 1])
    np.testing.assert_array_equal(users[ids[:, 0]], ordered[:, 0])
    np.testing.assert_array_equal(movies[ids[:, 1] - USERS], ordered[:, 1])
    np.testing.assert_array_equal(labels, ordered[:, 2] >= 8)


def test_windows_start_on_the_known_days(ratings):
    times = np.sort(ratings[:, 3])[::10_000]
    days = times.astype("datetime64[s]").astype("datetime64[D]").astype(str).tolist()
    assert [day[5:] for day in days] == [
        "02-28", "03-18", "04-06", "04-26", "05-16", "06-04", "06-23", "07-12",
        "07-31", "08-17",
    ]  # fmt: skip


def test_half_of_the_ratings_are_likes(stream):
    share = np.mean([window.labels.mean() for window in stream.windows])
    assert share == pytest.approx(0.505, abs=5e-4)


def test_shares_of_newcomers_are_those_measured(stream):
    """Rows whose user (movie) never appeared before, windows 1 to 9."""
    seen = np.zeros(stream.num_embeddings, dtype=bool)
    shares = []
    for window in stream.windows:
        shares.append((100 * (~seen[window.ids]).mean(axis=0)).round().tolist())
        seen[window.ids] = True
    users, movies = np.array(shares[1:]).T
    np.testing.assert_allclose(users, [36, 31, 27, 23, 24, 20, 20, 17, 28], atol=1)
    np.testing.assert_allclose(movies, [25, 23, 14, 14, 23, 12, 14, 12, 9], atol=1)


def test_no_pair_is_rated_twice(stream):
    ids = np.concatenate([window.ids for window in stream.windows])
    assert len(np.unique(ids, axis=0)) == 100_000


def test_as_clicks_nothing_of_the_test_comes_before_the_training(stream):
    data = stream.as_clicks(train=6, valid=1)
    lengths = [len(part) for part in (data.train, data.valid, data.test)]
    assert lengths == [60_000, 10_000, 30_000]
    np.testing.assert_array_equal(data.test.ids[0], stream.windows[7].ids[0])


@pytest.mark.parametrize("windows", [2, 7, 1000])
def test_windows_are_equal_to_one_row(real_data, windows):
    sizes = [len(window) for window in load("movietweetings", windows=windows).windows]
    assert len(sizes) == windows and sum(sizes) == 100_000
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("windows", [1, 0, -3, 1001, 2.5, "10", None])
def test_a_bad_number_of_windows_is_a_value_error(windows):
    with pytest.raises(ValueError, match=r"windows must be .*from 2 to 1000") as error:
        load_movietweetings(windows)
    assert str(windows) in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"1::2::3\n", b"\xff\x00::a\n", b"1::2::8::99\n"]
)
def test_text_that_is_not_movietweetings_is_a_value_error(content, monkeypatch):
    from survey_code.data import movietweetings

    monkeypatch.setattr(movietweetings, "read_data", lambda file: (content, {}))
    with pytest.raises(ValueError):
        load_movietweetings()


# -- pairs ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(real_data):
    return load("movietweetings-pairs")


def test_pairs_are_cut_in_time_and_known(pairs, stream):
    assert (pairs.num_users, pairs.num_items) == (7568, 4594)
    assert [len(part) for part in (pairs.train, pairs.valid, pairs.test)] == [
        68945, 6410, 4484,
    ]  # fmt: skip
    counts = np.bincount(pairs.train.ravel(), minlength=pairs.num_embeddings)
    assert counts.min() == 2
    for part in (pairs.train, pairs.valid, pairs.test):
        assert part[:, 0].max() < pairs.num_users <= part[:, 1].min()
    # Nothing is tested that was learnt, and everything is one of the stream's ratings.
    whole = np.concatenate([pairs.train, pairs.valid, pairs.test])
    assert len(np.unique(whole, axis=0)) == len(whole)
    rows = np.concatenate([window.ids for window in stream.windows])
    early = np.sort(np.bincount(rows[:80000, 0]))[::-1]
    mine = np.sort(np.bincount(pairs.train[:, 0]))[::-1]
    assert (mine <= early[: len(mine)]).all()


def test_pairs_of_a_movie_that_nobody_is_left_for_go_too(monkeypatch):
    from survey_code.data import movietweetings

    # Movie 9 has two users, of whom one rated nothing else.
    early = [(0, 7), (0, 8), (1, 7), (1, 8), (1, 9), (2, 9)]
    ids = np.array([*early, (0, 9), (1, 8)])
    monkeypatch.setattr(movietweetings, "TRAINED", 6 / 8)
    monkeypatch.setattr(movietweetings, "CHOSEN", 7 / 8)
    given = (ids, None, np.array([0, 7, 10]), {})
    monkeypatch.setattr(movietweetings, "read_ratings", lambda: given)
    found = movietweetings.load_movietweetings_pairs()
    assert (found.num_users, found.num_items) == (2, 2)
    assert found.train.tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    assert found.valid.tolist() == [] and found.test.tolist() == [[1, 3]]
