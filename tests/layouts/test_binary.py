"""The binary layout: packed bits, scales, and search by counting bits."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from survey_code import load_layout
from survey_code.bits import ONES
from survey_code.layouts import BinaryLayout
from survey_code.layouts.binary import hamming_distances, pack_signs
from survey_code.layouts.nearest import choose_nearest

DIMS = (1, 5, 8, 13, 64, 72)


def normal(rows, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def blocked(rows=30, dim=24, blocks=3, kind=np.float32):
    scales = np.abs(normal(rows, blocks, 1)).astype(kind)
    return BinaryLayout.from_signs(normal(rows, dim), scales, blocks)


# -- bits ----------------------------------------------------------------------


@pytest.mark.parametrize("dim", DIMS)
def test_bits_are_those_of_numpys_packbits(dim):
    table = normal(40, dim)
    packed = pack_signs(table)
    wanted = np.packbits(table >= 0, axis=1, bitorder="little")
    np.testing.assert_array_equal(packed[:, 0], wanted)
    bits = np.unpackbits(packed[:, 0], axis=1, count=dim, bitorder="little")
    found = BinaryLayout.from_signs(table).lookup(np.arange(40))
    np.testing.assert_array_equal(found, 2.0 * bits - 1)


def test_zero_counts_as_positive():
    layout = BinaryLayout.from_signs(np.array([[0.0, -0.0, -1.0]]))
    np.testing.assert_array_equal(layout.lookup(0), [1, 1, -1])


@pytest.mark.parametrize("dim", DIMS)
def test_bytes_are_a_bit_per_entry_and_the_scales(dim):
    table = normal(10, dim)
    width = -(-dim // 8)
    assert BinaryLayout.from_signs(table).nbytes == 10 * width
    for scales, extra in [
        (np.ones((1, 1), np.float32), 4),
        (np.ones((10, 1), np.float32), 40),
        (np.ones((10, 1), np.float16), 20),
    ]:
        assert BinaryLayout.from_signs(table, scales).nbytes == 10 * width + extra


def test_blocks_start_at_whole_bytes():
    layout = BinaryLayout.from_signs(normal(10, 15), blocks=3)
    assert layout.packed.shape == (10, 3, 1) and layout.width == 5
    np.testing.assert_array_equal(layout.lookup(np.arange(10)), np.sign(normal(10, 15)))


def test_scales_multiply_their_blocks():
    layout = blocked()
    wanted = np.sign(normal(30, 24)) * np.repeat(layout.scales, 8, axis=1)
    np.testing.assert_array_equal(layout.lookup(np.arange(30)), wanted)


def test_half_scales_are_read_as_they_are_stored():
    layout = blocked(kind=np.float16)
    wanted = np.repeat(layout.scales.astype(np.float32), 8, axis=1)
    np.testing.assert_array_equal(np.abs(layout.lookup(np.arange(30))), wanted)


def test_two_magnitude_bits_choose_a_level():
    """Row i has code (i // 2) % 4; four codes to a byte, low bits first."""
    magnitudes = np.packbits(
        [[code & 1, code >> 1] for code in (np.arange(12) // 2) % 4], bitorder="little"
    )
    levels = np.array([1, 2, 4, 8], np.float32)
    layout = BinaryLayout(
        pack_signs(normal(12, 6)), 6, magnitudes=magnitudes, levels=levels
    )
    found = np.abs(layout.lookup(np.arange(12)))
    np.testing.assert_array_equal(found[:, 0], levels[(np.arange(12) // 2) % 4])
    assert layout.nbytes == 12 + 3 + 16


# -- distances -------------------------------------------------------------------


@pytest.mark.parametrize("dim", DIMS)
def test_distances_are_scipys_hamming(dim):
    one, two = normal(20, dim, 1), normal(30, dim, 2)
    found = hamming_distances(pack_signs(one)[:, 0], pack_signs(two)[:, 0])
    wanted = cdist(one >= 0, two >= 0, "hamming") * dim
    np.testing.assert_array_equal(found, np.rint(wanted))


def test_the_table_of_ones_counts_bits():
    """What array libraries without a bit count read."""
    np.testing.assert_array_equal(
        ONES, np.bitwise_count(np.arange(256, dtype=np.uint8))
    )


@pytest.mark.parametrize("dim", DIMS)
def test_product_is_r_minus_2_h(dim):
    """b . d = r - 2 H(b, d)."""
    layout = BinaryLayout.from_signs(normal(25, dim))
    rows = layout.lookup(np.arange(25))
    distances = hamming_distances(layout.packed[:, 0], layout.packed[:, 0])
    np.testing.assert_array_equal(rows @ rows.T, dim - 2 * distances)
    np.testing.assert_array_equal(layout.scores(np.arange(25)), dim - 2 * distances)


@given(seed=st.integers(0, 1000), dim=st.integers(1, 70))
def test_hamming_distance_is_a_metric(seed, dim):
    codes = pack_signs(normal(6, dim, seed))[:, 0]
    distances = hamming_distances(codes, codes)
    same = (codes[:, None] == codes[None]).all(axis=2)
    np.testing.assert_array_equal(distances == 0, same)
    np.testing.assert_array_equal(distances, distances.T)
    assert (distances[:, None] <= distances[:, :, None] + distances[None]).all()


def test_a_bit_of_a_random_projection_differs_with_chance_theta_over_pi():
    """Pr[sign(a . x) != sign(a . y)] = angle(x, y) / pi; four deviations wide."""
    pair = normal(2, 10, seed=3)
    cosine = pair[0] @ pair[1] / np.prod(np.linalg.norm(pair, axis=1))
    chance, bits = np.arccos(cosine) / np.pi, 100_000
    codes = pack_signs(pair @ normal(10, bits, seed=4))[:, 0]
    share = hamming_distances(codes[:1], codes[1:])[0, 0] / bits
    assert share == pytest.approx(
        chance, abs=float(4 * np.sqrt(chance * (1 - chance) / bits))
    )


# -- search ----------------------------------------------------------------------

LAYOUTS = {
    "plain": lambda: BinaryLayout.from_signs(normal(50, 13)),
    "words": lambda: BinaryLayout.from_signs(normal(50, 64)),
    "table scale": lambda: BinaryLayout.from_signs(
        normal(50, 13), np.full((1, 1), 0.5, np.float32)
    ),
    "row scales": lambda: blocked(50, 13, 1),
    "blocks": lambda: blocked(50),
    "half": lambda: blocked(50, kind=np.float16),
    "negative scale": lambda: BinaryLayout.from_signs(
        normal(50, 16), -np.ones((1, 1), np.float32)
    ),
    "magnitudes": lambda: BinaryLayout(
        pack_signs(normal(50, 9)),
        9,
        magnitudes=np.arange(13, dtype=np.uint8) * 19,
        levels=np.array([0.5, 1, 1.5, 2], np.float32),
    ),
}


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
def test_scores_are_the_dense_inner_products(make):
    layout = make()
    rows = layout.lookup(np.arange(50)).astype(np.float64)
    queries = np.array([4, 0, 49, 4])
    found = layout.scores(queries)
    assert found.dtype == np.float32 and found.shape == (4, 50)
    np.testing.assert_allclose(found, rows[queries] @ rows.T, rtol=1e-5, atol=1e-5)
    part = layout.scores(queries, candidates=(10, 35))
    np.testing.assert_array_equal(part, found[:, 10:35])


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("k", [1, 7, 40])
def test_topk_is_the_argsort_of_the_scores(make, k):
    layout = make()
    queries = np.arange(0, 50, 3)
    wanted = (
        10 + np.argsort(-layout.scores(queries, (10, 50)), axis=1, kind="stable")[:, :k]
    )
    found = layout.topk(queries, k, candidates=(10, 50), chunk=5)
    np.testing.assert_array_equal(found, wanted)


def test_topk_without_scales_is_the_argsort_of_dense_integer_products():
    layout = BinaryLayout.from_signs(normal(60, 10))
    rows = layout.lookup(np.arange(60)).astype(np.int64)
    wanted = np.argsort(-(rows @ rows.T), axis=1, kind="stable")[:, :20]
    np.testing.assert_array_equal(layout.topk(np.arange(60), 20), wanted)


def test_topk_has_the_distances_of_scikit_learns_neighbours():
    table = normal(80, 24)
    layout = BinaryLayout.from_signs(table)
    search = NearestNeighbors(n_neighbors=9, metric="hamming", algorithm="brute")
    wanted, _ = search.fit(table >= 0).kneighbors(table >= 0)
    found = layout.topk(np.arange(80), 9)
    distances = (24 - np.take_along_axis(layout.scores(np.arange(80)), found, 1)) / 2
    np.testing.assert_allclose(distances, 24 * wanted, atol=1e-5)


def test_queries_may_come_from_another_table():
    items, users = blocked(40), BinaryLayout.from_signs(normal(5, 24, 9), blocks=3)
    left = users.lookup(np.arange(5))
    right = items.lookup(np.arange(40))
    found = items.scores([3, 1], source=users)
    np.testing.assert_allclose(found, left[[3, 1]] @ right.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(
        items.topk([3, 1], 4, source=users), np.argsort(-found, kind="stable")[:, :4]
    )


@given(
    scores=st.lists(
        st.lists(st.integers(-2, 2), min_size=6, max_size=6), min_size=1, max_size=4
    ),
    k=st.integers(1, 6),
)
def test_of_equal_scores_the_first_columns_are_chosen(scores, k):
    scores = np.array(scores, np.float32)
    wanted = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(choose_nearest(scores, k), wanted)


def test_searching_for_nothing_gives_nothing():
    layout = blocked()
    assert layout.scores([]).shape == (0, 30)
    assert layout.topk([], 3).shape == (0, 3)


@pytest.mark.parametrize("k", [0, -1, 31, 2.0, None])
def test_bad_k_is_a_value_error(k):
    with pytest.raises(ValueError, match="k must be from 1 to 30"):
        blocked().topk([0], k)


@pytest.mark.parametrize("candidates", [(0, 31), (-1, 4), (5, 5), (9, 3)])
def test_candidates_that_are_no_range_of_ids_are_a_value_error(candidates):
    for call in (blocked().scores, lambda ids, c: blocked().topk(ids, 1, c)):
        with pytest.raises(ValueError, match="candidates must be a range"):
            call([0], candidates)


def test_bad_queries_are_clear_errors():
    layout = blocked()
    for wrong in ([-1], [30]):
        with pytest.raises(IndexError, match="out of range"):
            layout.scores(wrong)
        with pytest.raises(IndexError, match="out of range"):
            layout.topk(wrong, 2)
    with pytest.raises(ValueError, match="integers"):
        layout.scores([0.5])
    with pytest.raises(ValueError, match="one axis"):
        layout.scores([[0, 1]])
    for other in (BinaryLayout.from_signs(normal(4, 24)), blocked(4, 18)):
        with pytest.raises(ValueError, match=r"queries have .* bits in"):
            layout.scores([0], source=other)


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25], ids=repr)
def test_a_tables_scale_does_not_change_the_ranking(size):
    """Products of such scales are 0, or infinite, in float32."""
    scale = np.full((1, 1), size, np.float32)
    found = BinaryLayout.from_signs(normal(60, 24), scale).topk(np.arange(9), 20)
    plain = BinaryLayout.from_signs(normal(60, 24)).topk(np.arange(9), 20)
    np.testing.assert_array_equal(found, plain)


@pytest.mark.parametrize("scale", [None, 0.5])
def test_of_equal_distances_the_lower_ids_come_first(scale):
    rows = np.tile([[1.0, -1.0, 1.0], [1.0, 1.0, 1.0]], (40, 1))
    scales = None if scale is None else np.full((1, 1), scale, np.float32)
    layout = BinaryLayout.from_signs(rows, scales)
    found = layout.topk([0, 1], 50, candidates=(7, 80))
    for query, best in enumerate(found):
        ids = np.arange(7, 80)
        same = ids[ids % 2 == query]
        wanted = np.concatenate([same, ids[ids % 2 != query]])[:50]
        np.testing.assert_array_equal(best, wanted)


@pytest.mark.parametrize("scaled", [False, True])
def test_searching_with_other_codes_is_one_clear_error(scaled):
    scales = np.ones((4, 1), np.float32) if scaled else None
    other = BinaryLayout.from_signs(normal(4, 32), scales)
    for call in (
        lambda: BinaryLayout.from_signs(normal(9, 24)).topk([0], 2, source=other),
        lambda: BinaryLayout.from_signs(normal(9, 24)).scores([0], source=other),
    ):
        with pytest.raises(ValueError, match="queries have 32 bits"):
            call()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_the_sign_of_what_is_no_number_is_refused(wrong, kind):
    table = normal(20, 9).astype(kind)
    table[13, 4] = wrong
    for call in (pack_signs, BinaryLayout.from_signs):
        with pytest.raises(ValueError, match=r"must be finite .* row 13"):
            call(table)


def test_truth_values_are_the_bits():
    table = normal(50, 11)
    np.testing.assert_array_equal(pack_signs(table >= 0), pack_signs(table))


# -- arrays that contradict ------------------------------------------------------

GOOD = pack_signs(normal(6, 10))
ONE = np.ones((1, 1), np.float32)
LEVELS = np.ones(4, np.float32)
WRONG = {
    "bool": lambda: BinaryLayout(GOOD.astype(bool), 10),
    "two axes": lambda: BinaryLayout(GOOD[:, 0], 10),
    "too short": lambda: BinaryLayout(GOOD[:, :, :1], 10),
    "too long": lambda: BinaryLayout(GOOD, 8),
    "no rows": lambda: BinaryLayout(GOOD[:0], 10),
    "no blocks": lambda: BinaryLayout(GOOD[:, :0], 10),
    "blocks that do not divide": lambda: BinaryLayout(pack_signs(normal(6, 6), 2), 7),
    "padding bits": lambda: BinaryLayout(GOOD | np.uint8(128), 10),
    "scales of another type": lambda: BinaryLayout(GOOD, 10, ONE.astype(np.float64)),
    "scales of another shape": lambda: BinaryLayout(
        GOOD, 10, np.ones((6, 2), np.float32)
    ),
    "flat scales": lambda: BinaryLayout(GOOD, 10, np.ones(6, np.float32)),
    "magnitudes without levels": lambda: BinaryLayout(
        GOOD, 10, None, np.zeros(2, np.uint8)
    ),
    "levels without magnitudes": lambda: BinaryLayout(GOOD, 10, levels=LEVELS),
    "few magnitudes": lambda: BinaryLayout(
        GOOD, 10, None, np.zeros(1, np.uint8), LEVELS
    ),
    "five levels": lambda: BinaryLayout(
        GOOD, 10, None, np.zeros(2, np.uint8), np.ones(5, np.float32)
    ),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_arrays_that_contradict_are_value_errors(make):
    with pytest.raises(ValueError):
        make()


def test_blocks_must_divide_the_dimension():
    with pytest.raises(ValueError, match="blocks must divide the dimension 10"):
        pack_signs(normal(2, 10), 3)


def test_a_saved_table_searches_alike(tmp_path):
    layout = blocked(kind=np.float16)
    layout.save(tmp_path / "table")
    twin = load_layout(tmp_path / "table")
    assert twin.blocks == 3
    np.testing.assert_array_equal(twin.topk([1, 2], 5), layout.topk([1, 2], 5))


def test_ranges_of_candidates_and_single_queries_are_checked():
    layout = BinaryLayout.from_signs(np.ones((20, 8)))
    with pytest.raises(ValueError, match="queries must have one axis"):
        layout.topk(np.array(3), 2)
    with pytest.raises(ValueError, match="candidates must be a range of ids"):
        layout.topk(np.array([3]), 2, candidates=(0.5, 7.9))
    given = layout.topk(np.array([3]), 2, candidates=np.array([0, 5]))
    assert given.tolist() == [[0, 1]]
