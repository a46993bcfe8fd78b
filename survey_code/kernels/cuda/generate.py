"""Rows that a network computes from hashes: cuBLAS's products, and what stands between.

One kernel makes the network's input, another one follows each product.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from survey_code.kernels.cuda import Shaped, current_stream
from survey_code.kernels.cuda.load import ID_TYPES, THREADS, load_kernel
from survey_code.kernels.cuda.place import SECTOR, round_up
from survey_code.kernels.formats import Format, GeneratorFormat

AT_ONCE = 1 << 16  # ids whose signals are in memory at the same time
FEW = 1 << 12  # ids that are not sorted: all their rows are computed


def generate_rows(
    format: GeneratorFormat, ids: Tensor, flag: int
) -> tuple[Tensor, Tensor]:
    """The rows of a call; of many ids the distinct ones, for which the call waits.

    Parameters
    ----------
    format : GeneratorFormat
    ids : Tensor of int32 or int64, shape (m,)
    flag : int
        Address of the word where kernels report what is wrong.

    Returns
    -------
    table : Tensor of float32, shape (rows + 1, dim)
        From `make_table`; the last row belongs to no id.
    places : Tensor of int64, shape (m,)
        The row of the table for each id.
    """
    if len(ids) <= FEW or torch.cuda.is_current_stream_capturing():
        distinct, places = ids, torch.arange(len(ids), device=ids.device)
    else:
        distinct, places = torch.unique(ids, return_inverse=True)
    table = make_table(len(distinct), format.dim, ids.device)
    with torch.cuda.device(ids.device):  # another one may be current
        for start in range(0, len(distinct), AT_ONCE):
            part = distinct[start : start + AT_ONCE]
            table[start : start + len(part)] = compute_rows(format, part, flag)
    return table, places


def compute_rows(format: GeneratorFormat, ids: Tensor, flag: int) -> Tensor:
    """The network's output, float32 of shape (m, dim)."""
    signals = encode_ids(format, ids, flag)
    for number, (matrix, bias) in enumerate(format.layers, start=1):
        signals = signals @ borrow_once(format, matrix)
        last = number == len(format.layers)
        follows = "nothing" if last else format.activation
        add_bias(signals, borrow_once(format, bias), follows)
    return signals


def make_table(rows: int, dim: int, place: torch.device) -> Tensor:
    """Rows of float32 that kernels can read, and one more; a view of padded ones."""
    used = 4 * dim
    width = round_up(used, 16 if used <= 16 else SECTOR) // 4
    return torch.zeros((rows + 1, width), device=place)[:, :dim]


def borrow_once(format: Format, array: Shaped) -> Tensor:
    """An array of a format as a tensor."""
    key = "tensor", id(array)
    found: Tensor | None = format.kept.get(key)
    if found is None:
        found = format.kept[key] = torch.from_dlpack(array)
    return found


def encode_ids(format: GeneratorFormat, ids: Tensor, flag: int) -> Tensor:
    """The network's input, float32 of shape (m, codes)."""
    signals = torch.empty((len(ids), format.codes), device=ids.device)
    kind = str(ids.dtype).removeprefix("torch.")
    form = f"{str(format.normal).lower()}, {ID_TYPES[kind]}"
    kernel = load_kernel("generator.cu", f"make_codes<{form}>")
    threads = signals.numel() // (2 if format.normal else 1)
    numbers = [np.uint64(number % 2**64) for number in format.multipliers]
    with current_stream():
        kernel(
            (-(-threads // THREADS),), (THREADS,),
            (
                np.uint64(ids.data_ptr()), np.int64(len(ids)), np.int64(format.rows),
                *numbers, np.int32(format.codes), np.uint64(signals.data_ptr()),
                np.uint64(flag),
            ),
        )  # fmt: skip
    return signals


def add_bias(signals: Tensor, bias: Tensor, activation: str) -> None:
    """What follows a product, in place."""
    kernel = load_kernel("generator.cu", f"add_bias<{activation.upper()}>")
    with current_stream():
        kernel(
            (-(-signals.numel() // THREADS),), (THREADS,),
            (
                np.uint64(signals.data_ptr()), np.uint64(bias.data_ptr()),
                np.int64(signals.numel()), np.int32(signals.shape[1]),
            ),
        )  # fmt: skip
