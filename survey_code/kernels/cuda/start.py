"""Starting a kernel of look-ups or bags in the few microseconds that the driver takes.

What such a kernel is told about a layout never changes: it is laid out once, as C lays
out arguments, and only what differs from call to call is written behind it.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence

import numpy as np
import torch

from survey_code.kernels.cuda import load_cupy
from survey_code.kernels.cuda.load import Kernel

# CU_LAUNCH_PARAM_BUFFER_POINTER, CU_LAUNCH_PARAM_BUFFER_SIZE, CU_LAUNCH_PARAM_END
POINTER, SIZE, END = 1, 2, 0

_ENTERED = threading.local()


class Starter:
    """A kernel, ready to be started in the stream that torch uses.

    Parameters
    ----------
    kernel : kernel
    fields : sequence of int
        The struct that it takes first: whole numbers of 64 bits.
    sizes : (int, int)
        Rows and columns, which it takes next.
    kinds : str
        Types of its other arguments, as of `struct`: "q" for addresses, too.
    block : (int, int)
        Threads that share a row; rows of a block.
    place : torch.device
    shares : bool, default False
        Whether it is told how many rows each group of threads finds.
    """

    def __init__(
        self,
        kernel: Kernel,
        fields: Sequence[int],
        sizes: tuple[int, int],
        kinds: str,
        block: tuple[int, int],
        place: torch.device,
        shares: bool = False,
    ) -> None:
        head = struct.Struct(f"@{len(fields)}qqi")
        self.first = struct.calcsize(f"@{len(fields)}qqi0q")
        self.words = struct.Struct(f"@{kinds}")
        self.memory = bytearray(self.first + self.words.size)
        head.pack_into(self.memory, 0, *fields, *sizes)
        size = np.array([len(self.memory)], dtype=np.uint64)
        held = np.frombuffer(self.memory, dtype=np.uint8)
        told = [POINTER, held.ctypes.data, SIZE, size.ctypes.data, END]
        self.told = np.array(told, dtype=np.uint64)
        self.kept = size, held  # what addresses point to
        self.block, self.shares, self.index = block, shares, place.index or 0
        self.lock = threading.Lock()
        self.launch = load_cupy().cuda.driver.launchKernel
        with torch.cuda.device(place):  # the caller's GPU is current again afterwards
            enter_context(self.index)
            self.address = kernel.kernel.ptr
        self.extra = int(self.told.ctypes.data)

    def __call__(self, rows: int, *arguments: int) -> None:
        """Start it on as many blocks as so many rows or bags take."""
        index = self.index
        if torch._C._cuda_getDevice() != index:
            with torch.cuda.device(index):
                self(rows, *arguments)
            return
        if getattr(_ENTERED, "here", None) != index:
            enter_context(index)
        across, down = self.block
        stream = torch._C._cuda_getCurrentRawStream(index)
        with self.lock:  # the driver copies the arguments before it returns
            self.words.pack_into(self.memory, self.first, *arguments)
            self.launch(
                self.address, -(-rows // down), 1, 1, across, down, 1, 0, stream, 0,
                self.extra,
            )  # fmt: skip


def enter_context(index: int) -> None:
    """Make a GPU's context that of this thread, which torch does only when it must."""
    load_cupy().cuda.Device(index).use()
    _ENTERED.here = index
