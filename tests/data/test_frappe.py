"""Frappe_x1 as published, with its rebuilt training file."""

import gzip

import numpy as np
import pytest

from survey_code.data import load
from survey_code.data.frappe import FIELDS, ROWS, load_frappe, parse_rows


@pytest.fixture(scope="module")
def frappe(real_data):
    return load("frappe")


def test_rows_and_ids_are_those_of_the_split(frappe):
    assert [len(frappe.train), len(frappe.valid), len(frappe.test)] == [
        202_027,
        57_722,
        28_860,
    ]
    assert frappe.num_embeddings == 5382 and len(frappe.field_names) == 10
    assert frappe.field_starts.tolist() == [
        0, 957, 5039, 5046, 5053, 5055, 5058, 5060, 5069, 5149, 5382,
    ]  # fmt: skip
    assert frappe.name == "frappe_x1 (rebuilt train)" or frappe.name == "frappe_x1"


def test_positives_are_those_of_the_split(frappe):
    counts = [int(part.labels.sum()) for part in (frappe.train, frappe.valid)]
    assert counts == [67_604, 19_063] and frappe.test.labels.sum() == 9536


def test_ids_stay_within_their_field(frappe):
    for part in (frappe.train, frappe.valid, frappe.test):
        assert part.ids.shape[1] == 10 and part.ids.dtype == np.int64
        assert (part.ids >= frappe.field_starts[:-1]).all()
        assert (part.ids < frappe.field_starts[1:]).all()


def test_three_features_are_never_trained(frappe):
    unseen = frappe.spec(4).train_counts == 0
    for part, rows in ((frappe.valid, 6), (frappe.test, 3)):
        assert unseen[part.ids].any(axis=1).sum() == rows
    shown = np.unique(np.concatenate([frappe.valid.ids, frappe.test.ids]))
    assert unseen[shown].sum() == 3


def test_no_training_row_twice_and_two_negatives_a_positive(frappe):
    rows = np.unique(frappe.train.ids[frappe.train.labels == 0], axis=0)
    assert len(rows) == (frappe.train.labels == 0).sum()
    labels = np.concatenate(
        [p.labels for p in (frappe.train, frappe.valid, frappe.test)]
    )
    assert (labels == 0).sum() == 2 * (labels == 1).sum()


def test_the_source_says_which_edition(frappe):
    assert set(frappe.source) == {"train", "valid", "test"}
    assert frappe.source["valid"]["edition"] == "published"
    assert frappe.source["test"]["sha256"].startswith("f09423427a86efc8")
    rebuilt = frappe.source["train"]["edition"] == "rebuilt"
    assert rebuilt == frappe.name.endswith("(rebuilt train)")


def test_a_cut_file_is_a_value_error(real_data, tmp_path, monkeypatch):
    source = real_data / "frappe_x1"
    target = tmp_path / "frappe_x1"
    target.mkdir()
    for part in ROWS:
        (path,) = source.glob(f"{part}.csv*")
        (target / path.name).symlink_to(path)
    (cut,) = target.glob("valid.csv*")
    content = cut.read_bytes()
    content = gzip.decompress(content) if cut.suffix == ".gz" else content
    cut.unlink()
    (target / "valid.csv").write_bytes(content[: len(content) // 2])
    monkeypatch.setenv("SURVEY_CODE_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"valid\.csv.* is damaged or another version"):
        load_frappe()


HEAD = ",".join(["label", *FIELDS])


@pytest.mark.parametrize(
    "content",
    [
        "",
        HEAD + "\r\n",
        HEAD + "\r\n1,2,3\r\n",
        HEAD.replace("user", "person") + "\r\n" + "1,0,957,5039\r\n" * 9,
        "\x00\x01\x02",
    ],
    ids=["empty", "head", "few", "columns", "garbage"],
)
def test_text_that_is_not_frappe_is_a_value_error(content):
    with pytest.raises(ValueError):
        parse_rows(content.encode(), "valid")
