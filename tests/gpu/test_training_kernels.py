"""Kernels that training calls: what they compute is what it would be without them.

Each test runs twice: on a GPU where there is one, and on the processor, whose tensors
are then taken for a GPU's; see conftest.py.
"""

import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from survey_code import TableSpec
from survey_code.bits import pack_codes
from survey_code.embedding import Regime, TrainingStep
from survey_code.kernels.cuda import load_cupy
from survey_code.kernels.cuda.assign import assign_points
from survey_code.kernels.cuda.scatter import gather_blocks, scatter_blocks
from survey_code.kernels.cuda.tensors import reaches_kernels
from survey_code.kernels.cuda.writeback import draw_key, round_rows, write_rows
from survey_code.low_precision.quantization import (
    ALPT,
    LPT,
    MixedPrecisionCache,
    cache,
    lpt,
    writeback,
)
from survey_code.weight_sharing import lloyd
from survey_code.weight_sharing.hashing import ROBE, robe
from survey_code.weight_sharing.vector_quantization import (
    CCE,
    assigning_on,
    cluster_rows,
    nearest_rows,
    quantize_product,
)

try:
    load_cupy()
    HAS_GPU = True
except RuntimeError:
    HAS_GPU = False
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="no GPU, or no CuPy")
ROWS, DIM = 200, 12
SPEC = TableSpec.of_shape(ROWS, DIM)


@pytest.fixture(params=["processor", pytest.param("cuda", marks=needs_gpu)])
def device(request, monkeypatch):
    """Where tensors lie that reach the kernels."""
    if request.param == "cuda":
        return "cuda"
    request.getfixturevalue("fake_cupy")
    # The stand-in has no streams: they are not torch's, where there is a GPU as well.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def as_array(tensor):
        return sys.modules["cupy"].asarray(tensor.detach().numpy())

    for module in (writeback, robe):
        monkeypatch.setattr(module, "as_cupy", as_array)
        monkeypatch.setattr(module, "beside", lambda tensor: nullcontext())
    for module in (lpt, cache, robe):
        monkeypatch.setattr(module, "reaches_kernels", torch.Tensor.is_contiguous)
    return "cpu"


@pytest.fixture
def cupy(device):
    """CuPy, or what stands in for it."""
    return load_cupy()


def test_tensors_of_the_processor_reach_no_kernel():
    assert not reaches_kernels(torch.zeros(3, 4))


@needs_gpu
def test_tensors_on_a_gpu_reach_kernels_if_they_have_no_gaps():
    tensor = torch.zeros(3, 4, device="cuda")
    assert reaches_kernels(tensor) and not reaches_kernels(tensor.T)


# -- gradients of ROBE -------------------------------------------------------------


def draw_ids(count=300, kind=np.int64):
    return np.random.default_rng(1).integers(ROWS, size=count).astype(kind)


@pytest.mark.parametrize("kind", [np.int32, np.int64])
@pytest.mark.parametrize("number", [np.float32, np.float64])
@pytest.mark.parametrize(
    "block_len, signed", [(8, True), (5, False), (1, True), (20, True)]
)
def test_blocks_are_gathered_and_scattered_as_by_autograd(
    cupy, kind, number, block_len, signed
):
    # d loss / d values[start + j] is the sum of the gradients that read it.
    table = ROBE.make(SPEC, size=90, block_len=block_len, signed=signed)
    table.values.data = table.values.data.to(
        torch.from_numpy(np.zeros(1, number)).dtype
    )
    ids = draw_ids(kind=kind)
    gradients = np.random.default_rng(3).normal(size=(300, DIM)).astype(number)
    signs = table.signs.tolist() if signed else None
    how = block_len, table.multipliers.tolist(), signs
    values = cupy.asarray(table.values.detach().numpy()[:, 0])
    rows = gather_blocks(cupy.asarray(ids), values, DIM, *how)
    found = scatter_blocks(cupy.asarray(ids), cupy.asarray(gradients), 90, *how)
    wanted = table.read_runs(torch.from_numpy(ids.astype(np.int64)))
    (wanted * torch.from_numpy(gradients)).sum().backward()
    assert rows.dtype == found.dtype == number
    np.testing.assert_array_equal(rows.get(), wanted.detach())
    close = {"rtol": 1e-4, "atol": 1e-4} if number is np.float32 else {"rtol": 1e-9}
    np.testing.assert_allclose(found.get(), table.values.grad[:, 0], **close)


