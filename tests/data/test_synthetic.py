"""The synthetic world: the same bits everywhere, and as described."""

import hashlib
import re
from itertools import pairwise

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from survey_code.data import ClickRows, list_arrays, load
from survey_code.data.synthetic import (
    PRESETS,
    InteractionSettings,
    SyntheticSettings,
    World,
    draw_tastes,
    make_clicks,
    make_interactions,
    make_stream,
    turn,
    zipf_thresholds,
)


def checksum(data):
    """SHA-256 of all ids and labels, as little-endian int64 and float32."""
    digest = hashlib.sha256()
    digest.update(data.field_starts.astype("<i8").tobytes())
    for array in list_arrays(data):
        kind = "<i8" if array.ndim == 2 else "<f4"
        digest.update(np.ascontiguousarray(array, dtype=kind).tobytes())
    return digest.hexdigest()


# Drawn once and written down: another value is another world, and every number
# in the chapters would change with it.
GOLDEN = [
    (make_clicks, "small", {},
     "7c0c60c227e4ea857c60c92f3dca6a84476a7532875ef7142a48b657e34078ed"),
    (make_clicks, "small", {"seed": 1},
     "0adea8262620a879b265488102c5b09162c99f55507eb78105d8e2f0a9da3ae1"),
    (make_clicks, "large", {"rows": (20_000, 2000, 2000)},
     "7a227f68ba2e94149c34b3b73c79178c0a3c741aa0f7a0ac2a19a7307dbf847f"),
    (make_stream, "stream", {},
     "9c792c246310e9778f41098ef798e6fa29887771b52d04bcb756ea582c17b654"),
    (make_stream, "seasons", {},
     "b79208380c5cb42b48160070face1ce4749483c2e75d96f9acf8bcd5c12c8a97"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "preset", "options", "wanted"),
    GOLDEN,
    ids=["small", "small-seed-1", "large", "stream", "seasons"],
)
def test_a_seed_gives_the_same_bits_everywhere(make, preset, options, wanted):
    assert checksum(make(preset, **options)) == wanted


@pytest.fixture(scope="module")
def small():
    return make_clicks("small")


@pytest.fixture(scope="module")
def stream():
    return make_stream("stream")


# -- shapes -----------------------------------------------------------------


def test_sizes_are_the_presets(small):
    sizes = (6000, 4000, 1500, 500, 100, 30, 10, 4)
    assert np.diff(small.field_starts).tolist() == list(sizes)
    assert small.num_embeddings == sum(sizes) and len(small.field_names) == len(sizes)
    parts = (small.train, small.valid, small.test)
    assert tuple(map(len, parts)) == (200_000, 40_000, 40_000)
    for part in parts:
        assert part.ids.dtype == np.int64 and part.labels.dtype == np.float32
        assert set(np.unique(part.labels)) == {0.0, 1.0}
        assert part.ids.shape == (len(part), 8) and part.labels.shape == (len(part),)


