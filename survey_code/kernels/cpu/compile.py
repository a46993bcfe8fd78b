"""Compiling the code that reads one format's rows on this processor.

The headers are those of the GPU's kernels.  A compiler is looked for once: ``$CXX``,
then ``c++``, ``g++`` and ``clang++``, then the one of the package ziglang, which pip
installs.  Where there is none, NumPy reads the rows.  What was compiled is kept in
``$SURVEY_CODE_CACHE`` or the user's folder for such files.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HEADERS = HERE.parent / "formats"
# A row is rounded as NumPy rounds it: no product and sum become one step unless the
# headers ask for it.
FLAGS = (
    "-std=c++17", "-O2", "-ftree-vectorize", "-march=native", "-ffp-contract=off",
    "-fno-math-errno", "-fPIC", "-shared", "-w",
    f"-I{HERE / 'words'}", f"-I{HERE}", f"-I{HEADERS}",
)  # fmt: skip
MOST_SECONDS = 120  # that a compiler may take


def allow_kernels() -> bool:
    """Whether rows may be read by compiled code: not with SURVEY_CODE_KERNELS=numpy.

    Raises
    ------
    ValueError
        If the variable has another value than numpy or compiled.
    """
    asked = os.environ.get("SURVEY_CODE_KERNELS", "compiled")
    if asked not in ("compiled", "numpy"):
        raise ValueError(
            f"SURVEY_CODE_KERNELS must be 'compiled' or 'numpy', got {asked!r}"
        )
    return asked == "compiled"


@cache
def find_compiler() -> tuple[str, ...] | None:
    """The command of a C++ compiler, or None."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (found := shutil.which(name)):
            return (found,)
    if importlib.util.find_spec("ziglang") is not None:
        # Its own C++ library, which nothing here needs, would take minutes to build.
        plain = "-nostdlib++", "-fno-sanitize=undefined"
        return sys.executable, "-m", "ziglang", "c++", *plain
    return None


@cache
def describe_processor() -> str:
    """What code for this processor depends on: its kind, and what it can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    able = [line for line in lines if line.startswith(("flags", "Features"))]
    return " ".join([sys.platform, platform.machine(), platform.processor(), *able[:1]])


def find_folder() -> Path:
    """Where compiled code is kept."""
    own = os.environ.get("SURVEY_CODE_CACHE")
    if own:
        return Path(own) / "kernels"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "survey_code" / "kernels"


@cache
def read_sources() -> str:
    """All text that is compiled for every format."""
    words = [HERE / "words.h", *sorted((HERE / "words").glob("*.h"))]
    files = [*sorted(HEADERS.glob("*.cuh")), *words, HERE / "bags.cpp"]
    return "\0".join(file.read_text(encoding="utf-8") for file in files)


Library = Any  # of ctypes: functions by name


@cache
def load_library(form: str, source: str) -> Library | None:
    """The functions ``read`` and ``pool`` of ``bags.cpp`` for one C++ type.

    Parameters
    ----------
    form : str
        The type that reads a row, e.g. ``Dense<64, float, 4>``.
    source : str
        C++ that declares it.

    Returns
    -------
    library or None
        None where there is no compiler, or it fails, which is warned of once.
    """
    compiler = find_compiler()
    if compiler is None:
        return None
    text = f'#include "words.h"\n{source}\nusing FORMAT = {form};\n'
    text += '#include "bags.cpp"\n'
    keys = (text, read_sources(), describe_processor(), *compiler, *FLAGS)
    name = hashlib.sha256("\0".join(keys).encode()).hexdigest()[:32]
    try:
        library = open_once(find_folder() / f"{name}.so", text, compiler)
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or str(error)
        warnings.warn(
            f"{' '.join(compiler)} could not compile a look-up, so NumPy reads the "
            f"rows: {output[-500:]}",
            stacklevel=2,
        )
        return None
    return declare(library)


def open_once(place: Path, text: str, compiler: Sequence[str]) -> Library:
    """A shared library that is kept, compiled anew where it is damaged."""
    try:
        return ctypes.CDLL(str(make_once(place, text, compiler)))
    except OSError:
        place.unlink(missing_ok=True)
        return ctypes.CDLL(str(make_once(place, text, compiler)))


def make_once(place: Path, text: str, compiler: Sequence[str]) -> Path:
    """A shared library, compiled by whoever is first: beside its place, then moved.

    Processes and threads that compile it at the same time do no harm: each compiles
    in a folder of its own and moves a whole file.
    """
    if place.exists():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        beside = Path(folder) / place.name
        subprocess.run(
            [*compiler, *FLAGS, "-x", "c++", "-", "-o", str(beside)],
            input=text, text=True, check=True, capture_output=True,
            timeout=MOST_SECONDS,
        )  # fmt: skip
        beside.replace(place)
    return place


def declare(library: Library) -> Library:
    """The library, its functions told what they are called with."""
    address, number, size = ctypes.c_void_p, ctypes.c_longlong, ctypes.c_int
    call = [address, number, size, address, number]  # fields, rows, dim, ids, count
    library.read.argtypes = [*call, address, address]
    bags = [address, number, number, number]  # offsets, borders, first, last
    how = [address, size, number]  # weights, mode, padding
    library.pool.argtypes = [*call, *bags, *how, address, address]
    library.read.restype = library.pool.restype = None
    return library
