"""Tensors of torch on a GPU, for the kernels that training calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from survey_code.kernels.cuda import current_stream, load_cupy

if TYPE_CHECKING:
    from torch import Tensor


def reaches_kernels(tensor: Tensor) -> bool:
    """Whether kernels can work on a tensor as it lies.

    It must be on a GPU, without gaps, and CuPy must be installed: torch alone trains
    on a GPU too, by its own operations.
    """
    if not (tensor.is_cuda and tensor.is_contiguous()):
        return False
    try:
        load_cupy()
    except RuntimeError:
        return False
    return True


@contextmanager
def beside(tensor: Tensor) -> Iterator[None]:
    """Work on the tensor's own GPU, in the stream that torch uses there.

    Autograd goes back in threads of its own, whose GPU is the first unless they are
    told.
    """
    import torch

    device = load_cupy().cuda.Device(tensor.device.index)
    with torch.cuda.device(tensor.device), device, current_stream():
        yield
