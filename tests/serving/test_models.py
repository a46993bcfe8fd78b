"""Tables of a model, compressed within one budget and put back."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import survey_code
from survey_code import (
    FrozenEmbedding,
    FullEmbedding,
    OutOfReach,
    TableSpec,
    compress_model,
    load_layout,
)
from survey_code.cli import main, parse_size
from survey_code.embedding import decode_layout
from survey_code.layouts import header_bytes
from survey_code.serving.checkpoints import compress_checkpoint
from survey_code.serving.many_tables import HeldTable, Measured, check_form, choose_rows

ROWS = (3000, 700, 150, 40, 9, 2)


class Clicks(nn.Module):
    """A small DLRM: bags and single ids of six fields, a network above."""

    def __init__(self, seed=0, dim=8):
        super().__init__()
        torch.manual_seed(seed)
        bags = [nn.EmbeddingBag(rows, dim, mode="sum") for rows in ROWS[:3]]
        self.bags = nn.ModuleList(bags)
        self.tables = nn.ModuleDict(
            {f"t{rows}": nn.Embedding(rows, dim) for rows in ROWS[3:]}
        )
        self.top = nn.Sequential(nn.Linear(6 * dim, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, ids, offsets, single):
        pooled = [bag(own, offsets) for bag, own in zip(self.bags, ids)]
        rows = [table(own) for table, own in zip(self.tables.values(), single)]
        return self.top(torch.cat([*pooled, *rows], dim=1))


def draw_batch(seed=0, size=16):
    rng = np.random.default_rng(seed)
    ids = [torch.from_numpy(rng.integers(0, rows, 5 * size)) for rows in ROWS[:3]]
    single = [torch.from_numpy(rng.integers(0, rows, size)) for rows in ROWS[3:]]
    return ids, 5 * torch.arange(size), single


def decode_into(model, report):
    """The same model with the rows that a report's layouts hold."""
    for line in report.lines:
        if line.layout is not None:
            weight = model.get_submodule(line.name).weight
            weight.data = torch.from_numpy(decode_layout(line.layout)).to(weight.dtype)
    return model


def full_bytes(dim=8):
    return sum(4 * dim * rows for rows in ROWS)


# -- a whole model -------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [1.5, 2.5, 5])
def test_the_model_reads_what_the_layouts_hold(ratio, tmp_path):
    model = Clicks()
    before = copy.deepcopy(model)
    report = compress_model(model, ratio=ratio)
    batch = draw_batch()
    wanted = decode_into(before, report)(*batch)
    torch.testing.assert_close(model(*batch), wanted, rtol=1e-5, atol=1e-6)
    # Bytes on the disk, and those of the weights that are still there.
    left = 0
    for number, line in enumerate(report.lines):
        if line.layout is None:
            left += 4 * model.get_submodule(line.name).weight.numel()
        else:
            path = tmp_path / f"{number}.safetensors"
            line.layout.save(path)
            left += path.stat().st_size - header_bytes(path)
    assert left == report.after <= report.budget == int(full_bytes() / ratio)
    assert report.before == full_bytes()
    assert left > 0.8 * report.budget  # it is spent


def test_tables_of_all_sizes_are_in_the_report_and_only_the_model_changes():
    model = Clicks()
    report = compress_model(model, ratio=4)
    assert [line.rows for line in report.lines] == list(ROWS)
    assert {line.dim for line in report.lines} == {8}
    assert report.lines[0].method == "rowwise"
    # What few read rows take is nothing: the smallest tables stay.
    assert report.lines[-1].method == "as it is" and report.lines[-1].layout is None
    assert isinstance(model.tables["t2"], nn.Embedding)
    assert not isinstance(model.bags[0], nn.EmbeddingBag)


def test_other_parameters_still_learn():
    model = Clicks()
    compress_model(model, ratio=5)
    loss = model(*draw_batch()).square().mean()
    loss.backward()
    for weight in model.top.parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0


