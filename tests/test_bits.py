"""Packed integers: the same bytes from every library, and back again."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from survey_code.bits import (
    MOST_BITS,
    count_bits,
    count_ones,
    find_marks,
    library,
    mark_ids,
    pack_codes,
    pack_stream,
    pack_words,
    read_packed,
    read_stream,
    stream_words,
    unpack_codes,
    unpack_words,
)


def draw(bits, *shape):
    return np.random.default_rng(shape).integers(2**bits, size=shape)


class Own(np.ndarray):
    """A subclass, which comes from this file."""


def test_an_array_says_where_it_comes_from():
    assert library(np.zeros(1)) is library(np.zeros(1).view(Own)) is np
    assert library(torch.zeros(1)) is library(torch.nn.Parameter()) is torch


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
@pytest.mark.parametrize("dim", [*range(1, 12), 19])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_rows_of_codes_are_packed_alike_by_numpy_and_torch(rows, dim, bits):
    codes = draw(bits, rows, dim).astype(np.uint8)
    before = codes.copy()
    packed = pack_codes(codes, bits)
    # One bit after the other, low bits first.
    spread = codes[:, :, None] >> np.arange(bits) & 1
    wanted = np.packbits(spread.reshape(rows, dim * bits), axis=1, bitorder="little")
    np.testing.assert_array_equal(packed, wanted)
    assert packed.dtype == np.uint8 and packed.flags.c_contiguous
    np.testing.assert_array_equal(unpack_codes(packed, dim, bits), codes)
    for row in packed[:1]:
        places = np.arange(dim)[::-1]
        np.testing.assert_array_equal(read_packed(row, places, bits), codes[0, ::-1])
    tensor = pack_codes(torch.from_numpy(codes), bits)
    np.testing.assert_array_equal(tensor.numpy(), packed)
    np.testing.assert_array_equal(unpack_codes(tensor, dim, bits).numpy(), codes)
    packed[:] = 0
    np.testing.assert_array_equal(codes, before)  # packed is an array of its own


@pytest.mark.parametrize("bits", range(1, MOST_BITS + 1))
def test_any_code_of_a_stream_can_be_read_alone(bits):
    codes = draw(bits, 101)
    words = pack_stream(codes, bits)
    assert words.dtype == np.uint32 and words.shape == (stream_words(101, bits),)
    places = np.random.default_rng(0).permutation(101)
    np.testing.assert_array_equal(read_stream(words, places, bits), codes[places])


def test_streams_refuse_what_they_cannot_hold():
    with pytest.raises(ValueError, match="bits must be an integer from 1 to 16"):
        pack_stream(np.array([1]), 17)
    with pytest.raises(ValueError, match="codes must be from 0 to 7 at 3 bits"):
        pack_stream(np.array([8]), 3)


@given(st.sets(st.integers(0, 299)), st.integers(300, 400))
def test_marks_are_found_and_counted(ids, rows):
    ids = np.array(sorted(ids), dtype=np.int64)
    marks, ranks = mark_ids(ids, rows)
    assert (marks.dtype, ranks.dtype) == (np.uint64, np.uint32)
    assert marks.shape == ranks.shape == (-(-rows // 64),)
    marked, rank = find_marks(marks, ranks, np.arange(rows))
    np.testing.assert_array_equal(np.flatnonzero(marked), ids)
    np.testing.assert_array_equal(rank, np.searchsorted(ids, np.arange(rows)))
    np.testing.assert_array_equal(np.flatnonzero(unpack_words(marks)), ids)
    np.testing.assert_array_equal(pack_words(unpack_words(marks)), marks)


def test_bits_are_counted():
    assert [count_bits(n) for n in (1, 2, 3, 4, 5, 256, 257)] == [1, 1, 2, 2, 3, 8, 9]
    words = np.array([0, 1, 2**63 + 5, 2**64 - 1], dtype=np.uint64)
    assert count_ones(words).tolist() == [0, 1, 3, 64]


@pytest.mark.parametrize("bits", range(1, 9))
def test_no_rows_are_packed_too(bits):
    packed = pack_codes(np.zeros((0, 5), np.uint8), bits)
    assert packed.shape == (0, -(-5 * bits // 8))
    assert unpack_codes(packed, 5, bits).shape == (0, 5)
