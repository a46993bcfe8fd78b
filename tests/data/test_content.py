"""What is known of ids before their first click, and ids that training never sees."""

import dataclasses

import numpy as np
import pytest

from survey_code.data import load
from survey_code.data.content import (
    LARGE_FIELD,
    choose_stand_ins,
    mark_fields,
    plant_content,
)
from survey_code.data.synthetic import (
    FACTOR_GRID,
    PRESETS,
    InteractionSettings,
    SyntheticSettings,
    World,
    draw_teacher,
    make_clicks,
    make_interactions,
    make_stream,
    turn,
)
from survey_code.lab.stream import gather_windows
from survey_code.lab.task import merge_hold_out

FEW = {"field_sizes": (1200, 300, 40), "rows": (3000, 800, 800)}


def parameters_of(world):
    """The teacher's weight and vector of each id, in units of 1/64."""
    linear = turn(world._linear, 0.0, FACTOR_GRID)[:, None]
    return np.concatenate([linear, turn(world._factors, 0.0, FACTOR_GRID)], 1)


def make_world(**settings):
    chosen = dataclasses.replace(PRESETS["small"], **{**FEW, **settings})
    return World(chosen, windows=1, seed=2)


# -- content ----------------------------------------------------------------------


def test_without_noise_content_is_a_linear_function_of_the_teacher():
    world = make_world(content=1.0)
    parameters, content = parameters_of(world), world.describe_ids()
    assert content.shape == (1540, 8) and content.dtype == np.float32
    mixing, *_ = np.linalg.lstsq(parameters, content.astype(np.float64), rcond=None)
    np.testing.assert_allclose(parameters @ mixing, content, atol=1e-9)
    # Sums of integers in units of 1/4096: no order of summation changes a digit.
    assert (content * 4096 == np.rint(content * 4096)).all()


def test_noise_is_added_to_the_same_content():
    exact = make_world(content=1.0).describe_ids()
    for strength in (0.3, 1.0):
        noisy = make_world(content=1.0, content_noise=strength).describe_ids()
        noise = noisy - exact
        assert noise.std() == pytest.approx(strength * 0.5, rel=0.03)
        assert abs(np.corrcoef(noise.ravel(), exact.ravel())[0, 1]) < 0.03
    assert exact.std() == pytest.approx(0.5, rel=0.3)


def test_noise_has_the_spread_that_it_is_given():
    drawn = plant_content(
        np.random.default_rng(0), np.zeros((20_000, 3), np.int64), 2, 0.5, 3.0
    )
    assert drawn.std() == pytest.approx(1.5, rel=0.02)


@pytest.mark.parametrize(("share", "fields"), [(0.3, 1), (0.5, 2), (1.0, 3)])
def test_the_largest_fields_have_content(share, fields):
    content = make_clicks(**FEW, content=share).content
    known = content.any(axis=1)
    ends = [0, 1200, 1500, 1540]
    for field in range(3):
        assert known[ends[field] : ends[field + 1]].all() == (field < fields)
        assert known[ends[field] : ends[field + 1]].any() == (field < fields)


def test_of_fields_of_one_size_the_first_is_marked():
    assert mark_fields(np.array([0, 2, 4]), 0.5).tolist() == [True, True, False, False]
    assert not mark_fields(np.array([0, 2, 4]), 0).any()


def test_content_changes_nothing_else():
    plain, told = make_clicks(**FEW), make_clicks(**FEW, content=1.0)
    for name in ("train", "valid", "test"):
        for array in ("ids", "labels"):
            one, other = (getattr(getattr(d, name), array) for d in (plain, told))
            np.testing.assert_array_equal(one, other)
    assert plain.content is None and plain.best == told.best


