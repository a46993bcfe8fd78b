"""What the kernels of look-ups and bags compute, without a GPU: as NumPy does.

The kernels run on the processor; see conftest.py.  Speed, and what only many threads
at once can get wrong, is tested on a GPU.
"""

import numpy as np
import pytest
from layout_examples import EXAMPLES
from nestings import draw_nesting

from survey_code.kernels.formats import invert
from survey_code.layouts import AddedLayout, DenseLayout, HashedLayout, TurnedLayout
from survey_code.layouts.hashed import mixed_index

IDS = np.random.default_rng(1).integers(1000, size=60)
OFFSETS = np.array([0, 0, 5, 5, 6, 40, 60])  # with empty and single bags

# The others are layouts within layouts, drawn anew below, or go through CuPy's words.
ALONE = [name for name in EXAMPLES if not name.startswith(("generator", "nesting"))]


@pytest.fixture(params=ALONE)
def pair(request, fake_cupy):
    """A layout, and its copy on what stands for a GPU."""
    layout = EXAMPLES[request.param]()
    twin = layout.to_gpu()
    assert twin.device is not None
    return layout, twin


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_a_look_up_is_numpys(pair, fake_cupy, kind):
    layout, twin = pair
    found = twin.lookup(fake_cupy.asarray(IDS.astype(kind)))
    np.testing.assert_allclose(found, layout.lookup(IDS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_are_numpys(pair, fake_cupy, mode):
    layout, twin = pair
    found = twin.bag(fake_cupy.asarray(IDS), fake_cupy.asarray(OFFSETS), mode=mode)
    wanted = layout.bag(IDS, OFFSETS, mode=mode)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_weighted_bags_are_numpys(pair, fake_cupy):
    layout, twin = pair
    weights = np.random.default_rng(2).normal(size=60).astype(np.float32)
    found = twin.bag(
        fake_cupy.asarray(IDS), fake_cupy.asarray(OFFSETS), fake_cupy.asarray(weights)
    )
    wanted = layout.bag(IDS, OFFSETS, weights)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("name", ["float16", "codes, turned", "weights", "generator"])
def test_bags_with_padding_and_a_last_offset_are_numpys(fake_cupy, name, mode):
    layout = EXAMPLES[name]()
    twin = layout.to_gpu()
    ids = IDS.copy()
    ids[[0, 3, 5, 41, 59]] = 7
    ids[6:30] = 7
    weights = None
    if mode == "sum":
        weights = np.random.default_rng(2).normal(size=60).astype(np.float32)
    borders = np.append(OFFSETS, len(ids))
    for offsets, last in ((OFFSETS, False), (borders, True)):
        for padding in (None, 7, 7 - 1000):
            how = (mode, padding, last)
            wanted = layout.bag(ids, offsets, weights, *how)
            for check in (True, False):
                found = twin.bag(
                    fake_cupy.asarray(ids),
                    fake_cupy.asarray(offsets),
                    None if weights is None else fake_cupy.asarray(weights),
                    *how,
                    check,
                )
                np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    even = ids.reshape(6, 10)
    found = twin.bag(fake_cupy.asarray(even), mode=mode, padding_idx=7)
    wanted = layout.bag(even, mode=mode, padding_idx=7)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_last_offset_that_is_not_the_number_of_ids_is_an_error(fake_cupy):
    twin = EXAMPLES["float32"]().to_gpu()
    for offsets in ([0, 4], [0], [0, 10]):
        for padding in (None, 3):
            with pytest.raises(
                ValueError, match=r"number of ids \(9\), got|not exceed"
            ):
                twin.bag(
                    fake_cupy.asarray(np.full(9, 3)), fake_cupy.asarray(offsets),
                    padding_idx=padding, include_last_offset=True,
                )  # fmt: skip


def test_bad_offsets_are_reported_where_padding_hides_them(fake_cupy):
    twin = EXAMPLES["float32"]().to_gpu()
    ids = fake_cupy.asarray(np.full(9, 3))
    for offsets in ([0, 9, 4], [1, 2], [0, 10]):
        with pytest.raises(ValueError, match="offsets must start at 0"):
            twin.bag(ids, fake_cupy.asarray(np.array(offsets)), padding_idx=3)


def test_what_comes_back_is_what_was_moved(pair):
    layout, twin = pair
    back = twin.to_cpu()
    for name, array in layout.arrays().items():
        np.testing.assert_array_equal(back.arrays()[name], array)
    assert twin.nbytes == layout.nbytes
    assert twin.held_bytes >= layout.nbytes


def test_bad_ids_and_offsets_are_reported(pair, fake_cupy):
    layout, twin = pair
    beyond = layout.num_embeddings
    if not layout.open_ids:
        with pytest.raises(IndexError, match=f"id {beyond} is out of range"):
            twin.lookup(fake_cupy.asarray(np.array([3, beyond])))
    with pytest.raises(IndexError, match="id -1 is out of range"):
        twin.lookup(fake_cupy.asarray(np.array([3, -1])))
    with pytest.raises(ValueError, match="offsets must start at 0"):
        twin.bag(fake_cupy.asarray(IDS), fake_cupy.asarray(np.array([0, 9, 4])))


COLUMNS = {  # arrays whose columns, not rows, lie side by side
    "dense": lambda table: DenseLayout(np.asfortranarray(table)),
    "hashed": lambda table: HashedLayout(
        np.asfortranarray(table[:9]), mixed_index(3, [9]), len(table), 8
    ),
    "turned": lambda table: AddedLayout(
        [TurnedLayout(DenseLayout(table), np.asfortranarray(table[:8]))] * 2
    ),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_arrays_in_columns_are_read_as_by_numpy(fake_cupy, kind):
    table = np.random.default_rng(4).normal(size=(30, 8)).astype(np.float32)
    layout = COLUMNS[kind](table)
    found = layout.to_gpu().lookup(fake_cupy.arange(30))
    np.testing.assert_allclose(
        found, layout.lookup(np.arange(30)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("seed", range(10))
def test_layouts_within_layouts_are_read_as_by_numpy(fake_cupy, seed):
    layout = draw_nesting(seed)
    rng = np.random.default_rng(seed)
    ids = rng.integers(layout.num_embeddings, size=20)
    twin = layout.to_gpu()
    found = twin.lookup(fake_cupy.asarray(ids))
    np.testing.assert_allclose(found, layout.lookup(ids), rtol=1e-4, atol=1e-5)
    offsets = np.array([0, 3, 3, 11])
    found = twin.bag(fake_cupy.asarray(ids), fake_cupy.asarray(offsets))
    np.testing.assert_allclose(found, layout.bag(ids, offsets), rtol=1e-4, atol=1e-4)


def test_division_by_a_product_is_exact():
    # divide() of reading.cuh: q = floor(x * floor(2^64 / n) / 2^64), or one more.
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
