"""The same look-ups on a GPU; without one, a clear error."""

import numpy as np
import pytest
import torch
from layout_examples import EXAMPLES, ROWS

from survey_code import FrozenEmbedding, compress, load_layout, run
from survey_code.embedding import decode_layout
from survey_code.kernels.cuda import as_cupy, current_stream, load_cupy
from survey_code.layouts import LAYOUTS, BinaryLayout, DenseLayout
from survey_code.ranking import choose_top

try:
    load_cupy()
    HAS_GPU = True
except RuntimeError:
    HAS_GPU = False
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="no GPU, or no CuPy")


@pytest.mark.skipif(HAS_GPU, reason="a GPU is present")
def test_without_a_gpu_everything_says_so():
    for call in (load_cupy, current_stream, lambda: as_cupy(np.zeros(1))):
        with pytest.raises(RuntimeError, match="the GPU look-up needs"):
            call()


def test_every_layout_is_tried():
    assert {make().name for make in EXAMPLES.values()} == set(LAYOUTS)


@pytest.fixture(params=EXAMPLES)
def pair(request):
    """A layout on the CPU, and the same on the GPU."""
    layout = EXAMPLES[request.param]()
    return layout, layout.to_gpu()


@pytest.fixture
def cupy():
    return load_cupy()


# Layouts that multiply matrices, and those that put rows together.
PRODUCTS = {"grouped", "tensor_train", "anchors", "generator", "turned"}
SUMS = {"added", "hashed", "codebook"}


def list_kinds(blueprint):
    """Names of a layout and of all that stand within it."""
    parts = blueprint["parts"].values()
    return {blueprint["layout"]}.union(*map(list_kinds, parts))


def adds_otherwise(host):
    """Whether a GPU adds up a row in another order, or rounds before it adds."""
    kinds = list_kinds(host.blueprint())
    product = kinds & PRODUCTS or any("paths" in name for name in host.arrays())
    return bool(product or (kinds & SUMS and "binary" in kinds))


def closeness(host, weights=1.0):
    """Layouts that multiply matrices add in another order on a GPU.

    What they add up may be far larger than what it comes to.
    """
    if not adds_otherwise(host):
        return {"rtol": 1e-6}
    largest = np.abs(host.lookup(np.arange(host.num_embeddings))).max()
    return {"rtol": 1e-4, "atol": 2e-6 * max(1.0, largest) * np.abs(weights).max()}


@needs_gpu
def test_lookup_on_the_gpu_is_the_cpus(pair, cupy):
    host, device = pair
    for shape in ((), (0,), (7,), (3, 0), (50, 40)):
        ids = np.random.default_rng(1).integers(host.num_embeddings, size=shape)
        for kind in (np.int32, np.int64):
            rows = device.lookup(cupy.asarray(ids.astype(kind)))
            assert isinstance(rows, cupy.ndarray) and rows.dtype == np.float32
            np.testing.assert_allclose(rows.get(), host.lookup(ids), **closeness(host))


def allow_rounding(found, wanted, host, ids, offsets, weights=None):
    """Sums in another order: some roundings of what the bag's rows span.

    A code of b bits enters as 2^b + q times the scale, so that a term is at most
    three times the span of its row.
    """
    # Rows that share a scale may be far smaller than their codes' range.
    shared = any(name.endswith("/parameters") for name in host.arrays())
    if shared or (adds_otherwise(host) and host.name != "generator"):
        close = closeness(host, 1.0 if weights is None else weights)
        close = {"rtol": 1e-4, "atol": close.get("atol", 1e-5)}
        np.testing.assert_allclose(found, wanted, **close)
        return
    rows = host.lookup(ids)
    if weights is not None:
        rows = rows * weights[:, None]
    span = np.abs(rows).max(axis=1, keepdims=True)  # (ids, 1)
    # So may a centred row be, and a row whose scale is its group's.
    if host.name == "rowwise" and (host.centred or host.parameters is not None):
        scale, bias = host._parameters(host.rows[ids], ids)
        most = np.abs(scale) * 2**host.bits + (0 if bias is None else np.abs(bias))
        span = np.maximum(span, most)
    if "binary" in list_kinds(host.blueprint()):
        span = 2 * span  # a term is 6 times the row's magnitude
    total = np.add.reduceat(np.append(span, [[0]], axis=0), offsets)  # (bags, 1)
    lengths = np.diff(np.append(offsets, len(ids)))[:, None]
    terms = 3
    if host.name == "generator":
        terms += 2 * host.embedding_dim  # products of a matrix, in another order
    bound = terms * lengths * np.finfo(np.float32).eps * total
    assert (np.abs(found - wanted) <= bound).all()


