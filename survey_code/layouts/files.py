"""How a layout becomes a file: safetensors, written atomically, checked on load.

The metadata holds one JSON string under one key (safetensors orders several
keys at random, so equal tables would otherwise give different files).  It names
the layout and its version, gives its integers, and carries a SHA-256 over these,
the tensors' names, types and shapes, and their bytes: safetensors itself does
not notice a flipped byte.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

METADATA_KEY = "survey_code"


def describe_arrays(arrays: dict[str, np.ndarray]) -> list[list[Any]]:
    """Name, type and shape of each array, in the order of their names."""
    return [
        [name, arrays[name].dtype.str, list(arrays[name].shape)]
        for name in sorted(arrays)
    ]


def hash_contents(
    layout: str, version: int, shape: dict[str, int], arrays: dict[str, np.ndarray]
) -> str:
    """SHA-256 of everything that the file says, as hexadecimal digits."""
    digest = hashlib.sha256()
    head = [layout, version, shape, describe_arrays(arrays)]
    digest.update(json.dumps(head, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def write_file(
    path: str | os.PathLike[str],
    layout: str,
    version: int,
    shape: dict[str, int],
    arrays: dict[str, np.ndarray],
) -> None:
    """Write the file beside its place, flush it to the disk, then rename it.

    A crash leaves either the old file or the new one, never half of one.
    """
    from safetensors.numpy import save

    contents = {
        "layout": layout,
        "version": version,
        "shape": shape,
        "sha256": hash_contents(layout, version, shape, arrays),
    }
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


def read_file(
    path: str | os.PathLike[str],
) -> tuple[str, int, dict[str, int], dict[str, np.ndarray]]:
    """Layout name, version, integers and arrays of a file, all checked.

    Raises
    ------
    ValueError
        If the file is cut short, damaged, or was not written by this package.
    FileNotFoundError
        If there is no such file.
    """
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
        layout, version = contents["layout"], contents["version"]
        shape, stored = contents["shape"], contents["sha256"]
        if not (
            isinstance(layout, str)
            and all(isinstance(value, int) for value in [version, *shape.values()])
        ):
            raise TypeError("a name or a number of another type")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: the layout's description is damaged") from error
    found = hash_contents(layout, version, shape, arrays)
    if found != stored:
        raise ValueError(
            f"{path}: damaged, its SHA-256 is {found[:12]}..., but the file says "
            f"{str(stored)[:12]}..."
        )
    return layout, version, shape, arrays


def read_header(payload: bytes) -> dict[str, Any]:
    """The JSON header of a safetensors file."""
    (length,) = struct.unpack("<Q", payload[:8])
    header: dict[str, Any] = json.loads(payload[8 : 8 + length])
    return header


def header_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes in front of the tensors: the length field and the JSON header."""
    with open(path, "rb") as file:
        return 8 + int(struct.unpack("<Q", file.read(8))[0])
