"""Kernels whose blocks wait and share memory, without a GPU: as NumPy does.

First what stands in for the GPU (conftest.py, cuda_words.h): it must not forgive what
a GPU does not.  Then the package's kernels.
"""

import numpy as np
import pytest
from layout_examples import EXAMPLES, ROWS

from survey_code.kernels.cuda import assign, hamming
from survey_code.kernels.cuda.assign import assign_points
from survey_code.kernels.cuda.hamming import nearest_codes
from survey_code.layouts import BinaryLayout

TURN = """
__global__ void turn(const float* given, float* out) {
  extern __shared__ float own[];
  const int first = blockIdx.x * blockDim.x;
  own[threadIdx.x] = given[first + threadIdx.x];
  __syncthreads();
  out[first + threadIdx.x] = own[blockDim.x - 1 - threadIdx.x];
}
"""
# A thread reads what the one before it wrote.
FOLLOW = TURN.replace(
    "own[blockDim.x - 1 - threadIdx.x]", "own[max(threadIdx.x, 1) - 1]"
)
PARTLY = """
__global__ void meet(int some, int others, int shuffled) {
  if (threadIdx.x < some) __syncthreads();
  else if (threadIdx.x < others) __syncthreads();
  else if (threadIdx.x < shuffled) __shfl_sync(0xffffffff, 1, 0, 32);
  else if (!shuffled) for (int k = 0; k <= threadIdx.x % 2; ++k) __syncthreads();
}
"""
FOUND = """
template <class T>
__global__ void find(int* out) {
  __shared__ T own[4], more[2];
  out[blockIdx.x * blockDim.x + threadIdx.x] = own[threadIdx.x] + more[threadIdx.x % 2];
  own[threadIdx.x] = 7;
}
"""
COUNTED = """
__global__ void count(const int* given, unsigned* counts) {
  __shared__ unsigned bins[5];
  if (threadIdx.x < 5) bins[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(&bins[given[blockIdx.x * blockDim.x + threadIdx.x]], 1);
  __syncthreads();
  if (threadIdx.x < 5) atomicAdd(counts + threadIdx.x, bins[threadIdx.x]);
}
"""
BLOCKS, THREADS = 5, 96


def load(fake, code, expression, *options):
    module = fake.RawModule(code=code, options=options, name_expressions=[expression])
    return module.get_function(expression)


def turned(fake, code, shared_mem=4 * THREADS, options=()):
    """What a kernel makes of 0, 1, ..., a row for each block."""
    given = fake.arange(BLOCKS * THREADS, dtype=np.float32)
    out = fake.zeros_like(given)
    kernel = load(fake, code, "turn", *options)
    kernel((BLOCKS,), (THREADS,), (given, out), shared_mem=shared_mem)
    return given.reshape(BLOCKS, THREADS), out.reshape(BLOCKS, THREADS)


def test_a_block_shares_memory_and_waits(fake_cupy):
    given, out = turned(fake_cupy, TURN)
    np.testing.assert_array_equal(out, given[:, ::-1])


def test_shared_memory_may_be_declared_in_a_header(fake_cupy, tmp_path):
    old = "  extern __shared__ float own[];\n"
    new = "extern __shared__ __align__(16)\n  float own[];\n"
    assert old in TURN
    (tmp_path / "own.cuh").write_text(new)
    code = '#include "own.cuh"\n' + TURN.replace(old, "")
    given, out = turned(fake_cupy, code, options=(f"-I{tmp_path}",))
    np.testing.assert_array_equal(out, given[:, ::-1])


@pytest.mark.parametrize("code", [TURN, FOLLOW])
def test_a_missing_barrier_is_seen(fake_cupy, code):
    """Threads that read too early find NaN, whatever the order in which they run."""
    _, out = turned(fake_cupy, code)
    assert not np.isnan(out).any()
    _, out = turned(fake_cupy, code.replace("__syncthreads();", ""))
    assert np.isnan(out).any()


def test_shared_memory_ends_where_the_launch_says(fake_cupy):
    with pytest.raises(
        AssertionError, match=r"turn: block \(0, .* wrote beside the 380"
    ):
        turned(fake_cupy, TURN, 4 * (THREADS - 1))
    with pytest.raises(AssertionError, match="wrote beside the 0 bytes"):
        turned(fake_cupy, TURN, 0)
    with pytest.raises(AssertionError, match="49156 bytes of shared memory"):
        turned(fake_cupy, TURN, 48 * 1024 + 4)


def test_a_kernel_may_ask_for_more_shared_memory(fake_cupy):
    kernel = load(fake_cupy, TURN, "turn")
    kernel.max_dynamic_shared_size_bytes = 100_000
    given, out = (
        fake_cupy.ones(THREADS, np.float32),
        fake_cupy.zeros(THREADS, np.float32),
    )
    kernel((1,), (THREADS,), (given, out), shared_mem=100_000)
    np.testing.assert_array_equal(out, given)


