"""What must hold for every chapter, page and results file.

Each check returns a list of problems, one sentence each; empty is good.
"""

from __future__ import annotations

import ast
import csv
import importlib
import json
import re
import subprocess
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import yaml
from toc import ROOT, chapters

MOST_BYTES = 1_000_000
MOST_LINES = 25
MOST_COLUMNS = 78
PROVENANCE = ("command", "device", "date", "versions", "seed")

SETUP = ["from survey_code import book", "book.setup()"]
IGNORES = {"nbval-ignore-output"}
SKIPS = {"nbval-skip", "nbval-raises-exception", "raises-exception"}
COMMENT = re.compile(r"#.*\b(?:NBVAL_\w+|PYTEST_VALIDATE_\w+)", re.IGNORECASE)
MACHINE_PATH = re.compile(r"(?<![\w.~/:-])/(?:work|tmp|root|home|Users|mnt)/")
PICTURES = ("image/png", "image/jpeg", "image/svg+xml")


# Order

NO_TIES = "# no ties:"  # what a line says whose keys cannot be equal, and why


def unstable_sorts(source: str) -> list[tuple[int, str]]:
    """(line, what is wrong) of sorts that may order equal keys otherwise elsewhere.

    Sorts of values alone are harmless: equal values are the same.  Where keys cannot
    be equal, the line says ``# no ties:`` and why.
    """
    tree = ast.parse(source)
    lines = source.splitlines()
    indexed = {id(call) for call in calls_whose_places_are_read(tree)}
    problems = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        name = node.func.attr
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        stable = given.get("kind") == "'stable'" or given.get("stable") == "True"
        always = name in ("argsort", "argpartition", "sort_values", "sort_index")
        places = name in ("sort", "topk", "kthvalue") and id(node) in indexed
        span = lines[node.lineno - 1 : node.end_lineno]
        if (always or places) and not stable and NO_TIES not in "".join(span):
            problems.append((node.lineno, f"{name} may order equal keys any way"))
    return problems


def calls_whose_places_are_read(tree: ast.AST) -> list[ast.AST]:
    """Calls f(...) in ``f(...).indices``, ``f(...)[1]`` and ``a, b = f(...)``."""
    found: list[ast.AST] = []
    for node in ast.walk(tree):
        if (isinstance(node, ast.Attribute) and node.attr == "indices") or (
            isinstance(node, ast.Subscript) and ast.unparse(node.slice) in ("1", "-1")
        ):
            found.append(node.value)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
            found.append(node.value)
    return found


# Chapters


def equal_keys_in_place(notebook: Any) -> list[str]:
    """Every sort in a code cell keeps equal keys in place; see `unstable_sorts`."""
    return [
        f"code cell {number}, line {line}: {problem}"
        for number, cell in code_cells(notebook)
        for line, problem in unstable_sorts(plain_python(cell.source))
    ]


def plain_python(source: str) -> str:
    """A cell without the lines that only IPython reads."""
    lines = source.splitlines()
    return "\n".join("" if line.lstrip()[:1] in ("%", "!") else line for line in lines)


def check_chapter(notebook: Any, name: str) -> list[str]:
    """Everything that can be said from the notebook alone."""
    checks = (
        executed_in_order,
        clean_outputs,
        nothing_skipped,
        setup_first,
        short_cells,
        no_machine_paths,
        pictures_described,
        no_semicolons,
        equal_keys_in_place,
        no_speed_asserted,
    )
    return [f"{name}: {text}" for check in checks for text in check(notebook)]


CLOCKS = {"measure_lookup", "perf_counter", "timeit"}


def no_speed_asserted(notebook: Any) -> list[str]:
    """No cell asserts what was timed here: another machine may be faster at it.

    What is computed from a time counts as timed too, in later cells also.
    """
    timed, problems = set(CLOCKS), []
    for number, cell in code_cells(notebook):
        for node in ast.walk(ast.parse(plain_python(cell.source))):
            if isinstance(node, ast.Assign) and timed & words(node.value):
                timed |= set().union(*map(words, node.targets))
            if isinstance(node, ast.Assert) and timed & words(node.test):
                problems.append(f"code cell {number} asserts a time measured here")
    return problems


