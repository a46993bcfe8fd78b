"""Pictures say what the tables say."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt
from random_layouts import COMPOSED, random_composed, random_layout
from rates import KINDS

from survey_code import catalog, lab
from survey_code.lab.plots import (
    choose_styles,
    plot_marks,
    plot_taxonomy,
    plot_tradeoff,
)
from survey_code.lab.results import Result


def result(key, ratio, seed, auc):
    names = [field.name for field in dataclasses.fields(Result)]
    given = {name: {} for name in names}
    given |= {"key": key, "requested_ratio": ratio, "reached_ratio": ratio * 1.01}
    given |= {"seed": seed, "test": {"auc": auc}, "bytes": {"inference": 100}}
    given |= {"failure": None, "entrant": ""}
    return Result(**given)


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_lines_hold_means_over_seeds_at_the_ratio_reached(axes):
    runs = [result("full", 1, seed, 0.9 + seed / 100) for seed in (1, 2, 3)]
    for ratio in (8, 2):
        runs += [
            result("hashing", ratio, s, 0.9 - ratio / 100 + s / 100) for s in (1, 3)
        ]
    plot_tradeoff(runs, "auc", axes)
    (full,) = (line for line in axes.get_lines() if line.get_label() == "full")
    assert [float(y) for y in full.get_ydata()] == [pytest.approx(0.92)] * 2
    line = axes.containers[0][0]
    drawn = np.array([line.get_xdata(), line.get_ydata()], dtype=float)
    np.testing.assert_allclose(drawn, [[2.02, 8.08], [0.90, 0.84]])
    assert "hashing" in [t.get_text() for t in axes.texts]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["2x", "4x", "8x", "16x"]


def test_those_who_are_not_named_stay_grey_and_behind(axes):
    keys = ["uniform", "hashing", "pq"]
    runs = [result(key, ratio, 1, 0.8) for key in keys for ratio in (2, 4)]
    plot_tradeoff(runs, "auc", axes, named=["pq"])
    assert [t.get_text() for t in axes.texts] == ["pq"]
    behind = [line for line in axes.get_lines() if line.get_color() == "0.85"]
    named = axes.containers[0][0]
    assert len(behind) == 2
    assert all(line.get_zorder() < named.get_zorder() for line in behind)


def test_names_at_line_ends_do_not_overlap(axes):
    keys = ["uniform", "hashing", "quotient_remainder", "rowwise"]
    runs = [result(key, ratio, 1, 0.8) for key in keys for ratio in (2, 4)]
    runs += [result("hashing", 8, 1, 0.5)]
    plot_tradeoff(runs, "auc", axes)
    heights = sorted(t.xyann[1] for t in axes.texts if t.get_text() in keys)
    assert len(heights) == 4 and np.diff(heights).min() > 0.05


def test_a_method_looks_the_same_in_all_pictures_of_its_family():
    few = choose_styles(["uniform", "hashing", "dpq", "pq", "mgqe"])
    many = choose_styles(["clustering", "mgqe", "pq", "recjpq", "dpq", "pq, live"])
    assert all(few[key] == many[key] for key in ("dpq", "pq", "mgqe"))
    assert few["uniform"][0] == few["hashing"][0] == "0.55"
    assert few["uniform"] != few["hashing"] and len(set(many.values())) == len(many)
    mixed = choose_styles(["uniform", "pq", "hashing"])
    assert len({color for color, *_ in mixed.values()}) == 3
    family = [m.key for m in catalog.methods() if m.family == "hashing"]
    # No two look alike, also to someone who does not see the markers.
    looks = {(color, line) for color, _, line in choose_styles(family).values()}
    assert len(looks) == len(family)


@pytest.mark.parametrize("start, end, side", [(0.9, 0.5, 0.99), (0.5, 0.9, 0.01)])
def test_the_full_table_is_named_where_no_line_is(axes, start, end, side):
    runs = [result("full", 1, 1, 0.9)]
    runs += [result("hashing", 2, 1, start), result("hashing", 8, 1, end)]
    plot_tradeoff(runs, "auc", axes)
    (name,) = [t for t in axes.texts if t.get_text() == "uncompressed"]
    assert name.xy == (side, 0.9)


def test_marks_are_sorted_and_look_like_their_family(axes):
    values = {"pq": 0.9, "dpq": 0.8, "hashing": 0.85, "uniform": 0.7}
    runs = [
        result(key, 10, s, v + s / 100) for key, v in values.items() for s in (1, 3)
    ]
    runs += [result("full", 1, s, 0.95) for s in (1, 2)]
    plot_marks(runs, 10, "auc", axes)
    heights = [t.get_text() for t in axes.get_yticklabels()]
    assert heights == ["uniform", "dpq", "hashing", "pq"]
    lines = dict(zip(heights, (c[0] for c in axes.containers)))
    for name, line in lines.items():
        (mean,) = line.get_xdata()
        assert mean == pytest.approx(values[name] + 0.02)
    style = {k: (v.get_color(), v.get_marker()) for k, v in lines.items()}
    assert style["pq"] == style["dpq"] != style["hashing"]
    named = [t.get_text() for t in axes.get_legend().get_texts()]
    assert named == ["baseline", "hashing", "vector quantisation"]


def test_every_family_has_a_mark_of_its_own(axes):
    everyone = [m for m in reversed(catalog.methods()) if m.key != "full"]
    first = {m.family: m.key for m in everyone}
    plot_marks([result(key, 10, 1, 0.5) for key in first.values()], 10, "auc", axes)
    marks = [(c[0].get_color(), c[0].get_marker()) for c in axes.containers]
    families = sum(map(len, catalog.TAXONOMY.values()))
    assert len(set(marks)) == len(first) == families


def test_the_taxonomy_names_every_method_once():
    axes = plot_taxonomy(lab_methods := catalog.methods())
    drawn = " ".join(t.get_text() for t in axes.texts).replace("\n", " ")
    assert all(method.title in drawn for method in lab_methods)
    plt.close(axes.figure)


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("8 bits", 72),
        ("4 bits", 36),
        ("2 bits", 20),
        ("float16", 128),
        ("float32", 256),
    ],
)
def test_tables_for_timing_are_real_tables(kind, row):
    layout = random_layout(kind, rows=50, dim=64, seed=1)
    assert layout.nbytes == 50 * row
    rows = layout.lookup(np.arange(50))
    assert np.isfinite(rows).all() and len(np.unique(rows, axis=0)) == 50
    again = random_layout(kind, rows=50, dim=64, seed=1)
    np.testing.assert_array_equal(again.lookup(np.arange(50)), rows)


def test_rates_need_a_gpu():
    from rates import measure_rates

    from survey_code.kernels.cuda import load_cupy

    try:
        load_cupy()
    except RuntimeError as error:
        with pytest.raises(RuntimeError, match="needs"):
            next(measure_rates())
        assert "GPU" in str(error)
    assert "run" in lab.__all__


@pytest.mark.parametrize("kind", COMPOSED)
def test_random_layouts_can_be_read(kind):
    layout, touched = random_composed(kind, rows=1000, dim=64, seed=1)
    rows = layout.lookup([0, 999])
    assert rows.shape == (2, 64) and np.isfinite(rows).all()
    assert 0 < touched
    assert layout.nbytes < 4 * 1000 * 64
    again, _ = random_composed(kind, rows=1000, dim=64, seed=1)
    np.testing.assert_array_equal(again.lookup([0, 999]), rows)


def test_what_was_recorded_can_be_measured_again():
    """The kinds of the recorded rates are still made under their names."""
    speed = Path(__file__).parents[2] / "book" / "results" / "speed"
    for name, kinds in (("rows", KINDS), ("composed", COMPOSED)):
        lines = (speed / f"{name}.jsonl").read_text().splitlines()
        assert {json.loads(line)["kind"] for line in lines} <= set(kinds)
