"""Rules for widths: what they promise, budgets from below, and the output blocks."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import survey_code
from survey_code import TableSpec
from survey_code.catalog import get_method
from survey_code.embedding import Regime, decode_layout
from survey_code.layouts.grouped import grouped_bytes
from survey_code.mixed_dimension.grouped import (
    FieldDimensions,
    GroupedEmbedding,
    count_within,
)
from survey_code.mixed_dimension.rule_based import (
    MDEBlocks,
    MDEFields,
    PopularityBlocks,
    block_log_softmax,
    block_logits,
    cut_by_share,
    cut_evenly,
    power_law_widths,
    thumb_widths,
)
from survey_code.mixed_dimension.search import rank_by_frequency
from survey_code.mixed_dimension.widths import bisect_path, floor_within, settle_widths

KEYS = ("mde_field", "mde_popularity", "cprec", "dimension_rules")
FIELDS = np.array([6000, 4000, 1500, 500, 100, 30, 10, 4])
fuzz = settings(deadline=None, max_examples=100, derandomize=True, database=None)


def make_spec(rows=FIELDS, dim=16, seed=0):
    """Fields of given sizes, each read as often as any other, by a power law."""
    rng = np.random.default_rng(seed)
    counts = []
    for n in rows:
        share = 1 / (1 + rng.permutation(n))
        counts.append(rng.multinomial(20_000, share / share.sum()))
    starts = np.cumsum([0, *rows])
    return TableSpec(int(starts[-1]), dim, starts, np.concatenate(counts))


SPEC = make_spec()

# -- the power law --------------------------------------------------------------


def test_alpha_0_makes_all_groups_equally_wide():
    """Invariant 49: d_f = b where alpha = 0."""
    assert set(power_law_widths(1 / FIELDS, 0.0, 12)) == {12}


def test_alpha_1_gives_every_field_the_same_numbers():
    """Invariant 49: n_f d_f = b n_min where alpha = 1, before rounding to 1 or more."""
    rows = np.array([16, 32, 64, 128])
    np.testing.assert_array_equal(rows * power_law_widths(1 / rows, 1.0, 16), 16 * 16)


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.5, 1.0, 2.0])
def test_widths_never_rise_with_the_number_of_rows(alpha, power_of_two):
    """Invariant 49: n_f <= n_g implies d_f >= d_g."""
    widths = power_law_widths(1 / FIELDS, alpha, 16, power_of_two)
    assert (np.diff(widths) >= 0).all() and widths.min() >= 1 and widths[-1] == 16
    if power_of_two:
        assert set(widths) <= {1, 2, 4, 8, 16}


def test_numbers_fall_as_alpha_rises():
    alphas = np.linspace(0, 1.5, 40)
    totals = [FIELDS @ power_law_widths(1 / FIELDS, alpha, 16) for alpha in alphas]
    assert totals == sorted(totals, reverse=True) and totals[0] == 16 * FIELDS.sum()


def test_the_law_is_the_papers_up_to_the_common_factor():
    """d_f = lambda n_f**-alpha with lambda = b n_min**alpha, written out."""
    for alpha in (0.2, 0.6):
        factor = 16 * min(FIELDS) ** alpha
        wanted = [max(1, round(factor * float(n) ** -alpha)) for n in FIELDS]
        assert power_law_widths(1 / FIELDS, alpha, 16).tolist() == wanted


# -- rules of thumb -------------------------------------------------------------


def test_rules_of_thumb_are_their_formulas():
    """ceil(6 n**(1/4)) and min(600, round(1.6 n**0.56))."""
    rows = [1, 4, 81, 944, 1635, 10**6, 10**9]
    roots = [6, 9, 18, 34, 39, 190, 1067]
    assert thumb_widths(rows, "root4").tolist() == roots
    # 74 for 944 categories and 101 for 1,635 are what the fastai library gives.
    assert thumb_widths(rows, "fastai").tolist() == [2, 3, 19, 74, 101, 600, 600]
    with pytest.raises(ValueError, match="rule must be one of"):
        thumb_widths(rows, "magic")


@pytest.mark.parametrize("rule", ["root4", "fastai"])
def test_rules_of_thumb_give_wide_rows_to_large_fields(rule):
    widths = thumb_widths(FIELDS, rule, 0.5)
    assert (np.diff(widths) <= 0).all() and widths[0] > widths[-1]


# -- bytes ----------------------------------------------------------------------


@fuzz
@given(
    rows=st.lists(st.integers(1, 3000), min_size=1, max_size=6),
    dim=st.integers(1, 40),
    data=st.data(),
)
def test_settled_widths_take_the_fewer_bytes(rows, dim, data):
    """w (n + d) against n d: full rows where a projection saves nothing."""
    widths = [data.draw(st.integers(1, dim)) for _ in rows]
    settled = settle_widths(widths, rows, dim)
    for n, width, found in zip(rows, widths, settled):
        short, full = width * (n + dim), n * dim
        assert found == (dim if full <= short else width)
    assert grouped_bytes(rows, settled, dim) <= grouped_bytes(rows, widths, dim)


@fuzz
@given(steps=st.lists(st.integers(0, 1000), min_size=1, max_size=20), data=st.data())
def test_bisection_finds_the_first_point_inside_the_budget(steps, data):
    costs = sorted(steps, reverse=True)
    places = np.linspace(0, 1, len(costs) + 1)[1:-1]

    def cost(t):
        return costs[np.searchsorted(places, t, side="right")]

    budget = data.draw(st.integers(costs[-1], 1001))
    found = bisect_path(cost, budget)
    assert cost(found) <= budget
    assert found == 0 or cost(np.nextafter(found, 0)) > budget


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("alpha", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("key", ["mde_field", "mde_popularity"])
def test_no_wider_step_would_fit(key, alpha, power_of_two):
    """Filled up, the budget is kept from below as close as whole columns allow."""
    for ratio in (2, 3.3, 4, 6, 10):
        options = {"alpha": alpha, "power_of_two": power_of_two, "fill": True}
        planned = get_method(key).plan(SPEC, ratio, **options)
        # From the widest to the narrowest: small fields and frequent blocks first.
        fields = key == "mde_field"
        rows = np.array(FIELDS if fields else planned.sizes)
        widths = np.array(planned.widths)
        order = np.argsort(rows, kind="stable") if fields else np.arange(len(rows))
        assert (np.diff(widths[order]) <= 0).all()
        budget, limit = SPEC.budget(ratio), 16
        for g in order:
            wider = 2 * widths[g] if power_of_two else widths[g] + 1
            if wider <= limit:
                tried = widths.copy()
                tried[g] = wider
                tried = settle_widths(tried, rows, 16)
                assert grouped_bytes(rows, tried, 16, fields) > budget
            limit = widths[g]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("key", ["mde_field", "mde_popularity"])
def test_widths_are_those_of_the_law_with_the_largest_factor_that_fits(key, alpha):
    """min(d, max(1, round(b p**alpha))) for one b, and no larger b fits."""
    fields = key == "mde_field"
    factors = 16 * np.exp(np.arange(np.log(1 / 64), 40, 0.05))
    for ratio in (2, 4, 7):
        planned = get_method(key).plan(SPEC, ratio, alpha=alpha)
        sizes = FIELDS if fields else np.array(planned.sizes)
        popularity = 1 / FIELDS if fields else cut_evenly(SPEC.train_counts, 8)[1]
        power = (popularity / popularity.max()) ** alpha
        found = grouped_bytes(sizes, planned.widths, 16, fields)
        assert found <= SPEC.budget(ratio)
        for factor in factors:
            widths = power_law_widths(popularity, alpha, factor).clip(max=16)
            cost = grouped_bytes(sizes, settle_widths(widths, sizes, 16), 16, fields)
            assert cost <= found or cost > SPEC.budget(ratio)
        # From which width on a group has full rows, and so which factors it admits.
        full = np.array(
            [
                next(w for w in range(1, 17) if settle_widths([w], [n], 16)[0] == 16)
                for n in sizes
            ]
        )
        widths = np.array(planned.widths)
        least = np.where(widths == 16, full, widths)
        low = np.where(least == 1, 0, (least - 0.5) / power)
        high = np.where(widths == 16, np.inf, (widths + 0.5) / power)
        assert low.max() <= high.min() * (1 + 1e-9)


@pytest.mark.parametrize("alpha", [4, 8, 16, 64])
@pytest.mark.parametrize("rows", [[6000, 4], [1_000_000, 4], [10**6, 10**3, 1]])
def test_a_steep_law_has_widths_too(alpha, rows):
    """Powers of ten that no integer and no float holds: the smallest field is wide."""
    widths = power_law_widths(1 / np.array(rows), alpha, 16 * max(rows) ** float(4))
    assert widths.min() >= 1
    for key in ("mde_field", "mde_popularity"):
        # Popularities of which the largest is a billion times the smallest.
        counts = np.zeros(sum(rows), np.int64)
        counts[: len(rows)] = 10**9
        spec = TableSpec(sum(rows), 16, np.cumsum([0, *rows]), counts)
        for ratio in (1, 2, 6):
            planned = get_method(key).plan(spec, ratio, alpha=alpha)
            assert min(planned.widths) >= 1 and max(planned.widths) == 16
            sizes = rows if key == "mde_field" else planned.sizes
            assert grouped_bytes(sizes, planned.widths, 16, key == "mde_field") <= (
                spec.budget(ratio)
            )


def test_thumb_widths_of_any_factor_are_positive():
    for rule in ("root4", "fastai"):
        assert thumb_widths([4, 10**9], rule, 1e300).min() >= 16


@pytest.mark.parametrize("dim", [6, 16, 64])
@pytest.mark.parametrize("quotient", [2, 3, 2**16])
def test_cprec_has_widths_with_any_quotient_and_blocks(dim, quotient):
    spec = make_spec([300, 200], dim)
    for blocks in (2, 40, 256):
        planned = get_method("cprec").plan(spec, 1.01, quotient=quotient, blocks=blocks)
        assert min(planned.widths) >= 1 and max(planned.widths) == dim
        assert sum(planned.sizes) == 500 and min(planned.sizes) >= 0


@pytest.mark.parametrize("ratio", [2, 4, 7, 10])
def test_cprec_meets_the_budget_to_a_few_rows(ratio):
    """Blocks grow row by row: less than three rows' bytes are left over."""
    planned = get_method("cprec").plan(SPEC, ratio)
    layout = get_method("cprec").build(SPEC, planned).freeze()
    assert 0 <= SPEC.budget(ratio) - layout.nbytes < 3 * 4 * 16


