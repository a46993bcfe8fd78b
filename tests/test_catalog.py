"""The catalogue, and what every method in it must do.

A new method is tested here as soon as it has its line in the catalogue.
"""

import copy
import inspect
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import survey_code
from survey_code import (
    FrozenEmbedding,
    TableSpec,
    catalog,
    compress,
    load_plugin,
    methods,
)
from survey_code.catalog import AFTER, CATALOG, DURING, SEARCH, TAXONOMY, get_method
from survey_code.embedding import Regime, decode_layout
from survey_code.lab import promises
from survey_code.lab.promises import ASKED_RATIOS, SHAPES, make_small_spec
from survey_code.layouts import Layout
from survey_code.layouts.parts import rows_shape
from survey_code.method import AfterTraining, Searched, Trained
from survey_code.options import Options
from survey_code.replay import is_recording
from survey_code.spec import OutOfReach
from survey_code.training import TrainingSettings, make_table_optimizer

# A method of one file, which goes through everything here without a line elsewhere.
PLUGIN = Path(__file__).parent / "plugin_method.py"
OWN = load_plugin(PLUGIN)
KEYS = [method.key for method in methods()]
catalog._ADDED.clear()
TRAINED = [m.key for m in (*methods(), *OWN) if {DURING, SEARCH} & set(m.stages)]
COMPRESSED = [m.key for m in (*methods(), *OWN) if AFTER in m.stages]
REACH = r"highest ratio it can reach is (below 1|[\d.]+)$"
SPECS = {f"{rows} x {dim}": make_small_spec(rows, dim) for rows, dim in SHAPES}
SUBJECTS = {}


@pytest.fixture(params=SPECS)
def spec(request):
    return SPECS[request.param]


@pytest.fixture(autouse=True)
def plugin(monkeypatch):
    """The file's methods, for the length of a test."""
    monkeypatch.setattr(catalog, "_ADDED", {})
    load_plugin(PLUGIN)


@pytest.fixture(params=KEYS)
def method(request):
    return get_method(request.param)


@pytest.fixture(params=TRAINED)
def trained(request):
    """A method whose table is trained, after a search or without one."""
    return get_method(request.param)


def reach(method, spec):
    """The highest ratio that the method's error names, or None below 1."""
    with pytest.raises(ValueError, match=REACH) as error:
        method.plan(spec, 1e9)
    named = re.search(REACH, str(error.value))[1]
    return None if named == "below 1" else float(named)


def subject(method, spec):
    """The method with a table of such a shape, of which things are made once."""
    made = (method.key, id(spec))
    if made not in SUBJECTS:
        SUBJECTS[made] = promises.Subject(method, spec)
    return SUBJECTS[made]


def able(method, spec):
    """The same, if the method can compress such a table."""
    if reach(method, spec) is None:
        pytest.skip(f"{method.key} cannot compress such a table")
    return subject(method, spec)


def some_plan(method, spec):
    """Options for ratio 4, or for the highest ratio in reach."""
    one = able(method, spec)
    return one.options(one.ratio)


def some_table(method, spec, seed=0):
    return able(method, spec).table(seed)


# What a search hands over to begin with, besides a shape.
LEARNT = {"magnitude": {"learnt": None}, "optfs": {"kept": None}}


def drawn_table(method, spec, seed=0):
    """`some_table` that begins with its own draw, whatever a search has learnt."""
    options = some_plan(method, spec).replace(**LEARNT.get(method.key, {}))
    return method.build(spec, options, seed)


# -- facts -------------------------------------------------------------------


def test_facts_are_complete(method):
    assert re.fullmatch(r"[a-z][a-z0-9_]*", method.key)
    assert method.title and method.title[0].isupper()
    assert 1990 <= method.year <= 2030
    assert re.fullmatch(r"[a-z]+\d{4}[a-z]*", method.citation)
    assert method.family in TAXONOMY[method.category]
    assert method.stages and set(method.stages) <= {AFTER, DURING, SEARCH}
    assert method.stage == method.stages[0]
    assert method.tasks and set(method.tasks) <= {"ctr", "top-n"}