def test_a_state_loads_into_another_compressed_model(tmp_path):
    first, second = Clicks(1), Clicks(2)
    reports = [compress_model(model, ratio=5.333) for model in (first, second)]
    assert [line.form for line in reports[0].lines] == [
        line.form for line in reports[1].lines
    ]
    batch = draw_batch()
    assert not torch.equal(first(*batch), second(*batch))
    torch.save(first.state_dict(), tmp_path / "model.pt")
    second.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(first(*batch), second(*batch))
    other = Clicks(3)
    compress_model(other, ratio=2)
    with pytest.raises(RuntimeError, match="does not fit"):
        other.load_state_dict(first.state_dict())


def test_an_error_leaves_the_model_as_it_was():
    model = Clicks()
    model.tables["t2"].weight.data[1, 3] = math.nan
    names = [name for name, _ in model.named_modules()]
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=r"tables\.t2 must be finite .* row 1 "):
        compress_model(model, ratio=4)
    assert [name for name, _ in model.named_modules()] == names
    assert [type(module) for module in model.modules()] == kinds


def test_half_a_model_stays_half():
    model = nn.ModuleDict({"emb": nn.Embedding(50, 16), "out": nn.Linear(16, 1)})
    model["bags"] = nn.EmbeddingBag(50, 16)
    model.half()
    report = compress_model(model, ratio=1.3, methods=[("rowwise", {"bits": 8})])
    assert report.before == 2 * 2 * 50 * 16
    ids = torch.tensor([[3, 4]])
    assert model["emb"](ids).dtype == model["bags"](ids).dtype == torch.float16


# -- bags, argument by argument ------------------------------------------------------


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("last", [False, True])
def test_bags_keep_their_arguments(mode, padding, last):
    torch.manual_seed(0)
    own = {"mode": mode, "padding_idx": padding, "include_last_offset": last}
    model = nn.Sequential(nn.EmbeddingBag(20, 6, **own))
    before = copy.deepcopy(model)
    report = compress_model(model, ratio=2, methods=["rowwise"])
    ids = torch.tensor([3, 1, 4, 1, 5, 3, 2])
    offsets = torch.tensor([0, 2, 2, 7] if last else [0, 2, 2])
    wanted = decode_into(before, report)[0](ids, offsets)
    torch.testing.assert_close(model[0](ids, offsets), wanted)
    if mode == "sum":
        factors = torch.linspace(-1, 1, 7)
        wanted = before[0](ids, offsets, per_sample_weights=factors)
        found = model[0](ids, offsets, per_sample_weights=factors)
        torch.testing.assert_close(found, wanted)
        with pytest.raises(RuntimeError, match="no gradient"):
            model[0](ids, offsets, factors.requires_grad_())


# -- ties ----------------------------------------------------------------------------


def test_tied_tables_stay_tied():
    model = nn.ModuleDict({name: nn.Embedding(60, 8) for name in ("one", "two")})
    model["bag"] = nn.EmbeddingBag(60, 8)
    model["again"] = model["one"]
    for name in ("two", "bag"):
        model[name].weight = model["one"].weight
    report = compress_model(model, ratio=3)
    (line,) = report.lines
    assert line.names == ("one", "two", "bag", "again")
    assert report.before == 60 * 8 * 4
    assert model["one"] is model["two"] is model["again"]
    assert model["bag"].layout is model["one"].layout
    assert "one: the same table as two, bag, again" in str(report)


@pytest.mark.parametrize("over", ["parameter", "numbers"])
def test_a_table_tied_to_an_output_layer_is_left(over):
    model = nn.ModuleDict({"emb": nn.Embedding(50, 8), "other": nn.Embedding(500, 8)})
    model["out"] = nn.Linear(8, 50, bias=False)
    tied = model["emb"].weight
    model["out"].weight = tied if over == "parameter" else nn.Parameter(tied.data)
    report = compress_model(model, ratio=3)
    first, second = report.lines
    assert (
        first.reason == "tied to weight of out (Linear), which needs the whole matrix"
    )
    assert first.method == "as it is" and first.after == first.before == 1600
    assert second.method == "rowwise" and second.reason is None
    assert model["emb"].weight is tied
    assert f"emb: stays as it is: {first.reason}" in str(report)
    # It counts, as all tables do.
    assert report.after <= report.budget == 17600 // 3