def test_cprec_widths_are_powers_of_the_quotient():
    """d, d / q, d / q**2 and so on, down to 1."""
    method = get_method("cprec")
    for dim, quotient, wanted in [
        (64, 4, [64, 16, 4, 1]),
        (64, 2, [64, 32, 16, 8, 4, 2, 1]),
        (16, 4, [16, 4, 1]),
        (10, 4, [10, 2, 1]),
        (6, 8, [6, 1]),
        (1, 4, [1]),
    ]:
        spec = make_spec([300, 200], dim)
        ratio = 2 if dim > 1 else 1
        try:
            planned = method.plan(spec, ratio, quotient=quotient)
        except ValueError as error:
            assert dim == 1 and "below 1" in str(error)
            continue
        assert planned.widths == wanted
    planned = method.plan(make_spec([300, 200], 64), 2, blocks=2)
    assert planned.widths == [64, 16]


@pytest.mark.parametrize(
    ("key", "options", "message"),
    [
        ("mde_field", {"alpha": -1}, "alpha must be a number from 0 to 64"),
        ("mde_field", {"alpha": "0.3"}, "alpha must be a number from 0 to 64"),
        ("mde_popularity", {"alpha": np.nan}, "alpha must be a number from 0 to 64"),
        ("mde_popularity", {"blocks": 0}, "blocks must be an integer from 1"),
        ("mde_popularity", {"blocks": 257}, "blocks must be an integer from 1"),
        ("cprec", {"quotient": 1}, "quotient must be an integer from 2"),
        ("cprec", {"blocks": 2.0}, "blocks must be an integer from 1"),
        ("dimension_rules", {"rule": "magic"}, "rule must be one of"),
        ("dimension_rules", {"fill": 1}, "fill must be True or False"),
    ],
)
def test_bad_options_are_value_errors(key, options, message):
    with pytest.raises(ValueError, match=f"{key}: {message}"):
        get_method(key).plan(SPEC, 4, **options)


