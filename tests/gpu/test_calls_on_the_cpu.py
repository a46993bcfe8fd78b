"""What a call of a GPU is given and gives back, without a GPU: see conftest.py."""

import copy
import gc
import pickle
import threading
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

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


@pytest.mark.parametrize("name", [*SOME, "2 bits, odd", "levels, odd blocks"])
def test_padded_rows_are_handed_over_whole(fake_cupy, name):
    from survey_code.serving import operators

    layout = EXAMPLES[name]()
    twin = layout.to_gpu()
    tensors = operators.as_tensors(twin)
    assert all(tensor.is_contiguous() for tensor in tensors)
    rebuilt = operators.rebuild_layout(tensors, operators.describe_tensors(twin))
    np.testing.assert_array_equal(rebuilt.lookup(IDS), layout.lookup(IDS))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 3])
def test_bad_ids_add_nothing_to_any_bag(pair, mode, padding):
    layout, twin = pair
    if hasattr(layout, "multipliers"):  # a network with biases, as a trained one has
        layout.values[:] = np.random.default_rng(4).normal(size=layout.values.shape)
        twin = layout.to_gpu()
    bad = torch.tensor([1, -5, 3, 10**6, 5, 3])
    how = {"mode": mode, "padding_idx": padding}
    wanted = layout.bag([1, 3, 5, 3], [0, 2], **how)
    close(twin.bag(bad, [0, 3], **how, check=False), wanted, 1e-3)
    assert not twin.lookup(bad, check=False)[[1, 3]].any()


def test_padding_beyond_the_ids_own_type(fake_cupy):
    layout = EXAMPLES["generator"]()
    layout.open_ids = 1
    twin = layout.to_gpu()
    ids = fake_cupy.arange(6, dtype=np.int32)
    padding = 2**32 + 2  # of whose bits int32 has those of 2
    close(
        torch.from_numpy(np.asarray(twin.bag(ids, [0, 3], padding_idx=padding))),
        layout.bag(np.arange(6), [0, 3]),
    )


def test_signs_still_to_be_turned_are_turned(pair):
    layout, twin = pair
    ids, offsets = torch.tensor([1, 2, 3]), torch.tensor([0, 1])
    weights = torch.tensor([1 + 2j, -3j, 0.5j]).conj().imag
    assert weights.is_neg()
    wanted = layout.bag([1, 2, 3], [0, 1], [-2.0, 3.0, -0.5])
    turned = torch._neg_view(-ids), torch._neg_view(-offsets), weights
    for read in layout, twin:
        close(read.bag(ids, offsets, weights), wanted)
        close(read.bag(*turned), wanted)
        close(read.lookup(turned[0]), layout.lookup([1, 2, 3]))


def test_numbers_that_torch_lacks(pair):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    layout, twin = pair
    ids, weights = torch.tensor([1, 2, 3]), np.array([1.5, -2, 0.5])
    wanted = layout.bag(ids, [0, 1], weights).numpy()
    for kind in (">f4", ">f8", np.longdouble, ml_dtypes.bfloat16):
        close(twin.bag(ids, [0, 1], weights.astype(kind)), wanted)
    for kind in (">i8", ">i4", ">u2"):
        close(twin.bag(ids, np.array([0, 1], dtype=kind), weights), wanted)


def test_two_calls_may_want_the_last_notice(fake_cupy):
    twin = EXAMPLES["float32"]().to_gpu()

    class Taken(list):
        """What another thread empties after it was found to hold something."""

        def __bool__(self):
            return True

    twin.device.free = Taken()
    assert twin.lookup(fake_cupy.arange(3)).shape == (3, 12)
    assert len(twin.device.free) == 1