class Scaled(nn.Embedding):
    """More than a table."""

    def forward(self, input):
        return 3 * super().forward(input)


def with_hook(table):
    table.register_forward_hook(lambda module, given, found: found + 1)
    return table


def with_own_forward(table):
    table.forward = lambda ids: table.weight[ids] * 2
    return table


@pytest.mark.parametrize(
    ("table", "why"),
    [
        (Scaled(50, 8), "x is a Scaled, which does more than read rows"),
        (nn.Embedding(50, 8, max_norm=1.0), "x has max_norm"),
        (nn.EmbeddingBag(50, 8, max_norm=1.0), "x has max_norm"),
        (with_hook(nn.Embedding(50, 8)), "x has hooks"),
        (weight_norm(nn.Embedding(50, 8)), "the weight of x is computed"),
        (with_own_forward(nn.Embedding(50, 8)), "more than read rows"),
        (nn.Embedding(49, 8), "it has fewer than 50 rows"),
    ],
)
def test_what_does_more_than_read_rows_is_left_and_said(table, why):
    model = nn.ModuleDict({"x": table, "y": nn.Embedding(500, 8)})
    report = compress_model(model, ratio=3, least_rows=50)
    assert why in report.lines[0].reason and why in str(report)
    assert model["x"] is table and isinstance(model["y"], FrozenEmbedding)


def test_the_package_s_own_full_table_is_one():
    model = nn.Sequential(FullEmbedding(TableSpec.of_shape(80, 8)))
    weight = model[0].weight.detach().clone()
    report = compress_model(model, ratio=2, methods=[("rowwise", {"bits": 8})])
    wanted = survey_code.compress(weight, "rowwise", bits=8)
    ids = torch.arange(80)
    assert torch.equal(model[0](ids), wanted.lookup(ids))
    assert report.lines[0].form == "rowwise bits=8"


# -- budgets -------------------------------------------------------------------------


def test_a_budget_out_of_reach_names_the_nearest_in_reach():
    model = Clicks()
    smallest = sum(6 * rows for rows in ROWS)  # 2 bits, and two float16
    with pytest.raises(OutOfReach, match=f"take {smallest:,}: .* is 5.333") as caught:
        compress_model(model, smallest - 1)
    report = compress_model(copy.deepcopy(model), ratio=caught.value.nearest)
    assert report.after == smallest
    report = compress_model(model, smallest)
    assert {line.form for line in report.lines} == {"rowwise bits=2"}


def test_all_there_is_to_spend_leaves_all_as_it_is():
    report = compress_model(Clicks(), full_bytes())
    assert {line.method for line in report.lines} == {"as it is"}
    assert report.error == 0 and report.after == report.before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "either budget_bytes or ratio"),
        ({"budget_bytes": 10, "ratio": 2}, "either budget_bytes or ratio"),
        ({"budget_bytes": -1}, "budget_bytes must be a number from 0 up, got -1"),
        ({"ratio": 0.5}, "ratio must be a number from 1 up"),
        ({"ratio": 2, "methods": "rowwise"}, "methods must be a sequence"),
        ({"ratio": 2, "methods": ["nothing"]}, "unknown method 'nothing'"),
        ({"ratio": 2, "methods": ["hashing"]}, "does not compress after training"),
        ({"ratio": 2, "methods": [3]}, "a key, or a pair"),
        ({"ratio": 2, "methods": [("rowwise", {"bit": 4})]}, "no option 'bit'"),
        ({"ratio": 2, "methods": [("pq", {"books": 7})]}, "no table .* pq books=7"),
        ({"ratio": 2, "counts": {"bag": [1]}}, "'bag', which is no table; .* bags.0"),
        ({"ratio": 2, "counts": [1, 2]}, "counts must be a dictionary"),
        ({"ratio": 2, "counts": {"bags.2": [1, 2]}}, "counts of bags.2 must be 150"),
        ({"ratio": 2, "counts": {"tables.t2": [1, -1]}}, "2 numbers from 0 up"),
        ({"ratio": 2, "sample": 0}, "sample must be an integer from 1"),
        ({"ratio": 2, "least_rows": 0}, "least_rows must be an integer from 1"),
    ],
)
def test_what_is_wrong_is_said_once(given, message):
    with pytest.raises(ValueError, match=message):
        compress_model(Clicks(), **given)


