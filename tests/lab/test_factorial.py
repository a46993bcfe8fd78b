"""Three axes crossed: what is asked for, and what interactions say of losses."""

import dataclasses
import math
import pickle

import numpy as np
import pytest

from survey_code.catalog import get_method
from survey_code.data.synthetic import make_clicks
from survey_code.lab.contest import Contest, Entrant, arrange, list_courses
from survey_code.lab.factorial import (
    CELLS,
    SHAPE,
    Cell,
    compare_at_equal_bytes,
    compare_orders,
    cross,
    draw_cells,
    estimate,
    find_bases,
    gather_losses,
    interact,
    is_one_axis,
    judge_effect,
    list_base_forms,
    list_bases,
    plot_interactions,
    split_place,
    tabulate_effects,
    tabulate_ratios,
)
from survey_code.lab.nesting import (
    LOSS_BLOCKS,
    FormExperiment,
    change_layout,
    list_recorded,
    read_blocks,
    tabulate_forms,
)
from survey_code.lab.records import Recorder, Records, Workers
from survey_code.lab.results import Result, load_results
from survey_code.lab.trial import TRIALS
from survey_code.lab.tuning import Way
from survey_code.layouts import DenseLayout

SEEDS, STRETCHES = (1, 2, 3), 8
FULL = 10_000


def draw_losses(seed=0, noise=0.0):
    """An additive world: losses of each axis's levels in sum, and a little noise that
    cells do not share.
    """
    rng = np.random.default_rng(seed)
    bits, dims, sharing = ([0, 0.001, 0.02], [0, 0.03, 0.05], [0, 0.04, 0.01])
    sums = np.add.outer(np.add.outer(bits, dims), sharing)
    common = rng.normal(0.4, 0.05, size=(1, 1, 1, 1, STRETCHES))
    own = rng.normal(0, noise, size=(*SHAPE, len(SEEDS), STRETCHES))
    return sums[..., None, None] + common + own


def tell(losses, ratios=None):
    """The results of the six bases that have these losses; AUC is 1 less the loss."""
    bases = {}
    for place, cell in zip(np.ndindex(*SHAPE), CELLS):
        ratio = math.prod(2.0**k for k in place) if ratios is None else ratios[place]
        for k, seed in enumerate(SEEDS):
            run = bases.setdefault((cell.base, seed), {"test": {}, "bytes": {}})
            behind = f"@{cell.form}" if cell.form else ""
            blocks = losses[place][k]
            run["test"] |= {f"log_loss{behind}#{b}": x for b, x in enumerate(blocks)}
            run["test"][f"log_loss{behind}"] = float(blocks.mean())
            run["test"][f"auc{behind}"] = 1 - float(blocks.mean())
            run["bytes"][f"inference{behind}"] = FULL / ratio
    return [
        make("nested", seed, dims=dims, sharing=sharing, **run)
        for ((dims, sharing), seed), run in bases.items()
    ]


def make(key, seed, test, bytes, entrant="", **asked):
    ratio = FULL / bytes["inference"]
    return Result(
        key=key, options={}, data="d", model="m", dim=16, seed=seed,
        requested_ratio=ratio, reached_ratio=ratio, bytes=bytes, validation={},
        test=test, seconds={}, lookup={}, settings={}, device="", date="", versions={},
        command="", asked=asked, entrant=entrant,
    )  # fmt: skip


# -- cells ---------------------------------------------------------------------


def test_there_are_27_cells_of_six_tables():
    assert len(set(CELLS)) == 27
    assert len({cell.base for cell in CELLS}) == 6
    assert len({(cell.base, cell.form) for cell in CELLS}) == 27
    assert CELLS[0].name == "full"
    cell = Cell("4 bits", "mde", "pq")
    assert (cell.name, cell.base) == ("4 bits + mde + pq", ("mde", "none"))
    assert cell.form == "pq, 4 bits"
    assert Cell("8 bits", "mde", "quotient_remainder").form == "8 bits"


def test_each_cell_is_a_form_that_is_asked_for():
    forms = {sharing: {"", *list_base_forms(sharing)} for sharing in ("none", SHARED)}
    for cell in CELLS:
        assert cell.form in forms[cell.base[1]]
    assert forms[SHARED] == {"", "8 bits", "4 bits"}
    assert "8 bits, pq, 8 bits" in forms["none"]


SHARED = "quotient_remainder"


