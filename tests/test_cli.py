"""The command line: what it prints, what it writes, and how it refuses."""

import hashlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from survey_code import FrozenEmbedding, catalog, compress, data, load_layout, methods
from survey_code.cli import DATA_NAMES, main, split_words
from survey_code.data import LOADERS
from survey_code.lab import load_results
from survey_code.serving.tables import open_table

TABLE = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)


@pytest.fixture
def table(tmp_path):
    np.save(tmp_path / "table.npy", TABLE)
    return str(tmp_path / "table.npy")


@pytest.fixture
def out(tmp_path):
    return str(tmp_path / "out.safetensors")


def refused(capsys, *words):
    """The one line that a refused command says."""
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("survey-code: ")
    assert printed.err.count("\n") == 1 and "Traceback" not in printed.err
    return printed.err


# -- the catalogue --------------------------------------------------------------


def test_methods_lists_the_catalogue_in_its_order(capsys):
    assert main(["methods"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["key", "family", "stage", "year", "title"]
    assert [line.split()[0] for line in lines] == [m.key for m in methods()]
    for line, method in zip(lines, methods()):
        for fact in (method.family, method.stage, str(method.year), method.title):
            assert fact in line


def test_every_data_set_can_be_named():
    assert set(DATA_NAMES) == set(LOADERS)


# -- compress and inspect ----------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["-o", "bits=4"], ["--option", "bits=2"]])
def test_compress_writes_what_python_gives(options, table, out, capsys):
    assert main(["compress", table, "--method", "rowwise", "--out", out, *options]) == 0
    bits = int(options[1][-1]) if options else 8
    wanted = compress(TABLE, "rowwise", bits=bits)
    found = load_layout(out)
    assert found.nbytes == wanted.nbytes
    ids = np.arange(40)
    np.testing.assert_array_equal(found.lookup(ids), wanted.lookup(ids))
    assert capsys.readouterr().out.startswith(f"{out}: {wanted!r}\n")


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_compress_reads_safetensors(kind, tmp_path, out):
    path = str(tmp_path / "model.safetensors")
    save_file({"emb.weight": TABLE.astype(kind), "bias": np.ones(3, kind)}, path)
    assert main(["compress", path, "--method", "full", "--out", out]) == 0
    np.testing.assert_array_equal(
        load_layout(out).lookup(np.arange(40)), TABLE.astype(kind).astype(np.float32)
    )


def test_compress_reads_bfloat16(tmp_path, out):
    from safetensors.torch import save_file as save_tensors

    path = str(tmp_path / "model.safetensors")
    weight = torch.from_numpy(TABLE).to(torch.bfloat16)
    save_tensors({"emb.weight": weight}, path)
    assert main(["compress", path, "--method", "full", "--out", out]) == 0
    np.testing.assert_array_equal(
        load_layout(out).lookup(np.arange(40)), weight.float().numpy()
    )


def test_one_of_several_tensors_is_named(tmp_path, out, capsys):
    path = str(tmp_path / "model.safetensors")
    save_file({"users": TABLE, "items": 2 * TABLE}, path)
    words = ["compress", path, "--method", "full", "--out", out]
    said = refused(capsys, *words)
    assert "--tensor" in said and "['items', 'users']" in said
    said = refused(capsys, *words, "--tensor", "cities")
    assert "['items', 'users']" in said
    assert main([*words, "--tensor", "items"]) == 0
    np.testing.assert_array_equal(load_layout(out).lookup([3]), 2 * TABLE[[3]])


def test_inspect_says_what_a_file_holds(table, out, capsys):
    main(["compress", table, "--method", "rowwise", "--out", out, "-o", "bits=4"])
    capsys.readouterr()
    assert main(["inspect", out]) == 0
    said = capsys.readouterr().out
    assert "40 x 8 float32" in said and "320 of 1,280 (4.00x)" in said
    for name, array in load_layout(out).arrays().items():
        assert f"{name}: {array.dtype} {tuple(array.shape)}" in said


def bad_tables(folder):
    """Files that hold no table, by what is wrong with them."""
    flat = np.arange(5.0)
    np.save(folder / "flat.npy", flat)
    np.save(folder / "nan.npy", np.full((3, 2), np.nan))
    np.save(folder / "text.npy", np.array([["a", "b"]]))
    np.save(folder / "objects.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    np.save(folder / "none.npy", np.ones((0, 4)))
    (folder / "empty.npy").write_bytes(b"")
    (folder / "garbage.npy").write_bytes(b"no array\n" * 9)
    content = (folder / "nan.npy").read_bytes()
    (folder / "short.npy").write_bytes(content[:-5])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "garbage.safetensors").write_bytes(b"no tensors\n" * 9)
    save_file({"bias": flat}, folder / "flat.safetensors")
    (folder / "table.csv").write_text("1,2\n3,4\n")
    (folder / "folder.npy").mkdir()


BAD = [
    "flat.npy", "nan.npy", "text.npy", "objects.npy", "none.npy", "empty.npy",
    "garbage.npy", "short.npy", "empty.safetensors", "garbage.safetensors",
    "flat.safetensors", "table.csv", "folder.npy", "missing.npy",
    "missing.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_table_is_one_line(name, tmp_path, out, capsys):
    bad_tables(tmp_path)
    refused(capsys, "compress", str(tmp_path / name), "--method", "full", "--out", out)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "magic"], "unknown method 'magic'"),
        (["--method", "hashing"], "does not compress after training"),
        (["--method", "rowwise", "-o", "bits=5"], "bits"),
        (["--method", "rowwise", "-o", "bits=four"], "bits"),
        (["--method", "rowwise", "-o", "bits"], "an option is NAME=VALUE, got 'bits'"),
        (["--method", "rowwise", "-o", "=4"], "an option is NAME=VALUE, got '=4'"),
        (["--method", "rowwise", "-o", "size=4"], "no option 'size'"),
    ],
)
def test_a_bad_request_is_one_line(words, said, table, out, capsys):
    assert said in refused(capsys, "compress", table, "--out", out, *words)


