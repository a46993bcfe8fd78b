"""What the kernels of look-ups and bags compute, without a GPU: as NumPy does.

The kernels run on the processor; see conftest.py.  Speed, and what only many threads
at once can get wrong, is tested on a GPU.
"""

import copy

import numpy as np
import pytest
import torch
from layout_examples import EXAMPLES, ROWS, SPEC

from survey_code.kernels.cuda.composed import invert
from survey_code.kernels.cuda.rows import place_dense, place_rowwise
from survey_code.kernels.cuda.scatter import scatter_blocks, scatter_cores
from survey_code.layouts import DenseLayout, RowwiseLayout
from survey_code.weight_sharing.decomposition import TTRec
from survey_code.weight_sharing.hashing import ROBE

UNFUSED = (
    "8 bits, per table", "4 bits, per field", "binary",
    "binary, row scales", "binary, magnitudes",
)  # fmt: skip
# The others are read by the code for arrays, or rearranged with CuPy's own words.
FUSED = [name for name, make in EXAMPLES.items() if name not in UNFUSED]
IDS = np.random.default_rng(1).integers(ROWS, size=60)
OFFSETS = np.array([0, 0, 5, 5, 6, 40, 60])  # with empty and single bags


def fuse(layout, fake):
    """What `to_gpu` would give, from arrays of NumPy."""
    if isinstance(layout, DenseLayout):
        return place_dense(layout.values)
    if isinstance(layout, RowwiseLayout):
        return place_rowwise(layout.rows, layout.embedding_dim, layout.bits)
    twin = copy.copy(layout)
    for name, array in layout.arrays().items():
        setattr(twin, name, fake.asarray(array))
    device = twin.fuse()
    assert device is not None
    return device


@pytest.fixture(params=FUSED)
def pair(request, fake_cupy):
    """A layout, and its kernels."""
    layout = EXAMPLES[request.param]()
    return layout, fuse(layout, fake_cupy)


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_a_look_up_is_numpys(pair, fake_cupy, kind):
    layout, device = pair
    found = device.read(fake_cupy.asarray(IDS.astype(kind)))
    np.testing.assert_allclose(found, layout.lookup(IDS), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_are_numpys(pair, fake_cupy, mode):
    layout, device = pair
    found = device.pool(fake_cupy.asarray(IDS), fake_cupy.asarray(OFFSETS), mode=mode)
    wanted = layout.bag(IDS, OFFSETS, mode=mode)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_weighted_bags_are_numpys(pair, fake_cupy):
    layout, device = pair
    weights = np.random.default_rng(2).normal(size=60).astype(np.float32)
    found = device.pool(
        fake_cupy.asarray(IDS), fake_cupy.asarray(OFFSETS), fake_cupy.asarray(weights)
    )
    wanted = layout.bag(IDS, OFFSETS, weights)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_bad_ids_and_offsets_are_reported(pair, fake_cupy):
    layout, device = pair
    if not layout.open_ids:
        with pytest.raises(IndexError, match=f"id {ROWS} is out of range"):
            device.read(fake_cupy.asarray(np.array([3, ROWS])))
    with pytest.raises(IndexError, match="id -1 is out of range"):
        device.read(fake_cupy.asarray(np.array([3, -1])))
    with pytest.raises(ValueError, match="offsets must start at 0"):
        device.pool(fake_cupy.asarray(IDS), fake_cupy.asarray(np.array([0, 9, 4])))


def test_robes_gradient_is_autograds(fake_cupy):
    # d loss / d values[start + j] is the sum of the gradients that read it.
    table = ROBE.make(SPEC, size=300, signed=True)
    device = fuse(table.freeze(), fake_cupy)
    gradients = np.random.default_rng(3).normal(size=(60, 12)).astype(np.float32)
    found = scatter_blocks(device, fake_cupy.asarray(IDS), fake_cupy.asarray(gradients))
    rows = table.embed(torch.from_numpy(IDS))
    (rows * torch.from_numpy(gradients)).sum().backward()
    np.testing.assert_allclose(found, table.values.grad[:, 0], rtol=1e-4, atol=1e-5)


def test_a_trains_gradient_is_autograds(fake_cupy):
    table = TTRec.make(SPEC, rank=4)
    device = fuse(table.freeze(), fake_cupy)
    gradients = np.random.default_rng(3).normal(size=(60, 12)).astype(np.float32)
    found = scatter_cores(device, fake_cupy.asarray(IDS), fake_cupy.asarray(gradients))
    rows = table.embed(torch.from_numpy(IDS))
    (rows * torch.from_numpy(gradients)).sum().backward()
    wanted = [core.grad for core in table.cores]
    assert len(found) == len(wanted) == 3
    for ours, autograds in zip(found, wanted, strict=True):
        np.testing.assert_allclose(
            ours, autograds.reshape(ours.shape), rtol=1e-4, atol=1e-5
        )


def test_gradients_of_the_wrong_shape_are_a_value_error(fake_cupy):
    device = fuse(EXAMPLES["flat"](), fake_cupy)
    with pytest.raises(ValueError, match="gradients must be float32 of shape"):
        scatter_blocks(device, fake_cupy.asarray(IDS), fake_cupy.zeros((60, 11)))
    with pytest.raises(ValueError, match=r"rows must be read by tensor_train\.cu"):
        scatter_cores(device, fake_cupy.asarray(IDS), fake_cupy.zeros((60, 12)))


def test_division_by_a_product_is_exact():
    # divide() of composed.cuh: q = floor(x * floor(2^64 / n) / 2^64), or one more.
    rng = np.random.default_rng(4)
    for number in [1, 2, 3, 7, 30, 2**31 - 1, 2**40 + 5, *rng.integers(1, 2**62, 50)]:
        number = int(number)
        for value in [
            0,
            1,
            number - 1,
            number,
            2**63 - 1,
            *rng.integers(2**63 - 1, size=50),
        ]:
            quotient = (int(value) * invert(number)) >> 64
            quotient += int(value) - quotient * number >= number
            assert quotient == int(value) // number
