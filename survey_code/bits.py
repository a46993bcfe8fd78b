"""Small integers in as few bits as they need, for NumPy, CuPy and torch alike.

Low bits come first everywhere: bytes of `pack_codes` begin anew in each row, the
32-bit words of `pack_stream` know no rows, and those of `mark_ids` hold one bit an id.
"""

from __future__ import annotations

import functools
import operator
import sys
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from survey_code.checks import check_range

if TYPE_CHECKING:
    from torch import Tensor

    from survey_code.kernels.cuda import GpuArray, Shaped

# Arrays of NumPy and CuPy, or any: what comes in is what goes out.
N = TypeVar("N", np.ndarray, "GpuArray")
A = TypeVar("A", np.ndarray, "GpuArray", "Tensor")

# Bits of the longest code of a stream: a code lies in two neighbouring words.
MOST_BITS = 16

LIBRARIES = ("numpy", "cupy", "torch")

# Ones in each byte, for array libraries that cannot count bits.
ONES = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


def library(array: Shaped | Tensor) -> ModuleType:
    """NumPy, CuPy or torch: where an array comes from."""
    roots = (kind.__module__.partition(".")[0] for kind in type(array).__mro__)
    return next(sys.modules[root] for root in roots if root in LIBRARIES)


def count_bits(count: int) -> int:
    """Bits that tell so many things apart, at least 1."""
    return max(int(count) - 1, 1).bit_length()


def count_ones(words: N) -> N:
    """Number of ones in each unsigned integer of an array, as uint8."""
    if isinstance(words, np.ndarray):
        return np.bitwise_count(words)
    in_bytes = library(words).asarray(ONES)[words.view(np.uint8)]
    each = in_bytes.reshape(*words.shape, words.itemsize)
    return each.sum(axis=-1).astype(np.uint8)


# -- rows of codes -----------------------------------------------------------------


def pack_codes(codes: A, bits: int) -> A:
    """Pack small integers into bytes, the first code in the lowest bits.

    Parameters
    ----------
    codes : array or tensor of uint8, shape (rows, dim), each below 2**bits
    bits : int, 1 to 8

    Returns
    -------
    array or tensor of uint8, shape (rows, ceil(dim * bits / 8))
        The last byte of a row is padded with zeros.

    Examples
    --------
    >>> pack_codes(np.array([[1, 2, 3]], dtype=np.uint8), bits=4)
    array([[33,  3]], dtype=uint8)
    """
    if 8 % bits:
        return pack_across(codes, bits)
    each = 8 // bits
    packed = codes[:, ::each] << 0  # of its own
    for place in range(1, each):
        part = codes[:, place::each]
        packed[:, : part.shape[1]] |= part << place * bits
    return packed