def test_options_that_a_table_does_not_use_are_not_tuned():
    tuned = {}
    for base in list_bases():
        knobs = get_method("nested").load().options.grid()
        tuned[base.name] = set(knobs) - dict(base.asked).keys()
    assert tuned == {
        "full": set(),
        SHARED: {"combine"},
        "mde": {"alpha"},
        f"mde + {SHARED}": {"alpha", "combine"},
        "pruned": {"rewind", "decay"},
        f"pruned + {SHARED}": {"rewind", "decay", "combine"},
    }


@pytest.mark.parametrize("form", ["", "pq, pq", "3 bits", "8 bits, 4 bits", "8bits"])
def test_other_words_are_no_form(form):
    with pytest.raises(ValueError, match="a form is"):
        change_layout(DenseLayout(np.zeros((2, 2), np.float32)), form)


# -- effects -------------------------------------------------------------------


def test_in_an_additive_world_there_is_no_interaction():
    effects = interact(draw_losses())
    for place in np.ndindex(*SHAPE):
        if np.count_nonzero(place) > 1:
            assert np.abs(effects[place]).max() < 1e-12
    table = tabulate_effects(draw_losses())
    assert set(table.loc[table["order"] > 1, "says"]) == {"additive"}
    np.testing.assert_allclose(table["loss"], table["alone"], atol=1e-12)


def test_effects_add_up_to_losses():
    """Those of a cell and of all cells of fewer of its parts."""
    losses = np.random.default_rng(1).normal(size=(*SHAPE, 2, 3))
    effects = interact(losses)
    for place in np.ndindex(*SHAPE):
        within = [np.unique([0, k]) for k in place]
        total = sum(
            effects[part] for part in zip(*(m.ravel() for m in np.meshgrid(*within)))
        )
        np.testing.assert_allclose(total, losses[place])


def test_effects_are_the_sums_that_they_are_defined_as():
    losses = np.random.default_rng(2).normal(size=SHAPE)
    loss = losses - losses[0, 0, 0]
    effects = interact(losses)
    assert effects[2, 0, 1] == pytest.approx(
        loss[2, 0, 1] - loss[2, 0, 0] - loss[0, 0, 1]
    )
    assert effects[1, 2, 1] == pytest.approx(
        loss[1, 2, 1] - loss[1, 2, 0] - loss[1, 0, 1] - loss[0, 2, 1]
        + loss[1, 0, 0] + loss[0, 2, 0] + loss[0, 0, 1]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("planted", "says"),
    [(0.03, "worse than additive"), (-0.03, "better than additive")],
)
def test_a_planted_interaction_is_found_and_no_other(planted, says):
    losses = draw_losses(noise=1e-3)
    losses[2, :, 1] += planted  # 4 bits with shared rows, whatever the width
    table = tabulate_effects(losses, level=0.999)
    told = table.loc[table["order"] > 1, "says"]
    assert told[told != "additive"].to_dict() == {f"4 bits + {SHARED}": says}
    row = table.loc[f"4 bits + {SHARED}"]
    assert row["low"] < planted < row["high"]
    assert row["effect"] == pytest.approx(row["loss"] - row["alone"])


def test_a_mean_and_its_interval_by_hand():
    """Seeds' means 1 and 3, blocks' means 1.5 and 2.5: variances 1 and 1/4."""
    values = np.array([[0.5, 1.5], [2.5, 3.5]])
    mean, half = estimate(values)
    free = 1.25**2 / (1 + 1 / 16)
    from scipy import stats

    assert mean == 2
    assert half == pytest.approx(stats.t.ppf(0.975, free) * math.sqrt(1.25))


def test_intervals_hold_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(400):
        seeds = rng.normal(size=(3, 1))
        blocks = 2 * rng.normal(size=(1, 16))
        mean, half = estimate(seeds + blocks + rng.normal(size=(3, 16)))
        hits += abs(mean) <= half
    assert 0.93 * 400 <= hits


def test_one_seed_says_nothing():
    assert math.isnan(estimate(np.ones((1, 5)))[1])
    assert judge_effect(0.5, math.nan) == "unknown"
    losses = draw_losses()[:, :, :, :1]
    assert set(tabulate_effects(losses)["says"]) == {"", "unknown"}


def test_parts_of_a_place():
    assert split_place((1, 2, 0)) == [(1, 0, 0), (0, 2, 0)]
    assert split_place((0, 0, 0)) == []


# -- results -------------------------------------------------------------------


def test_losses_are_gathered_from_the_runs_of_the_bases():
    losses = draw_losses(noise=0.01)
    results = tell(losses)
    found = gather_losses(reversed(results))
    np.testing.assert_array_equal(found, losses)
    points = draw_cells(results, "log_loss")
    assert points[CELLS[0]].values[2] == pytest.approx(losses[0, 0, 0, 1].mean())
    assert points[CELLS[-1]].reached[0] == pytest.approx(64)


