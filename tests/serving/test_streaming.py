"""Tables compressed file to file: the same bytes as in memory, in little memory."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from survey_code import compress, compress_file, load_layout
from survey_code.cli import main
from survey_code.embedding import decode_layout
from survey_code.serving import pieces, streaming, tables

RNG = np.random.default_rng(0)
# Several stretches of each method, the last one shorter, and rows that repeat.
TABLE = RNG.normal(size=(2500, 24)).astype(np.float32)
TABLE[50:60] = TABLE[7]
TABLE[900] = 0
COUNTS = RNG.geometric(0.01, size=len(TABLE))

# Of each method options with which it works in pieces.
IN_PIECES = [
    ("full", {}),
    ("half", {}),
    ("half", {"dtype": "bfloat16"}),
    ("half", {"rounding": "stochastic"}),
    ("half", {"dtype": "bfloat16", "rounding": "stochastic"}),
    ("half", {"dtype": "float8_e4m3"}),
    ("half", {"dtype": "float8_e5m2", "rounding": "stochastic"}),
    ("half", {"dtype": "mx4"}),
    ("half", {"dtype": "mx4", "rounding": "stochastic"}),
    ("rowwise", {"bits": 8}),
    ("rowwise", {"bits": 4}),
    ("rowwise", {"bits": 2, "symmetric": True}),
    ("rowwise", {"bits": 4, "per": "table"}),
    ("rowwise", {"bits": 3, "keep_norms": True}),
    ("rowwise", {"bits": 1, "symmetric": True, "per": "table"}),
    ("greedy", {"bits": 3, "keep_norms": True}),
    ("rowwise", {"bits": 8, "per": "table", "symmetric": True}),
    ("greedy", {}),
    ("greedy", {"bits": 2, "rule": "pytorch"}),
    ("bccf", {"rule": "sign"}),
    ("bccf", {"rule": "sign", "half": True}),
    ("bccf", {"rule": "sign", "scale": "row"}),
    ("bccf", {"rule": "sign", "scale": "row", "half": True}),
    ("bccf", {"rule": "sign", "scale": "none"}),
    ("magnitude", {}),
    ("magnitude", {"keep": 7}),
    ("magnitude", {"keep": 0}),
    ("magnitude", {"keep": 60_000}),
    ("magnitude", {"format": "float16", "keep": 59_990}),
    ("magnitude", {"by_reads": True, "counts": COUNTS}),
    ("pq", {}),
    ("pq", {"bits": 3, "books": 3}),
    ("pq", {"bits": 5, "books": 2, "sample": 8, "half": True}),
    ("pq", {"bits": 4, "sample": 8, "counts": COUNTS}),
    ("pq", {"bits": 4, "sample": 8, "rotate": True}),
    ("clustering", {}),
    ("clustering", {"clusters": 30, "sample": 8, "half": True}),
    ("clustering", {"clusters": 30, "sample": 8, "counts": COUNTS}),
]
# And those that need the table as a whole.
WHOLE = [
    ("bccf", {}),
    ("bccf", {"rule": "pph"}),
    ("pq", {"bits": 3, "sample": 0}),
    ("clustering", {"heads": 5, "counts": COUNTS}),
    ("clustering", {"field_starts": [0, 1000, 2500]}),
    ("low_rank", {}),
    ("rotated", {}),
]


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    """Stretches of a few hundred rows, and a file opened anew again and again."""
    monkeypatch.setattr(pieces, "PIECE_NUMBERS", 24 * 320)
    monkeypatch.setattr(tables, "MAPPED_BYTES", 24 * 4 * 700)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "table.npy"
    np.save(path, TABLE)
    return path


def named(cases):
    return [
        pytest.param(key, given, id=" ".join([key, *map(str, given.values())])[:40])
        for key, given in cases
    ]


@pytest.mark.parametrize(("key", "options"), named(IN_PIECES))
def test_the_file_is_what_compress_and_save_write(key, options, stored, tmp_path):
    report = compress_file(stored, key, tmp_path / "pieces", **options)
    compress(TABLE, key, **options).save(tmp_path / "whole")
    assert report.in_pieces
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()
    load_layout(tmp_path / "pieces")  # the checksum is right
    assert sorted(os.listdir(tmp_path)) == ["pieces", "whole"]


@pytest.mark.parametrize(("key", "options"), named(WHOLE))
def test_other_methods_take_the_whole_table(key, options, stored, tmp_path):
    report = compress_file(stored, key, tmp_path / "pieces", **options)
    compress(TABLE, key, **options).save(tmp_path / "whole")
    assert not report.in_pieces
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()


def test_parts_as_large_as_in_use(monkeypatch, tmp_path):
    """Several of the methods' own parts, which numbers drawn by chance depend on."""
    monkeypatch.setattr(pieces, "PIECE_NUMBERS", 2**20)
    table = RNG.normal(size=(40_000, 64)).astype(np.float32)
    np.save(tmp_path / "table.npy", table)
    for key, options in [
        ("rowwise", {"bits": 4}),
        ("half", {"rounding": "stochastic"}),
        ("half", {"dtype": "mx4"}),
        ("bccf", {"rule": "sign"}),
        ("magnitude", {}),
        ("clustering", {"clusters": 20}),
    ]:
        compress_file(tmp_path / "table.npy", key, tmp_path / "pieces", **options)
        compress(table, key, **options).save(tmp_path / "whole")
        assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()