def test_what_is_no_model_is_refused():
    with pytest.raises(ValueError, match="is a table itself"):
        compress_model(nn.Embedding(3, 4), ratio=2)
    with pytest.raises(ValueError, match="Linear has no embedding table"):
        compress_model(nn.Linear(3, 4), ratio=2)
    with pytest.raises(ValueError, match="must be a torch module, got dict"):
        compress_model({}, ratio=2)


# -- errors and counts ---------------------------------------------------------------


def test_errors_are_those_of_the_rows():
    model = Clicks()
    before = copy.deepcopy(model)
    rng = np.random.default_rng(0)
    counts = {"bags.0": rng.integers(0, 50, 3000), "bags.1": rng.integers(0, 9, 700)}
    report = compress_model(model, ratio=3, counts=counts)
    decoded = decode_into(copy.deepcopy(before), report)
    shares, errors = [], []
    for line in report.lines:
        old, new = (
            model.get_submodule(line.name).weight.detach().double().numpy()
            for model in (before, decoded)
        )
        own = counts.get(line.name, np.ones(len(old)))
        distance = np.average(((old - new) ** 2).sum(axis=1), weights=own)
        length = np.average((old**2).sum(axis=1), weights=own)
        assert line.error == pytest.approx(distance, rel=1e-6)
        assert line.relative == pytest.approx(distance / length, rel=1e-6)
        # Tables without counts are read as often as the others on average.
        usual = sum(own.sum() for own in counts.values()) / 2
        shares.append(own.sum() if line.name in counts else usual)
        errors.append(distance)
    assert report.error == pytest.approx(np.average(errors, weights=shares), rel=1e-6)


def test_bytes_go_where_rows_are_read():
    counts = {"0": np.full(200, 1000), "1": np.full(200, 1)}
    for first in (0, 1):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(200, 16), nn.Embedding(200, 16))
        own = counts if first == 0 else {"1": counts["0"], "0": counts["1"]}
        report = compress_model(model, ratio=4, counts=own)
        assert report.lines[first].after > report.lines[1 - first].after
    with pytest.raises(ValueError, match="counts of all tables are 0"):
        compress_model(
            nn.Sequential(nn.Embedding(200, 16)),
            ratio=2,
            counts={"0": np.zeros(200, int)},
        )


def test_a_sample_of_rows_is_near_all_of_them():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(20_000, 8)) * rng.exponential(size=(20_000, 1))
    counts = rng.zipf(1.5, 20_000).clip(max=10**6)
    forms = [check_form(("rowwise", {"bits": 4}))]
    for own in (None, counts):
        found = []
        for sample in (20_000, 2000):
            table = HeldTable(["x"], torch.from_numpy(weight), counts=own)
            one = Measured(table, forms, sample)
            assert len(one.some) <= sample
            one.measure()
            found.append([offer.error for offer in one.offers.values()][1])
        assert found[1] == pytest.approx(found[0], rel=0.2) and found[0] > 0


def test_rows_that_are_never_read_say_nothing():
    spec = TableSpec.of_table(6, 2, [0, 3, 0, 0, 9, 0])
    some, mass = choose_rows(spec, 2)
    assert some.tolist() == [1, 4] and mass.tolist() == [3, 9]
    some, mass = choose_rows(TableSpec.of_shape(6, 2), 100)
    assert some.tolist() == list(range(6)) and set(mass) == {1}


