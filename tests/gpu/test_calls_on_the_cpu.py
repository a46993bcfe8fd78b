"""What a call of a GPU is given and gives back, without a GPU: see conftest.py."""

import threading

import numpy as np
import pytest
import torch
from layout_examples import EXAMPLES

KINDS = {"half": torch.float16, "brain": torch.bfloat16, "double": torch.float64}
IDS = np.random.default_rng(1).integers(1000, size=60)
OFFSETS = np.array([0, 0, 5, 5, 6, 40, 60])
# One of pieces, of composed rows, of products, of a network.
SOME = ["float32", "8 bits", "codes", "codes, turned", "generator", "float16"]


@pytest.fixture(params=SOME)
def pair(request, fake_cupy, monkeypatch):
    """A layout, and its copy on what stands for a GPU, which takes tensors, too."""
    from survey_code.kernels.cuda import launch

    borrow = launch.borrow_tensor
    monkeypatch.setattr(
        launch, "borrow_tensor",
        lambda ids: ids if isinstance(ids, torch.Tensor) else borrow(ids),
    )  # fmt: skip
    layout = EXAMPLES[request.param]()
    return layout, layout.to_gpu()


def close(found, wanted, rtol=1e-4):
    np.testing.assert_allclose(found.double().numpy(), wanted, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", KINDS)
def test_rows_are_rounded_to_the_type_that_is_asked_for(pair, name):
    layout, twin = pair
    ids, kind = torch.from_numpy(IDS), KINDS[name]
    wanted = layout.lookup(IDS)
    found = twin.lookup(ids, out_dtype=kind)
    assert found.dtype == kind
    rounding = {"half": 1e-3, "brain": 8e-3, "double": 1e-4}[name]
    close(found, wanted, rounding)
    pooled = twin.bag(ids, OFFSETS, out_dtype=kind)
    assert pooled.dtype == kind
    close(pooled, layout.bag(IDS, OFFSETS), rounding)


def test_rounding_to_sixteen_bits_is_torchs(fake_cupy):
    from survey_code.layouts import DenseLayout

    bits = np.random.default_rng(2).integers(2**32, size=(500, 8), dtype=np.uint32)
    table = bits.view(np.float32)
    table[~np.isfinite(table)] = 0
    table[0] = [65519.9, 65520, -65520, 2.0**-25, 3 * 2.0**-25, 1e-40, 0.0, -0.0]
    twin = DenseLayout(table).to_gpu()
    ids = fake_cupy.arange(500)
    for kind in (torch.float16, torch.bfloat16):
        found = twin.device.read(ids, kind=torch.float32)  # CuPy's words
        wanted = torch.from_numpy(np.asarray(found)).to(kind)
        own = torch.empty(500, 8, dtype=kind)
        from survey_code.kernels.cuda.launch import Call, start_read

        start_read(
            twin.device.format, Call(torch.arange(500), own, twin.device.late.address)
        )
        assert torch.equal(own.view(torch.int16), wanted.view(torch.int16))


def test_ids_and_offsets_of_any_integers(pair):
    layout, twin = pair
    wanted = layout.bag(IDS, OFFSETS)
    for kind in (torch.int16, torch.int32, torch.int64):
        for other in (torch.int16, torch.int32, torch.int64):
            ids, offsets = torch.tensor(IDS).to(kind), torch.tensor(OFFSETS).to(other)
            close(twin.bag(ids, offsets), wanted)
    strided = torch.tensor(np.stack([IDS, IDS], axis=1))[:, 0]
    close(twin.bag(strided, OFFSETS.tolist()), wanted)
    close(twin.lookup(strided.view(6, 10)).view(60, -1), layout.lookup(IDS))


def test_bags_of_equal_length_need_no_offsets(pair):
    layout, twin = pair
    even = IDS.reshape(6, 10)
    for mode in ("sum", "mean", "max"):
        for padding in (None, int(IDS[3])):
            how = {"mode": mode, "padding_idx": padding}
            close(twin.bag(torch.tensor(even), **how), layout.bag(even, **how))
    assert twin.bag(torch.zeros(0, 4, dtype=torch.int64)).shape == (0, 12)
    assert not twin.bag(torch.zeros(3, 0, dtype=torch.int64)).any()


def test_a_bag_of_padding_alone_is_zero(pair):
    twin = pair[1]
    ids, offsets = torch.full((5,), 7), torch.tensor([0, 3])
    for mode in ("sum", "mean", "max"):
        assert not twin.bag(ids, offsets, mode=mode, padding_idx=7).any()


def test_late_errors_are_raised_once_by_the_next_call(pair):
    layout, twin = pair
    good, bad = torch.tensor([1, 2]), torch.tensor([1, -5])
    rows = twin.lookup(bad, check="late")
    close(rows[:1], layout.lookup([1]))
    with pytest.raises(IndexError, match="an earlier call: an id is out of range"):
        twin.lookup(good, check="late")
    close(twin.lookup(good, check="late"), layout.lookup([1, 2]))
    twin.bag(good, torch.tensor([0, 5]), check="late")
    with pytest.raises(ValueError, match="an earlier call: offsets must start at 0"):
        twin.raise_late()
    twin.raise_late()
    twin.bag(good, torch.tensor([0, 1]), include_last_offset=True, check="late")
    with pytest.raises(ValueError, match="an earlier call"):
        twin.bag(good, torch.tensor([0]), check="late")


def test_unchecked_errors_are_nobodys(pair):
    layout, twin = pair
    bad = torch.tensor([1, -5])
    assert not twin.lookup(bad, check=False)[1].any()
    close(twin.bag(bad, [0], check=False), layout.bag([1], [0]))
    twin.lookup(torch.tensor([1]), check="late")
    twin.raise_late()


def test_a_checked_error_leaves_late_ones_where_they_are(pair):
    _, twin = pair
    with pytest.raises(IndexError, match="id -5 is out of range"):
        twin.lookup(torch.tensor([-5]))
    twin.raise_late()
    twin.lookup(torch.tensor([-5]), check="late")
    twin.lookup(torch.tensor([5]))
    with pytest.raises(IndexError, match="an earlier call"):
        twin.raise_late()


@pytest.mark.parametrize("check", ["soon", None, 2])
def test_other_words_for_check_are_errors(pair, check):
    with pytest.raises(ValueError, match="check must be True, False or 'late'"):
        pair[1].lookup(torch.tensor([1]), check=check)


@pytest.mark.parametrize("kind", ["int8", "float8", torch.int32, np.float128, None, []])
def test_other_types_are_errors_on_either_side(pair, kind):
    for layout in pair:
        with pytest.raises((ValueError, TypeError), match="out_dtype must be one of"):
            layout.lookup(torch.tensor([1]), out_dtype=kind)


def test_arrays_have_no_bfloat16(pair, fake_cupy):
    layout, twin = pair
    for call in (
        lambda: layout.lookup([1], out_dtype="bfloat16"),
        lambda: twin.lookup(fake_cupy.asarray([1]), out_dtype="bfloat16"),
    ):
        with pytest.raises(ValueError, match="ids must be a tensor"):
            call()
    assert layout.lookup([1], out_dtype=np.float16).dtype == np.float16
    assert twin.lookup(fake_cupy.asarray([1]), out_dtype="float16").dtype == np.float16


def test_threads_share_a_layout(pair):
    layout, twin = pair
    wanted = layout.bag(IDS, OFFSETS)
    found = {}

    def work(own):
        ids = torch.tensor(IDS)
        found[own] = twin.bag(ids, OFFSETS)

    work(0)  # the emulator compiles
    close(found[0], wanted)
    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    # The emulator itself runs one kernel at a time.
    for thread in threads:
        thread.start()
        thread.join()
    for rows in found.values():
        close(rows, wanted)


def test_bad_bags_are_the_processors_errors(pair):
    ids = torch.tensor([1, 2, 3])
    for given, options in (
        ((ids,), {}),
        ((ids.view(1, 3), [0]), {}),
        ((ids.view(1, 3),), {"include_last_offset": True}),
        ((ids, [0.0]), {}),
        ((ids, [[0]]), {}),
        ((ids, []), {}),
        ((ids, []), {"include_last_offset": True}),
        ((ids, [0]), {"include_last_offset": True}),
        ((ids, [0, 2]), {"include_last_offset": True}),
        ((ids, [0, 3, 2]), {}),
        ((ids, [1]), {}),
        ((ids, [0], [1.0, 2.0]), {}),
        ((ids, [0], [1.0, 2.0, 3.0]), {"mode": "mean"}),
        ((ids, [0], ["a", "b", "c"]), {}),
        ((ids, [0]), {"mode": "median"}),
        ((ids.float(), [0]), {}),
        ((ids > 1, [0]), {}),
    ):
        errors = []
        for layout in pair:
            with pytest.raises(ValueError) as caught:
                layout.bag(*given, **options)
            errors.append(str(caught.value).split(",")[0].split("(")[0])
        assert errors[0][:30] == errors[1][:30], errors


@pytest.mark.parametrize("name", [*SOME, "2 bits, odd", "bfloat16", "levels, odd blocks"])
def test_padded_rows_are_handed_over_whole(fake_cupy, name):
    from survey_code.serving import operators

    layout = EXAMPLES[name]()
    twin = layout.to_gpu()
    tensors = operators.as_tensors(twin)
    assert all(tensor.is_contiguous() for tensor in tensors)
    rebuilt = operators.rebuild_layout(tensors, operators.describe_tensors(twin))
    np.testing.assert_array_equal(rebuilt.lookup(IDS), layout.lookup(IDS))
