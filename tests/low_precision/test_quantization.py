"""Row-wise quantisation: PyTorch's bytes, and what rounding must obey."""

import tracemalloc

import numpy as np
import pytest
import torch

from survey_code import compress, load_layout
from survey_code.bits import pack_codes, unpack_codes
from survey_code.catalog import get_method
from survey_code.layouts import RowwiseLayout
from survey_code.layouts.rowwise import code_bytes, parameter_type, row_bytes
from survey_code.low_precision.quantization import (
    half,
    quantize_rows,
    quantize_table,
    rowwise,
    search_range,
)
from survey_code.spec import TableSpec

# PyTorch's, and all.
BITS = (8, 4, 2)
ALL_BITS = (8, 4, 3, 2, 1)
NAMES = {8: "byte", 4: "4bit", 2: "2bit"}


def torch_op(bits, name):
    return getattr(torch.ops.quantized, f"embedding_bag_{NAMES[bits]}_{name}")


def split_rows(layout):
    """Codes (rows, dim), scale and bias (rows, 1) of all rows, from their bytes."""
    width = code_bytes(layout.embedding_dim, layout.bits)
    codes = unpack_codes(layout.rows[:, :width], layout.embedding_dim, layout.bits)
    tail = layout.rows[:, width:].copy().view(parameter_type(layout.bits))
    return codes, tail[:, :1].astype(np.float32), tail[:, 1:].astype(np.float32)


def normal(rows, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def constant(dim):
    values = [
        0.0,
        1.0,
        -1.0,
        0.1,
        -0.1,
        1e-6,
        -1e-9,
        1 / 3,
        -123.456,
        65504.0,
        -65504.0,
    ]
    return np.repeat(np.array(values, np.float32)[:, None], dim, axis=1)


KINDS = {
    "normal": lambda dim: normal(40, dim),
    "tiny": lambda dim: normal(20, dim) * np.float32(1e-4),
    "below float16": lambda dim: normal(20, dim) * np.float32(1e-8),
    "large": lambda dim: np.clip(normal(20, dim) * 2e4, -65504, 65504),
    "beyond float16": lambda dim: np.clip(normal(20, dim) * 5e4, -65504, 120_000),
    "0 to 100,000": lambda dim: (
        np.abs(normal(20, dim)) % 1 * 1e5 * (np.arange(dim) > 0)
    ),
    "positive": lambda dim: np.abs(normal(20, dim)) + np.float32(0.01),
    "negative": lambda dim: -np.abs(normal(20, dim)) - np.float32(0.01),
    "far from zero": lambda dim: normal(20, dim) * np.float32(1e-3) + np.float32(7.7),
    "constant": constant,
    "two values": lambda dim: np.sign(normal(20, dim)) * np.float32(65504),
    "mostly zero": lambda dim: np.maximum(normal(20, dim), 0),
    "negative zero": lambda dim: -np.maximum(normal(20, dim) - 9, 0),
    "one outlier": lambda dim: np.where(np.arange(dim) == 0, 99, normal(20, dim)),
}


def accepted(bits, dim):
    """PyTorch packs whole bytes only."""
    return dim * bits % 8 == 0


# -- PyTorch's bytes ---------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_pytorchs_byte_for_byte_at_every_dimension(kind, bits):
    for dim in range(1, 257):
        table = KINDS[kind](dim).astype(np.float32)
        layout = compress(table, "rowwise", bits=bits)
        assert layout.rows.shape == (len(table), row_bytes(dim, bits))
        if accepted(bits, dim):
            wanted = torch_op(bits, "prepack")(torch.from_numpy(table)).numpy()
            np.testing.assert_array_equal(layout.rows, wanted, err_msg=f"dim {dim}")


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", KINDS)
def test_lookup_is_pytorchs_unpack(kind, bits):
    for dim in (4, 8, 20, 64):
        layout = compress(KINDS[kind](dim), "rowwise", bits=bits)
        wanted = torch_op(bits, "unpack")(torch.from_numpy(layout.rows)).numpy()
        found = layout.lookup(np.arange(len(wanted)))
        # Where scale * code and bias cancel, a fused multiply-add differs in the
        # last bit of the bias.
        tolerance = 1e-6 * np.abs(wanted).max()
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=tolerance)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("weighted", [False, True])
def test_bag_is_pytorchs_quantized_embedding_bag(bits, weighted):
    layout = compress(normal(30, 16), "rowwise", bits=bits)
    rng = np.random.default_rng(5)
    ids, offsets = rng.integers(30, size=20), np.array([0, 4, 4, 9, 19])
    weights = rng.normal(size=20).astype(np.float32) if weighted else None
    wanted = torch_op(bits, "rowwise_offsets")(
        torch.from_numpy(layout.rows),
        torch.from_numpy(ids),
        torch.from_numpy(offsets),
        per_sample_weights=torch.from_numpy(weights) if weighted else None,
    )
    found = layout.bag(ids, offsets, weights)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("first", [0.0, -0.0])
