"""How a layout becomes a file: safetensors, written atomically, checked on load.

The metadata holds one JSON string under one key (safetensors orders several
keys at random, so equal tables would otherwise give different files).  It is the
layout's blueprint: its name and version, its integers, and the same of the layouts
that it holds; and it carries a SHA-256 over these, the tensors' names, types and
shapes, and their bytes: safetensors itself does not notice a flipped byte.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import io
import itertools
import json
import math
import os
import shlex
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypedDict

import numpy as np

fcntl: Any = None  # Windows has none
if importlib.util.find_spec("fcntl"):
    fcntl = importlib.import_module("fcntl")

METADATA_KEY = "survey_code"
TABLE_SIZES = ("num_embeddings", "embedding_dim")
# Parts of files that are being written: ``.survey_code-*.part``.
BESIDE = (".survey_code-", ".part")
PIECE_BYTES = 2**20  # that are hashed or copied together
# A pipe, or a file on a tape, is opened without waiting for anyone.
NO_WAIT = getattr(os, "O_NONBLOCK", 0)

# Names of NumPy's types in a file, in the order in which safetensors sorts tensors.
TYPES = {
    "|b1": "BOOL", "|u1": "U8", "|i1": "I8", "<i2": "I16", "<u2": "U16", "<f2": "F16",
    "<i4": "I32", "<u4": "U32", "<f4": "F32", "<f8": "F64", "<i8": "I64", "<u8": "U64",
}  # fmt: skip
KINDS = list(TYPES)
MOST_AXES = 8
NUMPY_TYPES = {name: kind for kind, name in TYPES.items()}
DEEPEST = 8  # layouts within layouts that a file may hold


class Blueprint(TypedDict):
    """What a file says of a layout, beside its arrays."""

    layout: str
    version: int
    shape: dict[str, int]
    parts: dict[str, Blueprint]


class Stretch(NamedTuple):
    """Where an array stands in a file, and what it is an array of.

    Parameters
    ----------
    name : str
    kind : dtype
    shape : tuple of int
    start, stop : int
        Its first and last-plus-one byte, from the end of the header.
    """

    name: str
    kind: np.dtype[np.generic]
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.stop - self.start


def place_arrays(arrays: Mapping[str, np.ndarray]) -> list[Stretch]:
    """Where arrays stand in a file, in their order there, which is safetensors' own.

    Raises
    ------
    ValueError
        If a file holds no numbers of an array's type.
    """
    for name, array in arrays.items():
        if array.dtype.str not in TYPES:
            raise ValueError(f"{name}: a file holds no numbers of type {array.dtype}")
    order = sorted(
        arrays, key=lambda name: (-KINDS.index(arrays[name].dtype.str), name)
    )
    found, end = [], 0
    for name in order:
        start, end = end, end + arrays[name].nbytes
        found.append(Stretch(name, arrays[name].dtype, arrays[name].shape, start, end))
    return found


def describe_arrays(arrays: Mapping[str, np.ndarray]) -> list[list[Any]]:
    """Name, type and shape of each array, in the order of their names."""
    return [
        [name, arrays[name].dtype.str, list(arrays[name].shape)]
        for name in sorted(arrays)
    ]


def hash_contents(blueprint: Blueprint, arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of everything that the file says, as hexadecimal digits."""
    return hash_arrays([blueprint, describe_arrays(arrays)], arrays)


