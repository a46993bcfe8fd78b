"""Files: the same bytes for the same table, whole or not at all, checked on load."""

import errno
import json
import os
import re
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from safetensors.numpy import save, save_file
from safetensors.torch import save_file as save_torch_file

from survey_code import load_layout
from survey_code.embedding import decode_layout
from survey_code.layouts import (
    LAYOUTS,
    DenseLayout,
    TurnedLayout,
    files,
    header_bytes,
    rebuild,
)

# -- there and back ----------------------------------------------------------


def test_file_is_its_header_and_nbytes(layout, tmp_path):
    path = tmp_path / "table.safetensors"
    layout.save(path)
    (header,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert header_bytes(path) == 8 + header
    assert path.stat().st_size == 8 + header + layout.nbytes


def test_loading_gives_the_same_arrays_and_rows(layout, tmp_path):
    layout.save(tmp_path / "table")
    twin = load_layout(str(tmp_path / "table"))
    assert type(twin) is type(layout) and repr(twin) == repr(layout)
    assert twin.shape_integers() == layout.shape_integers()
    assert twin.arrays().keys() == layout.arrays().keys()
    for name, array in layout.arrays().items():
        assert twin.arrays()[name].dtype == array.dtype
        np.testing.assert_array_equal(twin.arrays()[name], array)
    np.testing.assert_array_equal(decode_layout(twin), decode_layout(layout))
    np.testing.assert_array_equal(
        twin.bag([1, 2, 3], [0, 1]), layout.bag([1, 2, 3], [0, 1])
    )


def test_equal_tables_give_equal_files(layout, tmp_path):
    layout.save(tmp_path / "one")
    load_layout(tmp_path / "one").save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_memory_order_does_not_change_the_file(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    for name, array in [("c", values), ("f", np.asfortranarray(values))]:
        DenseLayout(array).save(tmp_path / name)
    assert (tmp_path / "c").read_bytes() == (tmp_path / "f").read_bytes()


def test_anyone_can_open_the_file(layout, tmp_path):
    layout.save(tmp_path / "table")
    with safetensors.safe_open(tmp_path / "table", "numpy") as file:
        assert list(file.metadata()) == ["survey_code"]
        assert set(file.keys()) == set(layout.arrays())


# -- whole or not at all -----------------------------------------------------


class FailingFile:
    """A file whose disk is full after half of what is written."""

    def __init__(self, handle, mode):
        self.file = open(handle, mode)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, payload):
        self.file.write(payload[: len(payload) // 2])
        raise OSError("no space left on device")


def fail(*arguments):
    raise OSError("the power went")


CRASHES = {
    "write": ("fdopen", FailingFile),
    "fsync": ("fsync", fail),
    "replace": ("replace", fail),
}


@pytest.mark.parametrize("crash", CRASHES)
@pytest.mark.parametrize("existed", [True, False])
def test_a_crash_leaves_the_old_file_and_no_litter(
    crash, existed, tmp_path, monkeypatch
):
    path = tmp_path / "table"
    if existed:
        DenseLayout(np.ones((3, 2), np.float32)).save(path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(files.os, *CRASHES[crash])
        with pytest.raises(OSError):
            DenseLayout(np.zeros((3, 2), np.float32)).save(path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_an_interrupt_is_cleaned_up_too(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        DenseLayout(np.ones((3, 2), np.float32)).save(tmp_path / "table")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no umask")
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_saving_respects_the_umask(mask, tmp_path):
    before = os.umask(mask)
    try:
        DenseLayout(np.ones((3, 2), np.float32)).save(tmp_path / "table")
    finally:
        os.umask(before)
    assert (tmp_path / "table").stat().st_mode & 0o777 == 0o666 & ~mask


def test_saving_to_a_missing_folder_names_the_folder(layout, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder.*missing"):
        layout.save(tmp_path / "missing" / "table")


def test_saving_over_a_folder_is_an_error_without_litter(layout, tmp_path):
    (tmp_path / "table").mkdir()
    with pytest.raises(OSError):
        layout.save(tmp_path / "table")
    assert [file.name for file in tmp_path.iterdir()] == ["table"]


# -- what stands at the path -----------------------------------------------------

ONES = DenseLayout(np.ones((3, 2), np.float32))


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
def test_a_file_keeps_its_mode(mode, tmp_path):
    path = tmp_path / "table"
    ONES.save(path)
    path.chmod(mode)
    DenseLayout(np.zeros((3, 2), np.float32)).save(path)
    assert path.stat().st_mode & 0o777 == mode
    assert not load_layout(path).lookup([1]).any()


def test_a_private_file_is_private_while_it_is_written(tmp_path, monkeypatch):
    path, modes = tmp_path / "table", []
    ONES.save(path)
    path.chmod(0o600)

    def note(handle):
        modes.append(os.fstat(handle).st_mode & 0o077)

    monkeypatch.setattr(files, "flush_to_disk", note)
    ONES.save(path)
    assert modes[0] == 0


@pytest.mark.parametrize("depth", [1, 2])
def test_a_link_stays_and_what_it_names_is_replaced(depth, tmp_path):
    (tmp_path / "folder").mkdir()
    path = target = tmp_path / "folder" / "table"
    ONES.save(target)
    for step in range(depth):
        (tmp_path / f"link{step}").symlink_to(path)
        path = tmp_path / f"link{step}"
    DenseLayout(np.zeros((3, 2), np.float32)).save(path)
    assert path.is_symlink() and not target.is_symlink()
    assert not load_layout(target).lookup([1]).any()
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["table"]


def test_a_link_to_nothing_is_filled(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "table")
    ONES.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert load_layout(tmp_path / "table").num_embeddings == 3


def make_socket(path):
    import socket

    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def make_link_to_device(path):
    path.symlink_to(os.devnull)


SPECIAL = {
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "socket": make_socket,
    "device": make_link_to_device,
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_is_neither_replaced_nor_read(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    path = Path("table")
    SPECIAL[kind](path)
    before = path.lstat()
    with pytest.raises(ValueError, match=f"a {kind} stands there") as error:
        ONES.save(path)
    assert isinstance(error.value, OSError)
    with pytest.raises(ValueError, match=f"a {kind}, not a file"):
        load_layout(path)
    assert os.path.samestat(path.lstat(), before)
    assert [file.name for file in Path().iterdir()] == ["table"]


def test_a_read_only_file_is_kept_also_from_root(tmp_path):
    path = tmp_path / "table"
    ONES.save(path)
    path.chmod(0o444)
    before = path.read_bytes()
    with pytest.raises(PermissionError, match="read-only"):
        DenseLayout(np.zeros((3, 2), np.float32)).save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_link_to_itself_is_an_error(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "link")
    with pytest.raises(OSError):
        ONES.save(tmp_path / "link")
    with pytest.raises(OSError):
        load_layout(tmp_path / "link")


KILLED = """
import os, signal
import numpy as np
from survey_code.layouts import DenseLayout, files

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

files.flush_to_disk = die
DenseLayout(np.zeros((3, 2), np.float32)).save("table")
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no SIGKILL")
def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    ONES.save(tmp_path / "table")
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", KILLED],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.returncode < 0 and len(list(tmp_path.glob(".survey_code-*.part"))) == 1
    assert load_layout(tmp_path / "table").lookup([1]).all()
    (tmp_path / ".survey_code-notes").touch()  # another's
    ONES.save(tmp_path / "table")
    left = {file.name for file in tmp_path.iterdir()}
    assert left == {"table", ".survey_code-notes"}


def test_a_part_that_is_being_written_is_left_alone(tmp_path):
    beside, handle = files.open_part(tmp_path, 0o666)
    ONES.save(tmp_path / "table")
    assert beside.exists()
    os.close(handle)
    ONES.save(tmp_path / "table")
    assert not beside.exists()


def test_a_part_removed_before_it_was_locked_is_made_anew(tmp_path, monkeypatch):
    """Between making and locking it, another process may take it for a stale one."""
    lock, seen = files.lock_file, []

    def lock_late(handle, wait):
        if not seen:
            seen.extend(tmp_path.glob("*.part"))
            seen[0].unlink()
        return lock(handle, wait)

    monkeypatch.setattr(files, "lock_file", lock_late)
    beside, handle = files.open_part(tmp_path, 0o666)
    os.close(handle)
    assert beside.exists() and beside not in seen


def test_many_save_to_one_path_at_once(tmp_path):
    def save(number):
        for _ in range(10):
            DenseLayout(np.full((3, 2), number, np.float32)).save(tmp_path / "table")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(save, range(1, 5)))
    assert load_layout(tmp_path / "table").lookup([1])[0, 0] in range(1, 5)
    assert [file.name for file in tmp_path.iterdir()] == ["table"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush_is_no_failure(number, tmp_path, monkeypatch):
    def refuse(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", refuse)
    ONES.save(tmp_path / "table")
    assert load_layout(tmp_path / "table").num_embeddings == 3


# -- memory ------------------------------------------------------------------------


def traced_peak(work, *arguments):
    """Bytes that a call allocates at most."""
    tracemalloc.start()
    work(*arguments)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_a_file_is_in_memory_once_when_read_and_not_when_written(tmp_path):
    path = tmp_path / "table"
    layout = DenseLayout(np.ones((2**17, 16), np.float32))
    layout.save(tmp_path / "other")  # imports are no part of it
    load_layout(tmp_path / "other")
    assert traced_peak(layout.save, path) < layout.nbytes / 4
    assert traced_peak(load_layout, path) < 1.25 * layout.nbytes
    assert traced_peak(files.inspect_arrays, path) < layout.nbytes / 2
    turned = DenseLayout(np.asfortranarray(layout.values))
    assert traced_peak(turned.save, path) < layout.nbytes / 2
    assert path.read_bytes() == (tmp_path / "other").read_bytes()


def test_a_header_is_the_one_that_safetensors_writes(layout, tmp_path):
    layout.save(tmp_path / "table")
    with safetensors.safe_open(tmp_path / "table", "numpy") as file:
        metadata = file.metadata()
    arrays = {n: np.ascontiguousarray(a) for n, a in layout.arrays().items()}
    assert (tmp_path / "table").read_bytes() == save(arrays, metadata)


def test_inspecting_says_what_loading_finds(layout, tmp_path):
    layout.save(tmp_path / "table")
    said, arrays = files.inspect_arrays(tmp_path / "table")
    assert said == layout.blueprint()
    assert [(it.name, it.kind, it.shape, it.nbytes) for it in arrays] == [
        (name, array.dtype, array.shape, array.nbytes)
        for name, array in sorted(layout.arrays().items())
    ]
    whole = bytearray((tmp_path / "table").read_bytes())
    whole[-1] ^= 1
    (tmp_path / "table").write_bytes(whole)
    with pytest.raises(ValueError, match="damaged"):
        files.inspect_arrays(tmp_path / "table")


def test_names_as_long_as_the_disk_allows(tmp_path):
    path = tmp_path / ("t" * 255)
    DenseLayout(np.ones((3, 2), np.float32)).save(path)
    assert load_layout(path).num_embeddings == 3


# -- damage ------------------------------------------------------------------


def test_a_file_cut_at_any_length_is_a_value_error(layout, tmp_path):
    path = tmp_path / "table"
    layout.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError):
        load_layout(path)
    for length in reversed(range(len(whole))):
        os.truncate(path, length)
        with pytest.raises(ValueError, match="table"):
            load_layout(path)


@pytest.fixture(scope="module")
def smallest(examples, tmp_path_factory):
    """The example of each layout whose file is the smallest."""
    folder, found = tmp_path_factory.mktemp("examples"), {}
    for make in examples.values():
        layout = make()
        layout.save(folder / "table")
        size = (folder / "table").stat().st_size
        found[layout.name] = min(found.get(layout.name, (size, layout)), (size, layout),
                                 key=lambda pair: pair[0])  # fmt: skip
    return {name: layout for name, (_, layout) in found.items()}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_any_flipped_bit_is_a_value_error(kind, smallest, tmp_path):
    path = tmp_path / "table"
    smallest[kind].save(path)
    whole = path.read_bytes()
    assert len(whole) < 1200
    undetected = []
    with open(path, "r+b", buffering=0) as file:

        def put(byte, place):
            file.seek(place)
            file.write(bytes([byte]))

        for place, byte in enumerate(whole):
            for bit in range(8):
                put(byte ^ 1 << bit, place)
                try:
                    load_layout(path)
                except ValueError:
                    continue
                undetected.append((place, bit))
            put(byte, place)
    assert path.read_bytes() == whole and not undetected


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_layout(tmp_path / "missing")


def test_a_folder_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match="a folder"):
        load_layout(tmp_path)


FOREIGN = {
    "empty": b"",
    "eight zeros": bytes(8),
    "png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(64),
    "text": b"id,vector\n1,0.5\n" * 20,
    "header of nothing": struct.pack("<Q", 2) + b"{}",
    "no metadata": struct.pack("<Q", 21) + b'{"__metadata__":null}',
    "header is a list": struct.pack("<Q", 2) + b"[]",
    "header not text": struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc",
    "endless header": struct.pack("<Q", 2**63) + b"{}",
    "deep header": struct.pack("<Q", 20000) + b"[" * 20000,
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_files_that_are_something_else_are_value_errors(content, tmp_path):
    path = tmp_path / "table.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"table\.safetensors"):
        load_layout(path)


def test_other_archives_are_value_errors(tmp_path):
    with zipfile.ZipFile(tmp_path / "zip", "w") as file:
        file.writestr("values", b"1234")
    np.save(tmp_path / "array.npy", np.ones(3))
    torch.save({"weight": torch.ones(3)}, tmp_path / "model.pt")
    for path in list(tmp_path.iterdir()):
        with pytest.raises(ValueError, match=path.name):
            load_layout(path)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_safetensors_of_others_are_value_errors(kind, tmp_path):
    path = tmp_path / "model.safetensors"
    save_torch_file({"model.emb.weight": torch.ones(3, 4).to(kind)}, path)
    with pytest.raises(ValueError):
        load_layout(path)


def test_safetensors_of_others_name_what_they_hold(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"model.emb.weight": np.ones((3, 4), np.float32)}, path)
    with pytest.raises(ValueError, match=r"not a layout.*model\.emb\.weight"):
        load_layout(path)


# -- files that say what cannot be ---------------------------------------------


def write_contents(path, contents, arrays):
    """A file that says this, be it text or what text can be made of."""
    text = contents if isinstance(contents, str) else json.dumps(contents)
    save_file(arrays, path, {files.METADATA_KEY: text})


def write_nonsense(path, blueprint, arrays):
    """A file whose hash is right, whatever it says."""
    sha256 = files.hash_contents(blueprint, arrays)
    write_contents(path, {**blueprint, "sha256": sha256}, arrays)


def stated(layout, shape, parts=None, version=2):
    """What a file says of a layout."""
    parts = {} if parts is None else parts
    return {"layout": layout, "version": version, "shape": shape, "parts": parts}


VALUES = np.ones((2, 2), np.float32)
SHAPE = {"num_embeddings": 2, "embedding_dim": 2}
HASHED = {**SHAPE, "combine_code": 0, "open_ids": 0, "shared": 0}
INDEX = np.array([[3, 5, 7, 1, 2]])
BYTES = VALUES.view(np.uint8)
# Blueprint, arrays, and what the error says.
IMPOSSIBLE = {
    "unknown layout": (stated("crystal", SHAPE), {"values": VALUES}, "unknown layout"),
    "newer version": (
        stated("dense", SHAPE, version=3), {"values": VALUES}, "version 3"
    ),
    "version of text": (
        stated("dense", SHAPE, version="2"), {"values": VALUES}, "description"
    ),
    "version of truth": (
        stated("dense", SHAPE, version=True), {"values": VALUES}, "description|version"
    ),
    "layout of lists": (stated(["dense"], SHAPE), {"values": VALUES}, "description"),
    "renamed tensor": (stated("dense", SHAPE), {"weight": VALUES}, "know ..weight"),
    "one tensor more": (
        stated("dense", SHAPE), {"values": VALUES, "more": VALUES}, "know ..more"
    ),
    "no tensor": (stated("dense", SHAPE), {}, "values must be"),
    "no integers": (stated("dense", {}), {"values": VALUES}, "lacks"),
    "integers as a list": (stated("dense", [2, 2]), {"values": VALUES}, "description"),
    "integers as text": (
        stated("dense", {**SHAPE, "embedding_dim": "2"}), {}, "description"
    ),
    "no integer": (
        stated("dense", {**SHAPE, "embedding_dim": None}), {"values": VALUES},
        "description",
    ),
    "a fraction": (
        stated("dense", {**SHAPE, "embedding_dim": 2.0}), {"values": VALUES},
        "description",
    ),
    "truth for a number": (
        stated("flat", {**SHAPE, "block_len": True, "open_ids": 0}),
        {"values": VALUES[0], "multipliers": np.array([3, 5, 7])}, "description",
    ),
    "more than 64 bits": (
        stated("hashed", {**HASHED, "num_embeddings": 2**63}),
        {"values": VALUES, "index": INDEX}, "description",
    ),
    "wrong shape": (
        stated("dense", {**SHAPE, "num_embeddings": 3}), {"values": VALUES}, "(3, 2)"
    ),
    "negative": (
        stated("dense", {**SHAPE, "num_embeddings": -2}), {"values": VALUES}, "one row"
    ),
    "wrong type": (
        stated("dense", SHAPE), {"values": VALUES.astype(np.float64)}, "values must be"
    ),
    "a number": (
        stated("dense", SHAPE), {"values": np.array(1, np.float32)}, "values must be"
    ),
    "5 bits": (stated("rowwise", {**SHAPE, "bits": 5}), {"rows": BYTES}, "got 5"),
    "short rows": (
        stated("rowwise", {**SHAPE, "bits": 8}), {"rows": BYTES}, "rows must be"
    ),
    "no index": (stated("hashed", HASHED), {"values": VALUES}, "index must be"),
    "index of no axis": (
        stated("hashed", HASHED), {"values": VALUES, "index": np.array(1)},
        "index must be",
    ),
    "index of no table": (
        stated("hashed", HASHED), {"values": VALUES, "index": INDEX[:0]},
        "index needs a table",
    ),
    "divisor 0": (
        stated("hashed", HASHED), {"values": VALUES, "index": INDEX * [1, 1, 1, 0, 1]},
        "from 1 up",
    ),
    "more rows than stored": (
        stated("hashed", HASHED), {"values": VALUES, "index": INDEX * 2},
        "values must be",
    ),
    "sum of moduli wraps around": (
        stated("hashed", HASHED),
        {"values": VALUES, "index": np.repeat(INDEX, 5, 0) * [1, 1, 1, 1, 2**61]},
        "values must be",
    ),
    "hashes without an addend": (
        stated("hashed", HASHED), {"values": VALUES, "index": np.array([[3, 5, 1, 2]])},
        "an addend, a divisor and a modulus",
    ),
    "places without an addend": (
        stated("flat", {**SHAPE, "block_len": 1, "open_ids": 0}),
        {"values": VALUES[0], "multipliers": np.array([3, 5])},
        "multipliers must be two multipliers and an addend",
    ),
    "unknown combination": (
        stated("hashed", {**HASHED, "combine_code": 4}),
        {"values": VALUES, "index": INDEX}, "combine_code",
    ),
    "one sign": (
        stated("hashed", HASHED),
        {"values": VALUES, "index": INDEX, "signs": np.array([3])}, "signs must be",
    ),
}  # fmt: skip


def refused(path, words):
    """Loading is one ValueError that names the path and says what is wrong."""
    with pytest.raises(ValueError) as error:
        load_layout(path)
    said = str(error.value)
    assert said.startswith(f"{path}: ") and re.search(words, said), said


@pytest.mark.parametrize("content", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_well_hashed_nonsense_is_a_value_error(content, tmp_path):
    blueprint, arrays, words = content
    write_nonsense(tmp_path / "table", blueprint, arrays)
    refused(tmp_path / "table", words)


DENSE = stated("dense", SHAPE)
WIDE = stated("dense", {**SHAPE, "embedding_dim": 3})
ROUTED = {"num_embeddings": 4, "embedding_dim": 2}
KEYS = {"keys": np.array([0, 3], np.int32)}
PART = {"0/values": VALUES, "1/values": 2 * VALUES}


def routed(parts, arrays=PART):
    return stated("routed", ROUTED, parts), {**KEYS, **arrays}


def test_a_sound_file_of_parts_is_read(tmp_path):
    """What the nonsense below is one change away from."""
    write_nonsense(tmp_path / "table", *routed({"0": DENSE, "1": DENSE}))
    layout = load_layout(tmp_path / "table")
    assert layout.lookup([0, 1, 2, 3])[:, 0].tolist() == [1, 2, 2, 1]


def renamed(old, new):
    """The second part's arrays by another name."""
    return {new + name.removeprefix(old): array for name, array in PART.items()
            if name.startswith(old)} | {"0/values": VALUES}  # fmt: skip


NESTED = {
    "no parts": (*routed({}, {}), "two parts or more"),
    "one part": (*routed({"0": DENSE}, {"0/values": VALUES}), "two parts or more"),
    "a part without arrays": (
        *routed({"0": DENSE, "1": DENSE}, {"0/values": VALUES}), "values must be"
    ),
    "arrays without a part": (*routed({"0": DENSE}), "know ..1/values"),
    "one part more": (
        *routed({"0": DENSE, "1": DENSE, "2": DENSE}, {**PART, "2/values": VALUES}),
        "the last must have",
    ),
    "an unknown part": (
        *routed({"0": DENSE, "1": DENSE, "x": DENSE}, {**PART, "x/values": VALUES}),
        "know ..x",
    ),
    "array and layout": (
        *routed({"0": DENSE, "1": DENSE}, {**PART, "0": VALUES}),
        "'0' is both an array and a layout",
    ),
    "an array for a part": (
        *routed({"1": DENSE}, {"0": VALUES, "1/values": VALUES}), "all layouts"
    ),
    "a part of other columns": (
        *routed(
            {"0": DENSE, "1": WIDE},
            {"0/values": VALUES, "1/values": np.ones((2, 3), np.float32)},
        ),
        r"\[2, 3\]",
    ),
    "a part of other rows": (
        *routed(
            {"0": DENSE, "1": stated("dense", {**SHAPE, "num_embeddings": 3})},
            {"0/values": VALUES, "1/values": np.ones((3, 2), np.float32)},
        ),
        "the last must have 2",
    ),
    "a part called 00": (
        *routed({"00": DENSE, "1": DENSE}, {"00/values": VALUES, "1/values": VALUES}),
        "know ..00",
    ),
    "a part called -1": (
        *routed({"0": DENSE, "-1": DENSE}, renamed("1", "-1")), "know ..-1"
    ),
    "parts 1 and 2": (
        *routed({"1": DENSE, "2": DENSE}, {"1/values": VALUES, "2/values": VALUES}),
        "lacks one of its parts",
    ),
    "parts 0 and 2": (
        *routed({"0": DENSE, "2": DENSE}, renamed("1", "2")), "lacks one of its parts"
    ),
    "a digit of another script": (
        *routed({"0": DENSE, "\u0661": DENSE}, renamed("1", "\u0661")), "does not know"
    ),
    "a small digit": (
        *routed({"0": DENSE, "\u00b9": DENSE}, renamed("1", "\u00b9")), "does not know"
    ),
    "a part without a name": (
        *routed({"0": DENSE, "": DENSE}, renamed("1", "")), "does not know"
    ),
    "a name with a slash": (
        *routed({"0": DENSE, "1/2": DENSE}, renamed("1", "1/2")), "values must be"
    ),
    "an array called 0/": (
        *routed({"0": DENSE, "1": DENSE}, {**PART, "0/": VALUES}), "know ..0/'"
    ),
    "two slashes": (
        *routed({"0": DENSE, "1": DENSE}, {**PART, "0//values": VALUES}),
        "know ../values",
    ),
    "a slash ahead": (
        *routed({"0": DENSE, "1": DENSE}, {**PART, "/values": VALUES}), "know ../values"
    ),
    "below an array": (
        *routed({"0": DENSE, "1": DENSE}, {**PART, "0/values/0": VALUES}),
        "know ..values/0",
    ),
    "below nothing": (
        *routed({"0": DENSE, "1": DENSE}, {**PART, "9/values": VALUES}), "9/values"
    ),
    "parts as a list": (*routed([DENSE, DENSE]), "description"),
    "parts as text": (*routed("01"), "description"),
    "a part as a list": (*routed({"0": DENSE, "1": [DENSE]}), "description"),
    "a part as a number": (*routed({"0": DENSE, "1": 2}), "description"),
    "a part as nothing": (*routed({"0": DENSE, "1": None}), "description"),
    "a part that says nothing": (*routed({"0": DENSE, "1": {}}), "description"),
    "an unknown layout within": (
        *routed({"0": DENSE, "1": stated("crystal", SHAPE)}), "unknown layout 'crystal'"
    ),
    "an older part": (
        *routed({"0": DENSE, "1": stated("dense", SHAPE, version=1)}), "version 1"
    ),
    "a part of fractions": (
        *routed({"0": DENSE, "1": stated("dense", {**SHAPE, "embedding_dim": 2.5})}),
        "description",
    ),
    "a layout for keys": (
        stated("routed", ROUTED, {"0": DENSE, "1": DENSE, "keys": DENSE}),
        {**PART, "keys/values": VALUES}, "cannot consist of this",
    ),
    "a layout for values": (
        stated("dense", SHAPE, {"values": DENSE}), {"values/values": VALUES},
        "cannot consist of this",
    ),
    "a layout for an index": (
        stated("hashed", HASHED, {"index": DENSE}),
        {"values": VALUES, "index/values": VALUES}, "cannot consist of this",
    ),
    "a number for a table": (
        stated("grouped", SHAPE),
        {"0": np.array(1, np.float32), "groups": np.array([[2, 2]], np.int32)},
        "cannot consist of this",
    ),
    "an array for what is turned": (
        stated("turned", SHAPE), {"part": VALUES, "matrix": VALUES}, "must be a layout"
    ),
    "codes that are no integers": (
        stated("codebook", {**SHAPE, "combine_code": 0}, {"codes": DENSE}),
        {"codes/values": VALUES, "codewords": VALUES,
         "firsts": np.zeros((1, 1), np.int32)}, "packed integers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("content", NESTED.values(), ids=NESTED)
def test_nonsense_of_parts_is_a_value_error(content, tmp_path):
    blueprint, arrays, words = content
    sha256 = ""
    try:
        sha256 = files.hash_contents(files.check_blueprint(blueprint), arrays)
    except (AttributeError, KeyError, TypeError, ValueError):
        assert words == "description"
    write_contents(tmp_path / "table", {**blueprint, "sha256": sha256}, arrays)
    refused(tmp_path / "table", words)


DAMAGED = {
    "no text": "",
    "no JSON": "{",
    "a list": "[]",
    "a number": "7",
    "nothing": "null",
    "no layout": "{}",
    "no hash": json.dumps(DENSE),
    "deep brackets": "[" * 100_000,
    "deep and closed": "[" * 50_000 + "]" * 50_000,
    "deep parts": '{"parts":' * 100_000 + "1" + "}" * 100_000,
    "a number of many digits": '{"version":' + "9" * 10_000 + "}",
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_description_is_a_value_error(text, tmp_path):
    write_contents(tmp_path / "table", text, {"values": VALUES})
    refused(tmp_path / "table", "description is damaged")


@pytest.mark.parametrize("sha256", ["", None, 7, [], "0" * 64])
def test_a_wrong_hash_is_a_value_error(sha256, tmp_path):
    write_contents(tmp_path / "table", {**DENSE, "sha256": sha256}, {"values": VALUES})
    refused(tmp_path / "table", "damaged, its SHA-256 is")


# -- how deep ------------------------------------------------------------------------


def turned(depth):
    """So many layouts within each other."""
    layout = DenseLayout(VALUES)
    for _ in range(depth - 1):
        layout = TurnedLayout(layout, np.eye(2, dtype=np.float32))
    return layout


def test_layouts_nest_so_deep_and_no_deeper(tmp_path):
    turned(files.DEEPEST).save(tmp_path / "table")
    np.testing.assert_array_equal(load_layout(tmp_path / "table").lookup([1]), [[1, 1]])
    with pytest.raises(ValueError, match=f"more than {files.DEEPEST} layouts"):
        turned(files.DEEPEST + 1).save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("more", [1, 2, 150])
def test_files_of_deeper_layouts_are_value_errors(more, tmp_path):
    blueprint, matrix = DENSE, np.eye(2, dtype=np.float32)
    arrays = {"values": VALUES}
    for _ in range(files.DEEPEST - 1 + more):
        blueprint = stated("turned", SHAPE, {"part": blueprint})
        arrays = {f"part/{name}": array for name, array in arrays.items()}
        arrays["matrix"] = matrix
    write_nonsense(tmp_path / "table", blueprint, arrays)
    refused(tmp_path / "table", f"more than {files.DEEPEST} layouts")


# -- one thing of every layout gone, or of the other kind -----------------------------


def bend(layout):
    """Blueprint and arrays with one thing less, or an array for a layout and back."""
    blueprint, arrays = layout.blueprint(), layout.arrays()
    for name, part in layout.held().items():
        below = {key: it for key, it in arrays.items() if key.startswith(f"{name}/")}
        others = {key: it for key, it in arrays.items() if key not in {name, *below}}
        parts = {key: it for key, it in blueprint["parts"].items() if key != name}
        less = {**blueprint, "parts": parts}
        yield less, others
        if isinstance(part, np.ndarray):
            more = {**parts, name: DENSE}
            yield {**blueprint, "parts": more}, {**others, f"{name}/values": VALUES}
            yield less, {**others, name: np.zeros((), part.dtype)}
        else:
            yield less, {**others, name: part.lookup(np.arange(part.num_embeddings))}
            yield {**blueprint, "parts": {**parts, name: DENSE}}, {**others, **below}


def test_what_is_missing_or_of_another_kind_is_a_value_error(layout):
    for blueprint, arrays in bend(layout):
        try:
            found = rebuild(blueprint, arrays)
        except ValueError:
            continue
        # What may be left out, or be an array as well.
        ids = np.arange(layout.num_embeddings)
        assert found.lookup(ids).shape == (len(ids), layout.embedding_dim)
