"""Semantic ids: who shares rows is what the codes of the content say."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from survey_code import TableSpec
from survey_code.catalog import get_method
from survey_code.data.synthetic import make_clicks
from survey_code.lab import default_trial, make_task
from survey_code.weight_sharing.hashing import SemanticIDs, SemanticIDsOptions
from survey_code.weight_sharing.hashing.semantic import code_content, share_tables

pytestmark = pytest.mark.usefixtures("one_thread")

# Two fields; the content of each lies around 9 points, of 3 x 3 kinds.
KINDS = np.array(list(itertools.product((1, 2, 3), (-0.02, 0, 0.02))), np.float32)
ROWS, SPLIT = 180, 90
WHO = np.random.default_rng(0).permutation(np.arange(ROWS) % 9)
CONTENT = (KINDS[WHO][:, :1] + KINDS[WHO][:, 1:]).repeat(3, axis=1)
SPEC = TableSpec(
    ROWS, 12, np.array([0, SPLIT, ROWS]), np.ones(ROWS, np.int64), content=CONTENT
)
EVERYONE = np.arange(ROWS)


def make(**options):
    return SemanticIDs.make(SPEC, **{"rows": 4000, "levels": 2, "bits": 2, **options})


def same_vectors(table):
    """Pairs of ids whose vectors are the same, by their layout."""
    rows = table.freeze().lookup(EVERYONE)
    return (rows[:, None] == rows[None]).all(axis=2)


# -- who shares ---------------------------------------------------------------------


def test_ids_share_the_row_of_a_prefix_exactly_if_they_share_the_prefix():
    table = make(levels=3)
    codes, field = table.codes.numpy(), EVERYONE >= SPLIT
    found = [rows.numpy() for rows in table.find_rows(torch.from_numpy(EVERYONE))]
    for length, rows in enumerate(found, 1):
        named = {}
        for i in EVERYONE:
            named.setdefault((field[i], *codes[i, :length]), set()).add(rows[i])
        # One row each; and 4,000 rows are so many that no two prefixes share one.
        assert all(len(own) == 1 for own in named.values())
        assert len(set.union(*named.values())) == len(named)


def test_ids_of_one_kind_have_one_vector_and_others_do_not():
    table = make()
    codes = table.codes.numpy()
    same = (codes[:, None] == codes[None]).all(axis=2)
    same &= (EVERYONE >= SPLIT)[:, None] == (EVERYONE >= SPLIT)[None]
    np.testing.assert_array_equal(same_vectors(table), same)
    # The kinds: 9 groups of equal content in each field.
    alike = (CONTENT[:, None] == CONTENT[None]).all(axis=2)
    assert (same | ~alike | ((EVERYONE >= SPLIT)[:, None] != (EVERYONE >= SPLIT))).all()


def test_the_first_code_says_roughly_what_an_id_is():
    """Of three far points each has a code, whatever the fine differences."""
    codes = code_content(SPEC, levels=2, bits=2, seed=1)
    for start, stop in ((0, SPLIT), (SPLIT, ROWS)):
        coarse = WHO[start:stop] // 3
        for code in np.unique(codes[start:stop, 0]):
            assert len(set(coarse[codes[start:stop, 0] == code])) == 1


@pytest.mark.parametrize(
    ("grams", "spans"),
    [
        ("prefixes", [(0, 1), (0, 2), (0, 3)]),
        ("levels", [(0, 1), (1, 2), (2, 3)]),
        ("whole", [(0, 3)]),
    ],
)
def test_stretches_of_each_kind(grams, spans):
    assert SemanticIDsOptions(grams=grams).spans() == spans
    table = make(levels=3, grams=grams)
    assert table.freeze().spans == spans


def test_two_fields_of_equal_content_do_not_share():
    """The same content and codes on both sides: the number of the field decides."""
    twice = np.concatenate([CONTENT[:SPLIT]] * 2)
    table = SemanticIDs.make(
        dataclasses.replace(SPEC, content=twice), rows=4000, levels=2, bits=2
    )
    table.codes[SPLIT:] = table.codes[:SPLIT]
    rows = table.freeze().lookup(EVERYONE)
    assert not (rows[:SPLIT] == rows[SPLIT:]).all(axis=1).any()
    one_field = dataclasses.replace(SPEC, field_starts=np.array([0, ROWS]))
    table = SemanticIDs.make(one_field, rows=4000, levels=2, bits=2)
    table.codes[SPLIT:] = table.codes[:SPLIT]
    rows = table.freeze().lookup(EVERYONE)
    np.testing.assert_array_equal(rows[:SPLIT], rows[SPLIT:])


def test_ids_without_content_have_the_digits_of_their_number():
    content = CONTENT.copy()
    content[SPLIT:] = 0
    spec = dataclasses.replace(SPEC, content=content)
    codes = code_content(spec, levels=3, bits=3, seed=0)[SPLIT:]
    assert codes[0b1010011 % SPLIT].tolist() == [0b011, 0b010, 0b1]
    assert len(np.unique(codes, axis=0)) == ROWS - SPLIT
    told = code_content(SPEC, levels=3, bits=3, seed=0)[:SPLIT]
    np.testing.assert_array_equal(
        told, code_content(spec, levels=3, bits=3, seed=0)[:SPLIT]
    )


def test_a_field_of_fewer_ids_than_codes_is_told_apart():
    content = np.random.default_rng(2).normal(size=(5, 3)).astype(np.float32)
    spec = TableSpec(5, 4, np.array([0, 1, 5]), np.ones(5, np.int64), content=content)
    codes = code_content(spec, levels=2, bits=3, seed=0)
    assert len(np.unique(codes[1:], axis=0)) == 4


# -- unseen ids ---------------------------------------------------------------------


def test_unseen_ids_read_what_others_of_their_prefix_have_learnt():
    """Gradients of ids of one kind move the vector of another id of that kind."""
    table = make(combine="sum")
    first = np.flatnonzero((WHO == 4) & (EVERYONE < SPLIT))
    unseen, seen = first[0], first[1:]
    other = np.flatnonzero((WHO == 0) & (EVERYONE < SPLIT))[0]
    before = table.freeze().lookup(EVERYONE)
    table(torch.from_numpy(seen)).sum().backward()
    with torch.no_grad():
        table.values -= 0.1 * table.values.grad
    moved = table.freeze().lookup(EVERYONE) - before
    np.testing.assert_allclose(moved[unseen], moved[seen[0]], rtol=1e-4)
    assert np.abs(moved[unseen]).min() > 0.05 and not moved[other].any()


def test_on_rows_with_unseen_ids_it_is_ahead_of_a_hash():
    sizes = {"field_sizes": (1500, 1000, 40, 10), "rows": (20_000, 500, 6000)}
    data = make_clicks("content", **sizes, seed=3)
    found = {}
    for key in ("hashing", "semantic_ids"):
        task = make_task(data, default_trial(data), 0)
        method = get_method(key)
        learnt = task.learn(method, method.plan(task.spec, 6))
        found[key] = task.test_apart(learnt.fitted.network, learnt.layout)
    lead = found["semantic_ids"]["unseen"]["auc"] - found["hashing"]["unseen"]["auc"]
    assert lead > 0.03
    whole = task.test(learnt.fitted.network, learnt.layout)
    shown = data.shows_unseen(data.test).mean()
    apart = found["semantic_ids"]
    assert whole["log_loss"] == pytest.approx(
        shown * apart["unseen"]["log_loss"] + (1 - shown) * apart["seen"]["log_loss"]
    )


# -- tables and bytes -----------------------------------------------------------------


def test_all_that_is_read_is_counted():
    planned = get_method("semantic_ids").plan(SPEC, 4, levels=2)
    layout = get_method("semantic_ids").build(SPEC, planned).freeze()
    assert set(layout.arrays()) == {
        "codes/words", "values", "index", "grams", "starts"
    }  # fmt: skip
    assert SPEC.budget(4) - 4 * 12 < layout.nbytes <= SPEC.budget(4)


def test_tables_of_their_own_are_shared_out_by_what_they_can_hold():
    spec = TableSpec.of_shape(10_000, 8)
    spec = dataclasses.replace(spec, content=np.ones((10_000, 2), np.float32))
    asked = SemanticIDsOptions(tables="each", levels=3, bits=4)
    # 16, 256 and 4,096 stretches.
    assert share_tables(spec, asked, 4368 + 3) == [17, 257, 4097]
    assert sum(share_tables(spec, asked, 1000)) == 1000
    assert share_tables(spec, asked, 3) == [1, 1, 1]
    with pytest.raises(ValueError, match="rows must be an integer from 3"):
        share_tables(spec, asked, 2)


@pytest.mark.parametrize("tables", ["one", "each"])
@pytest.mark.parametrize("combine", ["sum", "concat"])
def test_every_variant_keeps_to_the_budget_and_reads_as_it_trains(tables, combine):
    options = {"tables": tables, "combine": combine, "bits": 2}
    planned = get_method("semantic_ids").plan(SPEC, 3, **options)
    table = get_method("semantic_ids").build(SPEC, planned, 5)
    layout = table.freeze()
    assert layout.nbytes <= SPEC.budget(3)
    rows = table(torch.from_numpy(EVERYONE.reshape(20, 9))).detach().numpy()
    np.testing.assert_allclose(
        rows.reshape(ROWS, 12), layout.lookup(EVERYONE), rtol=1e-6
    )


def test_without_content_one_error_says_what_is_needed():
    spec = dataclasses.replace(SPEC, content=None)
    for call in (
        lambda: get_method("semantic_ids").plan(spec, 4),
        lambda: SemanticIDs.make(spec, rows=9),
    ):
        with pytest.raises(ValueError, match=r"TableSpec\(content=\.\.\.\)"):
            call()


def test_rows_that_do_not_divide_the_dimension_are_a_value_error():
    with pytest.raises(ValueError, match=r"semantic_ids: .* multiple of 5, got 12"):
        get_method("semantic_ids").plan(SPEC, 2, levels=5, combine="concat")
