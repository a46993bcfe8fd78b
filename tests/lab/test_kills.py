"""Whoever makes results may be killed at any moment: started again until the files are
whole, they are those of somebody who was not.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from survey_code.lab import load_results, tabulate

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="processes are forked, and found in /proc"
)
LIVES = Path(__file__).with_name("lives.py")
# What no two runs have in common: when, and how fast.
OWN = ("seconds", "lookup", "date")
GROUP = {"line": 3, "part": 0.4, "who": "group"}
WORKER = {"line": 3, "who": "worker"}
ALONE = {"line": 8, "part": 0.7, "who": "main"}


def tell(folder, stories):
    """Live some stories, each in a folder: what is said of each life."""
    for story in stories:
        story["folder"] = str(folder / story["folder"])
        Path(story["folder"]).mkdir(exist_ok=True)
    # Sockets of processes that were killed stay; a name in a test's folder is too long.
    with tempfile.TemporaryDirectory() as short:
        done = subprocess.run(
            [sys.executable, LIVES, json.dumps(stories)],
            env={**os.environ, "TMPDIR": short}, capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lives = [json.loads(line) for line in done.stdout.splitlines()]
    # Nobody is a minute longer there than who started them, and nothing fails.
    assert all(one["left"] == [] and one["code"] in (0, -9) for one in lives), done
    return lives


def read(path, sort=False):
    """All lines of a file but for what is a run's own, each of which is whole."""
    text = path.read_text()
    assert text.endswith("\n") and len(load_results(path)) == text.count("\n")
    lines = [json.loads(line) for line in text.splitlines()]
    kept = [{n: v for n, v in line.items() if n not in OWN} for line in lines]
    texts = [json.dumps(line, sort_keys=True) for line in kept]
    assert len(set(texts)) == len(texts)
    return sorted(texts) if sort else texts


def is_same(killed, whole, joined=False):
    """Whether two folders hold the same files, of the same lines in the same order.

    Lines of a contest are in order where they are joined.
    """
    names = [
        sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if
               file.is_file())
        for folder in (killed, whole)
    ]  # fmt: skip
    assert names[0] == names[1] and names[0]
    for name in names[0]:
        sort = joined and not name.startswith("book/")
        assert read(killed / name, sort) == read(whole / name, sort)
        if "runs" in name:
            tables = [tabulate(load_results(one / name)) for one in (killed, whole)]
            assert tables[0].equals(tables[1])
    return True


def test_what_was_killed_and_started_again_is_the_same(tmp_path):
    sweep, contest = {"what": "sweep"}, {"what": "contest"}
    lives = tell(tmp_path, [
        {**sweep, "folder": "sweep", "lives": [[]]},
        {**sweep, "folder": "swept", "lives": [[GROUP], []]},
        {**contest, "folder": "whole", "lives": [[]]},
        {**contest, "folder": "killed", "lives": [[WORKER, ALONE]], "jobs": 2},
        {**contest, "folder": "killed", "lives": [[]]},
    ])  # fmt: skip
    assert [one["code"] for one in lives] == [0, -9, 0, 0, -9, 0]
    found = [(one["lines"], one["torn"]) for one in lives if one["code"]]
    assert found == [(2, 1), (7, 1)]
    assert is_same(tmp_path / "swept", tmp_path / "sweep")
    assert is_same(tmp_path / "killed", tmp_path / "whole", joined=True)


@pytest.mark.kills
@pytest.mark.parametrize(
    "what, jobs",
    [("sweep", 1), ("list", 1), ("list", 2), ("contest", 1), ("contest", 2)],
)
def test_twenty_kills_change_nothing(tmp_path, what, jobs):
    story = {"what": what, "large": True}
    lives = tell(tmp_path, [
        {**story, "folder": "whole", "lives": [[]]},
        {**story, "folder": "killed", "kills": 20, "jobs": jobs},
    ])  # fmt: skip
    codes = [one["code"] for one in lives]
    assert codes.count(-9) == 20 and codes[-1] == 0
    print(*(f"{one['code']} {one['lines']} {one['torn']}" for one in lives), sep=", ")
    assert is_same(tmp_path / "killed", tmp_path / "whole", what == "contest")
