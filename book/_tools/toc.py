"""What the book is made of, read from _toc.yml.

python book/_tools/toc.py    prints the chapters' paths, one a line
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = (".md", ".ipynb", ".rst")


def pages(root: Path = ROOT) -> list[Path]:
    """Every page, relative to `root`, in the book's order.

    A page that does not exist is listed with the suffix .md, so that whoever
    opens it says which file is missing.
    """
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    found = []
    for name in _names(toc):
        choices = [Path(name), *(Path(name + suffix) for suffix in SUFFIXES)]
        existing = [path for path in choices if (root / path).is_file()]
        found.append(existing[0] if existing else Path(name + ".md"))
    return found


def chapters(root: Path = ROOT) -> list[Path]:
    """The notebooks among the pages."""
    return [path for path in pages(root) if path.suffix == ".ipynb"]


def _names(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for item in node:
            yield from _names(item)
    elif isinstance(node, dict):
        if "root" in node:
            yield node["root"]
        if "file" in node:
            yield node["file"]
        for key in ("parts", "chapters", "sections", "subtrees", "entries"):
            yield from _names(node.get(key))


if __name__ == "__main__":
    print("\n".join(path.as_posix() for path in chapters()))