def test_no_rows_have_no_gradient(cupy):
    ids, none = cupy.zeros(0, dtype=np.int64), cupy.zeros((0, 4), dtype=np.float32)
    assert gather_blocks(ids, cupy.ones(9, dtype=np.float32), 4, 2, (1, 1, 1)).size == 0
    np.testing.assert_array_equal(
        scatter_blocks(ids, none, 9, 2, (1, 1, 1)).get(), np.zeros(9)
    )


def test_blocks_of_the_wrong_shape_are_value_errors(cupy):
    ids, rows = cupy.arange(3), cupy.zeros((3, 4), dtype=np.float32)
    with pytest.raises(ValueError, match="a row for each of 3 ids"):
        scatter_blocks(ids, rows[:2], 9, 2, (1, 1, 1))
    with pytest.raises(ValueError, match="a block of 4 does not fit into 3 values"):
        scatter_blocks(ids, rows, 3, 5, (1, 1, 1))
    with pytest.raises(ValueError, match="numbers float32 or float64"):
        scatter_blocks(ids, rows.astype(np.float16), 9, 2, (1, 1, 1))
    with pytest.raises(ValueError, match="ids must be int32 or int64"):
        scatter_blocks(ids.astype(np.uint8), rows, 9, 2, (1, 1, 1))
    with pytest.raises(ValueError, match="values must have one axis"):
        gather_blocks(ids, rows, 4, 2, (1, 1, 1))


def gradient_of(table, read, ids, upstream):
    table.zero_grad()
    rows = read(ids)
    (rows * upstream).sum().backward()
    return rows.detach().cpu(), table.values.grad


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_robe_learns_by_kernels_as_by_autograd(device, kind):
    table = ROBE.make(SPEC, size=300, signed=True).to(kind)
    ids = torch.from_numpy(draw_ids()).view(30, 10)
    upstream = torch.from_numpy(np.random.default_rng(2).normal(size=(30, 10, DIM)))
    by_torch = table.read_runs(ids.flatten()).view(30, 10, DIM)
    (by_torch * upstream.to(kind)).sum().backward()
    wanted = table.values.grad.clone()
    table = table.to(device)
    rows, found = gradient_of(table, table, ids.to(device), upstream.to(device, kind))
    assert robe.runs_on_gpu(table, ids) and found.dtype == kind
    assert torch.equal(rows, by_torch.detach())
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-4, atol=1e-4)


def test_robes_gradient_is_sparse_where_little_is_read_of_much(device):
    table = ROBE.make(SPEC, size=10_000).to(device)
    few, many = (torch.from_numpy(draw_ids(n)).to(device) for n in (5, 60))
    for sparse, ids, expected in (
        (False, few, False), (True, few, True), (True, many, False)
    ):  # fmt: skip
        table.begin(Regime("sgd", sparse))
        _, found = gradient_of(table, table, ids, 1.0)
        assert found.is_sparse == expected