def test_few_clusters_in_use_take_the_fewest_bits(tmp_path):
    """K-means finds 30 centroids in a sample of equal rows; others use few codes."""
    table = np.repeat(TABLE[:3], 500, axis=0)
    np.save(tmp_path / "table.npy", table)
    options = {"clusters": 30, "sample": 8}
    compress_file(tmp_path / "table.npy", "clustering", tmp_path / "a", **options)
    compress(table, "clustering", **options).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("rows", [1, 31, 32, 33])
@pytest.mark.parametrize("key", ["rowwise", "half", "magnitude", "pq", "clustering"])
def test_tables_of_a_few_rows(key, rows, tmp_path):
    np.save(tmp_path / "table.npy", TABLE[:rows, :3])
    report = compress_file(tmp_path / "table.npy", key, tmp_path / "a")
    compress(TABLE[:rows, :3], key).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert len(report.errors) == rows


# -- files that tables come from ------------------------------------------------------


def write_tables(folder):
    """The same table in every kind of file, by name; and which tensor it is."""
    weight = torch.from_numpy(TABLE)
    half = TABLE.astype(np.float16)
    np.save(folder / "plain.npy", TABLE)
    np.save(folder / "wide.npy", TABLE.astype(np.float64))
    np.save(folder / "columns.npy", np.asfortranarray(TABLE))
    np.savez(folder / "several.npz", users=TABLE, bias=np.zeros(3))
    save_file({"users": TABLE, "items": half}, folder / "a.safetensors")
    torch.save(weight, folder / "alone.pt")
    torch.save({"model": {"users": weight, "step": 3}}, folder / "state.pth")
    torch.save({"t": weight.T.contiguous().T}, folder / "turned.pt")
    torch.save(weight, folder / "old.pt", _use_new_zipfile_serialization=False)
    return {
        "plain.npy": None, "wide.npy": None, "columns.npy": None, "alone.pt": None,
        "several.npz": "users", "a.safetensors": "users", "state.pth": "model.users",
        "turned.pt": None, "old.pt": None,
    }  # fmt: skip


def test_every_kind_of_file_gives_the_same(tmp_path):
    compress(TABLE, "rowwise", bits=4).save(tmp_path / "wanted")
    for name, tensor in write_tables(tmp_path).items():
        report = compress_file(
            tmp_path / name, "rowwise", tmp_path / "out", tensor=tensor, bits=4
        )
        assert report.in_pieces
        found = (tmp_path / "out").read_bytes()
        assert found == (tmp_path / "wanted").read_bytes(), name


def test_numbers_of_16_bits_are_widened(tmp_path):
    short = torch.from_numpy(TABLE).bfloat16()
    save_torch_file({"a": short}, tmp_path / "a.safetensors")
    torch.save(short, tmp_path / "a.pt")
    np.save(tmp_path / "a.npy", TABLE.astype(np.float16))
    for name, wanted in [
        ("a.safetensors", short.float().numpy()),
        ("a.pt", short.float().numpy()),
        ("a.npy", TABLE.astype(np.float16).astype(np.float32)),
    ]:
        compress_file(tmp_path / name, "full", tmp_path / "out")
        rows = load_layout(tmp_path / "out").lookup(np.arange(len(TABLE)))
        np.testing.assert_array_equal(rows, wanted)