def test_another_seed_has_other_content():
    one, same, other = (
        make_clicks(**FEW, content=1.0, seed=seed).content for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_spec_is_told_the_content_of_every_kind_of_data():
    clicks = make_clicks(**FEW, content=1.0)
    assert clicks.spec(4).content is clicks.content
    small = {"num_users": 30, "num_items": 20, "per_user": (5, 9)}
    pairs = make_interactions(**small, content=True)
    assert pairs.spec(4).content is pairs.content is merge_hold_out(pairs).content
    stream = make_stream(field_sizes=(50, 20), rows=(30,) * 4, content=1.0)
    assert len(stream.content) == stream.num_embeddings > 70  # those to come as well
    for part in (stream.as_clicks(2), gather_windows(stream, 0, 2)):
        assert part.spec(4).content is stream.content
    for data in (make_clicks(**FEW), make_interactions(**small)):
        assert data.content is None and data.spec(4).content is None


def test_content_of_interactions_is_that_of_their_teacher():
    small = {"num_users": 300, "num_items": 200, "per_user": (5, 9)}
    plain, told = make_interactions(**small), make_interactions(**small, content=True)
    for name in ("train", "valid", "test"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(told, name))
    users, items, popularity = draw_teacher(
        np.random.default_rng([0, 7]), InteractionSettings(**small)
    )
    ranked = np.rint(np.concatenate([np.zeros(300), popularity / 64]))
    parameters = np.column_stack([ranked, np.concatenate([users, items])])
    content = told.content.astype(np.float64)
    mixing, *_ = np.linalg.lstsq(parameters, content, rcond=None)
    np.testing.assert_allclose(parameters @ mixing, content, atol=1e-6)
    noisy = make_interactions(**small, content=True, content_noise=0.5).content
    assert 0.5 < np.corrcoef(noisy.ravel(), content.ravel())[0, 1] < 0.99


# -- unseen ids -------------------------------------------------------------------


def test_unseen_ids_are_in_no_training_row_but_in_others():
    plain, kept = make_clicks(**FEW), make_clicks(**FEW, unseen=0.2)
    moved = (plain.train.ids != kept.train.ids).any(axis=0)
    assert moved.tolist() == [True, False, False]  # one field has 1,000 ids or more
    for part in ("valid", "test"):
        for array in ("ids", "labels"):
            one, other = (getattr(getattr(data, part), array) for data in (plain, kept))
            np.testing.assert_array_equal(one, other)
    changed = plain.train.ids[:, 0] != kept.train.ids[:, 0]
    hidden = np.unique(plain.train.ids[changed, 0])
    assert not np.isin(hidden, kept.train.ids).any()
    assert np.isin(plain.test.ids[:, 0], hidden).mean() > 0.05


def test_the_next_less_popular_id_that_is_seen_stands_in():
    ranked = np.random.default_rng(5).permutation(LARGE_FIELD) + 7
    rng = np.random.default_rng(0)
    stand_ins = choose_stand_ins(rng, [np.arange(7), ranked], LARGE_FIELD + 7, 0.3)
    assert (stand_ins[:7] == np.arange(7)).all()
    own = stand_ins[ranked] == ranked
    assert (~own).sum() == 300
    for place in np.flatnonzero(~own):
        rest = np.flatnonzero(own[place:])
        wanted = place + rest[0] if len(rest) else np.flatnonzero(own)[-1]
        assert stand_ins[ranked[place]] == ranked[wanted]


def test_rows_with_an_id_that_training_never_showed_are_told_apart():
    data = make_clicks(**FEW, unseen=0.2)
    shown = data.shows_unseen(data.test)
    counts = data.spec(4).train_counts
    wanted = [any(counts[i] == 0 for i in row) for row in data.test.ids]
    assert shown.tolist() == wanted and 0.1 < shown.mean() < 0.9
    assert not data.shows_unseen(data.train).any()


def test_labels_of_training_rows_are_those_of_the_ids_that_they_show():
    kept = make_world(unseen=0.3)
    rows, logits = kept.draw(500, kept.choose_stand_ins())
    np.testing.assert_array_equal(kept.true_logits(rows.ids), logits)


# -- names and bad values -----------------------------------------------------------


def test_the_preset_is_known_by_name():
    data = load("synthetic-content", rows=(3000, 500, 500))
    assert data.name == "synthetic (content, rows=(3000, 500, 500))"
    known = data.content.any(axis=1)
    assert known[:12_000].all() and not known[12_000:].any()
    with pytest.raises(ValueError, match="read-only"):
        data.content[0, 0] = 1
    plain = load("synthetic", rows=(3000, 500, 500))
    np.testing.assert_array_equal(data.test.ids, plain.test.ids)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("content", 1.5),
        ("content", -0.1),
        ("content", True),
        ("content_width", 0),
        ("content_width", 2.5),
        ("content_noise", -1),
        ("content_noise", float("nan")),
        ("unseen", 0.95),
        ("unseen", None),
    ],
)
def test_bad_settings_are_named_with_their_values(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
        SyntheticSettings((10,), 1.0, (9, 9, 9), **{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("content", 1), ("content_width", 0), ("content_noise", "much")]
)
def test_bad_settings_of_interactions_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
        InteractionSettings(**{name: value})


def test_a_stream_has_no_unseen_ids():
    with pytest.raises(ValueError, match=r"unseen=0.1 .* new_ids"):
        make_stream(unseen=0.1)