@needs_gpu
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bag_on_the_gpu_is_the_cpus(pair, cupy, mode):
    host, device = pair
    rng = np.random.default_rng(2)
    lengths = rng.integers(0, 9, size=200)
    ids = rng.integers(host.num_embeddings, size=lengths.sum())
    offsets = np.cumsum(lengths) - lengths
    weights = rng.normal(size=len(ids)).astype(np.float32) if mode == "sum" else None
    found = device.bag(
        cupy.asarray(ids),
        cupy.asarray(offsets),
        None if weights is None else cupy.asarray(weights),
        mode,
    )
    wanted = host.bag(ids, offsets, weights, mode)
    allow_rounding(found.get(), wanted, host, ids, offsets, weights)


@needs_gpu
def test_cuda_tensors_are_read_without_a_copy(pair, cupy):
    host, device = pair
    ids = torch.tensor([[1, 2], [host.num_embeddings - 1, 0]], device="cuda")
    rows = device.lookup(ids)
    wanted = host.lookup(ids.cpu().numpy())
    np.testing.assert_allclose(rows.cpu().numpy(), wanted, **closeness(host))
    assert as_cupy(ids).data.ptr == ids.data_ptr()


@needs_gpu
def test_frozen_embedding_returns_a_cuda_tensor(pair):
    host, device = pair
    ids = torch.tensor([5, 7], device="cuda")
    rows = FrozenEmbedding(device)(ids)
    assert rows.is_cuda and rows.dtype == torch.float32
    np.testing.assert_allclose(rows.cpu(), host.lookup([5, 7]), **closeness(host))


@needs_gpu
def test_bytes_files_and_rows_survive_the_way_there_and_back(pair, tmp_path):
    host, device = pair
    assert device.on_gpu and not host.on_gpu and device.nbytes == host.nbytes
    np.testing.assert_array_equal(decode_layout(device), decode_layout(host))
    host.save(tmp_path / "host")
    device.save(tmp_path / "device")
    assert (tmp_path / "host").read_bytes() == (tmp_path / "device").read_bytes()
    assert not load_layout(tmp_path / "device").on_gpu


@needs_gpu
def test_sides_do_not_mix(pair, cupy):
    host, device = pair
    for ids in ([1, 2], np.array([1, 2]), torch.tensor([1, 2])):
        with pytest.raises(TypeError, match="the layout is on a GPU"):
            device.lookup(ids)
    for ids in (cupy.asarray([1, 2]), torch.tensor([1, 2], device="cuda")):
        with pytest.raises(TypeError, match="ids are on a GPU but the layout is not"):
            host.lookup(ids)


@needs_gpu
def test_bad_ids_are_the_same_errors(pair, cupy):
    _, device = pair
    with pytest.raises(IndexError):
        device.lookup(cupy.asarray([3, -1]))
    if not device.open_ids:
        with pytest.raises(IndexError):
            device.lookup(cupy.asarray([3, device.num_embeddings]))
    for ids in (cupy.asarray([1.0]), cupy.asarray([True])):
        with pytest.raises(ValueError):
            device.lookup(ids)
    for offsets in ([1], [0, 9], [0.0]):
        with pytest.raises(ValueError):
            device.bag(cupy.asarray([1, 2]), cupy.asarray(offsets))


@needs_gpu
def test_the_stream_is_torchs(cupy):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        assert current_stream().ptr == stream.cuda_stream


@needs_gpu
@pytest.mark.parametrize("scale", ["none", "table", "row"])
@pytest.mark.parametrize("dim", [3, 11, 64, 100, 512])
def test_binary_search_on_the_gpu_is_the_cpus(dim, scale):
    table = np.random.default_rng(1).normal(size=(300, dim)).astype(np.float32)
    layout = compress(table, "bccf", scale=scale)
    on_gpu, cupy = layout.to_gpu(), load_cupy()
    queries = np.array([3, 299, 0])
    found = on_gpu.topk(cupy.asarray(queries), 20, candidates=(50, 300))
    np.testing.assert_array_equal(
        found.get(), layout.topk(queries, 20, candidates=(50, 300))
    )


@needs_gpu
@pytest.mark.parametrize(
    "name", ["codes", "codes, half", "codes, turned", "added codes"]
)
def test_scores_by_table_lookup_on_the_gpu_are_the_cpus(cupy, name):
    host = EXAMPLES[name]()
    device = host.to_gpu()
    queries = np.random.default_rng(6).normal(size=(5, 12)).astype(np.float32)
    for first, stop in ((0, ROWS), (17, 900)):
        found = device.scores(cupy.asarray(queries), (first, stop)).get()
        wanted = host.scores(queries, (first, stop))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@needs_gpu
