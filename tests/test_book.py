"""The book's own checks: every chapter, every page, every recorded result.

The checks stand in book/_tools/checks.py.  The second half of this file breaks a
good small chapter in every way they should notice.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import checks
import launch
import nbformat
import pytest
import run
import toc
from nbformat import v4

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = [path.as_posix() for path in toc.chapters()]
PAGES = [path.as_posix() for path in toc.pages()]
RESULTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "book" / "results").rglob("*")
    if path.suffix in (".json", ".jsonl", ".csv")
)


# The book as it is


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter(name):
    notebook = nbformat.read(ROOT / name, as_version=4)
    nbformat.validate(notebook)
    problems = checks.check_chapter(notebook, name) + checks.small_file(ROOT / name)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", CHAPTERS)
def test_shown_source_is_the_file_s(name):
    notebook = nbformat.read(ROOT / name, as_version=4)
    problems = checks.stale_source(notebook, name)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", PAGES)
def test_page(name):
    texts = checks.page_text(ROOT / name)
    assert not checks.unsolved(texts, name)
    assert not any(checks.MACHINE_PATH.search(text) for text in texts)


@pytest.mark.parametrize("name", RESULTS)
def test_results_say_where_they_come_from(name):
    problems = checks.without_provenance(ROOT / name)
    assert not problems, "\n".join(problems[:10])


def test_toc_has_every_chapter():
    assert not checks.unlisted()
    assert len(set(PAGES)) == len(PAGES)


def test_address_stands_in_one_place():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    elsewhere = checks.address_elsewhere(
        checks.tracked_files(), checks.repository_address()
    )
    assert not elsewhere, "\n".join(elsewhere)


def test_binder_installs_the_pins():
    lines = (ROOT / ".binder" / "requirements.txt").read_text().split("\n")
    assert "-r ../requirements.txt" in lines
    pins = (ROOT / "requirements.txt").read_text().split("\n")
    loose = [x for x in pins if x and not x.startswith("#") and "==" not in x]
    assert not loose


# The checks themselves


def make_chapter():
    """A small chapter without a flaw."""
    picture = v4.new_output("display_data", {"image/png": "AAAA"})
    printed = v4.new_output("stream", name="stdout", text="3\n")
    cells = [
        v4.new_markdown_cell("# Title"),
        v4.new_code_cell("from survey_code import book\nbook.setup()"),
        v4.new_code_cell("print(3)", outputs=[printed]),
        v4.new_code_cell("plt.show()", outputs=[picture]),
        v4.new_code_cell("book.show_source(book.metric)"),
    ]
    for number, cell in enumerate(cells[1:], 1):
        cell.execution_count = number
    cells[3].metadata["mystnb"] = {"image": {"alt": "A line that rises"}}
    cells[4].metadata["tags"] = ["nbval-ignore-output"]
    from survey_code import book

    source = {"text/markdown": book.source_markdown(book.metric)}
    cells[4].outputs = [v4.new_output("execute_result", source, execution_count=4)]
    return v4.new_notebook(cells=cells)


def change(notebook, cell, **fields):
    """The notebook with one cell's fields set."""
    for name, value in fields.items():
        setattr(notebook.cells[cell], name, value)
    return notebook


def stream(text, name="stdout"):
    return [v4.new_output("stream", name=name, text=text)]


def test_good_chapter_passes():
    assert not checks.check_chapter(make_chapter(), "good")
    assert not checks.stale_source(make_chapter(), "good")