def test_no_option_has_the_name_of_an_argument_of_run(method):
    taken = set(inspect.signature(survey_code.run).parameters)
    taken |= set(inspect.signature(compress).parameters)
    assert not taken & set(method.load().options.names())


def test_order_is_the_surveys_and_keys_are_unique():
    families = [family for group in TAXONOMY.values() for family in group]
    places = [families.index(method.family) for method in CATALOG]
    assert places == sorted(places)
    assert len(set(KEYS)) == len(KEYS)
    assert KEYS[0] == "full"


def test_implementations_have_what_their_stages_need(method):
    kind = method.load()
    assert kind.__doc__ and callable(kind.plan)
    bases = {AFTER: AfterTraining, DURING: Trained, SEARCH: Searched}
    for stage, base in bases.items():
        assert issubclass(kind, base) == (stage in method.stages) or (
            stage == DURING and SEARCH in method.stages
        )
    assert issubclass(kind.options, Options)
    for name in kind.options.names():
        assert kind.options.rules[name].help
    if method.category != "baseline" and method.key not in {own.key for own in OWN}:
        folder = method.category.replace(" ", "_")
        assert method.chapter.split(".")[0] == folder


def test_the_list_is_a_copy():
    methods().clear()
    assert len(methods()) == len(KEYS)


def test_unknown_methods_are_value_errors_that_list_the_known():
    for call in (get_method, lambda key: compress(np.ones((2, 2)), key)):
        with pytest.raises(ValueError, match=r"unknown method 'magic'.*full, uniform"):
            call("magic")


# -- imports -----------------------------------------------------------------


def imported_by(statement):
    """Top-level packages that are loaded once a fresh Python ran a statement."""
    code = f"import sys; {statement}; print(*{{n.split('.')[0] for n in sys.modules}})"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )


def test_importing_the_package_imports_the_standard_library_only():
    for statement in ("import survey_code", "import survey_code; dir(survey_code)"):
        new = imported_by(statement) - imported_by("pass") - sys.stdlib_module_names
        assert {name for name in new if not name.startswith("_")} == {"survey_code"}


def test_importing_the_catalogue_imports_no_torch():
    found = imported_by("from survey_code.catalog import methods; methods()")
    assert "torch" not in found and "numpy" in found
    assert "torch" not in imported_by("import survey_code; survey_code.methods()")


def test_every_public_name_is_there():
    for name in survey_code.__all__:
        assert getattr(survey_code, name) is not None and name in dir(survey_code)
    with pytest.raises(AttributeError, match="no attribute 'magic'"):
        _ = survey_code.magic


# -- budgets -----------------------------------------------------------------


@pytest.mark.parametrize("promise", promises.PROMISES, ids=lambda one: one.name)
def test_every_promise_is_kept(promise, method, spec):
    """What a plug-in's card asks, too; `reach` asks a little more here."""
    if promise.of_tables and method.key not in TRAINED:
        pytest.skip("a promise of tables that are trained")
    promise.keep(able(method, spec))


@pytest.mark.parametrize("ratio", ASKED_RATIOS)
def test_what_is_out_of_reach_is_said_by_name(method, spec, ratio):
    try:
        method.plan(spec, ratio)
    except OutOfReach as error:
        named = re.search(REACH, str(error))
        assert named and str(error).startswith(f"{method.key}: ")
        found = "below 1" if error.nearest is None else f"{error.nearest:.15g}"
        assert named[1] == found


def test_a_larger_ratio_never_takes_more_bytes(method, spec):
    highest = reach(method, spec)
    if highest is None:
        return
    ratios = [ratio for ratio in (*ASKED_RATIOS, highest) if ratio <= highest]
    sizes = [subject(method, spec).layout(ratio).nbytes for ratio in sorted(ratios)]
    # What a search finds leaves some of the budget; it need not be the same share.
    if method.stage == SEARCH:
        sizes = [method.plan(spec, ratio).budget for ratio in sorted(ratios)]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("ratio", [0, -1, 0.5, np.nan, np.inf, "4", None])
