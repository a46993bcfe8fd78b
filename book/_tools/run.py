"""Run the chapters.

    python book/_tools/run.py                       those that changed, in copies
    python book/_tools/run.py --refresh [CHAPTER]   store the outputs in place

Copies stand in _build/chapters, each beside a stamp of what it was made from.
A kernel starts in the chapter's own folder either way.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import re
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from toc import ROOT, chapters

EXECUTED = ROOT / "_build"
AT_ONCE = 2
CELL_SECONDS = 300
START_SECONDS = 300  # two kernels that load torch on a busy machine
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def main() -> int:
    """Run what was asked for; the exit status is 1 if a chapter failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--refresh", action="store_true")
    parser.add_argument("chapter", nargs="*")
    given = parser.parse_args()
    known = chapters()
    chosen = [find(name, known) for name in given.chapter] or known
    stamps = {path: make_stamp(path) for path in chosen}
    todo = [p for p in chosen if given.refresh or read_stamp(p) != stamps[p]]
    print(f"{len(todo)} of {len(chosen)} chapters to run", flush=True)
    failed = asyncio.run(run_all(todo, stamps, given.refresh))
    if failed:
        names = ", ".join(path.as_posix() for path in failed)
        print(f"\n{len(failed)} of {len(todo)} chapters failed: {names}")
        return 1
    return 0


def find(name: str, known: list[Path]) -> Path:
    """The chapter a user means, with or without folder and suffix."""
    wanted = Path(name).with_suffix("")
    for path in known:
        bare = path.with_suffix("")
        if wanted == bare or bare.parts[-len(wanted.parts) :] == wanted.parts:
            return path
        if wanted.is_absolute() and wanted == ROOT / bare:
            return path
    listed = "\n  ".join(path.as_posix() for path in known)
    sys.exit(f"No chapter {name!r} in _toc.yml, which has\n  {listed}")


async def run_all(
    todo: list[Path], stamps: dict[Path, str], in_place: bool
) -> list[Path]:
    """Run chapters, two at a time; returns those that failed."""
    slots = asyncio.Semaphore(AT_ONCE)
    failed: list[Path] = []
    count = 0

    async def one(path: Path) -> None:
        nonlocal count
        async with slots:
            started = time.monotonic()
            notebook = nbformat.read(ROOT / path, as_version=4)
            problem = await run(notebook, path)
            count += 1
            verdict = "FAILED" if problem else "ok"
            seconds = time.monotonic() - started
            print(f"[{count}/{len(todo)}] {path}  {verdict}, {seconds:.1f} s")
            print(problem, end="", flush=True)
            if problem:
                failed.append(path)
                return
            tidy(notebook)
            if in_place:
                write(ROOT / path, nbformat.writes(notebook) + "\n")
                stamps[path] = make_stamp(path)
            write(EXECUTED / path, nbformat.writes(notebook) + "\n")
            write(stamp_path(path), stamps[path] + "\n")

    await asyncio.gather(*(one(path) for path in todo))
    return failed


async def run(notebook: Any, path: Path) -> str:
    """Execute a notebook; returns what to print if a cell fails, else ""."""
    at = -1

    def note(cell: Any, cell_index: int) -> None:
        nonlocal at
        at = cell_index

    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count, cell.outputs = None, []
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        startup_timeout=START_SECONDS,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        coalesce_streams=True,
        on_cell_start=note,
        resources={"metadata": {"path": str((ROOT / path).parent)}},
    )
    try:
        await client.async_execute()
    except CellExecutionError as error:
        why = error.traceback
    except CellTimeoutError:
        why = f"The cell ran for more than {CELL_SECONDS} s."
    except DeadKernelError as error:
        why = f"The kernel died: {error}"
    except Exception:
        why = traceback.format_exc()
    else:
        return ""
    return describe_failure(notebook, path, at, why)


def describe_failure(notebook: Any, path: Path, at: int, why: str) -> str:
    """Chapter, cell and traceback, without colour codes."""
    code = [k for k, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    number = code.index(at) + 1 if at in code else "?"
    source = notebook.cells[at].source if at >= 0 else ""
    lines = [
        f"--- {path}, code cell {number} of {len(code)}",
        *(f"    {line}" for line in source.splitlines()),
        "---",
        ANSI.sub("", why).strip(),
        "---",
    ]
    return "\n".join(lines) + "\n"


def tidy(notebook: Any) -> None:
    """Keep what a reader needs, drop what differs between machines."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {
                "display_name": "Python 3",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python", "pygments_lexer": "ipython3"},
        }
    )
    for cell in notebook.cells:
        for key in ("execution", "collapsed", "scrolled"):
            cell.metadata.pop(key, None)


def make_stamp(path: Path) -> str:
    """A hash of all that a chapter's outputs depend on."""
    digest = hashlib.sha256()
    notebook = nbformat.read(ROOT / path, as_version=4)
    for cell in notebook.cells:
        digest.update(repr((cell.cell_type, cell.metadata, cell.source)).encode())
    for file in shared_inputs():
        digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def shared_inputs() -> list[Path]:
    """Files that any chapter may depend on."""
    found = [ROOT / "requirements.txt"]
    for suffix in ("*.py", "*.cu*"):
        found += (ROOT / "survey_code").rglob(suffix)
    results = ROOT / "book" / "results"
    found += (path for path in results.rglob("*") if path.is_file())
    return sorted(found)


def stamp_path(path: Path) -> Path:
    """Where a chapter's stamp stands."""
    return (EXECUTED / path).with_suffix(".stamp")


def read_stamp(path: Path) -> str:
    """The stamp of the copy that was made last, "" if there is none."""
    if not (EXECUTED / path).is_file() or not stamp_path(path).is_file():
        return ""
    return stamp_path(path).read_text().strip()


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


if __name__ == "__main__":
    sys.exit(main())