@pytest.mark.parametrize("signs", [False, True])
def test_items_are_ranked_on_the_gpu_as_on_the_cpu(signs):
    """Of codes of +1 and -1 many are equal."""
    rng = np.random.default_rng(3)
    users, items = (torch.from_numpy(rng.normal(size=(n, 64))) for n in (300, 5000))
    if signs:
        users, items = torch.sign(users).float() / 8, torch.sign(items).float() / 8
    wanted = choose_top(users @ items.T, 20, users, items)
    users, items = users.cuda(), items.cuda()
    assert torch.equal(choose_top(users @ items.T, 20, users, items).cpu(), wanted)


@needs_gpu
def test_the_nearest_of_many_codes_are_numpys(cupy):
    """Many queries, many ties, more rows than a pass of the kernel has threads."""
    rng = np.random.default_rng(2)
    for bits, rows, count, k in ((16, 400_000, 3, 1000), (64, 50_000, 70, 100)):
        table = rng.normal(size=(rows, bits)).astype(np.float32)
        layout = BinaryLayout.from_signs(table)
        queries = rng.integers(rows, size=count)
        found = layout.to_gpu().topk(cupy.asarray(queries), k)
        np.testing.assert_array_equal(found.get(), layout.topk(queries, k, chunk=8))


MAKERS = {
    "8 bits": lambda weight: compress(weight, "rowwise", bits=8),
    "4 bits": lambda weight: compress(weight, "rowwise", bits=4),
    "2 bits": lambda weight: compress(weight, "rowwise", bits=2),
    "8 bits, shared": lambda weight: compress(weight, "rowwise", bits=8, per="table"),
    "4 bits, shared": lambda weight: compress(weight, "rowwise", bits=4, per="table"),
    "1 bit": lambda weight: compress(weight, "bccf"),
    "1 bit, per row": lambda weight: compress(weight, "bccf", scale="row"),
    "float16": lambda weight: DenseLayout.from_weight(weight, "float16"),
    "float32": lambda weight: DenseLayout.from_weight(weight),
}


@needs_gpu
@pytest.mark.parametrize("kind", MAKERS)
def test_every_dimension_is_read_alike(cupy, kind):
    rng = np.random.default_rng(len(kind))
    for dim in [*range(4, 70), 96, 100, 127, 128, 200, 255, 256, 300, 384, 511, 512]:
        weight = rng.normal(size=(300, dim)).astype(np.float32)
        host = MAKERS[kind](weight)
        device = host.to_gpu()
        assert device.device is not None and device.to_gpu() is device
        ids = rng.integers(300, size=500)
        rows = device.lookup(cupy.asarray(ids))
        np.testing.assert_array_equal(rows.get(), host.lookup(ids))
        lengths = rng.integers(0, 40, size=50)
        lengths[:3] = 0, 1, 0
        ids = rng.integers(300, size=lengths.sum()).astype(np.int32)
        offsets = np.cumsum(lengths) - lengths
        for mode in ("sum", "mean", "max"):
            found = device.bag(cupy.asarray(ids), cupy.asarray(offsets), mode=mode)
            wanted = host.bag(ids, offsets, mode=mode)
            allow_rounding(found.get(), wanted, host, ids, offsets)


@needs_gpu
def test_what_the_gpu_holds_is_reported(pair):
    host, device = pair
    assert host.held_bytes == host.nbytes == device.nbytes <= device.held_bytes
    assert host.device is None and device.to_cpu().device is None


@needs_gpu
def test_unchecked_bad_ids_do_not_stop_anything(cupy):
    device = EXAMPLES["8 bits"]().to_gpu()
    ids = cupy.asarray([1, ROWS + 5, 2])
    assert device.lookup(ids, check=False).shape == (3, 12)
    pooled = device.bag(ids, cupy.asarray([0]), check=False)
    wanted = device.bag(cupy.asarray([1, 2]), cupy.asarray([0]))
    np.testing.assert_allclose(pooled.get(), wanted.get(), rtol=1e-6)
    with pytest.raises(IndexError, match="1005 is out of range"):
        device.bag(ids, cupy.asarray([0]))


@needs_gpu
@pytest.mark.parametrize("key", ["half", "lsq", "lpt", "alpt", "mixed_precision_cache"])
def test_training_in_few_bits_works_on_the_gpu(key):
    ratio = 2 if key == "half" else 4
    found = [
        run(key, "synthetic", ratio, device=device, measure=False).test["auc"]
        for device in ("cpu", "cuda")
    ]
    assert found[0] == pytest.approx(found[1], abs=0.005)