def words(tree: ast.AST) -> set[str]:
    """The names and attributes that an expression mentions."""
    nodes = list(ast.walk(tree))
    return {node.id for node in nodes if isinstance(node, ast.Name)} | {
        node.attr for node in nodes if isinstance(node, ast.Attribute)
    }


def code_cells(notebook: Any) -> list[tuple[int, Any]]:
    """(number, cell) of the code cells, counted from 1."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return list(enumerate(cells, 1))


def executed_in_order(notebook: Any) -> list[str]:
    """Every code cell ran, 1, 2, 3 ...: nbval compares no other."""
    return [
        f"code cell {number} has execution count {cell.execution_count}"
        for number, cell in code_cells(notebook)
        if cell.execution_count != number
    ]


def clean_outputs(notebook: Any) -> list[str]:
    """No error, nothing on standard error."""
    problems = []
    for number, cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "error":
                problems.append(f"code cell {number} stores an error")
            if output.get("name") == "stderr":
                problems.append(f"code cell {number} stores standard error")
    return problems


def nothing_skipped(notebook: Any) -> list[str]:
    """Only a cell that shows the package's source may go uncompared."""
    problems = []
    for number, cell in code_cells(notebook):
        tags = set(cell.metadata.get("tags", []))
        for tag in sorted(tags & SKIPS):
            problems.append(f"code cell {number} has the tag {tag}")
        if COMMENT.search(cell.source):
            problems.append(f"code cell {number} has an nbval comment")
        if tags & IGNORES and shown_source(cell.source) is None:
            problems.append(
                f"code cell {number} is not compared, but does more than show source"
            )
    return problems


def setup_first(notebook: Any) -> list[str]:
    """The set-up cell comes first, but for a hidden one that serves Colab."""
    cells = [cell for _, cell in code_cells(notebook)]
    if cells and "google.colab" in cells[0].source:
        if not set(cells[0].metadata.get("tags", [])) & {"remove-cell", "hide-cell"}:
            return ["the Colab cell is not hidden"]
        cells = cells[1:]
    lines = [line for line in cells[0].source.splitlines() if line] if cells else []
    if lines[:2] != SETUP:
        return ["the first code cell does not begin with " + "; ".join(SETUP)]
    return []


def short_cells(notebook: Any) -> list[str]:
    """Cells that a reader takes in at a glance."""
    problems = []
    for number, cell in code_cells(notebook):
        lines = cell.source.splitlines()
        if len(lines) > MOST_LINES:
            problems.append(f"code cell {number} has {len(lines)} lines")
        for line in lines:
            if len(line) > MOST_COLUMNS:
                problems.append(f"code cell {number}, {len(line)} columns: {line}")
    return problems


def no_machine_paths(notebook: Any) -> list[str]:
    """Nothing of the machine it ran on."""
    problems = []
    for place, cell in enumerate(notebook.cells):
        texts = [cell.source, *(output_text(out) for out in cell.get("outputs", []))]
        if any(MACHINE_PATH.search(text) for text in texts):
            problems.append(f"cell {place} names a path of a machine")
    return problems


def output_text(output: Any) -> str:
    """What an output says in words; pictures are left out."""
    parts = [output.get("text", ""), "\n".join(output.get("traceback", []))]
    for kind, data in output.get("data", {}).items():
        if kind.startswith("text/") or kind == "application/json":
            parts.append(data if isinstance(data, str) else json.dumps(data))
    return "\n".join(parts)


def pictures_described(notebook: Any) -> list[str]:
    """Every picture has words for those who do not see it; and is there."""
    problems = []
    for number, cell in code_cells(notebook):
        kinds = {kind for out in cell.outputs for kind in out.get("data", {})}
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if kinds & set(PICTURES) and not str(alt).strip():
            problems.append(f"code cell {number} shows a picture without an alt text")
        if alt and not kinds & set(PICTURES):
            problems.append(f"code cell {number} describes a picture that is not there")
    return problems


