"""Layouts as torch modules: moved, kept, compiled and exported as torch's own are."""

import copy
import io
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from layout_examples import EXAMPLES as LAYOUTS
from safetensors.torch import load_file, save_file
from torch.nn import functional

from survey_code import FrozenEmbedding, FrozenEmbeddingBag, TableSpec, compress
from survey_code.baselines import FullEmbedding
from survey_code.kernels.cpu.compile import find_compiler
from survey_code.layouts import DenseLayout
from survey_code.serving import operators
from survey_code.weight_sharing.hashing import ROBE

SPEC = TableSpec.of_shape(30, 4)


def test_frozen_embedding_is_a_module_without_weights():
    layout = FullEmbedding(SPEC).freeze()
    network = torch.nn.Sequential(FrozenEmbedding(layout), torch.nn.Linear(4, 1))
    assert network(torch.tensor([[1, 2]])).shape == (1, 2, 1)
    assert not list(network[0].parameters())
    assert not network[0](torch.tensor([1])).requires_grad


def test_a_frozen_table_takes_ids_as_any_table_does():
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    frozen = FrozenEmbedding(DenseLayout.from_weight(weight))
    for ids in ([3, 1], np.array([3, 1]), torch.tensor([3, 1], dtype=torch.int32)):
        assert torch.equal(frozen(ids), torch.from_numpy(weight[[3, 1]]))
    with pytest.raises(IndexError, match="id 4 is out of range"):
        frozen([4])


# -- a layout as a module ----------------------------------------------------------

DRAWN = np.random.default_rng(5).normal(size=(2, 40, 8)).astype(np.float32)
EXAMPLES = [
    ("full", {}), ("half", {"dtype": "bfloat16"}), ("rowwise", {"bits": 4}),
    ("bccf", {}), ("magnitude", {}), ("pq", {"books": 2}), ("low_rank", {"rank": 2}),
    ("tt_rec", {}),
]  # fmt: skip


def frozen_pair(key, options):
    """Modules of the same kind whose rows differ."""
    return [FrozenEmbedding(compress(part, key, **options)) for part in DRAWN]


def read_all(table):
    return table(torch.arange(40))


@pytest.mark.parametrize(("key", "options"), EXAMPLES)
def test_a_frozen_table_travels_in_a_state_dict(key, options):
    source, target = frozen_pair(key, options)
    rows, others = read_all(source), read_all(target)
    assert not torch.equal(rows, others)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert target.load_state_dict(state).missing_keys == []
    assert torch.equal(read_all(target), rows)
    for part in state.values():  # the module keeps nothing of the state
        part.zero_()
    assert torch.equal(read_all(target), rows)


def test_a_state_holds_what_a_file_holds(tmp_path):
    table = torch.nn.ModuleDict({"ids": FrozenEmbedding(compress(DRAWN[0], "pq"))})
    state, arrays = table.state_dict(), table["ids"].layout.arrays()
    names = {f"ids.{name.replace('/', '.')}" for name in arrays}
    assert names and set(state) == names | {"ids.layout_description"}
    save_file(state, tmp_path / "state.safetensors")
    twin = torch.nn.ModuleDict({"ids": FrozenEmbedding(compress(DRAWN[1], "pq"))})
    twin.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert torch.equal(read_all(twin["ids"]), read_all(table["ids"]))


def damage(state, how):
    """A state that does not fit, and what is said of it."""
    first = next(iter(state))
    if how == "other kind":
        return FrozenEmbedding(
            compress(DRAWN[0], "full")
        ).state_dict(), "layout 'dense'"
    if how == "other size":
        return FrozenEmbedding(compress(DRAWN[0][:9], "rowwise")).state_dict(), "of {"
    if how == "other bits":
        other = compress(DRAWN[0], "rowwise", bits=2)
        return FrozenEmbedding(other).state_dict(), "'bits': 2"
    if how == "a missing array":
        return {n: p for n, p in state.items() if n != first}, "rows"
    if how == "another array":
        return {**state, "more": torch.zeros(3)}, "more"
    if how == "a short array":
        return {**state, first: state[first][:-1]}, "rows"
    if how == "no description":
        return {first: state[first]}, "layout_description is missing"
    if how == "a full table":
        return {"weight": torch.zeros(40, 8)}, "layout_description is missing"
    if how == "no tensor":
        return {**state, first: 3}, "is no tensor, but int"
    noise = torch.arange(50, dtype=torch.uint8)
    return {**state, "layout_description": noise}, "layout_description is damaged"