# -- floors -----------------------------------------------------------------------


@fuzz
@given(
    rows=st.lists(st.integers(1, 2000), min_size=1, max_size=6),
    dim=st.integers(1, 32),
    share=st.floats(0, 1),
    ratio=st.floats(1, 60),
    powers=st.booleans(),
)
def test_a_floor_is_paid_for_in_all_fields(rows, dim, share, ratio, powers):
    spec = TableSpec.of_table(sum(rows), dim, field_starts=np.cumsum([0, *rows]))
    widths = [w for w in (0, 1, 2, 4, 8, 16, 32) if w <= dim] if powers else None
    budget = spec.budget(ratio)
    found = floor_within(spec, share, budget, widths)
    assert found in (widths or range(dim + 1))

    def cost(width):
        return sum(grouped_bytes([n], [width], dim) for n in rows)

    assert found == 0 or cost(found) <= budget
    even = max((w for w in range(1, dim + 1) if cost(w) <= budget), default=0)
    assert found <= even and (found >= share * even or powers or cost(even) > budget)
    assert share > 0 or found == 0


# -- blocks of popularity ---------------------------------------------------------


@fuzz
@given(
    counts=st.lists(st.integers(0, 50), min_size=1, max_size=40),
    shares=st.lists(st.floats(0, 1), max_size=6).map(sorted),
)
def test_blocks_cover_their_shares_with_the_fewest_rows(counts, shares):
    counts = np.array(counts)
    sizes = cut_by_share(counts, shares)
    assert len(sizes) == len(shares) + 1 and sizes.sum() == len(counts)
    assert (sizes >= 0).all() and (sizes >= 1).all() == (len(counts) >= len(sizes))
    ranked = np.sort(counts)[::-1]
    before = 0
    for cut, share in zip(np.cumsum(sizes), shares):
        if 1e-6 < share < 1 - 1e-6 and counts.any():
            left = len(counts) - len(sizes)
            covered = ranked[:cut].sum() / counts.sum()
            assert covered >= share - 1e-9 or cut >= left
            if cut > before + 1:  # not only because a block needs a row
                assert ranked[: cut - 1].sum() / counts.sum() < share + 1e-9
        before = cut


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0, 0, 0], [1, 1], [0.1, 0.11]])
def test_no_block_is_empty_while_there_are_rows(shares):
    for counts in ([5, 4, 3, 2, 1, 0], [9, 0, 0, 0], [0, 0, 0, 0, 0]):
        assert (cut_by_share(np.array(counts), shares) >= 1).all()