def test_a_place_that_cannot_be_written_is_one_line(table, tmp_path, capsys):
    place = str(tmp_path / "none" / "out.safetensors")
    refused(capsys, "compress", table, "--method", "full", "--out", place)


@pytest.mark.parametrize("content", [None, b"", b"no layout\n" * 9])
def test_inspecting_what_is_no_layout_is_one_line(content, tmp_path, capsys):
    path = tmp_path / "some.safetensors"
    if content is not None:
        path.write_bytes(content)
    assert "some.safetensors" in refused(capsys, "inspect", str(path))


def test_inspecting_somebody_else_s_tensors_is_one_line(tmp_path, capsys):
    save_file({"users": TABLE}, tmp_path / "model.safetensors")
    refused(capsys, "inspect", str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("words", [[], ["dance"], ["run"], ["compress", "a.npy"]])
def test_unknown_words_are_the_usage(words, capsys):
    with pytest.raises(SystemExit) as error:
        main(words)
    assert error.value.code == 2 and "usage: " in capsys.readouterr().err


# -- files of tensors ----------------------------------------------------------------


def compressed(path, out, *words):
    """The rows that a file's table gives."""
    words = ["compress", str(path), "--method", "full", "--out", out, *words]
    assert main(words) == 0
    return load_layout(out).lookup(np.arange(40))


def refused_table(capsys, path, out, *words):
    """What is said of a file that is not read."""
    said = refused(
        capsys, "compress", str(path), "--method", "full", "--out", out, *words
    )
    assert str(path) in said and not Path(out).exists()
    return said


@pytest.mark.parametrize("old", [False, True])
def test_compress_reads_what_torch_saved(old, tmp_path, out, capsys):
    weight, path = torch.from_numpy(TABLE), tmp_path / "model.pt"
    model = torch.nn.ModuleDict({"users": torch.nn.Embedding(40, 8)})
    model["users"].weight.data = weight
    state = {
        **model.state_dict(),
        "bias": torch.zeros(3),
        "steps": torch.zeros(2, 2).int(),
    }
    for held in (weight, torch.nn.Parameter(weight.bfloat16()), state):
        torch.save(held, path, _use_new_zipfile_serialization=not old)
        np.testing.assert_allclose(compressed(path, out), TABLE, rtol=1e-2)
    checkpoint = {"epoch": 3, "model": {**state, "items": 2 * weight.double()}}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not old)
    rows = compressed(path, out, "--tensor", "model.items")
    np.testing.assert_array_equal(rows, 2 * TABLE)
    Path(out).unlink()
    capsys.readouterr()
    said = refused_table(capsys, path, out)
    assert "--tensor, from ['model.items', 'model.users.weight']" in said
    assert "['model.items', " in refused_table(capsys, path, out, "--tensor", "items")
    assert "2-D" in refused(capsys, "compress", str(path), "--method", "full", "--out",
                            out, "--tensor", "model.bias")  # fmt: skip