def no_semicolons(notebook: Any) -> list[str]:
    """A `;` at the end hides an output from nbval too."""
    return [
        f"code cell {number} ends in a semicolon"
        for number, cell in code_cells(notebook)
        if cell.source.rstrip().endswith(";")
    ]


def small_file(path: Path) -> list[str]:
    """A notebook that a browser opens at once."""
    size = path.stat().st_size
    return [f"{path.name} has {size:,} bytes"] if size > MOST_BYTES else []


# Source that a chapter shows


def shown_source(source: str) -> ast.expr | None:
    """The x of a cell that is ``book.show_source(x)`` and imports, else None."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return None
    rest = [node for node in body if not isinstance(node, (ast.Import, ast.ImportFrom))]
    if len(rest) != 1 or not isinstance(rest[0], ast.Expr):
        return None
    call = rest[0].value
    if not isinstance(call, ast.Call) or ast.unparse(call.func) != "book.show_source":
        return None
    return call.args[0] if len(call.args) == 1 and not call.keywords else None


def stale_source(notebook: Any, name: str) -> list[str]:
    """Cells whose stored source is not what stands in the file now."""
    from survey_code import book

    names: dict[str, Any] = {}
    problems = []
    for number, cell in code_cells(notebook):
        where = f"{name}: code cell {number}"
        try:
            names |= imported_names(cell.source)
        except (ImportError, AttributeError) as error:
            problems.append(f"{where} imports what is not there: {error}")
        if "book.show_source(" not in cell.source:
            continue
        argument = shown_source(cell.source)
        if argument is None:
            problems.append(f"{where} does more than show source")
            continue
        try:
            thing = look_up(ast.unparse(argument), names)
        except (KeyError, AttributeError) as error:
            problems.append(f"{where} shows what cannot be found: {error}")
            continue
        stored = [
            out.data.get("text/markdown") for out in cell.outputs if "data" in out
        ]
        if stored != [book.source_markdown(thing)]:
            problems.append(f"{where} shows old source: make refresh CHAPTER={name}")
    return problems


def imported_names(source: str) -> dict[str, Any]:
    """What a cell's imports from the package bind."""
    found: dict[str, Any] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "survey_code":
                    module = importlib.import_module(alias.name)
                    root = importlib.import_module("survey_code")
                    name = alias.asname or "survey_code"
                    found[name] = module if alias.asname else root
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] != "survey_code":
                continue
            for alias in node.names:
                module = importlib.import_module(str(node.module))
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                found[alias.asname or alias.name] = getattr(module, alias.name)
    return found


def look_up(dotted: str, names: dict[str, Any]) -> Any:
    """``a.b.c`` among `names`."""
    first, *rest = dotted.split(".")
    thing = names[first]
    for part in rest:
        thing = getattr(thing, part)
    return thing


# The book as a whole


def unlisted(root: Path = ROOT) -> list[str]:
    """Chapters on disk that _toc.yml does not have."""
    listed = set(chapters(root))
    return [
        f"{path.relative_to(root)} is not in _toc.yml"
        for path in sorted((root / "chapters").rglob("*.ipynb"))
        if ".ipynb_checkpoints" not in path.parts
        and path.relative_to(root) not in listed
    ]


DIRECTIVE = re.compile(
    r"^\s*[`:]{3,}\s*\{(exercise|exercise-start|solution|solution-start)\}(.*)$"
    r"((?:\n\s*:[\w-]+:.*)*)",
    re.MULTILINE,
)


