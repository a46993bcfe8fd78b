"""Compiling a kernel: one instance of a C++ template at a time, kept until the end."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Protocol

from survey_code.kernels.cuda import Shaped, load_cupy

FOLDER = Path(__file__).parent
INCLUDED = "formats", "cuda"  # folders
THREADS = 256  # of a block
SHARED_BYTES = 48 * 1024  # that every block may have
ID_TYPES = {"int32": "int", "int64": "long long"}


class Loaded(Protocol):
    """A kernel as the driver knows it."""

    ptr: int


class Kernel(Protocol):
    """A kernel of the GPU, which is started by a call."""

    @property
    def kernel(self) -> Loaded:
        """It itself, compiled for this GPU."""

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        arguments: tuple[Shaped, ...],
        *,
        shared_mem: int = 0,
    ) -> None:
        """Start it on a grid of blocks; `shared_mem` in bytes a block."""


@cache
def load_kernel(file: str, expression: str, before: str = "") -> Kernel:
    """Compile one instance of a kernel, e.g. ``pool_rows<Dense<4, float>, int>``.

    Parameters
    ----------
    file : str
        The ``.cu`` file it stands in.
    expression : str
    before : str
        C++ that goes before the file's text.
    """
    module = load_cupy().RawModule(
        code=before + (FOLDER / file).read_text(encoding="utf-8"),
        options=("-std=c++17", *(f"-I{FOLDER.parent / name}" for name in INCLUDED)),
        name_expressions=[expression],
    )
    return module.get_function(expression)
