"""Make the chapters in a folder ready for Colab.

    python book/_tools/launch.py FOLDER

FOLDER is a checkout of the repository.  Each of its chapters gets a first cell
that does nothing except on Colab, where it fetches the repository, installs
what Colab lacks and goes to the chapter's folder.  The workflow that publishes
the book does this on the branch that the launch buttons point to, so that the
chapters themselves need not name the repository.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
import yaml
from toc import chapters

CELL = """\
# Only on Google Colab: fetch the book's code and what Colab lacks.
import sys

if "google.colab" in sys.modules:
    import os
    import subprocess

    def run(*words):
        subprocess.run(words, check=True)

    if not os.path.exists("/content/book"):
        run("git", "clone", "--quiet", "--depth=1", "--branch={branch}",
            "{url}", "/content/book")
        run(sys.executable, "-m", "pip", "install", "--quiet",
            {packages})
    os.chdir("/content/book/{folder}")
    sys.path.insert(0, "/content/book")
"""
# Colab brings the rest, in versions of its own.
PACKAGES = ("safetensors", "pooch", "myst-nb")


def main(root: Path) -> None:
    """Put the cell at the head of every chapter below `root`."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    repository = config["repository"]
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", pinned(root), re.MULTILINE))
    for path in chapters(root):
        notebook = nbformat.read(root / path, as_version=4)
        source = CELL.format(
            url=repository["url"],
            branch=repository["branch"],
            packages=", ".join(f'"{name}=={pins[name]}"' for name in PACKAGES),
            folder=path.parent.as_posix(),
        )
        cell = nbformat.v4.new_code_cell(source.rstrip(), id="colab")
        cell.metadata["tags"] = ["remove-cell"]
        cell.metadata["jupyter"] = {"source_hidden": True}
        if notebook.cells[0].get("id") != "colab":
            notebook.cells.insert(0, cell)
        (root / path).write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def pinned(root: Path) -> str:
    """The list of pins."""
    return (root / "requirements.txt").read_text(encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