class Trap:
    """Runs when it is unpickled by a reader that runs code."""

    def __reduce__(self):
        return Path.write_text, (Path("trap"), "sprung")


def test_no_code_in_a_file_is_run(tmp_path, out, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.zeros(40, 8), "more": Trap()}, "model.pt")
    torch.save(torch.nn.Embedding(4, 2), "module.pt")
    np.save("table.npy", np.array([[Trap()]], dtype=object), allow_pickle=True)
    np.savez("table.npz", a=np.array([[Trap()]], dtype=object))
    for name in ("model.pt", "module.pt", "table.npy", "table.npz"):
        refused_table(capsys, name, out)
    assert not Path("trap").exists()


def test_compress_reads_npz(tmp_path, out, capsys):
    path = tmp_path / "tables.npz"
    np.savez_compressed(path, users=TABLE, items=2 * TABLE, bias=np.zeros(3))
    np.testing.assert_array_equal(compressed(path, out, "--tensor", "items"), 2 * TABLE)
    Path(out).unlink()
    capsys.readouterr()
    assert "--tensor, from ['items', 'users']" in refused_table(capsys, path, out)
    refused_table(capsys, path, out, "--tensor", "cities")
    np.savez(path, only=TABLE, bias=np.zeros(3))
    np.testing.assert_array_equal(compressed(path, out), TABLE)


def test_tensor_names_nothing_in_a_file_of_one_array(table, out, capsys):
    assert "--tensor" in refused_table(capsys, table, out, "--tensor", "users")


@pytest.mark.parametrize(
    "name", ["a.npy", "a.npz", "a.safetensors", "a.pt", "a.pth", "a.txt", "a"]
)
def test_what_holds_no_table_is_one_line(name, tmp_path, out, capsys):
    path = tmp_path / name
    refused_table(capsys, path, out)
    noise = np.random.default_rng(0).bytes(5000)
    for content in (
        b"",
        b"PK\x03\x04",
        noise,
        b"\x80\x04" + noise,
        b"{}",
        b"\x93NUMPY",
    ):
        path.write_bytes(content)
        refused_table(capsys, path, out)
    path.unlink()
    path.mkdir()
    refused_table(capsys, path, out)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".pt"])
@pytest.mark.parametrize("wanted", [".npy", ".npz", ".safetensors", ".pt"])
def test_a_file_by_another_s_name_is_one_line(suffix, wanted, tmp_path, out, capsys):
    path = tmp_path / f"table{suffix}"
    {
        ".npy": lambda: np.save(path, TABLE),
        ".npz": lambda: np.savez(path, a=TABLE),
        ".safetensors": lambda: save_file({"a": TABLE}, path),
        ".pt": lambda: torch.save(torch.from_numpy(TABLE), path),
    }[suffix]()
    if suffix == wanted:
        np.testing.assert_array_equal(compressed(path, out), TABLE)
    else:
        refused_table(capsys, path.rename(tmp_path / f"other{wanted}"), out)