def test_of_two_zeros_the_first_is_the_minimum(first, bits):
    """PyTorch's own choice depends on dimension and processor; ours must not."""
    for dim in range(2, 70):
        row = np.full((1, dim), -first, dtype=np.float32)
        row[0, 0] = first
        layout = compress(row, "rowwise", bits=bits)
        _, _, bias = split_rows(layout)
        assert np.signbit(bias) == np.signbit(first)


def test_pytorchs_rows_are_a_layout_as_they_are():
    rows = torch_op(4, "prepack")(torch.from_numpy(normal(9, 6))).numpy()
    layout = RowwiseLayout(rows, 6, 4)
    wanted = compress(normal(9, 6), "rowwise", bits=4)
    np.testing.assert_array_equal(layout.lookup([2, 8]), wanted.lookup([2, 8]))


@pytest.mark.parametrize("bits", BITS)
def test_dimensions_that_pytorch_refuses_agree_with_padded_ones(bits):
    for dim in range(1, 40):
        table = normal(10, dim)
        # Repeating the first column changes neither minimum nor maximum.
        padded = np.pad(table, ((0, 0), (0, -dim % 4)), mode="edge")
        found = compress(table, "rowwise", bits=bits).lookup(np.arange(10))
        wanted = compress(padded, "rowwise", bits=bits).lookup(np.arange(10))
        np.testing.assert_array_equal(found, wanted[:, :dim])


@pytest.mark.parametrize("bits", ALL_BITS)
def test_constant_rows_come_back(bits):
    table = constant(8)
    layout = compress(table, "rowwise", bits=bits)
    found = layout.lookup(np.arange(len(table)))
    if bits == 8:
        np.testing.assert_array_equal(found, table)
        return
    # The bias alone would be off by half a step of float16, 2**-11; a scale that
    # may be negative mends it to within float16's step of that remainder.
    _, scale, bias = split_rows(layout)
    assert (scale < 0).any()
    error = np.abs(found - table)
    assert (error <= 2.0**-11 * np.abs(table - bias) + 2.0**bits * 2.0**-25).all()


@pytest.mark.parametrize("bits", (4, 2))
@pytest.mark.parametrize("key", ["rowwise", "greedy"])
def test_what_must_fit_float16_are_scale_and_bias(key, bits):
    """Not the values: PyTorch packs them too."""
    most = (2**bits - 1) * 65504.0
    for row in ([0.0, 100_000, 40_000, 7], [0.0, most, 1, 2], [-65504.0, 9, 99_999, 3]):
        layout = compress([row], key, bits=bits)
        if key == "rowwise":
            wanted = torch_op(bits, "prepack")(torch.tensor([row])).numpy()
            np.testing.assert_array_equal(layout.rows, wanted)
        error = np.abs(layout.lookup([0]) - row)[0]
        span = max(row) - min(row)
        assert error.max() <= 0.16 * span + span / (2**bits - 1) / 2
    for row in (
        [0.0, most * 1.001, 1, 2],
        [-65520.0, 0, 1, 2],
        [65520.0, 7e4, 7e4, 7e4],
    ):
        with pytest.raises(ValueError, match="float16, which holds values up to 65504"):
            compress([row], key, bits=bits)
    with pytest.raises(ValueError, match="float16, which holds values up to 65504"):
        limit = 65520.0 if bits == 2 else 57_400.0
        compress([[limit, 0.0, 1.0, 2.0]], "rowwise", bits=bits, symmetric=True)


FAR = (1e38, 1.6e38, 2e38, 3e38, 3.4028234e38)


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("rowwise", {}),
        ("rowwise", {"symmetric": True}),
        ("rowwise", {"per": "table"}),
        ("rowwise", {"per": "table", "symmetric": True}),
        ("greedy", {}),
        ("greedy", {"rule": "pytorch"}),
    ],
)
def test_finite_tables_are_read_as_finite_rows_or_refused(key, options, bits):
    made = 0
    for size in (*FAR, 1e30, 1e-30, 1e-38, 1e-45):
        rows = [[size, -size, 0, 0.4 * size], [size, 0, 0, 0], [size] * 4, [-size] * 4]
        for row in rows:
            try:
                layout = compress([row], key, bits=bits, **options)
            except ValueError as error:
                assert "float" in str(error) and size > 1
                continue
            made += 1
            found = layout.lookup([0])
            assert np.isfinite(found).all()
            # Steps of float16, and the constant in PyTorch's rule at 8 bits.
            assert np.abs(found - row).max() <= 1.7 * size / (2 ** (bits - 1)) + 1e-7
    assert made >= 12


def test_a_range_beyond_float32_is_a_value_error():
    with pytest.raises(ValueError, match="overflows float32"):
        compress([[3e38, -3e38]], "rowwise", bits=8)
    with pytest.raises(ValueError, match="overflows float32"):
        compress([[2e38, 0]], "rowwise", bits=8, symmetric=True)