def test_blocks_are_a_partition_and_ranks_a_permutation():
    """Invariant 60: the remap is a permutation; frequent ids come first."""
    ranked = rank_by_frequency(SPEC)
    np.testing.assert_array_equal(np.sort(ranked), np.arange(SPEC.num_embeddings))
    assert (np.diff(SPEC.train_counts[ranked]) <= 0).all()
    planned = get_method("mde_popularity").plan(SPEC, 4)
    table = get_method("mde_popularity").build(SPEC, planned)
    groups, rows = table.locate(torch.arange(SPEC.num_embeddings))
    np.testing.assert_array_equal(np.bincount(groups), planned.sizes)
    places = set(zip(groups.tolist(), rows.tolist()))
    assert len(places) == SPEC.num_embeddings
    counts = [SPEC.train_counts[groups == g] for g in range(len(planned.sizes))]
    for often, seldom in itertools.pairwise(counts):
        assert often.min() >= seldom.max()


def test_without_counts_the_blocks_are_equally_large():
    assert cut_by_share(np.zeros(10, np.int64), [0.2, 0.5]).tolist() == [2, 3, 5]


def test_count_within_counts_ids_of_the_same_group_before():
    assert count_within(np.array([1, 0, 1, 1, 0])).tolist() == [0, 0, 1, 2, 1]


