"""Options: stated once, checked once, and the same from Python, words and files."""

import types
from fractions import Fraction
from typing import Optional

import numpy as np
import pytest

from survey_code import Options, methods
from survey_code.catalog import get_method
from survey_code.options import found, option, planned, value_types


class Trial(Options):
    """Of no method."""

    bits: int = planned("bits of a code", choices=(8, 4, 2), otherwise=8)
    rate: float = option(0.5, "of something", above=0, high=1, tune=(0.5, 0.1))
    count: int | None = option(None, "how many", low=1)
    flag: bool = option(False, "a switch")
    rows: int = found("rows", low=1)
    mask: np.ndarray = found("which", otherwise=np.zeros(2))


def test_what_is_open_is_settled_without_a_budget():
    with pytest.raises(ValueError, match="rows is not set: rows; `plan` chooses it"):
        Trial().settled()
    assert Trial(rows=3).settled().bits == 8
    assert Trial(rows=3, bits=2).settled().bits == 2


def test_asked_holds_the_defaults_and_nothing_that_is_found():
    wanted = {"bits": None, "rate": 0.5, "count": None, "flag": False}
    assert Trial(rows=3).asked() == wanted
    assert Trial(rows=3, count=2).given() == {"rows": 3, "count": 2}
    assert Trial(mask=np.arange(3)).given()["mask"].tolist() == [0, 1, 2]
    assert Trial.grid() == {"rate": (0.5, 0.1)}


def test_equal_values_are_equal_options():
    assert Trial(rate=1) == Trial(rate=1.0) == Trial(rate=np.float64(1))
    assert hash(Trial(rate=1)) == hash(Trial(rate=1.0))
    assert Trial(rate=1) != Trial(rate=0.25) and Trial(bits=4) != Trial(bits=8)
    assert Trial(mask=np.arange(3)) == Trial(mask=np.arange(3))
    assert repr(Trial(rate=1)) == "Trial(rate=1.0, flag=False)"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"bits": 3}, r"bits must be one of \(8, 4, 2\), got 3"),
        ({"bits": True}, "bits must be one of"),
        ({"rate": 0}, "rate must be a number above 0 to 1, got 0.0"),
        ({"rate": 10**400}, "rate must be a number above 0 to 1, got 1000"),
        ({"rate": float("nan")}, "rate must be a number above 0 to 1, got nan"),
        ({"rate": "0.5"}, "rate must be a number above 0 to 1, got '0.5'"),
        ({"rate": False}, "rate must be a number above 0 to 1, got False"),
        ({"count": 2.0}, "count must be an integer from 1 up, got 2.0"),
        ({"flag": "false"}, "flag must be True or False, got 'false'"),
        ({"flag": 1}, "flag must be True or False, got 1"),
        ({"rows": 0}, "rows must be an integer from 1 up, got 0"),
    ],
)
def test_a_wrong_value_is_one_clear_error(given, said):
    with pytest.raises(ValueError, match=said):
        Trial(**given)


def test_words_become_values_of_their_types():
    words = {"bits": "4", "rate": "1e-2", "count": "none", "flag": "No", "x": "3"}
    assert Trial.parse(words) == {
        "bits": 4, "rate": 0.01, "count": None, "flag": False, "x": "3",
    }  # fmt: skip
    assert Trial.parse({"count": "three"}) == {"count": "three"}


def test_an_older_way_to_write_none_is_understood():
    class Older(Options):
        count: Optional[int] = option(None, "how many", low=1)  # noqa: UP045

    assert Older(count=3).count == 3 and Older().count is None
    with pytest.raises(ValueError, match="count must be an integer from 1 up"):
        Older(count="3")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("x: int = option(5, 'h', high=1)", "Bad.x: its own value 5 is outside"),
        ("x: int = option(1, 'h', low=0, tune=(1, -5))", "its own value -5 is outside"),
        ("x: int = option(7, 'h', choices=(1, 2))", "its own value 7 is outside"),
        ("x: int = planned('h', low=1, otherwise=0)", "its own value 0 is outside"),
        ("x: int = 3", "Bad.x must be made by option, planned or found"),
    ],
)
def test_options_that_contradict_themselves_are_no_class(body, said):
    names = {"Options": Options, "option": option, "planned": planned}
    with pytest.raises(TypeError, match=said):
        exec(f"class Bad(Options):\n    {body}", names)


def test_the_docstring_is_made_of_the_options():
    text = Trial.__doc__
    assert "rate : float, default 0.5" in text
    assert "of something; tuned over (0.5, 0.1)" in text
    assert "bits : int, planned" in text and "found by a plan or a search" in text
    assert [row[0] for row in Trial.describe()] == ["bits", "rate", "count", "flag"]


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.uint64, np.int64])
def test_any_integer_type_is_an_integer(kind):
    made = Trial(bits=kind(4), count=kind(3), rate=kind(1))
    assert (type(made.bits), type(made.count), type(made.rate)) == (int, int, float)
    assert made == Trial(bits=4, count=3, rate=1.0)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, Fraction])
def test_any_type_of_number_is_a_number(kind):
    made = Trial(rate=kind(0.25))
    assert type(made.rate) is float and made.rate == 0.25
    with pytest.raises(ValueError, match="count must be an integer from 1 up"):
        Trial(count=kind(2))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [float, np.float32, np.float64])
def test_nan_and_infinity_are_no_numbers(kind, value):
    with pytest.raises(ValueError, match="rate must be a number above 0 to 1"):
        Trial(rate=kind(value))


def test_numpys_truth_values_are_truth_values_and_no_numbers():
    assert Trial(flag=np.True_).flag is True
    for name in ("bits", "count", "rate"):
        for value in (True, np.True_):
            with pytest.raises(ValueError, match=f"{name} must be"):
                Trial(**{name: value})


SWITCHES = [
    (method.key, name)
    for method in methods()
    for name, kinds in value_types(method.load().options).items()
    if bool in kinds
]


@pytest.mark.parametrize(("key", "name"), SWITCHES)
@pytest.mark.parametrize("word", ["false", "off", "no", "", "0", 0, 1, 0.0, None])
def test_a_switch_of_any_method_is_true_or_false(key, name, word):
    if (
        word is None
        and types.NoneType in value_types(get_method(key).load().options)[name]
    ):
        return
    with pytest.raises(ValueError, match=f"{key}: {name} must be True or False"):
        get_method(key).ask({name: word})


@pytest.mark.parametrize(("key", "name"), SWITCHES)
def test_a_switch_in_words_is_one(key, name):
    kind = get_method(key).load().options
    for word, value in (("false", False), ("No", False), ("true", True), ("YES", True)):
        assert getattr(get_method(key).ask(kind.parse({name: word})), name) is value
