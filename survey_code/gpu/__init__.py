"""READS FAST: CuPy arrays in, CuPy arrays out.  Imports nothing of this package."""

from __future__ import annotations

import sys
from typing import Any


def load_cupy() -> Any:
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


def as_cupy(ids: Any) -> Any:
    """A CuPy array of a CuPy array or a CUDA torch tensor (no copy).

    Raises
    ------
    TypeError
        If the ids are not on a GPU.
    """
    cupy = load_cupy()
    if isinstance(ids, cupy.ndarray):
        return ids
    if hasattr(ids, "__dlpack__") and getattr(ids, "is_cuda", False):
        return cupy.from_dlpack(ids.detach())
    raise TypeError(
        f"the layout is on a GPU, so ids must be a CuPy array or a CUDA tensor, "
        f"got {type(ids).__module__}.{type(ids).__name__}"
    )


def current_stream() -> Any:
    """The stream that torch uses now, as a CuPy stream to work in."""
    cupy = load_cupy()
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return cupy.cuda.get_current_stream()
    stream = torch.cuda.current_stream()
    if hasattr(cupy.cuda.Stream, "from_external"):
        return cupy.cuda.Stream.from_external(stream)
    return cupy.cuda.ExternalStream(stream.cuda_stream)
