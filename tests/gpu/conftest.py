"""Kernels run on the processor: what they compute is checked without a GPU.

`FakeCupy` stands in for CuPy.  Its arrays are NumPy's, and its modules are compiled
by g++ with a header that spells CUDA's words in C++; a launch calls the kernel once
for each thread.  Threads of a warp may hand each other what they hold, and a block has
shared memory and barriers.  What a GPU would forgive or hang at is an AssertionError:
a barrier that some threads of a block do not reach, a write beside shared memory.
"""

import ctypes
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

HERE = Path(__file__).parent
WORDS = HERE.parents[1] / "survey_code" / "kernels" / "cpu" / "words"
COMPILER = shutil.which("g++")
FOLDER = Path(tempfile.gettempdir()) / "survey_code_kernels"
# Without unique symbols: kernels of one name in two libraries have memory of their own.
FLAGS = (
    "-std=c++17", "-O0", "-mfma", "-ffp-contract=off", "-fPIC", "-fno-gnu-unique", "-w",
    f"-I{HERE}/words", f"-I{WORDS}",
)  # fmt: skip
SHARED_BYTES = 48 * 1024  # that a block may have unless its kernel asks for more
ALIGNED = r"(?:(?:__align__|alignas)\s*\([^)]*\)\s*)?"
# extern __shared__ float own[];  ->  float* const own = (float*)dynamic_shared;
DYNAMIC = re.compile(
    rf"\bextern\s+{ALIGNED}__shared__\s+{ALIGNED}([^;\[\]]+?)\s*\b(\w+)\s*\[\s*\]\s*;"
)
POINTER = r"\1* const \2 = (\1*)dynamic_shared;"
C_TYPES = {
    np.dtype(np.int32): ctypes.c_int32,
    np.dtype(np.int64): ctypes.c_int64,
    np.dtype(np.uint32): ctypes.c_uint32,
    np.dtype(np.uint64): ctypes.c_uint64,
    np.dtype(np.float32): ctypes.c_float,
    np.dtype(np.float64): ctypes.c_double,
    np.dtype(np.bool_): ctypes.c_bool,
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

    def __init__(self):
        self.launched = []  # names of the kernels, in their order

    def __getattr__(self, name):
        made = getattr(np, name)
        if not callable(made) or isinstance(made, type | np.ufunc):
            return made

        def call(*args, **kwargs):
            if name not in ("asarray", "array") and any(
                type(given) is np.ndarray and given.ndim for given in args
            ):
                raise TypeError(f"cupy.{name} takes no array of NumPy")
            return as_device(made(*args, **kwargs))

        return call

    def RawModule(self, code, options, name_expressions):
        (expression,) = name_expressions
        return FakeModule(code, options, expression, self.launched)


def as_device(made):
    """An array as the fake's own; anything else as it is."""
    return made.view(DeviceArray) if type(made) is np.ndarray else made


class FakeModule:
    """One instance of a kernel, compiled for the processor."""

    def __init__(self, code, options, expression, launched):
        kept = tuple(o for o in options if o.startswith(("-I", "-D")))
        self.library = ctypes.CDLL(str(build(code, kept, expression)))
        self.launched = launched

    def get_function(self, expression):
        self.library.launch_address.restype = ctypes.c_void_p
        self.library.packed_address.restype = ctypes.c_void_p
        address = self.library.launch_address()

        def launch(grid, block, arguments, *, shared_mem=0):
            most = launch.max_dynamic_shared_size_bytes
            assert shared_mem <= most, (
                f"{expression}: {shared_mem} bytes of shared memory, at most {most}"
            )
            self.launched.append(expression)
            values = [as_argument(a) for a in arguments]
            sizes = [*grid, 1, 1][:3] + [*block, 1, 1][:3] + [shared_mem]
            sizes = [ctypes.c_int(size) for size in sizes]
            kinds = [type(value) for value in sizes + values]
            fault = ctypes.CFUNCTYPE(ctypes.c_char_p, *kinds)(address)(*sizes, *values)
            assert not fault, f"{expression}: {fault.decode()}"

        def launch_packed(grid, block, shared, extra):
            self.launched.append(expression)
            _, memory, _, size, _ = (ctypes.c_uint64 * 5).from_address(extra)
            size = ctypes.c_uint64.from_address(size).value
            kinds = [ctypes.c_int] * 7 + [ctypes.c_uint64] * 2
            start = ctypes.CFUNCTYPE(ctypes.c_char_p, *kinds)
            fault = start(self.library.packed_address())(
                *grid, *block, shared, memory, size
            )
            assert not fault, f"{expression}: {fault.decode()}"

        launch.max_dynamic_shared_size_bytes = SHARED_BYTES  # may be set, as in CuPy
        launch.kernel = SimpleNamespace(ptr=launch_packed)
        return launch


def as_argument(value):
    """A launch's argument as C has it: an address, a number of its size, or a struct
    of numbers of 64 bits.
    """
    if value.dtype.names:
        numbers = value["numbers"]
        own = {"_fields_": [("numbers", ctypes.c_int64 * len(numbers))]}
        struct = type("Struct", (ctypes.Structure,), own)
        return struct((ctypes.c_int64 * len(numbers))(*numbers.tolist()))
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(value.ctypes.data)
    return C_TYPES[value.dtype](value.item())


def make_once(place, write):
    """A file, written by whoever is first: beside its place, then moved there.

    Processes and threads that write it at the same time do no harm: each moves a
    whole file.
    """
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:
            beside = Path(folder) / place.name
            write(beside)
            beside.replace(place)
    return place


def run_compiler(*arguments, source=None):
    """Run g++; it reads `source`, if there is one, as if it were a file.

    Returns
    -------
    str
        What it printed.
    """
    return subprocess.run(
        [COMPILER, *FLAGS, *map(str, arguments)],
        input=source, text=True, check=True, stdout=subprocess.PIPE,
    ).stdout  # fmt: skip


def digest(*texts):
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]


