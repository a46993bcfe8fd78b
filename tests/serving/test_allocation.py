"""The division of a budget, beside all that could be chosen."""

import itertools

import numpy as np
import pytest

from survey_code.serving.allocation import (
    Offer,
    add_offers,
    divide_budget,
    keep_hull,
    keep_useful,
)


def draw_tables(rng, tables, forms):
    """Tables of very different sizes; their offers may be useless, or off the hull."""
    return [
        [
            Offer(
                int(rng.integers(1, 1 + 10 ** rng.uniform(0.5, 3.5))), rng.exponential()
            )
            for _ in range(rng.integers(1, forms + 1))
        ]
        for _ in range(tables)
    ]


def draw_widths(rng, tables):
    """Tables whose error falls by four with each bit, as that of rounded numbers."""
    drawn = []
    for _ in range(tables):
        rows, weight = int(10 ** rng.uniform(1, 4)), rng.exponential()
        widths = (32, 16, 8, 6, 4, 3, 2, 1)
        errors = [weight * rng.uniform(0.5, 1.5) * 4.0**-bits for bits in widths]
        drawn.append([Offer(rows * b, e) for b, e in zip(widths, [0, *errors[1:]])])
    return drawn


def try_all(tables, budget):
    """The least error of any choice within the budget."""
    sums = (
        add_offers(tables, taken)
        for taken in itertools.product(*map(range, map(len, tables)))
    )
    return min(error for nbytes, error in sums if nbytes <= budget)


def smallest_of(tables):
    return sum(min(offers)[0] for offers in tables)


@pytest.mark.parametrize("kind", ["any", "widths"])
def test_it_is_nearly_as_good_as_trying_all(kind):
    rng, exact, worst = np.random.default_rng(0), 0, 1.0
    for _ in range(200):
        if kind == "any":
            tables = draw_tables(rng, rng.integers(1, 6), 5)
        else:
            tables = draw_widths(rng, rng.integers(1, 4))
        low = smallest_of(tables)
        high = sum(max(offers)[0] for offers in tables)
        budget = int(rng.uniform(low, high + 2))
        taken = divide_budget(tables, budget)
        nbytes, error = add_offers(tables, taken)
        assert nbytes <= budget
        best = try_all(tables, budget)
        assert error >= best - 1e-15
        exact += error <= best + 1e-15
        worst = max(worst, (error + 1e-15) / (best + 1e-15))
    assert exact >= 196
    assert worst < 1.1


def test_where_slopes_are_equal_it_is_exact():
    """Budgets that going down the hulls reaches to the byte leave nothing to gain."""
    rng, seen = np.random.default_rng(1), 0
    for _ in range(60):
        tables = draw_tables(rng, 4, 4)
        hulls = [keep_hull(offers, keep_useful(offers)) for offers in tables]
        for slope in (3e-4, 1e-3, 3e-3, 1e-2):
            # What a price for a byte makes of each table alone.
            taken = [
                min(
                    hull,
                    key=lambda place: (
                        offers[place].error + slope * offers[place].nbytes
                    ),
                )
                for offers, hull in zip(tables, hulls)
            ]
            budget, error = add_offers(tables, taken)
            found = add_offers(tables, divide_budget(tables, budget))
            assert found[1] == pytest.approx(error, abs=1e-12)
            assert error == pytest.approx(try_all(tables, budget), abs=1e-12)
            seen += budget > smallest_of(tables)
    assert seen > 100


def test_a_large_table_is_not_starved_by_small_ones():
    """By slope the small steps come first, and leave too little for the large one."""
    small, large = [Offer(0, 2.0), Offer(2, 1.0)], [Offer(0, 9.0), Offer(20, 0.0)]
    assert divide_budget([small, large], 21) == [0, 1]


def test_bytes_that_gain_nothing_are_not_spent():
    assert divide_budget([[Offer(9, 1.0), Offer(3, 1.0)]], 100) == [1]


def test_too_small_a_budget_is_refused():
    with pytest.raises(ValueError, match="at least 5 bytes, got 4"):
        divide_budget([[Offer(2, 0.0)], [Offer(3, 0.0), Offer(7, 0.0)]], 4)