@pytest.mark.parametrize(
    "some, others, shuffled, message",
    [
        (16, 0, 32, "16 wait .* in line 3 of .* 0 at others, 16 for a shuffle; 0 have"),
        (
            16,
            32,
            32,
            "16 wait .* in line 3 of .* 16 at others, 0 for a shuffle; 0 have",
        ),
        (16, 0, 1, "16 wait .* in line 3 of .* 0 at others, 0 for a shuffle; 16 have"),
        (0, 16, 1, "16 wait .* in line 4 of .* 0 at others, 0 for a shuffle; 16 have"),
        (0, 0, 9, "0 wait .* 0 at others, 9 for a shuffle; 23 have ended"),
        (0, 0, 0, "16 wait .* in line 6 of .* 0 at others, 0 for a shuffle; 16 have"),
    ],
)
def test_a_barrier_that_some_do_not_reach_is_reported(
    fake_cupy, some, others, shuffled, message
):
    kernel = load(fake_cupy, PARTLY, "meet")
    numbers = [np.int32(n) for n in (some, others, shuffled)]
    with pytest.raises(AssertionError, match=f"stands still: of 32 threads {message}"):
        kernel((3,), (32,), numbers)
    # The next launch knows nothing of it.
    for right in ((32, 0, 1), (0, 32, 1), (0, 0, 32)):
        kernel((3,), (32,), [np.int32(n) for n in right])


@pytest.mark.parametrize("kind", ["int", "long long", "signed char"])
def test_shared_memory_is_not_cleared(fake_cupy, kind):
    """What a block finds is neither 0 nor what the one before it left."""
    name = f"find<{kind}>"
    # A library of its own, with a kernel of the same name: nothing in common.
    for code in (FOUND, FOUND + "// again"):
        out = fake_cupy.zeros((3, 4), np.int32)
        load(fake_cupy, code, name)((3,), (4,), (out,))
        np.testing.assert_array_equal(out, -2)


def test_counts_meet_in_shared_memory(fake_cupy):
    given = fake_cupy.asarray(np.arange(192, dtype=np.int32) ** 2 % 5)
    counts = fake_cupy.zeros(5, np.uint32)
    load(fake_cupy, COUNTED, "count")((2,), (96,), (given, counts))
    np.testing.assert_array_equal(counts, np.bincount(given, minlength=5))


# -- k-means -----------------------------------------------------------------------


def draw_points(dim, count, clusters, whole):
    """Points and centroids; of whole numbers, many centroids are equally far."""
    rng = np.random.default_rng(dim + count)
    drawn = [rng.normal(size=(n, dim)).astype(np.float32) for n in (count, clusters)]
    return [np.round(numbers) for numbers in drawn] if whole else drawn


def squares(points, centroids):
    """Squared distances in float64, one by one."""
    gaps = points[:, None].astype(np.float64) - centroids[None]
    return np.square(gaps).sum(axis=2)


@pytest.mark.parametrize("held", [None, 7, 1])
@pytest.mark.parametrize("dim", [1, 3, 8, 64])
def test_of_equal_centroids_the_first_is_assigned(fake_cupy, monkeypatch, dim, held):
    """Distances of whole numbers are exact; ties lie within a tile and across."""
    if held:
        monkeypatch.setattr(assign, "SHARED_BYTES", 4 * dim * held)
    for count in (1, 256, 300):
        points, centroids = draw_points(dim, count, 30, whole=True)
        centroids = np.concatenate([centroids, centroids[::-1]])
        found = assign_points(fake_cupy.asarray(points), fake_cupy.asarray(centroids))
        distances = squares(points, centroids)
        np.testing.assert_array_equal(found[0], distances.argmin(axis=1))
        assert found[0].dtype == np.int32
        # Each centroid stands there twice.
        assert not found[1].any()


@pytest.mark.parametrize("dim", [1, 3, 8, 64])
def test_the_nearest_centroid_is_numpys(fake_cupy, dim):
    """More centroids than a tile holds, where they are wide."""
    clusters = 13_000 // dim
    points, centroids = draw_points(dim, 70, clusters, whole=False)
    nearest, sure = assign_points(
        fake_cupy.asarray(points), fake_cupy.asarray(centroids)
    )
    distances = squares(points, centroids)
    np.testing.assert_array_equal(nearest[sure], distances.argmin(axis=1)[sure])
    # The others lost by a rounding.
    chosen = np.take_along_axis(distances, nearest[:, None].astype(np.int64), axis=1)
    np.testing.assert_allclose(
        chosen[:, 0], distances.min(axis=1), rtol=1e-4, atol=1e-7
    )
    assert sure.mean() > 0.8


