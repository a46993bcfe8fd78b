"""A method of one's own: its checks, its contest, its page; killed and resumed."""

import contextlib
import dataclasses
import io
import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from survey_code import catalog, load_plugin
from survey_code.advice.evidence import Curve, CurvePoint, Evidence, RecordedContest
from survey_code.catalog import get_method
from survey_code.cli import main
from survey_code.curves import Difference, Point
from survey_code.data import load_once
from survey_code.data.synthetic import make_clicks
from survey_code.lab import (
    Contest,
    Entrant,
    Trial,
    check_promises,
    contests,
    make_card,
    newcomer,
)
from survey_code.lab.page import tabulate_costs, tabulate_sizes
from survey_code.lab.promises import PROMISES
from survey_code.lab.standing import (
    place_among,
    say_gap,
    tabulate_gaps,
    tabulate_places,
)
from survey_code.lab.tuning import TRIALS_EACH
from survey_code.training import TrainingSettings

ROOT = Path(__file__).parents[2]
TOY = ROOT / "book" / "plugins" / "shared_rows.py"
KEYS = ("equal_reads", "dealt_rows")
TRIAL = Trial(
    "dcnv2", 8,
    TrainingSettings(epochs=1, batch_size=500, patience=1, schedule="plateau",
                     learning_rate=0.01, drops=0),
    {"hidden": (4,), "cross_layers": 1},
)  # fmt: skip
ENTRANTS = (
    Entrant("full", "full"),
    Entrant("hashing", "hashing"),
    Entrant("hashing, fields apart", "hashing", (("fields", "apart"),), like="hashing"),
)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No plug-in outlives its test."""
    monkeypatch.setattr(catalog, "_ADDED", {})
    monkeypatch.setattr(catalog, "_FILES", {})


@pytest.fixture(scope="module")
def tiny():
    """A contest of a few milliseconds a run, under a packaged one's name."""
    data = make_clicks(rows=(1000, 300, 300), field_sizes=(300, 30))
    return Contest("synthetic", data, TRIAL, ENTRANTS, (2.0, 200.0), tuned_on=(0,))


def record(data, **curves):
    """A field: (ratio, AUC of three seeds) of each point, by curve."""
    made = {
        name: Curve(
            name, name.split(",")[0], "during training",
            tuple(CurvePoint(Point(dict(enumerate(values, 1)), (ratio,)), {}, {})
                  for ratio, values in points), (), (),
        )
        for name, points in curves.items()
    }  # fmt: skip
    return Evidence(
        {"synthetic": RecordedContest("synthetic", "ctr", data, False, 330, 8, 2, 0.5,
                                      made)}
    )  # fmt: skip


@pytest.fixture(scope="module")
def field(tiny):
    low, high = (0.2, 0.21, 0.22), (0.9, 0.91, 0.92)
    return record(
        tiny.data.name, full=[(1.0, high)], uniform=[(2.0, low)],
        double_hashing=[(2.0, high), (200.0, low)],
    )  # fmt: skip


def replace_contest(patch, tiny, field):
    """The command line's synthetic contest and its field are these."""
    patch.setitem(contests.CONTESTS, "synthetic", tiny)
    patch.setattr(newcomer, "load_evidence", lambda: field)


@pytest.fixture
def small(monkeypatch, tiny, field):
    """For the length of a test."""
    replace_contest(monkeypatch, tiny, field)


@pytest.fixture(scope="module")
def held(tiny, field, tmp_path_factory):
    """What one command leaves, and the lines that it prints."""
    folder, said = tmp_path_factory.mktemp("held") / "cards", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(catalog, "_ADDED", {})
        patch.setattr(catalog, "_FILES", {})
        replace_contest(patch, tiny, field)
        assert main(words_for(folder)) == 0
    return folder, said.getvalue().splitlines()


def words_for(folder):
    """The command."""
    words = ["card", "--plugin", str(TOY), "--contest", "synthetic"]
    return [*words, "--out", str(folder)]