def test_the_large_preset_is_large():
    """More than a million ids, and as skewed as ids are: drawn with fewer rows."""
    data = make_clicks("large", rows=(40_000, 500, 500))
    assert data.num_embeddings > 1_000_000
    assert sum(PRESETS["large"].rows) >= 2_000_000
    users = data.train.ids[:, 0]
    assert users.max() < data.field_starts[1] and len(np.unique(users)) < 30_000
    counts = np.sort(data.spec(2).train_counts[: data.field_starts[1]])[::-1]
    # One id in a thousand takes more than a tenth of the reads; most are never read.
    assert counts[: len(counts) // 1000].sum() > 0.1 * counts.sum()
    assert (counts == 0).mean() > 0.9


@pytest.mark.parametrize(
    ("ids", "labels", "said"),
    [
        (np.zeros((3, 2)), np.zeros(3), "ids must be an array of numbers"),
        ([[1, 2]], np.zeros(1), "ids must be an array of numbers"),
        (np.zeros((3, 2), int), np.ma.zeros(3), "labels must be an array of numbers"),
        (np.zeros((3, 2), int), np.zeros((3, 1)), r"labels \(rows,\), got \(3, 2\)"),
        (np.zeros((3, 2), int), np.zeros(2), "got .3, 2. and .2,."),
        (np.zeros(3, int), np.zeros(3), "ids must have shape"),
        (np.zeros((2, 2), int), np.array([-1, 1]), "labels must be 0 or 1, got -1"),
        (
            np.zeros((2, 2), int),
            np.array([np.nan, 1]),
            "labels must be 0 or 1, got nan",
        ),
    ],
)
def test_rows_of_the_wrong_shape_or_labels_are_none(ids, labels, said):
    with pytest.raises(ValueError, match=said):
        ClickRows(ids, labels)


def test_ids_stay_within_their_field(small, stream):
    for data, parts in ((small, (small.train, small.test)), (stream, stream.windows)):
        for part in parts:
            assert (part.ids >= data.field_starts[:-1]).all()
            assert (part.ids < data.field_starts[1:]).all()


def test_a_spec_counts_training_rows_only(small):
    spec = small.spec(8)
    assert spec.train_counts.sum() == small.train.ids.size
    ids, counts = np.unique(small.train.ids, return_counts=True)
    np.testing.assert_array_equal(np.flatnonzero(spec.train_counts), ids)
    np.testing.assert_array_equal(spec.train_counts[ids], counts)


def test_loaded_by_name_it_is_the_same_and_cannot_be_changed(small):
    again = load("synthetic")
    np.testing.assert_array_equal(again.train.ids, small.train.ids)
    with pytest.raises(ValueError, match="read-only"):
        again.train.ids[0, 0] = 1
    assert load("synthetic") is again


def test_an_unknown_name_is_a_value_error():
    with pytest.raises(ValueError, match="unknown data set 'criteo'; data sets: "):
        load("criteo")


# -- the laws ---------------------------------------------------------------


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.05, 1.5])
def test_the_zipf_exponent_comes_back(exponent):
    data = make_clicks(
        field_sizes=(1000, 50), rows=(200_000, 99, 99), exponent=exponent
    )
    for field, ranks in ((0, 100), (1, 30)):
        counts = np.bincount(data.train.ids[:, field])
        counts = np.sort(counts)[::-1][:ranks]
        if exponent == 0:  # sorted noise has a slope of its own
            spread = counts / (200_000 / (1000, 50)[field])
            assert 0.7 < spread.min() <= spread.max() < 1.35
            continue
        slope = np.polyfit(np.log(np.arange(1, ranks + 1)), np.log(counts), 1)[0]
        assert slope == pytest.approx(-exponent, abs=0.06)


def test_popularity_says_nothing_about_the_number_of_an_id(small):
    """Ids modulo anything share out popular and rare ones alike."""
    counts = small.spec(4).train_counts[: small.field_starts[1]]
    order = np.argsort(-counts, kind="stable")[:200]
    assert abs(np.corrcoef(order, np.arange(200))[0, 1]) < 0.25
    assert 0.35 < (order % 2).mean() < 0.65


def test_thresholds_rise_to_the_whole():
    limits = zipf_thresholds(1000, 1.05)
    assert (np.diff(limits) > 0).all() and limits[-1] == 2**40
    assert limits[0] / 2**40 == pytest.approx(
        1 / np.sum(np.arange(1, 1001) ** -1.05), rel=1e-9
    )


def tiny_world(**changes):
    settings = SyntheticSettings((40, 30, 20), 1.05, (1, 1, 1), **changes)
    return World(settings, windows=5, seed=3)


def test_log_odds_are_a_factorisation_machine():
    """The explicit sum over pairs, from the teacher's parameters."""
    world = tiny_world(rotation=0.3)
    for _ in range(2):
        rows, logits = world.draw(50)
        angle = 0.3 * world.age
        linear = turn(world._linear, angle, 4096) / 4096
        factors = turn(world._factors, angle, 64) / 64
        for ids, found in zip(rows.ids, logits):
            wanted = world.settings.bias + linear[ids].sum()
            for one in range(3):
                for other in range(one):
                    wanted += factors[ids[one]] @ factors[ids[other]]
            assert found == wanted  # multiples of 1/4096: exact
        world.drift()


def test_the_best_metrics_are_those_of_the_true_probabilities():
    data = make_clicks("small", rows=(1000, 5000, 5000), seed=4)
    world = World(SyntheticSettings(**settings_of(data)), windows=1, seed=4)
    for part, count in (("train", 1000), ("valid", 5000), ("test", 5000)):
        rows, logits = world.draw(count)
        drawn = getattr(data, part)
        np.testing.assert_array_equal(rows.ids, drawn.ids)
        chance = 1 / (1 + np.exp(-logits))
        if part != "train":
            best = data.best[part]
            assert best["auc"] == pytest.approx(roc_auc_score(drawn.labels, chance))
            assert best["log_loss"] == pytest.approx(log_loss(drawn.labels, chance))