def test_bad_ratios_are_value_errors(method, ratio):
    with pytest.raises(ValueError, match=f"{method.key}: ratio must be a number"):
        method.plan(SPECS["37 x 6"], ratio)


def test_unknown_options_are_value_errors_that_list_the_known(method):
    spec = SPECS["37 x 6"]
    calls = [lambda: method.plan(spec, 1, magic=1)]
    if method.key in TRAINED:
        calls.append(lambda: method.build(spec, {"magic": 1}))
    if AFTER in method.stages:
        calls.append(lambda: method.compress(np.ones((37, 6)), {"magic": 1}))
        calls.append(lambda: compress(np.ones((37, 6)), method.key, magic=1))
        calls.append(lambda: compress(np.ones((37, 6)), method.key, seed=1, magic=1))
    for call in calls:
        with pytest.raises(ValueError, match=f"{method.key} has no option '"):
            call()


def test_the_wrong_stage_is_a_value_error(method):
    spec = SPECS["37 x 6"]
    calls = {AFTER: lambda: method.compress(np.ones((37, 6)), {})}
    if SEARCH not in method.stages:  # retrained tables are built, too
        calls[DURING] = lambda: method.build(spec, {})
    for stage, call in calls.items():
        if stage not in method.stages:
            with pytest.raises(ValueError, match=f"does not compress {stage}, only"):
                call()


# -- tables that are trained -------------------------------------------------


def test_another_seed_is_another_table(trained, spec):
    rows, others = (
        decode_layout(drawn_table(trained, spec, seed).eval().freeze())
        for seed in (3, 4)
    )
    # Nothing is drawn where the counts say all.
    assert np.array_equal(rows, others) == (trained.key == "popular")


def test_rows_start_at_the_spread_of_the_full_table(trained):
    """No method starts ahead, and none starts dead."""
    if trained.key == "popular":
        pytest.skip("its rows are not drawn")
    table = drawn_table(trained, SPECS["5000 x 16"])
    # An anchor table stores only a part of its first, dense mixture.
    rows = table.train(trained.key == "ant")(torch.arange(5000))
    # Entries that a search left out are exactly 0; where it went by size, the smallest.
    std = rows[rows != 0].std().item() if trained.stage == SEARCH else rows.std().item()
    larger = {"pep": 0.017, "magnitude": 0.014}
    assert std == pytest.approx(larger.get(trained.key, 0.01), rel=0.25)


def test_forward_takes_any_shape_of_ids(trained):
    table = some_table(trained, SPECS["37 x 6"]).eval()
    ids = torch.tensor([[1, 36], [0, 7]])
    rows = table(ids)
    assert rows.shape == (2, 2, table.embedding_dim)
    assert torch.allclose(table(ids.to(torch.int32)), rows)
    assert torch.allclose(table(ids.ravel()[3]), rows[1, 1], rtol=1e-5)
    assert table(ids[:0]).shape == (0, 2, table.embedding_dim)


def rows_with_gradient(weight):
    grad = weight.grad.to_dense() if weight.grad.is_sparse else weight.grad
    return (grad != 0).flatten(1).any(1)


@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_reach_the_rows_that_were_read_and_no_other(trained, sparse):
    """Rows without a gradient play no part: spoil them, and nothing changes."""
    table = some_table(trained, SPECS["5000 x 16"]).train()
    shared = trained.family == "decomposition"
    if shared or table.freeze().name not in ("dense", "hashed"):
        pytest.skip("shared cores move other rows as well")
    if not list(table.parameters()):
        pytest.skip("it learns nothing by gradients")
    table.begin(Regime(sparse=sparse))
    ids = torch.tensor([4, 4, 1700, 4999])
    before, stored = table(ids).detach().clone(), rows_shape(table.freeze().values)[0]
    table(ids).square().sum().backward()
    for weight in table.parameters():
        assert weight.grad.is_sparse == sparse
        touched = rows_with_gradient(weight)
        parts = len(weight) / stored
        assert 0 < touched.sum() <= 3 * 4 * parts
        with torch.no_grad():
            weight[~touched] = torch.nan
    assert torch.equal(table(ids), before)