@pytest.mark.parametrize(
    "how",
    [
        "other kind", "other size", "other bits", "a missing array", "another array",
        "a short array", "no description", "a full table", "no tensor", "damaged",
    ],
)  # fmt: skip
@pytest.mark.parametrize("strict", [True, False])
def test_a_state_that_does_not_fit_is_an_error(how, strict):
    table = FrozenEmbedding(compress(DRAWN[0], "rowwise", bits=4))
    rows = read_all(table)
    state, said = damage(table.state_dict(), how)
    with pytest.raises(RuntimeError, match=re.escape(said)):
        table.load_state_dict(state, strict=strict)
    assert torch.equal(read_all(table), rows)


@pytest.mark.parametrize(
    ("layout", "change"),
    [
        # A layout can do without row scales; its rows are others then.
        (compress(DRAWN[0], "bccf", rule="sign", scale="row"), {"scales": None}),
        (ROBE.make(TableSpec.of_shape(11, 6), size=20).freeze(), {"values": 7}),
        (compress(DRAWN[0], "half"), {"values": torch.float32}),
    ],
)
def test_every_array_of_a_state_must_be_the_modules(layout, change):
    table = FrozenEmbedding(layout)
    rows, state = table(torch.arange(5)), table.state_dict()
    for name, how in change.items():
        if how is None:
            del state[name]
        elif isinstance(how, int):
            state[name] = state[name][:how].clone()
        else:
            state[name] = state[name].to(how)
    with pytest.raises(RuntimeError, match="the state does not fit"):
        table.load_state_dict(state)
    assert torch.equal(table(torch.arange(5)), rows)


def test_a_state_without_the_table_is_missing():
    table = torch.nn.ModuleDict({"ids": FrozenEmbedding(compress(DRAWN[0], "full"))})
    with pytest.raises(RuntimeError, match=r"Missing key.*ids\.layout_description"):
        table.load_state_dict({})
    found = table.load_state_dict({}, strict=False)
    assert found.missing_keys == ["ids.layout_description"]


@pytest.mark.parametrize(("key", "options"), EXAMPLES)
def test_a_frozen_table_can_be_copied(key, options):
    table, _ = frozen_pair(key, options)
    rows = read_all(table)
    whole = io.BytesIO()
    torch.save(table, whole)
    whole.seek(0)
    for twin in (
        copy.deepcopy(table),
        pickle.loads(pickle.dumps(table)),
        torch.load(whole, weights_only=False),
    ):
        assert torch.equal(read_all(twin), rows)
        for name, array in twin.layout.arrays().items():
            assert not np.shares_memory(array, table.layout.arrays()[name])