# -- methods -------------------------------------------------------------------------


def test_a_key_alone_is_tried_in_all_its_sizes():
    table = HeldTable(["x"], torch.randn(300, 16, generator=torch.manual_seed(0)))
    forms = [check_form(key) for key in ("rowwise", "half", "pq")]
    one = Measured(table, forms, 300)
    one.measure()
    found = [str(form) for form in one.offers]
    assert found[:5] == [
        "as it is", "rowwise bits=8", "rowwise bits=4", "rowwise bits=2", "half"
    ]  # fmt: skip
    assert len([form for form in found if form.startswith("pq")]) > 2


def test_a_form_that_cannot_hold_a_table_is_told():
    model = nn.ModuleDict({"a": nn.Embedding(50, 8), "b": nn.Embedding(50, 8)})
    model["a"].weight.data *= 1e6  # beyond float16
    report = compress_model(model, ratio=1.3)
    assert report.lines[0].form == "rowwise bits=8" or report.lines[0].layout is None
    assert set(report.lines[0].refused) == {
        "half", "rowwise bits=4", "rowwise bits=2"
    }  # fmt: skip
    assert "a: not in half: " in str(report) and "b: not in" not in str(report)


# -- the report ----------------------------------------------------------------------


def test_the_report_can_be_read():
    report = compress_model(Clicks(), ratio=4)
    head, *lines = str(report).splitlines()
    assert head.split() == [
        "table", "rows", "dim", "before", "after", "stored", "as", "error"
    ]  # fmt: skip
    for line, text in zip(report.lines, lines):
        assert text.split()[:4] == [
            line.name,
            f"{line.rows:,}",
            "8",
            f"{line.before:,}",
        ]
        assert line.form in text
    assert lines[6].split()[:3] == ["all", f"{report.before:,}", f"{report.after:,}"]
    frame = report.to_frame()
    assert frame["after"].sum() == report.after
    assert frame["name"].tolist() == [line.name for line in report.lines]
    assert "layout" not in frame


def test_progress_is_shown_if_asked(capsys):
    compress_model(nn.Sequential(nn.Embedding(20, 4)), ratio=1, progress=True)
    assert "1/1" in capsys.readouterr().err


# -- checkpoints ---------------------------------------------------------------------


@pytest.fixture
def state():
    torch.manual_seed(0)
    return {
        "bags.user_emb.weight": torch.randn(400, 8),
        "embeddings.0.weight": torch.randn(30, 8, dtype=torch.float64),
        "item_embedding.weight": torch.randn(900, 8).bfloat16(),
        "embedding_norm.weight": torch.randn(8),
        "member.weight": torch.randn(8, 8),
        "steps": torch.tensor(3),
    }


TABLES = ["bags.user_emb.weight", "embeddings.0.weight", "item_embedding.weight"]


@pytest.mark.parametrize("kind", ["dict", "pt", "nested", "safetensors"])
def test_a_checkpoint_becomes_files(kind, state, tmp_path):
    given, prefix = state, ""
    if kind in ("pt", "nested"):
        given, prefix = tmp_path / "model.pt", "model." * (kind == "nested")
        torch.save({"model": state, "epoch": 3} if prefix else state, given)
    elif kind == "safetensors":
        from safetensors.torch import save_file

        given = tmp_path / "model.safetensors"
        save_file(state, given)
    out = tmp_path / "out"
    report = compress_checkpoint(given, 15_000, out=out)
    names = [prefix + name for name in TABLES]
    assert sorted(line.name for line in report.lines) == names
    said = json.loads((out / "report.json").read_text())
    assert said["after"] == report.after <= said["budget"] == 15_000
    total = 0
    for line, told in zip(report.lines, said["tables"]):
        layout = load_layout(out / told["file"])
        total += layout.nbytes
        assert told["file"] == f"{line.name}.safetensors"
        assert told["method"] == line.method and told["options"] == line.options
        ids = np.arange(line.rows)
        old = state[line.name.removeprefix(prefix)].double().numpy()
        distance = ((layout.lookup(ids) - old) ** 2).sum(axis=1).mean()
        assert distance == pytest.approx(line.error, rel=1e-4, abs=1e-12)
    assert total == report.after