@pytest.mark.parametrize("key", ["rowwise", "pq", "full", "bccf"])
def test_our_own_output_is_no_input(key, table, tmp_path, out, capsys):
    layout = compress(TABLE, key)
    own, state = tmp_path / "own.safetensors", tmp_path / "state.pt"
    layout.save(own)
    torch.save({"model": {"ids": FrozenEmbedding(layout)}["ids"].state_dict()}, state)
    names = [name for name in layout.arrays()]
    for words in ([], *(["--tensor", name] for name in names)):
        assert "compressed already" in refused_table(capsys, own, out, *words)
        dotted = [word.replace(names[0], f"model.{names[0]}") for word in words]
        assert "compressed already" in refused_table(capsys, state, out, *dotted)


def test_a_mapped_file_is_not_copied_whole(tmp_path):
    np.save(tmp_path / "table.npy", TABLE)
    assert isinstance(open_table(tmp_path / "table.npy").read_whole().base, np.memmap)
    torch.save(torch.from_numpy(TABLE), tmp_path / "table.pt")
    assert open_table(tmp_path / "table.pt").read_whole().tolist() == TABLE.tolist()


# -- files that must stay ------------------------------------------------------------


@pytest.mark.parametrize("through", ["name", "link", "hard link", "detour"])
def test_no_output_over_an_input(through, table, tmp_path, capsys):
    place = Path(table)
    if through == "link":
        place = tmp_path / "link.npy"
        place.symlink_to(table)
    elif through == "hard link":
        place = tmp_path / "hard.npy"
        place.hardlink_to(table)
    elif through == "detour":
        (tmp_path / "folder").mkdir()
        place = tmp_path / "folder" / ".." / "table.npy"
    words = ["compress", table, "--method", "full", "--out", str(place)]
    assert "would be overwritten" in refused(capsys, *words)
    np.testing.assert_array_equal(np.load(table), TABLE)


def test_no_output_over_a_plug_in(table, tmp_path, capsys):
    plugin = tmp_path / "plugin.py"
    plugin.write_bytes((Path(__file__).parent / "plugin_method.py").read_bytes())
    text = plugin.read_text()
    words = ["--plugin", str(plugin), "--out", str(plugin)]
    refused(capsys, "compress", table, "--method", "full", *words)
    refused(capsys, "run", "full", *words)
    assert plugin.read_text() == text


def test_a_folder_is_no_output(table, tmp_path, capsys):
    for place in (tmp_path, tmp_path / "none" / "out.safetensors"):
        words = ["compress", table, "--method", "full", "--out", str(place)]
        assert "folder" in refused(capsys, *words)


# -- how a command ends --------------------------------------------------------------


def start(*words, **options):
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "survey_code", *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


