"""Packed rows of small integers unpacked and decoded by NumPy.

Low bits come first, and each row begins a byte of its own.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from survey_code.kernels.cpu.rows import BLOCK_NUMBERS, cut_rows


def unpack_rows(packed: np.ndarray, dim: int, bits: int) -> np.ndarray:
    """Codes of packed rows.

    Parameters
    ----------
    packed : ndarray of uint8, shape (m, bytes)
        At least ``ceil(dim * bits / 8)`` bytes a row; further ones are left alone.
    dim : int
    bits : int, 1 to 8

    Returns
    -------
    ndarray of uint8, shape (m, dim)
        At 8 bits a view of `packed`.
    """
    width = -(-dim * bits // 8)
    packed = packed[:, :width]
    if bits == 8:
        return packed
    if 8 % bits:
        return cross_bytes(packed, dim, bits)
    if bits == 4:
        return spread_halves(packed)[:, :dim]
    codes = list_codes(bits, np.uint8).take(packed.astype(np.intp), axis=0)
    return codes.reshape(len(packed), width * 8 // bits)[:, :dim]


def decode_rows(
    packed: np.ndarray, dim: int, bits: int, scale: np.ndarray, bias: np.ndarray | None
) -> np.ndarray:
    """Numbers that packed rows stand for: code times scale, plus bias.

    Without a bias they are centred: code minus half the largest code, times scale.

    Parameters
    ----------
    packed : ndarray of uint8, shape (m, bytes)
        As for `unpack_rows`.
    dim : int
    bits : int, 1 to 8
    scale, bias : ndarray of float32, shape (m, 1) or (1, 1)

    Returns
    -------
    ndarray of float32, shape (m, dim)
        Rounded after the product and after the sum; centred numbers once.
    """
    rows = np.empty((len(packed), dim), dtype=np.float32)
    centre = np.float32((2**bits - 1) / 2)
    for part in cut_rows(len(packed), dim, BLOCK_NUMBERS):
        block, whole = rows[part], slice(None) if len(scale) == 1 else part
        if bits < 4 and 8 % bits == 0:
            codes = look_up_codes(packed[part], dim, bits)
        else:
            block[:] = unpack_rows(packed[part], dim, bits)
            codes = block
        if bias is None:
            np.subtract(codes, centre, out=block)
            block *= scale[whole]
        else:
            np.multiply(codes, scale[whole], out=block)
            block += bias[whole]
    return rows


def decode_levels(
    packed: np.ndarray, dim: int, bits: int, levels: np.ndarray
) -> np.ndarray:
    """Numbers that codes name in one table: ``levels[codes]``.

    Parameters
    ----------
    packed : ndarray of uint8, shape (m, bytes)
        As for `unpack_rows`.
    dim : int
    bits : int, 1 to 8
    levels : ndarray of float32, shape (2**bits,)

    Returns
    -------
    ndarray of float32, shape (m, dim)
    """
    rows = np.empty((len(packed), dim), dtype=np.float32)
    if bits < 8 and 8 % bits == 0:
        table = levels.take(list_codes(bits, np.intp))  # of each byte, its numbers
        width = -(-dim * bits // 8)
    for part in cut_rows(len(packed), dim, BLOCK_NUMBERS):
        if bits < 8 and 8 % bits == 0:
            found = table.take(packed[part, :width].astype(np.intp), axis=0)
            rows[part] = found.reshape(len(found), width * 8 // bits)[:, :dim]
        else:
            codes = unpack_rows(packed[part], dim, bits)
            levels.take(codes.astype(np.intp), out=rows[part], mode="clip")
    return rows


def take_codes(words: np.ndarray, places: np.ndarray, bits: int) -> np.ndarray:
    """Codes at given places of a stream, in which they follow each other bit by bit.

    Parameters
    ----------
    words : ndarray of uint32
        One more than the codes fill.
    places : ndarray of int64, any shape
    bits : int, 1 to 16

    Returns
    -------
    ndarray of int64, shape of `places`
    """
    stream = np.ascontiguousarray(words, dtype="<u4")
    if bits in (8, 16):  # a number of its own
        return stream.view(f"<u{bits // 8}").take(places).astype(np.int64)
    if 8 % bits == 0:  # a part of one byte
        first = places * bits
        held = stream.view(np.uint8).take(first >> 3).astype(np.int64)
        return held >> (first & 7) & (2**bits - 1)
    first = places * bits
    word = first >> 5
    pair = stream.take(word + 1).astype(np.int64)
    pair <<= 32
    pair |= stream.take(word)
    pair >>= first & 31
    pair &= 2**bits - 1
    return pair


def split_tail(
    packed: np.ndarray, width: int, kind: npt.DTypeLike
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scale and bias that stand behind the codes of each row.

    Parameters
    ----------
    packed : ndarray of uint8, shape (m, width + 2 * itemsize)
        Or one number shorter, where there is no bias.
    width : int
        Bytes of codes.
    kind : dtype
        float32 or float16.

    Returns
    -------
    scale, bias : ndarray of float32, shape (m, 1)
    """
    tail = packed[:, width:].view(kind).astype(np.float32)
    return tail[:, :1], tail[:, 1:] if tail.shape[1] > 1 else None


def cross_bytes(packed: np.ndarray, dim: int, bits: int) -> np.ndarray:
    """Codes of 3, 5, 6 or 7 bits: uint8 (m, bytes) -> uint8 (m, dim).

    Eight codes fill as many bytes as a code has bits, so that every eighth code lies
    alike in every so many bytes.
    """
    codes = np.empty((len(packed), dim), dtype=np.uint8)
    for place in range(min(8, dim)):
        byte, shift = divmod(place * bits, 8)
        found = codes[:, place::8]
        part = packed[:, byte::bits][:, : found.shape[1]]
        np.right_shift(part, shift, out=found)
        if shift + bits > 8:
            rest = packed[:, byte + 1 :: bits][:, : found.shape[1]]
            found |= rest << 8 - shift
        found &= 2**bits - 1
    return codes


def spread_halves(packed: np.ndarray) -> np.ndarray:
    """Two codes of 4 bits from each byte: uint8 (m, bytes) -> uint8 (m, 2 * bytes)."""
    pairs = packed.astype("<u2", order="C")
    pairs |= pairs << 4
    pairs &= 0x0F0F
    return pairs.view(np.uint8)


def look_up_codes(packed: np.ndarray, dim: int, bits: int) -> np.ndarray:
    """Codes of packed rows as float32 (m, dim), all codes of a byte at a time."""
    width = -(-dim * bits // 8)
    codes = list_codes(bits, np.float32).take(packed[:, :width].astype(np.intp), axis=0)
    return codes.reshape(len(packed), width * 8 // bits)[:, :dim]


@cache
def list_codes(bits: int, kind: type[np.generic]) -> np.ndarray:
    """Codes of each byte, in this type, shape (256, 8 // bits)."""
    codes = np.arange(256)[:, None] >> np.arange(0, 8, bits) & (2**bits - 1)
    return codes.astype(kind)