def test_hooks_do_no_harm_before_training(trained, spec):
    table = some_table(trained, spec).train()
    for progress in (0.0, 0.5, 1.0):
        table.advance(progress)
        assert torch.isfinite(table(torch.arange(spec.num_embeddings))).all()
    assert table.penalty().shape == () and torch.isfinite(table.penalty())
    own = {id(weight) for weight in table.parameters()}
    for group in table.parameter_groups(0.1):
        assert {id(weight) for weight in group["params"]} <= own


def test_weights_travel_in_a_state_dict(trained, spec):
    options = some_plan(trained, spec)
    source, target = (trained.build(spec, options, seed) for seed in (1, 2))
    target.load_state_dict(source.state_dict())
    ids = torch.arange(spec.num_embeddings)
    assert torch.equal(source.eval()(ids), target.eval()(ids))


def poison(table, bad):
    """The table once for each parameter, or state, that holds a bad number."""
    learnt = [name for name, weight in table.named_parameters() if weight.numel()]
    # Tables that move their rows themselves keep them in buffers.
    state = [
        name
        for name, it in table.named_buffers()
        if it.is_floating_point() and it.numel()
    ]
    for name in learnt or state:
        twin = copy.deepcopy(table)
        weight = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}[name]
        with torch.no_grad():
            weight.view(-1)[weight.numel() // 2] = bad
        yield name, twin


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_table_that_diverged_cannot_be_frozen(trained, bad):
    """A sign, a code or the nearest centroid of NaN is a row like any other."""
    table = some_table(trained, SPECS["37 x 6"])
    for progress in (0.0, 0.5, 1.0):
        table.advance(progress)
    table.eval().freeze()
    poisoned = list(poison(table, bad))
    assert poisoned
    for name, twin in poisoned:
        with pytest.raises(ValueError, match=r"(?i)nan|finite|infin") as error:
            twin.freeze()
        assert str(error.value), name


def test_a_frozen_table_of_any_method_travels_in_a_state_dict(trained):
    spec, tables = SPECS["37 x 6"], []
    for seed in (1, 2):
        table = FrozenEmbedding(some_table(trained, spec, seed).eval().freeze())
        tables.append(table)
    source, target = tables
    target.load_state_dict(source.state_dict())
    ids = torch.arange(spec.num_embeddings)
    assert torch.equal(source(ids), target(ids))
    assert target.layout.nbytes == source.layout.nbytes
    assert torch.equal(copy.deepcopy(target)(ids), source(ids))


# -- tables that are compressed ----------------------------------------------


@pytest.mark.parametrize("key", COMPRESSED)
def test_a_spec_of_another_table_is_refused(key):
    method, weight = get_method(key), np.eye(20, 6, dtype=np.float32)
    for rows, dim in ((5, 6), (50, 6), (20, 7)):
        other = TableSpec.of_table(rows, dim, np.arange(1, 1 + rows))
        with pytest.raises(ValueError, match="the spec is of a table of shape"):
            method.compress(weight, {}, other)
    for other in ("x", 20, {}):
        with pytest.raises(ValueError, match="spec must be a TableSpec"):
            method.compress(weight, {}, other)


@pytest.mark.parametrize("key", COMPRESSED)
def test_what_only_a_search_says_is_refused_after_training(key):
    kind, weight = get_method(key).load().options, np.eye(20, 6, dtype=np.float32)
    for name in set(kind.rules) - set(kind.names()):
        with pytest.raises(ValueError, match=f"has no option '{name}' to ask for"):
            compress(weight, key, **{name: 3})


@pytest.mark.parametrize("key", COMPRESSED)
def test_counts_and_fields_of_another_shape_are_refused(key):
    weight = np.eye(20, 6, dtype=np.float32)
    for odd in (20, [20], [[0, 20]], [0, 21], [0, 5, 5, 20]):
        with pytest.raises(ValueError, match="field_starts must rise from 0"):
            compress(weight, key, field_starts=odd)
    for odd in (3, [1, 2], np.ones((20, 1), int)):
        with pytest.raises(ValueError, match="train_counts must be 20 numbers"):
            compress(weight, key, counts=odd)


@pytest.mark.parametrize("key", COMPRESSED)
def test_compress_takes_any_table(key):
    weight = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    layout = compress(weight, key)
    assert isinstance(layout, Layout) and layout.nbytes <= 4 * 50 * 8
    wanted = decode_layout(layout)
    assert np.corrcoef(wanted.ravel(), weight.ravel())[0, 1] > 0.5
    for same in (
        torch.from_numpy(weight),
        torch.nn.Parameter(torch.from_numpy(weight)),
        torch.nn.Embedding.from_pretrained(torch.from_numpy(weight)).weight,
        weight.astype(np.float64),
        np.asfortranarray(weight),
        weight.tolist(),
    ):
        np.testing.assert_array_equal(decode_layout(compress(same, key)), wanted)


@pytest.mark.parametrize("key", COMPRESSED)
def test_a_trained_table_can_be_compressed_as_planned(key, spec):
    method = get_method(key)
    highest = reach(method, spec)
    if highest is None:
        pytest.skip(f"{key} cannot compress such a table")
    ratio = min(4.0, highest)
    layout = subject(method, spec).layout(ratio, (AFTER,))
    assert layout.nbytes <= spec.full_bytes / ratio


@pytest.mark.parametrize("key", COMPRESSED)
def test_compressing_leaves_the_table_alone(key):
    weight = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    before = weight.copy()
    layout = compress(weight, key)
    rows = decode_layout(layout)
    np.testing.assert_array_equal(weight, before)
    weight[:] = 0
    np.testing.assert_array_equal(decode_layout(layout), rows)


@pytest.mark.parametrize("key", COMPRESSED)
@pytest.mark.parametrize(
    "facts",
    [
        {"counts": [1, 2]},
        {"counts": [-1] * 50},
        {"counts": [0.5] * 50},
        {"field_starts": [0, 10]},
        {"field_starts": [0, 30, 20, 50]},
        {"field_starts": ["a"]},
    ],
    ids=repr,
)
def test_wrong_counts_and_fields_are_value_errors(key, facts):
    with pytest.raises(ValueError, match=r"train_counts|field_starts"):
        compress(np.ones((50, 8)), key, **facts)


DRAWN = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
SIGNS, LARGEST = np.sign(DRAWN), np.finfo(np.float32).max
LONE = np.arange(480).reshape(60, 8) == 77
# Each finite in float32, and odd.
ODD_TABLES = {
    "one row": DRAWN[:1],
    "one column": DRAWN[:, :1],
    "one number": DRAWN[:1, :1],
    "two rows": DRAWN[:2],
    "zeros": 0 * DRAWN,
    "minus zeros": -np.zeros((60, 8), np.float32),
    "denormals": DRAWN * np.float32(1e-40),
    "one denormal": np.where(LONE, np.float32(1e-45), np.float32(0)),
    "constant rows": np.repeat(DRAWN[:, :1], 8, axis=1),
    "equal rows": np.repeat(DRAWN[:1], 60, axis=0),
    "rows of almost one value": 1 + DRAWN * np.float32(1e-6),
    "rows of almost a thousand": 1000 + DRAWN * np.float32(1e-4),
    "tiny": DRAWN * np.float32(1e-30),
    "large": DRAWN * np.float32(1e30),
    "tiny and large": np.where(DRAWN > 0, DRAWN * 1e30, DRAWN * 1e-30),
    "one large": np.where(LONE, np.float32(3e38), DRAWN),
    "near 2e38": np.clip(DRAWN, -1, 1) * np.float32(2e38),
    "near 3e38": SIGNS * np.float32(3e38),
    "the largest": SIGNS * LARGEST,
    "beyond half precision": DRAWN * np.float32(1e5),
}


@pytest.fixture
def soon():
    """What does not end is a failure, not a suite that hangs."""

    def stop(*_):
        raise AssertionError("not ended after ten seconds of its own time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, 10)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize("key", COMPRESSED)
@pytest.mark.parametrize("name", ODD_TABLES)
def test_what_is_finite_stays_finite_or_is_refused(key, name, soon):
    """And it ends, whatever a table holds."""
    table = np.asarray(ODD_TABLES[name], dtype=np.float32)
    choices = get_method(key).load().options.rules
    grid = (
        [{"bits": bits} for bits in choices["bits"].choices]
        if "bits" in choices
        else []
    )
    for asked in grid or [{}]:
        try:
            layout = compress(table, key, **asked)
        except ValueError as error:
            # Only for want of a type that holds the numbers.
            assert np.abs(table).max() > 65000 and str(error), (asked, error)
            continue
        rows = decode_layout(layout)
        assert rows.shape == table.shape and np.isfinite(rows).all()
        # No number is far outside of what the table holds.
        assert float(np.abs(rows).max()) <= 2 * float(np.abs(table).max()) + 1e-6


@pytest.mark.parametrize("key", COMPRESSED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39, -1e300])
def test_the_first_row_that_is_not_finite_is_named(key, bad):
    table = DRAWN.astype(np.float64)
    table[[17, 40], 3] = bad
    for weight in (table, torch.from_numpy(table), table.tolist()):
        with pytest.raises(ValueError, match=r"finite in float32: row 17 holds NaN or"):
            compress(weight, key)


NO_TABLES = {
    "packed codes": (
        next(iter(compress(DRAWN, "rowwise").arrays().values())),
        "got uint8",
    ),
    "bits of bfloat16": ((DRAWN.view(np.uint32) >> 16).astype(np.uint16), "got uint16"),
    "the same, signed": (torch.from_numpy(DRAWN).bfloat16().view(torch.int16), "int16"),
    "float32's bits": (DRAWN.view(np.uint32), "got uint32"),
    "quantised rows": ((20 * DRAWN).astype(np.int8), "got int8"),
    "truth values": (DRAWN > 0, "got bool"),
    "complex": (DRAWN * 1j, "got complex"),
    "words": (DRAWN.astype(str), "an array of numbers, got <U"),
    "objects": (DRAWN.astype(object), "an array of numbers, got object"),
    "masked": (np.ma.masked_array(DRAWN, DRAWN > 2), "got a masked array"),
    "records": (np.zeros(3, [("a", "f4"), ("b", "f4")]), "an array of numbers, got"),
    "a vector": (DRAWN[0], r"2-D .* got shape \(8,\)"),
    "a cube": (DRAWN[None], r"got shape \(1, 60, 8\)"),
    "no rows": (DRAWN[:0], r"got shape \(0, 8\)"),
    "no columns": (DRAWN[:, :0], r"got shape \(60, 0\)"),
    "nothing": (None, "an array of numbers, got object"),
    "a number": (3.0, "2-D"),
    "uneven rows": ([[1.0, 2.0], [3.0]], "an array of numbers: "),
    "a layout": (compress(DRAWN, "full"), "is compressed already"),
    "a path": ("table.npy", "load the file first"),
    "another path": (Path("table.npy"), "load the file first"),
    "a module": (torch.nn.Embedding(3, 2), "give its `weight`"),
    "a sparse tensor": (torch.from_numpy(DRAWN).to_sparse(), "an array of numbers"),
    "a meta tensor": (torch.empty(3, 2, device="meta"), "an array of numbers"),
}


@pytest.mark.parametrize("name", NO_TABLES)
@pytest.mark.parametrize("key", ["full", "rowwise", "pq"])
def test_what_is_no_table_is_refused_by_name(name, key):
    weight, said = NO_TABLES[name]
    for call in (
        lambda: compress(weight, key),
        lambda: get_method(key).compress(weight, {}),
    ):
        with pytest.raises(ValueError, match=f"weight must.*{said}"):
            call()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_any_float_type_are_tables(kind):
    weight = torch.from_numpy(DRAWN).to(kind)
    wanted = weight.float().numpy()
    for given in (weight, weight.clone().requires_grad_(), weight.T.contiguous().T):
        np.testing.assert_array_equal(decode_layout(compress(given, "full")), wanted)


def test_whole_numbers_are_a_table():
    for weight in ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]], np.int32)):
        rows = decode_layout(compress(weight, "full"))
        np.testing.assert_array_equal(rows, [[1, 2], [3, 4]])


