"""Build the HTML book.

    python book/_tools/build.py              from the stored outputs
    python book/_tools/build.py --executed   from the chapters that `run.py` ran
    python book/_tools/build.py --strict     from the stored outputs, in a folder
                                             of its own, warnings are errors

The pages' sources are gathered in one folder and built there, so that nothing
is written beside them.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from checks import external_requests
from explorer import write_explorer
from jupyter_book.config import get_final_config
from jupyter_book.sphinx import build_sphinx
from sphinx.util.console import color_terminal, nocolor
from toc import ROOT, chapters, pages

# Leads to the book's first page; with an icon, so that no browser asks for one.
FIRST_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>Embedding Compression in Recommender Systems</title>
<link rel="icon" href="_static/favicon.svg">
<meta http-equiv="refresh" content="0; url=book/index.html">
<a href="book/index.html">Embedding Compression in Recommender Systems</a>
"""


def main() -> int:
    """Gather, build, check, and print where the first page is."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--executed", action="store_true")
    parser.add_argument("--strict", action="store_true")
    given = parser.parse_args()
    started = time.monotonic()
    if not color_terminal():
        nocolor()
    home = ROOT / "_build" / ("strict" if given.strict else "")
    source, html, doctrees = home / "source", home / "html", home / "doctrees"
    changed_toc = gather(source, given.executed)
    if given.strict or changed_toc:
        for folder in (html, doctrees):
            shutil.rmtree(folder, ignore_errors=True)
    status = build_sphinx(
        source,
        html,
        noconfig=True,
        path_config=str(ROOT / "_config.yml"),
        # The table of contents stands beside the gathered pages.
        confoverrides={
            **adjust_config(source),
            "external_toc_path": str(source / "_toc.yml"),
            "latex_individualpages": False,
            "nitpicky": given.strict,
        },
        doctreedir=doctrees,
        quiet=True,
        warningiserror=given.strict,
        keep_going=True,
        jobs=1,
    )
    if status:
        print("The book was not built.", file=sys.stderr)
        return 1
    for page in [*html.glob("book/**/*.html"), *html.glob("chapters/**/*.html")]:
        if page.relative_to(html).with_suffix("") not in {
            path.with_suffix("") for path in pages()
        }:
            page.unlink()
    (html / "index.html").write_text(FIRST_PAGE, encoding="utf-8")
    write_explorer(html / "explorer")
    outside = external_requests(html)
    if outside:
        print("\n".join(outside), file=sys.stderr)
        print("Pages must load nothing from other hosts.", file=sys.stderr)
        return 1
    origin = "computed here" if given.executed else "stored in the chapters"
    print(f"The book, with outputs {origin}, in {time.monotonic() - started:.0f} s:")
    print(f"  {(html / 'index.html').relative_to(ROOT)}")
    return 0


def adjust_config(source: Path) -> dict[str, Any]:
    """What Jupyter Book's own configuration cannot say.

    No thebe: its scripts are on every page even where it is off, and twice, which
    a browser reports as an error. One search field, not two. In _config.yml the
    theme's options would replace those that Jupyter Book makes (launch buttons).
    """
    config, _ = get_final_config(
        user_yaml=ROOT / "_config.yml",
        cli_config={"latex_individualpages": False},
        sourcedir=source,
    )
    return {
        "extensions": [x for x in config["extensions"] if x != "sphinx_thebe"],
        "html_theme_options": {
            **config["html_theme_options"],
            "navbar_persistent": [],
            "show_toc_level": 2,
        },
    }


def gather(source: Path, executed: bool) -> bool:
    """Copy what the pages are made of; returns whether _toc.yml changed.

    A file is written only where its content differs: Sphinx goes by the time of
    the last change.
    """
    wanted: dict[Path, Path] = {Path("_toc.yml"): ROOT / "_toc.yml"}
    for page in pages():
        wanted[page] = ROOT / page
    if executed:
        for page in chapters():
            wanted[page] = ROOT / "_build" / page
    for path in sorted((ROOT / "book").rglob("*")):
        relative = path.relative_to(ROOT)
        hidden = any(part.startswith((".", "__")) for part in relative.parts)
        if path.is_file() and "_tools" not in relative.parts and not hidden:
            wanted.setdefault(relative, path)
    missing = [str(path) for path in wanted.values() if not path.is_file()]
    if missing:
        sys.exit("Missing, though _toc.yml lists it: " + ", ".join(missing))
    toc = source / "_toc.yml"
    changed = (
        not toc.is_file() or toc.read_bytes() != wanted[Path("_toc.yml")].read_bytes()
    )
    for path in sorted(source.rglob("*"), reverse=True):
        if path.is_file() and path.relative_to(source) not in wanted:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    for relative, origin in wanted.items():
        target, content = source / relative, origin.read_bytes()
        if not target.is_file() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    return changed


if __name__ == "__main__":
    sys.exit(main())
