"""Look-ups and bags by NumPy: the digits of the plain way, however the work is cut."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, strategies as st

from survey_code.bits import (
    MOST_BITS,
    pack_codes,
    pack_stream,
    read_stream,
    unpack_codes,
)
from survey_code.kernels.cpu import pooling
from survey_code.kernels.cpu.codes import (
    decode_rows,
    split_tail,
    take_codes,
    unpack_rows,
)
from survey_code.kernels.cpu.pooling import count_chunk_rows, pool_bags, pool_chunks
from survey_code.kernels.cpu.rows import take_rows

MODES = ("sum", "mean", "max")
LENGTHS = {
    "none": [],
    "empty": [0, 0, 0],
    "even": [20] * 50,
    "one each": [1] * 40,
    "one bag": [137],
    "uneven": [0, 3, 1, 0, 129, 8, 8, 9, 7, 0, 64],
    "falling": list(range(40, 0, -1)),
    "few and different": [300, 2, 90],
    "long among short": [1] * 30 + [1000] + [1] * 30,
}


def starts_of(lengths):
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def draw_rows(count, dim):
    """Numbers of many sizes, so that another order of adding shows in the digits."""
    rng = np.random.default_rng((count, dim))
    rows = rng.standard_normal((count, dim)) * 10.0 ** rng.integers(-4, 5, (count, 1))
    return rows.astype(np.float32)


def pool_plainly(rows, starts, mode):
    """Row after row."""
    pooled = np.zeros((len(starts) - 1, rows.shape[1]), dtype=np.float32)
    for bag, (start, end) in enumerate(pairwise(starts)):
        for row in range(start, end):
            if row == start:
                pooled[bag] = rows[row]
            elif mode == "max":
                pooled[bag] = np.maximum(pooled[bag], rows[row])
            else:
                pooled[bag] += rows[row]
        if mode == "mean" and end > start:
            pooled[bag] /= np.float32(end - start)
    return pooled


def assert_same_bits(found, wanted):
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))


# -- bags ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dim", [1, 2, 7, 8, 64])
@pytest.mark.parametrize("name", LENGTHS)
def test_rows_are_added_in_their_order(name, dim, mode):
    starts = starts_of(LENGTHS[name])
    rows = draw_rows(starts[-1], dim)
    wanted = pool_plainly(rows, starts, mode)
    assert_same_bits(pool_bags(rows, starts, mode), wanted)
    assert_same_bits(pool_bags(np.asfortranarray(rows), starts, mode), wanted)
    ids = np.random.default_rng(0).permutation(len(rows))
    table = np.empty_like(rows)
    table[ids] = rows
    for chunk in (None, 1, 2, 16, 100):
        found = pool_chunks(lambda x: table[x], ids, starts, None, mode, dim, chunk)
        assert_same_bits(found, wanted)


@given(
    lengths=st.lists(st.integers(0, 30), max_size=30),
    dim=st.integers(1, 9),
    chunk=st.integers(1, 70),
    mode=st.sampled_from(MODES),
)
def test_any_bags_in_any_chunks(lengths, dim, chunk, mode):
    starts = starts_of(lengths)
    rows = draw_rows(starts[-1], dim)
    asked = []

    def read(ids):
        asked.append(len(ids))
        return rows[ids]

    ids = np.arange(len(rows))
    found = pool_chunks(read, ids, starts, None, mode, dim, chunk)
    assert_same_bits(found, pool_plainly(rows, starts, mode))
    assert_same_bits(pool_bags(rows, starts, mode), pool_plainly(rows, starts, mode))
    assert sum(asked) == len(rows) and max(asked, default=0) <= chunk


@pytest.mark.parametrize("shape", [(3, 30_000), (5000, 2), (20_000, 1), (20_000, 3)])
def test_numpy_adds_along_the_first_axis_in_order(shape):
    """Whatever the size of its buffers: what all pooling here rests on."""
    rows = draw_rows(*shape)
    wanted = rows[0].copy()
    for row in rows[1:]:
        wanted += row
    assert_same_bits(pooling.reduce_ranks(rows, "sum"), wanted)
    assert_same_bits(pooling.reduce_ranks(np.asfortranarray(rows), "sum"), wanted)


def test_weights_multiply_rows_before_they_are_pooled():
    starts = starts_of(LENGTHS["uneven"])
    rows = draw_rows(starts[-1], 5)
    weights = draw_rows(starts[-1], 1)[:, 0]
    wanted = pool_plainly(rows * weights[:, None], starts, "sum")
    for chunk in (None, 3, 50):
        # Rows may be a view of what is stored, so that nothing may be written there.
        rows.flags.writeable = False
        found = pool_chunks(
            lambda x: rows[x[0] : x[-1] + 1] if len(x) == 1 else rows[x],
            np.arange(len(rows)), starts, weights, "sum", 5, chunk,
        )  # fmt: skip
        assert_same_bits(found, wanted)


@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_stored_rows_are_left_alone(chunk):
    rows = np.ones((6, 2), dtype=np.float32)
    ids, starts = np.arange(6), np.array([0, 6])
    weights = np.full(6, 2, dtype=np.float32)
    pool_chunks(lambda x: rows[x[0] : x[0] + len(x)], ids, starts, weights, "sum", 2)
    pool_chunks(lambda x: rows[x[0] : x[0] + len(x)], ids, starts, None, "sum", 2)
    pool_bags(rows, starts, "mean")
    assert (rows == 1).all()


@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_infinity_and_nan_show(chunk):
    rows = np.array([[np.inf, 1], [2, np.nan], [-np.inf, -np.inf]], dtype=np.float32)
    ids, starts = np.arange(3), np.array([0, 2, 3])

    def pool(weights, mode):
        return pool_chunks(
            lambda x: rows[x], ids, starts, weights, mode, 2, chunk
        ).tolist()

    nan = pytest.approx(np.nan, nan_ok=True)
    assert pool(None, "max") == [[np.inf, nan], [-np.inf, -np.inf]]
    assert pool(None, "sum") == [[np.inf, nan], [-np.inf, -np.inf]]
    with np.errstate(invalid="ignore"):
        nothing = pool(np.zeros(3, dtype=np.float32), "sum")
    assert nothing == [[nan, nan], [nan, nan]]


def test_signs_of_zeros_are_kept():
    rows = np.full((7, 9), -0.0, dtype=np.float32)
    for starts in (np.array([0, 7]), np.array([0, 1, 3, 7])):
        for dim in (1, 2, 9):
            assert np.signbit(pool_bags(rows[:, :dim], starts, "sum")).all()


def test_chunks_have_rows_whatever_their_length():
    assert [count_chunk_rows(dim) for dim in (1, 64, 10**6)] == [
        pooling.MOST_CHUNK_ROWS,
        pooling.CHUNK_NUMBERS // 64,
        pooling.LEAST_CHUNK_ROWS,
    ]


@pytest.mark.parametrize("dim", [1, 2])
def test_one_long_bag_among_many_short_ones_takes_few_calls(dim):
    """Not one call for each rank of the long bag, with all bags."""
    lengths = np.ones(20_001, dtype=np.int64)
    lengths[777] = 200_000
    starts = starts_of(lengths)
    rows = np.ones((starts[-1], dim), dtype=np.float32)
    calls = []

    def read(ids):
        calls.append(len(ids))
        return rows[ids]

    found = pool_chunks(read, np.arange(len(rows)), starts, None, "sum", dim)
    assert_same_bits(found, np.repeat(lengths[:, None], dim, 1).astype(np.float32))
    assert len(calls) <= len(rows) / pooling.MOST_CHUNK_ROWS + 3


# -- rows ---------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [[], [3], [0, 4, 4, 2]])
@pytest.mark.parametrize("kind", [np.float32, np.float16, np.uint16])
def test_rows_are_gathered_as_float32(kind, ids):
    values = draw_rows(5, 6).astype(kind) if kind != np.uint16 else np.arange(
        0x3F00, 0x3F00 + 30, dtype=np.uint16
    ).reshape(5, 6)  # fmt: skip
    ids = np.array(ids, dtype=np.int64)
    wanted = values[ids]
    if kind == np.uint16:
        wanted = (wanted.astype(np.uint32) << 16).view(np.float32)
    for stored in (values, np.asfortranarray(values), np.repeat(values, 2, 0)[::2]):
        found = take_rows(stored, ids)
        assert_same_bits(found, wanted.astype(np.float32))
        found[:] = 0  # of its own
        assert values.any(axis=1).all()


def test_every_number_of_16_bits_is_widened_exactly(monkeypatch):
    monkeypatch.setattr("survey_code.kernels.cpu.rows.BLOCK_NUMBERS", 1000)
    bits = np.arange(2**16).astype(np.uint16).reshape(-1, 16)
    ids = np.arange(len(bits))
    with np.errstate(invalid="ignore"):
        wanted = bits.view(np.float16).astype(np.float32)
    assert_same_bits(take_rows(bits.view(np.float16), ids), wanted)
    assert (take_rows(bits, ids).view(np.uint32) == bits.astype(np.uint32) << 16).all()


def test_rows_of_a_mapped_file(tmp_path):
    values = draw_rows(5, 3)
    values.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", dtype=np.float32, mode="r", shape=(5, 3))
    found = take_rows(mapped, np.array([4, 0]))
    assert type(found) is np.ndarray
    assert_same_bits(found, values[[4, 0]])


def test_an_id_beyond_the_table_is_an_error():
    with pytest.raises(IndexError):
        take_rows(draw_rows(5, 3), np.array([5]))


# -- codes --------------------------------------------------------------------------


def draw_packed(rows, dim, bits, tail=0):
    rng = np.random.default_rng((rows, dim, bits))
    codes = rng.integers(2**bits, size=(rows, dim), dtype=np.uint8)
    packed = pack_codes(codes, bits)
    return np.pad(packed, ((0, 0), (0, tail)), constant_values=255), codes


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
@pytest.mark.parametrize("dim", [*range(1, 18), 64])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_rows_of_codes_are_unpacked_as_ever(rows, dim, bits):
    for tail in (0, 3):
        packed, codes = draw_packed(rows, dim, bits, tail)
        before = packed.copy()
        for given_rows in (packed, np.asfortranarray(packed)):
            found = unpack_rows(given_rows, dim, bits)
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, codes)
            np.testing.assert_array_equal(found, unpack_codes(packed, dim, bits))
        np.testing.assert_array_equal(packed, before)


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
@pytest.mark.parametrize("dim", [1, 3, 8, 17, 64])
@pytest.mark.parametrize("rows", [0, 1, 50])
def test_decoded_rows_have_the_digits_of_product_and_sum(
    rows, dim, bits, monkeypatch
):  # fmt: skip
    monkeypatch.setattr("survey_code.kernels.cpu.codes.BLOCK_NUMBERS", 7 * dim)
    packed, codes = draw_packed(rows, dim, bits, tail=4)
    scale, bias = draw_rows(rows, 2)[:, :1], draw_rows(rows, 2)[:, 1:]
    wanted = codes.astype(np.float32) * scale + bias
    assert_same_bits(decode_rows(packed, dim, bits, scale, bias), wanted)
    one = np.full((1, 1), 0.3, dtype=np.float32), np.full((1, 1), -7, np.float32)
    wanted = codes.astype(np.float32) * one[0] + one[1]
    assert_same_bits(decode_rows(packed, dim, bits, *one), wanted)
    for own in (scale, one[0]):  # centred
        wanted = (codes - np.float32((2**bits - 1) / 2)) * own
        assert_same_bits(decode_rows(packed, dim, bits, own, None), wanted)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("width", [1, 2, 5, 8])
def test_scale_and_bias_stand_behind_the_codes(width, kind):
    tail = draw_rows(6, 2).astype(kind)
    codes = np.full((6, width), 255, dtype=np.uint8)
    packed = np.concatenate([codes, tail.view(np.uint8)], axis=1)
    scale, bias = split_tail(packed, width, kind)
    assert_same_bits(scale, tail[:, :1].astype(np.float32))
    assert_same_bits(bias, tail[:, 1:].astype(np.float32))
    packed = packed[:, : -tail.itemsize].copy()
    scale, bias = split_tail(packed, width, kind)
    assert_same_bits(scale, tail[:, :1].astype(np.float32))
    assert bias is None


@pytest.mark.parametrize("bits", range(1, MOST_BITS + 1))
def test_codes_are_taken_from_a_stream_as_ever(bits):
    codes = np.random.default_rng(bits).integers(2**bits, size=101)
    words = pack_stream(codes, bits)
    places = np.random.default_rng(0).permutation(101)[:100].reshape(20, 5)
    found = take_codes(words, places, bits)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, codes[places])
    np.testing.assert_array_equal(found, read_stream(words, places, bits))
    last = take_codes(words, np.array([100]), bits)
    assert last.tolist() == [codes[100]]