def test_a_missing_run_or_form_is_named():
    results = tell(draw_losses())
    with pytest.raises(ValueError, match=r"no run of dims=pruned.*seeds .'3'"):
        find_bases([r for r in results if (r.asked["dims"], r.seed) != ("pruned", 3)])
    with pytest.raises(ValueError, match="no run of dims=full"):
        find_bases([])
    for result in results:
        result.test = {n: x for n, x in result.test.items() if "@4 bits#" not in n}
    with pytest.raises(ValueError, match="no losses in the form '4 bits'"):
        gather_losses(results)


def test_ratios_multiply_or_do_not():
    ratios = {
        place: math.prod(4.0 ** (k > 0) for k in place) for place in np.ndindex(*SHAPE)
    }
    table = tabulate_ratios(tell(draw_losses(), ratios))
    assert len(table) == 12 + 8
    np.testing.assert_allclose(table["share"], 1)
    ratios[1, 0, 2] = 4.0
    row = tabulate_ratios(tell(draw_losses(), ratios)).loc["8 bits + pq"]
    assert row.tolist() == [4, 16, 0.5]


def test_orders_are_compared_at_the_same_bytes():
    results = tell(draw_losses())
    for result in results:
        if result.asked["sharing"] == "none":
            for bits in ("8 bits", "4 bits"):
                for b, loss in enumerate(read_blocks(result, f"pq, {bits}")):
                    worse = 0.25 * (bits == "4 bits")
                    result.test[f"log_loss@{bits}, pq, {bits}#{b}"] = loss + worse
    table = compare_orders(results)
    assert table.loc[("mde", "4 bits"), "difference"] == pytest.approx(0.25)
    assert table.loc[("full", "8 bits")].tolist() == [0, 0, 0]


def contest_runs():
    """Curves of a method of one axis, of another that is worse, and of a hybrid."""
    runs = []
    for key, base in (
        ("rowwise", 0.7),
        ("hashing", 0.6),
        ("mgqe", 0.9),
        ("full", 0.95),
    ):
        for ratio in (1.0, 8.0, 64.0):
            for seed in SEEDS:
                auc = base - 0.01 * math.log2(ratio) + 0.001 * seed
                test = {"auc": auc, "log_loss": 1 - auc}
                runs.append(make(key, seed, test, {"inference": FULL / ratio}))
    return runs


@pytest.mark.parametrize("metric", ["auc", "log_loss"])
def test_hybrids_stand_beside_the_best_of_one_axis(metric):
    table = compare_at_equal_bytes(tell(draw_losses()), contest_runs(), (), metric)
    assert set(table["rival"]) == {"rowwise"}
    assert (table["ratio"].diff().dropna() >= 0).all()
    published = table.loc["mgqe"]
    assert published["ahead"].tolist() == pytest.approx([0.2] * 3)
    assert published["clear"].all()
    assert len(table) == 3 + 20


def test_rounded_tables_of_other_axes_are_hybrids_too():
    runs = []
    for key in ("tt_rec", "head_only", "pq", "half", "uniform"):
        test = {"auc": 0.8, "auc@4 bits": 0.75}
        size = {"inference": FULL / 10, "inference@4 bits": FULL / 40}
        runs += [make(key, seed, test, size) for seed in SEEDS]
    table = compare_at_equal_bytes(tell(draw_losses()), contest_runs(), runs)
    named = [name for name in table.index if name.endswith(", 4 bits")]
    assert named == ["tt_rec, 4 bits", "head_only, 4 bits", "pq, 4 bits"]
    row = table.loc["tt_rec, 4 bits"]
    assert (row["ratio"], row["mean"], row["clear"]) == (40, 0.75, True)


def test_who_has_one_axis():
    assert is_one_axis("pq") and is_one_axis("magnitude") and is_one_axis("rowwise")
    assert not any(map(is_one_axis, ["full", "mgqe", "cerp", "mpe", "nested"]))


def test_the_picture_shows_what_combinations_lose_beside_their_parts():
    from matplotlib import pyplot as plt

    losses = draw_losses(noise=1e-3)
    losses[2, :, 1] += 0.03
    table = tabulate_effects(losses)
    axes = plot_interactions(table, plt.figure().add_subplot())
    pairs = table[table["order"] == 2]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(pairs.index)
    drawn = [line.get_xdata()[0] for line in axes.lines[:24:2]]
    np.testing.assert_allclose(drawn, pairs["loss"])
    plt.close("all")


