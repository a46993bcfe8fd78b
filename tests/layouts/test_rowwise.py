"""Codes with a scale and a bias: every number of bits, and who shares the two, against
rows that are read entry by entry.
"""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from survey_code import compress, load_layout, update_rows
from survey_code.kernels.cpu.compile import find_compiler
from survey_code.layouts import RowwiseLayout
from survey_code.layouts.rowwise import BITS, code_bytes, parameter_type, row_bytes
from survey_code.low_precision.quantization import quantize_rows
from survey_code.serving.fbgemm import pack_fbgemm

ROWS = 6
KINDS = ("row", "table", "groups")


def draw(bits, dim, kind="row", centred=False, rows=ROWS):
    """A layout, and the codes, scales and biases of its rows, as they are stored."""
    rng = np.random.default_rng([bits, dim, rows])
    codes = rng.integers(2**bits, size=(rows, dim)).astype(np.uint8)
    starts = {"row": None, "table": [0], "groups": [0, 1, rows - 1]}[kind]
    count = rows if starts is None else len(starts)
    scale, bias = rng.normal(size=(2, count)).astype(np.float32)
    given_bias = None if centred else bias
    if starts is None:
        layout = RowwiseLayout.from_codes(codes, scale, given_bias, bits)
        stored = parameter_type(bits)
        scale, bias = (one.astype(stored).astype(np.float32) for one in (scale, bias))
        group = np.arange(rows)
    else:
        own = np.array(starts) if count > 1 else None
        layout = RowwiseLayout.from_groups(codes, scale, given_bias, bits, own)
        group = np.searchsorted(starts, np.arange(rows), side="right") - 1
    return layout, codes, scale[group], bias[group]


def decode(codes, scale, bias, bits, centred):
    """Entry by entry, each step rounded to float32."""
    rows = np.empty(codes.shape, np.float32)
    for (row, column), code in np.ndenumerate(codes):
        if centred:
            middle = np.float32(int(code) - (2**bits - 1) / 2)
            rows[row, column] = middle * scale[row]
        else:
            product = np.float32(code) * scale[row]
            rows[row, column] = np.float32(product + bias[row])
    return rows


