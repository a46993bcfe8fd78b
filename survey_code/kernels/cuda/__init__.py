"""READS FAST: CuPy arrays in, CuPy arrays out.  Imports nothing of this package."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from types import EllipsisType, ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

# Whether a call waits for its kernels to raise for bad ids, leaves that to a later one,
# or does not ask.
Check: TypeAlias = bool | Literal["late"]

# How the rows of a bag are pooled; kernels know a mode by its place in this list.
MODES = ("sum", "mean", "max")


class Shaped(Protocol):
    """An array or a number of NumPy or CuPy: how much it holds, and of what."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Type of an entry."""

    @property
    def ndim(self) -> int:
        """Number of axes."""

    @property
    def size(self) -> int:
        """Number of entries."""

    @property
    def itemsize(self) -> int:
        """Bytes of an entry."""

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""


class GpuArray(Shaped, Protocol):
    """What this package asks of a CuPy array; every word means what it does in NumPy.

    CuPy has no types of its own, and need not be installed.
    """

    def get(self) -> np.ndarray:
        """The array in NumPy."""

    def ravel(self) -> GpuArray:
        """The entries along one axis."""

    def reshape(self, *shape: int) -> GpuArray:
        """The entries along other axes."""

    def astype(self, dtype: npt.DTypeLike, copy: bool = True) -> GpuArray:
        """The entries in another type."""

    def view(self, dtype: npt.DTypeLike) -> GpuArray:
        """The bytes as entries of another type."""

    def sum(
        self,
        axis: int | None = None,
        dtype: npt.DTypeLike | None = None,
        keepdims: bool = False,
    ) -> GpuArray:
        """Sums along an axis."""

    def min(self) -> GpuArray:
        """The least entry, without axes."""

    def max(self) -> GpuArray:
        """The largest entry, without axes."""

    def argsort(self, axis: int | None = -1, kind: str | None = None) -> GpuArray:
        """The order of the entries along an axis."""

    def __len__(self) -> int: ...
    def __int__(self) -> int: ...
    def __getitem__(self, key: Index | tuple[Index, ...], /) -> GpuArray: ...
    def __setitem__(
        self, key: Index | tuple[Index, ...], value: Shaped | float, /
    ) -> None: ...
    def __neg__(self) -> GpuArray: ...
    def __add__(self, other: Shaped | float, /) -> GpuArray: ...
    def __radd__(self, other: Shaped | float, /) -> GpuArray: ...
    def __sub__(self, other: Shaped | float, /) -> GpuArray: ...
    def __rsub__(self, other: Shaped | float, /) -> GpuArray: ...
    def __mul__(self, other: Shaped | float, /) -> GpuArray: ...
    def __rmul__(self, other: Shaped | float, /) -> GpuArray: ...
    def __matmul__(self, other: Shaped, /) -> GpuArray: ...
    def __truediv__(self, other: Shaped | float, /) -> GpuArray: ...
    def __floordiv__(self, other: Shaped | int, /) -> GpuArray: ...
    def __mod__(self, other: Shaped | int, /) -> GpuArray: ...
    def __and__(self, other: Shaped | int, /) -> GpuArray: ...
    def __or__(self, other: Shaped | int, /) -> GpuArray: ...
    def __xor__(self, other: Shaped | int, /) -> GpuArray: ...
    def __lshift__(self, other: Shaped | int, /) -> GpuArray: ...
    def __rlshift__(self, other: Shaped | int, /) -> GpuArray: ...
    def __rshift__(self, other: Shaped | int, /) -> GpuArray: ...
    def __lt__(self, other: Shaped | float, /) -> GpuArray: ...


Index: TypeAlias = int | slice | EllipsisType | Shaped | None


def load_cupy() -> ModuleType:
    """CuPy, where it is installed and a GPU is present.

    ``import cupy`` also works on a machine without a GPU, where the first array
    then fails; so ask for the device, not only for the import.

    Raises
    ------
    RuntimeError
        If CuPy is not installed or no GPU is present.
    """
    try:
        import cupy
    except ImportError as error:
        raise RuntimeError(
            "the GPU look-up needs CuPy: in a checkout, pip install '.[gpu]'"
        ) from error
    if not cupy.cuda.is_available():
        raise RuntimeError("the GPU look-up needs a CUDA GPU, and none is present")
    return cupy


def is_cupys(array: object) -> bool:
    """Whether an array is CuPy's."""
    return hasattr(type(array), "__cuda_array_interface__")


def array_module(array: Shaped) -> ModuleType:
    """NumPy or CuPy, whichever made the array."""
    return load_cupy() if is_cupys(array) else np


def as_cupy(ids: npt.ArrayLike | GpuArray | Tensor) -> GpuArray:
    """A CuPy array of a CuPy array or a CUDA torch tensor (no copy).

    Raises
    ------
    TypeError
        If the ids are not on a GPU.
    """
    cupy = load_cupy()
    if isinstance(ids, cupy.ndarray):
        return ids
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(ids, torch.Tensor) and ids.is_cuda:
        return cupy.from_dlpack(ids.detach())
    raise TypeError(
        f"the layout is on a GPU, so ids must be a CuPy array or a CUDA tensor, "
        f"got {type(ids).__module__}.{type(ids).__name__}"
    )


def copy_back(array: Any) -> np.ndarray:
    """An array of either in NumPy."""
    moved: np.ndarray = array.get() if is_cupys(array) else array
    return moved


def current_stream() -> AbstractContextManager[object]:
    """The stream that torch uses now, as a CuPy stream to work in."""
    cupy = load_cupy()
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return cupy.cuda.get_current_stream()
    stream = torch.cuda.current_stream()
    if hasattr(cupy.cuda.Stream, "from_external"):
        return cupy.cuda.Stream.from_external(stream)
    return cupy.cuda.ExternalStream(stream.cuda_stream)


def refuse_recording(name: str) -> None:
    """Raise RuntimeError where a CUDA graph is being recorded."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"a {name} layout with such parts is read without a kernel of its own, "
            "step by step: it cannot be recorded into a CUDA graph"
        )
