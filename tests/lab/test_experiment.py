"""`run`, whole: from a name to a result, and from the shell."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import survey_code
from survey_code import FrozenEmbedding, FullEmbedding, catalog, methods
from survey_code.catalog import DURING, Method
from survey_code.cli import main
from survey_code.data.gowalla import USERS as GOWALLA_USERS
from survey_code.data.synthetic import make_clicks, make_stream
from survey_code.data.tasks import InteractionData
from survey_code.lab import (
    Experiment,
    Result,
    Trial,
    load_results,
    repeat,
    run,
    run_once,
    sweep,
    task,
)
from survey_code.lab.experiment import key_of, reaches
from survey_code.lab.task import DataTask, make_task
from survey_code.layouts import DenseLayout, load_layout
from survey_code.models import LightGCN, MatrixFactorization
from survey_code.objectives import evaluate_clicks, evaluate_ranking
from survey_code.training import TrainingSettings

pytestmark = pytest.mark.usefixtures("one_thread")

CLICKERS = [method.key for method in methods() if "ctr" in method.tasks]
RANKERS = [method.key for method in methods() if "top-n" in method.tasks]
TINY = Trial(
    "dcnv2", 8, TrainingSettings(epochs=1, batch_size=256, patience=0),
    {"hidden": (8,), "cross_layers": 1},
)  # fmt: skip


@pytest.fixture(scope="module")
def small():
    """The small preset with a quarter of its ids and a tenth of its rows."""
    fields = (1500, 1000, 375, 125, 25, 8, 3, 2)
    rows = (20_000, 4000, 4000)
    return make_clicks("small", rows=rows, field_sizes=fields, content=1.0)


@pytest.fixture(scope="module")
def tiny():
    return make_clicks(field_sizes=(50, 30, 20), rows=(1500, 400, 400), content=1.0)


@pytest.fixture(scope="module")
def tastes():
    """Users and items of four kinds; users meet nothing but their own."""
    rng = np.random.default_rng(0)
    own = np.arange(60)[:, None] % 4 == np.arange(60) % 4
    met = np.argwhere((rng.random((60, 60)) < 0.95) & own)
    rng.shuffle(met)
    met[:, 1] += 60
    test, valid, train = np.split(met, [220, 280])
    content = np.eye(4, dtype=np.float32)[np.arange(120) % 4]
    return InteractionData("tastes", 60, 60, train, valid, test, content=content)


# -- every method -----------------------------------------------------------------


@pytest.mark.parametrize("key", CLICKERS)
def test_every_method_runs(key, small, tmp_path):
    reach = {"full": 1.0, "half": 2.0, "shark": 3.0}
    ratio = reach.get(key, 4.0)  # as far as they reach
    result = run(key, small, ratio, seed=1)
    assert (result.key, result.seed, result.requested_ratio) == (key, 1, ratio)
    assert (result.model, result.dim, result.data) == ("dcnv2", 16, small.name)
    assert result.reached_ratio >= ratio
    full = 4 * 16 * small.num_embeddings
    assert result.reached_ratio == pytest.approx(full / result.bytes["inference"])
    for part, metrics in (("valid", result.validation), ("test", result.test)):
        assert 0.6 < metrics["auc"] < small.best[part]["auc"]
        assert 1.0 > metrics["log_loss"] > small.best[part]["log_loss"]
    assert result.bytes["training_peak"] > result.bytes["training_persistent"] > 0
    assert 0 < result.lookup["p50_us"] <= result.lookup["p99_us"]
    assert result.seconds["train"] > 0 and set(result.versions) >= {"torch", "numpy"}
    assert result.settings["epochs_trained"] == result.settings["best_epoch"] == 1
    # What is counted is what is stored.
    result.layout.save(tmp_path / "table.safetensors")
    loaded = load_layout(tmp_path / "table.safetensors")
    assert loaded.nbytes == result.bytes["inference"]
    again = Result.from_json(result.to_json())
    assert again.test == result.test and key_of(again) == key_of(result)


# At half the size, these read the same rows for ids of unlike tastes, or none at all.
MIXED = {
    "bloom", "cafe", "cce", "cprec", "double_hashing", "hash_embeddings", "hashing",
    "head_only", "memcom", "optfs", "zero_collision",
}  # fmt: skip
# Nobody's taste: chance.
BLIND = {"popular"}


def rank_tastes(key, tastes, **settings):
    """A run on users and items of four kinds."""
    usual = {"epochs": 15, "batch_size": 100, "learning_rate": 0.05, "patience": 0}
    settings = TrainingSettings(**{**usual, **settings}, precision="float64")
    softmax = {"loss": "softmax", "negatives": 30, "temperature": 0.2}
    trial = Trial("mf", 16, settings, {"normalize": True}, softmax, 0.1)
    # At 2x half of the ids, all about as frequent, would have no row of their own.
    ratio = {"full": 1.0, "zero_collision": 1.1}.get(key, 2.0)
    return run(key, tastes, ratio, 1, trial=trial, measure=False)


@pytest.mark.parametrize("key", ["full", "uniform", "hashing", "pq"])
def test_without_learning_no_method_ranks(key, tastes):
    """Twenty of the items that are left are less than a half of them."""
    result = rank_tastes(key, tastes, epochs=1, learning_rate=1e-9)
    assert 0.3 < result.test["recall@20"] < 0.46


@pytest.mark.parametrize("key", RANKERS)
def test_every_method_ranks(key, tastes):
    result = rank_tastes(key, tastes)
    assert set(result.test) == set(result.validation) == {"recall@20", "ndcg@20"}
    assert 0 < result.test["ndcg@20"] < 1
    least = 0.2 if key in BLIND else 0.5 if key in MIXED else 0.9
    assert result.test["recall@20"] > least


def test_the_same_call_gives_the_same_figures(small, tiny):
    for key in ("hashing", "rowwise"):
        task._TRAINED.clear()
        first = run(key, tiny, 3, seed=1, trial=TINY, measure=False)
        task._TRAINED.clear()
        again = run(key, tiny, 3, seed=1, trial=TINY, measure=False)
        other = run(key, tiny, 3, seed=2, trial=TINY, measure=False)
        assert first.test == again.test != other.test
        assert first.validation == again.validation


def test_methods_that_follow_training_share_one_full_table(tiny):
    task._TRAINED.clear()
    full = run("full", tiny, seed=5, trial=TINY, measure=False)
    after = [run("rowwise", tiny, 1, 5, trial=TINY, bits=b, measure=False)
             for b in (8, 4)]  # fmt: skip
    assert len(task._TRAINED) == 1
    assert {r.seconds["train"] for r in (full, *after)} == {full.seconds["train"]}
    assert len({r.test["log_loss"] for r in (full, *after)}) == 3


def test_three_seeds_of_a_ranking_train_six_full_tables(pairs, monkeypatch):
    """Without the hold-out and with it; a sweep of after-training methods shares
    them."""
    task._TRAINED.clear()
    trained, train = [], DataTask.train

    def count(own, table):
        trained.append(own.seed)
        return train(own, table)

    monkeypatch.setattr(DataTask, "train", count)
    trial = Trial("mf", 8, TrainingSettings(epochs=1, batch_size=100))
    sweep(["full", "rowwise", "pq"], pairs, [2], trial=trial, measure=False)
    assert sorted(trained) == [1, 1, 2, 2, 3, 3]


# -- accuracy belongs to the bytes beside it -----------------------------------------


def test_metrics_are_of_the_stored_bytes(tiny, tmp_path):
    result = run("rowwise", tiny, seed=1, trial=TINY, bits=2, measure=False)
    network = make_task(tiny, TINY, 1).train_full()[0].network
    result.layout.save(tmp_path / "table.safetensors")
    whole = evaluate_clicks(network, tiny.test)
    table, network.table = network.table, None
    try:
        network.table = FrozenEmbedding(load_layout(tmp_path / "table.safetensors"))
        assert result.test == pytest.approx(evaluate_clicks(network, tiny.test))
        assert result.validation == pytest.approx(evaluate_clicks(network, tiny.valid))
    finally:
        network.table = table
    assert result.test != whole


class Forgetting(FullEmbedding):
    """Learns a table, and stores zeros."""

    def freeze(self):
        return DenseLayout(np.zeros(tuple(self.weight.shape), np.float32))


@pytest.fixture
def added(monkeypatch):
    """Methods of a test, gone after it."""
    monkeypatch.setattr(catalog, "_ADDED", {})
    return catalog.add_method


def test_what_is_not_stored_is_not_counted(tiny, added):
    added(Method(
        "forgetting", "Forgetting", "baseline", "baseline", 2020, "none", (DURING,),
        ("ctr", "top-n"), Forgetting,
    ))  # fmt: skip
    result = run("forgetting", tiny, trial=TINY, measure=False)
    assert result.test["auc"] == result.validation["auc"] == 0.5


def test_ranking_selects_on_the_hold_out_and_trains_anew_on_everything(pairs):
    trial = Trial("mf", 8, TrainingSettings(epochs=6, batch_size=50, learning_rate=0.1))
    result = run("full", pairs, trial=trial, measure=False)
    task = make_task(pairs, trial, 0)
    chosen = task.train(FullEmbedding(task.spec, seed=0)).history
    assert result.settings["best_epoch"] == chosen.best + 1
    both = np.concatenate([pairs.train, pairs.valid])
    merged = InteractionData("pairs", 40, 60, both, pairs.valid[:0], pairs.test)
    # As many steps at the same rates, not as many epochs: there are more pairs now.
    again = make_task(merged, trial, 0)
    again.scripts = (chosen.script,)
    fitted = again.train(FullEmbedding(again.spec, seed=0))
    assert fitted.history.rows <= chosen.script.steps * 50
    wanted = evaluate_ranking(fitted.network, both, pairs.test)
    assert result.test == pytest.approx(wanted)


# -- arguments ------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["fm", "deepfm", "dcnv2", "dlrm"])
def test_every_click_network_runs_inside_the_budget(model, tiny):
    settings = {"epochs": 1, "batch_size": 256}
    result = run("hashing", tiny, 2, model=model, settings=settings, measure=False)
    outside = 4 * 100 if model in ("fm", "deepfm") else 0
    assert result.reached_ratio >= 2
    assert result.bytes["inference"] == result.layout.nbytes + outside
    full = 4 * 100 * 16 + outside
    assert result.reached_ratio == pytest.approx(full / result.bytes["inference"])


@pytest.mark.parametrize("model", ["mf", "lightgcn"])
def test_every_ranking_network_runs(model, pairs):
    settings = {"epochs": 1, "batch_size": 100, "patience": 0}
    result = run("full", pairs, model=model, dim=4, settings=settings, measure=False)
    assert (result.model, result.dim) == (model, 4)
    kinds = {"mf": MatrixFactorization, "lightgcn": LightGCN}
    built = Experiment.of("full", pairs, model=model, dim=4).task
    network = built.surround(FullEmbedding(built.spec)).network
    assert type(network) is kinds[model] and network.table.embedding_dim == 4
    assert np.isfinite(list(result.test.values())).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": 3}, "unknown method 3"),
        ({"data": 3}, "data must be a name or a data set, got 3"),
        ({"data": None}, "data must be a name or a data set"),
        ({"data": "nowhere"}, "unknown data set 'nowhere'"),
        ({"ratio": "4"}, "ratio must be a number from 1 up, got '4'"),
        ({"ratio": True}, "ratio must be a number from 1 up, got True"),
        ({"ratio": np.nan}, "ratio must be a number from 1 up, got nan"),
        ({"ratio": None}, "ratio must be a number from 1 up, got None"),
        ({"seed": "1"}, "seed must be an integer from 0 to"),
        ({"seed": 1.5}, "seed must be an integer from 0 to"),
        ({"seed": True}, "seed must be an integer from 0 to"),
        ({"seed": -1}, "seed must be an integer from 0 to"),
        ({"trial": "tiny"}, "trial must be a Trial, got 'tiny'"),
        ({"trial": {"dim": 8}}, "trial must be a Trial"),
        ({"settings": "epochs=3"}, "settings must be names and values"),
        ({"settings": [3]}, "settings must be names and values"),
        ({"settings": {"epochs": True}}, "epochs must be an integer from 1 up"),
        (
            {"settings": {"progress": "off"}},
            "progress must be True or False, got 'off'",
        ),
        ({"settings": {3: 4, "epoch": 3}}, "unknown training setting"),
        ({"dim": True}, "dim must be an integer from 1 up, got True"),
        ({"dim": 2.0}, "dim must be an integer from 1 up"),
        ({"model": 3}, "model must be a word, got 3"),
        ({"device": 3}, "device must be a word, got 3"),
        ({"device": ""}, "device '' cannot be used"),
        ({"measure": "off"}, "measure must be True or False, got 'off'"),
        ({"measure": 0}, "measure must be True or False, got 0"),
        ({"columns": "four"}, "columns must be an integer from 1 up, got 'four'"),
    ],
)
def test_a_wrong_argument_is_one_clear_error(changes, said, tiny, tmp_path):
    given = {"method": "uniform", "data": tiny, "ratio": 2, "seed": 1, **changes}
    with pytest.raises(ValueError, match=said):
        run(**given)
    with pytest.raises(ValueError, match=said):
        run_once(tmp_path / "results.jsonl", **given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": "hashing"}, "methods must be a list, got 'hashing'"),
        ({"ratios": 4}, "ratios must be a list, got 4"),
        ({"seeds": 3}, "seeds must be a list, got 3"),
        ({"measure": "no"}, "measure must be True or False, got 'no'"),
        ({"ratios": [True]}, "ratio must be a number from 1 up, got True"),
        ({"seeds": [1.5]}, "seed must be an integer"),
    ],
)
def test_a_wrong_list_of_runs_is_one_clear_error(changes, said, tiny):
    with pytest.raises(ValueError, match=said):
        sweep(**{"methods": ["uniform"], "data": tiny, "ratios": [2], **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": None}, "model must be a word, got None"),
        ({"dim": 8.0}, "dim must be an integer from 1 up, got 8.0"),
        ({"settings": {}}, "settings must be TrainingSettings, got {}"),
        ({"layers": [3]}, "layers must be names and values"),
        ({"objective": "bpr"}, "objective must be names and values, got 'bpr'"),
        ({"init_std": 0}, "init_std must be a number above 0, got 0"),
        ({"init_std": np.nan}, "init_std must be a number above 0, got nan"),
    ],
)
def test_a_wrong_trial_is_one_clear_error(changes, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(TINY, **changes)


def test_only_a_result_is_repeated(tiny):
    with pytest.raises(ValueError, match="result must be a Result, got 'full'"):
        repeat("full", tiny)


@pytest.mark.parametrize("ratio", [3, 3.0, np.float32(3), np.int64(3)])
def test_numbers_of_any_kind_are_numbers(ratio, tiny):
    result = run(
        "uniform", tiny, ratio, np.int64(1), model="fm", measure=False,
        settings={"epochs": 1}, dim=8,
    )  # fmt: skip
    assert result.reached_ratio >= 3 and json.loads(result.to_json())["seed"] == 1


def test_a_stream_runs_as_one_task():
    stream = make_stream(rows=(400,) * 5, field_sizes=(50, 20))
    result = run("full", stream, trial=TINY, measure=False)
    cut = stream.as_clicks(train=2, valid=1)
    wanted = run("full", cut, trial=TINY, measure=False)
    assert result.test == wanted.test and result.validation == wanted.validation


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"method": "magic"}, "unknown method 'magic'; methods: full"),
        ({"data": "criteo"}, "unknown data set 'criteo'; data sets: "),
        ({"model": "bert"}, "its networks are .* got 'bert'"),
        ({"model": "mf"}, "is a ctr task; its networks are .* got 'mf'"),
        ({"ratio": 0.5}, "ratio must be a number from 1 up, got 0.5"),
        ({"ratio": float("nan")}, "ratio must be a number from 1 up, got nan"),
        ({"ratio": "4"}, "ratio must be a number from 1 up, got '4'"),
        ({"bits": 4}, "hashing has no option 'bits'"),
        ({"settings": {"epoch": 3}}, "unknown training setting .*epoch"),
        ({"settings": {"epochs": 0}}, "epochs must be an integer from 1 up, got 0"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
        ({"dim": -1}, "embedding_dim must be an integer from 1 up, got -1"),
        ({"dim": 0}, "embedding_dim must be an integer from 1 up, got 0"),
    ],
)
def test_wrong_arguments_are_value_errors(arguments, said, tiny):
    given = {"method": "hashing", "data": tiny, "ratio": 4, **arguments}
    with pytest.raises(ValueError, match=said):
        run(**given)


def test_a_method_for_another_task_is_a_value_error(tiny, added):
    added(Method(
        "ranker", "Ranker", "baseline", "baseline", 2020, "none", (DURING,),
        ("top-n",), Forgetting,
    ))  # fmt: skip
    with pytest.raises(ValueError, match=r"ranker serves top-n tasks, but .* ctr task"):
        run("ranker", tiny, trial=TINY)


@pytest.mark.parametrize(
    ("key", "model"),
    [
        *((key, model) for key in CLICKERS for model in ("dcnv2", "fm")),
        *((key, "mf") for key in RANKERS),
    ],
)
def test_out_of_reach_the_error_names_a_ratio_in_reach(key, model, tiny, pairs):
    data = pairs if model == "mf" else tiny
    with pytest.raises(ValueError, match="highest ratio it can reach is ") as error:
        run(key, data, 1e6, model=model)
    named = float(re.search(r"reach is ([\d.]+)$", str(error.value))[1])
    assert not reaches(key, data, 1e6, model=model)
    assert reaches(key, data, named, model=model)
    assert not reaches(key, data, named + 0.01, model=model)


# -- sweeps -----------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """The runs that are really made."""
    made = []
    original = Experiment.run

    def counting(one, *arguments):
        made.append((one.method, one.ratio, one.seed))
        return original(one, *arguments)

    monkeypatch.setattr(Experiment, "run", counting)
    return made


def test_a_sweep_leaves_out_what_is_out_of_reach(tiny, counted):
    results = sweep(
        ["full", "uniform", "rowwise"], tiny, [2, 6, 100], (1, 2), trial=TINY,
        measure=False,
    )  # fmt: skip
    wanted = [("full", 1.0), ("uniform", 2), ("uniform", 6), ("rowwise", 2)]
    assert counted == [(key, ratio, seed) for key, ratio in wanted for seed in (1, 2)]
    assert [(r.key, r.requested_ratio, r.seed) for r in results] == counted


def test_a_sweep_goes_on_where_it_stopped(tiny, counted, tmp_path):
    out = tmp_path / "results.jsonl"

    def sweep_again(seeds=(1, 2), trial=TINY, **options):
        counted.clear()
        return sweep(
            ["full", "hashing"], tiny, [2, 4], seeds, out=out, trial=trial,
            measure=False, **options,
        )  # fmt: skip

    first = sweep_again()
    assert len(counted) == 6 and load_results(out) == [
        Result.from_json(result.to_json()) for result in first
    ]
    again = sweep_again()
    assert counted == [] and [r.test for r in again] == [r.test for r in first]
    # A third seed is new; so is the last line, if a crash cut it.
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:-1]) + lines[-1][:50])
    sweep_again(seeds=(1, 2, 3))
    assert counted == [("full", 1.0, 3), ("hashing", 2, 3), ("hashing", 4, 2),
                       ("hashing", 4, 3)]  # fmt: skip
    # Other settings make another run.
    other = Trial("dcnv2", 8, TrainingSettings(epochs=2, patience=0), TINY.layers)
    sweep_again(seeds=(1,), trial=other)
    assert len(counted) == 3
    other = Trial("dcnv2", 8, TINY.settings, {"hidden": (4,), "cross_layers": 1})
    sweep_again(seeds=(1,), trial=other)
    assert len(counted) == 3


@pytest.mark.parametrize(
    "key, options",
    [("mde_popularity", {"alpha": None}), ("double_hashing", {"share": 0.3})],
)
def test_an_option_that_a_plan_does_not_keep_is_found_again(
    tiny, counted, tmp_path, key, options
):
    """Widths are planned, and the law that they follow is not among them."""
    for _ in range(2):
        sweep(
            [key], tiny, [2], (1,), out=tmp_path / "results.jsonl", trial=TINY,
            measure=False, **options,
        )  # fmt: skip
    assert len(counted) == 1


def test_other_options_make_another_run(tiny, counted, tmp_path):
    out = tmp_path / "results.jsonl"
    given = {"trial": TINY, "measure": False}
    for bits, made in ((8, 1), (4, 2), (8, 2), (None, 3), (None, 3)):
        # At ratio 1, no option chooses 8 bits too, but that is another question.
        options = {} if bits is None else {"bits": bits}
        result = run_once(out, "rowwise", tiny, 1, 1, **given, **options)
        assert result.options["bits"] == (bits or 8) and len(counted) == made


# -- the same from everywhere ----------------------------------------------------------


def test_the_same_figures_from_python_and_from_the_shell(tmp_path, capsys):
    words = ["run", "hashing", "--data", "synthetic", "--ratio", "10",
             "--dim", "4", "--set", "batch_size=8192"]  # fmt: skip
    files = [tmp_path / "inside.jsonl", tmp_path / "outside.jsonl"]
    assert main([*words, "--out", str(files[0])]) == 0
    printed = capsys.readouterr().out
    root = Path(survey_code.__file__).parents[1]
    subprocess.run(
        [sys.executable, "-m", "survey_code", *words, "--out", str(files[1])],
        check=True, cwd=root, capture_output=True, timeout=900,
    )  # fmt: skip
    wanted = run("hashing", "synthetic", 10, 1, dim=4, settings={"batch_size": 8192})
    found = [result for path in files for result in load_results(path)]
    assert len(found) == 2
    for result in found:
        assert result.test == wanted.test and result.validation == wanted.validation
        assert key_of(result) == key_of(wanted)
        same = ("inference", "training_persistent")
        assert all(result.bytes[name] == wanted.bytes[name] for name in same)
        assert result.command.startswith("survey-code run hashing --data synthetic")
    assert f"auc {wanted.test['auc']:.5f}" in printed


# -- real data -------------------------------------------------------------------------


def test_frappe_runs_by_the_same_call(real_data):
    settings = TrainingSettings(epochs=1, batch_size=1024, patience=0)
    trial = Trial("dcnv2", 16, settings, {"hidden": (32,), "cross_layers": 1})
    result = run("rowwise", "frappe", ratio=4, trial=trial)
    assert result.data.startswith("frappe_x1") and result.model == "dcnv2"
    assert result.options["bits"] == 4
    assert result.reached_ratio == pytest.approx(16 / 3)
    assert result.bytes["inference"] == 5382 * (8 + 4)
    assert result.test["auc"] > 0.85


def rank_some_users(network, seen, held_out):
    """`evaluate_ranking` of every tenth user, among all items."""

    def represent_some():
        users, items = network.represent_all()
        return users[::10], items

    def pairs_of_some(pairs):
        some = pairs[pairs[:, 0] % 10 == 0] // [10, 1]
        return some - [0, GOWALLA_USERS - len(range(0, GOWALLA_USERS, 10))]

    some = SimpleNamespace(
        training=network.training, eval=network.eval, train=network.train,
        represent_all=represent_some,
    )  # fmt: skip
    return evaluate_ranking(some, pairs_of_some(seen), pairs_of_some(held_out))


def test_gowalla_runs_by_the_same_call(real_data, monkeypatch):
    monkeypatch.setattr("survey_code.lab.task.evaluate_ranking", rank_some_users)
    settings = TrainingSettings(
        epochs=1, batch_size=4096, learning_rate=0.02, patience=0
    )
    trial = Trial("mf", 8, settings, {}, {"loss": "bpr"}, init_std=0.1)
    result = run("rowwise", "gowalla", ratio=4, trial=trial, measure=False)
    assert result.data == "gowalla" and result.options["bits"] == 4
    assert result.bytes["inference"] == 70_839 * (4 + 4)
    assert result.reached_ratio == 4
    assert result.test["recall@20"] > 0.005


def test_an_option_is_not_taken_for_its_default(tmp_path):
    """A run with an option does not stand for the run without it."""
    out = tmp_path / "runs.jsonl"
    data = make_clicks(rows=(600, 100, 100), field_sizes=(30, 20))
    arguments = {"trial": TINY, "measure": False}
    for _ in range(2):
        run_once(out, "rowwise", data, 2, 1, symmetric=True, **arguments)
        run_once(out, "rowwise", data, 2, 1, **arguments)
    found = load_results(out)
    assert len(found) == 2
    other = dataclasses.replace(data, name=data.name + "-v2")
    run_once(out, "rowwise", other, 2, 1, **arguments)
    assert len(load_results(out)) == 3
