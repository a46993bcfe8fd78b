"""Fields whose rows are narrow, pruned or shared, alone and together."""

import itertools

import numpy as np
import pytest
import torch

from survey_code import OutOfReach, TableSpec, methods
from survey_code.catalog import UNLISTED, get_method
from survey_code.embedding import decode_layout
from survey_code.hybrids import NestedFields, NestedOptions
from survey_code.hybrids.fields import (
    NARROWED_BY,
    SHARED_BY,
    SearchedFields,
    count_kept,
    fields_bytes,
)
from survey_code.lab.contest import list_entrants
from survey_code.layouts import GroupedLayout, HashedLayout, SparseLayout
from survey_code.mixed_dimension.rule_based import MDEFields

SIZES = [900, 400, 60, 5]
STARTS = np.concatenate([[0], np.cumsum(SIZES)])
COUNTS = np.random.default_rng(0).integers(0, 50, STARTS[-1])
SPEC = TableSpec(int(STARTS[-1]), 16, STARTS, COUNTS, init_std=0.2)


def ask(**given):
    return get_method("nested").plan(SPEC, 1.0, **given)


def make(seed=1, **given):
    """A table; of what is pruned the one that is trained again."""
    options = ask(**given)
    if NestedFields.searches(options):
        search = NestedFields.searching(SPEC, options, seed)
        options = options.replace(**NestedFields.settle(search, None, SPEC, options))
    return NestedFields(SPEC, options, seed)


def arrays_of(layout):
    return {name: array.tolist() for name, array in layout.arrays().items()}


@pytest.mark.parametrize("dims", NARROWED_BY)
@pytest.mark.parametrize("sharing", SHARED_BY)
@pytest.mark.parametrize("combine", ["product", "sum"])
def test_what_is_trained_is_what_is_deployed(dims, sharing, combine):
    table = make(dims=dims, sharing=sharing, combine=combine).eval()
    layout = table.freeze()
    ids = torch.arange(SPEC.num_embeddings).reshape(5, -1)
    rows = table(ids).detach().numpy()
    np.testing.assert_allclose(rows, layout.lookup(ids.numpy()), rtol=1e-5, atol=1e-7)
    planned = ask(dims=dims, sharing=sharing, combine=combine)
    kept = planned.kept if dims == "pruned" else None
    told = fields_bytes(SPEC, planned.widths, planned.moduli, kept)
    # The kept entries of a kind are dealt to its tables as they fall.
    assert abs(layout.nbytes - told) <= (200 if dims == "pruned" else 0)


# -- each axis alone is the catalogue's method -------------------------------------


def test_neither_is_the_full_table():
    layout = make().freeze()
    assert layout.name == "dense"
    assert layout.nbytes == SPEC.full_bytes


def test_narrow_rows_alone_are_those_of_mde():
    options = get_method("mde_field").plan(SPEC, 4.0)
    wanted = MDEFields(SPEC, options, 1).freeze()
    assert arrays_of(make(dims="mde").freeze()) == arrays_of(wanted)


def test_pruned_entries_alone_are_those_of_magnitude_pruning():
    method = get_method("magnitude")
    kept = count_kept(SPEC.num_embeddings * 16, 0.2)
    options = method.plan(SPEC, 1.0, keep=kept)
    kind = method.load()
    search = kind.searching(SPEC, options, 1)
    options = options.replace(**kind.settle(search, None, SPEC, options))
    wanted = kind(SPEC, options, 1).freeze()
    assert arrays_of(make(dims="pruned").freeze()) == arrays_of(wanted)


def test_shared_rows_alone_are_as_many_as_those_of_quotient_remainder():
    method = get_method("quotient_remainder")
    options = method.plan(SPEC, 4.0, fields="apart")
    wanted = method.build(SPEC, options, 1).freeze()
    own = make(sharing="quotient_remainder").freeze()
    assert ask(sharing="quotient_remainder").moduli == options.field_moduli
    shapes = [{n: a.shape for n, a in one.arrays().items()} for one in (own, wanted)]
    assert shapes[0] == shapes[1]
    spreads = [decode_layout(one).std() for one in (own, wanted)]
    assert spreads[0] == pytest.approx(spreads[1], rel=0.05)


