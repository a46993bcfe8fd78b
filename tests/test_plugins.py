"""A method of one file: found, tuned, recorded and drawn like any other.

What every method must do, `test_catalog.py` asks of it as well.
"""

import dataclasses
import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import records as book
from matplotlib import pyplot as plt

import survey_code
from survey_code import catalog, load_plugin, methods
from survey_code.catalog import get_method
from survey_code.cli import main
from survey_code.data.synthetic import make_clicks
from survey_code.lab import Trial, load_results, plot_marks, plot_tradeoff, tabulate
from survey_code.lab.contest import (
    Contest,
    Entrant,
    choose_ways,
    list_courses,
    list_entrants,
)
from survey_code.lab.records import Recorder, Records, Workers
from survey_code.lab.tuning import TRIALS_EACH
from survey_code.training import TrainingSettings

PLUGIN = Path(__file__).parent / "plugin_method.py"
TRIAL = Trial(
    "dcnv2", 8, TrainingSettings(epochs=1, batch_size=200, patience=0),
    {"hidden": (4,), "cross_layers": 1},
)  # fmt: skip


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No plug-in outlives its test."""
    monkeypatch.setattr(catalog, "_ADDED", {})
    monkeypatch.setattr(catalog, "_FILES", {})


@pytest.fixture
def plugin():
    (method,) = load_plugin(PLUGIN)
    return method


@pytest.fixture(scope="module")
def tiny():
    return make_clicks(field_sizes=(50, 30, 20), rows=(600, 200, 200))


def test_a_file_adds_its_methods_once(plugin):
    assert methods()[-1] is plugin is get_method("short_half")
    assert len(methods()) == len(catalog.CATALOG) + 1
    assert load_plugin(PLUGIN) == [plugin]
    assert len(methods()) == len(catalog.CATALOG) + 1


def test_it_runs_by_its_key(plugin, tiny, tmp_path):
    result = survey_code.run("short_half", tiny, 4, trial=TRIAL, gain=2)
    assert result.reached_ratio == 4 and result.layout.embedding_dim == 4
    assert result.asked == {"columns": None, "gain": 2.0}
    assert result.options == {"columns": 4, "gain": 2.0}
    with pytest.raises(
        survey_code.OutOfReach, match="highest ratio it can reach is 16"
    ):
        survey_code.run("short_half", tiny, 100, trial=TRIAL)
    with pytest.raises(ValueError, match="gain must be a number above 0, got 0"):
        survey_code.run("short_half", tiny, 4, trial=TRIAL, gain=0)


def test_it_is_tuned_recorded_and_drawn(plugin, tiny, tmp_path):
    mine = Entrant("short_half", "short_half")
    quick = TRIAL.settings.replace(learning_rate=0.02)
    trial = dataclasses.replace(TRIAL, settings=quick)
    contest = Contest("mine", tiny, trial, (mine,), (4.0,), seeds=(1,), tuned_on=(0,))
    records = Records(tmp_path / "runs", tmp_path / "trials")
    # In processes of their own, which have to know the file as well.
    recorder = Recorder(records, Workers(jobs=2))
    made = list(recorder.follow(list_courses(contest, records)))
    assert len(load_results(tmp_path / "trials")) >= TRIALS_EACH
    choice = choose_ways(contest, mine, records)
    assert {way.ask("short_half", {}).gain for way in choice.marks} == {1.0, 2.0}
    (tuned,) = (result for result in made if result.test)
    wanted = choice.way_at(4.0).ask("short_half", {}).asked()
    assert tuned.asked == wanted
    full = survey_code.run("full", tiny, trial=TRIAL, measure=False)
    results = [full, tuned]
    assert "short_half" in tabulate(results).index
    axes = plot_tradeoff(results, ax=plt.figure().gca())
    assert "short_half" in [text.get_text() for text in axes.texts]
    marks = plot_marks(results, ratio=4, ax=plt.figure().gca())
    assert any("short_half" in t.get_text() for t in marks.get_yticklabels())
    plt.close("all")


def test_the_command_line_takes_a_file(tmp_path, capsys):
    given = ["--plugin", str(PLUGIN)]
    assert main(["methods", "short_half", *given]) == 0
    assert "gain" in capsys.readouterr().out
    words = ["run", "short_half", *given, "--ratio", "4", "-o", "gain=2"]
    assert main([*words, "-s", "batch_size=20000"]) == 0
    assert capsys.readouterr().out.startswith("short_half dcnv2 seed 1: auc 0.")
    assert main(["methods", "--plugin", str(tmp_path / "none.py")]) == 2
    assert "none.py: FileNotFoundError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "defines no survey_code.Method"),
        ("import nothing_of_the_kind", "ModuleNotFoundError: No module named"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        (PLUGIN.read_text().replace('"short_half"', '"full"'), "a method 'full'"),
        (PLUGIN.read_text().replace('"rule-based"', '"magic"'), "no family 'magic'"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_clear_error(text, said, tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        load_plugin(path)
    assert methods() == list(catalog.CATALOG)


def test_the_guides_example_works(tiny, tmp_path):
    """The plug-in that CONTRIBUTING.md shows, as it stands there."""
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    code = next(
        c for c in re.findall(r"```python\n(.*?)```", text, re.S) if "Method(" in c
    )
    (tmp_path / "shown.py").write_text(code)
    (method,) = load_plugin(tmp_path / "shown.py")
    result = survey_code.run(method.key, tiny, 4, trial=TRIAL, measure=False)
    assert result.reached_ratio >= 4 and 0 < result.test["auc"] < 1


def test_a_file_that_is_no_python_is_one_clear_error(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"notes.txt: a plug-in is a Python file"):
        load_plugin(tmp_path / "notes.txt")


def test_installed_packages_bring_methods(plugin, monkeypatch):
    method = plugin
    catalog._ADDED.clear()
    good = EntryPoint("short_half", "somewhere:METHOD", catalog.GROUP)
    bad = EntryPoint("broken", "nowhere:METHOD", catalog.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: load(self, method))
    monkeypatch.setattr(catalog, "entry_points", lambda group: [bad, good])
    catalog.find_installed.cache_clear()
    with pytest.warns(UserWarning, match="plug-in nowhere:METHOD: No module"):
        assert methods()[-1] is method
    assert methods()[-1] is method  # looked for once
    catalog.find_installed.cache_clear()


def load(entry, method):
    if entry.name == "broken":
        raise ImportError("No module named 'nowhere'")
    return method


def test_the_books_lists_do_not_change_with_a_plugin(plugin):
    keys = {one.method for record in book.RECORDS.values() for one in record()}
    keys |= {one.key for one in list_entrants("ctr", 16)}
    assert "short_half" not in keys
