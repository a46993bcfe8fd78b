"""Numbers of 8 and 4 bits: torch's casts, a format written out, tables trained."""

import numpy as np
import pytest
import torch

import survey_code
from survey_code import TableSpec, compress
from survey_code.catalog import get_method
from survey_code.data.synthetic import make_clicks
from survey_code.embedding import TrainingStep, decode_layout
from survey_code.layouts import LevelsLayout
from survey_code.low_precision.quantization import HalfPrecision
from survey_code.low_precision.quantization.small_floats import (
    SMALL_FORMATS,
    decode_small_floats,
    encode_small_floats,
    find_powers,
    list_small_floats,
    small_float_bytes,
    two_to,
)
from survey_code.spec import OutOfReach

pytestmark = pytest.mark.usefixtures("one_thread")

TORCHS = {"float8_e4m3": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
SPEC = TableSpec.of_shape(50, 40)


def wide_numbers(rows, dim, most):
    """Numbers of many sizes, none larger than `most`, and one as large."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(rows, dim)) * np.exp2(rng.integers(-20, 17, (rows, dim)))
    table = np.where(np.abs(table) > most, 0, table).astype(np.float32)
    table[0, :3] = most, -0.0, 0.0
    return table


# -- formats -----------------------------------------------------------------


@pytest.mark.parametrize("name", TORCHS)
def test_levels_are_torchs_numbers_code_by_code(name):
    codes = torch.arange(256, dtype=torch.uint8)
    wanted = codes.view(TORCHS[name]).float().numpy()
    found, finite = list_small_floats(SMALL_FORMATS[name]), np.isfinite(wanted)
    np.testing.assert_array_equal(found[finite], wanted[finite])
    np.testing.assert_array_equal(np.signbit(found[finite]), np.signbit(wanted[finite]))
    assert (np.abs(found[~finite]) == np.abs(wanted[finite]).max()).all()


def test_the_sixteen_numbers_of_e2m1_are_written_out():
    # Sign, two bits of exponent, one of mantissa.
    half = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    found = list_small_floats(SMALL_FORMATS["mx4"])
    assert found.tolist() == half + [-one for one in half]


@pytest.mark.parametrize("name", TORCHS)
def test_rounding_is_torchs_cast(name):
    """Of a table whose largest number the format just holds: its power of two is 1."""
    most = SMALL_FORMATS[name].largest
    table = wide_numbers(300, 7, most)
    layout = compress(table, "half", dtype=name)
    cast = torch.from_numpy(table).to(TORCHS[name])
    np.testing.assert_array_equal(layout.rows, cast.view(torch.uint8).numpy())
    np.testing.assert_array_equal(decode_layout(layout), cast.float().numpy())
    for power in (-40, 13):
        scaled = compress(np.ldexp(table, power), "half", dtype=name)
        np.testing.assert_array_equal(scaled.rows, layout.rows)
        wanted = np.ldexp(decode_layout(layout), power)
        np.testing.assert_array_equal(decode_layout(scaled), wanted)


def nearest_even(value, unit):
    """A multiple of a unit, by hand."""
    low = np.floor(value / unit)
    rest = value / unit - low
    return (low + (rest > 0.5 or (rest == 0.5 and low % 2 == 1))) * unit


def test_mx4_is_written_out_number_by_number():
    rng = np.random.default_rng(1)
    table = (rng.normal(size=(40, 70)) * np.exp2(rng.integers(-9, 9, (40, 1)))).astype(
        np.float32
    )
    layout = compress(table, "half", dtype="mx4")
    rows = decode_layout(layout)
    for i, row in enumerate(table):
        for start in (0, 32, 64):
            block = row[start : start + 32].astype(np.float64)
            most = np.abs(block).max()
            power = 2.0 ** (np.floor(np.log2(most)) - 2)  # most is 4 to 8 of it
            if most > 7 * power:  # which 8 is nearer to than 6
                power *= 2
            for j, value in enumerate(np.abs(block) / power):
                unit = 0.5 if value < 2 else 1.0 if value < 4 else 2.0
                wanted = min(nearest_even(value, unit), 6.0) * power
                assert rows[i, start + j] == np.sign(block[j]) * wanted


def test_rows_are_packed_as_mx_has_them():
    """Two codes a byte, the first in the low half, and bytes of powers behind."""
    layout = compress(np.array([[6.0, -0.5, 3.0, 0.0]]), "half", dtype="mx4")
    np.testing.assert_array_equal(layout.rows, [[0x97, 0x05, 127]])
    tiny = compress(np.array([[1.5, -0.125, 0.75, 0.0]]), "half", dtype="mx4")
    np.testing.assert_array_equal(tiny.rows, [[0x97, 0x05, 125]])


@pytest.mark.parametrize("name", SMALL_FORMATS)
def test_rounding_by_chance_is_right_on_average(name):
    form, rng = SMALL_FORMATS[name], np.random.default_rng(0)
    numbers = torch.tensor([[6.9, -5.1, 2.7, 0.03, 0.4, 1.0]])
    rows = numbers.repeat(20_000, 1)
    powers = find_powers(rows, form, "stochastic")
    codes = encode_small_floats(rows, powers, form, "stochastic", rng)
    levels = torch.from_numpy(list_small_floats(form).copy())
    read = levels[codes.long()] * two_to(powers[:1].expand(1, 6))
    for j, value in enumerate(numbers[0].tolist()):
        below, above = read[:, j].min().item(), read[:, j].max().item()
        assert below <= value + 1e-6 and above >= value - 1e-6
        deviation = read[:, j].std().item() / 20_000**0.5
        assert abs(read[:, j].mean().item() - value) < 5 * deviation + 1e-6
        assert len(torch.unique(read[:, j])) <= 2


# -- bytes, errors and options -----------------------------------------------


@pytest.mark.parametrize("name", SMALL_FORMATS)
@pytest.mark.parametrize("dim", [1, 31, 32, 33, 64])
def test_bytes_are_counted_before_there_is_a_table(name, dim):
    form = SMALL_FORMATS[name]
    table = np.random.default_rng(0).normal(size=(30, dim))
    layout = compress(table, "half", dtype=name)
    assert isinstance(layout, LevelsLayout)
    assert layout.nbytes == small_float_bytes(30, dim, form)
    beside = -(-dim // 32) if name == "mx4" else 0
    own = -(-dim // 2) if name == "mx4" else dim
    assert layout.nbytes == 30 * (own + beside) + 4 * 2**form.bits


@pytest.mark.parametrize("name", SMALL_FORMATS)
def test_a_plan_needs_the_formats_bytes(name):
    spec, method = TableSpec.of_shape(5000, 64), get_method("half")
    most = spec.full_bytes / small_float_bytes(5000, 64, SMALL_FORMATS[name])
    assert method.plan(spec, most * 0.999, dtype=name).dtype == name
    with pytest.raises(OutOfReach):
        method.plan(spec, most * 1.001, dtype=name)
    with pytest.raises(ValueError, match=r"dtype must be one of \('float16',"):
        method.plan(spec, 2, dtype="float8")


def relative_error(table, **options):
    read = decode_layout(compress(table, "half", **options)).astype(np.float64)
    return ((read - table) ** 2).sum() / (table.astype(np.float64) ** 2).sum()


def test_errors_of_normal_rows_are_those_of_the_formats():
    table = np.random.default_rng(0).normal(size=(4000, 64)).astype(np.float32)
    found = {name: relative_error(table, dtype=name) for name in SMALL_FORMATS}
    # 3, 2 and 1 bits of mantissa: each costs a factor of four, less what a shared
    # power of two leaves to the smallest numbers.
    assert found["float8_e4m3"] == pytest.approx(0.00070, abs=0.00003)
    assert found["float8_e5m2"] == pytest.approx(0.0028, abs=0.0001)
    assert found["mx4"] == pytest.approx(0.0125, abs=0.0004)


@pytest.mark.parametrize("name", SMALL_FORMATS)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-30, 1.0, 1e30, 1e38, 3.4028234e38])
def test_numbers_of_any_size_are_read_as_finite_ones(name, rounding, size):
    table = np.array([[size, -size, 0, 0.4 * size]] * 3, np.float32)
    read = decode_layout(compress(table, "half", dtype=name, rounding=rounding))
    assert np.isfinite(read).all()
    assert np.abs(read.astype(np.float64) - table).max() <= 0.34 * size + 1e-44


# -- training ----------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL_FORMATS)
def test_a_table_is_trained_in_its_format(name):
    table = HalfPrecision.make(SPEC, seed=3, dtype=name).train()
    ids = torch.tensor([4, 7, 4, 49])
    others = np.setdiff1d(np.arange(50), ids)
    before = decode_layout(table.freeze())
    for step in range(60):
        table.advance(step / 60)
        (table(ids) - 3.0).square().sum().backward()
        loss = lambda: torch.zeros(())  # noqa: E731
        table.after_step(TrainingStep(loss, loss, table, 0.05, step / 60))
    layout = table.eval().freeze()
    after = decode_layout(layout)
    assert np.abs(after[ids] - 3.0).mean() < 0.5
    np.testing.assert_array_equal(table(torch.arange(50)).detach().numpy(), after)
    # Rows that no batch read stay, but for what a larger power of two rounds away.
    unit = layout.levels[1] if name != "mx4" else 0
    assert np.abs(after - before)[others].max() <= 2 * unit
    assert layout.nbytes == small_float_bytes(50, 40, SMALL_FORMATS[name])


def test_a_table_without_room_grows_its_power_of_two():
    table = HalfPrecision.make(SPEC, dtype="float8_e4m3", rounding="nearest")
    low, ids = int(table.powers), torch.arange(3)
    rows = torch.full((3, 40), 5.0)
    table.store_rows(ids, rows)
    assert int(table.powers) > low
    assert torch.equal(table.load_rows(ids), rows)
    high = int(table.powers)
    table.store_rows(ids, rows * 1e-3)
    assert int(table.powers) == high


def test_blocks_have_powers_of_their_own():
    table = HalfPrecision.make(SPEC, dtype="mx4", rounding="nearest")
    rows = torch.cat([torch.full((2, 32), 6.0), torch.full((2, 8), 6.0 * 2**-9)], 1)
    table.store_rows(torch.tensor([1, 30]), rows)
    assert torch.equal(table.load_rows(torch.tensor([30, 1])), rows)
    assert table.powers[1].tolist() == [0, -9]


def test_packed_rows_are_decoded_as_the_layout_does():
    for name, form in SMALL_FORMATS.items():
        table = np.random.default_rng(0).normal(size=(20, 40)).astype(np.float32)
        layout = compress(table, "half", dtype=name)
        rows = torch.from_numpy(table)
        powers = find_powers(rows, form, "nearest")
        packed = torch.from_numpy(layout.rows[:, : layout.width].copy())
        found = decode_small_floats(packed, powers, form, 40)
        np.testing.assert_array_equal(found.numpy(), decode_layout(layout))


def test_a_run_learns_in_eight_bits():
    """Within 0.01 of the AUC in 16."""
    clicks = make_clicks("small", rows=(60_000, 10_000, 10_000))
    settings = {"batch_size": 512, "precision": "float32"}
    given = {"measure": False, "settings": settings}
    wide = survey_code.run("half", clicks, 2, **given).test["auc"]
    found = survey_code.run("half", clicks, 3.7, dtype="float8_e4m3", **given)
    assert found.test["auc"] > wide - 0.01