def test_modules_raise_what_compiled_calls_were_given(pair):
    from torch.multiprocessing.reductions import StorageWeakRef

    from survey_code.serving import modules, operators

    layout, twin = pair
    module = modules.FrozenEmbedding(twin)
    tensors = module._tensors()
    storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]
    other = layout.to_gpu()  # as an operator makes for itself
    key = operators.name_held(tensors, module.description)
    operators._HELD[key] = operators.Held(other, storages)
    try:
        other.lookup(torch.tensor([-5]), check="late")
        with pytest.raises(IndexError, match="an earlier call"):
            module.raise_late()
        module.raise_late()
    finally:
        del operators._HELD[key]


def test_padding_that_is_set_is_followed(pair):
    from survey_code.serving.modules import FrozenEmbeddingBag

    layout, twin = pair
    ids = torch.tensor([[1, 2, 999], [3, 999, 4]])
    for own in layout, twin:
        module = FrozenEmbeddingBag(own, padding_idx=2)
        module.padding_idx = -1
        close(module(ids), layout.bag([1, 2, 3, 4], [0, 2]))
        with pytest.raises(ValueError, match="padding_idx must be from"):
            module.padding_idx = 1000
        assert module.padding_idx == -1


@pytest.mark.parametrize("name", SOME)
def test_a_layout_is_freed_at_once_and_copies_have_launchers_of_their_own(
    fake_cupy, name
):
    twin = EXAMPLES[name]().to_gpu()
    twin.bag(fake_cupy.arange(9), OFFSETS[:2], check="late")
    twin.lookup(fake_cupy.arange(9))
    made = copy.copy(twin), copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))
    wanted = twin.lookup(fake_cupy.arange(9))
    for each in made:
        assert each.device is not None and each.device is not twin.device
        np.testing.assert_array_equal(each.lookup(fake_cupy.arange(9)), wanted)
    del each
    gc.collect()
    gc.disable()  # what a circle held would stay
    try:
        held = (
            weakref.ref(twin),
            weakref.ref(twin.device),
            weakref.ref(twin.device.late),
        )
        del twin, made
        assert [each() for each in held] == [None] * 3
    finally:
        gc.enable()


@pytest.fixture
def current(fake_cupy, monkeypatch):
    """Which of several GPUs is current: a list of one number."""
    now = [0]

    @contextmanager
    def change(place):
        before = now[0]
        now[0] = place if isinstance(place, int) else place.index or 0
        yield
        now[0] = before

    def enter(index):
        return SimpleNamespace(use=lambda: now.__setitem__(0, index))

    monkeypatch.setattr(torch.cuda, "device", change)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: now[0], raising=False)
    monkeypatch.setattr(fake_cupy.cuda, "Device", enter)
    return now


def test_a_start_leaves_the_current_gpu_as_it_was(current, monkeypatch):
    from survey_code.kernels.cuda import start

    fake = start.load_cupy()
    places = []
    fake.cuda.driver = SimpleNamespace(
        launchKernel=lambda *_: places.append(current[0])
    )
    kernel = SimpleNamespace(kernel=SimpleNamespace(ptr=0))
    monkeypatch.setattr(start, "_ENTERED", threading.local())
    starters = [
        start.Starter(kernel, [1], (2, 3), "4q", (1, 1), torch.device("cuda", index))
        for index in (1, 0, 2)
    ]
    assert current == [0]
    for starter in starters:
        starter(1, 0, 0, 0, 0)
        assert current == [0]
        assert start._ENTERED.here == starter.index
    assert places == [1, 0, 2]


def test_a_network_runs_where_its_ids_are(current, monkeypatch):
    from survey_code.kernels.cuda import generate, load_cupy

    twin = EXAMPLES["generator"]().to_gpu()
    load, seen = generate.load_kernel, []

    def watch(*given):
        seen.append(current[0])
        return load(*given)

    monkeypatch.setattr(generate, "load_kernel", watch)
    current[0] = 1  # the ids are on the GPU that stands for number 0
    twin.lookup(load_cupy().arange(3))
    assert set(seen) == {0} and current == [1]
