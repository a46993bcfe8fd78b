"""Results: a line of JSON each, files of them, and their means."""

import json

import numpy as np
import pytest

from survey_code.lab import Result, describe_results, load_results, summarize
from survey_code.lab.experiment import key_of
from survey_code.lab.results import append_result, find_results, replace_results
from survey_code.layouts.files import PIECE_BYTES


def make_result(key="hashing", ratio=4.0, seed=1, **changes):
    given = {
        "key": key,
        "options": {"rows": 100, "signed": False},
        "data": "clicks",
        "model": "dcnv2",
        "dim": 16,
        "seed": seed,
        "requested_ratio": ratio,
        "reached_ratio": 1.01 * ratio,
        "bytes": {"inference": 4000},
        "validation": {"auc": 0.71},
        "test": {"auc": 0.7, "log_loss": 0.5},
        "seconds": {"search": 0.0, "train": 1.5, "compress": 0.1},
        "lookup": {"p50_us": 10.0, "p99_us": 20.0},
        "settings": {"epochs": 1, "layers": {"hidden": [8]}},
        "device": "cpu",
        "date": "2024-01-01",
        "versions": {"numpy": "2.0"},
        "command": "survey-code run hashing --data 'Zürich'",
    }
    return Result(**{**given, **changes})


def test_a_result_survives_json():
    result = make_result(layout=object())
    line = result.to_json()
    assert "\n" not in line and "layout" not in json.loads(line)
    again = Result.from_json(line)
    assert again == result and again.layout is None
    assert again.to_json() == line


def test_keys_are_sorted_so_that_equal_results_are_equal_lines():
    result = make_result()
    flipped = make_result(options={"signed": False, "rows": 100})
    assert result.to_json() == flipped.to_json()
    assert list(json.loads(result.to_json())) == sorted(json.loads(result.to_json()))


@pytest.mark.parametrize("line", ["{}", "[1]", '"x"', "null", "", '{"key": 1}', "{"])
def test_what_is_no_result_is_a_value_error(line):
    with pytest.raises(ValueError, match="not a result: "):
        Result.from_json(line)


def test_the_key_is_what_makes_a_run_that_run():
    asked = {"signed": False, "open_ids": False}
    base = key_of(make_result(asked=asked))
    for same in (
        {"test": {"auc": 0.1}},
        {"date": "2030-01-01"},
        {"device": "gpu"},
        {"options": {"rows": 99}},  # found, not asked for
        {"settings": {"layers": {"hidden": (8,)}, "device": "cuda", "epochs": 1}},
        {"settings": {"layers": {"hidden": (8,)}, "l2": 0.0, "epochs": 1}},
    ):
        assert key_of(make_result(**{"asked": asked, **same})) == base
    for other in (
        {"key": "full"},
        {"asked": {**asked, "signed": True}},
        {"data": "other"},
        {"model": "fm"},
        {"dim": 8},
        {"ratio": 5.0},
        {"seed": 2},
        {"settings": {"layers": {"hidden": (9,)}, "epochs": 1}},
        {"settings": {"layers": {"hidden": (8,)}, "epochs": 2}},
    ):
        assert key_of(make_result(**{"asked": asked, **other})) != base