def test_a_single_centroid_is_everyones(fake_cupy):
    points, centroids = draw_points(3, 257, 1, whole=False)
    nearest, _ = assign_points(fake_cupy.asarray(points), fake_cupy.asarray(centroids))
    np.testing.assert_array_equal(nearest, np.zeros(257))


# -- binary codes ------------------------------------------------------------------


def sort_codes(queries, codes, k):
    """The k codes with the fewest differing bits, by sorting all of them."""
    differ = np.unpackbits(queries[:, None] ^ codes[None], axis=2).sum(axis=2)
    return differ.argsort(axis=1, kind="stable")[:, :k]


def draw_codes(width, rows, count):
    """Codes of so many bytes, some of them twice, and queries, some of them stored."""
    rng = np.random.default_rng(width + rows)
    codes = rng.integers(256, size=(rows, width), dtype=np.uint8)
    codes[rows // 2 :] = codes[: rows - rows // 2]
    queries = rng.integers(256, size=(count, width), dtype=np.uint8)
    queries[: count // 2] = codes[rng.integers(rows, size=count // 2)]
    return queries, codes


@pytest.mark.parametrize(
    "width, rows, count, k",
    [
        (1, 1, 1, 1),
        (1, 700, 40, 700),  # three groups of queries, nearly all codes tie
        (5, 257, 17, 20),
        (8, 512, 16, 1),
        (9, 300, 33, 299),
        (16, 255, 15, 255),
        (64, 300, 18, 1),
        (64, 300, 18, 300),
    ],
)
def test_the_nearest_codes_are_those_of_a_sort(fake_cupy, width, rows, count, k):
    queries, codes = draw_codes(width, rows, count)
    found = nearest_codes(fake_cupy.asarray(queries), fake_cupy.asarray(codes), k)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, sort_codes(queries, codes, k))


def test_threads_take_more_codes_and_calls_more_queries(fake_cupy, monkeypatch):
    monkeypatch.setattr(hamming, "BLOCKS", 2)
    monkeypatch.setattr(hamming, "CHUNK", 20)
    queries, codes = draw_codes(8, 1300, 50)
    found = nearest_codes(fake_cupy.asarray(queries), fake_cupy.asarray(codes), 30)
    np.testing.assert_array_equal(found, sort_codes(queries, codes, 30))
    assert fake_cupy.launched == 3 * ["count_distances<1>", "gather_within<1>"]


def test_opposite_codes_differ_in_every_bit(fake_cupy):
    """The last bin is counted, and read."""
    codes = np.zeros((40, 64), np.uint8)
    codes[5] = 255
    found = nearest_codes(fake_cupy.asarray(codes[:2]), fake_cupy.asarray(codes), 40)
    np.testing.assert_array_equal(found, 2 * [[*range(5), *range(6, 40), 5]])


def test_codes_that_are_too_long_are_a_value_error(fake_cupy):
    codes = fake_cupy.zeros((3, 65), np.uint8)
    with pytest.raises(ValueError, match="at most 512 bits, got 576"):
        nearest_codes(codes, codes, 1)


# -- layouts -----------------------------------------------------------------------


@pytest.mark.parametrize("bits", [3, 64, 100])
def test_a_binary_layouts_nearest_are_the_cpus(fake_cupy, bits):
    rng = np.random.default_rng(bits)
    layout, other = (
        BinaryLayout.from_signs(rng.normal(size=(n, bits))) for n in (300, 40)
    )
    ids = rng.integers(300, size=20)
    found = layout.to_gpu().topk(fake_cupy.asarray(ids), 9, candidates=(50, 300))
    np.testing.assert_array_equal(found, layout.topk(ids, 9, candidates=(50, 300)))
    ids = np.array([39, 0, 3])
    found = layout.to_gpu().topk(fake_cupy.asarray(ids), 300, source=other.to_gpu())
    np.testing.assert_array_equal(found, layout.topk(ids, 300, source=other))
    words = -(-bits // 64)
    assert fake_cupy.launched == 2 * [
        f"count_distances<{words}>",
        f"gather_within<{words}>",
    ]


@pytest.mark.parametrize(
    "name", ["codes", "codes, half", "codes, turned", "added codes"]
)
def test_scores_by_table_look_up_are_the_cpus(fake_cupy, name):
    host = EXAMPLES[name]()
    queries = np.random.default_rng(6).normal(size=(5, 12)).astype(np.float32)
    for first, stop in ((0, ROWS), (17, 900), (5, 6)):
        fake_cupy.launched.clear()
        found = host.to_gpu().scores(fake_cupy.asarray(queries), (first, stop))
        assert any("add_scores" in kernel for kernel in fake_cupy.launched)
        wanted = host.scores(queries, (first, stop))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