class Reader(HTMLParser):
    """Collects what a page loads, its pictures' texts, and checks that tags close."""

    def __init__(self):
        super().__init__()
        self.loads, self.alts, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.loads += [given[n] for n in ("src", "href") if n in given and tag != "use"]
        if tag == "svg":
            self.alts.append(given.get("aria-label"))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read_page(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert not reader.open
    return reader


def numbers(card):
    """The page's data without what takes another time in another run."""
    told = card if isinstance(card, dict) else card.describe()
    told = json.loads(json.dumps(told))
    for contest in told["contests"]:
        contest["costs"] = [line["entrant"] for line in contest["costs"]]
    return told


# -- the command -------------------------------------------------------------------


def test_one_command_makes_a_card_of_each_method(held):
    folder, said = held
    ends = [place for place, line in enumerate(said) if ": the card of " in line]
    assert [said[place] for place in ends] == [
        f"{folder / key}.html: the card of {key}" for key in KEYS
    ]
    for part in (said[: ends[0]], said[ends[0] + 1 : ends[1]]):
        assert part[0].endswith("passes 9 of 9 checks")
        made = [line for line in part if "dcnv2 seed" in line]
        left = [int(line.rpartition("at most ")[2].split()[0]) for line in made]
        assert left == sorted(left, reverse=True)
        assert len(made) == TRIALS_EACH + 3 + 3  # as 200x is out of reach
    for key in KEYS:
        assert (folder / f"{key}_as_run.py").read_bytes() == TOY.read_bytes()
        assert (folder / f"{key}.html").exists()


def test_a_card_has_places_costs_and_where_it_comes_from(held):
    card = json.loads((held[0] / "equal_reads.json").read_text())
    (entry,) = card["contests"]
    at_2, at_200 = entry["standings"]
    assert (at_2["how"], at_2["rivals"]) == ("measured", 2)
    assert (at_2["rank"], at_2["best"]) == (2.0, "double_hashing")
    assert set(at_2["gaps"]) == {"double_hashing", "full", "uniform"}
    assert at_2["gaps"]["full"]["mean"] < 0 < at_2["gaps"]["uniform"]["mean"]
    assert (at_200["how"], at_200["gaps"]) == ("cannot", {})
    assert at_200["rank"] == 2.0  # with all who count as double hashing
    assert {line["entrant"] for line in entry["costs"]} == {
        "equal_reads", "full", "double_hashing"
    }  # fmt: skip
    for fact in ("command", "device", "date", "versions", "seed"):
        assert card[fact]
    assert shlex.join(words_for(held[0])) in card["command"]


def test_the_page_stands_alone(held):
    page = (held[0] / "equal_reads.html").read_text(encoding="utf-8")
    reader = read_page(held[0] / "equal_reads.html")
    assert reader.loads == [] and "url(http" not in page and "@import" not in page
    assert len(reader.alts) == 2 and all("equal_reads" in alt for alt in reader.alts)
    for told in ("cannot: at most ", "2 of 3", "color-scheme: light dark", "passed"):
        assert told in page


def test_once_more_runs_nothing_and_writes_the_same(small, held, capsys):
    folder, _ = held
    before = sorted((path.name, path.read_bytes()) for path in folder.iterdir())
    assert main(words_for(folder)) == 0
    after = sorted((path.name, path.read_bytes()) for path in folder.iterdir())
    assert [name for name, _ in after] == [name for name, _ in before]
    assert after == before
    assert "dcnv2" not in capsys.readouterr().out


def test_killed_and_resumed_gives_the_same(tiny, field, held, tmp_path):
    load_plugin(TOY)

    def make(folder, tell=None):
        asked = {"evidence": field, "command": "card", "measure": False}
        return make_card("equal_reads", [tiny], folder, tell=tell, **asked)

    shutil.copytree(held[0], tmp_path / "whole")
    (tmp_path / "whole" / "synthetic_costs.jsonl").unlink()
    whole = make(tmp_path / "whole")
    for stops in (7, 14):
        lines = iter(range(stops))

        def stop(line, lines=lines):
            if next(lines, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "cut", stop)
        # Half a line, as a crash leaves it.
        path = tmp_path / "cut" / "synthetic_trials.jsonl"
        path.write_text(path.read_text()[:-40])
    assert not (tmp_path / "cut" / "equal_reads.html").exists()
    again = make(tmp_path / "cut")
    assert numbers(again) == numbers(whole)
    assert [t.validation for t in again.entries[0].trials] == [
        t.validation for t in whole.entries[0].trials
    ]


def test_what_is_compressed_after_training_waits_for_the_full_table(tiny, tmp_path):
    (tmp_path / "two.py").write_text(guide())
    load_plugin(tmp_path / "two.py")
    quick = dataclasses.replace(tiny, ratios=(2.0,), seeds=(1, 2), entrants=())
    card = make_card("two_widths", [quick], tmp_path, measure=False)
    (entry,) = card.entries
    assert {trial.key for trial in entry.trials} == {"full", "two_widths"}
    assert {v.name for v in card.verdicts} == {
        p.name for p in PROMISES if not p.of_tables
    }
    assert entry.standings[0].gaps == {} or "full" in entry.standings[0].gaps


def guide():
    """The plug-in that CONTRIBUTING.md shows."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    return next(block for block in blocks if "Method(" in block)


def test_rivals_are_run_beside_it(tiny, held, tmp_path):
    load_plugin(TOY)
    folder = shutil.copytree(held[0], tmp_path / "out")
    asked = {"rivals": ["hashing, fields apart"], "evidence": Evidence({})}
    card = make_card("equal_reads", [tiny], folder, **asked)
    (entry,) = card.entries
    ran = {result.entrant for result in entry.runs}
    assert ran == {"equal_reads", "hashing", "hashing, fields apart"}
    assert entry.standings[0].rivals == 2
    assert "only those who were run beside" in card.page.read_text()


# -- errors ----------------------------------------------------------------------


def refused(capsys, *words):
    assert main(["card", *map(str, words)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return said.err


def test_mistakes_are_one_clear_line(tmp_path, capsys, monkeypatch):
    # Nothing is fetched.
    monkeypatch.setenv("SURVEY_CODE_DATA", str(tmp_path))
    load_once.cache_clear()
    out = ("--out", tmp_path / "out")
    empty = tmp_path / "empty.py"
    empty.write_text("import math\nnumber = 3\n")
    assert "--plugin names its file" in refused(capsys, *out)
    said = refused(capsys, "--plugin", empty, *out)
    assert "empty.py: defines no survey_code.Method, only math, number;" in said
    assert "METHOD = survey_code.Method(...)" in said
    toy = ("--plugin", TOY, *out)
    said = refused(capsys, *toy, "--method", "full")
    assert (
        "--method full is not in" in said and "defines equal_reads, dealt_rows" in said
    )
    said = refused(capsys, *toy, "--contest", "mine")
    assert "unknown contest 'mine'; contests: synthetic, " in said
    assert "jobs must be" in refused(capsys, *toy, "--jobs", 0)
    said = refused(capsys, *toy, "--contest", "synthetic", "--rival", "magic")
    assert "'magic' does not compete in synthetic; who does: full, uniform" in said
    said = refused(capsys, *toy)
    assert "contest frappe: SURVEY_CODE_DATA is set, but" in said
    assert "naming others with --contest" in said
    clicks = tmp_path / "clicks.py"
    clicks.write_text(TOY.read_text().replace('("ctr", "top-n")', '("top-n",)'))
    monkeypatch.setattr(catalog, "_ADDED", {})
    said = refused(capsys, "--plugin", clicks, *out, "--contest", "synthetic")
    assert "serves top-n tasks, but contest synthetic is a ctr task" in said
    assert not (tmp_path / "out").exists()


def test_runs_of_another_version_of_the_file_are_not_taken(tiny, field, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "equal_reads_as_run.py").write_text("as it was")
    load_plugin(TOY)
    with pytest.raises(ValueError, match="has changed since: take another --out"):
        make_card("equal_reads", [tiny], folder, evidence=field)


def test_runs_that_cannot_be_made_are_told(small, tmp_path, capsys):
    bad = tmp_path / "bad.py"
    text = TOY.read_text()
    assert "return pick_rows(" in text
    wrong = text.replace(
        "return pick_rows(", "assert not self.training\n        return pick_rows("
    )
    bad.write_text(wrong)
    words = ["card", "--plugin", str(bad), "--contest", "synthetic"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "not all runs of synthetic could be made" in capsys.readouterr().err
    page = (tmp_path / "out" / "equal_reads.html").read_text()
    assert "Runs that could not be made" in page and "AssertionError" in page


# -- checks ------------------------------------------------------------------------


# A line of the toy's file, what a careless author writes instead, and what that breaks.
FAULTS = {
    "budget": ('{"groups": most}', '{"groups": most + 9}'),
    "reach": (
        "        budget = spec.require(ratio, codebook_bytes(ids, 1, 1, 1, dim))",
        "        budget = spec.budget(ratio)\n"
        "        if budget < codebook_bytes(ids, 1, 1, 1, dim):\n"
        "            raise ValueError('too small')",
    ),
    "seed": (
        "nn.Parameter(draw_normal(shape, spec.init_std, seed))",
        "nn.Parameter(0.01 * torch.randn(shape))",
    ),
    "forward": (
        "        return pick_rows(self.group[ids], self.rows)",
        "        return 1.01 * pick_rows(self.group[ids], self.rows)",
    ),
    "frozen": ("as_float32(self.rows)", "self.rows.detach().numpy()"),
    "ids": (
        "    def embed(self, ids):",
        "    def check_ids(self, ids):\n"
        "        return ids.clamp(0, self.num_embeddings - 1).long()\n\n"
        "    def embed(self, ids):",
    ),
    "bytes": (
        "PLACE =",
        "class Light(CodebookLayout):\n"
        "    @property\n"
        "    def nbytes(self):\n"
        "        return super().nbytes - 4\n\n\n"
        "PLACE =",
    ),
    "file": (
        "PLACE =",
        "class Light(CodebookLayout):\n"
        "    def lookup(self, ids, **given):\n"
        "        return 2 * super().lookup(ids, **given)\n\n"
        "    def bag(self, *given, **asked):\n"
        "        return 2 * super().bag(*given, **asked)\n\n\n"
        "PLACE =",
    ),
    "bags": (
        "PLACE =",
        "class Light(CodebookLayout):\n"
        "    def bag(self, *given, **asked):\n"
        "        return 2 * super().bag(*given, **asked)\n\n\n"
        "PLACE =",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_fails_its_check_and_no_other(name, tmp_path):
    right, wrong = FAULTS[name]
    text = TOY.read_text()
    assert right in text
    text = text.replace(right, wrong)
    if "Light" in wrong:
        text = text.replace("return CodebookLayout.", "return Light.")
    if name == "file":  # what learns reads as the layout does
        text = text.replace("return pick_rows(", "return 2 * pick_rows(")
    (tmp_path / "faulty.py").write_text(text)
    method, _ = load_plugin(tmp_path / "faulty.py")
    verdicts = check_promises(method)
    broken = {verdict.name: verdict.said for verdict in verdicts if not verdict.kept}
    assert list(broken) == [name], broken
    assert broken[name]


def test_a_card_shows_what_a_method_does_not_keep(tiny, field, tmp_path):
    right, wrong = FAULTS["budget"]
    (tmp_path / "faulty.py").write_text(TOY.read_text().replace(right, wrong))
    load_plugin(tmp_path / "faulty.py")
    quick = dataclasses.replace(tiny, ratios=(2.0,), seeds=(1,))
    asked = {"evidence": field, "measure": False}
    card = make_card("equal_reads", [quick], tmp_path, **asked)
    assert [verdict.name for verdict in card.broken] == ["budget"]
    page = card.page.read_text()
    assert "does not pass every check: budget" in page and "bytes of" in page


def test_every_check_is_put_to_a_method_that_plans_nothing():
    class Nothing(get_method("hashing").load()):
        """Refuses all."""

        @classmethod
        def plan(cls, spec, ratio, options):
            """Nothing."""
            raise RuntimeError("no plan")

    method = dataclasses.replace(get_method("hashing"), implementation=Nothing)
    verdicts = check_promises(method)
    assert len(verdicts) == len(PROMISES) and not any(v.kept for v in verdicts)


# -- places ------------------------------------------------------------------------


def at(*values, ratio=10.0):
    return Point(dict(enumerate(values, 1)), (ratio,))


CURVES = {
    "full": [at(0.9, 0.91, 0.92, ratio=1.0)],
    "double_hashing": [at(0.8, 0.81, 0.82), at(0.7, 0.71, 0.72, ratio=30.0)],
    "uniform": [at(0.6, 0.6, 0.6, ratio=8.0), at(0.5, 0.5, 0.5, ratio=16.0)],
    "rowwise": [at(0.85, 0.85, 0.85, ratio=16.0)],
    "mine": [at(0.83, 0.84, 0.85)],
    "bigear": [],
}


def test_places_are_those_of_the_protocol():
    (near, far) = place_among("mine", CURVES, (10.0, 30.0))
    # rowwise takes less than was allowed; bigear counts as double hashing.
    assert (near.rank, near.rivals, near.best) == (2.0, 4, "rowwise")
    assert near.how == "measured"
    assert set(near.gaps) == {"rowwise", "full", "uniform", "double_hashing"}
    assert near.gaps["double_hashing"].differences == pytest.approx((0.03,) * 3)
    assert near.gaps["double_hashing"].is_clear and not near.gaps["rowwise"].is_clear
    # Out of reach at 30x, with all but double hashing itself.
    assert (far.how, far.gaps, far.best) == ("cannot", {}, "double_hashing")
    assert far.rank == np.mean([1, 2, 3, 4, 5])


def test_places_in_words():
    standings = place_among("mine", CURVES, (10.0, 14.0, 30.0))
    table = tabulate_places(standings, "AUC", {30.0: "cannot: at most 12x"})
    assert list(table.index) == ["10x", "14x", "30x"]
    assert table.loc["10x", "AUC"] == "0.8400 ± 0.0100"
    assert table.loc["10x", "rank"] == "2 of 5"
    assert table.loc["30x", "AUC"] == "cannot: at most 12x"
    assert table.loc["30x", "rank"].endswith("of 5, counted as double_hashing")
    gaps = tabulate_gaps(standings)
    assert gaps.loc["double_hashing", "10x"] == "+0.0300 ± 0.0000, clear"
    assert (gaps["30x"] == "cannot").all()
    assert "hashing" not in gaps.index  # of whom nothing is known


def test_no_difference_is_clear_without_pairs():
    gap = Difference((0.01, 0.011, 0.012))
    assert say_gap(gap) == "+0.0110 ± 0.0010, clear"
    assert say_gap(gap, comparable=False) == "+0.0110 ± 0.0010"
    assert say_gap(Difference((0.01, 0.02))).endswith("too few seeds")
    assert say_gap(Difference((-0.01,))) == "-0.0100, one seed"


def test_a_field_of_other_rows_is_said_to_be(tiny, held, tmp_path):
    load_plugin(TOY)
    folder = shutil.copytree(held[0], tmp_path / "out")
    other = record("another edition", full=[(1.0, (0.9, 0.9, 0.9))])
    card = make_card("equal_reads", [tiny], folder, evidence=other)
    assert not card.entries[0].comparable
    page = card.page.read_text()
    assert "recorded on another edition" in page and ", clear" not in page


def test_tables_of_a_card_hold_what_was_measured(tiny, field, held, tmp_path):
    load_plugin(TOY)
    folder = shutil.copytree(held[0], tmp_path / "out")
    (entry,) = make_card("equal_reads", [tiny], folder, evidence=field).entries
    first, *others = [result for result in entry.own if not result.failure]
    assert len(others) == 2
    sizes = tabulate_sizes(entry).loc["2x"]
    assert sizes["bytes stored"] == f"{first.bytes['inference']:,}"
    costs = tabulate_costs(entry.costs)
    assert list(costs.columns) == ["equal_reads", "full", "double_hashing"]
    assert costs.loc["bytes held while serving", "full"] == f"{330 * 8 * 4:,}"