@pytest.mark.parametrize("key", COMPRESSED)
def test_what_takes_the_most_frequent_ids_wants_counts(key):
    """Without them the lowest ids would be taken, and nobody told."""
    names = {"slots", "heads"} & set(get_method(key).load().options.names())
    counts = np.arange(60)
    for name in names:
        with pytest.raises(ValueError, match="counts must be given"):
            compress(DRAWN, key, **{name: 4})
        layout = compress(DRAWN, key, counts=counts, **{name: 4})
        rows = decode_layout(layout)
        np.testing.assert_allclose(rows[-4:], DRAWN[-4:], rtol=1e-3)
        compress(DRAWN, key, **{name: 0})


def test_some_method_takes_the_most_frequent_ids():
    taking = {k for k in COMPRESSED for o in get_method(k).load().options.names()
              if o in ("slots", "heads")}  # fmt: skip
    assert taking >= {"tt_rec", "clustering"}


def test_catalogue_lines_are_frozen():
    with pytest.raises(AttributeError):
        catalog.CATALOG[0].key = "other"


ODD = [np.nan, np.inf, -np.inf, 10**30, 10**400, True, "nonsense", "", [1], {},
       object(), np.arange(3), np.float64(np.nan), -1e308]  # fmt: skip


def test_odd_values_of_options_are_one_clear_error(method):
    """Or they are taken, where they are no nonsense; never anything else."""
    spec, kind = SPECS["37 x 6"], method.load().options
    for name in kind.names():
        for odd in ODD:
            try:
                method.plan(spec, 1, **{name: odd})
            except ValueError as error:
                assert str(error).startswith(f"{method.key}: "), (name, odd, error)
            else:
                # Switches, words that are meant, and numbers without an upper end.
                assert isinstance(odd, bool | int), f"{name}={odd!r} was taken"