def unpack_codes(packed: A, dim: int, bits: int) -> A:
    """Undo `pack_codes`: uint8 (rows, bytes) -> uint8 (rows, dim)."""
    if bits == 8:
        return packed[:, :dim]
    if 8 % bits:
        return unpack_across(packed, dim, bits)
    parts = [(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    codes = library(packed).stack(parts, 2)  # (rows, bytes, codes of a byte)
    return codes.reshape(len(packed), packed.shape[1] * len(parts))[:, :dim]


def pack_across(codes: A, bits: int) -> A:
    """`pack_codes` of 3, 5, 6 or 7 bits: eight codes fill so many bytes together."""
    whole = pad_columns(codes, 8)
    packed = []
    for byte in range(bits):
        parts = []
        for place in range(8):
            left = place * bits - 8 * byte  # what leaves a byte stands in another
            if -bits < left < 8:
                part = whole[:, place::8]
                parts.append(part << left if left >= 0 else part >> -left)
        packed.append(functools.reduce(operator.or_, parts))
    width = -(-codes.shape[1] * bits // 8)
    # Of its own: kernels write to rows without gaps.
    return join_columns(library(codes).stack(packed, 2))[:, :width] << 0


def unpack_across(packed: A, dim: int, bits: int) -> A:
    """Undo `pack_across`."""
    whole = pad_columns(packed, bits)
    codes = []
    for place in range(8):
        byte, shift = divmod(place * bits, 8)
        part = whole[:, byte::bits] >> shift
        if shift + bits > 8:
            part = part | whole[:, byte + 1 :: bits] << 8 - shift
        codes.append(part & (2**bits - 1))
    return join_columns(library(packed).stack(codes, 2))[:, :dim]


def join_columns(stacked: A) -> A:
    """(m, n, k) -> (m, n k), also where there are no rows."""
    rows, columns, each = stacked.shape
    return stacked.reshape(rows, columns * each)


def pad_columns(array: A, unit: int) -> A:
    """Columns of zeros added until there is a multiple of so many."""
    missing: int = -array.shape[1] % unit
    if not missing:
        return array
    parts = [array] + missing * [library(array).zeros_like(array[:, :1])]
    whole: A = library(array).concatenate(parts, 1)
    return whole


def read_packed(packed: N, places: N, bits: int) -> N:
    """Codes at given places of one row of `pack_codes`: uint8 of the places' shape."""
    each = 8 // bits
    shifts = (bits * (places % each)).astype(np.uint8)
    return packed[places // each] >> shifts & (2**bits - 1)


# -- streams -----------------------------------------------------------------------


def stream_words(count: int, bits: int) -> int:
    """32-bit words of a stream of `count` codes."""
    return -(-count * bits // 32) + 1


def pack_stream(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes one behind the other, without regard to bytes or rows.

    Parameters
    ----------
    codes : ndarray of integers, any shape, each from 0 to 2**bits - 1
    bits : int, 1 to 16

    Returns
    -------
    ndarray of uint32, shape (ceil(codes.size * bits / 32) + 1,)
        The last word lets a reader always fetch two.

    Examples
    --------
    >>> pack_stream(np.array([[1, 2], [3, 0]]), bits=3)
    array([209,   0], dtype=uint32)
    """
    check_range("bits", bits, 1, MOST_BITS)
    flat = np.asarray(codes).ravel().astype(np.uint64)
    if flat.size and int(flat.max()) >> bits:
        raise ValueError(f"codes must be from 0 to {2**bits - 1} at {bits} bits")
    places = np.arange(flat.size, dtype=np.int64) * bits
    shifted = flat << (places & 31).astype(np.uint64)
    words = np.zeros(stream_words(flat.size, bits), dtype=np.uint64)
    # Bits never overlap, so that or is addition, and sums of 32-bit numbers are
    # exact in float64.
    for part, offset in ((shifted & np.uint64(0xFFFFFFFF), 0), (shifted >> 32, 1)):
        index = (places >> 5) + offset
        sums = np.bincount(index, weights=part, minlength=len(words))
        words += sums.astype(np.uint64)
    return words.astype(np.uint32)


def read_stream(words: N, places: N, bits: int) -> N:
    """Undo `pack_stream`: the codes at given places, as int64.

    Parameters
    ----------
    words : array of uint32
    places : array of int64, any shape
        Which codes, counted from the start of the stream.
    bits : int
    """
    starts = places * bits
    word = starts >> 5
    pair = words[word + 1].astype(np.int64) << 32 | words[word].astype(np.int64)
    # An arithmetic shift copies the sign, but never into the bits that are kept:
    # at most 31 + 16 of 64 are read.
    return (pair >> (starts & 31)) & ((1 << bits) - 1)


# -- one bit an id -----------------------------------------------------------------


def pack_words(bits: N) -> N:
    """64 zeros and ones to a word: uint8 (64 m,) -> uint64 (m,)."""
    words = library(bits).packbits(bits, bitorder="little").view("<u8")
    return words.astype(np.uint64, copy=False)


def unpack_words(words: np.ndarray) -> np.ndarray:
    """Undo `pack_words`."""
    return np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")


def mark_ids(ids: N, rows: int) -> tuple[N, N]:
    """One bit for each row, 1 for the ids given, and how many are below every 64 rows.

    Parameters
    ----------
    ids : array of integers, below `rows`
    rows : int

    Returns
    -------
    marks : array of uint64, shape (ceil(rows / 64),)
    ranks : array of uint32, same shape
    """
    xp, words = library(ids), -(-rows // 64)
    bits = xp.zeros(64 * words, dtype=np.uint8)
    bits[ids] = 1
    counts = bits.reshape(words, 64).sum(axis=1, dtype=np.uint32)
    return pack_words(bits), xp.cumsum(counts, dtype=np.uint32) - counts


def find_marks(marks: N, ranks: N, ids: N) -> tuple[N, N]:
    """Whether each id is marked by `mark_ids`, and how many marked ones are below it.

    Returns
    -------
    marked : array of bool, the ids' shape
    rank : array of int64, the ids' shape
    """
    word, bit = ids >> 6, (ids & 63).astype(np.uint64)
    own, one = marks[word], np.uint64(1)
    below = count_ones(own & ((one << bit) - one)).astype(np.int64)
    return (own >> bit & one).astype(bool), ranks[word].astype(np.int64) + below