def settings_of(data):
    return {name: value for name, value in data.source.items() if name != "seed"}


def test_the_best_of_each_window_is_known(stream):
    assert len(stream.best) == len(stream.windows) == 10
    world = World(PRESETS["stream"], windows=10, seed=0)
    for window, best in zip(stream.windows[:3], stream.best):
        rows, logits = world.draw(30_000)
        np.testing.assert_array_equal(rows.ids, window.ids)
        chance = 1 / (1 + np.exp(-logits))
        assert best["log_loss"] == pytest.approx(log_loss(window.labels, chance))
        world.drift()


def test_clicks_come_with_the_probability_that_the_teacher_says():
    world = World(PRESETS["small"], windows=1, seed=0)
    rows, logits = world.draw(200_000)
    chance = 1 / (1 + np.exp(-logits))
    bins = np.digitize(chance, np.linspace(0, 1, 21)[1:-1])
    for one in range(20):
        inside = bins == one
        expected, found = chance[inside].mean(), rows.labels[inside].mean()
        deviation = np.sqrt((chance * (1 - chance))[inside].sum()) / inside.sum()
        assert abs(found - expected) < 4 * deviation


def test_no_metric_can_beat_the_truth(small):
    """A noisier score is worse than the true one, on the same rows."""
    world = World(PRESETS["small"], windows=1, seed=0)
    world.draw(200_000)
    rows, logits = world.draw(40_000)
    noise = np.random.default_rng(0).normal(size=len(logits))
    assert roc_auc_score(rows.labels, logits + noise) < small.best["valid"]["auc"]


# -- drift ------------------------------------------------------------------

STILL = {"popularity_change": 0.0, "new_ids": 0.0, "rotation": 0.0, "away": 0.0}
SIZES = {"field_sizes": (400, 100), "rows": (2000,) * 4}


def worlds(**drift):
    """A world before and after each of its windows."""
    settings = SyntheticSettings(**{"exponent": 1.05, **SIZES, **STILL, **drift})
    world = World(settings, windows=4, seed=5)
    for _ in range(4):
        yield [ids.copy() for ids in world.ids_by_rank], world
        world.drift()


def all_logits(world):
    """What the teacher says of each id of the first field beside a fixed one."""
    first = np.arange(world.field_starts[1])
    return world.true_logits(np.stack([first, np.full_like(first, 401)], 1))


def test_nothing_moves_with_all_switches_off():
    ranks, logits = [], []
    for now, world in worlds():
        ranks.append(now)
        logits.append(all_logits(world))
    for later in range(1, 4):
        np.testing.assert_array_equal(logits[0], logits[later])
        for field in range(2):
            np.testing.assert_array_equal(ranks[0][field], ranks[later][field])


def test_popularity_change_moves_ranks_and_nothing_else():
    before = first = None
    for now, world in worlds(popularity_change=0.2):
        if before is not None:
            for field, size in enumerate((400, 100)):
                moved = now[field] != before[field]
                assert 0.5 * 0.2 * size < moved.sum() <= 0.2 * size
                assert set(now[field]) == set(before[field])
            np.testing.assert_array_equal(all_logits(world), first)
        else:
            first = all_logits(world)
        before = now


def test_new_ids_replace_old_ones_and_nothing_else():
    before, seen = None, set()
    for now, world in worlds(new_ids=0.05):
        ids = set(np.concatenate(now).tolist())
        if before is None:
            first = all_logits(world)
        else:
            for field, fresh in enumerate((20, 5)):
                changed = now[field] != before[field]
                assert changed.sum() == fresh
                assert not set(now[field][changed].tolist()) & seen
            np.testing.assert_array_equal(all_logits(world), first)
        seen |= ids
        before = now
    # Room for just the ids that come: none is left over.
    assert len(seen) == world.field_starts[-1] == 400 + 100 + 3 * (20 + 5)


@pytest.mark.parametrize("windows", [1, 2])
def test_ids_that_leave_come_back_after_so_many_windows(windows):
    history, logits = [], []
    for now, world in worlds(away=0.1, away_windows=windows):
        history.append([ids.tolist() for ids in now])
        logits.append(all_logits(world))
    for field, leaving in enumerate((40, 10)):
        sets = [set(now[field]) for now in history]
        for before, now in pairwise(sets):
            assert len(before - now) == len(now - before) == leaving
        for window in range(1, 4 - windows):
            left = sets[window - 1] - sets[window]
            for later in range(window, window + windows):
                assert not left & sets[later]
            assert left <= sets[window + windows]
    # All ids that there are: those in use, and those that are away meanwhile.
    assert world.field_starts[-1] == 500 + windows * 50
    np.testing.assert_array_equal(*logits[::3])  # the teacher did not move