def unsolved(texts: Iterable[str], name: str) -> list[str]:
    """Exercises without a label or a folded solution."""
    labels, solved, problems = [], set(), []
    for kind, title, options in DIRECTIVE.findall("\n\n".join(texts)):
        given = dict(re.findall(r":([\w-]+):\s*(.*)", options))
        if kind.startswith("solution"):
            solved.add(title.strip())
            if "dropdown" not in given.get("class", ""):
                problems.append(
                    f"{name}: the solution of {title.strip()} is not folded"
                )
        elif "label" in given:
            labels.append(given["label"].strip())
        else:
            problems.append(f"{name}: the exercise {title.strip()!r} has no label")
    problems += [f"{name}: no solution of {x}" for x in labels if x not in solved]
    problems += [f"{name}: no exercise {x}" for x in sorted(solved - set(labels))]
    return problems


def page_text(path: Path) -> list[str]:
    """The Markdown of a page or a chapter, a piece a cell."""
    if path.suffix != ".ipynb":
        return [path.read_text(encoding="utf-8")]
    notebook = nbformat.read(path, as_version=4)
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def tracked_files(root: Path = ROOT) -> list[Path]:
    """Files that belong to the repository, as git knows them."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=root, capture_output=True, check=True)
    names = sorted({name for name in listing.stdout.decode().split("\0") if name})
    return [root / name for name in names if (root / name).is_file()]


def repository_address(root: Path = ROOT) -> str:
    """Where the public repository is; `_config.yml` alone knows."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    return str(config["repository"]["url"]).rstrip("/")


def address_elsewhere(files: Iterable[Path], address: str) -> list[str]:
    """Files that name the repository, by its address or as owner/name."""
    short = "/".join(address.split("/")[-2:]).encode()
    return [
        f"{path.name} names the repository {path.read_bytes().count(short)} times"
        for path in files
        if path.read_bytes().count(short) > (path.name == "_config.yml")
    ]


def without_provenance(path: Path) -> list[str]:
    """Rows of a results file that do not say where they come from."""
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".csv":
            rows = list(csv.DictReader(text.splitlines()))
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            loaded = json.loads(text)
            rows = loaded if isinstance(loaded, list) else [loaded]
    except ValueError as error:
        return [f"{path.name} cannot be read: {error}"]
    if not rows:
        return [f"{path.name} is empty"]
    problems = []
    for number, row in enumerate(rows, 1):
        given = row if isinstance(row, dict) else {}
        absent = [key for key in PROVENANCE if given.get(key) in (None, "", {})]
        if absent:
            problems.append(f"{path.name}, row {number} lacks {', '.join(absent)}")
    return problems


# Built pages


def external_requests(html: Path) -> list[str]:
    """What built pages would load from another host; links may lead anywhere."""
    found = []
    for path in sorted(html.rglob("*.html")):
        page = _Loads()
        page.feed(path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(html)} loads {address}" for address in page.found]
    for path in sorted(html.rglob("*.css")):
        text = path.read_text(encoding="utf-8", errors="replace")
        for address in STYLE_LOAD.findall(text):
            found.append(f"{path.relative_to(html)} loads {address}")
    return found


OUTSIDE = re.compile(r"^\s*(?:https?:)?//", re.IGNORECASE)
STYLE_LOAD = re.compile(
    r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)", re.IGNORECASE
)
SCRIPT_LOAD = re.compile(
    r"(?:import|from|fetch\(|src\s*=)\s*\(?\s*[\"'](https?://[^\"']+)"
)
LOADS = ("script", "img", "iframe", "source", "video", "audio", "embed", "input")
RELATIONS = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "manifest",
             "preconnect", "dns-prefetch"}  # fmt: skip


class _Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = SimpleNamespace(**{"src": "", "href": "", "rel": "", "style": ""})
        given.__dict__.update({key: value or "" for key, value in attrs})
        self.inside = tag
        if tag in LOADS and OUTSIDE.match(given.src):
            self.found.append(given.src)
        if tag == "link" and OUTSIDE.match(given.href):
            if set(given.rel.lower().split()) & RELATIONS:
                self.found.append(given.href)
        self.found += STYLE_LOAD.findall(given.style)

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "style":
            self.found += STYLE_LOAD.findall(data)
        if self.inside == "script":
            self.found += SCRIPT_LOAD.findall(data)
