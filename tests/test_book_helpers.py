"""What the chapters share: set-up, numbers as text, source as it stands."""

import inspect
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import survey_code
from survey_code import book
from survey_code.baselines import FullEmbedding
from survey_code.embedding import draw_normal

ROOT = Path(survey_code.__file__).parents[1]


def run_python(code, **variables):
    """Run code in a fresh interpreter, as a kernel would."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        env.pop(name, None)
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True,
        timeout=900,
    )  # fmt: skip


# -- set-up ---------------------------------------------------------------------


@pytest.mark.parametrize("module", ["numpy", "torch"])
def test_setup_after_numpy_or_torch_comes_too_late(module):
    ended = run_python(f"import {module}\nfrom survey_code import book\nbook.setup()")
    assert ended.returncode == 1
    assert "RuntimeError: book.setup() comes too late: " in ended.stderr
    assert module in ended.stderr


SETUP = """
from survey_code import book
import sys
assert not {"numpy", "torch", "matplotlib"} & set(sys.modules)
book.setup()
import os, random, torch, matplotlib
print(torch.get_num_threads(), os.environ["OMP_NUM_THREADS"])
print(random.random(), torch.rand(1).item(), matplotlib.rcParams["font.size"])
book.setup()  # again does no harm
print(random.random(), torch.rand(1).item(), matplotlib.rcParams["font.size"])
"""


def test_setup_fixes_seeds_threads_and_style():
    first = run_python(SETUP, SURVEY_CODE_THREADS="2")
    assert first.returncode == 0, first.stderr
    threads, drawn, again = first.stdout.splitlines()
    assert threads == "2 2" and drawn == again and drawn.endswith(" 9.0")


def test_setup_takes_one_thread_unless_told():
    code = (
        "from survey_code import book; book.setup(); import torch;"
        "print(torch.get_num_threads())"
    )
    ended = run_python(code)
    assert ended.stdout == "1\n", ended.stderr


@pytest.mark.parametrize("text", ["0", "-1", "two", "", "1.5"])
def test_threads_that_are_no_number_are_a_value_error(text, monkeypatch):
    monkeypatch.setenv("SURVEY_CODE_THREADS", text)
    with pytest.raises(ValueError, match="SURVEY_CODE_THREADS must be a number from 1"):
        book.read_threads()


def test_colours_and_markers_tell_as_many_lines_apart():
    assert len(set(book.COLORS)) == len(book.COLORS) == 7
    # No common factor: lines of the same colour differ in their marker.
    assert len(set(book.MARKERS)) == len(book.MARKERS) == 9
    assert math.gcd(len(book.COLORS), len(book.MARKERS)) == 1


# -- numbers as text --------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "value", "text"),
    [
        (book.metric, 0.98765, "0.988"),
        (book.metric, 0.1, "0.100"),
        (book.metric, -0.25, "-0.250"),
        (book.metric, 1, "1.000"),
        (book.ratio, 5.333, "5.3x"),
        (book.ratio, 10, "10.0x"),
        (book.count, 1234567, "1,234,567"),
        (book.count, 12.0, "12"),
    ],
)
def test_numbers_have_one_form(format, value, text):
    assert format(value) == text


EDGES = [0.9875001, 0.987499, 0.1234983 + 2e-6, -0.4565009, 0.500501]


@pytest.mark.parametrize("value", EDGES)
def test_a_metric_on_a_rounding_edge_is_an_error_when_checked(value, monkeypatch):
    monkeypatch.delenv("SURVEY_CODE_ROUNDING", raising=False)
    assert book.metric(value) == f"{value:.3f}"
    monkeypatch.setenv("SURVEY_CODE_ROUNDING", "check")
    with pytest.raises(
        ValueError, match="is on a rounding edge at 3 decimals"
    ) as error:
        book.metric(value)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("value", [0.987, 0.98745, 0.98755, 0.1231, -0.25, 0, 1.0])
def test_a_metric_off_the_edge_passes_the_check(value, monkeypatch):
    monkeypatch.setenv("SURVEY_CODE_ROUNDING", "check")
    assert book.metric(value) == f"{value:.3f}"


def test_values_that_pass_the_check_print_the_same_next_door(monkeypatch):
    """Whatever passes may move by a millionth without another digit."""
    monkeypatch.setenv("SURVEY_CODE_ROUNDING", "check")
    passed = 0
    for step in range(3000, 7001):
        value = 0.5 + step * 1e-7
        try:
            text = book.metric(value)
        except ValueError:
            continue
        passed += 1
        for near in (value - 1e-6, value + 1e-6):
            assert f"{near:.3f}" == text
    assert 3900 < passed < 4001


def test_ratios_and_counts_are_exact_and_not_checked(monkeypatch):
    monkeypatch.setenv("SURVEY_CODE_ROUNDING", "check")
    assert book.ratio(2.6501) == "2.7x" and book.count(10**6) == "1,000,000"


# -- source ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("thing", "file"),
    [
        (draw_normal, "embedding"),
        (FullEmbedding, "baselines"),
        (FullEmbedding.embed, "baselines"),
    ],
)
def test_source_is_shown_as_it_stands_in_its_file(thing, file):
    text = book.source_markdown(thing)
    head, rest = text.split("\n\n", 1)
    assert head == f"From `survey_code/{file}.py`:"
    assert rest.startswith("```python\n") and rest.endswith("\n```")
    code = rest.removeprefix("```python\n").removesuffix("\n```")
    assert code == inspect.getsource(thing).rstrip()
    assert code in (ROOT / "survey_code" / f"{file}.py").read_text()


def test_showing_is_the_same_markdown():
    assert book.show_source(draw_normal).data == book.source_markdown(draw_normal)