def test_ctrl_c_is_one_line_and_status_130(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(catalog, "methods", interrupt)
    assert main(["methods"]) == 130
    assert capsys.readouterr().err == "survey-code: interrupted\n"


def test_a_reader_who_has_enough_is_no_error():
    read, write = os.pipe()
    os.close(read)
    process = start("methods", stdout=write)
    os.close(write)
    assert process.communicate(timeout=120)[1] == "" and process.returncode == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors"])
def test_a_table_is_read_from_a_file_not_from_a_pipe_or_a_device(
    suffix, tmp_path, capsys
):
    """Both would be waited for, or read, without end."""
    pipe, zeros = tmp_path / f"pipe{suffix}", tmp_path / f"zeros{suffix}"
    os.mkfifo(pipe)
    zeros.symlink_to("/dev/zero")
    out = str(tmp_path / "out.safetensors")
    for path, what in ((pipe, "a pipe"), (zeros, "a device")):
        said = refused(
            capsys, "compress", str(path), "--method", "rowwise", "--out", out
        )
        assert f"{what}, not a file" in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "wb") as full:
        process = start("methods", stdout=full)
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 2 and said.count("\n") == 1 and "space" in said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TypeError("odd"), "an error of its own, TypeError: odd"),
        (KeyError("odd"), "an error of its own, KeyError: 'odd'"),
        (MemoryError(), "not enough memory"),
        (ImportError("No module named 'tqdm'"), "a package is missing: No module"),
        (ValueError("two\nlines"), "two lines"),
        (OSError(), "OSError"),
    ],
)
def test_no_error_is_a_traceback(error, said, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr(catalog, "get_method", fail)
    assert said in refused(capsys, "methods", "full")


# -- convert -----------------------------------------------------------------------


@pytest.fixture
def first(tmp_path):
    """A file of the first format, as 0.1.0 wrote it."""
    shape = {"num_embeddings": 40, "embedding_dim": 8}
    head = ["dense", 1, shape, [["values", "<f4", [40, 8]]]]
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    digest.update(TABLE.tobytes())
    contents = {"layout": "dense", "version": 1, "shape": shape}
    contents["sha256"] = digest.hexdigest()
    path = tmp_path / "a first.safetensors"
    save_file({"values": TABLE}, path, {"survey_code": json.dumps(contents)})
    return str(path)


def test_convert_writes_what_can_be_loaded(first, out, capsys):
    assert first in refused(capsys, "inspect", first)
    assert main(["convert", first, out]) == 0
    layout = load_layout(out)
    assert capsys.readouterr().out == f"{out}: {layout!r}\n"
    np.testing.assert_array_equal(layout.lookup(np.arange(40)), TABLE)


def test_what_a_refusal_names_is_a_command(first, capsys):
    said = refused(capsys, "inspect", first)
    words = said.partition("`survey-code ")[2].partition("`")[0]
    main([*shlex.split(words)[:-1], first])
    np.testing.assert_array_equal(load_layout(first).lookup([3]), TABLE[[3]])


def test_convert_refuses_what_is_not_of_the_first_format(table, out, tmp_path, capsys):
    main(["compress", table, "--method", "full", "--out", out])
    capsys.readouterr()
    new = tmp_path / "new.safetensors"
    assert "nothing to convert" in refused(capsys, "convert", out, str(new))
    assert "not a readable" in refused(capsys, "convert", table, str(new))
    assert "No such file" in refused(capsys, "convert", str(new), str(new))
    assert not new.exists()


def test_convert_into_a_missing_folder_is_one_line(first, tmp_path, capsys):
    place = str(tmp_path / "none" / "new.safetensors")
    assert "no such folder" in refused(capsys, "convert", first, place)


# -- run ------------------------------------------------------------------------------


def run_words(out, *words):
    return ["run", "uniform", "--ratio", "4", "--set", "batch_size=20000", "--out",
            str(out), *words]  # fmt: skip


def test_run_appends_a_line_a_seed_and_skips_what_is_there(tmp_path, capsys):
    out = tmp_path / "results.jsonl"
    assert main(run_words(out)) == 0
    (first,) = load_results(out)
    assert (first.key, first.seed, first.options) == (
        "uniform", 1, {"columns": 4, "matryoshka": False}
    )  # fmt: skip
    assert first.settings["batch_size"] == 20000
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("uniform dcnv2 seed 1: auc 0.") and "4.00x" in said[0]
    assert "1 seed(s)" in said[1]
    assert main(run_words(out, "--seeds", "2")) == 0
    results = load_results(out)
    assert [result.seed for result in results] == [1, 2] and results[0] == first
    *_, last = capsys.readouterr().out.splitlines()
    mean = np.mean([result.test["auc"] for result in results])
    assert f"mean {mean:.5f}" in last and "2 seed(s)" in last


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["magic"], "unknown method 'magic'"),
        (["full", "--ratio", "0.5"], "ratio must be a number from 1 up, got 0.5"),
        (["full", "--ratio", "4"], "highest ratio it can reach is 1"),
        (["uniform", "--ratio", "99"], "highest ratio it can reach is 16"),
        (["full", "--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["full", "--model", "bert"], "got 'bert'"),
        (["full", "--dim", "0"], "got 0"),
        (["full", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["full", "--set", "epochs=0"], "epochs must be an integer from 1 up, got 0"),
        (["full", "--set", "epochs=few"], "epochs must be an integer"),
        (["full", "--set", "evaluate_every=0"], "evaluate_every must be an integer"),
        (["full", "--set", "epoch=3"], "unknown training setting"),
        (["full", "-o", "bits=4"], "full has no option 'bits'"),
    ],
)
def test_a_bad_run_is_one_line_and_writes_nothing(words, said, tmp_path, capsys):
    out = tmp_path / "results.jsonl"
    assert said in refused(capsys, "run", *words, "--out", str(out))
    assert not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_one_line(tmp_path, capsys):
    words = ["run", "full", "--device", "cuda", "--out", str(tmp_path / "out.jsonl")]
    assert "device 'cuda' cannot be used" in refused(capsys, *words)


def test_a_results_file_that_is_none_is_one_line(tmp_path, capsys):
    out = tmp_path / "results.jsonl"
    out.write_text("some notes\n")
    assert "not a result: 'some notes'" in refused(capsys, *run_words(out))
    assert out.read_text() == "some notes\n"


def test_without_data_and_network_run_is_one_line(tmp_path, monkeypatch, capsys):
    # Another test may have loaded the set already.
    monkeypatch.setattr(data, "load_once", data.load_once.__wrapped__)
    monkeypatch.setenv("SURVEY_CODE_DATA", str(tmp_path))
    said = refused(capsys, "run", "full", "--data", "frappe", "--model", "dlrm",
                   "--out", str(tmp_path / "out.jsonl"))  # fmt: skip
    assert "SURVEY_CODE_DATA is set, but" in said


def test_without_a_file_run_writes_nowhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["run", "uniform", "--ratio", "4", "--set", "batch_size=20000"]
    assert main(words) == 0
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out.splitlines()[-1].endswith("1 seed(s)")


# -- options in words ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "value"),
    [("false", False), ("False", False), ("no", False), ("true", True), ("yes", True)],
)
def test_a_switch_in_words_is_a_truth_value(word, value, table, out):
    words = ["compress", table, "--method", "rowwise", "--out", out]
    assert main([*words, "-o", f"symmetric={word}"]) == 0
    wanted = compress(TABLE, "rowwise", symmetric=value)
    np.testing.assert_array_equal(load_layout(out).lookup([3]), wanted.lookup([3]))