# -- tables -----------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_a_groups_rows_span_no_more_dimensions_than_its_width(key):
    """rank(E_g) <= d_g; and e_i = W_g[i] P_g."""
    method = get_method(key)
    planned = method.plan(SPEC, 6)
    table = method.build(SPEC, planned)
    rows = decode_layout(table.freeze())
    groups, places = table.locate(torch.arange(SPEC.num_embeddings))
    for g, width in enumerate(table.widths):
        mine = rows[groups == g]
        rank = np.linalg.matrix_rank(mine, tol=1e-6)
        assert rank == min(width, len(mine))
    one = 17
    short = table.tables[groups[one]][places[one]]
    assert len(short) == table.widths[groups[one]]
    full = short
    if str(int(groups[one])) in table.projections:
        full = short @ table.projections[str(int(groups[one]))]
    np.testing.assert_allclose(full.detach(), rows[one], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_reach_the_rows_read_and_their_projections_only(sparse):
    """Invariant 64."""
    table = FieldDimensions(make_spec([50, 40, 30], 8), [2, 8, 3])
    table.begin(Regime(sparse=sparse))
    table(torch.tensor([[3, 60], [3, 61]])).square().sum().backward()
    first, second, third = (weight.grad for weight in table.tables)
    assert first.is_sparse == second.is_sparse == sparse
    assert torch.nonzero(first.to_dense().any(1)).ravel().tolist() == [3]
    assert torch.nonzero(second.to_dense().any(1)).ravel().tolist() == [10, 11]
    assert not third.to_dense().any()
    assert table.projections["0"].grad.any()
    assert not table.projections["2"].grad.any()


def test_groups_of_width_zero_are_never_read():
    """torch's kernel for the gradient would write outside of an empty table."""
    spec = TableSpec.of_shape(10, 4)
    table = GroupedEmbedding(spec, np.arange(10) % 2, [0, 3], 0, pad=True)
    ids = torch.arange(10)
    read = table(ids)
    assert (read[::2] == 0).all() and (read[1::2, :3] != 0).all()
    read.sum().backward()
    assert table.tables[0].grad is None and table.tables[1].grad is not None
    assert (table(ids[::2]) == 0).all()


def test_padded_rows_end_in_zeros():
    spec = TableSpec.of_shape(10, 4)
    table = GroupedEmbedding(spec, np.arange(10) % 3, [4, 2, 0], 0, pad=True)
    rows = table(torch.arange(10))
    assert not table.projections and (rows[1::3, 2:] == 0).all()
    assert rows[1::3, :2].all() and (rows[2::3] == 0).all()
    found = decode_layout(table.freeze())
    np.testing.assert_array_equal(rows.detach().numpy(), found)


@pytest.mark.parametrize(
    ("widths", "assignment", "message"),
    [
        ([2, 9], np.zeros(10, int), "widths must be numbers from 0 to 4"),
        ([-1, 2], np.zeros(10, int), "widths must be numbers from 0 to 4"),
        ([1.5], np.zeros(10, int), "widths must hold integers"),
        ([2], np.ones(10, int), "assignment must be 10 numbers from 0 to 0"),
        ([2], np.zeros(9, int), "assignment must be 10 numbers"),
        ([2], np.zeros(10), "assignment must hold integers"),
    ],
)
def test_groups_that_cannot_be_are_value_errors(widths, assignment, message):
    with pytest.raises(ValueError, match=message):
        GroupedEmbedding(TableSpec.of_shape(10, 4), assignment, widths, 0)


def test_widths_and_sizes_that_do_not_fit_the_spec_are_value_errors():
    with pytest.raises(ValueError, match="widths must be 8 numbers"):
        MDEFields.make(SPEC, widths=[1, 2])
    with pytest.raises(ValueError, match="sizes must add up to 12144"):
        MDEBlocks.make(SPEC, sizes=[1, 2], widths=[1, 2])
    with pytest.raises(ValueError, match="widths must be 2 numbers"):
        MDEBlocks.make(SPEC, sizes=[144, 12000], widths=[1])


@pytest.mark.parametrize("key", KEYS)
def test_widths_that_nobody_chose_are_value_errors(key):
    with pytest.raises(ValueError, match="is not set: "):
        get_method(key).build(SPEC, {})


# -- the output -------------------------------------------------------------------


def queries(dim=16, count=5):
    drawn = np.random.default_rng(3).normal(size=(count, dim)).astype(np.float32)
    return torch.from_numpy(drawn)


@pytest.mark.parametrize("key", KEYS)
def test_block_logits_are_the_dense_ones(key):
    """(h P_b^T) W_b^T = h E^T, and so the softmax is the dense softmax."""
    method = get_method(key)
    table = method.build(SPEC, method.plan(SPEC, 6))
    rows = table(torch.arange(SPEC.num_embeddings))
    dense = queries() @ rows.T
    torch.testing.assert_close(block_logits(table, queries()), dense)
    logs = block_log_softmax(table, queries())
    torch.testing.assert_close(logs, torch.log_softmax(dense, dim=1))
    torch.testing.assert_close(logs.exp().sum(1), torch.ones(5))
    scores = table.freeze().scores(queries().numpy())
    np.testing.assert_allclose(scores, dense.detach().numpy(), atol=1e-5)


def test_one_block_of_full_width_is_the_plain_table():
    """Nothing is compressed where one block holds all: no remap, no projection."""
    spec = make_spec([30, 20], 8)
    table = PopularityBlocks(spec, [50], [8])
    assert not table.projections and table.group_of is None
    torch.testing.assert_close(
        block_logits(table, queries(8)), queries(8) @ table.tables[0].T
    )


def test_blocks_are_those_of_torchs_adaptive_softmax():
    """torch.nn.AdaptiveLogSoftmaxWithLoss narrows its clusters by the same rule."""
    torch.manual_seed(0)
    head = torch.nn.AdaptiveLogSoftmaxWithLoss(16, 100, [10, 40], div_value=4.0)
    counts = np.arange(100, 0, -1)  # ids in the order of their frequency
    spec = TableSpec(100, 16, [0, 100], counts)
    table = PopularityBlocks(spec, [10, 30, 60], [16, 4, 1])
    with torch.no_grad():
        table.tables[0][:] = head.head.weight[:10]
        for g, (down, up) in enumerate(head.tail, start=1):
            table.projections[str(g)][:] = down.weight
            table.tables[g][:] = up.weight
    found = block_logits(table, queries())
    torch.testing.assert_close(found[:, :10], head.head(queries())[:, :10])
    for (start, stop), cluster in zip([(10, 40), (40, 100)], head.tail):
        torch.testing.assert_close(found[:, start:stop], cluster(queries()))


# -- learning ---------------------------------------------------------------------


def test_popularity_is_the_better_guide_on_the_synthetic_set():
    """Blocks of popularity beat the same table with a smaller dimension, and the
    rule of thumb does not."""
    # Half the time of float64, whose digits the book prints.
    given = {"measure": False, "settings": {"precision": "float32"}}
    found = {
        key: survey_code.run(key, "synthetic", 4, 1, **given).test["auc"]
        for key in ("uniform", *KEYS)
    }
    assert found["cprec"] > 0.87 and found["mde_popularity"] > 0.87
    assert found["mde_field"] > found["uniform"] + 0.01
    assert found["dimension_rules"] < found["mde_field"] - 0.01
