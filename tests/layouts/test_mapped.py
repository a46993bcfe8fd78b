"""Files that are mapped: read when rows are looked up, the same rows as from memory."""

import json
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

from survey_code import FrozenEmbedding, compress, load_layout
from survey_code.embedding import decode_layout
from survey_code.layouts import (
    DenseLayout,
    RoutedLayout,
    RowwiseLayout,
    files,
    header_bytes,
)
from survey_code.layouts.files import make_header, place_arrays

TABLE = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)


def test_a_mapped_layout_is_the_same_layout(layout, tmp_path):
    layout.save(tmp_path / "table")
    mapped = load_layout(tmp_path / "table", mmap=True)
    assert type(mapped) is type(layout) and repr(mapped) == repr(layout)
    assert mapped.blueprint() == layout.blueprint()
    for name, array in layout.arrays().items():
        found = mapped.arrays()[name]
        assert type(found) is np.ndarray and found.dtype == array.dtype
        assert not found.flags.writeable and found.flags.aligned
        np.testing.assert_array_equal(found, array)
    assert mapped.open_ids == layout.open_ids
    rows = decode_layout(mapped)
    assert type(rows) is np.ndarray
    np.testing.assert_array_equal(rows, decode_layout(layout))
    np.testing.assert_array_equal(
        mapped.bag([1, 2, 3], [0, 1]), layout.bag([1, 2, 3], [0, 1])
    )
    with pytest.raises(IndexError):
        mapped.lookup([-1])
    mapped.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "table").read_bytes()


def test_what_is_checked_whole_may_be_nested(layout, tmp_path):
    """A mapped part is measured when a layout is made of it."""
    layout.save(tmp_path / "table")
    for how in ({"check": True}, {}):
        part = load_layout(tmp_path / "table", mmap=True, **how)
        assert (part.largest is not None) == bool(how)
        if not part.open_ids:
            other = DenseLayout(np.ones((2, part.embedding_dim), np.float32))
            rows = part.num_embeddings + 2
            outer = RoutedLayout.from_ids([other, part], [np.array([0, 1])], rows)
            assert outer.largest >= layout.largest


def test_compiled_code_reads_mapped_arrays(layout, tmp_path):
    layout.save(tmp_path / "table")
    mapped = load_layout(tmp_path / "table", mmap=True)
    assert mapped.prepare() == layout.prepare()
    ids = np.arange(layout.num_embeddings)
    np.testing.assert_array_equal(mapped.lookup(ids), layout.lookup(ids))


def test_a_module_takes_a_mapped_layout(tmp_path):
    DenseLayout(TABLE).save(tmp_path / "table")
    module = FrozenEmbedding(load_layout(tmp_path / "table", mmap=True))
    np.testing.assert_array_equal(module([3, 4]).numpy(), TABLE[[3, 4]])


def flip(path, place):
    """Change one byte of a file behind its header."""
    with open(path, "r+b") as file:
        file.seek(header_bytes(path) + place)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))


def test_a_mapped_file_is_trusted_unless_it_is_to_be_checked(tmp_path):
    path = tmp_path / "table"
    DenseLayout(TABLE).save(path)
    flip(path, 4 * 8 * 7)
    changed = load_layout(path, mmap=True).lookup([6, 7])
    np.testing.assert_array_equal(changed[0], TABLE[6])
    assert changed[1, 0] != TABLE[7, 0]
    for how in ({}, {"mmap": True, "check": True}):
        with pytest.raises(ValueError, match="damaged, its SHA-256"):
            load_layout(path, **how)
    assert load_layout(path, check=False).lookup([6]).tolist() == [TABLE[6].tolist()]