def test_what_is_found_cannot_be_asked_for(method):
    spec, kind = SPECS["37 x 6"], method.load().options
    for name in set(kind.rules) - set(kind.names()):
        with pytest.raises(ValueError, match=f"{method.key} has no option '{name}'"):
            method.plan(spec, 1, **{name: 3})


def test_another_methods_options_are_refused():
    rowwise = get_method("rowwise").ask({})
    with pytest.raises(ValueError, match="uniform takes UniformOptions, got Rowwise"):
        get_method("uniform").build(SPECS["37 x 6"], rowwise)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rowwise_adagrad"])
def test_what_decays_decays_under_every_optimiser(trained, optimizer):
    """Also the rows that a batch does not read, whose gradient would be sparse."""
    spec, kind = SPECS["5000 x 16"], trained.load()
    tables = [some_table(trained, spec)]
    if issubclass(kind, Searched):
        tables.append(kind.searching(spec, trained.plan(spec, 4.0), 0))
    settings = TrainingSettings(optimizer=optimizer, learning_rate=1e-3)
    for table in tables:
        moved = make_table_optimizer(table.train(), settings)
        groups = [] if moved is None else moved.param_groups
        decaying = [g for g in groups if g.get("weight_decay")]
        if not decaying:
            continue
        for group in decaying:
            group["weight_decay"] = 0.5
        before = [w.detach().clone() for g in decaying for w in g["params"]]
        for group in groups:
            for weight in group["params"]:
                weight.grad = torch.zeros_like(weight)
        (table.embed(READ[:1]).sum() * 0).backward()
        moved.step()
        after = [w.detach() for g in decaying for w in g["params"]]
        for old, new in zip(before, after, strict=True):
            assert new.norm() < 0.9999 * old.norm(), type(table).__name__