@pytest.mark.parametrize("bits", [0, 5, 7, 16, -8, 4.0, "4", True, [4]])
def test_other_numbers_of_bits_are_a_value_error(bits):
    with pytest.raises(ValueError, match="bits must be one of"):
        compress(normal(2, 4), "rowwise", bits=bits)


@pytest.mark.parametrize(("key", "bits"), [("rowwise", 8), ("greedy", 4)])
def test_bits_that_nobody_asks_for_are_the_default(key, bits):
    layout = compress(normal(2, 4), key, bits=None)
    assert layout.bits == bits
    np.testing.assert_array_equal(layout.rows, compress(normal(2, 4), key).rows)


# -- what rounding must obey -------------------------------------------------


def test_error_is_at_most_half_a_step_at_8_bits():
    """|x - Q(x)| <= s / 2, up to float32's own rounding."""
    table = normal(500, 33)
    layout = compress(table, "rowwise", bits=8)
    _, scale, _ = split_rows(layout)
    error = np.abs(layout.lookup(np.arange(500)) - table)
    slack = 4 * np.finfo(np.float32).eps * np.abs(table).max()
    assert (error <= scale / 2 + slack).all()
    assert (error / scale).max() > 0.49


@pytest.mark.parametrize("bits", (4, 2))
def test_error_is_at_most_half_a_step_where_float16_is_exact(bits):
    """|x - Q(x)| <= s / 2 for rows whose minimum and step float16 holds."""
    top = 2**bits - 1
    codes = np.random.default_rng(0).uniform(0, top, size=(200, 20))
    codes[:, 0], codes[:, 1] = 0, top
    table = (codes * 0.25 - 1.5).astype(np.float32)
    found = compress(table, "rowwise", bits=bits).lookup(np.arange(200))
    assert np.abs(found - table).max() <= 0.125 + 1e-6


@pytest.mark.parametrize("bits", (4, 2))
def test_float16_parameters_add_at_most_their_own_rounding(bits):
    """s / 2, and 2**-11 of the bias and of the whole range."""
    table = normal(500, 32) * np.float32(3)
    layout = compress(table, "rowwise", bits=bits)
    _, scale, bias = split_rows(layout)
    error = np.abs(layout.lookup(np.arange(500)) - table)
    bound = scale / 2 + 2.0**-11 * (np.abs(bias) + 2**bits * scale) + 1e-6
    assert (error <= bound).all()


@pytest.mark.parametrize("dim", [16, 64, 256])
def test_mean_square_error_is_1_minus_2_over_d_times_s_squared_over_12(dim):
    """Minimum and maximum of each row are exact, the others uniform in a step."""
    table = normal(4000, dim)
    codes, scale, bias = quantize_rows(table, bits=8)
    decoded = codes * scale[:, None].astype(np.float64) + bias[:, None]
    ratio = ((decoded - table) ** 2).mean() / (scale.astype(float) ** 2 / 12).mean()
    assert ratio == pytest.approx(1 - 2 / dim, rel=0.01)


@pytest.mark.parametrize(
    ("few", "many", "gain"), [(2, 4, 13.98), (4, 8, 24.61)], ids=["2 to 4", "4 to 8"]
)
def test_more_bits_gain_20_log10_of_the_steps_ratio(few, many, gain):
    """20 log10(15 / 3) = 13.98 dB and 20 log10(255 / 15) = 24.61 dB."""
    table = normal(2000, 64)
    error = {
        bits: np.square(
            compress(table, "rowwise", bits=bits).lookup(np.arange(2000)) - table
        )
        for bits in (few, many)
    }
    found = 10 * np.log10(error[few].mean() / error[many].mean())
    assert found == pytest.approx(gain, abs=0.1)


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("kind", ["normal", "positive", "negative", "one outlier"])
def test_rounding_twice_changes_nothing(kind, bits):
    """Q(Q(x)) = Q(x), where the bias is no coarser than the step."""
    table = KINDS[kind](12).astype(np.float32)
    ids = np.arange(len(table))
    once = compress(table, "rowwise", bits=bits)
    twice = compress(once.lookup(ids), "rowwise", bits=bits)
    np.testing.assert_array_equal(split_rows(twice)[0], split_rows(once)[0])
    if bits == 8:
        np.testing.assert_allclose(twice.lookup(ids), once.lookup(ids), atol=1e-5)
    else:
        np.testing.assert_array_equal(twice.lookup(ids), once.lookup(ids))


@pytest.mark.parametrize("bits", ALL_BITS)
def test_rounding_keeps_the_order_within_a_row(bits):
    """x <= y gives Q(x) <= Q(y)."""
    table = np.sort(normal(300, 40), axis=1)
    found = compress(table, "rowwise", bits=bits).lookup(np.arange(300))
    assert (np.diff(found, axis=1) >= 0).all()


