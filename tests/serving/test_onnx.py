"""Exported graphs, run by onnxruntime: the same rows, bytes and errors."""

import builtins

import numpy as np
import pytest
from layout_examples import EXAMPLES
from nestings import draw_nesting

import survey_code
from survey_code import compress
from survey_code.cli import main
from survey_code.layouts import (
    LAYOUTS,
    AddedLayout,
    DenseLayout,
    GroupedLayout,
    Layout,
    RoutedLayout,
    RowwiseLayout,
)
from survey_code.serving.nodes import OPSET
from survey_code.serving.onnx import MOST_STORED_BYTES, export_onnx
from survey_code.serving.rows import emit

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

TABLE = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
# Layouts that add up numbers, or multiply them by a matrix.
ADDING = {
    "anchors", "codebook", "grouped", "hashed", "semantic", "tensor_train", "turned",
}  # fmt: skip


def start(path):
    """A session of one thread that says nothing of the errors that tests provoke."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )


def list_names(layout):
    """The names of a layout and of all within it."""
    inside = [part for part in layout.held().values() if isinstance(part, Layout)]
    return {layout.name}.union(*map(list_names, inside))


def draw_ids(layout):
    rows = layout.num_embeddings
    ids = np.random.default_rng(1).integers(rows, size=300)
    ids[:2] = 0, rows - 1
    if layout.open_ids:
        ids[2:5] = rows, 2**62 + 12345, 2**63 - 1
    return ids


def check_export(layout, path):
    """The file, checked by the standard; what it computes; the bytes beside nbytes."""
    written = export_onnx(layout, path)
    assert written == path.stat().st_size
    onnx.checker.check_model(str(path), full_check=True)
    session, ids = start(path), draw_ids(layout)
    found, wanted = session.run(None, {"ids": ids})[0], layout.lookup(ids)
    assert found.dtype == np.float32 and found.shape == wanted.shape
    if list_names(layout) & ADDING:
        # Relative to the table: terms of a sum may cancel each other.
        largest = float(np.abs(wanted).max(initial=1e-30))
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6 * largest)
    else:
        np.testing.assert_array_equal(found, wanted)
    assert session.run(None, {"ids": ids[:0]})[0].shape == (0, layout.embedding_dim)
    refuse_bad_ids(layout, session)
    return written - layout.nbytes


def refuse_bad_ids(layout, session):
    rows = layout.num_embeddings
    bad = [-1, -rows, -(2**63)]
    if not layout.open_ids:
        bad += [rows, 2 * rows, 2**63 - 1]
    for one in bad:
        with pytest.raises(IndexError):
            layout.lookup([0, one])
        with pytest.raises(Exception, match="out of data bounds"):
            session.run(None, {"ids": np.array([0, one])})


EXPORTED = [name for name in EXAMPLES if not name.startswith(("generator", "nesting"))]


@pytest.mark.parametrize("name", EXPORTED)
def test_the_graph_reads_what_the_layout_reads(name, tmp_path):
    layout = EXAMPLES[name]()
    beside = check_export(layout, tmp_path / "emb.onnx")
    # A kilobyte beside the arrays; more for a remap, or for more than one layout.
    names = list_names(layout)
    single = names <= {layout.name, "packed"} and layout.name not in LONGER
    assert beside < (1100 if single else max(3000, 1100 * len(names)))


# Layouts whose graphs have more nodes, such as some for each group or core.
LONGER = {"flat", "grouped", "semantic", "sparse", "tensor_train"}


@pytest.mark.parametrize("seed", range(300, 340))
def test_random_layouts_within_layouts(seed, tmp_path):
    layout = draw_nesting(seed)
    if "generator" in list_names(layout):
        with pytest.raises(ValueError, match="generator layout has no ONNX export"):
            export_onnx(layout, tmp_path / "emb.onnx")
        assert not list(tmp_path.iterdir())
    else:
        check_export(layout, tmp_path / "emb.onnx")


def test_every_kind_of_layout_is_among_the_examples():
    tried = set().union(*(list_names(EXAMPLES[name]()) for name in EXPORTED))
    assert {kind.name for kind in emit.registry if kind is not object} == tried
    assert tried == set(LAYOUTS) - {"generator"}


@pytest.mark.parametrize("marks", [False, True])
def test_many_named_ids_are_searched_for(marks, tmp_path):
    """More than are compared one by one; few enough to be listed, or marked."""
    rows = 20_000 if not marks else 700
    named = np.sort(np.random.default_rng(2).choice(rows, 400, replace=False))
    table = np.random.default_rng(3).normal(size=(rows, 2)).astype(np.float32)
    parts = [DenseLayout(table[named]), DenseLayout(np.delete(table, named, axis=0))]
    layout = RoutedLayout.from_ids(parts, [named], rows)
    assert (layout.marks is not None) == marks
    # What an id is compared with, and found in, is stored once.
    assert export_onnx(layout, tmp_path / "emb.onnx") - layout.nbytes < 2000
    found = start(tmp_path / "emb.onnx").run(None, {"ids": np.arange(rows)})[0]
    np.testing.assert_array_equal(found, table)


def test_many_groups_are_searched_for(tmp_path):
    starts = np.arange(0, 1000, 5)
    codes = np.random.default_rng(4).integers(16, size=(1000, 3)).astype(np.uint8)
    scale, bias = np.random.default_rng(5).normal(size=(2, 200)).astype(np.float32)
    check_export(
        RowwiseLayout.from_groups(codes, scale, bias, 4, starts), tmp_path / "emb.onnx"
    )


@pytest.mark.parametrize("groups", [2, 3, 7])
def test_remaps_of_several_blocks(groups, tmp_path):
    assignment = np.random.default_rng(groups).integers(groups, size=1500)
    sizes = np.bincount(assignment, minlength=groups)
    tables = [np.full((size, 1), g) + np.arange(size)[:, None] / 2048
              for g, size in enumerate(sizes)]  # fmt: skip
    layout = GroupedLayout.from_tables(tables, [None] * groups, 1, assignment)
    check_export(layout, tmp_path / "emb.onnx")


def test_arrays_are_stored_once_and_in_their_own_types(tmp_path):
    for name, kinds in {
        "bfloat16": {"BFLOAT16"},
        "float16": {"FLOAT16"},
        "4 bits, odd": {"UINT8", "FLOAT16"},
        "8 bits": {"UINT8", "FLOAT"},
        "codes, half": {"UINT32", "FLOAT16"},
    }.items():
        export_onnx(EXAMPLES[name](), tmp_path / "emb.onnx")
        model = onnx.load(tmp_path / "emb.onnx")
        large = [t for t in model.graph.initializer if len(t.raw_data) > 80]
        names = {onnx.TensorProto.DataType.Name(t.data_type) for t in large}
        assert names == kinds
        domains = {node.domain for node in model.graph.node}
        versions = [(own.domain, own.version) for own in model.opset_import]
        assert domains == {""} and versions == [("", OPSET)]


def test_the_same_layout_gives_the_same_file(tmp_path):
    for name in ("one.onnx", "two.onnx"):
        export_onnx(EXAMPLES["three precisions"](), tmp_path / name)
    one, two = (tmp_path / name for name in ("one.onnx", "two.onnx"))
    assert one.read_bytes() == two.read_bytes()


# -- what is refused ------------------------------------------------------------------


def test_a_layout_without_export_is_named_however_deep_it_lies(tmp_path):
    layout = EXAMPLES["generator"]()
    both = AddedLayout([compress(np.ones((1000, 12)), "half"), layout])
    for own in (layout, both):
        with pytest.raises(ValueError, match="generator layout has no ONNX") as error:
            export_onnx(own, tmp_path / "emb.onnx")
        assert "rowwise" in str(error.value) and "routed" in str(error.value)


def test_a_class_that_derives_from_one_with_an_export_has_none(tmp_path):
    class Doubled(DenseLayout):
        name = "doubled"

        def read_rows(self, ids):
            return 2 * super().read_rows(ids)

    with pytest.raises(ValueError, match="a doubled layout has no ONNX export"):
        export_onnx(Doubled(TABLE), tmp_path / "emb.onnx")


def test_what_is_no_layout_or_too_large_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="layout must be a Layout, got ndarray"):
        export_onnx(TABLE, tmp_path / "emb.onnx")
    assert MOST_STORED_BYTES < 2**31
    monkeypatch.setattr("survey_code.serving.onnx.MOST_STORED_BYTES", 1000)
    with pytest.raises(ValueError, match="at most 2 GiB, this layout has 1,280 bytes"):
        export_onnx(DenseLayout(TABLE), tmp_path / "emb.onnx")
    assert not list(tmp_path.iterdir())


def test_without_onnx_the_error_says_what_to_install(tmp_path, monkeypatch):
    find = builtins.__import__

    def refuse(name, *rest):
        if name == "onnx":
            raise ModuleNotFoundError("No module named 'onnx'")
        return find(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'survey-code\[onnx\]'"):
        export_onnx(DenseLayout(TABLE), tmp_path / "emb.onnx")
    assert not list(tmp_path.iterdir())


# -- the command ----------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    compress(TABLE, "rowwise", bits=4).save(tmp_path / "emb.safetensors")
    return str(tmp_path / "emb.safetensors")


def test_the_command_writes_what_python_writes(saved, tmp_path, capsys):
    by_ending, by_name = tmp_path / "a.onnx", tmp_path / "b"
    assert main(["export", saved, "--to", str(by_ending)]) == 0
    size = by_ending.stat().st_size
    assert capsys.readouterr().out == f"{by_ending}: onnx, 40 x 8, {size:,} bytes\n"
    assert main(["export", saved, "--to", "onnx", "--out", str(by_name)]) == 0
    survey_code.export_onnx(survey_code.load_layout(saved), tmp_path / "c")
    wanted = (tmp_path / "c").read_bytes()
    assert by_ending.read_bytes() == by_name.read_bytes() == wanted


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--to", "emb.bin"], "ends in .onnx, or a format, onnx or fbgemm"),
        (["--to", "onnx"], "--to onnx needs --out and a file"),
        (["--to", "fbgemm"], "--to fbgemm needs --out and a file"),
        (["--to", "a.onnx", "--out", "b"], "both name a file"),
        (["--to", "a.onnx", "--row-alignment", "1"], "--row-alignment is of --to"),
        (["--to", "nowhere/a.onnx"], "no such folder to save into"),
    ],
)
def test_the_command_says_what_is_wrong(words, wrong, saved, monkeypatch, capsys):
    monkeypatch.chdir(saved.rpartition("/")[0])
    assert main(["export", saved, *words]) == 2
    printed = capsys.readouterr()
    assert wrong in printed.err and printed.err.count("\n") == 1


def test_the_command_does_not_write_over_what_it_reads(saved, capsys):
    assert main(["export", saved, "--to", "onnx", "--out", saved]) == 2
    assert "is read from, and would be overwritten" in capsys.readouterr().err
    survey_code.load_layout(saved)
