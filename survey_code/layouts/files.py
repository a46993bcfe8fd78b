"""How a layout becomes a file: safetensors, written atomically, checked on load.

The metadata holds one JSON string under one key (safetensors orders several
keys at random, so equal tables would otherwise give different files).  It is the
layout's blueprint: its name and version, its integers, and the same of the layouts
that it holds; and it carries a SHA-256 over these, the tensors' names, types and
shapes, and their bytes: safetensors itself does not notice a flipped byte.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shlex
import struct
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

METADATA_KEY = "survey_code"
DEEPEST = 8  # layouts within layouts that a file may hold


class Blueprint(TypedDict):
    """What a file says of a layout, beside its arrays."""

    layout: str
    version: int
    shape: dict[str, int]
    parts: dict[str, Blueprint]


def describe_arrays(arrays: dict[str, np.ndarray]) -> list[list[Any]]:
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
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def write_file(
    path: str | os.PathLike[str], blueprint: Blueprint, arrays: dict[str, np.ndarray]
) -> None:
    """Write the file beside its place, flush it to the disk, then rename it.

    A crash leaves either the old file or the new one, never half of one.

    Raises
    ------
    ValueError
        If the blueprint is one that `read_file` refuses.
    """
    from safetensors.numpy import save

    blueprint = check_blueprint(blueprint)
    contents = {**blueprint, "sha256": hash_contents(blueprint, arrays)}
    payload = save(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()},
        metadata={METADATA_KEY: json.dumps(contents, sort_keys=True)},
    )
    write_atomically(Path(path), payload)


def write_atomically(path: Path, payload: bytes) -> None:
    """Replace `path` by a file of these bytes, or leave it as it was."""
    if not path.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, "no such folder to save into", str(path.parent)
        )
    beside = path.parent / f".survey_code-{os.urandom(8).hex()}.part"
    # Opened like any other file, so that it gets the usual permissions.
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_file(path: str | os.PathLike[str]) -> tuple[Blueprint, dict[str, np.ndarray]]:
    """Blueprint and arrays of a file, all checked.

    Raises
    ------
    ValueError
        If the file is cut short, damaged, of the first format, or was not written
        by this package.
    FileNotFoundError
        If there is no such file.
    """
    contents, arrays = read_contents(path)
    if contents.get("version") == 1 and "parts" not in contents:
        raise ValueError(
            f"{path}: written in the first format of this package (layout "
            f"{contents.get('layout')!r}); `survey-code convert "
            f"{shlex.quote(os.fspath(path))} NEW` makes a file of the present one"
        )
    try:
        blueprint = check_blueprint(contents)
        stored = contents["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: the layout's description is damaged ({error})"
        ) from error
    check_hash(path, hash_contents(blueprint, arrays), stored)
    return blueprint, arrays


def check_hash(path: str | os.PathLike[str], found: str, stored: object) -> None:
    """Raise ValueError unless a file's contents have the hash that it gives."""
    if found != stored:
        raise ValueError(
            f"{path}: damaged, its SHA-256 is {found[:12]}..., but the file says "
            f"{str(stored)[:12]}..."
        )


def read_contents(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a file of this package says of itself, unchecked, and its arrays."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        payload = Path(path).read_bytes()
    except IsADirectoryError as error:
        raise ValueError(f"{path}: a folder, not a file") from error
    try:
        arrays = load(payload)
        metadata = read_header(payload).get("__metadata__") or {}
    # NumPy and the JSON reader raise their own errors on damaged headers.
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: not a readable safetensors file ({error})"
        ) from error
    if METADATA_KEY not in metadata:
        raise ValueError(
            f"{path}: a safetensors file, but not a layout of this package "
            f"(no metadata entry {METADATA_KEY!r}; tensors: {sorted(arrays)[:8]})"
        )
    try:
        contents = json.loads(metadata[METADATA_KEY])
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: the layout's description is damaged") from error
    if not isinstance(contents, dict):
        raise ValueError(f"{path}: the layout's description is damaged")
    return contents, arrays


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


def read_header(payload: bytes) -> dict[str, Any]:
    """The JSON header of a safetensors file."""
    (length,) = struct.unpack("<Q", payload[:8])
    header: dict[str, Any] = json.loads(payload[8 : 8 + length])
    return header


def header_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes in front of the tensors: the length field and the JSON header."""
    with open(path, "rb") as file:
        return 8 + int(struct.unpack("<Q", file.read(8))[0])
