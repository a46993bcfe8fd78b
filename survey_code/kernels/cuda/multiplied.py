"""Look-ups that end in a product of matrices: generated rows, and turned ones.

The products are cuBLAS's; one kernel each makes what stands before and after them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from survey_code.kernels.cuda import GpuArray, Shaped, load_cupy
from survey_code.kernels.cuda.composed import ComposedRows
from survey_code.kernels.cuda.load import ID_TYPES, THREADS, load_kernel
from survey_code.kernels.cuda.rows import DeviceRows, FusedRows, place_dense

AT_ONCE = 1 << 16  # ids whose signals are in memory at the same time


@dataclass
class GeneratedRows(FusedRows):
    """Rows that a network computes from hashes; see `GeneratorLayout`.

    Each distinct id of a call is computed once.  To find them, the call waits.

    Parameters
    ----------
    rows, dim : int
    codes : int
        Hashes of an id.
    multipliers : (int, int)
        Of the hashes.
    normal : bool
        Whether hashes become normal numbers, or uniform ones.
    activation : {"relu", "mish"}
    layers : list of (matrix, bias)
        CuPy arrays of float32, shapes (inputs, outputs) and (outputs,).
    """

    rows: int
    dim: int
    codes: int
    multipliers: tuple[int, int]
    normal: bool
    activation: str
    layers: Sequence[tuple[Shaped, Shaped]]

    def start_read(self, ids: GpuArray, out: GpuArray, flag: GpuArray) -> None:
        """One row per id."""
        table, places = self.generate(ids, flag)
        table.start_read(places, out, flag)

    def start_pool(
        self,
        ids: GpuArray,
        offsets: GpuArray,
        weights: GpuArray | None,
        mode: str,
        out: GpuArray,
        flag: GpuArray,
    ) -> None:
        """One pooled row per bag."""
        table, places = self.generate(ids, flag)
        table.start_pool(places, offsets, weights, mode, out, flag)

    def generate(self, ids: GpuArray, flag: GpuArray) -> tuple[DeviceRows, GpuArray]:
        """The distinct rows as a table, and the row of the table for each id."""
        cupy = load_cupy()
        distinct, places = cupy.unique(ids, return_inverse=True)
        table = cupy.zeros((max(distinct.size, 1), self.dim), dtype=np.float32)
        for start in range(0, distinct.size, AT_ONCE):
            part = distinct[start : start + AT_ONCE]
            signals = self.encode(part, flag)
            for number, (matrix, bias) in enumerate(self.layers, start=1):
                signals = signals @ matrix
                last = number == len(self.layers)
                self.add_bias(signals, bias, "nothing" if last else self.activation)
            table[start : start + AT_ONCE] = signals
        return place_dense(table), places.ravel()

    def encode(self, ids: GpuArray, flag: GpuArray) -> GpuArray:
        """The network's input, float32 of shape (m, codes)."""
        signals = load_cupy().empty((ids.size, self.codes), dtype=np.float32)
        form = f"{str(self.normal).lower()}, {ID_TYPES[str(ids.dtype)]}"
        kernel = load_kernel("generator.cu", f"make_codes<{form}>")
        threads = signals.size // (2 if self.normal else 1)
        first, second = (np.uint64(m % 2**64) for m in self.multipliers)
        kernel(
            (-(-threads // THREADS),), (THREADS,),
            (
                ids, np.int64(ids.size), np.int64(self.rows), first, second,
                np.int32(self.codes), signals, flag,
            ),
        )  # fmt: skip
        return signals

    def add_bias(self, signals: GpuArray, bias: Shaped, activation: str) -> None:
        """What follows a product, in place."""
        kernel = load_kernel("generator.cu", f"add_bias<{activation.upper()}>")
        kernel(
            (-(-signals.size // THREADS),), (THREADS,),
            (signals, bias, np.int64(signals.size), np.int32(signals.shape[1])),
        )  # fmt: skip


@dataclass
class TurnedRows(FusedRows):
    """Rows that are multiplied by a matrix, once read.

    The matrix comes after the pooling where it may: a sum of turned rows is the
    turned sum, so that a bag costs one product instead of one for each of its ids.

    Parameters
    ----------
    unturned : ComposedRows
    rotation : CuPy array of float32, shape (dim, dim)
    """

    unturned: ComposedRows
    rotation: Shaped

    def __post_init__(self) -> None:
        self.rows, self.dim = self.unturned.rows, self.unturned.dim

    @property
    def held_bytes(self) -> int:
        """Bytes beyond the layout's own arrays."""
        return self.unturned.held_bytes

    def start_read(self, ids: GpuArray, out: GpuArray, flag: GpuArray) -> None:
        """One row per id."""
        self.unturned.start_read(ids, out, flag)
        out[...] = out @ self.rotation

    def start_pool(
        self,
        ids: GpuArray,
        offsets: GpuArray,
        weights: GpuArray | None,
        mode: str,
        out: GpuArray,
        flag: GpuArray,
    ) -> None:
        """One pooled row per bag."""
        if mode != "max":
            self.unturned.start_pool(ids, offsets, weights, mode, out, flag)
            out[...] = out @ self.rotation
            return
        # The largest entry is another one once the rows are turned.
        cupy = load_cupy()
        table = cupy.zeros((max(ids.size, 1), self.dim), dtype=np.float32)
        if ids.size:
            self.start_read(ids, table[: ids.size], flag)
        places = cupy.arange(ids.size, dtype=np.int64)
        place_dense(table).start_pool(places, offsets, weights, mode, out, flag)
