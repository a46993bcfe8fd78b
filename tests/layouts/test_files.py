"""Files: the same bytes for the same table, whole or not at all, checked on load."""

import os
import struct
import zipfile

import numpy as np
import pytest
import safetensors
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from survey_code import load_layout
from survey_code.embedding import decode_layout
from survey_code.layouts import LAYOUTS, DenseLayout, files, header_bytes

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


@pytest.mark.parametrize("kind", LAYOUTS)
def test_any_flipped_bit_is_a_value_error(kind, examples, tmp_path):
    path = tmp_path / "table"
    layouts = (make() for make in examples.values())
    next(layout for layout in layouts if layout.name == kind).save(path)
    whole = path.read_bytes()
    assert len(whole) < 1024
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


VALUES = np.ones((2, 2), np.float32)
SHAPE = {"num_embeddings": 2, "embedding_dim": 2}
HASHED_SHAPE = {**SHAPE, "combine_code": 0, "open_ids": 0}
INDEX = np.array([[3, 5, 1, 2]])
# Files whose hash is right but whose content is not: layout, version, integers,
# arrays.
IMPOSSIBLE = {
    "unknown layout": ("crystal", 1, SHAPE, {"values": VALUES}),
    "newer version": ("dense", 2, SHAPE, {"values": VALUES}),
    "version of text": ("dense", "1", SHAPE, {"values": VALUES}),
    "layout of lists": (["dense"], 1, SHAPE, {"values": VALUES}),
    "renamed tensor": ("dense", 1, SHAPE, {"weight": VALUES}),
    "one tensor more": ("dense", 1, SHAPE, {"values": VALUES, "more": VALUES}),
    "no integers": ("dense", 1, {}, {"values": VALUES}),
    "integers as a list": ("dense", 1, [2, 2], {"values": VALUES}),
    "integers as text": ("dense", 1, {**SHAPE, "embedding_dim": "2"}, {}),
    "no integer": ("dense", 1, {**SHAPE, "embedding_dim": None}, {"values": VALUES}),
    "wrong shape": ("dense", 1, {**SHAPE, "num_embeddings": 3}, {"values": VALUES}),
    "negative": ("dense", 1, {**SHAPE, "num_embeddings": -2}, {"values": VALUES}),
    "wrong type": ("dense", 1, SHAPE, {"values": VALUES.astype(np.float64)}),
    "a number": ("dense", 1, SHAPE, {"values": np.float32(1).reshape(())}),
    "3 bits": ("rowwise", 1, {**SHAPE, "bits": 3}, {"rows": VALUES.view(np.uint8)}),
    "short rows": ("rowwise", 1, {**SHAPE, "bits": 8}, {"rows": VALUES.view(np.uint8)}),
    "no index": ("hashed", 1, HASHED_SHAPE, {"values": VALUES}),
    "index of no axis": (
        "hashed", 1, HASHED_SHAPE, {"values": VALUES, "index": np.array(1)}
    ),
    "index of no table": (
        "hashed", 1, HASHED_SHAPE, {"values": VALUES, "index": INDEX[:0]}
    ),
    "divisor 0": (
        "hashed", 1, HASHED_SHAPE, {"values": VALUES, "index": INDEX * [1, 1, 0, 1]}
    ),
    "more rows than stored": (
        "hashed", 1, HASHED_SHAPE, {"values": VALUES, "index": INDEX * 2}
    ),
    "sum of moduli wraps around": (
        "hashed", 1, HASHED_SHAPE,
        {"values": VALUES, "index": np.array([[3, 5, 1, 2**62]] * 4 + [[3, 5, 1, 2]])},
    ),
    "unknown combination": (
        "hashed", 1, {**HASHED_SHAPE, "combine_code": 3},
        {"values": VALUES, "index": INDEX},
    ),
    "one sign": (
        "hashed", 1, HASHED_SHAPE,
        {"values": VALUES, "index": INDEX, "signs": np.array([3])},
    ),
}  # fmt: skip


@pytest.mark.parametrize("content", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_well_hashed_nonsense_is_a_value_error(content, tmp_path):
    path = tmp_path / "table"
    files.write_file(path, *content)
    with pytest.raises(ValueError, match="table"):
        load_layout(path)