@cache
def compile_words():
    """A copy of cuda_words.h, and beside it the header as g++ has read it.

    Reading it is most of the work for a kernel.  Where what stands beside it was made
    by another g++, the text is read again.
    """
    text = (HERE / "cuda_words.h").read_text()
    shared = [file.read_text() for file in sorted(WORDS.glob("*.h"))]
    header = FOLDER / digest(text, *shared, *FLAGS) / "cuda_words.h"
    make_once(header, lambda place: place.write_text(text))
    make_once(
        header.with_suffix(".h.gch"),
        lambda place: run_compiler("-x", "c++-header", header, "-o", place),
    )
    return header


@cache
def build(code, options, expression):
    """Compile a kernel with a function that runs it on the processor.

    Parameters
    ----------
    code : str
        Source of CUDA.
    options : tuple of str
        ``-I`` and ``-D`` for g++.
    expression : str
        The kernel, with its template's arguments.
    """
    header = compile_words()
    folders = [HERE / "words", *(Path(o[2:]) for o in options if o.startswith("-I"))]
    read = [f for folder in folders for f in sorted(folder.glob("*.*h"))]
    source = f'#line 1 "the kernel\'s source"\n{code}\nLAUNCHER(({expression}))\n'
    texts = (str(header), source, *options, POINTER, DYNAMIC.pattern)

    def write(place):
        # Files that it includes are read first: what is rewritten may stand in one.
        whole = run_compiler("-E", *options, "-x", "c++", "-", source=source)
        whole = f'#include "{header}"\n' + DYNAMIC.sub(POINTER, whole)
        run_compiler("-shared", "-x", "c++", "-", "-o", place, source=whole)

    name = digest(*texts, *(file.read_text() for file in read))
    return make_once(FOLDER / f"{name}.so", write)


@pytest.fixture
def fake_cupy(monkeypatch):
    """CuPy's stand-in, wherever the package asks for CuPy; also beside a GPU."""
    if COMPILER is None:
        pytest.skip("kernels are compiled by g++, which is not installed")
    import torch

    from survey_code.kernels.cuda.load import load_kernel

    def launch_kernel(kernel, *numbers):
        *sizes, _, _, extra = numbers
        kernel(sizes[:3], sizes[3:6], sizes[6], extra)

    fake = FakeCupy()
    fake.cuda = SimpleNamespace(
        is_available=lambda: True,
        get_current_stream=nullcontext,
        Device=lambda index: SimpleNamespace(use=lambda: None),
        driver=SimpleNamespace(launchKernel=launch_kernel),
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)
    # No GPU is asked for its streams: tensors of a processor are its own.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device", lambda place: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for name in ("_cuda_getDevice", "_cuda_getCurrentRawStream"):
        monkeypatch.setattr(torch._C, name, lambda *index: 0, raising=False)
    load_kernel.cache_clear()
    yield fake
    load_kernel.cache_clear()