def test_ids_come_back_about_as_popular_as_they_were():
    world = World(SyntheticSettings((1000,), 1.05, (9,) * 6, away=0.2), 6, seed=2)
    first = world.ids_by_rank[0].copy()
    world.drift()
    (left,) = np.nonzero(first != world.ids_by_rank[0])  # their ranks
    for _ in range(2):
        world.drift()
    (found,) = np.nonzero(np.isin(world.ids_by_rank[0], first[left]))
    np.testing.assert_array_equal(world.ids_by_rank[0][found], first[left])
    assert np.abs(found - left).mean() < 40


def test_new_ids_and_returning_ones_go_together():
    """A newcomer was never there, and a returning id only if it left."""
    seen, sets = set(), []
    for now, _ in worlds(away=0.1, new_ids=0.05, away_windows=1):
        sets.append(set(now[0].tolist()))
        assert len(sets[-1]) == 400
        if len(sets) > 2:
            came = sets[-1] - sets[-2]
            assert len(came & seen) in range(30, 41) and len(came - seen) == 20
        seen |= sets[-1]


def test_rotation_turns_the_teacher_and_nothing_else():
    still, turning = (
        make_stream(**SIZES, **{**STILL, "rotation": angle}, seed=5)
        for angle in (0.0, 0.4)
    )
    for window, other in zip(still.windows, turning.windows):
        np.testing.assert_array_equal(window.ids, other.ids)
    same = [
        (window.labels == other.labels).mean()
        for window, other in zip(still.windows, turning.windows)
    ]
    assert same[0] == 1.0 and same[3] < same[1] < 1.0


def test_the_teacher_s_correlation_with_its_start_falls_as_the_cosine():
    world = tiny_world(rotation=0.5)
    draws = np.random.default_rng(0).standard_normal((2, 100_000))
    start = turn(draws, 0.0, 4096)
    for windows in (1, 2, 3):
        now = turn(draws, windows * world.settings.rotation, 4096)
        found = np.corrcoef(start, now)[0, 1]
        assert found == pytest.approx(np.cos(0.5 * windows), abs=0.01)
        assert now.std() == pytest.approx(start.std(), rel=0.01)


@pytest.mark.parametrize("switch", [{"popularity_change": 0.2}, {"rotation": 0.4}])
def test_the_first_window_does_not_know_what_follows(switch):
    still, moving = (
        make_stream(**SIZES, **{**STILL, **changes}) for changes in ({}, switch)
    )
    for name in ("ids", "labels"):
        first, other = (getattr(data.windows[0], name) for data in (still, moving))
        np.testing.assert_array_equal(first, other)
        assert any(
            (getattr(a, name) != getattr(b, name)).any()
            for a, b in zip(still.windows[1:], moving.windows[1:])
        ) == (name == "labels" or "popularity_change" in switch)


# -- windows as a click task -------------------------------------------------


def test_windows_become_train_valid_and_test(stream):
    data = stream.as_clicks(train=3, valid=2)
    lengths = [len(part) for part in (data.train, data.valid, data.test)]
    assert lengths == [90_000, 60_000, 150_000]
    np.testing.assert_array_equal(data.valid.ids[:30_000], stream.windows[3].ids)
    np.testing.assert_array_equal(data.test.labels[-30_000:], stream.windows[9].labels)


@pytest.mark.parametrize(
    ("train", "valid"), [(0, 1), (1, 0), (9, 1), (5, 9), (-1, 1), (5.0, 1), (5, True)]
)
def test_windows_must_leave_a_test(stream, train, valid):
    with pytest.raises(ValueError, match=f"train={train} and valid={valid} windows"):
        stream.as_clicks(train, valid)