@pytest.mark.parametrize(
    ("method", "option", "said"),
    [
        ("rowwise", "symmetric=off", "symmetric must be True or False, got 'off'"),
        ("rowwise", "symmetric=0", "symmetric must be True or False, got '0'"),
        ("rowwise", "bits=4.0", "bits must be one of (8, 4, 3, 2, 1), got '4.0'"),
        ("rowwise", "per=column", "per must be one of ('row', 'table'), got 'column'"),
        ("rowwise", "weight=3", "rowwise has no option 'weight'; its options: bits,"),
        ("rowwise", "method=3", "rowwise has no option 'method'"),
        ("pq", "books=True", "books must be an integer from 1"),
        ("pq", "rotate=1", "rotate must be True or False, got '1'"),
        ("clustering", "half=off", "half must be True or False, got 'off'"),
        ("tt_rec", "init=nonsense", "init must be one of"),
    ],
)
def test_a_wrong_option_says_what_is_allowed(method, option, said, table, out, capsys):
    words = ("compress", table, "--method", method, "--out", out, "-o", option)
    assert said in refused(capsys, *words)


def test_methods_shows_a_methods_options(capsys):
    assert main(["methods", "rowwise"]) == 0
    printed = capsys.readouterr().out
    head, names, *lines = printed.splitlines()
    assert head.startswith("Row-wise quantisation (guan2019)")
    assert names.split() == ["option", "type", "default", "allowed", "what"]
    names = ["bits", "symmetric", "per", "keep_norms"]
    assert [line.split()[0] for line in lines] == names
    assert "by the budget" in lines[0] and "(8, 4, 3, 2, 1)" in lines[0]


def test_words_are_split_at_the_first_sign():
    assert split_words(["bits=4", "a=b=c", "empty="]) == {
        "bits": "4",
        "a": "b=c",
        "empty": "",
    }