# What chooses, scales or is a step of rounding, and no weight.
GAUGES = {
    "hashgnn": {"scale"}, "cigar": {"scale"}, "lsq": {"step"},
    "mpe": {"step", "logits"},
    "nis": {"logits"}, "esapn": {"policy"}, "autoemb": {"controller"},
    "autodim": {"logits"}, "autosrh": {"mask"}, "optembed": {"thresholds"},
    "pep": {"s"}, "cerp": {"s"}, "sseds": {"gates"}, "amtl": {"first", "last"},
    "optfs": {"gates"},
}  # fmt: skip


def test_l2_of_the_whole_table_is_of_its_weights_alone(trained):
    """A penalty on thresholds, gates or chances would choose what is kept."""
    spec, kind = SPECS["5000 x 16"], trained.load()
    tables = [some_table(trained, spec)]
    if issubclass(kind, Searched):
        tables.append(kind.searching(spec, trained.plan(spec, 4.0), 0))
    spared = set()
    for table in tables:
        length = table.train().squared_length()
        if length.requires_grad:
            length.backward()
        for name, weight in table.named_parameters():
            if weight.requires_grad and weight.grad is None:
                spared.add(name.split(".")[0])
    assert spared == GAUGES.get(trained.key, set())


# -- steps that a GPU records -------------------------------------------------