def test_what_is_trusted_can_be_validated_later(tmp_path):
    values = TABLE.copy()
    DenseLayout(values).save(tmp_path / "table")
    place = np.flatnonzero(values.view(np.uint8).reshape(-1)).size // 2
    with open(tmp_path / "table", "r+b") as file:
        file.seek(header_bytes(tmp_path / "table") + place // 4 * 4)
        file.write(np.float32(np.nan).tobytes())
    mapped = load_layout(tmp_path / "table", mmap=True)
    with pytest.raises(ValueError, match="must be finite"):
        mapped.validate()


def test_a_file_cut_short_is_refused_all_the_same(layout, tmp_path):
    path = tmp_path / "table"
    layout.save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_layout(path, mmap=True)


@pytest.mark.parametrize("key", ["full", "rowwise", "bccf", "magnitude"])
def test_arrays_of_another_size_are_refused_all_the_same(key, tmp_path):
    layout = compress(TABLE, key)
    for name, array in layout.arrays().items():
        if len(array) > 16:  # one for each row, or so
            wrong = {**layout.arrays(), name: array[:-1].copy()}
            files.write_file(tmp_path / "table", layout.blueprint(), wrong)
            with pytest.raises(ValueError, match="must"):
                load_layout(tmp_path / "table", mmap=True)


def test_a_file_may_be_replaced_while_it_is_mapped(tmp_path):
    path = tmp_path / "table"
    DenseLayout(TABLE).save(path)
    mapped = load_layout(path, mmap=True)
    DenseLayout(-TABLE).save(path)
    np.testing.assert_array_equal(mapped.lookup([5]), TABLE[[5]])
    np.testing.assert_array_equal(load_layout(path, mmap=True).lookup([5]), -TABLE[[5]])


def write_sparse(path, rows, dim, last=b""):
    """A file of row-wise codes of 4 bits that takes no room on the disk: zeros, and
    the last bytes.
    """
    shape = (rows, dim // 2 + 4)
    few = RowwiseLayout(np.zeros((1, shape[1]), np.uint8), dim, 4)
    blueprint = few.blueprint()
    blueprint["shape"]["num_embeddings"] = rows
    ghost = np.broadcast_to(np.uint8(0), shape)
    header = make_header(place_arrays({"rows": ghost}), blueprint, "0" * 64)
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + ghost.nbytes)
        file.seek(len(header) + ghost.nbytes - len(last))
        file.write(last)


# Seconds until the first rows are there, and bytes in memory that this took.
FIRST = """
import json, resource, sys, time
import numpy as np, survey_code.layouts
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begun = time.perf_counter()
layout = survey_code.layouts.load_layout(sys.argv[1], mmap=True)
rows = layout.lookup([0, layout.num_embeddings - 1])
seconds = time.perf_counter() - begun
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([seconds, (after - before) / 1024, rows.tolist(), layout.nbytes]))
"""


def test_the_first_rows_of_ten_gigabytes_are_there_at_once(tmp_path):
    last = compress(np.arange(64)[None], "rowwise", bits=4)
    write_sparse(tmp_path / "table", 280_000_000, 64, last.rows.tobytes())
    done = subprocess.run(
        [sys.executable, "-c", FIRST, str(tmp_path / "table")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds, megabytes, rows, nbytes = json.loads(done.stdout)
    assert nbytes > 10e9
    assert rows == [[0.0] * 64, last.lookup(0).tolist()]
    assert seconds < 1 and megabytes < 100


@pytest.mark.parametrize("wanted", ["dense", "rowwise"])
def test_loading_and_inspecting_take_one_file_at_most(wanted, tmp_path, capsys):
    from survey_code.cli import main

    layout = DenseLayout(np.ones((300_000, 32), np.float32))
    if wanted == "rowwise":
        layout = RowwiseLayout(np.zeros((2_000_000, 20), np.uint8), 32, 4)
    path = str(tmp_path / "table")
    layout.save(path)
    load_layout(path)  # imports what it needs
    main(["inspect", path])
    peaks = []
    for action in (lambda: load_layout(path), lambda: main(["inspect", path])):
        tracemalloc.start()
        action()
        peaks.append(tracemalloc.get_traced_memory()[1] / layout.nbytes)
        tracemalloc.stop()
    assert peaks[0] < 1.15 and peaks[1] < 0.15


SHARED = """
import sys
from survey_code.layouts import load_layout
layout = load_layout(sys.argv[1], mmap=True)
for start in range(0, 10**5, 1000):
    layout.lookup(range(start, start + 1000))
name = sys.argv[1]
held, kind = {}, False
for line in open("/proc/self/smaps"):
    if "-" in line.split()[0]:
        kind = line.rstrip().endswith(name)
    elif kind:
        key, _, value = line.partition(":")
        held[key] = int(value.split()[0]) if value.split()[-1] == "kB" else 0
print(held["Rss"], held.get("Private_Dirty", 0), flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux who has which pages")
def test_processes_share_the_pages(tmp_path):
    path = tmp_path / "table"
    DenseLayout(np.ones((100_000, 32), np.float32)).save(path)
    words = [sys.executable, "-c", SHARED, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(words, **pipes) for _ in range(2)]
    held = [list(map(int, p.stdout.readline().split())) for p in processes]
    for process in processes:
        process.communicate()
    for resident, dirty in held:  # in kB: all of the file, and no page of one's own
        assert resident > 12_000 and dirty == 0


def test_time_of_a_mapped_first_look_up_does_not_grow(tmp_path):
    """A file a thousand times as large is there as fast, up to ten times."""
    seconds = []
    for rows in (10**5, 10**8):
        write_sparse(tmp_path / "table", rows, 64)
        best = 1.0
        for _ in range(3):
            begun = time.perf_counter()
            load_layout(tmp_path / "table", mmap=True).lookup([rows - 1])
            best = min(best, time.perf_counter() - begun)
        seconds.append(best)
    assert seconds[1] < 10 * seconds[0] + 0.05