def read_bits(packed, dim, bits):
    """Codes of packed rows, bit by bit."""
    codes = np.zeros((len(packed), dim), np.uint8)
    for (row, column), _ in np.ndenumerate(codes):
        for k in range(bits):
            at = column * bits + k
            bit = int(packed[row, at // 8]) >> at % 8 & 1
            codes[row, column] |= bit << k
    return codes


def test_three_bits_by_hand():
    """Codes 1 to 5 fill 15 bits, of which the third and the last cross or end bytes:
    1 + 2 * 8 + (3 & 3) * 64 = 209, and 0 + 4 * 2 + 5 * 16 = 88.
    """
    codes = np.array([[1, 2, 3, 4, 5]], np.uint8)
    layout = RowwiseLayout.from_codes(codes, np.array([2.0]), np.array([-1.0]), 3)
    assert layout.rows.tolist() == [[209, 88, 0x00, 0x40, 0x00, 0xBC]]
    assert layout.lookup(0).tolist() == [1, 3, 5, 7, 9]
    assert layout.nbytes == 6
    centred = RowwiseLayout.from_codes(codes, np.array([2.0]), None, 3)
    assert centred.rows.tolist() == [[209, 88, 0x00, 0x40]]
    assert centred.lookup(0).tolist() == [-5, -3, -1, 1, 3]


def test_one_bit_by_hand():
    codes = np.array([[1, 0, 0, 1, 1, 0, 0, 0, 1]], np.uint8)
    layout = RowwiseLayout.from_codes(codes, np.array([0.5]), np.array([-0.25]), 1)
    assert layout.rows[0, :2].tolist() == [1 + 8 + 16, 1]
    wanted = [[0.25, -0.25, -0.25, 0.25, 0.25, -0.25, -0.25, -0.25, 0.25]]
    assert layout.lookup([0]).tolist() == wanted


@given(st.sampled_from(BITS), st.integers(1, 40), st.sampled_from(KINDS), st.booleans())
def test_rows_are_what_their_bits_say(bits, dim, kind, centred):
    layout, codes, scale, bias = draw(bits, dim, kind, centred)
    assert layout.centred == centred
    packed = layout.rows[:, : code_bytes(dim, bits)]
    np.testing.assert_array_equal(read_bits(packed, dim, bits), codes)
    found = layout.lookup(np.arange(ROWS))
    np.testing.assert_array_equal(found, decode(codes, scale, bias, bits, centred))


@given(st.sampled_from(BITS), st.integers(1, 70), st.sampled_from(KINDS), st.booleans())
def test_bytes_are_those_of_the_file_and_codes_take_their_bits(
    tmp_path_factory, bits, dim, kind, centred
):
    layout, *_ = draw(bits, dim, kind, centred)
    path = tmp_path_factory.getbasetemp() / "rowwise"
    layout.save(path)
    loaded, held = load_layout(path), path.read_bytes()
    head = 8 + int.from_bytes(held[:8], "little")
    assert loaded.nbytes == layout.nbytes == len(held) - head
    assert loaded.bits == bits and loaded.centred == centred
    ids = np.arange(ROWS)
    np.testing.assert_array_equal(loaded.lookup(ids), layout.lookup(ids))
    wanted = ROWS * -(-dim * bits // 8)
    if kind == "row":
        wanted += ROWS * (2 - centred) * (4 if bits == 8 else 2)
        assert wanted == ROWS * row_bytes(dim, bits, centred)
    else:
        wanted += (8 - 4 * centred) * (1 if kind == "table" else 3)
        wanted += 8 * 3 * (kind == "groups")
    assert layout.nbytes == wanted


COMPILED = [
    *((3, dim, "row", False) for dim in (1, 5, 12, 27, 64)),
    (3, 12, "row", True), (3, 27, "row", True), (3, 27, "table", False),
    (3, 12, "groups", True), (1, 5, "row", False), (1, 12, "row", True),
    (1, 27, "table", False),
]  # fmt: skip


@pytest.mark.skipif(find_compiler() is None, reason="no compiler")
@pytest.mark.parametrize(("bits", "dim", "kind", "centred"), COMPILED)
def test_compiled_code_reads_what_numpy_reads(bits, dim, kind, centred):
    ids, offsets = np.array([5, 0, 3, 3, 1]), np.array([0, 2, 2])
    layout, codes, scale, bias = draw(bits, dim, kind, centred)
    wanted = decode(codes, scale, bias, bits, centred)
    assert layout.prepare()
    np.testing.assert_array_equal(layout.lookup(ids), wanted[ids])
    bags = layout.bag(ids, offsets)
    np.testing.assert_array_equal(bags[0], wanted[5] + wanted[0])
    assert not bags[1].any()
    np.testing.assert_allclose(bags[2], wanted[[3, 3, 1]].sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", BITS)
def test_a_row_is_replaced_by_the_rule_of_its_bits(bits):
    layout, *_ = draw(bits, 7)
    before = layout.lookup(np.arange(ROWS))
    row = np.linspace(-1, 2, 7, dtype=np.float32)[None]
    update_rows(layout, np.array([4]), row)
    codes, scale, bias = quantize_rows(row, bits)
    wide = scale.astype(np.float32), bias.astype(np.float32)
    wanted = decode(codes, *wide, bits, centred=False)
    np.testing.assert_array_equal(layout.lookup([4]), wanted)
    others = [0, 1, 2, 3, 5]
    np.testing.assert_array_equal(layout.lookup(others), before[others])


# -- what is refused ---------------------------------------------------------


@pytest.mark.parametrize("bits", [0, 5, 6, 7, 9, 16, -1])
def test_other_numbers_of_bits_are_refused(bits):
    codes = np.zeros((2, 8), np.uint8)
    with pytest.raises(ValueError, match=r"one of \(8, 4, 3, 2, 1\), got"):
        RowwiseLayout.from_groups(codes, np.ones(1), np.zeros(1), bits)
    with pytest.raises(ValueError, match=r"one of \(8, 4, 3, 2, 1\), got"):
        RowwiseLayout(np.zeros((2, 8), np.uint8), 8, bits)


@pytest.mark.parametrize("bits", [3, 1])
def test_rows_of_another_width_are_refused(bits):
    layout, *_ = draw(bits, 9)
    for wrong in (layout.rows[:, :-1], layout.rows.astype(np.int8), layout.rows[0]):
        with pytest.raises(ValueError, match="rows must be uint8 of shape"):
            RowwiseLayout(wrong, 9, bits)
    tail = layout.rows.copy()
    tail[3, -3:-1] = 0xFF  # a scale or a bias that is no number
    with pytest.raises(ValueError, match="those of row 3 are NaN or infinite"):
        RowwiseLayout(tail, 9, bits)


@pytest.mark.parametrize("bits", [3, 1])
def test_fbgemm_says_which_bits_it_knows(bits):
    layout, *_ = draw(bits, 16)
    with pytest.raises(ValueError, match=f"8, 4 or 2 bits .* not a rowwise {bits}-bit"):
        pack_fbgemm(layout)


def test_files_of_before_are_read_as_they_were(tmp_path):
    """Neither the version nor the bytes of 8, 4 and 2 bits have changed."""
    assert RowwiseLayout.version == 2
    for bits in (8, 4, 2):
        layout = compress(np.eye(4, dtype=np.float32), "rowwise", bits=bits)
        codes = {8: [255, 0, 0, 0], 4: [15, 0], 2: [3]}[bits]
        tail = np.array([1 / (2**bits - 1), 0], parameter_type(bits)).view(np.uint8)
        assert layout.rows[0].tolist() == [*codes, *tail]