def test_results_are_appended_and_come_back_in_order(tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    written = [make_result(seed=seed) for seed in (3, 1, 2)]
    for result in written:
        append_result(path, result)
    assert load_results(path) == written
    assert path.read_bytes().count(b"\n") == 3


def test_results_of_some_methods_can_be_loaded_alone(tmp_path):
    path = tmp_path / "results.jsonl"
    written = [make_result(key=key) for key in ("full", "hashing", "pq", "full")]
    for result in written:
        append_result(path, result)
    assert load_results(path, ["full"]) == [written[0], written[3]]
    assert load_results(path, {"hashing", "pq"}) == written[1:3]
    assert load_results(path, []) == []


def test_where_results_come_from_is_said_in_a_line():
    results = [make_result(seed=seed, device="H200") for seed in (1, 2, 3)]
    said = "seeds 1, 2, 3; 2024-01-01; survey-code run hashing"
    assert describe_results(results) == f"3 runs: H200; {said}"
    later = make_result(seed=2, date="2024-03-01")
    assert describe_results([later, *results]) == (
        "4 runs: 3 on H200, 1 on cpu; seeds 1, 2, 3; 2024-01-01 to 2024-03-01; "
        "survey-code run hashing"
    )


def test_many_commands_are_counted_and_what_is_out_of_reach_is_no_run():
    calls = [
        make_result(seed=1, command=f"survey_code.run('pq', 'clicks', ratio={ratio})")
        for ratio in range(2, 11)
    ]
    few = "; ".join(sorted(result.command for result in calls[:8]))
    said = "runs: cpu; seeds 1; 2024-01-01"
    assert describe_results(calls[:8]) == f"8 {said}; {few}"
    noted = [
        make_result(failure=why, device="other", command="survey_code.run('a', ...)")
        for why in ("cannot", "cannot: at most 3x")
    ]
    told = ("survey-code run a --data x", "survey-code run b --data x", "make all")
    more = [make_result(command=command) for command in told]
    assert describe_results([*calls, *noted, *more]) == (
        f"12 {said}; make all; 2 commands survey-code run ...; "
        "9 commands survey_code.run(...); 2 more out of reach"
    )
    diverged = make_result(failure="a loss of NaN")
    assert describe_results([diverged]).startswith("1 runs")


def test_a_crash_at_any_byte_costs_the_last_line_only(tmp_path):
    path = tmp_path / "results.jsonl"
    first, second, third = (make_result(seed=seed) for seed in (1, 2, 3))
    whole = [(result.to_json() + "\n").encode() for result in (first, second)]
    for kept in range(len(whole[1]) - 1):
        path.write_bytes(whole[0] + whole[1][:kept])
        assert load_results(path) == [first]
        append_result(path, third)
        assert load_results(path) == [first, third]
        assert path.read_bytes().count(b"\n") == 2  # half a line does not stay
    # Only the end of the line is missing: nothing is lost.
    path.write_bytes(whole[0] + whole[1][:-1])
    assert load_results(path) == [first, second]
    append_result(path, third)
    assert load_results(path) == [first, second, third]


def test_half_a_line_is_cut_off_however_long_it_is(tmp_path):
    path = tmp_path / "results.jsonl"
    first, third = make_result(seed=1), make_result(seed=3)
    half = make_result(command="x" * (2 * PIECE_BYTES)).to_json()[:-2]
    for kept in (PIECE_BYTES - 1, PIECE_BYTES, len(half)):
        for before in ([], [first]):
            lines = [f"{result.to_json()}\n" for result in before]
            path.write_text("".join([*lines, half[:kept]]))
            append_result(path, third)
            assert load_results(path) == [*before, third]
            assert path.read_bytes().count(b"\n") == len(before) + 1


def test_lines_of_one_key_are_found_without_reading_the_others(tmp_path):
    path = tmp_path / "results.jsonl"
    written = [make_result(key=key) for key in ("a", "b", 'a "b"', "ä", "b")]
    replace_results(path, written)
    assert find_results(path, "b") == [written[1], written[4]]
    assert find_results(path, 'a "b"') == [written[2]]
    assert written[3] in find_results(path, "ä") and find_results(path) == written
    path.write_text("no results\n")
    with pytest.raises(ValueError, match="line 1: not a result"):
        find_results(path, "b")


@pytest.mark.parametrize("line", ["{}", "[1, 2]", "some text", '{"key": "full"}'])
def test_a_whole_line_that_is_no_result_is_a_value_error(tmp_path, line):
    path = tmp_path / "results.jsonl"
    path.write_text(make_result().to_json() + "\n" + line + "\n")
    with pytest.raises(ValueError, match="not a result: "):
        load_results(path)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_results(tmp_path / "none.jsonl")


def test_summaries_are_means_and_sample_deviations():
    values = {("full", 1.0): [0.8, 0.9, 0.7], ("hashing", 4.0): [0.5, 0.6]}
    results = [
        make_result(key, ratio, seed, test={"auc": value, "log_loss": 1 - value},
                    bytes={"inference": 1000 * seed})
        for (key, ratio), group in values.items()
        for seed, value in enumerate(group, 1)
    ]  # fmt: skip
    table = summarize(results)
    assert table["key"].tolist() == ["full", "hashing"]
    assert table["requested"].tolist() == [1.0, 4.0]
    assert table["seeds"].tolist() == [3, 2]
    assert table["bytes"].tolist() == [2000, 1500]
    for (_, row), group in zip(table.iterrows(), values.values()):
        assert row["mean"] == pytest.approx(np.mean(group))
        spread = np.sqrt(
            sum((v - np.mean(group)) ** 2 for v in group) / (len(group) - 1)
        )
        assert row["deviation"] == pytest.approx(spread)
    other = summarize(results, "log_loss")
    np.testing.assert_allclose(other["mean"], 1 - table["mean"])


def test_one_seed_has_no_deviation():
    table = summarize([make_result()])
    assert np.isnan(table["deviation"].item()) and table["seeds"].tolist() == [1]
