"""What every search keeps, in architecture search and in pruning."""

import copy
import dataclasses
import operator

import numpy as np
import pytest
import torch
from small_world import TRIAL

from survey_code.catalog import SEARCH, get_method, methods
from survey_code.embedding import decode_layout
from survey_code.lab import measure_training, run
from survey_code.layouts import load_layout

FAMILIES = ("architecture search", "pruning", "hash and prune")
SEARCHED = [m.key for m in methods() if m.family in FAMILIES and SEARCH in m.stages]


def check_spread(key, rows):
    """Rows that are kept start at the spread of the full table."""
    # The largest entries are kept, which were larger when drawn, or rows begin again as
    # the search has left them.
    if key in ("pep", "magnitude", "optfs"):
        return
    kept = rows[rows != 0]
    assert np.sqrt((kept**2).mean()) == pytest.approx(0.2, rel=0.25)


@pytest.mark.parametrize("key", SEARCHED)
def test_search_then_retrain_keeps_the_contract(key, task, tmp_path):
    """Same seed, same find; forward is look-up; nbytes is the file; ids checked."""
    method, spec = get_method(key), task.spec
    asked = method.plan(spec, 4)
    found, again = (task.search(method, asked) for _ in range(2))
    assert found != asked and found.asked() == asked.asked()
    for field in dataclasses.fields(found):
        value, twice = (getattr(options, field.name) for options in (found, again))
        assert type(value) is type(twice)
        np.testing.assert_array_equal(value, twice)
    table = method.build(spec, found, 1).eval()
    layout = table.freeze()
    assert layout.nbytes <= asked.budget
    ids = np.random.default_rng(0).permutation(spec.num_embeddings)
    rows = table(torch.from_numpy(ids)).detach().numpy()
    np.testing.assert_allclose(rows, layout.lookup(ids), rtol=1e-4, atol=1e-6)
    layout.save(tmp_path / "t.safetensors")
    loaded = load_layout(tmp_path / "t.safetensors")
    np.testing.assert_array_equal(decode_layout(loaded), decode_layout(layout))
    for read in (table, lambda x: layout.lookup(x.numpy())):
        for wrong in (-1, spec.num_embeddings):
            with pytest.raises(IndexError):
                read(torch.tensor([wrong]))
    twin = method.build(spec, found, 2).eval()
    twin.load_state_dict(table.state_dict())
    assert torch.equal(twin(torch.from_numpy(ids)), table(torch.from_numpy(ids)))
    check_spread(key, rows)


@pytest.mark.parametrize("key", SEARCHED)
def test_the_search_and_the_retraining_are_measured(key, data):
    result = run(key, data, 4, seed=1, trial=TRIAL)
    assert result.seconds["search"] > 0
    # Every search here trains at least the full table, with Adam's two averages; but
    # for one, which trains two codebooks and as many thresholds.
    trained = data.num_embeddings
    if key == "cerp":
        trained = 4 * result.options["rows"]
    assert result.bytes["training_persistent_in_search"] >= 3 * 4 * 8 * trained
    if get_method(key).family == "architecture search":
        assert result.bytes["training_peak"] < result.bytes["training_peak_in_search"]


@pytest.mark.parametrize("key", SEARCHED)
@pytest.mark.parametrize("ratio", [1, 4])
def test_a_copy_of_a_searching_table_learns_apart(key, ratio, task):
    """What measures memory trains a deep copy; the table must not notice."""
    method = get_method(key)
    table = method.load().searching(task.spec, method.plan(task.spec, ratio), 1)
    before = copy.deepcopy(table.state_dict())
    measure_training(table, task.sample_ids(), TRIAL.settings)
    for name, value in table.state_dict().items():
        same = torch.equal if isinstance(value, torch.Tensor) else operator.eq
        assert same(value, before[name])
    twin = copy.deepcopy(table)
    own = {id(p) for p in twin.parameters()}
    for part in vars(twin).values():
        optimizer = getattr(part, "optimizer", part)
        if isinstance(optimizer, torch.optim.Optimizer):
            held = {id(p) for g in optimizer.param_groups for p in g["params"]}
            assert held <= own