def test_a_type_is_that_of_the_vectors_and_never_of_the_numbers():
    table = FrozenEmbedding(compress(DRAWN[0], "rowwise", bits=8))
    rows, stored = read_all(table), table.layout.nbytes
    network = torch.nn.Sequential(table, torch.nn.Linear(8, 1))
    for kind, change in (
        (torch.float16, network.half),
        (torch.bfloat16, network.bfloat16),
        (torch.float64, network.double),
        (torch.float32, network.float),
    ):
        change()
        assert torch.equal(read_all(table), rows.to(kind))
        assert network(torch.tensor([3])).dtype == kind
    assert network.to("cpu", torch.float16)(torch.tensor([3])).dtype == torch.float16
    assert table.layout.nbytes == stored and table.share_memory() is table
    assert torch.equal(copy.deepcopy(table)(torch.tensor([3])), rows[[3]].half())


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_a_device_that_holds_no_layout_is_an_error(device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    table = FrozenEmbedding(compress(DRAWN[0], "full"))
    with pytest.raises((ValueError, AssertionError, RuntimeError), match=r"meta|CUDA"):
        table.to(device)
    assert torch.equal(read_all(table), torch.from_numpy(DRAWN[0]))


def test_a_type_that_is_no_number_s_is_an_error():
    with pytest.raises(ValueError, match=r"cannot become torch\.int8"):
        FrozenEmbedding(compress(DRAWN[0], "full")).type(torch.int8)


def test_a_trace_is_an_error():
    """It would return the rows of the example's ids for all others."""
    table = FrozenEmbedding(compress(DRAWN[0], "rowwise"))
    network = torch.nn.Sequential(table, torch.nn.Linear(8, 1))
    for module in (table, network):
        with pytest.raises(RuntimeError, match="cannot be traced"):
            torch.jit.trace(module, torch.tensor([1, 2]))
    assert read_all(table).shape == (40, 8)


@pytest.mark.parametrize("wrong", [DRAWN[0], "table.safetensors", None])
def test_only_a_layout_is_frozen(wrong):
    with pytest.raises(ValueError, match="layout must be a Layout"):
        FrozenEmbedding(wrong)


# -- empty modules, ids that are not known -----------------------------------------


@pytest.mark.parametrize(("key", "options"), EXAMPLES)
def test_a_state_is_loaded_into_an_empty_module(key, options):
    source, other = frozen_pair(key, options)
    table, bag = FrozenEmbedding.empty(), FrozenEmbeddingBag.empty("mean")
    for module in (table, bag):
        assert "empty" in repr(module)
        with pytest.raises(RuntimeError, match="is empty: load a state into it"):
            module(torch.tensor([[1]]))
        module.load_state_dict(source.state_dict())
        assert (module.num_embeddings, module.embedding_dim) == (40, 8)
    assert torch.equal(read_all(table), read_all(source))
    assert torch.equal(bag(torch.arange(40)[:, None]), read_all(source))
    # From then on it is a table as any other.
    table.load_state_dict(other.state_dict())
    assert torch.equal(read_all(table), read_all(other))
    assert torch.equal(read_all(copy.deepcopy(table)), read_all(other))
    with pytest.raises(RuntimeError, match="does not fit"):
        table.load_state_dict(FrozenEmbedding(compress(DRAWN[0][:9], key)).state_dict())
    assert FrozenEmbedding.empty().half().kind == torch.float16
    assert "empty" in repr(copy.deepcopy(FrozenEmbedding.empty()))


def test_unknown_ids_are_the_default_or_an_error():
    layout = compress(DRAWN[0], "rowwise")
    table = FrozenEmbedding(layout, default_id=7)
    ids = torch.tensor([[3, -1], [40, 2**40]])
    found = table(ids)
    assert torch.equal(found[0, 0], read_all(FrozenEmbedding(layout))[3])
    assert torch.equal(found.reshape(4, 8)[1:], table(torch.tensor([7, 7, 7])))
    bag = FrozenEmbeddingBag(layout, default_id=7)
    assert torch.allclose(bag(ids), table(ids).sum(1))
    with pytest.raises(IndexError, match="id -1 is out of range"):
        FrozenEmbedding(layout)(ids)
    opened = ROBE.make(TableSpec.of_shape(40, 8), size=20, open_ids=True).freeze()
    assert torch.equal(
        FrozenEmbedding(opened, default_id=7)(torch.tensor([2**40])),
        FrozenEmbedding(opened)(torch.tensor([2**40])),
    )
    for wrong in (40, -1, 2.0, True):
        with pytest.raises(ValueError, match="default_id must be an integer from 0 to"):
            FrozenEmbedding(layout, default_id=wrong)


def test_autocast_changes_what_is_returned():
    table, bag = (kind(compress(DRAWN[0], "rowwise")) for kind in
                  (FrozenEmbedding, FrozenEmbeddingBag))  # fmt: skip
    ids = torch.tensor([[1, 2]])
    rows, pooled = table(ids), bag(ids)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(table(ids), rows.bfloat16())
        assert torch.equal(bag(ids), pooled.bfloat16())
    assert table(ids).dtype == bag(ids).dtype == torch.float32


# -- bags, as torch pools them -----------------------------------------------------


@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    mode=st.sampled_from(["sum", "mean", "max"]),
    last=st.booleans(), padding=st.sampled_from([None, 0, 3, -1]),
    weighted=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_bag_is_torchs(lengths, mode, last, padding, weighted, seed):
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(DRAWN[0])
    ids = torch.from_numpy(rng.integers(0, 40, sum(lengths)))
    offsets = torch.from_numpy(np.cumsum([0, *lengths])[: len(lengths) + last])
    factors = torch.randn(len(ids)) if weighted and mode == "sum" else None
    own = FrozenEmbeddingBag(DenseLayout.from_weight(DRAWN[0]), mode, last, padding)
    found = own(ids, offsets, factors)
    if not len(ids):
        assert not found.any()
        return
    wanted = functional.embedding_bag(
        ids, weight, offsets, mode=mode, per_sample_weights=factors,
        include_last_offset=last, padding_idx=padding,
    )  # fmt: skip
    torch.testing.assert_close(found, wanted)


LAST = {"include_last_offset": True}


@pytest.mark.parametrize(
    ("how", "ids", "offsets", "words"),
    [
        (LAST, [[1, 2]], None, "needs offsets"),
        (
            {"include_last_offset": True},
            [1, 2, 3],
            [0, 2],
            "number of ids \\(3\\), got 2",
        ),
        ({}, [1, 2], [0, 3], "not exceed"),
        ({}, [1, 2], [0, 2, 1], "never fall"),
        ({}, [1, 2], [1], "start at 0"),
        ({}, [[1, 2]], [0], "one axis"),
        ({}, [1, 2], None, "shape \\(bags, length\\)"),
        ({}, [1.0, 2.0], [0], "integers"),
    ],
)
def test_bags_that_torch_leaves_open_are_an_error(how, ids, offsets, words):
    bag = FrozenEmbeddingBag(compress(DRAWN[0], "rowwise"), **how)
    given = None if offsets is None else torch.tensor(offsets)
    with pytest.raises(ValueError, match=words):
        bag(torch.tensor(ids), given)


def test_weights_need_sums_and_a_mode_is_one_of_three():
    bag = FrozenEmbeddingBag(compress(DRAWN[0], "rowwise"), "mean")
    with pytest.raises(ValueError, match="need mode='sum'"):
        bag(torch.tensor([[1]]), per_sample_weights=torch.ones(1, 1))
    with pytest.raises(ValueError, match="mode must be one of"):
        FrozenEmbeddingBag(compress(DRAWN[0], "rowwise"), "median")
    with pytest.raises(ValueError, match="padding_idx must be from"):
        FrozenEmbeddingBag(compress(DRAWN[0], "rowwise"), padding_idx=40)


# -- what compilers do with them, for every layout ---------------------------------


class Both(torch.nn.Module):
    """Rows, and pooled rows, that go on into a layer."""

    def __init__(self, layout):
        super().__init__()
        self.table = FrozenEmbedding(layout)
        self.bag = FrozenEmbeddingBag(layout, "mean")
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(layout.embedding_dim, 2)

    def forward(self, ids):
        return self.layer(self.table(ids).sum(1) + self.bag(ids))


def equal(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_one_operator(name):
    """With the schema, the shapes and the ways to compile that torch asks for."""
    layout = LAYOUTS[name]()
    layout.prepare()
    held = operators.as_tensors(layout), operators.describe_tensors(layout)
    ids = torch.randint(0, layout.num_embeddings, (5, 3))
    rows = layout.lookup(ids)
    assert torch.equal(torch.ops.survey_code.lookup(ids, *held), rows)
    mapped = torch.func.vmap(lambda own: operators.lookup(own, *held))(ids)
    assert torch.equal(mapped, rows)
    module = FrozenEmbedding(layout)
    assert torch.equal(torch.func.vmap(module)(ids), rows)
    assert torch.equal(torch.func.vmap(module, in_dims=1)(ids), rows.movedim(1, 0))
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(operators.lookup, (ids, *held), test_utils=tests)
    arguments = (ids, None, None, *held, "sum", None, False)
    torch.library.opcheck(operators.bag, arguments, test_utils=tests)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_exported_with_any_number_of_ids(name):
    model = Both(LAYOUTS[name]()).eval()
    rows = model.table.num_embeddings
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    ids = torch.randint(0, rows, (4, 3))
    program = torch.export.export(model, (ids,), dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    again = torch.export.load(file).module()
    for count in (2, 9):
        ids = torch.randint(0, rows, (count, 3))
        equal(again(ids), model(ids))
    with pytest.raises(IndexError):
        again(torch.full((2, 3), rows if not model.table.layout.open_ids else -1))


# Some of every kind: a compilation takes a second.
SOME = ["float32", "4 bits, odd", "codes and rows", "nesting 117", "generator"]


@pytest.mark.parametrize("name", SOME)
def test_a_layout_is_compiled_without_a_break(name):
    model = Both(LAYOUTS[name]()).eval()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for count in (4, 7):
        ids = torch.randint(0, model.table.num_embeddings, (count, 3))
        equal(compiled(ids), model(ids))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch's own code
@pytest.mark.skipif(find_compiler() is None, reason="no compiler")
def test_a_layout_is_compiled_ahead_of_time(tmp_path):
    """Another process runs it, if it imports the operators."""
    model = Both(LAYOUTS["tiered"]()).eval()
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    ids = torch.randint(0, model.table.num_embeddings, (4, 3))
    program = torch.export.export(model, (ids,), dynamic_shapes=shapes)
    path = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "model.pt2")
    )
    ids = torch.randint(0, model.table.num_embeddings, (6, 3))
    torch.save((ids, model(ids)), tmp_path / "wanted.pt")
    script = (
        "import sys, torch, survey_code.serving.operators\n"
        "model = torch._inductor.aoti_load_package(sys.argv[1])\n"
        "ids, wanted = torch.load(sys.argv[2])\n"
        "torch.testing.assert_close(model(ids), wanted, rtol=1e-4, atol=1e-4)\n"
    )
    there = {**os.environ, "PYTHONPATH": os.getcwd()}
    words = [sys.executable, "-c", script, path, str(tmp_path / "wanted.pt")]
    subprocess.run(words, env=there, check=True)


def test_memory_that_is_gone_is_not_read():
    """Another table may lie where the first one did."""
    wanted = {}
    for turn in range(200):
        layout = DenseLayout.from_weight(np.full((64, 64), turn, dtype=np.float32))
        held = operators.as_tensors(layout), operators.describe_tensors(layout)
        found = operators.lookup(torch.tensor([3]), *held)
        wanted[held[0][0].data_ptr()] = turn
        assert (found == turn).all()
        del layout, held
    assert len(wanted) < 200  # some lay in the same place
    assert sum(held.is_there() for held in operators._HELD.values()) < 200


def test_what_is_described_must_be_given():
    layout = compress(DRAWN[0], "pq")
    held, description = operators.as_tensors(layout), operators.describe_tensors(layout)
    with pytest.raises(ValueError, match="arrays are described, got"):
        operators.lookup(torch.tensor([1]), held[:-1], description)


def test_buffers_share_the_memory_of_the_layout():
    layout = compress(DRAWN[0], "rowwise", bits=4)
    module = FrozenEmbedding(layout)
    (buffer,) = module.buffers()
    assert buffer.data_ptr() == layout.rows.ctypes.data
    fixed = DRAWN[0].copy()
    fixed.flags.writeable = False
    (buffer,) = FrozenEmbedding(DenseLayout(fixed)).buffers()
    assert buffer.data_ptr() == fixed.ctypes.data
    assert "array0" not in module.state_dict()


@pytest.mark.parametrize(
    "kind", ["int8", "uint8", "int16", "uint16", "uint32", "uint64"]
)
def test_unknown_ids_of_narrow_types_are_the_default(kind):
    rows = 70_000  # beyond int16, and below 0 there
    layout = DenseLayout.from_weight(np.arange(rows, dtype=np.float32)[:, None])
    ids = torch.tensor([5, 100], dtype=torch.int64).to(getattr(torch, kind))
    for default in (0, 69_999):
        assert FrozenEmbedding(layout, default_id=default)(ids).tolist() == [[5], [100]]
    least = torch.tensor([5, torch.iinfo(ids.dtype).max], dtype=ids.dtype)
    found = FrozenEmbedding(layout, default_id=69_999)(least)
    known = torch.iinfo(ids.dtype).max
    assert found[1].item() == (known if known < rows else 69_999)


def test_a_default_makes_no_ids_of_what_are_none():
    table = FrozenEmbedding(DenseLayout.from_weight(np.eye(3)), default_id=0)
    for wrong in (torch.tensor([True]), torch.tensor([1.0])):
        with pytest.raises(ValueError, match="ids must be integers"):
            table(wrong)


@pytest.mark.parametrize("options", [{"padding_idx": 100}, {"default_id": 100}])
def test_a_state_that_the_options_do_not_fit_is_not_loaded(options):
    small = DenseLayout.from_weight(np.eye(3))
    module = FrozenEmbeddingBag.empty(**options)
    with pytest.raises(RuntimeError, match=r"must be .*from -?[03] to 2, got 100"):
        module.load_state_dict(FrozenEmbeddingBag(small).state_dict())
    assert module._layout is None and not list(module.buffers())
    large = DenseLayout.from_weight(np.eye(101))
    module = FrozenEmbeddingBag(large, **options)
    with pytest.raises(ValueError, match="got 100"):
        module.layout = small
    assert module.layout is large and module.num_embeddings == 101


def test_a_type_that_no_rows_have_is_an_error_at_once():
    table = FrozenEmbedding(DenseLayout.from_weight(np.eye(3)))
    with pytest.raises(ValueError, match="out_dtype must be one of"):
        table.to(torch.float8_e4m3fn)
    assert table(torch.tensor([1])).tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("check", [1, 0, None, "soon", np.True_, [True]])
def test_checks_are_three(check):
    layout = DenseLayout.from_weight(np.eye(3))
    for call in (
        lambda: FrozenEmbedding(layout, check=check),
        lambda: layout.lookup([1], check=check),
        lambda: layout.bag([1], [0], check=check),
    ):
        with pytest.raises(ValueError, match="check must be True, False or 'late'"):
            call()


@pytest.mark.parametrize(
    "wrong",
    [
        torch.tensor([0.0], requires_grad=True), torch.tensor([0], device="meta"),
        torch.tensor([0]).to_sparse(), [0, [1]],
    ],
)  # fmt: skip
def test_what_is_no_array_is_one_clear_error(wrong):
    layout = DenseLayout.from_weight(np.eye(3))
    layout.prepare()
    with pytest.raises(ValueError, match="offsets must be an array of integers"):
        layout.bag([1], wrong)
    if not getattr(wrong, "requires_grad", False):  # weights may want one
        with pytest.raises(ValueError, match="per_sample_weights must be an array"):
            layout.bag([1], [0], wrong)
