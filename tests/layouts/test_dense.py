"""The dense layout: rounding to float16 and bfloat16."""

import numpy as np
import pytest
import torch

from survey_code.layouts import DenseLayout

SPECIAL = np.array(
    [[0.0, -0.0, 1.0, 1e-45, 6e-8, 6.1e-5, 1 / 3, -65504.0, 1.00390625, 1.01171875]],
    dtype=np.float32,
)


@pytest.mark.parametrize("format", ["float16", "bfloat16"])
def test_rounding_is_torchs_nearest_even(format):
    table = np.random.default_rng(0).normal(size=(200, 50)).astype(np.float32)
    table *= np.exp(np.random.default_rng(1).uniform(-15, 10, table.shape))
    for values in (table, SPECIAL):
        wanted = torch.from_numpy(values).to(getattr(torch, format)).float().numpy()
        layout = DenseLayout.from_weight(values, format)
        np.testing.assert_array_equal(layout.lookup(np.arange(len(values))), wanted)
        assert layout.nbytes == 2 * values.size


def test_bfloat16_bits_are_torchs():
    table = np.random.default_rng(2).normal(size=(50, 8)).astype(np.float32)
    wanted = torch.from_numpy(table).bfloat16().view(torch.uint16).numpy()
    stored = DenseLayout.from_weight(table, "bfloat16").values
    np.testing.assert_array_equal(stored, wanted)


@pytest.mark.parametrize(
    ("format", "value"), [("float16", 65520.0), ("bfloat16", 3.4e38)]
)
def test_what_a_format_cannot_hold_is_a_value_error(format, value):
    with pytest.raises(ValueError, match=f"{format} holds values up to"):
        DenseLayout.from_weight([[value, 1.0]], format)


def test_unknown_format_is_a_value_error():
    with pytest.raises(ValueError, match="format must be one of"):
        DenseLayout.from_weight([[1.0]], "float8")


def test_float32_is_a_copy():
    table = np.ones((2, 2), np.float32)
    layout = DenseLayout.from_weight(table)
    table[:] = 5
    np.testing.assert_array_equal(layout.lookup([0, 1]), 1)


@pytest.mark.parametrize(
    "values", [[[1.0]], np.ones(3, np.float32), np.ones((0, 3), np.float32), None]
)
def test_arrays_that_are_no_dense_table_are_value_errors(values):
    with pytest.raises(ValueError):
        DenseLayout(values)