def test_a_number_that_is_none_is_found_late_and_leaves_nothing(tmp_path):
    table = TABLE.copy()
    table[2345, 3] = np.nan
    np.save(tmp_path / "table.npy", table)
    (tmp_path / "out").write_bytes(b"before")
    for key in ("full", "magnitude", "pq", "low_rank"):
        with pytest.raises(ValueError, match="row 2345 holds NaN or infinity"):
            compress_file(tmp_path / "table.npy", key, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"before"
    assert sorted(os.listdir(tmp_path)) == ["out", "table.npy"]


def test_numbers_beyond_a_format_are_refused_as_in_memory(tmp_path):
    table = TABLE.copy()
    table[2345, 3] = 1e6
    np.save(tmp_path / "table.npy", table)
    for key, options in [("half", {}), ("magnitude", {"format": "float16"})]:
        with pytest.raises(ValueError) as found:
            compress_file(tmp_path / "table.npy", key, tmp_path / "out", **options)
        with pytest.raises(ValueError) as wanted:
            compress(table, key, **options)
        assert str(found.value) == str(wanted.value)
    assert os.listdir(tmp_path) == ["table.npy"]


def test_what_is_asked_wrongly_is_told_before_anything_is_read(stored, tmp_path):
    for table, key, out, given, said in [
        (stored, "hashing", "out", {}, "does not compress after training"),
        (stored, "rowwise", "out", {"bites": 4}, "bites"),
        (stored, "rowwise", "no/out", {}, "no such folder"),
        (stored, "rowwise", stored, {}, "would be overwritten"),
        (stored, "rowwise", "out", {"counts": [1, 2]}, "2500 numbers"),
        (stored, "rowwise", "out", {"tensor": "users"}, "holds one array"),
        (__file__, "rowwise", "out", {}, "ends in one of"),
    ]:
        with pytest.raises(ValueError, match=said):
            compress_file(table, key, tmp_path / out, **given)
    assert os.listdir(tmp_path) == []


def test_our_own_output_is_refused_by_name(stored, tmp_path):
    compress_file(stored, "rowwise", tmp_path / "own.safetensors")
    with pytest.raises(ValueError, match=r"own\.safetensors: holds a layout of this"):
        compress_file(tmp_path / "own.safetensors", "rowwise", tmp_path / "out")


# -- the report ---------------------------------------------------------------------


def test_the_report_measures_what_was_written(stored, tmp_path):
    report = compress_file(stored, "rowwise", tmp_path / "out", bits=2)
    layout = load_layout(tmp_path / "out")
    assert report.nbytes == layout.nbytes and report.layout == repr(layout)
    assert report.ratio == TABLE.nbytes / layout.nbytes
    rows = decode_layout(layout).astype(np.float64)
    lengths = np.linalg.norm(TABLE.astype(np.float64), axis=1)
    errors = np.linalg.norm(rows - TABLE, axis=1) / np.where(lengths, lengths, 1)
    # A thousand rows are drawn of all; the row of zeros has no error.
    assert 999 <= len(report.errors) <= 1000
    assert np.isin(report.errors.round(6), errors.round(6)).all()
    for share, found in report.error_quantiles().items():
        if share < 1:
            assert found == pytest.approx(np.quantile(errors, share), rel=0.05)


def test_rows_of_zeros_have_no_error(tmp_path):
    np.save(tmp_path / "zeros.npy", np.zeros((50, 8), np.float32))
    report = compress_file(tmp_path / "zeros.npy", "rowwise", tmp_path / "out")
    assert len(report.errors) == 0 and report.error_quantiles()[0.5] == 0
    assert str(report)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_command_says_and_draws_it(suffix, stored, tmp_path, capsys):
    out, picture = str(tmp_path / "out"), str(tmp_path / f"errors.{suffix}")
    words = ["compress", str(stored), "--method", "rowwise", "-o", "bits=4"]
    assert main([*words, "--out", out, "--picture", picture]) == 0
    said = capsys.readouterr()
    assert said.err == ""  # no bar where there is no terminal
    lines = said.out.splitlines()
    assert lines[0] == f"{out}: {load_layout(out)!r}"
    assert [line.split()[0] for line in lines[1:]] == ["bytes", "errors", "seconds"]
    assert "(50%)" in lines[2] and "in pieces" in lines[3]
    head = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<?xml"}[suffix]
    assert Path(picture).read_bytes().startswith(head)


def test_a_picture_of_no_known_kind_is_refused_before_the_work(
    stored, tmp_path, capsys
):
    out = tmp_path / "out"
    words = ["compress", str(stored), "--method", "rowwise", "--out", str(out)]
    for picture, said in [("a.pdf", ".png, .svg"), ("no/a.png", "no such folder")]:
        assert main([*words, "--picture", str(tmp_path / picture)]) == 2
        assert said in capsys.readouterr().err and not out.exists()


def test_a_bar_is_shown_where_it_is_asked_for(stored, tmp_path, capsys):
    compress_file(stored, "magnitude", tmp_path / "out", progress=True)
    assert "rows/s" in capsys.readouterr().err
    compress_file(stored, "magnitude", tmp_path / "out", progress=False)
    assert capsys.readouterr().err == ""


# -- memory, and processes that are killed -------------------------------------------


def python(script, *words):
    """A process that runs a script."""
    words = [sys.executable, "-c", script, *map(str, words)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


KILLED = """
import sys, time
from survey_code.serving import streaming
def wait(*given):
    print("written", flush=True)
    time.sleep(60)
streaming.hash_file = wait
streaming.compress_file(sys.argv[1], "rowwise", sys.argv[2])
"""


def test_a_killed_run_leaves_nothing_at_the_next_start(stored, tmp_path):
    out = tmp_path / "out"
    process = python(KILLED, stored, out)
    assert process.stdout.readline() == "written\n"
    (part,) = tmp_path.glob(".survey_code-*.part")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert part.exists() and not out.exists()
    compress_file(stored, "rowwise", out)
    assert os.listdir(tmp_path) == ["out"]
    load_layout(out)


# Growth of the peak of memory, in MB, over what a small table takes: of a method, the
# packages that it imports are counted out.
MEASURED = """
import json, resource, sys
from survey_code import compress_file
folder, table, *cases = sys.argv[1:]
for case in cases:
    key, options = json.loads(case)
    compress_file(f"{folder}/small.npy", key, f"{folder}/out", **options)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for case in cases:
    key, options = json.loads(case)
    report = compress_file(table, key, f"{folder}/out", **options)
    assert report.in_pieces
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(key, (now - before) / 1024, flush=True)
"""


def make_sparse(path, rows, dim, last=None):
    """A .npy file that takes no room on the disk: zeros, and a last row."""
    with open(path, "wb") as file:
        head = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
        np.lib.format.write_array_header_1_0(file, head)
        start = file.tell()
        file.truncate(start + 4 * rows * dim)
        if last is not None:
            file.seek(start + 4 * (rows - 1) * dim)
            file.write(np.asarray(last, dtype="<f4").tobytes())


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_memory_does_not_grow_with_the_table(tmp_path):
    """256 MB, of which no more than half may be in memory at any time."""
    import json

    np.save(tmp_path / "small.npy", TABLE[:500])
    make_sparse(tmp_path / "large.npy", 2**20, 64, np.arange(64))
    cases = [("rowwise", {"bits": 4}), ("full", {})]
    process = python(
        MEASURED, tmp_path, tmp_path / "large.npy", *map(json.dumps, cases)
    )
    said = process.communicate()[0].splitlines()
    assert process.returncode == 0 and len(said) == len(cases)
    for line in said:
        assert float(line.split()[1]) < 128, line


def test_places_beyond_two_to_the_31_are_read(tmp_path):
    last = np.arange(64, dtype=np.float32)
    make_sparse(tmp_path / "large.npy", 34_000_000, 64, last)
    table = tables.open_table(tmp_path / "large.npy")
    np.testing.assert_array_equal(table[33_999_998:34_000_000], [0 * last, last])
    np.testing.assert_array_equal(
        table.pick(np.array([5, 33_999_999])), [0 * last, last]
    )


@pytest.mark.hypothesis  # so that `make fuzz` runs it
def test_the_last_row_of_a_sparse_file(request, tmp_path, monkeypatch):
    """4 bits of a file that takes no room; under ``make fuzz``, which takes its time,
    of one whose last numbers have places that 32 bits cannot hold.
    """
    monkeypatch.undo()  # pieces as large as in use
    fuzz = request.config.getoption("hypothesis_profile", None) == "fuzz"
    rows, dim = (34_000_000 if fuzz else 200_000), 64
    last = np.linspace(-1, 1, dim, dtype=np.float32)
    make_sparse(tmp_path / "large.npy", rows, dim, last)
    report = compress_file(tmp_path / "large.npy", "rowwise", tmp_path / "out", bits=4)
    assert report.nbytes == rows * (dim // 2 + 4)
    layout = load_layout(tmp_path / "out", mmap=True)
    wanted = compress(last[None], "rowwise", bits=4).lookup([0])
    found = layout.lookup([rows - 1, 0])
    np.testing.assert_array_equal(found, np.concatenate([wanted, 0 * wanted]))


def test_writer_seeks_are_right_for_any_order(tmp_path):
    """Parts of arrays written backwards give what `save` writes."""
    layout = compress(TABLE, "bccf", rule="sign", scale="row")
    arrays = layout.arrays()
    places = streaming.place_arrays(arrays)
    with open(tmp_path / "file", "w+b") as file:
        writer = streaming.Writer(file, 16, {one.name: one for one in places})
        for start in range(2000, -1, -500):
            for name, array in arrays.items():
                writer.write(pieces.Piece(name, start, array[start : start + 500]))
        file.seek(0)
        held = file.read()[16:]
    wanted = b"".join(arrays[one.name].tobytes() for one in places)
    assert held == wanted