def hash_arrays(head: object, arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of what is said of arrays, and of their bytes, by their names."""
    digest = hashlib.sha256()
    digest.update(json.dumps(head, sort_keys=True).encode())
    for name in sorted(arrays):
        for piece in split_bytes(arrays[name]):
            digest.update(piece)
    return digest.hexdigest()


def split_bytes(array: np.ndarray) -> Iterator[memoryview]:
    """An array's bytes, row after row, without a copy of more than a few of them."""
    if array.flags.c_contiguous:
        yield array.reshape(-1).view(np.uint8).data
        return
    step = max(PIECE_BYTES // max(array[:1].nbytes, 1), 1)
    for start in range(0, len(array), step):
        piece = np.ascontiguousarray(array[start : start + step])
        yield piece.reshape(-1).view(np.uint8).data


# -- writing -------------------------------------------------------------------------


def write_file(
    path: str | os.PathLike[str], blueprint: Blueprint, arrays: dict[str, np.ndarray]
) -> None:
    """Write the file beside its place, flush it to the disk, then rename it.

    A crash leaves either the old file or the new one, never half of one.

    Raises
    ------
    ValueError
        If the blueprint is one that `read_file` refuses.
    OSError
        As `write_atomically`.
    """
    blueprint = check_blueprint(blueprint)
    places = place_arrays(arrays)
    header = make_header(places, blueprint, hash_contents(blueprint, arrays))
    pieces = (piece for one in places for piece in split_bytes(arrays[one.name]))
    write_atomically(Path(path), itertools.chain([header], pieces))


def make_header(places: Sequence[Stretch], blueprint: Blueprint, digest: str) -> bytes:
    """What stands in front of the arrays, as safetensors writes it.

    Its own functions take bytes, of which there would be two copies.

    Parameters
    ----------
    places : sequence of Stretch
        From `place_arrays`.
    blueprint : Blueprint
    digest : str
        The SHA-256 of all contents; the header is as long for any other.
    """
    contents = json.dumps({**blueprint, "sha256": digest}, sort_keys=True)
    header: dict[str, Any] = {"__metadata__": {METADATA_KEY: contents}}
    for one in places:
        header[one.name] = {
            "dtype": TYPES[one.kind.str],
            "shape": list(one.shape),
            "data_offsets": [one.start, one.stop],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_atomically(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Replace `path` by a file of these bytes, or leave it as it was.

    Raises
    ------
    OSError
        As `replace_file`.
    """
    with replace_file(path) as file:
        for piece in pieces:
            file.write(piece)


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, and to read, that takes the place of `path` at the end.

    Where the block fails, `path` is what it was.  A link stays, and the file that it
    names is replaced; a file keeps its mode.  The bytes are first written to
    ``.survey_code-*.part`` in the same folder, which is locked meanwhile: parts that
    nobody holds are what a killed process left, and are removed.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    OSError
        If a folder, a device, a pipe or a socket stands at the path; it is a
        ValueError too.
    PermissionError
        If the file there is read-only, or nothing may be written to the folder.
    """
    target, mode = find_target(path)
    remove_stale_parts(target.parent)
    beside, handle = open_part(target.parent, 0o666 if mode is None else mode & 0o600)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            flush_to_disk(file.fileno())
            if mode is not None:
                os.chmod(beside, mode)
            if fcntl is not None:  # while it is locked
                os.replace(beside, target)
        if fcntl is None:  # Windows moves no open file
            os.replace(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    with contextlib.suppress(PermissionError):  # a folder that may not be listed
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            flush_to_disk(folder)
        finally:
            os.close(folder)


def find_target(path: Path) -> tuple[Path, int | None]:
    """The file to be replaced, links followed, and the mode that it has.

    Raises
    ------
    OSError
        As `replace_file`.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, "no such folder to save into", str(target.parent)
        )
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target, None
    if not stat.S_ISREG(mode):
        raise io.UnsupportedOperation(
            f"{path}: {name_kind(mode)} stands there, and only a file is replaced"
        )
    if not mode & 0o222 or not os.access(target, os.W_OK):
        raise PermissionError(
            errno.EACCES, "a read-only file stands there, and is kept", str(path)
        )
    return target, stat.S_IMODE(mode) & 0o777


def name_kind(mode: int) -> str:
    """What stands at a path, in words."""
    tests = {
        "a folder": stat.S_ISDIR,
        "a link to itself": stat.S_ISLNK,
        "a pipe": stat.S_ISFIFO,
        "a socket": stat.S_ISSOCK,
    }
    return next((name for name, test in tests.items() if test(mode)), "a device")


def open_part(folder: Path, mode: int) -> tuple[Path, int]:
    """A new file beside the others, open to be written, and locked."""
    while True:
        beside = folder / f"{BESIDE[0]}{os.urandom(8).hex()}{BESIDE[1]}"
        try:
            # Opened like any other file, so that it gets the usual permissions.
            handle = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        except PermissionError as error:
            raise PermissionError(
                error.errno, "nothing may be written to this folder", str(folder)
            ) from error
        if lock_file(handle, wait=True) is None or names_file(beside, handle):
            return beside, handle
        os.close(handle)  # taken for a stale one, between its making and its lock


def names_file(path: Path, handle: int) -> bool:
    """Whether a path still names the file that is open."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def lock_file(handle: int, wait: bool) -> bool | None:
    """Lock an open file until it is closed: whether that is done.

    None where a system or a file system knows no locks.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def remove_stale_parts(folder: Path) -> None:
    """Remove the parts that killed processes left; nothing is lost where that fails."""
    try:
        with os.scandir(folder) as entries:
            names = [
                entry.name for entry in entries if entry.name.startswith(BESIDE[0])
            ]
    except OSError:  # a folder that may be written, but not listed
        return
    for name in names:
        if not name.endswith(BESIDE[1]):
            continue
        with contextlib.suppress(OSError):
            handle = os.open(folder / name, os.O_RDONLY | NO_WAIT)
            try:
                regular = stat.S_ISREG(os.fstat(handle).st_mode)
                if regular and lock_file(handle, wait=False):
                    os.unlink(folder / name)
            finally:
                os.close(handle)


def flush_to_disk(handle: int) -> None:
    """Wait until a file or a folder is on the disk, where its file system can say."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EROFS):
            raise


# -- reading -------------------------------------------------------------------------


def read_file(
    path: str | os.PathLike[str], mmap: bool = False, check: bool = True
) -> tuple[Blueprint, dict[str, np.ndarray]]:
    """Blueprint and arrays of a file.

    Parameters
    ----------
    path : path
    mmap : bool, default False
        Map the arrays, read-only, and read nothing yet.
    check : bool, default True
        Whether the hash is compared, for which all bytes are read.

    Raises
    ------
    ValueError
        If the file is cut short, damaged, of the first format, or was not written
        by this package.
    FileNotFoundError
        If there is no such file.
    """
    contents, arrays = read_contents(path, mmap)
    blueprint, stored = check_contents(path, contents)
    if check:
        check_hash(path, hash_contents(blueprint, arrays), stored)
    return blueprint, arrays


def inspect_arrays(path: str | os.PathLike[str]) -> tuple[Blueprint, list[Stretch]]:
    """What a file says of its layout and of its arrays, by their names, hash checked.

    The arrays are read in pieces and not kept, nor is it checked what they hold.

    Raises
    ------
    ValueError, FileNotFoundError
        As `read_file`.
    """
    with open_regular(path) as file:
        header = read_header(path, file)
        blueprint, stored = check_contents(path, header.contents)
        arrays = sorted(header.arrays)
        check_hash(path, hash_file(file, header.length, blueprint, arrays), stored)
    sizes = [blueprint["shape"].get(name, 0) for name in TABLE_SIZES]
    if min(sizes) < 1 or not sum(array.nbytes for array in arrays):
        raise ValueError(f"{path}: a layout without rows, columns or bytes")
    return blueprint, arrays


def hash_file(
    file: BinaryIO, length: int, blueprint: Blueprint, arrays: Sequence[Stretch]
) -> str:
    """`hash_contents` of arrays that stand in a file, behind `length` bytes."""
    arrays = sorted(arrays)
    described = [[it.name, it.kind.str, list(it.shape)] for it in arrays]
    digest = hashlib.sha256()
    digest.update(json.dumps([blueprint, described], sort_keys=True).encode())
    for array in arrays:
        file.seek(length + array.start)
        for first in range(array.start, array.stop, PIECE_BYTES):
            digest.update(file.read(min(PIECE_BYTES, array.stop - first)))
    return digest.hexdigest()


def check_contents(
    path: str | os.PathLike[str], contents: dict[str, Any]
) -> tuple[Blueprint, object]:
    """What a file says of its layout, checked, and the hash that it gives."""
    if contents.get("version") == 1 and "parts" not in contents:
        raise ValueError(
            f"{path}: written in the first format of this package (layout "
            f"{contents.get('layout')!r}); `survey-code convert "
            f"{shlex.quote(os.fspath(path))} NEW` makes a file of the present one"
        )
    try:
        return check_blueprint(contents), contents["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: the layout's description is damaged ({error})"
        ) from error


def check_hash(path: str | os.PathLike[str], found: str, stored: object) -> None:
    """Raise ValueError unless a file's contents have the hash that it gives."""
    if found != stored:
        raise ValueError(
            f"{path}: damaged, its SHA-256 is {found[:12]}..., but the file says "
            f"{str(stored)[:12]}..."
        )


def read_contents(
    path: str | os.PathLike[str], mmap: bool = False
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a file of this package says of itself, unchecked, and its arrays.

    They are read to where they stay, so that there is never more than one copy; or
    mapped, so that processes which map the same file share its pages.
    """
    arrays = {}
    with open_regular(path) as file:
        header = read_header(path, file)
        if mmap:
            mapped = np.memmap(file, np.uint8, "r", header.length - 8)
            return header.contents, view_arrays(np.asarray(mapped)[8:], header.arrays)
        for name, kind, shape, start, stop in header.arrays:
            array = np.empty(shape, dtype=kind)
            file.seek(header.length + start)
            if file.readinto(array.reshape(-1).view(np.uint8).data) != stop - start:
                raise ValueError(f"{path}: cut short while it was read")
            arrays[name] = array
    return header.contents, arrays


def view_arrays(
    payload: np.ndarray, places: Sequence[Stretch]
) -> dict[str, np.ndarray]:
    """Arrays in the bytes behind a file's header, without a copy."""
    return {
        one.name: payload[one.start : one.stop].view(one.kind).reshape(one.shape)
        for one in places
    }


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """A file, open to be read; or ValueError for what is none, such as a pipe."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: {name_kind(mode)}, not a file")
    return open(path, "rb")


class Header(NamedTuple):
    """What stands in front of a file's arrays.

    Parameters
    ----------
    length : int
        Bytes of it, the length field among them.
    contents : dict
        What the file says of its layout, unchecked.
    arrays : list of Stretch
    """

    length: int
    contents: dict[str, Any]
    arrays: list[Stretch]


def read_header(path: str | os.PathLike[str], file: io.BufferedReader) -> Header:
    """The header of a safetensors file that this package wrote.

    Raises
    ------
    ValueError
        If it is no such file, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        # The library checks the header against the file's size: no gap, no overlap.
        with safe_open(path, "numpy"):
            pass
        (length,) = struct.unpack("<Q", file.read(8))
        found: dict[str, Any] = json.loads(file.read(length))
        metadata = found.pop("__metadata__", None) or {}
        arrays = []
        for name, entry in found.items():
            kind = np.dtype(NUMPY_TYPES[entry["dtype"]])
            shape = [int(size) for size in entry["shape"]]
            start, stop = entry["data_offsets"]
            if math.prod(shape) * kind.itemsize != stop - start:
                raise ValueError(f"the size of {name} contradicts its bytes")
            # Also of nothing NumPy makes no array with so many places.
            if len(shape) > MOST_AXES or math.prod(max(n, 1) for n in shape) >= 2**60:
                raise ValueError(f"no array has the shape {shape}")
            arrays.append(Stretch(name, kind, tuple(shape), int(start), int(stop)))
    # The JSON reader raises its own errors on damaged headers.
    except (
        SafetensorError, struct.error, ValueError, KeyError, TypeError,
        AttributeError, RecursionError,
    ) as error:  # fmt: skip
        raise ValueError(
            f"{path}: not a readable safetensors file ({error})"
        ) from error
    if METADATA_KEY not in metadata:
        raise ValueError(
            f"{path}: a safetensors file, but not a layout of this package "
            f"(no metadata entry {METADATA_KEY!r}; tensors: {sorted(found)[:8]})"
        )
    try:
        contents = json.loads(metadata[METADATA_KEY])
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: the layout's description is damaged") from error
    if not isinstance(contents, dict):
        raise ValueError(f"{path}: the layout's description is damaged")
    return Header(8 + length, contents, arrays)


def check_blueprint(contents: Any, depth: int = 0) -> Blueprint:
    """A blueprint as it should be, or one of the errors of reading a dictionary."""
    if depth == DEEPEST:
        raise ValueError(f"more than {DEEPEST} layouts within each other")
    layout, version = contents["layout"], contents["version"]
    shape, parts = contents["shape"], contents["parts"]
    if not isinstance(layout, str):
        raise TypeError("a name that is no text")
    for value in [version, *shape.values()]:
        if type(value) is not int or not -(2**63) <= value < 2**63:
            raise TypeError("a number that is no integer of 64 bits")
    return {
        "layout": layout,
        "version": version,
        "shape": dict(shape),
        "parts": {name: check_blueprint(it, depth + 1) for name, it in parts.items()},
    }


def header_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes in front of the tensors: the length field and the JSON header."""
    with open(path, "rb") as file:
        return 8 + int(struct.unpack("<Q", file.read(8))[0])