ERROR = v4.new_output("error", ename="E", evalue="", traceback=[])
BROKEN = {
    "not executed": (2, {"execution_count": None}, "execution count None"),
    "out of order": (2, {"execution_count": 7}, "execution count 7"),
    "error": (2, {"outputs": [ERROR]}, "stores an error"),
    "stderr": (2, {"outputs": stream("x", "stderr")}, "standard error"),
    "skip tag": (2, {"metadata": {"tags": ["nbval-skip"]}}, "tag nbval-skip"),
    "raise tag": (2, {"metadata": {"tags": ["raises-exception"]}}, "raises-exc"),
    "ignore tag": (2, {"metadata": {"tags": ["nbval-ignore-output"]}}, "does more"),
    "source and more": (
        4,
        {"source": "book.show_source(book.metric)\nprint(1)"},
        "does more",
    ),
    "comment": (2, {"source": "# NBVAL_IGNORE_OUTPUT\nprint(3)"}, "nbval comment"),
    "no set-up": (1, {"source": "import numpy"}, "does not begin with"),
    "set-up late": (
        1,
        {"source": "import numpy\nfrom survey_code import book\nbook.setup()"},
        "does not begin with",
    ),
    "long cell": (2, {"source": "x = 1\n" * 26}, "26 lines"),
    "wide line": (2, {"source": "x" * 79}, "79 columns"),
    "path in source": (2, {"source": 'open("/tmp/x")'}, "path of a machine"),
    "path in output": (2, {"outputs": stream("in /home/me/x")}, "path of a machine"),
    "path in prose": (0, {"source": "see `/work/x`"}, "path of a machine"),
    "no picture": (3, {"outputs": []}, "that is not there"),
    "no alt": (3, {"metadata": {}}, "without an alt text"),
    "empty alt": (3, {"metadata": {"mystnb": {"image": {"alt": " "}}}}, "without an"),
    "speed": (
        2,
        {"source": "t = lab.measure_lookup(x)\nfast = t.p50\nassert fast < 3"},
        "asserts a time",
    ),
    "semicolon": (3, {"source": "plt.plot(x);"}, "semicolon"),
}


@pytest.mark.parametrize("flaw", BROKEN)
def test_flaw_is_found(flaw):
    cell, fields, words = BROKEN[flaw]
    fields = {
        key: nbformat.from_dict(value) if key == "metadata" else value
        for key, value in fields.items()
    }
    problems = checks.check_chapter(change(make_chapter(), cell, **fields), "bad")
    assert len(problems) == 1
    assert words in problems[0]


def test_colab_cell_may_come_first_if_hidden():
    chapter = make_chapter()
    cell = v4.new_code_cell('if "google.colab" in sys.modules:\n    pass')
    chapter.cells.insert(0, cell)
    assert checks.setup_first(chapter) == ["the Colab cell is not hidden"]
    cell.metadata["tags"] = ["remove-cell"]
    assert not checks.setup_first(chapter)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("book.show_source(book.ratio)", "old source"),
        ("book.show_source(book.gone)", "cannot be found"),
        ("book.show_source(nowhere)", "cannot be found"),
        ("x = book.show_source(book.metric)", "does more"),
        ("from survey_code import nowhere", "not there"),
    ],
)
def test_stale_source_is_found(source, words):
    problems = checks.stale_source(change(make_chapter(), 4, source=source), "bad")
    assert len(problems) == 1
    assert words in problems[0]


def test_large_file_is_found(tmp_path):
    path = tmp_path / "x.ipynb"
    path.write_bytes(b" " * checks.MOST_BYTES)
    assert not checks.small_file(path)
    path.write_bytes(b" " * (checks.MOST_BYTES + 1))
    assert checks.small_file(path)


EXERCISE = "```{exercise} Count\n:label: count\n\nHow many?\n```\n"
SOLUTION = "```{solution} count\n:class: dropdown\n\nThree.\n```\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (EXERCISE + SOLUTION, None),
        (EXERCISE + SOLUTION.replace("solution}", "solution-start}"), None),
        (EXERCISE.replace("```", ":::") + SOLUTION, None),
        ("1. In a list\n\n" + EXERCISE.replace("{exercise}", "{exercise-start}")
         + SOLUTION, None),
        (EXERCISE, "no solution of count"),
        (EXERCISE.replace(":label: count\n", "") , "has no label"),
        (EXERCISE + SOLUTION.replace(":class: dropdown\n", ""), "not folded"),
        (SOLUTION, "no exercise count"),
    ],
)  # fmt: skip
def test_exercises(text, words):
    problems = checks.unsolved([text], "x")
    assert len(problems) == (words is not None)
    assert words is None or words in problems[0]


