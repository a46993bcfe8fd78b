"""Where data files come from, and what is said when they do not come."""

import gzip
import hashlib

import pooch
import pytest

from survey_code.data.files import DataFile, read_data
from survey_code.data.frappe import load_frappe
from survey_code.data.gowalla import load_gowalla
from survey_code.data.movietweetings import load_movietweetings

CONTENT = b"0 1 2\n1 2 3\n" * 50
FILE = DataFile(
    "some_set",
    "train.txt",
    "https://example.org/train.txt",
    {hashlib.sha256(CONTENT).hexdigest(): "published"},
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder that is set, with a place for the file."""
    monkeypatch.setenv("SURVEY_CODE_DATA", str(tmp_path))
    (tmp_path / "some_set").mkdir()
    return tmp_path / "some_set"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """No data folder, an empty cache, and a network that must not be used."""
    monkeypatch.delenv("SURVEY_CODE_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / name)

    def unreachable(*given, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(pooch, "retrieve", unreachable)
    return tmp_path / "survey-code" / "some_set"


def serve(monkeypatch, content, calls):
    """A network that answers with these bytes."""

    def retrieve(address, *, fname, path, **options):
        calls.append(address)
        path.mkdir(parents=True, exist_ok=True)
        (path / fname).write_bytes(content)
        return str(path / fname)

    monkeypatch.setattr(pooch, "retrieve", retrieve)


# -- a folder of the user's -----------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_may_be_plain_or_gzipped(folder, packed):
    if packed:
        (folder / "train.txt.gz").write_bytes(gzip.compress(CONTENT))
    else:
        (folder / "train.txt").write_bytes(CONTENT)
    content, source = read_data(FILE)
    assert content == CONTENT
    assert source == {
        "from": "folder",
        "edition": "published",
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
    }


def test_an_edition_may_be_known_by_its_md5(folder):
    (folder / "train.txt").write_bytes(CONTENT)
    known = {hashlib.md5(CONTENT, usedforsecurity=False).hexdigest(): "older"}
    file = DataFile(FILE.folder, FILE.name, FILE.address, known)
    assert read_data(file)[1]["edition"] == "older"


def test_a_missing_file_names_both_ways(folder):
    with pytest.raises(FileNotFoundError) as error:
        read_data(FILE)
    said = str(error.value)
    assert str(folder / "train.txt") in said and FILE.address in said
    assert "SURVEY_CODE_DATA" in said and "download" in said


def test_a_folder_must_be_absolute(monkeypatch):
    monkeypatch.setenv("SURVEY_CODE_DATA", "data")
    with pytest.raises(ValueError, match=r"must be an absolute path .* got 'data'"):
        read_data(FILE)


def flip(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    "content",
    [b"", CONTENT[:-1], flip(CONTENT, 30), b"<html>Not found</html>", b"\x00" * 99],
    ids=["empty", "short", "flipped", "page", "zeros"],
)
def test_other_bytes_are_a_value_error(folder, content):
    (folder / "train.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"the file is damaged or another version"):
        read_data(FILE)


PACKED = gzip.compress(CONTENT, mtime=0)


@pytest.mark.parametrize(
    "content",
    [PACKED[:-9], PACKED[:12], flip(PACKED, 14), flip(PACKED, -6), PACKED[:2]],
    ids=["short", "head", "flipped", "checksum", "mark"],
)
def test_a_damaged_gzip_file_is_a_value_error(folder, content):
    (folder / "train.txt.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"train\.txt\.gz"):
        read_data(FILE)


def test_no_flipped_bit_of_a_gzip_file_goes_unnoticed(folder):
    """In the header it may do no harm; anywhere else it is one clear error."""
    for place in range(2, len(PACKED)):
        (folder / "train.txt.gz").write_bytes(flip(PACKED, place))
        try:
            content, _ = read_data(FILE)
        except ValueError as error:
            assert "train.txt.gz" in str(error)
        else:
            assert content == CONTENT


# -- a download -----------------------------------------------------------------


def test_without_folder_and_network_the_error_says_both_ways(cache):
    with pytest.raises(FileNotFoundError) as error:
        read_data(FILE)
    said = str(error.value)
    assert "connect to the network" in said and FILE.address in said
    assert "SURVEY_CODE_DATA" in said and "some_set/train.txt" in said
    assert "no route to host" in said and "\n" not in said


@pytest.mark.parametrize("load", [load_frappe, load_gowalla, load_movietweetings])
def test_every_loader_says_so(cache, load):
    with pytest.raises(FileNotFoundError, match=r"connect to the network.*or set SURV"):
        load()


def test_a_download_happens_once(cache, monkeypatch):
    calls = []
    serve(monkeypatch, CONTENT, calls)
    for _ in range(2):
        content, source = read_data(FILE)
        assert content == CONTENT and source["from"] == FILE.address
    assert calls == [FILE.address]


def test_a_bad_download_is_not_kept(cache, monkeypatch):
    serve(monkeypatch, CONTENT[:-1], [])
    with pytest.raises(ValueError, match="damaged or another version"):
        read_data(FILE)
    assert not (cache / "train.txt").exists()
    serve(monkeypatch, CONTENT, [])
    assert read_data(FILE)[0] == CONTENT