READ = torch.from_numpy(np.random.default_rng(2).integers(0, 5000, size=(40, 2)))


def steady_tables(method):
    """A method's tables whose steps may be recorded: trained, and searched with."""
    spec, kind = SPECS["5000 x 16"], method.load()
    made = [some_table(method, spec)]
    if issubclass(kind, Searched):
        made.append(kind.searching(spec, method.plan(spec, 4.0), 0))
    return [table for table in made if table.steady]


def read_step(table):
    """What a step reads, and the gradients of everything it can move."""
    torch.manual_seed(3)
    table.zero_grad(set_to_none=True)
    rows = table.embed(READ)
    loss = (rows * torch.arange(1.0, 1 + rows.shape[-1])).sum() + table.penalty()
    if loss.requires_grad:
        loss.backward()
    grads = [w.grad for w in table.parameters() if w.grad is not None]
    return [rows.detach(), loss.detach(), *grads]


def test_what_a_steady_table_does_follows_from_its_tensors(trained):
    """Else a recorded step would repeat a number of Python's that has changed."""
    for table in steady_tables(trained):
        table.train().begin(Regime("adam", steps=100))
        table.advance(0.1)
        kept = copy.deepcopy([*table.parameters(), *table.buffers()])
        first = read_step(table)
        table.advance(0.7)
        with torch.no_grad():
            held = (*table.parameters(), *table.buffers())
            for tensor, before in zip(held, kept, strict=True):
                tensor.copy_(before)
        for again, before in zip(read_step(table), first, strict=True):
            assert torch.equal(again, before), type(table).__name__


def test_a_recorded_step_does_what_others_do(trained, monkeypatch):
    """Shapes must not follow from numbers then, so that some tables do more work."""
    for table in steady_tables(trained):
        table.train().begin(Regime("adam", steps=100))
        table.advance(0.1)
        usual = read_step(table)
        with monkeypatch.context() as patched:
            patched.setattr(torch.cuda, "is_available", lambda: True)
            patched.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            assert is_recording()
            recorded = read_step(table)
        for one, other in zip(recorded, usual, strict=True):
            scale = float(other.abs().max()) + 1e-12
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * scale)