def make_book(folder):
    """A repository with one chapter."""
    (folder / "chapters").mkdir()
    toc_text = "root: book/index\nparts:\n- chapters:\n  - file: chapters/one\n"
    (folder / "_toc.yml").write_text(toc_text)
    config = "repository: {url: https://example.org/o/r, branch: launch}\n"
    (folder / "_config.yml").write_text(config)
    shutil.copy(ROOT / "requirements.txt", folder)
    nbformat.write(make_chapter(), folder / "chapters" / "one.ipynb")
    return folder


def test_unlisted_chapter_is_found(tmp_path):
    root = make_book(tmp_path)
    assert not checks.unlisted(root)
    shutil.copy(root / "chapters" / "one.ipynb", root / "chapters" / "two.ipynb")
    assert checks.unlisted(root) == ["chapters/two.ipynb is not in _toc.yml"]


def test_listed_page_that_is_missing_keeps_its_name(tmp_path):
    assert toc.pages(make_book(tmp_path)) == [
        Path("book/index.md"),
        Path("chapters/one.ipynb"),
    ]


def test_second_address_is_found(tmp_path):
    root = make_book(tmp_path)
    files = [root / "_config.yml", root / "README.md"]
    files[1].write_text("nothing")
    address = checks.repository_address(root)
    assert not checks.address_elsewhere(files, address)
    files[1].write_text("git clone git@example.org:o/r.git")
    assert checks.address_elsewhere(files, address)


def test_launch_adds_one_cell_and_names_the_address(tmp_path):
    root = make_book(tmp_path)
    launch.main(root)
    launch.main(root)
    chapter = nbformat.read(root / "chapters" / "one.ipynb", as_version=4)
    first = chapter.cells[0].source
    compile(first, "colab", "exec")
    assert "https://example.org/o/r" in first
    assert "/content/book/chapters" in first
    assert chapter.cells[1:] == make_chapter_like(chapter.cells[1:])
    assert not checks.setup_first(chapter)
    exec(first, {})  # does nothing here


def make_chapter_like(cells):
    """The good chapter's cells, under the ids that `cells` have."""
    good = make_chapter().cells
    for mine, theirs in zip(good, cells, strict=True):
        mine["id"] = theirs["id"]
    return good


ROW = {"command": "c", "device": "cpu", "date": "2026-01-01", "versions": {"a": "1"}}


@pytest.mark.parametrize(
    ("name", "text", "problems"),
    [
        ("a.jsonl", json.dumps(ROW | {"seed": 0}) + "\n", 0),
        ("a.jsonl", json.dumps(ROW) + "\n", 1),
        ("a.jsonl", json.dumps(ROW | {"seed": 0, "date": ""}) + "\n", 1),
        ("a.jsonl", "{half", 1),
        ("a.jsonl", "", 1),
        ("a.json", json.dumps([ROW | {"seed": 0}, ROW]), 1),
        ("a.json", json.dumps(ROW | {"seed": 0}), 0),
        ("a.csv", "command,device,date,versions,seed\nc,d,2,v,1\n", 0),
        ("a.csv", "command,device,date,versions\nc,d,2,v\n", 1),
    ],
)
def test_provenance(tmp_path, name, text, problems):
    path = tmp_path / name
    path.write_text(text)
    assert len(checks.without_provenance(path)) == problems


@pytest.mark.parametrize(
    "element",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//cdn.example/x.css">',
        '<link rel="preconnect" href="https://fonts.example">',
        '<img src="https://example.org/x.png">',
        "<style>@import 'https://example.org/x.css'</style>",
        '<p style="background: url(https://example.org/x.png)"></p>',
        "<script>import('https://example.org/x.js')</script>",
    ],
)
def test_external_request_is_found(tmp_path, element):
    (tmp_path / "x.html").write_text(element)
    assert checks.external_requests(tmp_path)