# -- end to end ----------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    """A contest on a world of four fields, trained for one epoch."""
    data = make_clicks("small", field_sizes=(700, 420, 60, 4), rows=(1500, 400, 640))
    trial = TRIALS["synthetic", "dcnv2"].adjust(epochs=1, batch_size=256)
    return Contest("tiny", data, trial, (Entrant("full", "full"),), tuned_on=(0,))


@pytest.fixture(scope="module")
def held(tiny, one_thread):
    """Runs of two seeds of all bases, in the trial's own way."""
    crossed = cross(tiny)
    return [
        crossed.pose(base, Way(), 1.0, seed).run(measure=False)
        for base in crossed.entrants
        for seed in (1, 2)
    ]


def test_the_whole_factorial_of_a_tiny_world(held):
    losses = gather_losses(held)
    assert losses.shape == (*SHAPE, 2, LOSS_BLOCKS)
    assert np.isfinite(losses).all()
    assert len(tabulate_effects(losses)) == 26
    points = draw_cells(held, "auc")
    for cell, point in points.items():
        assert (point.reached[0] > 1.5) == (cell.name != "full")
    for dims in ("full", "mde", "pruned"):
        eight, four = (
            points[Cell(bits, dims, SHARED)].reached[0] for bits in ("8 bits", "4 bits")
        )
        assert eight < four


def test_blocks_are_of_all_test_rows_as_trained_and_as_rounded(held, tiny):
    result = held[0]
    for form in ("", "4 bits", "pq, 8 bits"):
        name = f"log_loss@{form}" if form else "log_loss"
        assert np.mean(read_blocks(result, form)) == pytest.approx(result.test[name])
    assert result.bytes["inference@8 bits"] == 1184 * 24
    assert (
        result.bytes["inference@pq, 8 bits"]
        == (result.bytes["inference@8 bits, pq, 8 bits"])
    )
    assert {"pq", "8 bits", "4 bits"} <= set(list_recorded(result))


def test_forms_that_make_nothing_smaller_are_left_out(tiny):
    one = FormExperiment.of("rowwise", tiny.data, 2.0, 1, trial=tiny.trial, bits=8)
    one = dataclasses.replace(one, forms=("8 bits", "pq"))
    result = one.run(measure=False)
    assert list_recorded(result) == []
    assert result.asked["forms"] == ["8 bits", "pq"]
    twin = pickle.loads(pickle.dumps(one))
    assert twin.matches(result) and twin.key == one.key
    assert not dataclasses.replace(one, forms=()).matches(result)


def test_what_bears_rounding_is_tabulated(held):
    plain = [run for run in held if run.asked["sharing"] == "none"]
    named = [dataclasses.replace(run, entrant=run.asked["dims"]) for run in plain]
    table = tabulate_forms(named)
    row = table.loc[("full", "8 bits")]
    assert row["ratio"] == pytest.approx(8 / 3)
    assert abs(row["change"]) < 0.01
    assert table.loc[("full", ""), "change"] == 0


def test_a_factorial_is_recorded_and_goes_on_where_it_stopped(tiny, tmp_path):
    """As any contest: the trials of a base, then its runs; a line each."""
    crossed = dataclasses.replace(
        cross(tiny), entrants=list_bases()[:2], seeds=(1,), _reached={}
    )
    few = dataclasses.replace(
        crossed,
        trial=tiny.trial.adjust(table_learning_rate=1e-2),
        entrants=crossed.entrants[1:],
    )
    paths = tmp_path / "runs", tmp_path / "trials"

    def follow():
        recorder = Recorder(Records(*paths), Workers(timed=False))
        return list(recorder.follow(list_courses(few, recorder.records)))

    made = follow()
    assert len(made) == 16 + 1
    assert follow() == []
    trials, runs = arrange(few, Records(*paths))
    assert (len(trials), len(runs)) == (16, 1)
    assert runs[0].entrant == SHARED
    again = load_results(paths[0])[0]
    assert read_blocks(again, "4 bits") == read_blocks(made[-1], "4 bits")


def test_rankings_have_no_blocks(pairs, one_thread):
    trial = TRIALS["synthetic", "mf"].adjust(epochs=1)
    one = FormExperiment.of("full", pairs, 1.0, 1, trial=trial, dim=16)
    result = dataclasses.replace(one, forms=("4 bits",)).run(measure=False)
    assert "recall@20@4 bits" in result.test
    with pytest.raises(ValueError, match="no losses as trained"):
        read_blocks(result)
