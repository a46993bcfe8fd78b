"""The wheel: what it holds, and that it works where the checkout is out of sight."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import numpy as np
import pytest

from survey_code import __version__
from survey_code.catalog import CATALOG

ROOT = Path(__file__).resolve().parents[1]
# This environment's packages, lent to the bare one.  The checkout is not among them:
# what points to it is read from site-packages, but not on PYTHONPATH.
LENT = {"PYTHONPATH": str(Path(np.__file__).parents[1])}
NOT_SOURCE = shutil.ignore_patterns(
    ".*", "_build", "build", "__pycache__", "*.egg-info", "*.ipynb", "results"
)


CPP = (".cu", ".cuh", ".cpp", ".h")


def run(*words, folder, **variables):
    """What a command prints that is started in a folder, without a network."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    quiet = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env={**clean, **quiet, **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of a copy of the checkout, built with what is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=NOT_SOURCE)
    words = ("pip", "wheel", "--no-deps", "--no-build-isolation", "./source")
    run(sys.executable, "-m", *words, folder=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory):
    """The programs of a new environment that holds the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("elsewhere")
    run(sys.executable, "-m", "venv", "--without-pip", "bare", folder=folder)
    found = folder / "bare" / ("Scripts" if os.name == "nt" else "bin")
    words = ("pip", "--python", found / "python", "install", "--no-deps", wheel)
    run(sys.executable, "-m", *words, folder=folder)
    return found


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    source = wheel.parent / "source"
    files = {
        path.relative_to(source).as_posix()
        for path in (source / "survey_code").rglob("*")
        if path.suffix in (".py", *CPP)
        or path.name.startswith(("py.typed", "evidence"))
    }
    assert "survey_code/py.typed" in files
    assert any(name.startswith("survey_code/evidence.json") for name in files)
    kernels = {name for name in files if name.startswith("survey_code/kernels/")}
    for name in (
        "formats/codebook.cuh", "cuda/composed.cu", "cpu/bags.cpp", "cpu/words.h",
        "cpu/words/cuda_fp16.h", "cpu/codes.py",
    ):  # fmt: skip
        assert f"survey_code/kernels/{name}" in kernels
    held = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert held == files


def test_the_wheel_says_the_version_that_the_package_says(wheel):
    (name,) = (n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("METADATA"))
    facts = Parser().parsestr(zipfile.ZipFile(wheel).read(name).decode())
    assert wheel.name == f"survey_code-{__version__}-py3-none-any.whl"
    assert (facts["Name"], facts["Version"]) == ("survey-code", __version__)


def test_the_standard_library_is_enough_to_import_it(scripts):
    script = "import survey_code; print(survey_code.__version__, survey_code.__file__)"
    said = run(scripts / "python", "-c", script, folder=scripts)
    version, path = said.strip().split(" ", 1)
    assert version == __version__
    assert Path(path).is_relative_to(scripts.parent)


def test_the_catalogue_is_whole(scripts):
    script = "import survey_code as s; print(s.__file__, *(m.key for m in s.methods()))"
    said = run(scripts / "python", "-c", script, folder=scripts, **LENT)
    path, *keys = said.split()
    assert Path(path).is_relative_to(scripts.parent)
    # Other tests of this process may have added methods of a file.
    assert keys == [method.key for method in CATALOG]


@pytest.mark.parametrize("words", [["survey-code"], ["python", "-m", "survey_code"]])
def test_the_command_line_starts(words, scripts):
    program, *rest = words
    said = run(scripts / program, *rest, "--help", folder=scripts, **LENT)
    assert said.startswith("usage: survey-code") and "compress" in said