@pytest.mark.parametrize("bits", ALL_BITS)
def test_a_range_per_row_beats_one_range_for_the_table(bits):
    """Row-wise mean square error <= table-wise, for rows of different spread."""
    spread = np.exp(normal(300, 1, seed=1))
    table = normal(300, 16) * spread
    by_row = compress(table, "rowwise", bits=bits).lookup(np.arange(300))
    as_one_row = compress(table.reshape(1, -1), "rowwise", bits=bits)
    by_table = as_one_row.lookup([0]).reshape(table.shape)
    assert np.square(by_row - table).sum() < np.square(by_table - table).sum() / 2


def test_tiny_ranges_at_8_bits_lose_at_most_1e_8():
    """The 1e-8 in 255 / (range + 1e-8) shrinks codes where the range is tiny."""
    table = normal(50, 8) * np.float32(1e-9)
    found = compress(table, "rowwise", bits=8).lookup(np.arange(50))
    assert np.abs(found - table).max() <= 1e-8


# -- packing and bytes -------------------------------------------------------


@pytest.mark.parametrize("bits", (8, 4, 2, 1))
def test_packing_is_a_bijection(bits):
    rng = np.random.default_rng(0)
    for dim in range(1, 20):
        codes = rng.integers(2**bits, size=(30, dim)).astype(np.uint8)
        packed = pack_codes(codes, bits)
        assert packed.shape == (30, -(-dim * bits // 8))
        np.testing.assert_array_equal(unpack_codes(packed, dim, bits), codes)
    everything = np.arange(256, dtype=np.uint8)[:, None]
    codes = unpack_codes(everything, 8 // bits, bits)
    np.testing.assert_array_equal(pack_codes(codes, bits), everything)


@pytest.mark.parametrize("bits", (4, 2, 1))
def test_low_bits_come_first_and_padding_is_zero(bits):
    codes = np.zeros((1, 8 // bits + 1), np.uint8)
    codes[0, 0] = codes[0, -1] = 1
    np.testing.assert_array_equal(pack_codes(codes, bits), [[1, 1]])


@pytest.mark.parametrize(
    ("bits", "share", "overhead"), [(8, 0.25, 2), (4, 0.125, 1), (2, 0.0625, 1)]
)
def test_bytes_are_bits_over_32_and_overhead_over_d(bits, share, overhead):
    """4 bits keep 0.125 + 1 / d of a float32 table."""
    for dim in (8, 16, 64):
        layout = compress(normal(10, dim), "rowwise", bits=bits)
        assert layout.nbytes / (4 * 10 * dim) == share + overhead / dim


@pytest.mark.parametrize("dim", [3, 8, 16, 64])
def test_plan_takes_the_most_bits_that_fit(dim):
    spec, method = TableSpec.of_shape(100, dim), get_method("rowwise")
    for bits, more in zip(BITS, (None, 8, 4)):
        reached = spec.full_bytes / (100 * row_bytes(dim, bits))
        if reached < 1:
            continue
        assert method.plan(spec, reached).bits == bits
        if more and spec.full_bytes / (100 * row_bytes(dim, more)) >= 1:
            just_more = spec.full_bytes / (100 * row_bytes(dim, more))
            assert method.plan(spec, just_more * 1.001).bits == bits
    with pytest.raises(ValueError, match="rowwise: ratio 30"):
        method.plan(spec, 30)
    with pytest.raises(ValueError, match="highest ratio it can reach"):
        method.plan(spec, 30, bits=8)


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_of_another_shape_are_a_value_error(bits):
    rows = compress(normal(3, 6), "rowwise", bits=bits).rows
    for wrong in (rows[:, :-1], rows.astype(np.int8), rows[0], None):
        with pytest.raises(ValueError):
            RowwiseLayout(wrong, 6, bits)


# -- one scale for a table, and codes symmetric about 0 -----------------------


@pytest.mark.parametrize("bits", ALL_BITS[:-1])
@pytest.mark.parametrize("per", ["row", "table"])
def test_symmetric_codes_keep_zero_and_turn_with_the_sign(bits, per):
    """Q(0) = 0 and Q(-x) = -Q(x): what min-max rounding cannot promise."""
    table = normal(60, 9)
    table[:, 4] = 0
    read = [
        compress(x, "rowwise", bits=bits, symmetric=True, per=per).lookup(range(60))
        for x in (table, -table)
    ]
    assert (read[0][:, 4] == 0).all()
    # The bias is 128 steps, and float32 rounds the sum with it.
    np.testing.assert_allclose(read[0], -read[1], rtol=0, atol=2e-6)


@pytest.mark.parametrize("bits", ALL_BITS[:-1])
def test_symmetric_error_is_at_most_half_a_step(bits):
    """|x - Q(x)| <= s / 2 with s = max|x| / (2**(bits - 1) - 1)."""
    table = normal(300, 16)
    found = compress(table, "rowwise", bits=bits, symmetric=True).lookup(range(300))
    step = np.abs(table).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    # float16 rounds the step by 2**-11, which the largest code multiplies.
    slack = 0 if bits == 8 else 2.0**-11 * 2 ** (bits - 1)
    error = np.abs(found - table) / step
    assert error.max() <= 0.5 + slack + 1e-4 and error.max() > 0.49


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_one_scale_per_table_is_stored_once(bits, symmetric):
    table = normal(50, 16)
    layout = compress(table, "rowwise", bits=bits, per="table", symmetric=symmetric)
    assert layout.nbytes == 50 * 16 * bits // 8 + 8
    error = np.abs(layout.lookup(range(50)) - table)
    assert error.max() <= layout.parameters[0, 0] / 2 * (1 + 1e-4)
    plan = get_method("rowwise").plan
    spec, ratio = TableSpec.of_shape(50, 16), 3200 / layout.nbytes
    own = {"per": "table", "bits": None if bits in BITS else bits}
    options = plan(spec, ratio, **own)
    assert (options.bits, options.per) == (bits, "table")


def test_a_table_scale_is_the_row_scale_of_the_flattened_table():
    table = normal(40, 8)
    codes, scale, bias = quantize_table(table, 8)
    flat, flat_scale, flat_bias = quantize_rows(table.reshape(1, -1), 8)
    np.testing.assert_array_equal(codes.ravel(), flat.ravel())
    assert scale == flat_scale and bias == flat_bias


@pytest.mark.parametrize("per", ["row", "table"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", ALL_BITS)
def test_zeros_come_back_as_zeros(bits, symmetric, per):
    options = {"bits": bits, "symmetric": symmetric, "per": per}
    layout = compress(np.zeros((3, 5)), "rowwise", **options)
    assert not layout.lookup(range(3)).any()


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_table_range_beyond_float32_is_a_value_error(symmetric):
    options = {"symmetric": symmetric, "per": "table"}
    with pytest.raises(ValueError, match="overflows float32"):
        compress([[3.4e38, -3.4e38]], "rowwise", **options)


def test_unknown_owners_of_a_scale_are_a_value_error():
    with pytest.raises(ValueError, match=r"per must be one of .* got 'column'"):
        compress(normal(2, 4), "rowwise", per="column")


def test_groups_of_rows_read_their_own_scale():
    codes = np.arange(12, dtype=np.uint8).reshape(6, 2)
    scale = np.array([1, 10, 100], np.float32)
    layout = RowwiseLayout.from_groups(codes, scale, -scale, 4, np.array([0, 1, 4]))
    wanted = np.array([1, 10, 10, 10, 100, 100])[:, None] * (codes - 1.0)
    np.testing.assert_array_equal(layout.lookup(range(6)), wanted)
    assert layout.nbytes == 6 + 3 * (8 + 8)


@pytest.mark.parametrize("starts", [None, [1, 2], [0, 6], [0, 0], [0], [0.0, 1.0]])
def test_groups_that_cannot_be_are_value_errors(starts):
    scale = np.ones(2, np.float32)
    starts = None if starts is None else np.array(starts)
    with pytest.raises(ValueError, match="starts"):
        codes = np.zeros((6, 2), np.uint8)
        RowwiseLayout.from_groups(codes, scale, scale, 8, starts)


# -- centred rows: a scale and no bias -------------------------------------------------


def centred(bits, dim, rows=30, shared=False):
    """A centred layout, and what it stands for."""
    rng = np.random.default_rng(dim)
    codes = rng.integers(2**bits, size=(rows, dim)).astype(np.uint8)
    scale = rng.normal(size=1 if shared else rows).astype(np.float32)
    kind = np.float32 if shared else parameter_type(bits)
    steps = scale.astype(kind).astype(np.float32)[:, None]
    make = RowwiseLayout.from_groups if shared else RowwiseLayout.from_codes
    wanted = (codes - np.float32((2**bits - 1) / 2)) * steps
    return make(codes, scale, None, bits), wanted


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("bits", ALL_BITS)
def test_centred_rows_have_no_bias_and_as_many_codes_on_both_sides(
    bits, shared, tmp_path
):
    for dim in (1, 3, 16, 33):
        layout, wanted = centred(bits, dim, shared=shared)
        tail = 4 if shared else 30 * parameter_type(bits).itemsize
        assert layout.centred and layout.nbytes == 30 * code_bytes(dim, bits) + tail
        np.testing.assert_array_equal(layout.lookup(range(30)), wanted)
        ids, offsets = np.arange(60) % 30, np.array([0, 7, 7, 20])
        bags = np.stack([part.sum(0) for part in np.split(wanted[ids], offsets[1:])])
        np.testing.assert_allclose(
            layout.bag(ids, offsets), bags, rtol=1e-5, atol=1e-5 * np.abs(bags).max()
        )
        layout.save(tmp_path / "centred")
        again = load_layout(tmp_path / "centred")
        assert again.centred and again.nbytes == layout.nbytes
        np.testing.assert_array_equal(again.lookup(range(30)), wanted)


@pytest.mark.parametrize(("bits", "ratio"), [(8, 3.2), (4, 6.4), (2, 32 / 3)])
def test_centred_rows_take_half_the_parameters(bits, ratio):
    layout, _ = centred(bits, 16)
    assert 30 * 16 * 4 / layout.nbytes == pytest.approx(ratio)


def test_groups_of_centred_rows_read_their_own_scale():
    codes = np.arange(12, dtype=np.uint8).reshape(6, 2)
    scale = np.array([1, 10, 100], np.float32)
    layout = RowwiseLayout.from_groups(codes, scale, None, 4, np.array([0, 1, 4]))
    wanted = np.array([1, 10, 10, 10, 100, 100])[:, None] * (codes - 7.5)
    np.testing.assert_array_equal(layout.lookup(range(6)), wanted)
    assert layout.nbytes == 6 + 3 * (4 + 8)


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_centred_scales_that_are_not_finite_are_value_errors(bits, wrong):
    codes, scale = np.zeros((3, 4), np.uint8), np.array([1, wrong, 1], np.float32)
    with pytest.raises(ValueError, match="row 1 are NaN or infinite"):
        RowwiseLayout.from_codes(codes, scale, None, bits)
    with pytest.raises(ValueError, match="finite"):
        RowwiseLayout.from_groups(codes, scale[1:2], None, bits)


# -- one bit, and 3 --------------------------------------------------------------------


@pytest.mark.parametrize("per", ["row", "table"])
def test_a_single_bit_says_which_end_is_nearer(per):
    table = np.array([[-1, -0.5, 0.5, 3], [0, 1, 2, 2]], np.float32)
    found = compress(table, "rowwise", bits=1, per=per).lookup([0, 1])
    wanted = [[-1, -1, -1, 3], [0, 0, 2, 2]]  # halfway, to the even code
    if per == "table":  # whose ends are -1 and 3, and 1 lies halfway
        wanted = [[-1, -1, -1, 3], [-1, -1, 3, 3]]
    assert found.tolist() == wanted


@pytest.mark.parametrize("per", ["row", "table"])
def test_a_symmetric_bit_is_a_sign(per):
    table = normal(40, 9)
    found = compress(table, "rowwise", bits=1, symmetric=True, per=per).lookup(
        range(40)
    )
    largest = np.abs(table).max(axis=1 if per == "row" else None, keepdims=True)
    np.testing.assert_array_equal(np.sign(found), np.where(table >= 0, 1, -1))
    np.testing.assert_allclose(
        np.abs(found), np.broadcast_to(largest, table.shape), rtol=2.0**-11
    )


def test_three_bits_of_a_ramp_are_the_ramp():
    table = np.arange(8, dtype=np.float32)[None] * 0.5 - 1
    layout = compress(table, "rowwise", bits=3)
    # Codes 0 to 7, low bits first: 0b111_110_101_100_011_010_001_000.
    assert layout.rows[0].tolist()[:3] == list(0xFAC688.to_bytes(3, "little"))
    np.testing.assert_array_equal(layout.lookup([0]), table)


def test_plans_choose_among_pytorchs_bits_unless_they_are_asked():
    """At 64 columns 3 bits reach 9.1x, and 1 bit 21x."""
    spec, method = TableSpec.of_shape(100, 64), get_method("rowwise")
    for ratio, bits in ((3, 8), (7, 4), (9, 2), (12, 2)):
        assert method.plan(spec, ratio).bits == bits
    assert method.plan(spec, 9, bits=3).bits == 3
    assert method.plan(spec, 21, bits=1).bits == 1
    with pytest.raises(ValueError, match=r"highest ratio it can reach is 12\.8"):
        method.plan(spec, 13)


# -- lengths -------------------------------------------------------------------------


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("key", ["rowwise", "greedy", "symmetric"])
@pytest.mark.parametrize("kind", ["normal", "positive", "mostly zero", "one outlier"])
def test_rows_keep_their_lengths_up_to_float16(kind, key, bits):
    """Scale and bias are rounded by 2**-11 each, and so is what they make."""
    table = KINDS[kind](24).astype(np.float32)
    options = {"symmetric": True} if key == "symmetric" else {}
    key = "rowwise" if options else key
    plain = compress(table, key, bits=bits, **options)
    kept = compress(table, key, bits=bits, keep_norms=True, **options)
    assert kept.nbytes == plain.nbytes
    codes, scale, bias = split_rows(kept)
    np.testing.assert_array_equal(codes, split_rows(plain)[0])
    wanted, before, found = (
        np.linalg.norm(rows.astype(np.float64), axis=1)
        for rows in (
            table,
            plain.lookup(range(len(table))),
            kept.lookup(range(len(table))),
        )
    )
    slack = np.linalg.norm(codes * np.abs(scale) + np.abs(bias), axis=1)
    unit = 2.0**-11 if bits < 8 else 2.0**-23
    assert (np.abs(found - wanted) <= unit * slack * 1.01 + 1e-7).all()
    assert bits == 8 or np.abs(before / wanted - 1).mean() > 2e-4
    # All in the direction that they had.
    shown = kept.lookup(range(len(table))) * (before / found)[:, None]
    assert (
        np.abs(shown - plain.lookup(range(len(table)))).max() <= 4 * unit * slack.max()
    )


def test_a_bit_that_keeps_lengths_is_a_sign_times_the_root_mean_square():
    table = normal(30, 16)
    layout = compress(table, "rowwise", bits=1, symmetric=True, keep_norms=True)
    wanted = np.sqrt(np.square(table).mean(axis=1, keepdims=True)) * np.sign(table)
    np.testing.assert_allclose(layout.lookup(range(30)), wanted, rtol=1e-3)


def test_rows_without_a_length_stay_zeros_and_shared_scales_keep_none():
    table = np.zeros((3, 4), np.float32)
    table[1] = [0, 1e-9, 0, 0]  # below what float16 holds: read as zeros
    for options in ({}, {"symmetric": True}):
        layout = compress(table, "rowwise", bits=2, keep_norms=True, **options)
        assert not layout.lookup([0, 2]).any()
        assert np.isfinite(layout.lookup([1])).all()
    for call in (
        lambda **asked: compress(table, "rowwise", **asked),
        lambda **asked: get_method("rowwise").plan(
            TableSpec.of_shape(3, 4), 1, **asked
        ),
    ):
        with pytest.raises(ValueError, match=r"keep_norms needs a scale for each row"):
            call(bits=4, per="table", keep_norms=True)


# -- memory ----------------------------------------------------------------------------

MEMORY = [
    ("rowwise", {"bits": 8}),
    ("rowwise", {"bits": 4, "symmetric": True}),
    ("rowwise", {"bits": 2, "per": "table"}),
    ("half", {}),
    ("half", {"dtype": "bfloat16"}),
    ("greedy", {"bits": 4}),
]


@pytest.fixture(scope="module")
def mapped_table(tmp_path_factory):
    """16 MiB of rows in a file."""
    path = tmp_path_factory.mktemp("mapped") / "table.npy"
    np.save(path, np.random.default_rng(0).random((65_536, 64), dtype=np.float32))
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize(("key", "options"), MEMORY)
def test_memory_grows_by_the_layout_and_little_more(mapped_table, key, options):
    """Work is done some rows at a time; whole temporary arrays would be 16 MiB."""
    table = mapped_table[:2048] if key == "greedy" else mapped_table
    compress(table[:9], key, **options)
    tracemalloc.start()
    try:
        layout = compress(table, key, **options)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A few arrays of 2**18 numbers.
    assert peak - layout.nbytes < (8 * 2**20 if key != "greedy" else 2**20)


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_pieces_of_rows_change_no_bit(dtype, rounding, monkeypatch):
    table, options = normal(50, 7), {"dtype": dtype, "rounding": rounding}
    wanted = {
        "half": compress(table, "half", **options),
        "rows": compress(table, "rowwise", bits=4),
        "shared": compress(table, "rowwise", bits=2, per="table"),
    }
    monkeypatch.setattr("survey_code.layouts.dense.TOGETHER", 30)
    monkeypatch.setattr(half, "TOGETHER", 30)
    monkeypatch.setattr(rowwise, "ROUNDED_TOGETHER", 30)
    found = compress(table, "half", **options)
    np.testing.assert_array_equal(found.values, wanted["half"].values)
    found = compress(table, "rowwise", bits=4)
    np.testing.assert_array_equal(found.rows, wanted["rows"].rows)
    found = compress(table, "rowwise", bits=2, per="table")
    np.testing.assert_array_equal(found.rows, wanted["shared"].rows)


# -- greedy range search -------------------------------------------------------


@pytest.mark.parametrize("bits", (4, 2))
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_rows_are_pytorchs_byte_for_byte(kind, bits):
    for dim in (4, 8, 20, 33 * 4, 256):
        table = KINDS[kind](dim).astype(np.float32)
        wanted = torch_op(bits, "prepack")(torch.from_numpy(table), True).numpy()
        layout = compress(table, "greedy", bits=bits, rule="pytorch")
        np.testing.assert_array_equal(layout.rows, wanted, err_msg=f"dim {dim}")


def row_errors(table, key, **options):
    found = compress(table, key, **options).lookup(range(len(table)))
    return np.linalg.norm(found.astype(np.float64) - table, axis=1)


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("kind", ["normal", "positive", "one outlier", "mostly zero"])
def test_the_best_range_beats_the_local_optimum_beats_the_whole_range(kind, bits):
    """Row by row: error(best) <= error(pytorch) <= error(min-max)."""
    table = KINDS[kind](64).astype(np.float32)
    best = row_errors(table, "greedy", bits=bits, rule="best")
    local = row_errors(table, "greedy", bits=bits, rule="pytorch")
    plain = row_errors(table, "rowwise", bits=bits)
    assert (best <= local * (1 + 1e-5)).all() and (local <= plain * (1 + 1e-5)).all()
    assert bits == 8 or best.sum() < plain.sum()


def test_the_search_gains_8_percent_at_4_bits_and_the_published_rule_nothing_at_2():
    table = normal(1000, 64)
    gain = {
        (bits, rule): row_errors(table, "greedy", bits=bits, rule=rule).mean()
        / row_errors(table, "rowwise", bits=bits).mean()
        for bits in (4, 2)
        for rule in ("best", "pytorch")
    }
    assert 0.88 < gain[4, "pytorch"] < 0.95 and 0.88 < gain[4, "best"] < 0.95
    assert gain[2, "pytorch"] > 0.99 and gain[2, "best"] < 0.85


def test_at_1_bit_the_search_goes_to_its_end_and_the_best_ends_lie_further_in():
    """Loss falls all the way, until 84 % of the range is left; half of it is best: for
    normal numbers two levels belong at 0.8 deviations, and 64 of them reach 2.4.
    """
    table = normal(400, 64)
    low, high = search_range(table, 1, "best")
    left = (high - low) / (table.max(axis=1) - table.min(axis=1))
    np.testing.assert_allclose(left, 0.84, atol=0.006)
    error = {
        name: (row_errors(table, key, bits=1, **asked) ** 2).sum() / (table**2).sum()
        for name, key, asked in (
            ("plain", "rowwise", {}),
            ("greedy", "greedy", {}),
            ("kept", "rowwise", {"keep_norms": True}),
        )
    }
    # 1 - 2 / pi = 0.36 is the least that two levels leave of normal numbers.
    assert error["plain"] > error["greedy"] > error["kept"] > 0.36


def search_slowly(row, bits):
    """The path of one row, in Python."""
    low, high = row.min(), row.max()
    step = (high - low) / np.float32(200)

    def loss(low, high):
        bias = np.float32(np.float16(low))
        scale = np.float32(np.float16((high - bias) / np.float32(2**bits - 1)))
        codes = np.clip(np.rint((row - bias) * (1 / scale)), 0, 2**bits - 1)
        return np.linalg.norm(codes * scale + bias - row)

    path = [(loss(low, high), low, high)]
    while low + 168 * step < high:
        left, right = (low + step, high), (low, high - step)
        low, high = left if loss(*left) < loss(*right) else right
        path.append((loss(low, high), low, high))
    return min(path)


@pytest.mark.parametrize("bits", (4, 2))
def test_the_search_is_that_of_a_loop_over_rows(bits):
    table = normal(30, 24, seed=3)
    low, high = search_range(table, bits, "best")
    for row, *ends in zip(table, low, high):
        np.testing.assert_allclose(ends, search_slowly(row, bits)[1:], rtol=1e-6)


def test_chunks_of_rows_change_nothing(monkeypatch):
    table = normal(50, 8)
    whole = compress(table, "greedy", bits=4)
    monkeypatch.setattr(
        "survey_code.low_precision.quantization.greedy.SEARCHED_TOGETHER", 7
    )
    np.testing.assert_array_equal(compress(table, "greedy", bits=4).rows, whole.rows)


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("rule", ["best", "pytorch"])
def test_the_search_ends_where_float32_cannot_take_its_steps(rule, bits):
    """A step below half a unit in the last place moves nothing, for ever."""
    tiny = np.float32(1e-45)  # the smallest number there is
    rows = [[0, 0, 0, tiny], [0, -tiny, tiny, 0], [tiny] * 4, [1e-38, 0, 0, -tiny]]
    for size in (1, 1e-30, 4096, 1e6 if bits < 8 else 1e30):
        for spread in (3e-7, 1e-6, 3e-6, 1e-5, 2.4e-5, 5e-5):
            low = size if size < 1e5 else -60_000.0 if bits < 8 else size
            rows += [[low, low * (1 + spread), low, low * (1 + spread / 3)]]
            rows += [[-x for x in rows[-1]]] if bits == 8 or size < 1e5 else []
    table = np.array(rows, dtype=np.float32)
    layout = compress(table, "greedy", bits=bits, rule=rule)
    plain = row_errors(table, "rowwise", bits=bits)
    assert (row_errors(table, "greedy", bits=bits, rule=rule) <= plain * 1.0001).all()
    np.testing.assert_array_equal(
        layout.rows[:1], compress(table[:1], "greedy", bits=bits, rule=rule).rows
    )


def test_the_search_does_not_depend_on_the_tables_size():
    """Losses are compared in a unit near each row's own: no square overflows."""
    table = normal(20, 16)
    near = row_errors(table, "greedy", bits=8)
    for factor in (2.0**100, 2.0**60):
        far = row_errors(table * np.float32(factor), "greedy", bits=8)
        np.testing.assert_allclose(far, near * factor, rtol=1e-3)


def test_unknown_rules_are_a_value_error():
    with pytest.raises(ValueError, match=r"rule must be one of .* got 'x'"):
        compress(normal(2, 4), "greedy", rule="x")
