"""Kernels run on the processor: what they compute is checked without a GPU.

`FakeCupy` stands in for CuPy.  Its arrays are NumPy's, and its modules are compiled
by g++ with a header that spells CUDA's words in C++; a launch calls the kernel once
for each thread.  Threads of a warp may hand each other what they hold; kernels whose
whole blocks wait (`__syncthreads`) cannot be run this way.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
COMPILER = shutil.which("g++")
FOLDER = Path(tempfile.gettempdir()) / "survey_code_kernels"
FLAGS = (
    "-std=c++17", "-O0", "-mfma", "-ffp-contract=off", "-fPIC", "-w",
    f"-I{HERE}/words",
)  # fmt: skip
C_TYPES = {
    np.dtype(np.int32): ctypes.c_int32,
    np.dtype(np.int64): ctypes.c_int64,
    np.dtype(np.uint32): ctypes.c_uint32,
    np.dtype(np.uint64): ctypes.c_uint64,
    np.dtype(np.float32): ctypes.c_float,
}


class DeviceArray(np.ndarray):
    """An array of NumPy with the words of CuPy."""

    @property
    def __cuda_array_interface__(self):
        return {"data": (self.ctypes.data, False)}

    def get(self):
        return np.asarray(self)


class FakeCupy:
    """The part of CuPy that the package's kernels need."""

    ndarray = DeviceArray

    def __getattr__(self, name):
        made = getattr(np, name)
        if not callable(made) or isinstance(made, type):
            return made
        return lambda *args, **kwargs: as_device(made(*args, **kwargs))

    @staticmethod
    def RawModule(code, options, name_expressions):
        (expression,) = name_expressions
        folder = next(o[2:] for o in options if o.startswith("-I"))
        return FakeModule(code, folder, expression)


def as_device(made):
    """An array as the fake's own; anything else as it is."""
    return made.view(DeviceArray) if type(made) is np.ndarray else made


class FakeModule:
    """One instance of a kernel, compiled for the processor."""

    def __init__(self, code, folder, expression):
        self.library = ctypes.CDLL(str(build(code, folder, expression)))

    def get_function(self, expression):
        self.library.launch_address.restype = ctypes.c_void_p
        address = self.library.launch_address()

        def launch(grid, block, arguments):
            values = [as_argument(a) for a in arguments]
            sizes = [ctypes.c_int(s) for s in ([*grid, 1, 1][:3] + [*block, 1, 1][:3])]
            kinds = [type(value) for value in sizes + values]
            ctypes.CFUNCTYPE(None, *kinds)(address)(*sizes, *values)
            count = self.library.count_bad_loads
            count.restype = ctypes.c_longlong
            assert not count(), f"{expression} read from where nothing is"

        return launch


def as_argument(value):
    """A launch's argument as C has it: an address, or a number of its size."""
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(value.ctypes.data)
    return C_TYPES[value.dtype](value.item())


def make_once(place, write):
    """A file, written by whoever is first: beside its place, then moved there.

    Processes that write it at the same time do no harm: each moves a whole file.
    """
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = place.with_name(f"{os.getpid()}.{place.name}")
        write(beside)
        beside.rename(place)
    return place


def compile_to(place, *arguments, source=None):
    """Run g++; it reads `source`, if there is one, as if it were a file."""
    subprocess.run(
        [COMPILER, *FLAGS, *map(str, arguments), "-o", str(place)],
        input=source, text=True, check=True,
    )  # fmt: skip


def digest(*texts):
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]


@cache
def compile_words():
    """A copy of cuda_words.h, and beside it the header as g++ has read it.

    Reading it is most of the work for a kernel.  Where what stands beside it was made
    by another g++, the text is read again.
    """
    text = (HERE / "cuda_words.h").read_text()
    header = FOLDER / digest(text, *FLAGS) / "cuda_words.h"
    make_once(header, lambda place: place.write_text(text))
    make_once(
        header.with_suffix(".h.gch"),
        lambda place: compile_to(place, "-x", "c++-header", header),
    )
    return header


@cache
def build(code, folder, expression):
    """Compile a kernel with a function that runs it on the processor."""
    header = compile_words()
    files = [*sorted(Path(folder).glob("*.cuh")), *sorted((HERE / "words").iterdir())]
    source = f'#include "{header}"\n{code}\nLAUNCHER(({expression}))\n'
    name = digest(source, *(file.read_text() for file in files))
    return make_once(
        FOLDER / f"{name}.so",
        lambda place: compile_to(
            place, "-shared", f"-I{folder}", "-x", "c++", "-", source=source
        ),
    )


@pytest.fixture
def fake_cupy(monkeypatch):
    """CuPy's stand-in, wherever the package asks for CuPy."""
    if COMPILER is None:
        pytest.skip("kernels are compiled by g++, which is not installed")
    from contextlib import nullcontext
    from types import SimpleNamespace

    from survey_code.kernels.cuda.load import load_kernel

    fake = FakeCupy()
    fake.cuda = SimpleNamespace(
        is_available=lambda: True, get_current_stream=nullcontext
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)
    load_kernel.cache_clear()
    yield fake
    load_kernel.cache_clear()
