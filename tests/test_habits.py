"""Facts that stand in several files are the same in all of them."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from survey_code import __version__

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
# Packages that are imported by another name than they are installed by.
INSTALLED_AS = {"sklearn": "scikit-learn", "cupy": "cupy-cuda13x"}


def read(name):
    return (ROOT / name).read_text("utf-8")


def declared():
    """What pyproject.toml asks for, extras included, by name."""
    # What only those who look at the built pages need is no part of the pinned set.
    optional = PROJECT["optional-dependencies"].items()
    extras = [lines for name, lines in optional if name != "pages"]
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    return {canonicalize_name(x.name): x for x in map(Requirement, lines)}


def pinned():
    """The version of every package in requirements.txt."""
    lines = (line for line in read("requirements.txt").splitlines() if "==" in line)
    pins = (line.split(";")[0].strip().split("==") for line in lines)
    return {canonicalize_name(name): version for name, version in pins}


def imported(path):
    """The packages that a module imports, without the standard library's."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    tops = {name.partition(".")[0] for name in names}
    return tops - sys.stdlib_module_names - {"survey_code"}


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("CITATION.cff", r"^version: (.+)$"),
        ("CHANGELOG.md", r"^## (\d.*)$"),
        ("book/index.md", r"version (\d+\.\d+\.\d+)"),
    ],
)
def test_the_version_is_the_package_s(name, pattern):
    found = re.findall(pattern, read(name), re.MULTILINE)
    assert found[:1] == [__version__]


def test_the_version_is_not_stated_twice():
    assert "version" not in PROJECT and PROJECT["dynamic"] == ["version"]


# Programs that are called, and not imported.
CALLED = {"ziglang"}


def test_what_is_imported_is_declared_and_nothing_else():
    paths = (ROOT / "survey_code").rglob("*.py")
    names = set().union(*map(imported, paths))
    used = {canonicalize_name(INSTALLED_AS.get(x, x)) for x in names} | CALLED
    assert used == {*declared()}


def test_pins_are_versions_that_the_package_takes():
    pins = pinned()
    for name, wanted in declared().items():
        # For machines with a GPU, or without a compiler.
        if name not in {"cupy-cuda13x", *CALLED}:
            assert pins[name] in wanted.specifier


def test_commits_are_checked_by_the_pinned_ruff():
    hooks = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    (ruff,) = (repo for repo in hooks if repo["repo"].endswith("ruff-pre-commit"))
    assert ruff["rev"] == f"v{pinned()['ruff']}"