# -- tables in few bits ------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
@pytest.mark.parametrize(
    "dim, low", [(1, None), (13, None), (257, None), (8, 0), (13, -1)]
)
def test_the_kernel_stores_numpys_codes(cupy, bits, dim, low):
    rng = np.random.default_rng(dim)
    width = -(-dim * bits // 8)
    table = rng.integers(0, 256, size=(90, width + 5)).astype(np.uint8)
    ids = rng.permutation(90)[:40]
    rows = rng.normal(size=(40, dim)).astype(np.float32)
    steps = rng.uniform(0.01, 1, size=40).astype(np.float32)
    device, key = cupy.asarray(table.copy()), draw_key(3, 11)
    write_rows(device, *map(cupy.asarray, (ids, rows, steps)), bits, key, low)
    codes = round_rows(rows, ids, steps, bits, key, low)
    table[ids, :width] = pack_codes(codes, bits)
    np.testing.assert_array_equal(device.get(), table)


def test_rows_of_the_wrong_shape_are_value_errors(cupy):
    table, ids = cupy.zeros((5, 4), dtype=np.uint8), cupy.arange(2)
    rows, steps = (cupy.ones(s, dtype=np.float32) for s in ((2, 8), 2))
    with pytest.raises(ValueError, match="bits must be 8, 4, 3, 2 or 1, got 5"):
        write_rows(table, ids, rows, steps, 5, draw_key(0, 0))
    with pytest.raises(ValueError, match="a uint8 table of at least 8 bytes"):
        write_rows(table, ids, rows, steps, 8, draw_key(0, 0))


def train(table, device, steps=4):
    """Pull some rows towards 1, step by step."""
    rng = np.random.default_rng(5)
    for _ in range(steps):
        ids = torch.from_numpy(rng.integers(ROWS, size=60)).to(device)

        def loss(ids=ids):
            return (table(ids) - 1).square().sum()

        table.advance(0.0)
        loss().backward()
        table.after_step(TrainingStep(loss, loss, nn.Module(), 0.05, 0.0))


def as_arrays(*tensors):
    return [tensor.detach().cpu().numpy() for tensor in tensors]


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
@pytest.mark.parametrize(
    "make", [LPT.make, lambda *a, **k: LPT.make(*a, per="table", **k), ALPT.make]
)
def test_integers_are_written_back_as_numpy_rounds_them(
    device, monkeypatch, make, bits
):
    table = make(SPEC, seed=7, bits=bits).to(device).train()
    table.begin(Regime("adam"))
    wanted, store = as_arrays(table.codes)[0].copy(), table.store_rows

    def note(ids, rows):
        store(ids, rows)
        steps = table.read_steps(ids).expand(len(ids), 1)[:, 0]
        own, rows, steps = as_arrays(ids, rows, steps)
        key = draw_key(7, table.steps_done)
        above = rows + np.float32((2**bits - 1) / 2) * steps[:, None]
        codes = round_rows(above, own, steps, bits, key, 0)
        wanted[own] = pack_codes(codes, bits)

    monkeypatch.setattr(table, "store_rows", note)
    before = wanted.copy()
    train(table, device)
    assert (wanted != before).any()
    np.testing.assert_array_equal(as_arrays(table.codes)[0], wanted)


def test_rows_are_still_rounded_to_the_nearest_where_that_is_asked(device):
    table = LPT.make(SPEC, bits=8, rounding="nearest").to(device)
    ids = torch.arange(0, ROWS, 3).to(device)
    rows = torch.randn(len(ids), DIM, generator=torch.Generator().manual_seed(0))
    table.store_rows(ids, rows.to(device))
    steps, codes = as_arrays(table.read_steps(ids), table.codes[ids])
    wanted = np.rint(rows.numpy() / steps + np.float32(127.5))
    np.testing.assert_array_equal(codes, wanted)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_what_leaves_a_cache_is_rounded_as_numpy_does(device, monkeypatch, bits):
    made = MixedPrecisionCache.make(SPEC, seed=7, bits=bits, slots=24, ways=4)
    table = made.to(device).train()
    table.begin(Regime("sgd"))
    wanted, round_back = as_arrays(table.rows)[0].copy(), table.round_back

    def note(ids, rows):
        round_back(ids, rows)
        gaps, scale, tail = cache.measure_ends(rows, bits)
        own, gaps, scale, tail = as_arrays(ids, gaps, scale[:, 0], tail)
        codes = round_rows(gaps, own, scale, bits, draw_key(7, table.steps_done), 0)
        wanted[own] = np.concatenate([pack_codes(codes, bits), tail], axis=1)

    monkeypatch.setattr(table, "round_back", note)
    before = wanted.copy()
    train(table, device)
    assert (wanted != before).any()
    np.testing.assert_array_equal(as_arrays(table.rows)[0], wanted)


# -- k-means -----------------------------------------------------------------------


@pytest.fixture
def asked(cupy, monkeypatch):
    """How many points were asked for on a GPU, and how many of them were not sure."""
    counts = np.zeros(2, dtype=np.int64)
    ask = lloyd.assign_on_gpu

    def note(points, centroids):
        nearest, sure = ask(points, centroids)
        counts[:] += len(sure), (~sure).sum()
        return nearest, sure

    monkeypatch.setattr(lloyd, "assign_on_gpu", note)
    monkeypatch.setattr(lloyd, "WORTH", 1)
    monkeypatch.setattr(lloyd, "SENT", 500)
    return counts


def scattered(rng, count, dim):
    return rng.normal(size=(count, dim))


def lattice(rng, count, dim):
    """Many points as far from one centroid as from another."""
    return rng.integers(3, size=(count, dim)).astype(np.float64)


def far_away(rng, count, dim):
    """In float32 a thousandth of a neighbour's distance is lost."""
    return 1e4 + rng.normal(size=(count, dim))


def tiny(rng, count, dim):
    """Squares are too small for a float."""
    return 1e-22 * rng.normal(size=(count, dim))


def huge(rng, count, dim):
    """Squares are too large for a float."""
    return 1e25 * rng.normal(size=(count, dim))


@pytest.mark.filterwarnings("ignore:overflow")  # CuPy gives none
@pytest.mark.parametrize("draw", [scattered, lattice, far_away, tiny, huge])
@pytest.mark.parametrize("dim", [1, 3, 64])
def test_points_are_assigned_on_a_gpu_as_on_the_cpu(asked, draw, dim):
    rng = np.random.default_rng(dim)
    points, centroids = draw(rng, 1100, dim), draw(rng, 40, dim)
    wanted = nearest_rows(points, centroids)
    with assigning_on("cuda"):
        found = nearest_rows(points, centroids)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert asked[0] == 1100
    if draw is scattered:
        assert asked[1] < 10


def test_clusters_are_the_same_digit_by_digit(asked):
    points = np.random.default_rng(1).normal(size=(600, 6)).astype(np.float32)
    wanted = cluster_rows(points, 16, np.random.default_rng(0))
    product = quantize_product(points, 2, 8, np.random.default_rng(0))
    with assigning_on("cuda"):
        found = cluster_rows(points, 16, np.random.default_rng(0))
        again = quantize_product(points, 2, 8, np.random.default_rng(0))
    assert asked[0] >= 600 * len(found.losses) and found.losses == wanted.losses
    np.testing.assert_array_equal(found.centroids, wanted.centroids)
    np.testing.assert_array_equal(found.codes, wanted.codes)
    np.testing.assert_array_equal(again.codes, product.codes)
    np.testing.assert_array_equal(again.codewords, product.codewords)


def test_a_gpu_is_asked_only_where_someone_says_so(asked):
    points = np.random.default_rng(1).normal(size=(600, 65))
    nearest_rows(points[:, :6], points[:9, :6])
    with assigning_on("cuda"):
        nearest_rows(points, points[:9])  # too wide for it
        with assigning_on("cpu"):
            nearest_rows(points[:, :6], points[:9, :6])
    assert asked[0] == 0
    with pytest.raises(ValueError, match="device must be 'cpu' or 'cuda'"):
        with assigning_on("gpu"):
            pass


@pytest.mark.skipif(HAS_GPU, reason="a GPU is present")
def test_without_a_gpu_asking_for_one_says_so():
    with pytest.raises(RuntimeError, match="the GPU look-up needs"):
        with assigning_on("cuda"):
            pass
    assert lloyd.ASSIGNS_ON.get() == "cpu"


@needs_gpu
@pytest.mark.parametrize("dim", [1, 2, 8, 16, 48, 64])
def test_most_of_many_points_are_sure(dim):
    rng = np.random.default_rng(7)
    points = rng.normal(size=(50_000, dim)).astype(np.float32)
    centroids = rng.normal(size=(1500, dim)).astype(np.float32)
    nearest, sure = assign_points(*map(load_cupy().asarray, (points, centroids)))
    wanted, _ = nearest_rows(points, centroids)
    nearest, sure = nearest.get(), sure.get()
    np.testing.assert_array_equal(nearest[sure], wanted[sure])
    assert sure.mean() > 0.99


@needs_gpu
def test_cce_clusters_on_a_gpu_as_on_the_cpu(monkeypatch):
    monkeypatch.setattr(lloyd, "WORTH", 1)
    tables = [CCE.make(SPEC, books=2, bits=4) for _ in range(2)]
    for table, place in zip(tables, ("cpu", "cuda"), strict=True):
        table.to(place).cluster()
    first, second = (table.cpu() for table in tables)
    assert torch.equal(first.codes, second.codes)
    torch.testing.assert_close(first.values, second.values)