def test_numbers_of_16_bits_stay_as_they_are_where_bytes_suffice(state, tmp_path):
    report = compress_checkpoint(state, ratio=1, out=tmp_path)
    forms = {line.name: line.form for line in report.lines}
    assert forms == dict(zip(TABLES, ["full", "full", "half dtype=bfloat16"]))
    assert report.error < 1e-12


def test_a_tensor_tied_to_no_table_keeps_its_numbers(state, tmp_path):
    state["lm_head.weight"] = state["bags.user_emb.weight"]
    state["again.emb.weight"] = state["item_embedding.weight"]
    report = compress_checkpoint(state, ratio=1.5, out=tmp_path)
    lines = {line.name: line for line in report.lines}
    tied = lines["bags.user_emb.weight"]
    assert tied.reason == "tied to lm_head.weight, which is no table"
    assert tied.form == "full"
    assert lines["item_embedding.weight"].names == (
        "item_embedding.weight", "again.emb.weight"
    )  # fmt: skip


def test_names_choose_the_tables(state, tmp_path):
    report = compress_checkpoint(state, ratio=2, out=tmp_path, names=["member.weight"])
    assert [line.name for line in report.lines] == ["member.weight"]
    for names in (["steps"], ["embedding_norm.weight"], ["nothing"]):
        with pytest.raises(ValueError, match=f"'{names[0]}' is no table: name some"):
            compress_checkpoint(state, ratio=2, out=tmp_path, names=names)
    with pytest.raises(ValueError, match="no tensor is named as a table"):
        compress_checkpoint({"x": torch.zeros(2, 2)}, ratio=2, out=tmp_path)


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"nothing that torch wrote")
    with pytest.raises(ValueError, match=r"model\.pt: "):
        compress_checkpoint(path, ratio=2, out=tmp_path)
    torch.save({"emb.weight": print}, path)
    with pytest.raises(ValueError, match="more than tensors"):
        compress_checkpoint(path, ratio=2, out=tmp_path)
    with pytest.raises(ValueError, match="ends in"):
        compress_checkpoint(tmp_path / "model.npy", ratio=2, out=tmp_path)
    with pytest.raises(ValueError, match="not a folder"):
        compress_checkpoint({"emb.weight": torch.eye(4)}, ratio=1, out=path)


def test_the_command_writes_a_folder(state, tmp_path, capsys):
    torch.save(state, tmp_path / "model.pt")
    words = ["compress-model", str(tmp_path / "model.pt"), "--out", str(tmp_path / "o")]
    assert main([*words, "--budget", "15kB"]) == 0
    printed = capsys.readouterr().out
    assert "budget 15,000 bytes" in printed
    assert len(list((tmp_path / "o").glob("*.safetensors"))) == 3
    for wrong in (["--budget", "15 potatoes"], ["--budget", "1"]):
        assert main([*words, *wrong]) == 2
        assert capsys.readouterr().err.startswith("survey-code: ")


def test_sizes_in_words():
    sizes = {"100MB": 10**8, "2 GiB": 2**31, "1.5kb": 1500, "7B": 7, "0": 0}
    assert {word: parse_size(word) for word in sizes} == sizes
    with pytest.raises(ValueError, match="a number and a unit"):
        parse_size("MB")


def test_it_is_the_same_each_time():
    forms = []
    for _ in range(2):
        report = compress_model(Clicks(), ratio=6, methods=["rowwise", "pq"])
        forms.append([(line.form, line.error) for line in report.lines])
    assert forms[0] == forms[1]