# -- wrong arguments -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("field_sizes", ()),
        ("field_sizes", (10, 0)),
        ("field_sizes", (10, -3)),
        ("field_sizes", (10, 2.5)),
        ("field_sizes", 7),
        ("rows", (10, 10, 0)),
        ("rows", (10, 10)),
        ("rows", ("a", "b", "c")),
        ("factors", 0),
        ("factors", 2.5),
        ("exponent", -0.1),
        ("exponent", 10.5),
        ("exponent", float("nan")),
        ("exponent", "steep"),
        ("linear_std", -1),
        ("factor_std", float("inf")),
        ("bias", float("inf")),
        ("bias", float("nan")),
        ("rotation", float("nan")),
        ("away", -0.1),
        ("away", 1.5),
        ("away_windows", 0),
        ("away_windows", 1.5),
        ("popularity_change", -0.1),
        ("popularity_change", 1.5),
        ("new_ids", float("nan")),
        ("new_ids", None),
        ("seed", -1),
        ("seed", 1.5),
        ("seed", None),
    ],
)
def test_a_bad_argument_is_named_with_its_value(name, value):
    with pytest.raises(ValueError, match=name) as error:
        make_clicks(**{"rows": (10, 10, 10), name: value})
    assert str(value) in str(error.value)


def test_unknown_presets_and_settings_are_value_errors():
    with pytest.raises(ValueError, match="unknown preset 'huge'; presets: "):
        make_clicks("huge")
    with pytest.raises(ValueError, match=re.escape("unknown setting 'row'; settings")):
        make_stream(row=3)


def test_other_data_have_another_name():
    small = {"field_sizes": (20, 10), "rows": (60, 40, 40)}
    names = [
        make_clicks(seed=seed, **{**small, **more}).name
        for seed, more in ((0, {}), (1, {}), (0, {"exponent": 1.3}))
    ]
    assert len(set(names)) == 3
    assert (
        names[1] == "synthetic (small, seed=1, field_sizes=(20, 10), rows=(60, 40, 40))"
    )


def test_interactions_are_pairs_of_a_user_and_an_item_once_each():
    data = make_interactions()
    pairs = np.concatenate([data.train, data.valid, data.test])
    assert len(np.unique(pairs, axis=0)) == len(pairs)
    assert pairs[:, 0].min() >= 0 and pairs[:, 0].max() < data.num_users
    assert pairs[:, 1].min() >= data.num_users
    assert pairs[:, 1].max() < data.num_embeddings
    met = np.bincount(pairs[:, 0], minlength=data.num_users)
    assert met.min() == 30 and met.max() == 60
    held = np.bincount(data.test[:, 0], minlength=data.num_users)
    assert (held == np.floor(0.1 * met)).all()
    assert (held == np.bincount(data.valid[:, 0], minlength=data.num_users)).all()


def test_interactions_follow_the_planted_tastes():
    """A met item's log-odds lie above those of items not met."""
    data = make_interactions(num_users=200, num_items=100, per_user=(10, 20))
    settings = InteractionSettings(num_users=200, num_items=100, per_user=(10, 20))
    tastes = draw_tastes(np.random.default_rng([0, 7]), settings)
    met = np.zeros(tastes.shape, dtype=bool)
    pairs = np.concatenate([data.train, data.valid, data.test])
    met[pairs[:, 0], pairs[:, 1] - 200] = True
    assert (tastes * met).sum(1).sum() / met.sum() > tastes[~met].mean() + 4096


def test_interactions_are_the_same_for_a_seed_and_differ_between_seeds():
    small = {"num_users": 20, "num_items": 15, "per_user": (3, 6)}
    one, again, other = (make_interactions(seed=s, **small) for s in (1, 1, 2))
    assert (one.train == again.train).all() and one.name == again.name
    assert one.name != other.name
    assert one.train.shape != other.train.shape or (one.train != other.train).any()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_users": 0}, "num_users must be an integer from 1 to 100000, got 0"),
        (
            {"per_user": (5, 2000)},
            "most items per user must be an integer from 5 to 1000",
        ),
        ({"held_out": 0.6}, "held_out must be a number from 0 to 0.5, got 0.6"),
        ({"users": 3}, "unknown setting 'users'"),
        ({"num_items": 30.0}, "num_items must be an integer from 1"),
        ({"factors": True}, "factors must be an integer from 1"),
        ({"exponent": "0.5"}, "exponent must be a number from 0 to 10, got '0.5'"),
        ({"exponent": float("nan")}, "exponent must be a number from 0 to 10, got nan"),
        ({"per_user": 30}, "per_user must be two numbers of items, got 30"),
        ({"per_user": (3.5, 9)}, "fewest items per user must be an integer"),
        ({"seed": -1}, "seed must be an integer from 0 up, got -1"),
        ({"seed": "1"}, "seed must be an integer from 0 up, got '1'"),
    ],
)
def test_bad_settings_of_interactions_are_value_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        make_interactions(**changes)