# -- both --------------------------------------------------------------------------


def test_both_at_once_have_the_widths_and_moduli_of_each():
    both = make(dims="mde", sharing="quotient_remainder")
    assert both.widths == ask(dims="mde").widths
    layout = both.freeze()
    assert isinstance(layout, GroupedLayout)
    assert isinstance(layout.tables[0], HashedLayout)
    assert layout.tables[0].embedding_dim == both.widths[0] < 16
    ratio = SPEC.full_bytes / layout.nbytes
    assert 10 < ratio < 16


def test_a_share_of_rows_and_of_factors_is_kept():
    table = make(dims="pruned", sharing="quotient_remainder")
    shared = np.repeat([own is not None for own in table.indices], table.sizes)
    assert set(shared.tolist()) == {True, False}
    for kind in (shared, ~shared):
        assert table.mask.numpy()[kind].mean() == pytest.approx(0.2, abs=0.02)
    layout = table.freeze()
    assert isinstance(layout.tables[0].values, SparseLayout)


def test_only_what_is_kept_learns():
    table = make(dims="pruned", sharing="quotient_remainder").train()
    table(torch.arange(SPEC.num_embeddings)).square().sum().backward()
    gradient = torch.cat([part.grad.flatten() for part in table.tables])
    assert gradient[~table.mask].abs().max() == 0
    assert gradient[table.mask].abs().max() > 0


@pytest.mark.parametrize("rewind", [False, True])
def test_what_is_kept_begins_where_the_search_began_or_ended(rewind):
    options = ask(dims="pruned", rewind=rewind)
    search = SearchedFields(SPEC, options, 1)
    first = search.entries()
    for part in search.tables:
        part.data *= 2
    options = options.replace(**NestedFields.settle(search, None, SPEC, options))
    begun = NestedFields(SPEC, options, 1).entries()
    mask = options.mask
    np.testing.assert_array_equal(begun, first * mask * (1 if rewind else 2))


def test_tables_decay_before_the_cut_only():
    options = ask(dims="pruned", decay=1e-4)
    search = SearchedFields(SPEC, options, 1)
    assert search.parameter_groups(1.0)[0]["weight_decay"] == 1e-4
    assert make(dims="pruned").parameter_groups(1.0)[0]["weight_decay"] == 0
    assert make(dims="mde").parameter_groups(1.0)[0]["weight_decay"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": np.ones(3, dtype=bool)}, "mask must be bool of shape"),
        ({"mask": np.ones(21840)}, "mask must be bool of shape"),
        ({"moduli": [1, 2]}, "moduli must be 4 numbers"),
        ({"moduli": [901, 0, 0, 0]}, "moduli must be 4 numbers"),
        ({"widths": [16, 16]}, "widths must be 4 numbers"),
    ],
)
def test_what_contradicts_the_table_is_one_clear_error(changes, message):
    with pytest.raises(ValueError, match=message):
        NestedFields(SPEC, ask(dims="pruned").replace(**changes), 1)


def test_strength_that_no_field_bears_is_out_of_reach():
    for dims, sharing in itertools.product(["mde"], SHARED_BY):
        with pytest.raises(OutOfReach):
            ask(dims=dims, sharing=sharing, strength=1000.0)


def test_options_are_told_by_name():
    with pytest.raises(ValueError, match="dims must be one of"):
        NestedOptions(dims="narrow")


# -- in no list --------------------------------------------------------------------


def test_it_is_found_by_its_key_and_competes_nowhere():
    (nested,) = UNLISTED
    assert get_method("nested") is nested
    assert "nested" not in [method.key for method in methods()]
    for task in ("ctr", "top-n"):
        assert "nested" not in [entrant.key for entrant in list_entrants(task, 16)]
    with pytest.raises(ValueError, match="unknown method") as error:
        get_method("nothing")
    assert "nested" not in str(error.value)
