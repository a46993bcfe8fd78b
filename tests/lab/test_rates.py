"""Tables of recorded rates."""

import json

import pytest

from survey_code import lab


@pytest.fixture
def recorded(tmp_path):
    path = tmp_path / "composed.jsonl"
    lines = [
        {"kind": kind, "what": what, "length": length, "rows_per_s": rate * 1e9}
        for kind, scale in (("hashing", 1), ("sparse", 2))
        for what, length, rate in (
            ("bag", 32, 5 * scale), ("torch", 32, 6), ("gather", 32, 20),
            ("bag", 1, 3), ("lookup", 1, 4 * scale), ("gather", 1, 8), ("torch", 1, 1),
        )
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_rates_stand_beside_torchs_and_the_ceilings(recorded):
    table = lab.tabulate_rates(recorded, ["sparse", "hashing"])
    assert table.index.tolist() == ["sparse", "hashing"]
    assert table.loc["sparse"].tolist() == [10, 6, 20, 8, 1]
    assert table["bags"].tolist() == [10, 5]


def test_a_kind_that_was_not_measured_is_a_value_error(recorded):
    with pytest.raises(ValueError, match=r"no rates of .*ROBE"):
        lab.tabulate_rates(recorded, ["ROBE"])


@pytest.fixture
def arithmetic(tmp_path):
    path = tmp_path / "codes.jsonl"
    lines = [
        {"kind": "scores", "what": what, "queries": queries, "per_s": rate * 1e9}
        for queries, scale in ((16, 2), (1, 1))
        for what, rate in (("kernel", 3 * scale), ("copy", 8 * scale))
    ] + [{"kind": "assignment", "what": "torch", "clusters": 8, "per_s": 1e9}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_arithmetic_stands_in_the_order_of_the_file(arithmetic):
    table = lab.tabulate_arithmetic(arithmetic, "queries", "scores")
    assert table.index.tolist() == [16, 1]
    assert table.columns.tolist() == ["kernel", "copy"]
    assert table.loc[16].tolist() == [6, 16]


def test_arithmetic_that_was_not_measured_is_a_value_error(arithmetic):
    with pytest.raises(ValueError, match="no rates of 'ROBE'"):
        lab.tabulate_arithmetic(arithmetic, "queries", "ROBE")