def test_links_and_own_files_are_no_external_requests(tmp_path):
    text = '<a href="https://example.org">x</a><img src="x.png"><script>1</script>'
    (tmp_path / "x.html").write_text(text + '<link rel="canonical" href="https://x">')
    assert not checks.external_requests(tmp_path)
    (tmp_path / "x.css").write_text("a { src: url('https://example.org/f.woff') }")
    assert checks.external_requests(tmp_path)


# Running chapters


def test_failing_cell_is_described(tmp_path):
    cells = [
        v4.new_code_cell("fine = 1"),
        v4.new_markdown_cell("words"),
        v4.new_code_cell("lost = 2\nraise KeyError('gone')"),
    ]
    notebook = v4.new_notebook(cells=cells)
    why = "\x1b[31mKeyError\x1b[0m: 'gone'"
    text = run.describe_failure(notebook, Path("chapters/x.ipynb"), 2, why)
    assert "chapters/x.ipynb, code cell 2 of 2" in text
    assert "raise KeyError('gone')" in text
    assert "KeyError: 'gone'" in text
    assert "\x1b" not in text


def test_stamp_follows_source_not_outputs(tmp_path, monkeypatch):
    root = make_book(tmp_path)
    (root / "survey_code").mkdir()
    monkeypatch.setattr(run, "ROOT", root)
    path = Path("chapters/one.ipynb")
    chapter = nbformat.read(root / path, as_version=4)
    stamps = [run.make_stamp(path)]
    chapter.cells[2].outputs = []
    nbformat.write(chapter, root / path)
    assert run.make_stamp(path) == stamps[0]
    chapter.cells[2].source = "print(4)"
    nbformat.write(chapter, root / path)
    stamps.append(run.make_stamp(path))
    (root / "survey_code" / "x.py").write_text("x = 1\n")
    stamps.append(run.make_stamp(path))
    (root / "survey_code" / "x.py").write_text("x = 2\n")
    stamps.append(run.make_stamp(path))
    (root / "book" / "results").mkdir(parents=True)
    (root / "book" / "results" / "x.jsonl").write_text("{}")
    stamps.append(run.make_stamp(path))
    assert len(set(stamps)) == len(stamps)


def test_tidy_keeps_outputs_and_drops_the_machine():
    chapter = make_chapter()
    chapter.metadata = nbformat.from_dict(
        {"widgets": {}, "language_info": {"name": "python", "version": "3.11.7"}}
    )
    chapter.cells[2].metadata["execution"] = {"iopub.status.busy": "2026"}
    run.tidy(chapter)
    assert set(chapter.metadata) == {"kernelspec", "language_info"}
    assert "version" not in chapter.metadata.language_info
    assert "execution" not in chapter.cells[2].metadata
    assert chapter.cells[2].outputs


# Tests that need real data


SKIPPING = """
import pytest

@pytest.mark.skipif(True, reason="set SURVEY_CODE_DATA to run this")
def test_marked(): ...

def test_called():
    pytest.skip("SURVEY_CODE_DATA has no such file")

def test_other():
    pytest.skip("no GPU")
"""


@pytest.mark.parametrize(
    ("data", "whole_module", "words", "status"),
    [
        ("", False, "3 skipped", 0),
        ("nowhere", False, "3 skipped", 0),
        (".", False, "1 failed, 1 skipped, 1 error", 1),
        ("", True, "1 skipped", 5),
        (".", True, "1 error", 2),
    ],
)
def test_skip_without_reason_fails(tmp_path, data, whole_module, words, status):
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    module = "import pytest\npytest.skip('SURVEY_CODE_DATA', allow_module_level=True)"
    (tmp_path / "test_x.py").write_text(module if whole_module else SKIPPING)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    environment["SURVEY_CODE_DATA"] = str(tmp_path / data) if data else ""
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # the others take seconds
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert words in done.stdout, done.stdout + done.stderr
    assert done.returncode == status
