"""Where a data file comes from: a folder of yours, or a download; always checked.

``SURVEY_CODE_DATA`` names a folder with ``frappe_x1``, ``gowalla`` and
``movietweetings_100k`` in it, each holding the published files or their .gz.
Without it, files are downloaded once into the user's cache.  No data file is
part of this project: their terms do not allow it.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "SURVEY_CODE_DATA"


@dataclass(frozen=True)
class DataFile:
    """One published file.

    Parameters
    ----------
    folder, name : str
        Its place below the data folder.
    address : str
        Where it can be downloaded.
    editions : dict
        SHA-256 or MD5 of the *uncompressed* bytes -> name of the edition.
    """

    folder: str
    name: str
    address: str
    editions: dict[str, str]


def read_data(file: DataFile) -> tuple[bytes, dict[str, str]]:
    """The uncompressed bytes of a file, and where they came from.

    Returns
    -------
    bytes
    dict
        ``"edition"``, ``"sha256"`` and ``"from"`` (``"folder"`` or the address).

    Raises
    ------
    ValueError
        If the folder's name is not absolute, or the bytes are not an edition
        that is known.
    FileNotFoundError
        If there is neither a folder nor a network; it names both ways.
    """
    folder = os.environ.get(VARIABLE)
    if folder:
        path, origin = find_file(Path(folder), file), "folder"
    else:
        path, origin = download(file), file.address
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: a damaged .gz file ({error})") from error
    return content, {"from": origin, **identify(path, content, file)}


def find_file(folder: Path, file: DataFile) -> Path:
    """The file, plain or .gz, in the user's folder."""
    if not folder.is_absolute():
        raise ValueError(
            f"{VARIABLE} must be an absolute path (notebooks start in their own "
            f"folder), got {str(folder)!r}"
        )
    places = [folder / file.folder / f"{file.name}{end}" for end in ("", ".gz")]
    for path in places:
        if path.exists():
            return path
    raise FileNotFoundError(
        f"{VARIABLE} is set, but {places[0]} (or .gz) does not exist; put "
        f"{file.address} there, or unset {VARIABLE} to download it"
    )


def identify(path: Path, content: bytes, file: DataFile) -> dict[str, str]:
    """Which edition the bytes are."""
    sha256 = hashlib.sha256(content).hexdigest()
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    for known in (sha256, md5):
        if known in file.editions:
            return {"edition": file.editions[known], "sha256": sha256}
    raise ValueError(
        f"{path}: the SHA-256 of its contents is {sha256} (MD5 {md5}), expected one "
        f"of {sorted(file.editions)}: the file is damaged or another version"
    )


def download(file: DataFile) -> Path:
    """The file in the user's cache, downloaded with a progress bar if need be."""
    import pooch

    cache = Path(pooch.os_cache("survey-code")) / file.folder
    known = cache / file.name
    if known.exists():
        return known
    try:
        # Several editions are good, so that the check comes after, by `identify`.
        path = Path(
            pooch.retrieve(
                file.address, known_hash=None, fname=file.name, path=cache,
                progressbar=True,
            )
        )  # fmt: skip
    except Exception as error:  # requests' many errors: all mean "no network"
        raise FileNotFoundError(
            f"{file.folder}/{file.name} is not here. Either connect to the network, "
            f"so that it can be downloaded from {file.address}, or set {VARIABLE} to "
            f"the absolute path of a folder that holds {file.folder}/{file.name} "
            f"({type(error).__name__}: {error})"
        ) from None
    try:
        identify(path, path.read_bytes(), file)
    except ValueError:
        path.unlink()
        raise
    return path
